/* Line charts as SVG pictures: a sheet with a title and one legend, and on it panels side by side, each with its own
   axes. Ticks are round numbers. Colors are of a set that color-blind readers tell apart (Okabe & Ito 2008), and lines
   also differ without color: by darkness, dashes or marks. */
#ifndef PLOT_H
#define PLOT_H

#include <math.h>
#include "file.h"

#define PLOT_BLUE "#0072b2"
#define PLOT_ORANGE "#e69f00"
#define PLOT_RED "#d55e00"
#define PLOT_GRAY "#777777"

enum { PLOT_WIDTH = 960, PLOT_HEIGHT = 420, PLOT_TOP = 104, PLOT_BOTTOM = 350, PLOT_MARGIN = 76 };

typedef struct plot_axis {
    const char *title;     /* with its unit */
    double from, to, step; /* step: between two ticks */
} plot_axis;

typedef struct plot_style {
    const char *color, *dashes; /* dashes: as stroke-dasharray has them, or "none" */
    double width, opacity;
    char mark; /* at each point: 'o' a disk, 's' a hollow square, 0 nothing */
} plot_style;

typedef struct plot_panel {
    double at, width;  /* on the sheet, with everything that belongs to it */
    const char *title; /* may be "" */
    plot_axis x, y;
} plot_panel;

typedef struct plot {
    whole_file svg;
    plot_panel panel; /* the one being drawn on */
    double legend;    /* where the next entry goes */
} plot;

/* ---- axes ---- */

/* 1, 2 or 5 times a power of ten: the smallest step that divides the range into at most n parts. */
static inline double plot_step(double range, int n) {
    double power = pow(10, floor(log10(range / n)));
    static const double steps[] = {1, 2, 5, 10};
    int i = 0;
    while (i < 3 && steps[i] * power < range / n * (1 - 1e-9)) i++;
    return steps[i] * power;
}

/* An axis from `least` to `most`, which must differ. Both ends are moved outward to a tick. */
static inline plot_axis plot_axis_of(const char *title, double least, double most, int n) {
    plot_axis axis = {title, 0, 0, plot_step(most - least, n)};
    axis.from = axis.step * floor(least / axis.step + 1e-9);
    axis.to = axis.step * ceil(most / axis.step - 1e-9);
    return axis;
}

/* An axis of whole numbers that ends where the data do. */
static inline plot_axis plot_axis_whole(const char *title, double from, double to) {
    plot_axis axis = {title, from, to, fmax(1, plot_step(to - from, 8))};
    return axis;
}

/* A tick's number: as many decimals as the step has; thousands are separated. */
static inline const char *plot_number(double value, double step, char *to, size_t size) {
    char digits[64];
    int decimals = step < 1 ? (int)ceil(-log10(step) - 1e-9) : 0;
    size_t n = 0;
    snprintf(digits, sizeof digits, "%.*f", decimals, fabs(value) < step / 2 ? 0 : value);
    size_t whole = strcspn(digits, ".");
    for (size_t i = 0; digits[i] && n + 2 < size; i++) {
        if (i && i < whole && (whole - i) % 3 == 0 && digits[i - 1] != '-') to[n++] = ',';
        to[n++] = digits[i];
    }
    to[n] = 0;
    return to;
}

/* ---- the sheet ---- */

/* Text inside of an element; at most n bytes, without a part of a character. */
static inline void plot_escaped(FILE *to, const char *text, size_t n) {
    size_t length = strlen(text), end = length < n ? length : n;
    while (end < length && end && ((unsigned char)text[end] & 0xc0) == 0x80) end--;
    for (size_t i = 0; i < end; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '<' || c == '>' || c == '&' || c == '\'')
            fprintf(to, "&#%d;", c);
        else
            fputc(c < ' ' ? '?' : c, to);
    }
    if (end < length) fputs("...", to);
}

/* attributes: those of its place. */
static inline void plot_text(plot *p, const char *attributes, double x, double y, const char *text) {
    fprintf(p->svg.to, "<text x='%.0f' y='%.0f' %s>", x, y, attributes);
    plot_escaped(p->svg.to, text, 90);
    fputs("</text>\n", p->svg.to);
}

static inline int plot_begin(plot *p, const char *path, const char *title) {
    if (!whole_file_begin(&p->svg, path)) return 0;
    p->legend = PLOT_MARGIN;
    fprintf(p->svg.to,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 %d %d' font-family='sans-serif' "
            "font-size='13' fill='#333'>\n<rect width='%d' height='%d' fill='white'/>\n",
            PLOT_WIDTH, PLOT_HEIGHT, PLOT_WIDTH, PLOT_HEIGHT);
    plot_text(p, "font-size='16' font-weight='bold'", PLOT_MARGIN, 30, title);
    return 1;
}

