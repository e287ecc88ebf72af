/* How fast minillama.h is here, against this machine's peaks, measured in the same minute. It measures kernels of the
   implementation too, so it compiles its own.
   build/bench [kernels] [types] [decode] [prompt] [train] [--threads 1,2] [--model FILE] */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "../examples/common/types.h"
#include "bench_kernels.h"
#include "random_model.h"

enum { N_PAIRS = 11, N_LONG_PAIRS = 5, N_WORDS = 5, READ_FLOATS = 32 << 20 };

typedef struct bench {
    ml_threads threads;
    const float *read_data; /* (READ_FLOATS), far larger than any cache */
} bench;

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

/* Something to time: run() does the work once; `amount` is how many operations or bytes that was. */
typedef struct work {
    void (*run)(void *arg);
    void *arg;
    double amount;
    int n_pairs; /* how often; default N_PAIRS */
} work;

typedef struct figure {
    double rate, share; /* medians: amount per second; that divided by the peak measured next to it */
} figure;

/* Times work and peak alternately, so that a machine that slows down slows both, and takes the median of the
   ratios. */
static figure measure(const bench *b, work w, int is_memory) {
    double rates[N_PAIRS], shares[N_PAIRS];
    figure f;
    int n = w.n_pairs ? w.n_pairs : N_PAIRS;
    w.run(w.arg);
    for (int i = 0; i < n; i++) {
        double peak = is_memory ? bench_read_bandwidth(&b->threads, b->read_data, READ_FLOATS, 1)
                                : bench_peak_flops(&b->threads, 8);
        double begin = seconds_now(), seconds;
        int times = 0;
        do {
            w.run(w.arg);
            times++;
        } while ((seconds = seconds_now() - begin) < 0.02);
        rates[i] = w.amount * times / seconds;
        shares[i] = rates[i] / peak;
    }
    f.rate = median(rates, n);
    f.share = median(shares, n);
    return f;
}

static int min_int(int a, int b) { return a < b ? a : b; }

static void *need(void *memory) {
    if (!memory) {
        fprintf(stderr, "out of memory\n");
        exit(1);
    }
    return memory;
}

static void check(ml_result result, const ml_error *error) {
    if (result) {
        fprintf(stderr, "error: %s\n", error->text);
        exit(1);
    }
}

static float *random_floats(size_t n) {
    float *x = (float *)need(malloc(n * sizeof *x));
    ml_random random;
    ml_random_seed(&random, 1);
    for (size_t i = 0; i < n; i++) x[i] = ml_random_uniform(&random) - 0.5f;
    return x;
}

static int wanted(const char *word, const char *const *words) {
    int any = 0;
    for (int i = 0; i < N_WORDS; i++)
        if (words[i]) {
            any = 1;
            if (strcmp(words[i], word) == 0) return 1;
        }
    return !any;
}

/* ---- matrix multiply ---- */

typedef struct gemm {
    const ml_threads *threads;
    size_t m, n, k;
    mli_operand a, b;
    float *c;
    void *work;
    int accumulate;
} gemm;

static void run_gemm(void *arg) {
    gemm *g = (gemm *)arg;
    mli_gemm(g->threads, g->m, g->n, g->k, g->a, g->b, g->c, g->n, g->accumulate, g->work);
}

/* A layer of `in` inputs and `out` outputs over 2000 tokens: forward y = x W^T, and the two products of its
   backward. */
