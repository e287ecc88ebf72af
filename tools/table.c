/* The assignment's table: every setting of run_llama, on both data sets, in both modes, over some seeds, next to what
   the assignment reports for stories42M. Each run is kept as a log in the folder --out, so a table that was stopped
   continues with the missing runs.

   build/table --model stories42M.pt --data data --seeds 10 */
#include <math.h>
#include "../examples/common/options.h"
#include "../examples/common/plot.h"
#include "../examples/common/progress.h"

enum { MAX_EPOCHS = 100, MAX_SEEDS = 100, MAX_ARGS = 48 };

typedef struct data_set {
    const char *name, *title;
    int n_classes;
    int has_test_labels;
} data_set;

static const data_set data_sets[] = {{"sst", "SST-5: five classes", 5, 1},
                                     {"cfimdb", "CFIMDB: two classes", 2, 0}};

typedef struct row {
    const char *set, *option, *mode, *score;
    const char *dev, *test; /* the assignment's accuracies with stories42M */
} row;

static const row rows[] = {
    {"sst", "prompt", "reference", "sum", "0.237", "0.250"},
    {"sst", "prompt", "llama", "sum", "", ""},
    {"sst", "prompt", "llama", "mean", "", ""},
    {"sst", "prompt", "llama", "calibrated", "", ""},
    {"sst", "prompt", "llama", "pmi", "", ""},
    {"cfimdb", "prompt", "reference", "sum", "0.490", ""},
    {"cfimdb", "prompt", "llama", "sum", "", ""},
    {"cfimdb", "prompt", "llama", "mean", "", ""},
    {"cfimdb", "prompt", "llama", "calibrated", "", ""},
    {"cfimdb", "prompt", "llama", "pmi", "", ""},
    {"sst", "finetune", "reference", "", "0.411 (0.025)", "0.399 (0.023)"},
    {"sst", "finetune", "llama", "", "", ""},
    {"sst", "lora", "reference", "", "0.275 (0.024)", "0.269 (0.020)"},
    {"sst", "lora", "llama", "", "", ""},
    {"cfimdb", "finetune", "reference", "", "0.833 (0.060)", ""},
    {"cfimdb", "finetune", "llama", "", "", ""},
    {"cfimdb", "lora", "reference", "", "0.510 (0.051)", ""},
    {"cfimdb", "lora", "llama", "", "", ""},
};
enum { N_ROWS = sizeof rows / sizeof *rows };

typedef struct settings {
    const char *model, *tokenizer, *data, *out, *only, *lr, *program;
    int seeds, epochs, threads, help;
} settings;

/* What the log of one run says. */
typedef struct run {
    double dev, dev_f1, test, seconds, megabytes;
    double epoch[MAX_EPOCHS]; /* accuracy on dev */
    int n_epochs;
} run;

/* The command of a run, and the text that its arguments are written into. */
typedef struct command {
    char *args[MAX_ARGS], text[16384];
    int n;
    size_t used;
} command;

static void add(command *c, const char *word) {
    size_t n = strlen(word) + 1;
    if (c->used + n > sizeof c->text || c->n + 1 >= MAX_ARGS) {
        complain("the paths are too long");
        exit(1);
    }
    c->args[c->n++] = (char *)memcpy(c->text + c->used, word, n);
    c->args[c->n] = NULL;
    c->used += n;
}

static void add_flag(command *c, const char *flag, const char *value) {
    add(c, flag);
    add(c, value);
}

static void add_number(command *c, const char *flag, int value) {
    char text[16];
    snprintf(text, sizeof text, "%d", value);
    add_flag(c, flag, text);
}

static const data_set *data_set_of(const row *r) {
    const data_set *set = data_sets;
    while (strcmp(set->name, r->set) != 0) set++;
    return set;
}

static int is_prompt(const row *r) { return strcmp(r->option, "prompt") == 0; }

static void name_of(const row *r, char *to, size_t size) {
    snprintf(to, size, "%s %s %s%s%s", r->set, r->option, r->mode, is_prompt(r) ? " " : "", r->score);
}

/* DATA/SET-test-gold.txt, the real labels of a test set whose own are placeholders. NULL: there is none. */
static const char *gold_of(const settings *s, const row *r, char path[4096]) {
    snprintf(path, 4096, "%s/%s-test-gold.txt", s->data, r->set);
    return system_may_read(path) ? path : NULL;
}

