/* See bpe.h. */
#include "bpe.h"

#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== memory and errors ==== */

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void
bpe_fail(char *error, size_t error_size, const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(error, error_size, format, list);
    va_end(list);
}

/* The array with room for n elements: itself, or moved. NULL when out of memory or above the range of 32 bits;
   the old array is then unchanged. */
static void *bpe_room(void *array, size_t n, size_t *capacity, size_t element_size) {
    size_t more = *capacity;
    if (array && n <= more) return array;
    if (n >= UINT32_MAX || n > SIZE_MAX / 2 / element_size) return NULL;
    more = n + n / 2 + 16;
    void *moved = realloc(array, more * element_size);
    if (moved) *capacity = more;
    return moved;
}

/* FNV-1a (Fowler, Noll, Vo) by bytes: the hash of a concatenation continues from the hash of the first part. */
#define BPE_HASH_SEED 14695981039346656037u
static uint64_t bpe_hash(uint64_t hash, const unsigned char *text, size_t n) {
    for (size_t i = 0; i < n; i++) hash = (hash ^ text[i]) * 1099511628211u;
    return hash;
}

static size_t bpe_slot(uint64_t hash, size_t n_slots) { return (size_t)(hash ^ hash >> 32) & (n_slots - 1); }

/* ==== characters ==== */

#define BPE_MARK 0x2581u
#define BPE_MARK_TEXT "\xE2\x96\x81"
#define BPE_N_CODES 0x110000u

/* The character at p, below end: its length, or 0 for invalid UTF-8. */
static size_t bpe_decode(const unsigned char *p, const unsigned char *end, uint32_t *code) {
    size_t n = *p < 0x80 ? 1 : *p < 0xC2 ? 0 : *p < 0xE0 ? 2 : *p < 0xF0 ? 3 : *p < 0xF5 ? 4 : 0;
    uint32_t c = n == 1 ? *p : n == 2 ? *p & 31u : n == 3 ? *p & 15u : *p & 7u;
    if (!n || n > (size_t)(end - p)) return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (p[i] & 63u);
    }
    if ((n == 3 && c < 0x800) || (n == 4 && c < 0x10000)) return 0; /* overlong */
    if (c >= BPE_N_CODES || (c >= 0xD800 && c < 0xE000)) return 0;
    *code = c;
    return n;
}

static size_t bpe_encode(uint32_t c, unsigned char *to) {
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n - 1; i > 0; i--, c >>= 6) to[i] = (unsigned char)(0x80 | (c & 63));
    to[0] = (unsigned char)(first[n] | c);
    return n;
}

/* Groups of characters that join with each other. Further scripts are numbered by their row in the table. */
enum {
    BPE_ALONE,
    BPE_COMMON,
    BPE_COMBINING,
    BPE_LATIN,
    BPE_GREEK,
    BPE_CYRILLIC,
    BPE_ARABIC,
    BPE_DEVANAGARI,
    BPE_HAN,
    BPE_HANGUL,
    BPE_OTHER
};

/* Unicode's scripts by blocks, approximately: from each code up to the next row's. BPE_OTHER: a script that has only
   this row. */
