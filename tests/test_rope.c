/* Models that differ from the first Llama: rotary positions that reach further, heads of a size of their own,
   windows, biases of attention. The expected values are those of a plain forward pass in doubles, and of PyTorch. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "models.h"
#include "folder.h"
#include "shared.h"

enum { MAX_TOKENS = 320, MAX_DIM = 32 };

/* ---- the plain forward pass ---- */

static const double two_pi = 6.28318530717958647692;

/* The frequency of pair j in a pass over n positions, by the papers' and Meta's formulas. */
static double plain_frequency(const ml_config *c, int j, int n) {
    double hd = c->head_dim, theta = (double)c->rope_theta, s = (double)c->rope_scale;
    double original = c->rope_original;
    if (c->rope_kind == ML_ROPE_NTK) theta *= pow(s, hd / (hd - 2));
    if (c->rope_kind == ML_ROPE_DYNAMIC && n > original)
        theta *= pow(s * n / original - (s - 1), hd / (hd - 2));
    double f = pow(theta, -2.0 * j / hd), wavelength = two_pi / f;
    if (c->rope_kind == ML_ROPE_PLAIN) return f / s;
    if (c->rope_kind == ML_ROPE_LLAMA3) {
        double low = (double)c->rope_low, high = (double)c->rope_high;
        double smooth = (original / wavelength - low) / (high - low);
        if (wavelength < original / high) return f;
        if (wavelength > original / low) return f / s;
        return (1 - smooth) * f / s + smooth * f;
    }
    if (c->rope_kind == ML_ROPE_YARN) {
        double low = floor(hd * log(original / ((double)c->rope_high * two_pi)) / (2 * log(theta)));
        double high = ceil(hd * log(original / ((double)c->rope_low * two_pi)) / (2 * log(theta)));
        low = low < 0 ? 0 : low, high = high > hd - 1 ? hd - 1 : high;
        double ramp = (j - low) / (high > low ? high - low : .001);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        return f / s * ramp + f * (1 - ramp);
    }
    return f;
}

/* y (n, out) = x (n, in) w^T + b; no data: no bias */
static void plain_linear(double *y, const double *x, int n, const ml_tensor *w, const ml_tensor *b) {
    int out = (int)w->rows, in = (int)w->cols;
    for (int i = 0; i < n; i++)
        for (int o = 0; o < out; o++) {
            double sum = b ? (double)((const float *)b->data)[o] : 0;
            for (int k = 0; k < in; k++) sum += x[i * in + k] * (double)((const float *)w->data)[o * in + k];
            y[i * out + o] = sum;
        }
}

static void plain_norm(double *y, const double *x, int n, int dim, const ml_tensor *w, double eps) {
    for (int i = 0; i < n; i++) {
        double square = 0;
        for (int k = 0; k < dim; k++) square += x[i * dim + k] * x[i * dim + k] / dim;
        for (int k = 0; k < dim; k++)
            y[i * dim + k] = x[i * dim + k] / sqrt(square + eps) * (double)((const float *)w->data)[k];
    }
}

static void plain_rotate(double *x, int n, int heads, const ml_model *m, int n_positions) {
    const ml_config *c = &m->config;
    int hd = c->head_dim;
    for (int i = 0; i < n; i++)
        for (int h = 0; h < heads; h++)
            for (int j = 0; j < hd / 2; j++) {
                double *pair = x + (i * heads + h) * hd + 2 * j, a = pair[0], b = pair[1];
                double divisor = m->rope_factors ? (double)m->rope_factors[j] : 1;
                double angle = i * plain_frequency(c, j, n_positions) / divisor,
                       length = (double)c->rope_attention;
                pair[0] = length * (a * cos(angle) - b * sin(angle));
                pair[1] = length * (a * sin(angle) + b * cos(angle));
            }
}

static void plain_attention(double *out, const double *q, const double *k, const double *v, int n,
                            const ml_config *c) {
    int hd = c->head_dim, group = c->n_heads / c->n_kv_heads, window = c->window ? c->window : n;
    static double p[MAX_TOKENS];
    for (int i = 0; i < n; i++)
        for (int h = 0; h < c->n_heads; h++) {
            int from = i - window + 1 > 0 ? i - window + 1 : 0, to = i + 1;
            double sum = 0, most = -1e300;
            if (c->mask == ML_MASK_FULL) to = i + window < n ? i + window : n;
            for (int t = from; t < to; t++) {
                p[t] = 0;
                for (int d = 0; d < hd; d++)
                    p[t] += q[(i * c->n_heads + h) * hd + d] * k[(t * c->n_kv_heads + h / group) * hd + d];
                p[t] /= sqrt((double)hd);
                most = p[t] > most ? p[t] : most;
            }
            for (int t = from; t < to; t++) sum += p[t] = exp(p[t] - most);
            for (int d = 0; d < hd; d++) {
                double *o = &out[(i * c->n_heads + h) * hd + d];
                *o = 0;
                for (int t = from; t < to; t++)
                    *o += p[t] / sum * v[(t * c->n_kv_heads + h / group) * hd + d];
            }
        }
}

static const ml_tensor *bias_of(const ml_model *m, int layer, const char *name) {
    return m->config.attention_bias ? layer_tensor(m, layer, name) : NULL;
}

/* hidden (n, dim) of a table of n_positions */
static void plain_forward(const ml_model *m, const int32_t *tokens, int n, int n_positions, double *hidden) {
    enum { WIDE = MAX_TOKENS * 2 * MAX_DIM };
    static double x[WIDE], h[WIDE], q[WIDE], k[WIDE], v[WIDE], a[WIDE], y[WIDE];
    const ml_config *c = &m->config;
    double eps = (double)c->norm_eps;
    for (int i = 0; i < n * c->dim; i++)
        x[i] = (double)((const float *)m->tensors[0].data)[tokens[i / c->dim] * c->dim + i % c->dim];
    for (int l = 0; l < c->n_layers; l++) {
        plain_norm(h, x, n, c->dim, layer_tensor(m, l, "attn_norm.weight"), eps);
        plain_linear(q, h, n, layer_tensor(m, l, "attn_q.weight"), bias_of(m, l, "attn_q.bias"));
        plain_linear(k, h, n, layer_tensor(m, l, "attn_k.weight"), bias_of(m, l, "attn_k.bias"));
        plain_linear(v, h, n, layer_tensor(m, l, "attn_v.weight"), bias_of(m, l, "attn_v.bias"));
        plain_rotate(q, n, c->n_heads, m, n_positions);
        plain_rotate(k, n, c->n_kv_heads, m, n_positions);
        plain_attention(a, q, k, v, n, c);
        plain_linear(y, a, n, layer_tensor(m, l, "attn_output.weight"), bias_of(m, l, "attn_output.bias"));
        for (int i = 0; i < n * c->dim; i++) x[i] += y[i];
        plain_norm(h, x, n, c->dim, layer_tensor(m, l, "ffn_norm.weight"), eps);
        plain_linear(q, h, n, layer_tensor(m, l, "ffn_gate.weight"), NULL);
        plain_linear(k, h, n, layer_tensor(m, l, "ffn_up.weight"), NULL);
        for (int i = 0; i < n * c->hidden_dim; i++) q[i] = q[i] / (1 + exp(-q[i])) * k[i];
        plain_linear(y, q, n, layer_tensor(m, l, "ffn_down.weight"), NULL);
        for (int i = 0; i < n * c->dim; i++) x[i] += y[i];
    }
    plain_norm(hidden, x, n, c->dim, tensor_named(m, "output_norm.weight"), eps);
}

/* ---- models ---- */

static ml_config base_config(void) {
    ml_config c = {.dim = 16, .hidden_dim = 20, .n_layers = 2, .n_heads = 4, .n_kv_heads = 2};
    c.vocab_size = 32, c.max_seq_len = MAX_TOKENS, c.tied_output = 1, c.rope_theta = 200;
    return c;
}

/* A model whose weights are large enough for positions and keys to matter, and whose biases are not 0. */
static ml_model *make(ml_config c) {
    ml_model *model = NULL;
    ml_error error;
    ml_random random;
    ml_random_seed(&random, 7);
    ml_result result = create_model(&c, ML_F32, &random, NULL, &model, &error);
    if (result) printf("%s\n", error.text);
    CHECK(!result);
    for (int i = 0; model && i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        int is_vector = t->rows == 1;
        float *x = (float *)t->data;
        if (i == 3 || !x) continue; /* the output is the embedding */
        for (size_t k = 0; k < t->rows * t->cols; k++)
            x[k] = (is_vector && i < mli_first_bias(&model->config) ? 1.0f : 0) +
                   0.4f * ml_random_normal(&random);
    }
    return model;
}

static const int32_t *some_tokens(void) {
    static int32_t tokens[MAX_TOKENS];
    ml_random random;
    ml_random_seed(&random, 3);
    for (int i = 0; i < MAX_TOKENS; i++) tokens[i] = (int32_t)(ml_random_u64(&random) % 32);
    return tokens;
}

static ml_session *open_session(const ml_model *model, int max_seq_len, int max_batch) {
    ml_session_desc desc;
    ml_session *session = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = max_seq_len, desc.max_batch = max_batch;
    CHECK(ml_session_new(model, &desc, &session, &error) == ML_OK);
    return session;
}

