/* How fast minillama.h is here, next to what this machine can do at most, measured in the same minute.
   build/bench [kernels] [decode] [prompt] [train] [--threads 1,2] [--model FILE --tokenizer FILE] */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "../examples/options.h"
#include "bench_kernels.h"

enum { N_PAIRS = 11, N_LONG_PAIRS = 5, READ_FLOATS = 32 << 20 };

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
    int n_pairs; /* how often; 0 stands for N_PAIRS */
} work;

typedef struct figure {
    double rate, share; /* medians: amount per second; that divided by the peak measured right beside it */
} figure;

/* Times work and peak in turn, so that a machine that slows down slows both, and takes the median of the ratios. */
static figure measure(const bench *b, work w, int is_memory) {
    double rates[N_PAIRS], shares[N_PAIRS];
    figure f;
    int i, n = w.n_pairs ? w.n_pairs : N_PAIRS;
    w.run(w.arg);
    for (i = 0; i < n; i++) {
        double peak = is_memory ? bench_read_bandwidth(&b->threads, b->read_data, READ_FLOATS, 1)
                                : bench_peak_flops(&b->threads, 8);
        double begin = bench_seconds(), seconds;
        int times = 0;
        do {
            w.run(w.arg);
            times++;
        } while ((seconds = bench_seconds() - begin) < 0.02);
        rates[i] = w.amount * times / seconds;
        shares[i] = rates[i] / peak;
    }
    f.rate = median(rates, n);
    f.share = median(shares, n);
    return f;
}

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
    float *x = (float *)need(mli_malloc(n * sizeof *x, NULL));
    ml_random random;
    size_t i;
    ml_random_seed(&random, 1);
    for (i = 0; i < n; i++) x[i] = ml_random_uniform(&random) - 0.5f;
    return x;
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

