/* decode_table: measures all methods of decoding on a set of texts.

   build/decode_table stories260K.pt --tokenizer tok512.bin --judge examples/models/stories.gguf --texts stories.txt

   The first words of each line of the texts are a prompt; what follows them in the file is the row "text". Columns:
   perplexity of the continuations under the judge, a token, with its standard error over texts; the same in bits a
   byte; rep-4, the share of a text's 4-grams that it had before (Welleck et al. 2020, arXiv 1908.04319), with its
   standard error; distinct-n, the share of different n-grams in all continuations together (Li et al. 2016, arXiv
   1510.03055); new tokens, and how many a second. A star: less repetitive than greedy and likelier than plain
   sampling, both by more than twice the standard error of the difference. */
#include <limits.h>
#include <stdio.h>
#include "measures.h"
#include "../common/options.h"
#include "../common/progress.h"

typedef struct settings {
    const char *words[1], *tokenizer, *judge, *judge_tokenizer, *texts, *csv;
    int n_words, n_texts, max_new_tokens, seed, help;
} settings;

typedef struct table {
    const settings *set;
    ml_model *model, *other;
    ml_session *judge;
    char *text, **lines;
    void *work; /* for encoding the longest line */
    size_t work_size;
    int n_lines, n_rows;
    scores scores;
    table_row rows[N_METHODS + 1];
} table;

/* ---- one method ---- */

/* Where the words of a line that are the prompt end. */
static size_t prompt_length(const table *t, const char *line) {
    const char *end = line;
    for (int i = 0; i < t->set->n_words; i++) end += strspn(end, " "), end += strcspn(end, " ");
    return (size_t)(end - line);
}

/* The ids of a prompt, and those that follow in the file, at most max_new_tokens. */
static int encode_line(table *t, const char *line, ml_tokens *prompt, ml_tokens *rest) {
    int flags = t->model->tokenizer->adds_bos ? ML_ADD_BOS : 0, most = t->set->max_new_tokens;
    ml_encode_desc how = {line, prompt_length(t, line), flags, t->work, t->work_size};
    ml_error error;
    if (!succeeded(ml_tokenizer_encode(t->model->tokenizer, &how, prompt, &error), &error)) return 0;
    how.n_bytes = strlen(line);
    if (!succeeded(ml_tokenizer_encode(t->model->tokenizer, &how, rest, &error), &error)) return 0;
    prompt->ids = rest->ids; /* a prompt ends with a word, so its ids begin the whole line's */
    rest->ids += prompt->n;
    rest->n = rest->n - prompt->n < most ? rest->n - prompt->n : most;
    return 1;
}

/* Continues one line by a method, NULL: as the file does; and measures the result. */
static int measure_line(table *t, decoder *d, const decoding *how, char *line, table_row *r) {
    ml_tokens prompt = {NULL, 0}, written = {NULL, 0};
    ml_error error;
    buffer text = {NULL, 0, 0};
    size_t n = prompt_length(t, line);
    int ok = encode_line(t, line, &prompt, &written), most = t->set->max_new_tokens;
    double began = seconds_now();
    if (ok && how) ok = succeeded(decoder_write(d, how, &prompt, most, &written, &error), &error);
    r->seconds += seconds_now() - began;
    if (ok) r->n_new += written.n;
    if (ok && !append_text(t->model->tokenizer, &prompt, &written, &text)) ok = no_memory("a continuation");
    char after = line[n];
    line[n] = 0;
    ok = ok && scores_add(&t->scores, t->judge, line, text.bytes, &written);
    line[n] = after;
    buffer_free(&text);
    return ok;
}

/* A row of the table; m NULL: the texts. */
static int measure(table *t, const method *m) {
    table_row *r = &t->rows[t->n_rows++];
    decoding how = m ? m->how : methods[0].how;
    decoder d;
    ml_random random;
    ml_error error;
    int ok = succeeded(decoder_open(&d, t->model, &how, 1, &error), &error);
    ml_random_seed(&random, (uint64_t)t->set->seed);
    how.sampler.random = &random;
    memset(r, 0, sizeof *r);
    scores_clear(&t->scores);
    r->name = m ? m->name : "text";
    for (int i = 0; ok && i < t->n_lines; i++) ok = measure_line(t, &d, m ? &how : NULL, t->lines[i], r);
    decoder_close(&d);
    if (ok && !r->n_new) return complain("%s: nothing was written", r->name);
    if (ok) summarize(&t->scores, r);
    return ok;
}

/* ---- the table ---- */