static const struct {
    uint32_t first;
    int group;
} bpe_blocks[] = {
    {0x0000, BPE_ALONE},      {0x0020, BPE_COMMON}, {0x0030, BPE_ALONE},      {0x003A, BPE_COMMON},
    {0x0041, BPE_LATIN},      {0x005B, BPE_COMMON}, {0x0061, BPE_LATIN},      {0x007B, BPE_COMMON},
    {0x007F, BPE_ALONE},      {0x0080, BPE_COMMON}, {0x00AA, BPE_LATIN},      {0x00AB, BPE_COMMON},
    {0x00BA, BPE_LATIN},      {0x00BB, BPE_COMMON}, {0x00C0, BPE_LATIN},      {0x00D7, BPE_COMMON},
    {0x00D8, BPE_LATIN},      {0x00F7, BPE_COMMON}, {0x00F8, BPE_LATIN},      {0x02B9, BPE_COMMON},
    {0x0300, BPE_COMBINING},  {0x0370, BPE_GREEK},  {0x037E, BPE_COMMON},     {0x037F, BPE_GREEK},
    {0x0387, BPE_COMMON},     {0x0388, BPE_GREEK},  {0x0400, BPE_CYRILLIC},   {0x0530, BPE_OTHER},
    {0x0590, BPE_OTHER},      {0x0600, BPE_ARABIC}, {0x060C, BPE_COMMON},     {0x060D, BPE_ARABIC},
    {0x061B, BPE_COMMON},     {0x061C, BPE_ARABIC}, {0x0640, BPE_COMBINING},  {0x0641, BPE_ARABIC},
    {0x064B, BPE_COMBINING},  {0x0656, BPE_ARABIC}, {0x0660, BPE_COMMON},     {0x066E, BPE_ARABIC},
    {0x0700, BPE_OTHER},      {0x0750, BPE_ARABIC}, {0x0780, BPE_OTHER},      {0x07C0, BPE_OTHER},
    {0x0800, BPE_OTHER},      {0x0870, BPE_ARABIC}, {0x0900, BPE_DEVANAGARI}, {0x0964, BPE_COMMON},
    {0x0966, BPE_DEVANAGARI}, {0x0980, BPE_OTHER},  {0x0A00, BPE_OTHER},      {0x0A80, BPE_OTHER},
    {0x0B00, BPE_OTHER},      {0x0B80, BPE_OTHER},  {0x0C00, BPE_OTHER},      {0x0C80, BPE_OTHER},
    {0x0D00, BPE_OTHER},      {0x0D80, BPE_OTHER},  {0x0E00, BPE_OTHER},      {0x0E80, BPE_OTHER},
    {0x0F00, BPE_OTHER},      {0x1000, BPE_OTHER},  {0x10A0, BPE_OTHER},      {0x1100, BPE_HANGUL},
    {0x1200, BPE_OTHER},      {0x13A0, BPE_OTHER},  {0x1400, BPE_OTHER},      {0x1680, BPE_OTHER},
    {0x16A0, BPE_OTHER},      {0x1700, BPE_OTHER},  {0x1780, BPE_OTHER},      {0x1800, BPE_OTHER},
    {0x1900, BPE_OTHER},      {0x1A00, BPE_OTHER},  {0x1AB0, BPE_COMBINING},  {0x1B00, BPE_OTHER},
    {0x1C80, BPE_CYRILLIC},   {0x1C90, BPE_OTHER},  {0x1CD0, BPE_COMBINING},  {0x1D00, BPE_LATIN},
    {0x1DC0, BPE_COMBINING},  {0x1E00, BPE_LATIN},  {0x1F00, BPE_GREEK},      {0x2000, BPE_COMMON},
    {0x200C, BPE_COMBINING},  {0x200E, BPE_COMMON}, {0x20D0, BPE_COMBINING},  {0x2100, BPE_COMMON},
    {0x2C00, BPE_OTHER},      {0x2C60, BPE_LATIN},  {0x2C80, BPE_OTHER},      {0x2D00, BPE_OTHER},
    {0x2D30, BPE_OTHER},      {0x2D80, BPE_OTHER},  {0x2DE0, BPE_CYRILLIC},   {0x2E00, BPE_COMMON},
    {0x2E80, BPE_HAN},        {0x2FF0, BPE_COMMON}, {0x3005, BPE_HAN},        {0x3006, BPE_COMMON},
    {0x3007, BPE_HAN},        {0x3008, BPE_COMMON}, {0x3041, BPE_HAN},        {0x30FB, BPE_COMMON},
    {0x30FC, BPE_HAN},        {0x3100, BPE_OTHER},  {0x3130, BPE_HANGUL},     {0x3190, BPE_COMMON},
    {0x31F0, BPE_HAN},        {0x3200, BPE_COMMON}, {0x3400, BPE_HAN},        {0x4DC0, BPE_COMMON},
    {0x4E00, BPE_HAN},        {0xA000, BPE_OTHER},  {0xA4D0, BPE_OTHER},      {0xA500, BPE_OTHER},
    {0xA640, BPE_CYRILLIC},   {0xA6A0, BPE_OTHER},  {0xA700, BPE_COMMON},     {0xA722, BPE_LATIN},
    {0xA800, BPE_OTHER},      {0xA840, BPE_OTHER},  {0xA880, BPE_OTHER},      {0xA900, BPE_OTHER},
    {0xA980, BPE_OTHER},      {0xAA00, BPE_OTHER},  {0xAB00, BPE_OTHER},      {0xAB30, BPE_LATIN},
    {0xAB70, BPE_OTHER},      {0xAC00, BPE_HANGUL}, {0xE000, BPE_COMMON},     {0xF900, BPE_HAN},
    {0xFB00, BPE_LATIN},      {0xFB13, BPE_OTHER},  {0xFB1D, BPE_OTHER},      {0xFB50, BPE_ARABIC},
    {0xFE00, BPE_COMBINING},  {0xFE10, BPE_COMMON}, {0xFE20, BPE_COMBINING},  {0xFE30, BPE_COMMON},
    {0xFE70, BPE_ARABIC},     {0xFEFF, BPE_COMMON}, {0xFF21, BPE_LATIN},      {0xFF3B, BPE_COMMON},
    {0xFF41, BPE_LATIN},      {0xFF5B, BPE_COMMON}, {0xFF66, BPE_HAN},        {0xFFA0, BPE_HANGUL},
    {0xFFE0, BPE_COMMON},     {0x10000, BPE_OTHER}, {0x1D000, BPE_COMMON},    {0x1E000, BPE_OTHER},
    {0x1F000, BPE_COMMON},    {0x20000, BPE_HAN},   {0xE0000, BPE_COMBINING}};

/* The group of a character; two neighbors join only within one group. */
static int bpe_group(uint32_t code) {
    size_t low = 0, high = sizeof bpe_blocks / sizeof bpe_blocks[0];
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (bpe_blocks[middle].first <= code)
            low = middle;
        else
            high = middle;
    }
    return bpe_blocks[low].group == BPE_OTHER ? BPE_OTHER + (int)low : bpe_blocks[low].group;
}

/* ==== words and how often they occur ==== */

typedef struct bpe_word {
    const unsigned char *text; /* in the caller's texts */
    size_t size;
    uint64_t hash, count;
    int has_mark; /* a space precedes the text */
} bpe_word;

typedef struct bpe_words {
    bpe_word *at;
    size_t n, capacity;
    uint32_t *slots; /* hash table of 1 + indices; 0: empty */
    size_t n_slots;  /* a power of two */
} bpe_words;

static void bpe_free_words(bpe_words *words) {
    free(words->at);
    free(words->slots);
    memset(words, 0, sizeof *words);
}

