/* The operations of a caller's graph, by the public interface: values against the formula written plainly in doubles
   or PyTorch's numbers, gradients against central differences of the plain formula.

   With a random dy, L(x) = sum(dy * op(x)). In doubles with h = 1e-5 the truncation error, of h^2, and the rounding
   error, of 1e-16 / h, both stay near 1e-10: what remains is the error of the library's float gradients alone, about
   1e-7 for each rounding, a few times more in long sums. Numbers are compared relative to the largest of their tensor:
   TOLERANCE of that. */
#include "preamble.h"

#define TOLERANCE 1e-5
#define STEP 1e-5

static double larger(double a, double b) { return a > b ? a : b; }

static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    if (!memory) exit(2);
    return memory;
}

/* ---- a problem: what goes in, the operation, and the gradients that come out ---- */

typedef struct variable {
    size_t rows, cols, n;
    float *given;  /* what the library computes with ... */
    double *exact; /* ... and the plain formula: the same numbers, until a difference is taken */
    float *grad;
    int frozen; /* it has no gradient */
} variable;

enum { MAX_VARIABLES = 4, MAX_INDEX = 700 };

typedef struct problem {
    ml_tensor (*build)(ml_graph *g, const ml_tensor *v, struct problem *p);
    void (*plain)(const struct problem *p, double *y);
    variable v[MAX_VARIABLES];
    int n_variables;
    int as_inputs; /* the variables are inputs of the graph, not parameters */
    size_t rows, cols;
    float *dy;
    int is_loss; /* it is the whole graph, and dy is 1 */
    float *y;    /* out */
    ml_random random;

    /* what single operations need in addition */
    int32_t index[MAX_INDEX];
    float *log_probs;
    ml_loss_desc loss;
    int which;
    float number;
} problem;

static variable *add(problem *p, size_t rows, size_t cols, double mean, double sd) {
    variable *v = &p->v[p->n_variables++];
    v->rows = rows;
    v->cols = cols;
    v->n = rows * cols;
    v->given = (float *)allocate(v->n, sizeof *v->given);
    v->exact = (double *)allocate(v->n, sizeof *v->exact);
    v->grad = (float *)allocate(v->n, sizeof *v->grad);
    for (size_t i = 0; i < v->n; i++) {
        v->given[i] = (float)(mean + sd * (double)ml_random_normal(&p->random));
        v->exact[i] = (double)v->given[i];
    }
    return v;
}

static void begin_problem(problem *p, ml_tensor (*build)(ml_graph *, const ml_tensor *, problem *),
                          void (*plain)(const problem *, double *)) {
    memset(p, 0, sizeof *p);
    ml_random_seed(&p->random, 7);
    p->build = build;
    p->plain = plain;
}

static void set_output(problem *p, size_t rows, size_t cols) {
    p->rows = rows;
    p->cols = cols;
    p->y = (float *)allocate(rows * cols, sizeof *p->y);
    p->dy = (float *)allocate(rows * cols, sizeof *p->dy);
    for (size_t i = 0; i < rows * cols; i++) p->dy[i] = p->is_loss ? 1 : ml_random_normal(&p->random);
}

static void end_problem(problem *p) {
    for (int j = 0; j < p->n_variables; j++) free(p->v[j].given), free(p->v[j].exact), free(p->v[j].grad);
    free(p->y);
    free(p->dy);
    free(p->log_probs);
}

static ml_tensor matrix(const float *data, size_t rows, size_t cols, float *grad) {
    ml_tensor t = {ML_F32, rows, cols, (void *)(uintptr_t)data, grad};
    return t;
}

/* The result, or the sum of dy times the result; the result itself and the inputs are kept in `passed`. */
static struct { ml_tensor y, v[MAX_VARIABLES]; } passed;

static ml_tensor build_problem(ml_graph *g, void *user) {
    problem *p = (problem *)user;
    for (int j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        passed.v[j] = p->as_inputs && !v->frozen
                          ? ml_input(g, v->given, v->rows, v->cols)
                          : matrix(v->given, v->rows, v->cols, v->frozen ? NULL : v->grad);
    }
    passed.y = p->build(g, passed.v, p);
    return p->is_loss ? passed.y : ml_sum(g, ml_mul(g, passed.y, matrix(p->dy, p->rows, p->cols, NULL)));
}

static void tasks_backwards(void *user, int n_tasks, ml_task task, void *arg) {
    if (n_tasks > 1) ++*(int *)user;
    while (n_tasks-- > 0) task(arg, n_tasks);
}

static int parallel_operations; /* of the last pass with several threads */

