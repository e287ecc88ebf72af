/* Fuzzing: whatever the bytes, opening them as an archive must end soon, in an archive or an error.
     make fuzz                          under libFuzzer, with sanitizers (clang)
     build/test_fuzz_archive FILE...    replays files; without any, a fixed set of mutated seeds */
#include "fuzz.h"

static float fuzz_floats[4096];
static int64_t fuzz_ints[4096];

/* Reads all that the archive shows: names, values, the first and last byte of every array, small arrays
   completely. */
static uint64_t fuzz_walk(const ml_archive *archive) {
    uint64_t sum = 0;
    size_t n;
    for (size_t i = 0; i < archive->n_arrays; i++) {
        const ml_array *array = &archive->arrays[i];
        n = ml_array_count(array);
        if (ml_archive_find_array(archive, array->name) != array) sum += 1000;
        if (!array->type_name) abort();
        if (n && array->is_contiguous && array->type) {
            const unsigned char *p = (const unsigned char *)array->data;
            sum += (uint64_t)p[0] + p[ml_type_row_bytes(array->type, n) - 1];
        }
        if (n > 4096) continue;
        if (ml_array_read_floats(array, fuzz_floats, n) == ML_OK && n) sum += fuzz_floats[n - 1] > 0;
        if (ml_array_read_ints(array, fuzz_ints, n) == ML_OK && n) sum += (uint64_t)fuzz_ints[n - 1];
    }
    for (size_t i = 0; i < archive->n_values; i++) {
        const ml_value *value = &archive->values[i];
        if (!ml_archive_find_value(archive, value->name)) sum += 1000;
        int has_text = value->kind == ML_VALUE_STRING || value->kind == ML_VALUE_OPAQUE;
        for (size_t k = 0; has_text && k < value->length; k++) sum += (unsigned char)value->s[k];
        sum += (uint64_t)value->i + (value->f > 0);
    }
    return sum;
}

static void fuzz_open(const uint8_t *data, size_t size) {
    static volatile uint64_t sink;
    ml_archive *archive = NULL;
    ml_error error;
    ml_result result = ml_archive_load_memory(data, size, NULL, &archive, &error);
    if (result != error.code || (!result) != (archive != NULL) || (!result) != !error.text[0]) abort();
    if (archive) fuzz_accepted = 1;
    if (archive) sink = sink + fuzz_walk(archive);
    ml_archive_free(archive);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_open(data, size);
    if (size &&
        data[0] ==
            0x80) { /* a bare pickle is put into a .pt file, so that the fuzzer need not find a zip around it */
        bytes pickle, file;
        memset(&pickle, 0, sizeof pickle);
        put(&pickle, data, size);
        file = pt_file(&pickle, 24);
        fuzz_open(file.data, file.size);
        free_bytes(&pickle), free_bytes(&file);
    }
    return 0;
}

/* Objects of unknown classes and calls of unknown functions, in most of the instructions that make them. */
static void pk_objects(bytes *b) {
    put_literal(b, "\x80\4}\x94(");
    put_literal(b, "U\1acm\nA\n)\x81}U\1xK\1sb"); /* NEWOBJ, BUILD */
    put_literal(b, "U\1bcm\nB\n)}U\1yK\2s\x92N}U\1zK\3s\x86"
                   "b");                                         /* NEWOBJ_EX; slots */
    put_literal(b, "U\1ccm\nC\n)R(U\1kK\4u(K\1K\2e");            /* REDUCE with items */
    put_literal(b, "U\1d(K\1im\nD\nU\1e(cm\nE\nK\1oU\1f\x82\7"); /* INST, OBJ, EXT1 */
    put_literal(b, "U\1gcnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\2i8\x85RC\x08");
    put_u64(b, 7);
    put_literal(b, "\x86R");
    put_literal(b, "U\1hccollections\nOrderedDict\n](](U\1iK\1ee\x85R");                 /* pairs */
    put_literal(b, "U\1jI01\nU\1kL12L\nU\1lF0.5\nU\1mS'q'\nU\1nVr\nU\1op7\n0g7\nU\1p2"); /* lines */
    put_literal(b, "K\1\x85K\2G\0\0\0\0\0\0\0\0K\3"); /* keys that make no name */
    put_literal(b, "U\1qctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_parameter\nN");
    pk_matrix(b, "0", 2, 3);
    put_literal(b, "\x85}tRU\1rcm\nM\n)\x81}(U\x0b_parameters}U\1wN"
                   "sU\4selfh\0ub(U\1sN1Nu.");
}

/* A GGUF with a row of each quantized type, of scales that are numbers and of some that are not. */
static bytes quantized_gguf(void) {
    static const struct {
        unsigned type, bytes;
    } rows[] = {{2, 144},  {3, 160},  {6, 176},  {7, 192},  {8, 272},  {10, 84},
                {11, 110}, {12, 144}, {13, 176}, {14, 210}, {20, 144}, {23, 136}};
    enum { N = sizeof rows / sizeof *rows };
    bytes b = {NULL, 0, 0};
    uint64_t at = 0;
    gguf_begin(&b, 3, N, 1);
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    for (int i = 0; i < N; i++) {
        char name[2] = {(char)('a' + i), 0};
        gguf_tensor(&b, name, 2, 1, 256, rows[i].type, at);
        at += (rows[i].bytes + 31) / 32 * 32;
    }
    for (int i = 0; i < N; i++) {
        gguf_pad(&b, 32);
        for (unsigned k = 0; k < rows[i].bytes; k++) put_u8(&b, (k * 37 + (unsigned)i * 11) & 255);
    }
    return b;
}

/* Bare pickles too, and each version of llama2.c's files. */
static bytes fuzz_seed(int index) {
    bytes b = {NULL, 0, 0};
    if (index == 0) return small_pt();
    if (index == 1) return small_gguf();
    if (index == 2) return small_safetensors();
    if (index == 3) return small_legacy();
    if (index == 4) pk_small(&b);
    if (index == 5) pk_objects(&b);
    if (index == 9) return quantized_gguf();
    return index < 6 || index > 8 ? b : small_bin(index - 6, 0);
}
