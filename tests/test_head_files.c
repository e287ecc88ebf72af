/* Heads in files: a classifier comes back, to the bit, from the four places where it is kept, and the model or
   adapter beside it still loads; its tensors and keys are those of llama.cpp, Hugging Face and PEFT; damaged ones are
   refused. */
#include "preamble.h"
#include "build_files.h"
#include "folder.h"

enum { DIM = 8, CLASSES = 6 };

/* Equal ones, an empty one, one with all that JSON escapes, and one with dots. */
static const char *const names[CLASSES] = {"very \"bad\"",  "so\\so\n\t\x01", "",
                                           "g\xc3\xb6od.1", "same",           "same"};

static ml_model *some_model(int dim) {
    ml_model_create_desc desc;
    ml_random random;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.config.dim = dim;
    desc.config.hidden_dim = 12;
    desc.config.n_layers = desc.config.n_kv_heads = 1;
    desc.config.n_heads = 2;
    desc.config.vocab_size = 11;
    desc.config.max_seq_len = 16;
    desc.random = &random;
    ml_random_seed(&random, 5);
    if (ml_model_create(&desc, &model, &error)) printf("%s\n", error.text);
    return model;
}

static ml_head *some_head(const ml_model *model, const char *const *labels, ml_pooling pooling, int no_bias) {
    ml_head_create_desc desc;
    ml_random random;
    ml_head *head = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.n_classes = CLASSES;
    desc.labels = labels;
    desc.pooling = pooling;
    desc.no_bias = no_bias;
    desc.random = &random;
    ml_random_seed(&random, 8);
    if (ml_head_create(model, &desc, &head, &error)) printf("%s\n", error.text);
    return head;
}

static ml_lora *some_lora(const ml_model *model) {
    ml_lora_create_desc desc;
    ml_random random;
    ml_lora *lora = NULL;
    memset(&desc, 0, sizeof desc);
    desc.random = &random;
    ml_random_seed(&random, 7);
    CHECK(ml_lora_create(model, &desc, &lora, NULL) == ML_OK);
    return lora;
}

static int same_tensor(const ml_tensor *a, const ml_tensor *b) {
    if (!a->data || !b->data) return !a->data && !b->data;
    return a->type == ML_F32 && b->type == ML_F32 && a->rows == b->rows && a->cols == b->cols &&
           memcmp(a->data, b->data, a->rows * a->cols * 4) == 0;
}

static int same_head(const ml_head *a, const ml_head *b) {
    int i, same = a->n_classes == b->n_classes && a->pooling == b->pooling && !a->labels == !b->labels &&
                  same_tensor(&a->weight, &b->weight) && same_tensor(&a->bias, &b->bias);
    for (i = 0; same && a->labels && i < a->n_classes; i++) same = strcmp(a->labels[i], b->labels[i]) == 0;
    return same;
}

/* ---- the four places ---- */

enum { MODEL_GGUF, MODEL_HF, LORA_GGUF, LORA_PEFT, PLACES };

static int is_safetensors(int place) { return place == MODEL_HF || place == LORA_PEFT; }

static const char *path_of(int place) {
    static const char *const paths[PLACES] = {"m.gguf", "model.safetensors", "a.gguf",
                                              "adapter_model.safetensors"};
    return in_folder(paths[place]);
}

static const char *json_of(int place) {
    return in_folder(place == LORA_PEFT ? "adapter_config.json" : "config.json");
}

static ml_result save(int place, const ml_model *model, const ml_head *head, ml_error *error) {
    ml_save_desc desc;
    ml_lora *lora = some_lora(model);
    ml_result result;
    memset(&desc, 0, sizeof desc);
    desc.format = is_safetensors(place) ? ML_SAFETENSORS : ML_GGUF;
    desc.head = head;
    result = place >= LORA_GGUF ? ml_lora_save(lora, model, path_of(place), &desc, error)
                                : ml_model_save(model, path_of(place), &desc, error);
    ml_lora_free(lora);
    return result;
}

/* The file is still what it would be without a head. */
static void check_beside(int place, const ml_model *model) {
    ml_error error;
    int i;
    if (place >= LORA_GGUF) {
        ml_lora *lora = some_lora(model), *loaded = NULL;
        if (ml_lora_load(path_of(place), model, NULL, &loaded, &error)) printf("%s\n", error.text);
        REQUIRE(loaded && loaded->n_tensors == lora->n_tensors);
        for (i = 0; i < lora->n_tensors; i++) CHECK(same_tensor(&lora->tensors[i], &loaded->tensors[i]));
        ml_lora_free(lora);
        ml_lora_free(loaded);
    } else {
        ml_model *loaded = NULL;
        if (ml_model_load(path_of(place), NULL, &loaded, &error)) printf("%s\n", error.text);
        REQUIRE(loaded && loaded->n_tensors == model->n_tensors);
        for (i = 0; i < model->n_tensors; i++) CHECK(same_tensor(&model->tensors[i], &loaded->tensors[i]));
        ml_model_free(loaded);
    }
}

TEST(round_trips) {
    ml_model *model = some_model(DIM);
    int place, variant;
    REQUIRE(model);
    for (place = 0; place < PLACES; place++)
        for (variant = 0; variant < 8; variant++) {
            ml_head *loaded = NULL, *head = some_head(model, variant & 1 ? names : NULL,
                                                      variant & 2 ? ML_POOL_MEAN : ML_POOL_LAST, variant & 4);
            ml_error error;
            REQUIRE(head);
            CHECK(save(place, model, head, &error) == ML_OK && error.code == ML_OK);
            if (ml_head_load(path_of(place), model, NULL, &loaded, &error)) printf("%s\n", error.text);
            REQUIRE(loaded && error.code == ML_OK);
            CHECK(same_head(head, loaded));
            if (!same_head(head, loaded)) printf("place %d, variant %d\n", place, variant);
            check_beside(place, model);
            ml_head_free(head);
            ml_head_free(loaded);
        }
    ml_model_free(model);
}

static int put_bytes(void *user, const void *data, size_t n) { return put((bytes *)user, data, n), 1; }

