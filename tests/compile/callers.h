/* Two units that use the library; each may be compiled as C or as C++. */
#ifndef CALLERS_H
#define CALLERS_H

#ifdef __cplusplus
extern "C" {
#endif
int call_a(void);
int call_b(void);
#ifdef __cplusplus
}
#endif

#endif
