/* From tokens to classes: the Llama, one pooled state of each row, and a classifier. */
#include <math.h>
#include "tuning.h"
#include "../../common/report.h"

uint64_t tuning_seed(tuning *t) { return ((uint64_t)t->set.seed << 48) ^ (t->pass << 8) ^ ++t->seeds; }

/* The parameters of head and pooling: those of the head as PyTorch initializes nn.Linear. */
int tuning_make_head(tuning *t) {
    tuning_private *p = t->private_part;
    const ml_config *c = &t->model->config;
    size_t dim = (size_t)c->dim, inner = (size_t)t->set.head_hidden, in = inner ? inner : dim;
    const char *pooling = t->set.pooling;
    p->head = tuning_parameter(t, "head.weight", (size_t)t->labels.n, in, 0);
    p->head_bias = tuning_parameter(t, "head.bias", 1, (size_t)t->labels.n, 0);
    if (!p->head || !p->head_bias) return 0;
    tuning_set_uniform(t, p->head, 1 / sqrtf((float)in));
    tuning_set_uniform(t, p->head_bias, 1 / sqrtf((float)in));
    if (inner) {
        p->hidden = tuning_parameter(t, "head.hidden.weight", inner, dim, 0);
        p->hidden_bias = tuning_parameter(t, "head.hidden.bias", 1, inner, 0);
        if (!p->hidden || !p->hidden_bias) return 0;
        tuning_set_uniform(t, p->hidden, 1 / sqrtf((float)dim));
    }
    if (strcmp(pooling, "attention") == 0) p->pool = tuning_parameter(t, "head.attention", 1, dim, 0);
    if (strcmp(pooling, "layers") == 0)
        p->mix = tuning_parameter(t, "head.layers", 1, (size_t)c->n_layers + 1, 0);
    return (p->pool || strcmp(pooling, "attention") != 0) && (p->mix || strcmp(pooling, "layers") != 0);
}

/* ---- rows ---- */

/* The rows of a batch without their placeholders: where they start, and in p->kept which tokens they are. */
static ml_rows kept_rows(tuning *t, const tuning_batch *batch) {
    tuning_private *p = t->private_part;
    ml_rows rows = {batch->rows.row_start, batch->rows.n_rows};
    if (!t->front) return rows;
    int32_t *start = p->starts + p->max_rows + 1;
    int n = 0;
    for (int r = 0; r < rows.n_rows; r++) {
        start[r] = n;
        for (int i = rows.start[r] + t->front; i < rows.start[r + 1]; i++) p->kept[n++] = i;
    }
    start[rows.n_rows] = n;
    rows.start = start;
    return rows;
}

/* x (n, D) of all tokens, without the placeholders */
static ml_tensor without_front(tuning *t, ml_graph *g, const tuning_batch *batch, ml_tensor x) {
    if (!t->front) return x;
    ml_rows rows = kept_rows(t, batch);
    return ml_gather(g, x, t->private_part->kept, (size_t)rows.start[rows.n_rows]);
}

ml_tensor tuning_hidden(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_llama_desc llama = t->llama;
    t->batch = batch;
    llama.batch = &batch->rows;
    if (t->method.begin) t->method.begin(t, g, &llama);
    return without_front(t, g, batch, ml_llama(g, &llama));
}

/* ---- pooling ---- */

/* The mean of all layers' streams, weighted by softmax (Peters et al. 2018, "Deep Contextualized Word
   Representations"), through the model's last norm. (n, D) */
static ml_tensor mix_layers(tuning *t, ml_graph *g) {
    tuning_private *p = t->private_part;
    const ml_config *c = &t->model->config;
    ml_tensor share = ml_softmax(g, *p->mix), sum = ml_none();
    for (size_t i = 0; i <= (size_t)c->n_layers; i++) {
        ml_tensor part = ml_mul(g, p->states[i], ml_slice(g, share, ML_COLS, i, i + 1));
        sum = i ? ml_add(g, sum, part) : part;
    }
    ml_tensor weight = t->weights[tuning_find_weight(t, -1, "output_norm.weight")];
    int bias = tuning_find_weight(t, -1, "output_norm.bias");
    if (c->norm == ML_NORM_LAYER)
        return ml_layer_norm(g, sum, weight, bias < 0 ? ml_none() : t->weights[bias], c->norm_eps);
    return ml_rms_norm(g, sum, weight, c->norm_eps);
}

ml_pooling tuning_pooling(const tuning *t) {
    const char *name = t->set.pooling;
    return strcmp(name, "mean") == 0 ? ML_POOL_MEAN : strcmp(name, "max") == 0 ? ML_POOL_MAX : ML_POOL_LAST;
}

ml_tensor tuning_pooled(tuning *t, ml_graph *g, const tuning_batch *batch) {
    const char *pooling = t->set.pooling;
    ml_tensor h = tuning_hidden(t, g, batch);
    ml_rows rows = kept_rows(t, batch);
    if (strcmp(pooling, "layers") == 0) h = without_front(t, g, batch, mix_layers(t, g));
    if (strcmp(pooling, "attention") == 0)
        return ml_pool_weighted(g, h, ml_linear(g, h, *t->private_part->pool, ml_none()), rows);
    return ml_pool_rows(g, h, rows, tuning_pooling(t));
}

/* ---- the classifier ---- */

ml_tensor tuning_head(tuning *t, ml_graph *g, ml_tensor x) {
    const tuning_private *p = t->private_part;
    float drop = t->set.dropout;
    if (drop > 0) x = ml_dropout(g, x, drop, tuning_seed(t));
    if (p->hidden) {
        x = ml_tanh(g, ml_linear(g, x, *p->hidden, *p->hidden_bias));
        if (drop > 0) x = ml_dropout(g, x, drop, tuning_seed(t));
    }
    return ml_linear(g, x, *p->head, *p->head_bias);
}

ml_tensor tuning_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    return tuning_head(t, g, tuning_pooled(t, g, batch));
}

ml_tensor tuning_cross_entropy(tuning *t, ml_graph *g, const tuning_batch *batch, ml_tensor logits) {
    ml_loss_desc desc = {0};
    desc.targets = batch->rows.labels;
    desc.divisor = batch->rows.divisor;
    desc.smoothing = t->set.smoothing;
    return ml_cross_entropy(g, logits, &desc);
}

ml_tensor tuning_classify(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_tensor logits = t->method.logits ? t->method.logits(t, g, batch) : tuning_logits(t, g, batch);
    return tuning_cross_entropy(t, g, batch, logits);
}
