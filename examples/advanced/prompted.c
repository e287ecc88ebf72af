/* Prompt-based fine-tuning (Gao, Fisch & Chen 2021, "Making Pre-trained Language Models Better Few-shot Learners"):
   no classifier, but the model's own prediction of the word behind "SENTENCE It was": the labels are words, terrible,
   bad, okay, good and great, and the loss is the cross-entropy over these at the last position. So there is an answer
   before any training, which is measured, too. With --shots few sentences of each label are learned.
       build/prompted --task sst --lr 1e-4
       build/prompted --task cfimdb --shots 16 --batch 8 --epochs 20 --lora 8 --lr 4e-3
   A word of several tokens stands for the mean of their logits. Dev, which chooses the weights, is all of dev. */
#include "common/methods.h"
#include "common/tuning.h"
#include "../common/report.h"

enum { PROMPTED_MAX_TOKENS = 1024 };

typedef struct prompted {
    efficient lora; /* the first member: the state of efficient tuning; method NULL: the whole model learns */
    const char *prompt, *words;
    int shots;
    int32_t tokens[PROMPTED_MAX_TOKENS]; /* of all words ... */
    ml_span spans[REVIEWS_MAX_LABELS];   /* ... and which are those of a label */
    ml_tensor *output;                   /* (V, D): of t->weights */
    char suffix[1024], list[1024];
    const char *word[REVIEWS_MAX_LABELS];
    tuning_result start; /* without training */
} prompted;

static prompted *prompted_of(const tuning *t) { return (prompted *)t->method.state; }

/* ---- label words ---- */

/* The tokens of the first n bytes of a text: how many, or -1 after saying why there are none. */
static int encode(const tuning *t, const char *text, size_t n, int32_t *ids) {
    size_t size = ml_tokenizer_encode_size(n);
    ml_encode_desc desc = {text, n, 0, malloc(size), size};
    ml_tokens tokens = {NULL, 0};
    ml_error error;
    int ok = desc.work ? succeeded(ml_tokenizer_encode(t->model->tokenizer, &desc, &tokens, &error), &error)
                       : no_memory("a prompt");
    if (ok && tokens.n > PROMPTED_MAX_TOKENS) ok = complain("--prompt and --words are too long");
    if (ok) memcpy(ids, tokens.ids, (size_t)tokens.n * sizeof *ids);
    free(desc.work);
    return ok ? tokens.n : -1;
}

/* The tokens that a word adds to the prompt. */
static int add_tokens(tuning *t, int label) {
    prompted *s = prompted_of(t);
    int32_t before[PROMPTED_MAX_TOKENS], all[PROMPTED_MAX_TOKENS];
    char text[sizeof s->suffix + sizeof s->list];
    snprintf(text, sizeof text, "%s %s", s->prompt, s->word[label]);
    int n = encode(t, text, strlen(s->prompt), before), m = encode(t, text, strlen(text), all);
    int begin = label ? s->spans[label - 1].end : 0, more = m - n;
    if (n < 0 || m < 0) return 0;
    if (more <= 0 || memcmp(before, all, (size_t)n * sizeof *all) != 0)
        return complain("the word \"%s\" is no token of its own behind \"%s\"", s->word[label], s->prompt);
    if (begin + more > PROMPTED_MAX_TOKENS) return complain("--words are too long");
    memcpy(s->tokens + begin, all + n, (size_t)more * sizeof *all);
    s->spans[label].begin = begin;
    s->spans[label].end = begin + more;
    return 1;
}

static int is_same(const prompted *s, ml_span a, ml_span b) {
    size_t n = (size_t)(a.end - a.begin);
    return n == (size_t)(b.end - b.begin) &&
           memcmp(s->tokens + a.begin, s->tokens + b.begin, n * sizeof(int32_t)) == 0;
}

/* One word for each label: --words, or those of the paper. */
static int read_words(tuning *t) {
    prompted *s = prompted_of(t);
    int n = 0, several = 0;
    const char *words = t->labels.n == 5 ? "terrible,bad,okay,good,great" : "terrible,great";
    if (s->words) words = s->words;
    if (strlen(words) >= sizeof s->list) return complain("--words is too long");
    if (strlen(s->prompt) + 2 > sizeof s->suffix) return complain("--prompt is too long");
    strcpy(s->list, words);
    for (char *word = strtok(s->list, ","); word && n < REVIEWS_MAX_LABELS; word = strtok(NULL, ","))
        s->word[n++] = word;
    if (n != t->labels.n)
        return complain("--words: there are %d labels, and %d words (%s)", t->labels.n, n, words);
    for (int i = 0; i < n; i++) {
        if (!add_tokens(t, i)) return 0;
        for (int j = 0; j < i; j++)
            if (is_same(s, s->spans[j], s->spans[i]))
                return complain("the words \"%s\" and \"%s\" are the same tokens", s->word[j], s->word[i]);
        several += s->spans[i].end - s->spans[i].begin > 1;
    }
    if (several) printf("%d of %d label words are several tokens, whose logits are averaged\n", several, n);
    return 1;
}

