/* A story told in turns: each line that is typed is added to it, and the model continues. The session's KV cache
   keeps what was read and written before, so each turn reads only the new line. An empty line ends it.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/chat.c -o chat -lm && ./chat MODEL */
#include <stdio.h>
#include <string.h>
#include "minillama.h"

/* Ends a turn at the end of a line that has text. user: the tokens of this turn so far. */
static int print_token(void *user, int32_t id, const char *text, size_t n_bytes) {
    int *n_tokens = (int *)user;
    (void)id;
    if (fwrite(text, 1, n_bytes, stdout) != n_bytes || fflush(stdout) != 0) return 0;
    return ++*n_tokens < 3 || !memchr(text, '\n', n_bytes);
}

/* The turns. The oldest text is forgotten when the context is full. */
static ml_result talk(ml_session *session, ml_error *error) {
    char line[1024];
    int n_tokens;
    ml_generate_desc desc = {0};
    desc.start = ML_START_APPEND;
    desc.overflow = ML_OVERFLOW_SLIDE;
    desc.max_new_tokens = 30;
    desc.on_token = print_token;
    desc.user = &n_tokens;
    while (printf("> "), fflush(stdout), fgets(line, sizeof line, stdin) && *line != '\n') {
        line[strcspn(line, "\r\n")] = 0;
        desc.prompt = line;
        n_tokens = 0;
        if (ml_session_generate(session, &desc, NULL, error)) return error->code;
        printf("\n");
    }
    return ML_OK;
}

int main(int argc, char **argv) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    if (argc != 2 || *argv[1] == '-') return fprintf(stderr, "usage: chat MODEL\n"), 2;
    if (ml_model_load(argv[1], NULL, &model, &error) || ml_session_new(model, NULL, &session, &error) ||
        talk(session, &error))
        fprintf(stderr, "\n%s\n", error.text);
    ml_session_free(session);
    ml_model_free(model);
    return error.code != ML_OK;
}
