/* examples/advanced/regularize.c: dropout at each place, R-drop, mixout, averages of the weights, rates by layer. */
#include "preamble.h"
#include "tuning_model.h"
#define main regularize_main
#include "../examples/advanced/common/tuning.h"
#include "../examples/advanced/regularize.c"
#undef main

static regular plain(void) {
    regular r;
    memset(&r, 0, sizeof r);
    r.layer_decay = 1;
    return r;
}

/* The tiny model with the method; its three rows are those of row_ids. */
static int open_regular(tuning *t, regular *r, const tuning_settings *set) {
    tuning_method method = method_of(r);
    if (!tuning_open(t, set, &method) || !new_optimizer(t)) return 0;
    set_rows(t);
    return 1;
}

static void close_regular(tuning *t, regular *r) {
    tuning_close(t);
    regular_free(r);
}

static void fill(tuning *t, tuning_batch *batch) {
    static const int index[3] = {0, 1, 2};
    tuning_step rows = {&t->train, index, 3};
    CHECK(tuning_fill(t, batch, &rows, 1) == 3);
}

static float *floats(const tuning *t) { return (float *)malloc((size_t)tuning_count(t) * sizeof(float)); }

/* ---- dropout ---- */

/* Each place changes the loss of a training pass, in each pass otherwise, and nothing when classes are predicted. */
TEST(dropout_is_for_training_only) {
    float logits[2][9] = {{0}}, losses[3];
    for (int place = -1; place < 4; place++) { /* -1: none */
        regular r = plain();
        tuning_settings set = settings();
        tuning_batch batch;
        tuning t;
        float *const p[4] = {&r.embedding, &r.residual, &r.hidden, &r.attention};
        if (place >= 0) *p[place] = 0.4f;
        REQUIRE(open_regular(&t, &r, &set));
        fill(&t, &batch);
        REQUIRE(tuning_compute(&t, &batch, tuning_logits, logits[place >= 0]));
        for (int i = 0; i < 9; i++) CHECK_NEAR(logits[1][i], logits[0][i], place < 0 ? 10 : 1e-6, 0);
        for (int i = 0; i < 3; i++) {
            if (i == 2) t.pass = 0; /* the first one again */
            REQUIRE(tuning_backward(&t, &batch, &losses[i]));
        }
        CHECK(losses[2] == losses[0]);
        CHECK((losses[1] != losses[0]) == (place >= 0));
        CHECK((fabs((double)losses[0] - plain_cross_entropy(&t, logits[place >= 0])) > 1e-3) == (place >= 0));
        close_regular(&t, &r);
    }
}

/* ---- R-drop ---- */

static float two[2][9];

/* What the two passes of R-drop compute; the sum is of no use. */
static ml_tensor two_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_tensor y[2];
    for (int i = 0; i < 2; i++) {
        y[i] = tuning_logits(t, g, batch);
        if (!g->measuring) memcpy(two[i], y[i].data, sizeof two[i]);
    }
    return ml_sum(g, ml_add(g, y[0], y[1]));
}

/* The loss is the formula in doubles, within the rounding of F32; the passes drop different numbers, whichever
   dropout they have; and without any difference the loss would be the cross-entropy. */
TEST(rdrop_is_its_formula) {
    for (int place = 0; place < 5; place++) {
        regular r = plain();
        tuning_settings set = settings();
        tuning_batch batch;
        tuning t;
        float loss;
        float *const p[5] = {&r.embedding, &r.residual, &r.hidden, &r.attention, &set.dropout};
        *p[place] = 0.3f;
        r.rdrop = 0.7f;
        REQUIRE(open_regular(&t, &r, &set));
        fill(&t, &batch);
        REQUIRE(tuning_backward_of(&t, &batch, two_logits, NULL));
        t.pass = 0; /* again with the same seeds */
        REQUIRE(tuning_backward(&t, &batch, &loss));
        double apart = plain_divergence(two[0], two[1]);
        double both = plain_cross_entropy(&t, two[0]) + plain_cross_entropy(&t, two[1]);
        CHECK(apart > 1e-4);
        CHECK_NEAR(loss, both / 2 + 0.7f * apart / 2, 0, 1e-5);
        close_regular(&t, &r);
    }
}

