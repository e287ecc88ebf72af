/* run_llama's settings and its two halves. */
#ifndef RUN_LLAMA_H
#define RUN_LLAMA_H

#include "sentiment.h"

typedef struct settings {
    const char *option, *model, *tokenizer, *mode, *prompt, *adapter, *low_out, *high_out;
    const char *pooling, *schedule; /* words; NULL: by the mode */
    int seed, seeds, use_gpu, threads, max_new_tokens, slide, help;
    ml_sampler sampler;
    sentiment_settings sentiment;
} settings;

/* The model, computing as the mode says (NULL: as its file says); type F32 for one that is trained. NULL after saying
   why. */
ml_model *load_model(const settings *s, ml_type type);

/* --option generate; the exit status. */
int generate(const settings *s);

#endif