/* Without its model: one file, or the same bytes to an output. */
TEST(alone) {
    ml_model *model = some_model(DIM), *wider = some_model(2 * DIM);
    REQUIRE(model && wider);
    for (int variant = 0; variant < 8; variant++) {
        const char *const *labels = variant & 1 ? names : NULL;
        ml_pooling pooling = variant & 2 ? ML_POOL_MEAN : ML_POOL_LAST;
        ml_head *head = some_head(model, labels, pooling, variant & 4), *loaded = NULL;
        bytes got = {NULL, 0, 0};
        ml_output output = {put_bytes, &got};
        ml_error error;
        REQUIRE(head);
        CHECK(ml_head_save(head, in_folder("head.gguf"), &error) == ML_OK && error.code == ML_OK);
        CHECK(ml_head_save_to(head, &output, NULL) == ML_OK);
        CHECK(ml_head_load(in_folder("head.gguf"), wider, NULL, &loaded, &error) == ML_ERROR_MISMATCH);
        REQUIRE(ml_head_load(in_folder("head.gguf"), model, NULL, &loaded, &error) == ML_OK);
        CHECK(same_head(head, loaded));
        ml_head_free(loaded);
        REQUIRE(ml_head_load_memory(got.data, got.size, model, NULL, &loaded, NULL) == ML_OK);
        CHECK(same_head(head, loaded));
        bytes file = read_file(in_folder("head.gguf"));
        CHECK(file.size == got.size && file.size < 2000 && memcmp(file.data, got.data, got.size) == 0);
        free_bytes(&file), free_bytes(&got);
        ml_head_free(head), ml_head_free(loaded);
    }
    ml_head *head = some_head(model, NULL, ML_POOL_MAX, 0);
    CHECK(ml_head_save(head, in_folder("head.gguf"), NULL) == ML_ERROR_UNSUPPORTED);
    CHECK(ml_head_save(NULL, in_folder("head.gguf"), NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_head_save_to(head, NULL, NULL) == ML_ERROR_ARGUMENT);
    ml_head_free(head);
    ml_model_free(model), ml_model_free(wider);
}

/* Files without a head say so, and have no trace of one. */
TEST(without_head) {
    ml_model *model = some_model(DIM);
    int place;
    REQUIRE(model);
    for (place = 0; place < PLACES; place++) {
        ml_head *head = (ml_head *)(void *)model;
        ml_error error;
        CHECK(save(place, model, NULL, NULL) == ML_OK);
        CHECK(ml_head_load(path_of(place), model, NULL, &head, &error) == ML_ERROR_MISMATCH && !head);
        CHECK(strstr(error.text, "no head") != NULL);
        check_beside(place, model);
        if (is_safetensors(place)) {
            bytes json = read_file(json_of(place));
            put_u8(&json, 0);
            CHECK(json.size > 100 && !strstr((char *)json.data, "label") &&
                  !strstr((char *)json.data, "pooling"));
            free_bytes(&json);
        }
    }
    ml_model_free(model);
}

/* What is in a file, by the reader that knows nothing of heads. */
TEST(names_in_files) {
    static const char *const expected[PLACES][2] = {
        {"cls.output.weight", "cls.output.bias"},
        {"score.weight", "score.bias"},
        {"cls.output.weight", "cls.output.bias"},
        {"base_model.model.score.weight", "base_model.model.score.bias"}};
    ml_model *model = some_model(DIM);
    int place, i;
    REQUIRE(model);
    for (place = 0; place < PLACES; place++) {
        ml_head *head = some_head(model, names, place % 2 ? ML_POOL_LAST : ML_POOL_MEAN, 0);
        ml_archive *archive = NULL;
        const ml_array *weight, *bias;
        REQUIRE(head && save(place, model, head, NULL) == ML_OK);
        REQUIRE(ml_archive_load(path_of(place), NULL, &archive, NULL) == ML_OK);
        weight = ml_archive_find_array(archive, expected[place][0]);
        bias = ml_archive_find_array(archive, expected[place][1]);
        REQUIRE(weight && bias);
        CHECK(weight->type == ML_F32 && weight->n_dims == 2 && weight->shape[0] == CLASSES &&
              weight->shape[1] == DIM &&
              are_floats(weight->data, (const float *)head->weight.data, CLASSES * DIM));
        CHECK(bias->type == ML_F32 && bias->n_dims == 1 && bias->shape[0] == CLASSES);
        if (!is_safetensors(place)) {
            const ml_value *labels = ml_archive_find_value(archive, "llama.classifier.output_labels");
            const ml_value *pooling = ml_archive_find_value(archive, "llama.pooling_type");
            size_t at = 0;
            REQUIRE(labels && pooling);
            CHECK(pooling->kind == ML_VALUE_INT && pooling->i == 1); /* llama.cpp: mean */
            CHECK(labels->kind == ML_VALUE_LIST && labels->list_type == 8 && labels->length == CLASSES);
            for (i = 0; i < CLASSES; i++) {
                CHECK((unsigned char)labels->s[at] == strlen(names[i]) &&
                      memcmp(labels->s + at + 8, names[i], strlen(names[i])) == 0);
                at += 8 + strlen(names[i]);
            }
        }
        ml_archive_free(archive);
        ml_head_free(head);
    }
    ml_model_free(model);
}

/* `begin` bytes from the file's begin on a text, which has all that is wanted, and not `without`. */
static void check_text(const char *path, size_t begin, const char *const *wanted, const char *without) {
    bytes file = read_file(path);
    put_u8(&file, 0);
    const char *text = (const char *)file.data + begin;
    for (; *wanted; wanted++) {
        CHECK(strstr(text, *wanted) != NULL);
        if (!strstr(text, *wanted)) printf("%s lacks %s:\n%s", path, *wanted, text);
    }
    CHECK(!without || !strstr(text, without));
    free_bytes(&file);
}

TEST(json) {
    static const char *const hugging_face[] = {
        "\"architectures\": [\"LlamaForSequenceClassification\"],",
        "\"num_labels\": 6,",
        "\"minillama_pooling\": \"mean\"",
        "\"id2label\": {\"0\": \"very \\\"bad\\\"\", \"1\": \"so\\\\so\\u000a\\u0009\\u0001\", \"2\": \"\", "
        "\"3\": \"g\xc3\xb6od.1\", \"4\": \"same\", \"5\": \"same\"}",
        "\"label2id\": {\"very \\\"bad\\\"\": 0, \"so\\\\so\\u000a\\u0009\\u0001\": 1, \"g\xc3\xb6od.1\": 3, "
        "\"same\": 4}",
        NULL};
    static const char *const peft[] = {"\"modules_to_save\": [\"score\"],", "\"task_type\": \"SEQ_CLS\",",
                                       NULL};
    static const char *const metadata[] = {
        "\"minillama_mask\":\"causal\",\"minillama_pooling\":\"mean\",",
        "\"minillama_labels.0\":\"very "
        "\\\"bad\\\"\",\"minillama_labels.1\":\"so\\\\so\\u000a\\u0009\\u0001\","
        "\"minillama_labels.2\":\"\",\"minillama_labels.3\":\"g\xc3\xb6od.1\"",
        NULL};
    ml_model *model = some_model(DIM);
    ml_head *head;
    REQUIRE(model);
    head = some_head(model, names, ML_POOL_MEAN, 0);
    REQUIRE(head && save(MODEL_HF, model, head, NULL) == ML_OK &&
            save(LORA_PEFT, model, head, NULL) == ML_OK);
    check_text(json_of(MODEL_HF), 0, hugging_face, NULL);
    check_text(json_of(LORA_PEFT), 0, peft, "minillama"); /* older PEFT refuses keys that it does not know */
    check_text(path_of(LORA_PEFT), 8, metadata, NULL);
    ml_head_free(head);
    ml_model_free(model);
}

/* Labels so long that they could not be keys of our own reader: the file is written, and can be read. */
/* Python would read neither config.json nor the pickle. */
TEST(labels_that_are_not_utf8) {
    static const char *const labels[] = {"good", "gem\xfctlich", "bad", "x", "y", "z"};
    ml_model *model = some_model(DIM);
    REQUIRE(model && CLASSES <= 6);
    ml_head *head = some_head(model, labels, ML_POOL_LAST, 0);
    for (int place = 0; place < PLACES; place++) {
        ml_error error;
        remove(path_of(place));
        CHECK(save(place, model, head, &error) == ML_ERROR_ARGUMENT);
        CHECK(strstr(error.text, "label 1 of the head is not UTF-8"));
        FILE *written = fopen(path_of(place), "rb");
        CHECK(!written);
        if (written) fclose(written);
    }
    ml_head_free(head);
    ml_model_free(model);
}

TEST(long_labels) {
    static char text[CLASSES][2000];
    const char *labels[CLASSES];
    ml_model *model = some_model(DIM);
    ml_head *head;
    int place, i;
    for (i = 0; i < CLASSES; i++) {
        memset(text[i], 'a' + i, sizeof text[i] - 1);
        labels[i] = text[i];
    }
    REQUIRE(model);
    head = some_head(model, labels, ML_POOL_LAST, 0);
    for (place = 0; place < PLACES; place++) {
        ml_head *loaded = NULL;
        CHECK(save(place, model, head, NULL) == ML_OK);
        CHECK(ml_head_load(path_of(place), model, NULL, &loaded, NULL) == ML_OK);
        CHECK(loaded && same_head(head, loaded));
        check_beside(place, model);
        ml_head_free(loaded);
    }
    ml_head_free(head);
    ml_model_free(model);
}

/* ---- files of others ---- */

static ml_load_desc with_json(const char *json) {
    ml_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.config_json = json;
    desc.config_json_size = json ? strlen(json) : 0;
    return desc;
}

static ml_result load_memory(const bytes *file, const char *json, ml_head **head, ml_error *error) {
    ml_model *model = some_model(DIM);
    ml_load_desc desc = with_json(json);
    ml_result result = ml_head_load_memory(file->data, file->size, model, &desc, head, error);
    CHECK((*head != NULL) == (result == ML_OK) && error->code == result && (!result || error->text[0]));
    ml_model_free(model);
    return result;
}

/* PyTorch's dictionaries, by the names that programs give a head, under any prefix. */
TEST(pickled) {
    static const char *const weights[] = {"score.weight",
                                          "classifier_head.weight",
                                          "module.score.weight",
                                          "model_state.module.classifier_head.weight",
                                          "base_model.model.score.weight",
                                          "base_model.model.score.modules_to_save.default.weight",
                                          "_orig_mod.classifier_head.weight"};
    size_t i;
    int has_bias;
    for (i = 0; i < sizeof weights / sizeof *weights; i++)
        for (has_bias = 0; has_bias < 2; has_bias++) {
            bytes pickle, file;
            ml_head *head = NULL;
            ml_error error;
            pk_tensor_desc bias;
            char name[100];
            memset(&pickle, 0, sizeof pickle);
            memset(&bias, 0, sizeof bias);
            bias.storage = "FloatStorage", bias.key = "0", bias.n_storage = 24, bias.offset = 5;
            bias.n_dims = 1, bias.shape[0] = 3, bias.stride[0] = 1;
            snprintf(name, sizeof name, "%.*s.bias", (int)(strlen(weights[i]) - 7), weights[i]);
            pk_begin(&pickle);
            put_text(&pickle, "}(");
            pk_text(&pickle, weights[i]);
            pk_matrix(&pickle, "0", 3, DIM);
            if (has_bias) pk_text(&pickle, name), pk_tensor(&pickle, &bias);
            put_text(&pickle, "u.");
            file = pt_file(&pickle, 24);
            CHECK(load_memory(&file, NULL, &head, &error) == ML_OK);
            REQUIRE(head);
            CHECK(head->n_classes == 3 && !head->labels && head->pooling == ML_POOL_LAST);
            CHECK(((float *)head->weight.data)[23] == 23 && (head->bias.data != NULL) == has_bias);
            if (has_bias) CHECK(((float *)head->bias.data)[2] == 7);
            ml_head_free(head);
            free_bytes(&file);
            free_bytes(&pickle);
        }
}

/* PEFT keeps two copies of a module that was trained: that of what was before does not count, for a head and beside the
   pairs of an adapter. */
TEST(trained_copies) {
    static const char header[] =
        "{\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight\":{"
        "\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
        "\"base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight\":{"
        "\"dtype\":\"F32\",\"shape\":[8,2],\"data_offsets\":[0,64]},"
        "\"base_model.model.score.original_module.weight\":{"
        "\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[0,64]},"
        "\"base_model.model.score.original_module.bias\":{"
        "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"base_model.model.score.modules_to_save.default.weight\":{"
        "\"dtype\":\"F32\",\"shape\":[2,8],\"data_offsets\":[64,128]},"
        "\"base_model.model.score.modules_to_save.default.bias\":{"
        "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[64,72]}}";
    ml_load_desc desc = with_json("{\"r\":2,\"lora_alpha\":4}");
    ml_model *model = some_model(DIM);
    ml_lora *lora = NULL;
    ml_head *head = NULL;
    ml_error error = {ML_OK, ""};
    bytes data, file;
    REQUIRE(model && DIM == 8);
    memset(&data, 0, sizeof data);
    put_floats(&data, 0, 32);
    file = safetensors_file(header, data.data, data.size);
    CHECK(ml_lora_load_memory(file.data, file.size, model, &desc, &lora, &error) == ML_OK);
    if (!lora) printf("%s\n", error.text);
    CHECK(ml_head_load_memory(file.data, file.size, model, &desc, &head, &error) == ML_OK);
    if (!head) printf("%s\n", error.text);
    CHECK(head && ((float *)head->weight.data)[1] == 17 && ((float *)head->bias.data)[1] == 17);
    ml_head_free(head);
    ml_lora_free(lora);
    ml_model_free(model);
    free_bytes(&file), free_bytes(&data);
}

/* ---- the course's files ---- */

/* The file of a model with a head, and of a merged adapter with one, in PyTorch's format. */
TEST(torch_round_trips) {
    int variant;
    for (variant = 0; variant < 4; variant++) {
        ml_model_create_desc create;
        ml_save_desc desc;
        ml_random random;
        ml_model *model = NULL, *loaded = NULL;
        ml_lora *lora;
        ml_head *head, *again = NULL;
        ml_archive *archive = NULL;
        ml_error error;
        int i, k;
        memset(&create, 0, sizeof create);
        memset(&desc, 0, sizeof desc);
        create.config.dim = DIM, create.config.hidden_dim = 12, create.config.vocab_size = 11;
        create.config.n_layers = create.config.n_kv_heads = create.config.tied_output = 1;
        create.config.n_heads = 2, create.config.max_seq_len = 16;
        create.random = &random;
        ml_random_seed(&random, 5);
        REQUIRE(ml_model_create(&create, &model, &error) == ML_OK);
        lora = some_lora(model);
        head = some_head(model, variant & 1 ? names : NULL, ML_POOL_LAST, 0);
        REQUIRE(lora && head);
        for (i = 1; i < lora->n_tensors; i += 2)
            for (k = 0; lora->tensors[i].data && k < (int)(lora->tensors[i].rows * lora->tensors[i].cols);
                 k++)
                ((float *)lora->tensors[i].data)[k] = ml_random_normal(&random);
        desc.format = ML_PYTORCH;
        desc.head = head;
        CHECK((variant & 2 ? ml_lora_save(lora, model, in_folder("course.pt"), &desc, &error)
                           : ml_model_save(model, in_folder("course.pt"), &desc, &error)) == ML_OK);
        if (ml_head_load(in_folder("course.pt"), model, NULL, &again, &error)) printf("%s\n", error.text);
        REQUIRE(again);
        CHECK(same_head(head, again));
        REQUIRE(ml_model_load(in_folder("course.pt"), NULL, &loaded, &error) == ML_OK);
        if (variant & 2) CHECK(ml_lora_merge(lora, model, &error) == ML_OK);
        for (i = 0; i < model->n_tensors; i++)
            for (k = 0; model->tensors[i].data && k < (int)(model->tensors[i].rows * model->tensors[i].cols);
                 k++)
                CHECK_NEAR(((const float *)loaded->tensors[i].data)[k],
                           ((const float *)model->tensors[i].data)[k], 1e-7,
                           1e-6); /* sums in another order */
        REQUIRE(ml_archive_load(in_folder("course.pt"), NULL, &archive, &error) == ML_OK);
        CHECK(ml_archive_find_array(archive, "model.classifier_head.weight") &&
              ml_archive_find_array(archive, "model.classifier_head.bias") &&
              ml_archive_find_array(archive, "model.llama.layers.0.attention.compute_query.weight"));
        ml_archive_free(archive);
        ml_head_free(again);
        ml_head_free(head);
        ml_lora_free(lora);
        ml_model_free(loaded);
        ml_model_free(model);
    }
}

/* What is told of a file of its save_model; all 0 for a good one. */
typedef struct course_twist {
    int n_heads;  /* in model_config */
    int has_lora; /* the key matrix is not merged: A and B of rank 2 beside it */
    int alpha;    /* args.lora_alpha */
    int lacks_b;
    int has_nan;      /* in B, in place of its number (1, 1) */
    const char *path; /* of the pretrained model; default "models/base.pt" */
    ml_type type;     /* that the matrices are to have */
} course_twist;

enum { KEY_OFFSET = 300, A_OFFSET = 10, B_OFFSET = 40, BIAS = 7 };

static void course_matrix(bytes *p, const char *name, int offset, int rows, int cols) {
    pk_tensor_desc t;
    memset(&t, 0, sizeof t);
    t.storage = "FloatStorage", t.key = "0", t.n_storage = 1000, t.offset = offset;
    t.n_dims = rows ? 2 : 1;
    t.shape[0] = rows ? rows : cols;
    t.shape[1] = cols;
    t.stride[0] = rows ? cols : 1;
    t.stride[1] = 1;
    pk_text(p, name);
    pk_tensor(p, &t);
}

/* A classifier of three classes around a model of one layer with LayerNorm; numbers are those of the storage, which
   counts from 0. Beside it are the optimizer, its options, and the state of a random generator. */
static bytes course_file(const course_twist *twist) {
#define LAYER "llama.layers.0."
    bytes p, file;
    memset(&p, 0, sizeof p);
    pk_begin(&p);
    put_text(&p, "}(");
    pk_model_begin(&p);
    course_matrix(&p, "llama.tok_embeddings.weight", 100, 11, DIM);
    course_matrix(&p, LAYER "attention.compute_query.weight", 200, DIM, DIM);
    if (twist->has_lora) {
        course_matrix(&p, LAYER "attention.compute_key.lora_A", A_OFFSET, 2, DIM);
        if (!twist->lacks_b) course_matrix(&p, LAYER "attention.compute_key.lora_B", B_OFFSET, 4, 2);
    }
    course_matrix(&p,
                  twist->has_lora ? LAYER "attention.compute_key.original_layer.weight"
                                  : LAYER "attention.compute_key.weight",
                  KEY_OFFSET, 4, DIM);
    course_matrix(&p, LAYER "attention.compute_value.weight", 340, 4, DIM);
    course_matrix(&p, LAYER "attention.compute_output.weight", 400, DIM, DIM);
    course_matrix(&p, LAYER "feed_forward.w1.weight", 500, 12, DIM);
    course_matrix(&p, LAYER "feed_forward.w2.weight", 600, DIM, 12);
    course_matrix(&p, LAYER "feed_forward.w3.weight", 700, 12, DIM);
    course_matrix(&p, LAYER "attention_norm.weight", 1, 0, DIM);
    course_matrix(&p, LAYER "attention_norm.bias", 2, 0, DIM);
    course_matrix(&p, LAYER "ffn_norm.weight", 3, 0, DIM);
    course_matrix(&p, LAYER "ffn_norm.bias", 4, 0, DIM);
    course_matrix(&p, "llama.norm.weight", 5, 0, DIM);
    course_matrix(&p, "llama.norm.bias", BIAS, 0, DIM);
    course_matrix(&p, "llama.output.weight", 100, 11, DIM);
    course_matrix(&p, "classifier_head.weight", 800, 3, DIM);
    course_matrix(&p, "classifier_head.bias", 900, 0, 3);
    put_text(&p, "u");
    pk_text(&p, "optim");
    put_text(&p, "}(");
    course_matrix(&p, "exp_avg", 0, 3, DIM);
    put_text(&p, "u");
    pk_text(&p, "args");
    pk_global(&p, "argparse", "Namespace");
    put_text(&p, ")R}(");
    pk_text(&p, "epochs"), pk_int(&p, 5);
    if (twist->alpha) pk_text(&p, "lora_alpha"), pk_int(&p, twist->alpha);
    put_text(&p, "ub");
    pk_text(&p, "model_config");
    pk_global(&p, "types", "SimpleNamespace");
    put_text(&p, ")R}(");
    pk_text(&p, "pretrained_model_path"), pk_text(&p, twist->path ? twist->path : "models/base.pt");
    pk_text(&p, "num_labels"), pk_int(&p, 3);
    if (twist->n_heads) pk_text(&p, "n_heads"), pk_int(&p, twist->n_heads);
    put_text(&p, "ub");
    pk_text(&p, "system_rng");
    pk_int(&p, 3), pk_text(&p, "state"), put_text(&p, "N\x87");
    put_text(&p, "u.");
    file = pt_file(&p, 1000);
    free_bytes(&p);
    for (size_t i = 0; twist->has_nan && i + 8 <= file.size; i++) {
        const float pair[2] = {B_OFFSET + 2, B_OFFSET + 3};
        if (are_floats(file.data + i, pair, 2)) memset(file.data + i + 4, 0xff, 4);
    }
    return file;
#undef LAYER
}

/* base.pt of the model that the course's checkpoints are made of, in the folder. */
static void course_base(int n_heads) {
    ml_model_create_desc desc;
    ml_save_desc as;
    ml_random random;
    ml_model *model = NULL;
    memset(&desc, 0, sizeof desc);
    memset(&as, 0, sizeof as);
    desc.config.dim = DIM, desc.config.hidden_dim = 12, desc.config.vocab_size = 11;
    desc.config.n_layers = desc.config.tied_output = 1;
    desc.config.n_heads = n_heads, desc.config.n_kv_heads = n_heads / 2, desc.config.max_seq_len = 77;
    desc.random = &random;
    ml_random_seed(&random, 5);
    REQUIRE(ml_model_create(&desc, &model, NULL) == ML_OK);
    as.format = ML_PYTORCH;
    CHECK(ml_model_save(model, in_folder("base.pt"), &as, NULL) == ML_OK);
    ml_model_free(model);
}

/* Loads it as a model and its head; *key (4, DIM) becomes the key matrix. */
static ml_result load_course(const course_twist *twist, ml_config *config, float *key, ml_error *error) {
    bytes file = course_file(twist);
    ml_model *model = NULL;
    ml_head *head = NULL;
    ml_error other;
    ml_result result;
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = twist->type;
    write_file(in_folder("finetune-5-2e-05.pt"), file.data, file.size);
    result = ml_model_load(in_folder("finetune-5-2e-05.pt"), &desc, &model, error);
    free_bytes(&file);
    if (!model) return result;
    *config = model->config;
    memcpy(key, model->tensors[7].data, 4 * DIM * sizeof *key);
    CHECK(model->tensors[2].data &&
          ((const float *)model->tensors[2].data)[3] == BIAS + 3); /* the last norm's */
    CHECK(ml_head_load(in_folder("finetune-5-2e-05.pt"), model, NULL, &head, &other) == ML_OK);
    if (head) {
        CHECK(head->n_classes == 3 && !head->labels && head->pooling == ML_POOL_LAST);
        CHECK(((const float *)head->weight.data)[23] == 823 && ((const float *)head->bias.data)[2] == 902);
    } else {
        printf("%s\n", other.text);
    }
    ml_head_free(head);
    ml_model_free(model);
    return result;
}

/* The shapes are those of the model beside it, or what the tensors tell if the number of heads is known. */
TEST(course_checkpoints) {
    static const course_twist plain = {0}, with_heads = {.n_heads = 2}, above = {.path = "a/.."};
    ml_config c;
    ml_error error;
    float key[4 * DIM];
    remove(in_folder("base.pt"));
    remove(in_folder("config.json"));
    CHECK(load_course(&plain, &c, key, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "the number of heads is in models/base.pt") != NULL);
    REQUIRE(load_course(&with_heads, &c, key, &error) == ML_OK);
    CHECK(c.n_heads == 2 && c.n_kv_heads == 1 && c.max_seq_len == 1024 && c.norm == ML_NORM_LAYER);
    CHECK(c.tied_output == 1 && c.hidden_dim == 12 && c.vocab_size == 11 && c.dim == DIM && c.n_layers == 1);
    CHECK(key[9] == KEY_OFFSET + 9);
    course_base(4);
    REQUIRE(load_course(&plain, &c, key, &error) == ML_OK);
    CHECK(c.n_heads == 4 && c.n_kv_heads == 2 && c.max_seq_len == 77 && c.norm == ML_NORM_LAYER);
    const char *const others[] = {
        "{\"model_type\": \"bert\"}", "{\"port\": 80 ",
        "{\"hidden_size\": 8, \"num_attention_heads\": 2, \"num_hidden_layers\": 1}"};
    for (int i = 0; i < 3; i++) { /* the model that the file names counts, whatever else is there */
        write_file(in_folder("config.json"), (const unsigned char *)others[i], strlen(others[i]));
        REQUIRE(load_course(&plain, &c, key, &error) == ML_OK);
        CHECK(c.n_heads == 4 && c.n_kv_heads == 2 && c.max_seq_len == 77);
    }
    remove(in_folder("config.json"));
    /* a path to the folder above is none of a file beside it */
    bytes file = course_file(&above);
    ml_model *model = NULL;
    CHECK(make_folder(in_folder("outer")) && make_folder(in_folder("outer/inner")));
    CHECK(rename(in_folder("base.pt"), in_folder("outer/pytorch_model.bin")) == 0);
    write_file(in_folder("outer/inner/model.pt"), file.data, file.size);
    CHECK(ml_model_load(in_folder("outer/inner/model.pt"), NULL, &model, &error) == ML_ERROR_MISMATCH &&
          !model);
    remove(in_folder("outer/pytorch_model.bin"));
    free_bytes(&file);
}

/* W + alpha / r B A, with alpha = 3 and r = 2: by hand for one number, W 309, B's row 1 (42, 43), A's column 1 (11,
   19). */
TEST(course_adapters) {
    static const course_twist merged = {.n_heads = 2, .has_lora = 1, .alpha = 3},
                              no_alpha = {.n_heads = 2, .has_lora = 1},
                              no_b = {.n_heads = 2, .has_lora = 1, .alpha = 3, .lacks_b = 1},
                              with_nan = {.n_heads = 2, .has_lora = 1, .alpha = 3, .has_nan = 1},
                              too_large = {.n_heads = 2, .has_lora = 1, .alpha = 300, .type = ML_F16};
    ml_config c;
    ml_error error;
    float key[4 * DIM];
    REQUIRE(load_course(&merged, &c, key, &error) == ML_OK);
    CHECK(key[9] == 309 + 1.5f * (42 * 11 + 43 * 19));
    CHECK(load_course(&no_alpha, &c, key, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text,
                 "compute_key.lora_B: its scale is not known, there is no value args.lora_alpha") != NULL);
    CHECK(load_course(&no_b, &c, key, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "compute_key.lora_B") != NULL);
    CHECK(load_course(&with_nan, &c, key, &error) == ML_ERROR_NUMBER);
    CHECK(strstr(error.text, "compute_key.original_layer.weight: number (1, 0) is not finite") != NULL);
    CHECK(load_course(&too_large, &c, key, &error) ==
          ML_ERROR_NUMBER); /* 309 + 150 * 1279 for the same number */
    CHECK(strstr(error.text, "is too large for F16; try BF16") != NULL);
}

/* ---- damaged ---- */

typedef struct wrong_tensor {
    const char *name;
    int n_dims, rows, cols, type; /* GGUF's type; none with rows 0 */
} wrong_tensor;

/* A GGUF with up to two tensors, and for the key a list of so many strings (or integers), or a number. */
static bytes gguf_with(const wrong_tensor tensors[2], const char *key, int type, int n) {
    int n_tensors = !!tensors[0].name + !!tensors[1].name, i;
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, (uint64_t)n_tensors, key ? 2 : 1);
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    if (key && type == 4) gguf_key(&b, key, 4), put_u32(&b, (uint64_t)n);
    if (key && type != 4) gguf_key(&b, key, 9), put_u32(&b, (uint64_t)type), put_u64(&b, (uint64_t)n);
    for (i = 0; key && type == 8 && i < n; i++) put_u64(&b, 2), put(&b, i == 7 ? "a\0" : "ab", 2);
    for (i = 0; key && type == 5 && i < n; i++) put_u32(&b, 1);
    for (i = 0; i < n_tensors; i++)
        gguf_tensor(&b, tensors[i].name, tensors[i].n_dims, (uint64_t)tensors[i].rows,
                    (uint64_t)tensors[i].cols, (unsigned)tensors[i].type, 0);
    gguf_pad(&b, 32);
    put_floats(&b, 0, 256);
    return b;
}

