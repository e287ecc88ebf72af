/* The tables of the experiments: means, deviations and verdicts of a few runs, computed by hand; and report.md is what
   examples/report makes of its files now. The programs are awk and a shell script. */
#include "preamble.h"
#include "folder.h"

#define ADVANCED "examples/advanced/"
#define REPORT "examples/report/"

static const char rows_txt[] = "# NAME TASKS SEEDS PROGRAM FLAGS...\n"
                               "made thing {BUILD}/pretrain\nonce numbers.csv 1 {BUILD}/look\n\n"
                               "baseline sst,cfimdb 3 efficient --method full\n"
                               "# tricks, of all kinds\n"
                               "better sst,cfimdb 3 regularize --ema .9 --with {OUT}/thing\n"
                               "made labels.gguf {BUILD}/regularize --task cfimdb\n"
                               "close sst 3 regularize --model {OUT}/labels.gguf\n"
                               "not-run sst 3 regularize\n"
                               "# others\n"
                               "worse sst 3 regularize --save_model {OUT}/sst-{SEED}.gguf\n"
                               "single sst 1 regularize --curve {OUT}/{TASK}-{SEED}.csv\n"
                               "moved cfimdb 3 regularize --model {OUT}/sst-{SEED}.gguf\n";

/* Accuracies of seeds 1 to 3 on dev; on CFIMDB they are the real test's, too. The deviations of .40 .42 .44 and of the
   like are .02. `better` than the baseline by .04, more than twice sqrt((.02^2 + 0) / 2) = .0141; `close` by .03, less
   than twice .02; `worse` by .1. On CFIMDB `better` by .1, less than twice sqrt((.1^2 + .1^2) / 2); `moved` by .15, more
   than twice sqrt((.1^2 + 0) / 2) = .141, with the network that `worse` saves. `close` is fastest, but
   starts from a network whose training takes time of its own. Later seeds take longer. A field in quotes has commas. */
static const struct {
    const char *name, *task;
    double dev[3]; /* 0: not run */
    int cpu_seconds, trained;
} runs[] = {
    {"baseline", "sst", {.40, .42, .44}, 40, 1296645}, {"baseline", "cfimdb", {.7, .8, .9}, 80, 1296258},
    {"better", "sst", {.46, .46, .46}, 60, 645},       {"close", "sst", {.43, .45, .47}, 5, 1296645},
    {"worse", "sst", {.30, .32, .34}, 9, 1296645},     {"single", "sst", {.415, 0, 0}, 9, 1296645},
    {"better", "cfimdb", {.8, .9, 1.0}, 30, 258},      {"moved", "cfimdb", {.95, .95, .95}, 20, 1296258}};
enum { N_RUNS = sizeof runs / sizeof *runs };

static char *text_of(const char *path) { /* zero-terminated; the caller frees it */
    bytes b = read_file(path);
    put_u8(&b, 0);
    return (char *)b.data;
}

static void write_text(const char *name, const char *text) {
    write_file(in_folder(name), text, strlen(text));
}

/* With a longer baseline of .37 .40 .43 on SST-5, of deviation .03, three times as expensive. */
static int has_long;
static void write_results(void) {
    FILE *file = fopen(in_folder("results.csv"), "w");
    REQUIRE(file != NULL);
    fprintf(
        file,
        "name,program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings\n");
    for (int i = 0; i < N_RUNS; i++)
        for (int seed = 0; seed < 3 && runs[i].dev[seed] > 0; seed++) {
            fprintf(file, "%s,p,\"m,\"\"1,2\"\"\",m.gguf,%s,%d,%.4f,.3,", runs[i].name, runs[i].task,
                    seed + 1, runs[i].dev[seed]);
            if (strcmp(runs[i].task, "cfimdb") == 0) fprintf(file, "%.4f", runs[i].dev[seed]);
            fprintf(file, ",%d,90,%d,50,\"efficient --targets q,v\"\n", runs[i].trained,
                    runs[i].cpu_seconds + 10 * seed);
        }
    for (int seed = 0; has_long && seed < 3; seed++)
        fprintf(file, "baseline-long,p,m,m.gguf,sst,%d,%.2f,.3,,1,90,120,50,\"\"\n", seed + 1,
                .37 + .03 * seed);
    fclose(file);
    write_text("rows.txt", rows_txt);
}

