/* The root's instruction in another dialect of assembly (-masm=intel) or none: 4, where x is still needed after it. */
#define ML_NO_LIBM
#define ML_STATIC
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

float root_and_more(float more, float x);
float root_and_more(float more, float x) { return mli_sqrtf(x) * x + more; }

int main(void) {
    float (*volatile function)(float, float) = root_and_more; /* which is not inlined here */
    return function(100, 16) != 164;
}
