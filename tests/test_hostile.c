/* Attacks on the archive readers: files cut short, damaged, and made to do harm. Each must end in an error that says
   why (or in an archive, where the damage does not matter), without a byte read outside of the file, excessive memory
   or anything left over. Run it under the address and undefined behavior sanitizers. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "build_files.h"
#include "folder.h"
#include "models.h"
#include "shared.h"

static ml_error failure;

/* The most memory that opening may take: a constant, and for each byte of the file a constant more (a byte of pickle
   can make a value of 64 bytes, an index entry and a name, all of which are held twice while their lists grow). */
static size_t memory_limit(size_t size) { return 65536 + 256 * size; }

/* Looks at everything that an archive shows, so that a sanitizer sees what is wrong with it. */
static double walk(const ml_archive *archive) {
    static float floats[65536];
    double sum = 0;
    size_t i, k, n;
    for (i = 0; i < archive->n_arrays; i++) {
        const ml_array *array = &archive->arrays[i];
        n = ml_array_count(array);
        CHECK(ml_archive_find_array(archive, array->name) == array);
        if (n > 65536) continue;
        CHECK(ml_array_read_floats(array, floats, n) == (array->type ? ML_OK : ML_ERROR_UNSUPPORTED));
        if (!array->type) continue;
        for (k = 0; k < n; k++) sum += (double)floats[k];
    }
    for (i = 0; i < archive->n_values; i++) {
        const ml_value *value = &archive->values[i];
        CHECK(ml_archive_find_value(archive, value->name) == value);
        for (k = 0; value->kind == ML_VALUE_STRING && k < value->length; k++) sum += value->s[k];
    }
    return sum;
}

/* Opens a copy of exactly `size` bytes, counting the memory. */
static ml_result try_open(const void *data, size_t size) {
    static volatile double sink;
    unsigned char *copy = (unsigned char *)malloc(size ? size : 1);
    ml_archive *archive = NULL;
    ml_load_desc desc;
    ml_result result;
    counting c;
    if (!copy) exit(2);
    if (size) memcpy(copy, data, size);
    memset(&c, 0, sizeof c), memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = counting_alloc;
    desc.allocator.free = counting_free;
    desc.allocator.user = &c;
    result = ml_archive_load_memory(size ? copy : NULL, size, &desc, &archive, &failure);
    CHECK((result == ML_OK) == (archive != NULL) && failure.code == result &&
          (result == ML_OK) == !failure.text[0]);
    CHECK(result != ML_ERROR_MEMORY && result != ML_ERROR_ARGUMENT);
    CHECK(c.peak <= memory_limit(size));
    if (archive) sink = sink + walk(archive);
    ml_archive_free(archive);
    CHECK(c.n_live == 0);
    free(copy);
    return result;
}

/* The bytes must be refused with the code and words given. Frees them. */
static void refuse(bytes b, ml_result code, const char *words, int line) {
    ml_result result = try_open(b.data, b.size);
    if (result != code || !strstr(failure.text, words)) {
        printf("line %d: %d \"%s\", expected %d \"%s\"\n", line, (int)result, failure.text, (int)code, words);
        test_current_failed++;
    }
    free_bytes(&b);
}
#define REFUSE(b, code, words) refuse(b, code, words, __LINE__)

static void accept(bytes b, int line) {
    ml_result result = try_open(b.data, b.size);
    if (result) printf("line %d: %s\n", line, failure.text);
    CHECK(result == ML_OK);
    free_bytes(&b);
}
#define ACCEPT(b) accept(b, __LINE__)

/* Numbers of a tensor of an unknown type, which are not looked at: a good many, which can still be counted here. */
#define LARGEST ((int64_t)(SIZE_MAX / 16 + 1))

/* ---- every file, cut and damaged everywhere ---- */

enum { N_SMALL = 7 };

static bytes small_file(int i) {
    switch (i) {
    case 0: return small_pt();
    case 1: return small_gguf();
    case 2: return small_safetensors();
    case 6: return small_legacy();
    default: return small_bin(i - 3, 0);
    }
}

TEST(cut_at_every_byte) {
    /* from this length on a file is known for what it is, and said to be cut short */
    static const size_t known[N_SMALL] = {4, 4, 9, 28, 4, 4, 15};
    int i;
    size_t n;
    for (i = 0; i < N_SMALL; i++) {
        bytes file = small_file(i);
        CHECK(try_open(file.data, file.size) == ML_OK);
        for (n = 0; n < file.size; n++) {
            ml_result result = try_open(file.data, n);
            if (n >= known[i] && result != ML_ERROR_TRUNCATED)
                printf("file %d at %d: %s\n", i, (int)n, failure.text);
            CHECK(result == (n >= known[i] ? ML_ERROR_TRUNCATED : ML_ERROR_FORMAT));
        }
        free_bytes(&file);
    }
}

/* What a .pt file that was cut would need: its header (30 bytes, the name's 14, an extra field's 5), its pickle, and
   its storage of 24 bytes once, though three tensors share it. */
TEST(cut_file_tells_what_it_needs) {
    bytes pickle, file = small_pt();
    char words[64];
    memset(&pickle, 0, sizeof pickle);
    pk_small(&pickle);
    snprintf(words, sizeof words, "needs at least %d bytes", (int)(30 + 14 + 5 + pickle.size + 24));
    CHECK(try_open(file.data, 49 + pickle.size) == ML_ERROR_TRUNCATED && strstr(failure.text, words));
    CHECK(strstr(failure.text, "inside small/data.pkl"));
    CHECK(try_open(file.data, 48 + pickle.size) == ML_ERROR_TRUNCATED && !strstr(failure.text, "at least"));
    free_bytes(&pickle), free_bytes(&file);
}

TEST(every_byte_damaged) {
    int i, k;
    size_t n;
    for (i = 0; i < N_SMALL; i++) {
        bytes file = small_file(i);
        for (n = 0; n < file.size; n++) {
            unsigned char whole = file.data[n];
            unsigned char damaged[7];
            damaged[0] = 0, damaged[1] = 255, damaged[2] = 127, damaged[3] = (unsigned char)(whole ^ 1);
            damaged[4] = (unsigned char)(whole ^ 128), damaged[5] = (unsigned char)(whole + 1),
            damaged[6] = '.';
            for (k = 0; k < 7; k++) {
                file.data[n] = damaged[k];
                try_open(file.data, file.size);
            }
            file.data[n] = whole;
        }
        CHECK(try_open(file.data, file.size) == ML_OK);
        free_bytes(&file);
    }
}

/* Bytes at random in the middle of good files: two to nine at once, from a fixed seed. */
TEST(many_bytes_damaged) {
    ml_random random;
    int i, k, round;
    ml_random_seed(&random, 1);
    for (i = 0; i < N_SMALL; i++) {
        bytes file = small_file(i), copy = small_file(i);
        for (round = 0; round < 3000; round++) {
            memcpy(copy.data, file.data, file.size);
            for (k = 0; k < 2 + round % 8; k++)
                copy.data[ml_random_u64(&random) % (file.size < 1200 ? file.size : 1200)] =
                    (unsigned char)ml_random_u64(&random);
            try_open(copy.data, copy.size);
        }
        free_bytes(&file), free_bytes(&copy);
    }
}

/* ---- pickles ---- */

static bytes pickle_file(const void *pickle, size_t size) {
    bytes p;
    bytes file;
    memset(&p, 0, sizeof p);
    put(&p, pickle, size);
    file = pt_file(&p, 24);
    free_bytes(&p);
    return file;
}
#define PICKLE(literal) pickle_file(literal, sizeof(literal) - 1)

TEST(pickles_that_would_run_code) {
    ACCEPT(PICKLE("\x80\2cos\nsystem\nX\2\0\0\0ls\x85R.")); /* opaque: nothing runs */
    ACCEPT(PICKLE("\x80\4\x8c\x08"
                  "builtins\x8c\4eval\x93\x8c\1"
                  "1\x85R."));
    ACCEPT(PICKLE("\x80\2ctorch\nload\n."));
    ACCEPT(PICKLE("\x80\2(ios\nsystem\n."));
    ACCEPT(PICKLE("\x80\2\x82\1."));
    REFUSE(PICKLE("\x80\5\x97."), ML_ERROR_UNSUPPORTED, "instruction 151"); /* NEXT_BUFFER */
    REFUSE(PICKLE("\x80\2K\1)R."), ML_ERROR_FORMAT, "a call of something that is not a function");
    REFUSE(PICKLE("\x80\2X\2\0\0\0os)R."), ML_ERROR_FORMAT, "a call of something that is not a function");
    REFUSE(PICKLE("\x80\2cos\nsystem\nN\x81."), ML_ERROR_FORMAT, "arguments that are not a tuple");
}

