/* pretrain: trains a Llama to write, from plain text files and nothing else; or continues to train a model.

   build/pretrain stories.txt --output stories.gguf
   build/pretrain stories.txt --model other.gguf --output better.gguf

   It learns a tokenizer, holds out some text for validation, trains, and occasionally writes a sample. Next to
   OUTPUT it leaves OUTPUT.train (the whole state: run again with --resume to continue), OUTPUT.csv and OUTPUT.svg
   (the loss). Ctrl-C saves and stops. Where OUTPUT.train is there already, a new run is refused: take --resume, or
   remove it. */
#include <signal.h>
#include "pretrain.h"
#include "../common/options.h"
#include "../common/threads.h"
#include "../common/types.h"

static run r = {.set = {.output = "pretrained.gguf",
                        .separator = "<|endoftext|>",
                        .prompt = "Once upon a time",
                        .type = "F32",
                        .vocab_size = 1024,
                        .dim = 128,
                        .n_layers = 6,
                        .n_heads = 4,
                        .context = 256,
                        .rows = 16,
                        .steps = INT_MIN, /* as --epochs says */
                        .epochs = 3,
                        .lr = 0.002f,
                        .final_lr = NAN,   /* depends on lr */
                        .warmup = INT_MIN, /* depends on steps */
                        .weight_decay = 0.1f,
                        .clip = 1,
                        .validation = 0.02f,
                        .every = 100,
                        .sample_every = 1000,
                        .save_every = 500,
                        .seed = 1,
                        .threads = INT_MIN}}; /* depends on the machine */

static const option options[] = {
    {"--output", OPTION_TEXT, &r.set.output, "the model's file (pretrained.gguf)"},
    {"--model", OPTION_TEXT, &r.set.model, "continue to train this model instead of a new one"},
    {"--tokenizer", OPTION_TEXT, &r.set.tokenizer, "instead of learning one from the texts"},
    {"--resume", OPTION_FLAG, &r.set.resume, "continue where the last run of this OUTPUT was stopped"},
    {"--vocab_size", OPTION_INT, &r.set.vocab_size, "pieces of a new tokenizer (1024)"},
    {"--dim", OPTION_INT, &r.set.dim, "width of a new model (128)"},
    {"--hidden_dim", OPTION_INT, &r.set.hidden_dim, "of its feed-forward layers (8/3 dim)"},
    {"--n_layers", OPTION_INT, &r.set.n_layers, "its layers (6)"},
    {"--n_heads", OPTION_INT, &r.set.n_heads, "its query heads (4)"},
    {"--n_kv_heads", OPTION_INT, &r.set.n_kv_heads, "its key heads (as n_heads)"},
    {"--context", OPTION_INT, &r.set.context, "tokens of a row (256)"},
    {"--rows", OPTION_INT, &r.set.rows, "rows of a batch (16)"},
    {"--steps", OPTION_INT, &r.set.steps, "steps in all (as --epochs says); 0: only measure"},
    {"--epochs", OPTION_FLOAT, &r.set.epochs, "or passes over the text (3)"},
    {"--lr", OPTION_FLOAT, &r.set.lr, "highest learning rate (0.002)"},
    {"--final_lr", OPTION_FLOAT, &r.set.final_lr, "the last one (lr / 20)"},
    {"--warmup", OPTION_INT, &r.set.warmup, "steps until lr is reached (100, or a tenth of fewer than 1000)"},
    {"--weight_decay", OPTION_FLOAT, &r.set.weight_decay, "of the matrices (0.1)"},
    {"--clip", OPTION_FLOAT, &r.set.clip, "largest norm of the gradient (1)"},
    {"--validation", OPTION_FLOAT, &r.set.validation, "share of the texts that is kept back (0.02)"},
    {"--validation_text", OPTION_TEXT, &r.set.validation_text, "or a separate file"},
    {"--separator", OPTION_TEXT, &r.set.separator,
     "the line between two texts (<|endoftext|>); \"\": a file is a text"},
    {"--every", OPTION_INT, &r.set.every, "steps between two lines of progress (100)"},
    {"--sample_every", OPTION_INT, &r.set.sample_every, "steps between two samples (1000)"},
    {"--save_every", OPTION_INT, &r.set.save_every, "steps between two checkpoints (500)"},
    {"--prompt", OPTION_TEXT, &r.set.prompt, "how samples begin (Once upon a time)"},
    {"--type", OPTION_TEXT, &r.set.type, "of the weights in OUTPUT, as convert has them (F32)"},
    {"--checkpointing", OPTION_FLAG, &r.set.checkpointing, "less memory, a third more time"},
    {"--seed", OPTION_INT, &r.set.seed, "of all random choices (1)"},
    {"--threads", OPTION_INT, &r.set.threads,
     "how many (OMP_NUM_THREADS, or all processors where built with OpenMP)"},
    {"--help", OPTION_FLAG, &r.set.help, "this list"},
};
enum { N_OPTIONS = sizeof options / sizeof *options };

