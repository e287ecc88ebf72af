/* Lesson 4: gradients. A tape in 100 lines, checked by finite differences.

   You will learn how a program differentiates itself: it records each operation on a tape, with the slope of the
   result along each operand. One pass over the tape, backward, gives the derivative of the last number with respect
   to all others. A number that is used twice gets the sum of what its users send back. Finite differences check it;
   their step must be neither large nor tiny. At the end the tape trains a network of 17 numbers: exclusive or.

   Chain rule:  dL/dx = sum over all y computed from x of  dL/dy * dy/dx
   Check:       dL/dx ~ (L(x + h) - L(x - h)) / 2h, wrong by about h^2 (the formula) + 1e-16 / h (rounding)
   Paper:       Linnainmaa 1976, "Taylor expansion of the accumulated rounding error" */
#include <assert.h>
#include "lesson.h"
enum { MOST = 1000, HIDDEN = 4, WEIGHTS = 4 * HIDDEN + 1, STEPS = 11 };
typedef struct node {
    const char *name;
    double value, grad, slope[2]; /* grad: d loss / d value, after backward; slope[k]: d value / d from[k] */
    int n_from, from[2];
} node;
typedef struct tape {
    int n;
    node at[MOST]; /* in the order of computation: operands come before results */
} tape;
static int put(tape *t, node v) { return assert(t->n < MOST), t->at[t->n] = v, t->n++; }
static int leaf(tape *t, const char *name, double x) { return put(t, (node){name, x, 0, {0}, 0, {0}}); }
static int add(tape *t, int a, int b) {
    return put(t, (node){"+", t->at[a].value + t->at[b].value, 0, {1, 1}, 2, {a, b}});
}
static int mul(tape *t, int a, int b) {
    double x = t->at[a].value, y = t->at[b].value;
    return put(t, (node){"*", x * y, 0, {y, x}, 2, {a, b}});
}
static int tanh_of(tape *t, int a) {
    double y = tanh(t->at[a].value);
    return put(t, (node){"tanh", y, 0, {1 - y * y}, 1, {a}});
}
static void backward(tape *t, int loss) {
    for (int i = 0; i < t->n; i++) t->at[i].grad = i == loss;
    for (int i = loss; i >= 0; i--) /* a result's gradient is complete before it is passed on */
        for (int k = 0; k < t->at[i].n_from; k++)
            t->at[t->at[i].from[k]].grad += t->at[i].slope[k] * t->at[i].grad;
}
/* L = (tanh(w x + b) - y)^2; nodes 0, 1, 2 are w, x, b */
static int neuron(tape *t) {
    int w = leaf(t, "w", 0.5), x = leaf(t, "x", 2), b = leaf(t, "b", -0.2), minus = leaf(t, "-y", -0.5);
    int d = add(t, tanh_of(t, add(t, mul(t, w, x), b)), minus);
    return mul(t, d, d); /* uses d twice */
}
/* Mean squared error of a network w (17) on exclusive or, whose outputs go to y (4), with h added to w[i]. */
static double xor_loss(tape *t, const double *w, double *y, int i, double h) {
    int loss = t->n = 0;
    for (int j = 0; j < WEIGHTS; j++) leaf(t, "w", w[j] + (j == i) * h); /* node j is w[j] */
    for (int c = 0; c < 4; c++) {
        int a = leaf(t, "x", c / 2), b = leaf(t, "x", c % 2), out = WEIGHTS - 1;
        for (int j = 0, sum; j < WEIGHTS - 1; j += 4)
            sum = add(t, add(t, mul(t, j, a), mul(t, j + 1, b)), j + 2),
            out = add(t, out, mul(t, j + 3, tanh_of(t, sum)));
        int d = add(t, out, leaf(t, "-y", -(c == 1 || c == 2)));
        y[c] = t->at[out].value, loss = c ? add(t, loss, mul(t, d, d)) : mul(t, d, d);
    }
    return t->at[mul(t, loss, leaf(t, "1/4", 0.25))].value;
}
static void draw(const char *path, const tape *t, double errors[2][STEPS]) {
    static const int column[] = {0, 0, 1, 3, 1, 2, 3, 4, 5}, row[] = {0, 1, 2, 2, 0, 1, 1, 1, 1};
    const double range[4] = {-1, -11, -12, 0};
    svg s;
    svg_begin(&s, path, 960, 320, "A neuron on the tape, and how far finite differences can be trusted");
    for (int i = 0; i < t->n; i++) {
        node v = t->at[i];
        double x = 20 + 90 * column[i], y = 70 + 72 * row[i];
        for (int k = 0, *from = v.from; k < v.n_from; k++)
            svg_line(&s, 84 + 90 * column[from[k]], 92 + 72 * row[from[k]], x, y + 18 + 8 * k, "#888", 1);
        svg_gray(&s, x, y, 64, 44, v.n_from ? 0.15 : 0);
        svg_text(&s, x + 32, y - 4, "middle", 13, "%s", i == t->n - 1 ? "* = L" : v.name);
        svg_text(&s, x + 32, y + 18, "middle", 12, "%.3f", v.value);
        svg_text(&s, x + 32, y + 36, "middle", 12, "d %.3f", v.grad);
    }
    svg_text(&s, 20, 300, "start", 12, "L = (tanh(w x + b) - y)^2. Upper number: the value; d: dL / d value");
    svg_axes(&s, 620, 60, 310, 200, range, "log10 of the step h", "log10 of the error");
    for (int k = 0; k < 2; k++)
        svg_graph(&s, 620, 60, 310, 200, errors[k], STEPS, range, "black", k ? "" : "4 4");
    svg_text(&s, 930, 300, "end", 12, "dashed: (L(w + h) - L(w)) / h; solid: (L(w + h) - L(w - h)) / 2h");
    svg_end(&s);
}

