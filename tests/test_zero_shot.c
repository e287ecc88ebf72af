/* examples/advanced/zero_shot: its arithmetic against numpy, its prompts, scores from the cache against scores of
   whole texts, and the program on the opinions. */
#include "preamble.h"
#include "folder.h"
#define PROGRESS_PAUSE 1e9
#define main zero_shot_main
#include "../examples/advanced/zero_shot.c"
#undef main

#define MODEL "examples/models/stories.gguf"

static const char *const few_synonyms[][MAX_SYNONYMS] = {{"good", "nice", "fun"}, {"bad", "poor", NULL}};

static int make_words(wordings *w, const char *const *names, int n) {
    label_names labels = {NULL, {NULL}, 0};
    for (int i = 0; i < n; i++) labels.name[labels.n++] = names[i];
    return wordings_make(w, &labels, few_synonyms, 2);
}

TEST(words_of_labels) {
    static const char *const names[] = {"bad", "strange", "good"};
    static const char *const expected[] = {"bad", "poor", "strange", "good", "nice", "fun"};
    const char *many[17];
    wordings w;
    CHECK(make_words(&w, names, 3) && w.n_labels == 3 && w.list.n == 6);
    CHECK(w.start[0] == 0 && w.start[1] == 2 && w.start[2] == 3 && w.start[3] == 6);
    for (int i = 0; i < 6; i++) CHECK(strcmp(w.list.name[i], expected[i]) == 0);
    for (int i = 0; i < 17; i++) many[i] = "x";
    capture_begin();
    int ok = make_words(&w, many, 17);
    CHECK(strcmp(capture_end(), "error: 17 labels, more than 16\n") == 0 && !ok);
}

/* Four texts, two labels of two and three words with 1, 2, 2, 3 and 2 tokens; expected by numpy:
       L = words[:, first] or words[:, of label].mean(-1), each divided by its tokens for "mean"
       L - L(premise), L - log(softmax(L(content-free)).mean(0)), L - log(softmax(L).mean(0))
   which is arithmetic in doubles on both sides, so 1e-8 covers the printed digits. */
TEST(calibration) {
    static const double words[] = {-1.0, -2.5, -0.5, -3.0, -2.0, -2.0, -1.5, -3.5, -1.0, -4.0,
                                   -0.7, -3.1, -2.2, -2.9, -1.3, -5.0, -0.2, -4.0, -2.0, -3.0};
    static const double premise[] = {-1.5, -2.0, -1.2, -2.5, -3.5};
    static const double content_free[] = {-1.2, -2.1, -0.9, -3.3, -2.7, -0.8, -2.6, -1.9,
                                          -2.2, -3.1, -1.1, -1.7, -1.4, -2.8, -2.4};
    static const double expected[10][8] = {
        {-1, -0.5, -2, -3.5, -0.7, -2.2, -5, -4},
        {-1.75, -1.833333333, -1.75, -2.833333333, -1.9, -2.133333333, -2.6, -3},
        {-1, -0.25, -2, -1.75, -0.7, -1.1, -5, -2},
        {-1.125, -0.75, -1.375, -1.361111111, -1.125, -0.905555556, -2.55, -1.388888889},
        {0.5, 0.7, -0.5, -2.3, 0.8, -1, -3.5, -2.8},
        {0, 0.566666667, 0, -0.433333333, -0.15, 0.266666667, -0.85, -0.6},
        {-0.461152120, 0.375676843, -1.461152120, -2.624323157, -0.161152120, -1.324323157, -4.461152120,
         -3.124323157},
        {-1.352092618, -0.719432045, -1.352092618, -1.719432045, -1.502092618, -1.019432045, -2.202092618,
         -1.886098712},
        {-0.438596196, 0.344918801, -1.438596196, -2.655081199, -0.138596196, -1.355081199, -4.438596196,
         -3.155081199},
        {-1.249414813, -0.901482596, -1.249414813, -1.901482596, -1.399414813, -1.201482596, -2.099414813,
         -2.068149263}};
    static const char *const names[] = {"bad", "good"};
    static const int n_tokens[] = {1, 2, 2, 3, 2};
    baseline_scores base;
    scored_set of;
    wordings w;
    REQUIRE(make_words(&w, names, 2) && w.list.n == 5 && scored_set_new(&of, 4, &w));
    memcpy(w.tokens.n, n_tokens, sizeof n_tokens);
    memcpy(of.words, words, sizeof words);
    memcpy(base.premise, premise, sizeof premise);
    memcpy(base.content_free, content_free, sizeof content_free);
    for (int i = 0; i < 10; i++) {
        scoring how = scorings[i / 2];
        how.all_words = i % 2;
        predict_labels(&w, &how, &base, &of);
        for (int j = 0; j < 8; j++) CHECK_NEAR(of.labels[j], expected[i][j], 1e-8, 0);
        for (int j = 0; j < 4; j++) CHECK(of.predicted[j] == (expected[i][2 * j + 1] > expected[i][2 * j]));
    }
    scored_set_free(&of);
}

