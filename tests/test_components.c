/* examples/advanced: phrases (trees, rows and spans), components (poolings, two tasks), prompted (label words). */
#include "preamble.h"
#include "tuning_model.h"
#include "../examples/advanced/common/tuning.h"
#define PROGRESS_PAUSE 1e9
#include "../examples/common/progress.h"
#define main phrases_main
#include "../examples/advanced/phrases.c"
#undef main
#define main components_main
#include "../examples/advanced/components.c"
#undef main
#define main prompted_main
#include "../examples/advanced/prompted.c"
#undef main

/* ---- what the programs print ---- */

static void check_refused(int (*program)(int, char **), const char *flags, const char *reason) {
    int status;
    const char *said = run_program(program, flags, &status);
    CHECK(status == 1 || status == 2);
    CHECK(strstr(said, reason));
    if (!strstr(said, reason)) printf("%s: %s", flags, said);
}

/* Without run_program's --train, its second flag: phrases come from --trees alone. */
static int phrases_alone(int argc, char **argv) {
    memmove(argv + 3, argv + 5, (size_t)(argc - 5) * sizeof *argv);
    return phrases_main(argc - 2, argv);
}

static void write_text(const char *name, const char *text) {
    write_file(in_folder(name), text, strlen(text));
}

/* ---- trees ---- */

static const char forest[] = "(2 (0 (1 Bad) (2 Dogs)) (2 (2 and\\/or) (2 -LRB-)))\r\n"
                             "\n"
                             "(1 (1 the) (0 (1 Bad) (2 Dogs)))\n"
                             "(0 sad)";

TEST(trees_are_read) {
    static const int expected[13][3] = {{0, 1, 1}, {1, 2, 2}, {0, 2, 0}, {2, 3, 2}, {3, 4, 2},
                                        {2, 4, 2}, {0, 4, 2}, {0, 1, 1}, {1, 2, 1}, {2, 3, 2},
                                        {1, 3, 0}, {0, 3, 1}, {0, 1, 0}};
    trees all;
    size_t n;
    write_text("trees.txt", forest);
    REQUIRE(trees_read(&all, in_folder("trees.txt"), 3));
    REQUIRE(all.set.n == 3 && all.n_phrases == 13);
    CHECK(all.first[0] == 0 && all.first[1] == 7 && all.first[2] == 12 && all.first[3] == 13);
    for (int i = 0; i < 13; i++) {
        const phrase *p = &all.phrases[i];
        CHECK(p->begin == expected[i][0] && p->end == expected[i][1] && p->label == expected[i][2]);
        CHECK(p->weight == 1);
    }
    CHECK(strcmp(all.set.rows[0].sentence, "Bad Dogs and\\/or -LRB-") == 0 && all.set.rows[0].label == 2);
    CHECK(strcmp(all.set.rows[1].sentence, "the Bad Dogs") == 0 && all.set.rows[1].label == 1);
    CHECK(strcmp(all.set.rows[2].sentence, "sad") == 0 && all.set.rows[2].label == 0);
    const char *text = trees_phrase(all.set.rows[1].sentence, &all.phrases[10], &n);
    CHECK(n == 8 && strncmp(text, "Bad Dogs", n) == 0);
    trees_free(&all);
}

TEST(sentences_are_made_plain_and_lower) {
    tuning t;
    trees all;
    memset(&t, 0, sizeof t);
    write_text("trees.txt", "(1 (1 -LRB-) (1 (1 A\\/\\*Z\\) (1 (1 -RRB-x) (1 \xc3\x84-RRB-))))\n(1 -RRB-)");
    REQUIRE(trees_read(&all, in_folder("trees.txt"), 3));
    tuning_tidy(&t, &all.set);
    CHECK(strcmp(all.set.rows[0].sentence, "-LRB- A\\/\\*Z\\ -RRB-x \xc3\x84-RRB-") == 0);
    t.set.plain = 1;
    tuning_tidy(&t, &all.set);
    CHECK(strcmp(all.set.rows[0].sentence, "( A/*Z\\ -RRB-x \xc3\x84-RRB-") == 0);
    CHECK(strcmp(all.set.rows[1].sentence, ")") == 0);
    t.set.lower = 1;
    tuning_tidy(&t, &all.set);
    CHECK(strcmp(all.set.rows[0].sentence, "( a/*z\\ -rrb-x \xc3\x84-rrb-") == 0);
    trees_free(&all);
}