TEST(wrong_gguf) {
#define GOOD                                                                                                 \
    { "cls.output.weight", 2, 3, DIM, 0 }
#define NONE                                                                                                 \
    { NULL, 0, 0, 0, 0 }
    static const struct {
        wrong_tensor tensors[2];
        const char *key;
        int type, n; /* of the key */
        ml_result result;
        const char *text; /* in the sentence */
    } cases[] = {
        {{GOOD, NONE}, NULL, 0, 0, ML_OK, ""},
        {{GOOD, {"cls.output.bias", 1, 1, 3, 0}}, NULL, 0, 0, ML_OK, ""},
        {{{"cls.output.weight", 2, 3, DIM, 1}, NONE}, NULL, 0, 0, ML_OK, ""}, /* F16 */
        {{{"cls.output.bias", 1, 1, 3, 0}, NONE}, NULL, 0, 0, ML_ERROR_MISMATCH, "no head"},
        {{{"xcls.output.weight", 2, 3, DIM, 0}, NONE}, NULL, 0, 0, ML_ERROR_MISMATCH, "no head"},
        {{{"cls.output.weight", 2, 3, DIM + 1, 0}, NONE},
         NULL,
         0,
         0,
         ML_ERROR_MISMATCH,
         "(3, 9), not (3, 8)"},
        {{{"cls.output.weight", 1, 1, DIM, 0}, NONE}, NULL, 0, 0, ML_ERROR_MISMATCH, "(8), not (8, 8)"},
        {{{"cls.output.weight", 0, 1, 1, 0}, NONE}, NULL, 0, 0, ML_ERROR_MISMATCH, "has shape ()"},
        {{{"cls.output.weight", 2, 1, DIM, 0}, NONE}, NULL, 0, 0, ML_ERROR_UNSUPPORTED, "1 classes"},
        {{{"cls.output.weight", 2, 0, DIM, 0}, NONE}, NULL, 0, 0, ML_ERROR_UNSUPPORTED, "0 classes"},
        {{{"cls.output.weight", 2, 3, DIM, 26}, NONE}, NULL, 0, 0, ML_ERROR_UNSUPPORTED, "is of type I32"},
        {{GOOD, {"cls.output.bias", 1, 1, 4, 0}}, NULL, 0, 0, ML_ERROR_MISMATCH, "(4), not (3)"},
        {{GOOD, {"cls.output.bias", 2, 1, 3, 0}}, NULL, 0, 0, ML_OK, ""},
        {{GOOD, {"cls.output.bias", 2, 3, 1, 0}}, NULL, 0, 0, ML_ERROR_MISMATCH, "(3, 1), not (3)"},
        {{GOOD, {"cls.weight", 2, DIM, DIM, 0}}, NULL, 0, 0, ML_ERROR_UNSUPPORTED, "two layers"},
        {{GOOD, NONE}, "llama.classifier.output_labels", 8, 3, ML_OK, ""},
        {{GOOD, NONE}, "llama.classifier.output_labels", 8, 4, ML_ERROR_MISMATCH, "4 elements, not 3"},
        {{GOOD, NONE}, "llama.classifier.output_labels", 8, 2, ML_ERROR_MISMATCH, "2 elements, not 3"},
        {{GOOD, NONE}, "llama.classifier.output_labels", 8, 0, ML_ERROR_MISMATCH, "0 elements, not 3"},
        {{GOOD, NONE}, "llama.classifier.output_labels", 5, 3, ML_ERROR_FORMAT, "no list of strings"},
        {{GOOD, NONE}, "llama.classifier.output_labels", 4, 3, ML_ERROR_FORMAT, "no list of strings"},
        {{{"cls.output.weight", 2, 8, DIM, 0}, NONE},
         "llama.classifier.output_labels",
         8,
         8,
         ML_ERROR_FORMAT,
         "zero byte"},
        {{GOOD, NONE}, "llama.pooling_type", 4, 1, ML_OK, ""},
        {{GOOD, NONE}, "llama.pooling_type", 4, 3, ML_OK, ""},
        {{GOOD, NONE}, "llama.pooling_type", 4, 2, ML_ERROR_UNSUPPORTED, "pooling_type"}, /* CLS */
        {{GOOD, NONE}, "llama.pooling_type", 8, 1, ML_ERROR_UNSUPPORTED, "pooling_type"},
    };
#undef GOOD
#undef NONE
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes file = gguf_with(cases[i].tensors, cases[i].key, cases[i].type, cases[i].n);
        ml_head *head = NULL;
        ml_error error;
        CHECK(load_memory(&file, NULL, &head, &error) == cases[i].result);
        CHECK(strstr(error.text, cases[i].text) != NULL);
        if (error.code != cases[i].result || !strstr(error.text, cases[i].text))
            printf("case %d: %s\n", (int)i, error.text);
        if (head && cases[i].key && cases[i].type == 4)
            CHECK(head->pooling == (cases[i].n == 1 ? ML_POOL_MEAN : ML_POOL_LAST));
        if (head && cases[i].type == 8) CHECK(head->labels && strcmp(head->labels[2], "ab") == 0);
        ml_head_free(head);
        free_bytes(&file);
    }
}

