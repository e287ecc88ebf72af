/* Tensors under names of the caller's own, written to GGUF and safetensors and read back; and an optimizer's
   state. */
#include "preamble.h"
#include "folder.h"

static float numbers[6] = {1, -2.5f, 3, 4, 1e-6f, 65504}, bias[3] = {7, 8, 9};

static ml_named_tensor named(const char *name, float *data, size_t rows, size_t cols, int is_vector) {
    ml_named_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name;
    t.tensor.type = ML_F32;
    t.tensor.rows = rows;
    t.tensor.cols = cols;
    t.tensor.data = data;
    t.is_vector = is_vector;
    return t;
}

static ml_value value(const char *name, ml_value_kind kind, int64_t i, double f, const char *s) {
    ml_value v;
    memset(&v, 0, sizeof v);
    v.name = name;
    v.kind = kind;
    v.i = i;
    v.f = f;
    v.s = s;
    v.length = s ? strlen(s) : 0;
    return v;
}

typedef struct example {
    ml_named_tensor tensors[2];
    ml_value values[5];
    ml_archive_save_desc desc;
} example;

static void make_example(example *e, ml_format format) {
    memset(e, 0, sizeof *e);
    e->tensors[0] = named("base.model.layers.0.w", numbers, 2, 3, 0);
    e->tensors[1] = named("base.model.bias", bias, 1, 3, 1);
    e->values[0] = value("my.count", ML_VALUE_INT, -5000000000, 0, NULL);
    e->values[1] = value("my.rate", ML_VALUE_FLOAT, 0, -0.25, NULL);
    e->values[2] = value("my.flag", ML_VALUE_BOOL, 1, 0, NULL);
    e->values[3] = value("my.text", ML_VALUE_STRING, 0, 0, "a \"quoted\"\nline");
    e->values[4] = value("my.prefix", ML_VALUE_STRING, 0, 0, "abcdef");
    e->values[4].length = 3; /* of which only so much belongs to it */
    e->desc.format = format;
    e->desc.tensors = e->tensors;
    e->desc.n_tensors = 2;
    e->desc.values = e->values;
    e->desc.n_values = 5;
}

static void check_text(const ml_archive *archive, const char *name, const char *text) {
    const ml_value *v = ml_archive_find_value(archive, name);
    REQUIRE(v != NULL && v->kind == ML_VALUE_STRING);
    CHECK(v->length == strlen(text) && memcmp(v->s, text, v->length) == 0);
}

static void check_values(const ml_archive *archive, ml_format format) {
    const ml_value *v;
    if (format == ML_SAFETENSORS) {
        check_text(archive, "__metadata__.format", "pt");
        check_text(archive, "__metadata__.my.count", "-5000000000");
        check_text(archive, "__metadata__.my.rate", "-25e-2"); /* the same number */
        check_text(archive, "__metadata__.my.flag", "true");
        check_text(archive, "__metadata__.my.text", "a \"quoted\"\nline");
        check_text(archive, "__metadata__.my.prefix", "abc");
        return;
    }
    v = ml_archive_find_value(archive, "my.count");
    CHECK(v && v->kind == ML_VALUE_INT && v->i == -5000000000);
    v = ml_archive_find_value(archive, "my.rate");
    CHECK(v && v->kind == ML_VALUE_FLOAT && v->f == -0.25);
    v = ml_archive_find_value(archive, "my.flag");
    CHECK(v && v->kind == ML_VALUE_BOOL && v->i == 1);
    check_text(archive, "my.text", "a \"quoted\"\nline");
    check_text(archive, "my.prefix", "abc");
}

