/* Passes on the graph: of a loss and its gradient, and of predictions. */
#include <stdlib.h>
#include "tuning.h"
#include "../../common/report.h"

typedef struct pass_job {
    tuning *t;
    const tuning_batch *batch;
    tuning_pass pass;
} pass_job;

static ml_tensor build(ml_graph *g, void *user) {
    const pass_job *job = (const pass_job *)user;
    job->t->seeds = 0;
    return job->pass(job->t, g, job->batch);
}

/* Makes the graph large enough for a pass, with a gradient or without. */
static int make_graph(const pass_job *job) {
    tuning_private *p = job->t->private_part;
    ml_graph_desc desc = {0};
    ml_error error;
    size_t size;
    desc.threads.count = job->t->set.threads;
    if (!succeeded(ml_graph_size(&desc, build, (void *)(uintptr_t)job, &size, &error), &error)) return 0;
    if (p->graph && size <= p->size) return 1;
    free(p->memory);
    p->size = size + size / 16;
    p->graph = NULL;
    p->memory = malloc(p->size);
    if (!p->memory) return no_memory("a pass");
    return succeeded(ml_graph_init(&desc, p->memory, p->size, &p->graph, &error), &error);
}

int tuning_backward_of(tuning *t, const tuning_batch *batch, tuning_pass pass, float *loss) {
    pass_job job = {t, batch, pass};
    ml_error error;
    if (!make_graph(&job)) return 0;
    ml_graph *g = t->private_part->graph;
    ml_graph_begin(g, 1);
    ml_tensor result = build(g, &job);
    if (!succeeded(ml_graph_backward(g, result, &error), &error)) return 0;
    if (loss) *loss = *(const float *)result.data;
    t->pass++;
    return 1;
}

int tuning_backward(tuning *t, const tuning_batch *batch, float *loss) {
    return tuning_backward_of(t, batch, t->method.loss ? t->method.loss : tuning_classify, loss);
}

int tuning_compute(tuning *t, const tuning_batch *batch, tuning_pass pass, float *to) {
    pass_job job = {t, batch, pass};
    ml_error error;
    if (!make_graph(&job)) return 0;
    ml_graph *g = t->private_part->graph;
    ml_graph_begin(g, 0);
    ml_tensor result = build(g, &job);
    if (!succeeded(ml_graph_end(g, &error), &error)) return 0;
    if (to) memcpy(to, result.data, result.rows * result.cols * sizeof *to);
    return 1;
}

static int best_of(const float *scores, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (scores[i] > scores[best]) best = i;
    return best;
}

/* `room` (max_rows, C) */
static int predict_rows(tuning *t, const reviews *set, int *predicted, float *room) {
    const tuning_private *p = t->private_part;
    tuning_pass pass = t->method.logits ? t->method.logits : tuning_logits;
    int most = t->set.batch; /* so that a pass takes no more memory than one of training */
    for (int from = 0, n; from < set->n; from += n) {
        tuning_step rows = {set, p->every + from, set->n - from < most ? set->n - from : most};
        tuning_batch batch;
        n = tuning_fill(t, &batch, &rows, 0);
        batch.rows.labels = NULL;
        if (!tuning_compute(t, &batch, pass, room)) return 0;
        for (int i = 0; i < n; i++) predicted[from + i] = best_of(room + i * t->labels.n, t->labels.n);
    }
    return 1;
}

int tuning_predict(tuning *t, const reviews *set, int *predicted) {
    size_t size = (size_t)t->private_part->max_rows * (size_t)t->labels.n;
    float *room = (float *)malloc(size * sizeof *room);
    int ok = room ? predict_rows(t, set, predicted, room) : no_memory("predictions");
    free(room);
    return ok;
}

double tuning_measure(tuning *t, const reviews *set, const int *truth) {
    int *predicted = (int *)malloc((size_t)set->n * sizeof *predicted), known = 0, right = 0;
    int ok = predicted ? tuning_predict(t, set, predicted) : no_memory("predictions");
    for (int i = 0; ok && i < set->n; i++) {
        int label = truth ? truth[i] : set->rows[i].label;
        known += label >= 0;
        right += label >= 0 && label == predicted[i];
    }
    free(predicted);
    return !ok ? -1 : known ? (double)right / known : 0;
}