/* OUT/sst-prompt-llama-sum-1337 and an ending. */
static const char *path_of(const settings *s, const row *r, int seed, const char *ending) {
    static char path[4][4096];
    static int turn;
    char name[128], *p;
    name_of(r, name, sizeof name);
    for (p = name; *p; p++)
        if (*p == ' ') *p = '-';
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s-%d%s", s->out, name, seed, ending);
    return path[turn];
}

static void make_command(const settings *s, const row *r, int seed, command *c) {
    static const char *const parts[] = {"train", "dev", "test"};
    char flag[16], path[4096];
    c->n = 0;
    c->used = 0;
    add(c, s->program);
    add_flag(c, "--pretrained-model-path", s->model);
    if (s->tokenizer) add_flag(c, "--tokenizer", s->tokenizer);
    add_flag(c, "--option", r->option);
    add_flag(c, "--mode", r->mode);
    add_number(c, "--seed", seed);
    add_number(c, "--batch_size", !is_prompt(r) && strcmp(r->set, "sst") == 0 ? 80 : 10);
    for (int i = 0; i < 3; i++) {
        snprintf(flag, sizeof flag, "--%s", parts[i]);
        snprintf(path, sizeof path, "%s/%s-%s.txt", s->data, r->set, parts[i]);
        add_flag(c, flag, path);
    }
    snprintf(path, sizeof path, "%s/%s-label-mapping.json", s->data, r->set);
    add_flag(c, "--label-names", path);
    if (gold_of(s, r, path)) add_flag(c, "--test-gold", path);
    add_flag(c, "--dev_out", path_of(s, r, seed, "-dev.txt"));
    add_flag(c, "--test_out", path_of(s, r, seed, "-test.txt"));
    if (is_prompt(r)) {
        add_flag(c, "--score", r->score);
    } else {
        if (s->lr || strcmp(r->mode, "reference") == 0) add_flag(c, "--lr", s->lr ? s->lr : "2e-5");
        add_number(c, "--epochs", s->epochs);
        add_flag(c, "--state", path_of(s, r, seed, ".gguf"));
    }
    if (s->threads) add_number(c, "--threads", s->threads);
}

/* The files that were read, each once. */
static struct {
    char path[4096];
    uint64_t hash;
} known_files[32];

static uint64_t known_hash(const char *path) {
    int i = 0;
    while (i < 31 && known_files[i].path[0] && strcmp(known_files[i].path, path) != 0) i++;
    if (strcmp(known_files[i].path, path) != 0) {
        snprintf(known_files[i].path, sizeof known_files[i].path, "%s", path);
        known_files[i].hash = file_hash(path);
    }
    return known_files[i].hash;
}

/* The first line of a log: what was run, and a hash of the files that it read. The number of threads changes no
   result. */
static void command_line(const command *c, char *to, size_t size) {
    static const char *const inputs[] = {
        "--pretrained-model-path", "--tokenizer", "--train", "--dev", "--test",
        "--label-names",           "--test-gold"};
    size_t n = 0;
    uint64_t hash = HASH_START;
    for (int i = 0; i < c->n && n < size && strcmp(c->args[i], "--threads") != 0; i++) {
        n += (size_t)snprintf(to + n, size - n, "%s%s", i ? " " : "", c->args[i]);
        for (int j = 0; i > 0 && j < 7; j++)
            if (strcmp(c->args[i - 1], inputs[j]) == 0) hash = hash_next(hash, known_hash(c->args[i]));
    }
    if (n < size) snprintf(to + n, size - n, " (files %016llx)\n", (unsigned long long)hash);
}

/* Reads the log of a finished run; 0 when there is none, or it is of another command. */
static int read_run(const char *path, const command *c, run *to) {
    char line[16384], ours[16384];
    FILE *log = system_open(path, "r");
    int done = 0;
    memset(to, 0, sizeof *to);
    command_line(c, ours, sizeof ours);
    int same = log && fgets(line, sizeof line, log) && strcmp(line, ours) == 0;
    while (same && fgets(line, sizeof line, log)) {
        double on_dev, f1;
        const char *dev = strncmp(line, "epoch ", 6) == 0 ? strstr(line, ", dev acc :: ") : NULL;
        if (dev && sscanf(dev, ", dev acc :: %lf", &on_dev) == 1 && to->n_epochs < MAX_EPOCHS)
            to->epoch[to->n_epochs++] = on_dev;
        else if (sscanf(line, "dev acc :: %lf, f1 :: %lf", &on_dev, &f1) == 2)
            to->dev = on_dev, to->dev_f1 = f1;
        else if (sscanf(line, "test acc :: %lf, f1 :: %lf", &on_dev, &f1) == 2 ||
                 sscanf(line, "real test acc :: %lf, f1 :: %lf", &on_dev, &f1) == 2)
            to->test = on_dev; /* the real one follows */
        else if (sscanf(line, "took %lf s, %lf MB", &to->seconds, &to->megabytes) == 2)
            done = 1;
    }
    if (log) fclose(log);
    return done;
}

