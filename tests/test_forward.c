/* The forward pass: against PyTorch's numbers, against a plain double-precision network written here, and against
   itself, cut up in every way in which it must not matter. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "models.h"
#include "shared.h"

/* ---- the network in doubles, one loop per formula, no packing, no cache ---- */

static double weight_at(const ml_tensor *w, int row, int col) {
    float *line = (float *)malloc(w->cols * sizeof *line);
    mli_dequantize_row(w->type, (const char *)w->data + (size_t)row * ml_type_row_bytes(w->type, w->cols),
                       line, w->cols);
    float value = line[col];
    free(line);
    return (double)value;
}

/* What the integer kernels are given: x in blocks of 32, each rounded to 255 steps of its largest / 127. */
static void round_activations(double *rounded, const double *x, int n) {
    int i, block;
    for (block = 0; block < n; block += 32) {
        double most = 0;
        for (i = block; i < block + 32; i++) most = fmax(most, fabs(x[i]));
        for (i = block; i < block + 32; i++)
            rounded[i] = most > 0 ? round(x[i] / most * 127) * most / 127 : 0;
    }
}

static void plain_linear(double *y, const double *given, const ml_tensor *w) {
    float *line = (float *)malloc(w->cols * sizeof *line);
    double *x = (double *)malloc(w->cols * sizeof *x);
    memcpy(x, given, w->cols * sizeof *x);
    if (mli_is_integer(w->type)) round_activations(x, given, (int)w->cols);
    for (size_t i = 0; i < w->rows; i++) {
        mli_dequantize_row(w->type, (const char *)w->data + i * ml_type_row_bytes(w->type, w->cols), line,
                           w->cols);
        y[i] = 0;
        for (size_t j = 0; j < w->cols; j++) y[i] += (double)line[j] * x[j];
    }
    free(line);
    free(x);
}

