/* The tokenizer: the ids of SentencePiece, from every kind of file; lossless; safe against hostile files. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "build_files.h"
#include "folder.h"
#include "shared.h"

#define MARK "\xE2\x96\x81"
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* ---- vocabularies and their files ---- */

typedef struct entry {
    const char *text; /* as SentencePiece writes it */
    float score;
    int kind;
} entry;

typedef struct vocabulary {
    entry *pieces;
    int n;
    int unknown, bos, eos, padding;
    int adds_space_prefix, removes_extra_spaces;
    const char *unknown_text; /* NULL: unk_surface is not set */
} vocabulary;

static void put_varint(bytes *b, uint64_t value) {
    for (; value > 127; value >>= 7) put_uint(b, (value & 127) | 128, 1);
    put_uint(b, value, 1);
}

static void put_field(bytes *b, int number, uint64_t value) {
    put_varint(b, (uint64_t)number * 8);
    put_varint(b, value);
}

static void put_bytes_field(bytes *b, int number, const void *data, size_t n) {
    put_varint(b, (uint64_t)number * 8 + 2);
    put_varint(b, n);
    put(b, data, n);
}

static void put_message(bytes *b, int number, bytes *message) {
    put_bytes_field(b, number, message->data, message->size);
    free(message->data);
    memset(message, 0, sizeof *message);
}

static void put_model_piece(bytes *b, const void *text, size_t n, float score, int kind) {
    bytes piece = {NULL, 0, 0};
    put_bytes_field(&piece, 1, text, n);
    put_varint(&piece, 2 * 8 + 5);
    put_f32(&piece, score);
    if (kind != 1) put_field(&piece, 3, (uint64_t)kind);
    put_message(b, 1, &piece);
}

static void put_specs(bytes *b, const vocabulary *v) {
    bytes trainer = {NULL, 0, 0}, normalizer = {NULL, 0, 0};
    put_field(&trainer, 3, 2); /* BPE */
    put_field(&trainer, 40, (uint64_t)(int64_t)v->unknown);
    put_field(&trainer, 41, (uint64_t)(int64_t)v->bos);
    put_field(&trainer, 42, (uint64_t)(int64_t)v->eos);
    put_field(&trainer, 43, (uint64_t)(int64_t)v->padding);
    if (v->unknown_text) put_bytes_field(&trainer, 44, v->unknown_text, strlen(v->unknown_text));
    put_message(b, 2, &trainer);
    put_bytes_field(&normalizer, 1, "identity", 8);
    put_field(&normalizer, 3, (uint64_t)v->adds_space_prefix);
    put_field(&normalizer, 4, (uint64_t)v->removes_extra_spaces);
    put_message(b, 3, &normalizer);
}

static bytes write_model(const vocabulary *v) {
    bytes b = {NULL, 0, 0};
    int i;
    for (i = 0; i < v->n; i++)
        put_model_piece(&b, v->pieces[i].text, strlen(v->pieces[i].text), v->pieces[i].score,
                        v->pieces[i].kind);
    put_specs(&b, v);
    return b;
}

/* llama2.c's file: plain spaces, and ids 1 and 2 between line feeds. */
static bytes write_bin(const vocabulary *v) {
    bytes b = {NULL, 0, 0};
    int i;
    put_uint(&b, 27, 4);
    for (i = 0; i < v->n; i++) {
        bytes text = {NULL, 0, 0};
        const char *p;
        if (i == 1 || i == 2) put(&text, "\n", 1);
        for (p = v->pieces[i].text; *p; p++) {
            if (strncmp(p, MARK, 3) == 0) {
                put(&text, " ", 1);
                p += 2;
            } else {
                put(&text, p, 1);
            }
        }
        if (i == 1 || i == 2) put(&text, "\n", 1);
        put_f32(&b, v->pieces[i].score);
        put_uint(&b, text.size, 4);
        put(&b, text.data, text.size);
        free(text.data);
    }
    return b;
}

static void put_list(bytes *b, const char *key, uint32_t type, uint64_t n) {
    gguf_key(b, key, 9);
    put_uint(b, type, 4);
    put_uint(b, n, 8);
}

enum {
    NO_SCORES = 1,
    NO_KINDS = 2,
    NO_IDS = 4,
    SHORT_KINDS = 8,
    WRONG_MODEL = 16,
    NO_MODEL = 32,
    FLOAT_ID = 64
};

/* With n_more keys, which `more` holds, after the others. */
static bytes write_gguf_with(const vocabulary *v, int twist, int n_more, bytes more) {
    bytes b = {NULL, 0, 0};
    static const char *const names[] = {"unknown", "bos", "eos", "padding"};
    int ids[4], i, n_kinds = twist & SHORT_KINDS ? v->n - 1 : v->n;
    ids[0] = v->unknown, ids[1] = v->bos, ids[2] = v->eos, ids[3] = v->padding;
    put(&b, "GGUF", 4);
    put_uint(&b, 3, 4);
    put_uint(&b, 0, 8);
    put_uint(&b,
             (uint64_t)(11 + n_more - !!(twist & NO_SCORES) - !!(twist & NO_KINDS) - 4 * !!(twist & NO_IDS) -
                        !!(twist & NO_MODEL)),
             8);
    gguf_key(&b, "general.architecture", 8);
    gguf_text(&b, "llama");
    if (!(twist & NO_MODEL)) {
        gguf_key(&b, "tokenizer.ggml.model", 8);
        gguf_text(&b, twist & WRONG_MODEL ? "gpt2" : "llama");
    }
    put_list(&b, "tokenizer.ggml.tokens", 8, (uint64_t)v->n);
    for (i = 0; i < v->n; i++) gguf_text(&b, v->pieces[i].text);
    if (!(twist & NO_SCORES)) {
        put_list(&b, "tokenizer.ggml.scores", 6, (uint64_t)v->n);
        for (i = 0; i < v->n; i++) put_f32(&b, v->pieces[i].score);
    }
    if (!(twist & NO_KINDS)) {
        put_list(&b, "tokenizer.ggml.token_type", 5, (uint64_t)n_kinds);
        for (i = 0; i < n_kinds; i++) put_uint(&b, (uint64_t)v->pieces[i].kind, 4);
    }
    for (i = 0; i < 4 && !(twist & NO_IDS); i++) {
        char key[64];
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", names[i]);
        gguf_key(&b, key, twist & FLOAT_ID ? 6 : 4);
        put_uint(&b, (uint64_t)(int64_t)ids[i], 4);
    }
    gguf_key(&b, "tokenizer.ggml.add_space_prefix", 7);
    put_uint(&b, (uint64_t)v->adds_space_prefix, 1);
    gguf_key(&b, "tokenizer.ggml.remove_extra_whitespaces", 7);
    put_uint(&b, (uint64_t)v->removes_extra_spaces, 1);
    if (more.size) put(&b, more.data, more.size);
    free(more.data);
    return b;
}

static bytes write_gguf(const vocabulary *v, int twist) {
    static const bytes none = {NULL, 0, 0};
    return write_gguf_with(v, twist, 0, none);
}

/* <unk>, <s>, </s>, with or without the bytes, then the given pieces. The texts of bytes are static. */
static vocabulary make_vocabulary(const entry *more, size_t n_more, int has_bytes) {
    static char texts[256][8];
    vocabulary v;
    int i;
    v.pieces = (entry *)malloc((259 + n_more) * sizeof *v.pieces);
    if (!v.pieces) exit(2);
    v.pieces[0].text = "<unk>", v.pieces[0].kind = ML_PIECE_UNKNOWN;
    v.pieces[1].text = "<s>", v.pieces[1].kind = ML_PIECE_CONTROL;
    v.pieces[2].text = "</s>", v.pieces[2].kind = ML_PIECE_CONTROL;
    v.n = 3;
    for (i = 0; i < 256 && has_bytes; i++) {
        snprintf(texts[i], sizeof texts[i], "<0x%02X>", (unsigned)i);
        v.pieces[v.n].text = texts[i];
        v.pieces[v.n++].kind = ML_PIECE_BYTE;
    }
    for (i = 0; i < v.n; i++) v.pieces[i].score = 0;
    for (i = 0; i < (int)n_more; i++) v.pieces[v.n++] = more[i];
    v.unknown = 0, v.bos = 1, v.eos = 2, v.padding = -1;
    v.adds_space_prefix = 1, v.removes_extra_spaces = 0;
    v.unknown_text = NULL;
    return v;
}

#define FIRST 259 /* the id of the first piece after the bytes */

static const entry small_pieces[] = {
    {MARK "a", -1, 1},
    {"ab", -2, 1},
    {"bc", -2, 1},
    {"abc", -3, 1},
    {"aa", -4, 1},
    {"aaaa", -5, 1},
    {MARK MARK, -6, 1},
    {"a" MARK "b", -7, 1},
    {MARK, -8, 1},
    {"a", -9, 1},
    {"b", -10, 1},
    {"c", -11, 1},
    {"\xC3\xA9", -12, 1},
    {"x\xC3\xA9", -0.5f, 1},
    {"x", -13, 1},
    {MARK "abc", 1.5, 1},
    {"\xE6\x97\xA5", -14, 1},
    {"b" MARK "a", 0, 1},
    {"zz", 0, 1},
};

static vocabulary small_vocabulary(void) { return make_vocabulary(small_pieces, COUNT(small_pieces), 1); }

static ml_error failure; /* of the last load */

static ml_tokenizer *load(const bytes *b) {
    ml_tokenizer *t = NULL;
    ml_result result = ml_tokenizer_load_memory(b->data, b->size, NULL, &t, &failure);
    CHECK(result == failure.code && (!result) == (t != NULL) && (!result) == !failure.text[0]);
    return t;
}

static ml_tokenizer *load_and_free(bytes b) {
    ml_tokenizer *t = load(&b);
    free(b.data);
    return t;
}

static ml_tokenizer *load_vocabulary(const vocabulary *v) {
    ml_tokenizer *t = load_and_free(write_model(v));
    if (!t) {
        printf("%s\n", failure.text);
        exit(2);
    }
    return t;
}

/* ---- encoding and decoding as the tests use them ---- */

static ml_result encode_into(void *work, size_t work_size, const ml_tokenizer *t, const char *text, size_t n,
                             int flags, ml_tokens *tokens) {
    ml_encode_desc desc = {text, n, flags, work, work_size};
    return ml_tokenizer_encode(t, &desc, tokens, &failure);
}

static ml_result decode(const ml_tokenizer *t, const int32_t *ids, size_t n_ids, char *text, size_t size,
                        size_t *n) {
    ml_tokens tokens = {ids, (int)n_ids};
    return ml_tokenizer_decode(t, &tokens, text, size, n, &failure);
}

typedef struct encoded {
    void *work; /* exactly as large as required, so that sanitizers see a step beyond */
    const int32_t *ids;
    size_t n;
} encoded;

static encoded encode(const ml_tokenizer *t, const char *text, size_t n, int flags) {
    encoded e;
    size_t size = ml_tokenizer_encode_size(n);
    ml_tokens tokens = {NULL, 0};
    e.work = malloc(size);
    if (!e.work) exit(2);
    CHECK(encode_into(e.work, size, t, text, n, flags, &tokens) == ML_OK);
    e.ids = tokens.ids;
    e.n = (size_t)tokens.n;
    return e;
}

static int encodes_to(const ml_tokenizer *t, const char *text, size_t n, const int32_t *ids, size_t n_ids) {
    encoded e = encode(t, text, n, 0);
    size_t i;
    int same = e.n == n_ids;
    for (i = 0; i < n_ids && same; i++) same = e.ids[i] == ids[i];
    if (!same) {
        printf("  \"%.60s\" gives", text);
        for (i = 0; i < e.n && i < 40; i++) printf(" %d", (int)e.ids[i]);
        printf("\n");
    }
    free(e.work);
    return same;
}

