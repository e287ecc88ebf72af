/* Lesson 6: rotary positions. How a dot product can depend on how far apart two words are.

   You will learn how a Llama tells the order of words: it turns each pair of numbers of a query and of a key like the
   hand of a clock, by an angle that grows with the position. The first pair is a fast hand, the last a slow one. A
   dot product of two turned vectors depends only on the difference of the angles, and so on the distance between the
   words, not on where in the text they are. No length changes, and there is nothing to learn. The header does the
   same with a table of cosines and sines, which is compared with yours.

   angle of pair j at position p:  p / theta^(2j / hd),  theta = 10000, hd = the size of a head
   (x[2j], x[2j + 1]) -> (x[2j] cos - x[2j + 1] sin, x[2j] sin + x[2j + 1] cos)
   rotate(q, m) . rotate(k, n) = rotate(q, m - n) . k
   Paper: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding" */
#include "lesson.h"
#include "minillama.h"
enum { HD = 8, N = 16 }; /* size of a head, positions */

static double angle_of(int position, int j) { return position / pow(10000, 2.0 * j / HD); }

/* x (HD) -> y (HD), turned as at the position */
static void rotate(const double *x, int position, double *y) {
    for (int j = 0; j < HD / 2; j++) {
        double a = angle_of(position, j), c = cos(a), s = sin(a);
        y[2 * j] = x[2 * j] * c - x[2 * j + 1] * s;
        y[2 * j + 1] = x[2 * j] * s + x[2 * j + 1] * c;
    }
}
static double dot(const double *x, const double *y) { /* (HD) . (HD) */
    double sum = 0;
    for (int i = 0; i < HD; i++) sum += x[i] * y[i];
    return sum;
}
static double score(const double *q, int m, const double *k, int n) {
    double a[HD], b[HD];
    rotate(q, m, a), rotate(k, n, b);
    return dot(a, b);
}

/* Left: the hands of the clocks at the first positions. Right: what queries and keys (N, N) give. */
static void draw(const char *path, const float *values) {
    const char *labels[N] = {"0", "", "", "", "", "5", "", "", "", "", "10", "", "", "", "", "15"};
    svg s;
    svg_begin(&s, path, 960, 400, "Clocks of different speeds, and a query that looks 3 places back");
    svg_text(&s, 290, 62, "middle", 13, "position");
    for (int p = 0; p < 8; p++) svg_text(&s, 108 + 52 * p, 82, "middle", 12, "%d", p);
    for (int j = 0; j < HD / 2; j++) {
        svg_text(&s, 74, 118 + 66 * j, "end", 12, "pair %d", j);
        for (int p = 0; p < 8; p++) {
            double x = 108 + 52 * p, y = 114 + 66 * j, a = angle_of(p, j);
            svg_circle(&s, x, y, 22, "#ddd");
            svg_line(&s, x, y, x + 22 * cos(a), y - 22 * sin(a), "black", 2);
        }
    }
    svg_text(&s, 290, 380, "middle", 12, "angle = position / 10000^(2 pair / 8), counterclockwise");
    svg_heat(&s, 630, 86, 17, values, N, N, labels, labels);
    svg_text(&s, 766, 62, "middle", 13, "position n of the key");
    svg_turn(&s, -90, 595, 222);
    svg_text(&s, 595, 222, "middle", 13, "position m of the query");
    svg_turn(&s, 0, 0, 0);
    svg_text(&s, 766, 380, "middle", 12, "exp(rotate(q, m) . rotate(k, n)), dark: large");
    svg_end(&s);
}

/* The largest difference of the header's table (N, HD) from cosines and sines of our angles. */
static double table_difference(void) {
    float table[N][HD];
    ml_rope_desc desc = {.hd = HD}; /* theta is 10000 unless it says otherwise */
    double most = ml_rope_table(&desc, table[0], N) == ML_OK ? 0 : 1;
    for (int i = 0; i < N * HD / 2 && most < 1; i++) {
        double a = angle_of(i / (HD / 2), i % (HD / 2));
        float *pair = table[i / (HD / 2)] + 2 * (i % (HD / 2));
        most = larger(most, hypot((double)pair[0] - cos(a), (double)pair[1] - sin(a)));
    }
    return most;
}

int main(int argc, char **argv) {
    double q[HD], k[HD], turned[HD], worst = 0;
    float values[N * N];
    int right = 0;
    for (int i = 0; i < HD; i++) q[i] = cos(3 * i * i), k[i] = sin(1 + 2 * i);
    printf("Angles in radians (a full turn is 6.28): pair 0 is fast, pair 3 has hardly moved\n");
    for (int p = 1; p <= 100; p *= 10) {
        printf("  position %3d:", p);
        for (int j = 0; j < HD / 2; j++) printf(" %8.3f%s", angle_of(p, j), j == HD / 2 - 1 ? "\n" : "");
    }
    printf("The dot product of a query and a key, at positions m and n: only m - n counts\n");
    check_near(score(q, 5, k, 2), score(q, 3, k, 0), 1e-12, "m = 5, n = 2 as m = 3, n = 0");
    check_near(score(q, 1005, k, 1002), score(q, 3, k, 0), 1e-9, "m = 1005, n = 1002 as well");
    for (int m = 0; m < N; m++)
        for (int n = 0; n < N; n++) {
            int back = m < n ? m : n; /* both moved to the beginning of the text */
            worst = larger(worst, fabs(score(q, m, k, n) - score(q, m - back, k, n - back)));
        }
    check_near(worst, 0, 1e-12, "the largest difference between equal distances");
    printf("Turning changes no length. Its backward pass turns by the opposite angle\n");
    rotate(q, 7, turned);
    check_near(dot(turned, turned), dot(q, q), 1e-12, "the squared length of q at position 7");
    rotate(k, -7, turned);
    check_near(dot(q, turned), score(q, 7, k, 0), 1e-12, "q . rotate(k, -7) as rotate(q, 7) . k");
    printf("Weights can learn to look for a distance: here k is q, turned by 3 places\n");
    for (int i = 0; i < HD; i++) q[i] = 1;
    rotate(q, 3, k);
    for (int m = 0; m < N; m++) {
        int best = 0;
        for (int n = 0; n < N; n++) {
            values[m * N + n] = (float)exp(score(q, m, k, n));
            if (values[m * N + n] > values[m * N + best]) best = n;
        }
        right += best == m - 3;
    }
    check(right == N - 3, "the best key is 3 places back for %d of %d queries", right, N - 3);
    check_near(table_difference(), 0, 1e-5, "the header's table (ml_rope_table): the largest difference");
    draw(argc > 1 ? argv[1] : "build/lessons/06.svg", values);
    return lesson_end();
}
/* EXERCISES
   1. Divide the position by 2.0 in angle_of (position interpolation, Chen et al. 2023: for texts twice as long as those
      trained on). Predict which checks still hold, and what happens to the picture.
   2. Change 10000 to 10. Which pair's row of clocks stays the same, and why do models of long texts use 500000?
   3. Write apply_rotary, which turns the queries and keys of a whole text with several heads: make exercise-06. */
