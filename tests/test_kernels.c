/* The kernels of the instruction set that this is compiled for, against plain loops in double precision; built once
   for each of them by the Makefile. Inputs, outputs and scratch end where a page without access begins, so that a
   kernel that reads or writes one number too many crashes here. */
#define ML_REFERENCE_KERNELS
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "pages.h"

enum { LANES = (int)(sizeof(mli_v) / sizeof(float)) };

/* Rounding errors are bounded as Higham (2002, section 3.1) does: a sum of n products is off by at most about
   n * 2^-24 * sum |a b|. The kernels' interleaved sums stay below sqrt(n) of it; n is the safe side. */
#define UNIT 5.9604645e-8 /* 2^-24 */

/* ---- memory with an end ---- */

enum { MAX_GUARDED = 64 };
static struct guarded {
    void *memory;
    size_t size;
} guarded[MAX_GUARDED];
static int n_guarded;

/* `size` bytes, filled with NaNs, that end at a page without access (rounded up to what keeps them aligned). */
static void *guard(size_t size, size_t align) {
    size = (size + align - 1) / align * align;
    if (n_guarded == MAX_GUARDED) exit(1);
    guarded[n_guarded].memory = guarded_new(size, 0xff);
    guarded[n_guarded].size = size;
    return guarded[n_guarded++].memory;
}

static void release(void) {
    while (n_guarded > 0) {
        n_guarded--;
        guarded_free(guarded[n_guarded].memory, guarded[n_guarded].size);
    }
}

static float *guard_floats(size_t n) { return (float *)guard(n * sizeof(float), sizeof(float)); }

static ml_random random_state;

static float *random_floats(size_t n) {
    float *x = guard_floats(n);
    size_t i;
    for (i = 0; i < n; i++) x[i] = ml_random_normal(&random_state);
    return x;
}

