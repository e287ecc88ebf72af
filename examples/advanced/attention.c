/* Kinds of attention, trained from scratch at equal parameters: loss on text that was held out, and speed
   (in processor time, so that other programs do not count).

       build/attention --text FILE                          all kinds
       build/attention --text FILE --attention differential one

   standard; window: the last --window keys; sinks: these and the first 4 (Xiao et al. 2023); block: the blocks of
   --window keys that hold the query, and the first block, by a bias of -infinity; differential (Ye et al. 2024): the
   difference of two attentions, each with half of the heads; it has 4 vectors as long as a head more in each layer,
   less than a thousandth of the parameters by default, and the norm of its heads has no weights. */
#include "small_lm.h"

enum { KINDS = 5, TEXTS = 64, SINKS = 4, BUCKETS = 8 };
enum { STANDARD, WINDOW, WITH_SINKS, BLOCK, DIFFERENTIAL };
static const char *const names[KINDS] = {"standard", "window", "sinks", "block", "differential"};

typedef struct run {
    int kind, window;
    ml_tensor table; /* of rotations (context, hd) */
    float *hidden;   /* (rows * context, context): the bias of `block` */
} run;

/* lambda = exp(a . b) - exp(c . d) + initial, (1, 1); a, b, c, d are the layer's extras */
static ml_tensor make_lambda(ml_graph *g, const small_layer *l, float initial) {
    ml_tensor first = ml_exp(g, ml_sum(g, ml_mul(g, l->extra[0], l->extra[1])));
    ml_tensor second = ml_exp(g, ml_sum(g, ml_mul(g, l->extra[2], l->extra[3])));
    return ml_shift(g, ml_sub(g, first, second), initial);
}

/* Heads / 2 pairs of attentions over values that are twice as wide; each head's difference is normalized. */
static ml_tensor differential(ml_graph *g, small_lm *lm, int layer, ml_attention_desc desc) {
    size_t D = (size_t)lm->dim, half = D / 2, n = desc.q.rows, heads = (size_t)lm->n_heads / 2;
    float initial = 0.8f - 0.6f * expf(-0.3f * (float)layer); /* the paper has layer - 1, from 1 on */
    ml_tensor q = desc.q, k = desc.k;
    desc.n_heads = lm->n_heads / 2;
    desc.q = ml_slice(g, q, ML_COLS, 0, half), desc.k = ml_slice(g, k, ML_COLS, 0, half);
    ml_tensor first = ml_attention(g, &desc);
    desc.q = ml_slice(g, q, ML_COLS, half, D), desc.k = ml_slice(g, k, ML_COLS, half, D);
    ml_tensor second = ml_mul(g, ml_attention(g, &desc), make_lambda(g, &lm->layers[layer], initial));
    ml_tensor y = ml_reshape(g, ml_sub(g, first, second), n * heads, D / heads);
    return ml_reshape(g, ml_scale(g, ml_rms_norm(g, y, ml_none(), 1e-5f), 1 - initial), n, D);
}

static ml_tensor attend_kind(ml_graph *g, small_lm *lm, int layer, ml_tensor q, ml_tensor k, ml_tensor v) {
    const run *now = (const run *)lm->user;
    ml_attention_desc desc = {0};
    desc.q = ml_rotate(g, q, now->table, small_rows(lm));
    desc.k = ml_rotate(g, k, now->table, small_rows(lm));
    desc.v = v;
    desc.n_heads = lm->n_heads;
    desc.rows = small_rows(lm);
    if (now->kind == WINDOW || now->kind == WITH_SINKS) desc.window = now->window;
    if (now->kind == WITH_SINKS) desc.sinks = SINKS;
    if (now->kind == DIFFERENTIAL) return differential(g, lm, layer, desc);
    if (now->kind == BLOCK) {
        ml_tensor bias = {ML_F32, (size_t)(lm->n_rows * lm->length), (size_t)lm->context, now->hidden, NULL};
        desc.bias = bias;
    }
    return ml_attention(g, &desc);
}

/* Row t: 0 for the keys of the first block and of the query's own, -infinity for the others. */
static void fill_blocks(const small_lm *lm, run *now) {
    size_t context = (size_t)lm->context, window = (size_t)now->window;
    for (size_t t = 0; t < (size_t)lm->rows * context; t++)
        for (size_t j = 0; j < context; j++) {
            size_t block = j / window;
            int is_seen = block == 0 || block == t % context / window;
            now->hidden[t * context + j] = is_seen ? 0 : -INFINITY;
        }
}

/* Trains and evaluates one kind; a line of the table. losses (context) */
static int run_kind(small_lm *lm, run *now, double *losses, double *speed) {
    double loss = 0;
    lm->extra_cols = now->kind == DIFFERENTIAL ? now->table.cols : 0;
    if (!small_train(lm, names[now->kind], speed) || !small_evaluate(lm, lm->context, TEXTS, losses))
        return 0;
    for (int i = 0; i < lm->context; i++) loss += losses[i] / lm->context;
    printf("%-13s %9zu  %6.3f  %8.0f\n", names[now->kind], lm->n_weights, loss, *speed);
    fflush(stdout);
    return 1;
}

