/* Labels sentences, one per line of standard input, with a classifier that was saved in the file of a model or of an
   adapter, and prints "label probability sentence".
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/classify.c -o classify -lm
   ./classify MODEL < sentences.txt             a fine-tuned model
   ./classify MODEL ADAPTER < sentences.txt     a model with an adapter, as examples/lora.c saves it */
#include <math.h>
#include "minillama.h"
#include "common/file.h"

enum { MAX_CLASSES = 64, MAX_TOKENS = 4096 }; /* of a sentence; the end of a longer one is cut off */

static ml_result classify(ml_session *session, const ml_head *head, const char *sentence, ml_error *error) {
    float log_probs[MAX_CLASSES];
    static int32_t work[1 << 18]; /* for 28 KB */
    const size_t n_bytes = bytes_with_room(sentence, sizeof work);
    ml_encode_desc text = {sentence, n_bytes, ML_ADD_SPECIAL, work, sizeof work};
    ml_tokens tokens;
    ml_batch batch = {0};
    int best = 0;
    if (ml_tokenizer_encode(session->model->tokenizer, &text, &tokens, error)) return error->code;
    if (!tokens.n) return puts(""), ML_OK; /* an empty line, without a token that begins it */
    batch.tokens = tokens.ids;
    batch.n_tokens = tokens.n < session->max_batch ? tokens.n : session->max_batch;
    if (ml_head_eval(head, session, &batch, log_probs, error)) return error->code;
    for (int i = 1; i < head->n_classes; i++)
        if (log_probs[i] > log_probs[best]) best = i;
    if (head->labels)
        printf("%s %.3f %s\n", head->labels[best], exp((double)log_probs[best]), sentence);
    else
        printf("%d %.3f %s\n", best, exp((double)log_probs[best]), sentence);
    return ML_OK;
}

int main(int argc, char **argv) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_lora *lora = NULL;
    ml_head *head = NULL;
    ml_session *session = NULL;
    ml_model_load_desc load = {0};
    ml_session_desc desc = {0};
    buffer line = {NULL, 0, 0};
    if (argc < 2 || argc > 3 || *argv[1] == '-')
        return fprintf(stderr, "usage: classify MODEL [ADAPTER] < SENTENCES\n"), 2;
    load.adapter = argc == 3 ? argv[2] : NULL;
    int ok = !ml_model_load(argv[1], &load, &model, &error) && has_tokenizer(model, argv[1], &error) &&
             (argc == 2 || !ml_lora_load(argv[2], model, NULL, &lora, &error)) &&
             !ml_head_load(argv[argc - 1], model, NULL, &head, &error);
    desc.lora = lora;
    if (ok) desc.max_batch = model->config.max_seq_len < MAX_TOKENS ? model->config.max_seq_len : MAX_TOKENS;
    if (ok && head->n_classes > MAX_CLASSES) ok = 0, strcpy(error.text, "too many classes");
    ok = ok && !ml_session_new(model, &desc, &session, &error);
    while (ok && line_read(stdin, "standard input", &line, &error))
        ok = !classify(session, head, line.bytes, &error);
    ok = ok && !error.code;
    if (!ok) fprintf(stderr, "%s\n", error.text);
    ok = ok && output_written();
    buffer_free(&line);
    ml_session_free(session);
    ml_head_free(head);
    ml_lora_free(lora);
    ml_model_free(model);
    return !ok;
}
