/* Texts, and the token ids that a model learns from. Functions that can fail return 0 after saying why. */
#ifndef CORPUS_H
#define CORPUS_H

#include "minillama.h"
#include "../../tools/bpe/bpe.h"

/* Token ids of many texts, one after the other, each with the bos and eos that the tokenizer's file asks for. */
typedef struct corpus {
    int32_t *ids;
    size_t n, capacity;
    size_t *starts; /* (n_texts) where each begins */
    size_t n_texts, starts_capacity;
    size_t n_bytes; /* of the texts */
    double due;     /* kept back: how much of a text is missing from its share, in all files so far */
} corpus;

/* Reads a file or pipe, once, which must not be empty, into new memory; the caller frees text->data. A byte order mark
   is skipped, and lines end in LF. */
int text_read(const char *path, bpe_text *text);

/* Encodes all texts of a file, which are divided by lines that are equal to `separator`, beside white space ("": there
   are none). A share of the texts goes into `kept` instead: every k-th, k = 1 / share, or the end of a file that is one single text. */
int corpus_add(corpus *to, corpus *kept, const ml_tokenizer *tokenizer, const bpe_text *file,
               const char *separator, double share);

void corpus_free(corpus *c);

#endif