static int write_table(const table *t) {
    whole_file csv;
    printf("%-16s %14s %9s %13s %29s %7s %9s\n", "", "perplexity", "bits/byte", "rep-4, %",
           "distinct-1, -2, -3", "tokens", "tokens/s");
    for (int i = 0; i < t->n_rows; i++) {
        const table_row *r = &t->rows[i];
        printf("%-14s %c %8.2f +-%4.2f %9.3f %7.2f +-%4.2f %11.3f %8.3f %8.3f %7ld", r->name,
               r->is_better ? '*' : ' ', r->ppl, r->ppl * r->log_error, r->bits, 100 * r->rep,
               100 * r->rep_error, r->distinct[0], r->distinct[1], r->distinct[2], r->n_new);
        if (i) printf(" %9.0f", (double)r->n_new / r->seconds);
        printf("\n");
    }
    if (!t->set->csv) return 1;
    if (!whole_file_begin(&csv, t->set->csv)) return 0;
    fprintf(csv.to,
            "method,perplexity,perplexity_error,bits_per_byte,rep_4,rep_4_error,distinct_1,distinct_2,"
            "distinct_3,tokens,tokens_per_second,is_better\n");
    for (int i = 0; i < t->n_rows; i++) {
        const table_row *r = &t->rows[i];
        fprintf(csv.to, "%s,%.4f,%.4f,%.5f,%.6f,%.6f,%.5f,%.5f,%.5f,%ld,%.1f,%d\n", r->name, r->ppl,
                r->ppl * r->log_error, r->bits, r->rep, r->rep_error, r->distinct[0], r->distinct[1],
                r->distinct[2], r->n_new, i ? (double)r->n_new / r->seconds : 0, r->is_better);
    }
    return whole_file_end(&csv);
}

/* The lines that have more than a prompt. */
static int find_lines(table *t) {
    char *line, *rest = t->text;
    t->work_size = ml_tokenizer_encode_size(strlen(rest));
    t->work = malloc(t->work_size);
    t->lines = (char **)calloc((size_t)t->set->n_texts, sizeof *t->lines);
    if (!t->work || !t->lines) return no_memory("the texts");
    while (t->n_lines < t->set->n_texts && (line = next_line(&rest)) != NULL) {
        const char *end = line + prompt_length(t, line);
        if (end[strspn(end, " ")]) t->lines[t->n_lines++] = line;
    }
    return t->n_lines || complain("%s: no line has more than %d words", t->set->texts, t->set->n_words);
}

static int run(table *t, const settings *s) {
    ml_error error;
    const used_file inputs[] = {{"MODEL", s->words[0]},
                                {"--judge", s->judge},
                                {"--texts", s->texts},
                                {"--tokenizer", s->tokenizer},
                                {"--judge_tokenizer", s->judge_tokenizer}};
    const used_file output = {"--csv", s->csv};
    double began = seconds_now();
    if (s->n_words < 1 || s->n_texts < 1 || s->max_new_tokens < 1 || s->n_texts > INT_MAX / s->max_new_tokens)
        return complain("--words, --n_texts and --max_new_tokens: are above 0");
    t->set = s;
    int ok =
        outputs_ready(&output, 1, inputs, 5) && models_spared(&output, 1, inputs, 2) &&
        (t->text = text_file_read(s->texts, NULL)) != NULL && find_lines(t) &&
        scores_new(&t->scores, t->n_lines, s->max_new_tokens) &&
        (t->model = load_with_tokenizer(s->words[0], "--tokenizer", s->tokenizer, ML_TYPE_NONE)) != NULL &&
        (t->other = load_with_tokenizer(s->judge, "--judge_tokenizer", s->judge_tokenizer, ML_TYPE_NONE)) !=
            NULL &&
        succeeded(ml_session_new(t->other, NULL, &t->judge, &error), &error) && measure(t, NULL);
    for (int i = 0; ok && i < N_METHODS; i++) {
        ok = measure(t, &methods[i]);
        progress_bar("methods", i + 1, N_METHODS, began);
    }
    for (int i = 3; ok && i < t->n_rows; i++) /* after text, greedy and sample */
        t->rows[i].is_better = is_better_than_both(&t->rows[i], &t->rows[1], &t->rows[2]);
    return ok && write_table(t);
}

int main(int argc, char **argv) {
    settings s = {.n_words = 6, .n_texts = 100, .max_new_tokens = 100, .seed = 1};
    const option options[] = {
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "for a model that has none"},
        {"--judge", OPTION_TEXT, &s.judge, "the model that judges, best a larger one (required)"},
        {"--judge_tokenizer", OPTION_TEXT, &s.judge_tokenizer, "for one that has none"},
        {"--texts", OPTION_TEXT, &s.texts, "a file, one text a line (required)"},
        {"--n_texts", OPTION_INT, &s.n_texts, "how many of them (100)"},
        {"--words", OPTION_INT, &s.n_words, "of a line that are the prompt (6)"},
        {"--max_new_tokens", OPTION_INT, &s.max_new_tokens, "(100)"},
        {"--csv", OPTION_TEXT, &s.csv, "also write the table there"},
        {"--seed", OPTION_INT, &s.seed, "of the random choices (1)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n, s.words, 1)) return 2;
    if (s.help || !s.words[0] || !s.judge || !s.texts) {
        fprintf(s.help ? stdout : stderr, "usage: decode_table MODEL --judge MODEL --texts FILE [options]\n");
        options_print(s.help ? stdout : stderr, options, n);
        return s.help ? 0 : 2;
    }
    static table t;
    int ok = run(&t, &s);
    ml_session_free(t.judge);
    ml_model_free(t.model), ml_model_free(t.other);
    scores_free(&t.scores);
    free(t.lines), free(t.work), free(t.text);
    return !(ok && output_written());
}
