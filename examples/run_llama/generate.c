/* Continues a text: the assignment's two sentences into files, or the user's prompt to standard output. */
#include <limits.h>
#include <time.h>
#include "run_llama.h"
#include "../common/file.h"
#include "../common/threads.h"

static const char assignment_prompt[] = "I have wanted to see this thriller for a while, and it didn't "
                                        "disappoint. Keanu Reeves, playing the hero "
                                        "John Wick, is";

/* With fewer parameters a token takes less time than waking a second thread. */
enum { SMALL = 4000000 };

/* Where new text goes. */
typedef struct output {
    buffer made;
    FILE *stream; /* where it is also written immediately; NULL: nowhere */
} output;

static int append_token(void *user, int32_t id, const char *bytes, size_t n) {
    output *out = (output *)user;
    (void)id;
    if (out->stream && (fwrite(bytes, 1, n, out->stream) != n || fflush(out->stream) != 0)) return 0;
    return buffer_append(&out->made, bytes, n);
}

/* Says why a text ends where it does, if the context is full. */
static void explain_end(const ml_session *session, const settings *s, const ml_generated *made) {
    if (made->stop != ML_STOP_CONTEXT) return;
    fprintf(stderr, "(the context of %d tokens is full", session->max_seq_len);
    if (s->max_new_tokens) fprintf(stderr, ", after %d of %d new ones", made->n_new, s->max_new_tokens);
    fprintf(stderr, "; --slide writes on)\n");
}

/* Continues the prompt into `out`, the prompt included. */
static int write_on(ml_session *session, const settings *s, const char *prompt, float temperature,
                    output *out, ml_generated *generated) {
    ml_generate_desc desc = {0};
    ml_random random;
    ml_error error;
    ml_random_seed(&random, (uint64_t)s->seed);
    desc.prompt = prompt;
    desc.max_new_tokens = s->slide && !s->max_new_tokens ? INT_MAX : s->max_new_tokens; /* 0: what fits */
    desc.overflow = s->slide ? ML_OVERFLOW_SLIDE : ML_OVERFLOW_ERROR;
    desc.sampler = s->sampler;
    desc.sampler.temperature = temperature;
    desc.sampler.random = &random;
    desc.on_token = append_token;
    desc.user = out;
    if (!append_token(out, -1, prompt, strlen(prompt)))
        return out->stream && ferror(out->stream) ? whole_file_failed("standard output")
                                                  : no_memory("the text");
    ml_result result = ml_session_generate(session, &desc, generated, &error);
    if (result && out->stream) append_token(out, -1, "\n", 1); /* the error has its own line */
    return succeeded(result, &error);
}

/* The assignment's two continuations: temperature 0 into one file, 1 into another. */
static int generate_both(ml_session *session, const settings *s) {
    const char *const paths[2] = {s->low_out, s->high_out};
    int ok = 1;
    printf("load model from %s\n", s->model);
    for (int i = 0; i < 2 && ok; i++) {
        output out = {{NULL, 0, 0}, NULL};
        ml_generated made = {0, 0, ML_STOP_LENGTH};
        ok = write_on(session, s, assignment_prompt, (float)i, &out, &made);
        if (ok) {
            printf("Temperature is %.1f\n%.*s\n---------------\n", (double)i, (int)out.made.length,
                   out.made.bytes);
            ok = file_write(paths[i], out.made.bytes, out.made.length);
        }
        if (ok) printf("Wrote generated sentence to %s.\n", paths[i]);
        if (ok) explain_end(session, s, &made);
        buffer_free(&out.made);
    }
    return ok;
}

/* The user's prompt, streamed to standard output, and nothing else there. */
static int generate_one(ml_session *session, const settings *s) {
    output out = {{NULL, 0, 0}, stdout};
    ml_generated made = {0, 0, ML_STOP_LENGTH};
    clock_t begin = clock();
    int ok = write_on(session, s, s->prompt, s->sampler.temperature, &out, &made);
    buffer_free(&out.made);
    if (!ok) return 0;
    printf("\n");
    if (!output_written()) return 0;
    explain_end(session, s, &made);
    fprintf(stderr, "(%d tokens read, %d written, %.2f s of processor time)\n", made.n_prompt, made.n_new,
            (double)(clock() - begin) / CLOCKS_PER_SEC);
    return 1;
}

static int files_ready(const settings *s) {
    const used_file inputs[] = {
        {"--pretrained-model-path", s->model}, {"--lora", s->adapter}, {"--tokenizer", s->tokenizer}};
    const used_file outputs[] = {{"--generated_sentence_low_temp_out", s->prompt ? NULL : s->low_out},
                                 {"--generated_sentence_high_temp_out", s->prompt ? NULL : s->high_out}};
    return outputs_ready(outputs, 2, inputs, 3) && models_spared(outputs, 2, inputs, 2);
}

int generate(const settings *s) {
    ml_session_desc desc = {0};
    ml_session *session = NULL;
    ml_lora *lora = NULL;
    ml_error error;
    ml_model *model = files_ready(s) ? load_model(s, ML_TYPE_NONE) : NULL;
    if (!model) return 1;
    desc.threads.count = s->threads ? s->threads : model->n_parameters < SMALL ? 1 : default_threads();
    if (s->adapter) desc.lora = lora = load_adapter(s->adapter, model, s->sentiment.lora_scale);
    int ok = (lora || !s->adapter) && succeeded(ml_session_new(model, &desc, &session, &error), &error) &&
             (s->prompt ? generate_one(session, s) : generate_both(session, s));
    ml_session_free(session);
    ml_lora_free(lora);
    ml_model_free(model);
    return !ok;
}
