/* What the two yardsticks share, which have words in place of a tokenizer. */
#ifndef WORDS_H
#define WORDS_H

#include <string.h>
#include "../../common/file.h"

/* A number for the word at *at, which ends before one of `ends`, in lower case (FNV-1a); *at moves there. */
static inline uint32_t word_hash(const char **at, const char *ends) {
    uint32_t hash = 2166136261u;
    for (const char *end = *at + strcspn(*at, ends); *at < end; (*at)++) {
        unsigned char c = (unsigned char)**at;
        hash = (hash ^ (c >= 'A' && c <= 'Z' ? c + 32u : c)) * 16777619u;
    }
    return hash ^ hash >> 15;
}

/* How many of n rows of log_probs (n, n_classes) have their largest number at the row's label. */
static inline int count_right(const float *log_probs, const int32_t *labels, int n, int n_classes) {
    int right = 0;
    for (int i = 0; i < n; i++, log_probs += n_classes) {
        int best = 0;
        for (int c = 1; c < n_classes; c++) best = log_probs[c] > log_probs[best] ? c : best;
        right += best == labels[i];
    }
    return right;
}

/* A pass forward and backward, and a step. 0 after saying why. */
static inline int learn_batch(ml_graph *g, ml_build loss, void *user, ml_optimizer *optimizer) {
    ml_error error;
    ml_graph_begin(g, 1);
    return succeeded(ml_graph_backward(g, loss(g, user), &error), &error) &&
           succeeded(ml_optimizer_step(optimizer, &error), &error);
}

/* Labeled phrases: phrase i is words[spans[i].begin .. spans[i].end - 1]; a word is a hash of itself, below `buckets`. */
typedef struct phrases {
    int32_t *words, *labels;
    ml_span *spans;
    int n_words, n;
    uint32_t buckets;
    int n_labels;
    uint64_t *seen; /* (mask + 1) hashes of phrases, as a table */
    size_t mask;
} phrases;

static inline int phrase_is_new(phrases *p, ml_span span) {
    uint64_t hash = 1469598103934665603u;
    for (int i = span.begin; i < span.end; i++)
        hash = (hash ^ (uint64_t)p->words[i]) * 1099511628211u, hash ^= hash >> 29;
    size_t at = (size_t)(hash >> 32) & p->mask;
    while (p->seen[at] && p->seen[at] != hash) at = (at + 1) & p->mask;
    int is_new = p->seen[at] != hash;
    p->seen[at] = hash;
    return is_new;
}

/* A line "(label tree tree)" with "(label word)" as leaves, or "label ||| sentence" when `is_tree` is 0. */
static inline int phrases_add(phrases *p, const char *at, int is_tree) {
    int starts[500], labels[500], depth = 0;
    if (!is_tree) {
        labels[0] = *at - '0', starts[0] = p->n_words;
        at += strcspn(at, "|\n");
        if (strncmp(at, "|||", 3) != 0) return 0;
        at += 3 + strspn(at + 3, " ");
    }
    for (; *at && *at != '\n'; at += strspn(at, " ")) {
        if (is_tree && at[0] == '(' && at[1] && depth < 500) {
            labels[depth] = at[1] - '0', starts[depth++] = p->n_words, at += 2;
        } else if (is_tree && *at == ')') {
            if (depth-- == 0) return 0;
            ml_span span = {starts[depth], p->n_words};
            if (labels[depth] < 0 || labels[depth] >= p->n_labels || span.begin == span.end) return 0;
            if (phrase_is_new(p, span)) p->labels[p->n] = labels[depth], p->spans[p->n++] = span;
            at++;
        } else {
            p->words[p->n_words++] = (int32_t)(word_hash(&at, is_tree ? " )\n" : " \n") % p->buckets);
        }
    }
    if (is_tree) return depth == 0;
    ml_span span = {starts[0], p->n_words};
    p->labels[p->n] = labels[0], p->spans[p->n++] = span;
    return labels[0] >= 0 && labels[0] < p->n_labels && span.end > span.begin;
}

/* Reads trees, of which each distinct phrase counts once, or lines. 0 after saying why. */
static inline int phrases_read(phrases *p, const char *folder, const char *name, int is_tree) {
    char path[4096];
    size_t size; /* there are fewer words, and fewer phrases */
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *text = text_file_read(path, &size), *at = text;
    if (!text) return 0;
    p->words = (int32_t *)malloc((size + 1) * sizeof *p->words);
    p->labels = (int32_t *)malloc((size + 1) * sizeof *p->labels);
    p->spans = (ml_span *)malloc((size + 1) * sizeof *p->spans);
    for (p->mask = 1023; p->mask < size;) p->mask = 2 * p->mask + 1;
    p->seen = (uint64_t *)calloc(p->mask + 1, sizeof *p->seen);
    if (!p->words || !p->labels || !p->spans || !p->seen) return no_memory(path);
    for (int line = 1; *at; line++, at += strcspn(at, "\n"), at += *at == '\n')
        if (!phrases_add(p, at, is_tree)) return complain("%s: line %d is not as it should be", path, line);
    free(text);
    return p->n > 0 || complain("%s: there is nothing in it", path);
}

#endif
