/* Lesson 3: embeddings, and the softmax that predicts the next character.

   A language model gives a probability to each character that may come next. The smallest one looks at one character
   only: you make it by counting pairs, and the counts are the answer. Then you find the same answer without counting:
   a row of numbers for each character (its embedding), a softmax, a loss, and steps against the gradient. Both agree,
   which is why you may trust the gradient where nobody can count. Last, minillama.h trains the same model with
   embeddings of eight numbers, which is how a Llama begins and ends.

   softmax    p_b = e^z_b / (e^z_0 + ... + e^z_(V-1)), the same if a number is added to all z
   loss       the mean over the pairs (a, b) of -log p(b | a): 0 if all is certain, log V if nothing is known
   gradient   d loss / d z_ab = (pairs that begin with a / pairs) (p(b | a) - share of b among them)

   Paper: Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language Model". */
#include <ctype.h>
#include "lesson.h"
#include "minillama.h"

enum { V = 27, D = 8, MOST = 20000, BATCH = 512 };  /* space and a to z; numbers in a small embedding */
static int32_t first[MOST], second[MOST];           /* (n) the pairs of characters */
static double count[V][V], total[V], counted[V][V]; /* of (a, b), of a, and p(b | a) */
static double logits[V][V], learned[V][V], gradient[V][V]; /* z, its softmax, and d loss / d z */
static float table[V * V], table_gradient[V * V], identity[V * V], small[2][V * D];
static int n;

/* Every pair once, so that no probability is 0; then those of the text, in which all but letters is space. */
static void read_pairs(const char *path) {
    FILE *file = fopen(path, "r");
    for (; n < V * V; n++) first[n] = n / V, second[n] = n % V;
    for (int c, b, a = 0; file && n < MOST && (c = fgetc(file)) != EOF; a = b) {
        b = isalpha(c) ? tolower(c) - 'a' + 1 : 0;
        if (a || b) first[n] = a, second[n++] = b;
    }
    if (file) fclose(file);
    for (int i = 0; i < n; i++) count[first[i]][second[i]]++, total[first[i]]++;
}

/* p (size) = softmax of z (size); the largest z is subtracted so that no power overflows */
static void softmax(double *p, const double *z, int size) {
    double sum = 0, most = z[0];
    for (int i = 1; i < size; i++) most = fmax(most, z[i]);
    for (int i = 0; i < size; i++) sum += p[i] = exp(z[i] - most);
    for (int i = 0; i < size; i++) p[i] /= sum;
}

/* The loss with probabilities p (V, V). A pair that occurs k times counts k times. */
static double loss_of(double (*p)[V]) {
    double loss = 0;
    for (int i = 0; i < V * V; i++) loss -= count[i / V][i % V] * log(p[i / V][i % V]) / n;
    return loss;
}

/* The loss of the logits, and its gradient. */
static double forward_and_backward(void) {
    for (int a = 0; a < V; a++) {
        softmax(learned[a], logits[a], V);
        for (int b = 0; b < V; b++) gradient[a][b] = (total[a] * learned[a][b] - count[a][b]) / n;
    }
    return loss_of(learned);
}

/* The same in the header: an embedding (V, d) and an output matrix (V, d). */
typedef struct network {
    ml_tensor embedding, output;
    int begin, end; /* of the pairs */
} network;
static ml_tensor header_loss(ml_graph *g, void *user) {
    network *m = user;
    ml_loss_desc loss = {.targets = second + m->begin};
    ml_tensor x = ml_gather(g, m->embedding, first + m->begin, (size_t)(m->end - m->begin)); /* (pairs, d) */
    return ml_cross_entropy(g, ml_linear(g, x, m->output, ml_none()), &loss); /* of (pairs, V) */
}

