/* Number formats: every F16 and BF16 against arithmetic in doubles, rounding at every boundary, the two block
   formats against their definitions, and ml_type_convert. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"

/* ---- F16 and BF16 ---- */

/* What the bits of a small float mean, by the definition: sign, exponent with a bias, mantissa. */
static double value_of_bits(unsigned bits, int exponent_bits, int mantissa_bits) {
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    int mantissa = (int)bits & ((1 << mantissa_bits) - 1);
    double sign = bits >> (exponent_bits + mantissa_bits) ? -1.0 : 1.0;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (!exponent) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}

static int same_bits(float a, float b) { return !memcmp(&a, &b, sizeof a); }

TEST(every_f16) {
    unsigned h;
    for (h = 0; h < 65536; h++) {
        float f = mli_f16_to_f32((uint16_t)h);
        double expected = value_of_bits(h, 5, 10);
        if (expected != expected) {
            CHECK(f != f && (mli_float_bits(f) & 0x400000)); /* made quiet */
            CHECK(mli_f32_to_f16(f) == (h | 0x200));         /* payload kept */
        } else {
            CHECK(same_bits(f, (float)expected)); /* a double holds every F16 and so does a float: exact */
            CHECK(mli_f32_to_f16(f) == h);
        }
    }
}

TEST(every_bf16) {
    unsigned h;
    for (h = 0; h < 65536; h++) {
        float f = mli_bf16_to_f32((uint16_t)h);
        double expected = value_of_bits(h, 8, 7);
        if (expected != expected) {
            CHECK(f != f);
            CHECK(mli_f32_to_bf16(f) == (h | 0x40));
        } else {
            CHECK(same_bits(f, (float)expected));
            CHECK(mli_f32_to_bf16(f) == h);
        }
    }
}

/* Halfway between each number and the next above goes to the even one; a hair more or less, to the nearer. */
TEST(f16_rounding) {
    unsigned h;
    for (h = 0; h < 0x7c00; h++) {
        double next = h == 0x7bff ? 65536.0 : value_of_bits(h + 1, 5, 10);
        float middle = (float)((value_of_bits(h, 5, 10) + next) / 2); /* 12 bits: exact */
        CHECK(mli_f32_to_f16(middle) == (h & 1 ? h + 1 : h));
        CHECK(mli_f32_to_f16(nextafterf(middle, INFINITY)) == h + 1);
        CHECK(mli_f32_to_f16(nextafterf(middle, 0)) == h);
        CHECK(mli_f32_to_f16(-middle) == (0x8000 | (h & 1 ? h + 1 : h)));
        CHECK(mli_f32_to_f16(-nextafterf(middle, INFINITY)) == (0x8000 | (h + 1)));
    }
    CHECK(mli_f32_to_f16(3e38f) == 0x7c00);
    CHECK(mli_f32_to_f16(-3e38f) == 0xfc00);
    CHECK(mli_f32_to_f16(1e-45f) == 0); /* the smallest float of all */
    CHECK(mli_f32_to_f16(-1e-45f) == 0x8000);
}

TEST(bf16_rounding) {
    unsigned h;
    for (h = 0; h < 0x7f80; h++) {
        float middle = mli_bits_float(h << 16 | 0x8000);
        CHECK(mli_f32_to_bf16(middle) == (h & 1 ? h + 1 : h));
        CHECK(mli_f32_to_bf16(mli_bits_float(h << 16 | 0x8001)) == h + 1);
        CHECK(mli_f32_to_bf16(mli_bits_float(h << 16 | 0x7fff)) == h);
        CHECK(mli_f32_to_bf16(-middle) == (0x8000 | (h & 1 ? h + 1 : h)));
    }
    CHECK(mli_f32_to_bf16(3.4028235e38f) == 0x7f80);              /* the largest float is nearer to 2^128 */
    CHECK(mli_f32_to_bf16(mli_bits_float(0x7f800001)) == 0x7fc0); /* NaN does not become infinity */
}

