/* Lesson 10: training. AdamW by hand, and a Llama that learns a page of text from nothing.
   You will learn why one step size does not fit all numbers of a network, and how AdamW gives each its own: it divides
   the gradient by its usual size. You will write the step in ten lines, and see that the header's does the same. Then a
   Llama of 30,000 random numbers reads one page again and again; at first it guesses one of 128 characters, in the end
   it knows the page by heart. Plain gradient descent, on the same batches, is far behind. That it recites is called
   overfitting: this is what a model does that is larger than its text.

     m <- b1 m + (1 - b1) g          the usual direction: a running mean of the gradient, 0 before the first step
     v <- b2 v + (1 - b2) g^2        the usual size, squared
     w <- w - lr (m / c1) / (sqrt(v / c2) + eps)    c1 = 1 - b1^t, c2 = 1 - b2^t at step t = 1, 2, ...: the means of
     w <- w - lr decay w                            few numbers that begin with 0 are too small
   Folded (the assignment's form): rate = lr sqrt(c2) / c1, and w <- w - rate m / (sqrt(v) + eps).
   Papers: Kingma & Ba 2015, "Adam"; Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization". */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "minillama.h"
#include "lesson.h"

static const char page[] =
    "The lighthouse stood on a rock, and in it lived an old woman and her cat. Every evening she climbed the "
    "ninety steps, lit the lamp and counted the ships. One night the lamp would not burn. The wind was loud, the sea "
    "was black, and far out she saw one small light that came closer and closer to the rock. What could she do? She "
    "had no oil, no matches and no bell. But the cat jumped on the shelf, and down fell the big brass pan. It rang "
    "like a church on Sunday. The old woman laughed. She took the pan and a spoon, and she rang and rang until the "
    "morning came. The small ship heard her and turned away. Next day a fisherman knocked on her door with a basket "
    "of fish, a can of oil and a blue ribbon. The oil was for the lamp, and the fish were for the cat. The ribbon? "
    "That was for the pan.";

enum { V = 128, CONTEXT = 48, ROWS = 8, N = ROWS * CONTEXT, STEPS = 150, BY_HAND = 20, MOST = 40000 };
enum { TRAINER, OURS, PLAIN }; /* who steps: the header, adamw below, or w -= lr g */
static const float lr = 0.01f, b1 = 0.9f, b2 = 0.999f, eps = 1e-6f, decay = 0.01f, plain_lr = 0.3f;
static float m[MOST], v[MOST]; /* of all numbers, tensor after tensor */

/* Step t of n numbers w with gradient g, whose moments begin at `first`. */
static void adamw(float *w, const float *g, size_t first, size_t n, int t, int decays) {
    float rate = lr * (float)(sqrt(1 - pow(b2, t)) / (1 - pow(b1, t)));
    for (size_t i = 0; i < n; i++) {
        float *mi = m + first + i, *vi = v + first + i;
        *mi = b1 * *mi + (1 - b1) * g[i];
        *vi = b2 * *vi + (1 - b2) * g[i] * g[i];
        w[i] -= rate * *mi / (sqrtf(*vi) + eps);
        if (decays) w[i] -= lr * decay * w[i];
    }
}

/* Step t of all tensors. Norms (one row) do not decay: their numbers stay near 1. */
static void step_by_hand(ml_trainer *trainer, int n_tensors, int t, int who) {
    for (size_t k = 0, first = 0; k < (size_t)n_tensors; k++) {
        ml_tensor w = trainer->model[k];
        int tied = k > 0 && w.data == trainer->model[0].data; /* the output is the embedding again */
        size_t n = w.grad && !tied ? w.rows * w.cols : 0;     /* RMS norms have no bias to learn */
        if (who == OURS) adamw(w.data, w.grad, first, n, t, w.rows > 1);
        for (size_t i = 0; i < n && who == PLAIN; i++) ((float *)w.data)[i] -= plain_lr * w.grad[i];
        first += n;
    }
    ml_trainer_zero_gradients(trainer);
}

/* A model with the same random numbers each time, trained for some steps. losses (steps). */
static ml_model *train(int who, int steps, double *losses, ml_error *error) {
    ml_random random;
    ml_model_create_desc small = {.config = {.dim = 32, .hidden_dim = 88, .n_layers = 2, .n_heads = 4, .vocab_size = V, .max_seq_len = CONTEXT, .tied_output = 1}, .random = &random};
    ml_trainer_desc how = {.max_tokens = N, .adamw = {.lr = lr, .weight_decay = decay}};
    ml_model *model = NULL;
    ml_trainer *trainer = NULL;
    int32_t tokens[N], targets[N], row_start[ROWS + 1] = {0};
    ml_batch batch = {tokens, N, row_start, ROWS, targets, NULL, 0};
    ml_random_seed(&random, 1);
    int ok = !ml_model_create(&small, &model, error) && !ml_trainer_new(model, &how, &trainer, error);
    for (int t = 1; ok && t <= steps; t++) {
        for (int r = 0; r < ROWS; r++) { /* rows of text from anywhere; each character's target is the next */
            size_t at = (size_t)(ml_random_u64(&random) % (sizeof page - 1 - CONTEXT));
            for (int i = 0; i < CONTEXT; i++, at++)
                tokens[r * CONTEXT + i] = page[at], targets[r * CONTEXT + i] = page[at + 1];
            row_start[r + 1] = (r + 1) * CONTEXT;
        }
        float loss;
        ok = !ml_trainer_backward(trainer, &batch, NULL, &loss, error);
        losses[t - 1] = (double)loss;
        if (ok && who == TRAINER) ok = !ml_trainer_step(trainer, error);
        if (ok && who != TRAINER) step_by_hand(trainer, model->n_tensors, t, who);
        if (ok && t % 30 == 0) printf("  step %3d: loss %.3f\n", t, (double)loss);
    }
    ml_trainer_free(trainer);
    if (!ok) ml_model_free(model), model = NULL;
    return model;
}
