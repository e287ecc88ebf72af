/* run.sh, which runs the rows of the experiments, over programs that write down how they are called. */
#include "preamble.h"
#include "folder.h"
#include <sys/stat.h>

static void write_text(const char *name, const char *text) {
    write_file(in_folder(name), text, strlen(text));
}

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
    static const char *const scripts[] = {"run.sh",       "csv.awk",     "collect.awk",
                                          "settings.awk", "restore.awk", "models.awk"};
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
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
    snprintf(script, sizeof script,
             "#!/bin/sh\necho \"$*\" >>'%s'\n"
             "while [ \"$1\" != --csv ]; do case $1 in --task) task=$2 ;; --model) model=${2##*/} ;; "
             "--save_model) echo >\"$2\" ;; esac; shift; done\n"
             "printf 'model,task,dev,seed,settings\\n%%s,%%s,.5,1,\"--task %%s\"\\n' \"$model\" \"$task\" "
             "\"$task\" >\"$2\"\n",
             in_folder("calls"));
    write_script("build/yardstick_words", script);
    write_script("build/regularize", script);
}

/* Runs the table with a model, in the folder `out`; the environment and names of rows may be "". Returns run.sh's
   status. */
static int run_with(const char *model, const char *out, const char *environment, const char *names) {
    char command[4000];
    snprintf(command, sizeof command, "BUILD='%s' THREADS=1 %s sh '%s' '%s' '%s' '%s' %s >'%s' 2>&1",
             in_folder("build"), environment, in_folder("run.sh"), in_folder(model), folder, in_folder(out),
             names, in_folder("said"));
    return system(command);
}
static int run_table(const char *out, const char *environment, const char *names) {
    return run_with("a.model", out, environment, names);
}

/* The runs of a CSV file into `out`; `model` may be "". */
static int restore(const char *csv, const char *out, const char *model) {
    char command[3000];
    snprintf(command, sizeof command, "sh '%s' --from '%s' '%s' %s >'%s' 2>&1", in_folder("run.sh"),
             in_folder(csv), in_folder(out), model, in_folder("said"));
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
    for (int i = 0; i < 2; i++) {
        CHECK(run_table("out", i ? "COMMAND=x TASKS='toy three'" : "COMMAND=x TASKS=toy,three", "") == 0);
        CHECK(lines_of("calls") == 4);
    }
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
        "large,,,a.model,three,1,.5,,,,,,,\"regularize --save {OUT}/{SEED}.gguf --trees {OUT}/small.txt\"\n"
        "large,,,a.model,toy,1,.5,,,,,,,\"regularize --save {OUT}/{SEED}.gguf --trees {OUT}/small.txt\"\n"
        "linear,,,,toy,1,.5,,,,,,,\"yardstick_words --lower\"\n"
        "linear,,,,toy,1,.5,,,,,,,\"yardstick_words --lower\"\n";
    CHECK(strcmp((const char *)all.data, expected) == 0);
    free_bytes(&calls);
    free_bytes(&all);
}

/* A run is made again by a changed command, and only then; those of a results.csv count as done, also without the
   command. Flags with commas, and the tokenizer. */
TEST(runs_are_known_by_their_commands) {
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table("one toy 2 regularize --targets q,v\nother toy 1 regularize\n");
    CHECK(run_table("known", "SEEDS=1 TOKENIZER=t.bin", "") == 0 && lines_of("calls") == 2);
    CHECK(has("calls", "/a.model --tokenizer t.bin --data ") && has("calls", " --threads 1 --csv "));
    CHECK(has("known/results.csv", "one,,,a.model,toy,1,.5,,,,,,,\"regularize --targets q,v\"\n"));
    write_text("results.csv", "name,task,seed,dev\none,toy,2,.7\nother,toy,1,.8\n");
    for (int i = 0; i < 2; i++) { /* the second time nothing is new */
        CHECK(restore(i ? "known/results.csv" : "results.csv", "more", "") == 0);
        CHECK(has("said", i ? "1 runs are known" : "2 runs are known"));
    }
    CHECK(has("more/one-toy-2.csv", "task,seed,dev\ntoy,2,.7\n"));
    CHECK(run_table("more", "", "") == 0 && lines_of("calls") == 2); /* one-toy-1 came with the second file */
    write_text("more/one-toy-1.csv", "");                            /* an empty file is no run */
    CHECK(restore("known/results.csv", "more", "a.model") == 0 && has("said", "1 runs are known"));
    CHECK(has("more/one-toy-1.csv", "a.model,toy,1,.5"));
    make_table("one toy 2 regularize --targets k,v\nother toy 1 regularize\n");
    CHECK(run_table("more", "", "") == 0 && lines_of("calls") == 1);
    CHECK(has("said", "one-toy-1.csv is from another command, and made again: regularize --targets q,v"));
    CHECK(has("more/results.csv", "one,,,a.model,toy,1,.5,,,,,,,\"regularize --targets k,v\"\n"
                                  "one,,,,toy,2,.7,,,,,,,\"\"\nother,,,,toy,1,.8,,,,,,,\"\"\n"));
}

