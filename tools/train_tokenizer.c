/* train_tokenizer: learns a SentencePiece BPE tokenizer from text files and writes a tokenizer.model.
   cc -O2 -std=c99 -I.. train_tokenizer.c -o train_tokenizer -lm */
#if !defined(_POSIX_C_SOURCE) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L /* fsync */
#endif
#include <unistd.h>
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "../examples/options.h"
#include "bpe.h"

enum { MAX_TEXTS = 256, MAX_LINE = 65536 };

static const char usage[] = "usage: train_tokenizer --vocab_size N --output FILE.model TEXT...\n";

typedef struct settings {
    bpe_desc desc;
    float coverage;
    const char *output;
    int help;
} settings;

/* A whole file in memory, freed by the caller; 0, having said why, when it cannot be read. */
static int read_file(const char *path, bpe_text *text) {
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    size_t size = 0, capacity = 0;
    if (!file) return fprintf(stderr, "train_tokenizer: %s: %s\n", path, strerror(errno)), 0;
    for (;;) {
        if (size == capacity) {
            char *room = capacity > SIZE_MAX / 2 ? NULL : (char *)realloc(data, capacity * 2 + 65536);
            if (!room) break;
            data = room;
            capacity = capacity * 2 + 65536;
        }
        errno = 0;
        size += fread(data + size, 1, capacity - size, file);
        if (size == capacity) continue;
        if (ferror(file)) break;
        fclose(file);
        text->data = data;
        text->size = size;
        return 1;
    }
    fprintf(stderr, "train_tokenizer: %s: %s\n", path, ferror(file) ? strerror(errno) : "not enough memory");
    fclose(file);
    free(data);
    return 0;
}

/* Writes PATH.tmp, syncs, then renames, so that what was there stays whole until the new file is. */
static int write_file(const char *path, const unsigned char *data, size_t size) {
    size_t n = strlen(path);
    char *temporary = (char *)malloc(n + sizeof ".tmp");
    FILE *file;
    int why = 0;
    if (!temporary) return fprintf(stderr, "train_tokenizer: not enough memory\n"), 0;
    memcpy(temporary, path, n);
    memcpy(temporary + n, ".tmp", sizeof ".tmp");
    errno = 0;
    file = fopen(temporary, "wb");
    if (!file) why = errno;
    if (file && (fwrite(data, 1, size, file) != size || fflush(file) != 0)) why = errno ? errno : EIO;
    /* some file systems cannot sync */
    if (file && !why && fsync(fileno(file)) != 0 && errno != EINVAL && errno != ENOSYS) why = errno;
    if (file && fclose(file) != 0 && !why) why = errno;
    if (!why && rename(temporary, path) != 0) why = errno;
    if (why) {
        fprintf(stderr, "train_tokenizer: %s: %s\n", path, strerror(why));
        if (file) remove(temporary);
    }
    free(temporary);
    return !why;
}

typedef struct totals {
    uint64_t bytes, chars, tokens;
} totals;

/* Encodes a text line by line, as it was learnt from, and counts. Line feeds are a token each. Lines beyond
   MAX_LINE bytes are cut, which may add a few tokens. */
static int count_tokens(const ml_tokenizer *tokenizer, const bpe_text *text, totals *sum, ml_error *error) {
    const char *p = text->data, *end = p + text->size;
    const size_t work_size = ml_encode_size(MAX_LINE);
    void *work = malloc(work_size);
    if (!work) return snprintf(error->text, sizeof error->text, "not enough memory to count tokens"), 0;
    while (p < end) {
        size_t i, n_ids = 0, most = (size_t)(end - p) < MAX_LINE ? (size_t)(end - p) : MAX_LINE;
        const char *feed = (const char *)memchr(p, '\n', most);
        size_t n = feed ? (size_t)(feed - p) : most;
        const int32_t *ids;
        if (n && ml_encode(tokenizer, p, n, 0, work, work_size, &ids, &n_ids, error)) return free(work), 0;
        n += feed != NULL;
        sum->tokens += n_ids + (feed != NULL);
        sum->bytes += n;
        for (i = 0; i < n; i++) sum->chars += ((unsigned char)p[i] & 0xC0) != 0x80;
        p += n;
    }
    free(work);
    return 1;
}