static bytes hf_head(const char *name) {
    char header[200];
    bytes data, file;
    memset(&data, 0, sizeof data);
    put_floats(&data, 0, 3 * DIM);
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[3,%d],\"data_offsets\":[0,%d]}}",
             name, DIM, 3 * DIM * 4);
    file = safetensors_file(header, data.data, data.size);
    free_bytes(&data);
    return file;
}

TEST(wrong_json) {
    static const struct {
        int is_peft;
        const char *json;
        ml_result result;
        const char *text; /* in the sentence */
    } cases[] = {
        {0, "{}", ML_OK, ""},
        {0, "{\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\"},\"num_labels\":3}", ML_OK, ""},
        {0, "{\"id2label\":{\"0\":\"a\",\"1\":\"b\"}}", ML_ERROR_MISMATCH, "id2label.2 is missing"},
        {0, "{\"id2label\":{\"0\":\"a\",\"1\":\"b\",\"2\":\"c\",\"3\":\"d\"}}", ML_ERROR_MISMATCH,
         "id2label.3 is there"},
        {0, "{\"id2label\":{\"0\":\"a\",\"1\":0.5,\"2\":\"c\"}}", ML_ERROR_FORMAT,
         "id2label.1 is neither a text nor"},
        {0, "{\"id2label\":[NaN,1,2]}", ML_ERROR_FORMAT, "id2label.0 is neither a text nor"},
        {0, "{\"id2label\":{\"0\":\"a\",\"1\":\"b\\u0000\",\"2\":\"c\"}}", ML_ERROR_FORMAT, "zero byte"},
        {0, "{\"minillama_pooling\":\"cls\"}", ML_ERROR_UNSUPPORTED, "minillama_pooling is cls"},
        {0, "{\"minillama_pooling\":7}", ML_ERROR_UNSUPPORTED, "minillama_pooling is a number"},
        {0, "{\"minillama_pooling\":", ML_ERROR_FORMAT, "JSON"},
        {0, "{\"problem_type\":\"single_label_classification\"}", ML_OK, ""},
        {0, "{\"problem_type\":null}", ML_OK, ""},
        {0, "{\"problem_type\":\"multi_label_classification\"}", ML_ERROR_UNSUPPORTED,
         "problem_type is multi_label_classification"},
        {0, "{\"architectures\":[\"LlamaForSequenceClassification\"]}", ML_OK, ""},
        {0, "{\"architectures\":[\"LlamaForTokenClassification\"]}", ML_ERROR_UNSUPPORTED,
         "architectures.0: a class for each token"},
        {1, "{\"id2label\":[0,1,2],\"minillama_pooling\":\"last\"}", ML_OK, ""},
        {1, "{\"minillama_labels\":[\"a\",\"b\",\"c\"],\"minillama_pooling\":\"mean\"}", ML_OK, ""},
        {1, "{\"minillama_labels\":[\"a\",\"b\",\"c\",\"d\"]}", ML_ERROR_MISMATCH, "labels.3 is there"},
        {1, "{\"minillama_labels\":[\"a\"]}", ML_ERROR_MISMATCH, "labels.1 is missing"},
        {1, "{\"minillama_labels\":[1e99,2,3]}", ML_ERROR_FORMAT, "labels.0 is neither a text nor"},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes file = hf_head(cases[i].is_peft ? "base_model.model.score.weight" : "score.weight");
        ml_head *head = NULL;
        ml_error error;
        CHECK(load_memory(&file, cases[i].json, &head, &error) == cases[i].result);
        CHECK(strstr(error.text, cases[i].text) != NULL);
        if (error.code != cases[i].result || !strstr(error.text, cases[i].text))
            printf("case %d: %s\n", (int)i, error.text);
        if (head) CHECK(!head->labels == !strstr(cases[i].json, "\"a\"") && head->n_classes == 3);
        if (head) CHECK((head->pooling == ML_POOL_MEAN) == (strstr(cases[i].json, "mean") != NULL));
        ml_head_free(head);
        free_bytes(&file);
    }
}

