/* Exercise 2: learning the merges, on the four words that Sennrich, Haddow & Birch 2016 count in algorithm 1. */
#include "examples/lessons/lesson.h"

enum { SYMBOLS = 12, ROOM = 12, WORDS = 4 };
typedef struct word {
    char symbols[SYMBOLS][ROOM]; /* (n) "l", "o", "w", and "." at the end of a word */
    int n, count;                /* symbols; how often the word occurs in the text */
} word;

/* How often `left` is directly followed by `right` in the text, which has word i words[i].count times. */
static int count_pair(const word *words, const char *left, const char *right) {
    int count = 0;
    /* your turn: over the words, and in each over its pairs of neighbors; strcmp(a, b) is 0 if a and b are equal */
    for (int i = 0; i < WORDS; i++)
        for (int k = 0; k + 1 < words[i].n; k++)
            if (!strcmp(words[i].symbols[k], left) && !strcmp(words[i].symbols[k + 1], right))
                count += words[i].count;
    /* end */
    return count;
}

/* Replaces every `left` that is followed by `right` by both in one, from the left to the right: "a a a" is "aa a". */
static void merge_pair(word *w, const char *left, const char *right) {
    int n = 0; /* symbols that are done */
    /* your turn: copy the symbols forward, to place n, n + 1, ...; append with strcat; at the end set w->n to n */
    for (int k = 0; k < w->n; k++, n++) {
        int both = k + 1 < w->n && !strcmp(w->symbols[k], left) && !strcmp(w->symbols[k + 1], right);
        memmove(w->symbols[n], w->symbols[k], ROOM);
        if (both) strcat(w->symbols[n], w->symbols[++k]);
    }
    w->n = n;
    /* end */
}

static word spell(const char *text, int count) {
    word w = {{{0}}, (int)strlen(text), count};
    for (int i = 0; i < w.n; i++) w.symbols[i][0] = text[i];
    return w;
}

/* The symbols with spaces between. */
static const char *shown(const word *w, char *to, size_t size) {
    to[0] = 0;
    for (int i = 0; i < w->n && strlen(to) + ROOM + 2 < size; i++) {
        if (i > 0) strcat(to, " ");
        strcat(to, w->symbols[i]);
    }
    return to;
}

static void check_merge(const char *text, const char *left, const char *right, const char *wanted) {
    char got[200];
    word w = spell(text, 1);
    merge_pair(&w, left, right);
    shown(&w, got, sizeof got);
    check(!strcmp(got, wanted), "%s with %s and %s merged: got \"%s\", wanted \"%s\"", text, left, right, got,
          wanted);
}

/* The most frequent pair of neighbors, the first one found on a tie; its count. */
static int best_pair(const word *words, char *left, char *right) {
    int most = 0;
    for (int i = 0; i < WORDS; i++)
        for (int k = 0; k + 1 < words[i].n; k++) {
            int count = count_pair(words, words[i].symbols[k], words[i].symbols[k + 1]);
            if (count <= most) continue;
            most = count;
            strcpy(left, words[i].symbols[k]), strcpy(right, words[i].symbols[k + 1]);
        }
    return most;
}

int main(void) {
    /* By hand: es, st and t. are in newest (6) and widest (3), lo and ow in low (5) and lower (2), ... */
    static const char *const wanted[] = {"es", "est", "est.", "lo", "low", "ne", "new", "newest.", "low."};
    static const int counts[] = {9, 9, 9, 7, 7, 6, 6, 6, 5};
    word words[WORDS] = {spell("low.", 5), spell("lower.", 2), spell("newest.", 6), spell("widest.", 3)};
    check_near(count_pair(words, "e", "s"), 9, 0, "e s in newest (6 times) and widest (3 times)");
    check_near(count_pair(words, "w", "e"), 8, 0, "w e in lower (2 times) and newest (6 times)");
    check_near(count_pair(words, "s", "e"), 0, 0, "s e in none");
    check_merge("newest.", "e", "s", "n e w es t .");
    check_merge("aaa", "a", "a", "aa a");
    check_merge("banana", "a", "n", "b an an a");
    puts("The merges in the order in which they are learned:");
    for (int step = 0; step < 9; step++) {
        char left[ROOM] = "", right[ROOM] = "", both[2 * ROOM];
        int most = best_pair(words, left, right);
        snprintf(both, sizeof both, "%s%s", left, right);
        check(most == counts[step] && !strcmp(both, wanted[step]),
              "merge %d: got \"%s\" (%d times), wanted \"%s\" (%d)", step, both, most, wanted[step],
              counts[step]);
        for (int i = 0; i < WORDS; i++) merge_pair(&words[i], left, right);
    }
    return lesson_end();
}
