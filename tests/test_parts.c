/* Models of several files: an index of shards, a split GGUF, a folder. The shards are cut from a model that is saved
   whole, so every number must be the same as there. */
#include "preamble.h"
#include "build_files.h"
#include "folder.h"
#include "models.h"

static ml_error error;

static int says(const char *words) {
    if (strstr(error.text, words)) return 1;
    printf("\"%s\" does not say \"%s\"\n", error.text, words);
    return 0;
}

/* ---- a model, whole and cut ---- */

static ml_model *whole; /* loaded from whole.safetensors */
static ml_archive *hf, *gguf;

static int make_whole(void) {
    ml_config c;
    ml_random random;
    ml_model *model;
    ml_save_desc as_gguf = save_as(ML_GGUF, ML_F32), as_hf = save_as(ML_SAFETENSORS, ML_F32);
    memset(&c, 0, sizeof c);
    c.dim = 16, c.hidden_dim = 24, c.n_layers = 2, c.n_heads = 2, c.vocab_size = 11, c.max_seq_len = 8;
    ml_random_seed(&random, 3);
    if (create_model(&c, ML_F32, &random, NULL, &model, &error)) return 0;
    int ok = !ml_model_save(model, in_folder("whole.gguf"), &as_gguf, &error) &&
             !ml_model_save(model, in_folder("whole.safetensors"), &as_hf, &error) &&
             !ml_archive_load(in_folder("whole.gguf"), NULL, &gguf, &error) &&
             !ml_archive_load(in_folder("whole.safetensors"), NULL, &hf, &error) &&
             !ml_model_load(in_folder("whole.safetensors"), NULL, &whole, &error);
    ml_model_free(model);
    if (!ok) printf("%s\n", error.text);
    return ok;
}

static void same_model(const ml_model *model) {
    CHECK(model->config.vocab_size == 11 && model->n_tensors == whole->n_tensors);
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *a = &model->tensors[i], *b = &whole->tensors[i];
        CHECK(!a->data == !b->data && a->rows == b->rows && a->cols == b->cols);
        if (a->data) CHECK(memcmp(a->data, b->data, a->rows * a->cols * sizeof(float)) == 0);
    }
}

/* It loads, and is the whole model. */
static void loads(const char *path) {
    ml_model *model = NULL;
    if (ml_model_load(path, NULL, &model, &error)) printf("%s: %s\n", path, error.text);
    REQUIRE(model);
    same_model(model);
    ml_model_free(model);
}

/* Both as a model and as an archive it is refused with this code and these words. */
static void refused(const char *path, ml_result code, const char *words) {
    ml_model *model = whole;
    ml_archive *archive = hf;
    CHECK(ml_archive_load(path, NULL, &archive, &error) == code && archive == NULL && says(words));
    CHECK(ml_model_load(path, NULL, &model, &error) == code && model == NULL && says(words));
}

static void put_array(bytes *data, const ml_array *array) {
    put(data, array->data, ml_type_row_bytes(array->type, ml_array_count(array)));
}

/* A safetensors with the arrays begin .. end - 1 of the whole one. */
static void write_shard(const char *path, size_t begin, size_t end) {
    bytes header = {NULL, 0, 0}, data = {NULL, 0, 0};
    char text[256];
    put_text(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = begin; i < end; i++) {
        const ml_array *a = &hf->arrays[i];
        size_t from = data.size;
        put_array(&data, a);
        snprintf(text, sizeof text, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%d%s%d],\"data_offsets\":[%d,%d]}",
                 a->name, (int)a->shape[0], a->n_dims > 1 ? "," : "", a->n_dims > 1 ? (int)a->shape[1] : 0,
                 (int)from, (int)data.size);
        if (a->n_dims == 1)
            snprintf(text, sizeof text, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[%d,%d]}",
                     a->name, (int)a->shape[0], (int)from, (int)data.size);
        put_text(&header, text);
    }
    put_text(&header, "}");
    while (header.size % 8) put_text(&header, " "); /* so that numbers are aligned, and used in place */
    put_u8(&header, 0);
    bytes file = safetensors_file((const char *)header.data, data.data, data.size);
    write_file(path, file.data, file.size);
    free_bytes(&header), free_bytes(&data), free_bytes(&file);
}

