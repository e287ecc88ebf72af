/* ml_model_save: models come back, files are as other programs expect them, and failure leaves the old file. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include <signal.h>
#include <utime.h>
#ifndef _WIN32
#include <sys/resource.h>
#endif
#include "build_files.h"
#include "folder.h"
#include "models.h"
#include "shared.h"

/* ---- helpers ---- */

static ml_config some_config(void) {
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = 64;
    c.hidden_dim = 96;
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.vocab_size = 50;
    c.max_seq_len = 33;
    return c;
}

static ml_model *make(const ml_config *config, ml_type type) {
    ml_random random;
    ml_model *model = NULL;
    ml_error error;
    size_t k;
    int i;
    ml_random_seed(&random, 5);
    if (create_model(config, type, &random, NULL, &model, &error)) printf("%s\n", error.text);
    for (i = 0; model && i < model->n_tensors; i++) /* norms and biases that can be told apart */
        for (k = 0; model->tensors[i].rows == 1 && model->tensors[i].data && k < model->tensors[i].cols; k++)
            ((float *)model->tensors[i].data)[k] = ml_random_normal(&random);
    return model;
}

static ml_model *load(const char *path) {
    ml_model *model = NULL;
    ml_error error;
    if (ml_model_load(path, NULL, &model, &error)) printf("%s: %s\n", path, error.text);
    return model;
}

static int same_config(const ml_config *a, const ml_config *b) {
    return a->dim == b->dim && a->hidden_dim == b->hidden_dim && a->n_layers == b->n_layers &&
           a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads && a->vocab_size == b->vocab_size &&
           a->max_seq_len == b->max_seq_len && a->tied_output == b->tied_output && a->norm == b->norm &&
           a->mask == b->mask && a->norm_eps == b->norm_eps && a->rope_theta == b->rope_theta &&
           a->rope_scale == b->rope_scale;
}

/* What a matrix of the test's models becomes in a file. */
static ml_type expected_type(const ml_model *model, int index, ml_format format, ml_type wanted) {
    const ml_tensor *tensor = &model->tensors[index];
    int makes_logits = index == tensor_index(model, "output.weight") ||
                       (index == tensor_index(model, "token_embd.weight") && model->config.tied_output);
    if (tensor->rows == 1) return ML_F32;
    if (!wanted) return format != ML_GGUF && tensor->type >= ML_Q8_0 ? ML_F16 : tensor->type;
    if (wanted == ML_Q4_0 && makes_logits) wanted = ML_Q8_0;
    return wanted >= ML_Q8_0 && tensor->cols % 32 ? ML_F16 : wanted;
}

/* Every tensor of `loaded` is that of `model`, converted as asked. */
static void compare(const ml_model *model, const ml_model *loaded, ml_format format, ml_type wanted) {
    int i;
    CHECK(same_config(&model->config, &loaded->config));
    CHECK(model->n_tensors == loaded->n_tensors && model->n_parameters == loaded->n_parameters);
    for (i = 0; i < model->n_tensors; i++) {
        const ml_tensor *a = &model->tensors[i], *b = &loaded->tensors[i];
        ml_type type = expected_type(model, i, format, wanted);
        size_t n = (size_t)a->rows * (size_t)a->cols;
        unsigned char *converted;
        CHECK((a->data == NULL) == (b->data == NULL));
        if (!a->data || !b->data) continue;
        if (i == tensor_index(model, "output.weight") && model->config.tied_output)
            type = loaded->tensors[0].type;
        CHECK(b->type == type && a->rows == b->rows && a->cols == b->cols);
        if (b->type != type) continue;
        converted = (unsigned char *)malloc(ml_type_row_bytes(type, n));
        CHECK(ml_type_convert(type, converted, a->type, a->data, n) == ML_OK);
        CHECK(memcmp(converted, b->data, ml_type_row_bytes(type, n)) == 0);
        free(converted);
    }
}

/* ---- round trips ---- */

static void round_trip(const ml_config *config, ml_type from, ml_format format, ml_type to) {
    const char *path = in_folder(format == ML_GGUF      ? "m.gguf"
                                 : format == ML_PYTORCH ? "m.pt"
                                                        : "m.safetensors");
    ml_save_desc desc = save_as(format, to);
    ml_model *model = make(config, from), *loaded;
    ml_error error;
    REQUIRE(model);
    CHECK(ml_model_save(model, path, &desc, &error) == ML_OK);
    if (format == ML_SAFETENSORS) { /* the length of the header, which keeps the data aligned */
        bytes file = read_file(path);
        CHECK(file.size > 8 && file.data[0] % 8 == 0);
        free_bytes(&file);
    }
    loaded = load(path);
    CHECK(loaded != NULL);
    if (loaded) compare(model, loaded, format, to);
    if (test_current_failed) printf("from %s to %s\n", ml_type_name(from), ml_type_name(to));
    ml_model_free(model);
    ml_model_free(loaded);
}

TEST(gguf_types) {
    ml_type from, to;
    for (from = ML_F32; from <= ML_Q4_0; from = (ml_type)(from + 1))
        for (to = ML_TYPE_NONE; to <= ML_Q4_0; to = (ml_type)(to + 1)) {
            ml_config c = some_config();
            c.tied_output = (int)to % 2;
            round_trip(&c, from, ML_GGUF, to);
        }
}

TEST(safetensors_types) {
    ml_type from, to;
    for (from = ML_F32; from <= ML_Q4_0; from = (ml_type)(from + 1))
        for (to = ML_TYPE_NONE; to <= ML_BF16; to = (ml_type)(to + 1)) {
            ml_config c = some_config();
            c.tied_output = (int)from % 2;
            round_trip(&c, from, ML_SAFETENSORS, to);
        }
}

TEST(torch_types) {
    ml_type from, to;
    for (from = ML_F32; from <= ML_Q4_0; from = (ml_type)(from + 1))
        for (to = ML_TYPE_NONE; to <= ML_BF16; to = (ml_type)(to + 1)) {
            ml_config c = some_config();
            c.tied_output = 1;
            c.norm_eps = to ? 1e-5f : 3.1415926e-7f;
            c.norm = to == ML_F16 ? ML_NORM_LAYER : ML_NORM_RMS;
            c.mask = to == ML_F16 ? ML_MASK_FULL : ML_MASK_CAUSAL;
            round_trip(&c, from, ML_PYTORCH, to);
        }
}

/* A row of 44 numbers fits no block: such a tensor is F16, the others are what was asked for. */
TEST(odd_rows) {
    ml_config c = some_config();
    c.hidden_dim = 44;
    round_trip(&c, ML_F32, ML_GGUF, ML_Q8_0);
    round_trip(&c, ML_BF16, ML_GGUF, ML_Q4_0);
    round_trip(&c, ML_Q8_0, ML_GGUF, ML_TYPE_NONE);
    c.dim = 36; /* and a model in which nothing fits */
    c.n_heads = 18;
    c.n_kv_heads = 9;
    round_trip(&c, ML_F32, ML_GGUF, ML_Q4_0);
}

TEST(modes) {
    ml_format format;
    int norm, mask;
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format = (ml_format)(format + 1))
        for (norm = ML_NORM_RMS; norm <= ML_NORM_LAYER; norm++)
            for (mask = ML_MASK_CAUSAL; mask <= ML_MASK_FULL; mask++) {
                ml_config c = some_config();
                c.norm = (ml_norm)norm;
                c.mask = (ml_mask)mask;
                round_trip(&c, ML_F32, format, ML_F32);
            }
}

/* Floats come back to the last bit, from GGUF's four bytes and from the decimals of config.json. */
TEST(floats_of_the_configuration) {
    static const float eps[] = {1e-5f, 1e-6f, 3.1415926e-7f, 0.25f, 1e-30f, 9.9999994e-6f, 1.17549435e-38f};
    static const float theta[] = {10000, 500000, 1, 123456.79f, 0.1f, 1e11f, 16777216};
    static const float scale[] = {1, 2, 8, 2.7f, 0.5f, 3.3333333f, 1.0000001f};
    ml_random random;
    size_t i;
    ml_random_seed(&random, 3);
    for (i = 0; i < 7; i++) {
        ml_config c = some_config();
        c.norm_eps = eps[i];
        c.rope_theta = theta[i];
        c.rope_scale = scale[i];
        round_trip(&c, ML_F32, ML_GGUF, ML_F16);
        round_trip(&c, ML_F32, ML_SAFETENSORS, ML_F16);
    }
}

/* The decimals themselves, against the C library's reading of them. */
TEST(decimals) {
    enum { N = 20000 };
    static float values[N];
    char line[64];
    mli_writer writer;
    ml_random random;
    int i;
    ml_random_seed(&random, 3);
    memset(&writer, 0, sizeof writer);
    writer.file = tmpfile();
    REQUIRE(writer.file);
    for (i = 0; i < N; i++) {
        values[i] = ldexpf(1 + ml_random_uniform(&random), (int)(ml_random_u64(&random) % 250) - 125);
        mli_append_json_float(&writer, values[i]);
        mli_append_text(&writer, "\n");
    }
    rewind(writer.file);
    for (i = 0; i < N && fgets(line, sizeof line, writer.file); i++) {
        CHECK(strtof(line, NULL) == values[i] && strlen(line) < 30);
        if (strtof(line, NULL) != values[i]) printf("%.9g written as %s\n", (double)values[i], line);
    }
    CHECK(i == N);
    fclose(writer.file);
}

/* ---- the bytes of a file ---- */

