/* The methods of decoding by name, with the settings that examples/advanced/decoding.md found; and loading a
   model. */
#ifndef METHODS_H
#define METHODS_H

#include "decoder.h"
#include "../common/file.h"

typedef struct method {
    const char *name, *about;
    decoding how;
} method;

static const method methods[] = {
    {"greedy", "always the most likely token", {.sampler = {0}}},
    {"sample", "draws from the model's distribution", {.sampler = {.temperature = 1}}},
    {"temperature", "the same, sharper", {.sampler = {.temperature = 0.7f}}},
    {"top-k", "from the k most likely", {.sampler = {.temperature = 1, .top_k = 40}}},
    {"top-p", "from the most likely with mass p", {.sampler = {.temperature = 1, .top_p = 0.9f}}},
    {"min-p", "from what has min_p of the best", {.sampler = {.temperature = 1, .min_p = 0.1f}}},
    {"typical", "from the locally typical set", {.sampler = {.temperature = 1}, .typical = 0.7f}},
    {"eta", "from what is above an entropy-dependent bound", {.sampler = {.temperature = 1}, .eta = 0.05f}},
    {"mirostat", "with a controlled surprise", {.sampler = {.temperature = 1}, .surprise = 2, .rate = 0.1f}},
    {"dry",
     "greedy, long repetitions cost",
     {.sampler = {0}, .dry = 1.6f, .dry_base = 1.75f, .dry_length = 2}},
    {"no-repeat", "greedy, no n-gram twice", {.sampler = {0}, .no_repeat = 4}},
    {"contrastive", "likely, but unlike the text so far", {.candidates = 4, .similarity = 0.6f}},
    {"beam", "beam search", {.beams = 4, .length_penalty = 0.6f}},
    {"diverse", "diverse beam search", {.beams = 4, .groups = 2, .diversity = 0.5f, .length_penalty = 0.6f}},
    {"beam-no-repeat", "beam search, no n-gram twice", {.beams = 4, .length_penalty = 0.6f, .no_repeat = 4}},
    {"beam-dry",
     "beam search, long repetitions cost",
     {.beams = 4, .length_penalty = 0.6f, .dry = 1.6f, .dry_base = 1.75f, .dry_length = 2}},
};

enum { N_METHODS = (int)(sizeof methods / sizeof *methods) };

/* NULL after saying which there are. */
static inline const method *method_named(const char *name) {
    for (int i = 0; i < N_METHODS; i++)
        if (strcmp(name, methods[i].name) == 0) return &methods[i];
    fprintf(stderr, "error: --method: no method is named %s; there are", name);
    for (int i = 0; i < N_METHODS; i++) fprintf(stderr, "%s %s", i ? "," : "", methods[i].name);
    fprintf(stderr, "\n");
    return NULL;
}

/* A model with a tokenizer: its own, or that of a file, which `flag` names. NULL after saying why not. */
static inline ml_model *load_with_tokenizer(const char *path, const char *flag, const char *tokenizer,
                                            ml_type type) {
    ml_model_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.tokenizer = tokenizer;
    desc.type = type;
    if (!loaded(path, ml_model_load(path, &desc, &model, &error), &error)) return NULL;
    if (tokenizer_ready(model, path, flag)) return model;
    ml_model_free(model);
    return NULL;
}

/* The text that `more` adds to the tokens before it; 0 without memory. */
static inline int append_text(const ml_tokenizer *tokenizer, const ml_tokens *before, const ml_tokens *more,
                              buffer *text) {
    int has_begun = 0, ok = 1;
    size_t n;
    for (int i = 0; i < before->n; i++) ml_tokenizer_decode_token(tokenizer, &has_begun, before->ids[i], &n);
    for (int i = 0; ok && i < more->n; i++) {
        const char *bytes = ml_tokenizer_decode_token(tokenizer, &has_begun, more->ids[i], &n);
        ok = buffer_append(text, bytes ? bytes : "", n);
    }
    return ok && buffer_append(text, "", 0);
}

/* The next line of a text, which is cut there; NULL at its end. Empty lines do not count. */
static inline char *next_line(char **rest) {
    char *line;
    do {
        line = *rest;
        if (!*line) return NULL;
        size_t n = strcspn(line, "\n");
        *rest = line + n + (line[n] != 0);
        line[n] = 0;
    } while (!*line);
    return line;
}

#endif
