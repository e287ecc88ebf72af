/* Fine-tuning with a regularizer, or several: dropout at each place, mixout, R-drop, averages of the weights, smaller
   learning rates in lower layers; label smoothing, head dropout and early stopping are options of all experiments.
       build/regularize --task sst --dropout .5 --dropout_residual .1 --rdrop 1 --ema .99 --layer_decay .9 */
#include "common/average.h"
#include "common/tuning.h"
#include "../common/report.h"

typedef struct regular {
    float embedding, residual, hidden, attention; /* dropout */
    float mixout, rdrop, ema, layer_decay;
    int swa;
    float *pretrained, *held; /* (tuning_count) for mixout: before fine-tuning, and before it mixed them */
    weight_average average;   /* ema, swa */
    char name[80];            /* of what is used */
} regular;

static regular *regular_of(tuning *t) { return (regular *)t->method.state; }

/* Where dropout needs to be put in; that of the attention weights is ml_llama's own. */
static unsigned places_of(const regular *r) {
    unsigned places = 0;
    if (r->embedding > 0) places |= 1u << ML_PLACE_EMBEDDING;
    if (r->residual > 0) places |= 1u << ML_PLACE_ATTENTION | 1u << ML_PLACE_FFN;
    if (r->hidden > 0) places |= 1u << ML_PLACE_HIDDEN;
    return places;
}

static int has_dropout(tuning *t) {
    const regular *r = regular_of(t);
    return t->set.dropout > 0 || r->attention > 0 || places_of(r);
}

/* For the report: "dropout+rdrop". */
static const char *name_of(tuning *t) {
    regular *r = regular_of(t);
    const char *const names[] = {"dropout", "word_dropout", "smoothing", "mixout",
                                 "rdrop",   "ema",          "swa",       "layer_decay"};
    const float used[] = {
        (float)has_dropout(t), t->set.word_dropout, t->set.smoothing, r->mixout, r->rdrop, r->ema,
        (float)r->swa,         1 - r->layer_decay};
    size_t n = 0;
    for (size_t i = 0; i < sizeof used / sizeof *used; i++)
        if (used[i] > 0)
            n += (size_t)snprintf(r->name + n, sizeof r->name - n, "%s%s", n ? "+" : "", names[i]);
    return n ? r->name : "plain";
}

/* ---- dropout (Srivastava et al. 2014): of the embeddings, of what each half layer adds, of W2's input ---- */

static ml_tensor drop(ml_graph *g, const ml_insertion *at, void *user) {
    tuning *t = (tuning *)user;
    const regular *r = regular_of(t);
    float p = at->place == ML_PLACE_EMBEDDING ? r->embedding
              : at->place == ML_PLACE_HIDDEN  ? r->hidden
                                              : r->residual;
    return ml_dropout(g, at->y, p, tuning_seed(t));
}

static void begin(tuning *t, ml_graph *g, ml_llama_desc *llama) {
    (void)g;
    llama->dropout = regular_of(t)->attention;
    llama->seed = tuning_seed(t);
}

/* ---- R-drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks") ----
   Two passes with dropout of their own: (CE1 + CE2) / 2 + alpha (KL(p || q) + KL(q || p)) / 2, as in the authors' code;
   the paper adds up both CE, so this alpha is half of the paper's. */

static ml_tensor rdrop_loss(tuning *t, ml_graph *g, const tuning_batch *batch) {
    float divisor = batch->rows.divisor, alpha = regular_of(t)->rdrop;
    ml_tensor p = tuning_logits(t, g, batch), q = tuning_logits(t, g, batch);
    ml_tensor both = ml_add(g, tuning_cross_entropy(t, g, batch, p), tuning_cross_entropy(t, g, batch, q));
    ml_tensor apart = ml_add(g, ml_kl_divergence(g, p, q, divisor), ml_kl_divergence(g, q, p, divisor));
    return ml_scale(g, ml_add(g, both, ml_scale(g, apart, alpha)), 0.5f);
}

/* ---- mixout (Lee et al. 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language
   Models") ----
   In each step w' = ((1 - n) w0 + n w - p w0) / (1 - p) stands in for each number w of a matrix, with w0 its value
   before fine-tuning and n = 0 with probability p, else 1. The gradient of w is n times that of w', as in the
   reference implementation; the factor 1 / (1 - p), which the formula has in addition, Adam would cancel. */

static int is_mixed(const tuning *t, int i) {
    return !t->parameters[i]->own.data && t->parameters[i]->tensor->rows > 1;
}