TEST(gguf_layout) {
    static const char *const begins[] = {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight",
                                         "blk.1.ffn_up.weight"};
    ml_config c = some_config();
    ml_model *model = make(&c, ML_F32);
    ml_save_desc desc = save_as(ML_GGUF, ML_Q8_0);
    ml_archive *archive = NULL;
    const char *path = in_folder("layout.gguf");
    bytes file;
    size_t i;
    REQUIRE(model);
    desc.name = "a \"name\"";
    CHECK(ml_model_save(model, path, &desc, NULL) == ML_OK);
    file = read_file(path);
    CHECK(file.size > 24 && memcmp(file.data, "GGUF\3\0\0\0", 8) == 0);
    CHECK(file.data[8] == 2 + 1 + 2 * 9 && file.data[16] == 14); /* tensors (untied), values */
    CHECK(file.size % 32 == 0);
    REQUIRE(ml_archive_load_memory(file.data, file.size, NULL, &archive, NULL) == ML_OK);
    for (i = 0; i < archive->n_arrays; i++)
        CHECK((size_t)((const unsigned char *)archive->arrays[i].data - file.data) % 32 == 0);
    for (i = 0; i < sizeof begins / sizeof *begins; i++)
        CHECK(ml_archive_find_array(archive, begins[i]) != NULL);
    CHECK(ml_archive_find_array(archive, "output_norm.weight")->n_dims == 1);
    CHECK(ml_archive_find_array(archive, "blk.1.ffn_down.weight")->shape[0] == 64);
    CHECK(ml_archive_find_array(archive, "blk.1.ffn_down.weight")->shape[1] == 96);
    CHECK(ml_archive_find_value(archive, "general.file_type")->i == 7);
    CHECK(ml_archive_find_value(archive, "general.quantization_version")->i == 2);
    CHECK(ml_archive_find_value(archive, "general.name")->length == strlen(desc.name));
    CHECK(ml_archive_find_value(archive, "llama.rope.dimension_count")->i == 16);
    CHECK(ml_archive_find_value(archive, "llama.rope.scaling.type") == NULL);
    CHECK(ml_archive_find_value(archive, "minillama.norm") == NULL);
    CHECK(ml_archive_find_value(archive, "tokenizer.ggml.model") == NULL);
    ml_archive_free(archive);
    free_bytes(&file);
    ml_model_free(model);
}

TEST(file_types) { /* llama.cpp's enum llama_ftype */
    static const int numbers[] = {0, 0, 1, 32, 7, 2};
    ml_type type;
    for (type = ML_F32; type <= ML_Q4_0; type = (ml_type)(type + 1)) {
        ml_config c = some_config();
        ml_model *model = make(&c, ML_F32);
        ml_save_desc desc = save_as(ML_GGUF, type);
        ml_archive *archive = NULL;
        REQUIRE(model && ml_model_save(model, in_folder("type.gguf"), &desc, NULL) == ML_OK);
        REQUIRE(ml_archive_load(in_folder("type.gguf"), NULL, &archive, NULL) == ML_OK);
        CHECK(ml_archive_find_value(archive, "general.file_type")->i == numbers[type]);
        CHECK((ml_archive_find_value(archive, "general.quantization_version") != NULL) == (type >= ML_Q8_0));
        ml_archive_free(archive);
        ml_model_free(model);
    }
}

/* Query rows are in Hugging Face's order in the file: row half * hd/2 + k of a head is Meta's row 2 k + half. */
TEST(safetensors_layout) {
    ml_config c = some_config();
    ml_model *model = make(&c, ML_F32);
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_TYPE_NONE);
    ml_archive *archive = NULL;
    const ml_array *query, *value;
    const ml_tensor *wq;
    bytes json;
    int head, half, k;
    REQUIRE(model);
    CHECK(ml_model_save(model, in_folder("layout.safetensors"), &desc, NULL) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("layout.safetensors"), NULL, &archive, NULL) == ML_OK);
    query = ml_archive_find_array(archive, "model.layers.1.self_attn.q_proj.weight");
    value = ml_archive_find_array(archive, "model.layers.1.self_attn.v_proj.weight");
    REQUIRE(query && value && query->n_dims == 2 && query->shape[0] == 64 && value->shape[0] == 32);
    wq = tensor_named(model, "blk.1.attn_q.weight");
    for (head = 0; head < 4; head++)
        for (half = 0; half < 2; half++)
            for (k = 0; k < 8; k++)
                CHECK(are_floats((const float *)query->data + (head * 16 + half * 8 + k) * 64,
                                 (const float *)wq->data + (head * 16 + 2 * k + half) * 64, 64));
    CHECK(are_floats(value->data, (const float *)tensor_named(model, "blk.1.attn_v.weight")->data, 32 * 64));
    CHECK((uintptr_t)query->data % 8 == 0); /* the header is padded */
    ml_archive_free(archive);
    json = read_file(in_folder("config.json"));
    put_u8(&json, 0);
    CHECK(strstr((char *)json.data, "\"rms_norm_eps\": 1e-5,") &&
          strstr((char *)json.data, "\"rope_theta\": 10000.0,"));
    CHECK(strstr((char *)json.data, "\"rope_scaling\": null,") &&
          strstr((char *)json.data, "\"hidden_size\": 64,"));
    CHECK(strstr((char *)json.data, "\"torch_dtype\": \"float32\""));
    free_bytes(&json);
    ml_model_free(model);
}

/* ---- the bytes of a PyTorch file ---- */