static void check_round_trip(ml_format format, ml_type type) {
    const char *path = in_folder("mine.bin");
    example e;
    ml_archive *archive;
    ml_error error;
    const ml_array *w, *b;
    float back[6];
    int i;
    make_example(&e, format);
    e.desc.type = type;
    REQUIRE(ml_archive_save(path, &e.desc, &error) == ML_OK);
    REQUIRE(ml_archive_load(path, NULL, &archive, &error) == ML_OK);
    CHECK(archive->n_arrays == 2 && strcmp(archive->format, format == ML_GGUF ? "GGUF" : "safetensors") == 0);
    w = ml_archive_find_array(archive, "base.model.layers.0.w");
    b = ml_archive_find_array(archive, "base.model.bias");
    REQUIRE(w && b);
    CHECK(w->n_dims == 2 && w->shape[0] == 2 && w->shape[1] == 3 && w->type == (type ? type : ML_F32));
    CHECK(b->n_dims == 1 && b->shape[0] == 3);
    CHECK(ml_array_read_floats(w, back, 6) == ML_OK);
    for (i = 0; i < 6; i++) CHECK_NEAR(back[i], numbers[i], type ? 6e-8 : 0, type ? 1.0 / 256 : 0);
    CHECK(ml_array_read_floats(b, back, 3) == ML_OK && memcmp(back, bias, sizeof bias) == 0);
    check_values(archive, format);
    ml_archive_free(archive);
}

TEST(round_trips) {
    check_round_trip(ML_GGUF, ML_TYPE_NONE);
    check_round_trip(ML_GGUF, ML_F16);
    check_round_trip(ML_SAFETENSORS, ML_TYPE_NONE);
    check_round_trip(ML_SAFETENSORS, ML_BF16);
}

/* By hand: the header's length, the header padded to a multiple of eight, the numbers. */
TEST(safetensors_byte_by_byte) {
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[3],"
        "\"data_offsets\":[0,12]}}";
    const char *path = in_folder("small.safetensors");
    ml_named_tensor t = named("b", bias, 1, 3, 1);
    ml_archive_save_desc desc;
    ml_error error;
    bytes b;
    size_t n = strlen(header), padded = (n + 7) / 8 * 8;
    memset(&desc, 0, sizeof desc);
    desc.format = ML_SAFETENSORS;
    desc.tensors = &t;
    desc.n_tensors = 1;
    REQUIRE(ml_archive_save(path, &desc, &error) == ML_OK);
    b = read_file(path);
    REQUIRE(b.size == 8 + padded + 12);
    CHECK(b.data[0] == padded && b.data[1] == 0);
    CHECK(memcmp(b.data + 8, header, n) == 0 && are_floats(b.data + 8 + padded, bias, 3));
    free(b.data);
}

/* The second file appears with the first one, or neither does. */
TEST(a_text_beside_it) {
    char path[600], beside[600];
    example e;
    ml_error error;
    bytes before, after;
    snprintf(path, sizeof path, "%s", in_folder("adapter_model.safetensors"));
    snprintf(beside, sizeof beside, "%s", in_folder("adapter_config.json"));
    make_example(&e, ML_SAFETENSORS);
    e.desc.text_name = "adapter_config.json";
    e.desc.text = "{\"peft_type\": \"IA3\"}\n";
    REQUIRE(ml_archive_save(path, &e.desc, &error) == ML_OK);
    after = read_file(beside);
    CHECK(after.size == strlen(e.desc.text) && memcmp(after.data, e.desc.text, after.size) == 0);
    free(after.data);
    before = read_file(path);
    remove(beside);
    CHECK(make_folder(beside)); /* which cannot be replaced */
    e.desc.n_tensors = 1;
    CHECK(ml_archive_save(path, &e.desc, &error) == ML_ERROR_FILE);
    after = read_file(path);
    CHECK(before.size == after.size && memcmp(before.data, after.data, after.size) == 0);
    free(before.data);
    free(after.data);
    rmdir(beside);
}

static void check_refused(const example *e, ml_result result, const char *sentence) {
    const char *path = in_folder("refused.bin");
    ml_error error;
    CHECK(ml_archive_save(path, &e->desc, &error) == result && error.code == result);
    if (!strstr(error.text, sentence)) printf("got: %s\nnot: %s\n", error.text, sentence);
    CHECK(strstr(error.text, sentence) != NULL && !exists(path));
}

