/* The options of every experiment, and the order of its steps. */
#include "tuning.h"
#include "../../common/file.h"
#include "../../common/threads.h"

enum { N_SHARED = 30, MAX_OWN = 40 };

void tuning_defaults(tuning_settings *set) {
    memset(set, 0, sizeof *set);
    set->model = "examples/models/stories.gguf";
    set->task = "sst";
    set->pooling = "last";
    set->schedule = "linear";
    set->epochs = 3;
    set->batch = 16;
    set->seed = 1;
    set->max_tokens = 4096;
    set->lr = 5e-4f;
    set->warmup = 0.06f;
    set->clip = 1;
}

/* Fills in the table of the shared options; how many they are. */
static int shared_options(tuning_settings *set, option *to) {
    const option table[N_SHARED] = {
        {"--model", OPTION_TEXT, &set->model, "in any known format (examples/models/stories.gguf)"},
        {"--tokenizer", OPTION_TEXT, &set->tokenizer, "its tokenizer (in the model, or next to it)"},
        {"--task", OPTION_TEXT, &set->task, "of --data: sst (default), cfimdb, or another name"},
        {"--data", OPTION_TEXT, &set->data, "folder with TASK-train.txt ... (data or ../shared/data)"},
        {"--train", OPTION_TEXT, &set->train, "lines of \"label ||| sentence\" (by --task, as the next)"},
        {"--dev", OPTION_TEXT, &set->dev, "chooses the weights that are kept"},
        {"--test", OPTION_TEXT, &set->test, "is measured at the end"},
        {"--test-gold", OPTION_TEXT, &set->test_gold,
         "its real labels, one a line (TASK-test-gold.txt, if any)"},
        {"--label-names", OPTION_TEXT, &set->labels, "a JSON list"},
        {"--epochs", OPTION_INT, &set->epochs, "0: only measure (3)"},
        {"--batch", OPTION_INT, &set->batch, "sentences of a step (16)"},
        {"--lr", OPTION_FLOAT, &set->lr, "learning rate (5e-4)"},
        {"--head_lr", OPTION_FLOAT, &set->head_lr, "of the classifier (that of --lr)"},
        {"--schedule", OPTION_TEXT, &set->schedule, "linear (default), cosine or constant"},
        {"--warmup", OPTION_FLOAT, &set->warmup, "share of the steps with a rising rate (0.06)"},
        {"--clip", OPTION_FLOAT, &set->clip, "largest norm of the gradient; 0: any (1)"},
        {"--weight_decay", OPTION_FLOAT, &set->weight_decay, "not of norms and biases (0)"},
        {"--dropout", OPTION_FLOAT, &set->dropout, "of the classifier's input (0)"},
        {"--word_dropout", OPTION_FLOAT, &set->word_dropout,
         "share of the tokens that training leaves out (0)"},
        {"--smoothing", OPTION_FLOAT, &set->smoothing, "of the labels (0)"},
        {"--pooling", OPTION_TEXT, &set->pooling, "last (default), mean, max, attention or layers"},
        {"--head_hidden", OPTION_INT, &set->head_hidden,
         "width of a hidden layer of the classifier (0: none)"},
        {"--mask", OPTION_TEXT, &set->mask, "causal or full (as the model)"},
        {"--norm", OPTION_TEXT, &set->norm, "rms or layer (as the model)"},
        {"--max_len", OPTION_INT, &set->max_len, "tokens of a sentence, the rest is cut off (the context)"},
        {"--max_tokens", OPTION_INT, &set->max_tokens,
         "of one pass; a batch takes several if need be (4096)"},
        {"--eval_every", OPTION_INT, &set->eval_every, "steps between two measurements on dev (an epoch)"},
        {"--patience", OPTION_INT, &set->patience,
         "stop after so many measurements without a gain (0: never)"},
        {"--seed", OPTION_INT, &set->seed, "of all random choices (1)"},
        {"--threads", OPTION_INT, &set->threads, "how many (OMP_NUM_THREADS or all processors)"},
    };
    memcpy(to, table, sizeof table);
    return N_SHARED;
}

