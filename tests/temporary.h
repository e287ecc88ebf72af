/* A temporary folder for one test program, and what a call in it prints.

   The folder is removed at the end, and by a signal that ends the program. After a crash it stays, to be looked at,
   except that tests/sum.sh removes what its programs leave. */
#ifndef TEMPORARY_H
#define TEMPORARY_H

#include "preamble.h"
#include <fcntl.h>
#include <signal.h>

static char folder[512];  /* empty: there is none */
static long folder_owner; /* a child of the program removes nothing */

#ifdef _WIN32
#include <direct.h>
#include <io.h>

enum { WITHOUT_SH = 1 };

static inline int make_folder(const char *path) { return _mkdir(path) == 0; }

static inline int folder_end(void) {
    char command[600];
    if (!*folder) return 1;
    snprintf(command, sizeof command, "rmdir /s /q \"%s\"", folder);
    *folder = 0;
    return system(command) == 0;
}

/* There are none, and no device that is full, which is what tests need them for. */
static inline int symlink(const char *to, const char *from) { return (void)to, (void)from, -1; }
#else
#include <sys/wait.h>

enum { WITHOUT_SH = 0 };

static inline int make_folder(const char *path) { return mkdir(path, 0777) == 0; }

/* Removes it with everything in it; 0 when that fails. A signal handler may call this. */
static inline int folder_end(void) {
    int status = 1;
    if (!*folder || folder_owner != (long)getpid()) return 1;
    pid_t child = fork();
    if (child == 0) {
        execlp("rm", "rm", "-r", "--", folder, (char *)NULL);
        _exit(127);
    }
    *folder = 0;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}
#endif

static inline void folder_at_exit(void) { folder_end(); }

static inline void folder_on_signal(int number) {
    folder_end();
    signal(number, SIG_DFL);
    raise(number);
}

/* Makes it in $TMPDIR, or $TEMP, or /tmp; 0 when that fails. */
static inline int folder_begin(const char *name) {
    static const int ending[] = {
#ifdef SIGHUP
        SIGHUP,
#endif
        SIGINT, SIGTERM};
    const char *root = getenv("TMPDIR");
    if (!root || !*root) root = getenv("TEMP");
    if (!root || !*root) root = "/tmp";
    snprintf(folder, sizeof folder, "%s/minillama-%s-%ld", root, name, (long)getpid());
    if (!make_folder(folder)) return printf("%s cannot be made\n", folder), *folder = 0;
    folder_owner = (long)getpid();
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
    FILE *file = fopen(in_folder("captured"), "r"); /* Windows ends lines with CR LF */
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[n] = 0;
    if (file) fclose(file);
    remove(in_folder("captured"));
    return text;
}

#endif
