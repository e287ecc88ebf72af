/* Zero-shot: the model is asked which label fits. */
#include <math.h>
#include "sentiment.h"
#include "../common/file.h"
#include "../common/progress.h"

void sentiment_question(const label_names *labels, char *to, size_t size) {
    size_t n = (size_t)snprintf(to, size, " Is this movie ");
    for (int i = 0; i < labels->n && n < size; i++) {
        const char *between = i == 0 ? "" : labels->n == 2 ? " or " : i + 1 < labels->n ? ", " : ", or ";
        n += (size_t)snprintf(to + n, size - n, "%s%s", between, labels->name[i]);
    }
    if (n < size) snprintf(to + n, size - n, "? This movie is ");
}

int sentiment_log_sum(const float *logits, int n, double *log_sum) {
    double sum = 0;
    float max = logits[0];
    for (int i = 1; i < n; i++) max = logits[i] > max ? logits[i] : max;
    for (int i = 0; i < n; i++) sum += exp((double)(logits[i] - max));
    *log_sum = (double)max + log(sum);
    return isfinite(*log_sum) || complain("the logits are not finite (a broken model or adapter?)");
}

/* ---- mode reference ---- */

/* Encodes a text into new memory, which the caller frees; NULL after saying why. */
static int32_t *encode(const ml_tokenizer *tokenizer, const char *text, int flags, int *n) {
    size_t length = strlen(text), work_size = ml_tokenizer_encode_size(length);
    int32_t *ids = (int32_t *)malloc(work_size);
    ml_encode_desc desc = {text, length, flags, ids, work_size};
    ml_tokens tokens;
    ml_error error;
    if (!ids) return no_memory("a text"), (int32_t *)NULL;
    if (!succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error))
        return free(ids), (int32_t *)NULL;
    memmove(ids, tokens.ids, (size_t)tokens.n * sizeof *ids);
    *n = tokens.n;
    return ids;
}

int sentiment_label_ids(const sentiment *s, label_ids *to) {
    for (int i = 0; i < s->labels.n; i++) {
        int32_t *ids = encode(s->model->tokenizer, s->labels.name[i], 0, &to->n[i]);
        if (!ids) return 0;
        int fits = to->n[i] <= 32;
        if (fits) memcpy(to->ids[i], ids, (size_t)to->n[i] * sizeof *ids);
        free(ids);
        if (!fits) return complain("label %s has more than 32 tokens", s->labels.name[i]);
    }
    return 1;
}

int sentiment_longest_label(const sentiment *s) {
    label_ids labels;
    int longest = 0;
    if (!sentiment_label_ids(s, &labels)) return -1;
    for (int i = 0; i < s->labels.n; i++) longest = max_int(longest, labels.n[i] + 1);
    if (longest < s->model->config.max_seq_len) return longest;
    complain("a label of %d tokens, but the context has %d", longest - 1, s->model->config.max_seq_len);
    return -1;
}

int sentiment_prompt_batch(sentiment *s, const reviews *set, int from, int n, const label_ids *labels,
                           float *logits, float *scores) {
    int vocab = s->model->config.vocab_size;
    ml_batch batch = sentiment_batch(s, set, NULL, from, n);
    ml_error error;
    for (int i = 0; i < n; i++) s->truth[i] = s->starts[i + 1] - 1;
    ml_outputs outputs = {s->truth, n, NULL, logits};
    if (!succeeded(ml_session_eval_batch(s->session, &batch, &outputs, &error), &error)) return 0;
    for (int i = 0; i < n; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        double log_sum;
        if (!sentiment_log_sum(row, vocab, &log_sum)) return 0;
        for (int j = 0; j < s->labels.n; j++) {
            double score = 0;
            for (int k = 0; k < labels->n[j]; k++) score += (double)row[labels->ids[j][k]] - log_sum;
            scores[i * s->labels.n + j] = (float)score;
        }
    }
    return 1;
}

static int prompt_reference(sentiment *s, const reviews *set, const char *what) {
    label_ids labels;
    size_t n_rows = (size_t)s->set.batch_size;
    double began = seconds_now();
    if (!sentiment_label_ids(s, &labels)) return 0;
    float *logits = (float *)malloc(n_rows * (size_t)s->model->config.vocab_size * sizeof *logits);
    float *scores = (float *)malloc(n_rows * (size_t)s->labels.n * sizeof *scores);
    int ok = (logits && scores) || no_memory("a batch");
    for (int from = 0; from < set->n && ok; from += s->set.batch_size) {
        int n = min_int(s->set.batch_size, set->n - from);
        ok = sentiment_prompt_batch(s, set, from, n, &labels, logits, scores);
        for (int i = 0; i < n && ok; i++)
            s->predicted[from + i] = sentiment_best(scores + i * s->labels.n, s->labels.n);
        progress_bar(what, from + n, set->n, began);
    }
    free(logits);
    free(scores);
    return ok;
}

