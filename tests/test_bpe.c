/* The trainer of tokenizers: merges as a plain trainer finds them and as SentencePiece's spm_train learned them;
   files that load; texts of any kind. */
#include "preamble.h"
#include <limits.h>
#include <stdarg.h>
#include "shared.h"

/* The trainer's memory comes from here, so that it can run out, and leaks show. */
static long allocations_left = -1, live_allocations; /* at 0, one fails; below, none does */

static int may_allocate(void) { return allocations_left < 0 || allocations_left-- > 0; }

static void *test_malloc(size_t n) {
    void *p = may_allocate() ? malloc(n) : NULL;
    live_allocations += p != NULL;
    return p;
}

static void *test_calloc(size_t n, size_t size) {
    void *p = may_allocate() ? calloc(n, size) : NULL;
    live_allocations += p != NULL;
    return p;
}

static void *test_realloc(void *old, size_t n) {
    void *p = may_allocate() ? realloc(old, n) : NULL;
    live_allocations += p != NULL && !old;
    return p;
}

static void test_free(void *p) {
    live_allocations -= p != NULL;
    free(p);
}

#define malloc test_malloc
#define calloc test_calloc
#define realloc test_realloc
#define free test_free
#include "../tools/bpe/bpe.c"
#undef malloc
#undef calloc
#undef realloc
#undef free

#define MARK "\xE2\x96\x81"
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static char why[256];

static bpe_vocabulary *train_bytes(const char *data, size_t size, int vocab_size, double coverage) {
    bpe_text text;
    bpe_desc desc;
    memset(&desc, 0, sizeof desc);
    text.data = data;
    text.size = size;
    desc.vocab_size = vocab_size;
    desc.character_coverage = coverage;
    return bpe_train(&desc, &text, 1, why, sizeof why);
}

static bpe_vocabulary *train(const char *text, int vocab_size) {
    return train_bytes(text, strlen(text), vocab_size, 1);
}

/* The number after "at most" or "need" in the sentence that refuses a size; -1: there is none. */
static int size_in_sentence(const char *before) {
    const char *p = strstr(why, before);
    return p ? (int)strtol(p + strlen(before), NULL, 10) : -1;
}

/* As many pieces as the text can fill. */
static bpe_vocabulary *train_fully(const char *data, size_t size) {
    bpe_vocabulary *v = train_bytes(data, size, BPE_MAX_PIECES, 1);
    CHECK(!v);
    return train_bytes(data, size, size_in_sentence("at most "), 1);
}

static int piece_is(const bpe_vocabulary *v, int id, const char *text) {
    size_t n = strlen(text);
    return id < v->n_pieces && (size_t)v->pieces[id].size == n && memcmp(v->pieces[id].text, text, n) == 0;
}

static int has_piece(const bpe_vocabulary *v, const char *text) {
    for (int id = BPE_FIRST; id < v->n_pieces; id++)
        if (piece_is(v, id, text)) return 1;
    return 0;
}

static ml_tokenizer *load(const bpe_vocabulary *v) {
    ml_tokenizer *t = NULL;
    ml_error error;
    size_t size;
    unsigned char *model = bpe_write(v, &size, why, sizeof why);
    CHECK(model != NULL && !why[0]);
    if (!model) return NULL;
    CHECK(ml_tokenizer_load_memory(model, size, NULL, &t, &error) == ML_OK);
    test_free(model);
    return t;
}

/* ---- a plain trainer, which counts everything again for each merge ---- */

enum { NAIVE_WORDS = 400, NAIVE_TEXT = 200, NAIVE_PIECES = 2000, NAIVE_CHARS = 16 };

typedef struct naive_word {
    char text[NAIVE_TEXT];
    int at[NAIVE_TEXT + 1], n; /* where its parts begin; at[n] is the end */
} naive_word;

static struct {
    naive_word words[NAIVE_WORDS];
    char pieces[NAIVE_PIECES][NAIVE_TEXT];
    char joints[NAIVE_PIECES * 4][NAIVE_TEXT];
    int counts[NAIVE_PIECES * 4];
    int n_words, n_pieces, n_joints;
} naive;