static int is_one_of(const char *name, const char *value, const char *words) {
    char list[64];
    snprintf(list, sizeof list, "%s", words);
    for (char *word = strtok(list, ", "); word; word = strtok(NULL, ", "))
        if (strcmp(word, "or") != 0 && strcmp(word, value) == 0) return 1;
    return complain("%s is %s, not %s", name, words, value);
}

static int is_share(float x) { return x >= 0 && x < 1; }

/* Whether the numbers make sense. */
static int check_settings(const tuning_settings *s) {
    if (s->epochs < 0 || s->batch < 1 || s->batch > 65536 || s->max_tokens < 1 || s->max_tokens > 1 << 24)
        return complain("--batch is 1 to 65536, --max_tokens is positive, --epochs is not negative");
    if (s->max_len < 0 || s->eval_every < 0 || s->patience < 0 || s->head_hidden < 0 ||
        s->head_hidden > 65536)
        return complain("--max_len, --eval_every, --patience and --head_hidden are not negative");
    if (!(s->lr > 0) || !(s->head_lr >= 0) || !(s->clip >= 0) || !(s->weight_decay >= 0))
        return complain("--lr is positive; --head_lr, --clip and --weight_decay are not negative");
    if (!is_share(s->dropout) || !is_share(s->word_dropout) || !is_share(s->smoothing))
        return complain("--dropout, --word_dropout and --smoothing are 0 to less than 1");
    if (!(s->warmup >= 0 && s->warmup <= 1)) return complain("--warmup is 0 to 1");
    if (s->threads < 0 || s->threads > 1024) return complain("--threads is 1 to 1024");
    return is_one_of("--schedule", s->schedule, "linear, cosine or constant") &&
           is_one_of("--pooling", s->pooling, "last, mean, max, attention or layers") &&
           (!s->mask || is_one_of("--mask", s->mask, "causal or full")) &&
           (!s->norm || is_one_of("--norm", s->norm, "rms or layer"));
}

static int load_model(tuning *t) {
    const tuning_settings *s = &t->set;
    ml_model_load_desc desc = {0};
    ml_error error;
    desc.type = ML_F32;
    desc.tokenizer = s->tokenizer;
    if (s->mask) desc.mask = strcmp(s->mask, "full") == 0 ? ML_MASK_FULL : ML_MASK_CAUSAL;
    if (s->norm) desc.norm = strcmp(s->norm, "layer") == 0 ? ML_NORM_LAYER : ML_NORM_RMS;
    if (!loaded(s->model, ml_model_load(s->model, &desc, &t->model, &error), &error)) return 0;
    if (!t->model->tokenizer)
        return complain("no tokenizer in or next to %s; name one with --tokenizer FILE", s->model);
    size_t n = (size_t)t->model->n_tensors;
    t->weights = (ml_tensor *)malloc(n * sizeof *t->weights);
    t->private_part->states =
        (ml_tensor *)calloc((size_t)t->model->config.n_layers + 1, sizeof *t->private_part->states);
    if (!t->weights || !t->private_part->states) return no_memory(s->model);
    memcpy(t->weights, t->model->tensors, n * sizeof *t->weights);
    t->llama.model = t->model;
    t->llama.weights = t->weights;
    t->llama.places = t->method.places;
    t->llama.insert = t->method.insert;
    t->llama.user = t;
    if (strcmp(s->pooling, "layers") == 0) t->llama.states = t->private_part->states;
    return 1;
}

static void make_groups(tuning *t) {
    const tuning_settings *s = &t->set;
    const ml_group groups[TUNING_OWN_GROUPS] = {{s->lr, s->weight_decay, 0},
                                                {s->lr, 0, 0},
                                                {s->head_lr > 0 ? s->head_lr : s->lr, s->weight_decay, 0}};
    memcpy(t->groups, groups, sizeof groups);
    t->n_groups = TUNING_OWN_GROUPS;
    t->group = TUNING_WEIGHTS;
}

