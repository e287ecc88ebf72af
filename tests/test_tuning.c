/* What the experiments of examples/advanced share: data, batches, poolings, training, reports. */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/common/progress.h"

/* ---- pooling and heads ---- */

/* The loss at the parameters plus `step` times the direction cos(i). */
static double loss_along(tuning *t, const float *at, float *room, double step) {
    static const int index[3] = {0, 1, 2};
    size_t n = (size_t)tuning_count(t);
    tuning_step rows = {&t->train, index, 3};
    tuning_batch batch;
    float loss = 0;
    for (size_t i = 0; i < n; i++) room[i] = (float)((double)at[i] + step * cos((double)i));
    tuning_paste(t, room);
    tuning_fill(t, &batch, &rows, 0);
    CHECK(tuning_compute(t, &batch, tuning_classify, &loss));
    return (double)loss;
}

/* The derivative along cos(i) is that of the fourth-order central difference, within 1 % of the gradient's length:
   the loss is F32, and its rounding, 1e-7, is divided by the step. */
static void check_gradient(const char *pooling, int head_hidden) {
    tuning_method method = {0};
    tuning_settings set = settings();
    double length, product, h = 2e-4;
    tuning t;
    set.pooling = pooling;
    set.head_hidden = head_hidden;
    method.program = method.name = "test";
    REQUIRE(tuning_open(&t, &set, &method));
    set_rows(&t);
    size_t n = (size_t)tuning_count(&t);
    float *at = (float *)malloc(2 * n * sizeof *at);
    tuning_copy(&t, at);
    REQUIRE(new_optimizer(&t));
    backward(&t);
    measure_gradient(&t, &length, &product);
    double difference = (8 * (loss_along(&t, at, at + n, h) - loss_along(&t, at, at + n, -h)) -
                         (loss_along(&t, at, at + n, 2 * h) - loss_along(&t, at, at + n, -2 * h))) /
                        (12 * h);
    CHECK_NEAR(product, difference, 0.01 * length, 0);
    free(at);
    tuning_close(&t);
}

TEST(poolings_and_heads_have_the_right_gradients) {
    static const char *const names[] = {"last", "mean", "max", "attention", "layers"};
    for (size_t i = 0; i < 10; i++) {
        int failed = test_current_failed;
        check_gradient(names[i / 2], i % 2 ? 5 : 0);
        if (test_current_failed > failed) printf("... with --pooling %s\n", names[i / 2]);
    }
}

/* ---- data and batches ---- */

static int open_plain(tuning *t, const tuning_settings *set) {
    tuning_method method = {0};
    method.program = method.name = "test";
    if (!tuning_open(t, set, &method)) return 0;
    set_rows(t);
    return 1;
}

/* An epoch has every row once, in another order each time; the order depends on the seed alone. */
TEST(an_epoch_has_every_row_once) {
    tuning_settings set = settings();
    int first[2][3];
    set.batch = 2;
    for (int run = 0; run < 2; run++) {
        tuning t;
        REQUIRE(open_plain(&t, &set));
        int before[3], changes = 0;
        for (int epoch = 0; epoch < 8; epoch++) {
            int seen[3] = {0, 0, 0};
            t.private_part->n_steps = 0;
            REQUIRE(tuning_plan(&t, epoch));
            REQUIRE(t.private_part->n_steps == 2);
            CHECK(t.private_part->steps[0].n == 2 && t.private_part->steps[1].n == 1);
            for (int i = 0; i < 3; i++) seen[t.private_part->order[i]]++;
            CHECK(seen[0] == 1 && seen[1] == 1 && seen[2] == 1);
            changes += epoch && memcmp(before, t.private_part->order, sizeof before) != 0;
            memcpy(before, t.private_part->order, sizeof before);
            if (epoch == 7) memcpy(first[run], t.private_part->order, sizeof first[run]);
        }
        CHECK(changes > 0);
        tuning_close(&t);
    }
    CHECK(memcmp(first[0], first[1], sizeof first[0]) == 0);
}

/* Rows are packed one after another, as many as fit, with placeholders in front. */
TEST(batches_are_packed) {
    static const int index[3] = {2, 0, 1};
    tuning_settings set = settings();
    tuning_step step;
    tuning_batch batch;
    tuning t;
    set.max_tokens = 12;
    REQUIRE(open_plain(&t, &set));
    step.set = &t.train, step.index = index, step.n = 3;
    REQUIRE(tuning_fill(&t, &batch, &step, 0) == 2); /* 7 + 5; 3 more do not fit */
    CHECK(batch.rows.n_tokens == 12 && batch.rows.n_rows == 2 && batch.rows.divisor == 3);
    CHECK(batch.rows.row_start[1] == 7 && batch.rows.row_start[2] == 12);
    CHECK(memcmp(batch.rows.tokens, row_ids[2], 7 * sizeof(int32_t)) == 0);
    CHECK(memcmp(batch.rows.tokens + 7, row_ids[0], 5 * sizeof(int32_t)) == 0);
    CHECK(batch.rows.labels[0] == 1 && batch.rows.labels[1] == 2);
    t.front = 2;
    REQUIRE(tuning_fill(&t, &batch, &step, 0) == 1);
    CHECK(batch.rows.n_tokens == 9 && batch.rows.tokens[0] == 0 && batch.rows.tokens[1] == 0);
    CHECK(memcmp(batch.rows.tokens + 2, row_ids[2], 7 * sizeof(int32_t)) == 0);
    tuning_close(&t);
}

