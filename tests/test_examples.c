/* The small examples as their users run them: each as a process, judged by its exit status and by what it prints. */
#include "preamble.h"
#include "folder.h"
#include <sys/wait.h>

#define MODEL "examples/models/stories.gguf"

static char program_folder[512]; /* this program's, where the examples are too */
static char *said;               /* what the last run printed on standard output */
static char *complained;         /* and on standard error */

/* Text of a file, zero-terminated; the caller frees it. */
static char *text_of(const char *path) {
    bytes b = read_file(path);
    put_u8(&b, 0);
    return (char *)b.data;
}

/* Runs an example in the shell; its exit status. Its input is `input`; $RUNNER runs it if this program was run by
   that. */
static int run(const char *example, const char *arguments, const char *input) {
    char command[4096];
    const char *runner = getenv("RUNNER");
    write_file(in_folder("input"), input, strlen(input));
    snprintf(command, sizeof command, "%s %s/%s %s <%s >%s 2>%s", runner ? runner : "", program_folder,
             example, arguments, in_folder("input"), in_folder("said"), in_folder("complained"));
    int status = system(command);
    free(said), free(complained);
    said = text_of(in_folder("said"));
    complained = text_of(in_folder("complained"));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The same for a run that is to succeed. */
static int runs(const char *example, const char *arguments, const char *input) {
    int status = run(example, arguments, input);
    if (status == 0 && !*complained) return 1;
    return printf("%s %s ended with %d: %s\n", example, arguments, status, complained), 0;
}

/* ---- generate ---- */

static int collect(void *user, int32_t id, const char *text, size_t n) {
    (void)id;
    put((bytes *)user, text, n);
    return 1;
}

TEST(generate) {
    ml_model *model;
    ml_session *session;
    ml_generate_desc desc = {0};
    bytes expected = {NULL, 0, 0};
    REQUIRE(ml_model_load(MODEL, NULL, &model, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    put_text(&expected, "The cat");
    desc.prompt = "The cat";
    desc.on_token = collect;
    desc.user = &expected;
    CHECK(ml_session_generate(session, &desc, NULL, NULL) == ML_OK);
    put_literal(&expected, "\n\0");
    REQUIRE(runs("generate", MODEL " 'The cat'", ""));
    CHECK(strcmp(said, (const char *)expected.data) == 0);
    CHECK(strlen(said) > 100);
    free_bytes(&expected);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- chat ---- */

/* Appends tokens one by one, and then the most likely ones, as text: what a turn must print. */
static void expect_turn(ml_session *session, const char *prompt, int flags, int n_new, bytes *expected) {
    int32_t work[4096];
    ml_encode_desc encode = {prompt, strlen(prompt), flags, work, sizeof work};
    const ml_tokenizer *tokenizer = session->model->tokenizer;
    const float *logits = NULL;
    ml_tokens tokens;
    REQUIRE(ml_tokenizer_encode(tokenizer, &encode, &tokens, NULL) == ML_OK && tokens.n > 0);
    for (int i = 0; i < tokens.n; i++)
        REQUIRE(ml_session_eval(session, &tokens.ids[i], 1, &logits, NULL) == ML_OK);
    for (int has_begun = 1; n_new > 0; n_new--) {
        size_t n;
        int32_t id = 0;
        for (int32_t i = 1; i < tokenizer->n_pieces; i++)
            if (logits[i] > logits[id]) id = i;
        const char *text = ml_tokenizer_decode_token(tokenizer, &has_begun, id, &n);
        put(expected, text, n);
        if (memchr(text, '\n', n)) break;
        REQUIRE(ml_session_eval(session, &id, 1, &logits, NULL) == ML_OK);
    }
}

/* Two turns print what one session gives that is fed token by token: nothing is forgotten between them. */
TEST(chat) {
    ml_model *model;
    ml_session *session;
    bytes expected = {NULL, 0, 0};
    REQUIRE(ml_model_load(MODEL, NULL, &model, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    put_text(&expected, "> ");
    expect_turn(session, "Once upon a time", ML_ADD_BOS, 30, &expected);
    put_text(&expected, "\n> ");
    expect_turn(session, "Then the dog", 0, 30, &expected);
    put_literal(&expected, "\n> \0");
    REQUIRE(runs("chat", MODEL, "Once upon a time\nThen the dog\n"));
    CHECK(strcmp(said, (const char *)expected.data) == 0);
    CHECK(strlen(said) > 100);
    free_bytes(&expected);
    ml_session_free(session);
    ml_model_free(model);
}

/* Text beyond the context does not end a conversation. */
TEST(chat_outlives_the_context) {
    char lines[4096] = "";
    for (int i = 0; i < 20; i++) strcat(lines, "The little dog ran to the big park and saw a bird.\n");
    REQUIRE(runs("chat", MODEL, lines));
    int prompts = 0;
    for (const char *p = said; (p = strstr(p, "> ")) != NULL; p++) prompts++;
    CHECK(prompts == 21);
}

/* ---- lora and classify ---- */

/* How many of the lines "label ||| sentence" are classified rightly; *n is how many there are. */
static int count_right(char *truth, const char *answers, int *n) {
    int right = 0;
    *n = 0;
    for (char *line = strtok(truth, "\n"); line && answers; line = strtok(NULL, "\n"), ++*n) {
        int label;
        double p;
        CHECK(sscanf(answers, "%d %lf", &label, &p) == 2 && p > 0.49 && p <= 1);
        right += label == atoi(line);
        answers = strchr(answers, '\n');
        if (answers) answers++;
    }
    return right;
}

/* The sentences of lines "label ||| sentence". */
static void sentences_of(const char *lines, bytes *to) {
    for (const char *p = lines; (p = strstr(p, " ||| ")) != NULL; p++)
        put(to, p + 5, strcspn(p + 5, "\n") + 1);
    put_u8(to, 0);
}

/* One process trains and saves, another loads and labels opinions that the first has not seen. Of 60, chance finds
   half, give or take 4. */
TEST(lora_and_classify) {
    char arguments[2048];
    bytes sentences = {NULL, 0, 0};
    char *truth = text_of("examples/data/opinions2-test.txt");
    int n, epoch;
    double first, loss = 0;
    snprintf(arguments, sizeof arguments, MODEL " examples/data/opinions2-train.txt 2 %s",
             in_folder("adapter.gguf"));
    REQUIRE(runs("lora", arguments, ""));
    CHECK(sscanf(said, "epoch 0: loss %lf", &first) == 1 && first < 1);
    const char *last = strstr(said, "epoch 5:");
    CHECK(last && sscanf(last, "epoch %d: loss %lf", &epoch, &loss) == 2 && loss < 0.5 * first);
    sentences_of(truth, &sentences);
    snprintf(arguments, sizeof arguments, MODEL " %s", in_folder("adapter.gguf"));
    REQUIRE(runs("classify", arguments, (const char *)sentences.data));
    int right = count_right(truth, said, &n);
    CHECK(n == 60 && right >= 42);
    free_bytes(&sentences);
    free(truth);
}

/* ---- train ---- */

TEST(train) {
    static const char story[] =
        "Tom had a ball. He lost it in the park. Anna found it and gave it back to Tom.\n";
    bytes text = {NULL, 0, 0};
    char arguments[2048];
    double first, last = 0;
    for (int i = 0; i < 20; i++) put_text(&text, story);
    write_file(in_folder("story.txt"), text.data, text.size);
    free_bytes(&text);
    snprintf(arguments, sizeof arguments, MODEL " %s %s", in_folder("story.txt"), in_folder("small.gguf"));
    REQUIRE(runs("train", arguments, ""));
    CHECK(sscanf(said, "step 20: loss %lf", &first) == 1);
    const char *line = strstr(said, "step 200:");
    CHECK(line && sscanf(line, "step 200: loss %lf", &last) == 1 && last < 0.1 && last < first);
    snprintf(arguments, sizeof arguments, "%s 'Tom had a ball.'", in_folder("small.gguf"));
    REQUIRE(runs("generate", arguments, ""));
    CHECK(strncmp(said, story, strlen(story) - 1) == 0); /* it has memorized the story */
}

/* ---- embed ---- */

/* A sentence is nearest to itself, and a sentence about the same nearer than one about something else. */
TEST(embed) {
    double same, close, far;
    REQUIRE(runs("embed", MODEL " 'The dog ran to the park.'",
                 "The dog ran to the park.\nThe dog ran to the big park.\nOne, two, three!\n"));
    CHECK(sscanf(said, "%lf The dog ran to the park.\n%lf The dog ran to the big park.\n%lf One", &same,
                 &close, &far) == 3);
    CHECK_NEAR(same, 1, 1e-4, 0);
    CHECK(close < 1 && far < close && far > -1);
    CHECK(strstr(said, "\nnearest: The dog ran to the park.\n") != NULL);
}

/* ---- what goes wrong ---- */

TEST(errors) {
    static const char *const examples[] = {"generate", "chat", "classify", "lora", "train", "embed"};
    for (int i = 0; i < 6; i++) {
        CHECK(run(examples[i], "", "") == 2 && strstr(complained, "usage: ") != NULL);
    }
    CHECK(run("generate", "absent.gguf", "") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("chat", "absent.gguf", "") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("embed", "absent.gguf x", "x\n") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("classify", MODEL, "x\n") == 1 && *complained); /* it has no classifier */
    CHECK(run("lora", MODEL " absent.txt 2 x", "") == 2);
    CHECK(run("lora", MODEL " examples/data/opinions5-train.txt 2 /nowhere/x", "") == 1 && *complained);
    write_file(in_folder("short.txt"), "Tom.", 4);
    char arguments[2048];
    snprintf(arguments, sizeof arguments, MODEL " %s %s", in_folder("short.txt"), in_folder("none.gguf"));
    CHECK(run("train", arguments, "") == 1 && strstr(complained, "too short") &&
          !exists(in_folder("none.gguf")));
}

int main(int argc, char **argv) {
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    snprintf(program_folder, sizeof program_folder, "%.*s", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    if (!folder_begin("examples")) return 1;
    RUN(generate);
    RUN(chat);
    RUN(chat_outlives_the_context);
    RUN(lora_and_classify);
    RUN(train);
    RUN(embed);
    RUN(errors);
    free(said), free(complained);
    if (!folder_end()) return 1;
    return test_report("test_examples");
}
