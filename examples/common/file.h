/* Whole files: read at once, or written so that they appear whole or not at all. */
#ifndef FILE_H
#define FILE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "memory.h"
#include "report.h"

/* All bytes of a file or pipe in new memory, followed by a zero byte; *n (may be NULL) is how many. NULL after saying
   why it cannot be read. */
static inline char *file_read(const char *path, size_t *n) {
    FILE *file = fopen(path, "rb");
    char *data = NULL, *room = NULL;
    size_t size = 0, capacity = 0, got = 1;
    while (file && got && (room = (char *)grow(data, size + 65537, &capacity, 1)) != NULL) {
        data = room;
        errno = 0;
        got = fread(data + size, 1, capacity - size - 1, file);
        size += got;
    }
    int is_read = file && room && !ferror(file), why = file && !room ? ENOMEM : errno;
    if (file) fclose(file);
    if (!is_read) {
        free(data);
        complain("%s: %s", path, strerror(why));
        return NULL;
    }
    data[size] = 0;
    if (n) *n = size;
    return data;
}

/* A file being written: as PATH.tmp, which is renamed at the end, so that a full disk leaves the old file unchanged.
   What is not a regular file (a pipe, /dev/stdout) is written to directly. */
typedef struct whole_file {
    FILE *to;
    const char *path;
    char temporary[4100]; /* empty: written to directly */
} whole_file;

static inline int whole_file_failed(const char *path) {
    return complain("%s cannot be written: %s", path, strerror(errno));
}

static inline int whole_file_begin(whole_file *file, const char *path) {
    struct stat about;
    int is_direct = stat(path, &about) == 0 && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode);
    errno = 0;
    file->path = path;
    if ((size_t)snprintf(file->temporary, sizeof file->temporary, "%s.tmp", path) >= sizeof file->temporary)
        errno = ENAMETOOLONG;
    file->to = errno ? NULL : fopen(is_direct ? path : file->temporary, "wb");
    if (is_direct) file->temporary[0] = 0;
    return file->to || whole_file_failed(path);
}

static inline int whole_file_end(whole_file *file) {
    int why = 0;
    if (ferror(file->to) || fflush(file->to) != 0) why = errno ? errno : EIO;
    /* some file systems cannot sync */
    if (!why && *file->temporary && fsync(fileno(file->to)) != 0 && errno != EINVAL && errno != ENOSYS)
        why = errno;
    if (fclose(file->to) != 0 && !why) why = errno;
    if (!why && *file->temporary && rename(file->temporary, file->path) != 0) why = errno;
    if (!why) return 1;
    if (*file->temporary) remove(file->temporary);
    errno = why;
    return whole_file_failed(file->path);
}

/* n bytes as a whole file. */
static inline int file_write(const char *path, const void *data, size_t n) {
    whole_file file;
    if (!whole_file_begin(&file, path)) return 0;
    fwrite(data, 1, n, file.to); /* a failure shows at the end */
    return whole_file_end(&file);
}

#endif
