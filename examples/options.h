/* Command line options for the programs of this repository: a table, and one function that reads argv by it. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum option_kind { OPTION_FLAG, OPTION_INT, OPTION_FLOAT, OPTION_TEXT } option_kind;

typedef struct option {
    const char
        *name; /* "--seed"; a dash inside a name may be typed as an underscore and the other way round */
    option_kind kind;
    void *value;      /* int *, int *, float *, const char ** by kind */
    const char *help; /* with the default in it */
} option;

static int option_same(const char *a, const char *b) {
    for (; *a && *b; a++, b++)
        if (*a != *b && !((*a == '-' && *b == '_') || (*a == '_' && *b == '-'))) return 0;
    return *a == *b;
}

/* Edit distance (Levenshtein 1966), for "did you mean". */
static int option_distance(const char *a, const char *b) {
    int row[64], i, j, n = (int)strlen(b);
    if (n > 63 || strlen(a) > 200) return 99;
    for (j = 0; j <= n; j++) row[j] = j;
    for (i = 1; a[i - 1]; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (j = 1; j <= n; j++) {
            int change = diagonal + (a[i - 1] != b[j - 1]), least = row[j] < row[j - 1] ? row[j] : row[j - 1];
            diagonal = row[j];
            row[j] = change < least + 1 ? change : least + 1;
        }
    }
    return row[n];
}

static void options_print(FILE *file, const option *options, int n) {
    int i;
    for (i = 0; i < n; i++) {
        static const char *const values[] = {"", " N", " X", " TEXT"};
        char head[64];
        snprintf(head, sizeof head, "%s%s", options[i].name, values[options[i].kind]);
        fprintf(file, "  %-42s %s\n", head, options[i].help);
    }
}

static int option_unknown(const char *given, const option *options, int n) {
    int i, best = -1, least = 4;
    for (i = 0; i < n; i++) {
        int d = option_distance(given, options[i].name);
        if (d < least) least = d, best = i;
    }
    fprintf(stderr, "unknown option %s", given);
    if (best >= 0) fprintf(stderr, "; did you mean %s?", options[best].name);
    fprintf(stderr, " (--help lists all)\n");
    return 0;
}

static int option_set(const option *o, const char *text) {
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
        double value = strtod(text, &end);
        if (end == text || *end || !isfinite(value))
            return fprintf(stderr, "%s takes a number, not \"%s\"\n", o->name, text), 0;
        *(float *)o->value = (float)value;
    }
    return 1;
}

/* Sets what argv gives (--name value or --name=value). Words without dashes go to `words`, at most max_words.
   Returns 0, having said why, when something is wrong. */
static int options_read(int argc, char **argv, const option *options, int n, const char **words,
                        int max_words) {
    int i, j, n_words = 0;
    for (i = 1; i < argc; i++) {
        char name[64];
        const char *equals = strchr(argv[i], '='), *text = NULL;
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        if (strncmp(argv[i], "--", 2) != 0) {
            if (n_words == max_words) return fprintf(stderr, "one word too many: %s\n", argv[i]), 0;
            words[n_words++] = argv[i];
            continue;
        }
        snprintf(name, sizeof name, "%.*s", (int)length, argv[i]);
        for (j = 0; j < n && !option_same(name, options[j].name);) j++;
        if (j == n) return option_unknown(name, options, n);
        if (options[j].kind == OPTION_FLAG) {
            if (equals) return fprintf(stderr, "%s takes no value\n", options[j].name), 0;
            *(int *)options[j].value = 1;
            continue;
        }
        if (equals)
            text = equals + 1;
        else if (i + 1 < argc)
            text = argv[++i];
        else
            return fprintf(stderr, "%s needs a value\n", options[j].name), 0;
        if (!option_set(&options[j], text)) return 0;
    }
    return 1;
}

#endif
