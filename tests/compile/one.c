/* One file: the header included again and again, as API, as implementation, and once more. */
#include "minillama.h"
#include "minillama.h"
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "minillama.h"

#include "use.h"
#include <stdio.h>

int main(void) {
    int line = use_minillama();
    if (line) fprintf(stderr, "use.h:%d: not true\n", line);
    return line != 0;
}
