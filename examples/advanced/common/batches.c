/* Batches: rows of different lengths packed one after another, without padding. */
#include "tuning.h"
#include "../../common/memory.h"
#include "../../common/report.h"

/* Fisher & Yates 1938, "Statistical Tables for Biological, Agricultural and Medical Research". */
void tuning_shuffle(int *order, int n, ml_random *random) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(ml_random_u64(random) % (uint64_t)(i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

int tuning_plan_add(tuning *t, const tuning_step *step) {
    tuning_private *p = t->private_part;
    tuning_step *room =
        (tuning_step *)grow(p->steps, (size_t)p->n_steps + 1, &p->steps_capacity, sizeof *room);
    if (!room) return no_memory("the plan of an epoch");
    p->steps = room;
    room[p->n_steps++] = *step;
    return 1;
}

int tuning_plan(tuning *t, int epoch) {
    tuning_private *p = t->private_part;
    (void)epoch;
    for (int i = 0; i < t->train.n; i++) p->order[i] = i;
    tuning_shuffle(p->order, t->train.n, &t->random);
    for (int from = 0; from < t->train.n; from += t->set.batch) {
        int left = t->train.n - from;
        tuning_step step = {&t->train, p->order + from, left < t->set.batch ? left : t->set.batch};
        if (!tuning_plan_add(t, &step)) return 0;
    }
    return 1;
}

/* Arrays for the largest batch. One row always fits, however long it is. */
int tuning_make_batches(tuning *t) {
    tuning_private *p = t->private_part;
    p->max_batch = p->max_row > t->set.max_tokens ? p->max_row : t->set.max_tokens;
    p->max_rows = t->set.batch;
    int most = t->train.n > t->test.n ? t->train.n : t->test.n;
    if (t->dev.n > most) most = t->dev.n;
    size_t n = (size_t)p->max_batch, rows = (size_t)p->max_rows + 1;
    p->tokens = (int32_t *)malloc(n * sizeof *p->tokens);
    p->source = (int32_t *)malloc(n * sizeof *p->source);
    p->kept = (int32_t *)malloc(n * sizeof *p->kept);
    p->starts = (int32_t *)malloc(2 * rows * sizeof *p->starts);
    p->truth = (int32_t *)malloc(rows * sizeof *p->truth);
    p->order = (int *)malloc((size_t)t->train.n * sizeof *p->order);
    p->every = (int *)malloc((size_t)most * sizeof *p->every);
    if (!p->tokens || !p->source || !p->kept || !p->starts || !p->truth || !p->order || !p->every)
        return no_memory("a batch");
    for (int i = 0; i < most; i++) p->every[i] = i;
    return 1;
}

/* Copies a row behind its placeholders; with word dropout some tokens are left out (Iyyer et al. 2015, "Deep
   Unordered Composition Rivals Syntactic Methods for Text Classification"), never the first, and not all others. */
static int put_row(tuning *t, const review *row, int at, int learns) {
    int32_t *to = t->private_part->tokens + at, *source = t->private_part->source + at;
    int n = 0, begin = t->front, end = row->n_ids - 1;
    float p = learns ? t->set.word_dropout : 0;
    for (; n < begin; n++) to[n] = 0, source[n] = -1;
    for (int i = 0; i <= end; i++) {
        int is_kept = i == 0 || !(p > 0) || ml_random_uniform(&t->random) >= p;
        if (!is_kept && !(i == end && n == begin + 1)) continue;
        source[n] = i;
        to[n++] = row->ids[i];
    }
    return n;
}

int tuning_fill(tuning *t, tuning_batch *batch, const tuning_step *rows, int learns) {
    tuning_private *p = t->private_part;
    int n = 0, r = 0;
    memset(batch, 0, sizeof *batch);
    p->starts[0] = 0;
    while (r < rows->n && r < p->max_rows) {
        const review *row = &rows->set->rows[rows->index[r]];
        int most = r ? t->set.max_tokens : p->max_batch;
        if (n + row->n_ids + t->front > most) break;
        n += put_row(t, row, n, learns);
        p->truth[r] = row->label;
        p->starts[++r] = n;
    }
    batch->rows.tokens = p->tokens;
    batch->rows.n_tokens = n;
    batch->rows.row_start = p->starts;
    batch->rows.n_rows = r;
    batch->rows.labels = p->truth;
    batch->rows.divisor = (float)rows->n;
    batch->set = rows->set;
    batch->index = rows->index;
    batch->learns = learns;
    batch->source = p->source;
    return r;
}
