/* AdamW over lists of tensors in groups: against PyTorch's and the course's formula, that what is frozen stays, and
   that a step happens as a whole or not at all. */
#include "preamble.h"

static void fill(float *x, size_t n, int seed, float scale) {
    size_t i;
    for (i = 0; i < n; i++) x[i] = (float)((int)(i * 37 + (size_t)seed * 29) % 101 - 50) / 64 * scale;
}

static ml_tensor matrix(float *data, size_t rows, size_t cols) {
    ml_tensor t;
    memset(&t, 0, sizeof t);
    t.type = ML_F32;
    t.rows = rows;
    t.cols = cols;
    t.data = data;
    return t;
}

static size_t count(const ml_tensor *t) { return t->rows * t->cols; }

/* Four tensors in four groups, of which the third is frozen. */
enum { N_TENSORS = 4, N_NUMBERS = 6 + 3 + 8 + 2, N_TRAINED = N_NUMBERS - 8 };
typedef struct four {
    float numbers[N_NUMBERS];
    ml_tensor tensors[N_TENSORS];
    ml_parameter parameters[N_TENSORS];
    ml_group groups[N_TENSORS];
    ml_optimizer_desc desc;
} four;

static void make_four(four *f) {
    static const size_t rows[N_TENSORS] = {2, 1, 4, 1}, cols[N_TENSORS] = {3, 3, 2, 2};
    float *next = f->numbers;
    int i;
    memset(f, 0, sizeof *f);
    for (i = 0; i < N_TENSORS; i++) {
        f->tensors[i] = matrix(next, rows[i], cols[i]);
        fill(next, count(&f->tensors[i]), 1 + i, 1);
        next += count(&f->tensors[i]);
        f->parameters[i].tensor = &f->tensors[i];
        f->parameters[i].group = i;
    }
    f->groups[0].weight_decay = 0.1f; /* and adamw's rate */
    f->groups[1].lr = 0.03f;
    f->groups[2].frozen = 1;
    f->groups[3].lr = 0.002f;
    f->groups[3].weight_decay = 0.5f;
    f->desc.parameters = f->parameters;
    f->desc.groups = f->groups;
    f->desc.n_parameters = f->desc.n_groups = N_TENSORS;
    f->desc.adamw.lr = 0.01f;
    f->desc.adamw.beta2 = 0.99f;
    f->desc.adamw.eps = 1e-5f;
    f->desc.adamw.weight_decay = 7; /* of no group */
    f->desc.adamw.clip = 1;
    f->desc.adamw.form = ML_ADAMW_PYTORCH;
}

static void fill_gradients(const four *f, int step) {
    int i;
    for (i = 0; i < N_TENSORS; i++)
        if (f->tensors[i].grad)
            fill(f->tensors[i].grad, count(&f->tensors[i]), 5 + 4 * step + i, step % 2 ? 0.125f : 1);
}

/* PyTorch's AdamW with parameter groups and clip_grad_norm_, six steps, of which every other is clipped; before the
   fourth the rates of two groups change:

   import torch
   def values(n, seed): return torch.tensor([((i * 37 + seed * 29) % 101 - 50) / 64 for i in range(n)])
   sizes = [6, 3, 8, 2]
   p = [torch.nn.Parameter(values(n, 1 + i)) for i, n in enumerate(sizes)]
   trained = [p[0], p[1], p[3]]
   o = torch.optim.AdamW([dict(params=p[:1], lr=0.01, weight_decay=0.1),
                          dict(params=p[1:2], lr=0.03, weight_decay=0),
                          dict(params=p[3:], lr=0.002, weight_decay=0.5)], betas=(0.9, 0.99), eps=1e-5)
   for t in range(6):
       if t == 3: o.param_groups[0]["lr"], o.param_groups[1]["lr"] = 0.02, 0
       for i in (0, 1, 3): p[i].grad = values(sizes[i], 5 + 4 * t + i) * [1, 0.125][t % 2]
       print(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
       o.step()
   print(torch.cat([x.detach() for x in trained]).tolist())

   Norms: 1e-6 of their size, the rounding of one sum. Weights: 3e-7, a few roundings of numbers below 1. */