static size_t hidden_rows;

static ml_tensor hidden(tuning *t, ml_graph *g, const tuning_batch *batch) {
    ml_tensor h = tuning_hidden(t, g, batch);
    hidden_rows = h.rows;
    return h;
}

/* Pooling leaves out the placeholders: the mean of a row of 7 behind 2 of them is that of its 7 states. */
TEST(pooling_leaves_out_placeholders) {
    static const int index[1] = {2};
    tuning_settings set = settings();
    float states[9 * 16], mean[16];
    tuning_batch batch;
    tuning t;
    set.pooling = "mean";
    REQUIRE(open_plain(&t, &set));
    t.front = 2;
    tuning_step step = {&t.train, index, 1};
    REQUIRE(tuning_fill(&t, &batch, &step, 0) == 1);
    REQUIRE(tuning_compute(&t, &batch, hidden, states));
    REQUIRE(tuning_compute(&t, &batch, tuning_pooled, mean));
    CHECK(hidden_rows == 7);
    for (int j = 0; j < 16; j++) {
        double sum = 0;
        for (int i = 0; i < 7; i++) sum += (double)states[16 * i + j] / 7;
        CHECK_NEAR(mean[j], sum, 1e-6, 0); /* F32, numbers of about 1 */
    }
    tuning_close(&t);
}

/* Of a row's tokens behind the first the given share is left out, in training only; the order stays. 4000 rows of six
   such tokens at .3: the share is within .015 (five standard deviations), but for rows that would have had none. */
TEST(word_dropout_leaves_out_tokens) {
    static const int index[1] = {2};
    tuning_settings set = settings();
    tuning_batch batch;
    tuning t;
    int left = 0;
    set.word_dropout = 0.3f;
    REQUIRE(open_plain(&t, &set));
    tuning_step step = {&t.train, index, 1};
    for (int i = 0; i < 4000; i++) {
        tuning_fill(&t, &batch, &step, 1);
        int n = batch.rows.n_tokens, at = 0;
        left += n - 1;
        CHECK(n >= 2 && batch.rows.tokens[0] == 1);
        for (int j = 0; j < n; j++) {
            while (at < 7 && row_ids[2][at] != batch.rows.tokens[j]) at++;
            CHECK(at++ < 7);
        }
    }
    CHECK_NEAR(left / 24000.0, 0.7, 0.015, 0);
    tuning_fill(&t, &batch, &step, 0);
    CHECK(batch.rows.n_tokens == 7);
    tuning_close(&t);
}

/* The gradient of a batch that takes several passes is that of one pass. */
TEST(a_batch_may_take_several_passes) {
    double length[2], product[2];
    for (int i = 0; i < 2; i++) {
        static const int index[3] = {0, 1, 2};
        tuning_settings set = settings();
        tuning_batch batch;
        tuning t;
        if (i) set.max_tokens = 8;
        REQUIRE(open_plain(&t, &set));
        REQUIRE(new_optimizer(&t));
        int n = 0, passes = 0;
        while (n < 3) {
            tuning_step step = {&t.train, index + n, 3 - n};
            n += tuning_fill(&t, &batch, &step, 1);
            batch.rows.divisor = 3;
            CHECK(tuning_backward(&t, &batch, NULL));
            passes++;
        }
        CHECK(passes == 1 + i);
        measure_gradient(&t, &length[i], &product[i]);
        tuning_close(&t);
    }
    CHECK_NEAR(length[1], length[0], 0, 1e-6);
    CHECK_NEAR(product[1], product[0], 1e-6 * length[0], 0);
}

/* ---- whole runs ---- */