/* One pass forward and backward; fills in the result and the gradients, which start at 0. */
static void run_pass(problem *p, int n_threads, int separate) {
    ml_graph_desc desc;
    ml_graph *g;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.separate = separate;
    desc.threads.count = n_threads;
    desc.threads.parallel_for = tasks_backwards;
    desc.threads.user = &parallel_operations;
    parallel_operations = 0;
    for (int j = 0; j < p->n_variables; j++) memset(p->v[j].grad, 0, p->v[j].n * sizeof(float));
    if (ml_graph_new(&desc, build_problem, p, &g, &error)) {
        printf("%s\n", error.text);
        CHECK(0);
        return;
    }
    ml_graph_begin(g, 1);
    ml_tensor loss = build_problem(g, p);
    if (ml_graph_backward(g, loss, &error)) {
        printf("%s\n", error.text);
        CHECK(0);
    } else {
        CHECK(passed.y.rows == p->rows && passed.y.cols == p->cols);
        memcpy(p->y, passed.y.data, p->rows * p->cols * sizeof *p->y);
        for (int j = 0; j < p->n_variables; j++)
            if (p->as_inputs && !p->v[j].frozen)
                memcpy(p->v[j].grad, passed.v[j].grad, p->v[j].n * sizeof(float));
    }
    ml_graph_free(g);
}

static double plain_loss(const problem *p, double *y) {
    double sum = 0;
    p->plain(p, y);
    for (size_t i = 0; i < p->rows * p->cols; i++) sum += y[i] * (double)p->dy[i];
    return sum;
}

static void check_values(problem *p) {
    double *y = (double *)allocate(p->rows * p->cols, sizeof *y), largest = 0;
    p->plain(p, y);
    for (size_t i = 0; i < p->rows * p->cols; i++) largest = larger(largest, fabs(y[i]));
    for (size_t i = 0; i < p->rows * p->cols; i++) CHECK_NEAR(p->y[i], y[i], TOLERANCE * largest, 0);
    free(y);
}

/* At most `most` numbers of each variable. */
static void check_gradients(problem *p, size_t most) {
    double *y = (double *)allocate(p->rows * p->cols, sizeof *y);
    for (int j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        double largest = 1e-30;
        size_t stride = v->n / most + 1;
        for (size_t i = 0; i < v->n; i++) largest = larger(largest, fabs((double)v->grad[i]));
        for (size_t i = 0; i < v->n && !v->frozen; i += stride) {
            double was = v->exact[i], up, down;
            v->exact[i] = was + STEP, up = plain_loss(p, y);
            v->exact[i] = was - STEP, down = plain_loss(p, y);
            v->exact[i] = was;
            CHECK_NEAR(v->grad[i], (up - down) / (2 * STEP), TOLERANCE * larger(largest, 1e-3), 0);
        }
    }
    free(y);
}

/* Values and gradients; then with three threads, separate memory and inputs for parameters: the same bits. */
static void check_problem(problem *p, size_t most) {
    float *first[MAX_VARIABLES + 1];
    run_pass(p, 1, 0);
    check_values(p);
    check_gradients(p, most);
    first[MAX_VARIABLES] = (float *)allocate(p->rows * p->cols, sizeof(float));
    memcpy(first[MAX_VARIABLES], p->y, p->rows * p->cols * sizeof(float));
    for (int j = 0; j < p->n_variables; j++) {
        first[j] = (float *)allocate(p->v[j].n, sizeof(float));
        memcpy(first[j], p->v[j].grad, p->v[j].n * sizeof(float));
    }
    for (int way = 1; way < 4; way++) {
        p->as_inputs = way == 3;
        run_pass(p, way == 1 ? 3 : 1, way == 2);
        if (way == 1 && p->v[0].n > 40000) CHECK(parallel_operations >= 2);
        CHECK(memcmp(first[MAX_VARIABLES], p->y, p->rows * p->cols * sizeof(float)) == 0);
        for (int j = 0; j < p->n_variables; j++)
            CHECK(memcmp(first[j], p->v[j].grad, p->v[j].n * sizeof(float)) == 0);
    }
    p->as_inputs = 0;
    for (int j = 0; j < p->n_variables; j++) free(first[j]);
    free(first[MAX_VARIABLES]);
}

/* With one variable frozen after the other, the gradients of the rest stay the same. */
static void check_frozen(problem *p) {
    float *first[MAX_VARIABLES];
    for (int j = 0; j < p->n_variables; j++) {
        first[j] = (float *)allocate(p->v[j].n, sizeof(float));
        memcpy(first[j], p->v[j].grad, p->v[j].n * sizeof(float));
    }
    for (int frozen = 0; frozen < p->n_variables; frozen++) {
        p->v[frozen].frozen = 1;
        run_pass(p, 1, 0);
        for (int j = 0; j < p->n_variables; j++)
            if (j != frozen) CHECK(memcmp(first[j], p->v[j].grad, p->v[j].n * sizeof(float)) == 0);
        p->v[frozen].frozen = 0;
    }
    for (int j = 0; j < p->n_variables; j++) free(first[j]);
}