static float *copy_floats(const float *x, size_t n) {
    float *y = guard_floats(n);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static size_t pick(size_t below) { return (size_t)(ml_random_u64(&random_state) % below); }

/* ---- threads: the tasks of an operation in any order ---- */

static void forwards(void *user, int n, ml_task task, void *arg) {
    int i;
    (void)user;
    for (i = 0; i < n; i++) task(arg, i);
}

static void backwards(void *user, int n, ml_task task, void *arg) {
    int i;
    (void)user;
    for (i = n - 1; i >= 0; i--) task(arg, i);
}

static void shuffled(void *user, int n, ml_task task, void *arg) {
    int i, step = 7;
    while (n % step == 0)
        step += 2; /* 7 or the next odd number that does not divide n: every i once for a small n */
    (void)user;
    for (i = 0; i < n; i++) task(arg, (int)((long)i * step % n));
}

enum { N_THREADS = 6 };
static ml_threads thread_case(int i) {
    static const int counts[N_THREADS] = {1, 2, 2, 3, 3, 5};
    ml_threads threads;
    threads.count = counts[i];
    threads.parallel_for = i % 2 ? backwards : i == 4 ? shuffled : forwards;
    threads.user = NULL;
    return threads;
}

/* ---- vectors ---- */

TEST(lanes) {
    float *x = random_floats(LANES), *y, expected = 0, lanes[LANES];
    size_t n, i;
    for (n = 0; n <= LANES; n++) {
        float *end = guard_floats(n), *to = guard_floats(LANES);
        memcpy(end, x, n * sizeof *x);
        mli_v_store(lanes, mli_v_load_n(end, n));
        for (i = 0; i < LANES; i++) CHECK(lanes[i] == (i < n ? x[i] : 0.0f));
        mli_v_store_n(end, mli_v_set(3.0f), n);
        for (i = 0; i < n; i++) CHECK(end[i] == 3.0f);
        mli_v_store_n(to, mli_v_set(5.0f), n); /* the rest stays as it was: NaN */
        for (i = 0; i < LANES; i++) CHECK(i < n ? to[i] == 5.0f : to[i] != to[i]);
    }
    y = random_floats(LANES);
#define CHECK_LANES(expression, value)                                                                       \
    mli_v_store(lanes, expression);                                                                          \
    for (i = 0; i < LANES; i++) CHECK(lanes[i] == (value))
    CHECK_LANES(mli_v_zero(), 0.0f);
    CHECK_LANES(mli_v_add(mli_v_load(x), mli_v_load(y)), x[i] + y[i]);
    CHECK_LANES(mli_v_sub(mli_v_load(x), mli_v_load(y)), x[i] - y[i]);
    CHECK_LANES(mli_v_mul(mli_v_load(x), mli_v_load(y)), x[i] * y[i]);
    CHECK_LANES(mli_v_div(mli_v_load(x), mli_v_load(y)), x[i] / y[i]);
    CHECK_LANES(mli_v_max(mli_v_load(x), mli_v_load(y)), x[i] > y[i] ? x[i] : y[i]);
    CHECK_LANES(mli_v_min(mli_v_load(x), mli_v_load(y)), x[i] < y[i] ? x[i] : y[i]);
    CHECK_LANES(mli_v_fma(mli_v_set(3.0f), mli_v_set(4.0f), mli_v_set(5.0f)), 17.0f);
#undef CHECK_LANES
    for (i = 0; i < LANES; i++) lanes[i] = (float)(1 << i), expected += lanes[i]; /* each lane counts once */
    CHECK(mli_v_sum(mli_v_load(lanes)) == expected);
    for (n = 0; n <= LANES + 3; n++) { /* more than there are: all */
        mli_v_store(lanes, mli_v_keep_n(mli_v_load_n(x, LANES + n), n));
        for (i = 0; i < LANES; i++) CHECK(lanes[i] == (i < n ? x[i] : 0.0f));
    }
    mli_v_store_n(lanes, mli_v_load(y), LANES + 1);
    CHECK(memcmp(lanes, y, sizeof lanes) == 0);
    for (n = 0; n < LANES; n++) {
        for (i = 0; i < LANES; i++) lanes[i] = i == n ? -1.0f : -2.0f;
        CHECK(mli_v_largest(mli_v_load(lanes)) == -1.0f);
    }
    release();
}

TEST(transposing) {
    mli_v row[LANES];
    float lanes[LANES];
    int i, j;
    for (i = 0; i < LANES; i++) {
        for (j = 0; j < LANES; j++) lanes[j] = (float)(100 * i + j);
        row[i] = mli_v_load(lanes);
    }
    for (i = 0; i < LANES; i += 4) { /* to the same bits as one by one */
        float sums[4], sum;
        mli_v_sum_4(row + i, sums);
        for (j = 0; j < 4; j++) {
            sum = mli_v_sum(row[i + j]);
            CHECK(memcmp(&sums[j], &sum, sizeof sum) == 0);
        }
    }
    mli_v_transpose(row);
    for (i = 0; i < LANES; i++) {
        mli_v_store(lanes, row[i]);
        for (j = 0; j < LANES; j++) CHECK(lanes[j] == (float)(100 * j + i));
    }
}

/* The value of a half by its definition. */
static double half_value(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double value = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    if (exponent == 31) value = mantissa ? NAN : HUGE_VAL;
    return half & 0x8000 ? -value : value;
}

TEST(halves) {
    uint32_t h;
    float lanes[LANES];
    for (h = 0; h < 65536; h++) { /* all of them, each in another lane */
        uint16_t halves[LANES] = {0};
        uint32_t bits = h << 16;
        float brain;
        size_t lane = h % LANES;
        double expected = half_value((uint16_t)h);
        halves[lane] = (uint16_t)h;
        mli_v_store(lanes, mli_v_load_f16(halves));
        CHECK((double)lanes[lane] == expected || (lanes[lane] != lanes[lane] && expected != expected));
        memcpy(&brain, &bits, sizeof brain);
        mli_v_store(lanes, mli_v_load_bf16(halves));
        CHECK(memcmp(&lanes[lane], &brain, sizeof brain) == 0);
    }
}

static float exp_of(float x) {
    float lanes[LANES];
    mli_v_store(lanes, mli_v_exp(mli_v_set(x)));
    return lanes[LANES - 1];
}

/* |value - exact| in units of the last place of exact, which is 2^-149 below the normal numbers. */
static double ulps(float value, double exact) {
    int exponent;
    frexp(exact, &exponent);
    return fabs((double)value - exact) / ldexp(1.0, exponent - 24 > -149 ? exponent - 24 : -149);
}

/* What is not finite is found wherever it is among numbers that are nearly so, in any number of them. */
TEST(finding_what_is_not_finite) {
    enum { MOST = 2100 };
    static float x[MOST];
    static uint16_t halves[MOST], brains[MOST];
    static const size_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 1023, 1024, 1025, 2047, 2048, 2049, MOST};
    size_t s, i, step;
    for (i = 0; i < MOST; i++) {
        x[i] = mli_bits_float(i % 3 == 0 ? 0x7f7fffffu : i % 3 == 1 ? 0xff7fffffu : 0x807fffffu);
        halves[i] = (uint16_t)(i % 3 == 0 ? 0x7bff : i % 3 == 1 ? 0xfbff : 0x83ff);
        brains[i] = (uint16_t)(i % 3 == 0 ? 0x7f7f : i % 3 == 1 ? 0xff7f : 0x807f);
    }
    for (s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s];
        CHECK(mli_find_not_finite(ML_F32, x, n) == n && mli_find_beyond(x, n, 0x7f800000u) == n);
        CHECK(mli_find_not_finite(ML_F16, halves, n) == n && mli_find_not_finite(ML_BF16, brains, n) == n);
        for (i = 0; i < n; i += step) {
            float was = x[i];
            uint16_t half = halves[i], brain = brains[i];
            step = n > 9 && i > 4 && i + 9 < n && i != 1016 ? 4 : 1;
            x[i] = mli_bits_float(i % 2 ? 0x7f800000u : 0xff800001u);
            halves[i] = (uint16_t)(i % 2 ? 0x7c00 : 0xfc01);
            brains[i] = (uint16_t)(i % 2 ? 0x7f80 : 0xff81);
            CHECK(mli_find_not_finite(ML_F32, x, n) == i && mli_find_beyond(x, n, 0x7f800000u) == i);
            CHECK(mli_find_not_finite(ML_F16, halves, n) == i &&
                  mli_find_not_finite(ML_BF16, brains, n) == i);
            CHECK(mli_find_not_finite(ML_F32, x, i) == i && mli_find_not_finite(ML_F16, halves, i) == i);
            x[i] = was, halves[i] = half, brains[i] = brain;
        }
    }
    CHECK(mli_is_finite(1.7976931348623157e308) && mli_is_finite(-4.9e-324) && mli_is_finite(0));
    CHECK(!mli_is_finite(HUGE_VAL) && !mli_is_finite(-HUGE_VAL) && !mli_is_finite((double)NAN));
}

