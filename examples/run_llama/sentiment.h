/* The assignment's three ways to label sentences: prompting, fine-tuning with a classifier on top, and LoRA; and
   prediction with what the last two saved.

   Mode reference computes as the course does: LayerNorm, full attention, rows padded to the longest of their batch
   with padding that is attended to, the hidden state (or the logits) at the last position of the padded row. When
   prompting, a label's score is the sum of the log-probabilities of all its tokens at that one position. Mode llama
   computes as the model was trained: RMSNorm, causal, no padding, the last real token. When prompting, a label's
   score is its log-likelihood by the chain rule.

   Functions that can fail return 0 after saying why. */
#ifndef SENTIMENT_H
#define SENTIMENT_H

#include "minillama.h"
#include "reviews.h"

typedef struct sentiment_settings {
    const char *train, *dev, *test, *labels, *dev_out, *test_out, *score, *model_out;
    const char *test_gold; /* labels of `test` where those in it are placeholders, one per line; NULL: none */
    const char *adapter, *classifier; /* files to use: an adapter (NULL: none), and what a head is in */
    int reference, lora, prompting, predicting;
    int max_sentence_len, epochs, batch_size, lora_rank, threads, seed;
    float dropout, lr, lora_alpha, lora_scale; /* the last of `adapter`; 0: 1 */
    /* training; all 0 is how the reference trains */
    int eval_train; /* measure the training set after each epoch, too */
    ml_pooling pooling;
    ml_decay schedule;
    float warmup;                      /* share of all steps */
    float clip, head_lr, weight_decay; /* as in ml_adamw */
} sentiment_settings;

/* Training reads and measures a set more. */
static inline int is_training(const sentiment_settings *set) { return !set->prompting && !set->predicting; }

typedef struct sentiment_result {
    double accuracy, f1; /* of the labels that are known */
    double gold;         /* accuracy by the labels of --test_gold; -1: none were given */
} sentiment_result;

typedef struct sentiment {
    sentiment_settings set;
    ml_model *model;
    ml_lora *lora;
    ml_head *head;
    ml_trainer *trainer;
    ml_session *session; /* without a trainer */
    label_names labels;
    reviews train, dev, test;
    int *gold; /* (test.n) from set.test_gold, or NULL */
    int max_row;
    int32_t *tokens, *starts, *truth; /* a batch */
    float *log_probs;                 /* (rows of a batch, labels) */
    int *predicted;                   /* (rows of a set) */
} sentiment;

/* One run of one setting with one seed. Fine-tuning changes the model's weights. */
int sentiment_run(const sentiment_settings *set, ml_model *model, sentiment_result *dev,
                  sentiment_result *test);

/* The steps of a run, which the tests call one by one. */
int sentiment_read(sentiment *s);
sentiment_result sentiment_measure(const reviews *set, const int *predicted, int n_labels);
/* The same by other labels than the set's own: truth (set->n). */
sentiment_result sentiment_measure_by(const int *truth, const reviews *set, const int *predicted,
                                      int n_labels);
void sentiment_free(sentiment *s);

/* Rows order[from .. from + n - 1] of a set (order NULL: in the set's order) as a batch. With the reference's padding
   every row is as long as the longest. */
ml_batch sentiment_batch(sentiment *s, const reviews *set, const int *order, int from, int n);

int sentiment_best(const float *scores, int n); /* the index of the largest */

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

/* ---- finetune.c: a classifier on top, with all weights trained or with LoRA ---- */

/* Trains, keeps the state of the epoch with the best accuracy on dev in model_out, and restores it at the end; then
   model_out holds the model and its head, or the adapter and its head. */
int sentiment_finetune(sentiment *s);
/* Fills s->predicted for a set, by the trainer if there is one. */
int sentiment_predict(sentiment *s, const reviews *set, const char *what);

/* ---- prompt.c: the model is asked which label fits ---- */

/* The ids of each label by itself, as the reference encodes it: without bos. */
typedef struct label_ids {
    int32_t ids[REVIEWS_MAX_LABELS][32];
    int n[REVIEWS_MAX_LABELS];
} label_ids;

/* A text followed by each label, as tokens; the first `shared` tokens are the text's, the same in all of them. */
typedef struct label_rows {
    int32_t *ids[REVIEWS_MAX_LABELS];
    int n[REVIEWS_MAX_LABELS], shared;
} label_rows;

/* Fills s->predicted for a set. */
int sentiment_prompt(sentiment *s, const reviews *set, const char *question, const char *what);

/* " Is this movie awful, bad, or good? This movie is ", as the assignment asks it. */
void sentiment_question(const label_names *labels, char *to, size_t size);
int sentiment_label_ids(const sentiment *s, label_ids *to);
/* The most tokens that a label can add to a text, its space included; -1 after saying why. */
int sentiment_longest_label(const sentiment *s);
/* One batch as the reference prompts: scores (n, n_labels) from the logits at the last position of each padded
   row. */
int sentiment_prompt_batch(sentiment *s, const reviews *set, int from, int n, const label_ids *labels,
                           float *logits, float *scores);
/* 0 after saying why when the text does not fit; free the rows in any case. */
int sentiment_label_rows(const sentiment *s, const char *text, label_rows *rows);
void label_rows_free(label_rows *rows, int n_labels);
/* scores (n_labels): log p(label | text). The text is read once, and each label continues from there. */
int sentiment_likelihoods(sentiment *s, const label_rows *rows, double *scores);
/* *log_sum = log of the sum of exp(logits); 0 after saying that they are not finite. */
int sentiment_log_sum(const float *logits, int n, double *log_sum);

#endif
