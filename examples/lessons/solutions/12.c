/* Exercise 12: numbers to Q8_0 and back. A block of 32 numbers is 34 bytes: a scale d (F16), then 32 signed bytes q:
   each number is d q. Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization". */
#include "minillama.h"
#include "examples/lessons/lesson.h"

enum { BLOCK = 32, BYTES = 34, N = 4 * BLOCK };

/* The two bytes of a scale. */
static void store_scale(float d, unsigned char *to) { ml_type_convert(ML_F16, to, ML_F32, &d, 1); }
static float load_scale(const unsigned char *from) {
    float d = 0;
    ml_type_convert(ML_F32, &d, ML_F16, from, 1);
    return d;
}

/* n numbers x, a multiple of BLOCK, become n / BLOCK blocks of BYTES bytes. */
static void quantize(const float *x, int n, unsigned char *to) {
    /* your turn: for each block
       1. d = its largest |x|, divided by 127; store_scale puts it in the first two bytes
       2. each other byte is x / d, rounded to the nearest integer (lroundf); a signed char is stored as it is
       A block of zeros has d = 0: nothing may be divided by it. */
    for (int b = 0; b < n; b += BLOCK, x += BLOCK, to += BYTES) {
        float d = 0;
        for (int i = 0; i < BLOCK; i++) d = fmaxf(d, fabsf(x[i]) / 127);
        store_scale(d, to);
        for (int i = 0; i < BLOCK; i++) to[2 + i] = (unsigned char)(d > 0 ? lroundf(x[i] * (1 / d)) : 0);
    }
    /* end */
}

/* And back: x = d q. */
static void dequantize(const unsigned char *from, int n, float *x) {
    /* your turn: load_scale gives d; a byte is a signed char */
    for (int b = 0; b < n; b += BLOCK, x += BLOCK, from += BYTES)
        for (int i = 0; i < BLOCK; i++) x[i] = load_scale(from) * (float)(signed char)from[2 + i];
    /* end */
}

/* One block by hand: the largest number is 1.27 in magnitude, so d is 0.01, and q is x in hundredths. */
static void check_by_hand(void) {
    float x[BLOCK] = {1.27f, -1.27f, 0.5f, -0.014f, 0.016f};
    const int wanted[] = {127, -127, 50, -1, 2, 0};
    unsigned char bytes[BYTES] = {0};
    printf("A block with 1.27, -1.27, 0.5, -0.014, 0.016 and zeros:\n");
    quantize(x, BLOCK, bytes);
    check_near((double)load_scale(bytes), 0.01, 1e-5, "d");
    for (int i = 0; i < 6; i++) {
        char what[32];
        snprintf(what, sizeof what, "q of number %d", i);
        check_near((signed char)bytes[2 + i], wanted[i], 0, what);
    }
}

/* Four blocks of very different size, one of them zeros, beside the header's bytes. */
static void check_header(void) {
    const float size[N / BLOCK] = {1, 1000, 0, 0.1f};
    float x[N], back[N] = {0};
    unsigned char ours[N / BLOCK * BYTES] = {0}, theirs[N / BLOCK * BYTES];
    int different = 0, too_far = 0;
    for (int i = 0; i < N; i++) x[i] = size[i / BLOCK] * sinf((float)(i * i));
    ml_type_convert(ML_Q8_0, theirs, ML_F32, x, N);
    quantize(x, N, ours);
    for (int i = 0; i < N / BLOCK * BYTES; i++) {
        if (ours[i] == theirs[i] || different++) continue;
        printf("  block %d, byte %d: got %d, wanted %d\n", i / BYTES, i % BYTES, ours[i], theirs[i]);
    }
    check(!different, "bytes that are not the header's: got %d, wanted 0", different);
    dequantize(theirs, N, back); /* q is off by 1/2 at most, and 127 d by 127 d / 2^11, since d is F16 */
    for (int i = 0; i < N; i++) {
        double d = (double)size[i / BLOCK] / 127;
        if (fabs((double)back[i] - (double)x[i]) <= 0.57 * d || too_far++) continue;
        printf("  number %d: got %g back, wanted %g within 0.57 d\n", i, (double)back[i], (double)x[i]);
    }
    check(!too_far, "numbers that come back farther than 0.57 d away: got %d, wanted 0", too_far);
    check_near((double)back[2 * BLOCK + 5], 0, 0, "a block of zeros comes back as");
}

int main(void) {
    check_by_hand();
    check_header();
    return lesson_end();
}
