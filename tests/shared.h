/* Where the tests find the public files that are not part of the repository, and how they read them. */
#ifndef SHARED_H
#define SHARED_H

#include "preamble.h"

/* The path of a file in the shared folder; NULL when it is not there. */
static inline const char *shared_path(const char *name) {
    static char path[8][1024];
    static int turn;
    const char *root = getenv("MINILLAMA_SHARED");
    FILE *file;
    turn = (turn + 1) % 8;
    snprintf(path[turn], sizeof path[turn], "%s/%s", root ? root : "../shared", name);
    file = fopen(path[turn], "rb");
    if (!file) return NULL;
    fclose(file);
    return path[turn];
}

/* Skips a test that needs the shared folder where there is none. */
#define NEED_SHARED()                                                                                        \
    if (!shared_path("REFERENCE.md")) SKIP("../shared is absent")

/* An array of an archive as newly allocated floats; *n is how many. NULL, and a failed check, if there is none. */
static inline float *shared_floats(const ml_archive *archive, const char *name, size_t *n) {
    const ml_array *array = ml_archive_find_array(archive, name);
    *n = 0;
    CHECK(array != NULL);
    if (!array) return NULL;
    *n = ml_array_count(array);
    float *x = (float *)malloc(*n * sizeof *x + 1);
    CHECK(ml_array_read_floats(array, x, *n) == ML_OK);
    return x;
}

static inline int32_t *shared_tokens(const ml_archive *archive, const char *name, size_t *n) {
    float *x = shared_floats(archive, name, n);
    if (!x) return NULL;
    int32_t *ids = (int32_t *)malloc(*n * sizeof *ids + 1);
    for (size_t i = 0; i < *n; i++) ids[i] = (int32_t)x[i];
    free(x);
    return ids;
}

/* The largest |a - b| over n, and NaN if there is one. */
static inline double max_difference(const float *a, const float *b, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (d != d) return d;
        if (d > most) most = d;
    }
    return most;
}

#endif
