/* Exercise of lesson 4: the backward pass of GELU (Hendrycks & Gimpel 2016, "Gaussian Error Linear Units").

   y = x Phi(x), where Phi(x) is the probability that a normal random number is below x: erfc(-x / sqrt(2)) / 2. Phi's
   own derivative is the normal density, exp(-x^2 / 2) / sqrt(2 pi). */
#include "examples/lessons/lesson.h"
#include "minillama.h"

enum { N = 9 };

static double gelu(double x) { return 0.5 * x * erfc(-x / sqrt(2)); }

/* dx (n) += dy (n) * gelu'(x (n)) */
static void gelu_backward(int n, const float *x, const float *dy, float *dx) {
    /* your turn: differentiate x Phi(x) by the product rule. Add to dx, because others may have read x, too. (math.h
       has erfc and exp; 1 / sqrt(2 pi) = 0.3989422804014327.) */
    for (int i = 0; i < n; i++) {
        double at = (double)x[i], phi = 0.5 * erfc(-at / sqrt(2));
        double slope = phi + at * 0.3989422804014327 * exp(-0.5 * at * at);
        dx[i] += (float)(slope * (double)dy[i]);
    }
    /* end */
}

/* The same by the header: the gradient of sum(gelu(x) * dy) with respect to x is gelu'(x) * dy. */
static ml_tensor weighted_sum(ml_graph *g, void *user) {
    const ml_tensor *both = user; /* x and dy (1, N) */
    return ml_sum(g, ml_mul(g, ml_gelu(g, both[0]), both[1]));
}
static int header_gradient(float *x, float *dy, float *dx) {
    ml_tensor both[2] = {{ML_F32, 1, N, x, dx}, {ML_F32, 1, N, dy, NULL}};
    ml_graph *g;
    ml_error error;
    if (ml_graph_new(NULL, weighted_sum, both, &g, &error)) return check(0, "%s", error.text);
    ml_graph_begin(g, 1);
    int ok = !ml_graph_backward(g, weighted_sum(g, both), &error);
    ml_graph_free(g);
    return ok || check(0, "%s", error.text);
}

int main(void) {
    float x[N] = {-10, -3, -1.5f, -0.75f, 0, 0.5f, 1, 2.5f, 10}, one[N], dy[N], dx[N] = {0}, twice[N],
          theirs[N] = {0};
    char where[80];
    for (int i = 0; i < N; i++) one[i] = 1, dy[i] = (float)(i + 1) / 4;
    gelu_backward(N, x, one, dx);
    printf("By hand: 0 far to the left, 1 far to the right, Phi(0) = 1/2 in the middle\n");
    check_near((double)dx[0], 0, 1e-7, "the slope at -10");
    check_near((double)dx[4], 0.5, 1e-7, "the slope at 0");
    check_near((double)dx[8], 1, 1e-7, "the slope at 10");
    printf("By finite differences\n");
    for (int i = 1; i < N - 1; i++) {
        double at = (double)x[i], slope = (gelu(at + 1e-5) - gelu(at - 1e-5)) / 2e-5;
        snprintf(where, sizeof where, "the slope at %g", at);
        check_near((double)dx[i], slope, 1e-6, where);
    }
    printf("With gradients dy from above, added to what dx already has; compared with the header\n");
    for (int i = 0; i < N; i++) twice[i] = 100 * dx[i];
    gelu_backward(N, x, dy, twice);
    if (header_gradient(x, dy, theirs))
        for (int i = 1; i < N - 1; i++) {
            snprintf(where, sizeof where, "dx[%d], for x = %g and dy = %g", i, (double)x[i], (double)dy[i]);
            check_near((double)(twice[i] - 100 * dx[i]), (double)theirs[i], 2e-5,
                       where); /* 100 in float: 8e-6 */
        }
    return lesson_end();
}
