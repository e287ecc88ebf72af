/* Fine-tuning on all labeled phrases of the Stanford Sentiment Treebank, not only its sentences. As rows: each phrase
   that occurs is a sentence of its own (Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for
   Text Classification", train so). As spans: the network reads whole sentences once, and the classifier each phrase,
   as the pooled states of its tokens: a seventh of the tokens for the same labels.
       build/phrases --method rows --mask full --pooling mean --word_dropout .3 --dropout .5 --lr 1e-3 --epochs 2
       build/phrases --method spans --mask full --pooling max --min_words 2 --sentence_weight 10 --lr 1e-3 --batch 8
   Spans want max pooling: after one epoch with it dev is .384, with the mean .301 (examples/models/stories.gguf). */
#include "common/average.h"
#include "common/trees.h"
#include "common/tuning.h"
#include "../common/memory.h"
#include "../common/report.h"

typedef struct phrases {
    const char *method, *path, *duplicates;
    int min_words;
    float sentence_weight, ema;
    weight_average average;
    trees trees;
    int **ends;     /* spans: (sentences) of (words + 1): how many tokens there are up to a word */
    float per_row;  /* the mean weight of a sentence's phrases */
    ml_span *spans; /* of a batch ... */
    float *targets; /* ... (n, C): minus the weight at the label, smoothed */
    int n_ends, n_spans;
    size_t spans_capacity, targets_capacity;
} phrases;

static phrases *phrases_of(const tuning *t) { return (phrases *)t->method.state; }

static int make_rows(tuning *t) {
    return trees_rows(&phrases_of(t)->trees, &t->train) && tuning_encode(t, &t->train);
}

/* ---- spans ---- */

static int make_spans(tuning *t) {
    phrases *s = phrases_of(t);
    const trees *all = &s->trees;
    double sum = 0;
    if (!tuning_encode(t, &s->trees.set)) return 0;
    s->ends = (int **)calloc((size_t)all->set.n, sizeof *s->ends);
    if (!s->ends) return no_memory(s->path);
    s->n_ends = all->set.n;
    for (int r = 0; r < all->set.n; r++) {
        int n = all->phrases[all->first[r + 1] - 1].end;
        s->ends[r] = (int *)malloc(((size_t)n + 1) * sizeof **s->ends);
        if (!s->ends[r]) return no_memory(s->path);
        if (!trees_ends(&all->set.rows[r], t->model->tokenizer, s->ends[r], n)) return 0;
    }
    for (size_t i = 0; i < all->n_phrases; i++) sum += (double)all->phrases[i].weight;
    s->per_row = (float)(sum / all->set.n);
    t->train = all->set; /* which frees it, too */
    memset(&s->trees.set, 0, sizeof s->trees.set);
    return 1;
}

/* The first token of a batch that is the row's given one, or was behind it before word dropout. */
static int find_token(const tuning_batch *batch, int row, int token) {
    int at = batch->rows.row_start[row], end = batch->rows.row_start[row + 1];
    while (at < end && batch->source[at] < token) at++;
    return at;
}

/* The spans of a row in the batch; those of which no token is left are left out. */
static int add_spans(tuning *t, const tuning_batch *batch, int row) {
    phrases *s = phrases_of(t);
    int n_classes = t->labels.n, r = batch->index[row];
    for (int i = s->trees.first[r]; i < s->trees.first[r + 1]; i++) {
        const phrase *p = &s->trees.phrases[i];
        const int *ends = s->ends[r];
        ml_span span = {find_token(batch, row, ends[p->begin]), find_token(batch, row, ends[p->end])};
        if (!(p->weight > 0) || span.end <= span.begin) continue;
        size_t n = (size_t)s->n_spans + 1;
        ml_span *spans = (ml_span *)grow(s->spans, n, &s->spans_capacity, sizeof *spans);
        if (spans) s->spans = spans;
        float *targets =
            (float *)grow(s->targets, n * (size_t)n_classes, &s->targets_capacity, sizeof *targets);
        if (targets) s->targets = targets;
        if (!spans || !targets) return no_memory("the phrases of a batch");
        for (int c = 0; c < n_classes; c++) {
            float share = t->set.smoothing / (float)n_classes + (c == p->label ? 1 - t->set.smoothing : 0);
            targets[s->n_spans * n_classes + c] = -p->weight * share;
        }
        spans[s->n_spans++] = span;
    }
    return 1;
}

/* The sum of weight times cross-entropy over all phrases, divided by what the step's sentences weigh on average. */
static ml_tensor spans_loss(tuning *t, ml_graph *g, const tuning_batch *batch) {
    phrases *s = phrases_of(t);
    ml_tensor targets = {ML_F32, 0, 0, NULL, NULL};
    targets.rows = (size_t)s->n_spans, targets.cols = (size_t)t->labels.n, targets.data = s->targets;
    ml_tensor h = ml_pool_spans(g, tuning_hidden(t, g, batch), s->spans, s->n_spans, tuning_pooling(t));
    ml_tensor scores = ml_log_softmax(g, tuning_head(t, g, h));
    return ml_scale(g, ml_sum(g, ml_mul(g, scores, targets)), 1 / (batch->rows.divisor * s->per_row));
}