TEST(broken_trees_are_refused) {
    static const struct {
        const char *line, *reason;
    } wrong_lines[] = {
        {"(2 (2 a) (2 b)", ":3: the tree ends with 1 open brackets"},
        {"(2 (2 a) (2 b)))", ":3: text after the tree, at \")\""},
        {"(2 a) (2 b)", ":3: text after the tree, at \"(2 b)\""},
        {"word", ":3: a word outside of the tree, at \"word\""},
        {") (2 a)", ":3: a bracket closes what was not opened"},
        {"(3 a)", ":3: no label of 0 to 2 after the bracket, at \"(3 a)\""},
        {"(-1 a)", ":3: no label of 0 to 2"},
        {"(99999999999999999999 a)", ":3: no label of 0 to 2"},
        {"(2a b)", ":3: no label of 0 to 2"},
        {"((2 a))", ":3: no label of 0 to 2"},
        {"(2", ":3: no label of 0 to 2"},
        {"(2 )", ":3: a node without a word"},
        {"(2 a b)", ":3: a node is one word or nodes, and this one has more, at \"b)\""},
        {"(2 a (2 b))", ":3: a node is one word or nodes"},
        {"(2 (2 b) a)", ":3: a node is one word or nodes"},
    };
    char text[8192];
    for (size_t i = 0; i < sizeof wrong_lines / sizeof *wrong_lines; i++) {
        trees all;
        snprintf(text, sizeof text, "(2 a)\n\n%s\n(1 c)\n", wrong_lines[i].line);
        write_text("trees.txt", text);
        capture_begin();
        int ok = trees_read(&all, in_folder("trees.txt"), 3);
        const char *said = capture_end();
        CHECK(!ok && strstr(said, wrong_lines[i].reason));
        if (!strstr(said, wrong_lines[i].reason)) printf("%s: %s", wrong_lines[i].line, said);
        trees_free(&all);
    }
    for (int depth = 1024; depth <= 1025; depth++) { /* one too deep */
        trees all;
        for (int i = 0; i < depth; i++) memcpy(text + 3 * i, "(1 ", 3);
        memset(text + 3 * depth, 'a', 1), memset(text + 3 * depth + 1, ')', (size_t)depth);
        text[4 * depth + 1] = 0;
        write_text("trees.txt", text);
        capture_begin();
        int ok = trees_read(&all, in_folder("trees.txt"), 3);
        const char *said = capture_end();
        CHECK(ok == (depth == 1024) && ok == !strstr(said, "deeper than 1024"));
        trees_free(&all);
    }
}

