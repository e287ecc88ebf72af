/* Reading archives: small files built here, and, where they are, the real ones in ../shared. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "build_files.h"

#if !defined(ML_NO_STDIO) && !defined(ML_NO_MMAP) && (defined(__unix__) || defined(__APPLE__))
#define FILES_ARE_MAPPED
#endif

/* ---- helpers ---- */

static ml_error failure;

static ml_archive *open_bytes(const bytes *b) {
    ml_archive *archive = NULL;
    if (ml_archive_load_memory(b->data, b->size, NULL, &archive, &failure)) printf("%s\n", failure.text);
    return archive;
}

/* All elements as floats in new memory; NULL if there is no such array. */
static float *floats_of(const ml_archive *archive, const char *name, size_t *n) {
    const ml_array *array = ml_archive_find_array(archive, name);
    float *values;
    *n = array ? ml_array_count(array) : 0;
    if (!array) printf("no tensor %s\n", name);
    values = (float *)malloc((*n + 1) * sizeof *values);
    if (!array || !values || ml_array_read_floats(array, values, *n)) {
        free(values);
        return NULL;
    }
    return values;
}

static int has_floats(const ml_archive *archive, const char *name, const float *expected, size_t n) {
    size_t count, i;
    float *values = floats_of(archive, name, &count);
    int same = values && count == n;
    for (i = 0; same && i < n; i++)
        if (values[i] != expected[i]) same = 0;
    free(values);
    return same;
}

static int has_shape(const ml_archive *archive, const char *name, ml_type type, int n_dims, int64_t rows,
                     int64_t cols) {
    const ml_array *a = ml_archive_find_array(archive, name);
    return a && a->type == type && a->n_dims == n_dims && (n_dims < 1 || a->shape[0] == rows) &&
           (n_dims < 2 || a->shape[1] == cols);
}

static int64_t int_of(const ml_archive *archive, const char *name) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && (v->kind == ML_VALUE_INT || v->kind == ML_VALUE_BOOL) ? v->i : -12345;
}

static int has_text(const ml_archive *archive, const char *name, const char *text) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && v->kind == ML_VALUE_STRING && v->length == strlen(text) && memcmp(v->s, text, v->length) == 0;
}

/* Opens the bytes, which must fail with the code and words given. */
static int refused(const void *data, size_t size, ml_result code, const char *words) {
    ml_archive *archive = (ml_archive *)&failure;
    ml_result result = ml_archive_load_memory(data, size, NULL, &archive, &failure);
    if (result == code && failure.code == code && !archive && strstr(failure.text, words)) return 1;
    printf("%d \"%s\", expected %d \"%s\"\n", (int)result, result ? failure.text : "", (int)code, words);
    if (!result) ml_archive_free(archive);
    return 0;
}

/* ---- small files ---- */

static const float counting_floats[] = {0, 1, 2, 3, 4, 5};

static void check_small_pt(const bytes *file) {
    static const float transposed[] = {0, 3, 1, 4, 2, 5}, last[] = {5};
    ml_archive *a = open_bytes(file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "PyTorch") == 0);
    REQUIRE(a->n_arrays == 4);
    CHECK(strcmp(a->arrays[0].name, "model.w") == 0);
    CHECK(strcmp(a->arrays[2].name, "model.last") == 0); /* the file's order */
    CHECK(has_shape(a, "model.w", ML_F32, 2, 2, 3) && has_shape(a, "model.t", ML_F32, 2, 3, 2));
    CHECK(ml_archive_find_array(a, "model.w")->is_contiguous &&
          !ml_archive_find_array(a, "model.t")->is_contiguous);
    CHECK(ml_archive_find_array(a, "model.t")->stride[0] == 1 &&
          ml_archive_find_array(a, "model.t")->stride[1] == 3);
    CHECK(has_floats(a, "model.w", counting_floats, 6));
    CHECK(has_floats(a, "model.t", transposed, 6));
    CHECK(has_floats(a, "model.last", last, 1));
    CHECK(ml_archive_find_array(a, "model.again")->data == ml_archive_find_array(a, "model.w")->data);
    CHECK(a->n_values == 6);
    CHECK(int_of(a, "args.dim") == 3 && int_of(a, "args.ok") == 1 && int_of(a, "args.list.0") == 7);
    CHECK(int_of(a, "args.list.2") == -1 && !ml_archive_find_value(a, "args.list.1"));
    CHECK(ml_archive_find_value(a, "args.dim")->f == 3 && ml_archive_find_value(a, "args.lr")->f == 0.5);
    CHECK(ml_archive_find_value(a, "args.lr")->kind == ML_VALUE_FLOAT);
    CHECK(ml_archive_find_value(a, "args.ok")->kind == ML_VALUE_BOOL);
    CHECK(has_text(a, "args.name", "tiny"));
    CHECK(!ml_archive_find_array(a, "model") && !ml_archive_find_array(a, "model.x") &&
          !ml_archive_find_value(a, "args.di"));
    CHECK(a->n_arrays == 4 && a->n_values == 6); /* and none beyond */
    ml_archive_free(a);
}

TEST(pytorch) {
    bytes file = small_pt();
    check_small_pt(&file);
    free_bytes(&file);
}

/* The same content with every 64-bit field that zip has, and a comment at the end. */
TEST(pytorch_zip64) {
    bytes pickle, floats, file;
    zip_twist twist;
    zip z;
    memset(&pickle, 0, sizeof pickle);
    memset(&floats, 0, sizeof floats);
    memset(&z, 0, sizeof z);
    memset(&twist, 0, sizeof twist);
    twist.use_zip64 = 1;
    twist.flags = 0x808; /* as torch.save sets them */
    pk_small(&pickle);
    put_floats(&floats, 0, 6);
    zip_add_twisted(&z, "deep name/data.pkl", pickle.data, pickle.size, twist);
    zip_add_twisted(&z, "deep name/data/0", floats.data, floats.size, twist);
    file = zip_end(&z, 1, "a comment with PK\5\6, which is no end record since more than its length follows");
    check_small_pt(&file);
    free_bytes(&file);
    free_bytes(&pickle);
    free_bytes(&floats);
}

