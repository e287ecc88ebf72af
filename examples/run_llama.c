/* The assignment's program in C: same flags, same output files.
   build/run_llama --option generate --pretrained-model-path stories42M.pt --tokenizer tokenizer.model
   build/run_llama --option finetune --epochs 5 --lr 2e-5 --batch_size 80 --train data/sst-train.txt ...
   build/run_llama --prompt "Once upon a time" --temperature 0.8 --pretrained-model-path MODEL */
#if !defined(_POSIX_C_SOURCE) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#include "options.h"
#include "sentiment.h"

static const char assignment_prompt[] = "I have wanted to see this thriller for a while, and it didn't "
                                        "disappoint. Keanu Reeves, playing the hero "
                                        "John Wick, is";

typedef struct settings {
    const char *option, *model, *tokenizer, *mode, *prompt, *low_out, *high_out;
    int seed, seeds, use_gpu, threads, max_new_tokens, help;
    ml_sampler sampler;
    sentiment_settings sentiment;
} settings;

/* A model of fewer numbers writes a token before a second thread has woken up. */
enum { SMALL = 4000000 };

static int default_threads(void) {
#ifdef _OPENMP
    return omp_get_num_procs();
#else
    return 1;
#endif
}

static int fail(const ml_error *error) {
    fprintf(stderr, "error: %s (%s)\n", error->text, ml_result_string(error->code));
    return 1;
}

/* Text made so far; grows as needed. */
typedef struct text {
    char *bytes;
    size_t length, size;
    FILE *stream; /* where it is also written at once; NULL: nowhere */
} text;

static int text_append(text *t, const char *bytes, size_t n) {
    if (n > t->size - t->length) {
        size_t size = (t->length + n) * 2 + 256;
        char *grown = (char *)realloc(t->bytes, size);
        if (!grown) return 0;
        t->bytes = grown;
        t->size = size;
    }
    if (n) memcpy(t->bytes + t->length, bytes, n);
    t->length += n;
    if (t->stream) {
        fwrite(bytes, 1, n, t->stream);
        fflush(t->stream);
    }
    return 1;
}

static int append_token(void *user, int32_t id, const char *bytes, size_t n) {
    (void)id;
    return text_append((text *)user, bytes, n);
}

/* Writes on from the prompt into `out`, prompt included. */
static int write_on(ml_session *session, const settings *s, const char *prompt, float temperature, text *out,
                    ml_generated *generated) {
    ml_generate_desc desc;
    ml_random random;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, (uint64_t)s->seed);
    desc.prompt = prompt;
    desc.max_new_tokens = s->max_new_tokens;
    desc.sampler = s->sampler;
    desc.sampler.temperature = temperature;
    desc.random = &random;
    desc.on_token = append_token;
    desc.user = out;
    if (!text_append(out, prompt, strlen(prompt))) return fprintf(stderr, "error: out of memory\n"), 1;
    if (ml_generate(session, &desc, generated, &error)) return fail(&error);
    return 0;
}

static int write_file(const char *path, const text *t) {
    FILE *file = fopen(path, "wb");
    int ok = file && fwrite(t->bytes, 1, t->length, file) == t->length;
    if (file && fclose(file) != 0) ok = 0;
    if (!ok) return fprintf(stderr, "error: %s cannot be written: %s\n", path, strerror(errno)), 1;
    printf("Wrote generated sentence to %s.\n", path);
    return 0;
}

/* The assignment's two continuations: temperature 0 into one file, 1 into another. */
static int generate_both(ml_session *session, const settings *s) {
    const char *const paths[2] = {s->low_out, s->high_out};
    int i, status = 0;
    printf("load model from %s\n", s->model);
    for (i = 0; i < 2 && !status; i++) {
        text t = {NULL, 0, 0, NULL};
        status = write_on(session, s, assignment_prompt, (float)i, &t, NULL);
        if (!status) {
            printf("Temperature is %.1f\n%.*s\n---------------\n", (double)i, (int)t.length, t.bytes);
            status = write_file(paths[i], &t);
        }
        free(t.bytes);
    }
    return status;
}

