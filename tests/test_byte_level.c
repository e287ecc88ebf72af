/* Byte-level BPE and tokenizer.json: words as Python's regex cuts them, merges as done plainly, ids of the public
   vocabularies, files of every kind that are wrong. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "folder.h"
#include "shared.h"

#ifndef ML_NO_BPE

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static ml_error failure;

/* ---- words ---- */

/* What `re.findall` of Python's regex module gives for the expressions of the four pre-tokenizers; of smollm on the
   parts that (\p{N}) splits the text into. */
static const struct {
    const char *rule, *words;
} cuts[] = {
    {"gpt-2", "I|'ve| seen| it|;| they|'ll| say| we|'|RE| done"},
    {"gpt-2", "x| | y|  | 7| | 12345| 6"},
    {"gpt-2", "tab|\t|and|\r\n\r\n | in|\n\n"},
    {"gpt-2", "don|'t| '|tis| ''|s| '|d"},
    {"gpt-2", "  \n | end|  "},
    {"gpt-2", "na\303\257ve| caf\303\251| e|\314\201"},
    {"gpt-2", "\346\227\245\346\234\254| \302\275\342\205\247| \331\243\331\244\331\245\331\246"},
    {"gpt-2", "a|\302\240|b|\343\200\200|\343\200\200|c|\342\200\250|d"},
    {"gpt-2", "!!| | \?|\n|\n|.|\r|\n|z| |\t|'|LLx"},
    {"gpt-2", "\360\235\224\230|\360\237\230\200| \360\237\230\200|a| 1|a|1"},
    {"smollm", "I|'ve| seen| it|;| they|'ll| say| we|'|RE| done"},
    {"smollm", "x| | y|   |7|  |1|2|3|4|5| |6"},
    {"smollm", "tab|\t|and|\r\n\r\n | in|\n\n"},
    {"smollm", "don|'t| '|tis| ''|s| '|d"},
    {"smollm", "  \n | end|  "},
    {"smollm", "na\303\257ve| caf\303\251| e|\314\201"},
    {"smollm", "\346\227\245\346\234\254| |\302\275|\342\205\247| |\331\243|\331\244|\331\245|\331\246"},
    {"smollm", "a|\302\240|b|\343\200\200|\343\200\200|c|\342\200\250|d"},
    {"smollm", "!!| | \?|\n|\n|.|\r|\n|z| |\t|'|LLx"},
    {"smollm", "\360\235\224\230|\360\237\230\200| \360\237\230\200|a| |1|a|1"},
    {"llama-bpe", "I|'ve| seen| it|;| they|'ll| say| we|'RE| done"},
    {"llama-bpe", "x| | y|  | |7| | |123|45| |6"},
    {"midm-2.0", "x| | y|  | |7| | |123|45| |6"}, /* other names of the same three */
    {"megrez", "x| | y|  | |7| | |1|2|3|4|5| |6"},
    {"mellum", "x| | y|  | 7| | 12345| 6"},
    {"llama-bpe", "tab|\tand|\r\n\r\n| | in|\n\n"},
    {"llama-bpe", "don|'t| '|tis| ''|s| '|d"},
    {"llama-bpe", "  \n| | end|  "},
    {"llama-bpe", "na\303\257ve| caf\303\251| e|\314\201"},
    {"llama-bpe", "\346\227\245\346\234\254| |\302\275\342\205\247| |\331\243\331\244\331\245|\331\246"},
    {"llama-bpe", "a|\302\240b|\343\200\200|\343\200\200c|\342\200\250d"},
    {"llama-bpe", "!!| | \?\n\n|.\r\n|z| |\t|'LL|x"},
    {"llama-bpe", "\360\235\224\230|\360\237\230\200| \360\237\230\200|a| |1|a|1"},
    {"qwen2", "I|'ve| seen| it|;| they|'ll| say| we|'RE| done"},
    {"qwen2", "x| | y|  | |7| | |1|2|3|4|5| |6"},
    {"qwen2", "tab|\tand|\r\n\r\n| | in|\n\n"},
    {"qwen2", "don|'t| '|tis| ''|s| '|d"},
    {"qwen2", "  \n| | end|  "},
    {"qwen2", "na\303\257ve| caf\303\251| e|\314\201"},
    {"qwen2", "\346\227\245\346\234\254| |\302\275|\342\205\247| |\331\243|\331\244|\331\245|\331\246"},
    {"qwen2", "a|\302\240b|\343\200\200|\343\200\200c|\342\200\250d"},
    {"qwen2", "!!| | \?\n\n|.\r\n|z| |\t|'LL|x"},
    {"qwen2", "\360\235\224\230|\360\237\230\200| \360\237\230\200|a| |1|a|1"},
};

TEST(words_are_those_of_the_expressions) {
    for (size_t i = 0; i < COUNT(cuts); i++) {
        const mli_word_rule *rule = mli_find_word_rule(cuts[i].rule, strlen(cuts[i].rule));
        char text[128], found[256];
        size_t n = 0, m = 0;
        for (const char *p = cuts[i].words; *p; p++)
            if (*p != '|') text[n++] = *p;
        for (size_t at = 0, size; at < n; at += size) {
            size = mli_word_size(rule, (unsigned char *)text + at, n - at);
            if (at) found[m++] = '|';
            memcpy(found + m, text + at, size);
            m += size;
        }
        found[m] = 0;
        CHECK(strcmp(found, cuts[i].words) == 0);
        if (strcmp(found, cuts[i].words) != 0) printf("%s: %s\n", cuts[i].rule, found);
    }
}

/* GPT-2's alphabet, as its own code makes it: the visible bytes in order, then U+0100 and on for the others. */
static void make_alphabet(uint32_t alphabet[256]) {
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; b++) {
        int is_visible = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
        alphabet[b] = is_visible ? b : next++;
    }
}

TEST(alphabet) {
    uint32_t wanted[256];
    make_alphabet(wanted);
    for (unsigned b = 0; b < 256; b++) CHECK(mli_spell_byte(b) == wanted[b]);
    for (uint32_t c = 0; c < 1000; c++) {
        int byte = -1;
        for (int b = 0; b < 256; b++)
            if (wanted[b] == c) byte = b;
        CHECK(mli_unspell_byte(c) == byte);
    }
}

/* ---- a small vocabulary ---- */

enum { N_MERGES = 14, BASE = 256, CONTROL = BASE + N_MERGES, USER, ALL };

/* Pairs of ids: bytes are 0 to 255, merges follow in order. */
static const int merges[N_MERGES][2] = {{'h', 'e'}, {'l', 'l'}, {256, 257},   {258, 'o'}, {' ', 'h'},
                                        {' ', 'w'}, {'o', 'r'}, {261, 262},   {'h', 'e'}, {'a', 'a'},
                                        {265, 265}, {265, 'a'}, {0xC3, 0xA9}, {'\'', 's'}};

typedef struct piece {
    unsigned char text[16];
    size_t n;
} piece;
static piece pieces[ALL];