/* What a pickle may hold besides tensors, in the instructions of protocols 2, 4 and 5. */
TEST(pickle_kinds) {
    bytes p, file;
    ml_archive *a;
    memset(&p, 0, sizeof p);
    put_literal(&p, "\x80\x04\x95\0\0\0\0\0\0\0\0");
    put_literal(&p, "}\x94(");
    put_literal(&p, "\x8c\1a\x94\x8a\3\0\0\xff");                       /* LONG1 -65536; "a" is memo 1 */
    put_literal(&p, "\x8c\1b\x8b\1\0\0\0\x7f");                         /* LONG4 */
    put_literal(&p, "\x8c\1c\x8d\2\0\0\0\0\0\0\0hi");                   /* BINUNICODE8 */
    put_literal(&p, "\x8c\1d](K\1K\2e");                                /* APPENDS */
    put_literal(&p, "\x8c\1eK\1M\2\1\x86");                             /* TUPLE2 (1, 258) */
    put_literal(&p, "\x8c\1fh\1");                                      /* BINGET: "a" */
    put_literal(&p, "\x8c\1gN0K\5");                                    /* POP */
    put_literal(&p, "\x8c\1h\x8c\5torch\x8c\4Size\x93K\2K\3\x86\x85R"); /* STACK_GLOBAL torch.Size((2, 3)) */
    put_literal(&p, "\x8c\1i\x8a\x0a\1\1\1\1\1\1\1\1\1\1");             /* an integer of 80 bits: left out */
    put_literal(&p, "\x8c\1j\x8c\x08"
                    "argparse\x8c\x09Namespace\x93)\x81}\x8c\1xK\7sb");
    put_literal(&p, "\x8c\1kC\3\0\1\2"); /* bytes: left out */
    put_literal(&p, "K\7K\x08");         /* a key that is a number */
    put_literal(&p, "u.");
    file = pt_file(&p, 1);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(int_of(a, "a") == -65536 && int_of(a, "b") == 127 && has_text(a, "c", "hi"));
    CHECK(int_of(a, "d.0") == 1 && int_of(a, "d.1") == 2 && int_of(a, "e.0") == 1 && int_of(a, "e.1") == 258);
    CHECK(has_text(a, "f", "a") && int_of(a, "g") == 5 && int_of(a, "h.0") == 2 && int_of(a, "h.1") == 3);
    CHECK(!ml_archive_find_value(a, "i") && int_of(a, "j.x") == 7 && !ml_archive_find_value(a, "k"));
    CHECK(int_of(a, "7") == 8 && a->n_values == 13 && a->n_arrays == 0);
    ml_archive_free(a);
    free_bytes(&file);
    free_bytes(&p);
}

static double integer(int64_t i) { return (double)i; }

TEST(pytorch_types_and_shapes) {
    /* every storage type over the same 8 bytes 1 0 0 0 0 0 0x80 0x3f */
    static const struct {
        const char *storage;
        ml_type type;
        int n;
        double first, last;
    } rows[] = {{"FloatStorage", ML_F32, 2, 1.40129846432e-45, 1.0},
                {"HalfStorage", ML_F16, 4, 5.9604644775390625e-08, 1.875},
                {"BFloat16Storage", ML_BF16, 4, 9.18354961579912e-41, 1.0},
                {"DoubleStorage", ML_F64, 1, 0.0078125, 0.0078125},
                {"LongStorage", ML_I64, 1, 4575657221408423937.0, 4575657221408423937.0},
                {"IntStorage", ML_I32, 2, 1, 1065353216},
                {"ShortStorage", ML_I16, 4, 1, 16256},
                {"CharStorage", ML_I8, 8, 1, 63},
                {"ByteStorage", ML_U8, 8, 1, 63},
                {"BoolStorage", ML_BOOL, 8, 1, 1}};
    static const unsigned char data[8] = {1, 0, 0, 0, 0, 0, 0x80, 0x3f};
    size_t i;
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pk_tensor_desc t;
        float values[8];
        int64_t ints[8];
        ml_archive *a;
        bytes p, file;
        zip z;
        memset(&t, 0, sizeof t), memset(&p, 0, sizeof p), memset(&z, 0, sizeof z);
        t.storage = rows[i].storage;
        t.key = "k";
        t.n_storage = t.shape[0] = rows[i].n;
        t.n_dims = 1, t.stride[0] = 1;
        pk_begin(&p), pk_tensor(&p, &t), put_u8(&p, '.');
        zip_add(&z, "x/data.pkl", p.data, p.size), zip_add(&z, "x/data/k", data, 8);
        file = zip_end(&z, 0, "");
        a = open_bytes(&file);
        REQUIRE(a);
        CHECK(has_shape(a, "", rows[i].type, 1, rows[i].n, 0)); /* a tensor alone has the empty name */
        CHECK(!ml_array_read_floats(&a->arrays[0], values, (size_t)rows[i].n));
        CHECK_NEAR(values[0], rows[i].first, 0, 1e-7); /* a float's rounding */
        CHECK_NEAR(values[rows[i].n - 1], rows[i].last, 0, 1e-7);
        if (rows[i].type >= ML_I64) {
            CHECK(!ml_array_read_ints(&a->arrays[0], ints, (size_t)rows[i].n));
            CHECK(integer(ints[0]) == rows[i].first && integer(ints[rows[i].n - 1]) == rows[i].last);
        } else {
            CHECK(ml_array_read_ints(&a->arrays[0], ints, (size_t)rows[i].n) == ML_ERROR_MISMATCH);
        }
        CHECK(ml_array_read_floats(&a->arrays[0], values, 3) == ML_ERROR_ARGUMENT);
        ml_archive_free(a);
        free_bytes(&file), free_bytes(&p);
    }
}

/* A view (2, 2, 3) into 24 numbers with strides 12, 1, 4 from 1 on, against the formula; and empty and broadcast
   ones. */
