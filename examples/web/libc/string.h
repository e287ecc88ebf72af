/* What the header needs of <string.h>, for a target without a C library. Compiled with -mbulk-memory, clang makes
   memory.copy and memory.fill, two instructions of WebAssembly, of the calls with a size that it does not know. */
#ifndef WEB_STRING_H
#define WEB_STRING_H

#include <stddef.h>

#define memcpy __builtin_memcpy
#define memmove __builtin_memmove
#define memset __builtin_memset

static inline int memcmp(const void *a, const void *b, size_t n) {
    const unsigned char *p = (const unsigned char *)a, *q = (const unsigned char *)b;
    for (; n; n--, p++, q++)
        if (*p != *q) return *p - *q;
    return 0;
}

static inline void *memchr(const void *s, int c, size_t n) {
    const unsigned char *p = (const unsigned char *)s;
    for (; n; n--, p++)
        if (*p == (unsigned char)c) return (void *)p;
    return NULL;
}

static inline size_t strlen(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

static inline int strncmp(const char *a, const char *b, size_t n) {
    for (; n; n--, a++, b++)
        if (*a != *b || !*a) return (unsigned char)*a - (unsigned char)*b;
    return 0;
}

static inline int strcmp(const char *a, const char *b) { return strncmp(a, b, (size_t)-1); }

static inline char *strchr(const char *s, int c) {
    for (; *s != (char)c; s++)
        if (!*s) return NULL;
    return (char *)s;
}

static inline char *strrchr(const char *s, int c) {
    const char *last = NULL;
    do
        if (*s == (char)c) last = s;
    while (*s++);
    return (char *)last;
}

static inline size_t strcspn(const char *s, const char *stop) {
    size_t n = 0;
    while (s[n] && !strchr(stop, s[n])) n++;
    return n;
}

static inline char *strstr(const char *s, const char *part) {
    size_t n = strlen(part);
    for (; strncmp(s, part, n); s++)
        if (!*s) return NULL;
    return (char *)s;
}

#endif