/* The checksum of zip files, bit by bit. */
static uint32_t checksum(const bytes *b) {
    uint32_t crc = 0xffffffffu;
    size_t i;
    int bit;
    for (i = 0; i < b->size; i++)
        for (crc ^= b->data[i], bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    return ~crc;
}

/* An entry as torch.save aligns it, with all its sizes in 64 bits; frees the contents. */
static void add_entry(zip *z, const char *name, bytes *contents) {
    size_t offset = z->file.size, length = strlen(name), padding = 64 - (offset + 30 + length + 24) % 64, i;
    uint32_t crc = checksum(contents);
    put(&z->file, "PK\3\4\55\0\0\0\0\0\0\0\0\0", 14);
    put_u32(&z->file, crc);
    put(&z->file, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    put_u16(&z->file, (unsigned)length), put_u16(&z->file, (unsigned)(24 + padding));
    put_text(&z->file, name);
    put(&z->file, "\1\0\20\0", 4), put_u64(&z->file, contents->size), put_u64(&z->file, contents->size);
    put(&z->file, "FB", 2), put_u16(&z->file, (unsigned)padding);
    for (i = 0; i < padding; i++) put_text(&z->file, "Z");
    CHECK(z->file.size % 64 == 0);
    put(&z->file, contents->data, contents->size);
    put(&z->directory, "PK\1\2\55\0\55\0\0\0\0\0\0\0\0\0", 16);
    put_u32(&z->directory, crc);
    put(&z->directory, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    put_u16(&z->directory, (unsigned)length), put_u16(&z->directory, 28);
    put(&z->directory, "\0\0\0\0\0\0\0\0\0\0\xff\xff\xff\xff", 14);
    put_text(&z->directory, name);
    put(&z->directory, "\1\0\30\0", 4), put_u64(&z->directory, contents->size);
    put_u64(&z->directory, contents->size), put_u64(&z->directory, offset);
    z->n++;
    free_bytes(contents);
}

static bytes text_bytes(const char *text) {
    bytes b;
    memset(&b, 0, sizeof b);
    put_text(&b, text);
    return b;
}

static void pk_int32(bytes *b, int value) { put_u8(b, 'J'), put_u32(b, (uint64_t)value); }

/* A tensor of storage `key`: a vector with rows 0. */
static void pk_saved(bytes *b, const char *name, const char *storage, const char *key, int rows, int cols) {
    pk_text(b, name);
    pk_global(b, "torch._utils", "_rebuild_tensor_v2");
    put_text(b, "((");
    pk_text(b, "storage");
    pk_global(b, "torch", storage);
    pk_text(b, key);
    pk_text(b, "cpu");
    pk_int32(b, (rows ? rows : 1) * cols);
    put_text(b, "tQ");
    pk_int32(b, 0);
    put_text(b, "(");
    if (rows) pk_int32(b, rows);
    pk_int32(b, cols);
    put_text(b, "t(");
    if (rows) pk_int32(b, cols);
    pk_int32(b, 1);
    put_text(b, "t\x89");
    pk_global(b, "collections", "OrderedDict");
    put_text(b, ")RtR");
}

/* A model of one layer with LayerNorm, and a head: the names, and where each is in model->tensors. The output is the
   embedding again. */
static const struct {
    const char *name;
    int rows, cols, index;
} torch_tensors[] = {
    {"llama.tok_embeddings.weight", 3, 4, 0},
    {"llama.norm.weight", 0, 4, 1},
    {"llama.norm.bias", 0, 4, 2},
    {"llama.output.weight", 3, 4, 0},
    {"llama.layers.0.attention_norm.weight", 0, 4, 4},
    {"llama.layers.0.attention_norm.bias", 0, 4, 5},
    {"llama.layers.0.attention.compute_query.weight", 4, 4, 6},
    {"llama.layers.0.attention.compute_key.weight", 2, 4, 7},
    {"llama.layers.0.attention.compute_value.weight", 2, 4, 8},
    {"llama.layers.0.attention.compute_output.weight", 4, 4, 9},
    {"llama.layers.0.ffn_norm.weight", 0, 4, 10},
    {"llama.layers.0.ffn_norm.bias", 0, 4, 11},
    {"llama.layers.0.feed_forward.w1.weight", 6, 4, 12},
    {"llama.layers.0.feed_forward.w2.weight", 4, 6, 13},
    {"llama.layers.0.feed_forward.w3.weight", 6, 4, 14},
};

static ml_config torch_config(void) {
    ml_config c = some_config();
    c.dim = 4;
    c.hidden_dim = 6;
    c.n_layers = c.n_kv_heads = c.tied_output = 1;
    c.n_heads = 2;
    c.vocab_size = 3;
    c.norm = ML_NORM_LAYER;
    c.mask = ML_MASK_FULL;
    return c;
}

static ml_head *torch_head(const ml_model *model) {
    static const char *const labels[] = {"good", "bad"};
    ml_head_create_desc desc;
    ml_random random;
    ml_head *head = NULL;
    ml_random_seed(&random, 4);
    memset(&desc, 0, sizeof desc);
    desc.n_classes = 2;
    desc.labels = labels;
    desc.random = &random;
    CHECK(ml_head_create(model, &desc, &head, NULL) == ML_OK);
    return head;
}

static bytes torch_pickle(void) {
    static const struct {
        const char *key;
        int value;
    } args[] = {{"dim", 4},        {"n_layers", 1},     {"n_heads", 2},    {"n_kv_heads", 1},
                {"vocab_size", 3}, {"multiple_of", 32}, {"hidden_dim", 6}, {"max_seq_len", 33}};
    bytes p;
    int i, number = 0;
    memset(&p, 0, sizeof p);
    pk_begin(&p);
    put_text(&p, "}(");
    pk_model_begin(&p);
    for (i = 0; i < 15; i++) {
        char key[8];
        snprintf(key, sizeof key, "%d", i == 3 ? 0 : number);
        number += i != 3;
        pk_saved(&p, torch_tensors[i].name, torch_tensors[i].rows ? "HalfStorage" : "FloatStorage", key,
                 torch_tensors[i].rows, torch_tensors[i].cols);
    }
    pk_saved(&p, "classifier_head.weight", "FloatStorage", "14", 2, 4);
    pk_saved(&p, "classifier_head.bias", "FloatStorage", "15", 0, 2);
    put_text(&p, "u");
    pk_text(&p, "model_args");
    put_text(&p, "}(");
    for (i = 0; i < 8; i++) pk_text(&p, args[i].key), pk_int32(&p, args[i].value);
    pk_text(&p, "dropout");
    put(&p, "G\0\0\0\0\0\0\0\0", 9);
    put_text(&p, "u");
    pk_text(&p, "model_config");
    pk_global(&p, "types", "SimpleNamespace");
    put_text(&p, ")R}(");
    pk_text(&p, "hidden_dropout_prob");
    put(&p, "G\x3f\xd3\x33\x33\x33\x33\x33\x33", 9);
    pk_text(&p, "pretrained_model_path"), pk_text(&p, "stories42M.pt");
    pk_text(&p, "num_labels"), pk_int32(&p, 2);
    pk_text(&p, "data_dir"), pk_text(&p, ".");
    pk_text(&p, "option"), pk_text(&p, "finetune");
    put_text(&p, "ub");
    pk_text(&p, "minillama");
    put_text(&p, "}(");
    pk_text(&p, "mask"), pk_text(&p, "full");
    pk_text(&p, "labels");
    put_text(&p, "](");
    pk_text(&p, "good"), pk_text(&p, "bad");
    put_text(&p, "euu.");
    return p;
}

TEST(torch_layout) {
    ml_config c = torch_config();
    ml_model *model = make(&c, ML_F32);
    ml_head *head = torch_head(model);
    ml_save_desc desc = save_as(ML_PYTORCH, ML_F16);
    bytes b = torch_pickle(), file;
    zip z;
    int i, number = 0;
    memset(&z, 0, sizeof z);
    REQUIRE(model && head);
    desc.head = head;
    CHECK(ml_model_save(model, in_folder("layout.pt"), &desc, NULL) == ML_OK);
    add_entry(&z, "archive/data.pkl", &b);
    b = text_bytes("little"), add_entry(&z, "archive/byteorder", &b);
    b = text_bytes("3\n"), add_entry(&z, "archive/version", &b);
    for (i = 0; i < 17; i++) {
        const ml_tensor *t = i < 15    ? &model->tensors[torch_tensors[i].index]
                             : i == 15 ? &head->weight
                                       : &head->bias;
        ml_type type = i < 15 && t->rows > 1 ? ML_F16 : ML_F32;
        unsigned char numbers[400];
        char name[32];
        if (i == 3) continue;
        CHECK(ml_type_convert(type, numbers, ML_F32, t->data, t->rows * t->cols) == ML_OK);
        put_numbers(&b, numbers, t->rows * t->cols, type == ML_F16 ? 2 : 4);
        snprintf(name, sizeof name, "archive/data/%d", number++);
        add_entry(&z, name, &b);
    }
    b = zip_end(&z, 1, "");
    file = read_file(in_folder("layout.pt"));
    CHECK(file.size == b.size && memcmp(file.data, b.data, b.size) == 0);
    free_bytes(&file);
    free_bytes(&b);
    ml_head_free(head);
    ml_model_free(model);
}

/* What the course's code would compute otherwise is not written for it. */
TEST(torch_refused) {
    static const char *const texts[] = {"tied",          "rope_theta",     "rope_scale",
                                        "head of means", "without a bias", "Q8_0"};
    int i;
    for (i = 0; i < 6; i++) {
        ml_config c = torch_config();
        ml_save_desc desc = save_as(ML_PYTORCH, i == 5 ? ML_Q8_0 : ML_TYPE_NONE);
        ml_model *model;
        ml_head *head;
        ml_error error;
        c.tied_output = i != 0;
        if (i == 1) c.rope_theta = 500000;
        if (i == 2) c.rope_scale = 2;
        model = make(&c, ML_F32);
        REQUIRE(model);
        head = torch_head(model);
        REQUIRE(head);
        if (i == 3) head->pooling = ML_POOL_MEAN;
        if (i == 4) head->bias.data = NULL;
        desc.head = head;
        CHECK(ml_model_save(model, in_folder("x.pt"), &desc, &error) == ML_ERROR_UNSUPPORTED);
        CHECK(strstr(error.text, texts[i]) && !exists(in_folder("x.pt")) && !exists(in_folder("x.pt.tmp")));
        ml_head_free(head);
        ml_model_free(model);
    }
}

/* Where there is a Python with PyTorch: torch.load gives the numbers, and the output shares the embedding's
   storage. */
TEST(torch_loads) {
    static const char script[] =
        "import sys, torch\n"
        "saved = torch.load(sys.argv[1])\n"
        "model, config = saved['model'], saved['model_config']\n"
        "assert model['llama.output.weight'].data_ptr() == model['llama.tok_embeddings.weight'].data_ptr()\n"
        "assert saved['model_args']['hidden_dim'] == 6 and config.num_labels == 2 and config.option == "
        "'finetune'\n"
        "assert saved['minillama'] == {'mask': 'full', 'labels': ['good', 'bad']}\n"
        "with open(sys.argv[2], 'wb') as out:\n"
        "    for tensor in model.values(): out.write(tensor.float().numpy().tobytes())\n";
    ml_config c = torch_config();
    ml_model *model = make(&c, ML_F32);
    ml_head *head = torch_head(model);
    ml_save_desc desc = save_as(ML_PYTORCH, ML_TYPE_NONE);
    char command[2500];
    const char *python = "/usr/bin/python3";
    bytes expected, numbers;
    int i;
    REQUIRE(model && head);
    desc.head = head;
    memset(&expected, 0, sizeof expected);
    CHECK(ml_model_save(model, in_folder("loads.pt"), &desc, NULL) == ML_OK);
    write_file(in_folder("loads.py"), script, strlen(script));
    snprintf(command, sizeof command, "%s -c 'import torch, numpy' 2>%s", python, in_folder("why"));
    if (system(command) != 0) python = "python3";
    snprintf(command, sizeof command, "%s -c 'import torch, numpy' 2>%s", python, in_folder("why"));
    if (system(command) == 0) {
        snprintf(command, sizeof command, "%s %s %s %s", python, in_folder("loads.py"), in_folder("loads.pt"),
                 in_folder("numbers"));
        CHECK(system(command) == 0);
        for (i = 0; i < 15; i++) {
            const ml_tensor *t = &model->tensors[torch_tensors[i].index];
            put_numbers(&expected, t->data, t->rows * t->cols, 4);
        }
        put_numbers(&expected, head->weight.data, 2 * 4, 4);
        put_numbers(&expected, head->bias.data, 2, 4);
        numbers = read_file(in_folder("numbers"));
        CHECK(numbers.size == expected.size && memcmp(numbers.data, expected.data, numbers.size) == 0);
        free_bytes(&numbers);
        free_bytes(&expected);
        python = NULL;
    }
    ml_head_free(head);
    ml_model_free(model);
    if (python) SKIP("no Python with PyTorch");
}

/* ---- tokenizers ---- */

/* Eight pieces: two of them equal, one empty, one with a space, two bytes; ids 0, 1, 2 the usual. */
static ml_tokenizer *odd_tokenizer(void) {
    static const char *const pieces[] = {"<unk>", "\n<s>\n", "\n</s>\n", "<0x41>", " ab", "x", "x", ""};
    bytes b;
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    int i;
    memset(&b, 0, sizeof b);
    put_u32(&b, 6);
    for (i = 0; i < 8; i++) {
        put_f32(&b, (float)i * -0.5f);
        put_u32(&b, strlen(pieces[i]));
        put_text(&b, pieces[i]);
    }
    if (ml_tokenizer_load_memory(b.data, b.size, NULL, &tokenizer, &error)) printf("%s\n", error.text);
    free_bytes(&b);
    return tokenizer;
}

/* llama.cpp aborts on equal or empty pieces: they are written as other text, everything else as it is. */
TEST(odd_pieces) {
    static const char *const expected[] = {"<unk>",
                                           "<s>",
                                           "</s>",
                                           "<0x41>",
                                           ("\xe2\x96\x81"
                                            "ab"),
                                           "x",
                                           "[PAD6]",
                                           "[PAD7]"};
    static const ml_piece_kind kinds[] = {ML_PIECE_UNKNOWN, ML_PIECE_CONTROL, ML_PIECE_CONTROL,
                                          ML_PIECE_BYTE,    ML_PIECE_NORMAL,  ML_PIECE_NORMAL,
                                          ML_PIECE_UNUSED,  ML_PIECE_UNUSED};
    ml_config c = some_config();
    ml_model *model, *loaded;
    ml_error error;
    int i;
    c.vocab_size = 8;
    model = make(&c, ML_F32);
    REQUIRE(model);
    model->tokenizer = model->private_part->tokenizer = odd_tokenizer();
    REQUIRE(model->tokenizer);
    CHECK(ml_model_save(model, in_folder("pieces.gguf"), NULL, &error) == ML_OK);
    loaded = load(in_folder("pieces.gguf"));
    REQUIRE(loaded && loaded->tokenizer && loaded->tokenizer->n_pieces == 8);
    for (i = 0; i < 8; i++) {
        size_t length;
        float score;
        ml_piece_kind kind;
        const char *piece = ml_tokenizer_piece(loaded->tokenizer, i, &length, &score, &kind);
        CHECK(length == strlen(expected[i]) && memcmp(piece, expected[i], length) == 0);
        CHECK(kind == kinds[i] && score == (float)i * -0.5f);
    }
    CHECK(loaded->tokenizer->bos == 1 && loaded->tokenizer->eos == 2);
    ml_model_free(loaded);
    ml_model_free(model);
}

/* A GGUF has as many tokens as the embedding has rows, which llama.cpp wants; here they are still only so many
   pieces, and the file that is made of the loaded model has the same bytes. */
TEST(rows_without_pieces) {
    ml_config c = some_config();
    ml_model *model, *loaded;
    ml_archive *archive = NULL;
    ml_error error;
    static const char *const lists[] = {"tokenizer.ggml.tokens", "tokenizer.ggml.scores",
                                        "tokenizer.ggml.token_type"};
    size_t i;
    c.vocab_size = 12;
    model = make(&c, ML_F32);
    REQUIRE(model);
    CHECK(ml_model_set_tokenizer(model, odd_tokenizer(), &error) == ML_OK);
    CHECK(ml_model_save(model, in_folder("padded.gguf"), NULL, &error) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("padded.gguf"), NULL, &archive, &error) == ML_OK);
    for (i = 0; i < 3; i++) {
        const ml_value *list = ml_archive_find_value(archive, lists[i]);
        CHECK(list && list->length == 12);
        if (list && i == 0) { /* lengths (8 bytes) and texts; the first eight take 8 * 8 + 36 bytes */
            CHECK(memcmp(list->s + 8 * 8 + 36, "\6\0\0\0\0\0\0\0[PAD8]\6\0\0\0\0\0\0\0[PAD9]", 28) == 0);
        }
        if (list && i == 2) CHECK(memcmp(list->s + 8 * 4, "\5\0\0\0\5\0\0\0\5\0\0\0\5\0\0", 16) == 0);
    }
    ml_archive_free(archive);
    loaded = load(in_folder("padded.gguf"));
    REQUIRE(loaded && loaded->tokenizer);
    CHECK(loaded->tokenizer->n_pieces == 8 && loaded->config.vocab_size == 12);
    CHECK(ml_model_save(loaded, in_folder("again.gguf"), NULL, &error) == ML_OK);
    bytes first = read_file(in_folder("padded.gguf")), second = read_file(in_folder("again.gguf"));
    CHECK(first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
    free_bytes(&first), free_bytes(&second);
    ml_model_free(loaded);
    ml_model_free(model);
}

/* A model without output layer is written without one, and says so where a missing matrix would mean a tied one. */
TEST(no_output) {
    ml_format format;
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format = (ml_format)(format + 1)) {
        const char *name = format == ML_GGUF ? "base.gguf" : "base.safetensors";
        ml_save_desc desc = save_as(format, ML_TYPE_NONE);
        ml_config c = some_config();
        ml_model *model = make(&c, ML_F32), *loaded;
        ml_archive *archive = NULL;
        ml_error error;
        REQUIRE(model);
        model->private_part->tensors[tensor_index(model, "output.weight")].data = NULL;
        model->n_parameters -= 50 * 64;
        CHECK(ml_model_save(model, in_folder(name), &desc, &error) == ML_OK);
        REQUIRE(ml_archive_load(in_folder(name), NULL, &archive, &error) == ML_OK);
        CHECK(archive->n_arrays == 2 + 2 * 9);
        ml_archive_free(archive);
        loaded = load(in_folder(name));
        CHECK(loaded != NULL);
        if (loaded) compare(model, loaded, format, ML_TYPE_NONE);
        ml_model_free(loaded);
        ml_model_free(model);
    }
    bytes json = read_file(in_folder("config.json"));
    put_u8(&json, 0);
    CHECK(strstr((const char *)json.data, "\"LlamaModel\"") != NULL);
    free_bytes(&json);
}

/* The checkpoint of a model that learns with a head lacks its output matrix: it is not a tied one because of that. */
TEST(checkpoint_without_output) {
#ifndef ML_NO_TRAINING
    ml_config c = some_config();
    ml_model *model = make(&c, ML_F32), *loaded;
    ml_head *head = NULL;
    ml_head_create_desc top;
    ml_trainer_desc how;
    ml_trainer *trainer = NULL;
    ml_random random;
    ml_error error;
    REQUIRE(model);
    memset(&top, 0, sizeof top), memset(&how, 0, sizeof how);
    ml_random_seed(&random, 1);
    top.n_classes = 2, top.random = &random;
    REQUIRE(ml_head_create(model, &top, &head, &error) == ML_OK);
    how.max_tokens = 4, how.head = head, how.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(model, &how, &trainer, &error) == ML_OK);
    CHECK(ml_trainer_save(trainer, in_folder("state.gguf"), &error) == ML_OK);
    loaded = load(in_folder("state.gguf"));
    REQUIRE(loaded);
    CHECK(!loaded->config.tied_output && !tensor_named(loaded, "output.weight")->data);
    ml_model_free(loaded);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
#endif
}

/* A full mask, in the words of llama.cpp and of Hugging Face, too. */
TEST(mask_of_others) {
    ml_config c = some_config();
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_TYPE_NONE);
    ml_archive *archive = NULL;
    ml_error error;
    c.mask = ML_MASK_FULL;
    ml_model *model = make(&c, ML_F32);
    REQUIRE(model);
    CHECK(ml_model_save(model, in_folder("full.gguf"), NULL, &error) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("full.gguf"), NULL, &archive, &error) == ML_OK);
    const ml_value *causal = ml_archive_find_value(archive, "llama.attention.causal");
    CHECK(causal && causal->kind == ML_VALUE_BOOL && causal->i == 0);
    ml_archive_free(archive);
    CHECK(ml_model_save(model, in_folder("full.safetensors"), &desc, &error) == ML_OK);
    bytes json = read_file(in_folder("config.json"));
    put_u8(&json, 0);
    CHECK(strstr((const char *)json.data, "\"is_causal\": false") != NULL);
    free_bytes(&json);
    ml_model_free(model);
}

