/* Lesson 5: norms and residual connections, forward and backward, and why deep networks need both.

   You will learn what RMSNorm and LayerNorm do to a row of numbers: both divide it by its size, and the second first
   subtracts its mean. RMSNorm's backward pass is checked by finite differences; LayerNorm's is the exercise. Then 32
   random layers are stacked in four ways. Without norms and residual connections, signal and gradient vanish; with
   residual connections alone they explode; with norms alone the gradient points elsewhere when the input changes.

   RMSNorm:   y = w z,  z = x s,  s = 1 / sqrt(mean(x^2) + eps);  LayerNorm: the same of x - mean(x), and y = w z + b
   backward:  RMSNorm's dx = s (g - z mean(g z)) with g = w dy: the part along x is removed;  dw = dy z
   a layer:   y = x + f(norm(x)), so dx = dy + what comes back through f and the norm
   See Zhang & Sennrich 2019, "Root Mean Square Layer Normalization"; Ba et al. 2016, "Layer Normalization"; He et al.
   2016, "Deep Residual Learning for Image Recognition"; Balduzzi et al. 2017, "The Shattered Gradients Problem" */
#include "lesson.h"
enum { D = 64, L = 32, INPUTS = 16, NORMS = 1, RESIDUAL = 2 }; /* width, layers, inputs; what a stack has */
typedef struct stack {
    double x[L + 1][D], dx[L + 1][D], z[L][D], s[L]; /* x: before each layer, and last the result */
} stack;
static double a[L][D][D], u[D];
static const char *const names[] = {"neither", "norms", "residual", "both"};

static double dot(const double *x, const double *y) { /* (D) . (D) */
    double sum = 0;
    for (int i = 0; i < D; i++) sum += x[i] * y[i];
    return sum;
}
static double size_of(const double *x) { return sqrt(dot(x, x) / D); } /* root mean square of x (D) */

/* x (D) -> z (D); returns s. Weights are 1 and biases 0 here. */
static double norm(const double *x, double *z, int is_layer_norm) {
    double m = 0, s;
    for (int i = 0; i < D; i++) m += is_layer_norm ? x[i] / D : 0;
    for (int i = 0; i < D; i++) z[i] = x[i] - m;
    s = 1 / sqrt(dot(z, z) / D + 1e-5);
    for (int i = 0; i < D; i++) z[i] *= s;
    return s;
}
static void rms_norm_backward(double *dz, const double *z, double s) { /* dz (D), replaced by dx (D) */
    double along = dot(dz, z) / D;
    for (int i = 0; i < D; i++) dz[i] = s * (dz[i] - z[i] * along);
}
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu_slope(double x) { return sigmoid(x) * (1 + x * (1 - sigmoid(x))); }

