/* Line charts as SVG pictures. */
#ifndef PLOT_H
#define PLOT_H

#include "file.h"

typedef struct plot {
    whole_file svg;
    double left, right, bottom, top; /* of the data, in its own units */
    int n_lines;
} plot;

/* A white sheet with a grid between p's limits, which must differ. */
static inline int plot_begin(plot *p, const char *path, const char *x_name) {
    p->n_lines = 0;
    if (!whole_file_begin(&p->svg, path)) return 0;
    fprintf(p->svg.to,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 960 400' font-family='sans-serif' "
            "font-size='12'>\n"
            "<rect width='960' height='400' fill='white'/>\n");
    for (int tick = 0; tick <= 5; tick++) {
        double y = 20 + 64.0 * tick, x = 60 + 140.0 * tick;
        fprintf(p->svg.to, "<line x1='60' x2='760' y1='%.0f' y2='%.0f' stroke='#ddd'/>\n", y, y);
        fprintf(p->svg.to, "<text x='52' y='%.0f' text-anchor='end'>%.3g</text>\n", y + 4,
                p->top - (p->top - p->bottom) * tick / 5);
        fprintf(p->svg.to, "<text x='%.0f' y='358' text-anchor='middle'>%.4g</text>\n", x,
                p->left + (p->right - p->left) * tick / 5);
    }
    fprintf(p->svg.to, "<text x='410' y='382' text-anchor='middle'>%s</text>\n", x_name);
    return 1;
}

/* A line: its name, then its points, then its end. */
static inline void plot_line(plot *p, const char *name, const char *color) {
    fprintf(p->svg.to, "<text x='775' y='%d' fill='%s'>%s</text>\n", 24 + 16 * p->n_lines++, color, name);
    fprintf(p->svg.to, "<polyline fill='none' stroke='%s' stroke-width='1.5' points='", color);
}

static inline void plot_point(plot *p, double x, double y) {
    fprintf(p->svg.to, "%.1f,%.1f ", 60 + 700 * (x - p->left) / (p->right - p->left),
            20 + 320 * (p->top - y) / (p->top - p->bottom));
}

static inline void plot_line_end(plot *p) { fprintf(p->svg.to, "'/>\n"); }

static inline int plot_end(plot *p) {
    fprintf(p->svg.to, "</svg>\n");
    return whole_file_end(&p->svg);
}

#endif
