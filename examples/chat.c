/* A conversation in the terminal. Answers appear as they are written: Ctrl-C stops an answer, and at the prompt it
   ends the program, as Ctrl-D does; /reset begins again. The session's KV cache keeps what was said, so each turn reads
   only the new line; when the context is full, the oldest turns are forgotten. A model that has no chat template, such as
   the one in examples/models, continues a story instead, to which each line is added.
   cc -O3 -march=native -DMINILLAMA_IMPLEMENTATION -I. examples/chat.c -o chat -lm && ./chat MODEL */
#include <ctype.h>
#include <math.h>
#include <signal.h>
#include "minillama.h"
#include "common/file.h"
#include "common/options.h"
#include "common/threads.h"

enum { USUAL_CONTEXT = 4096 }; /* tokens: the KV cache of 131072, as Llama 3 has, takes gigabytes */

typedef struct settings {
    const char *model, *system, *format;
    int context, max_new_tokens, threads, seed, help;
    ml_sampler sampler;
} settings;

/* An answer as it is shown. */
typedef struct answer {
    int is_story, n_shown; /* tokens */
} answer;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number) { interrupted = number; }

/* Shows the prompt and reads a line; 0 at the end of the input, or when interrupted. Ctrl-C ends the wait for it, but
   no other call. */
static int read_line(buffer *line, ml_error *error) {
    printf("> ");
    if (fflush(stdout)) return 0;
    interrupted = 0; /* pressed when an answer had just ended */
    system_on_interrupt(on_interrupt, 1);
    int is_read = line_read(stdin, "standard input", line, error);
    system_on_interrupt(on_interrupt, 0);
    if (interrupted) error->code = ML_OK; /* that is why nothing was read */
    return is_read && !interrupted;
}

/* Shows a token, without the blanks that an answer may begin with. A story's turn ends with a line that has text. */
static int show_token(void *user, int32_t id, const char *text, size_t n) {
    answer *a = (answer *)user;
    (void)id;
    for (; !a->is_story && !a->n_shown && n && isspace((unsigned char)*text); n--) text++;
    if (n && (fwrite(text, 1, n, stdout) != n || fflush(stdout) != 0)) return 0;
    a->n_shown += n || a->is_story;
    return !interrupted && !(a->is_story && a->n_shown >= 3 && memchr(text, '\n', n));
}

static ml_result answer_line(ml_chat *chat, const settings *s, const char *line, ml_error *error) {
    answer a = {chat->format == ML_CHAT_PLAIN, 0};
    ml_generate_desc desc = {0};
    ml_generated made;
    desc.max_new_tokens = s->max_new_tokens;
    desc.sampler = s->sampler;
    desc.on_token = show_token;
    desc.user = &a;
    ml_result result = ml_chat_reply(chat, line, &desc, &made, error);
    if (!result) printf("\n");
    if (!result && made.stop == ML_STOP_CONTEXT)
        fprintf(stderr, "(this turn fills the context of %d tokens)\n", chat->session->max_seq_len);
    if (result == ML_ERROR_CONTEXT) /* nothing was done */
        fprintf(stderr, "%s\n", error->text), result = ML_OK, error->code = ML_OK;
    return result;
}

/* The turns, until the input ends or is interrupted. */
static ml_result talk(ml_session *session, const settings *s, ml_error *error) {
    ml_chat_desc desc = {ml_chat_format_from_name(s->format), s->system};
    ml_chat chat;
    buffer line = {NULL, 0, 0};
    ml_result result = ml_chat_begin(session, &desc, &chat, error);
    if (!result && system_is_terminal(stdin))
        fprintf(stderr, "%s, %d tokens; Ctrl-C stops an answer, Ctrl-D ends, /reset begins again\n",
                ml_chat_format_name(chat.format), session->max_seq_len);
    while (!result && !ferror(stdout) && read_line(&line, error)) {
        if (strcmp(line.bytes, "/reset") == 0)
            result = ml_chat_begin(session, &desc, &chat, error);
        else if (*line.bytes)
            result = answer_line(&chat, s, line.bytes, error);
    }
    if (!result && system_is_terminal(stdin)) printf("\n");
    buffer_free(&line);
    return result ? result : error->code;
}

/* A filter that would change nothing is refused. */
static int filters_draw(const ml_sampler *p) {
    return !(p->temperature <= 0) || !(p->top_k > 0 || p->top_p > 0 || p->min_p > 0) ||
           complain("--temperature: is 0, and then nothing is drawn from what a filter leaves");
}

