/* WiSE-FT (Wortsman et al. 2022, "Robust Fine-tuning of Zero-shot Models"): after a fine-tuning, the weights
   (1 - a) before + a after for a = 0, 0.1 ... 1, with the classifier as it was trained. What is best on dev is kept.
       build/interpolate --task sst --curve wise.csv --picture wise.svg */
#include "common/tuning.h"
#include "../common/plot.h"
#include "../common/progress.h"
#include "../common/report.h"

enum { TENTHS = 10 };

typedef struct interpolation {
    const char *curve, *picture;
    float *before,
        *after; /* (n_model), (tuning_count): the model's numbers come first, then the classifier's */
    size_t n_model;
    tuning_result at[TENTHS + 1];
} interpolation;

static interpolation *interpolation_of(tuning *t) { return (interpolation *)t->method.state; }

/* The files are tried before the training, which they would come too late for. */
static int ready(tuning *t) {
    const interpolation *s = interpolation_of(t);
    const tuning_settings *set = &t->set;
    const used_file outputs[] = {{"--curve", s->curve},
                                 {"--picture", s->picture},
                                 {"--csv", set->csv},
                                 {"--save", set->save},
                                 {"--save_model", set->save_model}};
    return tuning_spares_inputs(t, outputs, 5);
}

static int setup(tuning *t) {
    interpolation *s = interpolation_of(t);
    if (!tuning_train_model(t, 0)) return 0;
    s->n_model = (size_t)tuning_count(t);
    s->before = (float *)malloc(s->n_model * sizeof *s->before);
    if (!s->before) return no_memory("the weights");
    tuning_copy(t, s->before);
    return 1;
}

/* to (tuning_count) = the weights for a = tenths / 10 */
static void mix(const interpolation *s, size_t n, int tenths, float *to) {
    float a = (float)tenths / TENTHS;
    for (size_t i = 0; i < n; i++)
        to[i] = i < s->n_model && tenths < TENTHS ? (1 - a) * s->before[i] + a * s->after[i] : s->after[i];
}

/* Measures all mixtures; *best: the one that is best on dev, the largest of several. */
static int measure(tuning *t, float *mixed, int *best) {
    interpolation *s = interpolation_of(t);
    *best = 0;
    for (int i = 0; i <= TENTHS; i++) {
        tuning_result *r = &s->at[i];
        mix(s, (size_t)tuning_count(t), i, mixed);
        tuning_paste(t, mixed);
        *r = t->result;
        r->dev = tuning_measure(t, &t->dev, NULL);
        r->test = tuning_measure(t, &t->test, NULL);
        if (t->gold) r->gold = tuning_measure(t, &t->test, t->gold);
        if (r->dev < 0 || r->test < 0 || (t->gold && r->gold < 0)) return 0;
        printf("a = %.1f: dev %.3f, test %.3f\n", (double)i / TENTHS, r->dev, r->test);
        if (r->dev >= s->at[*best].dev) *best = i;
    }
    mix(s, (size_t)tuning_count(t), *best, mixed);
    tuning_paste(t, mixed);
    return 1;
}

static int write_curve(const interpolation *s) {
    whole_file file;
    if (!whole_file_begin(&file, s->curve)) return 0;
    fprintf(file.to, "a,dev,test,gold\n");
    for (int i = 0; i <= TENTHS; i++) {
        fprintf(file.to, "%.1f,%.4f,%.4f,", (double)i / TENTHS, s->at[i].dev, s->at[i].test);
        fprintf(file.to, s->at[i].gold >= 0 ? "%.4f\n" : "\n", s->at[i].gold);
    }
    return whole_file_end(&file);
}

/* Accuracy on dev and test over a. */
static int draw_curve(const interpolation *s) {
    static const plot_style styles[] = {{PLOT_BLUE, "none", 2.5, 1, 'o'}, {PLOT_ORANGE, "6 4", 2, 1, 's'}};
    double x[TENTHS + 1], y[2][TENTHS + 1], least = 1, most = 0;
    plot p;
    for (int i = 0; i <= TENTHS; i++) {
        x[i] = (double)i / TENTHS, y[0][i] = s->at[i].dev,
        y[1][i] = s->at[i].gold >= 0 ? s->at[i].gold : s->at[i].test;
        for (int k = 0; k < 2; k++) least = fmin(least, y[k][i]), most = fmax(most, y[k][i]);
    }
    const plot_panel panel = {0, PLOT_WIDTH, "", plot_axis_of("a: share of the fine-tuned weights", 0, 1, 10),
                              plot_axis_of("accuracy", least, fmax(most, least + 0.01), 6)};
    if (!plot_begin(&p, s->picture, "WiSE-FT: between the weights before and after fine-tuning")) return 0;
    plot_panel_begin(&p, &panel);
    for (int k = 0; k < 2; k++) {
        plot_line(&p, &styles[k], x, y[k], TENTHS + 1);
        plot_legend(&p, &styles[k], k ? "test" : "dev");
    }
    return plot_end(&p);
}

static int interpolate(tuning *t) {
    interpolation *s = interpolation_of(t);
    size_t n = (size_t)tuning_count(t);
    float *mixed = (float *)malloc(n * sizeof *mixed);
    double began = seconds_now(), cpu_began = cpu_seconds_now();
    int best;
    s->after = (float *)malloc(n * sizeof *s->after);
    if (!mixed || !s->after) return free(mixed), no_memory("the weights");
    tuning_copy(t, s->after);
    int ok = measure(t, mixed, &best);
    double seconds = seconds_now() - began, cpu_seconds = cpu_seconds_now() - cpu_began;
    if (ok) printf("fine-tuned: dev %.3f; kept: a = %.1f\n", t->result.dev, (double)best / TENTHS);
    if (ok) t->result = s->at[best];
    t->result.seconds += seconds, t->result.cpu_seconds += cpu_seconds; /* the choice is part of the method */
    free(mixed);
    return ok;
}

/* After the report: the result is known, even where these cannot be written. */
static int write_files(tuning *t) {
    const interpolation *s = interpolation_of(t);
    int is_written = !s->curve || write_curve(s);
    return (!s->picture || draw_curve(s)) && is_written;
}

static tuning_method method_of(interpolation *state) {
    tuning_method method = {0};
    method.program = "interpolate";
    method.name = "wise-ft";
    method.state = state;
    method.ready = ready;
    method.setup = setup;
    method.trained = interpolate;
    method.finish = write_files;
    return method;
}

static void interpolation_free(interpolation *s) { free(s->before), free(s->after); }

int main(int argc, char **argv) {
    interpolation s;
    memset(&s, 0, sizeof s);
    const option own[] = {
        {"--curve", OPTION_TEXT, &s.curve, "write the accuracies for each a to this CSV file"},
        {"--picture", OPTION_TEXT, &s.picture, "draw them in this SVG file"}};
    const tuning_method method = method_of(&s);
    int status = tuning_main(argc, argv, &method, own, 2);
    interpolation_free(&s);
    return status;
}
