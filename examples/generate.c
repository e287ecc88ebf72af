/* The smallest program: loads a model and continues a prompt.
   cc -O3 -march=native -I. examples/generate.c -o generate -lm && ./generate MODEL "Once upon a time" */
#include <stdio.h>
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

static int print_token(void *user, int32_t id, const char *text, size_t n_bytes) {
    (void)user, (void)id;
    return fwrite(text, 1, n_bytes, stdout) == n_bytes && fflush(stdout) == 0;
}

int main(int argc, char **argv) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_generate_desc desc = {0};
    if (argc < 2 || argc > 3 || *argv[1] == '-')
        return fprintf(stderr, "usage: generate MODEL [PROMPT]\n"), 2;
    desc.prompt = argc > 2 ? argv[2] : "Once upon a time";
    desc.on_token = print_token;
    printf("%s", desc.prompt);
    if (ml_model_load(argv[1], NULL, &model, &error) || ml_session_new(model, NULL, &session, &error) ||
        ml_session_generate(session, &desc, NULL, &error))
        fprintf(stderr, "\n%s%s\n", error.text,
                model && !model->tokenizer ? " (inspect MODEL says why)" : "");
    printf("\n");
    ml_session_free(session);
    ml_model_free(model);
    if (fflush(stdout) || ferror(stdout)) return perror("standard output"), 1;
    return error.code != ML_OK;
}