TEST(pickles_that_are_wrong) {
    REFUSE(PICKLE(""), ML_ERROR_TRUNCATED, "data.pkl is cut short");
    REFUSE(PICKLE("."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("(."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("\x80\6N."), ML_ERROR_FORMAT, "protocol");
    REFUSE(PICKLE("\x80\2N"), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(PICKLE("\x80\2X\xff\xff\xff\xff"
                  "a."),
           ML_ERROR_TRUNCATED, "cut short");
    REFUSE(PICKLE("\x80\4\x8d\xff\xff\xff\xff\xff\xff\xff\xff"
                  "a."),
           ML_ERROR_TRUNCATED, "cut short");
    REFUSE(PICKLE("\x80\4\x8b\xff\xff\xff\xff"
                  "a."),
           ML_ERROR_TRUNCATED, "cut short");
    REFUSE(PICKLE("\x80\2h\0."), ML_ERROR_FORMAT, "not put");
    REFUSE(PICKLE("\x80\2Nq\5h\3."), ML_ERROR_FORMAT, "not put");
    REFUSE(PICKLE("\x80\2Nr\xff\xff\xff\xff."), ML_ERROR_FORMAT, "memo index");
    REFUSE(PICKLE("\x80\2(q\0h\0."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("\x80\2}(K\1u."), ML_ERROR_FORMAT, "odd dict");
    REFUSE(PICKLE("\x80\2N(K\1K\1u."), ML_ERROR_FORMAT, "takes none");
    REFUSE(PICKLE("\x80\2)K\1a."), ML_ERROR_FORMAT, "takes none");
    REFUSE(PICKLE("\x80\2(K\1a."), ML_ERROR_FORMAT, "takes none");
    REFUSE(PICKLE("\x80\2K\1t."), ML_ERROR_FORMAT, "no mark");
    REFUSE(PICKLE("\x80\2(K\1\x86."), ML_ERROR_FORMAT, "mark");
    REFUSE(PICKLE("\x80\2K\1\x86."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("\x80\2K\1b."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("\x80\2(K\1b."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("\x80\2cm\nA\n)\x81K\1K\2u."), ML_ERROR_FORMAT, "no mark");
    REFUSE(PICKLE("\x80\2cm\nA\n)\x81(K\1u."), ML_ERROR_FORMAT, "odd dict");
    REFUSE(PICKLE("\x80\2K\1o."), ML_ERROR_FORMAT, "no mark");
    REFUSE(PICKLE("\x80\2im\nA\n."), ML_ERROR_FORMAT, "no mark");
    REFUSE(PICKLE("\x80\2K\1"
                  "1."),
           ML_ERROR_FORMAT, "no mark");
    REFUSE(PICKLE("2."), ML_ERROR_FORMAT, "stack");
    REFUSE(PICKLE("Np999999999999999999999\n."), ML_ERROR_FORMAT, "memo index");
    REFUSE(PICKLE("Np-1\n."), ML_ERROR_FORMAT, "memo index");
    REFUSE(PICKLE("g1\n."), ML_ERROR_FORMAT, "not put");
    REFUSE(PICKLE("I12"), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(PICKLE("Fx\n."), ML_ERROR_FORMAT, "digit");
    ACCEPT(PICKLE("F-inf\n."));
    ACCEPT(PICKLE("I\n."));
    ACCEPT(PICKLE("S\n."));
    ACCEPT(PICKLE("\x80\2K\1Q."));
    ACCEPT(PICKLE("\x80\2K\1K\2b.")); /* a state that nobody has */
    ACCEPT(PICKLE("\x80\2}K\1K\1\x86K\2s."));
    REFUSE(PICKLE("\x80\2ctorch._utils\n_rebuild_tensor_v2\n)R."), ML_ERROR_FORMAT, "wrong arguments");
    ACCEPT(PICKLE("\x80\2ctorch._utils\n_rebuild_parameter\n)R."));
    ACCEPT(PICKLE("\x80\2}X\3\0\0\0a\0bK\1s."));
    ACCEPT(PICKLE("\x80\2}(X\1\0\0\0aK\1X\1\0\0\0aK\2u."));
}

/* Containers inside of themselves, inside of each other a hundred thousand deep, and doubling at each level: they are
   walked, without end or depth. */
TEST(pickles_that_never_end) {
    static const char bomb_step[] = "]q_(hXhXhXhXhXhXhXhXhXhXe";
    bytes p;
    int i;
    ACCEPT(PICKLE("\x80\2]q\0h\0a."));
    ACCEPT(PICKLE("\x80\2}q\0X\1\0\0\0ah\0s."));
    ACCEPT(PICKLE("\x80\2]q\0(h\0h\0h\0h\0e."));
    ACCEPT(PICKLE("\x80\2cm\nA\n)\x81q\0h\0bh\0b.")); /* an object that is its own state, twice */
    ACCEPT(PICKLE("\x80\2cm\nA\n)\x81q\0}U\1ah\0sb."));
    memset(&p, 0, sizeof p);
    for (i = 0; i < 100000; i++) put_u8(&p, ']');
    put_u8(&p, 'N');
    for (i = 0; i < 100000; i++) put_u8(&p, 'a');
    put_u8(&p, '.');
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    for (i = 0; i < 100000; i++) put_text(&p, "cm\nA\n)R"); /* each the state of the one before it */
    for (i = 1; i < 100000; i++) put_u8(&p, 'b');
    put_u8(&p, '.');
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "ctorch._tensor\n_rebuild_from_type_v2\nq"), put_u8(&p, 0), put_text(&p, "cm\nA\nN)\x87");
    for (i = 0; i < 10000; i++) put(&p, "q\1h\0Nh\1\x87", 8); /* a call of itself, with itself, with ... */
    put(&p, "q\1h\0h\1R.", 8);
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    /* "billion laughs": level i is ten times level i - 1; 10^30 items, or, with no scalar inside, nothing at all */
    for (i = 0; i < 2; i++) {
        int level;
        put_text(&p, i ? "](K\1K\2e" : "]");
        put(&p, "q\0", 2);
        for (level = 1; level <= 30; level++) {
            size_t begin = p.size, k;
            put_text(&p, bomb_step);
            p.data[begin + 2] = (unsigned char)level;
            for (k = 5; k < sizeof bomb_step; k += 2) p.data[begin + k] = (unsigned char)(level - 1);
        }
        put_u8(&p, '.');
        ACCEPT(pt_file(&p, 1));
        free_bytes(&p);
    }
}

/* Names: one too long, which becomes a number; and one key of 500 bytes over ten thousand values. */
TEST(pickles_with_long_names) {
    bytes p, file;
    ml_archive *archive;
    static char key[6000];
    int i;
    memset(key, 'k', sizeof key);
    memset(&p, 0, sizeof p);
    put_text(&p, "}X"), put_u32(&p, 6000), put(&p, key, 6000), put_text(&p, "K\1s.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "}X"), put_u32(&p, 500), put(&p, key, 500), put_text(&p, "](");
    for (i = 0; i < 10000; i++) put_text(&p, "K\1");
    put_text(&p, "es"), pk_text(&p, "w"), pk_matrix(&p, "0", 1, 6), put_text(&p, "s.");
    file = pt_file(&p, 6); /* what comes after the values that are left out is there */
    REQUIRE(!ml_archive_load_memory(file.data, file.size, NULL, &archive, &failure));
    CHECK(archive->n_values > 10 && archive->n_values < 10000 && ml_archive_find_array(archive, "w"));
    ml_archive_free(archive);
    free_bytes(&p), free_bytes(&file);
    put_text(&p, "}X"), put_u32(&p, 500), put(&p, key, 500), put_text(&p, "](");
    pk_matrix(&p, "0", 1, 6), put_text(&p, "q\1");
    for (i = 0; i < 10000; i++) put_text(&p, "h\1");
    put_text(&p, "es.");
    REFUSE(pt_file(&p, 6), ML_ERROR_UNSUPPORTED, "names in this file are too long");
    free_bytes(&p);
}

/* A pickle of one tensor over the storage "0" of 24 floats. */
static bytes tensor_file(const pk_tensor_desc *t) {
    bytes p, file;
    memset(&p, 0, sizeof p);
    put_text(&p, "}");
    pk_text(&p, "w");
    pk_tensor(&p, t);
    put_text(&p, "s.");
    file = pt_file(&p, 24);
    free_bytes(&p);
    return file;
}

TEST(tensors_outside_of_their_storage) {
    static const struct {
        int64_t n_storage, offset;
        int n_dims;
        int64_t shape[9], stride[9];
        ml_result code;
        const char *words;
    } rows[] = {
        {24, 0, 2, {4, 6}, {6, 1}, ML_OK, ""},
        {24, 23, 2, {1, 1}, {1000, 1000}, ML_OK, ""},
        {24, 24, 2, {0, 5}, {1, 1}, ML_OK, ""},
        {24, 0, 1, {24}, {0}, ML_OK, ""},
        {24, 0, 2, {5, 6}, {6, 1}, ML_ERROR_FORMAT, "tensor w reaches outside"},
        {24, 1, 2, {4, 6}, {6, 1}, ML_ERROR_FORMAT, "outside"},
        {24, 24, 1, {1}, {1}, ML_ERROR_FORMAT, "outside"},
        {24, 25, 1, {0}, {1}, ML_ERROR_FORMAT, "outside"},
        {24, -1, 1, {1}, {1}, ML_ERROR_FORMAT, "outside"},
        {24, INT64_MAX, 1, {1}, {1}, ML_ERROR_FORMAT, "outside"},
        {24, INT64_MIN, 1, {1}, {1}, ML_ERROR_FORMAT, "outside"},
        {24, 0, 1, {-1}, {1}, ML_ERROR_FORMAT, "shape or stride is wrong"},
        {24, 0, 1, {1}, {-1}, ML_ERROR_FORMAT, "shape or stride is wrong"},
        {24, 0, 2, {2, 2}, {INT64_MAX, INT64_MAX}, ML_ERROR_FORMAT, "outside"},
        {24, 0, 1, {5}, {1ll << 62}, ML_ERROR_FORMAT, "outside"}, /* 4 * 2^62 is 0 in 64 bits */
        {24, 0, 2, {INT64_MAX, INT64_MAX}, {0, 0}, ML_ERROR_FORMAT, "overflows"},
        {24, 0, 2, {1ll << 32, 1ll << 32}, {0, 0}, ML_ERROR_FORMAT, "overflows"},
        {24, 0, 2, {3, INT64_MAX}, {1, 2}, ML_ERROR_FORMAT, "overflows"},
        {24, 0, 2, {0, INT64_MAX}, {1, 2}, ML_OK, ""},
        {24, 0, 2, {(1 << 30) + 1, 4}, {0, 1}, sizeof(size_t) == 4 ? ML_ERROR_FORMAT : ML_OK, "overflows"},
        {24, 0, 9, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}, ML_OK, ""},
        {25, 0, 1, {1}, {1}, ML_ERROR_FORMAT, "storage of 25 numbers has 96 bytes"},
        {INT64_MAX, 0, 1, {1}, {1}, ML_ERROR_FORMAT, "storage of 9223372036854775807 numbers"},
        {1ll << 62, 0, 1, {1}, {1}, ML_ERROR_FORMAT, "storage of"},
        {-1, 0, 1, {1}, {1}, ML_ERROR_FORMAT, "storage with wrong arguments"},
    };
    size_t i;
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pk_tensor_desc t;
        memset(&t, 0, sizeof t);
        t.storage = "FloatStorage", t.key = "0";
        t.n_storage = rows[i].n_storage, t.offset = rows[i].offset, t.n_dims = rows[i].n_dims;
        memcpy(t.shape, rows[i].shape, sizeof rows[i].shape);
        memcpy(t.stride, rows[i].stride, sizeof rows[i].stride);
        if (rows[i].code)
            refuse(tensor_file(&t), rows[i].code, rows[i].words, (int)i);
        else
            accept(tensor_file(&t), (int)i);
    }
}

TEST(tensors_with_wrong_storages) {
    static char long_key[1000];
    pk_tensor_desc t;
    bytes p;
    memset(&t, 0, sizeof t);
    t.storage = "FloatStorage", t.key = "1", t.n_storage = 1;
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "tensor w: its storage is not in the file");
    t.key = "../0";
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "not in the file");
    memset(long_key, '0', sizeof long_key - 1);
    t.key = long_key;
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "not in the file");
    REFUSE(PICKLE("\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nK\1X\3\0\0\0cpuK\1tQ."), ML_ERROR_FORMAT,
           "storage with wrong arguments"); /* a key that is no text */
    t.key = "0", t.storage = "Size";
    ACCEPT(tensor_file(&t));
    t.storage = "QInt8Storage";
    ACCEPT(tensor_file(&t));
    t.storage = "Storage"; /* of a size that nobody knows: only its beginning must be in the file */
    ACCEPT(tensor_file(&t));
    t.n_storage = INT64_MAX, t.shape[0] = LARGEST, t.n_dims = 1;
    ACCEPT(tensor_file(&t));
    t.shape[0] = t.shape[1] = 1ll << 60, t.n_dims = 2;
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "shape overflows");
    t.storage = "ComplexFloatStorage", t.n_storage = 12, t.n_dims = 1, t.shape[0] = 12, t.stride[0] = 1;
    ACCEPT(tensor_file(&t));
    t.shape[0] = 13;
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "reaches outside of its storage of 12 numbers");
    t.shape[0] = 12, t.n_storage = 13;
    REFUSE(tensor_file(&t), ML_ERROR_FORMAT, "storage of 13 numbers has 96 bytes");
    /* the same name twice, once by a dotted key: the same tensor; another one */
    memset(&p, 0, sizeof p);
    put_text(&p, "}(");
    pk_text(&p, "a.b"), pk_matrix(&p, "0", 2, 3), pk_text(&p, "a"), put_text(&p, "}");
    pk_text(&p, "b"), pk_matrix(&p, "0", 2, 3), put_text(&p, "su.");
    ACCEPT(pt_file(&p, 6));
    p.size -= 3;
    put_text(&p, "s");
    pk_text(&p, "c.d"), pk_matrix(&p, "0", 2, 3), pk_text(&p, "c"), put_text(&p, "}");
    pk_text(&p, "d"), pk_matrix(&p, "0", 3, 2), put_text(&p, "su.");
    REFUSE(pt_file(&p, 6), ML_ERROR_FORMAT, "two tensors are named c.d");
    free_bytes(&p);
}

