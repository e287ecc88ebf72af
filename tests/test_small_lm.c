/* The small language model of examples/advanced, and what attention.c and positions.c put into it, beside the same
   model written plainly in doubles from the papers; the masks by their rules, the tables of rotations by their
   formulas, gradients by differences, the numbers of parameters. */
#include "preamble.h"
#include "folder.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/advanced/small_lm.h"
/* Both programs have these names; those of positions.c stay. */
#define main attention_main
#define run attention_run
#define run_kind attention_run_kind
#define run_all attention_run_all
#define write_csv attention_write_csv
#define draw attention_draw
#define KINDS ATTENTION_KINDS
#define TEXTS ATTENTION_TEXTS
#define BUCKETS ATTENTION_BUCKETS
#include "../examples/advanced/attention.c"
#undef main
#undef run
#undef run_kind
#undef run_all
#undef write_csv
#undef draw
#undef KINDS
#undef TEXTS
#undef BUCKETS
#define main positions_main
#include "../examples/advanced/positions.c"
#undef main

enum { TRAINED = 8, LONGEST = LONGER * TRAINED, WIDEST = 256, KEYS = 3 };

static char text_path[600];

/* ---- the model in doubles, of one row ---- */

typedef struct plain_model {
    const small_lm *lm;
    int attention, window; /* as attention.c calls them: STANDARD, ... */
    const double *turn;    /* (hd / 2): what a pair turns from one position to the next; NULL: it does not */
    double sharpness;      /* of rotated queries and keys, each */
    const double *slopes;  /* (heads) of ALiBi; NULL: none */
} plain_model;

static double number(const ml_tensor *t, int i) { return (double)((const float *)t->data)[i]; }

/* Which keys a query sees: itself and what is before it; of a window those nearer than its length, and with sinks the
   first 4 always; of blocks its own and the first. */
static int sees(int attention, int window, int query, int key) {
    if (key > query) return 0;
    if (attention == WINDOW) return query - key < window;
    if (attention == WITH_SINKS) return query - key < window || key < 4;
    if (attention == BLOCK) return key < window || key / window == query / window;
    return 1;
}

/* q . k of two heads: rotated, the product depends on how far apart they are (Su et al. 2021, eq. 16). */
static double plain_product(const plain_model *m, const double *q, const double *k, int hd, int apart) {
    double sum = 0;
    for (int i = 0; i < hd; i += 2) {
        double along = q[i] * k[i] + q[i + 1] * k[i + 1], across = q[i] * k[i + 1] - q[i + 1] * k[i];
        double angle = m->turn ? apart * m->turn[i / 2] : 0, size = m->turn ? m->sharpness * m->sharpness : 1;
        sum += size * (along * cos(angle) + across * sin(angle));
    }
    return sum;
}

/* p (query + 1): softmax(q k^T / sqrt(hd) - slope * distance) of a head, over the keys that the query sees */
static void plain_weights(const plain_model *m, const double *q, const double *k, int head, int query,
                          double *p) {
    int D = m->lm->dim, hd = D / m->lm->n_heads;
    double sum = 0;
    for (int j = 0; j <= query; j++) {
        double score =
            plain_product(m, q + query * D + head * hd, k + j * D + head * hd, hd, query - j) / sqrt(hd);
        if (m->slopes) score -= m->slopes[head] * (query - j);
        sum += p[j] = sees(m->attention, m->window, query, j) ? exp(score) : 0;
    }
    for (int j = 0; j <= query; j++) p[j] /= sum;
}

static void plain_norm(const ml_tensor *w, const double *x, int n, int cols, double *y) {
    for (int t = 0; t < n; t++) {
        double square = 0;
        for (int i = 0; i < cols; i++) square += x[t * cols + i] * x[t * cols + i] / cols;
        for (int i = 0; i < cols; i++)
            y[t * cols + i] = x[t * cols + i] / sqrt(square + 1e-5) * (w ? number(w, i) : 1);
    }
}

/* Ye et al. 2024, eq. 2 and 3: lambda of a layer; layers count from 1 there. */
static double plain_initial(int layer) { return .8 - .6 * exp(-.3 * ((layer + 1) - 1)); }
static double plain_lambda(const small_layer *l, int hd, int layer) {
    double one = 0, two = 0;
    for (int i = 0; i < hd; i++) {
        one += number(&l->extra[0], i) * number(&l->extra[1], i);
        two += number(&l->extra[2], i) * number(&l->extra[3], i);
    }
    return exp(one) - exp(two) + plain_initial(layer);
}

