/* LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"): W + s B A in place of W, with A (r,
   in) and B (out, r), by the library's own adapter. rsLoRA (Kalajdzievski 2023, "A Rank Stabilization Scaling Factor
   for Fine-Tuning with LoRA"): s = alpha / sqrt(r) in place of alpha / r. LoRA+ (Hayou et al. 2024, "LoRA+: Efficient
   Low Rank Adaptation of Large Models"): B learns 16 times as fast as A. DoRA (Liu et al. 2024, "DoRA:
   Weight-Decomposed Low-Rank Adaptation"): row by row, m (W + s B A) / ||W + s B A||, the norm a constant in the
   backward pass. */
#include <math.h>
#include "methods.h"
#include "../../common/report.h"

static const char *const half_names[2] = {"lora_A", "lora_B"};

/* B's group, where it has a rate of its own. */
static int group_of_b(tuning *t) {
    const efficient *e = efficient_of(t);
    float ratio = e->set.ratio > 0 ? e->set.ratio : 16;
    return tuning_group(t, t->set.lr * ratio, t->set.weight_decay);
}

/* A is uniform in +-1 / sqrt(in), as in PEFT, and B is 0: the gradient of A is 0 until B has moved. */
int lora_setup(tuning *t) {
    efficient *e = efficient_of(t);
    ml_lora_create_desc desc = {0};
    ml_error error;
    int is_plus = strcmp(e->kind->name, "loraplus") == 0, group = t->group;
    desc.rank = efficient_rank(e);
    desc.alpha = efficient_alpha(e);
    if (strcmp(e->kind->name, "rslora") == 0) desc.alpha *= sqrtf((float)desc.rank);
    desc.targets = e->targets;
    desc.random = &t->random;
    const char *path = e->set.load;
    ml_result result = path ? ml_lora_load(path, t->model, NULL, &e->lora, &error)
                            : ml_lora_create(t->model, &desc, &e->lora, &error);
    if (result == ML_ERROR_MISMATCH && path && (t->set.mask || t->set.norm || t->set.mode))
        return complain(
            "%s: not for this model and --norm %s, --mask %s: without these flags it is as the file says",
            path, t->model->config.norm == ML_NORM_LAYER ? "layer" : "rms",
            t->model->config.mask == ML_MASK_FULL ? "full" : "causal");
    if (!(path ? loaded(path, result, &error) : succeeded(result, &error))) return 0;
    e->lora_weights = (ml_tensor *)malloc((size_t)e->lora->n_tensors * sizeof *e->lora_weights);
    if (!e->lora_weights) return no_memory("an adapter");
    memcpy(e->lora_weights, e->lora->tensors, (size_t)e->lora->n_tensors * sizeof *e->lora_weights);
    int group_b = is_plus ? group_of_b(t) : group;
    if (group_b < 0) return 0;
    for (int i = 0; i < e->lora->n_tensors; i++) {
        ml_tensor *x = &e->lora_weights[i];
        char name[64];
        if (!x->data) continue;
        if (i % 2 == 0 && !path) tuning_set_uniform(t, x, 1 / sqrtf((float)x->cols));
        snprintf(name, sizeof name, "%d.%d.%s", i / 14, i / 2 % 7, half_names[i % 2]);
        t->group = i % 2 ? group_b : group;
        if (!tuning_adopt(t, name, x)) return 0;
    }
    t->llama.lora = e->lora;
    t->llama.lora_weights = e->lora_weights;
    return 1;
}

/* ---- DoRA ---- */

enum { DORA_A, DORA_B, DORA_M };

static float dora_scale(const efficient *e) { return efficient_alpha(e) / (float)efficient_rank(e); }

