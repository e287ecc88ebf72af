/* The operations of a caller's graph, by the public interface: values against the formula written plainly in doubles
   or PyTorch's numbers, gradients against central differences of the plain formula (operations.h). */
#include "preamble.h"

enum { MAX_INDEX = 700 };

typedef struct details {
    int32_t index[MAX_INDEX];
    ml_loss_desc loss; /* its log-probabilities are in `extra` */
    int which;
    float number;
} details;

#include "operations.h"

/* ---- arithmetic ---- */

enum { ADD, SUB, MUL, DIV };

static ml_tensor pair_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return p->own.which == ADD   ? ml_add(g, v[0], v[1])
           : p->own.which == SUB ? ml_sub(g, v[0], v[1])
           : p->own.which == MUL ? ml_mul(g, v[0], v[1])
                                 : ml_div(g, v[0], v[1]);
}

static void pair_plain(const problem *p, double *y) {
    const variable *a = &p->v[0], *b = &p->v[1];
    for (size_t i = 0; i < a->rows; i++)
        for (size_t j = 0; j < a->cols; j++) {
            double x = a->exact[i * a->cols + j];
            double z = b->exact[(b->rows > 1 ? i : 0) * b->cols + (b->cols > 1 ? j : 0)];
            y[i * a->cols + j] = p->own.which == ADD   ? x + z
                                 : p->own.which == SUB ? x - z
                                 : p->own.which == MUL ? x * z
                                                       : x / z;
        }
}

TEST(add_sub_mul_div) {
    static const size_t shapes[5][2] = {{1, 1}, {1, 7}, {6, 1}, {5, 33}, {301, 147}};
    for (int s = 0; s < 5; s++)
        for (int repeated = 0; repeated < 4; repeated++)
            for (int which = ADD; which <= DIV; which++) {
                size_t n = shapes[s][0], c = shapes[s][1];
                problem p;
                begin_problem(&p, pair_build, pair_plain);
                p.own.which = which;
                add(&p, n, c, .5, 1);
                variable *b = add(&p, repeated & 1 ? 1 : n, repeated & 2 ? 1 : c, -.5, 1);
                for (size_t i = 0; which == DIV && i < b->n; i++) /* not near 0 */
                    b->exact[i] = (double)(b->given[i] += b->given[i] < 0 ? -.5f : .5f);
                set_output(&p, n, c);
                check_problem(&p, s == 4 ? 15 : 100);
                if (s == 3) check_frozen(&p);
                end_problem(&p);
            }
}

enum { SCALE, SHIFT, SUM, MEAN, SUM_ROWS };

static ml_tensor total_build(ml_graph *g, const ml_tensor *v, problem *p) {
    switch (p->own.which) {
    case SCALE: return ml_scale(g, v[0], p->own.number);
    case SHIFT: return ml_shift(g, v[0], p->own.number);
    case SUM: return ml_sum(g, v[0]);
    case MEAN: return ml_mean(g, v[0]);
    default: return ml_sum_rows(g, v[0]);
    }
}

static void total_plain(const problem *p, double *y) {
    const variable *x = &p->v[0];
    for (size_t i = 0; i < p->rows * p->cols; i++) y[i] = 0;
    for (size_t i = 0; i < x->n; i++) {
        if (p->own.which == SCALE) y[i] = x->exact[i] * (double)p->own.number;
        if (p->own.which == SHIFT) y[i] = x->exact[i] + (double)p->own.number;
        if (p->own.which == SUM) y[0] += x->exact[i];
        if (p->own.which == MEAN) y[0] += x->exact[i] / (double)x->n;
        if (p->own.which == SUM_ROWS) y[i / x->cols] += x->exact[i];
    }
}

TEST(scale_shift_and_sums) {
    static const size_t shapes[4][2] = {{1, 1}, {6, 1}, {5, 33}, {301, 147}};
    static const float numbers[3] = {-2.5f, 1, 0};
    for (int s = 0; s < 4; s++)
        for (int which = SCALE; which <= SUM_ROWS; which++)
            for (int k = 0; k < (which <= SHIFT ? 3 : 1); k++) {
                size_t n = shapes[s][0], c = shapes[s][1];
                problem p;
                begin_problem(&p, total_build, total_plain);
                p.own.which = which;
                p.own.number = numbers[k];
                add(&p, n, c, .5, 1);
                set_output(&p, which == SUM || which == MEAN ? 1 : n, which >= SUM ? 1 : c);
                check_problem(&p, s == 3 ? 15 : 100);
                end_problem(&p);
            }
}

/* ---- functions of single numbers ---- */

enum { RELU, GELU, SILU, TANH, SIGMOID, EXP, LOG, SQRT, FUNCTIONS };

static ml_tensor apply(ml_graph *g, int which, ml_tensor x) {
    static ml_tensor (*const functions[FUNCTIONS])(ml_graph *, ml_tensor) = {
        ml_relu, ml_gelu, ml_silu, ml_tanh, ml_sigmoid, ml_exp, ml_log, ml_sqrt};
    return functions[which](g, x);
}
static ml_tensor function_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return apply(g, p->own.which, v[0]);
}

static double plain_function(int which, double x) {
    switch (which) {
    case RELU: return x > 0 ? x : 0;
    case GELU: return x * erfc(-x / sqrt(2.0)) / 2;
    case SILU: return x / (1 + exp(-x));
    case TANH: return tanh(x);
    case SIGMOID: return 1 / (1 + exp(-x));
    case EXP: return exp(x);
    case LOG: return log(x);
    default: return sqrt(x);
    }
}

static void function_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++) y[i] = plain_function(p->own.which, p->v[0].exact[i]);
}

TEST(functions) {
    static const size_t shapes[3][2] = {{1, 1}, {5, 33}, {301, 147}};
    for (int s = 0; s < 3; s++)
        for (int which = 0; which < FUNCTIONS; which++) {
            problem p;
            begin_problem(&p, function_build, function_plain);
            p.own.which = which;
            variable *x = add(&p, shapes[s][0], shapes[s][1], 0, 1.5);
            for (size_t i = 0; which >= LOG && i < x->n; i++)
                x->exact[i] = (double)(x->given[i] = .1f + fabsf(x->given[i]));
            set_output(&p, x->rows, x->cols);
            check_problem(&p, s == 2 ? 15 : 100);
            end_problem(&p);
        }
}

/* PyTorch 1.13's values and gradients of F.relu, F.gelu, F.silu, torch.tanh, .sigmoid, .exp, .log at these points:
   x = torch.tensor(points).double().requires_grad_(); y = f(x); y.sum().backward(); y and x.grad with '%.10g' */
static const float torch_x[2][6] = {{-30, -3, -.5f, 0, .75f, 4}, {.01f, .5f, 1, 1.5f, 7, 100}};
static const double torch_functions[FUNCTIONS][2][6] = {
    {{0, 0, 0, 0, 0.75, 4}, {0, 0, 0, 0, 1, 1}}, /* relu */
    {{-0, -0.004049694095, -0.1542687694, 0, 0.5800294857, 3.999873315},
     {-4.420938405e-195, -0.0119456472, 0.1325048753, 0.5, 0.9992257217, 1.00050365}}, /* gelu */
    {{-2.807286891e-12, -0.1422776195, -0.1887703344, 0, 0.5093840244, 3.92805516},
     {-2.713710661e-12, -0.08810410602, 0.2600388127, 0.5, 0.8425999445, 1.052664615}}, /* silu */
    {{-1, -0.9950547537, -0.4621171573, 0, 0.6351489524, 0.9993292997},
     {0, 0.009866037165, 0.786447733, 1, 0.5965858083, 0.001340950683}}, /* tanh */
    {{9.357622969e-14, 0.04742587318, 0.3775406688, 0.5, 0.6791786992, 0.98201379},
     {9.357622969e-14, 0.04517665973, 0.2350037122, 0.25, 0.2178949938, 0.01766270621}}, /* sigmoid */
    {{9.357622969e-14, 0.04978706837, 0.6065306597, 1, 2.117000017, 54.59815003},
     {9.357622969e-14, 0.04978706837, 0.6065306597, 1, 2.117000017, 54.59815003}}, /* exp */
    {{-4.605170208, -0.6931471806, 0, 0.4054651081, 1.945910149, 4.605170186},
     {100.0000022, 2, 1, 0.6666666667, 0.1428571429, 0.01}}, /* log */
    {{0.09999999888, 0.7071067812, 1, 1.224744871, 2.645751311, 10},
     {5.000000056, 0.7071067812, 0.5, 0.4082482905, 0.1889822365, 0.05}}, /* sqrt: by Python's math */
};

TEST(functions_by_pytorch) {
    for (int which = 0; which < FUNCTIONS; which++) {
        problem p;
        begin_problem(&p, function_build, function_plain);
        p.own.which = which;
        variable *x = add(&p, 1, 6, 0, 1);
        memcpy(x->given, torch_x[which >= LOG], sizeof torch_x[0]);
        p.is_loss = 0;
        set_output(&p, 1, 6);
        for (int i = 0; i < 6; i++) p.dy[i] = 1;
        run_pass(&p, 1, 0);
        for (int i = 0; i < 6; i++) { /* a few units in the last place */
            CHECK_NEAR(p.y[i], torch_functions[which][0][i], 1e-7, 5e-7);
            CHECK_NEAR(x->grad[i], torch_functions[which][1][i], 1e-7, 5e-7);
        }
        end_problem(&p);
    }
}

/* Both tails, relative to values that are far below 1e-7 (of e^-x as well), and infinities; NaN stays NaN. */
TEST(functions_at_the_ends) {
    static const float ends[4] = {-12, -80, 60, 88};
    for (int which = 0; which < LOG; which++) {
        problem p;
        begin_problem(&p, function_build, function_plain);
        p.own.which = which;
        variable *x = add(&p, 1, 5, 0, 1);
        for (int i = 0; i < 4; i++) x->exact[i] = (double)(x->given[i] = ends[i]);
        set_output(&p, 1, 5);
        x->given[4] = NAN;
        p.dy[4] = 0; /* the loss is NaN all the same, so only the value is looked at */
        x->frozen = 1;
        ml_graph *g;
        ml_error error;
        REQUIRE(!ml_graph_new(NULL, build_problem, &p, &g, &error));
        ml_graph_begin(g, 0);
        build_problem(g, &p);
        for (int i = 0; i < 4;
             i++) { /* erfcf and expf of a rounded argument: 80 * 6e-8, and a square of it */
            double y = plain_function(which, (double)ends[i]);
            CHECK_NEAR(((float *)passed.y.data)[i], y, 1e-37, 2e-5);
        }
        CHECK(isnan(((float *)passed.y.data)[4]));
        ml_graph_free(g);
        end_problem(&p);
    }
}

/* ---- dropout ---- */

static float three[3];
static ml_tensor largest_build(ml_graph *g, void *user) {
    static const ml_span all = {0, 3};
    const ml_tensor *x = (const ml_tensor *)user;
    return ml_pool_spans(g, *x, &all, 1, ML_POOL_MAX);
}

/* Wherever NaN is among the pooled, it is their largest: it must show in the loss. */
TEST(largest_of_what_is_no_number) {
    for (int at = 0; at < 4; at++) {
        float gradients[3] = {0, 0, 0};
        ml_tensor x = {ML_F32, 3, 1, three, gradients};
        ml_graph *g = NULL;
        ml_error error;
        for (int i = 0; i < 3; i++) three[i] = i == at ? NAN : (float)i;
        REQUIRE(!ml_graph_new(NULL, largest_build, &x, &g, &error));
        ml_graph_begin(g, 1);
        ml_tensor y = largest_build(g, &x);
        CHECK(at < 3 ? isnan(*(const float *)y.data) : *(const float *)y.data == 2.0f);
        CHECK(ml_graph_backward(g, y, &error) == (at < 3 ? ML_ERROR_NUMBER : ML_OK));
        ml_graph_free(g);
    }
}

