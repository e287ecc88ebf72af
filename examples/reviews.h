/* Labelled sentences, as the assignment has them: one to a line, "label ||| sentence"; and the labels' names, a JSON list.
   Line ends may be CRLF. Sentences are taken byte for byte: what is no UTF-8 in them is spelled in byte pieces. A
   label of -1 stands for an unknown one. Include after minillama.h. */
#ifndef REVIEWS_H
#define REVIEWS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
} reviews;

typedef struct label_names {
    char *text; /* the file */
    const char *name[REVIEWS_MAX_LABELS];
    int n;
} label_names;

/* A whole file, zero-terminated; NULL, having said why. */
static char *reviews_slurp(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, size = 0, got = 1;
    while (file && got) {
        if (size - n < 2) {
            char *room = (char *)realloc(text, size = size * 2 + 65536);
            if (!room) break;
            text = room;
        }
        got = fread(text + n, 1, size - n - 1, file);
        n += got;
    }
    if (!file || ferror(file) || got) {
        fprintf(stderr, "error: %s: %s\n", path,
                !file || ferror(file) ? strerror(errno) : "not enough memory");
        if (file) fclose(file);
        free(text);
        return NULL;
    }
    fclose(file);
    text[n] = 0;
    if (strlen(text) == n) return text;
    fprintf(stderr, "error: %s:%d: a byte of value 0: this is no text file\n", path, 1);
    free(text);
    return NULL;
}

/* ["awful", "bad"]: strings without escapes. */
static int label_names_read(label_names *names, const char *path) {
    char *p = names->text = reviews_slurp(path);
    names->n = 0;
    if (!p) return 0;
    p += strspn(p, " \t\r\n");
    if (*p == '[')
        p++;
    else
        return fprintf(stderr, "error: %s: not a JSON list of label names\n", path), 0;
    for (;;) {
        char *end;
        p += strspn(p, " \t\r\n,");
        if (*p == ']') break;
        end = *p == '"' ? strchr(p + 1, '"') : NULL;
        if (!end || end == p + 1 || names->n == REVIEWS_MAX_LABELS)
            return fprintf(stderr, "error: %s: label name %d is no string, or one too many\n", path,
                           names->n),
                   0;
        names->name[names->n++] = p + 1;
        *end = 0;
        p = end + 1;
    }
    if (names->n < 2) return fprintf(stderr, "error: %s: fewer than two labels\n", path), 0;
    return 1;
}

/* One line into a row; 0, having said what is wrong where. */
static int reviews_line(const reviews *all, review *row, char *line, int number, int n_labels) {
    char *bar = strstr(line, " ||| "), *end;
    long label;
    if (!bar)
        return fprintf(stderr, "error: %s:%d: no \" ||| \" between label and sentence\n", all->path, number),
               0;
    *bar = 0;
    label = strtol(line, &end, 10);
    if (end == line || *end || label < -1 || label >= n_labels)
        return fprintf(stderr, "error: %s:%d: label \"%.20s\" is not 0 to %d (or -1, unknown)\n", all->path,
                       number, line, n_labels - 1),
               0;
    row->label = (int)label;
    row->sentence = bar + 5 + strspn(bar + 5, " \t");
    for (end = bar + strlen(bar + 1) + 1; end > row->sentence && (end[-1] == ' ' || end[-1] == '\t');)
        *--end = 0;
    if (!*row->sentence)
        return fprintf(stderr, "error: %s:%d: the sentence is empty\n", all->path, number), 0;
    return 1;
}

/* Reads all lines; empty ones are passed over. */
static int reviews_read(reviews *all, const char *path, int n_labels) {
    char *line, *next;
    int number = 0, capacity = 0;
    memset(all, 0, sizeof *all);
    all->path = path;
    all->text = reviews_slurp(path);
    if (!all->text) return 0;
    for (line = all->text; line && *line; line = next) {
        size_t length;
        number++;
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        length = strlen(line);
        if (length && line[length - 1] == '\r') line[length - 1] = 0;
        if (!*line) continue;
        if (all->n == capacity) {
            review *room =
                (review *)realloc(all->rows, (size_t)(capacity = capacity * 2 + 1024) * sizeof *room);
            if (!room) return fprintf(stderr, "error: %s: not enough memory\n", path), 0;
            all->rows = room;
        }
        memset(&all->rows[all->n], 0, sizeof *all->rows);
        if (!reviews_line(all, &all->rows[all->n], line, number, n_labels)) return 0;
        all->n++;
    }
    return all->n > 0 || (fprintf(stderr, "error: %s: there is no line in it\n", path), 0);
}

/* Appends ids to a row. */
static int review_append(review *row, const int32_t *ids, size_t n) {
    int32_t *room = (int32_t *)realloc(row->ids, ((size_t)row->n_ids + n + 1) * sizeof *room);
    if (!room) return fprintf(stderr, "error: not enough memory for tokens\n"), 0;
    memcpy(room + row->n_ids, ids, n * sizeof *ids);
    row->ids = room;
    row->n_ids += (int)n;
    return 1;
}

/* bos and the sentence's tokens for every row, cut to at most `most` of them. `suffix` (may be "") is put behind the sentence
   before it is encoded; when that is too long, the end of the sentence goes, and not the suffix. */
static int reviews_encode(reviews *all, const ml_tokenizer *tokenizer, const char *suffix, int most) {
    int i;
    for (i = 0; i < all->n; i++) {
        review *row = &all->rows[i];
        size_t length = strlen(row->sentence), n = 0, work_size, kept = length, suffix_size = strlen(suffix);
        const int32_t *ids = NULL;
        ml_error error;
        char *text = (char *)malloc(length + suffix_size + 1);
        void *work = malloc(work_size = ml_encode_size(length + suffix_size));
        int ok = text && work;
        while (ok) {
            memcpy(text, row->sentence, kept);
            memcpy(text + kept, suffix, suffix_size + 1);
            ok = !ml_encode(tokenizer, text, kept + suffix_size, ML_ADD_BOS, work, work_size, &ids, &n,
                            &error);
            if (!ok || n <= (size_t)most || !suffix_size || !kept) break;
            kept -= MLI_MIN(kept, n - (size_t)most); /* a token is a byte at least */
        }
        if (!ok) fprintf(stderr, "error: %s: row %d cannot be encoded\n", all->path, i + 1);
        if (ok && (n > (size_t)most || kept < length)) {
            n = MLI_MIN(n, (size_t)most);
            all->n_cut++;
        }
        row->n_ids = 0;
        row->n_kept = kept;
        ok = ok && review_append(row, ids, n);
        free(text);
        free(work);
        if (!ok) return 0;
    }
    if (all->n_cut) fprintf(stderr, "%s: %d sentences are cut to %d tokens\n", all->path, all->n_cut, most);
    return 1;
}

static void reviews_free(reviews *all) {
    int i;
    for (i = 0; i < all->n; i++) free(all->rows[i].ids);
    free(all->rows);
    free(all->text);
}

#endif