static void bench_layer(const bench *b, size_t out, size_t in) {
    static const char *const names[3] = {"forward  y = x W^T", "backward dx = dy W", "backward dW += dy^T x"};
    size_t tokens = 2000;
    float *x = random_floats(tokens * in), *w = random_floats(out * in), *y = random_floats(tokens * out);
    float *c = (float *)need(malloc((tokens * (in + out) + out * in) * sizeof *c));
    for (size_t i = 0; i < 3; i++) {
        gemm g;
        work job;
        figure f;
        g.threads = &b->threads;
        g.m = i == 2 ? out : tokens;
        g.n = i == 0 ? out : in;
        g.k = i == 0 ? in : i == 1 ? out : tokens;
        g.a = i == 0 ? mli_matrix(x, in, 1) : i == 1 ? mli_matrix(y, out, 1) : mli_matrix(y, 1, out);
        g.b = i == 0 ? mli_matrix(w, 1, in) : i == 1 ? mli_matrix(w, in, 1) : mli_matrix(x, in, 1);
        g.c = c;
        g.accumulate = i == 2;
        if (g.accumulate) memset(c, 0, out * in * sizeof *c);
        g.work = need(malloc(mli_gemm_work(&b->threads, g.m, g.n, g.k)));
        job.run = run_gemm;
        job.arg = &g;
        job.amount = 2.0 * (double)g.m * (double)g.n * (double)g.k;
        job.n_pairs = 0;
        f = measure(b, job, 0);
        printf("| sgemm 2000 x %zu x %zu, %s | %d | %.1f GFLOP/s | %.0f %% of FMA peak |\n", out, in,
               names[i], b->threads.count, f.rate * 1e-9, f.share * 100);
        fflush(stdout);
        free(g.work);
    }
    free(x), free(w), free(y), free(c);
}

static void bench_kernels(const bench *b) {
    bench_layer(b, 1376, 512);
    bench_layer(b, 512, 1376);
    bench_layer(b, 512, 512);
}

/* ---- types of weights ---- */

typedef struct linear {
    const ml_threads *threads;
    const float *x;
    size_t n, in;
    mli_linear_job job;
    void *work;
} linear;

static void run_linear(void *arg) {
    linear *l = (linear *)arg;
    mli_linear(l->threads, l->x, l->n, l->in, &l->job, 1, l->work);
}

/* Random bytes make numbers of any type; scales that are not finite are made 1. */
static void random_blocks(uint8_t *w, size_t n_bytes, const mli_type_info *info) {
    ml_random random;
    ml_random_seed(&random, 1);
    for (size_t i = 0; i < n_bytes; i++) w[i] = (uint8_t)ml_random_u64(&random);
    for (size_t i = 0; i < n_bytes; i += info->bytes)
        for (int j = 0; j < 2 && info->block > 1; j++)
            w[i + info->scales[j]] = 0, w[i + info->scales[j] + 1] = 60;
}

/* y = W x for one token, which reads W once, and for 512, which computes. */
static void bench_type(const bench *b, ml_type type) {
    enum { IN = 2048, OUT = 16384, TOKENS = 512 };
    size_t n_bytes = OUT * ml_type_row_bytes(type, IN);
    ml_tensor w = {type, OUT, IN, need(malloc(n_bytes)), NULL};
    float *x = random_floats(TOKENS * IN), *y = (float *)need(malloc(sizeof(float) * TOKENS * OUT));
    linear l = {&b->threads, x, 1, IN, {&w, y}, need(malloc(mli_linear_work(&b->threads, TOKENS, IN, OUT)))};
    work one = {run_linear, &l, (double)n_bytes, 0}, many = {run_linear, &l, 2.0 * TOKENS * IN * OUT, 0};
    random_blocks((uint8_t *)w.data, n_bytes, mli_type(type));
    figure f = measure(b, one, 1);
    printf("| %s 2048 to 16384, 1 token | %d | %.1f GB/s, %.2f G weights/s | %.0f %% of read bandwidth |\n",
           ml_type_name(type), b->threads.count, f.rate * 1e-9, f.rate * 1e-9 * IN * OUT / (double)n_bytes,
           f.share * 100);
    l.n = TOKENS;
    f = measure(b, many, 0);
    printf("| %s 2048 to 16384, 512 tokens | %d | %.1f GFLOP/s | %.0f %% of FMA peak |\n", ml_type_name(type),
           b->threads.count, f.rate * 1e-9, f.share * 100);
    fflush(stdout);
    free(w.data), free(x), free(y), free(l.work);
}

static void bench_types(const bench *b) {
    for (int i = 1; i < ML_TYPE_COUNT; i++)
        if (mli_is_weight((ml_type)i)) bench_type(b, (ml_type)i);
}

/* ---- whole models ---- */

static int name_begins(const ml_model *model, int index, const char *begin) {
    char name[ML_NAME_SIZE];
    return ml_model_tensor_name(model, index, name) == ML_OK && strncmp(name, begin, strlen(begin)) == 0;
}