/* A layer of `in` inputs and `out` outputs over 2000 tokens: forward y = x W^T, and the two products of its backward. */
static void bench_layer(const bench *b, size_t out, size_t in) {
    static const char *const names[3] = {"forward  y = x W^T", "backward dx = dy W", "backward dW += dy^T x"};
    size_t tokens = 2000, i;
    float *x = random_floats(tokens * in), *w = random_floats(out * in), *y = random_floats(tokens * out);
    float *c = (float *)need(mli_malloc((tokens * (in + out) + out * in) * sizeof *c, NULL));
    for (i = 0; i < 3; i++) {
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
        g.work = need(mli_malloc(mli_gemm_work(&b->threads, g.m, g.n, g.k), NULL));
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

/* ---- whole models ---- */

static const struct shape {
    const char *name;
    int dim, hidden_dim, n_layers, n_heads;
} shapes[] = {{"15M", 288, 768, 6, 6}, {"42M", 512, 1376, 8, 8}, {"110M", 768, 2048, 12, 12}};

static ml_model *random_model(const struct shape *shape, ml_type type) {
    ml_config c;
    ml_random random;
    ml_model *model;
    ml_error error;
    memset(&c, 0, sizeof c);
    c.dim = shape->dim;
    c.hidden_dim = shape->hidden_dim;
    c.n_layers = shape->n_layers;
    c.n_heads = c.n_kv_heads = shape->n_heads;
    c.vocab_size = 32000;
    c.max_seq_len = 1024;
    c.tied_output = 1;
    c.norm = ML_NORM_RMS;
    c.mask = ML_MASK_CAUSAL;
    c.norm_eps = 1e-5f;
    c.rope_theta = 10000;
    c.rope_scale = 1;
    ml_random_seed(&random, 1);
    check(ml_create(&c, type, &random, NULL, &model, &error), &error);
    return model;
}

/* Bytes of weights that one token reads, and how many of them multiply in a prompt (all but embedding and output). */
static double weight_bytes(const ml_model *model) {
    double bytes = 0;
    int i;
    for (i = 0; i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        if (t->data && i != MLI_TOKEN_EMBEDDING)
            bytes += (double)t->rows * (double)ml_row_bytes(t->type, (size_t)t->cols);
    }
    return bytes;
}

static double layer_weights(const ml_model *model) {
    double n = 0;
    int i;
    for (i = MLI_GLOBAL_SLOTS; i < model->n_tensors; i++)
        if (model->tensors[i].data) n += (double)model->tensors[i].rows * model->tensors[i].cols;
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
    int i;
    ml_session_truncate(d->session, 0);
    for (i = 0; i < d->n_tokens; i += d->at_once)
        check(ml_eval(d->session, d->tokens + i, d->at_once, &logits, &error), &error);
}

/* Times n_tokens from an empty context, at_once in each pass. Decoding is held against the bandwidth that its weights
   need, a prompt against the multiply-adds of its weights and of attention. */
static void bench_model(const bench *b, const char *name, const ml_model *model, int n_tokens, int at_once) {
    decode d;
    ml_session_desc desc;
    ml_error error;
    work job;
    figure f;
    int i, decoding = at_once == 1;
    double per_token, attention = 2.0 * model->config.dim * (n_tokens + 1) * model->config.n_layers;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = MLI_MIN(1024, model->config.max_seq_len);
    desc.threads = b->threads;
    check(ml_session_new(model, &desc, NULL, &d.session, &error), &error);
    for (i = 0; i < n_tokens; i++) d.tokens[i] = (int32_t)((i * 7919 + 1) % model->config.vocab_size);
    d.n_tokens = n_tokens;
    d.at_once = at_once;
    job.run = run_decode;
    job.arg = &d;
    per_token = decoding ? weight_bytes(model) : 2 * layer_weights(model) + attention;
    job.amount = per_token * n_tokens;
    job.n_pairs = 0;
    f = measure(b, job, decoding);
    printf("| %s, %s %d tokens | %d | %.0f tok/s | %.0f %% of %s |\n", name,
           decoding ? "decode" : "prompt of", n_tokens, b->threads.count, f.rate / per_token, f.share * 100,
           decoding ? "read bandwidth" : "FMA peak");
    fflush(stdout);
    ml_session_free(d.session);
}

static void bench_shapes(const bench *b, int decoding) {
    static const ml_type types[] = {ML_F32, ML_BF16, ML_Q8_0, ML_Q4_0};
    size_t s, t;
    for (s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (t = 0; t < sizeof types / sizeof *types; t++) {
            ml_model *model = random_model(&shapes[s], types[t]);
            char name[64];
            snprintf(name, sizeof name, "%s %s", shapes[s].name, ml_type_name(types[t]));
            bench_model(b, name, model, decoding ? 64 : 512, decoding ? 1 : 512);
            ml_free(model);
        }
}

static void bench_file(const bench *b, const char *path) {
    ml_model *model;
    ml_error error;
    int n;
    check(ml_load(path, NULL, &model, &error), &error);
    n = MLI_MIN(256, model->config.max_seq_len);
    bench_model(b, path, model, n, 1);
    bench_model(b, path, model, n, n);
    ml_free(model);
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
    ml_trainer *trainer;
    ml_examples examples;
} lesson_run;

static void run_lesson(void *arg) {
    lesson_run *run = (lesson_run *)arg;
    ml_error error;
    float loss;
    check(ml_train(run->trainer, &run->examples, &loss, &error), &error);
    check(ml_backward(run->trainer, &error), &error);
    check(ml_step(run->trainer, &error), &error);
}

/* Row lengths between 4 and 53 with SST's mean, in a fixed disorder. */
static int sentence_length(int row) {
    double u = (row * 37 % 80 + 0.5) / 80;
    return 4 + (int)(49.9 * pow(u, 1.25));
}

/* One step: forward, backward and AdamW. Held against 6 operations for each weight and token (4 where the weights are frozen,
   and none for the embedding), and 6 for the output matrix where next tokens are learned; attention comes on top. */
static void bench_lesson(const bench *b, const lesson *what) {
    static int32_t tokens[8192], follow[8192], starts[128], labels[128];
    ml_model *model = random_model(&shapes[1], ML_F32);
    ml_trainer_desc desc = {0};
    ml_lora_desc lora_desc = {0};
    ml_lora *lora = NULL;
    ml_head *head = NULL;
    ml_random random;
    ml_error error;
    lesson_run run;
    work job;
    figure f;
    size_t size;
    int i, real = 0, n;
    double per_token = (what->rank ? 4 : 6) * layer_weights(model);
    ml_random_seed(&random, 1);
    memset(&run, 0, sizeof run);
    for (i = 0; i < what->n_rows; i++) {
        int length = what->row ? what->row : sentence_length(i);
        real += length;
        labels[i] = i % 5;
        starts[i + 1] = starts[i] + (what->padded ? 53 : length);
    }
    n = starts[what->n_rows];
    for (i = 0; i < n; i++) tokens[i] = (i * 7919 + 1) % 32000, follow[i] = (i * 104729 + 7) % 32000;
    if (what->n_classes) check(ml_head_create(model, what->n_classes, &random, NULL, &head, &error), &error);
    lora_desc.rank = what->rank;
    if (what->rank) check(ml_lora_create(model, &lora_desc, &random, NULL, &lora, &error), &error);
    if (!what->n_classes) per_token += 6.0 * model->config.vocab_size * model->config.dim;
    desc.max_tokens = n;
    desc.max_rows = what->n_rows;
    desc.max_row = what->row ? what->row : 53;
    desc.head = head;
    desc.lora = lora;
    desc.checkpointing = what->checkpointing;
    desc.adamw.lr = 1e-5f;
    desc.threads = b->threads;
    check(ml_trainer_size(model, &desc, &size, &error), &error);
    check(ml_trainer_new(model, &desc, NULL, &run.trainer, &error), &error);
    run.examples.tokens = tokens;
    run.examples.n_tokens = n;
    run.examples.row_start = starts;
    run.examples.n_rows = what->n_rows;
    run.examples.targets = follow;
    run.examples.labels = labels;
    job.run = run_lesson;
    job.arg = &run;
    job.amount = per_token * n;
    job.n_pairs = N_LONG_PAIRS;
    f = measure(b, job, 0);
    printf("| 42M train, %s | %d | %.0f tok/s (%.0f MB) | %.0f %% of FMA peak |\n", what->name,
           b->threads.count, f.rate / job.amount * real,
           (double)size * 1e-6 + 4e-6 * (double)model->n_parameters, f.share * 100);
    fflush(stdout);
    ml_trainer_free(run.trainer);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_free(model);
}

static const char *instructions(void) {
#if defined(MLI_AVX512)
    return "AVX-512";
#elif defined(MLI_AVX2)
    return "AVX2";
#elif defined(MLI_NEON)
    return "NEON";
#else
    return "scalar";
#endif
}

static int wanted(const char *word, const char *const *words) {
    int i, any = 0;
    for (i = 0; i < 4; i++)
        if (words[i]) {
            any = 1;
            if (strcmp(words[i], word) == 0) return 1;
        }
    return !any;
}

int main(int argc, char **argv) {
    const char *words[4] = {NULL, NULL, NULL, NULL}, *threads = "1,2", *model = NULL;
    int help = 0, n_options, i;
    const option options[] = {
        {"--threads", OPTION_TEXT, &threads, "numbers of threads (1,2)"},
        {"--model", OPTION_TEXT, &model, "measure this model instead of random ones"},
        {"--help", OPTION_FLAG, &help, "this list"},
    };
    float *read_data;
    n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, words, 4)) return 2;
    for (i = 0; i < 4; i++)
        if (words[i] && strcmp(words[i], "kernels") && strcmp(words[i], "decode") &&
            strcmp(words[i], "prompt") && strcmp(words[i], "train"))
            return fprintf(stderr, "measure kernels, decode, prompt or train, not %s\n", words[i]), 2;
    if (help) {
        printf("usage: bench [kernels] [decode] [prompt] [train] [options]\n");
        options_print(stdout, options, n_options);
        return 0;
    }
    read_data = random_floats(READ_FLOATS);
    for (; *threads; threads += strcspn(threads, ","), threads += *threads == ',') {
        bench b;
        memset(&b, 0, sizeof b);
        b.threads.count = atoi(threads);
        b.read_data = read_data;
        if (b.threads.count < 1 || b.threads.count > 64)
            return fprintf(stderr, "--threads takes numbers like 1,2\n"), 2;
        printf("%s, threads %d: FMA peak %.1f GFLOP/s, read bandwidth %.1f GB/s\n\n| work | threads | speed "
               "| share |\n"
               "| --- | --- | --- | --- |\n",
               instructions(), b.threads.count, bench_peak_flops(&b.threads, 50) * 1e-9,
               bench_read_bandwidth(&b.threads, read_data, READ_FLOATS, 10) * 1e-9);
        if (model) {
            bench_file(&b, model);
        } else {
            if (wanted("kernels", words)) bench_kernels(&b);
            if (wanted("decode", words)) bench_shapes(&b, 1);
            if (wanted("prompt", words)) bench_shapes(&b, 0);
            for (i = 0; wanted("train", words) && i < (int)(sizeof lessons / sizeof *lessons); i++)
                bench_lesson(&b, &lessons[i]);
        }
        printf("\n");
    }
    free(read_data);
    return 0;
}
