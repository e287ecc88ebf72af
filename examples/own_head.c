/* A head of one's own on a Llama: attention pooling over the words, then a linear layer; the Llama learns, too, at a
   tenth of the rate, or stays as it is ("frozen"). Lines are "label ||| sentence", labels 0 to 4.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/own_head.c -o own_head -lm
   ./own_head MODEL examples/data/opinions2-train.txt examples/data/opinions2-dev.txt [frozen] */
#include <stdio.h>
#include <string.h>
#include "minillama.h"

enum { CLASSES = 5, DIM = 1024, LONGEST = 128, BATCH = 8, MOST = 500 };
static ml_model *model;
static ml_tensor weights[MOST], score, w;                      /* the model's; (1, D) and (CLASSES, D) */
static float numbers[(1 + CLASSES) * DIM], log_probs[CLASSES]; /* of score and w, which begin with 0 */
static int32_t work[1 << 16], label;
static ml_batch batch = {.tokens = work, .n_tokens = LONGEST}; /* the graph has room for the longest */

static ml_tensor loss_of(ml_graph *g, void *user) {
    ml_llama_desc llama = {.model = model, .weights = weights, .batch = &batch};
    ml_loss_desc loss = {.targets = &label, .divisor = BATCH, .log_probs = log_probs};
    ml_tensor h = ml_llama(g, &llama), none = ml_none();                                    /* (n, D) */
    ml_tensor x = ml_pool_weighted(g, h, ml_linear(g, h, score, none), (ml_rows){NULL, 1}); /* (1, D) */
    (void)user;
    return ml_cross_entropy(g, ml_linear(g, x, w, none), &loss);
}

/* Reads all lines, and learns from them if there is an optimizer. Prints how many were labeled right. */
static int pass(FILE *file, ml_graph *g, ml_optimizer *optimizer, ml_error *error) {
    char line[4096];
    int right = 0, n = 0;
    for (rewind(file); fgets(line, sizeof line, file); n++) {
        char *bar = strstr(line, " ||| "), *text = bar ? bar + 5 : line;
        ml_encode_desc desc = {text, strcspn(text, "\r\n"), ML_ADD_SPECIAL, work, sizeof work};
        ml_tokens tokens;
        int best = 0;
        if (ml_tokenizer_encode(model->tokenizer, &desc, &tokens, error)) return 0;
        batch.tokens = tokens.ids, batch.n_tokens = tokens.n < LONGEST ? tokens.n : LONGEST;
        label = line[0] - '0';
        ml_graph_begin(g, optimizer != NULL);
        ml_tensor loss = loss_of(g, NULL);
        if (optimizer ? ml_graph_backward(g, loss, error) : ml_graph_end(g, error)) return 0;
        if (optimizer && n % BATCH == BATCH - 1 && ml_optimizer_step(optimizer, error)) return 0;
        for (int i = 1; i < CLASSES; i++) best = log_probs[i] > log_probs[best] ? i : best;
        right += best == label;
    }
    return printf(optimizer ? "right %d of %d while learning, " : "%d of %d unseen\n", right, n) > 0;
}

int main(int argc, char **argv) {
    ml_group groups[2] = {{2e-3f, 0, 0}, {2e-4f, 0, argc == 5}}; /* the head, the Llama */
    ml_parameter learned[2 + MOST] = {{&score, 0}, {&w, 0}};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = 2, .groups = groups, .n_groups = 2};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error = {ML_OK, "cannot write"};
    if (argc < 4) return fprintf(stderr, "usage: own_head MODEL TRAINING DEV [frozen]\n"), 2;
    FILE *train = fopen(argv[2], "r"), *dev = fopen(argv[3], "r");
    if (!train || !dev) return perror(argv[train ? 3 : 2]), 1;
    ml_model_load_desc writable = {.type = ML_F32};
    if (ml_model_load(argv[1], &writable, &model, &error)) return fprintf(stderr, "%s\n", error.text), 1;
    size_t dim = (size_t)model->config.dim;
    if (dim > DIM || model->n_tensors > MOST) return fprintf(stderr, "%s is too large\n", argv[1]), 1;
    score = (ml_tensor){ML_F32, 1, dim, numbers, NULL};
    w = (ml_tensor){ML_F32, CLASSES, dim, numbers + dim, NULL};
    for (int i = 0; i < model->n_tensors; i++) { /* a tied output is the embedding again */
        weights[i] = model->tensors[i];
        if (weights[i].data && (i == 0 || weights[i].data != weights[0].data))
            learned[how.n_parameters++] = (ml_parameter){&weights[i], 1};
    }
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, NULL, &g, &error);
    if (ok) printf("%lld numbers are trained\n", (long long)optimizer->n_parameters);
    for (int epoch = 1; ok && epoch <= 4; epoch++) {
        printf("epoch %d: ", epoch);
        ok = pass(train, g, optimizer, &error) && pass(dev, g, NULL, &error);
    }
    if (!ok) fprintf(stderr, "%s\n", error.text);
    ml_graph_free(g), ml_optimizer_free(optimizer), ml_model_free(model);
    fclose(train), fclose(dev);
    return !ok;
}
