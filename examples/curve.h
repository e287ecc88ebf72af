/* A loss curve: kept as CSV line by line, and drawn as an SVG picture. */
#ifndef CURVE_H
#define CURVE_H

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct curve_point {
    double step, loss, valid; /* valid: NaN where it was not measured */
} curve_point;

typedef struct curve {
    curve_point *points;
    size_t n, capacity;
} curve;

static int curve_keep(curve *c, curve_point point) {
    if (c->n == c->capacity) {
        size_t capacity = c->capacity * 2 + 256;
        curve_point *room = (curve_point *)realloc(c->points, capacity * sizeof *room);
        if (!room) return fprintf(stderr, "not enough memory for the curve\n"), 0;
        c->points = room;
        c->capacity = capacity;
    }
    c->points[c->n++] = point;
    return 1;
}

static int curve_failed(const char *path) {
    return fprintf(stderr, "%s cannot be written: %s\n", path, strerror(errno)), 0;
}

static void curve_print(FILE *csv, const curve_point *p) {
    fprintf(csv, "%.0f,%.6f,", p->step, p->loss);
    if (p->valid == p->valid) fprintf(csv, "%.6f", p->valid);
    fprintf(csv, "\n");
}

/* A file is written as PATH.tmp and then renamed, so that a full disk leaves the old one as it was. */
static FILE *curve_begin(const char *path, char *temporary, size_t size) {
    FILE *file;
    errno = 0;
    if ((size_t)snprintf(temporary, size, "%s.tmp", path) >= size) errno = ENAMETOOLONG;
    file = errno ? NULL : fopen(temporary, "w");
    if (!file) curve_failed(path);
    return file;
}

static int curve_publish(FILE *file, const char *temporary, const char *path) {
    int failed = ferror(file);
    if (fclose(file) == 0 && !failed && rename(temporary, path) == 0) return 1;
    curve_failed(path);
    remove(temporary);
    return 0;
}

/* Begins a CSV, or with last_step >= 0 goes on with one: its lines up to that step are kept. */
static int curve_open(curve *c, const char *path, double last_step) {
    FILE *csv = last_step >= 0 ? fopen(path, "r") : NULL;
    char line[256], temporary[2048];
    size_t i;
    while (csv && fgets(line, sizeof line, csv)) {
        curve_point p;
        int fields = sscanf(line, "%lf,%lf,%lf", &p.step, &p.loss, &p.valid);
        if (fields == 2) p.valid = NAN;
        if (fields >= 2 && p.step <= last_step && !curve_keep(c, p)) return fclose(csv), 0;
    }
    if (csv) fclose(csv);
    csv = curve_begin(path, temporary, sizeof temporary);
    if (!csv) return 0;
    fprintf(csv, "step,loss,kept_back\n");
    for (i = 0; i < c->n; i++) curve_print(csv, &c->points[i]);
    return curve_publish(csv, temporary, path);
}

static int curve_add(curve *c, const char *path, double step, double loss, double valid) {
    curve_point p = {step, loss, valid};
    FILE *csv;
    if (!curve_keep(c, p)) return 0;
    csv = fopen(path, "a");
    if (!csv) return curve_failed(path);
    curve_print(csv, &p);
    return fclose(csv) == 0 || curve_failed(path);
}

static void curve_line(FILE *svg, const curve *c, int which, double top, double bottom, const char *colour) {
    double last = c->points[c->n - 1].step;
    size_t i;
    fprintf(svg, "<polyline fill='none' stroke='%s' stroke-width='1.5' points='", colour);
    for (i = 0; i < c->n; i++) {
        double y = which ? c->points[i].valid : c->points[i].loss;
        if (y == y)
            fprintf(svg, "%.1f,%.1f ", 60 + 700 * c->points[i].step / last,
                    20 + 320 * (top - y) / (top - bottom));
    }
    fprintf(svg, "'/>\n");
}

/* Draws both curves, loss over steps. Fewer than two points are no curve, and no picture. */
static int curve_svg(const curve *c, const char *path) {
    double top = -1e30, bottom = 1e30;
    char temporary[2048];
    FILE *svg;
    size_t i;
    int tick;
    for (i = 0; i < c->n; i++) {
        const curve_point *p = &c->points[i];
        top = fmax(top, fmax(p->loss, p->valid == p->valid ? p->valid : p->loss));
        bottom = fmin(bottom, fmin(p->loss, p->valid == p->valid ? p->valid : p->loss));
    }
    if (c->n < 2 || !(top > bottom)) return 1;
    svg = curve_begin(path, temporary, sizeof temporary);
    if (!svg) return 0;
    fprintf(svg, "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 800 400' font-family='sans-serif' "
                 "font-size='12'>\n"
                 "<rect width='800' height='400' fill='white'/>\n");
    for (tick = 0; tick <= 5; tick++) {
        double y = 20 + 64.0 * tick, x = 60 + 140.0 * tick;
        fprintf(svg, "<line x1='60' x2='760' y1='%.0f' y2='%.0f' stroke='#ddd'/>\n", y, y);
        fprintf(svg, "<text x='52' y='%.0f' text-anchor='end'>%.2f</text>\n", y + 4,
                top - (top - bottom) * tick / 5);
        fprintf(svg, "<text x='%.0f' y='358' text-anchor='middle'>%.0f</text>\n", x,
                c->points[c->n - 1].step * tick / 5);
    }
    curve_line(svg, c, 0, top, bottom, "#9ab");
    curve_line(svg, c, 1, top, bottom, "#c33");
    fprintf(svg, "<text x='410' y='382' text-anchor='middle'>step</text>\n"
                 "<text x='640' y='40' fill='#9ab'>loss of a batch</text>\n"
                 "<text x='640' y='58' fill='#c33'>of the text kept back</text>\n</svg>\n");
    return curve_publish(svg, temporary, path);
}

static void curve_free(curve *c) { free(c->points); }

#endif
