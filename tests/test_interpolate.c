/* examples/advanced/interpolate.c: the weights between, and what a run measures, writes and keeps. */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#define main interpolate_main
#include "../examples/advanced/interpolate.c"
#undef main

/* The ends are exact; the classifier is always the trained one. */
TEST(weights_are_between_the_ends) {
    float before[3] = {0.1f, -3, 1e-3f}, after[5] = {0.7f, 1e6f, -1, 5, 6}, mixed[5];
    interpolation s;
    memset(&s, 0, sizeof s);
    s.before = before, s.after = after, s.n_model = 3;
    for (int tenths = 0; tenths <= 10; tenths++) {
        double a = tenths / 10.0;
        mix(&s, 5, tenths, mixed);
        for (int i = 0; i < 3; i++)
            CHECK_NEAR(mixed[i], (1 - a) * (double)before[i] + a * (double)after[i], 0, 1e-6);
        if (tenths == 0) CHECK(memcmp(mixed, before, sizeof before) == 0);
        if (tenths == 10) CHECK(memcmp(mixed, after, sizeof before) == 0);
        CHECK(mixed[3] == 5 && mixed[4] == 6);
    }
}

/* What a fine-tuning of the tiny model gives at both ends, measured by other means. */
TEST(the_ends_of_a_run_are_the_model_and_the_result) {
    interpolation s;
    tuning_settings set = settings();
    memset(&s, 0, sizeof s);
    tuning_method method = method_of(&s);
    tuning t;
    set.epochs = 20;
    REQUIRE(tuning_open(&t, &set, &method));
    size_t n = (size_t)tuning_count(&t);
    float *w = (float *)malloc(3 * n * sizeof *w), *trained = w + n, *kept = w + 2 * n;
    tuning_copy(&t, w);
    capture_begin();
    REQUIRE(tuning_train(&t));
    tuning_copy(&t, trained);
    t.result.seconds = -1000, t.result.cpu_seconds = -1000;
    REQUIRE(interpolate(&t));
    capture_end();
    tuning_copy(
        &t, kept); /* 1 is the best on three sentences that are learned by heart, and the last of several */
    CHECK(memcmp(kept, trained, n * sizeof *w) == 0);
    /* the mixtures' time is the run's, too */
    CHECK(t.result.seconds > -1000 && t.result.cpu_seconds > -1000);
    CHECK(s.at[TENTHS].dev == t.result.dev && s.at[TENTHS].test == t.result.test && t.result.dev == 1);
    memcpy(trained, w, s.n_model * sizeof *w); /* the model before, with the trained classifier */
    tuning_paste(&t, trained);
    CHECK(s.at[0].dev == tuning_measure(&t, &t.dev, NULL));
    CHECK(memcmp(s.before, w, s.n_model * sizeof *w) == 0 && s.n_model == n - 51);
    free(w);
    tuning_close(&t);
    interpolation_free(&s);
}

/* ---- whole runs ---- */

static int count_lines(const char *path, char last[4096]) {
    FILE *file = fopen(path, "r");
    int n = 0;
    while (file && fgets(last, 4096, file)) n++;
    if (file) fclose(file);
    return n;
}

/* A row for each a, a picture, and one row of the CSV file. */
TEST(a_run_writes_its_curve) {
    char flags[2048], curve[600], picture[600], csv[600], last[4096];
    int status;
    snprintf(curve, sizeof curve, "%s", in_folder("curve.csv"));
    snprintf(picture, sizeof picture, "%s", in_folder("curve.svg"));
    snprintf(csv, sizeof csv, "%s", in_folder("runs.csv"));
    snprintf(flags, sizeof flags, "--epochs 20 --lr 1e-2 --curve %s --picture %s --csv %s", curve, picture,
             csv);
    const char *said = run_program(interpolate_main, flags, &status);
    CHECK(status == 0);
    CHECK(strstr(said, "interpolate wise-ft: dev 1.000, test 1.000") && strstr(said, "kept: a = 1.0"));
    CHECK(count_lines(curve, last) == 12 && strcmp(last, "1.0,1.0000,1.0000,\n") == 0);
    CHECK(count_lines(csv, last) == 2 && strncmp(last, "interpolate,wise-ft,", 20) == 0);
    CHECK(count_lines(picture, last) > 10 && strcmp(last, "</svg>\n") == 0);
}

