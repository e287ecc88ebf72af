/* The programs as their users run them: each as a process, judged by its exit status and by what it prints and
   leaves. (pretrain has a test of its own.) */
#include "preamble.h"
#include "folder.h"
#include "chain_model.h"
#include <poll.h>
#include <sys/wait.h>
#include <time.h>

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

/* Runs an example in the shell, whose arguments may redirect it; its exit status. Its input is
   `input`; $RUNNER runs it if this program was run by that. */
static int run(const char *example, const char *arguments, const char *input) {
    char command[4096];
    const char *runner = getenv("RUNNER");
    write_file(in_folder("input"), input, strlen(input));
    snprintf(command, sizeof command, "%s '%s/%s' <'%s' >'%s' 2>'%s' %s", runner ? runner : "",
             program_folder, example, in_folder("input"), in_folder("said"), in_folder("complained"),
             arguments);
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
    REQUIRE(
        runs("generate_few", MODEL " 'The cat'", "")); /* where types are left out, the others are the same */
    CHECK(strcmp(said, (const char *)expected.data) == 0);
    free_bytes(&expected);
    ml_session_free(session);
    ml_model_free(model);
}

/* A number of NumPy of two bytes, read by a build without weights of two bytes. */
TEST(small_numbers_of_numpy) {
    bytes pickle = {NULL, 0, 0};
    put_literal(&pickle, "\x80\3}(");
    pk_text(&pickle, "best_acc");
    put_literal(&pickle, "cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(");
    pk_text(&pickle, "f2");
    put_literal(&pickle, "\x89\x88tR(K\3");
    pk_text(&pickle, "<");
    put_literal(&pickle, "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbC\2\0\x3ctRu.");
    bytes file = pt_file(&pickle, 6);
    write_file(in_folder("best.pt"), file.data, file.size);
    char arguments[1024];
    snprintf(arguments, sizeof arguments, "'%s' x", in_folder("best.pt"));
    CHECK(run("generate_few", arguments, "") == 1 && strstr(complained, "no configuration"));
    free_bytes(&pickle), free_bytes(&file);
}

/* Words without quotes are not passed over. */
TEST(words_too_many) {
    CHECK(run("generate", MODEL " Once upon a time", "") == 2 && strstr(complained, "usage: generate"));
    static const char *const steps[] = {"3x", "1e3", "99999999999", "0", "''", "1 To be or not"};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        char arguments[128];
        snprintf(arguments, sizeof arguments, "examples/data/opinions5-train.txt %s", steps[i]);
        CHECK(run("characters", arguments, "") == 2 && strstr(complained, "[STEPS [FIRST_WORDS]]") && !*said);
    }
}

/* ---- inspect ---- */

static int says(const char *what, const char *file, const char *size) {
    char line[128];
    snprintf(line, sizeof line, "  %-14s %-34s %s\n", what, file, size);
    return strstr(said, line) != NULL || printf("not said: %s", line) < 0;
}

/* Which files of a folder are used, and what is missing: a shard, a piece of Meta's, the configuration. */
TEST(inspect_folder) {
    static const char index[] = "{\"weight_map\": {\"a\": \"m-00001-of-00002.safetensors\","
                                " \"b\": \"m-00002-of-00002.safetensors\"}}";
    bytes small = small_safetensors(), pt = small_pt();
    char arguments[700], size[32];
    CHECK(make_folder(in_folder("kit")) && make_folder(in_folder("kit/meta")));
    write_file(in_folder("kit/m.safetensors.index.json"), index, strlen(index));
    write_file(in_folder("kit/m-00001-of-00002.safetensors"), small.data, small.size);
    write_file(in_folder("kit/generation_config.json"), "{}", 2);
    write_file(in_folder("kit/tokenizer.model"), "?", 1);
    write_file(in_folder("kit/README.md"), "?", 1);
    snprintf(arguments, sizeof arguments, "'%s'", in_folder("kit"));
    CHECK(run("inspect", arguments, "") == 1 && strstr(complained, "m-00002-of-00002.safetensors") != NULL);
    snprintf(size, sizeof size, "%zu bytes", small.size);
    CHECK(says("weights", "m-00001-of-00002.safetensors", size));
    CHECK(says("weights", "m-00002-of-00002.safetensors", "missing"));
    CHECK(says("configuration", "config.json", "missing") && says("tokenizer", "tokenizer.model", "1 bytes"));
    CHECK(says("generation", "generation_config.json", "2 bytes") &&
          strstr(said, "files that are missing: 2"));
    CHECK(strstr(said, "chat template  none\n") && !strstr(said, "README"));
    for (int i = 0; i < 4; i += 3) {
        char name[64];
        snprintf(name, sizeof name, "kit/meta/consolidated.%02d.pth", i);
        write_file(in_folder(name), pt.data, pt.size);
    }
    write_file(in_folder("kit/meta/params.json"), "{}", 2);
    snprintf(arguments, sizeof arguments, "'%s'", in_folder("kit/meta"));
    CHECK(run("inspect", arguments, "") == 1 && says("configuration", "params.json", "2 bytes"));
    CHECK(says("weights", "consolidated.01.pth", "missing") &&
          says("weights", "consolidated.02.pth", "missing"));
    CHECK(says("tokenizer", "../tokenizer.model", "1 bytes") && strstr(said, "files that are missing: 2"));
    remove(in_folder("kit/m.safetensors.index.json")); /* a folder without it */
    CHECK(rename(in_folder("kit/m-00001-of-00002.safetensors"), in_folder("kit/model.safetensors")) == 0);
    snprintf(arguments, sizeof arguments, "'%s'", in_folder("kit"));
    CHECK(run("inspect", arguments, "") == 0 && says("weights", "model.safetensors", size));
    CHECK(strstr(said, "format: safetensors") != NULL);
    CHECK(make_folder(in_folder("k\033[32mit"))); /* names are shown without what a terminal obeys */
    write_file(in_folder("k\033[32mit/b\033[31m.gguf"), "?", 1);
    snprintf(arguments, sizeof arguments, "'%s'", in_folder("k\033[32mit"));
    CHECK(run("inspect", arguments, "") == 1 && says("weights", "b?[31m.gguf", "1 bytes"));
    CHECK(strstr(said, "k?[32mit:\n") && !strchr(said, 27));
    write_file(in_folder("k\033[32mit/a.gguf"), "?", 1); /* neither is the model, nor needs a config.json */
    CHECK(run("inspect", arguments, "") == 1 && !strstr(said, "missing"));
    CHECK(strstr(complained, "is a folder without model.safetensors") != NULL);
    free_bytes(&small), free_bytes(&pt);
}

/* Why a model cannot be run is an error where a tokenizer was named for it. */
TEST(inspect_without_tokenizer) {
    CHECK(run("inspect", MODEL " --tokenizer absent.model", "") == 1);
    CHECK(strstr(said, "not a model that can be run: ") && strncmp(complained, "error: ", 7) == 0);
    CHECK(strstr(complained, "absent.model cannot be opened: No such file"));
}

