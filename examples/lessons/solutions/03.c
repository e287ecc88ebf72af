/* Exercise 3: softmax, loss and gradient of one prediction, and drawing from its probabilities. */
#include "examples/lessons/lesson.h"

/* p (n) = softmax of z (n). It must also work for numbers like 1000, whose power is too large for a double. */
static void softmax(double *p, const double *z, int n) {
    /* your turn: find the largest z, then p_i = exp(z_i - largest), then divide all by their sum */
    double sum = 0, most = z[0];
    for (int i = 1; i < n; i++) most = fmax(most, z[i]);
    for (int i = 0; i < n; i++) sum += p[i] = exp(z[i] - most);
    for (int i = 0; i < n; i++) p[i] /= sum;
    /* end */
}

/* -log p(target). From z, not from p: p may be 0 in a double where its logarithm is not infinite. n is at most 8. */
static double cross_entropy(const double *z, int target, int n) {
    double loss = 0;
    /* your turn: log of the sum of all exp(z_i - largest), plus the largest, minus z[target] */
    double sum = 0, most = z[0];
    for (int i = 1; i < n; i++) most = fmax(most, z[i]);
    for (int i = 0; i < n; i++) sum += exp(z[i] - most);
    loss = log(sum) + most - z[target];
    /* end */
    return loss;
}

/* dz (n) = d loss / d z (n) */
static void cross_entropy_backward(double *dz, const double *z, int target, int n) {
    /* your turn: it is p_i, and one less at the target */
    softmax(dz, z, n);
    dz[target] -= 1;
    /* end */
}

/* A number from 0 to n - 1, i with probability p_i, for u that is drawn evenly from 0 to 1: the first i at which
   p_0 + ... + p_i is larger than u. Where rounding leaves none, n - 1. */
static int draw(const double *p, int n, double u) {
    int drawn = 0;
    /* your turn: add up p_0, p_1, ... until the sum is larger than u */
    for (double sum = p[0]; drawn < n - 1 && sum <= u; sum += p[drawn]) drawn++;
    /* end */
    return drawn;
}

static void check_softmax(void) {
    double z[3] = {log(1), log(2), log(3)}, large[3] = {1000 + log(1), 1000 + log(2), 1000 + log(3)};
    double p[3] = {0, 0, 0}, q[3] = {0, 0, 0};
    char what[64];
    softmax(p, z, 3), softmax(q, large, 3);
    for (int i = 0; i < 3; i++) {
        snprintf(what, sizeof what, "softmax of log 1, log 2, log 3 at %d", i);
        check_near(p[i], (i + 1) / 6., 1e-12, what);
        snprintf(what, sizeof what, "the same with 1000 added, at %d", i);
        check_near(q[i], (i + 1) / 6., 1e-10, what);
    }
    check_near(cross_entropy(z, 2, 3), log(2), 1e-12, "the third has p = 1/2: its loss is log 2");
    check_near(cross_entropy(large, 0, 3), log(6), 1e-10,
               "the first has p = 1/6: its loss is log 6, also with 1000 added");
    z[0] = 800;
    check_near(cross_entropy(z, 1, 3), 800 - log(2), 1e-9,
               "p is 0 in a double, but the loss is not infinite");
}

static void check_gradient(void) {
    double z[4] = {0.3, -1.2, 2, 0.5}, dz[4] = {0, 0, 0, 0}, h = 1e-5;
    puts("The gradient, beside a difference of losses:");
    cross_entropy_backward(dz, z, 1, 4);
    for (int i = 0; i < 4; i++) {
        char what[32];
        double was = z[i], up, down;
        z[i] = was + h, up = cross_entropy(z, 1, 4);
        z[i] = was - h, down = cross_entropy(z, 1, 4);
        z[i] = was;
        snprintf(what, sizeof what, "d loss / d z_%d", i);
        check_near(dz[i], (up - down) / (2 * h), 1e-8, what);
    }
    check_near(dz[0] + dz[1] + dz[2] + dz[3], 0, 1e-12,
               "their sum: adding a number to all z changes nothing");
    check(dz[1] < 0, "the loss falls as z of the target rises: %.3f", dz[1]);
}

static void check_draw(void) {
    static const double p[4] = {0.5, 0.25, 0, 0.25};
    static const int wanted[4] = {5000, 2500, 0, 2500};
    int drawn[4] = {0, 0, 0, 0};
    puts("10000 draws, u = 0.00005, 0.00015, ...:");
    for (int i = 0; i < 10000; i++) {
        int k = draw(p, 4, (i + 0.5) / 10000);
        if (k >= 0 && k < 4) drawn[k]++;
    }
    for (int i = 0; i < 4; i++) {
        char what[32];
        snprintf(what, sizeof what, "draws of %d", i);
        check_near(drawn[i], wanted[i], 0, what);
    }
    check_near(draw(p, 4, 1), 3, 0, "u = 1, which rounding can make");
}

int main(void) {
    check_softmax();
    check_gradient();
    check_draw();
    return lesson_end();
}
