/* Parts of a classifier in turn: how the states of a sentence become one (mean, max, last, attention, a weighted sum
   of all layers), a head of two layers, and two tasks that share one network (Caruana 1997, "Multitask Learning").
       build/components --method attention --task sst
       build/components --method multitask --task sst --with cfimdb
   The weights that are kept are the best of --task's dev; what they reach on the other task is a row of its own. */
#include "common/tuning.h"
#include "../common/report.h"

/* What belongs to one task. */
typedef struct task_part {
    const char *task, *train, *dev, *test, *test_gold, *label_names;
    label_names labels;
    reviews train_set, dev_set, test_set;
    int *gold;
    ml_tensor *head, *head_bias, *hidden, *hidden_bias, *pool, *mix;
} task_part;

typedef struct components {
    const char *method, *with;
    int even;
    task_part other; /* the task whose turn it is not */
    int *order;      /* rows of the task's own set, then of the other's */
} components;

static components *components_of(const tuning *t) { return (components *)t->method.state; }

/* ---- two tasks ---- */

static void swap(void *a, void *b, size_t n) {
    char held[sizeof(label_names)];
    memcpy(held, a, n);
    memcpy(a, b, n);
    memcpy(b, held, n);
}

/* It is the other task's turn: its data and classifier are those of the frame. */
static void take_turn(tuning *t) {
    task_part *o = &components_of(t)->other;
    tuning_settings *s = &t->set;
    tuning_private *p = t->private_part;
    const struct {
        void *a, *b;
        size_t n;
    } parts[] = {
        {&s->task, &o->task, sizeof o->task},
        {&s->labels, &o->label_names, sizeof o->label_names},
        {&s->train, &o->train, sizeof o->train},
        {&s->dev, &o->dev, sizeof o->dev},
        {&s->test, &o->test, sizeof o->test},
        {&s->test_gold, &o->test_gold, sizeof o->test_gold},
        {&t->labels, &o->labels, sizeof o->labels},
        {&t->train, &o->train_set, sizeof o->train_set},
        {&t->dev, &o->dev_set, sizeof o->dev_set},
        {&t->test, &o->test_set, sizeof o->test_set},
        {&t->gold, &o->gold, sizeof o->gold},
        {&p->head, &o->head, sizeof o->head},
        {&p->head_bias, &o->head_bias, sizeof o->head_bias},
        {&p->hidden, &o->hidden, sizeof o->hidden},
        {&p->hidden_bias, &o->hidden_bias, sizeof o->hidden_bias},
        {&p->pool, &o->pool, sizeof o->pool},
        {&p->mix, &o->mix, sizeof o->mix},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) swap(parts[i].a, parts[i].b, parts[i].n);
}

static int multitask_setup(tuning *t) {
    components *s = components_of(t);
    s->other.task = s->with;
    take_turn(t);
    int ok = tuning_read_data(t);
    take_turn(t);
    size_t n = (size_t)t->train.n + (size_t)s->other.train_set.n;
    s->order = ok ? (int *)malloc(n * sizeof *s->order) : NULL;
    return ok && (s->order || no_memory("the order of two tasks")) && tuning_train_model(t, 0);
}

/* The other task's head, and room for its rows where they are measured. */
static int multitask_ready(tuning *t) {
    const task_part *o = &components_of(t)->other;
    tuning_private *p = t->private_part;
    int n = t->train.n + t->dev.n + t->test.n + o->train_set.n + o->dev_set.n + o->test_set.n;
    int *every = (int *)malloc((size_t)n * sizeof *every);
    if (!every) return no_memory("a batch");
    for (int i = 0; i < n; i++) every[i] = i;
    free(p->every);
    p->every = every;
    t->group = TUNING_HEAD;
    take_turn(t);
    int ok = tuning_make_head(t);
    take_turn(t);
    return ok;
}

/* Batches of both tasks in turn: spread over the epoch so that each row occurs once, or with --even one after the
   other, the shorter task from its beginning again. */
