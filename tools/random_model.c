/* random_model: a model of random weights as a GGUF, to measure speed with: of a shape and a type, with a tokenizer
   so that other programs load it too.
   build/random_model OUT.gguf --shape 1.1B --type Q4_K_M --tokenizer tokenizer.model */
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "../examples/common/types.h"
#include "random_model.h"

typedef struct settings {
    const char *output, *shape, *type, *tokenizer;
    int seed, help;
} settings;

static int make(const settings *s) {
    ml_save_desc save = {ML_GGUF, ML_TYPE_NONE, NULL, NULL};
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    const used_file input = {"--tokenizer", s->tokenizer}, output = {"OUT", s->output};
    if (!gguf_ready(&output, &input, 1)) return 0;
    if (s->tokenizer &&
        !loaded(s->tokenizer, ml_tokenizer_load(s->tokenizer, NULL, &tokenizer, &error), &error))
        return 0;
    ml_model *model = random_model(model_shape_named(s->shape), saved_type(s->type), s->seed);
    int fits = model && (!tokenizer || succeeded(ml_model_set_tokenizer(model, tokenizer, &error), &error));
    if (!fits) ml_tokenizer_free(tokenizer);
    int ok = fits && loaded(s->output, ml_model_save(model, s->output, &save, &error), &error);
    ml_model_free(model);
    return ok;
}

static int check_settings(const settings *s) {
    char list[TYPE_LIST_SIZE];
    if (!model_shape_named(s->shape)) return complain("--shape is 15M, 42M, 110M or 1.1B, not %s", s->shape);
    if (!saved_type(s->type)) return complain("--type is %s, not %s", saved_types(list), s->type);
    return 1;
}

int main(int argc, char **argv) {
    settings s = {NULL, "42M", "F32", NULL, 1, 0};
    const option options[] = {
        {"--shape", OPTION_TEXT, &s.shape, "15M, 42M, 110M or 1.1B (42M)"},
        {"--type", OPTION_TEXT, &s.type, "of the matrices, as convert has them (F32)"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "goes into the file; of up to 32000 pieces (none)"},
        {"--seed", OPTION_INT, &s.seed, "of the weights (1)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, &s.output, 1)) return 2;
    if (s.help || !s.output) {
        fprintf(s.help ? stdout : stderr, "usage: random_model OUT.gguf [options]\n");
        options_print(s.help ? stdout : stderr, options, n_options);
        return s.help ? 0 : 2;
    }
    return check_settings(&s) ? !make(&s) : 2;
}
