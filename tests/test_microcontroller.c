/* examples/microcontroller on a board that qemu-system-arm emulates: the story that it prints, what it learns, the
   memory that it takes, and its integer dot products. Skipped where the compiler or the emulator is not installed:
   then the Makefile has not built the programs. And what its Makefile builds anew. */
#define MINILLAMA_IMPLEMENTATION
#define ML_NO_SIMD /* the sums of a machine without vectors */
#include "preamble.h"
#include "folder.h"
#include "../examples/microcontroller/learning.h"

#define MODEL "examples/models/stories.gguf"
#define QEMU                                                                                                 \
    "qemu-system-arm -nographic -monitor none -serial stdio -semihosting-config enable=on,target=native "    \
    "-icount shift=0 </dev/null 2>&1"

static const char *no_board = "arm-none-eabi-gcc and qemu-system-arm are not both installed";
static char programs[512]; /* their folder */
static char said[65536];   /* what the last one printed */

/* Runs a program on a board; -1: it has not been built, else its exit status. */
static int run_on(const char *board, const char *program) {
    char path[600], command[1200];
    snprintf(path, sizeof path, "%s/%s.elf", programs, program);
    if (access(path, R_OK) != 0) return -1;
    snprintf(command, sizeof command, "timeout 300 " QEMU " -M %s -kernel '%s'", board, path);
    FILE *pipe = popen(command, "r");
    if (!pipe) return -1;
    size_t n = fread(said, 1, sizeof said - 1, pipe);
    said[n] = 0;
    return pclose(pipe);
}

static int run(const char *program) { return run_on("mps2-an386", program); } /* a Cortex-M4F */

/* The number that follows the text in what was printed; -1 if it is not there. */
static double number_after(const char *text) {
    const char *at = strstr(said, text);
    return at ? strtod(at + strlen(text), NULL) : -1;
}

/* ---- a story ---- */

static int collect(void *user, int32_t id, const char *text, size_t n) {
    (void)id;
    strncat((char *)user, text, n);
    return 1;
}

/* What this machine writes with the same cache. */
static void expect_story(int n_positions, char *text) {
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_session_desc desc;
    ml_generate_desc how;
    memset(&desc, 0, sizeof desc), memset(&how, 0, sizeof how);
    desc.max_seq_len = n_positions, desc.max_batch = 1, desc.cache_type = ML_Q8_0;
    how.prompt = "Once upon a time", how.on_token = collect, how.user = text;
    strcpy(text, how.prompt);
    REQUIRE(!ml_model_load(MODEL, NULL, &model, NULL) && !ml_session_new(model, &desc, &session, NULL));
    CHECK(ml_session_generate(session, &how, NULL, NULL) == ML_OK && session->length == n_positions);
    ml_session_free(session);
    ml_model_free(model);
}

/* Checks that a program has written this machine's text, within so many bytes of memory and 4 KB of stack. */
static void check_story(int status, int n_positions, int most_memory) {
    static char expected[4096];
    expect_story(n_positions, expected);
    strcat(expected, "\n-- ");
    CHECK(status == 0 && strlen(expected) > 200);
    CHECK(strncmp(said, expected, strlen(expected)) == 0);
    CHECK(number_after("-- memory: ") > 0 && number_after("-- memory: ") <= most_memory);
    CHECK(number_after("; stack ") > 0 && number_after("; stack ") <= 4 * 1024);
}

/* Limits here and below: what gcc 12 needs, and a few percent. */
TEST(a_story) {
    int status = run("story");
    if (status < 0) SKIP(no_board);
    check_story(status, 64, 72 * 1024);
    CHECK(number_after("-- flash: ") > 0 && number_after("-- flash: ") <= 46 * 1024);
    CHECK(number_after(" of code, ") > 0 && number_after(" of code, ") <= 12 * 1024);
    CHECK(number_after(" loading ") > 0 && number_after(" loading ") < 17.5e6);
    const char *rate = strstr(said, "loading ");
    CHECK(rate && (rate = strstr(rate, ", ")) && strtod(rate + 2, NULL) > 0 &&
          strtod(rate + 2, NULL) < 7.9e6);
}

TEST(a_long_story) {
    int status = run("long/story");
    if (status < 0) SKIP(no_board);
    check_story(status, 256, 235 * 1024);
}

/* ---- kernels ---- */

static void check_kernels(const char *board, const char *program, const char *instructions) {
    int status = run_on(board, program);
    if (status < 0) SKIP(no_board);
    CHECK(status == 0 && strncmp(said, instructions, strlen(instructions)) == 0 &&
          !strstr(said, "not the same"));
    CHECK(strstr(said, "Q8_0: the same bits") && strstr(said, "Q4_0: the same bits"));
}

