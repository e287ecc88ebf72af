/* A language model of one's own, of operations only: a small GPT (Radford et al. 2018) over the bytes of a text, which
   it then continues. Half a minute for 600 steps.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/characters.c -o characters -lm
   ./characters TEXT [STEPS [FIRST WORDS]] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum {
    BYTES = 256,
    DIM = 64,
    HEADS = 4,
    LAYERS = 2,
    CONTEXT = 64,
    ROWS = 8,
    N = ROWS * CONTEXT,
    SAMPLE = 300
};
enum { NORM1, QKV, OUT, NORM2, UP, DOWN, PER_LAYER }; /* the parameters of a layer */
enum { EMBEDDING, POSITIONS, NORM, FIRST, PARAMETERS = FIRST + LAYERS * PER_LAYER };

typedef struct gpt {
    ml_tensor p[PARAMETERS];
    int32_t tokens[N], positions[N], targets[N], row_start[ROWS + 1];
    int n_rows, row; /* in this pass: rows of `row` tokens each */
    ml_tensor logits;
} gpt;

/* x + attention(norm(x)), then x + mlp(norm(x)) */
static ml_tensor layer(ml_graph *g, ml_tensor x, const ml_tensor *p, ml_rows rows) {
    ml_tensor none = ml_none(), h = ml_linear(g, ml_rms_norm(g, x, p[NORM1], 1e-5f), p[QKV], none);
    ml_attention_desc a = {.n_heads = HEADS, .rows = rows};
    a.q = ml_slice(g, h, ML_COLS, 0, DIM);
    a.k = ml_slice(g, h, ML_COLS, DIM, 2 * DIM);
    a.v = ml_slice(g, h, ML_COLS, 2 * DIM, 3 * DIM);
    x = ml_add(g, x, ml_linear(g, ml_attention(g, &a), p[OUT], none));
    h = ml_gelu(g, ml_linear(g, ml_rms_norm(g, x, p[NORM2], 1e-5f), p[UP], none));
    return ml_add(g, x, ml_linear(g, h, p[DOWN], none));
}

/* The loss of a pass, with the logits (n, BYTES) in m->logits. */
static ml_tensor loss_of(ml_graph *g, void *user) {
    gpt *m = user;
    size_t n = (size_t)(m->n_rows * m->row);
    ml_rows rows = {m->row_start, m->n_rows};
    ml_loss_desc loss = {.targets = m->targets};
    ml_tensor x = ml_gather(g, m->p[EMBEDDING], m->tokens, n);
    x = ml_add(g, x, ml_gather(g, m->p[POSITIONS], m->positions, n));
    for (int i = 0; i < LAYERS; i++) x = layer(g, x, m->p + FIRST + i * PER_LAYER, rows);
    m->logits = ml_linear(g, ml_rms_norm(g, x, m->p[NORM], 1e-5f), m->p[EMBEDDING], ml_none());
    return ml_cross_entropy(g, m->logits, &loss);
}

/* Matrices are random, norms 1. */
static void make(gpt *m, float *numbers, ml_random *random) {
    static const size_t rows[PER_LAYER] = {1, 3 * DIM, DIM, 1, 4 * DIM, DIM},
                        cols[PER_LAYER] = {DIM, DIM, DIM, DIM, DIM, 4 * DIM};
    for (int i = 0; i < PARAMETERS; i++) {
        size_t k = (size_t)(i - FIRST + PER_LAYER) % PER_LAYER;
        ml_tensor t = {ML_F32,
                       i < FIRST ? (i == NORM        ? 1
                                    : i == POSITIONS ? CONTEXT
                                                     : BYTES)
                                 : rows[k],
                       i < FIRST ? DIM : cols[k], numbers, NULL};
        m->p[i] = t;
        for (size_t j = 0; j < t.rows * t.cols; j++)
            *numbers++ = t.rows == 1 ? 1 : 0.05f * ml_random_normal(random);
    }
}

/* Rows of `row` tokens. */
static void set_rows(gpt *m, int n_rows, int row) {
    m->n_rows = n_rows, m->row = row;
    for (int i = 0; i <= n_rows; i++) m->row_start[i] = i * row;
    for (int i = 0; i < n_rows * row; i++) m->positions[i] = i % row;
}

