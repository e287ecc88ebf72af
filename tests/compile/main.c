#include "callers.h"
#include <stdio.h>

int main(void) {
    int a = call_a(), b = call_b();
    if (a || b) fprintf(stderr, "use.h:%d, use.h:%d: not true (0 is fine)\n", a, b);
    return a || b;
}