static int in_range(const char *name, double value, double least, double most) {
    return (value >= least && value <= most) ||
           complain("%s goes from %.10g to %.10g, not %.10g", name, least, most, value);
}

static int check_settings(const settings *set) {
    if (!in_range("--rows", set->rows, 1, MAX_BATCH) || !in_range("--context", set->context, 2, MAX_BATCH) ||
        !in_range("--dim", set->dim, 1, 1 << 16) || !in_range("--every", set->every, 1, INT_MAX) ||
        !in_range("--save_every", set->save_every, 1, INT_MAX) ||
        !in_range("--sample_every", set->sample_every, 0, INT_MAX) ||
        (set->warmup != INT_MIN && !in_range("--warmup", set->warmup, 0, INT_MAX)) ||
        (set->steps != INT_MIN && !in_range("--steps", set->steps, 0, INT_MAX)) ||
        !in_range("--validation", (double)set->validation, 0, 0.999) ||
        !in_range("--weight_decay", (double)set->weight_decay, 0, 1e6) ||
        !in_range("--clip", (double)set->clip, 0, 1e6) || !in_range("--threads", set->threads, 1, 1024))
        return 0;
    if (!(set->lr > 0)) return complain("--lr: must be above 0");
    if (!isnan(set->final_lr) && !in_range("--final_lr", (double)set->final_lr, 0, (double)set->lr)) return 0;
    if (!(set->epochs > 0)) return complain("--epochs: must be above 0");
    char list[TYPE_LIST_SIZE];
    if (!saved_type(set->type)) return complain("--type is %s, not %s", saved_types(list), set->type);
    if (set->steps == 0 && !set->model && !set->resume)
        return complain("--steps 0 measures what --model or --resume names");
    return 1;
}

/* Of two options that set the same, one would be ignored. */
static int are_alternatives(int argc, char **argv, const char *a, const char *b) {
    return !option_given(argc, argv, options, N_OPTIONS, a) ||
           !option_given(argc, argv, options, N_OPTIONS, b) || complain("%s or %s is given, not both", a, b);
}

/* The names of the files next to OUTPUT. */
static int name_files(void) {
    const char *output = r.set.output;
    if (!*output || strlen(output) + sizeof ".train.tmp" > sizeof r.checkpoint)
        return complain("--output: is empty or too long a name");
    if (format_of(output) != ML_GGUF)
        return complain("--output: is a GGUF: call it .gguf, and see build/convert for other formats");
    snprintf(r.checkpoint, sizeof r.checkpoint, "%s.train", output);
    snprintf(r.csv, sizeof r.csv, "%s.csv", output);
    snprintf(r.svg, sizeof r.svg, "%s.svg", output);
    return 1;
}

static int read_settings(int argc, char **argv, settings *set) {
    if (!options_read(argc, argv, options, N_OPTIONS, set->texts, MAX_TEXTS)) return 0;
    if (set->help || (!set->texts[0] && set->steps != 0)) {
        fprintf(set->help ? stdout : stderr, "usage: pretrain TEXT... [options]\n");
        options_print(set->help ? stdout : stderr, options, N_OPTIONS);
        return 0;
    }
    if (set->threads == INT_MIN) set->threads = default_threads();
    return check_settings(set) && are_alternatives(argc, argv, "--steps", "--epochs") &&
           are_alternatives(argc, argv, "--validation", "--validation_text") && name_files();
}

/* The files next to OUTPUT that a run writes, tried before it reads. With --resume it reads the checkpoint, too. */
static int files_ready(void) {
    const settings *set = &r.set;
    used_file inputs[MAX_TEXTS + 3] = {{"--model", set->resume ? NULL : set->model},
                                       {"--tokenizer", set->tokenizer},
                                       {"--validation_text", set->validation_text}};
    const used_file outputs[] = {{"--output", set->output},
                                 {"--output's checkpoint", r.checkpoint},
                                 {"--output's curve", r.csv},
                                 {"--output's picture", r.svg}};
    int n = 3;
    for (int i = 0; set->texts[i]; i++) {
        inputs[n].option = "a text";
        inputs[n++].path = set->texts[i];
    }
    return set->steps == 0 || (outputs_ready(outputs, 4, inputs, n) && models_spared(outputs, 4, inputs, 1) &&
                               file_can_be_saved(set->output));
}