TEST(exponential) {
    uint32_t bits, sign;
    double worst = 0;
    for (sign = 0; sign < 2; sign++)
        for (bits = 0; bits < 0x42d00000; bits += 997) { /* up to 104 */
            uint32_t pattern = bits | sign << 31;
            float x;
            double error;
            memcpy(&x, &pattern, sizeof x);
            if (x > 88.72f) continue;
            error = ulps(exp_of(x), exp((double)x));
            if (error > worst) worst = error;
        }
    CHECK(worst <= 2.0); /* without fused multiply-adds rounding is what costs the second ulp */
    CHECK(exp_of(0.0f) == 1.0f);
    CHECK(exp_of(-0.0f) == 1.0f);
    CHECK(exp_of(-120.0f) == 0.0f);
    CHECK(exp_of(-3e38f) == 0.0f);
    CHECK(exp_of((float)-HUGE_VAL) == 0.0f);
    CHECK(exp_of(88.73f) == (float)HUGE_VAL); /* ln(largest float) is 88.7228 */
    CHECK(exp_of(3e38f) == (float)HUGE_VAL);
    CHECK(exp_of((float)HUGE_VAL) == (float)HUGE_VAL);
    CHECK(exp_of((float)NAN) != exp_of((float)NAN));
}

TEST(vector_kernels) {
    size_t n, i;
    for (n = 1; n < 200; n += n < 70 ? 1 : 37) { /* alignments come by themselves: the end is fixed */
        float *a = random_floats(n), *b = random_floats(n), *c = copy_floats(a, n), *d;
        float scale = 0, expected = mli_ref_dot_f32(a, b, n);
        for (i = 0; i < n; i++) scale += fabsf(a[i] * b[i]);
        CHECK_NEAR(mli_dot(a, b, n), expected, (double)n * UNIT * (double)scale, UNIT);
        CHECK(mli_max(a, n) == mli_ref_max(a, n));
        d = copy_floats(a, n);
        mli_axpy(c, 0.7f, b, n);
        mli_ref_axpy(d, 0.7f, b, n);
        for (i = 0; i < n; i++) CHECK_NEAR(c[i], d[i], 4 * UNIT * fabs((double)b[i]), 2 * UNIT);
        memcpy(c, a, n * sizeof *c);
        mli_add(c, b, n);
        for (i = 0; i < n; i++) CHECK(c[i] == a[i] + b[i]);
        memcpy(c, a, n * sizeof *c);
        mli_scale(c, 0.3f, n);
        for (i = 0; i < n; i++) CHECK(c[i] == 0.3f * a[i]);
        release();
    }
    CHECK(mli_dot(NULL, NULL, 0) == 0.0f);
    mli_axpy(NULL, 1.0f, NULL, 0);
    mli_add(NULL, NULL, 0);
    mli_scale(NULL, 1.0f, 0);
}