/* A table is at most half full. */
static int bpe_grow_words(bpe_words *words) {
    size_t n_slots = words->n_slots ? words->n_slots * 2 : 1024;
    if (2 * (words->n + 1) <= words->n_slots) return 1;
    uint32_t *slots = (uint32_t *)calloc(n_slots, sizeof *slots);
    if (!slots) return 0;
    for (size_t i = 0; i < words->n; i++) {
        size_t slot = bpe_slot(words->at[i].hash, n_slots);
        while (slots[slot]) slot = (slot + 1) & (n_slots - 1);
        slots[slot] = (uint32_t)i + 1;
    }
    free(words->slots);
    words->slots = slots;
    words->n_slots = n_slots;
    return 1;
}

static int bpe_add_word(bpe_words *words, const unsigned char *text, size_t size, int has_mark,
                        uint64_t count) {
    uint64_t hash = bpe_hash(BPE_HASH_SEED + (uint64_t)has_mark, text, size);
    bpe_word *word;
    if (!bpe_grow_words(words)) return 0;
    size_t slot = bpe_slot(hash, words->n_slots);
    for (; words->slots[slot]; slot = (slot + 1) & (words->n_slots - 1)) {
        word = &words->at[words->slots[slot] - 1];
        if (word->hash != hash || word->size != size || word->has_mark != has_mark) continue;
        if (size && memcmp(word->text, text, size) != 0) continue;
        word->count += count;
        return 1;
    }
    bpe_word *room = (bpe_word *)bpe_room(words->at, words->n + 1, &words->capacity, sizeof *room);
    if (!room) return 0;
    words->at = room;
    word = &room[words->n];
    word->text = text, word->size = size, word->has_mark = has_mark;
    word->hash = hash, word->count = count;
    words->slots[slot] = (uint32_t)++words->n;
    return 1;
}

/* The length of the space at p: 0, 1, or that of U+2581. */
static size_t bpe_space(const unsigned char *p, const unsigned char *end) {
    if (*p == ' ') return 1;
    return *p == 0xE2 && end - p >= 3 && p[1] == 0x96 && p[2] == 0x81 ? 3 : 0;
}

/* The words of a text, each with its leading space; an empty word is a space followed by another. */
static int bpe_count_text(bpe_words *words, const unsigned char *text, size_t size) {
    const unsigned char *p = text, *end = text + size, *begin = text;
    int in_line = 0; /* the line is not empty */
    for (; p < end; p++) {
        size_t space = bpe_space(p, end);
        if (!space && *p != '\n') {
            in_line = 1;
            continue;
        }
        in_line |= space > 0;
        if (in_line && !bpe_add_word(words, begin, (size_t)(p - begin), 1, 1)) return 0;
        in_line = space > 0;
        if (space) p += space - 1;
        begin = p + 1;
    }
    return !in_line || bpe_add_word(words, begin, (size_t)(end - begin), 1, 1);
}

/* ==== the trainer ==== */

/* A text that is a piece, or that joining two neighbors would make. Number 0 is not a string. */
typedef struct bpe_string {
    uint64_t hash;
    uint64_t count;  /* how often it can be joined now */
    uint64_t queued; /* its largest count in the queue; 0: it is not queued */
    uint32_t text;   /* where it begins in bpe_trainer.texts */
    uint32_t rank;   /* merges before it; BPE_NONE: it is not a merge */
    uint32_t place;  /* 1 + the first of its places; 0: none */
    uint16_t size;   /* bytes */
    uint8_t chars, touched;
} bpe_string;

/* A word that contains a string. The list may name words that no longer contain it. */
typedef struct bpe_place {
    uint32_t word, next;
} bpe_place;

/* A part of a word, and the string it would make with the next part; 0 for the last. */
typedef struct bpe_symbol {
    uint32_t string, joint;
} bpe_symbol;

typedef struct bpe_run { /* a word that is learned from */
    uint64_t count;
    size_t first; /* of its symbols */
    uint32_t n;
} bpe_run;

typedef struct bpe_entry {
    uint64_t count;
    uint32_t string;
} bpe_entry;

#define BPE_NONE UINT32_MAX

typedef struct bpe_trainer {
    bpe_desc desc;
    bpe_words words, parts; /* between spaces; then cut into what can be a piece */
    uint64_t *code_counts;  /* (BPE_N_CODES) */
    uint32_t *code_strings; /* (BPE_N_CODES) 0: the character gets no piece */
    uint32_t *codes;        /* (n_codes) those that do, the most frequent first */
    size_t n_codes;
    unsigned char *texts;
    bpe_string *strings;
    uint32_t *slots; /* hash table of strings; 0: empty */
    bpe_run *runs;
    bpe_symbol *symbols;
    bpe_place *places;
    bpe_entry *queue;
    uint32_t *touched; /* strings whose count may exceed their entry in the queue */
    uint32_t *merges;  /* (n_merges) */
    size_t n_texts, n_strings, n_slots, n_runs, n_symbols, n_places, n_queue, n_touched, n_merges;
    size_t texts_capacity, strings_capacity, runs_capacity, symbols_capacity, places_capacity, queue_capacity,
        touched_capacity;
    int no_memory; /* once set, everything after it does nothing */
} bpe_trainer;

static void bpe_free_trainer(bpe_trainer *t) {
    bpe_free_words(&t->words);
    bpe_free_words(&t->parts);
    free(t->code_counts);
    free(t->code_strings);
    free(t->codes);
    free(t->texts);
    free(t->strings);
    free(t->slots);
    free(t->runs);
    free(t->symbols);
    free(t->places);
    free(t->queue);
    free(t->touched);
    free(t->merges);
}

/* ---- which characters get a piece ---- */