/* Bytes of weights that one token reads: all but the embedding, of which it reads a row. */
static double weight_bytes(const ml_model *model) {
    double bytes = 0;
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        if (t->data && !name_begins(model, i, "token_embd."))
            bytes += (double)t->rows * (double)ml_type_row_bytes(t->type, t->cols);
    }
    return bytes;
}

/* The weights of the layers, which multiply every token of a prompt. */
static double layer_weights(const ml_model *model) {
    double n = 0;
    for (int i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].data && name_begins(model, i, "blk."))
            n += (double)model->tensors[i].rows * (double)model->tensors[i].cols;
    return n;
}

typedef struct decode {
    ml_session *session;
    int n_tokens; /* in one run, from an empty context */
    int32_t tokens[512];
    int at_once;
} decode;

static void run_decode(void *arg) {
    decode *d = (decode *)arg;
    const float *logits;
    ml_error error;
    check(ml_session_truncate(d->session, 0, &error), &error);
    for (int i = 0; i < d->n_tokens; i += d->at_once)
        check(ml_session_eval(d->session, d->tokens + i, d->at_once, &logits, &error), &error);
}

/* Times n_tokens from an empty context, at_once in each pass. Decoding is compared with the bandwidth that its
   weights need, a prompt with the multiply-adds of its weights and of attention. */
static void bench_model(const bench *b, const char *name, const ml_model *model, int n_tokens, int at_once) {
    decode d;
    ml_session_desc desc;
    ml_error error;
    work job;
    int decoding = at_once == 1;
    double per_token, attention = 2.0 * model->config.dim * (n_tokens + 1) * model->config.n_layers;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = min_int(1024, model->config.max_seq_len);
    desc.threads = b->threads;
    check(ml_session_new(model, &desc, &d.session, &error), &error);
    for (int i = 0; i < n_tokens; i++) d.tokens[i] = (int32_t)((i * 7919 + 1) % model->config.vocab_size);
    d.n_tokens = n_tokens;
    d.at_once = at_once;
    job.run = run_decode;
    job.arg = &d;
    per_token = decoding ? weight_bytes(model) : 2 * layer_weights(model) + attention;
    job.amount = per_token * n_tokens;
    job.n_pairs = 0;
    figure f = measure(b, job, decoding);
    printf("| %s, %s %d tokens | %d | %.0f tok/s | %.0f %% of %s |\n", name,
           decoding ? "decode" : "prompt of", n_tokens, b->threads.count, f.rate / per_token, f.share * 100,
           decoding ? "read bandwidth" : "FMA peak");
    fflush(stdout);
    ml_session_free(d.session);
}

static void bench_shapes(const bench *b, int decoding) {
    static const ml_type types[] = {ML_F32, ML_BF16, ML_Q8_0, ML_Q6_K, ML_Q4_0, ML_Q4_K};
    for (size_t s = 0; s < N_SMALL_SHAPES; s++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            ml_model *model = (ml_model *)need(random_model(&model_shapes[s], types[t], 1));
            char name[64];
            snprintf(name, sizeof name, "%s %s%s", model_shapes[s].name, ml_type_name(types[t]),
                     type_is_mix(types[t]) ? "_M" : "");
            bench_model(b, name, model, decoding ? 64 : 512, decoding ? 1 : 512);
            ml_model_free(model);
        }
}

static void bench_file(const bench *b, const char *path, const char *const *words) {
    ml_model *model = NULL;
    ml_error error;
    double least = 0;
    for (int i = 0; i < N_PAIRS; i++) { /* the least, because the first also waits for the disk */
        ml_model_free(model);
        double begin = seconds_now(), seconds;
        check(ml_model_load(path, NULL, &model, &error), &error);
        seconds = seconds_now() - begin;
        if (i == 0 || seconds < least) least = seconds;
    }
    printf("| %s, load | 1 | %.1f ms | |\n", path, least * 1e3);
    int n = min_int(512, model->config.max_seq_len);
    if (wanted("decode", words)) bench_model(b, path, model, min_int(64, n), 1);
    if (wanted("prompt", words)) bench_model(b, path, model, n, n);
    ml_model_free(model);
}

/* ---- training ---- */

