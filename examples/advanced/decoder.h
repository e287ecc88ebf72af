/* Continues a prompt by any method of decoding.h: drawing token by token, contrastive search, or beam search.

   Each hypothesis of a beam search has a session, and branches off another by ml_session_copy. It copies only the
   keys and values in which the two differ, a few tokens as a rule, while saving and restoring would copy the whole
   text twice, and going back in a single session would compute it again. */
#ifndef DECODER_H
#define DECODER_H

#include <stdio.h>
#include "decoding.h"

typedef enum hypothesis_state { BEAM_FREE, BEAM_LIVE, BEAM_DONE } hypothesis_state;

typedef struct hypothesis {
    ml_session *session; /* holds the prompt and the new tokens, but not the one that ended the text */
    hypothesis_state state;
    float *log_p;      /* (V) of the next token */
    double sum, score; /* log p of the new tokens, and that normalized */
    int n_new;         /* with the one that ended the text */
} hypothesis;

typedef struct decoder {
    const ml_model *model;
    int n_ids, n_prompt;
    unsigned char *is_end, *breaks; /* (V) */
    int n_beams;
    hypothesis *beams; /* the first is the only one where no beams are searched */
    int best;          /* which of them has the result */
    decoding_work work;
    float *logits; /* (V) */
    float *states; /* contrastive: (max_seq_len + k, D), normalized; the last k are the candidates' */
    float *tried;  /* (k, V): their logits */
} decoder;

/* ---- making ---- */

/* Texts end with the tokenizer's ends and with bos; repetitions end with its line ends, quotes, colons and stars. */
static inline void decoder_mark(decoder *d, const ml_tokenizer *t) {
    size_t n;
    if (t->bos >= 0) d->is_end[t->bos] = 1;
    for (int i = 0; i < t->n_ends; i++) d->is_end[t->ends[i]] = 1;
    for (int32_t id = 0; id < d->n_ids; id++) {
        int has_begun = 1;
        const char *text = ml_tokenizer_decode_token(t, &has_begun, id, &n);
        for (size_t i = 0; text && i < n; i++) d->breaks[id] |= strchr("\n\":*", text[i]) && text[i];
    }
}

static inline void decoder_close(decoder *d) {
    for (int i = 0; d->beams && i < d->n_beams; i++) {
        ml_session_free(d->beams[i].session);
        free(d->beams[i].log_p);
    }
    free(d->beams), free(d->is_end), free(d->breaks), free(d->work.p), free(d->work.order);
    free(d->work.candidates), free(d->logits), free(d->states), free(d->tried);
    memset(d, 0, sizeof *d);
}

static inline ml_result decoder_arrays(decoder *d, const decoding *how, ml_error *error) {
    size_t vocab = (size_t)d->model->config.vocab_size, k = (size_t)how->candidates;
    size_t n_states = k ? (size_t)d->model->config.max_seq_len + k : 0, dim = (size_t)d->model->config.dim;
    d->is_end = (unsigned char *)calloc(vocab, 1);
    d->breaks = (unsigned char *)calloc(vocab, 1);
    d->work.p = (double *)calloc(vocab, sizeof *d->work.p);
    d->work.order = (ranked *)calloc(vocab, sizeof *d->work.order);
    d->work.candidates = (ml_candidate *)calloc(vocab, sizeof *d->work.candidates);
    d->logits = (float *)calloc(vocab, sizeof *d->logits);
    d->states = (float *)calloc(n_states * dim + 1, sizeof *d->states);
    d->tried = (float *)calloc(k * vocab + 1, sizeof *d->tried);
    d->beams = (hypothesis *)calloc((size_t)d->n_beams, sizeof *d->beams);
    int ok = d->is_end && d->breaks && d->work.p && d->work.order && d->work.candidates && d->logits &&
             d->states && d->tried && d->beams;
    for (int i = 0; ok && how->beams && i < d->n_beams; i++)
        ok = (d->beams[i].log_p = (float *)calloc(vocab, sizeof(float))) != NULL;
    if (ok) return ML_OK;
    snprintf(error->text, sizeof error->text, "not enough memory for %d beams", d->n_beams);
    return error->code = ML_ERROR_MEMORY;
}

/* A decoder for these settings; close it in any case. */
static inline ml_result decoder_open(decoder *d, const ml_model *model, const decoding *how, int n_threads,
                                     ml_error *error) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.threads.count = n_threads;
    const ml_tokenizer *t = model->tokenizer;
    memset(d, 0, sizeof *d);
    d->model = model;
    d->n_beams = how->beams ? how->beams : 1;
    d->n_ids = model->config.vocab_size;
    if (t && t->n_pieces < d->n_ids) d->n_ids = t->n_pieces;
    ml_result result = decoder_arrays(d, how, error);
    for (int i = 0; i < d->n_beams && !result; i++) {
        result = ml_session_new(model, &desc, &d->beams[i].session, error);
        desc.max_batch = 1; /* only the first reads prompts */
    }
    if (!result && t) decoder_mark(d, t);
    d->work.breaks = d->breaks;
    return result;
}

/* ---- token by token ---- */

