/* train_tokenizer: learns a SentencePiece BPE tokenizer from text files and writes a tokenizer.model.
   cc -O2 -DMINILLAMA_IMPLEMENTATION -I.. train_tokenizer.c bpe/bpe.c -o train_tokenizer -lm */
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "bpe/bpe.h"

enum { MAX_TEXTS = 256, MAX_LINE = 65536 };

static const char usage[] = "usage: train_tokenizer --vocab_size N --output FILE.model TEXT...\n";

typedef struct settings {
    bpe_desc desc;
    float coverage;
    const char *output, *paths[MAX_TEXTS];
    int help, n_paths;
} settings;

typedef struct totals {
    uint64_t bytes, chars, tokens;
} totals;

/* Encodes a text line by line, as it was learned from, and counts. Each line feed is a token. Lines longer than
   MAX_LINE bytes are cut, which may add a few tokens. */
static int count_tokens(const ml_tokenizer *tokenizer, const bpe_text *text, totals *sum) {
    const char *p = text->data, *end = p + text->size;
    ml_encode_desc desc = {NULL, 0, 0, malloc(ml_tokenizer_encode_size(MAX_LINE)),
                           ml_tokenizer_encode_size(MAX_LINE)};
    ml_error error;
    int ok = desc.work || no_memory("a line");
    while (p < end && ok) {
        ml_tokens tokens = {NULL, 0};
        size_t most = (size_t)(end - p) < MAX_LINE ? (size_t)(end - p) : MAX_LINE;
        const char *feed = (const char *)memchr(p, '\n', most);
        desc.text = p;
        desc.n_bytes = feed ? (size_t)(feed - p) : most;
        if (desc.n_bytes) ok = succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error);
        size_t n = desc.n_bytes + (feed != NULL);
        sum->tokens += (uint64_t)tokens.n + (feed != NULL);
        sum->bytes += n;
        for (size_t i = 0; i < n; i++) sum->chars += ((unsigned char)p[i] & 0xC0) != 0x80;
        p += n;
    }
    free(desc.work);
    return ok;
}

/* Reads the file's bytes back as a tokenizer, and prints how it encodes the texts. */
static int report(const bpe_vocabulary *v, const unsigned char *model, size_t size, const bpe_text *texts,
                  size_t n_texts) {
    ml_tokenizer *tokenizer;
    ml_error error;
    totals sum = {0, 0, 0};
    int ok = 1;
    if (!succeeded(ml_tokenizer_load_memory(model, size, NULL, &tokenizer, &error), &error)) return 0;
    for (size_t i = 0; i < n_texts && ok; i++) ok = count_tokens(tokenizer, &texts[i], &sum);
    ml_tokenizer_free(tokenizer);
    if (!ok) return 0;
    printf("%d pieces: <unk>, <s>, </s>, 256 bytes, %d merges, %d characters\n", v->n_pieces, v->n_merges,
           v->n_chars);
    printf("%lu bytes are %lu tokens: %.3f characters per token, %.3f bytes per token\n",
           (unsigned long)sum.bytes, (unsigned long)sum.tokens, (double)sum.chars / (double)sum.tokens,
           (double)sum.bytes / (double)sum.tokens);
    return 1;
}

/* Zeros in the description would be bpe_train's defaults. */
static int check_settings(settings *s) {
    if (!isnan(s->coverage)) {
        if (!(s->coverage > 0 && s->coverage <= 1))
            return complain("--character-coverage is above 0 and at most 1, not %g", (double)s->coverage);
        s->desc.character_coverage = (double)s->coverage;
    }
    return (s->desc.max_piece_chars >= 1 && s->desc.max_piece_chars <= BPE_MAX_WORD) ||
           complain("--max-piece-chars is 1 to %d, not %d", BPE_MAX_WORD, s->desc.max_piece_chars);
}

/* 0, or the exit status after saying what is wrong. */
static int parse(settings *s, int argc, char **argv) {
    const option options[] = {
        {"--vocab-size", OPTION_INT, &s->desc.vocab_size, "pieces, exactly; a little above 259 at least"},
        {"--output", OPTION_TEXT, &s->output, "the tokenizer.model to write"},
        {"--character-coverage", OPTION_FLOAT, &s->coverage,
         "share of all characters that get a piece; rare ones become bytes (0.9995)"},
        {"--max-piece-chars", OPTION_INT, &s->desc.max_piece_chars, "characters of the longest piece (16)"},
        {"--help", OPTION_FLAG, &s->help, "this list"},
    };
    const int n = (int)(sizeof options / sizeof options[0]);
    if (!options_read(argc, argv, options, n, s->paths, MAX_TEXTS)) return 2;
    if (s->help) {
        fputs(usage, stdout);
        options_print(stdout, options, n);
        return 0;
    }
    while (s->n_paths < MAX_TEXTS && s->paths[s->n_paths]) s->n_paths++;
    if (s->desc.vocab_size <= 0)
        return complain("--vocab_size N, above 259, is needed"), fputs(usage, stderr), 2;
    if (!s->output || !*s->output) return complain("--output FILE is needed"), fputs(usage, stderr), 2;
    if (!s->n_paths) return complain("no TEXT is given"), fputs(usage, stderr), 2;
    return check_settings(s) ? 0 : 2;
}

static int train(const settings *s, const bpe_text *texts, size_t n_texts) {
    char error[256];
    size_t size;
    bpe_vocabulary *v = bpe_train(&s->desc, texts, n_texts, error, sizeof error);
    unsigned char *model = v ? bpe_write(v, &size, error, sizeof error) : NULL;
    const char *hint = strstr(error, "pieces is too small")
                           ? " (a lower --character-coverage leaves out rare characters)"
                           : "";
    int ok = model ? file_write(s->output, model, size) && report(v, model, size, texts, n_texts)
                   : complain("%s%s", error, hint);
    free(model);
    bpe_free(v);
    return ok;
}

static int files_ready(const settings *s) {
    const used_file output = {"--output", s->output};
    used_file inputs[MAX_TEXTS];
    for (int i = 0; i < s->n_paths; i++) inputs[i].option = "a text", inputs[i].path = s->paths[i];
    return outputs_ready(&output, 1, inputs, s->n_paths);
}

int main(int argc, char **argv) {
    static settings s = {.desc = {.max_piece_chars = 16}, .coverage = NAN};
    bpe_text texts[MAX_TEXTS];
    int n_read = 0, status = parse(&s, argc, argv);
    if (status || s.help) return status;
    if (!files_ready(&s)) return 1;
    for (; n_read < s.n_paths; n_read++) {
        char *data = text_file_read(s.paths[n_read], &texts[n_read].size);
        if (!data) break;
        texts[n_read].data = data;
    }
    int ok = n_read == s.n_paths && train(&s, texts, (size_t)n_read);
    while (n_read > 0) free((char *)(uintptr_t)texts[--n_read].data);
    return !(ok && output_written());
}