TEST(strides) {
    pk_tensor_desc t;
    float values[12];
    ml_archive *a;
    bytes p, file;
    int i, j, k;
    memset(&t, 0, sizeof t), memset(&p, 0, sizeof p);
    t.storage = "FloatStorage", t.key = "0";
    t.n_storage = 24, t.offset = 1, t.n_dims = 3;
    t.shape[0] = 2, t.shape[1] = 2, t.shape[2] = 3;
    t.stride[0] = 12, t.stride[1] = 1, t.stride[2] = 4;
    pk_begin(&p), put_u8(&p, '('), pk_tensor(&p, &t);
    t.shape[1] = 0; /* nothing in it */
    pk_tensor(&p, &t);
    t.shape[1] = 2, t.stride[0] = t.stride[1] = t.stride[2] = 0; /* the same number twelve times */
    pk_tensor(&p, &t);
    t.shape[0] = t.shape[1] = 1, t.stride[0] = INT64_MAX, t.stride[2] = 1; /* a stride that nobody takes */
    pk_tensor(&p, &t);
    put_text(&p, "t.");
    file = pt_file(&p, 24);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(!ml_array_read_floats(ml_archive_find_array(a, "0"), values, 12));
    for (i = 0; i < 2; i++)
        for (j = 0; j < 2; j++)
            for (k = 0; k < 3; k++) CHECK(values[(i * 2 + j) * 3 + k] == (float)(1 + 12 * i + j + 4 * k));
    CHECK(ml_array_count(ml_archive_find_array(a, "1")) == 0 &&
          !ml_array_read_floats(ml_archive_find_array(a, "1"), values, 0));
    CHECK(!ml_array_read_floats(ml_archive_find_array(a, "2"), values, 12));
    for (i = 0; i < 12; i++) CHECK(values[i] == 1);
    CHECK(ml_archive_find_array(a, "3")->is_contiguous &&
          !ml_array_read_floats(ml_archive_find_array(a, "3"), values, 3));
    CHECK(values[0] == 1 && values[2] == 3);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

TEST(gguf) {
    static const float a_values[] = {10, 11, 12, 13, 14, 15};
    float q[32];
    int i;
    bytes file = small_gguf();
    ml_archive *a = open_bytes(&file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "GGUF") == 0 && a->n_arrays == 2 && a->n_values == 16);
    CHECK(has_shape(a, "a", ML_F32, 2, 2, 3) && has_floats(a, "a", a_values, 6));
    CHECK(has_shape(a, "q", ML_Q8_0, 2, 1, 32) &&
          !ml_array_read_floats(ml_archive_find_array(a, "q"), q, 32));
    for (i = 0; i < 32; i++) CHECK(q[i] == 0.5f * (float)(i - 16));
    CHECK(ml_archive_find_array(a, "a")->data ==
          file.data + file.size - 66); /* in place: 24 + 8 + 34 bytes from the end */
    CHECK(has_text(a, "general.architecture", "llama") && int_of(a, "general.alignment") == 16);
    CHECK(int_of(a, "u8") == 200 && int_of(a, "i8") == -56 && int_of(a, "u16") == 40000 &&
          int_of(a, "i16") == -25536);
    CHECK(int_of(a, "u32") == 4000000000 && int_of(a, "i32") == -294967296 && int_of(a, "i64") == -2);
    CHECK(int_of(a, "u64") == INT64_MAX && ml_archive_find_value(a, "u64")->f == 18446744073709551616.0);
    CHECK(int_of(a, "bool") == 1 && ml_archive_find_value(a, "f32")->f == 0.25);
    CHECK(ml_archive_find_value(a, "f64")->f == -2.5 &&
          ml_archive_find_value(a, "f64")->kind == ML_VALUE_FLOAT);
    CHECK(ml_archive_find_value(a, "ints")->kind == ML_VALUE_LIST &&
          ml_archive_find_value(a, "ints")->length == 3);
    CHECK(ml_archive_find_value(a, "ints")->list_type == 5);
    CHECK(memcmp(ml_archive_find_value(a, "ints")->s, "\7\0\0\0\x08\0\0\0\x09", 9) == 0);
    CHECK(ml_archive_find_value(a, "texts")->length == 2 &&
          ml_archive_find_value(a, "texts")->list_type == 8);
    CHECK(memcmp(ml_archive_find_value(a, "texts")->s, "\3\0\0\0\0\0\0\0one", 11) == 0);
    CHECK(ml_archive_find_value(a, "none")->length == 0);
    ml_archive_free(a);
    free_bytes(&file);
}

TEST(safetensors) {
    static const float b_values[] = {1, -2}, t_values[] = {1, 0}, s_values[] = {0.1f};
    int64_t i;
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "safetensors") == 0 && a->n_arrays == 5);
    CHECK(has_shape(a, "w", ML_F32, 2, 2, 3) && has_floats(a, "w", counting_floats, 6));
    CHECK(has_shape(a, "b", ML_BF16, 1, 2, 0) && has_floats(a, "b", b_values, 2));
    CHECK(has_shape(a, "i", ML_I64, 1, 1, 0) && !ml_array_read_ints(ml_archive_find_array(a, "i"), &i, 1) &&
          i == -3);
    CHECK(has_shape(a, "t", ML_BOOL, 2, 1, 2) && has_floats(a, "t", t_values, 2));
    CHECK(has_shape(a, "s", ML_F64, 0, 0, 0) && has_floats(a, "s", s_values, 1));
    CHECK(has_text(a, "__metadata__.format", "pt"));
    CHECK(has_text(a, "__metadata__.a\"b", "\xc3\xa4\xf0\x9f\x98\x80\n")); /* RFC 8259's pair, as UTF-8 */
    ml_archive_free(a);
    free_bytes(&file);
}

TEST(llama2c) {
    int version, is_shared, i;
    for (version = 0; version < 3; version++)
        for (is_shared = 0; is_shared < 2; is_shared++) {
            bytes file = small_bin(version, is_shared);
            ml_archive *a = open_bytes(&file);
            size_t n;
            float *w2, *norm;
            REQUIRE(a);
            CHECK(strcmp(a->format, "llama2.c") == 0);
            CHECK(a->n_arrays == (size_t)(2 + 9 * BIN_L + !is_shared));
            CHECK(has_shape(a, "tok_embeddings.weight", ML_F32, 2, BIN_V, BIN_D));
            CHECK(has_shape(a, "layers.1.attention.wk.weight", ML_F32, 2, BIN_KD, BIN_D));
            CHECK(has_shape(a, "layers.0.feed_forward.w3.weight", ML_F32, 2, BIN_H, BIN_D));
            CHECK(has_shape(a, "layers.1.ffn_norm.weight", ML_F32, 1, BIN_D, 0));
            CHECK((ml_archive_find_array(a, "output.weight") == NULL) == is_shared);
            w2 = floats_of(a, "layers.1.feed_forward.w2.weight", &n);
            norm = floats_of(a, "norm.weight", &n);
            REQUIRE(w2 && norm);
            CHECK(norm[0] == 200 && norm[7] == 207);
            if (version < 2) {
                CHECK(w2[0] == 1900 && w2[95] == 1995);
            } else { /* byte * scale of its group of four; 1900 is 108 modulo 256 */
                CHECK(w2[0] == 54 && w2[3] == 55.5f && w2[4] == 112);
                CHECK(w2[95] == 0.5f * 24 * (float)(((1995 & 255) ^ 128) - 128));
            }
            for (i = 0; i < 7; i++) {
                static const char *names[] = {"dim",        "hidden_dim", "n_layers",   "n_heads",
                                              "n_kv_heads", "vocab_size", "max_seq_len"};
                static const int expected[] = {BIN_D, BIN_H, BIN_L, BIN_A, BIN_KV, BIN_V, BIN_S};
                char name[64];
                snprintf(name, sizeof name, "model_args.%s", names[i]);
                CHECK(int_of(a, name) == expected[i]);
            }
            free(w2), free(norm);
            ml_archive_free(a);
            free_bytes(&file);
        }
}

