/* What the header needs of <math.h>, for a target without a C library: e^x, the logarithm and the circle functions in
   doubles, exact to an ulp or two of a double, and from those the others. Roots and rounding are instructions. */
#ifndef WEB_MATH_H
#define WEB_MATH_H

#include <stdint.h>

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define sqrt __builtin_sqrt
#define sqrtf __builtin_sqrtf
#define fabs __builtin_fabs
#define fabsf __builtin_fabsf
#define floor __builtin_floor
#define floorf __builtin_floorf
#define ceil __builtin_ceil

/* x 2^n, -1022 <= n <= 1023 */
static inline double web_scale(double x, int n) {
    const uint64_t bits = (uint64_t)(1023 + n) << 52;
    double power;
    __builtin_memcpy(&power, &bits, sizeof power);
    return x * power;
}

/* e^x = 2^n e^r, |r| <= ln(2) / 2; ln 2 is subtracted in two parts. The series of e^r ends where it is 2^-60. */
static inline double exp(double x) {
    if (x != x) return x;
    if (x > 710) return INFINITY;
    if (x < -746) return 0;
    const double n = floor(x * 1.4426950408889634 + 0.5);
    const double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
    double sum = 1;
    for (int k = 14; k > 0; k--) sum = 1 + sum * r / k;
    const int half = (int)n / 2;
    return web_scale(web_scale(sum, half), (int)n - half);
}

/* log(m 2^e) = e ln 2 + 2 artanh(s), s = (m - 1) / (m + 1), 1 / sqrt(2) <= m < sqrt(2) */
static inline double log(double x) {
    uint64_t bits;
    int e = 0;
    if (x != x || x == (double)INFINITY) return x;
    if (x <= 0) return x < 0 ? (double)NAN : -(double)INFINITY;
    if (x < 2.2250738585072014e-308) x *= 18014398509481984.0, e = -54;
    __builtin_memcpy(&bits, &x, sizeof bits);
    e += (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffff) | (uint64_t)1023 << 52;
    __builtin_memcpy(&x, &bits, sizeof x);
    if (x > 1.4142135623730951) x *= 0.5, e++;
    const double s = (x - 1) / (x + 1), square = s * s;
    double sum = 0;
    for (int k = 23; k > 1; k -= 2) sum = square * (1.0 / k + sum);
    return e * 0.6931471803691238 + (e * 1.9082149292705877e-10 + 2 * (s + s * sum));
}

/* cos(x - quarters pi / 2) by its series, after whole quarters of a turn are taken away; pi / 2 in three parts of 33
   bits, so that x may be as large as a million. */
static inline double web_wave(double x, int quarters) {
    const double n = floor(x * 0.6366197723675814 + 0.5);
    const double r =
        ((x - n * 1.57079632673412561417) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
    const double square = r * r;
    const unsigned quarter = (unsigned)((int64_t)n - quarters) & 3;
    double sum = 1;
    for (int k = quarter & 1 ? 19 : 18; k > 1; k -= 2) sum = 1 - sum * square / (k * (k - 1));
    if (quarter & 1) sum *= r;
    return quarter == 1 || quarter == 2 ? -sum : sum;
}

static inline double cos(double x) { return web_wave(x, 0); }
static inline double log10(double x) { return log(x) * 0.43429448190325182; }
static inline double pow(double x, double y) { return y == 0 ? 1 : exp(y * log(x)); } /* x >= 0 */
static inline float expf(float x) { return (float)exp((double)x); }
static inline float logf(float x) { return (float)log((double)x); }
static inline float cosf(float x) { return (float)cos((double)x); }
static inline float sinf(float x) { return (float)web_wave((double)x, 1); }
static inline float powf(float x, float y) { return (float)pow((double)x, (double)y); }

/* Of graphs of one's own, which this module does not offer. */
float tanhf(float x);
float erfcf(float x);

#endif
