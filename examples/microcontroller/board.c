/* The boards that qemu-system-arm calls mps2-an386 (Cortex-M4F) and mps2-an500 (Cortex-M7): ARM's MPS2 with the
   peripherals of its Cortex-M System Design Kit. BOARD_MPS3: mps3-an547 (Cortex-M55), without a counter. */
#include "board.h"

/* ---- the serial line: UART 0 ---- */

#ifdef BOARD_MPS3
#define UART_BASE 0x49303000u
#else
#define UART_BASE 0x40004000u
#endif
#define UART_DATA (*(volatile uint32_t *)UART_BASE)
#define UART_STATE (*(volatile uint32_t *)(UART_BASE + 4))
#define UART_CONTROL (*(volatile uint32_t *)(UART_BASE + 8))
#define UART_DIVIDER (*(volatile uint32_t *)(UART_BASE + 16))
enum { UART_IS_FULL = 1, UART_TRANSMITS = 1 };

void board_write(const char *text, size_t n_bytes) {
    UART_DIVIDER = 25000000 / 115200;
    UART_CONTROL = UART_TRANSMITS;
    for (size_t i = 0; i < n_bytes; i++) {
        while (UART_STATE & UART_IS_FULL) continue;
        UART_DATA = (unsigned char)text[i];
    }
}

void board_print(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    board_write(text, n);
}

/* With leading zeros up to so many digits. */
static void print_digits(uint64_t number, int n_digits) {
    char digits[24];
    int at = sizeof digits;
    do {
        digits[--at] = (char)('0' + (int)(number % 10));
        number /= 10;
    } while (number || (int)sizeof digits - at < n_digits);
    board_write(digits + at, sizeof digits - (size_t)at);
}

void board_print_number(uint64_t number) { print_digits(number, 1); }

void board_print_decimals(double number, int n_decimals) {
    uint64_t unit = 1;
    for (int i = 0; i < n_decimals; i++) unit *= 10;
    if (number < 0) board_print("-"), number = -number;
    uint64_t rounded = (uint64_t)(number * (double)unit + 0.5);
    board_print_number(rounded / unit);
    board_print(".");
    print_digits(rounded % unit, n_decimals);
}

/* ---- time: timer 0, which counts down once in 40 ns ----
   With `-icount shift=0` qemu lets every instruction take 1 ns, whatever the machine that it runs on: so this counts
   instructions, and says the same in every run. It is not how long they take on a real Cortex-M. */

#define TIMER_BASE 0x40000000u
#define TIMER_CONTROL (*(volatile uint32_t *)TIMER_BASE)
#define TIMER_VALUE (*(volatile uint32_t *)(TIMER_BASE + 4))
#define TIMER_RELOAD (*(volatile uint32_t *)(TIMER_BASE + 8))
#define INSTRUCTIONS_PER_TICK 40 /* 25 MHz */

/* 32 bits of ticks are 171 thousand million instructions; called more often than that, none is missed. */
#ifdef BOARD_MPS3
uint64_t board_instructions(void) { return 0; }
#else
uint64_t board_instructions(void) {
    static uint64_t ticks;
    static uint32_t last;
    if (!TIMER_CONTROL) {
        TIMER_RELOAD = TIMER_VALUE = UINT32_MAX;
        TIMER_CONTROL = 1;
        last = TIMER_VALUE;
    }
    uint32_t now = TIMER_VALUE;
    ticks += last - now;
    last = now;
    return ticks * INSTRUCTIONS_PER_TICK;
}
#endif

/* ---- the stack, which startup.c has filled with a pattern ---- */

extern uint32_t stack_end[], stack_begin[]; /* of memory.ld: the lowest and the highest address */

size_t board_stack_used(void) {
    const uint32_t *lowest = stack_end;
    while (lowest < stack_begin && *lowest == 0xdeadbeefu) lowest++;
    return (size_t)(stack_begin - lowest) * sizeof *lowest;
}

size_t board_stack_size(void) { return (size_t)(stack_begin - stack_end) * sizeof *stack_end; }

/* ---- the end: semihosting's SYS_EXIT_EXTENDED, which the emulator (or a debugger) answers ---- */

void board_exit(int status) {
    uint32_t reason[2] = {0x20026, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
    register uint32_t operation __asm__("r0") = 0x20;
    register uint32_t *argument __asm__("r1") = reason;
    __asm__ volatile("bkpt 0xab" : "+r"(operation) : "r"(argument) : "memory");
    for (;;) continue;
}