static int multitask_plan(tuning *t, int epoch) {
    components *s = components_of(t);
    const reviews *set[2] = {&t->train, &s->other.train_set};
    int *order[2] = {s->order, s->order + t->train.n}, n[2], times[2], size = t->set.batch;
    (void)epoch;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < set[i]->n; j++) order[i][j] = j;
        tuning_shuffle(order[i], set[i]->n, &t->random);
        n[i] = (set[i]->n - 1) / size + 1;
    }
    int most = n[0] > n[1] ? n[0] : n[1];
    for (int i = 0; i < 2; i++) times[i] = s->even ? most : n[i];
    for (int64_t k = 0; k < most; k++)
        for (int i = 0; i < 2; i++) {
            if ((k + 1) * times[i] / most == k * times[i] / most) continue;
            int from = (int)(k * times[i] / most % n[i]) * size, left = set[i]->n - from;
            tuning_step step = {set[i], order[i] + from, left < size ? left : size};
            if (!tuning_plan_add(t, &step)) return 0;
        }
    return 1;
}

static int multitask_backward(tuning *t, const tuning_batch *batch, float *loss) {
    int is_other = batch->set == &components_of(t)->other.train_set;
    if (is_other) take_turn(t);
    int ok = tuning_backward(t, batch, loss);
    if (is_other) take_turn(t);
    return ok;
}

/* A report of the other task, by the weights that are kept. */
static int multitask_finish(tuning *t) {
    tuning_result result = t->result;
    take_turn(t);
    result.dev = tuning_measure(t, &t->dev, NULL);
    result.test = tuning_measure(t, &t->test, NULL);
    result.gold = t->gold ? tuning_measure(t, &t->test, t->gold) : -1;
    int ok = result.dev >= 0 && result.test >= 0 && (!t->gold || result.gold >= 0) &&
             tuning_report(t, "multitask_other", &result);
    take_turn(t);
    return ok;
}

/* ---- the program ---- */

static int use_multitask(tuning *t) {
    const components *s = components_of(t);
    if (!s->with) return complain("--method multitask needs a second task: --with cfimdb");
    if (strcmp(s->with, t->set.task) == 0) return complain("--with %s: this is --task already", s->with);
    if (t->set.save) return complain("--save: a model file has room for one classifier, and there are two");
    t->method.setup = multitask_setup;
    t->method.ready = multitask_ready;
    t->method.plan = multitask_plan;
    t->method.backward = multitask_backward;
    t->method.finish = multitask_finish;
    return 1;
}

/* The methods are --pooling and --head_hidden of all experiments by another name. */
static int components_check(tuning *t) {
    static const char *const names[] = {"last", "mean", "max", "attention", "layers"};
    const components *s = components_of(t);
    int is_two = strcmp(s->method, "multitask") == 0;
    t->method.name = s->method;
    if (!is_two && (s->with || s->even))
        return complain("--with and --even are for --method multitask, not for %s", s->method);
    if (is_two) return use_multitask(t);
    if (strcmp(s->method, "hidden") == 0) {
        if (!t->set.head_hidden) t->set.head_hidden = 64;
        return 1;
    }
    if (strcmp(t->set.pooling, "last") != 0 && strcmp(t->set.pooling, s->method) != 0)
        return complain("--method %s and --pooling %s exclude each other", s->method, t->set.pooling);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(s->method, names[i]) == 0) t->set.pooling = names[i];
    return strcmp(t->set.pooling, s->method) == 0 ||
           complain("--method is last, mean, max, attention, layers, hidden or multitask, not %s", s->method);
}

static void components_free(components *s) {
    reviews_free(&s->other.train_set), reviews_free(&s->other.dev_set), reviews_free(&s->other.test_set);
    free(s->other.labels.text), free(s->other.gold), free(s->order);
}

int main(int argc, char **argv) {
    components s;
    tuning_method method = {0};
    memset(&s, 0, sizeof s);
    s.method = "last";
    const option own[] = {
        {"--method", OPTION_TEXT, &s.method,
         "last (default), mean, max, attention, layers, hidden (a layer of\n"
         "                                             --head_hidden, 64) or multitask"},
        {"--with", OPTION_TEXT, &s.with, "multitask: the name of the second task"},
        {"--even", OPTION_FLAG, &s.even, "multitask: as many batches of one as of the other"},
    };
    method.program = "components";
    method.state = &s;
    method.check = components_check;
    int status = tuning_main(argc, argv, &method, own, (int)(sizeof own / sizeof *own));
    components_free(&s);
    return status;
}