static int bpe_count_chars(bpe_trainer *t) {
    t->code_counts = (uint64_t *)calloc(BPE_N_CODES, sizeof *t->code_counts);
    t->code_strings = (uint32_t *)calloc(BPE_N_CODES, sizeof *t->code_strings);
    if (!t->code_counts || !t->code_strings) return 0;
    for (size_t i = 0; i < t->words.n; i++) {
        const bpe_word *word = &t->words.at[i];
        const unsigned char *p = word->text, *end = p + word->size;
        t->code_counts[BPE_MARK] += word->count;
        while (p < end) {
            uint32_t code;
            size_t n = bpe_decode(p, end, &code);
            if (n && code >= 0x20 && code != 0x7F) t->code_counts[code] += word->count;
            p += n ? n : 1;
        }
    }
    return 1;
}

typedef struct bpe_code {
    uint64_t count;
    uint32_t code;
} bpe_code;

static int bpe_compare_codes(const void *a, const void *b) {
    const bpe_code *x = (const bpe_code *)a, *y = (const bpe_code *)b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return x->code < y->code ? -1 : 1;
}

/* The most frequent characters, until together they cover enough of the text. The space is always among them, since
   every text begins with it. */
static int bpe_choose_chars(bpe_trainer *t) {
    size_t i, n = 0;
    uint64_t all = 0, covered = 0;
    for (i = 0; i < BPE_N_CODES; i++) n += t->code_counts[i] > 0;
    bpe_code *sorted = (bpe_code *)malloc((n + 1) * sizeof *sorted);
    t->codes = (uint32_t *)malloc((n + 1) * sizeof *t->codes);
    if (!sorted || !t->codes) return free(sorted), 0;
    for (i = n = 0; i < BPE_N_CODES; i++) {
        if (!t->code_counts[i]) continue;
        all += t->code_counts[i];
        sorted[n].count = t->code_counts[i];
        sorted[n++].code = (uint32_t)i;
    }
    qsort(sorted, n, sizeof *sorted, bpe_compare_codes);
    for (i = 0; i < n; i++) {
        int enough = (double)covered / (double)all >= t->desc.character_coverage;
        if (!enough || sorted[i].code == BPE_MARK) t->codes[t->n_codes++] = sorted[i].code;
        covered += sorted[i].count;
    }
    free(sorted);
    return 1;
}

/* ---- strings ---- */

static int bpe_grow_slots(bpe_trainer *t) {
    size_t n_slots = t->n_slots ? t->n_slots * 2 : 4096;
    if (2 * (t->n_strings + 1) <= t->n_slots) return 1;
    uint32_t *slots = (uint32_t *)calloc(n_slots, sizeof *slots);
    if (!slots) return 0;
    for (size_t i = 1; i < t->n_strings; i++) {
        size_t slot = bpe_slot(t->strings[i].hash, n_slots);
        while (slots[slot]) slot = (slot + 1) & (n_slots - 1);
        slots[slot] = (uint32_t)i;
    }
    free(t->slots);
    t->slots = slots;
    t->n_slots = n_slots;
    return 1;
}

/* The string with this text, added if there is none; 0 when out of memory. */
static uint32_t bpe_string_of(bpe_trainer *t, const unsigned char *text, size_t size, int chars,
                              uint64_t hash) {
    bpe_string *s;
    if (!bpe_grow_slots(t)) return t->no_memory = 1, 0;
    size_t slot = bpe_slot(hash, t->n_slots);
    for (; t->slots[slot]; slot = (slot + 1) & (t->n_slots - 1)) {
        s = &t->strings[t->slots[slot]];
        if (s->hash == hash && s->size == size && memcmp(t->texts + s->text, text, size) == 0)
            return t->slots[slot];
    }
    void *texts = bpe_room(t->texts, t->n_texts + size, &t->texts_capacity, 1);
    if (texts) t->texts = (unsigned char *)texts;
    void *strings = bpe_room(t->strings, t->n_strings + 1, &t->strings_capacity, sizeof *s);
    if (strings) t->strings = (bpe_string *)strings;
    if (!texts || !strings) return t->no_memory = 1, 0;
    s = &t->strings[t->n_strings];
    memset(s, 0, sizeof *s);
    s->hash = hash;
    s->text = (uint32_t)t->n_texts;
    s->size = (uint16_t)size;
    s->chars = (uint8_t)chars;
    s->rank = BPE_NONE;
    memcpy(t->texts + t->n_texts, text, size);
    t->n_texts += size;
    return t->slots[slot] = (uint32_t)t->n_strings++;
}

/* The string of each character that gets a piece. */
static int bpe_add_chars(bpe_trainer *t) {
    t->strings = (bpe_string *)bpe_room(NULL, 1, &t->strings_capacity, sizeof *t->strings);
    if (!t->strings) return 0;
    memset(t->strings, 0, sizeof *t->strings);
    t->strings[0].rank = BPE_NONE;
    t->n_strings = 1;
    for (size_t i = 0; i < t->n_codes; i++) {
        unsigned char text[4];
        size_t size = bpe_encode(t->codes[i], text);
        t->code_strings[t->codes[i]] = bpe_string_of(t, text, size, 1, bpe_hash(BPE_HASH_SEED, text, size));
    }
    return !t->no_memory;
}

