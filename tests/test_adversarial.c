/* examples/advanced/adversarial.c: where the noise goes, and the loss. */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#define main adversarial_main
#include "../examples/advanced/adversarial.c"
#undef main

/* Noise that is large enough to be told from the rounding of F32. */
static adversarial with_method(const char *name) {
    adversarial a;
    memset(&a, 0, sizeof a);
    a.method = name, a.lambda = 0.6f, a.noise = 0.05f, a.step = strcmp(name, "smart") == 0 ? 0.1f : NAN;
    return a;
}

static int open_adversarial(tuning *t, adversarial *a, const tuning_settings *set, tuning_batch *batch) {
    static const int index[3] = {0, 1, 2};
    tuning_method method = method_of(a);
    if (!tuning_open(t, set, &method) || !new_optimizer(t)) return 0;
    set_rows(t);
    tuning_step rows = {&t->train, index, 3};
    return tuning_fill(t, batch, &rows, 1) == 3;
}

static void close_adversarial(tuning *t, adversarial *a) {
    tuning_close(t);
    adversarial_free(a);
}

enum { N = 15 * 16 }; /* numbers of noise: tokens times dimension */

/* Logits without dropout, with the noise a->delta or without; and with dropout, as in a training pass. */
static ml_tensor clean_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    return tuning_logits(t, g, batch);
}
static ml_tensor noisy_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    adversarial *a = adversarial_of(t);
    a->moved = ml_input(g, a->delta, 15, 16);
    a->is_noisy = 1;
    ml_tensor y = tuning_logits(t, g, batch);
    a->is_noisy = 0;
    return y;
}

static float dropped[9];
static ml_tensor dropped_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_tensor y = tuning_logits(t, g, batch);
    if (!g->measuring) memcpy(dropped, y.data, sizeof dropped);
    return ml_sum(g, y);
}

/* The divergence, in doubles from F32 logits, between classes with noise and without: a mean over three rows. */
static double divergence(tuning *t, const tuning_batch *batch) {
    float clean[9], noisy[9];
    CHECK(tuning_compute(t, batch, clean_logits, clean));
    CHECK(tuning_compute(t, batch, noisy_logits, noisy));
    return plain_divergence(noisy, clean);
}

/* The gradient of the noise is that of differences, along two directions; the divergence there is a sum over the
   rows. F32 logits of about 1 are right to 1e-7, which the step of 1e-2 makes 1e-5 of derivatives of about 0.1. */
TEST(the_gradient_of_the_noise_is_right) {
    adversarial a = with_method("smart");
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    float delta[N];
    double gradient[N], h = 1e-2;
    a.noise = 0.3f;
    REQUIRE(open_adversarial(&t, &a, &set, &batch) && draw_noise(&t, &batch));
    CHECK(batch.rows.n_tokens == 15);
    memcpy(delta, a.delta, sizeof delta);
    REQUIRE(find_noise(&t, &batch));
    for (int i = 0; i < N; i++) gradient[i] = (double)a.moved.grad[i];
    for (int turn = 0; turn < 2; turn++) {
        double slope = 0, length = 0, difference = 0;
        for (int i = 0; i < N; i++) slope += gradient[i] * cos(turn + i), length += gradient[i] * gradient[i];
        for (int k = 0; k < 4; k++) { /* of the fourth order */
            static const int steps[4] = {1, -1, 2, -2}, factors[4] = {8, -8, -1, 1};
            for (int i = 0; i < N; i++) a.delta[i] = (float)((double)delta[i] + steps[k] * h * cos(turn + i));
            difference += factors[k] * 3 * divergence(&t, &batch) / (12 * h);
        }
        CHECK(length > 0);
        CHECK_NEAR(slope, difference, 1e-3 * sqrt(length), 0);
    }
    close_adversarial(&t, &a);
}

/* Each token's noise moves by the step, in the direction of its gradient: the largest number by just the step. Then
   the classes differ more; the parameters and their gradients are as before. */
