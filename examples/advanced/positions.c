/* How a language model knows positions, and what happens beyond the context that it was trained for: a small model is
   trained for each kind at --context, and evaluated on texts of up to four times that, loss by position.

       build/positions --text FILE                      all kinds
       build/positions --text FILE --position alibi     one

   rope (Su et al. 2021) as it is; rope_theta, trained with a base of 500,000; linear (Chen et al. 2023), ntk and yarn
   (Peng et al. 2023): the model of rope, with its table stretched for the longer text; alibi (Press et al. 2022); and
   none at all: NoPE (Kazemnejad et al. 2023). */
#include "small_lm.h"

enum { LONGER = 4, KINDS = 7, TEXTS = 24, BUCKETS = 16 };

typedef struct kind {
    const char *name;
    int trains; /* a model of its own; otherwise that of rope */
    int has_table, is_alibi;
    ml_rope_kind table;
    float theta;
    int is_stretched; /* by the length of the text / context */
    plot_style style;
} kind;

static const kind kinds[KINDS] = {
    {"rope", 1, 1, 0, ML_ROPE_PLAIN, 10000, 0, {PLOT_BLUE, "none", 2, 1, 'o'}},
    {"linear", 0, 1, 0, ML_ROPE_PLAIN, 10000, 1, {PLOT_BLUE, "6 4", 2, 1, 0}},
    {"ntk", 0, 1, 0, ML_ROPE_NTK, 10000, 1, {PLOT_ORANGE, "none", 2, 1, 0}},
    {"yarn", 0, 1, 0, ML_ROPE_YARN, 10000, 1, {PLOT_RED, "none", 2, 1, 's'}},
    {"rope_theta", 1, 1, 0, ML_ROPE_PLAIN, 500000, 0, {PLOT_ORANGE, "6 4", 2, 1, 0}},
    {"alibi", 1, 0, 1, ML_ROPE_PLAIN, 0, 0, {PLOT_RED, "6 4", 2, 1, 0}},
    {"none", 1, 0, 0, ML_ROPE_PLAIN, 0, 0, {PLOT_GRAY, "none", 2, 1, 's'}}};

/* What the passes use now. */
typedef struct run {
    const kind *kind;
    float *table; /* (positions, hd) */
} run;

static ml_tensor attend(ml_graph *g, small_lm *lm, int layer, ml_tensor q, ml_tensor k, ml_tensor v) {
    const run *now = (const run *)lm->user;
    ml_attention_desc desc = {0};
    (void)layer;
    if (now->kind->has_table) {
        ml_tensor table = {ML_F32, (size_t)(LONGER * lm->context), (size_t)(lm->dim / lm->n_heads),
                           now->table, NULL};
        q = ml_rotate(g, q, table, small_rows(lm));
        k = ml_rotate(g, k, table, small_rows(lm));
    }
    desc.q = q, desc.k = k, desc.v = v;
    desc.n_heads = lm->n_heads;
    desc.rows = small_rows(lm);
    desc.bias = lm->bias;
    return ml_attention(g, &desc);
}

static void prepare(ml_graph *g, small_lm *lm) {
    int is_alibi = ((const run *)lm->user)->kind->is_alibi;
    lm->bias =
        is_alibi ? ml_alibi(g, lm->n_heads, small_rows(lm), (size_t)(lm->n_rows * lm->length)) : ml_none();
}

/* The rotations of a kind, for texts of `length` tokens. */
static void make_table(const small_lm *lm, run *now, int length) {
    ml_rope_desc desc = {
        now->kind->table, (size_t)(lm->dim / lm->n_heads), now->kind->theta, 1, lm->context, 0, 0, 0, NULL};
    if (now->kind->is_stretched && length > lm->context) desc.scale = (float)length / (float)lm->context;
    if (now->kind->has_table) ml_rope_table(&desc, now->table, LONGER * lm->context);
}

static double mean(const double *x, int from, int to) {
    double sum = 0;
    for (int i = from; i < to; i++) sum += x[i] / (to - from);
    return sum;
}

/* Trains if the kind has a model of its own, and evaluates; a line of the table. losses (LONGER, LONGER * context):
   by length and position. */
static int run_kind(small_lm *lm, run *now, double *losses) {
    make_table(lm, now, lm->context);
    if (now->kind->trains && !small_train(lm, now->kind->name, NULL)) return 0;
    printf("%-11s", now->kind->name);
    for (int k = 1; k <= LONGER; k *= 2) {
        double *of = losses + (k - 1) * LONGER * lm->context;
        make_table(lm, now, k * lm->context);
        if (!small_evaluate(lm, k * lm->context, TEXTS, of)) return 0;
        printf("  %6.3f", mean(of, 0, k * lm->context));
    }
    const double *longest = losses + (LONGER - 1) * LONGER * lm->context;
    printf("  %6.3f\n", mean(longest, (LONGER - 1) * lm->context, LONGER * lm->context));
    fflush(stdout);
    return 1;
}