/* All but the ninth, which repeats the first: its piece is one that no merge makes. */
static void make_pieces(void) {
    memset(pieces, 0, sizeof pieces);
    for (int b = 0; b < 256; b++) pieces[b].text[0] = (unsigned char)b, pieces[b].n = 1;
    for (int i = 0; i < N_MERGES; i++) {
        piece *p = &pieces[BASE + i], *a = &pieces[merges[i][0]], *b = &pieces[merges[i][1]];
        memcpy(p->text, a->text, a->n);
        memcpy(p->text + a->n, b->text, b->n);
        p->n = a->n + b->n;
    }
    memcpy(pieces[BASE + 8].text, "xyz", 3);
    pieces[BASE + 8].n = 3;
    memcpy(pieces[CONTROL].text, "<|eot_id|>", pieces[CONTROL].n = 10);
    memcpy(pieces[USER].text, "<|tool", pieces[USER].n = 6);
}

/* As it is written: in the alphabet, unless it is special. */
static void put_spelled(bytes *b, int id) {
    uint32_t alphabet[256];
    make_alphabet(alphabet);
    for (size_t i = 0; i < pieces[id].n; i++) {
        uint32_t c = id < CONTROL ? alphabet[pieces[id].text[i]] : pieces[id].text[i];
        if (c >= 0x80) put_u8(b, 0xC0 | c >> 6);
        put_u8(b, c < 0x80 ? c : 0x80 | (c & 63));
    }
}

/* In a JSON string. */
static void put_escaped(bytes *b, const void *text, size_t n) {
    const char *p = (const char *)text;
    for (size_t i = 0; i < n; i++) {
        char escaped[8];
        snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned char)p[i]);
        int escapes = p[i] == '"' || p[i] == '\\' || (unsigned char)p[i] < 32;
        put(b, escapes ? escaped : p + i, escapes ? 6 : 1);
    }
}

static void put_quoted(bytes *b, int id) {
    bytes spelled = {NULL, 0, 0};
    put_spelled(&spelled, id);
    put_text(b, "\"");
    put_escaped(b, spelled.data, spelled.size);
    put_text(b, "\"");
    free(spelled.data);
}

static void put_format(bytes *b, const char *format, int value) {
    char text[256];
    snprintf(text, sizeof text, format, value);
    put_text(b, text);
}

#define LLAMA3_PATTERN                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "                   \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define BYTE_LEVEL "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
#define LLAMA3                                                                                               \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "           \
    "\"" LLAMA3_PATTERN "\"}, \"behavior\": \"Isolated\", \"invert\": false}, " BYTE_LEVEL "false}]}"
#define SMOLLM                                                                                               \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Digits\", \"individual_digits\": "            \
    "true}, " BYTE_LEVEL "true}]}"
static bytes text_bytes(const char *text) {
    bytes b = {NULL, 0, 0};
    put_text(&b, text);
    return b;
}

#define HEAD "{\"pre_tokenizer\": " BYTE_LEVEL "true}, \"model\": {\"type\": \"BPE\", \"vocab\": "

/* A tokenizer.json with that pre-tokenizer and, in front of the closing brace, `more`. */
static bytes write_json(const char *pre, int as_pairs, const char *more) {
    bytes b = {NULL, 0, 0};
    put_text(&b, "{\"version\": \"1.0\", \"added_tokens\": [");
    for (int id = CONTROL; id <= USER; id++) {
        put_format(&b, id == CONTROL ? "{\"id\": %d, \"content\": " : ", {\"id\": %d, \"content\": ", id);
        put_quoted(&b, id);
        put_text(&b, id == CONTROL ? ", \"special\": true}" : ", \"special\": false}");
    }
    put_text(&b, "], \"pre_tokenizer\": "), put_text(&b, pre);
    put_text(&b, ", \"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int id = 0; id < CONTROL; id++) {
        put_quoted(&b, id);
        put_format(&b, id < CONTROL - 1 ? ": %d, " : ": %d}, \"merges\": [", id);
    }
    for (int i = 0; i < N_MERGES; i++) {
        bytes half = {NULL, 0, 0};
        put_quoted(&half, merges[i][0]);
        if (!as_pairs) half.size--;
        put_text(&b, as_pairs ? "[" : "");
        put(&b, half.data, half.size);
        put_text(&b, as_pairs ? ", " : " ");
        half.size = 0;
        put_quoted(&half, merges[i][1]);
        put(&b, half.data + !as_pairs, half.size - (size_t)!as_pairs);
        put_text(&b, as_pairs ? "]" : "");
        if (i < N_MERGES - 1) put_text(&b, ", ");
        free(half.data);
    }
    put_text(&b, "]}"), put_text(&b, more), put_text(&b, "}");
    return b;
}

static ml_tokenizer *load(bytes b) {
    ml_tokenizer *t = NULL;
    ml_result result = ml_tokenizer_load_memory(b.data, b.size, NULL, &t, &failure);
    CHECK(result == failure.code && (result == ML_OK) == (t != NULL));
    free(b.data);
    return t;
}

typedef struct encoded {
    void *work;
    ml_tokens tokens;
} encoded;

static encoded encode(const ml_tokenizer *t, const char *text, size_t n, int flags) {
    encoded e = {malloc(ml_tokenizer_encode_size(n)), {NULL, 0}};
    char *copy = (char *)malloc(n + 1); /* so that a read past the end shows */
    memcpy(copy, text, n);
    ml_encode_desc desc = {copy, n, flags, e.work, ml_tokenizer_encode_size(n)};
    CHECK(ml_tokenizer_encode(t, &desc, &e.tokens, &failure) == ML_OK);
    free(copy);
    return e;
}

static int encodes_to(const ml_tokenizer *t, const char *text, size_t n, int flags, const int32_t *ids,
                      size_t n_ids) {
    encoded e = encode(t, text, n, flags);
    int same = (size_t)e.tokens.n == n_ids && (!n_ids || !memcmp(e.tokens.ids, ids, n_ids * sizeof *ids));
    for (int i = 0; !same && i < e.tokens.n; i++) printf("%s%d", i ? ", " : "found ", (int)e.tokens.ids[i]);
    if (!same) printf("\n");
    free(e.work);
    return same;
}

#define ENCODES(t, text, flags, ...)                                                                         \
    do {                                                                                                     \
        const int32_t wanted_[] = {__VA_ARGS__};                                                             \
        CHECK(encodes_to(t, text, strlen(text), flags, wanted_, COUNT(wanted_)));                            \
    } while (0)

/* Text to ids to text, whole and piece by piece. */
static int round_trips(const ml_tokenizer *t, const char *text, size_t n) {
    encoded e = encode(t, text, n, 0);
    char *whole = (char *)malloc(n + 1);
    size_t m = 0, at = 0, length;
    int has_begun = 0;
    int same = ml_tokenizer_decode(t, &e.tokens, whole, n + 1, &m, &failure) == ML_OK && m == n &&
               (!n || memcmp(whole, text, n) == 0);
    for (int i = 0; same && i < e.tokens.n; i++, at += length) {
        const char *part = ml_tokenizer_decode_token(t, &has_begun, e.tokens.ids[i], &length);
        same = part && length <= n - at && memcmp(part, text + at, length) == 0;
    }
    free(whole);
    free(e.work);
    return same && at == n;
}

/* ---- merging ---- */

/* One word, plainly: of all neighbors those whose merge comes first, the leftmost, until none is left. */
static size_t merge_plainly(const unsigned char *word, size_t n, int32_t *ids) {
    for (size_t i = 0; i < n; i++) ids[i] = word[i];
    for (;;) {
        int best = N_MERGES;
        size_t place = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (int k = 0; k < best; k++)
                if (merges[k][0] == ids[i] && merges[k][1] == ids[i + 1]) best = k, place = i;
        if (best == N_MERGES) return n;
        ids[place] = BASE + best;
        n--;
        for (size_t i = place + 1; i < n; i++) ids[i] = ids[i + 1];
    }
}