/* Why a run failed: the last line of its log that says something, after "error: ". */
static int explain_failure(const char *part) {
    char line[1024], last[1024] = "";
    FILE *log = system_open(part, "r");
    for (int is_first = 1; log && fgets(line, sizeof line, log); is_first = 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (!is_first && *line) memcpy(last, line, sizeof last); /* the first is the command */
    }
    if (log) fclose(log);
    const char *why = strncmp(last, "error: ", 7) == 0 ? last + 7 : last;
    return complain("run_llama: %s (its log: %s)", *why ? why : "it failed without a word", part);
}

/* Runs it with its output in a log, which gets its final name after success. */
static int do_run(const settings *s, const row *r, int seed, const command *c) {
    const char *part = path_of(s, r, seed, ".part");
    FILE *log = system_open(part, "w");
    char line[16384];
    if (!log) return whole_file_failed(part);
    command_line(c, line, sizeof line);
    fputs(line, log);
    fflush(log);
    double began = seconds_now();
    system_end end = system_run(c->args, log);
    if (end.status == -1) {
        fclose(log);
        return complain("no process can be started: %s", strerror(errno));
    }
    fseek(log, 0, SEEK_END);
    if (end.status == 0) fprintf(log, "took %.2f s, %.1f MB\n", seconds_now() - began, end.peak_mb);
    if (fclose(log) != 0) return whole_file_failed(part);
    system_remove(path_of(
        s, r, seed, ".gguf")); /* the state of the best epoch: large, and the same seed makes it again */
    if (end.status == -2) return fprintf(stderr, "stopped; the same command continues from here\n"), 0;
    if (end.status != 0) return explain_failure(part);
    return system_rename(part, path_of(s, r, seed, ".log")) == 0 || whole_file_failed(part);
}

/* The means, and the deviation of the accuracies, over the finished seeds. Returns how many. */
static int row_mean(const settings *s, const row *r, run *mean, double *dev_sd, double *test_sd) {
    int n = 0;
    double square_dev = 0, square_test = 0;
    command c;
    run one;
    memset(mean, 0, sizeof *mean);
    for (int seed = 0; seed < (is_prompt(r) ? 1 : s->seeds); seed++) {
        make_command(s, r, 1337 + seed, &c);
        if (!read_run(path_of(s, r, 1337 + seed, ".log"), &c, &one)) continue;
        mean->dev += one.dev, square_dev += one.dev * one.dev;
        mean->test += one.test, square_test += one.test * one.test;
        mean->dev_f1 += one.dev_f1;
        mean->seconds += one.seconds;
        mean->megabytes = fmax(mean->megabytes, one.megabytes);
        for (int i = 0; i < one.n_epochs; i++) mean->epoch[i] += one.epoch[i];
        mean->n_epochs = one.n_epochs;
        n++;
    }
    if (!n) return 0;
    mean->dev /= n, mean->test /= n, mean->dev_f1 /= n, mean->seconds /= n;
    for (int i = 0; i < mean->n_epochs; i++) mean->epoch[i] /= n;
    *dev_sd = sqrt(fmax(0, square_dev / n - mean->dev * mean->dev));
    *test_sd = sqrt(fmax(0, square_test / n - mean->test * mean->test));
    return n;
}

static void print_accuracy(FILE *to, double mean, double sd, int n) {
    if (n > 1)
        fprintf(to, " %.3f (%.3f) |", mean, sd);
    else
        fprintf(to, " %.3f |", mean);
}