/* ---- with a model ---- */

/* The opinions of five labels, and a model in F32. */
static int open_opinions(sentiment *s, label_names *labels, wordings *w) {
    static char path[4][4096];
    ml_model_load_desc load = {0};
    ml_model *model;
    load.type = ML_F32;
    memset(s, 0, sizeof *s);
    if (ml_model_load(MODEL, &load, &model, NULL) || ml_session_new(model, NULL, &s->session, NULL)) return 0;
    s->model = model;
    int ok = read_sets(s, labels, "examples/data", "opinions5", path) &&
             wordings_make(w, labels, label_synonyms, COUNT(label_synonyms));
    s->labels = w->list;
    return ok;
}

static void close_opinions(sentiment *s, label_names *labels) {
    ml_model *model = s->model;
    free(labels->text);
    sentiment_free(s);
    ml_model_free(model);
}

static int n_tokens_of(const sentiment *s, const char *text) {
    ml_tokens tokens = {NULL, 0};
    ml_session_encode(s->session, text, ML_ADD_BOS, &tokens, NULL);
    return tokens.n;
}

/* The label of a training sentence that is a line of the prompt, cut off there; -1: there is none. */
static int line_label(const sentiment *s, const label_names *labels, const char *line, const char *ask) {
    char expected[2048];
    for (int i = 0; i < s->train.n; i++) {
        const review *row = &s->train.rows[i];
        snprintf(expected, sizeof expected, "%s%s %s", row->sentence, ask, labels->name[row->label]);
        if (strcmp(expected, line) == 0) return row->label;
    }
    return -1;
}

/* n of each label, each line a training sentence with its label; every five lines have all five. */
static void check_examples(const sentiment *s, const label_names *labels, const prompt *p) {
    char *text = (char *)malloc(p->examples.length + 1), *line = text;
    REQUIRE(text && p->n_per_label > 0);
    memcpy(text, p->examples.bytes, p->examples.length + 1);
    CHECK(n_tokens_of(s, text) <= p->n_tokens + 1 && p->n_tokens <= s->session->max_seq_len / 2);
    for (int i = 0; i < p->n_per_label; i++) {
        int seen = 0;
        for (int j = 0; j < labels->n; j++) {
            size_t n = strcspn(line, "\n");
            CHECK(line[n] == '\n');
            line[n] = 0;
            const char *at = strstr(p->examples.bytes, line);
            int label = line_label(s, labels, line, p->ask);
            CHECK(label >= 0 && at && !strstr(at + 1, line));
            seen |= 1 << (label < 0 ? 31 : label);
            line += n + 1;
        }
        CHECK(seen == (1 << labels->n) - 1);
    }
    CHECK(!*line);
    free(text);
}