/* Squares of 3e19 overflow, those of 1e18 do not. A norm of 0, which also PyTorch gives, would hide damaged weights. */
static ml_tensor norms_build(ml_graph *g, void *user) {
    static float ones[3] = {1, 1, 1}, zeros[3];
    const ml_tensor *x = (const ml_tensor *)user;
    ml_tensor w = {ML_F32, 1, 3, ones, NULL}, b = {ML_F32, 1, 3, zeros, NULL};
    return ml_add(g, ml_rms_norm(g, *x, w, 1e-5f), ml_layer_norm(g, *x, w, b, 1e-5f));
}

TEST(norms_of_what_is_too_large) {
    ml_graph *g = NULL;
    ml_error error;
    ml_tensor x = {ML_F32, 1, 3, three, NULL};
    REQUIRE(!ml_graph_new(NULL, norms_build, &x, &g, &error));
    for (int large = 0; large < 2; large++) {
        three[0] = large ? 3e19f : 1e18f, three[1] = -three[0], three[2] = 0;
        ml_graph_begin(g, 0);
        const float *y = (const float *)norms_build(g, &x).data;
        if (large)
            CHECK(isnan(y[0]) && isnan(y[1]) && isnan(y[2]));
        else
            CHECK(fabsf(y[0] - 2 * sqrtf(1.5f)) < 1e-5f && y[1] == -y[0] && y[2] == 0);
    }
    ml_graph_free(g);
}

static ml_tensor dropout_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_dropout(g, v[0], p->own.number, 42);
}
/* with the same numbers dropped */
static void dropout_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++)
        y[i] = p->y[i] == 0 ? 0 : p->v[0].exact[i] / (1 - (double)p->own.number);
}

TEST(dropout) {
    static const float ps[3] = {0, .3f, .9f};
    for (int s = 0; s < 3; s++) {
        problem p;
        begin_problem(&p, dropout_build, dropout_plain);
        p.own.number = ps[s];
        add(&p, 301, 147, 0, 1);
        set_output(&p, 301, 147);
        check_problem(&p, 40);
        double dropped = 0, n = (double)p.v[0].n, mean = (double)p.own.number;
        for (size_t i = 0; i < p.v[0].n; i++) dropped += p.y[i] == 0;
        CHECK(fabs(dropped - n * mean) <= 4 * sqrt(n * mean * (1 - mean))); /* four standard deviations */
        end_problem(&p);
    }
}

/* Without taping: x itself. With another seed, other numbers. */
TEST(dropout_off_and_seeds) {
    float x[64], grad[64];
    ml_graph *g;
    problem p;
    begin_problem(&p, dropout_build, dropout_plain);
    p.own.number = .5f;
    add(&p, 8, 8, 3, 1);
    set_output(&p, 8, 8);
    REQUIRE(!ml_graph_new(NULL, build_problem, &p, &g, NULL));
    for (int i = 0; i < 64; i++) x[i] = 1;
    ml_tensor t = matrix(x, 8, 8, grad);
    ml_graph_begin(g, 0);
    CHECK(ml_dropout(g, t, .5f, 1).data == x);
    ml_graph_begin(g, 1);
    CHECK(ml_dropout(g, t, 0, 1).data == x);
    const float *a = (const float *)ml_dropout(g, matrix(x, 8, 8, NULL), .5f, 1).data;
    const float *b = (const float *)ml_dropout(g, matrix(x, 8, 8, NULL), .5f, 2).data;
    int equal = 0;
    for (int i = 0; i < 64; i++) equal += a[i] == b[i];
    CHECK(equal > 8 && equal < 56);
    ml_graph_free(g);
    end_problem(&p);
}

/* ---- cross-entropy ---- */

/* Variables: logits, or x, w and, if there are three, b. which: the loss's own gradient is not 1, or it is whole. */
static ml_tensor entropy_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor b = p->n_variables > 2 ? v[2] : ml_none();
    ml_tensor y = p->n_variables > 1 ? ml_linear_cross_entropy(g, v[0], v[1], b, &p->own.loss)
                                     : ml_cross_entropy(g, v[0], &p->own.loss);
    return p->own.loss.whole ? y : ml_scale(g, y, p->own.number);
}

static double *plain_logits(const problem *p, size_t *n_classes) {
    const variable *x = &p->v[0], *w = &p->v[1];
    size_t C = *n_classes = p->n_variables > 1 ? w->rows : x->cols;
    double *logits = (double *)allocate(x->rows * C, sizeof *logits);
    for (size_t i = 0; i < x->rows; i++)
        for (size_t c = 0; c < C; c++) {
            double *to = &logits[i * C + c];
            if (p->n_variables > 2) *to = p->v[2].exact[c];
            if (p->n_variables == 1) *to = x->exact[i * C + c];
            for (size_t j = 0; p->n_variables > 1 && j < x->cols; j++)
                *to += x->exact[i * x->cols + j] * w->exact[c * x->cols + j];
        }
    return logits;
}

static double plain_log_sum(const double *logits, size_t n) {
    double max = logits[0], sum = 0;
    for (size_t c = 0; c < n; c++) max = larger(max, logits[c]);
    for (size_t c = 0; c < n; c++) sum += exp(logits[c] - max);
    return max + log(sum);
}

static void entropy_plain(const problem *p, double *y) {
    size_t C, counted = 0;
    double *logits = plain_logits(p, &C), s = (double)p->own.loss.smoothing, sum = 0;
    for (size_t i = 0; i < p->v[0].rows; i++) {
        double *row = logits + i * C, log_sum = plain_log_sum(row, C);
        if (p->own.index[i] < 0) continue;
        counted++;
        for (size_t c = 0; c < C; c++)
            sum += ((1 - s) * ((int32_t)c == p->own.index[i]) + s / (double)C) * (log_sum - row[c]);
    }
    y[0] = sum / (p->own.loss.divisor > 0 ? (double)p->own.loss.divisor : (double)counted) *
           (p->own.loss.whole ? 1 : (double)p->own.number);
    free(logits);
}

/* shape: n, D, C; D 0: logits are given. */
static void begin_entropy(problem *p, const size_t *shape, int bias) {
    size_t n = shape[0], dim = shape[1], n_classes = shape[2];
    begin_problem(p, entropy_build, entropy_plain);
    add(p, n, dim ? dim : n_classes, 0, 1);
    if (dim) add(p, n_classes, dim, 0, 1);
    if (dim && bias) add(p, 1, n_classes, 0, 1);
    for (size_t i = 0; i < n; i++) {
        p->own.index[i] = (int32_t)(ml_random_u64(&p->random) % (uint64_t)n_classes);
        if (n > 1 && i % 5 == 2) p->own.index[i] = -1;
    }
    p->own.loss.targets = p->own.index;
    p->own.number = 1;
    p->is_loss = 1;
    p->extra = (float *)allocate(n * n_classes, sizeof(float));
    set_output(p, 1, 1);
}

static const size_t entropy_shapes[5][3] = {{1, 0, 2}, {9, 17, 37}, {300, 0, 130}, {5, 3, 2}, {531, 13, 101}};

TEST(cross_entropy) {
    for (int s = 0; s < 5; s++)
        for (int way = 0; way < 8; way++) {
            problem p;
            begin_entropy(&p, entropy_shapes[s], way & 1);
            p.own.loss.divisor = way & 1 ? 7.5f : 0;
            p.own.loss.smoothing = way & 2 ? .1f : 0;
            p.own.number = way & 4 ? -.3f : 1;
            p.own.loss.log_probs = way & 2 ? p.extra : NULL;
            check_problem(&p, s == 4 ? 10 : 60);
            if (s == 1) check_frozen(&p);
            size_t C;
            double *logits = plain_logits(&p, &C);
            for (size_t i = 0; p.own.loss.log_probs && i < p.v[0].rows * C; i++)
                CHECK_NEAR(p.extra[i], logits[i] - plain_log_sum(logits + i / C * C, C), 1e-5, 0);
            free(logits);
            end_problem(&p);
        }
}

/* The gradients of a loss that is the whole are the same numbers; only the order of sums may differ: it does not. */
TEST(cross_entropy_whole) {
    for (int s = 0; s < 5; s++)
        for (int smoothed = 0; smoothed < 2; smoothed++) {
            float *grad[3] = {NULL, NULL, NULL};
            problem p;
            begin_entropy(&p, entropy_shapes[s], 1);
            p.own.loss.smoothing = smoothed ? .2f : 0;
            run_pass(&p, 1, 0);
            for (int j = 0; j < p.n_variables; j++) {
                grad[j] = (float *)allocate(p.v[j].n, sizeof(float));
                memcpy(grad[j], p.v[j].grad, p.v[j].n * sizeof(float));
            }
            p.own.loss.whole = 1;
            check_problem(&p, 10);
            if (s == 1) check_frozen(&p);
            run_pass(&p, 1, 0);
            for (int j = 0; j < p.n_variables; j++) {
                CHECK(memcmp(grad[j], p.v[j].grad, p.v[j].n * sizeof(float)) == 0);
                free(grad[j]);
            }
            end_problem(&p);
        }
}

/* ---- functions of rows ---- */

enum { SOFTMAX, LOG_SOFTMAX, RMS, LAYER };

/* Norms: number is eps; index[0] and index[1]: there are w and b. */
static ml_tensor rows_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor w = p->own.index[0] ? v[1] : ml_none(),
              b = p->own.index[1] ? v[1 + p->own.index[0]] : ml_none();
    switch (p->own.which) {
    case SOFTMAX: return ml_softmax(g, v[0]);
    case LOG_SOFTMAX: return ml_log_softmax(g, v[0]);
    case RMS: return ml_rms_norm(g, v[0], w, p->own.number);
    default: return ml_layer_norm(g, v[0], w, b, p->own.number);
    }
}

static void plain_norm_row(const problem *p, const double *x, double *y) {
    size_t c = p->v[0].cols;
    double mean = 0, square = 0;
    for (size_t j = 0; p->own.which == LAYER && j < c; j++) mean += x[j] / (double)c;
    for (size_t j = 0; j < c; j++) square += (x[j] - mean) * (x[j] - mean) / (double)c;
    for (size_t j = 0; j < c; j++) {
        y[j] = (x[j] - mean) / sqrt(square + (double)p->own.number);
        if (p->own.index[0]) y[j] *= p->v[1].exact[j];
        if (p->own.index[1]) y[j] += p->v[1 + p->own.index[0]].exact[j];
    }
}

static void rows_plain(const problem *p, double *y) {
    size_t c = p->v[0].cols;
    for (size_t i = 0; i < p->v[0].rows; i++, y += c) {
        const double *x = p->v[0].exact + i * c;
        double log_sum = plain_log_sum(x, c);
        if (p->own.which >= RMS) plain_norm_row(p, x, y);
        for (size_t j = 0; p->own.which < RMS && j < c; j++)
            y[j] = p->own.which == SOFTMAX ? exp(x[j] - log_sum) : x[j] - log_sum;
    }
}

static const size_t row_shapes[4][2] = {{1, 2}, {6, 5}, {5, 33}, {301, 147}};

TEST(softmaxes) {
    for (int s = 0; s < 8; s++) {
        problem p;
        begin_problem(&p, rows_build, rows_plain);
        p.own.which = s % 2 ? SOFTMAX : LOG_SOFTMAX;
        add(&p, row_shapes[s / 2][0], row_shapes[s / 2][1], 30, 2); /* far from 0 */
        set_output(&p, p.v[0].rows, p.v[0].cols);
        check_problem(&p, 60);
        end_problem(&p);
    }
}

