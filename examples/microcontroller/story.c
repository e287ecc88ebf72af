/* A story over the serial line of a microcontroller: the model is in flash and used there, everything else is in one
   static buffer. What it prints ends with how much of that was needed.
   make -C examples/microcontroller story */
#include "board.h"
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

#ifndef POSITIONS
#define POSITIONS 64 /* tokens of context */
#endif
#ifndef PROMPT
#define PROMPT "Once upon a time"
#endif
#ifndef CACHE
#define CACHE ML_Q8_0 /* keys and values: ML_F32 has the same text, and takes four times as much */
#endif
#ifndef BUFFER_SIZE /* enough for the model in examples/models and Q8_0: half of it to load, all of it to write */
#define WRITING_SIZE (16 * 1024 + POSITIONS * 832 + 64 * sizeof PROMPT)
#define BUFFER_SIZE (WRITING_SIZE > 41 * 1024 ? WRITING_SIZE : 41 * 1024)
#endif

extern const unsigned char model_file[], model_file_end[]; /* of model.S */
extern const char code_end[], constants_end[];             /* of memory.ld; the code begins at 0 */

static unsigned char buffer[BUFFER_SIZE];

static int print_token(void *user, int32_t id, const char *text, size_t n_bytes) {
    (void)user, (void)id;
    board_write(text, n_bytes);
    return 1;
}

static void report(const char *before, uint64_t number, const char *after) {
    board_print(before);
    board_print_number(number);
    board_print(after);
}

/* The model is loaded into the front half of the buffer, and must not grow beyond it: what only loading needs is in the
   other half, where the session's keys and values are later. (Not inlined: its stack is free again when it returns.) */
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

int main(void) {
    ml_error error = {ML_OK, ""};
    ml_arena arena = {buffer, sizeof buffer, 0};
    ml_session_desc small = {0};
    ml_generate_desc how = {0};
    ml_generated done = {0, 0, ML_STOP_LENGTH};
    ml_model *model = NULL;
    ml_session *session = NULL;
    small.allocator = ml_arena_allocator(&arena);
    small.max_seq_len = POSITIONS;
    small.max_batch = 1;
    small.cache_type = CACHE;
    small.max_text = 2 * sizeof PROMPT + 16;
    small.no_logits = small.computed_rope = 1;
    how.prompt = PROMPT;
    how.on_token = print_token;
    load(&arena, &model, &error);
    uint64_t loaded = board_instructions();
    size_t model_bytes = arena.used;
    if (!error.code) ml_session_new(model, &small, &session, &error);
    board_print(PROMPT);
    uint64_t begun = board_instructions();
    if (!error.code) ml_session_generate(session, &how, &done, &error);
    uint64_t ended = board_instructions();
    board_print("\n");
    if (error.code) return board_print(error.text), board_print("\n"), 1;
    report("-- flash: ", (uint64_t)(uintptr_t)code_end, " bytes of code, ");
    report("", (uint64_t)(constants_end - code_end), " of constants, ");
    report("", (uint64_t)(model_file_end - model_file), " of the model\n");
    report("-- memory: ", arena.used, " bytes");
    report(" (model ", model_bytes, "");
    report(", session ", arena.used - model_bytes, ")");
    report("; stack ", board_stack_used(), "");
    report(" of ", board_stack_size(), "\n");
    report("-- instructions: loading ", loaded, "");
    report(", ", (ended - begun) / (uint64_t)(done.n_prompt + done.n_new - 1), " a token");
    report(" (", (uint64_t)(done.n_prompt + done.n_new), " tokens)\n");
    return 0;
}