static int char_size(const char *p) {
    unsigned char c = (unsigned char)*p;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

static int n_chars_of(const char *text) {
    int n = 0;
    for (; *text; text += char_size(text)) n++;
    return n;
}

/* Which characters of the test's texts join: 0 none, 1 Latin, 2 Cyrillic, 3 Han, 4 the rest. */
static int naive_group(const char *p) {
    if (*p >= '0' && *p <= '9') return 0;
    if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || memcmp(p, "\xC3\xA9", 2) == 0) return 1;
    return (unsigned char)*p == 0xD0 ? 2 : (unsigned char)*p == 0xE6 ? 3 : 4;
}

/* Appends the first character of what comes. */
static void naive_append(char *text, const char *from) {
    size_t n = strlen(text), size = (size_t)char_size(from);
    if (n + size >= NAIVE_TEXT) exit(2);
    memcpy(text + n, from, size);
    text[n + size] = 0;
}

static void naive_split(const char *text) {
    int before = 0, in_word = 0; /* before: the group of the last character; -1: it is a space */
    memset(&naive, 0, sizeof naive);
    naive.n_words = -1;
    for (; *text; text += char_size(text)) {
        int starts_line = !in_word, is_space = *text == ' ', group = is_space ? -1 : naive_group(text);
        if (*text == '\n') {
            in_word = 0;
            continue;
        }
        in_word = 1;
        if (starts_line) {
            strcpy(naive.words[++naive.n_words].text, MARK);
            before = -1;
        }
        if (is_space || group == 0 || (before != -1 && before != group)) naive.n_words++;
        if (naive.n_words >= NAIVE_WORDS) exit(2);
        naive_append(naive.words[naive.n_words].text, is_space ? MARK : text);
        before = group;
    }
    naive.n_words++;
}

static int naive_find(const char *text, int n) {
    for (int i = 0; i < naive.n_pieces; i++)
        if ((int)strlen(naive.pieces[i]) == n && memcmp(naive.pieces[i], text, (size_t)n) == 0) return i;
    return NAIVE_PIECES;
}

/* Cuts a word into characters, then joins as encoding does. */
static void naive_cut(naive_word *w) {
    int at = 0;
    for (w->n = 0; w->text[at]; at += char_size(w->text + at)) w->at[w->n++] = at;
    w->at[w->n] = at;
    for (;;) {
        int best = 0, rank = NAIVE_PIECES;
        for (int i = 0; i + 1 < w->n; i++) {
            int r = naive_find(w->text + w->at[i], w->at[i + 2] - w->at[i]);
            if (r < rank) rank = r, best = i;
        }
        if (rank == NAIVE_PIECES) return;
        for (int i = best + 1; i < w->n; i++) w->at[i] = w->at[i + 1];
        w->n--;
    }
}

static void naive_count(const char *text) {
    int i;
    for (i = 0; i < naive.n_joints && strcmp(naive.joints[i], text) != 0;) i++;
    if (i == naive.n_joints) {
        if (naive.n_joints == (int)COUNT(naive.joints)) exit(2);
        strcpy(naive.joints[naive.n_joints++], text);
        naive.counts[i] = 0;
    }
    naive.counts[i]++;
}

/* Counts what neighbors would make; of two that overlap and make the same, the first. */
static void naive_count_word(const naive_word *w) {
    char last[NAIVE_TEXT] = "", joint[NAIVE_TEXT];
    for (int i = 0; i + 1 < w->n; i++) {
        sprintf(joint, "%.*s", w->at[i + 2] - w->at[i], w->text + w->at[i]);
        if (strcmp(joint, last) == 0) {
            last[0] = 0;
        } else if (n_chars_of(joint) <= NAIVE_CHARS) {
            naive_count(joint);
            strcpy(last, joint);
        } else {
            last[0] = 0;
        }
    }
}

static int naive_is_better(int a, int b) {
    const char *x = naive.joints[a], *y = naive.joints[b];
    if (naive.counts[a] != naive.counts[b]) return naive.counts[a] > naive.counts[b];
    if (n_chars_of(x) != n_chars_of(y)) return n_chars_of(x) < n_chars_of(y);
    return strcmp(x, y) < 0; /* as unsigned */
}

static void naive_train(const char *text) {
    naive_split(text);
    for (;;) {
        int i, best = 0;
        naive.n_joints = 0;
        for (i = 0; i < naive.n_words; i++) {
            naive_cut(&naive.words[i]);
            naive_count_word(&naive.words[i]);
        }
        if (!naive.n_joints) return;
        for (i = 1; i < naive.n_joints; i++)
            if (naive_is_better(i, best)) best = i;
        if (naive.n_pieces == NAIVE_PIECES) exit(2);
        strcpy(naive.pieces[naive.n_pieces++], naive.joints[best]);
    }
}