TEST(norms) {
    for (int s = 0; s < 4; s++)
        for (int which = RMS; which <= LAYER; which++)
            for (int with = 0; with < (which == RMS ? 2 : 4); with++) {
                problem p;
                begin_problem(&p, rows_build, rows_plain);
                p.own.which = which;
                p.own.number = 1e-3f;
                p.own.index[0] = with & 1;
                p.own.index[1] = with >> 1;
                size_t c =
                    row_shapes[s][1] + 1; /* of two numbers LayerNorm makes +-1, whose gradient cancels */
                add(&p, row_shapes[s][0], c, .3, 1);
                if (p.own.index[0]) add(&p, 1, c, 1, .5);
                if (p.own.index[1]) add(&p, 1, c, 0, 1);
                set_output(&p, p.v[0].rows, c);
                check_problem(&p, s == 3 ? 20 : 60);
                if (s == 2) check_frozen(&p);
                end_problem(&p);
            }
}

static ml_tensor swiglu_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return (void)p, ml_swiglu(g, v[0], v[1]);
}
static void swiglu_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++) y[i] = plain_function(SILU, p->v[0].exact[i]) * p->v[1].exact[i];
}

TEST(swiglu) {
    for (int s = 0; s < 4; s++) {
        problem p;
        begin_problem(&p, swiglu_build, swiglu_plain);
        add(&p, row_shapes[s][0], row_shapes[s][1], 0, 2);
        add(&p, row_shapes[s][0], row_shapes[s][1], 0, 1);
        set_output(&p, p.v[0].rows, p.v[0].cols);
        check_problem(&p, 40);
        check_frozen(&p);
        end_problem(&p);
    }
}

/* ---- rows by index ---- */

static ml_tensor gather_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_gather(g, v[0], p->own.index, p->rows);
}
static void gather_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->rows * p->cols; i++)
        y[i] = p->v[0].exact[(size_t)p->own.index[i / p->cols] * p->cols + i % p->cols];
}

static ml_tensor replace_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_replace_rows(g, v[0], p->own.index, v[1]);
}
static void replace_plain(const problem *p, double *y) {
    size_t c = p->cols;
    memcpy(y, p->v[0].exact, p->v[0].n * sizeof *y);
    for (size_t i = 0; i < p->v[1].rows; i++)
        memcpy(y + (size_t)p->own.index[i] * c, p->v[1].exact + i * c, c * sizeof *y);
}

TEST(rows_by_index) {
    for (int s = 0; s < 4; s++)
        for (int replace = 0; replace < 2; replace++) {
            size_t n = row_shapes[s][0], c = row_shapes[s][1], m = (n + 1) / 2;
            problem p;
            begin_problem(&p, replace ? replace_build : gather_build, replace ? replace_plain : gather_plain);
            add(&p, n, c, 0, 1);
            if (replace) add(&p, m, c, 0, 1);
            /* gathered: 2 n + 1 rows, some often, some never; replaced: every second one, the last first */
            for (size_t i = 0; i < 2 * n + 1; i++) p.own.index[i] = (int32_t)(i * i % n);
            for (size_t i = 0; replace && i < m; i++) p.own.index[i] = (int32_t)(2 * (m - 1 - i));
            set_output(&p, replace ? n : 2 * n + 1, c);
            check_problem(&p, 40);
            check_frozen(&p);
            end_problem(&p);
        }
}

/* A table without a gradient may have any type of weights; so may the matrix of a linear layer. */
TEST(quantized_operands) {
    static const ml_type types[4] = {ML_F16, ML_BF16, ML_Q8_0, ML_Q4_0};
    static const int32_t index[3] = {2, 0, 2};
    static const float one[32] = {1};
    float numbers[3 * 32], back[3 * 32];
    unsigned char stored[3 * 32 * 4];
    problem p;
    ml_graph *g;
    begin_problem(&p, swiglu_build, swiglu_plain);
    for (int j = 0; j < 2; j++) add(&p, 8, 32, 0, 1);
    set_output(&p, 8, 32);
    REQUIRE(!ml_graph_new(NULL, build_problem, &p, &g, NULL));
    for (int i = 0; i < 3 * 32; i++) numbers[i] = sinf((float)i);
    for (int k = 0; k < 4; k++) {
        ml_tensor table = matrix(NULL, 3, 32, NULL);
        table.data = stored;
        table.type = types[k];
        REQUIRE(!ml_type_convert(types[k], stored, ML_F32, numbers, 3 * 32));
        REQUIRE(!ml_type_convert(ML_F32, back, types[k], stored, 3 * 32));
        ml_graph_begin(g, 1);
        ml_tensor y = ml_gather(g, table, index, 3),
                  z = ml_linear(g, matrix(one, 1, 32, NULL), table, ml_none());
        REQUIRE(!ml_graph_end(g, NULL));
        CHECK(!y.grad);
        for (int i = 0; i < 3; i++) {
            CHECK(memcmp((float *)y.data + i * 32, back + index[i] * 32, 32 * sizeof(float)) == 0);
            CHECK_NEAR(((float *)z.data)[i], back[i * 32], 1e-3, 0); /* 1 is rounded to 8 bits */
        }
        table.grad = numbers;
        ml_gather(g, table, index, 3);
        CHECK(g->result == ML_ERROR_ARGUMENT);
    }
    ml_graph_free(g);
    end_problem(&p);
}

/* ---- shapes ---- */

enum { RESHAPE, TRANSPOSE, SLICE_ROWS, SLICE_COLS, CONCAT_ROWS, CONCAT_COLS, SHAPES };

/* Slices leave the first and the last out; what is joined is the variable, the others and the variable again. */
static ml_tensor shape_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor parts[3] = {v[0], v[1], v[0]};
    switch (p->own.which) {
    case RESHAPE: return ml_reshape(g, v[0], v[0].cols, v[0].rows);
    case TRANSPOSE: return ml_transpose(g, v[0]);
    case SLICE_ROWS: return ml_slice(g, v[0], ML_ROWS, 1, v[0].rows - 1);
    case SLICE_COLS: return ml_slice(g, v[0], ML_COLS, 1, v[0].cols - 1);
    case CONCAT_ROWS: return ml_concat(g, parts, 3, ML_ROWS);
    default: return ml_concat(g, parts, 3, ML_COLS);
    }
}

static double plain_number(const variable *v, size_t i, size_t j) { return v->exact[i * v->cols + j]; }

static void shape_plain(const problem *p, double *y) {
    const variable *x = &p->v[0], *z = &p->v[1];
    for (size_t i = 0; i < p->rows; i++)
        for (size_t j = 0; j < p->cols; j++, y++) {
            size_t n = p->own.which == CONCAT_ROWS ? i : j,
                   first = p->own.which == CONCAT_ROWS ? x->rows : x->cols;
            size_t second = p->own.which == CONCAT_ROWS ? z->rows : z->cols;
            const variable *of = n >= first && n < first + second ? z : x;
            if (n >= first) n -= of == z ? first : first + second;
            if (p->own.which == RESHAPE) *y = x->exact[i * p->cols + j];
            if (p->own.which == TRANSPOSE) *y = plain_number(x, j, i);
            if (p->own.which == SLICE_ROWS) *y = plain_number(x, i + 1, j);
            if (p->own.which == SLICE_COLS) *y = plain_number(x, i, j + 1);
            if (p->own.which == CONCAT_ROWS) *y = plain_number(of, n, j);
            if (p->own.which == CONCAT_COLS) *y = plain_number(of, i, n);
        }
}

TEST(shapes) {
    static const size_t sizes[3][2] = {{3, 3}, {4, 7}, {301, 147}};
    for (int s = 0; s < 3; s++)
        for (int which = 0; which < SHAPES; which++) {
            size_t n = sizes[s][0], c = sizes[s][1];
            problem p;
            begin_problem(&p, shape_build, shape_plain);
            p.own.which = which;
            add(&p, n, c, 0, 1);
            add(&p, which == CONCAT_ROWS ? 2 : n, which == CONCAT_ROWS ? c : 5, 0, 1);
            if (which == RESHAPE || which == TRANSPOSE) set_output(&p, c, n);
            if (which == SLICE_ROWS) set_output(&p, n - 2, c);
            if (which == SLICE_COLS) set_output(&p, n, c - 2);
            if (which == CONCAT_ROWS) set_output(&p, 2 * n + 2, c);
            if (which == CONCAT_COLS) set_output(&p, n, 2 * c + 5);
            check_problem(&p, 40);
            check_frozen(&p);
            end_problem(&p);
        }
}

/* ---- other losses ---- */

static ml_tensor squared_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_scale(g, ml_squared_error(g, v[0], v[1], p->own.number), -.3f);
}
static void squared_plain(const problem *p, double *y) {
    double sum = 0, divisor = p->own.number > 0 ? (double)p->own.number : (double)p->v[0].n;
    for (size_t i = 0; i < p->v[0].n; i++) sum += pow(p->v[0].exact[i] - p->v[1].exact[i], 2);
    y[0] = (double)-.3f * sum / divisor;
}

static ml_tensor kl_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_scale(g, ml_kl_divergence(g, v[0], v[1], p->own.number), -.3f);
}
static void kl_plain(const problem *p, double *y) {
    double sum = 0, divisor = p->own.number > 0 ? (double)p->own.number : (double)p->v[0].rows;
    size_t c = p->v[0].cols;
    for (size_t i = 0; i < p->v[0].rows; i++) {
        const double *x = p->v[0].exact + i * c, *z = p->v[1].exact + i * c;
        double x_log_sum = plain_log_sum(x, c), z_log_sum = plain_log_sum(z, c);
        for (size_t j = 0; j < c; j++) sum += exp(x[j] - x_log_sum) * (x[j] - x_log_sum - z[j] + z_log_sum);
    }
    y[0] = (double)-.3f * sum / divisor;
}

TEST(squared_error_and_kl) {
    for (int s = 0; s < 4; s++)
        for (int way = 0; way < 4; way++) {
            problem p;
            begin_problem(&p, way & 1 ? kl_build : squared_build, way & 1 ? kl_plain : squared_plain);
            p.own.number = way & 2 ? 7.5f : 0;
            for (int j = 0; j < 2; j++) add(&p, row_shapes[s][0], row_shapes[s][1], 10 + j, 1);
            p.is_loss = 1;
            set_output(&p, 1, 1);
            check_problem(&p, s == 3 ? 20 : 60);
            check_frozen(&p);
            end_problem(&p);
        }
}

/* Where y and target are near each other: y - target is exact (Sterbenz 1974), so one product is rounded, of -.3 twice
   over 4; and 0 of equal ones. */
TEST(squared_error_of_near_numbers) {
    problem p;
    begin_problem(&p, squared_build, squared_plain);
    variable *y = add(&p, 1, 4, 1, 1), *target = add(&p, 1, 4, 2, 1);
    static const float a[4] = {50000, 50000.00390625f, 100.0000076f, -3}, b[4] = {50000, 50000, 100, -3};
    memcpy(y->given, a, sizeof a), memcpy(target->given, b, sizeof b);
    p.is_loss = 1;
    set_output(&p, 1, 1);
    run_pass(&p, 1, 0);
    for (int i = 0; i < 4; i++) {
        const float factor = 2 * -.3f / 4;
        CHECK(y->grad[i] == factor * (a[i] - b[i]));
        CHECK(target->grad[i] == factor * (b[i] - a[i]));
    }
    end_problem(&p);
}