TEST(wrong_names_are_refused) {
    static const char *const bad[] = {"", "a\"b", "a\\b", "a\nb", "__metadata__", NULL};
    char long_name[200];
    size_t i;
    example e;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_example(&e, ML_GGUF);
        e.tensors[1].name = bad[i];
        check_refused(&e, ML_ERROR_ARGUMENT, "tensor 1: \"");
        make_example(&e, ML_GGUF);
        e.values[2].name = bad[i];
        check_refused(&e, ML_ERROR_ARGUMENT, "value 2: \"");
    }
    memset(long_name, 'x', sizeof long_name);
    long_name[144] = 0;
    make_example(&e, ML_GGUF);
    e.tensors[0].name = long_name;
    check_refused(&e, ML_ERROR_ARGUMENT, "cannot be a name in a file");
    make_example(&e, ML_GGUF);
    e.tensors[1].name = e.tensors[0].name;
    check_refused(&e, ML_ERROR_ARGUMENT, "tensors 0 and 1 are both named base.model.layers.0.w");
    make_example(&e, ML_GGUF);
    e.values[3].name = "my.rate";
    check_refused(&e, ML_ERROR_ARGUMENT, "values 1 and 3 are both named my.rate");
    make_example(&e, ML_SAFETENSORS);
    e.values[3].name = "format";
    check_refused(&e, ML_ERROR_ARGUMENT, "its own \"format\"");
    make_example(&e, ML_GGUF); /* it would say where the numbers are */
    e.values[3].name = "general.alignment";
    check_refused(&e, ML_ERROR_ARGUMENT, "its own \"general.alignment\"");
}

/* By the table of RFC 3629: the ends of each length and of the surrogates. */
TEST(names_and_texts_are_utf8) {
    static const char *const good[] = {"\x7e",         "\xc2\x80",         "\xdf\xbf",
                                       "\xe0\xa0\x80", "\xed\x9f\xbf",     "\xee\x80\x80",
                                       "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
                                       "x\xc3\xa4x"},
                             *const bad[] = {"\x80",
                                             "\xbf",
                                             "\xc3",
                                             "\xc3x",
                                             "\xc0\x80",
                                             "\xc1\xbf",
                                             "\xe0\x9f\xbf",
                                             "\xe2\x82",
                                             "\xed\xa0\x80",
                                             "\xed\xbf\xbf",
                                             "\xf0\x8f\xbf\xbf",
                                             "\xf0\x9f\x98",
                                             "\xf4\x90\x80\x80",
                                             "\xf5\x80\x80\x80",
                                             "\xf8\x88\x80\x80\x80",
                                             "\xff",
                                             "ab\xe4"};
    example e;
    ml_error error;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        make_example(&e, i & 1 ? ML_GGUF : ML_SAFETENSORS);
        e.tensors[1].name = e.values[2].name = good[i];
        CHECK(ml_archive_save(in_folder("utf8.bin"), &e.desc, &error) == ML_OK);
        ml_archive *archive = NULL;
        CHECK(ml_archive_load(in_folder("utf8.bin"), NULL, &archive, &error) == ML_OK);
        CHECK(archive && ml_archive_find_array(archive, good[i]));
        ml_archive_free(archive);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_example(&e, i & 1 ? ML_GGUF : ML_SAFETENSORS);
        e.tensors[1].name = bad[i];
        check_refused(&e, ML_ERROR_ARGUMENT, "tensor 1: its name is not UTF-8");
        make_example(&e, i & 1 ? ML_GGUF : ML_SAFETENSORS);
        e.values[2].name = bad[i];
        check_refused(&e, ML_ERROR_ARGUMENT, "value 2: its name is not UTF-8");
        make_example(&e, i & 1 ? ML_GGUF : ML_SAFETENSORS);
        e.values[0].kind = ML_VALUE_STRING, e.values[0].s = bad[i], e.values[0].length = strlen(bad[i]);
        check_refused(&e, ML_ERROR_ARGUMENT, "value my.count: its text is not UTF-8");
    }
}

