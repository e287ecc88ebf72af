/* What efficient tuning learned, in the files of Hugging Face's PEFT: adapter_model.safetensors with PEFT's names and
   shapes, and adapter_config.json beside it; the classifier is its "score".

   Hugging Face's Llama keeps the two numbers of a rotated pair half a head apart, where this library has neighbors:
   what has the rows of Wq or Wk is permuted. A prefix takes no position here, and is what PEFT puts into the cache,
   after which the first token has position P: keys rotated by P positions give the same scores. */
#include <math.h>
#include "methods.h"
#include "peft.h"
#include "../../common/file.h"

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
static void permute(const ml_config *c, const peft_tensor *from, float *to, int is_back) {
    size_t hd = (size_t)(c->dim / c->n_heads), cols = from->n_dims == 2 ? (size_t)from->shape[1] : 1;
    size_t rows = (size_t)from->shape[0];
    const float *x = (const float *)from->x.data;
    for (size_t i = 0; i < rows; i++) {
        size_t in_head = i % hd, at = i - in_head + in_head % 2 * (hd / 2) + in_head / 2;
        memcpy(to + (is_back ? i : at) * cols, x + (is_back ? at : i) * cols, cols * sizeof *to);
    }
}

/* Keys of a prefix (P, 2 L kv_dim), keys and values in turn: rotated by `positions`, and each head in the other order.
   To Hugging Face's with positions > 0, back with positions < 0. */
