/* The first include of every test program, before any system header. It makes POSIX and mmap visible under -std=c99,
   turns off the warning that no single test can avoid, and includes what all of them use.

       #include "preamble.h"

       TEST(name) { CHECK(...); }
       int main(void) { RUN(name); return test_report("test_name"); }

   A test of the public interface includes "preamble.h" only; it links build/minillama.o. A test that looks inside the
   library writes
       #define MINILLAMA_IMPLEMENTATION
   above it, and so compiles the implementation itself: the Makefile looks for that line. Helpers with a header each
   (include after this one): build_files.h, small files of every format; temporary.h, a folder in the system's
   temporary place, and what a call prints; folder.h, that and whole files; models.h, models made in one line and
   their tensors by name; operations.h, an operation beside its plain formula; shared.h, public files beside the
   repository and arrays from them. */
#ifndef PREAMBLE_H
#define PREAMBLE_H

#if !defined(_DEFAULT_SOURCE)
#define _DEFAULT_SOURCE 1 /* glibc: POSIX.1-2008, MAP_ANONYMOUS, wait4 */
#endif
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE 1 /* the same there */
#endif

#include "minillama.h"

#if defined(__GNUC__)
#pragma GCC diagnostic ignored                                                                               \
    "-Wunused-function" /* helper headers define more functions than one test uses */
#endif

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "test.h"

#endif
