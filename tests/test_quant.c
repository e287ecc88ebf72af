/* Products with quantized weights: the kernels of the instruction set that this is compiled for, against plain
   loops. Integer sums are exact, so kernels and loops may differ only in the order in which floats are added. */
#define MINILLAMA_IMPLEMENTATION
#define MLI_CHECK_WHOLE 13000000u /* what is a large model in checked_in_part, in place of 256 MB */
#define MLI_CHECK_STEP (1u << 20)
#include "preamble.h"
#include "folder.h"
#include "models.h"
#include "pages.h"
#include "shared.h"

#define UNIT 5.9604645e-8 /* 2^-24, half a unit in the last place of a float */

static ml_random state;

/* ---- memory ---- */

/* n bytes, filled with a pattern, that end where a page without access begins. Free with release(memory, n). */
static void *guard(size_t n) { return guarded_new(n, 0xa5); }

static void release(void *memory, size_t n) { guarded_free(memory, n); }

/* ---- threads: tasks in reverse order ---- */

static void backwards(void *user, int n, ml_task task, void *arg) {
    int i;
    (void)user;
    for (i = n - 1; i >= 0; i--) task(arg, i);
}

static ml_threads n_threads(int count) {
    ml_threads threads;
    threads.count = count;
    threads.parallel_for = backwards;
    threads.user = NULL;
    return threads;
}

/* ---- a problem and its exact answer ---- */

typedef struct problem {
    ml_type type;
    size_t m, n, k, w_bytes, q_bytes;
    float *x;   /* (m, k) */
    uint8_t *w; /* (n, k), from an address that is a multiple of nothing */
    void *memory;
    mli_activations q; /* x as blocks, in memory */
} problem;

/* Random blocks as a hostile file may hold them: any bytes, -128 too; the scales are finite, of either sign.
   */
static problem make_problem(ml_type type, size_t m, size_t n, size_t k) {
    problem p;
    size_t i, block_bytes = mli_type(type)->bytes;
    p.type = type, p.m = m, p.n = n, p.k = k;
    p.w_bytes = n * ml_type_row_bytes(type, k);
    p.q_bytes = mli_integer_bytes(m, k);
    p.x = (float *)guard(m * k * sizeof(float));
    p.w = (uint8_t *)guard(p.w_bytes);
    p.memory = guard(p.q_bytes);
    for (i = 0; i < m * k; i++) p.x[i] = ml_random_normal(&state);
    for (i = 0; i < p.w_bytes; i++) p.w[i] = (uint8_t)ml_random_u64(&state);
    for (i = 0; i < p.w_bytes; i += block_bytes) {
        mli_store_scale(p.w + i + mli_type(type)->scales[0], 0.01f * ml_random_normal(&state));
        mli_store_scale(p.w + i + mli_type(type)->scales[1], 0.01f * ml_random_normal(&state));
    }
    p.q = mli_integer_quantize(NULL, p.x, m, k, p.memory);
    return p;
}

static void end_problem(problem *p) {
    release(p->x, p->m * p->k * sizeof(float));
    release(p->w, p->w_bytes);
    release(p->memory, p->q_bytes);
}

/* ---- blocks in plain integers ---- */

/* A block as numbers, each of which is q scale - less: Q8_0 and Q4_0 as the header says, the others after ggml's
   layouts. */
typedef struct plain_block {
    int q[256];
    double scale[256], less[256];
} plain_block;

/* Scale and offset of part j of a Q4_K or Q5_K: 6 bits each. */
static void six_bits(const uint8_t *w, int j, int *scale, int *less) {
    *scale = j < 4 ? w[j] % 64 : w[j + 4] % 16 + w[j - 4] / 64 * 16;
    *less = j < 4 ? w[j + 4] % 64 : w[j + 4] / 16 + w[j] / 64 * 16;
}

static int plain_number(ml_type type, const uint8_t *w, int i) {
    const int half = i / 128, l = i % 128, part = i / 32;
    switch (type) {
    case ML_Q8_0: return (int8_t)w[2 + i];
    case ML_Q4_0: return (i < 16 ? w[2 + i] % 16 : w[2 + i - 16] / 16) - 8;
    case ML_Q4_1: return i < 16 ? w[4 + i] % 16 : w[4 + i - 16] / 16;
    case ML_Q5_0:
        return (i < 16 ? w[6 + i] % 16 : w[6 + i - 16] / 16) + (w[2 + i / 8] >> i % 8) % 2 * 16 - 16;
    case ML_Q5_1: return (i < 16 ? w[8 + i] % 16 : w[8 + i - 16] / 16) + (w[4 + i / 8] >> i % 8) % 2 * 16;
    case ML_Q6_K:
        return (l < 64 ? w[half * 64 + l] % 16 : w[half * 64 + l - 64] / 16) +
               (w[128 + half * 32 + l % 32] >> l / 32 * 2) % 4 * 16 - 32;
    default: {
        const uint8_t *q = w + (type == ML_Q5_K ? 48 : 16) + part / 2 * 32;
        int low = part % 2 ? q[i % 32] / 16 : q[i % 32] % 16;
        return low + (type == ML_Q5_K ? (w[16 + i % 32] >> part) % 2 * 16 : 0);
    }
    }
}

static void unpack_plainly(ml_type type, const uint8_t *w, plain_block *block) {
    int i, n = (int)ml_type_block(type), scale, less;
    double d = (double)mli_load_scale(w + mli_type(type)->scales[0]);
    double dmin = (double)mli_load_scale(w + mli_type(type)->scales[1]);
    for (i = 0; i < n; i++) {
        block->q[i] = plain_number(type, w, i);
        block->scale[i] = d;
        block->less[i] = 0;
        if (type == ML_Q4_1 || type == ML_Q5_1) block->less[i] = -dmin;
        if (type == ML_Q6_K) block->scale[i] *= (int8_t)w[192 + i / 16];
        if (type == ML_Q4_K || type == ML_Q5_K) {
            six_bits(w + 4, i / 32, &scale, &less);
            block->scale[i] *= scale;
            block->less[i] = dmin * less;
        }
    }
}

/* x . w^T for one output from the quantized x in doubles, and in *size the sum of all magnitudes. */
static double exact(const problem *p, size_t row_x, size_t row_w, double *size) {
    const size_t blocks = p->k / 32, n = ml_type_block(p->type);
    const mli_block_x *x = p->q.q + row_x * blocks;
    const float *x_scale = p->q.scale + row_x * blocks;
    const uint8_t *w = p->w + row_w * ml_type_row_bytes(p->type, p->k);
    plain_block block;
    double sum = 0;
    size_t i, j;
    *size = 0;
    for (i = 0; i < p->k; i += n, w += mli_type(p->type)->bytes) {
        unpack_plainly(p->type, w, &block);
        for (j = 0; j < n; j++) {
            double q = (double)x_scale[(i + j) / 32] * (double)x[(i + j) / 32].q[MLI_IN_BLOCK(j % 32)];
            sum += q * (block.scale[j] * block.q[j] - block.less[j]);
            *size += fabs(q) * (fabs(block.scale[j] * block.q[j]) + fabs(block.less[j]));
        }
    }
    return sum;
}

/* Each block's product is rounded three times at most (a scale of parts once more, and what is taken away, too), and
   added to a sum of as many blocks, which a part of Q6_K is two of; in the end the lanes come together. Higham (2002,
   section 3.1) bounds that by (blocks + 11) * 2^-24 times the sum of magnitudes, with two sums by twice that. */
