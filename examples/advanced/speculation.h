/* Speculative decoding (Leviathan et al. 2022, arXiv 2211.17192): a cheap draft proposes tokens, and the target reads
   them in one pass, which gives its own distribution p after each. A proposal x, drawn from q, is accepted with
   probability min(1, p(x) / q(x)); instead of the first that is not, a token is drawn from max(0, p - q). What is
   written is distributed as if the target had drawn it alone; greedy (both distributions have one token) it is the
   same text.

   The draft is a smaller model with the same tokenizer, or a lookup in the text so far (prompt lookup, Saxena 2023):
   what followed the last tokens before. That is a q with one token, too, so the same rule applies. */
#ifndef SPECULATION_H
#define SPECULATION_H

#include <stdio.h>
#include "decoding.h"

enum { MAX_DRAFT = 32 };

typedef struct speculation {
    ml_session *target, *draft; /* draft NULL: lookup */
    int n_draft;                /* most tokens proposed at once */
    int n_gram;                 /* lookup: how many tokens must have occurred before */
    float temperature;          /* 0: greedy */
    ml_random *random;
    int n_ids;     /* tokens that may be drawn */
    int32_t *text; /* (max_seq_len + 1): prompt and new tokens, of which the target has not read the last */
    int n_text;
    double *p, *q;                         /* (V), (MAX_DRAFT, V) */
    float *logits;                         /* (MAX_DRAFT + 1, V) */
    long n_passes, n_proposed, n_accepted; /* for statistics */
} speculation;

/* ---- the rule ---- */

/* Whether a proposal is accepted; u in [0, 1). */
static inline int accepts(const double *p, const double *q, int32_t id, double u) {
    return u * q[id] < p[id];
}

/* p <- max(0, p - q): what to draw from instead of a proposal that was not accepted. */
static inline void subtract(double *p, const double *q, int n) {
    for (int i = 0; i < n; i++) p[i] = p[i] > q[i] ? p[i] - q[i] : 0;
}

/* draw_from, without the sums where there is one token */
static inline int32_t draw_token(speculation *s, const double *p) {
    int32_t id = 0;
    if (s->temperature > 0) return draw_from(p, s->n_ids, (double)ml_random_uniform(s->random));
    while (id + 1 < s->n_ids && !(p[id] > 0)) id++;
    return id;
}

/* ---- drafts ---- */

/* Up to `most` tokens that followed the last n_gram tokens when these occurred last; returns how many. */
static inline int look_up(const int32_t *text, int n, int n_gram, int most, int32_t *found) {
    for (int at = n - 1; at >= n_gram; at--) { /* the occurrence ends before `at` */
        if (memcmp(text + at - n_gram, text + n - n_gram, (size_t)n_gram * sizeof *text) != 0) continue;
        int count = n - at < most ? n - at : most;
        memcpy(found, text + at, (size_t)count * sizeof *text);
        return count;
    }
    return 0;
}

/* Proposals of a lookup, with their distributions. */
static inline int propose_by_lookup(speculation *s, int most, int32_t *proposed) {
    int count = look_up(s->text, s->n_text, s->n_gram, most, proposed);
    for (int i = 0; i < count; i++) {
        double *q = s->q + (size_t)i * (size_t)s->n_ids;
        memset(q, 0, (size_t)s->n_ids * sizeof *q);
        if (proposed[i] >= s->n_ids) return i;
        q[proposed[i]] = 1;
    }
    return count;
}

/* Proposals of the draft model, which first reads what it has not yet. */
static inline ml_result propose_by_model(speculation *s, int most, int32_t *proposed, ml_error *error) {
    const float *logits = NULL;
    ml_session *d = s->draft;
    ml_result result = ml_session_eval(d, s->text + d->length, s->n_text - d->length, &logits, error);
    for (int i = 0; i < most && !result; i++) {
        double *q = s->q + (size_t)i * (size_t)s->n_ids;
        softmax_of(logits, s->n_ids, (double)s->temperature, q);
        proposed[i] = draw_token(s, q);
        if (i + 1 < most) result = ml_session_eval(d, &proposed[i], 1, &logits, error);
    }
    return result;
}

/* ---- a step ---- */

/* The target reads what it has not yet, and the proposals: logits of the last text token and of each proposal. */
static inline ml_result check_proposals(speculation *s, const int32_t *proposed, int n, ml_error *error) {
    int32_t select[MAX_DRAFT + 1];
    int held = s->target->length, n_unread = s->n_text - held;
    ml_outputs out = {select, n + 1, NULL, s->logits};
    memcpy(s->text + s->n_text, proposed, (size_t)n * sizeof *proposed);
    for (int i = 0; i <= n; i++) select[i] = n_unread - 1 + i;
    return ml_session_eval_outputs(s->target, s->text + held, n_unread + n, &out, error);
}

/* Appends the proposals that are accepted and one token more; returns how many are, or -1 without a token. */
static inline int accept_proposals(speculation *s, const int32_t *proposed, int n) {
    size_t vocab = (size_t)s->target->model->config.vocab_size;
    int i = 0;
    for (;; i++) {
        if (!softmax_of(s->logits + (size_t)i * vocab, s->n_ids, (double)s->temperature, s->p)) return -1;
        if (i == n) break;
        const double *q = s->q + (size_t)i * (size_t)s->n_ids;
        if (accepts(s->p, q, proposed[i], (double)ml_random_uniform(s->random))) continue;
        subtract(s->p, q, s->n_ids);
        break;
    }
    s->n_text += i; /* check_proposals has put them there */
    s->text[s->n_text++] = draw_token(s, s->p);
    return i;
}

