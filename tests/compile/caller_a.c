#include "callers.h"
#include "use.h"

int call_a(void) { return use_minillama(); }