static inline ml_result decode_by_drawing(decoder *d, const decoding *how, const ml_tokens *prompt, int most,
                                          ml_error *error) {
    ml_session *s = d->beams->session;
    const float *logits = NULL;
    d->work.most = 2 * (double)how->surprise;
    ml_result result = ml_session_eval(s, prompt->ids, prompt->n, &logits, error);
    while (!result && s->length < most) {
        ml_tokens text = {s->tokens, s->length};
        memcpy(d->logits, logits, (size_t)d->n_ids * sizeof *logits);
        int32_t id = draw_next(how, d->logits, d->n_ids, &text, &d->work);
        if (id < 0) return no_token(s->length, error);
        if (d->is_end[id]) break;
        result = ml_session_eval(s, &id, 1, s->length + 1 < most ? &logits : NULL, error);
    }
    return result;
}

/* ---- contrastive search ---- */

static inline void normalize(float *x, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    for (int i = 0; i < n && sum > 0; i++) x[i] /= sqrtf(sum);
}

/* The k most likely into order; fewer where fewer are possible. */
static inline int take_likeliest(const double *p, int n, int k, ranked *order) {
    int taken = 0;
    for (int32_t i = 0; i < n; i++) {
        if (!(p[i] > 0) || (taken == k && p[i] <= order[k - 1].key)) continue;
        int at = taken < k ? taken++ : k - 1;
        for (; at > 0 && order[at - 1].key < p[i]; at--) order[at] = order[at - 1];
        order[at].key = p[i];
        order[at].id = i;
    }
    return taken;
}

/* Reads each candidate after the text, and leaves the best there: *id, its state and its logits. The likeliest comes
   last, since it wins most often, and then need not be read again. */
static inline ml_result contrast(decoder *d, const decoding *how, int32_t *id, ml_error *error) {
    ml_session *s = d->beams->session;
    size_t dim = (size_t)d->model->config.dim, vocab = (size_t)d->model->config.vocab_size;
    int held = s->length, best = -1,
        n_tried = take_likeliest(d->work.p, d->n_ids, how->candidates, d->work.order);
    float *states = d->states + (size_t)d->model->config.max_seq_len * dim;
    double most = 0;
    ml_result result = ML_OK;
    for (int i = n_tried - 1; i >= 0 && !result; i--) {
        float *state = states + (size_t)i * dim;
        ml_outputs out = {NULL, 0, state, d->tried + (size_t)i * vocab};
        ml_session_truncate(s, held, NULL);
        result = ml_session_eval_outputs(s, &d->work.order[i].id, 1, &out, error);
        normalize(state, (int)dim);
        double similarity = largest_similarity(d->states, held, state, (int)dim);
        double score = contrastive_score(d->work.order[i].key, similarity, (double)how->similarity);
        if (best < 0 || score >= most) best = i, most = score;
    }
    if (result || best < 0) return result ? result : no_token(held, error);
    *id = d->work.order[best].id;
    if (best > 0) {
        ml_session_truncate(s, held, NULL);
        result = ml_session_eval(s, id, 1, NULL, error);
    }
    memcpy(d->states + (size_t)held * dim, states + (size_t)best * dim, dim * sizeof *states);
    memcpy(d->logits, d->tried + (size_t)best * vocab, (size_t)d->n_ids * sizeof *d->logits);
    return result;
}

static inline ml_result decode_by_contrast(decoder *d, const decoding *how, const ml_tokens *prompt, int most,
                                           ml_error *error) {
    ml_session *s = d->beams->session;
    int32_t last = prompt->n - 1, id = -1;
    int dim = d->model->config.dim;
    ml_outputs out = {&last, 1, d->states, d->tried};
    ml_result result = ml_session_eval_outputs(s, prompt->ids, prompt->n, &out, error);
    for (int i = 0; !result && i < prompt->n; i++) normalize(d->states + (size_t)i * (size_t)dim, dim);
    if (!result) memcpy(d->logits, d->tried, (size_t)d->n_ids * sizeof *d->logits);
    while (!result && s->length < most) {
        ml_tokens text = {s->tokens, s->length};
        avoid_repetition(how, d->logits, d->n_ids, &text, &d->work);
        softmax_of(d->logits, d->n_ids, filter_temperature(how), d->work.p);
        result = contrast(d, how, &id, error);
        if (!result && d->is_end[id]) return ml_session_truncate(s, s->length - 1, error);
    }
    return result;
}

/* ---- all ---- */

#include "beams.h"

/* Continues a prompt by at most max_new tokens, fewer where the context is full. The result stays in the decoder
   until the next call; the end of the text is not in it. */
static inline ml_result decoder_write(decoder *d, const decoding *how, const ml_tokens *prompt, int max_new,
                                      ml_tokens *written, ml_error *error) {
    int room = d->model->config.max_seq_len - prompt->n, most = prompt->n + (max_new < room ? max_new : room);
    ml_result result = ml_session_truncate(d->beams->session, 0, error);
    d->best = 0;
    d->n_prompt = prompt->n;
    if (!result && how->beams)
        result = decode_by_beams(d, how, prompt, most, error);
    else if (!result && how->candidates)
        result = decode_by_contrast(d, how, prompt, most, error);
    else if (!result)
        result = decode_by_drawing(d, how, prompt, most, error);
    const ml_session *s = d->beams[d->best].session;
    written->ids = s->tokens + prompt->n;
    written->n = result ? 0 : s->length - prompt->n;
    return result;
}

#endif