typedef struct lesson {
    const char *name;
    int n_rows, row; /* tokens of each row; 0: as SST's 80 sentences, 4 to 53 tokens, 26 on average */
    int padded;      /* all rows are as long as the longest */
    int n_classes;   /* 0: next tokens */
    int rank;        /* of LoRA on the attention; 0: everything is trained */
    int checkpointing;
} lesson;

static const lesson lessons[] = {
    {"language model, 8 x 256 tokens", 8, 256, 0, 0, 0, 0},
    {"classification, 80 rows padded to 53", 80, 0, 1, 5, 0, 0},
    {"classification, 80 rows packed", 80, 0, 0, 5, 0, 0},
    {"the same with checkpointing", 80, 0, 0, 5, 0, 1},
    {"LoRA r4, 80 rows packed", 80, 0, 0, 5, 4, 0},
};

typedef struct lesson_run {
    ml_model *model;
    ml_lora *lora;
    ml_head *head;
    ml_trainer *trainer;
    size_t size; /* of the trainer */
    ml_batch batch;
    int n_real; /* tokens without the padding */
} lesson_run;

static void run_lesson(void *arg) {
    lesson_run *run = (lesson_run *)arg;
    ml_error error;
    float loss;
    check(ml_trainer_backward(run->trainer, &run->batch, NULL, &loss, &error), &error);
    check(ml_trainer_step(run->trainer, &error), &error);
}

/* Row lengths between 4 and 53 with SST's mean, in a fixed disorder. */
static int sentence_length(int row) {
    double u = (row * 37 % 80 + 0.5) / 80;
    return 4 + (int)(49.9 * pow(u, 1.25));
}

static void make_lesson_batch(lesson_run *run, const lesson *what) {
    static int32_t tokens[8192], follow[8192], starts[128], labels[128];
    for (int i = 0; i < what->n_rows; i++) {
        int length = what->row ? what->row : sentence_length(i);
        run->n_real += length;
        labels[i] = i % 5;
        starts[i + 1] = starts[i] + (what->padded ? 53 : length);
    }
    int n = starts[what->n_rows];
    for (int i = 0; i < n; i++) tokens[i] = (i * 7919 + 1) % 32000, follow[i] = (i * 104729 + 7) % 32000;
    run->batch.tokens = tokens;
    run->batch.n_tokens = n;
    run->batch.row_start = starts;
    run->batch.n_rows = what->n_rows;
    run->batch.targets = follow;
    run->batch.labels = labels;
}

static void make_lesson_trainer(lesson_run *run, const lesson *what, const ml_threads *threads) {
    ml_trainer_desc desc = {0};
    ml_head_create_desc head = {0};
    ml_lora_create_desc lora = {0};
    ml_random random;
    ml_error error;
    ml_random_seed(&random, 1);
    head.n_classes = what->n_classes;
    lora.rank = what->rank;
    head.random = lora.random = &random;
    if (what->n_classes) check(ml_head_create(run->model, &head, &run->head, &error), &error);
    if (what->rank) check(ml_lora_create(run->model, &lora, &run->lora, &error), &error);
    desc.max_tokens = run->batch.n_tokens;
    desc.max_rows = what->n_rows;
    desc.max_row = what->row ? what->row : 53;
    desc.head = run->head;
    desc.lora = run->lora;
    desc.checkpointing = what->checkpointing;
    desc.adamw.lr = 1e-5f;
    desc.threads = *threads;
    check(ml_trainer_size(run->model, &desc, &run->size, &error), &error);
    check(ml_trainer_new(run->model, &desc, &run->trainer, &error), &error);
}

/* One step: forward, backward and AdamW. Compared with 6 operations for each weight and token (4 where the weights
   are frozen, none for the embedding), and 6 for the output matrix where next tokens are learned; attention is
   extra. */
