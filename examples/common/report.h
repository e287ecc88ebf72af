/* What went wrong, on standard error: "error: WHAT: WHY". All of these return 0, so that a function can end with
   `return complain(...)`. */
#ifndef REPORT_H
#define REPORT_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "minillama.h"

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
static inline int
complain(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    return 0;
}

static inline int no_memory(const char *what) { return complain("%s: not enough memory", what); }

/* 1 if a call of the library succeeded; 0 after printing the library's sentence. */
static inline int succeeded(ml_result result, const ml_error *error) {
    return result == ML_OK || complain("%s", error->text);
}

/* The same for a call that read a file: its sentence may not begin with the file's name, or with the end of a long
   one. */
static inline int loaded(const char *path, ml_result result, const ml_error *error) {
    size_t n = strlen(path);
    if (result == ML_OK) return 1;
    int is_named = strncmp(error->text, "...", 3) == 0 ||
                   (n && strncmp(error->text, path, n) == 0 && strchr(": /.", error->text[n]));
    return is_named ? succeeded(result, error) : complain("%s: %s", path, error->text);
}

/* The adapter of a file, for this model and `scale` times as strong (0: as it is); NULL after saying why. */
static inline ml_lora *load_adapter(const char *path, const ml_model *model, float scale) {
    ml_lora *lora = NULL;
    ml_error error;
    if (!loaded(path, ml_lora_load(path, model, NULL, &lora, &error), &error)) return NULL;
    if (scale == 0 || succeeded(ml_lora_scale(lora, scale, &error), &error)) return lora;
    ml_lora_free(lora);
    return NULL;
}

#endif
