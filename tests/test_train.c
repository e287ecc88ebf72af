/* Training as a whole: against PyTorch's losses, gradients and weights, and its exact repetition. How single operations go
   backward is tested in test_gradients.c. */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "shared.h"

/* stories260K with weights that may be written to, as ../shared has it; NULL when it is not there. */
static ml_model *stories(ml_norm norm, ml_mask mask) {
    const char *path = shared_path("models/stories260K.pt");
    ml_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.type = ML_F32;
    desc.norm = norm;
    desc.mask = mask;
    if (path) CHECK(ml_load(path, &desc, &model, &error) == ML_OK);
    return model;
}

/* Compares the model's tensors, or their gradients, with those of an archive under prefix + the course's names. */
static void check_tensors(const ml_archive *archive, const char *prefix, const ml_model *model,
                          const ml_tensor *tensors, int gradients, double tolerance) {
    int i, compared = 0;
    for (i = 0; i < model->n_tensors; i++) {
        mli_slot slot;
        int layer;
        size_t n;
        char name[ML_NAME_SIZE], key[2 * ML_NAME_SIZE];
        const float *ours = gradients ? tensors[i].grad : (const float *)tensors[i].data;
        float *theirs;
        double d;
        mli_slot_of(i, &slot, &layer);
        if (!mli_has_slot(&model->config, slot)) continue;
        mli_param_name(MLI_NAMING_COURSE, slot, layer, name);
        snprintf(key, sizeof key, "%s%s", prefix, name);
        theirs = shared_floats(archive, key, &n);
        if (!theirs) continue;
        CHECK(n == mli_numbers(&tensors[i]) && ours != NULL);
        d = max_difference(ours, theirs, n);
        if (!(d <= tolerance)) printf("%s differs by %g\n", key, d);
        CHECK(d <= tolerance);
        compared++;
        free(theirs);
    }
    CHECK(compared == 5 * 9 + 2);
}

typedef struct lm_case {
    int32_t tokens[128], targets[128], starts[5];
    ml_examples examples;
} lm_case;

static void lm_case_read(const ml_archive *archive, lm_case *c) {
    size_t n, i;
    int32_t *tokens = shared_tokens(archive, "tokens", &n), *targets = shared_tokens(archive, "targets", &n);
    CHECK(n == 128);
    memset(c, 0, sizeof *c);
    for (i = 0; i < 128; i++) c->tokens[i] = tokens[i], c->targets[i] = targets[i];
    for (i = 0; i < 5; i++) c->starts[i] = (int32_t)(32 * i);
    c->examples.tokens = c->tokens;
    c->examples.n_tokens = 128;
    c->examples.row_start = c->starts;
    c->examples.n_rows = 4;
    c->examples.targets = c->targets;
    free(tokens);
    free(targets);
}

static ml_trainer *lm_trainer(ml_model *model, int threads, int checkpointing) {
    ml_trainer_desc desc;
    ml_trainer *trainer = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = 128;
    desc.max_rows = 4;
    desc.max_row = 32;
    desc.checkpointing = checkpointing;
    desc.threads.count = threads;
    desc.adamw.lr = 1e-3f;
    desc.adamw.weight_decay = 0.01f;
    desc.adamw.decay_all = 1;
    desc.adamw.clip = 1.0f;
    CHECK(ml_trainer_new(model, &desc, NULL, &trainer, &error) == ML_OK);
    return trainer;
}

/* Ten steps on one batch as PyTorch takes them. Losses: 1e-4 absolute. Gradients: 2e-5, where the largest are near 1 and
   float sums of 128 tokens differ in order. Weights after ten steps: a gradient whose sign hangs on its last bits may move
   a weight by lr the other way in AdamW's first steps, so 1e-3 is what one such step is worth. */
TEST(language_model_as_pytorch) {
    const char *path = shared_path("reference/lm_train.pt");
    ml_model *model = stories(ML_NORM_RMS, ML_MASK_CAUSAL);
    ml_archive *archive;
    ml_trainer *trainer;
    ml_error error;
    lm_case c;
    size_t n;
    float *losses, loss;
    int step;
    if (!path || !model) SKIP("../shared is not there");
    CHECK(ml_archive_open(path, NULL, &archive, &error) == ML_OK);
    losses = shared_floats(archive, "losses", &n);
    lm_case_read(archive, &c);
    trainer = lm_trainer(model, 2, 0);
    for (step = 0; step < 10; step++) {
        CHECK(ml_train(trainer, &c.examples, &loss, &error) == ML_OK);
        if (!(fabsf(loss - losses[step]) <= 1e-4f))
            printf("step %d: loss %g, not %g\n", step, (double)loss, (double)losses[step]);
        CHECK(fabsf(loss - losses[step]) <= 1e-4f);
        CHECK(ml_backward(trainer, &error) == ML_OK);
        if (step == 0) check_tensors(archive, "grad.", model, trainer->model, 1, 2e-5);
        CHECK(ml_step(trainer, &error) == ML_OK);
    }
    check_tensors(archive, "after10.", model, model->tensors, 0, 1e-3);
    free(losses);
    ml_trainer_free(trainer);
    ml_archive_close(archive);
    ml_free(model);
}

int main(void) {
    RUN(language_model_as_pytorch);
    return test_report("test_train");
}
