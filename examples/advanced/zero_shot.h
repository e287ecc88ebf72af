/* Labels without training: from the log-likelihoods of words after a text, calibrated in one of several ways, and
   after labeled examples in the prompt. The texts are scored by run_llama's prompt.c. Functions that can fail return
   0 after saying why. */
#ifndef ZERO_SHOT_H
#define ZERO_SHOT_H

#include <math.h>
#include "../run_llama/sentiment.h"
#include "../common/file.h"
#include "../common/progress.h"

/* A model that computes as Llama does or as the reference does. tokenizer (may be NULL): for one that has none. NULL
   after saying why. */
static inline ml_model *load_as(const char *path, const char *tokenizer, int reference) {
    ml_model_load_desc desc = {0};
    ml_model *model = NULL;
    ml_error error;
    desc.norm = reference ? ML_NORM_LAYER : ML_NORM_RMS;
    desc.mask = reference ? ML_MASK_FULL : ML_MASK_CAUSAL;
    if (!loaded(path, ml_model_load(path, &desc, &model, &error), &error) || model->tokenizer) return model;
    int is_named = tokenizer || tokenizer_ready(model, path, "--tokenizer");
    ml_model_free(model);
    if (!is_named) return NULL;
    desc.tokenizer = tokenizer;
    return loaded(path, ml_model_load(path, &desc, &model, &error), &error) ? model : NULL;
}

/* TASK-train.txt, -dev and -test of a folder, and TASK-label-mapping.json or -labels.json. The paths stay in use. */
static inline void name_sets(const char *data, const char *task, char path[4][4096]) {
    static const char *const parts[] = {"train.txt", "dev.txt", "test.txt", "label-mapping.json"};
    for (int i = 0; i < 4; i++) snprintf(path[i], sizeof path[i], "%.3900s/%.90s-%s", data, task, parts[i]);
    if (!system_may_read(path[3])) snprintf(path[3], sizeof path[3], "%.3900s/%.90s-labels.json", data, task);
}

/* Whether --csv replaces nothing that is read. */
static inline int spares_sets(const char *to, const char *model, const char *tokenizer, const char *gold,
                              const char *data, const char *task) {
    char path[4][4096];
    const used_file csv = {"--csv", to},
                    inputs[] = {{"MODEL", model},    {"--tokenizer", tokenizer}, {"--test_gold", gold},
                                {"--data", path[0]}, {"--data", path[1]},        {"--data", path[2]},
                                {"--data", path[3]}};
    name_sets(data, task, path);
    return outputs_ready(&csv, 1, inputs, 7) && models_spared(&csv, 1, inputs, 1);
}

static inline int read_sets(sentiment *s, label_names *labels, const char *data, const char *task,
                            char path[4][4096]) {
    name_sets(data, task, path);
    return label_names_read(labels, path[3]) && reviews_read(&s->train, path[0], labels->n) &&
           reviews_read(&s->dev, path[1], labels->n) && reviews_read(&s->test, path[2], labels->n);
}

/* s->gold where the labels of s->test are placeholders, all the same: from `given`, for which otherwise there is no use
   if it is `needed`; NULL: from TASK-test-gold.txt, if it is there. */
static inline int read_gold(sentiment *s, int n_labels, const char *given, int needed) {
    const char *path = given;
    char beside[4096];
    int same = 1;
    if (!given) {
        snprintf(beside, sizeof beside, "%.*s-gold.txt", (int)(strlen(s->test.path) - strlen(".txt")),
                 s->test.path);
        if (!system_may_read(path = beside)) return 1;
    }
    for (int i = 0; i < s->test.n; i++) same = same && s->test.rows[i].label == s->test.rows[0].label;
    if (!same && given && needed)
        return complain("%s: its labels are no placeholders, which those in %s are to replace", s->test.path,
                        path);
    if (same) s->gold = reviews_read_gold(&s->test, path, n_labels);
    return !same || s->gold;
}

/* ---- from scores of words to labels ---- */

/* The words that describe each label: its name, followed by others. All are in one list (W), where those of label j
   are words start[j] .. start[j + 1] - 1. */
enum { MAX_SYNONYMS = 4 };