int main(int argc, char **argv) {
    static tape small, t, moved;
    double w[WEIGHTS], y[4], errors[2][STEPS], a = tanh(0.8), slope = 2 * (a - 0.5) * (1 - a * a);
    backward(&small, neuron(&small));
    printf("A neuron: dL/dw = slope * x, where slope = 2 (a - y) (1 - a^2), a = tanh(w x + b)\n");
    check_near(small.at[0].grad, slope * 2, 1e-12, "dL/dw");
    for (int i = 0; i < WEIGHTS; i++) w[i] = sin(1 + 3 * i); /* looks random */
    double loss = xor_loss(&t, w, y, 0, 0);
    backward(&t, t.n - 1);
    printf(
        "The worst of a network's 17 gradients: first the step h is too large, then rounding takes over\n");
    for (int k = 0; k < STEPS; k++) {
        double h = pow(10, -1 - k), one = 1e-16, two = 1e-16; /* errors from one side and from two */
        for (int i = 0; i < WEIGHTS; i++) {
            double up = xor_loss(&moved, w, y, i, h), down = xor_loss(&moved, w, y, i, -h);
            one = larger(one, fabs((up - loss) / h - t.at[i].grad));
            two = larger(two, fabs((up - down) / (2 * h) - t.at[i].grad));
        }
        printf("  h = %.0e: error %.1e from one side, %.1e from both\n", h, one, two);
        errors[0][k] = log10(one), errors[1][k] = log10(two);
    }
    check(errors[1][4] < -9, "all gradients agree with finite differences, h = 1e-5");
    check(fabs(errors[1][0] - errors[1][1] - 2) < 0.2, "from both sides, h / 10 gives error / 100");
    for (int step = 0; step < 2000; step++) {
        for (int i = 0; i < WEIGHTS; i++) w[i] -= 0.3 * t.at[i].grad;
        loss = xor_loss(&t, w, y, 0, 0), backward(&t, t.n - 1);
    }
    printf("After 2000 steps: 0 0: %.3f, 0 1: %.3f, 1 0: %.3f, 1 1: %.3f\n", y[0], y[1], y[2], y[3]);
    check(loss < 1e-3, "exclusive or is learned: the loss is %.1e", loss);
    draw(argc > 1 ? argv[1] : "build/lessons/04.svg", &small, errors);
    return lesson_end();
}
/* EXERCISES
   1. Replace += by = in backward. Predict how dL/dw changes, and why (d is used twice).
   2. Make the network's step size 3, then 0.003. Predict the four outputs.
   3. Write the backward pass of GELU: make exercise-04. Then give the tape a gelu_of, and the network GELU. */