static double tolerance(const problem *p, double size) {
    size_t blocks = p->k / 32;
    return (double)(p->type >= ML_Q4_1 ? 2 * blocks + 16 : blocks + 11) * UNIT * size;
}

static ml_tensor weights(const problem *p, size_t first, size_t n_rows) {
    ml_tensor w;
    memset(&w, 0, sizeof w);
    w.type = p->type, w.rows = n_rows, w.cols = p->k;
    w.data = p->w + first * ml_type_row_bytes(p->type, p->k);
    return w;
}

/* y (q.rows, n_rows; a row every stride) = q . rows first .. first + n_rows - 1 of w^T */
static void multiply_rows(const problem *p, float *y, size_t first, size_t n_rows, mli_activations q,
                          size_t stride) {
    ml_tensor w = weights(p, 0, p->n);
    mli_integer_job job = {&w, q, NULL, 0};
    job.y = y - first; /* column `first` of y comes first */
    job.y_stride = stride;
    mli_integer_few(&job, first, n_rows);
}

/* All of y, the path for many rows; x is quantized again, by the threads. */
static void multiply_all(const problem *p, const ml_threads *threads, float *y) {
    size_t size = mli_integer_work(threads, p->m, p->n, p->k), q_size = mli_integer_bytes(p->m, p->k);
    void *work = guard(size), *memory = guard(q_size);
    ml_tensor w = weights(p, 0, p->n);
    mli_integer_job job = {&w, mli_integer_quantize(threads, p->x, p->m, p->k, memory), y, p->n};
    mli_integer_many(threads, &job, work);
    release(memory, q_size);
    release(work, size);
}

/* The same in plain loops of floats. */
static void plain_rows(const problem *p, float *y, size_t stride) {
    size_t blocks = p->k / 32, block_bytes = mli_type(p->type)->bytes, i, row, b;
    for (i = 0; i < p->m; i++)
        for (row = 0; row < p->n; row++) {
            const uint8_t *w = p->w + row * blocks * block_bytes;
            float sum = 0;
            for (b = 0; b < blocks; b++, w += block_bytes) {
                float q[32], dot = 0;
                int j;
                mli_dequantize_row(p->type, w, q, 32);
                for (j = 0; j < 32; j++) q[j] /= mli_load_scale(w); /* whole numbers again, up to rounding */
                for (j = 0; j < 32; j++)
                    dot += roundf(q[j]) * (float)p->q.q[i * blocks + b].q[MLI_IN_BLOCK(j)];
                sum += mli_load_scale(w) * p->q.scale[i * blocks + b] * dot;
            }
            y[i * stride + row] = sum;
        }
}

static const ml_type types[] = {ML_Q8_0, ML_Q4_0, ML_Q4_1, ML_Q5_0, ML_Q5_1, ML_Q4_K, ML_Q5_K, ML_Q6_K};
#ifdef ML_NO_K_QUANTS
enum { TYPES = 2 };
#else
enum { TYPES = 8 };
#endif

/* The columns of a problem: as wanted, or for blocks of 256 that many of them. */
static size_t cols_of(ml_type type, size_t cols, size_t blocks) {
    return ml_type_block(type) == 256 ? 256 * blocks : cols;
}

/* ---- activations ---- */

/* Half a step at most, up to the roundings of scale and quotient; the largest is +-127. */
TEST(activations) {
    float x[96];
    mli_block_x block[3];
    float scale[3];
    int t, i;
    for (t = 0; t < 1000; t++) {
        float magnitude = ldexpf(1, (int)(ml_random_u64(&state) % 160) - 80);
        int largest = 0;
        for (i = 0; i < 32; i++) x[i] = magnitude * ml_random_normal(&state);
        mli_quantize_block(x, block[0].q, scale);
        for (i = 0; i < 32; i++) {
            CHECK(fabs((double)x[i] - (double)scale[0] * block[0].q[i]) <= (double)scale[0] * (0.5 + 1e-4));
            if (abs(block[0].q[i]) > largest) largest = abs(block[0].q[i]);
        }
        CHECK(largest == 127);
    }
    for (i = 0; i < 32; i++) { /* halves of a step go to the even one, on every instruction set */
        x[i] = (float)i + 0.5f;
        if (i == 31) x[i] = 127;
    }
    mli_quantize_block(x, block[0].q, scale);
    for (i = 0; i < 31; i++) CHECK(block[0].q[i] == i + i % 2);
}

TEST(strange_activations) {
    float x[5 * 32];
    mli_q q[32];
    float scale;
    int i;
    for (i = 0; i < 160; i++) x[i] = (float)(i % 7) - 3;
    x[5] = NAN;
    x[32 + 6] = -INFINITY;
    for (i = 0; i < 32; i++)
        x[64 + i] = i % 2 ? 1e-40f : 0.0f, x[96 + i] = 0, x[128 + i] = i % 2 ? 3.4028235e38f : -1;
    for (i = 0; i < 5; i++) {
        mli_quantize_block(x + 32 * i, q, &scale);
        if (i < 2)
            CHECK(scale != scale);
        else if (i < 4)
            CHECK(scale == 0 && q[1] == 0);
        else
            CHECK(q[0] == 0 && q[1] == 127 && scale == 3.4028235e38f / 127);
    }
}

/* ---- few rows ---- */

TEST(rows_against_loops) {
    static const size_t cols[] = {32, 64, 96, 128, 160, 512, 1376};
    static const size_t rows[] = {1, 2, 3, 4, 5, 7, 8, 17, 33};
    size_t t, c, r, n_x, i, j;
    for (t = 0; t < TYPES; t++)
        for (c = 0; c < sizeof cols / sizeof *cols; c++)
            for (r = 0; r < sizeof rows / sizeof *rows; r++)
                for (n_x = 1; n_x <= 5; n_x++) {
                    problem p = make_problem(types[t], n_x, rows[r], cols_of(types[t], cols[c], 1 + c % 4));
                    size_t stride = p.n + n_x % 3, n = (n_x - 1) * stride + p.n;
                    float *y = (float *)guard(n * sizeof *y), *z = (float *)guard(n * sizeof *z);
                    double size;
                    multiply_rows(&p, y, 0, p.n, p.q, stride);
                    if (t < 2) plain_rows(&p, z, stride);
                    for (i = 0; i < n_x; i++)
                        for (j = 0; j < p.n; j++) {
                            double expected = exact(&p, i, j, &size);
                            CHECK_NEAR(y[i * stride + j], expected, tolerance(&p, size), 0);
                            if (t < 2) CHECK_NEAR(z[i * stride + j], expected, tolerance(&p, size), 0);
                        }
                    for (i = 0; i + 1 < n_x; i++) /* what is between the rows of y does not change */
                        CHECK(stride == p.n || ((const uint8_t *)y)[(i * stride + p.n) * sizeof *y] == 0xa5);
                    release(y, n * sizeof *y);
                    release(z, n * sizeof *z);
                    end_problem(&p);
                }
}

/* Weights in a file are at any even address, and a caller's may be at any. */
TEST(rows_at_any_address) {
    size_t t, offset;
    for (t = 0; t < TYPES; t++) {
        problem p = make_problem(types[t], 2, 9, cols_of(types[t], 224, 2));
        uint8_t *moved = (uint8_t *)malloc(p.w_bytes + 64);
        float y[2 * 9], z[2 * 9];
        multiply_rows(&p, y, 0, 9, p.q, 9);
        for (offset = 0; offset < 64; offset++) {
            problem other = p;
            memcpy(moved + offset, p.w, p.w_bytes);
            other.w = moved + offset;
            multiply_rows(&other, z, 0, 9, p.q, 9);
            CHECK(!memcmp(y, z, sizeof y));
        }
        free(moved);
        end_problem(&p);
    }
}