TEST(groups_as_in_pytorch) {
    static const float norms[6] = {1.3283088207244873f, 0.17751961946487427f, 1.5388840436935425f,
                                   0.1985282301902771f, 1.6133899688720703f,  0.1971108615398407f};
    static const float expected[N_TRAINED] = {
        -0.3171361982822418f, 0.2373126745223999f,  -0.7113375663757324f, -0.21426211297512054f,
        0.38804328441619873f, -0.5730232000350952f, 0.07650920748710632f, 0.776712954044342f,
        -0.2752579152584076f, -0.540867269039154f,  0.023554543033242226f};
    four f;
    ml_optimizer *optimizer;
    ml_error error;
    float frozen[8];
    int step, i;
    make_four(&f);
    memcpy(frozen, f.tensors[2].data, sizeof frozen);
    REQUIRE(ml_optimizer_new(&f.desc, &optimizer, &error) == ML_OK);
    CHECK(optimizer->n_parameters == N_TRAINED && f.tensors[2].grad == NULL);
    CHECK(optimizer->groups[0].lr == 0.01f && optimizer->groups[1].lr == 0.03f);
    for (step = 0; step < 6; step++) {
        if (step == 3) optimizer->groups[0].lr = 0.02f, optimizer->groups[1].lr = 0;
        fill_gradients(&f, step);
        CHECK(ml_optimizer_step(optimizer, &error) == ML_OK);
        CHECK_NEAR(optimizer->gradient_norm, norms[step], 0, 1e-6);
    }
    CHECK(optimizer->step == 6 && optimizer->learning_rate == 0.01f);
    for (i = 0; i < 9; i++) CHECK_NEAR(f.numbers[i], expected[i], 3e-7, 0);
    for (i = 9; i < N_TRAINED; i++) CHECK_NEAR(f.numbers[8 + i], expected[i], 3e-7, 0);
    CHECK(memcmp(frozen, f.tensors[2].data, sizeof frozen) == 0);
    ml_optimizer_free(optimizer);
}

/* The course's form with a schedule, in doubles: alpha_t = alpha sqrt(1 - b2^t) / (1 - b1^t), then decay after the
   step. Weights: 3e-7, a few roundings of numbers below 1. */
TEST(folded_form_and_schedule) {
    enum { N = 6, STEPS = 12 };
    double w[N], m[N] = {0}, v[N] = {0};
    float numbers[N];
    ml_tensor t = matrix(numbers, 2, 3);
    ml_parameter parameter;
    ml_optimizer_desc desc;
    ml_optimizer *optimizer;
    ml_error error;
    int step, i;
    memset(&desc, 0, sizeof desc);
    parameter.tensor = &t;
    parameter.group = 0;
    desc.parameters = &parameter;
    desc.n_parameters = 1;
    desc.adamw.lr = 0.02f;
    desc.adamw.weight_decay = 0.25f;
    desc.schedule.warmup_steps = 4;
    desc.schedule.total_steps = STEPS;
    desc.schedule.decay = ML_DECAY_LINEAR;
    fill(numbers, N, 1, 1);
    for (i = 0; i < N; i++) w[i] = (double)numbers[i];
    REQUIRE(ml_optimizer_new(&desc, &optimizer, &error) == ML_OK);
    for (step = 0; step < STEPS; step++) {
        double rate = 0.02 * (step < 4 ? (step + 1) / 4.0 : (12 - step) / 8.0);
        double b1 = 0.9, b2 = 0.999, folded = rate * sqrt(1 - pow(b2, step + 1)) / (1 - pow(b1, step + 1));
        fill(t.grad, N, 5 + step, 1);
        for (i = 0; i < N; i++) {
            double g = (double)t.grad[i];
            m[i] = b1 * m[i] + (1 - b1) * g;
            v[i] = b2 * v[i] + (1 - b2) * g * g;
            w[i] -= folded * m[i] / (sqrt(v[i]) + 1e-6);
            w[i] -= rate * 0.25 * w[i];
        }
        CHECK(ml_optimizer_step(optimizer, &error) == ML_OK);
        CHECK_NEAR(optimizer->learning_rate, rate, 1e-9, 0);
        for (i = 0; i < N; i++) CHECK_NEAR(numbers[i], w[i], 3e-7, 0);
        for (i = 0; i < N; i++) CHECK(t.grad[i] == 0);
    }
    ml_optimizer_free(optimizer);
}

