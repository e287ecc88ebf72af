/* The order of an experiment's steps. */
#include "tuning.h"
#include "../../common/threads.h"

enum { MAX_OWN = 40 };

static int load_model(tuning *t) {
    const tuning_settings *s = &t->set;
    ml_model_load_desc desc = {0};
    ml_error error;
    desc.type = ML_F32;
    desc.tokenizer = s->tokenizer;
    desc.adapter = t->adapter;
    if (s->mode) desc.mask = ML_MASK_CAUSAL, desc.norm = ML_NORM_RMS; /* llama */
    if (s->mask) desc.mask = strcmp(s->mask, "full") == 0 ? ML_MASK_FULL : ML_MASK_CAUSAL;
    if (s->norm) desc.norm = strcmp(s->norm, "layer") == 0 ? ML_NORM_LAYER : ML_NORM_RMS;
    if (!loaded(s->model, ml_model_load(s->model, &desc, &t->model, &error), &error)) return 0;
    if (!tokenizer_ready(t->model, s->model, "--tokenizer")) return 0;
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

/* A method of its own ids: what is for a Llama only is refused. */
static int is_without_model(tuning *t) {
    const tuning_settings *s = &t->set;
    if (s->mask || s->norm || s->mode || s->max_len || s->head_hidden || strcmp(s->pooling, "last") != 0)
        return complain(
            "--mask, --norm, --mode, --max_len, --head_hidden and --pooling are for a Llama, and %s has none",
            t->method.program);
    if (s->head_lr > 0 && t->no_head)
        return complain("--head_lr is of a classifier, and %s has none of its own", t->method.program);
    t->set.model = "none";
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
    if (!tuning_check_settings(set)) return 0;
    t->private_part = (tuning_private *)calloc(1, sizeof *t->private_part);
    if (!t->private_part) return no_memory("an experiment");
    ml_random_seed(&t->random, (uint64_t)set->seed);
    make_groups(t);
    if ((method->check && !method->check(t)) || !(method->encode ? is_without_model(t) : load_model(t)) ||
        !tuning_read_data(t))
        return 0;
    if (!(t->method.setup ? t->method.setup(t) : tuning_train_model(t, 0))) return 0;
    t->group = TUNING_HEAD;
    return (t->no_head || tuning_make_head(t)) && tuning_make_batches(t) &&
           (!t->method.ready || t->method.ready(t));
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
    free(p->tokens), free(p->source), free(p->starts), free(p->truth), free(p->kept), free(p->best);
    free(p);
    t->private_part = NULL;
}

/* How many words of a command line name a file that is written: 0, or 1 as in --csv=FILE, or 2. */
static int output_words(const char *word) {
    static const char *const outputs[] = {"--csv", "--save", "--save_model"};
    char name[16];
    size_t n = strcspn(word, "=");
    snprintf(name, sizeof name, "%.*s", (int)(n < sizeof name ? n : sizeof name), word);
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
        if (option_same(name, outputs[i])) return word[n] ? 1 : 2;
    return 0;
}

/* The options as they were given, without those of files that are written. */
static void write_line(char *to, size_t size, int argc, char **argv) {
    size_t n = 0;
    *to = 0;
    for (int i = 1; i < argc && n < size; i++) {
        int skipped = output_words(argv[i]);
        if (skipped)
            i += skipped - 1;
        else
            n += (size_t)snprintf(to + n, size - n, "%s%s", n ? " " : "", argv[i]);
    }
}

/* Whether any of the model's own weights learns, and not only what a method adds. */
static int model_learns(const tuning *t) {
    for (int i = 0; i < t->n_parameters; i++)
        for (int k = 0; k < t->model->n_tensors; k++)
            if (t->parameters[i]->tensor == &t->weights[k]) return 1;
    return 0;
}

/* The model alone, for training on another task. */
static int save_model(const tuning *t, const char *path) {
    ml_save_desc desc = {format_of(path), ML_TYPE_NONE, NULL, NULL};
    ml_error error;
    return loaded(path, ml_model_save(t->model, path, &desc, &error), &error);
}

int tuning_spares_inputs(const tuning *t, const used_file *outputs, int n) {
    const tuning_settings *set = &t->set;
    const used_file inputs[] = {{"--model", t->model ? set->model : NULL},
                                {"--tokenizer", set->tokenizer},
                                {"--train", set->train},
                                {"--dev", set->dev},
                                {"--test", set->test},
                                {"--test-gold", set->test_gold},
                                {"--label-names", set->labels}};
    return outputs_ready(outputs, n, inputs, 7) &&
           outputs_ready(outputs, n, t->private_part->inputs, t->private_part->n_paths) &&
           models_spared(outputs, n, inputs, 1);
}

/* Whether the files that the options name can be written, and none is also read or belongs to the model. */
static int can_write(const tuning *t, const tuning_settings *set, int is_adapter) {
    char configs[2][4096];
    const used_file outputs[] = {{"--save", set->save},
                                 {"--save_model", set->save_model},
                                 {"--csv", set->csv},
                                 {"next to --save", config_beside(set->save, is_adapter, configs[0])},
                                 {"next to --save_model", config_beside(set->save_model, 0, configs[1])}};
    return tuning_spares_inputs(t, outputs, 5) && config_spared(&outputs[0], outputs[3].path) &&
           config_spared(&outputs[1], outputs[4].path) && file_can_be_saved(set->save) &&
           file_can_be_saved(set->save_model);
}

/* Whether what is to be saved has a place in its file. A method that saves by itself has its own format. */
static int can_save(const tuning *t) {
    const tuning_settings *set = &t->set;
    if (set->save &&
        (!tuning_can_save(t) || (!t->method.save && !fits_format(set->save, t->model, tuning_pooling(t), 0))))
        return 0;
    if (!set->save_model) return 1;
    if (!t->model) return complain("--save_model: %s has no model", t->method.program);
    if (!model_learns(t))
        return complain("--save_model: %s leaves the model's own weights as they are", t->method.name);
    return fits_format(set->save_model, t->model, ML_POOL_LAST, 0);
}

/* Each step even where another fails: a file that cannot be saved loses no result, and the other way round. */
static int keep_result(tuning *t) {
    const tuning_settings *set = &t->set;
    int ok = tuning_report(t, t->method.name, &t->result);
    if (set->save) ok &= t->method.save ? t->method.save(t, set->save) : tuning_save(t, set->save);
    if (set->save_model) ok &= save_model(t, set->save_model);
    if (t->method.finish) ok &= t->method.finish(t);
    return ok;
}

static int run(tuning *t, const tuning_settings *set, const tuning_method *method, const char *line) {
    if (!tuning_open(t, set, method) || !can_write(t, set, t->method.save != NULL) || !can_save(t)) return 0;
    strcpy(t->line, line);
    return tuning_train(t) && (!t->method.trained || t->method.trained(t)) && keep_result(t) &&
           output_written();
}

int tuning_given(const tuning *t, const char *name) {
    const tuning_command *c = t->set.command;
    return c && option_given(c->argc, c->argv, c->options, c->n_options, name);
}

int tuning_main(int argc, char **argv, const tuning_method *method, const option *own, int n_own) {
    tuning_settings set;
    option table[TUNING_OPTIONS + MAX_OWN + 4], *options = table;
    tuning t;
    char line[sizeof t.line];
    tuning_defaults(&set);
    int n = tuning_options(&set, options);
    if (method->encode) options += TUNING_MODEL_OPTIONS, n -= TUNING_MODEL_OPTIONS, set.model = NULL;
    const option last[4] = {
        {"--csv", OPTION_TEXT, &set.csv, "append a row with the result to this file"},
        {"--save", OPTION_TEXT, &set.save, "file for what was trained"},
        {"--save_model", OPTION_TEXT, &set.save_model, "file for the model without a classifier"},
        {"--help", OPTION_FLAG, &set.help, "this list"}};
    for (int i = 0; i < n_own && i < MAX_OWN; i++) options[n++] = own[i];
    for (int i = 0; i < 4; i++) options[n++] = last[i];
    if (!options_read(argc, argv, options, n, NULL, 0)) return 2;
    if (set.help) {
        printf("usage: %s [options]\n", method->program);
        options_print(stdout, options, n);
        return 0;
    }
    if (!tuning_check_settings(&set)) return 2;
    const tuning_command command = {argc, argv, options, n};
    set.command = &command;
    write_line(line, sizeof line, argc, argv);
    int ok = run(&t, &set, method, line);
    tuning_close(&t);
    return !ok;
}