/* Reads `n` tokens from `begin` on, `step` at a time, into hidden (all tokens, dim). */
static void read_tokens(ml_session *session, const int32_t *tokens, int begin, int n, int step,
                        float *hidden) {
    ml_error error;
    int dim = session->model->config.dim;
    for (int at = begin, m; at < begin + n; at += m) {
        m = begin + n - at < step ? begin + n - at : step;
        ml_outputs out = {NULL, 0, hidden + at * dim, NULL};
        ml_result result = ml_session_eval_outputs(session, tokens + at, m, &out, &error);
        if (result) printf("%s\n", error.text);
        CHECK(!result);
    }
}

/* Hidden states are of size 1; an F32 angle of up to 320 is off by up to 1.5e-5. */
static int is_near(const float *hidden, const double *expected, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) {
        double d = fabs((double)hidden[i] - expected[i]);
        if (!(d <= most)) most = d;
    }
    if (!(most < 2e-4)) printf("off by %g\n", most);
    return most < 2e-4;
}

/* A session that reads in several ways, and a batch, give the plain hidden states. */
static void check_model(const ml_model *model, int n) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    static const int steps[][2] = {{1, 1}, {3, 64}, {MAX_TOKENS, 64}, {MAX_TOKENS, MAX_TOKENS}, {40, 7}};
    const int32_t *tokens = some_tokens();
    const ml_config *c = &model->config;
    plain_forward(model, tokens, n, n, expected);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        ml_session *session = open_session(model, n, steps[i][1] > n ? n : steps[i][1]);
        if (c->mask == ML_MASK_FULL && i != 3) { /* what comes later changes it */
            ml_session_free(session);
            continue;
        }
        read_tokens(session, tokens, 0, n, steps[i][0], hidden);
        CHECK(is_near(hidden, expected, n * c->dim));
        ml_session_free(session);
    }
    ml_session *session = open_session(model, n, n);
    ml_batch batch = {tokens, n, NULL, 0, NULL, NULL, 0};
    ml_outputs out = {NULL, 0, hidden, NULL};
    CHECK(ml_session_eval_batch(session, &batch, &out, NULL) == ML_OK);
    CHECK(is_near(hidden, expected, n * c->dim));
    ml_session_free(session);
}

/* ---- the ways in which a model may differ ---- */

enum { VARIANTS = 12 };
static ml_config variant(int i) {
    ml_config c = base_config();
    if (i == 0) c.rope_scale = 3;
    if (i == 1) c.rope_kind = ML_ROPE_NTK, c.rope_scale = 3;
    if (i == 2) c.rope_kind = ML_ROPE_YARN, c.rope_scale = 4, c.rope_original = 64, c.head_dim = 12;
    if (i == 3)
        c.rope_kind = ML_ROPE_YARN, c.rope_scale = 4, c.rope_original = 64, c.rope_low = 2, c.rope_high = 9;
    if (i == 3) c.rope_attention = 1.5f, c.head_dim = 16;
    if (i == 4) c.rope_kind = ML_ROPE_LLAMA3, c.rope_scale = 8, c.rope_original = 64, c.head_dim = 16;
    if (i == 5) c.rope_kind = ML_ROPE_DYNAMIC, c.rope_scale = 2, c.rope_original = 50;
    if (i == 6) c.head_dim = 6;
    if (i == 7) c.head_dim = 2, c.n_kv_heads = 4;
    if (i == 8) c.attention_bias = 1, c.head_dim = 6;
    if (i == 9) c.window = 9;
    if (i == 10) c.window = 70, c.attention_bias = 1;
    if (i == 11) c.window = 11, c.mask = ML_MASK_FULL;
    return c;
}

TEST(variants_in_plain_loops) {
    for (int i = 0; i < VARIANTS; i++) {
        ml_model *model = make(variant(i));
        REQUIRE(model);
        check_model(model, i == 10 ? MAX_TOKENS : 200);
        ml_model_free(model);
    }
}

/* The formulas again as Hugging Face's library has them, which writes YaRN and Llama 3 in other words. In PyTorch:

       d, theta, s, n0 = 16, 500000., 8., 8192                # llama3
       f = 1 / theta ** (torch.arange(0, d, 2).double() / d)
       wave, low, high = 2 * math.pi / f, n0 / 1., n0 / 4.
       smooth = (n0 / wave - 1) / (4 - 1)
       g = torch.where(wave > low, f / s, f)
       mixed = (1 - smooth) * g / s + smooth * g              # of g, not f: it is f where this is used
       print(torch.where((wave >= high) & (wave <= low), mixed, g))

       d, theta, s, n0 = 16, 10000., 4., 256                  # yarn
       f = 1 / theta ** (torch.arange(0, d, 2).double() / d)
       dim = lambda turns: d * math.log(n0 / (turns * 2 * math.pi)) / (2 * math.log(theta))
       lo, hi = max(math.floor(dim(32)), 0), min(math.ceil(dim(1)), d - 1)
       keep = 1 - ((torch.arange(d // 2).double() - lo) / (hi - lo)).clamp(0, 1)
       print(f / s * (1 - keep) + f * keep)

       d, theta, s, n0, n = 8, 10000., 2., 64, 200            # dynamic
       base = theta * (s * n / n0 - (s - 1)) ** (d / (d - 2))
       print(1 / base ** (torch.arange(0, d, 2).double() / d))  */
TEST(frequencies_against_pytorch) {
    static const double llama3[8] = {1,
                                     0.1939227447,
                                     0.03760603093,
                                     0.007292664737,
                                     0.000524846161,
                                     3.428102196e-05,
                                     6.647869871e-06,
                                     1.289173172e-06};
    static const double yarn[8] = {1,      0.2569350599,   0.0625,  0.01383496476,
                                   0.0025, 0.000790569415, 0.00025, 7.90569415e-05};
    static const double dynamic[4] = {1, 0.05753695827, 0.003310501567, 0.0001904761905};
    const ml_rope_desc descs[3] = {{ML_ROPE_LLAMA3, 16, 500000, 8, 8192, 0, 0, 0, NULL},
                                   {ML_ROPE_YARN, 16, 10000, 4, 256, 0, 0, 1, NULL},
                                   {ML_ROPE_DYNAMIC, 8, 10000, 2, 64, 0, 0, 0, NULL}};
    const double *expected[3] = {llama3, yarn, dynamic};
    static float table[200 * 16];
    for (int i = 0; i < 3; i++) {
        size_t hd = descs[i].hd;
        CHECK(ml_rope_table(&descs[i], table, i == 2 ? 200 : 2) == ML_OK);
        for (size_t j = 0; j < hd / 2; j++) /* the angle at position 1 is the frequency */
            CHECK_NEAR(atan2((double)table[hd + 2 * j + 1], (double)table[hd + 2 * j]), expected[i][j], 1e-9,
                       1e-6);
    }
    CHECK(ml_rope_table(&descs[2], table, 64) == ML_OK); /* no longer than trained: plain */
    CHECK_NEAR(table[8 + 3], sin(0.1), 1e-6, 0);
}

/* ---- windows ---- */

static size_t session_bytes(const ml_model *model, int max_seq_len, int max_batch) {
    ml_session_desc desc;
    size_t size = 0;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = max_seq_len, desc.max_batch = max_batch;
    CHECK(ml_session_size(model, &desc, &size, NULL) == ML_OK);
    return size;
}

/* The cache does not grow with the context: what grows are ids (8 bytes a token) and rotations (hd floats). */
TEST(a_window_needs_a_cache_of_its_size) {
    ml_config c = variant(9);
    c.n_layers = 30;
    ml_model *with = make(c);
    c.window = 0;
    ml_model *without = make(c);
    size_t per_token = 8 + 4 * sizeof(float), cache = 30 * 2 * 8 * sizeof(float);
    size_t more = session_bytes(with, 20000, 16) - session_bytes(with, 10000, 16);
    CHECK(more < 10000 * (per_token + 16));
    CHECK(session_bytes(without, 20000, 16) - session_bytes(without, 10000, 16) >=
          10000 * (per_token + cache));
    ml_model_free(with);
    ml_model_free(without);
}

/* Taking tokens back: a few, of which the cache still has what it needs, and many, after which all is read again. */
TEST(truncating_with_a_window) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    static const int kept[] = {299, 295, 291, 250, 100, 8, 0};
    int32_t tokens[MAX_TOKENS];
    ml_model *model = make(variant(9));
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        ml_session *session = open_session(model, MAX_TOKENS, 16);
        memcpy(tokens, some_tokens(), sizeof tokens);
        read_tokens(session, tokens, 0, 300, 13, hidden);
        CHECK(session->private_part->first > 0);
        CHECK(ml_session_truncate(session, kept[i], NULL) == ML_OK);
        for (int t = kept[i]; t < MAX_TOKENS; t++) tokens[t] = 31 - tokens[t];
        read_tokens(session, tokens, kept[i], MAX_TOKENS - kept[i], 5, hidden);
        CHECK(session->length == MAX_TOKENS);
        plain_forward(model, tokens, MAX_TOKENS, MAX_TOKENS, expected);
        CHECK(is_near(hidden + kept[i] * 16, expected + kept[i] * 16, (MAX_TOKENS - kept[i]) * 16));
        ml_session_free(session);
    }
    ml_model_free(model);
}

