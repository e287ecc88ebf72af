/* examples/advanced: the two yardsticks, a linear model on words and pairs, and a deep averaging network. */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/common/progress.h"
#define main words_main
#include "../examples/advanced/yardstick_words.c"
#undef main
#define main average_main
#include "../examples/advanced/yardstick_average.c"
#undef main

/* Two tasks: toy has what says which label it is, three has a label more, and no real labels. */
static const char toy[] = "1 ||| Good film\n1 ||| good\n0 ||| bad film\n0 ||| a bad bad day\n",
                  toy_dev[] =
                      "1 ||| good unheard GOOD film\n0 ||| bad\n0 ||| BAD good-bye film\n1 ||| good film\n",
                  toy_test[] = "0 ||| good\n0 ||| bad film\n",
                  toy_trees[] = "(1 (1 Good) (0 film))\n(1 good)\n(0 (0 bad) (0 film))\n"
                                "(0 (0 a) (0 (0 bad) (0 (0 bad) (0 day))))\n";

static void write_text(const char *name, const char *text) {
    write_file(in_folder(name), text, strlen(text));
}

static void make_tasks(void) {
    write_text("toy-train.txt", toy);
    write_text("toy-dev.txt", toy_dev);
    write_text("toy-test.txt", toy_test);
    write_text("toy-test-gold.txt", "1\n0\n");
    write_text("toy-trees-train.txt", toy_trees);
    write_text("toy-labels.json", "[\"bad\", \"good\"]");
    write_text("three-train.txt", "2 ||| so so\n");
    write_text("three-dev.txt", "2 ||| so so\n");
    write_text("three-test.txt", "2 ||| so so\n");
    write_text("three-trees-train.txt", "(2 (2 so) (2 so)\n");
    write_text("three-labels.json", "[\"bad\", \"good\", \"odd\"]");
}

/* Runs a program on a task; what it prints. */
static const char *run_on(int (*run)(int, char **), const char *task, const char *flags, int *status) {
    char line[2048], *argv[64], program[] = "test";
    int argc = 1;
    snprintf(line, sizeof line, "--data %s --task %s --threads 1 %s", folder, task, flags);
    argv[0] = program;
    for (char *word = strtok(line, " "); word && argc < 64; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    *status = run(argc, argv);
    return capture_end();
}

static int opened(tuning *t, tuning_settings *set, const tuning_method *method) {
    capture_begin();
    int ok = tuning_open(t, set, method);
    const char *said = capture_end();
    if (!ok) printf("%s", said);
    return ok;
}

static tuning_settings toy_settings(void) {
    tuning_settings set;
    tuning_defaults(&set);
    set.data = folder, set.task = "toy", set.threads = 1, set.lower = 1;
    return set;
}

/* All training rows as a batch. */
static void fill(tuning *t, tuning_batch *batch, int learns) {
    static const int index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    tuning_step rows = {&t->train, index, t->train.n};
    CHECK(tuning_fill(t, batch, &rows, learns) == t->train.n);
}

/* ---- words ---- */

static linear_model m;

static int open_words(tuning *t) {
    tuning_settings set = toy_settings();
    tuning_method method = {0};
    method.program = "test", method.name = "words", method.state = &m;
    method.encode = linear_encode, method.setup = linear_setup, method.logits = linear_logits;
    method.check = linear_check;
    memset(&m, 0, sizeof m);
    return opened(t, &set, &method);
}

static void close_words(tuning *t) {
    tuning_close(t);
    free(m.roots);
}

static size_t feature(const char *word) { return (size_t)(word_hash(word, strlen(word)) % BUCKETS); }

/* Rows have these distinct features: the constant one, words, and pairs, of which one begins the row. */
TEST(features_are_distinct) {
    static const int n[4] = {1 + 2 + 2, 1 + 1 + 1, 1 + 2 + 2, 1 + 3 + 4};
    tuning t;
    REQUIRE(open_words(&t));
    for (int i = 0; i < 4; i++) {
        const review *row = &t.train.rows[i];
        CHECK(row->n_ids == n[i]);
        for (int j = 0; j < row->n_ids; j++)
            for (int k = 0; k < j; k++) CHECK(row->ids[j] != row->ids[k]);
    }
    CHECK(t.train.rows[0].ids[1] == (int32_t)feature("good") &&
          t.train.rows[1].ids[1] == (int32_t)feature("good"));
    CHECK(t.train.rows[0].ids[2] == t.train.rows[1].ids[2]); /* both begin with "good" */
    CHECK(t.train.rows[0].ids[4] != t.train.rows[2].ids[4]); /* good film, bad film */
    close_words(&t);
}

/* 8 features of label 1 and 13 of label 0, and one of each of F in addition. "good" is in two rows of label 1, "bad"
   in two of label 0, "film" in one of each. */
TEST(ratios_of_naive_bayes) {
    tuning t;
    REQUIRE(open_words(&t));
    double all = log((BUCKETS + 13.) / (BUCKETS + 8.));
    CHECK_NEAR(m.ratios[feature("good")], log(3) + all, 0, 1e-6);
    CHECK_NEAR(m.ratios[feature("bad")], -log(3) + all, 0, 1e-6);
    CHECK_NEAR(m.ratios[feature("film")], all, 1e-7, 0); /* a float near 1 has an error of 6e-8 */
    CHECK_NEAR(m.ratios[feature("day")], -log(2) + all, 0, 1e-6);
    CHECK_NEAR(m.ratios[feature("unheard")], all, 1e-7, 0);
    close_words(&t);
}

/* sum of r W over the features / sqrt(their number) + b, in doubles; F32's rounding is below 1e-6. */
TEST(scores_of_words) {
    tuning t;
    tuning_batch batch;
    float scores[4 * CLASSES];
    REQUIRE(open_words(&t));
    float *w = (float *)m.w->data, *b = (float *)m.b->data;
    for (size_t i = 0; i < BUCKETS * CLASSES; i++) w[i] = (float)sin((double)i);
    b[0] = 0.25f, b[1] = -0.5f;
    fill(&t, &batch, 0);
    REQUIRE(tuning_compute(&t, &batch, linear_logits, scores));
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < CLASSES; c++) {
            const review *row = &t.train.rows[i];
            double sum = 0;
            for (int k = 0; k < row->n_ids; k++)
                sum += (double)m.ratios[row->ids[k]] * (double)w[row->ids[k] * CLASSES + c];
            CHECK_NEAR(scores[i * CLASSES + c], sum / sqrt(row->n_ids) + (double)b[c], 1e-6, 1e-6);
        }
    close_words(&t);
}

