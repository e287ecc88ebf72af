/* Attention, positions and pooling of a caller's graph, by the public interface: values against the formula written
   plainly in doubles, gradients against central differences of it (operations.h). */
#include "preamble.h"

enum { Q, K, V, BIAS, X = 0, SCORES = 1, MAX_ROWS = 8, MAX_SPANS = 8 };

typedef struct details {
    ml_attention_desc attention; /* without its operands */
    int32_t start[MAX_ROWS], key_start[MAX_ROWS];
    int n_rows;
    const float *kept; /* by dropout: (n, heads, S), 0: not; NULL: all */
    int longest;       /* S */
    size_t hd;         /* of the table of rotations, which is `extra` */
    ml_pooling pooling;
    ml_span spans[MAX_SPANS];
    int n_spans;
    double lambda;
} details;

#include "operations.h"

static void check_with_frozen(problem *p, size_t most) {
    check_problem(p, most);
    check_frozen(p);
}

static ml_rows rows_of(const problem *p) {
    ml_rows rows = {p->own.n_rows ? p->own.start : NULL, p->own.n_rows};
    return rows;
}

/* Rows of these lengths, ended by 0; returns the number of tokens. */
static size_t set_rows(problem *p, const int *lengths, int n_prefix) {
    details *own = &p->own;
    int r = 0;
    for (; lengths[r]; r++) {
        own->start[r + 1] = own->start[r] + lengths[r];
        own->key_start[r + 1] = own->key_start[r] + lengths[r] + n_prefix;
    }
    own->n_rows = r;
    return (size_t)own->start[r];
}

/* ---- attention ---- */

static ml_tensor attention_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_attention_desc desc = p->own.attention;
    desc.q = v[Q], desc.k = v[K], desc.v = v[V];
    if (p->n_variables > BIAS) desc.bias = v[BIAS];
    desc.rows = rows_of(p);
    desc.key_rows.start = p->own.key_start;
    desc.key_rows.n_rows = p->own.n_rows;
    return ml_attention(g, &desc);
}

/* Whether the query at position i of its row sees key j of it. */
static int is_seen(const ml_attention_desc *d, int i, int j) {
    int causal = d->mask != ML_MASK_FULL, near = !d->window || j < d->sinks || abs(i - j) < d->window;
    return near && (!causal || j <= i);
}

/* y of query t, the `position`-th of its row, in head h; weight (S) is scratch */
static void attend_plain(const problem *p, double *y, int t, int position, int r, int h, double *weight) {
    const ml_attention_desc *d = &p->own.attention;
    const variable *q = &p->v[Q], *k = &p->v[K], *v = &p->v[V],
                   *bias = p->n_variables > BIAS ? &p->v[BIAS] : NULL;
    int n_kv = d->n_kv_heads ? d->n_kv_heads : d->n_heads, hd = (int)q->cols / d->n_heads;
    int hv = (int)v->cols / n_kv, kv = h / (d->n_heads / n_kv), n = (int)q->rows;
    int begin = p->own.key_start[r], n_keys = p->own.key_start[r + 1] - begin;
    double sum = 0, scale = d->scale > 0 ? (double)d->scale : 1 / sqrt((double)hd);
    for (int j = 0; j < n_keys; j++) {
        double dot = 0;
        for (int c = 0; c < hd; c++)
            dot +=
                q->exact[t * (int)q->cols + h * hd + c] * k->exact[(begin + j) * (int)k->cols + kv * hd + c];
        weight[j] = dot * scale;
        if (bias) weight[j] += bias->exact[((bias->rows > q->rows ? h * n : 0) + t) * (int)bias->cols + j];
        weight[j] = is_seen(d, position, j) ? exp(weight[j]) : 0;
        sum += weight[j];
    }
    for (int c = 0; c < hv; c++) y[c] = 0;
    for (int j = 0; j < n_keys && sum > 0; j++) {
        double w = weight[j] / sum;
        if (p->own.kept)
            w = p->own.kept[(t * d->n_heads + h) * p->own.longest + j] > 0 ? w / (1 - (double)d->dropout) : 0;
        for (int c = 0; c < hv; c++) y[c] += w * v->exact[(begin + j) * (int)v->cols + kv * hv + c];
    }
}

static void attention_plain(const problem *p, double *y) {
    const ml_attention_desc *d = &p->own.attention;
    int n_kv = d->n_kv_heads ? d->n_kv_heads : d->n_heads, hv = (int)p->v[V].cols / n_kv;
    double *weight = (double *)allocate(p->v[K].rows, sizeof *weight);
    for (int r = 0; r < p->own.n_rows; r++)
        for (int t = p->own.start[r]; t < p->own.start[r + 1]; t++)
            for (int h = 0; h < d->n_heads; h++) {
                int position = p->own.key_start[r + 1] - p->own.key_start[r] - (p->own.start[r + 1] - t);
                attend_plain(p, y + t * hv * d->n_heads + h * hv, t, position, r, h, weight);
            }
    free(weight);
}

typedef struct setting {
    ml_mask mask;
    int n_heads, n_kv_heads, hd, hv, n_prefix, window, sinks, bias; /* 1: shared, 2: per head */
    float scale;
} setting;

