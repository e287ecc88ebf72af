/* What learn.c trains on the device, and what a test trains on the desktop to compare: the shipped model as it is, in
   place and of Q8_0, with a new head on top, and with an adapter (LoRA) beside its matrices. */
#ifndef LEARNING_H
#define LEARNING_H

#include "minillama.h"

enum { LEARNING_TOKENS = 32, LEARNING_STEPS = 3 };

/* The ids of two short texts, one after the other; returns how many tokens there are, at most LEARNING_TOKENS. */
static int learning_ids(const ml_tokenizer *tokenizer, int32_t ids[LEARNING_TOKENS], int32_t row_start[3]) {
    static const char *const texts[2] = {"The little dog was happy and played all day.",
                                         "The story was sad, and the boy cried and cried."};
    static int32_t work[1024];
    int n = 0;
    for (int row = 0; row < 2; row++) {
        ml_tokens tokens = {NULL, 0};
        ml_encode_desc desc = {texts[row], 0, ML_ADD_BOS, work, sizeof work};
        while (texts[row][desc.n_bytes]) desc.n_bytes++;
        row_start[row] = n;
        if (ml_tokenizer_encode(tokenizer, &desc, &tokens, NULL)) return 0;
        for (int i = 0; i < tokens.n && i < LEARNING_TOKENS / 2; i++) ids[n++] = tokens.ids[i];
    }
    row_start[2] = n;
    return n;
}

/* losses (LEARNING_STEPS), each before its step. Trains the head on a label for each text; without a head, the adapter
   to predict each next token. */
static ml_result learning_run(ml_model *model, const ml_trainer_desc *desc, ml_trainer **trainer,
                              float *losses, ml_error *error) {
    static const int32_t labels[2] = {1, 0};
    static int32_t ids[LEARNING_TOKENS], targets[LEARNING_TOKENS], row_start[3];
    ml_batch batch = {ids, 0, row_start, 2, NULL, labels, 0};
    batch.n_tokens = learning_ids(model->tokenizer, ids, row_start);
    for (int row = 0; row < 2; row++)
        for (int i = (int)row_start[row]; i < (int)row_start[row + 1]; i++)
            targets[i] = i + 1 < (int)row_start[row + 1] ? ids[i + 1] : -1;
    if (!desc->head) batch.targets = targets, batch.labels = NULL;
    ml_result result = ml_trainer_new(model, desc, trainer, error);
    for (int step = 0; step < LEARNING_STEPS && !result; step++) {
        result = ml_trainer_backward(*trainer, &batch, NULL, &losses[step], error);
        if (!result) result = ml_trainer_step(*trainer, error);
    }
    return result;
}

static ml_trainer_desc learning_desc(const ml_allocator *allocator) {
    ml_trainer_desc desc = {0};
    desc.max_tokens = LEARNING_TOKENS, desc.max_rows = 2, desc.max_row = LEARNING_TOKENS;
    desc.checkpointing = 1;
    desc.adamw.lr = 0.01f;
    desc.allocator = *allocator;
    return desc;
}

/* Two classes, on the hidden state of the last token; the model is frozen. */
static ml_result learn_head(ml_model *model, const ml_allocator *allocator, ml_head **head,
                            ml_trainer **trainer, float *losses, ml_error *error) {
    ml_random random;
    ml_head_create_desc create = {0};
    ml_trainer_desc desc = learning_desc(allocator);
    ml_random_seed(&random, 1);
    create.n_classes = 2, create.random = &random, create.allocator = *allocator;
    ml_result result = ml_head_create(model, &create, head, error);
    desc.head = *head, desc.frozen = 1;
    return result ? result : learning_run(model, &desc, trainer, losses, error);
}

/* Rank 4 on the four matrices of attention. */
static ml_result learn_adapter(ml_model *model, const ml_allocator *allocator, ml_lora **lora,
                               ml_trainer **trainer, float *losses, ml_error *error) {
    ml_random random;
    ml_lora_create_desc create = {0};
    ml_trainer_desc desc = learning_desc(allocator);
    ml_random_seed(&random, 1);
    create.rank = 4, create.random = &random, create.allocator = *allocator;
    ml_result result = ml_lora_create(model, &create, lora, error);
    desc.lora = *lora;
    return result ? result : learning_run(model, &desc, trainer, losses, error);
}

#endif