/* dev has a review of each kind, test wrong labels, and its real ones are found. */
TEST(words_are_learned) {
    int status;
    const char *said = run_on(words_main, "toy", "--lower --lr .05 --epochs 20 --batch 4", &status);
    CHECK(status == 0 &&
          strstr(said, "yardstick_words words: dev 1.000, test 0.500, real test 1.000; 2097154 of "));
    if (!strstr(said, "dev 1.000")) printf("%s", said);
}

/* ---- the average ---- */

static averaging s;

static int open_average(tuning *t, tuning_settings *set) {
    tuning_method method = {0};
    method.program = "test", method.name = "average", method.state = &s;
    method.encode = averaging_encode, method.setup = averaging_setup, method.logits = averaging_logits;
    method.check = averaging_check, method.make_train = averaging_train;
    memset(&s, 0, sizeof s);
    s.width = 3;
    return opened(t, set, &method);
}

static void close_average(tuning *t) {
    tuning_close(t);
    trees_free(&s.trees);
}

/* Words are good film bad a day, in this order; phrases are those of the trees, each once. Unknown words are left
   out, except that a row begins with 0. */
TEST(phrases_are_words) {
    static const int32_t dev[4][4] = {{0, 1, 1, 2}, {0, 3}, {0, 3, 2}, {0, 1, 2}};
    static const int n_dev[4] = {4, 2, 3, 3};
    tuning_settings set = toy_settings();
    tuning t;
    REQUIRE(open_average(&t, &set));
    CHECK(s.n_words == 6 && s.table->rows == 6 && s.table->cols == 3 && s.w3->rows == 2);
    CHECK(t.train.n == 10); /* of 14, good, bad and film occur again */
    for (int i = 0; i < 4; i++) {
        CHECK(t.dev.rows[i].n_ids == n_dev[i]);
        CHECK(memcmp(t.dev.rows[i].ids, dev[i], (size_t)n_dev[i] * sizeof **dev) == 0);
    }
    close_average(&t);
}