static void begin_attention(problem *p, setting s, const int *lengths) {
    size_t n, m, longest = 0, n_heads = (size_t)s.n_heads, n_kv = (size_t)s.n_kv_heads;
    begin_problem(p, attention_build, attention_plain);
    n = set_rows(p, lengths, s.n_prefix);
    m = (size_t)p->own.key_start[p->own.n_rows];
    for (int r = 0; r < p->own.n_rows; r++)
        longest = (size_t)larger((double)longest, lengths[r] + s.n_prefix);
    p->own.longest = (int)longest;
    p->own.attention.n_heads = s.n_heads, p->own.attention.n_kv_heads = s.n_kv_heads;
    p->own.attention.mask = s.mask, p->own.attention.window = s.window, p->own.attention.sinks = s.sinks;
    p->own.attention.scale = s.scale;
    add(p, n, n_heads * (size_t)s.hd, 0, 1.2);
    add(p, m, n_kv * (size_t)s.hd, 0, 1.2);
    add(p, m, n_kv * (size_t)s.hv, 0, 1);
    if (s.bias) add(p, s.bias == 2 ? n * n_heads : n, longest + 1, 0, 1); /* a column more than needed */
    set_output(p, n, n_heads * (size_t)s.hv);
}

static const int few_rows[] = {1, 5, 17, 4, 2, 0}, long_rows[] = {3, 130, 65, 0}, one_row[] = {70, 0};

static void check_attention(setting s, const int *lengths, size_t most) {
    problem p;
    begin_attention(&p, s, lengths);
    check_with_frozen(&p, most);
    end_problem(&p);
}

TEST(attention_of_groups_rows_and_masks) {
    static const int groups[4][2] = {{1, 1}, {6, 2}, {4, 4}, {3, 1}};
    for (int i = 0; i < 4; i++)
        for (int full = 0; full < 2; full++) {
            setting s = {
                full ? ML_MASK_FULL : ML_MASK_DEFAULT, groups[i][0], groups[i][1], 6, 6, 0, 0, 0, 0, 0};
            check_attention(s, few_rows, 25);
            s.hv = 10, s.n_prefix = 3, s.scale = .3f;
            check_attention(s, few_rows, 25);
        }
    setting s = {ML_MASK_CAUSAL, 4, 2, 8, 16, 5, 0, 0, 0, 0};
    check_attention(s, long_rows, 12);
}

/* As of a longer text over a shorter one: who sees what does not depend on positions. */
TEST(attention_over_fewer_keys) {
    static const int short_rows[] = {5, 17, 4, 0}, rows[] = {70, 130, 0};
    for (int bias = 0; bias <= 2; bias++) {
        setting s = {ML_MASK_FULL, 4, 2, 6, 6, -3, 0, 0, bias, 0};
        check_attention(s, short_rows, 40);
        s.n_prefix = -66;
        check_attention(s, rows, 8);
    }
}

TEST(attention_with_bias) {
    for (int bias = 1; bias <= 2; bias++)
        for (int full = 0; full < 2; full++) {
            setting s = {full ? ML_MASK_FULL : ML_MASK_CAUSAL, 4, 2, 6, 6, 2, 0, 0, bias, 0};
            check_attention(s, few_rows, 40);
            check_attention(s, long_rows, 8);
        }
}

TEST(attention_with_window_and_sinks) {
    static const int windows[5][2] = {{1, 0}, {4, 0}, {3, 2}, {40, 4}, {64, 100}};
    for (int i = 0; i < 5; i++)
        for (int full = 0; full < 2; full++) {
            setting s = {full ? ML_MASK_FULL : ML_MASK_CAUSAL,
                         4,
                         2,
                         6,
                         8,
                         i % 2 * 3,
                         windows[i][0],
                         windows[i][1],
                         0,
                         0};
            check_attention(s, few_rows, 20);
            check_attention(s, long_rows, 8);
            s.bias = 1 + full;
            check_attention(s, one_row, 20);
        }
}

/* What dropout keeps does not depend on the numbers: equal weights over values that are the identity show it. */
static float *find_kept(const problem *p) {
    problem ones;
    size_t n = p->v[Q].rows, m = p->v[K].rows, heads = (size_t)p->own.attention.n_heads,
           S = (size_t)p->own.longest;
    begin_problem(&ones, attention_build, attention_plain);
    memcpy(ones.own.start, p->own.start, sizeof ones.own.start);
    memcpy(ones.own.key_start, p->own.key_start, sizeof ones.own.key_start);
    ones.own.n_rows = p->own.n_rows;
    ones.own.attention = p->own.attention;
    ones.own.attention.n_kv_heads = 1;
    add(&ones, n, heads, 0, 0);
    add(&ones, m, 1, 0, 0);
    variable *v = add(&ones, m, S, 0, 0);
    for (int r = 0; r < p->own.n_rows; r++)
        for (int i = p->own.key_start[r]; i < p->own.key_start[r + 1]; i++)
            v->given[i * p->own.longest + i - p->own.key_start[r]] = 1;
    set_output(&ones, n, heads * S);
    run_pass(&ones, 1, 0);
    float *kept = copy_of(ones.y, n * heads * S);
    end_problem(&ones);
    return kept;
}

TEST(attention_with_dropout) {
    for (int turn = 0; turn < 6; turn++) {
        setting s = {
            turn & 1 ? ML_MASK_FULL : ML_MASK_CAUSAL, 4, 2, 6, 8, turn, turn > 3 ? 5 : 0, 2, turn % 3, 0};
        problem p;
        begin_attention(&p, s, turn == 1 ? long_rows : few_rows);
        p.own.attention.dropout = .3f;
        p.own.attention.seed = 5;
        float *kept = find_kept(&p);
        p.own.kept = kept;
        check_with_frozen(&p, 12);
        end_problem(&p);
        free(kept);
    }
}

