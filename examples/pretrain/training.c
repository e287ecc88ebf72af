/* Steps, and what is shown and saved in between. */
#include <signal.h>
#include "pretrain.h"
#include "../common/progress.h"
#include "../common/types.h"

static volatile sig_atomic_t interrupted; /* by the signal of this number */

void stop_training(int number) { interrupted = number; }
int stopped_by(void) { return interrupted; }

/* Rows from random positions. The random state is in the trainer's progress, and so in its checkpoints. */
static ml_batch next_batch(run *r) {
    ml_random *random = (ml_random *)(void *)r->trainer->progress;
    ml_batch batch = {0};
    int context = r->set.context;
    for (int row = 0; row < r->set.rows; row++) {
        size_t at = (size_t)(ml_random_u64(random) % (r->train.n - (size_t)context));
        memcpy(r->tokens + row * context, r->train.ids + at, (size_t)context * sizeof *r->tokens);
        memcpy(r->targets + row * context, r->train.ids + at + 1, (size_t)context * sizeof *r->targets);
        r->starts[row + 1] = (row + 1) * context;
    }
    batch.tokens = r->tokens;
    batch.targets = r->targets;
    batch.row_start = r->starts;
    batch.n_rows = r->set.rows;
    batch.n_tokens = r->set.rows * context;
    return batch;
}

/* A place in the held-out text: the token `at` of all, which is in this text. */
typedef struct place {
    size_t at, text;
} place;

/* The last token that is predicted from a text: the bos of the next, which says that it ended, or else its own
   last. */
static size_t last_target(const corpus *c, size_t text, int32_t bos) {
    if (text + 1 == c->n_texts) return c->n - 1;
    size_t next = c->starts[text + 1];
    return c->ids[next] == bos ? next : next - 1;
}

/* The next rows of the held-out text: each text by itself, in rows of `context` tokens. Without a row at the end. */
static ml_batch next_validation(run *r, place *from) {
    const corpus *c = &r->valid;
    ml_batch batch = {0};
    while (from->text < c->n_texts && batch.n_rows < r->set.rows) {
        size_t n = last_target(c, from->text, r->model->tokenizer->bos) - from->at;
        if (!n) {
            if (++from->text < c->n_texts) from->at = c->starts[from->text];
            continue;
        }
        if (n > (size_t)r->set.context) n = (size_t)r->set.context;
        memcpy(r->tokens + batch.n_tokens, c->ids + from->at, n * sizeof *r->tokens);
        memcpy(r->targets + batch.n_tokens, c->ids + from->at + 1, n * sizeof *r->targets);
        batch.n_tokens += (int)n;
        r->starts[++batch.n_rows] = batch.n_tokens;
        from->at += n;
    }
    batch.tokens = r->tokens;
    batch.targets = r->targets;
    batch.row_start = r->starts;
    batch.divisor = 1;
    return batch;
}

int validate(run *r, double *per_token, double *per_byte) {
    double sum = 0;
    size_t counted = 0;
    place from = {0, 0};
    for (;;) {
        ml_batch batch = next_validation(r, &from);
        if (!batch.n_rows) break;
        ml_error error;
        float loss;
        if (!succeeded(ml_trainer_eval(r->trainer, &batch, NULL, &loss, &error), &error)) return 0;
        counted += (size_t)batch.n_tokens;
        sum += (double)loss;
    }
    *per_token = sum / (double)(counted ? counted : 1);
    *per_byte = sum / (double)(r->valid.n_bytes ? r->valid.n_bytes : 1);
    return 1;
}

static int print_text(void *user, int32_t id, const char *text, size_t n_bytes) {
    (void)user, (void)id;
    return fwrite(text, 1, n_bytes, stdout) == n_bytes;
}

static void print_sample(run *r) {
    ml_session *session = NULL;
    ml_generate_desc desc = {0};
    ml_random random;
    ml_error error;
    ml_random_seed(&random, (uint64_t)r->trainer->step);
    desc.prompt = r->set.prompt;
    desc.max_new_tokens = 120;
    desc.overflow = ML_OVERFLOW_SLIDE; /* 120 may be more than --context */
    desc.sampler.temperature = 0.8f;
    desc.sampler.top_p = 0.9f;
    desc.sampler.random = &random;
    desc.on_token = print_text;
    printf("  | %s", r->set.prompt);
    if (succeeded(ml_session_new(r->model, NULL, &session, &error), &error))
        succeeded(ml_session_generate(session, &desc, NULL, &error), &error);
    printf("\n");
    ml_session_free(session);
}

