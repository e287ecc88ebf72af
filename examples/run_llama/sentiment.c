/* A whole run: reads the data, fine-tunes or prompts, writes and measures the predictions. */
#include "sentiment.h"
#include "../common/file.h"

/* Accuracy and macro F1 (the mean over the classes that occur in truth or prediction). truth NULL: the set's own. */
sentiment_result sentiment_measure_by(const int *truth, const reviews *set, const int *predicted,
                                      int n_labels) {
    sentiment_result result = {0, 0, -1};
    int hits[REVIEWS_MAX_LABELS] = {0}, predictions[REVIEWS_MAX_LABELS] = {0},
        truths[REVIEWS_MAX_LABELS] = {0};
    int known = 0, right = 0, classes = 0;
    for (int i = 0; i < set->n; i++) {
        int label = truth ? truth[i] : set->rows[i].label;
        if (label < 0) continue;
        known++;
        truths[label]++;
        predictions[predicted[i]]++;
        if (label == predicted[i]) hits[label]++, right++;
    }
    for (int i = 0; i < n_labels; i++)
        if (truths[i] + predictions[i] > 0) {
            result.f1 += 2.0 * hits[i] / (truths[i] + predictions[i]);
            classes++;
        }
    result.accuracy = known ? (double)right / known : 0;
    result.f1 = classes ? result.f1 / classes : 0;
    return result;
}

sentiment_result sentiment_measure(const reviews *set, const int *predicted, int n_labels) {
    return sentiment_measure_by(NULL, set, predicted, n_labels);
}

ml_batch sentiment_batch(sentiment *s, const reviews *set, const int *order, int from, int n) {
    ml_batch batch = {0};
    int longest = 0;
    int32_t padding = reviews_padding(s->model->tokenizer);
    for (int i = 0; i < n; i++)
        longest = max_int(longest, set->rows[order ? order[from + i] : from + i].n_ids);
    for (int i = 0; i < n; i++) {
        const review *row = &set->rows[order ? order[from + i] : from + i];
        int length = s->set.reference ? longest : row->n_ids;
        memcpy(s->tokens + batch.n_tokens, row->ids, (size_t)row->n_ids * sizeof *s->tokens);
        for (int j = row->n_ids; j < length; j++) s->tokens[batch.n_tokens + j] = padding;
        batch.n_tokens += length;
        s->starts[i + 1] = batch.n_tokens;
        s->truth[i] = row->label;
    }
    batch.tokens = s->tokens;
    batch.row_start = s->starts;
    batch.n_rows = n;
    batch.labels = s->truth;
    batch.divisor = (float)s->set.batch_size;
    return batch;
}