/* Of 4 * 130 * 130 weights .3 are dropped, +-.0018 (one deviation); another seed drops others; a pass that does not
   tape drops none. */
TEST(dropout_is_drawn_by_seed) {
    setting s = {ML_MASK_FULL, 4, 4, 6, 6, 0, 0, 0, 0, 0};
    static const int row[] = {130, 0};
    problem p;
    int dropped = 0, differ = 0, n = 4 * 130 * 130;
    ml_graph *g;
    ml_error error;
    begin_attention(&p, s, row);
    p.own.attention.dropout = .3f;
    float *first = find_kept(&p);
    p.own.attention.seed = 1;
    float *second = find_kept(&p);
    for (int i = 0; i < n; i++) dropped += first[i] == 0, differ += (first[i] == 0) != (second[i] == 0);
    CHECK_NEAR(dropped, .3 * n, .01 * n, 0);
    CHECK_NEAR(differ, .42 * n, .01 * n, 0); /* 2 * .3 * .7 */
    CHECK(ml_graph_new(NULL, build_problem, &p, &g, &error) == ML_OK);
    ml_graph_begin(g, 0);
    build_problem(g, &p);
    CHECK(ml_graph_end(g, &error) == ML_OK);
    memcpy(p.y, passed.y.data, p.rows * p.cols * sizeof *p.y);
    check_values(&p); /* without dropout */
    ml_graph_free(g);
    end_problem(&p);
    free(first);
    free(second);
}

/* ml_check_gradient takes differences of passes that do not tape: there, too, the same weights are dropped. */
TEST(dropout_while_a_gradient_is_checked) {
    setting s = {ML_MASK_CAUSAL, 4, 2, 6, 8, 0, 0, 0, 0, 0};
    problem p;
    ml_tensor t[3];
    const ml_tensor *checked[3] = {&t[Q], &t[K], &t[V]};
    ml_check_desc desc;
    ml_graph *g;
    ml_error error;
    double worst = 1;
    begin_attention(&p, s, few_rows);
    p.own.attention.dropout = .3f;
    for (int i = 0; i < 3; i++) {
        const variable *v = &p.v[i];
        ml_tensor x = {ML_F32, v->rows, v->cols, v->given, v->grad};
        t[i] = x;
    }
    memset(&desc, 0, sizeof desc);
    desc.build = build_problem, desc.user = &p, desc.random = &p.random;
    desc.tensors = checked, desc.n_tensors = 3;
    REQUIRE(ml_graph_new(NULL, build_problem, &p, &g, &error) == ML_OK);
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_OK);
    CHECK_NEAR(worst, 0, .01, 0);
    ml_graph_free(g);
    end_problem(&p);
}

/* Queries, keys and values that are rows of one matrix, each from another row on: their gradients share numbers, and
   are the same bits for any number of threads, in whatever order these run. */
static ml_tensor overlapping_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_attention_desc desc = p->own.attention;
    size_t n = v[0].rows - 2;
    desc.q = ml_slice(g, v[0], ML_ROWS, 2, n + 2);
    desc.k = ml_slice(g, v[0], ML_ROWS, 1, n + 1);
    desc.v = ml_slice(g, v[0], ML_ROWS, 0, n);
    desc.rows = rows_of(p);
    return ml_attention(g, &desc);
}

TEST(operands_that_overlap) {
    static const int lengths[] = {120, 130, 125, 0};
    problem p;
    begin_problem(&p, overlapping_build, NULL);
    size_t n = set_rows(&p, lengths, 0);
    p.own.attention.n_heads = 4;
    add(&p, n + 2, 32, 0, 1);
    set_output(&p, n, 32);
    run_pass(&p, 1, 0);
    pass_numbers first = numbers_of(&p);
    run_pass(&p, 3, 0);
    CHECK(parallel_operations >= 1); /* the forward pass */
    check_same_bits(&p, &first);
    free_numbers(&first);
    end_problem(&p);
}

/* Two tasks, one after the other: the second first if `user` points to 1. */
static void two_ways(void *user, int n_tasks, ml_task task, void *arg) {
    for (int i = 0; i < n_tasks; i++) task(arg, *(const int *)user ? n_tasks - 1 - i : i);
}

typedef struct three {
    ml_tensor q, k, v;
    int is_v; /* the bias is v, else k */
} three;

static ml_tensor three_build(ml_graph *g, void *user) {
    static const int32_t start[] = {0, 64}, key_start[] = {0, 128};
    const three *t = (const three *)user;
    ml_attention_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.q = t->q, desc.k = t->k, desc.v = t->v, desc.bias = t->is_v ? t->v : t->k;
    desc.n_heads = 2;
    desc.rows.start = start, desc.key_rows.start = key_start, desc.rows.n_rows = desc.key_rows.n_rows = 1;
    ml_tensor y = ml_attention(g, &desc);
    return ml_sum(g, ml_mul(g, y, y));
}

/* Keys or values that are the bias of the heads, too: their gradients do not depend on who comes first. They add up
   over passes, since a sum of two has no order. */