/* ---- JSON ---- */

static double number_of(const char *text) {
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    double f = NAN;
    if (a && !mli_json_values(a->private_part, "x", text, strlen(text), &failure)) {
        const ml_value *v = ml_archive_find_value(a, "x");
        if (v) f = v->f;
    }
    ml_archive_free(a);
    free_bytes(&file);
    return f;
}

TEST(json_values) {
    static const char text[] =
        " { \"hidden_size\" : 64, \"eps\":1e-05, \"theta\":10000.0,\"tied\":true , \"no\":false,\n"
        "\"rope\":{\"type\":\"linear\",\"factor\":-2.5E+1},\"none\":null,\"eos\":[1,2 ,[]],\"e\":{},"
        "\"big\":9223372036854775807,\"bigger\":9223372036854775808,\"\\u004B\\/\":\"\\t\\\\\"} ";
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    size_t before;
    REQUIRE(a);
    before = a->n_values;
    REQUIRE(!mli_json_values(a->private_part, "", text, sizeof text - 1, &failure));
    CHECK(a->n_values == before + 12);
    CHECK(int_of(a, "hidden_size") == 64 && int_of(a, "tied") == 1 && int_of(a, "no") == 0);
    CHECK(ml_archive_find_value(a, "eps")->f == 1e-05 && ml_archive_find_value(a, "theta")->f == 10000.0);
    CHECK(ml_archive_find_value(a, "theta")->kind == ML_VALUE_FLOAT && has_text(a, "rope.type", "linear"));
    CHECK(ml_archive_find_value(a, "rope.factor")->f == -25 && int_of(a, "eos.1") == 2);
    CHECK(ml_archive_find_value(a, "bigger")->kind == ML_VALUE_FLOAT);
    CHECK(int_of(a, "big") == INT64_MAX && ml_archive_find_value(a, "bigger")->f == 9223372036854775808.0);
    CHECK(has_text(a, "K/", "\t\\") && !ml_archive_find_value(a, "none"));
    CHECK(has_text(a, "__metadata__.format", "pt")); /* what was there before is still there */
    ml_archive_free(a);
    free_bytes(&file);
    /* against the C library's own conversion. Exact up to 15 digits and powers of ten to 22; else within 4 units of
       the last place, each step of scaling being one rounding */
    {
        static const char *exact[] = {"0",    "-0.0",   "0.1",     "123456.789",
                                      "1e22", "5e-324", "0.00001", "3.14159265358979"};
        static const char *near[] = {"1.7976931348623157e308",
                                     "2.2250738585072014e-308",
                                     "123456789012345678901234567890",
                                     "0.3333333333333333333333333333",
                                     "6.02214076e23",
                                     "1e-200",
                                     "9.9e99"};
        size_t i;
        for (i = 0; i < sizeof exact / sizeof exact[0]; i++)
            CHECK(number_of(exact[i]) == strtod(exact[i], NULL));
        for (i = 0; i < sizeof near / sizeof near[0]; i++)
            CHECK_NEAR(number_of(near[i]), strtod(near[i], NULL), 0, 4 * 2.220446049250313e-16);
        CHECK(number_of("1e400") > 1e308 && number_of("1e-400") == 0 && number_of("0e999999999999") == 0);
    }
}

/* What Python reads without a word: words for numbers that are not finite, and of equal keys the last. A byte order
   mark is what Windows puts in front. A key that cannot be part of a name is passed over, with all that it holds. */
TEST(json_of_python) {
    bytes file = small_safetensors(), json;
    ml_archive *a = open_bytes(&file);
    const ml_value *value;
    size_t i;
    REQUIRE(a);
    memset(&json, 0, sizeof json);
    put_text(&json, "\xef\xbb\xbf {\"a\": 1, \"n\": [NaN, Infinity, -Infinity], \"\\u0000\": {\"b\": [2]}, "
                    "\"a\": 3, \"a\": 4, \"");
    for (i = 0; i < 600; i++) put_u8(&json, 'k');
    put_text(&json, "\": {\"c\": [1, {\"d\": \"e\"}], \"f\": null}, \"g\": \"h\"}");
    REQUIRE(!mli_json_values(a->private_part, "", json.data, json.size, &failure));
    CHECK(a->n_values == 2 + 5 && has_text(a, "g", "h"));
    value = ml_archive_find_value(a, "a");
    CHECK(value && value->kind == ML_VALUE_INT && value->i == 4);
    for (i = 0; i < 3; i++) {
        const char name[4] = {'n', '.', (char)('0' + i), 0};
        value = ml_archive_find_value(a, name);
        CHECK(value && value->kind == ML_VALUE_FLOAT);
        if (value) CHECK(i == 0 ? value->f != value->f : i == 1 ? value->f > 1e308 : value->f < -1e308);
    }
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&json);
}

TEST(json_errors) {
    static const char *wrong[] = {
        "",        "{",         "{\"a\"}",     "{\"a\":}",     "{\"a\":1",  "{\"a\":1,}", "[1 2]", "\"a",
        "\"\\x\"", "\"\\u12\"", "01x",         "1.",           "-",         "1e",         "tru",   "{a:1}",
        "{} {}",   "\"a\nb\"",  "{\"a\":nan}", "{\"a\":-Inf}", "\"\\u0041", "[",          "]"};
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        bytes file = small_safetensors();
        ml_archive *a = open_bytes(&file);
        ml_result result;
        REQUIRE(a);
        result = mli_json_values(a->private_part, "", wrong[i], strlen(wrong[i]), &failure);
        if (result != ML_ERROR_FORMAT || !failure.text[0]) printf("case %d: %s\n", (int)i, wrong[i]);
        CHECK(result == ML_ERROR_FORMAT && failure.text[0]);
        CHECK(a->n_values == 2 && has_text(a, "__metadata__.format", "pt")); /* as it was */
        CHECK(!ml_archive_find_value(a, "a"));
        ml_archive_free(a);
        free_bytes(&file);
    }
}

/* ---- what is no model, and files that cannot be opened ---- */

