/* Shapes of models to measure with, and models of these shapes with random weights. */
#ifndef RANDOM_MODEL_H
#define RANDOM_MODEL_H

#include "../examples/common/report.h"

typedef struct model_shape {
    const char *name;
    int dim, hidden_dim, n_layers, n_heads, n_kv_heads, context;
    int tied_output;
} model_shape;

/* The first three are llama2.c's, the last is TinyLlama's. */
static const model_shape model_shapes[] = {{"15M", 288, 768, 6, 6, 6, 1024, 1},
                                           {"42M", 512, 1376, 8, 8, 8, 1024, 1},
                                           {"110M", 768, 2048, 12, 12, 12, 1024, 1},
                                           {"1.1B", 2048, 5632, 22, 32, 4, 2048, 0}};
enum { N_MODEL_SHAPES = sizeof model_shapes / sizeof *model_shapes, N_SMALL_SHAPES = 3 };

/* NULL if there is none of that name */
static inline const model_shape *model_shape_named(const char *name) {
    for (int i = 0; i < N_MODEL_SHAPES; i++)
        if (strcmp(model_shapes[i].name, name) == 0) return &model_shapes[i];
    return NULL;
}

/* The weights become `type` row by row, so that there is never a model of floats. NULL if that failed: it is said. */
static inline ml_model *random_model(const model_shape *shape, ml_type type, int seed) {
    ml_model_create_desc desc;
    ml_random random;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, (uint64_t)seed);
    desc.config.dim = shape->dim;
    desc.config.hidden_dim = shape->hidden_dim;
    desc.config.n_layers = shape->n_layers;
    desc.config.n_heads = shape->n_heads;
    desc.config.n_kv_heads = shape->n_kv_heads;
    desc.config.vocab_size = 32000;
    desc.config.max_seq_len = shape->context;
    desc.config.tied_output = shape->tied_output;
    desc.type = type;
    desc.random = &random;
    return succeeded(ml_model_create(&desc, &model, &error), &error) ? model : NULL;
}

#endif