/* "Bad", "Dogs" and "Bad Dogs" occur twice. */
TEST(phrases_that_occur_often) {
    static const struct {
        int min_words;
        char duplicates;
        float weights[13];
    } expected[] = {
        {1, 'a', {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
        {1, 'o', {1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1}},
        {1, 's', {.5f, .5f, .5f, 1, 1, 1, 1, 1, .5f, .5f, .5f, 1, 1}},
        {2, 'o', {0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1}},
        {3, 's', {0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1}},
    };
    trees all;
    reviews rows;
    write_text("trees.txt", forest);
    REQUIRE(trees_read(&all, in_folder("trees.txt"), 3));
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        REQUIRE(trees_weigh(&all, expected[i].min_words, expected[i].duplicates));
        for (int j = 0; j < 13; j++) CHECK(all.phrases[j].weight == expected[i].weights[j]);
    }
    REQUIRE(trees_weigh(&all, 2, 'o') && trees_rows(&all, &rows));
    static const char *const texts[5] = {"Bad Dogs", "and\\/or -LRB-", "Bad Dogs and\\/or -LRB-",
                                         "the Bad Dogs", "sad"};
    static const int labels[5] = {0, 2, 2, 1, 0};
    REQUIRE(rows.n == 5);
    for (int i = 0; i < 5; i++)
        CHECK(strcmp(rows.rows[i].sentence, texts[i]) == 0 && rows.rows[i].label == labels[i]);
    reviews_free(&rows);
    trees_free(&all);
}

/* ---- phrases as training data ---- */

static const char stories[] =
    "(2 (2 (1 once) (2 (2 upon) (2 (2 a) (2 time)))) (2 (0 there) (2 (2 was) (2 (0 a) (1 dog)))))\n"
    "(0 (1 (1 the) (2 cat)) (0 (2 was) (0 (0 sad) (2 and))))\n"
    "(1 (1 (2 they) (1 all)) (2 (2 lived) (1 (2 in) (2 (1 the) (2 forest)))))\n";

static phrases new_phrases(const char *method, int min_words) {
    static char path[600];
    phrases s;
    memset(&s, 0, sizeof s);
    write_text("stories.txt", stories);
    snprintf(path, sizeof path, "%s", in_folder("stories.txt"));
    s.method = method, s.min_words = min_words, s.path = path, s.sentence_weight = 1;
    return s;
}

static int open_phrases(tuning *t, phrases *s, tuning_settings *set) {
    tuning_method method = {0};
    set->train = NULL;
    method.program = "test", method.state = s;
    method.check = phrases_check, method.make_train = phrases_train;
    capture_begin();
    int ok = tuning_open(t, set, &method);
    capture_end();
    return ok && new_optimizer(t);
}

static float phrases_loss(tuning *t, tuning_batch *batch) {
    static const int index[3] = {0, 1, 2};
    tuning_step step = {&t->train, index, 3};
    float loss = -1;
    CHECK(tuning_fill(t, batch, &step, 1) == 3);
    CHECK((t->method.backward ? t->method.backward : tuning_backward)(t, batch, &loss));
    return loss;
}

/* A span over a whole sentence is the sentence as a row: the same loss and gradient (F32 sums in another order). */
TEST(whole_sentences_as_spans_are_rows) {
    static const char *const poolings[3] = {"mean", "max", "last"};
    for (int i = 0; i < 3; i++) {
        double length[2], product[2], loss[2];
        for (int j = 0; j < 2; j++) {
            tuning_settings set = settings();
            phrases s = new_phrases(j ? "spans" : "rows", 99);
            tuning_batch batch;
            tuning t;
            set.pooling = poolings[i], set.mask = "full", set.smoothing = 0.1f;
            REQUIRE(open_phrases(&t, &s, &set));
            loss[j] = (double)phrases_loss(&t, &batch);
            measure_gradient(&t, &length[j], &product[j]);
            tuning_close(&t);
            phrases_free(&s);
        }
        CHECK_NEAR(loss[1], loss[0], 0, 1e-6);
        CHECK_NEAR(length[1], length[0], 0, 1e-5);
        CHECK_NEAR(product[1], product[0], 1e-5 * length[0], 0);
    }
}

/* -log softmax(head(h))[label] in doubles, h (D) */
static double plain_loss(const tuning *t, const double *h, int label) {
    const tuning_private *p = t->private_part;
    size_t dim = p->head->cols;
    double z[3], sum = 0;
    for (int c = 0; c < 3; c++) {
        z[c] = (double)((const float *)p->head_bias->data)[c];
        for (size_t j = 0; j < dim; j++)
            z[c] += h[j] * (double)((const float *)p->head->data)[(size_t)c * dim + j];
        sum += exp(z[c]);
    }
    return log(sum) - z[label];
}

/* Which word a row's token is of; bos is of the first. */
static int word_of(const tuning *t, int row, int token) {
    int word = -1, has_begun = 1;
    size_t n;
    for (int i = 1; i <= token; i++)
        word +=
            *ml_tokenizer_decode_token(t->model->tokenizer, &has_begun, t->train.rows[row].ids[i], &n) == ' ';
    return word < 0 ? 0 : word;
}

/* Where a phrase's tokens are: every word of the stories but "forest" and "lived" is one token, with bos in front of
   the first. With word dropout, those that are left. The sum over the phrases by hand, in doubles, agrees to the
   rounding of F32; the means are over states that were computed by tuning_hidden alone. */
static void check_spans(float word_dropout) {
    tuning_settings set = settings();
    phrases s = new_phrases("spans", 1);
    tuning_batch batch;
    tuning t;
    set.pooling = "mean", set.word_dropout = word_dropout;
    REQUIRE(open_phrases(&t, &s, &set));
    double loss = (double)phrases_loss(&t, &batch), expected = 0, weights = 0;
    float hidden[64 * 16];
    REQUIRE(batch.rows.n_tokens <= 64);
    REQUIRE(tuning_compute(&t, &batch, tuning_hidden, hidden));
    for (int r = 0; r < 3; r++)
        for (int i = s.trees.first[r]; i < s.trees.first[r + 1]; i++) {
            const phrase *p = &s.trees.phrases[i];
            double h[16] = {0};
            int n = 0;
            weights += (double)p->weight;
            for (int k = batch.rows.row_start[r]; k < batch.rows.row_start[r + 1]; k++) {
                int word = word_of(&t, r, batch.source[k]);
                CHECK(batch.rows.tokens[k] == t.train.rows[r].ids[batch.source[k]]);
                if (word < p->begin || word >= p->end) continue;
                for (int j = 0; j < 16; j++) h[j] += (double)hidden[k * 16 + j];
                n++;
            }
            for (int j = 0; j < 16; j++) h[j] /= n ? n : 1;
            if (n) expected += (double)p->weight * plain_loss(&t, h, p->label);
        }
    CHECK_NEAR(s.per_row, weights / 3, 1e-6, 0);
    CHECK_NEAR(loss, expected / weights, 0, 1e-5);
    tuning_close(&t);
    phrases_free(&s);
}

TEST(spans_are_the_tokens_of_their_words) {
    check_spans(0);
    check_spans(0.6f);
}

/* The three sentences are learned by heart from trees. */
TEST(phrases_are_learned) {
    static const struct {
        const char *flags, *result;
    } runs[] = {
        {"--method rows --epochs 20 --lr 1e-2", "phrases rows: dev 1.000, test 1.000; 36739 of"},
        {"--method spans --epochs 20 --lr 1e-2 --sentence_weight 3", "phrases spans: dev 1.000, test 1.000;"},
        {"--method spans --epochs 30 --lr 1e-2 --sentence_weight 3 --ema .5", "phrases spans: dev 1.000"},
    };
    write_text("stories.txt", stories);
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char flags[1024];
        int status;
        snprintf(flags, sizeof flags, "%s --pooling mean --mask full --trees %s", runs[i].flags,
                 in_folder("stories.txt"));
        const char *said = run_program(phrases_alone, flags, &status);
        CHECK(status == 0 && strstr(said, runs[i].result));
        if (!strstr(said, runs[i].result)) printf("%s: %s", flags, said);
        CHECK(strstr(said, i ? "35 of 35 phrases in 3 rows" : "32 of 35 phrases in 32 rows"));
    }
}