/* A copy, also into a session with another cache, and one from saved bytes continue as the first does. */
TEST(copies_with_a_window) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    static const int held[] = {5, 60, 200, 250};
    const int32_t *tokens = some_tokens();
    ml_model *model = make(variant(9));
    plain_forward(model, tokens, MAX_TOKENS, MAX_TOKENS, expected);
    for (size_t i = 0; i < sizeof held / sizeof *held; i++)
        for (int other = 0; other < 4; other++) {
            int n = held[i], batch = other == 1 ? 200 : 16;
            ml_session *from = open_session(model, MAX_TOKENS, other == 3 ? 200 : 16),
                       *to = open_session(model, MAX_TOKENS, batch);
            read_tokens(from, tokens, 0, n, 7, hidden);
            if (other != 2) { /* onto something, with which it has a beginning in common */
                read_tokens(to, tokens, 0, 90, 90, hidden);
                read_tokens(to, tokens, 100, 110, 9, hidden);
                CHECK(ml_session_copy(to, from, NULL) == ML_OK);
            } else {
                size_t size = ml_session_save_size(from);
                void *saved = malloc(size);
                CHECK(size < 300 + 4 * (size_t)n + 2 * 2 * 80 * 8 * 4); /* no more than 80 rows */
                CHECK(ml_session_save(from, saved, size, NULL) == ML_OK);
                CHECK(ml_session_restore(to, saved, size, NULL) == ML_OK);
                free(saved);
            }
            CHECK(to->length == n);
            read_tokens(to, tokens, n, MAX_TOKENS - n, 11, hidden);
            CHECK(is_near(hidden + n * 16, expected + n * 16, (MAX_TOKENS - n) * 16));
            ml_session_free(from);
            ml_session_free(to);
        }
    ml_model_free(model);
}

/* A session whose cache moved is saved; hostile bytes in its header are refused. */
/* Keys that ML_ROPE_DYNAMIC turned for 32 positions are no keys of a session of 64, nor those under other factors. */
TEST(keys_of_another_length) {
    unsigned char saved[20000];
    float factors[8];
    ml_error error;
    for (int i = 0; i < 2; i++) {
        ml_config c = base_config();
        if (!i) c.rope_kind = ML_ROPE_DYNAMIC, c.rope_original = 16, c.rope_scale = 2;
        ml_model *model = make(c);
        ml_session *a = open_session(model, 32, 8), *b = open_session(model, i ? 32 : 64, 8);
        size_t size = ml_session_save_size(a);
        REQUIRE(a && b && ml_session_eval(a, some_tokens(), 3, NULL, NULL) == ML_OK);
        size = ml_session_save_size(a);
        REQUIRE(size <= sizeof saved && ml_session_save(a, saved, size, NULL) == ML_OK);
        CHECK(ml_session_restore(a, saved, size, &error) == ML_OK);
        if (i) {
            for (int j = 0; j < mli_head_size(&c) / 2; j++) factors[j] = 1 + (float)j;
            model->rope_factors = factors;
        } else {
            CHECK(ml_session_copy(b, a, &error) == ML_ERROR_MISMATCH && !b->length);
            CHECK(strstr(error.text, "ML_ROPE_DYNAMIC turns keys differently for 32 and 64 positions") !=
                  NULL);
        }
        CHECK(ml_session_restore(b, saved, size, &error) == ML_ERROR_MISMATCH && !b->length);
        model->rope_factors = NULL;
        ml_session_free(a), ml_session_free(b);
        ml_model_free(model);
    }
}

/* A model of 64 positions, trained for 16. */
static ml_model *make_dynamic(void) {
    ml_config c = base_config();
    c.max_seq_len = 64, c.rope_kind = ML_ROPE_DYNAMIC, c.rope_original = 16, c.rope_scale = 2;
    return make(c);
}

/* How long rows may be changes nothing: a trainer learns the network that a session computes. */
TEST(dynamic_positions_of_a_trainer) {
    ml_model *model = make_dynamic();
    ml_session *session = open_session(model, 0, 0);
    const int32_t *tokens = some_tokens();
    ml_batch batch = {tokens, 8, NULL, 0, tokens + 1, NULL, 0};
    ml_likelihood_desc desc;
    ml_likelihood likelihood;
    float loss[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        ml_trainer_desc train;
        ml_trainer *trainer = NULL;
        memset(&train, 0, sizeof train);
        train.max_tokens = 64, train.max_row = i ? 64 : 8, train.adamw.lr = 1e-3f;
        REQUIRE(ml_trainer_new(model, &train, &trainer, NULL) == ML_OK);
        CHECK(ml_trainer_eval(trainer, &batch, NULL, &loss[i], NULL) == ML_OK);
        ml_trainer_free(trainer);
    }
    CHECK(loss[0] == loss[1]);
    memset(&desc, 0, sizeof desc);
    desc.context_ids.ids = tokens, desc.context_ids.n = 1;
    desc.continuation_ids.ids = tokens + 1, desc.continuation_ids.n = 8;
    REQUIRE(ml_session_likelihood(session, &desc, &likelihood, NULL) == ML_OK);
    CHECK_NEAR(loss[0], -likelihood.sum / 8, 1e-5, 1e-5);
    ml_session_free(session);
    ml_model_free(model);
}

/* With the model's own table a row is the same beside a longer one. */
TEST(dynamic_positions_of_a_graph) {
    static unsigned char memory[1 << 20];
    static const int32_t starts[] = {0, 8, 48};
    float alone[8 * MAX_DIM];
    ml_model *model = make_dynamic();
    ml_graph *g = NULL;
    REQUIRE(ml_graph_init(NULL, memory, sizeof memory, &g, NULL) == ML_OK);
    for (int n_rows = 1; n_rows <= 2; n_rows++) {
        ml_batch batch = {some_tokens(), starts[n_rows], starts, n_rows, NULL, NULL, 0};
        ml_llama_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.model = model, desc.batch = &batch;
        ml_graph_begin(g, 0);
        const float *hidden = (const float *)ml_llama(g, &desc).data;
        REQUIRE(ml_graph_end(g, NULL) == ML_OK);
        for (int i = 0; i < 8 * 16; i++)
            if (n_rows == 1)
                alone[i] = hidden[i];
            else
                CHECK_NEAR(hidden[i], alone[i], 1e-5, 1e-5);
    }
    ml_graph_free(g);
    ml_model_free(model);
}

TEST(saved_windows_that_are_refused) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static const int32_t wrong[][2] = {{-1, 200}, {150, 149}, {0, 201},
                                       {0, 200},  {184, 201}, {0x7fffffff, 0x7fffffff}};
    ml_model *model = make(variant(9));
    ml_session *session = open_session(model, MAX_TOKENS, 16);
    read_tokens(session, some_tokens(), 0, 200, 200, hidden);
    size_t size = ml_session_save_size(session), at = sizeof(mli_saved_header) - 8;
    unsigned char *saved = (unsigned char *)malloc(size), *copy = (unsigned char *)malloc(size);
    CHECK(ml_session_save(session, saved, size, NULL) == ML_OK);
    CHECK(saved[at] == 183 && saved[at + 4] == 200); /* little-endian everywhere */
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(copy, saved, size);
        for (size_t j = 0; j < 8; j++) copy[at + j] = (unsigned char)((uint32_t)wrong[i][j / 4] >> j % 4 * 8);
        CHECK(ml_session_restore(session, copy, size, NULL) != ML_OK);
    }
    CHECK(session->length == 200 && ml_session_restore(session, saved, size, NULL) == ML_OK);
    free(saved);
    free(copy);
    ml_session_free(session);
    ml_model_free(model);
}

/* The likelihood of a continuation, computed anew and with a session that holds something else. */
TEST(likelihood_with_a_window) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    const int32_t *tokens = some_tokens();
    ml_model *model = make(variant(9));
    const float *embedding = (const float *)model->tensors[0].data;
    ml_session *session = open_session(model, MAX_TOKENS, 16);
    plain_forward(model, tokens, 260, MAX_TOKENS, expected);
    double sum = 0;
    for (int i = 239; i < 259; i++) {
        double logits[32], most = -1e300, total = 0;
        for (int v = 0; v < 32; v++) {
            logits[v] = 0;
            for (int d = 0; d < 16; d++) logits[v] += expected[i * 16 + d] * (double)embedding[v * 16 + d];
            most = logits[v] > most ? logits[v] : most;
        }
        for (int v = 0; v < 32; v++) total += exp(logits[v] - most);
        sum += logits[tokens[i + 1]] - most - log(total);
    }
    for (int turn = 0; turn < 3; turn++) {
        ml_likelihood_desc desc;
        ml_likelihood result;
        memset(&desc, 0, sizeof desc);
        desc.context_ids.ids = tokens, desc.context_ids.n = 240;
        desc.continuation_ids.ids = tokens + 240, desc.continuation_ids.n = 20;
        if (turn == 2) read_tokens(session, tokens, 3, 40, 40, hidden);
        CHECK(ml_session_likelihood(session, &desc, &result, NULL) == ML_OK);
        CHECK_NEAR(result.sum, sum, 1e-3, 1e-5);
    }
    ml_session_free(session);
    ml_model_free(model);
}

/* Writing on when the context is full drops the oldest half and reads the rest again. */
TEST(sliding_with_a_window) {
    ml_model *model = make(variant(9));
    ml_session *session = open_session(model, 120, 16), *again = open_session(model, 120, 16);
    ml_generate_desc desc;
    ml_generated out;
    const float *logits, *expected;
    memset(&desc, 0, sizeof desc);
    desc.prompt_ids.ids = some_tokens(), desc.prompt_ids.n = 100;
    desc.max_new_tokens = 150, desc.overflow = ML_OVERFLOW_SLIDE;
    CHECK(ml_session_generate(session, &desc, &out, NULL) == ML_OK && out.n_new == 150);
    int32_t last = session->tokens[session->length - 1];
    CHECK(ml_session_eval(again, session->tokens, session->length, &expected, NULL) == ML_OK);
    CHECK(ml_session_truncate(session, session->length - 1, NULL) == ML_OK);
    CHECK(ml_session_eval(session, &last, 1, &logits, NULL) == ML_OK);
    for (int v = 0; v < 32; v++) CHECK_NEAR(logits[v], expected[v], 1e-4, 0);
    ml_session_free(session);
    ml_session_free(again);
    ml_model_free(model);
}