static void turn_keys(const ml_config *c, ml_tensor *x, double positions) {
    size_t hd = (size_t)(c->dim / c->n_heads), kv_dim = hd * (size_t)c->n_kv_heads;
    float head[1024];
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
static ml_tensor whole_prefix(tuning *t, ml_graph *g, const tuning_batch *batch) {
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
    if (c->n_layers > PEFT_MAX_LAYERS || c->dim / c->n_heads > 1024)
        return complain("a prefix of more than %d layers", PEFT_MAX_LAYERS);
    x->type = ML_F32;
    x->rows = (size_t)(e->set.length ? e->set.length : 8);
    x->cols = 2 * (size_t)c->n_layers * (size_t)(c->dim / c->n_heads * c->n_kv_heads);
    x->data = calloc(x->rows * x->cols, sizeof(float));
    return x->data || no_memory("a prefix");
}

static int is_prefix(const efficient *e) { return strcmp(e->kind->peft, "PREFIX_TUNING") == 0; }

/* What the method has, and the classifier. A prefix is in memory that the list owns. */
static int list_tensors(tuning *t, peft_list *list) {
    efficient *e = efficient_of(t);
    int ok = 1;
    if (e->kind->setup == dora_setup) ok = add_dora(t, list);
    if (e->kind->setup == ia3_setup) ok = add_ia3(t, list);
    if (e->kind->setup == prompt_setup) ok = add(list, "prompt_embeddings", *e->prompt) != NULL;
    if (is_prefix(e)) ok = new_prefix(t, &list->prefix) && add(list, "prompt_embeddings", list->prefix);
    return ok && add_head(t, list);
}

static void list_free(peft_list *list) {
    free(list->prefix.data);
    free(list->tensors);
}

/* ---- saving ---- */

/* Numbers as Hugging Face orders them. */
static int write_tensors(const tuning *t, const peft_list *list, FILE *file) {
    for (int i = 0; i < list->n; i++) {
        const peft_tensor *from = &list->tensors[i];
        size_t n = from->x.rows * from->x.cols;
        float *to = (float *)malloc(n * sizeof *to);
        if (!to) return no_memory("a tensor");
        if (from->is_by_heads)
            permute(&t->model->config, from, to, 0);
        else
            memcpy(to, from->x.data, n * sizeof *to);
        fwrite(to, sizeof *to, n, file); /* little-endian, as the machine is */
        free(to);
    }
    return 1;
}

/* safetensors: the length of a JSON text, that text, and all numbers. */
static int write_file(const tuning *t, const peft_list *list, const char *path) {
    buffer json = {0};
    whole_file file;
    char part[320];
    unsigned long long at = 0;
    for (int i = 0; i < list->n; i++) {
        const peft_tensor *x = &list->tensors[i];
        unsigned long long end = at + x->x.rows * x->x.cols * sizeof(float);
        int n = snprintf(part, sizeof part, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%lld", i ? "," : "{",
                         x->name, (long long)x->shape[0]);
        if (x->n_dims == 2) n += snprintf(part + n, sizeof part - (size_t)n, ",%lld", (long long)x->shape[1]);
        n += snprintf(part + n, sizeof part - (size_t)n, "],\"data_offsets\":[%llu,%llu]}%s", at, end,
                      i + 1 == list->n ? "}" : "");
        if (!buffer_append(&json, part, (size_t)n)) return buffer_free(&json), no_memory(path);
        at = end;
    }
    while (json.length % 8)
        if (!buffer_append(&json, " ", 1)) return buffer_free(&json), no_memory(path);
    if (!whole_file_begin(&file, path)) return buffer_free(&json), 0;
    for (int i = 0; i < 8; i++) fputc((int)(json.length >> (8 * i) & 255), file.to);
    fwrite(json.bytes, 1, json.length, file.to);
    buffer_free(&json);
    int ok = write_tensors(t, list, file.to);
    return whole_file_end(&file) && ok;
}

/* The library writes its own adapters. */
static int save_lora(tuning *t, const char *path) {
    ml_head *head = tuning_head_object(t);
    ml_save_desc desc = {ML_SAFETENSORS, ML_TYPE_NONE, NULL, head};
    ml_error error;
    int ok = head && loaded(path, ml_lora_save(efficient_of(t)->lora, t->model, path, &desc, &error), &error);
    ml_head_free(head);
    return ok;
}

/* Fills in list->prefix, as Hugging Face has it. */
static int compute_prefix(tuning *t, peft_list *list) {
    tuning_batch none = {0};
    if (!tuning_compute(t, &none, whole_prefix, (float *)list->prefix.data)) return 0;
    turn_keys(&t->model->config, &list->prefix, (double)list->prefix.rows);
    return 1;
}

int efficient_save(tuning *t, const char *path) {
    const efficient *e = efficient_of(t);
    char beside[4096];
    peft_list list = {0};
    whole_file config;
    if (!e->kind->peft) return tuning_save(t, path);
    if (t->set.head_hidden || (strcmp(t->set.pooling, "last") != 0))
        return complain("--save: PEFT has no file for --pooling %s%s", t->set.pooling,
                        t->set.head_hidden ? " and --head_hidden" : "");
    if (e->lora) return save_lora(t, path);
    int ok =
        list_tensors(t, &list) && (!is_prefix(e) || compute_prefix(t, &list)) && write_file(t, &list, path);
    list_free(&list);
    if (!ok || !config_beside(path, 1, beside) || !whole_file_begin(&config, beside)) return 0;
    peft_put_config(t, config.to);
    return whole_file_end(&config);
}

/* ---- loading ---- */

static int read_tensor(const tuning *t, const ml_archive *archive, const peft_tensor *to) {
    const char *path = efficient_of(t)->set.load;
    const ml_array *array = ml_archive_find_array(archive, to->name);
    size_t n = to->x.rows * to->x.cols;
    if (!array) return complain("%s: it has no %s", path, to->name);
    int fits = array->n_dims == to->n_dims;
    for (int i = 0; i < to->n_dims && fits; i++) fits = array->shape[i] == to->shape[i];
    if (!fits)
        return complain("%s: %s is (%lld%s%.0lld), not (%lld%s%.0lld)", path, to->name,
                        (long long)array->shape[0], array->n_dims > 1 ? ", " : "",
                        (long long)(array->n_dims > 1 ? array->shape[1] : 0), (long long)to->shape[0],
                        to->n_dims > 1 ? ", " : "", (long long)(to->n_dims > 1 ? to->shape[1] : 0));
    float *data = (float *)malloc(n * sizeof *data);
    if (!data) return no_memory(to->name);
    int ok =
        ml_array_read_floats(array, data, n) == ML_OK || complain("%s: %s cannot be read", path, to->name);
    peft_tensor from = *to;
    from.x.data = data;
    if (ok && to->is_by_heads)
        permute(&t->model->config, &from, (float *)to->x.data, 1);
    else if (ok)
        memcpy(to->x.data, data, n * sizeof *data);
    free(data);
    return ok;
}

/* A prefix into the keys and values of each layer. */
static int place_prefix(tuning *t, peft_list *list) {
    turn_keys(&t->model->config, &list->prefix, -(double)list->prefix.rows);
    for (int i = 0; i < 2 * t->model->config.n_layers; i++) {
        ml_tensor *to = efficient_at(t, i / 2, i % 2 ? ML_PLACE_V : ML_PLACE_K)[0];
        for (size_t r = 0; r < to->rows; r++)
            memcpy((float *)to->data + r * to->cols,
                   (const float *)list->prefix.data + r * list->prefix.cols + (size_t)i * to->cols,
                   to->cols * sizeof(float));
    }
    return 1;
}

/* The classifier that the library saved with its adapter; the adapter was loaded by lora_setup. */
static int load_head(tuning *t, const char *path) {
    const tuning_private *p = t->private_part;
    ml_head *head = NULL;
    ml_error error;
    if (!loaded(path, ml_head_load(path, t->model, NULL, &head, &error), &error)) return 0;
    int ok = (head->n_classes == t->labels.n && head->bias.data && head->weight.cols == p->head->cols) ||
             complain("%s: its classifier has %d classes, not %d", path, head->n_classes, t->labels.n);
    if (ok) memcpy(p->head->data, head->weight.data, p->head->rows * p->head->cols * sizeof(float));
    if (ok) memcpy(p->head_bias->data, head->bias.data, p->head_bias->cols * sizeof(float));
    ml_head_free(head);
    return ok;
}

int efficient_load(tuning *t) {
    const char *path = efficient_of(t)->set.load;
    ml_archive *archive = NULL;
    peft_list list = {0};
    ml_error error;
    if (efficient_of(t)->lora) return load_head(t, path);
    if (!loaded(path, ml_archive_load(path, NULL, &archive, &error), &error)) return 0;
    int ok = list_tensors(t, &list);
    for (int i = 0; i < list.n && ok; i++) ok = read_tensor(t, archive, &list.tensors[i]);
    if (ok && is_prefix(efficient_of(t))) ok = place_prefix(t, &list);
    list_free(&list);
    ml_archive_free(archive);
    return ok;
}
