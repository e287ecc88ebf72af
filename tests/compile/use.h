/* Calls a little of everything, so that a build which links and returns 0 has run the library and not only compiled it.
   Needs no file, and no malloc. */
#ifndef USE_H
#define USE_H

#include "minillama.h"
#include <math.h>
#include <string.h>

#define USE(condition)                                                                                       \
    do {                                                                                                     \
        if (!(condition)) return __LINE__;                                                                   \
    } while (0)

/* Anything is refused that is no model, whichever parsers are built in. */
static int use_parsers(const ml_allocator *allocator) {
    static const char *const wrong[] = {"", "GGUF\3", "PK\3\4", "\20\0\0\0\0\0\0\0{", "\1\2\3\4\5\6\7\10"};
    ml_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    size_t i;
    memset(&desc, 0, sizeof desc);
    desc.allocator = *allocator;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        USE(ml_load_memory(wrong[i], strlen(wrong[i]), &desc, &model, &error) < 0);
        USE(error.code < 0 && error.text[0] && !model);
    }
#ifndef ML_NO_STDIO
    USE(ml_load("no such file", &desc, &model, &error) == ML_ERROR_FILE);
#endif
    return 0;
}

/* One pass over three tokens gives the logits that three passes over one do, to the rounding of sums of 32. */
static int use_session(const ml_model *model, const ml_allocator *allocator) {
    static const int32_t tokens[3] = {1, 7, 3};
    float together[16];
    const float *logits = NULL;
    ml_session *session = NULL;
    int i;
    USE(ml_session_new(model, NULL, allocator, &session, NULL) == ML_OK);
    USE(ml_eval(session, tokens, 3, &logits, NULL) == ML_OK);
    memcpy(together, logits, sizeof together);
    USE(ml_session_truncate(session, 0) == ML_OK && ml_session_length(session) == 0);
    for (i = 0; i < 3; i++) USE(ml_eval(session, tokens + i, 1, &logits, NULL) == ML_OK);
    for (i = 0; i < 16; i++) USE(fabs((double)logits[i] - (double)together[i]) <= 1e-5);
    USE(ml_eval(session, tokens, 3, &logits, NULL) == ML_OK);
    USE(ml_eval(session, tokens, 3, &logits, NULL) == ML_ERROR_CONTEXT);
    ml_session_free(session);
    return 0;
}

/* 0, or the line that went wrong. */
static int use_minillama(void) {
    static unsigned char memory[1 << 20];
    ml_arena arena;
    ml_allocator allocator;
    ml_random random;
    ml_config config;
    ml_model *model = NULL;
    int line;

    USE(!strcmp(ml_result_string(ML_OK), "ok"));
    USE(ml_row_bytes(ML_Q8_0, 64) == 68);
    ml_random_seed(&random, 0);
    USE(random.state[0] == 0xe220a8397b1dcdafu); /* splitmix64's first number from 0, as published */

    memset(&arena, 0, sizeof arena);
    arena.memory = memory;
    arena.size = sizeof memory;
    allocator = ml_arena_allocator(&arena);
    memset(&config, 0, sizeof config);
    config.dim = 32;
    config.hidden_dim = 64;
    config.n_layers = 2;
    config.n_heads = 4;
    config.n_kv_heads = 2;
    config.vocab_size = 16;
    config.max_seq_len = 8;
    config.tied_output = 1;
    USE(ml_create(&config, ML_F32, &random, &allocator, &model, NULL) == ML_OK);
    line = use_session(model, &allocator);
    if (line) return line;
    ml_free(model);
    return use_parsers(&allocator);
}

#endif