/* Random texts of few characters, so that most of them merge; one of the words is a piece that no merge makes. */
TEST(merges_are_those_of_plain_merging) {
    static const char *const parts[] = {"h",     "e",    "l",        "o",    " ",  "w",   "r",  "a", "aa",
                                        "hello", " wor", "\xC3\xA9", "\xA9", "'s", "xyz", "\n", "1"};
    const mli_word_rule *rule = mli_find_word_rule("gpt-2", 5);
    ml_tokenizer *t = load(write_json(BYTE_LEVEL "true}", 0, ""));
    ml_random random;
    REQUIRE(t);
    ml_random_seed(&random, 3);
    for (int round = 0; round < 2000; round++) {
        char text[128] = "";
        int32_t ids[128];
        size_t n_ids = 0, n;
        for (uint64_t i = ml_random_u64(&random) % 16; i-- > 0;)
            strcat(text, parts[ml_random_u64(&random) % COUNT(parts)]);
        n = strlen(text);
        for (size_t at = 0, size; at < n; at += size) {
            size = mli_word_size(rule, (unsigned char *)text + at, n - at);
            n_ids += merge_plainly((unsigned char *)text + at, size, ids + n_ids);
        }
        CHECK(encodes_to(t, text, n, 0, ids, n_ids) && round_trips(t, text, n));
    }
    ml_tokenizer_free(t);
}

/* A piece with a character that no byte is spelled by (here the last one before the alphabet's second part, and the first
   one after it) is a text as it is. */
TEST(pieces_outside_the_alphabet) {
    static const char text[] = HEAD "{\"a\": 0, \"a\\u00ad\": 1, \"a\\u0144\": 2, \"a\\u0143\": 3}}}";
    static const char *const shown[4] = {"a", "a\xc2\xad", "a\xc5\x84", "a\xad"};
    bytes b = {NULL, 0, 0};
    put_text(&b, text);
    ml_tokenizer *t = load(b);
    REQUIRE(t);
    for (int32_t id = 0; id < 4; id++) {
        int has_begun = 1;
        size_t n = 0;
        const char *found = ml_tokenizer_decode_token(t, &has_begun, id, &n);
        CHECK(n == strlen(shown[id]) && memcmp(found, shown[id], n) == 0);
    }
    ml_tokenizer_free(t);
}

TEST(whole_words_where_the_model_says_so) {
    bytes b = write_json(LLAMA3, 1, "");
    ml_tokenizer *t = load(b);
    REQUIRE(t);
    ENCODES(t, "xyz hello", 0, 'x', 'y', 'z', ' ', BASE + 3);
    ml_tokenizer_free(t);
    b = write_json(LLAMA3, 1, "");
    char *model = strstr((char *)b.data, "\"type\": \"BPE\"");
    REQUIRE(model);
    bytes whole = {NULL, 0, 0};
    put(&whole, b.data, (size_t)(model - (char *)b.data));
    put_text(&whole, "\"ignore_merges\": true, ");
    put(&whole, model, b.size - (size_t)(model - (char *)b.data));
    free(b.data);
    t = load(whole);
    REQUIRE(t);
    ENCODES(t, "xyz hello", 0, BASE + 8, ' ', BASE + 3);
    ml_tokenizer_free(t);
}

TEST(any_bytes_come_back) {
    static const char *const pres[] = {BYTE_LEVEL "true}", LLAMA3, SMOLLM};
    ml_random random;
    ml_random_seed(&random, 4);
    for (size_t i = 0; i < COUNT(pres); i++) {
        ml_tokenizer *t = load(write_json(pres[i], i == 1, ""));
        REQUIRE(t);
        for (int round = 0; round < 300; round++) {
            char text[64];
            size_t n = (size_t)(ml_random_u64(&random) % sizeof text);
            for (size_t k = 0; k < n; k++) text[k] = (char)(ml_random_u64(&random) >> (round % 2 ? 56 : 60));
            if (n > 3 && round % 3 == 0) memcpy(text, "\xE2\x96\x81", 3); /* is a character as others here */
            CHECK(round_trips(t, text, n));
        }
        CHECK(round_trips(t, "", 0) && round_trips(t, "<|eot_id|> <|tool", 17));
        ml_tokenizer_free(t);
    }
}

/* A quadratic step anywhere would show as a hang: one word of a megabyte, and many. */
TEST(a_megabyte) {
    static const char *const alphabets[] = {"a", " ", "=", "hello w'", "\n ", "<|"};
    const size_t n = (size_t)1 << 20;
    char *text = (char *)malloc(n);
    ml_tokenizer *t = load(write_json(LLAMA3, 0, ""));
    ml_random random;
    REQUIRE(t && text);
    ml_random_seed(&random, 6);
    for (size_t k = 0; k < COUNT(alphabets); k++) {
        for (size_t i = 0; i < n; i++) text[i] = alphabets[k][ml_random_u64(&random) % strlen(alphabets[k])];
        CHECK(round_trips(t, text, n));
    }
    ml_tokenizer_free(t);
    free(text);
}

/* ---- special pieces ---- */

TEST(special_pieces_only_when_asked) {
    ml_tokenizer *t = load(write_json(LLAMA3, 0, ""));
    REQUIRE(t);
    ENCODES(t, "a<|eot_id|>b", 0, 'a', '<', '|', 'e', 'o', 't', '_', 'i', 'd', '|', '>', 'b');
    ENCODES(t, "a<|eot_id|>b", ML_PARSE_SPECIAL, 'a', CONTROL, 'b');
    ENCODES(t, "a<|tool|>", 0, 'a', USER, '|', '>'); /* user-defined: always */
    ENCODES(t, "<|eot_id|><|eot_id|", ML_PARSE_SPECIAL, CONTROL, '<', '|', 'e', 'o', 't', '_', 'i', 'd', '|');
    ENCODES(t, " <|eot_id|> ", ML_PARSE_SPECIAL, ' ', CONTROL, ' ');
    CHECK(ml_tokenizer_find(t, "<|eot_id|>", 10) == CONTROL && ml_tokenizer_find(t, "a", 1) == 'a');
    CHECK(t->n_ends == 1 && t->ends[0] == CONTROL && t->bos == -1 && t->eos == -1 && !t->adds_bos);
    const int32_t ids[] = {'a', CONTROL, USER};
    const ml_tokens tokens = {ids, 3};
    char text[16];
    size_t n;
    CHECK(ml_tokenizer_decode(t, &tokens, text, sizeof text, &n, &failure) == ML_OK &&
          !strcmp(text, "a<|tool"));
    ml_tokenizer_free(t);
}

TEST(templates) {
    static const char post[] =
        ", \"post_processor\": {\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, "
        "{\"type\": "
        "\"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": \"<|eot_id|>\", \"type_id\": 0}}, "
        "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]}]}";
    ml_tokenizer *t = load(write_json(LLAMA3, 0, post));
    REQUIRE(t);
    CHECK(t->bos == CONTROL && t->adds_bos && !t->adds_eos);
    ENCODES(t, "a", ML_ADD_SPECIAL, CONTROL, 'a');
    ml_tokenizer_free(t);
}

/* ---- the files of a model ---- */

