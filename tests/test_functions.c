/* The elementary functions, compared with the C library's in doubles: samples of all floats, 10 million in all, and
   what lies at the edges. They are built as where there is no libm, so that roots and whole numbers are ours, too. */
#define ML_NO_LIBM
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* How far a result is from the right one, in units in the last place of a float. */
static double ulps(float result, double right) {
    if (isnan(right)) return isnan(result) ? 0 : HUGE_VAL;
    if (isinf((float)right) || isinf(result)) return result == (float)right ? 0 : HUGE_VAL;
    int exponent = right == 0 ? -126 : ilogb(right);
    return fabs((double)result - right) / ldexp(1, (exponent < -126 ? -126 : exponent) - 23);
}

/* The largest error over every `step`th float, and the last ones before and after its edges. */
static double largest_error(float (*ours)(float), double (*right)(double), uint32_t step) {
    static const float edges[] = {0,
                                  -0.0f,
                                  1,
                                  -1,
                                  88.722839f,
                                  88.72284f,
                                  -87.33655f,
                                  -103.27893f,
                                  -104,
                                  1.41421f,
                                  3.1415927f,
                                  1.5707964f,
                                  1e-45f,
                                  1.17549435e-38f,
                                  3.4028235e38f,
                                  1 / 4096.0f,
                                  10,
                                  10.06f,
                                  11,
                                  1e-4f,
                                  0.70710677f,
                                  2,
                                  0.5f,
                                  4,
                                  INFINITY,
                                  -INFINITY,
                                  NAN};
    double most = 0;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += step) {
        float x = float_of((uint32_t)bits);
        double error = isnan(x) ? 0 : ulps(ours(x), right((double)x));
        if (error > most) most = error;
    }
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++)
        for (int side = -1; side < 2; side++) {
            float x = side ? nextafterf(edges[i], (float)side * INFINITY) : edges[i];
            double error = ulps(ours(x), right((double)x));
            if (error > most) most = error;
        }
    return most;
}

/* mli_sqrtf where the processor has no instruction for it. */
static float root_in_integers(float x) {
    return x > 0 && isfinite(x) ? mli_to_f32(mli_root(mli_take_apart((double)x))) : mli_sqrtf(x);
}

/* 0.5 is the rounding of the result, 0.001 the arithmetic. */
TEST(floats) {
    CHECK(largest_error(root_in_integers, sqrt, 4099) <= 0.5);
    CHECK(largest_error(mli_expf, exp, 4099) < 0.501);
    CHECK(largest_error(mli_logf, log, 4099) < 0.501);
    CHECK(largest_error(mli_sqrtf, sqrt, 4099) <= 0.5);
    CHECK(largest_error(mli_tanhf, tanh, 8191) < 0.51);
    CHECK(largest_error(mli_erfcf, erfc, 16381) < 0.51);
}

/* Whether the C library rounds doubles rightly. mingw-w64's uses instructions of the x87, which round twice, and have no
   sine of 1e22 (Muller et al. 2010, "Handbook of Floating-Point Arithmetic"). */
static int has_right_doubles(void) {
    volatile double x = 1e22; /* so that no compiler knows it */
    return fabs(sin(x) + 0.8522008497671888) < 1e-15;
}

TEST(sines) {
    if (!has_right_doubles()) SKIP("the C library's sine is wrong for large angles");
    CHECK(largest_error(mli_sinf, sin, 4099) < 0.501);
    CHECK(largest_error(mli_cosf, cos, 4099) < 0.501);
}

/* Angles of a long context. */
TEST(angles) {
    double most = 0;
    for (int i = 0; i < 1000000; i++) {
        float x = (float)i * 0.1318257f;
        double of_sine = ulps(mli_sinf(x), sin((double)x)), of_cosine = ulps(mli_cosf(-x), cos((double)x));
        most = fmax(most, fmax(of_sine, of_cosine));
    }
    CHECK(most < 0.501);
}

/* Bases and exponents of all sizes, and those of rotary positions. pow of libm is within an ulp of a double. */
TEST(powers) {
    double most = 0;
    ml_random random;
    ml_random_seed(&random, 1);
    for (int i = 0; i < 1000000; i++) {
        float x = float_of((uint32_t)(ml_random_u64(&random) >> 33)),
              y = float_of((uint32_t)(ml_random_u64(&random) >> 32));
        if (isfinite(x) && isfinite(y)) most = fmax(most, ulps(mli_powf(x, y), pow((double)x, (double)y)));
        x = 1 + (float)(i % 1000) * 1e-6f, y = (float)(i / 1000) * 97;
        most = fmax(most, ulps(mli_powf(x, y), pow((double)x, (double)y)));
        x = (float)(1 + i % 1000) * 1000, y = (float)(i / 1000) / 1000;
        most = fmax(most, ulps(mli_powf(x, y), pow((double)x, (double)y)));
    }
    CHECK(most < 0.501);
    CHECK(mli_powf(0, 2) == 0 && mli_powf(5, 0) == 1 && mli_powf(2, -149) == ldexpf(1, -149) &&
          mli_powf(2, 128) == INFINITY);
}

TEST(doubles) {
    /* otherwise the last bit of a root, and thousands of multiplications in place of a power */
    const double of_root = has_right_doubles() ? 0 : 2.3e-16, of_power = has_right_doubles() ? 1e-14 : 2e-12;
    for (int i = -2000000; i < 2000000; i++) {
        double x = i * 3.5e-4 + 1e-9, y = fabs(x) * 1e3;
        CHECK_NEAR(mli_exp(x), exp(x), 1e-320, 1e-15);
        CHECK_NEAR(mli_log(y), log(y), 5e-16, 5e-16);
        CHECK_NEAR(mli_sqrt(y), sqrt(y), 0, of_root);
        CHECK(mli_floor(x) == floor(x) && mli_ceil(y) == ceil(y));
    }
    for (int i = 0; i <= 1000; i++) {
        CHECK_NEAR(mli_cosine_of_turns(i / 1000.0), cos(6.28318530717958647692 * i / 1000), 2e-15, 0);
        CHECK_NEAR(mli_pow(0.999, i), pow(0.999, i), 0, of_power);
        CHECK_NEAR(mli_pow(0.9, i * 7), pow(0.9, i * 7), 1e-320, of_power);
    }
    CHECK(mli_exp(0) == 1 && mli_log(1) == 0 && mli_pow(0, 1) == 0 && mli_cosine_of_turns(0) == 1);
    CHECK(mli_exp(710) == HUGE_VAL && mli_exp(-800) == 0 && mli_log(0) == -HUGE_VAL);
    CHECK(isnan(mli_log(-1)) && isnan(mli_exp((double)NAN)) && isnan(mli_sqrt(-1)) &&
          mli_sqrt(HUGE_VAL) == HUGE_VAL);
    CHECK(mli_floor(-0.5) == -1 && mli_floor(1e300) == 1e300 && mli_fabs(-2) == 2 && mli_fabsf(-2) == 2);
}

int main(void) {
    RUN(floats);
    RUN(sines);
    RUN(angles);
    RUN(powers);
    RUN(doubles);
    return test_report("test_functions");
}
