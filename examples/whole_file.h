/* Text files that appear whole or not at all: written as PATH.tmp and then renamed, so that a full disk leaves the old one as it
   was. */
#ifndef WHOLE_FILE_H
#define WHOLE_FILE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef struct whole_file {
    FILE *to;
    const char *path;
    char temporary[4100];
} whole_file;

static int whole_file_failed(const char *path) {
    return fprintf(stderr, "error: %s cannot be written: %s\n", path, strerror(errno)), 0;
}

static int whole_file_begin(whole_file *file, const char *path) {
    errno = 0;
    file->path = path;
    if ((size_t)snprintf(file->temporary, sizeof file->temporary, "%s.tmp", path) >= sizeof file->temporary)
        errno = ENAMETOOLONG;
    file->to = errno ? NULL : fopen(file->temporary, "w");
    return file->to || whole_file_failed(path);
}

static int whole_file_end(whole_file *file) {
    int failed = ferror(file->to);
    if (fclose(file->to) == 0 && !failed && rename(file->temporary, file->path) == 0) return 1;
    whole_file_failed(file->path);
    remove(file->temporary);
    return 0;
}

#endif
