/* web_models FOLDER MODEL: for each type of weights that is written a small model of random numbers, FOLDER/TYPE.gguf,
   and the logits of plain C, FOLDER/TYPE.logits: those after a prompt that is read at once, and those of three tokens
   that are read one by one. FOLDER/padded.gguf has the tokenizer of MODEL, and four times as many tokens. */
#define ML_NO_SIMD
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

enum { VOCABULARY = 96, PROMPT = 20, MORE = 3 };

static int write_logits(ml_session *session, FILE *file, ml_error *error) {
    int32_t ids[PROMPT + MORE];
    const float *logits;
    for (int i = 0; i < PROMPT + MORE; i++) ids[i] = (7 * i + 3) % VOCABULARY;
    for (int i = 0, n = PROMPT; i < PROMPT + MORE; i += n, n = 1) {
        if (ml_session_eval(session, ids + i, n, &logits, error)) return 0;
        if (fwrite(logits, sizeof *logits, VOCABULARY, file) != VOCABULARY) return 0;
    }
    return 1;
}

static int write_model(const ml_model *model, const char *folder, ml_type type, ml_error *error) {
    ml_save_desc save = {ML_GGUF, ML_TYPE_NONE, NULL, NULL};
    ml_session_desc desc;
    ml_model *saved = NULL;
    ml_session *session = NULL;
    char name[1000];
    save.type = type;
    memset(&desc, 0, sizeof desc);
    snprintf(name, sizeof name, "%s/%s.gguf", folder, ml_type_name(type));
    int ok = !ml_model_save(model, name, &save, error) && !ml_model_load(name, NULL, &saved, error);
    ok = ok && !ml_session_new(saved, &desc, &session, error);
    snprintf(name, sizeof name, "%s/%s.logits", folder, ml_type_name(type));
    FILE *file = ok ? fopen(name, "wb") : NULL;
    ok = file && write_logits(session, file, error);
    if (file && fclose(file)) ok = 0;
    ml_session_free(session);
    ml_model_free(saved);
    return ok;
}

static int write_padded(ml_model_create_desc *desc, const char *folder, const char *of, ml_error *error) {
    ml_tokenizer *tokenizer = NULL;
    ml_model *model = NULL;
    char name[1000];
    snprintf(name, sizeof name, "%s/padded.gguf", folder);
    int ok = !ml_tokenizer_load(of, NULL, &tokenizer, error);
    if (ok) desc->config.vocab_size = 4 * tokenizer->n_pieces;
    ok = ok && !ml_model_create(desc, &model, error);
    ok = ok && !ml_model_set_tokenizer(model, tokenizer, error);
    if (ok) tokenizer = NULL; /* it is the model's */
    ok = ok && !ml_model_save(model, name, NULL, error);
    ml_tokenizer_free(tokenizer);
    ml_model_free(model);
    return ok;
}

int main(int argc, char **argv) {
    static const ml_type types[] = {ML_F32,  ML_F16,  ML_BF16, ML_Q8_0, ML_Q4_0,
                                    ML_Q5_0, ML_Q5_1, ML_Q4_K, ML_Q5_K, ML_Q6_K};
    ml_random random;
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_model_create_desc desc;
    memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, 1);
    desc.random = &random;
    desc.config.dim = 256, desc.config.hidden_dim = 512; /* blocks of 256 */
    desc.config.n_layers = desc.config.n_kv_heads = 2, desc.config.n_heads = 4;
    desc.config.vocab_size = VOCABULARY, desc.config.max_seq_len = 32;
    int ok = argc == 3 && !ml_model_create(&desc, &model, &error);
    for (size_t i = 0; ok && i < sizeof types / sizeof *types; i++)
        ok = write_model(model, argv[1], types[i], &error);
    ok = ok && write_padded(&desc, argv[1], argv[2], &error);
    if (!ok) fprintf(stderr, "web_models: %s\n", argc == 3 ? error.text : "name a folder and a model");
    ml_model_free(model);
    return !ok;
}
