/* An allocator over WebAssembly's memory, which can grow. Free blocks are a list in order of their addresses; the
   first that is large enough is taken, and neighbors are joined when a block is given back (Knuth 1968, "The Art of
   Computer Programming", volume 1, section 2.5). A model has some fifty blocks: a list is fast enough. The two functions
   are those of an ml_allocator, and JavaScript's, which leaves `user` out. */
#ifndef WEB_MEMORY_H
#define WEB_MEMORY_H

#include <stddef.h>
#include <stdint.h>

enum { WEB_PAGE = 65536, WEB_UNIT = 16 };

typedef struct web_block {
    size_t size; /* of the whole block, a multiple of WEB_UNIT */
    struct web_block *next;
    char unused[WEB_UNIT - sizeof(size_t) - sizeof(struct web_block *)]; /* so that what follows is aligned */
} web_block;

extern unsigned char __heap_base; /* from the linker: what is not used before */
static web_block *web_free_blocks;
static uintptr_t web_end; /* of the memory that has been handed out or is in the list */

static uintptr_t web_after(const web_block *block) { return (uintptr_t)block + block->size; }

EXPORT("free") void web_free(void *memory, void *user) {
    (void)user;
    if (!memory) return;
    web_block *block = (web_block *)memory - 1, *before = NULL, *next = web_free_blocks;
    while (next && next < block) before = next, next = next->next;
    block->next = next;
    if (before)
        before->next = block;
    else
        web_free_blocks = block;
    if (next && web_after(block) == (uintptr_t)next) block->size += next->size, block->next = next->next;
    if (before && web_after(before) == (uintptr_t)block)
        before->size += block->size, before->next = block->next;
}

/* Asks for more memory, which becomes a free block. 0: there is none. */
static int web_grow(size_t size) {
    if (!web_end) web_end = ((uintptr_t)&__heap_base + WEB_UNIT - 1) & ~(uintptr_t)(WEB_UNIT - 1);
    const uintptr_t had = (uintptr_t)__builtin_wasm_memory_size(0) * WEB_PAGE;
    const size_t missing = had - web_end < size ? size - (had - web_end) : 0;
    const size_t pages = missing / WEB_PAGE + (missing % WEB_PAGE != 0);
    /* never the last page: web_end, the end of it all, would be 0 */
    const size_t most = 65535 - __builtin_wasm_memory_size(0);
    if (pages && (pages > most || __builtin_wasm_memory_grow(0, pages) == (size_t)-1)) return 0;
    web_block *block = (web_block *)web_end;
    block->size = (had - web_end + pages * WEB_PAGE) & ~(size_t)(WEB_UNIT - 1);
    web_end += block->size;
    web_free(block + 1, NULL);
    return 1;
}

EXPORT("alloc") void *web_alloc(size_t n, void *user) {
    (void)user;
    if (n > (size_t)-1 / 2) return NULL;
    const size_t size = sizeof(web_block) + (n + WEB_UNIT - 1) / WEB_UNIT * WEB_UNIT;
    do
        for (web_block **at = &web_free_blocks; *at; at = &(*at)->next) {
            web_block *block = *at;
            if (block->size < size) continue;
            if (block->size - size < 2 * sizeof *block) {
                *at = block->next;
                return block + 1;
            }
            block->size -= size; /* its end is taken */
            block = (web_block *)web_after(block);
            block->size = size;
            return block + 1;
        }
    while (web_grow(size));
    return NULL;
}

static const ml_allocator web_allocator = {web_alloc, web_free, NULL};

#endif
