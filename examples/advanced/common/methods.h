/* Parameter-efficient tuning: the model is frozen, and few new numbers learn. Each method is a setup, which adds its
   parameters, and a function that puts them into the network.

   Shapes: n tokens, D dim, H hidden_dim, kv_dim = kv heads * hd, r rank, P length of a prompt or prefix. W is a
   frozen matrix (out, in) of the network, x (n, in) what it multiplies, y = x W^T. */
#ifndef METHODS_H
#define METHODS_H

#include "tuning.h"

/* What the options say; 0 and NULL: the method's default. */
typedef struct efficient_settings {
    const char *method, *targets, *load;
    int rank, bottleneck, length, layers;
    float alpha, scale, ratio;
} efficient_settings;

typedef struct efficient efficient;

/* Which options a method has. */
enum {
    USES_RANK = 1,
    USES_ALPHA = 2,
    USES_TARGETS = 4,
    USES_BOTTLENECK = 8,
    USES_LENGTH = 16,
    USES_LAYERS = 32,
    USES_SCALE = 64,
    USES_RATIO = 128
};

typedef struct efficient_kind {
    const char *name, *peft; /* its type in PEFT's files; NULL: PEFT has none */
    unsigned uses;
    int (*setup)(tuning *t);
    unsigned places; /* by the targets where it uses them */
    ml_insert insert;
    void (*begin)(tuning *t, ml_graph *g, ml_llama_desc *llama);
} efficient_kind;

enum { EFFICIENT_PARTS = 4 }; /* parameters at one place */

struct efficient {
    efficient_settings set;
    const efficient_kind *kind;
    unsigned targets;         /* a sum of ML_LORA_Q ... */
    ml_tensor **at;           /* (L, ML_PLACES, EFFICIENT_PARTS): parameters, or NULL */
    ml_lora *lora;            /* of lora, rslora, loraplus */
    ml_tensor *lora_weights;  /* (lora->n_tensors), with gradients */
    ml_tensor *norms;         /* dora: (n_norms) of (1, out): 1 / ||row of W + s B A||, a constant */
    int n_norms;              /* L * ML_PLACES */
    ml_tensor *keys, *values; /* prefix: (L) of (P, kv_dim) */
    ml_tensor *prompt;        /* (P, D): prompt, or what prefix_mlp computes the prefix from */
    ml_tensor *mlp[4];        /* prefix_mlp: weight, bias, weight, bias */
    int32_t *rows, *turn; /* prompt: the placeholders of a batch, and which row of the prompt goes there */
    int32_t *text;        /* (P) tokens of the training set, to begin with */
};

/* All methods; `n` is how many. */
const efficient_kind *efficient_kinds(int *n);

/* The functions of a tuning_method whose state is an efficient with `set` filled in. */
int efficient_check(tuning *t);
int efficient_setup(tuning *t);
int efficient_save(tuning *t, const char *path); /* peft.c */
void efficient_free(efficient *e);

/* ---- between the files ---- */

static inline efficient *efficient_of(const tuning *t) { return (efficient *)t->method.state; }
static inline ml_tensor **efficient_at(const tuning *t, int layer, int place) {
    return efficient_of(t)->at + ((size_t)layer * ML_PLACES + (size_t)place) * EFFICIENT_PARTS;
}
/* What the options say, or the default. */
static inline int efficient_rank(const efficient *e) { return e->set.rank ? e->set.rank : 8; }
static inline int efficient_length(const efficient *e) { return e->set.length ? e->set.length : 8; }
static inline float efficient_alpha(const efficient *e) {
    return e->set.alpha > 0 ? e->set.alpha : 2 * (float)efficient_rank(e);
}
/* A new parameter `part` at a place of a layer, named LAYER.PLACE.NAME; sd as in tuning_parameter. */
typedef struct efficient_part {
    int layer, place, part;
    const char *name;
    float sd;
} efficient_part;
ml_tensor *efficient_add(tuning *t, const efficient_part *part, size_t rows, size_t cols);
/* The place behind bit `target` (0 to 6) of the targets, and its matrix. */
int efficient_place(int target);
ml_tensor efficient_matrix(const tuning *t, int layer, int target);

/* low_rank.c */
int lora_setup(tuning *t);
int dora_setup(tuning *t);
void dora_begin(tuning *t, ml_graph *g, ml_llama_desc *llama);
ml_tensor dora_insert(ml_graph *g, const ml_insertion *at, void *user);
/* inserts.c */
int adapter_setup(tuning *t);
int parallel_setup(tuning *t);
int ia3_setup(tuning *t);
ml_tensor adapter_insert(ml_graph *g, const ml_insertion *at, void *user);
ml_tensor parallel_insert(ml_graph *g, const ml_insertion *at, void *user);
ml_tensor ia3_insert(ml_graph *g, const ml_insertion *at, void *user);
/* prompts.c */
int prompt_setup(tuning *t);
int prefix_setup(tuning *t);
int prefix_mlp_setup(tuning *t);
ml_tensor prompt_insert(ml_graph *g, const ml_insertion *at, void *user);
void prefix_begin(tuning *t, ml_graph *g, ml_llama_desc *llama);
void prefix_mlp_begin(tuning *t, ml_graph *g, ml_llama_desc *llama);
/* peft.c */
int efficient_load(tuning *t);

#endif
