/* Lesson 7: attention. Every token has a query, a key and a value. The softmax of its query's dot products with all
   keys says how much of each token's value goes into its result. With a causal mask a token sees only itself and
   those before it, so that a model can be trained on all positions of a text at once; with a full mask it sees the
   whole row, as a classifier may. Several heads do this side by side, each with its own queries; two of them share
   keys and values here. You compute it by hand, on three tokens and inside a trained model, and see what a head does.
      weights = softmax(q k^T / sqrt(size)), hidden tokens left out of the softmax; result = weights v
   Vaswani et al. 2017, "Attention Is All You Need"; Ainslie et al. 2023, "GQA" (shared keys and values). */
#include "examples/lessons/lesson.h"
#include "minillama.h"

typedef struct head { /* n tokens; `size` numbers of this head, of `wide` and `wide_k` numbers of all heads */
    int n, size, wide, wide_k, causal;
} head;
/* One head: weights (n, n), row t for the query of token t; y (n, size) = weights v. q, k, v (n, size). */
static void attend(const head *h, float *y, float *weights, const float *q, const float *k, const float *v) {
    for (int t = 0; t < h->n; t++, q += h->wide, y += h->wide, weights += h->n) {
        float sum = 0, largest = -HUGE_VALF;
        int seen = h->causal ? t + 1 : h->n;
        for (int u = 0; u < seen; u++) {
            weights[u] = 0;
            for (int j = 0; j < h->size; j++)
                weights[u] += q[j] * k[u * h->wide_k + j] / sqrtf((float)h->size);
            largest = fmaxf(largest, weights[u]);
        }
        for (int u = 0; u < seen; u++) sum += weights[u] = expf(weights[u] - largest);
        for (int u = 0; u < h->n; u++) weights[u] = u < seen ? weights[u] / sum : 0;
        for (int j = 0, u; j < h->size; j++)
            for (y[j] = 0, u = 0; u < seen; u++) y[j] += weights[u] * v[u * h->wide_k + j];
    }
}

static void three_tokens(void) {
    const float none[] = {0, 0, 0}, v[] = {3, 6, 0}, q[] = {0, 0, 10}, k[] = {0, 10, 0};
    float y[3], weights[9];
    head h = {3, 1, 1, 1, 1};
    printf("Three tokens, values 3, 6 and 0. All dot products 0: the mean of what is seen.\n");
    attend(&h, y, weights, none, none, v);
    check_near((double)y[1], 4.5, 1e-6, "causal: token 1 sees 3 and 6");
    h.causal = 0;
    attend(&h, y, weights, none, none, v);
    check_near((double)y[1], 3, 1e-6, "full: token 1 sees all");
    attend(&h, y, weights, q, k, v);
    check_near((double)y[2], 6, 1e-6, "the query of token 2 fits the key of token 1 alone");
}

/* ---- from here on, the header computes what other lessons build ---- */
enum { LAYER = 4, HEAD = 2, HEADS = 4, KEY_HEADS = 2, SIZE = 32, DIM = HEADS * SIZE, MOST = 20 }; /* from 0 */
static ml_model *model;
static ml_tokens t;
static float taken[ML_PLACES][MOST * DIM], rope[MOST * SIZE];
static ml_tensor q, k, v, full; /* (n, DIM), (n, KEY_HEADS * SIZE), the same; (n, DIM) by the header */
/* The model calls this at each place: copies what we want to see. */
static ml_tensor take(ml_graph *g, const ml_insertion *at, void *user) {
    const ml_tensor *x = at->place == ML_PLACE_O ? &at->x : &at->y; /* before Wo: the heads' results */
    size_t size = at->layer == LAYER && !g->measuring ? x->rows * x->cols * sizeof(float) : 0;
    if (size) memcpy(taken[at->place], x->data, size);
    return (void)user, at->y;
}
/* The whole model; then queries and keys get their positions, as in lesson 6. */
static ml_tensor run(ml_graph *g, void *user) {
    const ml_batch batch = {.tokens = t.ids, .n_tokens = t.n};
    ml_llama_desc llama = {.model = model, .batch = &batch, .insert = take};
    ml_tensor table = {ML_F32, MOST, SIZE, rope, NULL};
    llama.places = 1u << ML_PLACE_Q | 1u << ML_PLACE_K | 1u << ML_PLACE_V | 1u << ML_PLACE_O;
    ml_llama(g, &llama);
    q = v = (ml_tensor){ML_F32, (size_t)t.n, DIM, taken[ML_PLACE_Q], NULL};
    v.cols = KEY_HEADS * SIZE, v.data = taken[ML_PLACE_V], k = v, k.data = taken[ML_PLACE_K];
    q = ml_rotate(g, q, table, (ml_rows){0}), k = ml_rotate(g, k, table, (ml_rows){0});
    ml_attention_desc all = {q, k, v, HEADS, KEY_HEADS, .mask = ML_MASK_FULL};
    return (void)user, full = ml_attention(g, &all);
}

