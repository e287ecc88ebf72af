/* Lesson 9: the backward pass. The second half of plain_llama.h goes through the network in the opposite order: each
   operation takes the gradient of its result and adds to the gradients of what it read. Softmax and loss leave p - 1
   at the target and p elsewhere. Where the stream branches, gradients add up, as do those of the rows of a batch and
   of the two uses of the embedding. minillama.h's trainer must find the same; the picture compares the matrices.
      y = x W^T: dx = dy W, dW = dy^T x; loss = mean of -log softmax(z)[target]: dz = (softmax(z) - one-hot) / n
   Rumelhart, Hinton & Williams 1986, "Learning Representations by Back-propagating Errors". */
#include "examples/lessons/lesson.h"
#include "examples/lessons/plain_llama.h"
#include "minillama.h"
enum { N = 8, ROWS = 2, SHOWN = 7, TENSORS = OF_MODEL + OF_LAYER * MOST_LAYERS };

int main(int argc, char **argv) {
    const char *w[] = {"Wq", "Wk", "Wv", "Wo", "W1", "W2", "W3"}, *l[] = {"layer 1", "2", "3", "4", "5", "6"};
    const char text[] = "Lily had a red ball. She and her dog played with it in the park all day.";
    const int32_t starts[] = {0, N, ROWS * N}, matrix[] = {WQ, WK, WV, WO, W1, W2, W3};
    int32_t work[1024];
    ml_encode_desc encode = {text, sizeof text - 1, ML_ADD_SPECIAL, work, sizeof work};
    ml_model_load_desc f32 = {.type = ML_F32};
    ml_trainer_desc desc = {.max_tokens = ROWS * N, .adamw = {.lr = 1}};
    double plain_loss = 0, worst = 0, sum[TENSORS] = {0};
    float loss, shown[6 * SHOWN];
    plain_llama m;
    ml_model *model;
    ml_trainer *trainer;
    ml_tokens t;
    ml_error e = {ML_OK, "not a model that plain_llama.h computes"};
    svg s;
    if (ml_model_load("examples/models/stories.gguf", &f32, &model, &e) || !plain_new(&m, model, N) ||
        ml_trainer_new(model, &desc, &trainer, &e) || ml_tokenizer_encode(model->tokenizer, &encode, &t, &e))
        return printf("%s\n", e.text), 1;
    ml_batch batch = {t.ids, ROWS * N, starts, ROWS, t.ids + 1, NULL, 0}; /* the target is the next token */
    ml_trainer_backward(trainer, &batch, NULL, &loss, &e);
    for (int row = 0; row < ROWS * N; row += N) { /* gradients of both add up */
        plain_forward(&m, t.ids + row);
        plain_loss += plain_backward(&m, t.ids + row, t.ids + row + 1, ROWS * N);
    }
    check_near(plain_loss, (double)loss, 1e-5, "loss, plain and the trainer's");
    for (int i = 0; i < model->n_tensors; i++) {
        double apart = 0;
        for (int j = 0; i != OUTPUT && j < m.w[i].rows * m.w[i].cols; j++) {
            double d = m.w[i].d[j], header = (double)trainer->model[i].grad[j];
            apart += (d - header) * (d - header), sum[i] += d * d;
        }
        worst = larger(worst, sqrt(apart / fmax(sum[i], 1e-30)));
    }
    check(worst < 1e-5, "%d gradients equal the header's: %.0e apart", (int)model->n_parameters, worst);
    for (int i = 0; i < 6 * SHOWN; i++)
        shown[i] = (float)sqrt(sum[OF_MODEL + i / SHOWN * OF_LAYER + matrix[i % SHOWN]]);
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/09.svg", 400, 350, "The gradient of each matrix");
    svg_text(&s, 20, 52, "start", 13, "its length (norm) on two rows of %d tokens", N);
    svg_heat(&s, 80, 90, 40, shown, 6, SHOWN, l, w);
    return svg_end(&s), lesson_end();
}
/* EXERCISES  1. Break a backward of plain_llama.h: how far do the gradients move?  2. Step w -= 0.002 dw with all
   weights: predict the new loss from sum[], then compute it.  3. make exercise-09: two backward passes. */
