/* ml_llama, the whole network as one operation, against the same network written plainly in doubles, with something
   inserted at every place; its gradients against central differences of that.

   In doubles with h = 1e-5 the truncation error, of h^2, and the rounding error, of 1e-16 / h, both stay near 1e-10.
   What remains is the error of F32: about 1e-7 for each rounding, and a few dozen of them one after another. */
#include "models.h"
#include "preamble.h"
#include "build_files.h"

/* Of the largest number of a gradient, or along a direction of its length: over six seeds F32 was off by 5e-5 at most,
   where several layers amplify its rounding; usually by 1e-5. */
#define TOLERANCE 1e-4
#define STEP 1e-5
#define EPS 1e-3

enum {
    LAYERS = 2,
    DIM = 16,
    HIDDEN = 10,
    HEADS = 4,
    KV_HEADS = 2,
    SIZE = DIM / HEADS, /* of a head */
    KV_DIM = KV_HEADS * SIZE,
    VOCAB = 11,
    TOKENS = 13,
    ROWS = 3,
    RANK = 2,
    PREFIX = 3,
    TARGETS = 7,           /* of an adapter, in a layer */
    KEYS = 8 + PREFIX + 1, /* of a bias: of the longest row with its prefix, and one more than needed */
    OF_INSERTION = 5       /* parameters */
};

static const int32_t row_start[ROWS + 1] = {0, 1, 9, TOKENS};

/* ---- parameters ---- */

typedef struct parameter {
    ml_tensor t;   /* what the library computes with ... */
    double *exact; /* ... and the plain network: the same numbers, until a difference is taken */
    char name[ML_NAME_SIZE];
} parameter;

enum {
    MODEL = 4 + 11 * LAYERS,
    LORA = MODEL, /* the first parameter of each kind */
    INSERTED = LORA + 2 * TARGETS * LAYERS,
    PREFIXES = INSERTED + ML_PLACES * OF_INSERTION,
    BIASES = PREFIXES + 2 * LAYERS, /* (TOKENS, KEYS) for all heads, (HEADS * TOKENS, KEYS) */
    PARAMETERS = BIASES + 2,
    OUTPUTS = LAYERS + 3 /* hidden states, the stream before and after the layers, hidden states again */
};

typedef struct setup {
    ml_random random;
    ml_model *model;
    ml_lora *lora;
    parameter p[PARAMETERS];
    ml_tensor view[PARAMETERS]; /* of all parameters, in order */
    int32_t tokens[2][TOKENS];
    double *dy[OUTPUTS], *y[OUTPUTS]; /* the loss is the sum of dy y */
    float *dy_given[OUTPUTS];
    /* what of it is used */
    unsigned places;
    int with_lora, with_prefix, with_states, twice, no_rope;
    int checkpointing;
    int window, sinks, with_bias; /* the bias: 1 or 2 as above, 3: ALiBi's, which does not learn */
    float dropout;
    uint64_t seed;
    int n_frozen; /* the first so many parts of the model learn nothing: the embedding, the layers, the last norm */
    int calls; /* of the insertion, in one pass */
    ml_tensor result;
    size_t size; /* of the graph */
} setup;

static void *allocate(size_t n, size_t size) {
    void *memory = calloc(n ? n : 1, size);
    if (!memory) exit(2);
    return memory;
}

static void add_parameter(setup *s, int at, const char *name, size_t rows, size_t cols, double mean,
                          double sd) {
    parameter *p = &s->p[at];
    size_t n = rows * cols;
    float *data = (float *)allocate(n, sizeof *data);
    snprintf(p->name, sizeof p->name, "%s", name);
    p->t.type = ML_F32;
    p->t.rows = rows;
    p->t.cols = cols;
    p->t.data = data;
    p->t.grad = (float *)allocate(n, sizeof(float));
    p->exact = (double *)allocate(n, sizeof *p->exact);
    for (size_t i = 0; i < n; i++) {
        data[i] = (float)(mean + sd * (double)ml_random_normal(&s->random));
        p->exact[i] = (double)data[i];
    }
}

static void add_model(setup *s, ml_norm norm, ml_mask mask) {
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = DIM, c.hidden_dim = HIDDEN, c.n_layers = LAYERS, c.n_heads = HEADS, c.n_kv_heads = KV_HEADS;
    c.vocab_size = VOCAB, c.max_seq_len = 64, c.tied_output = 1, c.norm = norm, c.mask = mask;
    c.norm_eps = (float)EPS, c.rope_theta = 500, c.rope_scale = 2;
    if (create_model(&c, ML_F32, &s->random, NULL, &s->model, NULL)) exit(2);
    for (int i = 0; i < MODEL; i++) {
        const ml_tensor *t = &s->model->tensors[i];
        char name[ML_NAME_SIZE];
        ml_model_tensor_name(s->model, i, name);
        if (!t->data || i == 3) continue; /* the output matrix is the embedding */
        add_parameter(s, i, name, t->rows, t->cols, strstr(name, "norm.weight") ? 1 : 0, 0.3);
        memcpy(t->data, s->p[i].t.data, t->rows * t->cols * sizeof(float));
    }
}

static void add_lora(setup *s) {
    ml_lora_create_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.rank = RANK, desc.alpha = 3, desc.targets = ML_LORA_ALL, desc.random = &s->random;
    if (ml_lora_create(s->model, &desc, &s->lora, NULL)) exit(2);
    for (int i = 0; i < s->lora->n_tensors; i++) {
        const ml_tensor *t = &s->lora->tensors[i];
        char name[ML_NAME_SIZE];
        snprintf(name, sizeof name, "lora %d", i);
        add_parameter(s, LORA + i, name, t->rows, t->cols, 0, 0.3);
    }
}

/* z = y s + y y t + ((x A^T) (x C^T)) B^T, or tanh of it: reads x and y twice. One set for each place, used in all
   layers. */
static void add_insertions(setup *s) {
    static const int widths[ML_PLACES][2] = {{DIM, DIM},       {DIM, DIM},    {DIM, KV_DIM}, {DIM, KV_DIM},
                                             {DIM, DIM},       {DIM, DIM},    {DIM, HIDDEN}, {DIM, HIDDEN},
                                             {HIDDEN, HIDDEN}, {HIDDEN, DIM}, {DIM, DIM},    {DIM, DIM}};
    for (int place = 0; place < ML_PLACES; place++) {
        int at = INSERTED + place * OF_INSERTION;
        size_t in = (size_t)widths[place][0], out = (size_t)widths[place][1];
        char name[ML_NAME_SIZE];
        snprintf(name, sizeof name, "place %d", place);
        add_parameter(s, at, name, 1, out, 1, 0.3);
        add_parameter(s, at + 1, name, 1, out, 0, 0.02); /* squares of squares grow fast */
        add_parameter(s, at + 2, name, RANK, in, 0, 0.3);
        add_parameter(s, at + 3, name, RANK, in, 0, 0.3);
        add_parameter(s, at + 4, name, out, RANK, 0, 0.1);
    }
}

