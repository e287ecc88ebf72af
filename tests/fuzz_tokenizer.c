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
   U+2581. */
static int is_lossless(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    for (size_t i = 0; i + 3 <= n; i++)
        if (memcmp(text + i, "\xE2\x96\x81", 3) == 0) return 0;
    const mli_tokenizer *t = (const mli_tokenizer *)tokenizer;
    return t->has_bytes && !t->removes_extra_spaces;
}

static void check_text(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    static char decoded[300 * 1024];
    size_t size = ml_tokenizer_encode_size(n), n_decoded, at = 0;
    ml_encode_desc encode = {(const char *)text, n, 0, malloc(size), size};
    ml_tokens tokens;
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
    free(encode.work);
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
    static const char *const texts[] = {"\xE2\x96\x81",
                                        "a",
                                        "b",
                                        "ab",
                                        "\xE2\x96\x81"
                                        "a",
                                        "abab",
                                        "\xC3\xA9"};
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

static bytes fuzz_seed(int index) {
    bytes b = {NULL, 0, 0};
    if (index == 0) put_pieces(&b, put_model_piece), put_literal(&b, "\x12\2\x18\2"); /* TrainerSpec: BPE */
    if (index == 1) put_u32(&b, 6), put_pieces(&b, put_bin_piece);
    if (index < 2)
        put_text(&b, " abab  b\xC3\xA9\xFF"
                     "a\n\xE2\x82\xAC\x10");
    return b;
}