TEST(not_a_model) {
    ml_archive *none = NULL;
    CHECK(refused("", 0, ML_ERROR_FORMAT, "empty"));
    CHECK(refused(NULL, 0, ML_ERROR_FORMAT, "empty"));
    CHECK(refused("\xff\xd8\xff\xe0 JFIF", 9, ML_ERROR_FORMAT, "JPEG"));
    CHECK(refused("<!DOCTYPE html><html>Not found</html>", 37, ML_ERROR_FORMAT, "web page"));
    CHECK(refused("  {\"hidden_size\": 64}", 21, ML_ERROR_FORMAT, "JSON"));
    CHECK(refused("Once upon a time there was a file.", 34, ML_ERROR_FORMAT, "text"));
    CHECK(refused("version https://git-lfs.github.com/spec/v1\noid", 46, ML_ERROR_FORMAT, "git lfs pull"));
    CHECK(refused("\7\0\0\0\0\0\0\0\5\0\0\0<unk>\0\0\0\0", 21, ML_ERROR_FORMAT, "tokenizer"));
    CHECK(refused("\x0a\x0e\x0a\5<unk>\x15\0\0\0\0\x18\2", 16, ML_ERROR_FORMAT, "tokenizer"));
    CHECK(refused("\x80\x02\x8a\x0al\xfc\x9c"
                  "F\xf9 j\xa8P\x19.",
                  15, ML_ERROR_FORMAT, "before version 1.6"));
    CHECK(refused("\x01\x02\x03\x04\x05\x06\x07\x08\x09", 9, ML_ERROR_FORMAT,
                  "starts with the bytes 01 02 03 04 05 06 07 08"));
    CHECK(refused("\x01", 1, ML_ERROR_FORMAT, "bytes 01"));
    CHECK(refused("GGUF\0\0\0\3\0\0\0\0\0\0\0\1", 16, ML_ERROR_TRUNCATED, "cut short"));
    CHECK(refused("GGUF\0\0\0\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0", 24, ML_ERROR_UNSUPPORTED, "big-endian"));
    CHECK(refused("GGUF\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, ML_ERROR_UNSUPPORTED, "version 1"));
    CHECK(ml_archive_load_memory("GGUF", 4, NULL, NULL, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_archive_load_memory(NULL, 4, NULL, &none, NULL) == ML_ERROR_ARGUMENT);
    ml_archive_free(NULL);
}

static void write_file(const char *path, const bytes *b) {
    FILE *f = fopen(path, "wb");
    if (!f || (b->size && fwrite(b->data, 1, b->size, f) != b->size)) printf("cannot write %s\n", path);
    if (f) fclose(f);
}

TEST(files_on_disk) {
    static const char path[] = "test_archive.tmp";
    bytes file = small_pt(), empty;
    ml_archive *a = NULL;
    mli_file mapped;
    ml_allocator allocator;
    memset(&empty, 0, sizeof empty);
    REQUIRE(!mli_resolve_allocator(NULL, &allocator, NULL));
    remove(path);
    write_file(path, &file);
    REQUIRE(!ml_archive_load(path, NULL, &a, &failure));
    CHECK(has_floats(a, "model.w", counting_floats, 6) && failure.code == ML_OK && !failure.text[0]);
    remove(path); /* a mapping outlives its name */
    CHECK(has_floats(a, "model.w", counting_floats, 6));
    ml_archive_free(a);
    CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FILE && !a);
    CHECK(strstr(failure.text, path) && strstr(failure.text, "cannot be opened") &&
          strstr(failure.text, strerror(ENOENT)));
    CHECK(ml_archive_load(".", NULL, &a, &failure) == ML_ERROR_FILE);
    CHECK(ml_archive_load(NULL, NULL, &a, &failure) == ML_ERROR_ARGUMENT);
    write_file(path, &empty);
    CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FORMAT && strstr(failure.text, "empty"));
    REQUIRE(!mli_map_file(path, &allocator, &mapped, &failure));
    CHECK(mapped.size == 0);
    mli_unmap_file(&allocator, &mapped);
    remove(path);
#ifdef FILES_ARE_MAPPED
    if (mkfifo(path, 0600) == 0) { /* it has no writer: opening must not wait */
        CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FILE &&
              strstr(failure.text, "not a regular file"));
        remove(path);
    }
#endif
    free_bytes(&file);
}

/* ---- memory ---- */

/* Opens with the n-th allocation failing, for each n until none fails: the code must say so, and nothing be lost. */
static void sweep(const bytes *file) {
    size_t n;
    for (n = 1; n < 10000; n++) {
        counting c;
        ml_load_desc desc;
        ml_archive *a = NULL;
        ml_result result;
        memset(&c, 0, sizeof c), memset(&desc, 0, sizeof desc);
        c.fail_at = n;
        desc.allocator.alloc = counting_alloc;
        desc.allocator.free = counting_free;
        desc.allocator.user = &c;
        result = ml_archive_load_memory(file->data, file->size, &desc, &a, &failure);
        if (!result) {
            CHECK(c.n_calls < n && n > 3); /* the last round: nothing failed */
            ml_archive_free(a);
            CHECK(c.n_live == 0);
            return;
        }
        CHECK(result == ML_ERROR_MEMORY && failure.code == ML_ERROR_MEMORY && failure.text[0]);
        CHECK(c.n_live == 0 && !a);
        CHECK(ml_archive_load_memory(file->data, file->size, &desc, &a, NULL) ==
              ML_OK); /* only the n-th fails */
        ml_archive_free(a);
    }
    CHECK(n < 10000); /* the sweep ends */
}

TEST(every_allocation_fails_once) {
    int i;
    for (i = 0; i < 5; i++) {
        bytes file = i == 0   ? small_pt()
                     : i == 1 ? small_gguf()
                     : i == 2 ? small_safetensors()
                              : small_bin(i - 2, 0);
        sweep(&file);
        free_bytes(&file);
    }
}

TEST(arena) {
    static uint64_t memory[4096];
    bytes file = small_gguf();
    ml_arena arena;
    ml_load_desc desc;
    ml_archive *a = NULL;
    memset(&arena, 0, sizeof arena), memset(&desc, 0, sizeof desc);
    arena.memory = (unsigned char *)memory;
    arena.size = sizeof memory;
    desc.allocator = ml_arena_allocator(&arena);
    REQUIRE(!ml_archive_load_memory(file.data, file.size, &desc, &a, &failure));
    CHECK(has_shape(a, "a", ML_F32, 2, 2, 3) && int_of(a, "u8") == 200);
    ml_archive_free(a);
    arena.size = arena.used - 1;
    arena.used = 0;
    CHECK(ml_archive_load_memory(file.data, file.size, &desc, &a, &failure) == ML_ERROR_MEMORY);
    desc.allocator.free = NULL;
    CHECK(ml_archive_load_memory(file.data, file.size, &desc, &a, &failure) == ML_ERROR_ARGUMENT);
    free_bytes(&file);
}

/* ---- names in order ---- */