/* Of equal distributions it is 0, and a class that p rules out counts nothing. */
TEST(kl_at_the_ends) {
    static const float x[4] = {1, 2, -INFINITY, 3}, y[4] = {0, 1, 5, 2}, far[4] = {1e4f, 0, 0, 0};
    float dx[4] = {0}, dy[4] = {0};
    problem p;
    ml_graph *g;
    begin_problem(&p, kl_build, kl_plain);
    for (int j = 0; j < 4; j++) add(&p, 1, 4, 0, 1);
    set_output(&p, 1, 1);
    REQUIRE(!ml_graph_new(NULL, build_problem, &p, &g, NULL));
    ml_graph_begin(g, 1);
    CHECK(((float *)ml_kl_divergence(g, matrix(x, 1, 4, dx), matrix(x, 1, 4, dy), 0).data)[0] == 0);
    ml_tensor loss = ml_kl_divergence(g, matrix(x, 1, 4, dx), matrix(y, 1, 4, dy), 0);
    /* p is q without the third class, divided by what it leaves */
    double left = (exp(0) + exp(1) + exp(2)) / (exp(0) + exp(1) + exp(2) + exp(5));
    CHECK_NEAR(((float *)loss.data)[0], -log(left), 0, 1e-6);
    CHECK(!ml_graph_backward(g, loss, NULL));
    for (int j = 0; j < 4; j++) CHECK(fabsf(dx[j]) < 1e-6f);
    CHECK_NEAR(dy[2], 1 - left, 0, 1e-6);
    ml_graph_begin(g, 1);
    loss = ml_kl_divergence(g, matrix(y, 1, 4, dx), matrix(far, 1, 4, dy), 0);
    CHECK(!ml_graph_backward(g, loss, NULL)); /* large, and finite */
    ml_graph_free(g);
    end_problem(&p);
}

/* ---- an operation of ours: y = sin(a) b, which keeps the cosines ---- */

static int custom_calls[2];

static ml_result sine_forward(const ml_custom *op) {
    const float *a = (const float *)op->inputs[0].data, *b = (const float *)op->inputs[1].data;
    float *y = (float *)op->output.data, *cosines = (float *)op->kept;
    custom_calls[0]++;
    for (size_t i = 0; i < op->output.rows * op->output.cols; i++) {
        y[i] = sinf(a[i]) * b[i];
        cosines[i] = cosf(a[i]);
    }
    return *(const ml_result *)op->user;
}

static ml_result sine_backward(const ml_custom *op) {
    const float *a = (const float *)op->inputs[0].data, *b = (const float *)op->inputs[1].data;
    const float *cosines = (const float *)op->kept;
    custom_calls[1]++;
    for (size_t i = 0; i < op->output.rows * op->output.cols; i++) {
        if (op->inputs[0].grad) op->inputs[0].grad[i] += op->output.grad[i] * cosines[i] * b[i];
        if (op->inputs[1].grad) op->inputs[1].grad[i] += op->output.grad[i] * sinf(a[i]);
    }
    return (ml_result)((const int *)op->user)[1];
}

static int custom_results[2]; /* of forward and backward */

static ml_tensor sine(ml_graph *g, ml_tensor a, ml_tensor b, int is_constant) {
    ml_tensor inputs[2] = {a, b};
    ml_custom_desc desc = {"sine", sine_forward, is_constant ? NULL : sine_backward, inputs, 2, 0, 0,
                           0,      NULL};
    desc.rows = a.rows;
    desc.cols = a.cols;
    desc.keep = a.rows * a.cols * sizeof(float);
    desc.user = custom_results;
    return ml_custom_op(g, &desc);
}
static ml_tensor sine_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return (void)p, sine(g, v[0], v[1], 0);
}
static void sine_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++) y[i] = sin(p->v[0].exact[i]) * p->v[1].exact[i];
}

TEST(custom) {
    problem p;
    begin_problem(&p, sine_build, sine_plain);
    for (int j = 0; j < 2; j++) add(&p, 5, 33, 0, 1);
    set_output(&p, 5, 33);
    check_problem(&p, 60);
    check_frozen(&p);
    custom_calls[0] = custom_calls[1] = 0;
    p.v[0].frozen = p.v[1].frozen = 1; /* nothing learns: no backward pass */
    run_pass(&p, 1, 0);
    CHECK(custom_calls[0] == 1 && custom_calls[1] == 0);
    end_problem(&p);
}

static ml_tensor sine_twice_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return (void)p, sine(g, sine(g, v[0], v[1], 0), v[1], 0);
}

/* After the first error no other function is called. */
TEST(custom_errors) {
    static const char *const said[2] = {"sine: its forward function returned -3 (",
                                        "sine: its backward function returned -9 ("};
    problem p;
    ml_graph *g;
    ml_error error;
    begin_problem(&p, sine_twice_build, NULL);
    for (int j = 0; j < 2; j++) add(&p, 5, 33, 0, 1);
    set_output(&p, 5, 33);
    REQUIRE(!ml_graph_new(NULL, build_problem, &p, &g, NULL));
    for (int backward = 0; backward < 2; backward++) {
        custom_results[0] = backward ? ML_OK : ML_ERROR_FILE;
        custom_results[1] = ML_ERROR_NUMBER;
        custom_calls[0] = custom_calls[1] = 0;
        ml_graph_begin(g, 1);
        ml_tensor y = sine_twice_build(g, passed.v, &p);
        CHECK(!y.data == !backward);
        ml_tensor loss = ml_sum(g, y);
        CHECK(ml_graph_backward(g, loss, &error) == custom_results[backward]);
        CHECK(strncmp(error.text, said[backward], strlen(said[backward])) == 0);
        CHECK(custom_calls[0] == 1 + backward && custom_calls[1] == backward);
    }
    custom_results[0] = custom_results[1] = 0;
    ml_graph_begin(g, 1);
    CHECK(!sine(g, passed.v[0], passed.v[1], 1).grad);
    CHECK(!ml_graph_end(g, NULL));
    ml_graph_free(g);
    end_problem(&p);
}

/* ---- graphs of several operations ---- */

/* z = x * x + relu(x), read three times: sum(z * silu(z)) + mean(z), and x itself as both operands of a product. */
static ml_tensor shared_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor z = ml_add(g, ml_mul(g, v[0], v[0]), ml_relu(g, v[0]));
    ml_tensor first = ml_sum(g, ml_mul(g, z, ml_silu(g, z))), second = ml_mean(g, z);
    ml_tensor third = ml_squared_error(g, ml_swiglu(g, v[0], v[0]), ml_tanh(g, v[0]), 0);
    (void)p;
    return ml_add(g, ml_add(g, ml_scale(g, first, .1f), second), ml_scale(g, third, -2));
}
static void shared_plain(const problem *p, double *y) {
    double n = (double)p->v[0].n;
    y[0] = 0;
    for (size_t i = 0; i < p->v[0].n; i++) {
        double x = p->v[0].exact[i], z = x * x + (x > 0 ? x : 0);
        y[0] += (double).1f * z * plain_function(SILU, z) + z / n -
                2 / n * pow(x * plain_function(SILU, x) - tanh(x), 2);
    }
}

/* Views of the same numbers that overlap: rows 0 .. n-2 and 1 .. n-1, in one operation, also with several threads. */
static ml_tensor overlapping_build(ml_graph *g, const ml_tensor *v, problem *p) {
    size_t n = v[0].rows;
    ml_tensor a = ml_slice(g, v[0], ML_ROWS, 0, n - 1), b = ml_slice(g, v[0], ML_ROWS, 1, n);
    ml_tensor c = ml_replace_rows(g, v[0], p->own.index, ml_slice(g, v[0], ML_ROWS, 0, 2));
    ml_tensor y = ml_sum(g, ml_add(g, ml_mul(g, a, b), ml_swiglu(g, a, b)));
    y = ml_add(g, y, ml_squared_error(g, a, b, 1));
    return ml_add(g, y, ml_add(g, ml_kl_divergence(g, a, b, 1), ml_sum(g, ml_mul(g, c, c))));
}
static void overlapping_plain(const problem *p, double *y) {
    size_t n = p->v[0].rows, cols = p->v[0].cols;
    y[0] = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < cols; j++) {
            size_t from = i == 2 ? 0 : i == 1 ? 1 : i; /* index 2, 1: row 0 in place of row 2 */
            y[0] += pow(plain_number(&p->v[0], from, j), 2);
        }
    for (size_t i = 0; i + 1 < n; i++) {
        const double *a = p->v[0].exact + i * cols, *b = a + cols;
        double a_log_sum = plain_log_sum(a, cols), b_log_sum = plain_log_sum(b, cols);
        for (size_t j = 0; j < cols; j++)
            y[0] += a[j] * b[j] + plain_function(SILU, a[j]) * b[j] + pow(a[j] - b[j], 2) +
                    exp(a[j] - a_log_sum) * (a[j] - a_log_sum - b[j] + b_log_sum);
    }
}

TEST(values_read_by_several) {
    for (int s = 1; s < 4; s++)
        for (int overlapping = 0; overlapping < 2; overlapping++) {
            problem p;
            begin_problem(&p, overlapping ? overlapping_build : shared_build,
                          overlapping ? overlapping_plain : shared_plain);
            p.own.index[0] = 2;
            p.own.index[1] = 1;
            add(&p, row_shapes[s][0], row_shapes[s][1], 0, 1);
            p.is_loss = 1;
            set_output(&p, 1, 1);
            check_problem(&p, s == 3 ? 20 : 60);
            end_problem(&p);
        }
}

/* The slopes of what no loss depends on, infinite at 0, do not matter. */
static ml_tensor unused_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_sqrt(g, v[0]);
    ml_sum(g, ml_mul(g, v[0], ml_log(g, v[0])));
    ml_div(g, v[0], v[0]);
    ml_attention_desc attention;
    memset(&attention, 0, sizeof attention);
    attention.q = attention.k = v[0], attention.v = ml_log(g, v[0]), attention.n_heads = 1;
    ml_attention(g, &attention);
    ml_linear(g, attention.v, v[0], ml_none());
    (void)p;
    return ml_sum(g, v[0]);
}

TEST(values_that_are_not_used) {
    problem p;
    begin_problem(&p, unused_build, NULL);
    p.is_loss = 1;
    variable *x = add(&p, 2, 3, 2, .1);
    x->given[1] = 0;
    set_output(&p, 1, 1);
    run_pass(&p, 1, 0);
    for (size_t i = 0; i < x->n; i++) CHECK(x->grad[i] == 1);
    end_problem(&p);
}

/* Weight and bias of a norm that are views of one vector: its gradients are the same bits for any number of threads. */
static ml_tensor norm_build(ml_graph *g, const ml_tensor *v, problem *p) {
    size_t n = v[0].cols;
    ml_tensor w = ml_reshape(g, ml_slice(g, v[1], ML_ROWS, 0, n), 1, n);
    ml_tensor b = ml_reshape(g, ml_slice(g, v[1], ML_ROWS, 5, n + 5), 1, n);
    (void)p;
    return ml_layer_norm(g, v[0], w, b, 1e-5f);
}

TEST(norms_of_overlapping_weights) {
    problem p;
    begin_problem(&p, norm_build, NULL);
    add(&p, 200, 300, 0, 1), add(&p, 305, 1, 0, 1);
    set_output(&p, 200, 300);
    run_pass(&p, 1, 0);
    pass_numbers first = numbers_of(&p);
    run_pass(&p, 3, 0);
    CHECK(parallel_operations >= 2);
    check_same_bits(&p, &first);
    free_numbers(&first);
    end_problem(&p);
}

