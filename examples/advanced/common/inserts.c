/* Small networks and scales that are put into the frozen one, and what all of them share. */
#include <math.h>
#include "methods.h"
#include "../../common/report.h"

/* ---- places and parameters ---- */

static const char *const place_names[ML_PLACES] = {"embedding", "q",  "k",      "v",  "o",   "attention",
                                                   "w1",        "w3", "hidden", "w2", "ffn", "block"};

int efficient_place(int target) {
    static const ml_place places[7] = {ML_PLACE_Q,  ML_PLACE_K,  ML_PLACE_V, ML_PLACE_O,
                                       ML_PLACE_W1, ML_PLACE_W2, ML_PLACE_W3};
    return (int)places[target];
}

ml_tensor efficient_matrix(const tuning *t, int layer, int target) {
    static const char *const names[7] = {"attn_q.weight",      "attn_k.weight",   "attn_v.weight",
                                         "attn_output.weight", "ffn_gate.weight", "ffn_down.weight",
                                         "ffn_up.weight"};
    return t->weights[tuning_find_weight(t, layer, names[target])];
}

ml_tensor *efficient_add(tuning *t, const efficient_part *part, size_t rows, size_t cols) {
    char name[96];
    snprintf(name, sizeof name, "%d.%s.%s", part->layer, place_names[part->place], part->name);
    ml_tensor *x = tuning_parameter(t, name, rows, cols, part->sd);
    return efficient_at(t, part->layer, part->place)[part->part] = x;
}

/* ---- bottleneck adapters: up(relu(down(x))), `down` as PyTorch initializes nn.Linear, `up` 0 ---- */

enum { DOWN, DOWN_BIAS, UP, UP_BIAS };

static int add_bottleneck(tuning *t, int layer, int place) {
    size_t dim = (size_t)t->model->config.dim;
    size_t r = (size_t)(efficient_of(t)->set.bottleneck ? efficient_of(t)->set.bottleneck : 16);
    static const char *const names[4] = {"down.weight", "down.bias", "up.weight", "up.bias"};
    const size_t rows[4] = {r, 1, dim, 1}, cols[4] = {dim, r, r, dim};
    for (int i = 0; i < 4; i++) {
        efficient_part part = {layer, place, i, names[i], 0};
        ml_tensor *x = efficient_add(t, &part, rows[i], cols[i]);
        if (!x) return 0;
        if (i == DOWN) tuning_set_uniform(t, x, 1 / sqrtf((float)dim));
    }
    return 1;
}

static ml_tensor bottleneck(ml_graph *g, ml_tensor x, ml_tensor **w) {
    ml_tensor inner = ml_relu(g, ml_linear(g, x, *w[DOWN], *w[DOWN_BIAS]));
    return ml_linear(g, inner, *w[UP], *w[UP_BIAS]);
}

/* Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP": one after each half of a layer, in series:
   y + up(relu(down(y))) of what the half adds to the stream. */
int adapter_setup(tuning *t) {
    for (int layer = 0; layer < t->model->config.n_layers; layer++)
        if (!add_bottleneck(t, layer, ML_PLACE_ATTENTION) || !add_bottleneck(t, layer, ML_PLACE_FFN))
            return 0;
    return 1;
}

ml_tensor adapter_insert(ml_graph *g, const ml_insertion *at, void *user) {
    ml_tensor **w = efficient_at((const tuning *)user, at->layer, (int)at->place);
    return ml_add(g, at->y, bottleneck(g, at->y, w));
}

/* He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning": beside the feed-forward half,
   with a scale: y + s up(relu(down(x))), x the normalized stream that the half begins with. */
int parallel_setup(tuning *t) {
    for (int layer = 0; layer < t->model->config.n_layers; layer++)
        if (!add_bottleneck(t, layer, ML_PLACE_FFN)) return 0;
    return 1;
}

ml_tensor parallel_insert(ml_graph *g, const ml_insertion *at, void *user) {
    const tuning *t = (const tuning *)user;
    float scale = efficient_of(t)->set.scale > 0 ? efficient_of(t)->set.scale : 4;
    ml_tensor **w = efficient_at(t, at->layer, (int)at->place);
    return ml_add(g, at->y, ml_scale(g, bottleneck(g, at->x, w), scale));
}

/* ---- IA3 (Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
   Learning"): keys, values and the inner numbers of the feed-forward half times a learned vector, 1 at first. Keys
   are scaled before they are rotated. ---- */

int ia3_setup(tuning *t) {
    const ml_config *c = &t->model->config;
    size_t kv_dim = (size_t)(c->head_dim * c->n_kv_heads);
    for (int layer = 0; layer < c->n_layers; layer++) {
        const int places[3] = {ML_PLACE_K, ML_PLACE_V, ML_PLACE_HIDDEN};
        for (int i = 0; i < 3; i++) {
            efficient_part part = {layer, places[i], 0, "ia3_l", 0};
            ml_tensor *x = efficient_add(t, &part, 1, i == 2 ? (size_t)c->hidden_dim : kv_dim);
            if (!x) return 0;
            tuning_set(x, 1);
        }
    }
    return 1;
}

ml_tensor ia3_insert(ml_graph *g, const ml_insertion *at, void *user) {
    return ml_mul(g, at->y, *efficient_at((const tuning *)user, at->layer, (int)at->place)[0]);
}
