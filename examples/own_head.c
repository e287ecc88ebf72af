/* A head of one's own on a frozen Llama: attention pooling, then a linear layer. Lines are "0 or 1 ||| sentence".
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/own_head.c -o own_head -lm
   ./own_head MODEL examples/data/opinions2-train.txt examples/data/opinions2-dev.txt */
#include <stdio.h>
#include <string.h>
#include "minillama.h"

enum { CLASSES = 2, DIM = 1024, LONGEST = 128 };
static ml_model *model;
static float numbers[(1 + CLASSES) * DIM], log_probs[CLASSES];
static ml_tensor score = {ML_F32, 1, DIM, numbers, NULL}, w = {ML_F32, CLASSES, DIM, numbers + DIM, NULL};
static int32_t work[1 << 16], label;
static ml_batch batch = {.tokens = work, .n_tokens = LONGEST}; /* the graph has room for the longest */

static ml_tensor loss_of(ml_graph *g, void *user) {
    ml_llama_desc llama = {.model = model, .batch = &batch};
    ml_loss_desc loss = {.targets = &label, .log_probs = user};
    ml_tensor h = ml_llama(g, &llama), scores = ml_linear(g, h, score, ml_none()); /* (n, D), (n, 1) */
    ml_tensor x = ml_pool_weighted(g, h, scores, (ml_rows){NULL, 1});              /* (1, D) */
    return ml_cross_entropy(g, ml_linear(g, x, w, ml_none()), &loss);
}

/* Reads all lines, and learns from them if there is an optimizer. Prints how many were labeled right. */
static int pass(FILE *file, ml_graph *g, ml_optimizer *optimizer, ml_error *error) {
    char line[4096];
    int right = 0, n = 0, at = 0; /* where the sentence begins, which may be empty */
    for (rewind(file); fscanf(file, " %4095[^\n]%*[^\n]", line) == 1; n++, at = 0) { /* the rest is cut off */
        if (sscanf(line, "%1d ||| %n", &label, &at) != 1 || !at || label >= CLASSES) return 0;
        ml_encode_desc desc = {line + at, strcspn(line + at, "\r\n"), ML_ADD_SPECIAL, work, sizeof work};
        ml_tokens tokens;
        if (ml_tokenizer_encode(model->tokenizer, &desc, &tokens, error)) return 0;
        batch.tokens = tokens.ids, batch.n_tokens = tokens.n < LONGEST ? tokens.n : LONGEST;
        ml_graph_begin(g, optimizer != NULL);
        ml_tensor loss = loss_of(g, log_probs);
        if (!optimizer && ml_graph_end(g, error)) return 0;
        if (optimizer && (ml_graph_backward(g, loss, error) || ml_optimizer_step(optimizer, error))) return 0;
        right += label == (log_probs[1] > log_probs[0]);
    }
    return n && !ferror(file) && printf(optimizer ? "right %d of %d, " : "unseen %d of %d\n", right, n) > 0;
}

int main(int argc, char **argv) {
    ml_parameter learned[] = {{&score, 0}, {&w, 0}};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = 2, .adamw = {.lr = 2e-3f}};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error;
    if (argc != 4) return fprintf(stderr, "usage: own_head MODEL TRAINING DEV\n"), 2;
    FILE *train = fopen(argv[2], "r"), *dev = fopen(argv[3], "r");
    if (!train || !dev) return perror(argv[train ? 3 : 2]), 1;
    if (ml_model_load(argv[1], NULL, &model, &error)) return fprintf(stderr, "%s\n", error.text), 1;
    if (!model->tokenizer) return fprintf(stderr, "no tokenizer was read: inspect %s says why\n", argv[1]), 1;
    score.cols = w.cols = (size_t)model->config.dim;
    if (score.cols > DIM) return fprintf(stderr, "%s is wider than %d\n", argv[1], DIM), 1;
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, NULL, &g, &error);
    for (int i = 0; ok && i < 4; i++) ok = pass(train, g, optimizer, &error) && pass(dev, g, NULL, &error);
    if (ferror(train) || ferror(dev)) return perror(argv[ferror(train) ? 2 : 3]), 1;
    if (!ok) fprintf(stderr, "%s\n", *error.text ? error.text : "no line, or one without \"0 or 1 |||\"");
    ml_graph_free(g), ml_optimizer_free(optimizer), ml_model_free(model), fclose(train), fclose(dev);
    return fflush(stdout) || ferror(stdout) ? perror("standard output"), 1 : !ok;
}