/* Their eq. 1 and the multi-head part: (A1 - lambda A2) V, the norm of each head, (1 - lambda_init) of it. The first
   queries and keys of all heads are followed by the second ones; values are twice as wide. */
static void plain_differential(const plain_model *m, int layer, double *const *qkv, int n, double *y) {
    int D = m->lm->dim, pairs = m->lm->n_heads / 2, wide = D / pairs;
    double lambda = plain_lambda(&m->lm->layers[layer], wide / 2, layer), p[2][LONGEST];
    for (int h = 0; h < pairs; h++)
        for (int t = 0; t < n; t++) {
            double *out = y + t * D + h * wide;
            plain_weights(m, qkv[0], qkv[1], h, t, p[0]);
            plain_weights(m, qkv[0], qkv[1], pairs + h, t, p[1]);
            for (int i = 0; i < wide; i++) {
                out[i] = 0;
                for (int j = 0; j <= t; j++)
                    out[i] += (p[0][j] - lambda * p[1][j]) * qkv[2][j * D + h * wide + i];
            }
            plain_norm(NULL, out, 1, wide, out);
            for (int i = 0; i < wide; i++) out[i] *= 1 - plain_initial(layer);
        }
}

static void plain_attention(const plain_model *m, int layer, double *const *qkv, int n, double *y) {
    int D = m->lm->dim, hd = D / m->lm->n_heads;
    double p[LONGEST];
    if (m->attention == DIFFERENTIAL) {
        plain_differential(m, layer, qkv, n, y);
        return;
    }
    for (int h = 0; h < m->lm->n_heads; h++)
        for (int t = 0; t < n; t++) {
            plain_weights(m, qkv[0], qkv[1], h, t, p);
            for (int i = h * hd; i < (h + 1) * hd; i++) {
                y[t * D + i] = 0;
                for (int j = 0; j <= t; j++) y[t * D + i] += p[j] * qkv[2][j * D + i];
            }
        }
}

static void plain_linear(const ml_tensor *w, const double *x, int n, double *y) {
    int rows = (int)w->rows, cols = (int)w->cols;
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++) {
            y[t * rows + r] = 0;
            for (int c = 0; c < cols; c++) y[t * rows + r] += x[t * cols + c] * number(w, r * cols + c);
        }
}

/* x (n, D) after a layer */
static void plain_layer(const plain_model *m, int layer, int n, double *x) {
    static double memory[6][LONGEST * WIDEST];
    double *h = memory[0], *qkv[3] = {memory[1], memory[2], memory[3]}, *a = memory[4], *y = memory[5];
    const small_layer *l = &m->lm->layers[layer];
    int D = m->lm->dim;
    plain_norm(&l->attention_norm, x, n, D, h);
    plain_linear(&l->q, h, n, qkv[0]), plain_linear(&l->k, h, n, qkv[1]), plain_linear(&l->v, h, n, qkv[2]);
    plain_attention(m, layer, qkv, n, a);
    plain_linear(&l->o, a, n, y);
    for (int i = 0; i < n * D; i++) x[i] += y[i];
    plain_norm(&l->ffn_norm, x, n, D, h);
    plain_linear(&l->gate, h, n, qkv[0]), plain_linear(&l->up, h, n, qkv[1]);
    for (int i = 0; i < n * (int)l->gate.rows; i++)
        a[i] = qkv[0][i] / (1 + exp(-qkv[0][i])) * qkv[1][i]; /* SwiGLU */
    plain_linear(&l->down, a, n, y);
    for (int i = 0; i < n * D; i++) x[i] += y[i];
}

/* Adds `share` of -log p of the token after each of the n tokens to losses (n). */
static void add_plain_losses(const plain_model *m, const int32_t *tokens, int n, double share,
                             double *losses) {
    static double x[LONGEST * WIDEST], y[LONGEST * WIDEST];
    int D = m->lm->dim, V = m->lm->vocab;
    for (int i = 0; i < n * D; i++) x[i] = number(&m->lm->embedding, tokens[i / D] * D + i % D);
    for (int l = 0; l < m->lm->n_layers; l++) plain_layer(m, l, n, x);
    plain_norm(&m->lm->norm, x, n, D, x);
    plain_linear(&m->lm->embedding, x, n, y);
    for (int t = 0; t < n; t++) {
        double sum = 0;
        for (int c = 0; c < V; c++) sum += exp(y[t * V + c]);
        losses[t] += share * (log(sum) - y[t * V + tokens[t + 1]]);
    }
}