/* ---- what is learned ---- */

/* Worked out by hand. _ a a b (twice), _ a b: ab and _a come 3 times, ab has the lesser bytes; then _a comes twice,
   as does aab, which is longer; then only _aab and _ab are left. */
TEST(known_merges) {
    static const char *const pieces[] = {"ab", MARK "a", MARK "aab", MARK "ab", "a", "b", MARK};
    bpe_vocabulary *v = train("aab aab\nab", 266);
    REQUIRE(v);
    CHECK(!why[0] && v->n_pieces == 266 && v->n_merges == 4 && v->n_chars == 3);
    CHECK(piece_is(v, 0, "<unk>") && piece_is(v, 1, "<s>") && piece_is(v, 2, "</s>"));
    CHECK(v->pieces[0].kind == BPE_UNKNOWN && v->pieces[1].kind == BPE_CONTROL);
    CHECK(v->pieces[2].kind == BPE_CONTROL && v->pieces[3].kind == BPE_BYTE);
    CHECK(piece_is(v, 3, "<0x00>") && piece_is(v, 13, "<0x0A>") && piece_is(v, 258, "<0xFF>"));
    for (int i = 0; i < 7; i++) {
        CHECK(piece_is(v, BPE_FIRST + i, pieces[i]));
        CHECK(v->pieces[BPE_FIRST + i].kind == BPE_NORMAL && v->pieces[BPE_FIRST + i].score == -(float)i);
    }
    bpe_free(v);
    CHECK(live_allocations == 0);
}

static void random_corpus(ml_random *random, const char *const *parts, size_t n_parts, size_t length,
                          char *text) {
    size_t n = 0;
    while (n < length) {
        const char *part = parts[ml_random_u64(random) % n_parts];
        memcpy(text + n, part, strlen(part));
        n += strlen(part);
    }
    text[n] = 0;
}

/* Few letters: many ties, overlaps, and pieces that can be made in more than one way. */
TEST(equals_plain_training) {
    static const char *const few[] = {"a", "a", "b", "a", "b", " "};
    static const char *const many[] = {
        "a",        "b", "c",   " ",   "e",  " ", "a", "\xC3\xA9", "\xD0\xB6", "5", "\n", ".", "\xE6\x97\xA5",
        "\xD0\xB4", "!", " ab", "abc", "the"};
    ml_random random;
    ml_random_seed(&random, 1);
    for (int round = 0; round < 60; round++) {
        char text[400];
        bpe_vocabulary *v;
        if (round % 2)
            random_corpus(&random, few, COUNT(few), 20 + (size_t)round * 2, text);
        else
            random_corpus(&random, many, COUNT(many), 20 + (size_t)round * 5, text);
        naive_train(text);
        v = train_fully(text, strlen(text));
        REQUIRE(v);
        CHECK(v->n_merges == naive.n_pieces);
        for (int i = 0; i < v->n_merges && i < naive.n_pieces; i++)
            CHECK(piece_is(v, BPE_FIRST + i, naive.pieces[i]));
        if (test_current_failed) printf("  in round %d: \"%s\"\n", round, text);
        bpe_free(v);
        if (test_current_failed) return;
    }
}

/* A long run of one letter, where pairs overlap all along it. */
TEST(overlaps) {
    bpe_vocabulary *v = train("baaaaaaa", 265);
    /* _ b a a a a a a a: aa counts 3; then _ b aa aa aa a: aaaa and all others count 1, the shortest first */
    REQUIRE(v);
    CHECK(v->n_merges == 3 && piece_is(v, 259, "aa") && piece_is(v, 260, MARK "b") &&
          piece_is(v, 261, "aaa"));
    bpe_free(v);
}

/* Neither letters with punctuation, symbols or digits, nor two scripts, nor a space inside; combining marks go with
   their letter. */