/* What the program prints; `flags` follow those that name the files. */
static const char *run(const char *flags, int *status) {
    char line[4096], *argv[64], program[] = "test";
    tuning_method method = {0};
    int argc = 1;
    method.program = "test";
    method.name = "plain";
    snprintf(line, sizeof line, "--model %s --train %s --dev %s --test %s --label-names %s --threads 1 %s",
             paths[0], paths[1], paths[1], paths[1], paths[2], flags);
    argv[0] = program;
    for (char *word = strtok(line, " "); word && argc < 64; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    *status = tuning_main(argc, argv, &method, NULL, 0);
    return capture_end();
}

TEST(wrong_options_are_refused) {
    static const struct {
        const char *flags, *reason;
    } wrong[] = {
        {"--pooling middle", "--pooling is last, mean, max, attention or layers, not middle"},
        {"--dropout 1", "0 to less than 1"},
        {"--epochs -1", "--epochs is not negative"},
        {"--schedule up", "linear, cosine or constant"},
        {"--lr 0", "--lr is positive"},
        {"--test-gold GOLD4", "it has more labels than"},
        {"--test-gold GOLD2", "it has 2 labels"},
        {"--test-gold GOLD9", "label 2 is not -1 to 2"},
        {"--model missing.gguf", "missing.gguf"},
        {"--pooling max --save SAVED", "a classifier with --pooling max has no file format"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char flags[1024];
        int status;
        snprintf(flags, sizeof flags, "%s", wrong[i].flags);
        char *at = strstr(flags, "GOLD");
        if (at) {
            const char *gold = at[4] == '4' ? "0\n1\n2\n0\n" : at[4] == '2' ? "0\n1\n" : "0\n9\n1\n";
            write_file(in_folder("gold.txt"), gold, strlen(gold));
            snprintf(at, sizeof flags - (size_t)(at - flags), "%s", in_folder("gold.txt"));
        }
        at = strstr(flags, "SAVED");
        if (at) snprintf(at, sizeof flags - (size_t)(at - flags), "%s", in_folder("saved.gguf"));
        const char *said = run(flags, &status);
        CHECK(status == 1 || status == 2);
        CHECK(strstr(said, wrong[i].reason));
        if (!strstr(said, wrong[i].reason)) printf("%s: %s", wrong[i].flags, said);
    }
}

/* Three sentences are learned by heart, all weights trained; the saved model and head say the same, and the real
   labels are counted by themselves. */
TEST(a_run_learns_measures_and_saves) {
    static const char gold[] = "2\n1\n-1\n"; /* the predictions are 2, 0, 1: one of two known is right */
    char flags[2048], saved[600];
    int status;
    ml_error error;
    ml_model *model = NULL;
    ml_head *head = NULL;
    snprintf(saved, sizeof saved, "%s", in_folder("saved.gguf"));
    write_file(in_folder("gold.txt"), gold, sizeof gold - 1);
    snprintf(flags, sizeof flags, "--epochs 20 --lr 1e-2 --batch 3 --eval_every 5 --test-gold %s --save %s",
             in_folder("gold.txt"), saved);
    const char *said = run(flags, &status);
    CHECK(status == 0);
    CHECK(strstr(said, "test plain: dev 1.000, test 1.000, real test 0.500; 36739 of 36739 numbers trained"));
    CHECK(strstr(said, "step 5 (epoch 5)") &&
          strstr(said, "step 1 (epoch 1)")); /* and at the end of each epoch */
    REQUIRE(ml_model_load(saved, NULL, &model, &error) == ML_OK);
    CHECK(ml_head_load(saved, model, NULL, &head, &error) == ML_OK && head->n_classes == 3);
    CHECK(strcmp(head->labels[1], "good") == 0);
    ml_head_free(head);
    ml_model_free(model);
}

/* What a file has no place for is said before the training. */
TEST(formats_are_tried_first) {
    static const struct {
        const char *path, *reason; /* NULL: there is a place */
    } cases[] = {{"x.gguf", NULL},
                 {"x.pt", "rotary positions"},
                 {"x.safetensors", NULL},
                 {"x.safetensors", "a config.json has no place for"}};
    char flags[1024];
    int status;
    tuning_settings set = settings();
    tuning t;
    REQUIRE(open_plain(&t, &set));
    CHECK(fits_format("x.pt", t.model, ML_POOL_LAST, 0));
    t.model->config.rope_theta = 5000;
    CHECK(ml_model_save(t.model, in_folder("other.gguf"), NULL, NULL) == ML_OK);
    for (int i = 0; i < 4; i++) {
        if (i == 3) t.model->config.window = 8, t.model->config.attention_bias = 1;
        capture_begin();
        int fits = fits_format(cases[i].path, t.model, ML_POOL_LAST, 0);
        const char *said = capture_end();
        CHECK(fits == !cases[i].reason && (fits || strstr(said, cases[i].reason)));
    }
    CHECK(fits_format("x.safetensors", t.model, ML_POOL_LAST, 1));
    tuning_close(&t);
    snprintf(flags, sizeof flags, "--pooling mean --save %s", in_folder("x.pt"));
    const char *said = run(flags, &status);
    CHECK(status == 1 && strstr(said, "reads the last position: name a .gguf") && !strstr(said, "epoch 1"));
    for (int i = 0; i < 2; i++) {
        snprintf(flags, sizeof flags, "--model %s --save%s %s", in_folder("other.gguf"), i ? "_model" : "",
                 in_folder("x.pt"));
        said = run(flags, &status);
        CHECK(status == 1 && strstr(said, "plain rotary positions") && !strstr(said, "epoch 1"));
    }
    CHECK(!exists(in_folder("x.pt")));
}

/* The config.json of another model stays: that of this one would be read with the other's weights. */
TEST(configurations_of_other_models_are_spared) {
    static const char *const names[] = {"--save", "--save_model"};
    char flags[2048], file[600];
    int status;
    snprintf(file, sizeof file, "%s", in_folder("new.safetensors"));
    for (int i = 0; i < 2; i++) {
        write_file(in_folder("config.json"), "{}", 2);
        snprintf(flags, sizeof flags, "--epochs 0 %s %s", names[i], file);
        const char *said = run(flags, &status);
        CHECK(status == 1 && strstr(said, names[i]) &&
              strstr(said, "config.json would be lost, which is not of"));
        CHECK(!exists(file));
        bytes config = read_file(in_folder("config.json"));
        CHECK(config.size == 2);
        free_bytes(&config);
        remove(in_folder("config.json"));
        for (int again = 0; again < 2; again++) CHECK(run(flags, &status) && status == 0); /* its own */
        remove(in_folder("config.json"));
        remove(file);
    }
}

static int n_finished;

static int save_nothing(tuning *t, const char *path) {
    (void)t;
    fprintf(stderr, "error: %s: no room\n", path);
    return 0;
}

static int count_finish(tuning *t) { return (void)t, ++n_finished; }

static int run_that_cannot_save(int argc, char **argv) {
    tuning_method method = {0};
    method.program = method.name = "test";
    method.save = save_nothing;
    method.finish = count_finish;
    return tuning_main(argc, argv, &method, NULL, 0);
}

/* A save that fails loses no result. */
TEST(a_result_is_kept_before_the_files) {
    char flags[2048];
    int status;
    snprintf(flags, sizeof flags, "--epochs 1 --csv %s --save %s", in_folder("kept.csv"),
             in_folder("x.gguf"));
    const char *said = run_program(run_that_cannot_save, flags, &status),
               *result = strstr(said, "test test: dev ");
    CHECK(status == 1 && result && strstr(said, "x.gguf: no room") && n_finished == 1);
    bytes csv = read_file(in_folder("kept.csv"));
    put_u8(&csv, 0);
    CHECK(strstr((const char *)csv.data, "\ntest,test,model.gguf,sst,1,") != NULL);
    free_bytes(&csv);
}

/* Spoils the classifier in the last steps. */
static int spoil(tuning *t) {
    tuning_weight *head = tuning_find(t, "head.weight");
    for (size_t i = 0; t->result.steps >= 15 && i < head->tensor->rows * head->tensor->cols; i++)
        ((float *)head->tensor->data)[i] = 0;
    return 1;
}

/* What counts in the end are the weights that were best on dev. */
TEST(the_best_weights_are_kept) {
    tuning_settings set = settings();
    tuning_method method = {0};
    tuning t;
    set.epochs = 20;
    method.program = method.name = "test";
    method.after_step = spoil;
    REQUIRE(tuning_open(&t, &set, &method));
    capture_begin();
    int ok = tuning_train(&t);
    capture_end();
    CHECK(ok && t.result.dev == 1 && t.result.test == 1 && t.result.best_step <= 15 && t.result.steps == 20);
    CHECK(tuning_measure(&t, &t.dev, NULL) == 1);
    tuning_close(&t);
}

/* With --patience the run ends that many measurements after the best one. */
TEST(patience_ends_a_run) {
    int status;
    const char *said = run("--epochs 50 --lr 1e-2 --batch 3 --patience 4", &status),
               *best = strstr(said, "best at step ");
    int at = 0, of = 0;
    CHECK(status == 0 && best && sscanf(best, "best at step %d of %d", &at, &of) == 2);
    CHECK(at > 0 && of == at + 4);
}

int main(void) {
    if (!folder_begin("tuning")) return 1;
    make_files();
    RUN(poolings_and_heads_have_the_right_gradients);
    RUN(an_epoch_has_every_row_once);
    RUN(batches_are_packed);
    RUN(pooling_leaves_out_placeholders);
    RUN(word_dropout_leaves_out_tokens);
    RUN(a_batch_may_take_several_passes);
    RUN(wrong_options_are_refused);
    RUN(a_run_learns_measures_and_saves);
    RUN(formats_are_tried_first);
    RUN(configurations_of_other_models_are_spared);
    RUN(a_result_is_kept_before_the_files);
    RUN(the_best_weights_are_kept);
    RUN(patience_ends_a_run);
    return test_report("test_tuning");
}