static void plain_norm(double *y, const double *x, const ml_tensor *w, const ml_tensor *b,
                       const ml_config *c) {
    double mean = 0, square = 0;
    int i, n = c->dim;
    if (c->norm == ML_NORM_LAYER)
        for (i = 0; i < n; i++) mean += x[i] / n;
    for (i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / n;
    for (i = 0; i < n; i++) {
        y[i] = (x[i] - mean) / sqrt(square + (double)c->norm_eps) * (double)((const float *)w->data)[i];
        if (c->norm == ML_NORM_LAYER) y[i] += (double)((const float *)b->data)[i];
    }
}

static void plain_rope(double *x, int heads, int hd, int position, const ml_config *c) {
    int h, j;
    for (h = 0; h < heads; h++)
        for (j = 0; j < hd; j += 2) {
            double angle = position / (double)c->rope_scale * pow((double)c->rope_theta, -(double)j / hd);
            double a = x[h * hd + j], b = x[h * hd + j + 1];
            x[h * hd + j] = a * cos(angle) - b * sin(angle);
            x[h * hd + j + 1] = a * sin(angle) + b * cos(angle);
        }
}

static void plain_attention(double *out, const double *q, const double *k, const double *v, int n,
                            const ml_config *c) {
    int hd = c->dim / c->n_heads, kv_dim = hd * c->n_kv_heads, t, s, h, j;
    double *p = (double *)malloc((size_t)n * sizeof *p);
    for (t = 0; t < n; t++)
        for (h = 0; h < c->n_heads; h++) {
            int kv = h / (c->n_heads / c->n_kv_heads), seen = c->mask == ML_MASK_FULL ? n : t + 1;
            double sum = 0;
            for (s = 0; s < seen; s++) {
                double dot = 0;
                for (j = 0; j < hd; j++) dot += q[t * c->dim + h * hd + j] * k[s * kv_dim + kv * hd + j];
                sum += p[s] = exp(dot / sqrt((double)hd));
            }
            for (j = 0; j < hd; j++) {
                double y = 0;
                for (s = 0; s < seen; s++) y += p[s] / sum * v[s * kv_dim + kv * hd + j];
                out[t * c->dim + h * hd + j] = y;
            }
        }
    free(p);
}

/* One row of n tokens -> hidden (n, D), logits (n, V). */
static void plain_network(const ml_model *m, const int32_t *tokens, int n, double *hidden, double *logits) {
    const ml_config *c = &m->config;
    int D = c->dim, H = c->hidden_dim, hd = D / c->n_heads, kv_dim = hd * c->n_kv_heads, t, i, l;
    double *x = (double *)calloc((size_t)(n * (6 * D + 2 * kv_dim + 2 * H)), sizeof *x);
    double *h = x + n * D, *q = h + n * D, *a = q + n * D, *o = a + n * D, *k = o + 2 * n * D,
           *v = k + n * kv_dim;
    double *gate = v + n * kv_dim, *up = gate + n * H;
    for (t = 0; t < n; t++)
        for (i = 0; i < D; i++) x[t * D + i] = weight_at(tensor_named(m, "token_embd.weight"), tokens[t], i);
    for (l = 0; l < c->n_layers; l++) {
        for (t = 0; t < n; t++) {
            plain_norm(h + t * D, x + t * D, layer_tensor(m, l, "attn_norm.weight"),
                       layer_tensor(m, l, "attn_norm.bias"), c);
            plain_linear(q + t * D, h + t * D, layer_tensor(m, l, "attn_q.weight"));
            plain_linear(k + t * kv_dim, h + t * D, layer_tensor(m, l, "attn_k.weight"));
            plain_linear(v + t * kv_dim, h + t * D, layer_tensor(m, l, "attn_v.weight"));
            plain_rope(q + t * D, c->n_heads, hd, t, c);
            plain_rope(k + t * kv_dim, c->n_kv_heads, hd, t, c);
        }
        plain_attention(a, q, k, v, n, c);
        for (t = 0; t < n; t++) {
            plain_linear(o, a + t * D, layer_tensor(m, l, "attn_output.weight"));
            for (i = 0; i < D; i++) x[t * D + i] += o[i];
            plain_norm(h, x + t * D, layer_tensor(m, l, "ffn_norm.weight"),
                       layer_tensor(m, l, "ffn_norm.bias"), c);
            plain_linear(gate, h, layer_tensor(m, l, "ffn_gate.weight"));
            plain_linear(up, h, layer_tensor(m, l, "ffn_up.weight"));
            for (i = 0; i < H; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
            plain_linear(o, gate, layer_tensor(m, l, "ffn_down.weight"));
            for (i = 0; i < D; i++) x[t * D + i] += o[i];
        }
    }
    for (t = 0; t < n; t++) {
        plain_norm(hidden + t * D, x + t * D, tensor_named(m, "output_norm.weight"),
                   tensor_named(m, "output_norm.bias"), c);
        plain_linear(logits + t * c->vocab_size, hidden + t * D, tensor_named(m, "output.weight"));
    }
    free(x);
}

/* ---- helpers ---- */

/* A small model of odd shape with random weights large enough that attention and norms matter. */
static ml_model *small_model(ml_norm norm, ml_mask mask, int tied, uint64_t seed) {
    ml_random random;
    ml_model_create_desc desc;
    memset(&desc, 0, sizeof desc);
    ml_config *c = &desc.config;
    c->dim = 96;
    c->hidden_dim = 160;
    c->n_layers = 2;
    c->n_heads = 6;
    c->n_kv_heads = 3;
    c->vocab_size = 77;
    c->max_seq_len = 200;
    c->tied_output = tied;
    c->norm = norm;
    c->mask = mask;
    c->norm_eps = 1e-5f;
    c->rope_theta = 5000;
    c->rope_scale = 2;
    desc.type = ML_F32;
    desc.random = &random;
    ml_random_seed(&random, seed);
    ml_model *model = NULL;
    ml_error error;
    if (ml_model_create(&desc, &model, &error)) {
        printf("%s\n", error.text);
        return NULL;
    }
    for (int i = 0; i < model->n_tensors; i++) {
        ml_tensor t = model->tensors[i];
        char name[ML_NAME_SIZE];
        if (ml_model_tensor_name(model, i, name)) exit(2);
        if (!t.data || (strcmp(name, "output.weight") == 0 && tied)) continue;
        for (size_t j = 0; j < t.rows * t.cols; j++) {
            float *w = (float *)t.data + j;
            if (strstr(name, "norm.weight"))
                *w = 1 + 0.3f * ml_random_normal(&random);
            else if (strstr(name, ".bias"))
                *w = 0.2f * ml_random_normal(&random);
            else
                *w *= 8;
        }
    }
    return model;
}

static ml_session *new_session(const ml_model *model, int max_seq_len, int max_batch, int threads) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = max_seq_len;
    desc.max_batch = max_batch;
    desc.threads.count = threads;
    ml_session *session = NULL;
    ml_error error;
    if (ml_session_new(model, &desc, &session, &error)) printf("%s\n", error.text);
    return session;
}

/* A batch without targets; starts NULL: one row. */
static ml_batch batch_of(const int32_t *tokens, int n_tokens, const int32_t *starts, int n_rows) {
    ml_batch batch = {tokens, n_tokens, starts, n_rows, NULL, NULL, 0};
    return batch;
}

static ml_outputs outputs_of(float *hidden, float *logits, const int32_t *select, int n_select) {
    ml_outputs outputs = {select, n_select, hidden, logits};
    return outputs;
}

static void random_tokens(int32_t *tokens, int n, int vocab_size, uint64_t seed) {
    ml_random random;
    int i;
    ml_random_seed(&random, seed);
    for (i = 0; i < n; i++) tokens[i] = (int32_t)(ml_random_u64(&random) % (uint64_t)vocab_size);
}

/* Sums of a few hundred F32 products, a few layers deep, differ by their order: some 1e-6 of the largest term, which
   is about 10 here. */
#define ORDER_TOLERANCE 5e-5

/* ---- tests ---- */

TEST(matches_plain_network) {
    int variant;
    for (variant = 0; variant < 8; variant++) {
        ml_norm norm = variant & 1 ? ML_NORM_LAYER : ML_NORM_RMS;
        ml_mask mask = variant & 2 ? ML_MASK_FULL : ML_MASK_CAUSAL;
        ml_model *model = small_model(norm, mask, variant & 4, 7);
        int32_t tokens[150], starts[5] = {0, 1, 4, 71, 150};
        float *hidden, *logits;
        double *plain_hidden, *plain_logits;
        ml_session *session;
        int r, i, D, V;
        REQUIRE(model);
        D = model->config.dim, V = model->config.vocab_size;
        random_tokens(tokens, 150, V, 3);
        hidden = (float *)malloc((size_t)(150 * D) * sizeof *hidden);
        logits = (float *)malloc((size_t)(150 * V) * sizeof *logits);
        plain_hidden = (double *)malloc((size_t)(150 * D) * sizeof *plain_hidden);
        plain_logits = (double *)malloc((size_t)(150 * V) * sizeof *plain_logits);
        session = new_session(model, 0, 150, 2);
        REQUIRE(session);
        ml_batch batch = batch_of(tokens, 150, starts, 4);
        ml_outputs outputs = outputs_of(hidden, logits, NULL, 0);
        ml_error error;
        REQUIRE(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_OK);
        for (r = 0; r < 4; r++)
            plain_network(model, tokens + starts[r], starts[r + 1] - starts[r], plain_hidden + starts[r] * D,
                          plain_logits + starts[r] * V);
        for (i = 0; i < 150 * D; i++) CHECK_NEAR(hidden[i], plain_hidden[i], 2e-5, 1e-5);
        for (i = 0; i < 150 * V; i++) CHECK_NEAR(logits[i], plain_logits[i], ORDER_TOLERANCE, 1e-5);
        ml_session_free(session);
        ml_model_free(model);
        free(hidden), free(logits), free(plain_hidden), free(plain_logits);
    }
}

/* The same tokens read one by one, in passes of several sizes, and as one row of a batch: the same logits. */
TEST(cutting_up_does_not_matter) {
    ml_model *model = small_model(ML_NORM_RMS, ML_MASK_CAUSAL, 0, 11);
    int32_t tokens[140];
    int V, i, step;
    float *together;
    ml_session *whole;
    REQUIRE(model);
    V = model->config.vocab_size;
    random_tokens(tokens, 140, V, 5);
    together = (float *)malloc((size_t)(140 * V) * sizeof *together);
    whole = new_session(model, 0, 140, 1);
    REQUIRE(whole);
    ml_batch batch = batch_of(tokens, 140, NULL, 0);
    ml_outputs outputs = outputs_of(NULL, together, NULL, 0);
    REQUIRE(ml_session_eval_batch(whole, &batch, &outputs, NULL) == ML_OK);
    for (step = 1; step <= 140; step = step * 2 + 1) {
        ml_session *session = new_session(model, 140, 37, 2);
        const float *logits;
        REQUIRE(session);
        for (i = 0; i < 140; i += step) {
            int n = i + step <= 140 ? step : 140 - i;
            REQUIRE(ml_session_eval(session, tokens + i, n, &logits, NULL) == ML_OK);
            CHECK(max_difference(logits, together + (i + n - 1) * V, (size_t)V) < ORDER_TOLERANCE);
        }
        CHECK(session->length == 140);
        /* truncating and reading again gives the same */
        REQUIRE(ml_session_truncate(session, 50, NULL) == ML_OK);
        REQUIRE(ml_session_eval(session, tokens + 50, 20, &logits, NULL) == ML_OK);
        CHECK(max_difference(logits, together + 69 * V, (size_t)V) < ORDER_TOLERANCE);
        ml_session_free(session);
    }
    ml_session_free(whole);
    ml_model_free(model);
    free(together);
}

/* Rows of a batch do not see each other: a row alone and among others, bit for bit when it is long enough to take the
   same path, and every thread count gives the same bits. */
TEST(rows_and_threads_are_independent) {
    ml_model *model = small_model(ML_NORM_LAYER, ML_MASK_FULL, 1, 13);
    int32_t tokens[120], starts[4] = {0, 40, 47, 120}, select[3] = {39, 46, 119};
    float one[3 * 77], many[3 * 77], alone[77];
    int threads;
    REQUIRE(model);
    random_tokens(tokens, 120, 77, 17);
    for (threads = 1; threads <= 3; threads++) {
        ml_session *session = new_session(model, 0, 120, threads);
        REQUIRE(session);
        ml_batch batch = batch_of(tokens, 120, starts, 3);
        ml_outputs outputs = outputs_of(NULL, threads == 1 ? one : many, select, 3);
        REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        if (threads > 1) CHECK(memcmp(one, many, sizeof one) == 0);
        batch = batch_of(tokens + 47, 73, NULL, 0);
        outputs = outputs_of(NULL, alone, select, 1);
        select[0] = 72;
        REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        CHECK(max_difference(alone, one + 2 * 77, 77) < ORDER_TOLERANCE);
        select[0] = 39;
        ml_session_free(session);
    }
    ml_model_free(model);
}

TEST(matches_pytorch) {
    static const char *const names[4] = {"rms_causal", "rms_full", "layer_causal", "layer_full"};
    const char *model_path = shared_path("models/stories260K.pt"),
               *path = shared_path("reference/forward.pt");
    ml_archive *archive;
    int v;
    if (!model_path || !path) SKIP("../shared is absent");
    REQUIRE(ml_archive_load(path, NULL, &archive, NULL) == ML_OK);
    for (v = 0; v < 4; v++) {
        static const int32_t starts[3] = {0, 8, 16};
        char name[64];
        ml_model_load_desc load;
        ml_model *model;
        ml_session *session;
        float *logits, *hidden, *got_logits = (float *)malloc(16 * 512 * sizeof(float));
        float *got_hidden = (float *)malloc(16 * 64 * sizeof(float));
        size_t n, n_tokens, i;
        memset(&load, 0, sizeof load);
        load.norm = v & 2 ? ML_NORM_LAYER : ML_NORM_RMS;
        load.mask = v & 1 ? ML_MASK_FULL : ML_MASK_CAUSAL;
        REQUIRE(ml_model_load(model_path, &load, &model, NULL) == ML_OK);
        session = new_session(model, 0, 0, 1);
        int32_t *tokens = shared_tokens(archive, "tokens", &n_tokens);
        REQUIRE(session && n_tokens == 16);
        ml_batch batch = batch_of(tokens, 16, starts, 2);
        ml_outputs outputs = outputs_of(got_hidden, got_logits, NULL, 0);
        REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        snprintf(name, sizeof name, "%s_logits", names[v]);
        logits = shared_floats(archive, name, &n);
        REQUIRE(n == 16 * 512);
        for (i = 0; i < n; i++) CHECK_NEAR(got_logits[i], logits[i], 1e-4, 0);
        snprintf(name, sizeof name, "%s_hidden", names[v]);
        hidden = shared_floats(archive, name, &n);
        REQUIRE(n == 16 * 64);
        for (i = 0; i < n; i++) CHECK_NEAR(got_hidden[i], hidden[i], 1e-4, 0);
        free(tokens);
        free(logits), free(hidden), free(got_logits), free(got_hidden);
        ml_session_free(session);
        ml_model_free(model);
    }
    ml_archive_free(archive);
}

/* Files written by llama.cpp. Converted to F32 they give PyTorch's logits of the dequantized weights. Used as stored,
   the quantized kernels also round the activations to 8 bits: the plain network does the same, and agrees except for
   the few activations on the border between two steps; both differ from PyTorch's unrounded logits (standard
   deviation 1) by up to 0.11. */
static void check_llamacpp_file(const ml_archive *archive, const char *type, int native) {
    char name[64];
    ml_model_load_desc load;
    ml_model *model;
    ml_session *session;
    const float *last;
    float *logits, got[10 * 512];
    double plain_hidden[10 * 64], plain[10 * 512];
    int i, rounds = native && type[0] == 'Q';
    size_t n, n_tokens;
    memset(&load, 0, sizeof load);
    if (!native) load.type = ML_F32;
    snprintf(name, sizeof name, "models/llamacpp/tiny-%s.gguf", type);
    REQUIRE(shared_path(name) && ml_model_load(shared_path(name), &load, &model, NULL) == ML_OK);
    session = new_session(model, 0, 0, 1);
    int32_t *tokens = shared_tokens(archive, "tokens", &n_tokens);
    REQUIRE(session && n_tokens == 10);
    ml_batch batch = batch_of(tokens, 10, NULL, 0);
    ml_outputs outputs = outputs_of(NULL, got, NULL, 0);
    REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
    snprintf(name, sizeof name, "%s.logits", type);
    logits = shared_floats(archive, name, &n);
    REQUIRE(n == 10 * 512);
    CHECK(max_difference(got, logits, n) <= (rounds ? 0.13 : 1e-4));
    plain_network(model, tokens, 10, plain_hidden, plain);
    for (i = 0; i < 10 * 512; i++) CHECK_NEAR(got[i], plain[i], rounds ? 0.005 : 1e-4, 0);
    /* decoding takes other kernels than a batch */
    REQUIRE(ml_session_eval(session, tokens, 9, NULL, NULL) == ML_OK);
    REQUIRE(ml_session_eval(session, tokens + 9, 1, &last, NULL) == ML_OK);
    for (i = 0; i < 512; i++) CHECK_NEAR(last[i], plain[9 * 512 + i], rounds ? 0.005 : 1e-4, 0);
    free(tokens);
    free(logits);
    ml_session_free(session);
    ml_model_free(model);
}

TEST(matches_llamacpp_files) {
    static const char *const types[5] = {"F32", "F16", "BF16", "Q8_0", "Q4_0"};
    const char *path = shared_path("reference/llamacpp_tiny.pt");
    ml_archive *archive;
    int t;
    if (!path) SKIP("../shared is absent");
    REQUIRE(ml_archive_load(path, NULL, &archive, NULL) == ML_OK);
    for (t = 0; t < 5; t++) {
        check_llamacpp_file(archive, types[t], 0);
        check_llamacpp_file(archive, types[t], 1);
    }
    ml_archive_free(archive);
}

/* Files of llama.cpp's mixed types as they stand, read at once and one by one, against the plain network, which is
   given the same rounded activations wherever there is an integer kernel. They agree to 2e-6 unless an activation is on
   the border between two steps: one step more or less, and what follows from it, made 0.03 here. */
TEST(matches_files_of_mixed_types) {
    static const char *const names[] = {"Q4_K_M", "Q5_K_M", "Q6_K", "Q3_K_M", "Q4_1", "Q5_1"};
    enum { N = 12, V = 512 };
    double *hidden = (double *)malloc(N * 256 * sizeof *hidden),
           *plain = (double *)malloc(N * V * sizeof *plain);
    float *got = (float *)malloc(N * V * sizeof *got);
    int32_t tokens[N];
    size_t t;
    NEED_SHARED();
#ifdef ML_NO_K_QUANTS
    SKIP("built with ML_NO_K_QUANTS");
#endif
    random_tokens(tokens, N, V, 31);
    for (t = 0; t < sizeof names / sizeof *names; t++) {
        char path[64];
        ml_model *model = NULL;
        ml_batch batch = batch_of(tokens, N, NULL, 0);
        ml_outputs outputs = outputs_of(NULL, got, NULL, 0);
        const float *last;
        int i;
        snprintf(path, sizeof path, "models/modern/quant-%s.gguf", names[t]);
        REQUIRE(ml_model_load(shared_path(path), NULL, &model, NULL) == ML_OK);
        ml_session *session = new_session(model, 0, 0, 1);
        REQUIRE(session && ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        plain_network(model, tokens, N, hidden, plain);
        for (i = 0; i < N * V; i++) CHECK_NEAR(got[i], plain[i], 0.06, 0);
        for (i = 0; i < N; i++) REQUIRE(ml_session_eval(session, tokens + i, 1, &last, NULL) == ML_OK);
        for (i = 0; i < V; i++) CHECK_NEAR(last[i], plain[(N - 1) * V + i], 0.06, 0);
        ml_session_free(session);
        ml_model_free(model);
    }
    free(hidden), free(plain), free(got);
}

TEST(refuses_what_does_not_fit) {
    ml_model *model = small_model(ML_NORM_RMS, ML_MASK_CAUSAL, 1, 1);
    ml_session_desc desc;
    ml_session *session;
    ml_error error;
    int32_t tokens[220] = {0}, bad = 77, starts[3] = {0, 5, 4};
    const float *logits;
    size_t size;
    void *memory;
    REQUIRE(model);
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = 10;
    REQUIRE(ml_session_size(model, &desc, &size, NULL) == ML_OK);
    memory = malloc(size);
    CHECK(ml_session_init(model, &desc, memory, size / 2, &session, &error) == ML_ERROR_MEMORY);
    CHECK(strstr(error.text, "ml_session_size") != NULL);
    REQUIRE(ml_session_init(model, &desc, memory, size, &session, &error) == ML_OK);
    CHECK(ml_session_eval(session, tokens, 11, &logits, &error) == ML_ERROR_CONTEXT);
    CHECK(session->length == 0);
    CHECK(ml_session_eval(session, tokens, 10, &logits, &error) == ML_OK);
    CHECK(ml_session_eval(session, tokens, 1, &logits, &error) == ML_ERROR_CONTEXT);
    CHECK(ml_session_truncate(session, 11, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_truncate(session, 0, NULL) == ML_OK);
    CHECK(ml_session_eval(session, &bad, 1, &logits, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "77") != NULL);
    CHECK(ml_session_eval(session, tokens, 0, &logits, &error) == ML_ERROR_ARGUMENT);
    ml_batch batch = batch_of(tokens, 11, NULL, 0); /* more than max_batch, which is max_seq_len here */
    ml_outputs outputs = outputs_of(NULL, NULL, NULL, 0);
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_ERROR_ARGUMENT);
    batch.n_tokens = 4;
    batch.row_start = starts;
    batch.n_rows = 2;
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_ERROR_ARGUMENT);
    starts[2] = 10;
    batch.n_tokens = 10;
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_OK);
    outputs = outputs_of(NULL, NULL, &bad, 1);
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_ERROR_ARGUMENT);
    desc.max_seq_len = -1;
    CHECK(ml_session_size(model, &desc, &size, NULL) == ML_ERROR_ARGUMENT);
    desc.max_seq_len = 10;
    desc.max_batch = -5;
    CHECK(ml_session_size(model, &desc, &size, NULL) == ML_ERROR_ARGUMENT);
    desc.max_batch = 0;
    desc.threads.count = 100000;
    CHECK(ml_session_size(model, &desc, &size, NULL) == ML_ERROR_ARGUMENT);
    free(memory);
    ml_model_free(model);
}