static void setup_begin(setup *s, uint64_t seed, ml_norm norm, ml_mask mask) {
    memset(s, 0, sizeof *s);
    ml_random_seed(&s->random, seed);
    add_model(s, norm, mask);
    add_lora(s);
    add_insertions(s);
    for (int i = 0; i < 2 * LAYERS; i++) add_parameter(s, PREFIXES + i, "prefix", PREFIX, KV_DIM, 0, 0.3);
    for (int i = 0; i < 2 * TOKENS; i++)
        s->tokens[i / TOKENS][i % TOKENS] = (int32_t)(ml_random_u64(&s->random) % VOCAB);
    for (int j = 0; j < OUTPUTS; j++) {
        s->y[j] = (double *)allocate(TOKENS * DIM, sizeof **s->y);
        s->dy[j] = (double *)allocate(TOKENS * DIM, sizeof **s->dy);
        s->dy_given[j] = (float *)allocate(TOKENS * DIM, sizeof **s->dy_given);
        for (int i = 0; i < TOKENS * DIM; i++) {
            s->dy_given[j][i] = ml_random_normal(&s->random);
            s->dy[j][i] = (double)s->dy_given[j][i];
        }
    }
    for (int i = 0; i < 2; i++) {
        parameter *p = &s->p[BIASES + i];
        add_parameter(s, BIASES + i, "bias", i ? HEADS * TOKENS : TOKENS, KEYS, 0, 1);
        ((float *)p->t.data)[5 * KEYS + 2] =
            -INFINITY; /* of the fifth token of a row, which has other keys */
        p->exact[5 * KEYS + 2] = -INFINITY;
    }
}

static void setup_end(setup *s) {
    for (int i = 0; i < PARAMETERS; i++) free(s->p[i].t.data), free(s->p[i].t.grad), free(s->p[i].exact);
    for (int j = 0; j < OUTPUTS; j++) free(s->y[j]), free(s->dy[j]), free(s->dy_given[j]);
    ml_lora_free(s->lora);
    ml_model_free(s->model);
}

/* Which part of the model a tensor belongs to: 0 the embedding, 1 the first layer, ..., LAYERS + 1 the last norm. */
static int part_of(int tensor) { return tensor == 0 ? 0 : tensor < 4 ? LAYERS + 1 : 1 + (tensor - 4) / 11; }

/* Whether a parameter takes part and is not frozen. */
static int learns(const setup *s, int i) {
    if (!s->p[i].t.data) return 0;
    if (i < LORA) return part_of(i) >= s->n_frozen;
    if (i < INSERTED) return s->with_lora;
    if (i < PREFIXES) return s->places >> ((i - INSERTED) / OF_INSERTION) & 1;
    return i < BIASES ? s->with_prefix : s->with_bias == i - BIASES + 1;
}

/* Queries and keys are rotated afterwards, which must not change what is returned: tanh's gradient is computed from
   its result. */
static int is_turned(ml_place place) { return place == ML_PLACE_Q || place == ML_PLACE_K; }

/* ---- the network on a graph ---- */

static ml_tensor insert(ml_graph *g, const ml_insertion *at, void *user) {
    setup *s = (setup *)user;
    const ml_tensor *v = &s->view[INSERTED + (int)at->place * OF_INSERTION];
    ml_tensor x = at->x, y = at->y, none = ml_none();
    s->calls++;
    ml_tensor products = ml_mul(g, ml_linear(g, x, v[2], none), ml_linear(g, x, v[3], none));
    ml_tensor scaled = ml_add(g, ml_mul(g, y, v[0]), ml_mul(g, ml_mul(g, y, y), v[1]));
    ml_tensor z = ml_add(g, scaled, ml_linear(g, products, v[4], none));
    return is_turned(at->place) ? ml_tanh(g, z) : z;
}

static ml_tensor weighted_sum(ml_graph *g, const setup *s, int j, ml_tensor y) {
    ml_tensor dy = {ML_F32, TOKENS, DIM, s->dy_given[j], NULL};
    return ml_sum(g, ml_mul(g, y, dy));
}

static ml_tensor build(ml_graph *g, void *user) {
    setup *s = (setup *)user;
    ml_tensor states[LAYERS + 1], loss;
    ml_batch batch;
    ml_llama_desc desc;
    s->calls = 0;
    memset(&batch, 0, sizeof batch);
    batch.tokens = s->tokens[0], batch.n_tokens = TOKENS, batch.row_start = row_start, batch.n_rows = ROWS;
    memset(&desc, 0, sizeof desc);
    desc.model = s->model;
    desc.batch = &batch;
    desc.weights = s->view;
    desc.places = s->places, desc.insert = insert, desc.user = s;
    if (s->with_lora) desc.lora = s->lora, desc.lora_weights = s->view + LORA;
    if (s->with_prefix)
        desc.prefix_keys = s->view + PREFIXES, desc.prefix_values = s->view + PREFIXES + LAYERS;
    if (s->with_states) desc.states = states;
    desc.no_rope = s->no_rope;
    desc.window = s->window, desc.sinks = s->sinks;
    ml_rows rows = {row_start, ROWS};
    if (s->with_bias == 3)
        desc.bias = ml_alibi(g, HEADS, rows, TOKENS);
    else if (s->with_bias)
        desc.bias = s->view[BIASES + s->with_bias - 1];
    desc.checkpointing = s->checkpointing;
    desc.dropout = s->dropout, desc.seed = s->seed;
    s->result = ml_llama(g, &desc);
    loss = weighted_sum(g, s, 0, s->result);
    for (int i = 0; s->with_states && i <= LAYERS; i++)
        loss = ml_add(g, loss, weighted_sum(g, s, 1 + i, states[i]));
    if (!s->twice) return loss;
    batch.tokens = s->tokens[1];
    desc.states = NULL;
    return ml_add(g, loss, weighted_sum(g, s, OUTPUTS - 1, ml_llama(g, &desc)));
}

/* ---- the network in doubles ---- */

/* y (n, out) += scale x (n, in) W (out, in)^T */
static void add_product(double *y, const double *x, const double *w, int out, int in, double scale) {
    for (int i = 0; i < TOKENS; i++)
        for (int j = 0; j < out; j++) {
            double sum = 0;
            for (int k = 0; k < in; k++) sum += x[i * in + k] * w[j * in + k];
            y[i * out + j] += scale * sum;
        }
}

/* y = x W^T with the adapter of that matrix, the `target`th of a layer */
static void plain_matrix(const setup *s, double *y, const double *x, const char *name, int layer,
                         int target) {
    const parameter *w = &s->p[layer_tensor(s->model, layer, name) - s->model->tensors];
    int out = (int)w->t.rows, in = (int)w->t.cols;
    memset(y, 0, (size_t)(TOKENS * out) * sizeof *y);
    add_product(y, x, w->exact, out, in, 1);
    if (!s->with_lora) return;
    const parameter *a = &s->p[LORA + 2 * (layer * TARGETS + target)];
    double low[TOKENS * RANK] = {0};
    add_product(low, x, a[0].exact, RANK, in, 3.0 / RANK);
    add_product(y, low, a[1].exact, out, RANK, 1);
}

static void plain_norm(const setup *s, double *y, const double *x, const char *name, int layer) {
    int at = layer < 0 ? tensor_index(s->model, name)
                       : (int)(layer_tensor(s->model, layer, name) - s->model->tensors);
    const double *w = s->p[at].exact, *b = s->p[at + 1].exact;
    for (int i = 0; i < TOKENS; i++, x += DIM, y += DIM) {
        double mean = 0, square = 0;
        for (int j = 0; b && j < DIM; j++) mean += x[j] / DIM;
        for (int j = 0; j < DIM; j++) square += (x[j] - mean) * (x[j] - mean) / DIM;
        for (int j = 0; j < DIM; j++)
            y[j] = (x[j] - mean) / sqrt(square + (double)(float)EPS) * w[j] + (b ? b[j] : 0);
    }
}