/* L layers x + A silu(norm(x)), or without norm or x. x (D) -> the loss u . (the last x) */
static double forward(stack *t, const double *x, int has) {
    double f[D];
    memcpy(t->x[0], x, sizeof f);
    for (int l = 0; l < L; l++) {
        memcpy(t->z[l], t->x[l], sizeof f);
        if (has & NORMS) t->s[l] = norm(t->x[l], t->z[l], 0);
        for (int i = 0; i < D; i++) f[i] = t->z[l][i] * sigmoid(t->z[l][i]);
        for (int i = 0; i < D; i++) t->x[l + 1][i] = dot(a[l][i], f) + (has & RESIDUAL ? t->x[l][i] : 0);
    }
    return dot(u, t->x[L]);
}
static void backward(stack *t, int has) { /* after forward: dx */
    memcpy(t->dx[L], u, sizeof u);
    for (int l = L - 1; l >= 0; l--) {
        double dz[D] = {0};
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) dz[j] += a[l][i][j] * t->dx[l + 1][i] * silu_slope(t->z[l][j]);
        if (has & NORMS) rms_norm_backward(dz, t->z[l], t->s[l]);
        for (int i = 0; i < D; i++) t->dx[l][i] = dz[i] + (has & RESIDUAL ? t->dx[l + 1][i] : 0);
    }
}
/* log10 of the sizes of signal and gradient by depth; cosines of gradients */
static void draw(const char *path, double sizes[2][4][L + 1], const double *cosine) {
    static const char *dashes[] = {"2 3", "7 4", "", ""}, *colors[] = {"black", "black", "#999", "black"};
    const double range[4] = {0, L, -11, 4};
    svg s;
    svg_begin(&s, path, 960, 300, "32 random layers with and without norms and residual connections");
    for (int k = 0; k < 2; k++) {
        svg_text(&s, 175 + 325 * k, 60, "middle", 13, "size of the %s, power of 10",
                 k ? "gradient" : "signal");
        svg_axes(&s, 60 + 325 * k, 70, 230, 200, range, "layers above the input", "");
        for (int has = 0; has < 4; has++)
            svg_graph(&s, 60 + 325 * k, 70, 230, 200, sizes[k][has], L + 1, range, colors[has], dashes[has]);
    }
    for (int has = 0; has < 4; has++)
        svg_text(&s, 295, 127 - 13.3 * sizes[0][has][L] + (has == NORMS) * 5, "start", 12, "%s", names[has]);
    svg_text(&s, 815, 60, "middle", 13, "cosine of gradients, inputs 0.3 apart");
    svg_bars(&s, 700, 90, 230, 180, cosine, 4, names);
    svg_end(&s);
}
static double noise(void) { /* uniform, with mean 0 and standard deviation 1 */
    static unsigned state = 1;
    return state = state * 1664525u + 1013904223u, ((state >> 8 & 0xffffff) / 16777216.0 - 0.5) * sqrt(12);
}
int main(int argc, char **argv) {
    static double sizes[2][4][L + 1], cosine[4], x[D], moved[D], v[D], z[D];
    static stack t, other;
    for (int i = 0; i < L * D * D; i++) a[i / D / D][i / D % D][i % D] = noise() / sqrt(D);
    for (int i = 0; i < D; i++) u[i] = noise(), x[i] = 3 + 5 * noise(), v[i] = 1;
    norm(x, z, 0), check_near(size_of(z), 1, 1e-6, "size of a row after RMSNorm");
    norm(x, z, 1), check_near(dot(z, v), 0, 1e-12, "sum of a row after LayerNorm");
    printf("Stacks: the slope along a random direction is checked by a finite difference\n");
    for (int has = 0; has < 4; has++) {
        for (int n = 0; n < INPUTS; n++) {
            for (int i = 0; i < D; i++) x[i] = noise(), v[i] = noise(), moved[i] = x[i] + 0.3 * v[i];
            forward(&other, moved, has), backward(&other, has), forward(&t, x, has), backward(&t, has);
            cosine[has] += dot(t.dx[0], other.dx[0]) / D / size_of(t.dx[0]) / size_of(other.dx[0]) / INPUTS;
            for (int l = 0, k = 0; l <= L; l += k, k = !k)
                sizes[k][has][l] += log10(size_of(k ? t.dx[l] : t.x[l])) / INPUTS;
        }
        for (int i = 0; i < D; i++) moved[i] = x[i] + 1e-5 * v[i], x[i] -= 1e-5 * v[i];
        double slope = (forward(&other, moved, has) - forward(&t, x, has)) / 2e-5;
        printf("%s: signal %.1e at the top, gradient %.1e at the bottom, cosine %.2f\n", names[has],
               pow(10, sizes[0][has][L]), pow(10, sizes[1][has][0]), cosine[has]);
        check_near(dot(t.dx[0], v) / slope, 1, 1e-5, "slope / finite difference");
    }
    check(sizes[0][0][L] < -6 && sizes[1][0][0] < -6, "with neither, signal and gradient vanish");
    check(sizes[0][2][L] > 2 && sizes[1][2][0] > 2, "with residual connections alone, both explode");
    check(cosine[1] < 0.6 && cosine[3] > 0.8, "norms alone lose the gradient's direction, both keep it");
    draw(argc > 1 ? argv[1] : "build/lessons/05.svg", sizes, cosine);
    return lesson_end();
}
/* EXERCISES
   1. Multiply all weights by 1.5. First predict where each curve ends: which of the four hardly change?
   2. Move the norm after the addition, x = norm(x + f(x)), as in the first Transformer. How do the curves change?
   3. Write the backward passes of both norms, for rows of floats with weights and biases: make exercise-05. */