/* The user's own prompt: streamed to standard output, and nothing else there. */
static int generate_one(ml_session *session, const settings *s) {
    text t = {NULL, 0, 0, stdout};
    ml_generated made = {0, 0, ML_STOP_LENGTH};
    clock_t begin = clock();
    int status = write_on(session, s, s->prompt, s->sampler.temperature, &t, &made);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    free(t.bytes);
    if (!status) {
        printf("\n");
        fprintf(stderr, "(%d tokens read, %d written, %.2f s of processor time)\n", made.n_prompt, made.n_new,
                seconds);
    }
    return status;
}

/* The model, computing as the mode says; type F32 for one that is trained. NULL, having said why. */
static ml_model *load_model(const settings *s, ml_type type) {
    ml_load_desc load;
    ml_model *model = NULL;
    ml_error error;
    int reference = strcmp(s->mode, "reference") == 0;
    memset(&load, 0, sizeof load);
    load.norm = reference ? ML_NORM_LAYER : ML_NORM_RMS;
    load.mask = reference ? ML_MASK_FULL : ML_MASK_CAUSAL;
    load.tokenizer = s->tokenizer;
    load.type = type;
    if (ml_load(s->model, &load, &model, &error)) return fail(&error), NULL;
    if (model->tokenizer) return model;
    fprintf(stderr, "error: no tokenizer of %d pieces in or beside %s; give one with --tokenizer FILE\n",
            model->config.vocab_size, s->model);
    ml_free(model);
    return NULL;
}

static int generate(const settings *s) {
    ml_session_desc desc;
    ml_model *model = load_model(s, (ml_type)0);
    ml_session *session = NULL;
    ml_error error;
    int status = 1;
    memset(&desc, 0, sizeof desc);
    if (!model) return 1;
    desc.threads.count = s->threads ? s->threads : model->n_parameters < SMALL ? 1 : default_threads();
    if (ml_session_new(model, &desc, NULL, &session, &error))
        fail(&error);
    else
        status = s->prompt ? generate_one(session, s) : generate_both(session, s);
    ml_session_free(session);
    ml_free(model);
    return status;
}