static struct { int n, wrong; } looked;

static void look(void *user, const ml_seen *seen) {
    const float *p = (const float *)seen->weights.data;
    int window = *(const int *)user, n = (int)seen->stream.rows, S = (int)seen->weights.cols;
    for (int i = 0; seen->layer >= 0 && i < n; i++, p += S) { /* of the first head */
        double sum = 0;
        for (int t = 0; t < S; t++) {
            int is_seen = t <= seen->past + i && t > seen->past + i - window;
            looked.wrong += is_seen != (p[t] > 0);
            sum += (double)p[t];
        }
        looked.wrong += !(fabs(sum - 1) < 1e-5);
        looked.n++;
    }
}

TEST(looking_through_a_window) {
    ml_model *model = make(variant(9));
    ml_session *session;
    ml_session_desc desc;
    int window = 9;
    static float hidden[MAX_TOKENS * MAX_DIM];
    memset(&desc, 0, sizeof desc);
    desc.max_batch = 16;
    desc.look.on_layer = look, desc.look.user = &window;
    REQUIRE(ml_session_new(model, &desc, &session, NULL) == ML_OK);
    read_tokens(session, some_tokens(), 0, 300, 20, hidden);
    CHECK(looked.n == 2 * 300 && looked.wrong == 0);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- learning ---- */

static struct {
    ml_model *model;
    ml_tensor *weights;
} learner;

static ml_tensor learner_loss(ml_graph *g, void *user) {
    static const int32_t row_start[] = {0, 17, 40};
    static int32_t targets[40];
    const int32_t *tokens = some_tokens();
    for (int i = 0; i < 40; i++) targets[i] = tokens[i + 1];
    ml_batch batch = {tokens, 40, row_start, 2, NULL, NULL, 0};
    ml_llama_desc desc;
    ml_loss_desc loss;
    memset(&desc, 0, sizeof desc);
    memset(&loss, 0, sizeof loss);
    desc.model = learner.model, desc.weights = learner.weights, desc.batch = &batch;
    desc.checkpointing = *(int *)user;
    loss.targets = targets;
    return ml_linear_cross_entropy(g, ml_llama(g, &desc), learner.weights[3], ml_none(), &loss);
}

/* The gradient of every tensor against finite differences. */
TEST(gradients) {
    static const int chosen[] = {2, 5, 8, 9, 10};
    for (size_t k = 0; k < sizeof chosen / sizeof *chosen; k++) {
        ml_config c = variant(chosen[k]);
        c.tied_output = 0;
        learner.model = make(c);
        int n = learner.model->n_tensors, n_checked = 0, checkpointing = (int)k % 2;
        learner.weights = (ml_tensor *)malloc((size_t)n * sizeof(ml_tensor));
        const ml_tensor **list = (const ml_tensor **)malloc((size_t)n * sizeof *list);
        for (int i = 0; i < n; i++) {
            ml_tensor *w = &learner.weights[i];
            *w = learner.model->tensors[i];
            if (w->data) w->grad = (float *)calloc(w->rows * w->cols, sizeof(float));
            if (w->data) list[n_checked++] = w;
            for (size_t j = 0; w->data && j < w->rows * w->cols; j++)
                ((float *)w->data)[j] *= 0.6f; /* smoother */
        }
        ml_graph *graph;
        ml_error error;
        ml_random random;
        ml_random_seed(&random, 5);
        double worst = 1;
        ml_check_desc check;
        memset(&check, 0, sizeof check);
        check.build = learner_loss, check.user = &checkpointing, check.random = &random;
        check.tensors = list, check.n_tensors = n_checked, check.n_directions = 2;
        REQUIRE(ml_graph_new(NULL, learner_loss, &checkpointing, &graph, &error) == ML_OK);
        CHECK(ml_check_gradient(graph, &check, &worst, &error) == ML_OK);
        CHECK_NEAR(worst, 0, 0.01, 0);
        CHECK(n_checked == 3 + 2 * (c.attention_bias ? 13 : 9));
        ml_graph_free(graph);
        for (int i = 0; i < n; i++) free(learner.weights[i].grad);
        free(learner.weights);
        free(list);
        ml_model_free(learner.model);
    }
}

/* Where nothing learns but biases (Ben Zaken et al. 2022, "BitFit"), they have the gradients that they have
   otherwise. */
TEST(biases_alone) {
    static float gradients[2][6];
    for (int alone = 0; alone < 2; alone++) {
        ml_config c = variant(8);
        ml_graph *graph;
        ml_error error;
        int checkpointing = 0;
        c.tied_output = 0;
        learner.model = make(c);
        int n = learner.model->n_tensors;
        learner.weights = (ml_tensor *)calloc((size_t)n, sizeof(ml_tensor));
        for (int i = 0; i < n; i++) {
            ml_tensor *w = &learner.weights[i];
            *w = learner.model->tensors[i];
            if (w->data && (!alone || i >= mli_first_bias(&learner.model->config)))
                w->grad = (float *)calloc(w->rows * w->cols, sizeof(float));
        }
        REQUIRE(ml_graph_new(NULL, learner_loss, &checkpointing, &graph, &error) == ML_OK);
        ml_graph_begin(graph, 1);
        CHECK(ml_graph_backward(graph, learner_loss(graph, &checkpointing), &error) == ML_OK);
        float *gradient = learner.weights[tensor_index(learner.model, "blk.0.attn_q.bias")].grad;
        memcpy(gradients[alone], gradient, sizeof gradients[alone]);
        CHECK(gradient[0] != 0);
        ml_graph_free(graph);
        for (int i = 0; i < n; i++) free(learner.weights[i].grad);
        free(learner.weights);
        ml_model_free(learner.model);
    }
    CHECK(memcmp(gradients[0], gradients[1], sizeof gradients[0]) == 0);
}

/* A trainer changes the biases, and its checkpoint restores them; with an adapter they stay. */
TEST(training_biases) {
    int32_t targets[40];
    const int32_t *tokens = some_tokens();
    for (int i = 0; i < 40; i++) targets[i] = tokens[i + 1];
    for (int with_lora = 0; with_lora < 2; with_lora++) {
        ml_model *model = make(variant(8)), *other = make(variant(8));
        ml_batch batch = {tokens, 40, NULL, 0, targets, NULL, 0};
        ml_trainer *trainer, *restored;
        ml_trainer_desc desc;
        ml_error error;
        ml_lora *lora = NULL;
        ml_random random;
        float loss[5], old[6 * 4];
        ml_random_seed(&random, 1);
        memset(&desc, 0, sizeof desc);
        desc.max_tokens = 40, desc.adamw.lr = 0.01f;
        ml_lora_create_desc thin = {.rank = 2, .random = &random};
        if (with_lora) CHECK(ml_lora_create(model, &thin, &lora, &error) == ML_OK);
        desc.lora = lora;
        const float *bias = (const float *)layer_tensor(model, 1, "attn_q.bias")->data;
        memcpy(old, bias, sizeof old);
        REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
        for (int step = 0; step < 5; step++) {
            CHECK(ml_trainer_backward(trainer, &batch, NULL, &loss[step], &error) == ML_OK);
            CHECK(ml_trainer_step(trainer, &error) == ML_OK);
        }
        CHECK(loss[4] < loss[0]);
        CHECK((memcmp(old, bias, sizeof old) == 0) == with_lora);
        if (!with_lora) {
            CHECK(ml_trainer_save(trainer, in_folder("checkpoint.gguf"), &error) == ML_OK);
            REQUIRE(ml_trainer_new(other, &desc, &restored, &error) == ML_OK);
            CHECK(ml_trainer_restore(restored, in_folder("checkpoint.gguf"), &error) == ML_OK);
            CHECK(memcmp(layer_tensor(other, 1, "attn_q.bias")->data, bias, sizeof old) == 0);
            ml_trainer_free(restored);
        }
        ml_trainer_free(trainer);
        ml_lora_free(lora);
        ml_model_free(model);
        ml_model_free(other);
    }
}

/* ---- files ---- */

static int same_weights(const ml_model *a, const ml_model *b) {
    int same = a->n_tensors == b->n_tensors;
    for (int i = 0; same && i < a->n_tensors; i++) {
        const ml_tensor *x = &a->tensors[i], *y = &b->tensors[i];
        same = x->rows == y->rows && x->cols == y->cols && !x->data == !y->data &&
               (!x->data || memcmp(x->data, y->data, x->rows * x->cols * sizeof(float)) == 0);
    }
    return same;
}

/* What is saved is loaded again, in both formats: the same weights, the same angles, the same results. */
/* A model that was loaded from a file is saved as the same bytes. */
static void check_saved_again(const ml_model *model, const char *path) {
    char again[600];
    snprintf(again, sizeof again, "%s", in_folder("again.gguf"));
    CHECK(ml_model_save(model, again, NULL, NULL) == ML_OK);
    bytes a = read_file(path), b = read_file(again);
    CHECK(a.size == b.size && memcmp(a.data, b.data, a.size) == 0);
    free_bytes(&a), free_bytes(&b);
}

TEST(variants_in_files) {
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    for (int i = 0; i < VARIANTS; i++)
        for (int format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
            ml_model *model = make(variant(i)), *loaded = NULL;
            ml_save_desc save = save_as((ml_format)format, ML_F32);
            ml_error error;
            const char *path = in_folder(format == ML_GGUF ? "variant.gguf" : "variant.safetensors");
            int has_both = model->config.window && model->config.attention_bias;
            if (format == ML_SAFETENSORS && (has_both || model->config.rope_kind == ML_ROPE_DYNAMIC)) {
                CHECK(ml_model_save(model, path, &save, &error) == ML_ERROR_UNSUPPORTED);
                CHECK(strstr(error.text, has_both
                                             ? "a window and biases of attention together: save as GGUF"
                                             : "a rope_original, 50, that is not max_seq_len, 320") != NULL);
                ml_model_free(model);
                continue;
            }
            CHECK(ml_model_save(model, path, &save, &error) == ML_OK);
            ml_result result = ml_model_load(path, NULL, &loaded, &error);
            if (result) printf("variant %d: %s\n", i, error.text);
            REQUIRE(!result);
            ml_config a = model->config, b = loaded->config;
            CHECK(same_weights(model, loaded) && !loaded->rope_factors);
            if (a.rope_kind == ML_ROPE_NTK) { /* the larger theta is all of it */
                b.rope_kind = ML_ROPE_NTK, b.rope_theta = a.rope_theta, b.rope_scale = a.rope_scale;
                CHECK(loaded->config.rope_kind == ML_ROPE_PLAIN);
            }
            CHECK(memcmp(&a, &b, sizeof a) == 0);
            plain_forward(model, some_tokens(), 80, 80, expected);
            ml_session *session = open_session(loaded, 80, 80);
            read_tokens(session, some_tokens(), 0, 80, 80, hidden);
            CHECK(is_near(hidden, expected, 80 * a.dim));
            ml_session_free(session);
            if (format == ML_GGUF) check_saved_again(loaded, path);
            ml_model_free(loaded);
            ml_model_free(model);
        }
}

/* The course's code has plain rotary positions only. */
TEST(no_stretched_positions_in_torch) {
    for (int i = 0; i < 4; i++) {
        ml_config c = variant(6);
        c.head_dim = 0, c.rope_theta = 10000;
        if (i == 1) c.rope_kind = ML_ROPE_DYNAMIC, c.rope_original = 50;
        if (i == 2) c.rope_attention = 1.25f;
        if (i == 3) c.rope_kind = ML_ROPE_YARN, c.rope_original = 64, c.rope_attention = 1.5f;
        ml_model *model = make(c);
        ml_save_desc save = save_as(ML_PYTORCH, ML_F32);
        ml_error error;
        REQUIRE(model);
        CHECK(ml_model_save(model, in_folder("plain.pt"), &save, &error) ==
              (i ? ML_ERROR_UNSUPPORTED : ML_OK));
        if (i) CHECK(strstr(error.text, "a rope_scale") != NULL);
        ml_model_free(model);
    }
}

/* Where only a head is trained, the checkpoint is no model file, and its model may be any. */
static void check_checkpoint_of_head(ml_model *model) {
    ml_random random;
    ml_head_create_desc create;
    ml_trainer_desc train;
    ml_head *head = NULL;
    ml_trainer *trainer = NULL;
    memset(&create, 0, sizeof create), memset(&train, 0, sizeof train);
    ml_random_seed(&random, 2);
    create.n_classes = 2, create.random = &random;
    REQUIRE(ml_head_create(model, &create, &head, NULL) == ML_OK);
    train.max_tokens = 8, train.head = head, train.frozen = 1, train.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(model, &train, &trainer, NULL) == ML_OK);
    CHECK(ml_trainer_save(trainer, in_folder("theta.gguf"), NULL) == ML_OK);
    CHECK(ml_trainer_restore(trainer, in_folder("theta.gguf"), NULL) == ML_OK);
    ml_trainer_free(trainer);
    ml_head_free(head);
}

