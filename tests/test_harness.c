/* What runs the tests: a program that is stopped leaves no folder; what is printed in between is captured; sum.sh
   adds up, says once why tests were skipped, and leaves nothing behind. */
#include "preamble.h"
#include "folder.h"

/* ---- temporary folders ---- */

/* Makes a folder of its own with a file in it, and ends: by this signal, or with 0 by exit. */
static void be_child(int signal_number) {
    if (!folder_begin("child")) _exit(9);
    write_file(in_folder("file"), "x", 1);
    if (signal_number) raise(signal_number);
    exit(8);
}

static int ended_so(int status, int signal_number) {
    return signal_number ? WIFSIGNALED(status) && WTERMSIG(status) == signal_number
                         : WIFEXITED(status) && WEXITSTATUS(status) == 8;
}

TEST(nothing_is_left) {
    static const int ways[] = {SIGINT, SIGTERM, SIGHUP, 0};
    const char *name = strrchr(folder, '/');
    char left[700];
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        int status = 0;
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) be_child(ways[i]);
        REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(ended_so(status, ways[i]));
        snprintf(left, sizeof left, "%.*s/minillama-child-%ld", (int)(name - folder), folder, (long)child);
        CHECK(!exists(left));
    }
}

/* A test may fork: the end of the child is not the end of the test. */
TEST(a_child_removes_nothing) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) exit(8);
    REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(ended_so(status, 0) && exists(folder));
}

TEST(captured) {
    capture_begin();
    printf("to one, ");
    fflush(stdout);
    fprintf(stderr, "to the other");
    CHECK(strcmp(capture_end(), "to one, to the other") == 0);
    capture_begin();
    CHECK(*capture_end() == 0);
}

/* ---- sum.sh ---- */

static const char *program(const char *name, const char *script) {
    FILE *file = fopen(in_folder(name), "w");
    CHECK(file && fprintf(file, "#!/bin/sh\n%s\n", script) > 0 && fclose(file) == 0);
    CHECK(chmod(in_folder(name), 0755) == 0);
    return in_folder(name);
}

/* Runs sum.sh on the two programs; what it says. */
static const char *sum_of(const char *a, const char *b, int *status) {
    char command[2048];
    CHECK(make_folder(in_folder("tmp")));
    snprintf(command, sizeof command, "TMPDIR='%s' RUNNER= sh tests/sum.sh '%s' '%s' 2>&1", in_folder("tmp"),
             a, b);
    capture_begin();
    *status = system(command);
    const char *said = capture_end();
    CHECK(rmdir(in_folder("tmp")) == 0); /* nothing was left there */
    return said;
}

TEST(sum) {
    int status;
    const char *said =
        sum_of(program("a", "echo x >\"$TMPDIR\"/left\n"
                            "echo 'skipped: no film (2)'\necho 'a: 3 passed, 0 failed, 2 skipped'"),
               program("b", "echo 'skipped: no film (1)'\necho 'skipped: no text (1)'\n"
                            "echo 'b: 4 passed, 0 failed, 2 skipped'"),
               &status);
    CHECK(status == 0 && strstr(said, "a: 3 passed, 0 failed, 2 skipped\n"));
    CHECK(strstr(said, "skipped: no film (3 tests)\n") && strstr(said, "skipped: no text (1 test)\n"));
    CHECK(!strstr(said, "(2)") && !strstr(said, "(1)"));
    const char *end = "\n7 passed, 0 failed, 4 skipped\n";
    CHECK(strlen(said) > strlen(end) && strcmp(said + strlen(said) - strlen(end), end) == 0);
}

/* One that fails says so itself; one that ends without a word is a failure, and what it had captured is shown. */
TEST(sum_of_failures) {
    int status;
    const char *said = sum_of(
        program("a", "echo 'FAILED x (1 checks)'\necho 'a: 3 passed, 1 failed, 0 skipped'\nexit 1"),
        program("b", "mkdir \"$TMPDIR/f\"\necho 'the report' >\"$TMPDIR/f/captured\"\nexit 7"), &status);
    CHECK(status != 0 && strstr(said, "FAILED x (1 checks)\n") && strstr(said, "the report\n"));
    CHECK(strstr(said, "/b: exit status 7\n") && strstr(said, "\n3 passed, 2 failed, 0 skipped\n"));
}

int main(void) {
    if (!folder_begin("harness")) return 1;
    RUN(nothing_is_left);
    RUN(a_child_removes_nothing);
    RUN(captured);
    RUN(sum);
    RUN(sum_of_failures);
    return !folder_end() || test_report("test_harness");
}