/* Reads the file's bytes back as a tokenizer, and says what it does to the texts. */
static int report(const bpe_vocabulary *v, const unsigned char *model, size_t size, const bpe_text *texts,
                  size_t n_texts) {
    ml_tokenizer *tokenizer;
    ml_error error;
    totals sum = {0, 0, 0};
    size_t i;
    int ok = 1;
    if (ml_tokenizer_load_memory(model, size, NULL, &tokenizer, &error))
        return fprintf(stderr, "train_tokenizer: %s\n", error.text), 0;
    for (i = 0; i < n_texts && ok; i++) ok = count_tokens(tokenizer, &texts[i], &sum, &error);
    ml_tokenizer_free(tokenizer);
    if (!ok) return fprintf(stderr, "train_tokenizer: %s\n", error.text), 0;
    printf("%d pieces: <unk>, <s>, </s>, 256 bytes, %d merges, %d characters\n", v->n_pieces, v->n_merges,
           v->n_chars);
    printf("%lu bytes are %lu tokens: %.3f characters per token, %.3f bytes per token\n",
           (unsigned long)sum.bytes, (unsigned long)sum.tokens, (double)sum.chars / (double)sum.tokens,
           (double)sum.bytes / (double)sum.tokens);
    return 1;
}

/* 0, or the exit status after having said what is wrong. */
static int parse(settings *s, int argc, char **argv, const char **paths, int *n_paths) {
    const option options[] = {
        {"--vocab-size", OPTION_INT, &s->desc.vocab_size, "pieces, exactly; the least is a little above 259"},
        {"--output", OPTION_TEXT, &s->output, "the tokenizer.model to write"},
        {"--character-coverage", OPTION_FLOAT, &s->coverage,
         "the part of all characters that get a piece, rare ones being bytes (0.9995)"},
        {"--max-piece-chars", OPTION_INT, &s->desc.max_piece_chars, "characters in a piece at most (16)"},
        {"--help", OPTION_FLAG, &s->help, "these lines"},
    };
    const int n = (int)(sizeof options / sizeof options[0]);
    if (!options_read(argc, argv, options, n, paths, MAX_TEXTS)) return 2;
    if (s->help) {
        fputs(usage, stdout);
        options_print(stdout, options, n);
        return 0;
    }
    while (*n_paths < MAX_TEXTS && paths[*n_paths]) ++*n_paths;
    if (s->desc.vocab_size <= 0)
        return fprintf(stderr, "train_tokenizer: --vocab_size N, above 259, is needed\n%s", usage), 2;
    if (!s->output) return fprintf(stderr, "train_tokenizer: --output FILE is needed\n%s", usage), 2;
    if (!*n_paths) return fprintf(stderr, "train_tokenizer: no TEXT is given\n%s", usage), 2;
    s->desc.character_coverage = (double)s->coverage;
    return 0;
}

static int train(const settings *s, const bpe_text *texts, size_t n_texts) {
    char error[256];
    size_t size;
    unsigned char *model;
    bpe_vocabulary *v = bpe_train(&s->desc, texts, n_texts, error, sizeof error);
    int ok = 0;
    model = v ? bpe_write(v, &size, error, sizeof error) : NULL;
    if (model)
        ok = write_file(s->output, model, size) && report(v, model, size, texts, n_texts);
    else
        fprintf(stderr, "train_tokenizer: %s\n", error);
    free(model);
    bpe_free(v);
    return !ok;
}

int main(int argc, char **argv) {
    const char *paths[MAX_TEXTS] = {NULL};
    bpe_text texts[MAX_TEXTS];
    settings s;
    int i, n_paths = 0, n_read = 0, status;
    memset(&s, 0, sizeof s);
    status = parse(&s, argc, argv, paths, &n_paths);
    if (status || s.help) return status;
    while (n_read < n_paths && read_file(paths[n_read], &texts[n_read])) n_read++;
    status = n_read == n_paths ? train(&s, texts, (size_t)n_paths) : 1;
    for (i = 0; i < n_read; i++) free((char *)(uintptr_t)texts[i].data);
    return status;
}
