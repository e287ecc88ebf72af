/* Lesson 11: fine-tuning. A model that writes stories becomes a judge of film opinions.
   A head, a matrix of C rows, turns the hidden state of a text's last token into scores of C classes, and softmax
   turns those into probabilities. It can learn alone, which is little; all 1.3 million weights can learn with it,
   which is much to store for every task; or, with LoRA, two thin matrices beside each W. Their product has the shape
   of W, so it can be added to W in the end, and then costs nothing.

     log p (C) = log softmax(Wh h + b)          h (D): the last token's hidden state; loss = -log p of the right class
     y (out) = W x + s B (A x) = (W + s B A) x  A (r, in) random, B (out, r) 0 at first: r (in + out) numbers
   with a factor s = alpha / r. Paper: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". */
#include "minillama.h"
#include "lesson.h"

enum { C = 2, D = 128, LINES = 160, UNSEEN = 60, BATCH = 4, RANK = 4, ROOM = 1 << 14 };
enum { WQ = 6 }; /* blk.0.attn_q.weight (D, D) in model->tensors: ml_model_tensor_name has the names */
static struct opinions { /* as in ml_batch: the tokens of row r are start[r] .. start[r + 1] - 1 */
    int32_t tokens[ROOM], start[LINES + 1], labels[LINES];
} training, unseen;
static ml_model *model;
static ml_random dice;
static float log_probs[UNSEEN * C], before[UNSEEN * C], by_hand[D * D];

/* Reads `lines` lines of "label ||| text". */
static int read_opinions(struct opinions *o, const char *path, int lines) {
    int32_t work[1 << 12];
    char line[512];
    FILE *file = fopen(path, "r");
    int n = 0;
    for (ml_tokens tokens; file && n < lines && fgets(line, sizeof line, file); n++) {
        ml_encode_desc desc = {line + 6, strcspn(line + 6, "\r\n"), ML_ADD_SPECIAL, work, sizeof work};
        if (ml_tokenizer_encode(model->tokenizer, &desc, &tokens, NULL)) break;
        memcpy(o->tokens + o->start[n], tokens.ids, (size_t)tokens.n * sizeof *work);
        o->start[n + 1] = o->start[n] + tokens.n;
        o->labels[n] = line[0] - '0';
    }
    if (file) fclose(file);
    return check(n == lines, "%d lines of %s", n, path);
}

/* log_probs of the unseen rows; how many of them get the right label. */
static int judge(const ml_head *head, const ml_lora *lora) {
    int n = unseen.start[UNSEEN], right = 0;
    ml_session_desc desc = {.lora = lora, .max_seq_len = n, .max_batch = n};
    ml_batch batch = {unseen.tokens, n, unseen.start, UNSEEN, NULL, NULL, 0};
    ml_session *session = NULL;
    if (ml_session_new(model, &desc, &session, NULL) || ml_head_eval(head, session, &batch, log_probs, NULL))
        return check(0, "the head judges");
    for (int r = 0; r < UNSEEN; r++) right += (log_probs[r * C + 1] > log_probs[r * C]) == unseen.labels[r];
    return ml_session_free(session), right;
}

/* Trains a new head, how->head, and how->lora, or else the model if it is not frozen. How many it judges right. */
static int learn(ml_trainer_desc *how, double *millions) {
    ml_head_create_desc head = {.n_classes = C, .random = &dice};
    ml_trainer *trainer = NULL;
    int ok = !ml_head_create(model, &head, &how->head, NULL) && !ml_trainer_new(model, how, &trainer, NULL);
    for (int i = 0; ok && i < LINES; i += BATCH) {
        int32_t from[BATCH + 1], *start = training.start + i, *labels = training.labels + i;
        for (int r = 0; r <= BATCH; r++) from[r] = start[r] - start[0];
        ml_batch batch = {training.tokens + start[0], from[BATCH], from, BATCH, NULL, labels, 0};
        ok = !ml_trainer_backward(trainer, &batch, NULL, NULL, NULL) && !ml_trainer_step(trainer, NULL);
    }
    *millions = ok ? (double)trainer->n_parameters / 1e6 : 0;
    ml_trainer_free(trainer);
    return check(ok, "%.0f numbers have learned", *millions * 1e6) ? judge(how->head, how->lora) : 0;
}

