/* What runs before main: the vectors that the processor reads at reset, and the memory as C expects it. */
#include <stdint.h>
#include <string.h>
#include "board.h"

extern uint32_t stack_begin[], stack_end[]; /* of memory.ld */
extern unsigned char data_in_flash[], data_begin[], data_end[], bss_begin[], bss_end[];

int main(void);

#define COPROCESSORS (*(volatile uint32_t *)0xe000ed88u) /* CPACR: who may use the floating-point unit */

void reset(void) {
    COPROCESSORS |= 0xfu << 20;
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (volatile uint32_t *word = stack_end; word + 32 < stack_begin; word++) *word = 0xdeadbeefu;
    memcpy(data_begin, data_in_flash, (size_t)(data_end - data_begin));
    memset(bss_begin, 0, (size_t)(bss_end - bss_begin));
    board_instructions();
    board_exit(main());
}

/* Everything that should not happen, such as an access where there is no memory. */
void fault(void) {
    board_print("\nfault\n");
    board_exit(3);
}

__attribute__((section(".vectors"), used)) static const struct {
    uint32_t *stack;
    void (*handlers[15])(void);
} vectors = {stack_begin, {reset, fault, fault, fault, fault, fault}};