static inline int plot_end(plot *p) {
    fprintf(p->svg.to, "</svg>\n");
    return whole_file_end(&p->svg);
}

/* ---- a panel ---- */

static inline double plot_x(const plot *p, double x) {
    const plot_axis *axis = &p->panel.x;
    double left = p->panel.at + PLOT_MARGIN, right = p->panel.at + p->panel.width - 36;
    return left + (right - left) * (x - axis->from) / (axis->to - axis->from);
}

static inline double plot_y(const plot *p, double y) {
    const plot_axis *axis = &p->panel.y;
    return PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * (y - axis->from) / (axis->to - axis->from);
}

static inline void plot_rule(plot *p, double x1, double y1, double x2, double y2, const char *color) {
    fprintf(p->svg.to, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s'/>\n", x1, y1, x2, y2,
            color);
}

/* Draws the axes; lines are drawn on them from now on. */
static inline void plot_panel_begin(plot *p, const plot_panel *panel) {
    char number[80], turn[80];
    const plot_axis *x = &panel->x, *y = &panel->y;
    p->panel = *panel;
    double left = plot_x(p, x->from), right = plot_x(p, x->to), middle = (PLOT_TOP + PLOT_BOTTOM) / 2.0;
    for (double at = y->from; at < y->to + y->step / 2; at += y->step) {
        plot_rule(p, left, plot_y(p, at), right, plot_y(p, at), "#e4e4e4");
        plot_text(p, "text-anchor='end'", left - 8, plot_y(p, at) + 4,
                  plot_number(at, y->step, number, sizeof number));
    }
    plot_rule(p, left, PLOT_BOTTOM, right, PLOT_BOTTOM, "#777");
    for (double at = x->step * ceil(x->from / x->step); at < x->to + x->step * 1e-6; at += x->step) {
        plot_rule(p, plot_x(p, at), PLOT_BOTTOM, plot_x(p, at), PLOT_BOTTOM + 5, "#777");
        plot_text(p, "text-anchor='middle'", plot_x(p, at), PLOT_BOTTOM + 20,
                  plot_number(at, x->step, number, sizeof number));
    }
    snprintf(turn, sizeof turn, "text-anchor='middle' transform='rotate(-90 %.0f %.0f)'", left - 56, middle);
    plot_text(p, turn, left - 56, middle, y->title);
    plot_text(p, "text-anchor='middle'", (left + right) / 2, PLOT_BOTTOM + 46, x->title);
    if (*panel->title) plot_text(p, "font-weight='bold'", left, PLOT_TOP - 14, panel->title);
}

/* ---- lines ---- */

static inline void plot_stroke(plot *p, const plot_style *s) {
    fprintf(p->svg.to,
            " fill='none' stroke='%s' stroke-width='%.1f' stroke-opacity='%.2f' stroke-dasharray='%s'",
            s->color, s->width, s->opacity, s->dashes);
}

static inline void plot_mark(plot *p, const plot_style *s, double x, double y) {
    if (s->mark == 'o')
        fprintf(p->svg.to, "<circle cx='%.1f' cy='%.1f' r='3.5' fill='%s'/>\n", x, y, s->color);
    if (s->mark == 's')
        fprintf(
            p->svg.to,
            "<rect x='%.1f' y='%.1f' width='7' height='7' fill='white' stroke='%s' stroke-width='1.5'/>\n",
            x - 3.5, y - 3.5, s->color);
}

/* A line through n points; one whose y is not finite is left out. */
static inline void plot_line(plot *p, const plot_style *s, const double *x, const double *y, size_t n) {
    fputs("<polyline", p->svg.to);
    plot_stroke(p, s);
    fputs(" points='", p->svg.to);
    for (size_t i = 0; i < n; i++)
        if (isfinite(y[i])) fprintf(p->svg.to, "%.1f,%.1f ", plot_x(p, x[i]), plot_y(p, y[i]));
    fputs("'/>\n", p->svg.to);
    for (size_t i = 0; s->mark && i < n; i++)
        if (isfinite(y[i])) plot_mark(p, s, plot_x(p, x[i]), plot_y(p, y[i]));
}

/* The next entry of the legend, all in one row. */
static inline void plot_legend(plot *p, const plot_style *s, const char *name) {
    double from = p->legend, to = from + 36;
    fprintf(p->svg.to, "<line x1='%.1f' y1='55' x2='%.1f' y2='55'", from, to);
    plot_stroke(p, s);
    fputs("/>\n", p->svg.to);
    plot_mark(p, s, (from + to) / 2, 55);
    plot_text(p, "", to + 8, 59, name);
    p->legend = to + 8 + 7.2 * (double)strlen(name) + 20; /* a letter is hardly wider */
}

#endif
