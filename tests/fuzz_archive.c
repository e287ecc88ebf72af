/* Fuzzing: whatever the bytes, opening them as an archive must end, soon, in an archive or an error.
     clang -g -O1 -std=c99 -fsanitize=fuzzer,address,undefined -I. -Itests tests/fuzz_archive.c -o fuzz_archive -lm
     ./fuzz_archive -max_len=65536 CORPUS
   Without libFuzzer it replays files:
     cc -g -std=c99 -DFUZZ_REPLAY -I. -Itests tests/fuzz_archive.c -o replay -lm && ./replay FILE... */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

#include "build_files.h"

#ifdef __cplusplus
extern "C"
#endif
    int
    LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static float fuzz_floats[4096];
static int64_t fuzz_ints[4096];

/* Touches all that the archive shows: names, values, the first and last byte of every array, small arrays whole. */
static uint64_t fuzz_walk(const ml_archive *archive) {
    uint64_t sum = 0;
    size_t i, k, n;
    for (i = 0; i < ml_archive_n_arrays(archive); i++) {
        const ml_array *array = ml_archive_array(archive, i);
        n = ml_array_count(array);
        if (ml_archive_find(archive, array->name) != array) sum += 1000;
        if (n && array->is_contiguous) {
            const unsigned char *p = (const unsigned char *)array->data;
            sum += (uint64_t)p[0] + p[ml_row_bytes(array->type, n) - 1];
        }
        if (n > 4096) continue;
        if (ml_array_read(array, fuzz_floats, n) == ML_OK && n) sum += fuzz_floats[n - 1] > 0;
        if (ml_array_read_ints(array, fuzz_ints, n) == ML_OK && n) sum += (uint64_t)fuzz_ints[n - 1];
    }
    for (i = 0; i < ml_archive_n_values(archive); i++) {
        const ml_value *value = ml_archive_value(archive, i);
        if (!ml_archive_find_value(archive, value->name)) sum += 1000;
        for (k = 0; value->kind == ML_VALUE_STRING && k < value->length; k++)
            sum += (unsigned char)value->s[k];
        sum += (uint64_t)value->i + (value->f > 0);
    }
    return sum;
}

static void fuzz_open(const uint8_t *data, size_t size) {
    static volatile uint64_t sink;
    ml_archive *archive = NULL;
    ml_error error;
    ml_result result = ml_archive_open_memory(data, size, NULL, &archive, &error);
    if (result != error.code || (!result) != (archive != NULL) || (!result) != !error.text[0]) abort();
    if (archive) sink = sink + fuzz_walk(archive);
    ml_archive_close(archive);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_open(data, size);
    if (size &&
        data[0] == 0x80) { /* a bare pickle: put into a .pt file, which spares the fuzzer the zip around it */
        bytes pickle, file;
        memset(&pickle, 0, sizeof pickle);
        put(&pickle, data, size);
        file = pt_file(&pickle, 24);
        fuzz_open(file.data, file.size);
        free_bytes(&pickle), free_bytes(&file);
    }
    return 0;
}

#ifdef FUZZ_REPLAY
int main(int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        unsigned char *data = NULL;
        long size = 0;
        if (file && fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0) {
            rewind(file);
            data = (unsigned char *)malloc((size_t)size + 1);
            if (data && fread(data, 1, (size_t)size, file) == (size_t)size)
                LLVMFuzzerTestOneInput(data, (size_t)size);
        }
        printf("%s: %s\n", argv[i], data ? "read" : "cannot be read");
        free(data);
        if (file) fclose(file);
    }
    return 0;
}
#endif
