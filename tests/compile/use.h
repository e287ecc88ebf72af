/* Calls a little of everything, so that a build that links and returns 0 has run the library and not only compiled
   it. Needs no file, and no malloc. */
#ifndef USE_H
#define USE_H

#include "minillama.h"
#include <math.h>
#include <string.h>

/* What a sentence says; with ML_NO_ERROR_TEXT there is none. */
#ifdef ML_NO_ERROR_TEXT
#define SAYS(words) (error.text[0] != 0)
#else
#define SAYS(words) (strstr(error.text, words) != NULL)
#endif

#define USE(condition)                                                                                       \
    do {                                                                                                     \
        if (!(condition)) return __LINE__;                                                                   \
    } while (0)

/* Anything that is not a model is refused, whichever parsers are built in. */
static int use_parsers(const ml_allocator *allocator) {
    static const char *const wrong[] = {"", "GGUF\3", "PK\3\4", "\20\0\0\0\0\0\0\0{", "\1\2\3\4\5\6\7\10"};
    ml_model_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.allocator = *allocator;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        USE(ml_model_load_memory(wrong[i], strlen(wrong[i]), &desc, &model, &error) < 0);
        USE(error.code < 0 && error.text[0] && !model);
    }
    static const char empty[25] = "GGUF\3"; /* without keys and tensors */
    USE(ml_model_load_memory(empty, 24, &desc, &model, &error) == ML_ERROR_MISMATCH);
    USE(SAYS("llama.embedding_length"));
#ifdef ML_NO_PT /* a format that is left out is recognized, and the sentence names the switch */
    USE(ml_model_load_memory("PK\3\4", 4, &desc, &model, &error) == ML_ERROR_UNSUPPORTED);
    USE(SAYS("ML_NO_PT"));
    USE(ml_model_load_memory("L119547037146038801333356L\n.", 28, &desc, &model, &error) ==
        ML_ERROR_UNSUPPORTED);
    USE(SAYS("ML_NO_PT"));
#endif
#ifdef ML_NO_SAFETENSORS
    static const char safetensors[] = "\2\0\0\0\0\0\0\0{}";
    USE(ml_model_load_memory(safetensors, 10, &desc, &model, &error) == ML_ERROR_UNSUPPORTED);
    USE(SAYS("ML_NO_SAFETENSORS"));
#endif
#ifdef ML_NO_BIN
    static const int32_t bin[7] = {64, 128, 2, 4, 4, 512, 128};
    USE(ml_model_load_memory(bin, sizeof bin, &desc, &model, &error) == ML_ERROR_UNSUPPORTED);
    USE(SAYS("ML_NO_BIN"));
    USE(ml_model_load_memory("24ka\1", 5, &desc, &model, &error) == ML_ERROR_UNSUPPORTED);
#endif
#ifdef ML_NO_TOKENIZER_MODEL
    ml_tokenizer *pieces = NULL;
    ml_load_desc with;
    memset(&with, 0, sizeof with);
    with.allocator = *allocator;
    USE(ml_tokenizer_load_memory("\12\16\12\5<unk>", 9, &with, &pieces, &error) < 0);
    USE(error.code == ML_ERROR_UNSUPPORTED && SAYS("ML_NO_TOKENIZER_MODEL"));
#endif
#ifdef ML_NO_BPE
    ml_tokenizer *tokenizer = NULL;
    ml_load_desc how;
    memset(&how, 0, sizeof how);
    how.allocator = *allocator;
    USE(ml_tokenizer_load_memory("{\"model\": {}}", 13, &how, &tokenizer, &error) == ML_ERROR_UNSUPPORTED);
    USE(SAYS("ML_NO_BPE"));
#endif
#ifndef ML_NO_STDIO
    USE(ml_model_load("no such file", &desc, &model, &error) == ML_ERROR_FILE);
#endif
    return 0;
}

static void use_look(void *user, const ml_seen *seen) {
    int *layers = (int *)user;
    *layers += seen->layer + 1;
}

