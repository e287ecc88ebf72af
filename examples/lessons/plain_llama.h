/* The whole Llama and its backward pass in plain loops, one function for each operation: lesson 8 reads the first
   half, lesson 9 the second, and tests/test_plain.c compares minillama.h with both. A matrix is a shape, values v
   and their gradient d. Shapes in comments: n tokens, D width of the stream, H of the feed-forward layer, A query
   heads of hd = D / A numbers, K heads of keys and values, kv = K hd, V pieces. A backward ADDS to d: what is read
   twice gets the sum of two gradients. Everything is in doubles: minillama.h differs by its rounding. */
#ifndef PLAIN_LLAMA_H
#define PLAIN_LLAMA_H
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"
#define PLAIN static inline
typedef struct plain_matrix {
    int rows, cols;
    double *v, *d;
} plain_matrix;

/* Weights in the order of ml_model.tensors: four of the model, then eleven of each layer. (The biases are unused.) */
enum { EMBEDDING, LAST_NORM, LAST_BIAS, OUTPUT, OF_MODEL };
enum { ATTN_NORM, ATTN_BIAS, WQ, WK, WV, WO, FFN_NORM, FFN_BIAS, W1, W2, W3, OF_LAYER, MOST_LAYERS = 8 };

typedef struct plain_layer {
    plain_matrix x, h1, q, k, v;  /* (n, D) the stream, (n, D), (n, D), (n, kv), (n, kv) */
    plain_matrix p, a, mid, h2;   /* (A n, n), (n, D), (n, D) the stream after attention, (n, D) */
    plain_matrix gate, up, inner; /* (n, H) */
} plain_layer;

typedef struct plain_llama {
    ml_config c;
    plain_matrix w[OF_MODEL + OF_LAYER * MOST_LAYERS]; /* (out, in); norms (1, D) */
    plain_layer at[MOST_LAYERS + 1];                   /* at[n_layers].x is the stream after the last layer */
    plain_matrix hidden, logits;                       /* (n, D), (n, V) */
    double *memory, *end; /* `half` values, of weights, then activations; as many gradients in this order */
    size_t half;
} plain_llama;
/* ==== forward ==== */
/* y (n, D) = the rows of table (V, D) that the tokens name */
PLAIN void plain_embed(plain_matrix y, plain_matrix table, const int32_t *tokens) {
    int D = y.cols;
    for (int i = 0; i < y.rows * D; i++) y.v[i] = table.v[tokens[i / D] * D + i % D];
}
/* y (n, out) = x (n, in) w^T, w (out, in) */
PLAIN void plain_linear(plain_matrix y, plain_matrix x, plain_matrix w) {
    for (int t = 0; t < x.rows; t++)
        for (int o = 0; o < w.rows; o++) {
            y.v[t * w.rows + o] = 0;
            for (int i = 0; i < w.cols; i++) y.v[t * w.rows + o] += x.v[t * w.cols + i] * w.v[o * w.cols + i];
        }
}
/* y (n, D) = x (n, D) r w (1, D), r = 1 / sqrt(mean(x^2) + eps) of each row */
PLAIN void plain_rms_norm(plain_matrix y, plain_matrix x, plain_matrix w, const ml_config *c) {
    for (int t = 0, D = x.cols; t < x.rows; t++) {
        double r = 0;
        for (int i = 0; i < D; i++) r += x.v[t * D + i] * x.v[t * D + i] / D;
        for (int i = 0; i < D; i++) y.v[t * D + i] = x.v[t * D + i] / sqrt(r + (double)c->norm_eps) * w.v[i];
    }
}
/* x (n, heads hd): turns pair j of each head of token t by the angle sign t theta^(-2j / hd); a gradient has sign -1 */
PLAIN void plain_rotate(double *x, plain_matrix shape, const ml_config *c, int sign) {
    int hd = c->dim / c->n_heads;
    for (int i = 0; i < shape.rows * shape.cols; i += 2) {
        double position = i / shape.cols / (double)c->rope_scale;
        double angle = sign * position * pow((double)c->rope_theta, -(double)(i % hd) / hd);
        double x0 = x[i], x1 = x[i + 1];
        x[i] = x0 * cos(angle) - x1 * sin(angle);
        x[i + 1] = x0 * sin(angle) + x1 * cos(angle);
    }
}
/* p (n) = e^z / sum(e^z), z (n) shifted so that the largest is 0; p may be z */
PLAIN void plain_softmax(double *p, const double *z, int n) {
    double largest = z[0], sum = 0;
    for (int i = 0; i < n; i++) largest = fmax(largest, z[i]);
    for (int i = 0; i < n; i++) sum += p[i] = exp(z[i] - largest);
    for (int i = 0; i < n; i++) p[i] /= sum;
}
/* Head by head: p (A n, n) = softmax(q k^T / sqrt(hd)) over the keys that a token sees, 0 for the others;
   a (n, D) = p v. A / K heads read the same keys and values. */
