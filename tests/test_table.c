/* tools/table.c: what is run, what is run again, and the means. A script replaces run_llama: it counts its runs in a
   file, prints what run_llama would print, and aborts where it is told to. */
#include "preamble.h"
#include "folder.h"
#define main table_main
#include "../tools/table.c"
#undef main

static void write_script(void) {
    FILE *script = fopen(in_folder("run"), "w");
    REQUIRE(script != NULL);
    fprintf(
        script,
        "#!/bin/sh\n"
        "cd '%s' || exit 1\n"
        "echo \"$@\" >>calls\n"
        "calls=$(wc -l <calls)\n"
        "[ \"$calls\" -eq \"$(cat kill)\" ] && kill -9 $$\n"
        "[ \"$calls\" -eq \"$(cat fail)\" ] && { echo 'error: there is no film'; exit 1; }\n"
        "case \"$*\" in *1338*) a=0.500 ;; *) a=0.300 ;; esac\n"
        "case \"$*\" in\n"
        "*finetune*|*lora*) for e in 0 1; do\n"
        "    echo \"epoch $e: train loss :: 1.5, train acc :: 0.2, dev acc :: $a, dev f1 :: 0.1\"; done ;;\n"
        "esac\n"
        "echo \"dev acc :: $a, f1 :: 0.250\"\n"
        "echo \"test acc :: $a, f1 :: 0.200\"\n"
        "case \"$*\" in *--test-gold*) echo 'real test acc :: 0.700, f1 :: 0.600 (by its file)' ;; esac\n",
        folder);
    REQUIRE(fclose(script) == 0 && chmod(in_folder("run"), 0755) == 0);
}

static void write_number(const char *name, int number) {
    FILE *file = fopen(in_folder(name), "w");
    REQUIRE(file != NULL);
    fprintf(file, "%d\n", number);
    fclose(file);
}

static int lines_with(const char *name, const char *part) {
    char line[8192];
    int n = 0;
    FILE *file = fopen(in_folder(name), "r");
    while (file && fgets(line, sizeof line, file)) n += strstr(line, part) != NULL;
    if (file) fclose(file);
    return n;
}

static const char *said; /* by the last call of run_table */

/* lr NULL: none is given. */
static int run_table(const char *lr) {
    char out[600], script[600], data[600];
    const char *words[] = {"table", "--model", "m.pt", "--data",   data, "--out", out, "--run_llama",
                           script,  "--seeds", "2",    "--epochs", "2",  "--lr",  lr,  NULL};
    char *args[16];
    int i, status;
    snprintf(out, sizeof out, "%s/a/b", folder);
    snprintf(script, sizeof script, "%s/run", folder);
    snprintf(data, sizeof data, "%s/d", folder);
    for (i = 0; i < 16; i++) args[i] = (char *)(size_t)words[i];
    memset(known_files, 0, sizeof known_files); /* as in a new process */
    capture_begin();
    status = table_main(lr ? 15 : 13, args);
    said = capture_end();
    return status;
}

TEST(nothing_wanted) {
    char *args[] = {(char *)"table", (char *)"--model", (char *)"m.pt", (char *)"--only",
                    (char *)"sst fintune"};
    capture_begin();
    CHECK(table_main(5, args) == 2);
    said = capture_end();
    CHECK(strcmp(said, "--only: no row's name contains \"sst fintune\"\n") == 0);
}

/* The files would be in the root. */
TEST(folder_without_a_name) {
    char *args[] = {(char *)"table", (char *)"--model", (char *)"m.pt", (char *)"--out", (char *)""};
    capture_begin();
    CHECK(table_main(5, args) == 2);
    said = capture_end();
    CHECK(strcmp(said, "error: --out: the folder's name is empty\n") == 0);
}

/* 10 ways of prompting, once; 8 rows that learn, with two seeds: 26 runs. One that is killed or fails is run again,
   and no other is. */
TEST(goes_on) {
    write_number("kill", 4);
    write_number("fail", 13);
    CHECK(run_table("1e-3") == 1);
    CHECK(lines_with("calls", "--option") == 4);
    CHECK(strstr(said, "stopped; the same command continues from here"));
    CHECK(run_table("1e-3") == 1);
    CHECK(strstr(said, "error: run_llama: there is no film (its log: "));
    CHECK(lines_with("calls", "--option") == 4 + 9);
    CHECK(run_table("1e-3") == 0);
    CHECK(lines_with("calls", "--option") == 26 + 2);
    CHECK(run_table("1e-3") == 0);
    CHECK(lines_with("calls", "--option") == 26 + 2);
    CHECK(lines_with("calls", "--option prompt") == 10 + 1);
    CHECK(lines_with("calls", "--batch_size 80") ==
          8 + 1); /* sst's learning rows; the 13th call is one of them */
}