/* Time and memory stay linear: a hundred thousand marks, puts, dicts and equal names. */
TEST(pickles_that_are_long) {
    bytes p;
    int i;
    memset(&p, 0, sizeof p);
    for (i = 0; i < 100000; i++) put_u8(&p, '(');
    put_text(&p, "N.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "](");
    for (i = 0; i < 100000; i++) put_text(&p, "}r"), put_u32(&p, (unsigned)i);
    put_text(&p, "e.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "}(");
    for (i = 0; i < 50000; i++) put_text(&p, "U\1aK\1");
    put_text(&p, "u.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "](cm\nA\n)R");
    for (i = 0; i < 100000; i++) put_text(&p, "2");
    put_text(&p, "e.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
    put_text(&p, "](");
    for (i = 0; i < 100000; i++) put_text(&p, "K\1");
    put_text(&p, "e.");
    ACCEPT(pt_file(&p, 1));
    free_bytes(&p);
}

/* ---- zips ---- */

static bytes twisted_zip(zip_twist twist, int use_zip64) {
    bytes p, file;
    zip z;
    memset(&p, 0, sizeof p), memset(&z, 0, sizeof z);
    pk_small(&p);
    zip_add(&z, "a/data.pkl", p.data, p.size);
    zip_add_twisted(&z, "a/data/0", p.data, 24, twist);
    file = zip_end(&z, use_zip64, "");
    free_bytes(&p);
    return file;
}

/* Puts n_bytes of value at `at`, counted from the end. */
static bytes with_number(bytes b, size_t from_end, uint64_t value, int n_bytes) {
    int i;
    for (i = 0; i < n_bytes; i++) b.data[b.size - from_end + (size_t)i] = (unsigned char)(value >> (8 * i));
    return b;
}

TEST(zips_that_lie) {
    zip_twist good, t;
    bytes p, file;
    zip z;
    int i;
    memset(&good, 0, sizeof good);
    ACCEPT(twisted_zip(good, 0));
    ACCEPT(twisted_zip(good, 1));
    t = good, t.method = 8;
    REFUSE(twisted_zip(t, 0), ML_ERROR_UNSUPPORTED, "zip entry of model.w is compressed (method 8)");
    t = good, t.flags = 1;
    REFUSE(twisted_zip(t, 0), ML_ERROR_UNSUPPORTED, "zip entry of model.w is encrypted");
    REFUSE(with_number(twisted_zip(t, 0), 56, 24 + 12, 4), ML_ERROR_UNSUPPORTED,
           "zip entry of model.w is encrypted"); /* packed, as by zip -e: 12 bytes more than it has */
    t = good, t.add_size = 100000;
    REFUSE(twisted_zip(t, 0), ML_ERROR_TRUNCATED, "a/data/0");
    t = good, t.add_size = -1;
    REFUSE(twisted_zip(t, 0), ML_ERROR_FORMAT, "has 23 bytes");
    t = good, t.add_offset = 1;
    REFUSE(twisted_zip(t, 0), ML_ERROR_FORMAT, "no header at byte");
    t = good, t.add_offset = 100000;
    REFUSE(twisted_zip(t, 0), ML_ERROR_TRUNCATED, "a/data/0");
    t = good, t.use_zip64 = 1;
    ACCEPT(twisted_zip(t, 1));
    t.add_offset = INT64_MAX;
    REFUSE(twisted_zip(t, 1), ML_ERROR_TRUNCATED, "a/data/0");
    t.add_offset = 0, t.add_size = -25; /* 2^64 - 1 */
    REFUSE(twisted_zip(t, 1), ML_ERROR_TRUNCATED, "a/data/0");
    REFUSE(with_number(twisted_zip(good, 0), 6, 0xffffffff, 4), ML_ERROR_FORMAT,
           "outside of the file"); /* offset */
    REFUSE(with_number(twisted_zip(good, 0), 10, 0x7fffffff, 4), ML_ERROR_FORMAT,
           "outside of the file"); /* size */
    REFUSE(with_number(twisted_zip(good, 0), 12, 0xffff, 2), ML_ERROR_FORMAT, "65535 entries do not fit");
    REFUSE(with_number(twisted_zip(good, 0), 12, 1, 2), ML_ERROR_FORMAT, "storage is not in the file");
    REFUSE(with_number(twisted_zip(good, 0), 12, 0, 2), ML_ERROR_FORMAT, "no data.pkl");
    REFUSE(with_number(twisted_zip(good, 1), 22 + 20 + 24, UINT64_MAX, 8), ML_ERROR_FORMAT,
           "entries do not fit");
    REFUSE(with_number(twisted_zip(good, 1), 22 + 20 + 8, UINT64_MAX, 8), ML_ERROR_FORMAT,
           "outside of the file");
    REFUSE(with_number(twisted_zip(good, 1), 22 + 12, UINT64_MAX, 8), ML_ERROR_FORMAT,
           "zip"); /* where record 64 is */
    memset(&p, 0, sizeof p);
    put_u32(&p, 0x06054b50), put_u64(&p, 0), put_u64(&p, 0), put_u16(&p, 0);
    REFUSE(p, ML_ERROR_FORMAT, "no data.pkl"); /* the empty zip */
    /* entries that overlap, or twice the same name: harmless */
    memset(&z, 0, sizeof z), memset(&p, 0, sizeof p);
    pk_small(&p);
    zip_add(&z, "a/data.pkl", p.data, p.size);
    for (i = 0; i < 1000; i++) zip_add(&z, "a/data/0", p.data, 24);
    file = zip_end(&z, 0, "");
    ACCEPT(file);
    memset(&z, 0, sizeof z);
    zip_add(&z, "a/data.pkl", p.data, p.size);
    zip_add(&z, "a/byteorder", "big", 3);
    zip_add(&z, "a/data/0", p.data, 24);
    file = zip_end(&z, 0, "");
    REFUSE(file, ML_ERROR_UNSUPPORTED, "big-endian");
    free_bytes(&p);
}

/* ---- GGUF ---- */

/* A GGUF file with one key "k" of `type` and the given bytes, and `n_bytes` of data after it. */
static bytes gguf_key_file(unsigned type, const void *value, size_t size) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 0, 1);
    gguf_key(&b, "k", type);
    put(&b, value, size);
    return b;
}
#define GGUF_KEY(type, literal) gguf_key_file(type, literal, sizeof(literal) - 1)

static bytes gguf_aligned_file(uint64_t alignment, unsigned type) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 1, 1);
    gguf_key(&b, "general.alignment", type), put_uint(&b, alignment, type >= 10 ? 8 : 4);
    gguf_tensor(&b, "w", 1, 1, 4, 0, 0);
    gguf_pad(&b, 64);
    put_floats(&b, 0, 4);
    return b;
}