/* What a shell command prints; {} stands for the folder. The text stays until the next call. */
static const char *printed(const char *command) {
    static char *said;
    char line[4096] = "{ ";
    size_t n = 2;
    for (const char *at = command; *at && n + sizeof folder < sizeof line; at++)
        if (strncmp(at, "{}", 2) == 0)
            n += (size_t)snprintf(line + n, sizeof line - n, "%s", folder), at++;
        else
            line[n++] = *at;
    snprintf(line + n, sizeof line - n, "; } >'%s' 2>&1", in_folder("said"));
    int status = system(line);
    free(said);
    said = text_of(in_folder("said"));
    if (status != 0) printf("%s: %s\n", line, said);
    return status == 0 ? said : "failed";
}

/* With the runs above. */
static const char *printed_by(const char *programs) {
    char command[1024];
    snprintf(command, sizeof command,
             "awk -f " ADVANCED "csv.awk -f " ADVANCED "statistics.awk %s '{}/rows.txt' '{}/results.csv'",
             programs);
    write_results();
    return printed(command);
}

static int times(const char *text, const char *part) {
    int n = 0;
    for (; (text = strstr(text, part)) != NULL; text += strlen(part)) n++;
    return n;
}

TEST(summary) {
    const char *all = printed_by("-f " ADVANCED "summary.awk -v task=sst");
    CHECK(strstr(all, "| baseline | .420 (.020) | .300 (.000) |  | 1296645 | 90 | 50 | 3 | "
                      "`efficient --method full` |\n"));
    CHECK(strstr(all, "| better | .460 (.000) | .300 (.000) | +0.040 | 645 |"));
    CHECK(strstr(all, "| close | .450 (.020) | .300 (.000) | +0.030, noise | 1296645 |"));
    CHECK(strstr(all, "| worse | .320 (.020) | .300 (.000) | -0.100 | 1296645 |"));
    CHECK(strstr(all, "| single | .415 | .300 |  | 1296645 | 90 | 50 | 1 | `regularize --curve "));
    CHECK(!strstr(all, "not-run") && !strstr(all, "made") && !strstr(all, "numbers") &&
          times(all, "\n") == 7);
    all = printed_by("-f " ADVANCED "summary.awk -v task=cfimdb");
    CHECK(strstr(all, "| better | .900 (.100) | .300 (.000) | .900 (.100) | +0.100, noise | 258 |"));
    CHECK(times(all, "\n") == 5);
}

/* `better`, whose fastest run takes 60 seconds, is held against the baseline of 40, but against the longer one if it takes
   70, or stops by itself. */
TEST(budgets) {
    has_long = 1;
    const char *all = printed_by("-f " ADVANCED "summary.awk -v task=sst");
    CHECK(strstr(all, "| better | .460 (.000) | .300 (.000) | +0.040 | 645 |"));
    CHECK(strstr(all, "| baseline-long | .400 (.030) | .300 (.000) | -0.020, noise |"));
    all = printed("sed '/^better,.*,sst,1,/d' '{}/results.csv' > '{}/dear.csv'; "
                  "awk -f " ADVANCED "csv.awk -f " ADVANCED "statistics.awk -f " ADVANCED
                  "summary.awk -v task=sst '{}/rows.txt' '{}/dear.csv'");
    CHECK(strstr(all, "| better | .460 (.000) | .300 (.000) | +0.060 | 645 |"));
    all = printed("sed 's/--ema/--patience 2 --ema/' '{}/rows.txt' > '{}/stopping-rows.txt'; "
                  "awk -f " ADVANCED "csv.awk -f " ADVANCED "statistics.awk -f " ADVANCED
                  "summary.awk -v task=sst '{}/stopping-rows.txt' '{}/results.csv'");
    CHECK(strstr(all, "| better | .460 (.000) | .300 (.000) | +0.060 | 645 |"));
    has_long = 0;
}