int sentiment_best(const float *scores, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

/* The head that a file holds, which says how many labels there are. */
static int load_head(sentiment *s) {
    const char *path = s->set.classifier;
    ml_error error;
    if (!loaded(path, ml_head_load(path, s->model, NULL, &s->head, &error), &error)) return 0;
    s->labels.n = s->head->n_classes;
    return s->labels.n <= REVIEWS_MAX_LABELS ||
           complain("%s: its head has %d classes, more than %d", path, s->labels.n, REVIEWS_MAX_LABELS);
}

static int read_sets(sentiment *s) {
    const sentiment_settings *set = &s->set;
    if (!(set->predicting ? load_head(s) : label_names_read(&s->labels, set->labels))) return 0;
    return (!is_training(set) ||
            (reviews_read(&s->train, set->train, s->labels.n) && reviews_teach(&s->train))) &&
           reviews_read(&s->dev, set->dev, s->labels.n) && reviews_read(&s->test, set->test, s->labels.n) &&
           (!set->test_gold || (s->gold = reviews_read_gold(&s->test, set->test_gold, s->labels.n)) != NULL);
}

static int allocate_batch(sentiment *s, int n_predicted) {
    size_t n = (size_t)s->set.batch_size;
    s->tokens = (int32_t *)malloc((size_t)s->max_row * n * sizeof *s->tokens);
    s->starts = (int32_t *)calloc(n + 1, sizeof *s->starts);
    s->truth = (int32_t *)malloc(n * sizeof *s->truth);
    s->log_probs = (float *)malloc(n * (size_t)s->labels.n * sizeof *s->log_probs);
    s->predicted = (int *)malloc((size_t)n_predicted * sizeof *s->predicted);
    return (s->tokens && s->starts && s->truth && s->log_probs && s->predicted) || no_memory("a batch");
}

int sentiment_read(sentiment *s) {
    const sentiment_settings *set = &s->set;
    char question[4096] = "";
    int most, label = 0, n = 0;
    if (!read_sets(s)) return 0;
    if (set->prompting) {
        sentiment_question(&s->labels, question, sizeof question);
        if (!set->reference) label = sentiment_longest_label(s);
    }
    if (label < 0) return 0;
    most = s->model->config.max_seq_len - label;
    if (set->max_sentence_len)
        most = min_int(most, reviews_length(s->model->tokenizer, set->max_sentence_len));
    reviews *all[3] = {&s->train, &s->dev, &s->test};
    for (int i = !is_training(set); i < 3; i++) {
        if (!reviews_encode(all[i], s->model->tokenizer, question, most)) return 0;
        for (int j = 0; j < all[i]->n; j++) s->max_row = max_int(s->max_row, all[i]->rows[j].n_ids);
        n = max_int(n, all[i]->n);
    }
    s->max_row += label;
    return allocate_batch(s, n);
}

static int write_predictions(const reviews *set, const int *predicted, const char *path) {
    whole_file file;
    if (!whole_file_begin(&file, path)) return 0;
    for (int i = 0; i < set->n; i++) fprintf(file.to, "%d ||| %s\n", predicted[i], set->rows[i].sentence);
    return whole_file_end(&file);
}

/* Prints accuracy and F1, and that they mean nothing where all labels are the same. */
static void print_result(const reviews *set, const char *what, const sentiment_result *result) {
    int same = 1, label = set->rows[0].label;
    for (int i = 1; i < set->n; i++) same = same && set->rows[i].label == label;
    printf("%s acc :: %.3f, f1 :: %.3f", what, result->accuracy, result->f1);
    if (same && label < 0)
        printf(" (the labels in %s are not known: all are -1)", set->path);
    else if (same && set->n > 1)
        printf(" (the labels in %s are all %d: placeholders?)", set->path, label);
    printf("\n");
    fflush(stdout);
}

/* Labels one set, writes the predictions, and measures. */
static int label_set(sentiment *s, const reviews *set, const char *what, const char *out,
                     sentiment_result *result) {
    char question[4096];
    sentiment_question(&s->labels, question, sizeof question);
    if (!(s->set.prompting ? sentiment_prompt(s, set, question, what) : sentiment_predict(s, set, what)))
        return 0;
    *result = sentiment_measure(set, s->predicted, s->labels.n);
    print_result(set, what, result);
    if (set == &s->test && s->gold) {
        sentiment_result real = sentiment_measure_by(s->gold, set, s->predicted, s->labels.n);
        printf("real %s acc :: %.3f, f1 :: %.3f (by %s)\n", what, real.accuracy, real.f1, s->set.test_gold);
        fflush(stdout);
        result->gold = real.accuracy;
    }
    return write_predictions(set, s->predicted, out);
}

void sentiment_free(sentiment *s) {
    reviews_free(&s->train);
    reviews_free(&s->dev);
    reviews_free(&s->test);
    free(s->gold);
    free(s->labels.text);
    free(s->tokens);
    free(s->starts);
    free(s->truth);
    free(s->log_probs);
    free(s->predicted);
    ml_trainer_free(s->trainer);
    ml_session_free(s->session);
    ml_lora_free(s->lora);
    ml_head_free(s->head);
}

static int make_session(sentiment *s) {
    ml_session_desc desc = {0};
    ml_error error;
    const char *adapter = s->set.adapter;
    if (adapter && !(s->lora = load_adapter(adapter, s->model, s->set.lora_scale))) return 0;
    desc.lora = s->lora;
    desc.threads.count = s->set.threads;
    if (s->model->config.rope_kind != ML_ROPE_DYNAMIC)
        desc.max_seq_len = s->max_row; /* else as in training */
    desc.max_batch = s->max_row * s->set.batch_size;
    return succeeded(ml_session_new(s->model, &desc, &s->session, &error), &error);
}

int sentiment_run(const sentiment_settings *set, ml_model *model, sentiment_result *dev,
                  sentiment_result *test) {
    sentiment s = {0};
    s.set = *set;
    s.model = model;
    int ok = sentiment_read(&s) && (is_training(set) ? sentiment_finetune(&s) : make_session(&s)) &&
             label_set(&s, &s.dev, "dev", set->dev_out, dev) &&
             label_set(&s, &s.test, "test", set->test_out, test);
    sentiment_free(&s);
    return ok;
}
