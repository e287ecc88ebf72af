/* The types that weights can be saved in, by the names that llama.cpp has for files of them: Q4_K_M is a mix, mostly
   Q4_K. Which these are, the library is asked, so that a type it learns to write appears in every program. */
#ifndef TYPES_H
#define TYPES_H

#include <stdio.h>
#include <string.h>

#include "minillama.h"

enum { TYPE_LIST_SIZE = 128 }; /* bytes of text */

/* Converting no numbers tells whether numbers can be converted. */
static inline int type_can_be_saved(ml_type type) {
    return ml_type_convert(type, NULL, ML_F32, NULL, 0) == ML_OK;
}

static inline int type_is_mix(ml_type type) { return type == ML_Q4_K || type == ML_Q5_K; }

/* ML_TYPE_NONE if nothing can be saved as that. Case is ignored; Q4_K may stand for Q4_K_M. */
static inline ml_type saved_type(const char *name) {
    char plain[16];
    size_t n = strlen(name),
           ending = n > 2 && (!strcmp(name + n - 2, "_M") || !strcmp(name + n - 2, "_m")) ? 2 : 0;
    if (n >= sizeof plain) return ML_TYPE_NONE;
    memcpy(plain, name, n - ending);
    plain[n - ending] = '\0';
    ml_type type = ml_type_from_name(plain);
    return type_can_be_saved(type) && (!ending || type_is_mix(type)) ? type : ML_TYPE_NONE;
}

/* list = "F32, F16, ... or Q6_K" */
static inline const char *saved_types(char list[TYPE_LIST_SIZE]) {
    int last = ML_TYPE_COUNT - 1, used = 0;
    while (!type_can_be_saved((ml_type)last)) last--;
    for (int i = 1; i <= last; i++)
        if (type_can_be_saved((ml_type)i) && used < TYPE_LIST_SIZE)
            used += snprintf(list + used, (size_t)(TYPE_LIST_SIZE - used), "%s%s%s",
                             i == 1      ? ""
                             : i == last ? " or "
                                         : ", ",
                             ml_type_name((ml_type)i), type_is_mix((ml_type)i) ? "_M" : "");
    return list;
}

/* Says how many matrices of a model are not saved as the quantized type that was asked for: a row is cut into its
   blocks, else into those of a smaller type, of 32 numbers, or is F16. */
static inline void say_halves(const ml_model *model, ml_type type) {
    int n = 0, n_halves = 0, n_others = 0, block = (int)ml_type_block(type);
    for (int i = 0; i < model->n_tensors && ml_type_block(type) > 1; i++) {
        const ml_tensor *t = &model->tensors[i];
        if (!t->data || t->rows < 2 || (i && t->data == model->tensors[0].data))
            continue; /* a vector, or a tied output */
        n++, n_halves += t->cols % 32 != 0, n_others += t->cols % 32 == 0 && t->cols % (size_t)block != 0;
    }
    if (n_others)
        fprintf(stderr,
                "%d of %d matrices become a type of smaller blocks: their rows are not multiples of %d\n",
                n_others, n, block);
    if (n_halves)
        fprintf(stderr, "%d of %d matrices become F16: their rows are not multiples of 32\n", n_halves, n);
}

#endif
