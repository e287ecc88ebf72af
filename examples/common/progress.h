/* Time, and progress shown on a terminal. */
#ifndef PROGRESS_H
#define PROGRESS_H

#include <stdio.h>
#include <time.h>
#include "system.h"

/* Seconds from some fixed moment, by a monotonic clock. */
static inline double seconds_now(void) { return system_seconds(); }

/* Seconds that the processors have worked for this program, those of all threads together. */
static inline double cpu_seconds_now(void) { return (double)clock() / CLOCKS_PER_SEC; }

/* Seconds left when `done` of `all` took the time since `began`. */
static inline double seconds_left(double done, double all, double began) {
    return done > 0 ? (seconds_now() - began) / done * (all - done) : 0;
}

#ifndef PROGRESS_PAUSE
#define PROGRESS_PAUSE 10.0 /* seconds between two lines where there is no terminal */
#endif

/* A bar with the remaining time; a line now and then if standard error is not a terminal. */
static inline void progress_bar(const char *what, int done, int all, double began) {
    static double last; /* when a line was printed */
    int left = (int)seconds_left(done, all, began), full = all ? 30 * done / all : 30;
    if (!system_is_terminal(stderr)) {
        double now = seconds_now();
        if (done == all || now - (last > began ? last : began) < PROGRESS_PAUSE) return;
        last = now;
        fprintf(stderr, "%s: %d of %d, %d:%02d left\n", what, done, all, left / 60, left % 60);
        return;
    }
    fprintf(stderr, "\r%-12s [", what);
    for (int i = 0; i < 30; i++) fputc(i < full ? '#' : '.', stderr);
    fprintf(stderr, "] %d/%d, %d:%02d left ", done, all, left / 60, left % 60);
    if (done == all) fprintf(stderr, "\r%78s\r", "");
}

#endif