/* Whether OUTPUT's checkpoint is still this run's last one: of two runs at once, each would replace what the other has
   learned. One that was removed may be written again. */
static int is_alone(run *r) {
    uint64_t random = 0;
    int64_t step = read_checkpoint(r->checkpoint, &random);
    if (step < 1 || (step == r->saved_at && random == r->saved_random)) return 1;
    r->saved_at = -1;
    return complain("%s: another program wrote it meanwhile; give each its own --output", r->checkpoint);
}

/* The checkpoint, the model for its users, and the curve. */
static int save_all(run *r) {
    ml_save_desc desc = {ML_GGUF, saved_type(r->set.type), NULL, NULL};
    ml_error error;
    if (!is_alone(r) || !loaded(r->checkpoint, ml_trainer_save(r->trainer, r->checkpoint, &error), &error))
        return 0;
    r->saved_at = r->trainer->step;
    r->saved_random = r->trainer->progress[0];
    return loaded(r->set.output, ml_model_save(r->model, r->set.output, &desc, &error), &error) &&
           curve_svg(&r->losses, r->svg);
}

/* One line of progress; a full one also measures the held-out text, and goes into the curve. */
static int report(run *r, float loss, int is_full) {
    double tokens = (double)r->set.rows * r->set.context, seconds = seconds_now() - r->began;
    double done = (double)(r->trainer->step - r->began_at), per_token = NAN, per_byte = NAN;
    int overwrites = system_is_terminal(stdout) && !is_full;
    if (is_full && r->valid.n > 1 && !validate(r, &per_token, &per_byte)) return 0;
    int left = done > 0 ? (int)(seconds / done * (double)(r->set.steps - r->trainer->step)) : 0;
    printf("%sstep %lld of %d: loss %.4f", overwrites ? "\r" : "", (long long)r->trainer->step, r->set.steps,
           (double)loss);
    if (!isnan(per_token)) printf(", kept back %.4f a token, %.4f a byte", per_token, per_byte);
    printf(", %.0f tokens/s, %d:%02d left%s", seconds > 0 ? done * tokens / seconds : 0.0, left / 60,
           left % 60, overwrites ? "  " : "\n");
    fflush(stdout);
    return !is_full || curve_add(&r->losses, r->csv, (double)r->trainer->step, (double)loss, per_token);
}

static int take_step(run *r, float *loss) {
    ml_batch batch = next_batch(r);
    ml_error error;
    return succeeded(ml_trainer_backward(r->trainer, &batch, NULL, loss, &error), &error) &&
           succeeded(ml_trainer_step(r->trainer, &error), &error);
}

/* Up to the last step, or until interrupted. */
static int take_steps(run *r) {
    const settings *set = &r->set;
    r->began = seconds_now();
    r->began_at = r->trainer->step;
    while (r->trainer->step < set->steps && !interrupted) {
        float loss;
        if (!take_step(r, &loss)) return 0;
        int64_t step = r->trainer->step;
        if (step == r->began_at + 1 && !curve_begin(&r->losses, r->csv)) return 0;
        int is_full = step % set->every == 0 || step == set->steps;
        if ((is_full || system_is_terminal(stdout)) && !report(r, loss, is_full)) return 0;
        if (set->sample_every && step % set->sample_every == 0 && step < set->steps) print_sample(r);
        if (step % set->save_every == 0 && !save_all(r)) return 0;
    }
    if (interrupted && r->trainer->step == r->began_at)
        return complain("stopped before the first step: nothing is saved");
    return save_all(r);
}

int train(run *r) {
    if (!take_steps(r)) {
        if (r->saved_at >= 0)
            fprintf(stderr, "the state after step %lld is in %s\n", (long long)r->saved_at, r->checkpoint);
        return 0;
    }
    if (interrupted)
        printf("\nstopped at step %lld; the same command with --resume continues\n",
               (long long)r->trainer->step);
    else
        print_sample(r);
    return 1;
}
