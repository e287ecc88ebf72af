/* convert: any model file that minillama.h reads, to GGUF or safetensors.
   cc -O2 -std=c99 -I.. convert.c -o convert -lm */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

static const char usage[] =
    "usage: convert IN OUT [--type TYPE] [--tokenizer FILE] [--name NAME]\n"
    "  IN           PyTorch .pt, GGUF, safetensors (with config.json beside it) or llama2.c's .bin\n"
    "  OUT          its ending says the format: .gguf, or .safetensors (writes config.json beside it)\n"
    "  --type       F32, F16, BF16, Q8_0 or Q4_0 for the matrices; default: as they are\n"
    "  --tokenizer  tokenizer.model, llama2.c's tokenizer .bin or a GGUF; goes into a GGUF\n"
    "  --name       general.name of a GGUF\n";

typedef struct options {
    const char *in, *out, *type, *tokenizer, *name;
} options;

static int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Where the value of an option is to be stored; NULL for an unknown option. */
static const char **option_value(options *o, const char *name) {
    if (strcmp(name, "--type") == 0) return &o->type;
    if (strcmp(name, "--tokenizer") == 0) return &o->tokenizer;
    if (strcmp(name, "--name") == 0) return &o->name;
    return NULL;
}

/* 0, or the exit status after having said what is wrong. */
static int parse(options *o, int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        const char **value;
        if (strncmp(argv[i], "--", 2) != 0) {
            if (o->out)
                return fprintf(stderr, "convert: one IN and one OUT, but there is also %s\n%s", argv[i],
                               usage),
                       2;
            *(o->in ? &o->out : &o->in) = argv[i];
            continue;
        }
        value = option_value(o, argv[i]);
        if (!value) return fprintf(stderr, "convert: unknown option %s\n%s", argv[i], usage), 2;
        if (i + 1 == argc) return fprintf(stderr, "convert: %s needs a value\n%s", argv[i], usage), 2;
        *value = argv[++i];
    }
    if (!o->out) return fprintf(stderr, "convert: IN and OUT are needed\n%s", usage), 2;
    if (!ends_with(o->out, ".gguf") && !ends_with(o->out, ".safetensors"))
        return fprintf(stderr, "convert: OUT must end in .gguf or .safetensors, not %s\n", o->out), 2;
    if (o->type && (ml_type_from_name(o->type) < ML_F32 || ml_type_from_name(o->type) > ML_Q4_0))
        return fprintf(stderr, "convert: --type is F32, F16, BF16, Q8_0 or Q4_0, not %s\n", o->type), 2;
    return 0;
}

/* The library's sentence, with the file's name in front where it is not in it. */
static int failed(const char *path, const ml_error *error) {
    if (strstr(error->text, path))
        fprintf(stderr, "convert: %s\n", error->text);
    else
        fprintf(stderr, "convert: %s: %s\n", path, error->text);
    return 1;
}

int main(int argc, char **argv) {
    options o;
    ml_load_desc load;
    ml_save_desc save;
    ml_model *model;
    ml_error error;
    int status;
    if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0))
        return fputs(usage, stdout), 0;
    memset(&o, 0, sizeof o);
    memset(&load, 0, sizeof load);
    memset(&save, 0, sizeof save);
    status = parse(&o, argc, argv);
    if (status) return status;
    load.tokenizer = o.tokenizer;
    if (ml_load(o.in, &load, &model, &error)) return failed(o.in, &error);
    save.format = ends_with(o.out, ".gguf") ? ML_GGUF : ML_SAFETENSORS;
    save.type = ml_type_from_name(o.type);
    save.name = o.name;
    if (ml_save(model, o.out, &save, &error)) {
        ml_free(model);
        return failed(o.out, &error);
    }
    if (save.format == ML_SAFETENSORS && model->tokenizer)
        fprintf(stderr, "convert: the tokenizer is not written: copy its file beside %s\n", o.out);
    if (save.format == ML_GGUF && !model->tokenizer)
        fprintf(stderr, "convert: no tokenizer was found, so none is in %s; name one by --tokenizer\n",
                o.out);
    ml_free(model);
    return 0;
}
