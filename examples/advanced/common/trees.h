/* Sentences as trees of labeled phrases, as the Stanford Sentiment Treebank writes them (Socher et al. 2013,
   "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank"), one a line:
       (3 (2 It) (4 (2 's) (4 good)))
   A node is a label and either one word or nodes. Brackets in a word are written -LRB- and -RRB-. */
#ifndef TREES_H
#define TREES_H

#include "../../run_llama/reviews.h"

typedef struct phrase {
    int begin, end; /* words [begin, end) of the sentence */
    int label;
    float weight; /* how much it counts in a loss; 1 after reading */
} phrase;

typedef struct trees {
    reviews set; /* one row for each sentence: words with a space between, the label of the whole */
    phrase *phrases;
    int *
        first; /* (set.n + 1): phrases first[i] .. first[i + 1] - 1 are those of row i, the whole sentence last */
    size_t n_phrases, phrases_capacity, first_capacity;
} trees;

/* 0 after saying what is wrong, and in which line. What it filled so far is freed as usual. */
int trees_read(trees *all, const char *path, int n_labels);
/* Sets the phrases' weights. What has fewer than min_words words and is no sentence: 0. A text that occurs n times,
   by the first letter of duplicates: once (1, then 0), share (1/n each) or all (1 each). */
int trees_weigh(trees *all, int min_words, char duplicates);
int trees_rows(const trees *all, reviews *set); /* what weighs more than 0, as sentences */
/* The text of a phrase of a sentence, `n` bytes. */
const char *trees_phrase(const char *sentence, const phrase *p, size_t *n);
/* ends (n_words + 1): how many of a row's tokens there are up to each word. The first word has bos, the last all that
   is left, so that the whole sentence is the whole row. */
int trees_ends(const review *row, const ml_tokenizer *tokenizer, int *ends, int n_words);
void trees_free(trees *all);

#endif