TEST(examples_in_the_prompt) {
    sentiment s;
    label_names labels;
    wordings w;
    char first[4096] = "";
    int n_different = 0;
    REQUIRE(open_opinions(&s, &labels, &w));
    for (int seed = 1; seed <= 4; seed++) {
        prompt p = {" It was", {0}, 0, 0}, again = p;
        REQUIRE(examples_make(&p, &s, &labels, 1, seed) && examples_make(&again, &s, &labels, 1, seed));
        CHECK(p.n_per_label == 1);
        check_examples(&s, &labels, &p);
        CHECK(strcmp(p.examples.bytes, again.examples.bytes) == 0);
        n_different += strcmp(p.examples.bytes, first) != 0;
        snprintf(first, sizeof first, "%s", p.examples.bytes);
        buffer_free(&p.examples), buffer_free(&again.examples);
    }
    CHECK(n_different >= 3);
    ml_session_free(s.session); /* a context in which more fit than one, and not 16 */
    ml_session_desc larger = {0};
    larger.max_seq_len = 600;
    REQUIRE(ml_session_new(s.model, &larger, &s.session, NULL) == ML_OK);
    s.model->config.max_seq_len = 600;
    prompt p = {" It was", {0}, 0, 0};
    REQUIRE(examples_make(&p, &s, &labels, 16, 1));
    CHECK(p.n_per_label > 1 && p.n_per_label < 16);
    check_examples(&s, &labels, &p);
    buffer_free(&p.examples);
    close_opinions(&s, &labels);
}

/* Nothing fits: no examples, and that is no failure. */
TEST(examples_that_do_not_fit) {
    sentiment s;
    label_names labels;
    wordings w;
    REQUIRE(open_opinions(&s, &labels, &w));
    prompt p = {" I have thought about this for a long time, and what I think is that it was", {0}, 0, 0};
    CHECK(examples_make(&p, &s, &labels, 4, 1) && p.n_per_label == 0 && !p.examples.length);
    close_opinions(&s, &labels);
}

/* Scores of texts that share examples, read from the cache, are those of whole texts read anew by the library's own
   function, within what passes of other lengths round otherwise: 1e-5 of each of up to four log-probabilities of size
   10, so 1e-3. */
TEST(scores_from_the_cache) {
    sentiment s;
    label_names labels;
    wordings w;
    ml_session *fresh;
    double scores[REVIEWS_MAX_LABELS];
    char text[4096], word[64];
    REQUIRE(open_opinions(&s, &labels, &w));
    REQUIRE(ml_session_new(s.model, NULL, &fresh, NULL) == ML_OK);
    for (int shots = 0; shots < 2; shots++) {
        prompt p = {" It was", {0}, 0, 0};
        if (shots) REQUIRE(examples_make(&p, &s, &labels, shots, 3) && p.n_per_label == 1);
        for (int i = 0; i < 6; i++) {
            const char *sentence = i == 5 ? "" : s.dev.rows[i].sentence;
            REQUIRE(score_text(&s, &p, sentence, strlen(sentence), scores));
            snprintf(text, sizeof text, "%s%s%s", shots ? p.examples.bytes : "", sentence,
                     *sentence ? " It was" : "It was");
            for (int j = 0; j < s.labels.n; j++) {
                ml_likelihood_desc desc = {0};
                ml_likelihood expected;
                snprintf(word, sizeof word, " %s", s.labels.name[j]);
                desc.context = text, desc.continuation = word;
                REQUIRE(ml_session_truncate(fresh, 0, NULL) == ML_OK);
                REQUIRE(ml_session_likelihood(fresh, &desc, &expected, NULL) == ML_OK);
                CHECK_NEAR(scores[j], expected.sum, 1e-3, 0);
            }
        }
        CHECK(s.session->length > p.n_tokens / 2); /* examples stay */
        buffer_free(&p.examples);
    }
    ml_session_free(fresh);
    close_opinions(&s, &labels);
}

/* Too long a sentence loses its end, and not the question. */
TEST(long_sentences) {
    static char line[6000];
    sentiment s;
    label_names labels;
    wordings w;
    scored_set of;
    size_t n = (size_t)snprintf(line, sizeof line, "0 ||| ");
    REQUIRE(open_opinions(&s, &labels, &w));
    while (n < 5000) n += (size_t)snprintf(line + n, sizeof line - n, "word ");
    write_file(in_folder("long.txt"), line, n);
    reviews_free(&s.dev);
    REQUIRE(reviews_read(&s.dev, in_folder("long.txt"), 5) && scored_set_new(&of, 1, &w));
    prompt p = {" It was", {0}, 0, 0};
    capture_begin();
    int ok = score_set(&s, &p, &s.dev, &of, "dev") && score_set(&s, &p, &s.dev, &of, "dev");
    const char *printed = capture_end();
    CHECK(ok && strstr(printed, "1 sentences are cut to ") && !strstr(printed, "2 sentences"));
    CHECK(s.session->length > 200 && s.session->length <= 256);
    scored_set_free(&of);
    close_opinions(&s, &labels);
}

