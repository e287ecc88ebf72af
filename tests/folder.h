/* A temporary folder for one test program (temporary.h), and whole files in and out. */
#ifndef FOLDER_H
#define FOLDER_H

#include "temporary.h"
#include "build_files.h"

/* Empty if the path is NULL or cannot be opened; of a device only the first 30 MB. */
static inline bytes read_file(const char *path) {
    FILE *file = path ? fopen(path, "rb") : NULL;
    unsigned char part[4096];
    size_t n;
    bytes b;
    memset(&b, 0, sizeof b);
    if (!file) return b;
    while ((n = fread(part, 1, sizeof part, file)) > 0 && b.size < 30000000) put(&b, part, n);
    fclose(file);
    return b;
}

static inline void write_file(const char *path, const void *data, size_t n) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(data, 1, n, file) == n);
    if (file) fclose(file);
}

static inline int exists(const char *path) {
    struct stat status;
#ifdef _WIN32
    return stat(path, &status) == 0;
#else
    return lstat(path, &status) == 0;
#endif
}

#endif
