/* Between the files that read and write PEFT's format. */
#ifndef PEFT_H
#define PEFT_H

#include "tuning.h"

enum { PEFT_MAX_LAYERS = 128 };

typedef struct peft_tensor {
    char name[128];
    ml_tensor x;      /* the parameter */
    int n_dims;       /* 1 or 2 */
    int64_t shape[2]; /* in the file */
    int is_by_heads;  /* its rows, or numbers, are those of Wq or Wk */
} peft_tensor;

typedef struct peft_list {
    peft_tensor *tensors;
    int n;
    size_t capacity;
    ml_tensor prefix; /* (P, 2 L kv_dim), or no data */
} peft_list;

void peft_put_config(const tuning *t, FILE *file);

#endif