TEST(integer_products) { check_kernels("mps2-an386", "kernels", "SMLAD\n"); }

TEST(integer_products_of_helium) { check_kernels("mps3-an547", "helium/kernels", "MVE\n"); }

/* ---- learning ---- */

/* The losses in a line of what the board printed. */
static int has_losses(const char *line, const float *expected) {
    const char *at = strstr(said, line);
    char *end = NULL;
    if (!at) return 0;
    at += strlen(line);
    for (int i = 0; i < LEARNING_STEPS; i++, at = end)
        if (!(fabs(strtod(at, &end) - (double)expected[i]) <= 1e-5)) return 0;
    return 1;
}

/* The same losses as here without vectors, up to the last place of sines and exponentials. (With vectors an activation
   that is rounded to 8 bits may fall the other way: 2e-4 in the adapter's first loss.) */
TEST(learning) {
    float head_losses[LEARNING_STEPS] = {0}, adapter_losses[LEARNING_STEPS] = {0};
    ml_allocator usual = {NULL, NULL, NULL};
    ml_model *model = NULL;
    ml_head *head = NULL;
    ml_lora *lora = NULL;
    ml_trainer *trainer = NULL;
    int status = run("learn");
    if (status < 0) SKIP(no_board);
    REQUIRE(!ml_model_load(MODEL, NULL, &model, NULL));
    CHECK(!learn_head(model, &usual, &head, &trainer, head_losses, NULL));
    ml_trainer_free(trainer), ml_head_free(head);
    CHECK(!learn_adapter(model, &usual, &lora, &trainer, adapter_losses, NULL));
    ml_trainer_free(trainer), ml_lora_free(lora);
    CHECK(status == 0 && has_losses("head: losses", head_losses) &&
          has_losses("adapter: losses", adapter_losses));
    CHECK(head_losses[2] < head_losses[0] && adapter_losses[2] < adapter_losses[0]);
    CHECK(strstr(said, "kept: ") && number_after("kept: ") > 3 * 2 * 129 * 4 &&
          number_after("kept: ") < 65536);
    CHECK(strstr(said, "adapter: ") && number_after("; ") > 0 && number_after("; ") <= 184 * 1024);
    const char *adapter = strstr(said, "adapter: "), *memory = adapter ? strstr(adapter, "; ") : NULL;
    CHECK(memory && strtod(memory + 2, NULL) <= 840 * 1024);
    CHECK(number_after("stack ") > 0 && number_after("stack ") <= 10 * 1024);
    if (test_current_failed)
        printf("%s%.7f %.7f %.7f, %.7f %.7f %.7f\n", said, (double)head_losses[0], (double)head_losses[1],
               (double)head_losses[2], (double)adapter_losses[0], (double)adapter_losses[1],
               (double)adapter_losses[2]);
    ml_model_free(model);
}

/* ---- what is built anew ---- */

/* Whether the settings, with which programs are built anew when they change, are others now. */
static int settings_change(const char *model) {
    static bytes last; /* of the call before */
    char what[100];
    snprintf(what, sizeof what, "MODEL='%s' build/settings", model);
    CHECK(make_says("a/b", "examples/microcontroller/Makefile", what));
    bytes now = read_file(in_folder("a/b/build/settings"));
    int same = now.size == last.size && now.size > 0 && memcmp(now.data, last.data, now.size) == 0;
    free_bytes(&last);
    last = now;
    return !same;
}

/* The model is in the programs, and is no prerequisite; the assembler also looks from the top of the repository. */
TEST(another_model_of_the_same_name) {
    static const char *const paths[] = {"model", "../../model", "its model"};
    REQUIRE(folder_begin("board"));
    if (!has_make()) SKIP("no GNU make");
    CHECK(make_folder(in_folder("a")) && make_folder(in_folder("a/b")));
    for (int i = 0; i < 3; i++) {
        const char *file = i == 2 ? in_folder("a/b/its model") : in_folder("model");
        write_file(file, "one", 3);
        CHECK(settings_change(paths[i]) && !settings_change(paths[i]));
        write_file(file, "two", 3);
        CHECK(settings_change(paths[i]) && !settings_change(paths[i]));
    }
    folder_end();
}

int main(int argc, char **argv) {
    const char *end = argc ? strrchr(argv[0], '/') : NULL;
    snprintf(programs, sizeof programs, "%.*s/microcontroller", end ? (int)(end - argv[0]) : 1,
             end ? argv[0] : ".");
    RUN(a_story);
    RUN(a_long_story);
    RUN(integer_products);
    RUN(integer_products_of_helium);
    RUN(learning);
    RUN(another_model_of_the_same_name);
    return test_report("test_microcontroller");
}
