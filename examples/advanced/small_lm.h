/* A small language model that looks like Llama, composed of the public operations (norm, linear, rotation, attention,
   SwiGLU), and its training on a text: what the experiments with positions and attention have in common. A program
   supplies the attention. Tokens are bytes, or pieces of a given model's tokenizer. */
#ifndef SMALL_LM_H
#define SMALL_LM_H

#include <math.h>
#include <stdlib.h>
#include "examples/common/file.h"
#include "examples/common/options.h"
#include "examples/common/plot.h"
#include "examples/common/progress.h"
#include "minillama.h"

enum { SMALL_LAYERS = 12, SMALL_EXTRAS = 4, SMALL_OPTIONS = 13 };

/* extra: (1, extra_cols) each, for the program */
typedef struct small_layer {
    ml_tensor attention_norm, q, k, v, o, ffn_norm, gate, up, down, extra[SMALL_EXTRAS];
} small_layer;

typedef struct small_lm {
    const char *text_path, *tokenizer, *csv, *svg;
    int context, dim, hidden, n_layers, n_heads, steps, rows, seed,
        threads; /* trained on rows * context tokens */
    float lr;
    size_t extra_cols; /* 0: none */
    int vocab;
    ml_tensor embedding, norm;
    small_layer layers[SMALL_LAYERS];
    float *memory; /* all weights */
    size_t n_weights;
    int32_t *tokens;
    size_t n_tokens, n_training; /* the last tenth is for evaluation */

    /* the pass that is computed */
    int length, n_rows, wants_loss;
    int32_t *ids, *targets, *row_start;
    /* q, k, v (n, D) of a layer -> (n, D) */
    ml_tensor (*attend)(ml_graph *g, struct small_lm *lm, int layer, ml_tensor q, ml_tensor k, ml_tensor v);
    ml_tensor bias; /* for the program: made by `prepare` at the beginning of each pass */
    void (*prepare)(ml_graph *g, struct small_lm *lm);
    void *user;
    ml_tensor log_probs; /* out (n, V), without a loss */
} small_lm;

static inline void small_defaults(small_lm *lm) {
    memset(lm, 0, sizeof *lm);
    lm->context = 64, lm->dim = 96, lm->hidden = 256, lm->n_layers = 3, lm->n_heads = 4, lm->steps = 500;
    lm->rows = 16, lm->seed = 1, lm->threads = 1, lm->lr = 3e-3f;
}

/* The options that both programs have; returns how many. */
static inline int small_options(small_lm *lm, option *to) {
    option options[SMALL_OPTIONS] = {
        {"--text", OPTION_TEXT, (void *)&lm->text_path,
         "the text to learn; its last tenth is for evaluation"},
        {"--tokenizer", OPTION_TEXT, (void *)&lm->tokenizer,
         "a model whose tokenizer to use (default: bytes)"},
        {"--context", OPTION_INT, &lm->context, "tokens of a row in training (default 64)"},
        {"--rows", OPTION_INT, &lm->rows, "rows of a step (default 16)"},
        {"--steps", OPTION_INT, &lm->steps, "steps of training (default 500)"},
        {"--dim", OPTION_INT, &lm->dim, "width (default 96)"},
        {"--layers", OPTION_INT, &lm->n_layers, "layers (default 3)"},
        {"--heads", OPTION_INT, &lm->n_heads, "heads (default 4)"},
        {"--lr", OPTION_FLOAT, &lm->lr, "learning rate, warmed up, then a cosine to 0 (default 0.003)"},
        {"--seed", OPTION_INT, &lm->seed, "of weights and batches (default 1)"},
        {"--threads", OPTION_INT, &lm->threads, "threads (default 1)"},
        {"--csv", OPTION_TEXT, (void *)&lm->csv, "write the numbers to this file"},
        {"--svg", OPTION_TEXT, (void *)&lm->svg, "draw them into this file"}};
    memcpy(to, options, sizeof options);
    return SMALL_OPTIONS;
}

/* ---- the text ---- */