/* ---- arithmetic ---- */

enum { ADD, SUB, MUL };

static ml_tensor pair_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return p->which == ADD   ? ml_add(g, v[0], v[1])
           : p->which == SUB ? ml_sub(g, v[0], v[1])
                             : ml_mul(g, v[0], v[1]);
}

static void pair_plain(const problem *p, double *y) {
    const variable *a = &p->v[0], *b = &p->v[1];
    for (size_t i = 0; i < a->rows; i++)
        for (size_t j = 0; j < a->cols; j++) {
            double x = a->exact[i * a->cols + j];
            double z = b->exact[(b->rows > 1 ? i : 0) * b->cols + (b->cols > 1 ? j : 0)];
            y[i * a->cols + j] = p->which == ADD ? x + z : p->which == SUB ? x - z : x * z;
        }
}

TEST(add_sub_mul) {
    static const size_t shapes[5][2] = {{1, 1}, {1, 7}, {6, 1}, {5, 33}, {301, 147}};
    for (int s = 0; s < 5; s++)
        for (int repeated = 0; repeated < 4; repeated++)
            for (int which = ADD; which <= MUL; which++) {
                size_t n = shapes[s][0], c = shapes[s][1];
                problem p;
                begin_problem(&p, pair_build, pair_plain);
                p.which = which;
                add(&p, n, c, .5, 1);
                add(&p, repeated & 1 ? 1 : n, repeated & 2 ? 1 : c, -.5, 1);
                set_output(&p, n, c);
                check_problem(&p, s == 4 ? 15 : 100);
                if (s == 3) check_frozen(&p);
                end_problem(&p);
            }
}

enum { SCALE, SHIFT, SUM, MEAN, SUM_ROWS };

static ml_tensor total_build(ml_graph *g, const ml_tensor *v, problem *p) {
    switch (p->which) {
    case SCALE: return ml_scale(g, v[0], p->number);
    case SHIFT: return ml_shift(g, v[0], p->number);
    case SUM: return ml_sum(g, v[0]);
    case MEAN: return ml_mean(g, v[0]);
    default: return ml_sum_rows(g, v[0]);
    }
}

static void total_plain(const problem *p, double *y) {
    const variable *x = &p->v[0];
    for (size_t i = 0; i < p->rows * p->cols; i++) y[i] = 0;
    for (size_t i = 0; i < x->n; i++) {
        if (p->which == SCALE) y[i] = x->exact[i] * (double)p->number;
        if (p->which == SHIFT) y[i] = x->exact[i] + (double)p->number;
        if (p->which == SUM) y[0] += x->exact[i];
        if (p->which == MEAN) y[0] += x->exact[i] / (double)x->n;
        if (p->which == SUM_ROWS) y[i / x->cols] += x->exact[i];
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
                p.which = which;
                p.number = numbers[k];
                add(&p, n, c, .5, 1);
                set_output(&p, which == SUM || which == MEAN ? 1 : n, which >= SUM ? 1 : c);
                check_problem(&p, s == 3 ? 15 : 100);
                end_problem(&p);
            }
}

/* ---- functions of single numbers ---- */

enum { RELU, GELU, SILU, TANH, SIGMOID, EXP, LOG, FUNCTIONS };

static ml_tensor apply(ml_graph *g, int which, ml_tensor x) {
    static ml_tensor (*const functions[FUNCTIONS])(ml_graph *, ml_tensor) = {
        ml_relu, ml_gelu, ml_silu, ml_tanh, ml_sigmoid, ml_exp, ml_log};
    return functions[which](g, x);
}
static ml_tensor function_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return apply(g, p->which, v[0]);
}

static double plain_function(int which, double x) {
    switch (which) {
    case RELU: return x > 0 ? x : 0;
    case GELU: return x * erfc(-x / sqrt(2.0)) / 2;
    case SILU: return x / (1 + exp(-x));
    case TANH: return tanh(x);
    case SIGMOID: return 1 / (1 + exp(-x));
    case EXP: return exp(x);
    default: return log(x);
    }
}

static void function_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++) y[i] = plain_function(p->which, p->v[0].exact[i]);
}