int tuning_open(tuning *t, const tuning_settings *set, const tuning_method *method) {
    memset(t, 0, sizeof *t);
    t->set = *set;
    t->method = *method;
    if (!t->set.threads) t->set.threads = default_threads();
    if (!check_settings(set)) return 0;
    t->private_part = (tuning_private *)calloc(1, sizeof *t->private_part);
    if (!t->private_part) return no_memory("an experiment");
    ml_random_seed(&t->random, (uint64_t)set->seed);
    make_groups(t);
    if ((method->check && !method->check(t)) || !load_model(t) || !tuning_read_data(t)) return 0;
    if (!(method->setup ? method->setup(t) : tuning_train_model(t, 0))) return 0;
    t->group = TUNING_HEAD;
    return tuning_make_head(t) && tuning_make_batches(t);
}

void tuning_close(tuning *t) {
    tuning_private *p = t->private_part;
    ml_optimizer_free(t->optimizer);
    tuning_free_parameters(t);
    reviews_free(&t->train);
    reviews_free(&t->dev);
    reviews_free(&t->test);
    free(t->labels.text);
    free(t->gold);
    free(t->weights);
    ml_model_free(t->model);
    if (!p) return;
    free(p->states), free(p->memory), free(p->steps), free(p->order), free(p->every);
    free(p->tokens), free(p->starts), free(p->truth), free(p->kept), free(p->best);
    free(p);
    t->private_part = NULL;
}

/* The options as they were given, without those of files that are written. */
static void write_line(char *to, size_t size, int argc, char **argv) {
    size_t n = 0;
    *to = 0;
    for (int i = 1; i < argc && n < size; i++) {
        int is_output = option_same(argv[i], "--csv") || option_same(argv[i], "--save");
        if (is_output) i++;
        if (!is_output && strncmp(argv[i], "--csv=", 6) != 0 && strncmp(argv[i], "--save=", 7) != 0)
            n += (size_t)snprintf(to + n, size - n, "%s%s", n ? " " : "", argv[i]);
    }
}

static int run(tuning *t, const tuning_settings *set, const tuning_method *method, const char *line) {
    if (!tuning_open(t, set, method)) return 0;
    strcpy(t->line, line);
    return tuning_train(t) && tuning_report(t, t->method.name, &t->result) &&
           (!t->method.finish || t->method.finish(t)) &&
           (!set->save || (t->method.save ? t->method.save(t, set->save) : tuning_save(t, set->save)));
}

int tuning_main(int argc, char **argv, const tuning_method *method, const option *own, int n_own) {
    tuning_settings set;
    option options[N_SHARED + MAX_OWN + 3];
    tuning t;
    char line[sizeof t.line];
    tuning_defaults(&set);
    int n = shared_options(&set, options);
    const option last[3] = {{"--csv", OPTION_TEXT, &set.csv, "append a row with the result to this file"},
                            {"--save", OPTION_TEXT, &set.save, "file for what was trained"},
                            {"--help", OPTION_FLAG, &set.help, "this list"}};
    for (int i = 0; i < n_own && i < MAX_OWN; i++) options[n++] = own[i];
    for (int i = 0; i < 3; i++) options[n++] = last[i];
    if (!options_read(argc, argv, options, n, NULL, 0)) return 2;
    if (set.help) {
        printf("usage: %s [options]\n", method->program);
        options_print(stdout, options, n);
        return 0;
    }
    const used_file inputs[] = {{"--model", set.model},
                                {"--train", set.train},
                                {"--dev", set.dev},
                                {"--test", set.test},
                                {"--csv", set.csv}};
    const used_file output = {"--save", set.save};
    if (!check_settings(&set)) return 2;
    if (set.save && (!outputs_ready(&output, 1, inputs, 5) || !file_can_be_saved(set.save))) return 1;
    write_line(line, sizeof line, argc, argv);
    int ok = run(&t, &set, method, line);
    tuning_close(&t);
    return !ok;
}