static int same(const float *a, const float *b) {
    int wrong = 0;
    for (int i = 0; i < t.n * DIM; i++) wrong += !(fabsf(a[i] - b[i]) < 1e-5f);
    return !wrong;
}

int main(int argc, char **argv) {
    static float y[2][MOST * DIM], weights[2 * HEADS][MOST * MOST];
    const char text[] = "Lily had a red ball. Tom took her ball. Lily was sad.", *names[MOST];
    char words[MOST][16];
    int32_t work[1024];
    size_t size;
    ml_graph *g;
    ml_encode_desc encode = {text, sizeof text - 1, ML_ADD_SPECIAL, work, sizeof work};
    ml_error e;
    svg s;
    three_tokens();
    ml_rope_table(&(ml_rope_desc){.hd = SIZE}, rope, MOST);
    if (ml_model_load("examples/models/stories.gguf", NULL, &model, &e) ||
        ml_tokenizer_encode(model->tokenizer, &encode, &t, &e) || ml_graph_new(NULL, run, NULL, &g, &e))
        return printf("%s\n", e.text), 1;
    ml_graph_begin(g, 0), run(g, NULL);
    for (int i = 0; i < 2 * HEADS; i++) {
        int causal = i / HEADS, own = i % HEADS * SIZE,
            shared = i % HEADS / 2 * SIZE; /* two heads share keys */
        const float *at = (float *)q.data + own, *keys = (float *)k.data + shared;
        head h = {t.n, SIZE, DIM, KEY_HEADS * SIZE, causal};
        attend(&h, y[causal] + own, weights[i], at, keys, taken[ML_PLACE_V] + shared);
    }
    check(same(y[1], taken[ML_PLACE_O]) && y[1][0] != 0, "%d heads by hand equal those in the model", HEADS);
    check(same(y[0], full.data), "and with a full mask those of ml_attention");
    for (int i = 0; i < t.n; i++) {
        const float *w = weights[HEADS + HEAD] + i * t.n;
        ml_tokenizer_decode(model->tokenizer, &(ml_tokens){t.ids + i, 1}, words[i], 16, &size, NULL);
        names[i] = i ? words[i] : "(begin)";
        int best = 0;
        for (int u = 0; u <= i; u++) best = w[u] > w[best] ? u : best;
        printf("%s attends most to %s (%.0f %%)\n", names[i], names[best], 100 * (double)w[best]);
    }
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/07.svg", 810, 470, "Periods attend to the subject");
    svg_text(&s, 80, 56, "start", 13, "layer 5, head 3, causal: dark where a row attends");
    svg_text(&s, 450, 56, "start", 13, "the same queries and keys with a full mask");
    svg_heat(&s, 80, 116, 21, weights[HEADS + HEAD], t.n, t.n, names, names);
    svg_heat(&s, 450, 116, 21, weights[HEAD], t.n, t.n, NULL, names);
    return svg_end(&s), lesson_end();
}
/* EXERCISES  1. Leave out the division by sqrt(size): predict whether the weights get sharper, then run it.  2. Which
   of the 24 heads attend to the token before? Try LAYER and HEAD.  3. make exercise-07: mask and grouped heads. */