/* ---- failure ---- */

static ml_model *tiny(void) {
    ml_config c = some_config();
    return make(&c, ML_F32);
}

TEST(refused) {
    ml_model *model = tiny();
    int no_format = 3;
    ml_save_desc desc;
    ml_error error;
    REQUIRE(model);
    CHECK(ml_model_save(NULL, "x", NULL, &error) == ML_ERROR_ARGUMENT && error.text[0]);
    CHECK(ml_model_save(model, NULL, NULL, NULL) == ML_ERROR_ARGUMENT);
    desc = save_as(ML_GGUF, ML_F64);
    CHECK(ml_model_save(model, in_folder("x"), &desc, &error) == ML_ERROR_ARGUMENT &&
          strstr(error.text, "F64"));
    desc = save_as(ML_SAFETENSORS, ML_Q8_0);
    CHECK(ml_model_save(model, in_folder("x"), &desc, &error) == ML_ERROR_UNSUPPORTED &&
          strstr(error.text, "Q8_0"));
    desc = save_as((ml_format)no_format, ML_F32);
    CHECK(ml_model_save(model, in_folder("x"), &desc, &error) == ML_ERROR_ARGUMENT);
    desc = save_as(ML_SAFETENSORS, ML_F32);
    CHECK(ml_model_save(model, in_folder("config.json"), &desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_model_save(model, in_folder("no/such/folder/x"), &desc, &error) == ML_ERROR_FILE);
    CHECK(strstr(error.text, "no/such/folder/x") != NULL);
    CHECK(!exists(in_folder("x")) && !exists(in_folder("x.tmp")));
    ml_model_free(model);
}

/* The file at `path` is still the old one, and nothing temporary is left. */
static void check_untouched(const char *path) {
    char tmp[700];
    bytes b = read_file(path);
    CHECK(b.size == 3 && memcmp(b.data, "old", 3) == 0);
    free_bytes(&b);
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    CHECK(!exists(tmp));
}

static void write_old(const char *path) {
    FILE *file = fopen(path, "wb");
    REQUIRE(file);
    fputs("old", file);
    fclose(file);
}

/* What waits in stdio's buffer until the end, since the model is so small; and the last of three files, when the
   others are complete. */
TEST(full_disk) {
#ifdef _WIN32
    SKIP("no limit for the size of files");
#else
    ml_config c = some_config();
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    struct rlimit before, limit;
    ml_model *model;
    ml_error error;
    char long_template[20001];
    int i;
    c.dim = c.hidden_dim = c.vocab_size = 2;
    c.n_heads = c.n_kv_heads = c.n_layers = 1;
    model = make(&c, ML_F32);
    REQUIRE(model && getrlimit(RLIMIT_FSIZE, &before) == 0);
    signal(SIGXFSZ, SIG_IGN);
    memset(long_template, 'x', 20000);
    long_template[20000] = 0;
    for (i = 0; i < 2; i++) {
        const char *path = in_folder(i ? "full.safetensors" : "full.gguf");
        ml_result result;
        write_old(path);
        write_old(in_folder("config.json"));
        model->chat_template = i ? long_template : NULL;
        limit = before;
        limit.rlim_cur = i ? 10000 : 0;
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        result = ml_model_save(model, path, i ? &desc : NULL, &error);
        setrlimit(RLIMIT_FSIZE, &before);
        CHECK(result == ML_ERROR_FILE && strstr(error.text, strerror(EFBIG)));
        CHECK(strstr(error.text, i ? "chat_template.jinja" : "full.gguf") != NULL);
        check_untouched(path);
        check_untouched(in_folder("config.json"));
    }
    CHECK(!exists(in_folder("chat_template.jinja")) && !exists(in_folder("chat_template.jinja.tmp")));
    model->chat_template = NULL;
    ml_model_free(model);
#endif
}

/* No file may grow beyond a limit: every part of the writing fails once. */
TEST(no_room) {
#ifdef _WIN32
    SKIP("no limit for the size of files");
#else
    static const ml_format formats[] = {ML_GGUF, ML_SAFETENSORS};
    struct rlimit before, limit;
    ml_model *model = tiny();
    ml_error error;
    size_t f, size;
    REQUIRE(model);
    signal(SIGXFSZ, SIG_IGN);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    for (f = 0; f < 2; f++) {
        const char *path = in_folder(f ? "room.safetensors" : "room.gguf");
        ml_save_desc desc = save_as(formats[f], ML_F32);
        write_old(path);
        if (f) write_old(in_folder("config.json"));
        for (size = 0; size < 250000; size += size < 3000 ? 500 : 60000) {
            ml_result result;
            limit = before;
            limit.rlim_cur = size;
            REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
            result = ml_model_save(model, path, &desc, &error);
            setrlimit(RLIMIT_FSIZE, &before);
            CHECK(result == ML_ERROR_FILE && strstr(error.text, strerror(EFBIG)));
            check_untouched(path);
            if (f) check_untouched(in_folder("config.json"));
        }
        CHECK(ml_model_save(model, path, &desc, &error) == ML_OK && error.code == ML_OK);
        {
            bytes b = read_file(path);
            CHECK(b.size > 250000);
            free_bytes(&b);
        }
    }
    ml_model_free(model);
#endif
}

/* Saving is refused before anything is written, in a sentence with path and reason; nothing temporary is left. */
static void save_refused(const ml_model *model, const char *path, int why) {
    char tmp[700];
    ml_error error;
    CHECK(ml_model_save(model, path, NULL, &error) == ML_ERROR_FILE);
    CHECK(strstr(error.text, path) && strstr(error.text, strerror(why)));
    snprintf(tmp, sizeof tmp, "%s.tmp", path);
    CHECK(!exists(tmp));
}

/* What a rename would replace although it is no file that may be written. */
#ifdef _WIN32
TEST(protected_paths) { SKIP("Windows has no pipes and devices among its files"); }
#else
TEST(protected_paths) {
    struct stat status;
    ml_model *model = tiny();
    REQUIRE(model);
    save_refused(model, in_folder("no/folder.gguf"), ENOENT);
    CHECK(mkfifo(in_folder("pipe"), 0666) == 0);
    save_refused(model, in_folder("pipe"), EEXIST);
    CHECK(stat(in_folder("pipe"), &status) == 0 && S_ISFIFO(status.st_mode));
    CHECK(make_folder(in_folder("directory")));
    save_refused(model, in_folder("directory"), EISDIR);
    CHECK(symlink("/dev/null", in_folder("null")) == 0);
    save_refused(model, in_folder("null"), EEXIST);
    write_old(in_folder("read-only.gguf"));
    CHECK(chmod(in_folder("read-only.gguf"), 0444) == 0);
    if (geteuid() != 0) { /* root may write it */
        save_refused(model, in_folder("read-only.gguf"), EACCES);
        check_untouched(in_folder("read-only.gguf"));
    }
    ml_model_free(model);
}
#endif

TEST(folder_in_the_way) {
    ml_model *model = tiny();
    ml_error error;
    REQUIRE(model);
    CHECK(make_folder(in_folder("dir.gguf"))); /* rename cannot replace it */
    CHECK(ml_model_save(model, in_folder("dir.gguf"), NULL, &error) == ML_ERROR_FILE);
    CHECK(exists(in_folder("dir.gguf")) && !exists(in_folder("dir.gguf.tmp")));
    CHECK(make_folder(in_folder("tmp.gguf.tmp"))); /* it has the temporary name: the next one is taken */
    CHECK(ml_model_save(model, in_folder("tmp.gguf"), NULL, &error) == ML_OK);
    CHECK(exists(in_folder("tmp.gguf.tmp")) && !exists(in_folder("tmp.gguf.1.tmp")));
    rmdir(in_folder("dir.gguf")), rmdir(in_folder("tmp.gguf.tmp"));
    ml_model_free(model);
}

/* When the file was last written, in seconds before now. */
static void set_age(const char *path, int seconds) {
    struct utimbuf times;
    times.actime = times.modtime = time(NULL) - seconds;
    CHECK(utime(path, &times) == 0);
}

/* Whose temporary name would be ".tmp". */
TEST(empty_path) {
    ml_model *model = tiny();
    ml_error error;
    char was[700];
    REQUIRE(model && getcwd(was, sizeof was) && chdir(in_folder("")) == 0);
    write_old(".tmp"), set_age(".tmp", 7200);
    CHECK(ml_model_save(model, "", NULL, &error) == ML_ERROR_FILE && strstr(error.text, strerror(ENOENT)));
    CHECK(exists(".tmp"));
    remove(".tmp");
    CHECK(chdir(was) == 0);
    ml_model_free(model);
}

/* A file under a temporary name may be one that another save writes: it stays, until it is too old for that. */
TEST(temporary_names_are_taken) {
    static const char *const names[] = {"taken.gguf.tmp", "taken.gguf.1.tmp"};
    ml_model *model = tiny(), *loaded;
    ml_error error;
    char path[700], name[40];
    int i;
    snprintf(path, sizeof path, "%s", in_folder("taken.gguf"));
    REQUIRE(model);
    write_old(path);
    for (i = 0; i < 2; i++) write_old(in_folder(names[i]));
    CHECK(ml_model_save(model, path, NULL, &error) == ML_OK);
    for (i = 0; i < 2; i++) {
        bytes b = read_file(in_folder(names[i]));
        CHECK(b.size == 3);
        free_bytes(&b);
        set_age(in_folder(names[i]), i ? 1800 : 7200);
    }
    CHECK(!exists(in_folder("taken.gguf.2.tmp")));
    CHECK(ml_model_save(model, path, NULL, &error) == ML_OK);
    CHECK(!exists(in_folder(names[0])) && exists(in_folder(names[1])));
    set_age(in_folder(names[1]), 7200); /* after a name that is free */
    CHECK(ml_model_save(model, path, NULL, &error) == ML_OK);
    CHECK(!exists(in_folder(names[0])) && !exists(in_folder(names[1])));
    loaded = load(path);
    REQUIRE(loaded);
    compare(model, loaded, ML_GGUF, ML_F32);
    ml_model_free(loaded);
    for (i = 0; i < 100; i++) {
        snprintf(name, sizeof name, i ? "taken.gguf.%d.tmp" : "taken.gguf.tmp", i);
        write_old(in_folder(name));
    }
    write_old(path);
    CHECK(ml_model_save(model, path, NULL, &error) == ML_ERROR_FILE && strstr(error.text, strerror(EEXIST)));
    for (i = 0; i < 100; i++) {
        snprintf(name, sizeof name, i ? "taken.gguf.%d.tmp" : "taken.gguf.tmp", i);
        remove(in_folder(name));
    }
    check_untouched(path);
    ml_model_free(model);
}

#ifdef _WIN32
TEST(savers_of_one_path) { SKIP("Windows has no fork"); }
TEST(temporary_file_of_another) { SKIP("Windows does not replace open files"); }
TEST(permissions_stay) { SKIP("Windows has no permissions of POSIX"); }
TEST(links_are_followed) { SKIP("Windows has no links of POSIX"); }
#else
/* Saves for a second what it makes; the exit status is how many saves failed. */
static int saver(const char *path, int n_layers) {
    ml_config c = some_config();
    time_t start = time(NULL);
    ml_model *model;
    int n_failed = 0;
    c.n_layers = n_layers;
    model = make(&c, ML_F32);
    do n_failed += ml_model_save(model, path, NULL, NULL) != ML_OK;
    while (time(NULL) - start < 2);
    ml_model_free(model);
    return n_failed > 100 ? 100 : n_failed;
}

/* Whoever loads meanwhile gets the whole model of one of them. */
TEST(savers_of_one_path) {
    char path[700];
    pid_t savers[3];
    ml_error error, last;
    int i, status, n_bad = 0;
    time_t start = time(NULL);
    snprintf(path, sizeof path, "%s", in_folder("race.gguf"));
    fflush(stdout);
    for (i = 0; i < 3; i++)
        if ((savers[i] = fork()) == 0) _exit(saver(path, 1 + 3 * i));
    while (!exists(path) && time(NULL) - start < 20) usleep(1000);
    while (time(NULL) - start < 2) {
        ml_model *model = NULL;
        if (ml_model_load(path, NULL, &model, &error)) last = error, n_bad++;
        ml_model_free(model);
        usleep(500);
    }
    if (n_bad) printf("%d loads failed: %s\n", n_bad, last.text);
    CHECK(n_bad == 0);
    for (i = 0; i < 3; i++) {
        CHECK(savers[i] > 0 && waitpid(savers[i], &status, 0) == savers[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    CHECK(!exists(in_folder("race.gguf.tmp")) && !exists(in_folder("race.gguf.1.tmp")));
    CHECK(!exists(in_folder("race.gguf.2.tmp")));
}

/* Another program takes the temporary name, as it does of a save that seems to have been interrupted: at the first
   call of the allocator after the file is there. */
typedef struct thief {
    char temporary[800];
    int has_stolen;
} thief;

static void steal(thief *t) {
    if (!t->has_stolen && *t->temporary && exists(t->temporary)) {
        remove(t->temporary);
        write_file(t->temporary, "other", 5);
        t->has_stolen = 1;
    }
}

static void *stealing_alloc(size_t size, void *user) { return steal((thief *)user), malloc(size); }
static void stealing_free(void *memory, void *user) { steal((thief *)user), free(memory); }

/* Then neither takes the other's file for its own: not into the place of the path, and not away. */
TEST(temporary_file_of_another) {
    ml_config c = some_config();
    thief t = {"", 0};
    ml_allocator allocator = {stealing_alloc, stealing_free, &t};
    ml_save_desc desc = save_as(ML_PYTORCH, ML_F32);
    ml_random random;
    ml_model *model;
    ml_error error;
    char path[700];
    c.tied_output = 1, c.rope_scale = 1, c.rope_theta = 10000;
    snprintf(path, sizeof path, "%s", in_folder("stolen"));
    ml_random_seed(&random, 1);
    REQUIRE(create_model(&c, ML_F32, &random, &allocator, &model, NULL) == ML_OK);
    write_file(path, "old", 3);
    snprintf(t.temporary, sizeof t.temporary, "%s.tmp", path);
    CHECK(ml_model_save(model, path, &desc, &error) == ML_ERROR_FILE &&
          strstr(error.text, "cannot be written"));
    CHECK(t.has_stolen);
    bytes is = read_file(path), theirs = read_file(t.temporary);
    CHECK(is.size == 3 && theirs.size == 5);
    free_bytes(&is), free_bytes(&theirs);
    remove(t.temporary);
    ml_model_free(model);
}

static int mode_of(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0 ? (int)(status.st_mode & 0777) : -1;
}

TEST(permissions_stay) {
    static const mode_t modes[] = {0600, 0640, 0666, 0700};
    const char *path = in_folder("mode.safetensors"), *json = in_folder("config.json");
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    ml_model *model = tiny();
    mode_t mask = umask(022);
    int i;
    REQUIRE(model);
    remove(json);
    CHECK(ml_model_save(model, path, &desc, NULL) == ML_OK);
    CHECK(mode_of(path) == 0644 && mode_of(json) == 0644); /* of new files the usual ones */
    for (i = 0; i < 4; i++) {
        CHECK(chmod(path, modes[i]) == 0 && chmod(json, modes[3 - i]) == 0);
        CHECK(ml_model_save(model, path, &desc, NULL) == ML_OK);
        CHECK(mode_of(path) == (int)modes[i] && mode_of(json) == (int)modes[3 - i]);
    }
    umask(mask);
    ml_model_free(model);
}

static int is_link(const char *path) {
    struct stat status;
    return lstat(path, &status) == 0 && S_ISLNK(status.st_mode);
}

/* Two links, of which one is in another folder, to a file that is there or not; and one that leads to itself. */
TEST(links_are_followed) {
    char first[700], second[700], file[700];
    ml_model *model = tiny(), *loaded;
    ml_error error;
    int i;
    snprintf(first, sizeof first, "%s", in_folder("first.gguf"));
    snprintf(second, sizeof second, "%s", in_folder("links/second.gguf"));
    snprintf(file, sizeof file, "%s", in_folder("links/file.gguf"));
    REQUIRE(model && make_folder(in_folder("links")));
    CHECK(symlink("links/second.gguf", first) == 0 && symlink("file.gguf", second) == 0);
    for (i = 0; i < 3; i++) {
        if (i == 1) write_old(file);
        if (i == 2) CHECK(remove(second) == 0 && symlink(file, second) == 0);
        CHECK(ml_model_save(model, first, NULL, &error) == ML_OK);
        CHECK(is_link(first) && is_link(second) && !is_link(file));
        loaded = load(file);
        REQUIRE(loaded);
        compare(model, loaded, ML_GGUF, ML_F32);
        ml_model_free(loaded);
        CHECK(!exists(in_folder("first.gguf.tmp")) && !exists(in_folder("links/file.gguf.tmp")));
    }
    CHECK(symlink("circle.gguf", in_folder("circle.gguf")) == 0);
    save_refused(model, in_folder("circle.gguf"), ELOOP);
    CHECK(symlink(file, in_folder("plain.gguf.tmp")) == 0); /* under a temporary name: not written into */
    write_old(file);
    CHECK(ml_model_save(model, in_folder("plain.gguf"), NULL, &error) == ML_OK);
    check_untouched(file);
    CHECK(!is_link(in_folder("plain.gguf")) && is_link(in_folder("plain.gguf.tmp")));
    ml_model_free(model);
}
#endif

/* Onto the file that the model itself uses: its mapping keeps the old bytes. */
TEST(onto_itself) {
    const char *path = in_folder("self.gguf");
    ml_model *model = tiny(), *mapped, *narrow;
    ml_save_desc desc = save_as(ML_GGUF, ML_F16);
    REQUIRE(model && ml_model_save(model, path, NULL, NULL) == ML_OK);
    mapped = load(path);
    REQUIRE(mapped && (mapped->private_part->archive != NULL) == is_little_endian());
    CHECK(ml_model_save(mapped, path, &desc, NULL) == ML_OK);
    compare(model, mapped, ML_GGUF, ML_F32);
    narrow = load(path);
    REQUIRE(narrow);
    compare(model, narrow, ML_GGUF, ML_F16);
    ml_model_free(narrow);
    ml_model_free(mapped);
    /* and onto what has the temporary name, left by a crash, from where it is removed */
    REQUIRE(ml_model_save(model, in_folder("rescued.gguf.tmp"), NULL, NULL) == ML_OK);
    set_age(in_folder("rescued.gguf.tmp"), 10000);
    mapped = load(in_folder("rescued.gguf.tmp"));
    REQUIRE(mapped && (mapped->private_part->archive != NULL) == is_little_endian());
    CHECK(ml_model_save(mapped, in_folder("rescued.gguf"), &desc, NULL) == ML_OK);
    CHECK(!exists(in_folder("rescued.gguf.tmp")));
    compare(model, mapped, ML_GGUF, ML_F32);
    ml_model_free(mapped);
    ml_model_free(model);
}

TEST(out_of_memory) {
    static const ml_format formats[] = {ML_GGUF, ML_SAFETENSORS};
    size_t f, fail_at;
    for (f = 0; f < 2; f++) {
        const char *path = in_folder(f ? "oom.safetensors" : "oom.gguf");
        ml_config c = some_config();
        ml_save_desc desc = save_as(formats[f], ML_BF16);
        ml_allocator allocator;
        ml_random random;
        counting memory;
        ml_model *model = NULL;
        ml_error error;
        memset(&memory, 0, sizeof memory);
        allocator.alloc = counting_alloc;
        allocator.free = counting_free;
        allocator.user = &memory;
        c.vocab_size = 8;
        ml_random_seed(&random, 1);
        REQUIRE(create_model(&c, ML_F32, &random, &allocator, &model, &error) == ML_OK);
        model->tokenizer = odd_tokenizer();
        write_old(path);
        write_old(in_folder("config.json"));
        for (fail_at = 1;; fail_at++) {
            size_t n_live = memory.n_live;
            ml_result result;
            memory.n_calls = 0;
            memory.fail_at = fail_at;
            result = ml_model_save(model, path, &desc, &error);
            CHECK(memory.n_live == n_live);
            if (!result) break;
            CHECK(result == ML_ERROR_MEMORY && error.text[0]);
            check_untouched(path);
            REQUIRE(fail_at < 20);
        }
        CHECK(fail_at > 2);
        ml_tokenizer_free((ml_tokenizer *)(uintptr_t)model->tokenizer);
        ml_model_free(model);
        CHECK(memory.n_live == 0);
    }
}

/* Saving takes memory for names and marks, not for weights: 20 MB of them here. */
TEST(memory_of_saving) {
    ml_config c = some_config();
    ml_allocator allocator;
    ml_random random;
    counting memory;
    ml_model *model = NULL;
    ml_save_desc desc = save_as(ML_GGUF, ML_Q4_0);
    size_t before;
    memset(&memory, 0, sizeof memory);
    allocator.alloc = counting_alloc;
    allocator.free = counting_free;
    allocator.user = &memory;
    c.vocab_size = 80000;
    ml_random_seed(&random, 1);
    REQUIRE(create_model(&c, ML_F16, &random, &allocator, &model, NULL) == ML_OK);
    before = memory.live;
    CHECK(before > 20000000);
    CHECK(ml_model_save(model, in_folder("large.gguf"), &desc, NULL) == ML_OK);
    CHECK(memory.peak - before < 10000);
    ml_model_free(model);
    remove(in_folder("large.gguf"));
}

/* ---- compared with the real files ---- */

static int same_value(const ml_value *a, const ml_value *b) {
    return a->kind == b->kind && a->i == b->i &&
           (a->f == b->f || a->kind == ML_VALUE_STRING || a->kind == ML_VALUE_LIST) &&
           a->length == b->length && a->list_type == b->list_type &&
           (a->kind != ML_VALUE_STRING || memcmp(a->s, b->s, a->length) == 0);
}

/* The file that we make of stories260K.pt, key by key compared with the one that llama.cpp's own converter made of
   the .bin. */
TEST(beside_llamacpp) {
    ml_model_load_desc load_desc;
    ml_model *model = NULL;
    ml_archive *ours = NULL, *theirs = NULL;
    const ml_value *a, *b;
    size_t i;
    NEED_SHARED();
    memset(&load_desc, 0, sizeof load_desc);
    load_desc.tokenizer = shared_path("models/tok512.bin");
    REQUIRE(ml_model_load(shared_path("models/stories260K.pt"), &load_desc, &model, NULL) == ML_OK);
    CHECK(ml_model_save(model, in_folder("stories.gguf"), NULL, NULL) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_archive_load(in_folder("stories.gguf"), NULL, &ours, NULL) == ML_OK);
    REQUIRE(ml_archive_load(shared_path("models/llamacpp/stories260K-F32.gguf"), NULL, &theirs, NULL) ==
            ML_OK);
    for (i = 0; i < theirs->n_values; i++) {
        b = &theirs->values[i];
        a = ml_archive_find_value(ours, b->name);
        /* Their converter writes a fixed name, a context of 128 whatever the model's, "none" for the padding where we
           write no key, and a misspelled key that nothing reads. */
        if (strcmp(b->name, "tokenizer.ggml.seperator_token_id") == 0) continue;
        if (strcmp(b->name, "tokenizer.ggml.padding_token_id") == 0) {
            CHECK(!a && b->i == (int64_t)UINT32_MAX);
            continue;
        }
        REQUIRE(a != NULL);
        if (strcmp(b->name, "general.name") == 0) {
            CHECK(a->length == 9 && memcmp(a->s, "minillama", 9) == 0);
        } else if (strcmp(b->name, "llama.context_length") == 0) {
            CHECK(a->i == 512 && b->i == 128);
        } else {
            CHECK(same_value(a, b));
            if (!same_value(a, b)) printf("%s differs\n", b->name);
        }
    }
    /* the lists: 512 strings are equal if their bytes are, up to the first score */
    a = ml_archive_find_value(ours, "tokenizer.ggml.tokens"),
    b = ml_archive_find_value(theirs, "tokenizer.ggml.tokens");
    {
        size_t at = 0, k;
        for (k = 0; k < 512; k++) { /* an eight-byte length, of which one byte is used here, and the text */
            CHECK(a->s[at] == b->s[at]);
            at += 8 + (unsigned char)b->s[at];
        }
        CHECK(at > 4096 + 512 && memcmp(a->s, b->s, at) == 0);
    }
    a = ml_archive_find_value(ours, "tokenizer.ggml.scores"),
    b = ml_archive_find_value(theirs, "tokenizer.ggml.scores");
    CHECK(memcmp(a->s, b->s, 512 * 4) == 0);
    a = ml_archive_find_value(ours, "tokenizer.ggml.token_type");
    b = ml_archive_find_value(theirs, "tokenizer.ggml.token_type");
    CHECK(memcmp(a->s, b->s, 512 * 4) == 0);
    for (i = 0; i < theirs->n_arrays; i++) {
        const ml_array *y = &theirs->arrays[i], *x = ml_archive_find_array(ours, y->name);
        if (strcmp(y->name, "output.weight") == 0) { /* tied: theirs repeats the embedding */
            CHECK(!x);
            continue;
        }
        REQUIRE(x && x->type == y->type && x->n_dims == y->n_dims && ml_array_count(x) == ml_array_count(y));
        CHECK(x->shape[0] == y->shape[0] &&
              memcmp(x->data, y->data, ml_type_row_bytes(x->type, ml_array_count(x))) == 0);
    }
    CHECK(ours->n_arrays + 1 == theirs->n_arrays);
    ml_archive_free(ours);
    ml_archive_free(theirs);
}

/* And the safetensors that we make of it compared with the one that Hugging Face's scripts made. */
TEST(beside_hugging_face) {
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_TYPE_NONE);
    ml_model *model = NULL;
    ml_archive *ours = NULL, *theirs = NULL;
    size_t i;
    NEED_SHARED();
    REQUIRE(ml_model_load(shared_path("models/stories260K.pt"), NULL, &model, NULL) == ML_OK);
    CHECK(ml_model_save(model, in_folder("hf.safetensors"), &desc, NULL) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_archive_load(in_folder("hf.safetensors"), NULL, &ours, NULL) == ML_OK);
    REQUIRE(ml_archive_load(shared_path("models/stories260K-hf/model.safetensors"), NULL, &theirs, NULL) ==
            ML_OK);
    CHECK(ours->n_arrays == theirs->n_arrays);
    for (i = 0; i < theirs->n_arrays; i++) {
        const ml_array *y = &theirs->arrays[i], *x = ml_archive_find_array(ours, y->name);
        REQUIRE(x && x->type == y->type && x->n_dims == y->n_dims && ml_array_count(x) == ml_array_count(y));
        CHECK(x->shape[0] == y->shape[0] &&
              memcmp(x->data, y->data, ml_type_row_bytes(x->type, ml_array_count(x))) == 0);
    }
    ml_archive_free(ours);
    ml_archive_free(theirs);
}

/* What a config.json says of bos, eos and padding stays, with a tokenizer that knows less, and without one; a
   classifier always has a padding, without which Hugging Face's library takes no batches. */
TEST(ids_of_a_config) {
    static const char ids[] = ", \"bos_token_id\": 3, \"eos_token_id\": [2, 5], \"pad_token_id\": 7}";
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_TYPE_NONE);
    ml_model *model = NULL;
    ml_config c = some_config();
    ml_random random;
    ml_random_seed(&random, 1);
    REQUIRE(create_model(&c, ML_F32, &random, NULL, &model, NULL) == ML_OK);
    for (int turn = 0; turn < 3; turn++) {
        CHECK(ml_model_save(model, in_folder("ids.safetensors"), &desc, NULL) == ML_OK);
        ml_model_free(model);
        bytes json = read_file(in_folder("config.json"));
        put_u8(&json, 0);
        char *text = (char *)json.data;
        CHECK((strstr(text, "\"pad_token_id\": 7") != NULL) == (turn > 0));
        CHECK((strstr(text, "\"eos_token_id\": [2, 5]") != NULL) == (turn > 0));
        CHECK((strstr(text, "\"bos_token_id\": 3") != NULL) == (turn > 0));
        if (!turn) {
            *strrchr(text, '}') = 0;
            json.size = strlen(text);
            put(&json, ids, sizeof ids - 1);
            write_file(in_folder("config.json"), json.data, json.size);
        }
        free_bytes(&json);
        REQUIRE(ml_model_load(in_folder("ids.safetensors"), NULL, &model, NULL) == ML_OK);
    }
    ml_model_free(model);
}

/* A vocabulary of 32000 pieces goes through a GGUF unchanged. */
TEST(llama_tokenizer) {
    ml_config c = some_config();
    ml_tokenizer *tokenizer = NULL;
    ml_model *model, *loaded;
    int32_t id;
    int wrong = 0;
    NEED_SHARED();
    c.vocab_size = 32000;
    REQUIRE(ml_tokenizer_load(shared_path("data/tokenizer.model"), NULL, &tokenizer, NULL) == ML_OK);
    model = make(&c, ML_F16);
    REQUIRE(model);
    model->tokenizer = model->private_part->tokenizer = tokenizer;
    CHECK(ml_model_save(model, in_folder("llama.gguf"), NULL, NULL) == ML_OK);
    loaded = load(in_folder("llama.gguf"));
    REQUIRE(loaded && loaded->tokenizer);
    for (id = 0; id < 32000; id++) {
        size_t n, m;
        float score, other;
        ml_piece_kind kind, other_kind;
        const char *p = ml_tokenizer_piece(tokenizer, id, &n, &score, &kind);
        const char *q = ml_tokenizer_piece(loaded->tokenizer, id, &m, &other, &other_kind);
        if (n != m || memcmp(p, q, n) != 0 || score != other || kind != other_kind) wrong++;
    }
    CHECK(wrong == 0);
    ml_model_free(loaded);
    ml_model_free(model);
}

/* ---- keys that mean nothing here ---- */

/* What is kept, in this order. */
static bytes foreign_keys(void) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_key(&b, "general.license", 8), gguf_text(&b, "apache-2.0");
    gguf_key(&b, "general.author", 8), gguf_text(&b, "J\xc3\xb6rg");
    gguf_key(&b, "tokenizer.chat_template", 8), gguf_text(&b, "{% for m in messages %}\n{{ m }}\t");
    gguf_key(&b, "general.tags", 9), put_u32(&b, 8), put_u64(&b, 2), gguf_text(&b, "small"),
        gguf_text(&b, "");
    gguf_key(&b, "other.numbers", 9), put_u32(&b, 2), put_u64(&b, 3), put_u16(&b, 1), put_u32(&b, 70000);
    gguf_key(&b, "other.empty", 9), put_u32(&b, 6), put_u64(&b, 0);
    gguf_key(&b, "other.wide", 10), put_u64(&b, UINT64_MAX);
    gguf_key(&b, "other.f64", 12), put_u64(&b, 0xc004000000000001u);
    gguf_key(&b, "llama.rope.scaling.finetuned", 7), put_u8(&b, 1);
    gguf_key(&b, "mixtral.block_count", 7), put_u8(&b, 1);
    return b;
}

/* What the writer has to say itself, the name among it, or nobody. */
static bytes own_keys(void) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    gguf_key(&b, "general.name", 8), gguf_text(&b, "My Fine Chat Model");
    gguf_key(&b, "general.file_type", 4), put_u32(&b, 99);
    gguf_key(&b, "general.quantization_version", 4), put_u32(&b, 99);
    gguf_key(&b, "general.alignment", 4), put_u32(&b, 64);
    gguf_key(&b, "split.no", 2), put_u16(&b, 0);
    gguf_key(&b, "split.count", 2), put_u16(&b, 1);
    gguf_key(&b, "minillama.train.step", 11), put_u64(&b, 5);
    gguf_key(&b, "llama.embedding_length", 4), put_u32(&b, 64);
    gguf_key(&b, "llama.block_count", 4), put_u32(&b, 1);
    gguf_key(&b, "llama.attention.head_count", 4), put_u32(&b, 4);
    gguf_key(&b, "llama.attention.head_count_kv", 4), put_u32(&b, 2);
    gguf_key(&b, "llama.context_length", 4), put_u32(&b, 33);
    gguf_key(&b, "llama.pooling_type", 4), put_u32(&b, 3);
    gguf_key(&b, "llama.rope.scaling.original_context_length", 4), put_u32(&b, 4096);
    return b;
}
enum { FOREIGN_KEYS = 10, OWN_KEYS = 15 };

