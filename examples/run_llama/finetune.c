/* A classifier on top of the model, trained with all of the model's weights or with LoRA, or loaded. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include "sentiment.h"
#include "../common/file.h"
#include "../common/progress.h"
#include "../common/report.h"

/* s->log_probs of a batch. */
static int classify(sentiment *s, const ml_batch *batch) {
    ml_error error;
    ml_result result = s->trainer ? ml_trainer_eval(s->trainer, batch, s->log_probs, NULL, &error)
                                  : ml_head_eval(s->head, s->session, batch, s->log_probs, &error);
    return succeeded(result, &error);
}

int sentiment_predict(sentiment *s, const reviews *set, const char *what) {
    double began = seconds_now();
    for (int from = 0; from < set->n; from += s->set.batch_size) {
        int n = min_int(s->set.batch_size, set->n - from);
        ml_batch batch = sentiment_batch(s, set, NULL, from, n);
        batch.labels = NULL;
        if (!classify(s, &batch)) return 0;
        for (int i = 0; i < n; i++)
            s->predicted[from + i] = sentiment_best(s->log_probs + i * s->labels.n, s->labels.n);
        progress_bar(what, from + n, set->n, began);
    }
    return 1;
}

/* Fisher & Yates 1938, "Statistical Tables for Biological, Agricultural and Medical Research". */
static void shuffle(int *order, int n, ml_random *random) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(ml_random_u64(random) % (uint64_t)(i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

/* One pass over the training set in a new order. *loss: the mean over the batches. */
static int train_epoch(sentiment *s, ml_random *random, int *order, int epoch, double *loss) {
    int n_batches = 0;
    double began = seconds_now();
    char what[32];
    snprintf(what, sizeof what, "train-%d", epoch);
    shuffle(order, s->train.n, random);
    *loss = 0;
    for (int from = 0; from < s->train.n; from += s->set.batch_size) {
        int n = min_int(s->set.batch_size, s->train.n - from);
        ml_batch batch = sentiment_batch(s, &s->train, order, from, n);
        ml_error error;
        float batch_loss;
        if (!succeeded(ml_trainer_backward(s->trainer, &batch, NULL, &batch_loss, &error), &error) ||
            !succeeded(ml_trainer_step(s->trainer, &error), &error))
            return 0;
        *loss += (double)batch_loss;
        n_batches++;
        progress_bar(what, from + n, s->train.n, began);
    }
    *loss /= n_batches;
    return 1;
}

static int make_head(sentiment *s, ml_random *random) {
    ml_head_create_desc desc = {0};
    ml_error error;
    desc.n_classes = s->labels.n;
    desc.labels = s->labels.name;
    desc.pooling = s->set.pooling;
    desc.random = random;
    return succeeded(ml_head_create(s->model, &desc, &s->head, &error), &error);
}

static int make_lora(sentiment *s, ml_random *random) {
    ml_lora_create_desc desc = {0};
    ml_error error;
    desc.rank = s->set.lora_rank;
    desc.alpha = s->set.lora_alpha;
    desc.random = random;
    return succeeded(ml_lora_create(s->model, &desc, &s->lora, &error), &error);
}

static ml_schedule schedule_of(const sentiment *s) {
    ml_schedule schedule = {0};
    double batches = ceil((double)s->train.n / s->set.batch_size);
    schedule.decay = s->set.schedule;
    schedule.total_steps = (int)fmin(batches * s->set.epochs, INT_MAX);
    schedule.warmup_steps = (int)((double)s->set.warmup * schedule.total_steps + 0.5);
    return schedule;
}

static int make_trainer(sentiment *s) {
    ml_trainer_desc desc = {0};
    ml_random random;
    ml_error error;
    ml_random_seed(&random, (uint64_t)s->set.seed);
    if (!make_head(s, &random) || (s->set.lora && !make_lora(s, &random))) return 0;
    desc.max_row = s->max_row;
    desc.max_rows = s->set.batch_size;
    desc.max_tokens = s->max_row * s->set.batch_size;
    desc.head = s->head;
    desc.lora = s->lora;
    desc.dropout = s->set.dropout;
    desc.seed = (uint64_t)s->set.seed;
    desc.adamw.lr = s->set.lr;
    desc.adamw.head_lr = s->set.head_lr;
    desc.adamw.clip = s->set.clip;
    desc.adamw.weight_decay = s->set.weight_decay;
    desc.schedule = schedule_of(s);
    desc.threads.count = s->set.threads;
    return succeeded(ml_trainer_new(s->model, &desc, &s->trainer, &error), &error);
}

typedef struct best_epoch {
    int epoch;
    double accuracy;  /* on dev */
    uint64_t mark[3]; /* in the checkpoint's progress: whose it is */
} best_epoch;

/* The state, with a mark that a run with other data or another seed would not make. */
static int save_state(sentiment *s, const best_epoch *best) {
    ml_error error;
    memcpy(s->trainer->progress, best->mark, sizeof best->mark);
    return loaded(s->set.model_out, ml_trainer_save(s->trainer, s->set.model_out, &error), &error);
}

/* Trains for one epoch and measures; saves the state if it is the best so far. */
static int do_epoch(sentiment *s, ml_random *random, int *order, int epoch, best_epoch *best) {
    double loss;
    char on_train[64] = "";
    if (!train_epoch(s, random, order, epoch, &loss)) return 0;
    if (s->set.eval_train) {
        if (!sentiment_predict(s, &s->train, "eval train")) return 0;
        snprintf(on_train, sizeof on_train, ", train acc :: %.3f",
                 sentiment_measure(&s->train, s->predicted, s->labels.n).accuracy);
    }
    if (!sentiment_predict(s, &s->dev, "eval dev")) return 0;
    sentiment_result on_dev = sentiment_measure(&s->dev, s->predicted, s->labels.n);
    if (on_dev.accuracy > best->accuracy || !reviews_have_labels(&s->dev)) {
        best->accuracy = on_dev.accuracy;
        best->epoch = epoch;
        best->mark[0] = (uint64_t)s->set.seed, best->mark[1] = (uint64_t)epoch;
        memcpy(&best->mark[2], &loss, sizeof loss);
        if (!save_state(s, best)) return 0;
    }
    printf("epoch %d: train loss :: %.3f%s, dev acc :: %.3f, dev f1 :: %.3f\n", epoch, loss, on_train,
           on_dev.accuracy, on_dev.f1);
    fflush(stdout);
    return 1;
}

/* The best epoch's weights again; and model_out, until then a checkpoint with all that a trainer needs, becomes a
   file to load: the model or the adapter (in a .pt the model with it), and the head. */
static int keep_best(sentiment *s, const best_epoch *best) {
    const char *path = s->set.model_out;
    ml_save_desc desc = {format_of(path), ML_TYPE_NONE, NULL, s->head};
    ml_error error;
    if (!loaded(path, ml_trainer_restore(s->trainer, path, &error), &error)) return 0;
    if (memcmp(s->trainer->progress, best->mark, sizeof best->mark) != 0)
        return complain("%s: another program wrote it meanwhile; give each its own --state", path);
    return loaded(path,
                  s->lora ? ml_lora_save(s->lora, s->model, path, &desc, &error)
                          : ml_model_save(s->model, path, &desc, &error),
                  &error);
}

int sentiment_finetune(sentiment *s) {
    int *order = (int *)malloc((size_t)s->train.n * sizeof *order);
    best_epoch best = {0, -1, {0, 0, 0}};
    ml_random random;
    int ok = order ? fits_format(s->set.model_out, s->model, s->set.pooling, s->set.lora) && make_trainer(s)
                   : no_memory("an epoch");
    for (int i = 0; ok && i < s->train.n; i++) order[i] = i;
    ml_random_seed(&random, (uint64_t)s->set.seed + 1);
    for (int epoch = 0; ok && epoch < s->set.epochs; epoch++) ok = do_epoch(s, &random, order, epoch, &best);
    free(order);
    if (!ok || !keep_best(s, &best)) return 0;
    if (reviews_have_labels(&s->dev))
        printf("best epoch %d, dev acc %.3f, is kept\n", best.epoch, best.accuracy);
    else
        printf("epoch %d is kept, the last: the labels of --dev are not known\n", best.epoch);
    printf("load model from %s\n", s->set.model_out);
    if (format_of(s->set.model_out) == ML_PYTORCH)
        fprintf(stderr, "%s is a whole model: use it as --pretrained-model-path, with --tokenizer\n",
                s->set.model_out);
    return 1;
}
