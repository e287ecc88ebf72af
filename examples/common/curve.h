/* A loss curve: kept as CSV, one line for each point, and drawn as an SVG picture. */
#ifndef CURVE_H
#define CURVE_H

#include <math.h>
#include "plot.h"

typedef struct curve_point {
    double step, loss, valid; /* valid: NaN where it was not measured */
} curve_point;

typedef struct curve {
    curve_point *points;
    size_t n, capacity;
} curve;

static inline int curve_keep(curve *c, curve_point point) {
    curve_point *room = (curve_point *)grow(c->points, c->n + 1, &c->capacity, sizeof *room);
    if (!room) return no_memory("the loss curve");
    c->points = room;
    room[c->n++] = point;
    return 1;
}

static inline void curve_print(FILE *csv, const curve_point *p) {
    fprintf(csv, "%.0f,%.6f,", p->step, p->loss);
    if (!isnan(p->valid)) fprintf(csv, "%.6f", p->valid);
    fprintf(csv, "\n");
}

/* Adds the points of a CSV up to that step; a file that is not there has none. */
static inline int curve_read(curve *c, const char *path, double last_step) {
    FILE *csv = system_open(path, "r");
    char line[256];
    while (csv && fgets(line, sizeof line, csv)) {
        curve_point p;
        int fields = sscanf(line, "%lf,%lf,%lf", &p.step, &p.loss, &p.valid);
        if (fields == 2) p.valid = NAN;
        if (fields >= 2 && p.step <= last_step && !curve_keep(c, p)) return fclose(csv), 0;
    }
    int is_read = !csv || !ferror(csv) || complain("%s: %s", path, strerror(errno));
    if (csv) fclose(csv);
    return is_read;
}

/* Begins a CSV with the points so far, in place of what was there. */
static inline int curve_begin(const curve *c, const char *path) {
    whole_file whole;
    if (!whole_file_begin(&whole, path)) return 0;
    fprintf(whole.to, "step,loss,kept_back\n");
    for (size_t i = 0; i < c->n; i++) curve_print(whole.to, &c->points[i]);
    return whole_file_end(&whole);
}

static inline int curve_add(curve *c, const char *path, double step, double loss, double valid) {
    curve_point p = {step, loss, valid};
    if (!curve_keep(c, p)) return 0;
    FILE *csv = system_open(path, "a");
    if (!csv) return whole_file_failed(path);
    curve_print(csv, &p);
    return fclose(csv) == 0 || whole_file_failed(path);
}

/* The loss of batches at point i without their noise: the value there of a line fitted to the neighbors, of which the
   near ones count most (local linear regression; Cleveland 1979). `width` is in points. */
static inline double curve_smooth(const double *loss, size_t n, size_t i, double width) {
    size_t reach = (size_t)(3 * width) + 1;
    double w = 0, wx = 0, wy = 0, wxx = 0, wxy = 0;
    for (size_t j = i > reach ? i - reach : 0; j < n && j <= i + reach; j++) {
        double x = (double)j - (double)i, weight = exp(-0.5 * x * x / (width * width));
        w += weight, wx += weight * x, wxx += weight * x * x;
        wy += weight * loss[j], wxy += weight * x * loss[j];
    }
    return n > 1 ? (wxx * wy - wx * wxy) / (w * wxx - wx * wx) : loss[i];
}

/* "Training loss of NAME", from NAME.svg in some folder. */
static inline void curve_title(const char *path, char *to, size_t size) {
    const char *name = file_name(path);
    size_t n = strlen(name) - (ends_with(name, ".svg") ? 4 : 0);
    snprintf(to, size, "Training loss of %.*s", (int)(n < 200 ? n : 200), name);
}

/* xs, batch, smooth, valid: n each. */
static inline int curve_draw(const char *path, const double *data, size_t n, const double *range) {
    static const plot_style light = {PLOT_BLUE, "none", 1, 0.5, 0}, line = {PLOT_BLUE, "none", 2.5, 1, 0},
                            held = {PLOT_RED, "8 4", 2.5, 1, 0};
    const double *x = data, *batch = data + n, *smooth = data + 2 * n, *valid = data + 3 * n;
    plot_panel panel = {0, PLOT_WIDTH, "", plot_axis_whole("training step", 0, x[n - 1]),
                        plot_axis_of("loss (nats per token)", range[0], range[1], 6)};
    char title[256];
    plot p;
    int has_valid = 0;
    curve_title(path, title, sizeof title);
    if (!plot_begin(&p, path, title)) return 0;
    plot_panel_begin(&p, &panel);
    plot_line(&p, &light, x, batch, n);
    plot_line(&p, &line, x, smooth, n);
    plot_legend(&p, &light, "single batches");
    plot_legend(&p, &line, "batches, smoothed");
    for (size_t i = 0; i < n; i++) has_valid |= isfinite(valid[i]) != 0;
    if (has_valid) {
        plot_line(&p, &held, x, valid, n);
        plot_legend(&p, &held, "text kept back");
    }
    return plot_end(&p);
}

/* Whether there is something to draw: two losses that differ. */
static inline int curve_is_drawn(const curve *c) {
    double range[2] = {INFINITY, -INFINITY};
    for (size_t i = 0; i < c->n; i++) {
        if (!isfinite(c->points[i].loss)) continue;
        range[0] = fmin(range[0], c->points[i].loss);
        range[1] = fmax(range[1], c->points[i].loss);
    }
    return range[1] - range[0] > 1e-6 * fmax(1, fabs(range[1]));
}

/* The step of the last loss, at which a picture ends. */
static inline double curve_last_step(const curve *c) {
    size_t n = c->n;
    while (n && !isfinite(c->points[n - 1].loss)) n--;
    return n ? c->points[n - 1].step : 0;
}

/* Draws loss and validation loss over steps. Fewer than two points, a flat line, or a last step that is not above 0
   give no picture. */
static inline int curve_svg(const curve *c, const char *path) {
    size_t n = 0;
    double range[2] = {1e30, -1e30}, *data = (double *)malloc((c->n ? c->n : 1) * 4 * sizeof *data);
    if (!data) return no_memory("the picture of the loss");
    for (size_t i = 0; i < c->n; i++) n += isfinite(c->points[i].loss) != 0;
    for (size_t i = 0, to = 0; i < c->n; i++) {
        const curve_point *at = &c->points[i];
        if (!isfinite(at->loss)) continue;
        data[to] = at->step, data[n + to] = at->loss, data[3 * n + to] = at->valid;
        to++;
    }
    for (size_t i = 0; i < n; i++)
        data[2 * n + i] = curve_smooth(data + n, n, i, fmin(20, fmax(1.5, (double)n / 15)));
    for (size_t i = n; i < 4 * n; i++) {
        if (!isfinite(data[i])) continue;
        range[0] = fmin(range[0], data[i]);
        range[1] = fmax(range[1], data[i]);
    }
    int is_flat = !(range[1] - range[0] > 1e-6 * fmax(1, fabs(range[1])));
    int ok = n < 2 || is_flat || !(data[n - 1] > 0) || curve_draw(path, data, n, range);
    free(data);
    return ok;
}

static inline void curve_free(curve *c) { free(c->points); }

#endif
