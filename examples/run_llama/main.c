/* The assignment's program in C: same flags, same output files.
   build/run_llama --option generate --pretrained-model-path stories42M.pt --tokenizer tokenizer.model
   build/run_llama --option finetune --epochs 5 --lr 2e-5 --batch_size 80 --train data/sst-train.txt ...
   build/run_llama --option predict --pretrained-model-path finetune-5-2e-05.gguf --dev data/sst-dev.txt ...
   build/run_llama --option predict --pretrained-model-path stories42M.pt --lora lora-5-2e-05.gguf --dev ...
   build/run_llama --prompt "Once upon a time" --temperature 0.8 --pretrained-model-path MODEL */
#include <math.h>
#include "run_llama.h"
#include "../common/file.h"
#include "../common/options.h"
#include "../common/threads.h"

static settings set = {
    .option = "generate",
    .model = "stories42M.pt",
    .seed = 1337,
    .seeds = 1,
    .low_out = "generated-sentence-temp-0.txt",
    .high_out = "generated-sentence-temp-1.txt",
    .max_new_tokens = INT_MIN, /* depends on --prompt */
    .sampler = {.epsilon = 0.05f},
    .sentiment = {.train = "data/cfimdb-train.txt",
                  .dev = "data/cfimdb-dev.txt",
                  .test = "data/cfimdb-test.txt",
                  .labels = "data/cfimdb-label-mapping.json",
                  .dev_out = "cfimdb-dev-prompting-output.txt",
                  .test_out = "cfimdb-test-prompting-output.txt",
                  .score = "sum",
                  .epochs = 5,
                  .batch_size = 8,
                  .lora_rank = 4,
                  .lora_alpha = 1,
                  .lora_scale = 1,
                  .dropout = 0.3f,
                  .lr = 2e-5f,
                  .warmup = NAN, /* NAN: not given, and so by the mode */
                  .clip = NAN,
                  .head_lr = NAN,
                  .weight_decay = NAN},
};

#define INDENT "                                             " /* of the column of explanations */