static void plain_layer(double *y, const double *x, const ml_tensor *w, const ml_tensor *b, int is_last) {
    for (size_t i = 0; i < w->rows; i++) {
        y[i] = (double)((const float *)b->data)[i];
        for (size_t j = 0; j < w->cols; j++) y[i] += (double)((const float *)w->data)[i * w->cols + j] * x[j];
        if (!is_last && y[i] < 0) y[i] = 0;
    }
}

/* Means and layers in doubles; F32's rounding is below 1e-6. Dropout of words and layers, given but off, has no part.
   */
TEST(scores_of_the_average) {
    tuning_settings set = toy_settings();
    tuning_batch batch;
    tuning t;
    float scores[16 * 2];
    set.dropout = .5f, set.word_dropout = .5f;
    REQUIRE(open_average(&t, &set));
    for (int j = 0; j < t.n_parameters; j++) /* biases, too */
        for (size_t i = 0; i < t.parameters[j]->tensor->rows * t.parameters[j]->tensor->cols; i++)
            ((float *)t.parameters[j]->tensor->data)[i] = (float)sin((double)i + j);
    fill(&t, &batch, 0);
    REQUIRE(tuning_compute(&t, &batch, averaging_logits, scores));
    for (int i = 0; i < t.train.n; i++) {
        const review *row = &t.train.rows[i];
        double mean[3] = {0}, h1[3], h2[3], y[2];
        for (int k = 0; k < row->n_ids; k++)
            for (int c = 0; c < 3; c++)
                mean[c] += (double)((const float *)s.table->data)[row->ids[k] * 3 + c] / row->n_ids;
        plain_layer(h1, mean, s.w1, s.b1, 0);
        plain_layer(h2, h1, s.w2, s.b2, 0);
        plain_layer(y, h2, s.w3, s.b3, 1);
        for (int c = 0; c < 2; c++) CHECK_NEAR(scores[2 * i + c], y[c], 1e-6, 1e-6);
    }
    close_average(&t);
}

/* Training passes differ with either dropout, and are the same without. */
TEST(dropouts_are_for_training) {
    for (int which = 0; which < 3; which++) { /* none, of hidden numbers, of words */
        tuning_settings set = toy_settings();
        tuning t;
        float losses[2];
        if (which) *(which == 1 ? &set.dropout : &set.word_dropout) = .5f;
        REQUIRE(open_average(&t, &set) && new_optimizer(&t));
        tuning_set(s.b1, 3), tuning_set(s.b2, 3); /* relu lets all pass */
        for (int i = 0; i < 2; i++) {
            tuning_batch batch;
            fill(&t, &batch, 1);
            CHECK((batch.rows.n_tokens == 10 + 18) == (which != 2));
            REQUIRE(tuning_backward(&t, &batch, &losses[i]));
        }
        CHECK((losses[0] == losses[1]) == (which == 0));
        close_average(&t);
    }
}

static const char average_flags[] =
    "--lower --epochs 60 --batch 4 --lr 1e-2 --width 16 --word_dropout .3 --dropout .2";

TEST(the_average_is_learned) {
    int status;
    const char *said = run_on(average_main, "toy", average_flags, &status);
    CHECK(status == 0 && strstr(said, "10 phrases of 5 words"));
    CHECK(strstr(said, "yardstick_average average: dev 1.000, test 0.500, real test 1.000; "));
    if (!strstr(said, "dev 1.000")) printf("%s", said);
}

/* A word that no phrase has is not among them. */
TEST(words_are_of_the_trees) {
    char flags[700];
    int status;
    write_text("few.txt", "(1 (1 good) (0 film))\n(0 bad)\n");
    snprintf(flags, sizeof flags, "%s --epochs 1 --trees %s", average_flags, in_folder("few.txt"));
    CHECK(strstr(run_on(average_main, "toy", flags, &status), "4 phrases of 3 words") && status == 0);
}

/* The same seed gives the same row, but for time and memory, under the columns of all experiments. */
TEST(rows_of_csv) {
    char flags[700], said[2][600], head[600];
    int status;
    for (int i = 0; i < 2; i++) {
        snprintf(flags, sizeof flags, "%s --epochs 3 --seed 5 --csv %s", average_flags,
                 in_folder("rows.csv"));
        run_on(average_main, "toy", flags, &status);
        CHECK(status == 0);
    }
    FILE *file = fopen(in_folder("rows.csv"), "r");
    REQUIRE(file && fgets(head, sizeof head, file) && fgets(said[0], sizeof said[0], file) &&
            fgets(said[1], sizeof said[1], file));
    fclose(file);
    CHECK(
        strcmp(
            head,
            "program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings\n") ==
        0);
    CHECK(strncmp(said[0], "yardstick_average,average,none,toy,5,", 37) == 0);
    const char *end =
        strstr(said[0], ",674,"); /* 6 words, 2 layers, 2 classes: 96 + 2 (256 + 16) + 2 (16 + 1) */
    CHECK(end && strncmp(said[0], said[1], (size_t)(end - said[0])) == 0);
}