/* One pass over three tokens gives the logits of three passes over one, up to the rounding of sums of 32. */
static int use_session(const ml_model *model, const ml_allocator *allocator) {
    static const int32_t tokens[3] = {1, 7, 3};
    float together[16];
    int layers = 0;
    const float *logits = NULL;
    ml_session *session = NULL;
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.allocator = *allocator;
#ifdef ML_NO_F16_WEIGHTS
    desc.cache_type = ML_F16;
    USE(ml_session_new(model, &desc, &session, NULL) == ML_ERROR_UNSUPPORTED);
    desc.cache_type = ML_F32;
#endif
    desc.look.on_layer = use_look, desc.look.user = &layers;
#ifdef ML_NO_LOOK
    USE(ml_session_new(model, &desc, &session, NULL) == ML_ERROR_UNSUPPORTED);
    desc.look.on_layer = NULL;
#endif
    USE(ml_session_new(model, &desc, &session, NULL) == ML_OK);
    USE(ml_session_eval(session, tokens, 3, &logits, NULL) == ML_OK);
    USE(!desc.look.on_layer || layers == model->config.n_layers * (model->config.n_layers + 1) / 2);
    memcpy(together, logits, sizeof together);
    USE(ml_session_truncate(session, 0, NULL) == ML_OK && session->length == 0);
    for (int i = 0; i < 3; i++) USE(ml_session_eval(session, tokens + i, 1, &logits, NULL) == ML_OK);
    for (int i = 0; i < 16; i++) USE(fabs((double)logits[i] - (double)together[i]) <= 1e-5);
    USE(ml_session_eval(session, tokens, 3, &logits, NULL) == ML_OK);
    USE(ml_session_eval(session, tokens, 3, &logits, NULL) == ML_ERROR_CONTEXT);
    ml_session_free(session);
    return 0;
}

#if !defined(ML_NO_SAMPLER) || !defined(ML_NO_TRAINING)
/* What is not finite is told by its bits, whatever the compiler assumes. */
static float use_nan(void) {
    const uint32_t bits = 0x7fc00000u;
    float nan_value;
    memcpy(&nan_value, &bits, sizeof nan_value);
    return nan_value;
}
#endif

#ifdef ML_NO_SAMPLER
/* Nothing is drawn any more; the most likely token is still found. */
static int use_sampler(const ml_model *model, const ml_allocator *allocator) {
    static const int32_t prompt[2] = {1, 7};
    ml_session *session = NULL;
    ml_random random;
    ml_session_desc desc;
    ml_generate_desc how;
    memset(&desc, 0, sizeof desc), memset(&how, 0, sizeof how);
    ml_random_seed(&random, 1);
    desc.allocator = *allocator;
    how.prompt_ids.ids = prompt, how.prompt_ids.n = 2, how.max_new_tokens = 2;
    USE(ml_session_new(model, &desc, &session, NULL) == ML_OK);
    USE(ml_session_generate(session, &how, NULL, NULL) == ML_OK && session->length == 4);
    how.sampler.temperature = 1, how.sampler.random = &random;
    USE(ml_session_generate(session, &how, NULL, NULL) == ML_ERROR_UNSUPPORTED);
    how.sampler.temperature = 0, how.sampler.repetition_penalty = 2;
    USE(ml_session_generate(session, &how, NULL, NULL) == ML_ERROR_UNSUPPORTED);
    ml_session_free(session);
    return 0;
}
#else
static int use_sampler(const ml_model *model, const ml_allocator *allocator) {
    float logits[3] = {0, 1, 0};
    ml_candidate work[3];
    ml_sampler sampler;
    (void)model, (void)allocator;
    memset(&sampler, 0, sizeof sampler);
    USE(ml_sampler_sample(&sampler, logits, 3, NULL, work) == 1);
    logits[2] = use_nan();
    USE(ml_sampler_sample(&sampler, logits, 3, NULL, work) == -1);
    return 0;
}
#endif

#ifndef ML_NO_SAVE
static int use_write(void *user, const void *bytes, size_t n) { return (void)user, bytes && n; }
#endif

/* Stretched positions are refused where they are left out, in a table and in a model. */
static int use_rope(const ml_allocator *allocator, ml_model_create_desc desc) {
    float table[2 * 4];
    ml_model *model = NULL;
    ml_rope_desc rope;
    memset(&rope, 0, sizeof rope);
    rope.hd = 4;
    USE(ml_rope_table(&rope, table, 2) == ML_OK && table[0] == 1 && table[1] == 0);
    rope.scale = 2, desc.config.rope_scale = 2;
    desc.allocator = *allocator;
#ifdef ML_NO_ROPE_SCALING
    const ml_result expected = ML_ERROR_UNSUPPORTED;
#else
    const ml_result expected = ML_OK;
#endif
    USE(ml_rope_table(&rope, table, 2) == expected);
    USE(ml_model_create(&desc, &model, NULL) == expected);
    ml_model_free(model);
    desc.config.rope_scale = 1, desc.config.rope_original = 1; /* says nothing where nothing is stretched */
    USE(ml_model_create(&desc, &model, NULL) == ML_OK);
#ifndef ML_NO_SAVE
    const ml_output nowhere = {use_write, NULL};
    USE(ml_model_save_to(model, &nowhere, NULL, NULL) == ML_OK);
#endif
    ml_model_free(model);
    desc.config.rope_attention = 2;
    USE(ml_model_create(&desc, &model, NULL) == expected);
    ml_model_free(model);
    return 0;
}