static const option options[] = {
    {"--option", OPTION_TEXT, &set.option, "generate (default), prompt, finetune, lora or predict"},
    {"--pretrained-model-path", OPTION_TEXT, &set.model, "model in any known format (stories42M.pt)"},
    {"--tokenizer", OPTION_TEXT, &set.tokenizer,
     "tokenizer.model, tokenizer.json, .bin or a GGUF (in the model, or next to it)"},
    {"--lora", OPTION_TEXT, &set.adapter,
     "an adapter over the model, to generate, prompt or predict with (none)"},
    {"--lora-scale", OPTION_FLOAT, &set.sentiment.lora_scale, "how much of it is added (1)"},
    {"--mode", OPTION_TEXT, &set.mode,
     "llama (RMSNorm, causal; default to generate) or reference\n" INDENT
     "(LayerNorm, full attention; default else; predict and --lora: as the file\n" INDENT
     "says, but the course's .pt and adapters of other programs do not say it)"},
    {"--seed", OPTION_INT, &set.seed, "seed of the random choices (1337)"},
    {"--train", OPTION_TEXT, &set.sentiment.train, "lines of \"label ||| sentence\" (data/cfimdb-train.txt)"},
    {"--dev", OPTION_TEXT, &set.sentiment.dev, "(data/cfimdb-dev.txt)"},
    {"--test", OPTION_TEXT, &set.sentiment.test, "(data/cfimdb-test.txt)"},
    {"--test-gold", OPTION_TEXT, &set.sentiment.test_gold,
     "the real labels of --test where those are placeholders, one per line (none)"},
    {"--label-names", OPTION_TEXT, &set.sentiment.labels, "a JSON list (data/cfimdb-label-mapping.json)"},
    {"--dev_out", OPTION_TEXT, &set.sentiment.dev_out, "predictions (cfimdb-dev-prompting-output.txt)"},
    {"--test_out", OPTION_TEXT, &set.sentiment.test_out, "predictions (cfimdb-test-prompting-output.txt)"},
    {"--max_sentence_len", OPTION_INT, &set.sentiment.max_sentence_len,
     "tokens of a sentence besides bos, the rest is cut off (the context)"},
    {"--epochs", OPTION_INT, &set.sentiment.epochs, "of fine-tuning (5)"},
    {"--batch_size", OPTION_INT, &set.sentiment.batch_size,
     "sentences; mode reference pads a batch, and so depends on it (8)"},
    {"--hidden_dropout_prob", OPTION_FLOAT, &set.sentiment.dropout, "of the classifier's input (0.3)"},
    {"--lr", OPTION_FLOAT, &set.sentiment.lr, "learning rate (2e-5)"},
    {"--pooling", OPTION_TEXT, &set.pooling,
     "what the classifier reads in mode llama: the last token (default), or the mean"},
    {"--schedule", OPTION_TEXT, &set.schedule,
     "of both rates in mode llama: none, linear (default) or cosine"},
    {"--warmup", OPTION_FLOAT, &set.sentiment.warmup, "share of the steps, in mode llama (0.05)"},
    {"--clip", OPTION_FLOAT, &set.sentiment.clip, "the gradient's largest norm, in mode llama (1; 0: any)"},
    {"--head_lr", OPTION_FLOAT, &set.sentiment.head_lr,
     "of the classifier, in mode llama (1e-3, or --lr if that is larger)"},
    {"--weight_decay", OPTION_FLOAT, &set.sentiment.weight_decay, "in mode llama (0)"},
    {"--eval_train", OPTION_FLAG, &set.sentiment.eval_train,
     "predict the training set after each epoch, too"},
    {"--lora_rank", OPTION_INT, &set.sentiment.lora_rank, "(4)"},
    {"--lora_alpha", OPTION_FLOAT, &set.sentiment.lora_alpha, "(1)"},
    {"--seeds", OPTION_INT, &set.seeds,
     "repeat with this many seeds, and print mean and deviation; files keep the last (1)"},
    {"--score", OPTION_TEXT, &set.sentiment.score,
     "prompting in mode llama: sum, mean, calibrated or pmi (sum)"},
    {"--state", OPTION_TEXT, &set.sentiment.model_out,
     "the best epoch's model or adapter, with its classifier; a .pt is for PyTorch\n" INDENT
     "(OPTION-EPOCHS-LR.gguf)"},
    {"--generated_sentence_low_temp_out", OPTION_TEXT, &set.low_out,
     "file, without --prompt (generated-sentence-temp-0.txt)"},
    {"--generated_sentence_high_temp_out", OPTION_TEXT, &set.high_out,
     "file, without --prompt (generated-sentence-temp-1.txt)"},
    {"--use_gpu", OPTION_FLAG, &set.use_gpu, "accepted, as the assignment has it; the processor is used"},
    {"--prompt", OPTION_TEXT, &set.prompt, "continue this text, on standard output"},
    {"--max_new_tokens", OPTION_INT, &set.max_new_tokens,
     "how many (75; with --prompt until the story or context ends)"},
    {"--slide", OPTION_FLAG, &set.slide, "write on when the context is full: the oldest text is forgotten"},
    {"--temperature", OPTION_FLOAT, &set.sampler.temperature,
     "with --prompt: 0 is greedy, without filters (0)"},
    {"--top_k", OPTION_INT, &set.sampler.top_k, "keep the k most likely (0: all)"},
    {"--top_p", OPTION_FLOAT, &set.sampler.top_p, "keep the most likely that reach p together (0: all)"},
    {"--min_p", OPTION_FLOAT, &set.sampler.min_p, "drop what is below min_p of the most likely (0)"},
    {"--epsilon", OPTION_FLOAT, &set.sampler.epsilon,
     "drop probabilities below (0.05, as the assignment does; 0: none)"},
    {"--repetition_penalty", OPTION_FLOAT, &set.sampler.repetition_penalty,
     "weaken the last 64 tokens (0: none)"},
    {"--threads", OPTION_INT, &set.threads,
     "how many (OMP_NUM_THREADS or all processors where built with OpenMP;\n" INDENT
     "one to write with a small model)"},
    {"--help", OPTION_FLAG, &set.help, "this list"},
};
enum { N_OPTIONS = sizeof options / sizeof *options, MAX_SEEDS = 100 };