/* A gradient that is not finite, or a rate that makes no sense, leaves everything as it was; so does the optimizer a
   moment later. */
TEST(a_step_that_cannot_be_made_changes_nothing) {
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    four f, before;
    ml_optimizer *optimizer;
    ml_error error;
    size_t i;
    int side;
    make_four(&f);
    REQUIRE(ml_optimizer_new(&f.desc, &optimizer, &error) == ML_OK);
    memcpy(&before, &f, sizeof f);
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (side = 0; side < 2; side++) {
            fill_gradients(&f, 0);
            f.tensors[3 * side].grad[1] = bad[i];
            CHECK(ml_optimizer_step(optimizer, &error) == ML_ERROR_NUMBER);
            CHECK(strcmp(error.text, "the gradient of step 1 is not finite") == 0);
        }
        fill_gradients(&f, 0);
        optimizer->groups[3].lr = i ? bad[i] : -1;
        CHECK(ml_optimizer_step(optimizer, &error) == ML_ERROR_ARGUMENT);
        CHECK(strncmp(error.text, "group 3: the learning rate", 26) == 0);
        optimizer->groups[3].lr = 0.002f;
    }
    CHECK(memcmp(f.numbers, before.numbers, sizeof f.numbers) == 0 && optimizer->step == 0);
    fill_gradients(&f, 0);
    ml_optimizer_zero_gradients(optimizer);
    for (i = 0; i < 6; i++) CHECK(f.tensors[0].grad[i] == 0);
    optimizer->groups[0].weight_decay = optimizer->groups[3].weight_decay = 0;
    CHECK(ml_optimizer_step(optimizer, &error) == ML_OK && optimizer->step == 1);
    /* the moments were not touched either: without a gradient nothing moves */
    CHECK(memcmp(f.numbers, before.numbers, sizeof f.numbers) == 0);
    ml_optimizer_free(optimizer);
}

/* More numbers than a task takes at a time, and a size that is not a multiple of anything. */
enum { MANY = 3 * (1 << 15) + 7 };

static void run_many(float *w, int threads, float *norm) {
    ml_tensor tensors[2];
    ml_parameter parameters[2];
    ml_optimizer_desc desc;
    ml_optimizer *optimizer;
    ml_error error;
    int step;
    memset(parameters, 0, sizeof parameters);
    memset(&desc, 0, sizeof desc);
    fill(w, MANY, 1, 1);
    tensors[0] = matrix(w, 1, MANY - 100);
    tensors[1] = matrix(w + MANY - 100, 10, 10);
    parameters[0].tensor = &tensors[0];
    parameters[1].tensor = &tensors[1];
    desc.parameters = parameters;
    desc.n_parameters = 2;
    desc.adamw.lr = 0.01f;
    desc.adamw.clip = 1;
    desc.threads.count = threads;
    REQUIRE(ml_optimizer_new(&desc, &optimizer, &error) == ML_OK);
    for (step = 0; step < 3; step++) {
        fill(tensors[0].grad, MANY - 100, step, 1);
        fill(tensors[1].grad, 100, step, 1);
        CHECK(ml_optimizer_step(optimizer, &error) == ML_OK);
        norm[step] = optimizer->gradient_norm;
    }
    ml_optimizer_free(optimizer);
}

TEST(threads_give_the_same_bits) {
    static float one[MANY], several[MANY];
    float norm[3], norms[3];
    int threads;
    run_many(one, 1, norm);
    for (threads = 2; threads < 6; threads++) {
        run_many(several, threads, norms);
        CHECK(memcmp(one, several, sizeof one) == 0 && memcmp(norm, norms, sizeof norm) == 0);
    }
}