static void print_table(const settings *s, FILE *to) {
    fprintf(to,
            "%s: accuracy and macro F1; over several seeds the mean and, in brackets, the standard deviation "
            "(divisor n).\n"
            "Beside them the assignment's accuracies with stories42M.pt. Time is the mean of the runs, "
            "memory the most of any.\n\n",
            s->model);
    fprintf(to, "| data | setting | mode | seeds | dev | dev F1 | test | assignment: dev | test | s | MB |\n"
                "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < N_ROWS; i++) {
        const row *r = &rows[i];
        run mean;
        double dev_sd = 0, test_sd = 0;
        char gold[4096];
        int n = row_mean(s, r, &mean, &dev_sd, &test_sd);
        int labeled = data_set_of(r)->has_test_labels || gold_of(s, r, gold);
        fprintf(to, "| %s | %s%s%s | %s |", r->set, r->option, is_prompt(r) ? ", " : "", r->score, r->mode);
        if (n) {
            fprintf(to, " %d |", n);
            print_accuracy(to, mean.dev, dev_sd, n);
            fprintf(to, " %.3f |", mean.dev_f1);
            if (labeled)
                print_accuracy(to, mean.test, test_sd, n);
            else
                fprintf(to, " |");
        } else {
            fprintf(to, " 0 | | | |");
        }
        fprintf(to, " %s | %s |", r->dev, r->test);
        if (n) fprintf(to, " %.1f | %.0f |\n", mean.seconds, mean.megabytes);
        if (!n) fprintf(to, " | |\n");
    }
    fprintf(to,
            "\nThe labels in cfimdb-test.txt are placeholders: accuracy on test is by cfimdb-test-gold.txt, "
            "where that is there.\n");
}

/* The color says what learns, dashes and marks in which mode. */
static plot_style style_of(const row *r) {
    int is_lora = strcmp(r->option, "lora") == 0, is_llama = strcmp(r->mode, "llama") == 0;
    plot_style style = {is_lora ? PLOT_ORANGE : PLOT_BLUE, is_llama ? "none" : "7 4", 2, 1,
                        is_llama ? 'o' : 's'};
    return style;
}

static const plot_style chance_style = {PLOT_GRAY, "2 3", 1.5, 1, 0};

/* The lines of one data set's panel. *most becomes the highest point, if that is higher; p NULL: only this. */
static void draw_lines(const settings *s, const data_set *set, plot *p, double *most) {
    double unused, epochs[MAX_EPOCHS];
    run mean;
    for (int i = 0; i < MAX_EPOCHS; i++) epochs[i] = i + 1;
    for (int i = 0; i < N_ROWS; i++) {
        if (data_set_of(&rows[i]) != set || is_prompt(&rows[i])) continue;
        if (!row_mean(s, &rows[i], &mean, &unused, &unused) || !mean.n_epochs) continue;
        plot_style style = style_of(&rows[i]);
        if (p) plot_line(p, &style, epochs, mean.epoch, (size_t)mean.n_epochs);
        for (int j = 0; j < mean.n_epochs; j++) *most = fmax(*most, mean.epoch[j]);
    }
}

static void draw_panel(const settings *s, const data_set *set, double at, double width, plot *p) {
    double chance = 1.0 / set->n_classes, most = chance, ends[2] = {0.75, s->epochs + 0.25};
    double chances[2] = {chance, chance};
    draw_lines(s, set, NULL, &most);
    plot_panel panel = {at, width, set->title, plot_axis_whole("epoch", ends[0], ends[1]),
                        plot_axis_of("accuracy on dev", 0, most, 6)};
    plot_panel_begin(p, &panel);
    plot_line(p, &chance_style, ends, chances, 2);
    draw_lines(s, set, p, &most);
}

static void draw_legend(plot *p) {
    for (int i = 0; i < N_ROWS; i++) {
        char name[64];
        plot_style style = style_of(&rows[i]);
        if (is_prompt(&rows[i]) || strcmp(rows[i].set, data_sets[0].name) != 0) continue;
        snprintf(name, sizeof name, "%s, %s", rows[i].option, rows[i].mode);
        plot_legend(p, &style, name);
    }
    plot_legend(p, &chance_style, "chance");
}

/* Accuracy on dev after each epoch: a panel for each data set, and in it a line for each setting that trains. */
static int draw_epochs(const settings *s) {
    enum { N_SETS = sizeof data_sets / sizeof *data_sets };
    char path[4096], title[256];
    plot p;
    if (s->epochs < 2) return 1;
    snprintf(path, sizeof path, "%s/accuracy.svg", s->out);
    snprintf(title, sizeof title, "Accuracy after each epoch, %.100s%s", file_name(s->model),
             s->seeds > 1 ? " (mean over seeds)" : "");
    if (!plot_begin(&p, path, title)) return 0;
    draw_legend(&p);
    for (int i = 0; i < N_SETS; i++)
        draw_panel(s, &data_sets[i], i * (PLOT_WIDTH / N_SETS), PLOT_WIDTH / N_SETS, &p);
    return plot_end(&p);
}

static int write_results(const settings *s) {
    char path[4096];
    whole_file file;
    snprintf(path, sizeof path, "%s/table.md", s->out);
    if (!whole_file_begin(&file, path)) return 0;
    print_table(s, file.to);
    return whole_file_end(&file) && draw_epochs(s);
}