/* by_hand (out, in) = W + s B A, for layer 0's Wq. */
static void merge(const ml_lora *lora, const float *W) {
    const float *A = lora->tensors[0].data, *B = lora->tensors[1].data, s = lora->scales[0];
    for (int at = 0; at < D * D; at++) { /* number (at / D, at % D); A (r, in), B (out, r) */
        by_hand[at] = W[at];
        for (int k = 0; k < RANK; k++) by_hand[at] += s * B[at / D * RANK + k] * A[k * D + at % D];
    }
}

static void check_same(const float *a, const float *b, int n, double tolerance, const char *what) {
    double most = 0;
    for (int i = 0; i < n; i++) most = larger(most, fabs((double)a[i] - (double)b[i]));
    check_near(most, 0, tolerance, what);
}

int main(int argc, char **argv) {
    const char *const names[] = {"head", "LoRA", "all"};
    double right[3], numbers[3];
    ml_model_load_desc own = {.type = ML_F32}; /* numbers that may be written to: for training and merging */
    ml_lora_create_desc thin = {RANK, 2 * RANK, ML_LORA_ATTENTION, 0, &dice, {0}}; /* at Wq, Wk, Wv, Wo */
    ml_trainer_desc top = {.frozen = 1, .adamw = {.lr = 2e-2f}}, lora = {.adamw = {.lr = 5e-3f}};
    ml_trainer_desc all = {.adamw = {.lr = 1e-3f}};
    ml_random_seed(&dice, 3);
    if (!check(!ml_model_load("examples/models/stories.gguf", &own, &model, NULL), "the model") ||
        !read_opinions(&training, "examples/data/opinions2-train.txt", LINES) ||
        !read_opinions(&unseen, "examples/data/opinions2-dev.txt", UNSEEN) ||
        !check(!ml_lora_create(model, &thin, &lora.lora, NULL), "an adapter"))
        return lesson_end();
    right[0] = learn(&top, &numbers[0]);
    memcpy(before, log_probs, sizeof before), judge(top.head, lora.lora);
    check_same(log_probs, before, UNSEEN * C, 1e-6, "with B = 0, an adapter changes log p by");
    right[1] = learn(&lora, &numbers[1]);
    check_near((numbers[1] - numbers[0]) * 1e6, 6 * RANK * 7 * D, 0.1, "in 6 layers, r (in + out) of each");
    memcpy(before, log_probs, sizeof before), merge(lora.lora, model->tensors[WQ].data);
    ml_lora_merge(lora.lora, model, NULL), judge(lora.head, NULL);
    check_same(model->tensors[WQ].data, by_hand, D * D, 1e-6, "the header's W + s B A differs from ours by");
    check_same(log_probs, before, UNSEEN * C, 1e-4, "merged and beside, log p differs by");
    ml_lora_unmerge(lora.lora, model, NULL);
    right[2] = learn(&all, &numbers[2]);
    check(right[1] > right[0],
          "right of %d unseen: %.0f with the head, %.0f with LoRA, %.0f with all weights", UNSEEN, right[0],
          right[1], right[2]);
    svg s;
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/11.svg", 640, 280, "What learns, and what it achieves");
    svg_text(&s, 40, 60, "start", 13, "right of %d unseen (guessing: %d)", UNSEEN, UNSEEN / 2);
    svg_bars(&s, 40, 90, 250, 160, right, 3, names);
    svg_text(&s, 350, 60, "start", 13, "numbers that learn, in millions");
    svg_bars(&s, 350, 90, 250, 160, numbers, 3, names);
    ml_head_free(top.head), ml_head_free(lora.head), ml_head_free(all.head), ml_lora_free(lora.lora);
    return svg_end(&s), ml_model_free(model), lesson_end();
}
/* EXERCISES 1. With RANK 1, how many numbers learn, and how many opinions does it judge right? And with another seed?
   2. What if B starts random, too? Predict which check fails, and why training begins worse.
   3. make exercise-11: LoRA forward, backward and merged, the assignment's part "lora". */