TEST(sorting_names) {
    static char text[2000][8];
    static mli_named names[2000];
    size_t i;
    uint32_t x = 1;
    for (i = 0; i < 2000; i++) {
        x = x * 1664525u + 1013904223u;
        names[i].length =
            (size_t)snprintf(text[i], sizeof text[i], "%u", (unsigned)(x >> 22)); /* with repeats */
        names[i].name = text[i];
        names[i].index = i;
    }
    mli_sort_named(names, 2000);
    for (i = 1; i < 2000; i++) {
        size_t n = names[i].length < names[i - 1].length ? names[i].length : names[i - 1].length;
        int order = strncmp(names[i - 1].name, names[i].name, n);
        CHECK(order < 0 || (order == 0 && names[i - 1].length <= names[i].length));
    }
    for (i = 0; i < 2000; i++) {
        const mli_named *found = mli_find_named(names, 2000, text[i], strlen(text[i]));
        CHECK(found && found->index <= i && strcmp(text[found->index], text[i]) == 0);
    }
    CHECK(!mli_find_named(names, 2000, "x", 1) && !mli_find_named(names, 2000, "", 0) &&
          !mli_find_named(names, 0, "1", 1));
}

/* ---- the real files ---- */

static const char *shared_path(const char *name) {
    static char path[1024];
    const char *root = getenv("MINILLAMA_SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared", name);
    return path;
}

static int has_shared(void) {
    FILE *f = fopen(shared_path("models/stories260K.pt"), "rb");
    if (f) fclose(f);
    return f != NULL;
}

static ml_archive *open_shared(const char *name) {
    ml_archive *archive = NULL;
    if (ml_archive_load(shared_path(name), NULL, &archive, &failure)) printf("%s: %s\n", name, failure.text);
    return archive;
}

/* Tensors, numbers in them, their sum and that of their magnitudes in double, the last tensor's name and its last
   number: printed by PyTorch 1.13 (torch.load, .double().sum()); for GGUF, by its own few lines of numpy. */
static const struct {
    const char *name;
    size_t n_arrays, n;
    double sum, magnitude;
    const char *last_name;
    double last;
} totals[] = {
    {"models/stories260K-bf16.pt", 49, 292801, -765.261319442, 38984.362373, "best_val_loss", 1.25},
    {"models/stories260K-f16.pt", 49, 292801, -765.790161133, 38986.174803, "best_val_loss", 1.25},
    {"models/stories260K-meta-names.pt", 49, 292801, -765.809187606, 38985.9586253, "best_val_loss", 1.25},
    {"models/stories260K.pt", 49, 292801, -765.809187606, 38985.9586253, "best_val_loss", 1.25},
    {"reference/adamw_course.pt", 3, 3012, 1493.00673034, 1497.35778472, "weight_after", -0.374059141},
    {"reference/classify_finetune_layer_full.pt", 7, 1930, 264656.827609, 264892.857801, "head_bias_after",
     0.00071170344},
    {"reference/classify_finetune_rms_causal.pt", 7, 1930, 264655.336318, 264894.534929, "head_bias_after",
     0.000342579966},
    {"reference/classify_lora_layer_full.pt", 67, 16010, 264661.447205, 265075.881965,
     "after.layers.4.attention.compute_output.lora_B", 0.00352384849},
    {"reference/classify_lora_rms_causal.pt", 67, 16010, 264660.953616, 265078.872789,
     "after.layers.4.attention.compute_output.lora_B", 0.00263982359},
    {"reference/course-rotary_embedding.data", 2, 32, 70.8050467968, 76.8284189701, "1", 3.02984953},
    {"reference/course-sanity_check.data", 2, 72192, 10166.882538, 79266.1359094, "hidden_states",
     1.40859616},
    {"reference/forward.pt", 9, 36880, -172204.449136, 281039.791366, "layer_causal_hidden", 1.20849395},
    {"reference/llamacpp_tiny.pt", 21, 108810, 3438.4774519, 31148.415331, "Q4_0.blk.2.ffn_down.weight",
     0.0754394531},
    {"reference/lm_train.pt", 97, 520330, 87182.5710578, 119726.368479, "losses", 0.0271881148},
    {"reference/zeroshot_sst_dev40.pt", 3, 600, -16301.2988081, 16301.2988081, "rms_causal_scores",
     -36.9807205},
    {"models/llamacpp/stories260K-F32.gguf", 48, 292800, -767.059187606, 38984.7086253,
     "blk.4.ffn_norm.weight", 1.23426116},
    {"models/llamacpp/tiny-BF16.gguf", 30, 213440, 483.333541288, 20838.6453793, "blk.2.ffn_up.weight",
     -0.121582031},
    {"models/llamacpp/tiny-F16.gguf", 30, 213440, 483.589273751, 20838.563117, "blk.2.ffn_up.weight",
     -0.121582031},
    {"models/llamacpp/tiny-F32.gguf", 30, 213440, 483.594043278, 20838.5664496, "blk.2.ffn_norm.weight",
     0.993555069},
    {"models/llamacpp/tiny-Q4_0.gguf", 30, 213440, 488.169011056, 20751.6138486, "blk.2.ffn_up.weight",
     -0.118835449},
    {"models/llamacpp/tiny-Q8_0.gguf", 30, 213440, 484.116070688, 20837.8951711, "blk.2.ffn_up.weight",
     -0.122245789},
};

TEST(shared_totals) {
    size_t f, i, k, n;
    if (!has_shared()) SKIP("../shared is absent");
    for (f = 0; f < sizeof totals / sizeof totals[0]; f++) {
        ml_archive *a = open_shared(totals[f].name);
        double sum = 0, magnitude = 0, last = 0;
        size_t count = 0;
        CHECK(a);
        if (!a) continue;
        for (i = 0; i < a->n_arrays; i++) {
            float *values = floats_of(a, a->arrays[i].name, &n);
            for (k = 0; values && k < n; k++) {
                last = (double)values[k];
                sum += last;
                magnitude += fabs(last);
            }
            count += n;
            free(values);
        }
        CHECK(a->n_arrays == totals[f].n_arrays && count == totals[f].n);
        CHECK(strcmp(a->arrays[a->n_arrays - 1].name, totals[f].last_name) == 0);
        /* the sums are printed with 12 digits and taken in another order */
        CHECK_NEAR(sum, totals[f].sum, 1e-11 * totals[f].magnitude, 0);
        CHECK_NEAR(magnitude, totals[f].magnitude, 0, 1e-11);
        CHECK_NEAR(last, totals[f].last, 0, 1e-8);
        ml_archive_free(a);
    }
}

