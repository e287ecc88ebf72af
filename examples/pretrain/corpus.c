#include "corpus.h"
#include "../common/file.h"

int text_read(const char *path, bpe_text *text) {
    char *data = text_file_read(path, &text->size);
    if (!data) return 0;
    if (!text->size) return free(data), complain("%s: is empty", path);
    text->data = data;
    return 1;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* Where the next line that is the separator, beside white space of either, begins, or the end. *next: what follows. */
static const char *find_separator(const char *p, const char *end, const char *separator, const char **next) {
    while (is_space(*separator)) separator++;
    size_t n = strlen(separator);
    while (n && is_space(separator[n - 1])) n--;
    while (p < end) {
        const char *line_end = (const char *)memchr(p, '\n', (size_t)(end - p));
        size_t length = line_end ? (size_t)(line_end - p) : (size_t)(end - p);
        const char *text = p;
        *next = line_end ? line_end + 1 : end;
        while (length && is_space(text[length - 1])) length--;
        while (length && is_space(*text)) text++, length--;
        if (n && length == n && memcmp(text, separator, n) == 0) return p;
        p = *next;
    }
    *next = end;
    return end;
}

static int append_text(corpus *c, const ml_tokens *tokens) {
    size_t n = (size_t)tokens->n;
    int32_t *room = (int32_t *)grow(c->ids, c->n + n, &c->capacity, sizeof *room);
    if (room) c->ids = room;
    size_t *starts = (size_t *)grow(c->starts, c->n_texts + 1, &c->starts_capacity, sizeof *starts);
    if (starts) c->starts = starts;
    if (!room || !starts) return no_memory("tokens");
    if (n) memcpy(room + c->n, tokens->ids, n * sizeof *room);
    starts[c->n_texts++] = c->n;
    c->n += n;
    return 1;
}

/* Encodes one text without the space around it. */
static int add_text(corpus *to, const ml_tokenizer *tokenizer, const char *text, const char *end) {
    while (text < end && is_space(*text)) text++;
    while (text < end && is_space(end[-1])) end--;
    if (text == end) return 1;
    size_t n = (size_t)(end - text);
    ml_encode_desc desc = {text, n, ML_ADD_SPECIAL, malloc(ml_tokenizer_encode_size(n)),
                           ml_tokenizer_encode_size(n)};
    ml_tokens tokens;
    ml_error error;
    if (!desc.work) return no_memory("a text");
    int ok =
        succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error) && append_text(to, &tokens);
    if (ok) to->n_bytes += n;
    free(desc.work);
    return ok;
}

int corpus_add(corpus *to, corpus *kept, const ml_tokenizer *tokenizer, const bpe_text *file,
               const char *separator, double share) {
    const char *p = file->data, *end = p + file->size, *next = NULL;
    if (share > 0 && find_separator(p, end, separator, &next) == end) {
        const char *cut = p + (size_t)((double)file->size * (1 - share));
        while (cut > p && ((unsigned char)*cut & 0xC0) == 0x80) cut--; /* not within a character */
        return add_text(to, tokenizer, p, cut) && add_text(kept, tokenizer, cut, end);
    }
    while (p < end) {
        const char *text_end = find_separator(p, end, separator, &next);
        int is_kept = (kept->due += share) >= 0.5;
        if (!add_text(is_kept ? kept : to, tokenizer, p, text_end)) return 0;
        kept->due -= is_kept;
        p = next;
    }
    return 1;
}

void corpus_free(corpus *c) {
    free(c->ids);
    free(c->starts);
}
