/* A network learns exclusive or: autograd from scratch, on a graph of operations.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/xor.c -o xor -lm && ./xor */
#include <stdio.h>
#include "minillama.h"

enum { HIDDEN = 8, STEPS = 300 };
static float inputs[4][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, outputs[4] = {0, 1, 1, 0};

typedef struct network {
    ml_tensor x, target, w1, b1, w2, b2;
    ml_tensor y; /* what the last pass computed */
} network;

static ml_tensor loss_of(ml_graph *g, void *user) {
    network *n = user;
    ml_tensor h = ml_tanh(g, ml_linear(g, n->x, n->w1, n->b1)); /* (4, HIDDEN) */
    n->y = ml_sigmoid(g, ml_linear(g, h, n->w2, n->b2));        /* (4, 1) */
    return ml_squared_error(g, n->y, n->target, 0);
}

int main(void) {
    float w1[HIDDEN][2], b1[HIDDEN] = {0}, w2[HIDDEN], b2[1] = {0}, loss = 1;
    network n = {{ML_F32, 4, 2, inputs, NULL},
                 {ML_F32, 4, 1, outputs, NULL},
                 {ML_F32, HIDDEN, 2, w1, NULL},
                 {ML_F32, 1, HIDDEN, b1, NULL},
                 {ML_F32, 1, HIDDEN, w2, NULL},
                 {ML_F32, 1, 1, b2, NULL},
                 {0}};
    ml_parameter learned[] = {{&n.w1, 0}, {&n.b1, 0}, {&n.w2, 0}, {&n.b2, 0}};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = 4, .adamw = {.lr = 0.05f}};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_error error;
    ml_random random;
    ml_random_seed(&random, 1);
    for (int i = 0; i < 2 * HIDDEN; i++) w1[i / 2][i % 2] = ml_random_normal(&random);
    for (int i = 0; i < HIDDEN; i++) w2[i] = 0.5f * ml_random_normal(&random);
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, &n, &g, &error);
    for (int step = 1; ok && step <= STEPS; step++) {
        ml_graph_begin(g, 1);
        ml_tensor l = loss_of(g, &n);
        ok = !ml_graph_backward(g, l, &error) && !ml_optimizer_step(optimizer, &error);
        if (ok) loss = *(float *)l.data;
        if (ok && step % 50 == 0) printf("step %d: loss %.4f\n", step, (double)loss);
    }
    for (int i = 0; ok && i < 4; i++)
        printf("%g xor %g = %.3f\n", (double)inputs[i][0], (double)inputs[i][1],
               (double)((float *)n.y.data)[i]);
    if (!ok) fprintf(stderr, "%s\n", error.text);
    ml_graph_free(g);
    ml_optimizer_free(optimizer);
    return !ok || loss > 0.01f;
}
