#include "callers.h"
#include "use.h"

int call_b(void) { return use_minillama(); }