static void print_mean(const char *what, const double *x, int n) {
    double mean = 0, square = 0;
    int i;
    for (i = 0; i < n; i++) mean += x[i] / n;
    for (i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / n;
    printf("%s acc over %d seeds :: %.3f (%.3f)\n", what, n, mean, sqrt(square));
}

/* Prompting, fine-tuning or LoRA, once for each seed, each time from the file's weights. */
static int label_sentences(const settings *s) {
    enum { MAX_SEEDS = 100 };
    double dev[MAX_SEEDS], test[MAX_SEEDS];
    sentiment_settings set = s->sentiment;
    char state[64];
    int i, n = set.prompting ? 1 : MLI_MIN(s->seeds, MAX_SEEDS);
    snprintf(state, sizeof state, "%s-%d-%g.gguf", s->option, set.epochs, (double)set.lr);
    if (!set.model_out) set.model_out = state;
    for (i = 0; i < n; i++) {
        sentiment_result on_dev = {0, 0}, on_test = {0, 0};
        ml_model *model = load_model(s, set.prompting ? (ml_type)0 : ML_F32);
        int ok;
        if (!model) return 1;
        set.seed = s->seed + i;
        if (n > 1) printf("seed %d\n", set.seed);
        ok = sentiment_run(&set, model, &on_dev, &on_test);
        ml_free(model);
        if (!ok) return 1;
        dev[i] = on_dev.accuracy;
        test[i] = on_test.accuracy;
    }
    if (n > 1) print_mean("dev", dev, n), print_mean("test", test, n);
    return 0;
}

static int check(const settings *s) {
    const ml_sampler *p = &s->sampler;
    const sentiment_settings *t = &s->sentiment;
    if (strcmp(s->option, "generate") != 0 && strcmp(s->option, "prompt") != 0 &&
        strcmp(s->option, "finetune") != 0 && strcmp(s->option, "lora") != 0)
        return fprintf(stderr, "--option is generate, prompt, finetune or lora, not %s\n", s->option), 0;
    if (strcmp(t->score, "sum") && strcmp(t->score, "mean") && strcmp(t->score, "calibrated") &&
        strcmp(t->score, "pmi"))
        return fprintf(stderr, "--score is sum, mean, calibrated or pmi, not %s\n", t->score), 0;
    if (t->reference && strcmp(t->score, "sum") != 0)
        return fprintf(stderr, "--score %s needs --mode llama: the reference has only sum\n", t->score), 0;
    if (t->max_sentence_len < 0 || t->epochs < 1 || t->batch_size < 1 || t->batch_size > 65536 ||
        t->lora_rank < 1 || s->seeds < 1)
        return fprintf(stderr,
                       "--max_sentence_len, --epochs, --batch_size, --lora_rank and --seeds are positive\n"),
               0;
    if (!(t->dropout >= 0 && t->dropout < 1))
        return fprintf(stderr, "--hidden_dropout_prob lies between 0 and 1\n"), 0;
    if (!(t->lr > 0) || !(t->lora_alpha > 0))
        return fprintf(stderr, "--lr and --lora_alpha are positive\n"), 0;
    if (strcmp(s->mode, "llama") != 0 && strcmp(s->mode, "reference") != 0)
        return fprintf(stderr, "--mode is llama or reference, not %s\n", s->mode), 0;
    if (p->temperature < 0) return fprintf(stderr, "--temperature must not be negative\n"), 0;
    if (p->top_k < 0) return fprintf(stderr, "--top_k must not be negative\n"), 0;
    if (p->top_p < 0 || p->top_p > 1 || p->min_p < 0 || p->min_p > 1 || p->epsilon < 0 || p->epsilon > 1)
        return fprintf(stderr, "--top_p, --min_p and --epsilon lie between 0 and 1\n"), 0;
    if (p->repetition_penalty < 0) return fprintf(stderr, "--repetition_penalty must not be negative\n"), 0;
    if (s->max_new_tokens < 0) return fprintf(stderr, "--max_new_tokens must not be negative\n"), 0;
    if (s->threads < 0 || s->threads > 1024) return fprintf(stderr, "--threads lies between 1 and 1024\n"), 0;
    return 1;
}

static settings default_settings(void) {
    settings s;
    memset(&s, 0, sizeof s);
    s.option = "generate";
    s.model = "stories42M.pt";
    s.seeds = 1;
    s.sentiment.train = "data/cfimdb-train.txt";
    s.sentiment.dev = "data/cfimdb-dev.txt";
    s.sentiment.test = "data/cfimdb-test.txt";
    s.sentiment.labels = "data/cfimdb-label-mapping.json";
    s.sentiment.dev_out = "cfimdb-dev-prompting-output.txt";
    s.sentiment.test_out = "cfimdb-test-prompting-output.txt";
    s.sentiment.score = "sum";
    s.sentiment.epochs = 5;
    s.sentiment.batch_size = 8;
    s.sentiment.lora_rank = 4;
    s.sentiment.lora_alpha = 1;
    s.sentiment.dropout = 0.3f;
    s.sentiment.lr = 2e-5f;
    s.low_out = "generated-sentence-temp-0.txt";
    s.high_out = "generated-sentence-temp-1.txt";
    s.seed = 1337;
    s.max_new_tokens = INT_MIN; /* depends on --prompt */
    s.sampler.epsilon = 0.05f;
    return s;
}

int main(int argc, char **argv) {
    settings s = default_settings();
    const option options[] = {
        {"--option", OPTION_TEXT, &s.option, "generate (default), prompt, finetune or lora"},
        {"--pretrained-model-path", OPTION_TEXT, &s.model, "model in any known format (stories42M.pt)"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "tokenizer.model or .bin (in the model, or beside it)"},
        {"--mode", OPTION_TEXT, &s.mode,
         "llama (RMSNorm, causal; default to generate) or reference (LayerNorm, full attention; default "
         "else)"},
        {"--seed", OPTION_INT, &s.seed, "seed of the random choices (1337)"},
        {"--train", OPTION_TEXT, &s.sentiment.train,
         "lines of \"label ||| sentence\" (data/cfimdb-train.txt)"},
        {"--dev", OPTION_TEXT, &s.sentiment.dev, "(data/cfimdb-dev.txt)"},
        {"--test", OPTION_TEXT, &s.sentiment.test, "(data/cfimdb-test.txt)"},
        {"--label-names", OPTION_TEXT, &s.sentiment.labels, "a JSON list (data/cfimdb-label-mapping.json)"},
        {"--dev_out", OPTION_TEXT, &s.sentiment.dev_out, "predictions (cfimdb-dev-prompting-output.txt)"},
        {"--test_out", OPTION_TEXT, &s.sentiment.test_out, "predictions (cfimdb-test-prompting-output.txt)"},
        {"--max_sentence_len", OPTION_INT, &s.sentiment.max_sentence_len,
         "tokens, the rest is cut (the context)"},
        {"--epochs", OPTION_INT, &s.sentiment.epochs, "of fine-tuning (5)"},
        {"--batch_size", OPTION_INT, &s.sentiment.batch_size, "sentences (8)"},
        {"--hidden_dropout_prob", OPTION_FLOAT, &s.sentiment.dropout, "of the classifier's input (0.3)"},
        {"--lr", OPTION_FLOAT, &s.sentiment.lr, "learning rate (2e-5)"},
        {"--lora_rank", OPTION_INT, &s.sentiment.lora_rank, "(4)"},
        {"--lora_alpha", OPTION_FLOAT, &s.sentiment.lora_alpha, "(1)"},
        {"--seeds", OPTION_INT, &s.seeds, "repeat with this many seeds, and print mean and deviation (1)"},
        {"--score", OPTION_TEXT, &s.sentiment.score,
         "prompting in mode llama: sum, mean, calibrated or pmi (sum)"},
        {"--state", OPTION_TEXT, &s.sentiment.model_out,
         "file of the best epoch's state (OPTION-EPOCHS-LR.gguf)"},
        {"--generated_sentence_low_temp_out", OPTION_TEXT, &s.low_out,
         "file (generated-sentence-temp-0.txt)"},
        {"--generated_sentence_high_temp_out", OPTION_TEXT, &s.high_out,
         "file (generated-sentence-temp-1.txt)"},
        {"--use_gpu", OPTION_FLAG, &s.use_gpu, "accepted for the assignment's sake: the processor is used"},
        {"--prompt", OPTION_TEXT, &s.prompt, "write on from this text, to standard output"},
        {"--max_new_tokens", OPTION_INT, &s.max_new_tokens,
         "how many (75; with --prompt until the story or context ends)"},
        {"--temperature", OPTION_FLOAT, &s.sampler.temperature, "with --prompt: 0 is greedy (0)"},
        {"--top_k", OPTION_INT, &s.sampler.top_k, "keep the k most likely (0: all)"},
        {"--top_p", OPTION_FLOAT, &s.sampler.top_p, "keep the most likely that reach p together (0: all)"},
        {"--min_p", OPTION_FLOAT, &s.sampler.min_p, "drop what is below min_p of the most likely (0)"},
        {"--epsilon", OPTION_FLOAT, &s.sampler.epsilon,
         "drop probabilities below (0.05, as the assignment does; 0: none)"},
        {"--repetition_penalty", OPTION_FLOAT, &s.sampler.repetition_penalty,
         "weaken the last 64 tokens (0: none)"},
        {"--threads", OPTION_INT, &s.threads,
         "how many (all processors where built with OpenMP; one to write with a small model)"},
        {"--help", OPTION_FLAG, &s.help, "this list"},
    };
    int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, NULL, 0)) return 2;
    if (s.help) {
        printf("usage: run_llama [options]\n");
        options_print(stdout, options, n_options);
        return 0;
    }
    if (s.max_new_tokens == INT_MIN) s.max_new_tokens = s.prompt ? 0 : 75;
    if (!s.mode) s.mode = strcmp(s.option, "generate") == 0 ? "llama" : "reference";
    s.sentiment.reference = strcmp(s.mode, "reference") == 0;
    s.sentiment.prompting = strcmp(s.option, "prompt") == 0;
    s.sentiment.lora = strcmp(s.option, "lora") == 0;
    s.sentiment.threads = s.threads ? s.threads : default_threads();
    if (!check(&s)) return 2;
    if (s.use_gpu) fprintf(stderr, "--use_gpu: there is no GPU code here; the processor is used\n");
    return strcmp(s.option, "generate") == 0 ? generate(&s) : label_sentences(&s);
}
