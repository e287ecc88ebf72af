/* examples/pretrain as its users run it: each run is a separate process, in a temporary folder, and is judged by its
   exit status, what it prints, and the files that it leaves. */
#include "preamble.h"
#include "temporary.h"
#include <dirent.h>
#include <sys/resource.h>
#include <time.h>

/* The program itself, except that it can be made to wait after a step until a signal arrives. */
static ml_result step_and_wait(ml_trainer *trainer, ml_error *error);
#define ml_trainer_step step_and_wait
#include "../examples/pretrain/training.c"
#undef ml_trainer_step
#define main pretrain_main
#include "../examples/pretrain/main.c"
#undef main

/* A model that learns in milliseconds. */
#define TINY                                                                                                 \
    " --vocab_size 300 --dim 16 --n_layers 1 --context 32 --rows 4 --warmup 5 --every 10 --lr 0.02"          \
    " --prompt=Tom"
#define SMALL TINY " --steps 60 --validation 0.1"

static int wait_after_step; /* a run waits there until it is interrupted; 0: nowhere */
static int largest_file;    /* bytes that a run may write into a file, as on a full disk; 0: any number */

/* The last run: its exit status (-1: a signal ended it), and what it wrote to stdout and stderr. */
static int status;
static char said[1 << 17], complained[1 << 14];

/* ---- processes ---- */

static void pause_a_millisecond(void) {
    struct timespec t = {0, 1000000};
    nanosleep(&t, NULL);
}

static ml_result step_and_wait(ml_trainer *trainer, ml_error *error) {
    ml_result result = ml_trainer_step(trainer, error);
    if (trainer->step != wait_after_step) return result;
    if (mkdir("waiting", 0700) != 0) _exit(97); /* tells the test */
    while (!interrupted) pause_a_millisecond();
    return result;
}

static void limit_files(void) {
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max = (rlim_t)largest_file;
    signal(SIGXFSZ, SIG_IGN); /* writing then fails, as it does where the disk is full */
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(98);
}

/* Becomes the program. Arguments are cut at spaces. */
static void be_pretrain(const char *arguments) {
    static char line[4096], name[] = "pretrain";
    char *argv[64], *word;
    int argc = 1;
    argv[0] = name;
    snprintf(line, sizeof line, "%s", arguments);
    for (word = strtok(line, " "); word && argc < 63; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    if (!freopen("stdout.log", "w", stdout) || !freopen("stderr.log", "w", stderr)) _exit(99);
    if (largest_file) limit_files();
    alarm(300); /* a run that hangs is a failure, too */
    exit(pretrain_main(argc, argv));
}

static pid_t start(const char *arguments) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) be_pretrain(arguments);
    return pid;
}

/* Zero bytes, which a sample may have, become something that ends no string. */
static void read_log(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "r");
    size_t i, n = file ? fread(text, 1, size - 1, file) : 0;
    for (i = 0; i < n; i++) text[i] = text[i] ? text[i] : '?';
    text[n] = 0;
    if (file) fclose(file);
}

static void finish(pid_t pid) {
    int how = 0;
    status = pid > 0 && waitpid(pid, &how, 0) == pid && WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    read_log("stdout.log", said, sizeof said);
    read_log("stderr.log", complained, sizeof complained);
    CHECK(!strstr(complained, "Sanitizer") && !strstr(complained, "runtime error"));
}

static void pretrain(const char *arguments) { finish(start(arguments)); }

/* A run that is to succeed. */
static int trains(const char *arguments) {
    pretrain(arguments);
    if (status == 0 && !*complained) return 1;
    printf("pretrain %s\nended with %d: %s\n", arguments, status, complained);
    return 0;
}

/* The same for an OUTPUT that has a run. */
static int trains_anew(const char *arguments) {
    char checkpoint[64];
    const char *output = strstr(arguments, "--output ") + strlen("--output ");
    snprintf(checkpoint, sizeof checkpoint, "%.*s.train", (int)strcspn(output, " "), output);
    CHECK(remove(checkpoint) == 0);
    return trains(arguments);
}

/* A run that waits after a step. */
static pid_t start_and_wait(const char *arguments, int step) {
    struct stat about;
    wait_after_step = step;
    pid_t pid = start(arguments);
    wait_after_step = 0;
    for (int waited = 0; stat("waiting", &about) != 0 && waited < 30000; waited++) pause_a_millisecond();
    rmdir("waiting");
    return pid;
}

/* A run that gets a signal after a step, when it has told of the tenth before. */
static void pretrain_until(const char *arguments, int step, int signal_number) {
    char progress[32];
    snprintf(progress, sizeof progress, "step %d of 60", (step - 1) / 10 * 10);
    pid_t pid = start_and_wait(arguments, step);
    if (pid > 0) kill(pid, signal_number);
    finish(pid);
    CHECK(strstr(said, progress) != NULL);
}

/* ---- files ---- */

static void write_bytes(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, n, file) == n);
    if (file) fclose(file);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

/* A whole file, which the caller frees; NULL if there is none. */
static char *read_bytes(const char *path, size_t *n) {
    struct stat about;
    FILE *file = fopen(path, "rb");
    char *bytes = NULL;
    *n = 0;
    if (!file) return NULL;
    if (fstat(fileno(file), &about) == 0 && (bytes = (char *)malloc((size_t)about.st_size + 1)) != NULL) {
        *n = fread(bytes, 1, (size_t)about.st_size, file);
        bytes[*n] = 0;
    }
    fclose(file);
    return bytes;
}

static int exists(const char *path) {
    struct stat about;
    return stat(path, &about) == 0;
}

static size_t size_of(const char *path) {
    struct stat about;
    return stat(path, &about) == 0 ? (size_t)about.st_size : 0;
}

static int same_bytes(const char *a, const char *b) {
    size_t n_a, n_b;
    char *bytes_a = read_bytes(a, &n_a), *bytes_b = read_bytes(b, &n_b);
    int same = bytes_a && bytes_b && n_a == n_b && memcmp(bytes_a, bytes_b, n_a) == 0;
    free(bytes_a);
    free(bytes_b);
    return same;
}

static void copy_file(const char *from, const char *to) {
    size_t n;
    char *bytes = read_bytes(from, &n);
    write_bytes(to, bytes, n);
    free(bytes);
}

/* How many files there are in the folder whose names end so. */
static int count_files(const char *end) {
    DIR *here = opendir(".");
    const struct dirent *entry;
    int n = 0;
    while (here && (entry = readdir(here)) != NULL) {
        size_t length = strlen(entry->d_name);
        n += length >= strlen(end) && strcmp(entry->d_name + length - strlen(end), end) == 0;
    }
    if (here) closedir(here);
    return n;
}

/* ---- texts ---- */

static const char *one_of(ml_random *random, const char *const *words) {
    return words[ml_random_u64(random) % 4];
}

/* Of two kinds, which share few words. */
static void make_story(ml_random *random, int kind, char *text, size_t size) {
    static const char *const people[2][4] = {{"Tom", "Anna", "Ben", "Lily"},
                                             {"The king", "A witch", "The queen", "A wolf"}};
    static const char *const things[2][4] = {{"ball", "cat", "boat", "kite"},
                                             {"castle", "forest", "mountain", "river"}};
    static const char *const forms[2] = {"%s has a %s. It is a good %s.",
                                         "%s flew over the %s. No %s was so dark."};
    const char *who = one_of(random, people[kind]), *what = one_of(random, things[kind]);
    snprintf(text, size, forms[kind], who, what, what);
}

