/* The library against the plain Llama of examples/lessons, operation by operation in scalar loops and doubles: the
   forward pass with and without a KV cache, and every gradient of the trainer and of ml_llama.

   The plain one is exact to 1e-13 or so. The library rounds to F32, 6e-8 relative, some dozens of times one after
   another in two layers: TOLERANCE, of the largest number of a tensor. */
#include "preamble.h"

#include "examples/lessons/plain_llama.h"
#include "folder.h"
#include "models.h"

#define TOLERANCE 3e-5

enum { ROWS = 2, LENGTH = 9, VOCAB = 23 };
static const int32_t row_start[ROWS + 1] = {0, LENGTH, 2 * LENGTH};
static const int32_t tokens[ROWS * LENGTH] = {1, 5, 22, 5, 8, 0, 13, 2, 19, 1, 7, 7, 21, 3, 11, 5, 16, 4};
static const int32_t targets[ROWS * LENGTH] = {5, 22, 5, 8, 0, 13, 2, 19, 2, 7, 7, 21, 3, 11, 5, 16, 4, 2};

typedef struct setup {
    ml_model *model;
    plain_llama plain;
    float *logits; /* (ROWS * LENGTH, VOCAB) */
} setup;

/* Three heads for each of two pairs of keys and values, a rope that is stretched; weights large enough that attention
   and the gate are far from linear. */
static int set_up(setup *s, ml_mask mask, int tied) {
    ml_random random;
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = 24, c.hidden_dim = 20, c.n_layers = 2, c.n_heads = 6, c.n_kv_heads = 2, c.vocab_size = VOCAB;
    c.max_seq_len = 32, c.tied_output = tied, c.norm = ML_NORM_RMS, c.mask = mask;
    c.norm_eps = 1e-3f, c.rope_theta = 300, c.rope_scale = 2;
    memset(s, 0, sizeof *s);
    ml_random_seed(&random, 11);
    if (create_model(&c, ML_F32, &random, NULL, &s->model, NULL)) return 0;
    for (int i = 0; i < s->model->n_tensors; i++) {
        const ml_tensor *t = &s->model->tensors[i];
        for (size_t j = 0; t->data && (i != OUTPUT || !tied) && j < t->rows * t->cols; j++)
            ((float *)t->data)[j] = (t->rows == 1) + 0.3f * ml_random_normal(&random);
    }
    s->logits = (float *)calloc(ROWS * LENGTH * VOCAB, sizeof *s->logits);
    return s->logits && plain_new(&s->plain, s->model, LENGTH);
}

static void tear_down(setup *s) {
    free(s->plain.memory);
    free(s->logits);
    ml_model_free(s->model);
}

/* got (n) is `wanted` to TOLERANCE of the largest of these. */
static void check_numbers(const float *got, const double *wanted, int n, const char *what) {
    double largest = 0, worst = 0;
    for (int i = 0; i < n; i++) {
        double apart = fabs((double)got[i] - wanted[i]);
        largest = fmax(largest, fabs(wanted[i]));
        if (!(apart <= worst)) worst = apart;
    }
    CHECK(largest > 0);
    CHECK(worst <= TOLERANCE * largest);
    if (!(worst <= TOLERANCE * largest)) printf("%s: %g apart, of %g\n", what, worst, largest);
}

static ml_batch whole_batch(void) {
    ml_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.tokens = tokens, batch.n_tokens = ROWS * LENGTH, batch.row_start = row_start, batch.n_rows = ROWS;
    batch.targets = targets;
    return batch;
}

static void check_forward(ml_mask mask, int tied) {
    setup s;
    ml_session *session = NULL;
    ml_outputs outputs;
    const float *last;
    ml_batch batch = whole_batch();
    memset(&outputs, 0, sizeof outputs);
    REQUIRE(set_up(&s, mask, tied));
    outputs.logits = s.logits;
    REQUIRE(ml_session_new(s.model, NULL, &session, NULL) == ML_OK);
    REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
    for (int r = 0; r < ROWS; r++) {
        plain_forward(&s.plain, tokens + r * LENGTH);
        check_numbers(s.logits + r * LENGTH * VOCAB, s.plain.logits.v, LENGTH * VOCAB, "logits of a batch");
        REQUIRE(ml_session_truncate(session, 0, NULL) == ML_OK);
        for (int t = 0; t < LENGTH; t++) /* one by one, with a KV cache */
            REQUIRE(ml_session_eval(session, tokens + r * LENGTH + t, 1, &last, NULL) == ML_OK);
        check_numbers(last, s.plain.logits.v + (LENGTH - 1) * VOCAB, VOCAB, "logits with a cache");
    }
    ml_session_free(session);
    tear_down(&s);
}

TEST(forward_is_the_plain_one) {
    check_forward(ML_MASK_CAUSAL, 1);
    check_forward(ML_MASK_CAUSAL, 0);
    check_forward(ML_MASK_FULL, 1);
}

/* The loss of the whole batch, and its gradient of all weights, by the plain backward pass. */
static double plain_gradients(setup *s) {
    double loss = 0;
    for (int r = 0; r < ROWS; r++) {
        plain_forward(&s->plain, tokens + r * LENGTH);
        loss += plain_backward(&s->plain, tokens + r * LENGTH, targets + r * LENGTH, ROWS * LENGTH);
    }
    return loss;
}

