/* Exercise 9: two backward passes of your own (lesson 9), of GELU and of LayerNorm. Each number is checked against
   central differences of the forward pass: (L(x + h) - L(x - h)) / 2h, the loss L being the sum of dy y. */
#include "examples/lessons/lesson.h"

enum { N = 6 };
#define PI 3.14159265358979323846
#define EPS 1e-5

/* y = x Phi(x), Phi the share of a standard normal distribution that is below x (Hendrycks & Gimpel 2016) */
static void gelu(double *y, const double *x) {
    for (int i = 0; i < N; i++) y[i] = x[i] * 0.5 * (1 + erf(x[i] / sqrt(2)));
}

static void gelu_backward(double *dx, const double *dy, const double *x) {
    /* your turn: dx[i] += dy[i] times the derivative; Phi'(x) = e^(-x^2 / 2) / sqrt(2 PI) */
    for (int i = 0; i < N; i++)
        dx[i] += dy[i] * (0.5 * (1 + erf(x[i] / sqrt(2))) + x[i] * exp(-x[i] * x[i] / 2) / sqrt(2 * PI));
    /* end */
}

/* y = (x - mean) r w + b, r = 1 / sqrt(variance + EPS) (Ba et al. 2016) */
static double inverse_deviation(const double *x, double *mean) {
    double variance = 0;
    *mean = 0;
    for (int i = 0; i < N; i++) *mean += x[i] / N;
    for (int i = 0; i < N; i++) variance += (x[i] - *mean) * (x[i] - *mean) / N;
    return 1 / sqrt(variance + EPS);
}
static void layer_norm(double *y, const double *x, const double *w, const double *b) {
    double mean, r = inverse_deviation(x, &mean);
    for (int i = 0; i < N; i++) y[i] = (x[i] - mean) * r * w[i] + b[i];
}

static void layer_norm_backward(double *dx, double *dw, double *db, const double *dy, const double *x,
                                const double *w) {
    double mean, r = inverse_deviation(x, &mean);
    /* your turn: with z = (x - mean) r and dz = dy w: db += dy, dw += dy z,
       dx += r (dz - mean(dz) - z mean(dz z)); why the two means? */
    double mean_dz = 0, mean_dz_z = 0;
    for (int i = 0; i < N; i++) {
        mean_dz += dy[i] * w[i] / N;
        mean_dz_z += dy[i] * w[i] * (x[i] - mean) * r / N;
    }
    for (int i = 0; i < N; i++) {
        double z = (x[i] - mean) * r;
        db[i] += dy[i];
        dw[i] += dy[i] * z;
        dx[i] += r * (dy[i] * w[i] - mean_dz - z * mean_dz_z);
    }
    /* end */
}

/* ---- checks ---- */

static double x[N] = {-2, -0.5, 0, 0.3, 1, 2.5}, w[N] = {1, -0.7, 2, 0.4, 1.5, 1}, b[N] = {0, 1, 2, 0, 0, -1};
static const double dy[N] = {1, -2, 0.5, 3, 0.2, -1};

static double loss_of(int which) {
    double y[N], loss = 0;
    if (which)
        layer_norm(y, x, w, b);
    else
        gelu(y, x);
    for (int i = 0; i < N; i++) loss += dy[i] * y[i];
    return loss;
}

/* h = 1e-4: truncation of h^2 and rounding of 1e-16 / h are both far below the tolerance. */
static void check_gradient(const double *got, double *of, int which, const char *name) {
    for (int i = 0; i < N; i++) {
        const double was = of[i], h = 1e-4;
        char what[64];
        of[i] = was + h;
        double up = loss_of(which);
        of[i] = was - h;
        double down = loss_of(which);
        of[i] = was;
        snprintf(what, sizeof what, "%s[%d]", name, i);
        check_near(got[i], (up - down) / (2 * h), 1e-6, what);
    }
}

int main(void) {
    double dx[N] = {0}, dw[N] = {0}, db[N] = {0}, twice[N] = {0};
    gelu_backward(dx, dy, x);
    check_gradient(dx, x, 0, "gelu: dx");
    gelu_backward(twice, dy, x), gelu_backward(twice, dy, x);
    check_near(twice[4], 2 * dx[4], 1e-12, "gelu: a second call adds to dx");
    memset(dx, 0, sizeof dx);
    layer_norm_backward(dx, dw, db, dy, x, w);
    check_gradient(dx, x, 1, "layer norm: dx");
    check_gradient(dw, w, 1, "layer norm: dw");
    check_gradient(db, b, 1, "layer norm: db");
    return lesson_end();
}