static int write_csv(const small_lm *lm, const double *losses, const int *done) {
    whole_file file;
    int each = LONGER * LONGER * lm->context, step = LONGER * lm->context / BUCKETS;
    if (!whole_file_begin(&file, lm->csv)) return 0;
    fprintf(file.to, "position,length,from,loss\n");
    for (int i = 0; i < KINDS; i++)
        for (int k = 1; k <= LONGER && done[i]; k *= 2)
            for (int at = 0; at < k * lm->context; at += step)
                fprintf(file.to, "%s,%d,%d,%.4f\n", kinds[i].name, k * lm->context, at,
                        mean(losses + i * each + (k - 1) * LONGER * lm->context, at, at + step));
    return whole_file_end(&file);
}

/* Loss by position in texts of four times the context. */
static int draw(const small_lm *lm, const double *losses, const int *done) {
    plot p;
    double x[BUCKETS], y[KINDS][BUCKETS], least = 1e9, most = 0;
    int all = LONGER * lm->context, step = all / BUCKETS;
    for (int i = 0; i < KINDS; i++)
        for (int b = 0; b < BUCKETS && done[i]; b++) {
            x[b] = (b + .5) * step;
            y[i][b] = mean(losses + (i * LONGER + LONGER - 1) * all, b * step, (b + 1) * step);
            least = fmin(least, y[i][b]), most = fmax(most, y[i][b]);
        }
    if (!plot_begin(&p, lm->svg, "Loss by position, beyond the context of training")) return 0;
    plot_panel panel = {0, PLOT_WIDTH, "", plot_axis_whole("position (tokens)", 0, all),
                        plot_axis_of("loss (nats per token)", least, most + 1e-6, 6)};
    plot_panel_begin(&p, &panel);
    plot_rule(&p, plot_x(&p, lm->context), PLOT_TOP, plot_x(&p, lm->context), PLOT_BOTTOM, "#777");
    for (int i = 0; i < KINDS; i++)
        if (done[i])
            plot_line(&p, &kinds[i].style, x, y[i], BUCKETS), plot_legend(&p, &kinds[i].style, kinds[i].name);
    return plot_end(&p);
}

/* All kinds that were asked for. Those without a model of their own need rope's. */
static int run_all(small_lm *lm, const char *position) {
    int all = LONGER * lm->context, done[KINDS] = {0}, ok = 1, found = 0;
    double *losses = (double *)calloc((size_t)(KINDS * LONGER * all), sizeof *losses);
    run now = {NULL, (float *)malloc((size_t)(all * lm->dim) * sizeof(float))};
    lm->user = &now;
    lm->attend = attend;
    lm->prepare = prepare;
    printf("loss         %6d  %6d  %6d  last quarter\n", lm->context, 2 * lm->context, all);
    ok = (losses && now.table) || no_memory("results");
    for (int i = 0; i < KINDS && ok; i++) {
        int is_all = strcmp(position, "all") == 0, is_asked = is_all || option_same(position, kinds[i].name);
        int is_base = i == 0 && !is_all &&
                      (option_same(position, "linear") || option_same(position, "ntk") ||
                       option_same(position, "yarn"));
        if (!is_asked && !is_base) continue;
        now.kind = &kinds[i];
        done[i] = ok = run_kind(lm, &now, losses + i * LONGER * all);
        found |= is_asked;
    }
    if (ok && !found)
        ok = complain("--position %s is not rope, rope_theta, linear, ntk, yarn, alibi, none or all",
                      position);
    ok = ok && (!lm->csv || write_csv(lm, losses, done)) && (!lm->svg || draw(lm, losses, done));
    free(losses);
    free(now.table);
    return ok;
}

int main(int argc, char **argv) {
    small_lm lm;
    const char *position = "all";
    int help = 0, n;
    option options[SMALL_OPTIONS + 2];
    small_defaults(&lm);
    n = small_options(&lm, options);
    option own[2] = {{"--position", OPTION_TEXT, (void *)&position,
                      "rope, rope_theta, linear, ntk, yarn, alibi, none or all (default)"},
                     {"--help", OPTION_FLAG, &help, "print this"}};
    memcpy(options + n, own, sizeof own);
    if (!options_read(argc, argv, options, n + 2, NULL, 0)) return 2;
    if (help) return options_print(stdout, options, n + 2), 0;
    int ok = small_read(&lm, LONGER * lm.context + 1) && run_all(&lm, position);
    small_free(&lm);
    return !(ok && output_written());
}
