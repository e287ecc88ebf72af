/* The header as a WebAssembly module, without a C library: what minillama.mjs calls. `make web` compiles it:
   clang --target=wasm32 -O3 -msimd128 -mbulk-memory -nostdlib -isystem examples/web/libc -I. ...
   Pointers are numbers in JavaScript, 0 is failure, and web_error() then points to a sentence. Memory that is handed in
   is from web_alloc. */
#define ML_STATIC
#define ML_NO_STDIO
#define ML_NO_MALLOC
#define ML_NO_LIBM
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

#define EXPORT(name) __attribute__((export_name(name)))
#define IMPORT(name) __attribute__((import_module("page"), import_name(name)))
#define NAN __builtin_nanf("")

#include "memory.h"

static ml_error error; /* of the last call that failed */

EXPORT("error") const char *web_error(void) { return error.text; }
EXPORT("error_code") int web_error_code(void) { return error.code; }
/* ---- models ---- */

/* data must outlive the model; the tokenizer's bytes (0: the model's own) and config.json (0: none) need not. */
EXPORT("model_load")
ml_model *web_model_load(const void *data, size_t size, const void *tokenizer, size_t tokenizer_size,
                         const void *json, size_t json_size) {
    ml_model *model;
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.tokenizer_data = tokenizer, desc.tokenizer_size = tokenizer_size;
    desc.config_json = json, desc.config_json_size = json_size;
    desc.allocator = web_allocator;
    return ml_model_load_memory(data, size, &desc, &model, &error) ? NULL : model;
}

EXPORT("model_free") void web_model_free(ml_model *model) { ml_model_free(model); }

/* Seven integers: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len. */
EXPORT("model_config") const int *web_model_config(const ml_model *model) { return &model->config.dim; }
EXPORT("model_parameters") double web_model_parameters(const ml_model *model) {
    return (double)model->n_parameters;
}
EXPORT("model_type") const char *web_model_type(const ml_model *model) {
    const ml_tensor *last = NULL;
    for (int i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].rows > 1 && model->tensors[i].data) last = &model->tensors[i];
    return ml_type_name(last ? last->type : ML_F32);
}
EXPORT("model_bos") int web_model_bos(const ml_model *model) {
    return model->tokenizer ? model->tokenizer->bos : -1;
}
EXPORT("model_eos") int web_model_eos(const ml_model *model) {
    return model->tokenizer ? model->tokenizer->eos : -1;
}

/* Whether a text begins with bos, as ml_session_generate decides it. */
EXPORT("model_adds_bos") int web_model_adds_bos(const ml_model *model) {
    return model->tokenizer && model->tokenizer->adds_bos;
}

/* Whether the token ends a text, as ml_session_generate decides it. */
EXPORT("model_ends") int web_model_ends(const ml_model *model, int32_t id) {
    return model->tokenizer && mli_is_end(model->tokenizer, id);
}

/* From how many tokens ml_session_generate draws: the rest of a padded vocabulary means nothing. */
EXPORT("model_drawn") int web_model_drawn(const ml_model *model) {
    return model->tokenizer ? model->tokenizer->n_pieces : model->config.vocab_size;
}

/* Whether these ids began a text, for web_decode. */
EXPORT("model_has_begun") int web_model_has_begun(const ml_model *model, const int32_t *ids, int n) {
    return model->tokenizer && mli_has_begun(model->tokenizer, ids, n);
}

/* Ids of the text in memory of `ids`, which has room for web_encode_size(n) bytes; returns how many, or -1. */
EXPORT("encode_size") size_t web_encode_size(size_t n) { return ml_tokenizer_encode_size(n); }
EXPORT("encode")
int web_encode(const ml_model *model, const char *text, size_t n, int flags, void *ids, size_t size) {
    ml_encode_desc desc = {text, n, flags, ids, size};
    ml_tokens tokens = {NULL, 0};
    if (!model->tokenizer) {
        mli_fail(&error, ML_ERROR_MISMATCH,
                 "this model has no tokenizer: open a tokenizer's file together with it");
        return -1;
    }
    if (ml_tokenizer_encode(model->tokenizer, &desc, &tokens, &error)) return -1;
    memmove(ids, tokens.ids, (size_t)tokens.n * sizeof *tokens.ids);
    return tokens.n;
}

/* The bytes that a token adds to a text. state: two integers, has_begun and how many bytes. */
EXPORT("decode") const char *web_decode(const ml_model *model, int32_t id, int32_t state[2]) {
    size_t n = 0;
    int has_begun = state[0];
    const char *bytes =
        model->tokenizer ? ml_tokenizer_decode_token(model->tokenizer, &has_begun, id, &n) : NULL;
    state[0] = has_begun, state[1] = (int32_t)n;
    return bytes;
}

