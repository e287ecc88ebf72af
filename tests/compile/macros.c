/* The header after macros that other libraries define for ordinary words: Qt's keywords. */
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define slots
#define signals public
#define emit
#define foreach(a, b) for (a : b)
#define forever for (;;)
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
