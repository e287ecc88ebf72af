/* yardstick_words: what a linear model on words and pairs of words reaches on CFIMDB, without any Llama. A feature is a
   distinct word of a review, or a pair of neighbors. logits (C) = sum of r_f W_f over its features / sqrt(their number)
   + b, with W (F, C) and r the naive Bayes ratios (Wang & Manning 2012, "Baselines and Bigrams"): what says more learns
   faster. The whole training set is one batch.
   build/yardstick_words FOLDER-OF-CFIMDB-FILES */
#include <math.h>
#include "../common/file.h"
#include "../run_llama/reviews.h"
#include "common/words.h"

/* C; F: features are numbered by a hash; reviews of a file */
enum { CLASSES = 2, BUCKETS = 1 << 18, STEPS = 100, MOST = 4096 };

/* Reviews as features: review i has ids[spans[i].begin .. spans[i].end - 1]. */
typedef struct sample {
    reviews text;
    int32_t *ids, labels[MOST];
    ml_span spans[MOST];
    float roots[MOST], log_probs[MOST * CLASSES]; /* roots: of the number of features */
} sample;

typedef struct linear_model {
    ml_tensor w, b, ratios; /* (F, C), (1, C), (F, 1) */
    sample *now;
} linear_model;

/* Appends a feature unless the review has it already: last (F) is the last review, from 1, that had each. */
static void add_feature(sample *s, int row, uint32_t hash, int *last) {
    uint32_t id = hash % BUCKETS;
    if (last[id] != row + 1) s->ids[s->spans[row].end++] = (int32_t)id;
    last[id] = row + 1;
}

/* The words of a review in lower case, and each with the one before it. */
static void read_review(sample *s, int row, int *last) {
    uint32_t previous = 0;
    s->spans[row].begin = s->spans[row].end = row ? s->spans[row - 1].end : 0;
    add_feature(s, row, 1, last); /* even an empty review has one */
    for (const char *at = s->text.rows[row].sentence; *(at += strspn(at, " \t"));) {
        uint32_t word = word_hash(&at, " \t");
        add_feature(s, row, word, last);
        add_feature(s, row, (previous + 1) * 31 ^ word, last);
        previous = word;
    }
    s->roots[row] = sqrtf((float)(s->spans[row].end - s->spans[row].begin));
    s->labels[row] = s->text.rows[row].label;
}

static int read_sample(sample *s, const char *path) {
    static int last[BUCKETS];
    size_t most = 0;
    if (!reviews_read(&s->text, path, CLASSES)) return 0;
    if (s->text.n < 1 || s->text.n > MOST)
        return complain("%s: %d reviews, not 1 to %d", path, s->text.n, MOST);
    for (int row = 0; row < s->text.n; row++) most += strlen(s->text.rows[row].sentence) + 2; /* two a word */
    s->ids = (int32_t *)malloc(most * sizeof *s->ids);
    if (!s->ids) return no_memory(path);
    memset(last, 0, sizeof last);
    for (int row = 0; row < s->text.n; row++) read_review(s, row, last);
    return 1;
}

/* log of a feature's share of class 1 by its share of class 0, with every count one higher */
static void find_ratios(const sample *s, float *ratios) {
    static float counts[BUCKETS][CLASSES];
    float sums[CLASSES] = {BUCKETS, BUCKETS};
    for (int i = 0; i < s->text.n; i++)
        for (int at = s->spans[i].begin; at < s->spans[i].end && s->labels[i] >= 0; at++)
            counts[s->ids[at]][s->labels[i]]++, sums[s->labels[i]]++;
    for (int f = 0; f < BUCKETS; f++)
        ratios[f] = logf((counts[f][1] + 1) / (counts[f][0] + 1) * sums[0] / sums[1]);
}

static ml_tensor loss(ml_graph *g, void *user) {
    const linear_model *m = (const linear_model *)user;
    sample *s = m->now;
    ml_tensor roots = {ML_F32, (size_t)s->text.n, 1, s->roots, NULL};
    size_t n = (size_t)s->spans[s->text.n - 1].end;
    ml_tensor rows = ml_gather(g, ml_mul(g, m->w, m->ratios), s->ids, n);
    ml_tensor mean = ml_pool_spans(g, rows, s->spans, s->text.n, ML_POOL_MEAN);
    ml_loss_desc how = {s->labels, 0, 0, s->log_probs, 0};
    return ml_cross_entropy(g, ml_add(g, ml_mul(g, mean, roots), m->b), &how);
}

/* Prints the share of reviews that get the label with the larger probability. */
static void measure(linear_model *m, ml_graph *g, sample *s) {
    m->now = s;
    ml_graph_begin(g, 0);
    loss(g, m);
    int right = count_right(s->log_probs, s->labels, s->text.n, CLASSES);
    printf("%s: %.4f\n", s->text.path, (double)right / s->text.n);
}

int main(int argc, char **argv) {
    const char *names[] = {"train", "dev", "test", "test-gold"};
    static char path[4][4096];
    static sample sets[3];
    static float w[BUCKETS * CLASSES], b[CLASSES], ratios[BUCKETS];
    ml_tensor as_w = {ML_F32, BUCKETS, CLASSES, w, NULL}, as_b = {ML_F32, 1, CLASSES, b, NULL};
    ml_tensor as_ratios = {ML_F32, BUCKETS, 1, ratios, NULL};
    linear_model m = {as_w, as_b, as_ratios, sets};
    const ml_parameter learn[] = {{&m.w, 0}, {&m.b, 0}};
    ml_optimizer_desc how = {learn, 2, NULL, 0, {0.1f, 0, 0, 0, 0, 0, 0, 0, ML_ADAMW_FOLDED}, {0}, {0}, {0}};
    ml_optimizer *optimizer;
    ml_graph *g;
    ml_error error;
    if (argc != 2) return fprintf(stderr, "usage: yardstick_words FOLDER\n"), 2;
    for (int i = 0; i < 4; i++) snprintf(path[i], sizeof path[i], "%s/cfimdb-%s.txt", argv[1], names[i]);
    for (int i = 0; i < 3; i++)
        if (!read_sample(&sets[i], path[i])) return 1;
    char *gold = access(path[3], R_OK) ? NULL : text_file_read(path[3], NULL), *at = gold;
    for (int i = 0; gold && i < sets[2].text.n; i++) sets[2].labels[i] = (int32_t)(strtol(at, &at, 10) != 0);
    free(gold);
    find_ratios(sets, ratios);
    int ok = succeeded(ml_optimizer_new(&how, &optimizer, &error), &error) && /* first: it gives gradients */
             succeeded(ml_graph_new(NULL, loss, &m, &g, &error), &error);
    for (int step = 0; ok && step < STEPS; step++) ok = learn_batch(g, loss, &m, optimizer);
    for (int i = 0; ok && i < 3; i++) measure(&m, g, &sets[i]);
    return !ok;
}
