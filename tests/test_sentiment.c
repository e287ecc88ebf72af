/* examples/run_llama: zero-shot scores against PyTorch's, what files may get wrong, and training on the opinions. */
#include "preamble.h"
#include "shared.h"
#include "temporary.h"
#include "../examples/run_llama/sentiment.h"
#include "../examples/common/file.h"
#define PROGRESS_PAUSE 0
#include "../examples/common/progress.h"

static const char *write_text(const char *text, size_t n) {
    static char path[600];
    FILE *file;
    snprintf(path, sizeof path, "%s/reviews.txt", folder);
    file = fopen(path, "wb");
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
    static char bad[] = "bad", marvellous[] = "marvellous", both[] = "very bad",
                begins[] = "very good and new";
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
            double log_sum;
            REQUIRE(sentiment_log_sum(row, model->config.vocab_size, &log_sum));
            sum += (double)row[rows.ids[i][j]] - log_sum;
        }
        CHECK_NEAR(scores[i], sum, 1e-3, 0); /* several log-probabilities, each right to 1e-4 */
    }
    CHECK(rows.n[1] > rows.n[0]);
    label_rows_free(&rows, 2);
    int n_text = rows.shared;
    s.labels.name[0] = both,
    s.labels.name[1] = begins; /* what both begin with is of the labels, not of the text */
    REQUIRE(sentiment_label_rows(&s, "The film was long. This movie is", &rows));
    CHECK(rows.shared == n_text && rows.ids[0][n_text] == rows.ids[1][n_text]);
    label_rows_free(&rows, 2);
    free(logits);
    ml_session_free(s.session);
    ml_model_free(model);
}

/* Where a logit is no number, no label is likely. */
TEST(logits_that_are_not_finite) {
    static const float logits[3] = {1, 2, 3};
    double log_sum;
    CHECK(sentiment_log_sum(logits, 3, &log_sum));
    CHECK_NEAR(log_sum, log(exp(1) + exp(2) + exp(3)), 1e-12, 0); /* double */
    static const float wrong[] = {NAN, INFINITY};
    for (int i = 0; i < 4; i++) {
        float broken[3] = {1, 2, 3};
        broken[i / 2] = wrong[i % 2];
        capture_begin();
        int is_finite = sentiment_log_sum(broken, 3, &log_sum);
        CHECK(strstr(capture_end(), "the logits are not finite") && !is_finite);
    }
}