/* ---- mode llama: a text, and each label after it ---- */

/* The ids of a text that goes on, so without eos, with the bos that the tokenizer asks for; the caller frees them. */
static int32_t *encode_prompt(const sentiment *s, const char *prompt, int *n) {
    const ml_tokenizer *tokenizer = s->model->tokenizer;
    return encode(tokenizer, prompt, tokenizer->adds_bos ? ML_ADD_BOS : 0, n);
}

/* The same of text and label. */
static int32_t *encode_with_label(const sentiment *s, const char *prompt, int label, int *n) {
    const char *name = s->labels.name[label];
    buffer whole = {0};
    int32_t *ids = NULL;
    if (buffer_append(&whole, prompt, strlen(prompt)) && buffer_append(&whole, " ", 1) &&
        buffer_append(&whole, name, strlen(name)))
        ids = encode_prompt(s, whole.bytes, n);
    else
        no_memory("a text");
    buffer_free(&whole);
    return ids;
}

void label_rows_free(label_rows *rows, int n_labels) {
    for (int i = 0; i < n_labels; i++) free(rows->ids[i]);
}

int sentiment_label_rows(const sentiment *s, const char *prompt, label_rows *rows) {
    int most = s->session->max_seq_len; /* also of a row of s->tokens */
    memset(rows, 0, sizeof *rows);
    int32_t *alone = encode_prompt(s, prompt, &rows->shared); /* what labels begin with is theirs */
    if (!alone) return 0;
    free(alone);
    for (int i = 0; i < s->labels.n; i++) {
        int *n = &rows->n[i];
        rows->ids[i] = encode_with_label(s, prompt, i, n);
        if (!rows->ids[i]) return 0;
        if (*n > most)
            return complain(
                "a prompt of %d tokens, but there is room for %d: the context, or --max_sentence_len, "
                "which counts the question",
                *n, most);
        rows->shared = min_int(rows->shared, *n - 1);
        while (i && memcmp(rows->ids[0], rows->ids[i], (size_t)rows->shared * sizeof **rows->ids) != 0)
            rows->shared--;
    }
    return 1;
}

/* *sum = log p(ids[from .. n - 1] | ids[0 .. from - 1]). The session holds exactly the condition, and logits follow
   it. */
static int continue_text(sentiment *s, const int32_t *ids, int from, int n, const float *logits,
                         double *sum) {
    ml_error error;
    for (*sum = 0;; from++) {
        double log_sum;
        if (!sentiment_log_sum(logits, s->model->config.vocab_size, &log_sum)) return 0;
        *sum += (double)logits[ids[from]] - log_sum;
        if (from + 1 == n) return 1;
        if (!succeeded(ml_session_eval(s->session, ids + from, 1, &logits, &error), &error)) return 0;
    }
}

int sentiment_likelihoods(sentiment *s, const label_rows *rows, double *scores) {
    size_t size = (size_t)s->model->config.vocab_size * sizeof(float);
    float *first = (float *)malloc(size);
    const float *logits = NULL;
    ml_error error;
    ml_tokens shared = {rows->ids[0], rows->shared};
    int kept, ok = first || no_memory("the logits"); /* examples before the text are kept from the last one */
    ok = ok && succeeded(ml_session_keep_prefix(s->session, &shared, &kept, &error), &error) &&
         succeeded(ml_session_eval(s->session, shared.ids + kept, shared.n - kept, &logits, &error), &error);
    if (ok) memcpy(first, logits, size); /* the next ml_session_eval overwrites them */
    for (int i = 0; i < s->labels.n && ok; i++) {
        ok = succeeded(ml_session_truncate(s->session, rows->shared, &error), &error) &&
             continue_text(s, rows->ids[i], rows->shared, rows->n[i], first, &scores[i]);
    }
    free(first);
    return ok;
}

/* The shared tokens of n texts as one packed batch; s->truth (n): the last token of each. */
static ml_batch pack_shared(sentiment *s, const label_rows *rows, int n) {
    ml_batch batch = {0};
    for (int i = 0; i < n; i++) {
        memcpy(s->tokens + batch.n_tokens, rows[i].ids[0], (size_t)rows[i].shared * sizeof *s->tokens);
        s->starts[i + 1] = batch.n_tokens += rows[i].shared;
        s->truth[i] = batch.n_tokens - 1;
    }
    batch.tokens = s->tokens;
    batch.row_start = s->starts;
    batch.n_rows = n;
    return batch;
}

/* The likelihoods of n texts in one packed pass, which is faster, where every label is a single token: scores
   (n, n_labels). */
