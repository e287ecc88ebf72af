/* Labels without training, in every way of zero_shot.h: one table of all models, tasks, prompts and scores.
   build/zero_shot stories42M.pt --tokenizer tokenizer.model --data data --csv zero-shot.csv
   A method is PROMPT/WORDS/SCORE, with /N-shot after it where examples are in the prompt. The batch calibration of a
   set sees all of its sentences, and no labels. The seconds are those of a prompt, which all of its scores share. */
#include <limits.h>
#include "zero_shot.h"
#include "../common/options.h"
#include "../common/threads.h"

/* Each by the name of a label, and by all its words. */
static const scoring scorings[] = {{"sum", 0, 0, BASE_NONE},
                                   {"mean", 0, 1, BASE_NONE},
                                   {"pmi", 0, 0, BASE_PREMISE},
                                   {"contextual", 0, 0, BASE_CONTENT},
                                   {"batch", 0, 0, BASE_BATCH}};
#define COUNT(array) (int)(sizeof(array) / sizeof *(array))

typedef struct settings {
    const char *tokenizer, *data, *tasks, *only, *test_gold, *csv;
    int shots, seed, seeds, threads, help;
    FILE *csv_file;
} settings;

/* One task of one model. */
typedef struct run {
    const settings *set;
    const char *model;
    char task[64], path[4][4096]; /* train, dev, test, labels */
    sentiment s;                  /* its labels are the words */
    label_names labels;
    wordings words;
    scored_set dev, test;
    double best; /* accuracy on dev */
    int best_template;
    char best_method[128];
} run;

/* A line of the table and of the CSV, for what was predicted. */
static void print_row(run *r, const char *method, int seed, double seconds) {
    double dev = sentiment_measure(&r->s.dev, r->dev.predicted, r->labels.n).accuracy;
    double test = sentiment_measure(&r->s.test, r->test.predicted, r->labels.n).accuracy;
    const char *model = file_name(r->model);
    char gold[16] = "", gold_shown[16] = "";
    if (r->s.gold) {
        double x = sentiment_measure_by(r->s.gold, &r->s.test, r->test.predicted, r->labels.n).accuracy;
        snprintf(gold, sizeof gold, "%.6f", x);
        snprintf(gold_shown, sizeof gold_shown, "%.3f", x);
    }
    printf("| %-16s | %-6s | %-32s | %4d | %.3f | %.3f | %5s | %6.1f |\n", model, r->task, method, seed, dev,
           test, gold_shown, seconds);
    fflush(stdout);
    if (r->set->csv_file)
        fprintf(r->set->csv_file, "%s,%s,%s,%d,%.6f,%.6f,%s,%.2f\n", method, model, r->task, seed, dev, test,
                gold, seconds);
    if (dev > r->best) snprintf(r->best_method, sizeof r->best_method, "%s", method);
    r->best = fmax(r->best, dev);
}

/* All scores of one prompt, without examples or with `shots` of each label. */
static int run_template(run *r, int t, int shots, int seed) {
    char question[4096], method[128];
    prompt p = {0};
    baseline_scores base;
    double began = seconds_now(), best = r->best;
    sentiment_question(&r->labels, question, sizeof question);
    question[strlen(question) - 1] = 0; /* the last space goes to the label */
    p.ask = templates[t].ask ? templates[t].ask : question;
    int ok = !shots || examples_make(&p, &r->s, &r->labels, shots, seed);
    if (ok && shots && !p.n_per_label)
        return fprintf(stderr, "%s, %s: no examples fit half of the context\n", r->model, r->task), 1;
    ok = ok && score_baselines(&r->s, &p, templates[t].premise, &base) &&
         score_set(&r->s, &p, &r->s.dev, &r->dev, "dev") &&
         score_set(&r->s, &p, &r->s.test, &r->test, "test");
    double seconds = seconds_now() - began;
    for (int i = 0; i < 2 * COUNT(scorings) && ok; i++) {
        scoring how = scorings[i / 2];
        how.all_words = i % 2;
        int n = snprintf(method, sizeof method, "%s/%s/%s", templates[t].name,
                         how.all_words ? "words" : "name", how.name);
        if (shots) snprintf(method + n, sizeof method - (size_t)n, "/%d-shot", p.n_per_label);
        predict_labels(&r->words, &how, &base, &r->dev);
        predict_labels(&r->words, &how, &base, &r->test);
        print_row(r, method, seed, seconds);
    }
    if (!shots && r->best > best) r->best_template = t;
    buffer_free(&p.examples);
    return ok;
}

/* The assignment's way, which is a model of its own: LayerNorm and full attention. */
static int run_reference(run *r) {
    double began = seconds_now();
    ml_model *model = load_as(r->model, r->set->tokenizer, 1);
    int ok = model && score_reference(model, r->path, r->set->threads, r->dev.predicted, r->test.predicted);
    if (ok) print_row(r, "question/name/reference", r->set->seed, seconds_now() - began);
    ml_model_free(model);
    return ok;
}

static int read_task(run *r) {
    sentiment *s = &r->s;
    if (!read_sets(s, &r->labels, r->set->data, r->task, r->path) ||
        !wordings_make(&r->words, &r->labels, label_synonyms, COUNT(label_synonyms)) ||
        !read_gold(s, r->labels.n, r->set->test_gold, !strchr(r->set->tasks, ',')))
        return 0;
    s->labels = r->words.list;
    return sentiment_label_ids(s, &r->words.tokens) && scored_set_new(&r->dev, s->dev.n, &r->words) &&
           scored_set_new(&r->test, s->test.n, &r->words);
}