/* One tensor "w" (rows, cols) before 256 bytes of data. */
static bytes gguf_tensor_file(int n_dims, uint64_t rows, uint64_t cols, unsigned type, uint64_t offset) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 2, 1, 0);
    gguf_tensor(&b, "w", n_dims, rows, cols, type, offset);
    gguf_pad(&b, 32);
    put_floats(&b, 0, 64);
    return b;
}

static bytes gguf_counts(uint64_t n_tensors, uint64_t n_pairs) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, n_tensors, n_pairs);
    put_floats(&b, 0, 64);
    return b;
}

TEST(ggufs_that_lie) {
    bytes b;
    int i;
    REFUSE(gguf_counts(UINT64_MAX, 0), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(gguf_counts(0, UINT64_MAX), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(gguf_counts(1ull << 60, 1ull << 60), ML_ERROR_TRUNCATED, "cut short");
    ACCEPT(gguf_counts(0, 0));
    ACCEPT(GGUF_KEY(8, "\1\0\0\0\0\0\0\0x"));
    REFUSE(GGUF_KEY(8, "\xff\xff\xff\xff\xff\xff\xff\xffx"), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(GGUF_KEY(8, "\2\0\0\0\0\0\0\0x"), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(GGUF_KEY(13, "\0\0\0\0\0\0\0\0"), ML_ERROR_FORMAT, "key k: its type 13 is unknown");
    REFUSE(GGUF_KEY(9, "\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xffxxxxx"), ML_ERROR_TRUNCATED, "cut short");
    REFUSE(GGUF_KEY(9, "\x0a\0\0\0\0\0\0\0\0\0\0\x20xxxxxxxx"), ML_ERROR_TRUNCATED,
           "cut short"); /* 2^61 * 8 = 2^64 */
    REFUSE(GGUF_KEY(9, "\x08\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0x"), ML_ERROR_TRUNCATED, "cut short");
    ACCEPT(GGUF_KEY(9, "\x09\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    REFUSE(GGUF_KEY(9, "\x09\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), ML_ERROR_TRUNCATED,
           "cut short");
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 0, 1), gguf_key(&b, "k", 9);
    for (i = 0; i < 1000; i++) put_u32(&b, 9), put_u64(&b, 1);
    REFUSE(b, ML_ERROR_UNSUPPORTED, "key k: a list of type 9"); /* nested too deeply */
    REFUSE(GGUF_KEY(9, "\x63\0\0\0\1\0\0\0\0\0\0\0x"), ML_ERROR_UNSUPPORTED, "key k: a list of type 99");
    ACCEPT(gguf_aligned_file(64, 4));
    ACCEPT(gguf_aligned_file(1, 10));
    REFUSE(gguf_aligned_file(0, 4), ML_ERROR_FORMAT, "general.alignment");
    REFUSE(gguf_aligned_file(24, 4), ML_ERROR_FORMAT, "general.alignment 24");
    REFUSE(gguf_aligned_file(0xffffffffu, 5), ML_ERROR_FORMAT, "general.alignment");
    REFUSE(gguf_aligned_file(1ull << 63, 11), ML_ERROR_FORMAT, "general.alignment");
    REFUSE(gguf_aligned_file(1ull << 62, 11), ML_ERROR_TRUNCATED, "the tensors' data");
    REFUSE(gguf_aligned_file(0x3f800000, 6), ML_ERROR_FORMAT, "general.alignment");
    ACCEPT(gguf_tensor_file(2, 8, 8, 0, 0));
    ACCEPT(gguf_tensor_file(0, 0, 0, 0, 0));
    ACCEPT(gguf_tensor_file(2, 0, 1ull << 40, 0, 0));
    REFUSE(gguf_tensor_file(2, 8, 9, 0, 0), ML_ERROR_TRUNCATED, "w needs bytes up to");
    REFUSE(gguf_tensor_file(2, 8, 8, 0, 32), ML_ERROR_TRUNCATED, "w needs bytes up to");
    REFUSE(gguf_tensor_file(1, 0, 0, 0, 288), ML_ERROR_TRUNCATED, "w needs bytes up to");
    REFUSE(gguf_tensor_file(2, 8, 8, 0, 4), ML_ERROR_FORMAT, "tensor w: offset 4 is not aligned to 32");
    REFUSE(gguf_tensor_file(2, 8, 8, 0, UINT64_MAX - 31), ML_ERROR_TRUNCATED, "w needs");
    REFUSE(gguf_tensor_file(2, 8, 8, 0, INT64_MAX - 31), ML_ERROR_TRUNCATED, "w needs");
    REFUSE(gguf_tensor_file(2, 1ull << 33, 1ull << 33, 0, 0), ML_ERROR_FORMAT,
           "tensor w: its shape overflows");
    REFUSE(gguf_tensor_file(2, 1ull << 30, 1ull << 30, 0, 0), ML_ERROR_TRUNCATED, "w needs");
    REFUSE(gguf_tensor_file(2, 1, 1ull << 62, 0, 0), ML_ERROR_FORMAT, "tensor w");
    REFUSE(gguf_tensor_file(2, 1, 1ull << 63, 0, 0), ML_ERROR_FORMAT, "tensor w: its shape overflows");
    REFUSE(gguf_tensor_file(2, 1ull << 63, 0, 0, 0), ML_ERROR_FORMAT, "tensor w: its shape overflows");
    REFUSE(gguf_tensor_file(2, 1, 33, 8, 0), ML_ERROR_FORMAT,
           "tensor w: rows of 33 do not fit blocks of Q8_0");
    ACCEPT(gguf_tensor_file(2, 1, 256, 99, 0)); /* how long it is, nobody knows */
    ACCEPT(gguf_tensor_file(2, 1, LARGEST, 0xffffffffu, 0));
    REFUSE(gguf_tensor_file(2, 1ll << 40, 1ll << 40, 99, 0), ML_ERROR_FORMAT, "shape overflows");
    REFUSE(gguf_tensor_file(2, 1, 256, 99, 288), ML_ERROR_TRUNCATED, "w needs bytes up to");
    REFUSE(gguf_tensor_file(2, 1, 256, 99, 4), ML_ERROR_FORMAT, "offset 4 is not aligned");
    REFUSE(gguf_tensor_file(2, 1, 96, 12, 0), ML_ERROR_FORMAT,
           "tensor w: rows of 96 do not fit blocks of Q4_K");
    REFUSE(gguf_tensor_file(5, 1, 1, 0, 0), ML_ERROR_FORMAT, "tensor w has more than 4 dimensions");
    REFUSE(gguf_tensor_file(-1, 1, 1, 0, 0), ML_ERROR_FORMAT, "tensor w has more than 4 dimensions");
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 2, 0);
    gguf_tensor(&b, "w", 1, 0, 1, 0, 0), gguf_tensor(&b, "w", 1, 0, 1, 0, 0);
    gguf_pad(&b, 32), put_floats(&b, 0, 1);
    REFUSE(b, ML_ERROR_FORMAT, "two tensors are named w");
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 0, 2);
    gguf_key(&b, "k", 0), put_u8(&b, 1), gguf_key(&b, "k", 0), put_u8(&b, 1);
    REFUSE(b, ML_ERROR_FORMAT, "two values are named k");
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 0, 1);
    put_u64(&b, 3), put(&b, "a\0b", 3), put_u32(&b, 0), put_u8(&b, 1);
    REFUSE(b, ML_ERROR_FORMAT, "zero byte");
}