/* A file of a model with these keys; its tensors are those of `model`. */
static void write_with_keys(const char *path, const ml_model *model, const bytes *keys, unsigned n_keys) {
    bytes b;
    uint64_t offset = 0;
    int pass, i, n = 0;
    memset(&b, 0, sizeof b);
    for (i = 0; i < model->n_tensors; i++) n += model->tensors[i].data != NULL;
    gguf_begin(&b, 3, (uint64_t)n, n_keys);
    put(&b, keys->data, keys->size);
    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < model->n_tensors; i++) {
            const ml_tensor *t = &model->tensors[i];
            char name[ML_NAME_SIZE];
            size_t size = t->rows * t->cols * sizeof(float);
            if (!t->data) continue;
            ml_model_tensor_name(model, i, name);
            if (pass) put_numbers(&b, t->data, t->rows * t->cols, sizeof(float)), gguf_pad(&b, 64);
            if (!pass) gguf_tensor(&b, name, t->rows > 1 ? 2 : 1, t->rows, t->cols, 0, offset);
            offset += (size + 63) / 64 * 64;
        }
        gguf_pad(&b, 64);
    }
    write_file(path, b.data, b.size);
    free_bytes(&b);
}

/* How often the bytes are in the file. */
static int count_in(const char *path, const void *wanted, size_t n) {
    bytes b = read_file(path);
    int count = 0;
    for (size_t at = 0; at + n <= b.size; at++) count += memcmp(b.data + at, wanted, n) == 0;
    free_bytes(&b);
    return count;
}