/* ---- mixout ---- */

static float *seen; /* the weights in a pass */

static ml_tensor look(tuning *t, ml_graph *g, const tuning_batch *batch) {
    if (!g->measuring) tuning_copy(t, seen);
    return tuning_classify(t, g, batch);
}

/* Numbers of the weights w and w0 in a pass of mixout with p, the gradients g that it left, and those of an ordinary
   pass with the weights that it saw. How many of n are w0. */
typedef struct mixed {
    const float *w, *w0, *seen;
    const float *g, *plain;
} mixed;

static int check_mixed(const mixed *m, size_t n, double p) {
    int n_old = 0;
    for (size_t i = 0; i < n; i++) {
        double w = (double)m->w[i], w0 = (double)m->w0[i], now = (double)m->seen[i];
        int is_old = fabs(now - w0) < fabs(now - (w - p * w0) / (1 - p));
        n_old += is_old;
        CHECK_NEAR(now, is_old ? w0 : (w - p * w0) / (1 - p), 2e-6, 2e-6); /* divided by 1 - p = 0.3 in F32 */
        CHECK(m->g[i] == (is_old ? 0 : m->plain[i]));
    }
    return n_old;
}

static void copy_gradients(const tuning *t, float *to) {
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        memcpy(to, x->grad, x->rows * x->cols * sizeof *to);
        to += x->rows * x->cols;
    }
}

/* Matrices of the model are mixed, the rest is as it is; w comes back, and of 35 thousand numbers the share p is from
   before the fine-tuning (within five standard deviations). */
TEST(mixout_is_its_formula) {
    regular r = plain();
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    r.mixout = 0.7f;
    REQUIRE(open_regular(&t, &r, &set));
    size_t n = (size_t)tuning_count(&t), n_mixed = 0;
    float *w0 = floats(&t), *w = floats(&t), *after = floats(&t), *g = floats(&t), *plain_g = floats(&t);
    int n_old = 0;
    seen = floats(&t);
    fill(&t, &batch);
    tuning_copy(&t, w0);
    REQUIRE(backward_mixed(&t, &batch, NULL)); /* the first one keeps what was there before */
    for (size_t i = 0; i < n; i++) w[i] = w0[i] + 0.05f + 0.02f * (float)cos((double)i);
    tuning_paste(&t, w);
    clear_gradients(&t);
    t.method.loss = look;
    REQUIRE(backward_mixed(&t, &batch, NULL));
    tuning_copy(&t, after);
    CHECK(memcmp(after, w, n * sizeof *w) == 0);
    copy_gradients(&t, g);
    memcpy(after, seen, n * sizeof *seen);
    clear_gradients(&t);
    tuning_paste(&t, after);
    REQUIRE(tuning_backward(&t, &batch, NULL));
    copy_gradients(&t, plain_g);
    for (size_t i = 0, at = 0; i < (size_t)t.n_parameters; i++) {
        const tuning_weight *x = t.parameters[i];
        size_t k = x->tensor->rows * x->tensor->cols;
        mixed m = {w + at, w0 + at, after + at, g + at, plain_g + at};
        int is_matrix = x->tensor->rows > 1 && strncmp(x->name, "head.", 5) != 0;
        if (is_matrix)
            n_old += check_mixed(&m, k, (double)r.mixout), n_mixed += k;
        else
            CHECK(memcmp(m.seen, m.w, k * sizeof *w) == 0 && memcmp(m.g, m.plain, k * sizeof *w) == 0);
        at += k;
    }
    CHECK(n_mixed > 35000);
    CHECK_NEAR(n_old / (double)n_mixed, 0.7, 5 * sqrt(0.21 / (double)n_mixed), 0);
    free(w0), free(w), free(after), free(g), free(plain_g), free(seen);
    close_regular(&t, &r);
}

