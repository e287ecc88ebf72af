/* The Makefile compiles, links and runs this to learn whether a flag works; with PROBE_OPENMP, whether OpenMP's header
   and library are there, too; with PROBE_WIDE, whether floats are computed as wider numbers. */
#ifdef PROBE_WIDE
#include <float.h>
#if FLT_EVAL_METHOD == 0
#error "a float is computed as a float"
#endif
#endif
#ifdef PROBE_OPENMP
#ifndef _OPENMP
#error "the flag is taken, and ignored"
#endif
#include <omp.h>
#endif

int main(void) {
    int n_threads = 1;
#ifdef PROBE_OPENMP
#pragma omp parallel
    {
#pragma omp single
        n_threads = omp_get_num_threads();
    }
    n_threads = n_threads < omp_get_max_threads() ? n_threads : omp_get_max_threads();
#endif
    return n_threads < 1;
}