/* The string that two strings make; 0 if it is too long or either of them is 0. */
static uint32_t bpe_joint_of(bpe_trainer *t, uint32_t left, uint32_t right) {
    const bpe_string *a = &t->strings[left], *b = &t->strings[right];
    unsigned char text[4 * BPE_MAX_WORD];
    int chars = a->chars + b->chars;
    if (!left || !right || chars > t->desc.max_piece_chars) return 0;
    memcpy(text, t->texts + a->text, a->size);
    memcpy(text + a->size, t->texts + b->text, b->size);
    return bpe_string_of(t, text, (size_t)a->size + b->size, chars,
                         bpe_hash(a->hash, text + a->size, b->size));
}

/* ---- cutting words into parts that can be pieces ---- */

/* Adds a part of a word, unless it is a single character, from which nothing can be learned. */
static int bpe_add_part(bpe_trainer *t, const unsigned char *begin, const unsigned char *end, int has_mark,
                        int n_chars, uint64_t count) {
    return n_chars + has_mark < 2 || bpe_add_word(&t->parts, begin, (size_t)(end - begin), has_mark, count);
}

static int bpe_cut_word(bpe_trainer *t, const bpe_word *word) {
    const unsigned char *p = word->text, *end = p + word->size, *begin = p;
    int has_mark = 1, n_chars = 0, part_group = BPE_ALONE;
    while (p < end) {
        uint32_t code;
        size_t n = bpe_decode(p, end, &code);
        int group = n && t->code_strings[code] ? bpe_group(code) : BPE_ALONE;
        if (group == BPE_COMBINING && n_chars) group = part_group;
        if (group == BPE_ALONE || (n_chars && group != part_group) || n_chars + has_mark == BPE_MAX_WORD) {
            if (!bpe_add_part(t, begin, p, has_mark, n_chars, word->count)) return 0;
            begin = p;
            has_mark = n_chars = 0;
        }
        p += n ? n : 1;
        part_group = group;
        if (group == BPE_ALONE)
            begin = p;
        else
            n_chars++;
    }
    return bpe_add_part(t, begin, p, has_mark, n_chars, word->count);
}

static int bpe_cut_words(bpe_trainer *t) {
    for (size_t i = 0; i < t->words.n; i++)
        if (!bpe_cut_word(t, &t->words.at[i])) return 0;
    bpe_free_words(&t->words);
    return 1;
}

/* ---- the queue: the most frequent string first ---- */

static int bpe_is_before(const bpe_trainer *t, const bpe_entry *x, const bpe_entry *y) {
    const bpe_string *a = &t->strings[x->string], *b = &t->strings[y->string];
    if (x->count != y->count) return x->count > y->count;
    if (a->chars != b->chars) return a->chars < b->chars;
    int order = memcmp(t->texts + a->text, t->texts + b->text, a->size < b->size ? a->size : b->size);
    return order ? order < 0 : a->size < b->size;
}

static void bpe_push(bpe_trainer *t, uint32_t string) {
    bpe_entry *queue = (bpe_entry *)bpe_room(t->queue, t->n_queue + 1, &t->queue_capacity, sizeof *queue),
              entry;
    size_t i = t->n_queue;
    if (!queue) {
        t->no_memory = 1;
        return;
    }
    t->queue = queue;
    t->n_queue++;
    entry.string = string;
    entry.count = t->strings[string].queued = t->strings[string].count;
    for (; i > 0 && bpe_is_before(t, &entry, &queue[(i - 1) / 2]); i = (i - 1) / 2)
        queue[i] = queue[(i - 1) / 2];
    queue[i] = entry;
}

static bpe_entry bpe_pop(bpe_trainer *t) {
    bpe_entry *queue = t->queue, top = queue[0], last = queue[--t->n_queue];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < t->n_queue) {
        if (child + 1 < t->n_queue && bpe_is_before(t, &queue[child + 1], &queue[child])) child++;
        if (!bpe_is_before(t, &queue[child], &last)) break;
        queue[i] = queue[child];
        i = child;
    }
    queue[i] = last;
    return top;
}

/* The next merge; 0: nothing is left to join. Counts that fell are corrected only here, when they reach the top:
   until then an entry is an upper bound, so the first entry that is exact is the best. */
static uint32_t bpe_pop_best(bpe_trainer *t) {
    while (t->n_queue && !t->no_memory) {
        bpe_entry top = bpe_pop(t);
        bpe_string *s = &t->strings[top.string];
        if (s->rank != BPE_NONE || top.count != s->queued)
            continue; /* pushed again since then, with a larger count */
        if (s->count == top.count) return top.string;
        s->queued = 0;
        if (s->count) bpe_push(t, top.string);
    }
    return 0;
}

/* Pushes the strings whose counts have grown above their entries. */
static void bpe_push_touched(bpe_trainer *t) {
    for (size_t i = 0; i < t->n_touched; i++) {
        bpe_string *s = &t->strings[t->touched[i]];
        s->touched = 0;
        if (s->count > s->queued) bpe_push(t, t->touched[i]);
    }
    t->n_touched = 0;
}

/* ---- counting and joining ---- */

static void bpe_touch(bpe_trainer *t, uint32_t string) {
    if (t->strings[string].touched) return;
    uint32_t *room = (uint32_t *)bpe_room(t->touched, t->n_touched + 1, &t->touched_capacity, sizeof *room);
    if (!room) {
        t->no_memory = 1;
        return;
    }
    t->touched = room;
    room[t->n_touched++] = string;
    t->strings[string].touched = 1;
}

/* Adds the pairs of a run to the counts, or subtracts them. Of two that overlap only the left one counts, since only
   it would be joined. */
