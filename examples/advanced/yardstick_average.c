/* yardstick_average: what a deep averaging network (Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic
   Methods for Text Classification") reaches on SST-5, without any Llama: the mean of a phrase's word vectors, one
   hidden layer, five classes; trained on the labeled phrases of the trees, without a share of their words.

   build/yardstick_average FOLDER-OF-SST-FILES [SEED] */
#include <math.h>
#include "common/words.h"

enum { CLASSES = 5, BUCKETS = 1 << 15, DIM = 100, EPOCHS = 6, BATCH = 64, MOST = 1 << 15 };

typedef struct network {
    ml_tensor table, w1, b1, w2, b2; /* (BUCKETS, D), (D, D), (1, D), (C, D), (1, C) */
    int32_t words[MOST], labels[BATCH];
    ml_span spans[BATCH];
    int n_words, n;
    float log_probs[BATCH * CLASSES];
    uint64_t seed;
    ml_random random;
} network;

/* Phrases order[first ..] as a batch, without a share `drop` of their words. */
static void fill(network *net, const phrases *p, const int *order, int first, float drop) {
    net->n_words = net->n = 0;
    for (int i = first; i < p->n && net->n < BATCH; i++) {
        ml_span from = p->spans[order ? order[i] : i], to = {net->n_words, 0};
        if (net->n && net->n_words + from.end - from.begin > MOST) break;
        for (int k = from.begin; k < from.end; k++)
            if (!(ml_random_uniform(&net->random) < drop)) net->words[net->n_words++] = p->words[k];
        if (net->n_words == to.begin) net->words[net->n_words++] = p->words[from.begin];
        to.end = net->n_words;
        net->labels[net->n] = p->labels[order ? order[i] : i], net->spans[net->n++] = to;
    }
}

static ml_tensor loss(ml_graph *g, void *user) {
    network *net = (network *)user;
    ml_loss_desc how = {net->labels, 0, 0, net->log_probs, 0};
    ml_tensor x = ml_gather(g, net->table, net->words, (size_t)net->n_words);
    ml_tensor h = ml_linear(g, ml_pool_spans(g, x, net->spans, net->n, ML_POOL_MEAN), net->w1, net->b1);
    h = ml_dropout(g, ml_relu(g, h), 0.3f, net->seed++);
    return ml_cross_entropy(g, ml_linear(g, h, net->w2, net->b2), &how);
}

static double measure(network *net, ml_graph *g, const phrases *p) {
    int right = 0;
    for (int first = 0; first < p->n; first += net->n) {
        fill(net, p, NULL, first, 0);
        ml_graph_begin(g, 0);
        loss(g, net);
        right += count_right(net->log_probs, net->labels, net->n, CLASSES);
    }
    return (double)right / p->n;
}

/* All phrases once, in another order each time. */
static int learn_all(network *net, ml_graph *g, ml_optimizer *optimizer, const phrases *p, int *order) {
    for (int i = 0; i < p->n; i++) {
        int j = (int)(ml_random_u64(&net->random) % (uint64_t)(i + 1));
        order[i] = order[j], order[j] = i;
    }
    for (int first = 0; first < p->n; first += net->n) {
        fill(net, p, order, first, 0.3f);
        if (!learn_batch(g, loss, net, optimizer)) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    static phrases sets[3];
    for (int i = 0; i < 3; i++) sets[i].buckets = BUCKETS, sets[i].n_labels = CLASSES;
    static network net;
    ml_tensor *tensors[] = {&net.table, &net.w1, &net.b1, &net.w2, &net.b2};
    const size_t rows[] = {BUCKETS, DIM, 1, CLASSES, 1}, cols[] = {DIM, DIM, DIM, DIM, CLASSES};
    ml_parameter learn[5];
    ml_optimizer_desc how = {
        learn, 5,  NULL, 0, {2e-3f, 0, 0, 0, 0, 0, 0, 0, ML_ADAMW_FOLDED}, {ML_DECAY_LINEAR, 0, 0, 0},
        {0},   {0}};
    ml_optimizer *optimizer;
    ml_graph *g;
    ml_error error;
    if (argc < 2) return fprintf(stderr, "usage: yardstick_average FOLDER [SEED]\n"), 2;
    if (!phrases_read(&sets[0], argv[1], "sst-trees-train.txt", 1) ||
        !phrases_read(&sets[1], argv[1], "sst-dev.txt", 0) ||
        !phrases_read(&sets[2], argv[1], "sst-test.txt", 0))
        return 1;
    ml_random_seed(&net.random, argc > 2 ? (uint64_t)atoi(argv[2]) : 1);
    for (int i = 0; i < 5; i++) {
        float *data = (float *)calloc(rows[i] * cols[i], sizeof *data),
              sd = i ? sqrtf(2.0f / (float)cols[i]) : 0.1f;
        if (!data) return !no_memory("weights");
        for (size_t k = 0; rows[i] > 1 && k < rows[i] * cols[i]; k++)
            data[k] = sd * ml_random_normal(&net.random);
        ml_tensor t = {ML_F32, rows[i], cols[i], data, NULL};
        ml_parameter parameter = {tensors[i], 0};
        *tensors[i] = t, learn[i] = parameter;
    }
    int *order = (int *)calloc((size_t)sets[0].n, sizeof *order);
    how.schedule.total_steps = EPOCHS * (sets[0].n / BATCH + 1);
    for (int i = 0; i < BATCH; i++) net.spans[i].end = 1;
    net.n_words = MOST, net.n = BATCH; /* the largest batch */
    int ok = (order || no_memory("an order")) &&
             succeeded(ml_optimizer_new(&how, &optimizer, &error), &error) && /* first: it gives gradients */
             succeeded(ml_graph_new(NULL, loss, &net, &g, &error), &error);
    for (int epoch = 1; ok && epoch <= EPOCHS; epoch++) {
        ok = learn_all(&net, g, optimizer, &sets[0], order);
        printf("epoch %d: dev %.4f, test %.4f\n", epoch, measure(&net, g, &sets[1]),
               measure(&net, g, &sets[2]));
    }
    return !ok;
}
