/* Training: epochs, steps, and the weights that are best on dev. */
#include <math.h>
#include "tuning.h"
#include "../../common/progress.h"
#include "../../common/report.h"

static int plan_epoch(tuning *t, int epoch) {
    t->private_part->n_steps = 0;
    t->epoch = epoch;
    return (t->method.plan ? t->method.plan : tuning_plan)(t, epoch) &&
           (t->private_part->n_steps || complain("an epoch without a batch"));
}

static ml_schedule schedule_of(const tuning *t, int total) {
    const char *name = t->set.schedule;
    ml_schedule schedule = {ML_DECAY_NONE, 0, total, 0};
    if (!total) return schedule; /* --epochs 0 */
    if (strcmp(name, "linear") == 0) schedule.decay = ML_DECAY_LINEAR;
    if (strcmp(name, "cosine") == 0) schedule.decay = ML_DECAY_COSINE;
    schedule.warmup_steps = (int)(t->set.warmup * (float)total);
    return schedule;
}

static int make_optimizer(tuning *t, int total) {
    ml_optimizer_desc desc = {0};
    ml_error error;
    ml_parameter *list = (ml_parameter *)malloc((size_t)t->n_parameters * sizeof *list);
    t->private_part->best = (float *)malloc((size_t)tuning_count(t) * sizeof(float));
    if (!list || !t->private_part->best) return free(list), no_memory("the trained parameters");
    for (int i = 0; i < t->n_parameters; i++) {
        list[i].tensor = t->parameters[i]->tensor;
        list[i].group = t->parameters[i]->group;
    }
    desc.parameters = list;
    desc.n_parameters = t->n_parameters;
    desc.groups = t->groups;
    desc.n_groups = t->n_groups;
    desc.adamw.lr = t->set.lr;
    desc.adamw.clip = t->set.clip;
    desc.schedule = schedule_of(t, total);
    desc.threads.count = t->set.threads;
    int ok = succeeded(ml_optimizer_new(&desc, &t->optimizer, &error), &error);
    free(list);
    return ok;
}

/* One step: the gradients of all rows, in as many passes as it takes. */
static int do_step(tuning *t, tuning_step rows, double *loss) {
    ml_error error;
    const float whole = (float)rows.n;
    *loss = 0;
    while (rows.n > 0) {
        tuning_batch batch;
        float part;
        int n = tuning_fill(t, &batch, &rows, 1);
        batch.rows.divisor = whole;
        if (!(t->method.backward ? t->method.backward : tuning_backward)(t, &batch, &part)) return 0;
        *loss += (double)part;
        rows.index += n;
        rows.n -= n;
    }
    return succeeded(ml_optimizer_step(t->optimizer, &error), &error) &&
           (!t->method.after_step || t->method.after_step(t));
}

/* Measures dev, and keeps the weights if they are the best so far, or no one knows. */
static int measure_dev(tuning *t, double loss) {
    if (t->method.measuring && !t->method.measuring(t, 1)) return 0;
    double dev = tuning_measure(t, &t->dev, NULL);
    if (dev < 0) return 0;
    int is_best = dev > t->result.dev || !reviews_have_labels(&t->dev);
    if (is_best) {
        t->result.dev = dev;
        t->result.best_step = t->result.steps;
        tuning_copy(t, t->private_part->best);
    }
    t->private_part->n_worse = is_best ? 0 : t->private_part->n_worse + 1;
    printf("step %d (epoch %d): loss %.3f, dev %.3f\n", t->result.steps, t->epoch + 1, loss, dev);
    fflush(stdout);
    return !t->method.measuring || t->method.measuring(t, 0);
}

static int is_over(const tuning *t) { return t->set.patience && t->private_part->n_worse >= t->set.patience; }

static int train_epoch(tuning *t) {
    tuning_private *p = t->private_part;
    double began = seconds_now(), sum = 0, loss;
    int n = 0;
    for (int i = 0; i < p->n_steps && !is_over(t); i++) {
        if (!do_step(t, p->steps[i], &loss)) return complain("at step %d", t->result.steps + 1);
        sum += loss;
        n++;
        t->result.steps++;
        t->result.loss = sum / n;
        progress_bar(t->method.name, i + 1, p->n_steps, began);
        int is_due = t->set.eval_every ? t->result.steps % t->set.eval_every == 0 : 0;
        if ((is_due || i + 1 == p->n_steps) && !measure_dev(t, sum / n)) return 0;
    }
    return 1;
}

int tuning_train(tuning *t) {
    double began = seconds_now(), cpu_began = cpu_seconds_now();
    tuning_private *p = t->private_part;
    t->result.dev = -1;
    t->result.gold = -1;
    if (!reviews_have_labels(&t->dev))
        fprintf(stderr, "%s: no label is known: the last weights are kept, and not the best\n", t->dev.path);
    if (!plan_epoch(t, 0) || !make_optimizer(t, p->n_steps * t->set.epochs)) return 0;
    if (!t->set.epochs && !measure_dev(t, 0)) return 0;
    for (int epoch = 0; epoch < t->set.epochs && !is_over(t); epoch++)
        if ((epoch && !plan_epoch(t, epoch)) || !train_epoch(t)) return 0;
    t->result.seconds = seconds_now() - began;
    t->result.cpu_seconds = cpu_seconds_now() - cpu_began;
    tuning_paste(t, p->best);
    t->result.test = tuning_measure(t, &t->test, NULL);
    if (t->gold) t->result.gold = tuning_measure(t, &t->test, t->gold);
    return t->result.test >= 0 && (!t->gold || t->result.gold >= 0);
}
