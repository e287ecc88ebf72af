/* Looking inside: what a session passes to a function of the caller, against the formulas written plainly in doubles,
   and the logit lens. */
#include "preamble.h"
#include "models.h"

enum { D = 24, H = 40, L = 3, A = 4, KV = 2, HD = D / A, V = 50, SEQ = 12, N = 9 };

static ml_error failure;

static ml_model *new_model(ml_mask mask, ml_norm norm) {
    ml_random random;
    ml_model *model = NULL;
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = D, c.hidden_dim = H, c.n_layers = L, c.n_heads = A, c.n_kv_heads = KV, c.vocab_size = V;
    c.max_seq_len = SEQ, c.mask = mask, c.norm = norm;
    ml_random_seed(&random, 5);
    if (create_model(&c, ML_F32, &random, NULL, &model, &failure)) printf("%s\n", failure.text), exit(2);
    for (int i = 0; i < model->n_tensors;
         i++) { /* small weights would make all keys nearly equally important */
        float *x = (float *)model->tensors[i].data;
        size_t n = model->tensors[i].rows * model->tensors[i].cols;
        for (size_t j = 0; x && j < n; j++)
            x[j] = model->tensors[i].rows > 1 ? 15 * x[j] : x[j] + 0.2f * ml_random_normal(&random);
    }
    return model;
}

/* Everything that one pass hands out. */
typedef struct seen_all {
    int calls, past, n, n_keys;
    int layers[L + 2];
    float embedding[SEQ][D], middle[L][SEQ][D], stream[L][SEQ][D], weights[L][A][SEQ][SEQ];
    ml_session *session; /* for the lens while looking, if not NULL */
    float lens[L][SEQ][V];
    int patched; /* this layer's stream is replaced by `patch`, if that is not NULL */
    const float *patch;
} seen_all;

static seen_all seen, other; /* too large for a small stack */

static void keep(void *user, const ml_seen *now) {
    seen_all *all = (seen_all *)user;
    size_t n = now->stream.rows, n_keys = now->weights.cols;
    if (all->calls < L + 2) all->layers[all->calls] = now->layer;
    all->calls++, all->past = now->past, all->n = (int)n;
    if (now->stream.cols != D || n > SEQ || now->layer >= L) return;
    if (now->layer < 0) {
        if (now->weights.data || now->middle.data) all->calls = 99;
        memcpy(all->embedding, now->stream.data, n * sizeof all->embedding[0]);
        return;
    }
    if (now->weights.rows != A * n || n_keys > SEQ || now->middle.rows != n || now->middle.cols != D) return;
    all->n_keys = (int)n_keys;
    memcpy(all->middle[now->layer], now->middle.data, n * D * sizeof(float));
    memcpy(all->stream[now->layer], now->stream.data, n * D * sizeof(float));
    for (size_t h = 0; h < A; h++)
        for (size_t i = 0; i < n; i++)
            memcpy(all->weights[now->layer][h][i], (const float *)now->weights.data + (h * n + i) * n_keys,
                   n_keys * sizeof(float));
    if (all->session) {
        float *to = &all->lens[now->layer][0][0];
        if (ml_session_lens(all->session, (const float *)now->stream.data, (int)n, to, &failure))
            all->calls = 99;
    }
    if (all->patch && all->patched == now->layer) memcpy(now->stream.data, all->patch, n * D * sizeof(float));
}

static ml_session_desc looking(seen_all *all) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    memset(all, 0, sizeof *all);
    if (all == &seen || all == &other) desc.look.on_layer = keep, desc.look.user = all;
    return desc;
}

static ml_session *open_session(const ml_model *model, const ml_session_desc *desc) {
    ml_session *session = NULL;
    if (ml_session_new(model, desc, &session, &failure)) printf("%s\n", failure.text), exit(2);
    return session;
}

static void some_tokens(int32_t *tokens, uint64_t seed) {
    ml_random random;
    ml_random_seed(&random, seed);
    for (int i = 0; i < N; i++) tokens[i] = (int32_t)(ml_random_u64(&random) % V);
}

