/* Exercise of lesson 5: the backward passes of both norms, over the rows of a matrix.

   RMSNorm (Zhang & Sennrich 2019):  y = w z,      z = x s,        s = 1 / sqrt(mean(x^2) + eps)
   LayerNorm (Ba et al. 2016):       y = w z + b,  z = (x - m) s,  s = 1 / sqrt(mean((x - m)^2) + eps),  m = mean(x)
   Each row of x (n, D) has its own m and s; w and b (D) are shared by all rows, so their gradients are sums. */
#include "examples/lessons/lesson.h"
#include "minillama.h"

enum { N = 3, D = 8 };
static const float eps = 1e-5f;

typedef struct norm { /* all that goes into a norm and comes back */
    float x[N][D], w[D], b[D], dy[N][D];
    float dx[N][D], dw[D], db[D]; /* add to these */
} norm;

/* dx (n, D) += ..., dw (D) += ... of RMSNorm, from dy (n, D) */
static void rms_norm_backward(norm *t) {
    /* your turn: for each row compute s again, then z; with g = w dy, dx += s (g - z mean(g z)), and dw += dy z. */
    for (int i = 0; i < N; i++) {
        float squares = 0, along = 0, s, z[D];
        for (int j = 0; j < D; j++) squares += t->x[i][j] * t->x[i][j];
        s = 1 / sqrtf(squares / D + eps);
        for (int j = 0; j < D; j++) z[j] = t->x[i][j] * s;
        for (int j = 0; j < D; j++) along += t->w[j] * t->dy[i][j] * z[j] / D;
        for (int j = 0; j < D; j++) t->dx[i][j] += s * (t->w[j] * t->dy[i][j] - z[j] * along);
        for (int j = 0; j < D; j++) t->dw[j] += t->dy[i][j] * z[j];
    }
    /* end */
}

/* dx (n, D) += ..., dw (D) += ..., db (D) += ... of LayerNorm, from dy (n, D) */
static void layer_norm_backward(norm *t) {
    /* your turn: the mean is one more way for x to change y. Which other direction does the backward pass remove from
       g, beside that of z? And what is the gradient of b? */
    for (int i = 0; i < N; i++) {
        float mean = 0, squares = 0, along = 0, common = 0, s, z[D];
        for (int j = 0; j < D; j++) mean += t->x[i][j] / D;
        for (int j = 0; j < D; j++) squares += (t->x[i][j] - mean) * (t->x[i][j] - mean);
        s = 1 / sqrtf(squares / D + eps);
        for (int j = 0; j < D; j++) z[j] = (t->x[i][j] - mean) * s;
        for (int j = 0; j < D; j++) along += t->w[j] * t->dy[i][j] * z[j] / D;
        for (int j = 0; j < D; j++) common += t->w[j] * t->dy[i][j] / D;
        for (int j = 0; j < D; j++) t->dx[i][j] += s * (t->w[j] * t->dy[i][j] - common - z[j] * along);
        for (int j = 0; j < D; j++) t->dw[j] += t->dy[i][j] * z[j];
        for (int j = 0; j < D; j++) t->db[j] += t->dy[i][j];
    }
    /* end */
}

/* The loss whose gradients these are: sum(y * dy), in doubles. */
static double loss_of(const norm *t, int is_layer_norm) {
    double loss = 0;
    for (int i = 0; i < N; i++) {
        double m = 0, squares = 0;
        for (int j = 0; j < D && is_layer_norm; j++) m += (double)t->x[i][j] / D;
        for (int j = 0; j < D; j++) squares += pow((double)t->x[i][j] - m, 2);
        for (int j = 0; j < D; j++) {
            double z = ((double)t->x[i][j] - m) / sqrt(squares / D + (double)eps);
            loss += ((double)t->w[j] * z + (is_layer_norm ? (double)t->b[j] : 0)) * (double)t->dy[i][j];
        }
    }
    return loss;
}