TEST(shared_values) {
    ml_archive *a;
    const ml_array *w;
    int64_t ids[16];
    float *values;
    size_t n;
    if (!has_shared()) SKIP("../shared is absent");
    a = open_shared("models/stories260K.pt");
    REQUIRE(a);
    CHECK(int_of(a, "model_args.dim") == 64 && int_of(a, "model_args.n_layers") == 5);
    CHECK(int_of(a, "model_args.n_heads") == 8 && int_of(a, "model_args.n_kv_heads") == 4);
    CHECK(int_of(a, "model_args.vocab_size") == 512 && int_of(a, "model_args.multiple_of") == 4);
    CHECK(int_of(a, "iter_num") == 164000 && has_text(a, "config.dtype", "float32") &&
          int_of(a, "config.decay_lr") == 1);
    CHECK(ml_archive_find_value(a, "config.learning_rate")->f == 0.0005);
    CHECK(has_shape(a, "model.tok_embeddings.weight", ML_F32, 2, 512, 64));
    CHECK(has_shape(a, "model.layers.4.attention.compute_key.weight", ML_F32, 2, 32, 64));
    CHECK(has_shape(a, "best_val_loss", ML_F32, 0, 0, 0));
    w = ml_archive_find_array(a, "model.output.weight");
    CHECK(w && w->data == ml_archive_find_array(a, "model.tok_embeddings.weight")->data); /* shared storage */
    values = floats_of(a, "model.layers.4.attention.compute_key.weight", &n);
    CHECK(values && values[0] == -0.0258608498f && values[n - 1] == -0.265130162f);
    free(values);
    ml_archive_free(a);
    a = open_shared("reference/forward.pt");
    REQUIRE(a);
    CHECK(has_shape(a, "tokens", ML_I64, 2, 2, 8) &&
          ml_archive_find_array(a, "rms_full_logits")->n_dims == 3);
    CHECK(!ml_array_read_ints(ml_archive_find_array(a, "tokens"), ids, 16) && ids[0] == 1);
    ml_archive_free(a);
}

/* The same weights under another name in another format: equal to the bit, or for 16 bits within half a unit. */
static int same_weights(const ml_archive *a, const char *a_name, const ml_archive *b, const char *b_name,
                        double relative) {
    size_t n, m, i;
    float *x = floats_of(a, a_name, &n), *y = floats_of(b, b_name, &m);
    int same = x && y && n == m;
    for (i = 0; same && i < n; i++)
        if (!(fabs((double)x[i] - (double)y[i]) <= relative * fabs((double)x[i]) + (relative > 0 ? 6e-8 : 0)))
            same = 0;
    free(x), free(y);
    if (!same) printf("%s and %s differ\n", a_name, b_name);
    return same;
}

typedef struct renamed {
    const char *course, *meta, *hf, *gguf;
} renamed;
static const renamed renamings[] = {
    {"attention.compute_query", "attention.wq", "", "attn_q"},
    {"attention.compute_key", "attention.wk", "", "attn_k"},
    {"attention.compute_value", "attention.wv", "self_attn.v_proj", "attn_v"},
    {"attention.compute_output", "attention.wo", "self_attn.o_proj", "attn_output"},
    {"feed_forward.w1", "feed_forward.w1", "mlp.gate_proj", "ffn_gate"},
    {"feed_forward.w2", "feed_forward.w2", "mlp.down_proj", "ffn_down"},
    {"feed_forward.w3", "feed_forward.w3", "mlp.up_proj", "ffn_up"},
    {"attention_norm", "attention_norm", "input_layernorm", "attn_norm"},
    {"ffn_norm", "ffn_norm", "post_attention_layernorm", "ffn_norm"},
};

TEST(shared_formats_agree) {
    ml_archive *pt, *meta, *f16, *bf16, *bin, *gguf, *hf;
    char a[128], b[128];
    size_t i;
    int layer;
    if (!has_shared()) SKIP("../shared is absent");
    pt = open_shared("models/stories260K.pt"), meta = open_shared("models/stories260K-meta-names.pt");
    f16 = open_shared("models/stories260K-f16.pt"), bf16 = open_shared("models/stories260K-bf16.pt");
    bin = open_shared("models/stories260K.bin"), gguf = open_shared("models/llamacpp/stories260K-F32.gguf");
    hf = open_shared("models/stories260K-hf/model.safetensors");
    REQUIRE(pt && meta && f16 && bf16 && bin && gguf && hf);
    CHECK(same_weights(pt, "model.norm.weight", bin, "norm.weight", 0));
    CHECK(same_weights(pt, "model.norm.weight", gguf, "output_norm.weight", 0));
    CHECK(same_weights(pt, "model.norm.weight", hf, "model.norm.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", bin, "tok_embeddings.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", gguf, "token_embd.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", hf, "model.embed_tokens.weight", 0));
    for (layer = 0; layer < 5; layer++) {
        for (i = 0; i < sizeof renamings / sizeof renamings[0]; i++) {
            const renamed *r = &renamings[i];
            snprintf(a, sizeof a, "model.layers.%d.%s.weight", layer, r->course);
            CHECK(same_weights(pt, a, f16, a, 4.8828125e-4)); /* 2^-11, or 2^-24 below the normal range */
            snprintf(b, sizeof b, "model._orig_mod.layers.%d.%s.weight", layer, r->meta);
            CHECK(same_weights(pt, a, meta, b, 0));
            CHECK(same_weights(pt, a, bf16, a, 3.90625e-3)); /* 2^-8 */
            snprintf(b, sizeof b, "layers.%d.%s.weight", layer, r->meta);
            CHECK(same_weights(pt, a, bin, b, 0));
            snprintf(b, sizeof b, "blk.%d.%s.weight", layer, r->gguf);
            CHECK(same_weights(pt, a, gguf, b, 0));
            snprintf(b, sizeof b, "model.layers.%d.%s.weight", layer, r->hf);
            if (r->hf[0]) CHECK(same_weights(pt, a, hf, b, 0));
        }
        /* Hugging Face permutes the rows of q and k: its row h*8 + j*4 + i of a head of 8 is ours h*8 + 2*i + j */
        for (i = 0; i < 2; i++) {
            size_t n, m, row, col, ours;
            float *x, *y;
            snprintf(a, sizeof a, "model.layers.%d.attention.compute_%s.weight", layer, i ? "key" : "query");
            snprintf(b, sizeof b, "model.layers.%d.self_attn.%c_proj.weight", layer, i ? 'k' : 'q');
            x = floats_of(pt, a, &n), y = floats_of(hf, b, &m);
            CHECK(x && y && n == m);
            for (row = 0; x && y && row < n / 64; row++) {
                ours = row / 8 * 8 + row % 4 * 2 + row % 8 / 4;
                for (col = 0; col < 64; col++) CHECK(y[row * 64 + col] == x[ours * 64 + col]);
            }
            free(x), free(y);
        }
    }
    ml_archive_free(pt), ml_archive_free(meta), ml_archive_free(f16), ml_archive_free(bf16);
    ml_archive_free(bin), ml_archive_free(gguf), ml_archive_free(hf);
}