static void bench_lesson(const bench *b, const lesson *what) {
    lesson_run run = {0};
    run.model = (ml_model *)need(random_model(model_shape_named("42M"), ML_F32, 1));
    make_lesson_batch(&run, what);
    make_lesson_trainer(&run, what, &b->threads);
    double per_token = (what->rank ? 4 : 6) * layer_weights(run.model);
    if (!what->n_classes) per_token += 6.0 * run.model->config.vocab_size * run.model->config.dim;
    work job = {run_lesson, &run, per_token * run.batch.n_tokens, N_LONG_PAIRS};
    figure f = measure(b, job, 0);
    printf("| 42M train, %s | %d | %.0f tok/s (%.0f MB) | %.0f %% of FMA peak |\n", what->name,
           b->threads.count, f.rate / job.amount * run.n_real,
           (double)run.size * 1e-6 + 4e-6 * (double)run.model->n_parameters, f.share * 100);
    fflush(stdout);
    ml_trainer_free(run.trainer);
    ml_lora_free(run.lora);
    ml_head_free(run.head);
    ml_model_free(run.model);
}

/* ---- the program ---- */

/* Which instruction set was compiled in, by the size of its vectors. */
static const char *instructions(void) {
#if defined(__ARM_NEON) && !defined(ML_NO_SIMD) && !defined(ML_NO_NEON)
    return "NEON";
#else
    return sizeof(mli_v) == 64 ? "AVX-512" : sizeof(mli_v) == 32 ? "AVX2" : "scalar";
#endif
}

/* All that was asked for, with one number of threads. */
static void bench_all(const bench *b, const char *const *words, const char *model) {
    printf("%s, threads %d: FMA peak %.1f GFLOP/s, read bandwidth %.1f GB/s\n\n| work | threads | speed "
           "| share |\n"
           "| --- | --- | --- | --- |\n",
           instructions(), b->threads.count, bench_peak_flops(&b->threads, 50) * 1e-9,
           bench_read_bandwidth(&b->threads, b->read_data, READ_FLOATS, 10) * 1e-9);
    if (model) {
        bench_file(b, model, words);
    } else {
        if (wanted("kernels", words)) bench_kernels(b);
        if (wanted("types", words)) bench_types(b);
        if (wanted("decode", words)) bench_shapes(b, 1);
        if (wanted("prompt", words)) bench_shapes(b, 0);
        for (size_t i = 0; wanted("train", words) && i < sizeof lessons / sizeof *lessons; i++)
            bench_lesson(b, &lessons[i]);
    }
    printf("\n");
}

/* The next number of a list like "1,2", which then begins after it; 0 if it is none. */
static int next_count(const char **list) {
    char *end;
    long n = strtol(*list, &end, 10);
    int is_one = end != *list && (!*end || *end == ',') && n >= 1 && n <= 64;
    *list = end + (*end == ',');
    return is_one ? (int)n : 0;
}

/* Whether the whole list can be measured; otherwise says so. */
static int check_counts(const char *list) {
    int ok = 1;
    do {
        ok = next_count(&list) != 0;
    } while (ok && *list);
    if (!ok) fprintf(stderr, "--threads takes numbers like 1,2, at most 64\n");
    return ok;
}

int main(int argc, char **argv) {
    const char *words[N_WORDS] = {NULL}, *threads = "1,2", *model = NULL;
    int help = 0;
    const option options[] = {
        {"--threads", OPTION_TEXT, &threads, "numbers of threads (1,2)"},
        {"--model", OPTION_TEXT, &model, "measure this model instead of random ones"},
        {"--help", OPTION_FLAG, &help, "this list"},
    };
    int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, words, N_WORDS)) return 2;
    for (int i = 0; i < N_WORDS; i++)
        if (words[i] && strcmp(words[i], "kernels") && strcmp(words[i], "types") &&
            strcmp(words[i], "decode") && strcmp(words[i], "prompt") && strcmp(words[i], "train"))
            return fprintf(stderr, "measure kernels, types, decode, prompt or train, not %s\n", words[i]), 2;
    if (help) {
        printf("usage: bench [kernels] [types] [decode] [prompt] [train] [options]\n");
        options_print(stdout, options, n_options);
        return 0;
    }
    for (int i = 0; i < N_WORDS && model; i++)
        if (words[i] && strcmp(words[i], "decode") && strcmp(words[i], "prompt"))
            return fprintf(stderr, "of --model, decode and prompt are measured, not %s\n", words[i]), 2;
    if (!check_counts(threads)) return 2;
    float *read_data = random_floats(READ_FLOATS);
    while (*threads) {
        bench b = {{0}, read_data};
        b.threads.count = next_count(&threads);
        bench_all(&b, words, model);
    }
    free(read_data);
    return !output_written();
}
