/* Fuzzing: whatever the bytes, loading them as a tokenizer must end, soon, in a tokenizer or an error; and a
   tokenizer encodes any text into ids of its own that decode to the text.
     clang -g -O1 -std=c99 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_tokenizer.c -o fuzz -lm
     ./fuzz -max_len=65536 CORPUS
   Without libFuzzer it replays files:
     cc -g -std=c99 -DFUZZ_REPLAY -I. tests/fuzz_tokenizer.c -o replay -lm && ./replay FILE...
   The last bytes of the input are the text, as many as the very last one says. */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

#ifdef __cplusplus
extern "C"
#endif
    int
    LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(int condition) {
    if (!condition) abort();
}

/* Does text come back byte for byte? Not where spaces are dropped, characters may be unknown, or U+2581 is in
   it. */
static int is_lossless(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    size_t i;
    for (i = 0; i + 3 <= n; i++)
        if (memcmp(text + i, "\xE2\x96\x81", 3) == 0) return 0;
    return tokenizer->has_bytes && !tokenizer->removes_extra_spaces;
}

static void check_text(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    static char decoded[300 * 1024];
    size_t size = ml_encode_size(n), n_ids, n_decoded, i, at = 0, length;
    void *work = malloc(size);
    const int32_t *ids;
    if (ml_encode(tokenizer, (const char *)text, n, 0, work, size, &ids, &n_ids, NULL) == ML_OK) {
        require(n_ids <= n + 1);
        require(ml_decode(tokenizer, ids, n_ids, decoded, sizeof decoded, &n_decoded, NULL) == ML_OK);
        for (i = 0; i < n_ids; i++) {
            const char *piece = ml_decode_token(tokenizer, i ? ids[i - 1] : -1, ids[i], &length);
            require(piece && length <= n_decoded - at && memcmp(piece, decoded + at, length) == 0);
            at += length;
        }
        require(at == n_decoded);
        if (is_lossless(tokenizer, text, n)) require(n_decoded == n && (!n || memcmp(decoded, text, n) == 0));
    }
    free(work);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    size_t n_text = size ? MLI_MIN(data[size - 1], size - 1) : 0, length;
    const uint8_t *text = size ? data + size - 1 - n_text : data;
    ml_result result = ml_tokenizer_load_memory(data, size, NULL, &tokenizer, &error);
    int32_t id;
    require(result == error.code && (!result) == (tokenizer != NULL) && (!result) == !error.text[0]);
    if (result) { /* perhaps without the text behind it */
        result = ml_tokenizer_load_memory(data, size ? size - 1 - n_text : 0, NULL, &tokenizer, NULL);
        if (result) return 0;
    }
    for (id = 0; id < ml_tokenizer_size(tokenizer); id++)
        require(ml_tokenizer_piece(tokenizer, id, &length, NULL, NULL) && length <= 1024);
    check_text(tokenizer, text, n_text);
    ml_tokenizer_free(tokenizer);
    return 0;
}

#ifdef FUZZ_REPLAY
int main(int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        unsigned char *data = NULL;
        size_t n = 0, got;
        if (!file) {
            printf("%s cannot be opened\n", argv[i]);
            return 1;
        }
        do {
            unsigned char *more = (unsigned char *)realloc(data, n + 65536);
            if (!more) return 1;
            data = more;
            got = fread(data + n, 1, 65536, file);
            n += got;
        } while (got);
        fclose(file);
        data = (unsigned char *)realloc(data, n ? n : 1); /* so that a step beyond is seen */
        LLVMFuzzerTestOneInput(data, n);
        free(data);
    }
    printf("%d files replayed\n", argc - 1);
    return 0;
}
#endif
