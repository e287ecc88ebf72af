/* Draws the loss curve that build/pretrain keeps as CSV, as it does itself at each checkpoint.

   build/draw_curve stories.gguf.csv stories.gguf.svg */
#include "../examples/common/curve.h"

int main(int argc, char **argv) {
    curve c = {NULL, 0, 0};
    if (argc != 3) return fprintf(stderr, "usage: draw_curve CURVE.csv PICTURE.svg\n"), 2;
    argv = system_arguments(argc, argv);
    const used_file csv = {"CURVE.csv", argv[1]}, picture = {"PICTURE.svg", argv[2]};
    if (!system_may_read(csv.path)) return !complain("%s: %s", csv.path, strerror(errno));
    int ok = outputs_ready(&picture, 1, &csv, 1) && curve_read(&c, csv.path, INFINITY);
    if (ok && c.n < 2)
        ok = complain("%s: %s lines \"step,loss,loss of text kept back\", so there is no curve", csv.path,
                      c.n ? "fewer than two" : "no");
    if (ok && !curve_is_drawn(&c))
        ok = complain("%s: the losses are all the same or no numbers, so there is no curve", csv.path);
    if (ok && !(curve_last_step(&c) > 0))
        ok = complain("%s: the last step is not above 0, so there is no curve", csv.path);
    ok = ok && curve_svg(&c, picture.path);
    curve_free(&c);
    return !ok;
}