/* Words of the same meaning as a label. */
static const char *const label_synonyms[][MAX_SYNONYMS] = {{"awful", "terrible", "horrible", "dreadful"},
                                                           {"bad", "poor", "boring", "sad"},
                                                           {"average", "okay", "fine", "ordinary"},
                                                           {"good", "nice", "fun", "lovely"},
                                                           {"excellent", "great", "wonderful", "amazing"}};

/* What follows a sentence, before a label (NULL: the assignment's question), and its end alone. */
static const struct {
    const char *name, *ask, *premise;
} templates[] = {
    {"question", NULL, "This movie is"},
    {"it-was", " It was", "It was"},
    {"film", " All in all, the film was", "The film was"},
    {"tone", " The quote has a tone that is", "The quote has a tone that is"}, /* Holtzman et al. 2021 */
};
typedef struct wordings {
    label_names list;
    int n_labels, start[REVIEWS_MAX_LABELS + 1];
    label_ids tokens; /* of each word, for their numbers */
} wordings;

/* synonyms[i][0] is the name of a label, the others say the same in other words. A label without a line there has
   only its name. */
static inline int wordings_make(wordings *w, const label_names *labels,
                                const char *const (*synonyms)[MAX_SYNONYMS], int n_synonyms) {
    memset(w, 0, sizeof *w);
    w->n_labels = labels->n;
    if (labels->n * MAX_SYNONYMS > REVIEWS_MAX_LABELS)
        return complain("%d labels, more than %d", labels->n, REVIEWS_MAX_LABELS / MAX_SYNONYMS);
    for (int j = 0; j < labels->n; j++) {
        int line = 0;
        w->list.name[w->list.n++] = labels->name[j];
        while (line < n_synonyms && strcmp(synonyms[line][0], labels->name[j]) != 0) line++;
        for (int i = 1; line < n_synonyms && i < MAX_SYNONYMS && synonyms[line][i]; i++)
            w->list.name[w->list.n++] = synonyms[line][i];
        w->start[j + 1] = w->list.n;
    }
    return 1;
}

/* How a label is scored: by its name alone or the mean over all its words; by the sum of log p over a word's tokens
   or their mean; and what is subtracted from that: nothing, or what the labels score
   - after the end of the prompt alone: domain-conditional PMI (Holtzman et al. 2021, "Surface Form Competition: Why
     the Highest Probability Answer Isn't Always Right");
   - as a mean probability over texts without content (Zhao et al. 2021, "Calibrate Before Use: Improving Few-Shot
     Performance of Language Models") or over the texts that are labeled (Zhou et al. 2023, "Batch Calibration:
     Rethinking Calibration for In-Context Learning and Prompt Engineering"). */
typedef enum baseline { BASE_NONE, BASE_PREMISE, BASE_CONTENT, BASE_BATCH } baseline;
typedef struct scoring {
    const char *name;
    int all_words, per_token;
    baseline base;
} scoring;

/* log_p (labels) from the scores of the words (W). */
static inline void label_scores(const wordings *w, const scoring *how, const double *words, double *log_p) {
    for (int j = 0; j < w->n_labels; j++) {
        int from = w->start[j], to = how->all_words ? w->start[j + 1] : from + 1;
        log_p[j] = 0;
        for (int i = from; i < to; i++)
            log_p[j] += words[i] / (how->per_token ? w->tokens.n[i] : 1) / (to - from);
    }
}

/* prior (labels) = log of the mean of softmax(words of a row, as labels) over n rows of words (n, W). */
static inline void label_prior(const wordings *w, const scoring *how, const double *words, int n,
                               double *prior) {
    double log_p[REVIEWS_MAX_LABELS];
    for (int j = 0; j < w->n_labels; j++) prior[j] = 0;
    for (int i = 0; i < n; i++) {
        double sum = 0, most;
        label_scores(w, how, words + i * w->list.n, log_p);
        most = log_p[0];
        for (int j = 1; j < w->n_labels; j++) most = fmax(most, log_p[j]);
        for (int j = 0; j < w->n_labels; j++) sum += exp(log_p[j] - most);
        for (int j = 0; j < w->n_labels; j++) prior[j] += exp(log_p[j] - most) / sum / n;
    }
    for (int j = 0; j < w->n_labels; j++) prior[j] = log(prior[j]);
}

/* Scores of the words (W) where there is nothing to label: after the end of a prompt alone, and after texts without
   content. */
