/* ml_model_save: models come back, files are as other programs expect them, and failure leaves the old file. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include <signal.h>
#include <sys/resource.h>
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
    if (!wanted) return format == ML_SAFETENSORS && tensor->type >= ML_Q8_0 ? ML_F16 : tensor->type;
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
    const char *path = in_folder(format == ML_GGUF ? "m.gguf" : "m.safetensors");
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
                CHECK(memcmp((const float *)query->data + (head * 16 + half * 8 + k) * 64,
                             (const float *)wq->data + (head * 16 + 2 * k + half) * 64, 64 * 4) == 0);
    CHECK(memcmp(value->data, tensor_named(model, "blk.1.attn_v.weight")->data, 32 * 64 * 4) == 0);
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

/* A GGUF has as many tokens as the embedding has rows, which llama.cpp wants; here they are still only so many pieces,
   and the file that is made of the loaded model has the same bytes. */
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
    int no_format = 2;
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

/* The temporary name leads to a device that is always full. The second model is so small that all of it waits in
   stdio's buffer until the file is closed. */
TEST(full_disk) {
    ml_config c = some_config();
    ml_model *models[2];
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    ml_error error;
    int i;
    if (!exists("/dev/full")) SKIP("no /dev/full");
    models[0] = make(&c, ML_F32);
    c.dim = c.hidden_dim = c.vocab_size = 2;
    c.n_heads = c.n_kv_heads = c.n_layers = 1;
    models[1] = make(&c, ML_F32);
    REQUIRE(models[0] && models[1]);
    for (i = 0; i < 2; i++) {
        write_old(in_folder("full.gguf"));
        CHECK(symlink("/dev/full", in_folder("full.gguf.tmp")) == 0);
        CHECK(ml_model_save(models[i], in_folder("full.gguf"), NULL, &error) == ML_ERROR_FILE);
        CHECK(strstr(error.text, "full.gguf") && strstr(error.text, strerror(ENOSPC)));
        check_untouched(in_folder("full.gguf"));
    }
    write_old(in_folder(
        "full.safetensors")); /* the weights fit, their configuration does not: both stay as they are */
    write_old(in_folder("config.json"));
    CHECK(symlink("/dev/full", in_folder("config.json.tmp")) == 0);
    CHECK(ml_model_save(models[0], in_folder("full.safetensors"), &desc, &error) == ML_ERROR_FILE);
    CHECK(strstr(error.text, "config.json") != NULL);
    check_untouched(in_folder("full.safetensors"));
    check_untouched(in_folder("config.json"));
    ml_model_free(models[0]);
    ml_model_free(models[1]);
}

/* No file may grow beyond a limit: every part of the writing fails once. */
TEST(no_room) {
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
}

TEST(folder_in_the_way) {
    ml_model *model = tiny();
    ml_error error;
    REQUIRE(model);
    CHECK(mkdir(in_folder("dir.gguf"), 0777) == 0); /* rename cannot replace it */
    CHECK(ml_model_save(model, in_folder("dir.gguf"), NULL, &error) == ML_ERROR_FILE);
    CHECK(exists(in_folder("dir.gguf")) && !exists(in_folder("dir.gguf.tmp")));
    CHECK(mkdir(in_folder("tmp.gguf.tmp"), 0777) ==
          0); /* a folder has the temporary name: it is not removed */
    CHECK(ml_model_save(model, in_folder("tmp.gguf"), NULL, &error) == ML_ERROR_FILE);
    CHECK(exists(in_folder("tmp.gguf.tmp")) && !exists(in_folder("tmp.gguf")));
    rmdir(in_folder("dir.gguf")), rmdir(in_folder("tmp.gguf.tmp"));
    ml_model_free(model);
}

/* Onto the file that the model itself uses: its mapping keeps the old bytes. */
TEST(onto_itself) {
    const char *path = in_folder("self.gguf");
    ml_model *model = tiny(), *mapped, *narrow;
    ml_save_desc desc = save_as(ML_GGUF, ML_F16);
    REQUIRE(model && ml_model_save(model, path, NULL, NULL) == ML_OK);
    mapped = load(path);
    REQUIRE(mapped && mapped->private_part->archive);
    CHECK(ml_model_save(mapped, path, &desc, NULL) == ML_OK);
    compare(model, mapped, ML_GGUF, ML_F32);
    narrow = load(path);
    REQUIRE(narrow);
    compare(model, narrow, ML_GGUF, ML_F16);
    ml_model_free(narrow);
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
           name the zero byte's piece, and a misspelled key that nothing reads. */
        if (strcmp(b->name, "tokenizer.ggml.seperator_token_id") == 0) continue;
        REQUIRE(a != NULL);
        if (strcmp(b->name, "general.name") == 0) {
            CHECK(a->length == 9 && memcmp(a->s, "minillama", 9) == 0);
        } else if (strcmp(b->name, "llama.context_length") == 0) {
            CHECK(a->i == 512 && b->i == 128);
        } else if (strcmp(b->name, "tokenizer.ggml.padding_token_id") == 0) {
            CHECK(a->i == 3 && b->i == (int64_t)UINT32_MAX);
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

int main(void) {
    if (!folder_begin("save")) return 1;
    RUN(gguf_types);
    RUN(safetensors_types);
    RUN(odd_rows);
    RUN(modes);
    RUN(floats_of_the_configuration);
    RUN(decimals);
    RUN(gguf_layout);
    RUN(file_types);
    RUN(safetensors_layout);
    RUN(odd_pieces);
    RUN(rows_without_pieces);
    RUN(no_output);
    RUN(checkpoint_without_output);
    RUN(mask_of_others);
    RUN(refused);
    RUN(full_disk);
    RUN(no_room);
    RUN(folder_in_the_way);
    RUN(onto_itself);
    RUN(out_of_memory);
    RUN(memory_of_saving);
    RUN(beside_llamacpp);
    RUN(beside_hugging_face);
    RUN(llama_tokenizer);
    return !folder_end() || test_report("test_save");
}