TEST(both_tasks) {
    const char *all = printed_by("-f " REPORT "table.awk");
    CHECK(strstr(
        all, "<td>better</td><td>.460 (.000) ▲</td><td>.300 (.000)</td><td>.900 (.100)</td>"
             "<td>.300 (.000)</td><td>.900 (.100)</td><td>645/258</td><td>60/30</td><td>50</td><td>3</td>"));
    CHECK(strstr(all, "<td>worse</td><td>.320 (.020) ▼</td><td>.300 (.000)</td><td></td><td></td><td></td>"));
    CHECK(times(all, "▲") == 2 && times(all, "▼") == 1);
    CHECK(strstr(all, "<td>baseline</td>") && strstr(all, "<td>1.30 M</td><td>40/80</td>"));
    CHECK(strstr(all, "<th colspan=\"10\">tricks</th>") && times(all, "<tr>") == 2 + 2 + 6);
    all = printed_by("-f " REPORT "table.awk -v short=1");
    CHECK(strstr(all, "<th>real test</th><th>CPU s</th><th>MB</th><th>seeds</th></tr>") &&
          strstr(all, "<th colspan=\"8\">tricks</th>"));
    CHECK(strstr(all, "<td>.900 (.100)</td><td>60/30</td><td>50</td><td>3</td></tr>"));
}

#define FACTS_OF(csv)                                                                                        \
    "awk -f " ADVANCED "csv.awk -f " ADVANCED "statistics.awk -f " REPORT "facts.awk '{}/rows.txt' '{}/" csv \
    "'"

TEST(facts) {
    const char *all = printed_by("-f " REPORT "facts.awk");
    CHECK(strstr(all, "runs\t22\n") && strstr(all, "best_sst\t`better`\n"));
    CHECK(strstr(all, "goal_sst_dev\t.460 (.000), not reached\n"));
    CHECK(strstr(all, "goal_cfimdb_gold\t.950 (.000), reached\n"));
    CHECK(strstr(all, "fastest_sst\tby `baseline` (.420) in 40 s of processor time\n"));
    CHECK(strstr(all, "fastest_cfimdb\tby `moved` (.950) in 29 s"));
    CHECK(strstr(all, "better_sst\t1\n") && strstr(all, "worse_sst\t1\n") && strstr(all, "noise_sst\t1\n"));
    CHECK(strstr(
        all, "command_sst_one\tbuild/regularize --model m.gguf --data DATA --task sst --seed 1 --threads 2 "
             "--ema .9 --with build/advanced/m/thing\n"));
    CHECK(strstr(all, "command_cfimdb_one\tbuild/regularize --data DATA --task cfimdb --seed 1 --threads 2 "
                      "--model build/advanced/m/sst-1.gguf\n"));
    all = printed("sed '2,$s/,/+,/' '{}/results.csv' > '{}/second.csv'; " FACTS_OF("second.csv"));
    CHECK(strstr(all, "second_trained\t258 to 1.30 M\n"));
    all = printed("grep -v '^better' '{}/second.csv' > '{}/wide.csv'; " FACTS_OF("wide.csv"));
    CHECK(strstr(all, "second_trained\t1.30 M\n"));
}

static void add_runs(const char *name, const char *task, double dev, int n) {
    FILE *file = fopen(in_folder("results.csv"), "a");
    REQUIRE(file != NULL);
    for (int seed = 1; seed <= n; seed++)
        fprintf(file, "%s,p,m,m.gguf,%s,%d,%.4f,.3,,258,90,1,50,\"\"\n", name, task, seed, dev);
    fclose(file);
}

