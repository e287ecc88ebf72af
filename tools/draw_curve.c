/* Draws the loss curve that build/pretrain keeps as CSV, as it does itself at each checkpoint.

   build/draw_curve stories.gguf.csv stories.gguf.svg */
#include "../examples/common/curve.h"

int main(int argc, char **argv) {
    curve c = {NULL, 0, 0};
    if (argc != 3) return fprintf(stderr, "usage: draw_curve CURVE.csv PICTURE.svg\n"), 2;
    int ok = curve_read(&c, argv[1], INFINITY);
    if (ok && c.n < 2)
        ok = complain("%s: no curve, which has lines \"step,loss,loss of text kept back\"", argv[1]);
    ok = ok && curve_svg(&c, argv[2]);
    curve_free(&c);
    return !ok;
}