ml_model *load_model(const settings *s, ml_type type) {
    ml_model_load_desc load = {0};
    ml_model *model = NULL;
    ml_error error;
    int reference = s->mode && strcmp(s->mode, "reference") == 0;
    if (s->mode) {
        load.norm = reference ? ML_NORM_LAYER : ML_NORM_RMS;
        load.mask = reference ? ML_MASK_FULL : ML_MASK_CAUSAL;
    }
    load.adapter = s->adapter;
    load.tokenizer = s->tokenizer;
    load.type = type;
    if (!loaded(s->model, ml_model_load(s->model, &load, &model, &error), &error)) return NULL;
    if (tokenizer_ready(model, s->model, "--tokenizer")) return model;
    ml_model_free(model);
    return NULL;
}

static void print_mean(const char *what, const double *x, int n) {
    double mean = 0, square = 0;
    for (int i = 0; i < n; i++) mean += x[i] / n;
    for (int i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean) / n;
    printf("%s acc over %d seeds :: %.3f (%.3f)\n", what, n, mean, sqrt(square));
}

/* The norm (0) or mask (1) that an adapter was trained with, as its file says; NULL if it does not. */
static const ml_value *adapter_value(const ml_archive *archive, int i) {
    static const char *const keys[2][2] = {{"minillama.norm", "__metadata__.minillama_norm"},
                                           {"minillama.mask", "__metadata__.minillama_mask"}};
    const ml_value *value = ml_archive_find_value(archive, keys[i][0]);
    return value ? value : ml_archive_find_value(archive, keys[i][1]);
}

/* Does the file of a classifier, or of its adapter, say by itself how it computes? The course's do not, nor do adapters
   of other programs. */
static int says_its_mode(const char *path, int is_adapter) {
    ml_archive *archive = NULL;
    int is_open = ml_archive_load(path, NULL, &archive, NULL) == ML_OK;
    int says = is_open && !is_adapter && strcmp(archive->format, "PyTorch") != 0;
    for (size_t i = 0; is_open && !is_adapter && i < archive->n_arrays; i++)
        says |= strstr(archive->arrays[i].name, "score.weight") != NULL; /* Hugging Face's */
    if (is_open && is_adapter) says = adapter_value(archive, 1) != NULL;
    ml_archive_free(archive);
    return says;
}

/* The mode, where none is given; NULL is that of the file. Is it one that a file should have said? */
static int choose_mode(settings *s) {
    int predicts = s->sentiment.predicting, generates = strcmp(s->option, "generate") == 0;
    const char *file = s->adapter ? s->adapter : predicts ? s->model : NULL;
    if (s->mode || (file && says_its_mode(file, file == s->adapter))) return 0;
    s->mode = generates ? "llama" : "reference";
    return predicts;
}

/* Refuses a mode in which the adapter was not trained. One of another program may have the norm of one mode and the
   mask of the other. */
static int mode_fits(const settings *s) {
    static const char *const words[2][2] = {{"rms", "causal"}, {"layer", "full"}};
    int reference = s->sentiment.reference, n_others = 0;
    ml_archive *archive = NULL;
    int is_open = s->mode && s->adapter && ml_archive_load(s->adapter, NULL, &archive, NULL) == ML_OK;
    for (int i = 0; is_open && i < 2; i++) {
        const ml_value *value = adapter_value(archive, i);
        const char *word = words[!reference][i];
        n_others += value && value->kind == ML_VALUE_STRING && value->length == strlen(word) &&
                    memcmp(value->s, word, value->length) == 0;
    }
    ml_archive_free(archive);
    return !n_others || complain("--mode %s: %s was trained otherwise; %s", s->mode, s->adapter,
                                 n_others < 2 ? "leave --mode out"
                                 : reference  ? "give --mode llama"
                                              : "give --mode reference");
}