/* Lines of no row: for each seed; with a file that is complete or not there; left out without what they need; and a
   failure that stops only its own line. What a row needs of another row is made by that one. */
TEST(files_are_made_once) {
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table(
        "made bad.txt false {FILE}\nmade unused.gguf false of --save_model {FILE}\nmade good.txt cp "
        "{DATA}/sst-train.txt {FILE}\n"
        "once copy-{SEED}.csv 2 cp {OUT}/good.txt {FILE}\nonce said.txt 1 echo {TASK}seed {SEED}\n"
        "once rows-copy.csv 1 cp {HERE}/rows.txt {FILE}\n"
        "once small.csv 1 cp {SMALL} {FILE}\nonce broken.csv 3 cp {OUT}/bad.txt {FILE}\n"
        "never toy 3 regularize --trees {OUT}/bad.txt\n"
        "first toy 1 regularize --curve {OUT}/curve-{TASK}-{SEED}.csv --save_model {OUT}/m-{SEED}.gguf\n"
        "second three 1 regularize --model {OUT}/m-{SEED}.gguf\n");
    CHECK(run_table("once", "", "second") == 0 && lines_of("calls") == 2);
    write_text("once/results.part", "another's"); /* what is written at the same time */
    write_text("once/part.copy-1.csv", "another's");
    write_text("once/.part.1.first-toy-1", "another's");
    CHECK(has("calls", "/curve-toy-1.csv --save_model ") && exists(in_folder("once/first-toy-1.csv")));
    CHECK(run_table("once", "", "") != 0 && lines_of("calls") == 2);
    CHECK(has("said", "small.csv is left out: SMALL was not given\n") && has("said", "\n2 runs failed\n"));
    CHECK(has("once/copy-1.csv", "x\n") && has("once/copy-2.csv", "x\n") &&
          !exists(in_folder("once/copy-3.csv")));
    CHECK(has("once/said.txt", "seed 1\n") && !exists(in_folder("once/broken.csv")));
    CHECK(has("once/rows-copy.csv", "made bad.txt false"));
    CHECK(lines_of("once/results.csv") == 3 && has("once/results.part", "another's"));
    CHECK(has("once/part.copy-1.csv", "another's") && has("once/.part.1.first-toy-1", "another's"));
    char environment[1000];
    snprintf(environment, sizeof environment, "SMALL='%s'", in_folder("sst-train.txt"));
    CHECK(run_table("once", environment, "small") == 0 && has("once/small.csv", "x\n"));
}

/* What would run nothing, or mix the runs of two models, is refused. */
TEST(wrong_rows_are_refused) {
    static const char *const wrong[][4] = {
        {"a.model", "out", "SEEDS=ten", "SEEDS is a number, not ten\n"},
        {"a.model", "out", "TASKS=TOY", "TASKS: rows.txt has no row for TOY\n"},
        {"a.model", "o ut", "", "paths have neither spaces nor | nor &"},
        {"b.model", "out", "", "out/baseline-toy-1.csv is a run of a.model, not of b.model"},
    };
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table("baseline toy 1 regularize\n");
    write_text("b.model", "others");
    CHECK(run_table("out", "", "") == 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(run_with(wrong[i][0], wrong[i][1], wrong[i][2], "") != 0);
        CHECK(has("said", wrong[i][3]));
    }
    CHECK(run_table("out", "", "baselin") != 0 && has("said", "rows.txt has no baselin\n"));
    write_text("a.model", "changed");
    CHECK(run_table("out", "", "") != 0);
    CHECK(has("said", "out has runs of another a.model: choose another folder"));
    CHECK(lines_of("calls") == 1);
}