TEST(maximum) { /* at any position, and below 0 */
    size_t n, at, i;
    for (n = 1; n < 70; n++) {
        float *x = guard_floats(n);
        for (at = 0; at < n; at++) {
            for (i = 0; i < n; i++) x[i] = i == at ? -1.0f : -2.0f;
            CHECK(mli_max(x, n) == -1.0f);
        }
        release();
    }
}

/* Exponentials are good to 2 ulp, and their sum of positive terms to n roundings; but x - max is rounded, too, which
   e^x turns into a relative error of |x - max| * 2^-24. */
TEST(softmax) {
    static const float shift[] = {0, 1e4f, -1e4f, 1e30f};
    size_t n, i, s;
    for (n = 1; n < 300; n += n < 70 ? 1 : 53)
        for (s = 0; s < 4; s++) {
            float *x = random_floats(n), *expected, *logits, *again, log_sum;
            double sum = 0, max, *distance = (double *)malloc(n * sizeof *distance);
            for (i = 0; i < n; i++) x[i] = x[i] * 10.0f + shift[s];
            max = (double)mli_ref_max(x, n);
            for (i = 0; i < n; i++) distance[i] = max - (double)x[i];
            expected = copy_floats(x, n);
            logits = copy_floats(x, n);
            again = copy_floats(x, n);
            log_sum = mli_softmax_log(x, n);
            mli_ref_softmax(expected, n);
            for (i = 0; i < n; i++)
                CHECK_NEAR(x[i], expected[i], 1e-37, (10.0 + (double)n + distance[i]) * UNIT);
            free(distance);
            mli_log_softmax(again, n);
            for (i = 0; i < n; i++) CHECK(again[i] == logits[i] - log_sum);
            for (i = 0; i < n; i++) sum += (double)x[i];
            CHECK_NEAR(sum, 1.0, (10.0 + (double)n) * UNIT, 0);
            release();
        }
}

TEST(softmax_extremes) {
    float infinity = (float)HUGE_VAL, x[40];
    int i;
    for (i = 0; i < 40; i++) x[i] = i % 2 ? -infinity : 3e38f;
    mli_softmax(x, 40);
    for (i = 0; i < 40; i++) CHECK_NEAR(x[i], i % 2 ? 0.0 : 0.05, 0, 4 * UNIT);
    for (i = 0; i < 40; i++) x[i] = i == 37 ? 3e38f : -3e38f;
    mli_softmax(x, 40);
    for (i = 0; i < 40; i++) CHECK(x[i] == (i == 37 ? 1.0f : 0.0f));
    x[0] = -infinity, x[1] = -1e30f; /* all far below 0: no starting value may take the maximum's place */
    mli_softmax(x, 2);
    CHECK(x[0] == 0.0f && x[1] == 1.0f);
    for (i = 0; i < 40; i++) x[i] = i == 3 ? (float)NAN : 1.0f; /* what is wrong must show */
    mli_softmax(x, 40);
    for (i = 0; i < 40; i++) CHECK(x[i] != x[i]);
}

