/* convert: any model file that minillama.h reads, to GGUF or safetensors. GGUF to GGUF keeps all other keys.
   cc -O2 -DMINILLAMA_IMPLEMENTATION -I.. convert.c -o convert -lm */
#include "../examples/common/options.h"
#include "../examples/common/report.h"

static const char usage[] =
    "usage: convert IN OUT [options]\n"
    "  IN           PyTorch .pt, GGUF, safetensors (with config.json next to it) or llama2.c's .bin; of a "
    "model in\n"
    "               several files the folder, the .index.json or the first .gguf\n"
    "  OUT          its ending selects the format: .gguf, or .safetensors (writes config.json next to it)\n";

typedef struct settings {
    const char *files[2], *type, *tokenizer, *name;
    int help;
} settings;

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int check_settings(const settings *s) {
    const char *out = s->files[1];
    if (!out) return fprintf(stderr, "%s", usage), 0;
    if (!ends_with(out, ".gguf") && !ends_with(out, ".safetensors"))
        return complain("OUT must end in .gguf or .safetensors, not %s", out);
    if (s->type && (ml_type_from_name(s->type) < ML_F32 || ml_type_from_name(s->type) > ML_Q4_0))
        return complain("--type is F32, F16, BF16, Q8_0 or Q4_0, not %s", s->type);
    return 1;
}

static int convert(const settings *s) {
    const char *in = s->files[0], *out = s->files[1];
    ml_model_load_desc load = {0};
    ml_model *model;
    ml_error error;
    load.tokenizer = s->tokenizer;
    if (!loaded(in, ml_model_load(in, &load, &model, &error), &error)) return 0;
    ml_save_desc save = {ends_with(out, ".gguf") ? ML_GGUF : ML_SAFETENSORS, ml_type_from_name(s->type),
                         s->name, NULL};
    int ok = loaded(out, ml_model_save(model, out, &save, &error), &error);
    if (ok && save.format == ML_SAFETENSORS && model->tokenizer)
        fprintf(stderr, "the tokenizer is not written: copy its file next to %s\n", out);
    if (ok && save.format == ML_GGUF && !model->tokenizer)
        fprintf(stderr, "no tokenizer was found, so none is in %s; name one by --tokenizer\n", out);
    ml_model_free(model);
    return ok;
}

int main(int argc, char **argv) {
    settings s = {{NULL, NULL}, NULL, NULL, NULL, 0};
    const option options[] = {
        {"--type", OPTION_TEXT, &s.type, "F32, F16, BF16, Q8_0 or Q4_0 for the matrices (as they are)"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer,
         "tokenizer.model, llama2.c's .bin or a GGUF; goes into a GGUF"},
        {"--name", OPTION_TEXT, &s.name, "general.name of a GGUF (that of IN)"},
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
    return !convert(&s);
}