/* What a file says of its types and classes reaches no terminal as it is. */
/* Texts of up to 100 bytes are printed whole, of longer ones the characters that fit into as many. */
TEST(inspect_cuts_texts_between_characters) {
    static const struct {
        int n;
        const char *end, *shown;
    } cases[] = {
        {100, "", "xx\"\n"}, {99, "\xC3\xA4", "xx\" ...\n"}, {98, "\xC3\xA4z", "xx\xC3\xA4\" ...\n"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char arguments[1024], name[128];
        memset(name, 'x', sizeof name);
        strcpy(name + cases[i].n, cases[i].end);
        snprintf(arguments, sizeof arguments, MODEL " '%s' --name '%s'", in_folder("named.gguf"), name);
        CHECK(runs("convert", arguments, ""));
        snprintf(arguments, sizeof arguments, "'%s'", in_folder("named.gguf"));
        CHECK(run("inspect", arguments, "") == 0 && strstr(said, cases[i].shown) != NULL);
    }
}

TEST(inspect_prints_no_control_characters) {
    static const char header[] = "{\"w\":{\"dtype\":\"\\u001b[31mBAD\\u009b]0;owned\\u0007\",\"shape\":[2],"
                                 "\"data_offsets\":[0,8]}}";
    static const char pickle[] = "\x80\x02}(X\x01\x00\x00\x00"
                                 "ac__main__\nEvil\xc2\x9d]0;owned\x07\x1b[31m\n)\x81u.";
    bytes files[2] = {safetensors_file(header, "........", 8), {NULL, 0, 0}};
    zip z;
    memset(&z, 0, sizeof z);
    zip_add(&z, "archive/data.pkl", pickle, sizeof pickle - 1);
    zip_add(&z, "archive/version", "3\n", 2);
    files[1] = zip_end(&z, 0, "");
    for (int i = 0; i < 2; i++) {
        char arguments[700];
        write_file(in_folder("escapes"), files[i].data, files[i].size);
        snprintf(arguments, sizeof arguments, "'%s'", in_folder("escapes"));
        CHECK(run("inspect", arguments, "") == 0 &&
              strstr(said, i ? "?]0;owned??[31m>" : "?[31mBAD?]0;owned?"));
        for (const char *c = said; *c; c++) CHECK(*c == '\n' || ((unsigned char)*c >= 32 && *c != 127));
        CHECK(!strstr(said, "\xc2\x9b") && !strstr(said, "\xc2\x9d")); /* in UTF-8, 127 is not the last one */
        for (const char *c = complained; *c; c++) CHECK(*c == '\n' || (unsigned char)*c >= 32);
        free_bytes(&files[i]);
    }
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

/* What is not told by the file is told by options; /reset begins again; a line that is too long is refused. */
TEST(chat_options) {
    static const char *const pairs[] = {"\nO", "OK", "K{<|im_end|>}", NULL};
    ml_model *model = chain_model(&qwen2, pairs);
    const char *path = in_folder("chain.gguf");
    char arguments[1024], line[400];
    REQUIRE(ml_model_save(model, path, NULL, NULL) == ML_OK);
    ml_model_free(model);
    snprintf(arguments, sizeof arguments, "'%s' --template chatml --system Short. --temperature 0", path);
    REQUIRE(runs("chat", arguments, "Hello\n\n  who\n/reset\nagain"));
    CHECK(strcmp(said, "> OK\n> > OK\n> > OK\n> ") == 0);
    memset(line, 'x', sizeof line);
    strcpy(line + 300, "\nHi\n");
    CHECK(run("chat", arguments, line) == 0 && strcmp(said, "> > OK\n> ") == 0);
    CHECK(strstr(complained, "a turn of more than 256 tokens") != NULL);
    CHECK(run("chat", MODEL " --template llama3", "Hi\n") == 1);
    CHECK(strstr(complained, "llama3 needs the piece <|start_header_id|>") != NULL);
    CHECK(run("chat", MODEL " --template alpaca", "") == 2);
    CHECK(strstr(complained, "plain, llama2, llama3, chatml or zephyr, not alpaca") != NULL);
    CHECK(run("chat", MODEL " >/dev/full", "Hi\n") == 1 && strstr(complained, "cannot be written"));
    CHECK(run("chat", MODEL " <.", "") == 1 && strstr(complained, "standard input cannot be read: Is a"));
    static const char *const refused[][2] = {
        {"--temperature -1", "not negative"},
        {"--top-k -3", "not negative"},
        {"--repetition-penalty -1", "not negative"},
        {"--top-p 7", "--top-p and --min-p are between 0 and 1"},
        {"--min-p -0.1", "between 0 and 1"},
        {"--max-new-tokens -5", "--max-new-tokens is not negative"},
        {"--top-p 1e39", "takes a number"},
        {"--temperature 0 --top-k 3", "--temperature: is 0, and then nothing is drawn from what a filter"},
        {"--top-p 0.9", "--temperature: is 0"}, /* by default, for a story */
        {"--min-p 0.1", "--temperature: is 0"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        snprintf(arguments, sizeof arguments, MODEL " %s", refused[i][0]);
        CHECK(run("chat", arguments, "Hi\n") == 2 && strstr(complained, refused[i][1]));
    }
}

/* A chat that runs, with a pipe at each end. */
typedef struct running {
    pid_t process;
    int in, out;
} running;

static running begin_chat(const char *model) {
    running r = {-1, -1, -1};
    int in[2], out[2];
    char command[2048];
    const char *runner = getenv("RUNNER");
    snprintf(command, sizeof command, "exec %s '%s/chat' '%s' --template chatml --context 200000",
             runner ? runner : "", program_folder, model);
    if (pipe(in) || pipe(out)) return r;
    r.process = fork();
    if (r.process == 0) {
        dup2(in[0], 0), dup2(out[1], 1);
        close(in[0]), close(in[1]), close(out[0]), close(out[1]);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(in[0]), close(out[1]);
    r.in = in[1], r.out = out[0];
    return r;
}

/* Reads up to the first `end`; how many bytes came before it, or -1 if it does not come within a minute. */
static int read_until(const running *r, const char *end) {
    size_t matched = 0;
    for (int n = 1;; n++) {
        struct pollfd ready = {r->out, POLLIN, 0};
        char c;
        if (poll(&ready, 1, 60000) != 1 || read(r->out, &c, 1) != 1) return -1;
        matched = c == end[matched] ? matched + 1 : c == end[0];
        if (!end[matched]) return n - (int)matched;
    }
}

/* Ctrl-C stops an answer that has no end (the pipe holds it up before it is complete), the conversation goes on, and
   at the prompt it ends the program. */
TEST(chat_is_interrupted) {
    static const char *const pairs[] = {"\na", "aa", NULL};
    ml_model *model = chain_model(&qwen2, pairs);
    const char *path = in_folder("endless.gguf");
    REQUIRE(ml_model_save(model, path, NULL, NULL) == ML_OK);
    ml_model_free(model);
    running r = begin_chat(path);
    REQUIRE(r.process > 0);
    CHECK(read_until(&r, "> ") == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(write(r.in, "b\n", 2) == 2 && read_until(&r, "aa") == 0 && kill(r.process, SIGINT) == 0);
        int n = read_until(&r, "\n> ");
        CHECK(n >= 0 && n < 150000);
    }
    struct timespec moment = {
        0, 20000000}; /* until it waits for a line: before, Ctrl-C would still be the answer's */
    int status = 0, tries = 0;
    for (; waitpid(r.process, &status, WNOHANG) == 0 && tries < 3000; tries++) {
        kill(r.process, SIGINT);
        nanosleep(&moment, NULL);
    }
    CHECK(tries < 3000 && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(r.in), close(r.out);
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

static int n_lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

/* Of a line that is too long even to be encoded, the end is cut off, too, and all are labeled. */
static void long_lines(const char *classifier) {
    bytes lines = {NULL, 0, 0};
    for (int line = 0; line < 3; line++) {
        put_text(&lines, &"good"[line]);
        for (int i = 0; i < 20000; i++) put_text(&lines, "\xc3\xa9");
        put_text(&lines, "\n");
    }
    put_literal(&lines, "bad film\n\0");
    REQUIRE(runs("classify", classifier, (const char *)lines.data));
    CHECK(n_lines(said) == 4 && strstr(said, " bad film\n"));
    REQUIRE(runs("embed", MODEL " 'a film'", (const char *)lines.data));
    CHECK(n_lines(said) == 5 && strstr(said, " bad film\n"));
    free_bytes(&lines);
}

/* One process trains and saves, another loads and labels opinions that the first has not seen. Of 60, chance finds
   half, give or take 4. */
TEST(lora_and_classify) {
    char arguments[2048];
    bytes sentences = {NULL, 0, 0};
    char *truth = text_of("examples/data/opinions2-test.txt");
    int n, epoch;
    double first, loss = 0;
    snprintf(arguments, sizeof arguments, MODEL " examples/data/opinions2-train.txt 2 '%s'",
             in_folder("adapter.gguf"));
    REQUIRE(runs("lora", arguments, ""));
    CHECK(sscanf(said, "epoch 0: loss %lf", &first) == 1 && first < 1);
    const char *last = strstr(said, "epoch 5:");
    CHECK(last && sscanf(last, "epoch %d: loss %lf", &epoch, &loss) == 2 && loss < 0.5 * first);
    sentences_of(truth, &sentences);
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("adapter.gguf"));
    REQUIRE(runs("classify", arguments, (const char *)sentences.data));
    int right = count_right(truth, said, &n);
    CHECK(n == 60 && right >= 42);
    sentences.size = 0; /* one that is longer than the context is cut off, but remains one */
    for (int i = 0; i < 500; i++) put_text(&sentences, "good film ");
    put_literal(&sentences, "\nbad film\n\0");
    REQUIRE(runs("classify", arguments, (const char *)sentences.data));
    CHECK(strchr(said, '\n') && strstr(strchr(said, '\n'), " bad film\n") && n_lines(said) == 2);
    REQUIRE(runs("embed", MODEL " 'a film'", (const char *)sentences.data));
    CHECK(strstr(said, " bad film\n") && n_lines(said) == 3);
    long_lines(arguments);
    REQUIRE(runs("classify", arguments, "\xef\xbb\xbfgood film\ngood film\n")); /* as Windows begins a text */
    CHECK(n_lines(said) == 2 && strncmp(said, strchr(said, '\n') + 1, strcspn(said, "\n") + 1) == 0);
    strcat(arguments, " <.");
    CHECK(run("classify", arguments, "") == 1 && strstr(complained, "standard input cannot be read: Is a"));
    arguments[strlen(arguments) - 3] = 0;
    strcat(arguments, " >/dev/full");
    CHECK(!exists("/dev/full") || run("classify", arguments, "good film\n") == 1);
    CHECK(!exists("/dev/full") || strstr(complained, "standard output cannot be written"));
    free_bytes(&sentences);
    free(truth);
}

/* As Windows begins a file, and of fewer lines than make a step. */
TEST(lora_of_few_lines) {
    static const char *const texts[] = {"1 ||| good film\n0 ||| bad film\n",
                                        "\xef\xbb\xbf"
                                        "1 ||| good film\n0 ||| bad film\n",
                                        "1 ||| good film\r\n0 ||| bad film\r\n",
                                        "1 ||| good film\r0 ||| bad film\r"};
    char arguments[2048], *first = NULL;
    double losses[2];
    snprintf(arguments, sizeof arguments, MODEL " '%s' 2 '%s'", in_folder("few.txt"), in_folder("few.gguf"));
    for (int i = 0; i < 4; i++) {
        write_file(in_folder("few.txt"), texts[i], strlen(texts[i]));
        REQUIRE(runs("lora", arguments, ""));
        const char *last = strstr(said, "epoch 5:");
        CHECK(sscanf(said, "epoch 0: loss %lf", &losses[0]) == 1);
        CHECK(last && sscanf(last, "epoch 5: loss %lf", &losses[1]) == 1);
        CHECK(losses[1] < losses[0] / 2);
        CHECK(!first || strcmp(first, said) == 0);
        if (!first) first = text_of(in_folder("said"));
    }
    free(first);
    bytes longer = {NULL, 0, 0}; /* than the context, and than what can be encoded */
    put_text(&longer, "1 |||");
    for (int i = 0; i < 4000; i++) put_text(&longer, " good film");
    put_text(&longer, "\n0 ||| bad film\n");
    write_file(in_folder("few.txt"), longer.data, longer.size);
    CHECK(runs("lora", arguments, "") && strstr(said, "epoch 5:"));
    free_bytes(&longer);
    write_file(in_folder("few.txt"), "one ||| good film\n", 18);
    CHECK(run("lora", arguments, "") == 1 && strstr(complained, "line 1 does not begin with a label"));
    static const char *const labels[] = {"4294967296 ||| good\n", "-1 ||| good\n",
                                         "0 ||| bad\n40000 ||| ?\n"};
    for (int i = 0; i < 3; i++) {
        write_file(in_folder("few.txt"), labels[i], strlen(labels[i]));
        CHECK(run("lora", arguments, "") == 1 && strstr(complained, " does not begin with a label"));
    }
    write_file(in_folder("few.txt"), "", 0);
    CHECK(run("lora", arguments, "") == 1 && strstr(complained, "there are no lines"));
    write_file(in_folder("few.txt"), "1\0 \0|\0", 6);
    CHECK(run("lora", arguments, "") == 1 && strstr(complained, "a zero byte: this is no text, or UTF-16"));
    CHECK(run("lora", MODEL " . 2 none.gguf", "") == 1 &&
          strstr(complained, "TRAINING cannot be read: Is a"));
    CHECK(run("lora", MODEL " examples/data/opinions2-dev.txt 2x none.gguf", "") == 2);
    CHECK(strstr(complained, "N_CLASSES cannot be \"2x\"") && !exists("none.gguf"));
}

/* ---- train ---- */

TEST(train) {
    static const char story[] =
        "Tom had a ball. He lost it in the park. Anna found it and gave it back to Tom.\n";
    bytes text = {NULL, 0, 0};
    char arguments[2048];
    double first, last = 0;
    for (int i = 0; i < 2000; i++) put_text(&text, story); /* more than it takes */
    write_file(in_folder("story.txt"), text.data, text.size);
    free_bytes(&text);
    snprintf(arguments, sizeof arguments, MODEL " '%s' '%s'", in_folder("story.txt"),
             in_folder("small.gguf"));
    REQUIRE(runs("train", arguments, ""));
    CHECK(sscanf(said, "step 20: loss %lf", &first) == 1);
    const char *line = strstr(said, "step 200:");
    CHECK(line && sscanf(line, "step 200: loss %lf", &last) == 1 && last < 0.1 && last < first);
    snprintf(arguments, sizeof arguments, "'%s' 'Tom had a ball.'", in_folder("small.gguf"));
    REQUIRE(runs("generate", arguments, ""));
    CHECK(strncmp(said, story, strlen(story) - 1) == 0); /* it has memorized the story */
}

/* ---- autograd ---- */

TEST(xor) {
    REQUIRE(runs("xor", "", ""));
    double y[4];
    const char *line = strstr(said, "0 xor 0");
    REQUIRE(line && sscanf(line, "0 xor 0 = %lf 0 xor 1 = %lf 1 xor 0 = %lf 1 xor 1 = %lf", y, y + 1, y + 2,
                           y + 3) == 4);
    CHECK(y[0] < 0.1 && y[1] > 0.9 && y[2] > 0.9 && y[3] < 0.1);
}

/* Bytes at random have ln 256 = 5.5 each, letters by their frequency about 3. */
TEST(characters) {
    double loss = 9;
    REQUIRE(runs("characters", "examples/data/opinions5-train.txt 100 'The film '", ""));
    const char *line = strstr(said, "step 100: ");
    CHECK(line && sscanf(line, "step 100: loss %lf", &loss) == 1 && loss < 2.9);
    CHECK(strstr(said, "\nThe film ") != NULL);
    char *texts[2]; /* of long first words all are shown, and the last 64 bytes are read */
    for (int i = 0; i < 2; i++) {
        char arguments[512],
            words[] = "............................ and then the film that we had seen was over and";
        words[0] = (char)('a' + i);
        snprintf(arguments, sizeof arguments, "examples/data/opinions5-train.txt 1 '%s'", words);
        REQUIRE(runs("characters", arguments, ""));
        CHECK(strncmp(said, words, strlen(words)) == 0 && strlen(said) == strlen(words) + 301);
        texts[i] = said, said = NULL;
    }
    CHECK(strcmp(texts[0] + 1, texts[1] + 1) == 0);
    free(texts[0]), free(texts[1]);
}

/* Of 60, chance finds half, give or take 4; the fourth epoch labels 42 rightly at least. */
TEST(own_head) {
    int right[2], n[2];
    const char *const files = MODEL " examples/data/opinions2-train.txt examples/data/opinions2-dev.txt",
                      *line;
    char arguments[512];
    REQUIRE(runs("own_head", files, ""));
    line = said;
    for (int epoch = 1; line && epoch < 4; epoch++) line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL;
    REQUIRE(line && sscanf(line, "right %d of %d, unseen %d of %d", right, n, right + 1, n + 1) == 4);
    CHECK(n[0] == 240 && n[1] == 60 && right[1] >= 42);
    CHECK(run("own_head", "absent.gguf " MODEL " " MODEL, "") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("own_head", MODEL " absent.txt " MODEL, "") == 1 && strstr(complained, "absent.txt"));
    write_file(in_folder("bad.txt"), "1 ||| good\nbad\n", 15);
    snprintf(arguments, sizeof arguments, MODEL " '%s' examples/data/opinions2-dev.txt",
             in_folder("bad.txt"));
    CHECK(run("own_head", arguments, "") == 1 && strstr(complained, "one without \"0 or 1 |||\""));
    static const char *const labels[] = {"4294967296 ||| good\n", "-1 ||| good\n", "2 ||| good\n"};
    for (int i = 0; i < 3; i++) {
        write_file(in_folder("bad.txt"), labels[i], strlen(labels[i]));
        CHECK(run("own_head", arguments, "") == 1 && strstr(complained, "one without \"0 or 1 |||\""));
    }
    write_file(in_folder("bad.txt"), "1 ||| good\n1 ||| \n0 ||| bad\n", 28); /* the second one is empty */
    REQUIRE(runs("own_head", arguments, ""));
    CHECK(strstr(said, "of 3, unseen"));
    char longer[3 * 4096];
    memset(longer, 'x', sizeof longer);
    memcpy(longer, "1 ||| ", 6), memcpy(longer + sizeof longer - 12, "\n0 ||| bad\n\n", 12);
    write_file(in_folder("bad.txt"), longer, sizeof longer);
    REQUIRE(runs("own_head", arguments, ""));
    CHECK(strstr(said, "of 2, unseen"));
    write_file(in_folder("bad.txt"), "", 0);
    CHECK(run("own_head", arguments, "") == 1 && strstr(complained, "no line, or one") && !*said);
    CHECK(run("own_head", MODEL " tests tests", "") == 1 && strstr(complained, "tests: Is a directory"));
    CHECK(run("own_head", "", "") == 2 && run("characters", "", "") == 2);
    CHECK(run("characters", "tests", "") == 1 && strstr(complained, "tests: Is a directory"));
    CHECK(run("characters", "absent.txt", "") == 1 && strstr(complained, "absent.txt"));
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
    REQUIRE(runs("embed", MODEL " x", "\xef\xbb\xbfThe dog\nThe dog\n"));
    CHECK(strncmp(said, strchr(said, '\n') + 1, strcspn(said, "\n") + 1) == 0);
    CHECK(run("embed", MODEL " x", "") == 1 && strstr(complained, "standard input has no sentence"));
    CHECK(run("embed", MODEL " x <.", "") == 1 && strstr(complained, "standard input cannot be read: Is a"));
}

/* ---- run_llama ---- */

#define OPINIONS(n)                                                                                          \
    " --dev examples/data/opinions" #n "-dev.txt --test examples/data/opinions" #n                           \
    "-test.txt --label-names examples/data/opinions" #n "-labels.json --threads 1 --batch_size 10"
#define HOW_LLAMA_TRAINS                                                                                     \
    "--pooling last --schedule linear --warmup 0.05 --clip 1 --head_lr 1e-3 --weight_decay 0"
/* As small as a run can be. */
#define SHORT " --train examples/data/opinions2-dev.txt --epochs 1" OPINIONS(2)

/* A flag and a file of the folder. */
static const char *flag(const char *name, const char *file) {
    static char texts[64][800];
    static int turn;
    turn = (turn + 1) % 64;
    snprintf(texts[turn], sizeof texts[0], " %s '%s'", name, in_folder(file));
    return texts[turn];
}

/* The arguments, and three of flag()'s. */
static int runs_llama(const char *arguments, const char *a, const char *b, const char *c) {
    char all[4096];
    snprintf(all, sizeof all, "%s%s%s%s", arguments, a, b, c);
    return run("run_llama", all, "");
}

static int same_files(const char *a, const char *b) {
    bytes x = read_file(in_folder(a)), y = read_file(in_folder(b));
    int same = x.size && x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
    free_bytes(&x);
    free_bytes(&y);
    return same;
}

/* Trains, predicts by what was saved, and compares. `model` is what predicts. */
static void trains_and_predicts(const char *how, const char *state, const char *model) {
    char arguments[2048];
    snprintf(arguments, sizeof arguments, "--pretrained-model-path " MODEL " %s --seed 1" SHORT, how);
    REQUIRE(runs_llama(arguments, flag("--dev_out", "dev"), flag("--test_out", "test"),
                       flag("--state", state)) == 0);
    CHECK(strstr(said, "best epoch 0, dev acc 0.") != NULL);
    snprintf(arguments, sizeof arguments, "--option predict %s" OPINIONS(2), model);
    REQUIRE(runs_llama(arguments, flag("--dev_out", "dev2"), flag("--test_out", "test2"), "") == 0);
    CHECK(strncmp(said, "dev acc :: 0.", 13) == 0 && strstr(said, "\ntest acc :: 0."));
    CHECK(same_files("dev", "dev2") && same_files("test", "test2"));
}

/* A file says by itself whether its model computes as the assignment's. */
TEST(predict) {
    trains_and_predicts("--option finetune --lr 5e-4", "tuned.gguf",
                        flag("--pretrained-model-path", "tuned.gguf"));
    trains_and_predicts("--option finetune --lr 5e-4 --mode llama", "tuned.gguf",
                        flag("--pretrained-model-path", "tuned.gguf"));
    char model[1024];
    snprintf(model, sizeof model, "--pretrained-model-path " MODEL "%s", flag("--lora", "thin.gguf"));
    trains_and_predicts("--option lora --lr 3e-3", "thin.gguf", model);
    trains_and_predicts("--option lora --lr 3e-3 --mode llama", "thin.gguf", model);
    snprintf(model, sizeof model, "--tokenizer " MODEL " --mode llama%s",
             flag("--pretrained-model-path", "tuned.pt"));
    trains_and_predicts("--option finetune --lr 5e-4 --mode llama --pooling last", "tuned.pt", model);
    snprintf(model, sizeof model, "--option predict --tokenizer " MODEL "%s" OPINIONS(2),
             flag("--pretrained-model-path", "tuned.pt"));
    CHECK(runs_llama(model, flag("--dev_out", "dev2"), flag("--test_out", "test2"), "") == 0);
    CHECK(strstr(complained, "no file says the mode: reference, or --mode llama if that was trained"));
    CHECK(run("run_llama", "--option predict --pretrained-model-path " MODEL OPINIONS(2), "") == 1);
    CHECK(strstr(complained, MODEL) && strstr(complained, "head"));
    CHECK(run("run_llama", "--option lora --lora x --pretrained-model-path " MODEL SHORT, "") == 2);
}

/* How to train is by the mode; in mode reference, and where nothing is trained, there is nothing to choose. */
TEST(how_to_train) {
    static const char *const refused[][2] = {
        {"--option finetune --pooling mean", "--pooling needs --mode llama: mode reference trains as the"},
        {"--option lora --mode reference --warmup 0", "--warmup needs --mode llama"},
        {"--option finetune --schedule none", "--schedule needs --mode llama"},
        {"--option finetune --clip 1", "--clip needs --mode llama"},
        {"--option finetune --head_lr 1", "--head_lr needs --mode llama"},
        {"--option finetune --weight-decay 0", "--weight_decay needs --mode llama"},
        {"--option prompt --mode llama --clip 1", "--clip is for training; this is --option prompt"},
        {"--option predict --eval_train", "--eval_train is for training; this is --option predict"},
        {"--prompt Once --pooling last", "--pooling is for training; this is --option generate"},
        {"--prompt Once --test_gold x", "--test-gold is for a test set; this is --option generate"},
        {"--option generate --seeds 3", "--seeds is for training; this is --option generate"},
        {"--option finetune --seeds 101", "--seeds is from 1 to 100"},
        {"--option lora --seed 2147483647 --seeds 2", "--seed is at most 2147483646, with --seeds 2"},
        {"--option generate --threads 0", "--threads is between 1 and 1024"},
        {"--option predict --state x.gguf", "--state is for training; this is --option predict"},
        {"--option finetune --prompt Once", "--prompt is for --option generate; this is --option finetune"},
        {"--option prompt --top-k=5", "--top_k is for --option generate; this is --option prompt"},
        {"--option generate --temperature 0.5", "--temperature goes with --prompt"},
        {"--prompt Once --lora-scale 0.5", "--lora-scale goes with --lora"},
        {"--prompt Once --score pmi", "--score is for --option prompt; this is --option generate"},
        {"--prompt Once --top_k 3",
         "--temperature: is 0, and then nothing is drawn from what a filter leaves"},
        {"--prompt Once --top_p 0.9", "--temperature: is 0"},
        {"--prompt Once --min_p 0.1 --temperature 0", "--temperature: is 0"},
        {"--prompt Once --epsilon 0.02", "--temperature: is 0"},
        {"--prompt Once --generated_sentence_low_temp_out x", "--prompt writes to standard output"},
        {"--prompt Once --generated_sentence_high_temp_out x", "--prompt writes to standard output"},
        {"--option finetune --mode llama --pooling max", "--pooling is last or mean, not max"},
        {"--option finetune --mode llama --schedule step", "--schedule is none, linear or cosine, not step"},
        {"--option finetune --mode llama --warmup 1", "--warmup is a share of the steps, from 0 to below 1"},
        {"--option finetune --mode llama --head_lr 0", "--head_lr is positive"},
        {"--option finetune --mode llama --clip -1", "--clip and --weight_decay are not negative"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        CHECK(run("run_llama", refused[i][0], "") == 2);
        CHECK(strncmp(complained, "error: ", 7) == 0 && strstr(complained, refused[i][1]));
    }
    char arguments[2048];
    char *first = NULL;
    for (int i = 0; i < 3; i++) { /* by default, the same said in words, and otherwise */
        static const char *const words[] = {"", HOW_LLAMA_TRAINS, HOW_LLAMA_TRAINS " --pooling mean"};
        snprintf(arguments, sizeof arguments,
                 "--option finetune --mode llama --lr 5e-4 --pretrained-model-path " MODEL SHORT " %s",
                 words[i]);
        REQUIRE(runs_llama(arguments, flag("--dev_out", "dev"), flag("--test_out", "test"),
                           flag("--state", "how.gguf")) == 0);
        if (i) CHECK((strcmp(first, said) == 0) == (i == 1));
        if (!i) first = said, said = NULL;
    }
    free(first);
}

/* A question that is longer than --max_sentence_len does not fit, and nothing is written beyond the rows. */
TEST(prompts_have_room) {
    for (int i = 0; i < 6; i++) {
        char arguments[512];
        snprintf(arguments, sizeof arguments,
                 "--option prompt --mode %s --max_sentence_len %d --pretrained-model-path " MODEL SHORT,
                 i % 2 ? "reference" : "llama", 2 + i / 2 * 5);
        CHECK(run("run_llama", arguments, "") == 1 && strstr(complained, ", but there is room for "));
    }
}

/* Where no label of dev is known, none of the epochs is the best: the last one is kept. */
TEST(unknown_labels_choose_nothing) {
    write_file(in_folder("unknown.txt"), "-1 ||| once\n-1 ||| twice\n", 25);
    char arguments[4096];
    snprintf(arguments, sizeof arguments,
             "--option finetune --pretrained-model-path " MODEL SHORT " --epochs 2%s%s",
             flag("--dev", "unknown.txt"), flag("--state", "last.gguf"));
    CHECK(runs_llama(arguments, flag("--dev_out", "dev"), flag("--test_out", "test"), "") == 0);
    CHECK(strstr(said, "epoch 1 is kept, the last: the labels of --dev are not known"));
}

/* Without a label to learn, nothing is trained; only measuring needs none. */
TEST(nothing_to_learn) {
    char arguments[2048];
    write_file(in_folder("unknown.txt"), "-1 ||| once\n-1 ||| twice\n", 25);
    snprintf(arguments, sizeof arguments, "--option finetune --pretrained-model-path " MODEL SHORT "%s",
             flag("--train", "unknown.txt"));
    CHECK(runs_llama(arguments, flag("--dev_out", "dev"), flag("--test_out", "test"),
                     flag("--state", "no.gguf")) == 1);
    CHECK(strstr(complained, "unknown.txt: no line has a label to learn") && !exists(in_folder("no.gguf")));
    for (int epochs = 0; epochs < 2; epochs++) {
        snprintf(arguments, sizeof arguments,
                 "--task opinions2 --data examples/data --threads 1 --method head --epochs %d%s", epochs,
                 flag("--train", "unknown.txt"));
        CHECK(run("efficient", arguments, "") == epochs);
        CHECK(!epochs || strstr(complained, "unknown.txt: no line has a label to learn"));
    }
}

/* A model writes something else with an adapter. */
TEST(adapter_writes) {
    char arguments[2048];
    snprintf(arguments, sizeof arguments, MODEL " examples/data/opinions2-train.txt 2 '%s'",
             in_folder("learned.gguf"));
    REQUIRE(runs("lora", arguments, ""));
    CHECK(runs_llama("--prompt Once --max_new_tokens 40 --pretrained-model-path " MODEL, "", "", "") == 0);
    char *plain = said;
    said = NULL;
    CHECK(runs_llama("--prompt Once --max_new_tokens 40 --pretrained-model-path " MODEL,
                     flag("--lora", "learned.gguf"), "", "") == 0);
    CHECK(strcmp(plain, said) != 0);
    free(plain);
    CHECK(runs_llama("--prompt Once --pretrained-model-path " MODEL, flag("--lora", "no"), "", "") == 1);
    CHECK(strstr(complained, in_folder("no")) != NULL);
}

static void refuses_mode(const char *arguments, const char *mode, const char *advice, const char *other) {
    char words[128];
    CHECK(run("run_llama", arguments, "") == 1 && !*said);
    snprintf(words, sizeof words, "error: --mode %s: ", mode);
    CHECK(strncmp(complained, words, strlen(words)) == 0);
    snprintf(words, sizeof words, " was trained otherwise; %s%s%s\n", advice, *other ? " --mode " : "",
             other);
    CHECK(strstr(complained, words));
}

/* Without --mode it writes as the adapter's file says, and in no other. */
TEST(adapter_writes_as_it_was_trained) {
    static const char *const modes[] = {"llama", "reference"};
    for (int i = 0; i < 2; i++) {
        char train[1024], once[1024], in_mode[1100];
        snprintf(train, sizeof train,
                 "--option lora --mode %s --lr 3e-3 --seed 1 --pretrained-model-path " MODEL SHORT, modes[i]);
        REQUIRE(runs_llama(train, flag("--dev_out", "dev"), flag("--test_out", "test"),
                           flag("--state", "thin.gguf")) == 0);
        snprintf(once, sizeof once, "--prompt Once --max_new_tokens 20 --pretrained-model-path " MODEL "%s",
                 flag("--lora", "thin.gguf"));
        snprintf(in_mode, sizeof in_mode, "%s --mode %s", once, modes[i]);
        REQUIRE(run("run_llama", in_mode, "") == 0);
        char *expected = said;
        said = NULL;
        CHECK(run("run_llama", once, "") == 0);
        CHECK(strlen(said) > 20 && strcmp(said, expected) == 0);
        free(expected);
        snprintf(in_mode, sizeof in_mode, "%s --mode %s", once, modes[!i]);
        refuses_mode(in_mode, modes[!i], "give", modes[i]);
    }
    const char half[] = "{\"__metadata__\": {\"minillama_norm\": \"layer\", \"minillama_mask\": \"causal\"}}";
    char file[8 + sizeof half] = {(char)(sizeof half - 1)};
    memcpy(file + 8, half, sizeof half - 1);
    write_file(in_folder("half.safetensors"), file, 8 + sizeof half - 1);
    for (int i = 0; i < 2; i++) {
        char in_mode[1024];
        snprintf(in_mode, sizeof in_mode, "--prompt Once --mode %s --pretrained-model-path " MODEL "%s",
                 modes[i], flag("--lora", "half.safetensors"));
        refuses_mode(in_mode, modes[i], "leave --mode out", "");
    }
}

/* What does not fit into the context is said, and --slide writes on. */
TEST(context_is_full) {
    static const char *const full = "(the context of 256 tokens is full";
    CHECK(run("run_llama", "--prompt Once --max_new_tokens 9999 --pretrained-model-path " MODEL, "") == 0);
    CHECK(strstr(complained, full) && strstr(complained, " of 9999 new ones; --slide writes on)"));
    CHECK(strlen(said) > 500);
    char *all = said;
    said = NULL;
    CHECK(run("run_llama", "--prompt Once --pretrained-model-path " MODEL, "") == 0);
    CHECK(strstr(complained, full) && strcmp(all, said) == 0);
    CHECK(run("run_llama", "--prompt Once --max-new-tokens 9 --pretrained_model_path " MODEL, "") == 0);
    CHECK(!strstr(complained, full) && strstr(complained, " 9 written"));
    CHECK(run("run_llama", "--prompt Once --slide --max_new_tokens 300 --pretrained-model-path " MODEL, "") ==
          0);
    CHECK(!strstr(complained, full) && strstr(complained, " 300 written") && strlen(said) > strlen(all));
    free(all);
}

/* ---- look ---- */

/* Lines of a table that begin like this; of the last one the text after that. */
static int lines_with(const char *table, const char *begin, const char **rest) {
    int n = 0;
    for (const char *line = table; line; line = strchr(line, '\n')) {
        line += line != table;
        if (strncmp(line, begin, strlen(begin)) != 0) continue;
        n++, *rest = line + strlen(begin);
    }
    return n;
}

TEST(look) {
    static const int32_t ids[] = {1};
    char arguments[2048], dashed[2048], wanted[32];
    const char *rest = NULL;
    const float *logits;
    ml_model *model;
    ml_session *session;
    ml_tokens tokens = {ids, 1};
    snprintf(arguments, sizeof arguments, MODEL " 'The </script> cat'%s --csv '%s' --top 3",
             flag("--out", "page.html"), in_folder("see"));
    CHECK(run("look", MODEL " '-5 degrees'", "") == 2 && strstr(complained, "unknown option -5 degrees"));
    snprintf(dashed, sizeof dashed, MODEL "%s -- '-5 degrees'", flag("--out", "degrees.html"));
    CHECK(runs("look", dashed, "") && runs("look", arguments, ""));
    REQUIRE(ml_model_load(MODEL, NULL, &model, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    REQUIRE(ml_session_encode(session, "The </script> cat", ML_ADD_SPECIAL, &tokens, NULL) == ML_OK);
    REQUIRE(ml_session_eval(session, tokens.ids, tokens.n, &logits, NULL) == ML_OK);
    int best = 0, n = tokens.n, layers = model->config.n_layers;
    for (int i = 1; i < model->config.vocab_size; i++)
        if (logits[i] > logits[best]) best = i;
    char *attention = text_of(in_folder("see-attention.csv")), *lens = text_of(in_folder("see-lens.csv"));
    char *norms = text_of(in_folder("see-norms.csv")), *page = text_of(in_folder("page.html"));
    snprintf(wanted, sizeof wanted, "%d,%d,", layers, n - 1); /* the last layer, after the last token */
    CHECK(lines_with(lens, wanted, &rest) == 3);
    snprintf(wanted, sizeof wanted, "%d,%d,\" cat\",1,%d,", layers, n - 1, best);
    CHECK(lines_with(lens, wanted, &rest) == 1);
    CHECK(lines_with(attention, "2,3,4,", &rest) == 5); /* token 4 reads 0 to 4 */
    CHECK(lines_with(attention, "1,1,0,0,", &rest) == 1 && strncmp(rest, "1\n", 2) == 0);
    CHECK(lines_with(norms, "0,embedding,", &rest) == n && lines_with(norms, "6,ffn,", &rest) == n);
    CHECK(strstr(page, "\" cat\"") && strstr(page, "pieces=[\"\\u003cs>\"") && strstr(page, "</html>"));
    free(attention), free(lens), free(norms), free(page);
    ml_session_free(session);
    ml_model_free(model);
}

/* The same for programs whose files could be written, and for the list of the options. */
static void fills_the_output(void) {
    char learns[1024], trains[1024], converts[2048], learns_pieces[1024];
    snprintf(learns, sizeof learns, MODEL " '%s' 2 '%s'", in_folder("line.txt"), in_folder("f.gguf"));
    snprintf(trains, sizeof trains, MODEL " examples/data/opinions5-train.txt '%s'", in_folder("t.gguf"));
    snprintf(converts, sizeof converts, MODEL " --merge-lora '%s' '%s'", in_folder("f.gguf"),
             in_folder("g.gguf"));
    snprintf(learns_pieces, sizeof learns_pieces,
             "--vocab_size 400 examples/data/opinions5-train.txt --output '%s'", in_folder("f.model"));
    const char *const cases[][2] = {
        {"bench", "decode --threads 1 --model " MODEL},
        {"xor", ""},
        {"characters", "examples/data/opinions5-train.txt 1"},
        {"own_head", MODEL " examples/data/opinions2-dev.txt examples/data/opinions2-dev.txt"},
        {"train", trains},
        {"lora", learns},
        {"convert", converts}, /* says that there is a classifier */
        {"look", flag(MODEL " Once --out", "page.html")},
        {"train_tokenizer", learns_pieces},
        {"convert", "--help"},
        {"inspect", "--help"},
        {"run_llama", "--help"}};
    write_file(in_folder("line.txt"), "1 ||| good film\n0 ||| bad film\n", 31);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char arguments[2100];
        snprintf(arguments, sizeof arguments, "%s >/dev/full", cases[i][1]);
        CHECK(run(cases[i][0], arguments, "") == 1 && strstr(complained, "output"));
        if (!strstr(complained, "output")) printf("%s said: %s\n", cases[i][0], complained);
    }
}

/* A text that cannot be written is an error: on a full disk, here a device that is always full. */
TEST(output_is_full) {
    char arguments[4096];
    if (!exists("/dev/full")) SKIP("there is no /dev/full");
    CHECK(run("run_llama", "--prompt Once --pretrained-model-path " MODEL " >/dev/full", "") == 1);
    CHECK(strstr(complained, "error: standard output cannot be written: No space left") != NULL);
    snprintf(arguments, sizeof arguments,
             "--option prompt --pretrained-model-path " MODEL OPINIONS(2) "%s%s >/dev/full",
             flag("--dev_out", "dev"), flag("--test_out", "test"));
    CHECK(run("run_llama", arguments, "") == 1);
    CHECK(strstr(complained, "standard output cannot be written") != NULL);
    CHECK(run("generate", MODEL " >/dev/full", "") == 1 && strstr(complained, "standard output"));
    CHECK(run("embed", MODEL " x >/dev/full", "y\n") == 1 && strstr(complained, "standard output"));
    CHECK(run("inspect", MODEL " >/dev/full", "") == 1 && strstr(complained, "standard output"));
    fills_the_output();
}

/* ---- files before the work ---- */

/* Fails with this status before anything is done, with these words, and leaves no new file. */
static void refuses_with(int status, const char *program, const char *arguments, const char *words) {
    static const char *const names[] = {"new", "new.tmp", "other", "other.tmp"};
    CHECK(run(program, arguments, "") == status);
    CHECK(strncmp(complained, "error: ", 7) == 0 && strstr(complained, words) && !*said);
    if (!strstr(complained, words)) printf("%s %s said: %s\n", program, arguments, complained);
    for (int i = 0; i < 4; i++) CHECK(!exists(in_folder(names[i])));
}

static void refuses(const char *program, const char *arguments, const char *words) {
    refuses_with(1, program, arguments, words);
}

static void refuses_llama(const char *a, const char *b, const char *c, const char *words) {
    char all[8192];
    snprintf(all, sizeof all, "--option finetune --pretrained-model-path " MODEL SHORT "%s%s%s", a, b, c);
    refuses("run_llama", all, words);
}

TEST(outputs_are_tried_first) {
    write_file(in_folder("old"), "0 ||| of an earlier run\n", 24);
    write_file(in_folder("same"), "0 ||| of an earlier run\n", 24);
    CHECK(symlink(in_folder("old"), in_folder("symbolic")) == 0);
    CHECK(link(in_folder("old"), in_folder("hard")) == 0);
    const char *dev = flag("--dev_out", "new"), *test = flag("--test_out", "other");
    refuses_llama(" --dev_out /nowhere/d", test, "", "/nowhere/d cannot be written: No such file");
    refuses_llama(dev, " --test_out /nowhere/d", "", "/nowhere/d cannot be written: No such file");
    refuses_llama(dev, test, " --state /nowhere/d", "/nowhere/d cannot be written: No such file");
    refuses_llama(dev, test, flag("--state", "."), "cannot be written: Is a directory");
    refuses_llama(dev, test, " --state /dev/null", "/dev/null cannot be written: it is not a regular file");
    refuses_llama(flag("--dev_out", "other"), test, "", "--dev_out and --test_out are the same file");
    refuses_llama(flag("--dev_out", "./other"), test, "", "--dev_out and --test_out are the same file");
    static const char *const ways[] = {"old", "./old", "symbolic", "hard"};
    for (int i = 0; i < 4; i++) {
        refuses_llama(dev, flag("--test_out", ways[i]), flag("--test", "old"), "is also read (--test)");
        refuses_llama(flag("--dev_out", "old"), test, flag("--train", ways[i]), "is also read (--train)");
    }
    refuses_llama(flag("--dev_out", "old"), test, " --train absent.txt", "absent.txt: No such file");
    CHECK(same_files("old", "same"));
    refuses("run_llama", "--generated_sentence_low_temp_out /nowhere/g --pretrained-model-path " MODEL,
            "/nowhere/g cannot be written");
}

#define OPINIONS_OF_EFFICIENT "--task opinions2 --data examples/data --threads 1 "

TEST(tools_try_outputs_first) {
    char arguments[4096];
    bytes model = read_file(MODEL);
    write_file(in_folder("model.gguf"), model.data, model.size);
    write_file(in_folder("model.copy"), model.data, model.size);
    free_bytes(&model);
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("model.gguf"), in_folder("./model.gguf"));
    refuses("convert", arguments, "is also read (IN)");
    refuses("convert", MODEL " /nowhere/m.gguf", "/nowhere/m.gguf cannot be written");
    snprintf(arguments, sizeof arguments, "'%s'%s", in_folder("model.gguf"), flag("--output", "model.gguf"));
    refuses("write_stories", arguments, "is also read (the model)");
    snprintf(arguments, sizeof arguments, "absent.gguf%s", flag("--output", "model.gguf"));
    refuses("write_stories", arguments, "absent.gguf");
    snprintf(arguments, sizeof arguments, "--vocab_size 300 '%s'%s", in_folder("model.gguf"),
             flag("--output", "model.gguf"));
    refuses("train_tokenizer", arguments, "is also read (a text)");
    CHECK(same_files("model.gguf", "model.copy"));
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("model.gguf"), in_folder("./model.gguf"));
    refuses("draw_curve", arguments, "is also read (CURVE.csv)");
    refuses("draw_curve", "absent.csv new.svg", "absent.csv: No such file");
    snprintf(arguments, sizeof arguments, "tests '%s'", in_folder("new"));
    refuses("draw_curve", arguments, "tests: Is a directory");
    write_file(in_folder("flat.csv"), "step,loss,kept_back\n1,2,\n2,2,\n3,nan,\n", 40);
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("flat.csv"), in_folder("new"));
    refuses("draw_curve", arguments, "the losses are all the same or no numbers");
    write_file(in_folder("flat.csv"), "step,loss,kept_back\n0,1,\n0,2,\n", 30);
    refuses("draw_curve", arguments, "the last step is not above 0, so there is no curve");
    snprintf(arguments, sizeof arguments, MODEL " --megabytes -3 --output '%s'", in_folder("new"));
    refuses_with(2, "write_stories", arguments,
                 "--megabytes is above 0 and at most 1e9, --temperature above 0");
    snprintf(arguments, sizeof arguments, MODEL " --megabytes 1e30 --output '%s'", in_folder("new"));
    refuses_with(2, "write_stories", arguments, "--megabytes is above 0 and at most 1e9");
    snprintf(arguments, sizeof arguments, MODEL " --temperature 0 --megabytes 0.001 --output '%s'",
             in_folder("new"));
    refuses_with(2, "write_stories", arguments, "--temperature above 0 (at 0 all texts are the same)");
    refuses_with(2, "write_stories", MODEL " --output ''", "--output: the file's name is empty");
    snprintf(arguments, sizeof arguments, "'%s' text%s", in_folder("model.gguf"),
             flag("--out", "model.gguf"));
    refuses("look", arguments, "is also read (MODEL)");
    refuses("look", MODEL " text --out /nowhere/p.html", "/nowhere/p.html cannot be written");
    refuses_with(2, "look", MODEL " text --top 0", "--top must be 1 to 20");
    refuses_with(2, "look", MODEL " ''", "the text is empty");
    refuses_with(2, "look", MODEL " text --out ''", "--out: the file's name is empty");
    CHECK(same_files("model.gguf", "model.copy"));
    /* a safetensors brings a config.json, which would replace that of the input */
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("a.safetensors"));
    CHECK(run("convert", arguments, "") == 0);
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("a.safetensors"),
             in_folder("b.safetensors"));
    refuses("convert", arguments, "config.json is also read (next to IN)");
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("b.safetensors"));
    refuses("convert", arguments,
            "b.safetensors: name a file in another folder"); /* the config.json is a's */
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("a.safetensors"));
    CHECK(run("convert", arguments, "") == 0);
    snprintf(arguments, sizeof arguments,
             OPINIONS_OF_EFFICIENT "--method full --tokenizer " MODEL " --model '%s'%s",
             in_folder("a.safetensors"), flag("--save_model", "b.safetensors"));
    refuses("efficient", arguments, "config.json is also read (next to --model)");
    refuses("efficient", OPINIONS_OF_EFFICIENT "--csv /nowhere/x", "/nowhere/x cannot be written");
    refuses("positions", "--text LICENSE --csv /nowhere/x", "/nowhere/x cannot be written");
    refuses("attention", "--text LICENSE --svg ./LICENSE", "is also read (--text)");
    bytes model_again = read_file(MODEL); /* a name with a comma divides no fields */
    write_file(in_folder("a,b.gguf"), model_again.data, model_again.size);
    free_bytes(&model_again);
    snprintf(arguments, sizeof arguments, OPINIONS_OF_EFFICIENT "--method head --epochs 0 --model '%s'%s",
             in_folder("a,b.gguf"), flag("--csv", "row.csv"));
    CHECK(run("efficient", arguments, "") == 0);
    char *row = text_of(in_folder("row.csv"));
    CHECK(strstr(row, "\nefficient,head,\"a,b.gguf\",opinions2,1,") != NULL);
    free(row);
    CHECK(run("bench", "types --model " MODEL, "") == 2 && strstr(complained, "not types"));
}