/* Rows of any length: the vector part and the rest agree with the single conversions. */
TEST(rows_of_f16_and_bf16) {
    uint16_t halves[70];
    float floats[70];
    uint16_t back[70];
    size_t n, i;
    for (i = 0; i < 70; i++) halves[i] = (uint16_t)(i * 7919 & 0x7bff); /* finite */
    for (n = 0; n <= 70; n++) {
        mli_dequantize_row(ML_F16, halves, floats, n);
        for (i = 0; i < n; i++) CHECK(same_bits(floats[i], (float)value_of_bits(halves[i], 5, 10)));
        mli_quantize_row(ML_F16, floats, back, n);
        CHECK(!memcmp(back, halves, n * 2));
        mli_dequantize_row(ML_BF16, halves, floats, n);
        for (i = 0; i < n; i++) CHECK(same_bits(floats[i], (float)value_of_bits(halves[i], 8, 7)));
        mli_quantize_row(ML_BF16, floats, back, n);
        CHECK(!memcmp(back, halves, n * 2));
    }
}

/* ---- the table ---- */

TEST(type_table) {
    /* the numbers of the GGUF specification */
    static const struct {
        ml_type type;
        const char *name;
        uint32_t gguf;
        size_t block, bytes;
    } rows[] = {{ML_F32, "F32", 0, 1, 4},          {ML_F16, "F16", 1, 1, 2},
                {ML_Q4_0, "Q4_0", 2, 32, 18},      {ML_Q8_0, "Q8_0", 8, 32, 34},
                {ML_I8, "I8", 24, 1, 1},           {ML_I16, "I16", 25, 1, 2},
                {ML_I32, "I32", 26, 1, 4},         {ML_I64, "I64", 27, 1, 8},
                {ML_F64, "F64", 28, 1, 8},         {ML_BF16, "BF16", 30, 1, 2},
                {ML_Q4_1, "Q4_1", 3, 32, 20},      {ML_Q5_0, "Q5_0", 6, 32, 22},
                {ML_Q5_1, "Q5_1", 7, 32, 24},      {ML_Q2_K, "Q2_K", 10, 256, 84},
                {ML_Q3_K, "Q3_K", 11, 256, 110},   {ML_Q4_K, "Q4_K", 12, 256, 144},
                {ML_Q5_K, "Q5_K", 13, 256, 176},   {ML_Q6_K, "Q6_K", 14, 256, 210},
                {ML_IQ4_NL, "IQ4_NL", 20, 32, 18}, {ML_IQ4_XS, "IQ4_XS", 23, 256, 136}};
    size_t i;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) {
        CHECK(!strcmp(ml_type_name(rows[i].type), rows[i].name));
        CHECK(ml_type_from_name(rows[i].name) == rows[i].type);
        CHECK(mli_type_from_gguf(rows[i].gguf) == rows[i].type);
        CHECK(mli_type(rows[i].type)->gguf == rows[i].gguf);
        CHECK(ml_type_block(rows[i].type) == rows[i].block);
        CHECK(ml_type_row_bytes(rows[i].type, 768) == 768 / rows[i].block * rows[i].bytes);
    }
    CHECK(ml_type_from_name("q8_0") == ML_Q8_0);
    CHECK(ml_type_from_name("bF16") == ML_BF16);
    CHECK(ml_type_from_name("bool") == ML_BOOL);
    CHECK(ml_type_from_name("u8") == ML_U8);
    CHECK(ml_type_from_name("F3") == ML_TYPE_NONE);
    CHECK(ml_type_from_name("F321") == ML_TYPE_NONE);
    CHECK(ml_type_from_name("") == ML_TYPE_NONE);
    CHECK(ml_type_from_name("?") == ML_TYPE_NONE);
    CHECK(ml_type_from_name(NULL) == ML_TYPE_NONE);
    CHECK(mli_type_from_gguf(16) == ML_TYPE_NONE); /* IQ2_XXS */
    CHECK(mli_type_from_gguf(UINT32_MAX) == ML_TYPE_NONE);
    CHECK(!strcmp(ml_type_name(ML_TYPE_NONE), "?"));
    CHECK(!strcmp(ml_type_name((ml_type)ML_TYPE_COUNT), "?"));
    CHECK(ml_type_block(ML_TYPE_NONE) == 1);
}