static int64_t int_in(const char *path, const char *key) {
    ml_archive *archive;
    int64_t i = -1;
    if (ml_archive_load(path, NULL, &archive, NULL)) return -2;
    if (ml_archive_find_value(archive, key)) i = ml_archive_find_value(archive, key)->i;
    ml_archive_free(archive);
    return i;
}

static ml_model *one_layer(void) {
    ml_config c = some_config();
    c.n_layers = 1;
    return make(&c, ML_F32);
}

/* Whether the weights stay in the file or not, and whatever type they get: the keys are the same bytes. */
TEST(kept_keys) {
    static const char name[] = "My Fine Chat Model";
    const char *in = in_folder("keys.gguf"), *out = in_folder("kept.gguf");
    bytes keys = own_keys(), foreign = foreign_keys();
    ml_model *model = one_layer(), *loaded;
    ml_model_load_desc as_f32;
    REQUIRE(model);
    put(&keys, foreign.data, foreign.size);
    write_with_keys(in, model, &keys, OWN_KEYS + FOREIGN_KEYS);
    memset(&as_f32, 0, sizeof as_f32);
    as_f32.type = ML_F32;
    for (int i = 0; i < 3; i++) {
        ml_save_desc desc = save_as(ML_GGUF, i ? ML_Q8_0 : ML_TYPE_NONE);
        ml_error error;
        REQUIRE(ml_model_load(in, i == 1 ? &as_f32 : NULL, &loaded, &error) == ML_OK);
        if (i == 2) desc.name = "another";
        CHECK(ml_model_save(loaded, out, &desc, &error) == ML_OK);
        CHECK(count_in(out, foreign.data, foreign.size) == 1);
        CHECK(count_in(out, name, sizeof name - 1) == (i < 2) && count_in(out, "another", 7) == (i == 2));
        CHECK(int_in(out, "other.wide") == INT64_MAX && int_in(out, "mixtral.block_count") == 1);
        CHECK(int_in(out, "general.file_type") == (i ? 7 : 0));
        CHECK(int_in(out, "llama.rope.scaling.original_context_length") == 4096);
        CHECK(int_in(out, "general.alignment") == -1 && int_in(out, "split.count") == -1);
        CHECK(int_in(out, "minillama.train.step") == -1 && int_in(out, "llama.pooling_type") == -1);
        ml_model_free(loaded);
        loaded = load(out);
        CHECK(loaded != NULL);
        if (loaded) compare(model, loaded, ML_GGUF, desc.type);
        ml_model_free(loaded);
    }
    REQUIRE((loaded = load(out)) != NULL); /* onto itself, from where the keys are read */
    CHECK(ml_model_save(loaded, out, NULL, NULL) == ML_OK && count_in(out, "another", 7) == 1);
    CHECK(ml_model_save(loaded, out, NULL, NULL) == ML_OK && count_in(out, "apache-2.0", 10) == 1);
    ml_model_free(loaded);
    ml_model_free(model);
    free_bytes(&keys), free_bytes(&foreign);
}