/* What would be ignored, or would fail only after a part of the work. */
TEST(settings_are_checked_first) {
    char arguments[1024];
    static const char *const counts[] = {"''", "1x", "1,0", "65", "1,,2"};
    for (int i = 0; i < 5; i++) {
        snprintf(arguments, sizeof arguments, "decode --model " MODEL " --threads %s", counts[i]);
        CHECK(run("bench", arguments, "") == 2 && strstr(complained, "numbers like 1,2") && !*said);
    }
    refuses("attention", "--text LICENSE --attention standard --window 8", "standard has none");
    refuses("attention", "--text LICENSE --attention differential --window 8", "differential has none");
    snprintf(arguments, sizeof arguments, "%s/speculate", program_folder);
    if (exists(arguments)) /* which this test does not build */
        refuses("speculate", MODEL " --draft " MODEL " --n_gram 2", "--n_gram: is for drafts from the text");
}

/* What can save no GGUF under this name says so before it works. */
TEST(what_saves_is_tried_first) {
    static const char *const programs[][2] = {{"lora", MODEL " examples/data/opinions2-dev.txt 2 %s"},
                                              {"train", MODEL " examples/data/opinions2-dev.txt %s"},
                                              {"random_model", "%s --shape 15M"}};
    static const char *const names[][2] = {{"/dev/null", "/dev/null cannot be written: it is not a regular"},
                                           {"/nowhere/m.gguf", "/nowhere/m.gguf cannot be written: No such"},
                                           {"m.safetensors", "m.safetensors will be a GGUF: call it .gguf"},
                                           {"m.pt", "m.pt will be a GGUF: call it .gguf"}};
    for (int i = 0; i < 12; i++) {
        char arguments[256], name[64];
        snprintf(name, sizeof name, "%s", names[i / 3][0]);
        snprintf(arguments, sizeof arguments, programs[i % 3][1], name);
        refuses(programs[i % 3][0], arguments, names[i / 3][1]);
    }
    CHECK(run("train", MODEL " tests x.gguf", "") == 1 && strstr(complained, "tests: Is a directory"));
    CHECK(!exists("x.gguf") && !exists("m.safetensors") && !exists("m.pt"));
}