static int run_task(const settings *set, const char *model, const char *task) {
    run r = {0};
    r.set = set, r.model = model, r.best = -1;
    ml_session_desc desc = {0};
    ml_error error;
    snprintf(r.task, sizeof r.task, "%s", task);
    desc.threads.count = set->threads;
    r.s.model = load_as(model, set->tokenizer, 0);
    int ok = r.s.model && read_task(&r) &&
             succeeded(ml_session_new(r.s.model, &desc, &r.s.session, &error), &error);
    for (int i = 0; i < COUNT(templates) && ok; i++)
        if (!set->only || strcmp(set->only, templates[i].name) == 0) ok = run_template(&r, i, 0, set->seed);
    for (int i = 0; i < set->seeds && set->shots && ok; i++)
        ok = run_template(&r, r.best_template, set->shots, set->seed + i);
    ok = ok && (set->only || run_reference(&r));
    if (ok) printf("%s, %s: best on dev is %s, %.3f\n", file_name(model), task, r.best_method, r.best);
    scored_set_free(&r.dev);
    scored_set_free(&r.test);
    free(r.labels.text);
    ml_model *of = r.s.model;
    sentiment_free(&r.s);
    ml_model_free(of);
    return ok;
}

static int spares_task(const settings *s, const char *model, const char *task) {
    return spares_sets(s->csv, model, s->tokenizer, s->test_gold, s->data, task);
}

/* Every task of every model. */
static int for_all(const settings *s, const char *const *models,
                   int (*with)(const settings *, const char *model, const char *task)) {
    char task[64];
    for (; *models; models++)
        for (const char *at = s->tasks; *at; at += strcspn(at, ","), at += *at == ',') {
            snprintf(task, sizeof task, "%.*s", (int)strcspn(at, ","), at);
            if (!with(s, *models, task)) return 0;
        }
    return 1;
}

static int run_all(const settings *s, const char *const *models) {
    printf("| %-16s | %-6s | %-32s | %4s | %-5s | %-5s | %-5s | %6s |\n", "model", "task", "method", "seed",
           "dev", "test", "gold", "s");
    puts("| --- | --- | --- | --- | --- | --- | --- | --- |");
    return for_all(s, models, run_task);
}

static int check(const settings *s) {
    int known = !s->only;
    for (int i = 0; i < COUNT(templates) && !known; i++) known = strcmp(s->only, templates[i].name) == 0;
    if (!known) return complain("--template is question, it-was, film or tone, not %s", s->only);
    if (!*s->tasks) return complain("--tasks is empty");
    return (s->shots >= 0 && s->shots <= MAX_SHOTS && s->seeds > 0 && s->seed <= INT_MAX - s->seeds &&
            s->threads > 0 && s->threads <= 1024) ||
           complain("--shots is 0 to %d, --seeds positive, --threads 1 to 1024", MAX_SHOTS);
}

int main(int argc, char **argv) {
    settings s = {NULL, "data", "sst,cfimdb", NULL, NULL, NULL, 1, 1337, 3, default_threads(), 0, NULL};
    const char *models[9] = {NULL}; /* ended by NULL */
    const option options[] = {
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "of models that have none in or next to them"},
        {"--data", OPTION_TEXT, &s.data, "folder of TASK-train.txt, -dev, -test, -label-mapping.json (data)"},
        {"--tasks", OPTION_TEXT, &s.tasks, "(sst,cfimdb)"},
        {"--template", OPTION_TEXT, &s.only, "only question, it-was, film or tone, and no reference (all)"},
        {"--test_gold", OPTION_TEXT, &s.test_gold, "labels in place of placeholders (TASK-test-gold.txt)"},
        {"--shots", OPTION_INT, &s.shots, "examples of each label, in the best template (1; 0: none)"},
        {"--seed", OPTION_INT, &s.seed, "of the choice of examples (1337)"},
        {"--seeds", OPTION_INT, &s.seeds, "choices of examples (3)"},
        {"--csv", OPTION_TEXT, &s.csv, "the table as method,model,task,seed,dev,test,gold,seconds (none)"},
        {"--threads", OPTION_INT, &s.threads, "(OMP_NUM_THREADS or all processors)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    if (!options_read(argc, argv, options, COUNT(options), models, COUNT(models) - 1)) return 2;
    if (s.help || !models[0]) {
        fprintf(s.help ? stdout : stderr, "usage: zero_shot MODEL... [options]\n");
        options_print(s.help ? stdout : stderr, options, COUNT(options));
        return s.help ? 0 : 2;
    }
    whole_file csv;
    if (!check(&s)) return 2;
    if (!for_all(&s, models, spares_task) || (s.csv && !whole_file_begin(&csv, s.csv))) return 1;
    if (s.csv) fputs("method,model,task,seed,dev,test,gold,seconds\n", s.csv_file = csv.to);
    int ok = run_all(&s, models);
    if (!ok && s.csv) whole_file_drop(&csv);
    return !ok || (s.csv && !whole_file_end(&csv)) || !output_written();
}
