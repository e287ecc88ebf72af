/* examples/advanced/efficient.c: each method's loss, gradient and first steps against PyTorch's, what it begins with,
   its files in PEFT's format, and options that do not go together. */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#include "../examples/advanced/common/methods.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/common/progress.h"

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
    set_rows(t);
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

/* ---- the program ---- */

/* Runs the program; what it prints. */
static const char *run(const char *flags, int *status) {
    efficient e;
    char line[4096], *argv[64], program[] = "efficient";
    tuning_method method = method_of(&e);
    int argc = 1;
    memset(&e, 0, sizeof e);
    const option own[] = {
        {"--method", OPTION_TEXT, &e.set.method, ""},   {"--rank", OPTION_INT, &e.set.rank, ""},
        {"--targets", OPTION_TEXT, &e.set.targets, ""}, {"--length", OPTION_INT, &e.set.length, ""},
        {"--layers", OPTION_INT, &e.set.layers, ""},    {"--load", OPTION_TEXT, &e.set.load, ""},
        {"--alpha", OPTION_FLOAT, &e.set.alpha, ""},    {"--ratio", OPTION_FLOAT, &e.set.ratio, ""},
        {"--scale", OPTION_FLOAT, &e.set.scale, ""},    {"--bottleneck", OPTION_INT, &e.set.bottleneck, ""}};
    snprintf(line, sizeof line, "--model %s --train %s --dev %s --test %s --label-names %s --threads 1 %s",
             paths[0], paths[1], paths[1], paths[1], paths[2], flags);
    argv[0] = program;
    for (char *word = strtok(line, " "); word && argc < 64; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    *status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    efficient_free(&e);
    return capture_end();
}

/* ---- files ---- */

/* PEFT's names and shapes, for D 16, H 24, kv_dim 8, r 2, P 3, two layers, three classes. */
static const struct {
    const char *method, *name;
    int n_dims;
    int64_t shape[2];
} in_files[] = {
    {"lora", "base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight", 2, {8, 2}},
    {"lora", "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight", 2, {2, 24}},
    {"lora", "base_model.model.score.weight", 2, {3, 16}},
    {"dora", "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", 2, {2, 16}},
    {"dora", "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight", 2, {8, 2}},
    {"dora", "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector", 1, {16, 0}},
    {"dora", "base_model.model.score.weight", 2, {3, 16}},
    {"ia3", "base_model.model.model.layers.0.self_attn.k_proj.ia3_l", 2, {8, 1}},
    {"ia3", "base_model.model.model.layers.1.self_attn.v_proj.ia3_l", 2, {8, 1}},
    {"ia3", "base_model.model.model.layers.1.mlp.down_proj.ia3_l", 2, {1, 24}},
    {"prompt", "prompt_embeddings", 2, {3, 16}},
    {"prompt", "base_model.score.weight", 2, {3, 16}},
    {"prefix", "prompt_embeddings", 2, {3, 32}},
    {"prefix_mlp", "prompt_embeddings", 2, {3, 32}},
    {"prefix", "base_model.score.bias", 1, {3, 0}},
};

static const char *adapter_path(void) { return in_folder("adapter_model.safetensors"); }

static void check_names(const char *method) {
    ml_archive *archive = NULL;
    REQUIRE(ml_archive_load(adapter_path(), NULL, &archive, NULL) == ML_OK);
    for (size_t i = 0; i < sizeof in_files / sizeof *in_files; i++) {
        if (strcmp(in_files[i].method, method) != 0) continue;
        const ml_array *array = ml_archive_find_array(archive, in_files[i].name);
        CHECK(array && array->n_dims == in_files[i].n_dims && array->shape[0] == in_files[i].shape[0] &&
              (array->n_dims == 1 || array->shape[1] == in_files[i].shape[1]));
        if (!array) printf("no %s\n", in_files[i].name);
    }
    ml_archive_free(archive);
}

/* Saves parameters that are sines, and loads them into a run with another seed: the same loss. */
static void save_and_load(const char *method, const char *load_as) {
    efficient e = of_kind(method);
    tuning_settings set = settings();
    tuning t;
    set_flags(&e);
    set.save = adapter_path();
    REQUIRE(open_method(&t, &e, &set));
    sines_of_parameters(&t);
    REQUIRE(new_optimizer(&t));
    float loss = backward(&t);
    REQUIRE(efficient_save(&t, set.save));
    close_method(&t, &e);
    check_names(method);
    if (!load_as) return;
    e = of_kind(load_as);
    if (!strstr(load_as, "lora")) set_flags(&e); /* its file says them */
    set.seed = 7;
    set.save = NULL;
    e.set.load = adapter_path();
    REQUIRE(open_method(&t, &e, &set));
    REQUIRE(new_optimizer(&t));
    CHECK_NEAR(backward(&t), loss, 0, 2e-6);
    close_method(&t, &e);
}

TEST(files_have_pefts_names_and_load_again) {
    static const char *const names[] = {"lora", "rslora", "dora", "ia3", "prompt", "prefix"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int failed = test_current_failed;
        save_and_load(names[i], names[i]);
        if (test_current_failed > failed) printf("... with --method %s\n", names[i]);
    }
    save_and_load("prefix_mlp", "prefix");
}

/* Another method's file, or another scale, is refused. */
TEST(a_file_must_fit_the_method) {
    char flags[2048];
    int status;
    save_and_load("dora", NULL); /* alpha 6, rank 2 */
    snprintf(flags, sizeof flags, "--method ia3 --load %s", adapter_path());
    CHECK(strstr(run(flags, &status), "it is \"LORA\", not \"IA3\" (--method ia3)") && status == 1);
    snprintf(flags, sizeof flags, "--method dora --rank 2 --targets q,v,w2 --load %s", adapter_path());
    CHECK(strstr(run(flags, &status), "its alpha is 6, not 4 (--alpha)") && status == 1);
    snprintf(flags, sizeof flags, "--method dora --rank 3 --targets q --load %s", adapter_path());
    CHECK(strstr(run(flags, &status), "q_proj.lora_A.weight is (2, 16), not (3, 16)") && status == 1);
    snprintf(flags, sizeof flags, "--method lora --rank 2 --load %s", adapter_path());
    CHECK(strstr(run(flags, &status), "the adapter's file says its --rank") && status == 1);
    snprintf(flags, sizeof flags, "--method dora --rank 2 --alpha 6 --targets q,v --load %s", adapter_path());
    const char *said = run(flags, &status); /* it has w2, too */
    CHECK(strstr(said, "it has base_model.model.model.layers.") && strstr(said, ".mlp.down_proj.lora_") &&
          strstr(said, ", too, which --method dora with these --targets has no place for") && status == 1);
    save_and_load("prompt", NULL); /* three tokens */
    snprintf(flags, sizeof flags, "--method prompt --length 4 --load %s", adapter_path());
    CHECK(strstr(run(flags, &status), "prompt_embeddings is (3, 16), not (4, 16)") && status == 1);
}

/* DoRA has one rank and one scale, alpha / r: a file that says otherwise is refused. */
TEST(other_scales_of_dora_are_refused) {
    static const char *const keys[] = {"\"use_rslora\": true", "\"alpha_pattern\": { \"q_proj\": 8}",
                                       "\"rank_pattern\": {\n\"q_proj\": 8}",
                                       "\"use_rslora\": false, \"rank_pattern\": { }"};
    char flags[2048];
    save_and_load("dora", NULL);
    snprintf(flags, sizeof flags, "--method dora --rank 2 --targets q,v,w2 --alpha 6 --epochs 0 --load %s",
             adapter_path());
    for (int i = 0; i < 4; i++) {
        char config[256];
        int status,
            n = snprintf(config, sizeof config, "{\"peft_type\": \"LORA\", \"lora_alpha\": 6, %s}", keys[i]);
        write_file(in_folder("adapter_config.json"), config, (size_t)n);
        int is_refused = strstr(run(flags, &status), "is not known to --method dora") != NULL;
        CHECK(is_refused == (i < 3) && status == is_refused);
    }
}

/* The configuration of another adapter stays. */
TEST(configurations_of_other_adapters_are_spared) {
    char flags[2048];
    int status;
    save_and_load("ia3", NULL);
    snprintf(flags, sizeof flags, "--method ia3 --epochs 0 --save %s", in_folder("new.safetensors"));
    const char *said = run(flags, &status);
    CHECK(status == 1 && strstr(said, "adapter_config.json would be lost, which is not of") &&
          strstr(said, "--save") && !exists(in_folder("new.safetensors")));
    snprintf(flags, sizeof flags, "--method ia3 --epochs 0 --save %s", adapter_path());
    CHECK(run(flags, &status) && status == 0);
}

/* What a model's file says of mask and norm counts as what the options say. */
TEST(models_that_peft_does_not_know_are_refused) {
    static const char *const words[2] = {"Hugging Face's Llama is causal",
                                         "Hugging Face's Llama has RMS norms"};
    for (int i = 0; i < 2; i++) {
        ml_model_load_desc load = {0};
        ml_model *model = NULL;
        char flags[2048];
        int status, n;
        if (i == 0) load.mask = ML_MASK_FULL;
        if (i == 1) load.norm = ML_NORM_LAYER;
        REQUIRE(ml_model_load(paths[0], &load, &model, NULL) == ML_OK);
        CHECK(ml_model_save(model, in_folder("other.gguf"), NULL, NULL) == ML_OK);
        ml_model_free(model);
        n = snprintf(flags, sizeof flags, "--epochs 0 --method ia3 --model %s", in_folder("other.gguf"));
        snprintf(flags + n, sizeof flags - (size_t)n, " --save %s", adapter_path());
        CHECK(strstr(run(flags, &status), words[i]) && status == 1);
        strcat(flags, " --mode llama");
        CHECK(run(flags, &status) && status == 0);
    }
}

/* An adapter and its classifier, in the library's own format. */
static void save_adapter(const char *path, const char *pooling, const char *mask, const char *norm) {
    efficient e = of_kind("lora");
    tuning_settings set = settings();
    tuning t;
    ml_error error;
    set.pooling = pooling;
    set.mask = mask;
    set.norm = norm;
    REQUIRE(open_method(&t, &e, &set));
    ml_save_desc desc = {ML_GGUF, ML_TYPE_NONE, NULL, tuning_head_object(&t)};
    CHECK(desc.head && ml_lora_save(e.lora, t.model, path, &desc, &error) == ML_OK);
    ml_head_free((ml_head *)desc.head);
    close_method(&t, &e);
}

TEST(a_loaded_classifier_reads_what_it_was_trained_to) {
    static const char *const names[2] = {"mean", "last"};
    char flags[2048];
    int status;
    for (int i = 0; i < 4; i++) {
        const char *saved_as = names[i / 2], *loaded_as = names[i % 2];
        save_adapter(in_folder("head.gguf"), saved_as, NULL, NULL);
        snprintf(flags, sizeof flags, "--method lora --epochs 0 --pooling %s --load %s", loaded_as,
                 in_folder("head.gguf"));
        const char *said = run(flags, &status);
        CHECK(status == (i % 3 != 0));
        if (i == 1) CHECK(strstr(said, "head.gguf: its classifier has --pooling mean, not last"));
        if (i == 2) CHECK(strstr(said, "head.gguf: its classifier has --pooling last, not mean"));
    }
}

/* The model computes as the adapter's file says, unless the options say something else. */
TEST(an_adapter_says_its_mask_and_norm) {
    efficient e = of_kind("lora");
    tuning_settings set = settings();
    tuning t;
    char flags[2048], path[600];
    int status;
    snprintf(path, sizeof path, "%s", in_folder("other_way.gguf"));
    save_adapter(path, "last", "full", "layer");
    e.set.load = path;
    REQUIRE(open_method(&t, &e, &set));
    CHECK(t.model->config.mask == ML_MASK_FULL && t.model->config.norm == ML_NORM_LAYER);
    close_method(&t, &e);
    snprintf(flags, sizeof flags, "--method lora --mask causal --load %s", path);
    const char *said = run(flags, &status);
    CHECK(status == 1 && strstr(said, "other_way.gguf: not for this model and --norm layer, --mask causal"));
    snprintf(flags, sizeof flags, "--method lora --mode llama --load %s", path);
    said = run(flags, &status);
    CHECK(status == 1 && strstr(said, "other_way.gguf: not for this model and --norm rms, --mask causal"));
    said = run("--method lora --load missing.gguf", &status);
    CHECK(status == 1 && strstr(said, "missing.gguf"));
}

/* With positions that are stretched, a prefix has no file. */
TEST(prefixes_need_plain_positions) {
    efficient e = of_kind("prefix");
    tuning_settings set = settings();
    tuning t;
    set.save = adapter_path();
    REQUIRE(open_method(&t, &e, &set));
    t.model->config.rope_kind = ML_ROPE_NTK;
    capture_begin();
    int is_set_up = efficient_setup(&t);
    CHECK(strstr(capture_end(), "stretches its rotary positions") && !is_set_up);
    close_method(&t, &e);
}

/* Vectors do not decay: IA3's would go to 0, where it begins with 1. */
TEST(vectors_do_not_decay) {
    efficient e = of_kind("ia3");
    tuning_settings set = settings();
    tuning t;
    REQUIRE(open_method(&t, &e, &set));
    for (int i = 0; i < t.n_parameters; i++)
        CHECK((t.parameters[i]->group == TUNING_NO_DECAY) == !strstr(t.parameters[i]->name, "head"));
    close_method(&t, &e);
}

/* An array of the file that a method saves with parameters that are sines, and the parameter. */
static float *saved(const char *method, const char *array, const char *parameter, float *ours) {
    efficient e = of_kind(method);
    tuning_settings set = settings();
    ml_archive *archive = NULL;
    tuning t;
    set_flags(&e);
    set.save = adapter_path();
    if (!open_method(&t, &e, &set)) return NULL;
    sines_of_parameters(&t);
    CHECK(efficient_save(&t, set.save));
    const ml_tensor *x = tuning_find(&t, parameter)->tensor;
    memcpy(ours, x->data, x->rows * x->cols * sizeof *ours);
    close_method(&t, &e);
    CHECK(ml_archive_load(adapter_path(), NULL, &archive, NULL) == ML_OK);
    const ml_array *from = archive ? ml_archive_find_array(archive, array) : NULL;
    size_t n = from ? ml_array_count(from) : 0;
    float *theirs = (float *)malloc(n * sizeof *theirs + 1);
    if (!from || ml_array_read_floats(from, theirs, n)) free(theirs), theirs = NULL;
    ml_archive_free(archive);
    return theirs;
}

/* Hugging Face's Llama rotates number j of a head with number j + hd / 2: with heads of 4 its rows 0, 1, 2, 3 are 0,
   2, 1, 3 here. */
TEST(rows_of_q_and_k_are_in_hugging_faces_order) {
    static const int row_here[8] = {0, 2, 1, 3, 4, 6, 5, 7};
    float ours[256], *b = saved("dora", "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
                                "1.q.lora_B", ours);
    REQUIRE(b);
    for (int i = 0; i < 8 * 2; i++) CHECK(b[i] == ours[row_here[i / 2] * 2 + i % 2]);
    free(b);
    float *m = saved("dora", "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector",
                     "1.q.lora_magnitude_vector", ours);
    REQUIRE(m);
    for (int i = 0; i < 8; i++) CHECK(m[i] == ours[row_here[i]]);
    free(m);
    float *k = saved("ia3", "base_model.model.model.layers.0.self_attn.k_proj.ia3_l", "0.k.ia3_l", ours);
    REQUIRE(k);
    for (int i = 0; i < 8; i++) CHECK(k[i] == ours[row_here[i]]);
    free(k);
    float *v = saved("ia3", "base_model.model.model.layers.0.self_attn.v_proj.ia3_l", "0.v.ia3_l", ours);
    REQUIRE(v);
    for (int i = 0; i < 8; i++) CHECK(v[i] == ours[i]);
    free(v);
}

/* The score of a query with a prefix key. Here: the query rotated by its position i, neighbors as pairs; the key not.
   In Hugging Face: query at position i + P, its numbers half a head apart, and the key as it is in the cache. */
TEST(a_prefix_key_gives_the_same_scores_in_peft) {
    enum { P = 3, HD = 4, WIDTH = 32, KV = 8 };
    float ours[P * KV], *file = saved("prefix", "prompt_embeddings", "1.k.prefix", ours);
    const double q[HD] = {0.3, -1.1, 0.7, 0.4};
    REQUIRE(file);
    for (int i = 0; i < 5; i++)
        for (int p = 0; p < P; p++)
            for (int head = 0; head < 2; head++) {
                double here = 0, there = 0;
                for (int j = 0; j < HD / 2; j++) {
                    double angle = i / pow(10000, 2.0 * j / HD), later = (i + P) / pow(10000, 2.0 * j / HD);
                    double a = q[2 * j], b = q[2 * j + 1];
                    const float *k = ours + p * KV + head * HD;
                    const float *cached =
                        file + p * WIDTH + 2 * KV + head * HD; /* layer 1: numbers 16 to 23 */
                    here += (a * cos(angle) - b * sin(angle)) * (double)k[2 * j] +
                            (a * sin(angle) + b * cos(angle)) * (double)k[2 * j + 1];
                    there += (a * cos(later) - b * sin(later)) * (double)cached[j] +
                             (a * sin(later) + b * cos(later)) * (double)cached[j + HD / 2];
                }
                CHECK_NEAR(there, here, 1e-6, 0); /* F32 in the file */
            }
    free(file);
}

/* ---- what does not go together ---- */

TEST(wrong_combinations_are_refused_with_the_reason) {
    static const struct {
        const char *flags, *reason;
    } wrong[] = {
        {"--method lara", "--method is full, head, last"},
        {"--method prefix --rank 4", "--rank means nothing to --method prefix"},
        {"--method ia3 --targets q", "--targets means nothing to --method ia3"},
        {"--method lora --rank -1", "--rank must be positive"},
        {"--method dora --targets q,w9", "there is no matrix \"w9\"; there are q, k, v"},
        {"--method dora --targets ,", "there is no matrix \"\""},
        {"--method last --layers 3", "--layers 3: the model has 2"},
        {"--method prompt --length 64", "leave no room in the context of 64"},
        {"--method dora --save x.gguf", "PEFT's format is a .safetensors"},
        {"--method ia3 --pooling mean --save x.safetensors", "reads the last token, not --pooling mean"},
        {"--method adapter --save x.gguf", "that a model file has no place for"},
        {"--method prefix --mask full --save x.safetensors", "Hugging Face's Llama is causal"},
        {"--method ia3 --norm layer --save x.safetensors", "Hugging Face's Llama has RMS norms"},
        {"--method prefix_mlp --load x.safetensors", "use --method prefix"},
        {"--method adapter --load x.safetensors", "not for --method adapter"},
        {"--method ia3 --load missing.safetensors", "missing.safetensors"},
        {"--method ia3 --pooling mean --load x.safetensors",
         "--load: PEFT's classifier reads the last token"},
        {"--method prefix --mode reference", "--mode reference: pads its rows"},
        {"--method ia3 --mode llama --norm layer", "--mode llama is --norm rms --mask causal"},
        {"--method ia3 --mode plain", "--mode is llama or reference, not plain"},
        {"--method lora --rank 0", "--rank must be positive"},
        {"--method lora --alpha 0", "--alpha must be positive"},
        {"--method prefix --length=0", "--length must be positive"},
        {"--method last --layers 0", "--layers must be positive"},
        {"--method adapter --bottleneck 0", "--bottleneck must be positive"},
        {"--method parallel --scale 0", "--scale must be positive"},
        {"--method loraplus --ratio 0", "--ratio must be positive"},
        {"--method ia3 --rank 0", "--rank means nothing to --method ia3"},
        {"--method lora --save_model x.gguf", "lora leaves the model's own weights as they are"},
        {"--method head --save_model x.gguf", "head leaves the model's own weights as they are"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int status;
        const char *said = run(wrong[i].flags, &status);
        CHECK(status == 1 || status == 2);
        CHECK(strstr(said, wrong[i].reason));
        if (!strstr(said, wrong[i].reason)) printf("%s: %s", wrong[i].flags, said);
    }
}

/* ---- whole runs ---- */

static const char *last_line(const char *path) {
    static char line[2048];
    FILE *file = fopen(path, "r");
    *line = 0;
    while (file && fgets(line, sizeof line, file)) continue;
    if (file) fclose(file);
    return line;
}

/* Three sentences are learned by heart; the row of the CSV says so; and the best weights are those that are saved. */
TEST(a_run_learns_reports_and_saves) {
    char flags[2048], csv[600];
    int status;
    snprintf(csv, sizeof csv, "%s", in_folder("runs.csv"));
    snprintf(flags, sizeof flags,
             "--method dora --targets q,v --epochs 30 --lr 2e-2 --batch 2 --csv %s --save %s", csv,
             adapter_path());
    const char *said = run(flags, &status);
    CHECK(status == 0);
    if (status) printf("%s", said);
    CHECK(strstr(said, "test dora: dev 1.000, test 1.000; 995 of"));
    const char *row = last_line(csv);
    CHECK(strncmp(row, "test,dora,model.gguf,sst,1,1.0000,1.0000,,995,", 46) == 0);
    CHECK(strstr(row, ",\"--model ") && strstr(row, " --batch 2\"") && !strstr(row, "--csv"));
    snprintf(flags, sizeof flags, "--method dora --targets q,v --epochs 0 --seed 5 --load %s --csv %s",
             adapter_path(), csv);
    CHECK(strstr(run(flags, &status), "test dora: dev 1.000, test 1.000"));
    CHECK(strncmp(last_line(csv), "test,dora,model.gguf,sst,5,1.0000,1.0000,", 41) == 0);
}

int main(void) {
    if (!folder_begin("efficient")) return 1;
    make_files();
    RUN(losses_and_gradients_are_pytorchs);
    RUN(methods_begin_with_the_model_as_it_is);
    RUN(files_have_pefts_names_and_load_again);
    RUN(a_file_must_fit_the_method);
    RUN(other_scales_of_dora_are_refused);
    RUN(configurations_of_other_adapters_are_spared);
    RUN(models_that_peft_does_not_know_are_refused);
    RUN(a_loaded_classifier_reads_what_it_was_trained_to);
    RUN(an_adapter_says_its_mask_and_norm);
    RUN(prefixes_need_plain_positions);
    RUN(vectors_do_not_decay);
    RUN(rows_of_q_and_k_are_in_hugging_faces_order);
    RUN(a_prefix_key_gives_the_same_scores_in_peft);
    RUN(wrong_combinations_are_refused_with_the_reason);
    RUN(a_run_learns_reports_and_saves);
    return test_report("test_efficient");
}
