#include "reviews.h"
#include "../common/file.h"

/* A text file; one that contains a zero byte is not one. */
static char *read_lines(const char *path) {
    size_t n;
    char *text = file_read(path, &n);
    if (!text || strlen(text) == n) return text;
    complain("%s: it contains a byte of value 0, so it is not a text file", path);
    free(text);
    return NULL;
}

/* ["awful", "bad"]: strings without escapes. */
int label_names_read(label_names *names, const char *path) {
    char *p = names->text = read_lines(path);
    names->n = 0;
    if (!p) return 0;
    p += strspn(p, " \t\r\n");
    if (*p++ != '[') return complain("%s: not a JSON list of label names", path);
    for (;;) {
        p += strspn(p, " \t\r\n,");
        if (*p == ']') break;
        char *end = *p == '"' ? strchr(p + 1, '"') : NULL;
        if (!end || end == p + 1 || names->n == REVIEWS_MAX_LABELS)
            return complain("%s: label name %d is not a string, or there are more than %d", path, names->n,
                            REVIEWS_MAX_LABELS);
        names->name[names->n++] = p + 1;
        *end = 0;
        p = end + 1;
    }
    return names->n >= 2 || complain("%s: fewer than two labels", path);
}

/* One line into a row. */
static int read_row(const char *path, review *row, char *line, int number, int n_labels) {
    char *bar = strstr(line, " ||| "), *end;
    if (!bar) return complain("%s:%d: no \" ||| \" between label and sentence", path, number);
    *bar = 0;
    long label = strtol(line, &end, 10);
    if (end == line || *end || label < -1 || label >= n_labels)
        return complain("%s:%d: label \"%.20s\" is not 0 to %d (or -1, unknown)", path, number, line,
                        n_labels - 1);
    row->label = (int)label;
    row->sentence = bar + 5 + strspn(bar + 5, " \t");
    for (end = bar + strlen(bar + 1) + 1; end > row->sentence && (end[-1] == ' ' || end[-1] == '\t');)
        *--end = 0;
    return *row->sentence || complain("%s:%d: the sentence is empty", path, number);
}

/* Reads all lines; empty ones are skipped. */
int reviews_read(reviews *all, const char *path, int n_labels) {
    int number = 0;
    memset(all, 0, sizeof *all);
    all->path = path;
    all->text = read_lines(path);
    if (!all->text) return 0;
    for (char *line = all->text, *next; line && *line; line = next) {
        number++;
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        size_t length = strlen(line);
        if (length && line[length - 1] == '\r') line[length - 1] = 0;
        if (!*line) continue;
        review *room = (review *)grow(all->rows, (size_t)all->n + 1, &all->capacity, sizeof *room);
        if (!room) return no_memory(path);
        all->rows = room;
        memset(&room[all->n], 0, sizeof *room);
        if (!read_row(path, &room[all->n], line, number, n_labels)) return 0;
        all->n++;
    }
    return all->n > 0 || complain("%s: it has no lines", path);
}

/* Encodes the sentence and the suffix, without the end of the sentence if both do not fit. `room` has space for both
   as text, and for their ids. */
static int encode_row(review *row, const ml_tokenizer *tokenizer, const char *suffix, int most,
                      const ml_encode_desc *room, int *is_cut) {
    size_t length = strlen(row->sentence), suffix_size = strlen(suffix), kept = length;
    char *sentence = (char *)(uintptr_t)room->text;
    ml_encode_desc desc = *room;
    ml_tokens tokens;
    ml_error error;
    for (;;) {
        memcpy(sentence, row->sentence, kept);
        memcpy(sentence + kept, suffix, suffix_size + 1);
        desc.n_bytes = kept + suffix_size;
        if (!succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error)) return 0;
        if (tokens.n <= most || !suffix_size || !kept) break;
        size_t excess = (size_t)(tokens.n - most); /* each token has at least one byte */
        kept -= excess < kept ? excess : kept;
    }
    *is_cut = tokens.n > most || kept < length;
    if (tokens.n > most) tokens.n = most;
    free(row->ids);
    row->ids = (int32_t *)malloc(((size_t)tokens.n + 1) * sizeof *row->ids);
    if (!row->ids) return no_memory("a row");
    memcpy(row->ids, tokens.ids, (size_t)tokens.n * sizeof *row->ids);
    row->n_ids = tokens.n;
    row->n_kept = kept;
    return 1;
}

int reviews_encode(reviews *all, const ml_tokenizer *tokenizer, const char *suffix, int most) {
    /* a sentence as the tokenizer's file wants it; but what the suffix makes a question goes on, without eos */
    int flags = !*suffix ? ML_ADD_SPECIAL : tokenizer->adds_bos ? ML_ADD_BOS : 0;
    for (int i = 0; i < all->n; i++) {
        size_t size = strlen(all->rows[i].sentence) + strlen(suffix);
        char *text = (char *)malloc(size + 1);
        void *work = malloc(ml_tokenizer_encode_size(size));
        ml_encode_desc room = {text, 0, flags, work, ml_tokenizer_encode_size(size)};
        int is_cut = 0;
        int ok = text && work ? encode_row(&all->rows[i], tokenizer, suffix, most, &room, &is_cut)
                              : no_memory("a row");
        all->n_cut += is_cut;
        free(text);
        free(work);
        if (!ok) return complain("%s: row %d cannot be encoded", all->path, i + 1);
    }
    if (all->n_cut) fprintf(stderr, "%s: %d sentences are cut to %d tokens\n", all->path, all->n_cut, most);
    return 1;
}

void reviews_free(reviews *all) {
    for (int i = 0; i < all->n; i++) free(all->rows[i].ids);
    free(all->rows);
    free(all->text);
}