/* The examples that learn replace neither what they learn from, nor the model. */
TEST(examples_spare_what_they_read) {
    static const char *const cases[][2] = {
        {"lora", "'%s' '%s' 2 '%s'"},
        {"train", "'%s' '%s' '%s'"},
        {"decode_table", "'%s' --judge " MODEL " --texts '%s' --csv '%s'"}};
    bytes model = read_file(MODEL);
    char name[2][600], arguments[2048];
    bytes text = read_file("examples/data/opinions2-dev.txt");
    for (int i = 0; i < 2; i++)
        snprintf(name[i], sizeof name[i], "%s", in_folder(i ? "read.txt" : "read.gguf"));
    write_file(in_folder("read.copy"), model.data, model.size);
    write_file(in_folder("text.copy"), text.data, text.size);
    for (int i = 0; i < 6; i++) {
        write_file(name[0], model.data, model.size);
        write_file(name[1], text.data, text.size);
        snprintf(arguments, sizeof arguments, cases[i / 2][1], name[0], name[1],
                 in_folder(i % 2 ? "./read.txt" : "./read.gguf"));
        CHECK(run(cases[i / 2][0], arguments, "") == 1 && strstr(complained, " is also read ("));
        CHECK(same_files("read.gguf", "read.copy") && same_files("read.txt", "text.copy"));
    }
    free_bytes(&model), free_bytes(&text);
}