/* Neither yardsticks nor rows that rows.txt does not have are the best, the fastest, or say how many runs are enough.
   Of a row that starts from another's network, that one's time is needed. */
TEST(not_all_rows_can_win) {
    static const char facts[] = "awk -f " ADVANCED "csv.awk -f " ADVANCED "statistics.awk -f " REPORT
                                "facts.awk '{}/rows.txt' '{}/results.csv'";
    write_results();
    add_runs("renamed", "sst", .9, 3), add_runs("yardstick-words", "cfimdb", .99, 3);
    const char *all = printed(facts);
    CHECK(strstr(all, "best_sst\t`better`\n") && strstr(all, "best_cfimdb\t`moved`\n"));
    CHECK(strstr(all, "fastest_sst\tby `baseline` (.420) in 40 s"));
    write_text("results.csv", "name,program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,"
                              "peak_mb,settings\n");
    add_runs("renamed", "sst", .9, 3), add_runs("yardstick-words", "cfimdb", .99, 3);
    add_runs("better", "sst", .46, 2), add_runs("better", "cfimdb", .9, 2),
        add_runs("moved", "cfimdb", .95, 2);
    all = printed(facts);
    CHECK(strstr(all, "best_sst\t`better`\n") && strstr(all, "best_cfimdb\t`moved`\n"));
    CHECK(strstr(all, "fastest_cfimdb\tby `better` (.900) in 1 s"));
}

/* SST: better and worse filled, close hollow; CFIMDB: moved filled, better hollow. */
TEST(picture_of_differences) {
    const char *all = printed_by("-f " REPORT "svg.awk -f " REPORT "differences.awk");
    CHECK(times(all, "fill='#222' stroke='#222'/>") == 3);
    CHECK(times(all, "fill='white' stroke='#222'/>") == 2);
    CHECK(times(all, "</svg>") == 1 && !strstr(all, "nan") && !strstr(all, "inf"));
}

/* Columns by name, whatever their order; only a file's first row. */
TEST(runs_are_collected) {
    write_text("a-b-sst-1.csv", "program,task,method,seed,dev,trained,settings\n"
                                "p,sst,\"1,2\",1,.5,7,\"x --y \"\"a,b\"\"\"\np,sst,,1,.6,7,\n");
    write_text("a-b-sst-12.csv", "seed,dev,task,cpu_seconds,gold\n12,.25,sst,3.5,\n");
    write_text("curve-sst-1.csv", "a,dev,test,gold\n0.0,.25,.25,\n"); /* of no task: no run */
    const char *all = printed("awk -f " ADVANCED "csv.awk -f " ADVANCED "collect.awk '{}'/*-[0-9]*.csv");
    static const char expected[] =
        "name,program,method,model,task,seed,dev,test,gold,trained,seconds,cpu_seconds,peak_mb,settings\n"
        "a-b,p,\"1,2\",,sst,1,.5,,,7,,,,\"x --y \"\"a,b\"\"\"\n"
        "a-b,,,,sst,12,.25,,,,,3.5,,\"\"\n";
    CHECK(strcmp(all, expected) == 0);
}

/* A text that was not made to its end is not there. */
TEST(texts_are_complete) {
    printed("mkdir -p '{}/half' && printf '1 ||| good .\\n' > '{}/half/sst-train.txt'");
    const char *all = printed("sh " ADVANCED "corpus.sh '{}/half' '{}/half' reviews; echo status $?");
    CHECK(strstr(all, "cfimdb-train.txt cannot be read\nstatus 1"));
    printed("printf 'a b\\n<|endoftext|>\\nc d\\n' > '{}/half/tales'");
    all = printed("sh " ADVANCED "stories.sh '{}/half/tales' '{}/half'; echo status $?");
    CHECK(strstr(all, "only 2 stories") && strstr(all, "status 1"));
    CHECK(strcmp(printed("cd '{}/half' && ls *.txt"), "sst-train.txt\n") == 0);
    printed("printf '0 ||| bad .\\n' > '{}/half/cfimdb-train.txt'");
    printed("sh " ADVANCED "corpus.sh '{}/half' '{}/half' reviews");
    CHECK(strcmp(printed("cat '{}/half/reviews.txt'"), "good .\n<|endoftext|>\nbad .\n") == 0);
}

