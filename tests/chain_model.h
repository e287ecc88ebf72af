/* Tokenizers of single bytes and special pieces, whose ids can be written by hand, and models over them that follow a
   chain: each token decides the next one. */
#ifndef CHAIN_MODEL_H
#define CHAIN_MODEL_H

#include "build_files.h"
#include "models.h"

#define MARK "\xE2\x96\x81"
enum { CONTEXT = 256, WIDE = 272, MAX_SPECIAL = 6 };

/* ---- tokenizers of single bytes and special pieces ---- */

typedef struct vocabulary {
    int is_byte_level; /* else SentencePiece, with the pieces MARK and MARK "H", too */
    int kind;          /* of the special pieces: 3 control, 4 user-defined */
    int adds_bos, adds_space;
    const char *special[MAX_SPECIAL]; /* bos, eos, others */
} vocabulary;

static const vocabulary llama2 = {0, 3, 1, 1, {"<s>", "</s>"}};
static const vocabulary llama3 = {
    1,
    3,
    1,
    0,
    {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}};
static const vocabulary qwen2 = {1, 3, 0, 0, {"<|endoftext|>", "<|im_end|>", "<|im_start|>"}};
static const vocabulary user_defined = {1, 4, 0, 0, {"<|endoftext|>", "</s>", "<|im_start|>", "<|im_end|>"}};

static int count_special(const vocabulary *v) {
    int n = 0;
    while (n < MAX_SPECIAL && v->special[n]) n++;
    return n;
}

static int first_special(const vocabulary *v) { return v->is_byte_level ? 256 : 259; }
static int byte_id(const vocabulary *v, char c) { return (unsigned char)c + !v->is_byte_level; }
static int count_pieces(const vocabulary *v) { return first_special(v) + count_special(v); }

/* A byte as a piece: in GPT-2's alphabet the visible ones are themselves, the others U+0100 and on. */
static void byte_piece(const vocabulary *v, int b, char text[8]) {
    int other = 0;
    if (!v->is_byte_level) {
        snprintf(text, 8, "<0x%02X>", (unsigned)b);
        return;
    }
    for (int i = 0; i < b; i++) other += i < 33 || (i > 126 && i < 161) || i == 173;
    int is_visible = !(b < 33 || (b > 126 && b < 161) || b == 173), c = is_visible ? b : 256 + other;
    memset(text, 0, 8);
    text[0] = (char)(c < 128 ? c : 192 | c >> 6);
    if (c > 127) text[1] = (char)(128 | (c & 63));
}

static ml_tokenizer *make_tokenizer(const vocabulary *v) {
    bytes b = {NULL, 0, 0};
    ml_tokenizer *t = NULL;
    int n = count_pieces(v), base = first_special(v);
    gguf_begin(&b, 3, 0, 10);
    gguf_key(&b, "tokenizer.ggml.model", 8), gguf_text(&b, v->is_byte_level ? "gpt2" : "llama");
    gguf_key(&b, "tokenizer.ggml.pre", 8), gguf_text(&b, "llama-bpe");
    gguf_key(&b, "tokenizer.ggml.merges", 9), put_u32(&b, 8), put_u64(&b, 0);
    gguf_key(&b, "tokenizer.ggml.tokens", 9), put_u32(&b, 8), put_u64(&b, (uint64_t)n);
    if (!v->is_byte_level) gguf_text(&b, "<unk>");
    for (int i = 0; i < 256; i++) {
        char text[8];
        byte_piece(v, i, text);
        gguf_text(&b, text);
    }
    if (!v->is_byte_level) gguf_text(&b, MARK), gguf_text(&b, MARK "H");
    for (int i = 0; base + i < n; i++) gguf_text(&b, v->special[i]);
    gguf_key(&b, "tokenizer.ggml.scores", 9), put_u32(&b, 6), put_u64(&b, (uint64_t)n);
    for (int i = 0; i < n; i++) put_f32(&b, 0);
    gguf_key(&b, "tokenizer.ggml.token_type", 9), put_u32(&b, 5), put_u64(&b, (uint64_t)n);
    for (int i = 0; i < n; i++)
        put_u32(&b, i >= base ? (uint64_t)v->kind : v->is_byte_level || i > 256 ? 1u : i ? 6u : 2u);
    gguf_key(&b, "tokenizer.ggml.bos_token_id", 4), put_u32(&b, (uint64_t)base);
    gguf_key(&b, "tokenizer.ggml.eos_token_id", 4), put_u32(&b, (uint64_t)base + 1);
    gguf_key(&b, "tokenizer.ggml.add_bos_token", 7), put_u8(&b, (unsigned)v->adds_bos);
    gguf_key(&b, "tokenizer.ggml.add_space_prefix", 7), put_u8(&b, (unsigned)v->adds_space);
    if (ml_tokenizer_load_memory(b.data, b.size, NULL, &t, NULL)) exit(2);
    free_bytes(&b);
    return t;
}

/* The ids that are written here: {<s>} is a special piece, everything else a byte; in SentencePiece a space is MARK,
   and {H} the piece of MARK and H. */
static int written(const vocabulary *v, const char *text, int32_t *ids) {
    int n = 0;
    for (; *text; text++) {
        size_t length = strcspn(text, "}") - 1;
        if (!v->is_byte_level && *text == ' ') {
            ids[n++] = 257;
        } else if (strncmp(text, "{H}", 3) == 0) {
            ids[n++] = 258;
            text += 2;
        } else if (*text == '{') {
            int i = 0;
            while (strlen(v->special[i]) != length || strncmp(v->special[i], text + 1, length) != 0) i++;
            ids[n++] = first_special(v) + i;
            text += length + 1;
        } else {
            ids[n++] = byte_id(v, *text);
        }
    }
    return n;
}

/* ---- models ---- */

static inline ml_model *random_model(const vocabulary *v, float scale) {
    ml_config c = {.dim = WIDE, .hidden_dim = 8, .n_layers = 1, .n_heads = 2, .n_kv_heads = 1};
    ml_random random;
    ml_model *model = NULL;
    ml_tokenizer *t = make_tokenizer(v);
    if (!t) exit(2);
    c.vocab_size = t->n_pieces, c.max_seq_len = CONTEXT, c.head_dim = 4;
    ml_random_seed(&random, 3);
    if (create_model(&c, ML_F32, &random, NULL, &model, NULL) || ml_model_set_tokenizer(model, t, NULL))
        exit(2);
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *w = &model->tensors[i];
        for (size_t j = 0; w->data && w->rows > 1 && j < w->rows * w->cols; j++)
            ((float *)w->data)[j] *= scale;
    }
    return model;
}

/* A model that says, after the first token written in a pair, the second: pairs as in `written`. */
static inline ml_model *chain_model(const vocabulary *v, const char *const *pairs) {
    ml_model *model = random_model(v, 0);
    float *embedding = (float *)tensor_named(model, "token_embd.weight")->data;
    float *output = (float *)tensor_named(model, "output.weight")->data;
    for (int i = 0; i < model->config.vocab_size; i++) embedding[i * WIDE + i] = 1;
    for (; *pairs; pairs++) {
        int32_t ids[8];
        if (written(v, *pairs, ids) != 2) exit(2);
        output[ids[1] * WIDE + ids[0]] = 1;
    }
    return model;
}

#endif