/* ---- the plain formulas ---- */

static void plain_norm(double *y, const float *x, const ml_model *model, int layer) {
    const float *weight = (const float *)layer_tensor(model, layer, "attn_norm.weight")->data, *bias = NULL;
    double mean = 0, square = 0;
    if (model->config.norm == ML_NORM_LAYER)
        bias = (const float *)layer_tensor(model, layer, "attn_norm.bias")->data;
    for (int i = 0; bias && i < D; i++) mean += (double)x[i] / D;
    for (int i = 0; i < D; i++) square += ((double)x[i] - mean) * ((double)x[i] - mean) / D;
    for (int i = 0; i < D; i++)
        y[i] = ((double)x[i] - mean) / sqrt(square + (double)model->config.norm_eps) * (double)weight[i] +
               (bias ? (double)bias[i] : 0);
}

static void plain_product(double *y, const ml_model *model, int layer, const char *name, const double *x) {
    const ml_tensor *w = layer_tensor(model, layer, name);
    for (size_t i = 0; i < w->rows; i++) {
        y[i] = 0;
        for (size_t j = 0; j < w->cols; j++) y[i] += (double)((const float *)w->data)[i * w->cols + j] * x[j];
    }
}

static void plain_rotate(double *x, int n_heads, int position) {
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < HD / 2; j++) {
            double angle = position * pow(10000.0, -2.0 * j / HD), *pair = x + h * HD + 2 * j, a = pair[0];
            pair[0] = a * cos(angle) - pair[1] * sin(angle);
            pair[1] = a * sin(angle) + pair[1] * cos(angle);
        }
}

typedef struct plain_half {
    double q[N][D], k[N][KV * HD], v[N][KV * HD], weights[A][N][N], middle[N][D];
} plain_half;

static void plain_attention(plain_half *half, int is_full) {
    for (int h = 0; h < A; h++)
        for (int i = 0; i < N; i++) {
            double sum = 0, *p = half->weights[h][i];
            int n_keys = is_full ? N : i + 1, kv = h / (A / KV) * HD;
            memset(p, 0, sizeof half->weights[h][i]);
            for (int j = 0; j < n_keys; j++) {
                for (int d = 0; d < HD; d++) p[j] += half->q[i][h * HD + d] * half->k[j][kv + d];
                p[j] = exp(p[j] / sqrt(HD));
                sum += p[j];
            }
            for (int j = 0; j < n_keys; j++) p[j] /= sum;
        }
}

/* The first half of a layer over the stream that came in. */
static void plain_layer(plain_half *half, const ml_model *model, int layer, const float x[][D]) {
    for (int i = 0; i < N; i++) {
        double h[D];
        plain_norm(h, x[i], model, layer);
        plain_product(half->q[i], model, layer, "attn_q.weight", h);
        plain_product(half->k[i], model, layer, "attn_k.weight", h);
        plain_product(half->v[i], model, layer, "attn_v.weight", h);
        plain_rotate(half->q[i], A, i);
        plain_rotate(half->k[i], KV, i);
    }
    plain_attention(half, model->config.mask == ML_MASK_FULL);
    for (int i = 0; i < N; i++) {
        double a[D], y[D];
        for (int at = 0; at < D; at++) {
            int h = at / HD, kv = h / (A / KV) * HD + at % HD;
            a[at] = 0;
            for (int j = 0; j < N; j++) a[at] += half->weights[h][i][j] * half->v[j][kv];
        }
        plain_product(y, model, layer, "attn_output.weight", a);
        for (int d = 0; d < D; d++) half->middle[i][d] = (double)x[i][d] + y[d];
    }
}

/* Float sums of at most 40 products, through a softmax whose scores are up to about 10. */
#define TOLERANCE 2e-5

