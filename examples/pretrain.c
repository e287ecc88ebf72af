/* pretrain: trains a Llama to write, from plain text files and nothing else; or lets a loaded model go on learning.

   build/pretrain stories.txt --output stories.gguf
   build/pretrain stories.txt --model other.gguf --output better.gguf

   It learns a tokenizer, keeps some text back to measure itself by, trains, and now and then writes a sample. Beside
   OUTPUT it leaves OUTPUT.train (the whole state: run again with --resume to go on), OUTPUT.csv and OUTPUT.svg (the
   loss). Ctrl-C saves and stops. */
#if !defined(_POSIX_C_SOURCE) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif
#include <signal.h>
#include <time.h>
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "../tools/bpe.h"
#include "curve.h"
#include "options.h"

enum { MAX_TEXTS = 64 };

typedef struct settings {
    const char *texts[MAX_TEXTS + 1];
    const char *model, *tokenizer, *output, *validation_text, *separator, *prompt, *type;
    int vocab_size, dim, hidden_dim, n_layers, n_heads, n_kv_heads, context;
    int rows, steps, warmup, seed, threads, every, sample_every, save_every, resume, checkpointing, help;
    float epochs, lr, final_lr, weight_decay, clip, validation;
} settings;

/* Token ids of many texts, one after the other, bos in front of each. */
typedef struct corpus {
    int32_t *ids;
    size_t n, capacity;
    size_t n_bytes;
} corpus;

