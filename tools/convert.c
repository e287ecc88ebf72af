/* convert: any model file that minillama.h reads, to GGUF, safetensors or PyTorch. GGUF to GGUF keeps all other keys.
   cc -O2 -DMINILLAMA_IMPLEMENTATION -I.. convert.c -o convert -lm */
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "../examples/common/types.h"

static const char usage[] =
    "usage: convert IN OUT [options]\n"
    "  IN           PyTorch .pt, GGUF, safetensors (with config.json next to it) or llama2.c's .bin; of a "
    "model in\n"
    "               several files the folder, the .index.json or the first .gguf\n"
    "  OUT          its ending selects the format: .gguf, .safetensors (replaces config.json next to it), or "
    ".pt\n"
    "               (for the code of the course that run_llama follows)\n";

typedef struct settings {
    const char *files[2], *type, *tokenizer, *name, *adapter;
    float scale; /* of the adapter */
    int no_head, help;
} settings;

static int check_settings(const settings *s) {
    const char *out = s->files[1];
    char list[TYPE_LIST_SIZE];
    if (!out) return fprintf(stderr, "%s", usage), 0;
    if (!ends_with(out, ".gguf") && format_of(out) == ML_GGUF)
        return complain("OUT must end in .gguf, .safetensors or .pt, not %s", out);
    if (s->type && !saved_type(s->type)) return complain("--type is %s, not %s", saved_types(list), s->type);
    if (!(s->scale > 0)) return complain("--lora-scale is above 0");
    if (s->scale != 1 && !s->adapter) return complain("--lora-scale is for --merge-lora");
    if (s->name && format_of(out) != ML_GGUF) return complain("--name is for a GGUF, not %s", out);
    return 1;
}

/* OUT must not be what is read, nor must the config.json that is written next to a safetensors. */
static int files_ready(const settings *s) {
    char config[4096];
    const char *out = s->files[1];
    const used_file inputs[] = {
        {"IN", s->files[0]}, {"--merge-lora", s->adapter}, {"--tokenizer", s->tokenizer}};
    const used_file outputs[] = {{"OUT", out}, {"next to OUT", config_beside(out, 0, config)}};
    return outputs_ready(outputs, 2, inputs, 3) && models_spared(outputs, 2, inputs, 2) &&
           config_spared(&outputs[0], outputs[1].path) && file_can_be_saved(out);
}

/* Adds --merge-lora's adapter to the weights. */
static int merge(const settings *s, ml_model *model) {
    ml_error error;
    if (!s->adapter) return 1;
    ml_lora *lora = load_adapter(s->adapter, model, s->scale);
    int ok = lora && succeeded(ml_lora_merge(lora, model, &error), &error);
    ml_lora_free(lora);
    return ok;
}

/* Is a tensor named like a classifier's, whatever is before, between or after these words? */
static int is_of_head(const char *name) {
    static const char *const words[] = {"score.", "cls.output.", "classifier_head."};
    for (; name; name = strchr(name, '.') ? strchr(name, '.') + 1 : NULL)
        for (int i = 0; i < 3; i++)
            if (strncmp(name, words[i], strlen(words[i])) == 0) return 1;
    return 0;
}

/* Does a file have a classifier, even one that cannot be read? Not what is no archive: Meta's pieces of a model. */
static int has_head(const char *path) {
    ml_archive *archive = NULL;
    int is_there = 0;
    ml_archive_load(path, NULL, &archive, NULL);
    for (size_t i = 0; archive && i < archive->n_arrays; i++) is_there |= is_of_head(archive->arrays[i].name);
    ml_archive_free(archive);
    return is_there;
}

/* The classifier of a file; NULL if it has none. Returns 0 after saying why one cannot be read. */
static int load_head(const char *path, const ml_model *model, ml_head **head) {
    ml_error error;
    ml_result result = ml_head_load(path, model, NULL, head, &error);
    return !result || (result != ML_ERROR_MEMORY && !has_head(path)) || loaded(path, result, &error);
}

/* The classifier that is saved, the adapter's or the model's; NULL if there is none. */
static int find_head(const settings *s, const ml_model *model, ml_head **head) {
    *head = NULL;
    if (s->no_head) return 1;
    if (s->adapter && !load_head(s->adapter, model, head)) return 0;
    if (!*head && !load_head(s->files[0], model, head)) return 0;
    if (*head) printf("with its classifier of %d labels\n", (*head)->n_classes);
    return 1;
}

static int convert(const settings *s) {
    const char *in = s->files[0], *out = s->files[1];
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    load.tokenizer = s->tokenizer;
    load.adapter = s->adapter;
    if (s->adapter) load.type = ML_F32;
    if (!loaded(in, ml_model_load(in, &load, &model, &error), &error)) return 0;
    ml_type type = s->type ? saved_type(s->type) : ML_TYPE_NONE;
    ml_head *head;
    int ok = find_head(s, model, &head);
    ml_save_desc save = {format_of(out), type, s->name, head};
    ok = ok && merge(s, model) && loaded(out, ml_model_save(model, out, &save, &error), &error);
    if (ok) say_halves(model, type);
    if (ok && save.format != ML_GGUF && model->tokenizer)
        fprintf(stderr, "the tokenizer is not in %s: %sgive --tokenizer %s wherever that is used\n", out,
                s->tokenizer ? "" : "copy its file there, or ", s->tokenizer ? s->tokenizer : "FILE");
    if (ok && save.format == ML_GGUF && !model->tokenizer && has_other_tokenizer(in, &error))
        fprintf(stderr, "%s (--tokenizer FILE)\n", error.text);
    else if (ok && save.format == ML_GGUF && !model->tokenizer)
        fprintf(stderr, "no tokenizer was found, so none is in %s; name one by --tokenizer\n", out);
    ml_head_free(head);
    ml_model_free(model);
    return ok;
}

int main(int argc, char **argv) {
    settings s = {{NULL, NULL}, NULL, NULL, NULL, NULL, 1, 0, 0};
    char list[TYPE_LIST_SIZE], types[TYPE_LIST_SIZE + 40];
    snprintf(types, sizeof types, "%s for the matrices (as they are)", saved_types(list));
    const option options[] = {
        {"--type", OPTION_TEXT, &s.type, types},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer,
         "tokenizer.model, tokenizer.json, llama2.c's .bin or a GGUF; goes into a GGUF only"},
        {"--name", OPTION_TEXT, &s.name, "general.name of a GGUF (that of IN)"},
        {"--merge-lora", OPTION_TEXT, &s.adapter, "adds this adapter to the weights (F32 unless --type)"},
        {"--lora-scale", OPTION_FLOAT, &s.scale, "how much of it (1)"},
        {"--no-head", OPTION_FLAG, &s.no_head, "leaves a classifier out, even one that cannot be read"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, s.files, 2)) return 2;
    if (s.help) {
        fputs(usage, stdout);
        options_print(stdout, options, n_options);
        return 0;
    }
    if (!check_settings(&s)) return 2;
    return !(files_ready(&s) && convert(&s) && output_written());
}