static void check_first_halves(const ml_model *model, const seen_all *all) {
    static plain_half half;
    for (int layer = 0; layer < L; layer++) {
        plain_layer(&half, model, layer, layer ? all->stream[layer - 1] : all->embedding);
        for (int h = 0; h < A; h++)
            for (int i = 0; i < N; i++) {
                double sum = 0;
                for (int j = 0; j < N; j++) {
                    CHECK_NEAR(all->weights[layer][h][i][j], half.weights[h][i][j], TOLERANCE, 0);
                    sum += (double)all->weights[layer][h][i][j];
                }
                CHECK_NEAR(sum, 1, 1e-6, 0);
            }
        for (int i = 0; i < N; i++)
            for (int d = 0; d < D; d++)
                CHECK_NEAR(all->middle[layer][i][d], half.middle[i][d], TOLERANCE, TOLERANCE);
    }
}

TEST(each_layer_shows_what_the_formulas_say) {
    int32_t tokens[N];
    some_tokens(tokens, 1);
    for (int kind = 0; kind < 3; kind++) {
        ml_model *model =
            new_model(kind == 1 ? ML_MASK_FULL : ML_MASK_CAUSAL, kind == 2 ? ML_NORM_LAYER : ML_NORM_RMS);
        ml_session_desc desc = looking(&seen);
        ml_session *session = open_session(model, &desc);
        const float *table = (const float *)tensor_named(model, "token_embd.weight")->data;
        REQUIRE(ml_session_eval(session, tokens, N, NULL, &failure) == ML_OK);
        CHECK(seen.calls == L + 1 && seen.past == 0 && seen.n == N && seen.n_keys == N);
        for (int i = 0; i <= L; i++) CHECK(seen.layers[i] == i - 1);
        for (int i = 0; i < N; i++)
            CHECK(memcmp(seen.embedding[i], table + tokens[i] * D, sizeof seen.embedding[i]) == 0);
        check_first_halves(model, &seen);
        ml_session_free(session);
        ml_model_free(model);
    }
}

/* W2 (silu(W1 h) * W3 h) of a row, added to what came before. */
TEST(the_second_half_adds_the_feed_forward_layer) {
    int32_t tokens[N];
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&seen);
    ml_session *session = open_session(model, &desc);
    some_tokens(tokens, 2);
    REQUIRE(ml_session_eval(session, tokens, N, NULL, &failure) == ML_OK);
    for (int layer = 0; layer < L; layer++) {
        const float *weight = (const float *)layer_tensor(model, layer, "ffn_norm.weight")->data;
        const float *x = seen.middle[layer][N - 1];
        double h[D], gate[H], up[H], y[D], square = 0;
        for (int i = 0; i < D; i++) square += (double)x[i] * (double)x[i] / D;
        for (int i = 0; i < D; i++)
            h[i] = (double)x[i] / sqrt(square + (double)model->config.norm_eps) * (double)weight[i];
        plain_product(gate, model, layer, "ffn_gate.weight", h);
        plain_product(up, model, layer, "ffn_up.weight", h);
        for (int i = 0; i < H; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        plain_product(y, model, layer, "ffn_down.weight", gate);
        for (int i = 0; i < D; i++)
            CHECK_NEAR(seen.stream[layer][N - 1][i], (double)x[i] + y[i], TOLERANCE, TOLERANCE);
    }
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- the lens ---- */

TEST(the_lens_over_the_last_stream_gives_the_logits) {
    static float logits[N][V], again[N][V];
    const ml_outputs out = {NULL, 0, NULL, &logits[0][0]};
    int32_t tokens[N];
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&seen);
    desc.max_seq_len = N; /* the lens must fit into the memory of the largest pass */
    ml_session *session = open_session(model, &desc);
    seen.session = session;
    some_tokens(tokens, 3);
    REQUIRE(ml_session_eval_outputs(session, tokens, N, &out, &failure) == ML_OK);
    REQUIRE(seen.calls == L + 1); /* 99: the lens failed */
    CHECK(memcmp(seen.lens[L - 1], logits, sizeof logits) == 0);
    for (int layer = 0; layer < L; layer++) { /* afterwards the same as while looking */
        CHECK(ml_session_lens(session, &seen.stream[layer][0][0], N, &again[0][0], &failure) == ML_OK);
        CHECK(memcmp(seen.lens[layer], again, sizeof again) == 0);
        CHECK((memcmp(again, logits, sizeof logits) == 0) == (layer == L - 1));
    }
    ml_session_free(session);
    ml_model_free(model);
}