/* --save_model writes the trained model and no classifier, also where --save has no format for the classifier. */
TEST(a_model_is_saved_without_its_classifier) {
    char flags[2048], both[600], alone[600];
    ml_model *with, *without;
    ml_head *head = NULL;
    ml_error error;
    int status;
    write_text("stories.txt", stories);
    snprintf(both, sizeof both, "%s", in_folder("both.gguf"));
    snprintf(alone, sizeof alone, "%s", in_folder("alone.gguf"));
    snprintf(flags, sizeof flags, "--pooling mean --epochs 1 --trees %s --save %s --save_model %s",
             in_folder("stories.txt"), both, alone);
    run_program(phrases_alone, flags, &status);
    REQUIRE(status == 0 && !ml_model_load(both, NULL, &with, &error));
    REQUIRE(!ml_model_load(alone, NULL, &without, &error));
    CHECK(with->n_tensors == without->n_tensors);
    for (int i = 0; i < with->n_tensors; i++) {
        const ml_tensor *x = &with->tensors[i], *y = &without->tensors[i];
        CHECK(x->rows == y->rows && x->cols == y->cols && !x->data == !y->data);
        CHECK(!x->data || memcmp(x->data, y->data, x->rows * x->cols * sizeof(float)) == 0);
    }
    CHECK(ml_head_load(alone, without, NULL, &head, &error) != ML_OK && !head);
    ml_model_free(with);
    ml_model_free(without);
    snprintf(flags, sizeof flags, "--pooling max --epochs 1 --trees %s --save_model %s",
             in_folder("stories.txt"), alone);
    run_program(phrases_alone, flags, &status);
    CHECK(status == 0);
    snprintf(flags, sizeof flags, "--trees %s --save %s --save_model %s", in_folder("stories.txt"), alone,
             alone);
    check_refused(phrases_alone, flags, "--save and --save_model are the same file");
}

/* A step may hold nothing but a sentence that counts where it occurs first. */
TEST(a_step_without_phrases) {
    char flags[1024];
    int status;
    write_text("twice.txt", "(0 (1 the) (0 cat))\n(0 (1 the) (0 cat))\n");
    snprintf(flags, sizeof flags, "--method spans --duplicates once --batch 1 --epochs 1 --trees %s",
             in_folder("twice.txt"));
    const char *said = run_program(phrases_alone, flags, &status);
    CHECK(status == 0 && !strstr(said, "there are no spans"));
}