static int train(gpt *m, ml_graph *g, ml_optimizer *o, const char *text, size_t size, int steps,
                 ml_random *random, ml_error *error) {
    double sum = 0;
    set_rows(m, ROWS, CONTEXT);
    for (int step = 1; step <= steps; step++) {
        for (int i = 0; i < N; i += CONTEXT) {
            const char *from = text + ml_random_u64(random) % (size - CONTEXT);
            for (int k = 0; k < CONTEXT; k++)
                m->tokens[i + k] = (unsigned char)from[k], m->targets[i + k] = (unsigned char)from[k + 1];
        }
        ml_graph_begin(g, 1);
        ml_tensor loss = loss_of(g, m);
        if (ml_graph_backward(g, loss, error) || ml_optimizer_step(o, error)) return 0;
        sum += (double)*(float *)loss.data;
        if (step % 50 && step != steps) continue;
        int since = step % 50 ? step % 50 : 50;
        printf("step %d: loss %.3f\n", step, sum / since), sum = 0;
        fflush(stdout);
    }
    return 1;
}

/* Continues the text by drawing from softmax(logits / 0.7); reads the last CONTEXT bytes anew for each. */
static int sample(gpt *m, ml_graph *g, const char *text, ml_random *random, ml_error *error) {
    char said[SAMPLE + CONTEXT];
    size_t n = strlen(text) < CONTEXT ? strlen(text) : CONTEXT;
    memcpy(said, text, n);
    for (size_t end = n + SAMPLE - 1; n < end; n++) {
        int row = n < CONTEXT ? (int)n : CONTEXT, next = 0;
        set_rows(m, 1, row);
        for (int i = 0; i < row; i++)
            m->tokens[i] = (unsigned char)said[n - (size_t)(row - i)], m->targets[i] = -1;
        ml_graph_begin(g, 0);
        loss_of(g, m);
        ml_tensor p = ml_softmax(
            g, ml_scale(g, ml_slice(g, m->logits, ML_ROWS, (size_t)row - 1, (size_t)row), 1 / 0.7f));
        if (ml_graph_end(g, error)) return 0;
        float u = ml_random_uniform(random), *share = p.data;
        while (next < BYTES - 1 && (u -= share[next]) >= 0) next++;
        said[n] = (char)next;
    }
    return printf("%.*s\n", (int)n, said) > 0;
}

int main(int argc, char **argv) {
    static char text[1 << 20]; /* of a longer file only the beginning is used */
    static float numbers[(BYTES + CONTEXT + 1) * DIM + LAYERS * (12 * DIM * DIM + 2 * DIM)];
    static gpt m;
    int steps = argc > 2 ? atoi(argv[2]) : 600;
    if (argc < 2 || argc > 4 || steps < 1)
        return fprintf(stderr, "usage: characters TEXT [STEPS [FIRST WORDS]]\n"), 2;
    FILE *file = fopen(argv[1], "rb");
    if (!file) return perror(argv[1]), 1;
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    if (size <= 2 * CONTEXT) return fprintf(stderr, "%s: too short a text\n", argv[1]), 1;
    ml_parameter learned[PARAMETERS];
    for (int i = 0; i < PARAMETERS; i++) learned[i].tensor = &m.p[i], learned[i].group = 0;
    ml_optimizer_desc how = {.parameters = learned,
                             .n_parameters = PARAMETERS,
                             .adamw = {.lr = 3e-3f, .clip = 1},
                             .schedule = {ML_DECAY_COSINE, steps / 20, steps, 0.1f}};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error = {ML_OK, ""};
    ml_random random;
    ml_random_seed(&random, 1);
    make(&m, numbers, &random);
    set_rows(&m, ROWS, CONTEXT);
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, &m, &g, &error) &&
             train(&m, g, optimizer, text, size, steps, &random, &error) &&
             sample(&m, g, argc > 3 && *argv[3] ? argv[3] : "The ", &random, &error);
    if (!ok) fprintf(stderr, "%s\n", *error.text ? error.text : "cannot write");
    ml_graph_free(g);
    ml_optimizer_free(optimizer);
    return !ok;
}
