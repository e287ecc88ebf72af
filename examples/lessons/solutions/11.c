/* Exercise 11, the assignment's part "lora": two thin matrices beside a frozen one. Hu et al. 2021, "LoRA: Low-Rank
   Adaptation of Large Language Models". All matrices are row-major. */
#include "minillama.h"
#include "examples/lessons/lesson.h"

typedef struct lora {
    int in, out, rank;
    float scale;    /* s = alpha / rank */
    const float *w; /* W (out, in), frozen */
    float *a, *b;   /* A (rank, in), B (out, rank) */
} lora;

/* The numbers that learn. */
static int count(const lora *l) {
    int n = 0;
    /* your turn: of A and of B */
    n = l->rank * (l->in + l->out);
    /* end */
    (void)l;
    return n;
}

/* y (out) = W x + s B (A x), x (in). */
static void forward(const lora *l, const float *x, float *y) {
    /* your turn: first y = W x; then, for each row k of A, c = A_k . x, and y_i += s B_ik c for all i */
    for (int i = 0; i < l->out; i++) {
        y[i] = 0;
        for (int j = 0; j < l->in; j++) y[i] += l->w[i * l->in + j] * x[j];
    }
    for (int k = 0; k < l->rank; k++) {
        float c = 0;
        for (int j = 0; j < l->in; j++) c += l->a[k * l->in + j] * x[j];
        for (int i = 0; i < l->out; i++) y[i] += l->scale * l->b[i * l->rank + k] * c;
    }
    /* end */
}

/* Adds the gradients of A and B to da and db, from dy (out), the gradient of y. W gets none. */
static void backward(const lora *l, const float *x, const float *dy, float *da, float *db) {
    /* your turn: with c = A_k . x and t = sum over i of B_ik dy_i,
       db_ik += s dy_i c, and da_kj += s t x_j */
    for (int k = 0; k < l->rank; k++) {
        float c = 0, t = 0;
        for (int j = 0; j < l->in; j++) c += l->a[k * l->in + j] * x[j];
        for (int i = 0; i < l->out; i++) {
            t += l->b[i * l->rank + k] * dy[i];
            db[i * l->rank + k] += l->scale * dy[i] * c;
        }
        for (int j = 0; j < l->in; j++) da[k * l->in + j] += l->scale * t * x[j];
    }
    /* end */
}

/* merged (out, in) = W + s B A */
static void merge(const lora *l, float *merged) {
    /* your turn */
    for (int i = 0; i < l->out; i++)
        for (int j = 0; j < l->in; j++) {
            float change = 0;
            for (int k = 0; k < l->rank; k++) change += l->b[i * l->rank + k] * l->a[k * l->in + j];
            merged[i * l->in + j] = l->w[i * l->in + j] + l->scale * change;
        }
    /* end */
}

enum { IN = 64, OUT = 64, RANK = 4 }; /* of the header's model */

/* W = 2 x 3, rank 1: A x = 1 * 1 + 0 * 2 + 2 * 3 = 7. */
static void check_by_hand(void) {
    const float w[] = {1, 2, 3, 0, 1, 0}, x[] = {1, 2, 3}, dy[] = {1, -2};
    float a[] = {1, 0, 2}, b[] = {0, 0}, y[2] = {0}, da[3] = {0}, db[2] = {0}, merged[6] = {0};
    lora l = {3, 2, 1, 0.5f, w, a, b};
    printf("W (2, 3), rank 1, s = 0.5:\n");
    check_near(count(&l), 5, 0, "numbers that learn: 3 + 2");
    forward(&l, x, y);
    check_near((double)y[0], 14, 0, "B = 0: y_0 = 1 + 4 + 9, as without an adapter");
    b[0] = 4, b[1] = -1;
    forward(&l, x, y);
    check_near((double)y[0], 28, 0, "B = (4, -1): y_0 = 14 + 0.5 * 4 * 7");
    check_near((double)y[1], -1.5, 0, "B = (4, -1): y_1 = 2 - 0.5 * 7");
    merge(&l, merged);
    check_near((double)merged[2], 7, 0, "merged_02 = 3 + 0.5 * 4 * 2");
    check_near((double)merged[5], -1, 0, "merged_12 = 0 - 0.5 * 2");
    backward(&l, x, dy, da, db);
    check_near((double)db[1], -7, 0, "db_1 = 0.5 * -2 * 7");
    check_near((double)da[2], 9, 0, "da_2 = 0.5 (4 * 1 + -1 * -2) 3");
}

