/* Lesson 8: the whole Llama. The forward half of plain_llama.h is all of it: read its functions aloud, and you have
   read the network. A layer adds to the stream twice: what attention gathers from other tokens (lesson 7), and what
   the feed-forward network makes of each token alone, where a gate, silu(W1 h), decides how much of each number of
   W3 h passes. At the end, a piece's logit is the normalized stream times the piece's embedding. minillama.h computes
   the same, faster.
      x += Wo attention(norm(x)); x += W2 (silu(W1 h) * W3 h) with h = norm(x); silu(z) = z / (1 + e^-z)
   Touvron et al. 2023, "LLaMA"; Shazeer 2020, "GLU Variants Improve Transformer". */
#include "examples/lessons/lesson.h"
#include "examples/lessons/plain_llama.h"
#include "minillama.h"
enum { MOST = 32, WORDS = 8 };

int main(int argc, char **argv) {
    static float logits[MOST * 4096];
    const char *path = "examples/models/stories.gguf", *text = "One day, Tom and his mom went to the";
    /* The file's weights have 8 bits: in F32, both sides compute with the same numbers. */
    ml_model_load_desc f32 = {.type = ML_F32};
    double apart = 0, p[WORDS], y, gate = 2, up = 3;
    char words[WORDS][32];
    const char *names[WORDS];
    size_t size;
    plain_llama m;
    ml_model *model;
    ml_session *s;
    ml_tokens t;
    ml_error e = {ML_OK, "not a model that plain_llama.h computes"};
    svg picture;
    plain_swiglu((plain_matrix){1, 1, &y, 0}, (plain_matrix){1, 1, &gate, 0}, (plain_matrix){1, 1, &up, 0});
    check_near(y, 2 / (1 + 0.1353352832) * 3, 1e-9, "silu(2) * 3, e^-2 being 0.1353352832");
    if (ml_model_load(path, &f32, &model, &e) || ml_session_new(model, NULL, &s, &e) ||
        ml_session_encode(s, text, ML_ADD_SPECIAL, &t, &e) || t.n > MOST || !plain_new(&m, model, t.n))
        return printf("%s\n", e.text), 1;
    ml_batch batch = {.tokens = t.ids, .n_tokens = t.n};
    ml_session_eval_batch(s, &batch, &(ml_outputs){.logits = logits}, &e);
    int V = m.c.vocab_size;
    plain_forward(&m, t.ids);
    for (int i = 0; i < t.n * V; i++) apart = larger(apart, fabs((double)logits[i] - m.logits.v[i]));
    check(apart < 1e-4, "%d x %d logits equal the header's: %.0e apart", t.n, V, apart);

    double *last = m.logits.v + (t.n - 1) * V;
    plain_softmax(last, last, V);
    for (int32_t k = 0, best = 0; k < WORDS; k++, last[best] = 0) { /* then without the likeliest */
        for (int i = 0; i < V; i++) best = last[i] > last[best] ? i : best;
        ml_tokenizer_decode(model->tokenizer, &(ml_tokens){&best, 1}, words[k], sizeof words[k], &size, NULL);
        printf("%s %s (%.1f %%)\n", text, names[k] = words[k], 100 * (p[k] = last[best]));
    }
    svg_begin(&picture, argc > 1 ? argv[1] : "build/lessons/08.svg", 560, 250, "The likeliest next pieces");
    svg_text(&picture, 20, 52, "start", 13, "\"%s ...\": their probability", text);
    svg_bars(&picture, 20, 90, 520, 120, p, WORDS, names);
    return svg_end(&picture), lesson_end();
}
/* EXERCISES  1. Leave out a plain_add of plain_layer_forward: what comes next now?  2. Apply the last norm and the
   output to at[3].x: the "logit lens".  3. make exercise-08: the assignment's model; exercise-08_classifier. */