/* See add_insertions. x may be y. */
static void plain_insert(const setup *s, ml_place place, const double *x, double *y) {
    const parameter *p = &s->p[INSERTED + (int)place * OF_INSERTION];
    int in = (int)p[2].t.cols, out = (int)p[0].t.cols;
    double a[TOKENS * RANK] = {0}, c[TOKENS * RANK] = {0};
    if (!(s->places >> place & 1)) return;
    add_product(a, x, p[2].exact, RANK, in, 1);
    add_product(c, x, p[3].exact, RANK, in, 1);
    for (int i = 0; i < TOKENS * RANK; i++) a[i] *= c[i];
    for (int i = 0; i < TOKENS * out; i++)
        y[i] = y[i] * p[0].exact[i % out] + y[i] * y[i] * p[1].exact[i % out];
    add_product(y, a, p[4].exact, out, RANK, 1);
    for (int i = 0; is_turned(place) && i < TOKENS * out; i++) y[i] = tanh(y[i]);
}

static void plain_rope(const setup *s, double *x, int width) {
    for (int r = 0; r < ROWS && !s->no_rope; r++)
        for (int i = row_start[r]; i < row_start[r + 1]; i++)
            for (int j = 0; j < width; j += 2) {
                double angle = (i - row_start[r]) / 2.0 / pow(500, (double)(j % SIZE) / SIZE);
                double *pair = x + i * width + j, a = pair[0], b = pair[1];
                pair[0] = a * cos(angle) - b * sin(angle);
                pair[1] = a * sin(angle) + b * cos(angle);
            }
}

/* Key `at` of a row that begins with token `begin`: one of the prefix, if at < 0. */
static const double *key_at(const double *prefix, const double *k, int begin, int at) {
    return at < 0 ? prefix + (at + PREFIX) * KV_DIM : k + (begin + at) * KV_DIM;
}

/* exp of the score of the token at position i of the row that begins with token `begin`, for its key `at`: 0 if it is
   not seen. */
static double plain_weight(const setup *s, int head, int begin, int i, int at, double score) {
    int first = s->with_prefix ? -PREFIX : 0, row = begin + i + (s->with_bias == 2 ? head * TOKENS : 0);
    if (s->window && at >= s->sinks && abs(i - at) >= s->window) return 0;
    if (s->with_bias == 3) return exp(score - pow(2, -8.0 * (head + 1) / HEADS) * abs(i - at));
    return exp(score + (s->with_bias ? s->p[BIASES + s->with_bias - 1].exact[row * KEYS + at - first] : 0));
}

static void plain_attention(const setup *s, int layer, double *out, const double *q, const double *k,
                            const double *v) {
    const double *pk = s->p[PREFIXES + layer].exact, *pv = s->p[PREFIXES + LAYERS + layer].exact;
    int first = s->with_prefix ? -PREFIX : 0, is_full = s->model->config.mask == ML_MASK_FULL;
    for (int r = 0; r < ROWS; r++)
        for (int i = row_start[r]; i < row_start[r + 1]; i++)
            for (int head = 0; head < HEADS; head++) {
                int begin = row_start[r], end = (is_full ? row_start[r + 1] : i + 1) - begin;
                int col = head / (HEADS / KV_HEADS) * SIZE;
                double sum = 0, *to = out + i * DIM + head * SIZE;
                memset(to, 0, SIZE * sizeof *to);
                for (int at = first; at < end; at++) {
                    double dot = 0;
                    for (int j = 0; j < SIZE; j++)
                        dot += q[i * DIM + head * SIZE + j] * key_at(pk, k, begin, at)[col + j];
                    double w = plain_weight(s, head, begin, i - begin, at, dot / sqrt((double)SIZE));
                    sum += w;
                    for (int j = 0; j < SIZE; j++) to[j] += w * key_at(pv, v, begin, at)[col + j];
                }
                for (int j = 0; j < SIZE; j++) to[j] /= sum;
            }
}

static void plain_attention_half(const setup *s, int layer, double *x) {
    double h[TOKENS * DIM], q[TOKENS * DIM], k[TOKENS * KV_DIM], v[TOKENS * KV_DIM], a[TOKENS * DIM],
        y[TOKENS * DIM];
    plain_norm(s, h, x, "attn_norm.weight", layer);
    plain_matrix(s, q, h, "attn_q.weight", layer, 0);
    plain_matrix(s, k, h, "attn_k.weight", layer, 1);
    plain_matrix(s, v, h, "attn_v.weight", layer, 2);
    plain_insert(s, ML_PLACE_Q, h, q);
    plain_insert(s, ML_PLACE_K, h, k);
    plain_insert(s, ML_PLACE_V, h, v);
    plain_rope(s, q, DIM);
    plain_rope(s, k, KV_DIM);
    plain_attention(s, layer, a, q, k, v);
    plain_matrix(s, y, a, "attn_output.weight", layer, 3);
    plain_insert(s, ML_PLACE_O, a, y);
    plain_insert(s, ML_PLACE_ATTENTION, h, y);
    for (int i = 0; i < TOKENS * DIM; i++) x[i] += y[i];
}