typedef struct run {
    settings set;
    bpe_text texts[MAX_TEXTS], held_back; /* files in memory; held_back: that of --validation_text */
    int n_texts;
    ml_model *model;
    ml_trainer *trainer;
    corpus train, valid;
    int32_t *tokens, *targets, *starts; /* a batch */
    char checkpoint[1024], csv[1024], svg[1024];
    curve losses;
    double began; /* seconds, at the first step of this start */
    int64_t began_at;
    int64_t saved_at; /* the step of the last checkpoint of this run; -1: there is none */
} run;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sign) {
    (void)sign;
    interrupted = 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int complain(const char *what, const char *why) {
    return fprintf(stderr, "pretrain: %s: %s\n", what, why), 0;
}

/* A check that passes on the library's sentence. */
static int well(ml_result result, const ml_error *error) {
    return result == ML_OK || (fprintf(stderr, "pretrain: %s\n", error->text), 0);
}

/* The same for what was read from a file, which the sentence may not name. */
static int well_read(const char *path, ml_result result, const ml_error *error) {
    return result == ML_OK || (strstr(error->text, path) ? well(result, error) : complain(path, error->text));
}

/* ---- text to tokens ---- */

static int read_text(const char *path, bpe_text *text) {
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    long size;
    if (!file) return complain(path, strerror(errno));
    if (fseek(file, 0, SEEK_END) == 0 && (size = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0 &&
        (data = (char *)malloc((size_t)size + 1)) != NULL &&
        fread(data, 1, (size_t)size, file) == (size_t)size) {
        fclose(file);
        if (!size) return free(data), complain(path, "is empty");
        text->data = data;
        text->size = (size_t)size;
        return 1;
    }
    free(data);
    fclose(file);
    return complain(path, "cannot be read whole");
}

/* Where the next line that is the separator begins, or the end; *next: behind it. */
static const char *find_separator(const char *p, const char *end, const char *separator, const char **next) {
    size_t n = strlen(separator);
    while (p < end) {
        const char *line_end = (const char *)memchr(p, '\n', (size_t)(end - p));
        size_t length = line_end ? (size_t)(line_end - p) : (size_t)(end - p);
        *next = line_end ? line_end + 1 : end;
        if (length && p[length - 1] == '\r') length--;
        if (n && length == n && memcmp(p, separator, n) == 0) return p;
        p = *next;
    }
    *next = end;
    return end;
}

static int append_ids(corpus *c, const int32_t *ids, size_t n) {
    if (n > c->capacity - c->n) {
        size_t capacity = c->capacity * 2 + n + 65536;
        int32_t *room =
            capacity > SIZE_MAX / sizeof *room ? NULL : (int32_t *)realloc(c->ids, capacity * sizeof *room);
        if (!room) return complain("tokens", "not enough memory");
        c->ids = room;
        c->capacity = capacity;
    }
    memcpy(c->ids + c->n, ids, n * sizeof *ids);
    c->n += n;
    return 1;
}

static int is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/* Encodes one text without the space around it. */
static int encode_text(const ml_tokenizer *tokenizer, const char *text, const char *end, corpus *to) {
    size_t work_size, n = 0;
    const int32_t *ids;
    ml_error error;
    void *work;
    int ok;
    while (text < end && is_space(*text)) text++;
    while (text < end && is_space(end[-1])) end--;
    if (text == end) return 1;
    work_size = ml_encode_size((size_t)(end - text));
    work = malloc(work_size);
    if (!work) return complain("a text", "not enough memory to encode it");
    ok = well(ml_encode(tokenizer, text, (size_t)(end - text), ML_ADD_BOS, work, work_size, &ids, &n, &error),
              &error) &&
         append_ids(to, ids, n);
    if (ok) to->n_bytes += (size_t)(end - text);
    free(work);
    return ok;
}

/* All texts of a file. Every k-th, k = 1 / share, goes to `kept` instead, and of a file that is one single text its end. */
static int encode_file(const run *r, const bpe_text *file, corpus *to, corpus *kept, double share) {
    const char *p = file->data, *end = p + file->size, *next = NULL, *text_end;
    double due = 0.5;
    text_end = find_separator(p, end, r->set.separator, &next);
    if (text_end == end && share > 0) {
        text_end = p + (size_t)((double)file->size * (1 - share));
        return encode_text(r->model->tokenizer, p, text_end, to) &&
               encode_text(r->model->tokenizer, text_end, end, kept);
    }
    while (p < end) {
        text_end = find_separator(p, end, r->set.separator, &next);
        due += share;
        if (!encode_text(r->model->tokenizer, p, text_end, due >= 1 ? kept : to)) return 0;
        if (due >= 1) due -= 1;
        p = next;
    }
    return 1;
}

static int encode_all(run *r) {
    double share = r->set.validation_text ? 0 : (double)r->set.validation;
    int i;
    for (i = 0; i < r->n_texts; i++)
        if (!encode_file(r, &r->texts[i], &r->train, &r->valid, share)) return 0;
    if (r->held_back.data && !encode_file(r, &r->held_back, &r->valid, &r->valid, 0)) return 0;
    printf("%zu tokens to train on (%.2f bytes each), %zu kept back\n", r->train.n,
           (double)r->train.n_bytes / (double)(r->train.n ? r->train.n : 1), r->valid.n);
    if (share > 0 && !r->valid.n)
        fprintf(stderr,
                "pretrain: too few texts to keep one back of them; see --validation and --validation_text\n");
    if (r->set.steps != 0 && r->train.n < 2)
        return complain("training text", "fewer than two tokens: nothing follows");
    if (r->set.steps != 0 && r->train.n < (size_t)r->set.context + 1)
        return complain("training text", "shorter than one row; take a smaller --context");
    if (r->set.steps == 0 && r->valid.n < 2) return complain("--steps 0", "no text is kept back to measure");
    return 1;
}

/* ---- model and tokenizer ---- */

/* A tokenizer learnt from the texts. */
static ml_tokenizer *learn_tokenizer(run *r) {
    bpe_desc desc = {0};
    bpe_vocabulary *v;
    ml_tokenizer *tokenizer = NULL;
    unsigned char *file = NULL;
    char why[256];
    size_t n = 0;
    ml_error error;
    desc.vocab_size = r->set.vocab_size;
    v = bpe_train(&desc, r->texts, (size_t)r->n_texts, why, sizeof why);
    if (v) file = bpe_write(v, &n, why, sizeof why);
    if (!file)
        complain("tokenizer", why);
    else if (!well(ml_tokenizer_load_memory(file, n, NULL, &tokenizer, &error), &error))
        tokenizer = NULL;
    free(file);
    bpe_free(v);
    return tokenizer;
}

/* A model of the given shape with random weights. */
static int create_model(run *r) {
    const settings *set = &r->set;
    ml_config c = {0};
    ml_random random;
    ml_error error;
    ml_tokenizer *tokenizer = NULL;
    if (!set->tokenizer)
        tokenizer = learn_tokenizer(r);
    else if (!well_read(set->tokenizer, ml_tokenizer_load(set->tokenizer, NULL, &tokenizer, &error), &error))
        tokenizer = NULL;
    if (!tokenizer) return 0;
    c.dim = set->dim;
    c.hidden_dim = set->hidden_dim ? set->hidden_dim : (set->dim * 8 / 3 + 31) / 32 * 32;
    c.n_layers = set->n_layers;
    c.n_heads = set->n_heads;
    c.n_kv_heads = set->n_kv_heads;
    c.vocab_size = ml_tokenizer_size(tokenizer);
    c.max_seq_len = set->context;
    c.tied_output = 1;
    ml_random_seed(&random, (uint64_t)set->seed);
    if (!well(ml_create(&c, ML_F32, &random, NULL, &r->model, &error), &error))
        return ml_tokenizer_free(tokenizer), 0;
    return well(ml_set_tokenizer(r->model, tokenizer, &error), &error);
}

/* From --resume's checkpoint, from --model, or new. */
static int make_model(run *r) {
    ml_load_desc desc = {0};
    ml_error error;
    const char *from = r->set.resume ? r->checkpoint : r->set.model;
    desc.type = ML_F32;
    desc.tokenizer = r->set.resume ? NULL : r->set.tokenizer;
    if (!from) {
        if (!create_model(r)) return 0;
    } else if (!well_read(from, ml_load(from, &desc, &r->model, &error), &error)) {
        return 0;
    }
    if (!r->model->tokenizer) return complain(from, "has no tokenizer; give one with --tokenizer");
    if (r->set.context > r->model->config.max_seq_len) r->set.context = r->model->config.max_seq_len;
    printf("%lld parameters, dim %d, %d layers, %d pieces\n", (long long)r->model->n_parameters,
           r->model->config.dim, r->model->config.n_layers, r->model->config.vocab_size);
    return 1;
}

static int make_trainer(run *r) {
    ml_trainer_desc desc = {0};
    ml_error error;
    size_t size;
    desc.max_row = r->set.context;
    desc.max_rows = r->set.rows;
    desc.max_tokens = r->set.rows * r->set.context;
    desc.checkpointing = r->set.checkpointing;
    desc.adamw.lr = r->set.lr;
    desc.adamw.beta2 = 0.99f;
    desc.adamw.eps = 1e-8f;
    desc.adamw.weight_decay = r->set.weight_decay;
    desc.adamw.clip = r->set.clip;
    desc.adamw.form = ML_ADAMW_PYTORCH;
    desc.schedule.decay = ML_DECAY_COSINE;
    desc.schedule.warmup_steps = r->set.warmup;
    desc.schedule.total_steps = r->set.steps;
    desc.schedule.final = r->set.final_lr / r->set.lr;
    desc.threads.count = r->set.threads;
    if (!well(ml_trainer_size(r->model, &desc, &size, &error), &error)) return 0;
    printf("training takes %.0f MB\n", (double)size * 1e-6);
    if (!well(ml_trainer_new(r->model, &desc, NULL, &r->trainer, &error), &error)) return 0;
    r->saved_at = -1;
    ml_random_seed((ml_random *)(void *)r->trainer->progress, (uint64_t)r->set.seed + 1);
    if (!r->set.resume) return 1;
    if (!well_read(r->checkpoint, ml_trainer_load(r->trainer, r->checkpoint, &error), &error)) return 0;
    r->saved_at = r->trainer->step;
    return 1;
}

/* ---- steps ---- */

/* Rows from random places. The state of the randomness is in the trainer's progress, and so in its checkpoints. */
static ml_examples next_batch(run *r) {
    ml_random *random = (ml_random *)(void *)r->trainer->progress;
    ml_examples e = {0};
    int row, context = r->set.context;
    for (row = 0; row < r->set.rows; row++) {
        size_t at = (size_t)(ml_random_u64(random) % (r->train.n - (size_t)context));
        memcpy(r->tokens + row * context, r->train.ids + at, (size_t)context * sizeof *r->tokens);
        memcpy(r->targets + row * context, r->train.ids + at + 1, (size_t)context * sizeof *r->targets);
        r->starts[row + 1] = (row + 1) * context;
    }
    e.tokens = r->tokens;
    e.targets = r->targets;
    e.row_start = r->starts;
    e.n_rows = r->set.rows;
    e.n_tokens = r->set.rows * context;
    return e;
}

/* Where a row of at most `context` tokens that begins at `at` ends: before the next text begins. */
static size_t row_end(const corpus *c, size_t at, int context, int32_t bos) {
    size_t end = at + 1;
    while (end + 1 < c->n && end - at < (size_t)context && c->ids[end] != bos) end++;
    return end;
}

/* The loss over what was kept back: each text alone, in rows of `context` tokens. Sums -log p and counts tokens. */
static int validate(run *r, double *per_token, double *per_byte) {
    const corpus *c = &r->valid;
    int32_t bos = ml_tokenizer_bos(r->model->tokenizer);
    double sum = 0;
    size_t counted = 0, at = 0;
    while (at + 1 < c->n) {
        ml_examples e = {0};
        ml_error error;
        float loss;
        while (at + 1 < c->n && e.n_rows < r->set.rows) {
            size_t end = row_end(c, at, r->set.context, bos), n = end - at;
            memcpy(r->tokens + e.n_tokens, c->ids + at, n * sizeof *r->tokens);
            memcpy(r->targets + e.n_tokens, c->ids + at + 1, n * sizeof *r->targets);
            e.n_tokens += (int)n;
            r->starts[++e.n_rows] = e.n_tokens;
            counted += n;
            at = end;
        }
        e.tokens = r->tokens;
        e.targets = r->targets;
        e.row_start = r->starts;
        e.divisor = 1;
        if (!well(ml_evaluate(r->trainer, &e, &loss, &error), &error)) return 0;
        sum += (double)loss;
    }
    *per_token = sum / (double)(counted ? counted : 1);
    *per_byte = sum / (double)(c->n_bytes ? c->n_bytes : 1);
    return 1;
}

static int print_text(void *user, int32_t id, const char *text, size_t n_bytes) {
    (void)user, (void)id;
    return fwrite(text, 1, n_bytes, stdout) == n_bytes;
}

static void print_sample(run *r) {
    ml_session *session = NULL;
    ml_generate_desc desc = {0};
    ml_random random;
    ml_error error;
    ml_random_seed(&random, (uint64_t)r->trainer->step);
    desc.prompt = r->set.prompt;
    desc.max_new_tokens = 120;
    desc.overflow = ML_OVERFLOW_SLIDE; /* which may be more than --context */
    desc.sampler.temperature = 0.8f;
    desc.sampler.top_p = 0.9f;
    desc.random = &random;
    desc.on_token = print_text;
    printf("  | %s", r->set.prompt);
    if (well(ml_session_new(r->model, NULL, NULL, &session, &error), &error))
        well(ml_generate(session, &desc, NULL, &error), &error);
    printf("\n");
    ml_session_free(session);
}

/* The checkpoint, and the model as users take it. */
static int save_all(run *r) {
    ml_save_desc desc = {0};
    ml_error error;
    desc.type = ml_type_from_name(r->set.type);
    if (!well(ml_trainer_save(r->trainer, r->checkpoint, &error), &error)) return 0;
    r->saved_at = r->trainer->step;
    return well(ml_save(r->model, r->set.output, &desc, &error), &error) && curve_svg(&r->losses, r->svg);
}

static int report(run *r, float loss, int whole) {
    double tokens = (double)r->set.rows * r->set.context, seconds = now() - r->began;
    double done = (double)(r->trainer->step - r->began_at), left;
    double per_token = NAN, per_byte = NAN;
    if (whole && r->valid.n > 1 && !validate(r, &per_token, &per_byte)) return 0;
    left = done > 0 ? seconds / done * (double)(r->set.steps - r->trainer->step) : 0;
    printf("%sstep %lld of %d: loss %.4f", isatty(1) && !whole ? "\r" : "", (long long)r->trainer->step,
           r->set.steps, (double)loss);
    if (per_token == per_token) printf(", kept back %.4f a token, %.4f a byte", per_token, per_byte);
    printf(", %.0f tokens/s, %d:%02d left%s", seconds > 0 ? done * tokens / seconds : 0.0, (int)left / 60,
           (int)left % 60, isatty(1) && !whole ? "  " : "\n");
    fflush(stdout);
    return !whole || curve_add(&r->losses, r->csv, (double)r->trainer->step, (double)loss, per_token);
}

/* To the last step, or to where it is interrupted. */
static int take_steps(run *r) {
    const settings *set = &r->set;
    ml_error error;
    float loss = 0;
    r->began = now();
    r->began_at = r->trainer->step;
    while (r->trainer->step < set->steps && !interrupted) {
        ml_examples e = next_batch(r);
        int64_t step;
        if (!well(ml_train(r->trainer, &e, &loss, &error), &error) ||
            !well(ml_backward(r->trainer, &error), &error) || !well(ml_step(r->trainer, &error), &error))
            return 0;
        step = r->trainer->step;
        if (step % set->every == 0 || step == set->steps) {
            if (!report(r, loss, 1)) return 0;
        } else if (isatty(1) && !report(r, loss, 0)) {
            return 0;
        }
        if (set->sample_every && step % set->sample_every == 0 && step < set->steps) print_sample(r);
        if (step % set->save_every == 0 && !save_all(r)) return 0;
    }
    return save_all(r);
}

static int train(run *r) {
    if (!take_steps(r)) {
        if (r->saved_at >= 0)
            fprintf(stderr, "pretrain: the state after step %lld is in %s\n", (long long)r->saved_at,
                    r->checkpoint);
        return 0;
    }
    if (interrupted)
        printf("\nstopped at step %lld; the same command with --resume goes on\n",
               (long long)r->trainer->step);
    else
        print_sample(r);
    return 1;
}

/* ---- the program ---- */

static int in_range(const char *name, double value, double least, double most) {
    if (value >= least && value <= most) return 1;
    return fprintf(stderr, "pretrain: %s goes from %.9g to %.9g, not %.9g\n", name, least, most, value), 0;
}

static int check_settings(const settings *set) {
    int i;
    if (!in_range("--rows", set->rows, 1, 1 << 22) || !in_range("--context", set->context, 2, 1 << 22) ||
        !in_range("--dim", set->dim, 1, 1 << 16) || !in_range("--every", set->every, 1, INT_MAX) ||
        !in_range("--save_every", set->save_every, 1, INT_MAX) ||
        !in_range("--warmup", set->warmup, 0, INT_MAX) ||
        (set->steps != -1 && !in_range("--steps", set->steps, 0, INT_MAX)) ||
        !in_range("--validation", (double)set->validation, 0, 0.999) ||
        !in_range("--weight_decay", (double)set->weight_decay, 0, 1e6) ||
        !in_range("--clip", (double)set->clip, 0, 1e6) || !in_range("--threads", set->threads, 1, 1024))
        return 0;
    if (!(set->lr > 0)) return complain("--lr", "must be above 0");
    if (!(set->epochs > 0)) return complain("--epochs", "must be above 0");
    if (ml_type_from_name(set->type) < ML_F32 || ml_type_from_name(set->type) > ML_Q4_0)
        return complain("--type", "is F32, F16, BF16, Q8_0 or Q4_0");
    for (i = 0; set->texts[i]; i++)
        if (strcmp(set->texts[i], set->output) == 0)
            return complain("--output", "is one of the texts, which would be lost");
    return 1;
}

static int read_settings(int argc, char **argv, settings *set) {
    const option options[] = {
        {"--output", OPTION_TEXT, &set->output, "the model's file (pretrained.gguf)"},
        {"--model", OPTION_TEXT, &set->model, "go on from this model instead of a new one"},
        {"--tokenizer", OPTION_TEXT, &set->tokenizer, "instead of learning one from the texts"},
        {"--resume", OPTION_FLAG, &set->resume, "go on where the last run of this OUTPUT was stopped"},
        {"--vocab_size", OPTION_INT, &set->vocab_size, "pieces of a new tokenizer (1024)"},
        {"--dim", OPTION_INT, &set->dim, "width of a new model (128)"},
        {"--hidden_dim", OPTION_INT, &set->hidden_dim, "of its feed-forward layers (8/3 dim)"},
        {"--n_layers", OPTION_INT, &set->n_layers, "its layers (6)"},
        {"--n_heads", OPTION_INT, &set->n_heads, "its query heads (4)"},
        {"--n_kv_heads", OPTION_INT, &set->n_kv_heads, "its key heads (as n_heads)"},
        {"--context", OPTION_INT, &set->context, "tokens of a row (256)"},
        {"--rows", OPTION_INT, &set->rows, "rows of a batch (16)"},
        {"--steps", OPTION_INT, &set->steps, "steps in all (as --epochs says); 0: only measure"},
        {"--epochs", OPTION_FLOAT, &set->epochs, "how often the text is gone through (3)"},
        {"--lr", OPTION_FLOAT, &set->lr, "highest learning rate (0.002)"},
        {"--final_lr", OPTION_FLOAT, &set->final_lr, "the last one (lr / 20)"},
        {"--warmup", OPTION_INT, &set->warmup, "steps until lr is reached (100)"},
        {"--weight_decay", OPTION_FLOAT, &set->weight_decay, "of the matrices (0.1)"},
        {"--clip", OPTION_FLOAT, &set->clip, "most norm of the gradient (1)"},
        {"--validation", OPTION_FLOAT, &set->validation, "share of the texts that is kept back (0.02)"},
        {"--validation_text", OPTION_TEXT, &set->validation_text, "or a file of its own"},
        {"--separator", OPTION_TEXT, &set->separator, "the line between two texts (<|endoftext|>)"},
        {"--every", OPTION_INT, &set->every, "steps between two lines of progress (100)"},
        {"--sample_every", OPTION_INT, &set->sample_every, "steps between two samples (1000)"},
        {"--save_every", OPTION_INT, &set->save_every, "steps between two checkpoints (500)"},
        {"--prompt", OPTION_TEXT, &set->prompt, "how samples begin (Once upon a time)"},
        {"--type", OPTION_TEXT, &set->type, "of the weights in OUTPUT (F32)"},
        {"--checkpointing", OPTION_FLAG, &set->checkpointing, "less memory, a third more time"},
        {"--seed", OPTION_INT, &set->seed, "of all randomness (1)"},
        {"--threads", OPTION_INT, &set->threads, "(1)"},
        {"--help", OPTION_FLAG, &set->help, "this list"},
    };
    const int n = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n, set->texts, MAX_TEXTS)) return 0;
    if (set->help || (!set->texts[0] && set->steps != 0)) {
        fprintf(set->help ? stdout : stderr, "usage: pretrain TEXT... [options]\n");
        options_print(set->help ? stdout : stderr, options, n);
        return 0;
    }
    return check_settings(set);
}

