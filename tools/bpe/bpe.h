/* Learns a SentencePiece BPE vocabulary (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
   Units"; Kudo & Richardson 2018, "SentencePiece") from text, and writes it as a tokenizer.model that minillama.h and
   SentencePiece read. Compile bpe.c along with your program; it needs the C standard library only.

       bpe_text text = {data, size};
       bpe_desc desc = {0};
       desc.vocab_size = 1024;
       bpe_vocabulary *v = bpe_train(&desc, &text, 1, error, sizeof error);
       unsigned char *model = v ? bpe_write(v, &n, error, sizeof error) : NULL;
       ... ml_tokenizer_load_memory(model, n, NULL, &tokenizer, &why) ...
       free(model);
       bpe_free(v);

   The ids are Llama's: 0 <unk>, 1 <s>, 2 </s>, 3 to 258 the bytes, then the merges in the order in which they were
   learned, then single characters, the most frequent first. Scores fall by one from piece to piece.

   What a piece may hold:
     - A line is a sentence; the line feed between lines is in no piece except its byte piece. Empty lines are
       ignored.
     - Each line gets a leading space. A space begins a word: it can only be the first character of a piece. U+2581,
       which SentencePiece writes for a space, counts as a space.
     - Letters of one script only (kana count as Han), or none: letters never join with punctuation or symbols, which
       join with each other. Combining marks belong to the group of the character before them.
     - The digits 0 to 9 never join with anything, not even with the leading space.
     - At most 16 characters, unless the description says otherwise.
   Everything else is encoded as bytes: characters so rare that the coverage is reached without them, control
   characters (below U+0020, and U+007F), and invalid UTF-8. Words of more than BPE_MAX_WORD characters are learned
   from in parts of that length.

   Each merge takes the pair that can be joined most often (pairs that overlap, as in "aaa", count once). On a tie,
   the piece with fewer characters wins, then the one whose bytes compare lower, so the same texts give the same
   vocabulary on every machine. SentencePiece's spm_train does the same with --model_type=bpe --byte_fallback
   --split_digits --normalization_rule_name=identity --remove_extra_whitespaces=false, and its vocabularies are equal
   except where it approximates: it updates its list of frequent pairs only occasionally, which affects rare
   pairs, and it counts runs of one character differently. After each merge, every word is cut exactly as the
   tokenizer that is learned would cut it.

   Everything is in memory. The caller's texts are not copied, and must stay valid while bpe_train runs. */
#ifndef BPE_H
#define BPE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bpe_text {
    const char *data;
    size_t size;
} bpe_text;

typedef struct bpe_desc {
    int vocab_size;            /* pieces, exactly; at most BPE_MAX_PIECES */
    double character_coverage; /* the part of all characters in the text that get a piece. Default: 0.9995 */
    int max_piece_chars; /* characters of the longest piece, the space included; at most BPE_MAX_WORD. Default: 16 */
} bpe_desc;

enum { BPE_NORMAL = 1, BPE_UNKNOWN = 2, BPE_CONTROL = 3, BPE_BYTE = 6 }; /* numbered as in tokenizer.model */

typedef struct bpe_piece {
    const char *text; /* as SentencePiece writes it: spaces as U+2581; not zero-terminated */
    int size, kind;
    float score;
} bpe_piece;

typedef struct bpe_vocabulary {
    bpe_desc desc; /* with the defaults filled in */
    bpe_piece *pieces;
    int n_pieces, n_merges, n_chars; /* 259 + n_merges + n_chars make n_pieces */
    char *texts;
} bpe_vocabulary;

#define BPE_FIRST 259          /* the id of the first merge */
#define BPE_MAX_PIECES 1048576 /* what minillama.h reads */
#define BPE_MAX_WORD 64        /* characters; the cost of a merge in a word grows with its length */

/* Learns desc->vocab_size pieces from the texts together. NULL on failure, with the reason as a sentence in
   error: wrong settings, too few pieces for the characters, more pieces than the texts can fill, no memory. */
bpe_vocabulary *bpe_train(const bpe_desc *desc, const bpe_text *texts, size_t n_texts, char *error,
                          size_t error_size);

/* The vocabulary as a tokenizer.model, *size bytes; the caller frees them. NULL when out of memory. */
unsigned char *bpe_write(const bpe_vocabulary *vocabulary, size_t *size, char *error, size_t error_size);

void bpe_free(bpe_vocabulary *vocabulary); /* NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