TEST(what_joins) {
    static const char *const pieces[] = {MARK "don",
                                         "'",
                                         "t",
                                         ").",
                                         MARK "(",
                                         "abc",
                                         MARK "x",
                                         "e\xCC\x81t",
                                         "\xD0\xB6\xD0\xB6",
                                         "\xE6\x97\xA5\xE3\x81\xAE",
                                         "\xD8\xA7\xD9\x8B\xDB\x81"};
    static const char *const none[] = {"don'",
                                       "'t",
                                       "5.",
                                       "55",
                                       MARK "5",
                                       "5a",
                                       MARK MARK,
                                       "x\xE2\x96\x81",
                                       "abc\xD0\xB6",
                                       "c.",
                                       "\xD0\xB6\xD0\xB6\xE6\x97\xA5"};
    const char text[] = "don't (5.55). 5 55 5a x  x\nabc\xD0\xB6\xD0\xB6\xE6\x97\xA5\xE3\x81\xAE."
                        " e\xCC\x81t \xD8\xA7\xD9\x8B\xDB\x81";
    bpe_vocabulary *v = train_fully(text, sizeof text - 1);
    REQUIRE(v);
    for (size_t i = 0; i < COUNT(pieces); i++) {
        CHECK(has_piece(v, pieces[i]));
        if (!has_piece(v, pieces[i])) printf("  no %s\n", pieces[i]);
    }
    for (size_t i = 0; i < COUNT(none); i++) CHECK(!has_piece(v, none[i]));
    for (int id = BPE_FIRST; id < v->n_pieces; id++) { /* each once, and a space in front only */
        int other;
        for (other = BPE_FIRST; other < id; other++)
            CHECK(v->pieces[other].size != v->pieces[id].size ||
                  memcmp(v->pieces[other].text, v->pieces[id].text, (size_t)v->pieces[id].size) != 0);
        for (other = 1; other + 2 < v->pieces[id].size; other++)
            CHECK(memcmp(v->pieces[id].text + other, MARK, 3) != 0);
    }
    bpe_free(v);
}

/* U+2581 is a space; only lines that are not empty begin with one; control characters are bytes. */
TEST(spaces_and_lines) {
    bpe_vocabulary *a = train("ab c\nd", 268), *b = train("ab" MARK "c\n\n\nd\n", 268);
    bpe_vocabulary *c = train("ab\tc\r\n\x7F", 264);
    REQUIRE(a && b && c);
    for (int i = 0; i < a->n_pieces; i++)
        CHECK(a->pieces[i].size == b->pieces[i].size &&
              memcmp(a->pieces[i].text, b->pieces[i].text, (size_t)a->pieces[i].size) == 0);
    CHECK(c->n_chars == 4); /* _ a b c */
    bpe_free(a);
    bpe_free(b);
    bpe_free(c);
}

TEST(coverage) {
    char text[20000];
    memset(text, 'a', sizeof text);
    text[1000] = 'q';
    bpe_vocabulary *v = train_bytes(text, sizeof text, 262, 0.999);
    REQUIRE(v);
    CHECK(v->n_chars == 2 && !has_piece(v, "q") && has_piece(v, MARK)); /* the space always */
    bpe_free(v);
    v = train_bytes(text, sizeof text, 262, 1);
    REQUIRE(v);
    CHECK(v->n_chars == 3 && has_piece(v, "q"));
    bpe_free(v);
    v = train_bytes(text, sizeof text, 262, 0); /* 0.9995 */
    REQUIRE(v);
    CHECK(v->n_chars == 2 && v->desc.character_coverage == 0.9995 && v->desc.max_piece_chars == 16);
    bpe_free(v);
}

/* Pieces reach the length asked for, and no more. */
TEST(longest_piece) {
    const char text[] = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
    bpe_text texts[1] = {{text, sizeof text - 1}};
    for (int most = 1; most <= BPE_MAX_WORD; most++) {
        bpe_desc desc;
        bpe_vocabulary *v;
        int id, longest = 0;
        memset(&desc, 0, sizeof desc);
        desc.vocab_size = BPE_MAX_PIECES;
        desc.character_coverage = 1;
        desc.max_piece_chars = most;
        CHECK(!bpe_train(&desc, texts, 1, why, sizeof why));
        desc.vocab_size = size_in_sentence("at most ");
        v = bpe_train(&desc, texts, 1, why, sizeof why);
        REQUIRE(v);
        for (id = BPE_FIRST; id < v->n_pieces; id++) {
            int n = 0, i;
            for (i = 0; i < v->pieces[id].size; i++) n += (v->pieces[id].text[i] & 0xC0) != 0x80;
            if (n > longest) longest = n;
        }
        CHECK(longest <= most && (most > 4 || longest == most));
        bpe_free(v);
    }
}

/* ---- the file ---- */