/* ---- the program ---- */

static const char *run_program(const char *const *more, int *status) {
    const char *words[32] = {"zero_shot", MODEL, "--data", "examples/data", "--threads", "1"};
    char *args[32];
    int n = 6;
    while (*more) words[n++] = *more++;
    for (int i = 0; i < n; i++) args[i] = (char *)(uintptr_t)words[i];
    capture_begin();
    *status = zero_shot_main(n, args);
    return capture_end();
}

/* Rows of the assignment's way, of 4 prompts with 2 * 5 scores, and of 2 seeds with examples. */
TEST(table_and_csv) {
    const char *const more[] = {"--tasks", "opinions2", "--seeds", "2", "--csv", NULL, NULL};
    const char *words[7];
    int status, n = 0;
    char method[64], first[128] = "", line[512];
    double dev, test, seconds;
    memcpy(words, more, sizeof words);
    words[5] = in_folder("table.csv");
    const char *printed = run_program(words, &status);
    CHECK(status == 0 && strstr(printed, "| question/name/reference "));
    CHECK(strstr(printed, "stories.gguf, opinions2: best on dev is "));
    FILE *file = fopen(in_folder("table.csv"), "r");
    REQUIRE(file != NULL);
    CHECK(fgets(first, sizeof first, file) &&
          strcmp(first, "method,model,task,seed,dev,test,gold,seconds\n") == 0);
    for (; fgets(line, sizeof line, file); n++) {
        int seed;
        CHECK(sscanf(line, "%63[^,],stories.gguf,opinions2,%d,%lf,%lf,,%lf", method, &seed, &dev, &test,
                     &seconds) == 5);
        CHECK(dev >= 0 && dev <= 1 && test >= 0 && test <= 1 && (seed == 1337 || strstr(method, "/1-shot")));
    }
    CHECK(n == 1 + 10 * (4 + 2));
    fclose(file);
}

/* No table replaces what is read, and that is seen before the work. */
TEST(inputs_are_spared) {
    static const char *const names[] = {"any.bin", "spared-dev.txt", "spared-labels.json"};
    for (int i = 0; i < 3; i++) {
        char path[700], tokenizer[700], reason[64];
        int status;
        snprintf(tokenizer, sizeof tokenizer, "%s", in_folder("any.bin"));
        snprintf(path, sizeof path, "%s", in_folder(names[i]));
        snprintf(reason, sizeof reason, "%s is also read (%s)", names[i], i ? "--data" : "--tokenizer");
        write_file(path, "x", 1);
        const char *const words[] = {"--tokenizer", tokenizer, "--data", folder, "--tasks",
                                     "spared",      "--csv",   path,     NULL};
        const char *printed = run_program(words, &status);
        CHECK(status == 1 && strstr(printed, reason));
        bytes b = read_file(path);
        CHECK(b.size == 1);
        free_bytes(&b);
    }
}

/* The task "film": opinions whose test set is dev, with placeholders in place of its labels, and these as `gold`. */
static int make_film(bytes *gold) {
    static const char *const parts[] = {"train.txt", "dev.txt", "labels.json"};
    char from[128], to[64], line[2048];
    bytes masked = {NULL, 0, 0};
    reviews real;
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, "examples/data/opinions2-%s", parts[i]);
        snprintf(to, sizeof to, "film-%s", parts[i]);
        bytes b = read_file(from);
        write_file(in_folder(to), b.data, b.size);
        free_bytes(&b);
    }
    if (!reviews_read(&real, "examples/data/opinions2-dev.txt", 2)) return 0;
    for (int i = 0; i < real.n; i++) {
        put(gold, line, (size_t)snprintf(line, sizeof line, "%d\n", real.rows[i].label));
        put(&masked, line, (size_t)snprintf(line, sizeof line, "0 ||| %s\n", real.rows[i].sentence));
    }
    write_file(in_folder("film-test.txt"), masked.data, masked.size);
    reviews_free(&real);
    free_bytes(&masked);
    return 1;
}