/* The average of the steps stands in for the weights while they are measured. */
TEST(phrases_are_averaged) {
    tuning_settings set = settings();
    phrases s = new_phrases("spans", 1);
    tuning t;
    s.ema = 0.5f;
    REQUIRE(open_phrases(&t, &s, &set));
    float *w = (float *)t.parameters[0]->tensor->data;
    for (int step = 0; step < 3; step++) {
        *w = (float)(step * step + 1);
        REQUIRE(phrases_step(&t));
    }
    CHECK(phrases_measuring(&t, 1));
    CHECK_NEAR(*w, 5 / 11.0 + 3.75, 1e-6, 0); /* 1, 2/11 of it + 9/11 of 2, 1/4 of that + 3/4 of 5; F32 */
    CHECK(phrases_measuring(&t, 0) && *w == 5);
    tuning_close(&t);
    phrases_free(&s);
}

/* ---- components ---- */

typedef struct check_job {
    tuning *t;
    tuning_batch batch;
} check_job;

static ml_tensor build_loss(ml_graph *g, void *user) {
    check_job *job = (check_job *)user;
    return tuning_classify(job->t, g, &job->batch);
}

TEST(attention_pooling_and_mixed_layers_have_the_right_gradients) {
    static const int index[3] = {0, 1, 2};
    for (int i = 0; i < 2; i++) {
        tuning_method method = {0};
        tuning_settings set = settings();
        components s;
        check_job job;
        ml_check_desc desc = {0};
        ml_graph *g = NULL;
        ml_random random;
        ml_error error;
        tuning t;
        double worst = 1;
        memset(&s, 0, sizeof s);
        s.method = i ? "layers" : "attention";
        method.program = "test", method.state = &s, method.check = components_check;
        REQUIRE(tuning_open(&t, &set, &method) && new_optimizer(&t));
        ml_tensor *learns[2] = {i ? t.private_part->mix : t.private_part->pool, t.private_part->head};
        sines(learns[0], 1, 0);
        tuning_step step = {&t.train, index, 3};
        job.t = &t;
        tuning_fill(&t, &job.batch, &step, 0);
        ml_random_seed(&random, 1);
        REQUIRE(ml_graph_new(NULL, build_loss, &job, &g, &error) == ML_OK);
        const ml_tensor *list[2] = {learns[0], learns[1]};
        desc.build = build_loss, desc.user = &job, desc.random = &random;
        desc.tensors = list, desc.n_tensors = 2;
        CHECK(ml_check_gradient(g, &desc, &worst, &error) == ML_OK);
        CHECK(worst < 0.01); /* as its comment says */
        ml_graph_free(g);
        tuning_close(&t);
    }
}

/* Two tasks of three and two labels; the second has more sentences than the first. */
static void make_tasks(void) {
    static const char *const sets[3] = {"train", "dev", "test"};
    static const char one[] = "2 ||| once upon a time\n0 ||| the cat was sad\n1 ||| they all lived\n",
                      two[] = "1 ||| a dog\n0 ||| the old man was sad\n0 ||| no\n1 ||| the sun is big\n"
                              "1 ||| she was happy\n0 ||| bad\n1 ||| it was a good day\n";
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s-%s.txt", i < 3 ? "one" : "two", sets[i % 3]);
        write_text(name, i < 3 ? one : two);
    }
    write_text("one-labels.json", "[\"bad\", \"good\", \"odd\"]");
    write_text("two-labels.json", "[\"bad\", \"good\"]");
    write_text("two-test-gold.txt", "1\n0\n0\n1\n1\n0\n0\n");
}

static int open_tasks(tuning *t, components *s, tuning_settings *set, int even) {
    static char path[600];
    tuning_method method = {0};
    snprintf(path, sizeof path, "%s", in_folder(""));
    make_tasks();
    memset(s, 0, sizeof *s);
    s->method = "multitask", s->with = "two", s->even = even;
    set->train = set->dev = set->test = set->labels = NULL;
    set->data = path, set->task = "one", set->batch = 2;
    method.program = "test", method.state = s, method.check = components_check;
    return tuning_open(t, set, &method);
}

