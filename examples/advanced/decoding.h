/* How the next token is chosen, beyond ml_sampler: formulas over one row of logits (n), without a model. A token that
   must not be chosen gets the logit -infinity, which ml_sampler_sample never draws; the most likely one always stays.
   Temperature 1 stands for 0 in a filter. */
#ifndef DECODING_H
#define DECODING_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum { MAX_BEAMS = 256, MAX_CANDIDATES = 64 };

/* What to do; a field that is 0 is off. */
typedef struct decoding {
    ml_sampler sampler; /* the last step of drawing; temperature 0 is greedy */
    float typical;      /* mass of the locally typical set (Meister et al. 2022, arXiv 2202.00666) */
    float eta;          /* epsilon of eta sampling (Hewitt et al. 2022, arXiv 2210.15191) */
    float surprise;     /* tau of mirostat 2, in bits (Basu et al. 2020, arXiv 2007.14966) */
    float rate;         /* and its learning rate */
    float dry;          /* multiplier of DRY ("don't repeat yourself", p-e-w 2024) */
    float dry_base;     /* its penalty grows by this for each token of the repetition */
    int dry_length;     /* tokens that must repeat before the next one costs */
    int no_repeat;      /* no n-gram of this length occurs twice (Paulus et al. 2017, arXiv 1705.04304) */
    int beams,
        groups; /* width of a beam search, and its groups (Vijayakumar et al. 2016, arXiv 1610.02424) */
    float length_penalty;
    float diversity;  /* what a group's token costs those after it, in nats */
    int candidates;   /* k of contrastive search (Su et al. 2022, arXiv 2202.06417) */
    float similarity; /* and its alpha */
} decoding;

/* ---- probabilities ---- */

/* p (n) = softmax(logits / temperature); at temperature 0 it is 1 for the first of the largest. 0 if that is not
   possible, because a logit is not a number or all are -infinity. */
static inline int softmax_of(const float *logits, int n, double temperature, double *p) {
    double sum = 0;
    int best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    if (!(temperature > 0)) {
        memset(p, 0, (size_t)n * sizeof *p);
        p[best] = 1;
        return isfinite(logits[best]) != 0;
    }
    for (int i = 0; i < n; i++) sum += p[i] = exp(((double)logits[i] - (double)logits[best]) / temperature);
    for (int i = 0; i < n; i++) p[i] /= sum;
    return isfinite(sum) != 0;
}

/* -sum p log p, in nats */
static inline double entropy_of(const double *p, int n) {
    double entropy = 0;
    for (int i = 0; i < n; i++)
        if (p[i] > 0) entropy -= p[i] * log(p[i]);
    return entropy;
}

/* The error of a text after which every token is banned, or a logit is not a number. */
static inline ml_result no_token(int n_tokens, ml_error *error) {
    snprintf(error->text, sizeof error->text, "after %d tokens there is none that can follow", n_tokens);
    return error->code = ML_ERROR_NUMBER;
}

/* An index by these probabilities, which need not sum to 1; u is in [0, 1). */
static inline int32_t draw_from(const double *p, int n, double u) {
    double sum = 0;
    int32_t last = 0;
    for (int i = 0; i < n; i++) sum += p[i];
    u *= sum;
    for (int32_t i = 0; i < n; i++) {
        if (!(p[i] > 0)) continue;
        last = i;
        if ((u -= p[i]) < 0) break;
    }
    return last;
}

static inline double filter_temperature(const decoding *how) {
    return how->sampler.temperature > 0 ? (double)how->sampler.temperature : 1;
}

/* ---- filters ---- */

typedef struct ranked {
    double key;
    int32_t id;
} ranked;

static inline int ranked_compare(const void *a, const void *b) {
    const ranked *x = (const ranked *)a, *y = (const ranked *)b;
    return x->key < y->key ? -1 : x->key > y->key ? 1 : x->id < y->id ? -1 : x->id > y->id;
}

/* Drops all but the tokens whose surprise -log p is nearest to the entropy: as few as have this mass together. */
static inline void keep_typical(float *logits, int n, double temperature, double mass, double *p,
                                ranked *order) {
    double entropy, sum = 0;
    int kept = 0;
    softmax_of(logits, n, temperature, p);
    entropy = entropy_of(p, n);
    for (int32_t i = 0; i < n; i++) {
        order[i].key = p[i] > 0 ? fabs(-log(p[i]) - entropy) : HUGE_VAL;
        order[i].id = i;
    }
    qsort(order, (size_t)n, sizeof *order, ranked_compare);
    while (kept < n && (kept == 0 || sum < mass)) sum += p[order[kept++].id];
    for (int i = kept; i < n; i++) logits[order[i].id] = -INFINITY;
}

/* Drops the tokens below a probability, except the most likely. */
static inline void keep_likely(float *logits, int n, const double *p, double least) {
    double most = 0;
    for (int i = 0; i < n; i++) most = p[i] > most ? p[i] : most;
    for (int i = 0; i < n; i++)
        if (p[i] < least && p[i] < most) logits[i] = -INFINITY;
}

/* Drops what is below eta = min(epsilon, sqrt(epsilon) e^-entropy). */
static inline void keep_eta(float *logits, int n, double temperature, double epsilon, double *p) {
    softmax_of(logits, n, temperature, p);
    double eta = sqrt(epsilon) * exp(-entropy_of(p, n));
    keep_likely(logits, n, p, eta < epsilon ? eta : epsilon);
}