TEST(keys_that_are_the_bias) {
    enum { N = 128 * 128 };
    static float q[N / 2], numbers[2][N], gradient[N], first[N];
    ml_random random;
    ml_random_seed(&random, 1);
    for (int i = 0; i < N / 2; i++) q[i] = ml_random_normal(&random);
    for (int i = 0; i < 2 * N; i++) numbers[i / N][i % N] = ml_random_normal(&random);
    for (int way = 0; way < 4; way++) {
        ml_tensor tensors[] = {{ML_F32, 64, 128, q, NULL},
                               {ML_F32, 128, 128, numbers[0], way / 2 ? NULL : gradient},
                               {ML_F32, 128, 128, numbers[1], way / 2 ? gradient : NULL}};
        three t = {tensors[0], tensors[1], tensors[2], way / 2};
        int is_second_first = way % 2;
        ml_graph_desc desc;
        ml_graph *g;
        memset(&desc, 0, sizeof desc), memset(gradient, 0, sizeof gradient);
        desc.threads.count = 2, desc.threads.parallel_for = two_ways, desc.threads.user = &is_second_first;
        REQUIRE(!ml_graph_new(&desc, three_build, &t, &g, NULL));
        for (int pass = 0; pass < 3; pass++) {
            ml_graph_begin(g, 1);
            CHECK(ml_graph_backward(g, three_build(g, &t), NULL) == ML_OK);
        }
        if (is_second_first) CHECK(memcmp(first, gradient, sizeof first) == 0);
        memcpy(first, gradient, sizeof first);
        ml_graph_free(g);
    }
}

/* A number that is not finite shows in all that depends on it, also where some keys are hidden. */
TEST(a_query_that_is_not_finite) {
    for (int way = 0; way < 4; way++) {
        setting s = {ML_MASK_CAUSAL, 2, 2, 6, 6, 0, way == 2 ? 9 : 0, way == 2, way == 1, 0};
        problem p;
        ml_graph *g;
        ml_error error;
        begin_attention(&p, s, one_row);
        if (way == 3) p.own.attention.dropout = .1f;
        for (size_t i = 0; i < p.v[Q].n; i++) p.v[Q].given[i] = NAN;
        REQUIRE(ml_graph_new(NULL, build_problem, &p, &g, &error) == ML_OK);
        ml_graph_begin(g, 1);
        CHECK(ml_graph_backward(g, build_problem(g, &p), &error) == ML_ERROR_NUMBER);
        const float *y = (const float *)passed.y.data;
        for (size_t i = 0; i < p.rows * p.cols; i++) CHECK(!(y[i] == y[i]));
        ml_graph_free(g);
        end_problem(&p);
    }
}

/* Two settings of the same operands: results and gradients agree to rounding. */
static void check_same(setting a, setting b, const int *lengths) {
    problem p[2];
    for (int i = 0; i < 2; i++) {
        begin_attention(&p[i], i ? b : a, lengths);
        run_pass(&p[i], 1, 0);
    }
    for (size_t i = 0; i < p[0].rows * p[0].cols; i++) CHECK_NEAR(p[0].y[i], p[1].y[i], 1e-6, 1e-6);
    for (int j = 0; j < p[0].n_variables; j++)
        for (size_t i = 0; i < p[0].v[j].n; i++) CHECK_NEAR(p[0].v[j].grad[i], p[1].v[j].grad[i], 1e-5, 1e-5);
    for (int i = 0; i < 2; i++) end_problem(&p[i]);
}

TEST(a_window_of_all_is_none) {
    for (int full = 0; full < 2; full++) {
        setting none = {full ? ML_MASK_FULL : ML_MASK_CAUSAL, 4, 2, 6, 6, 2, 0, 0, 0, 0}, all = none;
        all.window = 1000;
        check_same(none, all, long_rows);
        all.window = 1, all.sinks = 1000;
        check_same(none, all, long_rows);
    }
}

/* Hides from query t, of the `position`-th block of 16, all but its own and the first block of keys. */
static int is_hidden_block(int query, int key) { return key / 16 != query / 16 && key / 16 != 0; }

/* A bias of -infinity hides: what is left is attention over the keys that it leaves. One query sees nothing. */
TEST(block_sparse_by_bias) {
    setting s = {ML_MASK_CAUSAL, 2, 1, 6, 6, 0, 0, 0, 2, 0};
    problem p;
    begin_attention(&p, s, one_row);
    variable *bias = &p.v[BIAS];
    for (int h = 0; h < 2; h++)
        for (int t = 0; t < 70; t++)
            for (int j = 0; j < 70; j++)
                if (is_hidden_block(t, j) || t == 33)
                    bias->given[(h * 70 + t) * 71 + j] = -INFINITY,
                                                    bias->exact[(h * 70 + t) * 71 + j] = -INFINITY;
    check_with_frozen(&p, 60);
    for (size_t c = 0; c < p.cols; c++) CHECK(p.y[33 * p.cols + c] == 0);
    for (int j = 0; j < p.n_variables; j++)
        for (size_t i = 0; i < p.v[j].n; i++) CHECK(p.v[j].grad[i] - p.v[j].grad[i] == 0);
    end_problem(&p);
}

/* ---- ALiBi ---- */

static ml_tensor alibi_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor bias = ml_alibi(g, p->own.attention.n_heads, rows_of(p), (size_t)p->own.start[p->own.n_rows]);
    CHECK(!bias.grad);
    return ml_add(g, bias, v[0]); /* so that something learns */
}

