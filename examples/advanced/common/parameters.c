/* The tensors that learn, by name and in groups of one learning rate. */
#include "tuning.h"
#include "../../common/report.h"
#include "../../common/memory.h"

static tuning_weight *add(tuning *t, const char *name, ml_tensor *tensor) {
    tuning_weight **room = (tuning_weight **)grow(t->parameters, (size_t)t->n_parameters + 1,
                                                  &t->parameters_capacity, sizeof *room);
    if (room) t->parameters = room;
    tuning_weight *w = room ? (tuning_weight *)calloc(1, sizeof *w) : NULL;
    if (!w) return no_memory(name), NULL;
    snprintf(w->name, sizeof w->name, "%s", name);
    w->tensor = tensor ? tensor : &w->own;
    w->group = t->group;
    return room[t->n_parameters++] = w;
}

int tuning_adopt(tuning *t, const char *name, ml_tensor *tensor) { return add(t, name, tensor) != NULL; }

ml_tensor *tuning_parameter(tuning *t, const char *name, size_t rows, size_t cols, float sd) {
    tuning_weight *w = add(t, name, NULL);
    if (w && rows == 1 && w->group == TUNING_WEIGHTS) w->group = TUNING_NO_DECAY;
    float *data = w ? (float *)calloc(rows * cols, sizeof *data) : NULL;
    if (!data) return no_memory(name), NULL;
    for (size_t i = 0; sd > 0 && i < rows * cols; i++) data[i] = sd * ml_random_normal(&t->random);
    w->own.type = ML_F32;
    w->own.rows = rows;
    w->own.cols = cols;
    w->own.data = data;
    return &w->own;
}

void tuning_set(ml_tensor *x, float number) {
    for (size_t i = 0; i < x->rows * x->cols; i++) ((float *)x->data)[i] = number;
}

void tuning_set_uniform(tuning *t, ml_tensor *x, float limit) {
    for (size_t i = 0; i < x->rows * x->cols; i++)
        ((float *)x->data)[i] = limit * (2 * ml_random_uniform(&t->random) - 1);
}

int tuning_find_weight(const tuning *t, int layer, const char *name) {
    char wanted[ML_NAME_SIZE], at[ML_NAME_SIZE];
    if (layer < 0)
        snprintf(wanted, sizeof wanted, "%s", name);
    else
        snprintf(wanted, sizeof wanted, "blk.%d.%s", layer, name);
    for (int i = 0; i < t->model->n_tensors; i++)
        if (t->model->tensors[i].data && !ml_model_tensor_name(t->model, i, at) && strcmp(at, wanted) == 0)
            return i;
    return -1;
}

int tuning_train_weight(tuning *t, int index) {
    char name[ML_NAME_SIZE];
    if (ml_model_tensor_name(t->model, index, name)) return complain("the model has no tensor %d", index);
    return tuning_adopt(t, name, &t->weights[index]);
}

/* Everything in a layer from `first` on, and what is above all layers; below all layers is the embedding. The layer
   that makes logits computes no classes. */
static int is_trained(const char *name, int first) {
    if (strncmp(name, "blk.", 4) == 0) return atoi(name + 4) >= first;
    return strncmp(name, "token_embd.", 11) == 0 ? first == 0 : strncmp(name, "output_norm.", 12) == 0;
}

int tuning_train_model(tuning *t, int first) {
    char name[ML_NAME_SIZE];
    int group = t->group, ok = 1;
    for (int i = 0; ok && i < t->model->n_tensors; i++) {
        const ml_tensor *w = &t->weights[i];
        if (!w->data || ml_model_tensor_name(t->model, i, name) || !is_trained(name, first)) continue;
        if (group == TUNING_WEIGHTS && w->rows == 1) t->group = TUNING_NO_DECAY;
        ok = tuning_train_weight(t, i);
        t->group = group;
    }
    return ok;
}

/* Which layer a weight is in: -1 is below all layers, n_layers above them. */
static int layer_of(const char *name, int n_layers) {
    if (strncmp(name, "blk.", 4) == 0) return atoi(name + 4);
    return strncmp(name, "token_embd.", 11) == 0 ? -1 : n_layers;
}

int tuning_train_layers(tuning *t, float decay) {
    char name[ML_NAME_SIZE];
    int n_layers = t->model->config.n_layers;
    float lr = t->set.lr;
    if (decay == 1) return tuning_train_model(t, 0);
    for (int layer = n_layers; layer >= -1; layer--, lr *= decay) {
        int matrices = tuning_group(t, lr, t->set.weight_decay), norms = tuning_group(t, lr, 0);
        if (matrices < 0 || norms < 0) return 0;
        for (int i = 0; i < t->model->n_tensors; i++) {
            const ml_tensor *w = &t->weights[i];
            if (!w->data || ml_model_tensor_name(t->model, i, name) || !is_trained(name, 0)) continue;
            t->group = w->rows == 1 ? norms : matrices;
            if (layer_of(name, n_layers) == layer && !tuning_train_weight(t, i)) return 0;
        }
    }
    return 1;
}

tuning_weight *tuning_find(const tuning *t, const char *name) {
    for (int i = 0; i < t->n_parameters; i++)
        if (strcmp(t->parameters[i]->name, name) == 0) return t->parameters[i];
    return NULL;
}

int tuning_group(tuning *t, float lr, float weight_decay) {
    if (t->n_groups == TUNING_MAX_GROUPS)
        return complain("more than %d groups of parameters", TUNING_MAX_GROUPS), -1;
    ml_group group = {lr > 0 ? lr : t->set.lr, weight_decay, 0};
    t->groups[t->n_groups] = group;
    return t->group = t->n_groups++;
}

static size_t numbers(const ml_tensor *x) { return x->rows * x->cols; }

int64_t tuning_count(const tuning *t) {
    size_t n = 0;
    for (int i = 0; i < t->n_parameters; i++) n += numbers(t->parameters[i]->tensor);
    return (int64_t)n;
}

void tuning_copy(const tuning *t, float *to) {
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        memcpy(to, x->data, numbers(x) * sizeof *to);
        to += numbers(x);
    }
}

void tuning_paste(tuning *t, const float *from) {
    for (int i = 0; i < t->n_parameters; i++) {
        ml_tensor *x = t->parameters[i]->tensor;
        memcpy(x->data, from, numbers(x) * sizeof *from);
        from += numbers(x);
    }
}

void tuning_free_parameters(tuning *t) {
    for (int i = 0; i < t->n_parameters; i++) {
        free(t->parameters[i]->own.data);
        free(t->parameters[i]);
    }
    free(t->parameters);
}
