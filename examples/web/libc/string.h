/* The four functions that the header needs from outside. Compiled with -mbulk-memory, clang makes memory.copy and
   memory.fill, two instructions of WebAssembly, of the calls with a size that it does not know. */
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

#endif