static void bpe_count_run(bpe_trainer *t, const bpe_run *run, int sign) {
    const bpe_symbol *symbols = t->symbols + run->first;
    uint32_t before = 0;
    for (uint32_t i = 0; i + 1 < run->n; i++) {
        uint32_t joint = symbols[i].joint;
        bpe_string *s = &t->strings[joint];
        int overlaps = joint == before;
        before = overlaps ? 0 : joint;
        if (!joint || overlaps) continue;
        s->count = sign > 0 ? s->count + run->count : s->count - run->count;
        if (s->count > s->queued) bpe_touch(t, joint);
    }
}

/* Sets the string that a symbol would make with the next, and records that the run contains it. */
static void bpe_set_joint(bpe_trainer *t, uint32_t number, uint32_t i) {
    const bpe_run *run = &t->runs[number];
    bpe_symbol *symbol = &t->symbols[run->first + i];
    symbol->joint = i + 1 < run->n ? bpe_joint_of(t, symbol->string, symbol[1].string) : 0;
    bpe_string *s = &t->strings[symbol->joint];
    if (!symbol->joint || (s->place && t->places[s->place - 1].word == number)) return;
    bpe_place *room = (bpe_place *)bpe_room(t->places, t->n_places + 1, &t->places_capacity, sizeof *room);
    if (!room) {
        t->no_memory = 1;
        return;
    }
    t->places = room;
    room[t->n_places].word = number;
    room[t->n_places].next = s->place;
    s->place = (uint32_t)++t->n_places;
}

/* Joins all neighbors in a run that make the string, from the left. This cannot create any other piece: a text that
   became a piece earlier was joined by the same steps everywhere, except where a merge across its ends split it. */
static void bpe_join(bpe_trainer *t, uint32_t number, uint32_t string) {
    bpe_run *run = &t->runs[number];
    bpe_symbol *symbols = t->symbols + run->first;
    for (uint32_t i = 0; i + 1 < run->n; i++) {
        if (symbols[i].joint != string) continue;
        symbols[i].string = string;
        run->n--;
        memmove(symbols + i + 1, symbols + i + 2, (run->n - i - 1) * sizeof *symbols);
        if (i > 0) bpe_set_joint(t, number, i - 1);
        bpe_set_joint(t, number, i);
    }
}

/* Makes a string the next piece and updates all words that contain it. */
static void bpe_merge(bpe_trainer *t, uint32_t string) {
    uint32_t place = t->strings[string].place;
    t->strings[string].rank = (uint32_t)t->n_merges;
    t->merges[t->n_merges++] = string;
    while (place && !t->no_memory) {
        uint32_t i = 0, number = t->places[place - 1].word;
        const bpe_run *run = &t->runs[number];
        const bpe_symbol *symbols = t->symbols + run->first;
        place = t->places[place - 1].next;
        while (i + 1 < run->n && symbols[i].joint != string) i++;
        if (i + 1 >= run->n) continue; /* no longer there */
        bpe_count_run(t, run, -1);
        bpe_join(t, number, string);
        bpe_count_run(t, run, 1);
    }
    bpe_push_touched(t);
}

/* A run of the characters of a part. */
static int bpe_add_run(bpe_trainer *t, const bpe_word *part) {
    const unsigned char *p = part->text, *end = p + part->size;
    bpe_run *runs = (bpe_run *)bpe_room(t->runs, t->n_runs + 1, &t->runs_capacity, sizeof *runs), *run;
    bpe_symbol *symbols = (bpe_symbol *)bpe_room(t->symbols, t->n_symbols + BPE_MAX_WORD,
                                                 &t->symbols_capacity, sizeof *symbols);
    uint32_t code;
    if (runs) t->runs = runs;
    if (symbols) t->symbols = symbols;
    if (!runs || !symbols) return 0;
    run = &runs[t->n_runs];
    run->count = part->count;
    run->first = t->n_symbols;
    run->n = 0;
    symbols += run->first;
    if (part->has_mark) symbols[run->n++].string = t->code_strings[BPE_MARK];
    while (p < end) {
        p += bpe_decode(p, end, &code);
        symbols[run->n++].string = t->code_strings[code];
    }
    t->n_symbols += run->n;
    for (uint32_t i = 0; i < run->n; i++) bpe_set_joint(t, (uint32_t)t->n_runs, i);
    t->n_runs++;
    bpe_count_run(t, run, 1);
    return !t->no_memory;
}

static int bpe_add_runs(bpe_trainer *t) {
    for (size_t i = 0; i < t->parts.n; i++)
        if (!bpe_add_run(t, &t->parts.at[i])) return 0;
    bpe_free_words(&t->parts);
    bpe_push_touched(t);
    return !t->no_memory;
}

/* ==== the vocabulary ==== */

static void bpe_set_piece(bpe_vocabulary *v, int id, char *text, size_t size, int kind, float score) {
    bpe_piece *piece = &v->pieces[id];
    piece->text = text;
    piece->size = (int)size;
    piece->kind = kind;
    piece->score = score;
}

/* The ids before the first merge; returns the end of their texts. */
static char *bpe_add_fixed_pieces(bpe_vocabulary *v, char *to) {
    static const char *const names[] = {"<unk>", "<s>", "</s>"};
    for (int id = 0; id < BPE_FIRST; id++) {
        char name[8];
        size_t size;
        if (id < 3)
            snprintf(name, sizeof name, "%s", names[id]);
        else
            snprintf(name, sizeof name, "<0x%02X>", (unsigned)(id - 3) & 255u);
        size = strlen(name);
        memcpy(to, name, size);
        bpe_set_piece(v, id, to, size, id == 0 ? BPE_UNKNOWN : id < 3 ? BPE_CONTROL : BPE_BYTE, 0);
        to += size;
    }
    return to;
}