static void write_stories(const char *path, int n, int kind, const char *line_end) {
    FILE *file = fopen(path, "wb");
    char text[128];
    ml_random random;
    ml_random_seed(&random, 1);
    for (; file && n > 0; n--) {
        make_story(&random, kind, text, sizeof text);
        fprintf(file, "%s%s<|endoftext|>%s", text, line_end, line_end);
    }
    if (file) fclose(file);
}

/* What the tests begin with, and a model that was trained on it. */
static void write_inputs(void) {
    static char zeros[4000];
    write_stories("stories.txt", 80, 0, "\n");
    write_stories("others.txt", 60, 1, "\r\n");
    write_text("empty.txt", "");
    write_text("separators.txt", "<|endoftext|>\n<|endoftext|>\r\n\n<|endoftext|>");
    write_text("spaced.txt", "One day.\n  <|endoftext|> \nTwo.\n<|endoftext|>\t\r\nThree.\n");
    write_text("tight.txt", "One day.\n<|endoftext|>\nTwo.\n<|endoftext|>\nThree.\n");
    write_text("one.txt", "a");
    write_bytes("zeros.bin", zeros, sizeof zeros);
    memset(zeros, 1, sizeof zeros), memset(zeros + 2000, 0, 20);
    write_bytes("ones.bin", zeros, sizeof zeros);
    CHECK(trains("stories.txt --output small.gguf" SMALL));
}

/* ---- what a run says ---- */

typedef struct progress {
    int step, steps, minutes, seconds;
    double loss, kept, kept_per_byte, speed;
} progress;

static int read_progress(progress *to, int most) {
    const char *line;
    int n = 0;
    for (line = said; line && n < most; line = strchr(line, '\n')) {
        progress *p = &to[n];
        line += *line == '\n';
        n += sscanf(line,
                    "step %d of %d: loss %lf, kept back %lf a token, %lf a byte, %lf tokens/s, %d:%d left",
                    &p->step, &p->steps, &p->loss, &p->kept, &p->kept_per_byte, &p->speed, &p->minutes,
                    &p->seconds) == 8;
    }
    return n;
}

/* "N tokens to train on (X bytes each), N kept back" */
static int read_counts(int *n_train, int *n_kept) {
    const char *line = strstr(said, "pieces\n");
    return line &&
           sscanf(line, "pieces\n%d tokens to train on (%*f bytes each), %d kept back", n_train, n_kept) == 2;
}

/* "loss N a token, N a byte" */
static int read_loss(double *per_token, double *per_byte) {
    const char *line = strstr(said, "\nloss ");
    return line && sscanf(line, "\nloss %lf a token, %lf a byte", per_token, per_byte) == 2;
}

static int count_of(const char *text, const char *what) {
    int n = 0;
    while ((text = strstr(text, what)) != NULL) n++, text++;
    return n;
}

/* ---- a run from end to end ---- */

static void check_progress(const progress *p, int n) {
    for (int i = 0; i < n; i++) {
        double seconds_left = (p[i].steps - p[i].step) * 4 * 32 / p[i].speed;
        CHECK(p[i].step == 10 * (i + 1) && p[i].steps == 60);
        CHECK(p[i].speed > 0 && isfinite(p[i].loss));
        CHECK_NEAR(60 * p[i].minutes + p[i].seconds, seconds_left, 1.01, 0.01); /* full seconds */
        CHECK(p[i].kept_per_byte > 0.3 * p[i].kept && p[i].kept_per_byte < p[i].kept);
    }
    CHECK(p[0].loss < 6); /* log 300 is 5.7: what a model that knows nothing has */
    CHECK(p[n - 1].loss < p[0].loss - 0.5 && p[n - 1].kept < p[0].kept - 0.5);
    CHECK(p[n - 1].kept < 2); /* no better than 2.8 where only the output layer learns */
}

/* The same numbers as in the log, of which it has two more digits. */
static void check_csv(const char *path, const progress *p, int n) {
    FILE *csv = fopen(path, "r");
    char line[128];
    double step, loss, kept;
    int i;
    REQUIRE(csv != NULL);
    CHECK(fgets(line, sizeof line, csv) && strcmp(line, "step,loss,kept_back\n") == 0);
    for (i = 0; fgets(line, sizeof line, csv); i++) {
        CHECK(i < n && sscanf(line, "%lf,%lf,%lf", &step, &loss, &kept) == 3);
        if (i >= n) break;
        CHECK(step == p[i].step);
        CHECK_NEAR(loss, p[i].loss, 5.1e-5, 0);
        CHECK_NEAR(kept, p[i].kept, 5.1e-5, 0);
    }
    CHECK(i == n);
    fclose(csv);
}

/* The points of a polyline: each further to the right than the last, and inside of the frame. */
static void check_polyline(const char *line, int n) {
    const char *p = strstr(line, "points='");
    double x, y, before = 0;
    int i, length;
    REQUIRE(p != NULL);
    p += strlen("points='");
    for (i = 0; sscanf(p, " %lf,%lf%n", &x, &y, &length) == 2; i++, p += length) {
        CHECK(x > before && x <= 924 && y >= PLOT_TOP && y <= PLOT_BOTTOM);
        before = x;
    }
    CHECK(i == n && p[strspn(p, " ")] == '\'');
    CHECK_NEAR(before, 924, 0.05, 0); /* the last step is the right end */
}

static void check_svg(const char *path, int n) {
    size_t size;
    char *svg = read_bytes(path, &size);
    REQUIRE(svg != NULL);
    CHECK(strncmp(svg, "<svg ", 5) == 0 && size > 8 && strcmp(svg + size - 8, "\n</svg>\n") == 0);
    CHECK(count_of(svg, "<") == count_of(svg, ">") && count_of(svg, "'") % 2 == 0);
    CHECK(count_of(svg, "<text ") == count_of(svg, "</text>"));
    CHECK(!strstr(svg, "nan") && !strstr(svg, "inf"));
    const char *first = strstr(svg, "<polyline ");
    const char *second = first ? strstr(first + 1, "<polyline ") : NULL;
    const char *third = second ? strstr(second + 1, "<polyline ") : NULL;
    CHECK(third &&
          count_of(svg, "<polyline ") == 3); /* a batch's loss, the same smoothed, the text kept back */
    if (third) check_polyline(first, n), check_polyline(second, n), check_polyline(third, n);
    CHECK(strstr(svg, ">Training loss of new.gguf<") && strstr(svg, ">training step<"));
    CHECK(strstr(svg, ">loss (nats per token)<") && strstr(svg, ">text kept back<"));
    free(svg);
}

static const ml_tensor *embedding_of(const ml_model *model) {
    char name[ML_NAME_SIZE];
    CHECK(ml_model_tensor_name(model, 0, name) == ML_OK && strcmp(name, "token_embd.weight") == 0);
    return &model->tensors[0];
}

