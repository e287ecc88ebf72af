/* What efficient tuning learned, in the files of Hugging Face's PEFT: adapter_model.safetensors with PEFT's names and
   shapes, and adapter_config.json beside it; the classifier is its "score".

   Hugging Face's Llama keeps the two numbers of a rotated pair half a head apart, where this library has neighbors:
   what has the rows of Wq or Wk is permuted. A prefix takes no position here, and is what PEFT puts into the cache,
   after which the first token has position P: keys rotated by P positions give the same scores. */
#include <math.h>
#include "methods.h"
#include "peft.h"
#include "../../common/memory.h"
#include "../../common/report.h"

/* ---- the tensors of a file ---- */

static peft_tensor *add(peft_list *list, const char *name, ml_tensor x) {
    peft_tensor *room =
        (peft_tensor *)grow(list->tensors, (size_t)list->n + 1, &list->capacity, sizeof *room);
    if (!room) return no_memory(name), (peft_tensor *)NULL;
    list->tensors = room;
    peft_tensor *to = &room[list->n++];
    memset(to, 0, sizeof *to);
    snprintf(to->name, sizeof to->name, "%s", name);
    to->x = x;
    to->n_dims = 2;
    to->shape[0] = (int64_t)x.rows;
    to->shape[1] = (int64_t)x.cols;
    return to;
}

/* One dimension, or a column. */
static void set_shape(peft_tensor *to, int n_dims, size_t rows, size_t cols) {
    to->n_dims = n_dims;
    to->shape[0] = (int64_t)rows;
    to->shape[1] = (int64_t)cols;
}

static int add_dora(tuning *t, peft_list *list) {
    static const char *const modules[7] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                           "self_attn.o_proj", "mlp.gate_proj",    "mlp.down_proj",
                                           "mlp.up_proj"};
    static const char *const parts[3] = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"};
    for (int i = 0; i < t->model->config.n_layers * 7; i++) {
        ml_tensor **at = efficient_at(t, i / 7, efficient_place(i % 7));
        for (int part = 0; part < 3 && at[0]; part++) {
            char name[128];
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.%s", i / 7, modules[i % 7],
                     parts[part]);
            peft_tensor *to = add(list, name, *at[part]);
            if (!to) return 0;
            to->is_by_heads = part > 0 && i % 7 < 2; /* q and k */
            if (part == 2) set_shape(to, 1, at[part]->cols, 1);
        }
    }
    return 1;
}

