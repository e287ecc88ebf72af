/* examples/run_llama: zero-shot scores against PyTorch's, what files may get wrong, and training on the opinions. */
#include "preamble.h"
#include "shared.h"
#include "temporary.h"
#include "../examples/run_llama/sentiment.h"

static const char *write_text(const char *text, size_t n) {
    const char *path = in_folder("reviews.txt");
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(text, 1, n, file) == n);
    if (file) fclose(file);
    return path;
}

/* The first 40 dev sentences in batches of 10, padded as the reference pads: all three of its configurations, within
   2e-3: a score is the sum of up to seven log-probabilities, each of which is right to about 1e-4. */
static void zero_shot(ml_norm norm, ml_mask mask, const char *key) {
    const char *model_path = shared_path("models/stories260K.pt"),
               *tokenizer_path = shared_path("models/tok512.bin"),
               *set_path = shared_path("data/sst-dev.txt"),
               *labels_path = shared_path("data/sst-label-mapping.json");
    char question[4096];
    ml_model_load_desc load = {0};
    ml_session_desc desc = {0};
    ml_archive *archive;
    ml_model *model;
    ml_error error;
    sentiment s = {0};
    label_ids labels;
    float scores[10 * 5];
    size_t n;
    if (!model_path || !set_path || !labels_path) SKIP("../shared is absent");
    load.norm = norm;
    load.mask = mask;
    load.tokenizer = tokenizer_path;
    REQUIRE(ml_model_load(model_path, &load, &model, &error) == ML_OK);
    REQUIRE(ml_archive_load(shared_path("reference/zeroshot_sst_dev40.pt"), NULL, &archive, &error) == ML_OK);
    float *theirs = shared_floats(archive, key, &n);
    REQUIRE(n == 40 * 5);
    s.model = model;
    s.set.reference = 1;
    s.set.batch_size = 10;
    s.set.prompting = 1;
    s.set.labels = labels_path;
    s.set.dev = s.set.test = set_path;
    REQUIRE(sentiment_read(&s));
    CHECK(s.dev.n == 1101 && s.labels.n == 5);
    sentiment_question(&s.labels, question, sizeof question);
    CHECK(strcmp(question, " Is this movie awful, bad, average, good, or excellent? This movie is ") == 0);
    desc.max_seq_len = s.max_row;
    desc.max_batch = s.max_row * 10;
    REQUIRE(ml_session_new(model, &desc, &s.session, &error) == ML_OK);
    float *logits = (float *)malloc(10 * (size_t)model->config.vocab_size * sizeof *logits);
    REQUIRE(sentiment_label_ids(&s, &labels));
    for (int from = 0; from < 40; from += 10) {
        REQUIRE(sentiment_prompt_batch(&s, &s.dev, from, 10, &labels, logits, scores));
        for (int i = 0; i < 50; i++) CHECK_NEAR(scores[i], theirs[from * 5 + i], 2e-3, 0);
    }
    free(logits);
    free(theirs);
    ml_archive_free(archive);
    sentiment_free(&s);
    ml_model_free(model);
}

TEST(zero_shot_layer_full) { zero_shot(ML_NORM_LAYER, ML_MASK_FULL, "layer_full_scores"); }
TEST(zero_shot_rms_full) { zero_shot(ML_NORM_RMS, ML_MASK_FULL, "rms_full_scores"); }
TEST(zero_shot_rms_causal) { zero_shot(ML_NORM_RMS, ML_MASK_CAUSAL, "rms_causal_scores"); }

/* The chain rule over a label's tokens, step by step through a session, is what one pass over the whole text
   gives. */
TEST(likelihood_by_the_chain_rule) {
    const char *model_path = shared_path("models/stories260K.pt");
    static char bad[] = "bad", marvellous[] = "marvellous";
    ml_model_load_desc load = {0};
    ml_session_desc desc = {0};
    ml_model *model;
    ml_error error;
    sentiment s = {0};
    double scores[REVIEWS_MAX_LABELS];
    label_rows rows;
    if (!model_path) SKIP("../shared is absent");
    load.tokenizer = shared_path("models/tok512.bin");
    REQUIRE(ml_model_load(model_path, &load, &model, &error) == ML_OK);
    REQUIRE(ml_session_new(model, &desc, &s.session, &error) == ML_OK);
    s.model = model;
    s.labels.name[0] = bad;
    s.labels.name[1] = marvellous;
    s.labels.n = 2;
    REQUIRE(sentiment_label_rows(&s, "The film was long. This movie is", &rows));
    REQUIRE(sentiment_likelihoods(&s, &rows, scores));
    float *logits = (float *)malloc(64 * (size_t)model->config.vocab_size * sizeof *logits);
    for (int i = 0; i < 2; i++) {
        double sum = 0;
        ml_batch batch = {0};
        ml_outputs outputs = {NULL, 0, NULL, logits};
        REQUIRE(rows.n[i] < 64);
        batch.tokens = rows.ids[i];
        batch.n_tokens = rows.n[i];
        REQUIRE(ml_session_eval_batch(s.session, &batch, &outputs, &error) == ML_OK);
        for (int j = rows.shared; j < rows.n[i]; j++) {
            const float *row = logits + (j - 1) * model->config.vocab_size;
            sum += (double)row[rows.ids[i][j]] - sentiment_log_sum(row, model->config.vocab_size);
        }
        CHECK_NEAR(scores[i], sum, 1e-3, 0); /* several log-probabilities, each right to 1e-4 */
    }
    CHECK(rows.n[1] > rows.n[0]);
    label_rows_free(&rows, 2);
    free(logits);
    ml_session_free(s.session);
    ml_model_free(model);
}

