/* examples/advanced/efficient.c: each method's loss, gradient and first steps against PyTorch's, what it begins with,
   its files in PEFT's format, and options that do not go together. */
#include "preamble.h"
#include "models.h"
#include "folder.h"
#include "../examples/advanced/common/tuning.h"
#include "../examples/advanced/common/methods.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/common/progress.h"

/* ---- a tiny model of sines, as in tools/torch_efficient.py ---- */

static void sines(ml_tensor *x, int k, double base) {
    for (size_t i = 0; i < x->rows * x->cols; i++)
        ((float *)x->data)[i] =
            (float)(base + 0.25 * sin(0.7 * (double)i + 0.001 * (double)i * (double)i + k));
}

/* The model's file in the temporary folder, with the tokenizer of the one that ships. */
static void make_model(const char *path) {
    ml_config config = {16, 24, 2, 4, 2, 2048, 64, 1, ML_NORM_RMS, ML_MASK_CAUSAL, 1e-5f, 10000, 1};
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

static void make_files(void) {
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

static tuning_settings settings(void) {
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

static tuning_method method_of(efficient *e) {
    tuning_method method;
    memset(&method, 0, sizeof method);
    method.program = "test";
    method.state = e;
    method.check = efficient_check;
    method.setup = efficient_setup;
    method.save = efficient_save;
    return method;
}

/* Opens the tiny model with a method whose settings are in e; its three rows become those of the script. */
static int open_method(tuning *t, efficient *e, const tuning_settings *set) {
    tuning_method method = method_of(e);
    if (!tuning_open(t, set, &method)) return 0;
    for (int i = 0; i < 3; i++) {
        review *row = &t->train.rows[i];
        row->n_ids = row_length[i];
        free(row->ids);
        row->ids = (int32_t *)malloc(sizeof row_ids[i]);
        memcpy(row->ids, row_ids[i], sizeof row_ids[i]);
    }
    return 1;
}

static void close_method(tuning *t, efficient *e) {
    tuning_close(t);
    efficient_free(e);
}

static efficient of_kind(const char *name) {
    efficient e;
    memset(&e, 0, sizeof e);
    e.set.method = name;
    return e;
}

/* The loss of the three rows; its gradient is added. */
static float backward(tuning *t) {
    static const int index[3] = {0, 1, 2};
    tuning_step step = {&t->train, index, 3};
    tuning_batch batch;
    float loss = -1;
    CHECK(tuning_fill(t, &batch, &step, 1) == 3);
    CHECK(tuning_backward(t, &batch, &loss));
    return loss;
}

static ml_optimizer *new_optimizer(tuning *t) {
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

/* ---- against PyTorch ---- */

/* Printed by tools/torch_efficient.py: how many numbers learn; the loss, the gradient's length, its product with
   cos(i), and the losses after one, two and three steps. */
static const struct {
    const char *method;
    int n;
    double numbers[6];
} expected[] = {
    {"full", 36739, {0.8164508, 3.157006, -0.5230479, 0.7734089, 0.510864, 0.4186231}},
    {"head", 51, {0.8164508, 1.707667, -0.385507, 0.725017, 0.6409387, 0.5644489}},
    {"last", 2019, {0.8164508, 2.084595, 2.615373, 0.5543864, 0.4328247, 0.3490594}},
    {"bitfit", 131, {0.8164508, 1.723761, -2.313471, 0.7110943, 0.6158875, 0.530355}},
    {"lora", 979, {1.037037, 2.567618, 1.418204, 0.9184637, 0.6734706, 0.5947232}},
    {"rslora", 979, {1.112101, 2.903168, 0.528903, 0.9669063, 0.7646314, 0.8049116}},
    {"loraplus", 979, {1.037037, 2.567618, 1.418204, 0.8915558, 0.7504156, 0.6247762}},
    {"dora", 515, {0.9063716, 1.796995, -1.142401, 0.7489606, 0.6395781, 0.5527107}},
    {"adapter", 511, {1.093377, 1.99999, 1.284654, 0.8886203, 0.7532566, 0.6733025}},
    {"parallel", 281, {1.146619, 2.076926, -1.660127, 0.9666476, 0.8442685, 0.7491507}},
    {"prefix", 147, {0.9193733, 1.747661, 1.611072, 0.8168393, 0.7216627, 0.6342786}},
    {"prefix_mlp", 278, {1.059862, 3.974982, -1.084087, 0.8266175, 0.7160363, 0.6388403}},
    {"prompt", 99, {1.160343, 1.77147, -3.040699, 1.047198, 0.9499835, 0.8652545}},
    {"ia3", 131, {0.8336181, 1.671259, -1.103887, 0.7356567, 0.6461811, 0.5649597}},
};

static void sines_of_parameters(tuning *t) {
    for (int i = 0; i < t->n_parameters; i++) {
        tuning_weight *w = t->parameters[i];
        int is_head = strncmp(w->name, "head.", 5) == 0,
            is_one = strstr(w->name, "ia3") || strstr(w->name, "magnitude");
        int is_model = !w->own.data && !strstr(w->name, "lora");
        if (!is_model)
            sines(w->tensor, is_head ? 1100 + (strcmp(w->name, "head.bias") == 0) : 100 + i, is_one);
    }
}

/* The length of the gradient, and its product with cos(i) over all parameters in order. */
static void measure_gradient(const tuning *t, double *length, double *product) {
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

static void set_flags(efficient *e) {
    const char *name = e->set.method;
    int is_lora = strstr(name, "lora") || strcmp(name, "dora") == 0;
    int is_bottleneck = strcmp(name, "adapter") == 0 || strcmp(name, "parallel") == 0;
    if (is_lora) e->set.rank = 2, e->set.alpha = 6;
    if (strcmp(name, "loraplus") == 0) e->set.ratio = 4;
    if (strcmp(name, "dora") == 0) e->set.targets = "q,v_proj,w2";
    if (is_bottleneck || strcmp(name, "prefix_mlp") == 0) e->set.bottleneck = 3;
    if (strcmp(name, "parallel") == 0) e->set.scale = 2;
    if (strncmp(name, "prefix", 6) == 0 || strcmp(name, "prompt") == 0) e->set.length = 3;
    if (strcmp(name, "last") == 0) e->set.layers = 1;
}

/* Within 2e-5 of PyTorch in double: F32 with about 100 operations in a row. The product adds gradients of both signs,
   so its error is relative to their length. AdamW's first step divides each gradient by itself, which makes errors of
   the smallest ones large: 1e-4 from there on. */
static void compare(size_t i) {
    efficient e = of_kind(expected[i].method);
    tuning_settings set = settings();
    const double *numbers = expected[i].numbers;
    double length, product;
    tuning t;
    ml_error error;
    set_flags(&e);
    REQUIRE(open_method(&t, &e, &set));
    CHECK(tuning_count(&t) == expected[i].n);
    sines_of_parameters(&t);
    REQUIRE(new_optimizer(&t));
    CHECK_NEAR(backward(&t), numbers[0], 0, 2e-5);
    measure_gradient(&t, &length, &product);
    CHECK_NEAR(length, numbers[1], 0, 2e-5);
    CHECK_NEAR(product, numbers[2], 2e-5 * length, 0);
    for (int step = 0; step < 3; step++) {
        CHECK(ml_optimizer_step(t.optimizer, &error) == ML_OK);
        CHECK_NEAR(backward(&t), numbers[3 + step], 0, 1e-4);
    }
    close_method(&t, &e);
}

TEST(losses_and_gradients_are_pytorchs) {
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int failed = test_current_failed;
        compare(i);
        if (test_current_failed > failed) printf("... with --method %s\n", expected[i].method);
    }
}

/* ---- beginnings ---- */

/* What adds to the model changes nothing at first; and A of LoRA has no gradient before B has moved. */
TEST(methods_begin_with_the_model_as_it_is) {
    static const char *const names[] = {"lora",    "rslora",   "loraplus", "dora",
                                        "adapter", "parallel", "ia3",      "bitfit"};
    tuning_settings set = settings();
    float plain = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        efficient e = of_kind(i ? names[i] : "head");
        tuning t;
        if (i == 0) { /* the loss without any method, for the same head */
            REQUIRE(open_method(&t, &e, &set));
            sines(tuning_find(&t, "head.weight")->tensor, 1100, 0);
            sines(tuning_find(&t, "head.bias")->tensor, 1101, 0);
            REQUIRE(new_optimizer(&t));
            plain = backward(&t);
            close_method(&t, &e);
            e = of_kind(names[0]);
        }
        REQUIRE(open_method(&t, &e, &set));
        sines(tuning_find(&t, "head.weight")->tensor, 1100, 0);
        sines(tuning_find(&t, "head.bias")->tensor, 1101, 0);
        REQUIRE(new_optimizer(&t));
        CHECK_NEAR(backward(&t), plain, 0, 1e-6);
        for (int k = 0; k < t.n_parameters; k++) {
            const tuning_weight *w = t.parameters[k];
            int is_a = strstr(w->name, "lora_A") != NULL;
            double most = 0;
            for (size_t j = 0; j < w->tensor->rows * w->tensor->cols; j++)
                most = fmax(most, fabs((double)w->tensor->grad[j]));
            if (is_a) CHECK(most == 0);
            if (strstr(w->name, "lora_B")) CHECK(most > 0);
        }
        close_method(&t, &e);
    }
}

int main(void) {
    if (!folder_begin("efficient")) return 1;
    make_files();
    RUN(losses_and_gradients_are_pytorchs);
    RUN(methods_begin_with_the_model_as_it_is);
    return test_report("test_efficient");
}
