/* A tiny model whose weights are sines, three sentences, and what the tests of the experiments do with them. */
#ifndef TUNING_MODEL_H
#define TUNING_MODEL_H

#include "preamble.h"
#include "models.h"
#include "folder.h"
#include "../examples/advanced/common/tuning.h"

/* As in tools/torch_efficient.py. */
static inline void sines(ml_tensor *x, int k, double base) {
    for (size_t i = 0; i < x->rows * x->cols; i++)
        ((float *)x->data)[i] =
            (float)(base + 0.25 * sin(0.7 * (double)i + 0.001 * (double)i * (double)i + k));
}

/* The model's file in the temporary folder, with the tokenizer of the one that ships. */
static inline void make_model(const char *path) {
    ml_config config = {16, 24, 2, 4, 2, 2048, 64, .tied_output = 1};
    ml_save_desc save = save_as(ML_GGUF, ML_F32);
    ml_tokenizer *tokenizer = NULL;
    ml_model *model = NULL;
    ml_random random;
    ml_error error;
    ml_random_seed(&random, 1);
    REQUIRE(ml_tokenizer_load("examples/models/stories.gguf", NULL, &tokenizer, &error) == ML_OK);
    REQUIRE(create_model(&config, ML_F32, &random, NULL, &model, &error) == ML_OK);
    REQUIRE(ml_model_set_tokenizer(model, tokenizer, &error) == ML_OK);
    for (int i = 0; i < model->n_tensors; i++) {
        ml_tensor x = model->tensors[i];
        if (x.data && i != 3) sines(&x, i, x.rows == 1); /* 3 is the output, the embedding again */
    }
    CHECK(ml_model_save(model, path, &save, &error) == ML_OK);
    ml_model_free(model);
}

static const int32_t row_ids[3][7] = {{1, 401, 39, 872, 1217}, {1, 5, 2000}, {1, 77, 950, 33, 8, 1021, 640}};
static const int row_length[3] = {5, 3, 7};
static char paths[3][600]; /* model, sentences, labels */

static inline void make_files(void) {
    static const char text[] =
        "2 ||| once upon a time there was a dog\n0 ||| the cat was sad and\n1 ||| they all "
        "lived in the forest\n",
                      labels[] = "[\"bad\", \"good\", \"odd\"]";
    static const char *const names[3] = {"model.gguf", "sentences.txt", "labels.json"};
    for (int i = 0; i < 3; i++) snprintf(paths[i], sizeof paths[i], "%s", in_folder(names[i]));
    make_model(paths[0]);
    write_file(paths[1], text, sizeof text - 1);
    write_file(paths[2], labels, sizeof labels - 1);
}

static inline tuning_settings settings(void) {
    tuning_settings set;
    tuning_defaults(&set);
    set.model = paths[0];
    set.train = set.dev = set.test = paths[1];
    set.labels = paths[2];
    set.lr = 1e-2f;
    set.batch = 3;
    set.threads = 1;
    return set;
}

static inline ml_optimizer *new_optimizer(tuning *t) {
    static ml_parameter list[256];
    ml_optimizer_desc desc;
    ml_optimizer *optimizer = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    for (int i = 0; i < t->n_parameters; i++) {
        list[i].tensor = t->parameters[i]->tensor;
        list[i].group = t->parameters[i]->group;
    }
    desc.parameters = list;
    desc.n_parameters = t->n_parameters;
    desc.groups = t->groups;
    desc.n_groups = t->n_groups;
    desc.adamw.lr = t->set.lr;
    desc.adamw.form = ML_ADAMW_PYTORCH;
    if (ml_optimizer_new(&desc, &optimizer, &error) != ML_OK) printf("%s\n", error.text);
    return t->optimizer = optimizer;
}

/* The length of the gradient, and its product with cos(i) over all parameters in order. */
static inline void measure_gradient(const tuning *t, double *length, double *product) {
    size_t n = 0;
    *length = *product = 0;
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        for (size_t j = 0; j < x->rows * x->cols; j++, n++) {
            *length += (double)x->grad[j] * (double)x->grad[j];
            *product += (double)x->grad[j] * cos((double)n);
        }
    }
    *length = sqrt(*length);
}

/* The rows of the script in place of the sentences. */
static inline void set_rows(tuning *t) {
    for (int i = 0; i < 3; i++) {
        review *row = &t->train.rows[i];
        row->n_ids = row_length[i];
        free(row->ids);
        row->ids = (int32_t *)malloc(sizeof row_ids[i]);
        memcpy(row->ids, row_ids[i], sizeof row_ids[i]);
    }
}

/* The loss of the three rows; its gradient is added. */
static inline float backward(tuning *t) {
    static const int index[3] = {0, 1, 2};
    tuning_step step = {&t->train, index, 3};
    tuning_batch batch;
    float loss = -1;
    CHECK(tuning_fill(t, &batch, &step, 1) == 3);
    CHECK(tuning_backward(t, &batch, &loss));
    return loss;
}

/* Runs a program on the three sentences; what it prints. `flags` follow those that name the files. */
static inline const char *run_program(int (*run)(int, char **), const char *flags, int *status) {
    char line[8192], *argv[64], program[] = "test";
    int argc = 1;
    snprintf(line, sizeof line, "--model %s --train %s --dev %s --test %s --label-names %s --threads 1 %s",
             paths[0], paths[1], paths[1], paths[1], paths[2], flags);
    argv[0] = program;
    for (char *word = strtok(line, " "); word && argc < 64; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    *status = run(argc, argv);
    return capture_end();
}

typedef struct wrong_flags {
    const char *flags, *reason;
} wrong_flags;

/* Each is refused, with that in what is printed. */
static inline void check_refusals(int (*run)(int, char **), const wrong_flags *wrong, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int status;
        const char *said = run_program(run, wrong[i].flags, &status);
        CHECK(status == 1 || status == 2);
        CHECK(strstr(said, wrong[i].reason));
        if (!strstr(said, wrong[i].reason)) printf("%s: %s", wrong[i].flags, said);
    }
}

static inline void clear_gradients(tuning *t) {
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        memset(x->grad, 0, x->rows * x->cols * sizeof(float));
    }
}

/* log(softmax(x)) of one row, in doubles */
static inline void plain_log_softmax(const float *x, int n, double *y) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += exp((double)x[i]);
    for (int i = 0; i < n; i++) y[i] = (double)x[i] - log(sum);
}

/* Of rows of logits (3, 3): the mean cross-entropy, and the mean of KL(p || q) + KL(q || p). */
static inline double plain_cross_entropy(const tuning *t, const float *logits) {
    double y[3], sum = 0;
    for (int i = 0; i < 3; i++) {
        plain_log_softmax(logits + 3 * i, 3, y);
        sum -= y[t->train.rows[i].label] / 3;
    }
    return sum;
}
static inline double plain_divergence(const float *one, const float *other) {
    double p[3], q[3], sum = 0;
    for (int i = 0; i < 3; i++) {
        plain_log_softmax(one + 3 * i, 3, p);
        plain_log_softmax(other + 3 * i, 3, q);
        for (int j = 0; j < 3; j++) sum += (exp(p[j]) - exp(q[j])) * (p[j] - q[j]) / 3;
    }
    return sum;
}

#endif
