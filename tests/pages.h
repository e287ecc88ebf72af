/* Memory that ends where a page without access begins: what reads or writes one byte too many crashes. */
#ifndef PAGES_H
#define PAGES_H

#include "preamble.h"
#ifdef _WIN32
#include <windows.h>
#undef near /* which are words of ours */
#undef far
#undef IN
#undef OUT
#else
#include <sys/mman.h>
#endif

static inline size_t page_size(void) {
#ifdef _WIN32
    SYSTEM_INFO about;
    GetSystemInfo(&about);
    return about.dwPageSize;
#else
    return (size_t)sysconf(_SC_PAGESIZE);
#endif
}

/* New pages, the last of them without access; NULL when that fails. */
static inline unsigned char *pages_new(size_t size, size_t page) {
#ifdef _WIN32
    DWORD before;
    unsigned char *pages =
        (unsigned char *)VirtualAlloc(NULL, size, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
    return pages && VirtualProtect(pages + size - page, page, PAGE_NOACCESS, &before) ? pages : NULL;
#else
    unsigned char *pages =
        (unsigned char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == (unsigned char *)MAP_FAILED) return NULL;
    return mprotect(pages + size - page, page, PROT_NONE) == 0 ? pages : NULL;
#endif
}

/* n bytes, and all before them in their pages, that are `fill`. */
static inline void *guarded_new(size_t n, int fill) {
    size_t page = page_size(), whole = (n + page - 1) / page * page;
    unsigned char *pages = pages_new(whole + page, page);
    if (!pages) {
        printf("no memory for the test\n");
        exit(1);
    }
    memset(pages, fill, whole);
    return pages + whole - n;
}

static inline void guarded_free(void *memory, size_t n) {
    size_t page = page_size(), whole = (n + page - 1) / page * page;
#ifdef _WIN32
    VirtualFree((unsigned char *)memory + n - whole, 0, MEM_RELEASE);
#else
    munmap((unsigned char *)memory + n - whole, whole + page);
#endif
}

#endif