/* An epoch has each row once, or with --even as many batches of the shorter task; tasks take turns. */
TEST(tasks_take_turns) {
    for (int even = 0; even < 2; even++) {
        tuning_settings set = settings();
        components s;
        tuning t;
        int seen[2][7] = {{0}}, batches[2] = {0, 0};
        REQUIRE(open_tasks(&t, &s, &set, even));
        REQUIRE(t.train.n == 3 && s.other.train_set.n == 7 && t.labels.n == 3 && s.other.labels.n == 2);
        REQUIRE(multitask_plan(&t, 0));
        REQUIRE(t.private_part->n_steps == (even ? 8 : 6));
        for (int i = 0; i < t.private_part->n_steps; i++) {
            const tuning_step *step = &t.private_part->steps[i];
            int task = step->set == &s.other.train_set;
            CHECK(task || step->set == &t.train);
            CHECK(!even || task == i % 2);
            batches[task]++;
            for (int j = 0; j < step->n; j++) seen[task][step->index[j]]++;
        }
        CHECK(batches[0] == (even ? 4 : 2) && batches[1] == 4);
        for (int j = 0; j < 3; j++) CHECK(seen[0][j] == 1 + even);
        for (int j = 0; j < 7; j++) CHECK(seen[1][j] == 1);
        tuning_close(&t);
        components_free(&s);
    }
}

static double length_of_gradient(const ml_tensor *x) {
    double sum = 0;
    for (size_t i = 0; i < x->rows * x->cols; i++) sum += (double)x->grad[i] * (double)x->grad[i];
    return sum;
}

/* A batch gives gradients to its own task's head, not to the other, and to the network; training moves all. */
TEST(two_tasks_share_the_network) {
    tuning_settings set = settings();
    components s;
    tuning t;
    set.head_hidden = 4;
    REQUIRE(open_tasks(&t, &s, &set, 0));
    REQUIRE(new_optimizer(&t));
    static const int index[2] = {0, 1};
    for (int task = 0; task < 2; task++) {
        tuning_step step = {task ? &s.other.train_set : &t.train, index, 2};
        tuning_batch batch;
        float loss = 0;
        for (int i = 0; i < t.n_parameters; i++) {
            const ml_tensor *x = t.parameters[i]->tensor;
            memset(x->grad, 0, x->rows * x->cols * sizeof *x->grad);
        }
        CHECK(tuning_fill(&t, &batch, &step, 1) == 2 && multitask_backward(&t, &batch, &loss));
        CHECK(loss > 0.1f && loss < 10);
        const tuning_private *p = t.private_part;
        const ml_tensor *own[2] = {p->head, p->hidden}, *other[2] = {s.other.head, s.other.hidden};
        CHECK(own[0]->rows == 3 && other[0]->rows == 2);
        for (int i = 0; i < 2; i++) {
            CHECK((length_of_gradient(own[i]) > 0) == !task);
            CHECK((length_of_gradient(other[i]) > 0) == task);
        }
        CHECK(length_of_gradient(&t.weights[tuning_find_weight(&t, 0, "attn_q.weight")]) > 0);
    }
    ml_optimizer_free(t.optimizer);
    t.optimizer = NULL;
    size_t n = (size_t)tuning_count(&t);
    float *before = (float *)malloc(2 * n * sizeof *before), *from = before;
    tuning_copy(&t, before);
    t.set.epochs = 1;
    capture_begin();
    int ok = tuning_train(&t);
    capture_end();
    REQUIRE(ok);
    for (int i = 0; i < t.n_parameters; i++) {
        const ml_tensor *x = t.parameters[i]->tensor;
        CHECK(memcmp(x->data, from, x->rows * x->cols * sizeof *from) != 0);
        from += x->rows * x->cols;
    }
    free(before);
    tuning_close(&t);
    components_free(&s);
}

/* Both tasks are learned by heart, and both are reported, the second with its real labels: six of seven. */
TEST(both_tasks_are_reported) {
    char line[2048], *argv[40], name[] = "test";
    int argc = 1;
    make_tasks();
    snprintf(line, sizeof line,
             "--model %s --data %s --task one --method multitask --with two --epochs 30 --lr 1e-2 --batch 4 "
             "--threads 1 --patience 8 --even",
             paths[0], in_folder(""));
    argv[0] = name;
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    capture_begin();
    int status = components_main(argc, argv);
    const char *said = capture_end();
    CHECK(status == 0);
    CHECK(strstr(said, "components multitask: dev 1.000, test 1.000; 36773 of 36773 numbers trained"));
    CHECK(strstr(said, "components multitask_other: dev "));
    CHECK(strstr(said, "real test"));
}

/* ---- label words ---- */

static int open_prompted(tuning *t, prompted *s, const tuning_settings *set) {
    tuning_method method = {0};
    method.program = "test", method.name = "prompted", method.state = s;
    method.check = prompted_check, method.setup = prompted_setup;
    method.logits = prompted_logits;
    if (!s->prompt) s->prompt = "It was";
    capture_begin();
    int ok = tuning_open(t, set, &method);
    capture_end();
    return ok;
}