TEST(swiglu) {
    static const float special[] = {0, -0.0f, 100, -100, 1e30f, -1e30f, 88.5f, -88.5f, -90, -103, -104, -110};
    size_t n, i;
    for (n = 1; n < 200; n += n < 70 ? 1 : 37) {
        float *gate = random_floats(n), *up = random_floats(n), *y = guard_floats(n),
              *expected = guard_floats(n);
        for (i = 0; i < n; i++) gate[i] = pick(3) ? gate[i] * 8.0f : special[pick(12)];
        mli_ref_swiglu(expected, gate, up, n);
        mli_swiglu(y, gate, up, n);
        for (i = 0; i < n; i++)
            CHECK_NEAR(y[i], expected[i], 1e-36, 12 * UNIT); /* 2 ulp of exp, 4 roundings */
        mli_swiglu(gate, gate, up, n);
        CHECK(memcmp(gate, y, n * sizeof *y) == 0);
        release();
    }
}

/* ---- matrices ---- */

/* A matrix (rows, cols) of random numbers in either order and with room between its rows or columns. */
typedef struct matrix {
    float *data;
    size_t size, row_stride, col_stride;
} matrix;

static matrix random_matrix(size_t rows, size_t cols, int transposed, size_t room) {
    matrix x;
    size_t outer = transposed ? cols : rows, inner = transposed ? rows : cols, i;
    x.row_stride = transposed ? 1 : inner + room;
    x.col_stride = transposed ? inner + room : 1;
    x.size = (outer - 1) * (inner + room) + inner; /* nothing after the last number */
    x.data = random_floats(x.size);
    for (i = 0; i < x.size; i++)
        if (i % (inner + room) >= inner) x.data[i] = (float)NAN; /* must not be used */
    return x;
}

static mli_operand operand_of(matrix x) { return mli_matrix(x.data, x.row_stride, x.col_stride); }

/* n products of two normal numbers: their mean magnitude is below 1, and none here exceeds 16. */
static double sum_tolerance(size_t n) { return (double)(n + 1) * UNIT * (double)(n + 16); }

static void check_gemm(size_t m, size_t n, size_t k, int order, size_t room, int accumulate) {
    matrix a = random_matrix(m, k, order & 1, room), b = random_matrix(k, n, order >> 1 & 1, room);
    matrix c = random_matrix(m, n, 0, room);
    float *expected, *start = copy_floats(c.data, c.size);
    size_t i, j, bytes = mli_gemm_work(NULL, m, n, k);
    int t, bad = 0;
    if (!accumulate)
        for (i = 0; i < c.size; i++) start[i] = (float)NAN; /* is overwritten, never added to */
    expected = copy_floats(start, c.size);
    mli_ref_gemm(m, n, k, operand_of(a), operand_of(b), expected, c.row_stride, accumulate);
    memcpy(c.data, start, c.size * sizeof(float));
    mli_gemm(NULL, m, n, k, operand_of(a), operand_of(b), c.data, c.row_stride, accumulate, guard(bytes, 4));
    for (i = 0; i < m; i++)
        for (j = 0; j < n + room && i * c.row_stride + j < c.size; j++) {
            float is = c.data[i * c.row_stride + j], should = expected[i * c.row_stride + j];
            if (j >= n) bad |= is == is; /* between the rows: NaN as before */
            if (j < n) bad |= !(fabs((double)is - (double)should) <= sum_tolerance(k));
        }
    CHECK(!bad);
    if (bad)
        printf("  at m %zu n %zu k %zu order %d room %zu accumulate %d\n", m, n, k, order, room, accumulate);
    for (t = 0; t < N_THREADS; t++) {
        ml_threads threads = thread_case(t);
        float *again = copy_floats(start, c.size);
        mli_gemm(&threads, m, n, k, operand_of(a), operand_of(b), again, c.row_stride, accumulate,
                 guard(mli_gemm_work(&threads, m, n, k), 4));
        CHECK(memcmp(again, c.data, c.size * sizeof(float)) == 0);
    }
    release();
}

TEST(gemm_edges) { /* all small shapes around the tile's height and width, and one of everything */
    static const size_t sizes[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  12, 13, 14,
                                   15, 16, 17, 24, 28, 29, 31, 32, 33, 48, 49, 65};
    size_t i, j, count = sizeof sizes / sizeof *sizes;
    for (i = 0; i < count; i++)
        for (j = 0; j < count; j++) {
            size_t k = sizes[(i * 7 + j) % count];
            check_gemm(sizes[i], sizes[j], k, (int)((i + j) % 4), j % 3, (int)(i % 2));
        }
    for (i = 0; i < count; i++) {
        check_gemm(sizes[i], 1, 1, 0, 0, 0);
        check_gemm(1, sizes[i], 1, 1, 1, 1);
        check_gemm(1, 1, sizes[i], 2, 2, 0);
        check_gemm(sizes[i], sizes[count - 1 - i], 1, 3, 1, 1);
    }
}