/* NTK's theta, 10000 3e5^(4/2), would not be loaded again. */
TEST(no_theta_beyond_files) {
    ml_config c = variant(0);
    c.rope_kind = ML_ROPE_NTK, c.rope_scale = 3e5f, c.head_dim = 4;
    ml_model *model = make(c);
    ml_error error;
    REQUIRE(model);
    CHECK(ml_model_save(model, in_folder("theta.gguf"), NULL, &error) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(error.text, "ML_ROPE_NTK makes a rope_theta that is too large for a file") != NULL);
    ml_trainer_desc train;
    ml_trainer *trainer = NULL;
    memset(&train, 0, sizeof train), memset(&error, 0, sizeof error);
    train.max_tokens = 8, train.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(model, &train, &trainer, NULL) == ML_OK);
    CHECK(ml_trainer_save(trainer, in_folder("theta.gguf"), &error) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(error.text, "ML_ROPE_NTK makes a rope_theta that is too large for a file") != NULL);
    ml_trainer_free(trainer);
    check_checkpoint_of_head(model);
    ml_model_free(model);
}

/* What the files of variants hold, for other programs. */
TEST(keys_of_other_programs) {
    static const struct {
        int variant;
        const char *key;
        double number;
        const char *text;
    } keys[] = {{2, "llama.rope.scaling.type", 0, "yarn"},
                {2, "llama.rope.scaling.original_context_length", 64, NULL},
                {2, "llama.attention.key_length", 12, NULL},
                {2, "llama.attention.value_length", 12, NULL},
                {2, "llama.rope.dimension_count", 12, NULL},
                {3, "llama.rope.scaling.attn_factor", 1.5 / 1.13862944, NULL},
                {3, "llama.rope.scaling.yarn_beta_fast", 9, NULL},
                {9, "llama.attention.sliding_window", 9, NULL}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        ml_model *model = make(variant(keys[i].variant));
        ml_archive *archive = NULL;
        CHECK(ml_model_save(model, in_folder("keys.gguf"), NULL, NULL) == ML_OK);
        REQUIRE(ml_archive_load(in_folder("keys.gguf"), NULL, &archive, NULL) == ML_OK);
        const ml_value *value = ml_archive_find_value(archive, keys[i].key);
        CHECK(value != NULL);
        if (value && keys[i].text) CHECK(mli_value_is(value, keys[i].text));
        if (value && !keys[i].text) CHECK_NEAR(value->f, keys[i].number, 0, 1e-6);
        ml_archive_free(archive);
        ml_model_free(model);
    }
    ml_model *model = make(variant(4));
    ml_archive *archive = NULL;
    CHECK(ml_model_save(model, in_folder("keys.gguf"), NULL, NULL) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("keys.gguf"), NULL, &archive, NULL) == ML_OK);
    const ml_array *factors = ml_archive_find_array(archive, "rope_freqs.weight");
    CHECK(factors && factors->n_dims == 1 && factors->shape[0] == 8 && factors->type == ML_F32);
    CHECK(
        !ml_archive_find_value(archive, "llama.rope.scaling.factor")); /* llama.cpp would divide positions */
    CHECK(!ml_archive_find_value(archive, "llama.rope.scaling.type"));
    const ml_value *type = ml_archive_find_value(archive, "minillama.rope.scaling.type");
    CHECK(type && mli_value_is(type, "llama3"));
    ml_archive_free(archive);
    ml_model_free(model);
}

/* Version 0.9.6 wrote kinds under a name of config.json's, and kept that when the model was saved again, beside a new
   one: no such key is kept. */
TEST(names_of_config_json_are_not_kept) {
    static const char kept[] = "general.name", other[] = "config.json.";
    ml_model *model = make(variant(4)), *loaded = NULL;
    ml_save_desc save = save_as(ML_GGUF, ML_F32);
    ml_archive *archive = NULL;
    save.name = "a model";
    CHECK(ml_model_save(model, in_folder("names.gguf"), &save, NULL) == ML_OK);
    ml_model_free(model);
    bytes b = read_file(in_folder("names.gguf"));
    int n_found = 0;
    for (size_t i = 0; i + sizeof kept < b.size; i++)
        if (memcmp(b.data + i, kept, sizeof kept - 1) == 0)
            memcpy(b.data + i, other, sizeof kept - 1), n_found++;
    CHECK(n_found == 1);
    write_file(in_folder("names.gguf"), b.data, b.size);
    free_bytes(&b);
    REQUIRE(ml_model_load(in_folder("names.gguf"), NULL, &loaded, NULL) == ML_OK);
    CHECK(ml_model_save(loaded, in_folder("names2.gguf"), NULL, NULL) == ML_OK);
    ml_model_free(loaded);
    REQUIRE(ml_archive_load(in_folder("names2.gguf"), NULL, &archive, NULL) == ML_OK);
    for (size_t i = 0; i < archive->n_values; i++)
        CHECK(strncmp(archive->values[i].name, other, sizeof other - 1) != 0);
    ml_archive_free(archive);
}

/* Saves a model as GGUF with one more number. */
static void save_with(const ml_model *model, const char *key, double number, const char *path) {
    static char names[64][ML_NAME_SIZE];
    ml_named_tensor tensors[64];
    ml_value values[64];
    ml_archive *archive = NULL;
    ml_archive_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.format = ML_GGUF, desc.values = values, desc.tensors = tensors;
    REQUIRE(ml_model_save(model, in_folder("without.gguf"), NULL, NULL) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("without.gguf"), NULL, &archive, NULL) == ML_OK);
    for (size_t i = 0; i < archive->n_values; i++)
        if (strcmp(archive->values[i].name, key) != 0) values[desc.n_values++] = archive->values[i];
    memset(&values[desc.n_values], 0, sizeof *values);
    values[desc.n_values].name = key, values[desc.n_values].kind = ML_VALUE_FLOAT;
    values[desc.n_values++].f = number;
    for (int i = 0; i < model->n_tensors; i++) {
        if (!model->tensors[i].data) continue;
        ml_model_tensor_name(model, i, names[desc.n_tensors]);
        ml_named_tensor named = {names[desc.n_tensors], model->tensors[i], model->tensors[i].rows == 1};
        tensors[desc.n_tensors++] = named;
    }
    CHECK(ml_archive_save(path, &desc, NULL) == ML_OK);
    ml_archive_free(archive);
}

