/* Lesson 12: quantization and the KV cache. The same story in a quarter of the bytes, and no token read twice.
   32 bits are more than a weight needs: in Q8_0, 32 weights share a scale d and are integers of 8 bits. A product of
   two such rows is a sum of products of integers, and the model tells the same story (with 4 bits, another). The
   keys and values of a token do not depend on what follows, so they can be kept. With this cache, a token costs
   nearly the same at any position; without it, the next token costs as much as all the text before it.

     d = max |x| / 127 (as F16), q = round(x / d) in -127 .. 127, x ~ d q    a block of 32 numbers: 34 bytes, not 128
     x . w ~ sum over blocks of dx dw (sum of qx qw)                         |x - d q| is about d / 2 at most
   Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"; Shazeer 2019, "Fast Transformer Decoding" */
#include <time.h>
#include "minillama.h"
#include "lesson.h"

enum { D = 128, V = 2048, BLOCK = 32, BYTES = 34, NEW = 60, POINTS = 32, STEP = 8, N = POINTS * STEP };
static const ml_type types[] = {ML_F32, ML_Q8_0, ML_Q4_0};
static ml_model *model[ML_TYPE_COUNT]; /* the same model in each of these types */
static ml_session *session[ML_TYPE_COUNT];
static int32_t story[ML_TYPE_COUNT][N];
static const double tick = 1e3 / CLOCKS_PER_SEC; /* of the clock, in milliseconds */

/* n numbers, a multiple of BLOCK, as blocks of BYTES bytes: the scale in two, then a byte for each number. */
static void quantize(const float *x, int n, unsigned char *to) {
    for (int b = 0; b < n; b += BLOCK, x += BLOCK, to += BYTES) {
        float d = 0;
        for (int i = 0; i < BLOCK; i++) d = fmaxf(d, fabsf(x[i]) / 127);
        ml_type_convert(ML_F16, to, ML_F32, &d, 1);
        for (int i = 0; i < BLOCK; i++) to[2 + i] = (unsigned char)lroundf(d > 0 ? x[i] * (1 / d) : 0);
    }
}

/* x . w of two rows of n numbers in such blocks. */
static double dot(const unsigned char *x, const unsigned char *w, int n) {
    double sum = 0;
    for (int b = 0; b < n; b += BLOCK, x += BYTES, w += BYTES) {
        float dx, dw;
        int whole = 0; /* at most 32 * 127 * 127 */
        ml_type_convert(ML_F32, &dx, ML_F16, x, 1), ml_type_convert(ML_F32, &dw, ML_F16, w, 1);
        for (int i = 2; i < BYTES; i++) whole += (signed char)x[i] * (signed char)w[i];
        sum += (double)dx * (double)dw * whole;
    }
    return sum;
}

static int print(void *user, int32_t id, const char *text, size_t n) {
    return (void)user, (void)id, fwrite(text, 1, n, stdout) == n;
}

/* The model with weights of one type tells its story, NEW tokens. Returns the bytes of its weights. */
static double tell(ml_type type) {
    ml_model_load_desc how = {.type = type};
    ml_generate_desc desc = {.prompt = "Once upon a time", .max_new_tokens = NEW, .on_token = print};
    ml_model_load("examples/models/stories.gguf", &how, &model[type], NULL);
    if (ml_session_new(model[type], NULL, &session[type], NULL)) return check(0, "the model is loaded");
    const ml_tensor *w = model[type]->tensors, *output = w + 3, *end = w + model[type]->n_tensors;
    double bytes = 0;
    for (; w < end; w++) /* the output is the embedding again */
        if (w->data && w != output) bytes += (double)(w->rows * ml_type_row_bytes(w->type, w->cols));
    clock_t start = clock();
    printf("%s: %s", ml_type_name(type), desc.prompt);
    ml_session_generate(session[type], &desc, NULL, NULL);
    printf("\n  %.2f MB, %.2f ms a token\n", bytes / 1e6, tick * (double)(clock() - start) / NEW);
    for (int i = 0; i < N; i++) story[type][i] = session[type]->tokens[i % session[type]->length];
    return bytes;
}

