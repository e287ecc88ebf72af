/* This machine's peaks, measured: multiply-adds a second in registers, and bytes a second read from memory. Include
   after minillama.h with its implementation; the measurements use its vectors and its threads. */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "../examples/common/progress.h"

/* Unrolls the next loop, whose length is a constant, so that an array of vectors becomes registers. */
#if defined(__clang__)
#define BENCH_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define BENCH_UNROLL _Pragma("GCC unroll 32")
#else
#define BENCH_UNROLL
#endif

enum { BENCH_CHAINS = 12, BENCH_FMA_STEPS = 1 << 16, BENCH_LANES = sizeof(mli_v) / sizeof(float) };

typedef struct bench_probe {
    const float *data;
    size_t n;
    int n_tasks, n_streams;
    float result[64]; /* a task's, so that the work cannot be left out */
} bench_probe;

/* Chains of multiply-adds, enough of them to hide each other's latency, that never leave the registers. */
static void bench_fma_task(void *arg, int index) {
    bench_probe *probe = (bench_probe *)arg;
    mli_v sum[BENCH_CHAINS], a = mli_v_set(probe->data[0]), b = mli_v_set(probe->data[1]);
    BENCH_UNROLL
    for (int j = 0; j < BENCH_CHAINS; j++) sum[j] = mli_v_set((float)j);
    for (int i = 0; i < BENCH_FMA_STEPS; i++) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_CHAINS; j++) sum[j] = mli_v_fma(sum[j], a, b);
    }
    BENCH_UNROLL
    for (int j = 1; j < BENCH_CHAINS; j++) sum[0] = mli_v_add(sum[0], sum[j]);
    probe->result[index & 63] += mli_v_sum(sum[0]);
}

/* Floating point operations a second (a multiply-add is two), the best of `times` tries. */
static double bench_peak_flops(const ml_threads *threads, int times) {
    static const float numbers[2] = {0.5f, 0.25f};
    bench_probe probe;
    double best = 0;
    memset(&probe, 0, sizeof probe);
    probe.data = numbers;
    probe.n_tasks = threads->count;
    while (times-- > 0) {
        double start = seconds_now(), flops;
        mli_parallel(threads, probe.n_tasks, bench_fma_task, &probe);
        flops = 2.0 * BENCH_LANES * BENCH_CHAINS * BENCH_FMA_STEPS * probe.n_tasks / (seconds_now() - start);
        if (flops > best) best = flops;
    }
    return best;
}

/* Reads a share of the data as `n_streams` (1 to 4) streams side by side; how many are fastest differs by machine. */
static void bench_read_task(void *arg, int index) {
    bench_probe *probe = (bench_probe *)arg;
    mli_v sum[8];
    size_t begin, end, stream, i, j, s, n_streams = (size_t)probe->n_streams;
    mli_share(probe->n, 32 * BENCH_LANES, probe->n_tasks, index, &begin, &end);
    stream = (end - begin) / n_streams / (8 * BENCH_LANES) * (8 * BENCH_LANES);
    BENCH_UNROLL
    for (j = 0; j < 8; j++) sum[j] = mli_v_zero();
    for (i = 0; i < stream; i += 8 * BENCH_LANES)
        for (s = 0; s < n_streams; s++) {
            const float *at = probe->data + begin + s * stream + i;
            BENCH_UNROLL
            for (j = 0; j < 8; j++) sum[j] = mli_v_add(sum[j], mli_v_load(at + j * BENCH_LANES));
        }
    BENCH_UNROLL
    for (j = 1; j < 8; j++) sum[0] = mli_v_add(sum[0], sum[j]);
    probe->result[index & 63] += mli_v_sum(sum[0]);
}

/* Bytes a second read from data (n), which should be far larger than the caches, the best of `times` tries of each
   number of streams. */
static double bench_read_bandwidth(const ml_threads *threads, const float *data, size_t n, int times) {
    bench_probe probe;
    double best = 0;
    memset(&probe, 0, sizeof probe);
    probe.data = data;
    probe.n = n;
    probe.n_tasks = threads->count;
    while (times-- > 0)
        for (probe.n_streams = 1; probe.n_streams <= 4; probe.n_streams *= 2) {
            double start = seconds_now(), rate;
            mli_parallel(threads, probe.n_tasks, bench_read_task, &probe);
            rate = (double)n * sizeof *data / (seconds_now() - start);
            if (rate > best) best = rate;
        }
    return best;
}

#endif
