#include <limits.h>
#include "reviews.h"
#include "../common/file.h"

/* A text file; one that contains a zero byte is not one. */
static char *read_lines(const char *path) {
    size_t n, zero;
    int line = 1;
    char *text = text_file_read(path, &n);
    if (!text || (zero = strlen(text)) == n) return text;
    for (size_t i = 0; i < zero; i++) line += text[i] == '\n';
    complain("%s:%d: it contains a byte of value 0, so it is not a text file", path, line);
    free(text);
    return NULL;
}

/* ---- label names ---- */

static int read_hex4(const char *p, unsigned *value) {
    *value = 0;
    for (int i = 0; i < 4; i++) {
        static const char digits[] = "0123456789abcdef0123456789ABCDEF";
        const char *digit = p[i] ? strchr(digits, p[i]) : NULL;
        if (!digit) return 0;
        *value = *value * 16 + (unsigned)(digit - digits) % 16;
    }
    return 1;
}

static char *put_utf8(char *to, unsigned c) {
    int n = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3; /* bytes that follow the first */
    *to++ = (char)(n ? ((0xF0u << (3 - n)) & 0xFF) | c >> 6 * n : c);
    while (n-- > 0) *to++ = (char)(0x80 | ((c >> 6 * n) & 0x3F));
    return to;
}

/* Decodes the escape at *from to *to, and moves both on; 0 if it is a wrong one. */
static int read_escape(char **from, char **to) {
    static const char names[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    char *p = *from;
    const char *known = p[1] ? strchr(names, p[1]) : NULL;
    unsigned c, low;
    if (known) {
        *(*to)++ = meant[known - names];
        *from += 2;
        return 1;
    }
    if (p[1] != 'u' || !read_hex4(p + 2, &c) || !c || (c >= 0xDC00 && c <= 0xDFFF)) return 0;
    p += 6;
    if (c >= 0xD800 && c <= 0xDBFF) { /* the first half of a pair */
        if (p[0] != '\\' || p[1] != 'u' || !read_hex4(p + 2, &low) || low < 0xDC00 || low > 0xDFFF) return 0;
        c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        p += 6;
    }
    *from = p;
    *to = put_utf8(*to, c);
    return 1;
}

/* Decodes the JSON string after the quote before *from, in place, and moves on behind it. Returns what is wrong with
   it, or NULL. */
static const char *read_string(char **from) {
    char *p = *from, *to = p;
    while (*p != '"') {
        if (*p == '\\') {
            if (!read_escape(&p, &to)) return "has a wrong escape";
        } else if ((unsigned char)*p < ' ') {
            return *p ? "has a control character, which JSON writes as an escape" : "does not end";
        } else {
            *to++ = *p++;
        }
    }
    *from = p + 1;
    *to = 0;
    return NULL;
}

/* What begins at p. */
static const char *json_kind(const char *p) {
    return *p == '{'                               ? "an object"
           : *p == '['                             ? "a list"
           : *p == '"'                             ? "a string"
           : *p == '-' || (*p >= '0' && *p <= '9') ? "a number"
           : *p == 't' || *p == 'f'                ? "true or false"
           : *p == 'n'                             ? "null"
           : *p                                    ? "no JSON"
                                                   : "the end of the file";
}

static char *skip_space(char *p) { return p + strspn(p, " \t\n"); }

/* The next name of the list; *from moves on behind it. */
static int read_name(label_names *names, char **from, const char *path) {
    if (names->n == REVIEWS_MAX_LABELS)
        return complain("%s: there are more than %d label names", path, REVIEWS_MAX_LABELS);
    if (**from != '"')
        return complain("%s: label name %d is %s, not a string", path, names->n, json_kind(*from));
    char *name = ++*from;
    const char *wrong = read_string(from);
    if (!wrong && !*name) wrong = "is empty";
    if (wrong) return complain("%s: label name %d %s", path, names->n, wrong);
    for (int i = 0; i < names->n; i++)
        if (strcmp(names->name[i], name) == 0)
            return complain("%s: label name %d is the same as label name %d", path, names->n, i);
    names->name[names->n++] = name;
    return 1;
}

/* ["awful", "bad"] */
int label_names_read(label_names *names, const char *path) {
    char *p = names->text = read_lines(path);
    names->n = 0;
    if (!p) return 0;
    p = skip_space(p);
    if (*p != '[') return complain("%s: it is %s, not a JSON list of label names", path, json_kind(p));
    p = skip_space(p + 1);
    while (*p != ']' || names->n) {
        if (!read_name(names, &p, path)) return 0;
        p = skip_space(p);
        if (*p == ']') break;
        if (*p != ',') return complain("%s: %s follows label name %d", path, json_kind(p), names->n - 1);
        p = skip_space(p + 1);
    }
    if (*skip_space(p + 1)) return complain("%s: more text follows the list of label names", path);
    return names->n >= 2 || complain("%s: fewer than two labels", path);
}

/* ---- sentences ---- */

/* How many bytes the white space at p takes, of the kinds that Python's strip removes; 0: there is none. */
static size_t space_length(const char *p) {
    static const char *const wide[] = {"\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                                       "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    const unsigned char *c = (const unsigned char *)p;
    if (c[0] == ' ' || (c[0] >= 9 && c[0] <= 13) || (c[0] >= 28 && c[0] <= 31)) return 1;
    if (c[0] == 0xc2 && (c[1] == 0x85 || c[1] == 0xa0)) return 2;
    if (c[0] == 0xe2 && c[1] == 0x80 && c[2] >= 0x80 && c[2] <= 0x8a) return 3;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (strncmp(p, wide[i], 3) == 0) return 3;
    return 0;
}

static int is_blank(const char *text) {
    while (space_length(text)) text += space_length(text);
    return !*text;
}

/* The text without the white space around it. */
static char *strip(char *text) {
    while (space_length(text)) text += space_length(text);
    size_t n = strlen(text);
    for (size_t size = 1; size <= 3; size++)
        if (n >= size && space_length(text + n - size) == size) n -= size, size = 0;
    text[n] = 0;
    return text;
}

/* One line into a row. */
static int read_row(const char *path, review *row, char *line, int number, int n_labels) {
    char *bar = strstr(line, " ||| "), *end;
    if (!bar) return complain("%s:%d: no \" ||| \" between label and sentence", path, number);
    *bar = 0;
    char *name = strip(line);
    long label = strtol(name, &end, 10);
    if (end == name || *end || label < -1 || label >= n_labels)
        return complain("%s:%d: label \"%.20s\" is not 0 to %d (or -1, unknown)", path, number, name,
                        n_labels - 1);
    row->label = (int)label;
    row->sentence = strip(bar + 5);
    return 1;
}

/* Reads all lines; those of white space alone are skipped. */
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
        if (is_blank(line)) continue;
        review *room = (review *)grow(all->rows, (size_t)all->n + 1, &all->capacity, sizeof *room);
        if (!room) return no_memory(path);
        all->rows = room;
        memset(&room[all->n], 0, sizeof *room);
        if (!read_row(path, &room[all->n], line, number, n_labels)) return 0;
        all->n++;
    }
    return all->n > 0 || complain("%s: it has no lines", path);
}

