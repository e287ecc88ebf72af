/* A test program: #include "preamble.h", write TEST(name) { CHECK(...); } and list them in main with RUN(name);
   end with return test_report("name"). A test that fails says where; the program then exits with 1. */
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_n_passed, test_n_failed, test_n_skipped, test_current_failed;

/* Why tests were skipped, and how many for each reason. */
static struct {
    const char *reason;
    int n;
} test_skipped[16];
static const char *test_current_skipped; /* the reason, or NULL */

#define TEST(name) static void name(void)

/* The condition must hold. Otherwise the test continues, to report more, but counts as failed. */
#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            if (test_current_failed++ < 8) printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);  \
        }                                                                                                    \
    } while (0)

/* As CHECK, but leaves the test: the rest depends on it. */
#define REQUIRE(condition)                                                                                   \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            test_current_failed++;                                                                           \
            printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                 \
            return;                                                                                          \
        }                                                                                                    \
    } while (0)

/* |a - b| <= absolute + relative * |b|; NaN never is. */
#define CHECK_NEAR(a, b, absolute, relative)                                                                 \
    do {                                                                                                     \
        double a_ = (double)(a), b_ = (double)(b);                                                           \
        if (!(fabs(a_ - b_) <= (absolute) + (relative)*fabs(b_))) {                                          \
            if (test_current_failed++ < 8)                                                                   \
                printf("%s:%d: %s = %.9g, not %.9g\n", __FILE__, __LINE__, #a, a_, b_);                      \
        }                                                                                                    \
    } while (0)

/* Leaves the test, which counts as skipped; the reason, a text that stays, is told once, at the end. */
#define SKIP(reason)                                                                                         \
    do {                                                                                                     \
        test_current_skipped = (reason);                                                                     \
        return;                                                                                              \
    } while (0)

#define RUN(name) test_run(#name, name)

static void test_count_skipped(const char *reason) {
    size_t i = 0, last = sizeof test_skipped / sizeof *test_skipped - 1;
    while (i < last && test_skipped[i].n && strcmp(test_skipped[i].reason, reason) != 0) i++;
    test_skipped[i].reason = reason;
    test_skipped[i].n++;
    test_n_skipped++;
}

static void test_run(const char *name, void (*test)(void)) {
    test_current_failed = 0;
    test_current_skipped = NULL;
    test();
    if (test_current_failed) {
        test_n_failed++;
        printf("FAILED %s (%d checks)\n", name, test_current_failed);
    } else if (test_current_skipped) {
        test_count_skipped(test_current_skipped);
    } else {
        test_n_passed++;
    }
}

/* tests/sum.sh reads these lines. */
static int test_report(const char *program) {
    for (size_t i = 0; i < sizeof test_skipped / sizeof *test_skipped && test_skipped[i].n; i++)
        printf("skipped: %s (%d)\n", test_skipped[i].reason, test_skipped[i].n);
    printf("%s: %d passed, %d failed, %d skipped\n", program, test_n_passed, test_n_failed, test_n_skipped);
    return test_n_failed != 0;
}

#endif