/* ENCODES(t, "text", ids...) */
#define ENCODES(t, text, ...)                                                                                \
    do {                                                                                                     \
        static const int32_t ids_[] = {__VA_ARGS__};                                                         \
        CHECK(encodes_to(t, text, sizeof(text) - 1, ids_, COUNT(ids_)));                                     \
    } while (0)

static int decodes_to(const ml_tokenizer *t, const int32_t *ids, size_t n_ids, const char *text, size_t n) {
    size_t needed = 0, i, at = 0, piece_size;
    char *decoded;
    int has_begun = 0;
    ml_result result = decode(t, ids, n_ids, NULL, 0, &needed);
    int same = result == (needed ? ML_ERROR_MEMORY : ML_OK) && needed == n;
    decoded = (char *)malloc(needed + 1);
    if (!decoded) exit(2);
    same = same && decode(t, ids, n_ids, decoded, needed + 1, &needed) == ML_OK && needed == n &&
           (!n || memcmp(decoded, text, n) == 0) && decoded[n] == 0;
    for (i = 0; i < n_ids && same; i++) { /* streamed */
        const char *piece = ml_tokenizer_decode_token(t, &has_begun, ids[i], &piece_size);
        same = piece && piece_size <= n - at && memcmp(piece, text + at, piece_size) == 0;
        at += piece_size;
    }
    same = same && at == n;
    if (!same) printf("  decoded to \"%.*s\"\n", (int)(needed < 100 ? needed : 100), decoded);
    free(decoded);
    return same;
}

#define DECODES(t, text, ...)                                                                                \
    do {                                                                                                     \
        static const int32_t ids_[] = {__VA_ARGS__};                                                         \
        CHECK(decodes_to(t, ids_, COUNT(ids_), text, sizeof(text) - 1));                                     \
    } while (0)

/* With and without bos and eos. */
static int round_trips(const ml_tokenizer *t, const char *text, size_t n) {
    encoded e = encode(t, text, n, 0), f = encode(t, text, n, ML_ADD_BOS | ML_ADD_EOS);
    int same = decodes_to(t, e.ids, e.n, text, n) && decodes_to(t, f.ids, f.n, text, n) && f.n == e.n + 2 &&
               (!e.n || memcmp(f.ids + 1, e.ids, e.n * sizeof *e.ids) == 0);
    free(e.work);
    free(f.work);
    return same;
}

/* ---- a simple reference: merges the best pair, then searches everything again ---- */

typedef struct span {
    const char *p;
    size_t n;
} span;

static int find_entry(const vocabulary *v, const char *p, size_t n) {
    int i;
    for (i = 0; i < v->n; i++)
        if (v->pieces[i].kind == ML_PIECE_NORMAL && strlen(v->pieces[i].text) == n &&
            memcmp(v->pieces[i].text, p, n) == 0)
            return i;
    return -1;
}

static int find_byte(const vocabulary *v, unsigned char c) {
    char text[8];
    int i;
    snprintf(text, sizeof text, "<0x%02X>", (unsigned)c);
    for (i = 0; i < v->n; i++)
        if (v->pieces[i].kind == ML_PIECE_BYTE && strcmp(v->pieces[i].text, text) == 0) return i;
    return -1;
}

/* Characters by the bit patterns of UTF-8; only used on text that is well-formed or has bytes FE and FF. */
static size_t character(const char *p) {
    unsigned char c = (unsigned char)*p;
    return c < 0x80 || c >= 0xFE ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
}

static size_t encode_plainly(const vocabulary *v, const char *text, size_t n, int32_t *ids) {
    bytes b = {NULL, 0, 0};
    span *spans;
    size_t i, k, count = 0, n_ids = 0;
    if (!n) return 0;
    put(&b, MARK, 3);
    for (i = 0; i < n; i++) put(&b, text[i] == ' ' ? MARK : text + i, text[i] == ' ' ? 3 : 1);
    spans = (span *)malloc(b.size * sizeof *spans);
    if (!spans) exit(2);
    for (i = 0; i < b.size; i += spans[count++].n) {
        spans[count].p = (char *)b.data + i;
        spans[count].n = character(spans[count].p);
    }
    for (;;) {
        size_t best = count;
        float score = 0;
        for (i = 0; i + 1 < count; i++) {
            int id = find_entry(v, spans[i].p, spans[i].n + spans[i + 1].n);
            if (id >= 0 && (best == count || v->pieces[id].score > score)) {
                best = i;
                score = v->pieces[id].score;
            }
        }
        if (best == count) break;
        spans[best].n += spans[best + 1].n;
        memmove(spans + best + 1, spans + best + 2, (count - best - 2) * sizeof *spans);
        count--;
    }
    for (i = 0; i < count; i++) {
        int id = find_entry(v, spans[i].p, spans[i].n);
        if (id >= 0) ids[n_ids++] = id;
        for (k = 0; k < spans[i].n && id < 0; k++) ids[n_ids++] = find_byte(v, (unsigned char)spans[i].p[k]);
    }
    free(spans);
    free(b.data);
    return n_ids;
}

/* Without a piece for it, a space that is merged with nothing is byte 32, not the bytes of U+2581, so that it is
   restored. */
static size_t spell_spaces(const vocabulary *v, int32_t *ids, size_t n) {
    size_t i, m = 0;
    if (find_entry(v, MARK, 3) >= 0) return n;
    for (i = 0; i < n; i++) {
        int is_mark = i + 2 < n && ids[i] == 3 + 0xE2 && ids[i + 1] == 3 + 0x96 && ids[i + 2] == 3 + 0x81;
        ids[m++] = is_mark ? 3 + ' ' : ids[i];
        if (is_mark) i += 2;
    }
    return m;
}

static size_t below(ml_random *random, size_t n) { return (size_t)(ml_random_u64(random) % n); }

/* A mix of letters that the small vocabularies have, spaces, other characters, and bytes that are never UTF-8. */
static size_t random_text(ml_random *random, char *text, size_t most) {
    static const char *const parts[] = {
        "a",    "b",    "c",  "a", "b", " ", " ", "x", "z", "\xC3\xA9", "\xE6\x97\xA5", "\xF0\x9F\x99\x82",
        "\xFE", "\xFF", "\n", "y"};
    size_t n = 0, target = below(random, most);
    for (;;) {
        const char *part = parts[below(random, COUNT(parts))];
        if (n + strlen(part) > target) return n;
        memcpy(text + n, part, strlen(part));
        n += strlen(part);
    }
}

/* ---- tests ---- */

TEST(known_ids) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v);
    CHECK(t->n_pieces == v.n);
    CHECK(t->bos == 1 && t->eos == 2 && t->unknown == 0);
    CHECK(t->padding == 3); /* byte 0 */
    CHECK(encodes_to(t, "", 0, NULL, 0));
    CHECK(encodes_to(t, NULL, 0, NULL, 0));
    ENCODES(t, "a", FIRST);                               /* _a */
    ENCODES(t, " ", FIRST + 6);                           /* __ */
    ENCODES(t, "bc", FIRST + 8, FIRST + 2);               /* _ bc */
    ENCODES(t, "abc", FIRST + 15);                        /* _a (-1), then bc (-2), then _abc, not abc */
    ENCODES(t, "cabc", FIRST + 8, FIRST + 11, FIRST + 3); /* ab and bc tie: the left one; then abc */
    ENCODES(t, "caaaaa", FIRST + 8, FIRST + 11, FIRST + 5, FIRST + 9); /* aa aa a, aaaa a */
    ENCODES(t, "xb a", FIRST + 8, FIRST + 14, FIRST + 17);             /* a piece with a space inside */
    ENCODES(t, "x\xC3\xA9", FIRST + 8, FIRST + 13);
    ENCODES(t, "zzz", FIRST + 8, FIRST + 18, 3 + 'z'); /* zz without a piece z; the rest as a byte */
    ENCODES(t, "\xF0\x9F\x99\x82", FIRST + 8, 3 + 0xF0, 3 + 0x9F, 3 + 0x99, 3 + 0x82);
    ENCODES(t, "x\0c", FIRST + 8, FIRST + 14, 3, FIRST + 11);
    ENCODES(t, "<s>", FIRST + 8, 3 + '<', 3 + 's', 3 + '>'); /* never taken for control */
    ENCODES(t, "<0x41>", FIRST + 8, 3 + '<', 3 + '0', FIRST + 14, 3 + '4', 3 + '1', 3 + '>');
    ENCODES(t, "c" MARK "c", FIRST + 8, FIRST + 11, FIRST + 8,
            FIRST + 11);                                   /* as a space, as SentencePiece does */
    ENCODES(t, "\xC3", FIRST + 8, 3 + 0xC3);               /* cut off */
    ENCODES(t, "\xC0\x80", FIRST + 8, 3 + 0xC0, 3 + 0x80); /* overlong */
    ENCODES(t, "\xED\xA0\x80", FIRST + 8, 3 + 0xED, 3 + 0xA0, 3 + 0x80); /* a surrogate */
    ENCODES(t,
            "\xC3"
            "ab\xE6\x97z",
            FIRST + 8, 3 + 0xC3, FIRST + 1, 3 + 0xE6, 3 + 0x97, 3 + 'z');
    ENCODES(t, "\xE2\x96", FIRST + 8, 3 + 0xE2, 3 + 0x96);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* By its text, with spaces for U+2581; a control piece, too, which no text gives. */
TEST(pieces_are_found) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v);
    for (int32_t id = 0; id < v.n; id++) {
        size_t length, n = 0;
        ml_piece_kind kind;
        char text[64];
        const char *piece = ml_tokenizer_piece(t, id, &length, NULL, &kind);
        for (size_t i = 0; i < length; i++) {
            int is_mark = length - i >= 3 && memcmp(piece + i, MARK, 3) == 0;
            text[n++] = is_mark ? ' ' : piece[i];
            if (is_mark) i += 2;
        }
        int is_found = kind == ML_PIECE_NORMAL || kind == ML_PIECE_CONTROL || kind == ML_PIECE_USER_DEFINED;
        CHECK(ml_tokenizer_find(t, text, n) == (is_found ? id : -1));
    }
    CHECK(ml_tokenizer_find(t, "</s>", 4) == 2 && ml_tokenizer_find(t, " a", 2) == FIRST);
    CHECK(ml_tokenizer_find(t, "</s>a", 5) == -1 && ml_tokenizer_find(t, "</s", 3) == -1);
    CHECK(ml_tokenizer_find(t, "", 0) == -1 && ml_tokenizer_find(t, "none of these", 13) == -1);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* bc, then the better one of abc and bcd; ab, with a score between them, is no longer a pair. */
