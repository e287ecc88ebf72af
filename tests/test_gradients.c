/* Every operation's backward against central differences of the same operation written plainly in doubles.

   With a random dy, L(x) = sum(dy * op(x)); its derivative along any direction is (L(x + h d) - L(x - h d)) / 2h. In
   doubles with h = 1e-5 the truncation error, of h^2, and the rounding error, of 1e-16 / h, both stay near 1e-10, so
   that what remains is the error of the library's float gradients alone: about 1e-7 for each rounding, a few times
   more in long sums. Single numbers are compared relative to the largest of their gradient, directions relative to
   its length: TOLERANCE of that. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"

#define TOLERANCE 1e-5
#define STEP 1e-5

/* Sizes inside the library; the shapes below are multiples of them and not. */
enum {
    QUERY_BLOCK = 64, /* queries of a tile of attention */
    LOSS_ROWS = 256,  /* rows of logits that exist at a time */
    MAX_WEIGHTS = 3,  /* that share an input */
    ALIGNMENT = 64    /* bytes, of everything on a graph */
};

static double larger(double a, double b) { return a > b ? a : b; }

/* ---- a problem: an operation, what goes in, and the gradient that comes out ---- */

typedef enum variable_role {
    ACTIVATION, /* made on the graph; its gradient overwrites it, unless they are to be separate */
    STREAM,     /* in other memory than its gradient, which is added to */
    WEIGHT,     /* owned by the caller; its gradient is added to */
    FROZEN      /* a weight without a gradient */
} variable_role;

typedef struct variable {
    const char *name;
    variable_role role;
    int rows, cols;
    size_t n;
    float *given;  /* what the library computes with ... */
    double *exact; /* ... and the plain operation: the same numbers, until a difference is taken */
    float *grad;
    ml_tensor at; /* where it was in the last pass */
} variable;

enum {
    MAX_LAYERS = 2,
    MAX_VARIABLES = MAX_LAYERS * (int)(sizeof mli_params / sizeof *mli_params), /* or fewer */
    MAX_OUTPUTS = 3
};

typedef struct problem {
    /* computes on the graph, names the outputs by output(), and returns the loss if it is one */
    double (*forward)(mli_graph *g, struct problem *p);
    void (*plain)(const struct problem *p,
                  double *const *y); /* all outputs from the variables' exact values */
    variable v[MAX_VARIABLES];
    int n_variables;
    ml_tensor out[MAX_OUTPUTS];
    size_t n_out[MAX_OUTPUTS];
    double *dy[MAX_OUTPUTS], *y[MAX_OUTPUTS];
    int n_outputs, is_loss;
    double result; /* of the last pass, if it is a loss */
    double tolerance, forward_tolerance;
    ml_random random;

    /* what single operations need in addition */
    ml_config config;
    mli_rows rows;
    int32_t starts[8], *index;
    int n, n_weights, rank, checkpointing, separate, recorded;
    float scale, p;
    float *rope;
    ml_pooling pooling;
    const void *quantized;
    ml_model model;
    ml_tensor tensors[MAX_VARIABLES];
} problem;

static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    if (!memory) exit(2);
    return memory;
}

/* A variable of random numbers. */
static variable *add(problem *p, const char *name, variable_role as, int rows, int cols, double mean,
                     double sd) {
    variable *v = &p->v[p->n_variables++];
    size_t i;
    v->name = name;
    v->role = as;
    v->rows = rows;
    v->cols = cols;
    v->n = (size_t)rows * (size_t)cols;
    v->given = (float *)allocate(v->n, sizeof *v->given);
    v->exact = (double *)allocate(v->n, sizeof *v->exact);
    v->grad = (float *)allocate(v->n, sizeof *v->grad);
    for (i = 0; i < v->n; i++) {
        v->given[i] = (float)(mean + sd * (double)ml_random_normal(&p->random));
        v->exact[i] = (double)v->given[i];
    }
    return v;
}

static void problem_begin(problem *p, uint64_t seed) {
    memset(p, 0, sizeof *p);
    ml_random_seed(&p->random, seed);
    p->tolerance = p->forward_tolerance = TOLERANCE;
    p->scale = 1;
}

static void problem_end(problem *p) {
    int i;
    for (i = 0; i < p->n_variables; i++) free(p->v[i].given), free(p->v[i].exact), free(p->v[i].grad);
    for (i = 0; i < p->n_outputs; i++) free(p->dy[i]), free(p->y[i]);
    free(p->rope);
    free(p->index);
}

/* Rows of these lengths, ended by 0. */
static void set_rows(problem *p, const int *lengths) {
    int r;
    for (r = 0; lengths[r]; r++) p->starts[r + 1] = p->starts[r] + lengths[r];
    p->rows.start = p->starts;
    p->rows.n_rows = r;
    p->n = p->starts[r];
}

static void add_output(problem *p, int rows, int cols) {
    size_t i, n = (size_t)rows * (size_t)cols;
    int j = p->n_outputs++;
    p->n_out[j] = n;
    p->dy[j] = (double *)allocate(n, sizeof **p->dy);
    p->y[j] = (double *)allocate(n, sizeof **p->y);
    for (i = 0; i < n; i++) p->dy[j][i] = p->is_loss ? 1.0 : (double)ml_random_normal(&p->random);
}

static void add_loss(problem *p) {
    p->is_loss = 1;
    add_output(p, 1, 1);
}

/* Variable i as the operation's operand. */
static ml_tensor operand(mli_graph *g, problem *p, int i) {
    variable *v = &p->v[i];
    size_t rows = (size_t)v->rows, cols = (size_t)v->cols;
    if (v->role == ACTIVATION || v->role == STREAM) {
        float *grad = v->role == STREAM ? (float *)mli_new(g, rows, cols).data : NULL;
        v->at = mli_new(g, rows, cols);
        if (grad) v->at.grad = grad;
        if (!mli_measuring(g)) memcpy(v->at.data, v->given, v->n * sizeof *v->given);
        if (grad && !mli_measuring(g)) memcpy(grad, v->given, v->n * sizeof *grad); /* something to add to */
    } else {
        v->at = mli_tensor_at(v->given, rows, cols);
        v->at.grad = v->role == WEIGHT ? v->grad : NULL;
    }
    return v->at;
}

static void output(problem *p, int j, ml_tensor t) { p->out[j] = t; }

/* ---- running it on a graph ---- */

#define CANARIES 256

