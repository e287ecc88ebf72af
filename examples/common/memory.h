/* Arrays and texts that grow. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The array with room for at least n elements of element_size bytes: itself, or moved. NULL when out of memory; the
   old array is then unchanged. */
static inline void *grow(void *array, size_t n, size_t *capacity, size_t element_size) {
    if (array && n <= *capacity) return array;
    if (n > SIZE_MAX / 2 / element_size) return NULL;
    size_t more = n + n / 2 + 64;
    void *moved = realloc(array, more * element_size);
    if (moved) *capacity = more;
    return moved;
}

/* A text that grows; all 0 is an empty one. */
typedef struct buffer {
    char *bytes; /* zero-terminated once something was appended */
    size_t length, capacity;
} buffer;

static inline int buffer_append(buffer *t, const char *more, size_t n) {
    if (n >= SIZE_MAX - t->length) return 0;
    char *room = (char *)grow(t->bytes, t->length + n + 1, &t->capacity, 1);
    if (!room) return 0;
    t->bytes = room;
    if (n) memcpy(room + t->length, more, n);
    t->length += n;
    room[t->length] = 0;
    return 1;
}

static inline void buffer_free(buffer *t) {
    free(t->bytes);
    memset(t, 0, sizeof *t);
}

#endif