static int wanted(const settings *s, const row *r) {
    char name[128];
    name_of(r, name, sizeof name);
    return !s->only || strstr(name, s->only);
}

/* The files that every run reads, and those written here. */
static int files_ready(const settings *s) {
    char table[4096], picture[4096];
    const used_file outputs[] = {{"--out", table}, {"--out", picture}};
    const used_file inputs[] = {{"--model", s->model}, {"--tokenizer", s->tokenizer}};
    snprintf(table, sizeof table, "%s/table.md", s->out);
    snprintf(picture, sizeof picture, "%s/accuracy.svg", s->out);
    return outputs_ready(outputs, 2, inputs, 2);
}

/* All missing runs: one seed of every row, then the next seed. */
static int run_all(const settings *s) {
    command c;
    run done;
    for (int seed = 0; seed < s->seeds; seed++)
        for (int i = 0; i < N_ROWS; i++) {
            char name[128];
            if (!wanted(s, &rows[i]) || (seed && is_prompt(&rows[i]))) continue;
            make_command(s, &rows[i], 1337 + seed, &c);
            if (read_run(path_of(s, &rows[i], 1337 + seed, ".log"), &c, &done)) continue;
            name_of(&rows[i], name, sizeof name);
            fprintf(stderr, "%s, seed %d ...\n", name, 1337 + seed);
            if (!do_run(s, &rows[i], 1337 + seed, &c) || !write_results(s)) return 0;
            if (read_run(path_of(s, &rows[i], 1337 + seed, ".log"), &c, &done))
                fprintf(stderr, "    dev %.3f, %.1f s\n", done.dev, done.seconds);
        }
    return write_results(s);
}

/* OUT, and the folders above it. */
static int make_folders(const char *path) {
    char part[4096];
    for (size_t i = 1; i <= strlen(path) && i < sizeof part; i++)
        if (path[i] == '/' || !path[i]) {
            snprintf(part, sizeof part, "%.*s", (int)i, path);
            if (system_make_folder(part) != 0 && errno != EEXIST) return whole_file_failed(part);
        }
    return 1;
}

int main(int argc, char **argv) {
    settings s = {NULL, NULL, "data", "build/tables", NULL, NULL, "build/run_llama", 1, 5, 0, 0};
    const option options[] = {
        {"--model", OPTION_TEXT, &s.model, "in any format that run_llama reads"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "(in the model, or next to it)"},
        {"--data", OPTION_TEXT, &s.data, "folder of sst-train.txt and the others (data)"},
        {"--out", OPTION_TEXT, &s.out, "folder of the logs, table.md and accuracy.svg (build/tables)"},
        {"--only", OPTION_TEXT, &s.only, "rows whose name contains this, as \"sst finetune\" (all)"},
        {"--seeds", OPTION_INT, &s.seeds, "runs of each row that involves chance (1; the assignment: 10)"},
        {"--epochs", OPTION_INT, &s.epochs, "(5)"},
        {"--lr", OPTION_TEXT, &s.lr,
         "learning rate (mode reference: 2e-5, as the assignment; llama: run_llama's)"},
        {"--threads", OPTION_INT, &s.threads, "(as run_llama)"},
        {"--run_llama", OPTION_TEXT, &s.program, "the program (build/run_llama)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, NULL, 0)) return 2;
    if (s.help || !s.model) {
        fprintf(s.help ? stdout : stderr, "usage: table --model FILE [options]\n");
        options_print(s.help ? stdout : stderr, options, n_options);
        return s.help ? 0 : 2;
    }
    if (s.seeds < 1 || s.seeds > MAX_SEEDS || s.epochs < 1 || s.epochs > MAX_EPOCHS)
        return fprintf(stderr, "--seeds and --epochs are between 1 and %d\n", MAX_EPOCHS), 2;
    int n_wanted = 0;
    for (int i = 0; i < N_ROWS; i++) n_wanted += wanted(&s, &rows[i]);
    if (!n_wanted) return fprintf(stderr, "--only: no row's name contains \"%s\"\n", s.only), 2;
    if (!*s.out) return complain("--out: the folder's name is empty"), 2;
    if (!make_folders(s.out) || !files_ready(&s) || !run_all(&s)) return 1;
    print_table(&s, stdout);
    fprintf(stderr, "(also in %s, with a picture of the epochs in accuracy.svg)\n", s.out);
    return !output_written();
}