TEST(functions) {
    static const size_t shapes[3][2] = {{1, 1}, {5, 33}, {301, 147}};
    for (int s = 0; s < 3; s++)
        for (int which = 0; which < FUNCTIONS; which++) {
            problem p;
            begin_problem(&p, function_build, function_plain);
            p.which = which;
            variable *x = add(&p, shapes[s][0], shapes[s][1], 0, 1.5);
            for (size_t i = 0; which == LOG && i < x->n; i++)
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
};

TEST(functions_by_pytorch) {
    for (int which = 0; which < FUNCTIONS; which++) {
        problem p;
        begin_problem(&p, function_build, function_plain);
        p.which = which;
        variable *x = add(&p, 1, 6, 0, 1);
        memcpy(x->given, torch_x[which == LOG], sizeof torch_x[0]);
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
        p.which = which;
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

static ml_tensor dropout_build(ml_graph *g, const ml_tensor *v, problem *p) {
    return ml_dropout(g, v[0], p->number, 42);
}
/* with the same numbers dropped */
static void dropout_plain(const problem *p, double *y) {
    for (size_t i = 0; i < p->v[0].n; i++)
        y[i] = p->y[i] == 0 ? 0 : p->v[0].exact[i] / (1 - (double)p->number);
}

TEST(dropout) {
    static const float ps[3] = {0, .3f, .9f};
    for (int s = 0; s < 3; s++) {
        problem p;
        begin_problem(&p, dropout_build, dropout_plain);
        p.number = ps[s];
        add(&p, 301, 147, 0, 1);
        set_output(&p, 301, 147);
        check_problem(&p, 40);
        double dropped = 0, n = (double)p.v[0].n, mean = (double)p.number;
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
    p.number = .5f;
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
    ml_tensor y = p->n_variables > 1 ? ml_linear_cross_entropy(g, v[0], v[1], b, &p->loss)
                                     : ml_cross_entropy(g, v[0], &p->loss);
    return p->loss.whole ? y : ml_scale(g, y, p->number);
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
    double *logits = plain_logits(p, &C), s = (double)p->loss.smoothing, sum = 0;
    for (size_t i = 0; i < p->v[0].rows; i++) {
        double *row = logits + i * C, log_sum = plain_log_sum(row, C);
        if (p->index[i] < 0) continue;
        counted++;
        for (size_t c = 0; c < C; c++)
            sum += ((1 - s) * ((int32_t)c == p->index[i]) + s / (double)C) * (log_sum - row[c]);
    }
    y[0] = sum / (p->loss.divisor > 0 ? (double)p->loss.divisor : (double)counted) *
           (p->loss.whole ? 1 : (double)p->number);
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
        p->index[i] = (int32_t)(ml_random_u64(&p->random) % (uint64_t)n_classes);
        if (n > 1 && i % 5 == 2) p->index[i] = -1;
    }
    p->loss.targets = p->index;
    p->number = 1;
    p->is_loss = 1;
    p->log_probs = (float *)allocate(n * n_classes, sizeof(float));
    set_output(p, 1, 1);
}

static const size_t entropy_shapes[5][3] = {{1, 0, 2}, {9, 17, 37}, {300, 0, 130}, {5, 3, 2}, {531, 13, 101}};

TEST(cross_entropy) {
    for (int s = 0; s < 5; s++)
        for (int way = 0; way < 8; way++) {
            problem p;
            begin_entropy(&p, entropy_shapes[s], way & 1);
            p.loss.divisor = way & 1 ? 7.5f : 0;
            p.loss.smoothing = way & 2 ? .1f : 0;
            p.number = way & 4 ? -.3f : 1;
            p.loss.log_probs = way & 2 ? p.log_probs : NULL;
            check_problem(&p, s == 4 ? 10 : 60);
            if (s == 1) check_frozen(&p);
            size_t C;
            double *logits = plain_logits(&p, &C);
            for (size_t i = 0; p.loss.log_probs && i < p.v[0].rows * C; i++)
                CHECK_NEAR(p.log_probs[i], logits[i] - plain_log_sum(logits + i / C * C, C), 1e-5, 0);
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
            p.loss.smoothing = smoothed ? .2f : 0;
            run_pass(&p, 1, 0);
            for (int j = 0; j < p.n_variables; j++) {
                grad[j] = (float *)allocate(p.v[j].n, sizeof(float));
                memcpy(grad[j], p.v[j].grad, p.v[j].n * sizeof(float));
            }
            p.loss.whole = 1;
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

int main(void) {
    RUN(add_sub_mul);
    RUN(scale_shift_and_sums);
    RUN(functions);
    RUN(functions_by_pytorch);
    RUN(functions_at_the_ends);
    RUN(dropout);
    RUN(dropout_off_and_seeds);
    RUN(cross_entropy);
    RUN(cross_entropy_whole);
    return test_report("test_operations");
}
