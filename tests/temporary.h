/* A temporary folder for one test program, and what a call in it prints.

   The folder is removed at the end, and by a signal that ends the program. After a crash it stays, to be looked at,
   except that tests/sum.sh removes what its programs leave. */
#ifndef TEMPORARY_H
#define TEMPORARY_H

#include "preamble.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

static char folder[512];   /* empty: there is none */
static pid_t folder_owner; /* a child of the program removes nothing */

/* Removes it with everything in it; 0 when that fails. A signal handler may call this. */
static inline int folder_end(void) {
    int status = 1;
    if (!*folder || folder_owner != getpid()) return 1;
    pid_t child = fork();
    if (child == 0) {
        execlp("rm", "rm", "-r", "--", folder, (char *)NULL);
        _exit(127);
    }
    *folder = 0;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

static inline void folder_at_exit(void) { folder_end(); }

static inline void folder_on_signal(int number) {
    folder_end();
    signal(number, SIG_DFL);
    raise(number);
}

/* Makes it in $TMPDIR or /tmp; 0 when that fails. */
static inline int folder_begin(const char *name) {
    static const int ending[] = {SIGINT, SIGTERM, SIGHUP};
    const char *root = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/minillama-%s-%ld", root && *root ? root : "/tmp", name,
             (long)getpid());
    if (mkdir(folder, 0777) != 0) return printf("%s cannot be made\n", folder), *folder = 0;
    folder_owner = getpid();
    atexit(folder_at_exit);
    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++)
        if (signal(ending[i], folder_on_signal) == SIG_IGN) signal(ending[i], SIG_IGN);
    return 1;
}

static inline const char *in_folder(const char *name) {
    static char paths[16][700];
    static int turn;
    turn = (turn + 1) % 16;
    snprintf(paths[turn], sizeof paths[0], "%s/%s", folder, name);
    return paths[turn];
}

/* What is printed between these two, to standard output and standard error, is not shown but returned: for calls that
   are to complain. CHECK between them would not be seen. It waits in the file "captured", which tests/sum.sh shows
   when the program crashes. */
static int capture_shown[2];

static inline void capture_begin(void) {
    int file = open(in_folder("captured"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        capture_shown[i] = dup(i + 1);
        dup2(file, i + 1);
    }
    close(file);
}

static inline const char *capture_end(void) {
    static char text[1 << 16];
    fflush(stdout);
    for (int i = 0; i < 2; i++) {
        dup2(capture_shown[i], i + 1);
        close(capture_shown[i]);
    }
    FILE *file = fopen(in_folder("captured"), "rb");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[n] = 0;
    if (file) fclose(file);
    remove(in_folder("captured"));
    return text;
}

#endif