static void check_gradients(const setup *s, const ml_tensor *tensors) {
    int compared = 0;
    for (int i = 0; i < s->model->n_tensors; i++) {
        const ml_tensor *t = &tensors[i];
        char name[ML_NAME_SIZE];
        if (!t->data || (i == OUTPUT && s->model->config.tied_output)) continue;
        ml_model_tensor_name(s->model, i, name);
        REQUIRE(t->grad != NULL);
        check_numbers(t->grad, s->plain.w[i].d, (int)(t->rows * t->cols), name);
        compared++;
    }
    CHECK(compared == 2 + 9 * 2 + !s->model->config.tied_output);
}

static void check_trainer(ml_mask mask, int tied, int checkpointing) {
    setup s;
    ml_trainer *trainer = NULL;
    ml_trainer_desc desc;
    ml_batch batch = whole_batch();
    float loss;
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = ROWS * LENGTH, desc.adamw.lr = 1e-3f, desc.checkpointing = checkpointing;
    REQUIRE(set_up(&s, mask, tied));
    REQUIRE(ml_trainer_new(s.model, &desc, &trainer, NULL) == ML_OK);
    REQUIRE(ml_trainer_backward(trainer, &batch, NULL, &loss, NULL) == ML_OK);
    CHECK_NEAR(loss, plain_gradients(&s), 0, 1e-6);
    check_gradients(&s, trainer->model);
    ml_trainer_free(trainer);
    tear_down(&s);
}

TEST(trainer_has_the_plain_gradients) {
    check_trainer(ML_MASK_CAUSAL, 1, 0);
    check_trainer(ML_MASK_CAUSAL, 0, 1);
    check_trainer(ML_MASK_FULL, 0, 0);
}

typedef struct pass {
    ml_llama_desc llama;
    ml_loss_desc loss;
    const ml_tensor *output;
} pass;

static ml_tensor build(ml_graph *g, void *user) {
    const pass *p = (const pass *)user;
    return ml_linear_cross_entropy(g, ml_llama(g, &p->llama), *p->output, ml_none(), &p->loss);
}

TEST(llama_of_a_graph_has_the_plain_gradients) {
    setup s;
    ml_graph *g = NULL;
    pass p;
    ml_batch batch = whole_batch();
    ml_tensor weights[OF_MODEL + OF_LAYER * 2];
    REQUIRE(set_up(&s, ML_MASK_CAUSAL, 0));
    REQUIRE(s.model->n_tensors == OF_MODEL + OF_LAYER * 2);
    for (int i = 0; i < s.model->n_tensors; i++) {
        weights[i] = s.model->tensors[i];
        if (weights[i].data)
            weights[i].grad = (float *)calloc(weights[i].rows * weights[i].cols, sizeof(float));
    }
    memset(&p, 0, sizeof p);
    p.llama.model = s.model, p.llama.weights = weights, p.llama.batch = &batch;
    p.loss.targets = targets, p.output = &weights[OUTPUT];
    REQUIRE(ml_graph_new(NULL, build, &p, &g, NULL) == ML_OK);
    ml_graph_begin(g, 1);
    REQUIRE(ml_graph_backward(g, build(g, &p), NULL) == ML_OK);
    plain_gradients(&s);
    check_gradients(&s, weights);
    for (int i = 0; i < s.model->n_tensors; i++)
        if (weights[i].data) free(weights[i].grad);
    ml_graph_free(g);
    tear_down(&s);
}

/* Its loops would read beyond such a model's tensors, or compute something else. */
TEST(other_models_are_refused) {
    for (int i = 0; i < 6; i++) {
        ml_random random;
        ml_model *model = NULL;
        plain_llama plain = {0};
        ml_config c;
        memset(&c, 0, sizeof c);
        c.dim = 24, c.hidden_dim = 20, c.n_layers = 2, c.n_heads = 6, c.n_kv_heads = 2, c.vocab_size = VOCAB;
        c.max_seq_len = 32;
        if (i == 1) c.window = 4;
        if (i == 2) c.attention_bias = 1;
        if (i == 3) c.head_dim = 8;
        if (i == 4) c.rope_kind = ML_ROPE_NTK, c.rope_scale = 2;
        ml_random_seed(&random, 11);
        REQUIRE(create_model(&c, ML_F32, &random, NULL, &model, NULL) == ML_OK);
        if (i == 5) ((ml_tensor *)(uintptr_t)model->tensors)[OF_MODEL + WQ].type = ML_F16;
        CHECK(plain_new(&plain, model, LENGTH) == (i == 0));
        if (i == 0) free(plain.memory);
        ml_model_free(model);
    }
}

/* The header's comments name the plain form of an operation in brackets: "[plain_linear, plain_add]". */
TEST(plain_forms_that_the_header_names_exist) {
    bytes header = read_file("minillama.h"), plain = read_file("examples/lessons/plain_llama.h");
    int named = 0;
    put(&header, "", 1), put(&plain, "", 1);
    for (const char *at = (const char *)header.data; (at = strstr(at, "[plain_")) != NULL;)
        for (; *at == '[' || *at == ' ';
             at += *at == ',', named++) { /* to the next name, or to the bracket */
            int n = (int)strcspn(++at, ",]");
            char definition[80];
            snprintf(definition, sizeof definition, " %.*s(", n, at);
            CHECK(strstr((const char *)plain.data, definition) != NULL);
            if (!strstr((const char *)plain.data, definition)) printf("no function%s...)\n", definition);
            at += n;
        }
    CHECK(named >= 10);
    free(header.data);
    free(plain.data);
}

int main(void) {
    RUN(forward_is_the_plain_one);
    RUN(trainer_has_the_plain_gradients);
    RUN(llama_of_a_graph_has_the_plain_gradients);
    RUN(other_models_are_refused);
    RUN(plain_forms_that_the_header_names_exist);
    return test_report("test_plain");
}