/* Compares n gradients with finite differences of the loss along the numbers that they belong to: one check. */
static void compare(norm *t, float *numbers, const float *gradient, int n, int is_layer_norm,
                    const char *what) {
    int worst = 0;
    double most = -1, wanted = 0;
    for (int k = 0; k < n; k++) {
        float kept = numbers[k], up = kept + 0.004f, down = kept - 0.004f;
        numbers[k] = up;
        double slope = loss_of(t, is_layer_norm);
        numbers[k] = down;
        slope = (slope - loss_of(t, is_layer_norm)) / ((double)up - (double)down);
        numbers[k] = kept;
        double error = larger(0, fabs((double)gradient[k] - slope));
        if (error > most) most = error, worst = k, wanted = slope;
    }
    char where[80];
    snprintf(where, sizeof where, "%s, worst of %d: number %d", what, n, worst);
    check_near((double)gradient[worst], wanted, 2e-4, where); /* the differences are wrong by about 0.004^2 */
}

/* The same by the header, which differentiates sum(norm(x) * dy). */
static ml_tensor weighted_sum(ml_graph *g, void *user) {
    const ml_tensor *t = user; /* x, w, b, dy; without data in b: RMSNorm */
    ml_tensor y = t[2].data ? ml_layer_norm(g, t[0], t[1], t[2], eps) : ml_rms_norm(g, t[0], t[1], eps);
    return ml_sum(g, ml_mul(g, y, t[3]));
}
static double header_difference(norm *t, int is_layer_norm) { /* the largest of all gradients; -1: an error */
    norm theirs = *t;
    ml_tensor all[4] = {{ML_F32, N, D, t->x, theirs.dx[0]},
                        {ML_F32, 1, D, t->w, theirs.dw},
                        ml_none(),
                        {ML_F32, N, D, t->dy, NULL}};
    ml_graph *g;
    ml_error error;
    double most = 0;
    memset(theirs.dx, 0, sizeof theirs.dx), memset(theirs.dw, 0, sizeof theirs.dw),
        memset(theirs.db, 0, sizeof theirs.db);
    if (is_layer_norm) all[2] = (ml_tensor){ML_F32, 1, D, t->b, theirs.db};
    if (ml_graph_new(NULL, weighted_sum, all, &g, &error)) return check(0, "%s", error.text) - 1;
    ml_graph_begin(g, 1);
    if (ml_graph_backward(g, weighted_sum(g, all), &error)) most = check(0, "%s", error.text) - 1;
    for (int j = 0; j < D && most >= 0; j++) {
        for (int i = 0; i < N; i++) most = larger(most, fabs((double)(theirs.dx[i][j] - t->dx[i][j])));
        most = larger(most, fabs((double)(theirs.dw[j] - t->dw[j])));
        most = larger(most, fabs((double)(theirs.db[j] - t->db[j])));
    }
    ml_graph_free(g);
    return most;
}

static void examine(void (*backward)(norm *), int is_layer_norm, const char *name) {
    static norm t, once;
    double along = 0, sum = 0, twice = 0;
    memset(&t, 0, sizeof t);
    for (int i = 0; i < N * D; i++)
        t.x[i / D][i % D] = (float)(0.5 + 2 * sin(1 + i * i)), t.dy[i / D][i % D] = (float)cos(2 + 5 * i);
    for (int j = 0; j < D; j++) t.w[j] = (float)(1 + 0.5 * sin(j)), t.b[j] = (float)cos(j);
    printf("%s\n", name);
    backward(&t);
    compare(&t, t.x[0], t.dx[0], N * D, is_layer_norm, "dx");
    compare(&t, t.w, t.dw, D, is_layer_norm, "dw");
    if (is_layer_norm) compare(&t, t.b, t.db, D, is_layer_norm, "db");
    for (int j = 0; j < D; j++) along += (double)(t.dx[0][j] * t.x[0][j]), sum += (double)t.dx[0][j];
    if (is_layer_norm)
        check_near(sum, 0, 1e-5, "adding a number to row 0 of x changes nothing: the sum of its dx");
    check_near(along, 0, 1e-4, "stretching row 0 of x changes nothing: dx . x");
    check_near(header_difference(&t, is_layer_norm), 0, 1e-5,
               "the largest difference from the header's gradients");
    once = t;
    backward(&t);
    for (int j = 0; j < D; j++) {
        twice = larger(twice, fabs((double)(t.dx[N - 1][j] - 2 * once.dx[N - 1][j])));
        twice = larger(twice, fabs((double)(t.dw[j] - 2 * once.dw[j])));
    }
    check_near(twice, 0, 1e-5, "a second call adds the same again: the difference");
}

int main(void) {
    examine(rms_norm_backward, 0, "RMSNorm");
    examine(layer_norm_backward, 1, "LayerNorm");
    return lesson_end();
}
