/* A temporary folder for one test program, and whole files in and out. */
#ifndef FOLDER_H
#define FOLDER_H

#include "preamble.h"
#include "build_files.h"

static char folder[512];

/* Makes it in the system's temporary place; 0 when that fails. */
static inline int folder_begin(const char *name) {
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/minillama-%s-%ld", root ? root : "/tmp", name, (long)getpid());
    return mkdir(folder, 0777) == 0 || (printf("%s cannot be made\n", folder), 0);
}

/* Removes it with everything in it. */
static inline int folder_end(void) {
    char command[600];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command) == 0;
}

static inline const char *in_folder(const char *name) {
    static char paths[16][700];
    static int turn;
    turn = (turn + 1) % 16;
    snprintf(paths[turn], sizeof paths[0], "%s/%s", folder, name);
    return paths[turn];
}

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
    return lstat(path, &status) == 0;
}

#endif