static int read_texts(void) {
    for (; r.set.texts[r.n_texts]; r.n_texts++)
        if (!text_read(r.set.texts[r.n_texts], &r.texts[r.n_texts])) return 0;
    return !r.set.validation_text || text_read(r.set.validation_text, &r.held_back);
}

/* The texts to tokens. Of a file that is named several times, which makes it weigh more, the same texts are kept back
   each time: none of them is learned from. */
static int encode_files(double share) {
    const settings *set = &r.set;
    double due[MAX_TEXTS];
    for (int i = 0, first = 0; i < r.n_texts; i++, first = 0) {
        while (first < i && !same_file(set->texts[first], set->texts[i])) first++;
        if (first < i) r.valid.due = due[first];
        due[i] = r.valid.due;
        if (!corpus_add(&r.train, &r.valid, r.model->tokenizer, &r.texts[i], set->separator, share)) return 0;
    }
    return 1;
}

/* All texts to tokens. */
static int encode_texts(void) {
    const settings *set = &r.set;
    const ml_tokenizer *tokenizer = r.model->tokenizer;
    double share = set->validation_text ? 0 : (double)set->validation;
    if (!encode_files(share)) return 0;
    if (r.held_back.data && !corpus_add(&r.valid, &r.valid, tokenizer, &r.held_back, set->separator, 0))
        return 0;
    printf("%zu tokens to train on (%.2f bytes each), %zu kept back\n", r.train.n,
           (double)r.train.n_bytes / (double)(r.train.n ? r.train.n : 1), r.valid.n);
    if (share > 0 && !r.valid.n)
        fprintf(stderr, "too few texts to keep one of them back; see --validation and --validation_text\n");
    if (set->steps == 0) return r.valid.n >= 2 || complain("--steps 0: no text is kept back to measure");
    if (r.train.n < 2) return complain("training text: fewer than two tokens: nothing follows");
    if (r.train.n < (size_t)set->context + 1)
        return complain("training text: shorter than one row; take a smaller --context");
    return 1;
}

/* The settings that depend on the data or on others: steps from --epochs, the warmup, the last learning rate. */
static int finish_settings(settings *set) {
    double n = (double)set->rows * set->context; /* which the model may have made smaller */
    if (n > MAX_BATCH)
        return complain("--rows: and --context make a batch of more than %d tokens", MAX_BATCH);
    if (set->steps == INT_MIN) {
        double steps = (double)set->epochs * (double)r.train.n / n + 1;
        if (steps > INT_MAX) return complain("--epochs: that is too many steps");
        set->steps = (int)steps;
    }
    if (set->warmup == INT_MIN)
        set->warmup = set->steps < 1000 ? set->steps / 10 : 100;
    else if (set->steps && set->warmup >= set->steps)
        fprintf(stderr, "--warmup: %d of %d steps: the rate does not reach --lr\n", set->warmup, set->steps);
    if (isnan(set->final_lr)) set->final_lr = set->lr / 20;
    return 1;
}

/* Does argv ask for another shape than that of the model, where a file has it? */
static int same_shape(int argc, char **argv) {
    const settings *set = &r.set;
    const ml_config *c = &r.model->config;
    const struct {
        const char *name;
        int wanted, is;
    } sizes[] = {{"--dim", set->dim, c->dim},
                 {"--hidden_dim", set->hidden_dim, c->hidden_dim},
                 {"--n_layers", set->n_layers, c->n_layers},
                 {"--n_heads", set->n_heads, c->n_heads},
                 {"--n_kv_heads", set->n_kv_heads, c->n_kv_heads},
                 {"--vocab_size", set->vocab_size, c->vocab_size}};
    const char *file = set->resume ? r.checkpoint : set->model ? set->model : set->tokenizer;
    const char *source = set->resume ? "--resume" : set->model ? "--model" : "--tokenizer";
    for (int i = 0; file && i < 6; i++)
        if (sizes[i].wanted != sizes[i].is && option_given(argc, argv, options, N_OPTIONS, sizes[i].name))
            return complain("%s: %s %d is not that of %s, which has %d", source, sizes[i].name,
                            sizes[i].wanted, file, sizes[i].is);
    return 1;
}

static uint64_t hash_corpus(uint64_t hash, const corpus *c) {
    hash = hash_next(hash, c->n);
    for (size_t i = 0; i < c->n; i++) hash = hash_next(hash, (uint64_t)c->ids[i]);
    return hash;
}

static uint64_t hash_settings(const settings *set) {
    const float rates[] = {set->lr, set->final_lr, set->weight_decay, set->clip};
    const int counts[] = {set->rows, set->context, set->steps, set->warmup};
    uint64_t hash = HASH_START;
    for (int i = 0; i < 4; i++) {
        uint32_t bits;
        memcpy(&bits, &rates[i], sizeof bits);
        hash = hash_next(hash_next(hash, bits), (uint64_t)counts[i]);
    }
    return hash;
}

