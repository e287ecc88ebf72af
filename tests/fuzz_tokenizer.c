/* Fuzzing: whatever the bytes, loading them as a tokenizer must end soon, in a tokenizer or an error; and a tokenizer
   encodes any text into its ids, which decode to the text. The last bytes of the input are the text, as many as the
   very last byte says.
     make fuzz                            under libFuzzer, with sanitizers (clang)
     build/test_fuzz_tokenizer FILE...    replays files; without any, a fixed set of mutated seeds */
#define MINILLAMA_IMPLEMENTATION
#include "fuzz.h"

static void require(int condition) {
    if (!condition) abort();
}

/* Does the text come back byte for byte? Not where spaces are dropped, characters can be unknown, or it contains
   U+2581, which is a space unless bytes are pieces. */
static int is_lossless(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    const mli_tokenizer *t = (const mli_tokenizer *)tokenizer;
    for (size_t i = 0; i + 3 <= n && !t->rules.words; i++)
        if (memcmp(text + i, "\xE2\x96\x81", 3) == 0) return 0;
    return t->has_bytes && !t->rules.removes_extra_spaces && !t->rules.spares_spaces;
}

static void check_text(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    static char decoded[300 * 1024];
    size_t size = ml_tokenizer_encode_size(n), n_decoded, at = 0;
    ml_encode_desc encode = {(const char *)text, n, 0, malloc(size), size};
    ml_tokens tokens = {NULL, 0};
    int has_begun = 0;
    if (ml_tokenizer_encode(tokenizer, &encode, &tokens, NULL) == ML_OK) {
        require((size_t)tokens.n <= n + 1);
        require(ml_tokenizer_decode(tokenizer, &tokens, decoded, sizeof decoded, &n_decoded, NULL) == ML_OK);
        for (int i = 0; i < tokens.n; i++) {
            size_t length;
            const char *piece = ml_tokenizer_decode_token(tokenizer, &has_begun, tokens.ids[i], &length);
            require(piece && length <= n_decoded - at && memcmp(piece, decoded + at, length) == 0);
            at += length;
        }
        require(at == n_decoded);
        if (is_lossless(tokenizer, text, n)) require(n_decoded == n && (!n || memcmp(decoded, text, n) == 0));
    }
    /* special pieces in the text take the place of at least a byte each */
    encode.flags = ML_PARSE_SPECIAL;
    int n_plain = tokens.n;
    if (ml_tokenizer_encode(tokenizer, &encode, &tokens, NULL) == ML_OK) {
        require((size_t)tokens.n <= n + 1);
        require(ml_tokenizer_decode(tokenizer, &tokens, decoded, sizeof decoded, &n_decoded, NULL) == ML_OK);
    }
    tokens.n = n_plain;
    /* what the file asks to be put around a text is there to be put */
    encode.flags = ML_ADD_SPECIAL;
    int added = tokens.n;
    if (ml_tokenizer_encode(tokenizer, &encode, &tokens, NULL) == ML_OK)
        require(tokens.n - added == tokenizer->adds_bos + tokenizer->adds_eos);
    else
        require(added == 0);
    free(encode.work);
}