/* The model reads, tokenizes and writes. */
static void check_model(const char *path, ml_type type) {
    static const char text[] = "Anna has a kite.\n\tIt is \xC3\xA9";
    ml_generate_desc desc = {0};
    ml_generated made;
    ml_session *session = NULL;
    ml_model *model = NULL;
    ml_error error;
    int32_t work[1024];
    ml_encode_desc encode = {text, sizeof text - 1, 0, work, sizeof work};
    ml_tokens tokens;
    char back[64];
    size_t n_back;
    REQUIRE(ml_model_load(path, NULL, &model, &error) == ML_OK);
    CHECK(model->config.dim == 16 && model->config.n_layers == 1 && model->config.vocab_size == 300);
    CHECK(model->config.max_seq_len == 32 && model->config.tied_output);
    CHECK(embedding_of(model)->type == type);
    REQUIRE(model->tokenizer && model->tokenizer->n_pieces == 300);
    CHECK(ml_tokenizer_encode(model->tokenizer, &encode, &tokens, &error) == ML_OK);
    CHECK(tokens.n < (int)sizeof text - 1); /* it has learned pieces */
    CHECK(ml_tokenizer_decode(model->tokenizer, &tokens, back, sizeof back, &n_back, &error) == ML_OK);
    CHECK(strcmp(back, text) == 0);
    desc.prompt = "Tom";
    desc.max_new_tokens = 20;
    CHECK(ml_session_new(model, NULL, &session, &error) == ML_OK);
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK && made.n_new >= 5);
    ml_session_free(session);
    ml_model_free(model);
}

TEST(from_text_to_a_model) {
    progress p[8];
    REQUIRE(trains("stories.txt --output new.gguf --sample_every 20" SMALL));
    int n = read_progress(p, 8);
    REQUIRE(n == 6);
    check_progress(p, n);
    check_csv("new.gguf.csv", p, n);
    check_svg("new.gguf.svg", n);
    check_model("new.gguf", ML_F32);
    check_model("new.gguf.train", ML_F32);
    CHECK(count_of(said, "  | Tom") == 3);  /* after 20 and 40 steps, and at the end */
    CHECK(count_of(said, "  | Tom\n") < 3); /* though the model may choose to write nothing */
    CHECK(count_files(".tmp") == 0);
    CHECK(same_bytes("new.gguf", "small.gguf")); /* the same command, but for the samples */
}

/* ---- what is kept back ---- */