/* Sizes around the blocks, which depend on the instruction set: 256 or 512 of k, 64 to 144 rows, tiles of 4 to 14
   rows; large enough for the threads to share. Every instruction set is given the sizes of all of them. */
TEST(gemm_blocks) {
    static const size_t ks[] = {255, 256, 257, 2 * 256 + 5, 511, 512, 513, 2 * 512 + 5, 100};
    static const size_t block_rows[] = {64, 112, 128, 144}, tile_rows[] = {4, 6, 8, 14};
    int i;
    for (i = 0; i < 36; i++) check_gemm(1 + pick(60), 1 + pick(150), ks[i % 9], i % 4, pick(3), i % 3 == 0);
    for (i = 0; i < 4; i++) {
        check_gemm(block_rows[i] * 2 + 3, 70, 33, 0, 0, 0);
        check_gemm(block_rows[i] + 1, 35, 70, 3, 1, 1);
        check_gemm(8 * 5 * tile_rows[i] + 1, 67, 90, 2, 0, 0);
        check_gemm(8 * 5 * tile_rows[i] + 1, 67, 256 + 9, 1, 0, 1);
        check_gemm(8 * 5 * tile_rows[i] + 1, 67, 512 + 9, 1, 0, 1);
    }
    check_gemm(3, 2000, 50, 2, 0, 0);
}

TEST(gemm_random) {
    int i;
    for (i = 0; i < 300; i++)
        check_gemm(1 + pick(80), 1 + pick(80), 1 + pick(90), (int)pick(4), pick(4), (int)pick(2));
}

TEST(gemm_without_k) { /* an empty sum is 0 */
    float c[4] = {1, 2, 3, 4};
    mli_gemm(NULL, 2, 2, 0, mli_matrix(NULL, 1, 1), mli_matrix(NULL, 1, 1), c, 2, 1, NULL);
    CHECK(c[0] == 1 && c[3] == 4);
    mli_gemm(NULL, 2, 2, 0, mli_matrix(NULL, 1, 1), mli_matrix(NULL, 1, 1), c, 2, 0, NULL);
    CHECK(c[0] == 0 && c[1] == 0 && c[2] == 0 && c[3] == 0);
}

/* The position of an element does not change its bits: parts of A and B give the part of C. */
static void check_positions(size_t k) {
    size_t m = 61, n = 83, i;
    matrix a = random_matrix(m, k, 0, 0), b = random_matrix(k, n, 1, 0);
    float *c = guard_floats(m * n), *part = guard_floats(m * n);
    void *work = guard(mli_gemm_work(NULL, m, n, k), 4);
    int t;
    mli_gemm(NULL, m, n, k, operand_of(a), operand_of(b), c, n, 0, work);
    for (t = 0; t < 50; t++) {
        size_t top = pick(m), left = pick(n), rows = 1 + pick(m - top), cols = 1 + pick(n - left);
        mli_operand pa = mli_matrix(a.data + top * k, k, 1), pb = mli_matrix(b.data + left * k, 1, k);
        mli_gemm(NULL, rows, cols, k, pa, pb, part, cols, 0, work);
        for (i = 0; i < rows; i++)
            CHECK(memcmp(part + i * cols, c + (top + i) * n + left, cols * sizeof *c) == 0);
    }
    release();
}

TEST(gemm_positions) { /* in one block of k and a part of the next, of 256 and of 512 */
    check_positions(256 + 40);
    check_positions(512 + 40);
}

/* ---- weights of all types ---- */

