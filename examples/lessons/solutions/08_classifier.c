/* Exercise 08_classifier, the assignment's part "classifier": what a Llama needs to label a sentence (lesson 8).
   The state of the last token, dropout while it trains, a linear layer, log-softmax. Checked by hand, and against the
   header's ml_head_eval on sentences of different lengths. */
#include "examples/lessons/lesson.h"
#include "minillama.h"

enum { CLASSES = 3, DIM = 128, ROWS = 3, MOST = 64 };

/* pooled (DIM): the hidden state of the last token. hidden (n, DIM) */
static void pool_last(float *pooled, const float *hidden, int n) {
    /* your turn: copy the row of the last of n tokens */
    for (int i = 0; i < DIM; i++) pooled[i] = hidden[(n - 1) * DIM + i];
    /* end */
}

/* Each of n numbers becomes 0 with probability p; the others grow so that the expected value stays. */
static void dropout(float *x, int n, float p, ml_random *random) {
    /* your turn: ml_random_uniform(random) is in [0, 1) */
    for (int i = 0; i < n; i++) x[i] = ml_random_uniform(random) < p ? 0 : x[i] / (1 - p);
    /* end */
}

/* log_probs (CLASSES) = log softmax(weight (CLASSES, DIM) pooled (DIM) + bias (CLASSES)) */
static void classify(float *log_probs, const float *pooled, const float *weight, const float *bias) {
    /* your turn: subtract the largest logit before you take exponentials: they overflow from 89 on */
    float largest, sum = 0;
    for (int c = 0; c < CLASSES; c++) {
        log_probs[c] = bias[c];
        for (int i = 0; i < DIM; i++) log_probs[c] += weight[c * DIM + i] * pooled[i];
    }
    largest = fmaxf(log_probs[0], fmaxf(log_probs[1], log_probs[2]));
    for (int c = 0; c < CLASSES; c++) sum += expf(log_probs[c] - largest);
    for (int c = 0; c < CLASSES; c++) log_probs[c] -= largest + logf(sum);
    /* end */
}

/* ---- checks ---- */

static void check_dropout(void) {
    enum { N = 20000 };
    static float x[N];
    ml_random random;
    double sum = 0;
    int zeros = 0, other = 0;
    ml_random_seed(&random, 3);
    for (int i = 0; i < N; i++) x[i] = 2;
    dropout(x, N, 0.25f, &random);
    for (int i = 0; i < N; i++) {
        zeros += x[i] == 0;
        other += x[i] != 0 && fabsf(x[i] - 2 / 0.75f) > 1e-5f;
        sum += (double)x[i];
    }
    /* A share of n has the standard deviation sqrt(p (1 - p) / n) = 0.003: five of them. */
    check_near((double)zeros / N, 0.25, 0.016, "dropout: share of zeros, p being 0.25");
    check(other == 0, "dropout: %d numbers are neither 0 nor 2 / 0.75, wanted 0", other);
    check_near(sum / N, 2, 0.05, "dropout: the mean of numbers 2");
}

static void check_classify(void) {
    static float pooled[DIM], weight[CLASSES * DIM];
    const float bias[] = {0, 0.6931472f, 0}, far[] = {0, 200, 100}; /* 0, log 2, 0: odds of 1 : 2 : 1 */
    float log_probs[CLASSES] = {0};
    classify(log_probs, pooled, weight, bias);
    check_near(exp((double)log_probs[1]), 0.5, 1e-6, "classify: odds of 1 : 2 : 1, the second's probability");
    classify(log_probs, pooled, weight, far);
    check_near((double)log_probs[0], -200, 1e-3, "classify: logits 0, 200, 100, the first's log-probability");
}

static void check_sentences(const ml_model *model, ml_session *session) {
    static const char *const texts[ROWS] = {"It was fun.", "Tom did not like the long and sad film.", "No!"};
    static float hidden[MOST * DIM];
    float pooled[DIM] = {0}, got[CLASSES] = {0}, wanted[CLASSES];
    ml_random random;
    ml_head *head;
    ml_error e;
    ml_random_seed(&random, 5);
    if (ml_head_create(model, &(ml_head_create_desc){.n_classes = CLASSES, .random = &random}, &head, &e)) {
        check(0, "%s", e.text);
        return;
    }
    for (int r = 0; r < ROWS; r++) {
        ml_tokens t;
        char what[96];
        ml_session_encode(session, texts[r], ML_ADD_SPECIAL, &t, &e);
        ml_batch batch = {.tokens = t.ids, .n_tokens = t.n};
        ml_session_eval_batch(session, &batch, &(ml_outputs){.hidden = hidden}, &e);
        pool_last(pooled, hidden, t.n);
        classify(got, pooled, (const float *)head->weight.data, (const float *)head->bias.data);
        ml_head_eval(head, session, &batch, wanted, &e);
        for (int c = 0; c < CLASSES; c++) {
            snprintf(what, sizeof what, "\"%s\", class %d", texts[r], c);
            check_near((double)got[c], (double)wanted[c], 1e-4, what);
        }
    }
    ml_head_free(head);
}

int main(void) {
    ml_model *model;
    ml_session *session;
    ml_error e;
    check_dropout();
    check_classify();
    if (ml_model_load("examples/models/stories.gguf", NULL, &model, &e) ||
        ml_session_new(model, NULL, &session, &e))
        return printf("%s\n", e.text), 1;
    check_sentences(model, session);
    ml_session_free(session), ml_model_free(model);
    return lesson_end();
}
