/* A file as an array in C, to be compiled into a program:  array FILE NAME > FILE.c
   The array is aligned to 64 bytes, and its end has a name, too: extern const unsigned char NAME[], NAME_end[]; */
#include "../examples/common/options.h"