enum { N_CONTENT_FREE = 3 };
typedef struct baseline_scores {
    double premise[REVIEWS_MAX_LABELS], content_free[N_CONTENT_FREE * REVIEWS_MAX_LABELS];
} baseline_scores;

typedef struct scored_set {
    int n;
    double *words, *labels; /* (n, W), (n, C) */
    int *predicted;         /* (n) */
} scored_set;

static inline int scored_set_new(scored_set *of, int n, const wordings *w) {
    size_t rows = (size_t)n;
    of->n = n;
    of->words = (double *)malloc(rows * (size_t)w->list.n * sizeof(double));
    of->labels = (double *)malloc(rows * (size_t)w->n_labels * sizeof(double));
    of->predicted = (int *)malloc(rows * sizeof(int));
    return (of->words && of->labels && of->predicted) || no_memory("the scores");
}

static inline void scored_set_free(scored_set *of) {
    free(of->words);
    free(of->labels);
    free(of->predicted);
}

/* labels (n, C), calibrated, and the largest of each row. */
static inline void predict_labels(const wordings *w, const scoring *how, const baseline_scores *b,
                                  scored_set *of) {
    double base[REVIEWS_MAX_LABELS] = {0};
    if (how->base == BASE_PREMISE) label_scores(w, how, b->premise, base);
    if (how->base == BASE_CONTENT) label_prior(w, how, b->content_free, N_CONTENT_FREE, base);
    if (how->base == BASE_BATCH) label_prior(w, how, of->words, of->n, base);
    for (int i = 0; i < of->n; i++) {
        double *row = of->labels + i * w->n_labels;
        label_scores(w, how, of->words + i * w->list.n, row);
        of->predicted[i] = 0;
        for (int j = 0; j < w->n_labels; j++) {
            row[j] -= base[j];
            if (row[j] > row[of->predicted[i]]) of->predicted[i] = j;
        }
    }
}

/* ---- prompts ---- */

/* What surrounds a sentence: labeled examples before it, and the beginning of a sentence that a label ends. */
typedef struct prompt {
    const char *ask;           /* " It was" */
    buffer examples;           /* empty: zero-shot */
    int n_per_label, n_tokens; /* of the examples; tokens at most */
} prompt;

/* Words that all prompts end with: s->labels. The longest, in tokens, is what must fit after a text. */
static inline int prompt_room(const sentiment *s, const prompt *p) {
    return s->session->max_seq_len - sentiment_longest_label(s) - p->n_tokens;
}

/* Chooses n training sentences of each label at random among those that fit, all examples together into half of the
   context (encoded with p->ask, picked (C, n)); 0 when there are too few. */
enum { MAX_SHOTS = 16 };
static inline int examples_pick(const sentiment *s, int n_labels, int n, ml_random *random,
                                int picked[][MAX_SHOTS]) {
    int most = s->session->max_seq_len / 2 / (n * n_labels) - sentiment_longest_label(s) - 1;
    int seen[REVIEWS_MAX_LABELS] = {0}, enough = 1;
    for (int i = 0; i < s->train.n; i++) { /* Vitter 1985, "Random Sampling with a Reservoir" */
        int label = s->train.rows[i].label, slot;
        if (label < 0 || s->train.rows[i].n_ids > most) continue;
        slot = seen[label]++;
        if (slot >= n) slot = (int)(ml_random_u64(random) % (uint64_t)seen[label]);
        if (slot < n) picked[label][slot] = i;
    }
    for (int j = 0; j < n_labels; j++) enough = enough && seen[j] >= n;
    return enough;
}

static inline int example_append(prompt *p, const review *row, const char *label) {
    const char *const parts[] = {row->sentence, p->ask, " ", label, "\n"};
    for (int i = 0; i < 5; i++)
        if (!buffer_append(&p->examples, parts[i], strlen(parts[i]))) return no_memory("the examples");
    return 1;
}

/* Puts `wanted` examples of each label before the text, or as many as fit; p->n_per_label is how many. Each round has
   one of every label, and begins with a random one. */