TEST(row_bytes) {
    CHECK(ml_type_row_bytes(ML_Q8_0, 64) == 68);
    CHECK(ml_type_row_bytes(ML_Q4_0, 64) == 36);
    CHECK(ml_type_row_bytes(ML_Q8_0, 33) == 0);
    CHECK(ml_type_row_bytes(ML_Q4_0, 16) == 0);
    CHECK(ml_type_row_bytes(ML_TYPE_NONE, 4) == 0);
    CHECK(ml_type_row_bytes(ML_F64, SIZE_MAX / 4) == 0); /* cannot be counted */
    CHECK(ml_type_row_bytes(ML_U8, SIZE_MAX) == SIZE_MAX);
}

/* ---- blocks ---- */

/* Blocks written by hand: scale 0.5 is F16 0x3800, -2 is 0xc000. */
TEST(blocks_by_hand) {
    uint8_t q8[2 * 34], q4[2 * 18];
    float x[64];
    int i;
    for (i = 0; i < 32; i++) q8[2 + i] = (uint8_t)(i - 16), q8[36 + i] = (uint8_t)(i ? 127 : -128);
    q8[0] = 0x00, q8[1] = 0x38, q8[34] = 0x00, q8[35] = 0xc0;
    mli_dequantize_row(ML_Q8_0, q8, x, 64);
    for (i = 0; i < 32; i++) {
        CHECK(x[i] == 0.5f * (float)(i - 16));
        CHECK(x[32 + i] == (i ? -254.0f : 256.0f));
    }
    for (i = 0; i < 16; i++) q4[2 + i] = (uint8_t)(i | (15 - i) << 4), q4[20 + i] = 0xf0;
    q4[0] = 0x00, q4[1] = 0x38, q4[18] = 0x00, q4[19] = 0xc0;
    mli_dequantize_row(ML_Q4_0, q4, x, 64);
    for (i = 0; i < 16; i++) {
        CHECK(x[i] == 0.5f * (float)(i - 8));
        CHECK(x[16 + i] == 0.5f * (float)(7 - i));
        CHECK(x[32 + i] == 16.0f);
        CHECK(x[48 + i] == -14.0f);
    }
}

/* A block of numbers of about one magnitude, sometimes with a few much larger ones. */
static void random_block(ml_random *random, float *x) {
    float magnitude = ldexpf(1.0f, (int)(ml_random_u64(random) % 16) - 8); /* well inside the range of F16 */
    int i;
    for (i = 0; i < 32; i++) x[i] = magnitude * ml_random_normal(random);
    if (ml_random_u64(random) % 4 == 0) x[ml_random_u64(random) % 32] *= 8;
}

/* |x - d q| <= d / 2, and as q <= 127 and the stored d is within 2^-11 of the true one, 127 * 2^-11 * d more;
   the division's rounding moves q by less than 127 * 2^-22. */
TEST(q8_0_error) {
    ml_random random;
    float x[32], back[32];
    uint8_t block[34];
    int t, i;
    ml_random_seed(&random, 1);
    for (t = 0; t < 2000; t++) {
        double d = 0;
        int largest = 0;
        random_block(&random, x);
        for (i = 0; i < 32; i++)
            if (fabs((double)x[i]) / 127 > d) d = fabs((double)x[i]) / 127;
        mli_quantize_row(ML_Q8_0, x, block, 32);
        mli_dequantize_row(ML_Q8_0, block, back, 32);
        CHECK(block[0] + 256 * block[1] == mli_f32_to_f16((float)d));
        for (i = 0; i < 32; i++) {
            int q = (int8_t)block[2 + i];
            CHECK(abs(q) <= 127);
            CHECK(fabs(q - x[i] / d) <= 0.5 + 127.0 / 4194304);
            CHECK(fabs((double)x[i] - back[i]) <= d * (0.5 + 127.0 / 2048 + 0.001));
            if (abs(q) > largest) largest = abs(q);
        }
        CHECK(largest == 127);
    }
}

