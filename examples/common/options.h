/* Command line options for the programs of this repository: a table, and one function that reads argv by it. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "system.h"

typedef enum option_kind { OPTION_FLAG, OPTION_INT, OPTION_FLOAT, OPTION_TEXT } option_kind;

typedef struct option {
    const char *name; /* "--seed"; dashes and underscores inside a name are interchangeable */
    option_kind kind;
    void *value;      /* int *, int *, float *, const char ** by kind */
    const char *help; /* includes the default */
} option;

static inline int option_same(const char *a, const char *b) {
    for (; *a && *b; a++, b++)
        if (*a != *b && !((*a == '-' && *b == '_') || (*a == '_' && *b == '-'))) return 0;
    return *a == *b;
}

/* Edit distance (Levenshtein 1966), for "did you mean". */
static inline int option_distance(const char *a, const char *b) {
    int row[64], n = (int)strlen(b);
    if (n > 63 || strlen(a) > 200) return 99;
    for (int j = 0; j <= n; j++) row[j] = j;
    for (int i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]), least = row[j] < row[j - 1] ? row[j] : row[j - 1];
            diagonal = row[j];
            row[j] = change < least + 1 ? change : least + 1;
        }
    }
    return row[n];
}

/* Ends the program if standard output cannot be written: otherwise its status would be that of --help, 0. */
static inline void options_print(FILE *file, const option *options, int n) {
    for (int i = 0; i < n; i++) {
        static const char *const values[] = {"", " N", " X", " TEXT"};
        char head[64];
        snprintf(head, sizeof head, "%s%s", options[i].name, values[options[i].kind]);
        fprintf(file, "  %-42s %s\n", head, options[i].help);
    }
    if (file != stdout || (fflush(file) == 0 && !ferror(file))) return;
    fprintf(stderr, "standard output cannot be written\n");
    exit(1);
}

static inline int option_unknown(const char *given, const option *options, int n) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(given, "="), given);
    int best = -1, length = (int)strlen(name), least = length < 8 ? length / 2 : 4;
    for (int i = 0; i < n; i++) {
        int d = option_distance(name, options[i].name);
        if (d < least) least = d, best = i;
    }
    fprintf(stderr, "unknown option %s", name);
    if (best >= 0) fprintf(stderr, "; did you mean %s?", options[best].name);
    fprintf(stderr, " (--help lists all)\n");
    return 0;
}

static inline int option_set(const option *o, const char *text) {
    char *end;
    errno = 0;
    if (o->kind == OPTION_TEXT) {
        *(const char **)o->value = text;
    } else if (o->kind == OPTION_INT) {
        long value = strtol(text, &end, 10);
        if (errno || end == text || *end || value > INT_MAX || value < INT_MIN)
            return fprintf(stderr, "%s takes a whole number, not \"%s\"\n", o->name, text), 0;
        *(int *)o->value = (int)value;
    } else {
        float value = strtof(text, &end);
        if (end == text || *end || !isfinite(value))
            return fprintf(stderr, "%s takes a number, not \"%s\"\n", o->name, text), 0;
        *(float *)o->value = value;
    }
    return 1;
}

/* The option that a word of argv names, as --name or --name=value; NULL: none. */
static inline const option *option_of(const char *word, const option *options, int n) {
    char name[64];
    if (strcmp(word, "-h") == 0) word = "--help";
    snprintf(name, sizeof name, "%.*s", (int)strcspn(word, "="), word);
    for (int i = 0; i < n; i++)
        if (option_same(name, options[i].name)) return &options[i];
    return NULL;
}

/* One option at argv[*at], whose value may be the next argument. */
static inline int option_read(int argc, char **argv, int *at, const option *options, int n) {
    const char *equals = strchr(argv[*at], '=');
    const option *o = option_of(argv[*at], options, n);
    if (!o) return option_unknown(argv[*at], options, n);
    if (o->kind == OPTION_FLAG) {
        if (equals) return fprintf(stderr, "%s takes no value\n", o->name), 0;
        return *(int *)o->value = 1;
    }
    if (equals) return option_set(o, equals + 1);
    if (*at + 1 == argc) return fprintf(stderr, "%s needs a value\n", o->name), 0;
    const char *value = argv[++*at];
    if (strncmp(value, "--", 2) == 0 && option_of(value, options, n))
        return fprintf(stderr, "%s needs a value (%s=%s if that is it)\n", o->name, o->name, value), 0;
    return option_set(o, value);
}

/* Does argv, which options_read has accepted, give the option of this name? */
static inline int option_given(int argc, char **argv, const option *options, int n, const char *name) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        const option *o = option_of(argv[i], options, n);
        if (o && strcmp(o->name, name) == 0) return 1;
        if (o && o->kind != OPTION_FLAG && !strchr(argv[i], '=')) i++; /* its value */
    }
    return 0;
}

/* Sets what argv, that of main, gives (--name value or --name=value; -h is --help). Words without dashes, "-" alone, and
   all after "--" go to `words`, at most max_words. Returns 0 after saying why if something is wrong. */
static inline int options_read(int argc, char **argv, const option *options, int n, const char **words,
                               int max_words) {
    int n_words = 0, only_words = 0;
    argv = system_arguments(argc, argv);
    for (int i = 1; i < argc; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0) {
            only_words = 1;
        } else if (!only_words && argv[i][0] == '-' && argv[i][1]) {
            if (!option_read(argc, argv, &i, options, n)) return 0;
        } else if (n_words < max_words) {
            words[n_words++] = argv[i];
        } else {
            return fprintf(stderr, "one word too many: %s\n", argv[i]), 0;
        }
    }
    return 1;
}

#endif