/* 0.3 and 0.5: mean 0.4, deviation 0.1. */
TEST(means) {
    CHECK(lines_with("a/b/table.md", "| 0.400 (0.100) | 0.250 | 0.400 (0.100) |") == 4); /* sst, learning */
    CHECK(lines_with("a/b/table.md", "| 0.400 (0.100) | 0.250 | | ") ==
          4); /* cfimdb: its test labels say nothing */
    CHECK(lines_with("a/b/table.md", "| 1 | 0.300 | 0.250 |") == 10); /* prompting */
    CHECK(lines_with("a/b/table.md", "| 0.411 (0.025) | 0.399 (0.023) |") == 1);
    CHECK(lines_with("a/b/table.md", " .") == 0 && lines_with("a/b/table.md", "(.") == 0);
}

/* A panel for each data set, with four lines and chance; the epochs are whole. */
TEST(picture) {
    CHECK(lines_with("a/b/accuracy.svg", "<polyline") == 2 * (4 + 1));
    CHECK(lines_with("a/b/accuracy.svg", ">SST-5: five classes<") == 1);
    CHECK(lines_with("a/b/accuracy.svg", ">CFIMDB: two classes<") == 1);
    CHECK(lines_with("a/b/accuracy.svg", ">finetune, llama<") == 1);
    CHECK(lines_with("a/b/accuracy.svg", ">chance<") == 1);
    CHECK(lines_with("a/b/accuracy.svg", ">epoch<") == 2);
    CHECK(lines_with("a/b/accuracy.svg", ">1<") == 2 && lines_with("a/b/accuracy.svg", ">2<") == 2);
    CHECK(lines_with("a/b/accuracy.svg", ">1.") == 0 && lines_with("a/b/accuracy.svg", ">0.6<") == 0);
    CHECK(lines_with("a/b/accuracy.svg", "</svg>") == 1);
    CHECK(lines_with("a/b/accuracy.svg", "nan") == 0);
}

/* Logs of another learning rate are no answer; how one prompts does not depend on it. */
TEST(other_flags) {
    int before = lines_with("calls", "--option");
    CHECK(run_table("2e-3") == 0);
    CHECK(lines_with("calls", "--option") == before + 16);
}

static void forget_calls(void) {
    write_number("kill", 0);
    write_number("fail", 0);
    remove(in_folder("calls"));
}

/* Mode reference learns at the assignment's rate, and mode llama as run_llama does by itself. */
TEST(learning_rates) {
    forget_calls();
    CHECK(run_table(NULL) == 0);
    CHECK(lines_with("calls", "--option") == 16);
    CHECK(lines_with("calls", "--mode reference") == 8 && lines_with("calls", " --lr 2e-5 ") == 8);
    CHECK(lines_with("calls", "--mode llama") == 8 && lines_with("calls", "--lr") == 8);
}

/* Where there are real labels, cfimdb's rows run again, and their accuracies are those on test. */
TEST(real_labels) {
    CHECK(make_folder(in_folder("d")));
    write_number("d/cfimdb-test-gold.txt", 1);
    forget_calls();
    CHECK(run_table(NULL) == 0);
    CHECK(lines_with("calls", "/d/cfimdb-test-gold.txt") == 5 + 8 && lines_with("calls", "--option") == 13);
    CHECK(lines_with("a/b/table.md", "| 0.400 (0.100) | 0.250 | 0.700 (0.000) |") == 4);
    CHECK(lines_with("a/b/table.md", "| 1 | 0.300 | 0.250 | 0.700 |") == 5);
}

/* Logs of what a file held before are no answer. */
TEST(other_files) {
    int before = lines_with("calls", "--option");
    write_number("d/sst-dev.txt", 1);
    CHECK(run_table(NULL) == 0 && lines_with("calls", "--option") == before + 5 + 8);
    CHECK(run_table(NULL) == 0 && lines_with("calls", "--option") == before + 5 + 8);
    write_number("d/sst-dev.txt", 2);
    CHECK(run_table(NULL) == 0 && lines_with("calls", "--option") == before + 2 * (5 + 8));
}

/* A table that cannot be written is noticed before any run. */
TEST(outputs_are_tried_first) {
    int before = lines_with("calls", "--option");
    CHECK(remove(in_folder("a/b/table.md")) == 0 && make_folder(in_folder("a/b/table.md")));
    CHECK(run_table("3e-3") == 1);
    CHECK(strstr(said, "table.md cannot be written: Is a directory") != NULL);
    CHECK(lines_with("calls", "--option") == before);
}

int main(void) {
    if (!folder_begin("table")) return 1;
    write_script();
    RUN(nothing_wanted);
    RUN(folder_without_a_name);
    RUN(goes_on);
    RUN(means);
    RUN(picture);
    RUN(other_flags);
    RUN(learning_rates);
    RUN(real_labels);
    RUN(other_files);
    RUN(outputs_are_tried_first);
    return !folder_end() || test_report("test_table");
}
