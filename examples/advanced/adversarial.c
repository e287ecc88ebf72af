/* Fine-tuning that keeps the classifier smooth around its inputs: to the cross-entropy it adds the symmetric
   divergence between the classes of a sentence and those of the same sentence with noise on its embeddings.
       build/adversarial --method smart --lambda 1      (Jiang et al. 2020, "SMART")
       build/adversarial --method r3f --noise 1e-5      (Aghajanyan et al. 2021, "Better Fine-Tuning by Reducing
                                                         Representational Collapse")
   r3f takes the noise as it is drawn; smart first moves it to where the classes differ more, by the gradient. Of SMART
   it is the half that makes the classifier smooth, without its Bregman proximal point; the moved noise is not projected
   back into a small ball: in each token it ends about --step long. */
#include <math.h>
#include "common/tuning.h"
#include "../common/report.h"

typedef struct adversarial {
    const char *method;
    float lambda, noise, step; /* weight of the divergence, size of the noise, size of the ascent */
    float *delta;              /* (n, D) of this batch */
    size_t capacity;
    ml_tensor moved; /* delta as an input of the ascent, with its gradient */
    int is_noisy;    /* this pass has the noise */
    float **grads;   /* (n_parameters), while the parameters are constants */
} adversarial;

static adversarial *adversarial_of(tuning *t) { return (adversarial *)t->method.state; }

static int check(tuning *t) {
    adversarial *a = adversarial_of(t);
    if (strcmp(a->method, "smart") != 0 && strcmp(a->method, "r3f") != 0)
        return complain("--method is smart or r3f, not %s", a->method);
    if (!(a->lambda >= 0) || !(a->noise > 0) || a->step <= 0)
        return complain("--lambda is not negative, --noise and --step are positive");
    if (!isnan(a->step) && strcmp(a->method, "r3f") == 0)
        return complain("--step is for smart: r3f does not move its noise");
    if (isnan(a->step)) a->step = 1e-3f;
    t->method.name = a->method;
    return 1;
}

static int is_smart(const adversarial *a) { return strcmp(a->method, "smart") == 0; }

/* embeddings (n, D) + noise */
static ml_tensor add_noise(ml_graph *g, const ml_insertion *at, void *user) {
    const adversarial *a = adversarial_of((tuning *)user);
    return a->is_noisy ? ml_add(g, at->y, a->moved) : at->y;
}

/* logits with the noise or without; dropout would drown the difference, so it is off */
static ml_tensor logits_of(tuning *t, ml_graph *g, const tuning_batch *batch, int is_noisy) {
    adversarial *a = adversarial_of(t);
    float dropout = t->set.dropout;
    a->is_noisy = is_noisy;
    t->set.dropout = 0;
    ml_tensor logits = tuning_logits(t, g, batch);
    t->set.dropout = dropout;
    a->is_noisy = 0;
    return logits;
}

/* KL(p || q) + KL(q || p), a sum over the rows divided by those of the whole step */
static ml_tensor apart(ml_graph *g, ml_tensor p, ml_tensor q, float divisor) {
    return ml_add(g, ml_kl_divergence(g, p, q, divisor), ml_kl_divergence(g, q, p, divisor));
}

/* ---- where the noise goes ---- */

static int draw_noise(tuning *t, const tuning_batch *batch) {
    adversarial *a = adversarial_of(t);
    size_t n = (size_t)batch->rows.n_tokens * (size_t)t->model->config.dim;
    if (n > a->capacity) {
        free(a->delta);
        a->delta = (float *)malloc(n * sizeof *a->delta);
        a->capacity = a->delta ? n : 0;
        if (!a->delta) return no_memory("noise");
    }
    for (size_t i = 0; i < n; i++) a->delta[i] = a->noise * ml_random_normal(&t->random);
    return 1;
}

