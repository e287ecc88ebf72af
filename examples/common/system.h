/* What is asked of the operating system: time, memory, files and folders, another program. All that the examples and
   tools do differently on Windows is here. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <direct.h>
#include <io.h>
#include <process.h>
#include <windows.h>
#include <psapi.h> /* after windows.h */
#undef near        /* which are words of ours */
#undef far
#else
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#endif
#include <unistd.h>

/* How a program ended that system_run started. */
typedef struct system_end {
    int status;     /* its exit status; -1: it could not be started; -2: a signal ended it */
    double peak_mb; /* the most memory that it had; 0: not known */
} system_end;

#ifdef _WIN32

enum { FILES_HAVE_NUMBERS = 0 }; /* by which two names of one file are recognized */
#define lstat stat               /* there are no links */

static inline double system_seconds(void) {
    LARGE_INTEGER ticks, per_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&per_second);
    return (double)ticks.QuadPart / (double)per_second.QuadPart;
}

static inline double system_peak_mb(void) {
    PROCESS_MEMORY_COUNTERS counters;
    if (!K32GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters)) return 0;
    return (double)counters.PeakWorkingSetSize / 1e6;
}

static inline int system_make_folder(const char *path) { return _mkdir(path); }
static inline int system_sync(FILE *file) { return _commit(_fileno(file)); }

/* Replaces the file, or leaves it as it is. */
static inline int system_rename(const char *from, const char *to) {
    if (MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING)) return 0;
    return errno = EACCES, -1;
}

/* Runs a program with its output in a log, and waits for its end. Arguments with spaces are put in quotes. */
static inline system_end system_run(char *const *args, FILE *log) {
    static char quoted[64][1024];
    const char *passed[65] = {NULL};
    system_end end = {-1, 0};
    int out = _dup(1), err = _dup(2);
    for (int i = 0; i < 64 && args[i]; i++) {
        snprintf(quoted[i], sizeof quoted[i], "\"%s\"", args[i]);
        passed[i] = quoted[i];
    }
    fflush(stdout), fflush(stderr);
    _dup2(_fileno(log), 1), _dup2(_fileno(log), 2);
    end.status = (int)_spawnv(_P_WAIT, args[0], passed);
    _dup2(out, 1), _dup2(err, 2);
    _close(out), _close(err);
    return end;
}

#else

enum { FILES_HAVE_NUMBERS = 1 };

static inline double system_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline double system_usage_mb(const struct rusage *usage) {
#ifdef __APPLE__
    return (double)usage->ru_maxrss / 1e6; /* bytes */
#else
    return (double)usage->ru_maxrss * 1024 / 1e6; /* KiB */
#endif
}

/* The most memory that this process had. */
static inline double system_peak_mb(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? system_usage_mb(&usage) : 0;
}

static inline int system_make_folder(const char *path) { return mkdir(path, 0777); }
static inline int system_sync(FILE *file) { return fsync(fileno(file)); }
static inline int system_rename(const char *from, const char *to) { return rename(from, to); }

/* Runs a program with its output in a log, and waits for its end. */
static inline system_end system_run(char *const *args, FILE *log) {
    system_end end = {-1, 0};
    struct rusage used;
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        dup2(fileno(log), 1);
        dup2(fileno(log), 2);
        execv(args[0], args);
        perror(args[0]);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &used) != child) return end;
    end.peak_mb = system_usage_mb(&used);
    end.status = WIFSIGNALED(status) ? -2 : WEXITSTATUS(status);
    return end;
}

#endif
#endif