/* The names of what is left beside OUTPUT. */
static int name_files(run *r) {
    const char *output = r->set.output;
    if (!*output || strlen(output) + sizeof ".train.tmp" > sizeof r->checkpoint)
        return complain("--output", "is empty or too long a name");
    snprintf(r->checkpoint, sizeof r->checkpoint, "%s.train", output);
    snprintf(r->csv, sizeof r->csv, "%s.csv", output);
    snprintf(r->svg, sizeof r->svg, "%s.svg", output);
    return 1;
}

/* The steps that --epochs asks for, of n tokens each. */
static int count_steps(run *r, size_t n) {
    double steps = (double)r->set.epochs * (double)r->train.n / (double)n + 1;
    if (steps > INT_MAX) return complain("--epochs", "that is too many steps");
    r->set.steps = (int)steps;
    return 1;
}

static int prepare(run *r) {
    settings *set = &r->set;
    size_t n;
    int i;
    if (!name_files(r)) return 0;
    for (i = 0; set->texts[i]; i++, r->n_texts++)
        if (!read_text(set->texts[i], &r->texts[i])) return 0;
    if (set->validation_text && !read_text(set->validation_text, &r->held_back)) return 0;
    if (!make_model(r) || !encode_all(r)) return 0;
    n = (size_t)set->rows * (size_t)set->context; /* which the model may have made smaller */
    if (n > 1 << 22) return complain("--rows", "and --context make a batch of more than 4194304 tokens");
    if (set->steps < 0 && !count_steps(r, n)) return 0;
    if (set->final_lr < 0) set->final_lr = set->lr / 20;
    r->tokens = (int32_t *)malloc(n * sizeof *r->tokens);
    r->targets = (int32_t *)malloc(n * sizeof *r->targets);
    r->starts = (int32_t *)calloc((size_t)set->rows + 1, sizeof *r->starts);
    if (!r->tokens || !r->targets || !r->starts) return complain("a batch", "not enough memory");
    if (!make_trainer(r)) return 0;
    if (set->steps == 0) return 1;
    return curve_open(&r->losses, r->csv, set->resume ? (double)r->trainer->step : -1);
}