static bpe_vocabulary *bpe_vocabulary_of(const bpe_trainer *t) {
    bpe_vocabulary *v = (bpe_vocabulary *)calloc(1, sizeof *v);
    size_t n = t->n_merges + t->n_codes, n_bytes = BPE_FIRST * 6;
    if (!v) return NULL;
    for (size_t i = 0; i < t->n_merges; i++) n_bytes += t->strings[t->merges[i]].size;
    v->desc = t->desc;
    v->n_merges = (int)t->n_merges;
    v->n_chars = (int)t->n_codes;
    v->n_pieces = BPE_FIRST + (int)n;
    v->pieces = (bpe_piece *)malloc((BPE_FIRST + n) * sizeof *v->pieces);
    v->texts = (char *)malloc(n_bytes + 4 * t->n_codes);
    if (!v->pieces || !v->texts) return bpe_free(v), (bpe_vocabulary *)NULL;
    char *to = bpe_add_fixed_pieces(v, v->texts);
    for (size_t i = 0; i < n; i++) {
        uint32_t string = i < t->n_merges ? t->merges[i] : t->code_strings[t->codes[i - t->n_merges]];
        const bpe_string *s = &t->strings[string];
        memcpy(to, t->texts + s->text, s->size);
        bpe_set_piece(v, BPE_FIRST + (int)i, to, s->size, BPE_NORMAL, -(float)i);
        to += s->size;
    }
    return v;
}

void bpe_free(bpe_vocabulary *vocabulary) {
    if (!vocabulary) return;
    free(vocabulary->pieces);
    free(vocabulary->texts);
    free(vocabulary);
}

/* The settings with defaults filled in; 0 where they are wrong. */
static int bpe_check_desc(bpe_trainer *t, const bpe_desc *desc, char *error, size_t error_size) {
    t->desc = *desc;
    if (t->desc.character_coverage == 0) t->desc.character_coverage = 0.9995;
    if (t->desc.max_piece_chars == 0) t->desc.max_piece_chars = 16;
    if (!(t->desc.character_coverage > 0 && t->desc.character_coverage <= 1))
        return bpe_fail(error, error_size, "character coverage is above 0 and at most 1, not %g",
                        desc->character_coverage),
               0;
    if (t->desc.max_piece_chars < 1 || t->desc.max_piece_chars > BPE_MAX_WORD)
        return bpe_fail(error, error_size, "a piece may have 1 to %d characters, not %d", BPE_MAX_WORD,
                        desc->max_piece_chars),
               0;
    if (t->desc.vocab_size > BPE_MAX_PIECES)
        return bpe_fail(error, error_size, "a vocabulary of %d pieces is too large: at most %d",
                        t->desc.vocab_size, BPE_MAX_PIECES),
               0;
    return 1;
}

/* From the texts to runs and the queue of the pairs in them. 0 when out of memory. */
static int bpe_read_texts(bpe_trainer *t, const bpe_text *texts, size_t n_texts) {
    for (size_t i = 0; i < n_texts; i++)
        if (texts[i].size && !bpe_count_text(&t->words, (const unsigned char *)texts[i].data, texts[i].size))
            return 0;
    return bpe_count_chars(t) && bpe_choose_chars(t) && bpe_add_chars(t) && bpe_cut_words(t) &&
           bpe_add_runs(t);
}

static int bpe_learn(bpe_trainer *t, const bpe_text *texts, size_t n_texts, char *error, size_t error_size) {
    if (!bpe_read_texts(t, texts, n_texts)) return bpe_fail(error, error_size, "not enough memory"), 0;
    if (!t->n_codes) return bpe_fail(error, error_size, "there is no text to learn a vocabulary from"), 0;
    size_t least = BPE_FIRST + t->n_codes;
    if (t->desc.vocab_size < 0 || (size_t)t->desc.vocab_size < least)
        return bpe_fail(error, error_size,
                        "a vocabulary of %d pieces is too small: <unk>, <s>, </s>, the 256 bytes and %lu "
                        "characters of the text need %lu",
                        t->desc.vocab_size, (unsigned long)t->n_codes, (unsigned long)least),
               0;
    size_t wanted = (size_t)t->desc.vocab_size - least;
    t->merges = (uint32_t *)malloc((wanted + 1) * sizeof *t->merges);
    if (!t->merges) t->no_memory = 1;
    while (t->n_merges < wanted && !t->no_memory) {
        uint32_t best = bpe_pop_best(t);
        if (!best) break;
        bpe_merge(t, best);
    }
    if (t->no_memory) return bpe_fail(error, error_size, "not enough memory"), 0;
    if (t->n_merges < wanted)
        return bpe_fail(error, error_size, "the text fills no vocabulary of %d pieces: at most %lu",
                        t->desc.vocab_size, (unsigned long)(least + t->n_merges)),
               0;
    return 1;
}

bpe_vocabulary *bpe_train(const bpe_desc *desc, const bpe_text *texts, size_t n_texts, char *error,
                          size_t error_size) {
    bpe_trainer t;
    bpe_vocabulary *v = NULL;
    memset(&t, 0, sizeof t);
    if (error_size) error[0] = 0;
    if (bpe_check_desc(&t, desc, error, error_size) && bpe_learn(&t, texts, n_texts, error, error_size)) {
        v = bpe_vocabulary_of(&t);
        if (!v) bpe_fail(error, error_size, "not enough memory");
    }
    bpe_free_trainer(&t);
    return v;
}