/* ---- formulas composed of operations, by PyTorch's arithmetic ----

   The numbers below are the loss and all gradients in float64 that PyTorch 1.13 computes from

       def wave(n, m, a):
           x = torch.sin(a + .7 * torch.arange(n * m).double()).float().double()
           return x.view(n, m).requires_grad_()
       def dropped(n, m, p, seed):  # where ml_dropout keeps a number, as 1 / (1 - p)
           keep = []
           for i in range(n * m):
               z = (seed + (i + 1) * 0x9e3779b97f4a7c15) % 2**64
               z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9 % 2**64
               z = (z ^ z >> 27) * 0x94d049bb133111eb % 2**64
               keep.append(((z ^ z >> 31) >> 40) / 2**24 >= p)
           return torch.tensor(keep).double().view(n, m) / (1 - p)
       def shapes(*s): return [wave(n, m, i) for i, (n, m) in enumerate(s)]
       y = torch.tensor([2, 0, -100])
       x, w0, a, b, m = v = shapes((5, 4), (3, 4), (2, 4), (3, 2), (3, 1))
       W = w0 + 1.5 * b @ a
       show('dora', (F.linear(x, W * m / W.norm(dim=1, keepdim=True).detach()) ** 2).mean(), v)
       x, w1, w3, w2, l = v = shapes((3, 4), (5, 4), (5, 4), (4, 5), (1, 5))
       ffn = F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3) * l, w2)
       show('ia3', F.mse_loss(ffn, torch.zeros(3, 4).double()), v)
       h, d, bd, u, bu = v = shapes((3, 4), (2, 4), (1, 2), (4, 2), (1, 4))
       show('bottleneck', (h + 4 * F.linear(F.gelu(F.linear(h, d, bd[0])), u, bu[0])).pow(2).sum() / 7, v)
       x, w, b = v = shapes((3, 4), (5, 4), (1, 5))
       show('smoothing', F.cross_entropy(F.linear(x, w, b[0]), y, label_smoothing=.1), v)
       x, z = v = shapes((3, 5), (3, 5))
       p, q = F.log_softmax(3 * x, 1), F.log_softmax(z, 1)
       def kl(p, q): return F.kl_div(p, q, reduction='batchmean', log_target=True)
       show('smart', kl(p, q) + kl(q, p), v)
       x, u, w, b = v = shapes((3, 4), (6, 4), (5, 6), (1, 5))
       h = torch.tanh(F.linear(x, u))
       r1, r2 = [F.linear(h * dropped(3, 6, .25, seed), w, b[0]) for seed in (11, 12)]
       p, q = F.log_softmax(r1, 1), F.log_softmax(r2, 1)
       show('r_drop', (F.cross_entropy(r1, y) + F.cross_entropy(r2, y)) / 2 + .8 / 2 * (kl(p, q) + kl(q, p)), v)

   where show() runs loss.backward() and prints the loss and the gradients of v. */

static const double torch_dora[] = {
    0.53194928,    0.059851391,   0.11947158,    0.1229024,    0.06853031,  0.0021985948, -0.057805104,
    -0.090622152,  -0.080818188,  -0.063994524,  -0.010541063, 0.047870025, 0.083767093,  0.11839554,
    0.077669147,   0.00041373428, -0.077036264,  -0.15911533,  -0.13582216, -0.048649687, 0.061403488,
    0.065959037,   0.038729704,   -0.0067148145, -0.049001253, -0.19233674, -0.22179409,  -0.14693821,
    -0.0029749842, -0.118791,     0.022706408,   0.15352464,   0.21213784,  0.37129012,   0.30896371,
    0.10132684,    -0.15396563,   0.17634957,    0.28455665,   0.25893228,  0.11152801,   0.17751179,
    -0.18122665,   -0.34454777,   0.53785783,    -0.46669723,  0.3184017,   -0.27537868,  -0.29535706,
    -0.724874};
static const double torch_ia3[] = {
    0.45739937,    1.0680152,     1.1268092,    0.65564715,     -0.12387594,   0.23467658,    0.11172884,
    -0.063766709,  -0.20927178,   -0.13234522,  0.016019811,    0.15685047,    0.2239119,     -0.036233954,
    -0.08552442,   -0.09459142,   -0.059170594, 0.088965193,    -0.049211341,  -0.16424301,   -0.20202863,
    -0.08910054,   0.21709075,    0.42118088,   0.42718305,     -0.0053901019, 0.0099412336,  0.020597052,
    0.021565755,   -0.0069474647, 0.066154066,  0.10814231,     0.099269532,   0.0075857959,  0.13594459,
    0.20036652,    0.17055295,    -0.11460054,  -0.00054107536, 0.11377287,    0.17457766,    0.14714257,
    0.46547684,    0.56489011,    0.39862671,   -0.018479452,   0.0048002456,  0.025822312,   0.034699743,
    -0.010628051,  0.05141282,    0.08927344,   0.085147364,    0.040020934,   -0.040628974,  -0.12928392,
    0.00039063514, 0.058411871,   -0.065676257, 0.058833344,    0.1891864,     -0.0051868417, -0.1516162,
    0.082985001,   -0.069560782,  -0.22504581,  0.0093238705,   0.22555213,    -0.089747469,  0.071447978,
    0.23230492,    -0.01227596,   -0.27082342,  0.16617775,     -0.20608792,   -0.88879976,   0.053172805,
    0.31843616};
static const double torch_bottleneck[] = {
    68.268537,  20.334803, 21.856596,  15.831121,  3.7970443,  -6.0858129,  -14.060713,
    -13.212592, -6.547388, 6.0501102,  5.3304026,  2.9417382,  -0.36048017, -3.1995264,
    10.949987,  19.949551, 19.566528,  5.1421093,  -9.4973766, -19.670098,  -20.591665,
    45.357874,  24.199198, -7.2948628, -10.850687, -35.737608, -18.206971,  -19.592212,
    -4.082243,  19.682634, 8.5992754,  -12.247051, -32.792311, -14.793651,  16.202724};
static const double torch_smoothing[] = {1.7000694,
                                         0.097313703,
                                         0.023541151,
                                         -0.061303174,
                                         -0.11731566,
                                         -0.49150718,
                                         -0.74821634,
                                         -0.65302766,
                                         -0.25070984,
                                         0,
                                         0,
                                         0,
                                         0,
                                         -0.1333486,
                                         0.29770033,
                                         0.58873616,
                                         0.60288017,
                                         0.08859856,
                                         -0.094922712,
                                         -0.23380035,
                                         -0.26271804,
                                         -0.00099741489,
                                         -0.18613235,
                                         -0.28372634,
                                         -0.24787939,
                                         0.048219879,
                                         -0.056021789,
                                         -0.13391554,
                                         -0.14882672,
                                         -0.0024724204,
                                         0.03937652,
                                         0.062706069,
                                         0.056543974,
                                         -0.15271127,
                                         0.26115053,
                                         -0.29352645,
                                         0.13536364,
                                         0.04972356};
static const double torch_smart[] = {
    0.69121792,   -0.31427458,  -0.32971888, 0.32534082,  0.345155,    -0.026502355, 0.30140448,
    -0.073627998, -0.15470523,  -0.2933983,  0.22032705,  -0.42763989, 0.2581031,    0.28732659,
    -0.051218899, -0.066570903, 0.24916838,  0.058209353, -0.16956179, -0.12490527,  -0.012910674,
    -0.077917878, 0.020113991,  0.084528401, 0.12621717,  -0.15294168, 0.1648247,    -0.12258188,
    -0.098649646, 0.007246626,  0.049160192};
static const double torch_r_drop[] = {
    2.9828621,    0.043973253,   0.1694011,    0.21515696,    0.15972112,     0.052727646,  0.012074566,
    -0.034257372, -0.064477531,  0.004600772,  0.0073202079,  0.0065968361,   0.0027708688, 0.0023725944,
    0.15908998,   0.24098487,    0.20954081,   3.8955622e-05, 0.064787337,    0.099065224,  0.086751187,
    0.012426332,  -0.0049749767, -0.020036476, -0.025674508,  0.018659097,    -0.033655457, -0.070141325,
    -0.073638632, -0.0057221705, -0.015718742, -0.018322545,  -0.012308968,   0.009846003,  -0.1346579,
    -0.2158301,   -0.19549402,   0.37356026,   -0.7738456,    0.64091293,     -0.84871177,  0.15168062,
    -0.78802614,  0.017332871,   0.090602612,  -0.11069824,   0.14732314,     0.056205654,  0.10139707,
    -0.53822499,  0.65934802,    -0.41775089,  0.73740517,    -0.20808276,    0.63863291,   0.12799477,
    -0.066649151, -0.0030943999, -0.18270432,  -0.057637021,  -0.051763366,   0.019337086,  0.090544116,
    -0.10936939,  0.14668778,    0.057833513,  0.099759526,   -7.6941614e-07, 0.10686116,   -0.38990852,
    0.17415895,   0.10888918};

/* The variables are waves of these shapes; the loss, and every gradient relative to the largest, within TOLERANCE. */
static void check_torch(ml_tensor (*build)(ml_graph *, const ml_tensor *, problem *),
                        const size_t (*shapes)[2], int n_shapes, const double *expected, size_t n_expected) {
    size_t at = 1;
    problem p;
    begin_problem(&p, build, NULL);
    for (int j = 0; j < n_shapes; j++) {
        variable *v = add(&p, shapes[j][0], shapes[j][1], 0, 1);
        for (size_t i = 0; i < v->n; i++) v->given[i] = (float)sin(j + .7 * (double)i);
    }
    p.is_loss = 1;
    set_output(&p, 1, 1);
    for (int separate = 0; separate < 2; separate++) {
        run_pass(&p, 1, separate);
        CHECK_NEAR(p.y[0], expected[0], TOLERANCE, TOLERANCE);
        at = 1;
        for (int j = 0; j < n_shapes; j++) {
            double largest = 0;
            for (size_t i = 0; i < p.v[j].n; i++) largest = larger(largest, fabs(expected[at + i]));
            for (size_t i = 0; i < p.v[j].n; i++)
                CHECK_NEAR(p.v[j].grad[i], expected[at++], TOLERANCE * largest, 0);
        }
    }
    CHECK(at == n_expected);
    end_problem(&p);
}
#define CHECK_TORCH(build, shapes, expected)                                                                 \
    check_torch(build, shapes, (int)(sizeof shapes / sizeof *shapes), expected,                              \
                sizeof expected / sizeof *expected)

/* DoRA (Liu et al. 2024): W = m (W0 + s B A) / |W0 + s B A| for each output row, the length as a constant. */
static ml_tensor dora_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor update = ml_linear(g, v[3], ml_transpose(g, v[2]), ml_none());
    ml_tensor w = ml_add(g, v[1], ml_scale(g, update, 1.5f));
    ml_tensor square = ml_sum_rows(g, ml_mul(g, w, w));
    ml_tensor inverse = ml_stop_gradient(g, ml_exp(g, ml_scale(g, ml_log(g, square), -.5f)));
    ml_tensor y = ml_linear(g, v[0], ml_mul(g, w, ml_mul(g, v[4], inverse)), ml_none());
    (void)p;
    return ml_mean(g, ml_mul(g, y, y));
}

/* IA3 (Liu et al. 2022) scales what enters the last matrix of a feed-forward layer. */
static ml_tensor ia3_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor gate = ml_linear(g, v[0], v[1], ml_none()), up = ml_linear(g, v[0], v[2], ml_none());
    ml_tensor y = ml_linear(g, ml_mul(g, ml_swiglu(g, gate, up), v[4]), v[3], ml_none());
    (void)p;
    return ml_squared_error(g, y, ml_scale(g, ml_stop_gradient(g, y), 0), 0);
}

/* A bottleneck adapter (Houlsby et al. 2019) with the scale of He et al. 2022: h + 4 up(gelu(down(h))). */
static ml_tensor bottleneck_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_tensor low = ml_gelu(g, ml_linear(g, v[0], v[1], v[2]));
    ml_tensor y = ml_add(g, v[0], ml_scale(g, ml_linear(g, low, v[3], v[4]), 4));
    (void)p;
    return ml_squared_error(g, y, ml_scale(g, ml_stop_gradient(g, y), 0), 7);
}

static const int32_t torch_targets[3] = {2, 0, -100};

static ml_tensor smoothing_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_loss_desc desc = {torch_targets, 0, .1f, NULL, 0};
    (void)p;
    return ml_linear_cross_entropy(g, v[0], v[1], v[2], &desc);
}

static ml_tensor both_ways(ml_graph *g, ml_tensor x, ml_tensor y) {
    return ml_add(g, ml_kl_divergence(g, x, y, 0), ml_kl_divergence(g, y, x, 0));
}

/* SMART (Jiang et al. 2020): the symmetric divergence of the logits of a disturbed input from the others. */
static ml_tensor smart_build(ml_graph *g, const ml_tensor *v, problem *p) {
    (void)p;
    return both_ways(g, ml_scale(g, v[0], 3), v[1]);
}