/* A scale of an output is a column, one of an input a row. */
static int add_ia3(tuning *t, peft_list *list) {
    static const char *const modules[3] = {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"};
    static const int places[3] = {ML_PLACE_K, ML_PLACE_V, ML_PLACE_HIDDEN};
    for (int i = 0; i < t->model->config.n_layers * 3; i++) {
        char name[128];
        snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.ia3_l", i / 3, modules[i % 3]);
        const ml_tensor *x = efficient_at(t, i / 3, places[i % 3])[0];
        peft_tensor *to = add(list, name, *x);
        if (!to) return 0;
        to->is_by_heads = i % 3 == 0;
        if (i % 3 < 2) set_shape(to, 2, x->cols, 1);
    }
    return 1;
}

/* Of prompts and prefixes the model is not wrapped, which leaves one "model." out of the names. */
static int add_head(tuning *t, peft_list *list) {
    const tuning_private *p = t->private_part;
    int is_prompt =
        strcmp(efficient_of(t)->kind->peft, "LORA") != 0 && strcmp(efficient_of(t)->kind->peft, "IA3") != 0;
    peft_tensor *weight =
        add(list, is_prompt ? "base_model.score.weight" : "base_model.model.score.weight", *p->head);
    peft_tensor *bias =
        weight ? add(list, is_prompt ? "base_model.score.bias" : "base_model.model.score.bias", *p->head_bias)
               : NULL;
    if (bias) set_shape(bias, 1, p->head_bias->cols, 1);
    return bias != NULL;
}

/* ---- order of rows ---- */

/* The rows of x (out, cols), or the numbers of a vector, from this library's order to Hugging Face's, or back. */
void peft_permute(const ml_config *c, const peft_tensor *from, float *to, int is_back) {
    size_t hd = (size_t)c->head_dim, cols = from->n_dims == 2 ? (size_t)from->shape[1] : 1;
    size_t rows = (size_t)from->shape[0];
    const float *x = (const float *)from->x.data;
    for (size_t i = 0; i < rows; i++) {
        size_t in_head = i % hd, at = i - in_head + in_head % 2 * (hd / 2) + in_head / 2;
        memcpy(to + (is_back ? i : at) * cols, x + (is_back ? at : i) * cols, cols * sizeof *to);
    }
}

/* Keys of a prefix (P, 2 L kv_dim), keys and values in turn: rotated by `positions`, and each head in the other
   order. To Hugging Face's with positions > 0, back with positions < 0. */
void peft_turn_keys(const ml_config *c, ml_tensor *x, double positions) {
    size_t hd = (size_t)c->head_dim, kv_dim = hd * (size_t)c->n_kv_heads;
    float head[PEFT_MAX_HEAD];
    for (size_t i = 0; i < x->rows * x->cols / hd; i++) {
        float *at = (float *)x->data + i * hd;
        if (i * hd / kv_dim % 2) continue; /* values */
        for (size_t j = 0; j < hd / 2; j++) {
            double angle =
                positions / (double)c->rope_scale / pow((double)c->rope_theta, 2.0 * (double)j / (double)hd);
            size_t first = positions > 0 ? 2 * j : j, second = positions > 0 ? 2 * j + 1 : j + hd / 2;
            double a = (double)at[first], b = (double)at[second];
            head[positions > 0 ? j : 2 * j] = (float)(a * cos(angle) - b * sin(angle));
            head[positions > 0 ? j + hd / 2 : 2 * j + 1] = (float)(a * sin(angle) + b * cos(angle));
        }
        memcpy(at, head, hd * sizeof *head);
    }
}

/* ---- prefixes ---- */

/* The prefix as a matrix (P, 2 L kv_dim) in the graph. */
ml_tensor peft_prefix(tuning *t, ml_graph *g, const tuning_batch *batch) {
    efficient *e = efficient_of(t);
    ml_tensor parts[2 * PEFT_MAX_LAYERS];
    ml_llama_desc unused = {0};
    (void)batch;
    e->kind->begin(t, g, &unused);
    int n = 2 * t->model->config.n_layers;
    for (int i = 0; i < n; i++) parts[i] = i % 2 ? e->values[i / 2] : e->keys[i / 2];
    return ml_concat(g, parts, n, ML_COLS);
}

/* Room for it. */
static int new_prefix(const tuning *t, ml_tensor *x) {
    const ml_config *c = &t->model->config;
    const efficient *e = efficient_of(t);
    if (c->n_layers > PEFT_MAX_LAYERS || c->head_dim > PEFT_MAX_HEAD)
        return complain("a prefix of more than %d layers, or heads of more than %d numbers", PEFT_MAX_LAYERS,
                        PEFT_MAX_HEAD);
    x->type = ML_F32;
    x->rows = (size_t)efficient_length(e);
    x->cols = 2 * (size_t)c->n_layers * (size_t)(c->head_dim * c->n_kv_heads);
    x->data = calloc(x->rows * x->cols, sizeof(float));
    return x->data || no_memory("a prefix");
}

int peft_is_prefix(const efficient *e) { return strcmp(e->kind->peft, "PREFIX_TUNING") == 0; }

/* What the method has, and the classifier. A prefix is in memory that the list owns. */
int peft_list_tensors(tuning *t, peft_list *list) {
    efficient *e = efficient_of(t);
    int ok = 1;
    if (e->kind->setup == dora_setup) ok = add_dora(t, list);
    if (e->kind->setup == ia3_setup) ok = add_ia3(t, list);
    if (e->kind->setup == prompt_setup) ok = add(list, "prompt_embeddings", *e->prompt) != NULL;
    if (peft_is_prefix(e)) ok = new_prefix(t, &list->prefix) && add(list, "prompt_embeddings", list->prefix);
    return ok && add_head(t, list);
}

void peft_list_free(peft_list *list) {
    free(list->prefix.data);
    free(list->tensors);
}