static int packed_likelihoods(sentiment *s, const label_rows *rows, int n, double *scores) {
    size_t vocab = (size_t)s->model->config.vocab_size;
    float *logits = (float *)malloc((size_t)n * vocab * sizeof *logits);
    ml_error error;
    if (!logits) return no_memory("the logits");
    ml_batch batch = pack_shared(s, rows, n);
    ml_outputs outputs = {s->truth, n, NULL, logits};
    int ok = succeeded(ml_session_eval_batch(s->session, &batch, &outputs, &error), &error);
    for (int i = 0; i < n && ok; i++) {
        const float *row = logits + (size_t)i * vocab;
        double log_sum;
        ok = sentiment_log_sum(row, (int)vocab, &log_sum);
        for (int j = 0; j < s->labels.n && ok; j++)
            scores[i * s->labels.n + j] = (double)row[rows[i].ids[j][rows[i].shared]] - log_sum;
    }
    free(logits);
    return ok;
}

/* What is subtracted from each label's log-likelihood: its log-likelihood after a text without content, which is
   "N/A" and the question (score calibrated; Zhao et al. 2021, "Calibrate Before Use"), or the end of the question
   alone (pmi; Holtzman et al. 2021, "Surface Form Competition"). 0 for the other scores. */
static int find_baseline(sentiment *s, const char *question, double *baseline) {
    label_rows rows;
    char prompt[4096 + 8];
    for (int i = 0; i < s->labels.n; i++) baseline[i] = 0;
    if (strcmp(s->set.score, "calibrated") == 0)
        snprintf(prompt, sizeof prompt, "N/A%s", question);
    else if (strcmp(s->set.score, "pmi") == 0)
        snprintf(prompt, sizeof prompt, "This movie is");
    else
        return 1;
    int ok = sentiment_label_rows(s, prompt, &rows) && sentiment_likelihoods(s, &rows, baseline);
    label_rows_free(&rows, s->labels.n);
    return ok;
}

/* Sentences from .. from + n - 1, each followed by the question. */
static int ask(const sentiment *s, const reviews *set, int from, int n, const char *question,
               label_rows *rows) {
    int ok = 1;
    for (int i = 0; i < n && ok; i++) {
        const review *row = &set->rows[from + i];
        buffer asked = {0};
        if (buffer_append(&asked, row->sentence, row->n_kept) &&
            buffer_append(&asked, question, strlen(question)))
            ok = sentiment_label_rows(s, asked.bytes, &rows[i]);
        else
            ok = no_memory("a text");
        buffer_free(&asked);
    }
    return ok;
}

/* The best label of one text from the log-likelihoods of all. */
static int choose(const sentiment *s, const label_rows *row, const double *scores, const double *baseline) {
    float final[REVIEWS_MAX_LABELS];
    int is_mean = strcmp(s->set.score, "mean") == 0;
    for (int j = 0; j < s->labels.n; j++) {
        double score = scores[j] - baseline[j];
        final[j] = (float)(is_mean ? score / (row->n[j] - row->shared) : score);
    }
    return sentiment_best(final, s->labels.n);
}

/* One batch: its texts together where all labels are single tokens, otherwise one by one. */
static int prompt_rows(sentiment *s, const label_rows *rows, int n, const double *baseline, int *predicted) {
    double *scores = (double *)malloc((size_t)n * (size_t)s->labels.n * sizeof *scores);
    int single = 1, ok = scores || no_memory("the scores");
    for (int i = 0; i < n; i++)
        for (int j = 0; j < s->labels.n; j++) single = single && rows[i].n[j] == rows[i].shared + 1;
    if (ok && single) ok = packed_likelihoods(s, rows, n, scores);
    for (int i = 0; i < n && ok && !single; i++)
        ok = sentiment_likelihoods(s, &rows[i], scores + i * s->labels.n);
    for (int i = 0; i < n && ok; i++) predicted[i] = choose(s, &rows[i], scores + i * s->labels.n, baseline);
    free(scores);
    return ok;
}

static int prompt_llama(sentiment *s, const reviews *set, const char *question, const char *what) {
    double baseline[REVIEWS_MAX_LABELS], began = seconds_now();
    label_rows *rows = (label_rows *)calloc((size_t)s->set.batch_size, sizeof *rows);
    char asked[4096];
    snprintf(asked, sizeof asked, "%.*s", (int)strlen(question) - 1,
             question); /* the last space goes to the label */
    int ok = rows ? find_baseline(s, asked, baseline) : no_memory("a batch");
    for (int from = 0; from < set->n && ok; from += s->set.batch_size) {
        int n = min_int(s->set.batch_size, set->n - from);
        ok = ask(s, set, from, n, asked, rows) && prompt_rows(s, rows, n, baseline, s->predicted + from);
        for (int i = 0; i < n; i++) label_rows_free(&rows[i], s->labels.n);
        memset(rows, 0, (size_t)n * sizeof *rows);
        progress_bar(what, from + n, set->n, began);
    }
    free(rows);
    return ok;
}

int sentiment_prompt(sentiment *s, const reviews *set, const char *question, const char *what) {
    return s->set.reference ? prompt_reference(s, set, what) : prompt_llama(s, set, question, what);
}