int reviews_have_labels(const reviews *all) {
    int n = 0;
    for (int i = 0; i < all->n; i++) n += all->rows[i].label >= 0;
    return n > 0;
}

int reviews_teach(const reviews *all) {
    return reviews_have_labels(all) || complain("%s: no line has a label to learn", all->path);
}

int *reviews_read_gold(const reviews *set, const char *path, int n_labels) {
    int *gold = (int *)malloc((size_t)set->n * sizeof *gold), n = 0, number = 0, ok = gold || no_memory(path);
    char *text = ok ? read_lines(path) : NULL, *end;
    for (char *line = text, *next; ok && line && *line; line = next) {
        number++;
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        line = strip(line);
        if (!*line) continue;
        long label = strtol(line, &end, 10);
        if (*end || label < -1 || label >= n_labels)
            ok = complain("%s:%d: label \"%.20s\" is not 0 to %d (or -1, unknown)", path, number, line,
                          n_labels - 1);
        else if (n < set->n)
            gold[n] = (int)label;
        n++;
    }
    if (ok && text && n != set->n)
        ok = complain("%s: it has %d labels, but %s has %d sentences", path, n, set->path, set->n);
    if (!ok || !text) free(gold), gold = NULL;
    free(text);
    return gold;
}

int reviews_length(const ml_tokenizer *tokenizer, int n) { return n + (tokenizer->adds_bos && n < INT_MAX); }

int32_t reviews_padding(const ml_tokenizer *tokenizer) {
    if (tokenizer->padding >= 0) return tokenizer->padding;
    return tokenizer->unknown >= 0 ? tokenizer->unknown : 0;
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
    if (suffix_size && tokens.n > most)
        return complain("the question alone has %d tokens, but there is room for %d: the context, or "
                        "--max_sentence_len, which counts the question",
                        tokens.n, most);
    *is_cut = tokens.n > most || kept < length;
    if (tokens.n > most) tokens.n = most;
    free(row->ids);
    row->ids = (int32_t *)malloc(((size_t)tokens.n + 1) * sizeof *row->ids);
    if (!row->ids) return no_memory("a row");
    row->ids[0] = reviews_padding(tokenizer); /* an empty sentence without bos is one token, too */
    memcpy(row->ids, tokens.ids, (size_t)tokens.n * sizeof *row->ids);
    row->n_ids = tokens.n ? tokens.n : 1;
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
    if (all->n_cut)
        fprintf(stderr, "%s: %d sentences are cut to %d tokens with bos\n", all->path, all->n_cut, most);
    return 1;
}

void reviews_free(reviews *all) {
    for (int i = 0; i < all->n; i++) free(all->rows[i].ids);
    free(all->rows);
    free(all->text);
}