/* A row's result does not depend on its neighbors, on where the call begins, or on how many x there are. */
TEST(rows_do_not_depend_on_position) {
    size_t t, first, n, i;
    for (t = 0; t < TYPES; t++) {
        problem p = make_problem(types[t], 4, 23, cols_of(types[t], 352, 3)), one;
        float y[4 * 23], z[23];
        multiply_rows(&p, y, 0, 23, p.q, 23);
        for (first = 0; first < 23; first++)
            for (n = 1; first + n <= 23; n++)
                for (i = 0; i < 4; i++) {
                    one = p;
                    one.memory = guard(mli_integer_bytes(1, p.k));
                    one.q = mli_integer_quantize(NULL, p.x + i * p.k, 1, p.k, one.memory);
                    multiply_rows(&p, z, first, n, one.q, n);
                    CHECK(!memcmp(z, y + i * 23 + first, n * sizeof *z));
                    release(one.memory, mli_integer_bytes(1, p.k));
                }
        end_problem(&p);
    }
}

/* Fills all blocks with one byte, and all of x with one value per position. */
static void fill(problem *p, float scale, int byte, float even, float odd) {
    size_t i, block_bytes = mli_type(p->type)->bytes;
    memset(p->w, byte, p->w_bytes);
    for (i = 0; i < p->w_bytes; i += block_bytes) {
        mli_store_scale(p->w + i + mli_type(p->type)->scales[1], 0);
        mli_store_scale(p->w + i + mli_type(p->type)->scales[0], scale);
    }
    for (i = 0; i < p->m * p->k; i++) p->x[i] = i % 2 ? odd : even;
    p->q = mli_integer_quantize(NULL, p->x, p->m, p->k, p->memory);
}

/* The largest sums there are. Blocks of x are +-127 with scale 1, all numbers are small integers: exact. */
TEST(extremes) {
    static const int fills[] = {0x80, 0x7f, 0x81, 0xff, 0x00, 0x08, 0xf0, 0x0f};
    size_t b, t, i;
    int s;
    ml_threads threads = n_threads(1);
    for (t = 0; t < 2; t++)
        for (b = 0; b < sizeof fills / sizeof *fills; b++)
            for (s = 0; s < 4; s++) {
                problem p = make_problem(types[t], 6, 5, 96);
                float y[30], even = s & 1 ? 127.0f : -127.0f, odd = s & 2 ? 127.0f : -127.0f;
                int low = (fills[b] & 15) - 8, high = (fills[b] >> 4) - 8, q = (int8_t)fills[b];
                float expected = 48 * (even + odd) * (float)q;
                if (types[t] == ML_Q4_0) expected = 24 * (even + odd) * (float)(low + high);
                fill(&p, 1, fills[b], even, odd);
                multiply_rows(&p, y, 0, p.n, p.q, p.n);
                for (i = 0; i < p.m * p.n; i++) CHECK(y[i] == expected);
                multiply_all(&p, &threads, y);
                for (i = 0; i < p.m * p.n; i++) CHECK(y[i] == expected);
                end_problem(&p);
            }
}

/* The same for blocks of parts, whose scales are 1 and offsets 0: all bytes of q are 0 or 255. Two blocks. */
TEST(extremes_of_parts) {
    size_t t, i, j;
    int s;
    ml_threads threads = n_threads(1);
    for (t = 5; t < TYPES; t++)
        for (s = 0; s < 8; s++) {
            problem p = make_problem(types[t], 6, 5, 512);
            float y[30], even = s & 1 ? 127.0f : -127.0f, odd = s & 2 ? 127.0f : -127.0f;
            int largest = types[t] == ML_Q4_K ? 15 : 31, q = s & 4 ? largest : types[t] == ML_Q6_K ? -32 : 0;
            fill(&p, 1, s & 4 ? 255 : 0, even, odd);
            for (i = 0; i < p.w_bytes; i += mli_type(types[t])->bytes) {
                if (types[t] == ML_Q6_K) memset(p.w + i + 192, 1, 16);
                for (j = 0; types[t] != ML_Q6_K && j < 12; j++) p.w[i + 4 + j] = j < 4 ? 1 : j < 8 ? 0 : 1;
            }
            multiply_rows(&p, y, 0, p.n, p.q, p.n);
            for (i = 0; i < p.m * p.n; i++) CHECK(y[i] == 256 * (even + odd) * (float)q);
            multiply_all(&p, &threads, y);
            for (i = 0; i < p.m * p.n; i++) CHECK(y[i] == 256 * (even + odd) * (float)q);
            end_problem(&p);
        }
}

/* What is not finite shows where it must, and only there; zeros give zeros. */
TEST(not_finite) {
    size_t t, i, j;
    ml_threads threads = n_threads(1);
    for (t = 0; t < TYPES; t++) {
        problem p = make_problem(types[t], 7, 9, cols_of(types[t], 160, 2));
        size_t row_bytes = ml_type_row_bytes(p.type, p.k);
        float y[2][63];
        int kind;
        const mli_type_info *info = mli_type(p.type);
        uint8_t *third = p.w + 3 * row_bytes + info->bytes + info->scales[0];
        uint8_t *fifth = p.w + 5 * row_bytes + info->scales[1];
        third[0] = 0, third[1] = 0x7c; /* an infinite scale */
        fifth[0] = 1, fifth[1] = 0x7e; /* NaN */
        p.x[2 * p.k + 70] = NAN;
        p.x[4 * p.k + 1] = INFINITY;
        memset(p.x + 6 * p.k, 0, p.k * sizeof *p.x);
        p.q = mli_integer_quantize(NULL, p.x, p.m, p.k, p.memory);
        multiply_rows(&p, y[0], 0, p.n, p.q, p.n);
        multiply_all(&p, &threads, y[1]);
        for (kind = 0; kind < 2; kind++)
            for (i = 0; i < p.m; i++)
                for (j = 0; j < p.n; j++) {
                    float value = y[kind][i * p.n + j];
                    if (i == 2 || i == 4)
                        CHECK(value != value);
                    else if (j == 3 || j == 5)
                        CHECK(!(fabsf(value) <= 3.4e38f));
                    else
                        CHECK(fabsf(value) <= 1e6f && (i != 6 || value == 0));
                }
        end_problem(&p);
    }
}

/* ---- many rows ---- */

TEST(many_against_loops) {
    static const size_t ns[] = {1, 7, 16, 31, 32, 33, 50, 64}, ks[] = {32, 64, 352};
    ml_threads threads = n_threads(1);
    size_t t, m, n, k, i, j;
    for (t = 0; t < TYPES; t++)
        for (m = 1; m <= 40; m += t < 2 ? 1 : 5) /* the rows that a tile leaves over: of 4, 6 or 8 */
            for (n = m % 2; n < sizeof ns / sizeof *ns; n += 2)
                for (k = 0; k < 3; k++) {
                    problem p = make_problem(types[t], m, ns[n], cols_of(types[t], ks[k], 1 + k));
                    float *y = (float *)guard(m * p.n * sizeof *y);
                    double size;
                    multiply_all(&p, &threads, y);
                    for (i = 0; i < m; i++)
                        for (j = 0; j < p.n; j++) {
                            double expected = exact(&p, i, j, &size);
                            CHECK_NEAR(y[i * p.n + j], expected, tolerance(&p, size), 0);
                        }
                    release(y, m * p.n * sizeof *y);
                    end_problem(&p);
                }
}