static inline int small_encode(small_lm *lm, const char *text, size_t n) {
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    ml_tokens tokens;
    size_t size = ml_tokenizer_encode_size(n);
    void *work = malloc(size);
    ml_encode_desc desc = {text, n, 0, work, size};
    int ok = work || no_memory(lm->text_path);
    ok = ok && loaded(lm->tokenizer, ml_tokenizer_load(lm->tokenizer, NULL, &tokenizer, &error), &error) &&
         succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error);
    if (ok) lm->vocab = tokenizer->n_pieces, lm->n_tokens = (size_t)tokens.n;
    for (size_t i = 0; ok && i < lm->n_tokens; i++)
        lm->tokens[i] = tokens.ids[i]; /* never more than bytes + 1 */
    ml_tokenizer_free(tokenizer);
    free(work);
    return ok;
}

/* Reads the text; `longest` is the longest row that will be evaluated. */
static inline int small_read(small_lm *lm, int longest) {
    const used_file inputs[] = {{"--text", lm->text_path}, {"--tokenizer", lm->tokenizer}};
    const used_file outputs[] = {{"--csv", lm->csv}, {"--svg", lm->svg}};
    size_t n = 0;
    if (!lm->text_path) return complain("--text is missing");
    if (!outputs_ready(outputs, 2, inputs, 2)) return 0;
    if (lm->context < 8 || lm->context % 8 || lm->rows < 1 || lm->steps < 1 || lm->n_layers < 1 ||
        lm->n_layers > SMALL_LAYERS || lm->n_heads < 1 || lm->dim < 4 || lm->dim % (2 * lm->n_heads) ||
        lm->context > 1 << 14 || lm->rows > 1 << 12 || lm->dim > 1 << 12 || !(lm->lr > 0) || lm->threads < 1)
        return complain(
            "sizes: context is a multiple of 8 up to 16,384, dim one of 2 * heads up to 4,096; there "
            "are up to %d layers",
            SMALL_LAYERS);
    char *text = text_file_read(lm->text_path, &n);
    lm->hidden = lm->dim * 8 / 3;
    lm->vocab = 256;
    lm->n_tokens = n;
    lm->tokens = text ? (int32_t *)malloc((n + 8) * sizeof *lm->tokens) : NULL;
    int ok = text && (lm->tokens || no_memory(lm->text_path));
    for (size_t i = 0; ok && i < n; i++) lm->tokens[i] = (unsigned char)text[i];
    ok = ok && (!lm->tokenizer || small_encode(lm, text, n));
    free(text);
    lm->n_training = lm->n_tokens - lm->n_tokens / 10;
    if (ok && lm->n_tokens / 10 <= (size_t)longest)
        ok = complain("%s: the last tenth of the text has %d tokens or fewer", lm->text_path, longest);
    size_t most = (size_t)(lm->rows * lm->context > longest ? lm->rows * lm->context : longest);
    lm->ids = ok ? (int32_t *)calloc(2 * most + (size_t)lm->rows + 1, sizeof *lm->ids) : NULL;
    if (lm->ids) lm->targets = lm->ids + most, lm->row_start = lm->targets + most;
    return ok && (lm->ids || no_memory("batches"));
}

/* ---- weights ---- */

enum { SMALL_EMBEDDING, SMALL_NORM, SMALL_PARTS = 9 + SMALL_EXTRAS };

static inline int small_count(const small_lm *lm) { return 2 + lm->n_layers * SMALL_PARTS; }

static inline ml_tensor *small_weight(small_lm *lm, int i) {
    if (i < 2) return i == SMALL_NORM ? &lm->norm : &lm->embedding;
    return &lm->layers[(i - 2) / SMALL_PARTS].attention_norm + (i - 2) % SMALL_PARTS;
}