static void plain_ffn_half(const setup *s, int layer, double *x) {
    double h[TOKENS * DIM], gate[TOKENS * HIDDEN], up[TOKENS * HIDDEN], y[TOKENS * DIM];
    plain_norm(s, h, x, "ffn_norm.weight", layer);
    plain_matrix(s, gate, h, "ffn_gate.weight", layer, 4);
    plain_matrix(s, up, h, "ffn_up.weight", layer, 6);
    plain_insert(s, ML_PLACE_W1, h, gate);
    plain_insert(s, ML_PLACE_W3, h, up);
    for (int i = 0; i < TOKENS * HIDDEN; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    plain_insert(s, ML_PLACE_HIDDEN, gate, gate);
    plain_matrix(s, y, gate, "ffn_down.weight", layer, 5);
    plain_insert(s, ML_PLACE_W2, gate, y);
    plain_insert(s, ML_PLACE_FFN, h, y);
    for (int i = 0; i < TOKENS * DIM; i++) x[i] += y[i];
}

static void plain(const setup *s, const int32_t *tokens, double *hidden, double *const *states) {
    double x[TOKENS * DIM];
    for (int i = 0; i < TOKENS * DIM; i++) x[i] = s->p[0].exact[tokens[i / DIM] * DIM + i % DIM];
    plain_insert(s, ML_PLACE_EMBEDDING, x, x);
    if (states) memcpy(states[0], x, sizeof x);
    for (int layer = 0; layer < LAYERS; layer++) {
        plain_attention_half(s, layer, x);
        plain_ffn_half(s, layer, x);
        plain_insert(s, ML_PLACE_BLOCK, x, x);
        if (states) memcpy(states[layer + 1], x, sizeof x);
    }
    plain_norm(s, hidden, x, "output_norm.weight", -1);
}

static double plain_loss(const setup *s) {
    double sum = 0;
    plain(s, s->tokens[0], s->y[0], s->y + 1);
    if (s->twice) plain(s, s->tokens[1], s->y[OUTPUTS - 1], NULL);
    for (int j = 0; j < OUTPUTS; j++) {
        int counts = j == 0 || (j < OUTPUTS - 1 ? s->with_states : s->twice);
        for (int i = 0; counts && i < TOKENS * DIM; i++) sum += s->dy[j][i] * s->y[j][i];
    }
    return sum;
}

/* ---- comparing ---- */

static void check_gradient(setup *s, int at) {
    parameter *p = &s->p[at];
    size_t n = p->t.rows * p->t.cols;
    double *saved = (double *)allocate(n, sizeof *saved), *along = (double *)allocate(n, sizeof *along);
    double largest = 0, length = 0;
    memcpy(saved, p->exact, n * sizeof *saved);
    for (size_t i = 0; i < n; i++) {
        double grad = (double)p->t.grad[i];
        CHECK(grad - grad == 0);
        if (fabs(grad) > largest) largest = fabs(grad);
        length += grad * grad;
    }
    length = sqrt(length);
    CHECK(length > 0);
    for (int turn = 0; turn < 4; turn++) { /* two of its numbers, two directions */
        size_t only = (size_t)(ml_random_u64(&s->random) % n);
        double ours = 0, above, below;
        for (size_t i = 0; i < n; i++) along[i] = turn < 2 ? i == only : (double)ml_random_normal(&s->random);
        for (size_t i = 0; i < n; i++) ours += (double)p->t.grad[i] * along[i];
        for (size_t i = 0; i < n; i++) p->exact[i] = saved[i] + STEP * along[i];
        above = plain_loss(s);
        for (size_t i = 0; i < n; i++) p->exact[i] = saved[i] - STEP * along[i];
        below = plain_loss(s);
        memcpy(p->exact, saved, n * sizeof *saved);
        double difference = (above - below) / (2 * STEP), limit = TOLERANCE * (turn < 2 ? largest : length);
        int is_right = fabs(ours - difference) <= limit + 1e-7;
        if (!is_right && test_current_failed < 8)
            printf("%s %d: %.9g, not %.9g (largest %g, length %g)\n", p->name, at, ours, difference, largest,
                   length);
        CHECK(is_right);
    }
    free(saved);
    free(along);
}

static void tasks_backwards(void *user, int n_tasks, ml_task task, void *arg) {
    (void)user;
    while (n_tasks-- > 0) task(arg, n_tasks);
}

static void set_view(setup *s) {
    for (int i = 0; i < PARAMETERS; i++) {
        s->view[i] = s->p[i].t;
        if (!learns(s, i)) s->view[i].grad = NULL;
    }
    s->view[3] = s->view[0]; /* the output matrix: tied */
}

/* Forward, and forward and backward, in exactly the measured memory. */
static void run(setup *s, int n_threads, int separate, int checkpointing) {
    ml_graph_desc desc;
    ml_graph *g;
    ml_error error;
    float hidden[TOKENS * DIM];
    memset(&desc, 0, sizeof desc);
    desc.separate = separate;
    desc.threads.count = n_threads, desc.threads.parallel_for = tasks_backwards;
    s->checkpointing = checkpointing;
    set_view(s);
    for (int i = 0; i < PARAMETERS; i++)
        if (s->p[i].t.data) memset(s->p[i].t.grad, 0, s->p[i].t.rows * s->p[i].t.cols * sizeof(float));
    error.text[0] = 0;
    ml_result made = ml_graph_new(&desc, build, s, &g, &error);
    if (made) printf("%s\n", error.text);
    REQUIRE(made == ML_OK);
    ml_graph_begin(g, 0);
    build(g, s);
    CHECK(ml_graph_end(g, &error) == ML_OK);
    memcpy(hidden, s->result.data, sizeof hidden);
    ml_graph_begin(g, 1);
    ml_tensor loss = build(g, s);
    CHECK(memcmp(hidden, s->result.data, sizeof hidden) == 0);
    double most = 1;
    CHECK_NEAR(((float *)loss.data)[0], plain_loss(s), 1e-4, 1e-5); /* a sum of a thousand products */
    for (int i = 0; i < TOKENS * DIM; i++)
        if (fabs(s->y[0][i]) > most) most = fabs(s->y[0][i]);
    for (int i = 0; i < TOKENS * DIM; i++) CHECK_NEAR(hidden[i], s->y[0][i], 1e-5 * most, 0);
    if (ml_graph_backward(g, loss, &error)) printf("%s\n", error.text);
    CHECK(g->result == ML_OK);
    s->size = g->size;
    ml_graph_free(g);
}

/* The gradients, and that they are the same numbers however they are computed. */
static void check_setup(setup *s) {
    float *first[PARAMETERS] = {NULL};
    run(s, 1, 0, 0);
    for (int i = 0; i < PARAMETERS; i++) {
        if (!learns(s, i)) continue;
        check_gradient(s, i);
        size_t n = s->p[i].t.rows * s->p[i].t.cols;
        first[i] = (float *)allocate(n, sizeof(float));
        memcpy(first[i], s->p[i].t.grad, n * sizeof(float));
    }
    for (int turn = 0; turn < 4; turn++) {
        run(s, turn == 0 ? 3 : 1, turn == 1 || turn == 3, turn >= 2);
        for (int i = 0; i < PARAMETERS; i++)
            for (size_t j = 0; first[i] && j < s->p[i].t.rows * s->p[i].t.cols; j++)
                CHECK(s->p[i].t.grad[j] == first[i][j]); /* 0 and -0 are equal */
    }
    for (int i = 0; i < PARAMETERS; i++) free(first[i]);
}

static void check_variant(ml_norm norm, ml_mask mask, void (*choose)(setup *s, int variant), int variant) {
    setup s;
    setup_begin(&s, 300 + (uint64_t)variant, norm, mask);
    choose(&s, variant);
    check_setup(&s);
    setup_end(&s);
}

static void choose_place(setup *s, int place) {
    if (place < ML_PLACES) s->places = 1u << place;
}
static void choose_all(setup *s, int variant) {
    s->places = variant & 1 ? (1u << ML_PLACES) - 1 : 0;
    s->with_lora = variant >> 1 & 1;
    s->with_states = variant >> 2 & 1;
    s->twice = variant >> 3 & 1;
    s->no_rope = variant == 8;
    s->with_prefix = variant >> 4;
}

TEST(whole_network) {
    check_variant(ML_NORM_RMS, ML_MASK_CAUSAL, choose_place, ML_PLACES);
    check_variant(ML_NORM_LAYER, ML_MASK_FULL, choose_place, ML_PLACES);
}

TEST(every_place) {
    for (int place = 0; place < ML_PLACES; place++)
        check_variant(place & 1 ? ML_NORM_LAYER : ML_NORM_RMS, place & 2 ? ML_MASK_FULL : ML_MASK_CAUSAL,
                      choose_place, place);
}

TEST(adapters_states_and_two_passes) {
    static const int variants[] = {1, 2, 4, 8, 16, 31};
    for (int i = 0; i < 6; i++) check_variant(ML_NORM_RMS, ML_MASK_CAUSAL, choose_all, variants[i]);
}

/* A window with and without sinks, each kind of bias, both, and all that with a prefix, an adapter and insertions. */
static void choose_keys(setup *s, int variant) {
    s->window = variant & 1 ? 3 : 0;
    s->sinks = variant & 2 ? 2 : 0;
    s->with_bias = variant >> 2 & 3;
    if (variant < 16) return;
    choose_all(s, 31);
}

TEST(windows_sinks_and_biases) {
    static const int variants[] = {1, 3, 4, 8, 12, 7, 11, 15, 16 + 3, 16 + 4, 16 + 11};
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++)
        check_variant(ML_NORM_RMS, i & 1 ? ML_MASK_FULL : ML_MASK_CAUSAL, choose_keys, variants[i]);
}