/* ggml's reference rule, written out: byte for byte. */
TEST(q4_0_rule) {
    ml_random random;
    float x[32], back[32];
    uint8_t block[18];
    int t, i;
    ml_random_seed(&random, 2);
    for (t = 0; t < 2000; t++) {
        float largest = 0, d, inverse;
        random_block(&random, x);
        if (t == 0) x[3] = -100, x[9] = 100; /* of two as large, the first one's sign counts */
        for (i = 0; i < 32; i++)
            if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
        d = largest / -8;
        inverse = 1 / d;
        mli_quantize_row(ML_Q4_0, x, block, 32);
        mli_dequantize_row(ML_Q4_0, block, back, 32);
        CHECK(block[0] + 256 * block[1] == mli_f32_to_f16(d));
        for (i = 0; i < 32; i++) {
            int q = i < 16 ? block[2 + i] & 15 : block[2 + i - 16] >> 4, expected;
            volatile float scaled =
                x[i] * inverse; /* rounded before the addition, as in ggml without contraction */
            expected = (int)truncf(scaled + 8.5f);
            CHECK(q == (expected > 15 ? 15 : expected));
            /* half a step; at the far end, where +8 has no code, a whole one; and d's rounding to F16 */
            CHECK(fabs((double)x[i] - back[i]) <=
                  fabs((double)d) * ((q == 15 ? 1 : 0.5) + 8.0 / 2048 + 0.001));
        }
    }
}

/* What files and broken training may hold comes out finite. */
TEST(strange_numbers) {
    static const ml_type types[2] = {ML_Q8_0, ML_Q4_0};
    uint8_t block[128]; /* room for 32 numbers in any format */
    float x[32], back[32];
    int t, i;
    for (t = 0; t < 2; t++) {
        memset(x, 0, sizeof x);
        mli_quantize_row(types[t], x, block, 32);
        mli_dequantize_row(types[t], block, back, 32);
        for (i = 0; i < 32; i++) CHECK(back[i] == 0);

        for (i = 0; i < 32; i++) x[i] = i % 2 ? (float)i : NAN;
        mli_quantize_row(types[t], x, block, 32);
        mli_dequantize_row(types[t], block, back, 32);
        for (i = 0; i < 32; i += 2) CHECK(back[i] == 0);
        CHECK_NEAR(back[31], 31, 0, t ? 0.13 : 0.001); /* Q4_0 may clip +8 to +7, an eighth */

        for (i = 0; i < 32; i++) x[i] = NAN;
        mli_quantize_row(types[t], x, block, 32);
        mli_dequantize_row(types[t], block, back, 32);
        for (i = 0; i < 32; i++) CHECK(back[i] == 0);

        for (i = 0; i < 32; i++) x[i] = i % 3 == 0 ? INFINITY : i % 3 == 1 ? -INFINITY : 3e38f;
        mli_quantize_row(types[t], x, block, 32);
        mli_dequantize_row(types[t], block, back, 32);
        for (i = 0; i < 32; i++) CHECK(fabsf(back[i]) <= 128 * 65504.0f && (back[i] > 0) == (i % 3 != 1));

        for (i = 0; i < 32; i++) x[i] = i % 2 ? 1e-42f : -1e-44f; /* subnormal: d is 0 as an F16 */
        mli_quantize_row(types[t], x, block, 32);
        mli_dequantize_row(types[t], block, back, 32);
        for (i = 0; i < 32; i++) CHECK(back[i] == 0);
    }
}

/* ---- ml_type_convert ---- */

enum { COUNT = 832 }; /* a multiple of 32, and not of the conversion's internal portions */

