/* What a folder has of a model: which of its files are read, how large they are, and what is missing. Names are
   printed without control characters. */
#ifndef INSPECT_FOLDER_H
#define INSPECT_FOLDER_H

#include "../examples/common/report.h"
#include "../examples/common/system.h"

/* ---- names from outside, on the terminal ---- */

/* The code of the control character that s[0..n) begins with, or -1. Those above 127 have two bytes in UTF-8, and some
   terminals obey them, too. */
static inline int control_at(const char *s, size_t n) {
    const unsigned char *c = (const unsigned char *)s;
    if (c[0] < 32 || c[0] == 127) return c[0];
    return n > 1 && c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0 ? c[1] : -1;
}

/* Bytes from a file, without control characters. */
static inline void print_plain(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int control = control_at(s + i, n - i);
        putchar(control >= 0 ? '?' : s[i]);
        i += control > 127;
    }
}

/* A name from a file; padded to `width`. */
static inline void print_name(const char *name, int width) {
    int n = (int)strlen(name);
    print_plain(name, (size_t)n);
    while (n++ < width) putchar(' ');
}

/* ---- the folder ---- */

typedef struct inspected {
    const char *folder;
    int n_missing, has_shards, needs_config;
} inspected;

/* -1: there is no such file. */
static inline long long bytes_of(const char *folder, const char *name) {
    char path[4096];
    system_file about;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return system_look(path, &about) && about.is_regular ? (long long)about.bytes : -1;
}

/* A line for a file; a missing one is counted. Returns whether it is there. */
static inline int print_file(inspected *in, const char *what, const char *name) {
    long long n = bytes_of(in->folder, name);
    printf("  %-14s ", what);
    print_name(name, 34);
    putchar(' ');
    if (n < 0)
        printf("missing\n"), in->n_missing++;
    else
        printf("%lld bytes\n", n);
    return n >= 0;
}

/* The place of "-00001-of-00002" in the name; NULL if it is not one of several. */
static inline const char *shard_number(const char *name, int *count) {
    int number, length = 0;
    for (const char *p = name; (p = strchr(p, '-')) != NULL; p++)
        if (sscanf(p, "-%5d-of-%5d.%n", &number, count, &length) == 2 && length == 16) return p;
    return NULL;
}

/* All shards of which this is one, whether they are there or not. */
static inline void print_shards(inspected *in, const char *name, const char *at, int count) {
    char other[512];
    for (int i = 1; i <= count && i <= 1000; i++) {
        snprintf(other, sizeof other, "%.*s-%05d%s", (int)(at - name), name, i, at + 6);
        print_file(in, "weights", other);
    }
}

/* Meta's pieces, up to the last one that is there. */
static inline int print_pieces(inspected *in) {
    char name[32];
    int n = 0;
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "consolidated.%02d.pth", i);
        if (bytes_of(in->folder, name) >= 0) n = i + 1;
    }
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "consolidated.%02d.pth", i);
        print_file(in, "weights", name);
    }
    return n;
}

/* Where weights cannot be read: a file, if it has some, and with the first that is one of several all of these. */
static inline int print_found(void *inspected_folder, const char *name) {
    static const char *const ends[] = {".index.json", ".safetensors", ".bin", ".gguf",
                                       ".pth",        ".pt",          ".ckpt"};
    inspected *in = (inspected *)inspected_folder;
    int is_weights = 0, count = 0;
    const char *at = shard_number(name, &count);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t n = strlen(name), length = strlen(ends[i]);
        is_weights |= n > length && strcmp(name + n - length, ends[i]) == 0;
    }
    if (!is_weights || strcmp(name, "tokenizer.bin") == 0 || (at && in->has_shards)) return 1;
    in->needs_config |= strstr(name, ".gguf") == NULL;
    if (at)
        print_shards(in, name, at, count), in->has_shards = 1;
    else
        print_file(in, strstr(name, ".index.json") ? "index" : "weights", name);
    return 1;
}

/* Files beside the weights: the first of each that is there, or that there is none. */
static inline void print_beside(inspected *in) {
    static const struct {
        const char *what, *names[5];
    } files[] = {
        {"configuration", {"config.json", "params.json", NULL}},
        {"generation", {"generation_config.json", NULL}},
        {"tokenizer", {"tokenizer.model", "tokenizer.json", "tokenizer.bin", "../tokenizer.model", NULL}},
        {"its settings", {"tokenizer_config.json", NULL}},
        {"chat template", {"chat_template.jinja", NULL}}};
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        int n = 0;
        for (const char *const *name = files[k].names; *name; name++) {
            int is_above = strncmp(*name, "../", 3) == 0; /* Meta's; not looked for beside other files */
            if (bytes_of(in->folder, *name) < 0 || (is_above && n)) continue;
            if (is_above && bytes_of(in->folder, "params.json") < 0) continue;
            print_file(in, files[k].what, *name), n++;
        }
        if (!n && k == 0 && in->needs_config)
            print_file(in, files[k].what, files[k].names[0]);
        else if (!n)
            printf("  %-14s none\n", files[k].what);
    }
}

/* archive: what was read of the folder, or NULL. Returns how many files are missing. */
static inline int print_folder(const char *folder, const ml_archive *archive) {
    inspected in = {folder, 0, 0, 0};
    const char *name = archive ? ml_archive_file(archive, 0) : NULL;
    in.needs_config = archive && strcmp(archive->format, "GGUF") != 0;
    printf("files of ");
    print_name(folder, 0);
    printf(":\n");
    for (size_t i = 0; name; name = ml_archive_file(archive, ++i))
        print_file(&in, strstr(name, ".index.json") ? "index" : "weights", name);
    if (!archive && print_pieces(&in))
        in.needs_config = 1;
    else if (!archive)
        system_list(folder, print_found, &in);
    if (bytes_of(folder, "adapter_config.json") >= 0)
        print_file(&in, "adapter", "adapter_config.json");
    else
        print_beside(&in);
    if (in.n_missing) printf("files that are missing: %d\n", in.n_missing);
    return in.n_missing;
}

#endif
