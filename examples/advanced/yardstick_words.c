/* What a linear model on words and pairs of words reaches, without any Llama. A feature is a distinct word of a
   review, or a pair of neighbors. logits (C) = sum of r_f W_f over its features / sqrt(their number) + b, with W (F,
   C) and r the naive Bayes ratios (Wang & Manning 2012, "Baselines and Bigrams"): what says more learns faster. With
   a --batch of the whole training set each epoch is one step.
       build/yardstick_words --task cfimdb --lower --batch 4096 --max_tokens 4000000 --lr .05 --epochs 40
   On CFIMDB this has .931 on dev, .928 on test by its real labels, with every seed: weights begin at 0, and all of the
   set is one batch, whose order is all that a seed changes. */
#include <math.h>
#include "common/tuning.h"
#include "common/words.h"

enum { CLASSES = 2, BUCKETS = 1 << 20 }; /* C; F: features are numbered by a hash */

typedef struct linear_model {
    int last[BUCKETS]; /* the last row, from 1, that had a feature */
    int row;
    float ratios[BUCKETS], *roots; /* r; (max_rows): of the number of features */
    ml_tensor *w, *b;              /* (F, C), (1, C) */
} linear_model;

static linear_model *linear_of(const tuning *t) { return (linear_model *)t->method.state; }

/* Appends a feature unless the row has it already. */
static void add_feature(linear_model *m, review *row, uint64_t hash) {
    size_t id = (size_t)(hash % BUCKETS);
    if (m->last[id] != m->row) row->ids[row->n_ids++] = (int32_t)id;
    m->last[id] = m->row;
}

/* The words of each row, and each with the one before it. */
static int linear_encode(tuning *t, reviews *set) {
    linear_model *m = linear_of(t);
    size_t n;
    for (int i = 0; i < set->n; i++) {
        review *row = &set->rows[i];
        uint64_t previous = 0;
        if (!make_row(row)) return 0;
        m->row++;
        add_feature(m, row, 1); /* even an empty review has one */
        for (const char *at = row->sentence, *text; text = next_word(&at, &n), n > 0;) {
            uint64_t word = word_hash(text, n);
            add_feature(m, row, word);
            add_feature(m, row, (previous + 1) * 31 ^ word);
            previous = word;
        }
    }
    return 1;
}

/* log of a feature's share of class 1 by its share of class 0, with every count one higher */
static void find_ratios(const reviews *set, float *ratios) {
    static float counts[BUCKETS][CLASSES];
    float sums[CLASSES] = {BUCKETS, BUCKETS};
    memset(counts, 0, sizeof counts);
    for (int i = 0; i < set->n; i++)
        for (int k = 0; k < set->rows[i].n_ids && set->rows[i].label >= 0; k++)
            counts[set->rows[i].ids[k]][set->rows[i].label]++, sums[set->rows[i].label]++;
    for (int f = 0; f < BUCKETS; f++)
        ratios[f] = logf((counts[f][1] + 1) / (counts[f][0] + 1) * sums[0] / sums[1]);
}

static int linear_check(tuning *t) {
    t->no_head = 1;
    return !(t->set.dropout > 0) ||
           complain("--dropout is not for yardstick_words: words are left out whole, by --word_dropout");
}

static int linear_setup(tuning *t) {
    linear_model *m = linear_of(t);
    if (t->labels.n != CLASSES)
        return complain("ratios are of two labels, and --task %s has %d", t->set.task, t->labels.n);
    find_ratios(&t->train, m->ratios);
    m->roots = (float *)malloc((size_t)t->set.batch * sizeof *m->roots);
    return (m->roots || no_memory("a batch")) &&
           (m->w = tuning_parameter(t, "weights", BUCKETS, CLASSES, 0)) &&
           (m->b = tuning_parameter(t, "bias", 1, CLASSES, 0));
}

/* (n_rows, C) */
static ml_tensor linear_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    linear_model *m = linear_of(t);
    const int32_t *start = batch->rows.row_start;
    ml_rows rows = {start, batch->rows.n_rows};
    ml_tensor ratios = {ML_F32, BUCKETS, 1, m->ratios, NULL},
              roots = {ML_F32, (size_t)rows.n_rows, 1, m->roots, NULL};
    for (int i = 0; i < rows.n_rows; i++) m->roots[i] = sqrtf((float)(start[i + 1] - start[i]));
    ml_tensor x = ml_gather(g, ml_mul(g, *m->w, ratios), batch->rows.tokens, (size_t)batch->rows.n_tokens);
    ml_tensor mean = ml_pool_rows(g, x, rows, ML_POOL_MEAN);
    return ml_add(g, ml_mul(g, mean, roots), *m->b);
}

int main(int argc, char **argv) {
    linear_model *m = (linear_model *)calloc(1, sizeof *m);
    if (!m) return !no_memory("features");
    tuning_method method = {.program = "yardstick_words", .name = "words", .state = m};
    method.encode = linear_encode, method.check = linear_check;
    method.setup = linear_setup, method.logits = linear_logits;
    int status = tuning_main(argc, argv, &method, NULL, 0);
    free(m->roots);
    free(m);
    return status;
}