static ml_model *model_for(ml_tokenizer *t) {
    ml_model_create_desc desc;
    ml_random random;
    ml_model *model = NULL;
    memset(&desc, 0, sizeof desc);
    desc.config.dim = 16, desc.config.hidden_dim = 16, desc.config.n_layers = 1, desc.config.n_heads = 1;
    desc.config.max_seq_len = 8, desc.config.vocab_size = t->n_pieces + 1;
    ml_random_seed(&random, 1);
    desc.random = &random;
    if (ml_model_create(&desc, &model, &failure) || ml_model_set_tokenizer(model, t, &failure)) exit(2);
    return model;
}

static int same_ids(const ml_tokenizer *a, const ml_tokenizer *b, const char *text, int flags) {
    encoded e = encode(a, text, strlen(text), flags);
    int same = encodes_to(b, text, strlen(text), flags, e.tokens.ids, (size_t)e.tokens.n);
    free(e.work);
    return same;
}

#define SOME_TEXT "hello world, aaaaaaa 12345  xyz\n\n\xC3\xA9's <|tool <|eot_id|> \xFF"

/* The pre-tokenizer, the merges (but for the one that repeats another) and the kinds are in the GGUF. */
static void check_saved(ml_tokenizer *t, const char *pre, size_t n_merges) {
    ml_model *model = model_for(t), *again = NULL;
    ml_archive *archive = NULL;
    REQUIRE(ml_model_save(model, in_folder("bpe.gguf"), NULL, &failure) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("bpe.gguf"), NULL, &archive, &failure) == ML_OK);
    const ml_value *name = ml_archive_find_value(archive, "tokenizer.ggml.pre");
    const ml_value *kind = ml_archive_find_value(archive, "tokenizer.ggml.model");
    const ml_value *list = ml_archive_find_value(archive, "tokenizer.ggml.merges");
    REQUIRE(name && kind && list);
    CHECK(name->length == strlen(pre) && memcmp(name->s, pre, name->length) == 0);
    CHECK(kind->length == 4 && memcmp(kind->s, "gpt2", 4) == 0);
    CHECK(list->length == n_merges && !ml_archive_find_value(archive, "tokenizer.ggml.scores"));
    ml_archive_free(archive);
    for (int round = 0; round < 2; round++) { /* as it was written, and as it is written then */
        REQUIRE(ml_model_load(in_folder("bpe.gguf"), NULL, &again, &failure) == ML_OK);
        REQUIRE(again->tokenizer && again->tokenizer->n_pieces == t->n_pieces);
        CHECK(same_ids(t, again->tokenizer, SOME_TEXT, 0));
        CHECK(same_ids(t, again->tokenizer, SOME_TEXT, ML_PARSE_SPECIAL));
        CHECK(again->tokenizer->adds_bos == t->adds_bos && again->tokenizer->bos == t->bos);
        CHECK(again->tokenizer->private_part->rules.takes_whole_words ==
              t->private_part->rules.takes_whole_words);
        if (!round) CHECK(ml_model_save(again, in_folder("bpe2.gguf"), NULL, &failure) == ML_OK);
        ml_model_free(again);
        if (!round) CHECK(remove(in_folder("bpe.gguf")) == 0); /* Windows does not rename over a file */
        if (!round) CHECK(rename(in_folder("bpe2.gguf"), in_folder("bpe.gguf")) == 0);
    }
    ml_model_free(model);
}

TEST(saved_as_gguf) {
    ml_tokenizer *t = load(write_json(BYTE_LEVEL "true}", 0, ""));
    REQUIRE(t);
    check_saved(t, "gpt-2", N_MERGES - 1);
    t = load(write_json(SMOLLM, 0, ""));
    REQUIRE(t);
    check_saved(t, "smollm", N_MERGES - 1);
    for (int i = 0; i < 2; i++) { /* the pre-tokenizer's name implies it, or the opposite */
        t = load(write_json(LLAMA3, 0, ""));
        REQUIRE(t);
        t->private_part->rules.takes_whole_words = i;
        check_saved(t, "llama-bpe", N_MERGES - 1);
    }
}

TEST(beside_a_model) {
    static const char config[] =
        "{\"hidden_size\": 16, \"intermediate_size\": 16, \"num_hidden_layers\": 1, "
        "\"num_attention_heads\": 1, \"vocab_size\": 273, \"max_position_embeddings\": 8, "
        "\"rms_norm_eps\": 1e-5, \"bos_token_id\": 104, \"eos_token_id\": [119, 105], "
        "\"tie_word_embeddings\": true, \"model_type\": \"llama\"}";
    ml_save_desc save;
    bytes file = write_json(LLAMA3, 0, "");
    ml_tokenizer *t = load(write_json(LLAMA3, 0, ""));
    ml_model *model = model_for(t), *loaded = NULL;
    memset(&save, 0, sizeof save);
    save.format = ML_SAFETENSORS;
    REQUIRE(ml_model_save(model, in_folder("model.safetensors"), &save, &failure) == ML_OK);
    ml_model_free(model);
    write_file(in_folder("config.json"), config, sizeof config - 1);
    write_file(in_folder("tokenizer.json"), file.data, file.size);
    free(file.data);
    REQUIRE(ml_model_load(folder, NULL, &loaded, &failure) == ML_OK);
    REQUIRE(loaded->tokenizer);
    CHECK(loaded->tokenizer->bos == 104 && loaded->tokenizer->eos == 119);
    CHECK(loaded->tokenizer->n_ends == 3 && loaded->tokenizer->n_pieces == ALL);
    ml_model_free(loaded);
    static const char post[] = /* its template names bos, whatever config.json says */
        ", \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": {\"id\": "
        "\"<|eot_id|>\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}]}";
    file = write_json(LLAMA3, 0, post);
    write_file(in_folder("tokenizer.json"), file.data, file.size);
    free(file.data);
    REQUIRE(ml_model_load(folder, NULL, &loaded, &failure) == ML_OK);
    CHECK(loaded->tokenizer && loaded->tokenizer->bos == CONTROL && loaded->tokenizer->eos == 119);
    ml_model_free(loaded);
    static const char fewer[] = HEAD "{\"a\": 0, \"b\": 1}}}"; /* without what was added later */
    write_file(in_folder("tokenizer.model"), fewer, sizeof fewer - 1);
    REQUIRE(ml_model_load(folder, NULL, &loaded, &failure) == ML_OK);
    CHECK(loaded->tokenizer && loaded->tokenizer->n_pieces == ALL);
    ml_model_free(loaded);
    CHECK(remove(in_folder("tokenizer.json")) == 0);
    REQUIRE(ml_model_load(folder, NULL, &loaded, &failure) == ML_OK);
    CHECK(loaded->tokenizer && loaded->tokenizer->n_pieces == 2);
    ml_model_free(loaded);
    CHECK(remove(in_folder("tokenizer.model")) == 0);
}

/* Special pieces for which the model has no rows are left out, and other pieces are another model's. */
TEST(more_pieces_than_rows) {
    bytes file = write_json(LLAMA3, 0, "");
    ml_tokenizer *t = load(write_json(LLAMA3, 0, ""));
    ml_model *model = model_for(t), *loaded = NULL;
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    for (int cut = 1; cut < 4; cut++) { /* the last ones are user-defined, control and normal */
        ml_model_create_desc of;
        ml_model *small = NULL;
        ml_random random;
        memset(&of, 0, sizeof of);
        of.config = model->config, of.config.vocab_size = ALL - cut, of.random = &random;
        ml_random_seed(&random, 1);
        REQUIRE(ml_model_create(&of, &small, &failure) == ML_OK);
        REQUIRE(ml_model_save(small, in_folder("small.gguf"), NULL, &failure) == ML_OK);
        ml_model_free(small);
        desc.tokenizer_data = file.data, desc.tokenizer_size = file.size;
        ml_result result = ml_model_load(in_folder("small.gguf"), &desc, &loaded, &failure);
        CHECK(result == (ALL - cut >= CONTROL ? ML_OK : ML_ERROR_MISMATCH));
        if (result) continue;
        const ml_tokenizer *fitting = loaded->tokenizer;
        CHECK(fitting && fitting->n_pieces == ALL - cut &&
              !ml_tokenizer_piece(fitting, USER, NULL, NULL, NULL));
        CHECK(ml_tokenizer_find(fitting, (const char *)pieces[USER].text, pieces[USER].n) == -1);
        for (int i = 0; i < fitting->n_ends; i++) CHECK(fitting->ends[i] < fitting->n_pieces);
        CHECK(fitting->bos < fitting->n_pieces && fitting->eos < fitting->n_pieces);
        ml_model_free(loaded);
    }
    free(file.data);
    ml_model_free(model);
}

/* ---- Meta's tokenizer.model of Llama 3 ---- */

static void put_base64(bytes *b, const unsigned char *p, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < n; i += 3) {
        uint32_t bits =
            (uint32_t)p[i] << 16 | (uint32_t)(i + 1 < n ? p[i + 1] : 0) << 8 | (i + 2 < n ? p[i + 2] : 0);
        for (size_t k = 0; k < 4; k++) {
            char c = i + k > n ? '=' : digits[bits >> (18 - 6 * k) & 63];
            put(b, &c, 1);
        }
    }
}