static ml_tensor ascent(tuning *t, ml_graph *g, const tuning_batch *batch) {
    adversarial *a = adversarial_of(t);
    a->moved = ml_input(g, a->delta, (size_t)batch->rows.n_tokens, (size_t)t->model->config.dim);
    ml_tensor clean = ml_stop_gradient(g, logits_of(t, g, batch, 0));
    return apart(g, logits_of(t, g, batch, 1), clean, 1);
}

/* While they are constants, a pass computes the gradient of the noise alone. */
static void set_constant(tuning *t, int is_constant) {
    adversarial *a = adversarial_of(t);
    for (int i = 0; i < t->n_parameters; i++) {
        ml_tensor *x = t->parameters[i]->tensor;
        if (is_constant) a->grads[i] = x->grad;
        x->grad = is_constant ? NULL : a->grads[i];
    }
}

/* delta += step * its gradient, divided by the largest magnitude that it has in the token */
static void move_noise(adversarial *a) {
    const ml_tensor *x = &a->moved;
    for (size_t i = 0; i < x->rows; i++) {
        const float *gradient = x->grad + i * x->cols;
        float largest = 1e-20f;
        for (size_t j = 0; j < x->cols; j++) largest = fmaxf(largest, fabsf(gradient[j]));
        for (size_t j = 0; j < x->cols; j++) a->delta[i * x->cols + j] += a->step * gradient[j] / largest;
    }
}

static int find_noise(tuning *t, const tuning_batch *batch) {
    adversarial *a = adversarial_of(t);
    if (!a->grads) a->grads = (float **)malloc((size_t)t->n_parameters * sizeof *a->grads);
    if (!a->grads) return no_memory("noise");
    set_constant(t, 1);
    int ok = tuning_backward_of(t, batch, ascent, NULL);
    set_constant(t, 0);
    if (ok) move_noise(a);
    return ok;
}

/* ---- the loss: cross-entropy, with dropout if there is any, + lambda * divergence ---- */

static ml_tensor loss_of(tuning *t, ml_graph *g, const tuning_batch *batch) {
    adversarial *a = adversarial_of(t);
    ml_tensor noise = {ML_F32, (size_t)batch->rows.n_tokens, (size_t)t->model->config.dim, a->delta, NULL};
    a->moved = noise;
    ml_tensor clean = logits_of(t, g, batch, 0), noisy = logits_of(t, g, batch, 1);
    ml_tensor smooth = ml_scale(g, apart(g, noisy, clean, batch->rows.divisor), a->lambda);
    if (t->set.dropout > 0) return ml_add(g, tuning_classify(t, g, batch), smooth);
    return ml_add(g, tuning_cross_entropy(t, g, batch, clean), smooth);
}

static int backward_smoothly(tuning *t, const tuning_batch *batch, float *loss) {
    if (!draw_noise(t, batch) || (is_smart(adversarial_of(t)) && !find_noise(t, batch))) return 0;
    return tuning_backward_of(t, batch, loss_of, loss);
}

static tuning_method method_of(adversarial *state) {
    tuning_method method = {0};
    method.program = "adversarial";
    method.state = state;
    method.check = check;
    method.places = 1u << ML_PLACE_EMBEDDING;
    method.insert = add_noise;
    method.backward = backward_smoothly;
    return method;
}

static void adversarial_free(adversarial *a) { free(a->delta), free(a->grads); }

int main(int argc, char **argv) {
    adversarial a;
    memset(&a, 0, sizeof a);
    a.method = "smart", a.lambda = 1, a.noise = 1e-5f, a.step = NAN;
    const option own[] = {
        {"--method", OPTION_TEXT, &a.method, "smart (default) or r3f"},
        {"--lambda", OPTION_FLOAT, &a.lambda, "weight of the divergence (1)"},
        {"--noise", OPTION_FLOAT, &a.noise, "standard deviation of the noise (1e-5)"},
        {"--step", OPTION_FLOAT, &a.step, "smart: how far the noise is moved (1e-3)"},
    };
    const tuning_method method = method_of(&a);
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    adversarial_free(&a);
    return status;
}
