/* What decode_table measures of continuations: perplexity under a judge, repetition, and different n-grams. */
#ifndef MEASURES_H
#define MEASURES_H

#include "methods.h"

/* ---- n-grams ---- */

typedef struct ngram {
    int32_t ids[4]; /* the first `size` count, the rest is -1 */
} ngram;

static inline int ngram_compare(const void *a, const void *b) { return memcmp(a, b, sizeof(ngram)); }

/* Puts all n-grams of a text into `list`, which has room for n; returns how many. */
static inline size_t collect_ngrams(const ml_tokens *text, int size, ngram *list) {
    size_t count = 0;
    for (int at = 0; at + size <= text->n; at++, count++)
        for (int i = 0; i < 4; i++) list[count].ids[i] = i < size ? text->ids[at + i] : -1;
    return count;
}

/* How many of n n-grams are different; sorts them. */
static inline size_t count_different(ngram *list, size_t n) {
    size_t different = n > 0;
    qsort(list, n, sizeof *list, ngram_compare);
    for (size_t i = 1; i < n; i++) different += ngram_compare(&list[i - 1], &list[i]) != 0;
    return different;
}

/* ---- continuations of one method ---- */

/* What is known of one continuation; rep is the share of its 4-grams that it had before. */
typedef struct text_score {
    double log_p, n_judged, n_bytes, rep;
} text_score;

typedef struct scores {
    text_score *of; /* (most) */
    int n, most;
    ngram *ngrams[4]; /* of size 1, 2 and 3 of all continuations, and of size 4 of one */
    size_t n_ngrams[3];
} scores;

/* A row of the table: see decode_table.c. */
typedef struct table_row {
    const char *name;
    double ppl, log_error, bits, rep, rep_error, distinct[3], seconds;
    long n_new;
    int is_better;
} table_row;

static inline void scores_free(scores *s) {
    for (int i = 0; i < 4; i++) free(s->ngrams[i]);
    free(s->of);
    memset(s, 0, sizeof *s);
}

/* Room for `most` continuations of up to `longest` tokens. */
static inline int scores_new(scores *s, int most, int longest) {
    size_t n = (size_t)most * (size_t)longest;
    memset(s, 0, sizeof *s);
    s->most = most;
    s->of = (text_score *)calloc((size_t)most, sizeof *s->of);
    for (int i = 0; i < 4; i++) s->ngrams[i] = (ngram *)calloc(n, sizeof(ngram));
    if (s->of && s->ngrams[0] && s->ngrams[1] && s->ngrams[2] && s->ngrams[3]) return 1;
    scores_free(s);
    return no_memory("the texts");
}

static inline void scores_clear(scores *s) {
    s->n = 0;
    memset(s->n_ngrams, 0, sizeof s->n_ngrams);
}

/* Adds a continuation: its n-grams here, and its likelihood after the prompt's text under the judge. */
static inline int scores_add(scores *s, ml_session *judge, const char *prompt, const char *text,
                             const ml_tokens *written) {
    ml_likelihood_desc desc;
    ml_likelihood found = {0, 0};
    ml_error error;
    text_score *one = &s->of[s->n++];
    memset(&desc, 0, sizeof desc);
    desc.context = prompt;
    desc.continuation = text;
    ml_result result = *text ? ml_session_likelihood(judge, &desc, &found, &error) : ML_OK;
    one->log_p = found.sum;
    one->n_judged = found.n_tokens;
    one->n_bytes = (double)strlen(text);
    for (int i = 0; i < 3; i++)
        s->n_ngrams[i] += collect_ngrams(written, i + 1, s->ngrams[i] + s->n_ngrams[i]);
    size_t n = collect_ngrams(written, 4, s->ngrams[3]);
    one->rep = n ? 1 - (double)count_different(s->ngrams[3], n) / (double)n : 0;
    return succeeded(result, &error);
}

/* The columns. Standard errors: of log perplexity as of a ratio of sums, of rep-4 as of a mean. */
static inline void summarize(scores *s, table_row *r) {
    double log_p = 0, n_judged = 0, n_bytes = 0, n = s->n;
    for (int i = 0; i < s->n; i++) {
        log_p += s->of[i].log_p;
        n_judged += s->of[i].n_judged;
        n_bytes += s->of[i].n_bytes;
        r->rep += s->of[i].rep / n;
    }
    for (int i = 0; i < s->n; i++) {
        double apart = s->of[i].log_p - log_p / n_judged * s->of[i].n_judged, rep = s->of[i].rep - r->rep;
        r->log_error += apart * apart;
        r->rep_error += rep * rep;
    }
    r->ppl = exp(-log_p / n_judged);
    r->bits = -log_p / n_bytes / log(2.0);
    r->log_error = sqrt(r->log_error) / n_judged;
    r->rep_error = n > 1 ? sqrt(r->rep_error / (n - 1) / n) : 0;
    for (int i = 0; i < 3; i++)
        r->distinct[i] = (double)count_different(s->ngrams[i], s->n_ngrams[i]) / (double)s->n_ngrams[i];
}

/* A method is better than both if it repeats itself less than greedy and is likelier than plain sampling, each by
   more than twice the standard error of the difference. */
static inline int is_better_than_both(const table_row *r, const table_row *greedy, const table_row *sample) {
    double less = greedy->rep - r->rep, likelier = log(sample->ppl) - log(r->ppl);
    return less > 2 * hypot(greedy->rep_error, r->rep_error) &&
           likelier > 2 * hypot(sample->log_error, r->log_error);
}

#endif