/* Trains both for some steps on BATCH pairs each. Returns the loss of all pairs, with the embedding's gradient. */
static double train(network *m, int steps, float *embedding_gradient) {
    ml_parameter both[] = {{&m->embedding, 0}, {&m->output, 0}};
    ml_optimizer_desc how = {.parameters = both, .n_parameters = 2, .adamw = {.lr = 0.03f}};
    ml_optimizer *optimizer;
    ml_graph *g;
    if (ml_optimizer_new(&how, &optimizer, NULL) || ml_graph_new(NULL, header_loss, m, &g, NULL)) return NAN;
    for (int step = 0; step < steps; step++) {
        m->begin = step * 7919 % (n - BATCH), m->end = m->begin + BATCH;
        ml_graph_begin(g, 1);
        if (ml_graph_backward(g, header_loss(g, m), NULL) || ml_optimizer_step(optimizer, NULL)) return NAN;
    }
    m->begin = 0, m->end = n, ml_graph_begin(g, 1);
    ml_tensor loss = header_loss(g, m);
    if (ml_graph_backward(g, loss, NULL)) return NAN;
    memcpy(embedding_gradient, m->embedding.grad, m->embedding.rows * m->embedding.cols * sizeof(float));
    double result = (double)*(float *)loss.data;
    return ml_graph_free(g), ml_optimizer_free(optimizer), result;
}

int main(int argc, char **argv) {
    static const char *const names[V] = {"_", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m",
                                         "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y", "z"};
    network same = {{ML_F32, V, V, table, NULL}, {ML_F32, V, V, identity, NULL}, 0, 0};
    network thin = {{ML_F32, V, D, small[0], NULL}, {ML_F32, V, D, small[1], NULL}, 0, 0};
    double z[3] = {log(1), log(2), log(3)}, p[3], worst = 0, loss, low;
    svg s;
    softmax(p, z, 3);
    check_near(p[0], 1 / 6., 1e-15, "softmax of log 1, log 2, log 3, the first");
    read_pairs("examples/data/opinions5-train.txt");
    for (int a = 0; a < V; a++)
        for (int b = 0; b < V; b++) counted[a][b] = count[a][b] / total[a];
    low = loss_of(counted);
    for (int i = 0; i < V * V; i++)
        logits[i / V][i % V] = sin(i), table[i] = (float)sin(i), identity[i] = i % (V + 1) == 0;
    loss = forward_and_backward();
    check_near(train(&same, 0, table_gradient), loss, 1e-5, "loss of any logits in the header, and here");
    for (int i = 0; i < V * V; i++)
        worst = fmax(worst, fabs((double)table_gradient[i] - gradient[i / V][i % V]));
    check_near(worst, 0, 1e-7, "its gradient differs by");
    for (int step = 0; step <= 5000; step++) {
        loss = forward_and_backward();
        if (step == 0 || step == 10 || step == 100 || step == 1000)
            printf("step %4d: loss %.4f\n", step, loss);
        for (int i = 0; i < V * V; i++) logits[i / V][i % V] -= 20 * gradient[i / V][i % V];
    }
    check_near(loss, low, 1e-6, "loss by gradient and by counting");
    worst = 0;
    for (int i = 0; i < V * V; i++) worst = fmax(worst, fabs(learned[i / V][i % V] - counted[i / V][i % V]));
    check_near(worst, 0, 1e-4, "probabilities differ by");
    for (int i = 0; i < V * D; i++)
        small[0][i] = (float)sin(3.0 * i * i), small[1][i] = (float)cos(5.0 * i * i);
    loss = train(&thin, 500, table_gradient);
    check(loss > low && loss < low + 0.1, "embeddings of %d numbers: loss %.4f, a little more than %.4f", D,
          loss, low);
    for (int i = 0; i < V * V; i++) table[i] = (float)learned[i / V][i % V];
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/03.svg", 560, 600, "What follows what");
    svg_heat(&s, 50, 90, 18, table, V, V, names, names);
    svg_end(&s);
    return lesson_end();
}
/* EXERCISES
   1. Predict the loss of a model that gives each character the same probability. Which step above prints it?
   2. Predict what 0.2 and 200 in place of 20 do to the losses, and then look.
   3. make exercise-03: write the softmax, the loss and its gradient, and draw characters from the counts. */