/* The passes of a step see the same weights, and their gradients are added; the next step sees others. */
TEST(mixout_is_drawn_by_step) {
    regular r = plain();
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    r.mixout = 0.5f;
    REQUIRE(open_regular(&t, &r, &set));
    size_t n = (size_t)tuning_count(&t);
    float *w = floats(&t), *first = floats(&t), *g = floats(&t), *twice = floats(&t);
    seen = floats(&t);
    fill(&t, &batch);
    REQUIRE(backward_mixed(&t, &batch, NULL));
    tuning_copy(&t, w);
    for (size_t i = 0; i < n; i++) w[i] += 0.05f;
    tuning_paste(&t, w);
    clear_gradients(&t);
    t.method.loss = look;
    REQUIRE(backward_mixed(&t, &batch, NULL));
    memcpy(first, seen, n * sizeof *seen);
    copy_gradients(&t, g);
    REQUIRE(backward_mixed(&t, &batch, NULL));
    CHECK(memcmp(first, seen, n * sizeof *seen) == 0);
    copy_gradients(&t, twice);
    for (size_t i = 0; i < n; i++) CHECK_NEAR(twice[i], 2 * g[i], 1e-6, 1e-5); /* added in another order */
    t.result.steps = 1;
    REQUIRE(backward_mixed(&t, &batch, NULL));
    CHECK(memcmp(first, seen, n * sizeof *seen) != 0);
    free(w), free(first), free(g), free(twice), free(seen);
    close_regular(&t, &r);
}

/* ---- averages ---- */

/* Weights of a step: a few numbers that change much, the same for all. */
static void set_weights(tuning *t, float *room, int step) {
    size_t n = (size_t)tuning_count(t);
    for (size_t i = 0; i < n; i++) room[i] = (float)sin(3.0 * step + 0.1 * (double)(i % 100));
    tuning_paste(t, room);
}

/* Whether the average is measured (numbers of i % 100), and the weights come back. */
static void check_average(tuning *t, const double average[100], float *w, float *now) {
    size_t n = (size_t)tuning_count(t);
    REQUIRE(t->method.measuring(t, 1));
    tuning_copy(t, now);
    for (size_t i = 0; i < n; i++) CHECK_NEAR(now[i], average[i % 100], 2e-6, 0);
    REQUIRE(t->method.measuring(t, 0));
    tuning_copy(t, now);
    CHECK(memcmp(now, w, n * sizeof *w) == 0);
}

/* average = d average + (1 - d) w with d = min(0.8, (1 + k) / (10 + k)) in step k, from 0; the first is w itself. */
TEST(ema_averages_the_steps) {
    regular r = plain();
    tuning_settings set = settings();
    tuning t;
    double average[100];
    r.ema = 0.8f;
    REQUIRE(open_regular(&t, &r, &set));
    float *w = floats(&t), *now = floats(&t);
    for (int step = 0; step < 60; step++) {
        double d = step ? fmin(0.8, (1.0 + step) / (10.0 + step)) : 0;
        set_weights(&t, w, step);
        for (int i = 0; i < 100; i++) average[i] = (step ? d * average[i] : 0) + (1 - d) * (double)w[i];
        REQUIRE(t.method.after_step(&t));
        if (step % 7 == 0 || step > 57) check_average(&t, average, w, now); /* as with --eval_every */
    }
    free(w), free(now);
    close_regular(&t, &r);
}

/* The mean of the ends of the last three of five epochs; before them the weights themselves are measured. */
TEST(swa_averages_the_last_epochs) {
    regular r = plain();
    tuning_settings set = settings();
    tuning t;
    double sum[100] = {0}, average[100];
    r.swa = 3;
    set.epochs = 5;
    REQUIRE(open_regular(&t, &r, &set));
    float *w = floats(&t), *now = floats(&t);
    for (t.epoch = 0; t.epoch < 5; t.epoch++) {
        set_weights(&t, w, t.epoch);
        REQUIRE(t.method.after_step(&t));
        for (int i = 0; i < 100; i++) {
            if (t.epoch >= 2) sum[i] += (double)w[i];
            average[i] = t.epoch < 2 ? (double)w[i] : sum[i] / (t.epoch - 1);
        }
        check_average(&t, average, w, now);
    }
    free(w), free(now);
    close_regular(&t, &r);
}