/* All files of --option OPTION, tried before the work. */
static int files_ready(const settings *s, const char *state) {
    const sentiment_settings *t = &s->sentiment;
    int trains = is_training(t);
    char config[4096];
    const used_file inputs[] = {{"--pretrained-model-path", s->model},
                                {"--lora", s->adapter},
                                {"--tokenizer", s->tokenizer},
                                {"--train", trains ? t->train : NULL},
                                {"--dev", t->dev},
                                {"--test", t->test},
                                {"--test-gold", t->test_gold},
                                {"--label-names", t->predicting ? NULL : t->labels}};
    const used_file outputs[] = {{"--dev_out", t->dev_out},
                                 {"--test_out", t->test_out},
                                 {"--state", trains ? state : NULL},
                                 {"next to --state", config_beside(trains ? state : NULL, t->lora, config)}};
    return outputs_ready(outputs, 4, inputs, 8) && models_spared(outputs, 4, inputs, 2) &&
           config_spared(&outputs[2], outputs[3].path) && file_can_be_saved(outputs[2].path);
}

/* Prompting, fine-tuning or LoRA, once for each seed, each time from the file's weights; or predicting. The exit
   status. */
static int label_sentences(const settings *s) {
    double dev[MAX_SEEDS], test[MAX_SEEDS], gold[MAX_SEEDS];
    sentiment_settings run = s->sentiment;
    char state[64];
    int n = is_training(&run) ? s->seeds : 1;
    snprintf(state, sizeof state, "%s-%d-%g.gguf", s->option, run.epochs, (double)run.lr);
    if (!run.model_out) run.model_out = state;
    if (!files_ready(s, run.model_out)) return 1;
    for (int i = 0; i < n; i++) {
        sentiment_result on_dev = {0, 0, -1}, on_test = {0, 0, -1};
        /* an adapter's numbers are those of its training over a model as it was there */
        int as_stored = run.prompting || (run.predicting && !s->adapter);
        ml_model *model = load_model(s, as_stored ? ML_TYPE_NONE : ML_F32);
        if (!model) return 1;
        run.reference = model->config.mask == ML_MASK_FULL;
        run.seed = s->seed + i;
        if (n > 1) printf("seed %d\n", run.seed);
        int ok = sentiment_run(&run, model, &on_dev, &on_test);
        ml_model_free(model);
        if (!ok) return 1;
        dev[i] = on_dev.accuracy;
        test[i] = on_test.accuracy;
        gold[i] = on_test.gold;
    }
    if (n > 1) print_mean("dev", dev, n), print_mean("test", test, n);
    if (n > 1 && run.test_gold) print_mean("real test", gold, n);
    return 0;
}

/* Is the value one of the words? Otherwise says so. */
static int is_one_of(const char *name, const char *value, const char *words) {
    char list[64];
    snprintf(list, sizeof list, "%s", words);
    for (char *word = strtok(list, ", "); word; word = strtok(NULL, ", "))
        if (strcmp(word, "or") != 0 && strcmp(word, value) == 0) return 1;
    return complain("%s is %s, not %s", name, words, value);
}

static int check_sentiment(const sentiment_settings *t) {
    if (t->reference && strcmp(t->score, "sum") != 0)
        return complain("--score %s needs --mode llama: the reference has only sum", t->score);
    if (t->max_sentence_len < 0 || t->epochs < 1 || t->batch_size < 1 || t->batch_size > 65536 ||
        t->lora_rank < 1)
        return complain("--max_sentence_len, --epochs, --batch_size and --lora_rank are positive, "
                        "--batch_size at most 65536");
    if (set.seeds < 1 || set.seeds > MAX_SEEDS) return complain("--seeds is from 1 to %d", MAX_SEEDS);
    if (set.seed > INT_MAX - (set.seeds - 1))
        return complain("--seed is at most %d, with --seeds %d", INT_MAX - (set.seeds - 1), set.seeds);
    if (!(t->dropout >= 0 && t->dropout < 1)) return complain("--hidden_dropout_prob is between 0 and 1");
    if (!(t->lr > 0) || !(t->lora_alpha > 0)) return complain("--lr and --lora_alpha are positive");
    return 1;
}

/* What a run does, in bits; and LLAMA: only in mode llama. */
enum { WRITES = 1, PROMPTS = 2, TRAINS = 4, PREDICTS = 8, LLAMA = 16 };

/* Where flags that are this program's own mean anything. The course's commands give its flags to every option, and so
   they may. */