/* ---- sessions ---- */

EXPORT("session_new")
ml_session *web_session_new(const ml_model *model, const ml_lora *lora, int max_seq_len, int max_batch) {
    ml_session *session;
    ml_session_desc desc = {0};
    desc.max_seq_len = max_seq_len, desc.max_batch = max_batch;
    desc.lora = lora;
    desc.allocator = web_allocator;
    return ml_session_new(model, &desc, &session, &error) ? NULL : session;
}
EXPORT("session_free") void web_session_free(ml_session *session) { ml_session_free(session); }

/* Makes the session hold these tokens, of which it keeps those that it has. Returns the logits after the last one. */
EXPORT("session_read") const float *web_session_read(ml_session *session, const int32_t *ids, int n) {
    const ml_tokens tokens = {ids, n};
    const float *logits;
    int kept = 0;
    if (ml_session_keep_prefix(session, &tokens, &kept, &error)) return NULL;
    return ml_session_eval(session, ids + kept, n - kept, &logits, &error) ? NULL : logits;
}

/* ---- choosing a token ---- */

/* best (k) = the most likely tokens with their probabilities, most likely first; *p = the probability of `id`. */
EXPORT("rank") void web_rank(const float *logits, int n, ml_candidate *best, int k, int32_t id, float *p) {
    const float max = mli_max(logits, (size_t)n), sum = mli_sum_exp(NULL, logits, max, (size_t)n);
    int held = 0;
    for (int i = 0; i < n; i++) {
        if (held == k && logits[i] <= best[k - 1].p) continue;
        int at = held < k ? held++ : k - 1;
        for (; at > 0 && logits[i] > best[at - 1].p; at--) best[at] = best[at - 1];
        best[at].p = logits[i], best[at].id = i;
    }
    for (int i = 0; i < held; i++) best[i].p = mli_expf(best[i].p - max) / sum;
    *p = mli_expf(logits[id] - max) / sum;
}

EXPORT("random_new") ml_random *web_random_new(double seed) {
    ml_random *random = (ml_random *)web_alloc(sizeof *random, NULL);
    if (random) ml_random_seed(random, (uint64_t)seed);
    return random;
}

/* Draws from a copy of the logits, in `work` of n floats and n candidates. The penalty looks at the n_ids tokens so
   far. -1: nothing can be drawn. */
EXPORT("sample")
int web_sample(const float *logits, int n, void *work, ml_random *random, const int32_t *ids, int n_ids,
               float temperature, int top_k, float top_p, float min_p, float penalty) {
    const ml_tokens history = {ids, n_ids};
    float *copy = (float *)((ml_candidate *)work + n);
    ml_sampler sampler = {temperature, top_k, top_p, min_p, 0, penalty, 0, random};
    memcpy(copy, logits, (size_t)n * sizeof *copy);
    const int id = ml_sampler_sample(&sampler, copy, n, &history, (ml_candidate *)work);
    if (id < 0)
        mli_fail(&error, ML_ERROR_NUMBER, "no token can be drawn: the logits hold no finite number, or NaN");
    return id;
}

/* ---- watching ---- */

typedef struct web_watch {
    float *weights; /* (L, A, n, n) */
    size_t n_heads;
} web_watch;

static void web_on_layer(void *user, const ml_seen *seen) {
    const web_watch *watch = (const web_watch *)user;
    const ml_tensor *w = &seen->weights;
    if (seen->layer >= 0)
        memcpy(watch->weights + (size_t)seen->layer * w->rows * w->cols, w->data,
               w->rows * w->cols * sizeof(float));
}

/* weights (L, A, n, n) = how much each of n tokens attends to each other, in all heads of all layers. */
EXPORT("attention")
int web_attention(const ml_model *model, const ml_lora *lora, const int32_t *ids, int n, float *weights) {
    web_watch watch = {weights, (size_t)model->config.n_heads};
    ml_session *session = NULL;
    ml_session_desc desc = {0};
    desc.max_seq_len = desc.max_batch = n;
    desc.lora = lora;
    desc.look.on_layer = web_on_layer;
    desc.look.user = &watch;
    desc.allocator = web_allocator;
    ml_result result = ml_session_new(model, &desc, &session, &error);
    if (!result) result = ml_session_eval(session, ids, n, NULL, &error);
    ml_session_free(session);
    return result == ML_OK;
}

/* log p(ids from `first` on | those before); the session holds them afterwards. NaN: failure. */
EXPORT("likelihood") double web_likelihood(ml_session *session, const int32_t *ids, int first, int n) {
    ml_likelihood of = {0, 0};
    ml_likelihood_desc desc = {NULL, NULL, {ids, first}, {ids + first, n - first}, NULL, 0};
    return ml_session_likelihood(session, &desc, &of, &error) ? (double)NAN : of.sum;
}

