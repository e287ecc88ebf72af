/* write_stories MODEL --output FILE --megabytes N: lets a model write texts, one after the other, from nothing but the mark that
   begins a text; a separator line stands between them. A small model that learns from a larger one's texts is distilled
   by them (Hinton et al. 2015; Kim & Rush 2016).
   make build/write_stories && build/write_stories stories15M.gguf --output stories.txt --megabytes 100 */
#include <stdio.h>
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "../examples/options.h"

typedef struct writer {
    FILE *file;
    long long bytes;
} writer;

static int write_token(void *user, int32_t id, const char *text, size_t n_bytes) {
    writer *out = (writer *)user;
    (void)id;
    out->bytes += (long long)n_bytes;
    return fwrite(text, 1, n_bytes, out->file) == n_bytes;
}

/* Writes stories until there are `bytes` of them. A story that the context cut off ends where it is. */
static ml_result write_all(ml_session *session, ml_generate_desc *desc, writer *out, long long bytes,
                           const char *separator, ml_error *error) {
    while (out->bytes < bytes) {
        ml_generated done;
        ml_result result = ml_generate(session, desc, &done, error);
        if (result) return result;
        if (done.stop == ML_STOP_CALLER || fprintf(out->file, "\n%s\n", separator) < 0) {
            error->code = ML_ERROR_FILE;
            snprintf(error->text, sizeof error->text, "cannot write after byte %lld", out->bytes);
            return error->code;
        }
    }
    return ML_OK;
}

int main(int argc, char **argv) {
    const char *path = NULL, *output = NULL, *tokenizer = NULL, *separator = "<|endoftext|>";
    int seed = 1, help = 0;
    float megabytes = 1;
    ml_generate_desc desc = {0};
    ml_load_desc load = {0};
    ml_error error = {ML_OK, ""};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_random random;
    writer out = {NULL, 0};
    int failed;
    const option options[] = {
        {"--output", OPTION_TEXT, &output, "where to write (standard output)"},
        {"--megabytes", OPTION_FLOAT, &megabytes, "how much (1)"},
        {"--seed", OPTION_INT, &seed, "of the random choices (1)"},
        {"--temperature", OPTION_FLOAT, &desc.sampler.temperature, "as run_llama has it (1)"},
        {"--top_p", OPTION_FLOAT, &desc.sampler.top_p, "as run_llama has it (off)"},
        {"--tokenizer", OPTION_TEXT, &tokenizer, "for a model without its own"},
        {"--separator", OPTION_TEXT, &separator, "the line between two texts (<|endoftext|>)"},
        {"--help", OPTION_FLAG, &help, "this list"},
    };
    const int n_options = (int)(sizeof options / sizeof *options);
    desc.sampler.temperature = 1;
    if (!options_read(argc, argv, options, n_options, &path, 1)) return 2;
    if (help || !path) {
        fprintf(help ? stdout : stderr, "usage: write_stories MODEL [options]\n");
        options_print(help ? stdout : stderr, options, n_options);
        return help ? 0 : 2;
    }
    ml_random_seed(&random, (uint64_t)seed);
    load.tokenizer = tokenizer;
    desc.prompt = "";
    desc.random = &random;
    desc.on_token = write_token;
    desc.user = &out;
    out.file = output ? fopen(output, "wb") : stdout;
    if (!out.file) {
        fprintf(stderr, "%s: cannot be written\n", output);
        return 1;
    }
    failed = ml_load(path, &load, &model, &error) || ml_session_new(model, NULL, NULL, &session, &error) ||
             write_all(session, &desc, &out, (long long)(megabytes * 1e6), separator, &error);
    if (fclose(out.file) != 0 && !failed) {
        failed = 1;
        snprintf(error.text, sizeof error.text, "cannot be written to the end");
    }
    if (failed) fprintf(stderr, "write_stories: %s\n", error.text);
    ml_session_free(session);
    ml_free(model);
    return failed;
}
