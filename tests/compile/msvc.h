/* What minillama.h, the examples and the tools use of Microsoft's C library and of windows.h, declared as it is there:
   with this in place of the system's headers (tests/windows.sh makes one-line files of their names), clang checks them
   by the rules of that compiler, which is not needed for it. Nothing here is ever linked. */
#ifndef MSVC_H
#define MSVC_H

#include <limits.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct _iobuf FILE;
FILE *_wfopen(const wchar_t *path, const wchar_t *mode);
FILE *fopen(const char *path, const char *mode);
int fclose(FILE *file);
int fflush(FILE *file);
int ferror(FILE *file);
size_t fread(void *memory, size_t size, size_t n, FILE *file);
size_t fwrite(const void *memory, size_t size, size_t n, FILE *file);
int fseek(FILE *file, long offset, int origin);
long ftell(FILE *file);
int _fseeki64(FILE *file, long long offset, int origin);
long long _ftelli64(FILE *file);
void rewind(FILE *file);
int _fileno(FILE *file);
int _commit(int descriptor);
int _wopen(const wchar_t *path, int how, ...);
FILE *_fdopen(int descriptor, const char *mode);
#define _O_WRONLY 1
#define _O_CREAT 0x100
#define _O_EXCL 0x400
#define _O_BINARY 0x8000
struct _wfinddata_t {
    unsigned attributes;
    long long created, accessed, written;
    unsigned size;
    wchar_t name[260];
};
intptr_t _wfindfirst(const wchar_t *pattern, struct _wfinddata_t *entry);
int _wfindnext(intptr_t handle, struct _wfinddata_t *entry);
int _findclose(intptr_t handle);
int remove(const char *path);
int _wremove(const wchar_t *path);
int rename(const char *from, const char *to);
int snprintf(char *to, size_t size, const char *format, ...);
int printf(const char *format, ...);
#define SEEK_SET 0
#define SEEK_END 2
#define EOF (-1)
FILE *__acrt_iob_func(unsigned index);
#define stdin __acrt_iob_func(0)
#define stdout __acrt_iob_func(1)
#define stderr __acrt_iob_func(2)
int getc(FILE *file);
int ungetc(int c, FILE *file);
int putchar(int c);
int fputc(int c, FILE *file);
int puts(const char *text);
int fputs(const char *text, FILE *file);
char *fgets(char *to, int size, FILE *file);
int fgetc(FILE *file);
int feof(FILE *file);
int vprintf(const char *format, va_list list);
int fscanf(FILE *file, const char *format, ...);
int fprintf(FILE *file, const char *format, ...);
int vfprintf(FILE *file, const char *format, va_list list);
int vsnprintf(char *to, size_t size, const char *format, va_list list);
int sscanf(const char *text, const char *format, ...);
void perror(const char *text);

struct _wfinddata64i32_t {
    unsigned attrib;
    long long time_create, time_access, time_write;
    unsigned long size;
    wchar_t name[260];
};
#define _wfinddata_t _wfinddata64i32_t
intptr_t _wfindfirst64i32(const wchar_t *pattern, struct _wfinddata64i32_t *data);
int _wfindnext64i32(intptr_t handle, struct _wfinddata64i32_t *data);
#define _wfindfirst _wfindfirst64i32
#define _wfindnext _wfindnext64i32
int _findclose(intptr_t handle);

void *malloc(size_t size);
void *realloc(void *memory, size_t size);
void *calloc(size_t n, size_t size);
void free(void *memory);
void *_aligned_malloc(size_t size, size_t alignment);
void _aligned_free(void *memory);
void abort(void);
void exit(int status);
int abs(int);
int atoi(const char *text);
long strtol(const char *text, char **end, int base);
long long strtoll(const char *text, char **end, int base);
unsigned long strtoul(const char *text, char **end, int base);
float strtof(const char *text, char **end);
double strtod(const char *text, char **end);
void qsort(void *items, size_t n, size_t size, int (*compare)(const void *, const void *));
void *bsearch(const void *key, const void *items, size_t n, size_t size,
              int (*compare)(const void *, const void *));