/* The same bits for any number of threads, and for an output at any position in x or w. */
TEST(many_does_not_depend_on_threads_or_position) {
    enum { M = 90, N = 300 };
    size_t t, i, j;
    int count;
    for (t = 0; t < TYPES; t++) {
        const size_t K = cols_of(types[t], 96, 2);
        problem p = make_problem(types[t], M, N, K), part = p;
        float *y = (float *)malloc(M * N * sizeof *y), *z = (float *)malloc(M * N * sizeof *z);
        ml_threads threads = n_threads(1);
        multiply_all(&p, &threads, y);
        for (count = 2; count <= 5; count++) {
            threads = n_threads(count);
            CHECK(mli_integer_task_count(&threads, M, N) == count); /* or this tests nothing */
            memset(z, 0, M * N * sizeof *z);
            multiply_all(&p, &threads, z);
            CHECK(!memcmp(y, z, M * N * sizeof *z));
        }
        part.m = 1;
        part.n = 41;
        for (i = 0; i < M; i += 7)
            for (j = 0; j + 41 <= N; j += 23) {
                part.x = p.x + i * K;
                part.w = p.w + j * ml_type_row_bytes(p.type, K);
                multiply_all(&part, &threads, z);
                CHECK(!memcmp(z, y + i * N + j, 41 * sizeof *z));
            }
        free(y);
        free(z);
        end_problem(&p);
    }
}

/* Work for the largest of several matrices is enough for the others. */
TEST(many_work_grows) {
    ml_threads threads = n_threads(3);
    size_t m, n, k;
    for (m = 1; m < 70; m += 9)
        for (n = 1; n < 400; n += 13)
            for (k = 32; k < 400; k += 96)
                CHECK(mli_integer_work(&threads, m, n, k) <= mli_integer_work(&threads, 70, 400, 416));
    CHECK(mli_integer_bytes(SIZE_MAX / 4, SIZE_MAX / 4) == SIZE_MAX);
    if (sizeof(mli_panel) > 1) /* there are panels */
        CHECK(mli_integer_work(&threads, SIZE_MAX / 4, 32, SIZE_MAX / 4) == SIZE_MAX);
}

/* ---- against floats ---- */

/* The values of the weights times the unrounded activations: off by the rounding of x to
   bytes, half a step (1e-4 for its own rounding) times |w|, and by the sums' rounding as above. */
TEST(against_floats) {
    size_t t, i, j, l;
    for (t = 0; t < TYPES; t++) {
        problem p = make_problem(types[t], 6, 40, 512);
        float *w = (float *)malloc(p.n * p.k * sizeof *w), y[2][240];
        const float *x_scale = p.q.scale;
        ml_threads threads = n_threads(1);
        int kind;
        mli_dequantize_row(p.type, p.w, w, p.n * p.k);
        multiply_rows(&p, y[0], 0, p.n, p.q, p.n);
        multiply_all(&p, &threads, y[1]);
        for (i = 0; i < p.m; i++)
            for (j = 0; j < p.n; j++) {
                double sum = 0, bound = 0, size;
                for (l = 0; l < p.k; l++) {
                    sum += (double)w[j * p.k + l] * (double)p.x[i * p.k + l];
                    bound +=
                        (0.5 + 1e-4) * (double)x_scale[(i * p.k + l) / 32] * fabs((double)w[j * p.k + l]);
                }
                exact(&p, i, j, &size);
                for (kind = 0; kind < 2; kind++)
                    CHECK_NEAR(y[kind][i * p.n + j], sum, bound + tolerance(&p, size), 0);
            }
        free(w);
        end_problem(&p);
    }
}

/* ---- GGUF's other types ---- */

#ifdef ML_NO_K_QUANTS
#define READABLE ML_ERROR_UNSUPPORTED
#else
#define READABLE ML_OK
#endif

/* A block of each: byte i is 37 i + 11, but the scale is 1/16 and the offset 1/32, so that all numbers are exact.
   Expected are number 1, the last, and the sum of i + 1 times number i, from numpy code written after the layouts. */
TEST(blocks_that_are_only_read) {
    static const struct {
        ml_type type;
        int n, block_bytes, scale, offset;
        double second, last, sum;
    } rows[] = {{ML_Q4_1, 32, 20, 0, 2, 0.28125, 0.78125, 265.4375},
                {ML_Q5_0, 32, 22, 0, -1, -0.125, 0.0625, 7.0},
                {ML_Q5_1, 32, 24, 0, 2, 1.53125, 0.34375, 510.3125},
                {ML_Q2_K, 256, 84, 80, 82, 0.0, 0.28125, 15195.625},
                {ML_Q3_K, 256, 110, 108, -1, -6.75, 2.625, 11071.5625},
                {ML_Q4_K, 256, 144, 0, 2, -1.59375, 3.03125, 473302.5},
                {ML_Q5_K, 256, 176, 0, 2, -1.59375, 6.78125, 1001715.5},
                {ML_Q6_K, 256, 210, 208, -1, 106.0, -3.75, 49026.25},
                {ML_IQ4_NL, 32, 18, 0, -1, 1.5625, 0.0625, -432.4375},
                {ML_IQ4_XS, 256, 136, 0, -1, -0.0625, -1.0, -130695.875}};
    size_t r, i;
    for (r = 0; r < sizeof rows / sizeof *rows; r++) {
        size_t n = (size_t)rows[r].n, block_bytes = (size_t)rows[r].block_bytes, copy;
        uint8_t *blocks = (uint8_t *)guard(2 * block_bytes);
        float *x = (float *)guard(2 * n * sizeof *x);
        double sum = 0;
        CHECK(ml_type_block(rows[r].type) == n && ml_type_row_bytes(rows[r].type, n) == block_bytes);
        for (copy = 0; copy < 2; copy++) {
            uint8_t *block = blocks + copy * block_bytes;
            for (i = 0; i < block_bytes; i++) block[i] = (uint8_t)(37 * i + 11);
            mli_store_scale(block + rows[r].scale, 0.0625f);
            if (rows[r].offset >= 0) mli_store_scale(block + rows[r].offset, 0.03125f);
        }
        CHECK(ml_type_convert(ML_F32, x, rows[r].type, blocks, 2 * n) == READABLE);
        if (READABLE == ML_OK) {
            for (i = 0; i < n; i++) sum += (double)(i + 1) * (double)x[i];
            CHECK(x[1] == (float)rows[r].second && x[n - 1] == (float)rows[r].last && sum == rows[r].sum);
            CHECK(!memcmp(x, x + n, n * sizeof *x));
            CHECK(ml_type_convert(rows[r].type, blocks, ML_F32, x, n) ==
                  (mli_type(rows[r].type)->quantize ? ML_OK : ML_ERROR_ARGUMENT)); /* most are only read */
        }
        release(blocks, 2 * block_bytes);
        release(x, 2 * n * sizeof *x);
    }
}

static const ml_type others[] = {ML_Q4_1, ML_Q5_0, ML_Q5_1, ML_Q2_K,   ML_Q3_K,
                                 ML_Q4_K, ML_Q5_K, ML_Q6_K, ML_IQ4_NL, ML_IQ4_XS};
enum { OTHERS = sizeof others / sizeof *others };