/* attn_factor is a factor of YaRN's usual number, 0.1 ln(4) + 1, in llama.cpp; yarn_attn_factor is Hugging Face's
   attention_factor, the whole number, which llama.cpp's converter copies. */
TEST(two_attention_factors_of_yarn) {
    static const struct {
        const char *key;
        double number, attention;
    } cases[] = {{"llama.rope.scaling.attn_factor", 1.5, 1.5 * 1.13862944},
                 {"llama.rope.scaling.yarn_attn_factor", 1.13862944, 1.13862944},
                 {"llama.rope.scaling.yarn_attn_factor", 1, 1}};
    ml_config c = variant(2);
    c.rope_scale = 4, c.rope_attention = 0;
    ml_model *model = make(c), *loaded = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        save_with(model, cases[i].key, cases[i].number, in_folder("attention.gguf"));
        REQUIRE(ml_model_load(in_folder("attention.gguf"), NULL, &loaded, NULL) == ML_OK);
        CHECK_NEAR(loaded->config.rope_attention, cases[i].attention, 0, 1e-6);
        ml_model_free(loaded);
    }
    ml_model_free(model);
}

/* llama.cpp reads 0 as the context's length. */
TEST(no_original_length) {
    ml_config c = variant(2);
    ml_model *model = make(c), *loaded = NULL;
    ml_error error;
    REQUIRE(model && ml_model_save(model, in_folder("zero.gguf"), NULL, NULL) == ML_OK);
    bytes file = read_file(in_folder("zero.gguf"));
    static const char key[] = "llama.rope.scaling.original_context_length";
    size_t at = 0, n = sizeof key - 1;
    while (at + n < file.size && memcmp(file.data + at, key, n) != 0) at++;
    REQUIRE(at + n + 8 < file.size && file.data[at + n + 4] == 64); /* after the type */
    file.data[at + n + 4] = 0;
    CHECK(ml_model_load_memory(file.data, file.size, NULL, &loaded, &error) == ML_OK);
    CHECK(loaded && loaded->config.rope_original == c.max_seq_len);
    ml_model_free(loaded);
    ml_model_free(model);
    free_bytes(&file);
}

/* Factors that are no Llama 3.1's stay as they are, and only a GGUF has a place for them. */
TEST(factors_of_any_kind) {
    static const float factors[3] = {1, 1.5f, 7};
    static float hidden[MAX_TOKENS * MAX_DIM];
    static double expected[MAX_TOKENS * MAX_DIM];
    ml_model *model = make(variant(6)), *loaded = NULL;
    ml_save_desc save = save_as(ML_GGUF, ML_F32);
    ml_error error;
    memcpy(model->private_part->rope_factors, factors, sizeof factors);
    model->rope_factors = model->private_part->rope_factors;
    CHECK(ml_model_save(model, in_folder("factors.gguf"), &save, &error) == ML_OK);
    REQUIRE(ml_model_load(in_folder("factors.gguf"), NULL, &loaded, &error) == ML_OK);
    CHECK(loaded->rope_factors && memcmp(loaded->rope_factors, factors, sizeof factors) == 0);
    CHECK(loaded->config.rope_kind == ML_ROPE_PLAIN);
    plain_forward(model, some_tokens(), 80, 80, expected);
    ml_session *session = open_session(loaded, 80, 80);
    read_tokens(session, some_tokens(), 0, 80, 80, hidden);
    CHECK(is_near(hidden, expected, 80 * 16));
    ml_session_free(session);
    for (int i = 0; i < 3; i++) loaded->private_part->rope_factors[i] = i ? NAN : 1;
    CHECK(ml_model_save(loaded, in_folder("factors.gguf"), &save, &error) == ML_ERROR_NUMBER);
    ml_model *ones = NULL;
    for (int i = 0; i < 3; i++) loaded->private_part->rope_factors[i] = 1;
    CHECK(ml_model_save(loaded, in_folder("factors.gguf"), &save, &error) == ML_OK);
    CHECK(ml_model_load(in_folder("factors.gguf"), NULL, &ones, &error) == ML_OK && !ones->rope_factors);
    CHECK(ones && ones->config.rope_kind == ML_ROPE_PLAIN);
    ml_model_free(ones);
    save.format = ML_SAFETENSORS;
    CHECK(ml_model_save(loaded, in_folder("factors.safetensors"), &save, &error) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(error.text, "rope_freqs.weight") != NULL);
    ml_model_free(loaded);
    ml_model_free(model);
}

/* ---- what config.json may say ---- */

/* The model of a variant in safetensors, with a config.json of other words in place of those that it has. */
static ml_result load_with(const char *from, const char *to, ml_model **model, ml_error *error) {
    char text[4096] = "", changed[8192];
    bytes file = read_file(in_folder("config.json"));
    memcpy(text, file.data, file.size < sizeof text ? file.size : sizeof text - 1);
    char *at = strstr(text, from);
    CHECK(at != NULL);
    if (at) snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    if (at) write_file(in_folder("config.json"), changed, strlen(changed));
    ml_result result = ml_model_load(in_folder("words.safetensors"), NULL, model, error);
    write_file(in_folder("config.json"), file.data, file.size);
    free_bytes(&file);
    return result;
}

#define MISTRAL "\"model_type\": \"mistral\", "

TEST(words_of_config_json) {
    static const struct {
        const char *words;
        ml_rope_kind kind;
        float scale, low, high, attention;
        int original, window;
        const char *refused;
    } cases[] = {
        {"\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}", ML_ROPE_DYNAMIC, 2, 1, 4, 1, 320, 0,
         NULL},
        {"\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2, \"original_max_position_embeddings\": 99}",
         ML_ROPE_DYNAMIC, 2, 1, 4, 1, 320, 0, NULL}, /* which transformers does not read there */
        {"\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}", ML_ROPE_YARN, 4, 1, 32, 1.13862944f,
         320, 0, NULL},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"attention_factor\": 1.25, "
         "\"beta_fast\": 16,"
         " \"beta_slow\": 2, \"original_max_position_embeddings\": 99, \"truncate\": true}",
         ML_ROPE_YARN, 4, 2, 16, 1.25f, 99, 0, NULL},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"mscale\": 1, \"mscale_all_dim\": 0.5}",
         ML_ROPE_YARN, 4, 1, 32, 1.13862944f / 1.06931472f, 320, 0, NULL},
        {"\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 2,"
         " \"high_freq_factor\": 5, \"original_max_position_embeddings\": 64, \"rope_theta\": 300}",
         ML_ROPE_LLAMA3, 8, 2, 5, 1, 64, 0, NULL},
        {MISTRAL "\"rope_scaling\": {\"rope_type\": \"default\", \"factor\": 8}, \"sliding_window\": 7",
         ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 7, NULL},
        {"\"sliding_window\": 7", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, NULL}, /* a Llama has none */
        {MISTRAL "\"sliding_window\": 7, \"use_sliding_window\": false", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0,
         NULL},
        {MISTRAL "\"sliding_window\": false", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, NULL},
        {MISTRAL "\"sliding_window\": -1", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, NULL},
        {MISTRAL "\"sliding_window\": 7, \"use_sliding_window\": 1", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 7, NULL},
        {MISTRAL "\"sliding_window\": null", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, NULL},
        {MISTRAL "\"sliding_window\": 7, \"layer_types\": [\"full_attention\", \"full_attention\"]",
         ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, NULL},
        {MISTRAL "\"sliding_window\": 7, \"layer_types\": [\"sliding_attention\", \"sliding_attention\"]",
         ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 7, NULL},
        {MISTRAL "\"sliding_window\": 7, \"layer_types\": [\"sliding_attention\", \"full_attention\"]",
         ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, "layer_types"},
        {"\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4, \"truncate\": false}", ML_ROPE_PLAIN, 1,
         1, 4, 1, 320, 0, "truncate"},
        {"\"rope_scaling\": {\"rope_type\": \"su\", \"factor\": 4}", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0,
         "rope_type is su"},
        {"\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 4, \"low_freq_factor\": 4,"
         " \"high_freq_factor\": 1}",
         ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, "out of range"},
        {"\"sliding_window\": [null, 7]", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, "a window for each layer"},
        {"\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": null}", ML_ROPE_PLAIN, 1, 1, 4, 1, 320,
         0, "no factor (config.json.rope_parameters.factor)"},
        {"\"head_dim\": 7", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, "heads of size 7"},
        {MISTRAL "\"sliding_window\": -3", ML_ROPE_PLAIN, 1, 1, 4, 1, 320, 0, "sliding_window"}};
    ml_model *model = make(base_config());
    ml_save_desc save = save_as(ML_SAFETENSORS, ML_F32);
    CHECK(ml_model_save(model, in_folder("words.safetensors"), &save, NULL) == ML_OK);
    ml_model_free(model);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ml_error error;
        ml_model *loaded = NULL;
        ml_result result = load_with("\"rope_scaling\": null", cases[i].words, &loaded, &error);
        if ((result != ML_OK) != (cases[i].refused != NULL)) printf("%s: %s\n", cases[i].words, error.text);
        CHECK((result != ML_OK) == (cases[i].refused != NULL));
        if (cases[i].refused) CHECK(strstr(error.text, cases[i].refused) != NULL);
        if (!loaded) continue;
        const ml_config *c = &loaded->config;
        CHECK(c->rope_kind == cases[i].kind && c->rope_scale == cases[i].scale &&
              c->window == cases[i].window);
        CHECK(c->rope_low == cases[i].low && c->rope_high == cases[i].high);
        CHECK(c->rope_original == cases[i].original);
        CHECK_NEAR(c->rope_attention, cases[i].attention, 1e-6, 0);
        ml_model_free(loaded);
    }
}