static unsigned char *with_canaries(size_t size, unsigned char **block) {
    *block = (unsigned char *)allocate(size + 2 * CANARIES + ALIGNMENT, 1);
    memset(*block, 0xab, size + 2 * CANARIES + ALIGNMENT);
    {
        unsigned char *at = (unsigned char *)mli_align_up((uintptr_t)*block + CANARIES);
        memset(at, 0xff, size); /* NaN, to find reads of what was not written */
        return at;
    }
}

static int canaries_live(const unsigned char *at, size_t size) {
    int i;
    for (i = 1; i <= CANARIES - ALIGNMENT; i++)
        if (at[-i] != 0xab || at[size + (size_t)i - 1] != 0xab) return 0;
    return 1;
}

static void tasks_backwards(void *user, int n_tasks, ml_task task, void *arg) {
    (void)user;
    while (n_tasks-- > 0) task(arg, n_tasks);
}

/* Runs forward and backward `times` times in exactly the measured memory; gradients end in the variables. */
static void run_passes(problem *p, int n_threads, int times) {
    ml_threads threads;
    mli_graph g;
    unsigned char *memory, *work, *memory_block, *work_block;
    size_t i;
    int j, pass;
    memset(&threads, 0, sizeof threads);
    threads.count = n_threads;
    threads.parallel_for = tasks_backwards;
    memset(&g, 0, sizeof g);
    g.threads = &threads;
    g.taping = 1;
    g.checkpointing = p->checkpointing;
    g.separate = p->separate;
    p->forward(&g, p);
    g.size = g.peak > g.used + g.recompute ? g.peak : g.used + g.recompute;
    g.memory = memory = with_canaries(g.size, &memory_block);
    g.work = work = with_canaries(g.work_size, &work_block);
    for (j = 0; j < p->n_variables; j++) memset(p->v[j].grad, 0, p->v[j].n * sizeof *p->v[j].grad);
    for (pass = 0; pass < times; pass++) {
        mli_release(&g, 0);
        g.newest = NULL;
        g.taping = 1;
        p->result = p->forward(&g, p);
        g.taping = 0;
        p->plain(p, p->y);
        for (j = 0; j < p->n_outputs && !p->is_loss; j++) {
            double most = 1;
            for (i = 0; i < p->n_out[j]; i++) most = larger(most, fabs(p->y[j][i]));
            for (i = 0; i < p->n_out[j]; i++)
                CHECK_NEAR(((float *)p->out[j].data)[i], p->y[j][i], p->forward_tolerance * most, 0);
            for (i = 0; i < p->n_out[j]; i++) p->out[j].grad[i] = (float)p->dy[j][i];
        }
        if (p->is_loss) CHECK_NEAR(p->result, p->y[0][0], TOLERANCE, TOLERANCE);
        mli_run_backward(&g, NULL);
        CHECK(g.used <= g.size);
    }
    for (j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        if (v->role == ACTIVATION || v->role == STREAM) memcpy(v->grad, v->at.grad, v->n * sizeof *v->grad);
        for (i = 0; i < v->n && v->role == STREAM; i++) v->grad[i] -= v->given[i];
    }
    CHECK(canaries_live(memory, g.size) && canaries_live(work, g.work_size));
    free(memory_block);
    free(work_block);
}

static double loss_of(const problem *p) {
    double sum = 0;
    size_t i;
    int j;
    p->plain(p, p->y);
    for (j = 0; j < p->n_outputs; j++)
        for (i = 0; i < p->n_out[j]; i++) sum += (double)(float)p->dy[j][i] * p->y[j][i];
    return sum;
}

/* Compares the gradient of v with differences: of up to `most` of its numbers, and along three directions. */
static void check_gradient(problem *p, variable *v, int most) {
    double *saved = (double *)allocate(v->n, sizeof *saved), *along = (double *)allocate(v->n, sizeof *along);
    double largest = 0, length = 0;
    size_t i;
    int turn;
    memcpy(saved, v->exact, v->n * sizeof *saved);
    for (i = 0; i < v->n; i++) {
        double grad = (double)v->grad[i];
        CHECK(grad - grad == 0);
        largest = larger(largest, fabs(grad));
        length += grad * grad;
    }
    length = sqrt(length);
    if (v->n < (size_t)most) most = (int)v->n;
    for (turn = 0; turn < most + 3; turn++) {
        double ours = 0, above, below, difference, limit;
        size_t only = v->n <= (size_t)most ? (size_t)turn : (size_t)(ml_random_u64(&p->random) % v->n);
        for (i = 0; i < v->n; i++) along[i] = turn < most ? i == only : (double)ml_random_normal(&p->random);
        for (i = 0; i < v->n; i++) ours += (double)v->grad[i] * along[i];
        for (i = 0; i < v->n; i++) v->exact[i] = saved[i] + STEP * along[i];
        above = loss_of(p);
        for (i = 0; i < v->n; i++) v->exact[i] = saved[i] - STEP * along[i];
        below = loss_of(p);
        memcpy(v->exact, saved, v->n * sizeof *saved);
        difference = (above - below) / (2 * STEP);
        limit = p->tolerance * (turn < most ? largest : length) + 1e-8;
        if (!(fabs(ours - difference) <= limit)) {
            if (test_current_failed < 8)
                printf("%s%s %d: %.9g, not %.9g (largest %g, length %g)\n", v->name,
                       turn < most ? "" : ", direction", (int)only, ours, difference, largest, length);
            CHECK(fabs(ours - difference) <= limit);
        }
    }
    free(saved);
    free(along);
}

/* Everything: gradients are right; three threads give the same bits, and so do gradients apart from the values; a
   second pass adds as much again to weights, and writes the same to activations. */
static void check_problem(problem *p, int most) {
    float *first[MAX_VARIABLES];
    size_t i;
    int j;
    run_passes(p, 1, 1);
    for (j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        if (v->role != FROZEN) check_gradient(p, v, most);
        first[j] = (float *)allocate(v->n, sizeof **first);
        memcpy(first[j], v->grad, v->n * sizeof **first);
    }
    run_passes(p, 3, 1);
    for (j = 0; j < p->n_variables; j++)
        CHECK(memcmp(first[j], p->v[j].grad, p->v[j].n * sizeof **first) == 0);
    p->separate = 1;
    run_passes(p, 1, 1);
    p->separate = 0;
    for (j = 0; j < p->n_variables; j++)
        for (i = 0; i < p->v[j].n; i++) CHECK(p->v[j].grad[i] == first[j][i]); /* 0 and -0 are equal */
    run_passes(p, 1, 2);
    for (j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        double largest = 0;
        for (i = 0; i < v->n; i++) largest = larger(largest, fabs((double)first[j][i]));
        for (i = 0; i < v->n; i++) {
            if (v->role == WEIGHT) /* a sum that starts at another value rounds differently */
                CHECK_NEAR(v->grad[i], 2 * (double)first[j][i], 2e-6 * largest, 0);
            else
                CHECK(v->grad[i] == first[j][i]);
        }
        free(first[j]);
    }
}