static bytes write_meta(const char *end_of_line) {
    bytes b = {NULL, 0, 0};
    for (int id = 0; id < CONTROL; id++) {
        put_base64(&b, pieces[id].text, pieces[id].n);
        put_format(&b, " %d", id);
        put_text(&b, end_of_line);
    }
    return b;
}

TEST(meta_lines) {
    for (int windows = 0; windows < 2; windows++) {
        ml_tokenizer *t = load(write_meta(windows ? "\r\n" : "\n"));
        REQUIRE(t);
        CHECK(t->n_pieces == CONTROL + 256 && t->bos == CONTROL && t->eos == CONTROL + 1 && t->adds_bos);
        CHECK(t->n_ends == 3);
        /* any two neighbors that make a piece, the lowest id first: here also "xyz", as a whole word */
        ENCODES(t, "hello xyz xyz", 0, BASE + 3, ' ', 'x', 'y', 'z', ' ', 'x', 'y', 'z');
        ENCODES(t, "xyz<|eot_id|>aaaa", ML_PARSE_SPECIAL | ML_ADD_SPECIAL, CONTROL, BASE + 8, CONTROL + 9,
                BASE + 10);
        size_t n;
        const char *last = ml_tokenizer_piece(t, CONTROL + 255, &n, NULL, NULL);
        CHECK(n == 30 && memcmp(last, "<|reserved_special_token_247|>", n) == 0);
        CHECK(round_trips(t, SOME_TEXT, strlen(SOME_TEXT)));
        /* any two pieces that make a third: one pair for each of 11, none for xyz, 2 for aaa, 3 for aaaa */
        if (windows) check_saved(t, "llama-bpe", 16);
        if (!windows) ml_tokenizer_free(t);
    }
}

/* ---- SentencePiece's vocabularies in a tokenizer.json ---- */

#define SPM_STEPS                                                                                            \
    "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Prepend\", \"prepend\": "       \
    "\"\xE2\x96\x81\"}, {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": "             \
    "\"\xE2\x96\x81\"}]}, \"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Replace\", "     \
    "\"pattern\": {\"String\": \"\xE2\x96\x81\"}, \"content\": \" \"}, {\"type\": \"ByteFallback\"}, "       \
    "{\"type\": \"Fuse\"}, {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}]}"

static bytes write_spm_with(const char *steps, const char *added, int normalized) {
    bytes b = {NULL, 0, 0};
    put_text(&b, "{\"added_tokens\": [{\"id\": 1, \"content\": \"<s>\", \"special\": true}, "
                 "{\"id\": 266, \"content\": \"");
    put_text(&b, added);
    put_text(&b, "\", \"special\": false, \"normalized\": ");
    put_text(&b, normalized ? "true}], " : "false}], ");
    put_text(&b, steps);
    put_text(
        &b,
        ", \"model\": {\"type\": \"BPE\", \"unk_token\": \"<unk>\", \"fuse_unk\": true, \"byte_fallback\": "
        "true, \"vocab\": {\"<unk>\": 0, \"<s>\": 1, ");
    for (int i = 0; i < 256; i++) {
        char text[32];
        snprintf(text, sizeof text, "\"<0x%02X>\": %d, ", i, i + 2);
        put_text(&b, text);
    }
    put_text(&b, "\"\xE2\x96\x81\": 258, \"a\": 259, \"b\": 260, \"ab\": 261, \"\xE2\x96\x81\x61\": 262, "
                 "\"abb\": 263, \"\xE2\x96\x81\x61\x62\": 264, \"ba\": 265}, \"merges\": [\"a b\", "
                 "\"\xE2\x96\x81 a\", "
                 "\"a bb\", \"\xE2\x96\x81 ab\", \"b a\"]}}");
    return b;
}

static bytes write_spm(const char *steps) { return write_spm_with(steps, "a  ", 0); }

TEST(sentencepiece_in_json) {
    ml_tokenizer *t = load(write_spm(SPM_STEPS));
    REQUIRE(t);
    ENCODES(t, "ab a", 0, 264, 262);
    ENCODES(t, "bab", 0, 258, 260, 261);  /* not "ba", which begins further left */
    ENCODES(t, " abb", 0, 258, 264, 260); /* "a" and "bb" are not merged: "bb" is no piece */
    ENCODES(t, "a\n\xC3\xA9", 0, 262, 12, 0xC3 + 2, 0xA9 + 2);
    ENCODES(t, "<s>ab<s><s>", ML_PARSE_SPECIAL, 1, 264, 1, 1); /* each text between has its space */
    ENCODES(t, "ab<s>ab", ML_PARSE_SPECIAL, 264, 1, 264);
    ENCODES(t, "aba  ", 0, 264, 266); /* added to the vocabulary, with plain spaces */
    CHECK(t->bos == 1 && t->unknown == 0 && round_trips(t, " ab  b\xFF", 7));
    ml_tokenizer_free(t);
    t = load(write_spm("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\", "
                       "\"prepend_scheme\": \"first\", \"split\": false}"));
    REQUIRE(t);
    ENCODES(t, "ab a", 0, 264, 262);
    ENCODES(t, " ab", 0, 264); /* no second space */
    ENCODES(t, " <s>ab", ML_PARSE_SPECIAL, 258, 1, 261);
    ENCODES(t, "<s>ab", ML_PARSE_SPECIAL, 1, 261);
    ENCODES(t, "ab<s>ab", ML_PARSE_SPECIAL, 264, 1, 261);
    ml_tokenizer_free(t);
}