/* What is written takes the place of a file, with its permissions, through a link; not that of a temporary file. */
TEST(whole_files) {
    char arguments[4096];
    struct stat status;
    CHECK(make_folder(in_folder("whole")));
    write_file(in_folder("curve.csv"), "step,loss,kept_back\n1,2,\n2,3,\n", 30);
    write_file(in_folder("whole/a.svg"), "old", 3);
    write_file(in_folder("whole/a.svg.tmp"), "other", 5);
    CHECK(chmod(in_folder("whole/a.svg"), 0600) == 0 && symlink("whole/a.svg", in_folder("a.svg")) == 0);
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("curve.csv"), in_folder("a.svg"));
    CHECK(runs("draw_curve", arguments, ""));
    CHECK(lstat(in_folder("a.svg"), &status) == 0 && S_ISLNK(status.st_mode));
    CHECK(lstat(in_folder("whole/a.svg"), &status) == 0 && (status.st_mode & 0777) == 0600);
    CHECK(status.st_size > 100 && !exists(in_folder("whole/a.svg.1.tmp")));
    CHECK(stat(in_folder("whole/a.svg.tmp"), &status) == 0 && status.st_size == 5);
    snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder("whole/a.svg.7.tmp"), in_folder("a.svg"));
    write_file(in_folder("whole/a.svg.7.tmp"), "step,loss,kept_back\n1,2,\n2,3,\n", 30);
    refuses("draw_curve", arguments, "is also read (CURVE.csv)");
}

