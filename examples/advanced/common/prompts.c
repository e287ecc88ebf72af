/* Learned tokens in front of each row. Prompt tuning (Lester et al. 2021, "The Power of Scale for Parameter-Efficient
   Prompt Tuning"): embeddings of P tokens that are not in the vocabulary. Prefix tuning (Li & Liang 2021,
   "Prefix-Tuning: Optimizing Continuous Prompts for Generation"): keys and values of P tokens in every layer, learned
   directly, or through a network of two layers that is not needed afterwards. A prefix takes no position: its keys
   are not rotated. Learned directly, both begin as what P tokens of the training text give. */
#include <math.h>
#include "methods.h"
#include "../../common/report.h"

/* The first P tokens of sentences in random order. */
static int read_text(tuning *t) {
    efficient *e = efficient_of(t);
    int n = efficient_length(e), have = 0;
    e->text = (int32_t *)malloc((size_t)n * sizeof *e->text);
    if (!e->text) return no_memory("a prompt");
    while (have < n) {
        const review *row = &t->train.rows[ml_random_u64(&t->random) % (uint64_t)t->train.n];
        for (int i = row->n_ids > 1; i < row->n_ids && have < n; i++) e->text[have++] = row->ids[i];
    }
    return 1;
}

/* ---- prompt tuning ---- */

int prompt_setup(tuning *t) {
    efficient *e = efficient_of(t);
    size_t n = (size_t)efficient_length(e), dim = (size_t)t->model->config.dim;
    size_t n_rows = n * (size_t)t->set.batch;
    if (!read_text(t) || !(e->prompt = tuning_parameter(t, "prompt_embeddings", n, dim, 0))) return 0;
    for (size_t i = 0; i < n; i++)
        memcpy((float *)e->prompt->data + i * dim,
               (const float *)t->weights[0].data + (size_t)e->text[i] * dim, dim * sizeof(float));
    e->rows = (int32_t *)malloc(n_rows * sizeof *e->rows);
    e->turn = (int32_t *)malloc(n_rows * sizeof *e->turn);
    return (e->rows && e->turn) || no_memory("a prompt");
}

/* The placeholders' embeddings are replaced. */
ml_tensor prompt_insert(ml_graph *g, const ml_insertion *at, void *user) {
    const tuning *t = (const tuning *)user;
    efficient *e = efficient_of(t);
    const ml_batch *batch = &t->batch->rows;
    size_t n = 0;
    for (int r = 0; r < batch->n_rows; r++)
        for (int i = 0; i < t->front; i++) {
            e->rows[n] = batch->row_start[r] + i;
            e->turn[n++] = i;
        }
    return ml_replace_rows(g, at->y, e->rows, ml_gather(g, *e->prompt, e->turn, n));
}

/* ---- prefix tuning ---- */

static int make_prefix(tuning *t) {
    efficient *e = efficient_of(t);
    size_t n = (size_t)t->model->config.n_layers;
    e->keys = (ml_tensor *)calloc(n, sizeof *e->keys);
    e->values = (ml_tensor *)calloc(n, sizeof *e->values);
    return (e->keys && e->values) || no_memory("a prefix");
}

/* Keeps the keys and values of a pass. */
static ml_tensor collect(ml_graph *g, const ml_insertion *at, void *user) {
    const tuning *t = (const tuning *)user;
    const ml_tensor *to = efficient_at(t, at->layer, (int)at->place)[0];
    if (!g->measuring && !g->result) memcpy(to->data, at->y.data, to->rows * to->cols * sizeof(float));
    return at->y;
}

static ml_tensor hidden(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_llama_desc llama = t->llama;
    llama.batch = &batch->rows;
    llama.places = 1u << ML_PLACE_K | 1u << ML_PLACE_V;
    llama.insert = collect;
    return ml_llama(g, &llama);
}

int prefix_setup(tuning *t) {
    efficient *e = efficient_of(t);
    const ml_config *c = &t->model->config;
    size_t kv_dim = (size_t)(c->head_dim * c->n_kv_heads), n = (size_t)efficient_length(e);
    tuning_batch batch = {0};
    if (!read_text(t) || !make_prefix(t)) return 0;
    for (int i = 0; i < 2 * c->n_layers; i++) {
        efficient_part part = {i / 2, i % 2 ? ML_PLACE_V : ML_PLACE_K, 0, "prefix", 0};
        if (!efficient_add(t, &part, n, kv_dim)) return 0;
    }
    batch.rows.tokens = e->text;
    batch.rows.n_tokens = (int)n;
    batch.rows.n_rows = 1;
    return tuning_compute(t, &batch, hidden, NULL);
}

void prefix_begin(tuning *t, ml_graph *g, ml_llama_desc *llama) {
    efficient *e = efficient_of(t);
    (void)g;
    for (int i = 0; i < t->model->config.n_layers; i++) {
        e->keys[i] = *efficient_at(t, i, ML_PLACE_K)[0];
        e->values[i] = *efficient_at(t, i, ML_PLACE_V)[0];
    }
    llama->prefix_keys = e->keys;
    llama->prefix_values = e->values;
}

/* (P, D) -> tanh of (P, m) -> (P, 2 L kv_dim): keys and values of each layer in turn. */
int prefix_mlp_setup(tuning *t) {
    efficient *e = efficient_of(t);
    const ml_config *c = &t->model->config;
    size_t dim = (size_t)c->dim, inner = (size_t)(e->set.bottleneck ? e->set.bottleneck : c->dim);
    size_t all = 2 * (size_t)c->n_layers * (size_t)(c->head_dim * c->n_kv_heads);
    static const char *const names[4] = {"prefix.0.weight", "prefix.0.bias", "prefix.2.weight",
                                         "prefix.2.bias"};
    const size_t rows[4] = {inner, 1, all, 1}, cols[4] = {dim, inner, inner, all};
    if (!make_prefix(t) ||
        !(e->prompt = tuning_parameter(t, "prefix.embedding", (size_t)efficient_length(e), dim, 1)))
        return 0;
    for (int i = 0; i < 4; i++) {
        if (!(e->mlp[i] = tuning_parameter(t, names[i], rows[i], cols[i], 0))) return 0;
        if (i % 2 == 0) tuning_set_uniform(t, e->mlp[i], 1 / sqrtf((float)cols[i]));
    }
    return 1;
}

void prefix_mlp_begin(tuning *t, ml_graph *g, ml_llama_desc *llama) {
    efficient *e = efficient_of(t);
    const ml_config *c = &t->model->config;
    size_t kv_dim = (size_t)(c->head_dim * c->n_kv_heads);
    ml_tensor inner = ml_tanh(g, ml_linear(g, *e->prompt, *e->mlp[0], *e->mlp[1]));
    ml_tensor all = ml_linear(g, inner, *e->mlp[2], *e->mlp[3]);
    for (size_t i = 0; i < 2 * (size_t)c->n_layers; i++) {
        ml_tensor part = ml_slice(g, all, ML_COLS, i * kv_dim, (i + 1) * kv_dim);
        *(i % 2 ? &e->values[i / 2] : &e->keys[i / 2]) = part;
    }
    llama->prefix_keys = e->keys;
    llama->prefix_values = e->values;
}