/* ---- SwiGLU ---- */

static double swiglu_forward(mli_graph *g, problem *p) {
    ml_tensor gate = operand(g, p, 0), up = operand(g, p, 1);
    output(p, 0, mli_gated(g, gate, up));
    return 0;
}

static void swiglu_plain(const problem *p, double *const *y) {
    size_t i;
    for (i = 0; i < p->v[0].n; i++) {
        double gate = p->v[0].exact[i];
        y[0][i] = gate / (1 + exp(-gate)) * p->v[1].exact[i];
    }
}

TEST(swiglu) {
    static const int shapes[4][2] = {{1, 1}, {3, 7}, {5, 33}, {301, 117}};
    int s;
    for (s = 0; s < 4; s++) {
        problem p;
        problem_begin(&p, 1 + (uint64_t)s);
        p.forward = swiglu_forward;
        p.plain = swiglu_plain;
        add(&p, "gate", ACTIVATION, shapes[s][0], shapes[s][1], 0, 2);
        add(&p, "up", ACTIVATION, shapes[s][0], shapes[s][1], 0, 1);
        if (s == 2) p.v[0].given[0] = -60, p.v[0].given[1] = 60; /* the ends of the range of e^x */
        if (s == 2) p.v[0].exact[0] = -60, p.v[0].exact[1] = 60;
        add_output(&p, shapes[s][0], shapes[s][1]);
        check_problem(&p, 60);
        problem_end(&p);
    }
}

/* ---- norms ---- */

#define EPS 1e-5f

static double norm_forward(mli_graph *g, problem *p) {
    ml_tensor x = operand(g, p, 0), weight = operand(g, p, 1), bias;
    memset(&bias, 0, sizeof bias);
    if (p->config.norm == ML_NORM_LAYER) bias = operand(g, p, 2);
    output(p, 0, mli_norm(g, x, weight, bias, EPS));
    return 0;
}