/* The stories that are read are not written over, under whatever name; lines may end as on Windows. */
TEST(stories_are_divided) {
    static const char *const names[] = {"stories", "held", "prompts"};
    printed("mkdir -p '{}/told' && awk 'BEGIN { for (i = 1; i < 1618; i++) "
            "printf \"a b %d\\r\\nc d e f\\r\\n<|endoftext|>\\r\\n\", i }' > '{}/told/all'");
    CHECK(!*printed("sh " ADVANCED "stories.sh '{}/told/all' '{}/told'"));
    CHECK(strcmp(printed("head -n 4 '{}/told/stories.txt'"), "a b 1\nc d e f\n<|endoftext|>\na b 2\n") == 0);
    CHECK(strcmp(printed("tail -n 1 '{}/told/stories.txt'"), "c d e f\n") == 0);
    CHECK(strcmp(printed("head -n 1 '{}/told/held.txt'"), "a b 1556 c d e f\n") == 0);
    CHECK(strcmp(printed("tail -n 1 '{}/told/prompts.txt'"), "a b 1615 c d e\n") == 0);
    CHECK(strcmp(printed("tail -n 1 '{}/told/held.txt'"), "a b 1617 c d e f\n") == 0);
    for (int i = 0; i < 3; i++) {
        char command[300], refusal[100];
        snprintf(command, sizeof command,
                 "cd '{}/told' && rm -f link && ln -s %s.txt link && cp all %s.txt && "
                 "sh \"$OLDPWD/" ADVANCED "stories.sh\" link .; echo status $?; cmp all %s.txt",
                 names[i], names[i], names[i]);
        snprintf(refusal, sizeof refusal, "./%s.txt is also read, and would be lost", names[i]);
        const char *all = printed(command);
        CHECK(strstr(all, refusal) && strstr(all, "status 1\n") && !strstr(all, "differ"));
    }
}

/* Made again in a copy, it is the same, with its pictures. Otherwise: make report. */
TEST(report_is_up_to_date) {
    const char *all =
        printed("here=$PWD && mkdir -p '{}/examples' && cp -R examples/report examples/advanced "
                "'{}/examples' && cd '{}' && "
                "NO_PDF=1 sh " REPORT "make.sh '{}/parts' && diff -r \"$here/" REPORT "\" " REPORT);
    CHECK(*all == 0);
}

/* In the copy: no run is lost with the end of the last line; and a row that rows.txt does not have is named. */
TEST(results_are_complete) {
    const char *all =
        printed("cd '{}' && cp " REPORT "report.md before.md && cd " REPORT " && for csv in *.csv; do "
                "printf %s \"$(cat $csv)\" >'{}/part' && cp '{}/part' $csv; done; cd '{}' && "
                "NO_PDF=1 sh " REPORT "make.sh '{}/parts' && diff before.md " REPORT "report.md");
    CHECK(*all == 0);
    all = printed("cd '{}' && sed -i.bak 's/^ema /ema-new /' " ADVANCED "rows.txt && NO_PDF=1 sh " REPORT
                  "make.sh '{}/parts'");
    CHECK(strcmp(all, "results.csv: rows.txt has no row ema\n") == 0);
}

int main(void) {
    if (!folder_begin("report")) return 1;
    RUN(summary);
    RUN(budgets);
    RUN(both_tasks);
    RUN(facts);
    RUN(not_all_rows_can_win);
    RUN(picture_of_differences);
    RUN(runs_are_collected);
    RUN(texts_are_complete);
    RUN(stories_are_divided);
    RUN(report_is_up_to_date);
    RUN(results_are_complete);
    return !folder_end() || test_report("test_report");
}
