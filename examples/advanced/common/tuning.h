/* What the experiments of examples/advanced share: a program of one classifier over a Llama, trained on lines of
   "label ||| sentence". A method says what is new: which weights learn, what is put into the network, another loss.
   The frame reads options and data, makes batches, trains with AdamW and a schedule, keeps the weights that are best
   on dev, and reports accuracy, parameters trained, time and memory, as a row of a CSV file, too.

       int main(int argc, char **argv) {
           tuning_method method = {"my_program", "mine", NULL};
           method.setup = my_setup;                        // adds parameters: tuning_parameter, tuning_train_model
           return tuning_main(argc, argv, &method, my_options, 2);
       }

   Functions that can fail return 0 after saying why. Shapes: n tokens, D dim, L layers, C classes. */
#ifndef TUNING_H
#define TUNING_H

#include "minillama.h"
#include "../../common/file.h"
#include "../../common/options.h"
#include "../../run_llama/reviews.h"

typedef struct tuning tuning;

/* What main was called with, and the options that it was read by. */
typedef struct tuning_command {
    int argc;
    char **argv;
    const option *options;
    int n_options;
} tuning_command;

/* What the options say. 0 and NULL are the defaults that tuning_options names. */
typedef struct tuning_settings {
    const char *model, *tokenizer, *data, *task, *train, *dev, *test, *test_gold, *labels;
    const char *mask, *norm, *mode, *pooling, *schedule, *csv, *save, *save_model;
    int epochs, batch, seed, threads, max_len, max_tokens, eval_every, patience, head_hidden;
    int lower, plain, help;
    float lr, head_lr, warmup, clip, weight_decay, dropout, word_dropout, smoothing;
    const tuning_command *command; /* NULL: the settings are of no command line */
} tuning_settings;

/* Sentences that go through the network together. */
typedef struct tuning_batch {
    ml_batch
        rows; /* tokens, packed; labels; the loss is divided by `divisor`, the sentences of the whole step */
    const reviews *set;
    const int *index;      /* (rows.n_rows): where in the set they are */
    int learns;            /* a training pass: dropout is on */
    const int32_t *source; /* (n_tokens): which token of its row each is; -1: a placeholder */
} tuning_batch;

/* All that a program adds; every function may be NULL. */
typedef struct tuning_method {
    const char *program, *name; /* for the report */
    void *state;                /* the method's own */
    /* In place of a model and its tokenizer, of which none is loaded: gives every row its ids, one at least; called
       for train, dev and test, in this order. Such a method has `setup` and `logits`, too. */
    int (*encode)(tuning *t, reviews *set);
    /* In place of reading --train, which `check` then refuses: makes t->train, of encoded rows. */
    int (*make_train)(tuning *t);
    /* Called after the options were read, before anything is loaded: whether they fit together. May set t->front. */
    int (*check)(tuning *t);
    /* Called when model and data are there: adds parameters. NULL: the whole model learns. The head always does. */
    int (*setup)(tuning *t);
    int (*ready)(tuning *t); /* when all parameters are there, those of the head, too */
    /* Before each forward pass of the network, whose description it may change. */
    void (*begin)(tuning *t, ml_graph *g, ml_llama_desc *llama);
    unsigned places; /* see ml_llama_desc; `user` is the tuning */
    ml_insert insert;
    ml_tensor (*logits)(tuning *t, ml_graph *g,
                        const tuning_batch *batch); /* (n_rows, C); default tuning_logits */
    ml_tensor (*loss)(tuning *t, ml_graph *g,
                      const tuning_batch *batch); /* (1, 1); default tuning_classify */
    /* Adds the gradient of the loss of a batch; default tuning_backward, one pass. */
    int (*backward)(tuning *t, const tuning_batch *batch, float *loss);
    int (*plan)(tuning *t, int epoch); /* the epoch's batches, by tuning_plan_add; default tuning_plan */
    int (*after_step)(tuning *t);
    int (*measuring)(tuning *t, int begins); /* before and after the weights are measured on dev */
    int (*trained)(tuning *t);               /* before the report: may change the weights and t->result */
    int (*finish)(tuning *t);                /* after the report, with the best weights */
    int (*save)(tuning *t,
                const char *path); /* default tuning_save: model and head, or all parameters by name */
} tuning_method;

enum { TUNING_WEIGHTS = 0, TUNING_NO_DECAY, TUNING_HEAD, TUNING_OWN_GROUPS, TUNING_MAX_GROUPS = 128 };

/* A tensor that learns. */
typedef struct tuning_weight {
    char name[96];
    ml_tensor *tensor; /* own, or one of t->weights */
    ml_tensor own;
    int group;
} tuning_weight;