/* ---- the tape begins where something learns ---- */

/* With the first parts frozen the others have the same gradients, in less memory. */
TEST(frozen_parts_need_no_tape) {
    static const unsigned places[] = {0, 1u << ML_PLACE_BLOCK, 1u << ML_PLACE_EMBEDDING, 1u << ML_PLACE_V};
    for (int turn = 0; turn < 4; turn++) {
        setup all, some;
        setup_begin(&all, 400, ML_NORM_RMS, ML_MASK_CAUSAL);
        all.places = places[turn];
        run(&all, 1, 0, 0);
        for (int frozen = 1; frozen <= LAYERS + 1; frozen++) {
            setup_begin(&some, 400, ML_NORM_RMS, ML_MASK_CAUSAL);
            some.places = places[turn];
            some.n_frozen = frozen;
            for (int checkpointing = 0; checkpointing < 2; checkpointing++) {
                run(&some, 1, 0, checkpointing);
                for (int i = 0; i < PARAMETERS; i++)
                    for (size_t j = 0; learns(&some, i) && j < some.p[i].t.rows * some.p[i].t.cols; j++)
                        CHECK(some.p[i].t.grad[j] == all.p[i].t.grad[j]);
                if (!turn && frozen > 1) CHECK(some.size < all.size);
            }
            setup_end(&some);
        }
        setup_end(&all);
    }
}

/* A graph for the setup, and one pass of it. */
static ml_graph *begin_pass(setup *s, ml_tensor *loss) {
    ml_graph *g;
    set_view(s);
    if (ml_graph_new(NULL, build, s, &g, NULL)) exit(2);
    ml_graph_begin(g, 1);
    *loss = build(g, s);
    return g;
}

TEST(nothing_learns) {
    setup s;
    ml_tensor loss;
    setup_begin(&s, 401, ML_NORM_RMS, ML_MASK_CAUSAL);
    s.n_frozen = LAYERS + 2;
    s.with_states = 1; /* which alone learn nothing */
    ml_graph *g = begin_pass(&s, &loss);
    CHECK(!s.result.grad && !loss.grad);
    CHECK(ml_graph_backward(g, loss, NULL) == ML_OK);
    ml_graph_free(g);
    setup_end(&s);
}

/* Checkpointing calls the insertion of a layer again in the backward pass. */
TEST(calls_of_an_insertion) {
    setup s;
    ml_tensor loss;
    setup_begin(&s, 402, ML_NORM_RMS, ML_MASK_CAUSAL);
    s.places = 1u << ML_PLACE_V | 1u << ML_PLACE_BLOCK;
    ml_graph *g = begin_pass(&s, &loss);
    CHECK(s.calls == 2 * LAYERS);
    CHECK(ml_graph_backward(g, loss, NULL) == ML_OK && s.calls == 2 * LAYERS);
    ml_graph_free(g);
    s.checkpointing = 1;
    g = begin_pass(&s, &loss);
    CHECK(s.calls == 2 * LAYERS);
    CHECK(ml_graph_backward(g, loss, NULL) == ML_OK && s.calls == 3 * LAYERS);
    ml_graph_free(g);
    setup_end(&s);
}

/* A pass over one of the two texts; *batch is for it. */
static ml_llama_desc plain_pass(const setup *s, int text, int checkpointing, ml_batch *batch) {
    ml_llama_desc desc;
    memset(batch, 0, sizeof *batch);
    memset(&desc, 0, sizeof desc);
    batch->tokens = s->tokens[text], batch->n_tokens = TOKENS, batch->row_start = row_start,
    batch->n_rows = ROWS;
    desc.model = s->model, desc.batch = batch, desc.weights = s->view, desc.checkpointing = checkpointing;
    return desc;
}

/* Adds, in the second half of a layer, what a place of the first half had. */
typedef struct halves {
    setup s;
    ml_place from, to;
    int is_y;
    ml_tensor kept;
} halves;

static ml_tensor insert_kept(ml_graph *g, const ml_insertion *at, void *user) {
    halves *h = (halves *)user;
    if (at->place == h->from) return h->kept = h->is_y ? at->y : at->x, at->y;
    return ml_add(g, at->y, ml_scale(g, h->kept, .1f));
}

static ml_tensor build_halves(ml_graph *g, void *user) {
    halves *h = (halves *)user;
    ml_batch batch;
    ml_llama_desc desc = plain_pass(&h->s, 0, h->s.checkpointing, &batch);
    desc.places = 1u << h->from | 1u << h->to, desc.insert = insert_kept, desc.user = h;
    return weighted_sum(g, &h->s, 0, ml_llama(g, &desc));
}

/* The loss and the gradient of the first matrix, with a tape; or the loss alone, without. */
static float halves_loss(halves *h, int checkpointing, int taping, float *gradient) {
    ml_tensor *w = &h->s.p[4].t;
    ml_graph *g;
    h->s.checkpointing = checkpointing;
    memset(w->grad, 0, w->rows * w->cols * sizeof(float));
    set_view(&h->s);
    if (ml_graph_new(NULL, build_halves, h, &g, NULL)) exit(2);
    ml_graph_begin(g, taping);
    ml_tensor y = build_halves(g, h);
    const float loss = y.data ? *(const float *)y.data : -1;
    CHECK((taping ? ml_graph_backward(g, y, NULL) : ml_graph_end(g, NULL)) == ML_OK);
    memcpy(gradient, w->grad, w->rows * w->cols * sizeof(float));
    ml_graph_free(g);
    return loss;
}

/* What a place hands out may be read until its layer is done, also where that is computed without a tape. */
TEST(the_halves_of_a_layer) {
    static const ml_place from[] = {ML_PLACE_Q, ML_PLACE_K, ML_PLACE_V, ML_PLACE_ATTENTION},
                          to[] = {ML_PLACE_W2, ML_PLACE_FFN};
    float first[DIM * DIM], again[DIM * DIM];
    for (int i = 0; i < 16; i++) {
        halves h;
        setup_begin(&h.s, 408, ML_NORM_RMS, ML_MASK_CAUSAL);
        h.from = from[i / 4], h.to = to[i % 2],
        h.is_y = i / 2 % 2 && h.from != ML_PLACE_K && h.from != ML_PLACE_V;
        const size_t size = h.s.p[4].t.rows * h.s.p[4].t.cols * sizeof(float);
        REQUIRE(size <= sizeof first);
        const float loss = halves_loss(&h, 0, 1, first);
        CHECK(halves_loss(&h, 1, 1, again) == loss && memcmp(first, again, size) == 0);
        CHECK(halves_loss(&h, 1, 0, again) == loss && halves_loss(&h, 0, 0, again) == loss);
        setup_end(&h.s);
    }
}

