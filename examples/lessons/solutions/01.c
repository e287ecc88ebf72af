/* Exercise 1: a dot product in four accumulators, and the product that gives the gradient of a matrix. */
#include "examples/lessons/lesson.h"

/* a (k) . b (k). The four sums need not wait for each other; to be fast, they must be four variables. */
static float dot(const float *a, const float *b, int k) {
    float sum[4] = {0, 0, 0, 0};
    /* your turn: add product i to sum[i % 4], for every i from 0 to k - 1; k may be any number, 0 too */
    for (int i = 0; i < k; i++) sum[i % 4] += a[i] * b[i];
    /* end */
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* dw (out, in) += dy (n, out)^T x (n, in): dw_oi gains the sum of dy_to x_ti over the n rows t. In training, dy is
   how the loss changes with each number of y = x w^T, and dw how it changes with each weight. */
static void weight_gradient(float *dw, const float *dy, const float *x, int n, int out, int in) {
    /* your turn: three loops; choose an order in which the innermost goes along the rows of x and dw */
    for (int t = 0; t < n; t++)
        for (int o = 0; o < out; o++)
            for (int i = 0; i < in; i++) dw[o * in + i] += dy[t * out + o] * x[t * in + i];
    /* end */
}

static void check_dots(void) {
    float a[9], b[9];
    for (int i = 0; i < 9; i++) a[i] = (float)(i + 1), b[i] = 2;
    puts("(1 2 ... k) . (2 2 ... 2) = k (k + 1):");
    for (int k = 0; k <= 9; k++) {
        char what[32];
        snprintf(what, sizeof what, "k = %d", k);
        check_near((double)dot(a, b, k), k * (k + 1), 0, what);
    }
}

/* The loss is the sum of c_to y_to, so that dy = c; y = x w^T is linear in w, so a difference of losses is exact. */
static double loss_of(const float *w, const float *c, const float *x, int n, int out, int in) {
    double loss = 0;
    for (int t = 0; t < n; t++)
        for (int o = 0; o < out; o++)
            for (int i = 0; i < in; i++)
                loss += (double)c[t * out + o] * (double)w[o * in + i] * (double)x[t * in + i];
    return loss;
}

static void check_gradient(void) {
    static const float c[] = {1, -2, 3, 0.5f, 2, 1},
                       x[] = {1, 2, 0, -1, 3, 1, 2, 2, -3, 1, 0, 4}; /* (3, 2), (3, 4) */
    float w[8] = {1, 0, 2, -1, 3, 1, 0, 2},
          dw[8] = {100}; /* (2, 4); the gradient is added to what is there */
    char what[32];
    weight_gradient(dw, c, x, 3, 2, 4);
    puts("dw, beside the difference that adding 1 to a weight makes:");
    for (int i = 0; i < 8; i++) {
        double before = loss_of(w, c, x, 3, 2, 4);
        w[i] += 1;
        snprintf(what, sizeof what, "dw (%d, %d)", i / 4, i % 4);
        check_near((double)dw[i], loss_of(w, c, x, 3, 2, 4) - before + (i == 0 ? 100 : 0), 0, what);
        w[i] -= 1;
    }
}

int main(void) {
    check_dots();
    check_gradient();
    return lesson_end();
}