/* Row j of w in doubles times row i of x, the bound of the sum's rounding in any order, and of the rounding of x to
   bytes if it is: half a step times |w|. */
static double dot_in_doubles(const problem *p, size_t i, size_t j, double *bound) {
    float *w = (float *)malloc(p->k * sizeof *w);
    double sum = 0, size = 0, step = 0;
    size_t l;
    mli_dequantize_row(p->type, p->w + j * ml_type_row_bytes(p->type, p->k), w, p->k);
    for (l = 0; l < p->k; l++) {
        sum += (double)w[l] * (double)p->x[i * p->k + l];
        size += fabs((double)w[l] * (double)p->x[i * p->k + l]);
        step += (0.5 + 1e-4) * (double)p->q.scale[(i * p->k + l) / 32] * fabs((double)w[l]);
    }
    free(w);
    *bound = (double)p->k * UNIT * size;
    if (mli_is_integer(p->type)) exact(p, i, j, &size), *bound += step * 1.001 + tolerance(p, size);
    return sum;
}

/* y = x W^T for every number of rows that has a path of its own, and the same bits for any number of threads. */
TEST(products_with_other_types) {
    static const size_t ms[] = {1, 2, 3, 4, 5, 12, 13, 20};
    size_t t, r, i, j;
    double bound;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (t = 0; t < OTHERS; t++)
        for (r = 0; r < sizeof ms / sizeof *ms; r++) {
            size_t k = ml_type_block(others[t]) == 256 ? 768 : 352, n = 300;
            problem p = make_problem(others[t], ms[r], n, k);
            ml_tensor w = weights(&p, 0, n);
            float *y[2];
            int count;
            for (count = 1; count <= 2; count++) {
                ml_threads threads = n_threads(count == 1 ? 1 : 3);
                size_t size = mli_linear_work(&threads, p.m, k, n);
                void *work = guard(size);
                mli_linear_job job = {&w, NULL};
                job.y = y[count - 1] = (float *)guard(p.m * n * sizeof(float));
                mli_linear(&threads, p.x, p.m, k, &job, 1, work);
                release(work, size);
            }
            CHECK(!memcmp(y[0], y[1], p.m * n * sizeof(float)));
            for (i = 0; i < p.m; i++)
                for (j = 0; j < n; j++) {
                    double expected = dot_in_doubles(&p, i, j, &bound);
                    CHECK_NEAR(y[0][i * n + j], expected, bound, 0);
                }
            for (count = 0; count < 2; count++) release(y[count], p.m * n * sizeof(float));
            end_problem(&p);
        }
}

/* dx = dy W, the gradient of the input, reads W along its rows; shares of the columns end within blocks of 256. */
TEST(gradients_through_other_types) {
    enum { M = 40, OUT = 31, IN = 768 };
    size_t t, i, j, l;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (t = 0; t < OTHERS; t++) {
        problem p = make_problem(others[t], 1, OUT, IN);
        float *w = (float *)malloc(OUT * IN * sizeof *w), *dx[2], dy[M * OUT];
        mli_operand by_rows = {p.type, p.w, IN, 1};
        int count;
        mli_dequantize_row(p.type, p.w, w, OUT * IN);
        for (i = 0; i < M * OUT; i++) dy[i] = ml_random_normal(&state);
        for (count = 0; count < 2; count++) {
            ml_threads threads = n_threads(1 + 4 * count);
            size_t size = mli_gemm_work(&threads, M, IN, OUT);
            void *work = guard(size);
            dx[count] = (float *)guard(M * IN * sizeof(float));
            mli_gemm(&threads, M, IN, OUT, mli_matrix(dy, OUT, 1), by_rows, dx[count], IN, 0, work);
            release(work, size);
        }
        CHECK(!memcmp(dx[0], dx[1], M * IN * sizeof(float)));
        for (i = 0; i < M; i++)
            for (j = 0; j < IN; j++) {
                double sum = 0, size = 0;
                for (l = 0; l < OUT; l++) {
                    sum += (double)dy[i * OUT + l] * (double)w[l * IN + j];
                    size += fabs((double)dy[i * OUT + l] * (double)w[l * IN + j]);
                }
                CHECK_NEAR(dx[0][i * IN + j], sum, OUT * UNIT * size, 0);
            }
        for (count = 0; count < 2; count++) release(dx[count], M * IN * sizeof(float));
        free(w);
        end_problem(&p);
    }
}

/* A model file (dim 256) of type Q4_0 whose output is turned into Q6_K, as llama.cpp writes them. */
static bytes q4_0_file_with_q6_k_output(size_t *output) {
    static const ml_config config = {.dim = 256,
                                     .hidden_dim = 256,
                                     .n_layers = 1,
                                     .n_heads = 2,
                                     .n_kv_heads = 2,
                                     .vocab_size = 48,
                                     .max_seq_len = 16};
    static const char name[] = "\15\0\0\0\0\0\0\0output.weight";
    ml_save_desc desc = save_as(ML_GGUF, ML_Q4_0);
    ml_model *model = NULL;
    ml_archive *archive = NULL;
    size_t at = 0, i;
    bytes file;
    CHECK(create_model(&config, ML_Q4_0, &state, NULL, &model, NULL) == ML_OK);
    CHECK(ml_model_save(model, in_folder("q4_0.gguf"), &desc, NULL) == ML_OK);
    ml_model_free(model);
    file = read_file(in_folder("q4_0.gguf"));
    CHECK(ml_archive_load_memory(file.data, file.size, NULL, &archive, NULL) == ML_OK);
    *output = (size_t)((const uint8_t *)ml_archive_find_array(archive, "output.weight")->data - file.data);
    ml_archive_free(archive);
    while (memcmp(file.data + at, name, sizeof name - 1) != 0) at++;
    CHECK(file.data[at + sizeof name - 1 + 20] == 8); /* Q8_0 */
    file.data[at + sizeof name - 1 + 20] = 14;
    for (i = 0; i < 48 * 210; i++) file.data[*output + i] = (uint8_t)ml_random_u64(&state);
    for (i = 0; i < 48; i++) mli_store_scale(file.data + *output + i * 210 + 208, 1e-4f);
    return file;
}