/* The words' logits behind each row: (n_rows, C). */
static ml_tensor prompted_logits(tuning *t, ml_graph *g, const tuning_batch *batch) {
    prompted *s = prompted_of(t);
    ml_rows rows = {batch->rows.row_start, batch->rows.n_rows};
    int n = t->labels.n;
    ml_tensor last = ml_pool_rows(g, tuning_hidden(t, g, batch), rows, ML_POOL_LAST);
    ml_tensor tokens = ml_gather(g, *s->output, s->tokens, (size_t)s->spans[n - 1].end);
    return ml_linear(g, last, ml_pool_spans(g, tokens, s->spans, n, ML_POOL_MEAN), ml_none());
}

/* ---- few sentences ---- */

/* Leaves `shots` rows of each label, chosen by the seed. */
static int choose_rows(tuning *t) {
    reviews *set = &t->train;
    int shots = prompted_of(t)->shots, have[REVIEWS_MAX_LABELS] = {0}, n = 0;
    for (int i = 0; i < set->n; i++) {
        int j = i + (int)(ml_random_u64(&t->random) % (uint64_t)(set->n - i));
        review row = set->rows[j];
        set->rows[j] = set->rows[i];
        set->rows[i] = row;
        if (row.label < 0 || have[row.label]++ >= shots) continue;
        set->rows[i] = set->rows[n];
        set->rows[n++] = row;
    }
    for (int i = n; i < set->n; i++) free(set->rows[i].ids);
    set->n = n;
    for (int label = 0; label < t->labels.n; label++)
        if (have[label] < shots)
            return complain("--shots %d: %s has %d sentences of label %d", shots, set->path, have[label],
                            label);
    return 1;
}

/* ---- the program ---- */

static int prompted_check(tuning *t) {
    prompted *s = prompted_of(t);
    const tuning_settings *set = &t->set;
    if (set->head_hidden || set->dropout > 0 || set->head_lr > 0 || strcmp(set->pooling, "last") != 0)
        return complain("--pooling, --head_* and --dropout are of a classifier, and here is none");
    if (set->word_dropout > 0) return complain("--word_dropout would leave out words of the prompt, too");
    if (s->shots < 0 || !*s->prompt) return complain("--shots is not negative, --prompt is not empty");
    if (s->lora.set.rank < 0) return complain("--lora is a rank, not %d", s->lora.set.rank);
    if (set->save)
        return complain("--save: a program that reads label words with their prompt does not exist");
    snprintf(s->suffix, sizeof s->suffix, " %s", s->prompt);
    t->suffix = s->suffix;
    t->no_head = 1;
    int ok = !s->lora.set.rank || efficient_check(t);
    const char *const names[4] = {"full", "lora", "few_shot", "few_shot_lora"};
    t->method.name = names[(s->shots ? 2 : 0) + (s->lora.set.rank ? 1 : 0)];
    return ok;
}

static int prompted_setup(tuning *t) {
    prompted *s = prompted_of(t);
    int output =
        tuning_find_weight(t, -1, t->model->config.tied_output ? "token_embd.weight" : "output.weight");
    if (output < 0) return complain("%s has no output layer", t->set.model);
    s->output = &t->weights[output];
    if (!read_words(t) || (s->shots && !choose_rows(t))) return 0;
    if (s->lora.set.rank) return efficient_setup(t);
    return tuning_train_model(t, 0) && (t->model->config.tied_output || tuning_train_weight(t, output));
}

/* Before the training ... */
static int prompted_ready(tuning *t) {
    tuning_result *start = &prompted_of(t)->start;
    start->dev = tuning_measure(t, &t->dev, NULL);
    start->test = tuning_measure(t, &t->test, NULL);
    start->gold = t->gold ? tuning_measure(t, &t->test, t->gold) : -1;
    printf("before the training: dev %.3f, test %.3f\n", start->dev, start->test);
    return start->dev >= 0 && start->test >= 0 && (!t->gold || start->gold >= 0);
}

/* ... which is reported last: it is no row of this method. */
static int prompted_finish(tuning *t) {
    int n = t->n_parameters, ok;
    t->n_parameters = 0; /* none was trained */
    ok = tuning_report(t, "zero_shot", &prompted_of(t)->start);
    return t->n_parameters = n, ok;
}

int main(int argc, char **argv) {
    prompted s;
    tuning_method method = {0};
    memset(&s, 0, sizeof s);
    s.prompt = "It was";
    const option own[] = {
        {"--prompt", OPTION_TEXT, &s.prompt, "follows the sentence, and the word follows it (It was)"},
        {"--words", OPTION_TEXT, &s.words, "of the labels (terrible,bad,okay,good,great or terrible,great)"},
        {"--shots", OPTION_INT, &s.shots, "sentences of each label to learn from (0: all)"},
        {"--lora", OPTION_INT, &s.lora.set.rank, "train a LoRA adapter of this rank (0: the whole model)"},
    };
    method.program = "prompted";
    method.name = "prompted";
    method.state = &s;
    method.check = prompted_check;
    method.setup = prompted_setup;
    method.ready = prompted_ready;
    method.finish = prompted_finish;
    method.logits = prompted_logits;
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    efficient_free(&s.lora);
    return status;
}
