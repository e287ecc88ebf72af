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
        if (n && array->is_contiguous) {
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
        for (size_t k = 0; value->kind == ML_VALUE_STRING && k < value->length; k++)
            sum += (unsigned char)value->s[k];
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

/* A bare pickle too, and each version of llama2.c's files. */
static bytes fuzz_seed(int index) {
    bytes b = {NULL, 0, 0};
    if (index == 0) return small_pt();
    if (index == 1) return small_gguf();
    if (index == 2) return small_safetensors();
    if (index == 3) pk_small(&b);
    return index < 4 || index > 6 ? b : small_bin(index - 4, 0);
}