static void alibi_plain(const problem *p, double *y) {
    int n = p->own.start[p->own.n_rows];
    for (int h = 0; h < p->own.attention.n_heads; h++)
        for (int r = 0; r < p->own.n_rows; r++)
            for (int t = p->own.start[r]; t < p->own.start[r + 1]; t++)
                for (int j = 0; j < (int)p->cols; j++)
                    y[(h * n + t) * (int)p->cols + j] =
                        -pow(2, -8.0 * (h + 1) / p->own.attention.n_heads) * abs(t - p->own.start[r] - j) +
                        p->v[0].exact[(h * n + t) * (int)p->cols + j];
}

TEST(alibi) {
    problem p;
    begin_problem(&p, alibi_build, alibi_plain);
    size_t n = set_rows(&p, few_rows, 0);
    p.own.attention.n_heads = 3;
    add(&p, 3 * n, 17, 0, 0);
    set_output(&p, 3 * n, 17);
    check_with_frozen(&p, 10);
    end_problem(&p);
}

/* ---- differential attention (Ye et al. 2024, "Differential Transformer"): (softmax1 - lambda softmax2) v ---- */

enum { Q2 = 3, K2 };

static ml_tensor differential_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_attention_desc desc = p->own.attention;
    desc.rows = rows_of(p);
    desc.q = v[Q], desc.k = v[K], desc.v = v[V];
    ml_tensor first = ml_attention(g, &desc);
    desc.q = v[Q2], desc.k = v[K2];
    return ml_sub(g, first, ml_scale(g, ml_attention(g, &desc), (float)p->own.lambda));
}

static void differential_plain(const problem *p, double *y) {
    problem other = *p;
    double *second = (double *)allocate(p->rows * p->cols, sizeof *second);
    other.n_variables = 3;
    attention_plain(&other, y);
    other.v[Q] = p->v[Q2], other.v[K] = p->v[K2];
    attention_plain(&other, second);
    for (size_t i = 0; i < p->rows * p->cols; i++) y[i] -= p->own.lambda * second[i];
    free(second);
}

TEST(differential_attention) {
    setting s = {ML_MASK_CAUSAL, 4, 2, 6, 12, 0, 0, 0, 0, 0};
    problem p;
    begin_attention(&p, s, few_rows);
    p.build = differential_build;
    p.plain = differential_plain;
    p.own.lambda = .375;
    add(&p, p.v[Q].rows, p.v[Q].cols, 0, 1.2);
    add(&p, p.v[K].rows, p.v[K].cols, 0, 1.2);
    check_with_frozen(&p, 20);
    end_problem(&p);
}

/* ---- tables of rotations ---- */

/* The angle of a pair at a position, in doubles; YaRN as in the paper's code: pairs below `low` keep their frequency,
   pairs above `high` are interpolated. */
static double plain_angle(const ml_rope_desc *d, int j, int position) {
    double hd = (double)d->hd, theta = (double)d->theta, s = (double)d->scale, pi = acos(-1.0), ramp;
    if (d->kind == ML_ROPE_NTK) return position / pow(theta * pow(s, hd / (hd - 2)), 2 * j / hd);
    double frequency = 1 / pow(theta, 2 * j / hd);
    if (d->kind == ML_ROPE_PLAIN) return position / s * frequency;
    double low = floor(hd * log(d->original / (32 * 2 * pi)) / (2 * log(theta)));
    double high = ceil(hd * log(d->original / (1 * 2 * pi)) / (2 * log(theta)));
    low = low < 0 ? 0 : low, high = high > hd - 1 ? hd - 1 : high;
    ramp = (j - low) / (high > low ? high - low : .001);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return position * (frequency / s * ramp + frequency * (1 - ramp));
}

/* A float angle up to 50 has an error of 2e-6 times a few. */
TEST(rope_tables) {
    static const ml_rope_desc descs[] = {{ML_ROPE_PLAIN, 8, 10000, 1, 0, 0, 0, 0, NULL},
                                         {ML_ROPE_PLAIN, 10, 500, 4, 0, 0, 0, 0, NULL},
                                         {ML_ROPE_NTK, 16, 10000, 4, 0, 0, 0, 0, NULL},
                                         {ML_ROPE_YARN, 32, 10000, 4, 64, 0, 0, 0, NULL},
                                         {ML_ROPE_YARN, 64, 10000, 8, 512, 0, 0, 0, NULL},
                                         {ML_ROPE_YARN, 128, 500000, 16, 2048, 0, 0, 0, NULL}};
    static float table[50 * 128];
    for (size_t k = 0; k < sizeof descs / sizeof *descs; k++) {
        const ml_rope_desc *d = &descs[k];
        double length = d->kind == ML_ROPE_YARN ? .1 * log((double)d->scale) + 1 : 1;
        CHECK(ml_rope_table(d, table, 50) == ML_OK);
        for (int t = 0; t < 50; t++)
            for (int j = 0; j < (int)d->hd / 2; j++) {
                double angle = plain_angle(d, j, t);
                CHECK_NEAR(table[t * (int)d->hd + 2 * j], length * cos(angle), 2e-5, 0);
                CHECK_NEAR(table[t * (int)d->hd + 2 * j + 1], length * sin(angle), 2e-5, 0);
            }
    }
}

/* Frequencies of YaRN (hd 16, theta 10000, scale 8, original 64) by its formula in PyTorch, float64: cosines of
   position 3, over the factor 0.1 ln 8 + 1 = 1.20794415. */
