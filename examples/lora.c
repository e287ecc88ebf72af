/* Trains a classifier with LoRA on lines of "label ||| sentence" (labels 0, 1, ...); saves adapter and head.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/lora.c -o lora -lm
   ./lora MODEL examples/data/opinions2-train.txt 2 adapter.gguf     (2 classes; then see classify.c) */
#include "minillama.h"
#include "common/file.h"

enum { EPOCHS = 6, BATCH = 10 };

/* Adds the gradients of "label ||| sentence", the line of this number, and its share of the batch's loss to *sum. */
static ml_result learn(ml_trainer *trainer, const ml_model *model, char *line, int number, double *sum,
                       ml_error *error) {
    static int32_t work[1 << 18]; /* for 28 KB; the end of what is longer is cut off */
    char *bar = strstr(line, " ||| "), *end;
    const long value = strtol(line, &end, 10);
    const int32_t label = (int32_t)value;
    ml_tokens tokens;
    float loss;
    if (!bar || end == line || end != bar || value < 0 || value > INT16_MAX) {
        const char *what = bar ? "does not begin with a label" : "has no \" ||| \"";
        snprintf(error->text, sizeof error->text, "line %d %s", number, what);
        return error->code = ML_ERROR_ARGUMENT;
    }
    const size_t n_bytes = bytes_with_room(bar + 5, sizeof work);
    ml_encode_desc text = {bar + 5, n_bytes, ML_ADD_SPECIAL, work, sizeof work};
    if (ml_tokenizer_encode(model->tokenizer, &text, &tokens, error)) return error->code;
    const int most = model->config.max_seq_len; /* the end may be cut off */
    ml_batch batch = {tokens.ids, tokens.n < most ? tokens.n : most, NULL, 1, NULL, &label, BATCH};
    if (!ml_trainer_backward(trainer, &batch, NULL, &loss, error)) *sum += (double)loss;
    return error->code;
}

/* One epoch, with a step after every BATCH lines. */
static ml_result train(ml_trainer *trainer, const ml_model *model, FILE *file, int epoch, ml_error *error) {
    buffer line = {NULL, 0, 0};
    double sum = 0;
    int n = 0;
    for (rewind(file); !error->code && line_read(file, "TRAINING", &line, error); n++)
        if (!learn(trainer, model, line.bytes, n + 1, &sum, error) && n % BATCH == BATCH - 1)
            ml_trainer_step(trainer, error);
    buffer_free(&line);
    if (!error->code && !n) strcpy(error->text, "there are no lines"), error->code = ML_ERROR_ARGUMENT;
    if (!error->code && n % BATCH) ml_trainer_step(trainer, error);
    if (!error->code) printf("epoch %d: loss %.3f\n", epoch, sum * BATCH / n);
    return error->code;
}

int main(int argc, char **argv) {
    if (argc != 5) return fprintf(stderr, "usage: lora MODEL TRAINING N_CLASSES ADAPTER.gguf\n"), 2;
    char *end;
    const unsigned long n_classes = strtoul(argv[3], &end, 10);
    if (*end || n_classes > INT16_MAX) return complain("N_CLASSES cannot be \"%s\"", argv[3]), 2;
    const used_file inputs[] = {{"MODEL", argv[1]}, {"TRAINING", argv[2]}}, output = {"ADAPTER", argv[4]};
    if (!gguf_ready(&output, inputs, 2)) return 1;
    FILE *file = fopen(argv[2], "r");
    if (!file) return perror(argv[2]), 1;
    ml_error error = {ML_OK, ""};
    ml_random random;
    ml_head_create_desc head = {(int)n_classes, NULL, ML_POOL_LAST, 0, &random, {0}};
    ml_lora_create_desc lora = {8, 16, ML_LORA_ATTENTION, 0, &random, {0}};
    ml_trainer_desc desc = {0};
    ml_trainer *trainer = NULL;
    ml_model *model = NULL;
    ml_random_seed(&random, 1);
    desc.adamw.lr = 3e-3f;
    int ok = !ml_model_load(argv[1], NULL, &model, &error) && has_tokenizer(model, argv[1], &error) &&
             !ml_head_create(model, &head, &desc.head, &error) &&
             !ml_lora_create(model, &lora, &desc.lora, &error) &&
             !ml_trainer_new(model, &desc, &trainer, &error);
    for (int epoch = 0; ok && epoch < EPOCHS; epoch++) ok = !train(trainer, model, file, epoch, &error);
    ml_save_desc save = {ML_GGUF, ML_TYPE_NONE, NULL, desc.head};
    if (!ok || ml_lora_save(desc.lora, model, argv[4], &save, &error)) fprintf(stderr, "%s\n", error.text);
    fclose(file), ml_trainer_free(trainer);
    ml_lora_free(desc.lora), ml_head_free(desc.head), ml_model_free(model);
    return error.code || !output_written();
}