/* Samples by default where a model was trained to chat; a story is told with the most likely words. */
static int set_defaults(settings *s, const ml_model *model, ml_random *random) {
    ml_chat_format format = ml_chat_format_from_name(s->format);
    if (!format) format = ml_chat_format_of_template(model->chat_template);
    int is_story = format <= ML_CHAT_PLAIN, most = model->config.max_seq_len;
    if (isnan(s->sampler.temperature)) s->sampler.temperature = is_story ? 0 : 0.7f;
    if (!filters_draw(&s->sampler)) return 0;
    if (isnan(s->sampler.top_p)) s->sampler.top_p = 0.9f;
    if (!s->max_new_tokens && is_story) s->max_new_tokens = 30;
    if (!s->context) s->context = most < USUAL_CONTEXT ? most : USUAL_CONTEXT;
    if (!s->threads) s->threads = default_threads();
    ml_random_seed(random, (uint64_t)s->seed);
    s->sampler.random = random;
    return 1;
}

/* temperature, top_p: NAN if they were not given. */
static int check_settings(const settings *s) {
    const ml_sampler *p = &s->sampler;
    if (s->format && !ml_chat_format_from_name(s->format))
        return complain("--template is plain, llama2, llama3, chatml or zephyr, not %s", s->format);
    if (p->temperature < 0 || p->top_k < 0 || p->repetition_penalty < 0)
        return complain("--temperature, --top-k and --repetition-penalty are not negative");
    if (p->top_p < 0 || p->top_p > 1 || p->min_p < 0 || p->min_p > 1)
        return complain("--top-p and --min-p are between 0 and 1");
    if (s->max_new_tokens < 0) return complain("--max-new-tokens is not negative");
    return filters_draw(p);
}

static int chat(settings *s) {
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_session_desc desc = {0};
    ml_random random;
    if (!ml_model_load(s->model, NULL, &model, &error)) {
        if (!set_defaults(s, model, &random)) return ml_model_free(model), 2;
        desc.max_seq_len = s->context;
        desc.threads.count = s->threads;
        system_on_interrupt(on_interrupt, 0);
        if (has_tokenizer(model, s->model, &error) && !ml_session_new(model, &desc, &session, &error))
            talk(session, s, &error);
    }
    if (error.code) fprintf(stderr, "\n%s\n", error.text);
    int is_written = output_written();
    ml_session_free(session);
    ml_model_free(model);
    return error.code || !is_written;
}

int main(int argc, char **argv) {
    settings s = {0};
    s.sampler.temperature = s.sampler.top_p = NAN, s.seed = 1;
    const option options[] = {
        {"--system", OPTION_TEXT, &s.system, "what the model is told first (nothing)"},
        {"--template", OPTION_TEXT, &s.format,
         "plain, llama2, llama3, chatml or zephyr (the file's, else plain)"},
        {"--temperature", OPTION_FLOAT, &s.sampler.temperature, "0: always the most likely (0.7; plain: 0)"},
        {"--top-k", OPTION_INT, &s.sampler.top_k, "keep the k most likely (0: all)"},
        {"--top-p", OPTION_FLOAT, &s.sampler.top_p,
         "keep the most likely that reach p together (0.9; 0: all)"},
        {"--min-p", OPTION_FLOAT, &s.sampler.min_p, "drop what is below p times the most likely (0)"},
        {"--repetition-penalty", OPTION_FLOAT, &s.sampler.repetition_penalty,
         "1.1 avoids the last 64 tokens (0)"},
        {"--seed", OPTION_INT, &s.seed, "seed of the random choices (1)"},
        {"--max-new-tokens", OPTION_INT, &s.max_new_tokens, "of an answer (0: until it ends; plain: 30)"},
        {"--context", OPTION_INT, &s.context, "tokens that are remembered (the model's, at most 4096)"},
        {"--threads", OPTION_INT, &s.threads, "(all processors)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n = sizeof options / sizeof *options;
    if (!options_read(argc, argv, options, n, &s.model, 1)) return 2;
    if (s.help || !s.model) {
        fprintf(s.help ? stdout : stderr, "usage: chat MODEL [options]\n");
        options_print(s.help ? stdout : stderr, options, n);
        return s.help ? 0 : 2;
    }
    return check_settings(&s) ? chat(&s) : 2;
}
