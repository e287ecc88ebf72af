/* A program without any library: no C library, no libm, no start-up code, no allocator. It continues a prompt with a
   model that is part of the program and used in place, in two static buffers. Built with -DHOSTED it is an ordinary
   program that does the same, for comparison; with -DSTACK it tells how deep the stack became instead. For a bare Arm
   processor it can be linked, and shows how large the code is; with -DLINUX qemu-arm runs it. */
#define MINILLAMA_IMPLEMENTATION
#define ML_STATIC
#include "minillama.h"

#ifdef HOSTED
#include <stdio.h>
#endif

#ifndef MODEL
#define MODEL "examples/models/stories.gguf"
#endif

/* The bytes of the file, aligned as its weights want it. */
__asm__(".section .rodata\n"
        ".balign 64\n"
        ".global model_begin\n"
        "model_begin: .incbin \"" MODEL "\"\n"
        ".global model_end\n"
        "model_end: .byte 0\n"
        ".previous\n");
extern const unsigned char model_begin[], model_end[];

#ifdef __arm__
static unsigned char objects[1 << 20], buffer[1 << 20];
#else /* more, for products that are cut into blocks */
static unsigned char objects[1 << 20], buffer[1 << 23];
#endif

static void write_text(const char *text, size_t n) {
#if defined(HOSTED)
    fwrite(text, 1, n, stdout);
#elif defined(__x86_64__) && defined(__linux__)
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(1), "D"(1), "S"(text), "d"(n) : "rcx", "r11", "memory");
#elif defined(__arm__) && defined(LINUX)
    register long r0 __asm__("r0") = 1;
    register const char *r1 __asm__("r1") = text;
    register size_t r2 __asm__("r2") = n;
    register long r7 __asm__("r7") = 4;
    __asm__ volatile("svc 0" : "+r"(r0) : "r"(r1), "r"(r2), "r"(r7) : "memory");
#else
    static volatile char port; /* where a board has its serial line */
    while (n--) port = *text++;
    (void)port;
#endif
}

static int write_token(void *user, int32_t id, const char *text, size_t n) {
    (void)user, (void)id;
#ifdef STACK
    (void)text, (void)n;
#else
    write_text(text, n);
#endif
    return 1;
}

/* 0, or 1 after an error. */
static int run(void) {
    ml_arena arena = {objects, sizeof objects, 0};
    ml_model_load_desc where = {0};
    ml_session_desc small = {0};
    ml_generate_desc desc = {0};
    ml_model *model;
    ml_session *session;
    ml_error error;
    where.allocator = ml_arena_allocator(&arena);
    small.max_seq_len = 64;
    desc.prompt = "Once upon a time";
    desc.max_new_tokens = 48;
    desc.on_token = write_token;
    if (ml_model_load_memory(model_begin, (size_t)(model_end - model_begin), &where, &model, &error) ||
        ml_session_init(model, &small, buffer, sizeof buffer, &session, &error) ||
        ml_session_generate(session, &desc, NULL, &error)) {
        size_t n = 0;
        while (error.text[n]) n++;
        return write_text(error.text, n), 1;
    }
#ifndef STACK
    write_text("\n", 1);
#endif
    return 0;
}

#ifdef STACK
static int measure(void);

/* What is below the stack is painted, and afterwards the paint is looked for. */
static int measure(void) {
    enum { PAINTED = 32768, PAINT = 0xa5, SPARED = 128 };
    char digits[24];
    size_t at = sizeof digits, depth;
    volatile unsigned char *end = (volatile unsigned char *)((uintptr_t)digits - SPARED);
    for (int i = 1; i <= PAINTED; i++) end[-i] = PAINT;
    if (run()) return 1;
    for (depth = PAINTED; depth && end[-(int)depth] == PAINT; depth--) continue;
    depth += SPARED;
    for (digits[--at] = '\n'; depth; depth /= 10) digits[--at] = (char)('0' + depth % 10);
    return write_text(digits + at, sizeof digits - at), 0;
}
#define run measure
#endif

#ifdef HOSTED
int main(void) { return run(); }
#else
void _start(void);
#if defined(__x86_64__) && defined(__linux__)
/* The stack is aligned for a call here, while a function expects that a return address was pushed. */
__asm__(".global _start\n_start: xorl %ebp, %ebp\n call start_c\n");
void start_c(void);
void start_c(void) { __asm__ volatile("syscall" : : "a"(60), "D"(run()) : "rcx", "r11", "memory"); }
#else
void _start(void) {
    int result = run();
    (void)result;
#if defined(__arm__) && defined(LINUX)
    register long r0 __asm__("r0") = result;
    register long r7 __asm__("r7") = 1;
    __asm__ volatile("svc 0" : : "r"(r0), "r"(r7));
#endif
    for (;;) {
    }
}
#endif
#endif
