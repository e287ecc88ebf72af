/* decode: continues prompts by beam search, contrastive search, mirostat and others.

   build/decode examples/models/stories.gguf --method beam "Once upon a time"
   build/decode MODEL --method contrastive --prompts prompts.txt --max_new_tokens 100

   A method is a group of settings (--help lists them), and each setting has a flag that changes it. */
#include <limits.h>
#include <stdio.h>
#include "methods.h"
#include "../common/options.h"
#include "../common/progress.h"

typedef struct settings {
    const char *words[2]; /* the model and a prompt */
    const char *method, *tokenizer, *prompts;
    decoding how;
    int max_new_tokens, n_best, seed, threads, help;
} settings;

static int in_range(const char *name, double value, double least, double most) {
    return (value >= least && value <= most) ||
           complain("%s: is %g, not in %g to %g", name, value, least, most);
}

/* Settings that make no sense, alone or together. */
static int check(const settings *s) {
    const decoding *h = &s->how;
    const ml_sampler *filter = &h->sampler;
    int is_drawn = h->typical > 0 || h->eta > 0 || h->surprise > 0 || filter->top_k > 0 ||
                   filter->top_p > 0 || filter->min_p > 0 || filter->epsilon > 0;
    if (!in_range("--beams", h->beams, 0, MAX_BEAMS) || !in_range("--groups", h->groups, 0, MAX_BEAMS) ||
        !in_range("--candidates", h->candidates, 0, MAX_CANDIDATES) ||
        !in_range("--alpha", (double)h->similarity, 0, 1) ||
        !in_range("--typical", (double)h->typical, 0, 1) || !in_range("--eta", (double)h->eta, 0, 1) ||
        !in_range("--surprise", (double)h->surprise, 0, 64) || !in_range("--rate", (double)h->rate, 0, 2) ||
        !in_range("--no_repeat", h->no_repeat, 0, INT_MAX) || !in_range("--dry", (double)h->dry, 0, 1e6) ||
        !in_range("--dry_base", (double)h->dry_base, 0, 100) ||
        !in_range("--dry_length", h->dry_length, 0, INT_MAX) ||
        !in_range("--length_penalty", (double)h->length_penalty, -10, 10) ||
        !in_range("--diversity", (double)h->diversity, 0, 1e6) ||
        !in_range("--temperature", (double)filter->temperature, 0, 1e6) ||
        !in_range("--top_k", filter->top_k, 0, INT_MAX) ||
        !in_range("--top_p", (double)filter->top_p, 0, 1) ||
        !in_range("--min_p", (double)filter->min_p, 0, 1) ||
        !in_range("--epsilon", (double)filter->epsilon, 0, 1) ||
        !in_range("--max_new_tokens", s->max_new_tokens, 1, INT_MAX) ||
        !in_range("--n_best", s->n_best, 1, MAX_BEAMS) || !in_range("--threads", s->threads, 1, 1024))
        return 0;
    if (h->beams && h->candidates)
        return complain("--beams: is a beam search, --candidates a contrastive one");
    if (h->groups && (!h->beams || h->beams % h->groups))
        return complain("--groups: %d beams cannot be divided into %d groups", h->beams, h->groups);
    if ((h->beams || h->candidates) && (is_drawn || h->sampler.temperature > 0))
        return complain("--method %s: draws nothing, so there is no temperature and no filter", s->method);
    if (s->n_best > (h->beams ? h->beams : 1))
        return complain("--n_best: is %d, more than there are beams", s->n_best);
    return !(is_drawn && !(h->sampler.temperature > 0)) ||
           complain("--temperature: is 0, and then nothing is drawn from what a filter leaves");
}

/* An option that would change nothing is refused. */
static int check_uses(const settings *s, int argc, char **argv, const option *options, int n) {
    const decoding *h = &s->how, *its = &method_named(s->method)->how;
    if ((its->beams && !h->beams) || (its->candidates && !h->candidates) || (its->groups && !h->groups))
        return complain("--method %s: needs --%s of 1 or more", s->method,
                        its->candidates ? "candidates"
                        : h->beams == 0 ? "beams"
                                        : "groups");
    const struct {
        const char *name, *needed;
        int is_used;
    } given[] = {{"--length_penalty", "--beams", h->beams > 0},
                 {"--diversity", "--groups 2 or more", h->groups > 1},
                 {"--alpha", "--candidates", h->candidates > 0},
                 {"--rate", "--surprise", h->surprise > 0},
                 {"--dry_base", "--dry", h->dry > 0},
                 {"--dry_length", "--dry", h->dry > 0}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++)
        if (!given[i].is_used && option_given(argc, argv, options, n, given[i].name))
            return complain("%s: changes nothing without %s", given[i].name, given[i].needed);
    return 1;
}

/* Prints the n best texts, the best first. */
static int print_texts(decoder *d, const ml_tokens *prompt, int n_best) {
    for (int i = 0; i < n_best; i++) {
        hypothesis *h = &d->beams[d->best];
        ml_tokens nothing = {NULL, 0},
                  written = {h->session->tokens + prompt->n, h->session->length - prompt->n};
        buffer text = {NULL, 0, 0};
        int ok = append_text(d->model->tokenizer, &nothing, prompt, &text) &&
                 append_text(d->model->tokenizer, prompt, &written, &text);
        if (ok && n_best > 1) printf("[%.3f] ", h->score);
        if (ok) printf("%s\n", text.bytes);
        buffer_free(&text);
        if (!ok) return no_memory("the text");
        h->state = BEAM_FREE; /* printed */
        if (!best_hypothesis(d)) break;
    }
    return output_written();
}