/* What follows is like a model that a program without the merges computes with: their ranks are the scores. */
TEST(sentencepiece_saved_by_scores) {
    ml_tokenizer *t = load(write_spm(SPM_STEPS));
    REQUIRE(t);
    ml_model *model = model_for(t), *again = NULL;
    REQUIRE(ml_model_save(model, in_folder("spm.gguf"), NULL, &failure) == ML_OK);
    REQUIRE(ml_model_load(in_folder("spm.gguf"), NULL, &again, &failure) == ML_OK);
    REQUIRE(again->tokenizer);
    CHECK(same_ids(t, again->tokenizer, "ab a bab\n\xC3\xA9 ababa  ", 0));
    ml_model_free(again);
    ml_model_free(model);
    t = load(write_spm("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\", "
                       "\"prepend_scheme\": \"first\", \"split\": true}"));
    REQUIRE(t);
    model = model_for(t); /* and the rules that only tokenizer.json has */
    REQUIRE(ml_model_save(model, in_folder("spm.gguf"), NULL, &failure) == ML_OK);
    REQUIRE(ml_model_load(in_folder("spm.gguf"), NULL, &again, &failure) == ML_OK);
    REQUIRE(again->tokenizer);
    CHECK(same_ids(t, again->tokenizer, " ab a bab", 0));
    CHECK(same_ids(t, again->tokenizer, "ab<s>ab", ML_PARSE_SPECIAL));
    const mli_text_rules *rules = &again->tokenizer->private_part->rules;
    CHECK(rules->spares_spaces && rules->only_first && rules->cuts_at_spaces && !rules->takes_whole_words);
    ml_model_free(again);
    ml_model_free(model);
}

/* A text that goes on after a user-defined piece gets its space there, as in Hugging Face's tokenizers. */
TEST(text_after_a_user_defined_piece) {
    ml_tokenizer *t = load(write_spm(SPM_STEPS));
    REQUIRE(t);
    ENCODES(t, "a  ab", 0, 266, 264);
    ENCODES(t, "aba  ba", 0, 264, 266, 258, 265);
    ENCODES(t, "aba   ba", 0, 264, 266, 258, 258, 265);
    ml_model *model = model_for(t), *again = NULL;
    REQUIRE(ml_model_save(model, in_folder("user.gguf"), NULL, &failure) == ML_OK);
    REQUIRE(ml_model_load(in_folder("user.gguf"), NULL, &again, &failure) == ML_OK && again->tokenizer);
    ENCODES(again->tokenizer, "aba  ba", 0, 264, 266, 258, 265);
    ml_model_free(again);
    ml_model_free(model);
    t = load(write_spm("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\", "
                       "\"prepend_scheme\": \"first\", \"split\": false}"));
    REQUIRE(t);
    ENCODES(t, "a  ab", 0, 266, 261);
    ml_tokenizer_free(t);
    t = load(write_spm_with(SPM_STEPS, "a  ", 1)); /* found after the step Prepend, which has been then */
    REQUIRE(t);
    ENCODES(t, "aba  ba", 0, 264, 266, 265);
    ml_tokenizer_free(t);
    t = load(write_spm_with("\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\", "
                            "\"prepend_scheme\": \"always\", \"split\": false}",
                            "a  ", 1)); /* which comes for each part */
    REQUIRE(t);
    ENCODES(t, "aba  ba", 0, 264, 266, 258, 265);
    ml_tokenizer_free(t);
}

/* The space that a text gets is no part of an added piece: these are found first, in Hugging Face's tokenizers. */
TEST(added_piece_of_spaces) {
    ml_tokenizer *t = load(write_spm_with(SPM_STEPS, "  ", 0));
    REQUIRE(t);
    ENCODES(t, "a   b", 0, 262, 266, 258, 258, 260);
    ENCODES(t, " ab", 0, 258, 264);
    ENCODES(t, "<s> ab", ML_PARSE_SPECIAL, 1, 258, 264);
    ENCODES(t, "  ab", 0, 266, 264);
    ml_tokenizer_free(t);
}

/* The normalizer's step, which every text between special pieces gets, counts; the pre-tokenizer adds no other one. */
TEST(prepended_before_metaspace) {
    ml_tokenizer *t =
        load(write_spm(SPM_STEPS ", \"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": "
                                 "\"\xE2\x96\x81\", \"prepend_scheme\": \"first\", \"split\": false}"));
    REQUIRE(t);
    ENCODES(t, "ab<s>ab", ML_PARSE_SPECIAL, 264, 1, 264);
    ml_tokenizer_free(t);
}

#define REPLACE                                                                                              \
    "\"normalizer\": {\"type\": \"Replace\", \"pattern\": {\"String\": \" \"}, \"content\": "                \
    "\"\xE2\x96\x81\"}"
#define OF_CHARACTERS "\"model\": {\"type\": \"BPE\", \"byte_fallback\": true, "

/* Without fuse_unk each unknown character, with it those of a word, are an unknown piece. */
TEST(unknown_characters) {
    for (int fuses = 0; fuses < 2; fuses++) {
        bytes b = {NULL, 0, 0};
        put_text(&b,
                 HEAD "{\"<unk>\": 0, \"a\": 1, \"b\": 2, \"ab\": 3}, \"merges\": [\"a b\"], \"unk_token\": "
                      "\"<unk>\"");
        put_text(&b, fuses ? ", \"fuse_unk\": true}}" : "}}");
        ml_tokenizer *t = load(b);
        REQUIRE(t);
        ml_model *model = model_for(t), *again = NULL;
        REQUIRE(ml_model_save(model, in_folder("unknown.gguf"), NULL, &failure) == ML_OK);
        REQUIRE(ml_model_load(in_folder("unknown.gguf"), NULL, &again, &failure) == ML_OK);
        if (fuses) {
            ENCODES(t, "abxy z", 0, 3, 0, 0);
            ENCODES(t, "xa1", 0, 0, 1, 0);
        } else {
            ENCODES(t, "abxy z", 0, 3, 0, 0, 0, 0);
            ENCODES(t, "ab\xE6\x97\xA5", 0, 3, 0, 0, 0);
        }
        CHECK(again->tokenizer && same_ids(t, again->tokenizer, "abxy z", 0));
        ml_model_free(again);
        ml_model_free(model);
    }
}

/* Also where words are not of bytes. */
TEST(whole_words_of_characters) {
    ml_tokenizer *t = load(text_bytes("{" REPLACE ", " OF_CHARACTERS
                                      "\"ignore_merges\": true, \"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, "
                                      "\"ab\": 3, \"cab\": 4}, \"merges\": [\"a b\"]}}"));
    REQUIRE(t);
    ENCODES(t, "cab", 0, 4);
    ENCODES(t, "ccab", 0, 2, 2, 3);
    ml_tokenizer_free(t);
}

/* ---- files that are wrong ---- */

static int refused(bytes b, ml_result result, const char *word) {
    ml_tokenizer *t = NULL;
    ml_result found = ml_tokenizer_load_memory(b.data, b.size, NULL, &t, &failure);
    int is_refused = found == result && !t && strstr(failure.text, word);
    if (!is_refused) printf("%s: %d, %s\n", word, (int)found, failure.text);
    ml_tokenizer_free(t);
    free(b.data);
    return is_refused;
}

