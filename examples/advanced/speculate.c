/* speculate: writes faster, and the same: a small model drafts, the large one checks several tokens in one pass.

   build/speculate LARGE --draft SMALL "Once upon a time"      both need the same tokenizer
   build/speculate MODEL --prompts prompts.txt --n_draft 4     drafts from the text so far

   Prints the texts and, on standard error, the tokens for a second of processor time with and without, the share of
   the draft that was accepted, and the tokens that one pass of the large model gave. A pass of up to 5 tokens
   (quantized: 4) computes the same bits as one by one, so greedy texts are the same up to --n_draft 4 (3); beyond,
   rounding may decide a tie differently. */
#include <limits.h>
#include <stdio.h>
#include "speculation.h"
#include "methods.h"
#include "../common/options.h"
#include "../common/progress.h"

typedef struct settings {
    const char *words[2]; /* the model and a prompt */
    const char *tokenizer, *draft, *draft_tokenizer, *prompts;
    float temperature;
    int max_new_tokens, n_draft, n_gram, seed, threads, f32, quiet, help;
} settings;

typedef struct writer {
    const settings *set;
    ml_model *model, *draft_model;
    ml_session *plain; /* for comparison */
    speculation fast;
    ml_random random;
    double plain_seconds, fast_seconds;
    long plain_tokens, fast_tokens;
    int n_texts, n_same;
} writer;

static int check(const settings *s) {
    const struct {
        const char *name;
        int value, most;
    } numbers[] = {{"--max_new_tokens", s->max_new_tokens, INT_MAX},
                   {"--n_draft", s->n_draft, MAX_DRAFT},
                   {"--n_gram", s->n_gram, 1000},
                   {"--threads", s->threads, 1024}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (numbers[i].value < 1 || numbers[i].value > numbers[i].most)
            return complain("%s: is %d, not in 1 to %d", numbers[i].name, numbers[i].value, numbers[i].most);
    if (s->temperature < 0) return complain("--temperature: is below 0");
    if (s->draft_tokenizer && !s->draft) return complain("--draft_tokenizer: there is no --draft");
    return !(s->prompts && s->words[1]) || complain("--prompts: there is a prompt on the command line, too");
}

/* The large model alone; the session then holds prompt and new tokens. Processor time, since the two could not be
   compared on a busy machine otherwise. */
static ml_result write_plain(writer *w, const ml_tokens *prompt, ml_error *error) {
    ml_generate_desc desc;
    ml_generated made;
    double began = cpu_seconds_now();
    memset(&desc, 0, sizeof desc);
    desc.prompt_ids = *prompt;
    desc.max_new_tokens = w->set->max_new_tokens;
    desc.sampler.temperature = w->set->temperature;
    desc.sampler.random = &w->random;
    ml_result result = ml_session_generate(w->plain, &desc, &made, error);
    w->plain_seconds += cpu_seconds_now() - began;
    w->plain_tokens += made.n_new;
    return result;
}

static int is_end(const ml_tokenizer *t, int32_t id) {
    int is = id == t->bos;
    for (int i = 0; i < t->n_ends; i++) is |= id == t->ends[i];
    return is;
}

/* With drafts; new tokens follow the prompt in fast.text, without the end. */
static ml_result write_fast(writer *w, const ml_tokens *prompt, ml_tokens *written, ml_error *error) {
    speculation *s = &w->fast;
    int room = s->target->max_seq_len - prompt->n, n_new = 1, n = 0, is_over = 0;
    int most = w->set->max_new_tokens < room ? w->set->max_new_tokens : room;
    double began = cpu_seconds_now();
    ml_result result = speculation_begin(s, prompt, error);
    while (!result && !is_over && n < most && n_new) {
        result = speculate(s, &n_new, error);
        for (int i = 0; i < n_new && n < most && !is_over; i++)
            if (!(is_over = is_end(w->model->tokenizer, s->text[prompt->n + n]))) n++;
    }
    w->fast_seconds += cpu_seconds_now() - began;
    w->fast_tokens += n;
    written->ids = s->text + prompt->n;
    written->n = n;
    return result;
}

static int write_one(writer *w, const char *prompt) {
    const ml_tokenizer *t = w->model->tokenizer;
    ml_tokens ids, written = {NULL, 0}, nothing = {NULL, 0};
    ml_error error;
    buffer text = {NULL, 0, 0};
    ml_result result = ml_session_encode(w->plain, prompt, t->adds_bos ? ML_ADD_BOS : 0, &ids, &error);
    if (!result && ids.n == 0) return complain("an empty prompt needs a bos to begin with");
    if (!result) result = write_plain(w, &ids, &error);
    if (!result) result = write_fast(w, &ids, &written, &error);
    if (!succeeded(result, &error)) return 0;
    w->n_texts++;
    w->n_same += w->plain->length == ids.n + written.n &&
                 memcmp(w->plain->tokens + ids.n, written.ids, (size_t)written.n * sizeof *ids.ids) == 0;
    if (w->set->quiet) return 1;
    int ok = append_text(t, &nothing, &ids, &text) && append_text(t, &ids, &written, &text);
    if (ok) printf("%s%s\n", w->n_texts > 1 ? "\n" : "", text.bytes);
    buffer_free(&text);
    return (ok || no_memory("the text")) && output_written();
}

static void report(const writer *w) {
    const speculation *s = &w->fast;
    double plain = (double)w->plain_tokens / w->plain_seconds,
           fast = (double)w->fast_tokens / w->fast_seconds;
    fprintf(stderr, "alone        %ld tokens, %.0f a second\n", w->plain_tokens, plain);
    fprintf(stderr, "speculative  %ld tokens, %.0f a second: %.2f times as many\n", w->fast_tokens, fast,
            fast / plain);
    fprintf(stderr, "of %ld drafted tokens %.3f accepted; %.2f tokens a pass\n", s->n_proposed,
            (double)s->n_accepted / (double)(s->n_proposed ? s->n_proposed : 1),
            (double)(s->n_accepted + s->n_passes) / (double)(s->n_passes ? s->n_passes : 1));
    if (!(w->set->temperature > 0))
        fprintf(stderr, "the same text for %d of %d prompts\n", w->n_same, w->n_texts);
}

static int write_all(writer *w) {
    const settings *set = w->set;
    const char *prompt = set->words[1] ? set->words[1] : "Once upon a time";
    char *text = set->prompts ? text_file_read(set->prompts, NULL) : NULL, *rest = text;
    int ok = !set->prompts || text;
    while (ok && (text ? (prompt = next_line(&rest)) != NULL : w->n_texts == 0)) ok = write_one(w, prompt);
    if (ok && w->n_texts == 0) ok = complain("%s: there is no prompt in it", set->prompts);
    if (ok) report(w);
    free(text);
    return ok;
}

static int run(writer *w, const settings *s) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.threads.count = s->threads;
    ml_error error;
    if (!check(s)) return 0;
    w->set = s;
    w->model = load_with_tokenizer(s->words[0], "--tokenizer", s->tokenizer, s->f32 ? ML_F32 : ML_TYPE_NONE);
    if (w->model && s->draft)
        w->draft_model = load_with_tokenizer(s->draft, "--draft_tokenizer", s->draft_tokenizer, ML_TYPE_NONE);
    if (!w->model || (s->draft && !w->draft_model)) return 0;
    ml_random_seed(&w->random, (uint64_t)s->seed);
    ml_result result = speculation_open(&w->fast, w->model, w->draft_model, s->threads, &error);
    if (!result) result = ml_session_new(w->model, &desc, &w->plain, &error);
    w->fast.n_draft = s->n_draft;
    w->fast.n_gram = s->n_gram;
    w->fast.temperature = s->temperature;
    w->fast.random = &w->random;
    return succeeded(result, &error) && write_all(w);
}

