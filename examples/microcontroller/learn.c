/* The shipped model learns on a microcontroller: first a head on top of it, then an adapter beside its matrices. The
   model stays in flash as it is; what learns, its gradients and moments, and the activations are in one static buffer.
   make -C examples/microcontroller learn */
#include "board.h"
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "learning.h"

#ifndef BUFFER_SIZE
#define BUFFER_SIZE (2 * 1024 * 1024)
#endif

extern const unsigned char model_file[], model_file_end[]; /* of model.S */

static unsigned char buffer[BUFFER_SIZE];

static void report(const char *what, const float *losses, size_t bytes, uint64_t instructions) {
    board_print(what);
    board_print(": losses");
    for (int i = 0; i < LEARNING_STEPS; i++) {
        board_print(" ");
        board_print_decimals((double)losses[i], 7);
    }
    board_print("; ");
    board_print_number(bytes);
    board_print(" bytes; ");
    board_print_number(instructions / LEARNING_STEPS);
    board_print(" instructions a step\n");
}

/* As in story.c. */
__attribute__((noinline)) static ml_result load(ml_arena *arena, ml_model **model, ml_error *error) {
    ml_arena meanwhile = {buffer + sizeof buffer / 2, sizeof buffer / 2, 0};
    ml_model_load_desc from = {0};
    from.allocator = ml_arena_allocator(arena);
    from.scratch = ml_arena_allocator(&meanwhile);
    from.compact = 1;
    arena->size = sizeof buffer / 2;
    ml_result result =
        ml_model_load_memory(model_file, (size_t)(model_file_end - model_file), &from, model, error);
    arena->size = sizeof buffer;
    return result;
}

/* ---- what was learned, to be kept: here in RAM, on a device of yours in its flash ---- */

typedef struct kept {
    unsigned char bytes[64 * 1024]; /* most of a checkpoint are the keys of its model */
    size_t n;
} kept;
static kept head_file;

static int keep(void *user, const void *bytes, size_t n) {
    kept *to = (kept *)user;
    if (n > sizeof to->bytes - to->n) return 0;
    memcpy(to->bytes + to->n, bytes, n);
    to->n += n;
    return 1;
}

/* Saves the trainer's state, a GGUF, and loads the head from it as after the next start. */
static ml_result keep_head(const ml_model *model, const ml_head *head, const ml_trainer *trainer,
                           const ml_allocator *allocator, ml_error *error) {
    ml_output output = {keep, &head_file};
    ml_load_desc desc = {0};
    ml_head *again = NULL;
    desc.allocator = *allocator;
    ml_result result = ml_trainer_save_to(trainer, &output, error);
    if (!result) result = ml_head_load_memory(head_file.bytes, head_file.n, model, &desc, &again, error);
    if (result) return result;
    int same = memcmp(again->weight.data, head->weight.data, 2 * 128 * sizeof(float)) == 0;
    board_print(same ? "kept: " : "kept wrong: ");
    board_print_number(head_file.n);
    board_print(" bytes\n");
    return ML_OK;
}

int main(void) {
    ml_error error = {ML_OK, ""};
    ml_arena arena = {buffer, sizeof buffer, 0};
    ml_allocator allocator = ml_arena_allocator(&arena);
    ml_model *model = NULL;
    ml_head *head = NULL;
    ml_lora *lora = NULL;
    ml_trainer *trainer = NULL;
    float losses[LEARNING_STEPS] = {0};
    load(&arena, &model, &error);
    size_t loaded = arena.used;
    uint64_t begun = board_instructions();
    if (!error.code && !learn_head(model, &allocator, &head, &trainer, losses, &error))
        report("head", losses, arena.used, board_instructions() - begun);
    if (!error.code) keep_head(model, head, trainer, &allocator, &error);
    arena.used = loaded; /* the head is given up, and its memory used again */
    begun = board_instructions();
    if (!error.code && !learn_adapter(model, &allocator, &lora, &trainer, losses, &error))
        report("adapter", losses, arena.used, board_instructions() - begun);
    if (error.code) return board_print(error.text), board_print("\n"), 1;
    board_print("stack ");
    board_print_number(board_stack_used());
    board_print(" of ");
    board_print_number(board_stack_size());
    board_print("\n");
    return 0;
}