/* The size that ml_session_size tells is enough for every use: nothing is written after it. */
TEST(session_stays_inside_its_buffer) {
    int variant;
    for (variant = 0; variant < 4; variant++) {
        ml_model *model = small_model(ML_NORM_RMS, variant & 1 ? ML_MASK_FULL : ML_MASK_CAUSAL, 1, 1);
        ml_session_desc desc;
        ml_session *session;
        unsigned char *memory;
        int32_t tokens[64], starts[9] = {0, 1, 3, 6, 10, 20, 33, 49, 64};
        float logits[64 * 77];
        size_t size, i;
        REQUIRE(model);
        random_tokens(tokens, 64, 77, 2);
        memset(&desc, 0, sizeof desc);
        desc.max_seq_len = 33;
        desc.max_batch = 64;
        desc.threads.count = 1 + (variant >> 1);
        REQUIRE(ml_session_size(model, &desc, &size, NULL) == ML_OK);
        memory = (unsigned char *)malloc(size + 4096);
        memset(memory, 0xa5, size + 4096);
        REQUIRE(ml_session_init(model, &desc, memory + 3, size, &session, NULL) == ML_OK); /* not aligned */
        ml_batch batch = batch_of(tokens, 64, starts, 8);
        ml_outputs outputs = outputs_of(NULL, logits, NULL, 0);
        CHECK(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        CHECK(ml_session_eval(session, tokens, 30, NULL, NULL) == ML_OK);
        CHECK(ml_session_eval(session, tokens, 3, NULL, NULL) == ML_OK);
        for (i = 0; i < 4096 - 3; i++) CHECK(memory[size + 3 + i] == 0xa5);
        CHECK(memory[0] == 0xa5 && memory[2] == 0xa5);
        free(memory);
        ml_model_free(model);
    }
}

int main(void) {
    RUN(matches_plain_network);
    RUN(cutting_up_does_not_matter);
    RUN(rows_and_threads_are_independent);
    RUN(matches_pytorch);
    RUN(matches_llamacpp_files);
    RUN(matches_files_of_mixed_types);
    RUN(refuses_what_does_not_fit);
    RUN(session_stays_inside_its_buffer);
    return test_report("test_forward");
}
