/* Labeled sentences in the assignment's format: one per line, "label ||| sentence"; and the names of the labels, a
   JSON list. Read as the assignment's Python reads them: a line ends in LF, CR LF or CR, white space around label and
   sentence is dropped (of any kind that Unicode has), a sentence may be empty. More than Python, a byte order mark and
   blank lines are skipped, a sentence may contain " ||| ", and sentences are kept byte for byte: invalid UTF-8 is
   encoded as bytes. A label of -1 means that it is unknown. */
#ifndef REVIEWS_H
#define REVIEWS_H

#include "minillama.h"

enum { REVIEWS_MAX_LABELS = 64 };

typedef struct review {
    int label; /* -1: not known */
    const char *sentence;
    size_t n_kept; /* bytes of the sentence that reviews_encode kept */
    int32_t *ids;
    int n_ids;
} review;

typedef struct reviews {
    const char *path;
    char *text; /* the file, its lines zero-terminated */
    review *rows;
    int n, n_cut; /* n_cut: how many sentences were cut to fit */
    size_t capacity;
} reviews;

typedef struct label_names {
    char *text; /* the file, its strings decoded */
    const char *name[REVIEWS_MAX_LABELS];
    int n;
} label_names;

/* These return 0 after saying what is wrong, and where. What they filled so far is freed as usual. */
int label_names_read(label_names *names, const char *path);
int reviews_read(reviews *all, const char *path, int n_labels);

/* Whether any label is known. On a dev set without, the last weights are as good as any. */
int reviews_have_labels(const reviews *all);

/* Whether there is a label to learn; 0 after saying that there is none. */
int reviews_teach(const reviews *all);

/* New memory with a label for each row of the set, from a file of one label per line in the same order (-1: unknown);
   NULL after saying why. */
int *reviews_read_gold(const reviews *set, const char *path, int n_labels);

/* bos and the tokens of every row, at least one and cut to at most `most`. `suffix` (may be "") is appended to each
   sentence before it is encoded; if that is too long, the end of the sentence is cut off, and not the suffix. */
int reviews_encode(reviews *all, const ml_tokenizer *tokenizer, const char *suffix, int most);

/* The id that fills up rows. A tokenizer without one gives its unknown piece, as SentencePiece does for a piece that
   it does not have, or else id 0. */
int32_t reviews_padding(const ml_tokenizer *tokenizer);

/* How many ids n tokens of text take: with bos, which --max_sentence_len does not count, as in the assignment. */
int reviews_length(const ml_tokenizer *tokenizer, int n);

void reviews_free(reviews *all);

#endif