/* R-Drop (Liang et al. 2021): two passes with dropout of their own, and what divides their results. */
static ml_tensor r_drop_build(ml_graph *g, const ml_tensor *v, problem *p) {
    ml_loss_desc desc = {torch_targets, 0, 0, NULL, 0};
    ml_tensor h = ml_tanh(g, ml_linear(g, v[0], v[1], ml_none())), y[2];
    for (int i = 0; i < 2; i++) y[i] = ml_linear(g, ml_dropout(g, h, .25f, 11 + (uint64_t)i), v[2], v[3]);
    ml_tensor loss = ml_add(g, ml_cross_entropy(g, y[0], &desc), ml_cross_entropy(g, y[1], &desc));
    (void)p;
    return ml_add(g, ml_scale(g, loss, .5f), ml_scale(g, both_ways(g, y[0], y[1]), .4f));
}

TEST(compositions) {
    static const size_t dora[5][2] = {{5, 4}, {3, 4}, {2, 4}, {3, 2}, {3, 1}};
    static const size_t ia3[5][2] = {{3, 4}, {5, 4}, {5, 4}, {4, 5}, {1, 5}};
    static const size_t bottleneck[5][2] = {{3, 4}, {2, 4}, {1, 2}, {4, 2}, {1, 4}};
    static const size_t smoothing[3][2] = {{3, 4}, {5, 4}, {1, 5}};
    static const size_t smart[2][2] = {{3, 5}, {3, 5}};
    static const size_t r_drop[4][2] = {{3, 4}, {6, 4}, {5, 6}, {1, 5}};
    CHECK_TORCH(dora_build, dora, torch_dora);
    CHECK_TORCH(ia3_build, ia3, torch_ia3);
    CHECK_TORCH(bottleneck_build, bottleneck, torch_bottleneck);
    CHECK_TORCH(smoothing_build, smoothing, torch_smoothing);
    CHECK_TORCH(smart_build, smart, torch_smart);
    CHECK_TORCH(r_drop_build, r_drop, torch_r_drop);
}

/* Mixout (Lee et al. 2020), w' = ((1 - k) w0 + k w - p w0) / (1 - p) with k 0 or 1 for each number, is w0 +
   dropout(w - w0). The gradient is that of the formula, k / (1 - p); the authors' code draws one k for each column
   and leaves the divisor out. */
static ml_tensor mixout_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_add(g, v[0], ml_dropout(g, ml_sub(g, v[1], v[0]), p->own.number, 5));
}
static void mixout_plain(const problem *p, double *y) {
    double drop = (double)p->own.number;
    for (size_t i = 0; i < p->v[0].n; i++) {
        double w0 = p->v[0].exact[i], w = p->v[1].exact[i], k = p->y[i] == p->v[0].given[i] ? 0 : 1;
        y[i] = ((1 - k) * w0 + k * w - drop * w0) / (1 - drop);
    }
}

TEST(mixout) {
    problem p;
    begin_problem(&p, mixout_build, mixout_plain);
    p.own.number = .7f;
    for (int j = 0; j < 2; j++) add(&p, 9, 17, 0, 1);
    set_output(&p, 9, 17);
    check_problem(&p, 60);
    check_frozen(&p);
    end_problem(&p);
}

/* ---- errors: each ends the pass with one sentence ---- */

/* A graph that a pass of any test below fits into. */
static ml_tensor roomy_build(ml_graph *g, void *user) {
    (void)user;
    ml_input(g, NULL, 64, 64);
    return ml_input(g, NULL, 1, 1);
}

static float numbers[64], gradients[64];
static ml_tensor of(size_t rows, size_t cols) { return matrix(numbers, rows, cols, gradients); }

static ml_tensor wrong_pair(ml_graph *g) { return ml_add(g, of(2, 3), of(3, 2)); }
static ml_tensor wrong_repeat(ml_graph *g) { return ml_mul(g, of(1, 3), of(2, 3)); }
static ml_tensor wrong_sub(ml_graph *g) { return ml_sub(g, of(2, 3), of(2, 2)); }
static ml_tensor wrong_linear(ml_graph *g) { return ml_linear(g, of(2, 3), of(3, 2), ml_none()); }
static ml_tensor wrong_bias(ml_graph *g) { return ml_linear(g, of(2, 3), of(4, 3), of(1, 3)); }
static ml_tensor wrong_swiglu(ml_graph *g) { return ml_swiglu(g, of(2, 3), of(1, 3)); }
static ml_tensor wrong_rms(ml_graph *g) { return ml_rms_norm(g, of(2, 3), of(1, 2), 1e-5f); }
static ml_tensor wrong_layer(ml_graph *g) { return ml_layer_norm(g, of(2, 3), ml_none(), of(2, 3), 1e-5f); }
static ml_tensor wrong_reshape(ml_graph *g) { return ml_reshape(g, of(2, 3), 4, 2); }
static ml_tensor wrong_reshape_size(ml_graph *g) { return ml_reshape(g, of(2, 3), (size_t)-1, 8); }
static ml_tensor wrong_concat_rows(ml_graph *g) {
    ml_tensor parts[2] = {of(2, 3), of(2, 4)};
    return ml_concat(g, parts, 2, ML_ROWS);
}
static ml_tensor wrong_concat_cols(ml_graph *g) {
    ml_tensor parts[2] = {of(2, 3), of(1, 3)};
    return ml_concat(g, parts, 2, ML_COLS);
}
static ml_tensor wrong_parts(ml_graph *g) { return ml_concat(g, NULL, 0, ML_COLS); }
static ml_tensor wrong_slice(ml_graph *g) { return ml_slice(g, of(2, 3), ML_COLS, 1, 4); }
static ml_tensor empty_slice(ml_graph *g) { return ml_slice(g, of(2, 3), ML_ROWS, 1, 1); }
static const int32_t far_index[2] = {1, 5}, low_index[2] = {-1, 0}, same_index[2] = {1, 1};
static ml_tensor wrong_gather(ml_graph *g) { return ml_gather(g, of(5, 3), far_index, 2); }
static ml_tensor low_gather(ml_graph *g) { return ml_gather(g, of(5, 3), low_index, 2); }
static ml_tensor null_gather(ml_graph *g) { return ml_gather(g, of(5, 3), NULL, 2); }
static ml_tensor empty_gather(ml_graph *g) { return ml_gather(g, of(5, 3), far_index, 0); }
static ml_tensor wrong_replace(ml_graph *g) { return ml_replace_rows(g, of(5, 3), far_index, of(2, 3)); }
static ml_tensor same_replace(ml_graph *g) { return ml_replace_rows(g, of(5, 3), same_index, of(2, 3)); }
static ml_tensor many_replace(ml_graph *g) { return ml_replace_rows(g, of(1, 3), low_index, of(2, 3)); }
static ml_tensor left_out(ml_graph *g) { return ml_tanh(g, ml_none()); }
static ml_tensor wrong_type(ml_graph *g) {
    ml_tensor x = of(2, 3);
    x.type = ML_F16;
    return ml_exp(g, x);
}
static ml_tensor no_weight(ml_graph *g) {
    ml_tensor w = of(2, 3);
    w.type = ML_I64;
    w.grad = NULL;
    return ml_linear(g, of(2, 3), w, ml_none());
}
static ml_tensor no_blocks(ml_graph *g) {
    ml_tensor table = matrix(numbers, 2, 3, NULL);
    table.type = ML_Q8_0;
    return ml_gather(g, table, low_index + 1, 1);
}
static ml_tensor wrong_dropout(ml_graph *g) { return ml_dropout(g, of(2, 3), 1, 1); }
static ml_tensor wrong_input(ml_graph *g) { return ml_input(g, numbers, 0, 3); }

static const int32_t far_targets[2] = {-1, 3};
static ml_tensor entropy_with(ml_graph *g, ml_loss_desc desc) { return ml_cross_entropy(g, of(2, 3), &desc); }
static ml_tensor wrong_target(ml_graph *g) {
    ml_loss_desc desc = {far_targets, 0, 0, NULL, 0};
    return entropy_with(g, desc);
}
static ml_tensor wrong_linear_target(ml_graph *g) {
    ml_loss_desc desc = {far_targets, 0, 0, NULL, 0};
    return ml_linear_cross_entropy(g, of(2, 4), of(3, 4), ml_none(), &desc);
}
static ml_tensor no_targets(ml_graph *g) {
    ml_loss_desc desc = {NULL, 0, 0, NULL, 0};
    return entropy_with(g, desc);
}
static ml_tensor no_desc(ml_graph *g) { return ml_cross_entropy(g, of(2, 3), NULL); }
static ml_tensor wrong_smoothing(ml_graph *g) {
    ml_loss_desc desc = {low_index, 0, 1.5f, NULL, 0};
    return entropy_with(g, desc);
}
static ml_tensor wrong_divisor(ml_graph *g) {
    ml_loss_desc desc = {low_index, -1, 0, NULL, 0};
    return entropy_with(g, desc);
}
static ml_tensor wrong_entropy(ml_graph *g) {
    ml_loss_desc desc = {low_index, 0, 0, NULL, 0};
    return ml_linear_cross_entropy(g, of(2, 4), of(3, 5), ml_none(), &desc);
}
static ml_tensor wrong_squared(ml_graph *g) { return ml_squared_error(g, of(2, 3), of(1, 3), 0); }
static ml_tensor wrong_squared_divisor(ml_graph *g) { return ml_squared_error(g, of(2, 3), of(2, 3), -1); }
static ml_tensor wrong_kl(ml_graph *g) { return ml_kl_divergence(g, of(2, 3), of(2, 4), 0); }
static ml_tensor wrong_custom(ml_graph *g) {
    ml_custom_desc desc = {"mine", sine_forward, NULL, NULL, 2, 1, 1, 0, NULL};
    return ml_custom_op(g, &desc);
}
static ml_tensor custom_left_out(ml_graph *g) { return sine(g, of(2, 3), ml_none(), 0); }
static ml_tensor whole_loss(ml_graph *g) {
    ml_loss_desc desc = {low_index, 0, 0, NULL, 1};
    return entropy_with(g, desc);
}
static ml_tensor whole_read(ml_graph *g) { return ml_scale(g, whole_loss(g), 2); }
static ml_tensor whole_twice(ml_graph *g) { return whole_loss(g), whole_loss(g); }
static ml_tensor whole_and_another(ml_graph *g) { return whole_loss(g), ml_sum(g, of(2, 3)); }
static ml_tensor not_a_loss(ml_graph *g) { return ml_relu(g, of(2, 3)); }
static ml_tensor too_large(ml_graph *g) { return ml_sum(g, ml_input(g, NULL, 1000, 1000)); }
static ml_tensor larger_than_memory(ml_graph *g) { return ml_sum(g, ml_input(g, NULL, SIZE_MAX / 16, 1)); }
static ml_tensor empty_mean(ml_graph *g) { return ml_mean(g, of(0, 3)); }
static ml_tensor empty_rows(ml_graph *g) { return ml_sum_rows(g, of(0, 3)); } /* would divide by 0 */
static ml_tensor no_columns(ml_graph *g) {
    ml_rows all = {NULL, 0};
    return ml_rotate(g, of(2, 4), of(2, 0), all);
}
static ml_tensor endless(ml_graph *g) { return ml_relu(g, of(SIZE_MAX / 4 + 1, 4)); }
static ml_tensor wrong_input_size(ml_graph *g) { return ml_input(g, NULL, SIZE_MAX / 4 + 1, 1); }
static ml_tensor no_attention(ml_graph *g) { return ml_attention(g, NULL); }
static ml_tensor more_rows(ml_graph *g) {
    static const int32_t start[2] = {0, 2};
    ml_rows rows = {start, 1000000}; /* what is behind the two must not be read */
    return ml_pool_rows(g, of(2, 3), rows, ML_POOL_MEAN);
}
static ml_tensor custom_size(ml_graph *g) {
    ml_tensor x = of(2, 3);
    ml_custom_desc desc = {"mine", sine_forward, NULL, &x, 1, SIZE_MAX / 2 + 1, 2, 0, NULL};
    return ml_custom_op(g, &desc);
}
static ml_tensor custom_keep(ml_graph *g) {
    ml_tensor x = of(2, 3);
    ml_custom_desc desc = {"mine", sine_forward, NULL, &x, 1, 1, 1, SIZE_MAX, NULL};
    return ml_custom_op(g, &desc);
}
static ml_tensor learned_rotation(ml_graph *g) {
    ml_rows one = {NULL, 0};
    return ml_rotate(g, of(2, 2), of(2, 2), one);
}
static ml_tensor not_finite(ml_graph *g) { return ml_log(g, ml_scale(g, ml_sum(g, of(2, 3)), 0)); }