TEST(accuracy_and_f1) {
    review rows[6];
    reviews set;
    static const int truth[6] = {0, 0, 1, 1, 2, -1}, said[6] = {0, 1, 1, 1, 0, 2};
    memset(rows, 0, sizeof rows);
    memset(&set, 0, sizeof set);
    for (int i = 0; i < 6; i++) rows[i].label = truth[i];
    set.rows = rows;
    set.n = 6;
    sentiment_result result = sentiment_measure(&set, said, 3);
    CHECK_NEAR(result.accuracy, 3.0 / 5, 1e-12, 0);
    CHECK_NEAR(result.f1, (0.5 + 0.8 + 0.0) / 3, 1e-12, 0); /* F1 of 0: 1/2; of 1: 4/5; of 2: never hit */
}

static int reads(const char *text, reviews *all) {
    return reviews_read(all, write_text(text, strlen(text)), 3);
}

/* The file is refused, with a complaint that has these words. */
static int refuses_lines(const char *path, const char *words) {
    reviews all;
    capture_begin();
    int is_read = reviews_read(&all, path, 3);
    const char *complained = capture_end();
    reviews_free(&all);
    return !is_read && strncmp(complained, "error: ", 7) == 0 && strstr(complained, words);
}

static int refuses_names(const char *text, const char *words) {
    label_names names;
    const char *path = write_text(text, strlen(text));
    capture_begin();
    int is_read = label_names_read(&names, path);
    const char *complained = capture_end();
    free(names.text);
    return !is_read && strncmp(complained, "error: ", 7) == 0 && strstr(complained, words);
}

TEST(lines) {
    reviews all;
    CHECK(reads("0 ||| bad .\r\n\n2 |||  good ||| film \r\n-1 ||| no one knows", &all));
    CHECK(all.n == 3 && all.rows[1].label == 2 && all.rows[2].label == -1);
    CHECK(strcmp(all.rows[0].sentence, "bad .") == 0);
    CHECK(strcmp(all.rows[1].sentence, "good ||| film") == 0);
    CHECK(strcmp(all.rows[2].sentence, "no one knows") == 0);
    reviews_free(&all);
}