int main(int argc, char **argv) {
    static writer w;
    settings s = {.max_new_tokens = 100, .n_draft = 2, .n_gram = 3, .seed = 1, .threads = 1};
    const option options[] = {
        {"--draft", OPTION_TEXT, &s.draft, "the small model (none: drafts are looked up in the text)"},
        {"--n_draft", OPTION_INT, &s.n_draft, "most tokens drafted at once (2)"},
        {"--n_gram", OPTION_INT, &s.n_gram, "tokens that must have occurred before, without a draft (3)"},
        {"--temperature", OPTION_FLOAT, &s.temperature, "(0: greedy)"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "for a model that has none"},
        {"--draft_tokenizer", OPTION_TEXT, &s.draft_tokenizer, "for a draft model that has none"},
        {"--prompts", OPTION_TEXT, &s.prompts, "a file of prompts, one per line"},
        {"--max_new_tokens", OPTION_INT, &s.max_new_tokens, "(100)"},
        {"--seed", OPTION_INT, &s.seed, "of the random choices (1)"},
        {"--threads", OPTION_INT, &s.threads, "(1)"},
        {"--f32", OPTION_FLAG, &s.f32, "turn the large model's weights into F32"},
        {"--quiet", OPTION_FLAG, &s.quiet, "only the figures"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n, s.words, 2)) return 2;
    if (s.help || !s.words[0]) {
        fprintf(s.help ? stdout : stderr, "usage: speculate MODEL [PROMPT] [--draft MODEL] [options]\n");
        options_print(s.help ? stdout : stderr, options, n);
        return s.help ? 0 : 2;
    }
    if (s.draft && option_given(argc, argv, options, n, "--n_gram"))
        return !complain("--n_gram: is for drafts from the text so far, and there is --draft");
    int ok = run(&w, &s);
    speculation_close(&w.fast);
    ml_session_free(w.plain);
    ml_model_free(w.model), ml_model_free(w.draft_model);
    return !(ok && output_written());
}