TEST(q4_0_with_q6_k_output) {
    static const int32_t tokens[3] = {1, 20, 47};
    static const ml_batch batch = {.tokens = tokens, .n_tokens = 3};
    size_t output, i, j, k;
    bytes file = q4_0_file_with_q6_k_output(&output);
    float hidden[3 * 256], logits[3 * 48], row[256];
    ml_outputs outputs = {NULL, 0, hidden, logits};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_save_desc desc = save_as(ML_GGUF, ML_F32);
    ml_error error;
    if (READABLE != ML_OK) {
        CHECK(ml_model_load_memory(file.data, file.size, NULL, &model, &error) == ML_ERROR_UNSUPPORTED);
        CHECK(strstr(error.text, "output.weight is of type Q6_K, which ML_NO_K_QUANTS left out"));
        free_bytes(&file);
        return;
    }
    REQUIRE(ml_model_load_memory(file.data, file.size, NULL, &model, &error) == ML_OK);
    CHECK(tensor_named(model, "output.weight")->type == ML_Q6_K);
    CHECK(tensor_named(model, "output.weight")->data == (void *)(file.data + output));
    CHECK(tensor_named(model, "blk.0.attn_q.weight")->type == ML_Q4_0);
    CHECK((const uint8_t *)tensor_named(model, "blk.0.attn_q.weight")->data > file.data &&
          (const uint8_t *)tensor_named(model, "blk.0.attn_q.weight")->data < file.data + file.size);
    REQUIRE(ml_session_new(model, NULL, &session, &error) == ML_OK);
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_OK);
    for (i = 0; i < 48; i++) {
        mli_dequantize_row(ML_Q6_K, file.data + output + i * 210, row, 256);
        for (j = 0; j < 3; j++) {
            double sum = 0, size = 0, step = 0;
            for (k = 0; k < 256; k++) {
                double largest = 0;
                size_t l;
                for (l = k / 32 * 32; l < k / 32 * 32 + 32; l++)
                    if (fabs((double)hidden[j * 256 + l]) > largest)
                        largest = fabs((double)hidden[j * 256 + l]);
                sum += (double)row[k] * (double)hidden[j * 256 + k];
                size += fabs((double)row[k] * (double)hidden[j * 256 + k]);
                step += fabs((double)row[k]) * largest / 127 * 0.5001; /* x is rounded to bytes */
            }
            CHECK_NEAR(logits[j * 48 + i], sum, step + 256 * UNIT * size, 0); /* any order of 256 sums */
        }
    }
    desc.type = ML_Q2_K;
    CHECK(ml_model_save(model, in_folder("not.gguf"), &desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "weights cannot be saved as Q2_K: that type is only read"));
    ml_session_free(session);
    ml_model_free(model);
    file.data[output + 7 * 210 + 208] = 0, file.data[output + 7 * 210 + 209] = 0x7c; /* an infinite scale */
    CHECK(ml_model_load_memory(file.data, file.size, NULL, &model, &error) == ML_ERROR_NUMBER);
    CHECK(strstr(error.text, "tensor output.weight: number (7, 0) is not finite"));
    free_bytes(&file);
}

/* Saved as GGUF, every tensor keeps its bytes; at an odd address, where the weights are copied, too. */
TEST(blocks_are_kept) {
    size_t output, i;
    bytes file = q4_0_file_with_q6_k_output(&output), again;
    uint8_t *moved = (uint8_t *)malloc(file.size + 1);
    ml_save_desc desc = save_as(ML_GGUF, ML_TYPE_NONE);
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (i = 0; i < 2; i++) {
        ml_model *model = NULL, *second = NULL;
        int t;
        memcpy(moved + i, file.data, file.size);
        REQUIRE(ml_model_load_memory(moved + i, file.size, NULL, &model, NULL) == ML_OK);
        CHECK(ml_model_save(model, in_folder("again.gguf"), &desc, NULL) == ML_OK);
        again = read_file(in_folder("again.gguf"));
        REQUIRE(ml_model_load_memory(again.data, again.size, NULL, &second, NULL) == ML_OK);
        for (t = 0; t < model->n_tensors; t++) {
            const ml_tensor *a = &model->tensors[t], *b = &second->tensors[t];
            CHECK(a->type == b->type && a->rows == b->rows && a->cols == b->cols && !a->data == !b->data);
            if (a->data) CHECK(!memcmp(a->data, b->data, a->rows * ml_type_row_bytes(a->type, a->cols)));
        }
        CHECK(!memcmp(tensor_named(second, "output.weight")->data, file.data + output, 48 * 210));
        ml_model_free(model);
        ml_model_free(second);
        free_bytes(&again);
    }
    free(moved);
    free_bytes(&file);
}

/* The largest difference from the logits that are expected of a file; type as in ml_model_load_desc. */
static double difference_of_file(const char *name, ml_type type, const ml_batch *batch, const float *expected,
                                 float *logits) {
    ml_outputs outputs = {NULL, 0, NULL, logits};
    ml_model_load_desc desc;
    ml_model *model = NULL;
    ml_session *session = NULL;
    char path[64];
    memset(&desc, 0, sizeof desc);
    desc.type = type;
    snprintf(path, sizeof path, "models/modern/quant-%s.gguf", name);
    if (ml_model_load(shared_path(path), &desc, &model, NULL) || ml_session_new(model, NULL, &session, NULL))
        return INFINITY;
    CHECK(ml_session_eval_batch(session, batch, &outputs, NULL) == ML_OK);
    ml_session_free(session);
    ml_model_free(model);
    return max_difference(logits, expected, 48 * 512);
}

/* Files of llama.cpp's own tool, which mixes types, and logits by PyTorch from the dequantized weights. In F32 both
   compute the same in another order: 1e-4 is some ten times what that makes of logits of this size. In the types of
   the file, activations are rounded to 8 bits where there are integer kernels (in all these files at least for the
   output). A network in doubles that rounds them in blocks of 32, as ours does, is off by up to 0.188, with Q4_1 by 0.194
   (root mean square 0.034, with logits of standard deviation 1.3); in blocks of 256, as llama.cpp does, by 0.285
   (0.052). */
TEST(files_of_llama_quantize) {
    static const char *const names[] = {"Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K",
                                        "Q4_1", "Q5_0",   "Q5_1",   "IQ4_NL", "IQ4_XS"};
    static const int32_t row_start[] = {0, 24, 48};
    ml_batch batch = {.n_tokens = 48, .row_start = row_start, .n_rows = 2};
    ml_archive *reference = NULL;
    size_t n_tokens, n, i;
    int32_t *tokens;
    float *logits;
    NEED_SHARED();
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    REQUIRE(ml_archive_load(shared_path("reference/modern.pt"), NULL, &reference, NULL) == ML_OK);
    batch.tokens = tokens = shared_tokens(reference, "tokens", &n_tokens);
    REQUIRE(tokens && n_tokens == 48);
    logits = (float *)malloc(48 * 512 * sizeof *logits);
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        float *expected = shared_floats(reference, names[i], &n);
        REQUIRE(expected && n == 48 * 512);
        CHECK(difference_of_file(names[i], ML_F32, &batch, expected, logits) <= 1e-4);
        CHECK(difference_of_file(names[i], ML_TYPE_NONE, &batch, expected, logits) <= 0.2);
        free(expected);
    }
    free(tokens);
    free(logits);
    ml_archive_free(reference);
}

/* ---- quantizing to Q4_K, Q5_K and Q6_K, and to what stands in for them ---- */

static const ml_type written[] = {ML_Q4_K, ML_Q5_K, ML_Q6_K};
static const ml_type instead[] = {ML_Q5_0, ML_Q5_1, ML_Q8_0}; /* where rows are not a multiple of 256 */

/* Root mean square of the errors of n numbers; what they become in back (n). */
static double error_of(ml_type type, const float *x, float *back, size_t n) {
    void *blocks = guard(ml_type_row_bytes(type, n));
    double sum = 0;
    size_t i;
    CHECK(ml_type_convert(type, blocks, ML_F32, x, n) == ML_OK);
    CHECK(mli_find_not_finite(type, blocks, n) == n);
    CHECK(ml_type_convert(ML_F32, back, type, blocks, n) == ML_OK);
    for (i = 0; i < n; i++) sum += pow((double)x[i] - (double)back[i], 2);
    release(blocks, ml_type_row_bytes(type, n));
    return sqrt(sum / (double)n);
}

/* Expected is the error that llama.cpp's quantize_row_..._ref make of the same numbers: normal ones times 0.02, and
   their cubes, which have long tails. Ours must not be larger, and is 1 to 5 percent smaller. */