/* ---- adapters and heads ---- */

#ifndef ML_NO_TRAINING
EXPORT("lora_new")
ml_lora *web_lora_new(const ml_model *model, int rank, float alpha, int targets, double seed) {
    ml_lora *lora;
    ml_random random;
    ml_lora_create_desc desc = {rank, alpha, (unsigned)targets, 0, &random, web_allocator};
    ml_random_seed(&random, (uint64_t)seed);
    return ml_lora_create(model, &desc, &lora, &error) ? NULL : lora;
}
#endif
EXPORT("lora_load") ml_lora *web_lora_load(const void *data, size_t size, const ml_model *model) {
    ml_lora *lora;
    ml_load_desc desc = {NULL, 0, web_allocator};
    return ml_lora_load_memory(data, size, model, &desc, &lora, &error) ? NULL : lora;
}
EXPORT("lora_free") void web_lora_free(ml_lora *lora) { ml_lora_free(lora); }
#ifndef ML_NO_SAVE
/* Its GGUF file, which llama.cpp and the programs of examples/ read, too, in pieces. */
IMPORT("write") int web_write(void *user, const void *bytes, size_t n);
EXPORT("lora_save") int web_lora_save(const ml_lora *lora, const ml_model *model) {
    const ml_output output = {web_write, NULL};
    return ml_lora_save_to(lora, model, &output, NULL, &error) == ML_OK;
}
#endif
EXPORT("lora_parameters") double web_lora_parameters(const ml_lora *lora) {
    return (double)lora->n_parameters;
}

#ifndef ML_NO_TRAINING
EXPORT("head_new") ml_head *web_head_new(const ml_model *model, int n_classes, int pooling, double seed) {
    ml_head *head;
    ml_random random;
    ml_head_create_desc desc = {n_classes, NULL, (ml_pooling)pooling, 0, &random, web_allocator};
    ml_random_seed(&random, (uint64_t)seed);
    return ml_head_create(model, &desc, &head, &error) ? NULL : head;
}
EXPORT("head_free") void web_head_free(ml_head *head) { ml_head_free(head); }

/* log_probs (C) of one text. */
EXPORT("head_eval")
int web_head_eval(const ml_head *head, ml_session *session, const int32_t *ids, int n, float *log_probs) {
    ml_batch batch = {ids, n, NULL, 1, NULL, NULL, 0};
    return ml_head_eval(head, session, &batch, log_probs, &error) == ML_OK;
}

/* ---- training ---- */

/* head NULL: the adapter learns to predict targets. total_steps 0: the rate stays; else it falls along a cosine. */
EXPORT("trainer_new")
ml_trainer *web_trainer_new(ml_model *model, ml_lora *lora, ml_head *head, int max_tokens, int max_rows,
                            float lr, float dropout, int total_steps) {
    ml_trainer *trainer;
    ml_trainer_desc desc = {0};
    desc.lora = lora, desc.head = head;
    desc.frozen = !lora;
    desc.max_tokens = max_tokens, desc.max_rows = max_rows;
    desc.dropout = dropout;
    desc.adamw.lr = lr;
    desc.adamw.clip = 1;
    desc.allocator = web_allocator;
    desc.schedule.decay = total_steps ? ML_DECAY_COSINE : ML_DECAY_NONE;
    desc.schedule.total_steps = total_steps;
    return ml_trainer_new(model, &desc, &trainer, &error) ? NULL : trainer;
}
EXPORT("trainer_free") void web_trainer_free(ml_trainer *trainer) { ml_trainer_free(trainer); }

/* The loss of a batch, before the step that it leads to (step 0: none is done). NaN: failure. */
EXPORT("trainer_step")
float web_trainer_step(ml_trainer *trainer, const int32_t *tokens, int n_tokens, const int32_t *row_start,
                       int n_rows, const int32_t *targets, const int32_t *labels, int step) {
    ml_batch batch = {tokens, n_tokens, row_start, n_rows, targets, labels, 0};
    float loss = NAN;
    if (!step) return ml_trainer_eval(trainer, &batch, NULL, &loss, &error) ? NAN : loss;
    if (ml_trainer_backward(trainer, &batch, NULL, &loss, &error)) return NAN;
    return ml_trainer_step(trainer, &error) ? NAN : loss;
}
EXPORT("trainer_parameters") double web_trainer_parameters(const ml_trainer *trainer) {
    return (double)trainer->n_parameters;
}
EXPORT("trainer_rate") float web_trainer_rate(const ml_trainer *trainer) { return trainer->learning_rate; }
#endif
