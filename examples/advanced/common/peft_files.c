/* Writing and reading what peft.c lists. */
#include "methods.h"
#include "peft.h"
#include "../../common/file.h"

/* ---- saving ---- */

/* Numbers as Hugging Face orders them. */
static int write_tensors(const tuning *t, const peft_list *list, FILE *file) {
    for (int i = 0; i < list->n; i++) {
        const peft_tensor *from = &list->tensors[i];
        size_t n = from->x.rows * from->x.cols;
        float *to = (float *)malloc(n * sizeof *to);
        if (!to) return no_memory("a tensor");
        if (from->is_by_heads)
            peft_permute(&t->model->config, from, to, 0);
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
    if (!tuning_compute(t, &none, peft_prefix, (float *)list->prefix.data)) return 0;
    peft_turn_keys(&t->model->config, &list->prefix, (double)list->prefix.rows);
    return 1;
}

int efficient_save(tuning *t, const char *path) {
    const efficient *e = efficient_of(t);
    char beside[4096];
    peft_list list = {0};
    whole_file config;
    if (!e->kind->peft) return tuning_save(t, path);
    if (!tuning_can_save(t)) return 0;
    if (e->lora) return save_lora(t, path);
    int ok = peft_list_tensors(t, &list) && (!peft_is_prefix(e) || compute_prefix(t, &list)) &&
             write_file(t, &list, path);
    peft_list_free(&list);
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
        peft_permute(&t->model->config, &from, (float *)to->x.data, 1);
    else if (ok)
        memcpy(to->x.data, data, n * sizeof *data);
    free(data);
    return ok;
}

/* A prefix into the keys and values of each layer. */
static int place_prefix(tuning *t, peft_list *list) {
    peft_turn_keys(&t->model->config, &list->prefix, -(double)list->prefix.rows);
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
    int ok = peft_list_tensors(t, &list);
    for (int i = 0; i < list.n && ok; i++) ok = read_tensor(t, archive, &list.tensors[i]);
    if (ok && peft_is_prefix(efficient_of(t))) ok = place_prefix(t, &list);
    peft_list_free(&list);
    ml_archive_free(archive);
    return ok;
}