/* llama2.c's Q8 in groups of 4: the rounding is at most half a step, and a step is the group's largest / 127. */
TEST(shared_quantized_bin) {
    ml_archive *exact, *quantized;
    size_t i, k, n, m;
    if (!has_shared()) SKIP("../shared is absent");
    exact = open_shared("models/stories260K.bin"), quantized = open_shared("models/stories260K_v2_q80.bin");
    REQUIRE(exact && quantized && exact->n_arrays == quantized->n_arrays);
    for (i = 0; i < exact->n_arrays; i++) {
        const char *name = exact->arrays[i].name;
        float *x = floats_of(exact, name, &n), *y = floats_of(quantized, name, &m);
        CHECK(x && y && n == m);
        for (k = 0; x && y && k < n; k += 4) {
            double largest = 0;
            size_t j;
            for (j = 0; j < 4; j++) largest = fmax(largest, fabs((double)x[k + j]));
            for (j = 0; j < 4; j++)
                CHECK(fabs((double)x[k + j] - (double)y[k + j]) <= largest / 127 * 0.50001);
        }
        free(x), free(y);
    }
    ml_archive_free(exact), ml_archive_free(quantized);
}

/* Tensors of llama.cpp's own files, against their values in PyTorch. */
TEST(shared_gguf_types) {
    static const char *types[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0"};
    static const char *names[] = {"blk.0.attn_q.weight", "blk.2.ffn_down.weight"};
    ml_archive *reference;
    char path[64], name[64];
    size_t t, i, k, n, m;
    if (!has_shared()) SKIP("../shared is absent");
    reference = open_shared("reference/llamacpp_tiny.pt");
    REQUIRE(reference);
    for (t = 0; t < 5; t++) {
        ml_archive *a;
        snprintf(path, sizeof path, "models/llamacpp/tiny-%s.gguf", types[t]);
        a = open_shared(path);
        REQUIRE(a);
        CHECK(int_of(a, "llama.embedding_length") == 64 && int_of(a, "llama.attention.head_count_kv") == 2);
        CHECK(has_text(a, "general.architecture", "llama"));
        CHECK(ml_archive_find_value(a, "tokenizer.ggml.tokens")->length == 512);
        CHECK_NEAR(ml_archive_find_value(a, "llama.attention.layer_norm_rms_epsilon")->f, 1e-5, 0,
                   6e-8); /* a float */
        for (i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "%s.%s", types[t], names[i]);
            CHECK(same_weights(reference, name, a, names[i], 0));
            CHECK(strcmp(ml_type_name(ml_archive_find_array(a, names[i])->type), types[t]) == 0);
        }
        snprintf(name, sizeof name, "%s.token_embd.weight[:4]", types[t]);
        {
            float *x = floats_of(reference, name, &n), *y = floats_of(a, "token_embd.weight", &m);
            CHECK(x && y && n == 256 && m == 512 * 64);
            for (k = 0; x && y && k < n; k++) CHECK(x[k] == y[k]);
            free(x), free(y);
        }
        ml_archive_free(a);
    }
    ml_archive_free(reference);
}

TEST(shared_files_that_fail) {
    ml_archive *a = NULL;
    ml_result result;
    if (!has_shared()) SKIP("../shared is absent");
    result = ml_archive_load(shared_path("models/stories42M.truncated.pt"), NULL, &a, &failure);
    CHECK(result == ML_ERROR_TRUNCATED && strstr(failure.text, "incomplete download"));
    CHECK(strstr(failure.text, "byte 237568 inside stories42M/data/0"));
    /* its header of 64 bytes, the pickle's 15,334 and, by Python's own unpickler, storages of 58,073,601 floats */
    CHECK(strstr(failure.text, "at least 232309802 bytes"));
    CHECK(ml_archive_load(shared_path("models/tok512.bin"), NULL, &a, &failure) == ML_ERROR_FORMAT);
    CHECK(strstr(failure.text, "tokenizer"));
    CHECK(ml_archive_load(shared_path("data/tokenizer.model"), NULL, &a, &failure) == ML_ERROR_FORMAT);
    CHECK(strstr(failure.text, "tokenizer"));
    CHECK(ml_archive_load(shared_path("models"), NULL, &a, &failure) == ML_ERROR_FILE);
    CHECK(ml_archive_load(shared_path("models/stories260K-hf/config.json"), NULL, &a, &failure) ==
          ML_ERROR_FORMAT);
}

TEST(shared_config_json) {
    ml_archive *a;
    mli_file file;
    ml_allocator allocator;
    if (!has_shared()) SKIP("../shared is absent");
    a = open_shared("models/stories260K-hf/model.safetensors");
    REQUIRE(a && !mli_resolve_allocator(NULL, &allocator, NULL));
    REQUIRE(!mli_map_file(shared_path("models/stories260K-hf/config.json"), &allocator, &file, &failure));
    CHECK(!mli_json_values(a->private_part, "config", file.data, file.size, &failure));
    mli_unmap_file(&allocator, &file);
    CHECK(int_of(a, "config.hidden_size") == 64 && int_of(a, "config.num_key_value_heads") == 4);
    CHECK(ml_archive_find_value(a, "config.rms_norm_eps")->f == 1e-5 &&
          int_of(a, "config.tie_word_embeddings") == 1);
    CHECK(has_text(a, "config.architectures.0", "LlamaForCausalLM"));
    ml_archive_free(a);
}

int main(void) {
    RUN(pytorch);
    RUN(pytorch_zip64);
    RUN(pickle_kinds);
    RUN(pytorch_types_and_shapes);
    RUN(strides);
    RUN(gguf);
    RUN(safetensors);
    RUN(llama2c);
    RUN(json_values);
    RUN(json_of_python);
    RUN(json_errors);
    RUN(not_a_model);
    RUN(files_on_disk);
    RUN(every_allocation_fails_once);
    RUN(arena);
    RUN(sorting_names);
    RUN(shared_totals);
    RUN(shared_values);
    RUN(shared_formats_agree);
    RUN(shared_quantized_bin);
    RUN(shared_gguf_types);
    RUN(shared_files_that_fail);
    RUN(shared_config_json);
    return test_report("test_archive");
}