/* A hundred thousand keys, in no order, stay quick: their names are sorted, not searched one by one. */
TEST(ggufs_with_many_keys) {
    bytes b;
    unsigned i, x = 1;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 0, 100000);
    for (i = 0; i < 100000; i++) {
        char key[16];
        x = x * 1664525u + 1013904223u; /* a full period: no number comes twice */
        snprintf(key, sizeof key, "%u", x);
        gguf_key(&b, key, 0), put_u8(&b, 1);
    }
    ACCEPT(b);
}

/* ---- safetensors ---- */

#define W(type, shape, range)                                                                                \
    "{\"w\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" range "}}"

TEST(safetensors_that_lie) {
    static const struct {
        const char *header;
        ml_result code;
        const char *words;
    } rows[] = {
        {"{}", ML_OK, ""},
        {W("F32", "[2,3]", "[0,24]"), ML_OK, ""},
        {W("F32", "[0,9223372036854775807]", "[24,24]"), ML_OK, ""},
        {W("F32", "[2,3]", "[0,20]"), ML_ERROR_FORMAT, "tensor w: bytes 0 to 20 do not fit"},
        {"{\"\xc2\x9b\\u009c3m\xc3\xa4\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,20]}}",
         ML_ERROR_FORMAT,
         "tensor ??3m\xc3\xa4: bytes"}, /* what a terminal might obey, U+009B, is not shown */
        {W("F32", "[2,3]", "[24,0]"), ML_ERROR_FORMAT, "tensor w: bytes 24 to 0 do not fit"},
        {W("F32", "[2,3]", "[24,48]"), ML_ERROR_TRUNCATED, "w needs bytes up to"},
        {W("F32", "[1]", "[9223372036854775803,9223372036854775807]"), ML_ERROR_TRUNCATED, "w needs bytes"},
        {W("F32", "[2,3]", "[-4,20]"), ML_ERROR_FORMAT, "a size is wrong"},
        {W("F32", "[-2,-3]", "[0,24]"), ML_ERROR_FORMAT, "a size is wrong"},
        {W("F32", "[1]", "[0,9223372036854775807],\"data_offsets\":[-1,3]"), ML_ERROR_FORMAT,
         "a size is wrong"},
        {W("F32", "[2.0,3]", "[0,24]"), ML_ERROR_FORMAT, "a size is wrong"},
        {W("F32", "[18446744073709551616]", "[0,0]"), ML_ERROR_FORMAT, "a size is wrong"},
        {W("F32", "[4294967296,4294967296]", "[0,0]"), ML_ERROR_FORMAT, "tensor w: its shape overflows"},
        {W("F32", "[4611686018427387904]", "[0,0]"), ML_ERROR_FORMAT, "tensor w"},
        {W("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), ML_OK, ""},
        {W("F32", "[1,1,1,1,1,1,1,1,-1]", "[0,4]"), ML_ERROR_FORMAT, "a size is wrong"},
        {W("F32", "[2,3]", "[0,24,24]"), ML_ERROR_FORMAT, "tensor w lacks"},
        {W("F32", "[2,3]", "[0]"), ML_ERROR_FORMAT, "tensor w lacks"},
        {W("Q8_0", "[32]", "[0,1]"), ML_OK, ""},
        {W("F8_E4M3", "[2,3]", "[0,6]"), ML_OK, ""},
        {W("F8_E4M3", "[2,3]", "[0,25]"), ML_ERROR_TRUNCATED, "w needs bytes"},
        {W("F8_E4M3", "[2,3]", "[6,0]"), ML_ERROR_FORMAT, "do not fit"},
        {W("F8_E4M3", "[4294967296,4294967296]", "[0,6]"), ML_ERROR_FORMAT, "shape overflows"},
        {W("F8_E4M3", "[2,3]", "[0,9223372036854775807]"), ML_ERROR_TRUNCATED, "w needs bytes"},
        {"{\"w\":{}}", ML_ERROR_FORMAT, "a string is missing"},
        {"{\"w\":{\"dtype\":\"F32\"}}", ML_ERROR_FORMAT, "tensor w lacks"},
        {"{\"w\":{\"x\":1}}", ML_ERROR_FORMAT, "tensor w lacks"},
        {"{\"w\":{\"x\":{\"y\":[1,null]},\"dtype\":\"F32\",\"shape\":[2,3],\"z\":\"\",\"data_offsets\":[0,24]"
         "}}",
         ML_OK, ""}, /* what another program wrote is no property of these */
        {"{\"w\":{\"x\":[1,}}", ML_ERROR_FORMAT, "JSON"},
        {"{\"w\":7}", ML_ERROR_FORMAT, "description is missing"},
        {"{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
         "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}",
         ML_ERROR_FORMAT, "two tensors are named w"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", ML_ERROR_FORMAT,
         "zero byte"},
        {"{", ML_ERROR_FORMAT, "JSON"},
        {"{\"w\"", ML_ERROR_FORMAT, "JSON"},
        {"{}x", ML_ERROR_FORMAT, "JSON"},
    };
    size_t i;
    bytes data;
    memset(&data, 0, sizeof data);
    put_floats(&data, 0, 6);
    REFUSE(safetensors_file("{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[32,40]},"
                            "\"a\":{\"dtype\":\"F32\",\"shape\":[8],\"data_offsets\":[0,32]}}",
                            data.data, 24),
           ML_ERROR_TRUNCATED,
           "b needs bytes up to 158, it has 142"); /* a header of 110 bytes, and its length */
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bytes b = safetensors_file(rows[i].header, data.data, data.size);
        if (strlen(rows[i].header) < 2) { /* too short to be taken for safetensors */
            CHECK(try_open(b.data, b.size) == ML_ERROR_FORMAT);
            free_bytes(&b);
        } else if (rows[i].code) {
            refuse(b, rows[i].code, rows[i].words, (int)i);
        } else {
            accept(b, (int)i);
        }
    }
    free_bytes(&data);
}

TEST(json_nested_deeply) {
    bytes header, file;
    int i;
    memset(&header, 0, sizeof header);
    put_text(&header, "{\"__metadata__\":");
    for (i = 0; i < 100000; i++) put_u8(&header, '[');
    put_u8(&header, 0);
    file = safetensors_file((const char *)header.data, "", 0);
    REFUSE(file, ML_ERROR_FORMAT, "nested too deeply");
    free_bytes(&header);
}

/* A million values and more are refused before they are sorted, with the name of the first that is too much. */
TEST(json_of_many_values) {
    bytes text = {NULL, 0, 0};
    ml_tokenizer *tokenizer;
    put_text(&text, "{\"a\":[");
    for (int i = 0; i <= 1 << 20; i++) put_text(&text, i ? ",0" : "0");
    put_text(&text, "]}");
    CHECK(ml_tokenizer_load_memory(text.data, text.size, NULL, &tokenizer, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, "tokenizer.json: JSON: there are more than 1048576 values: a.1048576") !=
          NULL);
    text.data[text.size - 4] = ' '; /* one less: no error of the JSON */
    text.data[text.size - 3] = ' ';
    CHECK(ml_tokenizer_load_memory(text.data, text.size, NULL, &tokenizer, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, "no model of type BPE") != NULL);
    free_bytes(&text);
}

/* ---- llama2.c ---- */

static bytes bin_with(int version, size_t at, uint32_t value) {
    bytes b = small_bin(version, 0);
    return with_number(b, b.size - at, value, 4);
}

TEST(bins_that_lie) {
    static const char pickle[] = "\x80\4\x95\x0a\0\0\0\0\0\0\0}\x94\x8c\1a\x94K\1s.";
    bytes b;
    int i;
    for (i = 0; i < 7; i++) { /* each number of the header, 0, negative and enormous */
        static const uint32_t wrong[] = {0, 0x80000000u, 0xffffffffu, 0x7fffffffu};
        int k;
        for (k = 0; k < 4; k++) {
            REFUSE(bin_with(1, 8 + 4 * (size_t)i, wrong[k]), ML_ERROR_FORMAT, "not a model's");
            b = bin_with(0, 4 * (size_t)i, wrong[k]);
            CHECK(try_open(b.data, b.size) != ML_OK);
            free_bytes(&b);
        }
    }
    REFUSE(bin_with(1, 8 + 12, 3), ML_ERROR_FORMAT, "not a model's");   /* 3 heads do not divide 8 */
    REFUSE(bin_with(1, 8 + 16, 3), ML_ERROR_FORMAT, "not a model's");   /* 3 of 4 key heads */
    REFUSE(bin_with(1, 8 + 20, 11), ML_ERROR_TRUNCATED, "needs bytes"); /* a vocabulary of 11 */
    REFUSE(bin_with(1, 8 + 20, 9), ML_ERROR_FORMAT, "too many for the model of its header");
    REFUSE(bin_with(1, 8 + 20, 1 << 24), ML_ERROR_TRUNCATED, "needs bytes");
    REFUSE(bin_with(1, 8, 1 << 20), ML_ERROR_TRUNCATED, "needs bytes");
    REFUSE(bin_with(0, 20, 1 << 20), ML_ERROR_TRUNCATED, "needs bytes");
    REFUSE(bin_with(0, 20, 9), ML_ERROR_FORMAT, "bytes: 352 too many for the model of its header");
    b = small_bin(0, 0);
    put_literal(&b, "and more");
    REFUSE(b, ML_ERROR_FORMAT, "bytes: 8 too many for the model of its header");
    b = small_bin(0, 0);
    for (size_t n = b.size + 64; n; n--) put_u8(&b, 1); /* so many that the numbers are another format's */
    REFUSE(b, ML_ERROR_FORMAT, "not a known model file");
    memset(&b, 0, sizeof b);
    put(&b, pickle, sizeof pickle - 1);
    REFUSE(b, ML_ERROR_FORMAT, "a pickle, but not from torch.save");
    REFUSE(bin_with(1, 4, 3), ML_ERROR_UNSUPPORTED, "version 3");
    REFUSE(bin_with(1, 4, 0), ML_ERROR_UNSUPPORTED, "version 0");
    REFUSE(bin_with(2, 37, 0), ML_ERROR_FORMAT, "group size 0");
    REFUSE(bin_with(2, 37, 0xfffffffcu), ML_ERROR_FORMAT, "group size -4");
    REFUSE(bin_with(2, 37, 3), ML_ERROR_FORMAT, "tok_embeddings.weight does not fit groups of 3");
    REFUSE(bin_with(2, 37, 0x7fffffff), ML_ERROR_FORMAT, "does not fit groups");
    b = small_bin(1, 1);
    put_u8(&b, 0);
    REFUSE(b, ML_ERROR_FORMAT, "bytes: 1 too many for the model of its header");
}

/* ---- numbers ---- */

/* A small model, saved and read again; its file is overwritten. */
static bytes model_file(ml_type type) {
    static const ml_config config = {.dim = 64,
                                     .hidden_dim = 64,
                                     .n_layers = 1,
                                     .n_heads = 2,
                                     .n_kv_heads = 2,
                                     .vocab_size = 32,
                                     .max_seq_len = 16};
    ml_save_desc desc = save_as(ML_GGUF, type);
    ml_model *model = NULL;
    ml_random random;
    ml_random_seed(&random, 5);
    CHECK(create_model(&config, type, &random, NULL, &model, &failure) == ML_OK);
    CHECK(ml_model_save(model, in_folder("model.gguf"), &desc, &failure) == ML_OK);
    ml_model_free(model);
    return read_file(in_folder("model.gguf"));
}

/* Where the tensor's data is in the file. */
static unsigned char *data_in(const bytes *file, const char *name) {
    ml_archive *archive = NULL;
    CHECK(ml_archive_load_memory(file->data, file->size, NULL, &archive, &failure) == ML_OK);
    const ml_array *array = ml_archive_find_array(archive, name);
    CHECK(array != NULL);
    size_t at = (size_t)((const unsigned char *)array->data - file->data);
    ml_archive_free(archive);
    return file->data + at;
}

static ml_result load_as(const bytes *file, ml_type type, int unchecked, ml_model **model) {
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = type;
    desc.unchecked = unchecked;
    return ml_model_load_memory(file->data, file->size, &desc, model, &failure);
}

/* Infinities and NaN of each type, at the beginning, in the middle and at the end of a matrix (64, 64). Those of
   blocks are in their scale, and the first number of the block is named. */
TEST(weights_that_are_not_finite) {
    static const struct {
        ml_type type;
        unsigned value; /* its upper half in F32 */
    } kinds[] = {{ML_F32, 0x7f80},  {ML_F32, 0xff80},  {ML_F32, 0x7fc0},  {ML_F32, 0x7f81},
                 {ML_F16, 0x7c00},  {ML_F16, 0xfc00},  {ML_F16, 0x7e00},  {ML_BF16, 0x7f80},
                 {ML_BF16, 0xff80}, {ML_BF16, 0xffff}, {ML_Q8_0, 0x7c00}, {ML_Q8_0, 0xfe01},
                 {ML_Q4_0, 0xfc00}, {ML_Q4_0, 0x7c01}};
    static const size_t indices[] = {0, 3 * 64 + 5, 3 * 64 + 37, 64 * 64 - 1};
    size_t i, k;
    for (i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (k = 0; k < 4; k++) {
            size_t block = ml_type_block(kinds[i].type), index = indices[k] / block * block;
            bytes file = model_file(kinds[i].type);
            unsigned char *at =
                data_in(&file, "blk.0.ffn_down.weight") + ml_type_row_bytes(kinds[i].type, index);
            ml_model *model = NULL;
            char words[64];
            if (kinds[i].type == ML_F32) at += 2;
            at[0] = (unsigned char)(kinds[i].value & 255), at[1] = (unsigned char)(kinds[i].value >> 8);
            snprintf(words, sizeof words, "blk.0.ffn_down.weight: number (%d, %d) is not finite",
                     (int)index / 64, (int)index % 64);
            CHECK(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_ERROR_NUMBER && strstr(failure.text, words));
            CHECK(!model);
            CHECK(load_as(&file, kinds[i].type == ML_F32 ? ML_F16 : ML_F32, 0, &model) == ML_ERROR_NUMBER &&
                  strstr(failure.text, words));
            CHECK(load_as(&file, ML_TYPE_NONE, 1, &model) == ML_OK);
            ml_model_free(model);
            free_bytes(&file);
        }
}

/* Loads the file with NaN or an infinity in one of the scales of its first tensor of this type, in the first block
   and in the last. `at`: where the scale is in a block. */
static void check_scale(const char *path, ml_type type, size_t at, unsigned value) {
    for (int is_last = 0; is_last < 2; is_last++) {
        bytes file = read_file(path);
        ml_archive *archive = NULL;
        ml_model *model = NULL;
        char words[160];
        REQUIRE(ml_archive_load_memory(file.data, file.size, NULL, &archive, &failure) == ML_OK);
        const ml_array *a = archive->arrays;
        while (a < archive->arrays + archive->n_arrays && a->type != type) a++;
        REQUIRE(a < archive->arrays + archive->n_arrays);
        size_t n = ml_array_count(a), cols = (size_t)a->shape[1];
        size_t index = is_last ? n - ml_type_block(type) : 0;
        unsigned char *scale = file.data + ((const unsigned char *)a->data - file.data);
        scale += ml_type_row_bytes(type, index) + at;
        scale[0] = (unsigned char)(value & 255), scale[1] = (unsigned char)(value >> 8);
        snprintf(words, sizeof words, "%s: number (%d, %d) is not finite", a->name, (int)(index / cols),
                 (int)(index % cols));
        CHECK(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_ERROR_NUMBER && !model);
        if (!strstr(failure.text, words)) printf("%s, not %s\n", failure.text, words);
        CHECK(strstr(failure.text, words) != NULL);
        CHECK(load_as(&file, ML_F16, 0, &model) == ML_ERROR_NUMBER && strstr(failure.text, words));
        CHECK(load_as(&file, ML_TYPE_NONE, 1, &model) == ML_OK);
        ml_model_free(model);
        ml_archive_free(archive);
        free_bytes(&file);
    }
}

/* The scales of blocks of other types, d and that of the minima, where llama.cpp's ggml-common.h has them. */
TEST(scales_that_are_not_finite) {
    static const struct {
        const char *file;
        ml_type type;
        size_t d, minimum; /* 0: there is none */
    } kinds[] = {{"Q4_1", ML_Q4_1, 0, 2},    {"Q5_0", ML_Q5_0, 0, 0},     {"Q5_1", ML_Q5_1, 0, 2},
                 {"Q2_K", ML_Q2_K, 80, 82},  {"Q3_K_M", ML_Q3_K, 108, 0}, {"Q4_K_M", ML_Q4_K, 0, 2},
                 {"Q5_K_M", ML_Q5_K, 0, 2},  {"Q6_K", ML_Q6_K, 208, 0},   {"IQ4_NL", ML_IQ4_NL, 0, 0},
                 {"IQ4_XS", ML_IQ4_XS, 0, 0}};
    NEED_SHARED();
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char name[64];
        snprintf(name, sizeof name, "models/modern/quant-%s.gguf", kinds[i].file);
        const char *path = shared_path(name);
        REQUIRE(path);
        check_scale(path, kinds[i].type, kinds[i].d, 0x7e00);
        check_scale(path, kinds[i].type, kinds[i].d, 0xfc00);
        if (kinds[i].minimum) check_scale(path, kinds[i].type, kinds[i].minimum, 0x7c01);
    }
}

/* What was not looked at when it was loaded shows where it is used. */
TEST(results_that_are_not_finite) {
    static const int32_t tokens[] = {1, 2, 3};
    static const ml_batch batch = {.tokens = tokens, .n_tokens = 3};
    bytes file = model_file(ML_F32);
    unsigned char *at = data_in(&file, "output_norm.weight");
    float embedding[64], log_probs[2];
    ml_head_create_desc top = {.n_classes = 2};
    ml_generate_desc generate = {.prompt_ids = {tokens, 3}, .max_new_tokens = 2};
    ml_likelihood_desc scored = {.context_ids = {tokens, 1}, .continuation_ids = {tokens + 1, 2}};
    ml_save_desc save = save_as(ML_GGUF, ML_F16);
    ml_likelihood likelihood;
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_head *head = NULL;
    ml_trainer *trainer = NULL;
    ml_trainer_desc how = {.frozen = 1, .adamw = {.lr = 1e-3f}};
    ml_random random;
    at[2] = 0xc0, at[3] = 0x7f; /* NaN */
    ml_random_seed(&random, 1);
    generate.sampler.random = top.random = &random;
    CHECK(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "output_norm.weight: number (0, 0) is not finite"));
    REQUIRE(load_as(&file, ML_TYPE_NONE, 1, &model) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, &failure) == ML_OK);
    REQUIRE(ml_head_create(model, &top, &head, &failure) == ML_OK);
    CHECK(ml_session_generate(session, &generate, NULL, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "the logits after 3 tokens are not finite"));
    generate.sampler.temperature = 1;
    CHECK(ml_session_generate(session, &generate, NULL, &failure) == ML_ERROR_NUMBER);
    CHECK(ml_session_likelihood(session, &scored, &likelihood, &failure) == ML_ERROR_NUMBER);
    CHECK(ml_session_embed(session, &batch, NULL, embedding, &failure) == ML_ERROR_NUMBER);
    CHECK(ml_head_eval(head, session, &batch, log_probs, &failure) == ML_ERROR_NUMBER);
    how.head = head;
    REQUIRE(ml_trainer_new(model, &how, &trainer, &failure) == ML_OK);
    CHECK(ml_trainer_eval(trainer, &batch, log_probs, NULL, &failure) ==
          ML_ERROR_NUMBER); /* no labels: no loss */
    ml_trainer_free(trainer);
    CHECK(ml_model_save(model, in_folder("not.gguf"), &save, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "output_norm.weight: number (0, 0) is not finite"));
    CHECK(!exists(in_folder("not.gguf")) && !exists(in_folder("not.gguf.tmp")));
    ml_head_free(head);
    ml_session_free(session);
    ml_model_free(model);
    free_bytes(&file);
}

