/* What is asked of the operating system: time, memory, files and folders, the terminal, another program. All that the
   examples and tools do differently on Windows is here. Paths and arguments are UTF-8 on every system. (The programs of
   one file, as examples/generate.c, are plain C and do without: on Windows their names are in the code page.) */
#ifndef SYSTEM_H
#define SYSTEM_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <direct.h>
#include <fcntl.h>
#include <io.h>
#include <process.h>
#include <windows.h>
#include <psapi.h>    /* after windows.h */
#include <shellapi.h> /* the same */
#ifdef _MSC_VER
#pragma comment(lib, "shell32")
#endif
#undef near /* which are words of ours */
#undef far
#undef IN
#undef OUT
#else
#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

/* What is known of a path. */
typedef struct system_file {
    int is_regular, is_folder; /* a device or pipe is neither */
    uint64_t device, number;   /* the same for two names of one file */
    int64_t bytes;
    double idle; /* seconds since something was written to it */
} system_file;

/* How a program ended that system_run started. */
typedef struct system_end {
    int status;     /* its exit status; -1: it could not be started; -2: a signal ended it */
    double peak_mb; /* the most memory that it had; 0: not known */
} system_end;

#ifdef _WIN32

enum { SYSTEM_PATH = 1024 };

/* UTF-8 as wide characters; what is not UTF-8 is taken as the code page's. Too long a path is "", which no file is. */
static inline wchar_t *system_wide(const char *text, wchar_t wide[SYSTEM_PATH]) {
    if (!MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, wide, SYSTEM_PATH) &&
        !MultiByteToWideChar(CP_ACP, 0, text, -1, wide, SYSTEM_PATH))
        wide[0] = 0;
    return wide;
}

/* The arguments of main in UTF-8; they stay in use. What is printed from now on is UTF-8, too. */
static inline char **system_arguments(int argc, char **argv) {
    int n = 0;
    wchar_t **wide = CommandLineToArgvW(GetCommandLineW(), &n);
    char **utf8 = (char **)calloc((size_t)argc + 1, sizeof *utf8);
    SetConsoleCP(CP_UTF8);
    SetConsoleOutputCP(CP_UTF8);
    for (int i = 0; wide && utf8 && n == argc && i < n; i++) {
        int size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
        utf8[i] = (char *)malloc((size_t)size + 1);
        if (!utf8[i]) return argv;
        WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, utf8[i], size, NULL, NULL);
    }
    LocalFree(wide);
    return utf8 && n == argc ? utf8 : argv;
}

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

static inline int system_is_terminal(FILE *file) { return _isatty(_fileno(file)); }

/* Calls it when Ctrl-C is pressed, which then ends a wait for input, too. */
static inline void system_on_interrupt(void (*handler)(int), int ends_wait) {
    (void)ends_wait;
    signal(SIGINT, handler); /* once: Windows forgets it then */
}

static inline FILE *system_open(const char *path, const char *mode) {
    wchar_t wide[SYSTEM_PATH], wide_mode[SYSTEM_PATH];
    return _wfopen(system_wide(path, wide), system_wide(mode, wide_mode));
}

