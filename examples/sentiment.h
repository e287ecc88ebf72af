/* The assignment's three ways to label sentences: by prompting, by fine-tuning with a classifier on top, and by LoRA.

   mode reference: as the course computes. LayerNorm, full attention, rows padded to the longest of their batch with padding
   that is attended to, the hidden state (or logits) at the last position of the padded row; when prompting, a label's
   score is the sum of the log-probabilities of all its tokens at that one position.
   mode llama: as the model was made. RMSNorm, causal, no padding, the last real token; when prompting, a label's score is
   its log-likelihood by the chain rule. */
#ifndef SENTIMENT_H
#define SENTIMENT_H

#include <time.h>
#include <unistd.h>
#include "reviews.h"

typedef struct sentiment_settings {
    const char *train, *dev, *test, *labels, *dev_out, *test_out, *score, *model_out;
    int reference, lora, prompting;
    int max_sentence_len, epochs, batch_size, lora_rank, threads, seed, quiet;
    float dropout, lr, lora_alpha;
} sentiment_settings;

typedef struct sentiment_result {
    double accuracy, f1; /* of the labels that are known */
} sentiment_result;

typedef struct sentiment {
    sentiment_settings set;
    ml_model *model;
    ml_lora *lora;
    ml_head *head;
    ml_trainer *trainer;
    ml_session *session; /* prompting */
    label_names labels;
    reviews train, dev, test;
    int max_row;
    int32_t *tokens, *starts, *truth; /* a batch */
    float *log_probs;
    int *predicted; /* (rows of the set at hand) */
} sentiment;

static double sentiment_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int sentiment_well(ml_result result, const ml_error *error) {
    return result == ML_OK || (fprintf(stderr, "error: %s (%s)\n", error->text, ml_result_string(result)), 0);
}

/* A bar on the terminal, with the time that is left; nothing where no terminal is. */
static void sentiment_bar(const char *what, int done, int all, double began) {
    double left = done ? (sentiment_now() - began) / done * (all - done) : 0;
    int i, full = all ? 30 * done / all : 30;
    if (!isatty(2)) return;
    fprintf(stderr, "\r%-12s [", what);
    for (i = 0; i < 30; i++) fputc(i < full ? '#' : '.', stderr);
    fprintf(stderr, "] %d/%d, %d:%02d left ", done, all, (int)left / 60, (int)left % 60);
    if (done == all) fprintf(stderr, "\r%78s\r", "");
}

/* Accuracy and macro F1 (the mean over the classes that occur in truth or prediction). */
static sentiment_result sentiment_measure(const reviews *set, const int *predicted, int n_labels) {
    sentiment_result result = {0, 0};
    int hit[REVIEWS_MAX_LABELS] = {0}, said[REVIEWS_MAX_LABELS] = {0}, is[REVIEWS_MAX_LABELS] = {0};
    int i, known = 0, right = 0, classes = 0;
    for (i = 0; i < set->n; i++) {
        int label = set->rows[i].label;
        if (label < 0) continue;
        known++;
        is[label]++;
        said[predicted[i]]++;
        if (label == predicted[i]) hit[label]++, right++;
    }
    for (i = 0; i < n_labels; i++)
        if (is[i] + said[i] > 0) {
            result.f1 += 2.0 * hit[i] / (is[i] + said[i]);
            classes++;
        }
    result.accuracy = known ? (double)right / known : 0;
    result.f1 = classes ? result.f1 / classes : 0;
    return result;
}

/* Rows order[from .. from + n - 1] of a set as a batch. With the reference's padding every row is as long as the longest. */
static ml_examples sentiment_batch(sentiment *s, const reviews *set, const int *order, int from, int n) {
    ml_examples e;
    int i, longest = 0, padding = (int)ml_tokenizer_padding(s->model->tokenizer);
    memset(&e, 0, sizeof e);
    for (i = 0; i < n; i++) longest = MLI_MAX(longest, set->rows[order ? order[from + i] : from + i].n_ids);
    for (i = 0; i < n; i++) {
        const review *row = &set->rows[order ? order[from + i] : from + i];
        int length = s->set.reference ? longest : row->n_ids, j;
        memcpy(s->tokens + e.n_tokens, row->ids, (size_t)row->n_ids * sizeof *s->tokens);
        for (j = row->n_ids; j < length; j++) s->tokens[e.n_tokens + j] = padding;
        e.n_tokens += length;
        s->starts[i + 1] = e.n_tokens;
        s->truth[i] = row->label;
    }
    e.tokens = s->tokens;
    e.row_start = s->starts;
    e.n_rows = n;
    e.labels = s->truth;
    e.log_probs = s->log_probs;
    e.divisor = (float)s->set.batch_size;
    return e;
}

