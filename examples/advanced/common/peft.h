/* Between the files that read and write PEFT's format. */
#ifndef PEFT_H
#define PEFT_H

#include "methods.h"

enum { PEFT_MAX_LAYERS = 128, PEFT_MAX_HEAD = 1024 };

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

/* peft.c: what the method has, and the classifier. */
int peft_list_tensors(tuning *t, peft_list *list);
void peft_list_free(peft_list *list);
int peft_is_prefix(const efficient *e);
ml_tensor peft_prefix(tuning *t, ml_graph *g, const tuning_batch *batch); /* as a matrix in the graph */
void peft_permute(const ml_config *c, const peft_tensor *from, float *to, int is_back);
void peft_turn_keys(const ml_config *c, ml_tensor *x, double positions);

/* peft_config.c: adapter_config.json */
enum { PEFT_CONFIG_SIZE = 2048 };
void peft_config(const tuning *t, char to[PEFT_CONFIG_SIZE]);

#endif
