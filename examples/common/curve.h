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

/* Begins a CSV, or with last_step >= 0 continues one: its lines up to that step are kept. */
static inline int curve_open(curve *c, const char *path, double last_step) {
    FILE *csv = last_step >= 0 ? fopen(path, "r") : NULL;
    char line[256];
    while (csv && fgets(line, sizeof line, csv)) {
        curve_point p;
        int fields = sscanf(line, "%lf,%lf,%lf", &p.step, &p.loss, &p.valid);
        if (fields == 2) p.valid = NAN;
        if (fields >= 2 && p.step <= last_step && !curve_keep(c, p)) return fclose(csv), 0;
    }
    if (csv) fclose(csv);
    whole_file whole;
    if (!whole_file_begin(&whole, path)) return 0;
    fprintf(whole.to, "step,loss,kept_back\n");
    for (size_t i = 0; i < c->n; i++) curve_print(whole.to, &c->points[i]);
    return whole_file_end(&whole);
}

static inline int curve_add(curve *c, const char *path, double step, double loss, double valid) {
    curve_point p = {step, loss, valid};
    if (!curve_keep(c, p)) return 0;
    FILE *csv = fopen(path, "a");
    if (!csv) return whole_file_failed(path);
    curve_print(csv, &p);
    return fclose(csv) == 0 || whole_file_failed(path);
}

static inline void curve_line(plot *p, const curve *c, int which, const char *name, const char *color) {
    plot_line(p, name, color);
    for (size_t i = 0; i < c->n; i++) {
        double y = which ? c->points[i].valid : c->points[i].loss;
        if (!isnan(y)) plot_point(p, c->points[i].step, y);
    }
    plot_line_end(p);
}

/* Draws loss and validation loss over steps. Fewer than two points, or a flat line, give no picture. */
static inline int curve_svg(const curve *c, const char *path) {
    plot p = {{NULL, NULL, ""}, 0, 0, 1e30, -1e30, 0};
    for (size_t i = 0; i < c->n; i++) {
        const curve_point *at = &c->points[i];
        double valid = isnan(at->valid) ? at->loss : at->valid;
        p.top = fmax(p.top, fmax(at->loss, valid));
        p.bottom = fmin(p.bottom, fmin(at->loss, valid));
        p.right = at->step;
    }
    if (c->n < 2 || !(p.top > p.bottom)) return 1;
    if (!plot_begin(&p, path, "step")) return 0;
    curve_line(&p, c, 0, "loss of a batch", "#9ab");
    curve_line(&p, c, 1, "of the text kept back", "#c33");
    return plot_end(&p);
}

static inline void curve_free(curve *c) { free(c->points); }

#endif
