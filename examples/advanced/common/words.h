/* What the two yardsticks share, which have words in place of a model's tokens. */
#ifndef WORDS_H
#define WORDS_H

#include <string.h>
#include "tuning.h"
#include "../../common/report.h"

/* The next word at or after *at, of n bytes; *at moves to its end. n 0: there is none. */
static inline const char *next_word(const char **at, size_t *n) {
    const char *word = *at + strspn(*at, " \t");
    *n = strcspn(word, " \t");
    *at = word + *n;
    return word;
}

/* FNV-1a (Fowler, Noll & Vo), never 0. */
static inline uint64_t word_hash(const char *word, size_t n) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)word[i]) * 1099511628211u;
    hash ^= hash >> 32;
    return hash ? hash : 1;
}

/* Room for the ids of a row: two for each of its words, and one. 0 after saying why. */
static inline int make_row(review *row) {
    free(row->ids);
    row->n_ids = 0;
    row->ids = (int32_t *)malloc((strlen(row->sentence) + 3) * sizeof *row->ids);
    return row->ids || no_memory("the words");
}

#endif