static const struct {
    ml_tensor (*build)(ml_graph *g);
    ml_result result;
    const char *text; /* or how it begins */
} wrong[] = {
    {wrong_pair, ML_ERROR_MISMATCH, "ml_add: shapes (2, 3) and (3, 2) do not fit"},
    {wrong_repeat, ML_ERROR_MISMATCH, "ml_mul: shapes (1, 3) and (2, 3) do not fit"},
    {wrong_sub, ML_ERROR_MISMATCH, "ml_sub: shapes (2, 3) and (2, 2) do not fit"},
    {wrong_linear, ML_ERROR_MISMATCH, "ml_linear: shapes (2, 3) and (3, 2) do not fit"},
    {wrong_bias, ML_ERROR_MISMATCH, "ml_linear: the bias is (1, 3), not (1, 4)"},
    {wrong_swiglu, ML_ERROR_MISMATCH, "ml_swiglu: shapes (2, 3) and (1, 3) do not fit"},
    {wrong_rms, ML_ERROR_MISMATCH, "ml_rms_norm: shapes (2, 3) and (1, 2) do not fit"},
    {wrong_layer, ML_ERROR_MISMATCH, "ml_layer_norm: shapes (2, 3) and (2, 3) do not fit"},
    {wrong_reshape, ML_ERROR_MISMATCH, "ml_reshape: shapes (2, 3) and (4, 2) do not fit"},
    {wrong_reshape_size, ML_ERROR_MISMATCH, "ml_reshape: shapes (2, 3) and ("},
    {wrong_concat_rows, ML_ERROR_MISMATCH, "ml_concat: shapes (2, 3) and (2, 4) do not fit"},
    {wrong_concat_cols, ML_ERROR_MISMATCH, "ml_concat: shapes (2, 3) and (1, 3) do not fit"},
    {wrong_parts, ML_ERROR_ARGUMENT, "ml_concat: no parts, or no such axis"},
    {wrong_slice, ML_ERROR_ARGUMENT, "ml_slice: there is no [1, 4) along axis 1 of (2, 3)"},
    {empty_slice, ML_ERROR_ARGUMENT, "ml_slice: there is no [1, 1) along axis 0 of (2, 3)"},
    {wrong_gather, ML_ERROR_ARGUMENT, "ml_gather: index 1 is 5, and there are 5 rows"},
    {low_gather, ML_ERROR_ARGUMENT, "ml_gather: index 0 is -1, and there are 5 rows"},
    {null_gather, ML_ERROR_ARGUMENT, "ml_gather: index is NULL"},
    {empty_gather, ML_ERROR_ARGUMENT, "ml_gather: there are no indices"},
    {wrong_replace, ML_ERROR_ARGUMENT, "ml_replace_rows: index 1 is 5, and there are 5 rows"},
    {same_replace, ML_ERROR_ARGUMENT, "ml_replace_rows: indices 0 and 1 are both 1"},
    {many_replace, ML_ERROR_MISMATCH, "ml_replace_rows: shapes (1, 3) and (2, 3) do not fit"},
    {left_out, ML_ERROR_ARGUMENT, "ml_tanh: an operand is left out"},
    {wrong_type, ML_ERROR_ARGUMENT, "ml_exp: an operand is F16, not F32"},
    {no_weight, ML_ERROR_ARGUMENT, "ml_linear: an operand is I64, not F32"},
    {no_blocks, ML_ERROR_ARGUMENT, "ml_gather: an operand is Q8_0, not F32"},
    {wrong_dropout, ML_ERROR_ARGUMENT, "ml_dropout: the probability is not at least 0 and below 1"},
    {wrong_input, ML_ERROR_ARGUMENT, "ml_input: the shape is (0, 3)"},
    {wrong_target, ML_ERROR_ARGUMENT, "ml_cross_entropy: target 1 is 3, not below 3"},
    {wrong_linear_target, ML_ERROR_ARGUMENT, "ml_linear_cross_entropy: target 1 is 3, not below 3"},
    {no_targets, ML_ERROR_ARGUMENT, "ml_cross_entropy: there are no targets"},
    {no_desc, ML_ERROR_ARGUMENT, "ml_cross_entropy: there are no targets"},
    {wrong_smoothing, ML_ERROR_ARGUMENT, "ml_cross_entropy: divisor or smoothing is out of range"},
    {wrong_divisor, ML_ERROR_ARGUMENT, "ml_cross_entropy: divisor or smoothing is out of range"},
    {wrong_entropy, ML_ERROR_MISMATCH, "ml_linear_cross_entropy: shapes (2, 4) and (3, 5) do not fit"},
    {wrong_squared, ML_ERROR_MISMATCH, "ml_squared_error: shapes (2, 3) and (1, 3) do not fit"},
    {wrong_squared_divisor, ML_ERROR_ARGUMENT, "ml_squared_error: the divisor is negative"},
    {wrong_kl, ML_ERROR_MISMATCH, "ml_kl_divergence: shapes (2, 3) and (2, 4) do not fit"},
    {wrong_custom, ML_ERROR_ARGUMENT,
     "ml_custom_op: forward, inputs, rows or cols is missing, or n_inputs not "},
    {custom_left_out, ML_ERROR_ARGUMENT, "sine: an operand is left out"},
    {whole_read, ML_ERROR_ARGUMENT, "ml_scale: an operand is the loss that was said to be the whole"},
    {whole_twice, ML_ERROR_ARGUMENT, "ml_cross_entropy: another loss was said to be the whole"},
    {whole_and_another, ML_ERROR_ARGUMENT, "ml_graph_backward: another loss was said to be the whole"},
    {not_a_loss, ML_ERROR_MISMATCH, "ml_graph_backward: the loss is (2, 3), not (1, 1)"},
    {too_large, ML_ERROR_MEMORY, "the pass takes at least "},
    {larger_than_memory, ML_ERROR_MEMORY, "a pass of this size takes more memory than can be addressed"},
    {empty_mean, ML_ERROR_ARGUMENT, "ml_mean: an operand has the shape (0, 3)"},
    {empty_rows, ML_ERROR_ARGUMENT, "ml_sum_rows: an operand has the shape (0, 3)"},
    {no_columns, ML_ERROR_ARGUMENT, "ml_rotate: an operand has the shape (2, 0)"},
    {endless, ML_ERROR_ARGUMENT, "ml_relu: an operand has the shape ("},
    {wrong_input_size, ML_ERROR_ARGUMENT, "ml_input: the shape is ("},
    {no_attention, ML_ERROR_ARGUMENT, "ml_attention: desc is NULL"},
    {more_rows, ML_ERROR_ARGUMENT, "ml_pool_rows: the 1000000 rows do not run from 0 to the 2 tokens"},
    {custom_size, ML_ERROR_ARGUMENT, "ml_custom_op: "},
    {custom_keep, ML_ERROR_MEMORY, "a pass of this size takes more memory than can be addressed"},
    {learned_rotation, ML_ERROR_ARGUMENT, "ml_rotate: a table is a constant"},
    {not_finite, ML_ERROR_NUMBER, "the loss is not finite"},
};

/* After each, other operations do nothing, and the next pass is as ever. */
TEST(errors) {
    ml_graph *g;
    ml_error error;
    REQUIRE(!ml_graph_new(NULL, roomy_build, NULL, &g, &error));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ml_graph_begin(g, 1);
        ml_tensor y = wrong[i].build(g);
        if (g->result) {
            ml_tensor next = ml_add(g, ml_relu(g, of(2, 3)), of(1, 1));
            CHECK(!y.data && !next.data);
            CHECK(!wrong[i].build(g).data);
        }
        CHECK(!wrong[i].build(NULL).data);
        CHECK(ml_graph_backward(g, y, &error) == wrong[i].result && error.code == wrong[i].result);
        CHECK(strncmp(error.text, wrong[i].text, strlen(wrong[i].text)) == 0);
        if (strncmp(error.text, wrong[i].text, strlen(wrong[i].text)) != 0)
            printf("\"%s\", not \"%s\"\n", error.text, wrong[i].text);
        ml_graph_begin(g, 1);
        CHECK(!ml_graph_backward(g, ml_sum(g, of(2, 3)), &error) && !error.text[0]);
    }
    ml_graph_begin(g, 0);
    CHECK(ml_graph_backward(g, ml_sum(g, of(2, 3)), &error) == ML_ERROR_ARGUMENT);
    CHECK(strcmp(error.text, "ml_graph_backward: the pass does not tape, or was run backward before") == 0);
    ml_graph_begin(g, 0); /* which may read a whole loss */
    CHECK(whole_read(g).data && !ml_graph_end(g, NULL));
    ml_graph_free(g);
}

/* Shapes, operands that are left out and a whole loss that is read are found while a graph measures; indices and
   targets are not read. */
static ml_tensor measured_wrong(ml_graph *g, void *user) { return wrong[*(const size_t *)user].build(g); }

TEST(errors_while_measuring) {
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (wrong[i].build == no_desc) continue;
        ml_error error;
        size_t size, length = strlen(wrong[i].text);
        if (strstr(wrong[i].text, " index ") || strstr(wrong[i].text, "target") ||
            strstr(wrong[i].text, "ices 0"))
            CHECK(!ml_graph_size(NULL, measured_wrong, &i, &size, &error));
        if (wrong[i].result == ML_ERROR_MISMATCH && wrong[i].build != not_a_loss) {
            CHECK(ml_graph_size(NULL, measured_wrong, &i, &size, &error) == wrong[i].result);
            CHECK(strncmp(error.text, wrong[i].text, length) == 0);
        }
        if (wrong[i].build == whole_read || wrong[i].build == whole_twice || wrong[i].build == left_out)
            CHECK(ml_graph_size(NULL, measured_wrong, &i, &size, NULL) == ML_ERROR_ARGUMENT);
    }
}

TEST(results_are_empty_after_errors) {
    int something;
    ml_graph *g = (ml_graph *)(void *)&something;
    size_t size = 1;
    CHECK(ml_graph_size(NULL, NULL, NULL, &size, NULL) == ML_ERROR_ARGUMENT && size == 0);
    CHECK(ml_graph_init(NULL, NULL, 0, &g, NULL) == ML_ERROR_ARGUMENT && !g);
}

/* ---- passes ---- */

static ml_tensor kept; /* what a program keeps from one pass for another, and should not */
static ml_tensor keeping_build(ml_graph *g, void *user) {
    return (void)user, ml_input(g, NULL, 64, 64), kept = ml_tanh(g, of(2, 3));
}