/* An older file is kept until write_stories has finished, here by a signal after its first bytes. */
TEST(stories_replace_whole_files) {
    char arguments[4096], path[600];
    snprintf(path, sizeof path, "%s", in_folder("stories.txt"));
    write_file(path, "old", 3);
    snprintf(arguments, sizeof arguments,
             MODEL
             " --megabytes 1000 --output '%s' & child=$!; exec 2>/dev/null; for i in 1 2 3 4 5 6 7 8 9; do"
             " test -s '%s.tmp' && break; sleep 1; done; kill $child; wait $child",
             path, path);
    CHECK(run("write_stories", arguments, "") != 0);
    char *text = text_of(path);
    CHECK(strcmp(text, "old") == 0);
    free(text);
    remove(in_folder("stories.txt.tmp"));
    snprintf(arguments, sizeof arguments, MODEL " --megabytes 0.001 --output '%s'", path);
    CHECK(runs("write_stories", arguments, "") && runs("write_stories", arguments, ""));
    text = text_of(path);
    CHECK(strlen(text) >= 1000 && strstr(text, "\n<|endoftext|>\n") && !exists(in_folder("stories.txt.tmp")));
    free(text);
}

/* A file by which a folder, an index or the first part leads to a model, or that is read beside the model. */
TEST(files_of_a_model_are_spared) {
    static const char *const cases[][3] = {
        {"hf", "hf/model.safetensors", "also read (next to IN)"},
        {"hf", "hf/b.safetensors", "config.json is also read (next to IN)"},
        {"hf/model.safetensors.index.json", "hf/model-00001-of-00002.safetensors", "also read (next to IN)"},
        {"gguf", "gguf/only.gguf", "also read (next to IN)"},
        {"hf/x-00001-of-00002.gguf", "hf/x-00002-of-00002.gguf", "also read (next to IN)"}};
    static const char *const outputs[] = {"hf/tokenizer.bin", "hf/config.json", "hf/model.safetensors"};
    char arguments[4096];
    bytes model = read_file(MODEL);
    CHECK(mkdir(in_folder("hf"), 0777) == 0 && mkdir(in_folder("gguf"), 0777) == 0);
    write_file(in_folder("gguf/only.gguf"), model.data, model.size);
    free_bytes(&model);
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("hf/model.safetensors"));
    CHECK(run("convert", arguments, "") == 0);
    write_file(in_folder("hf/model-00001-of-00002.safetensors"), "x", 1);
    write_file(in_folder("hf/x-00002-of-00002.gguf"), "x", 1);
    write_file(in_folder("hf/tokenizer.bin"), "x", 1);
    for (int i = 0; i < 5; i++) {
        int n = snprintf(arguments, sizeof arguments, "'%s'", in_folder(cases[i][0]));
        snprintf(arguments + n, sizeof arguments - (size_t)n, " '%s'", in_folder(cases[i][1]));
        refuses("convert", arguments, cases[i][2]);
    }
    for (int i = 0; i < 3; i++) {
        snprintf(arguments, sizeof arguments, "%s", flag("--pretrained-model-path", "hf"));
        refuses_llama(flag("--dev_out", "new"), flag(i == 2 ? "--state" : "--test_out", outputs[i]),
                      arguments, "also read (next to --pretrained-model-path)");
    }
    refuses_llama(flag("--dev_out", "new"), flag("--test_out", "newer"), flag("--state", "hf/s.safetensors"),
                  "hf/config.json would be lost, which is not of");
    refuses_llama(flag("--dev_out", "config.json"), flag("--test_out", "new"),
                  flag("--state", "s.safetensors"), "--dev_out and next to --state are the same file");
    snprintf(arguments, sizeof arguments, "'%s'", in_folder("hf")); /* what is not read may be replaced */
    snprintf(arguments + strlen(arguments), 600, " '%s'", in_folder("hf/new.gguf"));
    CHECK(run("convert", arguments, "") == 0 && run("convert", arguments, "") == 0);
}

/* What is missing is named: here a tokenizer.json of another kind is all there is. */
TEST(other_tokenizers_are_named) {
    char arguments[4096];
    CHECK(mkdir(in_folder("fast"), 0777) == 0);
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("fast/model.safetensors"));
    CHECK(run("convert", arguments, "") == 0);
    snprintf(arguments, sizeof arguments, "--prompt Hi%s", flag("--pretrained-model-path", "fast"));
    refuses("run_llama", arguments, "no tokenizer in or next to");
    const char unigram[] = "{\"model\": {\"type\": \"Unigram\"}}";
    write_file(in_folder("fast/tokenizer.json"), unigram, sizeof unigram - 1);
    refuses("run_llama", arguments,
            "fast/tokenizer.json: tokenizer.json: only BPE is supported: the model Unigram");
    snprintf(arguments, sizeof arguments, "'%s' ", in_folder("fast/model.safetensors"));
    CHECK(run("chat", arguments, "") == 1 &&
          strstr(complained, "fast/tokenizer.json: tokenizer.json: only BPE"));
    REQUIRE(runs("inspect", arguments, ""));
    const char *line = strstr(said, "tokenizer: none; ");
    CHECK(line && strstr(line, "fast/tokenizer.json: tokenizer.json: only BPE"));
    strcat(strcat(arguments, " "), in_folder("fast.gguf"));
    CHECK(run("convert", arguments, "") == 0 &&
          strstr(complained, "fast/tokenizer.json: tokenizer.json: only BPE"));
    remove(in_folder("fast/tokenizer.json"));
    snprintf(arguments, sizeof arguments, "'%s' ", in_folder("fast/model.safetensors"));
    CHECK(run("chat", arguments, "") == 1 && strstr(complained, "no tokenizer in or next to"));
    CHECK(runs("inspect", arguments, "") && strstr(said, "tokenizer: none\n"));
    const char other[] = "\1\0\0\0\0\0\0\0\1\0\0\0a"; /* of one piece */
    write_file(in_folder("fast/tokenizer.bin"), other, sizeof other - 1);
    snprintf(arguments, sizeof arguments, "--prompt Hi%s", flag("--pretrained-model-path", "fast"));
    refuses("run_llama", arguments, "fast/tokenizer.bin: its 1 pieces are not those of the model");
}

/* Every program says so: of a tokenizer.json that cannot be read as of none, with the flag that names another. */
TEST(unread_tokenizers_are_explained) {
    static const struct {
        const char *program, *before, *after, *flag;
    } cases[] = {{"classify", "", "", ""},
                 {"embed", "", " Hi", ""},
                 {"look", "", " Hi", "(--tokenizer FILE)"},
                 {"write_stories", "", "", "(--tokenizer FILE)"},
                 {"speculate", "", " Hi", "(--tokenizer FILE)"},
                 {"speculate", MODEL " Hi --draft ", "", "(--draft_tokenizer FILE)"},
                 {"run_llama", "--prompt Hi --pretrained-model-path ", "", "(--tokenizer FILE)"},
                 {"efficient", OPINIONS_OF_EFFICIENT "--model ", "", "(--tokenizer FILE)"}};
    static const char *const reasons[] = {"no tokenizer in or next to ", "tokenizer.json: only BPE"};
    const char json[] = "{\"model\": {\"type\": \"Unigram\"}}";
    char model[700], arguments[2048];
    CHECK(mkdir(in_folder("unread"), 0777) == 0);
    snprintf(model, sizeof model, "'%s'", in_folder("unread/model.safetensors"));
    snprintf(arguments, sizeof arguments, MODEL " %s", model);
    CHECK(run("convert", arguments, "") == 0);
    for (int k = 0; k < 2; k++) {
        if (k) write_file(in_folder("unread/tokenizer.json"), json, sizeof json - 1);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            snprintf(arguments, sizeof arguments, "%s%s%s", cases[i].before, model, cases[i].after);
            CHECK(run(cases[i].program, arguments, "") == 1 && !*said && strstr(complained, cases[i].flag));
            CHECK(strstr(complained, reasons[k]));
        }
        snprintf(arguments, sizeof arguments, "%s examples/data/opinions2-dev.txt 2 '%s'", model,
                 in_folder("unread.gguf"));
        CHECK(run("lora", arguments, "") == 1 && strstr(complained, reasons[k]) && !*said);
    }
    CHECK(run("generate", model, "") == 1 && strstr(complained, "(inspect MODEL says why)"));
    snprintf(arguments, sizeof arguments, "%s examples/data/opinions2-dev.txt LICENSE", model);
    CHECK(run("own_head", arguments, "") == 1 && strstr(complained, "no tokenizer was read: inspect "));
}

/* Why a tokenizer is not read is said whatever its name is. */
TEST(inspect_of_tokenizers) {
    static const struct {
        const char *text, *words;
        size_t size;
    } files[] = {{"{\"model\": {\"type\": \"Unigram\"}}", "only BPE is supported: the model Unigram", 31},
                 {"\5\0\0\0\0\0\0\0\5\0\0\0<unk>more", "tokenizer .bin: after 1 pieces, bytes 17 to 21", 21}};
    char arguments[700];
    for (int i = 0; i < 2; i++) {
        write_file(in_folder("vocabulary"), files[i].text, files[i].size);
        snprintf(arguments, sizeof arguments, "'%s'", in_folder("vocabulary"));
        CHECK(run("inspect", arguments, "") == 1 && strstr(complained, files[i].words));
    }
}

/* ---- train_tokenizer ---- */

