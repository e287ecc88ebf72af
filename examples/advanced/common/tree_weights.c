/* One phrase in many sentences: how much it counts; phrases as sentences; where words are among tokens. */
#include "trees.h"
#include "../../common/memory.h"
#include "../../common/report.h"

const char *trees_phrase(const char *sentence, const phrase *p, size_t *n) {
    int word = 0;
    while (word < p->begin) word += *sentence++ == ' ';
    const char *end = sentence;
    while (*end && (*end != ' ' || ++word < p->end)) end++;
    *n = (size_t)(end - sentence);
    return sentence;
}

/* The place of a text in a table of the first phrase with each text, -1: none yet. Hash: FNV-1a (Fowler, Noll &
   Vo). */
static size_t find_place(const trees *all, const int *table, size_t mask, const int *row_of, size_t i) {
    size_t n, m;
    const char *text = trees_phrase(all->set.rows[row_of[i]].sentence, &all->phrases[i], &n);
    uint64_t hash = 14695981039346656037u;
    for (size_t j = 0; j < n; j++) hash = (hash ^ (unsigned char)text[j]) * 1099511628211u;
    size_t at = (size_t)(hash ^ hash >> 32) & mask;
    for (; table[at] >= 0; at = (at + 1) & mask) {
        const phrase *other = &all->phrases[table[at]];
        const char *same = trees_phrase(all->set.rows[row_of[table[at]]].sentence, other, &m);
        if (m == n && memcmp(same, text, n) == 0) break;
    }
    return at;
}

typedef struct tree_weights {
    int min_words;
    char duplicates;
} tree_weights;

/* `table` has room for `size` places of texts, then for the row of each phrase and the first one with its text. */
static void weigh(trees *all, const tree_weights *how, int *table, size_t size) {
    int *row_of = table + size, *same = row_of + all->n_phrases;
    int is_share = how->duplicates == 's', is_once = how->duplicates == 'o';
    for (size_t i = 0; i < size; i++) table[i] = -1;
    for (int r = 0; r < all->set.n; r++)
        for (int i = all->first[r]; i < all->first[r + 1]; i++) row_of[i] = r;
    for (size_t i = 0; i < all->n_phrases; i++) {
        phrase *p = &all->phrases[i];
        p->weight = (int)i + 1 == all->first[row_of[i] + 1] || p->end - p->begin >= how->min_words;
        if (!(p->weight > 0)) continue;
        size_t at = find_place(all, table, size - 1, row_of, i);
        if (table[at] < 0) table[at] = (int)i;
        same[i] = table[at];
        if (is_once && same[i] != (int)i) p->weight = 0;
        if (is_share && same[i] != (int)i) all->phrases[same[i]].weight++;
    }
    for (size_t i = all->n_phrases;
         is_share && i-- > 0;) /* the first of each text, with their number, comes last */
        if (all->phrases[i].weight > 0) all->phrases[i].weight = 1 / all->phrases[same[i]].weight;
}

int trees_weigh(trees *all, int min_words, char duplicates) {
    tree_weights how = {min_words, duplicates};
    size_t n = all->n_phrases, size = 1024;
    while (size < 2 * n) size *= 2;
    int *room = (int *)malloc((size + 2 * n) * sizeof *room);
    if (!room) return no_memory("the phrases");
    weigh(all, &how, room, size);
    free(room);
    return 1;
}

int trees_rows(const trees *all, reviews *set) {
    buffer text = {NULL, 0, 0};
    size_t n, at = 0;
    memset(set, 0, sizeof *set);
    set->path = all->set.path;
    set->rows = (review *)calloc(all->n_phrases, sizeof *set->rows);
    if (!set->rows) return no_memory(set->path);
    for (int r = 0; r < all->set.n; r++)
        for (int i = all->first[r]; i < all->first[r + 1]; i++) {
            const phrase *p = &all->phrases[i];
            const char *words = trees_phrase(all->set.rows[r].sentence, p, &n);
            if (!(p->weight > 0)) continue;
            int ok = buffer_append(&text, words, n) && buffer_append(&text, "", 1);
            set->text = text.bytes;
            if (!ok) return no_memory(set->path);
            set->rows[set->n++].label = p->label;
        }
    for (int i = 0; i < set->n; i++, at += strlen(text.bytes + at) + 1)
        set->rows[i].sentence = text.bytes + at;
    return 1;
}

/* The tokens that the text up to a word's end has in common with the whole. */
int trees_ends(const review *row, const ml_tokenizer *tokenizer, int *ends, int n_words) {
    size_t size = ml_tokenizer_encode_size(strlen(row->sentence));
    ml_encode_desc desc = {row->sentence, 0, ML_ADD_SPECIAL, malloc(size), size};
    ml_tokens tokens;
    ml_error error;
    int ok = desc.work || no_memory("a row");
    ends[0] = 0;
    for (int w = 1; ok && w < n_words; w++) {
        desc.n_bytes += strcspn(row->sentence + desc.n_bytes + 1, " ") + 1;
        ok = succeeded(ml_tokenizer_encode(tokenizer, &desc, &tokens, &error), &error);
        ends[w] = 0;
        while (ok && ends[w] < tokens.n && ends[w] < row->n_ids && tokens.ids[ends[w]] == row->ids[ends[w]])
            ends[w]++;
    }
    ends[n_words] = row->n_ids;
    free(desc.work);
    return ok;
}
