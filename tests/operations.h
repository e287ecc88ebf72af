/* What the tests of operations share: an operation of the public interface beside its formula, written plainly in
   doubles; values are compared with the formula, gradients with its central differences.

   With a random dy, L(x) = sum(dy * op(x)). In doubles with h = 1e-5 the truncation error, of h^2, and the rounding
   error, of 1e-16 / h, both stay near 1e-10: what remains is the error of the library's floats alone, about 1e-7 for
   each rounding, a few times more in long sums. Numbers are compared relative to the largest of their tensor:
   TOLERANCE of that.

   A test defines `struct details`, what its operations need besides their variables, before it includes this. */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "preamble.h"

#define TOLERANCE 1e-5
#define STEP 1e-5

static inline double larger(double a, double b) { return a > b ? a : b; }

static inline void *allocate(size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    if (!memory) exit(2);
    return memory;
}

static inline float *copy_of(const float *x, size_t n) {
    return (float *)memcpy(allocate(n, sizeof *x), x, n * sizeof *x);
}

static inline ml_tensor matrix(const float *data, size_t rows, size_t cols, float *grad) {
    ml_tensor t = {ML_F32, rows, cols, (void *)(uintptr_t)data, grad};
    return t;
}

/* ---- a problem: what goes in, the operation, and the gradients that come out ---- */

typedef struct variable {
    size_t rows, cols, n;
    float *given;  /* what the library computes with ... */
    double *exact; /* ... and the plain formula: the same numbers, until a difference is taken */
    float *grad;
    int frozen; /* it has no gradient */
} variable;

enum { MAX_VARIABLES = 5 };

typedef struct problem {
    ml_tensor (*build)(ml_graph *g, const ml_tensor *v, struct problem *p);
    void (*plain)(const struct problem *p, double *y);
    variable v[MAX_VARIABLES];
    int n_variables;
    int as_inputs; /* the variables are inputs of the graph, not parameters */
    size_t rows, cols;
    float *dy;
    int is_loss; /* it is the whole graph, and dy is 1 */
    float *y;    /* of the last pass */
    ml_random random;
    struct details own;
    float *extra; /* of the test; is freed with the rest */
} problem;

static inline variable *add(problem *p, size_t rows, size_t cols, double mean, double sd) {
    variable *v = &p->v[p->n_variables++];
    v->rows = rows, v->cols = cols, v->n = rows * cols;
    v->given = (float *)allocate(v->n, sizeof *v->given);
    v->exact = (double *)allocate(v->n, sizeof *v->exact);
    v->grad = (float *)allocate(v->n, sizeof *v->grad);
    for (size_t i = 0; i < v->n; i++) {
        v->given[i] = (float)(mean + sd * (double)ml_random_normal(&p->random));
        v->exact[i] = (double)v->given[i];
    }
    return v;
}

static inline void begin_problem(problem *p, ml_tensor (*build)(ml_graph *, const ml_tensor *, problem *),
                                 void (*plain)(const problem *, double *)) {
    memset(p, 0, sizeof *p);
    ml_random_seed(&p->random, 7);
    p->build = build;
    p->plain = plain;
}

static inline void set_output(problem *p, size_t rows, size_t cols) {
    p->rows = rows, p->cols = cols;
    p->y = (float *)allocate(rows * cols, sizeof *p->y);
    p->dy = (float *)allocate(rows * cols, sizeof *p->dy);
    for (size_t i = 0; i < rows * cols; i++) p->dy[i] = p->is_loss ? 1 : ml_random_normal(&p->random);
}

static inline void end_problem(problem *p) {
    for (int j = 0; j < p->n_variables; j++) free(p->v[j].given), free(p->v[j].exact), free(p->v[j].grad);
    free(p->y), free(p->dy), free(p->extra);
}

/* ---- a pass ---- */

/* The operation's result and its variables, of the pass that was built last. */
static struct { ml_tensor y, v[MAX_VARIABLES]; } passed;

/* The loss: the result itself, or the sum of dy times the result. */
static inline ml_tensor build_problem(ml_graph *g, void *user) {
    problem *p = (problem *)user;
    for (int j = 0; j < MAX_VARIABLES; j++) passed.v[j] = ml_none();
    for (int j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        passed.v[j] = p->as_inputs && !v->frozen
                          ? ml_input(g, v->given, v->rows, v->cols)
                          : matrix(v->given, v->rows, v->cols, v->frozen ? NULL : v->grad);
    }
    passed.y = p->build(g, passed.v, p);
    return p->is_loss ? passed.y : ml_sum(g, ml_mul(g, passed.y, matrix(p->dy, p->rows, p->cols, NULL)));
}

static inline void tasks_backwards(void *user, int n_tasks, ml_task task, void *arg) {
    if (n_tasks > 1) ++*(int *)user;
    while (n_tasks-- > 0) task(arg, n_tasks);
}

static int parallel_operations; /* of the last pass with several threads */

