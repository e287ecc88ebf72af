/* Lesson 3: embeddings, and the softmax that predicts the next character.

   A language model gives a probability to each character that may come next. The smallest one looks at one character
   only: you make it by counting pairs. Then you find the same probabilities without counting, with a row of numbers
   for each character (its embedding), softmax, a loss, and steps against the gradient. Both agree, so you may trust
   the gradient where counting is impossible. Last, minillama.h learns the same with embeddings of eight numbers.

   softmax    p_b = e^z_b / (e^z_0 + ... + e^z_(V-1)), the same if a number is added to all z
   loss       the mean over the pairs (a, b) of -log p(b | a): 0 if p is always 1, log V if nothing is known
   gradient   d loss / d z_ab = (pairs that begin with a / pairs) (p(b | a) - share of b among them)

   Paper: Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language Model". */
#include <ctype.h>
#include "lesson.h"
#include "minillama.h"

enum { V = 27, D = 8, MOST = 20000, BATCH = 512 };            /* V: the space (drawn as _) and a to z */
static int32_t first[MOST], second[MOST];                     /* (n) the pairs of characters */
static double count[V * V], total[V], counted[V * V];         /* of (a, b), of a, and p(b | a) */
static double logits[V * V], learned[V * V], gradient[V * V]; /* z, its softmax, and d loss / d z */
static float table[V * V], identity[V * V], small[2 * V * D];
static ml_tensor embedding, output; /* in the header, both (V, d) */
static int n, begin, end;           /* all pairs, and the header's next batch */

/* Each pair once, so that no probability is 0; then those of the text, in which everything but letters is a space. */
static void read_pairs(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) check(0, "%s can be read", path);
    for (; n < V * V; n++) first[n] = n / V, second[n] = n % V;
    for (int c, b, a = 0; file && n < MOST && (c = fgetc(file)) != EOF; a = b) {
        b = isalpha(c) ? tolower(c) - 'a' + 1 : 0;
        if (a || b) first[n] = a, second[n++] = b;
    }
    if (file) fclose(file);
    for (int i = 0; i < n; i++) count[first[i] * V + second[i]]++, total[first[i]]++;
}

/* p (size) = softmax of z (size); the largest z is subtracted so that no power overflows */
static void softmax(double *p, const double *z, int size) {
    double sum = 0, most = z[0];
    for (int i = 1; i < size; i++) most = fmax(most, z[i]);
    for (int i = 0; i < size; i++) sum += p[i] = exp(z[i] - most);
    for (int i = 0; i < size; i++) p[i] /= sum;
}

/* The loss with probabilities p (V, V): a pair that occurs k times counts k times. */
static double loss_of(const double *p) {
    double loss = 0;
    for (int i = 0; i < V * V; i++) loss -= count[i] * log(p[i]) / n;
    return loss;
}

/* Takes some steps against the gradient. Returns the loss, with its gradient and the probabilities. */
static double descend(int steps) {
    for (;; steps--) {
        for (int a = 0; a < V; a++) softmax(learned + a * V, logits + a * V, V);
        for (int i = 0; i < V * V; i++) gradient[i] = (total[i / V] * learned[i] - count[i]) / n;
        if (steps == 0) return loss_of(learned);
        for (int i = 0; i < V * V; i++) logits[i] -= 20 * gradient[i];
    }
}

/* The same in the header, for a batch of pairs: rows of the embedding, times the output matrix, softmax and loss. */
static ml_tensor header_loss(ml_graph *g, void *unused) {
    ml_loss_desc loss = {.targets = second + begin};
    ml_tensor x = ml_gather(g, embedding, first + begin, (size_t)(end - begin)); /* (pairs, d) */
    return (void)unused, ml_cross_entropy(g, ml_linear(g, x, output, ml_none()), &loss);
}

/* Trains e (V, d) and o (V, d). Returns the loss of all pairs; adds to `off` how far its gradient is from ours. */
static double train(float *e, float *o, size_t d, int steps, double *off) {
    ml_parameter both[] = {{&embedding, 0}, {&output, 0}};
    ml_optimizer_desc how = {.parameters = both, .n_parameters = 2, .adamw = {.lr = 0.03f}};
    ml_optimizer *optimizer;
    ml_graph *g = NULL;
    ml_tensor loss;
    embedding = (ml_tensor){ML_F32, V, d, e, NULL}, output = (ml_tensor){ML_F32, V, d, o, NULL};
    begin = 0, end = n; /* the largest pass */
    int ok = !ml_optimizer_new(&how, &optimizer, NULL) && !ml_graph_new(NULL, header_loss, NULL, &g, NULL);
    for (int step = 0; ok && step <= steps; step++) {
        begin = step < steps ? step * 7919 % (n - BATCH) : 0, end = step < steps ? begin + BATCH : n;
        ml_graph_begin(g, 1), loss = header_loss(g, NULL);
        ok = !ml_graph_backward(g, loss, NULL) && (step == steps || !ml_optimizer_step(optimizer, NULL));
    }
    for (int i = 0; i < V * V && ok && !steps; i++) *off += fabs((double)embedding.grad[i] - gradient[i]);
    double result = ok ? (double)*(float *)loss.data : NAN;
    return ml_graph_free(g), ml_optimizer_free(optimizer), result;
}

int main(int argc, char **argv) {
    static const char *const names[V] = {"_", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m",
                                         "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z"};
    double z[3] = {log(1), log(2), log(3)}, p[3], off = 0, low, loss;
    svg s;
    softmax(p, z, 3);
    check_near(p[2], 0.5, 1e-12, "softmax of log 1, log 2, log 3: the last");
    read_pairs("examples/data/opinions5-train.txt");
    for (int i = 0; i < V * V; i++) counted[i] = count[i] / total[i / V], identity[i] = i % (V + 1) == 0;
    low = loss_of(counted);
    printf("%d pairs, counted: loss %.4f. By gradient, from equal probabilities:\n", n, low);
    check_near(descend(0), log(V), 1e-12, "loss after 0 steps, log V");
    loss = descend(10);
    for (int i = 0; i < V * V; i++) table[i] = (float)logits[i];
    check_near(train(table, identity, V, 0, &off), loss, 1e-5, "loss after 10 steps, in the header and here");
    check_near(off, 0, 1e-4, "sum of the differences of the gradients");
    check_near(descend(5000), low, 1e-6, "loss after 5000 steps, and counted");
    for (int i = 0; i < V * V; i++) off += fabs(learned[i] - counted[i]);
    check_near(off, 0, 1e-3, "sum of the differences of the probabilities");
    for (int i = 0; i < 2 * V * D; i++) small[i] = (float)sin(3.0 * i * i);
    loss = train(small, small + V * D, D, 600, &off);
    check(loss > low && loss < low + 0.1, "%d numbers per character, in the header: loss %.4f", D, loss);
    for (int i = 0; i < V * V; i++) table[i] = (float)learned[i];
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/03.svg", 560, 590, "How often a column follows a row");
    svg_heat(&s, 44, 80, 18, table, V, V, names, names), svg_end(&s);
    return lesson_end();
}
/* EXERCISES
   1. Predict the loss of a model that gives each character the same probability. Which step above prints it?
   2. Predict what 0.2 and 200 instead of 20 do to the losses, then run it.
   3. make exercise-03: write the softmax, the loss and its gradient, and draw from the probabilities. */