/* Rounds the hidden state x (D) of the story's token NEW, and computes its logit of token `id` in integers. */
static void check_rounding(int id) {
    static float hidden[NEW * D], logits[V], *x = hidden + (NEW - 1) * D;
    unsigned char ours[D / BLOCK * BYTES], theirs[D / BLOCK * BYTES];
    const unsigned char *w = (unsigned char *)model[ML_Q8_0]->tensors[0].data + id * D / BLOCK * BYTES;
    int32_t last = NEW - 1;
    ml_batch text = {story[ML_Q8_0], NEW, NULL, 1, NULL, NULL, 0};
    ml_outputs outputs = {&last, 1, hidden, logits};
    ml_session_eval_batch(session[ML_Q8_0], &text, &outputs, NULL);
    quantize(x, D, ours);
    ml_type_convert(ML_Q8_0, theirs, ML_F32, x, D);
    check(memcmp(ours, theirs, sizeof ours) == 0, "the bytes of quantize are the header's");
    check_near(dot(ours, w, D), (double)logits[id], 0.02, "a logit, x . w in integers");
}

/* Milliseconds a token after STEP, 2 STEP, ... tokens: with the cache, and if all that came before is read again. */
static void measure(double *with, double *without) {
    static float again[V];
    const float *kept;
    double most = 0;
    ml_session_truncate(session[ML_F32], 0, NULL);
    for (int n = 1; n <= N; n++) {
        int32_t last = n - 1, p = last / STEP;
        ml_batch text = {story[ML_F32], n, NULL, 1, NULL, NULL, 0};
        ml_outputs outputs = {&last, 1, NULL, again};
        clock_t start = clock();
        ml_session_eval(session[ML_F32], story[ML_F32] + last, 1, &kept, NULL);
        with[p] += tick * (double)(clock() - start) / STEP, start = clock();
        if (n % STEP) continue;
        ml_session_eval_batch(session[ML_F32], &text, &outputs, NULL); /* leaves the cache as it is */
        without[p] = tick * (double)(clock() - start);
        for (int i = 0; i < V; i++) most = larger(most, fabs((double)kept[i] - (double)again[i]));
    }
    check_near(most, 0, 1e-3, "with and without cache, logits differ by");
}

int main(int argc, char **argv) {
    static double with[POINTS], without[POINTS], bytes[ML_TYPE_COUNT];
    for (int i = 0; i < 3; i++)
        if ((bytes[types[i]] = tell(types[i])) == 0) return lesson_end();
    check(memcmp(story[ML_F32], story[ML_Q8_0], sizeof *story) == 0, "in Q8_0 the story has the same tokens");
    check_near(bytes[ML_Q8_0] / bytes[ML_F32], 34 / 128.0, 0.01, "bytes in Q8_0 / bytes in F32");
    check_rounding(300);
    measure(with, without);
    const double range[4] = {STEP, N, 0, ceil(1.2 * without[POINTS - 1])};
    svg s;
    svg_begin(&s, argc > 1 ? argv[1] : "build/lessons/12.svg", 640, 340, "What a KV cache saves");
    svg_axes(&s, 60, 50, 540, 240, range, "tokens so far", "milliseconds for the next token");
    svg_graph(&s, 60, 50, 540, 240, without, POINTS, range, "black", "5 4");
    svg_graph(&s, 60, 50, 540, 240, with, POINTS, range, "black", "");
    svg_text(&s, 100, 90, "start", 13, "dashed: the whole text is read again; solid: with the cache");
    return svg_end(&s), lesson_end();
}
/* EXERCISES 1. Let quantize have 15 levels, -7 .. 7: how far off is the logit? 2. The cache has 2 * layers * kv_dim
   numbers per token: how many bytes for 4096 tokens, 32 layers, kv_dim 4096? 3. make exercise-12: Q8_0 and back. */