/* One pass forward and backward: the result, and gradients that are added to what is there. */
static inline void add_pass(problem *p, int n_threads, int separate) {
    ml_graph_desc desc;
    ml_graph *g;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.separate = separate;
    desc.threads.count = n_threads;
    desc.threads.parallel_for = tasks_backwards;
    desc.threads.user = &parallel_operations;
    parallel_operations = 0;
    if (ml_graph_new(&desc, build_problem, p, &g, &error)) {
        printf("%s\n", error.text);
        CHECK(error.code == ML_OK);
        return;
    }
    ml_graph_begin(g, 1);
    ml_tensor loss = build_problem(g, p);
    if (ml_graph_backward(g, loss, &error)) {
        printf("%s\n", error.text);
        CHECK(error.code == ML_OK);
    } else {
        CHECK(passed.y.rows == p->rows && passed.y.cols == p->cols);
        memcpy(p->y, passed.y.data, p->rows * p->cols * sizeof *p->y);
        for (int j = 0; j < p->n_variables; j++)
            if (p->as_inputs && !p->v[j].frozen)
                memcpy(p->v[j].grad, passed.v[j].grad, p->v[j].n * sizeof(float));
    }
    ml_graph_free(g);
}

/* The same with gradients that start at 0. */
static inline void run_pass(problem *p, int n_threads, int separate) {
    for (int j = 0; j < p->n_variables; j++) memset(p->v[j].grad, 0, p->v[j].n * sizeof(float));
    add_pass(p, n_threads, separate);
}

/* ---- comparisons ---- */

static inline double plain_loss(const problem *p, double *y) {
    double sum = 0;
    p->plain(p, y);
    for (size_t i = 0; i < p->rows * p->cols; i++) sum += y[i] * (double)p->dy[i];
    return sum;
}

static inline void check_values(problem *p) {
    double *y = (double *)allocate(p->rows * p->cols, sizeof *y), largest = 0;
    p->plain(p, y);
    for (size_t i = 0; i < p->rows * p->cols; i++) largest = larger(largest, fabs(y[i]));
    for (size_t i = 0; i < p->rows * p->cols; i++) CHECK_NEAR(p->y[i], y[i], TOLERANCE * largest, 0);
    free(y);
}

/* At most `most` numbers of each variable; one that is hidden, -infinity, has no difference, and must have gradient
   0. */
static inline void check_gradients(problem *p, size_t most) {
    double *y = (double *)allocate(p->rows * p->cols, sizeof *y);
    for (int j = 0; j < p->n_variables; j++) {
        variable *v = &p->v[j];
        double largest = 1e-3;
        for (size_t i = 0; i < v->n; i++) largest = larger(largest, fabs((double)v->grad[i]));
        for (size_t i = 0; i < v->n && !v->frozen; i += v->n / most + 1) {
            double was = v->exact[i], up, down;
            if (was < -1e30) {
                CHECK(v->grad[i] == 0);
                continue;
            }
            v->exact[i] = was + STEP, up = plain_loss(p, y);
            v->exact[i] = was - STEP, down = plain_loss(p, y);
            v->exact[i] = was;
            CHECK_NEAR(v->grad[i], (up - down) / (2 * STEP), TOLERANCE * largest, 0);
        }
    }
    free(y);
}

/* The numbers of a pass, to be compared with those of another. */
typedef struct pass_numbers {
    float *y, *grad[MAX_VARIABLES];
} pass_numbers;

static inline pass_numbers numbers_of(const problem *p) {
    pass_numbers numbers;
    memset(&numbers, 0, sizeof numbers);
    numbers.y = copy_of(p->y, p->rows * p->cols);
    for (int j = 0; j < p->n_variables; j++) numbers.grad[j] = copy_of(p->v[j].grad, p->v[j].n);
    return numbers;
}

static inline void free_numbers(pass_numbers *numbers) {
    free(numbers->y);
    for (int j = 0; j < MAX_VARIABLES; j++) free(numbers->grad[j]);
}

static inline void check_same_bits(const problem *p, const pass_numbers *numbers) {
    CHECK(memcmp(numbers->y, p->y, p->rows * p->cols * sizeof *p->y) == 0);
    for (int j = 0; j < p->n_variables; j++)
        if (!p->v[j].frozen) CHECK(memcmp(numbers->grad[j], p->v[j].grad, p->v[j].n * sizeof(float)) == 0);
}

/* Values and gradients; a second pass adds to the gradients as much again; then with three threads, separate memory
   and inputs for parameters: the same bits. */
static inline void check_problem(problem *p, size_t most) {
    run_pass(p, 1, 0);
    check_values(p);
    check_gradients(p, most);
    pass_numbers first = numbers_of(p);
    add_pass(p, 1, 0);
    for (int j = 0; j < p->n_variables; j++)
        for (size_t i = 0; i < p->v[j].n && !p->v[j].frozen; i++) {
            double once = (double)first.grad[j][i];
            CHECK_NEAR(p->v[j].grad[i], 2 * once, TOLERANCE * larger(1, fabs(once)), 0);
        }
    for (int way = 1; way < 4; way++) {
        p->as_inputs = way == 3;
        run_pass(p, way == 1 ? 3 : 1, way == 2);
        if (way == 1 && p->v[0].n > 40000) CHECK(parallel_operations >= 2);
        check_same_bits(p, &first);
    }
    p->as_inputs = 0;
    free_numbers(&first);
}

/* With one variable frozen after the other, the gradients of the rest stay the same. */
static inline void check_frozen(problem *p) {
    run_pass(p, 1, 0);
    pass_numbers first = numbers_of(p);
    for (int frozen = 0; frozen < p->n_variables; frozen++) {
        p->v[frozen].frozen = 1;
        run_pass(p, 1, 0);
        check_same_bits(p, &first);
        p->v[frozen].frozen = 0;
    }
    free_numbers(&first);
}

#endif
