#include "average.h"
#include "../../common/report.h"

static int make_average(tuning *t, weight_average *a) {
    size_t n = (size_t)tuning_count(t);
    if (a->mean && a->held) return 1;
    if (!a->mean) a->mean = (float *)calloc(n, sizeof *a->mean);
    if (!a->held) a->held = (float *)malloc(n * sizeof *a->held);
    return (a->mean && a->held) || no_memory("an average of the weights");
}

int average_add(tuning *t, weight_average *a, float share) {
    size_t n = (size_t)tuning_count(t);
    if (!make_average(t, a)) return 0;
    tuning_copy(t, a->held);
    for (size_t i = 0; i < n; i++) a->mean[i] += share * (a->held[i] - a->mean[i]);
    a->n++;
    return 1;
}

/* Early steps weigh more, as the average starts from the first weights: the share of step n, from 0, is 1 - decay only
   from n = 9 / (1 - decay) - 10 on. In a run that is shorter, a larger decay changes nothing. */
int average_step(tuning *t, weight_average *a, float decay) {
    float usual = 1 - decay, early = 9 / (10 + (float)a->n);
    return average_add(t, a, !a->n ? 1 : usual > early ? usual : early);
}

int average_measuring(tuning *t, weight_average *a, int begins) {
    if (!a->n) return 1;
    if (begins) tuning_copy(t, a->held);
    tuning_paste(t, begins ? a->mean : a->held);
    return 1;
}

void average_free(weight_average *a) {
    free(a->mean), free(a->held);
    memset(a, 0, sizeof *a);
}