TEST(wrong_json) {
    static const struct {
        const char *text, *word;
        ml_result result;
    } cases[] = {
        {HEAD "{\"a\": 0, \"b\": 0}}}", "two pieces have the id 0", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0, \"a\": 1}}}", "pieces 0 and 1 are the same", ML_ERROR_FORMAT},
        {HEAD "{\"a\": -1}}}", "id of \"a\"", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 1048576}}}", "id of \"a\"", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 1000000}}}", "id 1000000, but there are only 1 pieces", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 1.5}}}", "id of \"a\"", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0, \"b\": 1}, \"merges\": [\"a b\"]}}", "merge 0 makes no piece", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0, \"b\": 1}, \"merges\": [\"ab\"]}}", "\"ab\" is not two pieces", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0, \"b\": 1}, \"merges\": [[\"a\"]]}}", "a comma is missing", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0}}, \"added_tokens\": [{\"id\": 0, \"content\": \"b\"}]}", "two pieces",
         ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0}}, \"added_tokens\": [{\"id\": -5, \"content\": \"b\"}]}", "number 0",
         ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0}}, \"added_tokens\": [{\"content\": \"b\"}]}", "number 0", ML_ERROR_FORMAT},
        {HEAD "{}}}", "no pieces", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0}}} 1", "more text than one value", ML_ERROR_FORMAT},
        {HEAD "{\"a\": 0}}, \"normalizer\": {\"type\": \"Lowercase\"}}", "normalizer Lowercase",
         ML_ERROR_UNSUPPORTED},
        {HEAD "{\"a\": 0}}, \"decoder\": {\"type\": \"WordPiece\"}}", "decoder WordPiece",
         ML_ERROR_UNSUPPORTED},
        {HEAD "{\"a\": 0}}, \"post_processor\": {\"type\": \"BertProcessing\"}}", "BertProcessing",
         ML_ERROR_UNSUPPORTED},
        {HEAD "{\"a\": 0}, \"end_of_word_suffix\": \"</w>\"}}", "end_of_word_suffix </w>",
         ML_ERROR_UNSUPPORTED},
        {HEAD "{\"a\": 0}, \"dropout\": 0.5}}", "dropout", ML_ERROR_UNSUPPORTED},
        {"{" REPLACE
         ", \"pre_tokenizer\": {\"type\": \"Digits\", \"individual_digits\": true}, " OF_CHARACTERS
         "\"vocab\": {\"a\": 0}}}",
         "Digits or Split without ByteLevel", ML_ERROR_UNSUPPORTED},
        {"{" REPLACE ", \"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"" LLAMA3_PATTERN
         "\"}, \"behavior\": \"Isolated\"}, " OF_CHARACTERS "\"vocab\": {\"a\": 0}}}",
         "Digits or Split without ByteLevel", ML_ERROR_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"\xE2\x96\x81\", "
         "\"prepend_scheme\": "
         "\"always\", \"add_prefix_space\": false}, " OF_CHARACTERS "\"vocab\": {\"a\": 0}}}",
         "add_prefix_space = false with prepend_scheme always", ML_ERROR_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}, \"model\": {\"type\": \"BPE\"}}",
         "pre_tokenizer BertPreTokenizer", ML_ERROR_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"type\": \"BPE\"}}", "add_prefix_space",
         ML_ERROR_UNSUPPORTED},
        {"{\"pre_tokenizer\": " BYTE_LEVEL "false}, \"model\": {\"type\": \"BPE\"}}", "use_regex = false",
         ML_ERROR_UNSUPPORTED},
        {"{\"pre_tokenizer\": {\"type\": \"Split\", \"pattern\": {\"Regex\": \"\\\\w+\"}, \"behavior\": "
         "\"Isolated\"}, \"model\": {\"type\": \"BPE\"}}",
         "Split by \\w+", ML_ERROR_UNSUPPORTED},
        {"{\"model\": {\"type\": \"WordLevel\", \"vocab\": {}}}", "WordLevel", ML_ERROR_UNSUPPORTED},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        CHECK(refused(text_bytes(cases[i].text), cases[i].result, cases[i].word));
    bytes deep = text_bytes("{\"a\": ");
    for (int i = 0; i < 100000; i++) put_text(&deep, "[");
    CHECK(refused(deep, ML_ERROR_FORMAT, "nested too deeply"));
}

/* A half that is no piece is passed over: nothing makes it. */
TEST(merges_of_a_cut_vocabulary) {
    ml_tokenizer *t =
        load(text_bytes(HEAD "{\"a\": 0, \"b\": 1, \"ab\": 2, \"aab\": 3}, \"merges\": [\"aa b\", "
                             "\"a b\"]}}"));
    REQUIRE(t);
    ENCODES(t, "aab", 0, 0, 2);
    ml_encode_desc desc = {"c", 1, 0, NULL, 128};
    int32_t work[64];
    ml_tokens tokens;
    desc.work = work;
    CHECK(ml_tokenizer_encode(t, &desc, &tokens, &failure) == ML_ERROR_UNSUPPORTED);
    ml_tokenizer_free(t);
}

/* Cut short anywhere, and with any byte changed: an error or a tokenizer that works. */
static void damage(bytes whole, int must_fail) {
    ml_random random;
    ml_random_seed(&random, 5);
    for (size_t i = 0; i < 600; i++) {
        size_t n = must_fail ? (size_t)(ml_random_u64(&random) % (whole.size - 1)) : whole.size;
        bytes b = {NULL, 0, 0};
        put(&b, whole.data, n);
        if (!must_fail) b.data[ml_random_u64(&random) % n] = (unsigned char)ml_random_u64(&random);
        ml_tokenizer *t = load(b);
        CHECK(!t || !must_fail);
        if (t) CHECK(round_trips(t, "hello \xFF", 0));
        ml_tokenizer_free(t);
    }
    free(whole.data);
}

TEST(damaged_files) {
    damage(write_json(LLAMA3, 1, ""), 1);
    damage(write_json(LLAMA3, 0, ""), 0);
    damage(write_spm(SPM_STEPS), 0);
    damage(write_meta("\n"), 0);
}

TEST(wrong_lines) {
    CHECK(refused(text_bytes("YQ== 0\nYg== 2\n"), ML_ERROR_FORMAT, "line 2 has rank 2, not 1"));
    CHECK(refused(text_bytes("YQ== 0\nY*== 1\n"), ML_ERROR_FORMAT, "line 2 is not base64"));
    CHECK(refused(text_bytes("YQ== 0\nYg== \n"), ML_ERROR_FORMAT, "line 2 is not base64"));
    CHECK(refused(text_bytes("YQ== 0\nYQ== 1\n"), ML_ERROR_FORMAT, "pieces 0 and 1 are the same"));
}

/* ---- the public vocabularies ---- */

static const char *next_text(const char *p, bytes *text) {
    text->size = 0;
    unsigned char utf8[4];
    const unsigned char *q = (const unsigned char *)p, *end = q + strlen(p);
    while (*q != '"') put(text, utf8, mli_json_character(&q, end, (char *)utf8));
    put_u8(text, 0);
    text->size--;
    return (const char *)q + 1;
}