static void clean_up(run *r) {
    int i;
    for (i = 0; i < r->n_texts; i++) free((void *)(uintptr_t)r->texts[i].data);
    free((void *)(uintptr_t)r->held_back.data);
    free(r->train.ids);
    free(r->valid.ids);
    free(r->tokens);
    free(r->targets);
    free(r->starts);
    curve_free(&r->losses);
    ml_trainer_free(r->trainer);
    ml_free(r->model);
}

int main(int argc, char **argv) {
    static run r;
    const settings defaults = {.output = "pretrained.gguf",
                               .separator = "<|endoftext|>",
                               .prompt = "Once upon a time",
                               .type = "F32",
                               .vocab_size = 1024,
                               .dim = 128,
                               .n_layers = 6,
                               .n_heads = 4,
                               .context = 256,
                               .rows = 16,
                               .steps = -1,
                               .epochs = 3,
                               .lr = 0.002f,
                               .final_lr = -1,
                               .warmup = 100,
                               .weight_decay = 0.1f,
                               .clip = 1,
                               .validation = 0.02f,
                               .every = 100,
                               .sample_every = 1000,
                               .save_every = 500,
                               .seed = 1,
                               .threads = 1};
    double per_token, per_byte;
    int ok;
    r.set = defaults;
    if (!read_settings(argc, argv, &r.set)) return r.set.help ? 0 : 2;
    signal(SIGINT, on_interrupt);
    signal(SIGTERM, on_interrupt);
    ok = prepare(&r);
    if (ok && r.set.steps == 0) {
        ok = validate(&r, &per_token, &per_byte);
        if (ok) printf("loss %.4f a token, %.4f a byte\n", per_token, per_byte);
    } else if (ok) {
        ok = train(&r);
    }
    clean_up(&r);
    return !ok;
}