/* Mirostat 2 drops what is more surprising than `most` bits. p are the probabilities of what is left, among which the
   surprise of the token then drawn is measured. */
static inline void keep_unsurprising(float *logits, int n, double temperature, double most, double *p) {
    softmax_of(logits, n, temperature, p);
    keep_likely(logits, n, p, exp2(-most));
    softmax_of(logits, n, temperature, p);
}

/* `most` for the next token: it moves so that the surprise approaches tau. */
static inline double mirostat_next(double most, double tau, double rate, double p_drawn) {
    return most - rate * (-log2(p_drawn) - tau);
}

/* ---- against repetition ---- */

/* How many tokens before position `at` are equal to the last ones of the text; none of them is in `breaks`. */
static inline int repeated_before(const ml_tokens *text, int at, const unsigned char *breaks) {
    const int longest = 50; /* a penalty of 1.75^50 is out of reach of any logit */
    int m = 0;
    while (m < at && m < longest && text->ids[at - 1 - m] == text->ids[text->n - 1 - m] &&
           !(breaks && breaks[text->ids[at - 1 - m]]))
        m++;
    return m;
}

/* DRY: if a token followed the last m tokens before, m >= length, it costs multiplier * base^(m - length), for the
   largest such m. Neither it nor the repetition has a token of `breaks` (V; NULL: none), such as quotation marks.
   cost (n) is scratch. */
static inline void penalize_repetition(float *logits, int n, const ml_tokens *text, const decoding *how,
                                       const unsigned char *breaks, double *cost) {
    memset(cost, 0, (size_t)n * sizeof *cost);
    for (int at = 1; at < text->n; at++) {
        int32_t id = text->ids[at];
        if (id < 0 || id >= n || (breaks && breaks[id])) continue;
        int m = repeated_before(text, at, breaks);
        if (m < how->dry_length || m == 0) continue;
        double price = (double)how->dry * pow((double)how->dry_base, m - how->dry_length);
        if (price > cost[id]) cost[id] = price;
    }
    for (int i = 0; i < n; i++) logits[i] -= (float)cost[i];
}

/* Bans each token that would complete an n-gram that the text already has. */
static inline void ban_repeated(float *logits, int n, const ml_tokens *text, int size) {
    for (int at = size - 1; at < text->n; at++) {
        int32_t id = text->ids[at];
        if (id < 0 || id >= n) continue;
        int is_same = memcmp(text->ids + at - (size - 1), text->ids + text->n - (size - 1),
                             (size_t)(size - 1) * sizeof *text->ids) == 0;
        if (is_same) logits[id] = -INFINITY;
    }
}

/* ---- one token ---- */

/* Scratch and state of drawing; the arrays are (V). */
typedef struct decoding_work {
    double *p;
    ranked *order;
    ml_candidate *candidates;
    const unsigned char *breaks;
    double most; /* mirostat's, in bits; begins at 2 tau */
} decoding_work;

/* What also holds for the hypotheses of a beam search: DRY and no-repeat. */
static inline void avoid_repetition(const decoding *how, float *logits, int n, const ml_tokens *text,
                                    decoding_work *work) {
    if (how->dry > 0) penalize_repetition(logits, n, text, how, work->breaks, work->p);
    if (how->no_repeat > 0) ban_repeated(logits, n, text, how->no_repeat);
}

/* The next token by all steps that are on; logits (n) are overwritten. -1: none can be drawn. */
static inline int32_t draw_next(const decoding *how, float *logits, int n, const ml_tokens *text,
                                decoding_work *work) {
    double temperature = filter_temperature(how);
    avoid_repetition(how, logits, n, text, work);
    if (how->typical > 0) keep_typical(logits, n, temperature, (double)how->typical, work->p, work->order);
    if (how->eta > 0) keep_eta(logits, n, temperature, (double)how->eta, work->p);
    if (how->surprise > 0) keep_unsurprising(logits, n, temperature, work->most, work->p);
    int32_t id = ml_sampler_sample(&how->sampler, logits, n, text, work->candidates);
    if (how->surprise > 0 && id >= 0)
        work->most = mirostat_next(work->most, (double)how->surprise, (double)how->rate, work->p[id]);
    return id;
}

/* ---- whole continuations ---- */

/* The sum of the log-probabilities of n tokens, divided by ((5 + n) / 6)^penalty (Wu et al. 2016, "Google's Neural
   Machine Translation System"): 0 favors short texts. */
static inline double length_normalized(double sum, int n, double penalty) {
    return sum / pow((5 + n) / 6.0, penalty);
}

/* The largest cosine of x (dim) with a row of states (n, dim), all of length 1. */
static inline double largest_similarity(const float *states, int n, const float *x, int dim) {
    double most = -1;
    for (int i = 0; i < n; i++) {
        const float *row = states + (size_t)i * (size_t)dim;
        float dot = 0;
        for (int j = 0; j < dim; j++) dot += row[j] * x[j];
        if ((double)dot > most) most = (double)dot;
    }
    return most;
}

static inline double contrastive_score(double p, double similarity, double alpha) {
    return (1 - alpha) * p - alpha * similarity;
}

#endif
