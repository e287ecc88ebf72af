/* Exercise 10: AdamW, the assignment's part "optimizer". Loshchilov & Hutter 2019, "Decoupled Weight Decay
   Regularization", with the folded step of Kingma & Ba 2015, end of section 2. */
#include "minillama.h"
#include "examples/lessons/lesson.h"

typedef struct adamw {
    float lr, beta1, beta2, eps, weight_decay;
} adamw;

/* Step t = 1, 2, ... of n numbers w with gradient g. m and v (n) are 0 before step 1. */
static void step(const adamw *how, float *w, const float *g, float *m, float *v, int n, int t) {
    /* your turn: for each of the n numbers
       1. m = beta1 m + (1 - beta1) g, and v = beta2 v + (1 - beta2) g^2
       2. w = w - lr sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)
       3. w = w - lr weight_decay w, with the w of 2
       pow, sqrtf and sqrt are there */
    double c1 = 1 - pow((double)how->beta1, t), c2 = 1 - pow((double)how->beta2, t);
    float rate = how->lr * (float)(sqrt(c2) / c1);
    for (int i = 0; i < n; i++) {
        m[i] = how->beta1 * m[i] + (1 - how->beta1) * g[i];
        v[i] = how->beta2 * v[i] + (1 - how->beta2) * g[i] * g[i];
        w[i] -= rate * m[i] / (sqrtf(v[i]) + how->eps);
        w[i] -= how->lr * how->weight_decay * w[i];
    }
    /* end */
}

enum { N = 6, STEPS = 10 };

/* Step 1, by hand: m / c1 is g and v / c2 is g^2, so w moves by lr against g's sign. */
static void check_first(void) {
    const adamw how = {0.1f, 0.9f, 0.999f, 1e-6f, 0}, decaying = {0.1f, 0.9f, 0.999f, 1e-6f, 0.5f};
    float w[2] = {1, -2}, g[2] = {3, -50}, m[2] = {0}, v[2] = {0};
    printf("Step 1:\n");
    step(&how, w, g, m, v, 2, 1);
    check_near((double)m[0], 0.3, 1e-6, "m of gradient 3: 0.1 * 3");
    check_near((double)v[0], 0.009, 1e-6, "v of gradient 3: 0.001 * 9");
    check_near((double)w[0], 0.9, 1e-5, "w: 1 - lr");
    check_near((double)w[1], -1.9, 1e-5, "w: -2 + lr");
    w[0] = 1, m[0] = v[0] = 0;
    step(&decaying, w, g, m, v, 1, 1);
    check_near((double)w[0], 0.9 * 0.95, 1e-5, "w with decay 0.5: (1 - lr) (1 - 0.5 lr)");
}

/* Ten steps beside ml_optimizer's. */
static void check_header(void) {
    const adamw how = {0.05f, 0.8f, 0.9f, 1e-3f, 0.1f};
    float w[N], m[N] = {0}, v[N] = {0}, theirs[N], g[N];
    ml_tensor tensor = {ML_F32, 1, N, theirs, NULL};
    ml_parameter all = {&tensor, 0};
    ml_optimizer_desc desc = {.parameters = &all, .n_parameters = 1};
    ml_optimizer *optimizer;
    ml_error error;
    desc.adamw = (ml_adamw){.lr = 0.05f, .beta1 = 0.8f, .beta2 = 0.9f, .eps = 1e-3f, .weight_decay = 0.1f};
    for (int i = 0; i < N; i++) w[i] = theirs[i] = (float)(i - 2);
    if (!check(!ml_optimizer_new(&desc, &optimizer, &error), "an optimizer of the header")) return;
    printf("%d steps beside the header's:\n", STEPS);
    for (int t = 1; t <= STEPS; t++) {
        for (int i = 0; i < N; i++) g[i] = tensor.grad[i] = sinf((float)(7 * i + 3 * t));
        step(&how, w, g, m, v, N, t);
        ml_optimizer_step(optimizer, &error);
    }
    for (int i = 0; i < N; i++) {
        char what[32];
        snprintf(what, sizeof what, "number %d", i);
        check_near((double)w[i], (double)theirs[i], 1e-5, what);
    }
    ml_optimizer_free(optimizer);
}

/* A step must lead downhill: (w - 3)^2 from w = 0. */
static void check_descent(void) {
    const adamw how = {0.1f, 0.9f, 0.999f, 1e-6f, 0};
    float w = 0, m = 0, v = 0;
    for (int t = 1; t <= 200; t++) {
        float g = 2 * (w - 3);
        step(&how, &w, &g, &m, &v, 1, t);
    }
    check_near((double)w, 3, 0.05, "200 steps down (w - 3)^2");
}

int main(void) {
    check_first();
    check_header();
    check_descent();
    return lesson_end();
}
