/* A language model of one's own, of operations only: a small GPT (Radford et al. 2018) over the bytes of a text, which
   it then continues. Half a minute for 600 steps.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/characters.c -o characters -lm
   ./characters TEXT [STEPS [FIRST_WORDS]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

enum { BYTES = 256, DIM = 64, HEADS = 4, LAYERS = 2, CONTEXT = 64, ROWS = 8, N = ROWS * CONTEXT };
enum { QKV, OUT, UP, DOWN, PER_LAYER }; /* the matrices of a layer */
enum { EMBEDDING, POSITIONS, FIRST, MATRICES = FIRST + LAYERS * PER_LAYER };

typedef struct gpt {
    ml_tensor w[MATRICES], logits;
    int32_t tokens[N], positions[N], targets[N], row_start[ROWS + 1], n_rows;
    float numbers[(BYTES + CONTEXT + 12 * LAYERS * DIM) * DIM]; /* of the matrices */
    char text[1 << 20];                                         /* of a longer file only the beginning */
    size_t size, used;
    ml_random random;
} gpt;

static ml_tensor random_matrix(gpt *m, size_t rows, size_t cols) {
    ml_tensor w = {ML_F32, rows, cols, m->numbers + m->used, NULL};
    for (size_t i = 0; i < rows * cols; i++) m->numbers[m->used++] = 0.05f * ml_random_normal(&m->random);
    return w;
}

static ml_tensor norm(ml_graph *g, ml_tensor x) { return ml_rms_norm(g, x, ml_none(), 1e-5f); }

/* x + attention(norm(x)), then x + mlp(norm(x)) */
static ml_tensor layer(ml_graph *g, ml_tensor x, const ml_tensor *w, ml_rows rows) {
    ml_tensor none = ml_none(), h = ml_linear(g, norm(g, x), w[QKV], none);
    ml_attention_desc a = {.n_heads = HEADS, .rows = rows};
    a.q = ml_slice(g, h, ML_COLS, 0, DIM);
    a.k = ml_slice(g, h, ML_COLS, DIM, 2 * DIM);
    a.v = ml_slice(g, h, ML_COLS, 2 * DIM, 3 * DIM);
    x = ml_add(g, x, ml_linear(g, ml_attention(g, &a), w[OUT], none));
    h = ml_gelu(g, ml_linear(g, norm(g, x), w[UP], none));
    return ml_add(g, x, ml_linear(g, h, w[DOWN], none));
}

/* The loss of a pass, with the logits (n, BYTES) in m->logits. */
static ml_tensor loss_of(ml_graph *g, void *user) {
    gpt *m = user;
    size_t n = (size_t)m->row_start[m->n_rows];
    ml_rows rows = {m->row_start, m->n_rows};
    ml_loss_desc loss = {.targets = m->targets};
    ml_tensor x = ml_gather(g, m->w[EMBEDDING], m->tokens, n);
    x = ml_add(g, x, ml_gather(g, m->w[POSITIONS], m->positions, n));
    for (int i = 0; i < LAYERS; i++) x = layer(g, x, m->w + FIRST + i * PER_LAYER, rows);
    m->logits = ml_linear(g, norm(g, x), m->w[EMBEDDING], ml_none());
    return ml_cross_entropy(g, m->logits, &loss);
}

static int train(gpt *m, ml_graph *g, ml_optimizer *optimizer, int steps, ml_error *error) {
    size_t at = 0;
    for (int step = 1; step <= steps; step++) {
        for (int i = 0; i < N; i++) { /* rows are pieces of the text, and the target of a byte the next one */
            if (i % CONTEXT == 0) at = ml_random_u64(&m->random) % (m->size - CONTEXT);
            m->tokens[i] = (unsigned char)m->text[at];
            m->targets[i] = (unsigned char)m->text[++at];
        }
        ml_graph_begin(g, 1);
        ml_tensor loss = loss_of(g, m);
        if (ml_graph_backward(g, loss, error) || ml_optimizer_step(optimizer, error)) return 0;
        if (step % 50 == 0) printf("step %d: loss %.3f\n", step, (double)*(float *)loss.data), fflush(stdout);
    }
    return 1;
}

/* Continues a text by drawing from softmax(logits / 0.7); reads the last CONTEXT bytes anew for each. */
static int sample(gpt *m, ml_graph *g, const char *text, ml_error *error) {
    size_t n = 0, length = strlen(text), from = length > CONTEXT ? length - CONTEXT : 0;
    for (fputs(text, stdout); text[from + n]; n++) m->tokens[n] = (unsigned char)text[from + n];
    for (int i = 0, next = 0; i < 300; i++, next = 0) {
        m->n_rows = 1, m->row_start[1] = (int32_t)n;
        ml_graph_begin(g, 0);
        loss_of(g, m);
        ml_tensor last = ml_slice(g, m->logits, ML_ROWS, n - 1, n);
        ml_tensor p = ml_softmax(g, ml_scale(g, last, 1 / 0.7f));
        if (ml_graph_end(g, error)) return 0;
        float u = ml_random_uniform(&m->random), *share = p.data;
        while (next < BYTES - 1 && (u -= share[next]) >= 0) next++;
        if (n == CONTEXT) memmove(m->tokens, m->tokens + 1, --n * sizeof *m->tokens);
        putchar(next), m->tokens[n++] = next;
    }
    return putchar('\n'), 1;
}

int main(int argc, char **argv) {
    static gpt m;
    char *end = argc > 2 ? argv[2] : "600";
    long steps = strtol(end, &end, 10);
    if (argc < 2 || argc > 4 || *end || steps < 1 || steps > INT32_MAX)
        return fprintf(stderr, "usage: characters TEXT [STEPS [FIRST_WORDS]]\n"), 2;
    FILE *file = fopen(argv[1], "rb");
    m.size = file ? fread(m.text, 1, sizeof m.text, file) : 0;
    if (!file || ferror(file)) return perror(argv[1]), 1;
    if (m.size <= CONTEXT) return fprintf(stderr, "%s: too short a text\n", argv[1]), 1;
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error;
    ml_random_seed(&m.random, 1);
    m.w[EMBEDDING] = random_matrix(&m, BYTES, DIM), m.w[POSITIONS] = random_matrix(&m, CONTEXT, DIM);
    for (ml_tensor *w = m.w + FIRST; w < m.w + MATRICES; w += PER_LAYER)
        w[QKV] = random_matrix(&m, 3 * DIM, DIM), w[OUT] = random_matrix(&m, DIM, DIM),
        w[UP] = random_matrix(&m, 4 * DIM, DIM), w[DOWN] = random_matrix(&m, DIM, 4 * DIM);
    ml_parameter learned[MATRICES];
    for (int i = 0; i < MATRICES; i++) learned[i] = (ml_parameter){&m.w[i], 0};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = MATRICES, .adamw = {.lr = 2e-3f}};
    m.n_rows = ROWS;
    for (int i = 0; i < N; i++) m.positions[i] = i % CONTEXT, m.row_start[i / CONTEXT + 1] = i + 1;
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, &m, &g, &error) &&
             train(&m, g, optimizer, (int)steps, &error) &&
             sample(&m, g, argc > 3 && *argv[3] ? argv[3] : "The ", &error);
    if (!ok) fprintf(stderr, "%s\n", error.text);
    ml_graph_free(g), ml_optimizer_free(optimizer), fclose(file);
    return fflush(stdout) || ferror(stdout) ? perror("standard output"), 1 : !ok;
}