/* b NULL: RMSNorm */
static void norm_rows(double *y, const double *x, const double *w, const double *b, int rows, int n) {
    int r, i;
    for (r = 0; r < rows; r++, x += n, y += n) {
        double mean = 0, square = 0;
        for (i = 0; b && i < n; i++) mean += x[i] / n;
        for (i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / n;
        for (i = 0; i < n; i++) y[i] = (x[i] - mean) / sqrt(square + (double)EPS) * w[i] + (b ? b[i] : 0);
    }
}

static void norm_plain(const problem *p, double *const *y) {
    norm_rows(y[0], p->v[0].exact, p->v[1].exact, p->config.norm == ML_NORM_LAYER ? p->v[2].exact : NULL,
              p->v[0].rows, p->v[0].cols);
}

static void check_norm(ml_norm norm) {
    static const int shapes[6][2] = {{2, 3}, {3, 5}, {4, 37}, {7, 64}, {3, 100}, {301, 117}};
    int s, frozen;
    for (s = 0; s < 6; s++)
        for (frozen = 0; frozen < 2; frozen++) {
            problem p;
            int cols = shapes[s][1];
            problem_begin(&p, 10 + (uint64_t)s);
            p.config.norm = norm;
            p.forward = norm_forward;
            p.plain = norm_plain;
            add(&p, "x", STREAM, shapes[s][0], cols, 0.5, 1.5);
            add(&p, "weight", frozen ? FROZEN : WEIGHT, 1, cols, 1, 0.3);
            if (norm == ML_NORM_LAYER) add(&p, "bias", frozen ? FROZEN : WEIGHT, 1, cols, 0, 0.3);
            add_output(&p, shapes[s][0], cols);
            check_problem(&p, 50);
            problem_end(&p);
        }
}

TEST(rms_norm) { check_norm(ML_NORM_RMS); }
TEST(layer_norm) { check_norm(ML_NORM_LAYER); }

/* ---- rotary positions ---- */

static void set_rope(problem *p, int hd) {
    p->config.dim = hd;
    p->config.n_heads = 1;
    p->config.rope_theta = 500;
    p->config.rope_scale = 2;
    p->rope = (float *)allocate((size_t)p->n * (size_t)hd, sizeof *p->rope);
    ml_rope_desc rope = mli_rope_desc_of(&p->config, NULL);
    mli_rope_defaults(&rope);
    mli_rope_table(p->rope, mli_all_positions(p->n), &rope);
}

static double rope_forward(mli_graph *g, problem *p) {
    ml_tensor x = operand(g, p, 0);
    mli_rope(g, x, p->rope, 0, (size_t)(p->config.dim / p->config.n_heads), &p->rows);
    output(p, 0, x);
    return 0;
}

static void rope_rows(const problem *p, double *y, const double *x, int cols, int hd) {
    int r, i, j;
    for (r = 0; r < p->rows.n_rows; r++)
        for (i = p->starts[r]; i < p->starts[r + 1]; i++)
            for (j = 0; j < cols; j += 2) {
                const float *table = p->rope + (i - p->starts[r]) * hd + j % hd;
                double a = x[i * cols + j], b = x[i * cols + j + 1], c = (double)table[0],
                       s = (double)table[1];
                y[i * cols + j] = a * c - b * s;
                y[i * cols + j + 1] = a * s + b * c;
            }
}

static void rope_plain(const problem *p, double *const *y) {
    rope_rows(p, y[0], p->v[0].exact, p->v[0].cols, p->config.dim);
}

TEST(rope) {
    static const int sizes[4] = {2, 8, 10, 64}, lengths[] = {1, 5, 70, 3, 0};
    int s;
    for (s = 0; s < 4; s++) {
        problem p;
        problem_begin(&p, 20 + (uint64_t)s);
        set_rows(&p, lengths);
        set_rope(&p, sizes[s]);
        p.forward = rope_forward;
        p.plain = rope_plain;
        add(&p, "x", ACTIVATION, p.n, 7 * sizes[s], 0, 1);
        add_output(&p, p.n, 7 * sizes[s]);
        check_problem(&p, 50);
        problem_end(&p);
    }
}

/* ---- attention ---- */

static double attention_forward(mli_graph *g, problem *p) {
    ml_tensor q = operand(g, p, 0), k = operand(g, p, 1), v = operand(g, p, 2);
    mli_attention_op op = mli_plain_attention(q, k, v, &p->config, &p->rows);
    output(p, 0, mli_run_attention(g, &op, mli_new(g, q.rows, q.cols)));
    return 0;
}

static void attention_rows(const problem *p, double *y, const double *q, const double *k, const double *v) {
    const ml_config *c = &p->config;
    int hd = c->dim / c->n_heads, kv_dim = hd * c->n_kv_heads, r, t, s, h, j;
    double *weight = (double *)allocate((size_t)p->n, sizeof *weight);
    for (r = 0; r < p->rows.n_rows; r++)
        for (t = p->starts[r]; t < p->starts[r + 1]; t++)
            for (h = 0; h < c->n_heads; h++) {
                int kv = h / (c->n_heads / c->n_kv_heads);
                int end = c->mask == ML_MASK_FULL ? p->starts[r + 1] : t + 1;
                double sum = 0, *to = y + t * c->dim + h * hd;
                for (s = p->starts[r]; s < end; s++) {
                    double dot = 0;
                    for (j = 0; j < hd; j++) dot += q[t * c->dim + h * hd + j] * k[s * kv_dim + kv * hd + j];
                    sum += weight[s] = exp(dot / sqrt((double)hd));
                }
                for (j = 0; j < hd; j++) to[j] = 0;
                for (s = p->starts[r]; s < end; s++)
                    for (j = 0; j < hd; j++) to[j] += weight[s] / sum * v[s * kv_dim + kv * hd + j];
            }
    free(weight);
}

static void attention_plain(const problem *p, double *const *y) {
    attention_rows(p, y[0], p->v[0].exact, p->v[1].exact, p->v[2].exact);
}

static void check_attention(ml_mask mask, int n_heads, int n_kv_heads, int hd, const int *lengths, int most) {
    problem p;
    problem_begin(&p, 30 + (uint64_t)hd);
    set_rows(&p, lengths);
    p.config.dim = n_heads * hd;
    p.config.n_heads = n_heads;
    p.config.n_kv_heads = n_kv_heads;
    p.config.mask = mask;
    p.forward = attention_forward;
    p.plain = attention_plain;
    add(&p, "q", ACTIVATION, p.n, n_heads * hd, 0, 1.2);
    add(&p, "k", ACTIVATION, p.n, n_kv_heads * hd, 0, 1.2);
    add(&p, "v", ACTIVATION, p.n, n_kv_heads * hd, 0, 1);
    add_output(&p, p.n, n_heads * hd);
    check_problem(&p, most);
    problem_end(&p);
}

TEST(attention) {
    static const int sizes[4] = {2, 8, 10, 64}, few[] = {1, 2, 5, 17, 4, 1, 0}, one[] = {1, 0};
    static const int groups[4][2] = {{1, 1}, {6, 2}, {4, 4}, {3, 1}};
    int s, g;
    for (s = 0; s < 4; s++)
        for (g = 0; g < 4; g++) {
            check_attention(ML_MASK_CAUSAL, groups[g][0], groups[g][1], sizes[s], few, 40);
            check_attention(ML_MASK_FULL, groups[g][0], groups[g][1], sizes[s], few, 40);
        }
    check_attention(ML_MASK_CAUSAL, 2, 1, 6, one, 40);
}

/* Rows of one, two and three tiles of queries, whole or cut. */
TEST(attention_of_long_rows) {
    static const int lengths[] = {1, QUERY_BLOCK, 2 * QUERY_BLOCK + 3, QUERY_BLOCK + 1, 2, 0};
    check_attention(ML_MASK_CAUSAL, 4, 2, 10, lengths, 20);
    check_attention(ML_MASK_FULL, 4, 2, 10, lengths, 20);
}

/* ---- linear ---- */

/* Variable 0 is x; then come W_j, and with adapters A_j and B_j of each. */
static double linears_forward(mli_graph *g, problem *p) {
    mli_matrix_use use[MAX_WEIGHTS];
    ml_tensor x = operand(g, p, 0);
    int j, at = 1;
    memset(use, 0, sizeof use);
    for (j = 0; j < p->n_weights; j++) {
        use[j].w = operand(g, p, at++);
        if (p->quantized) {
            use[j].w.type = ML_Q8_0;
            use[j].w.data = (void *)(uintptr_t)p->quantized;
        }
        if (p->rank && j != 1) { /* the second has none */
            use[j].a = operand(g, p, at++);
            use[j].b = operand(g, p, at++);
            use[j].scale = p->scale;
        }
        use[j].y = mli_new(g, x.rows, use[j].w.rows);
        output(p, j, use[j].y);
    }
    mli_linears(g, x, use, p->n_weights);
    return 0;
}

/* y (n, out) += s x (n, in) W (out, in)^T */
static void add_product(double *y, const double *x, const double *w, int n, int in, int out, double s) {
    int i, j, k;
    for (i = 0; i < n; i++)
        for (j = 0; j < out; j++) {
            double sum = 0;
            for (k = 0; k < in; k++) sum += x[i * in + k] * w[j * in + k];
            y[i * out + j] += s * sum;
        }
}

static void linears_plain(const problem *p, double *const *y) {
    const variable *v = p->v + 1;
    int n = p->v[0].rows, in = p->v[0].cols, j;
    for (j = 0; j < p->n_weights; j++) {
        int out = v->rows;
        memset(y[j], 0, p->n_out[j] * sizeof **y);
        add_product(y[j], p->v[0].exact, v++->exact, n, in, out, 1);
        if (p->rank && j != 1) {
            double *low = (double *)allocate((size_t)(n * p->rank), sizeof *low);
            add_product(low, p->v[0].exact, v++->exact, n, in, p->rank, (double)p->scale);
            add_product(y[j], low, v++->exact, n, p->rank, out, 1);
            free(low);
        }
    }
}

static void check_linears(int n, int in, int n_weights, int rank, variable_role of_weights, int most) {
    static const int outs[3] = {19, 6, 33};
    static const char *const names[3][3] = {{"w0", "a0", "b0"}, {"w1", "a1", "b1"}, {"w2", "a2", "b2"}};
    problem p;
    int j;
    problem_begin(&p, 40 + (uint64_t)(n + in));
    p.forward = linears_forward;
    p.plain = linears_plain;
    p.n_weights = n_weights;
    p.rank = rank;
    p.scale = 1.5f;
    add(&p, "x", ACTIVATION, n, in, 0, 1);
    for (j = 0; j < n_weights; j++) {
        add(&p, names[j][0], of_weights, outs[j], in, 0, 1 / sqrt(in));
        if (!rank || j == 1) continue;
        add(&p, names[j][1], WEIGHT, rank, in, 0, 1 / sqrt(in));
        add(&p, names[j][2], WEIGHT, outs[j], rank, 0, 1);
    }
    for (j = 0; j < n_weights; j++) add_output(&p, n, outs[j]);
    check_problem(&p, most);
    problem_end(&p);
}

TEST(linears) {
    static const int shapes[5][2] = {{1, 1}, {2, 23}, {12, 17}, {13, 31}, {150, 45}};
    int s, n_weights;
    for (s = 0; s < 5; s++)
        for (n_weights = 1; n_weights <= 3; n_weights++) {
            check_linears(shapes[s][0], shapes[s][1], n_weights, 0, WEIGHT, 25);
            check_linears(shapes[s][0], shapes[s][1], n_weights, 0, FROZEN, 25);
            check_linears(shapes[s][0], shapes[s][1], n_weights, 3, WEIGHT, 25);
            check_linears(shapes[s][0], shapes[s][1], n_weights, 1, FROZEN, 25);
        }
}

/* Forward rounds the activations to 8 bits; backward is the product with the dequantized weights. */
TEST(linear_with_quantized_weights) {
    static const int rows[3] = {1, 5, 40};
    int s, rank;
    for (s = 0; s < 3; s++)
        for (rank = 0; rank < 5; rank += 4) {
            problem p;
            variable *w;
            size_t i;
            void *blocks;
            problem_begin(&p, 50);
            p.forward = linears_forward;
            p.plain = linears_plain;
            p.n_weights = 1;
            p.rank = rank;
            p.scale = 0.5f;
            add(&p, "x", ACTIVATION, rows[s], 96, 0, 1);
            w = add(&p, "w", FROZEN, 37, 96, 0, 0.1);
            if (rank) add(&p, "a", WEIGHT, rank, 96, 0, 0.1);
            if (rank) add(&p, "b", WEIGHT, 37, rank, 0, 1);
            p.quantized = blocks = allocate(37, ml_type_row_bytes(ML_Q8_0, 96));
            CHECK(ml_type_convert(ML_Q8_0, blocks, ML_F32, w->given, w->n) == ML_OK);
            CHECK(ml_type_convert(ML_F32, w->given, ML_Q8_0, blocks, w->n) == ML_OK);
            for (i = 0; i < w->n; i++) w->exact[i] = (double)w->given[i];
            p.forward_tolerance = 0.02; /* of 96 products, each wrong by up to half of 1/127 */
            add_output(&p, rows[s], 37);
            check_problem(&p, 60);
            problem_end(&p);
            free(blocks);
        }
}

/* x + h W^T, where x and the sum share one gradient */
static double add_linear_forward(mli_graph *g, problem *p) {
    mli_matrix_use use;
    ml_tensor x = operand(g, p, 0), h = operand(g, p, 1);
    memset(&use, 0, sizeof use);
    use.w = operand(g, p, 2);
    output(p, 0, mli_add_linear(g, x, h, use));
    return 0;
}

static void add_linear_plain(const problem *p, double *const *y) {
    memcpy(y[0], p->v[0].exact, p->v[0].n * sizeof **y);
    add_product(y[0], p->v[1].exact, p->v[2].exact, p->v[0].rows, p->v[1].cols, p->v[0].cols, 1);
}

TEST(add_linear) {
    problem p;
    size_t i;
    problem_begin(&p, 55);
    p.forward = add_linear_forward;
    p.plain = add_linear_plain;
    add(&p, "x", STREAM, 21, 13, 0, 1);
    add(&p, "h", ACTIVATION, 21, 29, 0, 1);
    add(&p, "w", WEIGHT, 13, 29, 0, 0.3);
    add_output(&p, 21, 13);
    run_passes(&p, 1, 1);
    for (i = 0; i < p.v[0].n; i++) { /* x and the sum share one gradient: it is dy */
        p.v[0].grad[i] += p.v[0].given[i];
        CHECK_NEAR(p.v[0].grad[i], p.dy[0][i], 1e-6, 0);
    }
    check_gradient(&p, &p.v[1], 60);
    check_gradient(&p, &p.v[2], 60);
    problem_end(&p);
}

/* ---- embedding ---- */

static double embed_forward(mli_graph *g, problem *p) {
    ml_tensor table = operand(g, p, 0);
    output(p, 0, mli_embed(g, table, p->index, mli_new_apart(g, (size_t)p->n, table.cols)));
    return 0;
}

static void embed_plain(const problem *p, double *const *y) {
    int i, j, cols = p->v[0].cols;
    for (i = 0; i < p->n; i++)
        for (j = 0; j < cols; j++) y[0][i * cols + j] = p->v[0].exact[p->index[i] * cols + j];
}

TEST(embedding) {
    static const int shapes[3][2] = {{1, 3}, {40, 37}, {301, 117}};
    int s, frozen, i;
    for (s = 0; s < 3; s++)
        for (frozen = 0; frozen < 2; frozen++) {
            problem p;
            problem_begin(&p, 60);
            p.n = shapes[s][0];
            p.index = (int32_t *)allocate((size_t)p.n, sizeof *p.index);
            for (i = 0; i < p.n; i++)
                p.index[i] = (int32_t)(ml_random_u64(&p.random) % 7); /* each many times */
            p.forward = embed_forward;
            p.plain = embed_plain;
            add(&p, "table", frozen ? FROZEN : WEIGHT, 9, shapes[s][1], 0, 1);
            add_output(&p, p.n, shapes[s][1]);
            check_problem(&p, 400);
            problem_end(&p);
        }
}

/* ---- the head ---- */

static double pool_forward(mli_graph *g, problem *p) {
    output(p, 0, mli_pool(g, operand(g, p, 0), &p->rows, p->pooling));
    return 0;
}

static void pool_plain(const problem *p, double *const *y) {
    int r, i, j, cols = p->v[0].cols;
    memset(y[0], 0, p->n_out[0] * sizeof **y);
    for (r = 0; r < p->rows.n_rows; r++)
        for (i = p->starts[r]; i < p->starts[r + 1]; i++)
            for (j = 0; j < cols; j++) {
                if (p->pooling == ML_POOL_MEAN)
                    y[0][r * cols + j] += p->v[0].exact[i * cols + j] / (p->starts[r + 1] - p->starts[r]);
                else if (i + 1 == p->starts[r + 1])
                    y[0][r * cols + j] = p->v[0].exact[i * cols + j];
            }
}

TEST(pool) {
    static const int lengths[] = {1, 7, 2, 30, 1, 0}, single[] = {5, 0};
    int s;
    for (s = 0; s < 4; s++) {
        problem p;
        problem_begin(&p, 70);
        set_rows(&p, s & 2 ? single : lengths);
        p.pooling = s & 1 ? ML_POOL_MEAN : ML_POOL_LAST;
        p.forward = pool_forward;
        p.plain = pool_plain;
        add(&p, "x", ACTIVATION, p.n, 21, 0, 1);
        add_output(&p, p.rows.n_rows, 21);
        check_problem(&p, 1000);
        problem_end(&p);
    }
}

#define DROPOUT_SEED 0x123456789abcdefu

static double dropout_forward(mli_graph *g, problem *p) {
    ml_tensor x = operand(g, p, 0);
    mli_dropout(g, x, p->p, DROPOUT_SEED);
    output(p, 0, x);
    return 0;
}

/* Which numbers are kept is found by applying the operation to ones. */
static void dropout_plain(const problem *p, double *const *y) {
    size_t i;
    float *kept = (float *)allocate(p->v[0].n, sizeof *kept);
    for (i = 0; i < p->v[0].n; i++) kept[i] = 1;
    mli_drop(kept, p->v[0].n, p->p, DROPOUT_SEED);
    for (i = 0; i < p->v[0].n; i++) y[0][i] = kept[i] != 0 ? p->v[0].exact[i] / (1 - (double)p->p) : 0;
    free(kept);
}

TEST(dropout) {
    static const float ps[3] = {0.3f, 0.5f, 0.9f};
    int s;
    for (s = 0; s < 3; s++) {
        problem p;
        problem_begin(&p, 80);
        p.p = ps[s];
        p.forward = dropout_forward;
        p.plain = dropout_plain;
        add(&p, "x", ACTIVATION, 9, 23, 0, 1);
        add_output(&p, 9, 23);
        check_problem(&p, 300);
        problem_end(&p);
    }
}

/* The share that is kept is within five standard deviations of 1 - p, in every tenth; with another seed others are
   kept, and as many agree as would by chance; p 0 changes and records nothing. */
TEST(dropout_is_a_fair_coin) {
    const int N = 100000;
    static const float ps[4] = {0.1f, 0.3f, 0.5f, 0.9f};
    float *a = (float *)allocate((size_t)N, sizeof *a), *b = (float *)allocate((size_t)N, sizeof *b);
    ml_threads threads;
    mli_graph g;
    int s, i, part, lag;
    for (s = 0; s < 4; s++) {
        double p = (double)ps[s], kept = 0, agree = 0;
        for (i = 0; i < N; i++) a[i] = b[i] = 1;
        mli_drop(a, (size_t)N, ps[s], 1);
        mli_drop(b, (size_t)N, ps[s], 2);
        for (part = 0; part < 10; part++) {
            double here = 0;
            for (i = part * N / 10; i < (part + 1) * N / 10; i++) here += a[i] != 0;
            CHECK_NEAR(here / (N / 10), 1 - p, 5 * sqrt(p * (1 - p) / (N / 10)), 0);
            kept += here;
        }
        CHECK_NEAR(kept / N, 1 - p, 5 * sqrt(p * (1 - p) / N), 0);
        for (i = 0; i < N; i++) {
            CHECK(a[i] == 0 || fabs((double)a[i] * (1 - p) - 1) < 1e-6);
            agree += (a[i] != 0) == (b[i] != 0);
        }
        CHECK_NEAR(agree / N, p * p + (1 - p) * (1 - p), 5 * sqrt(0.25 / N), 0);
        for (lag = 1; lag <= 3; lag++) { /* neighbors are independent */
            for (agree = 0, i = 0; i + lag < N; i++) agree += (a[i] != 0) == (a[i + lag] != 0);
            CHECK_NEAR(agree / (N - lag), p * p + (1 - p) * (1 - p), 5 * sqrt(0.25 / N), 0);
        }
        for (i = 0; i < N; i++) b[i] = 1;
        mli_drop(b, (size_t)N, ps[s], 1);
        CHECK(memcmp(a, b, (size_t)N * sizeof *a) == 0);
    }
    memset(&threads, 0, sizeof threads);
    memset(&g, 0, sizeof g);
    g.threads = &threads;
    g.taping = 1;
    g.memory = (unsigned char *)b;
    mli_dropout(&g, mli_tensor_at(a, 1, (size_t)N), 0, 1);
    CHECK(g.used == 0 && g.newest == NULL);
    free(a);
    free(b);
}

/* ---- losses ---- */

#define DIVISOR 7.5f

/* The loss of h W^T + b, and its gradients, as a trainer computes them; b without data: there is none. The forward
   pass alone gives the same loss. */
static double entropy_of(mli_graph *g, ml_tensor h, ml_tensor w, ml_tensor b, const int32_t *targets) {
    double loss = 0, alone = 0;
    mli_cross_entropy_op op = {h, w, b, targets, DIVISOR, NULL, &alone, 0, NULL};
    g->taping = 0;
    mli_cross_entropy(g, &op);
    g->taping = 1;
    op.loss = &loss;
    mli_cross_entropy_backward(g, &op);
    CHECK(alone == loss);
    return loss;
}

static double row_loss(const double *logits, int n, int32_t target) {
    double sum = 0, max = logits[0];
    int i;
    if (target < 0) return 0;
    for (i = 0; i < n; i++) max = larger(max, logits[i]);
    for (i = 0; i < n; i++) sum += exp(logits[i] - max);
    return max + log(sum) - logits[target];
}

static void set_targets(problem *p, int n, int n_classes) {
    int i;
    p->index = (int32_t *)allocate((size_t)n, sizeof *p->index);
    for (i = 0; i < n; i++) {
        p->index[i] = (int32_t)(ml_random_u64(&p->random) % (uint64_t)n_classes);
        if (n > 1 && i % 5 == 2) p->index[i] = -1;
    }
}

/* Variable 0 is logits: h with W the identity, variable 1. Variable 2, if there is one, is a bias. */
static double nll_forward(mli_graph *g, problem *p) {
    ml_tensor logits = operand(g, p, 0), identity = operand(g, p, 1), bias = mli_tensor_at(NULL, 0, 0);
    if (p->n_variables > 2) bias = operand(g, p, 2);
    return entropy_of(g, logits, identity, bias, p->index);
}

static void nll_plain(const problem *p, double *const *y) {
    int i, j, cols = p->v[0].cols;
    double *logits = (double *)allocate((size_t)cols, sizeof *logits);
    y[0][0] = 0;
    for (i = 0; i < p->v[0].rows; i++) {
        for (j = 0; j < cols; j++)
            logits[j] = p->v[0].exact[i * cols + j] + (p->n_variables > 2 ? p->v[2].exact[j] : 0);
        y[0][0] += row_loss(logits, cols, p->index[i]) / (double)DIVISOR;
    }
    free(logits);
}

static void add_identity(problem *p, int n) {
    variable *v = add(p, "identity", FROZEN, n, n, 0, 0);
    int i;
    for (i = 0; i < n; i++) v->exact[i * n + i] = v->given[i * n + i] = 1;
}

TEST(negative_log_likelihood) {
    static const int shapes[4][2] = {{1, 2}, {8, 5}, {33, 17}, {300, 130}};
    int s;
    for (s = 0; s < 4; s++) {
        problem p;
        int i;
        problem_begin(&p, 100);
        p.forward = nll_forward;
        p.plain = nll_plain;
        /* far from 0: max must be subtracted */
        add(&p, "logits", ACTIVATION, shapes[s][0], shapes[s][1], 30, 2);
        add_identity(&p, shapes[s][1]);
        set_targets(&p, shapes[s][0], shapes[s][1]);
        add_loss(&p);
        check_problem(&p, 100);
        for (i = 0; i < shapes[s][0] * shapes[s][1]; i++)
            if (p.index[i / shapes[s][1]] < 0) CHECK(p.v[0].grad[i] == 0);
        problem_end(&p);
    }
}

TEST(bias) {
    static const int shapes[3][2] = {{1, 2}, {6, 5}, {41, 19}};
    int s;
    for (s = 0; s < 6; s++) {
        problem p;
        problem_begin(&p, 90);
        p.forward = nll_forward;
        p.plain = nll_plain;
        add(&p, "y", ACTIVATION, shapes[s / 2][0], shapes[s / 2][1], 0, 1);
        add_identity(&p, shapes[s / 2][1]);
        add(&p, "b", s & 1 ? FROZEN : WEIGHT, 1, shapes[s / 2][1], 0, 1);
        set_targets(&p, shapes[s / 2][0], shapes[s / 2][1]);
        add_loss(&p);
        check_problem(&p, 100);
        problem_end(&p);
    }
}

static double entropy_forward(mli_graph *g, problem *p) {
    ml_tensor hidden = operand(g, p, 0), w = operand(g, p, 1);
    if (p->quantized) {
        w.type = ML_Q8_0;
        w.data = (void *)(uintptr_t)p->quantized;
    }
    if (p->recorded) {
        mli_cross_entropy_op op = {
            hidden, w, mli_tensor_at(NULL, 0, 0), p->index, DIVISOR, NULL, &p->result, 0, NULL};
        mli_cross_entropy(g, &op);
        mli_new(g, hidden.rows, 5); /* the loss need not be the last operation */
        return p->result;
    }
    return entropy_of(g, hidden, w, mli_tensor_at(NULL, 0, 0), p->index);
}

static void entropy_plain(const problem *p, double *const *y) {
    int n = p->v[0].rows, dim = p->v[0].cols, vocab = p->v[1].rows, i;
    double *logits = (double *)allocate((size_t)vocab, sizeof *logits);
    y[0][0] = 0;
    for (i = 0; i < n; i++) {
        memset(logits, 0, (size_t)vocab * sizeof *logits);
        add_product(logits, p->v[0].exact + i * dim, p->v[1].exact, 1, dim, vocab, 1);
        y[0][0] += row_loss(logits, vocab, p->index[i]) / (double)DIVISOR;
    }
    free(logits);
}

/* Also with more rows than the logits that are computed at a time, and recorded as any operation. */
TEST(cross_entropy) {
    static const int shapes[4][3] = {
        {1, 3, 2}, {9, 17, 37}, {LOSS_ROWS, 10, 77}, {2 * LOSS_ROWS + 19, 13, 101}};
    int s, way, i;
    for (s = 0; s < 4; s++)
        for (way = 0; way < 4; way++) {
            int frozen = way & 1;
            problem p;
            problem_begin(&p, 110);
            p.forward = entropy_forward;
            p.plain = entropy_plain;
            p.recorded = way >> 1;
            add(&p, "hidden", ACTIVATION, shapes[s][0], shapes[s][1], 0, 1);
            add(&p, "w", frozen ? FROZEN : WEIGHT, shapes[s][2], shapes[s][1], 0, 1);
            set_targets(&p, shapes[s][0], shapes[s][2]);
            add_loss(&p);
            check_problem(&p, s == 3 ? 20 : 60);
            for (i = 0; i < shapes[s][0] * shapes[s][1]; i++)
                if (p.index[i / shapes[s][1]] < 0) CHECK(p.v[0].grad[i] == 0);
            problem_end(&p);
        }
}

/* ---- the whole network, of which each variable is one of the model's tensors ---- */

/* The variable of this name, with '#' for the number of the layer, in a layer. */
static int variable_named(const problem *p, const char *name, int layer) {
    for (int i = 0; i < p->n_variables; i++)
        if (strcmp(p->v[i].name, name) == 0 && layer-- == 0) return i;
    printf("no variable is named %s\n", name);
    return exit(2), -1;
}

static double network_forward(mli_graph *g, problem *p) {
    ml_tensor hidden;
    int i;
    for (i = 0; i < p->n_variables; i++) {
        p->tensors[i] = operand(g, p, i);
        if (!p->v[i].n) p->tensors[i].data = p->tensors[i].grad = NULL;
    }
    int embedding = variable_named(p, "token_embd.weight", 0), output = variable_named(p, "output.weight", 0);
    p->tensors[output] = p->tensors[embedding]; /* tied: both add to one gradient */
    p->model.config = p->config;
    p->model.tensors = p->tensors;
    p->model.n_tensors = p->n_variables;
    mli_pass pass = mli_pass_over(&p->model, NULL, &p->rows);
    pass.tokens = p->index, pass.n_tokens = p->n, pass.rope = p->rope;
    hidden = mli_network(g, &pass);
    return entropy_of(g, hidden, p->tensors[output], mli_tensor_at(NULL, 0, 0), p->index + p->n);
}

/* x (n, D) += a (n, in) W^T, W the variable of a name and a layer */
static void add_to_stream(const problem *p, double *x, const double *a, const char *name, int layer) {
    const variable *w = &p->v[variable_named(p, name, layer)];
    add_product(x, a, w->exact, p->n, w->cols, w->rows, 1);
}

/* y (n, out) = norm(x) W^T, W the variable of a name and a layer */
static void normed_product(const problem *p, double *y, const double *h, const char *name, int layer) {
    const variable *w = &p->v[variable_named(p, name, layer)];
    memset(y, 0, (size_t)(p->n * w->rows) * sizeof *y);
    add_product(y, h, w->exact, p->n, w->cols, w->rows, 1);
}

static void plain_norm(const problem *p, double *y, const double *x, const char *name, int layer) {
    const variable *w = &p->v[variable_named(p, name, layer)], *b = w + 1;
    norm_rows(y, x, w->exact, b->n ? b->exact : NULL, p->n, w->cols);
}

static void network_plain(const problem *p, double *const *y) {
    const ml_config *c = &p->config;
    int n = p->n, D = c->dim, H = c->hidden_dim, hd = D / c->n_heads, kv_dim = hd * c->n_kv_heads, l, i;
    double *x = (double *)allocate((size_t)(n * (6 * D + 4 * kv_dim + 2 * H)), sizeof *x), *h = x + n * D,
           *q = h + n * D, *k = q + 2 * n * D, *v = k + 2 * n * kv_dim, *a = v + n * kv_dim,
           *gate = a + n * D, *up = gate + n * H;
    double *logits = (double *)allocate((size_t)(n * c->vocab_size), sizeof *logits);
    const double *embedding = p->v[variable_named(p, "token_embd.weight", 0)].exact;
    for (i = 0; i < n * D; i++) x[i] = embedding[p->index[i / D] * D + i % D];
    for (l = 0; l < c->n_layers; l++) {
        plain_norm(p, h, x, "blk.#.attn_norm.weight", l);
        normed_product(p, q, h, "blk.#.attn_q.weight", l);
        normed_product(p, k, h, "blk.#.attn_k.weight", l);
        normed_product(p, v, h, "blk.#.attn_v.weight", l);
        rope_rows(p, q + n * D, q, D, hd);
        rope_rows(p, k + n * kv_dim, k, kv_dim, hd);
        attention_rows(p, a, q + n * D, k + n * kv_dim, v);
        add_to_stream(p, x, a, "blk.#.attn_output.weight", l);
        plain_norm(p, h, x, "blk.#.ffn_norm.weight", l);
        normed_product(p, gate, h, "blk.#.ffn_gate.weight", l);
        normed_product(p, up, h, "blk.#.ffn_up.weight", l);
        for (i = 0; i < n * H; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        add_to_stream(p, x, gate, "blk.#.ffn_down.weight", l);
    }
    plain_norm(p, h, x, "output_norm.weight", 0);
    normed_product(p, logits, h, "token_embd.weight", 0);
    for (y[0][0] = 0, i = 0; i < n; i++)
        y[0][0] += row_loss(logits + i * c->vocab_size, c->vocab_size, p->index[n + i]) / (double)DIVISOR;
    free(x);
    free(logits);
}

static void network_begin(problem *p, int variant) {
    static const int lengths[] = {1, 17, 7, 0};
    ml_config *c = &p->config;
    int i;
    problem_begin(p, 120 + (uint64_t)(variant & 3));
    set_rows(p, lengths);
    set_rope(p, 6);
    c->dim = 18;
    c->hidden_dim = 23;
    c->n_layers = MAX_LAYERS;
    c->n_heads = 3;
    c->n_kv_heads = 1;
    c->vocab_size = 29;
    c->max_seq_len = 64;
    c->tied_output = 1;
    c->norm_eps = EPS;
    c->norm = variant & 1 ? ML_NORM_LAYER : ML_NORM_RMS;
    c->mask = variant & 2 ? ML_MASK_FULL : ML_MASK_CAUSAL;
    p->checkpointing = variant >> 2;
    p->forward = network_forward;
    p->plain = network_plain;
    for (i = 0; i < mli_count_tensors(c); i++) {
        mli_slot slot = mli_slot_at(c, i);
        const char *name = mli_params[slot].name[0]; /* in GGUF files */
        int is_norm = strstr(name, "norm.weight") != NULL;
        add(p, name, WEIGHT, mli_has_slot(c, slot) ? mli_extent_of(c, mli_params[slot].rows) : 0,
            mli_extent_of(c, mli_params[slot].cols), is_norm, 0.3);
    }
    p->index = (int32_t *)allocate((size_t)(2 * p->n), sizeof *p->index);
    for (i = 0; i < 2 * p->n; i++)
        p->index[i] = i == p->n + 3 ? -1 : (int32_t)(ml_random_u64(&p->random) % 29);
    add_loss(p);
}

/* Both norms and masks, with and without checkpointing, which gives the same bits. */
TEST(network) {
    int variant, j;
    for (variant = 0; variant < 4; variant++) {
        problem once, twice;
        network_begin(&once, variant);
        check_problem(&once, 15);
        network_begin(&twice, variant | 4);
        check_problem(&twice, 15);
        CHECK(once.result == twice.result);
        for (j = 0; j < once.n_variables; j++)
            CHECK(memcmp(once.v[j].grad, twice.v[j].grad, once.v[j].n * sizeof(float)) == 0);
        problem_end(&once);
        problem_end(&twice);
    }
}

int main(void) {
    RUN(swiglu);
    RUN(rms_norm);
    RUN(layer_norm);
    RUN(rope);
    RUN(attention);
    RUN(attention_of_long_rows);
    RUN(linears);
    RUN(linear_with_quantized_weights);
    RUN(add_linear);
    RUN(embedding);
    RUN(pool);
    RUN(dropout);
    RUN(dropout_is_a_fair_coin);
    RUN(negative_log_likelihood);
    RUN(bias);
    RUN(cross_entropy);
    RUN(network);
    return test_report("test_gradients");
}