TEST(errors_of_quantizing) {
    enum { N = 51200 };
    static const double expected[2][3] = {{0.00141757, 0.000722967, 0.000354584},
                                          {0.00674538, 0.00373914, 0.00183876}};
    float *x = (float *)malloc(N * sizeof *x), *back = (float *)malloc(N * sizeof *back);
    int kind, i;
    size_t t;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (kind = 0; kind < 2; kind++) {
        ml_random random;
        ml_random_seed(&random, kind ? 43 : 42);
        for (i = 0; i < N; i++) {
            x[i] = ml_random_normal(&random);
            x[i] *= kind ? 0.02f * x[i] * x[i] : 0.02f;
        }
        for (t = 0; t < 3; t++) CHECK(error_of(written[t], x, back, N) <= expected[kind][t]);
    }
    free(x);
    free(back);
}

/* Half a step of the format, up to the rounding of its scale (and offset) to F16: of Q5_0 the largest number is -16
   steps, in Q5_1 31 steps go from the least to the largest. A number that 15.5 steps of Q5_0 do not reach is off by
   one at most. */
TEST(quantizing_to_five_bits) {
    float x[32], back[32], least, most, step;
    int kind, trial, i;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (kind = 0; kind < 2; kind++)
        for (trial = 0; trial < 200; trial++) {
            for (least = most = 0, i = 0; i < 32; i++) {
                x[i] = ml_random_normal(&state) + (float)(trial % 3);
                if (i == 0 || x[i] < least) least = x[i];
                if (i == 0 || x[i] > most) most = x[i];
            }
            step = kind ? (most - least) / 31 : fmaxf(most, -least) / 16;
            error_of(instead[kind], x, back, 32);
            for (i = 0; i < 32; i++) {
                float bound = 0.5f * step + 0.001f * fmaxf(most, -least);
                int is_cut = !kind && (most > -least ? x[i] < -14.5f * step : x[i] > 14.5f * step);
                CHECK(fabsf(x[i] - back[i]) <= (is_cut ? step + bound : bound));
            }
        }
    for (kind = 0; kind < 2; kind++) {
        for (i = 0; i < 32; i++) x[i] = (float)i - 16; /* what both hold exactly */
        CHECK(error_of(instead[kind], x, back, 32) == 0);
        for (i = 0; i < 32; i++) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : INFINITY;
        error_of(instead[kind], x, back, 32); /* checks that the scales are finite */
        CHECK(fabsf(back[0]) <= 65504 && back[1] < -6e4f && back[2] > 6e4f && (kind || back[0] == 0));
        for (i = 0; i < 32; i++) x[i] = 0;
        CHECK(error_of(instead[kind], x, back, 32) == 0 && back[0] == 0);
    }
}

/* Numbers that blocks hold exactly, and those that are no numbers, too small or too large for a block. */
TEST(quantizing_strange_numbers) {
    float x[256], back[256];
    size_t t;
    int i;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (t = 0; t < 3; t++) {
        memset(x, 0, sizeof x);
        CHECK(error_of(written[t], x, back, 256) == 0 && back[0] == 0);
        for (i = 0; i < 256; i++) x[i] = 63 * (float)(i % 16); /* 0..15 times a scale of 63 */
        if (written[t] == ML_Q6_K)
            for (i = 0; i < 256; i++) x[i] = 128 * (float)(i % 16 * 4 - 32);
        CHECK(error_of(written[t], x, back, 256) == 0);
        for (i = 0; i < 256; i++) x[i] = -5; /* one offset */
        CHECK(error_of(written[t], x, back, 256) <= 5 * 0.002);
        for (i = 0; i < 256; i++) x[i] = i % 2 ? 1e-30f : -1e-38f; /* a scale that F16 does not have */
        CHECK(error_of(written[t], x, back, 256) <= 1e-30 && back[1] == 0);
        for (i = 0; i < 256; i++) x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? -INFINITY : INFINITY;
        error_of(written[t], x, back, 256); /* checks that the scales are finite */
        CHECK(fabsf(back[0]) <= 0.02f * 4126752 && back[1] < -4e6f && back[2] > 4e6f);
        for (i = 0; i < 256; i++) x[i] = i % 2 ? 3e38f : -3e38f;
        error_of(written[t], x, back, 256);
        CHECK(back[0] < -4e6f && back[1] > 4e6f);
    }
}

/* The types of a model of 16 layers, by llama.cpp's rule for Q4_K_M and Q5_K_M: an eighth of the layers at either end
   and every third in between have value and down projections of 6 bits. */
TEST(mixed_types) {
    static const int chosen[] = {1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 1};
    ml_config config = {.dim = 256,
                        .hidden_dim = 256,
                        .n_layers = 16,
                        .n_heads = 2,
                        .n_kv_heads = 1,
                        .vocab_size = 32,
                        .max_seq_len = 16};
    size_t t;
    int l;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (t = 0; t < 3; t++) {
        ml_type type = written[t], more = ML_Q6_K;
        ml_model *model = NULL;
        config.tied_output = t == 1;
        REQUIRE(create_model(&config, type, &state, NULL, &model, NULL) == ML_OK);
        CHECK(tensor_named(model, "token_embd.weight")->type == (config.tied_output ? more : type));
        CHECK(tensor_named(model, "output.weight")->type == more);
        for (l = 0; l < 16; l++) {
            CHECK(layer_tensor(model, l, "attn_v.weight")->type == (chosen[l] ? more : type));
            CHECK(layer_tensor(model, l, "ffn_down.weight")->type == (chosen[l] ? more : type));
            CHECK(layer_tensor(model, l, "attn_q.weight")->type == type);
            CHECK(layer_tensor(model, l, "attn_output.weight")->type == type);
            CHECK(layer_tensor(model, l, "ffn_gate.weight")->type == type);
            CHECK(layer_tensor(model, l, "ffn_norm.weight")->type == ML_F32);
        }
        ml_model_free(model);
    }
    config.hidden_dim = 352; /* a multiple of 32 only */
    for (t = 0; t < 3; t++) {
        ml_model *model = NULL;
        REQUIRE(create_model(&config, written[t], &state, NULL, &model, NULL) == ML_OK);
        for (l = 0; l < 16; l++) {
            CHECK(layer_tensor(model, l, "ffn_down.weight")->type == (chosen[l] ? ML_Q8_0 : instead[t]));
            CHECK(layer_tensor(model, l, "ffn_up.weight")->type == written[t]);
        }
        ml_model_free(model);
    }
}