TEST(smart_moves_the_noise_uphill) {
    adversarial a = with_method("smart");
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    float drawn[N];
    set.dropout = 0.4f; /* has no part in it */
    REQUIRE(open_adversarial(&t, &a, &set, &batch));
    size_t n = (size_t)tuning_count(&t);
    float *w = (float *)malloc(2 * n * sizeof *w);
    tuning_copy(&t, w);
    for (int i = 0; i < t.n_parameters; i++)
        for (size_t j = 0; j < t.parameters[i]->tensor->rows * t.parameters[i]->tensor->cols; j++)
            t.parameters[i]->tensor->grad[j] = 1.5f;
    REQUIRE(draw_noise(&t, &batch));
    memcpy(drawn, a.delta, sizeof drawn);
    double before = divergence(&t, &batch);
    REQUIRE(find_noise(&t, &batch));
    for (int i = 0; i < N; i += 16) {
        double largest = 0;
        for (int j = i; j < i + 16; j++) largest = fmax(largest, fabs((double)a.moved.grad[j]));
        CHECK(largest > 0);
        for (int j = i; j < i + 16; j++)
            CHECK_NEAR(a.delta[j], (double)drawn[j] + 0.1 * (double)a.moved.grad[j] / largest, 1e-6, 0);
    }
    CHECK(divergence(&t, &batch) > 1.5 * before);
    tuning_copy(&t, w + n);
    CHECK(memcmp(w, w + n, n * sizeof *w) == 0);
    for (int i = 0; i < t.n_parameters; i++)
        for (size_t j = 0; j < t.parameters[i]->tensor->rows * t.parameters[i]->tensor->cols; j++)
            CHECK(t.parameters[i]->tensor->grad[j] == 1.5f);
    free(w);
    close_adversarial(&t, &a);
}

/* Cross-entropy, with dropout if there is any, + lambda times the divergence without, in doubles from the logits. */
TEST(the_loss_is_its_formula) {
    static const char *const names[] = {"smart", "r3f"};
    for (int i = 0; i < 4; i++) {
        adversarial a = with_method(names[i % 2]);
        tuning_settings set = settings();
        tuning_batch batch;
        tuning t;
        float loss;
        set.dropout = i < 2 ? 0.4f : 0;
        REQUIRE(open_adversarial(&t, &a, &set, &batch));
        REQUIRE(t.method.backward(&t, &batch, &loss));
        CHECK(t.set.dropout == set.dropout);
        double apart_now = divergence(&t, &batch); /* a.delta is what the loss had */
        t.pass--;                                  /* the same dropout again */
        REQUIRE(tuning_backward_of(&t, &batch, dropped_logits, NULL));
        CHECK(apart_now > 1e-3);
        CHECK_NEAR(loss, plain_cross_entropy(&t, dropped) + (double)a.lambda * apart_now, 0, 2e-5);
        close_adversarial(&t, &a);
    }
}

/* r3f's noise is as it was drawn: 240 numbers with a mean square of noise^2, within five standard deviations. */
TEST(r3f_leaves_the_noise) {
    adversarial a = with_method("r3f");
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    double square = 0;
    REQUIRE(open_adversarial(&t, &a, &set, &batch));
    REQUIRE(t.method.backward(&t, &batch, NULL));
    for (int i = 0; i < N; i++) square += (double)a.delta[i] * (double)a.delta[i] / N;
    CHECK_NEAR(square, 0.05 * 0.05, 0.05 * 0.05 * 5 * sqrt(2.0 / N), 0);
    close_adversarial(&t, &a);
}

/* ---- whole runs ---- */

TEST(wrong_flags_are_refused) {
    static const wrong_flags wrong[] = {
        {"--method fgsm", "--method is smart or r3f, not fgsm"},
        {"--method r3f --step 1", "--step is for smart: r3f does not move its noise"},
        {"--step=-1", "--noise and --step are positive"},
        {"--lambda=-1", "--lambda is not negative, --noise and --step are positive"},
        {"--noise 0", "--noise and --step are positive"},
        {"--step 0", "--noise and --step are positive"},
    };
    check_refusals(adversarial_main, wrong, sizeof wrong / sizeof *wrong);
}

TEST(runs_learn) {
    int status;
    const char *said =
        run_program(adversarial_main, "--epochs 20 --lr 1e-2 --batch 3 --max_tokens 20", &status);
    CHECK(status == 0 && strstr(said, "adversarial smart: dev 1.000, test 1.000; 36739 of"));
    said = run_program(adversarial_main, "--epochs 20 --lr 1e-2 --method r3f --pooling attention", &status);
    CHECK(status == 0 && strstr(said, "adversarial r3f: dev 1.000, test 1.000"));
}

int main(void) {
    if (!folder_begin("adversarial")) return 1;
    make_files();
    RUN(the_gradient_of_the_noise_is_right);
    RUN(smart_moves_the_noise_uphill);
    RUN(the_loss_is_its_formula);
    RUN(r3f_leaves_the_noise);
    RUN(wrong_flags_are_refused);
    RUN(runs_learn);
    return test_report("test_adversarial");
}
