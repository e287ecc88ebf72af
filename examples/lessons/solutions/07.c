/* Exercise 7: the scores, the causal mask and the grouped heads of attention (lesson 7). The rest is given. Each is
   checked by hand, and all together against the header's ml_attention. */
#include "examples/lessons/lesson.h"
#include "minillama.h"

enum { N = 5, HEADS = 4, KEY_HEADS = 2, SIZE = 8, DIM = HEADS * SIZE, KEY_DIM = KEY_HEADS * SIZE };

/* How well the key k (size) fits the query q (size). */
static float score(const float *q, const float *k, int size) {
    float result = 0;
    /* your turn: the dot product of q and k, divided by the square root of size */
    for (int j = 0; j < size; j++) result += q[j] * k[j];
    result /= sqrtf((float)size);
    /* end */
    return result;
}

/* scores (n, n): row t belongs to the query of token t, column u to the key of token u. */
static void hide_later_tokens(float *scores, int n) {
    /* your turn: put -INFINITY, of which softmax makes 0, wherever the key's token comes after the query's */
    for (int t = 0; t < n; t++)
        for (int u = t + 1; u < n; u++) scores[t * n + u] = -INFINITY;
    /* end */
}

/* Which of the key heads this query head reads: neighbors share one. */
static int key_head_of(int head, int heads, int key_heads) {
    int result = 0;
    /* your turn: of 4 heads and 2 key heads, heads 0 and 1 read key head 0, heads 2 and 3 read key head 1 */
    result = head / (heads / key_heads);
    /* end */
    return result;
}

/* ---- given ---- */

static void softmax(float *row, int n) {
    float largest = row[0], sum = 0;
    for (int i = 0; i < n; i++) largest = fmaxf(largest, row[i]);
    for (int i = 0; i < n; i++) sum += row[i] = expf(row[i] - largest);
    for (int i = 0; i < n; i++) row[i] /= sum;
}

/* y (N, DIM) from q (N, DIM) and k, v (N, KEY_DIM) */
static void attention(float *y, const float *q, const float *k, const float *v, int causal) {
    float w[N * N];
    for (int head = 0; head < HEADS; head++) {
        int own = head * SIZE, shared = key_head_of(head, HEADS, KEY_HEADS) * SIZE;
        for (int i = 0; i < N * N; i++)
            w[i] = score(q + i / N * DIM + own, k + i % N * KEY_DIM + shared, SIZE);
        if (causal) hide_later_tokens(w, N);
        for (int t = 0; t < N; t++) {
            softmax(w + t * N, N);
            for (int j = 0; j < SIZE; j++) {
                y[t * DIM + own + j] = 0;
                for (int u = 0; u < N; u++)
                    y[t * DIM + own + j] += w[t * N + u] * v[u * KEY_DIM + shared + j];
            }
        }
    }
}

/* ---- checks ---- */

static float q[N * DIM], k[N * KEY_DIM], v[N * KEY_DIM];
static ml_tensor header(ml_graph *g, void *causal) {
    ml_tensor tq = {ML_F32, N, DIM, q, NULL}, tk = {ML_F32, N, KEY_DIM, k, NULL}, tv = tk;
    ml_attention_desc desc = {.n_heads = HEADS, .n_kv_heads = KEY_HEADS};
    tv.data = v, desc.q = tq, desc.k = tk, desc.v = tv;
    desc.mask = *(int *)causal ? ML_MASK_CAUSAL : ML_MASK_FULL;
    return ml_attention(g, &desc);
}

static void check_whole(int causal) {
    float y[N * DIM];
    int worst = 0;
    ml_graph *g;
    ml_error e;
    char what[80];
    if (ml_graph_new(NULL, header, &causal, &g, &e)) {
        check(0, "%s", e.text);
        return;
    }
    ml_graph_begin(g, 0);
    const float *wanted = (const float *)header(g, &causal).data;
    attention(y, q, k, v, causal);
    for (int i = 0; i < N * DIM; i++)
        if (!(fabsf(y[i] - wanted[i]) <= fabsf(y[worst] - wanted[worst]))) worst = i;
    snprintf(what, sizeof what, "%s attention, token %d, number %d of head %d", causal ? "causal" : "full",
             worst / DIM, worst % SIZE, worst % DIM / SIZE);
    check_near((double)y[worst], (double)wanted[worst], 1e-5, what);
    ml_graph_free(g);
}

int main(void) {
    const float a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 9};
    float scores[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    const int wanted[] = {0, 0, 1, 1, 0, 1, 2, 3, 0, 0, 0, 0}, of[] = {2, 4, 1};
    ml_random random;
    check_near((double)score(a, b, 4), 37, 1e-6, "score: (1 5 + 2 6 + 3 7 + 4 9) / 2");
    hide_later_tokens(scores, 3);
    for (int i = 0; i < 9; i++)
        check(i % 3 > i / 3 ? scores[i] < -1e30f : fabsf(scores[i] - (float)(i + 1)) < 1e-6f,
              "mask: token %d reads token %d: score %g%s", i / 3, i % 3, (double)scores[i],
              i % 3 > i / 3 ? ", wanted -inf" : "");
    for (int i = 0; i < 12; i++) {
        int got = key_head_of(i % 4, 4, of[i / 4]);
        check(got == wanted[i], "head %d of 4 reads key head %d of %d, wanted %d", i % 4, got, of[i / 4],
              wanted[i]);
    }
    ml_random_seed(&random, 7);
    for (int i = 0; i < N * DIM; i++) q[i] = ml_random_normal(&random);
    for (int i = 0; i < N * KEY_DIM; i++) k[i] = ml_random_normal(&random), v[i] = ml_random_normal(&random);
    check_whole(0);
    check_whole(1);
    return lesson_end();
}