TEST(yarn_against_pytorch) {
    static const double cosines[8] = {-0.989992496600, 0.782588086096, 0.992197667229, 0.999929688324,
                                      0.999992968758,  0.999999296875, 0.999999929688, 0.999999992969};
    float table[4 * 16];
    ml_rope_desc desc = {ML_ROPE_YARN, 16, 0, 8, 64, 0, 0, 0, NULL};
    CHECK(ml_rope_table(&desc, table, 4) == ML_OK);
    for (int j = 0; j < 8; j++) CHECK_NEAR(table[3 * 16 + 2 * j], 1.20794415416798 * cosines[j], 1e-6, 0);
}

TEST(rope_tables_that_are_refused) {
    static const ml_rope_desc wrong[] = {
        {ML_ROPE_PLAIN, 7, 0, 0, 0, 0, 0, 0, NULL},  {ML_ROPE_PLAIN, 0, 0, 0, 0, 0, 0, 0, NULL},
        {ML_ROPE_YARN, 8, 0, 4, 0, 0, 0, 0, NULL},   {(ml_rope_kind)9, 8, 0, 0, 0, 0, 0, 0, NULL},
        {ML_ROPE_PLAIN, 8, -1, 0, 0, 0, 0, 0, NULL}, {ML_ROPE_NTK, 8, 0, -2, 0, 0, 0, 0, NULL}};
    float table[64];
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(ml_rope_table(&wrong[i], table, 4) == ML_ERROR_ARGUMENT);
    for (int i = 0; i < 4; i++) {
        const float factors[4] = {1, 1, i == 0 ? 0 : i == 1 ? -1 : i == 2 ? NAN : INFINITY, 1};
        ml_rope_desc desc = {ML_ROPE_PLAIN, 8, 0, 0, 0, 0, 0, 0, factors};
        CHECK(ml_rope_table(&desc, table, 4) == ML_ERROR_ARGUMENT);
    }
}

/* The plain table is that of the model. */
static struct {
    ml_model *model;
    ml_tensor table;
    float hidden[2][5 * 16];
} llama;

static ml_tensor llama_build(ml_graph *g, void *user) {
    static const int32_t tokens[5] = {1, 4, 2, 7, 3};
    ml_batch batch = {tokens, 5, NULL, 0, NULL, NULL, 0};
    ml_llama_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.model = llama.model;
    desc.batch = &batch;
    if (*(int *)user) desc.rope = llama.table;
    return ml_llama(g, &desc);
}

TEST(the_models_own_table) {
    ml_random random;
    ml_error error;
    float table[5 * 4];
    ml_random_seed(&random, 1);
    ml_model_create_desc create = {
        {16, 24, 2, 4, 2, 9, 8, 1, ML_NORM_RMS, ML_MASK_CAUSAL, 1e-5f, 700, 3, 0, 0, 0, ML_ROPE_PLAIN,
         0,  0,  0, 0},
        ML_F32,
        &random,
        {0}};
    ml_rope_desc rope = {ML_ROPE_PLAIN, 4, 700, 3, 0, 0, 0, 0, NULL};
    REQUIRE(ml_model_create(&create, &llama.model, &error) == ML_OK);
    CHECK(ml_rope_table(&rope, table, 5) == ML_OK);
    llama.table = matrix(table, 5, 4, NULL);
    for (int own = 0; own < 2; own++) {
        ml_graph *g;
        CHECK(ml_graph_new(NULL, llama_build, &own, &g, &error) == ML_OK);
        ml_graph_begin(g, 0);
        ml_tensor hidden = llama_build(g, &own);
        CHECK(ml_graph_end(g, &error) == ML_OK);
        memcpy(llama.hidden[own], hidden.data, sizeof llama.hidden[own]);
        ml_graph_free(g);
    }
    CHECK(memcmp(llama.hidden[0], llama.hidden[1], sizeof llama.hidden[0]) == 0);
    ml_model_free(llama.model);
}

static ml_tensor rotate_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_rotate(g, v[0], matrix(p->extra, 20, p->own.hd, NULL), rows_of(p));
}

static void rotate_plain(const problem *p, double *y) {
    int cols = (int)p->cols, hd = (int)p->own.hd;
    for (int r = 0; r < p->own.n_rows; r++)
        for (int t = p->own.start[r]; t < p->own.start[r + 1]; t++)
            for (int c = 0; c < cols; c += 2) {
                const float *turn = p->extra + (t - p->own.start[r]) * hd + c % hd;
                double a = p->v[0].exact[t * cols + c], b = p->v[0].exact[t * cols + c + 1];
                y[t * cols + c] = a * (double)turn[0] - b * (double)turn[1];
                y[t * cols + c + 1] = a * (double)turn[1] + b * (double)turn[0];
            }
}

TEST(rotation) {
    static const size_t sizes[3] = {2, 10, 64};
    for (int i = 0; i < 3; i++) {
        problem p;
        ml_rope_desc desc = {ML_ROPE_YARN, sizes[i], 100, 4, 512, 0, 0, 0, NULL};
        begin_problem(&p, rotate_build, rotate_plain);
        size_t n = set_rows(&p, few_rows, 0);
        p.own.hd = sizes[i];
        p.extra = (float *)allocate(20 * p.own.hd, sizeof *p.extra);
        CHECK(ml_rope_table(&desc, p.extra, 20) == ML_OK);
        add(&p, n, 3 * p.own.hd, 0, 1);
        set_output(&p, n, 3 * p.own.hd);
        check_with_frozen(&p, 40);
        end_problem(&p);
    }
}

/* ---- pooling ---- */

