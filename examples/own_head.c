/* A head of one's own on a Llama: attention pooling over the words, then two layers; the Llama learns, too, at a tenth
   of the rate, or stays as it is ("frozen"). Lines are "label ||| sentence", labels 0, 1, ...
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/own_head.c -o own_head -lm
   ./own_head MODEL examples/data/opinions2-train.txt examples/data/opinions2-dev.txt [frozen] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum { CLASSES = 5, HIDDEN = 32, LONGEST = 128, EPOCHS = 4, BATCH = 8, HEAD = 5, MOST = HEAD + 500 };

typedef struct classifier {
    ml_model *model;
    ml_tensor score, w1, b1, w2, b2; /* the head */
    ml_tensor weights[MOST];         /* the model's, with their gradients */
    ml_batch batch;
    int32_t label;
    float log_probs[CLASSES];
    uint64_t passes; /* each drops other numbers */
} classifier;

static ml_tensor loss_of(ml_graph *g, void *user) {
    classifier *c = user;
    ml_rows one = {NULL, 1};
    ml_llama_desc llama = {.model = c->model, .weights = c->weights, .batch = &c->batch};
    ml_loss_desc loss = {.targets = &c->label, .divisor = BATCH, .log_probs = c->log_probs};
    ml_tensor h = ml_llama(g, &llama);                                               /* (n, D) */
    ml_tensor x = ml_pool_weighted(g, h, ml_linear(g, h, c->score, ml_none()), one); /* (1, D) */
    x = ml_dropout(g, ml_gelu(g, ml_linear(g, x, c->w1, c->b1)), 0.1f, c->passes++);
    return ml_cross_entropy(g, ml_linear(g, x, c->w2, c->b2), &loss);
}

/* Reads all lines, and learns from them if there is an optimizer. Returns how many were labeled right of how many. */
static int pass(classifier *c, FILE *file, ml_graph *g, ml_optimizer *optimizer, int *n, ml_error *error) {
    static int32_t work[1 << 16];
    char line[4096], *bar;
    int right = 0;
    *n = 0;
    for (rewind(file); fgets(line, sizeof line, file); ++*n) {
        c->label = (int32_t)strtol(line, NULL, 10);
        if (!(bar = strstr(line, " ||| ")))
            return snprintf(error->text, sizeof error->text, "line %d has no \" ||| \"", *n + 1), -1;
        ml_encode_desc text = {bar + 5, strcspn(bar + 5, "\r\n"), ML_ADD_SPECIAL, work, sizeof work};
        ml_tokens tokens;
        if (ml_tokenizer_encode(c->model->tokenizer, &text, &tokens, error)) return -1;
        c->batch.tokens = tokens.ids;
        c->batch.n_tokens = tokens.n < LONGEST ? tokens.n : LONGEST;
        ml_graph_begin(g, optimizer != NULL);
        ml_tensor loss = loss_of(g, c);
        if (optimizer ? ml_graph_backward(g, loss, error) : ml_graph_end(g, error)) return -1;
        if (optimizer && *n % BATCH == BATCH - 1 && ml_optimizer_step(optimizer, error)) return -1;
        int best = 0;
        for (int i = 1; i < CLASSES; i++)
            if (c->log_probs[i] > c->log_probs[best]) best = i;
        right += best == c->label;
    }
    return right;
}

static int run(classifier *c, FILE *files[2], ml_graph *g, ml_optimizer *optimizer, ml_error *error) {
    for (int epoch = 1, n[2], right[2]; epoch <= EPOCHS; epoch++) {
        for (int i = 0; i < 2; i++)
            if ((right[i] = pass(c, files[i], g, i ? NULL : optimizer, &n[i], error)) < 0) return 0;
        printf("epoch %d: right %d of %d while learning, %d of %d unseen\n", epoch, right[0], n[0], right[1],
               n[1]);
    }
    return 1;
}

int main(int argc, char **argv) {
    static classifier c;
    static float numbers[1 << 17]; /* of the head */
    static const int32_t longest[LONGEST];
    float *next = numbers;
    ml_model_load_desc writable = {.type = ML_F32};
    ml_group groups[2] = {{2e-3f, 0, 0}, {2e-4f, 0, argc == 5}}; /* the head, the Llama */
    ml_parameter learned[MOST] = {{&c.score, 0}, {&c.w1, 0}, {&c.b1, 0}, {&c.w2, 0}, {&c.b2, 0}};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = HEAD, .groups = groups, .n_groups = 2};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error = {ML_OK, ""};
    ml_random random;
    if (argc != 4 && (argc != 5 || strcmp(argv[4], "frozen") != 0))
        return fprintf(stderr, "usage: own_head MODEL TRAINING DEV [frozen]\n"), 2;
    FILE *files[2] = {fopen(argv[2], "r"), fopen(argv[3], "r")};
    if (!files[0] || !files[1]) return perror(argv[files[0] ? 3 : 2]), 1;
    if (ml_model_load(argv[1], &writable, &c.model, &error)) return fprintf(stderr, "%s\n", error.text), 1;
    size_t dim = (size_t)c.model->config.dim;
    const ml_tensor shapes[HEAD] = {{ML_F32, 1, dim, 0, 0},
                                    {ML_F32, HIDDEN, dim, 0, 0},
                                    {ML_F32, 1, HIDDEN, 0, 0},
                                    {ML_F32, CLASSES, HIDDEN, 0, 0},
                                    {ML_F32, 1, CLASSES, 0, 0}};
    if (dim > sizeof numbers / sizeof *numbers / (HIDDEN + 8) || c.model->n_tensors > MOST - HEAD)
        return fprintf(stderr, "the model is too large for this example\n"), 1;
    ml_random_seed(&random, 1);
    for (int i = 0; i < HEAD; i++) {
        ml_tensor *t = learned[i].tensor;
        *t = shapes[i], t->data = next;
        for (size_t k = 0; k < t->rows * t->cols; k++)
            *next++ = t->rows > 1 ? 0.05f * ml_random_normal(&random) : 0;
    }
    for (int i = 0; i < c.model->n_tensors; i++) { /* a tied output is the embedding once more */
        c.weights[i] = c.model->tensors[i];
        ml_parameter parameter = {&c.weights[i], 1};
        char name[ML_NAME_SIZE];
        if (c.weights[i].data && !ml_model_tensor_name(c.model, i, name) &&
            strcmp(name, "output.weight") != 0)
            learned[how.n_parameters++] = parameter;
    }
    c.batch.n_tokens = LONGEST, c.batch.tokens = longest; /* what the graph must have room for */
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, &c, &g, &error);
    if (ok) printf("%lld numbers are trained\n", (long long)optimizer->n_parameters);
    ok = ok && run(&c, files, g, optimizer, &error);
    if (!ok) fprintf(stderr, "%s\n", error.text);
    for (int i = 0; i < 2; i++) fclose(files[i]);
    ml_graph_free(g);
    ml_optimizer_free(optimizer);
    ml_model_free(c.model);
    return !ok;
}