/* The mean over `texts` rows at equal distances in the last tenth of the text. */
static void plain_evaluate(const plain_model *m, int length, int texts, double *losses) {
    size_t held = m->lm->n_tokens / 10, first = m->lm->n_tokens - held;
    for (int i = 0; i < length; i++) losses[i] = 0;
    for (int t = 0; t < texts; t++)
        add_plain_losses(m, m->lm->tokens + first + (held - (size_t)length - 1) * (size_t)t / (size_t)texts,
                         length, 1. / texts, losses);
}

/* ---- positions by the papers, for texts of `length` tokens ---- */

typedef struct plain_positions {
    double turn[WIDEST], slopes[WIDEST];
    plain_model model;
} plain_positions;

/* YaRN (Peng et al. 2023, section 3.2): a pair that turns more than 32 times in the original context keeps its
   frequency, and one that turns less than once has it divided by s. Between them the share grows with the pair's
   number, from bounds that are whole numbers, as in the authors' code; in the text it grows with the turns. */
static double yarn_frequency(double frequency, double s, int hd, int pair, double context) {
    double circle = 2 * acos(-1.), turns = context * frequency / circle, bound[2];
    if (turns > 32) return frequency;
    if (turns < 1) return frequency / s;
    for (int i = 0; i < 2; i++) bound[i] = hd / 2. * log(context / (circle * (i ? 1 : 32))) / log(10000.);
    double low = fmax(floor(bound[0]), 0), high = ceil(bound[1]), share = (pair - low) / (high - low);
    return share * frequency / s + (1 - share) * frequency;
}

static int is_named(const kind *k, const char *name) { return strcmp(k->name, name) == 0; }

/* Only beyond the context is anything stretched, by how many times longer the text is: linear (Chen et al. 2023)
   divides positions, ntk multiplies the base by s^(hd / (hd - 2)), YaRN also makes scores larger by
   (0.1 ln s + 1)^2. */
static void positions_of(plain_positions *p, const small_lm *lm, const kind *k, int length) {
    int hd = lm->dim / lm->n_heads, is_rotary = !is_named(k, "alibi") && !is_named(k, "none");
    double s = length > lm->context ? (double)length / lm->context : 1;
    double theta = is_named(k, "rope_theta") ? 500000 : 10000;
    memset(p, 0, sizeof *p);
    p->model.lm = lm, p->model.attention = STANDARD, p->model.sharpness = 1;
    if (is_named(k, "ntk")) theta *= pow(s, hd / (hd - 2.));
    for (int i = 0; i < hd / 2; i++) {
        p->turn[i] = pow(theta, -2. * i / hd);
        if (is_named(k, "linear")) p->turn[i] /= s;
        if (is_named(k, "yarn")) p->turn[i] = yarn_frequency(p->turn[i], s, hd, i, lm->context);
    }
    if (is_named(k, "yarn")) p->model.sharpness = .1 * log(s) + 1;
    for (int h = 0; h < lm->n_heads; h++) p->slopes[h] = pow(2, -8. * (h + 1) / lm->n_heads);
    if (is_rotary) p->model.turn = p->turn;
    if (is_named(k, "alibi")) p->model.slopes = p->slopes;
}

/* ---- what the programs compute ---- */

static int begin_model(small_lm *lm, int context, int dim, int heads) {
    small_defaults(lm);
    lm->text_path = text_path;
    lm->context = context, lm->rows = 2, lm->dim = dim, lm->n_heads = heads, lm->n_layers = 3;
    lm->steps = 20, lm->lr = .03f;
    return small_read(lm, LONGER * context + 1);
}