/* The last two numbers of progress are hashes of what is learned from, and how. A run that is resumed goes on with
   the same text; other settings are taken, with a word. Earlier versions wrote zeros there. */
static int same_text(void) {
    uint64_t *known = r.trainer->progress + 6;
    uint64_t text = hash_corpus(hash_corpus(HASH_START, &r.train), &r.valid), how = hash_settings(&r.set);
    if (r.set.resume && r.set.steps != 0) { /* 0: any text may be measured */
        if (known[0] && known[0] != text)
            return complain("--resume: %s learned from another text, or from other parts of it (--separator, "
                            "--validation); --model %s learns from this one",
                            r.checkpoint, r.set.output);
        if (known[1] && known[1] != how)
            fprintf(stderr,
                    "--resume: these are not the settings so far (--rows, --context, --steps or --epochs, "
                    "--lr and what belongs to it); they hold from here on\n");
    }
    known[0] = text, known[1] = how;
    return 1;
}

/* Whether --output has no run yet: hours of work are not replaced without a word. */
static int spares_runs(void) {
    uint64_t random;
    int64_t step = r.set.resume || !r.set.steps ? -1 : read_checkpoint(r.checkpoint, &random);
    return step < 1 || complain("%s has a run of %lld steps: --resume goes on with it, up to --steps; remove "
                                "it to begin again",
                                r.checkpoint, (long long)step);
}

/* Samples begin with a given --prompt that fits into the context, or where the default does not, with nothing. */
static int prompt_fits(int argc, char **argv) {
    const int most = r.model->config.max_seq_len;
    size_t n_bytes = strlen(r.set.prompt), size = ml_tokenizer_encode_size(n_bytes);
    ml_encode_desc desc = {r.set.prompt, n_bytes, ML_ADD_SPECIAL, malloc(size), size};
    ml_tokens tokens = {0};
    ml_error error;
    int ok = desc.work && succeeded(ml_tokenizer_encode(r.model->tokenizer, &desc, &tokens, &error), &error);
    free(desc.work);
    if (!ok || tokens.n < most) return ok;
    r.set.prompt = "";
    return !option_given(argc, argv, options, N_OPTIONS, "--prompt") ||
           complain("--prompt: has %d tokens, and does not fit the model's %d positions", tokens.n, most);
}

static int prepare(int argc, char **argv) {
    if (!files_ready() || !spares_runs() || !read_texts() || !make_model(&r) || !same_shape(argc, argv) ||
        !prompt_fits(argc, argv) || !encode_texts() || !finish_settings(&r.set))
        return 0;
    if (r.set.steps) say_halves(r.model, saved_type(r.set.type));
    size_t n = (size_t)r.set.rows * (size_t)r.set.context;
    r.tokens = (int32_t *)malloc(n * sizeof *r.tokens);
    r.targets = (int32_t *)malloc(n * sizeof *r.targets);
    r.starts = (int32_t *)calloc((size_t)r.set.rows + 1, sizeof *r.starts);
    if (!r.tokens || !r.targets || !r.starts) return no_memory("a batch");
    if (!make_trainer(&r) || !same_text()) return 0;
    return r.set.steps == 0 || !r.set.resume || curve_read(&r.losses, r.csv, (double)r.trainer->step);
}

static void clean_up(void) {
    for (int i = 0; i < r.n_texts; i++) free((void *)(uintptr_t)r.texts[i].data);
    free((void *)(uintptr_t)r.held_back.data);
    corpus_free(&r.train);
    corpus_free(&r.valid);
    free(r.tokens);
    free(r.targets);
    free(r.starts);
    curve_free(&r.losses);
    ml_trainer_free(r.trainer);
    ml_model_free(r.model);
}

int main(int argc, char **argv) {
    double per_token, per_byte;
    if (!read_settings(argc, argv, &r.set)) return r.set.help ? 0 : 2;
    int ok = prepare(argc, argv);
    if (ok && r.set.steps)
        signal(SIGINT, stop_training), signal(SIGTERM, stop_training); /* now there is something to save */
    if (ok && r.set.steps == 0) {
        ok = validate(&r, &per_token, &per_byte);
        if (ok) printf("loss %.4f a token, %.4f a byte\n", per_token, per_byte);
    } else if (ok) {
        ok = train(&r);
    }
    clean_up();
    if (!ok || !output_written()) return 1;
    return stopped_by() ? 128 + stopped_by() : 0; /* as a shell counts signals: a script does not go on */
}