/* Finite numbers that a type cannot hold: the largest that still rounds to one of its numbers, and the next. In
   blocks it is the scale that has no room: 127 and 8 of them are the largest. */
TEST(numbers_too_large_for_a_type) {
    static const struct {
        ml_type type;
        float fits, too_large;
        const char *words;
    } rows[] = {{ML_F16, 65519.99f, 65520, "(3, 5) is too large for F16; try BF16"},
                {ML_BF16, 3.39e38f, 3.4e38f, "(3, 5) is too large for BF16; try F32"},
                {ML_Q8_0, 127 * 65519.99f, 127 * 65520.0f, "(3, 5) is too large for Q8_0; try BF16"},
                {ML_Q4_0, -8 * 65519.99f, -8 * 65520.0f, "(3, 5) is too large for Q4_0; try BF16"}};
    bytes file = model_file(ML_F32);
    unsigned char *at = data_in(&file, "blk.0.ffn_down.weight") + (3 * 64 + 5) * sizeof(float);
    size_t i;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) {
        ml_save_desc desc = save_as(ML_GGUF, rows[i].type);
        ml_model *model = NULL;
        set_f32(at, rows[i].fits);
        CHECK(load_as(&file, rows[i].type, 0, &model) == ML_OK);
        ml_model_free(model);
        CHECK(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_OK);
        CHECK(ml_model_save(model, in_folder("fits.gguf"), &desc, &failure) == ML_OK);
        ml_model_free(model);
        set_f32(at, rows[i].too_large);
        CHECK(load_as(&file, rows[i].type, 0, &model) == ML_ERROR_NUMBER &&
              strstr(failure.text, rows[i].words));
        CHECK(strstr(failure.text, "tensor blk.0.ffn_down.weight"));
        CHECK(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_OK);
        CHECK(ml_model_save(model, in_folder("not.gguf"), &desc, &failure) == ML_ERROR_NUMBER);
        CHECK(strstr(failure.text, rows[i].words) && strstr(failure.text, "tensor blk.0.ffn_down.weight"));
        CHECK(!exists(in_folder("not.gguf")) && !exists(in_folder("not.gguf.tmp")));
        ml_model_free(model);
    }
    free_bytes(&file);
}