PLAIN void plain_attention(const plain_layer *l, const ml_config *c) {
    int n = l->q.rows, kv = l->k.cols, hd = c->dim / c->n_heads;
    for (int head = 0; head < c->n_heads; head++)
        for (int t = 0; t < n; t++) {
            int own = t * c->dim + head * hd, first = head * c->n_kv_heads / c->n_heads * hd;
            int seen = c->mask == ML_MASK_CAUSAL ? t + 1 : n;
            double *p = l->p.v + (head * n + t) * n;
            memset(p, 0, (size_t)n * sizeof *p), memset(l->a.v + own, 0, (size_t)hd * sizeof(double));
            for (int u = 0; u < seen; u++)
                for (int j = 0; j < hd; j++) p[u] += l->q.v[own + j] * l->k.v[u * kv + first + j] / sqrt(hd);
            plain_softmax(p, p, seen);
            for (int u = 0; u < seen; u++)
                for (int j = 0; j < hd; j++) l->a.v[own + j] += p[u] * l->v.v[u * kv + first + j];
        }
}
/* y = silu(gate) * up, silu(x) = x / (1 + e^-x); all (n, H) */
PLAIN void plain_swiglu(plain_matrix y, plain_matrix gate, plain_matrix up) {
    for (int i = 0; i < y.rows * y.cols; i++) y.v[i] = gate.v[i] / (1 + exp(-gate.v[i])) * up.v[i];
}
/* y += x, a residual connection: of values forward, of gradients backward */
PLAIN void plain_add(double *y, const double *x, plain_matrix shape) {
    for (int i = 0; i < shape.rows * shape.cols; i++) y[i] += x[i];
}
/* One layer: the next one's x from l->x, both (n, D). */
PLAIN void plain_layer_forward(const plain_layer *l, const plain_matrix *w, const ml_config *c) {
    plain_rms_norm(l->h1, l->x, w[ATTN_NORM], c);
    plain_linear(l->q, l->h1, w[WQ]), plain_linear(l->k, l->h1, w[WK]), plain_linear(l->v, l->h1, w[WV]);
    plain_rotate(l->q.v, l->q, c, 1), plain_rotate(l->k.v, l->k, c, 1);
    plain_attention(l, c);
    plain_linear(l->mid, l->a, w[WO]);
    plain_add(l->mid.v, l->x.v, l->x);
    plain_rms_norm(l->h2, l->mid, w[FFN_NORM], c);
    plain_linear(l->gate, l->h2, w[W1]), plain_linear(l->up, l->h2, w[W3]);
    plain_swiglu(l->inner, l->gate, l->up);
    plain_linear(l[1].x, l->inner, w[W2]);
    plain_add(l[1].x.v, l->mid.v, l->mid);
}
/* m->logits (n, V) of n tokens, the n of plain_new */
PLAIN void plain_forward(plain_llama *m, const int32_t *tokens) {
    plain_embed(m->at[0].x, m->w[EMBEDDING], tokens);
    for (int l = 0; l < m->c.n_layers; l++)
        plain_layer_forward(&m->at[l], m->w + OF_MODEL + OF_LAYER * l, &m->c);
    plain_rms_norm(m->hidden, m->at[m->c.n_layers].x, m->w[LAST_NORM], &m->c);
    plain_linear(m->logits, m->hidden, m->w[OUTPUT]);
}
/* ==== backward: the same operations in the opposite order ==== */
/* The sum of -log softmax(logits)[target] over n rows / divisor; logits' d (n, V) = (softmax - one-hot) / divisor */
PLAIN double plain_cross_entropy(plain_matrix logits, const int32_t *targets, double divisor) {
    double loss = 0;
    for (int t = 0, V = logits.cols; t < logits.rows; t++) {
        double *d = logits.d + t * V;
        plain_softmax(d, logits.v + t * V, V);
        loss -= log(d[targets[t]]) / divisor;
        d[targets[t]] -= 1;
        for (int i = 0; i < V; i++) d[i] /= divisor;
    }
    return loss;
}
/* dx (n, in) += dy (n, out) w; dw (out, in) += dy^T x */
PLAIN void plain_linear_backward(plain_matrix y, plain_matrix x, plain_matrix w) {
    for (int t = 0; t < x.rows; t++)
        for (int o = 0; o < w.rows; o++)
            for (int i = 0; i < w.cols; i++) {
                x.d[t * w.cols + i] += y.d[t * w.rows + o] * w.v[o * w.cols + i];
                w.d[o * w.cols + i] += y.d[t * w.rows + o] * x.v[t * w.cols + i];
            }
}
/* dw += dy x r; dx += r (dy w - x r^2 mean(dy w x)), the second part because r depends on x, too */
PLAIN void plain_rms_norm_backward(plain_matrix y, plain_matrix x, plain_matrix w, const ml_config *c) {
    for (int t = 0, D = x.cols; t < x.rows; t++) {
        double *v = x.v + t * D, *dx = x.d + t * D, *dy = y.d + t * D, mean = 0, r = 0;
        for (int i = 0; i < D; i++) r += v[i] * v[i] / D, mean += dy[i] * w.v[i] * v[i] / D;
        r = 1 / sqrt(r + (double)c->norm_eps);
        for (int i = 0; i < D; i++)
            w.d[i] += dy[i] * v[i] * r, dx[i] += r * (dy[i] * w.v[i] - v[i] * r * r * mean);
    }
}
/* dp = da v^T; ds = p (dp - sum(p dp)) / sqrt(hd), 0 where p is; dq += ds k, dk += ds^T q, dv += p^T da */
PLAIN void plain_attention_backward(const plain_layer *l, const ml_config *c) {
    int n = l->q.rows, kv = l->k.cols, hd = c->dim / c->n_heads;
    for (int head = 0; head < c->n_heads; head++)
        for (int t = 0; t < n; t++) {
            int own = t * c->dim + head * hd, first = head * c->n_kv_heads / c->n_heads * hd;
            const double *p = l->p.v + (head * n + t) * n;
            double *dp = l->p.d + (head * n + t) * n, sum = 0;
            for (int u = 0; u < n; u++) {
                for (int j = 0; j < hd; j++) dp[u] += l->a.d[own + j] * l->v.v[u * kv + first + j];
                sum += p[u] * dp[u];
            }
            for (int u = 0; u < n; u++)
                for (int j = 0, key = u * kv + first; j < hd; j++, key++) {
                    double ds = p[u] * (dp[u] - sum) / sqrt(hd);
                    l->q.d[own + j] += ds * l->k.v[key];
                    l->k.d[key] += ds * l->q.v[own + j];
                    l->v.d[key] += p[u] * l->a.d[own + j];
                }
        }
}
/* silu'(x) = s (1 + x (1 - s)), s = 1 / (1 + e^-x) */
PLAIN void plain_swiglu_backward(plain_matrix y, plain_matrix gate, plain_matrix up) {
    for (int i = 0; i < y.rows * y.cols; i++) {
        double s = 1 / (1 + exp(-gate.v[i]));
        gate.d[i] += y.d[i] * up.v[i] * s * (1 + gate.v[i] * (1 - s));
        up.d[i] += y.d[i] * gate.v[i] * s;
    }
}
/* One layer: l->x.d from the next one's (n, D), and the gradients of its weights. */
PLAIN void plain_layer_backward(const plain_layer *l, const plain_matrix *w, const ml_config *c) {
    plain_add(l->mid.d, l[1].x.d, l->mid);
    plain_linear_backward(l[1].x, l->inner, w[W2]);
    plain_swiglu_backward(l->inner, l->gate, l->up);
    plain_linear_backward(l->up, l->h2, w[W3]), plain_linear_backward(l->gate, l->h2, w[W1]);
    plain_rms_norm_backward(l->h2, l->mid, w[FFN_NORM], c);
    plain_add(l->x.d, l->mid.d, l->x);
    plain_linear_backward(l->mid, l->a, w[WO]);
    plain_attention_backward(l, c);
    plain_rotate(l->q.d, l->q, c, -1), plain_rotate(l->k.d, l->k, c, -1);
    plain_linear_backward(l->q, l->h1, w[WQ]), plain_linear_backward(l->k, l->h1, w[WK]);
    plain_linear_backward(l->v, l->h1, w[WV]);
    plain_rms_norm_backward(l->h1, l->x, w[ATTN_NORM], c);
}
/* After plain_forward of the same tokens: the loss; adds its gradient to that of the weights. */
PLAIN double plain_backward(plain_llama *m, const int32_t *tokens, const int32_t *targets, double divisor) {
    plain_matrix first = m->at[0].x, last = m->at[m->c.n_layers].x;
    memset(first.d, 0, (size_t)(m->end - first.v) * sizeof(double)); /* of all activations */
    double loss = plain_cross_entropy(m->logits, targets, divisor);
    plain_linear_backward(m->logits, m->hidden, m->w[OUTPUT]);
    plain_rms_norm_backward(m->hidden, last, m->w[LAST_NORM], &m->c);
    for (int l = m->c.n_layers; l-- > 0;)
        plain_layer_backward(&m->at[l], m->w + OF_MODEL + OF_LAYER * l, &m->c);
    for (int i = 0; i < first.rows * m->c.dim; i++)
        m->w[EMBEDDING].d[tokens[i / m->c.dim] * m->c.dim + i % m->c.dim] += first.d[i];
    return loss;
}
/* ==== memory ==== */
PLAIN plain_matrix plain_take(plain_llama *m, int rows, int cols) {
    plain_matrix y = {rows, cols, m->end, m->end + m->half};
    return m->end += rows * cols, y;
}
/* A copy of a model with room for n tokens; 0 for one that is not a plain Llama in F32. Free m->memory. */
PLAIN int plain_new(plain_llama *m, const ml_model *model, int n) {
    const ml_config *c = &model->config;
    int D = c->dim, H = c->hidden_dim, A = c->n_heads, kv = D / A * c->n_kv_heads;
    int all = 10 * n * (c->n_layers + 1) * (D + H + A * n + c->vocab_size); /* activations, generously */
    if (c->n_layers > MOST_LAYERS || c->norm != ML_NORM_RMS || c->window || c->attention_bias ||
        (c->head_dim && c->head_dim != D / A) || c->rope_kind != ML_ROPE_PLAIN || model->rope_factors)
        return 0;
    m->c = *c, m->half = (size_t)model->n_parameters + (size_t)all;
    if (!(m->end = m->memory = (double *)calloc(2 * m->half, sizeof(double)))) return 0;
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        int tied = i == OUTPUT && c->tied_output, rows = t->data ? (int)t->rows : 0, cols = (int)t->cols;
        if (rows && t->type != ML_F32) return free(m->memory), 0;
        m->w[i] = tied ? m->w[EMBEDDING] : plain_take(m, rows, cols); /* tied: one gradient for both */
        for (int j = 0; j < rows * cols; j++) m->w[i].v[j] = (double)((const float *)t->data)[j];
    }
    for (plain_layer *l = m->at; l <= m->at + c->n_layers; l++) {
        l->x = plain_take(m, n, D), l->h1 = plain_take(m, n, D), l->h2 = plain_take(m, n, D);
        l->q = plain_take(m, n, D), l->k = plain_take(m, n, kv), l->v = plain_take(m, n, kv);
        l->p = plain_take(m, A * n, n), l->a = plain_take(m, n, D), l->mid = plain_take(m, n, D);
        l->gate = plain_take(m, n, H), l->up = plain_take(m, n, H), l->inner = plain_take(m, n, H);
    }
    return m->hidden = plain_take(m, n, D), m->logits = plain_take(m, n, c->vocab_size), 1;
}
#endif
