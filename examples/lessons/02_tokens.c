/* Lesson 2: tokens.

   A Llama reads numbers, so a text is first cut into pieces, and each piece has an id. Byte-pair encoding starts from
   single characters and merges two neighbors at a time, always the pair that training merged earliest. You write this
   and watch it merge. You see that it does not always find the longest piece, and what happens to a character that is
   not in the vocabulary. At the end your ids are those of the tokenizer in minillama.h.

   while any two neighbors a, b have a piece ab in the vocabulary:
       replace the pair whose ab has the highest score by ab (the leftmost where several have it)
   A space is written as the mark U+2581, and one is put before the text, so that a word has the same id everywhere.
   The score is minus the number of the merge in training: 0 for the first pair, then -1, -2, ...

   Paper: Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units". */
#include "lesson.h"
#include "minillama.h"

#define MARK "\xe2\x96\x81" /* U+2581 in UTF-8 */
enum { LONGEST = 1000, CELL = 36 };
typedef struct span {
    const char *at;
    int size, chars; /* bytes and characters */
} span;
static ml_tokenizer *vocabulary; /* learned pieces with ids and scores: here they are only looked up */
static char text[LONGEST];
static span symbols[LONGEST]; /* (n) the text as it is cut now */
static int n;

/* The id of the piece with these bytes, or -1. */
static int find(span s, ml_piece_kind wanted, float *score) {
    for (int id = 0; id < vocabulary->n_pieces; id++) {
        ml_piece_kind kind;
        size_t size;
        const char *piece = ml_tokenizer_piece(vocabulary, id, &size, score, &kind);
        if (kind == wanted && size == (size_t)s.size && !memcmp(piece, s.at, size)) return id;
    }
    return -1;
}

/* Copies the words with a mark for each space and one in front, and cuts them into characters. */
static void cut(const char *words) {
    char *end = text + snprintf(text, LONGEST, "%s", MARK);
    for (const char *at = words; *at; at++)
        end += snprintf(end, 4, "%.*s", *at == ' ' ? 3 : 1, *at == ' ' ? MARK : at);
    n = 0;
    for (const char *at = text; at < end; symbols[n - 1].size++, at++)
        if ((*at & 0xc0) != 0x80) symbols[n++] = (span){at, 0, 1}; /* the first byte of a character */
}

static span joined(const span *s) { return (span){s->at, s[0].size + s[1].size, s[0].chars + s[1].chars}; }

/* Which symbol to merge with the one after it, or -1. */
static int best_pair(float *best) {
    int found = -1;
    float score;
    for (int i = 0; i + 1 < n; i++)
        if (find(joined(symbols + i), ML_PIECE_NORMAL, &score) >= 0 && (found < 0 || score > *best))
            found = i, *best = score;
    return found;
}

static void show(svg *s, int step, int merged, double score) {
    double x = 20, y = 50 + 32.0 * step;
    for (int i = 0; i < n; x += CELL * symbols[i++].chars) {
        double w = CELL * symbols[i].chars;
        printf("%.*s ", symbols[i].size, symbols[i].at);
        svg_gray(s, x, y, w, 24, i == merged ? 0.4 : 0.03);
        svg_text(s, x + w / 2, y + 17, "middle", 14, "%.*s", symbols[i].size, symbols[i].at);
    }
    printf("   score %.0f\n", score);
    svg_text(s, x + 12, y + 17, "start", 13, "score %.0f", score);
}

/* Writes the ids of the words (bytes, where there is no piece); returns how many. Shows each merge in a picture. */
static int encode(const char *words, int32_t *ids, svg *picture) {
    int count = 0, step = 0, byte_0 = find((span){"<0x00>", 6, 6}, ML_PIECE_BYTE, NULL);
    float score = 0;
    cut(words);
    for (int at; (at = best_pair(&score)) >= 0; step++) {
        symbols[at] = joined(symbols + at);
        memmove(symbols + at + 1, symbols + at + 2, (size_t)(--n - at - 1) * sizeof *symbols);
        if (picture) show(picture, step, at, (double)score);
    }
    for (int i = 0; i < n; i++) {
        int id = find(symbols[i], ML_PIECE_NORMAL, NULL), rest = id < 0 ? symbols[i].size : 0;
        if (id >= 0) ids[count++] = id;
        for (const char *c = symbols[i].at; rest > 0; rest--) ids[count++] = byte_0 + (*c++ & 0xff);
    }
    return count;
}

/* Checks that the words have `wanted` ids, the same as the header's. */
static void compare(const char *words, int wanted, svg *picture) {
    static int32_t ids[LONGEST], work[10 * LONGEST];
    ml_encode_desc desc = {words, strlen(words), 0, work, sizeof work};
    ml_tokens tokens = {NULL, 0};
    int count = encode(words, ids, picture), ok = !ml_tokenizer_encode(vocabulary, &desc, &tokens, NULL);
    printf("\"%s\"\n", words), check_near(count, wanted, 0, "number of ids");
    check(ok && tokens.n == count && !memcmp(ids, tokens.ids, 4 * (size_t)count), "ids as in the header");
}

int main(int argc, char **argv) {
    float score = 0;
    svg s;
    if (ml_tokenizer_load("examples/models/stories.gguf", NULL, &vocabulary, NULL))
        return !check(0, "the model's file can be read");
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/02.svg", 640, 340, "BPE: one merge per line");
    puts("One merge per line:");
    compare("a long beard", 4, &s);
    svg_end(&s);
    int id = find((span){MARK "bear", 7, 5}, ML_PIECE_NORMAL, &score), last = symbols[n - 1].chars;
    check(id >= 0 && last == 3, "no bear (score %.0f) in beard: its ar joins the d first", (double)score);
    puts("A bear alone; a letter that is in no piece, as two bytes; two spaces, and a tie (zz-z):");
    compare("bear", 1, NULL), compare("na\xc3\xafve", 5, NULL), compare("a  buzzz", 5, NULL);
    ml_tokenizer_free(vocabulary);
    return lesson_end();
}
/* EXERCISES
   1. Predict the pieces of "unhappiness", which is in no story: then find the first merge you did not expect.
   2. Leave out the mark in front of the text in cut(). Which checks fail, and why would a model mind?
   3. make exercise-02: learn merges from the words that the paper counts. */