/* A vocabulary without pieces for bytes has no padding either: its first piece, unknown, fills up. */
TEST(padding_that_is_not_there) {
    int32_t ids[3] = {5, 6, 7}, tokens[6], starts[3];
    int32_t truth[2];
    review rows[2] = {{0}};
    reviews set = {0};
    ml_tokenizer tokenizer = {0};
    ml_model model = {0};
    sentiment s = {0};
    rows[0].ids = rows[1].ids = ids;
    rows[0].n_ids = 3, rows[1].n_ids = 1;
    set.rows = rows, set.n = 2;
    tokenizer.padding = -1;
    model.tokenizer = &tokenizer;
    s.model = &model;
    s.set.reference = 1;
    s.tokens = tokens, s.starts = starts, s.truth = truth;
    ml_batch batch = sentiment_batch(&s, &set, NULL, 0, 2);
    CHECK(batch.n_tokens == 6 && tokens[3] == 5 && tokens[4] == 0 && tokens[5] == 0);
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

static int reads_bytes(const char *text, size_t n, reviews *all) {
    return reviews_read(all, write_text(text, n), 3);
}

static int reads(const char *text, reviews *all) { return reads_bytes(text, strlen(text), all); }

TEST(lines) {
    reviews all;
    CHECK(reads("0 ||| bad .\r\n\n2 |||  good ||| film \r\n-1 ||| no one knows", &all));
    CHECK(all.n == 3 && all.rows[1].label == 2 && all.rows[2].label == -1);
    CHECK(strcmp(all.rows[0].sentence, "bad .") == 0);
    CHECK(strcmp(all.rows[1].sentence, "good ||| film") == 0);
    CHECK(strcmp(all.rows[2].sentence, "no one knows") == 0);
    reviews_free(&all);
}

/* What Python makes of each: open(...), line.split(" ||| "), int(label.strip()), sentence.strip(). */
TEST(lines_as_python_reads_them) {
    static const struct {
        const char *text;
        int n, label; /* the last line's */
        const char *sentence;
    } cases[] = {
        {"\xef\xbb\xbf"
         "1 ||| bad\n",
         1, 1, "bad"},
        {"0 ||| bad\r1 ||| good\r", 2, 1, "good"},
        {"0 ||| bad\r\r2 ||| good", 2, 2, "good"},
        {"0 ||| bad\n 1  ||| good  \n", 2, 1, "good"},
        {"\xc2\xa0"
         "2\t ||| good\n",
         1, 2, "good"},
        {"0 ||| bad\n+1 ||| \n", 2, 1, ""},
        {"0 ||| bad\n1 ||| ", 2, 1, ""},
        {"\n  \n0 ||| bad\n\t\n", 1, 0, "bad"},
        {"0 ||| bad\n\xc2\xa0\n\x0c\n\xe3\x80\x80 \n", 1, 0, "bad"}, /* an editor's blank lines */
        {"1 ||| \xc2\xa0good\xe3\x80\x80\xe2\x80\x89\x1f\n", 1, 1, "good"},
        {"1 ||| a\xe2\x80\xa8"
         "b\x0c\x0b\n",
         1, 1,
         "a\xe2\x80\xa8"
         "b"},
        {"1 ||| caf\xe9 \xa0\n", 1, 1, "caf\xe9 \xa0"}, /* Latin-1, which Python refuses, is kept */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        reviews all;
        CHECK(reads(cases[i].text, &all));
        CHECK(all.n == cases[i].n);
        if (all.n == cases[i].n) {
            CHECK(all.rows[all.n - 1].label == cases[i].label);
            CHECK(strcmp(all.rows[all.n - 1].sentence, cases[i].sentence) == 0);
        }
        reviews_free(&all);
    }
}

TEST(bad_lines) {
    static const struct {
        const char *text;
        size_t n; /* 0: to its end */
        const char *says;
    } cases[] = {
        {"", 0, "no lines"},
        {"\n\n", 0, "no lines"},
        {"0 ||| a\n1|||b\n", 0, ":2: no \" ||| \""},
        {"0 ||| a\r1 |||\r", 0, ":2: no \" ||| \""}, /* as in Python, where split finds nothing */
        {"0\tbad\n", 0, ":1: no \" ||| \""},
        {"3 ||| x\n", 0, ":1: label \"3\" is not 0 to 2"},
        {"-2 ||| x\n", 0, ":1: label \"-2\""},
        {"1 ||| y\n\nx ||| y", 0, ":3: label \"x\""},
        {"1.0 ||| y", 0, ":1: label \"1.0\""},
        {" ||| y", 0, ":1: label \"\""},
        {"0 ||| a\r\n1 ||| b\r\n0 ||| a\0b\n", 28, ":3: it contains a byte of value 0"},
        {"\xff\xfe"
         "0\0 \0",
         6, "UTF-16: save it as UTF-8"},
        {"\xfe\xff\0"
         "0\0 ",
         6, "UTF-16: save it as UTF-8"},
    };
    reviews all;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        capture_begin();
        int is_read = reads_bytes(cases[i].text, cases[i].n ? cases[i].n : strlen(cases[i].text), &all);
        const char *printed = capture_end();
        CHECK(strncmp(printed, "error: ", 7) == 0 && strstr(printed, cases[i].says));
        CHECK(strstr(printed, "reviews.txt") != NULL);
        CHECK(!is_read);
        reviews_free(&all);
    }
    capture_begin();
    CHECK(!reviews_read(&all, "/nowhere", 3));
    CHECK(strstr(capture_end(), "/nowhere: No such file") != NULL);
    reviews_free(&all);
}