/* An F32 model saved in a mix: types, keys and numbers of the file. */
TEST(saving_in_a_mix) {
    static const ml_config config = {.dim = 256,
                                     .hidden_dim = 512,
                                     .n_layers = 2,
                                     .n_heads = 2,
                                     .n_kv_heads = 2,
                                     .vocab_size = 48,
                                     .max_seq_len = 16};
    static const int file_types[] = {15, 17, 18}; /* llama.cpp's Q4_K_M, Q5_K_M and Q6_K */
    size_t t, n;
    int i;
    if (READABLE != ML_OK) {
        ml_save_desc desc = save_as(ML_GGUF, ML_Q4_K);
        ml_model *model = NULL;
        ml_error error;
        REQUIRE(create_model(&config, ML_F32, &state, NULL, &model, NULL) == ML_OK);
        CHECK(ml_model_save(model, in_folder("mix.gguf"), &desc, &error) == ML_ERROR_ARGUMENT);
        CHECK(strstr(error.text, "weights cannot be saved as Q4_K, which ML_NO_K_QUANTS left out"));
        ml_model_free(model);
        return;
    }
    for (t = 0; t < 3; t++) {
        ml_save_desc desc = save_as(ML_GGUF, written[t]);
        ml_model *model = NULL, *loaded = NULL;
        ml_archive *archive = NULL;
        ml_error error;
        REQUIRE(create_model(&config, ML_F32, &state, NULL, &model, NULL) == ML_OK);
        CHECK(ml_model_save(model, in_folder("mix.gguf"), &desc, NULL) == ML_OK);
        REQUIRE(ml_archive_load(in_folder("mix.gguf"), NULL, &archive, NULL) == ML_OK);
        CHECK(ml_archive_find_value(archive, "general.file_type")->i == file_types[t]);
        CHECK(ml_archive_find_value(archive, "general.quantization_version")->i == 2);
        ml_archive_free(archive);
        ml_tensor *query =
            &model->private_part->tensors[(int)(layer_tensor(model, 0, "attn_q.weight") - model->tensors)];
        float before = ((float *)query->data)[3 * 256 + 5];
        ((float *)query->data)[3 * 256 + 5] = -63 * 65520.0f; /* the largest offset that rounds to no F16 */
        CHECK(ml_model_save(model, in_folder("no.gguf"), &desc, &error) == ML_ERROR_NUMBER);
        CHECK(strstr(error.text, "blk.0.attn_q.weight: number (3, 5) is too large for Q"));
        ((float *)query->data)[3 * 256 + 5] = before;
        REQUIRE(ml_model_load(in_folder("mix.gguf"), NULL, &loaded, NULL) == ML_OK);
        CHECK(tensor_named(loaded, "output.weight")->type == ML_Q6_K);
        CHECK(layer_tensor(loaded, 0, "attn_q.weight")->type == written[t]);
        for (i = 0; i < model->n_tensors; i++) {
            const ml_tensor *a = &model->tensors[i], *b = &loaded->tensors[i];
            float *back;
            if (!a->data) continue;
            n = a->rows * a->cols;
            back = (float *)malloc(n * sizeof *back);
            CHECK(ml_type_convert(ML_F32, back, b->type, b->data, n) == ML_OK);
            /* half a step of 30 between numbers of 4.5 standard deviations at most, and what rounded scales add */
            CHECK(max_difference(back, (const float *)a->data, n) <= 0.02 * 0.4);
            free(back);
        }
        ml_model_free(model);
        ml_model_free(loaded);
    }
}

/* The same types of the same tensors as llama.cpp's tool gives them. */
TEST(mixes_of_llama_quantize) {
    static const char *const names[] = {"Q4_K_M", "Q5_K_M", "Q6_K"};
    size_t t;
    int i;
    NEED_SHARED();
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (t = 0; t < 3; t++) {
        ml_model_load_desc desc;
        ml_model *theirs = NULL, *ours = NULL;
        char path[64];
        memset(&desc, 0, sizeof desc);
        desc.type = written[t];
        snprintf(path, sizeof path, "models/modern/quant-%s.gguf", names[t]);
        REQUIRE(ml_model_load(shared_path(path), NULL, &theirs, NULL) == ML_OK);
        REQUIRE(ml_model_load(shared_path("models/modern/quant-Q5_1.gguf"), &desc, &ours, NULL) == ML_OK);
        for (i = 0; i < ours->n_tensors; i++) CHECK(ours->tensors[i].type == theirs->tensors[i].type);
        ml_model_free(theirs);
        ml_model_free(ours);
    }
}

/* Puts an infinite scale into a block of the Q4_K that is at `at` in the file. */
static void damage(const char *path, long at, size_t block) {
    const uint8_t infinite[2] = {0, 0x7c};
    FILE *file = fopen(path, "r+b");
    if (!file) return;
    at += (long)(block * 144);
    CHECK(!fseek(file, at, SEEK_SET) && fwrite(infinite, 1, 2, file) == 2);
    fclose(file);
}

/* Where in the file the weights of blk.0.ffn_up.weight are. */
static long place_of_ffn_up(const char *path) {
    ml_archive *archive = NULL;
    long at = 0;
    if (ml_archive_load(path, NULL, &archive, NULL) == ML_OK)
        at = (long)((const char *)ml_archive_find_array(archive, "blk.0.ffn_up.weight")->data -
                    (const char *)archive->private_part->data);
    ml_archive_free(archive);
    return at;
}

/* Of a large model one page in each megabyte of a matrix (here; else 16) is looked at when it is loaded; damage
   elsewhere shows when a token is drawn. A small one is looked at whole, and so is what is converted. */
TEST(checked_in_part) {
    static const struct {
        int hidden;
        size_t block;
        ml_result result;
    } cases[] = {{1024, 7000, ML_ERROR_NUMBER}, /* of 8192: 1.2 MB */
                 {2048, 3, ML_ERROR_NUMBER},
                 {2048, 7283, ML_ERROR_NUMBER}, /* in the second megabyte's page */
                 {2048, 5000, ML_OK},
                 {2048, 9000, ML_OK}};
    size_t i;
    if (READABLE != ML_OK) SKIP("built with ML_NO_K_QUANTS");
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        ml_config config = {.dim = 2048, .n_layers = 1, .n_heads = 2, .n_kv_heads = 1, .vocab_size = 32};
        static const int32_t tokens[] = {1, 2};
        ml_generate_desc desc = {.prompt_ids = {tokens, 2}, .max_new_tokens = 1};
        ml_model *model = NULL, *other = NULL;
        ml_session *session = NULL;
        ml_model_load_desc as_floats = {.type = ML_F16};
        ml_save_desc save = save_as(ML_GGUF, ML_TYPE_NONE);
        ml_error error;
        config.hidden_dim = cases[i].hidden, config.max_seq_len = 16;
        REQUIRE(create_model(&config, ML_Q4_K, &state, NULL, &model, NULL) == ML_OK);
        CHECK(ml_model_save(model, in_folder("large.gguf"), &save, NULL) == ML_OK);
        ml_model_free(model);
        damage(in_folder("large.gguf"), place_of_ffn_up(in_folder("large.gguf")), cases[i].block);
        CHECK(ml_model_load(in_folder("large.gguf"), NULL, &model, &error) == cases[i].result);
        CHECK(ml_model_load(in_folder("large.gguf"), &as_floats, &other, NULL) == ML_ERROR_NUMBER);
        if (!model) {
            CHECK(strstr(error.text, "blk.0.ffn_up.weight: number ("));
            continue;
        }
        REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
        CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_NUMBER);
        ml_session_free(session);
        ml_model_free(model);
    }
}

int main(void) {
    if (!folder_begin("quant")) return 1;
    ml_random_seed(&state, 7);
    RUN(activations);
    RUN(strange_activations);
    RUN(rows_against_loops);
    RUN(rows_at_any_address);
    RUN(rows_do_not_depend_on_position);
    RUN(extremes);
    RUN(extremes_of_parts);
    RUN(not_finite);
    RUN(many_against_loops);
    RUN(many_does_not_depend_on_threads_or_position);
    RUN(many_work_grows);
    RUN(against_floats);
    RUN(blocks_that_are_only_read);
    RUN(products_with_other_types);
    RUN(gradients_through_other_types);
    RUN(q4_0_with_q6_k_output);
    RUN(blocks_are_kept);
    RUN(files_of_llama_quantize);
    RUN(errors_of_quantizing);
    RUN(quantizing_to_five_bits);
    RUN(quantizing_strange_numbers);
    RUN(mixed_types);
    RUN(saving_in_a_mix);
    RUN(mixes_of_llama_quantize);
    RUN(checked_in_part);
    if (!folder_end()) return 1;
    return test_report("quant");
}