static ml_tensor pool_build(ml_graph *g, const ml_tensor *v, problem *p) {
    if (p->n_variables > SCORES) return ml_pool_weighted(g, v[X], v[SCORES], rows_of(p));
    if (p->own.n_spans) return ml_pool_spans(g, v[X], p->own.spans, p->own.n_spans, p->own.pooling);
    return ml_pool_rows(g, v[X], rows_of(p), p->own.pooling);
}

static double pool_plain_number(const problem *p, int begin, int end, int c) {
    const double *x = p->v[X].exact;
    int cols = (int)p->cols;
    double y = p->own.pooling == ML_POOL_MEAN ? 0 : x[(end - 1) * cols + c];
    for (int i = begin; i < end && p->own.pooling != ML_POOL_LAST; i++)
        y = p->own.pooling == ML_POOL_MEAN ? y + x[i * cols + c] / (end - begin) : larger(y, x[i * cols + c]);
    return y;
}

static void pool_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->rows * p->cols; i++) {
        int r = (int)(i / p->cols), c = (int)(i % p->cols);
        int begin = p->own.n_spans ? p->own.spans[r].begin : p->own.start[r],
            end = p->own.n_spans ? p->own.spans[r].end : p->own.start[r + 1];
        y[i] = pool_plain_number(p, begin, end, c);
        if (p->n_variables <= SCORES) continue;
        double sum = 0;
        y[i] = 0;
        for (int t = begin; t < end; t++) sum += exp(p->v[SCORES].exact[t]);
        for (int t = begin; t < end; t++)
            y[i] += exp(p->v[SCORES].exact[t]) / sum * p->v[X].exact[t * (int)p->cols + c];
    }
}

/* Of rows, of spans that overlap, and weighted. */
TEST(pooling) {
    static const ml_span spans[] = {{0, 1}, {0, 29}, {3, 9}, {5, 9}, {8, 20}, {28, 29}};
    for (int kind = ML_POOL_LAST; kind <= ML_POOL_MAX; kind++)
        for (int way = 0; way < 3; way++) {
            problem p;
            begin_problem(&p, pool_build, pool_plain);
            size_t n = set_rows(&p, few_rows, 0);
            p.own.pooling = (ml_pooling)kind;
            if (way == 1) p.own.n_spans = 6, memcpy(p.own.spans, spans, sizeof spans);
            add(&p, n, 21, 0, 1);
            if (way == 2) add(&p, n, 1, 0, 1);
            set_output(&p, way == 1 ? 6 : (size_t)p.own.n_rows, 21);
            check_with_frozen(&p, 700);
            end_problem(&p);
        }
}

/* A head that pools the maximum gives the log-softmax of its layer on the largest numbers of the hidden states; an
   embedding is these; and no file can hold such a head. */
TEST(maximum_in_heads_and_embeddings) {
    static const int32_t tokens[5] = {1, 4, 2, 7, 3}, row_start[3] = {0, 2, 5};
    ml_batch batch = {tokens, 5, row_start, 2, NULL, NULL, 0};
    ml_random random;
    ml_error error;
    ml_model *model;
    ml_session *session;
    ml_head *head;
    float hidden[5 * 16], pooled[2 * 16], log_probs[2 * 3];
    ml_random_seed(&random, 1);
    ml_model_create_desc create = {
        {16, 24, 2, 4, 2, 9, 8, 1, ML_NORM_RMS, ML_MASK_CAUSAL, 1e-5f, 700, 3, 0, 0, 0, ML_ROPE_PLAIN,
         0,  0,  0, 0},
        ML_F32,
        &random,
        {0}};
    ml_head_create_desc top = {3, NULL, ML_POOL_MAX, 0, &random, {0}};
    ml_outputs outputs = {NULL, 0, hidden, NULL};
    ml_embed_desc embed = {ML_POOL_MAX, 0};
    REQUIRE(ml_model_create(&create, &model, &error) == ML_OK);
    REQUIRE(ml_head_create(model, &top, &head, &error) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, &error) == ML_OK);
    CHECK(ml_session_eval_batch(session, &batch, &outputs, &error) == ML_OK);
    CHECK(ml_session_embed(session, &batch, &embed, pooled, &error) == ML_OK);
    CHECK(ml_head_eval(head, session, &batch, log_probs, &error) == ML_OK);
    for (int r = 0; r < 2; r++) {
        double logits[3], sum = 0, h[16];
        for (int c = 0; c < 16; c++) {
            h[c] = -1e30;
            for (int t = row_start[r]; t < row_start[r + 1]; t++)
                h[c] = larger(h[c], (double)hidden[t * 16 + c]);
            CHECK((double)pooled[r * 16 + c] == h[c]);
        }
        for (int k = 0; k < 3; k++) {
            logits[k] = (double)((float *)head->bias.data)[k];
            for (int c = 0; c < 16; c++) logits[k] += h[c] * (double)((float *)head->weight.data)[k * 16 + c];
            sum += exp(logits[k]);
        }
        for (int k = 0; k < 3; k++) CHECK_NEAR(log_probs[r * 3 + k], logits[k] - log(sum), 1e-5, 0);
    }
    ml_save_desc save;
    memset(&save, 0, sizeof save);
    save.head = head;
    CHECK(ml_model_save(model, "never-written.gguf", &save, &error) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(error.text, "ML_POOL_MAX"));
    ml_session_free(session);
    ml_head_free(head);
    ml_model_free(model);
}

/* ---- what does not fit ---- */