/* Adds a tenth of what a second pass gives, over the same weights. */
static ml_tensor insert_another(ml_graph *g, const ml_insertion *at, void *user) {
    const setup *s = (const setup *)user;
    ml_batch batch;
    ml_llama_desc desc = plain_pass(s, 1, s->twice, &batch);
    return ml_add(g, at->y, ml_scale(g, ml_llama(g, &desc), .1f));
}

static ml_tensor build_nested(ml_graph *g, void *user) {
    setup *s = (setup *)user;
    ml_batch batch;
    ml_llama_desc desc = plain_pass(s, 0, s->checkpointing, &batch);
    desc.places = s->places, desc.insert = insert_another, desc.user = s;
    return weighted_sum(g, s, 0, ml_llama(g, &desc));
}

/* The loss of that, with its gradients in all parameters. */
static float nested_loss(setup *s, int outer, int inner) {
    ml_graph *g;
    float loss;
    s->checkpointing = outer, s->twice = inner;
    for (int i = 0; i < MODEL; i++)
        if (s->p[i].t.data) memset(s->p[i].t.grad, 0, s->p[i].t.rows * s->p[i].t.cols * sizeof(float));
    set_view(s);
    if (ml_graph_new(NULL, build_nested, s, &g, NULL)) exit(2);
    ml_graph_begin(g, 1);
    ml_tensor y = build_nested(g, s);
    loss = y.data ? *(float *)y.data : -1;
    CHECK(ml_graph_backward(g, y, NULL) == ML_OK);
    ml_graph_free(g);
    return loss;
}

/* Adds what learns nothing, and takes more memory than a layer: what a frozen model gives, or a cross-entropy. */
typedef struct constants {
    setup s;
    ml_model *other; /* NULL: the cross-entropy */
    float *head;     /* (MANY, DIM) */
} constants;
enum { MANY = 4096 };

static ml_tensor insert_constant(ml_graph *g, const ml_insertion *at, void *user) {
    constants *c = (constants *)user;
    ml_tensor w = c->s.view[INSERTED + ML_PLACE_FFN * OF_INSERTION];
    ml_batch batch;
    if (c->other) {
        ml_llama_desc desc = plain_pass(&c->s, 1, 0, &batch);
        desc.model = c->other, desc.weights = NULL;
        return ml_add(g, at->y, ml_mul(g, ml_llama(g, &desc), w));
    }
    static const int32_t targets[TOKENS] = {0};
    ml_tensor head = {ML_F32, MANY, DIM, c->head, NULL};
    ml_loss_desc loss;
    memset(&loss, 0, sizeof loss);
    loss.targets = targets;
    ml_tensor x = ml_linear_cross_entropy(g, ml_stop_gradient(g, at->x), head, ml_none(), &loss);
    return ml_add(g, at->y, ml_mul(g, w, x));
}

static ml_tensor build_constant(ml_graph *g, void *user) {
    constants *c = (constants *)user;
    ml_batch batch;
    ml_llama_desc desc = plain_pass(&c->s, 0, c->s.checkpointing, &batch);
    desc.places = 1u << ML_PLACE_FFN, desc.insert = insert_constant, desc.user = c;
    return weighted_sum(g, &c->s, 0, ml_llama(g, &desc));
}

/* What is released within a layer that is computed again was measured, too. */
TEST(constants_inside_of_a_layer) {
    constants c;
    ml_model_create_desc create;
    ml_model *other;
    setup_begin(&c.s, 409, ML_NORM_RMS, ML_MASK_CAUSAL);
    c.s.places = 1u << ML_PLACE_FFN;
    memset(&create, 0, sizeof create);
    create.config = c.s.model->config, create.config.hidden_dim = 4096;
    create.type = ML_F32, create.random = &c.s.random;
    REQUIRE(!ml_model_create(&create, &other, NULL));
    c.head = (float *)allocate(MANY * DIM, sizeof *c.head);
    for (int way = 0; way < 4; way++) {
        ml_graph *g;
        c.other = way / 2 ? NULL : other;
        c.s.checkpointing = way % 2;
        set_view(&c.s);
        REQUIRE(!ml_graph_new(NULL, build_constant, &c, &g, NULL));
        ml_graph_begin(g, 1);
        CHECK(ml_graph_backward(g, build_constant(g, &c), NULL) == ML_OK);
        ml_graph_free(g);
    }
    free(c.head);
    ml_model_free(other);
    setup_end(&c.s);
}

/* A pass inside of a layer of another one: computing layers again changes no bit, whichever does it. */
TEST(a_pass_inside_of_a_pass) {
    static const unsigned places[] = {1u << ML_PLACE_FFN, 1u << ML_PLACE_BLOCK, 1u << ML_PLACE_ATTENTION};
    for (int turn = 0; turn < 3; turn++) {
        setup s;
        float *plain[MODEL] = {NULL};
        setup_begin(&s, 407, ML_NORM_RMS, ML_MASK_CAUSAL);
        s.places = places[turn];
        const float loss = nested_loss(&s, 0, 0);
        for (int i = 0; i < MODEL; i++) {
            size_t size = s.p[i].t.rows * s.p[i].t.cols * sizeof(float);
            if (!s.p[i].t.data) continue;
            plain[i] = (float *)allocate(size, 1);
            memcpy(plain[i], s.p[i].t.grad, size);
        }
        for (int way = 1; way < 4; way++) {
            CHECK(nested_loss(&s, way & 1, way >> 1) == loss);
            for (int i = 0; i < MODEL; i++)
                if (plain[i])
                    CHECK(memcmp(plain[i], s.p[i].t.grad, s.p[i].t.rows * s.p[i].t.cols * sizeof(float)) ==
                          0);
        }
        for (int i = 0; i < MODEL; i++) free(plain[i]);
        setup_end(&s);
    }
}

/* ---- ml_check_gradient of the whole ---- */

/* The windowed network by the public check, with ALiBi, a window and a sink. */
TEST(public_check_with_a_window) {
    setup s;
    ml_tensor loss;
    const ml_tensor *checked[PARAMETERS];
    ml_check_desc desc;
    double worst = 1;
    setup_begin(&s, 406, ML_NORM_RMS, ML_MASK_CAUSAL);
    memset(&desc, 0, sizeof desc);
    desc.build = build, desc.user = &s, desc.tensors = checked, desc.random = &s.random;
    s.window = 4, s.sinks = 1, s.with_bias = 3;
    ml_graph *g = begin_pass(&s, &loss);
    for (int i = 0; i < MODEL; i++)
        if (s.view[i].grad && i != 3) checked[desc.n_tensors++] = &s.view[i];
    CHECK(ml_check_gradient(g, &desc, &worst, NULL) == ML_OK);
    CHECK_NEAR(worst, 0, .01, 0); /* as its comment says */
    ml_graph_free(g);
    setup_end(&s);
}

/* ---- dropout of the attention weights ---- */

