/* Exercise 8, the assignment's part "model": attention, a layer, and the forward pass (lesson 8). Use plain_linear,
   plain_rms_norm, plain_rotate, plain_softmax, plain_swiglu and plain_add of plain_llama.h. (These three are there,
   too: do not look.) Checked by hand, then against the header on the model in examples/models. */
#include "examples/lessons/lesson.h"
#include "examples/lessons/plain_llama.h"
#include "minillama.h"

/* l->a (n, D) from l->q (n, D), l->k and l->v (n, kv), causal. Query head h reads key head h * n_kv_heads / n_heads.
   A head has D / n_heads numbers. l->p (n_heads n, n) has room for the weights. */
static void attention(const plain_layer *l, const ml_config *c) {
    int n = l->q.rows, kv = l->k.cols, hd = c->dim / c->n_heads;
    /* your turn: for each head and token t, the softmax of q_t k_u / sqrt(hd) over u <= t, then the sum of v_u */
    for (int head = 0; head < c->n_heads; head++)
        for (int t = 0; t < n; t++) {
            int own = t * c->dim + head * hd, shared = head * c->n_kv_heads / c->n_heads * hd;
            double *p = l->p.v + (head * n + t) * n;
            for (int u = 0; u <= t; u++) {
                p[u] = 0;
                for (int j = 0; j < hd; j++) p[u] += l->q.v[own + j] * l->k.v[u * kv + shared + j];
                p[u] /= sqrt(hd);
            }
            plain_softmax(p, p, t + 1);
            for (int j = 0; j < hd; j++) {
                l->a.v[own + j] = 0;
                for (int u = 0; u <= t; u++) l->a.v[own + j] += p[u] * l->v.v[u * kv + shared + j];
            }
        }
    /* end */
}

/* The stream after a layer, l[1].x (n, D), from the one before, l->x. w are the weights: w[ATTN_NORM], w[WQ] ... */
static void layer(const plain_layer *l, const plain_matrix *w, const ml_config *c) {
    /* your turn: l->h1 = norm of x; l->q, l->k, l->v from it; rotate q and k; attention; l->mid = Wo a + x; then
       l->h2 = norm of mid; l->gate and l->up from it; l->inner = swiglu; l[1].x = W2 inner + mid */
    plain_rms_norm(l->h1, l->x, w[ATTN_NORM], c);
    plain_linear(l->q, l->h1, w[WQ]);
    plain_linear(l->k, l->h1, w[WK]);
    plain_linear(l->v, l->h1, w[WV]);
    plain_rotate(l->q.v, l->q, c, 1);
    plain_rotate(l->k.v, l->k, c, 1);
    attention(l, c);
    plain_linear(l->mid, l->a, w[WO]);
    plain_add(l->mid.v, l->x.v, l->x);
    plain_rms_norm(l->h2, l->mid, w[FFN_NORM], c);
    plain_linear(l->gate, l->h2, w[W1]);
    plain_linear(l->up, l->h2, w[W3]);
    plain_swiglu(l->inner, l->gate, l->up);
    plain_linear(l[1].x, l->inner, w[W2]);
    plain_add(l[1].x.v, l->mid.v, l->mid);
    /* end */
}

/* m->logits (n, V): the tokens' embeddings into m->at[0].x, all layers, the last norm into m->hidden, the output. */
static void forward(plain_llama *m, const int32_t *tokens) {
    /* your turn: m->w[EMBEDDING], [LAST_NORM] and [OUTPUT] are the model's; those of layer l begin at
       m->w + OF_MODEL + OF_LAYER * l */
    plain_embed(m->at[0].x, m->w[EMBEDDING], tokens);
    for (int l = 0; l < m->c.n_layers; l++) layer(&m->at[l], m->w + OF_MODEL + OF_LAYER * l, &m->c);
    plain_rms_norm(m->hidden, m->at[m->c.n_layers].x, m->w[LAST_NORM], &m->c);
    plain_linear(m->logits, m->hidden, m->w[OUTPUT]);
    /* end */
}

/* ---- checks ---- */