/* What Python's json.dump writes, with ensure_ascii and without. */
TEST(label_names_of_python) {
    static const char *const texts[] = {
        "[\"bad\" ,\n\"good\"]", "\xef\xbb\xbf[\r\n\"bad\",\r\"good\"\r\n]\r\n",
        "[\"s\\u00fc\\u00DF\", \"\\ud83d\\ude00 \\u20ac\\u07ff\\u007f\"]",
        "[\"\\\"\\\\\\/\", \"\\b\\f\\n\\r\\t\"]", "[\"s\xc3\xbc\xc3\x9f\", \" a ] , b \"]"};
    static const char *const names[][2] = {{"bad", "good"},
                                           {"bad", "good"},
                                           {"s\xc3\xbc\xc3\x9f", "\xf0\x9f\x98\x80 \xe2\x82\xac\xdf\xbf\x7f"},
                                           {"\"\\/", "\b\f\n\r\t"},
                                           {"s\xc3\xbc\xc3\x9f", " a ] , b "}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        label_names read;
        CHECK(label_names_read(&read, write_text(texts[i], strlen(texts[i]))));
        CHECK(read.n == 2);
        if (read.n == 2)
            CHECK(strcmp(read.name[0], names[i][0]) == 0 && strcmp(read.name[1], names[i][1]) == 0);
        free(read.text);
    }
}