/* What attention.c's run_all prepares. */
static void begin_attention(small_lm *lm, attention_run *now, int attention) {
    size_t hd = (size_t)(lm->dim / lm->n_heads), n = (size_t)lm->context;
    ml_rope_desc rope = {ML_ROPE_PLAIN, hd, 10000, 0, 0, 0, 0, 0, NULL};
    ml_tensor table = {ML_F32, n, hd, malloc(n * hd * sizeof(float)), NULL};
    memset(now, 0, sizeof *now);
    now->kind = attention, now->window = KEYS, now->table = table;
    now->hidden = (float *)malloc((size_t)lm->rows * n * n * sizeof(float));
    CHECK(ml_rope_table(&rope, (float *)table.data, lm->context) == ML_OK);
    fill_blocks(lm, now);
    lm->user = now, lm->attend = attend_kind, lm->prepare = NULL;
    lm->extra_cols = attention == DIFFERENTIAL ? hd : 0;
}

static void end_attention(attention_run *now) { free(now->table.data), free(now->hidden); }

static plain_model plain_attention_model(const small_lm *lm, int attention) {
    static double turn[WIDEST];
    int hd = lm->dim / lm->n_heads;
    for (int i = 0; i < hd / 2; i++) turn[i] = pow(10000, -2. * i / hd);
    plain_model m = {lm, attention, KEYS, turn, 1, NULL};
    return m;
}

/* What a program's function makes of given queries, keys and values. */
typedef struct attended {
    small_lm *lm;
    int layer;
    size_t n;
    float *qkv[3]; /* (n, D) */
    ml_tensor y;
} attended;

static ml_tensor build_attended(ml_graph *g, void *user) {
    attended *a = (attended *)user;
    size_t D = (size_t)a->lm->dim;
    if (a->lm->prepare) a->lm->prepare(g, a->lm);
    return a->y = a->lm->attend(g, a->lm, a->layer, ml_input(g, a->qkv[0], a->n, D),
                                ml_input(g, a->qkv[1], a->n, D), ml_input(g, a->qkv[2], a->n, D));
}

static void random_numbers(float *x, int n, uint64_t seed) {
    ml_random random;
    ml_random_seed(&random, seed);
    for (int i = 0; i < n; i++) x[i] = ml_random_normal(&random);
}

/* Numbers for rows * length tokens; `weights`: in each head the value of token j is 1 at j, so that what comes out is
   how much of each key there is. */
static void begin_attended(attended *a, small_lm *lm, int rows, int length, int weights) {
    int D = lm->dim, hd = lm->dim / lm->n_heads;
    memset(a, 0, sizeof *a);
    a->lm = lm, a->n = (size_t)(rows * length);
    lm->n_rows = rows, lm->length = length;
    for (int r = 0; r <= rows; r++) lm->row_start[r] = r * length;
    for (int i = 0; i < 3; i++) {
        a->qkv[i] = (float *)malloc(a->n * (size_t)D * sizeof(float));
        random_numbers(a->qkv[i], rows * length * D, (uint64_t)i + 1);
    }
    for (int i = 0; weights && i < rows * length * D; i++) a->qkv[2][i] = i % D % hd == i / D;
}

static void end_attended(attended *a) {
    for (int i = 0; i < 3; i++) free(a->qkv[i]);
}

/* y (n, D), which the caller frees; NULL if it fails */
static float *attended_numbers(attended *a) {
    ml_graph_desc desc = {0};
    ml_graph *g = NULL;
    ml_error error;
    size_t size = a->n * (size_t)a->lm->dim * sizeof(float);
    float *y = (float *)malloc(size);
    int ok = succeeded(ml_graph_new(&desc, build_attended, a, &g, &error), &error);
    if (ok) ml_graph_begin(g, 0), build_attended(g, a);
    ok = ok && succeeded(ml_graph_end(g, &error), &error);
    CHECK(ok && y);
    if (ok && y) memcpy(y, a->y.data, size);
    ml_graph_free(g);
    return y;
}

/* ---- attention ---- */

/* Numbers of size 1; each is a sum over 8 keys of floats, divided by a root: a few roundings of 6e-8, and where the
   two attentions nearly cancel the norm makes them up to ten times larger. */
