/* How many threads a program uses unless it is told. */
#ifndef THREADS_H
#define THREADS_H

#ifdef _OPENMP
#include <omp.h>
#endif

/* All processors, or what OMP_NUM_THREADS says; 1 without OpenMP. */
static inline int default_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

#endif
