/* Beam search, and in groups diverse beam search; a part of decoder.h. Finished texts keep their place in the beam
   and compete with the unfinished ones by length-normalized score. */
#ifndef BEAMS_H
#define BEAMS_H

/* A hypothesis and one more token, or a finished hypothesis as it is. */
typedef struct extension {
    double rank, sum; /* rank: the score, less what the diversity costs */
    int parent, slot; /* the hypothesis that it continues, and where it goes */
    int32_t id;       /* -1: a finished one */
} extension;

/* Puts an extension into the `width` best, of which there are n; returns how many there are then. */
static inline int keep_best(extension *best, int n, int width, extension more) {
    if (n == width && more.rank <= best[n - 1].rank) return n;
    int at = n < width ? n++ : n - 1;
    for (; at > 0 && best[at - 1].rank < more.rank; at--) best[at] = best[at - 1];
    best[at] = more;
    return n;
}

/* The best extensions of a group's hypotheses. Each occurrence of a token in `taken` makes it costlier. */
static inline int choose_extensions(const decoder *d, const decoding *how, const hypothesis *group, int width,
                                    const int32_t *taken, int n_taken, extension *best) {
    int n = 0;
    for (int i = 0; i < width; i++) {
        const hypothesis *h = &group[i];
        extension as_it_is = {h->score, h->sum, i, -1, -1};
        if (h->state == BEAM_DONE) n = keep_best(best, n, width, as_it_is);
        if (h->state != BEAM_LIVE) continue;
        double unit = length_normalized(1, h->n_new + 1, (double)how->length_penalty);
        for (int32_t id = 0; id < d->n_ids; id++) {
            double sum = h->sum + (double)h->log_p[id];
            extension e = {sum * unit, sum, i, -1, id};
            if (!(sum > -HUGE_VAL) || (n == width && e.rank <= best[n - 1].rank)) continue;
            for (int k = 0; k < n_taken; k++) e.rank -= taken[k] == id ? (double)how->diversity * unit : 0;
            n = keep_best(best, n, width, e);
        }
    }
    return n;
}

/* Gives each extension a place: the first of a parent its parent's, and the others those of hypotheses that nothing
   continues, which become copies of the parent. */
static inline ml_result place_extensions(hypothesis *group, int width, extension *best, int n,
                                         ml_error *error) {
    unsigned char is_used[MAX_BEAMS] = {0};
    int free_slot = 0;
    ml_result result = ML_OK;
    for (int i = 0; i < n; i++) {
        best[i].slot = is_used[best[i].parent] ? -1 : best[i].parent;
        is_used[best[i].parent] = 1;
    }
    for (int i = 0; i < n && !result; i++) {
        if (best[i].slot >= 0) continue;
        while (is_used[free_slot]) free_slot++;
        is_used[free_slot] = 1;
        best[i].slot = free_slot;
        group[free_slot].n_new = group[best[i].parent].n_new;
        result = ml_session_copy(group[free_slot].session, group[best[i].parent].session, error);
    }
    for (int i = 0; i < width; i++)
        if (!is_used[i]) group[i].state = BEAM_FREE;
    return result;
}

/* log_p (V) of what follows: repetitions cost, but do not change the other tokens. */
static inline void predict_next(decoder *d, const decoding *how, hypothesis *h, const float *logits) {
    ml_tokens text = {h->session->tokens, h->session->length};
    double most = -HUGE_VAL, sum = 0;
    for (int i = 0; i < d->n_ids; i++) most = (double)logits[i] > most ? (double)logits[i] : most;
    for (int i = 0; i < d->n_ids; i++) sum += exp((double)logits[i] - most);
    for (int i = 0; i < d->n_ids; i++) h->log_p[i] = (float)((double)logits[i] - most - log(sum));
    avoid_repetition(how, h->log_p, d->n_ids, &text, &d->work);
}

static inline ml_result extend(decoder *d, const decoding *how, hypothesis *h, const extension *e,
                               ml_error *error) {
    const float *logits;
    if (e->id < 0) return ML_OK;
    h->sum = e->sum;
    h->n_new++;
    h->score = length_normalized(h->sum, h->n_new, (double)how->length_penalty);
    h->state = d->is_end[e->id] ? BEAM_DONE : BEAM_LIVE;
    if (h->state == BEAM_DONE) return ML_OK;
    ml_result result = ml_session_eval(h->session, &e->id, 1, &logits, error);
    if (!result) predict_next(d, how, h, logits);
    return result;
}

/* One token more for each group; *n_live is how many hypotheses are unfinished then. */
static inline ml_result beam_step(decoder *d, const decoding *how, int *n_live, ml_error *error) {
    int n_groups = how->groups > 1 ? how->groups : 1, width = d->n_beams / n_groups, n_taken = 0;
    int32_t taken[MAX_BEAMS];
    extension best[MAX_BEAMS];
    ml_result result = ML_OK;
    *n_live = 0;
    for (int g = 0; g < n_groups && !result; g++) {
        hypothesis *group = d->beams + g * width;
        int n = choose_extensions(d, how, group, width, taken, n_taken, best);
        result = place_extensions(group, width, best, n, error);
        for (int i = 0; i < n && !result; i++) {
            result = extend(d, how, &group[best[i].slot], &best[i], error);
            *n_live += group[best[i].slot].state == BEAM_LIVE;
            if (best[i].id >= 0) taken[n_taken++] = best[i].id;
        }
    }
    return result;
}

/* Finds the hypothesis with the highest score, without what the diversity cost; 0 if there is none. */
static inline int best_hypothesis(decoder *d) {
    int n = 0;
    for (int i = 0; i < d->n_beams; i++) {
        if (d->beams[i].state == BEAM_FREE || (n++ && d->beams[i].score <= d->beams[d->best].score)) continue;
        d->best = i;
    }
    return n;
}

static inline ml_result decode_by_beams(decoder *d, const decoding *how, const ml_tokens *prompt, int most,
                                        ml_error *error) {
    int n_groups = how->groups > 1 ? how->groups : 1, width = d->n_beams / n_groups, n_live = 1;
    hypothesis *first = d->beams;
    const float *logits;
    ml_result result = ml_session_eval(first->session, prompt->ids, prompt->n, &logits, error);
    for (int i = 0; i < d->n_beams && !result; i++) {
        d->beams[i].state = i % width ? BEAM_FREE : BEAM_LIVE; /* one for each group to begin with */
        d->beams[i].sum = d->beams[i].score = 0;
        d->beams[i].n_new = 0;
        if (i && d->beams[i].state == BEAM_LIVE)
            result = ml_session_copy(d->beams[i].session, first->session, error);
        if (d->beams[i].state == BEAM_LIVE) predict_next(d, how, &d->beams[i], logits);
    }
    int n = prompt->n;
    for (; n < most && n_live && !result; n++) result = beam_step(d, how, &n_live, error);
    return result || best_hypothesis(d) ? result : no_token(n - 1, error);
}

#endif