static const char sample[] =
    "Once upon a time, there was a cat. The cat sat on the mat; the mat was red.\n"
    "\"Hello,\" said the cat. \"I am 42!\"\n\nThe other cat sat there too, and sat, and sat.\n"
    "Caf\xC3\xA9, na\xC3\xAFve, \xD0\xBC\xD0\xB8\xD1\x80, \xE6\x97\xA5\xE6\x9C\xAC.\n";

static int round_trips(const ml_tokenizer *t, const char *text, size_t n, size_t *n_ids) {
    size_t work_size = ml_tokenizer_encode_size(n), n_decoded = 0;
    ml_encode_desc encode = {text, n, 0, malloc(work_size), work_size};
    char *decoded = (char *)malloc(n + 1);
    ml_tokens tokens;
    if (!encode.work || !decoded) exit(2);
    int same = ml_tokenizer_encode(t, &encode, &tokens, NULL) == ML_OK &&
               ml_tokenizer_decode(t, &tokens, decoded, n + 1, &n_decoded, NULL) == ML_OK && n_decoded == n &&
               (!n || memcmp(decoded, text, n) == 0);
    *n_ids = (size_t)tokens.n;
    free(encode.work);
    free(decoded);
    return same;
}

/* The first piece of a text begins with the space that is put in front. */
static int adds_space(const ml_tokenizer *t, const char *text) {
    int32_t work[64];
    size_t length;
    ml_encode_desc encode = {text, strlen(text), 0, work, sizeof work};
    ml_tokens tokens;
    if (ml_tokenizer_encode(t, &encode, &tokens, NULL) || tokens.n < 1) return 0;
    const char *piece = ml_tokenizer_piece(t, tokens.ids[0], &length, NULL, NULL);
    return length >= 3 && memcmp(piece, MARK, 3) == 0;
}

TEST(file_loads) {
    bpe_vocabulary *v = train(sample, 350);
    REQUIRE(v);
    ml_tokenizer *t = load(v);
    REQUIRE(t);
    CHECK(t->n_pieces == 350);
    CHECK(t->unknown == 0 && t->bos == 1 && t->eos == 2);
    CHECK(t->padding == 3); /* none is given */
    size_t n_ids;
    CHECK(adds_space(t, "cat"));
    CHECK(round_trips(t, "  cat  sat ", 11, &n_ids));     /* extra spaces are kept */
    CHECK(round_trips(t, "\xE2\x82\xAC\xFF", 4, &n_ids)); /* what is not a piece becomes bytes */
    CHECK(n_ids == 5);                                    /* the space and four bytes */
    for (int32_t id = 0; id < 350; id++) {
        size_t n;
        float score;
        ml_piece_kind kind;
        const char *piece = ml_tokenizer_piece(t, id, &n, &score, &kind);
        CHECK(n == (size_t)v->pieces[id].size && memcmp(piece, v->pieces[id].text, n) == 0);
        CHECK(score == v->pieces[id].score && (int)kind == v->pieces[id].kind);
    }
    ml_tokenizer_free(t);
    bpe_free(v);
}

static size_t read_varint(const unsigned char *data, size_t *at) {
    size_t value = 0;
    int shift = 0;
    while (data[*at] > 127) value |= (size_t)(data[(*at)++] & 127u) << shift, shift += 7;
    return value | (size_t)data[(*at)++] << shift;
}

/* Where the last field of this number is in a message: the value of a varint, or the size of what begins at *at.
   SIZE_MAX: nowhere. */
static size_t find_field(const unsigned char *data, size_t size, size_t field, size_t *where) {
    size_t at = 0, found = SIZE_MAX;
    while (at < size) {
        size_t key = read_varint(data, &at), value = (key & 7) == 5 ? 4 : read_varint(data, &at);
        if (key >> 3 == field) found = value, *where = at;
        at += (key & 7) == 0 ? 0 : value;
    }
    CHECK(at == size);
    return found;
}

/* What SentencePiece itself looks at. */
TEST(file_specs) {
    bpe_vocabulary *v = train(sample, 350);
    size_t size, at = 0, unused;
    static const size_t expected[][2] = {{3, 2},  {4, 350}, {20, 16}, {21, 1}, {22, 1}, {23, 1}, {24, 0},
                                         {25, 1}, {26, 0},  {35, 1},  {40, 0}, {41, 1}, {42, 2}};
    REQUIRE(v);
    unsigned char *model = bpe_write(v, &size, why, sizeof why);
    REQUIRE(model);
    size_t n = find_field(model, size, 2, &at);
    REQUIRE(n != SIZE_MAX);
    for (size_t i = 0; i < COUNT(expected); i++)
        CHECK(find_field(model + at, n, expected[i][0], &unused) == expected[i][1]);
    n = find_field(model, size, 3, &at);
    REQUIRE(n != SIZE_MAX);
    CHECK(find_field(model + at, n, 3, &unused) == 1 && find_field(model + at, n, 4, &unused) == 0);
    CHECK(find_field(model + at, n, 1, &unused) == 8 && memcmp(model + at + unused, "identity", 8) == 0);
    test_free(model);
    bpe_free(v);
    CHECK(live_allocations == 0);
}