static const struct {
    const char *name;
    int where;
    const char *what, *with; /* what they are for, in words; the flag without which they mean nothing */
} scopes[] = {
    {"--lora", WRITES | PROMPTS | PREDICTS, "is to generate, prompt or predict with, not to go on training",
     NULL},
    {"--lora-scale", WRITES | PROMPTS | PREDICTS, "goes with --lora", "--lora"},
    {"--prompt", WRITES, "is for --option generate", NULL},
    {"--max_new_tokens", WRITES, "is for --option generate", NULL},
    {"--slide", WRITES, "is for --option generate", NULL},
    {"--temperature", WRITES, "goes with --prompt: without it there is one text at 0 and one at 1",
     "--prompt"},
    {"--top_k", WRITES, "is for --option generate", NULL},
    {"--top_p", WRITES, "is for --option generate", NULL},
    {"--min_p", WRITES, "is for --option generate", NULL},
    {"--epsilon", WRITES, "is for --option generate", NULL},
    {"--repetition_penalty", WRITES, "is for --option generate", NULL},
    {"--score", PROMPTS, "is for --option prompt", NULL},
    {"--test-gold", PROMPTS | TRAINS | PREDICTS, "is for a test set", NULL},
    {"--seeds", TRAINS, "is for training", NULL},
    {"--state", TRAINS, "is for training", NULL},
    {"--eval_train", TRAINS, "is for training", NULL},
    {"--pooling", TRAINS | LLAMA, "is for training", NULL},
    {"--schedule", TRAINS | LLAMA, "is for training", NULL},
    {"--warmup", TRAINS | LLAMA, "is for training", NULL},
    {"--clip", TRAINS | LLAMA, "is for training", NULL},
    {"--head_lr", TRAINS | LLAMA, "is for training", NULL},
    {"--weight_decay", TRAINS | LLAMA, "is for training", NULL},
};

/* Refuses a flag that would change nothing. */
static int check_scopes(int argc, char **argv) {
    const sentiment_settings *t = &set.sentiment;
    int does = strcmp(set.option, "generate") == 0 ? WRITES
               : t->prompting                      ? PROMPTS
               : t->predicting                     ? PREDICTS
                                                   : TRAINS;
    for (size_t i = 0; i < sizeof scopes / sizeof *scopes; i++) {
        const char *name = scopes[i].name, *with = scopes[i].with;
        if (!option_given(argc, argv, options, N_OPTIONS, name)) continue;
        if (with && !option_given(argc, argv, options, N_OPTIONS, with))
            return complain("%s %s", name, scopes[i].what);
        if (!(scopes[i].where & does))
            return complain("%s %s; this is --option %s", name, scopes[i].what, set.option);
        if ((scopes[i].where & LLAMA) && t->reference)
            return complain("%s needs --mode llama: mode reference trains as the course's code does", name);
    }
    return 1;
}

/* The same for a continued prompt. */
static int check_prompted(int argc, char **argv) {
    static const char *const unused[] = {"--generated_sentence_low_temp_out",
                                         "--generated_sentence_high_temp_out"};
    const ml_sampler *p = &set.sampler;
    int has_epsilon = p->epsilon > 0 && option_given(argc, argv, options, N_OPTIONS, "--epsilon");
    if (!set.prompt) return 1;
    for (int i = 0; i < 2; i++)
        if (option_given(argc, argv, options, N_OPTIONS, unused[i]))
            return complain("%s is for the course's two texts; --prompt writes to standard output",
                            unused[i]);
    return p->temperature > 0 || !(has_epsilon || p->top_k > 0 || p->top_p > 0 || p->min_p > 0) ||
           complain("--temperature: is 0, and then nothing is drawn from what a filter leaves");
}

/* How to train. */
static int check_training(const settings *s) {
    const sentiment_settings *t = &s->sentiment;
    if ((s->pooling && !is_one_of("--pooling", s->pooling, "last or mean")) ||
        (s->schedule && !is_one_of("--schedule", s->schedule, "none, linear or cosine")))
        return 0;
    if (t->warmup < 0 || t->warmup >= 1)
        return complain("--warmup is a share of the steps, from 0 to below 1");
    if (t->head_lr <= 0) return complain("--head_lr is positive");
    if (t->clip < 0 || t->weight_decay < 0) return complain("--clip and --weight_decay are not negative");
    return 1;
}