/* The gradients are those of the differences; computing a layer again changes nothing. */
TEST(dropout_has_the_right_gradient) {
    setup s;
    ml_tensor loss;
    const ml_tensor *checked[PARAMETERS];
    ml_check_desc desc;
    float expected = 0;
    double worst = 1;
    setup_begin(&s, 405, ML_NORM_RMS, ML_MASK_CAUSAL);
    memset(&desc, 0, sizeof desc);
    desc.build = build, desc.user = &s, desc.tensors = checked, desc.random = &s.random;
    s.dropout = 0.3f, s.seed = 7;
    for (int checkpointing = 0; checkpointing < 2; checkpointing++) {
        s.checkpointing = checkpointing;
        ml_graph *g = begin_pass(&s, &loss);
        if (checkpointing) CHECK(*(float *)loss.data == expected);
        expected = *(float *)loss.data;
        CHECK(fabs((double)expected - plain_loss(&s)) > 0.01); /* something is dropped */
        desc.n_tensors = 0;
        for (int i = 0; i < MODEL; i++)
            if (s.view[i].grad && i != 3) checked[desc.n_tensors++] = &s.view[i];
        CHECK(ml_check_gradient(g, &desc, &worst, NULL) == ML_OK);
        CHECK_NEAR(worst, 0, 0.01, 0);
        ml_graph_free(g);
    }
    setup_end(&s);
}

typedef struct dropped {
    setup *s;
    float ones[TOKENS * KV_DIM], zeros[TOKENS * DIM],
        sums[LAYERS][TOKENS * DIM]; /* sums of the weights that are kept */
    ml_llama_desc desc;
    ml_batch batch;
} dropped;

/* Values of 1: then what attention gives is the sum of its weights. Queries of 0: they are equal in all layers. */
static ml_tensor insert_ones(ml_graph *g, const ml_insertion *at, void *user) {
    dropped *d = (dropped *)user;
    if (at->place == ML_PLACE_V) return ml_input(g, d->ones, TOKENS, KV_DIM);
    if (at->place == ML_PLACE_Q) return ml_input(g, d->zeros, TOKENS, DIM);
    if (!g->measuring) memcpy(d->sums[at->layer], at->x.data, sizeof *d->sums);
    return at->y;
}

static ml_tensor build_dropped(ml_graph *g, void *user) {
    return ml_sum(g, ml_llama(g, &((dropped *)user)->desc));
}

static void find_sums(dropped *d, setup *s, int taping, uint64_t seed) {
    ml_graph *g;
    memset(d, 0, sizeof *d);
    for (int i = 0; i < TOKENS * KV_DIM; i++) d->ones[i] = 1;
    d->s = s;
    d->batch.tokens = s->tokens[0], d->batch.n_tokens = TOKENS;
    d->desc.model = s->model, d->desc.batch = &d->batch;
    d->desc.places = 1u << ML_PLACE_Q | 1u << ML_PLACE_V | 1u << ML_PLACE_O, d->desc.insert = insert_ones,
    d->desc.user = d;
    d->desc.dropout = 0.3f, d->desc.seed = seed;
    if (ml_graph_new(NULL, build_dropped, d, &g, NULL)) exit(2);
    ml_graph_begin(g, taping);
    build_dropped(g, d);
    CHECK(ml_graph_end(g, NULL) == ML_OK);
    ml_graph_free(g);
}

static int same_sums(const float *a, const float *b) { return memcmp(a, b, TOKENS * DIM * sizeof *a) == 0; }

/* Each layer and each seed drops others, and none is dropped where the graph does not tape. The mean of the sums is
   1: of 13 queries in 4 heads and 2 layers in 60 passes; one sum of at most 13 weights has a variance of at most 3 /
   7. */
TEST(each_layer_drops_other_weights) {
    setup s;
    dropped a, b;
    double mean = 0;
    int n = 0;
    setup_begin(&s, 406, ML_NORM_RMS, ML_MASK_FULL);
    find_sums(&a, &s, 0, 5);
    for (int i = 0; i < TOKENS * DIM; i++) CHECK_NEAR(a.sums[1][i], 1, 1e-6, 0);
    find_sums(&a, &s, 1, 5);
    CHECK(!same_sums(a.sums[0], a.sums[1]));
    find_sums(&b, &s, 1, 5);
    for (int i = 0; i < LAYERS; i++) CHECK(same_sums(a.sums[i], b.sums[i]));
    find_sums(&b, &s, 1, 6);
    for (int i = 0; i < LAYERS * LAYERS; i++) CHECK(!same_sums(a.sums[i / LAYERS], b.sums[i % LAYERS]));
    for (uint64_t seed = 0; seed < 60; seed++) {
        find_sums(&b, &s, 1, seed);
        for (int i = 0; i < LAYERS * TOKENS * HEADS; i++, n++)
            mean += (double)b.sums[i % LAYERS][i / LAYERS * SIZE];
    }
    CHECK_NEAR(mean / n, 1, 5 * sqrt(3 / 7.0 / n), 0);
    setup_end(&s);
}

/* ---- the same as a session, and what is refused ---- */