TEST(the_lens_takes_max_batch_rows_of_a_model_with_an_output) {
    static float logits[SEQ][V], stream[SEQ][D];
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.max_batch = 4;
    ml_session *session = open_session(model, &desc);
    CHECK(ml_session_lens(session, &stream[0][0], 4, &logits[0][0], &failure) == ML_OK);
    CHECK(ml_session_lens(session, &stream[0][0], 5, &logits[0][0], &failure) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "n is 5, not in 1 to 4") != NULL);
    CHECK(ml_session_lens(session, &stream[0][0], 0, &logits[0][0], &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_lens(NULL, &stream[0][0], 1, &logits[0][0], &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_lens(session, NULL, 1, &logits[0][0], &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_lens(session, &stream[0][0], 1, NULL, &failure) == ML_ERROR_ARGUMENT);
    ml_session_free(session);
    ml_model_free(model);
}

/* Where queries and the feed-forward layer have fewer numbers than the stream, its rows are the most of a pass. */
TEST(the_lens_fits_a_narrow_model) {
    static float stream[32][64], logits[32][V];
    ml_config c;
    ml_random random;
    ml_model *model = NULL;
    memset(&c, 0, sizeof c), memset(stream, 0, sizeof stream);
    c.dim = 64, c.hidden_dim = 8, c.n_layers = c.n_heads = c.n_kv_heads = 1, c.head_dim = 2;
    c.vocab_size = V, c.max_seq_len = 32, c.tied_output = 1;
    ml_random_seed(&random, 4);
    REQUIRE(!create_model(&c, ML_F32, &random, NULL, &model, &failure));
    ml_session *session = open_session(model, NULL);
    CHECK(ml_session_lens(session, &stream[0][0], 32, &logits[0][0], &failure) == ML_OK);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- passes, batches, threads ---- */

TEST(looking_changes_no_bit_and_no_look_takes_no_memory) {
    int32_t tokens[N];
    size_t plain_size, looking_size;
    const float *plain, *looked;
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&seen), threads = desc;
    ml_session *with = open_session(model, &desc), *without = open_session(model, NULL), *three;
    some_tokens(tokens, 4);
    REQUIRE(!ml_session_eval(with, tokens, N, &looked, &failure));
    REQUIRE(!ml_session_eval(without, tokens, N, &plain, &failure));
    CHECK(memcmp(plain, looked, V * sizeof *plain) == 0);
    REQUIRE(!ml_session_size(model, NULL, &plain_size, &failure));
    REQUIRE(!ml_session_size(model, &desc, &looking_size, &failure));
    /* the weights and the middle of the stream, each rounded up to an alignment of at most 64 */
    size_t most = (A * SEQ * SEQ + SEQ * D) * sizeof(float);
    CHECK(looking_size >= plain_size + most && looking_size <= plain_size + most + 2 * 64);
    looking(&other);
    threads.threads.count = 3, threads.look.user = &other;
    three = open_session(model, &threads);
    REQUIRE(!ml_session_eval(three, tokens, N, NULL, &failure));
    CHECK(memcmp(seen.weights, other.weights, sizeof seen.weights) == 0);
    CHECK(memcmp(seen.stream, other.stream, sizeof seen.stream) == 0);
    ml_session_free(with);
    ml_session_free(without);
    ml_session_free(three);
    ml_model_free(model);
}

TEST(a_sequence_in_several_passes_shows_the_same_weights) {
    int32_t tokens[N];
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&seen), small = looking(&other);
    small.max_batch = 2;
    ml_session *whole = open_session(model, &desc), *parts = open_session(model, &small);
    some_tokens(tokens, 5);
    REQUIRE(!ml_session_eval(whole, tokens, N, NULL, &failure));
    REQUIRE(!ml_session_eval(parts, tokens, N, NULL, &failure)); /* 2 + 2 + 2 + 2 + 1 */
    CHECK(other.calls == 5 * (L + 1) && other.past == N - 1 && other.n == 1 && other.n_keys == N);
    for (int layer = 0; layer < L; layer++)
        for (int h = 0; h < A; h++)
            for (int j = 0; j < N; j++)
                CHECK_NEAR(other.weights[layer][h][0][j], seen.weights[layer][h][N - 1][j], TOLERANCE, 0);
    ml_session_free(whole);
    ml_session_free(parts);
    ml_model_free(model);
}

TEST(rows_of_a_batch_see_their_own_keys) {
    static float logits[N][V];
    const int32_t row_start[3] = {0, 4, N};
    const ml_outputs out = {NULL, 0, NULL, &logits[0][0]};
    int32_t tokens[N];
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&seen), alone = looking(&other);
    ml_session *session = open_session(model, &desc), *row = open_session(model, &alone);
    some_tokens(tokens, 6);
    ml_batch batch = {tokens, N, row_start, 2, NULL, NULL, 0};
    REQUIRE(!ml_session_eval_batch(session, &batch, &out, &failure));
    CHECK(seen.calls == L + 1 && seen.n == N && seen.n_keys == N - 4 && seen.past == 0);
    REQUIRE(!ml_session_eval(row, tokens + 4, N - 4, NULL, &failure)); /* the second row */
    for (int layer = 0; layer < L; layer++)
        for (int h = 0; h < A; h++)
            for (int i = 0; i < N - 4; i++)
                for (int j = 0; j < N - 4; j++)
                    CHECK_NEAR(seen.weights[layer][h][4 + i][j], other.weights[layer][h][i][j], TOLERANCE, 0);
    CHECK(seen.weights[0][0][3][4] == 0); /* the first row has no fifth key */
    ml_session_free(session);
    ml_session_free(row);
    ml_model_free(model);
}