static int spans_backward(tuning *t, const tuning_batch *batch, float *loss) {
    phrases *s = phrases_of(t);
    s->n_spans = 0;
    for (int r = 0; r < batch->rows.n_rows; r++)
        if (!add_spans(t, batch, r)) return 0;
    if (!s->n_spans) return *loss = 0, 1; /* nothing but sentences that count elsewhere */
    return tuning_backward(t, batch, loss);
}

static int phrases_step(tuning *t) {
    phrases *s = phrases_of(t);
    return !(s->ema > 0) || average_step(t, &s->average, s->ema);
}

static int phrases_measuring(tuning *t, int begins) {
    return average_measuring(t, &phrases_of(t)->average, begins);
}

/* ---- the program ---- */

static int phrases_check(tuning *t) {
    phrases *s = phrases_of(t);
    const char *pooling = t->set.pooling;
    int is_spans = strcmp(s->method, "spans") == 0;
    if (t->set.train) return complain("--train is not for phrases, which are those of --trees");
    if (!is_spans && strcmp(s->method, "rows") != 0)
        return complain("--method is rows or spans, not %s", s->method);
    if (s->min_words < 1) return complain("--min_words is at least 1");
    if (!(s->ema >= 0 && s->ema < 1)) return complain("--ema is 0 to less than 1");
    if (!(s->sentence_weight > 0)) return complain("--sentence_weight is positive");
    if (!is_spans && s->sentence_weight != 1)
        return complain("--sentence_weight is for spans: rows have no weight");
    if (!s->duplicates) s->duplicates = is_spans ? "share" : "once";
    int is_share = strcmp(s->duplicates, "share") == 0;
    if (!is_share && strcmp(s->duplicates, "once") != 0 && strcmp(s->duplicates, "all") != 0)
        return complain("--duplicates is once, share or all, not %s", s->duplicates);
    if (is_share && !is_spans)
        return complain("--duplicates share gives spans a weight, and rows have none: choose once or all");
    if (is_spans && (strcmp(pooling, "attention") == 0 || strcmp(pooling, "layers") == 0))
        return complain("--method spans pools by last, mean or max, not --pooling %s", pooling);
    t->method.name = s->method;
    if (is_spans) t->method.backward = spans_backward, t->method.loss = spans_loss;
    return 1;
}

static int phrases_train(tuning *t) {
    phrases *s = phrases_of(t);
    s->path = tuning_path(t, s->path, "trees-train.txt");
    if (!trees_read(&s->trees, s->path, t->labels.n)) return 0;
    tuning_tidy(t, &s->trees.set);
    if (!trees_weigh(&s->trees, s->min_words, *s->duplicates)) return 0;
    for (int i = 0; i < s->trees.set.n; i++)
        s->trees.phrases[s->trees.first[i + 1] - 1].weight *= s->sentence_weight;
    if (!(strcmp(s->method, "rows") == 0 ? make_rows(t) : make_spans(t))) return 0;
    size_t n = 0;
    for (size_t i = 0; i < s->trees.n_phrases; i++) n += s->trees.phrases[i].weight > 0;
    printf("%s: %zu of %zu phrases in %d rows\n", s->path, n, s->trees.n_phrases, t->train.n);
    return 1;
}

static void phrases_free(phrases *s) {
    for (int i = 0; i < s->n_ends; i++) free(s->ends[i]);
    trees_free(&s->trees);
    average_free(&s->average);
    free(s->ends), free(s->spans), free(s->targets);
}

int main(int argc, char **argv) {
    phrases s;
    tuning_method method = {0};
    memset(&s, 0, sizeof s);
    s.method = "rows";
    s.min_words = 1, s.sentence_weight = 1;
    const option own[] = {
        {"--method", OPTION_TEXT, &s.method, "rows (default) or spans"},
        {"--trees", OPTION_TEXT, &s.path, "the training sentences as trees (TASK-trees-train.txt)"},
        {"--min_words", OPTION_INT, &s.min_words, "of a phrase; sentences count always (1)"},
        {"--ema", OPTION_FLOAT, &s.ema,
         "decay d of the running average of the weights, reached at step 9/(1-d) - 10 (.99: 890; 0: none)"},
        {"--sentence_weight", OPTION_FLOAT, &s.sentence_weight, "spans: of a sentence among its phrases (1)"},
        {"--duplicates", OPTION_TEXT, &s.duplicates,
         "a phrase that occurs n times: once (rows), share (each 1/n; spans), all"},
    };
    method.program = "phrases";
    method.state = &s;
    method.check = phrases_check;
    method.make_train = phrases_train;
    method.after_step = phrases_step;
    method.measuring = phrases_measuring;
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    phrases_free(&s);
    return status;
}