/* The shape of weight i; norms are 1, the other vectors and matrices are drawn. */
static inline ml_tensor small_shape(const small_lm *lm, int i) {
    size_t D = (size_t)lm->dim, H = (size_t)lm->hidden;
    ml_tensor square = {ML_F32, D, D, NULL, NULL}, vector = {ML_F32, 1, D, NULL, NULL};
    ml_tensor wide = {ML_F32, H, D, NULL, NULL}, down = {ML_F32, D, H, NULL, NULL};
    ml_tensor extra = {ML_F32, lm->extra_cols ? 1 : 0, lm->extra_cols, NULL, NULL}, shape = square;
    int part = (i - 2) % SMALL_PARTS;
    if (i == SMALL_EMBEDDING) shape.rows = (size_t)lm->vocab;
    if (i == SMALL_EMBEDDING) return shape;
    if (i == SMALL_NORM || part == 0 || part == 5) return vector;
    if (part == 6 || part == 7) return wide;
    return part == 8 ? down : part > 8 ? extra : square;
}

/* New weights, drawn by the seed: the same ones for everything that has the same weights. */
static inline int small_create(small_lm *lm) {
    ml_random random;
    float *at;
    lm->n_weights = 0;
    for (int i = 0; i < small_count(lm); i++) {
        ml_tensor shape = *small_weight(lm, i) = small_shape(lm, i);
        lm->n_weights += shape.rows * shape.cols;
    }
    free(lm->memory);
    at = lm->memory = (float *)malloc(lm->n_weights * sizeof *at);
    if (!at) return no_memory("weights");
    ml_random_seed(&random, (uint64_t)lm->seed);
    for (int i = 0; i < small_count(lm); i++) {
        ml_tensor *w = small_weight(lm, i);
        size_t n = w->rows * w->cols;
        float deviation = i == SMALL_EMBEDDING ? 0.05f : 0.7f / sqrtf((float)(w->cols ? w->cols : 1));
        int is_norm =
            i == SMALL_NORM || (i > 1 && ((i - 2) % SMALL_PARTS == 0 || (i - 2) % SMALL_PARTS == 5));
        w->data = n ? at : NULL;
        for (size_t k = 0; k < n; k++) *at++ = is_norm ? 1 : deviation * ml_random_normal(&random);
    }
    return 1;
}

static inline void small_free(small_lm *lm) {
    free(lm->memory);
    free(lm->tokens);
    free(lm->ids);
}

/* ---- the network ---- */

static inline ml_rows small_rows(const small_lm *lm) {
    ml_rows rows = {lm->row_start, lm->n_rows};
    return rows;
}

/* The loss, or without `wants_loss` the log-probabilities in lm->log_probs. */
static inline ml_tensor small_build(ml_graph *g, void *user) {
    small_lm *lm = (small_lm *)user;
    ml_tensor none = ml_none();
    size_t n = (size_t)(lm->n_rows * lm->length);
    if (lm->prepare) lm->prepare(g, lm);
    ml_tensor x = ml_gather(g, lm->embedding, lm->ids, n);
    for (int i = 0; i < lm->n_layers; i++) {
        const small_layer *l = &lm->layers[i];
        ml_tensor h = ml_rms_norm(g, x, l->attention_norm, 1e-5f);
        ml_tensor q = ml_linear(g, h, l->q, none), k = ml_linear(g, h, l->k, none),
                  v = ml_linear(g, h, l->v, none);
        x = ml_add(g, x, ml_linear(g, lm->attend(g, lm, i, q, k, v), l->o, none));
        h = ml_rms_norm(g, x, l->ffn_norm, 1e-5f);
        h = ml_swiglu(g, ml_linear(g, h, l->gate, none), ml_linear(g, h, l->up, none));
        x = ml_add(g, x, ml_linear(g, h, l->down, none));
    }
    x = ml_rms_norm(g, x, lm->norm, 1e-5f);
    ml_loss_desc loss = {0};
    loss.targets = lm->targets;
    loss.whole = 1;
    if (lm->wants_loss) return ml_linear_cross_entropy(g, x, lm->embedding, none, &loss);
    return lm->log_probs = ml_log_softmax(g, ml_linear(g, x, lm->embedding, none));
}