/* ---- refusals ---- */

static void check_refused(int (*program)(int, char **), const char *task, const char *flags,
                          const char *reason) {
    int status;
    const char *said = run_on(program, task, flags, &status);
    CHECK(status == 1 || status == 2);
    CHECK(strstr(said, reason));
    if (!strstr(said, reason)) printf("%s: %s", flags, said);
}

/* No file of a task is replaced. */
TEST(inputs_are_spared) {
    static const char *const outputs[] = {"--csv", "--save", "--save_model"};
    static const char *const parts[] = {"train.txt",     "dev.txt",     "test.txt",
                                        "test-gold.txt", "labels.json", "trees-train.txt"};
    char flags[1000], reason[100];
    for (int i = 0; i < 18; i++) {
        snprintf(flags, sizeof flags, "%s %s/toy-%s", outputs[i / 6], folder, parts[i % 6]);
        snprintf(reason, sizeof reason, "toy-%s is also read", parts[i % 6]);
        check_refused(average_main, "toy", flags, reason);
    }
}

/* Where no label of dev is known, no weights are better than the last ones. */
TEST(dev_without_labels) {
    char flags[700];
    int status;
    write_text("unlabeled.txt", "-1 ||| good film\n-1 ||| bad\n");
    snprintf(flags, sizeof flags, "%s --epochs 3 --dev %s", average_flags, in_folder("unlabeled.txt"));
    const char *said = run_on(average_main, "toy", flags, &status);
    CHECK(status == 0 && strstr(said, "unlabeled.txt: no label is known: the last weights are kept"));
    CHECK(strstr(said, "; best at step 9 of 9"));
    if (!strstr(said, "; best at step 9 of 9")) printf("%s", said);
}

TEST(wrong_input_is_refused) {
    int (*const both[2])(int, char **) = {words_main, average_main};
    for (int i = 0; i < 2; i++) {
        check_refused(both[i], "absent", "", "absent-label-mapping.json: No such file");
        check_refused(both[i], "toy", "--model x.gguf", "unknown option --model");
        check_refused(both[i], "toy", "--mask full",
                      "--mask, --norm, --mode, --max_len, --head_hidden and --pooling are for a Llama");
        check_refused(both[i], "toy", "--pooling mean", "are for a Llama");
        check_refused(both[i], "toy", "--head_lr 1", "--head_lr is of a classifier");
        check_refused(both[i], "toy", "--save x.gguf", "has no model");
        check_refused(both[i], "toy", "--seed many", "--seed takes a whole number, not \"many\"");
        write_text("bad.txt", "1 ||| good\n7 ||| bad\n");
        check_refused(both[i], "toy", "--dev bad.txt", "bad.txt");
    }
    check_refused(words_main, "toy", "--dropout .5", "--dropout is not for yardstick_words");
    check_refused(words_main, "three", "", "ratios are of two labels, and --task three has 3");
    check_refused(average_main, "toy", "--train bad.txt",
                  "--train is not for yardstick_average: its phrases");
    check_refused(average_main, "toy", "--width 0", "--width is 1 to 4096");
    check_refused(average_main, "toy", "--trees absent.txt", "absent.txt: No such file");
    check_refused(average_main, "three", "", "three-trees-train.txt:1: the tree ends with 1 open brackets");
}

int main(void) {
    if (!folder_begin("yardsticks")) return 1;
    make_tasks();
    RUN(features_are_distinct);
    RUN(ratios_of_naive_bayes);
    RUN(scores_of_words);
    RUN(words_are_learned);
    RUN(phrases_are_words);
    RUN(scores_of_the_average);
    RUN(dropouts_are_for_training);
    RUN(the_average_is_learned);
    RUN(words_are_of_the_trees);
    RUN(rows_of_csv);
    RUN(inputs_are_spared);
    RUN(dev_without_labels);
    RUN(wrong_input_is_refused);
    return test_report("test_yardsticks");
}