/* The file of a run before is replaced, not written over: who reads it goes on reading it. */
TEST(a_curve_is_replaced) {
    char flags[4096], curve[600], line[100] = "";
    int status;
#ifdef _WIN32
    SKIP("what is open is not replaced here");
#endif
    snprintf(curve, sizeof curve, "%s", in_folder("old.csv"));
    write_file(curve, "old\n", 4);
    FILE *old = fopen(curve, "r");
    REQUIRE(old != NULL);
    snprintf(flags, sizeof flags, "--epochs 1 --curve %s", curve);
    run_program(interpolate_main, flags, &status);
    CHECK(status == 0 && fgets(line, sizeof line, old) && strcmp(line, "old\n") == 0);
    fclose(old);
    CHECK(count_lines(curve, flags) == 12);
}

/* What cannot be written is known after all: the result is there, the other file, too, and the status says it. */
TEST(a_full_disk) {
    char flags[700], picture[600], last[4096];
    int status;
    FILE *full = fopen("/dev/full", "w");
    if (full) fclose(full);
    if (!full || WITHOUT_SH) SKIP("no /dev/full"); /* Windows, and wine has it */
    snprintf(picture, sizeof picture, "%s", in_folder("kept.svg"));
    snprintf(flags, sizeof flags, "--epochs 1 --curve /dev/full --picture %s", picture);
    const char *said = run_program(interpolate_main, flags, &status);
    CHECK(status == 1 && strstr(said, "interpolate wise-ft: dev ") &&
          strstr(said, "/dev/full cannot be written"));
    CHECK(count_lines(picture, last) > 10 && strcmp(last, "</svg>\n") == 0);
}

/* Neither curve nor picture replaces what is read. */
TEST(what_is_read_is_spared) {
    static const char *const options[] = {"--curve", "--picture"}, *const read[] = {"--model", "--train"};
    for (int i = 0; i < 4; i++) {
        char flags[700], reason[700];
        int status;
        const char *path = paths[i / 2];
        bytes before = read_file(path);
        snprintf(flags, sizeof flags, "%s %s", options[i % 2], path);
        snprintf(reason, sizeof reason, "%s is also read (%s)", path, read[i / 2]);
        const char *said = run_program(interpolate_main, flags, &status);
        CHECK(status == 1 && strstr(said, reason) && !strstr(said, "epoch"));
        bytes after = read_file(path);
        CHECK(after.size == before.size && memcmp(after.data, before.data, before.size) == 0);
        free_bytes(&before), free_bytes(&after);
    }
}

/* Before anything is trained. */
TEST(wrong_files_are_refused) {
    static const wrong_flags wrong[] = {
        {"--curve missing/curve.csv", "missing/curve.csv"},
        {"--picture missing/curve.svg", "missing/curve.svg"},
        {"--curve both --picture both", "--curve and --picture are the same file, both"},
    };
    check_refusals(interpolate_main, wrong, sizeof wrong / sizeof *wrong);
    int status;
    CHECK(!strstr(run_program(interpolate_main, "--curve missing/curve.csv", &status), "epoch"));
}

int main(void) {
    if (!folder_begin("interpolate")) return 1;
    make_files();
    RUN(weights_are_between_the_ends);
    RUN(the_ends_of_a_run_are_the_model_and_the_result);
    RUN(a_run_writes_its_curve);
    RUN(a_curve_is_replaced);
    RUN(a_full_disk);
    RUN(what_is_read_is_spared);
    RUN(wrong_files_are_refused);
    return test_report("test_interpolate");
}