/* The tensors show biases; config.json must not deny them, and a Mistral is a Llama with a window. */
TEST(biases_and_mistral) {
    ml_config c = variant(8);
    ml_model *model = make(c), *loaded = NULL;
    ml_save_desc save = save_as(ML_SAFETENSORS, ML_F32);
    ml_error error;
    CHECK(ml_model_save(model, in_folder("words.safetensors"), &save, NULL) == ML_OK);
    CHECK(load_with("\"attention_bias\": true", "\"x\": 0", &loaded, &error) == ML_OK);
    CHECK(loaded && loaded->config.attention_bias && same_weights(model, loaded));
    ml_model_free(loaded);
    CHECK(load_with("\"attention_bias\": true", "\"attention_bias\": false", &loaded, &error) ==
          ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "self_attn.q_proj.bias") != NULL);
    save = save_as(ML_PYTORCH, ML_F32); /* for code that does not know them */
    CHECK(ml_model_save(model, in_folder("words.pt"), &save, &error) == ML_ERROR_UNSUPPORTED);
    ml_model_free(model);

    model = make(variant(9));
    save = save_as(ML_SAFETENSORS, ML_F32);
    CHECK(ml_model_save(model, in_folder("words.safetensors"), &save, NULL) == ML_OK);
    CHECK(load_with("\"model_type\": \"mistral\"", "\"model_type\": \"llama\"", &loaded, &error) == ML_OK);
    CHECK(loaded && loaded->config.window == 0); /* as Hugging Face and llama.cpp read it */
    ml_model_free(loaded);
    CHECK(load_with("\"model_type\": \"mistral\"", "\"x\": 0", &loaded, &error) == ML_OK);
    CHECK(loaded && loaded->config.window == 9);
    ml_model_free(loaded);
    ml_model_free(model);
}

/* Of these, none can be made. */
TEST(configurations_that_are_refused) {
    static const struct {
        int head_dim, window, heads;
        ml_rope_kind kind;
        float scale, attention;
    } wrong[] = {{5, 0, 4, ML_ROPE_PLAIN, 1, 0},       {-2, 0, 4, ML_ROPE_PLAIN, 1, 0},
                 {1 << 20, 0, 4, ML_ROPE_PLAIN, 1, 0}, {0, -1, 4, ML_ROPE_PLAIN, 1, 0},
                 {0, 0, 6, ML_ROPE_PLAIN, 1, 0},       {0, 0, 4, (ml_rope_kind)9, 1, 0},
                 {0, 0, 4, ML_ROPE_YARN, -1, 0},       {0, 0, 4, ML_ROPE_YARN, 4, -1},
                 {0, 0, 4, ML_ROPE_LLAMA3, 1e9f, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ml_config c = base_config();
        ml_model *model;
        ml_error error;
        ml_random random;
        ml_random_seed(&random, 1);
        c.head_dim = wrong[i].head_dim, c.window = wrong[i].window, c.n_heads = wrong[i].heads;
        c.rope_kind = wrong[i].kind, c.rope_scale = wrong[i].scale, c.rope_attention = wrong[i].attention;
        CHECK(create_model(&c, ML_F32, &random, NULL, &model, &error) == ML_ERROR_FORMAT);
        CHECK(strncmp(error.text, "configuration: ", 15) == 0);
    }
}

/* ---- chat templates ---- */

/* Where Hugging Face's folder has one, a GGUF or a folder that is made of it has it, too. */
TEST(chat_templates_are_kept) {
    static const char one[] = "{\"chat_template\": \"{{ \\\"a\\\" }}\\n\"}";
    static const char several[] = "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"wrong\"},"
                                  " {\"name\": \"default\", \"template\": \"{{ b }}\"}]}";
    static const struct {
        const char *file, *text, *expected;
    } cases[] = {{"tokenizer_config.json", one, "{{ \"a\" }}\n"},
                 {"tokenizer_config.json", several, "{{ b }}"},
                 {"tokenizer_config.json", "{\"chat_template\": 3}", NULL},
                 {"chat_template.jinja", "{{ c }}", "{{ c }}"}};
    ml_model *model = make(base_config()), *loaded = NULL, *again = NULL;
    ml_save_desc save = save_as(ML_SAFETENSORS, ML_F32), gguf = save_as(ML_GGUF, ML_F32);
    CHECK(make_folder(in_folder("chat")));
    CHECK(ml_model_save(model, in_folder("chat/model.safetensors"), &save, NULL) == ML_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[64];
        ml_archive *archive;
        snprintf(path, sizeof path, "chat/%s", cases[i].file);
        write_file(in_folder(path), cases[i].text, strlen(cases[i].text));
        REQUIRE(ml_model_load(in_folder("chat"), NULL, &loaded, NULL) == ML_OK);
        CHECK(ml_model_save(loaded, in_folder("chat.gguf"), &gguf, NULL) == ML_OK);
        CHECK(make_folder(in_folder("copied")));
        CHECK(ml_model_save(loaded, in_folder("copied/model.safetensors"), &save, NULL) == ML_OK);
        REQUIRE(ml_model_load(in_folder("copied"), NULL, &again, NULL) == ML_OK);
        CHECK(!again->chat_template == !cases[i].expected);
        if (again->chat_template && cases[i].expected)
            CHECK(strcmp(again->chat_template, cases[i].expected) == 0);
        ml_model_free(again);
        remove(in_folder("copied/chat_template.jinja")), remove(in_folder("copied/config.json"));
        CHECK(remove(in_folder("copied/model.safetensors")) == 0 && rmdir(in_folder("copied")) == 0);
        REQUIRE(ml_model_load(in_folder("chat.gguf"), NULL, &again, NULL) == ML_OK);
        CHECK(ml_model_save(again, in_folder("again.gguf"), &gguf, NULL) == ML_OK);
        REQUIRE(ml_archive_load(in_folder("again.gguf"), NULL, &archive, NULL) == ML_OK);
        const ml_value *value = ml_archive_find_value(archive, "tokenizer.chat_template");
        CHECK(!value == !cases[i].expected);
        if (value && cases[i].expected) CHECK(mli_value_is(value, cases[i].expected));
        ml_archive_free(archive);
        ml_model_free(loaded);
        ml_model_free(again);
    }
    ml_model_free(model);
}

/* ---- Meta's files in pieces ---- */

/* A piece of a matrix: some of its rows or columns. */
static ml_tensor piece_of(const ml_tensor *t, int is_columns, int i, int n) {
    size_t rows = is_columns ? t->rows : t->rows / (size_t)n,
           cols = is_columns ? t->cols / (size_t)n : t->cols;
    ml_tensor piece = {ML_F32, rows, cols, malloc(rows * cols * sizeof(float)), NULL};
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            size_t row = is_columns ? r : (size_t)i * rows + r, col = is_columns ? (size_t)i * cols + c : c;
            ((float *)piece.data)[r * cols + c] = ((const float *)t->data)[row * t->cols + col];
        }
    return piece;
}

/* Writes piece i of n as Meta's code has them; the embedding in rows (Llama 3) or in columns. What a file holds is
   told by its content, so a safetensors will do. */
static void write_piece(const ml_model *model, int i, int n, int is_llama3) {
    ml_named_tensor list[64];
    static char names[64][ML_NAME_SIZE];
    int count = 0;
    for (int k = 0; k < model->n_tensors; k++) {
        const ml_tensor *t = &model->tensors[k];
        mli_slot slot = mli_slot_at(&model->config, k);
        int is_columns = slot == MLI_WO || slot == MLI_W2 || (slot == MLI_TOKEN_EMBEDDING && !is_llama3);
        if (!t->data) continue;
        mli_param_name(MLI_NAMING_META, slot, mli_layer_at(&model->config, k), names[count]);
        ml_named_tensor named = {
            names[count], piece_of(t, t->rows == 1 || is_columns, t->rows == 1 ? 0 : i, t->rows == 1 ? 1 : n),
            t->rows == 1};
        list[count++] = named;
    }
    char path[64];
    ml_archive_save_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.format = ML_SAFETENSORS, desc.tensors = list, desc.n_tensors = count;
    snprintf(path, sizeof path, "pieces/consolidated.%02d.pth", i);
    CHECK(ml_archive_save(in_folder(path), &desc, NULL) == ML_OK);
    for (int k = 0; k < count; k++) free(list[k].tensor.data);
}