/* The number of got (rows, cols) that is farthest from what is wanted. */
static void check_matrix(plain_matrix got, const float *wanted, const char *what) {
    int worst = 0;
    char where[96];
    for (int i = 0; i < got.rows * got.cols; i++)
        if (!(fabs(got.v[i] - (double)wanted[i]) <= fabs(got.v[worst] - (double)wanted[worst]))) worst = i;
    snprintf(where, sizeof where, "%s, row %d, number %d", what, worst / got.cols, worst % got.cols);
    check_near(got.v[worst], (double)wanted[worst], 1e-4, where);
}

/* Two heads of one number, which share a key: queries 0 give the mean of what is seen, a large one what fits. */
static void check_attention(void) {
    double q[] = {0, 0, 0, 0, 0, 99}, k[] = {0, 1, 0}, v[] = {3, 6, 0}, p[18] = {0}, a[6] = {0};
    const float wanted[] = {3, 3, 4.5f, 4.5f, 3, 6};
    plain_layer l;
    ml_config c;
    memset(&l, 0, sizeof l), memset(&c, 0, sizeof c);
    c.dim = c.n_heads = 2, c.n_kv_heads = 1, c.mask = ML_MASK_CAUSAL;
    l.q = (plain_matrix){3, 2, q, NULL}, l.k = (plain_matrix){3, 1, k, NULL};
    l.v = (plain_matrix){3, 1, v, NULL}, l.a = (plain_matrix){3, 2, a, NULL};
    l.p = (plain_matrix){6, 3, p, NULL};
    attention(&l, &c);
    check_matrix(l.a, wanted, "attention of three tokens");
}

typedef struct truth {
    ml_llama_desc llama;
    ml_tensor states[MOST_LAYERS + 1]; /* the stream before and after each layer */
} truth;
static ml_tensor header(ml_graph *g, void *user) {
    truth *t = (truth *)user;
    return ml_linear(g, ml_llama(g, &t->llama), t->llama.model->tensors[OUTPUT], ml_none());
}

int main(void) {
    const char text[] = "One day, Tom and his mom went to the";
    int32_t work[1024];
    ml_encode_desc encode = {text, sizeof text - 1, ML_ADD_SPECIAL, work, sizeof work};
    ml_model_load_desc f32 = {.type = ML_F32};
    plain_llama m;
    ml_model *model;
    ml_tokens t;
    ml_graph *g;
    truth right;
    ml_error e = {ML_OK, "not a model that plain_llama.h computes"};
    memset(&right, 0, sizeof right);
    check_attention();
    if (ml_model_load("examples/models/stories.gguf", &f32, &model, &e) ||
        ml_tokenizer_encode(model->tokenizer, &encode, &t, &e) || !plain_new(&m, model, t.n))
        return printf("%s\n", e.text), 1;
    ml_batch batch = {.tokens = t.ids, .n_tokens = t.n};
    right.llama.model = model, right.llama.batch = &batch, right.llama.states = right.states;
    if (ml_graph_new(NULL, header, &right, &g, &e)) return printf("%s\n", e.text), 1;
    ml_graph_begin(g, 0);
    const float *logits = (const float *)header(g, &right).data;
    for (int i = 0; i < t.n * m.c.dim; i++)
        m.at[2].x.v[i] = (double)((const float *)right.states[2].data)[i]; /* layer 3 alone */
    layer(&m.at[2], m.w + OF_MODEL + OF_LAYER * 2, &m.c);
    check_matrix(m.at[3].x, (const float *)right.states[3].data, "the stream after layer 3");
    memset(m.at[0].x.v, 0, (size_t)(m.end - m.at[0].x.v) * sizeof(double));
    forward(&m, t.ids);
    check_matrix(m.at[0].x, (const float *)right.states[0].data, "embeddings");
    check_matrix(m.at[m.c.n_layers].x, (const float *)right.states[m.c.n_layers].data,
                 "after the last layer");
    check_matrix(m.logits, logits, "logits");
    free(m.memory), ml_graph_free(g), ml_model_free(model);
    return lesson_end();
}