TEST(what_is_written_into_the_stream_is_read_by_the_next_layer) {
    int32_t tokens[N], others[N];
    const float *clean, *patched;
    ml_model *model = new_model(ML_MASK_CAUSAL, ML_NORM_RMS);
    ml_session_desc desc = looking(&other), patching = looking(&seen);
    ml_session *first = open_session(model, &desc), *second = open_session(model, &patching);
    some_tokens(tokens, 7);
    some_tokens(others, 8);
    REQUIRE(!ml_session_eval(first, tokens, N, &clean, &failure));
    seen.patch = &other.stream[1][0][0], seen.patched = 1;
    REQUIRE(!ml_session_eval(second, others, N, &patched, &failure));
    CHECK(memcmp(clean, patched, V * sizeof *clean) == 0);
    CHECK(memcmp(seen.stream[1], other.stream[1], sizeof seen.stream[1]) != 0); /* before the patch */
    CHECK(memcmp(seen.weights[2], other.weights[2], sizeof seen.weights[2]) == 0);
    ml_session_free(first);
    ml_session_free(second);
    ml_model_free(model);
}

int main(void) {
    RUN(each_layer_shows_what_the_formulas_say);
    RUN(the_second_half_adds_the_feed_forward_layer);
    RUN(the_lens_over_the_last_stream_gives_the_logits);
    RUN(the_lens_takes_max_batch_rows_of_a_model_with_an_output);
    RUN(the_lens_fits_a_narrow_model);
    RUN(looking_changes_no_bit_and_no_look_takes_no_memory);
    RUN(a_sequence_in_several_passes_shows_the_same_weights);
    RUN(rows_of_a_batch_see_their_own_keys);
    RUN(what_is_written_into_the_stream_is_read_by_the_next_layer);
    return test_report("test_look");
}