/* A tokenizer that cannot be used is kept, too, until the model has another one. */
TEST(kept_tokenizer) {
    const char *in = in_folder("bpe.gguf"), *out = in_folder("bpe2.gguf");
    bytes keys = own_keys(), other;
    ml_model *model = one_layer(), *loaded;
    ml_model_load_desc desc;
    size_t begin = keys.size;
    REQUIRE(model);
    gguf_key(&keys, "tokenizer.ggml.model", 8), gguf_text(&keys, "gpt2");
    gguf_key(&keys, "tokenizer.ggml.tokens", 9), put_u32(&keys, 8), put_u64(&keys, 2);
    gguf_text(&keys, "a"), gguf_text(&keys, "b");
    gguf_key(&keys, "tokenizer.ggml.merges", 9), put_u32(&keys, 8), put_u64(&keys, 1),
        gguf_text(&keys, "a b");
    gguf_key(&keys, "tokenizer.ggml.bos_token_id", 4), put_u32(&keys, 1);
    gguf_key(&keys, "tokenizer.chat_template", 8), gguf_text(&keys, "{{ m }}");
    write_with_keys(in, model, &keys, OWN_KEYS + 5);
    REQUIRE((loaded = load(in)) != NULL);
    CHECK(!loaded->tokenizer && ml_model_save(loaded, out, NULL, NULL) == ML_OK);
    CHECK(count_in(out, keys.data + begin, keys.size - begin) == 1);
    ml_model_free(loaded);

    memset(&other, 0, sizeof other); /* 50 pieces in llama2.c's format */
    put_u32(&other, 8);
    for (int i = 0; i < 50; i++) {
        put_f32(&other, 0);
        put_u32(&other, 2);
        put_u8(&other, 'A' + (unsigned)i / 10), put_u8(&other, '0' + (unsigned)i % 10);
    }
    memset(&desc, 0, sizeof desc);
    desc.tokenizer_data = other.data;
    desc.tokenizer_size = other.size;
    REQUIRE(ml_model_load(in, &desc, &loaded, NULL) == ML_OK);
    CHECK(ml_model_save(loaded, out, NULL, NULL) == ML_OK);
    CHECK(count_in(out, "gpt2", 4) == 0 && count_in(out, "merges", 6) == 0 &&
          count_in(out, "{{ m }}", 7) == 1);
    ml_model_free(loaded);
    loaded = load(out);
    CHECK(loaded && loaded->tokenizer && loaded->tokenizer->n_pieces == 50);
    ml_model_free(loaded);

    ml_tokenizer *given = NULL; /* also where it is given later */
    REQUIRE((loaded = load(in)) != NULL);
    REQUIRE(ml_tokenizer_load_memory(other.data, other.size, NULL, &given, NULL) == ML_OK);
    CHECK(ml_model_set_tokenizer(loaded, given, NULL) == ML_OK);
    CHECK(ml_model_save(loaded, out, NULL, NULL) == ML_OK);
    CHECK(count_in(out, "gpt2", 4) == 0 && count_in(out, "merges", 6) == 0 &&
          count_in(out, "{{ m }}", 7) == 1);
    ml_model_free(loaded);
    ml_model_free(model);
    free_bytes(&keys), free_bytes(&other);
}