/* A text as Windows writes it gives the same tokenizer. */
TEST(tokenizer_of_a_windows_text) {
    static const char *const lines[] = {"Tom had a ball.", "He lost it in the park.", "Anna found it there."};
    bytes plain = {NULL, 0, 0}, windows = {NULL, 0, 0};
    char arguments[2048];
    put_literal(&windows, "\xef\xbb\xbf");
    for (int i = 0; i < 30; i++) {
        put_text(&plain, lines[i % 3]), put_literal(&plain, "\n");
        put_text(&windows, lines[i % 3]), put_literal(&windows, "\r\n");
    }
    write_file(in_folder("plain.txt"), plain.data, plain.size);
    write_file(in_folder("windows.txt"), windows.data, windows.size);
    free_bytes(&plain);
    free_bytes(&windows);
    snprintf(arguments, sizeof arguments, "--vocab_size 290 '%s'%s", in_folder("plain.txt"),
             flag("--output", "plain.model"));
    REQUIRE(runs("train_tokenizer", arguments, ""));
    snprintf(arguments, sizeof arguments, "--vocab_size 290 '%s'%s", in_folder("windows.txt"),
             flag("--output", "windows.model"));
    REQUIRE(runs("train_tokenizer", arguments, ""));
    CHECK(same_files("plain.model", "windows.model"));
}

/* 0 is no default, but out of range; and what is too small a vocabulary says what helps. */
TEST(settings_of_a_tokenizer) {
    static const struct {
        int status;
        const char *settings, *words;
    } cases[] = {
        {2, "--vocab_size 290 --character-coverage 0",
         "--character-coverage is above 0 and at most 1, not 0"},
        {2, "--vocab_size 290 --character-coverage -1",
         "--character-coverage is above 0 and at most 1, not -1"},
        {2, "--vocab_size 290 --max-piece-chars 0", "--max-piece-chars is 1 to 64, not 0"},
        {2, "--vocab_size 290 --max-piece-chars 65", "--max-piece-chars is 1 to 64, not 65"},
        {1, "--vocab_size 260", "(a lower --character-coverage leaves out rare characters)"},
    };
    char arguments[2048];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(arguments, sizeof arguments, "%s '%s'%s", cases[i].settings, in_folder("plain.txt"),
                 flag("--output", "new"));
        refuses_with(cases[i].status, "train_tokenizer", arguments, cases[i].words);
    }
    refuses_with(2, "train_tokenizer", "--vocab_size 290 LICENSE --output ''", "--output FILE is needed");
    snprintf(arguments, sizeof arguments, "--vocab_size 290 --max-piece-chars 16 '%s'%s",
             in_folder("plain.txt"), flag("--output", "new.model"));
    CHECK(runs("train_tokenizer", arguments, "") && same_files("new.model", "plain.model"));
}

/* ---- convert ---- */

/* The logits of one token after two. */
static void logits_of(const char *model_path, const char *adapter, float *logits) {
    static const int32_t ids[3] = {1, 300, 400};
    ml_model_load_desc load = {0};
    ml_session_desc desc = {0};
    ml_model *model;
    ml_lora *lora = NULL;
    ml_session *session;
    const float *found;
    load.type = ML_F32;
    REQUIRE(ml_model_load(model_path, &load, &model, NULL) == ML_OK);
    REQUIRE(!adapter || ml_lora_load(adapter, model, NULL, &lora, NULL) == ML_OK);
    desc.lora = lora;
    REQUIRE(ml_session_new(model, &desc, &session, NULL) == ML_OK);
    REQUIRE(ml_session_eval(session, ids, 3, &found, NULL) == ML_OK);
    memcpy(logits, found, 100 * sizeof *logits);
    ml_session_free(session);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* With half of the adapter, merged or not, the model is another one than with none or all of it, and the same one. */
static void half_an_adapter(const float *plain, const float *adapted) {
    char arguments[4096];
    float half[100];
    double from_plain = 0, from_adapted = 0;
    snprintf(arguments, sizeof arguments, MODEL " '%s'%s --lora-scale 0.5", in_folder("half.gguf"),
             flag("--merge-lora", "learned.gguf"));
    REQUIRE(runs("convert", arguments, ""));
    logits_of(in_folder("half.gguf"), NULL, half);
    for (int i = 0; i < 100; i++) {
        from_plain = fmax(from_plain, fabs((double)(half[i] - plain[i])));
        from_adapted = fmax(from_adapted, fabs((double)(half[i] - adapted[i])));
    }
    CHECK(from_plain > 0.02 && from_adapted > 0.02);
#define ONCE " --max_new_tokens 20 --prompt 'Once upon a time' --pretrained-model-path "
    snprintf(arguments, sizeof arguments, ONCE "'%s' 2>/dev/null", in_folder("half.gguf"));
    REQUIRE(run("run_llama", arguments, "") == 0);
    char *merged = said;
    said = NULL;
    snprintf(arguments, sizeof arguments, ONCE MODEL " --lora '%s' --lora-scale 0.5 2>/dev/null",
             in_folder("learned.gguf"));
    CHECK(run("run_llama", arguments, "") == 0 && strcmp(said, merged) == 0);
    snprintf(arguments, sizeof arguments, ONCE MODEL " --lora '%s' --lora-scale 0",
             in_folder("learned.gguf"));
    CHECK(run("run_llama", arguments, "") == 2 && strstr(complained, "--lora-scale is above 0"));
    free(merged);
}

/* A merged model gives what model and adapter give, up to rounding, and keeps the adapter's classifier. */
TEST(merge_lora) {
    char arguments[4096];
    float plain[100], adapted[100], merged[100];
    double moved = 0;
    ml_model *model;
    ml_head *head;
    snprintf(arguments, sizeof arguments, MODEL " examples/data/opinions2-train.txt 2 '%s'",
             in_folder("learned.gguf"));
    REQUIRE(runs("lora", arguments, ""));
    snprintf(arguments, sizeof arguments, MODEL " '%s'%s", in_folder("merged.gguf"),
             flag("--merge-lora", "learned.gguf"));
    REQUIRE(runs("convert", arguments, ""));
    CHECK(strstr(said, "with its classifier of 2 labels") != NULL);
    logits_of(MODEL, NULL, plain);
    logits_of(MODEL, in_folder("learned.gguf"), adapted);
    logits_of(in_folder("merged.gguf"), NULL, merged);
    for (int i = 0; i < 100; i++) {
        CHECK_NEAR(merged[i], adapted[i], 1e-4, 1e-4); /* sums in another order */
        moved = fmax(moved, fabs((double)(adapted[i] - plain[i])));
    }
    CHECK(moved > 0.1);
    REQUIRE(ml_model_load(in_folder("merged.gguf"), NULL, &model, NULL) == ML_OK);
    CHECK(ml_head_load(in_folder("merged.gguf"), model, NULL, &head, NULL) == ML_OK);
    ml_lora *lora = NULL;
    CHECK(ml_lora_load(in_folder("learned.gguf"), model, NULL, &lora, NULL) == ML_OK);
    CHECK(ml_lora_save(lora, model, in_folder("headless.gguf"), NULL, NULL) == ML_OK);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(model);
    snprintf(arguments, sizeof arguments, "'%s' '%s'%s", in_folder("merged.gguf"), in_folder("again.gguf"),
             flag("--merge-lora", "headless.gguf")); /* the model's head, where the adapter has none */
    REQUIRE(runs("convert", arguments, ""));
    CHECK(strstr(said, "with its classifier of 2 labels") != NULL);
    half_an_adapter(plain, adapted);
    snprintf(arguments, sizeof arguments, MODEL " '%s'%s", in_folder("learned.gguf"),
             flag("--merge_lora", "learned.gguf"));
    refuses("convert", arguments, "is also read (--merge-lora)");
    snprintf(arguments, sizeof arguments, MODEL " '%s' --lora-scale 2", in_folder("scaled.gguf"));
    CHECK(run("convert", arguments, "") == 2 && strstr(complained, "--lora-scale is for --merge-lora"));
    snprintf(arguments, sizeof arguments, MODEL " '%s' --name x", in_folder("named.safetensors"));
    CHECK(run("convert", arguments, "") == 2 && strstr(complained, "--name is for a GGUF"));
}

/* What has no room for a tokenizer needs it later, and by which words that is said depends on where it comes from. */
TEST(convert_without_the_tokenizer) {
    char arguments[2048];
    snprintf(arguments, sizeof arguments, MODEL " '%s'", in_folder("bare.pt"));
    CHECK(
        run("convert", arguments, "") == 0 &&
        strstr(complained, "bare.pt: copy its file there, or give --tokenizer FILE wherever that is used\n"));
    strcat(arguments, " --tokenizer " MODEL);
    CHECK(run("convert", arguments, "") == 0 &&
          strstr(complained, "bare.pt: give --tokenizer " MODEL " wherever that is used\n"));
}

/* A folder with MODEL as safetensors, to which score.weight (n_classes, D) of one number is added; and to its
   config.json the text `more`. */
static void write_classifier(const char *name, int dim, int n_classes, float number, const char *more) {
    char arguments[4096], path[700], text[200];
    size_t n_added = (size_t)n_classes * (size_t)dim * 4;
    snprintf(path, sizeof path, "%s", in_folder(name));
    CHECK(make_folder(path));
    snprintf(arguments, sizeof arguments, MODEL " '%s/model.safetensors' --type F16", path);
    CHECK(run("convert", arguments, "") == 0);
    snprintf(path, sizeof path, "%s/model.safetensors", in_folder(name));
    bytes old = read_file(path), file = {NULL, 0, 0};
    size_t n_header = 0;
    for (int i = 0; i < 8; i++) n_header |= (size_t)old.data[i] << (8 * i);
    size_t n_data = old.size - 8 - n_header;
    snprintf(text, sizeof text,
             "{\"score.weight\":{\"dtype\":\"F32\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]},", n_classes,
             dim, n_data, n_data + n_added);
    put_u64(&file, n_header + strlen(text) - 1);
    put_text(&file, text);
    put(&file, old.data + 9, old.size - 9);
    for (size_t i = 0; i < n_added / 4; i++) put_f32(&file, number);
    write_file(path, file.data, file.size);
    free_bytes(&old), free_bytes(&file);
    snprintf(path, sizeof path, "%s/config.json", in_folder(name));
    bytes config = read_file(path), changed = {NULL, 0, 0};
    put_text(&changed, more);
    put(&changed, config.data + 1, config.size - 1);
    write_file(path, changed.data, changed.size);
    free_bytes(&config), free_bytes(&changed);
}

/* Adapters for MODEL, "good.gguf" and "bad.gguf", whose classifier has a number that is none. */
static void write_adapters(const ml_model *model) {
    ml_random random;
    ml_lora_create_desc thin = {0};
    ml_head_create_desc top = {0};
    ml_save_desc save = {0};
    ml_archive *archive;
    ml_lora *lora;
    ml_head *head;
    ml_random_seed(&random, 1);
    thin.random = top.random = &random;
    top.n_classes = 3;
    REQUIRE(ml_lora_create(model, &thin, &lora, NULL) == ML_OK);
    REQUIRE(ml_head_create(model, &top, &head, NULL) == ML_OK);
    save.head = head;
    CHECK(ml_lora_save(lora, model, in_folder("good.gguf"), &save, NULL) == ML_OK);
    bytes file = read_file(in_folder("good.gguf"));
    REQUIRE(ml_archive_load_memory(file.data, file.size, NULL, &archive, NULL) == ML_OK);
    const ml_array *weight = ml_archive_find_array(archive, "cls.output.weight");
    REQUIRE(weight);
    memset(file.data + ((const unsigned char *)weight->data - file.data), 0xff, 4);
    ml_archive_free(archive);
    write_file(in_folder("bad.gguf"), file.data, file.size);
    free_bytes(&file);
    ml_head_free(head);
    ml_lora_free(lora);
}

/* A classifier is converted with its model, or it is said why it cannot be read. */
TEST(classifiers_are_not_dropped) {
    static const struct {
        const char *name, *labels, *words;
        int n_classes;
        float number;
    } cases[] = {{"two", "{\"id2label\":{\"0\":\"a\",\"1\":\"b\"},", NULL, 2, 0.5f},
                 {"one", "{\"id2label\":{\"0\":\"a\"},", "1 classes, not 2 to", 1, 0.5f},
                 {"short", "{\"id2label\":{\"0\":\"a\",\"1\":\"b\"},", "id2label.2 is missing", 3, 0.5f},
                 {"nan", "{", "score.weight", 2, NAN}};
    char arguments[4096];
    ml_model *model;
    REQUIRE(ml_model_load(MODEL, NULL, &model, NULL) == ML_OK);
    for (int i = 0; i < 4; i++) {
        write_classifier(cases[i].name, model->config.dim, cases[i].n_classes, cases[i].number,
                         cases[i].labels);
        snprintf(arguments, sizeof arguments, "'%s' '%s'", in_folder(cases[i].name),
                 in_folder(i ? "new" : "head.gguf"));
        if (i) strcat(arguments, ".gguf");
        CHECK(run("convert", arguments, "") == (i != 0));
        if (i) CHECK(strncmp(complained, "error: ", 7) == 0 && strstr(complained, cases[i].words));
        CHECK(!exists(in_folder("new.gguf")) && !exists(in_folder("new.gguf.tmp")));
        CHECK((strstr(said, "with its classifier of 2 labels") != NULL) == (i == 0));
    }
    snprintf(arguments, sizeof arguments, "'%s' '%s' --no-head", in_folder("one"), in_folder("new.gguf"));
    CHECK(run("convert", arguments, "") == 0 && exists(in_folder("new.gguf")));
    remove(in_folder("new.gguf"));
    write_adapters(model);
    for (int i = 0; i < 2;
         i++) { /* the model's own is not taken in the place of an adapter's that is broken */
        snprintf(arguments, sizeof arguments, "'%s' '%s'%s", in_folder("head.gguf"), in_folder("new.gguf"),
                 flag("--merge-lora", i ? "bad.gguf" : "good.gguf"));
        CHECK(run("convert", arguments, "") == i && exists(in_folder("new.gguf")) == !i);
        CHECK((strstr(said, "with its classifier of 3 labels") != NULL) == !i);
        CHECK(!i || strstr(complained, "cls.output.weight"));
        remove(in_folder("new.gguf"));
    }
    ml_model_free(model);
}

/* A mix of quantized types by llama.cpp's name: every matrix gets fewer bytes, and the file is a model. */
TEST(convert_to_a_mix) {
    char arguments[4096];
    ml_model *model = NULL;
    snprintf(arguments, sizeof arguments, MODEL " '%s' --type q4_k_m", in_folder("mix.gguf"));
    CHECK(run("convert", arguments, "") == 0 && strstr(complained, "their rows are not multiples of 256\n"));
    REQUIRE(ml_model_load(in_folder("mix.gguf"), NULL, &model, NULL) == ML_OK);
    int n_stand_ins = 0; /* for Q4_K, as llama.cpp has it */
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        if (t->data && t->rows > 1)
            CHECK(t->cols % 256 ? t->type == ML_Q5_0 || t->type == ML_Q8_0 : t->type > ML_BF16);
        n_stand_ins += t->data && t->rows > 1 && t->type == ML_Q5_0;
    }
    CHECK(n_stand_ins > 0);
    ml_model_free(model);
    CHECK(run("convert", MODEL " x.gguf --type Q6_K_M", "") == 2);
    CHECK(strstr(complained,
                 "--type is F32, F16, BF16, Q8_0, Q4_0, Q5_0, Q5_1, Q4_K_M, Q5_K_M or Q6_K, not Q6_K_M"));
}

