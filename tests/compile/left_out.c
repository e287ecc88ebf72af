/* Calls a function of a part that can be left out: with ML_NO_TRAINING this must not compile. */
#include "minillama.h"

ml_result left_out(ml_trainer *trainer);
ml_result left_out(ml_trainer *trainer) { return ml_trainer_step(trainer, NULL); }