TEST(bad_lines) {
    static const char *const cases[][2] = {{"", "it has no lines"},
                                           {"0 ||| a\n1|||b\n", ":2: no \" ||| \""},
                                           {"3 ||| x\n", ":1: label \"3\" is not 0 to 2"},
                                           {"-2 ||| x\n", ":1: label \"-2\" is not 0 to 2"},
                                           {"x ||| y", ":1: label \"x\" is not 0 to 2"},
                                           {"1 ||| \n", ":1: the sentence is empty"},
                                           {"\n\n", "it has no lines"},
                                           {" ||| y", ":1: label \"\" is not 0 to 2"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK(refuses_lines(write_text(cases[i][0], strlen(cases[i][0])), cases[i][1]));
    CHECK(refuses_lines(write_text("0 ||| a\0b\n", 10), "byte of value 0"));
    CHECK(refuses_lines("/nowhere", "/nowhere: No such file"));
}

TEST(bad_label_names) {
    static const char *const cases[][2] = {{"", "not a JSON list"},
                                           {"{}", "not a JSON list"},
                                           {"[\"a\"]", "fewer than two labels"},
                                           {"[\"a\", 3]", "label name 1"},
                                           {"[\"a\", \"b\"", "label name 2"},
                                           {"[\"a\", \"\"]", "label name 1"},
                                           {"[]", "fewer than two labels"}};
    label_names names;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) CHECK(refuses_names(cases[i][0], cases[i][1]));
    CHECK(label_names_read(&names, write_text("[\"bad\" ,\n\"good\"]", 16)));
    CHECK(names.n == 2 && strcmp(names.name[1], "good") == 0);
    free(names.text);
}

/* Too long a sentence loses its end, never the question; invalid UTF-8 is spelled in bytes. */
TEST(cut_to_the_context) {
    const char *model_path = shared_path("models/stories260K.pt");
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    reviews all;
    char *text = (char *)malloc(4000), decoded[4000];
    size_t n = 0;
    if (!model_path) SKIP("../shared is absent");
    load.tokenizer = shared_path("models/tok512.bin");
    REQUIRE(ml_model_load(model_path, &load, &model, &error) == ML_OK);
    n += (size_t)snprintf(text, 4000, "0 ||| ");
    for (int i = 0; i < 300; i++) n += (size_t)snprintf(text + n, 4000 - n, "word ");
    n += (size_t)snprintf(text + n, 4000 - n, "\n1 ||| caf\xe9 \xff\xfe\n");
    REQUIRE(reads(text, &all));
    capture_begin();
    int is_encoded = reviews_encode(&all, model->tokenizer, " Is it good?", 64);
    CHECK(strstr(capture_end(), "1 sentences are cut to 64 tokens"));
    REQUIRE(is_encoded);
    CHECK(all.n_cut == 1 && all.rows[0].n_ids <= 64 && all.rows[0].n_ids > 50);
    ml_tokens row0 = {all.rows[0].ids, all.rows[0].n_ids};
    REQUIRE(ml_tokenizer_decode(model->tokenizer, &row0, decoded, sizeof decoded, &n, &error) == ML_OK);
    CHECK(n > 12 && strcmp(decoded + n - 12, " Is it good?") == 0);
    ml_tokens row1 = {all.rows[1].ids, all.rows[1].n_ids};
    REQUIRE(ml_tokenizer_decode(model->tokenizer, &row1, decoded, sizeof decoded, &n, &error) == ML_OK);
    CHECK(strcmp(decoded, "caf\xe9 \xff\xfe Is it good?") == 0);
    reviews_free(&all);
    free(text);
    ml_model_free(model);
}

/* Fine-tuning and LoRA on the model and the opinions that ship with the repository, as `make demo` does it but
   shorter. */
static sentiment_settings demo_settings(const char *n_labels) {
    static char path[4][64];
    static const char *const files[4] = {"train.txt", "dev.txt", "test.txt", "labels.json"};
    sentiment_settings set;
    for (int i = 0; i < 4; i++)
        snprintf(path[i], sizeof path[i], "examples/data/opinions%s-%s", n_labels, files[i]);
    memset(&set, 0, sizeof set);
    set.train = path[0];
    set.dev = path[1];
    set.test = path[2];
    set.labels = path[3];
    set.dev_out = set.test_out = in_folder("demo.txt");
    set.model_out = in_folder("demo.gguf");
    set.score = "sum";
    set.epochs = 3;
    set.batch_size = 10;
    set.dropout = 0.3f;
    set.lr = 1e-3f;
    set.threads = 1;
    set.seed = 1337;
    return set;
}

static void demo(const sentiment_settings *set, double bound) {
    sentiment_result dev = {0, 0}, test = {0, 0};
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    load.type = ML_F32;
    REQUIRE(ml_model_load("examples/models/stories.gguf", &load, &model, &error) == ML_OK);
    capture_begin();
    int is_run = sentiment_run(set, model, &dev, &test);
    const char *said = capture_end();
    CHECK(is_run && strstr(said, "epoch 2: train loss :: ") && strstr(said, "\ntest acc :: "));
    CHECK(dev.accuracy >= bound);
    CHECK(test.accuracy >= bound);
    ml_model_free(model);
    remove(set->model_out);
}

/* "LABEL ||| SENTENCE" for each line of the set, in its order. */
static void check_written(const char *path, const char *of, int n_labels) {
    reviews wrote, set;
    REQUIRE(reviews_read(&wrote, path, n_labels) && reviews_read(&set, of, n_labels));
    CHECK(wrote.n == set.n);
    for (int i = 0; i < wrote.n && i < set.n; i++) {
        CHECK(strcmp(wrote.rows[i].sentence, set.rows[i].sentence) == 0);
        CHECK(wrote.rows[i].label >= 0);
    }
    reviews_free(&wrote);
    reviews_free(&set);
}

/* Of five classes, chance finds a fifth; seen here are 0.7 to 0.85 of them. */
TEST(demo_finetune) {
    sentiment_settings set = demo_settings("5");
    demo(&set, 0.45);
    check_written(set.test_out, set.test, 5);
    remove(set.test_out);
}

/* Of two classes, chance finds half, give or take 0.065 on these 60 rows; seen here are 0.8 to 0.9 of them. */
TEST(demo_lora) {
    sentiment_settings set = demo_settings("2");
    set.lora = 1;
    set.lora_rank = 8;
    set.lora_alpha = 16;
    set.lr = 3e-3f;
    demo(&set, 0.65);
    remove(set.test_out);
}

int main(void) {
    if (!folder_begin("sentiment")) return 1;
    RUN(zero_shot_layer_full);
    RUN(zero_shot_rms_full);
    RUN(zero_shot_rms_causal);
    RUN(likelihood_by_the_chain_rule);
    RUN(accuracy_and_f1);
    RUN(lines);
    RUN(bad_lines);
    RUN(bad_label_names);
    RUN(cut_to_the_context);
    RUN(demo_finetune);
    RUN(demo_lora);
    return !folder_end() || test_report("test_sentiment");
}