/* w (rows, cols) in the type, and its values as F32 */
static ml_tensor random_weights(ml_type type, size_t rows, size_t cols, float *values) {
    ml_tensor w;
    size_t i, bytes = ml_type_row_bytes(type, cols);
    float *row = (float *)malloc(cols * sizeof *row);
    w.type = type;
    w.rows = rows;
    w.cols = cols;
    w.data = guard(rows * bytes, type == ML_F32 ? 4 : 2);
    for (i = 0; i < rows; i++) {
        size_t j;
        for (j = 0; j < cols; j++) row[j] = ml_random_normal(&random_state);
        CHECK(ml_type_convert(type, (char *)w.data + i * bytes, ML_F32, row, cols) == ML_OK);
        CHECK(ml_type_convert(ML_F32, values + i * cols, type, (char *)w.data + i * bytes, cols) == ML_OK);
    }
    free(row);
    return w;
}

TEST(gemm_types) { /* B of every type, in both directions: x . W^T and dy . W; A in halves */
    static const ml_type types[] = {ML_F32, ML_F16, ML_BF16, ML_Q8_0, ML_Q4_0};
    int t, i, threads_case;
    for (t = 0; t < 5; t++)
        for (i = 0; i < 12; i++) {
            size_t m = 1 + pick(40), out = 1 + pick(150), in = t < 3 ? 1 + pick(700) : 32 * (1 + pick(24)), j;
            float *values = guard_floats(out * in), *c, *expected;
            ml_tensor w = random_weights(types[t], out, in, values);
            int transposed = i % 2; /* dy (m, out) . W (out, in), else x (m, in) . W^T */
            size_t n = transposed ? in : out, k = transposed ? out : in;
            matrix a = random_matrix(m, k, 0, 0);
            mli_operand b = mli_matrix((const float *)w.data, transposed ? in : 1, transposed ? 1 : in);
            mli_operand plain = mli_matrix(values, b.row_stride, b.col_stride);
            b.type = types[t];
            c = guard_floats(m * n);
            expected = guard_floats(m * n);
            mli_ref_gemm(m, n, k, operand_of(a), plain, expected, n, 0);
            for (threads_case = 0; threads_case < 4; threads_case += 3) {
                ml_threads threads = thread_case(threads_case);
                mli_gemm(&threads, m, n, k, operand_of(a), b, c, n, 0,
                         guard(mli_gemm_work(&threads, m, n, k), 4));
                for (j = 0; j < m * n; j++) CHECK_NEAR(c[j], expected[j], sum_tolerance(k), 0);
            }
            if (t == 1 || t == 2) { /* the halves on the left: (n, m) = W . A^T */
                mli_operand left = mli_matrix((const float *)w.data, b.col_stride, b.row_stride);
                left.type = types[t];
                mli_gemm(NULL, n, m, k, left, mli_matrix(a.data, a.col_stride, a.row_stride), c, m, 0,
                         guard(mli_gemm_work(NULL, n, m, k), 4));
                for (j = 0; j < m * n; j++)
                    CHECK_NEAR(c[j], expected[j % m * n + j / m], sum_tolerance(k), 0);
            }
            release();
        }
}

TEST(dots) {
    int i;
    for (i = 0; i < 200; i++) {
        size_t n = 1 + pick(20), k = 1 + pick(100), stride = k + pick(5), j;
        float *rows = random_floats((n - 1) * stride + k), *x = random_floats(k), *y = guard_floats(n);
        mli_dots(y, x, rows, stride, n, k);
        for (j = 0; j < n; j++)
            CHECK_NEAR(y[j], mli_ref_dot_f32(x, rows + j * stride, k), sum_tolerance(k), 0);
        release();
    }
}

/* y = x . W^T for every type, one row to many, several weights at once; all thread counts give the same bits.
   Quantized weights meet activations of 8 bits, which are off by up to max |x| / 254 each: with max |x| below 5 and
   weights of about 1, a sum of k such errors of random sign stays below 6 sqrt(k) * 5 / 254 / sqrt(3). */
static double linear_tolerance(ml_type type, size_t k) {
    return sum_tolerance(k) + (type == ML_Q8_0 || type == ML_Q4_0 ? 0.069 * sqrt((double)k) : 0.0);
}