/* The same for adapters and heads, in one file. */
TEST(adapters_and_heads_that_are_not_finite) {
    ml_lora_create_desc thin = {.rank = 2};
    ml_head_create_desc top = {.n_classes = 2};
    bytes file = model_file(ML_F32), adapter;
    ml_save_desc desc = save_as(ML_GGUF, ML_F16);
    ml_model *model = NULL;
    ml_lora *lora = NULL;
    ml_head *head = NULL;
    ml_random random;
    float *number;
    ml_random_seed(&random, 1);
    thin.random = top.random = &random;
    REQUIRE(load_as(&file, ML_TYPE_NONE, 0, &model) == ML_OK);
    REQUIRE(ml_lora_create(model, &thin, &lora, &failure) == ML_OK);
    REQUIRE(ml_head_create(model, &top, &head, &failure) == ML_OK);
    desc.head = head;
    number = (float *)lora->tensors[1].data + 3;
    *number = 1e5f;
    CHECK(ml_lora_save(lora, model, in_folder("not.gguf"), &desc, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text,
                 "tensor blk.0.attn_q.weight.lora_b: number (1, 1) is too large for F16; try BF16"));
    *number = 1;
    number = (float *)head->weight.data + 64 + 7;
    *number = 1e5f; /* a head is saved as F32 */
    CHECK(ml_lora_save(lora, model, in_folder("adapter.gguf"), &desc, &failure) == ML_OK);
    ml_lora_free(lora), ml_head_free(head);
    adapter = read_file(in_folder("adapter.gguf"));
    memset(data_in(&adapter, "blk.0.attn_q.weight.lora_b") + 6, 0xff, 2);
    memset(data_in(&adapter, "cls.output.weight") + 4 * 71, 0xff, 4);
    CHECK(ml_lora_load_memory(adapter.data, adapter.size, model, NULL, &lora, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "tensor blk.0.attn_q.weight.lora_b: number (1, 1) is not finite") && !lora);
    CHECK(ml_head_load_memory(adapter.data, adapter.size, model, NULL, &head, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "tensor cls.output.weight: number (1, 7) is not finite") && !head);
    ml_model_free(model);
    free_bytes(&adapter), free_bytes(&file);
}