/* Appends between 1 and n_draft + 1 tokens to the text, or *n_new is 0: the context is full. */
static inline ml_result speculate(speculation *s, int *n_new, ml_error *error) {
    int32_t proposed[MAX_DRAFT];
    int before = s->n_text, most = s->n_draft, n = 0, room = s->target->max_seq_len - s->n_text;
    ml_result result = ML_OK;
    *n_new = 0;
    if (room < 0) return ML_OK;
    if (s->draft && s->draft->max_seq_len - s->n_text + 1 < room)
        room = s->draft->max_seq_len - s->n_text + 1;
    if (most > room) most = room > 0 ? room : 0;
    if (!s->target->length) most = 0; /* reads the prompt as the target alone would */
    if (!s->draft)
        n = propose_by_lookup(s, most, proposed);
    else if (most > 0)
        result = propose_by_model(s, n = most, proposed, error);
    if (!result) result = check_proposals(s, proposed, n, error);
    if (result) return result;
    int n_accepted = accept_proposals(s, proposed, n);
    if (n_accepted < 0) return no_token(s->n_text, error);
    s->n_accepted += n_accepted;
    s->n_proposed += n;
    s->n_passes++;
    *n_new = s->n_text - before;
    int kept = s->n_text - 1; /* the last is only drawn */
    if (s->draft && s->draft->length > kept) ml_session_truncate(s->draft, kept, NULL);
    return ml_session_truncate(s->target, kept, error);
}

/* ---- making ---- */

/* Whether an id means the same to both; the sentence says where they differ. */
static inline ml_result same_tokens(const ml_model *target, const ml_model *draft, ml_error *error) {
    const ml_tokenizer *a = target->tokenizer, *b = draft->tokenizer;
    int na = a ? a->n_pieces : target->config.vocab_size, nb = b ? b->n_pieces : draft->config.vocab_size,
        at = 0;
    error->text[0] = 0;
    if (na != nb || !a != !b)
        snprintf(error->text, sizeof error->text,
                 "the models have different tokenizers, of %d and of %d pieces: a draft needs the target's",
                 na, nb);
    for (; a && b && !*error->text && at < na; at++) {
        size_t n = 0, m = 0;
        const char *x = ml_tokenizer_piece(a, at, &n, NULL, NULL),
                   *y = ml_tokenizer_piece(b, at, &m, NULL, NULL);
        if (!x || !y || n != m || memcmp(x, y, n) != 0)
            snprintf(error->text, sizeof error->text,
                     "the models have different tokenizers: piece %d is \"%.*s\" and \"%.*s\"", at,
                     (int)(n < 40 ? n : 40), x ? x : "", (int)(m < 40 ? m : 40), y ? y : "");
    }
    return error->code = *error->text ? ML_ERROR_MISMATCH : ML_OK;
}

static inline void speculation_close(speculation *s) {
    ml_session_free(s->target), ml_session_free(s->draft);
    free(s->text), free(s->p), free(s->q), free(s->logits);
    memset(s, 0, sizeof *s);
}

/* draft NULL: lookup. Then the caller sets n_draft and so on; close it in any case. */
static inline ml_result speculation_open(speculation *s, const ml_model *target, const ml_model *draft,
                                         int n_threads, ml_error *error) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.threads.count = n_threads;
    size_t vocab = (size_t)target->config.vocab_size, length = (size_t)target->config.max_seq_len;
    memset(s, 0, sizeof *s);
    ml_result result = draft ? same_tokens(target, draft, error) : ML_OK;
    if (!result) result = ml_session_new(target, &desc, &s->target, error);
    if (!result && draft) result = ml_session_new(draft, &desc, &s->draft, error);
    if (result) return result;
    s->n_ids = target->tokenizer ? target->tokenizer->n_pieces : target->config.vocab_size;
    s->text = (int32_t *)calloc(length + MAX_DRAFT + 2, sizeof *s->text);
    s->p = (double *)calloc(vocab, sizeof *s->p);
    s->q = (double *)calloc(MAX_DRAFT * vocab, sizeof *s->q);
    s->logits = (float *)calloc((MAX_DRAFT + 1) * vocab, sizeof *s->logits);
    if (s->text && s->p && s->q && s->logits) return ML_OK;
    snprintf(error->text, sizeof error->text, "not enough memory for a draft of %d tokens", (int)MAX_DRAFT);
    return error->code = ML_ERROR_MEMORY;
}

/* Begins a text with a prompt. The target reads it with the first proposals. ML_ERROR_CONTEXT if it does not fit. */
static inline ml_result speculation_begin(speculation *s, const ml_tokens *prompt, ml_error *error) {
    int most = s->target->max_seq_len;
    if (s->draft && s->draft->max_seq_len < most) most = s->draft->max_seq_len;
    if (prompt->n > most) {
        snprintf(error->text, sizeof error->text, "a prompt of %d tokens does not fit the context of %d",
                 prompt->n, most);
        return error->code = ML_ERROR_CONTEXT;
    }
    s->n_text = prompt->n;
    memcpy(s->text, prompt->ids, (size_t)prompt->n * sizeof *s->text);
    if (s->draft) ml_session_truncate(s->draft, 0, NULL);
    return ml_session_truncate(s->target, 0, error);
}

#endif
