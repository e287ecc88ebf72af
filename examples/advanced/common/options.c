/* The options of every experiment. */
#include "tuning.h"
#include "../../common/report.h"

void tuning_defaults(tuning_settings *set) {
    memset(set, 0, sizeof *set);
    set->model = "examples/models/stories.gguf";
    set->task = "sst";
    set->pooling = "last";
    set->schedule = "linear";
    set->epochs = 3;
    set->batch = 16;
    set->seed = 1;
    set->max_tokens = 4096;
    set->lr = 5e-4f;
    set->warmup = 0.06f;
    set->clip = 1;
}

/* Fills in the table of the shared options; how many they are. */
int tuning_options(tuning_settings *set, option *to) {
    const option table[TUNING_OPTIONS] = {
        {"--model", OPTION_TEXT, &set->model, "in any known format (examples/models/stories.gguf)"},
        {"--tokenizer", OPTION_TEXT, &set->tokenizer, "its tokenizer (in the model, or next to it)"},
        {"--task", OPTION_TEXT, &set->task, "of --data: sst (default), cfimdb, or another name"},
        {"--data", OPTION_TEXT, &set->data, "folder with TASK-train.txt ... (data or ../shared/data)"},
        {"--train", OPTION_TEXT, &set->train, "lines of \"label ||| sentence\" (by --task, as the next)"},
        {"--dev", OPTION_TEXT, &set->dev, "chooses the weights that are kept"},
        {"--test", OPTION_TEXT, &set->test, "is measured at the end"},
        {"--test-gold", OPTION_TEXT, &set->test_gold,
         "its real labels, one a line (TASK-test-gold.txt, if any)"},
        {"--label-names", OPTION_TEXT, &set->labels, "a JSON list"},
        {"--epochs", OPTION_INT, &set->epochs, "0: only measure (3)"},
        {"--batch", OPTION_INT, &set->batch, "sentences of a step (16)"},
        {"--lr", OPTION_FLOAT, &set->lr, "learning rate (5e-4)"},
        {"--head_lr", OPTION_FLOAT, &set->head_lr, "of the classifier (that of --lr)"},
        {"--schedule", OPTION_TEXT, &set->schedule, "linear (default), cosine or constant"},
        {"--warmup", OPTION_FLOAT, &set->warmup, "share of the steps with a rising rate (0.06)"},
        {"--clip", OPTION_FLOAT, &set->clip, "largest norm of the gradient; 0: any (1)"},
        {"--weight_decay", OPTION_FLOAT, &set->weight_decay, "of matrices and the classifier (0)"},
        {"--dropout", OPTION_FLOAT, &set->dropout, "of the classifier's input (0)"},
        {"--word_dropout", OPTION_FLOAT, &set->word_dropout,
         "share of the tokens that training leaves out (0)"},
        {"--smoothing", OPTION_FLOAT, &set->smoothing, "of the labels (0)"},
        {"--pooling", OPTION_TEXT, &set->pooling, "last (default), mean, max, attention or layers"},
        {"--head_hidden", OPTION_INT, &set->head_hidden,
         "width of a hidden layer of the classifier (0: none)"},
        {"--mask", OPTION_TEXT, &set->mask, "causal or full (as the model)"},
        {"--norm", OPTION_TEXT, &set->norm, "rms or layer (as the model)"},
        {"--mode", OPTION_TEXT, &set->mode, "llama: --norm rms --mask causal (as the model)"},
        {"--lower", OPTION_FLAG, &set->lower, "letters A to Z of the sentences as a to z"},
        {"--plain", OPTION_FLAG, &set->plain, "the treebank's \\/, \\*, -LRB- and -RRB- as /, *, ( and )"},
        {"--max_len", OPTION_INT, &set->max_len, "tokens of a sentence, the rest is cut off (the context)"},
        {"--max_tokens", OPTION_INT, &set->max_tokens,
         "of one pass; a batch takes several if need be (4096)"},
        {"--eval_every", OPTION_INT, &set->eval_every,
         "steps between two measurements on dev, besides the end of each epoch"},
        {"--patience", OPTION_INT, &set->patience,
         "stop after so many measurements without a gain (0: never)"},
        {"--seed", OPTION_INT, &set->seed, "of all random choices (1)"},
        {"--threads", OPTION_INT, &set->threads, "how many (OMP_NUM_THREADS or all processors)"},
    };
    memcpy(to, table, sizeof table);
    return TUNING_OPTIONS;
}

static int is_one_of(const char *name, const char *value, const char *words) {
    char list[64];
    snprintf(list, sizeof list, "%s", words);
    for (char *word = strtok(list, ", "); word; word = strtok(NULL, ", "))
        if (strcmp(word, "or") != 0 && strcmp(word, value) == 0) return 1;
    return complain("%s is %s, not %s", name, words, value);
}

static int is_share(float x) { return x >= 0 && x < 1; }

/* The modes of run_llama. The reference is more than a norm and a mask: its padding is attended to, too. */
static int check_mode(const tuning_settings *s) {
    if (!s->mode) return 1;
    if (!is_one_of("--mode", s->mode, "llama or reference")) return 0;
    if (strcmp(s->mode, "reference") == 0)
        return complain(
            "--mode reference: pads its rows with tokens that are attended to, which is for run_llama; "
            "here rows are never padded. Its norm and mask are --norm layer --mask full");
    return !(s->mask || s->norm) || complain("--mode llama is --norm rms --mask causal: leave those two out");
}

/* Whether the settings make sense. */
int tuning_check_settings(const tuning_settings *s) {
    if (s->epochs < 0 || s->batch < 1 || s->batch > 65536 || s->max_tokens < 1 || s->max_tokens > 1 << 24)
        return complain("--batch is 1 to 65536, --max_tokens is positive, --epochs is not negative");
    if (s->max_len < 0 || s->eval_every < 0 || s->patience < 0 || s->head_hidden < 0 ||
        s->head_hidden > 65536)
        return complain("--max_len, --eval_every, --patience and --head_hidden are not negative");
    if (!(s->lr > 0) || !(s->head_lr >= 0) || !(s->clip >= 0) || !(s->weight_decay >= 0))
        return complain("--lr is positive; --head_lr, --clip and --weight_decay are not negative");
    if (!is_share(s->dropout) || !is_share(s->word_dropout) || !is_share(s->smoothing))
        return complain("--dropout, --word_dropout and --smoothing are 0 to less than 1");
    if (!(s->warmup >= 0 && s->warmup <= 1)) return complain("--warmup is 0 to 1");
    if (s->threads < 0 || s->threads > 1024) return complain("--threads is 1 to 1024");
    return is_one_of("--schedule", s->schedule, "linear, cosine or constant") &&
           is_one_of("--pooling", s->pooling, "last, mean, max, attention or layers") &&
           (!s->mask || is_one_of("--mask", s->mask, "causal or full")) &&
           (!s->norm || is_one_of("--norm", s->norm, "rms or layer")) && check_mode(s);
}
