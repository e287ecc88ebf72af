/* Lesson 1: products.

   Nearly all the work of a Llama is one operation, the product of two matrices. You write it in plain loops: one dot
   product for each number of the result. You reorder the loops, and the same multiplications run several times
   faster. You see that the order of additions changes the last bits of a sum, which is why a compiler may not reorder
   them for you. Then minillama.h computes the same product, and you measure how much faster it is than plain loops.

   dot product      a . b = a_0 b_0 + a_1 b_1 + ... + a_(k-1) b_(k-1)
   matrix product   Y (n, out) = X (n, in) W (out, in)^T,   y_ij = x_i . w_j   (x_i: row i of X; w_j: row j of W)
   rounding         a sum of k products, in any order, is within about k 2^-24 (|a_0 b_0| + ...) of the exact one

   Paper: Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication". */
#include <time.h>
#include "lesson.h"
#include "minillama.h"

enum { N = 128, IN = 512, OUT = 512, WAYS = 3 };
static const char *const names[WAYS] = {"dots", "rows", "minillama.h"};
static float x[N * IN], w[OUT * IN], w_t[IN * OUT], y[WAYS][N * OUT]; /* w_t is w (OUT, IN) transposed */

/* a (k), b (k). Each addition waits for the one before it. */
static float dot(const float *a, const float *b, int k) {
    float sum = 0;
    for (int i = 0; i < k; i++) sum += a[i] * b[i];
    return sum;
}

/* to (n, out) = from (n, in) weights (out, in)^T: one dot product for each number */
static void by_dots(const float *from, const float *weights, float *to, int n, int in, int out) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < out; j++) to[i * out + j] = dot(from + i * in, weights + j * in, in);
}

/* The same from the transposed weights (in, out). The `out` sums of the inner loop do not wait for each other, and a
   compiler can use vectors for them without reordering any. */
static void by_rows(const float *from, const float *turned, float *to, int n, int in, int out) {
    for (int i = 0; i < n * out; i++) to[i] = 0;
    for (int i = 0; i < n; i++)
        for (int k = 0; k < in; k++)
            for (int j = 0; j < out; j++) to[i * out + j] += from[i * in + k] * turned[k * out + j];
}

/* The header's product. It needs a graph; lesson 4 shows what that is for. */
static ml_tensor by_header(ml_graph *g, void *unused) {
    ml_tensor a = {ML_F32, N, IN, x, NULL}, b = {ML_F32, OUT, IN, w, NULL};
    return (void)unused, ml_linear(g, a, b, ml_none());
}

/* Billions of multiplications (each with its addition) a second: the best of five, since other programs run, too. */
static double speed_of(int way, ml_graph *g) {
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        clock_t begin = clock();
        if (way == 0) by_dots(x, w, y[0], N, IN, OUT);
        if (way == 1) by_rows(x, w_t, y[1], N, IN, OUT);
        if (way == 2) ml_graph_begin(g, 0), memcpy(y[2], by_header(g, NULL).data, sizeof y[2]);
        best = fmin(best, fmax((double)(clock() - begin) / CLOCKS_PER_SEC, 1e-6));
    }
    return 1e-9 * N * IN * OUT / best;
}

/* How many numbers of a result are farther from the exact sum than rounding explains. */
static int count_wrong(const float *result) {
    int wrong = 0;
    for (int i = 0; i < N * OUT; i++) {
        double exact = 0, size = 0;
        for (int k = 0; k < IN; k++) {
            double term = (double)x[i / OUT * IN + k] * (double)w[i % OUT * IN + k];
            exact += term, size += fabs(term);
        }
        wrong += !(fabs((double)result[i] - exact) <= IN * ldexp(1, -24) * size);
    }
    return wrong;
}

/* X left of Y, W^T above it; the speeds beside them. */
static void draw(const char *path, const float *a, const float *b, const float *c, const double *speed) {
    svg s;
    svg_begin(&s, path, 640, 330, "Y = X W^T: a row of X times a row of W is one number of Y");
    svg_heat(&s, 60, 210, 40, a, 2, 3, NULL, NULL), svg_text(&s, 60, 310, "start", 13, "X (2, 3)");
    svg_heat(&s, 200, 70, 40, b, 3, 4, NULL, NULL), svg_text(&s, 200, 62, "start", 13, "W^T (3, 4)");
    svg_heat(&s, 200, 210, 40, c, 2, 4, NULL, NULL), svg_text(&s, 200, 310, "start", 13, "Y (2, 4)");
    for (int i = 0; i < 2; i++) { /* row 1 of X and row 2 of W */
        svg_line(&s, 60, 250 + 40 * i, 360, 250 + 40 * i, "black", 3);
        svg_line(&s, 280 + 40 * i, 70, 280 + 40 * i, 290, "black", 3);
    }
    svg_bars(&s, 384, 80, 246, 190, speed, WAYS, names);
    svg_text(&s, 507, 312, "middle", 12, "billion multiplications a second");
    svg_end(&s);
}

int main(int argc, char **argv) {
    static const float a[] = {1, 2, 3, 0, 1, -1}, b[] = {1, 0, 2, -1, 1, 1, 0, 3, 1, 2, 2, 2};
    static const float b_t[] = {1, -1, 0, 2, 0, 1, 3, 2, 2, 1, 1, 2};
    float c[8], turned[8], big = 1e8f, sum = big + 1, none = big - big;
    double speed[WAYS];
    ml_graph *g;
    by_dots(a, b, c, 2, 3, 4), by_rows(a, b_t, turned, 2, 3, 4);
    puts("Each number of Y (2, 4) is a row of X (2, 3) times a row of W (4, 3).");
    check_near((double)c[0], 7, 0, "(1 2 3) . (1 0 2) = 1 + 0 + 6");
    check_near((double)c[6], 2, 0, "(0 1 -1) . (0 3 1) = 0 + 3 - 1");
    check(!memcmp(c, turned, sizeof c), "the reordered loops give the same numbers");
    printf("Order: (1e8 + 1) - 1e8 = %g, (1e8 - 1e8) + 1 = %g.\n", (double)(sum - big), (double)(none + 1));
    for (int i = 0; i < N * IN; i++) x[i] = (float)sin(3.0 * i * i);
    for (int i = 0; i < OUT * IN; i++) w_t[i % IN * OUT + i / IN] = w[i] = (float)cos(5.0 * i * i);
    if (ml_graph_new(NULL, by_header, NULL, &g, NULL)) return !check(0, "memory for the header's product");
    printf("X (%d, %d) W^T (%d, %d): %d million multiplications.\n", N, IN, IN, OUT, N * IN * OUT / 1000000);
    puts("dots: each addition waits; rows: vectors; minillama.h: also blocks of Y in registers.");
    for (int i = 0; i < WAYS; i++) {
        speed[i] = speed_of(i, g);
        printf("%-12s %6.2f billion a second\n", names[i], speed[i]);
        check_near(count_wrong(y[i]), 0, 0, "numbers off by more than rounding explains");
    }
    ml_graph_free(g), draw(argc > 1 ? argv[1] : "build/lessons/01.svg", a, b_t, c, speed);
    return lesson_end();
}
/* EXERCISES
   1. Change OUT to 500 and IN to 2048. Predict which of the three ways becomes slower, then run it.
   2. Sum in four variables, four products in each turn of the loop. Predict: is it faster, and are the bits the
      same? Then try an array, sum[i % 4].  3. make exercise-01: that sum, and the product dW += dY^T X of lesson 9. */