TEST(a_session_gives_the_same_hidden_states) {
    setup s;
    ml_tensor loss;
    ml_session *session;
    float hidden[TOKENS * DIM];
    ml_outputs outputs;
    ml_batch batch;
    setup_begin(&s, 403, ML_NORM_RMS, ML_MASK_FULL);
    memset(&batch, 0, sizeof batch);
    batch.tokens = s.tokens[0], batch.n_tokens = TOKENS, batch.row_start = row_start, batch.n_rows = ROWS;
    memset(&outputs, 0, sizeof outputs);
    outputs.hidden = hidden;
    REQUIRE(ml_session_new(s.model, NULL, &session, NULL) == ML_OK);
    REQUIRE(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
    ml_graph *g = begin_pass(&s, &loss);
    CHECK(memcmp(hidden, s.result.data, sizeof hidden) == 0);
    ml_graph_free(g);
    ml_session_free(session);
    setup_end(&s);
}

static ml_tensor llama_loss(ml_graph *g, void *user) {
    return ml_sum(g, ml_llama(g, (const ml_llama_desc *)user));
}

static int put_into(void *user, const void *data, size_t n) {
    put((bytes *)user, data, n);
    return 1;
}

/* What is read in place must not be written to: an optimizer would end the program. */
TEST(weights_in_a_file_do_not_learn) {
    setup s;
    static const int32_t tokens[] = {1, 2, 3};
    static float grad[16 * VOCAB];
    ml_batch batch;
    ml_llama_desc desc;
    ml_error error;
    size_t size;
    bytes file;
    ml_output output = {put_into, &file};
    ml_save_desc save = save_as(ML_GGUF, ML_F32);
    setup_begin(&s, 404, ML_NORM_RMS, ML_MASK_CAUSAL);
    memset(&file, 0, sizeof file);
    REQUIRE(ml_model_save_to(s.model, &output, &save, &error) == ML_OK);
    for (int type = 0; type < 2; type++) {
        ml_model_load_desc load;
        ml_model *model;
        ml_tensor weights[MODEL];
        memset(&load, 0, sizeof load), memset(&desc, 0, sizeof desc), memset(&batch, 0, sizeof batch);
        load.type = type ? ML_F32 : ML_TYPE_NONE;
        REQUIRE(ml_model_load_memory(file.data, file.size, &load, &model, &error) == ML_OK);
        memcpy(weights, model->tensors, sizeof weights);
        batch.tokens = tokens, batch.n_tokens = 3;
        desc.model = model, desc.batch = &batch, desc.weights = weights;
        CHECK(ml_graph_size(NULL, llama_loss, &desc, &size, &error) == ML_OK); /* frozen */
        weights[0].grad = grad;
        CHECK(ml_graph_size(NULL, llama_loss, &desc, &size, &error) == (type ? ML_OK : ML_ERROR_ARGUMENT));
        CHECK(type || strstr(error.text, "weights[0] has a gradient, but is read-only"));
        weights[0].data = grad; /* a copy of one's own */
        CHECK(ml_graph_size(NULL, llama_loss, &desc, &size, &error) == ML_OK);
        ml_model_free(model);
    }
    free_bytes(&file);
    setup_end(&s);
}

typedef struct refusal {
    setup *s;
    ml_llama_desc desc;
    ml_batch batch;
    int32_t tokens[TOKENS], starts[ROWS + 1];
    int wrong_place; /* what is inserted there has another shape */
} refusal;

static ml_tensor insert_wrongly(ml_graph *g, const ml_insertion *at, void *user) {
    const refusal *r = (const refusal *)user;
    if ((int)at->place != r->wrong_place || at->layer != 1) return at->y;
    return ml_input(g, NULL, at->y.rows, at->y.cols + 1);
}

static ml_tensor build_refused(ml_graph *g, void *user) {
    refusal *r = (refusal *)user;
    return ml_sum(g, ml_llama(g, &r->desc));
}

static void refusal_begin(refusal *r, setup *s) {
    memset(r, 0, sizeof *r);
    r->s = s;
    memcpy(r->tokens, s->tokens[0], sizeof r->tokens);
    memcpy(r->starts, row_start, sizeof r->starts);
    r->batch.tokens = r->tokens, r->batch.n_tokens = TOKENS;
    r->batch.row_start = r->starts, r->batch.n_rows = ROWS;
    r->desc.model = s->model, r->desc.batch = &r->batch;
    r->desc.insert = insert_wrongly, r->desc.user = r;
}

static void check_refused(refusal *r, ml_result code, const char *text) {
    ml_error error;
    size_t size;
    CHECK(ml_graph_size(NULL, build_refused, r, &size, &error) == code);
    if (!strstr(error.text, text)) printf("%s\n", error.text);
    CHECK(strstr(error.text, text) != NULL);
    refusal_begin(r, r->s);
}

TEST(what_does_not_fit_is_refused) {
    setup s;
    refusal r;
    float table[4] = {0};
    ml_tensor weights[MODEL], lora[2 * TARGETS * LAYERS];
    setup_begin(&s, 404, ML_NORM_RMS, ML_MASK_CAUSAL);
    memcpy(weights, s.model->tensors, sizeof weights);
    memcpy(lora, s.lora->tensors, sizeof lora);
    refusal_begin(&r, &s);
    r.tokens[3] = VOCAB;
    check_refused(&r, ML_ERROR_ARGUMENT, "token 3 is 11, outside the vocabulary of 11");
    r.starts[1] = 9;
    check_refused(&r, ML_ERROR_ARGUMENT, "row 1 is empty or runs backwards");
    r.starts[ROWS] = TOKENS + 1;
    check_refused(&r, ML_ERROR_ARGUMENT, "row_start does not run from 0 to n_tokens");
    r.desc.model = NULL;
    check_refused(&r, ML_ERROR_ARGUMENT, "desc.model");
    r.desc.places = 1u << ML_PLACES;
    check_refused(&r, ML_ERROR_ARGUMENT, "places");
    r.desc.places = 2, r.desc.insert = NULL;
    check_refused(&r, ML_ERROR_ARGUMENT, "insert is NULL");
    r.desc.lora_weights = lora;
    check_refused(&r, ML_ERROR_ARGUMENT, "lora_weights without lora");
    r.desc.prefix_keys = lora;
    check_refused(&r, ML_ERROR_ARGUMENT, "prefix_keys and prefix_values");
    r.desc.weights = weights, weights[5].rows = 7, weights[5].data = table;
    check_refused(&r, ML_ERROR_MISMATCH, "weights[5]");
    weights[5] = s.model->tensors[5], weights[6].rows = 7;
    r.desc.weights = weights;
    check_refused(&r, ML_ERROR_MISMATCH, "weights[6] is (7, 16), not (16, 16)");
    weights[6] = s.model->tensors[6], weights[6].type = ML_F16; /* half of what would be read */
    r.desc.weights = weights;
    check_refused(&r, ML_ERROR_ARGUMENT, "weights[6] is F16; it may be F32 or stay F32");
    r.batch.tokens = NULL;
    check_refused(&r, ML_ERROR_ARGUMENT, "batch: tokens is NULL");
    r.desc.lora = s.lora, r.desc.lora_weights = lora, lora[1].cols = 3;
    check_refused(&r, ML_ERROR_MISMATCH, "lora_weights[1] is (16, 3), not (16, 2)");
    r.desc.rope.type = ML_F32, r.desc.rope.data = table, r.desc.rope.rows = 2, r.desc.rope.cols = 2;
    check_refused(&r, ML_ERROR_MISMATCH, "rope is (2, 2), not (positions, 4)");
    r.desc.rope.type = ML_F32, r.desc.rope.data = table, r.desc.rope.rows = 1, r.desc.rope.cols = SIZE;
    check_refused(&r, ML_ERROR_CONTEXT, "row 1 has 8 tokens; the graph's table of rotations is 1");
    r.desc.rope.type = ML_F32, r.desc.rope.data = r.desc.rope.grad = table, r.desc.rope.rows = 1;
    r.desc.rope.cols = SIZE;
    check_refused(&r, ML_ERROR_ARGUMENT, "rope is a constant (see ml_stop_gradient)");
    r.desc.rope.type = ML_F32, r.desc.rope.data = table, r.desc.rope.rows = 1, r.desc.rope.cols = SIZE;
    r.desc.no_rope = 1;
    check_refused(&r, ML_ERROR_ARGUMENT, "rope with no_rope");
    r.desc.places = 1u << ML_PLACE_W2, r.wrong_place = ML_PLACE_W2;
    check_refused(&r, ML_ERROR_MISMATCH, "ML_PLACE_W2 of layer 1 is (13, 17), not (13, 16)");
    r.desc.places = 1u << ML_PLACE_BLOCK, r.wrong_place = ML_PLACE_BLOCK;
    check_refused(&r, ML_ERROR_MISMATCH, "ML_PLACE_BLOCK of layer 1 is (13, 17), not (13, 16)");
    r.desc.dropout = 1;
    check_refused(&r, ML_ERROR_ARGUMENT, "dropout is out of range");
    setup_end(&s);
}

int main(void) {
    RUN(whole_network);
    RUN(every_place);
    RUN(adapters_states_and_two_passes);
    RUN(windows_sinks_and_biases);
    RUN(frozen_parts_need_no_tape);
    RUN(nothing_learns);
    RUN(calls_of_an_insertion);
    RUN(the_halves_of_a_layer);
    RUN(constants_inside_of_a_layer);
    RUN(a_pass_inside_of_a_pass);
    RUN(public_check_with_a_window);
    RUN(dropout_has_the_right_gradient);
    RUN(each_layer_drops_other_weights);
    RUN(a_session_gives_the_same_hidden_states);
    RUN(weights_in_a_file_do_not_learn);
    RUN(what_does_not_fit_is_refused);
    return test_report("test_llama");
}
