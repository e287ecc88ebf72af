/* Trains a small model from scratch on a text, with the tokenizer of another model. See examples/pretrain for more.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/train.c -o train -lm
   ./train TOKENIZER stories.txt small.gguf */
#include "minillama.h"
#include "common/file.h"

enum { LENGTH = 64, ROWS = 8, STEPS = 200, MAX_TEXT = 1 << 17 };

/* Steps on batches of ROWS rows of LENGTH tokens at random positions, whose targets are the same tokens one later. */
static ml_result train(ml_trainer *trainer, const ml_tokens *text, ml_random *random, ml_error *error) {
    int32_t tokens[ROWS * LENGTH], targets[ROWS * LENGTH], row_start[ROWS + 1] = {0};
    ml_batch batch = {tokens, ROWS * LENGTH, row_start, ROWS, targets, NULL, 0};
    if (text->n <= LENGTH) return strcpy(error->text, "too short a text"), error->code = ML_ERROR_ARGUMENT;
    for (int step = 1; step <= STEPS; step++) {
        float loss;
        for (int row = 0; row < ROWS; row++) {
            const int32_t *from = text->ids + ml_random_u64(random) % (uint64_t)(text->n - LENGTH);
            memcpy(tokens + row * LENGTH, from, LENGTH * sizeof *tokens);
            memcpy(targets + row * LENGTH, from + 1, LENGTH * sizeof *targets);
            row_start[row + 1] = (row + 1) * LENGTH;
        }
        if (ml_trainer_backward(trainer, &batch, NULL, &loss, error) || ml_trainer_step(trainer, error))
            return error->code;
        if (step % 20 == 0) printf("step %d: loss %.3f\n", step, (double)loss);
    }
    return ML_OK;
}

int main(int argc, char **argv) {
    static int32_t work[MAX_TEXT * 10]; /* ml_tokenizer_encode_size takes 37 bytes for each of the text */
    size_t n_text;
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_tokenizer *tokenizer = NULL;
    ml_trainer *trainer = NULL;
    ml_tokens tokens;
    ml_random random;
    ml_trainer_desc how = {0};
    if (argc != 4) return fprintf(stderr, "usage: train TOKENIZER TEXT MODEL.gguf\n"), 2;
    const used_file inputs[] = {{"TOKENIZER", argv[1]}, {"TEXT", argv[2]}}, output = {"MODEL", argv[3]};
    if (!gguf_ready(&output, inputs, 2)) return 1;
    char *text = text_file_read(argv[2], &n_text);
    if (!text) return 1;
    if (n_text > MAX_TEXT) n_text = MAX_TEXT; /* of a longer file only the beginning is used */
    ml_encode_desc encode = {text, n_text, ML_ADD_SPECIAL, work, sizeof work};
    ml_random_seed(&random, 1);
    how.max_tokens = ROWS * LENGTH;
    how.adamw.lr = 3e-3f;
    int ok = !ml_tokenizer_load(argv[1], NULL, &tokenizer, &error) &&
             !ml_tokenizer_encode(tokenizer, &encode, &tokens, &error);
    ml_model_create_desc desc = {.config = {64, 192, 2, 4, 4, 0, LENGTH, .tied_output = 1},
                                 .random = &random};
    desc.config.vocab_size = ok ? tokenizer->n_pieces : 0;
    ok = ok && !ml_model_create(&desc, &model, &error) && !ml_model_set_tokenizer(model, tokenizer, &error) &&
         !ml_trainer_new(model, &how, &trainer, &error) && !train(trainer, &tokens, &random, &error) &&
         !ml_model_save(model, argv[3], NULL, &error);
    if (!ok) fprintf(stderr, "%s\n", error.text);
    if (!model) ml_tokenizer_free(tokenizer); /* otherwise the model owns it */
    free(text);
    ml_trainer_free(trainer);
    ml_model_free(model);
    if (fflush(stdout) || ferror(stdout)) return perror("standard output"), 1;
    return !ok;
}