static int use_numbers(void) {
    static unsigned char block[144];
    static float numbers[256];
    USE(ml_type_row_bytes(ML_Q4_K, 256) == sizeof block);
#ifdef ML_NO_F16_WEIGHTS
    USE(ml_type_convert(ML_F32, numbers, ML_F16, block, 2) == ML_ERROR_UNSUPPORTED);
    USE(ml_type_convert(ML_BF16, block, ML_F32, numbers, 2) == ML_ERROR_UNSUPPORTED);
#else
    USE(ml_type_convert(ML_F32, numbers, ML_F16, block, 2) == ML_OK);
#endif
#ifdef ML_NO_K_QUANTS
    USE(ml_type_convert(ML_F32, numbers, ML_Q4_K, block, 256) == ML_ERROR_UNSUPPORTED);
#else
    USE(ml_type_convert(ML_F32, numbers, ML_Q4_K, block, 256) == ML_OK);
#endif
    return 0;
}

/* Rows of 24 have no blocks of 32. */
static int use_blocks(const ml_allocator *allocator, ml_model_create_desc desc) {
    static const int32_t tokens[2] = {1, 7};
    const float *logits = NULL;
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_session_desc how;
    memset(&how, 0, sizeof how);
    desc.allocator = how.allocator = *allocator;
    desc.type = ML_Q8_0, desc.config.dim = 24;
#ifdef ML_NO_F16_WEIGHTS
    const ml_type expected = ML_F32;
#else
    const ml_type expected = ML_F16;
#endif
    USE(ml_model_create(&desc, &model, NULL) == ML_OK && model->tensors[0].type == expected);
    USE(ml_session_new(model, &how, &session, NULL) == ML_OK);
    USE(ml_session_eval(session, tokens, 2, &logits, NULL) == ML_OK);
    USE(fabs((double)logits[3]) < 1); /* not of memory that nobody wrote to */
    ml_session_free(session);
    ml_model_free(model);
    return 0;
}

#ifndef ML_NO_TRAINING
/* Steps on one sequence make it likelier, and a broken model is noticed. */
static int use_trainer(ml_model *model, const ml_allocator *allocator) {
    static const int32_t tokens[4] = {1, 7, 3, 9}, targets[4] = {7, 3, 9, 2};
    float first = 0, loss = 0;
    ml_trainer *trainer = NULL;
    ml_trainer_desc desc;
    ml_batch batch;
    memset(&desc, 0, sizeof desc);
    memset(&batch, 0, sizeof batch);
    desc.adamw.lr = 1e-2f;
    desc.allocator = *allocator;
    batch.tokens = tokens;
    batch.targets = targets;
    batch.n_tokens = 4;
    USE(ml_trainer_new(model, &desc, &trainer, NULL) == ML_OK);
    for (int step = 0; step < 5; step++) {
        USE(ml_trainer_backward(trainer, &batch, NULL, step ? &loss : &first, NULL) == ML_OK);
        USE(ml_trainer_step(trainer, NULL) == ML_OK);
    }
    USE(loss < first);
    ((float *)model->tensors[0].data)[7 * model->config.dim] = use_nan();
    USE(ml_trainer_backward(trainer, &batch, NULL, NULL, NULL) == ML_ERROR_NUMBER);
    ml_trainer_free(trainer);
    return 0;
}
#endif

/* 0, or the line that went wrong. */
static int use_minillama(void) {
    static unsigned char memory[4 << 20];
    ml_arena arena = {memory, sizeof memory, 0};
    ml_allocator allocator = ml_arena_allocator(&arena);
    ml_random random;
    ml_model_create_desc desc;
    ml_model *model = NULL;

    USE(!strcmp(ml_result_string(ML_OK), "ok"));
    USE(ml_type_row_bytes(ML_Q8_0, 64) == 68);
    ml_random_seed(&random, 0);
    USE(random.state[0] == 0xe220a8397b1dcdafu); /* splitmix64's first number from 0, as published */

    memset(&desc, 0, sizeof desc);
    desc.random = &random;
    desc.allocator = allocator;
    desc.config.dim = 32;
    desc.config.hidden_dim = 64;
    desc.config.n_layers = 2;
    desc.config.n_heads = 4;
    desc.config.n_kv_heads = 2;
    desc.config.vocab_size = 16;
    desc.config.max_seq_len = 8;
    desc.config.tied_output = 1;
    USE(ml_model_create(&desc, &model, NULL) == ML_OK);
    int line = use_session(model, &allocator);
    if (!line) line = use_sampler(model, &allocator);
    if (!line) line = use_rope(&allocator, desc);
    if (!line) line = use_blocks(&allocator, desc);
    if (!line) line = use_numbers();
    if (line) return line;
#ifndef ML_NO_TRAINING
    line = use_trainer(model, &allocator);
    if (line) return line;
#endif
    ml_model_free(model);
    return use_parsers(&allocator);
}

#endif
