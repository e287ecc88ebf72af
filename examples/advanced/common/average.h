/* An average of the weights that learn, which is measured and kept in place of the last ones. All 0 is an empty
   one. */
#ifndef AVERAGE_H
#define AVERAGE_H

#include "tuning.h"

typedef struct weight_average {
    float *mean; /* (tuning_count) */
    float *held; /* the weights, while the mean is in their place */
    int n;       /* how often they were added */
} weight_average;

int average_add(tuning *t, weight_average *a, float share); /* mean += share (weights - mean) */
/* After a step (Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"): mean = decay mean +
   (1 - decay) weights. While there are few steps it forgets faster, so that it does not remember how it began. */
int average_step(tuning *t, weight_average *a, float decay);
/* For `measuring` of a tuning_method: exchanges weights and mean, if there is one. */
int average_measuring(tuning *t, weight_average *a, int begins);
void average_free(weight_average *a);

#endif