/* What was not given: as the reference trains, or what training in mode llama is best with. */
static void fill_training(settings *s) {
    sentiment_settings *t = &s->sentiment;
    int llama = !t->reference;
    t->pooling = s->pooling && strcmp(s->pooling, "mean") == 0 ? ML_POOL_MEAN : ML_POOL_LAST;
    t->schedule = llama ? ML_DECAY_LINEAR : ML_DECAY_NONE;
    if (s->schedule) {
        int is_cosine = strcmp(s->schedule, "cosine") == 0, is_none = strcmp(s->schedule, "none") == 0;
        t->schedule = is_none ? ML_DECAY_NONE : is_cosine ? ML_DECAY_COSINE : ML_DECAY_LINEAR;
    }
    if (isnan(t->warmup)) t->warmup = llama ? 0.05f : 0;
    if (isnan(t->clip)) t->clip = llama ? 1.0f : 0;
    if (isnan(t->head_lr)) t->head_lr = llama ? fmaxf(t->lr, 1e-3f) : t->lr; /* it starts from nothing */
    if (isnan(t->weight_decay)) t->weight_decay = 0;
}

static int check_sampler(const ml_sampler *p) {
    if (p->temperature < 0) return complain("--temperature must not be negative");
    if (p->top_k < 0) return complain("--top_k must not be negative");
    if (p->top_p < 0 || p->top_p > 1 || p->min_p < 0 || p->min_p > 1 || p->epsilon < 0 || p->epsilon > 1)
        return complain("--top_p, --min_p and --epsilon are between 0 and 1");
    if (p->repetition_penalty < 0) return complain("--repetition_penalty must not be negative");
    return 1;
}

static int check_settings(int argc, char **argv) {
    if (!is_one_of("--option", set.option, "generate, prompt, finetune, lora or predict") ||
        !is_one_of("--score", set.sentiment.score, "sum, mean, calibrated or pmi") ||
        (set.mode && !is_one_of("--mode", set.mode, "llama or reference")) || !check_scopes(argc, argv) ||
        !check_sentiment(&set.sentiment) || !check_training(&set) || !check_sampler(&set.sampler) ||
        !check_prompted(argc, argv))
        return 0;
    if (!(set.sentiment.lora_scale > 0)) return complain("--lora-scale is above 0");
    if (set.max_new_tokens < 0) return complain("--max_new_tokens must not be negative");
    int is_zero = set.threads == 0 && option_given(argc, argv, options, N_OPTIONS, "--threads");
    if (set.threads < 0 || set.threads > 1024 || is_zero) return complain("--threads is between 1 and 1024");
    return 1;
}

int main(int argc, char **argv) {
    if (!options_read(argc, argv, options, N_OPTIONS, NULL, 0)) return 2;
    if (set.help) {
        printf("usage: run_llama [options] (dashes and underscores in their names are the same)\n");
        options_print(stdout, options, N_OPTIONS);
        return 0;
    }
    int generates = strcmp(set.option, "generate") == 0;
    if (set.max_new_tokens == INT_MIN) set.max_new_tokens = set.prompt ? 0 : 75;
    set.sentiment.prompting = strcmp(set.option, "prompt") == 0;
    set.sentiment.predicting = strcmp(set.option, "predict") == 0;
    set.sentiment.lora = strcmp(set.option, "lora") == 0;
    set.sentiment.adapter = set.adapter;
    set.sentiment.classifier = set.adapter ? set.adapter : set.model;
    int is_guess = choose_mode(&set);
    set.sentiment.reference = set.mode && strcmp(set.mode, "reference") == 0;
    set.sentiment.threads = set.threads ? set.threads : default_threads();
    if (!check_settings(argc, argv)) return 2;
    if (!mode_fits(&set)) return 1;
    fill_training(&set);
    if (is_guess) fprintf(stderr, "no file says the mode: reference, or --mode llama if that was trained\n");
    if (set.use_gpu) fprintf(stderr, "--use_gpu: there is no GPU code here; the processor is used\n");
    int result = generates ? generate(&set) : label_sentences(&set);
    return result || !output_written();
}