/* Accuracies of the first row of a CSV file; gold is -1 where there is none. */
static void read_row(const char *path, double *dev, double *gold) {
    bytes csv = read_file(path);
    double test;
    put_u8(&csv, 0);
    const char *line = strchr((const char *)csv.data, '\n');
    *dev = *gold = -1;
    CHECK(line && sscanf(line, "\ntone/name/sum,stories.gguf,film,1337,%lf,%lf,%lf,", dev, &test, gold) >= 2);
    free_bytes(&csv);
}

/* Placeholders are measured by other labels, too, of a given file, or of one beside the test set: the same ones give
   the same accuracy. */
TEST(gold_labels) {
    static const char *const all[] = {"--data",  folder, "--tasks", "film",  "--template", "tone",
                                      "--shots", "0",    "--csv",   "PLACE", NULL};
    static const char *const names[] = {"none", "film-test-gold.txt", "gold.txt"};
    const char *more[13];
    char csv[600], given[600]; /* in_folder keeps only its last texts */
    bytes gold = {NULL, 0, 0};
    double dev, by_gold;
    int status;
    REQUIRE(make_film(&gold));
    snprintf(csv, sizeof csv, "%s", in_folder("gold.csv"));
    snprintf(given, sizeof given, "%s", in_folder("gold.txt"));
    memcpy(more, all, sizeof all);
    more[9] = csv;
    for (int i = 0; i < 3; i++) {
        write_file(in_folder(names[i]), gold.data, gold.size);
        if (i == 2) more[10] = "--test_gold", more[11] = given, more[12] = NULL;
        run_program(more, &status);
        CHECK(status == 0);
        read_row(csv, &dev, &by_gold);
        CHECK_NEAR(by_gold, i ? dev : -1, 1e-9, 0);
        if (i == 1) CHECK(remove(in_folder(names[i])) == 0);
    }
    write_file(given, gold.data, gold.size - 2);
    CHECK(strstr(run_program(more, &status), "gold.txt: it has 59 labels, but ") && status == 1);
    free_bytes(&gold);
}

/* A run that fails leaves the table of an earlier one. */
TEST(failing_keeps_the_old_table) {
    char csv[600];
    const char *words[] = {"absent.gguf", "--tasks", "opinions2", "--template", "tone",
                           "--shots",     "0",       "--csv",     NULL,         NULL};
    int status;
    snprintf(csv, sizeof csv, "%s", in_folder("old.csv"));
    words[8] = csv;
    write_file(csv, "old", 3);
    run_program(words, &status);
    bytes left = read_file(csv);
    CHECK(status == 1 && left.size == 3);
    free_bytes(&left);
}

TEST(refusals) {
    static const struct {
        const char *words[5], *says;
        int status;
    } cases[] = {
        {{"--template", "poem"}, "error: --template is question, it-was, film or tone, not poem\n", 2},
        {{"--shots", "17"}, "error: --shots is 0 to 16, --seeds positive, --threads 1 to 1024\n", 2},
        {{"--seeds", "0"}, "error: --shots is 0 to 16, --seeds positive", 2},
        {{"--tasks", "poems"}, "examples/data/poems-labels.json: No such file", 1},
        {{"--tasks", "opinions2", "--test_gold", "x"},
         "opinions2-test.txt: its labels are no placeholders",
         1},
        {{"--csv", "/nowhere/x"}, "/nowhere/x cannot be written", 1},
        {{"absent.gguf", "--tasks", "opinions2", "--template", "tone"}, "absent.gguf", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *words[6] = {NULL};
        int status;
        memcpy(words, cases[i].words, sizeof cases[i].words);
        const char *printed = run_program(words, &status);
        CHECK(status == cases[i].status && strstr(printed, cases[i].says));
    }
}

int main(void) {
    if (!folder_begin("zero_shot")) return 1;
    RUN(words_of_labels);
    RUN(calibration);
    RUN(examples_in_the_prompt);
    RUN(examples_that_do_not_fit);
    RUN(scores_from_the_cache);
    RUN(long_sentences);
    RUN(table_and_csv);
    RUN(inputs_are_spared);
    RUN(gold_labels);
    RUN(failing_keeps_the_old_table);
    RUN(refusals);
    return !folder_end() || test_report("test_zero_shot");
}