/* One step of an epoch: rows `index` of a set. */
typedef struct tuning_step {
    const reviews *set;
    const int *index;
    int n;
} tuning_step;

typedef struct tuning_result {
    double dev, test, gold; /* accuracies; gold is -1 without a file of real labels */
    double loss;            /* the last epoch's mean */
    int best_step, steps;   /* where dev was best, and how many there were */
    double seconds;         /* of training and measuring dev */
    double cpu_seconds;     /* the same in processor time, of all threads */
} tuning_result;

struct tuning {
    tuning_settings set;
    tuning_method method;
    char line[1024];     /* the options, as they were given */
    ml_model *model;     /* F32; NULL with the method's own `encode` */
    ml_tensor *weights;  /* (model->n_tensors): as model->tensors, with gradients where they learn */
    ml_llama_desc llama; /* of every pass; begin may change a copy */
    int front; /* so many placeholders (token 0) are put in front of each row; pooling leaves them out */
    const char *adapter; /* set by `check`: a file whose norm and mask the model is loaded with; NULL: none */
    const char *suffix;  /* appended to each sentence, which is cut in its stead; NULL: nothing */
    int no_head;         /* the method's logits need no classifier: none is made */
    label_names labels;  /* labels.n is C */
    reviews train, dev, test;
    int *gold; /* (test.n), or NULL */
    tuning_weight **parameters;
    int n_parameters;
    size_t parameters_capacity;
    ml_group groups[TUNING_MAX_GROUPS]; /* the first three as named above; tuning_group adds more */
    int n_groups, group;                /* group: of the parameters that are added from now on */
    ml_optimizer *optimizer;
    ml_random random;
    int epoch;
    const tuning_batch *batch; /* of the pass in progress */
    uint64_t pass, seeds;      /* training passes so far; seeds taken in this one */
    tuning_result result;
    struct tuning_private *private_part;
};

/* ---- the whole program ---- */

/* Reads the options (the frame's and the program's own), runs, reports. The exit status of main. */
int tuning_main(int argc, char **argv, const tuning_method *method, const option *own, int n_own);

int tuning_given(const tuning *t, const char *name); /* does the command line give this option? */

/* Its steps. tuning_open checks t->set, loads model and data, and calls check and setup; tuning_train trains,
   restores the best weights and measures them on test. */
void tuning_defaults(tuning_settings *set);
int tuning_open(tuning *t, const tuning_settings *set, const tuning_method *method);
int tuning_train(tuning *t);
void tuning_close(tuning *t);

/* ---- parameters (parameters.c) ---- */

/* A new tensor (rows, cols) of t->group that learns: normal with standard deviation sd; 0: zeros. NULL after saying
   why. The name is for files and messages. */
ml_tensor *tuning_parameter(tuning *t, const char *name, size_t rows, size_t cols, float sd);
int tuning_adopt(tuning *t, const char *name, ml_tensor *tensor); /* the same for a tensor of the caller's */
void tuning_set(ml_tensor *x, float number);                      /* fills it */
void tuning_set_uniform(tuning *t, ml_tensor *x, float limit);    /* in +-limit */
/* Layers first .. L-1 and the last norm learn; with `first` 0 the embedding, too. Norms are not decayed. */
int tuning_train_model(tuning *t, int first);
/* The whole model with learning rates by layer (Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text
   Classification"): --lr above the layers, times `decay` for each layer further down, the embedding lowest. */
int tuning_train_layers(tuning *t, float decay);
int tuning_train_weight(tuning *t, int index); /* t->weights[index] learns */
/* The index of a weight by its name in GGUF ("output_norm.weight"; with layer >= 0 "attn_q.weight"); -1: none. */
int tuning_find_weight(const tuning *t, int layer, const char *name);
tuning_weight *tuning_find(const tuning *t, const char *name); /* a parameter by its name; NULL: none */
/* A new group, which becomes t->group; lr 0: --lr. Its number, or -1 after saying why. */
int tuning_group(tuning *t, float lr, float weight_decay);
int64_t tuning_count(const tuning *t); /* numbers that learn */
/* All parameters' numbers, one after another: (tuning_count). */
void tuning_copy(const tuning *t, float *to);
void tuning_paste(tuning *t, const float *from);

/* ---- the network (network.c) ---- */