static void check_linear(const ml_type types[3], size_t n, size_t in, const size_t out[3]) {
    float *x = random_floats(n * in), *values[3], *expected[3], *y[3];
    ml_tensor w[3];
    mli_linear_job jobs[3];
    size_t i, max_out = out[0] > out[1] ? out[0] : out[1];
    int j, t, bad = 0;
    if (out[2] > max_out) max_out = out[2];
    for (j = 0; j < 3; j++) {
        values[j] = guard_floats(out[j] * in);
        w[j] = random_weights(types[j], out[j], in, values[j]);
        expected[j] = guard_floats(n * out[j]);
        y[j] = guard_floats(n * out[j]);
        mli_ref_gemm(n, out[j], in, mli_matrix(x, in, 1), mli_matrix(values[j], 1, in), expected[j], out[j],
                     0);
        jobs[j].w = &w[j];
    }
    for (t = 0; t < N_THREADS; t++) {
        ml_threads threads = thread_case(t);
        float *again[3];
        for (j = 0; j < 3; j++) jobs[j].y = again[j] = t ? guard_floats(n * out[j]) : y[j];
        mli_linear(&threads, x, n, in, jobs, 3, guard(mli_linear_work(&threads, n, in, max_out), 4));
        for (j = 0; j < 3; j++) CHECK(memcmp(again[j], y[j], n * out[j] * sizeof(float)) == 0);
    }
    for (j = 0; j < 3; j++)
        for (i = 0; i < n * out[j]; i++)
            bad |= !(fabs((double)y[j][i] - (double)expected[j][i]) <= linear_tolerance(types[j], in));
    CHECK(!bad);
    if (bad)
        printf("  at n %zu in %zu out %zu %zu %zu type %d\n", n, in, out[0], out[1], out[2], (int)types[0]);
    release();
}

TEST(linear) {
    static const ml_type all[] = {ML_F32, ML_F16, ML_BF16, ML_Q8_0, ML_Q4_0};
    int t;
    size_t n;
    for (t = 0; t < 7; t++)
        for (n = 1; n < 40; n += n < 20 ? 1 : 7) {
            int mixed = t >= 5;
            ml_type types[3];
            size_t out[3], in = t >= 3 ? 32 * (1 + pick(8)) : 1 + pick(200);
            out[0] = 1 + pick(70), out[1] = 1 + pick(40), out[2] = 1 + pick(100);
            types[0] = mixed ? all[pick(5)] : all[t];
            types[1] = mixed ? all[pick(5)] : all[t];
            types[2] = mixed ? all[pick(5)] : all[t];
            check_linear(types, n, in, out);
        }
}

TEST(linear_of_many_outputs) { /* enough for the threads to share one row */
    static const ml_type types[3] = {ML_F32, ML_F16, ML_BF16}, small[3] = {ML_Q8_0, ML_Q4_0, ML_F32};
    static const size_t out[3] = {1030, 517, 3}, no[3] = {1, 1, 1};
    check_linear(types, 1, 251, out);
    check_linear(types, 3, 64, out);
    check_linear(small, 1, 256, out);
    check_linear(small, 5, 64, out);
    check_linear(types, 1, 1, no);
    check_linear(types, 64, 1, no);
}

/* What was asked for the largest shape is enough for all smaller ones. */
TEST(work_sizes) {
    int i, t;
    for (i = 0; i < 20000; i++) {
        size_t m = 1 + pick(600), n = 1 + pick(3000), k = 1 + pick(3000);
        size_t m2 = 1 + pick(m), n2 = 1 + pick(n), k2 = 1 + pick(k);
        for (t = 0; t < 4; t += 3) {
            ml_threads threads = thread_case(t);
            CHECK(mli_gemm_work(&threads, m2, n2, k2) <= mli_gemm_work(&threads, m, n, k));
            CHECK(mli_linear_work(&threads, m2, n2, k2) <= mli_linear_work(&threads, m, n, k));
        }
    }
}

int main(void) {
    ml_random_seed(&random_state, 1);
    RUN(lanes);
    RUN(transposing);
    RUN(halves);
    RUN(finding_what_is_not_finite);
    RUN(exponential);
    RUN(vector_kernels);
    RUN(maximum);
    RUN(softmax);
    RUN(softmax_extremes);
    RUN(swiglu);
    RUN(gemm_edges);
    RUN(gemm_blocks);
    RUN(gemm_random);
    RUN(gemm_without_k);
    RUN(gemm_positions);
    RUN(gemm_types);
    RUN(dots);
    RUN(linear);
    RUN(linear_of_many_outputs);
    RUN(work_sizes);
    return test_report("test_kernels");
}
