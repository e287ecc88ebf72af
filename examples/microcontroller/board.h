/* What the programs here need of a board: a serial line, a counter of time, an end, and how much stack was used. A
   board of yours needs these functions, startup.c and memory.ld; the rest stays as it is. */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

void board_write(const char *text, size_t n_bytes); /* to the serial line */
void board_print(const char *text);                 /* the same for a zero-terminated text */
void board_print_number(uint64_t number);
void board_print_decimals(double number, int n_decimals); /* up to 9 */

/* Instructions since the board was started, to a multiple of INSTRUCTIONS_PER_TICK: see board.c. */
uint64_t board_instructions(void);

size_t board_stack_used(void); /* bytes, at most so far */
size_t board_stack_size(void);
void board_exit(int status); /* ends the emulator; on a real board, stops */

#endif