/* The numbers n of this step, the same in each of its passes: a call for the weights, one for their gradients. */
static void mix(tuning *t, int gradients, float *held) {
    const regular *r = regular_of(t);
    const float *w0 = r->pretrained;
    ml_random random;
    ml_random_seed(&random, ((uint64_t)t->set.seed << 32) + (uint64_t)t->result.steps);
    for (int i = 0; i < t->n_parameters; i++) {
        const ml_tensor *x = t->parameters[i]->tensor;
        float *w = (float *)x->data;
        size_t n = x->rows * x->cols;
        for (size_t j = 0; is_mixed(t, i) && j < n; j++) {
            int keeps = ml_random_uniform(&random) >= r->mixout;
            if (gradients)
                x->grad[j] = keeps ? x->grad[j] : 0;
            else
                w[j] = ((keeps ? w[j] : w0[j]) - r->mixout * w0[j]) / (1 - r->mixout);
        }
        w0 += n;
    }
    if (gradients) tuning_paste(t, held);
}

static int backward_mixed(tuning *t, const tuning_batch *batch, float *loss) {
    regular *r = regular_of(t);
    size_t size = (size_t)tuning_count(t) * sizeof *r->held;
    if (!(r->mixout > 0)) return tuning_backward(t, batch, loss);
    if (!r->pretrained) {
        r->pretrained = (float *)malloc(size);
        r->held = (float *)malloc(size);
        if (!r->pretrained || !r->held) return no_memory("mixout");
        tuning_copy(t, r->pretrained);
    }
    tuning_copy(t, r->held);
    mix(t, 0, NULL);
    int ok = tuning_backward(t, batch, loss);
    mix(t, 1, r->held);
    return ok;
}

/* ---- averages of the weights ----
   ema: with each step. swa: of the ends of the last epochs (Izmailov et al. 2018, "Averaging Weights Leads to Wider
   Optima"). */

static int after_step(tuning *t) {
    regular *r = regular_of(t);
    return !(r->ema > 0) || average_step(t, &r->average, r->ema);
}

static int measuring(tuning *t, int begins) {
    regular *r = regular_of(t);
    int is_end = begins && r->swa && t->epoch >= t->set.epochs - r->swa;
    if (is_end && !average_add(t, &r->average, 1 / (float)(r->average.n + 1))) return 0;
    return average_measuring(t, &r->average, begins);
}

/* ---- the program ---- */

static int is_share(float x) { return x >= 0 && x < 1; }

static int check(tuning *t) {
    const regular *r = regular_of(t);
    if (!is_share(r->embedding) || !is_share(r->residual) || !is_share(r->hidden) ||
        !is_share(r->attention) || !is_share(r->mixout) || !is_share(r->ema))
        return complain("dropouts, --mixout and --ema are 0 to less than 1");
    if (!(r->rdrop >= 0) || !(r->layer_decay > 0 && r->layer_decay <= 1) || r->swa < 0)
        return complain("--rdrop and --swa are not negative, --layer_decay is more than 0 and at most 1");
    if (r->rdrop > 0 && !has_dropout(t))
        return complain("--rdrop compares two passes that differ by dropout: give --dropout, too");
    if (r->ema > 0 && r->swa) return complain("--ema and --swa are two averages: choose one");
    if (r->swa && (t->set.eval_every || t->set.patience))
        return complain("--swa averages the ends of the last epochs: leave out --eval_every and --patience");
    if (r->swa > t->set.epochs) return complain("--swa %d: there are %d epochs", r->swa, t->set.epochs);
    if (r->rdrop > 0) t->method.loss = rdrop_loss;
    t->method.places = places_of(r);
    t->method.name = name_of(t);
    return 1;
}

static int setup(tuning *t) { return tuning_train_layers(t, regular_of(t)->layer_decay); }

static tuning_method method_of(regular *state) {
    return (tuning_method){.program = "regularize",
                           .state = state,
                           .check = check,
                           .setup = setup,
                           .begin = begin,
                           .insert = drop,
                           .backward = backward_mixed,
                           .after_step = after_step,
                           .measuring = measuring};
}

static void regular_free(regular *r) { free(r->pretrained), free(r->held), average_free(&r->average); }

int main(int argc, char **argv) {
    regular r = {.layer_decay = 1};
    const option own[] = {
        {"--dropout_embedding", OPTION_FLOAT, &r.embedding, "of the token embeddings (0)"},
        {"--dropout_attention", OPTION_FLOAT, &r.attention, "of the attention weights (0)"},
        {"--dropout_residual", OPTION_FLOAT, &r.residual, "of what each half layer adds (0)"},
        {"--dropout_ffn", OPTION_FLOAT, &r.hidden, "inside the feed-forward layers (0)"},
        {"--mixout", OPTION_FLOAT, &r.mixout, "share of the weights that are as before fine-tuning (0)"},
        {"--rdrop", OPTION_FLOAT, &r.rdrop, "weight of the divergence of two passes (0)"},
        {"--ema", OPTION_FLOAT, &r.ema,
         "decay d of the weights' average, from step 9/(1-d) - 10 on (0: none)"},
        {"--swa", OPTION_INT, &r.swa,
         "average of the ends of so many last epochs, unless an earlier one is as good on dev (0)"},
        {"--layer_decay", OPTION_FLOAT, &r.layer_decay, "of the rate, from a layer to the one below (1)"},
    };
    const tuning_method method = method_of(&r);
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    regular_free(&r);
    return status;
}