static inline int examples_make(prompt *p, sentiment *s, const label_names *labels, int wanted, int seed) {
    int picked[REVIEWS_MAX_LABELS][MAX_SHOTS], n = min_int(wanted, MAX_SHOTS);
    int longest = sentiment_longest_label(s), most = s->session->max_seq_len;
    ml_random random;
    s->train.n_cut = 0;
    if (!reviews_encode(&s->train, s->model->tokenizer, p->ask, most)) return 0;
    ml_random_seed(&random, (uint64_t)seed);
    while (n && !examples_pick(s, labels->n, n, &random, picked)) n--;
    p->n_per_label = n;
    for (int i = 0; i < n; i++) {
        int first = (int)(ml_random_u64(&random) % (uint64_t)labels->n);
        for (int j = 0; j < labels->n; j++) {
            int label = (first + j) % labels->n;
            const review *row = &s->train.rows[picked[label][i]];
            if (!example_append(p, row, labels->name[label])) return 0;
            p->n_tokens += row->n_ids + longest + 1;
        }
    }
    return 1;
}

/* scores (W) = log p(word | examples, n bytes of a sentence, `ask`). What the last text began with is not read
   again. */
static inline int score_text(sentiment *s, const prompt *p, const char *sentence, size_t n, double *scores) {
    const char *ask = n || *p->ask != ' ' ? p->ask : p->ask + 1; /* nothing before it: no space either */
    label_rows rows;
    buffer text = {0};
    memset(&rows, 0, sizeof rows);
    int ok = (buffer_append(&text, p->examples.bytes, p->examples.length) &&
              buffer_append(&text, sentence, n) && buffer_append(&text, ask, strlen(ask))) ||
             no_memory("a text");
    ok = ok && sentiment_label_rows(s, text.bytes, &rows) && sentiment_likelihoods(s, &rows, scores);
    label_rows_free(&rows, s->labels.n);
    buffer_free(&text);
    return ok;
}

/* What the prompt says of the words by itself, `premise` being its end, and after texts without content. */
static inline int score_baselines(sentiment *s, const prompt *p, const char *premise, baseline_scores *of) {
    static const char *const content_free[N_CONTENT_FREE] = {"N/A", "", "[MASK]"}; /* Zhao et al. */
    prompt only = *p;
    only.ask = premise;
    for (int i = 0; i < N_CONTENT_FREE; i++)
        if (!score_text(s, p, content_free[i], strlen(content_free[i]), of->content_free + i * s->labels.n))
            return 0;
    return score_text(s, &only, "", 0, of->premise);
}

/* of->words for a set, whose sentences lose their end where they do not fit. */
static inline int score_set(sentiment *s, const prompt *p, reviews *set, scored_set *of, const char *what) {
    double began = seconds_now();
    set->n_cut = 0;
    if (!reviews_encode(set, s->model->tokenizer, p->ask, prompt_room(s, p))) return 0;
    for (int i = 0; i < set->n; i++) {
        if (!score_text(s, p, set->rows[i].sentence, set->rows[i].n_kept, of->words + i * s->labels.n))
            return 0;
        progress_bar(what, i + 1, set->n, began);
    }
    return 1;
}

/* The assignment's way, over a model that computes so: all tokens of a label are scored at the last position of the
   padded row. path: as read_sets gives it; dev and test: what is predicted. */
static inline int score_reference(ml_model *model, char path[4][4096], int threads, int *dev, int *test) {
    char question[4096];
    sentiment s = {0};
    ml_session_desc desc = {0};
    ml_error error;
    s.model = model;
    s.set.dev = path[1], s.set.test = path[2], s.set.labels = path[3];
    s.set.reference = s.set.prompting = 1;
    s.set.batch_size = 10; /* to whose longest row the others are padded: as the assignment's command says */
    int ok = sentiment_read(&s);
    desc.max_seq_len = s.max_row;
    desc.max_batch = s.max_row * s.set.batch_size;
    desc.threads.count = threads;
    ok = ok && succeeded(ml_session_new(s.model, &desc, &s.session, &error), &error);
    if (ok) sentiment_question(&s.labels, question, sizeof question);
    for (int i = 0; i < 2 && ok; i++) {
        const reviews *set = i ? &s.test : &s.dev;
        ok = sentiment_prompt(&s, set, question, i ? "test" : "dev");
        memcpy(i ? test : dev, s.predicted, (size_t)set->n * sizeof *dev);
    }
    sentiment_free(&s);
    return ok;
}

#endif