static int write_csv(const small_lm *lm, const double *losses, const double *speeds) {
    whole_file file;
    if (!whole_file_begin(&file, lm->csv)) return 0;
    fprintf(file.to, "attention,position,loss,tokens_per_second\n");
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < lm->context && speeds[kind] > 0; i++)
            fprintf(file.to, "%s,%d,%.4f,%.0f\n", names[kind], i, losses[kind * lm->context + i],
                    speeds[kind]);
    return whole_file_end(&file);
}

static int draw(const small_lm *lm, const double *losses, const double *speeds) {
    static const plot_style styles[KINDS] = {{PLOT_BLUE, "none", 2, 1, 'o'},
                                             {PLOT_ORANGE, "none", 2, 1, 0},
                                             {PLOT_ORANGE, "6 4", 2, 1, 0},
                                             {PLOT_GRAY, "none", 2, 1, 's'},
                                             {PLOT_RED, "none", 2, 1, 's'}};
    double x[BUCKETS], y[KINDS][BUCKETS] = {{0}}, least = 1e9, most = 0;
    int step = lm->context / BUCKETS;
    for (int kind = 0; kind < KINDS; kind++)
        for (int b = 0; b < BUCKETS && speeds[kind] > 0; b++) {
            x[b] = (b + .5) * step;
            for (int i = 0; i < step; i++) y[kind][b] += losses[kind * lm->context + b * step + i] / step;
            least = fmin(least, y[kind][b]), most = fmax(most, y[kind][b]);
        }
    plot p;
    if (!plot_begin(&p, lm->svg, "Loss by position, kinds of attention at equal parameters")) return 0;
    plot_panel panel = {0, PLOT_WIDTH, "", plot_axis_whole("position (tokens)", 0, lm->context),
                        plot_axis_of("loss (nats per token)", least, most + 1e-6, 6)};
    plot_panel_begin(&p, &panel);
    for (int kind = 0; kind < KINDS; kind++)
        if (speeds[kind] > 0)
            plot_line(&p, &styles[kind], x, y[kind], BUCKETS), plot_legend(&p, &styles[kind], names[kind]);
    return plot_end(&p);
}

static int is_wanted(const char *attention, int kind) {
    return strcmp(attention, "all") == 0 || option_same(attention, names[kind]);
}

/* All kinds that were asked for. */
static int run_all(small_lm *lm, const char *attention, int window) {
    size_t context = (size_t)lm->context, hd = (size_t)(lm->dim / lm->n_heads),
           n = context * (size_t)lm->rows;
    double *losses = (double *)calloc(KINDS * context, sizeof *losses), speeds[KINDS] = {0};
    float *table = (float *)malloc(context * hd * sizeof *table);
    int has_blocks = is_wanted(attention, BLOCK);
    float *hidden = has_blocks ? (float *)malloc(n * context * sizeof *hidden) : NULL;
    run now = {0, window, {ML_F32, context, hd, table, NULL}, hidden};
    ml_rope_desc rope = {ML_ROPE_PLAIN, hd, 0, 0, 0, 0, 0, 0, NULL};
    int found = 0, ok = (losses && table && (hidden || !has_blocks)) || no_memory("results");
    if (ok) ml_rope_table(&rope, table, lm->context);
    if (ok && has_blocks) fill_blocks(lm, &now);
    lm->user = &now;
    lm->attend = attend_kind;
    printf("attention    parameters    loss  tokens/s of processor time\n");
    for (int kind = 0; kind < KINDS && ok; kind++) {
        if (!is_wanted(attention, kind)) continue;
        now.kind = kind;
        ok = run_kind(lm, &now, losses + (size_t)kind * context, &speeds[kind]);
        found = 1;
    }
    if (ok && !found)
        ok = complain("--attention %s is not standard, window, sinks, block, differential or all", attention);
    ok = ok && (!lm->csv || write_csv(lm, losses, speeds)) && (!lm->svg || draw(lm, losses, speeds));
    free(losses);
    free(table);
    free(hidden);
    return ok;
}

int main(int argc, char **argv) {
    small_lm lm;
    const char *attention = "all";
    int help = 0, window = 32, n;
    option options[SMALL_OPTIONS + 3];
    small_defaults(&lm);
    lm.context = 128, lm.rows = 8;
    n = small_options(&lm, options);
    option own[3] = {{"--attention", OPTION_TEXT, (void *)&attention,
                      "standard, window, sinks, block, differential or all (default)"},
                     {"--window", OPTION_INT, &window, "keys of a window or a block (default 32)"},
                     {"--help", OPTION_FLAG, &help, "print this"}};
    memcpy(options + n, own, sizeof own);
    if (!options_read(argc, argv, options, n + 3, NULL, 0)) return 2;
    if (help) return options_print(stdout, options, n + 3), 0;
    if (window < 1 || lm.n_heads % 2) return !complain("--window is at least 1, and --heads even");
    if ((option_same(attention, names[STANDARD]) || option_same(attention, names[DIFFERENTIAL])) &&
        option_given(argc, argv, options, n + 3, "--window"))
        return !complain("--window: --attention %s has none", attention);
    int ok = small_read(&lm, lm.context + 1) && run_all(&lm, attention, window);
    small_free(&lm);
    return !(ok && output_written());
}