/* By hand, in doubles: the last state of each row times the embedding of a word, the mean of its tokens'. "big" and
   "sad" are one token, "terrible" is several; F32's rounding is below 1e-5. */
TEST(loss_of_label_words) {
    static const int index[3] = {0, 1, 2};
    tuning_settings set = settings();
    tuning_step step;
    tuning_batch batch;
    prompted s;
    tuning t;
    float hidden[64 * 16], loss;
    double expected = 0;
    memset(&s, 0, sizeof s);
    s.words = "big,terrible,sad";
    REQUIRE(open_prompted(&t, &s, &set));
    CHECK(s.spans[0].end == 1 && s.spans[1].end > 2 && s.spans[2].end == s.spans[1].end + 1);
    step.set = &t.train, step.index = index, step.n = 3;
    REQUIRE(tuning_fill(&t, &batch, &step, 0) == 3 && batch.rows.n_tokens <= 64);
    REQUIRE(tuning_compute(&t, &batch, tuning_hidden, hidden));
    for (int r = 0; r < 3; r++) {
        double z[3] = {0}, sum = 0;
        for (int c = 0; c < 3; c++) {
            int n = s.spans[c].end - s.spans[c].begin;
            for (int k = s.spans[c].begin; k < s.spans[c].end; k++)
                for (int j = 0; j < 16; j++)
                    z[c] += (double)hidden[(batch.rows.row_start[r + 1] - 1) * 16 + j] / n *
                            (double)((const float *)t.weights[0].data)[s.tokens[k] * 16 + j];
            sum += exp(z[c]);
        }
        expected += (log(sum) - z[t.train.rows[r].label]) / 3;
    }
    CHECK(tuning_compute(&t, &batch, tuning_classify, &loss));
    CHECK_NEAR(loss, expected, 0, 1e-5);
    CHECK(!tuning_find(&t, "head.weight") && tuning_count(&t) == t.model->n_parameters);
    tuning_close(&t);
}

/* The prompt ends each row, even one that is cut; the words' tokens are those that follow it. */
TEST(rows_end_with_the_prompt) {
    tuning_settings set = settings();
    prompted s;
    tuning t;
    char text[256];
    size_t n;
    ml_error error;
    set.max_len = 7;
    memset(&s, 0, sizeof s);
    s.words = "big,happy,sad";
    REQUIRE(open_prompted(&t, &s, &set));
    for (int i = 0; i < 3; i++) {
        ml_tokens tokens = {t.train.rows[i].ids, t.train.rows[i].n_ids};
        REQUIRE(ml_tokenizer_decode(t.model->tokenizer, &tokens, text, sizeof text, &n, &error) == ML_OK);
        CHECK(n > 7 && strcmp(text + n - 7, " It was") == 0 && tokens.n <= 8);
        tokens.ids = s.tokens + s.spans[i].begin, tokens.n = s.spans[i].end - s.spans[i].begin;
        REQUIRE(ml_tokenizer_decode(t.model->tokenizer, &tokens, text, sizeof text, &n, &error) == ML_OK);
        CHECK(strcmp(text, s.word[i]) == 0);
    }
    tuning_close(&t);
}

static void write_many(void) {
    char text[4096];
    size_t n = 0;
    for (int i = 0; i < 60; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%d ||| there were %d of them\n",
                              i < 40   ? 0
                              : i < 50 ? 1
                                       : 2,
                              i);
    write_text("many.txt", text);
}

/* Of 40, 10 and 10 sentences, 4 of each label; the same for the same seed, others for another. */
TEST(few_sentences_are_balanced_and_by_seed) {
    static char path[600];
    long sum[3];
    write_many();
    snprintf(path, sizeof path, "%s", in_folder("many.txt"));
    for (int i = 0; i < 3; i++) {
        tuning_settings set = settings();
        int have[3] = {0, 0, 0};
        prompted s;
        tuning t;
        memset(&s, 0, sizeof s);
        s.words = "big,happy,sad", s.shots = 4;
        set.train = path, set.seed = 1 + i / 2;
        REQUIRE(open_prompted(&t, &s, &set) && t.train.n == 12);
        sum[i] = 0;
        for (int j = 0; j < 12; j++) {
            have[t.train.rows[j].label]++;
            sum[i] += (j + 1) * atol(t.train.rows[j].sentence + strlen("there were "));
        }
        CHECK(have[0] == 4 && have[1] == 4 && have[2] == 4);
        tuning_close(&t);
    }
    CHECK(sum[0] == sum[1] && sum[0] != sum[2]);
}