uint64_t tuning_seed(tuning *t); /* of a dropout: another with every call, the same when a pass is repeated */
ml_tensor tuning_hidden(tuning *t, ml_graph *g, const tuning_batch *batch); /* (n, D), without placeholders */
ml_pooling tuning_pooling(const tuning *t); /* by --pooling, if it is last, mean or max */
ml_tensor tuning_pooled(tuning *t, ml_graph *g, const tuning_batch *batch); /* (n_rows, D), by --pooling */
ml_tensor tuning_head(tuning *t, ml_graph *g, ml_tensor x); /* (n, D) -> (n, C), dropout first */
ml_tensor tuning_logits(tuning *t, ml_graph *g, const tuning_batch *batch); /* head(pooled) */
/* (1, 1), with --smoothing, divided by batch->rows.divisor: of these logits (n_rows, C); of the method's */
ml_tensor tuning_cross_entropy(tuning *t, ml_graph *g, const tuning_batch *batch, ml_tensor logits);
ml_tensor tuning_classify(tuning *t, ml_graph *g, const tuning_batch *batch);

/* ---- passes (passes.c) ---- */

typedef ml_tensor (*tuning_pass)(tuning *t, ml_graph *g, const tuning_batch *batch);
/* Runs a pass that computes a loss, and adds its gradient to the parameters'. `loss` may be NULL. */
int tuning_backward_of(tuning *t, const tuning_batch *batch, tuning_pass pass, float *loss);
int tuning_backward(tuning *t, const tuning_batch *batch, float *loss); /* of the method's loss */
/* A pass without gradients; `to`, which may be NULL, receives its result (rows, cols). */
int tuning_compute(tuning *t, const tuning_batch *batch, tuning_pass pass, float *to);
/* The class of each row, by the method's logits. */
int tuning_predict(tuning *t, const reviews *set, int *predicted);
/* The share of rows that are predicted right, by `truth` or, NULL, the set's labels. -1: after saying why. */
double tuning_measure(tuning *t, const reviews *set, const int *truth);

/* ---- data and batches (data.c, batches.c) ---- */

/* Sets read the same way as --train; free with reviews_free. The path must live as long. */
int tuning_read(tuning *t, reviews *set, const char *path, int n_labels);
int tuning_read_data(tuning *t); /* what --task names: labels, train, dev, test, gold */
/* `given`, or FOLDER/TASK-name by --data and --task, which t keeps. */
const char *tuning_path(tuning *t, const char *given, const char *name);
/* Whether no output is read by an option of the frame or as a path of tuning_path, and each can be written. */
int tuning_spares_inputs(const tuning *t, const used_file *outputs, int n);
void tuning_tidy(const tuning *t, reviews *set); /* by --lower and --plain, in place */
int tuning_encode(tuning *t, reviews *set);      /* the tokens of a set that was not read from a file */
/* Rows index[0 .. n-1] of a set as a batch of at most --max_tokens tokens: how many rows fit, at least one. */
int tuning_fill(tuning *t, tuning_batch *batch, const tuning_step *rows, int learns);
int tuning_plan(tuning *t, int epoch); /* all rows of t->train, shuffled, --batch at a time */
int tuning_plan_add(tuning *t, const tuning_step *step);
void tuning_shuffle(int *order, int n, ml_random *random);

/* ---- reports (report.c) ---- */

/* Prints a result, and appends it to --csv. */
int tuning_report(tuning *t, const char *method, const tuning_result *result);
int tuning_save(tuning *t, const char *path);
int tuning_can_save(const tuning *t);   /* whether tuning_save can; tuning_main asks before the training */
ml_head *tuning_head_object(tuning *t); /* a copy of the classifier; NULL after saying why there is none */

/* ---- between the files of the frame ---- */

enum { TUNING_PATHS = 16 };

typedef struct tuning_private {
    char paths[TUNING_PATHS][1024]; /* of files that were found by --task */
    used_file inputs[TUNING_PATHS]; /* all paths, and their names */
    int n_paths;
    ml_tensor *head, *head_bias, *hidden, *hidden_bias, *pool, *mix; /* parameters of head and pooling */
    ml_tensor *states;                                               /* (L + 1), with --pooling layers */
    ml_graph *graph;
    void *memory; /* of the graph */
    size_t size;
    tuning_step *steps; /* of this epoch */
    int n_steps;
    size_t steps_capacity;
    int *order, *every; /* (train.n): of this epoch; 0, 1, ... for the largest set */
    int32_t *tokens, *source, *starts, *truth, *kept; /* a batch; kept: rows that are no placeholders */
    int max_row, max_rows, max_batch; /* tokens of the longest row; rows and tokens of a batch */
    int n_worse;                      /* measurements since the best one */
    float *best;                      /* (tuning_count) */
} tuning_private;

enum { TUNING_OPTIONS = 33, TUNING_MODEL_OPTIONS = 2 }; /* the first two are for a model */
int tuning_options(tuning_settings *set, option *to);   /* fills in the table of the shared ones; how many */
int tuning_check_settings(const tuning_settings *set);
int tuning_make_batches(tuning *t);
int tuning_make_head(tuning *t);
void tuning_free_parameters(tuning *t);

#endif