#define RAND_MAX 32767

typedef int sig_atomic_t;
void (*signal(int number, void (*handler)(int)))(int);
#define SIGINT 2
#define SIGTERM 15
typedef long long time_t;
typedef long clock_t;
time_t time(time_t *t);
double difftime(time_t end, time_t begin);
clock_t clock(void);
#define CLOCKS_PER_SEC 1000
int isspace(int), isdigit(int), isalpha(int), isalnum(int), isupper(int), islower(int), ispunct(int),
    isprint(int);
int tolower(int), toupper(int);

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
#ifdef __cplusplus
} /* in C++ they have two forms */
inline const void *memchr(const void *in, int byte, size_t n) { return __builtin_memchr(in, byte, n); }
inline void *memchr(void *in, int byte, size_t n) { return __builtin_memchr(in, byte, n); }
inline const char *strchr(const char *s, int c) { return __builtin_strchr(s, c); }
inline char *strchr(char *s, int c) { return __builtin_strchr(s, c); }
inline const char *strrchr(const char *s, int c) { return __builtin_strrchr(s, c); }
inline char *strrchr(char *s, int c) { return __builtin_strrchr(s, c); }
inline const char *strstr(const char *s, const char *text) { return __builtin_strstr(s, text); }
inline char *strstr(char *s, const char *text) { return __builtin_strstr(s, text); }
extern "C" {
#else
void *memchr(const void *in, int byte, size_t n);
char *strchr(const char *s, int c);
char *strrchr(const char *s, int c);
char *strstr(const char *s, const char *text);
#endif
size_t strcspn(const char *s, const char *set);
char *strpbrk(const char *s, const char *set);
size_t strspn(const char *s, const char *set);
char *strcpy(char *to, const char *from);
char *strcat(char *to, const char *from);
char *strtok(char *s, const char *set);
size_t strlen(const char *s);
size_t wcslen(const wchar_t *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strerror(int number);
char *getenv(const char *name);

double cos(double), sin(double), exp(double), log(double), pow(double, double), sqrt(double), fabs(double);
double floor(double), ceil(double), ldexp(double, int), frexp(double, int *), log1p(double), tanh(double);
double log10(double), erf(double), erfc(double), fmax(double, double), fmin(double, double), round(double);
float cosf(float), sinf(float), expf(float), logf(float), powf(float, float), sqrtf(float), fabsf(float);
float floorf(float), ceilf(float), tanhf(float), log1pf(float), erff(float), erfcf(float),
    fmaf(float, float, float);
float rintf(float), roundf(float), fmaxf(float, float), fminf(float, float), ldexpf(float, int);
double fma(double, double, double);
double log2(double), exp2(double), atan(double), fmod(double, double);
double hypot(double, double);
long lround(double), lroundf(float);
float log2f(float), atanf(float);
#define HUGE_VAL ((double)INFINITY)
#define HUGE_VALF INFINITY
#define isnan(x) __builtin_isnan(x)
#define isfinite(x) __builtin_isfinite(x)
#define isinf(x) __builtin_isinf(x)
#define INFINITY ((float)1e308 * 10)
#define NAN (INFINITY * 0.0f)

int *_errno(void);
#define errno (*_errno())
#define ENOENT 2
#define EIO 5
#define ENOMEM 12
#define EACCES 13
#define EBUSY 16
#define EEXIST 17
#define EISDIR 21
#define EINVAL 22
#define ENAMETOOLONG 38
#define ENOSYS 40

#define assert(condition) ((void)(condition))

/* direct.h, io.h, process.h */
int _wmkdir(const wchar_t *path);
int _waccess(const wchar_t *path, int mode);
int _isatty(int descriptor);
int _dup(int descriptor);
int _dup2(int from, int to);
int _close(int descriptor);
intptr_t _wspawnv(int mode, const wchar_t *program, const wchar_t *const *args);
#define _P_WAIT 0

/* windows.h, psapi.h, shellapi.h */
#define WINAPI __stdcall
typedef int BOOL;
typedef unsigned UINT;
typedef unsigned long DWORD;
typedef void *HANDLE;
typedef union LARGE_INTEGER {
    long long QuadPart;
} LARGE_INTEGER;
typedef struct FILETIME {
    DWORD dwLowDateTime, dwHighDateTime;
} FILETIME;
typedef struct BY_HANDLE_FILE_INFORMATION {
    DWORD dwFileAttributes;
    FILETIME created, accessed, ftLastWriteTime;
    DWORD dwVolumeSerialNumber, nFileSizeHigh, nFileSizeLow, links, nFileIndexHigh, nFileIndexLow;
} BY_HANDLE_FILE_INFORMATION;
typedef struct WIN32_FIND_DATAW {
    DWORD attributes;
    FILETIME created, accessed, written;
    DWORD size_high, size_low, reserved_0, reserved_1;
    wchar_t cFileName[260], short_name[14];
} WIN32_FIND_DATAW;
typedef struct PROCESS_MEMORY_COUNTERS {
    DWORD size, faults;
    size_t PeakWorkingSetSize, others[7];
} PROCESS_MEMORY_COUNTERS;
#define CP_ACP 0
#define CP_UTF8 65001
#define MB_ERR_INVALID_CHARS 8
#define MAX_PATH 260
#define FILE_SHARE_READ 1
#define FILE_SHARE_WRITE 2
#define FILE_SHARE_DELETE 4
#define OPEN_EXISTING 3
#define FILE_FLAG_BACKUP_SEMANTICS 0x02000000
#define FILE_TYPE_DISK 1
#define FILE_ATTRIBUTE_DIRECTORY 16
#define INVALID_FILE_ATTRIBUTES ((DWORD)-1)
#define INVALID_HANDLE_VALUE ((HANDLE)(intptr_t)-1)
#define MOVEFILE_REPLACE_EXISTING 1
#define FROM_DLL __declspec(dllimport)
FROM_DLL int WINAPI MultiByteToWideChar(UINT, DWORD, const char *, int, wchar_t *, int);
FROM_DLL int WINAPI WideCharToMultiByte(UINT, DWORD, const wchar_t *, int, char *, int, const char *, BOOL *);
FROM_DLL wchar_t *WINAPI GetCommandLineW(void);
FROM_DLL wchar_t **WINAPI CommandLineToArgvW(const wchar_t *, int *);
FROM_DLL void *WINAPI LocalFree(void *);
FROM_DLL BOOL WINAPI SetConsoleCP(UINT);
FROM_DLL BOOL WINAPI SetConsoleOutputCP(UINT);
FROM_DLL BOOL WINAPI QueryPerformanceCounter(LARGE_INTEGER *);
FROM_DLL BOOL WINAPI QueryPerformanceFrequency(LARGE_INTEGER *);
FROM_DLL HANDLE WINAPI GetCurrentProcess(void);
FROM_DLL BOOL WINAPI K32GetProcessMemoryInfo(HANDLE, PROCESS_MEMORY_COUNTERS *, DWORD);
FROM_DLL HANDLE WINAPI CreateFileW(const wchar_t *, DWORD, DWORD, void *, DWORD, DWORD, HANDLE);
FROM_DLL BOOL WINAPI CloseHandle(HANDLE);
FROM_DLL DWORD WINAPI GetFileType(HANDLE);
FROM_DLL BOOL WINAPI GetFileInformationByHandle(HANDLE, BY_HANDLE_FILE_INFORMATION *);
FROM_DLL DWORD WINAPI GetFileAttributesW(const wchar_t *);
FROM_DLL BOOL WINAPI MoveFileExW(const wchar_t *, const wchar_t *, DWORD);
FROM_DLL HANDLE WINAPI FindFirstFileW(const wchar_t *, WIN32_FIND_DATAW *);
FROM_DLL BOOL WINAPI FindNextFileW(HANDLE, WIN32_FIND_DATAW *);
FROM_DLL BOOL WINAPI FindClose(HANDLE);

#ifdef __cplusplus
}
#endif
#endif