int main(void) {
    if (!folder_begin("save")) return 1;
    RUN(gguf_types);
    RUN(safetensors_types);
    RUN(torch_types);
    RUN(odd_rows);
    RUN(modes);
    RUN(floats_of_the_configuration);
    RUN(decimals);
    RUN(gguf_layout);
    RUN(file_types);
    RUN(safetensors_layout);
    RUN(torch_layout);
    RUN(torch_refused);
    RUN(torch_loads);
    RUN(odd_pieces);
    RUN(rows_without_pieces);
    RUN(no_output);
    RUN(checkpoint_without_output);
    RUN(mask_of_others);
    RUN(refused);
    RUN(full_disk);
    RUN(no_room);
    RUN(protected_paths);
    RUN(folder_in_the_way);
    RUN(empty_path);
    RUN(temporary_names_are_taken);
    RUN(savers_of_one_path);
    RUN(temporary_file_of_another);
    RUN(permissions_stay);
    RUN(links_are_followed);
    RUN(onto_itself);
    RUN(out_of_memory);
    RUN(memory_of_saving);
    RUN(beside_llamacpp);
    RUN(beside_hugging_face);
    RUN(ids_of_a_config);
    RUN(llama_tokenizer);
    RUN(kept_keys);
    RUN(kept_tokenizer);
    return !folder_end() || test_report("test_save");
}
