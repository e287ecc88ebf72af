#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
