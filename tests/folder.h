/* A temporary folder for one test program (temporary.h), whole files in and out, and make in that folder. */
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

/* What GNU make prints in a folder within the temporary one, by a Makefile of this repository, which there finds no
   more than the test has put there; NULL: it failed. */
static inline const char *make_says(const char *where, const char *makefile, const char *what) {
    char here[512], command[2500];
    if (!getcwd(here, sizeof here)) return NULL;
    snprintf(command, sizeof command,
             "MAKEFLAGS= ${MAKE:-make} -s --no-print-directory -C '%s' -f '%s/%s' BUILD=build %s",
             in_folder(where), here, makefile, what);
    capture_begin();
    int status = system(command);
    const char *said = capture_end();
    return status == 0 ? said : NULL;
}

static inline int has_make(void) {
    const char *said = WITHOUT_SH ? NULL : make_says("", "Makefile", "--version");
    return said && strncmp(said, "GNU Make", 8) == 0;
}

#endif