static int check_line(ml_tokenizer **t, bytes *loaded, const char *line) {
    bytes file = {NULL, 0, 0}, text = {NULL, 0, 0};
    static int32_t ids[4096];
    char path[256];
    size_t n = 0;
    const char *p;
    next_text(strstr(line, "\"tokenizer\": \"") + 14, &file);
    p = next_text(strstr(line, "\"text\": \"") + 9, &text);
    for (p = strstr(p, "\"ids\": [") + 8; *p != ']' && n < COUNT(ids); n++) {
        char *end;
        ids[n] = (int32_t)strtol(p, &end, 10);
        p = end + strspn(end, ", ");
    }
    snprintf(path, sizeof path, "models/modern/%s", (char *)file.data);
    if (file.size != loaded->size || memcmp(file.data, loaded->data, file.size)) {
        ml_tokenizer_free(*t);
        *t = NULL;
        ml_tokenizer_load(shared_path(path), NULL, t, &failure);
    }
    free(loaded->data);
    *loaded = file;
    int same = *t && encodes_to(*t, (char *)text.data, text.size, 0, ids, n) &&
               round_trips(*t, (char *)text.data, text.size);
    free(text.data);
    return same;
}

TEST(public_vocabularies) {
    NEED_SHARED();
    bytes lines = read_file(shared_path("reference/tokenizer_bpe.jsonl")), loaded = {NULL, 0, 0};
    if (!lines.size) SKIP("../shared has no reference/tokenizer_bpe.jsonl");
    ml_tokenizer *t = NULL;
    int n = 0;
    put_u8(&lines, 0);
    for (char *line = (char *)lines.data, *next; (next = strchr(line, '\n')) != NULL; line = next + 1, n++) {
        *next = 0;
        CHECK(check_line(&t, &loaded, line));
    }
    CHECK(n == 175);
    ml_tokenizer_free(t);
    free(lines.data);
    free(loaded.data);
}

/* Llama 3's small model as its users have it, a GGUF and a folder of shards: the tokenizers that come with both give
   llama.cpp's ids, with bos in front where the files ask for it. */
TEST(public_models_with_their_tokenizers) {
    static const char *const models[] = {"models/modern/llama3.gguf",
                                         "models/modern/llama3-hf/model.safetensors.index.json"};
    NEED_SHARED();
    if (!shared_path(models[0])) SKIP("../shared/models/modern is absent");
    for (int i = 0; i < 2; i++) {
        bytes lines = read_file(shared_path("reference/tokenizer_bpe.jsonl")), loaded = {NULL, 0, 0};
        ml_model *model = NULL;
        ml_session *session = NULL;
        ml_tokens tokens;
        int n = 0;
        REQUIRE(ml_model_load(shared_path(models[i]), NULL, &model, &failure) == ML_OK && model->tokenizer);
        put_text(&loaded, "llama3.gguf"); /* for check_line it is loaded */
        ml_tokenizer *t = (ml_tokenizer *)(uintptr_t)model->tokenizer;
        put_u8(&lines, 0);
        for (char *line = (char *)lines.data, *next; (next = strchr(line, '\n')) != NULL; line = next + 1) {
            *next = 0;
            if (!strstr(line, "\"tokenizer\": \"llama3.gguf\"")) continue;
            CHECK(check_line(&t, &loaded, line));
            n++;
        }
        CHECK(n > 20 && t == model->tokenizer);
        REQUIRE(ml_session_new(model, NULL, &session, &failure) == ML_OK);
        CHECK(ml_session_encode(session, "hi", ML_ADD_SPECIAL, &tokens, &failure) == ML_OK);
        CHECK(tokens.n > 1 && tokens.ids[0] == 510);
        ml_session_free(session);
        ml_model_free(model);
        free(lines.data);
        free(loaded.data);
    }
}

static void put_piece(bytes *b, const ml_tokenizer *t, int32_t id) {
    size_t n;
    const char *p = ml_tokenizer_piece(t, id, &n, NULL, NULL);
    put_text(b, "\"");
    put_escaped(b, p, n);
    put_text(b, "\"");
}

/* Any two pieces that make a third, in the order of the thirds' scores. */
static void put_all_merges(bytes *b, const ml_tokenizer *t) {
    const mli_tokenizer *own = t->private_part;
    int n_merges = 0;
    for (int32_t id = 0; id < t->n_pieces; id++) {
        const unsigned char *text = (const unsigned char *)own->texts + own->text_at[id];
        size_t n = own->text_at[id + 1] - own->text_at[id];
        for (size_t i = 1; i < n && own->kinds[id] == ML_PIECE_NORMAL; i++) {
            int32_t left = mli_find_piece(own, text, i), right = mli_find_piece(own, text + i, n - i);
            if (left < 0 || right < 0) continue;
            put_text(b, n_merges++ ? ", [" : "[");
            put_piece(b, t, left);
            put_text(b, ", ");
            put_piece(b, t, right);
            put_text(b, "]");
        }
    }
}

/* SentencePiece's own model against a tokenizer.json made of it as Hugging Face's converter does. */
TEST(sentencepiece_by_merges) {
    NEED_SHARED();
    ml_tokenizer *t = NULL, *u = NULL;
    bytes b = {NULL, 0, 0}, text = read_file(shared_path("data/sst-dev.txt"));
    REQUIRE(ml_tokenizer_load(shared_path("data/tokenizer.model"), NULL, &t, &failure) == ML_OK);
    put_text(&b, "{" SPM_STEPS ", \"model\": {\"type\": \"BPE\", \"byte_fallback\": true, \"merges\": [");
    put_all_merges(&b, t);
    put_text(&b, "], \"vocab\": {");
    for (int32_t id = 0; id < t->n_pieces; id++) {
        put_text(&b, id ? ", " : "");
        put_piece(&b, t, id);
        put_format(&b, ": %d", id);
    }
    put_text(&b, "}}}");
    u = load(b);
    REQUIRE(u);
    encoded e = encode(t, (char *)text.data, text.size, 0);
    CHECK(e.tokens.n > 20000);
    CHECK(encodes_to(u, (char *)text.data, text.size, 0, e.tokens.ids, (size_t)e.tokens.n));
    CHECK(round_trips(u, (char *)text.data, text.size));
    free(e.work);
    ml_tokenizer_free(t);
    ml_tokenizer_free(u);
    free(text.data);
}

int main(void) {
    if (!folder_begin("byte_level")) return 2;
    make_pieces();
    RUN(words_are_those_of_the_expressions);
    RUN(alphabet);
    RUN(merges_are_those_of_plain_merging);
    RUN(pieces_outside_the_alphabet);
    RUN(whole_words_where_the_model_says_so);
    RUN(any_bytes_come_back);
    RUN(a_megabyte);
    RUN(special_pieces_only_when_asked);
    RUN(templates);
    RUN(saved_as_gguf);
    RUN(beside_a_model);
    RUN(more_pieces_than_rows);
    RUN(meta_lines);
    RUN(sentencepiece_in_json);
    RUN(sentencepiece_saved_by_scores);
    RUN(text_after_a_user_defined_piece);
    RUN(added_piece_of_spaces);
    RUN(prepended_before_metaspace);
    RUN(unknown_characters);
    RUN(whole_words_of_characters);
    RUN(wrong_json);
    RUN(merges_of_a_cut_vocabulary);
    RUN(damaged_files);
    RUN(wrong_lines);
    RUN(public_vocabularies);
    RUN(public_models_with_their_tokenizers);
    RUN(sentencepiece_by_merges);
    CHECK(folder_end());
    return test_report("byte_level");
}
#else
int main(void) { return test_report("byte_level"); } /* all of it is left out */
#endif