TEST(size_is_exact) {
    four f;
    ml_optimizer *optimizer;
    ml_error error;
    size_t size, trained_size;
    unsigned char *memory, *worst;
    make_four(&f);
    REQUIRE(ml_optimizer_size(&f.desc, &size, &error) == ML_OK);
    CHECK(f.tensors[0].grad == NULL); /* only _init places anything */
    REQUIRE((memory = (unsigned char *)malloc(size + 64)) != NULL);
    worst =
        memory + (65 - (uintptr_t)memory % 64) % 64; /* a byte after a cache line begins: 63 are skipped */
    worst[size - 1] = 77;
    CHECK(ml_optimizer_init(&f.desc, worst, size - 1, &optimizer, &error) == ML_OK);
    fill_gradients(&f, 0);
    CHECK(ml_optimizer_step(optimizer, &error) == ML_OK && worst[size - 1] == 77);
    ml_optimizer_free(optimizer); /* nothing to do */
    CHECK(ml_optimizer_init(&f.desc, worst, size - 2, &optimizer, &error) == ML_ERROR_MEMORY);
    CHECK(optimizer == NULL && strstr(error.text, "ml_optimizer_size") != NULL);
    f.groups[0].frozen = 1; /* 12 bytes for each number that is trained, rounded up to a cache line */
    REQUIRE(ml_optimizer_size(&f.desc, &trained_size, &error) == ML_OK);
    CHECK(trained_size < size);
    free(memory);
}

static void check_refused(const ml_optimizer_desc *desc, const char *sentence) {
    ml_optimizer *optimizer = (ml_optimizer *)(uintptr_t)desc;
    ml_error error;
    size_t size = 1;
    CHECK(ml_optimizer_size(desc, &size, &error) == ML_ERROR_ARGUMENT && size == 0);
    CHECK(ml_optimizer_new(desc, &optimizer, &error) == ML_ERROR_ARGUMENT && optimizer == NULL);
    if (strstr(error.text, sentence) == NULL) printf("got: %s\nnot: %s\n", error.text, sentence);
    CHECK(strstr(error.text, sentence) != NULL);
}