/* ---- training ---- */

/* Row r of the batch: tokens from `at`, and those that follow. */
static inline void small_fill(small_lm *lm, int r, size_t at) {
    for (int i = 0; i < lm->length; i++) {
        lm->ids[r * lm->length + i] = lm->tokens[at + (size_t)i];
        lm->targets[r * lm->length + i] = lm->tokens[at + (size_t)i + 1];
    }
    lm->row_start[r + 1] = (r + 1) * lm->length;
}

static inline int small_graph(small_lm *lm, int rows, int length, int wants_loss, ml_graph **g) {
    ml_graph_desc desc = {0};
    ml_error error;
    desc.threads.count = lm->threads;
    lm->n_rows = rows, lm->length = length, lm->wants_loss = wants_loss;
    for (int r = 0; r < rows; r++) small_fill(lm, r, 0);
    return succeeded(ml_graph_new(&desc, small_build, lm, g, &error), &error);
}

/* Trains new weights; *speed (may be NULL) is tokens per second of processor time. */
static inline int small_train(small_lm *lm, const char *name, double *speed) {
    ml_parameter parameters[2 + SMALL_LAYERS * SMALL_PARTS];
    ml_optimizer_desc desc = {0};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_random random;
    ml_error error;
    double began = seconds_now();
    clock_t used = clock();
    if (!small_create(lm)) return 0;
    for (int i = 0; i < small_count(lm); i++)
        if (small_weight(lm, i)->data) {
            parameters[desc.n_parameters].tensor = small_weight(lm, i);
            parameters[desc.n_parameters++].group = 0;
        }
    desc.parameters = parameters;
    desc.adamw.lr = lm->lr, desc.adamw.clip = 1, desc.adamw.beta2 = 0.99f;
    desc.schedule.decay = ML_DECAY_COSINE, desc.schedule.total_steps = lm->steps;
    desc.schedule.warmup_steps = lm->steps / 20;
    desc.threads.count = lm->threads;
    ml_random_seed(&random, (uint64_t)lm->seed + 1);
    int ok = succeeded(ml_optimizer_new(&desc, &optimizer, &error), &error) &&
             small_graph(lm, lm->rows, lm->context, 1, &g);
    for (int step = 0; ok && step < lm->steps; step++) {
        for (int r = 0; r < lm->rows; r++)
            small_fill(lm, r, ml_random_u64(&random) % (lm->n_training - (size_t)lm->context - 1));
        ml_graph_begin(g, 1);
        ml_tensor loss = small_build(g, lm);
        ok = succeeded(ml_graph_backward(g, loss, &error), &error) &&
             succeeded(ml_optimizer_step(optimizer, &error), &error);
        progress_bar(name, step + 1, lm->steps, began);
    }
    double seconds = (double)(clock() - used) / CLOCKS_PER_SEC;
    if (speed) *speed = (double)lm->steps * lm->rows * lm->context / seconds;
    ml_graph_free(g);
    ml_optimizer_free(optimizer);
    return ok;
}

/* losses (length): -log p at each position, the mean over `texts` rows from the last tenth of the text. */
static inline int small_evaluate(small_lm *lm, int length, int texts, double *losses) {
    ml_graph *g = NULL;
    ml_error error;
    size_t held = lm->n_tokens - lm->n_training;
    int ok = small_graph(lm, 1, length, 0, &g);
    for (int i = 0; i < length; i++) losses[i] = 0;
    for (int t = 0; ok && t < texts; t++) {
        small_fill(lm, 0, lm->n_training + (held - (size_t)length - 1) * (size_t)t / (size_t)texts);
        ml_graph_begin(g, 0);
        small_build(g, lm);
        ok = succeeded(ml_graph_end(g, &error), &error);
        for (int i = 0; ok && i < length; i++)
            losses[i] -= (double)((const float *)lm->log_probs.data)[i * lm->vocab + lm->targets[i]] / texts;
    }
    ml_graph_free(g);
    return ok;
}

#endif