/* The sum of -log p of ids[1] to ids[n - 1], in rows of as many tokens as the context has. */
static double surprise(ml_session *session, const ml_model *model, const int32_t *ids, int n) {
    static float logits[32 * 300];
    const int context = model->config.max_seq_len;
    double sum = 0;
    for (int from = 0; from + 1 < n; from += context) {
        ml_batch batch = {0};
        ml_outputs outputs = {NULL, 0, NULL, logits};
        batch.tokens = ids + from;
        batch.n_tokens = n - 1 - from < context ? n - 1 - from : context;
        CHECK(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        for (int i = 0; i < batch.n_tokens; i++) {
            double total = 0;
            for (int k = 0; k < 300; k++) total += exp((double)logits[i * 300 + k]);
            sum += log(total) - (double)logits[i * 300 + ids[from + i + 1]];
        }
    }
    return sum;
}

/* Each text of others.txt alone; the mark that begins the next one is what ends it. */
static void measure_others(const ml_model *model, double *per_token, double *per_byte) {
    ml_session *session = NULL;
    ml_random random;
    char text[128];
    double sum = 0;
    int n_tokens = 0, n_bytes = 0;
    CHECK(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    ml_random_seed(&random, 1);
    for (int i = 0; i < 60; i++) {
        int32_t ids[128], work[1024];
        make_story(&random, 1, text, sizeof text);
        ml_encode_desc encode = {text, strlen(text), ML_ADD_BOS, work, sizeof work};
        ml_tokens encoded;
        CHECK(ml_tokenizer_encode(model->tokenizer, &encode, &encoded, NULL) == ML_OK);
        int n = encoded.n;
        memcpy(ids, encoded.ids, (size_t)n * sizeof *ids);
        CHECK(n > 33); /* more than a row, for the test to see how it is cut */
        if (i < 59) ids[n++] = model->tokenizer->bos;
        sum += surprise(session, model, ids, n);
        n_tokens += n - 1;
        n_bytes += (int)strlen(text);
    }
    *per_token = sum / n_tokens;
    *per_byte = sum / n_bytes;
    ml_session_free(session);
}

/* --steps 0 prints what ml_session_eval_batch gives, and writes nothing. */
TEST(only_measures) {
    double per_token, per_byte, told_token = 0, told_byte = 0;
    ml_model *model = NULL;
    int n_files = count_files("");
    REQUIRE(trains("--steps 0 --rows 3 --model small.gguf --validation_text others.txt --output none.gguf"));
    CHECK(count_files("") == n_files);
    CHECK(read_loss(&told_token, &told_byte));
    REQUIRE(ml_model_load("small.gguf", NULL, &model, NULL) == ML_OK);
    measure_others(model, &per_token, &per_byte);
    CHECK_NEAR(told_token, per_token, 6e-5, 1e-5);
    CHECK_NEAR(told_byte, per_byte, 6e-5, 1e-5);
    ml_model_free(model);
}

/* The rows of three held-out texts: 1 2 3, 1, and 1 2. */
static void check_rows(int32_t bos, int context, int n_rows, int n, const char *tokens, const char *targets) {
    int32_t ids[] = {1, 2, 3, 1, 1, 2}, room[2][8] = {{0}}, starts[5] = {0};
    size_t begins[] = {0, 3, 4};
    char text[2][9] = {"", ""};
    ml_tokenizer tokenizer;
    ml_model model;
    place from = {0, 0};
    run held_out;
    memset(&tokenizer, 0, sizeof tokenizer), memset(&model, 0, sizeof model);
    memset(&held_out, 0, sizeof held_out);
    tokenizer.bos = bos;
    model.tokenizer = &tokenizer;
    held_out.model = &model;
    held_out.set.rows = 4;
    held_out.set.context = context;
    held_out.tokens = room[0], held_out.targets = room[1], held_out.starts = starts;
    held_out.valid.ids = ids, held_out.valid.n = 6;
    held_out.valid.starts = begins, held_out.valid.n_texts = 3;
    ml_batch batch = next_validation(&held_out, &from);
    CHECK(batch.n_rows == n_rows && batch.n_tokens == n && starts[n_rows] == n);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < batch.n_tokens; j++) text[i][j] = (char)('0' + room[i][j]);
    CHECK(strcmp(text[0], tokens) == 0 && strcmp(text[1], targets) == 0);
    CHECK(next_validation(&held_out, &from).n_rows == 0);
}

/* bos after a text says that it ended; without bos, a text predicts nothing of the next, and one token nothing. */
TEST(held_out_texts_are_apart) {
    check_rows(1, 8, 3, 5, "12311", "23112");
    check_rows(1, 2, 4, 5, "12311", "23112");
    check_rows(-1, 8, 2, 3, "121", "232");
    check_rows(-1, 1, 3, 3, "121", "232");
}

/* Every tenth text, the end of a single one, or none. */
TEST(keeps_text_back) {
    int n_train = 0, n_kept = 0;
    FILE *file = fopen("single.txt", "w");
    REQUIRE(file != NULL);
    for (int i = 0; i < 80; i++) fprintf(file, "Tom has a ball. It is a good ball.\n");
    fclose(file);
    REQUIRE(trains("stories.txt --output kept.gguf" SMALL));
    CHECK(read_counts(&n_train, &n_kept));
    CHECK_NEAR(n_kept, n_train / 9.0, 0, 0.1);
    REQUIRE(trains_anew("single.txt --output kept.gguf" SMALL " --vocab_size 280"));
    CHECK(read_counts(&n_train, &n_kept));
    CHECK_NEAR(n_kept, n_train / 9.0, 0, 0.1);
    char few[400] = ""; /* of many files as of one: with 8 of 2 texts each, 1 or 2 of the 16 */
    for (int i = 0; i < 8; i++) {
        char name[32];
        snprintf(name, sizeof name, "few%d.txt", i);
        REQUIRE((file = fopen(name, "w")) != NULL);
        for (int k = 0; k < 40; k++) fprintf(file, "%sTom has a ball.\n", k == 20 ? "<|endoftext|>\n" : "");
        fclose(file);
        snprintf(few + strlen(few), sizeof few - strlen(few), "%s ", name);
    }
    strcat(few, "--output kept.gguf" SMALL " --vocab_size 280");
    REQUIRE(trains_anew(few));
    CHECK(read_counts(&n_train, &n_kept));
    CHECK(n_kept * 10 > n_train / 2 && n_kept * 6 < n_train);
    REQUIRE(trains_anew("stories.txt --output kept.gguf" SMALL " --validation 0"));
    CHECK(read_counts(&n_train, &n_kept) && n_kept == 0);
    CHECK(!strstr(said, "kept back 0.") && !strstr(said, "nan"));
    int n_tight = 0; /* white space around a separator does not make it a text */
    REQUIRE(
        trains_anew("tight.txt --model small.gguf --output kept.gguf" SMALL " --context 4 --validation 0"));
    CHECK(read_counts(&n_tight, &n_kept));
    REQUIRE(
        trains_anew("spaced.txt --model small.gguf --output kept.gguf" SMALL " --context 4 --validation 0"));
    CHECK(read_counts(&n_train, &n_kept) && n_train == n_tight);
    REQUIRE(trains_anew("spaced.txt --model small.gguf --output kept.gguf" SMALL
                        " --context 4 --validation 0 --separator=\t<|endoftext|>\t"));
    CHECK(read_counts(&n_train, &n_kept) && n_train == n_tight);
}

/* Of a file that is named twice, the same texts are kept back twice: each choice among six texts of 1, 2, 4 ... words
   has another sum. */
TEST(keeps_back_the_same_texts) {
    int n_train = 0, n_kept = 0, twice_train = 0, twice_kept = 0;
    FILE *file = fopen("doubling.txt", "w");
    REQUIRE(file != NULL);
    for (int i = 0; i < 6; i++) {
        for (int k = 0; k < 1 << i; k++) fprintf(file, "ball ");
        fprintf(file, "\n<|endoftext|>\n");
    }
    fclose(file);
    REQUIRE(trains_anew("doubling.txt --model small.gguf --output kept.gguf" SMALL " --validation 0.25"));
    CHECK(read_counts(&n_train, &n_kept));
    REQUIRE(trains_anew("doubling.txt doubling.txt --model small.gguf --output kept.gguf" SMALL
                        " --validation 0.25"));
    CHECK(read_counts(&twice_train, &twice_kept));
    CHECK(twice_kept == 2 * n_kept && twice_train == 2 * n_train);
    REQUIRE(trains_anew("doubling.txt ./doubling.txt --model small.gguf --output kept.gguf" SMALL
                        " --validation 0.25"));
    CHECK(read_counts(&twice_train, &twice_kept));
    CHECK(twice_kept == 2 * n_kept && twice_train == 2 * n_train);
}

/* A text that is cut for that is cut between two characters: half a letter would be a piece of its own. */
TEST(keeps_back_whole_characters) {
    int n_train = 0, n_kept = 0, all = 0;
    FILE *file = fopen("letters.txt", "w");
    REQUIRE(file != NULL);
    for (int i = 0; i < 301; i++) fprintf(file, "\xD0\xB6");
    fclose(file);
    REQUIRE(trains_anew("letters.txt --model small.gguf --output kept.gguf" SMALL " --validation 0"));
    CHECK(read_counts(&all, &n_kept));
    REQUIRE(trains_anew("letters.txt --model small.gguf --output kept.gguf" SMALL " --validation 0.5"));
    CHECK(read_counts(&n_train, &n_kept) && n_train % 2 == all % 2);
}

/* The curve is drawn of what there is. */
TEST(nothing_kept_back) {
    size_t n;
    REQUIRE(trains("stories.txt --output bare.gguf" SMALL " --validation 0"));
    char *csv = read_bytes("bare.gguf.csv", &n);
    char *svg = read_bytes("bare.gguf.svg", &n);
    REQUIRE(csv && svg);
    CHECK(count_of(csv, "\n") == 7 && count_of(csv, ",\n") == 6 && !strstr(csv, "nan"));
    check_polyline(strstr(svg, "<polyline "), 6);
    CHECK(count_of(svg, "<polyline ") == 2 && !strstr(svg, "kept back"));
    CHECK(!strstr(svg, "nan") && !strstr(svg, "inf"));
    free(csv);
    free(svg);
}

/* ---- threads ---- */

/* Large enough that there is work for two threads in every operation. */
#define WIDE                                                                                                 \
    " --vocab_size 300 --dim 64 --n_layers 1 --context 64 --rows 8 --steps 3 --warmup 1 --every 1"           \
    " --validation 0.1"

TEST(threads_change_no_bit) {
    REQUIRE(trains("stories.txt --output one.gguf --threads 1" WIDE));
    REQUIRE(trains("stories.txt --output two.gguf --threads 2" WIDE));
    CHECK(same_bytes("one.gguf", "two.gguf"));
    CHECK(same_bytes("one.gguf.train", "two.gguf.train"));
    CHECK(same_bytes("one.gguf.csv", "two.gguf.csv"));
    REQUIRE(trains_anew("stories.txt --output two.gguf --threads 2 --seed 2" WIDE));
    CHECK(!same_bytes("one.gguf", "two.gguf")); /* or the bytes would say nothing */
}

/* ---- interruption ---- */

#define STOPPED "stories.txt --output stopped.gguf" SMALL

static void check_as_if_undisturbed(void) {
    CHECK(same_bytes("stopped.gguf", "small.gguf"));
    CHECK(same_bytes("stopped.gguf.train", "small.gguf.train"));
    CHECK(same_bytes("stopped.gguf.csv", "small.gguf.csv"));
    CHECK(count_files(".tmp") == 0);
}

/* Ctrl-C, then what a system that shuts down sends; each saves at once and says how to go on. */
TEST(interrupted_and_resumed) {
    pretrain_until(STOPPED, 25, SIGINT);
    CHECK(status == 128 + SIGINT && !*complained); /* a script does not go on with half a model */
    CHECK(strstr(said, "stopped at step 25") && strstr(said, "--resume"));
    check_model("stopped.gguf", ML_F32);
    CHECK(exists("stopped.gguf.train") && !same_bytes("stopped.gguf", "small.gguf"));
    pretrain(STOPPED);
    CHECK(status == 1 && strstr(complained, "stopped.gguf.train has a run of 25 steps: --resume goes on"));
    pretrain_until(STOPPED " --resume", 47, SIGTERM);
    CHECK(status == 128 + SIGTERM && strstr(said, "stopped at step 47") && strstr(said, "--resume"));
    REQUIRE(trains(STOPPED " --resume"));
    CHECK(!strstr(said, "step 40 of") && strstr(said, "step 50 of") && !strstr(said, "stopped"));
    check_as_if_undisturbed();
    REQUIRE(trains(STOPPED " --resume")); /* where nothing is left to do */
    check_as_if_undisturbed();
}

/* A finished run is not begun again over what it has left, by the same command or another. */
TEST(earlier_runs_are_spared) {
    static const char *const ends[] = {"", ".train", ".csv", ".svg"};
    static const char *const others[] = {"", " --lr 0.01", " --steps 20", " --steps 900"};
    char path[2][64], arguments[400];
    for (int i = 0; i < 4; i++) {
        snprintf(path[0], sizeof path[0], "stopped.gguf%s", ends[i]);
        snprintf(path[1], sizeof path[1], "kept%s.copy", ends[i]);
        copy_file(path[0], path[1]);
    }
    for (int k = 0; k < 4; k++) {
        snprintf(arguments, sizeof arguments, STOPPED "%s", others[k]);
        pretrain(arguments);
        CHECK(status == 1 && strstr(complained, "stopped.gguf.train has a run of 60 steps"));
        for (int i = 0; i < 4; i++) {
            snprintf(path[0], sizeof path[0], "stopped.gguf%s", ends[i]);
            snprintf(path[1], sizeof path[1], "kept%s.copy", ends[i]);
            CHECK(same_bytes(path[0], path[1]));
        }
    }
}

/* Of two runs at once, from the beginning and resumed, that which saves later says so, and saves nothing. */
TEST(two_runs_at_once) {
#define TWICE "stories.txt --output twice.gguf" SMALL
    pid_t late = start_and_wait(TWICE, 25);
    CHECK(trains(TWICE));
    for (int i = 0; i < 2; i++) {
        if (late > 0) kill(late, SIGTERM);
        finish(late);
        CHECK(status == 1 && strstr(complained, "twice.gguf.train: another program wrote it meanwhile"));
        CHECK(!strstr(complained, "the state after step"));
        CHECK(same_bytes("twice.gguf", "small.gguf") && same_bytes("twice.gguf.train", "small.gguf.train"));
        CHECK(same_bytes("twice.gguf.csv", "small.gguf.csv") && count_files(".tmp") == 0);
        if (i) break;
        remove("twice.gguf.train");
        pretrain_until(TWICE, 25, SIGTERM);
        late = start_and_wait(TWICE " --resume", 35);
        CHECK(trains(TWICE " --resume"));
    }
}

/* A run goes on with the text and the shape it began with; with other rates, and says so. Any text may be measured. */
TEST(resumed_with_other_settings) {
    static const char *const refused[][2] = {
        {STOPPED " others.txt --resume", "stopped.gguf.train learned from another text"},
        {STOPPED " --validation 0.2 --resume", "--model stopped.gguf learns from this one"},
        {STOPPED " --dim 32 --resume", "--resume: --dim 32 is not that of stopped.gguf.train, which has 16"},
    };
    for (int i = 0; i < 3; i++) {
        pretrain(refused[i][0]);
        CHECK(status == 1 && strstr(complained, refused[i][1]));
    }
    check_as_if_undisturbed();
    pretrain("others.txt --resume --steps 0 --validation 0.5 --output stopped.gguf");
    CHECK(status == 0 && !*complained && strstr(said, "a token"));
    pretrain(STOPPED " --resume --lr 0.01");
    CHECK(status == 0 && strstr(complained, "not the settings so far"));
}

/* kill -9 loses what came after the last checkpoint, and no more. */
TEST(killed_and_resumed) {
    remove("stopped.gguf.train");
    pretrain_until(STOPPED " --save_every 20", 37, SIGKILL);
    CHECK(status == -1 && exists("stopped.gguf.train"));
    REQUIRE(trains(STOPPED " --resume"));
    CHECK(!strstr(said, "step 20 of") && strstr(said, "step 30 of"));
    check_as_if_undisturbed();
}

/* ---- a model that continues to learn ---- */

static int same_tokenizers(const char *a, const char *b) {
    ml_tokenizer *t[2] = {NULL, NULL};
    const char *piece[2];
    size_t length[2];
    float score[2];
    CHECK(ml_tokenizer_load(a, NULL, &t[0], NULL) == ML_OK &&
          ml_tokenizer_load(b, NULL, &t[1], NULL) == ML_OK);
    int same = t[0] && t[1] && t[0]->n_pieces == t[1]->n_pieces;
    for (int id = 0; same && id < t[0]->n_pieces; id++) {
        for (int i = 0; i < 2; i++) piece[i] = ml_tokenizer_piece(t[i], id, &length[i], &score[i], NULL);
        same = length[0] == length[1] && score[0] == score[1] && memcmp(piece[0], piece[1], length[0]) == 0;
    }
    ml_tokenizer_free(t[0]);
    ml_tokenizer_free(t[1]);
    return same;
}

TEST(model_goes_on_learning) {
    progress p[8];
    double before = 0, per_byte;
    REQUIRE(trains("--steps 0 --model small.gguf others.txt --validation 0.1"));
    CHECK(read_loss(&before, &per_byte));
    copy_file("small.gguf", "given.gguf");
    REQUIRE(trains("others.txt --model given.gguf --output further.gguf" SMALL));
    REQUIRE(read_progress(p, 8) == 6);
    CHECK(p[5].kept < before - 0.5);
    CHECK(same_bytes("given.gguf", "small.gguf"));
    CHECK(same_tokenizers("further.gguf", "small.gguf"));
    check_model("further.gguf", ML_F32);
}

/* The shape is the model's, and the vocabulary that of the tokenizer: other ones are refused. */
TEST(shapes_of_files) {
    static const char *const refused[][2] = {
        {"--model small.gguf --dim 32", "--model: --dim 32 is not that of small.gguf, which has 16"},
        {"--model small.gguf --n_layers 2", "--model: --n_layers 2 is not that of small.gguf, which has 1"},
        {"--model small.gguf --vocab_size 400", "--vocab_size 400 is not that of small.gguf, which has 300"},
        {"--tokenizer small.gguf --vocab_size 400",
         "--tokenizer: --vocab_size 400 is not that of small.gguf"},
    };
    for (int i = 0; i < 4; i++) {
        char arguments[400];
        snprintf(arguments, sizeof arguments, "stories.txt --output other.gguf" SMALL " %s", refused[i][0]);
        pretrain(arguments);
        CHECK(status == 1 && strstr(complained, refused[i][1]));
    }
}

/* A context longer than the model's becomes the model's, and epochs are counted in its rows. */
TEST(context_of_the_model) {
    progress p;
    int n_train = 0, n_kept;
    REQUIRE(trains("others.txt --model small.gguf --output far.gguf --context 999 --rows 4 --epochs 2 "
                   "--every 1 --validation 0.1"));
    CHECK(read_counts(&n_train, &n_kept));
    REQUIRE(read_progress(&p, 1) == 1);
    CHECK(p.steps == 2 * n_train / (4 * 32) + 1);
    REQUIRE(trains_anew("others.txt --tokenizer small.gguf --output far.gguf" SMALL));
    CHECK(same_tokenizers("far.gguf", "small.gguf"));
}

/* Bytes that are not text are learned, too, all of them. */
TEST(any_bytes) {
    unsigned char bytes[8192];
    int n_train = 0, n_kept;
    REQUIRE(trains("ones.bin --model small.gguf --output bytes.gguf" SMALL " --validation 0"));
    CHECK(read_counts(&n_train, &n_kept) && n_train >= 4000);
    for (int i = 0; i < 8192; i++) bytes[i] = (unsigned char)(i * 89 + i / 251);
    write_bytes("noise.bin", bytes, sizeof bytes);
    REQUIRE(trains_anew("noise.bin --output bytes.gguf" SMALL " --vocab_size 360"));
}

/* A text as Windows and old Macs write it, with a byte order mark or not, is the same text. */
TEST(texts_of_other_systems) {
    static const char *const line_ends[] = {"\r\n", "\r"};
    size_t n;
    char *text = read_bytes("stories.txt", &n), *marked = (char *)malloc(n + 3);
    REQUIRE(text && marked);
    for (int i = 0; i < 2; i++) {
        write_stories("foreign.txt", 80, 0, line_ends[i]);
        REQUIRE(i ? trains_anew("foreign.txt --output foreign.gguf" SMALL)
                  : trains("foreign.txt --output foreign.gguf" SMALL));
        CHECK(same_bytes("foreign.gguf", "small.gguf"));
    }
    memcpy(marked, "\xef\xbb\xbf", 3);
    memcpy(marked + 3, text, n);
    write_bytes("foreign.txt", marked, n + 3);
    REQUIRE(trains_anew("foreign.txt --output foreign.gguf" SMALL));
    CHECK(same_bytes("foreign.gguf", "small.gguf"));
    free(text);
    free(marked);
}

/* A pipe gives its text once: to the tokenizer that is learned and to the model. */
TEST(text_from_a_pipe) {
    int how = 0;
    fflush(stdout);
    CHECK(mkfifo("pipe", 0600) == 0);
    pid_t writer = fork();
    if (writer == 0) {
        alarm(60);
        copy_file("stories.txt", "pipe");
        _exit(0);
    }
    REQUIRE(trains("pipe --output piped.gguf" SMALL));
    CHECK(waitpid(writer, &how, 0) == writer && WIFEXITED(how));
    CHECK(same_bytes("piped.gguf", "small.gguf"));
}

TEST(as_many_threads_as_openmp_says) {
#ifdef _OPENMP
    int before = omp_get_max_threads();
    omp_set_num_threads(3); /* as OMP_NUM_THREADS=3 does when a program starts */
    CHECK(default_threads() == 3);
    omp_set_num_threads(before);
#else
    CHECK(default_threads() == 1);
#endif
}

TEST(smaller_types) {
    REQUIRE(trains("stories.txt --output half.gguf --type F16" SMALL));
    check_model("half.gguf", ML_F16);
    CHECK(size_of("half.gguf") < size_of("small.gguf"));
    CHECK(same_bytes("half.gguf.train", "small.gguf.train"));
}

/* Q4_0 needs rows of whole blocks: of 16 numbers none are, and the second matrix of the feed-forward layer has 64. */
TEST(types_that_rows_do_not_fill) {
    pretrain("stories.txt --output halves.gguf --type Q4_0" SMALL " --hidden_dim 64");
    CHECK(status == 0 &&
          strcmp(complained, "7 of 8 matrices become F16: their rows are not multiples of 32\n") == 0);
    check_model("halves.gguf", ML_F16);
    REQUIRE(trains("--steps 0 --model small.gguf --type Q4_0 --validation_text others.txt"));
}

/* A rate that rises for longer than a run lasts is one that is not reached: not by default, and otherwise it is said. */
TEST(warmup_of_a_short_run) {
#define SHORT_RUN                                                                                            \
    "stories.txt --vocab_size 300 --dim 16 --n_layers 1 --context 32 --rows 4 --validation 0.1 --output "
    REQUIRE(trains(SHORT_RUN "warm.gguf --steps 50"));
    REQUIRE(trains(SHORT_RUN "warm5.gguf --steps 50 --warmup 5"));
    CHECK(same_bytes("warm.gguf", "warm5.gguf"));
    pretrain(SHORT_RUN "cold.gguf --steps 20 --warmup 20");
    CHECK(status == 0 && strcmp(complained, "--warmup: 20 of 20 steps: the rate does not reach --lr\n") == 0);
    REQUIRE(trains(SHORT_RUN "late.gguf --steps 20 --warmup 19"));
}

TEST(help_is_no_error) {
    REQUIRE(trains("-h"));
    CHECK(strstr(said, "usage: pretrain") != NULL);
    REQUIRE(trains("--help"));
    CHECK(strstr(said, "usage: pretrain") && strstr(said, "--resume") && strstr(said, "--vocab_size"));
}

/* ---- what goes wrong ---- */

/* The run fails, says so in these words, and leaves everything as it was. */
static void refuses(const char *arguments, const char *words) {
    pretrain("--help"); /* so that its logs are there when files are counted */
    int n_files = count_files("");
    pretrain(arguments);
    if (status > 0 && strstr(complained, words) && count_files("") == n_files &&
        same_bytes("valued.gguf", "valued.copy"))
        return;
    printf("pretrain %s\nended with %d: %s\n", arguments, status, complained);
    CHECK(status > 0);                        /* an error, not a crash */
    CHECK(strstr(complained, words) != NULL); /* it says what */
    CHECK(count_files("") == n_files);
    CHECK(same_bytes("valued.gguf", "valued.copy"));
}

/* Of a run that is well but for these arguments; OUTPUT is there already. */
static void refuses_also(const char *arguments, const char *words) {
    char all[4096];
    snprintf(all, sizeof all, "--output valued.gguf" SMALL " %s", arguments);
    refuses(all, words);
}

static void value_a_file(void) {
    write_text("valued.gguf", "of an earlier run");
    copy_file("valued.gguf", "valued.copy");
}

TEST(wrong_texts) {
    value_a_file();
    refuses("", "usage: pretrain TEXT");
    refuses_also("", "usage: pretrain TEXT");
    refuses_also("absent.txt", "absent.txt: No such file");
    write_bytes("utf16.txt", "\xff\xfeO\0n\0c\0e\0", 10);
    refuses_also("utf16.txt", "utf16.txt: the text is UTF-16: save it as UTF-8");
    write_bytes("utf16.txt", "\xfe\xff\0O\0n\0c\0e", 10);
    refuses_also("utf16.txt", "utf16.txt: the text is UTF-16: save it as UTF-8");
    refuses_also("stories.txt absent.txt", "absent.txt: No such file");
    refuses_also("empty.txt", "empty.txt: is empty");
    refuses("--output valued.gguf" TINY " stories.txt --validation_text empty.txt", "empty.txt: is empty");
    refuses("--output valued.gguf" TINY " stories.txt --validation_text absent.txt",
            "absent.txt: No such file");
    refuses_also("separators.txt", "tokenizer: the text fills no vocabulary of 300 pieces");
    refuses_also("separators.txt --model small.gguf", "training text: fewer than two tokens");
    refuses_also("one.txt", "tokenizer: the text fills no vocabulary");
    refuses_also("one.txt --model small.gguf", "training text: fewer than two tokens");
    refuses_also("one.txt --model small.gguf --validation 0", "training text: shorter than one row");
    refuses_also("ones.bin", "tokenizer: the text fills no vocabulary");
    refuses_also("zeros.bin", "zeros.bin: no text: more than one byte in a hundred is zero");
    static const char *const kinds[][2] = {{"PAR1\x15\4", "Parquet"},
                                           {"\x1f\x8b\x08\x08", "gzip"},
                                           {"\x28\xb5\x2f\xfd", "zstd"},
                                           {"PK\3\4", "zip"},
                                           {"\x93NUMPY\1", "NumPy"}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        write_text("kind.bin", kinds[i][0]);
        refuses_also("kind.bin", kinds[i][1]);
    }
    refuses_also("stories.txt --context 30000", "training text: shorter than one row");
    refuses_also("stories.txt --steps 0 --model small.gguf --validation 0",
                 "--steps 0: no text is kept back");
    refuses_also("--steps 0 --model small.gguf", "--steps 0: no text is kept back");
}

/* The same for what argv alone says. */
static void refuses_option(const char *arguments, const char *words) {
    refuses_also(arguments, words);
    CHECK(status == 2);
}

TEST(wrong_options) {
    value_a_file();
    refuses_also("stories.txt --nonsense 3", "unknown option --nonsense");
    refuses_also("stories.txt --vocabsize 300", "did you mean --vocab_size?");
    refuses_also("stories.txt -o 3", "unknown option -o");
    refuses_also("stories.txt --steps", "--steps needs a value");
    refuses_also("stories.txt --steps ten", "--steps takes a whole number, not \"ten\"");
    refuses_also("stories.txt --lr high", "--lr takes a number, not \"high\"");
    refuses_also("stories.txt --resume=yes", "--resume takes no value");
    refuses_also("stories.txt --steps -5", "--steps goes from 0");
    refuses_also("stories.txt --rows 0", "--rows goes from 1");
    refuses_also("stories.txt --rows 4000000", "--rows: and --context make a batch of more");
    refuses_also("stories.txt --context 1", "--context goes from 2");
    refuses_also("stories.txt --every 0", "--every goes from 1");
    refuses_also("stories.txt --save_every 0", "--save_every goes from 1");
    refuses_also("stories.txt --sample_every -1", "--sample_every goes from 0");
    refuses_also("stories.txt --final_lr 1", "--final_lr goes from 0 to 0.0");
    refuses_also("stories.txt --final_lr -3", "--final_lr goes from 0 to 0.0");
    refuses_also("stories.txt --prompt 0123456789012345678901234567890123456789", "--prompt: has 4");
    refuses_also("stories.txt --warmup -1", "--warmup goes from 0");
    refuses_also("stories.txt --validation 1", "--validation goes from 0");
    refuses_also("stories.txt --weight_decay -1", "--weight_decay goes from 0");
    refuses_also("stories.txt --clip -1", "--clip goes from 0");
    refuses_also("stories.txt --threads 0", "--threads goes from 1");
    refuses_also("stories.txt --lr 0", "--lr: must be above 0");
    refuses_also("stories.txt --epochs 0", "--epochs: must be above 0");
    refuses("stories.txt --output valued.gguf" TINY " --epochs 1e30", "--epochs: that is too many steps");
    refuses_also("stories.txt --type I8", "--type is F32, F16");
    refuses_option("stories.txt --output x.pt", "--output: is a GGUF: call it .gguf");
}

/* What would be ignored, or taken for something else. */
TEST(options_that_are_no_help) {
    value_a_file();
    refuses_option("stories.txt --epochs 2", "--steps or --epochs is given, not both");
    refuses_option("stories.txt --validation_text others.txt", "--validation or --validation_text is given");
    refuses_option("stories.txt --steps -1", "--steps goes from 0 to 2147483647, not -1");
    refuses_option("stories.txt --final_lr -1", "--final_lr goes from 0 to 0.0");
    refuses_option("stories.txt --every 0", "--every goes from 1 to 2147483647, not 0");
    refuses_option("stories.txt --steps 0", "--steps 0 measures what --model or --resume names");
    refuses_option("stories.txt --seed --resume", "--seed needs a value (--seed=--resume if that is it)");
    refuses_option("stories.txt --output --lr=1", "--output needs a value (--output=--lr=1 if that is it)");
    pretrain("stories.txt --steps 0 --model small.gguf --validation 0.1 --prompt=--resume --output --x.gguf");
    CHECK(status == 0 && !*complained);
}

TEST(wrong_shapes) {
    value_a_file();
    refuses_also("stories.txt --vocab_size 100", "tokenizer: a vocabulary of 100 pieces is too small");
    refuses_also("stories.txt --vocab_size -7", "tokenizer: a vocabulary of -7 pieces is too small");
    refuses_also("stories.txt --vocab_size 90000", "tokenizer: the text fills no vocabulary of 90000 pieces");
    refuses_also("stories.txt --vocab_size 2000000",
                 "tokenizer: a vocabulary of 2000000 pieces is too large");
    refuses_also("stories.txt --dim 0", "--dim goes from 1 to 65536, not 0");
    refuses_also("stories.txt --dim 999999999", "--dim goes from 1 to 65536");
    refuses_also("stories.txt --dim 18", "dim 18 cannot be cut into 4 heads");
    refuses_also("stories.txt --n_heads 0", "n_heads is 0");
    refuses_also("stories.txt --n_kv_heads 3", "n_kv_heads 3 does not divide n_heads 4");
    refuses_also("stories.txt --n_layers 0", "n_layers is 0");
    refuses_also("stories.txt --hidden_dim -1", "hidden_dim is -1");
}

/* A checkpoint is refused that is none or is cut short. */
TEST(wrong_checkpoints) {
    size_t n;
    char *bytes = read_bytes("small.gguf.train", &n);
    REQUIRE(bytes != NULL);
    write_bytes("cut.gguf.train", bytes, n / 2);
    free(bytes);
    copy_file("small.gguf", "plain.gguf.train");
    value_a_file();
    refuses_also("stories.txt --resume", "valued.gguf.train cannot be opened: No such file");
    refuses_also("stories.txt --resume --output cut.gguf", "cut.gguf.train");
    refuses_also("stories.txt --resume --output plain.gguf", "plain.gguf.train: not a checkpoint");
}

TEST(wrong_files) {
    char name[1100], all[1200];
    value_a_file();
    refuses_also("stories.txt --model absent.gguf", "absent.gguf");
    refuses_also("stories.txt --model stories.txt", "stories.txt");
    refuses_also("stories.txt --tokenizer absent.gguf", "absent.gguf");
    refuses_also("stories.txt --tokenizer stories.txt", "stories.txt");
    refuses_also("stories.txt --model small.gguf --tokenizer stories.txt", "tokenizer");
    refuses_also("stories.txt --output nowhere/a.gguf", "nowhere/a.gguf cannot be written: No such file");
    refuses_also("stories.txt --output stories.txt", "--output: stories.txt is also read (a text)");
    refuses_also("others.txt stories.txt --output ./stories.txt", "--output: ./stories.txt is also read");
    CHECK(symlink("stories.txt", "linked.txt") == 0 && link("stories.txt", "hard.txt") == 0);
    refuses_also("stories.txt --output linked.txt", "--output: linked.txt is also read");
    refuses_also("stories.txt --output hard.txt", "--output: hard.txt is also read");
    refuses_also("stories.txt --model small.gguf --output small.gguf", "small.gguf is also read (--model)");
    refuses_also("small.gguf.csv --output small.gguf", "small.gguf.csv is also read (a text)");
    refuses("stories.txt --validation_text small.gguf.tmp --output small.gguf" TINY, "(--validation_text)");
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    snprintf(all, sizeof all, "stories.txt --output %s", name);
    refuses_also(all, "--output: is empty or too long");
    refuses_option("stories.txt --output=", "--output: is empty or too long");
}

/* Shows before anything is read, and leaves no file. */
TEST(output_is_a_folder) {
    value_a_file();
    CHECK(mkdir("folder.gguf", 0700) == 0);
    refuses("stories.txt --output folder.gguf" SMALL, "folder.gguf cannot be written: Is a directory");
    CHECK(mkdir("picture.gguf.svg", 0700) == 0);
    refuses("stories.txt --output picture.gguf" SMALL, "picture.gguf.svg cannot be written: Is a directory");
}

/* A model that is broken fails at the first step: nothing is saved over what is there, the curve of an earlier run
   included, or said to be. */
TEST(loss_is_not_finite) {
    ml_model_load_desc desc = {0};
    ml_model *model = NULL;
    desc.type = ML_F32;
    value_a_file();
    REQUIRE(ml_model_load("small.gguf", &desc, &model, NULL) == ML_OK);
    float *embedding = (float *)model->tensors[0].data, *norm = (float *)model->tensors[1].data;
    size_t n = model->tensors[0].rows * model->tensors[0].cols;
    for (size_t i = 0; i < n; i++) embedding[i] *= 1e4f; /* finite, but the logits are not */
    for (size_t i = 0; i < model->tensors[1].cols; i++) norm[i] = 3e38f;
    CHECK(ml_model_save(model, "broken.gguf", NULL, NULL) == ML_OK);
    ml_model_free(model);
    copy_file("valued.gguf", "valued.gguf.csv");
    pretrain("stories.txt --model broken.gguf --output valued.gguf" SMALL);
    CHECK(status == 1 && strstr(complained, "the loss is not finite"));
    CHECK(!strstr(complained, "the state after step") && !exists("valued.gguf.train"));
    CHECK(same_bytes("valued.gguf", "valued.copy") && count_files(".tmp") == 0);
    CHECK(same_bytes("valued.gguf.csv", "valued.copy"));
}

/* ---- a full disk ---- */

#define FULL "stories.txt --output full.gguf" SMALL " --every 1"

static void pretrain_on_full_disk(const char *arguments, size_t bytes) {
    largest_file = (int)bytes;
    pretrain(arguments);
    largest_file = 0;
}

/* The last good state is kept, and training continues from it when there is room again, as if nothing had
   happened. */
TEST(disk_is_full) {
    REQUIRE(trains("stories.txt --output empty.gguf" SMALL " --every 1"));
    pretrain_until(FULL, 40, SIGINT);
    CHECK(status == 128 + SIGINT);
    copy_file("full.gguf", "full.copy");
    copy_file("full.gguf.train", "full.train.copy");
    copy_file("full.gguf.csv", "full.csv.copy");
    copy_file("full.gguf.svg", "full.svg.copy");
    size_t row = size_of("full.gguf.csv") / 40;

    /* no room for the checkpoint */
    pretrain_on_full_disk(FULL " --resume", size_of("full.gguf.train") - 1);
    CHECK(status == 1 && strstr(complained, "full.gguf.train cannot be written: File too large"));
    CHECK(strstr(complained, "the state after step 40 is in full.gguf.train"));
    CHECK(same_bytes("full.gguf", "full.copy") && same_bytes("full.gguf.train", "full.train.copy"));
    CHECK(count_files(".tmp") == 0);

    /* none for the curve: neither when it is written again, nor for its next line */
    copy_file("full.csv.copy", "full.gguf.csv");
    pretrain_on_full_disk(FULL " --resume", size_of("full.gguf.csv") - 1);
    CHECK(status == 1 && strstr(complained, "full.gguf.csv cannot be written: File too large"));
    CHECK(same_bytes("full.gguf.csv", "full.csv.copy"));
    pretrain_on_full_disk(FULL " --resume", size_of("full.gguf.csv") + row / 2);
    CHECK(status == 1 && strstr(complained, "full.gguf.csv cannot be written: File too large"));
    CHECK(same_bytes("full.gguf", "full.copy") && same_bytes("full.gguf.train", "full.train.copy"));
    CHECK(same_bytes("full.gguf.svg", "full.svg.copy") && count_files(".tmp") == 0);

    REQUIRE(trains(FULL " --resume"));
    CHECK(same_bytes("full.gguf", "empty.gguf") && same_bytes("full.gguf.csv", "empty.gguf.csv"));
}

int main(void) {
    if (!folder_begin("pretrain") || chdir(folder) != 0) return 1;
    write_inputs();
    RUN(from_text_to_a_model);
    RUN(only_measures);
    RUN(held_out_texts_are_apart);
    RUN(keeps_text_back);
    RUN(keeps_back_the_same_texts);
    RUN(keeps_back_whole_characters);
    RUN(nothing_kept_back);
    RUN(threads_change_no_bit);
    RUN(interrupted_and_resumed);
    RUN(earlier_runs_are_spared);
    RUN(two_runs_at_once);
    RUN(resumed_with_other_settings);
    RUN(killed_and_resumed);
    RUN(model_goes_on_learning);
    RUN(shapes_of_files);
    RUN(context_of_the_model);
    RUN(any_bytes);
    RUN(texts_of_other_systems);
    RUN(text_from_a_pipe);
    RUN(as_many_threads_as_openmp_says);
    RUN(smaller_types);
    RUN(types_that_rows_do_not_fill);
    RUN(warmup_of_a_short_run);
    RUN(help_is_no_error);
    RUN(wrong_texts);
    RUN(wrong_options);
    RUN(options_that_are_no_help);
    RUN(wrong_shapes);
    RUN(wrong_checkpoints);
    RUN(wrong_files);
    RUN(output_is_a_folder);
    RUN(loss_is_not_finite);
    RUN(disk_is_full);
    if (chdir("/") != 0 || !folder_end()) return 1;
    return test_report("test_pretrain");
}