/* 0 when there is nothing of this name. */
static inline int system_look(const char *path, system_file *about) {
    wchar_t wide[SYSTEM_PATH];
    BY_HANDLE_FILE_INFORMATION found;
    const DWORD shared = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    HANDLE file = CreateFileW(system_wide(path, wide), 0, shared, NULL, OPEN_EXISTING,
                              FILE_FLAG_BACKUP_SEMANTICS, NULL);
    memset(about, 0, sizeof *about);
    if (file == INVALID_HANDLE_VALUE) return errno = ENOENT, 0;
    if (GetFileType(file) == FILE_TYPE_DISK && GetFileInformationByHandle(file, &found)) {
        about->is_folder = (found.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0;
        about->is_regular = !about->is_folder;
        about->device = found.dwVolumeSerialNumber;
        about->number = (uint64_t)found.nFileIndexHigh << 32 | found.nFileIndexLow;
        about->bytes = (int64_t)found.nFileSizeHigh << 32 | found.nFileSizeLow;
        /* which are in units of 100 ns, from 1601 on */
        uint64_t written =
            (uint64_t)found.ftLastWriteTime.dwHighDateTime << 32 | found.ftLastWriteTime.dwLowDateTime;
        about->idle = (double)time(NULL) + 11644473600.0 - (double)written * 1e-7;
    }
    CloseHandle(file);
    return 1;
}

static inline int system_may(const char *path, int mode) {
    wchar_t wide[SYSTEM_PATH];
    return _waccess(system_wide(path, wide), mode) == 0;
}
static inline int system_may_read(const char *path) { return system_may(path, 4); }
static inline int system_may_write(const char *path) { return system_may(path, 2); }

static inline int system_make_folder(const char *path) {
    wchar_t wide[SYSTEM_PATH];
    return _wmkdir(system_wide(path, wide));
}

static inline int system_remove(const char *path) {
    wchar_t wide[SYSTEM_PATH];
    return _wremove(system_wide(path, wide));
}

/* A new file, to be written; NULL with EEXIST if there is one. It gets the permissions of `old`. */
static inline FILE *system_create(const char *path, const char *old) {
    wchar_t wide[SYSTEM_PATH];
    int file = _wopen(system_wide(path, wide), _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY, 0600);
    (void)old;
    return file < 0 ? NULL : _fdopen(file, "wb");
}

/* The path; 0 if it is too long. (Of a link, the link is replaced.) */
static inline int system_follow(const char *path, char followed[4096]) {
    size_t n = strlen(path);
    if (n >= 4096) return errno = ENAMETOOLONG, 0;
    memcpy(followed, path, n + 1);
    return 1;
}

static inline int system_sync(FILE *file) { return _commit(_fileno(file)); }

/* Replaces the file, or leaves it as it is. */
static inline int system_rename(const char *from, const char *to) {
    wchar_t wide_from[SYSTEM_PATH], wide_to[SYSTEM_PATH];
    if (MoveFileExW(system_wide(from, wide_from), system_wide(to, wide_to), MOVEFILE_REPLACE_EXISTING))
        return 0;
    return errno = EACCES, -1;
}

/* Calls it with the name of each file in a folder, until it returns 0; returns whether it never did. */
static inline int system_list(const char *path, int (*each)(void *user, const char *name), void *user) {
    char text[4 * MAX_PATH];
    wchar_t wide[SYSTEM_PATH];
    WIN32_FIND_DATAW found;
    if ((size_t)snprintf(text, sizeof text, "%s/*", path) >= sizeof text) return 1;
    HANDLE list = FindFirstFileW(system_wide(text, wide), &found);
    int more = list != INVALID_HANDLE_VALUE, goes_on = 1;
    while (more && goes_on) {
        if (WideCharToMultiByte(CP_UTF8, 0, found.cFileName, -1, text, sizeof text, NULL, NULL))
            goes_on = each(user, text);
        more = FindNextFileW(list, &found) != 0;
    }
    if (list != INVALID_HANDLE_VALUE) FindClose(list);
    return goes_on;
}

/* Runs a program with its output in a log, and waits for its end. Arguments with spaces are put in quotes. */
static inline system_end system_run(char *const *args, FILE *log) {
    static wchar_t quoted[64][SYSTEM_PATH], program[SYSTEM_PATH];
    char text[SYSTEM_PATH];
    const wchar_t *passed[65] = {NULL};
    system_end end = {-1, 0};
    int out = _dup(1), err = _dup(2);
    for (int i = 0; i < 64 && args[i]; i++) {
        snprintf(text, sizeof text, "\"%s\"", args[i]);
        passed[i] = system_wide(text, quoted[i]);
    }
    fflush(stdout), fflush(stderr);
    _dup2(_fileno(log), 1), _dup2(_fileno(log), 2);
    end.status = (int)_wspawnv(_P_WAIT, system_wide(args[0], program), passed);
    _dup2(out, 1), _dup2(err, 2);
    _close(out), _close(err);
    return end;
}

#else

/* The arguments of main in UTF-8; they stay in use. */
static inline char **system_arguments(int argc, char **argv) { return (void)argc, argv; }

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

static inline int system_is_terminal(FILE *file) { return isatty(fileno(file)); }

/* Calls it when Ctrl-C is pressed, which ends a wait for input, or no call: with SA_RESTART, those are begun again. */
static inline void system_on_interrupt(void (*handler)(int), int ends_wait) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = ends_wait ? 0 : SA_RESTART;
    sigaction(SIGINT, &action, NULL);
}

static inline FILE *system_open(const char *path, const char *mode) { return fopen(path, mode); }

/* 0 when there is nothing of this name. */
static inline int system_look(const char *path, system_file *about) {
    struct stat found;
    memset(about, 0, sizeof *about);
    if (stat(path, &found) != 0) return 0;
    about->is_regular = S_ISREG(found.st_mode) != 0;
    about->is_folder = S_ISDIR(found.st_mode) != 0;
    about->device = (uint64_t)found.st_dev;
    about->number = (uint64_t)found.st_ino;
    about->bytes = (int64_t)found.st_size;
    about->idle = difftime(time(NULL), found.st_mtime);
    return 1;
}

static inline int system_may_read(const char *path) { return access(path, R_OK) == 0; }
static inline int system_may_write(const char *path) { return access(path, W_OK) == 0; }
static inline int system_make_folder(const char *path) { return mkdir(path, 0777); }
static inline int system_remove(const char *path) { return remove(path); }
/* A new file, to be written; NULL with EEXIST if there is one. It gets the permissions of `old`. */
static inline FILE *system_create(const char *path, const char *old) {
    struct stat was, is;
    int is_there = stat(old, &was) == 0;
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL, is_there ? 0600 : 0666);
    if (file < 0) return NULL;
    if (is_there && fstat(file, &is) == 0) {
        int is_same = was.st_uid == is.st_uid && was.st_gid == is.st_gid;
        int is_kept =
            is_same || fchown(file, was.st_uid, was.st_gid) == 0 || fchown(file, is.st_uid, was.st_gid) == 0;
        /* another group may only do what everyone may */
        fchmod(file, was.st_mode & (is_kept ? 0777 : 0707 | (was.st_mode & 7) << 3));
    }
    return fdopen(file, "wb");
}

/* The path, or what it leads to as a link; 0 if that is too long. */
static inline int system_follow(const char *path, char followed[4096]) {
    char *real = realpath(path, NULL);
    const char *to = real ? real : path;
    size_t n = strlen(to);
    if (n < 4096) memcpy(followed, to, n + 1);
    free(real);
    if (n >= 4096) errno = ENAMETOOLONG;
    return n < 4096;
}

static inline int system_sync(FILE *file) { return fsync(fileno(file)); }
static inline int system_rename(const char *from, const char *to) { return rename(from, to); }

/* Calls it with the name of each file in a folder, until it returns 0; returns whether it never did. */
static inline int system_list(const char *path, int (*each)(void *user, const char *name), void *user) {
    struct dirent *item;
    DIR *items = opendir(path);
    int goes_on = 1;
    while (items && goes_on && (item = readdir(items)) != NULL) goes_on = each(user, item->d_name);
    if (items) closedir(items);
    return goes_on;
}

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