TEST(passes_in_a_wrong_order) {
    ml_graph *g;
    ml_error error;
    const char *earlier = "ml_exp: an operand is the result of an earlier pass";
    REQUIRE(!ml_graph_new(NULL, keeping_build, NULL, &g, &error));
    ml_graph_begin(g, 1); /* kept was only measured: nothing is at its address */
    CHECK(!ml_exp(g, kept).data && ml_graph_end(g, &error) == ML_ERROR_ARGUMENT);
    CHECK(strcmp(error.text, earlier) == 0);
    ml_graph_begin(g, 1);
    keeping_build(g, NULL);
    ml_graph_begin(g, 1); /* and now it is where this pass has nothing yet */
    CHECK(!ml_exp(g, kept).data && ml_graph_end(g, &error) == ML_ERROR_ARGUMENT);
    CHECK(strcmp(error.text, earlier) == 0);
    ml_graph_begin(g, 1);
    ml_tensor loss = ml_sum(g, of(2, 3));
    memset(gradients, 0, sizeof gradients);
    CHECK(g->taping && !ml_graph_backward(g, loss, &error) && !g->taping);
    CHECK(ml_graph_backward(g, loss, &error) == ML_ERROR_ARGUMENT && gradients[0] == 1);
    ml_graph_begin(g, 1);
    CHECK(ml_graph_backward(g, ml_none(), NULL) == ML_ERROR_ARGUMENT);
    ml_graph_free(g);
    ml_graph_begin(NULL, 1);
    CHECK(ml_graph_backward(NULL, loss, &error) == ML_ERROR_ARGUMENT && error.text[0]);
    CHECK(ml_graph_end(NULL, &error) == ML_ERROR_ARGUMENT && error.text[0]);
}

/* A function that begins a pass itself: the larger one counts. */
static ml_tensor two_passes(ml_graph *g, void *user) {
    keeping_build(g, user);
    ml_graph_begin(g, 1);
    return ml_tanh(g, of(2, 3));
}

/* From where a pass outgrew its memory on, values must not be read, and the caller can see it. */
TEST(measuring_is_told) {
    ml_graph *g;
    ml_error error;
    size_t one, two;
    REQUIRE(!ml_graph_size(NULL, keeping_build, NULL, &one, &error));
    CHECK(!ml_graph_size(NULL, two_passes, NULL, &two, &error) && two == one);
    REQUIRE(!ml_graph_new(NULL, keeping_build, NULL, &g, &error));
    ml_graph_begin(g, 1);
    ml_tensor y = ml_tanh(g, of(2, 3));
    CHECK(!g->measuring);
    y = ml_concat(g, &y, 1, ML_ROWS);
    too_large(g);
    CHECK(g->measuring && ml_graph_end(g, &error) == ML_ERROR_MEMORY);
    ml_graph_begin(g, 1);
    CHECK(!g->measuring && !ml_graph_backward(g, ml_sum(g, of(2, 3)), &error));
    ml_graph_free(g);
}

/* ---- memory ---- */

/* Every operation of this file once, with both kinds of loss. */
static ml_tensor long_build(ml_graph *g, void *user) {
    static const int32_t index[6] = {0, 5, 2, 3, 1, 4}, targets[8] = {0, 1, 2, 3, -1, 5, 6, 7};
    ml_loss_desc desc = {targets, 0, .1f, NULL, *(const int *)user};
    ml_tensor x = ml_tanh(g, ml_linear(g, of(8, 8), of(8, 8), of(1, 8)));
    ml_tensor rows = ml_softmax(g, ml_gather(g, of(6, 8), index, 6)), parts[2];
    x = ml_layer_norm(g, ml_replace_rows(g, x, index, rows), ml_none(), of(1, 8), 1e-3f);
    x = ml_swiglu(g, ml_rms_norm(g, x, ml_none(), 1e-3f), ml_transpose(g, ml_reshape(g, x, 8, 8)));
    x = sine(g, ml_dropout(g, x, .2f, 3), ml_log_softmax(g, x), 0);
    parts[0] = ml_slice(g, x, ML_COLS, 0, 3);
    parts[1] = ml_slice(g, x, ML_COLS, 3, 8);
    x = ml_concat(g, parts, 2, ML_COLS);
    x = ml_add(g, x, ml_sum_rows(g, ml_mul(g, x, ml_shift(g, x, 1))));
    if (desc.whole) return ml_linear_cross_entropy(g, x, of(8, 8), of(1, 8), &desc);
    ml_tensor y = ml_linear_cross_entropy(g, x, of(8, 8), of(1, 8), &desc);
    y = ml_add(g, y, ml_cross_entropy(g, x, &desc));
    return ml_add(g, y, ml_add(g, ml_squared_error(g, x, of(8, 8), 0), ml_kl_divergence(g, x, of(8, 8), 0)));
}

/* The measured size is enough wherever the buffer begins, and what is aligned in it needs no more than this: */
#define SLACK (4 * 64)

TEST(measured_size) {
    for (int i = 0; i < 64; i++) numbers[i] = sinf((float)i);
    for (int whole = 0; whole < 2; whole++) {
        size_t size, least = 0;
        ml_error error;
        REQUIRE(!ml_graph_size(NULL, long_build, &whole, &size, &error));
        unsigned char *block = (unsigned char *)allocate(size + 64 + 256, 1);
        for (size_t offset = 0; offset < 64; offset++) { /* and nothing is written behind it */
            ml_graph *g;
            memset(block, 0xab, size + 64 + 256);
            REQUIRE(!ml_graph_init(NULL, block + offset, size, &g, &error));
            ml_graph_begin(g, 1);
            CHECK(!ml_graph_backward(g, long_build(g, &whole), &error));
            CHECK(g->size <= size);
            for (size_t i = 0; i < 256; i++) CHECK(block[offset + size + i] == 0xab);
            for (size_t i = 0; i < offset; i++) CHECK(block[i] == 0xab);
        }
        for (size_t given = size; given > 0;
             given -= given > 64 ? 61 : given) { /* less is told, at any size */
            ml_graph *g;
            ml_result result = ml_graph_init(NULL, block, given, &g, &error);
            if (!result) {
                ml_graph_begin(g, 1);
                result = ml_graph_backward(g, long_build(g, &whole), &error);
            }
            CHECK(result == ML_OK || result == ML_ERROR_MEMORY);
            if (!result) least = given;
        }
        CHECK(least + SLACK >= size);
        free(block);
    }
}

/* One block, by the constructor; nothing later. */
static int allocations;
static void *counted_alloc(size_t size, void *user) { return (void)user, allocations++, malloc(size); }
static void counted_free(void *memory, void *user) { (void)user, allocations--, free(memory); }

TEST(one_allocation) {
    int whole = 0;
    ml_graph *g;
    ml_graph_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = counted_alloc;
    desc.allocator.free = counted_free;
    REQUIRE(!ml_graph_new(&desc, long_build, &whole, &g, NULL));
    for (int pass = 0; pass < 3; pass++) {
        ml_graph_begin(g, pass != 1);
        ml_tensor loss = long_build(g, &whole);
        CHECK(pass == 1 ? !ml_graph_end(g, NULL) : !ml_graph_backward(g, loss, NULL));
        CHECK(allocations == 1);
    }
    ml_graph_free(g);
    CHECK(allocations == 0);
}

/* ---- a custom operation that is not finite leaves the weights as they were ---- */

static int broken; /* 1: the value, 2: the gradient */

static ml_result broken_forward(const ml_custom *op) {
    float *y = (float *)op->output.data;
    for (size_t i = 0; i < op->output.rows * op->output.cols; i++)
        y[i] = broken == 1 ? NAN : ((const float *)op->inputs[0].data)[i];
    return ML_OK;
}
static ml_result broken_backward(const ml_custom *op) {
    for (size_t i = 0; i < op->output.rows * op->output.cols; i++)
        op->inputs[0].grad[i] += broken == 2 ? INFINITY : op->output.grad[i];
    return ML_OK;
}
static ml_tensor broken_build(ml_graph *g, void *user) {
    ml_custom_desc desc = {"broken", broken_forward, broken_backward, NULL, 1, 1, 4, 0, NULL};
    desc.inputs = (const ml_tensor *)user;
    return ml_sum(g, ml_custom_op(g, &desc));
}

TEST(custom_that_is_not_finite) {
    float weights[4] = {1, 2, 3, 4}, before[4];
    ml_tensor w = matrix(weights, 1, 4, NULL);
    ml_parameter parameter = {&w, 0};
    ml_optimizer_desc desc;
    ml_optimizer *optimizer;
    ml_graph *g;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.parameters = &parameter;
    desc.n_parameters = 1;
    desc.adamw.lr = .1f;
    REQUIRE(!ml_optimizer_new(&desc, &optimizer, &error));
    REQUIRE(!ml_graph_new(NULL, broken_build, &w, &g, &error));
    for (broken = 0; broken < 3; broken++) {
        memcpy(before, weights, sizeof weights);
        ml_optimizer_zero_gradients(optimizer);
        ml_graph_begin(g, 1);
        CHECK(ml_graph_backward(g, broken_build(g, &w), &error) == (broken == 1 ? ML_ERROR_NUMBER : ML_OK));
        if (broken == 1) CHECK(w.grad[0] == 0); /* nothing was run backward */
        if (broken != 1) CHECK(ml_optimizer_step(optimizer, &error) == (broken ? ML_ERROR_NUMBER : ML_OK));
        CHECK(!broken == (memcmp(before, weights, sizeof weights) != 0));
        CHECK(optimizer->step == 1);
    }
    ml_graph_free(g);
    ml_optimizer_free(optimizer);
}

/* A pass that needs much scratch, and one that needs none but keeps more. */
static ml_tensor wide_product(ml_graph *g, void *user) {
    (void)user;
    return ml_sum(g, ml_linear(g, ml_input(g, NULL, 64, 256), ml_input(g, NULL, 512, 256), ml_none()));
}

static ml_tensor many_results(ml_graph *g, void *user) {
    ml_tensor x = ml_input(g, NULL, 64, 512);
    for (int i = 0; i < *(int *)user; i++) x = ml_tanh(g, x);
    return ml_sum(g, x);
}

/* Memory for the larger of two passes is enough for either, in any order. */
TEST(scratch_is_free_in_the_next_pass) {
    size_t wide, many = 0;
    int n = 0;
    ml_graph *g = NULL;
    REQUIRE(ml_graph_size(NULL, wide_product, NULL, &wide, NULL) == ML_OK);
    for (; many < wide; n++) REQUIRE(ml_graph_size(NULL, many_results, &n, &many, NULL) == ML_OK);
    n--; /* that of `many` */
    void *memory = malloc(many);
    REQUIRE(memory && ml_graph_init(NULL, memory, many, &g, NULL) == ML_OK);
    for (int i = 0; i < 3; i++) {
        ml_graph_begin(g, 1);
        CHECK(ml_graph_backward(g, wide_product(g, NULL), NULL) == ML_OK);
        ml_graph_begin(g, 1);
        CHECK(ml_graph_backward(g, many_results(g, &n), NULL) == ML_OK);
    }
    ml_graph_begin(g, 0);
    CHECK(g->size <= many);
    free(memory);
}

int main(void) {
    RUN(add_sub_mul_div);
    RUN(scale_shift_and_sums);
    RUN(functions);
    RUN(functions_by_pytorch);
    RUN(functions_at_the_ends);
    RUN(largest_of_what_is_no_number);
    RUN(norms_of_what_is_too_large);
    RUN(dropout);
    RUN(dropout_off_and_seeds);
    RUN(cross_entropy);
    RUN(cross_entropy_whole);
    RUN(softmaxes);
    RUN(norms);
    RUN(swiglu);
    RUN(rows_by_index);
    RUN(quantized_operands);
    RUN(shapes);
    RUN(squared_error_and_kl);
    RUN(squared_error_of_near_numbers);
    RUN(kl_at_the_ends);
    RUN(custom);
    RUN(custom_errors);
    RUN(values_read_by_several);
    RUN(values_that_are_not_used);
    RUN(norms_of_overlapping_weights);
    RUN(compositions);
    RUN(mixout);
    RUN(errors);
    RUN(errors_while_measuring);
    RUN(results_are_empty_after_errors);
    RUN(passes_in_a_wrong_order);
    RUN(measuring_is_told);
    RUN(measured_size);
    RUN(one_allocation);
    RUN(custom_that_is_not_finite);
    RUN(scratch_is_free_in_the_next_pass);
    return test_report("test_operations");
}