TEST(wrong_tensors_and_values_are_refused) {
    static float infinite[3] = {1, INFINITY, 2}, large[3] = {1, 70000, 2};
    example e;
    ml_error error;
    make_example(&e, ML_PYTORCH);
    check_refused(&e, ML_ERROR_ARGUMENT, "the format is not GGUF or safetensors");
    make_example(&e, ML_GGUF);
    e.desc.type = ML_Q8_0;
    check_refused(&e, ML_ERROR_ARGUMENT, "type Q8_0 is not F32, F16 or BF16");
    make_example(&e, ML_GGUF);
    e.tensors[0].tensor.data = NULL;
    check_refused(&e, ML_ERROR_ARGUMENT, "tensor base.model.layers.0.w has no data");
    make_example(&e, ML_GGUF);
    e.tensors[0].is_vector = 1; /* of two rows */
    check_refused(&e, ML_ERROR_ARGUMENT, "or its shape (2, 3) is wrong");
    e.tensors[0].is_vector = 0, e.tensors[0].tensor.rows = SIZE_MAX / 2;
    check_refused(&e, ML_ERROR_ARGUMENT,
                  sizeof(size_t) == 8 ? "(9223372036854775807, 3) is wrong" : "is wrong");
    make_example(&e, ML_SAFETENSORS);
    e.tensors[0].tensor.type = ML_Q8_0;
    e.tensors[0].tensor.cols = 32;
    check_refused(&e, ML_ERROR_UNSUPPORTED, "Q8_0 is not a type of safetensors");
    make_example(&e, ML_GGUF);
    e.tensors[1].tensor.data = infinite;
    check_refused(&e, ML_ERROR_NUMBER, "base.model.bias");
    make_example(&e, ML_GGUF);
    e.tensors[1].tensor.data = large;
    e.desc.type = ML_F16;
    check_refused(&e, ML_ERROR_NUMBER, "base.model.bias");
    make_example(&e, ML_GGUF);
    e.values[1].f = NAN;
    check_refused(&e, ML_ERROR_NUMBER, "value my.rate is not finite");
    make_example(&e, ML_SAFETENSORS);
    e.values[1].f = -1e300;
    check_refused(&e, ML_ERROR_NUMBER, "value my.rate is too large");
    e.values[1].f = 1e-300;
    check_refused(&e, ML_ERROR_NUMBER, "value my.rate is too small");
    make_example(&e, ML_GGUF);
    e.values[0].kind = ML_VALUE_LIST;
    check_refused(&e, ML_ERROR_ARGUMENT, "value my.count is not an int, float, bool or string");
    make_example(&e, ML_GGUF);
    e.desc.values = NULL;
    check_refused(&e, ML_ERROR_ARGUMENT, "n_values 5 without a list");
    make_example(&e, ML_GGUF);
    e.desc.text_name = "a.json";
    check_refused(&e, ML_ERROR_ARGUMENT, "text_name and text go together");
    e.desc.text_name = "../a.json";
    e.desc.text = "{}";
    check_refused(&e, ML_ERROR_ARGUMENT, "text_name ../a.json is not a name in a folder");
    e.desc.text_name = "refused.bin";
    check_refused(&e, ML_ERROR_ARGUMENT, "is the name of the configuration");
    e.desc.text_name = "w"; /* whose text would be lost in the place of the tensors */
    CHECK(ml_archive_save(in_folder("w.tmp"), &e.desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "w.tmp and w: one is a temporary name") != NULL && !exists(in_folder("w.tmp")));
    CHECK(ml_archive_save(in_folder("w.7.tmp"), &e.desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "w.7.tmp and w: one is") != NULL && !exists(in_folder("w.7.tmp")));
    e.desc.text_name = "w.tmp"; /* which could be removed as what an interrupted save left */
    CHECK(ml_archive_save(in_folder("w"), &e.desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "w and w.tmp: one is a temporary name") != NULL && !exists(in_folder("w")));
    make_example(&e, ML_GGUF);
    e.values[0].name = "split.count"; /* which would make it the first of many files */
    check_refused(&e, ML_ERROR_ARGUMENT, "split.count without split.no");
    e.values[1].name = "split.no", e.values[1].kind = ML_VALUE_INT; /* a part of a split one, on purpose */
    CHECK(ml_archive_save(in_folder("part.gguf"), &e.desc, &error) == ML_OK);
    remove(in_folder("part.gguf"));
}