static void check_ids(const ml_tokenizer *t) {
    const int32_t all = t->n_pieces;
    require(t->bos < all && t->eos < all && t->unknown < all && t->padding < all);
    require(t->n_ends >= 0 && t->n_ends <= ML_MAX_ENDS);
    for (int i = 0; i < t->n_ends; i++) require(t->ends[i] >= 0 && t->ends[i] < all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    size_t n_text = size && data[size - 1] < size ? data[size - 1] : size ? size - 1 : 0, length;
    const uint8_t *text = size ? data + size - 1 - n_text : data;
    ml_result result = ml_tokenizer_load_memory(data, size, NULL, &tokenizer, &error);
    require(result == error.code && (!result) == (tokenizer != NULL) && (!result) == !error.text[0]);
    if (result) { /* perhaps without the text after it */
        result = ml_tokenizer_load_memory(data, size ? size - 1 - n_text : 0, NULL, &tokenizer, NULL);
        if (result) return 0;
    }
    for (int32_t id = 0; id < tokenizer->n_pieces; id++)
        require(ml_tokenizer_piece(tokenizer, id, &length, NULL, NULL) && length <= 1024);
    fuzz_accepted = 1;
    check_ids(tokenizer);
    check_text(tokenizer, text, n_text);
    ml_tokenizer_free(tokenizer);
    return 0;
}

/* SentencePiece's message of one piece. */
static void put_model_piece(bytes *b, const char *text, float score, unsigned kind) {
    put_u8(b, 10), put_u8(b, (unsigned)strlen(text) + 9);
    put_u8(b, 10), put_u8(b, (unsigned)strlen(text)), put_text(b, text);
    put_u8(b, 21), put_f32(b, score);
    put_u8(b, 24), put_u8(b, kind);
}

static void put_bin_piece(bytes *b, const char *text, float score, unsigned kind) {
    (void)kind;
    put_f32(b, score);
    put_u32(b, strlen(text));
    put_text(b, text);
}

/* The special pieces, the bytes, characters and merges. */
static void put_pieces(bytes *b, void (*put_piece)(bytes *, const char *, float, unsigned)) {
    static const char *const texts[] = {"\xE2\x96\x81",     "a",    "b",       "ab",
                                        "\xE2\x96\x81\x61", "abab", "\xC3\xA9"};
    put_piece(b, "<unk>", 0, 2);
    put_piece(b, "<s>", 0, 3);
    put_piece(b, "</s>", 0, 3);
    for (unsigned i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        put_piece(b, name, 0, 6);
    }
    for (int i = 0; i < 7; i++) put_piece(b, texts[i], -(float)i, 1);
}

static void put_list(bytes *b, const char *key, unsigned type, uint64_t n) {
    gguf_key(b, key, 9);
    put_u32(b, type);
    put_u64(b, n);
}

/* A GGUF with lists of less common types, and with several ids that end a text. */
static void put_gguf(bytes *b) {
    static const char *const texts[] = {"<unk>", "<s>", "</s>", "\xE2\x96\x81", "a", "b", "ab", "<end>"};
    static const unsigned kinds[] = {2, 3, 3, 1, 1, 1, 1, 3};
    gguf_begin(b, 3, 0, 8);
    gguf_key(b, "tokenizer.ggml.model", 8);
    gguf_text(b, "llama");
    put_list(b, "tokenizer.ggml.tokens", 8, 8);
    for (int i = 0; i < 8; i++) gguf_text(b, texts[i]);
    put_list(b, "tokenizer.ggml.scores", 12, 8); /* F64 */
    for (int i = 0; i < 8; i++) put_u64(b, 0xbff0000000000000u + ((uint64_t)i << 50));
    put_list(b, "tokenizer.ggml.token_type", 1, 8); /* I8 */
    for (int i = 0; i < 8; i++) put_u8(b, kinds[i]);
    gguf_key(b, "tokenizer.ggml.eot_token_id", 4);
    put_u32(b, 7);
    put_list(b, "tokenizer.ggml.eos_token_id", 5, 2); /* I32 */
    put_u32(b, 2), put_u32(b, 7);
    put_list(b, "tokenizer.ggml.eos_token_ids", 11, 1); /* I64 */
    put_u64(b, 6);
    gguf_key(b, "tokenizer.ggml.add_eos_token", 7);
    put_u8(b, 1);
}

#ifndef ML_NO_BPE
/* Byte-level: all bytes, in the alphabet, and merges. */
static void put_spelled(bytes *b, unsigned byte) {
    uint32_t c = mli_spell_byte(byte);
    if (c == '"' || c == '\\') put_u8(b, '\\');
    if (c >= 0x80) put_u8(b, 0xC0 | c >> 6);
    put_u8(b, c < 0x80 ? c : 0x80 | (c & 63));
}

static void put_json(bytes *b) {
    put_text(
        b,
        "{\"added_tokens\": [{\"id\": 259, \"content\": \"<end>\", \"special\": true}, {\"id\": 260, "
        "\"content\": \"<a>\"}], \"normalizer\": null, \"pre_tokenizer\": {\"type\": \"Sequence\", "
        "\"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": true}, {\"type\": \"ByteLevel\", "
        "\"add_prefix_space\": false}]}, \"model\": {\"type\": \"BPE\", \"ignore_merges\": true, "
        "\"merges\": [\"a b\", [\"ab\", \"ab\"], \"\xC4\xA0 a\"], \"vocab\": {\"ab\": 256, \"abab\": 257, "
        "\"\xC4\xA0\\u0061\": 258");
    for (unsigned i = 0; i < 256; i++) {
        char id[16];
        put_text(b, ", \"");
        put_spelled(b, i);
        snprintf(id, sizeof id, "\": %u", i);
        put_text(b, id);
    }
    put_text(b, "}}}");
}

static void put_characters_json(bytes *b) {
    put_text(b, "{\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": "
                "\"\xE2\x96\x81\"}, \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": "
                "\"\xE2\x96\x81\"}, \"model\": {\"byte_fallback\": true, \"merges\": [\"a b\"], \"vocab\": {"
                "\"a\": 256, \"b\": 257, \"ab\": 258");
    for (unsigned i = 0; i < 256; i++) {
        char text[32];
        snprintf(text, sizeof text, ", \"<0x%02X>\": %u", i, i);
        put_text(b, text);
    }
    put_text(b, "}}, \"added_tokens\": [{\"id\": 259, \"content\": \"b<\", \"special\": true}]}");
}

static void put_byte_level_gguf(bytes *b) {
    static const char *const texts[] = {"a", "b", "ab", "<end>", "\xC4\xA0", "\xC3\x83", "abab", "\xC2\xA9"};
    static const char *const merges[] = {"a b", "ab ab"};
    gguf_begin(b, 3, 0, 5);
    gguf_key(b, "tokenizer.ggml.model", 8), gguf_text(b, "gpt2");
    gguf_key(b, "tokenizer.ggml.pre", 8), gguf_text(b, "llama-bpe");
    put_list(b, "tokenizer.ggml.tokens", 8, 8);
    for (int i = 0; i < 8; i++) gguf_text(b, texts[i]);
    put_list(b, "tokenizer.ggml.token_type", 5, 8); /* I32 */
    for (int i = 0; i < 8; i++) put_u32(b, i == 3 ? 3 : 1);
    put_list(b, "tokenizer.ggml.merges", 8, 2);
    for (int i = 0; i < 2; i++) gguf_text(b, merges[i]);
}

/* Every step that a file may have around the model. */
static void put_steps_json(bytes *b) {
    put_text(
        b,
        "{\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}, "
        "\"pre_tokenizer\": "
        "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "
        "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}, "
        "\"behavior\": "
        "\"Isolated\", \"invert\": false}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
        "\"use_regex\": false}]}, \"decoder\": {\"type\": \"ByteLevel\"}, \"post_processor\": {\"type\": "
        "\"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"TemplateProcessing\", "
        "\"single\": "
        "[{\"SpecialToken\": {\"id\": \"<b>\"}}, {\"Sequence\": {\"id\": \"A\"}}, {\"SpecialToken\": "
        "{\"id\": "
        "\"<e>\"}}]}]}, \"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]}, "
        "\"added_tokens\": [{\"id\": 3, \"content\": \"<b>\", \"special\": true}, {\"id\": 4, \"content\": "
        "\"<e>\", \"special\": true}]}");
}
#endif

static bytes fuzz_seed(int index) {
    bytes b = {NULL, 0, 0};
    int n = 3;
    if (index == 0) put_pieces(&b, put_model_piece), put_literal(&b, "\x12\2\x18\2"); /* TrainerSpec: BPE */
    if (index == 1) put_u32(&b, 6), put_pieces(&b, put_bin_piece);
    if (index == 2) put_gguf(&b);
#ifndef ML_NO_BPE
    if (index == 3) put_json(&b);
    if (index == 4) put_characters_json(&b);
    if (index == 5) put_byte_level_gguf(&b);
    if (index == 6) put_text(&b, "YQ== 0\nYg== 1\nYWI= 2\nIA== 3\nYWJhYg== 4\n");
    if (index == 7) put_steps_json(&b);
    n = 8;
#endif
    if (index < n)
        put_text(&b, " abab  b\xC3\xA9\xFF"
                     "a\n\xE2\x82\xAC\x10");
    return b;
}
