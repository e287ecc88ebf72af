/* Finds the sentence of standard input (one per line) that is nearest to a given one: each becomes the mean of its
   tokens' hidden states, of length 1, so that the dot product of two is the cosine of their angle.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/embed.c -o embed -lm
   ./embed MODEL "The dog ran home." < sentences.txt */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "minillama.h"

/* embedding (D) of one sentence. */
static ml_result embed(ml_session *session, const char *sentence, float *embedding, ml_error *error) {
    ml_embed_desc desc = {ML_POOL_MEAN, 1};
    static int32_t work[1 << 16];
    ml_encode_desc text = {sentence, strlen(sentence), ML_ADD_SPECIAL, work, sizeof work};
    ml_tokens tokens;
    ml_batch batch = {0};
    if (ml_tokenizer_encode(session->model->tokenizer, &text, &tokens, error)) return error->code;
    batch.tokens = tokens.ids;
    batch.n_tokens =
        tokens.n < session->max_batch ? tokens.n : session->max_batch; /* the end may be cut off */
    return ml_session_embed(session, &batch, &desc, embedding, error);
}

int main(int argc, char **argv) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    char line[4096], nearest[4096] = "";
    double best = -2;
    if (argc != 3) return fprintf(stderr, "usage: embed MODEL SENTENCE < SENTENCES\n"), 2;
    int ok = !ml_model_load(argv[1], NULL, &model, &error) && !ml_session_new(model, NULL, &session, &error);
    int dim = ok ? model->config.dim : 1;
    float *wanted = (float *)malloc((size_t)dim * 2 * sizeof *wanted), *found = wanted ? wanted + dim : NULL;
    if (!wanted) ok = 0, strcpy(error.text, "not enough memory");
    ok = ok && !embed(session, argv[2], wanted, &error);
    while (ok && fgets(line, sizeof line, stdin)) {
        double cosine = 0;
        line[strcspn(line, "\r\n")] = 0;
        ok = !embed(session, line, found, &error);
        for (int i = 0; ok && i < dim; i++) cosine += (double)wanted[i] * (double)found[i];
        if (ok) printf("%.4f %s\n", cosine, line);
        if (ok && cosine > best) best = cosine, strcpy(nearest, line);
    }
    if (ok)
        printf("nearest: %s\n", nearest);
    else
        fprintf(stderr, "%s\n", error.text);
    free(wanted);
    ml_session_free(session);
    ml_model_free(model);
    return !ok;
}