/* ---- encoding with what was learned ---- */

TEST(anything_comes_back) {
    bpe_vocabulary *v = train(sample, 350);
    ml_random random;
    size_t n_ids;
    REQUIRE(v);
    ml_tokenizer *t = load(v);
    REQUIRE(t);
    CHECK(round_trips(t, sample, sizeof sample - 1, &n_ids) && n_ids < sizeof sample * 2 / 3);
    CHECK(round_trips(t, "", 0, &n_ids) && n_ids == 0);
    ml_random_seed(&random, 4);
    for (int round = 0; round < 1000; round++) {
        char text[300];
        size_t i, n = (size_t)(ml_random_u64(&random) % sizeof text);
        for (i = 0; i < n; i++) {
            uint64_t r = ml_random_u64(&random);
            text[i] = r & 1 ? (char)(r >> 8) : sample[(r >> 8) % (sizeof sample - 1)];
        }
        for (i = 0; i + 2 < n; i++)
            if (memcmp(text + i, MARK, 3) == 0) text[i] = 'x'; /* would come back as a space */
        CHECK(round_trips(t, text, n, &n_ids));
    }
    ml_tokenizer_free(t);
    bpe_free(v);
}

/* ---- texts and settings of all kinds ---- */

static int same_model(const bpe_vocabulary *a, const bpe_vocabulary *b) {
    size_t n, m;
    unsigned char *x = bpe_write(a, &n, why, sizeof why), *y = bpe_write(b, &m, why, sizeof why);
    int same = x && y && n == m && memcmp(x, y, n) == 0;
    test_free(x);
    test_free(y);
    return same;
}

/* The same text again, and in two parts in the other order. */
TEST(deterministic) {
    const char *second = strchr(sample, '\n') + 1;
    bpe_text texts[3];
    bpe_desc desc;
    bpe_vocabulary *a = train(sample, 350), *b = train(sample, 350), *c;
    memset(&desc, 0, sizeof desc);
    desc.vocab_size = 350;
    desc.character_coverage = 1;
    texts[0].data = second;
    texts[0].size = strlen(second);
    texts[1].data = NULL;
    texts[1].size = 0;
    texts[2].data = sample;
    texts[2].size = (size_t)(second - sample);
    c = bpe_train(&desc, texts, 3, why, sizeof why);
    REQUIRE(a && b && c);
    CHECK(same_model(a, b) && same_model(a, c));
    bpe_free(a);
    bpe_free(b);
    bpe_free(c);
}

/* Every size from the least to the largest is met exactly, and each is the beginning of the next. */
TEST(sizes) {
    CHECK(!train(sample, 10) && strstr(why, "too small"));
    int least = size_in_sentence(" need ");
    CHECK(!train(sample, 5000) && strstr(why, "5000"));
    int most = size_in_sentence("at most ");
    REQUIRE(least > BPE_FIRST && most > least);
    CHECK(!train(sample, least - 1) && !train(sample, most + 1));
    bpe_vocabulary *full = train(sample, most);
    REQUIRE(full);
    for (int size = least; size <= most; size += 7) {
        bpe_vocabulary *v = train(sample, size);
        int i;
        REQUIRE(v);
        CHECK(v->n_pieces == size && v->n_chars == least - BPE_FIRST && v->n_merges == size - least);
        for (i = 0; i < v->n_merges; i++)
            CHECK(v->pieces[BPE_FIRST + i].size == full->pieces[BPE_FIRST + i].size &&
                  v->pieces[BPE_FIRST + i].score == full->pieces[BPE_FIRST + i].score);
        bpe_free(v);
    }
    bpe_free(full);
    CHECK(live_allocations == 0);
}