/* Rows that are no whole blocks get no quantized type, which is said: of 20 numbers none are, of 64 all. */
TEST(convert_what_has_no_blocks) {
    char arguments[4096];
    ml_model_create_desc desc = {0};
    ml_model *model = NULL;
    ml_random random;
    ml_random_seed(&random, 1);
    desc.random = &random;
    desc.config.dim = 20, desc.config.hidden_dim = 64, desc.config.n_layers = 1, desc.config.n_heads = 2;
    desc.config.vocab_size = 300, desc.config.max_seq_len = 16, desc.config.tied_output = 1;
    REQUIRE(ml_model_create(&desc, &model, NULL) == ML_OK);
    CHECK(ml_model_save(model, in_folder("narrow.gguf"), NULL, NULL) == ML_OK);
    ml_model_free(model);
    snprintf(arguments, sizeof arguments, "'%s' '%s' --type Q4_0", in_folder("narrow.gguf"),
             in_folder("narrow4.gguf"));
    CHECK(run("convert", arguments, "") == 0);
    CHECK(strncmp(complained, "7 of 8 matrices become F16: their rows are not multiples of 32\n", 63) == 0);
    REQUIRE(ml_model_load(in_folder("narrow4.gguf"), NULL, &model, NULL) == ML_OK);
    int n = 0; /* the tied output among them */
    for (int i = 0; i < model->n_tensors; i++) n += model->tensors[i].type == ML_F16;
    CHECK(n == 8);
    ml_model_free(model);
}

/* ---- what goes wrong ---- */

TEST(help) {
    static const char *const small[] = {"generate", "classify", "lora", "train", "embed"};
    static const char *const large[] = {"run_llama",     "convert", "train_tokenizer",
                                        "write_stories", "look",    "chat"};
    for (int i = 0; i < 5; i++)
        CHECK(run(small[i], "-h", "") == 2 && strstr(complained, "usage: ") && strstr(complained, small[i]));
    for (int i = 0; i < 6; i++) {
        CHECK(run(large[i], "-h", "") == 0 && strstr(said, "usage: ") && strstr(said, "--help"));
        CHECK(run(large[i], "--help", "") == 0 && strstr(said, "usage: ") && strstr(said, "--help"));
        CHECK(run(large[i], "-x", "") == 2 && strstr(complained, "unknown option -x"));
    }
}

TEST(errors) {
    static const char *const examples[] = {"generate", "chat", "classify", "lora", "train", "embed"};
    for (int i = 0; i < 6; i++) {
        CHECK(run(examples[i], "", "") == 2 && strstr(complained, "usage: ") != NULL);
    }
    CHECK(run("generate", "absent.gguf", "") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("chat", "absent.gguf", "") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("embed", "absent.gguf x", "x\n") == 1 && strstr(complained, "absent.gguf"));
    CHECK(run("classify", MODEL, "x\n") == 1 && *complained); /* it has no classifier */
    CHECK(run("lora", MODEL " absent.txt 2 x", "") == 1 && strstr(complained, "absent.txt"));
    CHECK(run("train", MODEL " absent.txt x", "") == 1 && strstr(complained, "absent.txt"));
    write_file(in_folder("bar.txt"), "0 ||| good\n1 || bad\n", 20);
    char lines[1024];
    snprintf(lines, sizeof lines, MODEL " '%s' 2 '%s'", in_folder("bar.txt"), in_folder("none.gguf"));
    CHECK(run("lora", lines, "") == 1 && strstr(complained, "line 2 has no \" ||| \""));
    CHECK(!exists(in_folder("none.gguf")));
    CHECK(run("lora", MODEL " examples/data/opinions5-train.txt 2 /nowhere/x", "") == 1 && *complained);
    write_file(in_folder("short.txt"), "Tom.", 4);
    char arguments[2048];
    snprintf(arguments, sizeof arguments, MODEL " '%s' '%s'", in_folder("short.txt"), in_folder("none.gguf"));
    CHECK(run("train", MODEL " LICENSE /nowhere/x", "") == 1 && strstr(complained, "/nowhere/x") && !*said);
    CHECK(run("train", arguments, "") == 1 && strstr(complained, "too short") &&
          !exists(in_folder("none.gguf")));
}

/* The numbers between the braces are the bytes of the file, under the name that was given. */
TEST(array_of_a_file) {
    char arguments[1200];
    bytes file = read_file("LICENSE");
    snprintf(arguments, sizeof arguments, "LICENSE words_2 '%s'", in_folder("array.c"));
    REQUIRE(runs("array", arguments, ""));
    char *text = text_of(in_folder("array.c")), *at = strstr(text, "unsigned char words_2[] = {");
    REQUIRE(at && strstr(text, "unsigned long words_2_size = "));
    CHECK(strtoul(strstr(text, "words_2_size = ") + 15, NULL, 10) == file.size);
    at = strchr(at, '{');
    for (size_t i = 0; i < file.size && at; i++) {
        CHECK(strtol(at + 1, &at, 10) == (long)file.data[i] && *at == ',');
        if (test_current_failed) break;
    }
    CHECK(at && strcmp(at, ",\n};\n") == 0);
    refuses_with(2, "array", "LICENSE 9y x.c", "\"9y\" is not a name in C");
    snprintf(arguments, sizeof arguments, "LICENSE q8_0_model '%s'", in_folder("named.c"));
    CHECK(runs("array", arguments, ""));
    refuses("array", "LICENSE y ./LICENSE", "is also read (FILE)");
    refuses("array", "absent y x.c", "absent: No such file");
    free(text);
    free_bytes(&file);
}

int main(int argc, char **argv) {
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    snprintf(program_folder, sizeof program_folder, "%.*s", slash ? (int)(slash - argv[0]) : 1,
             slash ? argv[0] : ".");
    if (!folder_begin("examples")) return 1;
    RUN(generate);
    RUN(small_numbers_of_numpy);
    RUN(words_too_many);
    RUN(inspect_folder);
    RUN(inspect_without_tokenizer);
    RUN(inspect_cuts_texts_between_characters);
    RUN(inspect_prints_no_control_characters);
    RUN(chat);
    RUN(chat_outlives_the_context);
    RUN(chat_options);
    RUN(chat_is_interrupted);
    RUN(lora_and_classify);
    RUN(lora_of_few_lines);
    RUN(train);
    RUN(xor);
    RUN(characters);
    RUN(own_head);
    RUN(embed);
    RUN(predict);
    RUN(how_to_train);
    RUN(prompts_have_room);
    RUN(unknown_labels_choose_nothing);
    RUN(nothing_to_learn);
    RUN(adapter_writes);
    RUN(adapter_writes_as_it_was_trained);
    RUN(context_is_full);
    RUN(look);
    RUN(output_is_full);
    RUN(outputs_are_tried_first);
    RUN(tools_try_outputs_first);
    RUN(settings_are_checked_first);
    RUN(what_saves_is_tried_first);
    RUN(examples_spare_what_they_read);
    RUN(whole_files);
    RUN(stories_replace_whole_files);
    RUN(files_of_a_model_are_spared);
    RUN(other_tokenizers_are_named);
    RUN(unread_tokenizers_are_explained);
    RUN(inspect_of_tokenizers);
    RUN(tokenizer_of_a_windows_text);
    RUN(settings_of_a_tokenizer);
    RUN(merge_lora);
    RUN(classifiers_are_not_dropped);
    RUN(convert_without_the_tokenizer);
    RUN(convert_to_a_mix);
    RUN(convert_what_has_no_blocks);
    RUN(array_of_a_file);
    RUN(help);
    RUN(errors);
    free(said), free(complained);
    if (!folder_end()) return 1;
    return test_report("test_examples");
}
