/* Exercise of lesson 6, and part "rope" of the assignment: rotary positions (Su et al. 2021, "RoFormer: Enhanced
   Transformer with Rotary Position Embedding") for the queries and keys of a text.

   The text has n tokens at positions 0 to n - 1. Pair j of each head, numbers 2j and 2j + 1, turns by the angle
   position / theta^(2j / hd):  (a, b) -> (a cos - b sin, a sin + b cos). */
#include "examples/lessons/lesson.h"
#include "minillama.h"

enum { N = 12, HEADS = 4, KV_HEADS = 2, HD = 6 };

/* x (n, heads, hd), turned in place */
static void apply_rotary(float *x, int n, int heads, int hd, float theta) {
    /* your turn: for each token, head and pair, the angle (powf, cosf and sinf are in math.h), then the pair. Both of
       its new numbers need both old ones: keep those before you write. */
    for (int p = 0; p < n; p++)
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < hd / 2; j++) {
                float *pair = x + (p * heads + h) * hd + 2 * j, a = pair[0], b = pair[1];
                float angle = (float)p / powf(theta, 2 * (float)j / (float)hd), c = cosf(angle),
                      s = sinf(angle);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
    /* end */
}

/* The same by the header: y (N, heads * HD) = x, rotated. */
typedef struct turn {
    ml_tensor x, table, y;
} turn;
static ml_tensor rotated(ml_graph *g, void *user) {
    turn *t = user;
    ml_rows one = {NULL, 0};
    return t->y = ml_rotate(g, t->x, t->table, one);
}
static double header_difference(float *x, const float *ours, int heads,
                                float theta) { /* the largest; -1: an error */
    float table[N][HD];
    turn t = {{ML_F32, N, (size_t)heads * HD, x, NULL}, {ML_F32, N, HD, table, NULL}, ml_none()};
    ml_rope_desc desc = {.hd = HD, .theta = theta};
    ml_graph *g;
    ml_error error;
    double most = 0;
    if (ml_rope_table(&desc, table[0], N)) return check(0, "no table") - 1;
    if (ml_graph_new(NULL, rotated, &t, &g, &error)) return check(0, "%s", error.text) - 1;
    ml_graph_begin(g, 0);
    rotated(g, &t);
    if (ml_graph_end(g, &error)) most = check(0, "%s", error.text) - 1;
    for (int i = 0; i < N * heads * HD && most >= 0; i++)
        most = larger(most, fabs((double)(((float *)t.y.data)[i] - ours[i])));
    ml_graph_free(g);
    return most;
}

static void by_hand(void) {
    float two[2][2] = {{1, 0}, {1, 0}}, four[11][4] = {{0}}, heads[2][2][2] = {{{0}}, {{1, 0}, {0, 1}}};
    printf("By hand: hands that point to the right turn counterclockwise\n");
    apply_rotary(two[0], 2, 1, 2, 10000);
    check_near((double)two[0][0], 1, 0, "position 0 turns nothing: its first number");
    check_near((double)two[1][0], 0.5403023, 1e-6, "position 1, pair 0: cos 1");
    check_near((double)two[1][1], 0.8414710, 1e-6, "position 1, pair 0: sin 1");
    four[10][2] = 2;
    apply_rotary(four[0], 11, 1, 4, 100);
    check_near((double)four[10][2], 2 * 0.5403023, 2e-6,
               "position 10, pair 1 of 2, theta 100: 2 cos(10 / 100^(1/2))");
    check_near((double)four[10][3], 2 * 0.8414710, 2e-6,
               "position 10, pair 1 of 2, theta 100: 2 sin(10 / 100^(1/2))");
    apply_rotary(heads[0][0], 2, 2, 2, 10000);
    check_near((double)heads[1][1][0], -0.8414710, 1e-6, "position 1, second head, (0, 1): -sin 1");
    check_near((double)heads[1][1][1], 0.5403023, 1e-6, "position 1, second head, (0, 1): cos 1");
}

static double dot(const float *x, const float *y) { /* (HD) . (HD) */
    double sum = 0;
    for (int i = 0; i < HD; i++) sum += (double)(x[i] * y[i]);
    return sum;
}

int main(void) {
    static float q[N][HEADS][HD], k[N][KV_HEADS][HD], q0[N][HEADS][HD], k0[N][KV_HEADS][HD];
    double worst = 0;
    by_hand();
    for (int i = 0; i < N * HEADS * HD; i++)
        (&q[0][0][0])[i] = (float)sin(1 + 3 * (i % (HEADS * HD))); /* the same token */
    for (int i = 0; i < N * KV_HEADS * HD; i++) (&k[0][0][0])[i] = (float)cos(5 * (i % (KV_HEADS * HD)));
    memcpy(q0, q, sizeof q), memcpy(k0, k, sizeof k);
    apply_rotary(q[0][0], N, HEADS, HD, 500);
    apply_rotary(k[0][0], N, KV_HEADS, HD, 500);
    printf("A text of one word, %d times: for queries and keys only the distance counts\n", N);
    for (int m = 1; m < N; m++)
        for (int n = 1; n < N; n++)
            worst = larger(worst, fabs(dot(q[m][3], k[n][1]) - dot(q[m - 1][3], k[n - 1][1])));
    check_near(worst, 0, 1e-5, "q . k at (m, n) and at (m - 1, n - 1): the largest difference");
    check(fabs(dot(q[5][3], k[0][1]) - dot(q[0][3], k[0][1])) > 0.1,
          "q . k at distance 5 and at 0 are %.3f and %.3f: not the same", dot(q[5][3], k[0][1]),
          dot(q[0][3], k[0][1]));
    printf("The header's ml_rotate\n");
    check_near(header_difference(q0[0][0], q[0][0], HEADS, 500), 0, 1e-5, "queries: the largest difference");
    check_near(header_difference(k0[0][0], k[0][0], KV_HEADS, 500), 0, 1e-5, "keys: the largest difference");
    return lesson_end();
}
