/* Whether the instructions for sums of products (SMLAD, MVE) give the same bits as the plain loops, on the board.
   make -C examples/microcontroller kernels */
#include "board.h"
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

enum { COLS = 160, ROWS = 40, MOST = MLI_FEW };

static float numbers[ROWS * COLS], x[MOST * COLS], y[MOST * ROWS];
static unsigned char weights[ROWS * COLS * 2], work[MOST * COLS * 8];

/* Row i of x and row j of w, summed in integers block by block, as >>integers of the header says. */
static float plain(const mli_activations *a, ml_type type, size_t i, size_t j) {
    float sum = 0, unit = type == ML_Q4_0 ? 1.0f / 16 : 1.0f;
    size_t bytes = mli_type(type)->bytes;
    for (size_t b = 0; b < a->blocks; b++) {
        const unsigned char *w = weights + (j * a->blocks + b) * bytes;
        const mli_block_x *block = a->q + i * a->blocks + b;
        int32_t products = 0;
        for (int k = 0; k < 32; k++) {
            int nibble = k < 16 ? w[2 + k] & 15 : w[2 + k - 16] >> 4;
            int q = type == ML_Q4_0 ? (nibble - 8) * 16 : (int8_t)w[2 + k];
            products += q * block->q[MLI_IN_BLOCK(k)];
        }
        sum += (float)products * (mli_load_scale(w) * a->scale[i * a->blocks + b]);
    }
    return sum * unit;
}

static int check(ml_type type, size_t n, ml_random *random) {
    for (size_t i = 0; i < ROWS * COLS; i++) numbers[i] = ml_random_normal(random);
    for (size_t i = 0; i < n * COLS; i++) x[i] = 100 * ml_random_normal(random);
    numbers[0] = x[0] = 1e4f; /* a block of zeros but for one number, and the largest and the smallest byte */
    numbers[COLS] = -1e4f, x[COLS - 1] = -1e4f;
    ml_type_convert(type, weights, ML_F32, numbers, ROWS * COLS);
    ml_threads one = {1, NULL, NULL};
    ml_tensor w = {type, ROWS, COLS, weights, NULL};
    mli_integer_job job = {&w, mli_integer_quantize(&one, x, n, COLS, work), y, ROWS};
    uint64_t begun = board_instructions();
    mli_integer_few(&job, 0, ROWS);
    uint64_t ended = board_instructions();
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < ROWS; j++) {
            float expected = plain(&job.x, type, i, j);
            if (memcmp(&expected, &y[i * ROWS + j], sizeof expected) != 0) return 0;
        }
    board_print(ml_type_name(type));
    board_print(": the same bits");
    if (ended > begun) {
        board_print("; instructions for a weight: ");
        board_print_decimals((double)(ended - begun) / (double)(n * ROWS * COLS), 2);
    }
    board_print("\n");
    return 1;
}

int main(void) {
    ml_random random;
    ml_random_seed(&random, 1);
#if defined(MLI_DSP)
    board_print("SMLAD\n");
#elif defined(MLI_MVE)
    board_print("MVE\n");
#else
    board_print("plain loops\n");
#endif
    int ok = check(ML_Q8_0, 1, &random) && check(ML_Q8_0, MOST, &random) && check(ML_Q4_0, 1, &random) &&
             check(ML_Q4_0, MOST, &random);
    if (!ok) board_print("not the same bits\n");
    return !ok;
}
