/* The sentences of a task, their labels' names, and the real labels of a test set whose own are placeholders. */
#include "tuning.h"

static int file_exists(const char *path) {
    system_file about;
    return system_look(path, &about);
}

const char *tuning_path(tuning *t, const char *given, const char *name) {
    const char *folder = t->set.data ? t->set.data : file_exists("data") ? "data" : "../shared/data";
    tuning_private *p = t->private_part;
    if (p->n_paths == TUNING_PATHS) return given ? given : name;
    char *path = p->paths[p->n_paths];
    snprintf(path, sizeof p->paths[0], "%s/%s-%s", folder, t->set.task, name);
    const used_file input = {name, given ? given : path};
    p->inputs[p->n_paths++] = input;
    return input.path;
}

/* A word without the escapes of the Penn Treebank. Returns its new end. */
static char *plain_word(char *to, const char *from, size_t n) {
    int is_left = n == 5 && strncmp(from, "-LRB-", 5) == 0;
    if (is_left || (n == 5 && strncmp(from, "-RRB-", 5) == 0)) {
        *to = is_left ? '(' : ')';
        return to + 1;
    }
    for (size_t i = 0; i < n; i++)
        if (from[i] != '\\' || i + 1 == n || (from[i + 1] != '/' && from[i + 1] != '*')) *to++ = from[i];
    return to;
}

void tuning_tidy(const tuning *t, reviews *set) {
    for (int i = 0; i < set->n; i++) {
        char *text = (char *)(uintptr_t)set->rows[i].sentence, *to = text;
        for (char *from = text; t->set.plain && *from;) {
            size_t n = strcspn(from, " ");
            to = plain_word(to, from, n);
            from += n;
            if (*from) *to++ = *from++;
        }
        if (t->set.plain) *to = 0;
        for (char *p = text; t->set.lower && *p; p++)
            if (*p >= 'A' && *p <= 'Z') *p = (char)(*p - 'A' + 'a');
    }
}

/* Tokens by the model; with the context, or --max_len, as the limit. */
static int encode_tokens(tuning *t, reviews *set) {
    int most = t->model->config.max_seq_len - t->front;
    if (t->set.max_len) {
        int wanted = reviews_length(t->model->tokenizer, t->set.max_len);
        most = wanted < most ? wanted : most;
    }
    if (most < 1)
        return complain("%d positions in front of a row leave no room in the context of %d", t->front,
                        t->model->config.max_seq_len);
    return reviews_encode(set, t->model->tokenizer, t->suffix ? t->suffix : "", most);
}

int tuning_encode(tuning *t, reviews *set) {
    if (!(t->method.encode ? t->method.encode : encode_tokens)(t, set)) return 0;
    tuning_private *p = t->private_part;
    for (int i = 0; i < set->n; i++)
        if (set->rows[i].n_ids + t->front > p->max_row) p->max_row = set->rows[i].n_ids + t->front;
    return 1;
}

int tuning_read(tuning *t, reviews *set, const char *path, int n_labels) {
    if (!reviews_read(set, path, n_labels)) return 0;
    tuning_tidy(t, set);
    return tuning_encode(t, set);
}

/* One label a line, as many as the test set has. */
static int read_gold(tuning *t, const char *path) {
    char *text = text_file_read(path, NULL), *from = text, *end;
    if (!text) return 0;
    t->gold = (int *)malloc((size_t)t->test.n * sizeof *t->gold);
    int n = 0, ok = t->gold || no_memory(path);
    while (ok && *(from += strspn(from, " \t\n"))) {
        long label = strtol(from, &end, 10);
        if (end == from || label < -1 || label >= t->labels.n)
            ok = complain("%s: label %d is not -1 to %d", path, n + 1, t->labels.n - 1);
        else if (n == t->test.n)
            ok = complain("%s: it has more labels than %s has sentences, %d", path, t->test.path, n);
        else
            t->gold[n++] = (int)label;
        from = end;
    }
    if (ok && n < t->test.n)
        ok = complain("%s: it has %d labels, and %s %d sentences", path, n, t->test.path, t->test.n);
    free(text);
    return ok;
}

int tuning_read_data(tuning *t) {
    const tuning_settings *s = &t->set;
    const char *labels = tuning_path(t, s->labels, "labels.json");
    if (!s->labels && !file_exists(labels)) labels = tuning_path(t, NULL, "label-mapping.json");
    if (!label_names_read(&t->labels, labels)) return 0;
    const char *train = tuning_path(t, s->train, "train.txt"); /* no output may be it, read or not */
    if (!(t->method.make_train ? t->method.make_train(t) : tuning_read(t, &t->train, train, t->labels.n)) ||
        (s->epochs && !reviews_teach(&t->train)) ||
        !tuning_read(t, &t->dev, tuning_path(t, s->dev, "dev.txt"), t->labels.n) ||
        !tuning_read(t, &t->test, tuning_path(t, s->test, "test.txt"), t->labels.n))
        return 0;
    const char *gold = tuning_path(t, s->test_gold, "test-gold.txt");
    int wanted = s->test_gold || (!s->test && file_exists(gold));
    return !wanted || read_gold(t, gold);
}