TEST(differential_attention_of_a_layer) {
    small_lm lm;
    attention_run now;
    attended a;
    static double in[3][TRAINED * 24], y[TRAINED * 24];
    double *qkv[3] = {in[0], in[1], in[2]};
    REQUIRE(begin_model(&lm, TRAINED, 24, 6));
    begin_attention(&lm, &now, DIFFERENTIAL);
    REQUIRE(small_create(&lm));
    for (int l = 0; l < lm.n_layers; l++) /* wider, so that lambda is */
        for (int e = 0; e < SMALL_EXTRAS; e++)
            for (int i = 0; i < 4; i++) ((float *)lm.layers[l].extra[e].data)[i] *= 2;
    begin_attended(&a, &lm, 1, TRAINED, 0);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < TRAINED * 24; i++) in[c][i] = (double)a.qkv[c][i];
    plain_model m = plain_attention_model(&lm, DIFFERENTIAL);
    for (a.layer = 0; a.layer < lm.n_layers; a.layer++) {
        float *found = attended_numbers(&a);
        plain_attention(&m, a.layer, qkv, TRAINED, y);
        for (int i = 0; i < TRAINED * 24; i++) CHECK_NEAR(found[i], y[i], 5e-6, 0);
        free(found);
    }
    end_attended(&a);
    end_attention(&now);
    small_free(&lm);
}

/* Every query and key of two rows, in every kind: a key that is hidden has exactly 0, one that is seen has not. */
TEST(masks) {
    enum { N = 16 };
    small_lm lm;
    attention_run now;
    attended a;
    for (int attention = 0; attention < ATTENTION_KINDS; attention++) {
        REQUIRE(begin_model(&lm, N, 64, 2));
        begin_attention(&lm, &now, attention);
        REQUIRE(small_create(&lm));
        begin_attended(&a, &lm, 2, N, 1);
        float *found = attended_numbers(&a);
        for (int t = 0; t < 2 * N; t++)
            for (int j = 0; j < 2 * N; j++) {
                int is_seen = t / N == j / N && sees(attention, KEYS, t % N, j % N);
                CHECK((found[t * 64 + j] != 0) == is_seen);
                if (attention != DIFFERENTIAL) CHECK((found[t * 64 + 32 + j] != 0) == is_seen);
            }
        free(found);
        end_attended(&a);
        end_attention(&now);
        small_free(&lm);
    }
}

/* ---- gradients ---- */

/* A model whose norms are not 1, with gradients: tensors, and how many. */
static int with_gradients(small_lm *lm, const ml_tensor **tensors, float **grads) {
    int n = 0;
    ml_random random;
    ml_random_seed(&random, 5);
    *grads = (float *)calloc(lm->n_weights, sizeof **grads);
    for (int i = 0; i < small_count(lm); i++) {
        ml_tensor *w = small_weight(lm, i);
        if (!w->data) continue;
        w->grad = *grads + ((float *)w->data - lm->memory);
        tensors[n++] = w;
        for (size_t k = 0; w->rows == 1 && k < w->cols; k++)
            ((float *)w->data)[k] += .3f * ml_random_normal(&random);
    }
    return n;
}

static double plain_loss(const plain_model *m) {
    double losses[TRAINED] = {0}, sum = 0;
    for (int r = 0; r < 2; r++) add_plain_losses(m, m->lm->tokens + 100 * r, TRAINED, .5 / TRAINED, losses);
    for (int i = 0; i < TRAINED; i++) sum += losses[i];
    return sum;
}

/* The loss (5.5 nats, within a few roundings), and its gradient at up to 6 numbers of each tensor against the central
   difference in doubles: its error is of the order of the square of the step, 1e-4, relative to the embedding's 0.05,
   4e-6; floats leave less. */
static void check_gradients(const plain_model *m, const ml_tensor *const *tensors, int n, float loss) {
    CHECK_NEAR(loss, plain_loss(m), 5e-6, 0);
    for (int i = 0; i < n; i++) {
        size_t size = tensors[i]->rows * tensors[i]->cols;
        double largest = 0;
        for (size_t k = 0; k < size; k++) largest = fmax(largest, fabs((double)tensors[i]->grad[k]));
        CHECK(largest > 0);
        for (size_t k = 0; k < size; k += size / 6 + 1) {
            float *x = (float *)tensors[i]->data + k, was = *x;
            double at[2], losses[2];
            for (int side = 0; side < 2; side++) {
                *x = was + (side ? 1e-4f : -1e-4f);
                at[side] = (double)*x, losses[side] = plain_loss(m);
            }
            *x = was;
            CHECK_NEAR(tensors[i]->grad[k], (losses[1] - losses[0]) / (at[1] - at[0]), 2e-5 * largest, 0);
        }
    }
}

