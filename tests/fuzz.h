/* The first include of a fuzzer, in place of preamble.h. libFuzzer brings its own main; with any other compiler the
   one below replays files, or writes the fuzzer's own seeds into a folder (--seeds FOLDER, for libFuzzer to begin
   with), or, without arguments (as `make test` does), replays the seeds, their beginnings of every length, and a fixed
   set of mutations of each. Each seed counts as one test, and must be accepted. A wrong result for any input aborts
   the program. */
#ifndef FUZZ_H
#define FUZZ_H

#include "preamble.h"
#include "build_files.h"

/* What the fuzzer defines: handles one input; */
#ifdef __cplusplus
extern "C"
#endif
    int
    LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
/* a file of each format; one without data ends the list. */
static bytes fuzz_seed(int index);

static int fuzz_accepted; /* the fuzzer sets it to 1 when an input is loaded */

#ifndef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION /* which `make fuzz` defines */

enum { MUTATIONS = 2000, CUTS = 4096 }; /* of each seed; at most */

/* In memory of exactly its size, so that sanitizers see a read past its end. */
static void replay_bytes(const unsigned char *data, size_t n) {
    unsigned char *copy = (unsigned char *)calloc(n ? n : 1, 1);
    if (!copy) exit(2);
    if (n) memcpy(copy, data, n);
    LLVMFuzzerTestOneInput(copy, n);
    free(copy);
}

/* One to four changes: a bit, a byte, a number of four or eight bytes, a shorter end, or a part copied elsewhere. */
static void mutate(bytes *b, ml_random *random) {
    static const uint64_t numbers[] = {0,     1,          127,         128,         255,
                                       65535, 0x7fffffff, 0x80000000u, 0xffffffffu, UINT64_MAX};
    int n_changes = 1 + (int)(ml_random_u64(random) % 4);
    for (; n_changes > 0 && b->size > 8; n_changes--) {
        size_t at = (size_t)(ml_random_u64(random) % (b->size - 8)),
               from = (size_t)(ml_random_u64(random) % (b->size - 8));
        uint64_t number = numbers[ml_random_u64(random) % (sizeof numbers / sizeof *numbers)];
        int kind = (int)(ml_random_u64(random) % 6);
        if (kind == 0) b->data[at] ^= (unsigned char)(1u << ml_random_u64(random) % 8);
        if (kind == 1) b->data[at] = (unsigned char)ml_random_u64(random);
        for (size_t i = 0; (kind == 2 && i < 4) || (kind == 3 && i < 8); i++)
            b->data[at + i] = (unsigned char)(number >> 8 * i);
        if (kind == 4) b->size = at + 1;
        if (kind == 5) memmove(b->data + at, b->data + from, 8);
    }
}

/* 0 if the seed itself is not accepted. */
static int replay_seed(const bytes *seed, int number) {
    ml_random random;
    ml_random_seed(&random, (uint64_t)number);
    fuzz_accepted = 0;
    replay_bytes(seed->data, seed->size);
    if (!fuzz_accepted) return printf("FAILED seed %d is not accepted\n", number), 0;
    for (size_t n = 0; n < seed->size && n < CUTS; n++) replay_bytes(seed->data, n);
    for (int i = 0; i < MUTATIONS; i++) {
        bytes changed = {NULL, 0, 0};
        put(&changed, seed->data, seed->size);
        mutate(&changed, &random);
        replay_bytes(changed.data, changed.size);
        free_bytes(&changed);
    }
    return 1;
}

static int replay_file(const char *path) {
    FILE *file = fopen(path, "rb");
    bytes b = {NULL, 0, 0};
    unsigned char part[4096];
    size_t n;
    if (!file) return printf("%s cannot be opened\n", path), 0;
    while ((n = fread(part, 1, sizeof part, file)) > 0) put(&b, part, n);
    fclose(file);
    replay_bytes(b.data, b.size);
    free_bytes(&b);
    return printf("%s: done\n", path), 1;
}

static int write_seeds(const char *folder_path) {
    char path[1024];
    int n = 0;
    for (bytes seed = fuzz_seed(0); seed.data; seed = fuzz_seed(++n)) {
        snprintf(path, sizeof path, "%s/seed-%d", folder_path, n);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(seed.data, 1, seed.size, file) != seed.size || fclose(file))
            return printf("%s cannot be written\n", path), 1;
        free_bytes(&seed);
    }
    return 0;
}

int main(int argc, char **argv) {
    int n = 0, passed = 0;
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0) return write_seeds(argv[2]);
    for (int i = 1; i < argc; i++)
        if (!replay_file(argv[i])) return 1;
    if (argc > 1) return 0;
    replay_bytes(NULL, 0);
    for (bytes seed = fuzz_seed(0); seed.data; seed = fuzz_seed(++n)) {
        passed += replay_seed(&seed, n);
        free_bytes(&seed);
    }
    const char *slash = strrchr(argv[0], '/');
    printf("%s: %d passed, %d failed, 0 skipped\n", slash ? slash + 1 : argv[0], passed, n - passed);
    return passed == 0 || passed < n;
}

#endif
#endif