TEST(pieces_are_joined) {
    static const char params[] = "{\"dim\": 16, \"n_layers\": 2, \"n_heads\": 4, \"n_kv_heads\": 2,"
                                 " \"vocab_size\": 32, \"rope_theta\": 200, \"max_seq_len\": 320}";
    ml_config c = base_config();
    c.tied_output = 0, c.n_kv_heads = 2;
    ml_model *model = make(c), *joined = NULL;
    ml_archive *archive;
    ml_error error;
    CHECK(make_folder(in_folder("pieces")));
    write_file(in_folder("pieces/params.json"), params, strlen(params));
    for (int is_llama3 = 0; is_llama3 < 2; is_llama3++) {
        for (int i = 0; i < 2; i++) write_piece(model, i, 2, is_llama3);
        for (int by_path = 0; by_path < 2; by_path++) {
            const char *path = in_folder(by_path ? "pieces/consolidated.00.pth" : "pieces");
            ml_result result = ml_model_load(path, NULL, &joined, &error);
            if (result) printf("%s\n", error.text);
            REQUIRE(!result);
            CHECK(same_weights(model, joined));
            ml_model_free(joined);
        }
    }
    CHECK(ml_archive_load(in_folder("pieces"), NULL, &archive, &error) == ML_ERROR_UNSUPPORTED && !archive);
    CHECK(ml_model_load(in_folder("pieces/consolidated.01.pth"), NULL, &joined, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "1 of 2 pieces") != NULL);
    c.dim = 8, c.n_layers = 1; /* pieces of another model */
    ml_model *other = make(c);
    write_piece(other, 1, 2, 1);
    CHECK(ml_model_load(in_folder("pieces"), NULL, &joined, &error) == ML_ERROR_MISMATCH && !joined);
    CHECK(strstr(error.text, "piece 2 of 2") != NULL);
    write_file(in_folder("pieces/consolidated.01.pth"), params, 20);
    CHECK(ml_model_load(in_folder("pieces"), NULL, &joined, &error) != ML_OK && !joined);
    CHECK(strstr(error.text, "consolidated.01.pth") != NULL);
    CHECK(rename(in_folder("pieces/consolidated.01.pth"), in_folder("pieces/consolidated.03.pth")) == 0);
    CHECK(ml_model_load(in_folder("pieces"), NULL, &joined, &error) == ML_ERROR_FILE && !joined);
    CHECK(strstr(error.text, "consolidated.01.pth cannot be opened") != NULL);
    ml_model_free(other);
    ml_model_free(model);
}

/* Meta puts the one tokenizer of all sizes beside their folders. A folder of Hugging Face has its own. */
TEST(tokenizer_above) {
    static const char params[] = "{\"dim\": 16, \"n_layers\": 2, \"n_heads\": 4, \"n_kv_heads\": 2}";
    ml_config c = base_config();
    ml_save_desc save = save_as(ML_SAFETENSORS, ML_F32);
    bytes tokenizer = {NULL, 0, 0};
    ml_error error;
    c.tied_output = 0, c.n_kv_heads = 2;
    ml_model *model = make(c), *loaded = NULL;
    CHECK(make_folder(in_folder("sizes")));
    put_u32(&tokenizer, 1); /* llama2.c's: the longest piece, then score, length, piece */
    for (int i = 0; i < c.vocab_size; i++)
        put_f32(&tokenizer, 0), put_u32(&tokenizer, 1), put_u8(&tokenizer, (unsigned)('A' + i));
    write_file(in_folder("tokenizer.model"), tokenizer.data, tokenizer.size);
    remove(in_folder("pieces/consolidated.03.pth"));
    write_piece(model, 0, 1, 1);
    write_file(in_folder("pieces/params.json"), params, strlen(params));
    REQUIRE(ml_model_load(in_folder("pieces"), NULL, &loaded, &error) == ML_OK);
    CHECK(loaded->tokenizer && loaded->tokenizer->n_pieces == c.vocab_size);
    ml_model_free(loaded);
    CHECK(ml_model_save(model, in_folder("sizes/model.safetensors"), &save, NULL) == ML_OK);
    REQUIRE(ml_model_load(in_folder("sizes"), NULL, &loaded, &error) == ML_OK);
    CHECK(!loaded->tokenizer);
    ml_model_free(loaded);
    ml_model_free(model);
    remove(in_folder("tokenizer.model"));
    free_bytes(&tokenizer);
}

/* A hundred matrices that are all the same bytes of a file, and so two hundred times as many when joined. */
TEST(pieces_that_overlap) {
    static const char params[] = "{\"dim\": 128, \"n_layers\": 100, \"n_heads\": 4, \"vocab_size\": 32}";
    enum { MATRICES = 100, SIDE = 128 };
    bytes b = {NULL, 0, 0};
    ml_model *model = NULL;
    ml_error error;
    gguf_begin(&b, 3, MATRICES, 0);
    for (int i = 0; i < MATRICES; i++) {
        char name[ML_NAME_SIZE];
        snprintf(name, sizeof name, "layers.%d.attention.wq.weight", i);
        gguf_tensor(&b, name, 2, SIDE, SIDE, 0, 0);
    }
    gguf_pad(&b, 32);
    for (int i = 0; i < SIDE * SIDE; i++) put_f32(&b, 1);
    CHECK(make_folder(in_folder("overlap")));
    write_file(in_folder("overlap/params.json"), params, strlen(params));
    write_file(in_folder("overlap/consolidated.00.pth"), b.data, b.size);
    write_file(in_folder("overlap/consolidated.01.pth"), b.data, b.size);
    CHECK(ml_model_load(in_folder("overlap"), NULL, &model, &error) == ML_ERROR_FORMAT && !model);
    CHECK(strstr(error.text, "overlap: ") != NULL);
    free_bytes(&b);
}

/* ---- a Llama 3 of PyTorch's and llama.cpp's ---- */

/* 300 tokens; logits of every 25th. */
static void check_llama3(const char *path, const char *name) {
    ml_model *model = NULL;
    ml_archive *reference = NULL;
    ml_error error;
    size_t n_tokens, n_logits;
    int32_t select[12];
    REQUIRE(ml_archive_load(shared_path("reference/modern.pt"), NULL, &reference, &error) == ML_OK);
    int32_t *tokens = shared_tokens(reference, "llama3_tokens", &n_tokens);
    float *expected = shared_floats(reference, name, &n_logits);
    REQUIRE(n_tokens == 300 && n_logits == 12 * 512);
    ml_result result = ml_model_load(path, NULL, &model, &error);
    if (result) printf("%s\n", error.text);
    REQUIRE(!result);
    CHECK(model->config.rope_kind == ML_ROPE_LLAMA3 && model->config.rope_scale == 32);
    CHECK(model->config.rope_original == 8192 && !model->rope_factors);
#ifndef ML_NO_BPE
    CHECK(model->tokenizer && model->tokenizer->n_pieces == 512 && model->tokenizer->bos == 510);
    CHECK(model->tokenizer && model->tokenizer->eos == 511 && model->tokenizer->adds_bos);
#endif
    float *logits = (float *)malloc(n_logits * sizeof *logits);
    for (int i = 0; i < 12; i++) select[i] = 25 * i;
    ml_session *session = open_session(model, 512, 64);
    ml_outputs out = {select, 12, NULL, logits};
    CHECK(ml_session_eval_outputs(session, tokens, 300, &out, &error) == ML_OK);
    CHECK_NEAR(max_difference(logits, expected, n_logits), 0, 1e-4, 0);
    size_t n = 0;
    float *factors = shared_floats(reference, "llama3_rope_factors", &n);
    CHECK(n == 8 && max_difference(factors, model->private_part->rope_factors, n) < 1e-4);
    free(factors);
    free(logits);
    free(tokens);
    free(expected);
    ml_session_free(session);
    ml_model_free(model);
    ml_archive_free(reference);
}

TEST(llama3_of_llama_cpp) {
    NEED_SHARED();
    if (!shared_path("models/modern/llama3.gguf")) SKIP("../shared/models/modern is absent");
    check_llama3(shared_path("models/modern/llama3.gguf"), "llama3_logits");
}

TEST(llama3_of_hugging_face) {
    NEED_SHARED();
    const char *index = shared_path("models/modern/llama3-hf/model.safetensors.index.json");
    if (!index) SKIP("../shared/models/modern is absent");
    char folder_path[1024];
    snprintf(folder_path, sizeof folder_path, "%.*s", (int)(strrchr(index, '/') - index), index);
    check_llama3(index, "llama3_hf_logits");
    check_llama3(folder_path, "llama3_hf_logits");
}

int main(void) {
    if (!folder_begin("minillama-rope")) return 1;
    RUN(variants_in_plain_loops);
    RUN(frequencies_against_pytorch);
    RUN(a_window_needs_a_cache_of_its_size);
    RUN(truncating_with_a_window);
    RUN(copies_with_a_window);
    RUN(saved_windows_that_are_refused);
    RUN(keys_of_another_length);
    RUN(dynamic_positions_of_a_trainer);
    RUN(dynamic_positions_of_a_graph);
    RUN(likelihood_with_a_window);
    RUN(sliding_with_a_window);
    RUN(looking_through_a_window);
    RUN(gradients);
    RUN(biases_alone);
    RUN(training_biases);
    RUN(variants_in_files);
    RUN(no_stretched_positions_in_torch);
    RUN(no_theta_beyond_files);
    RUN(keys_of_other_programs);
    RUN(names_of_config_json_are_not_kept);
    RUN(two_attention_factors_of_yarn);
    RUN(no_original_length);
    RUN(factors_of_any_kind);
    RUN(words_of_config_json);
    RUN(biases_and_mistral);
    RUN(configurations_that_are_refused);
    RUN(chat_templates_are_kept);
    RUN(pieces_are_joined);
    RUN(tokenizer_above);
    RUN(pieces_that_overlap);
    RUN(llama3_of_llama_cpp);
    RUN(llama3_of_hugging_face);
    return test_report("test_rope");
}