/* Continues one prompt; *n_new counts the new tokens. */
static int decode_one(decoder *d, const settings *s, const char *prompt, long *n_new) {
    int flags = d->model->tokenizer->adds_bos ? ML_ADD_BOS : 0;
    ml_tokens ids, written;
    ml_error error;
    ml_result result = ml_session_encode(d->beams->session, prompt, flags, &ids, &error);
    if (!result && ids.n == 0) return complain("an empty prompt needs a bos to begin with");
    if (!result) result = decoder_write(d, &s->how, &ids, s->max_new_tokens, &written, &error);
    if (!result) *n_new += written.n;
    return succeeded(result, &error) && print_texts(d, &ids, s->n_best);
}

static int decode_all(decoder *d, const settings *s) {
    const char *prompt = s->words[1] ? s->words[1] : "Once upon a time";
    char *text = s->prompts ? text_file_read(s->prompts, NULL) : NULL, *rest = text;
    double began = seconds_now();
    long n_new = 0;
    int ok = !s->prompts || text, n = 0;
    while (ok && (text ? (prompt = next_line(&rest)) != NULL : n == 0)) {
        if (n++) printf("\n");
        ok = decode_one(d, s, prompt, &n_new);
    }
    if (ok && n == 0) ok = complain("%s: there is no prompt in it", s->prompts);
    if (ok) fprintf(stderr, "(%ld tokens, %.0f a second)\n", n_new, (double)n_new / (seconds_now() - began));
    free(text);
    return ok;
}

static int run(settings *s) {
    decoder d;
    ml_random random;
    ml_error error;
    if (!check(s)) return 0;
    if (s->prompts && s->words[1]) return complain("--prompts: there is a prompt on the command line, too");
    ml_model *model = load_with_tokenizer(s->words[0], "--tokenizer", s->tokenizer, ML_TYPE_NONE);
    if (!model) return 0;
    ml_random_seed(&random, (uint64_t)s->seed);
    s->how.sampler.random = &random;
    int ok = succeeded(decoder_open(&d, model, &s->how, s->threads, &error), &error) && decode_all(&d, s);
    decoder_close(&d);
    ml_model_free(model);
    return ok;
}

static void usage(FILE *file, const option *options, int n) {
    fprintf(file, "usage: decode MODEL [PROMPT] [options]\n");
    options_print(file, options, n);
    fprintf(file, "methods\n");
    for (int i = 0; i < N_METHODS; i++) fprintf(file, "  %-42s %s\n", methods[i].name, methods[i].about);
}

int main(int argc, char **argv) {
    static settings s = {.method = "beam", .max_new_tokens = 100, .n_best = 1, .seed = 1, .threads = 1};
    const option options[] = {
        {"--method", OPTION_TEXT, &s.method, "see below (beam); the other defaults depend on it"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "for a model that has none"},
        {"--prompts", OPTION_TEXT, &s.prompts, "a file of prompts, one per line"},
        {"--max_new_tokens", OPTION_INT, &s.max_new_tokens, "(100)"},
        {"--n_best", OPTION_INT, &s.n_best, "print so many beams, with their scores (1)"},
        {"--temperature", OPTION_FLOAT, &s.how.sampler.temperature,
         "0: the most likely; 1: as the model says"},
        {"--top_k", OPTION_INT, &s.how.sampler.top_k, "draw from the k most likely"},
        {"--top_p", OPTION_FLOAT, &s.how.sampler.top_p, "draw from the most likely with mass p"},
        {"--min_p", OPTION_FLOAT, &s.how.sampler.min_p, "draw from what has this share of the best"},
        {"--epsilon", OPTION_FLOAT, &s.how.sampler.epsilon, "draw from what has this probability"},
        {"--typical", OPTION_FLOAT, &s.how.typical, "mass of the locally typical set"},
        {"--eta", OPTION_FLOAT, &s.how.eta, "epsilon of eta sampling"},
        {"--surprise", OPTION_FLOAT, &s.how.surprise, "tau of mirostat 2, in bits"},
        {"--rate", OPTION_FLOAT, &s.how.rate, "its learning rate"},
        {"--dry", OPTION_FLOAT, &s.how.dry, "multiplier of DRY's penalty"},
        {"--dry_base", OPTION_FLOAT, &s.how.dry_base, "its growth by token of the repetition"},
        {"--dry_length", OPTION_INT, &s.how.dry_length, "tokens that repeat before the next one costs"},
        {"--no_repeat", OPTION_INT, &s.how.no_repeat, "no n-gram of this length occurs twice"},
        {"--beams", OPTION_INT, &s.how.beams, "width of the beam search"},
        {"--groups", OPTION_INT, &s.how.groups, "its groups (diverse beam search)"},
        {"--length_penalty", OPTION_FLOAT, &s.how.length_penalty, "0: log p; larger favors longer texts"},
        {"--diversity", OPTION_FLOAT, &s.how.diversity, "what a token of one group costs the next, in nats"},
        {"--candidates", OPTION_INT, &s.how.candidates, "k of contrastive search"},
        {"--alpha", OPTION_FLOAT, &s.how.similarity, "its weight of the similarity"},
        {"--seed", OPTION_INT, &s.seed, "of the random choices (1)"},
        {"--threads", OPTION_INT, &s.threads, "(1)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n, s.words, 2)) return 2;
    if (s.help || !s.words[0]) return usage(s.help ? stdout : stderr, options, n), s.help ? 0 : 2;
    const method *chosen = method_named(s.method);
    if (!chosen) return 2;
    s.how = chosen->how;
    s.how.dry_base = 1.75f, s.how.dry_length = 2, s.how.rate = 0.1f; /* for methods that do not use them */
    if (!options_read(argc, argv, options, n, s.words, 2)) return 2; /* over the method's defaults */
    return !check_uses(&s, argc, argv, options, n) || !run(&s);
}