/* Number i of the source of each type, small enough for all. */
static double source_value(ml_type type, int i) {
    if (type == ML_BOOL) return i % 2;
    if (type == ML_U8) return i % 100;
    return i % 100 - 50;
}

static void make_source(ml_type type, uint8_t *bytes) {
    float floats[COUNT];
    int i;
    for (i = 0; i < COUNT; i++) {
        double value = source_value(type, i);
        int64_t i64 = (int64_t)value;
        int32_t i32 = (int32_t)value;
        int16_t i16 = (int16_t)value;
        floats[i] = (float)value;
        switch (type) {
        case ML_F64: memcpy(bytes + i * 8, &value, 8); break;
        case ML_I64: memcpy(bytes + i * 8, &i64, 8); break;
        case ML_I32: memcpy(bytes + i * 4, &i32, 4); break;
        case ML_I16: memcpy(bytes + i * 2, &i16, 2); break;
        case ML_I8: bytes[i] = (uint8_t)i16; break;
        case ML_U8: bytes[i] = (uint8_t)i16; break;
        case ML_BOOL: bytes[i] = (uint8_t)(i % 2 ? 255 : 0); break; /* anything but 0 is true */
        default: break;
        }
    }
    if (type <= ML_Q4_0) {
        static float aligned[COUNT];
        mli_quantize_row(type, floats, aligned, COUNT);
        memcpy(bytes, aligned, ml_type_row_bytes(type, COUNT));
    }
}

/* All pairs, at odd addresses. Whole numbers below 100 are exact in F32, F16 and BF16; a block format is off
   by half a step (Q4_0: up to a whole one), the step being at most 100 / 127 or 100 / 8, once for each end.
   */
TEST(convert_pairs) {
    static const double tolerance[ML_Q4_0 + 1] = {0, 0, 0, 0, 100.0 / 127 * 0.57, 100.0 / 8 * 1.01};
    static uint8_t src[COUNT * 8 + 1], dst[COUNT * 4 + 2];
    static float floats[COUNT];
    static uint16_t aligned[COUNT * 2];
    int from, to, i;
    for (from = ML_F32; from <= ML_BOOL; from++) { /* the others are only read: see test_quant.c */
        make_source((ml_type)from, src + 1);
        for (to = ML_F32; to <= ML_Q4_0; to++) {
            size_t bytes = ml_type_row_bytes((ml_type)to, COUNT);
            double bound = tolerance[to] + (from <= ML_Q4_0 && from != to ? tolerance[from] * 1.2 : 0);
            memset(dst, 0xa5, sizeof dst);
            CHECK(ml_type_convert((ml_type)to, dst + 1, (ml_type)from, src + 1, COUNT) == ML_OK);
            CHECK(dst[0] == 0xa5 && dst[bytes + 1] == 0xa5);
            memcpy(aligned, dst + 1, bytes);
            mli_dequantize_row((ml_type)to, aligned, floats, COUNT);
            for (i = 0; i < COUNT; i++) CHECK_NEAR(floats[i], source_value((ml_type)from, i), bound, 0);
            if (from == to) CHECK(!memcmp(dst + 1, src + 1, bytes));
        }
    }
}

/* One rounding, not two: numbers just above the middle between two neighbors, where rounding to F32 on the
   way would land on the middle and then go to the even neighbor below. */
TEST(convert_rounds_once) {
    double f64[4];
    int32_t i32 = (1 << 30) + (1 << 22) + 1; /* BF16 has steps of 2^23 there */
    uint16_t half[4];
    f64[0] = 1 + ldexp(1, -11) + ldexp(1, -40);
    f64[1] = -f64[0];
    f64[2] = 1 + ldexp(1, -11);     /* the middle itself */
    f64[3] = 65520 - ldexp(1, -20); /* below the middle between the largest and infinity */
    CHECK(ml_type_convert(ML_F16, half, ML_F64, f64, 4) == ML_OK);
    CHECK(half[0] == 0x3c01 && half[1] == 0xbc01 && half[2] == 0x3c00 && half[3] == 0x7bff);
    f64[0] = 1 + ldexp(1, -8) + ldexp(1, -50);
    f64[1] = 1e300;
    f64[2] = -1e-300;
    f64[3] = (double)NAN;
    CHECK(ml_type_convert(ML_BF16, half, ML_F64, f64, 4) == ML_OK);
    CHECK(half[0] == 0x3f81 && half[1] == 0x7f80 && half[2] == 0x8000 && (half[3] & 0x7fff) > 0x7f80);
    CHECK(ml_type_convert(ML_BF16, half, ML_I32, &i32, 1) == ML_OK);
    CHECK(half[0] == 0x4e81);
}