enum {
    HEADS,
    KEY_WIDTH,
    VALUES,
    ROWS,
    EMPTY_ROW,
    KEY_ROWS,
    NO_START,
    FEW_KEYS,
    FEW_KEYS_NEAR,
    BIAS_SHAPE,
    WINDOW,
    DROPOUT,
    SHORT_TABLE,
    ODD_TABLE,
    SPAN,
    SCORE_SHAPE,
    POOLING_NAME,
    WRONGS
};

static const struct {
    ml_result result;
    const char *text;
} wrongs[WRONGS] = {{ML_ERROR_ARGUMENT, "n_kv_heads 3 does not divide n_heads 4"},
                    {ML_ERROR_MISMATCH, "(6, 8) and (6, 6)"},
                    {ML_ERROR_MISMATCH, "(6, 8) and (5, 8)"},
                    {ML_ERROR_ARGUMENT, "from 0 to the 6 tokens"},
                    {ML_ERROR_ARGUMENT, "row 1 is empty"},
                    {ML_ERROR_MISMATCH, "2 rows of queries, 1 of keys"},
                    {ML_ERROR_ARGUMENT, "ml_attention: 2 rows, and start is NULL"},
                    {ML_ERROR_MISMATCH, "row 1 has 3 queries and only 2 keys"},
                    {ML_ERROR_MISMATCH, "only ML_MASK_FULL without a window"},
                    {ML_ERROR_MISMATCH, "the bias is (6, 2), not (6, 3) or (24, 3)"},
                    {ML_ERROR_ARGUMENT, "window"},
                    {ML_ERROR_ARGUMENT, "dropout"},
                    {ML_ERROR_CONTEXT, "a row has 3 tokens, the table 2 positions"},
                    {ML_ERROR_MISMATCH, "(6, 8) and (4, 3)"},
                    {ML_ERROR_ARGUMENT, "span 1, [4, 7)"},
                    {ML_ERROR_MISMATCH, "(6, 8) and (5, 1)"},
                    {ML_ERROR_ARGUMENT, "pooling is not one of its names"}};

static ml_tensor wrong_build(ml_graph *g, void *user) {
    static float numbers[64];
    static const int32_t halves[] = {0, 3, 6}, short_rows[] = {0, 3, 5}, empty[] = {0, 3, 3, 6},
                         fewer[] = {0, 4, 6};
    static const ml_span spans[] = {{0, 2}, {4, 7}};
    int which = *(int *)user;
    ml_tensor x = matrix(numbers, 6, 8, NULL);
    ml_rows rows = {halves, 2};
    ml_attention_desc d;
    memset(&d, 0, sizeof d);
    d.q = d.k = d.v = x, d.n_heads = 4, d.rows = rows;
    switch (which) {
    case HEADS: d.n_kv_heads = 3; break;
    case KEY_WIDTH: d.k.cols = 6; break;
    case VALUES: d.v.rows = 5; break;
    case ROWS: d.rows.start = short_rows; break;
    case EMPTY_ROW: d.rows.start = empty, d.rows.n_rows = 3; break;
    case KEY_ROWS: d.key_rows.start = halves + 0, d.key_rows.n_rows = 1, d.k.rows = d.v.rows = 3; break;
    case NO_START: d.rows.start = NULL; break;
    case FEW_KEYS_NEAR: d.mask = ML_MASK_FULL, d.window = 2; /* fall through */
    case FEW_KEYS: d.key_rows.start = fewer, d.key_rows.n_rows = 2; break;
    case BIAS_SHAPE: d.bias = matrix(numbers, 6, 2, NULL); break;
    case WINDOW: d.window = -1; break;
    case DROPOUT: d.dropout = 1; break;
    case SHORT_TABLE: return ml_rotate(g, x, matrix(numbers, 2, 4, NULL), rows);
    case ODD_TABLE: return ml_rotate(g, x, matrix(numbers, 4, 3, NULL), rows);
    case SPAN: return ml_pool_spans(g, x, spans, 2, ML_POOL_MEAN);
    case SCORE_SHAPE: return ml_pool_weighted(g, x, matrix(numbers, 5, 1, NULL), rows);
    default: return ml_pool_rows(g, x, rows, (ml_pooling)7);
    }
    return ml_attention(g, &d);
}

TEST(what_does_not_fit) {
    for (int which = 0; which < WRONGS; which++) {
        size_t size;
        ml_error error;
        CHECK(ml_graph_size(NULL, wrong_build, &which, &size, &error) == wrongs[which].result);
        CHECK(strstr(error.text, wrongs[which].text));
        if (!strstr(error.text, wrongs[which].text)) printf("%d: %s\n", which, error.text);
    }
}

int main(void) {
    RUN(attention_of_groups_rows_and_masks);
    RUN(attention_over_fewer_keys);
    RUN(attention_with_bias);
    RUN(attention_with_window_and_sinks);
    RUN(attention_with_dropout);
    RUN(dropout_is_drawn_by_seed);
    RUN(dropout_while_a_gradient_is_checked);
    RUN(operands_that_overlap);
    RUN(keys_that_are_the_bias);
    RUN(a_query_that_is_not_finite);
    RUN(a_window_of_all_is_none);
    RUN(block_sparse_by_bias);
    RUN(alibi);
    RUN(differential_attention);
    RUN(rope_tables);
    RUN(yarn_against_pytorch);
    RUN(rope_tables_that_are_refused);
    RUN(the_models_own_table);
    RUN(rotation);
    RUN(pooling);
    RUN(maximum_in_heads_and_embeddings);
    RUN(what_does_not_fit);
    return test_report("test_attention");
}