TEST(wrong_parameters_are_refused) {
    four f;
    int i;
    ml_error error;
    check_refused(NULL, "an optimizer needs a description with parameters");
    make_four(&f);
    f.desc.n_parameters = 0;
    check_refused(&f.desc, "an optimizer needs a description with parameters");
    make_four(&f);
    f.tensors[1].type = ML_F16;
    check_refused(&f.desc, "parameter 1 is F16, not F32");
    make_four(&f);
    f.tensors[3].data = NULL;
    check_refused(&f.desc, "parameter 3 has no data");
    make_four(&f);
    f.parameters[3].tensor = NULL;
    check_refused(&f.desc, "parameter 3 has no data");
    make_four(&f);
    f.tensors[0].rows = 0;
    check_refused(&f.desc, "parameter 0 has the shape (0, 3)");
    make_four(&f);
    f.tensors[0].rows = SIZE_MAX / 4;
    check_refused(&f.desc, "parameter 0 has the shape (");
    for (i = -1; i <= 4; i += 5) {
        make_four(&f);
        f.parameters[1].group = i;
        check_refused(&f.desc,
                      i < 0 ? "parameter 1 is of group -1, of 4" : "parameter 1 is of group 4, of 4");
    }
    make_four(&f);
    f.parameters[3].tensor = &f.tensors[0];
    check_refused(&f.desc, "parameters 0 and 3 share memory (the same tensor twice?)");
    make_four(&f);
    f.tensors[1].data = (float *)f.tensors[0].data + 5; /* another tensor, the last number */
    check_refused(&f.desc, "parameters 0 and 1 share memory (the same tensor twice?)");
    make_four(&f);
    for (i = 0; i < N_TENSORS; i++) f.groups[i].frozen = 1;
    check_refused(&f.desc, "all parameters are frozen");
    make_four(&f);
    CHECK(ml_optimizer_size(&f.desc, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_optimizer_new(&f.desc, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_optimizer_step(NULL, &error) == ML_ERROR_ARGUMENT);
    ml_optimizer_zero_gradients(NULL);
    CHECK(ml_schedule_factor(NULL, 3) == 1);
    ml_optimizer_free(NULL);
}

TEST(numbers_out_of_range_are_refused) {
    static const float bad[] = {-1, INFINITY, NAN};
    four f;
    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_four(&f);
        f.groups[1].lr = bad[i];
        check_refused(&f.desc, "group 1: the learning rate or weight decay is out of range");
        make_four(&f);
        f.groups[3].weight_decay = bad[i];
        check_refused(&f.desc, "group 3: the learning rate or weight decay is out of range");
        make_four(&f);
        f.desc.adamw.lr = bad[i];
        check_refused(&f.desc, "a number of AdamW is out of range");
        make_four(&f);
        f.desc.adamw.beta1 = bad[i];
        check_refused(&f.desc, "a number of AdamW is out of range");
        make_four(&f);
        f.desc.adamw.beta2 = bad[i];
        check_refused(&f.desc, "a number of AdamW is out of range");
    }
    make_four(&f);
    f.desc.adamw.lr = 0;
    check_refused(&f.desc, "group 0: the learning rate or weight decay is out of range (lr must be given, "
                           "and be at most 1e6)");
    make_four(&f);
    f.desc.groups = NULL;
    check_refused(&f.desc, "n_groups is 4, without groups");
    make_four(&f);
    f.desc.n_groups = -1;
    check_refused(&f.desc, "n_groups is -1");
    make_four(&f);
    f.desc.threads.count = -1;
    check_refused(&f.desc, "optimizer: threads.count is -1");
    make_four(&f);
    f.desc.schedule.decay = ML_DECAY_COSINE;
    check_refused(&f.desc, "optimizer: a schedule that decays needs total_steps");
    const ml_schedule wrong[] = {{ML_DECAY_NONE, -100, 0, 0},
                                 {(ml_decay)9, 0, 10, 0},
                                 {ML_DECAY_LINEAR, 0, 10, -1},
                                 {ML_DECAY_LINEAR, 0, 10, NAN}};
    for (i = 0; i < 4; i++) {
        f.desc.schedule = wrong[i];
        check_refused(&f.desc, "optimizer: warmup_steps, decay or final of the schedule is out of range");
    }
}

/* What is frozen may have any type, and its rate does not matter. */
TEST(frozen_tensors_may_be_quantized) {
    four f;
    ml_optimizer *optimizer;
    ml_error error;
    unsigned char block[34];
    memset(block, 0, sizeof block);
    make_four(&f);
    f.tensors[2].type = ML_Q8_0;
    f.tensors[2].data = block;
    f.tensors[2].rows = 1;
    f.tensors[2].cols = 32;
    f.groups[2].lr = -1;
    REQUIRE(ml_optimizer_new(&f.desc, &optimizer, &error) == ML_OK);
    CHECK(ml_optimizer_step(optimizer, &error) == ML_OK);
    ml_optimizer_free(optimizer);
}

/* ---- ml_check_gradient ---- */

/* A network of two layers with a dropout, whose squares are right or lack half of their gradient. */
typedef struct network {
    ml_tensor x, w1, b1, w2;
    float numbers[6 * 5 + 8 * 5 + 8 + 3 * 8], grads[8 * 5 + 8 + 3 * 8];
    int32_t targets[6];
    int is_wrong, calls, drifts;
} network;

static ml_tensor network_loss(ml_graph *g, void *user) {
    network *n = (network *)user;
    ml_tensor h = ml_tanh(g, ml_linear(g, n->x, n->w1, n->b1));
    ml_loss_desc loss;
    memset(&loss, 0, sizeof loss);
    loss.targets = n->targets;
    loss.divisor = n->drifts ? (float)(6 + n->calls++) : 6;
    h = ml_mul(g, h, n->is_wrong ? ml_stop_gradient(g, h) : h);
    return ml_linear_cross_entropy(g, ml_dropout(g, h, 0.25f, 7), n->w2, ml_none(), &loss);
}

static void make_network(network *n) {
    int i;
    memset(n, 0, sizeof *n);
    fill(n->numbers, sizeof n->numbers / sizeof(float), 1, 1);
    for (i = 0; i < 6; i++) n->targets[i] = i % 3;
    n->x = matrix(n->numbers, 6, 5);
    n->w1 = matrix(n->numbers + 30, 8, 5);
    n->b1 = matrix(n->numbers + 70, 1, 8);
    n->w2 = matrix(n->numbers + 78, 3, 8);
    memset(n->b1.data, 0, 8 * sizeof(float)); /* has no size that a step could be a part of */
    n->w1.grad = n->grads;
    n->b1.grad = n->grads + 40;
    n->w2.grad = n->grads + 48;
}

TEST(right_gradients_are_told_from_wrong_ones) {
    network n;
    const ml_tensor *tensors[3];
    float before[sizeof n.numbers / sizeof(float)], grads[sizeof n.grads / sizeof(float)];
    ml_check_desc desc;
    ml_graph *g;
    ml_random random, unseeded;
    ml_error error;
    double worst;
    int i;
    make_network(&n);
    memset(&unseeded, 0, sizeof unseeded);
    memset(&desc, 0, sizeof desc);
    tensors[0] = &n.w1;
    tensors[1] = &n.b1;
    tensors[2] = &n.w2;
    desc.build = network_loss;
    desc.user = &n;
    desc.tensors = tensors;
    desc.n_tensors = 3;
    desc.random = &random;
    REQUIRE(ml_graph_new(NULL, network_loss, &n, &g, &error) == ML_OK);
    ml_graph_begin(g, 1);
    CHECK(ml_graph_backward(g, network_loss(g, &n), &error) == ML_OK);
    memcpy(grads, n.grads, sizeof grads);
    memcpy(before, n.numbers, sizeof before);
    for (i = 0; i < 5; i++) {
        ml_random_seed(&random, (uint64_t)i);
        n.is_wrong = 0;
        CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_OK);
        CHECK_NEAR(worst, 0, 0.01, 0);
        CHECK(memcmp(grads, n.grads, sizeof grads) == 0);
        n.is_wrong = 1;
        CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_OK && worst > 0.1);
    }
    tensors[1] = &n.w1; /* one memory twice, as of a tied pair */
    n.is_wrong = 0;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_OK);
    CHECK_NEAR(worst, 0, 0.01, 0);
    tensors[1] = &n.b1;
    CHECK(memcmp(before, n.numbers, sizeof before) == 0);
    n.drifts = 1;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "build gave two different losses") != NULL);
    n.drifts = 0;
    n.targets[2] = 3; /* the pass fails, and its sentence comes through */
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "target 2 is 3") != NULL);
    n.targets[2] = 2;
    desc.n_directions = 65;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    desc.n_directions = 0;
    desc.step = NAN;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    desc.step = 0;
    desc.random = NULL;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    desc.random = &unseeded; /* by which all directions would be the same */
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "needs build, tensors and a seeded random") != NULL);
    desc.random = &random;
    n.b1.grad = NULL;
    CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "tensor 1 is not F32 with data and a gradient") != NULL);
    CHECK(memcmp(before, n.numbers, sizeof before) == 0);
    ml_graph_free(g);
}

int main(void) {
    RUN(groups_as_in_pytorch);
    RUN(folded_form_and_schedule);
    RUN(a_step_that_cannot_be_made_changes_nothing);
    RUN(threads_give_the_same_bits);
    RUN(size_is_exact);
    RUN(wrong_parameters_are_refused);
    RUN(numbers_out_of_range_are_refused);
    RUN(frozen_tensors_may_be_quantized);
    RUN(right_gradients_are_told_from_wrong_ones);
    return test_report("test_optimizer");
}
