/* What the lessons share: checks that count and a small SVG writer. Nothing of the network is in here.

   A lesson: check(...) what must hold, check_near(...) two numbers, and `return lesson_end();` at the end of main.
   A picture: svg_begin, then what it shows, then svg_end. x grows to the right, y downward, in pixels; colors are CSS
   ("black", "#666"). Choose grays and dashes rather than hues: the pages are printed. */
#ifndef LESSON_H
#define LESSON_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#if defined(__GNUC__)
#define LESSON_FORMAT(text, first) __attribute__((format(printf, text, first)))
#else
#define LESSON_FORMAT(text, first)
#endif

static int lesson_checks, lesson_wrong; /* so far */

/* Prints "  ok   TEXT", or "  WRONG TEXT" where `ok` is 0, and counts. Returns ok. */
LESSON_FORMAT(2, 3) static inline int check(int ok, const char *format, ...) {
    va_list arguments;
    lesson_checks++;
    lesson_wrong += !ok;
    printf(ok ? "  ok    " : "  WRONG ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    return ok;
}

/* Whether `got` is within `tolerance` of `wanted`; prints both. Not a number is never near. */
static inline int check_near(double got, double wanted, double tolerance, const char *what) {
    return check(fabs(got - wanted) <= tolerance, "%s: got %.6g, wanted %.6g (within %.1g)", what, got,
                 wanted, tolerance);
}

/* The larger one; infinite if b is not a number, which fmax would overlook. */
static inline double larger(double a, double b) { return b != b ? HUGE_VAL : b > a ? b : a; }

/* The closing line; returns main's exit status. */
static inline int lesson_end(void) {
    if (lesson_wrong)
        printf("%d of %d checks are WRONG\n", lesson_wrong, lesson_checks);
    else
        printf("all %d checks hold\n", lesson_checks);
    return lesson_wrong != 0;
}

/* ---- the picture ---- */

typedef struct svg {
    FILE *file; /* NULL: could not be written */
    const char *path;
} svg;

/* Opens the picture, white, with the title on top (20 pixels from the left, in the first 40 from above). */
static inline int svg_begin(svg *s, const char *path, int width, int height, const char *title);

/* Text at (x, y), the left end of its base line for anchor "start"; also "middle" and "end". Size in pixels. */
LESSON_FORMAT(6, 7)
static inline void svg_text(svg *s, double x, double y, const char *anchor, double size, const char *format,
                            ...) {
    va_list arguments;
    char text[512];
    const char *c;
    if (!s->file) return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(s->file,
            "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%g\" xml:space=\"preserve\">", x, y,
            anchor, size);
    for (c = text; *c; c++) {
        if (*c == '&')
            fputs("&amp;", s->file);
        else if (*c == '<')
            fputs("&lt;", s->file);
        else
            fputc(*c, s->file);
    }
    fputs("</text>\n", s->file);
}

/* Until svg_turn(s, 0, 0, 0), what is drawn is turned by `degrees` (clockwise) about (x, y). */
static inline void svg_turn(svg *s, double degrees, double x, double y) {
    if (!s->file) return;
    if (degrees != 0)
        fprintf(s->file, "<g transform=\"rotate(%g %.1f %.1f)\">\n", degrees, x, y);
    else
        fputs("</g>\n", s->file);
}

static inline void svg_rect(svg *s, double x, double y, double w, double h, const char *color) {
    if (!s->file) return;
    fprintf(s->file, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y, w, h,
            color);
}

/* A rectangle in gray with a thin border: darkness 0 is white, 1 nearly black. */
static inline void svg_gray(svg *s, double x, double y, double w, double h, double darkness) {
    int level = (int)(255 - 215 * (darkness < 0 ? 0 : darkness > 1 ? 1 : darkness));
    if (!s->file) return;
    fprintf(s->file,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"rgb(%d,%d,%d)\" "
            "stroke=\"#bbb\" stroke-width=\"0.5\"/>\n",
            x, y, w, h, level, level, level);
}

/* A line; svg_dashed is the same in dashes. */
static inline void svg_line(svg *s, double x1, double y1, double x2, double y2, const char *color,
                            double width) {
    if (!s->file) return;
    fprintf(s->file,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%g\"/>\n", x1,
            y1, x2, y2, color, width);
}
static inline void svg_dashed(svg *s, double x1, double y1, double x2, double y2, const char *color,
                              double width) {
    if (!s->file) return;
    fprintf(s->file,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%g\" "
            "stroke-dasharray=\"5 4\"/>\n",
            x1, y1, x2, y2, color, width);
}

static inline void svg_circle(svg *s, double x, double y, double radius, const char *color) {
    if (!s->file) return;
    fprintf(s->file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\"/>\n", x, y, radius, color);
}

/* values (rows, cols) as squares of `cell` pixels from (x, y): 0 is white, the largest magnitude dark; from 32 pixels
   on each cell shows its number. Row labels end at x - 6; column labels are above y, turned where they are long
   (7 pixels a letter: leave room). Either may be NULL. */
static inline void svg_heat(svg *s, double x, double y, double cell, const float *values, int rows, int cols,
                            const char *const *row_labels, const char *const *col_labels);

/* n bars of values >= 0 (0 at y + h, the largest at y) with their numbers on top; labels below, turned when they are
   longer than the bar is wide; or NULL. */
static inline void svg_bars(svg *s, double x, double y, double w, double h, const double *values, int n,
                            const char *const *labels);

/* Axes whose lower left corner is (x, y + h): the range x_low..x_high below, y_low..y_high at the left, with the
   titles. Then svg_graph draws a curve into the same place: ys[i] at i of n - 1 parts of the width. dash: "" or
   "5 4". svg_curve does both, with the curve's own range and 0..n-1 below. */
static inline void svg_axes(svg *s, double x, double y, double w, double h, const double range[4],
                            const char *x_title, const char *y_title);
static inline void svg_graph(svg *s, double x, double y, double w, double h, const double *ys, int n,
                             const double range[4], const char *color, const char *dash);
static inline void svg_curve(svg *s, double x, double y, double w, double h, const double *ys, int n,
                             const char *color, const char *x_title, const char *y_title);

/* Closes the picture and says where it is. 0 (and a wrong check) if it could not be written. */
static inline int svg_end(svg *s);

/* ---- implementation ---- */

static inline int svg_begin(svg *s, const char *path, int width, int height, const char *title) {
    s->path = path;
    s->file = fopen(path, "w");
    if (!s->file) return 0;
    fprintf(s->file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
            "font-family=\"Helvetica, Arial, sans-serif\" fill=\"#222\">\n",
            width, height, width, height);
    svg_rect(s, 0, 0, width, height, "white");
    svg_text(s, 20, 28, "start", 17, "%s", title);
    return 1;
}

static inline int svg_end(svg *s) {
    int ok = s->file != NULL;
    if (ok) {
        fputs("</svg>\n", s->file);
        ok = !ferror(s->file);
        if (fclose(s->file) != 0) ok = 0;
    }
    if (ok)
        printf("picture: %s\n", s->path);
    else
        check(0, "the picture can be written to %s (does the folder exist?)", s->path);
    s->file = NULL;
    return ok;
}

/* The widest of n labels, in pixels at size 12. */
static inline double svg_label_width(const char *const *labels, int n) {
    size_t most = 0;
    int i;
    for (i = 0; i < n; i++)
        if (strlen(labels[i]) > most) most = strlen(labels[i]);
    return 7 * (double)most;
}

static inline void svg_heat(svg *s, double x, double y, double cell, const float *values, int rows, int cols,
                            const char *const *row_labels, const char *const *col_labels) {
    double most = 0;
    int upright = col_labels && svg_label_width(col_labels, cols) > cell, i, j;
    for (i = 0; i < rows * cols; i++)
        if (fabs((double)values[i]) > most) most = fabs((double)values[i]);
    for (i = 0; i < rows; i++) {
        if (row_labels) svg_text(s, x - 6, y + (i + 0.5) * cell + 4, "end", 12, "%s", row_labels[i]);
        for (j = 0; j < cols; j++) {
            double value = (double)values[i * cols + j], dark = most > 0 ? fabs(value) / most : 0;
            double middle = x + (j + 0.5) * cell;
            svg_gray(s, x + j * cell, y + i * cell, cell, cell, dark);
            if (cell < 32 || !s->file) continue;
            fprintf(s->file, "<g fill=\"%s\">", dark > 0.6 ? "white" : "#222");
            svg_text(s, middle, y + (i + 0.5) * cell + 4, "middle", 11, "%.2f", value);
            fputs("</g>\n", s->file);
        }
    }
    for (j = 0; col_labels && j < cols; j++) {
        double at = x + (j + 0.5) * cell;
        if (upright) svg_turn(s, -90, at + 4, y - 6);
        svg_text(s, upright ? at + 4 : at, y - 6, upright ? "start" : "middle", 12, "%s", col_labels[j]);
        if (upright) svg_turn(s, 0, 0, 0);
    }
}

static inline void svg_bars(svg *s, double x, double y, double w, double h, const double *values, int n,
                            const char *const *labels) {
    double most = 0, width = w / n;
    int turned = labels && svg_label_width(labels, n) > width, i;
    for (i = 0; i < n; i++)
        if (values[i] > most) most = values[i];
    for (i = 0; i < n; i++) {
        double tall = most > 0 ? h * values[i] / most : 0, at = x + (i + 0.5) * width;
        svg_rect(s, x + (i + 0.1) * width, y + h - tall, 0.8 * width, tall, "#666");
        if (width >= 28) svg_text(s, at, y + h - tall - 4, "middle", 11, "%.3g", values[i]);
        if (!labels) continue;
        if (turned) svg_turn(s, -90, at + 4, y + h + 8);
        svg_text(s, turned ? at + 4 : at, y + h + (turned ? 8 : 16), turned ? "end" : "middle", 12, "%s",
                 labels[i]);
        if (turned) svg_turn(s, 0, 0, 0);
    }
    svg_line(s, x, y + h, x + w, y + h, "black", 1);
}

static inline void svg_axes(svg *s, double x, double y, double w, double h, const double range[4],
                            const char *x_title, const char *y_title) {
    svg_line(s, x, y, x, y + h, "black", 1);
    svg_line(s, x, y + h, x + w, y + h, "black", 1);
    svg_text(s, x, y + h + 16, "middle", 11, "%.4g", range[0]);
    svg_text(s, x + w, y + h + 16, "middle", 11, "%.4g", range[1]);
    svg_text(s, x + w / 2, y + h + 18, "middle", 12, "%s", x_title);
    svg_text(s, x - 5, y + h + 4, "end", 11, "%.4g", range[2]);
    svg_text(s, x - 5, y + 4, "end", 11, "%.4g", range[3]);
    svg_turn(s, -90, x - 12, y + h / 2);
    svg_text(s, x - 12, y + h / 2, "middle", 12, "%s", y_title);
    svg_turn(s, 0, 0, 0);
}

static inline void svg_graph(svg *s, double x, double y, double w, double h, const double *ys, int n,
                             const double range[4], const char *color, const char *dash) {
    double span = range[3] > range[2] ? range[3] - range[2] : 1;
    int i;
    if (!s->file) return;
    fprintf(s->file,
            "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" stroke-dasharray=\"%s\" points=\"",
            color, *dash ? dash : "none");
    for (i = 0; i < n; i++)
        fprintf(s->file, "%.1f,%.1f ", x + w * i / (n > 1 ? n - 1 : 1),
                y + h - h * (ys[i] - range[2]) / span);
    fputs("\"/>\n", s->file);
}

static inline void svg_curve(svg *s, double x, double y, double w, double h, const double *ys, int n,
                             const char *color, const char *x_title, const char *y_title) {
    double range[4];
    int i;
    range[0] = 0, range[1] = n - 1, range[2] = range[3] = ys[0];
    for (i = 1; i < n; i++) {
        if (ys[i] < range[2]) range[2] = ys[i];
        if (ys[i] > range[3]) range[3] = ys[i];
    }
    svg_axes(s, x, y, w, h, range, x_title, y_title);
    svg_graph(s, x, y, w, h, ys, n, range, color, "");
}

#endif