/* 1 / ||row i of W + s B A|| for each of the `out` rows, or 0 for a row of zeros. `sum` (in) is scratch. */
static void inverse_norms(const tuning *t, int layer, int target, float *sum) {
    const efficient *e = efficient_of(t);
    int place = efficient_place(target);
    ml_tensor **at = efficient_at(t, layer, place), w = efficient_matrix(t, layer, target);
    const float *a = (const float *)at[DORA_A]->data, *b = (const float *)at[DORA_B]->data;
    float *to = (float *)e->norms[layer * ML_PLACES + place].data, scale = dora_scale(e);
    size_t rank = at[DORA_A]->rows;
    for (size_t i = 0; i < w.rows; i++) {
        double square = 0;
        memcpy(sum, (const float *)w.data + i * w.cols, w.cols * sizeof *sum);
        for (size_t k = 0; k < rank; k++)
            for (size_t j = 0; j < w.cols; j++) sum[j] += scale * b[i * rank + k] * a[k * w.cols + j];
        for (size_t j = 0; j < w.cols; j++) square += (double)sum[j] * (double)sum[j];
        to[i] = square > 0 ? (float)(1 / sqrt(square)) : 0;
    }
}

static int dora_add(tuning *t, int layer, int target) {
    efficient *e = efficient_of(t);
    int place = efficient_place(target);
    ml_tensor w = efficient_matrix(t, layer, target), *norm = &e->norms[layer * ML_PLACES + place];
    size_t rank = (size_t)efficient_rank(e);
    efficient_part part = {layer, place, DORA_A, "lora_A", 0};
    ml_tensor *a = efficient_add(t, &part, rank, w.cols);
    part.part = DORA_B, part.name = "lora_B";
    ml_tensor *b = a ? efficient_add(t, &part, w.rows, rank) : NULL;
    part.part = DORA_M, part.name = "lora_magnitude_vector";
    ml_tensor *m = b ? efficient_add(t, &part, 1, w.rows) : NULL;
    if (!m) return 0;
    tuning_set_uniform(t, a, 1 / sqrtf((float)w.cols));
    norm->type = ML_F32;
    norm->rows = 1;
    norm->cols = w.rows;
    norm->data = malloc(w.rows * sizeof(float));
    float *sum = (float *)malloc(w.cols * sizeof *sum);
    if (!norm->data || !sum) return free(sum), no_memory("DoRA's norms");
    inverse_norms(t, layer, target, sum);
    for (size_t i = 0; i < w.rows; i++) {
        float inverse = ((const float *)norm->data)[i];
        ((float *)m->data)[i] = inverse > 0 ? 1 / inverse : 0;
    }
    free(sum);
    return 1;
}

int dora_setup(tuning *t) {
    efficient *e = efficient_of(t);
    int n_layers = t->model->config.n_layers;
    e->n_norms = n_layers * ML_PLACES;
    e->norms = (ml_tensor *)calloc((size_t)e->n_norms, sizeof *e->norms);
    if (!e->norms) return no_memory("DoRA's norms");
    for (int layer = 0; layer < n_layers; layer++)
        for (int target = 0; target < 7; target++)
            if (e->targets >> target & 1 && !dora_add(t, layer, target)) return 0;
    return 1;
}

/* The norms for the weights as they are now. */
void dora_begin(tuning *t, ml_graph *g, ml_llama_desc *llama) {
    const ml_config *c = &t->model->config;
    size_t most = (size_t)(c->dim > c->hidden_dim ? c->dim : c->hidden_dim);
    (void)llama;
    if (g->measuring || g->result) return;
    float *sum = (float *)malloc(most * sizeof *sum);
    for (int i = 0; sum && i < c->n_layers * 7; i++)
        if (efficient_of(t)->targets >> (i % 7) & 1) inverse_norms(t, i / 7, i % 7, sum);
    free(sum);
}

/* (y + s x A^T B^T) m / norm */
ml_tensor dora_insert(ml_graph *g, const ml_insertion *at, void *user) {
    const tuning *t = (const tuning *)user;
    const efficient *e = efficient_of(t);
    ml_tensor **w = efficient_at(t, at->layer, (int)at->place);
    ml_tensor low = ml_linear(g, at->x, *w[DORA_A], ml_none());
    ml_tensor change = ml_scale(g, ml_linear(g, low, *w[DORA_B], ml_none()), dora_scale(e));
    ml_tensor factor = ml_mul(g, *w[DORA_M], e->norms[at->layer * ML_PLACES + (int)at->place]);
    return ml_mul(g, ml_add(g, at->y, change), factor);
}