TEST(paths_that_cannot_be_written_are_refused) {
    example e;
    ml_error error;
    make_example(&e, ML_GGUF);
    CHECK(ml_archive_save(in_folder("absent/mine.gguf"), &e.desc, &error) == ML_ERROR_FILE);
    CHECK(strstr(error.text, "absent/mine.gguf cannot be written") != NULL);
    CHECK(ml_archive_save(in_folder("."), &e.desc, &error) == ML_ERROR_FILE);
    CHECK(ml_archive_save(NULL, &e.desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_archive_save(in_folder("mine.gguf"), NULL, &error) == ML_ERROR_ARGUMENT);
}

/* ---- the state of an optimizer ---- */

typedef struct training {
    float w[12];
    ml_tensor tensors[2];
    ml_optimizer *optimizer;
} training;

static void begin(training *t, size_t rows, size_t cols) {
    ml_parameter parameters[2];
    ml_optimizer_desc desc;
    ml_error error;
    int i;
    memset(t, 0, sizeof *t);
    memset(&desc, 0, sizeof desc);
    memset(parameters, 0, sizeof parameters);
    for (i = 0; i < 12; i++) t->w[i] = (float)(i - 5);
    t->tensors[0] = named("", t->w, rows, cols, 0).tensor;
    t->tensors[1] = named("", t->w + 8, 1, 4, 0).tensor;
    for (i = 0; i < 2; i++) parameters[i].tensor = &t->tensors[i];
    desc.parameters = parameters;
    desc.n_parameters = 2;
    desc.adamw.lr = 0.01f;
    desc.schedule.warmup_steps = 10;
    CHECK(ml_optimizer_new(&desc, &t->optimizer, &error) == ML_OK);
}

static void run(training *t, int from, int to) {
    ml_error error;
    int step, i;
    for (step = from; step < to; step++) {
        for (i = 0; i < 8; i++) t->tensors[0].grad[i] = (float)((step * 7 + i * 3) % 11 - 5);
        for (i = 0; i < 4; i++) t->tensors[1].grad[i] = (float)((step * 5 + i * 2) % 7 - 3);
        CHECK(ml_optimizer_step(t->optimizer, &error) == ML_OK);
    }
}

TEST(an_optimizer_continues_bit_for_bit) {
    const char *path = in_folder("optimizer.gguf");
    training whole, first, second, other;
    float before[12];
    training turned;
    ml_error error;
    begin(&whole, 4, 2);
    run(&whole, 0, 12);
    begin(&first, 4, 2);
    run(&first, 0, 5);
    REQUIRE(ml_optimizer_save(first.optimizer, path, &error) == ML_OK);
    begin(&second, 4, 2);
    run(&second, 20, 23); /* something else, with a gradient left over */
    second.tensors[0].grad[0] = 3;
    CHECK(ml_optimizer_restore(second.optimizer, path, &error) == ML_OK);
    CHECK(second.optimizer->step == 5 && second.tensors[0].grad[0] == 0);
    CHECK(memcmp(first.w, second.w, sizeof first.w) == 0);
    run(&second, 5, 12);
    CHECK(memcmp(whole.w, second.w, sizeof whole.w) == 0);
    begin(&other, 3, 2);
    memcpy(before, other.w, sizeof before);
    CHECK(ml_optimizer_restore(other.optimizer, path, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "parameter.0 has 8 numbers, not 6") != NULL);
    CHECK(memcmp(before, other.w, sizeof before) == 0 && other.optimizer->step == 0);
    begin(&turned, 2, 4);
    CHECK(ml_optimizer_restore(turned.optimizer, path, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "parameter.0 has rows of 2 numbers, not 4") != NULL);
    CHECK(memcmp(before, turned.w, sizeof before) == 0);
    ml_optimizer_free(turned.optimizer);
    CHECK(ml_optimizer_restore(other.optimizer, in_folder("absent"), &error) == ML_ERROR_FILE);
    CHECK(ml_optimizer_restore(other.optimizer, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_optimizer_save(NULL, path, &error) == ML_ERROR_ARGUMENT);
    ml_optimizer_free(whole.optimizer);
    ml_optimizer_free(first.optimizer);
    ml_optimizer_free(second.optimizer);
    ml_optimizer_free(other.optimizer);
}

int main(void) {
    if (!folder_begin("archive_save")) return 1;
    RUN(round_trips);
    RUN(safetensors_byte_by_byte);
    RUN(a_text_beside_it);
    RUN(wrong_names_are_refused);
    RUN(names_and_texts_are_utf8);
    RUN(wrong_tensors_and_values_are_refused);
    RUN(paths_that_cannot_be_written_are_refused);
    RUN(an_optimizer_continues_bit_for_bit);
    folder_end();
    return test_report("test_archive_save");
}