/* A file for the course has the sum W + scale B A, whose terms may be finite when it is not; a GGUF may have a scale
   in B. */
TEST(computed_numbers_that_are_not_finite) {
    static const ml_config config = {.dim = 64,
                                     .hidden_dim = 64,
                                     .n_layers = 1,
                                     .n_heads = 2,
                                     .vocab_size = 32,
                                     .max_seq_len = 16,
                                     .tied_output = 1};
    ml_lora_create_desc thin = {.rank = 2};
    ml_save_desc torch = save_as(ML_PYTORCH, ML_F16), gguf = save_as(ML_GGUF, ML_TYPE_NONE);
    ml_model *model = NULL;
    ml_lora *lora = NULL;
    ml_random random;
    ml_random_seed(&random, 1);
    thin.random = &random;
    REQUIRE(create_model(&config, ML_F32, &random, NULL, &model, &failure) == ML_OK);
    REQUIRE(ml_lora_create(model, &thin, &lora, &failure) == ML_OK);
    float *b = (float *)lora->tensors[1].data, *a = (float *)lora->tensors[0].data;
    a[64 + 5] = 1;
    CHECK(ml_lora_save(lora, model, in_folder("fits.pt"), &torch, &failure) == ML_OK);
    b[3] = 1e5f; /* B's (1, 1) meets A's (1, 5) */
    for (int i = 0; i < 5; i++) a[64 + i] = 0;
    CHECK(ml_lora_save(lora, model, in_folder("not.pt"), &torch, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "attention.compute_query.weight: number (1, 5) is too large for F16"));
    b[3] = mli_bits_float(0x7fc00000);
    torch.type = ML_TYPE_NONE;
    CHECK(ml_lora_save(lora, model, in_folder("not.pt"), &torch, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "attention.compute_query.weight: number (1, 0) is not finite"));
    b[3] = 1e30f;
    lora->private_part->scales[0] = 1e10f;
    CHECK(ml_lora_save(lora, model, in_folder("not.gguf"), &gguf, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "blk.0.attn_q.weight.lora_b: number (1, 1) is not finite"));
    CHECK(!exists(in_folder("not.pt")) && !exists(in_folder("not.gguf")));
    ml_lora_free(lora);
    ml_model_free(model);
}

int main(void) {
    if (!folder_begin("hostile")) return 1;
    RUN(cut_at_every_byte);
    RUN(cut_file_tells_what_it_needs);
    RUN(every_byte_damaged);
    RUN(many_bytes_damaged);
    RUN(pickles_that_would_run_code);
    RUN(pickles_that_are_wrong);
    RUN(pickles_that_never_end);
    RUN(pickles_with_long_names);
    RUN(tensors_outside_of_their_storage);
    RUN(tensors_with_wrong_storages);
    RUN(pickles_that_are_long);
    RUN(zips_that_lie);
    RUN(ggufs_that_lie);
    RUN(ggufs_with_many_keys);
    RUN(safetensors_that_lie);
    RUN(json_nested_deeply);
    RUN(json_of_many_values);
    RUN(bins_that_lie);
    RUN(weights_that_are_not_finite);
    RUN(scales_that_are_not_finite);
    RUN(results_that_are_not_finite);
    RUN(numbers_too_large_for_a_type);
    RUN(adapters_and_heads_that_are_not_finite);
    RUN(computed_numbers_that_are_not_finite);
    if (!folder_end()) return 1;
    return test_report("test_hostile");
}
