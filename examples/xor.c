/* A network learns exclusive or: autograd from scratch, on a graph of operations.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/xor.c -o xor -lm && ./xor */
#include <stdio.h>
#include "minillama.h"

enum { H = 8 }; /* hidden numbers */
static float inputs[] = {0, 0, 0, 1, 1, 0, 1, 1}, outputs[] = {0, 1, 1, 0}, weights[3 * H], biases[H + 1];
static ml_tensor w1 = {ML_F32, H, 2, weights, NULL}, b1 = {ML_F32, 1, H, biases, NULL},
                 w2 = {ML_F32, 1, H, weights + 2 * H, NULL}, b2 = {ML_F32, 1, 1, biases + H, NULL};

static ml_tensor loss_of(ml_graph *g, void *user) {
    ml_tensor x = {ML_F32, 4, 2, inputs, NULL}, target = {ML_F32, 4, 1, outputs, NULL}, *y = user;
    ml_tensor h = ml_tanh(g, ml_linear(g, x, w1, b1)); /* (4, H) */
    *y = ml_sigmoid(g, ml_linear(g, h, w2, b2));       /* (4, 1) */
    return ml_squared_error(g, *y, target, 0);
}

int main(void) {
    ml_parameter learned[4] = {{&w1, 0}, {&b1, 0}, {&w2, 0}, {&b2, 0}};
    ml_optimizer_desc how = {.parameters = learned, .n_parameters = 4, .adamw = {.lr = 0.05f}};
    ml_optimizer *optimizer = NULL;
    ml_graph *g = NULL;
    ml_tensor y;
    ml_error error;
    ml_random random;
    ml_random_seed(&random, 1);
    for (int i = 0; i < 3 * H; i++) weights[i] = ml_random_normal(&random);
    int ok = !ml_optimizer_new(&how, &optimizer, &error) && !ml_graph_new(NULL, loss_of, &y, &g, &error);
    for (int step = 1; ok && step <= 300; step++) {
        ml_graph_begin(g, 1);
        ml_tensor loss = loss_of(g, &y);
        ok = !ml_graph_backward(g, loss, &error) && !ml_optimizer_step(optimizer, &error);
        if (ok && step % 50 == 0) printf("step %d: loss %.4f\n", step, (double)*(float *)loss.data);
    }
    for (int i = 0; ok && i < 4; i++)
        printf("%d xor %d = %.3f\n", i / 2, i % 2, (double)((float *)y.data)[i]);
    if (!ok) fprintf(stderr, "%s\n", error.text);
    ml_graph_free(g), ml_optimizer_free(optimizer);
    return fflush(stdout) || ferror(stdout) ? perror("standard output"), 1 : !ok;
}