/* The whole model and an adapter learn three sentences by heart, and the answers before that are reported. */
TEST(label_words_are_learned) {
    static const char *const flags[2] = {"--lr 1e-2", "--lora 4 --lr 3e-2"},
                             *const trained[2] = {"prompted full: dev 1.000, test 1.000; 36688 of",
                                                  "prompted lora: dev 1.000, test 1.000; 1856 of"};
    for (int i = 0; i < 2; i++) {
        char line[256];
        int status;
        snprintf(line, sizeof line, "%s --words big,happy,sad --batch 3 --epochs 30 --patience 12", flags[i]);
        const char *said = run_program(prompted_main, line, &status);
        const char *learned = strstr(said, trained[i]), *start = strstr(said, "prompted zero_shot: dev 0.");
        CHECK(status == 0 && learned && start && strstr(start, "; 0 of 36688"));
        CHECK(learned < start); /* the table of the experiments reads the first row */
        if (!strstr(said, trained[i])) printf("%s", said);
    }
}

/* ---- refusals ---- */

TEST(wrong_options_are_refused) {
    char flags[1024];
    write_many();
    check_refused(phrases_main, "", "--train is not for phrases, which are those of --trees");
    check_refused(phrases_alone, "--method words", "--method is rows or spans, not words");
    check_refused(phrases_alone, "--min_words 0", "--min_words is at least 1");
    check_refused(phrases_alone, "--ema 1", "--ema is 0 to less than 1");
    check_refused(phrases_alone, "--duplicates twice", "--duplicates is once, share or all, not twice");
    check_refused(phrases_alone, "--duplicates share", "gives spans a weight, and rows have none");
    check_refused(phrases_alone, "--method spans --pooling attention", "not --pooling attention");
    check_refused(phrases_alone, "--trees missing.txt", "missing.txt");
    check_refused(components_main, "--method middle", "or multitask, not middle");
    check_refused(components_main, "--method mean --pooling max", "--method mean and --pooling max exclude");
    check_refused(components_main, "--method mean --with sst", "are for --method multitask, not for mean");
    check_refused(components_main, "--method multitask", "needs a second task");
    check_refused(components_main, "--method multitask --with sst", "this is --task already");
    check_refused(components_main, "--method multitask --with cfimdb --save x.gguf",
                  "room for one classifier");
    check_refused(prompted_main, "", "there are 3 labels, and 2 words");
    check_refused(prompted_main, "--words big,sad,big", "\"big\" and \"big\" are the same tokens");
    check_refused(prompted_main, "--words big,sad,happy --dropout .1", "are of a classifier");
    check_refused(prompted_main, "--words big,sad,happy --pooling mean", "are of a classifier");
    check_refused(prompted_main, "--words big,sad,happy --save x.gguf", "--save:");
    check_refused(prompted_main, "--words big,sad,happy --word_dropout .1", "words of the prompt, too");
    check_refused(prompted_main, "--words big,sad,happy --shots -1", "--shots is not negative");
    check_refused(prompted_main, "--words big,sad,happy --lora -1", "--lora is a rank");
    check_refused(prompted_main, "--words big,sad,happy --shots 2", "has 1 sentences of label 0");
    snprintf(flags, sizeof flags, "--words big,sad,happy --shots 11 --train %s", in_folder("many.txt"));
    check_refused(prompted_main, flags, "many.txt has 10 sentences of label 1");
}

int main(void) {
    if (!folder_begin("components")) return 1;
    make_files();
    RUN(trees_are_read);
    RUN(sentences_are_made_plain_and_lower);
    RUN(broken_trees_are_refused);
    RUN(phrases_that_occur_often);
    RUN(whole_sentences_as_spans_are_rows);
    RUN(spans_are_the_tokens_of_their_words);
    RUN(phrases_are_learned);
    RUN(a_model_is_saved_without_its_classifier);
    RUN(a_step_without_phrases);
    RUN(phrases_are_averaged);
    RUN(attention_pooling_and_mixed_layers_have_the_right_gradients);
    RUN(tasks_take_turns);
    RUN(two_tasks_share_the_network);
    RUN(both_tasks_are_reported);
    RUN(loss_of_label_words);
    RUN(rows_end_with_the_prompt);
    RUN(few_sentences_are_balanced_and_by_seed);
    RUN(label_words_are_learned);
    RUN(wrong_options_are_refused);
    return test_report("test_components");
}