static int sentiment_best(const float *scores, int n) {
    int i, best = 0;
    for (i = 1; i < n; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

/* ---- fine-tuning ---- */

static int sentiment_predict(sentiment *s, const reviews *set, const char *what) {
    int from, i;
    double began = sentiment_now();
    for (from = 0; from < set->n; from += s->set.batch_size) {
        int n = MLI_MIN(s->set.batch_size, set->n - from);
        ml_examples e = sentiment_batch(s, set, NULL, from, n);
        ml_error error;
        e.labels = NULL;
        if (!sentiment_well(ml_evaluate(s->trainer, &e, NULL, &error), &error)) return 0;
        for (i = 0; i < n; i++)
            s->predicted[from + i] = sentiment_best(s->log_probs + i * s->labels.n, s->labels.n);
        sentiment_bar(what, from + n, set->n, began);
    }
    return 1;
}

/* One pass over the training set in a new order; *loss: the mean over the batches. */
static int sentiment_epoch(sentiment *s, ml_random *random, int *order, int epoch, double *loss) {
    int i, from, n_batches = 0;
    double began = sentiment_now();
    char what[32];
    snprintf(what, sizeof what, "train-%d", epoch);
    for (i = s->train.n - 1; i > 0; i--) { /* Fisher & Yates */
        int j = (int)(ml_random_u64(random) % (uint64_t)(i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
    *loss = 0;
    for (from = 0; from < s->train.n; from += s->set.batch_size) {
        int n = MLI_MIN(s->set.batch_size, s->train.n - from);
        ml_examples e = sentiment_batch(s, &s->train, order, from, n);
        ml_error error;
        float batch_loss;
        e.log_probs = NULL;
        if (!sentiment_well(ml_train(s->trainer, &e, &batch_loss, &error), &error) ||
            !sentiment_well(ml_backward(s->trainer, &error), &error) ||
            !sentiment_well(ml_step(s->trainer, &error), &error))
            return 0;
        *loss += (double)batch_loss;
        n_batches++;
        sentiment_bar(what, from + n, s->train.n, began);
    }
    *loss /= n_batches;
    return 1;
}

static int sentiment_trainer(sentiment *s) {
    ml_trainer_desc desc;
    ml_lora_desc lora;
    ml_random random;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    memset(&lora, 0, sizeof lora);
    ml_random_seed(&random, (uint64_t)s->set.seed);
    if (!sentiment_well(ml_head_create(s->model, s->labels.n, &random, NULL, &s->head, &error), &error))
        return 0;
    lora.rank = s->set.lora_rank;
    lora.alpha = s->set.lora_alpha;
    if (s->set.lora &&
        !sentiment_well(ml_lora_create(s->model, &lora, &random, NULL, &s->lora, &error), &error))
        return 0;
    desc.max_row = s->max_row;
    desc.max_rows = s->set.batch_size;
    desc.max_tokens = s->max_row * s->set.batch_size;
    desc.head = s->head;
    desc.lora = s->lora;
    desc.dropout = s->set.dropout;
    desc.seed = (uint64_t)s->set.seed;
    desc.adamw.lr = s->set.lr;
    desc.threads.count = s->set.threads;
    return sentiment_well(ml_trainer_new(s->model, &desc, NULL, &s->trainer, &error), &error);
}

/* Trains, keeps the state of the best epoch by dev accuracy in model_out, and goes back to it. */
static int sentiment_finetune(sentiment *s) {
    int *order = (int *)malloc((size_t)s->train.n * sizeof *order), epoch, i, ok;
    double best = -1;
    ml_random random;
    ml_error error;
    ok = order && sentiment_trainer(s);
    for (i = 0; ok && i < s->train.n; i++) order[i] = i;
    ml_random_seed(&random, (uint64_t)s->set.seed + 1);
    for (epoch = 0; ok && epoch < s->set.epochs; epoch++) {
        sentiment_result on_train, on_dev;
        double loss;
        ok =
            sentiment_epoch(s, &random, order, epoch, &loss) && sentiment_predict(s, &s->train, "eval train");
        on_train = sentiment_measure(&s->train, s->predicted, s->labels.n);
        ok = ok && sentiment_predict(s, &s->dev, "eval dev");
        on_dev = sentiment_measure(&s->dev, s->predicted, s->labels.n);
        if (ok && on_dev.accuracy > best) {
            best = on_dev.accuracy;
            ok = sentiment_well(ml_trainer_save(s->trainer, s->set.model_out, &error), &error);
        }
        if (ok)
            printf("epoch %d: train loss :: %.3f, train acc :: %.3f, dev acc :: %.3f, dev f1 :: %.3f\n",
                   epoch, loss, on_train.accuracy, on_dev.accuracy, on_dev.f1);
        fflush(stdout);
    }
    if (ok) ok = sentiment_well(ml_trainer_load(s->trainer, s->set.model_out, &error), &error);
    if (ok) printf("load model from %s\n", s->set.model_out);
    free(order);
    return ok;
}

/* ---- prompting ---- */

/* " Is this movie awful, bad, or good? This movie is ", as the assignment asks it. */
static void sentiment_question(const label_names *labels, char *to, size_t size) {
    size_t n = 0;
    int i;
    n += (size_t)snprintf(to, size, " Is this movie ");
    for (i = 0; i < labels->n && n < size; i++) {
        const char *between = i == 0 ? "" : labels->n == 2 ? " or " : i + 1 < labels->n ? ", " : ", or ";
        n += (size_t)snprintf(to + n, size - n, "%s%s", between, labels->name[i]);
    }
    if (n < size) snprintf(to + n, size - n, "? This movie is ");
}

/* The ids of each label alone, as the reference encodes it: without bos. */
typedef struct label_ids {
    int32_t ids[REVIEWS_MAX_LABELS][32];
    int n[REVIEWS_MAX_LABELS];
} label_ids;

static int sentiment_label_ids(const sentiment *s, label_ids *to) {
    int i;
    for (i = 0; i < s->labels.n; i++) {
        size_t length = strlen(s->labels.name[i]), work_size = ml_encode_size(length), n = 0;
        const int32_t *ids = NULL;
        ml_error error;
        void *work = malloc(work_size);
        int ok = work && sentiment_well(ml_encode(s->model->tokenizer, s->labels.name[i], length, 0, work,
                                                  work_size, &ids, &n, &error),
                                        &error);
        if (ok && n > 32)
            ok = (fprintf(stderr, "error: label %s has more than 32 tokens\n", s->labels.name[i]), 0);
        if (ok) memcpy(to->ids[i], ids, n * sizeof *ids);
        to->n[i] = (int)n;
        free(work);
        if (!ok) return 0;
    }
    return 1;
}

/* Room for any label behind a text, its space included; -1, having said why. */
static int sentiment_longest_label(const sentiment *s) {
    label_ids labels;
    int i, longest = 0;
    if (!sentiment_label_ids(s, &labels)) return -1;
    for (i = 0; i < s->labels.n; i++) longest = MLI_MAX(longest, labels.n[i] + 1);
    if (longest < s->model->config.max_seq_len) return longest;
    return fprintf(stderr, "error: a label of %d tokens, the context has %d\n", longest - 1,
                   s->model->config.max_seq_len),
           -1;
}

/* log p of each id in the row of logits, less the same for all: logits[id] - log sum exp. */
static double sentiment_log_sum(const float *logits, int n) {
    double sum = 0;
    float max = logits[0];
    int i;
    for (i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (i = 0; i < n; i++) sum += exp((double)(logits[i] - max));
    return (double)max + log(sum);
}

/* One batch as the reference prompts: scores (n, n_labels) from the logits at the last position of each padded row. */
static int sentiment_prompt_batch(sentiment *s, const reviews *set, int from, int n, const label_ids *labels,
                                  float *logits, float *scores) {
    int vocab = s->model->config.vocab_size, i, j, k;
    ml_examples e = sentiment_batch(s, set, NULL, from, n);
    int32_t *last = s->truth;
    ml_batch batch;
    ml_error error;
    memset(&batch, 0, sizeof batch);
    for (i = 0; i < n; i++) last[i] = s->starts[i + 1] - 1;
    batch.tokens = e.tokens;
    batch.n_tokens = e.n_tokens;
    batch.row_start = e.row_start;
    batch.n_rows = n;
    batch.select = last;
    batch.n_select = n;
    batch.logits = logits;
    if (!sentiment_well(ml_forward(s->session, &batch, &error), &error)) return 0;
    for (i = 0; i < n; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        double log_sum = sentiment_log_sum(row, vocab);
        for (j = 0; j < s->labels.n; j++) {
            double score = 0;
            for (k = 0; k < labels->n[j]; k++) score += (double)row[labels->ids[j][k]] - log_sum;
            scores[i * s->labels.n + j] = (float)score;
        }
    }
    return 1;
}

/* Encodes text + label i, with bos; the caller frees. NULL, having said why, when it cannot be. */
static int32_t *sentiment_with_label(const sentiment *s, const char *text, int label, int *n) {
    size_t size = strlen(text) + strlen(s->labels.name[label]) + 2, work_size = ml_encode_size(size), n_ids;
    char *whole = (char *)malloc(size);
    void *work = malloc(work_size);
    const int32_t *ids;
    int32_t *copy = NULL;
    ml_error error;
    if (whole && work) {
        snprintf(whole, size, "%s %s", text, s->labels.name[label]);
        if (sentiment_well(ml_encode(s->model->tokenizer, whole, strlen(whole), ML_ADD_BOS, work, work_size,
                                     &ids, &n_ids, &error),
                           &error) &&
            (copy = (int32_t *)malloc(n_ids * sizeof *copy)) != NULL) {
            memcpy(copy, ids, n_ids * sizeof *copy);
            *n = (int)n_ids;
        }
    }
    free(whole);
    free(work);
    return copy;
}

/* A text with each label behind it, in tokens, of which all labels share the first `shared`. */
typedef struct label_rows {
    int32_t *ids[REVIEWS_MAX_LABELS];
    int n[REVIEWS_MAX_LABELS], shared;
} label_rows;

static void label_rows_free(label_rows *rows, int n_labels) {
    int i;
    for (i = 0; i < n_labels; i++) free(rows->ids[i]);
}

/* 0, having said why, when the text does not fit; free it in any case. */
static int sentiment_label_rows(const sentiment *s, const char *text, label_rows *rows) {
    int i, most = s->model->config.max_seq_len;
    memset(rows, 0, sizeof *rows);
    for (i = 0; i < s->labels.n; i++) {
        int *n = &rows->n[i];
        if ((rows->ids[i] = sentiment_with_label(s, text, i, n)) == NULL) return 0;
        if (*n > most)
            return fprintf(stderr, "error: a prompt of %d tokens, the context has %d\n", *n, most), 0;
        rows->shared = i ? MLI_MIN(rows->shared, *n - 1) : *n - 1;
        while (i && memcmp(rows->ids[0], rows->ids[i], (size_t)rows->shared * sizeof **rows->ids) != 0)
            rows->shared--;
    }
    return 1;
}

/* Adds log p of ids[from .. n - 1] given what stands before them; the session holds exactly ids[0 .. from - 1], and logits
   are those that follow. */
static int sentiment_continue(sentiment *s, const int32_t *ids, int from, int n, const float *logits,
                              double *sum) {
    int vocab = s->model->config.vocab_size;
    ml_error error;
    for (*sum = 0;; from++) {
        *sum += (double)logits[ids[from]] - sentiment_log_sum(logits, vocab);
        if (from + 1 == n) return 1;
        if (!sentiment_well(ml_eval(s->session, ids + from, 1, &logits, &error), &error)) return 0;
    }
}

/* scores (n_labels): log p(label | text). The text is read once, and each label goes on from there. */
static int sentiment_likelihoods(sentiment *s, const label_rows *rows, double *scores) {
    size_t size = (size_t)s->model->config.vocab_size * sizeof(float);
    float *first = (float *)malloc(size);
    const float *logits = NULL;
    ml_error error;
    int i, ok = first || (fprintf(stderr, "error: not enough memory\n"), 0);
    ml_session_truncate(s->session, 0);
    ok = ok && sentiment_well(ml_eval(s->session, rows->ids[0], rows->shared, &logits, &error), &error);
    if (ok) memcpy(first, logits, size); /* the next ml_eval writes over them */
    for (i = 0; i < s->labels.n && ok; i++) {
        ml_session_truncate(s->session, rows->shared);
        ok = sentiment_continue(s, rows->ids[i], rows->shared, rows->n[i], first, &scores[i]);
    }
    free(first);
    return ok;
}

/* The same of n texts in one packed pass, which is faster, where every label is a single token: scores (n, n_labels). */
static int sentiment_likelihoods_packed(sentiment *s, const label_rows *rows, int n, double *scores) {
    int vocab = s->model->config.vocab_size, i, j;
    float *logits = (float *)malloc((size_t)n * (size_t)vocab * sizeof *logits);
    ml_batch batch;
    ml_error error;
    int ok = logits || (fprintf(stderr, "error: not enough memory\n"), 0);
    memset(&batch, 0, sizeof batch);
    for (i = 0; i < n; i++) {
        memcpy(s->tokens + batch.n_tokens, rows[i].ids[0], (size_t)rows[i].shared * sizeof *s->tokens);
        s->starts[i + 1] = batch.n_tokens += rows[i].shared;
        s->truth[i] = batch.n_tokens - 1;
    }
    batch.tokens = s->tokens;
    batch.row_start = s->starts;
    batch.n_rows = batch.n_select = n;
    batch.select = s->truth;
    batch.logits = logits;
    ok = ok && sentiment_well(ml_forward(s->session, &batch, &error), &error);
    for (i = 0; i < n && ok; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        double log_sum = sentiment_log_sum(row, vocab);
        for (j = 0; j < s->labels.n; j++)
            scores[i * s->labels.n + j] = (double)row[rows[i].ids[j][rows[i].shared]] - log_sum;
    }
    free(logits);
    return ok;
}

/* How a label's likelihood becomes its score: as it is (sum); divided by its tokens (mean); or less what it is after a text
   that says nothing: "N/A" and the question (calibrated; Zhao et al. 2021), or the question's end alone (pmi; Holtzman
   et al. 2021). */
static int sentiment_baseline(sentiment *s, const char *question, double *baseline) {
    label_rows rows;
    char text[4096 + 8];
    int i, ok;
    for (i = 0; i < s->labels.n; i++) baseline[i] = 0;
    if (strcmp(s->set.score, "calibrated") == 0)
        snprintf(text, sizeof text, "N/A%s", question);
    else if (strcmp(s->set.score, "pmi") == 0)
        snprintf(text, sizeof text, "This movie is");
    else
        return 1;
    ok = sentiment_label_rows(s, text, &rows) && sentiment_likelihoods(s, &rows, baseline);
    label_rows_free(&rows, s->labels.n);
    return ok;
}

/* Sentences from .. from + n - 1 with the question behind them. */
static int sentiment_ask(const sentiment *s, const reviews *set, int from, int n, const char *question,
                         label_rows *rows) {
    int i, ok = 1;
    for (i = 0; i < n && ok; i++) {
        const review *row = &set->rows[from + i];
        size_t size = row->n_kept + strlen(question) + 1;
        char *text = (char *)malloc(size);
        if (!text) return fprintf(stderr, "error: not enough memory\n"), 0;
        snprintf(text, size, "%.*s%s", (int)row->n_kept, row->sentence, question);
        ok = sentiment_label_rows(s, text, &rows[i]);
        free(text);
    }
    return ok;
}

/* One batch: its texts together where labels are single tokens, and one by one where they are not. */
static int sentiment_prompt_rows(sentiment *s, const label_rows *rows, int n, const double *baseline,
                                 int *predicted) {
    double *scores = (double *)malloc((size_t)n * (size_t)s->labels.n * sizeof *scores);
    float final[REVIEWS_MAX_LABELS];
    int i, j, single = 1, ok = scores || (fprintf(stderr, "error: not enough memory\n"), 0);
    for (i = 0; i < n; i++)
        for (j = 0; j < s->labels.n; j++) single = single && rows[i].n[j] == rows[i].shared + 1;
    if (ok && single) ok = sentiment_likelihoods_packed(s, rows, n, scores);
    for (i = 0; i < n && ok && !single; i++)
        ok = sentiment_likelihoods(s, &rows[i], scores + i * s->labels.n);
    for (i = 0; i < n && ok; i++) {
        for (j = 0; j < s->labels.n; j++) {
            double score = scores[i * s->labels.n + j] - baseline[j];
            int n_tokens = rows[i].n[j] - rows[i].shared;
            final[j] = (float)(strcmp(s->set.score, "mean") == 0 ? score / n_tokens : score);
        }
        predicted[i] = sentiment_best(final, s->labels.n);
    }
    free(scores);
    return ok;
}

static int sentiment_prompt_llama(sentiment *s, const reviews *set, const char *question, const char *what) {
    double baseline[REVIEWS_MAX_LABELS], began = sentiment_now();
    label_rows *rows = (label_rows *)calloc((size_t)s->set.batch_size, sizeof *rows);
    char asked[4096];
    int from, i, ok = rows || (fprintf(stderr, "error: not enough memory\n"), 0);
    snprintf(asked, sizeof asked, "%.*s", (int)strlen(question) - 1,
             question); /* the space goes with the label */
    ok = ok && sentiment_baseline(s, asked, baseline);
    for (from = 0; from < set->n && ok; from += s->set.batch_size) {
        int n = MLI_MIN(s->set.batch_size, set->n - from);
        ok = sentiment_ask(s, set, from, n, asked, rows) &&
             sentiment_prompt_rows(s, rows, n, baseline, s->predicted + from);
        for (i = 0; i < n; i++) label_rows_free(&rows[i], s->labels.n);
        memset(rows, 0, (size_t)n * sizeof *rows);
        sentiment_bar(what, from + n, set->n, began);
    }
    free(rows);
    return ok;
}

static int sentiment_prompt(sentiment *s, const reviews *set, const char *question, const char *what) {
    label_ids labels;
    float *logits, *scores;
    int from, i, ok = 1;
    double began = sentiment_now();
    if (!s->set.reference) return sentiment_prompt_llama(s, set, question, what);
    if (!sentiment_label_ids(s, &labels)) return 0;
    logits =
        (float *)malloc((size_t)s->set.batch_size * (size_t)s->model->config.vocab_size * sizeof *logits);
    scores = (float *)malloc((size_t)s->set.batch_size * (size_t)s->labels.n * sizeof *scores);
    for (from = 0; from < set->n && ok; from += s->set.batch_size) {
        int n = MLI_MIN(s->set.batch_size, set->n - from);
        ok = logits && scores && sentiment_prompt_batch(s, set, from, n, &labels, logits, scores);
        for (i = 0; i < n && ok; i++)
            s->predicted[from + i] = sentiment_best(scores + i * s->labels.n, s->labels.n);
        sentiment_bar(what, from + n, set->n, began);
    }
    free(logits);
    free(scores);
    return ok;
}

/* ---- a whole run ---- */

static int sentiment_read(sentiment *s) {
    const sentiment_settings *set = &s->set;
    char question[4096] = "";
    int most = s->model->config.max_seq_len, behind = 0, i, n;
    reviews *all[3] = {&s->train, &s->dev, &s->test};
    if (!label_names_read(&s->labels, set->labels)) return 0;
    if (!set->prompting && !reviews_read(&s->train, set->train, s->labels.n)) return 0;
    if (!reviews_read(&s->dev, set->dev, s->labels.n) || !reviews_read(&s->test, set->test, s->labels.n))
        return 0;
    if (set->prompting) {
        sentiment_question(&s->labels, question, sizeof question);
        if (!set->reference) behind = sentiment_longest_label(s);
    }
    if (set->max_sentence_len) most = MLI_MIN(most, set->max_sentence_len);
    if (behind < 0) return 0;
    most -= behind;
    for (n = 0, i = set->prompting; i < 3; i++) {
        int j;
        if (!reviews_encode(all[i], s->model->tokenizer, question, most)) return 0;
        for (j = 0; j < all[i]->n; j++) s->max_row = MLI_MAX(s->max_row, all[i]->rows[j].n_ids);
        n = MLI_MAX(n, all[i]->n);
    }
    s->max_row += behind;
    s->tokens = (int32_t *)malloc((size_t)s->max_row * (size_t)set->batch_size * sizeof *s->tokens);
    s->starts = (int32_t *)calloc((size_t)set->batch_size + 1, sizeof *s->starts);
    s->truth = (int32_t *)malloc((size_t)set->batch_size * sizeof *s->truth);
    s->log_probs = (float *)malloc((size_t)set->batch_size * (size_t)s->labels.n * sizeof *s->log_probs);
    s->predicted = (int *)malloc((size_t)n * sizeof *s->predicted);
    if (s->tokens && s->starts && s->truth && s->log_probs && s->predicted) return 1;
    return fprintf(stderr, "error: not enough memory for a batch\n"), 0;
}

static int sentiment_write(const reviews *set, const int *predicted, const char *path) {
    FILE *file = fopen(path, "wb");
    int i, ok = file != NULL;
    for (i = 0; ok && i < set->n; i++)
        ok = fprintf(file, "%d ||| %s\n", predicted[i], set->rows[i].sentence) > 0;
    if (file && fclose(file) != 0) ok = 0;
    return ok || (fprintf(stderr, "error: %s cannot be written: %s\n", path, strerror(errno)), 0);
}

/* Labels one set, writes it down, and measures. */
static int sentiment_label(sentiment *s, const reviews *set, const char *what, const char *out,
                           sentiment_result *result) {
    char question[4096];
    sentiment_question(&s->labels, question, sizeof question);
    if (!(s->set.prompting ? sentiment_prompt(s, set, question, what) : sentiment_predict(s, set, what)))
        return 0;
    *result = sentiment_measure(set, s->predicted, s->labels.n);
    printf("%s acc :: %.3f, f1 :: %.3f\n", what, result->accuracy, result->f1);
    fflush(stdout);
    return sentiment_write(set, s->predicted, out);
}

static void sentiment_free(sentiment *s) {
    reviews_free(&s->train);
    reviews_free(&s->dev);
    reviews_free(&s->test);
    free(s->labels.text);
    free(s->tokens);
    free(s->starts);
    free(s->truth);
    free(s->log_probs);
    free(s->predicted);
    ml_trainer_free(s->trainer);
    ml_session_free(s->session);
    ml_lora_free(s->lora);
    ml_head_free(s->head);
}

/* One run of one setting with one seed; the model's weights are changed by fine-tuning. */
static int sentiment_run(const sentiment_settings *set, ml_model *model, sentiment_result *dev,
                         sentiment_result *test) {
    sentiment s;
    ml_session_desc desc;
    ml_error error;
    int ok;
    memset(&s, 0, sizeof s);
    memset(&desc, 0, sizeof desc);
    s.set = *set;
    s.model = model;
    ok = sentiment_read(&s);
    if (ok && set->prompting) {
        desc.threads.count = set->threads;
        desc.max_seq_len = s.max_row;
        desc.max_batch = s.max_row * set->batch_size;
        ok = sentiment_well(ml_session_new(model, &desc, NULL, &s.session, &error), &error);
    } else if (ok) {
        ok = sentiment_finetune(&s);
    }
    ok = ok && sentiment_label(&s, &s.dev, "dev", set->dev_out, dev);
    ok = ok && sentiment_label(&s, &s.test, "test", set->test_out, test);
    sentiment_free(&s);
    return ok;
}

#endif