/* As Hugging Face's programs write them for classes that are numbers or truth values themselves. */
TEST(labels_that_are_no_texts) {
    static const struct {
        const char *json, *labels[3];
    } cases[] = {{"{\"id2label\":{\"0\":0,\"1\":\"b\",\"2\":-20}}", {"0", "b", "-20"}},
                 {"{\"id2label\":{\"0\":false,\"1\":true,\"2\":\"c\"}}", {"false", "true", "c"}},
                 {"{\"id2label\":[1.0,2.0,9000000000]}", {"1", "2", "9000000000"}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes file = hf_head("score.weight");
        ml_head *head = NULL;
        ml_error error;
        CHECK(load_memory(&file, cases[i].json, &head, &error) == ML_OK);
        REQUIRE(head && head->labels);
        for (int k = 0; k < 3; k++) CHECK(strcmp(head->labels[k], cases[i].labels[k]) == 0);
        ml_head_free(head);
        free_bytes(&file);
    }
}

TEST(refused) {
    ml_model *model = some_model(DIM), *wide = some_model(2 * DIM);
    ml_head *head, *loaded = NULL;
    ml_error error;
    int place;
    REQUIRE(model && wide);
    head = some_head(model, names, ML_POOL_LAST, 0);
    REQUIRE(head);
    for (place = 0; place < PLACES; place++) {
        remove(path_of(place));
        CHECK(save(place, wide, head, &error) == ML_ERROR_MISMATCH && strstr(error.text, "head"));
        CHECK(!exists(path_of(place)));
        CHECK(save(place, model, head, NULL) == ML_OK); /* and a head for another model is not loaded */
        CHECK(ml_head_load(path_of(place), wide, NULL, &loaded, &error) == ML_ERROR_MISMATCH && !loaded);
        CHECK(strstr(error.text, "(6, 8), not (6, 16)") != NULL);
        if (!is_safetensors(place)) continue;
        CHECK(remove(json_of(place)) == 0); /* labels and pooling were in it */
        CHECK(ml_head_load(path_of(place), model, NULL, &loaded, &error) == ML_ERROR_FILE &&
              strstr(error.text, "config.json"));
    }
    CHECK(ml_head_load(NULL, model, NULL, &loaded, &error) == ML_ERROR_ARGUMENT && error.text[0]);
    CHECK(ml_head_load("x", NULL, NULL, &loaded, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_head_load("x", model, NULL, NULL, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_head_load_memory(NULL, 0, model, NULL, &loaded, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_head_load(in_folder("none"), model, NULL, &loaded, &error) == ML_ERROR_FILE && !loaded);
    ml_head_free(head);
    ml_model_free(model);
    ml_model_free(wide);
}

/* ---- damage at every byte ---- */

/* Loads a copy that ends where malloc'd memory ends, so that a sanitizer sees each byte read beyond; all is freed. */
static ml_result load_copy(const ml_model *model, const void *data, size_t size, const bytes *json,
                           counting *memory) {
    void *copy = malloc(size + 1);
    ml_load_desc desc = with_json(NULL);
    ml_head *head = NULL;
    ml_error error;
    ml_result result;
    if (json->size) desc.config_json = json->data;
    desc.config_json_size = json->size;
    desc.allocator.alloc = counting_alloc;
    desc.allocator.free = counting_free;
    desc.allocator.user = memory;
    memcpy((char *)copy + 1, data, size);
    result = ml_head_load_memory((char *)copy + 1, size, model, &desc, &head, &error);
    free(copy);
    CHECK((head != NULL) == !result && error.code == result && (!result || error.text[0]));
    if (head) CHECK(head->n_classes >= 2 && head->weight.cols == DIM && (!head->labels || head->labels[1]));
    ml_head_free(head);
    CHECK(memory->n_live == 0);
    return result;
}

TEST(damaged) {
    static const unsigned char flips[] = {1, 8, 128, 255};
    ml_model *model = some_model(DIM);
    int place;
    size_t i, k, fail_at;
    REQUIRE(model);
    for (place = LORA_GGUF; place <= LORA_PEFT; place++) { /* the smaller files */
        ml_head *head = some_head(model, names, ML_POOL_MEAN, 0);
        bytes file, json;
        counting memory;
        memset(&memory, 0, sizeof memory);
        memset(&json, 0, sizeof json);
        CHECK(save(place, model, head, NULL) == ML_OK);
        file = read_file(path_of(place));
        if (place == LORA_PEFT) json = read_file(json_of(place));
        CHECK(load_copy(model, file.data, file.size, &json, &memory) == ML_OK);
        for (i = 0; i + 32 < file.size; i++) CHECK(load_copy(model, file.data, i, &json, &memory) != ML_OK);
        for (i = 0; i < file.size + json.size; i++)
            for (k = 0; k < sizeof flips; k++) {
                unsigned char *at = i < json.size ? json.data + i : file.data + i - json.size;
                *at ^= flips[k];
                load_copy(model, file.data, file.size, &json, &memory);
                *at ^= flips[k];
            }
        CHECK(memory.peak < 64 * (file.size + json.size));
        for (fail_at = 1;; fail_at++) {
            ml_result result;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = fail_at;
            result = load_copy(model, file.data, file.size, &json, &memory);
            if (!result) break;
            CHECK(result == ML_ERROR_MEMORY);
            REQUIRE(fail_at < 100);
        }
        CHECK(fail_at > 5);
        free_bytes(&file);
        free_bytes(&json);
        ml_head_free(head);
    }
    ml_model_free(model);
}

/* Beside its pairs an adapter may hold the two tensors of a head, and nothing else. */
TEST(nothing_else_in_an_adapter) {
    static const struct {
        const char *name;
        ml_result result;
    } cases[] = {{"base_model.model.score.weight", ML_OK},
                 {"base_model.model.score.bias", ML_OK},
                 {"score.weight", ML_ERROR_UNSUPPORTED},
                 {"base_model.model.cls.output.weight", ML_ERROR_UNSUPPORTED},
                 {"base_model.model.score.weight2", ML_ERROR_UNSUPPORTED},
                 {"base_model.model.score.modules_to_save.weight", ML_OK},
                 {"base_model.model.score.modules.weight", ML_ERROR_UNSUPPORTED}};
    static const char pair[] = "{\"base_model.model.model.layers.0.self_attn.q_proj.lora_%s.weight\":{"
                               "\"dtype\":\"F32\",\"shape\":[%d,%d],"
                               "\"data_offsets\":[0,64]},";
    ml_model *model = some_model(DIM);
    size_t i;
    REQUIRE(model);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        ml_load_desc desc = with_json("{\"r\":2,\"lora_alpha\":4}");
        char header[1000], *at = header;
        ml_lora *lora = NULL;
        bytes data, file;
        ml_error error;
        memset(&data, 0, sizeof data);
        put_floats(&data, 0, 3 * DIM);
        at += sprintf(at, pair, "A", 2, DIM);
        at += sprintf(at, pair + 1, "B", DIM, 2);
        sprintf(at, "\"%s\":{\"dtype\":\"F32\",\"shape\":[3,%d],\"data_offsets\":[0,%d]}}", cases[i].name,
                DIM, 3 * DIM * 4);
        file = safetensors_file(header, data.data, data.size);
        CHECK(ml_lora_load_memory(file.data, file.size, model, &desc, &lora, &error) == cases[i].result);
        if (error.code) CHECK(strstr(error.text, cases[i].name) != NULL);
        ml_lora_free(lora);
        free_bytes(&file);
        free_bytes(&data);
    }
    ml_model_free(model);
}

/* A trainer's checkpoint has its head; llama.cpp's key has no number for the maximum, and it is not read as another. */
TEST(a_head_of_the_maximum) {
    ml_model *model = some_model(DIM);
    ml_head *head = some_head(model, NULL, ML_POOL_MAX, 0), *loaded = NULL;
    ml_trainer_desc desc;
    ml_trainer *trainer;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.head = head, desc.frozen = 1;
    desc.max_tokens = desc.max_row = 8, desc.max_rows = 2;
    desc.adamw.lr = 0.01f;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    CHECK(ml_trainer_save(trainer, in_folder("trained.gguf"), &error) == ML_OK);
    CHECK(ml_head_load(in_folder("trained.gguf"), model, NULL, &loaded, &error) == ML_ERROR_UNSUPPORTED);
    CHECK(!loaded && strstr(error.text, "llama.pooling_type is not 1 (mean) or 3 (last)") != NULL);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

int main(void) {
    if (!folder_begin("heads")) return 1;
    RUN(round_trips);
    RUN(alone);
    RUN(without_head);
    RUN(names_in_files);
    RUN(json);
    RUN(labels_that_are_not_utf8);
    RUN(long_labels);
    RUN(pickled);
    RUN(trained_copies);
    RUN(torch_round_trips);
    RUN(course_checkpoints);
    RUN(course_adapters);
    RUN(wrong_gguf);
    RUN(wrong_json);
    RUN(labels_that_are_no_texts);
    RUN(refused);
    RUN(damaged);
    RUN(nothing_else_in_an_adapter);
    RUN(a_head_of_the_maximum);
    return !folder_end() || test_report("test_head_files");
}