TEST(wrong_settings) {
    bpe_text text = {"abc", 3};
    bpe_desc desc;
    static const int sizes[] = {0, -1, INT_MIN, 259, BPE_MAX_PIECES + 1, INT_MAX};
    memset(&desc, 0, sizeof desc);
    for (size_t i = 0; i < COUNT(sizes); i++) {
        desc.vocab_size = sizes[i];
        CHECK(!bpe_train(&desc, &text, 1, why, sizeof why));
        CHECK(strstr(why, sizes[i] > BPE_MAX_PIECES ? "too large" : "too small"));
    }
    desc.vocab_size = 263;
    CHECK(!bpe_train(&desc, &text, 0, why, sizeof why) && strstr(why, "no text"));
    desc.character_coverage = 1.5;
    CHECK(!bpe_train(&desc, &text, 1, why, sizeof why) && strstr(why, "1.5"));
    desc.character_coverage = -1;
    CHECK(!bpe_train(&desc, &text, 1, why, sizeof why));
    desc.character_coverage = (double)NAN;
    CHECK(!bpe_train(&desc, &text, 1, why, sizeof why));
    desc.character_coverage = 1;
    desc.max_piece_chars = BPE_MAX_WORD + 1;
    CHECK(!bpe_train(&desc, &text, 1, why, sizeof why) && strstr(why, "65"));
    desc.max_piece_chars = -1;
    CHECK(!bpe_train(&desc, &text, 1, why, sizeof why));
    desc.max_piece_chars = 0;
    memcpy(why, "#######", 8);
    desc.vocab_size = 1;
    CHECK(!bpe_train(&desc, &text, 1, why, 4) && strlen(why) == 3 && why[4] == '#'); /* a short buffer */
    CHECK(!bpe_train(&desc, &text, 1, NULL, 0));
    bpe_free(NULL);
    CHECK(live_allocations == 0);
}

TEST(no_text) {
    CHECK(!train("", 300) && strstr(why, "no text"));
    CHECK(!train("\n\n\n", 300) && strstr(why, "no text"));
    CHECK(!train_bytes(NULL, 0, 300, 1));
    CHECK(!train("\xFF\xFE\n\xC3", 300) && size_in_sentence("at most ") == 260); /* the space */
    CHECK(!train(" ", 300) && size_in_sentence("at most ") == 260);
    CHECK(live_allocations == 0);
}

static void train_and_load(const char *data, size_t size) {
    bpe_vocabulary *v = train_fully(data, size);
    size_t n_ids;
    REQUIRE(v);
    ml_tokenizer *t = load(v);
    REQUIRE(t);
    if (size > 10000) size = 10000;
    CHECK(round_trips(t, data, size, &n_ids));
    ml_tokenizer_free(t);
    bpe_free(v);
}

/* Bytes that are no UTF-8 get no piece, wherever they are; all sequences of two bytes are included. */
TEST(invalid_utf8) {
    static const struct {
        const char *text;
        int n_chars; /* with the space */
    } texts[] = {{"z\xFFz", 2},
                 {"\xC3", 1},
                 {"ab\xE6\x97", 3},
                 {"\xC0\xAF", 1},
                 {"\xE0\x80\xAF", 1},
                 {"\xE0\x9F\xBF", 1},
                 {"\xF0\x80\x80\xAF", 1},
                 {"\xF0\x8F\xBF\xBF", 1},
                 {"\xED\xA0\x80", 1},
                 {"\xED\x9F\xBF", 2},
                 {"\xF4\x90\x80\x80", 1},
                 {"\xF4\x8F\xBF\xBF", 2},
                 {"\xF8\x88\x80", 1},
                 {"ab \xE2\x96", 3},
                 {"\xE2", 1},
                 {"\x80\x80", 1},
                 {"\xC3zz", 2},
                 {"\xE6\x97zz", 2},
                 {"\xF0\x9F\x99zz", 2},
                 {"\xC3\xC3\xA9", 2}};
    char bytes[3 * 65536];
    for (size_t i = 0; i < COUNT(texts); i++) {
        bpe_vocabulary *v = train_fully(texts[i].text, strlen(texts[i].text));
        REQUIRE(v);
        CHECK(v->n_chars == texts[i].n_chars);
        if (v->n_chars != texts[i].n_chars) printf("  text %d\n", (int)i);
        bpe_free(v);
    }
    for (size_t i = 0; i < 65536; i++)
        bytes[3 * i] = (char)(i >> 8), bytes[3 * i + 1] = (char)i, bytes[3 * i + 2] = ' ';
    train_and_load(bytes, sizeof bytes);
    CHECK(live_allocations == 0);
}

