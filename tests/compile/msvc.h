/* What minillama.h uses of Microsoft's C library, declared as it is there: with this in place of the system's headers
   (tests/windows.sh makes one-line files of their names), clang checks the header by the rules of that compiler, which
   is not needed for it. Nothing here is ever linked. */
#ifndef MSVC_H
#define MSVC_H

#include <limits.h>
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
int remove(const char *path);
int _wremove(const wchar_t *path);
int rename(const char *from, const char *to);
int snprintf(char *to, size_t size, const char *format, ...);
int printf(const char *format, ...);
#define SEEK_SET 0
#define SEEK_END 2

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
void free(void *memory);
void *_aligned_malloc(size_t size, size_t alignment);
void _aligned_free(void *memory);
void abort(void);
void exit(int status);

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
#define INFINITY ((float)1e308 * 10)
#define NAN (INFINITY * 0.0f)

int *_errno(void);
#define errno (*_errno())
#define ENOENT 2
#define EIO 5
#define ENOMEM 12
#define EACCES 13
#define EEXIST 17
#define EISDIR 21
#define EINVAL 22
#define ENAMETOOLONG 38
#define ENOSYS 40

#define assert(condition) ((void)(condition))

#ifdef __cplusplus
}
#endif
#endif
