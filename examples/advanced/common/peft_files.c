/* Writing and reading what peft.c lists. */
#include "methods.h"
#include "peft.h"
#include "../../common/file.h"

/* ---- saving ---- */

/* A tensor with its shape in the file, and its numbers in Hugging Face's order: in `room` where that is another. */
static ml_named_tensor named(const tuning *t, const peft_tensor *from, float *room) {
    ml_named_tensor to = {from->name, from->x, from->n_dims == 1};
    to.tensor.rows = from->n_dims == 1 ? 1 : (size_t)from->shape[0];
    to.tensor.cols = (size_t)from->shape[from->n_dims == 1 ? 0 : 1];
    to.tensor.grad = NULL;
    if (!from->is_by_heads) return to;
    peft_permute(&t->model->config, from, room, 0);
    to.tensor.data = room;
    return to;
}

static size_t numbers(const peft_tensor *x) { return x->x.rows * x->x.cols; }

/* The tensors, and the configuration beside them. */
static int write_files(const tuning *t, const peft_list *list, const char *path) {
    ml_archive_save_desc desc = {0};
    char config[PEFT_CONFIG_SIZE];
    ml_error error;
    size_t n = 1;
    for (int i = 0; i < list->n; i++) n += numbers(&list->tensors[i]);
    ml_named_tensor *tensors = (ml_named_tensor *)malloc((size_t)list->n * sizeof *tensors);
    float *room = (float *)malloc(n * sizeof *room), *at = room;
    for (int i = 0; i < list->n && tensors && room; at += numbers(&list->tensors[i++]))
        tensors[i] = named(t, &list->tensors[i], at);
    peft_config(t, config);
    desc.format = ML_SAFETENSORS;
    desc.tensors = tensors;
    desc.n_tensors = list->n;
    desc.text_name = "adapter_config.json";
    desc.text = config;
    int ok = tensors && room ? loaded(path, ml_archive_save(path, &desc, &error), &error) : no_memory(path);
    free(tensors);
    free(room);
    return ok;
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
    peft_list list = {0};
    if (!tuning_can_save(t)) return 0;
    if (e->lora) return save_lora(t, path);
    int ok = peft_list_tensors(t, &list) && (!peft_is_prefix(e) || compute_prefix(t, &list)) &&
             write_files(t, &list, path);
    peft_list_free(&list);
    return ok;
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

/* Whether the method has a place for all that the file holds: what is left out would be lost in silence. */
static int uses_all(const tuning *t, const ml_archive *archive, const peft_list *list) {
    const efficient *e = efficient_of(t);
    for (size_t i = 0; i < archive->n_arrays; i++) {
        int k = 0;
        while (k < list->n && strcmp(list->tensors[k].name, archive->arrays[i].name) != 0) k++;
        if (k == list->n)
            return complain("%s: it has %s, too, which --method %s%s has no place for", e->set.load,
                            archive->arrays[i].name, e->kind->name,
                            e->kind->uses & USES_TARGETS ? " with these --targets" : "");
    }
    return 1;
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
    const char *pooling = head->pooling == ML_POOL_MEAN ? "mean" : "last";
    if (ok && strcmp(t->set.pooling, pooling) != 0)
        ok = complain("%s: its classifier has --pooling %s, not %s", path, pooling, t->set.pooling);
    if (ok) memcpy(p->head->data, head->weight.data, p->head->rows * p->head->cols * sizeof(float));
    if (ok) memcpy(p->head_bias->data, head->bias.data, p->head_bias->cols * sizeof(float));
    ml_head_free(head);
    return ok;
}

/* What follows a key of a JSON text; "" if it has none. The keys in question occur once. */
static const char *value_of(const char *json, const char *key) {
    const char *at = strstr(json, key);
    if (!at) return "";
    at += strlen(key);
    return at + strspn(at, " \t\n:");
}

/* DoRA here has one rank, and one scale alpha / r. */
static int check_scales(const char *path, const char *json) {
    static const char *const keys[] = {"\"use_rslora\"", "\"rank_pattern\"", "\"alpha_pattern\""};
    for (int i = 0; i < 3; i++) {
        const char *value = value_of(json, keys[i]);
        int is_on = i ? *value == '{' && value[1 + strspn(value + 1, " \t\r\n")] != '}' : *value == 't';
        if (is_on) return complain("%s: %s is not known to --method dora", path, keys[i]);
    }
    return 1;
}

/* Whether adapter_config.json says what the options say. Without that file nothing is known. */
static int check_config(const tuning *t) {
    const efficient *e = efficient_of(t);
    char path[4096], wanted[64];
    system_file about;
    if (!config_beside(e->set.load, 1, path) || !system_look(path, &about)) return 1;
    char *json = text_file_read(path, NULL);
    if (!json) return 0;
    const char *type = value_of(json, "\"peft_type\""), *alpha = value_of(json, "\"lora_alpha\"");
    snprintf(wanted, sizeof wanted, "\"%s\"", e->kind->peft);
    int ok = strncmp(type, wanted, strlen(wanted)) == 0 ||
             complain("%s: it is %.*s, not %s (--method %s)", path, (int)strcspn(type, ",\n}"), type, wanted,
                      e->kind->name);
    if (ok && e->kind->setup == dora_setup && strtof(alpha, NULL) != efficient_alpha(e))
        ok = complain("%s: its alpha is %.*s, not %g (--alpha)", path, (int)strcspn(alpha, ",\n}"), alpha,
                      (double)efficient_alpha(e));
    if (ok && e->kind->setup == dora_setup) ok = check_scales(path, json);
    free(json);
    return ok;
}

int efficient_load(tuning *t) {
    const char *path = efficient_of(t)->set.load;
    ml_archive *archive = NULL;
    peft_list list = {0};
    ml_error error;
    if (efficient_of(t)->lora) return load_head(t, path);
    if (!loaded(path, ml_archive_load(path, NULL, &archive, &error), &error)) return 0;
    int ok = check_config(t) && peft_list_tensors(t, &list);
    for (int i = 0; i < list.n && ok; i++) ok = read_tensor(t, archive, &list.tensors[i]);
    ok = ok && uses_all(t, archive, &list);
    if (ok && peft_is_prefix(efficient_of(t))) ok = place_prefix(t, &list);
    peft_list_free(&list);
    ml_archive_free(archive);
    return ok;
}