/* New files of data change nothing, changed ones do; made-from is written, or that is the error. */
TEST(data_may_grow_but_not_change) {
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table("baseline toy 1 regularize\n");
    CHECK(run_table("grown", "", "") == 0 && lines_of("grown/made-from") == 2);
    write_text("grown/made-from", "123 456\n"); /* its former form, without names */
    for (int i = 0; i < 2; i++) {
        CHECK(run_table("grown", "", "") == 0 && lines_of("calls") == 1);
        CHECK(lines_of("grown/made-from") == 2 + i && has("grown/made-from", " sst-train.txt\n"));
        write_text("sst-trees-train.txt", "(0 x)\n");
    }
    CHECK(remove(in_folder("sst-trees-train.txt")) == 0);
    CHECK(run_table("grown", "", "") == 0 && lines_of("grown/made-from") == 3);
    write_text("sst-trees-train.txt", "(1 x)\n"); /* of the same length */
    CHECK(run_table("grown", "", "") != 0 && has("said", "grown has runs of another sst-trees-train.txt: "));
    CHECK(remove(in_folder("sst-trees-train.txt")) == 0);
    write_text("sst-train.txt", "1 ||| x\n");
    CHECK(run_table("grown", "", "") != 0 && has("said", "grown has runs of another sst-train.txt: "));
    CHECK(make_folder(in_folder("bad")) && make_folder(in_folder("bad/made-from")));
    CHECK(run_table("bad", "", "") != 0 && has("said", "bad/made-from cannot be written\n"));
    CHECK(lines_of("calls") == 1);
}

/* Whichever row a run is of, unless it has a model of its own or none. */
TEST(runs_of_two_models_are_not_mixed) {
    static const char head[] = "name,model,task,seed,dev,settings\n";
    char text[600];
    if (WITHOUT_SH) SKIP("Windows has no sh");
    make_table("plain toy 1 regularize\nown toy 1 regularize --model {OUT}/m\nwords toy 1 yardstick_words\n");
    write_text("b.model", "others");
    snprintf(text, sizeof text,
             "%sown,m,toy,1,.5,\nwords,none,toy,1,.5,\ngone,old.model,toy,1,.5,\nplain,b.model,toy,1,.5,\n",
             head);
    write_text("b.csv", text);
    CHECK(restore("b.csv", "mixed", "some/a.model") != 0 && !exists(in_folder("mixed/plain-toy-1.csv")));
    CHECK(has("said", "b.csv has a run of b.model, not of a.model: "));
    CHECK(restore("b.csv", "mixed", "") == 0 && has("said", "4 runs are known"));
    CHECK(run_table("mixed", "", "") != 0 && lines_of("calls") == 0);
    CHECK(has("said", "mixed/plain-toy-1.csv is a run of b.model, not of a.model: "));
    CHECK(run_with("b.model", "mixed", "", "") == 0 && lines_of("calls") == 0);
    snprintf(text, sizeof text, "%splain,a.model,toy,2,.5,\"regularize\"\n", head);
    write_text("a.csv", text);
    CHECK(restore("a.csv", "mixed", "") != 0 && !exists(in_folder("mixed/plain-toy-2.csv")));
    CHECK(has("said", "mixed/plain-toy-1.csv is a run of b.model, not of a.model: "));
}

int main(void) {
    if (!folder_begin("rows")) return 1;
    RUN(rows_are_run);
    RUN(runs_are_known_by_their_commands);
    RUN(files_are_made_once);
    RUN(wrong_rows_are_refused);
    RUN(data_may_grow_but_not_change);
    RUN(runs_of_two_models_are_not_mixed);
    return !folder_end() || test_report("test_rows");
}
