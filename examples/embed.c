/* Finds the sentence of standard input (one per line) that is nearest to a given one: each becomes the mean of its
   tokens' hidden states, of length 1, so that the dot product of two is the cosine of their angle.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/embed.c -o embed -lm
   ./embed MODEL "The dog ran home." < sentences.txt */
#include "minillama.h"
#include "common/file.h"

enum { MAX_TOKENS = 4096 }; /* of a sentence; the end of a longer one is cut off */

/* embedding (D) of one sentence; zeros if it has no tokens. */
static ml_result embed(ml_session *session, const char *sentence, float *embedding, ml_error *error) {
    ml_embed_desc desc = {ML_POOL_MEAN, 1};
    static int32_t work[1 << 18]; /* for 28 KB */
    const size_t n_bytes = bytes_with_room(sentence, sizeof work);
    ml_encode_desc text = {sentence, n_bytes, ML_ADD_SPECIAL, work, sizeof work};
    ml_tokens tokens;
    ml_batch batch = {0};
    if (ml_tokenizer_encode(session->model->tokenizer, &text, &tokens, error)) return error->code;
    memset(embedding, 0, (size_t)session->model->config.dim * sizeof *embedding);
    if (!tokens.n) return ML_OK;
    batch.tokens = tokens.ids;
    batch.n_tokens = tokens.n < session->max_batch ? tokens.n : session->max_batch;
    return ml_session_embed(session, &batch, &desc, embedding, error);
}

/* Prints each sentence of standard input with its similarity to `wanted` (D); *nearest = the most similar one.
   `found` is room for D numbers. */
static int compare(ml_session *session, const float *wanted, float *found, buffer *nearest, ml_error *error) {
    buffer line = {NULL, 0, 0};
    double best = -2;
    int ok = 1;
    while (ok && line_read(stdin, "standard input", &line, error)) {
        double cosine = 0;
        ok = !embed(session, line.bytes, found, error);
        if (!ok) break;
        for (int i = 0; i < session->model->config.dim; i++) cosine += (double)wanted[i] * (double)found[i];
        printf("%.4f %s\n", cosine, line.bytes);
        if (cosine <= best) continue;
        best = cosine, nearest->length = 0;
        ok = buffer_append(nearest, line.bytes, line.length);
        if (!ok) strcpy(error->text, "not enough memory");
    }
    buffer_free(&line);
    return ok && !error->code;
}

int main(int argc, char **argv) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_session_desc how = {0};
    buffer nearest = {NULL, 0, 0};
    if (argc != 3) return fprintf(stderr, "usage: embed MODEL SENTENCE < SENTENCES\n"), 2;
    int ok = !ml_model_load(argv[1], NULL, &model, &error) && has_tokenizer(model, argv[1], &error);
    if (ok) how.max_batch = model->config.max_seq_len < MAX_TOKENS ? model->config.max_seq_len : MAX_TOKENS;
    ok = ok && !ml_session_new(model, &how, &session, &error);
    int dim = ok ? model->config.dim : 1;
    float *wanted = (float *)malloc((size_t)dim * 2 * sizeof *wanted), *found = wanted ? wanted + dim : NULL;
    if (!wanted) ok = 0, strcpy(error.text, "not enough memory");
    ok = ok && !embed(session, argv[2], wanted, &error) && compare(session, wanted, found, &nearest, &error);
    if (ok && !nearest.bytes) ok = 0, strcpy(error.text, "standard input has no sentence");
    if (ok)
        printf("nearest: %s\n", nearest.bytes);
    else
        fprintf(stderr, "%s\n", error.text);
    ok = ok && output_written();
    buffer_free(&nearest);
    free(wanted);
    ml_session_free(session);
    ml_model_free(model);
    return !ok;
}
