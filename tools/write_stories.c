/* write_stories MODEL --output FILE --megabytes N: lets a model write texts, one after the other, each from bos
   alone, with a separator line between them. A small model trained on a larger model's texts is distilled from it
   (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Kim & Rush 2016, "Sequence-Level Knowledge
   Distillation").
   make build/write_stories && build/write_stories stories15M.gguf --output stories.txt --megabytes 100 */
#include "../examples/common/file.h"
#include "../examples/common/options.h"

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

/* Writes stories until there are `bytes` of them. A story that is longer than the context is cut off. */
static int write_all(ml_session *session, const ml_generate_desc *desc, writer *out, long long bytes,
                     const char *separator) {
    while (out->bytes < bytes) {
        ml_generated done;
        ml_error error;
        if (!succeeded(ml_session_generate(session, desc, &done, &error), &error)) return 0;
        int n = done.stop == ML_STOP_CALLER ? -1 : fprintf(out->file, "\n%s\n", separator);
        if (n < 0) return complain("cannot write after byte %lld", out->bytes);
        out->bytes += n; /* also of a text that ends before it begins */
    }
    return 1;
}

typedef struct settings {
    const char *model, *output, *tokenizer, *separator;
    ml_sampler sampler;
    float megabytes;
    int seed, help;
} settings;

static int files_ready(const settings *s) {
    const used_file output = {"--output", s->output},
                    inputs[] = {{"the model", s->model}, {"--tokenizer", s->tokenizer}};
    return outputs_ready(&output, 1, inputs, 2) && models_spared(&output, 1, inputs, 1);
}

static int check_settings(const settings *s) {
    if (!(s->megabytes > 0 && s->megabytes <= 1e9f) || !(s->sampler.temperature > 0) ||
        !(s->sampler.top_p >= 0 && s->sampler.top_p <= 1))
        return complain(
            "--megabytes is above 0 and at most 1e9, --temperature above 0 (at 0 all texts are the "
            "same), --top_p 0 to 1");
    return !s->output || *s->output || complain("--output: the file's name is empty");
}

/* A file is replaced only when the texts are complete. */
static int write_out(const settings *s, ml_session *session, ml_generate_desc *desc) {
    writer out = {stdout, 0};
    whole_file file;
    if (s->output && !whole_file_begin(&file, s->output)) return 0;
    if (s->output) out.file = file.to;
    desc->user = &out;
    int ok = write_all(session, desc, &out, (long long)((double)s->megabytes * 1e6), s->separator);
    if (!s->output) return ok && output_written();
    if (ok) return whole_file_end(&file);
    whole_file_drop(&file);
    return 0;
}

static int write_stories(const settings *s) {
    ml_model_load_desc load = {0};
    ml_generate_desc desc = {0};
    ml_model *model = NULL;
    ml_session *session = NULL;
    ml_random random;
    ml_error error;
    if (!files_ready(s)) return 0;
    ml_random_seed(&random, (uint64_t)s->seed);
    load.tokenizer = s->tokenizer;
    desc.prompt = "";
    desc.sampler = s->sampler;
    desc.sampler.random = &random;
    desc.on_token = write_token;
    int ok = loaded(s->model, ml_model_load(s->model, &load, &model, &error), &error) &&
             tokenizer_ready(model, s->model, "--tokenizer") &&
             succeeded(ml_session_new(model, NULL, &session, &error), &error) && write_out(s, session, &desc);
    ml_session_free(session);
    ml_model_free(model);
    return ok;
}

int main(int argc, char **argv) {
    settings s = {.separator = "<|endoftext|>", .sampler = {.temperature = 1}, .megabytes = 1, .seed = 1};
    const option options[] = {
        {"--output", OPTION_TEXT, &s.output, "where to write (standard output)"},
        {"--megabytes", OPTION_FLOAT, &s.megabytes, "how much (1)"},
        {"--seed", OPTION_INT, &s.seed, "of the random choices (1)"},
        {"--temperature", OPTION_FLOAT, &s.sampler.temperature, "above 0, as in run_llama (1)"},
        {"--top_p", OPTION_FLOAT, &s.sampler.top_p, "as in run_llama (off)"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "for a model that has none"},
        {"--separator", OPTION_TEXT, &s.separator, "the line between two texts (<|endoftext|>)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    const int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, &s.model, 1)) return 2;
    if (s.help || !s.model) {
        fprintf(s.help ? stdout : stderr, "usage: write_stories MODEL [options]\n");
        options_print(s.help ? stdout : stderr, options, n_options);
        return s.help ? 0 : 2;
    }
    if (!check_settings(&s)) return 2;
    return !write_stories(&s);
}
