/* Prints stories, and the bits of what the library computes: the logits of one pass, the losses of a few steps of
   training, and the weights after them. Without vectors (ML_NO_SIMD) every compiler and every processor prints the same
   lines: tests/cross.sh compares them.
   bits MODEL */
#define MINILLAMA_IMPLEMENTATION
#define ML_STATIC
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum { N_TEXT = 16, N_STORY = 48, STEPS = 2 };

static int failed(const ml_error *error) { return fprintf(stderr, "%s\n", error->text), 0; }

/* FNV-1a over the bits, from the lowest byte on: the same hash in both byte orders. */
static uint64_t hash_of(uint64_t hash, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        for (int k = 0; k < 32; k += 8) hash = (hash ^ (bits >> k & 255)) * 1099511628211u;
    }
    return hash;
}

static void show(const char *what, uint64_t hash) {
    printf("%s %08lx%08lx\n", what, (unsigned long)(hash >> 32), (unsigned long)(hash & 0xffffffff));
}

static int show_token(void *user, int32_t id, const char *text, size_t n) {
    return (void)user, (void)id, fwrite(text, 1, n, stdout) == n;
}

static int show_pass(const ml_model *model, const char *what, const int32_t *ids, ml_error *error) {
    ml_session_desc desc = {0};
    ml_session *session = NULL;
    ml_generate_desc story = {0};
    size_t n = (size_t)N_TEXT * (size_t)model->config.vocab_size;
    float *logits = (float *)malloc(n * sizeof *logits);
    ml_batch batch = {ids, N_TEXT, NULL, 1, NULL, NULL, 0};
    ml_outputs wanted = {NULL, 0, NULL, logits};
    story.prompt = "The old robot";
    story.max_new_tokens = N_STORY;
    story.on_token = show_token;
    int ok = logits && !ml_session_new(model, &desc, &session, error) &&
             !ml_session_eval_batch(session, &batch, &wanted, error) &&
             !ml_session_generate(session, &story, NULL, error);
    printf("\n");
    if (ok) show(what, hash_of(14695981039346656037u, logits, n));
    free(logits);
    ml_session_free(session);
    return ok || failed(error);
}

/* A few steps on the text: of all weights, or of an adapter and a head with dropout. */
static int show_training(ml_model *model, const int32_t *ids, int is_lora, ml_error *error) {
    static const int32_t row_start[] = {0, N_TEXT / 2, N_TEXT - 1}, labels[] = {1, 0};
    ml_random random;
    ml_lora_create_desc adapter = {4, 8, ML_LORA_ATTENTION, 0, &random, {0}};
    ml_head_create_desc classes = {2, NULL, ML_POOL_MEAN, 0, &random, {0}};
    ml_trainer_desc desc = {0};
    ml_trainer *trainer = NULL;
    ml_batch batch = {ids, N_TEXT - 1, row_start, 2, is_lora ? NULL : ids + 1, is_lora ? labels : NULL, 0};
    float loss = 0;
    ml_random_seed(&random, 1);
    desc.max_tokens = N_TEXT;
    desc.adamw.lr = 1e-3f;
    desc.dropout = is_lora ? 0.1f : 0;
    int ok = !is_lora || (!ml_lora_create(model, &adapter, &desc.lora, error) &&
                          !ml_head_create(model, &classes, &desc.head, error));
    ok = ok && !ml_trainer_new(model, &desc, &trainer, error);
    for (int step = 0; ok && step < STEPS; step++) {
        ok = !ml_trainer_backward(trainer, &batch, NULL, &loss, error) && !ml_trainer_step(trainer, error);
        if (ok) /* nine digits tell one float from another */
            printf("%s: loss %.9g, norm of the gradient %.9g\n", is_lora ? "LoRA and a head" : "all weights",
                   (double)loss, (double)trainer->gradient_norm);
    }
    uint64_t hash = 14695981039346656037u;
    const ml_tensor *learned = is_lora ? (desc.lora ? desc.lora->tensors : NULL) : model->tensors;
    for (int i = 0; ok && i < (is_lora ? desc.lora->n_tensors : model->n_tensors); i++)
        if (learned[i].data)
            hash = hash_of(hash, (const float *)learned[i].data, learned[i].rows * learned[i].cols);
    if (ok) show(is_lora ? "the adapter" : "the weights", hash);
    ml_trainer_free(trainer);
    ml_lora_free(desc.lora);
    ml_head_free(desc.head);
    return ok || failed(error);
}

int main(int argc, char **argv) {
    static const char text[] =
        "One day, a girl named Lily went to the park with her mother and saw a big red ball";
    static int32_t work[8192];
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL, *floats = NULL;
    ml_model_load_desc as_floats = {0};
    ml_encode_desc encode = {text, sizeof text - 1, ML_ADD_SPECIAL, work, sizeof work};
    ml_tokens tokens;
    as_floats.type = ML_F32;
    if (argc != 2) return fprintf(stderr, "usage: bits MODEL\n"), 2;
    if (ml_model_load(argv[1], NULL, &model, &error) || ml_model_load(argv[1], &as_floats, &floats, &error) ||
        ml_tokenizer_encode(model->tokenizer, &encode, &tokens, &error))
        return !failed(&error);
    if (tokens.n < N_TEXT) return fprintf(stderr, "%d tokens are too few\n", tokens.n), 1;
    int ok = show_pass(model, "logits", tokens.ids, &error) && show_training(floats, tokens.ids, 1, &error) &&
             show_training(floats, tokens.ids, 0, &error) &&
             show_pass(floats, "logits after training", tokens.ids, &error);
    ml_model_free(floats);
    ml_model_free(model);
    return !ok;
}
