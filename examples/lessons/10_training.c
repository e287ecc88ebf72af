/* Lesson 10: training. AdamW by hand, and a Llama that learns a page of text from nothing.
   Some numbers of a network have gradients a million times larger than others, so no one step size fits them all:
   AdamW divides each gradient by its usual size. You write that in ten lines, and the header takes the same steps.
   Then a Llama of 29,344 random numbers reads one page again and again: at first it guesses one of 128 characters, at
   the end it knows the page by heart. Plain gradient descent is far behind. Reciting is overfitting.

     m <- b1 m + (1 - b1) g       the usual direction: a running mean of the gradient, 0 before the first step
     v <- b2 v + (1 - b2) g^2     the usual size, squared. Means that begin with 0 are too small at first, hence
                                  c1 = 1 - b1^t, c2 = 1 - b2^t at step t = 1, 2, ...; rate = lr sqrt(c2) / c1
     w <- w - rate m / (sqrt(v) + eps);  w <- w - lr decay w
   Papers: Kingma & Ba 2015, "Adam"; Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization". */
#include "minillama.h"
#include "lesson.h"

static const char page[] =
    "The lighthouse stood on a rock, and in it lived an old woman and her cat. Every evening she lit the "
    "lamp and counted the ships. One night the lamp would not burn, and she had no oil, no matches and no "
    "bell. But the cat jumped on the shelf, and down fell the big brass pan. It rang like a church bell. ";
enum { D = 32, V = 128, CONTEXT = 48, ROWS = 4, N = ROWS * CONTEXT, STEPS = 250, BOTH = 10 };
enum { LENGTH = sizeof page - 1, BEGIN = 12, NUMBERS = 29344 };
enum { HEADER, OURS, PLAIN }; /* who steps: ml_trainer_step, adamw below, or w -= plain_lr g */
static const float lr = 0.006f, b1 = 0.9f, b2 = 0.99f, eps = 1e-6f, decay = 0.01f, plain_lr = 0.2f;

/* Step t of n numbers w with gradient g. m and v (n) are 0 before step 1. */
static void adamw(float *w, const float *g, float *m, float *v, int n, int t) {
    float rate = lr * (float)(sqrt(1 - pow((double)b2, t)) / (1 - pow((double)b1, t)));
    for (int i = 0; i < n; i++) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        w[i] -= rate * m[i] / (sqrtf(v[i]) + eps);
        w[i] -= lr * decay * w[i];
    }
}

/* The same for all tensors, with the gradients that the trainer computed. */
static void step_by_hand(ml_trainer *trainer, int n_tensors, int t, int who) {
    static float m[NUMBERS], v[NUMBERS];
    for (int k = 0, first = 0, n; k < n_tensors; k++, first += n) {
        ml_tensor w = trainer->model[k]; /* one is tensor 0 again, the output; RMS norms have no bias */
        n = w.grad && (k == 0 || w.data != trainer->model[0].data) ? (int)(w.rows * w.cols) : 0;
        if (who == OURS) adamw(w.data, w.grad, m + first, v + first, n, t);
        for (int i = 0; i < n && who == PLAIN; i++) ((float *)w.data)[i] -= plain_lr * w.grad[i];
    }
    ml_trainer_zero_gradients(trainer);
}

/* Trains a model, whose first numbers are the same each time. losses (steps). */
static ml_model *train(int who, int steps, double *losses) {
    ml_random random;
    ml_model_create_desc fresh = {{D, 88, 2, 4, 4, V, CONTEXT, .tied_output = 1}, ML_F32, &random, {0}};
    ml_trainer_desc how = {.max_tokens = N, .adamw = {lr, 0, b1, b2, eps, decay, 1, 0, ML_ADAMW_FOLDED}};
    ml_model *model = NULL;
    ml_trainer *trainer = NULL;
    int32_t tokens[N], targets[N], row_start[ROWS + 1];
    ml_batch batch = {tokens, N, row_start, ROWS, targets, NULL, 0};
    for (int r = 0; r <= ROWS; r++) row_start[r] = r * CONTEXT;
    ml_random_seed(&random, 1);
    int ok = !ml_model_create(&fresh, &model, NULL) && !ml_trainer_new(model, &how, &trainer, NULL);
    for (int t = 1; ok && t <= steps; t++) {
        /* rows from anywhere; after the last character comes the first */
        for (size_t i = 0, at = 0; i < N; i++) {
            if (i % CONTEXT == 0) at = ml_random_u64(&random) % LENGTH;
            tokens[i] = page[at % LENGTH], targets[i] = page[++at % LENGTH];
        }
        float loss = 0;
        ok = !ml_trainer_backward(trainer, &batch, NULL, &loss, NULL);
        if (ok && who == HEADER) ok = !ml_trainer_step(trainer, NULL);
        if (ok && who != HEADER) step_by_hand(trainer, model->n_tensors, t, who);
        losses[t - 1] = (double)loss;
    }
    ml_trainer_free(trainer);
    return check(ok, "%d steps of training", steps) ? model : NULL;
}

