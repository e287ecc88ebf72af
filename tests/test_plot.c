/* examples/common: the ticks of pictures, the smoothing of curves, and what a picture says. */
#include "preamble.h"
#include "folder.h"
#include "../examples/common/curve.h"

/* ---- axes ---- */

static int is_axis(plot_axis axis, double from, double to, double step) {
    return fabs(axis.from - from) < 1e-9 && fabs(axis.to - to) < 1e-9 && fabs(axis.step - step) < 1e-9;
}

TEST(ticks_are_round) {
    CHECK(is_axis(plot_axis_of("", 2.0983, 4.0618, 6), 2, 4.5, 0.5));
    CHECK(is_axis(plot_axis_of("", 2.03, 2.09, 6), 2.03, 2.09, 0.01));
    CHECK(is_axis(plot_axis_of("", 0, 0.45, 6), 0, 0.5, 0.1));
    CHECK(is_axis(plot_axis_of("", -3, 12, 6), -5, 15, 5));
    CHECK(is_axis(plot_axis_of("", 0.1, 9.7, 6), 0, 10, 2));
}

TEST(epochs_are_whole) {
    CHECK(is_axis(plot_axis_whole("", 0.75, 2.25), 0.75, 2.25, 1));
    CHECK(is_axis(plot_axis_whole("", 0.75, 5.25), 0.75, 5.25, 1));
    CHECK(is_axis(plot_axis_whole("", 0, 10000), 0, 10000, 2000));
    CHECK(is_axis(plot_axis_whole("", 0, 3), 0, 3, 1));
}

static int is_number(double value, double step, const char *expected) {
    char text[80];
    return strcmp(plot_number(value, step, text, sizeof text), expected) == 0;
}

TEST(numbers) {
    CHECK(is_number(10000, 2000, "10,000"));
    CHECK(is_number(800, 100, "800"));
    CHECK(is_number(1e6, 2e5, "1,000,000"));
    CHECK(is_number(-1234, 1, "-1,234"));
    CHECK(is_number(-200, 100, "-200"));
    CHECK(is_number(2, 0.5, "2.0"));
    CHECK(is_number(0.30000000000000004, 0.1, "0.3"));
    CHECK(is_number(2.03, 0.01, "2.03"));
    CHECK(is_number(-1e-17, 0.2, "0.0"));
    CHECK(is_number(1234.5, 0.5, "1,234.5"));
}

/* ---- curves ---- */

/* A line stays as it is, also at its ends; noise that alternates shrinks. */
TEST(smoothing) {
    double line[20], noise[20];
    for (int i = 0; i < 20; i++) line[i] = 5 - 0.25 * i, noise[i] = line[i] + (i % 2 ? 0.5 : -0.5);
    for (size_t i = 0; i < 20; i++) {
        CHECK_NEAR(curve_smooth(line, 20, i, 2), line[i], 1e-9, 0); /* exact up to rounding */
        CHECK_NEAR(curve_smooth(noise, 20, i, 2), line[i], 0.25, 0);
    }
    CHECK_NEAR(curve_smooth(line, 1, 0, 2), 5, 0, 0);
}

static int draws(const char *csv, const char *name) {
    curve c = {NULL, 0, 0};
    write_file(in_folder("curve.csv"), csv, strlen(csv));
    remove(in_folder(name));
    int ok = curve_read(&c, in_folder("curve.csv"), INFINITY) && curve_svg(&c, in_folder(name));
    curve_free(&c);
    return ok;
}

static char *text_of(const char *name) {
    bytes b = read_file(in_folder(name));
    put_u8(&b, 0);
    return (char *)b.data;
}

#ifdef _WIN32 /* whose names have none of the others */
#define NAME "a & b"
#define MARKUP "a &#38; b"
#else
#define NAME "<a & b>"
#define MARKUP "&#60;a &#38; b&#62;"
#endif

/* A name is no markup; a loss that is not finite is left out. */
TEST(picture_of_a_curve) {
    CHECK(draws("step,loss,kept_back\n100,4,\n200,nan,3\n300,inf,\n20000,2,2.5\n", NAME ".svg"));
    char *svg = text_of(NAME ".svg");
    CHECK(strstr(svg, ">Training loss of " MARKUP "<"));
    CHECK(strstr(svg, ">20,000<") && strstr(svg, ">4.0<") && !strstr(svg, ">2e+04<"));
    CHECK(!strstr(svg, "nan") && !strstr(svg, "inf"));
    free(svg);
}

TEST(nothing_to_draw) {
    CHECK(draws("step,loss,kept_back\n", "none.svg") && !exists(in_folder("none.svg")));
    CHECK(draws("step,loss,kept_back\n100,4,\n", "none.svg") && !exists(in_folder("none.svg")));
    CHECK(draws("step,loss,kept_back\n100,4,\n200,4,\n", "none.svg") && !exists(in_folder("none.svg")));
}

int main(void) {
    if (!folder_begin("plot")) return 1;
    RUN(ticks_are_round);
    RUN(epochs_are_whole);
    RUN(numbers);
    RUN(smoothing);
    RUN(picture_of_a_curve);
    RUN(nothing_to_draw);
    return !folder_end() || test_report("test_plot");
}