TEST(a_pair_that_is_gone_is_not_merged) {
    static const entry more[] = {{"bc", -1, 1}, {"ab", -2, 1}, {"bcd", -3, 1}, {"abc", -4, 1}, {MARK, -5, 1}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    ENCODES(t, "abcd", FIRST + 4, 3 + 'a', FIRST + 2);
    ml_tokenizer_free(t);
    free(v.pieces);
}

TEST(decoding) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v);
    static const int32_t outside[] = {FIRST, -1}, large[] = {FIRST + (int32_t)COUNT(small_pieces)},
                         two[] = {FIRST, FIRST};
    char text[8];
    size_t n = 7;
    int has_begun = 0;
    CHECK(decodes_to(t, NULL, 0, "", 0));
    DECODES(t, "a", FIRST);
    DECODES(t, "a", 1, FIRST);
    DECODES(t, "a", 1, 2, FIRST);
    DECODES(t, "a a", FIRST, FIRST);
    DECODES(t, " a", FIRST + 8, FIRST); /* only one space is dropped */
    DECODES(t, " ", FIRST + 6);
    DECODES(t, "ba", FIRST + 10, FIRST + 9); /* no space at the start: nothing to drop */
    DECODES(t, "b a", FIRST + 17);
    DECODES(t, "a a", FIRST, 2, 1, FIRST); /* control pieces are passed over */
    DECODES(t, "a", 2, 1, FIRST);
    DECODES(t, "", 1, 2);
    DECODES(t, "\xFF\0a", 3 + 255, 3, FIRST + 9);
    DECODES(t, " a", 3 + ' ', FIRST + 9);     /* a byte is a byte */
    DECODES(t, " \xE2\x81\x87  a", 0, FIRST); /* as SentencePiece shows <unk> */
    CHECK(decode(t, outside, 2, text, sizeof text, &n) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "index 1") && strstr(failure.text, "-1"));
    CHECK(decode(t, large, 1, text, sizeof text, &n) == ML_ERROR_ARGUMENT);
    CHECK(ml_tokenizer_decode_token(t, &has_begun, large[0], &n) == NULL && n == 0 && !has_begun);
    CHECK(ml_tokenizer_decode_token(t, &has_begun, FIRST, &n) && n == 1 && has_begun);
    memcpy(text, "#######", 8);
    CHECK(decode(t, two, 2, text, 2, &n) == ML_ERROR_MEMORY && n == 3 && text[0] == '#');
    CHECK(decode(t, two, 2, text, 3, &n) == ML_OK && n == 3 && memcmp(text, "a a#", 4) == 0);
    CHECK(decode(t, two, 2, text, 4, &n) == ML_OK && n == 3 && memcmp(text, "a a\0###", 7) == 0);
    CHECK(decode(t, NULL, 1, text, 4, &n) == ML_ERROR_ARGUMENT);
    CHECK(decode(t, two, 2, NULL, 4, &n) == ML_ERROR_ARGUMENT);
    ml_tokenizer_free(t);
    free(v.pieces);
}