/* The model reads the page's first characters and goes on alone: how many of the others are right. */
static int recite(const ml_model *model) {
    int32_t start[BEGIN];
    ml_generate_desc desc = {.prompt_ids = {start, BEGIN}, .max_new_tokens = CONTEXT - BEGIN};
    ml_session *session = NULL;
    int right = -BEGIN;
    for (int i = 0; i < BEGIN; i++) start[i] = page[i];
    if (ml_session_new(model, NULL, &session, NULL) || ml_session_generate(session, &desc, NULL, NULL))
        return 0;
    for (int i = 0; i < session->length; i++) right += putchar(session->tokens[i]) == page[i];
    return puts(""), ml_session_free(session), right;
}

int main(int argc, char **argv) {
    static double adam[STEPS], plain[STEPS];
    const double range[4] = {1, STEPS, 0, 5};
    float w[2] = {1, 1}, g[2] = {1000, -0.1f}, m[2] = {0}, v[2] = {0};
    adamw(w, g, m, v, 2, 1);
    printf("The first step moves each number by the rate, %g, however large its gradient is:\n", (double)lr);
    check_near((double)w[0], 1 - (double)lr, 1e-4, "1 with gradient 1000");
    check_near((double)w[1], 1 + (double)lr, 1e-4, "1 with gradient -0.1");
    printf("The same network, %d steps by the header and by adamw above:\n", BOTH);
    ml_model *a = train(HEADER, BOTH, adam), *b = train(OURS, BOTH, adam);
    ml_model *c = train(HEADER, STEPS, adam), *d = train(PLAIN, STEPS, plain);
    if (!a || !b || !c || !d) return lesson_end();
    double most = 0, end = adam[STEPS - 1], worse = plain[STEPS - 1];
    const float *x = a->tensors[0].data, *y = b->tensors[0].data; /* the embeddings (V, D) */
    for (int i = 0; i < V * D; i++) most = larger(most, fabs((double)x[i] - (double)y[i]));
    check_near(most, 0, 1e-5, "the embeddings of header and adamw differ by");
    check_near(adam[0], log(V), 0.05, "first loss: a guess among 128 characters, ln 128");
    check(end < worse / 2, "last loss: %.2f with AdamW, %.2f with plain gradient descent", end, worse);
    int right = recite(c);
    check(right > 24, "given %d characters, it knows %d of the next %d", BEGIN, right, CONTEXT - BEGIN);
    svg s;
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/10.svg", 640, 350, "A Llama learns a page by heart");
    svg_axes(&s, 60, 50, 540, 260, range, "step", "loss: nats per character");
    svg_graph(&s, 60, 50, 540, 260, adam, STEPS, range, "black", "");
    svg_graph(&s, 60, 50, 540, 260, plain, STEPS, range, "#777", "5 4");
    svg_text(&s, 590, 130, "end", 13, "dashed: plain gradient descent, rate %g", (double)plain_lr);
    svg_text(&s, 80, 270, "start", 13, "AdamW, rate %g", (double)lr);
    svg_end(&s);
    return ml_model_free(a), ml_model_free(b), ml_model_free(c), ml_model_free(d), lesson_end();
}
/* EXERCISES 1. Predict, then try: lr = 0.06, and b2 = 0.999. What does each do to the beginning of the curve?
   2. Warm up for 20 steps: how needs .schedule = {ML_DECAY_NONE, 20, 0, 0}, and adamw the same rates. (Why do the
      first two checks fail then?)  3. make exercise-10: write AdamW yourself, the assignment's part "optimizer". */