/* Numbers of 8 bytes are taken in smaller parts than a block: whole numbers, so that all three say the same. */
TEST(convert_from_wide_numbers) {
    enum { N = 512 };
    static const ml_type from[3] = {ML_F32, ML_F64, ML_I64};
    float f32[N];
    double f64[N];
    int64_t i64[N];
    const void *const numbers[3] = {f32, f64, i64};
    int n_types = 0;
    for (int i = 0; i < N; i++) f32[i] = (float)(i64[i] = i * 37 % 101 - 50), f64[i] = (double)i64[i];
    for (int type = 0; type < 64; type++) {
        unsigned char block[3][4 * N];
        size_t size = ml_type_row_bytes((ml_type)type, N);
        for (int i = 0; i < 3; i++) memset(block[i], 0xaa, sizeof block[i]);
        if (!size || size > sizeof block[0] || ml_type_convert((ml_type)type, block[0], ML_F32, f32, N))
            continue;
        n_types++;
        for (int i = 1; i < 3; i++) {
            CHECK(ml_type_convert((ml_type)type, block[i], from[i], numbers[i], N) == ML_OK);
            CHECK(memcmp(block[i], block[0], size) == 0);
        }
    }
    CHECK(n_types >= 5); /* F32, F16, BF16, Q8_0 and Q4_0, whatever is left out */
}

TEST(convert_integers) {
    static const int64_t i64[3] = {INT64_MIN, INT64_MAX, (1 << 24) + 1};
    static const uint8_t bytes[2] = {128, 255};
    float f[3];
    CHECK(ml_type_convert(ML_F32, f, ML_I64, i64, 3) == ML_OK);
    CHECK(f[0] == -9223372036854775808.0f && f[1] == 9223372036854775808.0f && f[2] == 16777216.0f);
    CHECK(ml_type_convert(ML_F32, f, ML_I8, bytes, 2) == ML_OK);
    CHECK(f[0] == -128 && f[1] == -1);
    CHECK(ml_type_convert(ML_F32, f, ML_U8, bytes, 2) == ML_OK);
    CHECK(f[0] == 128 && f[1] == 255);
}

TEST(convert_refuses) {
    float x[64] = {0};
    uint8_t out[256] = {0};
    CHECK(ml_type_convert(ML_Q8_0, out, ML_F32, x, 33) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, x, ML_Q4_0, out, 16) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_I32, out, ML_F32, x, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_TYPE_NONE, out, ML_F32, x, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, out, ML_TYPE_NONE, x, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, out, (ml_type)ML_TYPE_COUNT, x, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, NULL, ML_F16, x, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, out, ML_F16, NULL, 4) == ML_ERROR_ARGUMENT);
    CHECK(ml_type_convert(ML_F32, NULL, ML_F16, NULL, 0) == ML_OK);
}

int main(void) {
    RUN(every_f16);
    RUN(every_bf16);
    RUN(f16_rounding);
    RUN(bf16_rounding);
    RUN(rows_of_f16_and_bf16);
    RUN(type_table);
    RUN(row_bytes);
    RUN(blocks_by_hand);
    RUN(q8_0_error);
    RUN(q4_0_rule);
    RUN(strange_numbers);
    RUN(convert_pairs);
    RUN(convert_rounds_once);
    RUN(convert_from_wide_numbers);
    RUN(convert_integers);
    RUN(convert_refuses);
    return test_report("formats");
}