/* By our differences, and by the library's, which says that a right gradient is within 0.01. */
static void check_model_gradients(small_lm *lm, const plain_model *m) {
    const ml_tensor *tensors[2 + SMALL_LAYERS * SMALL_PARTS];
    float *grads = NULL;
    ml_random random;
    ml_graph *g = NULL;
    ml_error error;
    double worst = 1;
    int n = with_gradients(lm, tensors, &grads);
    REQUIRE(grads && small_graph(lm, 2, TRAINED, 1, &g));
    for (int r = 0; r < 2; r++) small_fill(lm, r, (size_t)(100 * r));
    ml_graph_begin(g, 1);
    ml_tensor loss = small_build(g, lm);
    REQUIRE(succeeded(ml_graph_backward(g, loss, &error), &error));
    check_gradients(m, tensors, n, *(float *)loss.data);
    ml_random_seed(&random, 1);
    ml_check_desc desc = {small_build, lm, tensors, n, 0, 8, &random};
    CHECK(succeeded(ml_check_gradient(g, &desc, &worst, &error), &error));
    CHECK(worst < .01);
    ml_graph_free(g);
    free(grads);
}

TEST(gradients_of_the_whole_model) {
    static const int attentions[2] = {DIFFERENTIAL, BLOCK};
    small_lm lm;
    attention_run now;
    for (int i = 0; i < 2; i++) {
        REQUIRE(begin_model(&lm, TRAINED, 24, 6));
        begin_attention(&lm, &now, attentions[i]);
        REQUIRE(small_create(&lm));
        plain_model m = plain_attention_model(&lm, attentions[i]);
        check_model_gradients(&lm, &m);
        end_attention(&now);
        small_free(&lm);
    }
}

/* ---- equal parameters ---- */

/* 4 vectors of a head's size for each layer, 96 numbers by default, are all that differential has in addition: less
   than a thousandth. */
TEST(parameters_are_equal) {
    small_lm lm;
    size_t D = 96, H = 256, n[2];
    REQUIRE(begin_model(&lm, TRAINED, 96, 4));
    for (int is_differential = 0; is_differential < 2; is_differential++) {
        attention_run now;
        double losses[TRAINED], speed;
        begin_attention(&lm, &now, is_differential ? DIFFERENTIAL : STANDARD);
        lm.extra_cols = 7, lm.steps = 1; /* the program knows better */
        capture_begin();
        CHECK(attention_run_kind(&lm, &now, losses, &speed));
        capture_end();
        n[is_differential] = lm.n_weights;
        end_attention(&now);
    }
    CHECK(n[0] == 256 * D + D + 3 * (2 * D + 4 * D * D + 3 * D * H));
    CHECK(n[1] == n[0] + 3 * 4 * 24);
    CHECK((n[1] - n[0]) * 1000 < n[0]);
    small_free(&lm);
}

/* ---- positions ---- */

/* The tables that positions.c makes, for texts within the context and beyond it, at a size where YaRN keeps some
   pairs, mixes some and stretches the others. An angle is off by up to eight roundings of itself. */
TEST(tables_of_rotations) {
    static const int contexts[2] = {64, 1024};
    static plain_positions p;
    small_lm lm;
    for (int c = 0; c < 2; c++) {
        small_defaults(&lm);
        lm.context = contexts[c];
        int hd = lm.dim / lm.n_heads, n = LONGER * lm.context;
        run now = {NULL, (float *)malloc((size_t)(n * hd) * sizeof(float))};
        REQUIRE(now.table != NULL);
        for (int i = 0; i < KINDS; i++)
            for (int length = lm.context / 2; length <= n; length *= 2) {
                now.kind = &kinds[i];
                make_table(&lm, &now, length);
                positions_of(&p, &lm, &kinds[i], length);
                CHECK(!p.model.turn == !kinds[i].has_table);
                for (int t = 0; p.model.turn && t < n; t++)
                    for (int j = 0; j < hd / 2; j++) {
                        const float *pair = now.table + t * hd + 2 * j;
                        double angle = t * p.turn[j], size = p.model.sharpness, off = 1e-6 + 5e-7 * angle;
                        CHECK_NEAR(pair[0], size * cos(angle), off, 0);
                        CHECK_NEAR(pair[1], size * sin(angle), off, 0);
                    }
            }
        free(now.table);
    }
}

