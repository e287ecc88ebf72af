/* What the parts of pretrain share. Functions that can fail return 0 after saying why. */
#ifndef PRETRAIN_H
#define PRETRAIN_H

#include "corpus.h"
#include "../common/curve.h"

enum { MAX_TEXTS = 64, MAX_BATCH = 1 << 22 };

typedef struct settings {
    const char *texts[MAX_TEXTS + 1];
    const char *model, *tokenizer, *output, *validation_text, *separator, *prompt, *type;
    int vocab_size, dim, hidden_dim, n_layers, n_heads, n_kv_heads, context;
    int rows, steps, warmup, seed, threads, every, sample_every, save_every, resume, checkpointing, help;
    float epochs, lr, final_lr, weight_decay, clip, validation;
} settings;

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
    double began; /* seconds, at the first step since this start */
    int64_t began_at;
    int64_t saved_at;      /* the step of the last checkpoint of this run; -1: there is none */
    uint64_t saved_random; /* and its random state, which no other run has there */
} run;

/* model.c: from --resume's checkpoint, from --model, or new; and its trainer */
int make_model(run *r);
int make_trainer(run *r);
/* The step of a checkpoint and the beginning of its random state; -1: there is none. */
int64_t read_checkpoint(const char *path, uint64_t *random);

/* training.c: steps until the last, or until stop_training is called (by the handler of a signal of this number) */
int train(run *r);
void stop_training(int number);
int stopped_by(void); /* 0: nothing */
/* The loss over the held-out text. */
int validate(run *r, double *per_token, double *per_byte);

#endif