/* ---- rates by layer ---- */

TEST(rates_fall_from_layer_to_layer) {
    static const struct {
        const char *name;
        double rate, decay;
    } expected[] = {
        {"head.weight", 3e-2, 0.1},
        {"output_norm.weight", 1e-2, 0},
        {"blk.1.attn_q.weight", 5e-3, 0.1},
        {"blk.1.ffn_norm.weight", 5e-3, 0},
        {"blk.0.ffn_down.weight", 2.5e-3, 0.1},
        {"token_embd.weight", 1.25e-3, 0.1},
    };
    regular r = plain();
    tuning_settings set = settings();
    tuning t;
    r.layer_decay = 0.5f;
    set.head_lr = 3e-2f, set.weight_decay = 0.1f;
    REQUIRE(open_regular(&t, &r, &set));
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const tuning_weight *w = tuning_find(&t, expected[i].name);
        REQUIRE(w);
        CHECK_NEAR(t.groups[w->group].lr, expected[i].rate, 0, 1e-6);
        CHECK_NEAR(t.groups[w->group].weight_decay, expected[i].decay, 0, 1e-6);
    }
    CHECK(tuning_count(&t) == 36739); /* nothing is left out */
    close_regular(&t, &r);
}

/* ---- whole runs ---- */

TEST(wrong_combinations_are_refused) {
    static const wrong_flags wrong[] = {
        {"--mixout 1", "--mixout and --ema are 0 to less than 1"},
        {"--dropout_attention=-0.1", "dropouts, --mixout and --ema"},
        {"--rdrop 1", "differ by dropout: give --dropout, too"},
        {"--rdrop=-1", "--rdrop and --swa are not negative"},
        {"--layer_decay 0", "more than 0 and at most 1"},
        {"--layer_decay 1.5", "more than 0 and at most 1"},
        {"--ema .9 --swa 1", "choose one"},
        {"--swa 2 --eval_every 1", "leave out --eval_every"},
        {"--swa 2 --patience 1", "and --patience"},
        {"--swa 4 --epochs 3", "--swa 4: there are 3 epochs"},
    };
    check_refusals(regularize_main, wrong, sizeof wrong / sizeof *wrong);
}

/* All at once learn three sentences by heart, in batches that take two passes; and what was used is said. */
TEST(runs_learn) {
    int status;
    const char *said =
        run_program(regularize_main,
                    "--epochs 30 --lr 1e-2 --batch 3 --max_tokens 20 --dropout .1 --rdrop 1 --mixout .2 "
                    "--dropout_attention .1 --ema .7 --layer_decay .9",
                    &status);
    CHECK(status == 0 &&
          strstr(said, "regularize dropout+mixout+rdrop+ema+layer_decay: dev 1.000, test 1.000; 36739 of"));
    said = run_program(regularize_main, "--epochs 30 --lr 1e-2 --swa 5", &status);
    CHECK(status == 0 && strstr(said, "regularize swa: dev 1.000, test 1.000"));
    said =
        run_program(regularize_main, "--help", &status); /* the averages compete with what was before them */
    CHECK(status == 0 && strstr(said, "unless an earlier one is as good on dev"));
}

int main(void) {
    if (!folder_begin("regularize")) return 1;
    make_files();
    RUN(dropout_is_for_training_only);
    RUN(rdrop_is_its_formula);
    RUN(mixout_is_its_formula);
    RUN(mixout_is_drawn_by_step);
    RUN(ema_averages_the_steps);
    RUN(swa_averages_the_last_epochs);
    RUN(rates_fall_from_layer_to_layer);
    RUN(wrong_combinations_are_refused);
    RUN(runs_learn);
    return test_report("test_regularize");
}