/* {"weight_map": ...} of all arrays, from last to first; from `cut` on they are in the second shard. more: another
   entry, or "". */
static void write_index(const char *path, const char *first, const char *second, size_t cut,
                        const char *more) {
    bytes b = {NULL, 0, 0};
    char text[256];
    put_text(&b, "\n {\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    put_text(&b, more);
    for (size_t i = hf->n_arrays; i-- > 0;) {
        snprintf(text, sizeof text, "\"%s\": \"%s\"%s", hf->arrays[i].name, i < cut ? first : second,
                 i ? ",\n" : "");
        put_text(&b, text);
    }
    put_text(&b, "}}\n");
    write_file(path, b.data, b.size);
    free_bytes(&b);
}

#define FIRST "model-00001-of-00002.safetensors"
#define SECOND "model-00002-of-00002.safetensors"
#define INDEX "model.safetensors.index.json"
enum { CUT = 7 };

/* A folder with config.json, two shards and their index. */
static void write_sharded(const char *name) {
    char path[700];
    bytes config = read_file(in_folder("config.json"));
    CHECK(make_folder(in_folder(name)));
    snprintf(path, sizeof path, "%s/config.json", in_folder(name));
    write_file(path, config.data, config.size);
    snprintf(path, sizeof path, "%s/" FIRST, in_folder(name));
    write_shard(path, 0, CUT);
    snprintf(path, sizeof path, "%s/" SECOND, in_folder(name));
    write_shard(path, CUT, hf->n_arrays);
    snprintf(path, sizeof path, "%s/" INDEX, in_folder(name));
    write_index(path, FIRST, SECOND, CUT, "");
    free_bytes(&config);
}

/* ---- an index ---- */

TEST(sharded) {
    ml_archive *archive;
    bytes index;
    ml_model *model;
    write_sharded("sharded");
    loads(in_folder("sharded/" INDEX));
    loads(in_folder("sharded"));
    loads(in_folder("sharded/"));
    REQUIRE(ml_archive_load(in_folder("sharded"), NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == hf->n_arrays && archive->n_values == 1); /* __metadata__.format, once */
    CHECK(strcmp(archive->arrays[CUT].name, hf->arrays[CUT].name) == 0 &&
          strcmp(archive->format, "safetensors") == 0);
    ml_archive_free(archive);
    CHECK(make_folder(in_folder("sharded/inner")));
    write_shard(in_folder("sharded/inner/" SECOND), CUT, hf->n_arrays);
    write_index(in_folder("sharded/deep.index.json"), FIRST, "inner/" SECOND, CUT, "");
    loads(in_folder("sharded/deep.index.json"));
    index = read_file(in_folder("sharded/" INDEX));
    CHECK(ml_model_load_memory(index.data, index.size, NULL, &model, &error) == ML_ERROR_FORMAT &&
          says("load it by its path"));
    free_bytes(&index);
}

TEST(one_shard_alone) {
    ml_model *model;
    ml_archive *archive;
    CHECK(ml_model_load(in_folder("sharded/" FIRST), NULL, &model, &error) == ML_ERROR_MISMATCH);
    CHECK(says("this is 1 of 2 shards") && says(".index.json") && model == NULL);
    CHECK(ml_model_load(in_folder("sharded/" SECOND), NULL, &model, &error) == ML_ERROR_MISMATCH);
    CHECK(says("this is 2 of 2 shards"));
    CHECK(ml_archive_load(in_folder("sharded/" SECOND), NULL, &archive, &error) == ML_OK);
    CHECK(archive && archive->n_arrays == hf->n_arrays - CUT);
    ml_archive_free(archive);
    /* a number in the name does not refuse a file that is whole */
    bytes b = read_file(in_folder("whole.safetensors"));
    write_file(in_folder("whole-00001-of-00002.safetensors"), b.data, b.size);
    loads(in_folder("whole-00001-of-00002.safetensors"));
    free_bytes(&b);
}

/* A header of 31,520 bytes: its length begins like JSON, " {", and the tensor is named like an index. */
TEST(a_length_like_json) {
    bytes header = {NULL, 0, 0};
    const float number = 1;
    ml_archive *archive;
    put_text(&header, "{\"weight_map\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    while (header.size < 0x7b20) put_text(&header, " ");
    put_u8(&header, 0);
    bytes file = safetensors_file((const char *)header.data, &number, sizeof number);
    write_file(in_folder("length.safetensors"), file.data, file.size);
    REQUIRE(ml_archive_load(in_folder("length.safetensors"), NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == 1 && strcmp(archive->format, "safetensors") == 0);
    ml_archive_free(archive);
    free_bytes(&header), free_bytes(&file);
}

TEST(wrong_index) {
    const char *index = in_folder("sharded/wrong.index.json");
    char name[128];
    write_index(index, FIRST, "model-00003-of-00003.safetensors", CUT, "");
    refused(index, ML_ERROR_FILE, "model-00003-of-00003.safetensors cannot be opened");
    write_index(index, FIRST, SECOND, CUT, "\"model.layers.0.rotary_emb.inv_freq\": \"" FIRST "\",");
    loads(index);
    write_shard(in_folder("sharded/fewer"), CUT + 1, hf->n_arrays);
    write_index(index, FIRST, "fewer", CUT, "");
    ml_model *model = whole;
    CHECK(ml_model_load(index, NULL, &model, &error) == ML_ERROR_MISMATCH && !model && says("is missing"));
    write_index(index, FIRST, SECOND, CUT + 1, "");
    snprintf(name, sizeof name, "tensor %s is not in " FIRST, hf->arrays[CUT].name);
    refused(index, ML_ERROR_MISMATCH, name);
    write_shard(in_folder("sharded/model-00002-of-00002.twice"), CUT - 1, hf->n_arrays);
    write_index(index, FIRST, "model-00002-of-00002.twice", CUT, "");
    snprintf(name, sizeof name, "tensor %s is in two shards, " FIRST " and ", hf->arrays[CUT - 1].name);
    refused(index, ML_ERROR_MISMATCH, name);
    write_file(in_folder("sharded/short"), "\x10\0\0\0\0\0\0\0{", 9);
    write_index(index, FIRST, "short", CUT, "");
    refused(index, ML_ERROR_TRUNCATED, "short: file is cut short");
}

static void text_refused(const char *text, ml_result code, const char *words) {
    write_file(in_folder("text.json"), text, strlen(text));
    refused(in_folder("text.json"), code, words);
}

TEST(hostile_index) {
    static const char *const outside[] = {
        "../whole.safetensors",      "/etc/passwd", "..", "",   "a\\\\b", "c:d", "a\\u0000b",
        "a/../../whole.safetensors", "a//b",        "a/", "./a"};
    char text[128];
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        snprintf(text, sizeof text, "{\"weight_map\": {\"a\": \"%s\"}}", outside[i]);
        text_refused(text, ML_ERROR_FORMAT, "no name of a file beside it");
    }
    text_refused("{\"weight_map\": {\"a\": 1}}", ML_ERROR_FORMAT, "weight_map.a is not the name of a file");
    text_refused("{\"weight_map\": {}}", ML_ERROR_FORMAT, "weight_map is empty");
    text_refused("{\"weight_map\": \"a\"}", ML_ERROR_FORMAT, "weight_map is empty");
    text_refused("{\"weight_map\": {\"a\": \"b\"}", ML_ERROR_FORMAT, "JSON");
    text_refused("{\"weight_map\": {\"a\": \"text.json\"}}", ML_ERROR_FORMAT,
                 "text.json: not a known model file");
    text_refused("{\"vocab\": {\"a\": 1}}", ML_ERROR_FORMAT, "JSON text, not a model");
}

/* PyTorch's shards, as Hugging Face's pytorch_model.bin.index.json lists them. */
TEST(sharded_pickles) {
    ml_archive *archive;
    CHECK(make_folder(in_folder("bin")));
    for (int i = 0; i < 2; i++) {
        bytes pickle = {NULL, 0, 0};
        pk_begin(&pickle);
        put_text(&pickle, "}");
        pk_text(&pickle, i ? "b" : "a");
        pk_matrix(&pickle, "0", 2, 3 + i);
        put_text(&pickle, "s.");
        bytes file = pt_file(&pickle, 8);
        write_file(in_folder(i ? "bin/two.bin" : "bin/one.bin"), file.data, file.size);
        free_bytes(&pickle), free_bytes(&file);
    }
    const char text[] = "{\"weight_map\": {\"b\": \"two.bin\", \"a\": \"one.bin\"}}";
    write_file(in_folder("bin/pytorch_model.bin.index.json"), text, sizeof text - 1);
    REQUIRE(ml_archive_load(in_folder("bin"), NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == 2 && ml_archive_find_array(archive, "a")->shape[1] == 3);
    float x[8];
    CHECK(ml_array_read_floats(ml_archive_find_array(archive, "b"), x, 8) == ML_OK && x[7] == 7);
    ml_archive_free(archive);
}

/* ---- a split GGUF ---- */

static void gguf_int(bytes *b, const char *key, unsigned type, int64_t value, int n_bytes) {
    gguf_key(b, key, type);
    put_uint(b, (uint64_t)value, n_bytes);
}

typedef struct split {
    int no, count;     /* split.no, split.count */
    int64_t n_tensors; /* split.tensors.count */
    size_t begin, end; /* of the whole model's arrays */
} split;

/* As llama.cpp's gguf-split writes it: the keys of the model are in the first part only. */
static bytes split_file(split s) {
    bytes b = {NULL, 0, 0};
    uint64_t offset = 0;
    gguf_begin(&b, 3, s.end - s.begin, 3 + (s.no ? 0 : 6));
    gguf_int(&b, "split.no", 2, s.no, 2);
    gguf_int(&b, "split.count", 2, s.count, 2);
    gguf_int(&b, "split.tensors.count", 5, s.n_tensors, 4);
    if (!s.no) {
        gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
        gguf_int(&b, "llama.embedding_length", 4, 16, 4);
        gguf_int(&b, "llama.block_count", 4, 2, 4);
        gguf_int(&b, "llama.attention.head_count", 4, 2, 4);
        gguf_int(&b, "llama.context_length", 4, 8, 4);
        gguf_key(&b, "tokenizer.ggml.tokens", 9), put_u32(&b, 8), put_u64(&b, 1), gguf_text(&b, "<unk>");
    }
    for (size_t i = s.begin; i < s.end; i++) {
        const ml_array *a = &gguf->arrays[i];
        gguf_tensor(&b, a->name, a->n_dims, (uint64_t)a->shape[0], (uint64_t)a->shape[a->n_dims - 1], 0,
                    offset);
        offset += (ml_array_count(a) * 4 + 31) / 32 * 32;
    }
    if (s.begin < s.end) gguf_pad(&b, 32); /* without tensors a file may end here */
    for (size_t i = s.begin; i < s.end; i++) {
        put_array(&b, &gguf->arrays[i]);
        gguf_pad(&b, 32);
    }
    return b;
}

/* The keys that only a GGUF has are those of the first shard, whatever the others are. */
TEST(shards_of_two_formats) {
    static const char *const fields[] = {"llama.embedding_length", "llama.block_count",
                                         "llama.attention.head_count"};
    bytes b = {NULL, 0, 0}, index = {NULL, 0, 0};
    ml_model *model;
    ml_archive *archive;
    gguf_begin(&b, 3, 1, 5);
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    gguf_key(&b, "general.author", 8), gguf_text(&b, "me");
    for (int i = 0; i < 3; i++) gguf_int(&b, fields[i], 4, i ? 2 : 16, 4);
    gguf_tensor(&b, "x", 1, 1, 1, 0, 0);
    gguf_pad(&b, 32);
    put_floats(&b, 0, 8);
    write_file(in_folder("a.gguf"), b.data, b.size);
    put_text(&index, "{\"weight_map\": {\"x\": \"a.gguf\", \"model.norm.weight\": \"whole.safetensors\"}}");
    write_file(in_folder("two.index.json"), index.data, index.size);
    REQUIRE(ml_model_load(in_folder("two.index.json"), NULL, &model, &error) == ML_OK);
    same_model(model);
    CHECK(ml_model_save(model, in_folder("two.gguf"), NULL, &error) == ML_OK);
    ml_model_free(model);
    REQUIRE(ml_archive_load(in_folder("two.gguf"), NULL, &archive, &error) == ML_OK);
    CHECK(ml_archive_find_value(archive, "general.author") != NULL);
    ml_archive_free(archive);
    free_bytes(&b), free_bytes(&index);
}

static void write_split(const char *name, split s) {
    bytes b = split_file(s);
    write_file(in_folder(name), b.data, b.size);
    free_bytes(&b);
}

static split part(int no, int count, size_t begin, size_t end) {
    split s = {no, count, (int64_t)gguf->n_arrays, begin, end};
    return s;
}

TEST(split_gguf) {
    const size_t n = gguf->n_arrays;
    ml_archive *archive;
    write_split("s-00001-of-00004.gguf",
                part(0, 4, 0, 0)); /* gguf-split can put all keys into a part of their own */
    write_split("s-00002-of-00004.gguf", part(1, 4, 0, 9));
    write_split("s-00003-of-00004.gguf", part(2, 4, 9, n));
    write_split("s-00004-of-00004.gguf", part(3, 4, n, n));
    REQUIRE(ml_archive_load(in_folder("s-00001-of-00004.gguf"), NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == n && archive->n_values == 9);
    for (size_t i = 0; i < n; i++) {
        const ml_array *a = &archive->arrays[i], *b = &gguf->arrays[i];
        CHECK(strcmp(a->name, b->name) == 0 && ml_array_count(a) == ml_array_count(b));
        CHECK(memcmp(a->data, b->data, ml_array_count(b) * 4) == 0);
    }
    CHECK(ml_archive_find_value(archive, "split.no")->i == 0);
    ml_archive_free(archive);
    refused(in_folder("s-00002-of-00004.gguf"), ML_ERROR_UNSUPPORTED,
            "this is part 2 of 4 of a split GGUF: load part 1");
    bytes b = {NULL, 0, 0};
    gguf_begin(&b, 3, 0, 2);
    gguf_int(&b, "split.no", 11, INT64_MAX, 8);
    gguf_int(&b, "split.count", 2, 2, 2);
    write_file(in_folder("u-00001-of-00002.gguf"), b.data, b.size);
    refused(in_folder("u-00001-of-00002.gguf"), ML_ERROR_UNSUPPORTED,
            "this is part 9223372036854775807 of 2");
    free_bytes(&b);
}

TEST(wrong_split) {
    const char *first = in_folder("t-00001-of-00002.gguf"), *second = "t-00002-of-00002.gguf";
    const size_t n = gguf->n_arrays;
    ml_archive *archive;
    bytes b = split_file(part(0, 2, 0, 5));
    write_file(first, b.data, b.size);
    refused(first, ML_ERROR_FILE, "t-00002-of-00002.gguf cannot be opened");
    write_split(second, part(2, 2, 5, n));
    refused(first, ML_ERROR_MISMATCH, "t-00002-of-00002.gguf is of another split: split.no 2");
    write_split(second, part(1, 3, 5, n));
    refused(first, ML_ERROR_MISMATCH, "split.count 3");
    write_split(second, part(1, 2, 5, n - 1));
    refused(first, ML_ERROR_MISMATCH, "split.tensors.count is ");
    write_split(second, part(1, 2, 4, n - 1));
    refused(first, ML_ERROR_MISMATCH, "is in two shards");
    write_file(in_folder(second), "GGUF\3\0\0\0", 8);
    refused(first, ML_ERROR_TRUNCATED, "t-00002-of-00002.gguf: file is cut short");
    write_file(in_folder("renamed.gguf"), b.data, b.size);
    refused(in_folder("renamed.gguf"), ML_ERROR_MISMATCH, "its name does not say so");
    write_file(in_folder("t-00001-of-00003.gguf"), b.data, b.size);
    refused(in_folder("t-00001-of-00003.gguf"), ML_ERROR_MISMATCH, "its name does not say so");
    CHECK(ml_archive_load_memory(b.data, b.size, NULL, &archive, &error) == ML_ERROR_UNSUPPORTED && !archive);
    CHECK(says("part 1 of 2 of a split GGUF: load part 1 by its path"));
    free_bytes(&b);
    write_split("one.gguf", part(0, 1, 0, n)); /* one part is a whole file */
    CHECK(ml_archive_load(in_folder("one.gguf"), NULL, &archive, &error) == ML_OK);
    ml_archive_free(archive);
}

/* ---- folders ---- */

TEST(folders) {
    ml_archive *archive;
    bytes b = small_safetensors(), pt = small_pt();
    CHECK(make_folder(in_folder("empty")));
    refused(in_folder("empty"), ML_ERROR_FILE, "is a folder without model.safetensors");
    write_file(in_folder("empty/adapter_model.safetensors"), b.data, b.size);
    CHECK(ml_archive_load(in_folder("empty"), NULL, &archive, &error) == ML_OK);
    ml_archive_free(archive);
    write_file(in_folder("empty/consolidated.00.pth"), pt.data, pt.size); /* which comes before */
    REQUIRE(ml_archive_load(in_folder("empty"), NULL, &archive, &error) == ML_OK);
    CHECK(strcmp(archive->format, "PyTorch") == 0);
    ml_archive_free(archive);
    write_file(in_folder("empty/consolidated.01.pth"), pt.data, pt.size);
    write_file(in_folder("empty/consolidated.02.pth"), pt.data, pt.size);
    CHECK(ml_archive_load(in_folder("empty"), NULL, &archive, &error) == ML_ERROR_UNSUPPORTED && !archive &&
          says("1 of 3 pieces"));
    ml_model *model; /* one of them by itself is shown, but is no model */
    CHECK(ml_archive_load(in_folder("empty/consolidated.01.pth"), NULL, &archive, &error) == ML_OK);
    ml_archive_free(archive);
    CHECK(ml_model_load(in_folder("empty/consolidated.01.pth"), NULL, &model, &error) != ML_OK &&
          says("1 of 3 pieces"));
    free_bytes(&b), free_bytes(&pt);
}

/* The only GGUF, which may be split. */
TEST(folder_of_gguf) {
    bytes b = read_file(in_folder("whole.gguf"));
    const size_t n = gguf->n_arrays;
    ml_archive *archive;
    CHECK(make_folder(in_folder("one")) && make_folder(in_folder("two")));
    write_file(in_folder("one/README.md"), "#", 1);
    write_file(in_folder("one/any name.gguf"), b.data, b.size);
    loads(in_folder("one"));
    write_file(in_folder("one/._any name.gguf"), "", 0); /* as macOS leaves on other file systems */
    loads(in_folder("one"));
    write_file(in_folder("one/another.gguf"), b.data, b.size);
    refused(in_folder("one"), ML_ERROR_FILE, "a single .gguf");
    if (symlink("nowhere", in_folder("one/model.safetensors")) == 0) /* a download that was interrupted */
        refused(in_folder("one"), ML_ERROR_FILE, "model.safetensors cannot be opened: ");
    write_split("two/x-00002-of-00002.gguf", part(1, 2, 3, n));
    refused(in_folder("two"), ML_ERROR_FILE, "a single .gguf");
    write_split("two/x-00001-of-00002.gguf", part(0, 2, 0, 3));
    CHECK(ml_archive_load(in_folder("two"), NULL, &archive, &error) == ML_OK && archive->n_arrays == n);
    ml_archive_free(archive);
    free_bytes(&b);
}

/* ---- what is mapped stays as it was ---- */

/* The files of a loaded model may be replaced. */
TEST(saved_over_its_shards) {
    ml_model *model, *again;
    ml_save_desc as_hf = save_as(ML_SAFETENSORS, ML_BF16);
    write_sharded("over");
    REQUIRE(ml_model_load(in_folder("over"), NULL, &model, &error) == ML_OK);
    CHECK(ml_model_save(model, in_folder("over/" FIRST), &as_hf, &error) == ML_OK);
    CHECK(ml_model_save(model, in_folder("over/" SECOND), NULL, &error) == ML_OK);
    same_model(model);
    CHECK(ml_model_load(in_folder("over/" SECOND), NULL, &again, &error) == ML_OK);
    if (again) same_model(again);
    ml_model_free(again);
    ml_model_free(model);
}

/* What the library has allocated, to see what it has not. */
typedef struct blocks {
    char *memory[1024];
    size_t size[1024];
    int n;
} blocks;

static void *blocks_alloc(size_t size, void *user) {
    blocks *b = (blocks *)user;
    char *memory = b->n < 1024 ? (char *)malloc(size) : NULL;
    if (memory) b->memory[b->n] = memory, b->size[b->n++] = size;
    return memory;
}

static void blocks_free(void *memory, void *user) {
    blocks *b = (blocks *)user;
    for (int i = 0; i < b->n; i++)
        if (b->memory[i] == memory) b->size[i] = 0, b->memory[i] = NULL;
    free(memory);
}

static int is_allocated(const blocks *b, const void *p) {
    for (int i = 0; i < b->n; i++)
        if ((uintptr_t)p - (uintptr_t)b->memory[i] < b->size[i]) return 1;
    return 0;
}

/* Numbers are used where they are in the mapped shards. Queries and keys of Hugging Face are in another order. */
TEST(shards_are_not_copied) {
#if !defined(ML_NO_MMAP) && !defined(_WIN32)
    blocks b;
    ml_model_load_desc desc;
    ml_load_desc plain;
    ml_model *model = NULL;
    ml_archive *archive = NULL;
    int n_copied = 0;
    if (!is_little_endian()) SKIP("a big-endian machine copies floats");
    memset(&b, 0, sizeof b), memset(&desc, 0, sizeof desc), memset(&plain, 0, sizeof plain);
    desc.allocator.alloc = blocks_alloc, desc.allocator.free = blocks_free, desc.allocator.user = &b;
    plain.allocator = desc.allocator;
    write_sharded("mapped");
    REQUIRE(ml_model_load(in_folder("mapped"), &desc, &model, &error) == ML_OK);
    same_model(model);
    for (int i = 0; i < model->n_tensors; i++) n_copied += is_allocated(&b, model->tensors[i].data);
    CHECK(n_copied == 2 * model->config.n_layers);
    ml_model_free(model);
    write_split("mapped-00001-of-00002.gguf", part(0, 2, 0, 5));
    write_split("mapped-00002-of-00002.gguf", part(1, 2, 5, gguf->n_arrays));
    REQUIRE(ml_archive_load(in_folder("mapped-00001-of-00002.gguf"), &plain, &archive, &error) == ML_OK);
    for (size_t i = 0; i < archive->n_arrays; i++) CHECK(!is_allocated(&b, archive->arrays[i].data));
    ml_archive_free(archive);
#endif
}

/* In a folder the only file that may be a model is opened, whatever its name; Mistral's own is known. */
TEST(folder_of_any_name) {
    bytes b = read_file(in_folder("whole.safetensors")), config = read_file(in_folder("config.json"));
    CHECK(make_folder(in_folder("any")));
    write_file(in_folder("any/config.json"), config.data, config.size);
    write_file(in_folder("any/best model.safetensors"), b.data, b.size);
    loads(in_folder("any"));
    write_file(in_folder("any/other.safetensors"), "", 0);
    refused(in_folder("any"), ML_ERROR_FILE, "a single .gguf, .safetensors, .pth, .pt, .ckpt or .bin");
    write_file(in_folder("any/consolidated.safetensors"), b.data, b.size);
    loads(in_folder("any"));
    write_sharded("named"); /* an index of another name, and none */
    bytes index = read_file(in_folder("named/" INDEX));
    remove(in_folder("named/" INDEX));
    loads(in_folder("named"));
    write_file(in_folder("named/model.fp16.index.json"), index.data, index.size);
    loads(in_folder("named"));
    remove(in_folder("named/model.fp16.index.json")), remove(in_folder("named/" SECOND));
    refused(in_folder("named"), ML_ERROR_FILE, SECOND " cannot be opened");
    free_bytes(&index);
    free_bytes(&b), free_bytes(&config);
}

/* Files that are named in the folder, each a copy of the whole model or of what is no model; the first is read. */
TEST(folder_of_training) {
    static const char *const folders[][4] = {
        {"last.ckpt"},
        {"pytorch_model_fsdp.bin", "optimizer.bin", "training_args.bin", "tokenizer.bin"},
        {"model.pt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"},
        {"epoch 3.safetensors", "optimizer.safetensors", "scaler.pt", "sampler.bin"}};
    bytes b = read_file(in_folder("whole.safetensors")), config = read_file(in_folder("config.json"));
    for (int i = 0; i < 4; i++) {
        char path[128];
        snprintf(path, sizeof path, "training %d", i);
        CHECK(make_folder(in_folder(path)));
        snprintf(path, sizeof path, "training %d/config.json", i);
        write_file(in_folder(path), config.data, config.size);
        for (int k = 0; k < 4 && folders[i][k]; k++) {
            snprintf(path, sizeof path, "training %d/%s", i, folders[i][k]);
            write_file(in_folder(path), b.data, k ? 0 : b.size);
        }
        snprintf(path, sizeof path, "training %d", i);
        loads(in_folder(path));
    }
    free_bytes(&b), free_bytes(&config);
}

/* Shards of PyTorch, which have no index. */
TEST(folder_of_bins) {
    static const char *const names[] = {"bins/pytorch_model-00001-of-00002.bin",
                                        "bins/pytorch_model-00002-of-00002.bin"};
    ml_archive *archive;
    CHECK(make_folder(in_folder("bins")));
    for (uint32_t i = 0; i < 2; i++) {
        bytes p = {NULL, 0, 0};
        pk_tensor_desc t;
        memset(&t, 0, sizeof t);
        t.storage = "FloatStorage", t.key = "0", t.n_storage = 4, t.n_dims = 1, t.shape[0] = 4,
        t.stride[0] = 1;
        pk_begin(&p);
        put_text(&p, "}("), pk_text(&p, i ? "second" : "first"), pk_tensor(&p, &t), put_text(&p, "u.");
        bytes file = pt_file(&p, 4);
        write_file(in_folder(names[i]), file.data, file.size);
        free_bytes(&p), free_bytes(&file);
    }
    REQUIRE(ml_archive_load(in_folder("bins"), NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == 2 && ml_archive_find_array(archive, "second"));
    ml_archive_free(archive);
    remove(in_folder(names[1]));
    refused(in_folder("bins"), ML_ERROR_FILE, "pytorch_model-00002-of-00002.bin cannot be opened");
}

/* ---- memory ---- */

/* Every allocation fails once: the error is the right one and nothing is left. */
TEST(out_of_memory) {
    const char *const paths[] = {in_folder("sharded"), in_folder("s-00001-of-00004.gguf"), in_folder("two")};
    for (int p = 0; p < 3; p++) {
        ml_result result = ML_ERROR_MEMORY;
        size_t fail_at = 1;
        for (; result; fail_at++) {
            counting c;
            ml_load_desc desc;
            ml_archive *archive = hf;
            memset(&desc, 0, sizeof desc);
            memset(&c, 0, sizeof c);
            c.fail_at = fail_at;
            desc.allocator.alloc = counting_alloc;
            desc.allocator.free = counting_free;
            desc.allocator.user = &c;
            result = ml_archive_load(paths[p], &desc, &archive, &error);
            CHECK(result ? result == ML_ERROR_MEMORY && !archive && error.text[0] : archive != NULL);
            ml_archive_free(archive);
            CHECK(c.n_live == 0);
            REQUIRE(fail_at < 1000);
        }
        CHECK(fail_at > 10);
    }
}

int main(void) {
    if (!folder_begin("parts")) return 1;
    if (!make_whole()) return folder_end(), 1;
    RUN(sharded);
    RUN(one_shard_alone);
    RUN(a_length_like_json);
    RUN(wrong_index);
    RUN(hostile_index);
    RUN(sharded_pickles);
    RUN(shards_of_two_formats);
    RUN(split_gguf);
    RUN(wrong_split);
    RUN(folders);
    RUN(folder_of_gguf);
    RUN(saved_over_its_shards);
    RUN(shards_are_not_copied);
    RUN(folder_of_any_name);
    RUN(folder_of_training);
    RUN(folder_of_bins);
    RUN(out_of_memory);
    ml_model_free(whole);
    ml_archive_free(hf);
    ml_archive_free(gguf);
    return !folder_end() || test_report("test_parts");
}