/* Words without an end: of one letter, of two at random, of any bytes. */
TEST(long_words) {
    enum { SIZE = 60000 };
    char *text = (char *)malloc(SIZE);
    ml_random random;
    REQUIRE(text);
    memset(text, 'a', SIZE);
    train_and_load(text, SIZE);
    ml_random_seed(&random, 5);
    for (int i = 0; i < SIZE; i++) text[i] = (char)('a' + ml_random_u64(&random) % 2);
    train_and_load(text, SIZE);
    for (int i = 0; i < SIZE; i++) text[i] = (char)ml_random_u64(&random);
    for (int i = 0; i + 2 < SIZE; i++)
        if (memcmp(text + i, MARK, 3) == 0) text[i] = 'x';
    train_and_load(text, SIZE);
    free(text);
    CHECK(live_allocations == 0);
}

/* Each allocation fails in turn, and only that one. */
TEST(out_of_memory) {
    long n;
    int done = 0;
    for (n = 0; n < 1000 && !done; n++) {
        bpe_vocabulary *v;
        unsigned char *model = NULL;
        size_t size;
        allocations_left = n;
        v = train(sample, 350);
        if (v) model = bpe_write(v, &size, why, sizeof why);
        allocations_left = -1;
        done = model != NULL;
        CHECK(done || strstr(why, "memory"));
        test_free(model);
        bpe_free(v);
        CHECK(live_allocations == 0);
    }
    CHECK(done && n > 20);
}

/* ---- real text ---- */

static char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    long n = ftell(file);
    rewind(file);
    char *data = (char *)malloc((size_t)n + 1);
    if (!data || fread(data, 1, (size_t)n, file) != (size_t)n) exit(2);
    fclose(file);
    *size = (size_t)n;
    return data;
}

/* The same vocabulary, piece by piece, as SentencePiece 0.1.97 makes of these two files: spm_train --model_type=bpe
   --vocab_size=1024 --byte_fallback --split_digits --normalization_rule_name=identity
   --remove_extra_whitespaces=false --max_sentence_length=1000000. The hash is FNV-1a of its pieces, each and a line
   feed. */
TEST(real_text) {
    const char *head = shared_path("text/tinystories-train-head.txt");
    const char *valid = shared_path("text/tinystories-valid-10k-lines.txt");
    bpe_text texts[2];
    bpe_desc desc;
    uint64_t hash = BPE_HASH_SEED;
    size_t n_ids;
    if (!head || !valid) SKIP("../shared is absent");
    texts[0].data = read_file(head, &texts[0].size);
    texts[1].data = read_file(valid, &texts[1].size);
    memset(&desc, 0, sizeof desc);
    desc.vocab_size = 1024;
    bpe_vocabulary *v = bpe_train(&desc, texts, 2, why, sizeof why);
    REQUIRE(v);
    for (int i = 0; i < v->n_pieces; i++) {
        hash = bpe_hash(hash, (const unsigned char *)v->pieces[i].text, (size_t)v->pieces[i].size);
        hash = bpe_hash(hash, (const unsigned char *)"\n", 1);
    }
    CHECK(v->n_pieces == 1024 && hash == 0x098fea0dc4eabbe9u);
    CHECK(piece_is(v, 259, "he") && piece_is(v, 260, MARK "t") && piece_is(v, 265, MARK "the"));
    ml_tokenizer *t = load(v);
    REQUIRE(t);
    for (int i = 0; i < 2; i++) {
        CHECK(round_trips(t, texts[i].data, texts[i].size, &n_ids));
        CHECK((double)texts[i].size / (double)n_ids > 2.9);
        free((char *)(uintptr_t)texts[i].data);
    }
    ml_tokenizer_free(t);
    bpe_free(v);
    CHECK(live_allocations == 0);
}

int main(void) {
    RUN(known_merges);
    RUN(equals_plain_training);
    RUN(overlaps);
    RUN(what_joins);
    RUN(spaces_and_lines);
    RUN(coverage);
    RUN(longest_piece);
    RUN(file_loads);
    RUN(file_specs);
    RUN(anything_comes_back);
    RUN(deterministic);
    RUN(sizes);
    RUN(wrong_settings);
    RUN(no_text);
    RUN(invalid_utf8);
    RUN(long_words);
    RUN(out_of_memory);
    RUN(real_text);
    return test_report("bpe");
}
