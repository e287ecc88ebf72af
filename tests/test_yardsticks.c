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
    method.check = averaging_check;
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

/* ---- run.sh ---- */

static void write_script(const char *name, const char *text) {
    write_text(name, text);
    CHECK(chmod(in_folder(name), 0755) == 0);
}

static const char table_rows[] =
    "# NAME TASKS SEEDS PROGRAM FLAGS...\n\nmade unused.txt false {OUT}/unused.txt\n"
    "made small.txt cp {DATA}/sst-train.txt {OUT}/small.txt\n"
    "linear four,toy 1,2 yardstick_words --lower\n"
    "large toy,three 1 regularize --save {OUT}/{SEED}.gguf --trees {OUT}/small.txt\n";

/* Copies run.sh beside rows of the test's own, whose programs write down how they are called. */
static void make_table(const char *rows) {
    char script[1200];
    static const char *const scripts[] = {"run.sh", "csv.awk", "collect.awk", "settings.awk", "restore.awk"};
    for (int i = 0; i < 5; i++) {
        char path[64];
        snprintf(path, sizeof path, "examples/advanced/%s", scripts[i]);
        bytes copy = read_file(path);
        CHECK(copy.size > 0);
        write_file(in_folder(scripts[i]), copy.data, copy.size);
        free_bytes(&copy);
    }
    write_text("rows.txt", rows);
    write_text("a.model", "weights");
    write_text("sst-train.txt", "0 ||| x\n");
    write_text("calls", "");
    if (!exists(in_folder("build"))) CHECK(make_folder(in_folder("build")));
    snprintf(
        script, sizeof script,
        "#!/bin/sh\necho \"$*\" >>'%s'\n"
        "while [ \"$1\" != --csv ]; do case $1 in --task) task=$2 ;; --save_model) echo >\"$2\" ;; esac; "
        "shift; done\n"
        "printf 'task,dev,seed,settings\\n%%s,.5,1,\"--task %%s\"\\n' \"$task\" \"$task\" >\"$2\"\n",
        in_folder("calls"));
    write_script("build/yardstick_words", script);
    write_script("build/regularize", script);
}

/* Runs the table in the folder `out`; the environment and names of rows may be "". Returns run.sh's status. */
static int run_table(const char *out, const char *environment, const char *names) {
    char command[4000];
    snprintf(command, sizeof command, "BUILD='%s' THREADS=1 %s sh '%s' '%s' '%s' '%s' %s >'%s' 2>&1",
             in_folder("build"), environment, in_folder("run.sh"), in_folder("a.model"), folder,
             in_folder(out), names, in_folder("said"));
    return system(command);
}

/* Whether a file of the folder has such a part; and how many lines it has. */
static int has(const char *name, const char *part) {
    bytes b = read_file(in_folder(name));
    put_u8(&b, 0);
    int found = strstr((const char *)b.data, part) != NULL;
    if (!found) printf("%s: %s\n", name, (const char *)b.data);
    free_bytes(&b);
    return found;
}
static int lines_of(const char *name) {
    bytes b = read_file(in_folder(name));
    int n = 0;
    for (size_t i = 0; i < b.size; i++) n += b.data[i] == '\n';
    free_bytes(&b);
    return n;
}

/* The yardsticks get no model; what is done is not run again, a task that is not wanted is not run, and only the files
   that a row names are made. */
TEST(rows_are_run) {
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table(table_rows);
    for (int i = 0; i < 2; i++) CHECK(run_table("out", "TASKS='toy three'", "") == 0);
    bytes calls = read_file(in_folder("calls")), all = read_file(in_folder("out/results.csv"));
    put(&calls, "", 1), put(&all, "", 1);
    const char *line = (const char *)calls.data;
    char starts[4][1200];
    snprintf(starts[0], sizeof starts[0], "--data %s --task toy --seed 1 --threads 1 --lower --csv", folder);
    snprintf(starts[1], sizeof starts[1],
             "--model %s/a.model --data %s --task toy --seed 1 --threads 1 --save %s/1.gguf", folder, folder,
             in_folder("out"));
    snprintf(starts[2], sizeof starts[2], "--model %s/a.model --data %s --task three --seed 1", folder,
             folder);
    snprintf(starts[3], sizeof starts[3], "--data %s --task toy --seed 2 --threads 1 --lower --csv", folder);
    for (int i = 0; i < 4 && line; i++) {
        CHECK(strncmp(line, starts[i], strlen(starts[i])) == 0);
        line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
    }
    CHECK(line && !*line); /* no fifth */
    bytes made = read_file(in_folder("out/small.txt"));
    CHECK(made.size == strlen("0 ||| x\n"));
    free_bytes(&made);
    static const char expected[] =
        "name,program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings\n"
        "large,,,,three,1,.5,,,,,,,\"regularize --save {OUT}/{SEED}.gguf --trees {OUT}/small.txt\"\n"
        "large,,,,toy,1,.5,,,,,,,\"regularize --save {OUT}/{SEED}.gguf --trees {OUT}/small.txt\"\n"
        "linear,,,,toy,1,.5,,,,,,,\"yardstick_words --lower\"\n"
        "linear,,,,toy,1,.5,,,,,,,\"yardstick_words --lower\"\n";
    CHECK(strcmp((const char *)all.data, expected) == 0);
    free_bytes(&calls);
    free_bytes(&all);
}