/* ==== tokenizer.model: SentencePiece's ModelProto, in protobuf's encoding ==== */

/* Bytes to be written, or with data NULL only counted. */
typedef struct bpe_out {
    unsigned char *data;
    size_t size;
} bpe_out;

static void bpe_put(bpe_out *out, const void *bytes, size_t n) {
    if (out->data && n) memcpy(out->data + out->size, bytes, n);
    out->size += n;
}

/* Seven bits to a byte, the lowest first; the top bit says that more follow. */
static void bpe_put_varint(bpe_out *out, uint64_t value) {
    do {
        unsigned char c = (unsigned char)((value & 127) | (value > 127 ? 128 : 0));
        bpe_put(out, &c, 1);
        value >>= 7;
    } while (value);
}

static void bpe_put_int(bpe_out *out, int field, int64_t value) {
    bpe_put_varint(out, (uint64_t)field << 3);
    bpe_put_varint(out, (uint64_t)value);
}

static void bpe_put_float(bpe_out *out, int field, float value) {
    unsigned char bytes[4];
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    for (int i = 0; i < 4; i++) bytes[i] = (unsigned char)(bits >> 8 * i);
    bpe_put_varint(out, (uint64_t)field << 3 | 5);
    bpe_put(out, bytes, 4);
}

static void bpe_put_text(bpe_out *out, int field, const char *text, size_t size) {
    bpe_put_varint(out, (uint64_t)field << 3 | 2);
    bpe_put_varint(out, size);
    bpe_put(out, text, size);
}

static void bpe_put_piece(bpe_out *out, const void *context) {
    const bpe_piece *piece = (const bpe_piece *)context;
    bpe_put_text(out, 1, piece->text, (size_t)piece->size);
    bpe_put_float(out, 2, piece->score);
    if (piece->kind != BPE_NORMAL) bpe_put_int(out, 3, piece->kind);
}

/* TrainerSpec: how the vocabulary was learned, and what makes readers treat it as BPE with these special ids. */
static void bpe_put_trainer(bpe_out *out, const void *context) {
    const bpe_vocabulary *v = (const bpe_vocabulary *)context;
    static const char unknown_text[] = " \xE2\x81\x87 "; /* how an unknown piece is shown */
    bpe_put_int(out, 3, 2);                              /* model_type: BPE */
    bpe_put_int(out, 4, v->n_pieces);                    /* vocab_size */
    bpe_put_float(out, 10, (float)v->desc.character_coverage);
    bpe_put_int(out, 20, v->desc.max_piece_chars); /* max_sentencepiece_length */
    bpe_put_int(out, 21, 1);                       /* split_by_unicode_script */
    bpe_put_int(out, 22, 1);                       /* split_by_whitespace */
    bpe_put_int(out, 23, 1);                       /* split_by_number */
    bpe_put_int(out, 24, 0);                       /* treat_whitespace_as_suffix */
    bpe_put_int(out, 25, 1);                       /* split_digits */
    bpe_put_int(out, 26, 0);                       /* allow_whitespace_only_pieces */
    bpe_put_int(out, 35, 1);                       /* byte_fallback */
    bpe_put_int(out, 40, 0);                       /* unk_id, bos_id, eos_id, pad_id */
    bpe_put_int(out, 41, 1);
    bpe_put_int(out, 42, 2);
    bpe_put_int(out, 43, -1);
    bpe_put_text(out, 44, unknown_text,
                 sizeof unknown_text - 1); /* unk_surface, then the names of these ids */
    bpe_put_text(out, 45, "<unk>", 5);
    bpe_put_text(out, 46, "<s>", 3);
    bpe_put_text(out, 47, "</s>", 4);
    bpe_put_text(out, 48, "<pad>", 5);
}

/* NormalizerSpec: text stays as it is except for the leading space. */
static void bpe_put_normalizer(bpe_out *out, const void *context) {
    (void)context;
    bpe_put_text(out, 1, "identity", 8);
    bpe_put_text(out, 2, "", 0); /* precompiled_charsmap */
    bpe_put_int(out, 3, 1);      /* add_dummy_prefix */
    bpe_put_int(out, 4, 0);      /* remove_extra_whitespaces */
    bpe_put_int(out, 5, 1);      /* escape_whitespaces: as U+2581 */
}

/* A nested message is preceded by its size, so it is written twice, first only to be counted. */
static void bpe_put_message(bpe_out *out, int field, void (*put)(bpe_out *, const void *),
                            const void *context) {
    bpe_out counted = {NULL, 0};
    put(&counted, context);
    bpe_put_varint(out, (uint64_t)field << 3 | 2);
    bpe_put_varint(out, counted.size);
    put(out, context);
}

static void bpe_put_model(bpe_out *out, const bpe_vocabulary *v) {
    for (int id = 0; id < v->n_pieces; id++) bpe_put_message(out, 1, bpe_put_piece, &v->pieces[id]);
    bpe_put_message(out, 2, bpe_put_trainer, v);
    bpe_put_message(out, 3, bpe_put_normalizer, v);
}

unsigned char *bpe_write(const bpe_vocabulary *vocabulary, size_t *size, char *error, size_t error_size) {
    bpe_out out = {NULL, 0};
    if (error_size) error[0] = 0;
    bpe_put_model(&out, vocabulary);
    *size = 0;
    out.data = (unsigned char *)malloc(out.size);
    if (!out.data) return bpe_fail(error, error_size, "not enough memory"), (unsigned char *)NULL;
    out.size = 0;
    bpe_put_model(&out, vocabulary);
    *size = out.size;
    return out.data;
}