/* Half of |y|^2 has the gradient y: A's and B's by central differences. */
static double loss_of(const lora *l, const float *x, float *y) {
    double sum = 0;
    forward(l, x, y);
    for (int i = 0; i < l->out; i++) sum += 0.5 * (double)y[i] * (double)y[i];
    return sum;
}
static void check_gradient(void) {
    float w[20], a[10], b[8], da[10] = {0}, db[8] = {0}, x[5], y[4] = {0}, h = 0.01f;
    lora l = {5, 4, 2, 1.5f, w, a, b};
    for (int i = 0; i < 20; i++) w[i] = sinf((float)i), a[i % 10] = cosf((float)i);
    for (int i = 0; i < 8; i++) b[i] = sinf((float)(3 * i + 1)), x[i % 5] = cosf((float)(2 * i));
    loss_of(&l, x, y);
    backward(&l, x, y, da, db);
    printf("Gradients beside (loss(w + h) - loss(w - h)) / 2 h:\n");
    for (int i = 0; i < 18; i++) {
        float *w_i = i < 10 ? a + i : b + i - 10, old = *w_i;
        char what[32];
        snprintf(what, sizeof what, "%s number %d", i < 10 ? "A," : "B,", i < 10 ? i : i - 10);
        *w_i = old + h;
        double up = loss_of(&l, x, y);
        *w_i = old - h;
        double down = loss_of(&l, x, y);
        *w_i = old;
        check_near(i < 10 ? (double)da[i] : (double)db[i - 10], (up - down) / (2 * (double)h), 2e-3, what);
    }
}

/* The header merges an adapter whose B is not 0 any more; so does merge, and then W x needs no adapter. */
static void check_header(void) {
    static float w[OUT * IN], merged[OUT * IN], x[IN], y[OUT], plain[OUT];
    ml_config config = {.dim = IN, .hidden_dim = 96, .n_layers = 1, .n_heads = 4, .vocab_size = 32};
    ml_random random;
    ml_model_create_desc fresh = {.random = &random};
    ml_lora_create_desc thin = {.rank = RANK, .alpha = 2, .random = &random};
    ml_model *model;
    ml_lora *adapter;
    fresh.config = config, fresh.config.max_seq_len = 8;
    ml_random_seed(&random, 1);
    if (!check(!ml_model_create(&fresh, &model, NULL), "a model of the header") ||
        !check(!ml_lora_create(model, &thin, &adapter, NULL), "an adapter of the header"))
        return;
    ml_tensor q = {0};
    for (int i = 0; i < model->n_tensors; i++) {
        char name[ML_NAME_SIZE];
        ml_model_tensor_name(model, i, name);
        if (!strcmp(name, "blk.0.attn_q.weight")) q = model->tensors[i];
    }
    lora l = {IN, OUT, RANK, 2.0f / RANK, w, adapter->tensors[0].data, adapter->tensors[1].data};
    for (int i = 0; i < OUT * RANK; i++) l.b[i] = ml_random_normal(&random);
    for (int i = 0; i < IN; i++) x[i] = ml_random_normal(&random);
    memcpy(w, q.data, sizeof w);
    merge(&l, merged);
    forward(&l, x, y);
    ml_lora_merge(adapter, model, NULL);
    double apart = 0, difference = 0;
    for (int i = 0; i < OUT * IN; i++)
        apart = larger(apart, fabs((double)merged[i] - (double)((float *)q.data)[i]));
    check_near(apart, 0, 1e-5, "merge and ml_lora_merge differ by");
    l.w = merged, l.scale = 0;
    forward(&l, x, plain);
    for (int i = 0; i < OUT; i++) difference = larger(difference, fabs((double)plain[i] - (double)y[i]));
    check_near(difference, 0, 1e-4, "merged W x and W x + s B (A x) differ by");
    check(fabs((double)y[0]) > 0, "and y is not 0");
    ml_lora_free(adapter), ml_model_free(model);
}

int main(void) {
    check_by_hand();
    check_gradient();
    check_header();
    return lesson_end();
}