/* Within the context of training, what is stretched is rope, to the last bit. */
TEST(nothing_is_stretched_within_the_context) {
    small_lm lm;
    small_defaults(&lm);
    size_t size = (size_t)(LONGER * lm.context * lm.dim / lm.n_heads) * sizeof(float);
    float *plain = (float *)malloc(size), *table = (float *)malloc(size);
    run now = {&kinds[0], plain};
    REQUIRE(plain && table);
    make_table(&lm, &now, LONGER * lm.context);
    now.table = table;
    for (int i = 1; i <= 3; i++) {
        static const char *const stretched[] = {"", "linear", "ntk", "yarn"};
        now.kind = &kinds[i];
        CHECK(is_named(&kinds[i], stretched[i]));
        for (int n = lm.context / 2; n <= 2 * lm.context; n += lm.context / 2) {
            make_table(&lm, &now, n);
            CHECK((memcmp(plain, table, size) == 0) == (n <= lm.context));
        }
    }
    free(plain), free(table);
}

/* How much of each key there is in each head, for all positions of texts as long as the context and longer. Scores of
   up to 10, off by a few roundings, move weights of up to 1 by as much. */
TEST(weights_by_position) {
    static plain_positions p;
    static double q[LONGEST * 128], k[LONGEST * 128];
    double weights[LONGEST];
    small_lm lm;
    attended a;
    REQUIRE(begin_model(&lm, TRAINED, 128, 4));
    run now = {NULL, (float *)malloc(LONGEST * 32 * sizeof(float))};
    lm.user = &now, lm.attend = attend, lm.prepare = prepare;
    for (int i = 0; i < KINDS; i++)
        for (int n = TRAINED; n <= LONGEST; n *= 2) {
            now.kind = &kinds[i];
            make_table(&lm, &now, n);
            positions_of(&p, &lm, &kinds[i], n);
            begin_attended(&a, &lm, 1, n, 1);
            for (int c = 0; c < n * 128; c++) q[c] = (double)a.qkv[0][c], k[c] = (double)a.qkv[1][c];
            float *found = attended_numbers(&a);
            for (int h = 0; h < 4; h++)
                for (int t = 0; t < n; t++) {
                    plain_weights(&p.model, q, k, h, t, weights);
                    for (int j = 0; j < n; j++)
                        CHECK_NEAR(found[t * 128 + h * 32 + j], j <= t ? weights[j] : 0, 3e-6, 0);
                }
            free(found);
            end_attended(&a);
        }
    free(now.table);
    small_free(&lm);
}

/* Press et al. 2022: four heads have slopes 1/4, 1/16, 1/64 and 1/256. Where all products are 0, what is left of two
   keys one apart is e^-slope; without positions, all keys are equal. Sums of up to 32 floats. */
TEST(slopes_of_alibi) {
    static const double slopes[4] = {1 / 4., 1 / 16., 1 / 64., 1 / 256.};
    small_lm lm;
    attended a;
    REQUIRE(begin_model(&lm, TRAINED, 128, 4));
    run now = {NULL, NULL};
    lm.user = &now, lm.attend = attend, lm.prepare = prepare;
    for (int i = KINDS - 2; i < KINDS; i++) {
        CHECK(is_named(&kinds[i], i == KINDS - 1 ? "none" : "alibi"));
        now.kind = &kinds[i];
        begin_attended(&a, &lm, 1, LONGEST, 1);
        memset(a.qkv[0], 0, LONGEST * 128 * sizeof(float));
        float *found = attended_numbers(&a);
        for (int h = 0; h < 4; h++)
            for (int t = 0; t < LONGEST; t++)
                for (int j = 0; j < t; j++) {
                    const float *p = found + t * 128 + h * 32 + j;
                    CHECK_NEAR(p[0], (double)p[1] * exp(i == KINDS - 1 ? 0 : -slopes[h]), 0, 2e-6);
                    if (i == KINDS - 1) CHECK_NEAR(p[0], 1. / (t + 1), 0, 2e-6);
                }
        free(found);
        end_attended(&a);
    }
    small_free(&lm);
}

/* ---- the programs: what they write is what the plain model computes with the same weights ---- */