TEST(bad_label_names) {
    static const char *const cases[][2] = {
        {"", "it is the end of the file, not a JSON list"},
        {"{\"0\": \"a\"}", "it is an object, not a JSON list"},
        {"\"a\"", "it is a string"},
        {"[]", "fewer than two"},
        {"[\"a\"]", "fewer than two"},
        {"[\"a\", 3]", "name 1 is a number, not a string"},
        {"[[\"a\"], \"b\"]", "name 0 is a list, not a string"},
        {"[\"a\", null]", "name 1 is null"},
        {"[\"a\", \"b\"", "the end of the file follows label name 1"},
        {"[\"a\", \"b", "name 1 does not end"},
        {"[\"a\", \"b\",]", "name 2 is no JSON"},
        {"[\"a\" \"b\"]", "a string follows label name 0"},
        {"[\"a\", \"b\"] // x", "more text follows"},
        {"[\"a\", \"\"]", "name 1 is empty"},
        {"[\"a\", \"\\x41\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"\\u12g4\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"\\u00", "name 1 has a wrong escape"},
        {"[\"a\", \"\\u0000\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"\\ud83d\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"\\ud83d\\u0041\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"\\ude00\"]", "name 1 has a wrong escape"},
        {"[\"a\", \"b\nc\"]", "name 1 has a control character"},
        {"[\"a\", \"b\", \"\\u0062\"]", "name 2 is the same as label name 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        label_names names;
        capture_begin();
        int is_read = label_names_read(&names, write_text(cases[i][0], strlen(cases[i][0])));
        const char *printed = capture_end();
        CHECK(strncmp(printed, "error: ", 7) == 0 && strstr(printed, cases[i][1]));
        CHECK(strstr(printed, "reviews.txt") != NULL);
        CHECK(!is_read);
        free(names.text);
    }
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
    CHECK(strstr(capture_end(), "1 sentences are cut to 64 tokens") != NULL);
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

/* The assignment cuts a sentence to so many tokens and then puts bos in front: 10 of them are 11 ids. */
static void sentence_length(int reference) {
    ml_model *model;
    ml_error error;
    sentiment s = {0};
    REQUIRE(ml_model_load("examples/models/stories.gguf", NULL, &model, &error) == ML_OK);
    s.model = model;
    s.set.reference = reference;
    s.set.batch_size = 2;
    s.set.max_sentence_len = 10;
    s.set.labels = "examples/data/opinions2-labels.json";
    s.set.train = s.set.dev = s.set.test = "examples/data/opinions2-dev.txt";
    capture_begin();
    int is_read = sentiment_read(&s);
    capture_end();
    REQUIRE(is_read);
    for (int i = 0, cut; i < s.dev.n; i++) {
        int32_t work[4096];
        ml_encode_desc whole = {s.dev.rows[i].sentence, strlen(s.dev.rows[i].sentence), 0, work, sizeof work};
        ml_tokens tokens;
        REQUIRE(ml_tokenizer_encode(model->tokenizer, &whole, &tokens, &error) == ML_OK);
        cut = min_int(tokens.n, 10);
        CHECK(s.dev.rows[i].n_ids == 1 + cut && s.dev.rows[i].ids[0] == model->tokenizer->bos);
        CHECK(memcmp(s.dev.rows[i].ids + 1, tokens.ids, (size_t)cut * sizeof *tokens.ids) == 0);
    }
    CHECK(s.max_row == 11);
    sentiment_free(&s);
    ml_model_free(model);
}

/* A tokenizer without bos and padding: an empty sentence is one token all the same, and rows are filled up with the
   unknown piece, or with id 0. */
TEST(neither_bos_nor_padding) {
    static const char text[] = "0 ||| a film\n1 |||  \n";
    ml_model *model;
    ml_error error;
    sentiment s = {0};
    REQUIRE(ml_model_load("examples/models/stories.gguf", NULL, &model, &error) == ML_OK);
    ml_tokenizer *tokenizer = (ml_tokenizer *)(uintptr_t)model->tokenizer;
    CHECK(reviews_padding(tokenizer) == tokenizer->padding && tokenizer->padding > 0);
    tokenizer->adds_bos = 0;
    tokenizer->padding = -1;
    s.model = model;
    s.set.reference = 1;
    s.set.batch_size = 2;
    s.set.labels = "examples/data/opinions2-labels.json";
    s.set.train = s.set.dev = s.set.test = write_text(text, strlen(text));
    REQUIRE(sentiment_read(&s));
    CHECK(s.dev.rows[0].n_ids > 1 && s.dev.rows[1].n_ids == 1);
    ml_batch batch = sentiment_batch(&s, &s.dev, NULL, 0, 2);
    CHECK(batch.n_tokens == 2 * s.dev.rows[0].n_ids);
    for (int i = 0; i < batch.n_tokens; i++)
        CHECK((s.tokens[i] == tokenizer->unknown) == (i >= s.dev.rows[0].n_ids));
    tokenizer->unknown = -1;
    CHECK(reviews_padding(tokenizer) == 0);
    sentiment_free(&s);
    ml_model_free(model);
}

TEST(sentence_length_in_mode_reference) { sentence_length(1); }
TEST(sentence_length_in_mode_llama) { sentence_length(0); }

/* Where no terminal is, a line now and then: here whenever there is something left to do. */
TEST(progress_without_a_terminal) {
    capture_begin();
    progress_bar("train-0", 10, 80, seconds_now() - 1);
    progress_bar("train-0", 80, 80, seconds_now() - 1);
    CHECK(strcmp(capture_end(), "train-0: 10 of 80, 0:07 left\n") == 0);
}

/* Fine-tuning and LoRA on the model and the opinions that ship with the repository, as `make demo` does it but
   shorter. */
static sentiment_settings demo_settings(const char *n_labels) {
    static char path[4][64];
    static const char *const files[4] = {"train.txt", "dev.txt", "test.txt", "labels.json"};
    sentiment_settings set;
    for (int i = 0; i < 4; i++)
        snprintf(path[i], sizeof path[i], "examples/data/opinions%s-%s", n_labels, files[i]);
    static char out[600], model_out[600];
    snprintf(out, sizeof out, "%s/demo.txt", folder);
    snprintf(model_out, sizeof model_out, "%s/demo.gguf", folder);
    memset(&set, 0, sizeof set);
    set.train = path[0];
    set.dev = path[1];
    set.test = path[2];
    set.labels = path[3];
    set.dev_out = set.test_out = out;
    set.model_out = model_out;
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
    sentiment_result dev = {0, 0, -1}, test = {0, 0, -1};
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    load.type = ML_F32;
    REQUIRE(ml_model_load("examples/models/stories.gguf", &load, &model, &error) == ML_OK);
    capture_begin();
    int is_done = sentiment_run(set, model, &dev, &test);
    CHECK(strstr(capture_end(), "is kept\nload model from ") != NULL);
    CHECK(is_done);
    CHECK(dev.accuracy >= bound);
    CHECK(test.accuracy >= bound);
    ml_model_free(model);
}

/* What training saved labels the same sentences in the same way, in another process or here. */
static void predicts_the_same(const sentiment_settings *trained, const char *model_path,
                              const char *adapter) {
    static char path[600];
    sentiment_settings set = *trained;
    sentiment_result dev = {0, 0, -1}, test = {0, 0, -1};
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    snprintf(path, sizeof path, "%s/predicted.txt", folder);
    set.dev_out = set.test_out = path;
    set.predicting = 1;
    set.lora = 0;
    set.labels = "/nowhere"; /* the head knows them */
    set.adapter = adapter;
    set.classifier = trained->model_out;
    load.type = ML_F32;
    REQUIRE(ml_model_load(model_path, &load, &model, &error) == ML_OK);
    capture_begin();
    int is_done = sentiment_run(&set, model, &dev, &test);
    CHECK(strncmp(capture_end(), "dev acc :: ", 11) == 0);
    CHECK(is_done);
    size_t n = 0, m = 0;
    char *ours = file_read(path, &n), *theirs = file_read(trained->test_out, &m);
    CHECK(ours && theirs && n == m && memcmp(ours, theirs, n) == 0);
    free(ours);
    free(theirs);
    ml_model_free(model);
    remove(path);
}

/* Where all labels of a file are the same, an accuracy means nothing, and that is said. */
static void says_placeholders(const sentiment_settings *trained, const char *label, const char *words) {
    char text[64];
    sentiment_settings set = *trained;
    sentiment_result dev = {0, 0, -1}, test = {0, 0, -1};
    ml_model *model;
    ml_error error;
    snprintf(text, sizeof text, "%s ||| good\n%s ||| bad\n", label, label);
    set.predicting = 1;
    set.classifier = set.model_out;
    set.test = write_text(text, strlen(text));
    REQUIRE(ml_model_load(set.model_out, NULL, &model, &error) == ML_OK);
    capture_begin();
    int is_done = sentiment_run(&set, model, &dev, &test);
    const char *printed = capture_end(), *line = strstr(printed, "test acc :: ");
    CHECK(is_done && line && strstr(line, words) && !memchr(printed, '(', (size_t)(line - printed)));
    remove(set.test);
    ml_model_free(model);
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
    predicts_the_same(&set, set.model_out, NULL);
    says_placeholders(&set, "0", " are all 0: placeholders?)\n");
    says_placeholders(&set, "-1", " are not known: all are -1)\n");
    remove(set.test_out);
    remove(set.model_out);
}

/* Of two classes, chance finds half, give or take 0.065 on these 60 rows; seen here are 0.8 to 0.9 of them. */
TEST(demo_lora) {
    sentiment_settings set = demo_settings("2");
    set.lora = 1;
    set.lora_rank = 8;
    set.lora_alpha = 16;
    set.lr = 3e-3f;
    demo(&set, 0.65);
    predicts_the_same(&set, "examples/models/stories.gguf", set.model_out);
    remove(set.test_out);
    remove(set.model_out);
}

/* One pass over the rows, in an order that is shuffled anew, by the library alone. */
static int plain_epoch(ml_trainer *trainer, const reviews *train, int batch_size, int *order,
                       ml_random *random) {
    enum { MOST = 4096 };
    int32_t tokens[MOST], starts[64] = {0}, truth[64];
    for (int i = train->n - 1; i > 0; i--) {
        int j = (int)(ml_random_u64(random) % (uint64_t)(i + 1)), held = order[i];
        order[i] = order[j], order[j] = held;
    }
    for (int from = 0; from < train->n; from += batch_size) {
        ml_batch batch = {tokens, 0, starts, min_int(batch_size, train->n - from), NULL, truth, 0};
        for (int i = 0; i < batch.n_rows; i++) {
            const review *row = &train->rows[order[from + i]];
            if (batch.n_tokens + row->n_ids > MOST) return 0;
            memcpy(tokens + batch.n_tokens, row->ids, (size_t)row->n_ids * sizeof *tokens);
            starts[i + 1] = batch.n_tokens += row->n_ids;
            truth[i] = row->label;
        }
        batch.divisor = (float)batch_size;
        if (ml_trainer_backward(trainer, &batch, NULL, NULL, NULL) || ml_trainer_step(trainer, NULL))
            return 0;
    }
    return 1;
}

/* What a head learns in the first epochs of a run in which every flag of how to train is set. */
static int train_plainly(const sentiment_settings *set, const reviews *train, ml_model *model, int epochs,
                         ml_head **head) {
    ml_head_create_desc top = {0};
    ml_trainer_desc how = {0};
    ml_trainer *trainer;
    ml_random random;
    int ok = 1, n_steps = (train->n + set->batch_size - 1) / set->batch_size * set->epochs, order[64];
    top.n_classes = 2, top.pooling = ML_POOL_MEAN, top.random = &random;
    ml_random_seed(&random, (uint64_t)set->seed);
    if (train->n > 64 || ml_head_create(model, &top, head, NULL)) return 0;
    how.head = *head, how.max_tokens = 4096, how.max_row = 256;
    how.adamw.lr = 1e-3f, how.adamw.head_lr = 4e-3f, how.adamw.weight_decay = 0.5f, how.adamw.clip = 0.1f;
    how.schedule.decay = ML_DECAY_COSINE;
    how.schedule.total_steps = n_steps, how.schedule.warmup_steps = n_steps / 4;
    if (ml_trainer_new(model, &how, &trainer, NULL)) return 0;
    ml_random_seed(&random, (uint64_t)set->seed + 1);
    for (int i = 0; i < train->n; i++) order[i] = i;
    for (int i = 0; i < epochs && ok; i++) ok = plain_epoch(trainer, train, set->batch_size, order, &random);
    ml_trainer_free(trainer);
    return ok;
}

static ml_model *trainable_model(void) {
    ml_model_load_desc load = {0};
    ml_model *model = NULL;
    load.type = ML_F32;
    CHECK(ml_model_load("examples/models/stories.gguf", &load, &model, NULL) == ML_OK);
    return model;
}

/* All flags of how to train reach the trainer: the head that is kept is that of the same training without them. It is
   saved as F32, and both compute the same in the same order. */
TEST(training_settings) {
    sentiment_settings set = demo_settings("2");
    sentiment_result dev, test;
    ml_model *model = trainable_model(), *plain = trainable_model(), *kept;
    ml_head *ours, *expected;
    reviews train;
    int best = -1;
    REQUIRE(model && plain);
    set.train = set.dev; /* 60 rows, 6 steps an epoch */
    set.epochs = 2;
    set.dropout = 0;
    set.pooling = ML_POOL_MEAN, set.schedule = ML_DECAY_COSINE, set.warmup = 0.25f, set.clip = 0.1f;
    set.head_lr = 4e-3f, set.weight_decay = 0.5f;
    capture_begin();
    int is_done = sentiment_run(&set, model, &dev, &test);
    const char *line = strstr(capture_end(), "best epoch ");
    REQUIRE(is_done && line && sscanf(line, "best epoch %d,", &best) == 1);
    REQUIRE(reviews_read(&train, set.train, 2) && reviews_encode(&train, plain->tokenizer, "", 256));
    REQUIRE(train_plainly(&set, &train, plain, best + 1, &expected));
    REQUIRE(ml_model_load(set.model_out, NULL, &kept, NULL) == ML_OK);
    REQUIRE(ml_head_load(set.model_out, kept, NULL, &ours, NULL) == ML_OK);
    CHECK(ours->pooling == ML_POOL_MEAN && ours->weight.cols == expected->weight.cols);
    const float *a = (const float *)ours->weight.data, *b = (const float *)expected->weight.data;
    for (size_t i = 0; i < 2 * ours->weight.cols; i++) CHECK_NEAR(a[i], b[i], 1e-6, 0);
    ml_head_free(ours), ml_head_free(expected);
    ml_model_free(kept), ml_model_free(plain), ml_model_free(model);
    reviews_free(&train);
    remove(set.test_out), remove(set.model_out);
}

/* The training set is measured only if that is wanted; a head of means is not for the course's code. */
TEST(what_an_epoch_says) {
    sentiment_settings set = demo_settings("2");
    sentiment_result dev, test;
    double loss, on_train, on_dev, f1;
    char rest;
    set.train = set.dev;
    set.epochs = 1;
    for (set.eval_train = 0; set.eval_train < 2; set.eval_train++) {
        ml_model *model = trainable_model();
        capture_begin();
        int is_done = sentiment_run(&set, model, &dev, &test);
        const char *printed = capture_end(), *line = strstr(printed, "epoch 0: ");
        REQUIRE(is_done && line);
        CHECK(sscanf(line, "epoch 0: train loss :: %lf, dev acc :: %lf, dev f1 :: %lf%c", &loss, &on_dev, &f1,
                     &rest) == (set.eval_train ? 1 : 4));
        CHECK(sscanf(line, "epoch 0: train loss :: %lf, train acc :: %lf, dev acc :: %lf, dev f1 :: %lf%c",
                     &loss, &on_train, &on_dev, &f1, &rest) == (set.eval_train ? 5 : 1));
        if (set.eval_train) CHECK(on_train == on_dev); /* the same sentences */
        ml_model_free(model);
    }
    remove(set.test_out), remove(set.model_out);
    ml_model *model = trainable_model();
    set.pooling = ML_POOL_MEAN;
    set.model_out = in_folder("course.pt");
    capture_begin();
    int is_done = sentiment_run(&set, model, &dev, &test);
    CHECK(strstr(capture_end(), "which reads the last position: name a .gguf, or choose --pooling last\n"));
    CHECK(!is_done);
    ml_model_free(model);
}

/* Real labels beside placeholders, one a line. */
TEST(gold_labels) {
    static const char text[] = "0 ||| a\n0 ||| b\n0 ||| c\n";
    static const char *const wrong[][2] = {
        {"0\n1\n", "gold.txt: it has 2 labels, but "},
        {"0\n1\n0\n1", "gold.txt: it has 4 labels, but "},
        {"", "gold.txt: it has 0 labels, but "},
        {"0\n2\n0\n", "gold.txt:2: label \"2\" is not 0 to 1 (or -1, unknown)"},
        {"0\n\n1 ||| a\n", "gold.txt:3: label \"1 ||| a\" is not 0 to 1"},
        {"good\n", "gold.txt:1: label \"good\" is not"}};
    static const int predicted[] = {0, 1, 1};
    reviews set;
    REQUIRE(reads(text, &set));
    CHECK(file_write(in_folder("gold.txt"), "0\r\n 1 \n\n-1\n", 11));
    int *gold = reviews_read_gold(&set, in_folder("gold.txt"), 2);
    REQUIRE(gold != NULL);
    CHECK(gold[0] == 0 && gold[1] == 1 && gold[2] == -1);
    sentiment_result by_gold = sentiment_measure_by(gold, &set, predicted, 2),
                     by_set = sentiment_measure(&set, predicted, 2);
    CHECK_NEAR(by_gold.accuracy, 1, 1e-12, 0); /* of the two that are known */
    CHECK_NEAR(by_set.accuracy, 1.0 / 3, 1e-12, 0);
    CHECK(by_gold.gold == -1);
    free(gold);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK(file_write(in_folder("gold.txt"), wrong[i][0], strlen(wrong[i][0])));
        capture_begin();
        gold = reviews_read_gold(&set, in_folder("gold.txt"), 2);
        CHECK(strstr(capture_end(), wrong[i][1]) && !gold);
    }
    reviews_free(&set);
}

/* A run says both accuracies: here dev is the test set, with its labels hidden. */
TEST(gold_labels_of_a_run) {
    sentiment_settings set = demo_settings("2");
    sentiment_result dev, test;
    reviews real;
    buffer hidden = {0}, gold = {0};
    ml_model *model = trainable_model();
    REQUIRE(model && reviews_read(&real, set.dev, 2));
    for (int i = 0; i < real.n; i++) {
        char line[2048];
        buffer_append(&hidden, line,
                      (size_t)snprintf(line, sizeof line, "1 ||| %s\n", real.rows[i].sentence));
        buffer_append(&gold, line, (size_t)snprintf(line, sizeof line, "%d\n", real.rows[i].label));
    }
    set.test = in_folder("hidden.txt"), set.test_gold = in_folder("gold.txt");
    CHECK(file_write(set.test, hidden.bytes, hidden.length));
    CHECK(file_write(set.test_gold, gold.bytes, gold.length));
    set.train = set.dev;
    set.epochs = 1;
    capture_begin();
    int is_done = sentiment_run(&set, model, &dev, &test);
    const char *printed = capture_end(), *line = strstr(printed, "\nreal test acc :: ");
    REQUIRE(is_done && line && strstr(printed, "are all 1: placeholders?"));
    CHECK(test.gold == dev.accuracy && test.accuracy != dev.accuracy && dev.gold == -1);
    CHECK_NEAR(strtod(line + 18, NULL), dev.accuracy, 6e-4, 0); /* three digits */
    CHECK(strstr(line, "gold.txt)\n"));
    ml_model_free(model);
    reviews_free(&real);
    buffer_free(&hidden), buffer_free(&gold);
    remove(set.test_out), remove(set.model_out);
}

/* A text is cut before a character that has no room, and only then. */
TEST(cut_to_the_room) {
    static const char text[] = "a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80z"; /* of 1 to 4 bytes, and 1 */
    static const size_t left[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 11, 11};
    for (size_t n = 0; n < sizeof left / sizeof *left; n++)
        CHECK(bytes_with_room(text, ml_tokenizer_encode_size(n)) == left[n]);
    CHECK(bytes_with_room("\xa9\xa9\xa9\xa9\xa9\xa9", ml_tokenizer_encode_size(5)) == 2); /* no UTF-8 */
    CHECK(bytes_with_room("a", 0) == 0);
}

int main(void) {
    if (!folder_begin("sentiment")) return 1;
    RUN(zero_shot_layer_full);
    RUN(zero_shot_rms_full);
    RUN(zero_shot_rms_causal);
    RUN(likelihood_by_the_chain_rule);
    RUN(padding_that_is_not_there);
    RUN(accuracy_and_f1);
    RUN(lines);
    RUN(lines_as_python_reads_them);
    RUN(bad_lines);
    RUN(label_names_of_python);
    RUN(bad_label_names);
    RUN(cut_to_the_context);
    RUN(cut_to_the_room);
    RUN(logits_that_are_not_finite);
    RUN(sentence_length_in_mode_reference);
    RUN(sentence_length_in_mode_llama);
    RUN(neither_bos_nor_padding);
    RUN(progress_without_a_terminal);
    RUN(demo_finetune);
    RUN(demo_lora);
    RUN(training_settings);
    RUN(what_an_epoch_says);
    RUN(gold_labels);
    RUN(gold_labels_of_a_run);
    return !folder_end() || test_report("test_sentiment");
}