/* A run is made again by a changed command, and only then; those of a results.csv count as done, also without the
   command. Flags with commas, and the tokenizer. */
TEST(runs_are_known_by_their_commands) {
    char command[2000];
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table("one toy 2 regularize --targets q,v\nother toy 1 regularize\n");
    CHECK(run_table("known", "SEEDS=1 TOKENIZER=t.bin", "") == 0 && lines_of("calls") == 2);
    CHECK(has("calls", "/a.model --tokenizer t.bin --data ") && has("calls", " --threads 1 --csv "));
    CHECK(has("known/results.csv", "one,,,,toy,1,.5,,,,,,,\"regularize --targets q,v\"\n"));
    write_text("results.csv", "name,task,seed,dev\none,toy,2,.7\nother,toy,1,.8\n");
    for (int i = 0; i < 2; i++) { /* the second time nothing is new */
        snprintf(command, sizeof command, "sh '%s' --from '%s' '%s' >'%s' 2>&1", in_folder("run.sh"),
                 in_folder(i ? "known/results.csv" : "results.csv"), in_folder("more"), in_folder("said"));
        CHECK(system(command) == 0);
        CHECK(has("said", i ? "1 runs are known" : "2 runs are known"));
    }
    CHECK(has("more/one-toy-2.csv", "task,seed,dev\ntoy,2,.7\n"));
    CHECK(run_table("more", "", "") == 0 && lines_of("calls") == 2); /* one-toy-1 came with the second file */
    make_table("one toy 2 regularize --targets k,v\nother toy 1 regularize\n");
    CHECK(run_table("more", "", "") == 0 && lines_of("calls") == 1);
    CHECK(has("said", "one-toy-1.csv is from another command, and made again: regularize --targets q,v"));
    CHECK(has("more/results.csv", "one,,,,toy,1,.5,,,,,,,\"regularize --targets k,v\"\n"
                                  "one,,,,toy,2,.7,,,,,,,\"\"\nother,,,,toy,1,.8,,,,,,,\"\"\n"));
}

/* Lines of no row: for each seed; with a file that is complete or not there; left out without what they need; and a
   failure that stops only its own line. What a row needs of another row is made by that one. */
TEST(files_are_made_once) {
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table(
        "made bad.txt false {FILE}\nmade good.txt cp {DATA}/sst-train.txt {FILE}\n"
        "once copy-{SEED}.csv 2 cp {OUT}/good.txt {FILE}\nonce said.txt 1 echo {TASK}seed {SEED}\n"
        "once small.csv 1 cp {SMALL} {FILE}\nonce broken.csv 3 cp {OUT}/bad.txt {FILE}\n"
        "never toy 3 regularize --trees {OUT}/bad.txt\n"
        "first toy 1 regularize --curve {OUT}/curve-{TASK}-{SEED}.csv --save_model {OUT}/m-{SEED}.gguf\n"
        "second three 1 regularize --model {OUT}/m-{SEED}.gguf\n");
    CHECK(run_table("once", "", "second") == 0 && lines_of("calls") == 2);
    CHECK(has("calls", "/curve-toy-1.csv --save_model ") && exists(in_folder("once/first-toy-1.csv")));
    CHECK(run_table("once", "", "") != 0 && lines_of("calls") == 2);
    CHECK(has("said", "small.csv is left out: SMALL was not given\n") && has("said", "\n2 runs failed\n"));
    CHECK(has("once/copy-1.csv", "x\n") && has("once/copy-2.csv", "x\n") &&
          !exists(in_folder("once/copy-3.csv")));
    CHECK(has("once/said.txt", "seed 1\n") && !exists(in_folder("once/broken.csv")));
    CHECK(lines_of("once/results.csv") == 3);
    char environment[1000];
    snprintf(environment, sizeof environment, "SMALL='%s'", in_folder("sst-train.txt"));
    CHECK(run_table("once", environment, "small") == 0 && has("once/small.csv", "x\n"));
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

TEST(wrong_input_is_refused) {
    int (*const both[2])(int, char **) = {words_main, average_main};
    for (int i = 0; i < 2; i++) {
        check_refused(both[i], "absent", "", "absent-label-mapping.json: No such file");
        check_refused(both[i], "toy", "--model x.gguf", "unknown option --model");
        check_refused(both[i], "toy", "--mask full",
                      "--mask, --norm, --max_len, --head_hidden and --pooling are for a Llama");
        check_refused(both[i], "toy", "--pooling mean", "are for a Llama");
        check_refused(both[i], "toy", "--save x.gguf", "has no model");
        check_refused(both[i], "toy", "--seed many", "--seed takes a whole number, not \"many\"");
        write_text("bad.txt", "1 ||| good\n7 ||| bad\n");
        check_refused(both[i], "toy", "--dev bad.txt", "bad.txt");
    }
    check_refused(words_main, "three", "", "ratios are of two labels, and --task three has 3");
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
    RUN(rows_of_csv);
    RUN(rows_are_run);
    RUN(runs_are_known_by_their_commands);
    RUN(files_are_made_once);
    RUN(wrong_input_is_refused);
    return test_report("test_yardsticks");
}