static int run_program(int (*program)(int, char **), const char *flags, const char *csv) {
    static char line[2048];
    char *argv[40];
    int argc = 1, status;
    snprintf(
        line, sizeof line,
        "test --text %s --context 8 --rows 2 --dim 24 --heads 4 --layers 3 --steps 20 --lr 0.03 --csv %s %s",
        text_path, in_folder(csv), flags);
    argv[0] = strtok(line, " ");
    for (char *word = strtok(NULL, " "); word && argc < 40; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    status = program(argc, argv);
    const char *said = capture_end();
    if (status) printf("%s", said);
    return status;
}

/* The number after `begin` of a line, or -1. */
static double number_after(const char *csv, const char *begin) {
    char line[256];
    double found = -1;
    FILE *file = fopen(in_folder(csv), "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, begin, strlen(begin)) == 0) found = atof(line + strlen(begin));
    if (file) fclose(file);
    return found;
}

/* Four digits are written, and a loss of 5 is off by a few roundings of 5e-7. */
static const double as_written = 5e-5 + 1e-5;

TEST(losses_of_attention) {
    small_lm lm;
    attention_run now;
    double losses[TRAINED];
    char begin[64];
    CHECK(run_program(attention_main, "--window 3", "attention.csv") == 0);
    REQUIRE(begin_model(&lm, TRAINED, 24, 4));
    for (int i = 0; i < ATTENTION_KINDS; i++) {
        begin_attention(&lm, &now, i);
        REQUIRE(small_train(&lm, "", NULL));
        plain_model m = plain_attention_model(&lm, i);
        plain_evaluate(&m, TRAINED, ATTENTION_TEXTS, losses);
        for (int t = 0; t < TRAINED; t++) {
            snprintf(begin, sizeof begin, "%s,%d,", names[i], t);
            CHECK_NEAR(number_after("attention.csv", begin), losses[t], as_written, 0);
        }
        end_attention(&now);
    }
    small_free(&lm);
}

/* linear, ntk and yarn have no weights of their own, but rope's. Two positions are a line. */
TEST(losses_of_positions) {
    static plain_positions p;
    small_lm lm;
    double losses[LONGEST];
    char begin[64];
    CHECK(run_program(positions_main, "--threads 1", "positions.csv") == 0);
    REQUIRE(begin_model(&lm, TRAINED, 24, 4));
    run now = {NULL, (float *)malloc(LONGEST * 6 * sizeof(float))};
    lm.user = &now, lm.attend = attend, lm.prepare = prepare;
    for (int i = 0; i < KINDS; i++) {
        now.kind = &kinds[i];
        make_table(&lm, &now, TRAINED);
        if (i == 0 || i > 3) REQUIRE(small_train(&lm, "", NULL));
        for (int n = TRAINED; n <= LONGEST; n *= 2) {
            positions_of(&p, &lm, &kinds[i], n);
            plain_evaluate(&p.model, n, TEXTS, losses);
            for (int t = 0; t < n; t += 2) {
                snprintf(begin, sizeof begin, "%s,%d,%d,", kinds[i].name, n, t);
                CHECK_NEAR(number_after("positions.csv", begin), (losses[t] + losses[t + 1]) / 2, as_written,
                           0);
            }
        }
    }
    free(now.table);
    small_free(&lm);
}

/* 3,000 characters, each one of the three that may follow the one before. */
static int write_text(void) {
    char text[3001] = {0};
    ml_random random;
    ml_random_seed(&random, 2);
    for (int i = 0, c = 0; i < 3000; i++) {
        c = (5 * c + (int)(ml_random_u64(&random) % 3)) % 26;
        text[i] = (char)('a' + c);
    }
    snprintf(text_path, sizeof text_path, "%s", in_folder("text.txt"));
    write_file(text_path, text, 3000);
    return 1;
}

int main(void) {
    if (!folder_begin("small_lm") || !write_text()) return 1;
    RUN(differential_attention_of_a_layer);
    RUN(masks);
    RUN(gradients_of_the_whole_model);
    RUN(parameters_are_equal);
    RUN(tables_of_rotations);
    RUN(nothing_is_stretched_within_the_context);
    RUN(weights_by_position);
    RUN(slopes_of_alibi);
    RUN(losses_of_attention);
    RUN(losses_of_positions);
    return !folder_end() || test_report("test_small_lm");
}
