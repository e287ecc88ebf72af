/* Trains a classifier with LoRA on lines of "label ||| sentence" (labels 0, 1, ...); saves adapter and head.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/lora.c -o lora -lm
   ./lora MODEL examples/data/opinions2-train.txt 2 adapter.gguf     (2 classes; then see classify.c) */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum { EPOCHS = 6, BATCH = 10 };

/* One epoch, with a step after every BATCH lines. */
static ml_result train(ml_trainer *trainer, const ml_model *model, FILE *file, int epoch, ml_error *error) {
    static int32_t work[1 << 16];
    char line[4096], *bar, *end;
    double sum = 0;
    int n = 0;
    for (rewind(file); fgets(line, sizeof line, file); n++) {
        if (!(bar = strstr(line, " ||| ")))
            return snprintf(error->text, sizeof error->text, "line %d has no \" ||| \"", n + 1),
                   error->code = ML_ERROR_ARGUMENT;
        ml_encode_desc text = {bar + 5, strcspn(bar + 5, "\r\n"), ML_ADD_SPECIAL, work, sizeof work};
        const char *number =
            strncmp(line, "\xef\xbb\xbf", 3) ? line : line + 3; /* as Windows begins a file */
        int32_t label = (int32_t)strtol(number, &end, 10);
        ml_tokens tokens;
        float loss;
        if (end == number || end != bar)
            return snprintf(error->text, sizeof error->text, "line %d does not begin with a label", n + 1),
                   error->code = ML_ERROR_ARGUMENT;
        if (ml_tokenizer_encode(model->tokenizer, &text, &tokens, error)) return error->code;
        ml_batch batch = {tokens.ids, tokens.n, NULL, 1, NULL, &label, BATCH};
        if (ml_trainer_backward(trainer, &batch, NULL, &loss, error)) return error->code;
        if (n % BATCH == BATCH - 1 && ml_trainer_step(trainer, error)) return error->code;
        sum += (double)loss;
    }
    if (!n)
        return snprintf(error->text, sizeof error->text, "there are no lines"),
               error->code = ML_ERROR_ARGUMENT;
    printf("epoch %d: loss %.3f\n", epoch, sum * BATCH / n);
    return n % BATCH ? ml_trainer_step(trainer, error) : ML_OK;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: lora MODEL TRAINING N_CLASSES ADAPTER.gguf\n"), 2;
    FILE *file = fopen(argv[2], "r");
    if (!file) return perror(argv[2]), 1;
    ml_error error = {ML_OK, ""};
    ml_random random;
    ml_head_create_desc head = {atoi(argv[3]), NULL, ML_POOL_LAST, 0, &random, {0}};
    ml_lora_create_desc lora = {8, 16, ML_LORA_ATTENTION, 0, &random, {0}};
    ml_trainer_desc desc = {0};
    ml_trainer *trainer = NULL;
    ml_model *model = NULL;
    ml_random_seed(&random, 1);
    desc.adamw.lr = 3e-3f;
    int ok =
        !ml_model_load(argv[1], NULL, &model, &error) && !ml_head_create(model, &head, &desc.head, &error) &&
        !ml_lora_create(model, &lora, &desc.lora, &error) && !ml_trainer_new(model, &desc, &trainer, &error);
    for (int epoch = 0; ok && epoch < EPOCHS; epoch++) ok = !train(trainer, model, file, epoch, &error);
    ml_save_desc save = {ML_GGUF, ML_TYPE_NONE, NULL, desc.head};
    if (!ok || ml_lora_save(desc.lora, model, argv[4], &save, &error)) fprintf(stderr, "%s\n", error.text);
    fclose(file);
    ml_trainer_free(trainer);
    ml_lora_free(desc.lora);
    ml_head_free(desc.head);
    ml_model_free(model);
    return error.code != ML_OK;
}
