/* Models made in one line, how to save them, and their tensors by name. */
#ifndef MODELS_H
#define MODELS_H

#include "preamble.h"

/* ml_model_create in one line; the config NULL: no description. */
static inline ml_result create_model(const ml_config *config, ml_type type, ml_random *random,
                                     const ml_allocator *allocator, ml_model **model, ml_error *error) {
    ml_model_create_desc desc;
    memset(&desc, 0, sizeof desc);
    if (config) desc.config = *config;
    desc.type = type;
    desc.random = random;
    if (allocator) desc.allocator = *allocator;
    return ml_model_create(config ? &desc : NULL, model, error);
}

static inline ml_save_desc save_as(ml_format format, ml_type type) {
    ml_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.format = format;
    desc.type = type;
    return desc;
}

/* Where the tensor of this GGUF name is in model->tensors. A name that no model has ends the program. */
static inline int tensor_index(const ml_model *model, const char *name) {
    char at[ML_NAME_SIZE];
    for (int i = 0; i < model->n_tensors; i++)
        if (!ml_model_tensor_name(model, i, at) && strcmp(at, name) == 0) return i;
    printf("no tensor is named %s\n", name);
    return exit(2), -1; /* not every compiler knows that exit does not return */
}

static inline const ml_tensor *tensor_named(const ml_model *model, const char *name) {
    return &model->tensors[tensor_index(model, name)];
}

/* The tensor "blk.LAYER.NAME". */
static inline const ml_tensor *layer_tensor(const ml_model *model, int layer, const char *name) {
    char full[ML_NAME_SIZE];
    snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    return tensor_named(model, full);
}

#endif