TEST(arguments) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v), *none;
    int32_t work[256];
    ml_tokens tokens;
    size_t n, size = ml_tokenizer_encode_size(2);
    CHECK(size <= sizeof work - 1);
    CHECK(encode_into(work, size - 1, t, "ab", 2, 0, &tokens) == ML_ERROR_MEMORY);
    CHECK(strstr(failure.text, "ml_tokenizer_encode_size"));
    CHECK(encode_into((char *)work + 1, size, t, "ab", 2, 0, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(encode_into(work, size, t, "ab", 2, 16, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(encode_into(work, size, NULL, "ab", 2, 0, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "tokenizer is NULL")); /* of a model that has none */
    tokens.ids = work, tokens.n = -1, n = 77;
    CHECK(ml_tokenizer_decode(t, &tokens, NULL, 0, &n, &failure) == ML_ERROR_ARGUMENT && n == 0);
    CHECK(strstr(failure.text, "-1 tokens"));
    work[0] = 4, work[1] = v.n, tokens.n = 2, n = 77;
    CHECK(ml_tokenizer_decode(t, &tokens, NULL, 0, &n, &failure) == ML_ERROR_ARGUMENT && n == 0);
    CHECK(encode_into(work, size, t, NULL, 2, 0, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(encode_into(work, SIZE_MAX, t, "ab", SIZE_MAX, 0, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(ml_tokenizer_encode_size(SIZE_MAX) == SIZE_MAX &&
          ml_tokenizer_encode_size(SIZE_MAX - 1) == SIZE_MAX);
    CHECK(ml_tokenizer_encode_size((size_t)1 << 20) <= ((size_t)1 << 20) * 40);
    CHECK(ml_tokenizer_piece(t, -1, &n, NULL, NULL) == NULL && n == 0);
    CHECK(ml_tokenizer_piece(t, v.n, NULL, NULL, NULL) == NULL);
    CHECK(ml_tokenizer_load("no such file", NULL, &none, &failure) == ML_ERROR_FILE && !none);
    CHECK(strstr(failure.text, "no such file"));
    CHECK(ml_tokenizer_load(NULL, NULL, &none, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_tokenizer_load_memory(NULL, 8, NULL, &none, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_tokenizer_load_memory("", 0, NULL, &none, &failure) == ML_ERROR_TRUNCATED);
    ml_tokenizer_free(t);
    ml_tokenizer_free(NULL);
    v.bos = -1;
    t = load_vocabulary(&v);
    CHECK(t->bos == -1);
    CHECK(encode_into(work, size, t, "ab", 2, ML_ADD_BOS, &tokens) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "bos"));
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* The same vocabulary from each kind of file is the same tokenizer. */
TEST(containers_agree) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t[4];
    ml_random random;
    char text[200];
    int i, k;
    t[0] = load_and_free(write_model(&v));
    t[1] = load_and_free(write_bin(&v));
    t[2] = load_and_free(write_gguf(&v, 0));
    t[3] = load_and_free(write_gguf(&v, NO_KINDS | NO_IDS)); /* recognized by how pieces are written */
    for (k = 0; k < 4; k++) {
        REQUIRE(t[k] && t[k]->n_pieces == v.n);
        CHECK(t[k]->bos == 1 && t[k]->eos == 2);
        CHECK(t[k]->unknown == 0 && t[k]->padding == 3);
        CHECK(t[k]->private_part->rules.adds_space_prefix && !t[k]->private_part->rules.removes_extra_spaces);
        CHECK(t[k]->adds_bos && !t[k]->adds_eos && t[k]->n_ends == 1 && t[k]->ends[0] == 2);
        for (i = 0; i < v.n; i++) {
            size_t length;
            float score;
            ml_piece_kind kind;
            const char *piece = ml_tokenizer_piece(t[k], i, &length, &score, &kind);
            CHECK(piece && length == strlen(v.pieces[i].text) &&
                  memcmp(piece, v.pieces[i].text, length) == 0);
            CHECK(score == v.pieces[i].score && (int)kind == v.pieces[i].kind);
        }
    }
    ml_random_seed(&random, 3);
    for (i = 0; i < 500; i++) {
        size_t n = random_text(&random, text, sizeof text);
        encoded e = encode(t[0], text, n, 0);
        for (k = 1; k < 4; k++) CHECK(encodes_to(t[k], text, n, e.ids, e.n));
        free(e.work);
    }
    for (k = 0; k < 4; k++) ml_tokenizer_free(t[k]);
    free(v.pieces);
}

/* Random vocabularies, many with equal scores and with spaces anywhere in their pieces, on random text. */
TEST(equals_plain_merging) {
    static char texts[40][40];
    ml_random random;
    int round, i;
    ml_random_seed(&random, 1);
    for (round = 0; round < 150; round++) {
        entry more[40];
        vocabulary v;
        ml_tokenizer *t;
        for (i = 0; i < 40; i++) {
            static const char *const parts[] = {"a", "b", "c", MARK, "a", "b", "x", "\xC3\xA9"};
            size_t n = 1 + below(&random, 4),
                   n_parts = round % 2 ? COUNT(parts) : 3; /* few letters: many merges */
            texts[i][0] = 0;
            while (n--) strcat(texts[i], parts[below(&random, n_parts)]);
            more[i].text = texts[i]; /* some occur twice: the first counts */
            more[i].score = (float)below(&random, round % 3 ? 40 : 6) - 3;
            if (below(&random, 8) == 0) more[i].score = -0.0f; /* ties with 0 */
            more[i].kind = ML_PIECE_NORMAL;
        }
        v = make_vocabulary(more, 40, 1);
        t = load_vocabulary(&v);
        for (i = 0; i < 20; i++) {
            char text[120];
            int32_t expected[400];
            size_t n = random_text(&random, text, sizeof text);
            size_t n_expected = encode_plainly(&v, text, n, expected);
            n_expected = spell_spaces(&v, expected, n_expected);
            CHECK(encodes_to(t, text, n, expected, n_expected));
            CHECK(round_trips(t, text, n));
        }
        ml_tokenizer_free(t);
        free(v.pieces);
    }
}

static size_t put_utf8(char *to, uint32_t c) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xC0 | c >> 6);
        to[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xE0 | c >> 12);
        to[1] = (char)(0x80 | (c >> 6 & 63));
        to[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    to[0] = (char)(0xF0 | c >> 18);
    to[1] = (char)(0x80 | (c >> 12 & 63));
    to[2] = (char)(0x80 | (c >> 6 & 63));
    to[3] = (char)(0x80 | (c & 63));
    return 4;
}

static void round_trip_random(const ml_tokenizer *t, int rounds) {
    ml_random random;
    int round;
    ml_random_seed(&random, 2);
    for (round = 0; round < rounds; round++) {
        char text[400];
        size_t i, n = 0, target = below(&random, 300);
        for (i = 0; i < target; i++) text[i] = (char)ml_random_u64(&random);
        if (!(target > 2 && strstr(text, MARK))) CHECK(round_trips(t, text, target));
        while (n < target) {
            static const uint32_t limits[] = {0x80, 0x100, 0x800, 0x3000, 0x10000, 0x110000};
            uint32_t c = (uint32_t)below(&random, limits[below(&random, COUNT(limits))]);
            if (c == 0x2581 || (c >= 0xD800 && c < 0xE000)) c = ' ';
            n += put_utf8(text + n, c);
        }
        CHECK(round_trips(t, text, n));
    }
}

TEST(anything_is_restored) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v);
    char pair[2];
    int i;
    round_trip_random(t, 2000);
    for (i = 0; i < 65536; i++) {
        pair[0] = (char)(i >> 8);
        pair[1] = (char)i;
        CHECK(round_trips(t, pair, 2));
    }
    ml_tokenizer_free(t);
    v.adds_space_prefix = 0;
    t = load_vocabulary(&v);
    ENCODES(t, "a", FIRST + 9);
    ENCODES(t, " a", FIRST);
    DECODES(t, " a", FIRST);
    round_trip_random(t, 500);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* Expected ids were derived by hand from SentencePiece's rules, and compared once with its version 0.1.97. */
TEST(extra_spaces_removed) {
    vocabulary v = small_vocabulary();
    ml_tokenizer *t;
    v.removes_extra_spaces = 1;
    t = load_vocabulary(&v);
    CHECK(t->private_part->rules.removes_extra_spaces);
    ENCODES(t, "  a   c  ", FIRST, FIRST + 8, FIRST + 11);
    ENCODES(t, "c", FIRST + 8, FIRST + 11);
    CHECK(encodes_to(t, "   ", 3, NULL, 0));
    CHECK(encodes_to(t, "", 0, NULL, 0));
    ENCODES(t, "c " MARK " c" MARK, FIRST + 8, FIRST + 11, FIRST + 6, FIRST + 8, FIRST + 11);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* Where a text begins, and how an unknown piece is shown: the texts are what SentencePiece 0.1.97 decodes from models
   with these pieces and settings. */
TEST(texts_begin_as_sentencepieces) {
    enum { A = FIRST, SPACES = FIRST + 6, SPACE = FIRST + 8, BARE = FIRST + 9, BYTE = 3 };
    static const struct {
        int32_t ids[3];
        size_t n;
        const char
            *texts[4]; /* prefix and kept spaces; prefix, removed; no prefix, kept; no prefix, removed */
    } cases[] = {
        {{BARE, 2, A}, 3, {"a a", "a a", "a a", "a a"}},
        {{1, A}, 2, {"a", "a", " a", "a"}},
        {{2, 1, A}, 3, {"a", "a", " a", "a"}},
        {{SPACE, A}, 2, {" a", "a", "  a", "a"}},
        {{SPACE, 1, A}, 3, {" a", "a", "  a", "a"}},
        {{SPACES, A}, 2, {"  a", "  a", "   a", "  a"}},
        {{0, A}, 2, {" \xE2\x81\x87  a", " \xE2\x81\x87  a", " \xE2\x81\x87  a", " \xE2\x81\x87  a"}},
        {{SPACE, 0, A}, 3, {" \xE2\x81\x87  a", " \xE2\x81\x87  a", "  \xE2\x81\x87  a", " \xE2\x81\x87  a"}},
        {{BYTE + ' ', A}, 2, {"  a", "  a", "  a", "  a"}},
        {{SPACE, SPACE, A}, 3, {"  a", "a", "   a", "a"}},
        {{SPACE, SPACE}, 2, {" ", "", "  ", ""}},
        {{BARE, SPACE, A}, 3, {"a  a", "a  a", "a  a", "a  a"}},
    };
    vocabulary v = small_vocabulary();
    for (int how = 0; how < 4; how++) {
        v.adds_space_prefix = how < 2;
        v.removes_extra_spaces = how % 2;
        ml_tokenizer *t = load_vocabulary(&v);
        for (size_t i = 0; i < COUNT(cases); i++) {
            const char *text = cases[i].texts[how];
            CHECK(decodes_to(t, cases[i].ids, cases[i].n, text, strlen(text)));
        }
        ml_tokenizer_free(t);
    }
    free(v.pieces);
}

TEST(unk_surface) {
    vocabulary v = small_vocabulary();
    char large[1026];
    v.unknown_text = "[?]";
    ml_tokenizer *t = load_vocabulary(&v);
    DECODES(t, "[?] a", 0, FIRST);
    DECODES(t, "a[?] a", FIRST, 0, FIRST);
    DECODES(t, "[?][?]a", 0, 0, FIRST + 9);
    ml_tokenizer_free(t);
    v.unknown_text = ""; /* nothing is shown, and so the text has not begun */
    t = load_vocabulary(&v);
    DECODES(t, "a", 0, FIRST);
    DECODES(t, "a a", FIRST, 0, FIRST);
    ml_tokenizer_free(t);
    v.unknown_text = " x";
    t = load_vocabulary(&v);
    DECODES(t, " x xa", 0, 0, FIRST + 9);
    ml_tokenizer_free(t);
    memset(large, 'x', 1025);
    large[1025] = 0;
    v.unknown_text = large;
    t = load_and_free(write_model(&v));
    CHECK(!t && failure.code == ML_ERROR_UNSUPPORTED && strstr(failure.text, "unk_surface"));
    free(v.pieces);
}

TEST(without_bytes) {
    static const entry more[] = {{"a", -1, 1}, {"b", -2, 1}, {MARK, -3, 1}};
    vocabulary v = make_vocabulary(more, COUNT(more), 0);
    ml_tokenizer *t = load_vocabulary(&v);
    int32_t work[256];
    ml_tokens tokens;
    CHECK(t->padding == -1);
    ENCODES(t, "ab", 5, 3, 4);
    ENCODES(t, "axxb", 5, 3, 0, 4); /* a run of unknown characters is one id */
    ENCODES(t, "xa\xFFx", 5, 0, 3, 0);
    DECODES(t, "a \xE2\x81\x87 b", 5, 3, 0, 4);
    ml_tokenizer_free(t);
    v.unknown = -1;
    t = load_vocabulary(&v);
    CHECK(encode_into(work, sizeof work, t, "ax", 2, 0, &tokens) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, "120")); /* x */
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* Derived by hand from SentencePiece's rules: user-defined pieces are found first, the longest at each position, and
   merge with nothing. */
TEST(user_defined) {
    static const entry more[] = {{"ab", 0, 4}, {"abcd", 0, 4}, {MARK "x", 0, 4}, {"a", -1, 1},  {"ca", 5, 1},
                                 {"b", -2, 1}, {"c", -3, 1},   {MARK, -4, 1},    {"xa", -5, 1}, {"d", -6, 1}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    ENCODES(t, "cab", FIRST + 7, FIRST + 6, FIRST); /* not ca, although it scores most */
    ENCODES(t, "caa", FIRST + 7, FIRST + 4, FIRST + 3);
    ENCODES(t, "abcd", FIRST + 7, FIRST + 1);
    ENCODES(t, "abc d", FIRST + 7, FIRST, FIRST + 6, FIRST + 7, FIRST + 9);
    ENCODES(t, "xa", FIRST + 2, FIRST + 3); /* not xa */
    CHECK(round_trips(t, "abcdab x xab", 12));
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* A piece marked unused may take part in merges, and is split again where it remains. */
TEST(unused) {
    static const entry more[] = {{"ab", -1, 5}, {"abc", -2, 1}, {"abab", -3, 5}, {"a", -4, 1},
                                 {"b", -5, 1},  {"c", -6, 1},   {MARK, -7, 1},   {"q", -8, 5}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    ENCODES(t, "abc", FIRST + 6, FIRST + 1);
    ENCODES(t, "ab", FIRST + 6, FIRST + 3, FIRST + 4);
    ENCODES(t, "ababc", FIRST + 6, FIRST + 3, FIRST + 4, FIRST + 1);
    ENCODES(t, "ababd", FIRST + 6, FIRST + 3, FIRST + 4, FIRST + 3, FIRST + 4, 3 + 'd');
    ENCODES(t, "q", FIRST + 6, FIRST + 7); /* a character cannot be split */
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* Spaces that have no piece are byte 32, including the one put before the text. */
TEST(no_piece_for_space) {
    static const entry more[] = {{"a", -1, 1}, {MARK "b", -2, 1}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    ENCODES(t, "a b", 3 + ' ', FIRST, FIRST + 1);
    ENCODES(t, " b", 3 + ' ', FIRST + 1);
    round_trip_random(t, 300);
    CHECK(round_trips(t, " a", 2) && round_trips(t, "  ", 2) && round_trips(t, " b a", 4));
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* In a GGUF, special pieces are written as they are in a text: llama.cpp's converter puts plain spaces into them. */
TEST(plain_spaces_in_special_pieces) {
    static const entry more[] = {{"a", -1, 1},
                                 {MARK, -2, 1},
                                 {"   ", 0, ML_PIECE_USER_DEFINED},
                                 {MARK MARK MARK, -3, 1},
                                 {"<c d>", 0, 3}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_and_free(write_gguf(&v, 0));
    REQUIRE(t);
    ENCODES(t, "a   ", FIRST + 1, FIRST, FIRST + 2);
    ENCODES(t, "a    ", FIRST + 1, FIRST, FIRST + 2, FIRST + 1);
    encoded e = encode(t, "<c d>", 5, ML_PARSE_SPECIAL);
    CHECK(e.n == 1 && e.ids[0] == FIRST + 4);
    free(e.work);
    CHECK(ml_tokenizer_find(t, "   ", 3) == FIRST + 2 && ml_tokenizer_find(t, "<c d>", 5) == FIRST + 4);
    CHECK(round_trips(t, "a   a    a", 10));
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* SentencePiece writes no piece with a plain space; if there is one, it is decoded, but text never becomes it. */
TEST(plain_space_in_a_piece) {
    static const entry more[] = {{"a", -1, 1}, {MARK, -2, 1}, {"a b", 5, 1},
                                 {"a ", 6, 1}, {" b", 7, 1},  {"b", -3, 1}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    ENCODES(t, "a b", FIRST + 1, FIRST, FIRST + 1, FIRST + 5);
    DECODES(t, "aa b", FIRST, FIRST + 2);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* ---- what a file says about texts ---- */

static void put_typed(bytes *b, const char *name, unsigned type, uint64_t value, int size) {
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s", name);
    gguf_key(b, key, type);
    put_uint(b, value, size);
}

static void put_id(bytes *b, const char *name, uint32_t id) { put_typed(b, name, 4, id, 4); }
static void put_flag(bytes *b, const char *name, int flag) { put_typed(b, name, 7, (uint64_t)flag, 1); }

/* "ab" with these flags is ab, with bos and eos around it where there is one to be. */
static int adds(const ml_tokenizer *t, int flags, int bos, int eos) {
    encoded e = encode(t, "ab", 2, flags), plain = encode(t, "ab", 2, 0);
    int right = e.n == plain.n + (size_t) !!bos + (size_t) !!eos && (!bos || e.ids[0] == t->bos) &&
                (!eos || e.ids[e.n - 1] == t->eos) &&
                memcmp(e.ids + !!bos, plain.ids, plain.n * sizeof *e.ids) == 0;
    free(e.work);
    free(plain.work);
    return right;
}

TEST(flags_of_the_file_are_obeyed) {
    vocabulary v = small_vocabulary();
    for (int how = 0; how < 4; how++) {
        bytes more = {NULL, 0, 0};
        put_flag(&more, "add_bos_token", how & 1);
        put_flag(&more, "add_eos_token", how >> 1);
        ml_tokenizer *t = load_and_free(write_gguf_with(&v, 0, 2, more));
        REQUIRE(t);
        CHECK(t->bos == 1 && t->eos == 2 && t->adds_bos == (how & 1) && t->adds_eos == how >> 1);
        CHECK(adds(t, ML_ADD_SPECIAL, how & 1, how >> 1) && adds(t, 0, 0, 0));
        CHECK(adds(t, ML_ADD_BOS, 1, 0) && adds(t, ML_ADD_EOS, 0, 1));  /* asked for explicitly */
        CHECK(adds(t, ML_ADD_SPECIAL | ML_ADD_BOS | ML_ADD_EOS, 1, 1)); /* and never twice */
        ml_tokenizer_free(t);
    }
    bytes more = {NULL, 0, 0}; /* as other writers have them: a number for a flag, ids of 64 bits */
    put_typed(&more, "add_bos_token", 0, 0, 1);
    put_typed(&more, "add_eos_token", 4, 1, 4);
    put_typed(&more, "bos_token_id", 11, FIRST, 8);
    put_typed(&more, "eos_token_id", 2, 2, 2);
    put_typed(&more, "padding_token_id", 10, UINT64_MAX, 8);
    ml_tokenizer *t = load_and_free(write_gguf_with(&v, NO_IDS, 5, more));
    REQUIRE(t);
    CHECK(t->bos == FIRST && t->eos == 2 && t->padding == 3 && !t->adds_bos && t->adds_eos);
    ml_tokenizer_free(t);
    memset(&more, 0, sizeof more); /* a piece for padding that was left out of the vocabulary */
    put_id(&more, "padding_token_id", (uint32_t)v.n);
    put_id(&more, "unknown_token_id", (uint32_t)v.n + 7);
    put_id(&more, "bos_token_id", 1);
    t = load_and_free(write_gguf_with(&v, NO_IDS, 3, more));
    CHECK(t && t->bos == 1 && t->padding == 3 && t->unknown == -1);
    ml_tokenizer_free(t);
    free(v.pieces);
}

static int has_ends(const ml_tokenizer *t, const int32_t *ids, int n) {
    return t && t->n_ends == n && memcmp(t->ends, ids, (size_t)n * sizeof *ids) == 0;
}

TEST(several_ids_end_a_text) {
    static const int32_t named[] = {2, FIRST, FIRST + 1, FIRST + 2}, listed[] = {5, 2},
                         most[] = {2, 10, 11, 12, 13, 14, 15, 16};
    vocabulary v = small_vocabulary();
    bytes more = {NULL, 0, 0};
    put_id(&more, "eot_token_id", FIRST);
    put_id(&more, "eom_token_id", FIRST + 1);
    put_list(&more, "tokenizer.ggml.eos_token_ids", 5,
             4); /* one of them a second time, two that do not exist */
    put_uint(&more, 2, 4), put_uint(&more, FIRST + 2, 4), put_uint(&more, (uint64_t)v.n, 4),
        put_uint(&more, ~0u, 4);
    ml_tokenizer *t = load_and_free(write_gguf_with(&v, 0, 3, more));
    CHECK(t && t->eos == 2 && has_ends(t, named, 4));
    ml_tokenizer_free(t);
    memset(&more, 0, sizeof more);
    put_list(&more, "tokenizer.ggml.eos_token_id", 4, 2); /* a list where others have a number */
    put_uint(&more, 5, 4), put_uint(&more, 2, 4);
    put_id(&more, "eot_token_id", (uint32_t)v.n); /* outside */
    t = load_and_free(write_gguf_with(&v, NO_IDS, 2, more));
    CHECK(t && t->eos == 5 && has_ends(t, listed, 2));
    ml_tokenizer_free(t);
    memset(&more, 0, sizeof more);
    put_list(&more, "tokenizer.ggml.eos_token_ids", 4, 20); /* the first eight count */
    for (uint64_t i = 0; i < 20; i++) put_uint(&more, 10 + i, 4);
    t = load_and_free(write_gguf_with(&v, 0, 1, more));
    CHECK(has_ends(t, most, ML_MAX_ENDS));
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* Pieces that a chat model got later end a text by their names, if they are special. */
TEST(names_that_end_a_text) {
    static const int32_t expected[] = {2, FIRST, FIRST + 1};
    static const entry added[] = {{"<|im_end|>", 0, ML_PIECE_CONTROL},
                                  {"<|eot_id|>", 0, ML_PIECE_USER_DEFINED},
                                  {"<|endoftext|>", 0, ML_PIECE_NORMAL},
                                  {"<|im_start|>", 0, ML_PIECE_CONTROL}};
    vocabulary v = make_vocabulary(added, COUNT(added), 1);
    ml_tokenizer *t[2];
    t[0] = load_vocabulary(&v);
    t[1] = load_and_free(write_gguf(&v, 0));
    for (int i = 0; i < 2; i++) {
        CHECK(has_ends(t[i], expected, 3));
        ml_tokenizer_free(t[i]);
    }
    free(v.pieces);
}

/* Written with --bos_id=-1 or its like: nothing is invented in its place. */
TEST(without_bos) {
    vocabulary v = small_vocabulary();
    bytes more = {NULL, 0, 0};
    int32_t work[256];
    ml_tokens tokens;
    ml_tokenizer *t[5];
    v.bos = -1;
    t[0] = load_vocabulary(&v);
    t[1] = load_and_free(write_gguf(&v, 0)); /* 0xffffffff */
    put_flag(&more, "add_bos_token", 0);
    t[2] = load_and_free(write_gguf_with(&v, NO_IDS, 1, more));
    v.pieces[1].text = "</s>", v.pieces[2].text = "<pad>"; /* id 1, the default, is eos */
    v.eos = 1;
    t[3] = load_vocabulary(&v);
    memset(&more, 0, sizeof more);
    put_id(&more, "eos_token_id", 1);
    t[4] = load_and_free(write_gguf_with(&v, NO_IDS, 1, more));
    for (int i = 0; i < 5; i++) {
        REQUIRE(t[i]);
        CHECK(t[i]->bos == -1 && !t[i]->adds_bos && t[i]->eos == (i < 3 ? 2 : 1));
        CHECK(adds(t[i], ML_ADD_SPECIAL, 0, 0) && adds(t[i], ML_ADD_EOS, 0, 1));
        CHECK(encode_into(work, sizeof work, t[i], "ab", 2, ML_ADD_BOS, &tokens) == ML_ERROR_ARGUMENT);
        ml_tokenizer_free(t[i]);
    }
    v.pieces[1].text = "the", v.pieces[1].kind = 1; /* or a word */
    v.pieces[2].text = "dog", v.pieces[2].kind = 1;
    t[0] = load_and_free(write_gguf(&v, NO_IDS));
    CHECK(t[0] && t[0]->bos == -1 && t[0]->eos == -1 && t[0]->unknown == 0 && !t[0]->n_ends);
    ml_tokenizer_free(t[0]);
    v.pieces[1].text = "<s>"; /* a word to SentencePiece, but the usual name */
    t[0] = load_and_free(write_gguf(&v, NO_IDS));
    CHECK(t[0] && t[0]->bos == 1 && t[0]->eos == -1);
    ml_tokenizer_free(t[0]);
    free(v.pieces);
}

/* ---- saving ---- */

/* A model of one small layer for this vocabulary. */
static ml_model *model_for(ml_tokenizer *t) {
    ml_model_create_desc desc;
    ml_random random;
    ml_model *model = NULL;
    memset(&desc, 0, sizeof desc);
    desc.config.dim = 16, desc.config.hidden_dim = 16, desc.config.n_layers = 1, desc.config.n_heads = 1;
    desc.config.max_seq_len = 8, desc.config.vocab_size = t->n_pieces;
    ml_random_seed(&random, 1);
    desc.random = &random;
    if (ml_model_create(&desc, &model, &failure) || ml_model_set_tokenizer(model, t, &failure)) exit(2);
    return model;
}

/* The key's number; -1 where it has none, -2 where it is false. */
static int64_t saved_value(const ml_archive *archive, const char *key) {
    const ml_value *value = ml_archive_find_value(archive, key);
    return !value ? -1 : value->kind == ML_VALUE_BOOL && !value->i ? -2 : value->i;
}

/* Of more ends than have keys of their own a list is written, and once. */
TEST(all_ends_are_saved) {
    static const int32_t ends[] = {2, 10, 11, 12, 13};
    vocabulary v = small_vocabulary();
    bytes more = {NULL, 0, 0};
    put_list(&more, "tokenizer.ggml.eos_token_ids", 4, 4);
    for (uint64_t i = 0; i < 4; i++) put_uint(&more, 10 + i, 4);
    ml_tokenizer *t = load_and_free(write_gguf_with(&v, 0, 1, more));
    REQUIRE(t && has_ends(t, ends, 5));
    ml_model *model = model_for(t);
    for (int round = 0; round < 2; round++) { /* as it was read, and as it was written */
        CHECK(ml_model_save(model, in_folder("ends.gguf"), NULL, &failure) == ML_OK);
        ml_model_free(model);
        REQUIRE(ml_model_load(in_folder("ends.gguf"), NULL, &model, &failure) == ML_OK);
        CHECK(model->tokenizer && has_ends(model->tokenizer, ends, 5));
    }
    ml_model_free(model);
    free(v.pieces);
}

/* A user-defined piece of SentencePiece's, which has marks, has plain spaces in a GGUF, and is found as before. */
TEST(user_defined_pieces_are_saved_as_text) {
    static const entry more[] = {{"a", -1, 1}, {MARK, -2, 1}, {MARK MARK, 0, ML_PIECE_USER_DEFINED}};
    vocabulary v = make_vocabulary(more, COUNT(more), 1);
    ml_tokenizer *t = load_vocabulary(&v);
    size_t n;
    ENCODES(t, "a  a", FIRST + 1, FIRST, FIRST + 2, FIRST);
    ml_model *model = model_for(t);
    REQUIRE(ml_model_save(model, in_folder("user.gguf"), NULL, &failure) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_model_load(in_folder("user.gguf"), NULL, &model, &failure) == ML_OK && model->tokenizer);
    ENCODES(model->tokenizer, "a  a", FIRST + 1, FIRST, FIRST + 2, FIRST);
    const char *piece = ml_tokenizer_piece(model->tokenizer, FIRST + 2, &n, NULL, NULL);
    CHECK(n == 2 && memcmp(piece, "  ", 2) == 0);
    ml_model_free(model);
    free(v.pieces);
}

/* Only what the tokenizer has is written, and it is the same when it is loaded again. */
TEST(saving_invents_nothing) {
    static const int32_t ends[] = {2, FIRST, FIRST + 1};
    vocabulary v = small_vocabulary();
    bytes more = {NULL, 0, 0};
    ml_archive *archive = NULL;
    ml_model *model, *again = NULL;
    v.bos = v.padding = -1;
    put_id(&more, "eot_token_id", FIRST);
    put_id(&more, "eom_token_id", FIRST + 1);
    model = model_for(load_and_free(write_gguf_with(&v, 0, 2, more)));
    REQUIRE(ml_model_save(model, in_folder("without.gguf"), NULL, &failure) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_archive_load(in_folder("without.gguf"), NULL, &archive, &failure) == ML_OK);
    CHECK(saved_value(archive, "tokenizer.ggml.bos_token_id") == -1);
    CHECK(saved_value(archive, "tokenizer.ggml.padding_token_id") == -1);
    CHECK(saved_value(archive, "tokenizer.ggml.add_bos_token") == -2);
    CHECK(saved_value(archive, "tokenizer.ggml.eos_token_id") == 2);
    CHECK(saved_value(archive, "tokenizer.ggml.eot_token_id") == FIRST);
    CHECK(saved_value(archive, "tokenizer.ggml.eom_token_id") == FIRST + 1);
    ml_archive_free(archive);
    REQUIRE(ml_model_load(in_folder("without.gguf"), NULL, &again, &failure) == ML_OK);
    CHECK(again->tokenizer->bos == -1 && !again->tokenizer->adds_bos && has_ends(again->tokenizer, ends, 3));
    CHECK(again->tokenizer->padding == 3); /* byte 0, as before */
    ml_model_free(again);
    v.bos = 1, v.padding = 2;
    model = model_for(load_vocabulary(&v));
    REQUIRE(ml_model_save(model, in_folder("with.gguf"), NULL, &failure) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_archive_load(in_folder("with.gguf"), NULL, &archive, &failure) == ML_OK);
    CHECK(saved_value(archive, "tokenizer.ggml.bos_token_id") == 1);
    CHECK(saved_value(archive, "tokenizer.ggml.padding_token_id") == 2);
    CHECK(saved_value(archive, "tokenizer.ggml.add_bos_token") == 1);
    CHECK(saved_value(archive, "tokenizer.ggml.eot_token_id") == -1);
    ml_archive_free(archive);
    free(v.pieces);
}

/* Hugging Face's files beside tokenizer.model. One that cannot be read changes nothing. */
TEST(hugging_faces_files) {
    static const int32_t plain[] = {2}, all[] = {2, FIRST, FIRST + 1};
    static const struct {
        const char *generation, *tokenizer;
        int adds_bos, adds_eos, n_ends;
    } cases[] = {
        {"{\"eos_token_id\": 2}", "{\"add_bos_token\": true, \"add_eos_token\": false}", 1, 0, 1},
        {"{\"eos_token_id\": null}", "{\"add_bos_token\": null, \"add_eos_token\": true}", 1, 1, 1},
        {"{\"eos_token_id\": [259, 260], ", "{add_bos_token: false}", 1, 0, 1},
        {"{\"eos_token_id\": [259, 2, 260, 99999, -1]}",
         "{\"add_bos_token\": false, \"add_prefix_space\": false}", 0, 0, 3},
    };
    vocabulary v = small_vocabulary();
    ml_save_desc save;
    bytes file = write_model(&v);
    ml_model *model = model_for(load_vocabulary(&v)), *loaded = NULL;
    memset(&save, 0, sizeof save);
    save.format = ML_SAFETENSORS;
    REQUIRE(ml_model_save(model, in_folder("model.safetensors"), &save, &failure) == ML_OK);
    ml_model_free(model);
    write_file(in_folder("tokenizer.model"), file.data, file.size);
    for (size_t i = 0; i < COUNT(cases); i++) {
        write_file(in_folder("generation_config.json"), cases[i].generation, strlen(cases[i].generation));
        write_file(in_folder("tokenizer_config.json"), cases[i].tokenizer, strlen(cases[i].tokenizer));
        REQUIRE(ml_model_load(in_folder("model.safetensors"), NULL, &loaded, &failure) == ML_OK);
        const ml_tokenizer *t = loaded->tokenizer;
        REQUIRE(t);
        CHECK(t->adds_bos == cases[i].adds_bos && t->adds_eos == cases[i].adds_eos);
        CHECK(has_ends(t, cases[i].n_ends > 1 ? all : plain, cases[i].n_ends));
        CHECK(t->private_part->rules.adds_space_prefix ==
              (strstr(cases[i].tokenizer, "prefix_space") == NULL));
        if (cases[i].n_ends == 3) /* config.json then has the list, and needs no other file */
            CHECK(ml_model_save(loaded, in_folder("again.safetensors"), &save, &failure) == ML_OK);
        ml_model_free(loaded);
    }
    CHECK(remove(in_folder("generation_config.json")) == 0);
    REQUIRE(ml_model_load(in_folder("again.safetensors"), NULL, &loaded, &failure) == ML_OK);
    CHECK(has_ends(loaded->tokenizer, all, 3));
    ml_model_free(loaded);
    free(file.data);
    free(v.pieces);
}

/* Pieces that only tokenizer_config.json has, after those of tokenizer.model; the first gap or odd one ends them. */
TEST(pieces_of_tokenizer_config) {
    static const char text[] = "ab<|im_end|>ab<|user|>ab";
    static const char some[] =
        "{\"added_tokens_decoder\": {\"2\": {\"content\": \"</s>\", \"special\": true},"
        " \"%d\": {\"content\": \"<|im_end|>\", \"special\": true},"
        " \"%d\": {\"content\": \"<|user|>\", \"special\": false},"
        " \"%d\": {\"content\": 5}, \"%d\": {\"content\": \"<|late|>\"}}}";
    vocabulary all = small_vocabulary(), v = make_vocabulary(small_pieces, COUNT(small_pieces) - 4, 1);
    ml_tokenizer *whole = load_vocabulary(&v);
    const int n = whole->n_pieces;
    char config[512], generation[64];
    ml_save_desc save;
    bytes file = write_model(&v);
    ml_model *loaded = NULL, *model = model_for(load_vocabulary(&all));
    size_t length;
    ml_piece_kind kind;
    memset(&save, 0, sizeof save);
    save.format = ML_SAFETENSORS;
    REQUIRE(ml_model_save(model, in_folder("model.safetensors"), &save, &failure) == ML_OK);
    ml_model_free(model);
    write_file(in_folder("tokenizer.model"), file.data, file.size);
    snprintf(config, sizeof config, some, n, n + 1, n + 2, n + 3);
    write_file(in_folder("tokenizer_config.json"), config, strlen(config));
    snprintf(generation, sizeof generation, "{\"eos_token_id\": %d}", n);
    write_file(in_folder("generation_config.json"), generation, strlen(generation));
    REQUIRE(ml_model_load(in_folder("model.safetensors"), NULL, &loaded, &failure) == ML_OK);
    const ml_tokenizer *t = loaded->tokenizer;
    REQUIRE(t && t->n_pieces == n + 2);
    CHECK(t->ends[t->n_ends - 1] == n);
    const char *piece = ml_tokenizer_piece(t, n, &length, NULL, &kind);
    CHECK(length == 10 && memcmp(piece, "<|im_end|>", 10) == 0 && kind == ML_PIECE_CONTROL);
    CHECK(ml_tokenizer_piece(t, n + 1, NULL, NULL, &kind) && kind == ML_PIECE_USER_DEFINED);
    encoded alone = encode(whole, "ab", 2, 0), e = encode(t, text, sizeof text - 1, ML_PARSE_SPECIAL);
    REQUIRE(e.n == 3 * alone.n + 2 && e.ids[alone.n] == n && e.ids[2 * alone.n + 1] == n + 1);
    for (size_t i = 0; i < 3; i++) /* each part is what it is alone, with its space */
        CHECK(memcmp(e.ids + i * (alone.n + 1), alone.ids, alone.n * sizeof *alone.ids) == 0);
    free(alone.work);
    free(e.work);
    ml_model_free(loaded);
    ml_tokenizer_free(whole);
    remove(in_folder("generation_config.json"));
    remove(in_folder("tokenizer_config.json"));
    free(file.data);
    free(all.pieces);
    free(v.pieces);
}

/* Before version 4.34 of transformers these were in added_tokens.json: in any order, by their texts, the special ones
   named in special_tokens_map.json or tokenizer_config.json. Beside added_tokens_decoder it does not count. */
TEST(pieces_of_added_tokens) {
    static const char *const names[] = {"tokenizer_config.json", "added_tokens.json",
                                        "special_tokens_map.json"};
    static const char *const newer = "{\"added_tokens_decoder\": {\"%d\": {\"content\": \"<new>\"}}}";
    static const char *const before[] = {"{\"eos_token\": \"<|im.end|>\", \"add_bos_token\": true}",
                                         "{\"<|user|>\": %d, \"</s>\": 2, \"[PAD]\": %d, \"<|im.end|>\": %d}",
                                         "{\"pad_token\": {\"content\": \"[PAD]\"}, \"x\": [\"no\"]}"};
    static const char *const texts[] = {"<|im.end|>", "<|user|>", "[PAD]"};
    vocabulary all = small_vocabulary(), v = make_vocabulary(small_pieces, COUNT(small_pieces) - 4, 1);
    const int n = v.n;
    ml_save_desc save;
    bytes file = write_model(&v);
    ml_model *loaded = NULL, *model = model_for(load_vocabulary(&all));
    char text[128];
    memset(&save, 0, sizeof save);
    save.format = ML_SAFETENSORS;
    REQUIRE(ml_model_save(model, in_folder("model.safetensors"), &save, &failure) == ML_OK);
    ml_model_free(model);
    write_file(in_folder("tokenizer.model"), file.data, file.size);
    snprintf(text, sizeof text, "{\"eos_token_id\": %d}", n);
    write_file(in_folder("generation_config.json"), text, strlen(text));
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, before[i], n + 1, n + 2, n);
        write_file(in_folder(names[i]), text, strlen(text));
    }
    REQUIRE(ml_model_load(in_folder("model.safetensors"), NULL, &loaded, &failure) == ML_OK);
    const ml_tokenizer *t = loaded->tokenizer;
    REQUIRE(t && t->n_pieces == n + 3 && t->ends[t->n_ends - 1] == n);
    for (int i = 0; i < 3; i++) {
        size_t length;
        ml_piece_kind kind;
        const char *piece = ml_tokenizer_piece(t, n + i, &length, NULL, &kind);
        CHECK(length == strlen(texts[i]) && memcmp(piece, texts[i], length) == 0);
        CHECK(kind == (i == 1 ? ML_PIECE_USER_DEFINED : ML_PIECE_CONTROL));
    }
    ml_model_free(loaded);
    snprintf(text, sizeof text, newer, n);
    write_file(in_folder(names[0]), text, strlen(text));
    REQUIRE(ml_model_load(in_folder("model.safetensors"), NULL, &loaded, &failure) == ML_OK);
    CHECK(loaded->tokenizer && loaded->tokenizer->n_pieces == n + 1);
    ml_model_free(loaded);
    for (int i = 0; i < 3; i++) remove(in_folder(names[i]));
    remove(in_folder("generation_config.json"));
    free(file.data);
    free(all.pieces);
    free(v.pieces);
}

/* ---- hostile files ---- */

/* Whatever was loaded must work. */
static void use(const ml_tokenizer *t) {
    static const char text[] = " ab abc \xC3\xA9 <s>\0 zz\xFF" MARK;
    int32_t work[1024];
    ml_tokens tokens;
    char decoded[4096];
    size_t n, size;
    int32_t id, all = t->n_pieces;
    CHECK(t->bos < all && t->eos < all && t->unknown < all);
    for (id = 0; id < all; id++)
        if (!ml_tokenizer_piece(t, id, &n, NULL, NULL)) CHECK(0);
    if (encode_into(work, sizeof work, t, text, sizeof text - 1, 0, &tokens)) return;
    CHECK((size_t)tokens.n <= sizeof text + 1);
    CHECK(decode(t, tokens.ids, (size_t)tokens.n, decoded, sizeof decoded, &size) == ML_OK ||
          size > sizeof decoded);
}

/* Every prefix and every changed byte of a file, each in memory of exactly its size. n_sound of the prefixes
   are files in their own right. */
static void damage(bytes whole, size_t n_sound) {
    size_t i, k, n_loaded = 0;
    for (i = 0; i <= whole.size; i++) {
        unsigned char *cut = (unsigned char *)malloc(i + !i);
        bytes b;
        ml_tokenizer *t;
        if (i) memcpy(cut, whole.data, i);
        b.data = cut, b.size = i, b.capacity = i;
        t = load(&b);
        if (t) use(t);
        if (t && i < whole.size) n_loaded++;
        ml_tokenizer_free(t);
        free(cut);
    }
    CHECK(n_loaded == n_sound);
    for (i = 0; i < whole.size; i++) {
        static const unsigned char changes[] = {0x01, 0x80, 0xFF, 0x08, 0x7F};
        for (k = 0; k < COUNT(changes); k++) {
            ml_tokenizer *t;
            whole.data[i] ^= changes[k];
            t = load(&whole);
            if (t) use(t);
            ml_tokenizer_free(t);
            whole.data[i] ^= changes[k];
        }
    }
    free(whole.data);
}

TEST(damaged_files) {
    vocabulary v = small_vocabulary(), w = make_vocabulary(small_pieces, COUNT(small_pieces), 0);
    damage(write_model(&w),
           1); /* without the last message, normalizer_spec; without trainer_spec it is no BPE */
    damage(write_bin(&w), (size_t)w.n - 1); /* it may end after any piece */
    damage(write_gguf(&w, 0), 0);
    damage(write_model(&v), 1);
    free(v.pieces);
    free(w.pieces);
}

static int refused(bytes b, ml_result result, const char *word) {
    ml_tokenizer *t = load(&b);
    int right = !t && failure.code == result && strstr(failure.text, word) != NULL;
    if (!right) printf("  %d \"%s\"\n", (int)failure.code, failure.text);
    ml_tokenizer_free(t);
    free(b.data);
    return right;
}

TEST(wrong_vocabularies) {
    vocabulary v = small_vocabulary();
    volatile float zero = 0;
    v.bos = v.n;
    CHECK(refused(write_model(&v), ML_ERROR_FORMAT, "trainer_spec.bos_id"));
    CHECK(refused(write_gguf(&v, 0), ML_ERROR_FORMAT, "tokenizer.ggml.bos_token_id"));
    v.bos = 1, v.padding = 1 << 30; /* left out of the vocabulary: found by its name, as without it */
    ml_tokenizer *padded = load_and_free(write_model(&v));
    CHECK(padded && padded->padding == 3);
    ml_tokenizer_free(padded);
    v.padding = -1;
    v.pieces[FIRST].kind = 9;
    CHECK(refused(write_model(&v), ML_ERROR_FORMAT, "piece 259"));
    v.pieces[FIRST].kind = ML_PIECE_BYTE;
    CHECK(refused(write_gguf(&v, 0), ML_ERROR_FORMAT, "<0x00>"));
    v.pieces[FIRST].kind = ML_PIECE_NORMAL;
    v.pieces[FIRST + 1].score = zero / zero;
    CHECK(refused(write_model(&v), ML_ERROR_FORMAT, "piece 260"));
    CHECK(refused(write_bin(&v), ML_ERROR_FORMAT, "piece 260"));
    v.pieces[FIRST + 1].score = 0;
    CHECK(refused(write_gguf(&v, SHORT_KINDS), ML_ERROR_MISMATCH, "token_type"));
    CHECK(refused(write_gguf(&v, WRONG_MODEL), ML_ERROR_UNSUPPORTED, "tokenizer.ggml.model"));
    CHECK(refused(write_gguf(&v, NO_MODEL), ML_ERROR_UNSUPPORTED, "tokenizer.ggml.model"));
    CHECK(refused(write_gguf(&v, FLOAT_ID), ML_ERROR_FORMAT, "bos_token_id"));
    v.n = 0;
    CHECK(refused(write_gguf(&v, 0), ML_ERROR_FORMAT, "no pieces"));
    v.n = 2; /* the default ids that do not exist are none */
    v.eos = 2;
    ml_tokenizer_free(load_and_free(write_gguf(&v, NO_IDS)));
    CHECK(failure.code == ML_OK);
    free(v.pieces);
}

/* Infinite scores are numbers, and are ordered like numbers. */
TEST(infinite_scores) {
    entry more[] = {{"ab", 0, 1}, {"bc", 0, 1}, {"cd", 0, 1}, {MARK, 0, 1}};
    vocabulary v;
    ml_tokenizer *t;
    more[0].score = -HUGE_VALF;
    more[2].score = HUGE_VALF;
    v = make_vocabulary(more, COUNT(more), 1);
    t = load_vocabulary(&v);
    ENCODES(t, "abcd", FIRST + 3, FIRST, FIRST + 2);
    ENCODES(t, "abc", FIRST + 3, 3 + 'a', FIRST + 1);
    ml_tokenizer_free(t);
    free(v.pieces);
}

static bytes with_trainer_field(int number, uint64_t value) {
    vocabulary v = small_vocabulary();
    bytes b = write_model(&v), trainer = {NULL, 0, 0};
    put_field(&trainer, number, value);
    put_message(&b, 2, &trainer);
    free(v.pieces);
    return b;
}

static bytes with_normalizer_bytes(int which, int number, const char *data, size_t n) {
    vocabulary v = small_vocabulary();
    bytes b = write_model(&v), normalizer = {NULL, 0, 0};
    put_bytes_field(&normalizer, number, data, n);
    put_message(&b, which, &normalizer);
    free(v.pieces);
    return b;
}

TEST(model_specs) {
    vocabulary v = small_vocabulary();
    bytes b, message = {NULL, 0, 0};
    ml_tokenizer *t;
    CHECK(refused(with_trainer_field(3, 1), ML_ERROR_UNSUPPORTED, "Unigram"));
    CHECK(refused(with_trainer_field(3, 3), ML_ERROR_UNSUPPORTED, "Word"));
    CHECK(refused(with_trainer_field(3, 77), ML_ERROR_UNSUPPORTED, "BPE"));
    CHECK(refused(with_trainer_field(24, 1), ML_ERROR_UNSUPPORTED, "treat_whitespace_as_suffix"));
    CHECK(refused(with_normalizer_bytes(3, 2, "rules", 5), ML_ERROR_UNSUPPORTED, "precompiled_charsmap"));
    CHECK(refused(with_normalizer_bytes(5, 2, "rules", 5), ML_ERROR_UNSUPPORTED, "precompiled_charsmap"));
    ml_tokenizer_free(load_and_free(with_normalizer_bytes(3, 2, "", 0)));
    CHECK(failure.code == ML_OK);
    b = write_model(&v); /* fields unknown to us: of every wire type, at every level */
    put_field(&b, 1000, UINT64_MAX);
    put_bytes_field(&b, 200, "anything", 8);
    put_varint(&b, 300 * 8 + 1), put_uint(&b, 123, 8);
    put_varint(&b, 301 * 8 + 5), put_uint(&b, 123, 4);
    put_field(&message, 77, 5);
    put_message(&b, 2, &message);
    t = load(&b);
    CHECK(t && t->n_pieces == v.n);
    ml_tokenizer_free(t);
    put_varint(&b, 302 * 8 + 3); /* a group, which proto2 deprecated long ago */
    CHECK(refused(b, ML_ERROR_FORMAT, "corrupt"));
    b = write_model(&v);
    put_uint(&b, 0, 2); /* field 0 does not exist */
    CHECK(refused(b, ML_ERROR_FORMAT, "corrupt"));
    b = write_model(&v);
    put_varint(&b, 50 * 8); /* a varint that does not end */
    put_uint(&b, UINT64_MAX, 8), put_uint(&b, UINT64_MAX, 8);
    CHECK(refused(b, ML_ERROR_FORMAT, "corrupt"));
    b = write_model(&v);
    put_varint(&b, 50 * 8 + 2); /* longer than any memory */
    put_varint(&b, UINT64_MAX);
    CHECK(refused(b, ML_ERROR_FORMAT, "corrupt"));
#ifndef ML_NO_BPE
    b.data = NULL, b.size = b.capacity = 0;
    put(&b, "{\"model\": 1}", 12);
    CHECK(refused(b, ML_ERROR_FORMAT, "tokenizer.json: JSON: an object is missing"));
#endif
    free(v.pieces);
}

TEST(sizes_beyond_limits) {
    vocabulary v = small_vocabulary();
    bytes b = {NULL, 0, 0};
    char *large = (char *)malloc(1000001);
    int32_t i;
    REQUIRE(large);
    memset(large, 'a', 1000000);
    large[1000000] = 0;
    v.pieces[FIRST].text = large;
    CHECK(refused(write_model(&v), ML_ERROR_UNSUPPORTED, "piece 259"));
    CHECK(refused(write_bin(&v), ML_ERROR_UNSUPPORTED, "1024"));
    large[1025] = 0;
    CHECK(refused(write_gguf(&v, 0), ML_ERROR_UNSUPPORTED, "1025"));
    large[1024] = 0;
    ml_tokenizer_free(load_and_free(write_gguf(&v, 0)));
    CHECK(failure.code == ML_OK);
    put_uint(&b, 7, 4); /* two million pieces */
    for (i = 0; i < 2000000; i++) put(&b, "\0\0\0\0\0\0\0\0", 8);
    CHECK(refused(b, ML_ERROR_UNSUPPORTED, "1048576"));
    free(large);
    free(v.pieces);
}

/* Pieces chosen to fall on one slot of the hash table would make every lookup slow: they are refused. */
TEST(colliding_pieces) {
    enum { N = 700 };
    static char texts[N][8];
    static entry more[N];
    uint32_t mask = 2047, number = 0; /* 703 pieces: 2048 slots */
    vocabulary v;
    int i;
    for (i = 0; i < N; i++) {
        uint32_t hash;
        do {
            snprintf(texts[i], sizeof texts[i], "%x", (unsigned)number++);
            hash = mli_hash((const unsigned char *)texts[i], strlen(texts[i]));
        } while (((hash ^ hash >> 15) & mask) != 5);
        more[i].text = texts[i];
        more[i].score = 0;
        more[i].kind = ML_PIECE_NORMAL;
    }
    v = make_vocabulary(more, N, 0);
    CHECK(refused(write_model(&v), ML_ERROR_FORMAT, "collide"));
    v.n = 203;
    ml_tokenizer_free(load_and_free(write_model(&v)));
    CHECK(failure.code == ML_OK);
    free(v.pieces);
}

/* Lists of numbers of any size are read, as are longer ones and files without scores. */
TEST(lists_of_other_types) {
    static const struct {
        int type, size, is_float; /* GGUF's number */
    } types[] = {{0, 1, 0}, {1, 1, 0}, {2, 2, 0}, {3, 2, 0}, {4, 4, 0}, {10, 8, 0}, {11, 8, 0}, {12, 8, 1}};
    vocabulary v = small_vocabulary();
    for (size_t k = 0; k < COUNT(types); k++) {
        bytes more = {NULL, 0, 0};
        ml_tokenizer *t;
        if (!types[k].is_float) {
            put_list(&more, "tokenizer.ggml.token_type", (uint32_t)types[k].type, (uint64_t)v.n + k);
            for (int i = 0; i < v.n; i++) put_uint(&more, (uint64_t)v.pieces[i].kind, types[k].size);
            for (size_t i = 0; i < k; i++) put_uint(&more, 1, types[k].size);
        }
        put_list(&more, "tokenizer.ggml.scores", (uint32_t)types[k].type, (uint64_t)v.n + k);
        for (int i = 0; i < v.n; i++) {
            double score = (double)v.pieces[i].score;
            uint64_t bits = (uint64_t)i % 100;
            if (types[k].is_float) memcpy(&bits, &score, 8);
            put_uint(&more, bits, types[k].size);
        }
        for (size_t i = 0; i < k; i++) put_uint(&more, 0, types[k].size);
        t = load_and_free(write_gguf_with(&v, types[k].is_float ? NO_SCORES : NO_SCORES | NO_KINDS,
                                          types[k].is_float ? 1 : 2, more));
        REQUIRE(t);
        for (int i = 0; i < v.n; i++) {
            float score, expected = types[k].is_float ? v.pieces[i].score : (float)(i % 100);
            ml_piece_kind kind;
            ml_tokenizer_piece(t, i, NULL, &score, &kind);
            CHECK(score == expected && (int)kind == v.pieces[i].kind);
        }
        ml_tokenizer_free(t);
    }
    bytes more = {NULL, 0, 0};
    put_list(&more, "tokenizer.ggml.scores", 12, (uint64_t)v.n); /* beyond the floats */
    for (int i = 0; i < v.n; i++) put_uint(&more, 0x7fe0000000000000u, 8);
    ml_tokenizer *t = load_and_free(write_gguf_with(&v, NO_SCORES, 1, more));
    float score = 0;
    CHECK(t && ml_tokenizer_piece(t, FIRST, NULL, &score, NULL) && score > 3e38f && score < HUGE_VALF);
    ml_tokenizer_free(t);
    memset(&more, 0, sizeof more);
    put_list(&more, "tokenizer.ggml.token_type", 6, (uint64_t)v.n); /* floats are no kinds */
    for (int i = 0; i < v.n; i++) put_f32(&more, 1);
    CHECK(refused(write_gguf_with(&v, NO_KINDS, 1, more), ML_ERROR_FORMAT, "integers"));
    t = load_and_free(write_gguf(&v, NO_SCORES)); /* all are equal: the leftmost pair is merged first */
    REQUIRE(t);
    ENCODES(t, "cabc", FIRST + 8, FIRST + 11, FIRST + 3);
    ml_tokenizer_free(t);
    free(v.pieces);
}

#ifdef ML_NO_BPE
#define NAMED(word) "left out by ML_NO_BPE" /* whichever it is */
#else
#define NAMED(word) word
#endif

/* Tokenizers that are known, and not read: the error says which one it is. (More are in test_byte_level.c.) */
TEST(other_tokenizers_are_named) {
    static const struct {
        const char *text, *word;
    } files[] = {
        {"{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\"}}", "without byte_fallback"},
        {"\xEF\xBB\xBF\r\n  {\"version\": \"1.0\"}", "there is no model of type BPE"},
        {"{\"model\": {\"type\": \"Unigram\", \"vocab\": [[\"a\", 0.5]]}}",
         "the model Unigram is not supported"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}}}", "the model WordPiece"},
        {"{\"model\": {\"vocab\": [[\"a\", 0.5]], \"type\": \"Unigram\"}}", "only BPE is supported"},
    };
    vocabulary v = small_vocabulary();
    for (size_t i = 0; i < COUNT(files); i++) {
        bytes b = {NULL, 0, 0};
        ml_tokenizer *t;
        put(&b, files[i].text, strlen(files[i].text));
        write_file(in_folder("other"), b.data, b.size);
        CHECK(ml_tokenizer_load(in_folder("other"), NULL, &t, &failure) == ML_ERROR_UNSUPPORTED && !t);
        CHECK(strstr(failure.text, NAMED(files[i].word)) && strstr(failure.text, "tokenizer.json"));
        CHECK(refused(b, ML_ERROR_UNSUPPORTED, NAMED(files[i].word)));
    }
    CHECK(refused(write_gguf(&v, WRONG_MODEL), ML_ERROR_UNSUPPORTED,
                  NAMED("there is no key tokenizer.ggml.pre")));
    bytes words = {NULL, 0, 0};
    put(&words, "Once upon 1 time", 16);
    CHECK(refused(words, ML_ERROR_FORMAT, "no tokenizer"));
    static const struct {
        const char *begin, *word;
    } kinds[] = {{"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer"},
                 {"\x1f\x8b\x08\x08name", "it is compressed with gzip"},
                 {"\x89PNG\r\n", "it is a PNG picture"}};
    for (size_t i = 0; i < COUNT(kinds); i++) {
        bytes b = {NULL, 0, 0};
        put(&b, kinds[i].begin, strlen(kinds[i].begin));
        CHECK(refused(b, ML_ERROR_FORMAT, kinds[i].word) && strstr(failure.text, "this is no tokenizer"));
    }
    bytes long_bin = write_bin(&v);
    put(&long_bin, "more", 4);
    CHECK(refused(long_bin, ML_ERROR_TRUNCATED, "cut short, or has bytes too many"));
    free(v.pieces);
}

/* ---- memory ---- */

typedef struct counter {
    int left, live;
} counter;

static void *counted_alloc(size_t size, void *user) {
    counter *c = (counter *)user;
    if (c->left-- <= 0) return NULL;
    c->live++;
    return malloc(size);
}

static void counted_free(void *memory, void *user) {
    ((counter *)user)->live--;
    free(memory);
}

TEST(out_of_memory) {
    vocabulary v = small_vocabulary();
    bytes files[3];
    int k, n, n_failed = 0;
    files[0] = write_model(&v);
    files[1] = write_bin(&v);
    files[2] = write_gguf(&v, 0);
    for (k = 0; k < 3; k++) {
        for (n = 0; n < 100; n++) {
            counter c;
            ml_load_desc desc = {NULL, 0, {counted_alloc, counted_free, &c}};
            ml_tokenizer *t = NULL;
            ml_result result;
            c.left = n, c.live = 0;
            result = ml_tokenizer_load_memory(files[k].data, files[k].size, &desc, &t, &failure);
            CHECK(result == ML_OK || result == ML_ERROR_MEMORY);
            CHECK((result == ML_OK) == (t != NULL) && c.live == (t != NULL));
            n_failed += result != ML_OK;
            ml_tokenizer_free(t);
            CHECK(c.live == 0);
            if (!result) break;
        }
        CHECK(n < 100);
        free(files[k].data);
    }
    CHECK(n_failed >= 3);
    free(v.pieces);
}

TEST(from_an_arena) {
    vocabulary v = small_vocabulary();
    bytes file = write_bin(&v);
    ml_arena arena;
    ml_load_desc desc = {NULL, 0, {NULL, NULL, NULL}};
    ml_tokenizer *t = NULL;
    memset(&arena, 0, sizeof arena);
    arena.size = 100000;
    arena.memory = (unsigned char *)malloc(arena.size);
    desc.allocator = ml_arena_allocator(&arena);
    CHECK(ml_tokenizer_load_memory(file.data, file.size, &desc, &t, NULL) == ML_OK);
    REQUIRE(t);
    ENCODES(t, "a", FIRST);
    CHECK(arena.used < 40000); /* a vocabulary of 278 pieces fits a small device */
    ml_tokenizer_free(t);
    free(arena.memory);
    free(file.data);
    free(v.pieces);
}

/* ---- a megabyte: a quadratic step anywhere would show as a hang ---- */

static void long_text(const ml_tokenizer *t, const char *alphabet, size_t n_alphabet) {
    size_t i, n = (size_t)1 << 20;
    char *text = (char *)malloc(n);
    ml_random random;
    encoded e;
    if (!text) exit(2);
    ml_random_seed(&random, 9);
    for (i = 0; i < n; i++)
        text[i] = alphabet ? alphabet[below(&random, n_alphabet)] : (char)ml_random_u64(&random);
    if (!alphabet) /* no U+2581 */
        for (i = 0; i < n; i++)
            if ((unsigned char)text[i] == 0x96) text[i] = 0;
    e = encode(t, text, n, 0);
    CHECK(decodes_to(t, e.ids, e.n, text, n));
    free(e.work);
    free(text);
}

static void long_texts(const ml_tokenizer *t) {
    long_text(t, "a", 1);
    long_text(t, " ", 1);
    long_text(t, "ab", 2);
    long_text(t, "etaoinshrdlu", 12);
    long_text(t, "a b c", 5);
    long_text(t, NULL, 0);
}

TEST(a_megabyte) {
    static char texts[9][1025];
    entry more[19];
    vocabulary v = small_vocabulary();
    ml_tokenizer *t = load_vocabulary(&v);
    int i;
    long_texts(t);
    ml_tokenizer_free(t);
    free(v.pieces);
    for (i = 0; i < 9;
         i++) { /* the longest lookups: runs of 2, 4 ... 512 of one letter, then user-defined ones */
        memset(texts[i], 'a', (size_t)2 << i);
        more[i].text = more[i + 9].text = texts[i];
        more[i].score = more[i + 9].score = (float)i;
        more[i].kind = ML_PIECE_NORMAL;
        more[i + 9].kind = ML_PIECE_USER_DEFINED;
    }
    more[18].text = "b", more[18].score = 0, more[18].kind = ML_PIECE_NORMAL;
    v = make_vocabulary(more, 9, 1);
    t = load_vocabulary(&v);
    long_text(t, "a", 1);
    ml_tokenizer_free(t);
    free(v.pieces);
    texts[8][512] = 'b'; /* looked up at every letter, and never found */
    v = make_vocabulary(more + 17, 2, 1);
    t = load_vocabulary(&v);
    long_text(t, "a", 1);
    ml_tokenizer_free(t);
    free(v.pieces);
}

/* ---- the public tokenizers ---- */

static bytes read_shared(const char *name) { return read_file(shared_path(name)); }

static uint32_t json_hex(const char *p) {
    char digits[5];
    memcpy(digits, p, 4);
    digits[4] = 0;
    return (uint32_t)strtoul(digits, NULL, 16);
}

/* Reads a JSON string at p, after its quote; returns what follows it. */
static const char *json_string(const char *p, bytes *text) {
    text->size = 0;
    for (; *p && *p != '"'; p++) {
        char utf8[4];
        uint32_t c;
        if (*p != '\\') {
            put(text, p, 1);
            continue;
        }
        switch (*++p) {
        case 'n': put(text, "\n", 1); break;
        case 't': put(text, "\t", 1); break;
        case 'r': put(text, "\r", 1); break;
        case 'b': put(text, "\b", 1); break;
        case 'f': put(text, "\f", 1); break;
        case 'u':
            c = json_hex(p + 1);
            p += 4;
            if (c >= 0xD800 && c < 0xDC00) { /* the first half of a surrogate pair */
                c = 0x10000 + ((c - 0xD800) << 10) + (json_hex(p + 3) - 0xDC00);
                p += 6;
            }
            put(text, utf8, put_utf8(utf8, c));
            break;
        default: put(text, p, 1); break;
        }
    }
    return *p ? p + 1 : p;
}

/* One line: {"text": "...", "ids": [...], "decoded": "..."}; the last may be absent, meaning the text. */
static void check_line(const ml_tokenizer *t, const char *line) {
    bytes text = {NULL, 0, 0}, decoded = {NULL, 0, 0};
    static int32_t ids[10000];
    size_t n = 0;
    const char *p = json_string(line + strlen("{\"text\": \""), &text);
    p = strstr(p, "\"ids\": [") + strlen("\"ids\": [");
    while (*p != ']' && n < COUNT(ids)) {
        char *end;
        ids[n++] = (int32_t)strtol(p, &end, 10);
        p = end + strspn(end, ", ");
    }
    CHECK(encodes_to(t, (char *)text.data, text.size, ids, n));
    p = strstr(p, "\"decoded\": \"");
    if (p)
        json_string(p + strlen("\"decoded\": \""), &decoded);
    else
        put(&decoded, text.data, text.size);
    CHECK(decodes_to(t, ids, n, (char *)decoded.data, decoded.size));
    free(text.data);
    free(decoded.data);
}

static void check_reference(const char *tokenizer, const char *reference, int n_lines_expected) {
    bytes lines = read_shared(reference);
    const char *path = shared_path(tokenizer);
    ml_tokenizer *t = NULL;
    char *line, *next;
    int n_lines = 0;
    if (!path || !lines.data) {
        free(lines.data);
        SKIP("../shared is absent");
    }
    put(&lines, "", 1);
    REQUIRE(ml_tokenizer_load(path, NULL, &t, &failure) == ML_OK);
    for (line = (char *)lines.data; (next = strchr(line, '\n')) != NULL; line = next + 1) {
        *next = 0;
        check_line(t, line);
        n_lines++;
    }
    CHECK(n_lines == n_lines_expected);
    ml_tokenizer_free(t);
    free(lines.data);
}

TEST(reference_llama_model) {
    check_reference("data/tokenizer.model", "reference/tokenizer_llama.jsonl", 188);
}
TEST(reference_llama_bin) { check_reference("models/tokenizer.bin", "reference/tokenizer_llama.jsonl", 188); }
TEST(reference_tok512_bin) { check_reference("models/tok512.bin", "reference/tokenizer_tok512.jsonl", 54); }
TEST(reference_tok512_gguf) {
    check_reference("models/llamacpp/stories260K-F32.gguf", "reference/tokenizer_tok512.jsonl", 54);
}

static int same_tokenizer(const ml_tokenizer *a, const ml_tokenizer *b) {
    int32_t id, n = a->n_pieces;
    int same = b->n_pieces == n;
    for (id = 0; id < n && same; id++) {
        size_t na, nb;
        float sa, sb;
        ml_piece_kind ka, kb;
        const char *pa = ml_tokenizer_piece(a, id, &na, &sa, &ka),
                   *pb = ml_tokenizer_piece(b, id, &nb, &sb, &kb);
        same = na == nb && memcmp(pa, pb, na) == 0 && sa == sb && ka == kb;
    }
    return same;
}

TEST(real_text) {
    bytes model = read_shared("data/tokenizer.model"), bin = read_shared("models/tokenizer.bin");
    bytes text = read_shared("text/tinystories-valid-10k-lines.txt");
    ml_tokenizer *t, *u;
    if (!model.data || !bin.data || !text.data) {
        free(model.data), free(bin.data), free(text.data);
        SKIP("../shared is absent");
    }
    t = load_and_free(model);
    u = load_and_free(bin);
    REQUIRE(t && u);
    CHECK(same_tokenizer(t, u));
    CHECK(round_trips(t, (char *)text.data, text.size));
    round_trip_random(t, 1000);
    long_texts(t);
    ml_tokenizer_free(t);
    ml_tokenizer_free(u);
    free(text.data);
}

int main(void) {
    if (!folder_begin("tokenizer")) return 2;
    RUN(known_ids);
    RUN(pieces_are_found);
    RUN(a_pair_that_is_gone_is_not_merged);
    RUN(decoding);
    RUN(arguments);
    RUN(containers_agree);
    RUN(equals_plain_merging);
    RUN(anything_is_restored);
    RUN(extra_spaces_removed);
    RUN(texts_begin_as_sentencepieces);
    RUN(unk_surface);
    RUN(without_bytes);
    RUN(user_defined);
    RUN(unused);
    RUN(no_piece_for_space);
    RUN(plain_spaces_in_special_pieces);
    RUN(plain_space_in_a_piece);
    RUN(flags_of_the_file_are_obeyed);
    RUN(several_ids_end_a_text);
    RUN(names_that_end_a_text);
    RUN(without_bos);
    RUN(all_ends_are_saved);
    RUN(user_defined_pieces_are_saved_as_text);
    RUN(saving_invents_nothing);
    RUN(hugging_faces_files);
    RUN(pieces_of_tokenizer_config);
    RUN(pieces_of_added_tokens);
    RUN(damaged_files);
    RUN(wrong_vocabularies);
    RUN(infinite_scores);
    RUN(model_specs);
    RUN(sizes_beyond_limits);
    RUN(colliding_pieces);
    RUN(lists_of_other_types);
    RUN(other_tokenizers_are_named);
    RUN(out_of_memory);
    RUN(from_an_arena);
    RUN(a_megabyte);
    RUN(reference_llama_model);
    RUN(reference_llama_bin);
    RUN(reference_tok512_bin);
    RUN(reference_tok512_gguf);
    RUN(real_text);
    CHECK(folder_end());
    return test_report("tokenizer");
}
