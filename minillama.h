/* minillama.h - v0.2 - a whole small Llama in one C header: load, write, train, save - no dependencies
   Public domain or MIT-0, as you like; see the end of this file.

   DO THIS
      #define MINILLAMA_IMPLEMENTATION
   in one C or C++ file before including this header; include it anywhere else without. Link with -lm.
   Compile with -O3 and -march=native (or what your target has): the instructions are chosen then.

   A WHOLE PROGRAM
      #define MINILLAMA_IMPLEMENTATION
      #include "minillama.h"

      static int print(void *user, int32_t id, const char *text, size_t n) {
          (void)user, (void)id;
          return fwrite(text, 1, n, stdout) == n;  // 0 would stop
      }
      int main(void) {
          ml_error error;  ml_model *model;  ml_session *session;  ml_generate_desc desc = {0};
          desc.prompt = "Once upon a time";
          desc.on_token = print;
          if (ml_load("model.gguf", NULL, &model, &error) || ml_session_new(model, NULL, NULL, &session, &error) ||
              ml_generate(session, &desc, NULL, &error)) return fprintf(stderr, "%s\n", error.text), 1;
          ml_session_free(session);
          ml_free(model);
          return 0;
      }

   TRAINING one, loaded with ml_load_desc.type = ML_F32 or made by ml_create, on what follows each token:
      ml_trainer *trainer;  ml_trainer_desc how = {0};  float loss;
      how.max_tokens = 2048;  how.max_row = 256;  how.adamw.lr = 1e-3f;
      ml_trainer_new(model, &how, NULL, &trainer, &error);
      while (next_batch(&batch)) { // ml_examples: tokens, row_start, targets
          ml_train(trainer, &batch, &loss, &error);
          ml_backward(trainer, &error);
          ml_step(trainer, &error);
      }
      ml_save(model, "trained.gguf", NULL, &error);

   CONTENTS (search for the words behind >>; the implementation has the same order, with parts of its own between)
      >>results     ml_result, ml_error
      >>threads     ml_threads
      >>memory      ml_allocator, ml_arena
      >>random      ml_random
      >>formats     ml_type: F32, F16, BF16, Q8_0, Q4_0
      >>tensors     ml_tensor
      >>model       ml_config, ml_model, ml_session: ml_eval, ml_forward
      >>adapters    ml_lora
      >>training    ml_trainer: ml_train, ml_backward, ml_step, ml_evaluate, checkpoints; ml_head
      >>tokenizer   ml_encode, ml_decode
      >>generation  ml_sampler, ml_generate
      >>files       ml_archive (named tensors of any file), ml_load, ml_save
      >>names       ml_result_string
      Behind the API: >>platform, >>math, >>kernels (vectors, matrix multiply), >>linear, >>checkpoints.
   To learn how a Llama works and learns, read the implementation in order from >>kernels to >>generation. Each operation
   of the network stands in >>tensors, its way back right below it.

   SWITCHES (define before including with MINILLAMA_IMPLEMENTATION)
      ML_STATIC        everything static, for use inside one file (define it wherever you include)
      ML_DEF           what stands before each public function instead of extern or static
      ML_ASSERT(x)     instead of assert: internal invariants only; wrong arguments and files give error codes
      ML_NO_STDIO      no files: only ..._memory functions (ml_load and ml_save say that they are left out)
      ML_NO_MALLOC     no malloc: every constructor needs an allocator (see ml_arena)
      ML_NO_MMAP       read files into memory instead of mapping them
      ML_NO_SIMD, ML_NO_AVX512, ML_NO_AVX2, ML_NO_NEON   step down to simpler instructions
      ML_NO_TRAINING, ML_NO_PT, ML_NO_SAVE   leave out training, the reader of PyTorch's files, writing

   MEMORY  Nothing is allocated behind your back: constructors take an allocator (default malloc), a session also lives
      in a buffer of yours (ml_session_size, ml_session_init), and after construction nothing allocates.
      A mapped model takes no memory for its weights beyond the file's pages; a session's KV cache takes
      8 * n_layers * max_seq_len * kv_dim bytes. A trainer is one such buffer, too: 12 bytes for each number that
      it trains, and the activations of its largest batch.

   ERRORS  Functions return an ml_result and fill in an ml_error with one sentence. Nothing prints, exits or aborts.
      Files may be hostile: every size and offset in them is checked.

   THREADS  A model is immutable and may be shared, unless a trainer changes it; a session, a trainer, a random state and an
      arena belong to one thread at a time. There are no globals. A session or trainer itself works with as many threads
      as its description says: by OpenMP where the compiler has it on, or by a parallel_for of yours.

   NUMERICS  F32 arithmetic with fused multiply-add where the instructions have it; no -ffast-math. The same build gives
      the same bits for any number of threads. Reading tokens one by one, in passes or in a batch takes different
      kernels, whose sums differ in order: logits agree to about 1e-5 of their size. With Q8_0 and Q4_0 weights the
      activations are rounded to 8 bits for each block of 32 (as llama.cpp does): logits move by about 1 %. eps stands
      inside the square root of both norms.

   LIMITS  Little-endian machines. Llama's architecture only: RMSNorm or LayerNorm, rotary positions on adjacent pairs with
      theta and linear scaling, grouped-query attention, SwiGLU, no biases in the matrices. No GPU. */
#ifndef ML_MINILLAMA_H
#define ML_MINILLAMA_H

#include <stddef.h>
#include <stdint.h>

#ifndef ML_DEF
#if defined(ML_STATIC) && defined(__GNUC__)
#define ML_DEF static __attribute__((unused))
#elif defined(ML_STATIC)
#define ML_DEF static
#else
#define ML_DEF extern
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== >>results ====
   Every function that can fail returns an ml_result; 0 is success. Where an ml_error is accepted
   (NULL is fine), it receives the same code and one sentence that names the tensor, key or offset. */

#define ML_RESULTS(X)                                                                                        \
    X(ML_OK, 0, "ok")                                                                                        \
    X(ML_ERROR_ARGUMENT, -1, "wrong argument")                                                               \
    X(ML_ERROR_MEMORY, -2, "out of memory, or a buffer is too small")                                        \
    X(ML_ERROR_FILE, -3, "file cannot be opened, read or written")                                           \
    X(ML_ERROR_TRUNCATED, -4, "file is cut short")                                                           \
    X(ML_ERROR_FORMAT, -5, "file is corrupt or of an unknown format")                                        \
    X(ML_ERROR_UNSUPPORTED, -6, "valid, but not supported")                                                  \
    X(ML_ERROR_MISMATCH, -7, "parts do not fit together")                                                    \
    X(ML_ERROR_CONTEXT, -8, "text is longer than the context")                                               \
    X(ML_ERROR_NUMBER, -9, "a number is not finite")

typedef enum ml_result {
#define ML_RESULT_ENUM(name, value, text) name = value,
    ML_RESULTS(ML_RESULT_ENUM)
#undef ML_RESULT_ENUM
        ML_RESULT_LAST_ = 1
} ml_result;

typedef struct ml_error {
    ml_result code;
    char text[256]; /* one sentence, zero-terminated; empty on success */
} ml_error;

/* ==== >>threads ====
   One thread unless asked for more. The work of an operation is cut into at most `count` tasks, each of
   which owns its outputs, so results are the same bits for every thread count. */

typedef void (*ml_task)(void *arg, int index);

typedef struct ml_threads {
    int count; /* default 1 */
    /* Calls task(arg, i) once for each i in 0..n_tasks-1, in any order or at once, and returns when all
       are done. Default: OpenMP where the compiler has it on (-fopenmp), else a plain loop. */
    void (*parallel_for)(void *user, int n_tasks, ml_task task, void *arg);
    void *user;
} ml_threads;

/* ==== >>memory ==== */

typedef struct ml_allocator {
    void *(*alloc)(size_t size, void *user); /* aligned for any type; NULL when there is no more */
    void (*free)(void *memory, void *user);
    void *user;
} ml_allocator; /* give both functions or neither; default malloc and free (none with ML_NO_MALLOC) */

/* An allocator over a buffer of yours, for targets without malloc: takes from the front and gives nothing
   back. Set memory and size, the rest 0; `used` tells how much was needed. */
typedef struct ml_arena {
    unsigned char *memory;
    size_t size, used;
} ml_arena;
ML_DEF ml_allocator ml_arena_allocator(ml_arena *arena);

/* ==== >>random ====
   xoshiro256** (Blackman & Vigna 2018), seeded through splitmix64. The same seed gives the same run. */

typedef struct ml_random {
    uint64_t state[4];
} ml_random;
ML_DEF void ml_random_seed(ml_random *random, uint64_t seed);
ML_DEF uint64_t ml_random_u64(ml_random *random);
ML_DEF float ml_random_uniform(ml_random *random); /* in [0, 1) */
ML_DEF float ml_random_normal(ml_random *random);  /* mean 0, standard deviation 1 */

/* ==== >>formats ====
   Number formats of tensors. Weights are used by the forward pass in the first five as they stand. */

typedef enum ml_type {
    ML_TYPE_NONE = 0,
    ML_F32,
    ML_F16,
    ML_BF16,
    ML_Q8_0, /* blocks of 32: one F16 scale d, 32 signed bytes q; value d * q. 34 bytes */
    ML_Q4_0, /* blocks of 32: one F16 scale d, 16 bytes of two 4-bit q; value d * (q - 8). 18 bytes */
    ML_F64,
    ML_I64,
    ML_I32,
    ML_I16,
    ML_I8,
    ML_U8,
    ML_BOOL,
    ML_TYPE_COUNT
} ml_type;

ML_DEF const char *ml_type_name(ml_type type);      /* "F32", "Q8_0", ... ; "?" for a wrong one */
ML_DEF ml_type ml_type_from_name(const char *name); /* without regard to case; ML_TYPE_NONE if unknown */
ML_DEF size_t ml_type_block(ml_type type);          /* numbers per block: 32 for Q8_0 and Q4_0, else 1 */
ML_DEF size_t ml_row_bytes(ml_type type,
                           size_t cols); /* bytes of a row; 0 if cols is no multiple of the block */

/* Converts n numbers. From any type but the integers' 64-bit extremes exactly or to the nearest (ties to
   even); `to` must be one of the first five. Fails when n is no multiple of a block. */
ML_DEF ml_result ml_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n);

/* ==== >>tensors ==== */

/* A matrix: row-major (rows, cols); a vector is one row. Weights keep PyTorch's (out, in). data NULL: the
   model has no such tensor (the biases of rms norms). */
typedef struct ml_tensor {
    ml_type type;
    int rows, cols;
    void *data;
    float *grad; /* in training: (rows, cols), the gradient of the loss; NULL: none is wanted */
} ml_tensor;

/* ==== >>model ==== */

typedef enum ml_norm {
    ML_NORM_DEFAULT = 0, /* what the file says, else rms */
    ML_NORM_RMS,         /* x / rms(x) * weight: Llama (Zhang & Sennrich 2019) */
    ML_NORM_LAYER        /* (x - mean) / sd * weight + bias (Ba et al. 2016) */
} ml_norm;

typedef enum ml_mask {
    ML_MASK_DEFAULT = 0, /* what the file says, else causal */
    ML_MASK_CAUSAL,      /* a token sees itself and what stands before it */
    ML_MASK_FULL         /* a token sees its whole row */
} ml_mask;

typedef struct ml_config {
    int dim;         /* D, width of the residual stream */
    int hidden_dim;  /* H, width of the feed-forward layer */
    int n_layers;    /* L */
    int n_heads;     /* A, query heads; head size hd = D / A */
    int n_kv_heads;  /* key and value heads; divides n_heads; kv_dim = n_kv_heads * hd */
    int vocab_size;  /* V */
    int max_seq_len; /* positions the model was trained for */
    int tied_output; /* the output layer is the token embedding */
    ml_norm norm;
    ml_mask mask;
    float norm_eps;
    float rope_theta; /* base of the rotary frequencies */
    float rope_scale; /* position interpolation: positions are divided by this; 1 is none */
} ml_config;

typedef struct ml_tokenizer ml_tokenizer;
typedef struct ml_archive ml_archive;
typedef struct ml_lora ml_lora;
typedef struct ml_model_private ml_model_private;

/* A loaded model. Read it freely; it does not change and any number of sessions may share it. */
typedef struct ml_model {
    ml_config config;
    const ml_tokenizer *tokenizer; /* NULL when none was found */
    int n_tensors;
    const ml_tensor *tensors; /* in the order of the parameter table; names by ml_tensor_name. A tied output
                                 shows the embedding's data */
    int64_t n_parameters;     /* numbers in all tensors, a tied output counted once */
    ml_model_private *private_part;
} ml_model;

#define ML_NAME_SIZE 64
ML_DEF ml_result ml_tensor_name(const ml_model *model, int index, char name[ML_NAME_SIZE]); /* GGUF's name */

/* A session: KV cache and scratch of one sequence in progress, in one buffer. One thread at a time. */
typedef struct ml_session ml_session;
typedef struct ml_session_desc {
    int max_seq_len;     /* positions in the KV cache; default the model's; 0 < max_seq_len */
    int max_batch;       /* most tokens in one pass; default the smaller of max_seq_len and 256 */
    const ml_lora *lora; /* an adapter over the model, which must outlive the session; default none */
    ml_threads threads;
} ml_session_desc;

ML_DEF ml_result ml_session_size(const ml_model *model, const ml_session_desc *desc, size_t *size);
ML_DEF ml_result ml_session_init(const ml_model *model, const ml_session_desc *desc, void *memory,
                                 size_t size, ml_session **session, ml_error *error);
ML_DEF ml_result ml_session_new(const ml_model *model, const ml_session_desc *desc,
                                const ml_allocator *allocator, ml_session **session, ml_error *error);
ML_DEF void ml_session_free(ml_session *session); /* NULL is fine; nothing to do after ml_session_init */

ML_DEF int ml_session_length(const ml_session *session); /* tokens held */
ML_DEF ml_result ml_session_truncate(ml_session *session,
                                     int length); /* keep the first `length`; 0 starts anew */

/* Appends n tokens to the session and computes the logits (V) that follow the last one; they stay valid until
   the session's next call. Many tokens are read in passes of max_batch. With mask full the whole sequence
   is computed anew. ML_ERROR_CONTEXT, and nothing done, when they do not fit. */
ML_DEF ml_result ml_eval(ml_session *session, const int32_t *tokens, int n, const float **logits,
                         ml_error *error);

/* A packed batch of rows of any lengths: row r is tokens[row_start[r]] .. tokens[row_start[r+1] - 1]. Rows never
   see each other. */
typedef struct ml_batch {
    const int32_t *tokens; /* (n_tokens) */
    int n_tokens;
    const int32_t *row_start; /* (n_rows + 1), from 0 to n_tokens; NULL: one row */
    int n_rows;
    const int32_t *select; /* (n_select) indices into tokens: where logits are wanted; NULL: everywhere */
    int n_select;
    float *hidden; /* out (n_tokens, D): after the last norm; NULL: not wanted */
    float *logits; /* out (n_select or n_tokens, V); NULL: not wanted */
} ml_batch;

/* Computes a batch without touching the session's sequence. */
ML_DEF ml_result ml_forward(ml_session *session, const ml_batch *batch, ml_error *error);

/* ==== >>adapters ====
   LoRA (Hu et al. 2021): beside a frozen matrix W (out, in) stand two thin ones, A (rank, in) and B (out, rank), and
   W + alpha / rank * B A is used in its place. A begins random and B at 0, so that nothing changes at first. */

enum { /* what is adapted, added up */
       ML_LORA_Q = 1,
       ML_LORA_K = 2,
       ML_LORA_V = 4,
       ML_LORA_O = 8,
       ML_LORA_W1 = 16,
       ML_LORA_W2 = 32,
       ML_LORA_W3 = 64,
       ML_LORA_ATTENTION = 15,
       ML_LORA_ALL = 127
};

typedef struct ml_lora_desc {
    int rank;         /* default 4 */
    float alpha;      /* default rank */
    unsigned targets; /* default ML_LORA_ATTENTION */
    float init_sd;    /* standard deviation of A; default 0.02 */
} ml_lora_desc;

/* An adapter, for any number of models of one shape. Read it freely; only a trainer and the functions below change it. */
struct ml_lora {
    int rank;
    float alpha;
    int n_tensors;
    const ml_tensor
        *tensors; /* ((layer * 7 + target) * 2): A, and after it B; no data where nothing is adapted */
    int64_t n_parameters;
    ml_allocator allocator;
    void *block;
};

ML_DEF ml_result ml_lora_create(const ml_model *model, const ml_lora_desc *desc, ml_random *random,
                                const ml_allocator *allocator, ml_lora **lora, ml_error *error);
ML_DEF void ml_lora_free(ml_lora *lora);
/* W += alpha / rank * B A for good, and back (to rounding). The model's weights must be its own and F32: see
   ml_load_desc.type. */
ML_DEF ml_result ml_lora_merge(ml_model *model, const ml_lora *lora, ml_error *error);
ML_DEF ml_result ml_lora_unmerge(ml_model *model, const ml_lora *lora, ml_error *error);

/* ==== >>training ====
   ml_train computes a batch and its gradients; ml_step lets AdamW move the weights; ml_evaluate only computes. */

/* A classifier on top of a model: logits (C) = W h + b of one hidden state h (D) of a row. */
typedef struct ml_head {
    int n_classes;
    ml_tensor weight, bias; /* (C, D), (1, C) */
    ml_allocator allocator;
} ml_head;

/* Uniform in +-1 / sqrt(D), as PyTorch's nn.Linear begins. */
ML_DEF ml_result ml_head_create(const ml_model *model, int n_classes, ml_random *random,
                                const ml_allocator *allocator, ml_head **head, ml_error *error);
ML_DEF void ml_head_free(ml_head *head);

typedef enum ml_pooling {
    ML_POOL_LAST = 0, /* h of the last token of a row */
    ML_POOL_MEAN      /* the mean over its tokens */
} ml_pooling;

/* AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019): with g the gradient, m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2,
   c1 = 1 - b1^t, c2 = 1 - b2^t at step t. */
typedef enum ml_adamw_form {
    ML_ADAMW_FOLDED = 0, /* w -= lr sqrt(c2) / c1 * m / (sqrt(v) + eps); then w -= lr decay w */
    ML_ADAMW_PYTORCH     /* w -= lr decay w; then w -= lr / c1 * m / (sqrt(v / c2) + eps) */
} ml_adamw_form;

typedef struct ml_adamw {
    float lr;           /* 0 < lr; the schedule multiplies it */
    float head_lr;      /* of the head; default lr */
    float beta1, beta2; /* default 0.9, 0.999 */
    float eps;          /* default 1e-6 */
    float weight_decay; /* default 0 */
    int decay_all;      /* norms and biases decay, too */
    float clip;         /* the gradient's global norm is cut to this; default: it is not */
    ml_adamw_form form;
} ml_adamw;

/* What lr is multiplied by: up from 0 along a line for warmup_steps, then 1, or down to `final` at total_steps. */
typedef enum ml_decay { ML_DECAY_NONE = 0, ML_DECAY_LINEAR, ML_DECAY_COSINE } ml_decay;
typedef struct ml_schedule {
    ml_decay decay;
    int warmup_steps, total_steps;
    float final; /* default 0 */
} ml_schedule;
ML_DEF float ml_schedule_at(const ml_schedule *schedule, int64_t step); /* for the step after `step` steps */

typedef struct ml_trainer_desc {
    int max_tokens; /* of a batch; default the model's max_seq_len */
    int max_rows;   /* of a batch; default max_tokens */
    int max_row; /* tokens of the longest row; default the smaller of max_tokens and the model's max_seq_len */
    ml_lora *lora; /* is trained, and the model is frozen; default: the model is trained */
    ml_head *head; /* is trained on labels; default: next tokens are learned */
    int frozen;    /* the model is frozen without an adapter: the head learns alone */
    ml_pooling pooling;
    float dropout;     /* of the head's input (Srivastava et al. 2014); default 0 */
    uint64_t seed;     /* of dropout */
    int checkpointing; /* keep only each layer's input and compute the rest twice: a third more time for much less
                          memory, and the same gradients */
    ml_adamw adamw;
    ml_schedule schedule;
    ml_threads threads;
} ml_trainer_desc;

/* A training run over a model, whose weights it changes: they must be the model's own and F32 (see ml_load_desc.type) unless
   they are frozen. Nobody else may use the model meanwhile. Read the fields freely. */
typedef struct ml_trainer {
    int64_t step;           /* steps done */
    float learning_rate;    /* of the last step */
    float gradient_norm;    /* global, of the last step, before clipping */
    int64_t n_parameters;   /* that are trained */
    uint64_t progress[8];   /* the caller's own (a position in the data, ...): kept in checkpoints */
    const ml_tensor *model; /* as model->tensors, with gradients where they are trained */
    const ml_tensor *lora;  /* as lora->tensors, with gradients; or NULL */
    ml_tensor head[2];      /* weight and bias with their gradients */
    struct ml_trainer_private *private_part;
} ml_trainer;

/* The size is exact: everything that training takes, gradients, moments and activations, lies in that one buffer. */
ML_DEF ml_result ml_trainer_size(const ml_model *model, const ml_trainer_desc *desc, size_t *size,
                                 ml_error *error);
ML_DEF ml_result ml_trainer_init(ml_model *model, const ml_trainer_desc *desc, void *memory, size_t size,
                                 ml_trainer **trainer, ml_error *error);
ML_DEF ml_result ml_trainer_new(ml_model *model, const ml_trainer_desc *desc, const ml_allocator *allocator,
                                ml_trainer **trainer, ml_error *error);
ML_DEF void ml_trainer_free(ml_trainer *trainer); /* NULL is fine; nothing to do after ml_trainer_init */

/* A packed batch with what is to be learned from it: `targets` without a head, `labels` with one. */
typedef struct ml_examples {
    const int32_t *tokens; /* (n_tokens) */
    int n_tokens;
    const int32_t *row_start; /* (n_rows + 1), from 0 to n_tokens; NULL: one row */
    int n_rows;
    const int32_t *targets; /* (n_tokens): the token that follows each; -1: not counted */
    const int32_t *labels;  /* (n_rows): 0 .. C-1; -1: not counted */
    float
        divisor; /* the loss is the sum of -log p over all that counts, divided by this; default their number */
    float *log_probs; /* out (n_rows, C) with a head; NULL: not wanted */
} ml_examples;

/* Computes the loss and records what its gradient needs; ml_backward adds the gradient to what is there since the last
   ml_step or ml_zero_gradients. Whoever leaves ml_backward out calls ml_zero_gradients: without a head the output layer's
   part is added by ml_train itself, while the logits are there. ML_ERROR_NUMBER when the loss is not finite; all gradients
   are 0 then. */
ML_DEF ml_result ml_train(ml_trainer *trainer, const ml_examples *examples, float *loss, ml_error *error);
ML_DEF ml_result ml_backward(ml_trainer *trainer, ml_error *error);
/* One step of AdamW by the gradients, which are then 0. ML_ERROR_NUMBER, and nothing done, when they are not finite. */
ML_DEF ml_result ml_step(ml_trainer *trainer, ml_error *error);
ML_DEF void ml_zero_gradients(ml_trainer *trainer);
/* A checkpoint: all that is trained, AdamW's moments, step, progress and dropout's place, in one GGUF file that appears
   whole or not at all (see ml_save). ml_trainer_load puts a trainer of the same description there again, and it goes on
   bit for bit; a checkpoint of another shape changes nothing. A checkpoint of a whole model is a model file, too. */
ML_DEF ml_result ml_trainer_save(const ml_trainer *trainer, const char *path, ml_error *error);
ML_DEF ml_result ml_trainer_load(ml_trainer *trainer, const char *path, ml_error *error);
/* The loss (may be NULL) without dropout, and nothing recorded; with a head and no labels only log_probs. */
ML_DEF ml_result ml_evaluate(ml_trainer *trainer, const ml_examples *examples, float *loss, ml_error *error);

/* ==== >>tokenizer ====
   SentencePiece BPE (Kudo & Richardson 2018; Sennrich et al. 2016): start from single characters, join the
   neighbours whose joint piece has the highest score (leftmost on a tie) until none is left; characters
   without a piece become bytes. */

enum { ML_ADD_BOS = 1, ML_ADD_EOS = 2 }; /* flags of ml_encode */

typedef enum ml_piece_kind { /* numbered as in GGUF */
                             ML_PIECE_NORMAL = 1,
                             ML_PIECE_UNKNOWN,
                             ML_PIECE_CONTROL,
                             ML_PIECE_USER_DEFINED,
                             ML_PIECE_UNUSED,
                             ML_PIECE_BYTE
} ml_piece_kind;

/* From a file (tokenizer.model, GGUF or llama2.c's .bin, told apart by content) or its bytes in memory. The bytes
   need not outlive the call. */
ML_DEF ml_result ml_tokenizer_load(const char *path, const ml_allocator *allocator, ml_tokenizer **tokenizer,
                                   ml_error *error);
ML_DEF ml_result ml_tokenizer_load_memory(const void *data, size_t size, const ml_allocator *allocator,
                                          ml_tokenizer **tokenizer, ml_error *error);
ML_DEF void ml_tokenizer_free(ml_tokenizer *tokenizer);

ML_DEF int ml_tokenizer_size(const ml_tokenizer *tokenizer); /* V */
ML_DEF int32_t ml_tokenizer_bos(const ml_tokenizer *tokenizer);
ML_DEF int32_t ml_tokenizer_eos(const ml_tokenizer *tokenizer);
ML_DEF int32_t ml_tokenizer_unknown(const ml_tokenizer *tokenizer);
ML_DEF int32_t ml_tokenizer_padding(const ml_tokenizer *tokenizer); /* the id of byte 0 where none is given */
/* A piece as stored (spaces as U+2581, not zero-terminated); NULL for an id outside. The outs may be NULL. */
ML_DEF const char *ml_tokenizer_piece(const ml_tokenizer *tokenizer, int32_t id, size_t *length, float *score,
                                      ml_piece_kind *kind);

/* Encodes n_bytes of text (UTF-8, but any bytes come back by ml_decode). `work`, aligned for int32_t, holds
   at least ml_encode_size(n_bytes) bytes; *ids points into it. */
ML_DEF size_t ml_encode_size(size_t n_bytes);
ML_DEF ml_result ml_encode(const ml_tokenizer *tokenizer, const char *text, size_t n_bytes, int flags,
                           void *work, size_t work_size, const int32_t **ids, size_t *n_ids, ml_error *error);

/* Decodes ids into text (zero-terminated if room is left). Control pieces give nothing, and the space that
   encoding puts in front is taken away again. *n_bytes is what the whole needs; ML_ERROR_MEMORY if that is
   more than size. text may be NULL with size 0, to ask. */
ML_DEF ml_result ml_decode(const ml_tokenizer *tokenizer, const int32_t *ids, size_t n_ids, char *text,
                           size_t size, size_t *n_bytes, ml_error *error);

/* The bytes that token `id` adds after token `previous` (-1: none): for streaming. Points into the
   tokenizer or static data; concatenated over a sequence it equals ml_decode. */
ML_DEF const char *ml_decode_token(const ml_tokenizer *tokenizer, int32_t previous, int32_t id,
                                   size_t *n_bytes);

/* ==== >>generation ==== */

/* How the next token is chosen. The steps are applied in this order, each unless left at 0: repetition
   penalty on the logits; temperature; softmax; top-k; top-p; min-p; epsilon; then the rest is
   renormalised and one is drawn. The most likely token always stays. */
typedef struct ml_sampler {
    float temperature; /* 0: always the most likely (greedy) */
    int top_k;         /* keep the k most likely (Fan et al. 2018) */
    float top_p;       /* keep the smallest set with probability >= p (Holtzman et al. 2020) */
    float min_p;       /* drop what is below min_p times the most likely (Nguyen et al. 2024) */
    float epsilon;     /* drop probabilities below epsilon (Hewitt et al. 2022) */
    float
        repetition_penalty; /* divide positive, multiply negative logits of tokens seen (Keskar et al. 2019) */
    int repetition_window;  /* how many of the last tokens count as seen; default 64 */
} ml_sampler;

/* Draws a token from logits (n), which are overwritten. `history`: the tokens so far, for the repetition
   penalty. `work`: room for n ml_candidate. */
typedef struct ml_candidate {
    float p;
    int32_t id;
} ml_candidate;
ML_DEF int32_t ml_sample(const ml_sampler *sampler, ml_random *random, float *logits, int n,
                         const int32_t *history, int n_history, ml_candidate *work);

typedef enum ml_overflow {
    ML_OVERFLOW_ERROR = 0, /* ML_ERROR_CONTEXT when the context is full */
    ML_OVERFLOW_SLIDE /* drop the oldest half of what follows bos, and go on (reads the kept half again) */
} ml_overflow;

typedef enum ml_stop {
    ML_STOP_LENGTH = 1, /* max_new_tokens reached, or the context full */
    ML_STOP_END,        /* the model ended its text: eos, or the bos of a next one */
    ML_STOP_CALLER      /* on_token said so */
} ml_stop;

typedef struct ml_generate_desc {
    const char *prompt;        /* text, zero-terminated; bos is put in front. Needs the model's tokenizer */
    const int32_t *prompt_ids; /* or token ids (bos included) */
    int n_prompt_ids;
    int max_new_tokens; /* default: until the context is full */
    ml_sampler sampler; /* default greedy */
    ml_random *random;  /* needed unless greedy */
    ml_overflow overflow;
    /* Called for each new token with the bytes it adds; not zero-terminated. Return 0 to stop. */
    int (*on_token)(void *user, int32_t id, const char *text, size_t n_bytes);
    void *user;
} ml_generate_desc;

typedef struct ml_generated {
    int n_prompt, n_new; /* tokens read and tokens made (the one that ended the text not counted) */
    ml_stop stop;
} ml_generated;

/* Starts the session anew, reads the prompt, writes on. *generated may be NULL. */
ML_DEF ml_result ml_generate(ml_session *session, const ml_generate_desc *desc, ml_generated *generated,
                             ml_error *error);

/* ==== >>files ==== */

/* An archive of named tensors and named values, whatever the file: PyTorch .pt (dictionaries, lists and
   tuples give names joined by dots: "model.layers.0.attention.wq.weight"; a tuple at the top "0", "1"),
   GGUF, safetensors, llama2.c's .bin (under the names of its own PyTorch code). Nothing in a file is executed. */
#define ML_MAX_DIMS 8
typedef struct ml_array {
    const char *name; /* zero-terminated */
    ml_type type;
    int n_dims;
    int64_t shape[ML_MAX_DIMS];  /* outermost first */
    int64_t stride[ML_MAX_DIMS]; /* in elements; of a quantised type only contiguous ones exist */
    const void *data;            /* first element, inside the archive's bytes; no alignment promised */
    int is_contiguous;
} ml_array;

typedef enum ml_value_kind {
    ML_VALUE_INT = 1,
    ML_VALUE_FLOAT,
    ML_VALUE_BOOL,
    ML_VALUE_STRING,
    ML_VALUE_LIST
} ml_value_kind;
typedef struct ml_value {
    const char *name; /* "model_args.dim", "llama.block_count", ... */
    ml_value_kind kind;
    int64_t i;     /* int, bool (0 or 1) */
    double f;      /* float; also set for int */
    const char *s; /* string: bytes, not zero-terminated */
    size_t length; /* bytes of a string, elements of a list (GGUF arrays; their bytes begin at s) */
    int list_type; /* GGUF's number for the elements' type */
} ml_value;

ML_DEF ml_result ml_archive_open(const char *path, const ml_allocator *allocator, ml_archive **archive,
                                 ml_error *error);
ML_DEF ml_result ml_archive_open_memory(const void *data, size_t size, const ml_allocator *allocator,
                                        ml_archive **archive, ml_error *error); /* data must outlive it */
ML_DEF void ml_archive_close(ml_archive *archive);
ML_DEF const char *
ml_archive_format(const ml_archive *archive); /* "PyTorch", "GGUF", "safetensors", "llama2.c" */
ML_DEF size_t ml_archive_n_arrays(const ml_archive *archive);
ML_DEF const ml_array *ml_archive_array(const ml_archive *archive, size_t index);
ML_DEF const ml_array *ml_archive_find(const ml_archive *archive,
                                       const char *name); /* NULL if there is none */
ML_DEF size_t ml_archive_n_values(const ml_archive *archive);
ML_DEF const ml_value *ml_archive_value(const ml_archive *archive, size_t index);
ML_DEF const ml_value *ml_archive_find_value(const ml_archive *archive, const char *name);

/* Elements of an array, row-major, converted to float or int64; n must be its number of elements. */
ML_DEF ml_result ml_array_read(const ml_array *array, float *dst, size_t n);
ML_DEF ml_result ml_array_read_ints(const ml_array *array, int64_t *dst, size_t n);
ML_DEF size_t ml_array_count(const ml_array *array);

typedef struct ml_load_desc {
    ml_allocator allocator;
    /* Of the matrices, F32 to Q4_0. Given, all weights are converted into memory of the model's own, which may be
       written to (F32: for training), and the file is closed. Default: as the file has them, used where they
       stand, read-only, where possible. */
    ml_type type;
    ml_norm norm; /* override what the file says */
    ml_mask mask;
    /* Path of a tokenizer of vocab_size pieces. Default: the file's own; else tokenizer.model or tokenizer.bin beside
       it, passed over if its size is another. */
    const char *tokenizer;
    const void *tokenizer_data; /* or its bytes */
    size_t tokenizer_size;
    const void *config_json; /* for ml_load_memory of a safetensors: its config.json */
    size_t config_json_size;
} ml_load_desc;

/* Loads a model: any of the archive formats, told apart by content. A GGUF, safetensors or .pt file is mapped and its
   weights used where they stand; ml_load_memory uses them in `data`, which must outlive the model. */
ML_DEF ml_result ml_load(const char *path, const ml_load_desc *desc, ml_model **model, ml_error *error);
ML_DEF ml_result ml_load_memory(const void *data, size_t size, const ml_load_desc *desc, ml_model **model,
                                ml_error *error);
ML_DEF void ml_free(ml_model *model);

/* Makes a model with random weights, normal with standard deviation 0.02 (for training and measuring).
   0 in n_kv_heads, norm, mask, norm_eps, rope_theta or rope_scale stands for the usual. */
ML_DEF ml_result ml_create(const ml_config *config, ml_type type, ml_random *random,
                           const ml_allocator *allocator, ml_model **model, ml_error *error);

/* Gives a created model the tokenizer that it is to be saved with. The model owns it from then on, and frees what it had. */
ML_DEF ml_result ml_set_tokenizer(ml_model *model, ml_tokenizer *tokenizer, ml_error *error);

typedef enum ml_format { ML_GGUF = 0, ML_SAFETENSORS } ml_format;
typedef struct ml_save_desc {
    ml_format format;
    /* Of the matrices; default: as they are (in safetensors Q8_0 and Q4_0 become F16). Norms are F32; a row that no
       block fits becomes F16; with Q4_0 the layer that makes the logits (or the tied embedding) is Q8_0. */
    ml_type type;
    const char *name; /* general.name; default "minillama" */
} ml_save_desc;

/* Writes PATH.tmp, syncs, then renames: an existing file is replaced whole or not at all. Safetensors is Hugging Face's
   layout; it also replaces config.json in the same folder, and holds no tokenizer. */
ML_DEF ml_result ml_save(const ml_model *model, const char *path, const ml_save_desc *desc, ml_error *error);

/* Writes an adapter (see >>adapters) in the same way: a GGUF that llama.cpp reads, or, as safetensors, Hugging Face
   PEFT's adapter_model.safetensors; that also replaces adapter_config.json in the same folder. Types F32 (the default)
   to BF16. */
ML_DEF ml_result ml_lora_save(const ml_model *model, const ml_lora *lora, const char *path,
                              const ml_save_desc *desc, ml_error *error);

/* Reads an adapter for this model, told apart by content: llama.cpp's GGUF or PEFT's safetensors (or .bin), whose
   adapter_config.json stands beside it, or in memory. Its numbers become F32 in memory of the adapter's own. All pairs
   must be of one rank. Whatever else would change the model's results (DoRA, rsLoRA, an adapted embedding, ...) is
   refused: ML_ERROR_UNSUPPORTED. */
ML_DEF ml_result ml_lora_load(const char *path, const ml_model *model, const ml_allocator *allocator,
                              ml_lora **lora, ml_error *error);
ML_DEF ml_result ml_lora_load_memory(const void *data, size_t size, const void *config_json,
                                     size_t config_json_size, const ml_model *model,
                                     const ml_allocator *allocator, ml_lora **lora, ml_error *error);

/* ==== >>names ==== */

ML_DEF const char *ml_result_string(ml_result result);

#ifdef __cplusplus
}
#endif
#endif /* ML_MINILLAMA_H */

/* ######## implementation ######## */

#if defined(MINILLAMA_IMPLEMENTATION) && !defined(ML_MINILLAMA_IMPLEMENTED)
#define ML_MINILLAMA_IMPLEMENTED

/* ==== >>platform ==== */

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>
#ifndef ML_NO_MALLOC
#include <stdlib.h>
#endif
#ifndef ML_NO_STDIO
#include <stdio.h>
#endif

#if !defined(ML_NO_STDIO) && !defined(ML_NO_SAVE)
#define MLI_SAVING
#endif

#ifndef ML_ASSERT
#include <assert.h>
#define ML_ASSERT(condition) assert(condition) /* internal invariants only; never arguments or files */
#endif

/* Which instructions: what the compiler was told it may use (-march=...), stepped down by ML_NO_... */
#if !defined(ML_NO_SIMD)
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__) &&       \
    !defined(ML_NO_AVX512)
#define MLI_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && !defined(ML_NO_AVX2)
#define MLI_AVX2
#elif (defined(__aarch64__) || defined(_M_ARM64)) && !defined(ML_NO_NEON)
#define MLI_NEON
#endif
#endif
#if defined(MLI_AVX512) || defined(MLI_AVX2)
#include <immintrin.h>
#elif defined(MLI_NEON)
#include <arm_neon.h>
#endif

#if defined(__GNUC__)
#define MLI_RESTRICT __restrict__
#define MLI_INLINE static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define MLI_RESTRICT __restrict
#define MLI_INLINE static __forceinline
#else
#define MLI_RESTRICT
#define MLI_INLINE static
#endif

#define MLI_MIN(a, b) ((a) < (b) ? (a) : (b))
#define MLI_MAX(a, b) ((a) > (b) ? (a) : (b))

/* ==== >>results ==== */

/* A sentence grown piece by piece into a fixed buffer: needs no stdio, and cannot overflow. */
static void mli_put(char *text, size_t size, size_t *at, const char *s, size_t n) {
    size_t i;
    for (i = 0; i < n && *at + 1 < size; i++) {
        unsigned char c = (unsigned char)s[i];
        text[(*at)++] = c < 32 || c == 127 ? '?' : (char)c; /* names from files may hold anything */
    }
    text[*at] = 0;
}

static void mli_put_int(char *text, size_t size, size_t *at, int64_t value) {
    char digits[24];
    size_t n = sizeof digits;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do {
        digits[--n] = (char)('0' + (int)(rest % 10));
        rest /= 10;
    } while (rest);
    if (value < 0) digits[--n] = '-';
    mli_put(text, size, at, digits + n, sizeof digits - n);
}

/* Formats into text: %s a string (clipped to 96 bytes), %d an int, %z a size_t, %l an int64_t, %% a percent sign. */
static void mli_format_v(char *text, size_t size, const char *format, va_list args) {
    size_t at = 0;
    const char *p, *s;
    text[0] = 0;
    for (p = format; *p; p++) {
        if (*p != '%') {
            mli_put(text, size, &at, p, 1);
            continue;
        }
        switch (*++p) {
        case 's':
            s = va_arg(args, const char *);
            mli_put(text, size, &at, s, MLI_MIN(strlen(s), 96));
            break;
        case 'd': mli_put_int(text, size, &at, va_arg(args, int)); break;
        case 'z': mli_put_int(text, size, &at, (int64_t)va_arg(args, size_t)); break;
        case 'l': mli_put_int(text, size, &at, va_arg(args, int64_t)); break;
        default: mli_put(text, size, &at, p, 1); break;
        }
    }
}

static void mli_format(char *text, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    mli_format_v(text, size, format, args);
    va_end(args);
}

/* Fills in the caller's error, if there is one, and returns the code: `return mli_fail(error, ...)`. */
static ml_result mli_fail(ml_error *error, ml_result code, const char *format, ...) {
    if (error) {
        va_list args;
        va_start(args, format);
        mli_format_v(error->text, sizeof error->text, format, args);
        va_end(args);
        error->code = code;
    }
    return code;
}

static ml_result mli_ok(ml_error *error) {
    if (error) {
        error->code = ML_OK;
        error->text[0] = 0;
    }
    return ML_OK;
}

/* ==== >>threads ==== */

/* How many tasks to cut `work` units into so that none is too small to be worth waking a thread for. */
static int mli_task_count(const ml_threads *threads, size_t work, size_t work_per_task) {
    size_t n = work / work_per_task;
    size_t count = threads && threads->count > 1 ? (size_t)threads->count : 1;
    return n < 2 ? 1 : (int)MLI_MIN(n, count);
}

static void mli_parallel(const ml_threads *threads, int n_tasks, ml_task task, void *arg) {
    int i;
    if (n_tasks == 1) { /* OpenMP would make a team of one, which costs more than a small model's layer */
        task(arg, 0);
        return;
    }
    if (threads->parallel_for) {
        threads->parallel_for(threads->user, n_tasks, task, arg);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(n_tasks) schedule(static, 1)
#endif
    for (i = 0; i < n_tasks; i++) task(arg, i);
}

/* Task `index` of `n_tasks` owns units [*begin, *end), in multiples of `grain`. */
static void mli_share(size_t n, size_t grain, int n_tasks, int index, size_t *begin, size_t *end) {
    size_t grains = (n + grain - 1) / grain;
    *begin = MLI_MIN(n, grains * (size_t)index / (size_t)n_tasks * grain);
    *end = MLI_MIN(n, grains * ((size_t)index + 1) / (size_t)n_tasks * grain);
}

/* ==== >>memory ==== */

#define MLI_ALIGN 64 /* a cache line, and the widest vector */

/* Sizes come from files and callers: every product and sum of them is checked. Both return 0 on overflow. */
static int mli_mul_size(size_t a, size_t b, size_t *product) {
    if (b && a > SIZE_MAX / b) return 0;
    *product = a * b;
    return 1;
}

static int mli_add_size(size_t a, size_t b, size_t *sum) {
    if (a > SIZE_MAX - b) return 0;
    *sum = a + b;
    return 1;
}

#ifndef ML_NO_MALLOC
#if defined(__linux__)
#include <sys/mman.h>
#ifndef __cplusplus
extern int madvise(void *memory, size_t size, int advice); /* which -std=c99 hides */
#endif
#endif

/* Linux backs the inside of large blocks with huge pages where it may: a matrix multiply that walks down columns then
   waits less for address translation. */
static void mli_prefer_huge_pages(void *memory, size_t size) {
#if defined(__linux__)
    const uintptr_t page = (uintptr_t)1 << 21, advice_hugepage = 14;
    uintptr_t from = ((uintptr_t)memory + page - 1) & ~(page - 1),
              to = ((uintptr_t)memory + size) & ~(page - 1);
    if (memory && from < to) (void)madvise((void *)from, (size_t)(to - from), (int)advice_hugepage);
#else
    (void)memory, (void)size;
#endif
}

static void *mli_malloc(size_t size, void *user) {
    void *memory = malloc(size);
    (void)user;
    mli_prefer_huge_pages(memory, size);
    return memory;
}

static void mli_free_malloced(void *memory, void *user) {
    (void)user;
    free(memory);
}
#endif

/* The caller's allocator or the default one; fails when only half of one is given, or there is none. */
static ml_result mli_resolve_allocator(const ml_allocator *given, ml_allocator *allocator, ml_error *error) {
    memset(allocator, 0, sizeof *allocator);
    if (given && (!given->alloc) != (!given->free))
        return mli_fail(error, ML_ERROR_ARGUMENT, "an allocator needs both alloc and free, or neither");
    if (given && given->alloc) {
        *allocator = *given;
        return ML_OK;
    }
#ifndef ML_NO_MALLOC
    allocator->alloc = mli_malloc;
    allocator->free = mli_free_malloced;
    allocator->user = NULL;
    return ML_OK;
#else
    return mli_fail(error, ML_ERROR_ARGUMENT, "built with ML_NO_MALLOC: give an allocator");
#endif
}

/* Zeroed memory for n things of `size` bytes, or NULL (also on overflow, and then nothing was asked for). */
static void *mli_alloc(const ml_allocator *allocator, size_t n, size_t size) {
    size_t bytes;
    void *memory;
    if (!mli_mul_size(n, size, &bytes)) return NULL;
    memory = allocator->alloc(bytes ? bytes : 1, allocator->user);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static void mli_free(const ml_allocator *allocator, void *memory) {
    if (memory) allocator->free(memory, allocator->user);
}

static uintptr_t mli_align_up(uintptr_t value) {
    return (value + MLI_ALIGN - 1) & ~(uintptr_t)(MLI_ALIGN - 1);
}

/* Takes n things of `size` bytes from a buffer, or with memory NULL only counts; *used becomes SIZE_MAX on overflow. */
static void *mli_carve(unsigned char *memory, size_t *used, size_t n, size_t size) {
    size_t bytes, begin = *used;
    if (!mli_mul_size(n, size, &bytes) || bytes > SIZE_MAX - MLI_ALIGN ||
        begin > SIZE_MAX - MLI_ALIGN - bytes) {
        *used = SIZE_MAX;
        return NULL;
    }
    *used = begin + (size_t)mli_align_up(bytes);
    return memory ? memory + begin : NULL;
}

static void *mli_arena_alloc(size_t size, void *user) {
    ml_arena *arena = (ml_arena *)user;
    uintptr_t base = (uintptr_t)arena->memory;
    size_t begin = (size_t)(mli_align_up(base + arena->used) - base);
    if (begin > arena->size || size > arena->size - begin) return NULL;
    arena->used = begin + size;
    return arena->memory + begin;
}

static void mli_arena_free(void *memory, void *user) { (void)memory, (void)user; }

ML_DEF ml_allocator ml_arena_allocator(ml_arena *arena) {
    ml_allocator allocator;
    allocator.alloc = mli_arena_alloc;
    allocator.free = mli_arena_free;
    allocator.user = arena;
    return allocator;
}

/* ==== >>random ==== */

static uint64_t mli_splitmix64(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

ML_DEF void ml_random_seed(ml_random *random, uint64_t seed) {
    int i;
    for (i = 0; i < 4; i++) random->state[i] = mli_splitmix64(&seed);
}

ML_DEF uint64_t ml_random_u64(ml_random *random) {
    uint64_t *s = random->state, m = s[1] * 5, result = ((m << 7) | (m >> 57)) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

ML_DEF float ml_random_uniform(ml_random *random) {
    return (float)(ml_random_u64(random) >> 40) * (1.0f / 16777216.0f);
}

ML_DEF float ml_random_normal(ml_random *random) {
    /* Box and Muller 1958; 1 - u is in (0, 1], so the logarithm is finite */
    float radius = sqrtf(-2.0f * logf(1.0f - ml_random_uniform(random)));
    return radius * cosf(6.28318530718f * ml_random_uniform(random));
}

/* ==== >>math ====
   A vector of MLI_LANES floats and a few operations on it, once per instruction set. Every F32 kernel of this
   file is written over them, once. Only the integer dot products (>>formats) reach for intrinsics again.

   Loads and stores need no alignment. The forms ending in _n touch the first n lanes only, 0 <= n <= MLI_LANES:
   what lies behind them in memory is neither read nor written, and the other lanes read as 0. */

#if defined(MLI_AVX512)

typedef __m512 mli_v;
#define MLI_LANES 16

MLI_INLINE mli_v mli_v_zero(void) { return _mm512_setzero_ps(); }
MLI_INLINE mli_v mli_v_set(float a) { return _mm512_set1_ps(a); }
MLI_INLINE mli_v mli_v_load(const float *p) { return _mm512_loadu_ps(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { _mm512_storeu_ps(p, a); }
MLI_INLINE __mmask16 mli_v_first(size_t n) { return (__mmask16)((1u << n) - 1u); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(mli_v_first(n), p); }
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) { _mm512_mask_storeu_ps(p, mli_v_first(n), a); }
MLI_INLINE mli_v mli_v_add(mli_v a, mli_v b) { return _mm512_add_ps(a, b); }
MLI_INLINE mli_v mli_v_sub(mli_v a, mli_v b) { return _mm512_sub_ps(a, b); }
MLI_INLINE mli_v mli_v_mul(mli_v a, mli_v b) { return _mm512_mul_ps(a, b); }
MLI_INLINE mli_v mli_v_div(mli_v a, mli_v b) { return _mm512_div_ps(a, b); }
MLI_INLINE mli_v mli_v_sqrt(mli_v a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
MLI_INLINE mli_v mli_v_max(mli_v a, mli_v b) { return _mm512_maskz_max_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_min(mli_v a, mli_v b) { return _mm512_maskz_min_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_fma(mli_v a, mli_v b, mli_v c) { return _mm512_fmadd_ps(a, b, c); }

MLI_INLINE __m256 mli_v_low(mli_v a) { return _mm512_maskz_extractf32x8_ps(0xff, a, 0); }
MLI_INLINE __m256 mli_v_high(mli_v a) { return _mm512_maskz_extractf32x8_ps(0xff, a, 1); }
MLI_INLINE mli_v mli_v_shift_left_23(mli_v a) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(a), 23));
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)(const void *)p));
}
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16));
}

#elif defined(MLI_AVX2)

typedef __m256 mli_v;
#define MLI_LANES 8

/* Eight lanes on and eight off: reading from entry 8 - n gives a mask of the first n lanes. */
static const int32_t mli_lane_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

MLI_INLINE mli_v mli_v_zero(void) { return _mm256_setzero_ps(); }
MLI_INLINE mli_v mli_v_set(float a) { return _mm256_set1_ps(a); }
MLI_INLINE mli_v mli_v_load(const float *p) { return _mm256_loadu_ps(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { _mm256_storeu_ps(p, a); }
MLI_INLINE __m256i mli_v_first(size_t n) {
    return _mm256_loadu_si256((const __m256i *)(const void *)(mli_lane_mask + 8 - n));
}
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) { return _mm256_maskload_ps(p, mli_v_first(n)); }
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) { _mm256_maskstore_ps(p, mli_v_first(n), a); }
MLI_INLINE mli_v mli_v_add(mli_v a, mli_v b) { return _mm256_add_ps(a, b); }
MLI_INLINE mli_v mli_v_sub(mli_v a, mli_v b) { return _mm256_sub_ps(a, b); }
MLI_INLINE mli_v mli_v_mul(mli_v a, mli_v b) { return _mm256_mul_ps(a, b); }
MLI_INLINE mli_v mli_v_div(mli_v a, mli_v b) { return _mm256_div_ps(a, b); }
MLI_INLINE mli_v mli_v_sqrt(mli_v a) { return _mm256_sqrt_ps(a); }
MLI_INLINE mli_v mli_v_max(mli_v a, mli_v b) { return _mm256_max_ps(a, b); }
MLI_INLINE mli_v mli_v_min(mli_v a, mli_v b) { return _mm256_min_ps(a, b); }
MLI_INLINE mli_v mli_v_fma(mli_v a, mli_v b, mli_v c) { return _mm256_fmadd_ps(a, b, c); }

MLI_INLINE mli_v mli_v_shift_left_23(mli_v a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23));
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

#elif defined(MLI_NEON)

typedef float32x4_t mli_v;
#define MLI_LANES 4

MLI_INLINE mli_v mli_v_zero(void) { return vdupq_n_f32(0.0f); }
MLI_INLINE mli_v mli_v_set(float a) { return vdupq_n_f32(a); }
MLI_INLINE mli_v mli_v_load(const float *p) { return vld1q_f32(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { vst1q_f32(p, a); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) {
    float lanes[MLI_LANES] = {0};
    memcpy(lanes, p, n * sizeof *p);
    return vld1q_f32(lanes);
}
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) {
    float lanes[MLI_LANES];
    vst1q_f32(lanes, a);
    memcpy(p, lanes, n * sizeof *p);
}
MLI_INLINE mli_v mli_v_add(mli_v a, mli_v b) { return vaddq_f32(a, b); }
MLI_INLINE mli_v mli_v_sub(mli_v a, mli_v b) { return vsubq_f32(a, b); }
MLI_INLINE mli_v mli_v_mul(mli_v a, mli_v b) { return vmulq_f32(a, b); }
MLI_INLINE mli_v mli_v_div(mli_v a, mli_v b) { return vdivq_f32(a, b); }
MLI_INLINE mli_v mli_v_sqrt(mli_v a) { return vsqrtq_f32(a); }
MLI_INLINE mli_v mli_v_max(mli_v a, mli_v b) { return vmaxq_f32(a, b); }
MLI_INLINE mli_v mli_v_min(mli_v a, mli_v b) { return vminq_f32(a, b); }
MLI_INLINE mli_v mli_v_fma(mli_v a, mli_v b, mli_v c) { return vfmaq_f32(c, a, b); }

MLI_INLINE mli_v mli_v_shift_left_23(mli_v a) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(a), 23));
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}

#else

/* No instructions to name: four floats side by side, which compilers turn into whatever vectors they have. */
typedef struct mli_v {
    float lane[4];
} mli_v;
#define MLI_LANES 4
#define MLI_SCALAR

MLI_INLINE mli_v mli_v_set(float a) {
    mli_v r;
    int i;
    for (i = 0; i < MLI_LANES; i++) r.lane[i] = a;
    return r;
}
MLI_INLINE mli_v mli_v_zero(void) { return mli_v_set(0.0f); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) {
    mli_v r = mli_v_zero();
    memcpy(r.lane, p, n * sizeof *p);
    return r;
}
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) { memcpy(p, a.lane, n * sizeof *p); }
MLI_INLINE mli_v mli_v_load(const float *p) { return mli_v_load_n(p, MLI_LANES); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { mli_v_store_n(p, a, MLI_LANES); }

/* r = expression of each lane i of a and b */
#define MLI_EACH_LANE(name, expression)                                                                      \
    MLI_INLINE mli_v name(mli_v a, mli_v b) {                                                                \
        int i;                                                                                               \
        for (i = 0; i < MLI_LANES; i++) a.lane[i] = expression;                                              \
        return a;                                                                                            \
    }
MLI_EACH_LANE(mli_v_add, a.lane[i] + b.lane[i])
MLI_EACH_LANE(mli_v_sub, a.lane[i] - b.lane[i])
MLI_EACH_LANE(mli_v_mul, a.lane[i] * b.lane[i])
MLI_EACH_LANE(mli_v_div, a.lane[i] / b.lane[i])
MLI_EACH_LANE(mli_v_max, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i])
MLI_EACH_LANE(mli_v_min, a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i])
#undef MLI_EACH_LANE
MLI_INLINE mli_v mli_v_fma(mli_v a, mli_v b, mli_v c) { return mli_v_add(mli_v_mul(a, b), c); }
MLI_INLINE mli_v mli_v_sqrt(mli_v a) {
    int i;
    for (i = 0; i < MLI_LANES; i++) a.lane[i] = sqrtf(a.lane[i]);
    return a;
}

MLI_INLINE mli_v mli_v_shift_left_23(mli_v a) {
    uint32_t bits[MLI_LANES];
    int i;
    memcpy(bits, a.lane, sizeof bits);
    for (i = 0; i < MLI_LANES; i++) bits[i] <<= 23;
    memcpy(a.lane, bits, sizeof bits);
    return a;
}

#endif

#if defined(MLI_SCALAR)
static float mli_f16_to_f32(uint16_t half); /* in >>formats, as is the next */
static float mli_bf16_to_f32(uint16_t half);

MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) {
    mli_v r;
    int i;
    for (i = 0; i < MLI_LANES; i++) r.lane[i] = mli_f16_to_f32(p[i]);
    return r;
}
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    mli_v r;
    int i;
    for (i = 0; i < MLI_LANES; i++) r.lane[i] = mli_bf16_to_f32(p[i]);
    return r;
}
#endif

/* The sum of all lanes, always as the same tree: halves are added to each other until one number is left. */
MLI_INLINE float mli_v_sum(mli_v a) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
#if defined(MLI_AVX512)
    __m256 b = _mm256_add_ps(mli_v_low(a), mli_v_high(a));
#else
    __m256 b = a;
#endif
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
#elif defined(MLI_NEON)
    float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
#else
    return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
#endif
}

MLI_INLINE float mli_v_hmax(mli_v a) {
    float lanes[MLI_LANES], max;
    int i;
    mli_v_store(lanes, a);
    max = lanes[0];
    for (i = 1; i < MLI_LANES; i++) max = lanes[i] > max ? lanes[i] : max;
    return max;
}

/* 2^n for whole n, -126 <= n <= 127. Adding 1.5 * 2^23 leaves n + 127 in the lowest bits of the sum's mantissa;
   shifted up they are the exponent of the result. */
MLI_INLINE mli_v mli_v_power_of_2(mli_v n) {
    return mli_v_shift_left_23(mli_v_add(n, mli_v_set(12582912.0f + 127.0f)));
}

MLI_INLINE mli_v mli_v_round(mli_v a) { /* to the nearest whole number, |a| < 2^22 */
    return mli_v_sub(mli_v_add(a, mli_v_set(12582912.0f)), mli_v_set(12582912.0f));
}

/* e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2; e^r = 1 + r + r^2 q(r), where q is the polynomial
   that makes the largest relative error smallest (3e-9, so that rounding is what remains, about 1 ulp). ln 2 is
   taken off in two parts, the first of which is short enough for n times it to be exact. 2^n is multiplied
   in two halves, since 2^128 and 2^-150 are no floats: too large an x gives infinity, too small a one 0. As
   second operand of max and min a NaN stays. */
MLI_INLINE mli_v mli_v_exp(mli_v x) {
    mli_v n, half, r, q;
    x = mli_v_min(mli_v_set(89.0f), mli_v_max(mli_v_set(-104.0f), x));
    n = mli_v_round(mli_v_mul(x, mli_v_set(1.44269504f)));
    r = mli_v_fma(n, mli_v_set(-0.693359375f), x);
    r = mli_v_fma(n, mli_v_set(2.12194440e-4f), r);
    q = mli_v_fma(mli_v_set(0.00138141739f), r, mli_v_set(0.00836892147f));
    q = mli_v_fma(q, r, mli_v_set(0.0416684076f));
    q = mli_v_fma(q, r, mli_v_set(0.166665196f));
    q = mli_v_fma(q, r, mli_v_set(0.49999994f));
    q = mli_v_add(mli_v_fma(q, mli_v_mul(r, r), r), mli_v_set(1.0f));
    half = mli_v_round(mli_v_mul(n, mli_v_set(0.5f)));
    return mli_v_mul(mli_v_mul(q, mli_v_power_of_2(half)), mli_v_power_of_2(mli_v_sub(n, half)));
}

/* ---- transposing a square of MLI_LANES rows, in place: rows of four, then groups of four as wholes ---- */

#if defined(MLI_AVX512)
#define MLI_ZIP_LOW(a, b) _mm512_maskz_unpacklo_ps(0xffff, a, b)
#define MLI_ZIP_HIGH(a, b) _mm512_maskz_unpackhi_ps(0xffff, a, b)
#define MLI_JOIN_LOW(a, b) _mm512_maskz_shuffle_ps(0xffff, a, b, 0x44)
#define MLI_JOIN_HIGH(a, b) _mm512_maskz_shuffle_ps(0xffff, a, b, 0xee)
#elif defined(MLI_AVX2)
#define MLI_ZIP_LOW(a, b) _mm256_unpacklo_ps(a, b)
#define MLI_ZIP_HIGH(a, b) _mm256_unpackhi_ps(a, b)
#define MLI_JOIN_LOW(a, b) _mm256_shuffle_ps(a, b, 0x44)
#define MLI_JOIN_HIGH(a, b) _mm256_shuffle_ps(a, b, 0xee)
#elif defined(MLI_NEON)
#define MLI_ZIP_LOW(a, b) vzip1q_f32(a, b)
#define MLI_ZIP_HIGH(a, b) vzip2q_f32(a, b)
#define MLI_JOIN_LOW(a, b) vcombine_f32(vget_low_f32(a), vget_low_f32(b))
#define MLI_JOIN_HIGH(a, b) vcombine_f32(vget_high_f32(a), vget_high_f32(b))
#endif

MLI_INLINE void mli_v_transpose_4(mli_v row[4]) {
#if defined(MLI_SCALAR)
    int i, j;
    for (i = 0; i < 4; i++)
        for (j = 0; j < i; j++) {
            float a = row[i].lane[j];
            row[i].lane[j] = row[j].lane[i];
            row[j].lane[i] = a;
        }
#else
    mli_v a = MLI_ZIP_LOW(row[0], row[1]), b = MLI_ZIP_LOW(row[2], row[3]);   /* 00 10 01 11, 20 30 21 31 */
    mli_v c = MLI_ZIP_HIGH(row[0], row[1]), d = MLI_ZIP_HIGH(row[2], row[3]); /* 02 12 03 13, 22 32 23 33 */
    row[0] = MLI_JOIN_LOW(a, b);
    row[1] = MLI_JOIN_HIGH(a, b);
    row[2] = MLI_JOIN_LOW(c, d);
    row[3] = MLI_JOIN_HIGH(c, d);
#endif
}

MLI_INLINE void mli_v_transpose(mli_v row[MLI_LANES]) {
#if defined(MLI_AVX512)
    mli_v group[16];
    int i, j;
    for (i = 0; i < 16; i += 4) mli_v_transpose_4(row + i);
    for (i = 0; i < 16; i++) group[i] = row[i];
    for (j = 0; j < 4; j++) { /* row[i + j], i = 0, 4, 8, 12, is a row of a 4 x 4 matrix of groups */
        mli_v a = _mm512_maskz_shuffle_f32x4(0xffff, group[j], group[4 + j], 0x44);
        mli_v b = _mm512_maskz_shuffle_f32x4(0xffff, group[8 + j], group[12 + j], 0x44);
        mli_v c = _mm512_maskz_shuffle_f32x4(0xffff, group[j], group[4 + j], 0xee);
        mli_v d = _mm512_maskz_shuffle_f32x4(0xffff, group[8 + j], group[12 + j], 0xee);
        row[j] = _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88);
        row[4 + j] = _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd);
        row[8 + j] = _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0x88);
        row[12 + j] = _mm512_maskz_shuffle_f32x4(0xffff, c, d, 0xdd);
    }
#elif defined(MLI_AVX2)
    int j;
    mli_v_transpose_4(row);
    mli_v_transpose_4(row + 4);
    for (j = 0; j < 4; j++) {
        mli_v a = row[j], b = row[4 + j];
        row[j] = _mm256_permute2f128_ps(a, b, 0x20);
        row[4 + j] = _mm256_permute2f128_ps(a, b, 0x31);
    }
#else
    mli_v_transpose_4(row);
#endif
}

/* out (4) = mli_v_sum of each of four vectors, to the same bits, for less than four times the work */
MLI_INLINE void mli_v_sum_4(const mli_v a[4], float *out) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    __m128 row[4], even, odd;
    int i;
    for (i = 0; i < 4; i++) {
#if defined(MLI_AVX512)
        __m256 half = _mm256_add_ps(mli_v_low(a[i]), mli_v_high(a[i]));
#else
        __m256 half = a[i];
#endif
        row[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    }
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    even = _mm_add_ps(row[0], row[2]);
    odd = _mm_add_ps(row[1], row[3]);
    _mm_storeu_ps(out, _mm_add_ps(even, odd));
#else
    int i;
    for (i = 0; i < 4; i++) out[i] = mli_v_sum(a[i]);
#endif
}

/* ==== >>kernels ==== */

/* ---- vectors ---- */

#if defined(ML_REFERENCE_KERNELS) /* each kernel as plainly as it can be said: the tests compare with these */

static inline float mli_ref_dot_f32(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    size_t i;
    for (i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static inline void mli_ref_axpy(float *y, float a, const float *x, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) y[i] += a * x[i];
}

static inline float mli_ref_max(const float *x, size_t n) {
    float max = x[0];
    size_t i;
    for (i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static inline void mli_ref_softmax(float *x, size_t n) {
    double max = (double)mli_ref_max(x, n), sum = 0.0;
    size_t i;
    for (i = 0; i < n; i++) sum += exp((double)x[i] - max);
    for (i = 0; i < n; i++) x[i] = (float)(exp((double)x[i] - max) / sum);
}

static inline void mli_ref_swiglu(float *y, const float *gate, const float *up, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) y[i] = (float)((double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i]);
}

#endif

/* sum of a_i b_i, in four interleaved sums per lane to hide the latency of the additions */
MLI_INLINE float mli_dot(const float *a, const float *b, size_t n) {
    mli_v sum[4];
    size_t i = 0;
    int j;
    for (j = 0; j < 4; j++) sum[j] = mli_v_zero();
    for (; i + 4 * MLI_LANES <= n; i += 4 * MLI_LANES)
        for (j = 0; j < 4; j++) {
            size_t at = i + (size_t)j * MLI_LANES;
            sum[j] = mli_v_fma(mli_v_load(a + at), mli_v_load(b + at), sum[j]);
        }
    for (; i + MLI_LANES <= n; i += MLI_LANES)
        sum[0] = mli_v_fma(mli_v_load(a + i), mli_v_load(b + i), sum[0]);
    if (i < n) sum[1] = mli_v_fma(mli_v_load_n(a + i, n - i), mli_v_load_n(b + i, n - i), sum[1]);
    return mli_v_sum(mli_v_add(mli_v_add(sum[0], sum[1]), mli_v_add(sum[2], sum[3])));
}

/* y (n) += a x (n) */
MLI_INLINE void mli_axpy(float *y, float a, const float *x, size_t n) {
    mli_v va = mli_v_set(a);
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES)
        mli_v_store(y + i, mli_v_fma(va, mli_v_load(x + i), mli_v_load(y + i)));
    if (i < n)
        mli_v_store_n(y + i, mli_v_fma(va, mli_v_load_n(x + i, n - i), mli_v_load_n(y + i, n - i)), n - i);
}

/* y (n) += x (n) */
MLI_INLINE void mli_add(float *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES)
        mli_v_store(y + i, mli_v_add(mli_v_load(y + i), mli_v_load(x + i)));
    if (i < n) mli_v_store_n(y + i, mli_v_add(mli_v_load_n(y + i, n - i), mli_v_load_n(x + i, n - i)), n - i);
}

/* x (n) *= a */
MLI_INLINE void mli_scale(float *x, float a, size_t n) {
    mli_v va = mli_v_set(a);
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES) mli_v_store(x + i, mli_v_mul(va, mli_v_load(x + i)));
    if (i < n) mli_v_store_n(x + i, mli_v_mul(va, mli_v_load_n(x + i, n - i)), n - i);
}

/* The largest of x (n), n > 0. The last vector ends with the last number and may overlap the one before. */
static float mli_max(const float *x, size_t n) {
    float max = x[0];
    size_t i;
    if (n >= MLI_LANES) {
        mli_v v = mli_v_load(x + n - MLI_LANES);
        for (i = 0; i + MLI_LANES < n; i += MLI_LANES) v = mli_v_max(v, mli_v_load(x + i));
        return mli_v_hmax(v);
    }
    for (i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

/* x_i = e^(x_i - max) / sum, in place, n > 0. Taking the maximum off changes nothing and keeps e^x from overflowing. */
static void mli_softmax(float *x, size_t n) {
    mli_v max = mli_v_set(mli_max(x, n)), sum = mli_v_zero();
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES) {
        mli_v e = mli_v_exp(mli_v_sub(mli_v_load(x + i), max));
        sum = mli_v_add(sum, e);
        mli_v_store(x + i, e);
    }
    if (i < n) {
        mli_v_store_n(x + i, mli_v_exp(mli_v_sub(mli_v_load_n(x + i, n - i), max)), n - i);
        sum = mli_v_add(sum, mli_v_load_n(x + i, n - i));
    }
    mli_scale(x, 1.0f / mli_v_sum(sum), n);
}

#ifndef ML_NO_TRAINING
/* From p = softmax(s x) and dp, the gradient of x, over dp:  s p (dp - sum(p dp)) */
static void mli_softmax_gradient(float *dp, const float *p, float s, size_t n) {
    mli_v sum = mli_v_set(mli_dot(p, dp, n)), scale = mli_v_set(s);
    size_t i, m;
    for (i = 0; i < n; i += MLI_LANES) {
        mli_v d;
        m = MLI_MIN(MLI_LANES, n - i);
        d = mli_v_mul(mli_v_load_n(p + i, m), mli_v_sub(mli_v_load_n(dp + i, m), sum));
        mli_v_store_n(dp + i, mli_v_mul(scale, d), m);
    }
}
#endif

MLI_INLINE mli_v mli_v_silu(mli_v x) { /* x / (1 + e^-x) */
    mli_v e = mli_v_exp(mli_v_sub(mli_v_zero(), x));
    return mli_v_div(x, mli_v_add(e, mli_v_set(1.0f)));
}

/* y (n) = silu(gate (n)) * up (n) (Shazeer 2020); y may be gate or up */
static void mli_swiglu(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES)
        mli_v_store(y + i, mli_v_mul(mli_v_silu(mli_v_load(gate + i)), mli_v_load(up + i)));
    if (i < n) {
        mli_v tail = mli_v_mul(mli_v_silu(mli_v_load_n(gate + i, n - i)), mli_v_load_n(up + i, n - i));
        mli_v_store_n(y + i, tail, n - i);
    }
}

#ifndef ML_NO_TRAINING
/* The gradients of mli_swiglu's inputs; they may be written over the inputs. */
static void mli_swiglu_gradient(float *d_gate, float *d_up, const float *dy, const float *gate,
                                const float *up, size_t n) {
    const mli_v one = mli_v_set(1.0f);
    size_t i, m;
    for (i = 0; i < n; i += m) {
        mli_v a, b, d, s;
        m = MLI_MIN(MLI_LANES, n - i);
        a = mli_v_load_n(gate + i, m);
        b = mli_v_load_n(up + i, m);
        d = mli_v_load_n(dy + i, m);
        s = mli_v_div(one, mli_v_add(one, mli_v_exp(mli_v_sub(mli_v_zero(), a))));
        mli_v_store_n(d_up + i, mli_v_mul(d, mli_v_mul(a, s)), m);
        d = mli_v_mul(mli_v_mul(d, b), s);
        mli_v_store_n(d_gate + i, mli_v_mul(d, mli_v_fma(a, mli_v_sub(one, s), one)), m);
    }
}
#endif

/* ---- rows: few rows of x times every row of W; each row of W is read once, and reading is what takes the time ---- */

#if defined(__GNUC__)
#define MLI_PREFETCH(p) __builtin_prefetch(p)
#define MLI_PREFETCH_WRITE(p) __builtin_prefetch(p, 1)
#elif defined(MLI_AVX512) || defined(MLI_AVX2)
#define MLI_PREFETCH(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#define MLI_PREFETCH_WRITE(p) _mm_prefetch((const char *)(p), _MM_HINT_T0)
#else
#define MLI_PREFETCH(p) ((void)(p))
#define MLI_PREFETCH_WRITE(p) ((void)(p))
#endif

/* Unrolls the loop that follows, whose length is a constant, so that an array of vectors becomes registers. */
#if defined(__clang__)
#define MLI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__) && __GNUC__ >= 8
#define MLI_UNROLL _Pragma("GCC unroll 32")
#else
#define MLI_UNROLL
#endif

/* One vector of a row of F32, F16 or BF16 numbers, from number i on. */
MLI_INLINE mli_v mli_v_load_as(ml_type type, const void *row, size_t i) {
    if (type == ML_F16) return mli_v_load_f16((const uint16_t *)row + i);
    if (type == ML_BF16) return mli_v_load_bf16((const uint16_t *)row + i);
    return mli_v_load((const float *)row + i);
}

MLI_INLINE mli_v mli_v_load_as_n(ml_type type, const void *row, size_t i, size_t n) {
    uint16_t half[MLI_LANES] = {0};
    if (type == ML_F32) return mli_v_load_n((const float *)row + i, n);
    memcpy(half, (const uint16_t *)row + i, n * sizeof *half);
    return type == ML_F16 ? mli_v_load_f16(half) : mli_v_load_bf16(half);
}

/* A row of F16 or BF16 numbers as F32. */
static void mli_widen_row(ml_type type, const void *row, float *dst, size_t n) {
    size_t i = 0;
    if (type == ML_F16) {
        for (; i + MLI_LANES <= n; i += MLI_LANES) mli_v_store(dst + i, mli_v_load_as(ML_F16, row, i));
    } else {
        for (; i + MLI_LANES <= n; i += MLI_LANES) mli_v_store(dst + i, mli_v_load_as(ML_BF16, row, i));
    }
    if (i < n) mli_v_store_n(dst + i, mli_v_load_as_n(type, row, i, n - i), n - i);
}

#if defined(MLI_AVX512) || defined(MLI_NEON)
#define MLI_X_ROWS 4 /* rows of x that meet a row of W at once: 4 sums for each fit 32 registers */
#else
#define MLI_X_ROWS 2 /* or 16 */
#endif

/* total[a] = x_a * w, lane by lane, for one row of W and n_x <= MLI_X_ROWS rows of x (n_x, k). Memory is fastest when read
   from one place on, so W's rows come one after the other; four interleaved sums hide the latency of the
   additions. type and n_x are constants where this is inlined. */
MLI_INLINE void mli_matvec_row(ml_type type, int n_x, mli_v *total, const float *x, size_t x_stride,
                               const char *w, size_t k) {
    mli_v sum[4][MLI_X_ROWS];
    size_t i = 0;
    int a, u;
    if (k <= MLI_LANES) { /* a small head: the sums below would all but one be zero */
        mli_v wv = mli_v_load_as_n(type, w, 0, k);
        MLI_UNROLL
        for (a = 0; a < n_x; a++) total[a] = mli_v_mul(wv, mli_v_load_n(x + (size_t)a * x_stride, k));
        return;
    }
    MLI_UNROLL
    for (u = 0; u < 4; u++) {
        MLI_UNROLL
        for (a = 0; a < n_x; a++) sum[u][a] = mli_v_zero();
    }
    for (; i + 4 * MLI_LANES <= k; i += 4 * MLI_LANES) {
        MLI_UNROLL
        for (u = 0; u < 4; u++) {
            size_t at = i + (size_t)u * MLI_LANES;
            mli_v wv = mli_v_load_as(type, w, at);
            MLI_UNROLL
            for (a = 0; a < n_x; a++)
                sum[u][a] = mli_v_fma(wv, mli_v_load(x + (size_t)a * x_stride + at), sum[u][a]);
        }
    }
    for (; i + MLI_LANES <= k; i += MLI_LANES) {
        mli_v wv = mli_v_load_as(type, w, i);
        MLI_UNROLL
        for (a = 0; a < n_x; a++)
            sum[0][a] = mli_v_fma(wv, mli_v_load(x + (size_t)a * x_stride + i), sum[0][a]);
    }
    if (i < k) {
        mli_v wv = mli_v_load_as_n(type, w, i, k - i);
        MLI_UNROLL
        for (a = 0; a < n_x; a++)
            sum[1][a] = mli_v_fma(wv, mli_v_load_n(x + (size_t)a * x_stride + i, k - i), sum[1][a]);
    }
    MLI_UNROLL
    for (a = 0; a < n_x; a++)
        total[a] = mli_v_add(mli_v_add(sum[0][a], sum[1][a]), mli_v_add(sum[2][a], sum[3][a]));
}

/* y (n_x, n_w) = x . w^T for n_x <= MLI_X_ROWS rows of x (n_x, k) and up to 4 of w (n_w, k) */
MLI_INLINE void mli_matvec_block(ml_type type, int n_x, float *y, size_t y_stride, const float *x,
                                 size_t x_stride, const char *w, size_t w_bytes, size_t n_w, size_t k) {
    mli_v total[MLI_X_ROWS][4], one[MLI_X_ROWS];
    size_t b;
    int a;
    if (n_w == 4) {
        MLI_UNROLL
        for (b = 0; b < 4; b++) {
            mli_matvec_row(type, n_x, one, x, x_stride, w + b * w_bytes, k);
            MLI_UNROLL
            for (a = 0; a < n_x; a++) total[a][b] = one[a];
        }
        MLI_UNROLL
        for (a = 0; a < n_x; a++) mli_v_sum_4(total[a], y + (size_t)a * y_stride);
        return;
    }
    for (b = 0; b < n_w; b++) {
        mli_matvec_row(type, n_x, one, x, x_stride, w + b * w_bytes, k);
        MLI_UNROLL
        for (a = 0; a < n_x; a++) y[(size_t)a * y_stride + b] = mli_v_sum(one[a]);
    }
}

/* As above for any number of rows: four rows of W, which stay in the first-level cache, meet all rows of x before the
   next four are read. */
MLI_INLINE void mli_matvec_rows(ml_type type, float *y, size_t y_stride, const float *x, size_t x_stride,
                                size_t n_x, const char *w, size_t w_bytes, size_t n_w, size_t k) {
    size_t a, b;
    for (b = 0; b < n_w; b += 4) {
        size_t rows = MLI_MIN(4, n_w - b);
        const char *wb = w + b * w_bytes;
#define MLI_DOTS(n)                                                                                          \
    mli_matvec_block(type, n, y + a * y_stride + b, y_stride, x + a * x_stride, x_stride, wb, w_bytes, rows, \
                     k)
        a = 0;
#if MLI_X_ROWS == 4
        for (; a + 4 <= n_x; a += 4) MLI_DOTS(4);
#endif
        for (; a + 2 <= n_x; a += 2) MLI_DOTS(2);
        if (a < n_x) MLI_DOTS(1);
#undef MLI_DOTS
    }
}

/* y (n_x, n_w) = x (n_x, k) . w (n_w, k)^T for w of F32, F16 or BF16; strides in numbers. A dot product is summed in an
   order of its own, whichever rows it is computed along with. */
static void mli_matvec(ml_type type, float *y, size_t y_stride, const float *x, size_t x_stride, size_t n_x,
                       const void *w, size_t w_stride, size_t n_w, size_t k) {
    const char *rows = (const char *)w;
    switch (type) {
    case ML_F16: mli_matvec_rows(ML_F16, y, y_stride, x, x_stride, n_x, rows, w_stride * 2, n_w, k); break;
    case ML_BF16: mli_matvec_rows(ML_BF16, y, y_stride, x, x_stride, n_x, rows, w_stride * 2, n_w, k); break;
    default: mli_matvec_rows(ML_F32, y, y_stride, x, x_stride, n_x, rows, w_stride * 4, n_w, k); break;
    }
}

/* y (n) = rows (n, k) . x (k) */
static void mli_dots(float *y, const float *x, const float *rows, size_t row_stride, size_t n, size_t k) {
    mli_matvec(ML_F32, y, 0, x, 0, 1, rows, row_stride, n, k);
}

/* ---- matrix multiply ---- */

/* A matrix that is multiplied: strides in numbers, one of them 1; the rows of quantised types lie whole (col_stride or,
   for a transposed one, row_stride is 1, and the other a multiple of the block). */
typedef struct mli_operand {
    ml_type type;
    const void *data;
    size_t row_stride, col_stride;
} mli_operand;

static mli_operand mli_matrix(const float *data, size_t row_stride, size_t col_stride) {
    mli_operand operand;
    operand.type = ML_F32;
    operand.data = data;
    operand.row_stride = row_stride;
    operand.col_stride = col_stride;
    return operand;
}

#if defined(ML_REFERENCE_KERNELS)

/* C (m, n) (+)= A (m, k) . B (k, n), all of F32 */
static inline void mli_ref_gemm(size_t m, size_t n, size_t k, mli_operand a, mli_operand b, float *c,
                                size_t c_row_stride, int accumulate) {
    size_t i, j, p;
    for (i = 0; i < m; i++)
        for (j = 0; j < n; j++) {
            const float *ai = (const float *)a.data + i * a.row_stride,
                        *bj = (const float *)b.data + j * b.col_stride;
            double sum = accumulate ? (double)c[i * c_row_stride + j] : 0.0;
            for (p = 0; p < k; p++) sum += (double)ai[p * a.col_stride] * (double)bj[p * b.row_stride];
            c[i * c_row_stride + j] = (float)sum;
        }
}

#endif

#if defined(MLI_AVX512)
#define MLI_TILE_ROWS 14
#define MLI_TILE_VECTORS 2
#define MLI_BLOCK_K 512
#define MLI_BLOCK_PANELS 8
#define MLI_SLAB_COLS 2048
#elif defined(MLI_AVX2)
#define MLI_TILE_ROWS 6
#define MLI_TILE_VECTORS 2
#define MLI_BLOCK_K 256
#define MLI_BLOCK_PANELS 24
#define MLI_SLAB_COLS 2048
#elif defined(MLI_NEON)
#define MLI_TILE_ROWS 8
#define MLI_TILE_VECTORS 3
#define MLI_BLOCK_K 256
#define MLI_BLOCK_PANELS 16
#define MLI_SLAB_COLS 960
#else
#define MLI_TILE_ROWS 4
#define MLI_TILE_VECTORS 2
#define MLI_BLOCK_K 256
#define MLI_BLOCK_PANELS 16
#define MLI_SLAB_COLS 96
#endif
#define MLI_TILE_COLS (MLI_TILE_VECTORS * MLI_LANES)
#define MLI_TILE_WIDTH ((MLI_TILE_ROWS + MLI_LANES - 1) / MLI_LANES * MLI_LANES) /* of a packed panel of A */
#define MLI_COL_GRAIN (MLI_TILE_COLS % 3 ? 32 : 96) /* whole tiles and whole blocks of quantised numbers */
#define MLI_BLOCK_ROWS (MLI_BLOCK_PANELS * MLI_TILE_ROWS)
#define MLI_BUFFER ((size_t)(MLI_LANES * MLI_BLOCK_K)) /* numbers on their way from another type */
#define MLI_TASK_WORK (1 << 17)                        /* multiplications worth waking a thread for */

/* C (rows, cols) (+)= A . B for one tile: a is a packed panel (k, MLI_TILE_WIDTH), b one (k, MLI_TILE_COLS). height and
   vectors are constants where this is inlined; rows <= height and cols <= vectors * MLI_LANES. */
MLI_INLINE void mli_gemm_tile(int height, int vectors, size_t k, const float *MLI_RESTRICT a,
                              const float *MLI_RESTRICT b, float *MLI_RESTRICT c, size_t c_stride, int rows,
                              size_t cols, int add) {
    mli_v sum[MLI_TILE_ROWS][MLI_TILE_VECTORS], bv[MLI_TILE_VECTORS];
    size_t p;
    int i, v;
    MLI_UNROLL
    for (i = 0; i < height; i++) {
        MLI_UNROLL
        for (v = 0; v < vectors; v++) sum[i][v] = mli_v_zero();
    }
    for (i = 0; i < rows;
         i++) { /* the first and the last number of each row: all of its cache lines, or nearly */
        MLI_PREFETCH_WRITE(c + (size_t)i * c_stride);
        MLI_PREFETCH_WRITE(c + (size_t)i * c_stride + cols - 1);
    }
    for (p = 0; p < k; p++) {
        MLI_UNROLL
        for (v = 0; v < vectors; v++) bv[v] = mli_v_load(b + v * MLI_LANES);
        MLI_UNROLL
        for (i = 0; i < height; i++) {
            mli_v av = mli_v_set(a[i]);
            MLI_UNROLL
            for (v = 0; v < vectors; v++) sum[i][v] = mli_v_fma(av, bv[v], sum[i][v]);
        }
        a += MLI_TILE_WIDTH;
        b += MLI_TILE_COLS;
    }
    MLI_UNROLL
    for (i = 0; i < height; i++) {
        if (i >= rows) continue;
        MLI_UNROLL
        for (v = 0; v < vectors; v++) {
            float *to = c + (size_t)i * c_stride + v * MLI_LANES;
            size_t at = (size_t)v * MLI_LANES, n = cols > at ? cols - at : 0;
            if (n >= MLI_LANES)
                mli_v_store(to, add ? mli_v_add(mli_v_load(to), sum[i][v]) : sum[i][v]);
            else
                mli_v_store_n(to, add ? mli_v_add(mli_v_load_n(to, n), sum[i][v]) : sum[i][v], n);
        }
    }
}

/* Takes the smallest tile that holds rows x cols. */
static void mli_gemm_any_tile(size_t k, const float *a, const float *b, float *c, size_t c_stride,
                              size_t rows, size_t cols, int add) {
#define MLI_TILE(height, vectors) mli_gemm_tile(height, vectors, k, a, b, c, c_stride, (int)rows, cols, add)
    if (cols > MLI_LANES) {
        if (rows > MLI_TILE_ROWS / 2)
            MLI_TILE(MLI_TILE_ROWS, MLI_TILE_VECTORS);
        else if (rows > 2)
            MLI_TILE(MLI_TILE_ROWS / 2, MLI_TILE_VECTORS);
        else
            MLI_TILE(2, MLI_TILE_VECTORS);
    } else if (rows > MLI_TILE_ROWS / 2) {
        MLI_TILE(MLI_TILE_ROWS, 1);
    } else {
        MLI_TILE(MLI_TILE_ROWS / 2, 1);
    }
#undef MLI_TILE
}

/* Either operand as packing sees it: lines (rows of A, columns of B) that run along k. */
typedef struct mli_lines {
    ml_type type;
    const char *data;
    size_t line_stride, k_stride; /* in numbers; one of them is 1 */
} mli_lines;

/* From 24_quant: n numbers of any weight type, from the start of a block on, as F32. */
static void mli_dequantize_row(ml_type type, const void *row, float *dst, size_t n);

/* Numbers [at, at + n) of the row that starts `row` numbers into the data: as they lie where they are F32, else
   converted into buffer (n). */
static const float *mli_row_as_f32(const mli_lines *s, size_t row, size_t at, size_t n, float *buffer) {
    if (s->type == ML_F32) return (const float *)(const void *)s->data + row + at;
    if (s->type == ML_F16 || s->type == ML_BF16)
        mli_widen_row(s->type, s->data + (row + at) * sizeof(uint16_t), buffer, n);
    else
        mli_dequantize_row(s->type, s->data + ml_row_bytes(s->type, row) + ml_row_bytes(s->type, at), buffer,
                           n);
    return buffer;
}

static size_t mli_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* ---- packing: `count` lines become panels of `lines` lines each; numbers k0 .. k0 + k - 1 of a panel's lines lie side by
   side, dst[p * width + i] = line i, number k0 + p, where width is `lines` rounded up to whole vectors. What fills
   the panel up is never used: the products with it are not stored. ---- */

/* One panel of up to `lines` lines that are contiguous along k: squares of MLI_LANES lines are transposed. The last line
   is repeated to fill the squares up. */
static void mli_pack_along_k(const mli_lines *s, size_t first, size_t count, size_t k0, size_t k,
                             size_t width, float *dst, float *buffer) {
    const float *line[MLI_LANES];
    mli_v square[MLI_LANES];
    size_t g, p, i;
    for (g = 0; g < width; g += MLI_LANES) {
        for (i = 0; i < MLI_LANES; i++) {
            size_t at = first + MLI_MIN(g + i, count - 1);
            line[i] = mli_row_as_f32(s, at * s->line_stride, k0, k, buffer + i * k);
        }
        for (p = 0; p + MLI_LANES <= k; p += MLI_LANES) {
            MLI_UNROLL
            for (i = 0; i < MLI_LANES; i++) square[i] = mli_v_load(line[i] + p);
            mli_v_transpose(square);
            MLI_UNROLL
            for (i = 0; i < MLI_LANES; i++) mli_v_store(dst + (p + i) * width + g, square[i]);
        }
        if (p == k) continue;
        for (i = 0; i < MLI_LANES; i++) square[i] = mli_v_load_n(line[i] + p, k - p);
        mli_v_transpose(square);
        for (i = 0; p + i < k; i++) mli_v_store(dst + (p + i) * width + g, square[i]);
    }
}

/* All panels of lines that lie side by side: rows of `count` numbers, one for each p, are cut up. Eight rows at a time, so
   that what is written to a panel before turning to the next is long enough for the caches to foresee it. */
static void mli_pack_across_k(const mli_lines *s, size_t first, size_t count, size_t k0, size_t k,
                              size_t lines, size_t width, float *dst, float *buffer) {
    const size_t step = s->type == ML_F32 ? 8 : 1; /* one row where it is converted: there is one buffer */
    size_t p0, p, q, i;
    for (p0 = 0; p0 < k; p0 += step) {
        const float *row = mli_row_as_f32(s, (k0 + p0) * s->k_stride, first, count, buffer);
        for (q = 0; q < count; q += lines)
            for (p = p0; p < MLI_MIN(p0 + step, k); p++) {
                const float *from = row + (p - p0) * s->k_stride + q;
                float *to = dst + q / lines * width * k + p * width;
                if (p + 16 < k) MLI_PREFETCH(from + 16 * s->k_stride);
                for (i = 0; i < width; i += MLI_LANES) {
                    size_t n = q + i < count ? count - q - i : 0;
                    mli_v_store(to + i, n >= MLI_LANES ? mli_v_load(from + i) : mli_v_load_n(from + i, n));
                }
            }
    }
}

static void mli_pack(const mli_lines *s, size_t first, size_t count, size_t k0, size_t k, size_t lines,
                     float *dst, float *buffer) {
    size_t q, width = mli_round_up(lines, MLI_LANES);
    if (s->k_stride != 1)
        mli_pack_across_k(s, first, count, k0, k, lines, width, dst, buffer);
    else
        for (q = 0; q < count; q += lines, dst += width * k)
            mli_pack_along_k(s, first + q, MLI_MIN(lines, count - q), k0, k, width, dst, buffer);
}

/* The part of B that is packed at a time: `cols` columns from `col` on, numbers k_from .. k_from + k - 1 along k. */
typedef struct mli_slab {
    size_t col, cols, k_from, k;
} mli_slab;

typedef struct mli_gemm_job {
    size_t m, n, k;
    mli_lines a, b;
    float *c; /* (m, n) */
    size_t c_stride;
    int accumulate;
    int n_tasks,
        by_rows; /* tasks own rows of C and share a packed slab, or own columns and pack slabs of their own */
    size_t slab_cols, slab_k;
    mli_slab slab; /* the shared one */
    float *packed_b, *packed_a, *buffer;
    size_t packed_a_size; /* a task's, in numbers */
} mli_gemm_job;

/* The slab at column `col` and k_from, cut off at col_end and the end of k. */
static mli_slab mli_gemm_slab(const mli_gemm_job *job, size_t col, size_t col_end, size_t k_from) {
    mli_slab slab;
    slab.col = col;
    slab.cols = MLI_MIN(job->slab_cols, col_end - col);
    slab.k_from = k_from;
    slab.k = MLI_MIN(job->slab_k, job->k - k_from);
    return slab;
}

/* C (+)= A . B for rows [row, row_end) and the slab, which is packed in b: a block of A that the second-level cache holds
   meets one panel of B, which moves to the first-level cache, after the other. */
static void mli_gemm_compute(const mli_gemm_job *job, mli_slab slab, size_t row, size_t row_end,
                             const float *b, float *packed_a, float *buffer) {
    size_t m, i, j, k = slab.k;
    for (; row < row_end; row += m) {
        m = MLI_MIN(MLI_BLOCK_ROWS, row_end - row);
        mli_pack(&job->a, row, m, slab.k_from, k, MLI_TILE_ROWS, packed_a, buffer);
        for (j = 0; j < slab.cols; j += MLI_TILE_COLS)
            for (i = 0; i < m; i += MLI_TILE_ROWS)
                mli_gemm_any_tile(k, packed_a + i / MLI_TILE_ROWS * MLI_TILE_WIDTH * k, b + j * k,
                                  job->c + (row + i) * job->c_stride + slab.col + j, job->c_stride,
                                  MLI_MIN(MLI_TILE_ROWS, m - i), MLI_MIN(MLI_TILE_COLS, slab.cols - j),
                                  job->accumulate || slab.k_from > 0);
    }
}

static void mli_gemm_pack_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    size_t from, to;
    mli_share(job->slab.cols, MLI_COL_GRAIN, job->n_tasks, index, &from, &to);
    if (from < to)
        mli_pack(&job->b, job->slab.col + from, to - from, job->slab.k_from, job->slab.k, MLI_TILE_COLS,
                 job->packed_b + from * job->slab.k, job->buffer + (size_t)index * MLI_BUFFER);
}

static void mli_gemm_rows_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    size_t from, to;
    mli_share(job->m, MLI_TILE_ROWS, job->n_tasks, index, &from, &to);
    mli_gemm_compute(job, job->slab, from, to, job->packed_b,
                     job->packed_a + (size_t)index * job->packed_a_size,
                     job->buffer + (size_t)index * MLI_BUFFER);
}

static void mli_gemm_cols_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    float *packed_a = job->packed_a + (size_t)index * job->packed_a_size;
    float *packed_b = job->packed_b + (size_t)index * job->slab_cols * job->slab_k;
    float *buffer = job->buffer + (size_t)index * MLI_BUFFER;
    size_t from, to, col, k;
    mli_share(job->n, MLI_COL_GRAIN, job->n_tasks, index, &from, &to);
    for (col = from; col < to; col += job->slab_cols)
        for (k = 0; k < job->k; k += job->slab_k) {
            mli_slab slab = mli_gemm_slab(job, col, to, k);
            mli_pack(&job->b, slab.col, slab.cols, slab.k_from, slab.k, MLI_TILE_COLS, packed_b, buffer);
            mli_gemm_compute(job, slab, 0, job->m, packed_b, packed_a, buffer);
        }
}

/* Decides how the work is cut. The blocks of k, on which the order of summation hangs, depend on k alone. */
static void mli_gemm_plan(mli_gemm_job *job, const ml_threads *threads, size_t m, size_t n, size_t k) {
    size_t blocks = (k + MLI_BLOCK_K - 1) / MLI_BLOCK_K, grains = (n + MLI_COL_GRAIN - 1) / MLI_COL_GRAIN;
    size_t sharers;
    job->m = m;
    job->n = n;
    job->k = k;
    job->n_tasks = mli_task_count(threads, m * n, 1 + MLI_TASK_WORK / k);
    job->by_rows = job->n_tasks > 1 && m / MLI_TILE_ROWS >= 8 * (size_t)job->n_tasks;
    sharers = job->by_rows ? 1 : (size_t)job->n_tasks; /* among whom the columns are dealt out */
    job->slab_cols = MLI_MIN(MLI_SLAB_COLS, (grains + sharers - 1) / sharers * MLI_COL_GRAIN);
    job->slab_k = mli_round_up((k + blocks - 1) / blocks, 32); /* whole blocks of quantised numbers */
    job->packed_a_size = mli_round_up(m, MLI_TILE_ROWS) / MLI_TILE_ROWS * MLI_TILE_WIDTH;
    job->packed_a_size = MLI_MIN(job->packed_a_size, MLI_BLOCK_PANELS * MLI_TILE_WIDTH) * job->slab_k;
}

/* Bytes of work that mli_gemm needs for matrices up to these sizes. */
static size_t mli_gemm_work(const ml_threads *threads, size_t m, size_t n, size_t k) {
    size_t tasks = threads && threads->count > 1 ? (size_t)threads->count : 1;
    size_t cols = MLI_MIN(mli_round_up(n, MLI_COL_GRAIN), MLI_SLAB_COLS * tasks) + tasks * MLI_COL_GRAIN;
    size_t panels = MLI_MIN((m + MLI_TILE_ROWS - 1) / MLI_TILE_ROWS, MLI_BLOCK_PANELS);
    size_t deep = MLI_MIN(mli_round_up(k, 32), MLI_BLOCK_K);
    return ((cols + tasks * panels * MLI_TILE_WIDTH) * deep + tasks * MLI_BUFFER) * sizeof(float) + MLI_ALIGN;
}

/* A and B^T as lines along k. */
static mli_lines mli_lines_of(ml_type type, const void *data, size_t line_stride, size_t k_stride) {
    mli_lines lines;
    lines.type = type;
    lines.data = (const char *)data;
    lines.line_stride = line_stride;
    lines.k_stride = k_stride;
    return lines;
}

/* C (m, n) = A (m, k) . B (k, n), or C += ... where accumulate is set; otherwise what C held is not read. A is F32, F16
   or BF16, B any type of weights. work: mli_gemm_work bytes. The result is the same bits for every number of
   threads, and an element's do not depend on where in C it stands. */
static void mli_gemm(const ml_threads *threads, size_t m, size_t n, size_t k, mli_operand a, mli_operand b,
                     float *c, size_t c_row_stride, int accumulate, void *work) {
    mli_gemm_job job;
    size_t i, col;
    if (k == 0 && !accumulate)
        for (i = 0; i < m; i++) memset(c + i * c_row_stride, 0, n * sizeof *c);
    if (m == 0 || n == 0 || k == 0) return;
    mli_gemm_plan(&job, threads, m, n, k);
    job.a = mli_lines_of(a.type, a.data, a.row_stride, a.col_stride);
    job.b = mli_lines_of(b.type, b.data, b.col_stride, b.row_stride);
    job.c = c;
    job.c_stride = c_row_stride;
    job.accumulate = accumulate;
    job.packed_b = (float *)mli_align_up((uintptr_t)work);
    job.packed_a = job.packed_b + job.slab_cols * job.slab_k * (job.by_rows ? 1 : (size_t)job.n_tasks);
    job.buffer = job.packed_a + job.packed_a_size * (size_t)job.n_tasks;
    if (!job.by_rows) {
        mli_parallel(threads, job.n_tasks, mli_gemm_cols_task, &job);
        return;
    }
    for (col = 0; col < n; col += job.slab_cols)
        for (i = 0; i < k; i += job.slab_k) {
            job.slab = mli_gemm_slab(&job, col, n, i);
            mli_parallel(threads, job.n_tasks, mli_gemm_pack_task, &job);
            mli_parallel(threads, job.n_tasks, mli_gemm_rows_task, &job);
        }
}

/* ==== >>formats ====
   What a stored number looks like. F16 is IEEE 754's half (1 sign, 5 exponent, 10 mantissa bits), BF16 the upper
   half of an F32 (1, 8, 7). Q8_0 and Q4_0 are ggml's blocks: 32 numbers of a row share one F16 scale. In memory,
   whole numbers stand in the machine's byte order; the scale of a block is little-endian everywhere. */

enum {
    MLI_BLOCK = 32,      /* numbers in a block of Q8_0 or Q4_0 */
    MLI_Q8_0_BYTES = 34, /* scale, q[32] as signed bytes */
    MLI_Q4_0_BYTES =
        18 /* scale, 16 bytes: low halves are numbers 0..15, high halves 16..31; stored as q + 8 */
};

#define MLI_NO_GGUF UINT32_MAX /* GGUF has no such type */

typedef struct mli_type_info {
    const char *name;
    uint32_t gguf;       /* its number in a GGUF file */
    size_t block, bytes; /* numbers in a block, bytes of a block */
} mli_type_info;

static const mli_type_info mli_types[ML_TYPE_COUNT] = {
    /* in the order of ml_type */
    {"?", MLI_NO_GGUF, 1, 0},
    {"F32", 0, 1, 4},
    {"F16", 1, 1, 2},
    {"BF16", 30, 1, 2},
    {"Q8_0", 8, MLI_BLOCK, MLI_Q8_0_BYTES},
    {"Q4_0", 2, MLI_BLOCK, MLI_Q4_0_BYTES},
    {"F64", 28, 1, 8},
    {"I64", 27, 1, 8},
    {"I32", 26, 1, 4},
    {"I16", 25, 1, 2},
    {"I8", 24, 1, 1},
    {"U8", MLI_NO_GGUF, 1, 1},
    {"BOOL", MLI_NO_GGUF, 1, 1},
};

/* The row of the table; that of ML_TYPE_NONE for a number that is no type. */
static const mli_type_info *mli_type(ml_type type) {
    return &mli_types[(unsigned)type < ML_TYPE_COUNT ? (unsigned)type : 0];
}

static ml_type mli_type_from_gguf(uint32_t number) {
    int i;
    for (i = 1; i < ML_TYPE_COUNT; i++)
        if (mli_types[i].gguf == number && number != MLI_NO_GGUF) return (ml_type)i;
    return ML_TYPE_NONE;
}

ML_DEF const char *ml_type_name(ml_type type) { return mli_type(type)->name; }

/* Upper case of an ASCII letter, whatever the locale. */
static char mli_upper(char c) { return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c; }

ML_DEF ml_type ml_type_from_name(const char *name) {
    int i;
    if (!name) return ML_TYPE_NONE;
    for (i = 1; i < ML_TYPE_COUNT; i++) {
        const char *a = mli_types[i].name, *b = name;
        while (*a && *a == mli_upper(*b)) a++, b++;
        if (!*a && !*b) return (ml_type)i;
    }
    return ML_TYPE_NONE;
}

ML_DEF size_t ml_type_block(ml_type type) { return mli_type(type)->block; }

ML_DEF size_t ml_row_bytes(ml_type type, size_t cols) {
    const mli_type_info *info = mli_type(type);
    size_t bytes;
    if (cols % info->block || !mli_mul_size(cols / info->block, info->bytes, &bytes)) return 0;
    return bytes;
}

/* ---- F16 and BF16 ---- */

static uint32_t mli_float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float mli_bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact: every F16 is an F32. A signalling NaN comes out quiet, as the processors' own instructions have it. */
static float mli_f16_to_f32(uint16_t half) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#else
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude > 0x7c00u) return mli_bits_float(sign | 0x7fc00000u | magnitude << 13); /* NaN */
    if (magnitude == 0x7c00u) return mli_bits_float(sign | 0x7f800000u);                  /* infinity */
    if (magnitude >= 0x0400u) return mli_bits_float(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
    return mli_bits_float(sign | mli_float_bits((float)magnitude * (1.0f / 16777216.0f))); /* k * 2^-24 */
#endif
}

/* To the nearest, ties to even; from 65520 on to infinity. */
static uint16_t mli_f32_to_f16(float value) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT));
#else
    uint32_t bits = mli_float_bits(value), sign = bits >> 16 & 0x8000u, x = bits & 0x7fffffffu;
    uint32_t mantissa, shift;
    if (x > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (x >> 13 & 0x3ffu)); /* NaN, made quiet */
    if (x >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (x >= 0x38800000u) { /* 2^-14 and above: normal. A carry out of the mantissa raises the exponent */
        x -= (127u - 15u) << 23;
        return (uint16_t)(sign | (x + 0xfffu + (x >> 13 & 1)) >> 13);
    }
    if (x <= 0x33000000u) return (uint16_t)sign; /* up to half of the smallest, 2^-24 */
    mantissa = (x & 0x7fffffu) | 0x800000u;      /* value = mantissa * 2^(exponent - 150) = r * 2^-24 */
    shift = 126u - (x >> 23);
    return (uint16_t)(sign | (mantissa + (1u << (shift - 1)) - 1 + (mantissa >> shift & 1)) >> shift);
#endif
}

static float mli_bf16_to_f32(uint16_t half) { return mli_bits_float((uint32_t)half << 16); }

/* To the nearest, ties to even: a carry runs on into the exponent, up to infinity. */
static uint16_t mli_f32_to_bf16(float value) {
    uint32_t bits = mli_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* NaN, made quiet */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* ---- rows of numbers ---- */

static float mli_load_scale(const uint8_t *block) {
    return mli_f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

/* Stores d as F16, never above its largest number, and returns what was stored. */
static void mli_store_scale(uint8_t *block, float d) {
    uint16_t half = mli_f32_to_f16(d > 65504.0f ? 65504.0f : d < -65504.0f ? -65504.0f : d);
    block[0] = (uint8_t)(half & 0xff);
    block[1] = (uint8_t)(half >> 8);
}

static void mli_dequantize_f16(const uint16_t *row, float *dst, size_t n) {
    size_t i = 0, whole = n & ~(size_t)7;
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    for (; i < whole; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + i))));
#elif defined(MLI_NEON)
    for (; i < whole; i += 4) vst1q_f32(dst + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(row + i))));
#else
    (void)whole;
#endif
    for (; i < n; i++) dst[i] = mli_f16_to_f32(row[i]);
}

static void mli_dequantize_q8_0(const uint8_t *row, float *dst, size_t n) {
    size_t b, i;
    for (b = 0; b < n / MLI_BLOCK; b++, row += MLI_Q8_0_BYTES, dst += MLI_BLOCK) {
        float d = mli_load_scale(row);
        const int8_t *q = (const int8_t *)(row + 2);
        for (i = 0; i < MLI_BLOCK; i++) dst[i] = d * (float)q[i];
    }
}

static void mli_dequantize_q4_0(const uint8_t *row, float *dst, size_t n) {
    size_t b, i;
    for (b = 0; b < n / MLI_BLOCK; b++, row += MLI_Q4_0_BYTES, dst += MLI_BLOCK) {
        float d = mli_load_scale(row);
        for (i = 0; i < MLI_BLOCK / 2; i++) {
            dst[i] = d * (float)((row[2 + i] & 15) - 8);
            dst[i + MLI_BLOCK / 2] = d * (float)((row[2 + i] >> 4) - 8);
        }
    }
}

/* dst (n) = the numbers of a row in one of the first five formats; n is a multiple of the block. */
static void mli_dequantize_row(ml_type type, const void *row, float *dst, size_t n) {
    size_t i;
    switch (type) {
    case ML_F32: memcpy(dst, row, n * sizeof *dst); break;
    case ML_F16: mli_dequantize_f16((const uint16_t *)row, dst, n); break;
    case ML_BF16:
        for (i = 0; i < n; i++) dst[i] = mli_bf16_to_f32(((const uint16_t *)row)[i]);
        break;
    case ML_Q8_0: mli_dequantize_q8_0((const uint8_t *)row, dst, n); break;
    case ML_Q4_0: mli_dequantize_q4_0((const uint8_t *)row, dst, n); break;
    default: ML_ASSERT(0 && "a format of weights");
    }
}

/* x to the nearest integer of -127..127, halves away from zero; NaN gives 0. */
static int mli_round_q8(float x) {
    int whole;
    float rest;
    if (!(x > -127.0f)) return x <= -127.0f ? -127 : 0;
    if (x >= 127.0f) return 127;
    whole = (int)x;
    rest = x - (float)whole; /* exact */
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* Of 32 numbers, the one with the largest magnitude, the first of equals. NaN is passed over. */
static float mli_largest(const float *x) {
    float largest = 0;
    int i;
    for (i = 0; i < MLI_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    return largest;
}

/* Q8_0: d = max |x| / 127, q = x / d rounded. Numbers beyond 127 * 65504 are clipped, NaN becomes 0. */
static void mli_quantize_q8_0(const float *src, uint8_t *row, size_t n) {
    size_t b, i;
    for (b = 0; b < n / MLI_BLOCK; b++, row += MLI_Q8_0_BYTES, src += MLI_BLOCK) {
        float d = MLI_MIN(fabsf(mli_largest(src)) / 127.0f, 65504.0f), inverse = d > 0 ? 1.0f / d : 0;
        mli_store_scale(row, d);
        for (i = 0; i < MLI_BLOCK; i++) row[2 + i] = (uint8_t)mli_round_q8(src[i] * inverse);
    }
}

/* q + 8 of Q4_0 for x / d: 0..15, and 8, which means 0, for NaN. */
static unsigned mli_round_q4(float x) {
    x += 8.5f;
    return x >= 15.0f ? 15u : x >= 1.0f ? (unsigned)x : x < 1.0f ? 0u : 8u;
}

/* Q4_0: d = (the number of largest magnitude, with its sign) / -8, so that it becomes -8 exactly and the range
   -8..7 is used to its end. Clips and treats NaN as Q8_0 does. */
static void mli_quantize_q4_0(const float *src, uint8_t *row, size_t n) {
    size_t b, i;
    for (b = 0; b < n / MLI_BLOCK; b++, row += MLI_Q4_0_BYTES, src += MLI_BLOCK) {
        float d = MLI_MAX(-65504.0f, MLI_MIN(mli_largest(src) / -8.0f, 65504.0f)),
              inverse = d != 0 ? 1.0f / d : 0;
        mli_store_scale(row, d);
        for (i = 0; i < MLI_BLOCK / 2; i++) {
            unsigned low = mli_round_q4(src[i] * inverse),
                     high = mli_round_q4(src[i + MLI_BLOCK / 2] * inverse);
            row[2 + i] = (uint8_t)(low | high << 4);
        }
    }
}

/* row = src (n) in one of the first five formats; n is a multiple of the block. */
static void mli_quantize_row(ml_type type, const float *src, void *row, size_t n) {
    size_t i;
    switch (type) {
    case ML_F32: memcpy(row, src, n * sizeof *src); break;
    case ML_F16:
        for (i = 0; i < n; i++) ((uint16_t *)row)[i] = mli_f32_to_f16(src[i]);
        break;
    case ML_BF16:
        for (i = 0; i < n; i++) ((uint16_t *)row)[i] = mli_f32_to_bf16(src[i]);
        break;
    case ML_Q8_0: mli_quantize_q8_0(src, (uint8_t *)row, n); break;
    case ML_Q4_0: mli_quantize_q4_0(src, (uint8_t *)row, n); break;
    default: ML_ASSERT(0 && "a format of weights");
    }
}

/* ---- conversion ---- */

/* A double as a float that can be rounded again to fewer bits as if from the double itself: cut off, and the last
   bit set if anything was lost ("round to odd", Boldo and Melquiond 2008). */
static float mli_round_to_odd(double value) {
    float nearest = (float)value;
    uint32_t bits = mli_float_bits(nearest);
    if (value != value || (double)nearest == value) return nearest;
    if (fabs((double)nearest) > fabs(value)) bits--; /* it was rounded away from zero: one step back */
    return mli_bits_float(bits | 1);
}

/* Number i of an array of F64 or of integers, exact below 2^53. */
static double mli_get_number(ml_type type, const void *array, size_t i) {
    const uint8_t *at = (const uint8_t *)array + i * mli_type(type)->bytes;
    double f64;
    int64_t i64;
    int32_t i32;
    int16_t i16;
    switch (type) {
    case ML_F64: memcpy(&f64, at, 8); return f64;
    case ML_I64: memcpy(&i64, at, 8); return (double)i64;
    case ML_I32: memcpy(&i32, at, 4); return i32;
    case ML_I16: memcpy(&i16, at, 2); return i16;
    case ML_I8: return *at < 128 ? *at : (double)*at - 256;
    case ML_U8: return *at;
    default: return *at != 0; /* ML_BOOL */
    }
}

/* dst (n) = n numbers of any type from src on, as floats: exact, to odd before another rounding, else nearest. */
static void mli_get_floats(ml_type type, const void *src, float *dst, size_t n, int to_odd) {
    size_t i;
    if (type <= ML_Q4_0) {
        mli_dequantize_row(type, src, dst, n);
        return;
    }
    for (i = 0; i < n; i++) {
        double value = mli_get_number(type, src, i);
        dst[i] = to_odd ? mli_round_to_odd(value) : (float)value;
    }
}

ML_DEF ml_result ml_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n) {
    const mli_type_info *in = mli_type(from), *out = mli_type(to);
    float part[8 * MLI_BLOCK];
    uint16_t raw[2 * sizeof part / sizeof(uint16_t)]; /* src and dst may stand at odd addresses */
    size_t done, count;
    if (!in->bytes || to < ML_F32 || to > ML_Q4_0 || n % in->block || n % out->block)
        return ML_ERROR_ARGUMENT;
    if (!n) return ML_OK;
    if (!dst || !src) return ML_ERROR_ARGUMENT;
    if (from == to) {
        memmove(dst, src, n / in->block * in->bytes);
        return ML_OK;
    }
    for (done = 0; done < n; done += count) {
        count = MLI_MIN(n - done, sizeof part / sizeof *part);
        memcpy(raw, (const uint8_t *)src + done / in->block * in->bytes, count / in->block * in->bytes);
        mli_get_floats(from, raw, part, count, to == ML_F16 || to == ML_BF16);
        mli_quantize_row(to, part, raw, count);
        memcpy((uint8_t *)dst + done / out->block * out->bytes, raw, count / out->block * out->bytes);
    }
    return ML_OK;
}

/* ==== >>integers ====
   Products with Q8_0 and Q4_0 weights are summed in integers. The other operand, the activations x, is brought to
   the weights' form first: blocks of 32 signed bytes with one scale each. Then

       y = sum over blocks of  d_w * d_x * (sum over the block of q_w * q_x)

   and the inner sum is exact: at most 32 * 128 * 127, below 2^24. So all versions of a kernel agree but for the
   order in which the blocks' floats are added, and each of them gives a row the same bits wherever it stands. */

/* What the processor can do: x86 multiplies unsigned by signed bytes, in steps of four with VNNI, else in pairs
   whose sum saturates at 16 bits; ARM has signed bytes, in fours with DOTPROD. */
#if defined(MLI_AVX512) && defined(__AVX512VNNI__)
#define MLI_DOT_VNNI
#elif defined(MLI_AVX512) || defined(MLI_AVX2)
#define MLI_DOT_AVX2
#elif defined(MLI_NEON)
#define MLI_DOT_NEON
#else
#define MLI_DOT_SCALAR
#endif

/* The largest magnitude of x (32) as the bits of a float: without their sign, floats are ordered as their bits are,
   and NaN comes last. */
static uint32_t mli_block_largest(const float *x) {
#if defined(MLI_DOT_VNNI) || defined(MLI_DOT_AVX2)
    const __m256i *v = (const __m256i *)(const void *)x, magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_max_epu32(_mm256_and_si256(_mm256_loadu_si256(v), magnitude),
                                 _mm256_and_si256(_mm256_loadu_si256(v + 1), magnitude));
    __m256i b = _mm256_max_epu32(_mm256_and_si256(_mm256_loadu_si256(v + 2), magnitude),
                                 _mm256_and_si256(_mm256_loadu_si256(v + 3), magnitude));
    __m128i m;
    a = _mm256_max_epu32(a, b);
    m = _mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epu32(m, _mm_unpackhi_epi64(m, m));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 1)));
#else
    uint32_t largest = 0, bits;
    int i;
    for (i = 0; i < MLI_BLOCK; i++) {
        bits = mli_float_bits(x[i]) & 0x7fffffffu;
        largest = MLI_MAX(largest, bits);
    }
    return largest;
#endif
}

/* q (32) = x (32) * factor, to the nearest, ties to even; within -127..127. */
static void mli_block_round(const float *x, float factor, int8_t *q) {
#if defined(MLI_DOT_VNNI) || defined(MLI_DOT_AVX2)
    __m256 f = _mm256_set1_ps(factor);
    __m256i a = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), f)),
                                   _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), f)));
    __m256i b = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 16), f)),
                                   _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 24), f)));
    /* packing works on each half by itself: put the groups of four back in order */
    a = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, a);
#else
    int i;
    for (i = 0; i < MLI_BLOCK; i++) {
        float shifted = x[i] * factor;
        shifted += 12582912.0f; /* 1.5 * 2^23: from here on floats are integers; the addition rounds */
        q[i] = (int8_t)(mli_float_bits(shifted) & 0xff);
    }
#endif
}

/* q (32) and *scale: x (32) = q * scale, |q| <= 127, to the nearest. A block that holds an infinity or a NaN gets
   the scale NaN, so that what is wrong with it shows in y as it would in floats. */
static void mli_quantize_block(const float *x, int8_t *q, float *scale) {
    uint32_t bits = mli_block_largest(x);
    float largest = mli_bits_float(bits);
    if (bits >= 0x7f800000u || bits < 0x0d800000u) { /* not finite, or below 2^-100: as good as 0 */
        *scale = bits >= 0x7f800000u ? mli_bits_float(0x7fc00000u) : 0;
        memset(q, 0, MLI_BLOCK);
        return;
    }
    *scale = largest / 127.0f;
    mli_block_round(x, 127.0f / largest, q);
}

/* ---- few rows of activations: bound by the reading of the weights ---- */

/* A block of activations. Where weights are multiplied unsigned, as q + offset, sums start at -offset * sum(q). */
typedef struct mli_xblock {
    int8_t q[MLI_BLOCK];
#if defined(MLI_DOT_VNNI) || defined(MLI_DOT_AVX2)
    int32_t start[2][8]; /* -offset times the sum of each four q, for Q8_0 and for Q4_0 weights */
#endif
} mli_xblock;

#if defined(MLI_DOT_VNNI) /* see mli_i8_load_w */
enum { MLI_OFFSET_Q8_0 = 128, MLI_OFFSET_Q4_0_LOW = 8, MLI_OFFSET_Q4_0_HIGH = 128 };
#elif defined(MLI_DOT_AVX2)
enum { MLI_OFFSET_Q8_0 = 0, MLI_OFFSET_Q4_0_LOW = 8, MLI_OFFSET_Q4_0_HIGH = 8 };
#endif

/* Fills in what follows from q. */
static void mli_finish_xblock(mli_xblock *x) {
#if defined(MLI_DOT_VNNI) || defined(MLI_DOT_AVX2)
    const int low = -MLI_OFFSET_Q4_0_LOW, high = -MLI_OFFSET_Q4_0_HIGH;
    __m256i q = _mm256_loadu_si256((const __m256i *)(const void *)x->q);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
    __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    _mm256_storeu_si256((__m256i *)(void *)x->start[0],
                        _mm256_mullo_epi32(fours, _mm256_set1_epi32(-MLI_OFFSET_Q8_0)));
    _mm256_storeu_si256(
        (__m256i *)(void *)x->start[1],
        _mm256_mullo_epi32(fours, _mm256_setr_epi32(low, low, low, low, high, high, high, high)));
#else
    (void)x;
#endif
}

/* Bytes for n_x rows of activations, blocks first and their scales behind; cols is a multiple of 32. They are
   aligned for a float at least, best at 64. */
static size_t mli_activation_bytes(size_t n_x, size_t cols) {
    return n_x * (cols / MLI_BLOCK) * (sizeof(mli_xblock) + sizeof(float));
}

/* q = x (n_x, cols) as blocks (n_x, cols / 32) and scales (n_x, cols / 32). */
static void mli_quantize_activations(const float *x, size_t n_x, size_t cols, void *q) {
    size_t i, n = n_x * (cols / MLI_BLOCK);
    mli_xblock *block = (mli_xblock *)q;
    float *scale = (float *)(block + n);
    for (i = 0; i < n; i++, block++, x += MLI_BLOCK) {
        mli_quantize_block(x, block->q, scale + i);
        mli_finish_xblock(block);
    }
}

#if defined(MLI_DOT_SCALAR) || defined(ML_REFERENCE_KERNELS)
/* The reference: sum of q_w * q_x over one block, w being the weights' block behind its scale. */
static inline int32_t mli_ref_dot(ml_type type, const uint8_t *w, const int8_t *x) {
    int32_t sum = 0;
    int i;
    if (type == ML_Q8_0) {
        const int8_t *q = (const int8_t *)w;
        for (i = 0; i < MLI_BLOCK; i++) sum += q[i] * x[i];
    } else {
        for (i = 0; i < MLI_BLOCK / 2; i++)
            sum += ((w[i] & 15) - 8) * x[i] + ((w[i] >> 4) - 8) * x[i + MLI_BLOCK / 2];
    }
    return sum;
}

/* y (n_x, n_rows; a row every y_stride) = x (n_x, cols) . w^T, w (n_rows, cols) in Q8_0 or Q4_0, q the blocks of x. */
static inline void mli_ref_rows(ml_type type, float *y, const void *w, size_t n_rows, size_t cols,
                                const void *q, size_t n_x, size_t y_stride) {
    size_t row, i, b, blocks = cols / MLI_BLOCK, bytes = mli_type(type)->bytes;
    const mli_xblock *x = (const mli_xblock *)q;
    const float *x_scale = (const float *)(x + n_x * blocks);
    for (i = 0; i < n_x; i++, x += blocks, x_scale += blocks) {
        const uint8_t *block = (const uint8_t *)w;
        for (row = 0; row < n_rows; row++) {
            float sum = 0;
            for (b = 0; b < blocks; b++, block += bytes)
                sum += mli_load_scale(block) * x_scale[b] * (float)mli_ref_dot(type, block + 2, x[b].q);
            y[i * y_stride + row] = sum;
        }
    }
}

#endif

/* Four rows of weights are multiplied at a time, so that what is loaded of x serves all four, and the memory system
   sees four streams. What follows for each instruction set is:

       mli_i8_w       a block of weights as bytes           mli_i8_load_w, from behind the block's scale
       mli_i8_x       a block of x                          mli_i8_load_x
       mli_i8_ints    lanes that add up to the integer sum  mli_i8_dot
       mli_i8_scales  four scales                           mli_i8_load_scales of four blocks in a row, times x's
       mli_i8_floats  lanes that add up to y                mli_i8_add, mli_i8_sums */

#if !defined(MLI_DOT_SCALAR)
/* The scales of four blocks of a row, side by side. Put together in integers, whose units have nothing else to do. */
MLI_INLINE uint64_t mli_four_halves(ml_type type, const uint8_t *w) {
    const size_t bytes = type == ML_Q8_0 ? MLI_Q8_0_BYTES : MLI_Q4_0_BYTES;
    uint16_t half[4];
    memcpy(half, w, 2);
    memcpy(half + 1, w + bytes, 2);
    memcpy(half + 2, w + 2 * bytes, 2);
    memcpy(half + 3, w + 3 * bytes, 2);
    return (half[0] | (uint32_t)half[1] << 16) | (uint64_t)(half[2] | (uint32_t)half[3] << 16) << 32;
}
#endif

#if defined(MLI_DOT_VNNI) || defined(MLI_DOT_AVX2)
typedef __m256i mli_i8_w;
typedef struct mli_i8_x {
    __m256i q, start;
} mli_i8_x;
typedef __m256i mli_i8_ints;  /* each lane the sum of four products */
typedef __m256 mli_i8_scales; /* the four in either half */
typedef __m256 mli_i8_floats;

MLI_INLINE mli_i8_x mli_i8_load_x(ml_type type, const mli_xblock *x) {
    mli_i8_x block;
    block.q = _mm256_loadu_si256((const __m256i *)(const void *)x->q);
    block.start = _mm256_loadu_si256((const __m256i *)(const void *)x->start[type == ML_Q4_0]);
    return block;
}

#ifdef MLI_DOT_VNNI
/* Unsigned: Q8_0's q + 128. Of Q4_0, q + 8 of the first 16 numbers, and 16 * (q + 8) of the others: masked, but not
   shifted down. mli_i8_sums makes up for it. */
MLI_INLINE mli_i8_w mli_i8_load_w(ml_type type, const uint8_t *w) {
    if (type == ML_Q4_0) {
        __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)w));
        return _mm256_and_si256(twice, _mm256_setr_epi32(0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f, 0x0f0f0f0f,
                                                         -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10, -0x0f0f0f10));
    }
    return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)w), _mm256_set1_epi8(-128));
}

MLI_INLINE mli_i8_ints mli_i8_dot(ml_type type, mli_i8_w w, mli_i8_x x) {
    (void)type;
    return _mm256_dpbusd_epi32(x.start, w, x.q);
}
#else
/* Q8_0's q as they are; Q4_0's q + 8. */
MLI_INLINE mli_i8_w mli_i8_load_w(ml_type type, const uint8_t *w) {
    if (type == ML_Q4_0) {
        __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)w));
        return _mm256_and_si256(_mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)),
                                _mm256_set1_epi8(15));
    }
    return _mm256_loadu_si256((const __m256i *)(const void *)w);
}

/* Q8_0: the weight's sign goes over to x, and |w| <= 128 is unsigned. Two products add up to 2 * 128 * 127 at most,
   which 16 bits hold: nothing saturates. */
MLI_INLINE mli_i8_ints mli_i8_dot(ml_type type, mli_i8_w w, mli_i8_x x) {
    const __m256i ones = _mm256_set1_epi16(1);
    if (type == ML_Q8_0)
        return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x.q, w)), ones);
    return _mm256_add_epi32(_mm256_madd_epi16(_mm256_maddubs_epi16(w, x.q), ones), x.start);
}
#endif

MLI_INLINE mli_i8_scales mli_i8_load_scales(ml_type type, const uint8_t *w, const float *x) {
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi64x((int64_t)mli_four_halves(type, w))),
                         _mm256_broadcast_ps((const __m128 *)(const void *)x));
}

MLI_INLINE mli_i8_scales mli_i8_set_scale(float scale) { return _mm256_set1_ps(scale); }

MLI_INLINE mli_i8_floats mli_i8_zero(void) { return _mm256_setzero_ps(); }

/* sum + ints * scale j */
MLI_INLINE mli_i8_floats mli_i8_add(mli_i8_floats sum, mli_i8_ints ints, mli_i8_scales scales, int j) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints), _mm256_permutevar_ps(scales, _mm256_set1_epi32(j)), sum);
}

/* y (4) = the sums of the lanes of each row. */
MLI_INLINE void mli_i8_sums(ml_type type, const mli_i8_floats sum[4], float *y) {
    __m256 rows = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
    __m128 high = _mm256_extractf128_ps(rows, 1);
    if (type == ML_Q4_0 && MLI_OFFSET_Q4_0_HIGH == 128) high = _mm_mul_ps(high, _mm_set1_ps(1.0f / 16));
    _mm_storeu_ps(y, _mm_add_ps(_mm256_castps256_ps128(rows), high));
}

#elif defined(MLI_DOT_NEON)
typedef int8x16x2_t mli_i8_w;
typedef int8x16x2_t mli_i8_x;
typedef int32x4_t mli_i8_ints;
typedef float32x4_t mli_i8_scales;
typedef float32x4_t mli_i8_floats;

MLI_INLINE mli_i8_x mli_i8_load_x(ml_type type, const mli_xblock *x) {
    mli_i8_x block;
    (void)type;
    block.val[0] = vld1q_s8(x->q);
    block.val[1] = vld1q_s8(x->q + 16);
    return block;
}

MLI_INLINE mli_i8_w mli_i8_load_w(ml_type type, const uint8_t *w) {
    mli_i8_w block;
    if (type == ML_Q4_0) {
        uint8x16_t pairs = vld1q_u8(w);
        block.val[0] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15))), vdupq_n_s8(8));
        block.val[1] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4)), vdupq_n_s8(8));
    } else {
        block.val[0] = vreinterpretq_s8_u8(vld1q_u8(w));
        block.val[1] = vreinterpretq_s8_u8(vld1q_u8(w + 16));
    }
    return block;
}

MLI_INLINE mli_i8_ints mli_i8_dot(ml_type type, mli_i8_w w, mli_i8_x x) {
#if defined(__ARM_FEATURE_DOTPROD)
    (void)type;
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w.val[0], x.val[0]), w.val[1], x.val[1]);
#else
    /* two products of at most 128 * 127 fit 16 bits */
    int16x8_t low = vmull_s8(vget_low_s8(w.val[0]), vget_low_s8(x.val[0]));
    int16x8_t high = vmull_high_s8(w.val[0], x.val[0]);
    (void)type;
    low = vmlal_s8(low, vget_low_s8(w.val[1]), vget_low_s8(x.val[1]));
    high = vmlal_high_s8(high, w.val[1], x.val[1]);
    return vpadalq_s16(vpaddlq_s16(low), high);
#endif
}

MLI_INLINE mli_i8_scales mli_i8_load_scales(ml_type type, const uint8_t *w, const float *x) {
    return vmulq_f32(vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(mli_four_halves(type, w)))), vld1q_f32(x));
}

MLI_INLINE mli_i8_scales mli_i8_set_scale(float scale) { return vdupq_n_f32(scale); }

MLI_INLINE mli_i8_floats mli_i8_zero(void) { return vdupq_n_f32(0); }

/* sum + ints * scale j */
MLI_INLINE mli_i8_floats mli_i8_add(mli_i8_floats sum, mli_i8_ints ints, mli_i8_scales scales, int j) {
    float32x4_t floats = vcvtq_f32_s32(ints);
    switch (j) { /* the instruction wants a constant */
    case 0: return vfmaq_laneq_f32(sum, floats, scales, 0);
    case 1: return vfmaq_laneq_f32(sum, floats, scales, 1);
    case 2: return vfmaq_laneq_f32(sum, floats, scales, 2);
    default: return vfmaq_laneq_f32(sum, floats, scales, 3);
    }
}

/* y (4) = the sums of the lanes of each row. */
MLI_INLINE void mli_i8_sums(ml_type type, const mli_i8_floats sum[4], float *y) {
    (void)type;
    vst1q_f32(y, vpaddq_f32(vpaddq_f32(sum[0], sum[1]), vpaddq_f32(sum[2], sum[3])));
}
#endif

#if !defined(MLI_DOT_SCALAR)
/* sum (n_x) += one block of w . x (n_x, a row every x_stride blocks), each with the scale in place j. */
MLI_INLINE void mli_i8_step(ml_type type, mli_i8_floats sum[2], const uint8_t *w, const mli_xblock *x,
                            size_t x_stride, int n_x, const mli_i8_scales scales[2], int j) {
    mli_i8_w block = mli_i8_load_w(type, w + 2);
    int i;
    MLI_UNROLL
    for (i = 0; i < n_x; i++) {
        mli_i8_x q = mli_i8_load_x(type, x + (size_t)i * x_stride);
        sum[i] = mli_i8_add(sum[i], mli_i8_dot(type, block, q), scales[i], j);
    }
}

/* sum (n_x) = one row of w (blocks) . x (n_x, blocks) */
MLI_INLINE void mli_i8_row(ml_type type, mli_i8_floats sum[2], const uint8_t *w, size_t blocks,
                           const mli_xblock *x, const float *x_scale, int n_x) {
    const size_t bytes = type == ML_Q8_0 ? MLI_Q8_0_BYTES : MLI_Q4_0_BYTES;
    mli_i8_scales scales[2];
    size_t b;
    int i, j;
    MLI_UNROLL
    for (i = 0; i < n_x; i++) sum[i] = mli_i8_zero();
    for (b = 0; b + 4 <= blocks; b += 4) {
        MLI_UNROLL
        for (i = 0; i < n_x; i++) scales[i] = mli_i8_load_scales(type, w, x_scale + (size_t)i * blocks + b);
        MLI_UNROLL
        for (j = 0; j < 4; j++, w += bytes)
            mli_i8_step(type, sum, w, x + b + (size_t)j, blocks, n_x, scales, j);
    }
    for (; b < blocks; b++, w += bytes) {
        MLI_UNROLL
        for (i = 0; i < n_x; i++)
            scales[i] = mli_i8_set_scale(mli_load_scale(w) * x_scale[(size_t)i * blocks + b]);
        mli_i8_step(type, sum, w, x + b, blocks, n_x, scales, 0);
    }
}

/* y (n_x, 4) = four rows of w (4, blocks) . x (n_x, blocks), n_x = 1 or 2. Row after row, so that memory is read as one
   stream; only the sums of the lanes are taken four at a time. */
MLI_INLINE void mli_i8_rows(ml_type type, float y[2][4], const uint8_t *const w[4], size_t blocks,
                            const mli_xblock *x, const float *x_scale, int n_x) {
    mli_i8_floats sum[2][4], row[2];
    int i, r;
    MLI_UNROLL
    for (r = 0; r < 4; r++) {
        mli_i8_row(type, row, w[r], blocks, x, x_scale, n_x);
        MLI_UNROLL
        for (i = 0; i < n_x; i++) sum[i][r] = row[i];
    }
    MLI_UNROLL
    for (i = 0; i < n_x; i++) mli_i8_sums(type, sum[i], y[i]);
}

/* One function for each type and n_x. Compilers that unite them in one run out of registers. */
#if defined(__GNUC__)
#define MLI_APART __attribute__((noinline))
#else
#define MLI_APART
#endif
#define MLI_I8_KERNEL(name, type, n_x)                                                                       \
    static MLI_APART void name(float y[2][4], const uint8_t *const w[4], size_t blocks, const mli_xblock *x, \
                               const float *x_scale) {                                                       \
        mli_i8_rows(type, y, w, blocks, x, x_scale, n_x);                                                    \
    }
MLI_I8_KERNEL(mli_i8_q8_0_1, ML_Q8_0, 1)
MLI_I8_KERNEL(mli_i8_q8_0_2, ML_Q8_0, 2)
MLI_I8_KERNEL(mli_i8_q4_0_1, ML_Q4_0, 1)
MLI_I8_KERNEL(mli_i8_q4_0_2, ML_Q4_0, 2)
#undef MLI_I8_KERNEL

/* y (n) = the first of part (4). */
static void mli_i8_put(float *y, const float *part, size_t n) {
    if (n == 4)
        memcpy(y, part, 4 * sizeof *y);
    else
        memcpy(y, part, n * sizeof *y);
}

/* At the end, the last row stands in for those that are missing to four. */
static void mli_rows_of(ml_type type, float *y, const void *w, size_t n_rows, size_t cols, const void *q,
                        size_t n_x, size_t y_stride) {
    const size_t blocks = cols / MLI_BLOCK, row_bytes = blocks * mli_type(type)->bytes;
    const mli_xblock *x = (const mli_xblock *)q;
    const float *x_scale = (const float *)(x + n_x * blocks);
    size_t row, i, r, n;
    for (row = 0; row < n_rows; row += n) {
        const uint8_t *rows[4];
        float part[2][4];
        n = MLI_MIN(n_rows - row, 4);
        for (r = 0; r < 4; r++) rows[r] = (const uint8_t *)w + (row + MLI_MIN(r, n - 1)) * row_bytes;
        for (i = 0; i + 2 <= n_x; i += 2) {
            (type == ML_Q8_0 ? mli_i8_q8_0_2 : mli_i8_q4_0_2)(part, rows, blocks, x + i * blocks,
                                                              x_scale + i * blocks);
            mli_i8_put(y + i * y_stride + row, part[0], n);
            mli_i8_put(y + (i + 1) * y_stride + row, part[1], n);
        }
        if (i == n_x) continue;
        (type == ML_Q8_0 ? mli_i8_q8_0_1 : mli_i8_q4_0_1)(part, rows, blocks, x + i * blocks,
                                                          x_scale + i * blocks);
        mli_i8_put(y + i * y_stride + row, part[0], n);
    }
}
#else
#define mli_rows_of mli_ref_rows
#endif

/* y (n_x, n_rows; a row every y_stride) = x (n_x, cols) . w^T, q the blocks of x, w (n_rows, cols). */
static void mli_rows_q8_0(float *y, const void *w, size_t n_rows, size_t cols, const void *q, size_t n_x,
                          size_t y_stride) {
    mli_rows_of(ML_Q8_0, y, w, n_rows, cols, q, n_x, y_stride);
}

static void mli_rows_q4_0(float *y, const void *w, size_t n_rows, size_t cols, const void *q, size_t n_x,
                          size_t y_stride) {
    mli_rows_of(ML_Q4_0, y, w, n_rows, cols, q, n_x, y_stride);
}

/* ---- many rows of activations: bound by arithmetic ----
   y (m, n) = x (m, k) . w^T is cut into tiles of MLI_QROWS x MLI_QCOLS. Weights are repacked, a panel of MLI_QCOLS
   outputs at a time, so that a lane of a vector holds the next MLI_QSTEP numbers along k of one output; they meet
   the same numbers of x in every lane. What follows for each instruction set is: the types, the shape of a tile, and

       mli_qdot   sum + the inner product of MLI_QSTEP numbers, in each lane
       mli_qadd   sum + ints * w_scale * x_scale, once for each block of 32 */

#if defined(MLI_DOT_VNNI)
typedef __m512i mli_qints;
typedef __m512 mli_qfloats;
typedef uint8_t mli_qweight; /* q + MLI_QOFFSET: this instruction wants them unsigned */
typedef int8_t mli_qx;
enum { MLI_QLANES = 16, MLI_QVECTORS = 2, MLI_QROWS = 6, MLI_QSTEP = 4, MLI_QOFFSET = 128 };

MLI_INLINE mli_qints mli_qset(int32_t v) { return _mm512_set1_epi32(v); }
MLI_INLINE mli_qints mli_qdot(mli_qints sum, const mli_qweight *w, const mli_qx *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(w), _mm512_set1_epi32(four));
}
MLI_INLINE mli_qfloats mli_qset_float(float v) { return _mm512_set1_ps(v); }
MLI_INLINE void mli_qstore(float *p, mli_qfloats v) { _mm512_storeu_ps(p, v); }
MLI_INLINE mli_qfloats mli_qadd(mli_qfloats sum, mli_qints ints, const float *w_scale, float x_scale) {
    mli_qfloats product = _mm512_mul_ps(_mm512_maskz_cvtepi32_ps(0xffff, ints), _mm512_loadu_ps(w_scale));
    return _mm512_fmadd_ps(product, _mm512_set1_ps(x_scale), sum);
}

#elif defined(MLI_DOT_AVX2)
/* Widened to 16 bits, products are added in pairs without overflow, and still faster than floats. */
typedef __m256i mli_qints;
typedef __m256 mli_qfloats;
typedef int16_t mli_qweight;
typedef int16_t mli_qx;
enum { MLI_QLANES = 8, MLI_QVECTORS = 2, MLI_QROWS = 4, MLI_QSTEP = 2, MLI_QOFFSET = 0 };

MLI_INLINE mli_qints mli_qset(int32_t v) { return _mm256_set1_epi32(v); }
MLI_INLINE mli_qints mli_qdot(mli_qints sum, const mli_qweight *w, const mli_qx *x) {
    int32_t two;
    memcpy(&two, x, sizeof two);
    return _mm256_add_epi32(
        sum, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w), _mm256_set1_epi32(two)));
}
MLI_INLINE mli_qfloats mli_qset_float(float v) { return _mm256_set1_ps(v); }
MLI_INLINE void mli_qstore(float *p, mli_qfloats v) { _mm256_storeu_ps(p, v); }
MLI_INLINE mli_qfloats mli_qadd(mli_qfloats sum, mli_qints ints, const float *w_scale, float x_scale) {
    mli_qfloats product = _mm256_mul_ps(_mm256_cvtepi32_ps(ints), _mm256_loadu_ps(w_scale));
    return _mm256_fmadd_ps(product, _mm256_set1_ps(x_scale), sum);
}

#elif defined(MLI_DOT_NEON)
typedef int32x4_t mli_qints;
typedef float32x4_t mli_qfloats;
typedef int8_t mli_qweight;
typedef int8_t mli_qx;
enum { MLI_QLANES = 4, MLI_QVECTORS = 2, MLI_QROWS = 4, MLI_QSTEP = 4, MLI_QOFFSET = 0 };

MLI_INLINE mli_qints mli_qset(int32_t v) { return vdupq_n_s32(v); }
MLI_INLINE mli_qints mli_qdot(mli_qints sum, const mli_qweight *w, const mli_qx *x) {
    int32_t four;
    int8x16_t a = vld1q_s8(w), b;
    memcpy(&four, x, sizeof four);
    b = vreinterpretq_s8_s32(vdupq_n_s32(four));
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, a, b);
#else
    { /* two products of at most 128 * 127 fit 16 bits */
        int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b));
        return vpadalq_s16(sum, pairs);
    }
#endif
}
MLI_INLINE mli_qfloats mli_qset_float(float v) { return vdupq_n_f32(v); }
MLI_INLINE void mli_qstore(float *p, mli_qfloats v) { vst1q_f32(p, v); }
MLI_INLINE mli_qfloats mli_qadd(mli_qfloats sum, mli_qints ints, const float *w_scale, float x_scale) {
    return vfmaq_n_f32(sum, vmulq_f32(vcvtq_f32_s32(ints), vld1q_f32(w_scale)), x_scale);
}

#else
/* A whole block at a time: the loop that compilers know how to turn into what vectors they have. */
typedef int32_t mli_qints;
typedef float mli_qfloats;
typedef int16_t mli_qweight;
typedef int16_t mli_qx;
enum { MLI_QLANES = 1, MLI_QVECTORS = 4, MLI_QROWS = 2, MLI_QSTEP = MLI_BLOCK, MLI_QOFFSET = 0 };

MLI_INLINE mli_qints mli_qset(int32_t v) { return v; }
MLI_INLINE mli_qints mli_qdot(mli_qints sum, const mli_qweight *w, const mli_qx *x) {
    int i;
    for (i = 0; i < MLI_QSTEP; i++) sum += w[i] * x[i];
    return sum;
}
MLI_INLINE mli_qfloats mli_qset_float(float v) { return v; }
MLI_INLINE void mli_qstore(float *p, mli_qfloats v) { *p = v; }
MLI_INLINE mli_qfloats mli_qadd(mli_qfloats sum, mli_qints ints, const float *w_scale, float x_scale) {
    return sum + (float)ints * *w_scale * x_scale;
}
#endif

enum { MLI_QCOLS = MLI_QLANES * MLI_QVECTORS, MLI_QSTEPS = MLI_BLOCK / MLI_QSTEP };

/* 32 numbers along k of a panel. Outputs beyond the last have the scale 0. */
typedef struct mli_qpanel {
    mli_qweight q[MLI_QSTEPS][MLI_QCOLS][MLI_QSTEP];
    float scale[MLI_QCOLS];
} mli_qpanel;

/* 32 numbers along k of MLI_QROWS rows of x; rows beyond the last are 0. */
typedef struct mli_qgroup {
    mli_qx q[MLI_QROWS][MLI_BLOCK];
    int32_t start[MLI_QROWS]; /* what the sum begins with: -MLI_QOFFSET * sum(q) */
    float scale[MLI_QROWS];
} mli_qgroup;

/* y (MLI_QROWS, MLI_QCOLS; a row every y_stride) = one group of x . one panel of w, both `blocks` long. */
static void mli_qtile(const mli_qgroup *x, const mli_qpanel *w, size_t blocks, float *y, size_t y_stride) {
    mli_qfloats sum[MLI_QROWS][MLI_QVECTORS];
    mli_qints ints[MLI_QROWS][MLI_QVECTORS];
    int r, v, j;
    MLI_UNROLL
    for (r = 0; r < MLI_QROWS; r++) {
        MLI_UNROLL
        for (v = 0; v < MLI_QVECTORS; v++) sum[r][v] = mli_qset_float(0);
    }
    for (; blocks; blocks--, x++, w++) {
        MLI_UNROLL
        for (r = 0; r < MLI_QROWS; r++) {
            MLI_UNROLL
            for (v = 0; v < MLI_QVECTORS; v++) ints[r][v] = mli_qset(x->start[r]);
        }
        for (j = 0; j < MLI_QSTEPS; j++) {
            MLI_UNROLL
            for (r = 0; r < MLI_QROWS; r++) {
                MLI_UNROLL
                for (v = 0; v < MLI_QVECTORS; v++)
                    ints[r][v] = mli_qdot(ints[r][v], w->q[j][v * MLI_QLANES], x->q[r] + j * MLI_QSTEP);
            }
        }
        MLI_UNROLL
        for (r = 0; r < MLI_QROWS; r++) {
            MLI_UNROLL
            for (v = 0; v < MLI_QVECTORS; v++)
                sum[r][v] = mli_qadd(sum[r][v], ints[r][v], w->scale + v * MLI_QLANES, x->scale[r]);
        }
    }
    MLI_UNROLL
    for (r = 0; r < MLI_QROWS; r++) {
        MLI_UNROLL
        for (v = 0; v < MLI_QVECTORS; v++) mli_qstore(y + (size_t)r * y_stride + v * MLI_QLANES, sum[r][v]);
    }
}

/* One block of weights becomes column c of a block of a panel. */
MLI_INLINE void mli_qpack_block(ml_type type, const uint8_t *block, mli_qpanel *panel, int c) {
    mli_qweight q[MLI_BLOCK];
    int i;
    if (type == ML_Q8_0) {
        const int8_t *from = (const int8_t *)(block + 2);
        for (i = 0; i < MLI_BLOCK; i++) q[i] = (mli_qweight)(from[i] + MLI_QOFFSET);
    } else {
        for (i = 0; i < MLI_BLOCK / 2; i++) {
            q[i] = (mli_qweight)((block[2 + i] & 15) + (MLI_QOFFSET - 8));
            q[i + MLI_BLOCK / 2] = (mli_qweight)((block[2 + i] >> 4) + (MLI_QOFFSET - 8));
        }
    }
    for (i = 0; i < MLI_QSTEPS; i++) memcpy(panel->q[i][c], q + i * MLI_QSTEP, MLI_QSTEP * sizeof *q);
    panel->scale[c] = mli_load_scale(block);
}

/* panel (blocks) = rows first .. first + MLI_QCOLS - 1 of w. */
static void mli_qpack(const ml_tensor *w, size_t first, size_t blocks, mli_qpanel *panel) {
    size_t bytes = mli_type(w->type)->bytes, left = (size_t)w->rows - first, b;
    const uint8_t *block = (const uint8_t *)w->data + first * blocks * bytes;
    int c, n = (int)MLI_MIN(left, (size_t)MLI_QCOLS);
    if (n < MLI_QCOLS) memset(panel, 0, blocks * sizeof *panel);
    for (c = 0; c < n; c++) {
        for (b = 0; b < blocks; b++, block += bytes) {
            if (w->type == ML_Q8_0)
                mli_qpack_block(ML_Q8_0, block, panel + b, c);
            else
                mli_qpack_block(ML_Q4_0, block, panel + b, c);
        }
    }
}

/* One block of x (32) becomes row r of a block of a group. */
static void mli_qpack_x(const float *x, mli_qgroup *group, size_t r) {
    int8_t q[MLI_BLOCK];
    int32_t sum = 0;
    int i;
    mli_quantize_block(x, q, &group->scale[r]);
    for (i = 0; i < MLI_BLOCK; i++) group->q[r][i] = q[i];
    for (i = 0; i < MLI_BLOCK; i++) sum += q[i];
    group->start[r] = -MLI_QOFFSET * sum;
}

typedef struct mli_qgemm_job {
    const float *x;     /* (m, k) */
    const ml_tensor *w; /* (n, k) */
    float *y;           /* (m, n) */
    size_t m, n, k;
    mli_qgroup *groups; /* (m / MLI_QROWS rounded up, k / 32) */
    mli_qpanel *panels; /* (tasks, k / 32) */
    int n_tasks;
} mli_qgemm_job;

/* Quantises this task's share of x. */
static void mli_qgemm_quantize(void *arg, int index) {
    const mli_qgemm_job *job = (const mli_qgemm_job *)arg;
    size_t blocks = job->k / MLI_BLOCK, n_groups = (job->m + MLI_QROWS - 1) / MLI_QROWS, begin, end, row, b;
    mli_share(n_groups, 1, job->n_tasks, index, &begin, &end);
    if (end == n_groups && job->m % MLI_QROWS) /* rows beyond m */
        memset(job->groups + (n_groups - 1) * blocks, 0, blocks * sizeof *job->groups);
    for (row = begin * MLI_QROWS; row < MLI_MIN(end * MLI_QROWS, job->m); row++) {
        mli_qgroup *group = job->groups + row / MLI_QROWS * blocks;
        for (b = 0; b < blocks; b++)
            mli_qpack_x(job->x + row * job->k + b * MLI_BLOCK, group + b, row % MLI_QROWS);
    }
}

/* Computes this task's columns of y, a panel at a time. Tiles that reach beyond y are computed aside. */
static void mli_qgemm_multiply(void *arg, int index) {
    const mli_qgemm_job *job = (const mli_qgemm_job *)arg;
    size_t blocks = job->k / MLI_BLOCK, begin, end, col, row, r;
    mli_qpanel *panel = job->panels + (size_t)index * blocks;
    float aside[MLI_QROWS * MLI_QCOLS];
    mli_share(job->n, MLI_QCOLS, job->n_tasks, index, &begin, &end);
    for (col = begin; col < end; col += MLI_QCOLS) {
        size_t n_cols = MLI_MIN((size_t)MLI_QCOLS, job->n - col);
        mli_qpack(job->w, col, blocks, panel);
        for (row = 0; row < job->m; row += MLI_QROWS) {
            const mli_qgroup *group = job->groups + row / MLI_QROWS * blocks;
            size_t n_rows = MLI_MIN((size_t)MLI_QROWS, job->m - row);
            float *y = job->y + row * job->n + col;
            if (n_rows == MLI_QROWS && n_cols == MLI_QCOLS) {
                mli_qtile(group, panel, blocks, y, job->n);
                continue;
            }
            mli_qtile(group, panel, blocks, aside, MLI_QCOLS);
            for (r = 0; r < n_rows; r++) memcpy(y + r * job->n, aside + r * MLI_QCOLS, n_cols * sizeof *y);
        }
    }
}

/* How many tasks the threads are worth for y (m, n): each gets a panel at least. */
static int mli_qgemm_tasks(const ml_threads *threads, size_t m, size_t n) {
    int tasks = mli_task_count(threads, m * n, 4096);
    size_t panels = (n + MLI_QCOLS - 1) / MLI_QCOLS;
    return (size_t)tasks < panels ? tasks : panels ? (int)panels : 1;
}

/* Bytes of work for mli_qgemm; SIZE_MAX if they cannot be counted. */
static size_t mli_qgemm_work(const ml_threads *threads, size_t m, size_t n, size_t k) {
    size_t groups, panels;
    if (!mli_mul_size(m / MLI_QROWS + 1, (k / MLI_BLOCK + 1) * sizeof(mli_qgroup), &groups)) return SIZE_MAX;
    if (!mli_mul_size((size_t)mli_qgemm_tasks(threads, m, n), k / MLI_BLOCK * sizeof(mli_qpanel), &panels))
        return SIZE_MAX;
    if (!mli_add_size(groups, panels + 2 * MLI_ALIGN, &groups)) return SIZE_MAX;
    return groups;
}

/* y (m, n) = x (m, k) . w^T, w (n, k) in Q8_0 or Q4_0, k a multiple of 32; work as mli_qgemm_work says. */
static void mli_qgemm(const ml_threads *threads, const float *x, size_t m, const ml_tensor *w, float *y,
                      void *work) {
    mli_qgemm_job job;
    size_t groups;
    job.x = x, job.w = w, job.y = y;
    job.m = m, job.n = (size_t)w->rows, job.k = (size_t)w->cols;
    groups = (m + MLI_QROWS - 1) / MLI_QROWS * (job.k / MLI_BLOCK);
    job.groups = (mli_qgroup *)mli_align_up((uintptr_t)work);
    job.panels = (mli_qpanel *)mli_align_up((uintptr_t)(job.groups + groups));
    job.n_tasks = mli_qgemm_tasks(threads, m, job.n);
    mli_parallel(threads, job.n_tasks, mli_qgemm_quantize, &job);
    mli_parallel(threads, job.n_tasks, mli_qgemm_multiply, &job);
}

/* ==== >>linear ====
   y = x . W^T, for whatever W is stored as and however many rows x has. */

typedef struct mli_linear_job {
    const ml_tensor *w; /* (out, in) */
    float *y;           /* (n, out), contiguous rows */
} mli_linear_job;

/* Up to this many rows of x every weight is read from memory, used at once, and done with. From here on packing W,
   which costs about as much as multiplying it by ten rows, pays. */
#define MLI_FEW_ROWS 12
#define MLI_FEW_ROWS_QUANTISED 4

typedef struct mli_few_rows {
    const float *x; /* (n, in) */
    const void *q;  /* the same as blocks of bytes, for quantised weights */
    size_t n, in;
    const mli_linear_job *jobs;
    int n_jobs, n_tasks;
} mli_few_rows;

static int mli_is_quantised(ml_type type) { return type == ML_Q8_0 || type == ML_Q4_0; }

static int mli_is_few(ml_type type, size_t n) {
    return n <= (mli_is_quantised(type) ? MLI_FEW_ROWS_QUANTISED : MLI_FEW_ROWS);
}

/* This task's share of the rows of each weight. */
static void mli_few_rows_task(void *arg, int index) {
    const mli_few_rows *few = (const mli_few_rows *)arg;
    int j;
    for (j = 0; j < few->n_jobs; j++) {
        const ml_tensor *w = few->jobs[j].w;
        size_t out = (size_t)w->rows, begin, end;
        const char *rows;
        float *y;
        if (!mli_is_few(w->type, few->n)) continue;
        mli_share(out, 8, few->n_tasks, index, &begin, &end);
        if (begin == end) continue;
        rows = (const char *)w->data + begin * ml_row_bytes(w->type, few->in);
        y = few->jobs[j].y + begin;
        if (w->type == ML_Q8_0)
            mli_rows_q8_0(y, rows, end - begin, few->in, few->q, few->n, out);
        else if (w->type == ML_Q4_0)
            mli_rows_q4_0(y, rows, end - begin, few->in, few->q, few->n, out);
        else
            mli_matvec(w->type, y, out, few->x, few->in, few->n, rows, few->in, end - begin, few->in);
    }
}

/* Bytes of work for mli_linear with up to n rows of x and weights up to (max_out, max_in) of any type. */
static size_t mli_linear_work(const ml_threads *threads, size_t n, size_t max_in, size_t max_out) {
    size_t few = mli_activation_bytes(MLI_MIN(n, MLI_FEW_ROWS_QUANTISED), max_in) + MLI_ALIGN;
    size_t many = n > MLI_FEW_ROWS ? mli_gemm_work(threads, n, max_out, max_in) : 0;
    size_t quantised = n > MLI_FEW_ROWS_QUANTISED ? mli_qgemm_work(threads, n, max_out, max_in) : 0;
    return MLI_MAX(few, MLI_MAX(many, quantised));
}

/* y_j (n, out_j) = x (n, in) . w_j (out_j, in)^T for weights that share their input. With few rows all are done in one go
   of the threads. */
static void mli_linear(const ml_threads *threads, const float *x, size_t n, size_t in,
                       const mli_linear_job *jobs, int n_jobs, void *work) {
    mli_few_rows few;
    size_t few_bytes = 0;
    int j, quantised = 0;
    for (j = 0; j < n_jobs; j++) {
        const ml_tensor *w = jobs[j].w;
        size_t out = (size_t)w->rows;
        mli_operand a = mli_matrix(x, in, 1), b = mli_matrix((const float *)w->data, 1, in);
        b.type = w->type;
        if (mli_is_few(w->type, n)) {
            few_bytes += out * ml_row_bytes(w->type, in);
            quantised |= mli_is_quantised(w->type);
        } else if (mli_is_quantised(w->type)) {
            mli_qgemm(threads, x, n, w, jobs[j].y, work);
        } else {
            mli_gemm(threads, n, out, in, a, b, jobs[j].y, out, 0, work);
        }
    }
    if (!few_bytes) return;
    few.x = x;
    few.q = (const void *)mli_align_up((uintptr_t)work);
    few.n = n;
    few.in = in;
    few.jobs = jobs;
    few.n_jobs = n_jobs;
    few.n_tasks = mli_task_count(threads, few_bytes, 1 << 17); /* it is reading that takes the time */
    if (quantised) mli_quantize_activations(x, n, in, (void *)mli_align_up((uintptr_t)work));
    mli_parallel(threads, few.n_tasks, mli_few_rows_task, &few);
}

/* ==== >>tensors ====
   The operations of the network. Activations are F32 matrices of n rows, one per token, whatever row of the
   batch a token belongs to.

   Legend: n tokens in this pass, D dim, H hidden_dim, A n_heads, hd = D / A head size, kv_dim = n_kv_heads * hd,
   V vocab_size, S keys that a query may see.

   An operation takes its memory from the graph, computes, and returns. A graph without memory only measures: the
   same network code then tells how much a pass needs, so that the need is never computed in two places. */

typedef struct mli_graph {
    const ml_threads *threads;
    const ml_lora *lora;   /* what the matrices are adapted by, or NULL */
    unsigned char *memory; /* activations, stacked; NULL: measure only */
    size_t size, used, peak;
    void *work; /* scratch inside one operation */
    size_t work_size;
    int taping;        /* operations record themselves for mli_run_backward */
    int checkpointing; /* layers keep only their input, and are computed anew when it is their turn backward */
    size_t recompute;  /* measured: what that takes above everything else */
    struct mli_taped *newest; /* of the tape */
} mli_graph;

static int mli_measuring(const mli_graph *g) { return !g->memory; }

static void *mli_graph_alloc(mli_graph *g, size_t n, size_t size) {
    void *memory = mli_carve(g->memory, &g->used, n, size);
    if (g->used > g->peak) g->peak = g->used;
    ML_ASSERT(mli_measuring(g) || g->used <= g->size);
    return memory;
}

static ml_tensor mli_tensor_at(float *data, int rows, int cols) {
    ml_tensor t;
    t.type = ML_F32;
    t.rows = rows;
    t.cols = cols;
    t.data = data;
    t.grad = NULL;
    return t;
}

/* A new activation (rows, cols) on the graph's stack. Its gradient stands where its value stood: whoever reads the value
   last, going backward, writes the gradient over it. */
static ml_tensor mli_new(mli_graph *g, int rows, int cols) {
    ml_tensor t =
        mli_tensor_at((float *)mli_graph_alloc(g, (size_t)rows * sizeof(float), (size_t)cols), rows, cols);
    if (g->taping) t.grad = (float *)t.data;
    return t;
}

/* Gives back everything made since g->used was `mark`. */
static void mli_release(mli_graph *g, size_t mark) { g->used = mark; }

static void mli_need_work(mli_graph *g, size_t bytes) {
    if (mli_measuring(g)) g->work_size = MLI_MAX(g->work_size, bytes);
    ML_ASSERT(g->work_size >= bytes);
}

static float *mli_row(ml_tensor t, size_t row) { return (float *)t.data + row * (size_t)t.cols; }

/* ---- the tape (reverse-mode differentiation; Linnainmaa 1970). An operation that computes while g->taping records what
   its backward needs; mli_run_backward calls the records, newest first. A backward writes the gradients of
   its inputs and adds to those of weights and, in a norm, to that of the residual stream. ---- */

typedef void (*mli_backward)(mli_graph *g, const void *op);

typedef struct mli_taped {
    struct mli_taped *previous;
    mli_backward backward;
    void *op;
} mli_taped;

#ifndef ML_NO_TRAINING
static float *mli_grad_row(ml_tensor t, size_t row) { return t.grad + row * (size_t)t.cols; }

static void mli_record(mli_graph *g, mli_backward backward, const void *op, size_t size) {
    mli_taped *entry;
    void *copy;
    if (!g->taping) return;
    entry = (mli_taped *)mli_graph_alloc(g, 1, sizeof *entry);
    copy = mli_graph_alloc(g, 1, size);
    if (mli_measuring(g)) return;
    memcpy(copy, op, size);
    entry->previous = g->newest;
    entry->backward = backward;
    entry->op = copy;
    g->newest = entry;
}
#define MLI_RECORD(g, backward, op) mli_record(g, backward, &(op), sizeof(op))

/* Everything recorded after `until`. */
static void mli_run_backward(mli_graph *g, mli_taped *until) {
    while (g->newest != until) {
        mli_taped *entry = g->newest;
        g->newest = entry->previous;
        entry->backward(g, entry->op);
    }
}
#else
#define MLI_RECORD(g, backward, op) ((void)(g), (void)(op))
#endif

/* ---- rows of a batch ---- */

/* Row r of the batch is tokens start[r] .. start[r+1]-1, at positions past, past + 1, ... Where past > 0 there is one
   row, and its earlier keys and values stand right before k's and v's first row, in the KV cache. */
typedef struct mli_rows {
    const int32_t *start; /* (n_rows + 1) */
    int n_rows;
    int past;
} mli_rows;

/* Elementwise and row by row operations share this: `f` computes rows [begin, end) of its operands. */
typedef struct mli_rowwise {
    void (*f)(const struct mli_rowwise *op, size_t begin, size_t end);
    size_t n_rows;
    int n_tasks;
    ml_tensor out, x, y;
    ml_tensor weight, bias; /* norms */
    float eps;
    const int32_t *index; /* embedding */
    const float *rope;    /* rotary table, ... */
    const mli_rows *rows; /* ... the batch whose positions it is looked up by, ... */
    int head_size;        /* ... the size of the heads that are rotated, ... */
    float direction;      /* ... and 1, or -1 to turn them back */
} mli_rowwise;

static mli_rowwise mli_rowwise_of(void (*f)(const mli_rowwise *op, size_t begin, size_t end), ml_tensor out) {
    mli_rowwise op;
    memset(&op, 0, sizeof op);
    op.f = f;
    op.out = out;
    return op;
}

static void mli_rowwise_task(void *arg, int i) {
    const mli_rowwise *op = (const mli_rowwise *)arg;
    size_t begin, end;
    mli_share(op->n_rows, 1, op->n_tasks, i, &begin, &end);
    op->f(op, begin, end);
}

static void mli_run_rowwise(mli_graph *g, mli_rowwise *op, size_t n_rows, size_t cols) {
    if (mli_measuring(g)) return;
    op->n_rows = n_rows;
    op->n_tasks = mli_task_count(g->threads, n_rows * cols, 1 << 14);
    mli_parallel(g->threads, op->n_tasks, mli_rowwise_task, op);
}

/* ---- embedding: y_i = table[token_i] ---- */

static void mli_embed_rows(const mli_rowwise *op, size_t begin, size_t end) {
    size_t i, cols = (size_t)op->x.cols, row_bytes = ml_row_bytes(op->x.type, cols);
    for (i = begin; i < end; i++)
        mli_dequantize_row(op->x.type, (const unsigned char *)op->x.data + (size_t)op->index[i] * row_bytes,
                           mli_row(op->out, i), cols);
}

#ifndef ML_NO_TRAINING
/* dtable_token += dy: columns [begin, end) of all rows, for a token may occur twice */
static void mli_embed_gradient_columns(const mli_rowwise *op, size_t begin, size_t end) {
    size_t i;
    for (i = 0; i < (size_t)op->out.rows; i++)
        mli_add(mli_grad_row(op->x, (size_t)op->index[i]) + begin, mli_grad_row(op->out, i) + begin,
                end - begin);
}

static void mli_embed_backward(mli_graph *g, const void *record) {
    mli_rowwise op = *(const mli_rowwise *)record;
    op.f = mli_embed_gradient_columns;
    if (op.x.grad) mli_run_rowwise(g, &op, (size_t)op.x.cols, (size_t)op.out.rows);
}
#endif

/* y (n, D) = rows `index` (n) of table (rows, D), which may be of any weight type */
static ml_tensor mli_embed(mli_graph *g, ml_tensor table, const int32_t *index, int n) {
    mli_rowwise op = mli_rowwise_of(mli_embed_rows, mli_new(g, n, table.cols));
    op.x = table;
    op.index = index;
    mli_run_rowwise(g, &op, (size_t)n, (size_t)table.cols);
    return op.out;
}

/* The same as the start of a residual stream: every layer adds to it, and reads what is there. Its values differ from
   layer to layer, but d(x + f(x)) = dx + ..., so that one gradient serves all of them. */
static ml_tensor mli_embed_stream(mli_graph *g, ml_tensor table, const int32_t *index, int n) {
    float *grad = g->taping ? (float *)mli_new(g, n, table.cols).data : NULL;
    mli_rowwise op;
    ml_tensor x = mli_embed(g, table, index, n);
    x.grad = grad;
    if (grad && !mli_measuring(g)) memset(grad, 0, (size_t)n * (size_t)table.cols * sizeof *grad);
    op = mli_rowwise_of(NULL, x);
    op.x = table;
    op.index = index;
    MLI_RECORD(g, mli_embed_backward, op);
    return x;
}

/* ---- add: x + y, the residual connection ---- */

static void mli_add_rows(const mli_rowwise *op, size_t begin, size_t end) {
    size_t n = (end - begin) * (size_t)op->out.cols;
    float *out = mli_row(op->out, begin);
    if (op->out.data != op->x.data) memcpy(out, mli_row(op->x, begin), n * sizeof *out);
    mli_add(out, mli_row(op->y, begin), n);
}

/* sum = x + y, all (n, D); sum may be x */
static void mli_add_tensors(mli_graph *g, ml_tensor sum, ml_tensor x, ml_tensor y) {
    mli_rowwise op = mli_rowwise_of(mli_add_rows, sum);
    op.x = x;
    op.y = y;
    mli_run_rowwise(g, &op, (size_t)x.rows, (size_t)x.cols);
}

/* ---- SwiGLU (Shazeer 2020): silu(gate) * up, silu(z) = z s(z), s(z) = 1 / (1 + exp(-z)) ---- */

static void mli_swiglu_rows(const mli_rowwise *op, size_t begin, size_t end) {
    mli_swiglu(mli_row(op->out, begin), mli_row(op->x, begin), mli_row(op->y, begin),
               (end - begin) * (size_t)op->out.cols);
}

#ifndef ML_NO_TRAINING
/* dup = dy silu(gate); dgate = dy up s (1 + gate (1 - s)) */
static void mli_swiglu_gradient_rows(const mli_rowwise *op, size_t begin, size_t end) {
    mli_swiglu_gradient(mli_grad_row(op->x, begin), mli_grad_row(op->y, begin), mli_grad_row(op->out, begin),
                        mli_row(op->x, begin), mli_row(op->y, begin), (end - begin) * (size_t)op->out.cols);
}

static void mli_gated_backward(mli_graph *g, const void *record) {
    mli_rowwise op = *(const mli_rowwise *)record;
    op.f = mli_swiglu_gradient_rows;
    mli_run_rowwise(g, &op, (size_t)op.x.rows, (size_t)op.x.cols);
}
#endif

/* gate (n, H), up (n, H) -> (n, H), in gate's place unless that is needed again */
static ml_tensor mli_gated(mli_graph *g, ml_tensor gate, ml_tensor up) {
    mli_rowwise op = mli_rowwise_of(mli_swiglu_rows, g->taping ? mli_new(g, gate.rows, gate.cols) : gate);
    op.x = gate;
    op.y = up;
    mli_run_rowwise(g, &op, (size_t)gate.rows, (size_t)gate.cols);
    MLI_RECORD(g, mli_gated_backward, op);
    return op.out;
}

/* ---- norms: y = (x - mean) scale w + b ----
   RMSNorm (Zhang & Sennrich 2019): mean 0, scale = 1 / sqrt(mean(x^2) + eps), no b.
   LayerNorm (Ba, Kiros & Hinton 2016): the row's mean, scale = 1 / sqrt(variance + eps). */

typedef struct mli_moments {
    float mean, scale;
} mli_moments;

static mli_moments mli_moments_of(const float *x, size_t n, float eps, int is_layer_norm) {
    mli_moments of = {0.0f, 0.0f};
    mli_v sum = mli_v_zero(), mean;
    size_t i, m;
    if (!is_layer_norm) {
        of.scale = 1.0f / sqrtf(mli_dot(x, x, n) / (float)n + eps);
        return of;
    }
    for (i = 0; i < n; i += MLI_LANES) sum = mli_v_add(sum, mli_v_load_n(x + i, MLI_MIN(MLI_LANES, n - i)));
    of.mean = mli_v_sum(sum) / (float)n;
    mean = mli_v_set(of.mean);
    sum = mli_v_zero();
    for (i = 0; i < n; i += MLI_LANES) {
        float centred[MLI_LANES];
        mli_v d;
        m = MLI_MIN(MLI_LANES, n - i);
        mli_v_store(centred, mli_v_sub(mli_v_load_n(x + i, m), mean));
        d = mli_v_load_n(centred, m);
        sum = mli_v_fma(d, d, sum);
    }
    of.scale = 1.0f / sqrtf(mli_v_sum(sum) / (float)n + eps);
    return of;
}

static void mli_norm_row(float *y, const float *x, const float *w, const float *b, size_t n, mli_moments of) {
    mli_v mean = mli_v_set(of.mean), scale = mli_v_set(of.scale);
    size_t i, m;
    for (i = 0; i < n; i += MLI_LANES) {
        mli_v v;
        m = MLI_MIN(MLI_LANES, n - i);
        v = mli_v_mul(mli_v_mul(mli_v_sub(mli_v_load_n(x + i, m), mean), scale), mli_v_load_n(w + i, m));
        mli_v_store_n(y + i, b ? mli_v_add(v, mli_v_load_n(b + i, m)) : v, m);
    }
}

static void mli_norm_rows(const mli_rowwise *op, size_t begin, size_t end) {
    const float *w = (const float *)op->weight.data, *b = (const float *)op->bias.data;
    size_t i, n = (size_t)op->x.cols;
    for (i = begin; i < end; i++) {
        const float *x = mli_row(op->x, i);
        mli_norm_row(mli_row(op->out, i), x, w, b, n, mli_moments_of(x, n, op->eps, b != NULL));
    }
}

#ifndef ML_NO_TRAINING
/* With z = (x - mean) scale and u = dy w:  dx += scale (u - mean(u) - z mean(u z)); RMSNorm has no mean(u). */
static void mli_norm_gradient_rows(const mli_rowwise *op, size_t begin, size_t end) {
    const float *w = (const float *)op->weight.data;
    size_t r, i, m, n = (size_t)op->x.cols;
    for (r = begin; r < end; r++) {
        const float *x = mli_row(op->x, r), *dy = mli_grad_row(op->out, r);
        float *dx = mli_grad_row(op->x, r);
        mli_moments of = mli_moments_of(x, n, op->eps, op->bias.data != NULL);
        mli_v mean = mli_v_set(of.mean), scale = mli_v_set(of.scale), sum_u = mli_v_zero(),
              sum_uz = mli_v_zero();
        for (i = 0; i < n; i += MLI_LANES) {
            mli_v u, z;
            m = MLI_MIN(MLI_LANES, n - i);
            u = mli_v_mul(mli_v_load_n(dy + i, m), mli_v_load_n(w + i, m));
            z = mli_v_mul(mli_v_sub(mli_v_load_n(x + i, m), mean), scale);
            sum_u = mli_v_add(sum_u, u);
            sum_uz = mli_v_fma(u, z, sum_uz);
        }
        sum_u = mli_v_set(op->bias.data ? mli_v_sum(sum_u) / (float)n : 0.0f);
        sum_uz = mli_v_set(mli_v_sum(sum_uz) / (float)n);
        for (i = 0; i < n; i += MLI_LANES) {
            mli_v u, z;
            m = MLI_MIN(MLI_LANES, n - i);
            u = mli_v_mul(mli_v_load_n(dy + i, m), mli_v_load_n(w + i, m));
            z = mli_v_mul(mli_v_sub(mli_v_load_n(x + i, m), mean), scale);
            u = mli_v_sub(mli_v_sub(u, sum_u), mli_v_mul(z, sum_uz));
            mli_v_store_n(dx + i, mli_v_fma(scale, u, mli_v_load_n(dx + i, m)), m);
        }
    }
}

/* dw += dy z, db += dy: columns [begin, end) of all rows */
static void mli_norm_gradient_columns(const mli_rowwise *op, size_t begin, size_t end) {
    float *dw = op->weight.grad, *db = op->bias.grad;
    size_t r, i, m, n = (size_t)op->x.cols;
    for (r = 0; r < (size_t)op->x.rows; r++) {
        const float *x = mli_row(op->x, r), *dy = mli_grad_row(op->out, r);
        mli_moments of = mli_moments_of(x, n, op->eps, op->bias.data != NULL);
        mli_v mean = mli_v_set(of.mean), scale = mli_v_set(of.scale);
        for (i = begin; dw && i < end; i += MLI_LANES) {
            mli_v z;
            m = MLI_MIN(MLI_LANES, end - i);
            z = mli_v_mul(mli_v_sub(mli_v_load_n(x + i, m), mean), scale);
            mli_v_store_n(dw + i, mli_v_fma(mli_v_load_n(dy + i, m), z, mli_v_load_n(dw + i, m)), m);
        }
        if (db) mli_add(db + begin, dy + begin, end - begin);
    }
}

static void mli_norm_backward(mli_graph *g, const void *record) {
    mli_rowwise op = *(const mli_rowwise *)record;
    op.f = mli_norm_gradient_columns;
    if (op.weight.grad || op.bias.grad) mli_run_rowwise(g, &op, (size_t)op.x.cols, (size_t)op.x.rows);
    op.f = mli_norm_gradient_rows;
    if (op.x.grad) mli_run_rowwise(g, &op, (size_t)op.x.rows, (size_t)op.x.cols);
}
#endif

/* x (n, D), weight (1, D), bias (1, D): with data LayerNorm, without RMSNorm -> (n, D). Adds to the gradient of x. */
static ml_tensor mli_norm(mli_graph *g, ml_tensor x, ml_tensor weight, ml_tensor bias, float eps) {
    mli_rowwise op = mli_rowwise_of(mli_norm_rows, mli_new(g, x.rows, x.cols));
    op.x = x;
    op.weight = weight;
    op.bias = bias;
    op.eps = eps;
    mli_run_rowwise(g, &op, (size_t)x.rows, (size_t)x.cols);
    MLI_RECORD(g, mli_norm_backward, op);
    return op.out;
}

/* ---- linear: y_j = x W_j^T, several weights at once that share their input. A weight may have an adapter (LoRA, Hu et
   al. 2021) beside it: y_j += s (x A_j^T) B_j^T ---- */

#define MLI_MAX_JOBS 3 /* query, key and value */

/* A matrix as a layer uses it. */
typedef struct mli_matrix_use {
    ml_tensor w;    /* (out, in) */
    ml_tensor a, b; /* (r, in), (out, r); without data: there is no adapter */
    float scale;
} mli_matrix_use;

typedef struct mli_linears_op {
    ml_tensor x, y[MLI_MAX_JOBS]; /* (n, in), (n, out_j) */
    mli_matrix_use use[MLI_MAX_JOBS];
    ml_tensor low[MLI_MAX_JOBS]; /* (n, r): s x A_j^T */
    int n_weights;
} mli_linears_op;

/* y += s (x A^T) B^T; s x A^T is left in low */
static void mli_adapt(mli_graph *g, ml_tensor x, const mli_matrix_use *use, ml_tensor low, ml_tensor y) {
    size_t n = (size_t)x.rows, in = (size_t)x.cols, r = (size_t)use->a.rows, out = (size_t)y.cols;
    float *u = (float *)low.data;
    mli_gemm(g->threads, n, r, in, mli_matrix((const float *)x.data, in, 1),
             mli_matrix((const float *)use->a.data, 1, in), u, r, 0, g->work);
    mli_scale(u, use->scale, n * r);
    mli_gemm(g->threads, n, out, r, mli_matrix(u, r, 1), mli_matrix((const float *)use->b.data, 1, r),
             (float *)y.data, out, 1, g->work);
}

#ifndef ML_NO_TRAINING
/* dW += dy^T x, of any part (out, in) of a weight */
static void mli_weight_gradient(mli_graph *g, float *dw, const float *dy, const float *x, size_t n,
                                size_t out, size_t in) {
    mli_gemm(g->threads, out, in, n, mli_matrix(dy, 1, out), mli_matrix(x, in, 1), dw, in, 1, g->work);
}

/* dx (+)= dy W */
static void mli_input_gradient(mli_graph *g, float *dx, const float *dy, ml_tensor w, size_t n,
                               int accumulate) {
    size_t out = (size_t)w.rows, in = (size_t)w.cols;
    mli_operand b = mli_matrix((const float *)w.data, in, 1);
    b.type = w.type;
    mli_gemm(g->threads, n, in, out, mli_matrix(dy, out, 1), b, dx, in, accumulate, g->work);
}

/* With u = s x A^T:  dB += dy^T u;  du = s dy B, over u;  dA += du^T x */
static void mli_adapter_backward(mli_graph *g, const mli_matrix_use *use, ml_tensor low, const float *dy,
                                 const float *x, size_t n) {
    size_t r = (size_t)use->a.rows, in = (size_t)use->a.cols, out = (size_t)use->b.rows;
    float *u = (float *)low.data;
    if (use->b.grad) mli_weight_gradient(g, use->b.grad, dy, u, n, out, r);
    mli_input_gradient(g, u, dy, use->b, n, 0);
    mli_scale(u, use->scale, n * r);
    if (use->a.grad) mli_weight_gradient(g, use->a.grad, u, x, n, r, in);
}

/* dW_j += dy_j^T x while x is still there; then dx = sum of dy_j W_j, which may take its place. */
static void mli_linears_backward(mli_graph *g, const void *record) {
    const mli_linears_op *op = (const mli_linears_op *)record;
    size_t n = (size_t)op->x.rows, in = (size_t)op->x.cols;
    const float *x = (const float *)op->x.data;
    int j;
    for (j = 0; j < op->n_weights; j++) {
        const mli_matrix_use *use = &op->use[j];
        if (use->w.grad) mli_weight_gradient(g, use->w.grad, op->y[j].grad, x, n, (size_t)use->w.rows, in);
        if (use->a.data) mli_adapter_backward(g, use, op->low[j], op->y[j].grad, x, n);
    }
    for (j = 0; j < op->n_weights && op->x.grad; j++) {
        mli_input_gradient(g, op->x.grad, op->y[j].grad, op->use[j].w, n, j > 0);
        if (op->use[j].a.data)
            mli_input_gradient(g, op->x.grad, (const float *)op->low[j].data, op->use[j].a, n, 1);
    }
}
#endif

/* The scratch that any product of matrices in here may take, forward or backward. */
static void mli_need_linear(mli_graph *g, size_t n, size_t in, size_t out, size_t r) {
    mli_need_work(g, mli_linear_work(g->threads, n, in, out));
    if (r)
        mli_need_work(g, MLI_MAX(mli_gemm_work(g->threads, n, r, in), mli_gemm_work(g->threads, n, out, r)));
    if (!g->taping) return;
    mli_need_work(g, MLI_MAX(mli_gemm_work(g->threads, n, in, out), mli_gemm_work(g->threads, out, in, n)));
    if (r)
        mli_need_work(g, MLI_MAX(mli_gemm_work(g->threads, n, in, r), mli_gemm_work(g->threads, n, r, out)));
    if (r)
        mli_need_work(g, MLI_MAX(mli_gemm_work(g->threads, r, in, n), mli_gemm_work(g->threads, out, r, n)));
}

/* x (n, in), w_j (out_j, in) -> y_j (n, out_j), which the caller has made */
static void mli_linears(mli_graph *g, ml_tensor x, const mli_matrix_use *use, const ml_tensor *y,
                        int n_weights) {
    mli_linear_job jobs[MLI_MAX_JOBS] = {{NULL, NULL}};
    mli_linears_op op;
    size_t mark = g->used;
    int j;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.n_weights = n_weights;
    for (j = 0; j < n_weights; j++) {
        jobs[j].w = &use[j].w;
        jobs[j].y = (float *)y[j].data;
        op.y[j] = y[j];
        op.use[j] = use[j];
        if (use[j].a.data) op.low[j] = mli_new(g, x.rows, use[j].a.rows);
        mli_need_linear(g, (size_t)x.rows, (size_t)x.cols, (size_t)use[j].w.rows, (size_t)op.low[j].cols);
    }
    if (!mli_measuring(g)) {
        mli_linear(g->threads, (const float *)x.data, (size_t)x.rows, (size_t)x.cols, jobs, n_weights,
                   g->work);
        for (j = 0; j < n_weights; j++)
            if (use[j].a.data) mli_adapt(g, x, &use[j], op.low[j], y[j]);
    }
    if (!g->taping) mli_release(g, mark);
    MLI_RECORD(g, mli_linears_backward, op);
}

/* x (n, D) + h W^T: what half a layer adds to the residual stream. Both terms have the sum's gradient, and share it. */
static ml_tensor mli_add_linear(mli_graph *g, ml_tensor x, ml_tensor h, mli_matrix_use use) {
    size_t mark = g->used;
    ml_tensor y = mli_new(g, x.rows, use.w.rows);
    y.grad = x.grad;
    mli_linears(g, h, &use, &y, 1);
    if (g->taping) { /* the layer's norm needs x again */
        mli_add_tensors(g, y, y, x);
        return y;
    }
    mli_add_tensors(g, x, x, y);
    mli_release(g, mark);
    return x;
}

/* ---- rotary position embedding (Su et al. 2021) ---- */

/* Cosines and sines of position p: table[p * hd + 2 j] and [... + 1], angle p / scale / theta^(2 j / hd). */
static void mli_rope_table(float *table, int n_positions, const ml_config *c) {
    int p, j, hd = c->dim / c->n_heads;
    for (j = 0; j < hd / 2; j++) {
        float frequency = 1.0f / powf(c->rope_theta, (float)(2 * j) / (float)hd);
        for (p = 0; p < n_positions; p++) {
            float angle = (float)p / c->rope_scale * frequency;
            table[(size_t)p * (size_t)hd + (size_t)j * 2] = cosf(angle);
            table[(size_t)p * (size_t)hd + (size_t)j * 2 + 1] = sinf(angle);
        }
    }
}

/* Rotates each pair (x[2j], x[2j+1]) of each head of one token; direction -1 turns it back. */
static void mli_rope_token(float *MLI_RESTRICT x, const float *MLI_RESTRICT cos_sin, size_t width, size_t hd,
                           float direction) {
    size_t head, j;
    for (head = 0; head < width; head += hd) {
        float *MLI_RESTRICT pair = x + head;
        for (j = 0; j < hd; j += 2) {
            float a = pair[j], b = pair[j + 1], c = cos_sin[j], s = cos_sin[j + 1] * direction;
            pair[j] = a * c - b * s;
            pair[j + 1] = a * s + b * c;
        }
    }
}

static void mli_rope_rows(const mli_rowwise *op, size_t begin, size_t end) {
    const mli_rows *rows = op->rows;
    size_t i, hd = (size_t)op->head_size, width = (size_t)op->out.cols;
    int r = 0;
    for (i = begin; i < end; i++) {
        while ((size_t)rows->start[r + 1] <= i) r++;
        mli_rope_token(mli_row(op->out, i), op->rope + (i - (size_t)rows->start[r] + (size_t)rows->past) * hd,
                       width, hd, op->direction);
    }
}

#ifndef ML_NO_TRAINING
/* A rotation's transpose is the rotation back. */
static void mli_rope_backward(mli_graph *g, const void *record) {
    mli_rowwise op = *(const mli_rowwise *)record;
    op.out.data = op.out.grad;
    op.direction = -1.0f;
    mli_run_rowwise(g, &op, (size_t)op.out.rows, (size_t)op.out.cols);
}
#endif

/* x (n, heads * hd), rotated in place by each token's position in its row */
static void mli_rope(mli_graph *g, ml_tensor x, const float *table, int hd, const mli_rows *rows) {
    mli_rowwise op = mli_rowwise_of(mli_rope_rows, x);
    op.rope = table;
    op.rows = rows;
    op.head_size = hd;
    op.direction = 1.0f;
    mli_run_rowwise(g, &op, (size_t)x.rows, (size_t)x.cols);
    MLI_RECORD(g, mli_rope_backward, op);
}

/* ---- attention: softmax(q k^T / sqrt(hd)) v for each head (Vaswani et al. 2017), with grouped heads (Ainslie et
   al. 2023): query head h reads key and value head h / (A / n_kv_heads) ---- */

#define MLI_QUERY_BLOCK                                                                                      \
    64 /* queries of one tile: enough to make packing the keys cheap, few enough that little of
                              a causal tile lies behind the diagonal */
#define MLI_FEW_QUERIES 3 /* up to here packing the keys costs more than it saves */

typedef struct mli_attention_op {
    ml_tensor q, k, v, out; /* (n, D), (n, kv_dim), (n, kv_dim), (n, D) */
    const ml_config *config;
    const mli_rows *rows;
    int n_tasks;
    size_t longest;   /* keys of the longest row */
    size_t task_work; /* bytes of scratch per task */
    unsigned char *work;
} mli_attention_op;

/* One tile: queries [first, first + n_queries) of the batch, all in the row that begins at row_begin, of one head. */
typedef struct mli_tile {
    int head, row_begin, first, n_queries;
    int n_keys; /* how many the last query sees */
} mli_tile;

/* How many keys query i of the tile sees. */
static size_t mli_visible(const mli_attention_op *op, const mli_tile *tile, int i) {
    if (op->config->mask == ML_MASK_FULL) return (size_t)tile->n_keys;
    return (size_t)(op->rows->past + tile->first + i - tile->row_begin + 1);
}

/* out (hd) = p (n) . rows (n, hd), a vector of the head at a time, in four interleaved sums that stay in registers */
static void mli_weighted_sum(float *out, const float *p, const float *rows, size_t stride, size_t n,
                             size_t hd) {
    size_t j, s, u, lanes;
    for (j = 0; j < hd; j += MLI_LANES) {
        mli_v sum[4];
        lanes = MLI_MIN(hd - j, MLI_LANES);
        MLI_UNROLL
        for (u = 0; u < 4; u++) sum[u] = mli_v_zero();
        for (s = 0; s + 4 <= n; s += 4) {
            MLI_UNROLL
            for (u = 0; u < 4; u++) {
                const float *row = rows + (s + u) * stride + j;
                mli_v v = lanes == MLI_LANES ? mli_v_load(row) : mli_v_load_n(row, lanes);
                sum[u] = mli_v_fma(mli_v_set(p[s + u]), v, sum[u]);
            }
        }
        for (; s < n; s++)
            sum[0] = mli_v_fma(mli_v_set(p[s]), mli_v_load_n(rows + s * stride + j, lanes), sum[0]);
        mli_v_store_n(out + j, mli_v_add(mli_v_add(sum[0], sum[1]), mli_v_add(sum[2], sum[3])), lanes);
    }
}

static void mli_attend_few(const mli_attention_op *op, const mli_tile *tile, const float *q, const float *k,
                           const float *v, float *out, float *scores) {
    size_t hd = (size_t)(op->q.cols / op->config->n_heads), dim = (size_t)op->q.cols,
           kv_dim = (size_t)op->k.cols;
    float scale = 1.0f / sqrtf((float)hd);
    int i;
    for (i = 0; i < tile->n_queries; i++, q += dim, out += dim) {
        size_t n = mli_visible(op, tile, i);
        mli_dots(scores, q, k, kv_dim, n, hd);
        mli_scale(scores, scale, n);
        mli_softmax(scores, n);
        mli_weighted_sum(out, scores, v, kv_dim, n, hd);
    }
}

/* p (n_queries, n_keys) = softmax(q k^T / sqrt(hd)) of a tile, 0 where a query does not see a key */
static void mli_attention_weights(const mli_attention_op *op, const mli_tile *tile, const float *q,
                                  const float *k, float *p, void *gemm_work) {
    size_t n = (size_t)tile->n_queries, n_keys = (size_t)tile->n_keys, dim = (size_t)op->q.cols;
    size_t kv_dim = (size_t)op->k.cols, hd = dim / (size_t)op->config->n_heads, i;
    float scale = 1.0f / sqrtf((float)hd);
    mli_gemm(NULL, n, n_keys, hd, mli_matrix(q, dim, 1), mli_matrix(k, 1, kv_dim), p, n_keys, 0, gemm_work);
    for (i = 0; i < n; i++) {
        float *row = p + i * n_keys;
        size_t visible = mli_visible(op, tile, (int)i);
        mli_scale(row, scale, visible);
        mli_softmax(row, visible);
        memset(row + visible, 0, (n_keys - visible) * sizeof *row);
    }
}

static void mli_attend_many(const mli_attention_op *op, const mli_tile *tile, const float *q, const float *k,
                            const float *v, float *out, float *scores) {
    size_t n = (size_t)tile->n_queries, n_keys = (size_t)tile->n_keys, dim = (size_t)op->q.cols;
    size_t kv_dim = (size_t)op->k.cols, hd = dim / (size_t)op->config->n_heads;
    void *gemm_work = scores + n * n_keys;
    mli_attention_weights(op, tile, q, k, scores, gemm_work);
    mli_gemm(NULL, n, hd, n_keys, mli_matrix(scores, n_keys, 1), mli_matrix(v, kv_dim, 1), out, dim, 0,
             gemm_work);
}

/* The tile of the row's queries that begins at `first`, for one head. */
static mli_tile mli_tile_at(const mli_attention_op *op, int row, int first, int head) {
    const mli_rows *rows = op->rows;
    mli_tile tile;
    int row_end = rows->start[row + 1];
    tile.head = head;
    tile.row_begin = rows->start[row];
    tile.first = first;
    tile.n_queries = MLI_MIN(row_end - first, MLI_QUERY_BLOCK);
    tile.n_keys =
        rows->past - tile.row_begin + (op->config->mask == ML_MASK_FULL ? row_end : first + tile.n_queries);
    return tile;
}

/* Where the tile's head begins in k, v or their gradients, at the first key of the row. */
static float *mli_keys_of(const mli_attention_op *op, const mli_tile *tile, float *k) {
    size_t hd = (size_t)(op->q.cols / op->config->n_heads), kv_dim = (size_t)op->k.cols;
    size_t kv_head = (size_t)(tile->head / (op->config->n_heads / op->config->n_kv_heads));
    return k + (size_t)tile->row_begin * kv_dim - (size_t)op->rows->past * kv_dim + kv_head * hd;
}

/* Where the tile begins in q, out or their gradients. */
static float *mli_queries_of(const mli_attention_op *op, const mli_tile *tile, float *q) {
    size_t hd = (size_t)(op->q.cols / op->config->n_heads);
    return q + (size_t)tile->first * (size_t)op->q.cols + (size_t)tile->head * hd;
}

static void mli_attend(const mli_attention_op *op, const mli_tile *tile, float *scores) {
    const float *q = mli_queries_of(op, tile, (float *)op->q.data);
    const float *k = mli_keys_of(op, tile, (float *)op->k.data),
                *v = mli_keys_of(op, tile, (float *)op->v.data);
    float *out = mli_queries_of(op, tile, (float *)op->out.data);
    if (tile->n_queries <= MLI_FEW_QUERIES)
        mli_attend_few(op, tile, q, k, v, out, scores);
    else
        mli_attend_many(op, tile, q, k, v, out, scores);
}

/* Deals the tiles out like cards, heads innermost: a causal row's later tiles are the dearer ones, and so every task
   gets its share of them. */
static void mli_attention_task(void *arg, int index) {
    const mli_attention_op *op = (const mli_attention_op *)arg;
    float *scores = (float *)(void *)(op->work + (size_t)index * op->task_work);
    int row, first, head, turn = 0;
    for (row = 0; row < op->rows->n_rows; row++)
        for (first = op->rows->start[row]; first < op->rows->start[row + 1]; first += MLI_QUERY_BLOCK)
            for (head = 0; head < op->config->n_heads; head++)
                if (turn++ % op->n_tasks == index) {
                    mli_tile tile = mli_tile_at(op, row, first, head);
                    mli_attend(op, &tile, scores);
                }
}

#ifndef ML_NO_TRAINING
/* Scratch of one task going backward; S the longest row. */
typedef struct mli_attention_scratch {
    float *p, *dp;  /* (MLI_QUERY_BLOCK, S) */
    float *dk, *dv; /* (S, hd): sums over the queries and the heads that share a key head */
    void *gemm_work;
} mli_attention_scratch;

static size_t mli_attention_scratch_at(unsigned char *memory, size_t longest, size_t hd,
                                       mli_attention_scratch *scratch) {
    size_t used = 0, queries = MLI_MIN(longest, MLI_QUERY_BLOCK), work;
    work = MLI_MAX(mli_gemm_work(NULL, queries, longest, hd), mli_gemm_work(NULL, queries, hd, longest));
    work = MLI_MAX(work, mli_gemm_work(NULL, longest, hd, queries));
    scratch->p = (float *)mli_carve(memory, &used, queries * longest, sizeof(float));
    scratch->dp = (float *)mli_carve(memory, &used, queries * longest, sizeof(float));
    scratch->dk = (float *)mli_carve(memory, &used, longest * hd, sizeof(float));
    scratch->dv = (float *)mli_carve(memory, &used, longest * hd, sizeof(float));
    scratch->gemm_work = mli_carve(memory, &used, work, 1);
    return used;
}

/* With P the softmax, computed anew:  dV += P^T dy;  dP = dy V^T;  dS = P (dP - sum(P dP)) / sqrt(hd);  dK += dS^T Q;
   dQ = dS K, over Q, whose turn is then over. */
static void mli_attend_backward(const mli_attention_op *op, const mli_tile *tile,
                                const mli_attention_scratch *s) {
    size_t n = (size_t)tile->n_queries, n_keys = (size_t)tile->n_keys, dim = (size_t)op->q.cols, i;
    size_t kv_dim = (size_t)op->k.cols, hd = dim / (size_t)op->config->n_heads;
    const float *q = mli_queries_of(op, tile, (float *)op->q.data);
    const float *k = mli_keys_of(op, tile, (float *)op->k.data),
                *v = mli_keys_of(op, tile, (float *)op->v.data);
    const float *dy = mli_queries_of(op, tile, op->out.grad);
    float *dq = mli_queries_of(op, tile, op->q.grad), scale = 1.0f / sqrtf((float)hd);
    mli_attention_weights(op, tile, q, k, s->p, s->gemm_work);
    mli_gemm(NULL, n_keys, hd, n, mli_matrix(s->p, 1, n_keys), mli_matrix(dy, dim, 1), s->dv, hd, 1,
             s->gemm_work);
    mli_gemm(NULL, n, n_keys, hd, mli_matrix(dy, dim, 1), mli_matrix(v, 1, kv_dim), s->dp, n_keys, 0,
             s->gemm_work);
    for (i = 0; i < n; i++) mli_softmax_gradient(s->dp + i * n_keys, s->p + i * n_keys, scale, n_keys);
    mli_gemm(NULL, n_keys, hd, n, mli_matrix(s->dp, 1, n_keys), mli_matrix(q, dim, 1), s->dk, hd, 1,
             s->gemm_work);
    mli_gemm(NULL, n, hd, n_keys, mli_matrix(s->dp, n_keys, 1), mli_matrix(k, kv_dim, 1), dq, dim, 0,
             s->gemm_work);
}

/* All queries that see the keys of one row and one key head; then these keys' and values' gradients take their place. */
static void mli_attend_backward_keys(const mli_attention_op *op, int row, int kv_head,
                                     const mli_attention_scratch *s) {
    int group = op->config->n_heads / op->config->n_kv_heads, first, head;
    size_t hd = (size_t)(op->q.cols / op->config->n_heads), kv_dim = (size_t)op->k.cols, i;
    size_t n_keys = (size_t)(op->rows->start[row + 1] - op->rows->start[row]);
    mli_tile tile = mli_tile_at(op, row, op->rows->start[row], kv_head * group);
    float *dk = mli_keys_of(op, &tile, op->k.grad), *dv = mli_keys_of(op, &tile, op->v.grad);
    memset(s->dk, 0, n_keys * hd * sizeof *s->dk);
    memset(s->dv, 0, n_keys * hd * sizeof *s->dv);
    for (first = op->rows->start[row]; first < op->rows->start[row + 1]; first += MLI_QUERY_BLOCK)
        for (head = kv_head * group; head < (kv_head + 1) * group; head++) {
            tile = mli_tile_at(op, row, first, head);
            mli_attend_backward(op, &tile, s);
        }
    for (i = 0; i < n_keys; i++) {
        memcpy(dk + i * kv_dim, s->dk + i * hd, hd * sizeof *dk);
        memcpy(dv + i * kv_dim, s->dv + i * hd, hd * sizeof *dv);
    }
}

static void mli_attention_backward_task(void *arg, int index) {
    const mli_attention_op *op = (const mli_attention_op *)arg;
    mli_attention_scratch scratch;
    int row, kv_head, turn = 0;
    mli_attention_scratch_at(op->work + (size_t)index * op->task_work, op->longest,
                             (size_t)(op->q.cols / op->config->n_heads), &scratch);
    for (row = 0; row < op->rows->n_rows; row++)
        for (kv_head = 0; kv_head < op->config->n_kv_heads; kv_head++)
            if (turn++ % op->n_tasks == index) mli_attend_backward_keys(op, row, kv_head, &scratch);
}

static void mli_attention_backward(mli_graph *g, const void *record) {
    mli_attention_op op = *(const mli_attention_op *)record;
    mli_attention_scratch scratch;
    op.task_work =
        mli_attention_scratch_at(NULL, op.longest, (size_t)(op.q.cols / op.config->n_heads), &scratch);
    op.work = (unsigned char *)mli_align_up((uintptr_t)g->work);
    mli_parallel(g->threads, op.n_tasks, mli_attention_backward_task, &op);
}
#endif

/* q (n, D), k (n, kv_dim), v (n, kv_dim) -> (n, D) */
static ml_tensor mli_attention(mli_graph *g, ml_tensor q, ml_tensor k, ml_tensor v, const ml_config *config,
                               const mli_rows *rows) {
    mli_attention_op op;
    size_t hd = (size_t)(config->dim / config->n_heads), queries, work = 0;
    size_t max_tasks = (size_t)MLI_MAX(1, g->threads->count);
    int r;
    memset(&op, 0, sizeof op);
    op.q = q;
    op.k = k;
    op.v = v;
    op.out = mli_new(g, q.rows, q.cols);
    op.config = config;
    op.rows = rows;
    for (r = 0; r < rows->n_rows; r++) {
        size_t keys = (size_t)(rows->start[r + 1] - rows->start[r] + rows->past);
        op.longest = MLI_MAX(op.longest, keys);
        work += (size_t)(rows->start[r + 1] - rows->start[r]) * keys * (size_t)q.cols;
    }
    queries = (size_t)MLI_MIN(q.rows, MLI_QUERY_BLOCK);
    op.task_work = queries * op.longest * sizeof(float);
    if (queries > MLI_FEW_QUERIES)
        op.task_work += MLI_MAX(mli_gemm_work(NULL, queries, op.longest, hd),
                                mli_gemm_work(NULL, queries, hd, op.longest));
    op.task_work = (size_t)mli_align_up(op.task_work);
    mli_need_work(g, max_tasks * op.task_work);
#ifndef ML_NO_TRAINING
    if (g->taping) {
        mli_attention_scratch scratch;
        mli_need_work(g, max_tasks * mli_attention_scratch_at(NULL, op.longest, hd, &scratch) + MLI_ALIGN);
    }
#endif
    op.n_tasks = mli_task_count(g->threads, work, 1 << 15);
    op.work = (unsigned char *)g->work;
    if (!mli_measuring(g)) mli_parallel(g->threads, op.n_tasks, mli_attention_task, &op);
    MLI_RECORD(g, mli_attention_backward, op);
    return op.out;
}

/* ==== >>model ==== */

/* The parameter table: the one place that knows every weight of the network, its shape, its role, and what the
   four naming schemes call it. Loader, saver, counting and tests all go through it. */

typedef enum mli_slot {
    /* once in a model */
    MLI_TOKEN_EMBEDDING,
    MLI_OUTPUT_NORM,
    MLI_OUTPUT_NORM_BIAS,
    MLI_OUTPUT,
    MLI_GLOBAL_SLOTS,
    /* once in a layer */
    MLI_ATTN_NORM = MLI_GLOBAL_SLOTS,
    MLI_ATTN_NORM_BIAS,
    MLI_WQ,
    MLI_WK,
    MLI_WV,
    MLI_WO,
    MLI_FFN_NORM,
    MLI_FFN_NORM_BIAS,
    MLI_W1,
    MLI_W2,
    MLI_W3,
    MLI_SLOTS,
    MLI_LAYER_SLOTS = MLI_SLOTS - MLI_GLOBAL_SLOTS
} mli_slot;

typedef enum mli_role { MLI_ROLE_EMBEDDING, MLI_ROLE_MATRIX, MLI_ROLE_NORM, MLI_ROLE_BIAS } mli_role;
typedef enum mli_extent { MLI_ONE, MLI_DIM, MLI_KV_DIM, MLI_HIDDEN, MLI_VOCAB } mli_extent;
typedef enum mli_naming {
    MLI_NAMING_GGUF,
    MLI_NAMING_META,
    MLI_NAMING_COURSE,
    MLI_NAMING_HF,
    MLI_NAMINGS
} mli_naming;

typedef struct mli_param {
    mli_role role;
    mli_extent rows, cols;
    const char *name[MLI_NAMINGS]; /* '#' stands for the layer's number */
} mli_param;

static const mli_param mli_params[MLI_SLOTS] = {
    /* clang-format off */
    {MLI_ROLE_EMBEDDING, MLI_VOCAB, MLI_DIM, {"token_embd.weight", "tok_embeddings.weight", "tok_embeddings.weight",
                                              "model.embed_tokens.weight"}},
    {MLI_ROLE_NORM, MLI_ONE, MLI_DIM, {"output_norm.weight", "norm.weight", "norm.weight", "model.norm.weight"}},
    {MLI_ROLE_BIAS, MLI_ONE, MLI_DIM, {"output_norm.bias", "norm.bias", "norm.bias", "model.norm.bias"}},
    {MLI_ROLE_MATRIX, MLI_VOCAB, MLI_DIM, {"output.weight", "output.weight", "output.weight", "lm_head.weight"}},

    {MLI_ROLE_NORM, MLI_ONE, MLI_DIM, {"blk.#.attn_norm.weight", "layers.#.attention_norm.weight",
        "layers.#.attention_norm.weight", "model.layers.#.input_layernorm.weight"}},
    {MLI_ROLE_BIAS, MLI_ONE, MLI_DIM, {"blk.#.attn_norm.bias", "layers.#.attention_norm.bias",
        "layers.#.attention_norm.bias", "model.layers.#.input_layernorm.bias"}},
    {MLI_ROLE_MATRIX, MLI_DIM, MLI_DIM, {"blk.#.attn_q.weight", "layers.#.attention.wq.weight",
        "layers.#.attention.compute_query.weight", "model.layers.#.self_attn.q_proj.weight"}},
    {MLI_ROLE_MATRIX, MLI_KV_DIM, MLI_DIM, {"blk.#.attn_k.weight", "layers.#.attention.wk.weight",
        "layers.#.attention.compute_key.weight", "model.layers.#.self_attn.k_proj.weight"}},
    {MLI_ROLE_MATRIX, MLI_KV_DIM, MLI_DIM, {"blk.#.attn_v.weight", "layers.#.attention.wv.weight",
        "layers.#.attention.compute_value.weight", "model.layers.#.self_attn.v_proj.weight"}},
    {MLI_ROLE_MATRIX, MLI_DIM, MLI_DIM, {"blk.#.attn_output.weight", "layers.#.attention.wo.weight",
        "layers.#.attention.compute_output.weight", "model.layers.#.self_attn.o_proj.weight"}},
    {MLI_ROLE_NORM, MLI_ONE, MLI_DIM, {"blk.#.ffn_norm.weight", "layers.#.ffn_norm.weight",
        "layers.#.ffn_norm.weight", "model.layers.#.post_attention_layernorm.weight"}},
    {MLI_ROLE_BIAS, MLI_ONE, MLI_DIM, {"blk.#.ffn_norm.bias", "layers.#.ffn_norm.bias",
        "layers.#.ffn_norm.bias", "model.layers.#.post_attention_layernorm.bias"}},
    {MLI_ROLE_MATRIX, MLI_HIDDEN, MLI_DIM, {"blk.#.ffn_gate.weight", "layers.#.feed_forward.w1.weight",
        "layers.#.feed_forward.w1.weight", "model.layers.#.mlp.gate_proj.weight"}},
    {MLI_ROLE_MATRIX, MLI_DIM, MLI_HIDDEN, {"blk.#.ffn_down.weight", "layers.#.feed_forward.w2.weight",
        "layers.#.feed_forward.w2.weight", "model.layers.#.mlp.down_proj.weight"}},
    {MLI_ROLE_MATRIX, MLI_HIDDEN, MLI_DIM, {"blk.#.ffn_up.weight", "layers.#.feed_forward.w3.weight",
        "layers.#.feed_forward.w3.weight", "model.layers.#.mlp.up_proj.weight"}},
    /* clang-format on */
};

/* What an adapter may adapt, in the order of the bits ML_LORA_Q ... */
#define MLI_LORA_TARGETS 7
static const mli_slot mli_lora_slots[MLI_LORA_TARGETS] = {MLI_WQ, MLI_WK, MLI_WV, MLI_WO,
                                                          MLI_W1, MLI_W2, MLI_W3};

static int mli_extent_of(const ml_config *c, mli_extent extent) {
    switch (extent) {
    case MLI_DIM: return c->dim;
    case MLI_KV_DIM: return c->dim / c->n_heads * c->n_kv_heads;
    case MLI_HIDDEN: return c->hidden_dim;
    case MLI_VOCAB: return c->vocab_size;
    default: return 1;
    }
}

/* Tensor `index` of a model is slot `*slot` of layer `*layer` (0 for those outside the layers). */
static void mli_slot_of(int index, mli_slot *slot, int *layer) {
    int in_layers = index - MLI_GLOBAL_SLOTS;
    *layer = in_layers < 0 ? 0 : in_layers / MLI_LAYER_SLOTS;
    *slot = (mli_slot)(in_layers < 0 ? index : MLI_GLOBAL_SLOTS + in_layers % MLI_LAYER_SLOTS);
}

static const ml_tensor *mli_weight(const ml_model *model, mli_slot slot, int layer) {
    int in_layer = slot < MLI_GLOBAL_SLOTS ? 0 : layer * MLI_LAYER_SLOTS;
    return &model->tensors[(int)slot + in_layer];
}

/* Whether a model of this configuration has the tensor as one of its own. */
static int mli_has_slot(const ml_config *c, mli_slot slot) {
    if (slot == MLI_OUTPUT) return !c->tied_output;
    return mli_params[slot].role != MLI_ROLE_BIAS || c->norm == ML_NORM_LAYER;
}

static void mli_param_name(mli_naming naming, mli_slot slot, int layer, char name[ML_NAME_SIZE]) {
    const char *pattern = mli_params[slot].name[naming], *hash = strchr(pattern, '#');
    if (hash) {
        char head[ML_NAME_SIZE];
        size_t n = (size_t)(hash - pattern);
        memcpy(head, pattern, n);
        head[n] = 0;
        mli_format(name, ML_NAME_SIZE, "%s%d%s", head, layer, hash + 1);
    } else {
        mli_format(name, ML_NAME_SIZE, "%s", pattern);
    }
}

ML_DEF ml_result ml_tensor_name(const ml_model *model, int index, char name[ML_NAME_SIZE]) {
    mli_slot slot;
    int layer;
    if (!model || !name || index < 0 || index >= model->n_tensors) return ML_ERROR_ARGUMENT;
    mli_slot_of(index, &slot, &layer);
    mli_param_name(MLI_NAMING_GGUF, slot, layer, name);
    return ML_OK;
}

/* Refuses configurations that the forward pass could not run; the limits keep every index inside an int. */
static ml_result mli_check_config(const ml_config *c, ml_error *error) {
    const struct {
        const char *name;
        int value, most;
    } fields[] = {{"dim", c->dim, 1 << 16},
                  {"hidden_dim", c->hidden_dim, 1 << 18},
                  {"n_layers", c->n_layers, 1 << 10},
                  {"n_heads", c->n_heads, 1 << 12},
                  {"n_kv_heads", c->n_kv_heads, 1 << 12},
                  {"vocab_size", c->vocab_size, 1 << 21},
                  {"max_seq_len", c->max_seq_len, 1 << 24}};
    size_t i;
    for (i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < 1 || fields[i].value > fields[i].most)
            return mli_fail(error, ML_ERROR_FORMAT, "configuration: %s is %d, not in 1 to %d", fields[i].name,
                            fields[i].value, fields[i].most);
    if (c->dim % c->n_heads || (c->dim / c->n_heads) % 2)
        return mli_fail(error, ML_ERROR_FORMAT,
                        "configuration: dim %d cannot be cut into %d heads of an even size", c->dim,
                        c->n_heads);
    if (c->n_heads % c->n_kv_heads)
        return mli_fail(error, ML_ERROR_FORMAT, "configuration: n_kv_heads %d does not divide n_heads %d",
                        c->n_kv_heads, c->n_heads);
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return mli_fail(error, ML_ERROR_FORMAT, "configuration: norm_eps is not in 0 to 1");
    if (!(c->rope_theta > 0 && c->rope_theta < 1e12f) || !(c->rope_scale > 0 && c->rope_scale < 1e6f))
        return mli_fail(error, ML_ERROR_FORMAT, "configuration: rope_theta or rope_scale is out of range");
    if ((c->norm != ML_NORM_RMS && c->norm != ML_NORM_LAYER) ||
        (c->mask != ML_MASK_CAUSAL && c->mask != ML_MASK_FULL))
        return mli_fail(error, ML_ERROR_ARGUMENT, "configuration: norm or mask is not one of its names");
    return ML_OK;
}

struct ml_model_private {
    ml_allocator allocator;
    ml_archive *archive; /* where weights used in place live; NULL: none are */
    void *weights;       /* one block with all the weights that are the model's own */
    ml_tensor *tensors;  /* what model->tensors shows */
    ml_tokenizer *tokenizer;
};

/* A model without weights: every tensor has its shape, and no data. */
static ml_result mli_model_new(const ml_config *config, const ml_allocator *allocator, ml_model **out,
                               ml_error *error) {
    int i, n_tensors = MLI_GLOBAL_SLOTS + config->n_layers * MLI_LAYER_SLOTS;
    ml_model *model = (ml_model *)mli_alloc(allocator, 1, sizeof *model);
    ml_model_private *own = (ml_model_private *)mli_alloc(allocator, 1, sizeof *own);
    ml_tensor *tensors = (ml_tensor *)mli_alloc(allocator, (size_t)n_tensors, sizeof *tensors);
    if (!model || !own || !tensors) {
        mli_free(allocator, model);
        mli_free(allocator, own);
        mli_free(allocator, tensors);
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a table of %d tensors", n_tensors);
    }
    model->config = *config;
    model->n_tensors = n_tensors;
    model->tensors = own->tensors = tensors;
    model->private_part = own;
    own->allocator = *allocator;
    for (i = 0; i < n_tensors; i++) {
        mli_slot slot;
        int layer;
        mli_slot_of(i, &slot, &layer);
        tensors[i].rows = mli_extent_of(config, mli_params[slot].rows);
        tensors[i].cols = mli_extent_of(config, mli_params[slot].cols);
        if (mli_has_slot(config, slot)) model->n_parameters += (int64_t)tensors[i].rows * tensors[i].cols;
    }
    *out = model;
    return ML_OK;
}

ML_DEF void ml_free(ml_model *model) {
    ml_allocator allocator;
    ml_model_private *own;
    if (!model) return;
    own = model->private_part;
    allocator = own->allocator;
    ml_tokenizer_free(own->tokenizer);
    ml_archive_close(own->archive);
    mli_free(&allocator, own->weights);
    mli_free(&allocator, own->tensors);
    mli_free(&allocator, own);
    mli_free(&allocator, model);
}

/* ---- the network, written once ---- */

/* Where one layer leaves its keys and values: the session's cache, or nowhere lasting. */
typedef struct mli_kv {
    float *k, *v; /* (n, kv_dim) each; NULL: make them on the graph's stack */
} mli_kv;

static ml_tensor mli_kv_tensor(mli_graph *g, float *data, int rows, int cols) {
    return data ? mli_tensor_at(data, rows, cols) : mli_new(g, rows, cols);
}

/* The matrix of a slot with the adapter that the graph has for it. */
static mli_matrix_use mli_use(const mli_graph *g, const ml_model *model, mli_slot slot, int layer) {
    mli_matrix_use use;
    memset(&use, 0, sizeof use);
    use.w = *mli_weight(model, slot, layer);
    if (g->lora) {
        int target;
        for (target = 0; target < MLI_LORA_TARGETS; target++)
            if (mli_lora_slots[target] == slot) {
                const ml_tensor *pair = g->lora->tensors + (layer * MLI_LORA_TARGETS + target) * 2;
                use.a = pair[0];
                use.b = pair[1];
                use.scale = g->lora->alpha / (float)g->lora->rank;
            }
    }
    return use;
}

/* What all layers of a pass share. */
typedef struct mli_pass {
    const ml_model *model;
    const mli_rows *rows;
    const float *rope; /* see mli_rope_table */
    const mli_kv *kv;  /* (L), or NULL */
} mli_pass;

/* x (n, D) -> x + attention(norm(x)), the first half of a layer */
static ml_tensor mli_attention_block(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    const ml_model *model = pass->model;
    const ml_config *c = &model->config;
    mli_matrix_use w[3];
    ml_tensor h, qkv[3];
    int hd = c->dim / c->n_heads;
    h = mli_norm(g, x, *mli_weight(model, MLI_ATTN_NORM, layer),
                 *mli_weight(model, MLI_ATTN_NORM_BIAS, layer), c->norm_eps);
    w[0] = mli_use(g, model, MLI_WQ, layer);
    w[1] = mli_use(g, model, MLI_WK, layer);
    w[2] = mli_use(g, model, MLI_WV, layer);
    qkv[0] = mli_new(g, x.rows, w[0].w.rows);
    qkv[1] = mli_kv_tensor(g, pass->kv ? pass->kv[layer].k : NULL, x.rows, w[1].w.rows);
    qkv[2] = mli_kv_tensor(g, pass->kv ? pass->kv[layer].v : NULL, x.rows, w[2].w.rows);
    mli_linears(g, h, w, qkv, 3);
    mli_rope(g, qkv[0], pass->rope, hd, pass->rows);
    mli_rope(g, qkv[1], pass->rope, hd, pass->rows);
    h = mli_attention(g, qkv[0], qkv[1], qkv[2], c, pass->rows);
    return mli_add_linear(g, x, h, mli_use(g, model, MLI_WO, layer));
}

/* x (n, D) -> x + W2 (silu(W1 norm(x)) * W3 norm(x)), the second half */
static ml_tensor mli_ffn_block(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    const ml_model *model = pass->model;
    mli_matrix_use w[2];
    ml_tensor h, y[2];
    h = mli_norm(g, x, *mli_weight(model, MLI_FFN_NORM, layer), *mli_weight(model, MLI_FFN_NORM_BIAS, layer),
                 model->config.norm_eps);
    w[0] = mli_use(g, model, MLI_W1, layer);
    w[1] = mli_use(g, model, MLI_W3, layer);
    y[0] = mli_new(g, x.rows, w[0].w.rows);
    y[1] = mli_new(g, x.rows, w[1].w.rows);
    mli_linears(g, h, w, y, 2);
    h = mli_gated(g, y[0], y[1]);
    return mli_add_linear(g, x, h, mli_use(g, model, MLI_W2, layer));
}

/* Without a tape a layer gives back all that it took, and x is changed in place. */
static ml_tensor mli_layer(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    size_t mark = g->used;
    x = mli_attention_block(g, pass, layer, x);
    if (!g->taping) mli_release(g, mark);
    x = mli_ffn_block(g, pass, layer, x);
    if (!g->taping) mli_release(g, mark);
    return x;
}

#ifndef ML_NO_TRAINING
/* ---- gradient checkpointing (Chen et al. 2016): a layer is computed without a tape, and again with one when its turn
   comes backward; only its input is kept ---- */

typedef struct mli_layer_op {
    mli_pass pass;
    int layer;
    ml_tensor x;
} mli_layer_op;

static void mli_layer_backward(mli_graph *g, const void *record) {
    const mli_layer_op *op = (const mli_layer_op *)record;
    mli_taped *before = g->newest;
    size_t mark = g->used;
    g->taping = 1;
    mli_layer(g, &op->pass, op->layer, op->x);
    mli_run_backward(g, before);
    mli_release(g, mark);
}

static ml_tensor mli_layer_checkpointed(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    ml_tensor y = mli_new(g, x.rows, x.cols);
    mli_layer_op op;
    size_t mark = g->used;
    op.pass = *pass;
    op.layer = layer;
    op.x = x;
    y.grad = x.grad;
    if (mli_measuring(g)) {
        size_t peak = g->peak;
        mli_layer(g, pass, layer, x);
        g->recompute = MLI_MAX(g->recompute, g->used - mark);
        g->peak = peak; /* it is not now that this is needed */
        mli_release(g, mark);
    } else {
        memcpy(y.data, x.data, (size_t)x.rows * (size_t)x.cols * sizeof(float));
    }
    g->taping = 0;
    mli_layer(g, pass, layer, y);
    g->taping = 1;
    MLI_RECORD(g, mli_layer_backward, op);
    return y;
}
#endif

/* tokens (n) -> hidden states after the last norm (n, D). kv holds one entry for each layer, or is NULL. */
static ml_tensor mli_network(mli_graph *g, const ml_model *model, const int32_t *tokens, int n,
                             const mli_rows *rows, const float *rope, const mli_kv *kv) {
    ml_tensor x = mli_embed_stream(g, *mli_weight(model, MLI_TOKEN_EMBEDDING, 0), tokens, n);
    mli_pass pass;
    int layer;
    pass.model = model;
    pass.rows = rows;
    pass.rope = rope;
    pass.kv = kv;
    for (layer = 0; layer < model->config.n_layers; layer++) {
#ifndef ML_NO_TRAINING
        if (g->taping && g->checkpointing) {
            x = mli_layer_checkpointed(g, &pass, layer, x);
            continue;
        }
#endif
        x = mli_layer(g, &pass, layer, x);
    }
    return mli_norm(g, x, *mli_weight(model, MLI_OUTPUT_NORM, 0), *mli_weight(model, MLI_OUTPUT_NORM_BIAS, 0),
                    model->config.norm_eps);
}

/* hidden (n, D) -> logits (n_select, V) of the selected tokens, or of all without a selection */
static void mli_output(mli_graph *g, const ml_model *model, ml_tensor hidden, const int32_t *select,
                       int n_select, float *logits) {
    mli_matrix_use use = mli_use(g, model, MLI_OUTPUT, 0);
    ml_tensor y;
    if (select)
        hidden = mli_embed(g, hidden, select, n_select); /* gathering rows is what an embedding does */
    y = mli_tensor_at(logits, hidden.rows, use.w.rows);
    mli_linears(g, hidden, &use, &y, 1);
}

/* ---- session ---- */

struct ml_session {
    const ml_model *model;
    int max_seq_len, max_batch;
    const ml_lora *lora;
    ml_threads threads;
    int length;      /* tokens held */
    int32_t *tokens; /* (max_seq_len): the first `length` are held */
    float *rope;     /* (max_seq_len, hd): see mli_rope_table */
    float *cache;    /* (L, 2, max_seq_len, kv_dim): keys and values of each layer; none with mask full */
    mli_kv *kv;      /* (L): where the next pass writes */
    float *logits;   /* (V) */
    ml_candidate *candidates; /* (V), for the sampler */
    mli_graph graph;
    ml_allocator allocator; /* of ml_session_new ... */
    void *block;            /* ... and what it gave; NULL after ml_session_init */
};

static ml_result mli_lora_check(const ml_model *model, const ml_lora *lora,
                                ml_error *error); /* in >>adapters */

/* Runs the network without memory, to learn how much a pass of max_batch tokens needs. */
static void mli_measure(ml_session *s) {
    const ml_config *c = &s->model->config;
    int32_t start[2];
    mli_rows rows;
    ml_tensor hidden;
    start[0] = 0;
    start[1] = MLI_MIN(s->max_batch, s->max_seq_len); /* the longest row, with the longest past */
    rows.start = start;
    rows.n_rows = 1;
    rows.past = c->mask == ML_MASK_FULL ? 0 : s->max_seq_len - start[1];
    memset(&s->graph, 0, sizeof s->graph);
    s->graph.threads = &s->threads;
    s->graph.lora = s->lora;
    hidden = mli_network(&s->graph, s->model, NULL, s->max_batch, &rows, NULL, NULL);
    mli_output(&s->graph, s->model, hidden, start, s->max_batch, NULL);
    s->graph.size = s->graph.peak;
    /* ml_generate encodes its prompt where the activations will stand */
    if (s->model->tokenizer)
        s->graph.size = MLI_MAX(s->graph.size, ml_encode_size((size_t)s->max_seq_len * 4));
}

/* Lays the session out behind itself in `memory`; with NULL only counts. Returns the bytes, SIZE_MAX on overflow. */
static size_t mli_session_layout(ml_session *s, unsigned char *memory) {
    const ml_config *c = &s->model->config;
    size_t used = 0, length = (size_t)s->max_seq_len, vocab = (size_t)c->vocab_size;
    size_t hd = (size_t)(c->dim / c->n_heads), kv_dim = hd * (size_t)c->n_kv_heads;
    size_t cached = c->mask == ML_MASK_FULL ? 0 : length;
    mli_carve(memory, &used, 1, sizeof *s);
    s->tokens = (int32_t *)mli_carve(memory, &used, length, sizeof *s->tokens);
    s->rope = (float *)mli_carve(memory, &used, length, hd * sizeof *s->rope);
    s->kv = (mli_kv *)mli_carve(memory, &used, (size_t)c->n_layers, sizeof *s->kv);
    s->logits = (float *)mli_carve(memory, &used, vocab, sizeof *s->logits);
    s->candidates = (ml_candidate *)mli_carve(memory, &used, vocab, sizeof *s->candidates);
    s->graph.memory = (unsigned char *)mli_carve(memory, &used, s->graph.size, 1);
    s->graph.work = mli_carve(memory, &used, s->graph.work_size, 1);
    s->cache = (float *)mli_carve(memory, &used, cached * kv_dim, (size_t)c->n_layers * 2 * sizeof *s->cache);
    return used;
}

/* Fills in the defaults of a description, once, for size and init alike. */
static ml_result mli_session_resolve(const ml_model *model, const ml_session_desc *desc, ml_session *s,
                                     ml_error *error) {
    static const ml_session_desc defaults = {0, 0, NULL, {0, NULL, NULL}};
    size_t widest;
    ml_result result;
    if (!model) return mli_fail(error, ML_ERROR_ARGUMENT, "a session needs a model");
    if (!desc) desc = &defaults;
    memset(s, 0, sizeof *s);
    s->model = model;
    s->max_seq_len = desc->max_seq_len ? desc->max_seq_len : model->config.max_seq_len;
    if (s->max_seq_len < 1 || s->max_seq_len > 1 << 24)
        return mli_fail(error, ML_ERROR_ARGUMENT, "session: max_seq_len is %d, not in 1 to %d",
                        s->max_seq_len, 1 << 24);
    s->max_batch = desc->max_batch ? desc->max_batch : MLI_MIN(s->max_seq_len, 256);
    widest = (size_t)MLI_MAX(model->config.dim, MLI_MAX(model->config.hidden_dim, model->config.vocab_size));
    if (s->max_batch < 1 || s->max_batch > 1 << 24 || (size_t)s->max_batch > SIZE_MAX / 64 / widest)
        return mli_fail(error, ML_ERROR_ARGUMENT, "session: max_batch is %d", s->max_batch);
    /* with mask full each pass computes the whole sequence; a causal pass is never longer than the cache */
    if (model->config.mask == ML_MASK_FULL) s->max_batch = MLI_MAX(s->max_batch, s->max_seq_len);
    s->lora = desc->lora;
    if (s->lora && (result = mli_lora_check(model, s->lora, error)) != ML_OK) return result;
    s->threads = desc->threads;
    if (s->threads.count < 0 || s->threads.count > 1024)
        return mli_fail(error, ML_ERROR_ARGUMENT, "session: threads.count is %d, not in 0 to 1024",
                        s->threads.count);
    if (!s->threads.count) s->threads.count = 1;
    mli_measure(s);
    return ML_OK;
}

ML_DEF ml_result ml_session_size(const ml_model *model, const ml_session_desc *desc, size_t *size) {
    ml_session s;
    ml_result result = mli_session_resolve(model, desc, &s, NULL);
    size_t bytes;
    if (result) return result;
    bytes = mli_session_layout(&s, NULL);
    if (bytes > SIZE_MAX - MLI_ALIGN) return ML_ERROR_MEMORY;
    *size = bytes + MLI_ALIGN; /* room to align any buffer */
    return ML_OK;
}

ML_DEF ml_result ml_session_init(const ml_model *model, const ml_session_desc *desc, void *memory,
                                 size_t size, ml_session **session, ml_error *error) {
    ml_session resolved, *s;
    uintptr_t base = mli_align_up((uintptr_t)memory);
    ml_result result = mli_session_resolve(model, desc, &resolved, error);
    size_t need;
    if (result) return result;
    need = mli_session_layout(&resolved, NULL);
    if (!memory || !session)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_init: memory or session is NULL");
    if (base - (uintptr_t)memory > size || need > size - (size_t)(base - (uintptr_t)memory))
        return mli_fail(error, ML_ERROR_MEMORY,
                        "session: the buffer has %z bytes; it takes %z (ml_session_size)", size,
                        need > SIZE_MAX - MLI_ALIGN ? need : need + MLI_ALIGN);
    s = (ml_session *)base;
    *s = resolved;
    s->graph.threads = &s->threads;
    mli_session_layout(s, (unsigned char *)base);
    mli_rope_table(s->rope, s->max_seq_len, &model->config);
    *session = s;
    return mli_ok(error);
}

ML_DEF ml_result ml_session_new(const ml_model *model, const ml_session_desc *desc, const ml_allocator *given,
                                ml_session **session, ml_error *error) {
    ml_allocator allocator;
    ml_session resolved;
    void *memory;
    size_t size;
    ml_result result = mli_resolve_allocator(given, &allocator, error);
    if (result || (result = mli_session_resolve(model, desc, &resolved, error)) != ML_OK) return result;
    size = mli_session_layout(&resolved, NULL);
    memory = size > SIZE_MAX - 2 * MLI_ALIGN ? NULL : allocator.alloc(size + 2 * MLI_ALIGN, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a session of %z bytes", size);
    result = ml_session_init(model, desc, memory, size + 2 * MLI_ALIGN, session, error);
    if (result) {
        mli_free(&allocator, memory);
        return result;
    }
    (*session)->allocator = allocator;
    (*session)->block = memory;
    return ML_OK;
}

ML_DEF void ml_session_free(ml_session *session) {
    if (session && session->block) {
        ml_allocator allocator = session->allocator;
        mli_free(&allocator, session->block);
    }
}

ML_DEF int ml_session_length(const ml_session *session) { return session->length; }

ML_DEF ml_result ml_session_truncate(ml_session *session, int length) {
    if (!session || length < 0 || length > session->length) return ML_ERROR_ARGUMENT;
    session->length = length;
    return ML_OK;
}

static ml_result mli_check_tokens(const ml_model *model, const int32_t *tokens, int n, ml_error *error) {
    int i;
    for (i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= model->config.vocab_size)
            return mli_fail(error, ML_ERROR_ARGUMENT, "token %d is %d, outside the vocabulary of %d", i,
                            (int)tokens[i], model->config.vocab_size);
    return ML_OK;
}

/* Points each layer's next keys and values at position `past` of the cache. */
static const mli_kv *mli_cache_at(ml_session *s, int past) {
    const ml_config *c = &s->model->config;
    size_t kv_dim = (size_t)(c->dim / c->n_heads * c->n_kv_heads), half = (size_t)s->max_seq_len * kv_dim;
    int layer;
    if (c->mask == ML_MASK_FULL) return NULL;
    for (layer = 0; layer < c->n_layers; layer++) {
        s->kv[layer].k = s->cache + (size_t)layer * 2 * half + (size_t)past * kv_dim;
        s->kv[layer].v = s->kv[layer].k + half;
    }
    return s->kv;
}

ML_DEF ml_result ml_eval(ml_session *s, const int32_t *tokens, int n, const float **logits, ml_error *error) {
    ml_result result;
    int done, total, full;
    if (!s || !tokens || n < 1) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_eval: nothing to evaluate");
    if ((result = mli_check_tokens(s->model, tokens, n, error)) != ML_OK) return result;
    if (n > s->max_seq_len - s->length)
        return mli_fail(error, ML_ERROR_CONTEXT, "%d tokens and %d more do not fit a context of %d",
                        s->length, n, s->max_seq_len);
    memmove(s->tokens + s->length, tokens, (size_t)n * sizeof *tokens);
    total = s->length + n;
    full = s->model->config.mask == ML_MASK_FULL;
    for (done = full ? 0 : s->length; done < total;) {
        int32_t start[2], last;
        mli_rows rows;
        ml_tensor hidden;
        int step = MLI_MIN(total - done, s->max_batch);
        start[0] = 0;
        start[1] = step;
        last = step - 1;
        rows.start = start;
        rows.n_rows = 1;
        rows.past = full ? 0 : done;
        mli_release(&s->graph, 0);
        hidden =
            mli_network(&s->graph, s->model, s->tokens + done, step, &rows, s->rope, mli_cache_at(s, done));
        done += step;
        if (done == total && logits) mli_output(&s->graph, s->model, hidden, &last, 1, s->logits);
    }
    s->length = total;
    if (logits) *logits = s->logits;
    return mli_ok(error);
}

/* Checks all that ml_forward is given before anything is computed. */
static ml_result mli_check_batch(const ml_session *s, const ml_batch *b, const mli_rows *rows,
                                 ml_error *error) {
    int r, i;
    if (b->n_tokens < 1 || b->n_tokens > s->max_batch)
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: %d tokens, not in 1 to the session's max_batch %d",
                        b->n_tokens, s->max_batch);
    if (rows->n_rows < 1 || rows->start[0] != 0 || rows->start[rows->n_rows] != b->n_tokens)
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: row_start does not run from 0 to n_tokens");
    for (r = 0; r < rows->n_rows; r++) {
        int32_t begin = rows->start[r], end = rows->start[r + 1];
        if (begin < 0 || end <= begin || end > b->n_tokens)
            return mli_fail(error, ML_ERROR_ARGUMENT, "batch: row %d is empty or runs backwards", r);
        if (end - begin > s->max_seq_len)
            return mli_fail(error, ML_ERROR_CONTEXT,
                            "batch: row %d has %d tokens; the session's max_seq_len is %d", r,
                            (int)(end - begin), s->max_seq_len);
    }
    for (i = 0; b->select && i < b->n_select; i++)
        if (b->select[i] < 0 || b->select[i] >= b->n_tokens)
            return mli_fail(error, ML_ERROR_ARGUMENT, "batch: select %d is %d, outside its %d tokens", i,
                            (int)b->select[i], b->n_tokens);
    if (b->select && (b->n_select < 1 || b->n_select > s->max_batch))
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: n_select is %d, not in 1 to %d", b->n_select,
                        s->max_batch);
    return mli_check_tokens(s->model, b->tokens, b->n_tokens, error);
}

ML_DEF ml_result ml_forward(ml_session *s, const ml_batch *b, ml_error *error) {
    int32_t single[2];
    mli_rows rows;
    ml_tensor hidden;
    ml_result result;
    if (!s || !b || !b->tokens)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_forward: session, batch or tokens is NULL");
    single[0] = 0;
    single[1] = b->n_tokens;
    rows.start = b->row_start ? b->row_start : single;
    rows.n_rows = b->row_start ? b->n_rows : 1;
    rows.past = 0;
    if ((result = mli_check_batch(s, b, &rows, error)) != ML_OK) return result;
    mli_release(&s->graph, 0);
    hidden = mli_network(&s->graph, s->model, b->tokens, b->n_tokens, &rows, s->rope, NULL);
    if (b->hidden) memcpy(b->hidden, hidden.data, (size_t)b->n_tokens * (size_t)hidden.cols * sizeof(float));
    if (b->logits) mli_output(&s->graph, s->model, hidden, b->select, b->n_select, b->logits);
    return mli_ok(error);
}

/* ==== >>adapters ==== */

#define MLI_MAX_RANK (1 << 12)

/* Two tensors for each target of each layer; A and B lie in `data`, one after the other, or with NULL are only counted.
   present, unless it is NULL, tells of each of the tensors whether it is wanted (not NULL). */
static size_t mli_lora_layout(const ml_config *c, int rank, unsigned targets, const ml_array *const *present,
                              ml_tensor *tensors, float *data) {
    size_t used = 0;
    int layer, target;
    for (layer = 0; layer < c->n_layers; layer++)
        for (target = 0; target < MLI_LORA_TARGETS; target++) {
            const mli_param *param = &mli_params[mli_lora_slots[target]];
            int out = mli_extent_of(c, param->rows), in = mli_extent_of(c, param->cols);
            int index = (layer * MLI_LORA_TARGETS + target) * 2;
            if (!(targets >> target & 1) || (present && !present[index])) continue;
            if (data) {
                ml_tensor *pair = tensors + index;
                pair[0] = mli_tensor_at(data + used, rank, in);
                pair[1] = mli_tensor_at(data + used + (size_t)rank * (size_t)in, out, rank);
            }
            used += (size_t)rank * (size_t)(in + out);
        }
    return used;
}

/* An adapter of zeros. */
static ml_result mli_lora_new(const ml_config *c, int rank, float alpha, unsigned targets,
                              const ml_array *const *present, const ml_allocator *given, ml_lora **out,
                              ml_error *error) {
    ml_allocator allocator;
    int n_tensors = c->n_layers * MLI_LORA_TARGETS * 2;
    size_t numbers, used = 0;
    unsigned char *block;
    ml_tensor *tensors;
    ml_lora *lora;
    ml_result result = mli_resolve_allocator(given, &allocator, error);
    if (result) return result;
    if (rank < 1 || rank > MLI_MAX_RANK)
        return mli_fail(error, ML_ERROR_ARGUMENT, "adapter: rank is %d, not in 1 to %d", rank, MLI_MAX_RANK);
    if (!targets || targets > ML_LORA_ALL)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "adapter: targets is %d, not a sum of ML_LORA_Q ... ML_LORA_W3", (int)targets);
    if (!(alpha > 0 && alpha < 1e6f))
        return mli_fail(error, ML_ERROR_ARGUMENT, "adapter: alpha is out of range");
    numbers = mli_lora_layout(c, rank, targets, present, NULL, NULL);
    mli_carve(NULL, &used, 1, sizeof *lora);
    mli_carve(NULL, &used, (size_t)n_tensors, sizeof *tensors);
    mli_carve(NULL, &used, numbers, sizeof(float));
    block =
        (unsigned char *)mli_alloc(&allocator, 1, used > SIZE_MAX - MLI_ALIGN ? SIZE_MAX : used + MLI_ALIGN);
    if (!block)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for an adapter of %z numbers", numbers);
    used = (size_t)(mli_align_up((uintptr_t)block) - (uintptr_t)block);
    lora = (ml_lora *)mli_carve(block, &used, 1, sizeof *lora);
    tensors = (ml_tensor *)mli_carve(block, &used, (size_t)n_tensors, sizeof *tensors);
    mli_lora_layout(c, rank, targets, present, tensors,
                    (float *)mli_carve(block, &used, numbers, sizeof(float)));
    lora->rank = rank;
    lora->alpha = alpha;
    lora->n_tensors = n_tensors;
    lora->tensors = tensors;
    lora->n_parameters = (int64_t)numbers;
    lora->allocator = allocator;
    lora->block = block;
    *out = lora;
    return mli_ok(error);
}

ML_DEF ml_result ml_lora_create(const ml_model *model, const ml_lora_desc *given, ml_random *random,
                                const ml_allocator *allocator, ml_lora **lora, ml_error *error) {
    static const ml_lora_desc defaults = {0, 0, 0, 0};
    ml_lora_desc desc = given ? *given : defaults;
    ml_result result;
    int i;
    size_t j;
    if (!model || !random || !lora)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_create: model, random or lora is NULL");
    *lora = NULL;
    if (!desc.rank) desc.rank = 4;
    if (desc.alpha == 0) desc.alpha = (float)desc.rank;
    if (!desc.targets) desc.targets = ML_LORA_ATTENTION;
    if (desc.init_sd == 0) desc.init_sd = 0.02f;
    result = mli_lora_new(&model->config, desc.rank, desc.alpha, desc.targets, NULL, allocator, lora, error);
    if (result) return result;
    for (i = 0; i < (*lora)->n_tensors; i += 2) {
        const ml_tensor *a = &(*lora)->tensors[i];
        for (j = 0; a->data && j < (size_t)a->rows * (size_t)a->cols; j++)
            ((float *)a->data)[j] = desc.init_sd * ml_random_normal(random);
    }
    return mli_ok(error);
}

ML_DEF void ml_lora_free(ml_lora *lora) {
    if (lora) {
        ml_allocator allocator = lora->allocator;
        mli_free(&allocator, lora->block);
    }
}

/* Whether the adapter has a pair of this model's shapes, or none, for every matrix. */
static ml_result mli_lora_check(const ml_model *model, const ml_lora *lora, ml_error *error) {
    const ml_config *c = &model->config;
    int i;
    if (lora->n_tensors != c->n_layers * MLI_LORA_TARGETS * 2)
        return mli_fail(error, ML_ERROR_MISMATCH, "the adapter is for %d layers, the model has %d",
                        lora->n_tensors / (MLI_LORA_TARGETS * 2), c->n_layers);
    for (i = 0; i < lora->n_tensors; i += 2) {
        const ml_tensor *a = &lora->tensors[i], *b = a + 1, *w;
        mli_slot slot = mli_lora_slots[i / 2 % MLI_LORA_TARGETS];
        char name[ML_NAME_SIZE];
        if (!a->data) continue;
        w = mli_weight(model, slot, i / 2 / MLI_LORA_TARGETS);
        mli_param_name(MLI_NAMING_GGUF, slot, i / 2 / MLI_LORA_TARGETS, name);
        if (a->cols != w->cols || b->rows != w->rows)
            return mli_fail(error, ML_ERROR_MISMATCH,
                            "the adapter of %s is for (%d, %d), the model has (%d, %d)", name, b->rows,
                            a->cols, w->rows, w->cols);
    }
    return ML_OK;
}

/* Weights that may be written to: the model's own, and F32. */
static ml_result mli_check_writable(const ml_model *model, ml_error *error) {
    int i;
    for (i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].data && model->tensors[i].type != ML_F32) break;
    if (i < model->n_tensors || !model->private_part->weights || model->private_part->archive)
        return mli_fail(
            error, ML_ERROR_ARGUMENT,
            "the model's weights are read-only or not F32: load it with ml_load_desc.type = ML_F32");
    return ML_OK;
}

/* W += sign * alpha / rank * B A */
static ml_result mli_lora_apply(ml_model *model, const ml_lora *lora, float sign, ml_error *error) {
    ml_result result;
    int i, k;
    size_t row, col;
    if (!model || !lora) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_merge: model or lora is NULL");
    if ((result = mli_check_writable(model, error)) != ML_OK) return result;
    if ((result = mli_lora_check(model, lora, error)) != ML_OK) return result;
    for (i = 0; i < lora->n_tensors; i += 2) {
        const ml_tensor *a = &lora->tensors[i], *b = a + 1;
        const ml_tensor *w =
            mli_weight(model, mli_lora_slots[i / 2 % MLI_LORA_TARGETS], i / 2 / MLI_LORA_TARGETS);
        for (row = 0; a->data && row < (size_t)w->rows; row++)
            for (k = 0; k < lora->rank; k++) {
                float s = sign * lora->alpha / (float)lora->rank * mli_row(*b, row)[k];
                float *to = mli_row(*w, row), *from = mli_row(*a, (size_t)k);
                for (col = 0; col < (size_t)w->cols; col++) to[col] += s * from[col];
            }
    }
    return mli_ok(error);
}

ML_DEF ml_result ml_lora_merge(ml_model *model, const ml_lora *lora, ml_error *error) {
    return mli_lora_apply(model, lora, 1.0f, error);
}

ML_DEF ml_result ml_lora_unmerge(ml_model *model, const ml_lora *lora, ml_error *error) {
    return mli_lora_apply(model, lora, -1.0f, error);
}

/* ==== >>training ==== */

#ifndef ML_NO_TRAINING

/* ---- rows of the hidden state that a head reads ---- */

typedef struct mli_pool_op {
    ml_tensor x, out; /* (n, D), (n_rows, D) */
    const mli_rows *rows;
    ml_pooling pooling;
} mli_pool_op;

static void mli_pool_backward(mli_graph *g, const void *record) {
    const mli_pool_op *op = (const mli_pool_op *)record;
    size_t cols = (size_t)op->x.cols, i;
    int r;
    (void)g;
    for (r = 0; r < op->rows->n_rows; r++) {
        size_t begin = (size_t)op->rows->start[r], end = (size_t)op->rows->start[r + 1];
        const float *dy = mli_grad_row(op->out, (size_t)r);
        for (i = begin; i < end; i++) {
            float *dx = mli_grad_row(op->x, i), share = 1.0f;
            if (op->pooling == ML_POOL_MEAN) share = 1.0f / (float)(end - begin);
            if (op->pooling == ML_POOL_LAST && i + 1 < end) share = 0.0f;
            memcpy(dx, dy, cols * sizeof *dx);
            mli_scale(dx, share, cols);
        }
    }
}

/* x (n, D) -> (n_rows, D): each row's last token, or the mean of its tokens */
static ml_tensor mli_pool(mli_graph *g, ml_tensor x, const mli_rows *rows, ml_pooling pooling) {
    mli_pool_op op;
    size_t cols = (size_t)x.cols, i;
    int r;
    op.x = x;
    op.out = mli_new(g, rows->n_rows, x.cols);
    op.rows = rows;
    op.pooling = pooling;
    for (r = 0; r < rows->n_rows && !mli_measuring(g); r++) {
        size_t begin = (size_t)rows->start[r], end = (size_t)rows->start[r + 1];
        float *y = mli_row(op.out, (size_t)r);
        if (pooling == ML_POOL_LAST) begin = end - 1;
        memset(y, 0, cols * sizeof *y);
        for (i = begin; i < end; i++) mli_add(y, mli_row(x, i), cols);
        mli_scale(y, 1.0f / (float)(end - begin), cols);
    }
    MLI_RECORD(g, mli_pool_backward, op);
    return op.out;
}

/* ---- dropout (Srivastava et al. 2014): each number is 0 with probability p, else divided by 1 - p. Which ones hangs on
   the seed and the place alone, so that nothing is kept for the way back. ---- */

typedef struct mli_dropout_op {
    ml_tensor x; /* in place */
    float p;
    uint64_t seed;
} mli_dropout_op;

static void mli_drop(float *x, size_t n, float p, uint64_t seed) {
    size_t i;
    for (i = 0; i < n; i++) {
        uint64_t state = seed + i * 0x9e3779b97f4a7c15u;
        float uniform = (float)(mli_splitmix64(&state) >> 40) * (1.0f / 16777216.0f);
        x[i] = uniform < p ? 0.0f : x[i] / (1.0f - p);
    }
}

static void mli_dropout_backward(mli_graph *g, const void *record) {
    const mli_dropout_op *op = (const mli_dropout_op *)record;
    (void)g;
    mli_drop(op->x.grad, (size_t)op->x.rows * (size_t)op->x.cols, op->p, op->seed);
}

/* x, in place; p 0 leaves it alone */
static void mli_dropout(mli_graph *g, ml_tensor x, float p, uint64_t seed) {
    mli_dropout_op op;
    if (!(p > 0)) return;
    op.x = x;
    op.p = p;
    op.seed = seed;
    if (!mli_measuring(g)) mli_drop((float *)x.data, (size_t)x.rows * (size_t)x.cols, p, seed);
    MLI_RECORD(g, mli_dropout_backward, op);
}

/* ---- bias: y + b ---- */

typedef struct mli_bias_op {
    ml_tensor y, b; /* (n, C), (1, C) */
} mli_bias_op;

static void mli_bias_backward(mli_graph *g, const void *record) {
    const mli_bias_op *op = (const mli_bias_op *)record;
    size_t i;
    (void)g;
    for (i = 0; i < (size_t)op->y.rows && op->b.grad; i++)
        mli_add(op->b.grad, mli_grad_row(op->y, i), (size_t)op->y.cols);
}

/* y (n, C) += b, in place */
static void mli_bias(mli_graph *g, ml_tensor y, ml_tensor b) {
    mli_bias_op op;
    size_t i;
    op.y = y;
    op.b = b;
    for (i = 0; i < (size_t)y.rows && !mli_measuring(g); i++)
        mli_add(mli_row(y, i), (const float *)b.data, (size_t)y.cols);
    MLI_RECORD(g, mli_bias_backward, op);
}

/* ---- losses: -log p(target), p = softmax(logits), summed over the rows that count and divided ---- */

typedef struct mli_nll_op {
    ml_tensor logits;      /* (n, C) */
    const int32_t *target; /* (n); negative: not counted */
    float scale;           /* 1 / divisor */
    float *loss;           /* (n) -log p of each row, not yet scaled */
    int want_gradient;
} mli_nll_op;

/* The logits of one row become s (softmax - one-hot), which is the loss's gradient; returns -log p(target). */
static float mli_nll_gradient_row(float *logits, size_t n, int32_t target, float s) {
    float max = mli_max(logits, n), at = logits[target] - max;
    mli_v sum = mli_v_zero(), m = mli_v_set(max);
    size_t i, lanes;
    for (i = 0; i < n; i += MLI_LANES) {
        lanes = MLI_MIN(MLI_LANES, n - i);
        mli_v_store_n(logits + i, mli_v_exp(mli_v_sub(mli_v_load_n(logits + i, lanes), m)), lanes);
        sum = mli_v_add(sum, mli_v_load_n(logits + i, lanes));
    }
    mli_scale(logits, s / mli_v_sum(sum), n);
    logits[target] -= s;
    return logf(mli_v_sum(sum)) - at;
}

/* The logits of one row become log-probabilities. */
static void mli_log_softmax_row(float *logits, size_t n) {
    float max = mli_max(logits, n), log_sum;
    mli_v sum = mli_v_zero(), m = mli_v_set(max);
    size_t i, lanes;
    for (i = 0; i < n; i += MLI_LANES) {
        float e[MLI_LANES];
        lanes = MLI_MIN(MLI_LANES, n - i);
        mli_v_store(e, mli_v_exp(mli_v_sub(mli_v_load_n(logits + i, lanes), m)));
        sum = mli_v_add(sum, mli_v_load_n(e, lanes));
    }
    log_sum = max + logf(mli_v_sum(sum));
    for (i = 0; i < n; i++) logits[i] -= log_sum;
}

static void mli_nll_rows(const mli_nll_op *op, size_t begin, size_t end) {
    size_t i, n = (size_t)op->logits.cols;
    for (i = begin; i < end; i++) {
        float *row = mli_row(op->logits, i);
        int32_t target = op->target ? op->target[i] : -1;
        op->loss[i] = 0;
        if (op->want_gradient && target < 0) {
            memset(row, 0, n * sizeof *row);
        } else if (op->want_gradient) {
            op->loss[i] = mli_nll_gradient_row(row, n, target, op->scale);
        } else {
            mli_log_softmax_row(row, n);
            if (target >= 0) op->loss[i] = -row[target];
        }
    }
}

typedef struct mli_nll_job {
    const mli_nll_op *op;
    int n_tasks;
} mli_nll_job;

static void mli_nll_task(void *arg, int index) {
    const mli_nll_job *job = (const mli_nll_job *)arg;
    size_t begin, end;
    mli_share((size_t)job->op->logits.rows, 1, job->n_tasks, index, &begin, &end);
    mli_nll_rows(job->op, begin, end);
}

/* Runs the rows and returns the sum of their losses, not yet scaled. */
static double mli_nll_run(mli_graph *g, const mli_nll_op *op) {
    size_t i, n = (size_t)op->logits.rows;
    double sum = 0;
    mli_nll_job job;
    job.op = op;
    job.n_tasks = mli_task_count(g->threads, n * (size_t)op->logits.cols, 1 << 14);
    mli_parallel(g->threads, job.n_tasks, mli_nll_task, &job);
    for (i = 0; i < n; i++) sum += (double)op->loss[i];
    return sum;
}

/* From the log-probabilities that the forward left:  dlogits = s (exp(log p) - one-hot) */
static void mli_nll_backward(mli_graph *g, const void *record) {
    const mli_nll_op *op = (const mli_nll_op *)record;
    size_t i, j, n = (size_t)op->logits.cols;
    (void)g;
    for (i = 0; i < (size_t)op->logits.rows; i++) {
        const float *log_p = mli_row(op->logits, i);
        float *d = mli_grad_row(op->logits, i);
        int32_t target = op->target[i];
        for (j = 0; j < n; j++)
            d[j] = target < 0 ? 0.0f : op->scale * (expf(log_p[j]) - (j == (size_t)target ? 1.0f : 0.0f));
    }
}

/* logits (n, C) become log-probabilities. Returns the loss; targets may be NULL, and then it is 0. */
static double mli_nll(mli_graph *g, ml_tensor logits, const int32_t *targets, float divisor) {
    mli_nll_op op;
    double sum;
    op.logits = logits;
    op.target = targets;
    op.scale = 1.0f / divisor;
    op.loss = (float *)mli_graph_alloc(g, (size_t)logits.rows, sizeof *op.loss);
    op.want_gradient = 0;
    sum = mli_measuring(g) ? 0 : mli_nll_run(g, &op);
    MLI_RECORD(g, mli_nll_backward, op);
    return sum / (double)divisor;
}

#define MLI_LOSS_ROWS 256 /* of logits that exist at a time: many enough that reading W is cheap */

/* hidden (n, D) against the output matrix (V, D), without ever holding all logits. With a tape the gradients, too, are
   computed here, while the logits are there: dW += dlogits^T h, and dh = dlogits W over h. */
static double mli_cross_entropy(mli_graph *g, ml_tensor hidden, ml_tensor w, const int32_t *targets,
                                float divisor) {
    size_t mark = g->used, n = (size_t)hidden.rows, dim = (size_t)hidden.cols, vocab = (size_t)w.rows, i;
    size_t most = MLI_MIN(n, MLI_LOSS_ROWS);
    mli_linear_job job;
    mli_nll_op op;
    double sum = 0;
    op.logits = mli_new(g, (int)most, w.rows);
    op.scale = 1.0f / divisor;
    op.loss = (float *)mli_graph_alloc(g, most, sizeof *op.loss);
    op.want_gradient = g->taping;
    mli_need_linear(g, most, dim, vocab, 0);
    for (i = 0; i < n && !mli_measuring(g); i += most) {
        float *h = mli_row(hidden, i);
        size_t rows = MLI_MIN(most, n - i);
        op.logits.rows = (int)rows;
        op.target = targets + i;
        job.w = &w;
        job.y = (float *)op.logits.data;
        mli_linear(g->threads, h, rows, dim, &job, 1, g->work);
        sum += mli_nll_run(g, &op);
        if (!g->taping) continue;
        if (w.grad) mli_weight_gradient(g, w.grad, job.y, h, rows, vocab, dim);
        mli_input_gradient(g, mli_grad_row(hidden, i), job.y, w, rows, 0);
    }
    mli_release(g, mark);
    return sum / (double)divisor;
}

#endif /* ML_NO_TRAINING */

/* ---- the classifier ---- */

ML_DEF ml_result ml_head_create(const ml_model *model, int n_classes, ml_random *random,
                                const ml_allocator *given, ml_head **head, ml_error *error) {
    ml_allocator allocator;
    ml_head *created;
    ml_result result;
    size_t i, n;
    float *numbers;
    if (!model || !random || !head)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_head_create: model, random or head is NULL");
    *head = NULL;
    if (n_classes < 2 || n_classes > 1 << 16)
        return mli_fail(error, ML_ERROR_ARGUMENT, "head: %d classes, not 2 to %d", n_classes, 1 << 16);
    if ((result = mli_resolve_allocator(given, &allocator, error)) != ML_OK) return result;
    n = (size_t)n_classes * ((size_t)model->config.dim + 1);
    created = (ml_head *)mli_alloc(&allocator, 1, sizeof *created + n * sizeof *numbers);
    if (!created)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a head of %d classes", n_classes);
    numbers = (float *)(void *)(created + 1);
    created->n_classes = n_classes;
    created->weight = mli_tensor_at(numbers, n_classes, model->config.dim);
    created->bias = mli_tensor_at(numbers + (size_t)n_classes * (size_t)model->config.dim, 1, n_classes);
    created->allocator = allocator;
    for (i = 0; i < n; i++)
        numbers[i] = (2 * ml_random_uniform(random) - 1) / sqrtf((float)model->config.dim);
    *head = created;
    return mli_ok(error);
}

ML_DEF void ml_head_free(ml_head *head) {
    if (head) {
        ml_allocator allocator = head->allocator;
        mli_free(&allocator, head);
    }
}

#ifndef ML_NO_TRAINING

/* ---- the schedule ---- */

ML_DEF float ml_schedule_at(const ml_schedule *schedule, int64_t step) {
    double span = (double)schedule->total_steps - (double)schedule->warmup_steps, done, rest;
    if (step < schedule->warmup_steps) return (float)((double)(step + 1) / (double)schedule->warmup_steps);
    if (schedule->decay == ML_DECAY_NONE) return 1.0f;
    done = span > 0 ? MLI_MIN(1.0, (double)(step - schedule->warmup_steps) / span) : 1.0;
    rest = schedule->decay == ML_DECAY_COSINE ? 0.5 * (1.0 + cos(3.14159265358979323846 * done)) : 1.0 - done;
    return (float)((double)schedule->final + (1.0 - (double)schedule->final) * rest);
}

/* ---- the trainer ---- */

/* A tensor that is trained. */
typedef struct mli_trained {
    ml_tensor *t;                        /* in one of the tables that the trainer shows */
    float *m, *v;                        /* AdamW's moments */
    int decays, decays_by_role, is_head; /* decays_by_role: unless decay_all says otherwise */
} mli_trained;

/* A piece of a trained tensor: what a task takes at a time, the same for every number of threads. */
#define MLI_STEP_NUMBERS (1 << 15)
typedef struct mli_piece_of {
    const mli_trained *of;
    size_t begin, n;
    double square_sum; /* of the gradients */
} mli_piece_of;

typedef struct ml_trainer_private {
    ml_trainer_desc desc;
    ml_model *model;
    ml_model view; /* the model with the trainer's table of tensors, which have gradients */
    ml_lora lora;  /* the adapter in the same way */
    ml_tensor *tensors, *lora_tensors;
    mli_trained *trained;
    int n_trained;
    mli_piece_of *pieces;
    int n_pieces;
    float *gradients;
    size_t n_gradients;
    int32_t *tokens, *row_start, *targets; /* a copy of the batch that is on the tape */
    float *rope;
    mli_rows rows;
    uint64_t passes; /* each has its own dropout */
    mli_graph graph;
    ml_allocator allocator;
    void *block;
} ml_trainer_private;

static size_t mli_numbers(const ml_tensor *t) { return (size_t)t->rows * (size_t)t->cols; }

/* Fills in the defaults and refuses what cannot be. */
static ml_result mli_trainer_resolve(const ml_model *model, const ml_trainer_desc *given,
                                     ml_trainer_desc *desc, ml_error *error) {
    const ml_adamw *a;
    if (!model || !given)
        return mli_fail(error, ML_ERROR_ARGUMENT, "a trainer needs a model and a description");
    *desc = *given;
    if (!desc->max_tokens) desc->max_tokens = model->config.max_seq_len;
    if (!desc->max_rows) desc->max_rows = desc->max_tokens;
    if (!desc->max_row) desc->max_row = MLI_MIN(desc->max_tokens, model->config.max_seq_len);
    if (desc->adamw.head_lr == 0) desc->adamw.head_lr = desc->adamw.lr;
    if (desc->adamw.beta1 == 0) desc->adamw.beta1 = 0.9f;
    if (desc->adamw.beta2 == 0) desc->adamw.beta2 = 0.999f;
    if (desc->adamw.eps == 0) desc->adamw.eps = 1e-6f;
    if (!desc->threads.count) desc->threads.count = 1;
    a = &desc->adamw;
    if (desc->max_tokens < 1 || desc->max_tokens > 1 << 22 || desc->max_rows < 1 ||
        desc->max_rows > desc->max_tokens || desc->max_row < 1 || desc->max_row > desc->max_tokens)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: max_tokens %d, max_rows %d, max_row %d do not go together",
                        desc->max_tokens, desc->max_rows, desc->max_row);
    if (!(a->lr > 0 && a->lr <= 1e6f) || !(a->head_lr > 0 && a->head_lr <= 1e6f) ||
        !(a->beta1 > 0 && a->beta1 < 1) || !(a->beta2 > 0 && a->beta2 < 1) || !(a->eps > 0) ||
        !(a->weight_decay >= 0 && a->weight_decay <= 1e6f) || !(a->clip >= 0))
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: a number of AdamW is out of range (lr must be given)");
    if (!(desc->dropout >= 0 && desc->dropout < 1))
        return mli_fail(error, ML_ERROR_ARGUMENT, "trainer: dropout is not in 0 to 1");
    if (desc->threads.count < 1 || desc->threads.count > 1024)
        return mli_fail(error, ML_ERROR_ARGUMENT, "trainer: threads.count is %d, not in 0 to 1024",
                        desc->threads.count);
    if (desc->head && desc->head->weight.cols != model->config.dim)
        return mli_fail(error, ML_ERROR_MISMATCH, "the head reads %d numbers, the model's dim is %d",
                        desc->head->weight.cols, model->config.dim);
    if (desc->frozen && !desc->head && !desc->lora)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: a frozen model without adapter or head learns nothing");
    if (desc->lora) return mli_lora_check(model, desc->lora, error);
    return desc->frozen ? ML_OK : mli_check_writable(model, error);
}

/* Whether tensor `index` of the model is trained. */
static int mli_is_trained(const ml_trainer_private *t, int index) {
    mli_slot slot;
    int layer;
    mli_slot_of(index, &slot, &layer);
    if (t->desc.lora || t->desc.frozen || !mli_has_slot(&t->model->config, slot)) return 0;
    return slot != MLI_OUTPUT || !t->desc.head; /* with a head nobody reads the output matrix */
}

/* Takes a tensor into the list of those that are trained. With `trained` NULL it only counts. */
static void mli_train_tensor(ml_trainer_private *t, ml_tensor *tensor, size_t n, int decays, int is_head) {
    if (t->trained) {
        mli_trained *to = &t->trained[t->n_trained];
        to->t = tensor;
        to->decays = decays || t->desc.adamw.decay_all;
        to->decays_by_role = decays;
        to->is_head = is_head;
    }
    t->n_trained++;
    t->n_pieces += (int)((n + MLI_STEP_NUMBERS - 1) / MLI_STEP_NUMBERS);
    t->n_gradients += n;
}

/* Lists, or counts, all that is trained. */
static void mli_list_trained(ml_trainer *trainer, ml_trainer_private *t) {
    const ml_model *model = t->model;
    int i;
    t->n_trained = t->n_pieces = 0;
    t->n_gradients = 0;
    for (i = 0; i < model->n_tensors; i++)
        if (mli_is_trained(t, i)) {
            mli_slot slot;
            int layer;
            mli_slot_of(i, &slot, &layer);
            mli_train_tensor(t, t->tensors ? t->tensors + i : NULL, mli_numbers(&model->tensors[i]),
                             mli_params[slot].role != MLI_ROLE_NORM && mli_params[slot].role != MLI_ROLE_BIAS,
                             0);
        }
    for (i = 0; t->desc.lora && i < t->desc.lora->n_tensors; i++)
        if (t->desc.lora->tensors[i].data)
            mli_train_tensor(t, t->lora_tensors ? t->lora_tensors + i : NULL,
                             mli_numbers(&t->desc.lora->tensors[i]), 1, 0);
    if (t->desc.head) {
        mli_train_tensor(t, &trainer->head[0], mli_numbers(&t->desc.head->weight), 1, 1);
        mli_train_tensor(t, &trainer->head[1], mli_numbers(&t->desc.head->bias), 0, 1);
    }
    trainer->n_parameters = (int64_t)t->n_gradients;
}

/* The computation of a batch, once for training, evaluation and measuring. */
static double mli_trainer_forward(ml_trainer *trainer, int n_tokens, const int32_t *targets, float divisor,
                                  ml_tensor *log_probs) {
    ml_trainer_private *t = trainer->private_part;
    mli_graph *g = &t->graph;
    ml_tensor hidden, logits;
    mli_matrix_use use;
    mli_release(g, 0);
    g->newest = NULL;
    g->lora = t->desc.lora ? &t->lora : NULL;
    hidden = mli_network(g, &t->view, t->tokens, n_tokens, &t->rows, t->rope, NULL);
    if (!t->desc.head)
        return mli_cross_entropy(g, hidden, *mli_weight(&t->view, MLI_OUTPUT, 0), targets, divisor);
    if (mli_measuring(g)) t->rows.n_rows = t->desc.max_rows; /* the most that the head may read */
    hidden = mli_pool(g, hidden, &t->rows, t->desc.pooling);
    if (g->taping)
        mli_dropout(g, hidden, t->desc.dropout,
                    t->desc.seed * 0x9e3779b97f4a7c15u + ++t->passes * 0x94d049bb133111ebu);
    memset(&use, 0, sizeof use);
    use.w = trainer->head[0];
    logits = mli_new(g, hidden.rows, use.w.rows);
    mli_linears(g, hidden, &use, &logits, 1);
    mli_bias(g, logits, trainer->head[1]);
    *log_probs = logits;
    return mli_nll(g, logits, targets, divisor);
}

/* Runs the largest batch without memory, to learn what it needs. */
static void mli_trainer_measure(ml_trainer *trainer) {
    ml_trainer_private *t = trainer->private_part;
    int32_t start[2];
    ml_tensor log_probs;
    start[0] = 0;
    start[1] = t->desc.max_row;
    memset(&t->graph, 0, sizeof t->graph);
    t->graph.threads = &t->desc.threads;
    t->graph.taping = 1;
    t->graph.checkpointing = t->desc.checkpointing;
    t->rows.start = start;
    t->rows.n_rows = 1;
    t->rows.past = 0;
    mli_trainer_forward(trainer, t->desc.max_tokens, NULL, 1, &log_probs);
    t->graph.size =
        t->graph.used > SIZE_MAX - t->graph.recompute ? SIZE_MAX : t->graph.used + t->graph.recompute;
    t->graph.size = MLI_MAX(t->graph.size, t->graph.peak);
}

/* Lays the trainer out in memory, itself first; with NULL only counts. Returns the bytes, SIZE_MAX on overflow. */
static size_t mli_trainer_layout(ml_trainer *trainer, unsigned char *memory) {
    ml_trainer_private *t = trainer->private_part;
    const ml_config *c = &t->model->config;
    size_t used = 0, hd = (size_t)(c->dim / c->n_heads), tokens = (size_t)t->desc.max_tokens, i;
    float *moments;
    mli_carve(memory, &used, 1, sizeof *trainer);
    mli_carve(memory, &used, 1, sizeof *t);
    t->tensors = (ml_tensor *)mli_carve(memory, &used, (size_t)t->model->n_tensors, sizeof *t->tensors);
    t->lora_tensors = (ml_tensor *)mli_carve(
        memory, &used, t->desc.lora ? (size_t)t->desc.lora->n_tensors : 0, sizeof *t->lora_tensors);
    mli_list_trained(trainer, t);
    t->trained = (mli_trained *)mli_carve(memory, &used, (size_t)t->n_trained, sizeof *t->trained);
    t->pieces = (mli_piece_of *)mli_carve(memory, &used, (size_t)t->n_pieces, sizeof *t->pieces);
    t->tokens = (int32_t *)mli_carve(memory, &used, tokens, sizeof *t->tokens);
    t->targets = (int32_t *)mli_carve(memory, &used, tokens, sizeof *t->targets);
    t->row_start = (int32_t *)mli_carve(memory, &used, (size_t)t->desc.max_rows + 1, sizeof *t->row_start);
    t->rope = (float *)mli_carve(memory, &used, (size_t)t->desc.max_row, hd * sizeof *t->rope);
    t->gradients = (float *)mli_carve(memory, &used, t->n_gradients, sizeof *t->gradients);
    moments = (float *)mli_carve(memory, &used, t->n_gradients, 2 * sizeof *moments);
    t->graph.memory = (unsigned char *)mli_carve(memory, &used, t->graph.size, 1);
    t->graph.work = mli_carve(memory, &used, t->graph.work_size, 1);
    if (memory) {
        mli_list_trained(trainer, t);
        for (i = 0; i < 2 * t->n_gradients; i++) moments[i] = 0;
        t->trained[0].m = moments;
    }
    return used;
}

/* Gives every trained tensor its gradient, its moments and its pieces. */
static void mli_trainer_deal_out(ml_trainer_private *t) {
    float *grad = t->gradients, *moments = t->trained[0].m;
    int i, n_pieces = 0;
    for (i = 0; i < t->n_trained; i++) {
        mli_trained *to = &t->trained[i];
        size_t n = mli_numbers(to->t), begin;
        to->t->grad = grad;
        to->m = moments;
        to->v = moments + n;
        grad += n;
        moments += 2 * n;
        for (begin = 0; begin < n; begin += MLI_STEP_NUMBERS) {
            t->pieces[n_pieces].of = to;
            t->pieces[n_pieces].begin = begin;
            t->pieces[n_pieces++].n = MLI_MIN(MLI_STEP_NUMBERS, n - begin);
        }
    }
}

/* A trainer on the caller's stack that knows its layout; the private part is the caller's, too. */
static ml_result mli_trainer_plan(const ml_model *model, const ml_trainer_desc *desc, ml_trainer *trainer,
                                  ml_trainer_private *t, size_t *size, ml_error *error) {
    ml_result result;
    memset(trainer, 0, sizeof *trainer);
    memset(t, 0, sizeof *t);
    trainer->private_part = t;
    if ((result = mli_trainer_resolve(model, desc, &t->desc, error)) != ML_OK) return result;
    t->model = (ml_model *)(uintptr_t)model; /* ml_trainer_size only reads it */
    t->view = *model;
    if (t->desc.lora) t->lora = *t->desc.lora;
    if (t->desc.head) {
        trainer->head[0] = t->desc.head->weight;
        trainer->head[1] = t->desc.head->bias;
    }
    mli_trainer_measure(trainer);
    *size = mli_trainer_layout(trainer, NULL);
    if (*size > SIZE_MAX - 2 * MLI_ALIGN)
        return mli_fail(error, ML_ERROR_MEMORY,
                        "training at this size takes more memory than can be addressed");
    *size += MLI_ALIGN; /* room to align any buffer */
    return ML_OK;
}

ML_DEF ml_result ml_trainer_size(const ml_model *model, const ml_trainer_desc *desc, size_t *size,
                                 ml_error *error) {
    ml_trainer trainer;
    ml_trainer_private part;
    ml_result result;
    if (!size) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_size: size is NULL");
    result = mli_trainer_plan(model, desc, &trainer, &part, size, error);
    return result ? result : mli_ok(error);
}

/* The tables of tensors, with the gradients that a tied output shares with the embedding. */
static void mli_trainer_tables(ml_trainer *trainer, ml_trainer_private *t) {
    memcpy(t->tensors, t->model->tensors, (size_t)t->model->n_tensors * sizeof *t->tensors);
    if (t->desc.lora) {
        memcpy(t->lora_tensors, t->desc.lora->tensors,
               (size_t)t->desc.lora->n_tensors * sizeof *t->lora_tensors);
        t->lora.tensors = trainer->lora = t->lora_tensors;
    }
    mli_trainer_deal_out(t);
    if (t->model->config.tied_output) t->tensors[MLI_OUTPUT].grad = t->tensors[MLI_TOKEN_EMBEDDING].grad;
    t->view.tensors = trainer->model = t->tensors;
}

ML_DEF ml_result ml_trainer_init(ml_model *model, const ml_trainer_desc *desc, void *memory, size_t size,
                                 ml_trainer **out, ml_error *error) {
    ml_trainer planned, *trainer;
    ml_trainer_private part, *t;
    uintptr_t base = mli_align_up((uintptr_t)memory);
    size_t need, used = 0;
    ml_result result = mli_trainer_plan(model, desc, &planned, &part, &need, error);
    if (result) return result;
    if (!memory || !out)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_init: memory or trainer is NULL");
    if (base - (uintptr_t)memory > size || need - MLI_ALIGN > size - (size_t)(base - (uintptr_t)memory))
        return mli_fail(error, ML_ERROR_MEMORY,
                        "trainer: the buffer has %z bytes; it takes %z (ml_trainer_size)", size, need);
    trainer = (ml_trainer *)mli_carve((unsigned char *)base, &used, 1, sizeof *trainer);
    t = (ml_trainer_private *)mli_carve((unsigned char *)base, &used, 1, sizeof *t);
    *trainer = planned;
    *t = part;
    trainer->private_part = t;
    t->graph.threads = &t->desc.threads;
    mli_trainer_layout(trainer, (unsigned char *)base);
    mli_trainer_tables(trainer, t);
    mli_rope_table(t->rope, t->desc.max_row, &model->config);
    ml_zero_gradients(trainer);
    *out = trainer;
    return mli_ok(error);
}

ML_DEF ml_result ml_trainer_new(ml_model *model, const ml_trainer_desc *desc, const ml_allocator *given,
                                ml_trainer **trainer, ml_error *error) {
    ml_allocator allocator;
    void *memory;
    size_t size;
    ml_result result;
    if (!trainer) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_new: trainer is NULL");
    *trainer = NULL;
    if ((result = mli_resolve_allocator(given, &allocator, error)) != ML_OK ||
        (result = ml_trainer_size(model, desc, &size, error)) != ML_OK)
        return result;
    memory = allocator.alloc(size, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a trainer of %z bytes", size);
    result = ml_trainer_init(model, desc, memory, size, trainer, error);
    if (result) {
        mli_free(&allocator, memory);
        return result;
    }
    (*trainer)->private_part->allocator = allocator;
    (*trainer)->private_part->block = memory;
    return ML_OK;
}

ML_DEF void ml_trainer_free(ml_trainer *trainer) {
    if (trainer && trainer->private_part->block) {
        ml_allocator allocator = trainer->private_part->allocator;
        mli_free(&allocator, trainer->private_part->block);
    }
}

ML_DEF void ml_zero_gradients(ml_trainer *trainer) {
    ml_trainer_private *t = trainer->private_part;
    memset(t->gradients, 0, t->n_gradients * sizeof *t->gradients);
}

/* ---- a batch ---- */

/* Checks the examples, and copies what the tape will need. *counted: how many targets or labels count. */
static ml_result mli_take_examples(ml_trainer_private *t, const ml_examples *e, int need_targets,
                                   int *counted, ml_error *error) {
    const int32_t *given = t->desc.head ? e->labels : e->targets;
    int n_rows = e->row_start ? e->n_rows : 1, n = t->desc.head ? n_rows : e->n_tokens, r, i;
    int most = t->desc.head ? t->desc.head->n_classes : t->model->config.vocab_size;
    ml_result result;
    if (!e->tokens || e->n_tokens < 1 || e->n_tokens > t->desc.max_tokens || n_rows < 1 ||
        n_rows > t->desc.max_rows)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "examples: %d tokens in %d rows; the trainer is for up to %d in %d", e->n_tokens,
                        n_rows, t->desc.max_tokens, t->desc.max_rows);
    if (!given && need_targets)
        return mli_fail(error, ML_ERROR_ARGUMENT, "examples: there are no %s",
                        t->desc.head ? "labels" : "targets");
    for (r = 0; r <= n_rows; r++) t->row_start[r] = e->row_start ? e->row_start[r] : r * e->n_tokens;
    if (t->row_start[0] != 0 || t->row_start[n_rows] != e->n_tokens)
        return mli_fail(error, ML_ERROR_ARGUMENT, "examples: row_start does not run from 0 to n_tokens");
    for (r = 0; r < n_rows; r++) {
        int length;
        if (t->row_start[r + 1] <= t->row_start[r] || t->row_start[r + 1] > e->n_tokens)
            return mli_fail(error, ML_ERROR_ARGUMENT, "examples: row %d is empty or runs backwards", r);
        length = t->row_start[r + 1] - t->row_start[r];
        if (length > t->desc.max_row)
            return mli_fail(error, ML_ERROR_CONTEXT,
                            "examples: row %d has %d tokens; the trainer's max_row is %d", r, length,
                            t->desc.max_row);
    }
    if ((result = mli_check_tokens(t->model, e->tokens, e->n_tokens, error)) != ML_OK) return result;
    for (i = 0, *counted = 0; given && i < n; i++) {
        if (given[i] >= most)
            return mli_fail(error, ML_ERROR_ARGUMENT, "examples: %s %d is %d, not below %d",
                            t->desc.head ? "label" : "target", i, (int)given[i], most);
        t->targets[i] = given[i];
        *counted += given[i] >= 0;
    }
    memcpy(t->tokens, e->tokens, (size_t)e->n_tokens * sizeof *t->tokens);
    t->rows.start = t->row_start;
    t->rows.n_rows = n_rows;
    t->rows.past = 0;
    return ML_OK;
}

static ml_result mli_run_examples(ml_trainer *trainer, const ml_examples *e, int taping, float *loss,
                                  ml_error *error) {
    ml_trainer_private *t = trainer->private_part;
    int counted = 0;
    float divisor;
    double sum;
    ml_tensor log_probs;
    ml_result result = mli_take_examples(t, e, taping || !t->desc.head, &counted, error);
    t->graph.newest = NULL; /* whatever was recorded is gone */
    if (result) return result;
    divisor = e->divisor > 0 ? e->divisor : (float)MLI_MAX(counted, 1);
    t->graph.taping = taping;
    sum = mli_trainer_forward(trainer, e->n_tokens, t->desc.head && !e->labels ? NULL : t->targets, divisor,
                              &log_probs);
    t->graph.taping = 0;
    if (t->desc.head && e->log_probs)
        memcpy(e->log_probs, log_probs.data, mli_numbers(&log_probs) * sizeof(float));
    if (loss) *loss = (float)sum;
    if (sum - sum != 0) {
        t->graph.newest = NULL;
        if (taping) ml_zero_gradients(trainer);
        return mli_fail(error, ML_ERROR_NUMBER,
                        "the loss is not finite (a learning rate too high, or a broken model?)");
    }
    return mli_ok(error);
}

ML_DEF ml_result ml_train(ml_trainer *trainer, const ml_examples *examples, float *loss, ml_error *error) {
    if (!trainer || !examples)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_train: trainer or examples is NULL");
    return mli_run_examples(trainer, examples, 1, loss, error);
}

ML_DEF ml_result ml_evaluate(ml_trainer *trainer, const ml_examples *examples, float *loss, ml_error *error) {
    if (!trainer || !examples)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_evaluate: trainer or examples is NULL");
    return mli_run_examples(trainer, examples, 0, loss, error);
}

ML_DEF ml_result ml_backward(ml_trainer *trainer, ml_error *error) {
    mli_graph *g;
    if (!trainer) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_backward: trainer is NULL");
    g = &trainer->private_part->graph;
    if (!g->newest)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_backward: nothing is recorded since the last time");
    mli_run_backward(g, NULL);
    g->taping = 0;
    return mli_ok(error);
}

/* ---- AdamW ---- */

typedef struct mli_step_job {
    ml_trainer_private *t;
    int n_tasks;
    float clip;        /* what gradients are multiplied by */
    float lr, head_lr; /* of this step */
    double c1, c2;     /* 1 - beta^t */
} mli_step_job;

static void mli_square_sum_task(void *arg, int index) {
    const mli_step_job *job = (const mli_step_job *)arg;
    size_t begin, end, i;
    mli_share((size_t)job->t->n_pieces, 1, job->n_tasks, index, &begin, &end);
    for (; begin < end; begin++) {
        mli_piece_of *piece = &job->t->pieces[begin];
        const float *grad = piece->of->t->grad + piece->begin;
        piece->square_sum = 0;
        for (i = 0; i < piece->n; i += 1024) {
            size_t n = MLI_MIN(1024, piece->n - i);
            piece->square_sum += (double)mli_dot(grad + i, grad + i, n);
        }
    }
}

/* One piece of one tensor. w, m, v and g are read and written once: it is memory that takes the time. */
static void mli_adamw_piece(const mli_step_job *job, const mli_piece_of *piece) {
    const ml_adamw *a = &job->t->desc.adamw;
    const mli_trained *of = piece->of;
    float *w = (float *)of->t->data + piece->begin, *g = of->t->grad + piece->begin;
    float *m = of->m + piece->begin, *v = of->v + piece->begin;
    float lr = of->is_head ? job->head_lr : job->lr, decay = of->decays ? lr * a->weight_decay : 0.0f;
    int pytorch = a->form == ML_ADAMW_PYTORCH;
    mli_v clip = mli_v_set(job->clip), b1 = mli_v_set(a->beta1), b2 = mli_v_set(a->beta2),
          eps = mli_v_set(a->eps);
    mli_v b1_rest = mli_v_set(1.0f - a->beta1), b2_rest = mli_v_set(1.0f - a->beta2);
    mli_v rate = mli_v_set(-(float)((double)lr * (pytorch ? 1.0 : sqrt(job->c2)) / job->c1));
    mli_v root = mli_v_set(pytorch ? (float)(1.0 / sqrt(job->c2)) : 1.0f), keep = mli_v_set(1.0f - decay);
    size_t i, n;
    for (i = 0; i < piece->n; i += MLI_LANES) {
        mli_v gi, mi, vi, wi, step;
        n = MLI_MIN(MLI_LANES, piece->n - i);
        gi = mli_v_mul(mli_v_load_n(g + i, n), clip);
        mi = mli_v_fma(b1, mli_v_load_n(m + i, n), mli_v_mul(b1_rest, gi));
        vi = mli_v_fma(b2, mli_v_load_n(v + i, n), mli_v_mul(b2_rest, mli_v_mul(gi, gi)));
        step = mli_v_div(mi, mli_v_fma(mli_v_sqrt(vi), root, eps));
        wi = mli_v_load_n(w + i, n);
        if (pytorch) wi = mli_v_mul(wi, keep);
        wi = mli_v_fma(rate, step, wi);
        if (!pytorch) wi = mli_v_mul(wi, keep);
        mli_v_store_n(w + i, wi, n);
        mli_v_store_n(m + i, mi, n);
        mli_v_store_n(v + i, vi, n);
        mli_v_store_n(g + i, mli_v_zero(), n);
    }
}

static void mli_adamw_task(void *arg, int index) {
    const mli_step_job *job = (const mli_step_job *)arg;
    size_t begin, end;
    mli_share((size_t)job->t->n_pieces, 1, job->n_tasks, index, &begin, &end);
    for (; begin < end; begin++) mli_adamw_piece(job, &job->t->pieces[begin]);
}

ML_DEF ml_result ml_step(ml_trainer *trainer, ml_error *error) {
    mli_step_job job;
    ml_trainer_private *t;
    const ml_adamw *a;
    double square_sum = 0, norm;
    float factor;
    int i;
    if (!trainer) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_step: trainer is NULL");
    job.t = t = trainer->private_part;
    a = &t->desc.adamw;
    t->graph.newest = NULL; /* the weights that it was recorded with are about to change */
    job.n_tasks = mli_task_count(&t->desc.threads, t->n_gradients, 1 << 14);
    mli_parallel(&t->desc.threads, job.n_tasks, mli_square_sum_task, &job);
    for (i = 0; i < t->n_pieces; i++) square_sum += t->pieces[i].square_sum;
    norm = sqrt(square_sum);
    if (norm - norm != 0)
        return mli_fail(error, ML_ERROR_NUMBER, "the gradient of step %l is not finite", trainer->step + 1);
    job.clip = a->clip > 0 ? (float)MLI_MIN(1.0, (double)a->clip / (norm + 1e-6)) : 1.0f;
    factor = ml_schedule_at(&t->desc.schedule, trainer->step);
    trainer->step++;
    job.lr = a->lr * factor;
    job.head_lr = a->head_lr * factor;
    job.c1 = 1.0 - pow((double)a->beta1, (double)trainer->step);
    job.c2 = 1.0 - pow((double)a->beta2, (double)trainer->step);
    mli_parallel(&t->desc.threads, job.n_tasks, mli_adamw_task, &job);
    trainer->learning_rate = job.lr;
    trainer->gradient_norm = (float)norm;
    return mli_ok(error);
}

#endif /* ML_NO_TRAINING */

/* ==== >>tokenizer ====
   A vocabulary numbers its pieces 0 .. V-1. Encoding cuts text into characters and then joins neighbours,
   always the two whose joint piece has the highest score, the leftmost two on a tie, until no two neighbours
   make a piece. What is then no piece of its own is spelled in byte pieces. This is SentencePiece's BPE, id
   for id, with one difference that makes it lossless: bytes that are no valid UTF-8 become byte pieces, one
   each, where SentencePiece puts U+FFFD. What does not come back is U+2581 in the text itself: SentencePiece
   reads it as a space, and so it is here.

   Joining takes O(n log n) by a priority queue of the pairs that could be joined next. Two things keep the
   queue small and in the cache. Text falls apart, exactly, wherever no piece holds the two bytes that meet
   there; in English that is nearly every start of a word. And each stretch is finished before the next one is
   begun. */

#define MLI_MAX_PIECES 1048576 /* of a vocabulary */
#define MLI_MAX_PIECE 1024     /* bytes of one piece: bounds the time a lookup takes */
#define MLI_MAX_PROBES 256     /* slots looked at for one piece; honest vocabularies stay below 100 */

/* SentencePiece writes the space as U+2581, so that spaces are seen in its lists of pieces. Here a piece is
   held twice: as written, and as the text it stands for, in which the mark is a plain space again, a byte
   piece its byte, a control piece nothing. Decoding is then copying, and encoding compares with the text at
   hand as it is. */
#define MLI_MARK "\xE2\x96\x81"
#define MLI_MARK_SIZE 3
#define MLI_UNKNOWN_TEXT " \xE2\x81\x87 " /* U+2047, as SentencePiece shows an unknown piece */
#define MLI_UNKNOWN_TEXT_SIZE 5

typedef struct mli_piece_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
} mli_piece_slot;

struct ml_tokenizer {
    ml_allocator allocator;
    int n_pieces;                       /* V */
    int32_t bos, eos, unknown, padding; /* -1: there is none */
    int adds_space_prefix;              /* a space is put in front of the text before it is encoded */
    int removes_extra_spaces;     /* first, spaces at both ends are dropped, and runs of them become one */
    int adds_bos, adds_eos;       /* what whoever made the file meant users to pass as flags */
    int has_bytes;                /* all 256 byte pieces are there */
    int32_t space;                /* the piece of a single space, or -1 */
    size_t longest, longest_user; /* bytes of text of the longest piece; of the longest user-defined one */
    uint32_t *piece_at, *text_at; /* (V + 1) where each begins in: */
    char *pieces, *texts;
    float *scores;         /* (V) */
    unsigned char *kinds;  /* (V) ml_piece_kind */
    mli_piece_slot *slots; /* (slot_mask + 1) hash table from text to id */
    uint32_t slot_mask;
    int32_t byte_ids[256];
    unsigned char joins[256 * 256 / 8]; /* bit (a, b): some piece has byte b right after byte a */
    unsigned char user_starts[256 / 8]; /* bit a: some user-defined piece begins with byte a */
};

/* ---- building ---- */

typedef struct mli_piece {
    const unsigned char *bytes;
    size_t length;
    float score;
    int kind;
} mli_piece;

/* What a reader of some file format hands over. `get` is called for ids 0, 1, 2 ... V-1 in turn, twice. */
typedef struct mli_vocabulary {
    ml_result (*get)(void *context, int32_t id, mli_piece *piece, ml_error *error);
    void *context;
    size_t n_pieces;
    int has_plain_spaces; /* pieces are written with ' ' where SentencePiece has U+2581 */
    int32_t bos, eos, unknown, padding;
    int adds_space_prefix, removes_extra_spaces, adds_bos, adds_eos;
} mli_vocabulary;

static int mli_bit(const unsigned char *bits, unsigned index) { return bits[index >> 3] >> (index & 7) & 1; }

static void mli_set_bit(unsigned char *bits, unsigned index) {
    bits[index >> 3] = (unsigned char)(bits[index >> 3] | 1u << (index & 7));
}

static int mli_hex_digit(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The value of a byte piece, written <0x00> to <0xFF>; -1 for anything else. */
static int mli_byte_of_piece(const unsigned char *piece, size_t length) {
    int high, low;
    if (length != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    high = mli_hex_digit(piece[3]);
    low = mli_hex_digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Can encoding make this piece out of characters? */
static int mli_is_text_kind(int kind) {
    return kind == ML_PIECE_NORMAL || kind == ML_PIECE_USER_DEFINED || kind == ML_PIECE_UNUSED;
}

/* The next n bytes are one U+2581. */
static int mli_is_mark(const unsigned char *p, size_t n) {
    return n >= MLI_MARK_SIZE && memcmp(p, MLI_MARK, 3) == 0;
}

/* Copies a piece as SentencePiece writes it; returns its length. With to NULL it only counts. */
static size_t mli_write_piece(const mli_vocabulary *vocabulary, const mli_piece *piece, char *to) {
    size_t i, n = 0;
    for (i = 0; i < piece->length; i++) {
        if (vocabulary->has_plain_spaces && piece->bytes[i] == ' ') {
            if (to) memcpy(to + n, MLI_MARK, MLI_MARK_SIZE);
            n += MLI_MARK_SIZE;
        } else {
            if (to) to[n] = (char)piece->bytes[i];
            n++;
        }
    }
    return n;
}

/* Copies the text that a piece stands for; returns its length. With to NULL it only counts. */
static size_t mli_write_text(const mli_piece *piece, char *to) {
    size_t i = 0, n = 0;
    if (piece->kind == ML_PIECE_CONTROL) return 0;
    if (piece->kind == ML_PIECE_UNKNOWN) {
        if (to) memcpy(to, MLI_UNKNOWN_TEXT, MLI_UNKNOWN_TEXT_SIZE);
        return MLI_UNKNOWN_TEXT_SIZE;
    }
    if (piece->kind == ML_PIECE_BYTE) {
        if (to) to[0] = (char)mli_byte_of_piece(piece->bytes, piece->length);
        return 1;
    }
    while (i < piece->length) {
        int is_mark = mli_is_mark(piece->bytes + i, piece->length - i);
        if (to) to[n] = is_mark ? ' ' : (char)piece->bytes[i];
        n++;
        i += is_mark ? MLI_MARK_SIZE : 1;
    }
    return n;
}

static ml_result mli_check_piece(const mli_piece *piece, int32_t id, ml_error *error) {
    if (piece->kind < ML_PIECE_NORMAL || piece->kind > ML_PIECE_BYTE)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer piece %d is of kind %d, which does not exist",
                        (int)id, piece->kind);
    if (piece->score != piece->score)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer piece %d has a score that is no number", (int)id);
    if (piece->kind == ML_PIECE_BYTE && mli_byte_of_piece(piece->bytes, piece->length) < 0)
        return mli_fail(error, ML_ERROR_FORMAT,
                        "tokenizer piece %d is a byte, but not written <0x00> to <0xFF>", (int)id);
    return ML_OK;
}

/* First pass: how many bytes the pieces and their texts take. */
static ml_result mli_measure_pieces(const mli_vocabulary *vocabulary, size_t *piece_bytes, size_t *text_bytes,
                                    ml_error *error) {
    int32_t id;
    *piece_bytes = *text_bytes = 0;
    if (vocabulary->n_pieces == 0) return mli_fail(error, ML_ERROR_FORMAT, "the tokenizer has no pieces");
    if (vocabulary->n_pieces > MLI_MAX_PIECES)
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "the tokenizer has %z pieces; at most %d are supported",
                        vocabulary->n_pieces, MLI_MAX_PIECES);
    for (id = 0; id < (int32_t)vocabulary->n_pieces; id++) {
        mli_piece piece;
        size_t length;
        ml_result result = vocabulary->get(vocabulary->context, id, &piece, error);
        if (!result) result = mli_check_piece(&piece, id, error);
        if (result) return result;
        length = piece.length > MLI_MAX_PIECE ? piece.length : mli_write_piece(vocabulary, &piece, NULL);
        if (length > MLI_MAX_PIECE)
            return mli_fail(error, ML_ERROR_UNSUPPORTED,
                            "tokenizer piece %d has %z bytes; at most %d are supported", (int)id, length,
                            MLI_MAX_PIECE);
        *piece_bytes += length; /* at most 2^20 * 2^10: no overflow */
        *text_bytes += mli_write_text(&piece, NULL);
    }
    return ML_OK;
}

/* FNV-1a (Fowler, Noll, Vo), which takes a byte at a time: a longer text goes on from a shorter one's hash.
   */
#define MLI_HASH_SEED 2166136261u
static uint32_t mli_hash_byte(uint32_t hash, unsigned char c) { return (hash ^ c) * 16777619u; }

static uint32_t mli_hash(const unsigned char *text, size_t n) {
    uint32_t hash = MLI_HASH_SEED;
    size_t i;
    for (i = 0; i < n; i++) hash = mli_hash_byte(hash, text[i]);
    return hash;
}

/* The slot where text stands or would stand: the first of the free ones from where its hash points. No piece
   is put further away than MLI_MAX_PROBES, so that files with pieces chosen to crowd together cost no more
   than that; NULL when all these slots are taken by others. */
static mli_piece_slot *mli_find_slot(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n,
                                     uint32_t hash) {
    uint32_t i, begin = hash ^ hash >> 15;
    for (i = 0; i < MLI_MAX_PROBES; i++) {
        mli_piece_slot *slot = &tokenizer->slots[(begin + i) & tokenizer->slot_mask];
        uint32_t at;
        if (slot->id < 0) return slot;
        if (slot->hash != hash) continue;
        at = tokenizer->text_at[slot->id];
        if (tokenizer->text_at[slot->id + 1] - at == n && memcmp(tokenizer->texts + at, text, n) == 0)
            return slot;
    }
    return NULL;
}

/* The id of the piece with this text, or -1; first with its hash at hand. */
static int32_t mli_find_hashed(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n,
                               uint32_t hash) {
    const mli_piece_slot *slot = mli_find_slot(tokenizer, text, n, hash);
    return slot ? slot->id : -1;
}

static int32_t mli_find_piece(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n) {
    return n > tokenizer->longest ? -1 : mli_find_hashed(tokenizer, text, n, mli_hash(text, n));
}

/* Enters a piece into the table and the bit sets. Of equal pieces the first counts. */
static ml_result mli_index_piece(ml_tokenizer *tokenizer, int32_t id, ml_error *error) {
    const unsigned char *text = (const unsigned char *)tokenizer->texts + tokenizer->text_at[id];
    size_t i, n = tokenizer->text_at[id + 1] - tokenizer->text_at[id];
    uint32_t hash = mli_hash(text, n);
    mli_piece_slot *slot = mli_find_slot(tokenizer, text, n, hash);
    if (!slot)
        return mli_fail(error, ML_ERROR_FORMAT, "the tokenizer's pieces are chosen to collide (piece %d)",
                        (int)id);
    if (slot->id >= 0) return ML_OK;
    slot->hash = hash;
    slot->id = id;
    for (i = 0; i + 1 < n; i++) mli_set_bit(tokenizer->joins, text[i] * 256u + text[i + 1]);
    tokenizer->longest = MLI_MAX(tokenizer->longest, n);
    if (tokenizer->kinds[id] == ML_PIECE_USER_DEFINED) {
        mli_set_bit(tokenizer->user_starts, text[0]);
        tokenizer->longest_user = MLI_MAX(tokenizer->longest_user, n);
    }
    return ML_OK;
}

/* Second pass: copies the pieces, and enters those that text can become. */
static ml_result mli_fill_pieces(ml_tokenizer *tokenizer, const mli_vocabulary *vocabulary, ml_error *error) {
    size_t piece_end = 0, text_end = 0;
    int32_t id;
    for (id = 0; id < tokenizer->n_pieces; id++) {
        mli_piece piece;
        size_t piece_size, text_size;
        ml_result result = vocabulary->get(vocabulary->context, id, &piece, error);
        if (result) return result;
        piece_size = mli_write_piece(vocabulary, &piece, tokenizer->pieces + piece_end);
        piece.bytes = (const unsigned char *)tokenizer->pieces + piece_end;
        piece.length = piece_size;
        text_size = mli_write_text(&piece, tokenizer->texts + text_end);
        tokenizer->scores[id] = piece.score;
        tokenizer->kinds[id] = (unsigned char)piece.kind;
        tokenizer->piece_at[id + 1] = (uint32_t)(piece_end += piece_size);
        tokenizer->text_at[id + 1] = (uint32_t)(text_end += text_size);
        if (piece.kind == ML_PIECE_BYTE) {
            int32_t *of_byte = &tokenizer->byte_ids[mli_byte_of_piece(piece.bytes, piece.length)];
            if (*of_byte < 0) *of_byte = id;
        }
        /* a piece that is written with a plain space is never met: text has marks in its place */
        if (!mli_is_text_kind(piece.kind) || !piece_size || memchr(piece.bytes, ' ', piece_size)) continue;
        result = mli_index_piece(tokenizer, id, error);
        if (result) return result;
    }
    return ML_OK;
}

/* Everything a tokenizer holds is one allocation: the struct, then its arrays from the widest elements to
   bytes. */
static ml_result mli_allocate_tokenizer(const mli_vocabulary *vocabulary, size_t piece_bytes,
                                        size_t text_bytes, const ml_allocator *allocator, ml_tokenizer **out,
                                        ml_error *error) {
    size_t v = vocabulary->n_pieces, n_slots = 4, size;
    ml_tokenizer *tokenizer;
    unsigned char *at;
    while (n_slots < 2 * v) n_slots *= 2;
    /* at most 2^20 pieces of 2^10 bytes: below 2^32, which a 32-bit size_t may just miss */
    if (!mli_add_size(sizeof *tokenizer + n_slots * sizeof(mli_piece_slot) + (v + 1) * 8 + v * 5, piece_bytes,
                      &size) ||
        !mli_add_size(size, text_bytes, &size))
        return mli_fail(error, ML_ERROR_MEMORY, "the tokenizer does not fit into the address space");
    tokenizer = (ml_tokenizer *)mli_alloc(allocator, size, 1);
    if (!tokenizer) return mli_fail(error, ML_ERROR_MEMORY, "no memory for a tokenizer of %z bytes", size);
    at = (unsigned char *)(tokenizer + 1);
    tokenizer->slots = (mli_piece_slot *)(void *)at;
    at += n_slots * sizeof(mli_piece_slot);
    tokenizer->piece_at = (uint32_t *)(void *)at;
    at += (v + 1) * sizeof(uint32_t);
    tokenizer->text_at = (uint32_t *)(void *)at;
    at += (v + 1) * sizeof(uint32_t);
    tokenizer->scores = (float *)(void *)at;
    at += v * sizeof(float);
    tokenizer->kinds = at;
    at += v;
    tokenizer->pieces = (char *)at;
    tokenizer->texts = (char *)at + piece_bytes;
    tokenizer->slot_mask = (uint32_t)(n_slots - 1);
    memset(tokenizer->slots, 0xff, n_slots * sizeof(mli_piece_slot)); /* ids -1: empty */
    memset(tokenizer->byte_ids, 0xff, sizeof tokenizer->byte_ids);
    *out = tokenizer;
    return ML_OK;
}

static ml_result mli_tokenizer_create(const mli_vocabulary *vocabulary, const ml_allocator *allocator,
                                      ml_tokenizer **out, ml_error *error) {
    ml_tokenizer *tokenizer = NULL;
    size_t piece_bytes, text_bytes;
    int i;
    ml_result result = mli_measure_pieces(vocabulary, &piece_bytes, &text_bytes, error);
    if (!result)
        result = mli_allocate_tokenizer(vocabulary, piece_bytes, text_bytes, allocator, &tokenizer, error);
    if (result) return result;
    tokenizer->allocator = *allocator;
    tokenizer->n_pieces = (int)vocabulary->n_pieces;
    tokenizer->bos = vocabulary->bos;
    tokenizer->eos = vocabulary->eos;
    tokenizer->unknown = vocabulary->unknown;
    tokenizer->adds_space_prefix = vocabulary->adds_space_prefix;
    tokenizer->removes_extra_spaces = vocabulary->removes_extra_spaces;
    tokenizer->adds_bos = vocabulary->adds_bos;
    tokenizer->adds_eos = vocabulary->adds_eos;
    result = mli_fill_pieces(tokenizer, vocabulary, error);
    if (result) {
        ml_tokenizer_free(tokenizer);
        return result;
    }
    tokenizer->has_bytes = 1;
    for (i = 0; i < 256; i++) tokenizer->has_bytes &= tokenizer->byte_ids[i] >= 0;
    tokenizer->padding = vocabulary->padding >= 0 ? vocabulary->padding : tokenizer->byte_ids[0];
    tokenizer->space = mli_find_piece(tokenizer, (const unsigned char *)" ", 1);
    *out = tokenizer;
    return mli_ok(error);
}

ML_DEF void ml_tokenizer_free(ml_tokenizer *tokenizer) {
    if (tokenizer) {
        ml_allocator allocator = tokenizer->allocator;
        mli_free(&allocator, tokenizer);
    }
}

/* ---- looking in ---- */

ML_DEF int ml_tokenizer_size(const ml_tokenizer *tokenizer) { return tokenizer->n_pieces; }
ML_DEF int32_t ml_tokenizer_bos(const ml_tokenizer *tokenizer) { return tokenizer->bos; }
ML_DEF int32_t ml_tokenizer_eos(const ml_tokenizer *tokenizer) { return tokenizer->eos; }
ML_DEF int32_t ml_tokenizer_unknown(const ml_tokenizer *tokenizer) { return tokenizer->unknown; }
ML_DEF int32_t ml_tokenizer_padding(const ml_tokenizer *tokenizer) { return tokenizer->padding; }

#ifdef MLI_SAVING /* what is saved beside the pieces */
static int mli_tokenizer_adds_space_prefix(const ml_tokenizer *tokenizer) {
    return tokenizer->adds_space_prefix;
}
static int mli_tokenizer_removes_extra_spaces(const ml_tokenizer *tokenizer) {
    return tokenizer->removes_extra_spaces;
}
static int mli_tokenizer_adds_bos(const ml_tokenizer *tokenizer) { return tokenizer->adds_bos; }
static int mli_tokenizer_adds_eos(const ml_tokenizer *tokenizer) { return tokenizer->adds_eos; }
#endif

ML_DEF const char *ml_tokenizer_piece(const ml_tokenizer *tokenizer, int32_t id, size_t *length, float *score,
                                      ml_piece_kind *kind) {
    if (length) *length = 0;
    if (score) *score = 0;
    if (kind) *kind = ML_PIECE_UNUSED;
    if (id < 0 || id >= tokenizer->n_pieces) return NULL;
    if (length) *length = tokenizer->piece_at[id + 1] - tokenizer->piece_at[id];
    if (score) *score = tokenizer->scores[id];
    if (kind) *kind = (ml_piece_kind)tokenizer->kinds[id];
    return tokenizer->pieces + tokenizer->piece_at[id];
}

/* ---- joining ---- */

/* A symbol is a stretch of text that is joined so far. It is named by the offset where it begins, and ends
   where the next one begins. */
typedef struct mli_symbol {
    int32_t next, prev; /* neighbours; the end of the text and -1 stand for none */
    int32_t pair;       /* the piece that this symbol and the next would make, or -1 */
    int32_t id;         /* this symbol's own piece; -1: not looked up yet */
    int32_t split;      /* where the right half began when it was joined of two; -1: it is a character */
} mli_symbol;

/* An entry of the queue: `left` and its next symbol can be joined at this cost. It is stale, and skipped,
   when the symbol's pair has changed since. */
typedef struct mli_join {
    uint32_t left, cost;
} mli_join;

/* A stretch of text that is encoded by itself. */
typedef struct mli_stretch {
    const ml_tokenizer *tokenizer;
    const unsigned char *text;
    int32_t length;
    mli_symbol *symbols; /* (length) used where symbols begin */
    mli_join *queue; /* (2 * length): each of fewer than `length` joins takes one entry out and puts two in */
    size_t n_queue;
} mli_stretch;

/* Maps scores to integers so that the highest score has the lowest cost. Floats sort like sign and magnitude;
   the two zeros are made one. */
static uint32_t mli_piece_cost(const ml_tokenizer *tokenizer, int32_t id) {
    uint32_t bits = mli_float_bits(tokenizer->scores[id]);
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

static uint64_t mli_join_key(const mli_join *join) { return (uint64_t)join->cost << 32 | join->left; }

/* The queue is a heap with four children to a node (Johnson 1975), which share a cache line. */
static void mli_queue_push(mli_stretch *stretch, uint32_t cost, int32_t left) {
    mli_join *queue = stretch->queue, join;
    size_t i = stretch->n_queue++;
    ML_ASSERT(i < 2 * (size_t)stretch->length);
    join.cost = cost;
    join.left = (uint32_t)left;
    while (i > 0 && mli_join_key(&join) < mli_join_key(&queue[(i - 1) / 4])) {
        queue[i] = queue[(i - 1) / 4];
        i = (i - 1) / 4;
    }
    queue[i] = join;
}

static mli_join mli_queue_pop(mli_stretch *stretch) {
    mli_join *queue = stretch->queue, top = queue[0], last = queue[--stretch->n_queue];
    size_t i = 0, n = stretch->n_queue;
    uint64_t last_key = mli_join_key(&last);
    while (4 * i + 1 < n) {
        size_t child = 4 * i + 1, end = MLI_MIN(child + 4, n), least = child;
        uint64_t least_key = mli_join_key(&queue[child]);
        for (child++; child < end; child++) {
            uint64_t key = mli_join_key(&queue[child]);
            if (key < least_key) {
                least = child;
                least_key = key;
            }
        }
        if (last_key <= least_key) break;
        queue[i] = queue[least];
        i = least;
    }
    queue[i] = last;
    return top;
}

/* Looks up what symbol `left` and its neighbour make, and queues it. */
static void mli_consider(mli_stretch *stretch, int32_t left) {
    mli_symbol *symbol = &stretch->symbols[left];
    int32_t right = symbol->next, end;
    symbol->pair = -1;
    if (right == stretch->length) return;
    end = stretch->symbols[right].next;
    symbol->pair = mli_find_piece(stretch->tokenizer, stretch->text + left, (size_t)(end - left));
    if (symbol->pair >= 0) mli_queue_push(stretch, mli_piece_cost(stretch->tokenizer, symbol->pair), left);
}

static void mli_link_symbols(mli_stretch *stretch, int32_t left, int32_t right) {
    stretch->symbols[left].next = right;
    if (right < stretch->length) stretch->symbols[right].prev = left;
}

/* Joins until nothing is left to join. The right half's slot is free afterwards and remembers how the left
   half was made, so that a join can be undone. */
static void mli_join_symbols(mli_stretch *stretch) {
    mli_symbol *symbols = stretch->symbols;
    while (stretch->n_queue) {
        mli_join best = mli_queue_pop(stretch);
        int32_t left = (int32_t)best.left, id = symbols[left].pair, right = symbols[left].next;
        if (id < 0 || mli_piece_cost(stretch->tokenizer, id) != best.cost) continue;
        mli_link_symbols(stretch, left, symbols[right].next);
        symbols[right].prev = symbols[left].split;
        symbols[right].pair = -1;
        symbols[left].split = right;
        symbols[left].id = id;
        if (symbols[left].prev >= 0) mli_consider(stretch, symbols[left].prev);
        mli_consider(stretch, left);
    }
}

static void mli_undo_join(mli_stretch *stretch, int32_t left) {
    mli_symbol *symbols = stretch->symbols;
    int32_t right = symbols[left].split;
    symbols[left].split = symbols[right].prev;
    symbols[left].id = -1;
    mli_link_symbols(stretch, right, symbols[left].next);
    mli_link_symbols(stretch, left, right);
}

/* ---- encoding ---- */

typedef struct mli_encoder {
    const ml_tokenizer *tokenizer;
    const unsigned char *text; /* (n) with plain spaces, the one in front included */
    size_t n;
    int32_t *ids; /* the front of the caller's memory; behind the n_ids that are done, scratch */
    size_t n_ids;
    int was_unknown; /* the last id is the unknown one, which stands for a whole run */
} mli_encoder;

/* Per byte of text: an id is four bytes, and so is each of five numbers of its symbol and four of two queue
   entries. Ids take the place of symbols that are done with, so these nine are enough. The text itself is one
   more. */
#define MLI_ENCODE_WORDS 9

ML_DEF size_t ml_encode_size(size_t n_bytes) {
    size_t size;
    if (n_bytes > INT32_MAX - 2 || !mli_mul_size(n_bytes + 1, MLI_ENCODE_WORDS * 4 + 1, &size) ||
        !mli_add_size(size, 2 * 4, &size)) /* bos and eos */
        return SIZE_MAX;
    return size;
}

/* Bytes of the UTF-8 character at p, where n > 0 are left. A first byte without those that must follow stands
   alone. Overlong forms and surrogates need no care: no piece holds them, so they are spelled in bytes
   anyway. */
static int32_t mli_character_size(const unsigned char *p, size_t n) {
    int32_t i, size = p[0] < 0xc0 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if ((size_t)size > n) return 1;
    for (i = 1; i < size; i++)
        if ((p[i] & 0xc0) != 0x80) return 1;
    return size;
}

/* Writes the text as pieces see it, at most n + 1 bytes, and returns how many. Where extra spaces are
   removed, a mark in the text does not make the next space an extra one, but goes at the end like a space: so
   SentencePiece has it. */
static size_t mli_normalize(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n,
                            unsigned char *to) {
    int removes = tokenizer->removes_extra_spaces, is_extra = removes;
    size_t i, m = 0, begin;
    if (n && tokenizer->adds_space_prefix) to[m++] = ' ';
    begin = m;
    for (i = 0; i < n; i++) {
        int is_mark = text[i] == 0xE2 && mli_is_mark(text + i, n - i);
        if (is_mark) i += MLI_MARK_SIZE - 1;
        if (!is_extra || is_mark || text[i] != ' ') to[m++] = is_mark ? ' ' : text[i];
        is_extra = removes && text[i] == ' ';
    }
    while (removes && m > 0 && to[m - 1] == ' ') m--;
    return m > begin ? m : 0;
}

/* The length of the longest user-defined piece that text begins with, and its id; 0 when there is none. */
static size_t mli_match_user_defined(const ml_tokenizer *tokenizer, const unsigned char *text, size_t n,
                                     int32_t *id) {
    uint32_t hash = MLI_HASH_SEED;
    size_t i, length = 0;
    if (!mli_bit(tokenizer->user_starts, text[0])) return 0;
    for (i = 0; i < n && i < tokenizer->longest_user; i++) {
        int32_t found;
        hash = mli_hash_byte(hash, text[i]);
        found = mli_find_hashed(tokenizer, text, i + 1, hash);
        if (found >= 0 && tokenizer->kinds[found] == ML_PIECE_USER_DEFINED) {
            length = i + 1;
            *id = found;
        }
    }
    return length;
}

/* Appends the id of a piece, or the bytes of text that is none, or the unknown id once for a run of such
   text. */
static ml_result mli_emit(mli_encoder *encoder, const unsigned char *text, size_t n, int32_t id,
                          ml_error *error) {
    const ml_tokenizer *tokenizer = encoder->tokenizer;
    size_t i;
    if (id < 0) id = mli_find_piece(tokenizer, text, n);
    if (id >= 0) {
        encoder->ids[encoder->n_ids++] = id;
        encoder->was_unknown = 0;
    } else if (tokenizer->has_bytes) {
        for (i = 0; i < n; i++) encoder->ids[encoder->n_ids++] = tokenizer->byte_ids[text[i]];
    } else if (tokenizer->unknown < 0) {
        return mli_fail(
            error, ML_ERROR_UNSUPPORTED,
            "the tokenizer has no piece for a character (its first byte is %d), no byte pieces, and no "
            "unknown piece",
            text[0]);
    } else {
        if (!encoder->was_unknown) encoder->ids[encoder->n_ids++] = tokenizer->unknown;
        encoder->was_unknown = 1;
    }
    return ML_OK;
}

/* Cuts text from `begin` into characters, up to where nothing can be joined across; returns that end. */
static size_t mli_cut_stretch(mli_encoder *encoder, size_t begin, mli_stretch *stretch) {
    const ml_tokenizer *tokenizer = encoder->tokenizer;
    const unsigned char *text = encoder->text + begin;
    int32_t at = 0, previous = -1, ignored;
    size_t n = encoder->n - begin;
    stretch->tokenizer = tokenizer;
    stretch->text = text;
    stretch->symbols = (mli_symbol *)(void *)(encoder->ids + encoder->n_ids);
    stretch->n_queue = 0;
    for (;;) {
        mli_symbol *symbol = &stretch->symbols[at];
        symbol->prev = previous;
        symbol->id = symbol->split = -1;
        previous = at;
        at += mli_character_size(text + at, n - (size_t)at);
        symbol->next = at;
        if ((size_t)at == n || !mli_bit(tokenizer->joins, text[at - 1] * 256u + text[at]) ||
            mli_match_user_defined(tokenizer, text + at, n - (size_t)at, &ignored))
            break;
    }
    stretch->length = at;
    stretch->queue = (mli_join *)(void *)(stretch->symbols + at);
    ML_ASSERT((unsigned char *)(stretch->queue + 2 * (size_t)at) <= encoder->text);
    return begin + (size_t)at;
}

/* Encodes one stretch. An id is written over its own symbol at the latest: a symbol of k bytes takes 5 * k
   numbers and gives at most k ids. A piece that is marked unused is taken apart into what it was joined of.
   */
static ml_result mli_encode_stretch(mli_encoder *encoder, mli_stretch *stretch, ml_error *error) {
    mli_symbol *symbols = stretch->symbols;
    int32_t at, next;
    for (at = 0; at < stretch->length; at = symbols[at].next) mli_consider(stretch, at);
    mli_join_symbols(stretch);
    for (at = 0; at < stretch->length; at = next) {
        ml_result result;
        int32_t id = symbols[at].id;
        while (id >= 0 && symbols[at].split >= 0 && encoder->tokenizer->kinds[id] == ML_PIECE_UNUSED) {
            mli_undo_join(stretch, at);
            id = mli_find_piece(encoder->tokenizer, stretch->text + at, (size_t)(symbols[at].next - at));
        }
        next = symbols[at].next;
        result = mli_emit(encoder, stretch->text + at, (size_t)(next - at), id, error);
        if (result) return result;
    }
    return ML_OK;
}

static ml_result mli_encode_text(mli_encoder *encoder, ml_error *error) {
    size_t at = 0;
    while (at < encoder->n) {
        mli_stretch stretch;
        ml_result result;
        int32_t id;
        size_t length = mli_match_user_defined(encoder->tokenizer, encoder->text + at, encoder->n - at, &id);
        if (length) {
            result = mli_emit(encoder, encoder->text + at, length, id, error);
            at += length;
        } else {
            at = mli_cut_stretch(encoder, at, &stretch);
            result = mli_encode_stretch(encoder, &stretch, error);
        }
        if (result) return result;
    }
    return ML_OK;
}

ML_DEF ml_result ml_encode(const ml_tokenizer *tokenizer, const char *text, size_t n_bytes, int flags,
                           void *work, size_t work_size, const int32_t **ids, size_t *n_ids,
                           ml_error *error) {
    size_t needed = ml_encode_size(n_bytes);
    unsigned char *normal;
    mli_encoder encoder;
    ml_result result;
    if (!tokenizer || (!text && n_bytes) || !work || !ids || !n_ids || (flags & ~(ML_ADD_BOS | ML_ADD_EOS)))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_encode: an argument is NULL, or a flag is unknown");
    if ((uintptr_t)work % sizeof(int32_t))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_encode: work is not aligned for int32_t");
    if (needed == SIZE_MAX)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_encode: a text of %z bytes is too long at once",
                        n_bytes);
    if (work_size < needed)
        return mli_fail(error, ML_ERROR_MEMORY, "ml_encode: work has %z bytes, ml_encode_size says %z",
                        work_size, needed);
    if (((flags & ML_ADD_BOS) && tokenizer->bos < 0) || ((flags & ML_ADD_EOS) && tokenizer->eos < 0))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_encode: the tokenizer has no %s to add",
                        (flags & ML_ADD_BOS) && tokenizer->bos < 0 ? "bos" : "eos");
    memset(&encoder, 0, sizeof encoder);
    normal = (unsigned char *)work + needed - (n_bytes + 1); /* at the very end, which nothing else reaches */
    encoder.tokenizer = tokenizer;
    encoder.text = normal;
    encoder.n = mli_normalize(tokenizer, (const unsigned char *)text, n_bytes, normal);
    encoder.ids = (int32_t *)work;
    if (flags & ML_ADD_BOS) encoder.ids[encoder.n_ids++] = tokenizer->bos;
    result = mli_encode_text(&encoder, error);
    if (result) return result;
    if (flags & ML_ADD_EOS) encoder.ids[encoder.n_ids++] = tokenizer->eos;
    *ids = encoder.ids;
    *n_ids = encoder.n_ids;
    return mli_ok(error);
}

/* ---- decoding ---- */

/* At the start, that is first or after a control piece such as bos, the space that encoding put in front is
   dropped. It is a piece's first character, or the byte 32 where spaces have no piece. */
ML_DEF const char *ml_decode_token(const ml_tokenizer *tokenizer, int32_t previous, int32_t id,
                                   size_t *n_bytes) {
    const char *text;
    size_t n;
    int at_start, kind;
    *n_bytes = 0;
    if (id < 0 || id >= tokenizer->n_pieces) return NULL;
    text = tokenizer->texts + tokenizer->text_at[id];
    n = tokenizer->text_at[id + 1] - tokenizer->text_at[id];
    kind = tokenizer->kinds[id];
    at_start =
        previous < 0 || (previous < tokenizer->n_pieces && tokenizer->kinds[previous] == ML_PIECE_CONTROL);
    if (at_start && tokenizer->adds_space_prefix && n && text[0] == ' ' &&
        (mli_is_text_kind(kind) || (kind == ML_PIECE_BYTE && tokenizer->space < 0))) {
        text++;
        n--;
    }
    *n_bytes = n;
    return text;
}

ML_DEF ml_result ml_decode(const ml_tokenizer *tokenizer, const int32_t *ids, size_t n_ids, char *text,
                           size_t size, size_t *n_bytes, ml_error *error) {
    size_t i, n, at = 0;
    if (!tokenizer || (!ids && n_ids) || (!text && size) || !n_bytes)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_decode: an argument is NULL");
    for (i = 0; i < n_ids; i++) {
        if (!ml_decode_token(tokenizer, i ? ids[i - 1] : -1, ids[i], &n))
            return mli_fail(error, ML_ERROR_ARGUMENT,
                            "ml_decode: id %d at index %z is outside the vocabulary of %d", (int)ids[i], i,
                            tokenizer->n_pieces);
        if (!mli_add_size(at, n, &at))
            return mli_fail(error, ML_ERROR_MEMORY, "ml_decode: the text is too long");
    }
    *n_bytes = at;
    if (at > size)
        return mli_fail(error, ML_ERROR_MEMORY, "ml_decode: the text has %z bytes, the buffer %z", at, size);
    for (i = at = 0; i < n_ids; i++) {
        const char *piece = ml_decode_token(tokenizer, i ? ids[i - 1] : -1, ids[i], &n);
        if (n) memcpy(text + at, piece, n);
        at += n;
    }
    if (at < size) text[at] = 0;
    return mli_ok(error);
}

/* ==== >>generation ==== */

/* The first of the largest; 0 where there is none, for NaN. */
static int32_t mli_argmax(const float *x, int n) {
    float most = mli_max(x, (size_t)n);
    int i;
    for (i = 0; i < n; i++)
        if (x[i] == most) return i;
    return 0;
}

/* Makes tokens seen in the window less likely, each once however often it occurs (Keskar et al. 2019). */
static void mli_penalise(const ml_sampler *sampler, float *logits, int n, const int32_t *history,
                         int n_history) {
    int window = sampler->repetition_window ? sampler->repetition_window : 64, i, j;
    int first = MLI_MAX(0, n_history - window);
    for (i = first; i < n_history; i++) {
        int32_t id = history[i];
        for (j = first; j < i && history[j] != id; j++) {
        }
        if (j < i || id < 0 || id >= n) continue;
        logits[id] = logits[id] > 0 ? logits[id] / sampler->repetition_penalty
                                    : logits[id] * sampler->repetition_penalty;
    }
}

/* Restores the heap order (parent at least as likely as its children; on a tie the lower id first) below `at`. */
static void mli_sink_candidate(ml_candidate *heap, int n, int at) {
    ml_candidate moving = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) break;
        if (child + 1 < n && (heap[child + 1].p > heap[child].p ||
                              (heap[child + 1].p == heap[child].p && heap[child + 1].id < heap[child].id)))
            child++;
        if (heap[child].p < moving.p || (heap[child].p == moving.p && heap[child].id > moving.id)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* Moves the k most likely candidates, or as few as reach top_p together, to the end, most likely last.
   Popping a heap costs O(n + k log n): most often k is far below n. Returns how many were moved. */
static int mli_take_top(ml_candidate *candidates, int n, int top_k, float top_p) {
    int i, taken = 0, most = top_k > 0 ? MLI_MIN(top_k, n) : n;
    float sum = 0;
    for (i = n / 2 - 1; i >= 0; i--) mli_sink_candidate(candidates, n, i);
    while (taken < most && (taken == 0 || top_p <= 0 || sum < top_p)) {
        ml_candidate top = candidates[0];
        int last = n - 1 - taken++;
        candidates[0] = candidates[last];
        if (last) mli_sink_candidate(candidates, last, 0);
        candidates[last] = top;
        sum += top.p;
    }
    return taken;
}

/* Draws from candidates whose probabilities need not sum to 1. */
static int32_t mli_draw(ml_random *random, const ml_candidate *candidates, int n) {
    float sum = 0, target;
    int i;
    for (i = 0; i < n; i++) sum += candidates[i].p;
    target = ml_random_uniform(random) * sum;
    for (i = 0; i + 1 < n; i++) {
        target -= candidates[i].p;
        if (target < 0) break;
    }
    return candidates[i].id;
}

ML_DEF int32_t ml_sample(const ml_sampler *sampler, ml_random *random, float *logits, int n,
                         const int32_t *history, int n_history, ml_candidate *work) {
    int32_t best;
    float least;
    int i, kept = 0;
    if (sampler->repetition_penalty > 0) mli_penalise(sampler, logits, n, history, n_history);
    best = mli_argmax(logits, n);
    if (!(sampler->temperature > 0) || !random) return best;
    mli_scale(logits, 1.0f / sampler->temperature, (size_t)n);
    mli_softmax(logits, (size_t)n);
    least = MLI_MAX(sampler->min_p * logits[best], sampler->epsilon);
    least = MLI_MIN(least, logits[best]); /* the most likely always stays */
    for (i = 0; i < n; i++) {
        if (logits[i] < least) continue;
        work[kept].p = logits[i];
        work[kept++].id = i;
    }
    if (kept == 0) return best; /* only when the logits hold NaN */
    if (sampler->top_k > 0 || (sampler->top_p > 0 && sampler->top_p < 1)) {
        int taken = mli_take_top(work, kept, sampler->top_k, sampler->top_p);
        work += kept - taken;
        kept = taken;
    }
    return mli_draw(random, work, kept);
}

/* Puts the prompt's ids in front of the session's tokens, where ml_eval will want them. */
static ml_result mli_read_prompt(ml_session *s, const ml_generate_desc *desc, int *n, ml_error *error) {
    const int32_t *ids = desc->prompt_ids;
    size_t n_ids = (size_t)desc->n_prompt_ids;
    if (desc->prompt) {
        ml_result result;
        if (!s->model->tokenizer)
            return mli_fail(error, ML_ERROR_ARGUMENT,
                            "the model has no tokenizer: give one to ml_load, or prompt_ids");
        if (ml_encode_size(strlen(desc->prompt)) > s->graph.size)
            return mli_fail(error, ML_ERROR_CONTEXT,
                            "a prompt of %z bytes is too long for a context of %d tokens",
                            strlen(desc->prompt), s->max_seq_len);
        result = ml_encode(s->model->tokenizer, desc->prompt, strlen(desc->prompt), ML_ADD_BOS,
                           s->graph.memory, s->graph.size, &ids, &n_ids, error);
        if (result) return result;
    }
    if (!ids || desc->n_prompt_ids < 0 || n_ids < 1)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_generate: no prompt");
    if (n_ids > (size_t)s->max_seq_len)
        return mli_fail(error, ML_ERROR_CONTEXT, "the prompt has %z tokens; the context holds %d", n_ids,
                        s->max_seq_len);
    memmove(s->tokens, ids, n_ids * sizeof *ids);
    *n = (int)n_ids;
    return ML_OK;
}

/* Forgets the oldest half of what follows the first token (bos), and reads the other half again: its positions, and so
   all its keys, have changed. */
static ml_result mli_slide(ml_session *s, ml_error *error) {
    int kept = (s->length - 1) / 2;
    memmove(s->tokens + 1, s->tokens + s->length - kept, (size_t)kept * sizeof *s->tokens);
    s->length = 0;
    return ml_eval(s, s->tokens, kept + 1, NULL, error);
}

/* Appends one token and computes what follows it; slides first where the context is full and that is wanted. */
static ml_result mli_advance(ml_session *s, const ml_generate_desc *desc, int32_t id, const float **logits,
                             ml_error *error) {
    if (s->length == s->max_seq_len && desc->overflow == ML_OVERFLOW_SLIDE && s->max_seq_len > 1) {
        ml_result result = mli_slide(s, error);
        if (result) return result;
    }
    return ml_eval(s, &id, 1, logits, error);
}

/* eos ends a text, and so does bos: models trained on texts laid end to end mark the next one by it. */
static int mli_ends_text(const ml_tokenizer *tokenizer, int32_t id) {
    return tokenizer && (id == ml_tokenizer_eos(tokenizer) || id == ml_tokenizer_bos(tokenizer));
}

ML_DEF ml_result ml_generate(ml_session *s, const ml_generate_desc *desc, ml_generated *generated,
                             ml_error *error) {
    ml_generated out = {0, 0, ML_STOP_LENGTH};
    const ml_tokenizer *tokenizer;
    const float *logits;
    int32_t previous;
    int limit;
    ml_result result;
    if (!s || !desc) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_generate: session or desc is NULL");
    if (desc->sampler.temperature > 0 && !desc->random)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "ml_generate: a temperature above 0 needs a seeded ml_random");
    if ((result = mli_read_prompt(s, desc, &out.n_prompt, error)) != ML_OK) return result;
    tokenizer = s->model->tokenizer;
    limit = desc->max_new_tokens;
    if (limit <= 0) limit = s->max_seq_len - out.n_prompt;
    if (desc->overflow == ML_OVERFLOW_ERROR && limit > s->max_seq_len - out.n_prompt)
        return mli_fail(error, ML_ERROR_CONTEXT, "%d prompt tokens and %d more do not fit a context of %d",
                        out.n_prompt, limit, s->max_seq_len);
    s->length = 0;
    result = ml_eval(s, s->tokens, out.n_prompt, &logits, error);
    previous = result ? 0 : s->tokens[out.n_prompt - 1];
    while (!result && out.n_new < limit) {
        int32_t id = ml_sample(&desc->sampler, desc->random, s->logits, s->model->config.vocab_size,
                               s->tokens, s->length, s->candidates);
        if (mli_ends_text(tokenizer, id)) {
            out.stop = ML_STOP_END;
            break;
        }
        out.n_new++;
        if (desc->on_token) {
            size_t n_bytes = 0;
            const char *text = tokenizer ? ml_decode_token(tokenizer, previous, id, &n_bytes) : "";
            if (!desc->on_token(desc->user, id, text, n_bytes)) {
                out.stop = ML_STOP_CALLER;
                break;
            }
        }
        previous = id;
        if (out.n_new < limit) result = mli_advance(s, desc, id, &logits, error);
    }
    if (generated) *generated = out;
    return result;
}

/* ==== >>files ====
   First part: from the bytes of a file to named arrays and values. A file is taken for hostile: every number in it
   is checked before it is used, nothing is allocated by a count that the bytes present could not fill, and time
   and memory stay within a constant times the file's size. */

#if !defined(ML_NO_STDIO) && !defined(ML_NO_MMAP) && (defined(__unix__) || defined(__APPLE__))
#define MLI_MMAP
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif
#ifndef ML_NO_STDIO
#include <errno.h>
#endif

/* ---- a file as bytes ---- */

typedef struct mli_file {
    const unsigned char *data;
    size_t size;
    int is_mapped; /* else data, unless NULL, came from the allocator */
} mli_file;

#ifdef MLI_MMAP
/* Maps the file read-only: pages come from disk when they are touched, and the system may share and drop them.
   The price: a file that somebody shortens meanwhile raises SIGBUS. */
static ml_result mli_map_file(const char *path, const ml_allocator *allocator, mli_file *file,
                              ml_error *error) {
    struct stat status;
    void *memory = NULL;
    int why = 0;
    int fd = open(path, O_RDONLY | O_NONBLOCK); /* a FIFO without a writer would wait for ever */
    (void)allocator;
    memset(file, 0, sizeof *file);
    if (fd < 0) return mli_fail(error, ML_ERROR_FILE, "%s cannot be opened: %s", path, strerror(errno));
    if (fstat(fd, &status) != 0) {
        why = errno;
    } else if (!S_ISREG(status.st_mode)) {
        close(fd);
        return mli_fail(error, ML_ERROR_FILE, "%s cannot be opened: it is %s", path,
                        S_ISDIR(status.st_mode) ? "a directory" : "no regular file");
    } else if (status.st_size > 0) {
        if ((uintmax_t)status.st_size > SIZE_MAX)
            why = ENOMEM;
        else if ((memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) == MAP_FAILED)
            why = errno;
    }
    close(fd); /* the mapping stays */
    if (why) return mli_fail(error, ML_ERROR_FILE, "%s cannot be mapped: %s", path, strerror(why));
    file->data = (const unsigned char *)memory;
    file->size = (size_t)status.st_size;
    file->is_mapped = 1;
    return ML_OK;
}
#elif !defined(ML_NO_STDIO)
/* Reads the whole file. Its length is found by reading on until there is no more. */
static ml_result mli_map_file(const char *path, const ml_allocator *allocator, mli_file *file,
                              ml_error *error) {
    size_t capacity = 65536, size = 0;
    unsigned char *data = NULL;
    ml_result result = ML_OK;
    long length;
    FILE *stream = fopen(path, "rb");
    memset(file, 0, sizeof *file);
    if (!stream) return mli_fail(error, ML_ERROR_FILE, "%s cannot be opened: %s", path, strerror(errno));
    if (fseek(stream, 0, SEEK_END) == 0 && (length = ftell(stream)) > 0 && length < LONG_MAX)
        capacity = (size_t)length + 1; /* one more, so that the end is met without growing */
    rewind(stream);
    for (;;) {
        unsigned char *larger = (unsigned char *)mli_alloc(allocator, capacity, 1);
        if (!larger) {
            result = mli_fail(error, ML_ERROR_MEMORY, "no memory for %z bytes of %s", capacity, path);
            break;
        }
        if (data) memcpy(larger, data, size);
        mli_free(allocator, data);
        data = larger;
        size += fread(data + size, 1, capacity - size, stream);
        if (size < capacity) break;
        if (!mli_mul_size(capacity, 2, &capacity)) capacity = SIZE_MAX; /* which no allocator has */
    }
    if (!result && ferror(stream))
        result = mli_fail(error, ML_ERROR_FILE, "%s cannot be read: %s", path, strerror(errno));
    fclose(stream);
    if (result) {
        mli_free(allocator, data);
        return result;
    }
    file->data = data;
    file->size = size;
    return ML_OK;
}
#else
static ml_result mli_map_file(const char *path, const ml_allocator *allocator, mli_file *file,
                              ml_error *error) {
    (void)allocator;
    memset(file, 0, sizeof *file);
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "%s cannot be opened: built with ML_NO_STDIO", path);
}
#endif

static void mli_unmap_file(const ml_allocator *allocator, mli_file *file) {
#ifdef MLI_MMAP
    if (file->is_mapped && file->size) munmap((void *)(uintptr_t)file->data, file->size);
    (void)allocator;
#else
    mli_free(allocator, (void *)(uintptr_t)file->data);
#endif
    memset(file, 0, sizeof *file);
}

/* ---- reading little-endian numbers ---- */

/* A cursor that fails softly: past the end every read gives 0 and `failed` stays set, so that a parser may read a
   whole record and look once. */
typedef struct mli_reader {
    const unsigned char *p, *end;
    int failed;
} mli_reader;

static mli_reader mli_reader_at(const unsigned char *data, size_t begin, size_t end) {
    mli_reader reader;
    reader.p = data + begin;
    reader.end = data + end;
    reader.failed = 0;
    return reader;
}

static size_t mli_left(const mli_reader *reader) { return (size_t)(reader->end - reader->p); }

/* The next n bytes, or NULL where there are fewer. */
static const unsigned char *mli_read_bytes(mli_reader *reader, uint64_t n) {
    const unsigned char *p = reader->p;
    if (reader->failed || n > (uint64_t)mli_left(reader)) {
        reader->failed = 1;
        reader->p = reader->end;
        return NULL;
    }
    reader->p += n;
    return p;
}

static uint64_t mli_read_uint(mli_reader *reader, int n_bytes) {
    const unsigned char *p = mli_read_bytes(reader, (uint64_t)n_bytes);
    uint64_t value = 0;
    while (p && n_bytes-- > 0) value = value << 8 | p[n_bytes];
    return value;
}

static unsigned mli_read_u8(mli_reader *reader) { return (unsigned)mli_read_uint(reader, 1); }
static uint32_t mli_read_u32(mli_reader *reader) { return (uint32_t)mli_read_uint(reader, 4); }
static uint64_t mli_read_u64(mli_reader *reader) { return mli_read_uint(reader, 8); }
static int32_t mli_read_i32(mli_reader *reader) { return (int32_t)mli_read_u32(reader); }

static float mli_read_f32(mli_reader *reader) { return mli_bits_float(mli_read_u32(reader)); }

static double mli_double_from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- names in order ---- */

/* Lists of names are sorted so that looking one up, and finding out that two are equal, stays quick in a file with a
   million of them. Heapsort (Williams 1964): no bad case, no memory. */
typedef struct mli_named {
    const char *name; /* not zero-terminated */
    size_t length;
    size_t index; /* what the name stands for */
} mli_named;

static int mli_compare_text(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t n = MLI_MIN(a_length, b_length);
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

static int mli_compare_named(const mli_named *a, const mli_named *b) {
    int order = mli_compare_text(a->name, a->length, b->name, b->length);
    return order ? order : (a->index > b->index) - (a->index < b->index);
}

static void mli_sift_down(mli_named *items, size_t root, size_t n) {
    mli_named item = items[root];
    size_t child;
    while ((child = 2 * root + 1) < n) {
        if (child + 1 < n && mli_compare_named(&items[child], &items[child + 1]) < 0) child++;
        if (mli_compare_named(&item, &items[child]) >= 0) break;
        items[root] = items[child];
        root = child;
    }
    items[root] = item;
}

static void mli_sort_named(mli_named *items, size_t n) {
    size_t i;
    for (i = n / 2; i-- > 0;) mli_sift_down(items, i, n);
    for (i = n; i-- > 1;) {
        mli_named largest = items[0];
        items[0] = items[i];
        items[i] = largest;
        mli_sift_down(items, 0, i);
    }
}

/* The first of the sorted items with that name, or NULL. */
static const mli_named *mli_find_named(const mli_named *items, size_t n, const char *name, size_t length) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (mli_compare_text(items[middle].name, items[middle].length, name, length) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && mli_compare_text(items[low].name, items[low].length, name, length) == 0 ? &items[low]
                                                                                              : NULL;
}

/* ---- the archive under construction ---- */

#define MLI_PATH_SIZE 512 /* the longest dotted name, and its end */
#define MLI_MAX_DEPTH 64  /* of containers in containers */

/* Small things that live as long as the archive are cut from blocks, which are freed together. */
typedef struct mli_block {
    struct mli_block *next;
    size_t size, used, padding; /* bytes behind this header; four words keep them aligned to 16 */
} mli_block;

struct ml_archive {
    ml_allocator allocator;
    mli_file file; /* what ml_archive_open mapped */
    const unsigned char *data;
    size_t size;
    const char *format;
    ml_array *arrays;
    size_t n_arrays, array_capacity;
    ml_value *values;
    size_t n_values, value_capacity;
    mli_named *array_index, *value_index; /* sorted */
    mli_block *blocks;
    /* while something is read: */
    ml_result result; /* of the first thing that went wrong */
    ml_error *error;
    size_t name_budget;       /* bytes that names may still take */
    char path[MLI_PATH_SIZE]; /* the dotted name of what is being read */
    size_t path_length;
    ml_array no_array; /* what the functions that add return when they cannot */
    ml_value no_value;
};

/* Notes an error; the first one stays. The readers below go on with zeros and empty things after an error, and look at
   `result` where they loop: that keeps them free of a check behind every call. */
static ml_result mli_stop(ml_archive *archive, ml_result code, const char *format, ...) {
    if (archive->result) return archive->result;
    archive->result = code;
    if (archive->error) {
        va_list args;
        va_start(args, format);
        mli_format_v(archive->error->text, sizeof archive->error->text, format, args);
        va_end(args);
        archive->error->code = code;
    }
    return code;
}

/* Returns NULL, which stands for what could not be had. */
static void *mli_no_memory(ml_archive *archive) {
    mli_stop(archive, ML_ERROR_MEMORY, "no memory for the contents of the file");
    return NULL;
}

static ml_result mli_cut_short(ml_archive *archive, const char *name, uint64_t needed) {
    return mli_stop(archive, ML_ERROR_TRUNCATED,
                    "file is cut short (an incomplete download?): %s needs bytes up to %l, it has %z", name,
                    (int64_t)MLI_MIN(needed, (uint64_t)INT64_MAX), archive->size);
}

/* Memory that ml_archive_close frees; NULL when there is none. */
static void *mli_keep(ml_archive *archive, size_t size) {
    mli_block *block = archive->blocks;
    size_t capacity;
    if (size > SIZE_MAX / 2) return mli_no_memory(archive);
    size = (size + 15) & ~(size_t)15;
    if (!block || size > block->size - block->used) {
        capacity = block ? MLI_MIN(block->size * 2, (size_t)1 << 20) : 1024;
        capacity = MLI_MAX(capacity, size);
        block = (mli_block *)archive->allocator.alloc(sizeof *block + capacity, archive->allocator.user);
        if (!block) return mli_no_memory(archive);
        block->next = archive->blocks;
        block->size = capacity;
        block->used = block->padding = 0;
        archive->blocks = block;
    }
    block->used += size;
    return (unsigned char *)(block + 1) + block->used - size;
}

/* Makes room for one more item behind n and returns the items, moved if need be; NULL (and they stay as they are)
   without memory. Doubling keeps the copying within a constant per item. */
static void *mli_grow(ml_archive *archive, void *items, size_t n, size_t *capacity, size_t item_size) {
    size_t larger = n < 8 ? 16 : n * 2;
    void *moved;
    if (n < *capacity) return items;
    moved = n > SIZE_MAX / 2 ? NULL : mli_alloc(&archive->allocator, larger, item_size);
    if (!moved) return mli_no_memory(archive);
    if (items) memcpy(moved, items, n * item_size);
    mli_free(&archive->allocator, items);
    *capacity = larger;
    return moved;
}

/* Names may be longer together than the file, since those in containers repeat what the containers are called; a
   budget of 16 times the file keeps that within reason. */
static void mli_allow_names(ml_archive *archive, size_t file_size) {
    size_t more;
    if (!mli_mul_size(file_size, 16, &more) ||
        !mli_add_size(archive->name_budget, more, &archive->name_budget))
        archive->name_budget = SIZE_MAX;
}

/* A zero-terminated copy. */
static const char *mli_keep_name(ml_archive *archive, const char *name, size_t length) {
    char *copy = NULL;
    if (length && memchr(name, 0, length))
        mli_stop(archive, ML_ERROR_FORMAT, "a name contains a zero byte, after \"%s\"", name);
    else if (length >= archive->name_budget)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "the names in this file are too long for its size");
    else
        copy = (char *)mli_keep(archive, length + 1);
    if (!copy) return "";
    archive->name_budget -= length;
    if (length) memcpy(copy, name, length);
    copy[length] = 0;
    return copy;
}

/* A new array, zero but for its name; after an error one that goes nowhere. */
static ml_array *mli_add_array(ml_archive *archive, const char *name, size_t length) {
    ml_array *array = &archive->no_array, *arrays;
    const char *copy = mli_keep_name(archive, name, length);
    arrays = (ml_array *)mli_grow(archive, archive->arrays, archive->n_arrays, &archive->array_capacity,
                                  sizeof *arrays);
    if (arrays) {
        archive->arrays = arrays;
        array = &arrays[archive->n_arrays++];
    }
    memset(array, 0, sizeof *array);
    array->name = copy;
    return array;
}

/* The same for a value. */
static ml_value *mli_add_value(ml_archive *archive, const char *name, size_t length, ml_value_kind kind) {
    ml_value *value = &archive->no_value, *values;
    const char *copy = mli_keep_name(archive, name, length);
    values = (ml_value *)mli_grow(archive, archive->values, archive->n_values, &archive->value_capacity,
                                  sizeof *values);
    if (values) {
        archive->values = values;
        value = &values[archive->n_values++];
    }
    memset(value, 0, sizeof *value);
    value->name = copy;
    value->kind = kind;
    return value;
}

/* Lengthens the path by ".name"; the caller puts path_length back. */
static void mli_path_push(ml_archive *archive, const char *name, size_t length) {
    size_t dot = archive->path_length > 0;
    archive->path[archive->path_length] = 0;
    if (length + dot >= MLI_PATH_SIZE - archive->path_length) {
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "a name is longer than %d bytes: it begins with \"%s\"",
                 MLI_PATH_SIZE - 1, archive->path);
        return;
    }
    if (dot) archive->path[archive->path_length++] = '.';
    if (length) memcpy(archive->path + archive->path_length, name, length);
    archive->path_length += length;
}

static void mli_path_push_int(ml_archive *archive, int64_t i) {
    char digits[24];
    size_t n = 0;
    mli_put_int(digits, sizeof digits, &n, i);
    mli_path_push(archive, digits, n);
}

/* Row-major strides; returns the number of elements, 0 after the error that it overflows. */
static size_t mli_set_contiguous(ml_archive *archive, ml_array *array) {
    size_t count = 1;
    int i;
    for (i = array->n_dims; i-- > 0;) {
        array->stride[i] = (int64_t)count;
        if ((uint64_t)array->shape[i] > SIZE_MAX || !mli_mul_size(count, (size_t)array->shape[i], &count) ||
            count > INT64_MAX) {
            mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its shape overflows", array->name);
            return 0;
        }
    }
    array->is_contiguous = 1;
    return count;
}

/* Sorts names of things `stride` bytes apart, each of which begins with its name, and refuses equal ones. */
static mli_named *mli_index_names(ml_archive *archive, const void *things, size_t n, size_t stride,
                                  const char *what) {
    mli_named *index = (mli_named *)mli_alloc(&archive->allocator, n, sizeof *index);
    size_t i;
    if (!index) return (mli_named *)mli_no_memory(archive);
    for (i = 0; i < n; i++) {
        memcpy(&index[i].name, (const char *)things + i * stride, sizeof index[i].name);
        index[i].length = strlen(index[i].name);
        index[i].index = i;
    }
    mli_sort_named(index, n);
    for (i = 1; i < n; i++)
        if (strcmp(index[i].name, index[i - 1].name) == 0)
            mli_stop(archive, ML_ERROR_FORMAT, "two %s are named %s", what, index[i].name);
    return index;
}

/* To be called when something was added. */
static void mli_archive_sort(ml_archive *archive) {
    mli_named *arrays =
        mli_index_names(archive, archive->arrays, archive->n_arrays, sizeof(ml_array), "tensors");
    mli_named *values =
        mli_index_names(archive, archive->values, archive->n_values, sizeof(ml_value), "values");
    if (!archive->result) { /* the old ones go */
        mli_named *old = archive->array_index;
        archive->array_index = arrays;
        arrays = old;
        old = archive->value_index;
        archive->value_index = values;
        values = old;
    }
    mli_free(&archive->allocator, arrays);
    mli_free(&archive->allocator, values);
}

/* ---- JSON (RFC 8259) ---- */

typedef struct mli_json {
    mli_reader in;
    const unsigned char *begin;
    ml_archive *archive;
} mli_json;

static mli_json mli_json_at(ml_archive *archive, const unsigned char *data, size_t size) {
    mli_json json;
    json.in = mli_reader_at(data, 0, size);
    json.begin = data;
    json.archive = archive;
    return json;
}

/* Notes the error and jumps to the end, where nothing more is found. Returns what stands for a string not read. */
static const char *mli_json_fail(mli_json *json, const char *what) {
    mli_stop(json->archive, ML_ERROR_FORMAT, "JSON: %s at byte %z", what, (size_t)(json->in.p - json->begin));
    json->in.p = json->in.end;
    return "";
}

/* The next character that is no white space, not taken; 0 at the end. */
static int mli_json_peek(mli_json *json) {
    mli_reader *in = &json->in;
    while (in->p < in->end && (*in->p == ' ' || *in->p == '\t' || *in->p == '\n' || *in->p == '\r')) in->p++;
    return in->p < in->end ? *in->p : 0;
}

static int mli_json_take(mli_json *json, int c) {
    if (mli_json_peek(json) != c) return 0;
    json->in.p++;
    return 1;
}

static void mli_json_expect(mli_json *json, int c, const char *otherwise) {
    if (!mli_json_take(json, c)) mli_json_fail(json, otherwise);
}

/* Four hexadecimal digits; -1 if they are not. */
static int32_t mli_json_hex4(const unsigned char *p, const unsigned char *end) {
    static const char digits[] = "0123456789abcdef";
    int32_t value = 0;
    int i;
    if (end - p < 4) return -1;
    for (i = 0; i < 4; i++) {
        int c = p[i] >= 'A' && p[i] <= 'F' ? p[i] - 'A' + 'a' : p[i];
        const char *found = (const char *)memchr(digits, c, 16);
        if (!found) return -1;
        value = value * 16 + (int32_t)(found - digits);
    }
    return value;
}

/* Writes a code point as UTF-8: at most 4 bytes, and never more than its escape took. */
static size_t mli_put_utf8(char *to, uint32_t c) {
    static const unsigned char lead[4] = {0, 0xc0, 0xe0, 0xf0};
    int i, more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    for (i = more; i > 0; i--) {
        to[i] = (char)(0x80 | (c & 63));
        c >>= 6;
    }
    to[0] = (char)(lead[more] | c);
    return (size_t)more + 1;
}

/* Undoes the escape whose backslash is behind us; *p and *n move on. 0 if there is no such escape. */
static int mli_json_unescape(const unsigned char **p, const unsigned char *end, char *to, size_t *n) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    const char *found;
    int32_t c, low;
    if (*p == end) return 0;
    if (**p != 'u') {
        found = (const char *)memchr(from, **p, sizeof from - 1);
        if (!found) return 0;
        to[(*n)++] = into[found - from];
        (*p)++;
        return 1;
    }
    c = mli_json_hex4(*p + 1, end);
    if (c < 0) return 0;
    *p += 5;
    if (c >= 0xd800 && c < 0xdc00 && end - *p >= 6 && (*p)[0] == '\\' && (*p)[1] == 'u') {
        low = mli_json_hex4(*p + 2, end);
        if (low >= 0xdc00 && low < 0xe000) { /* two halves of a pair make one code point */
            c = 0x10000 + (c - 0xd800) * 1024 + (low - 0xdc00);
            *p += 6;
        }
    }
    *n += mli_put_utf8(to + *n, (uint32_t)c);
    return 1;
}

/* A string, with its escapes undone, kept in the archive and zero-terminated; "" after an error. */
static const char *mli_json_string(mli_json *json, size_t *length) {
    const unsigned char *p, *end;
    size_t n = 0;
    char *to;
    *length = 0;
    mli_json_expect(json, '"', "a string is missing");
    p = json->in.p;
    for (end = p; end < json->in.end && *end != '"' && *end >= 32; end++)
        if (*end == '\\' && end + 1 < json->in.end) end++;
    if (end == json->in.end || *end != '"') return mli_json_fail(json, "no end of the string");
    to = (char *)mli_keep(json->archive, (size_t)(end - p) + 1);
    if (!to) return "";
    while (p < end) {
        if (*p != '\\') {
            to[n++] = (char)*p++;
        } else {
            p++;
            if (!mli_json_unescape(&p, end, to, &n))
                return mli_json_fail(json, "a wrong escape in the string");
        }
    }
    to[n] = 0;
    *length = n;
    json->in.p = end + 1;
    return to;
}

/* The key of a member of an object, and its colon. */
static const char *mli_json_key(mli_json *json, size_t *length) {
    const char *key = mli_json_string(json, length);
    mli_json_expect(json, ':', "a colon is missing");
    return key;
}

/* digits * 10^exponent. Exact to the last bit where both fit a double (Clinger 1990), else within a few units of
   it: more than a float needs. Not strtod, which obeys the locale. */
static double mli_scale_decimal(uint64_t digits, int exponent) {
    double value = (double)digits;
    int step;
    for (; exponent > 0 && value > 0 && value <= 1e308; exponent -= step) {
        step = MLI_MIN(exponent, 22);
        value *= pow(10.0, step);
    }
    for (; exponent < 0 && value > 0; exponent += step) {
        step = MLI_MIN(-exponent, 22);
        value /= pow(10.0, step);
    }
    return value;
}

/* Takes digits up into *digits as long as they fit. Returns the power of ten that then makes up for the place of the
   point: the number left out in front of it, or minus the number taken behind it. */
static int mli_json_digits(mli_json *json, uint64_t *digits, int is_fraction) {
    mli_reader *in = &json->in;
    const unsigned char *begin = in->p;
    int exponent = 0;
    for (; in->p < in->end && *in->p >= '0' && *in->p <= '9'; in->p++) {
        int fits = *digits <= (UINT64_MAX - 9) / 10;
        if (fits) *digits = *digits * 10 + (uint64_t)(*in->p - '0');
        if (fits == is_fraction && exponent > -100000 && exponent < 100000) exponent += fits ? -1 : 1;
    }
    if (in->p == begin) mli_json_fail(json, "a digit is missing");
    return exponent;
}

/* [-]digits[.digits][e[+-]digits]. Returns whether it is written as an integer and fits an int64_t. */
static int mli_json_number(mli_json *json, int64_t *i, double *f) {
    mli_reader *in = &json->in;
    uint64_t digits = 0, written = 0;
    int negative = mli_json_take(json, '-'), is_int = 1, sign = 1;
    int exponent = mli_json_digits(json, &digits, 0);
    if (exponent) is_int = 0;
    if (in->p < in->end && *in->p == '.') {
        in->p++;
        is_int = 0;
        exponent += mli_json_digits(json, &digits, 1);
    }
    if (in->p < in->end && (*in->p | 32) == 'e') {
        is_int = 0;
        if (++in->p < in->end && (*in->p == '-' || *in->p == '+')) sign = *in->p++ == '-' ? -1 : 1;
        mli_json_digits(json, &written, 0);
        exponent += sign * (int)MLI_MIN(written, 100000u);
    }
    *f = mli_scale_decimal(digits, exponent);
    if (negative) *f = -*f;
    is_int = is_int && digits <= (uint64_t)INT64_MAX;
    *i = is_int ? (negative ? -(int64_t)digits : (int64_t)digits) : 0;
    return is_int;
}

static int mli_json_word(mli_json *json, const char *word) {
    size_t n = strlen(word);
    if (mli_left(&json->in) < n || memcmp(json->in.p, word, n) != 0) return 0;
    json->in.p += n;
    return 1;
}

/* A value that is no container, named by the path; null adds nothing. */
static void mli_json_scalar(mli_json *json) {
    ml_archive *archive = json->archive;
    ml_value value, *added;
    int c = mli_json_peek(json);
    memset(&value, 0, sizeof value);
    if (c == '"') {
        value.kind = ML_VALUE_STRING;
        value.s = mli_json_string(json, &value.length);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        value.kind = mli_json_number(json, &value.i, &value.f) ? ML_VALUE_INT : ML_VALUE_FLOAT;
    } else if (mli_json_word(json, "null")) {
        return;
    } else {
        value.kind = ML_VALUE_BOOL;
        value.i = mli_json_word(json, "true");
        value.f = (double)value.i;
        if (!value.i && !mli_json_word(json, "false")) mli_json_fail(json, "no value");
    }
    added = mli_add_value(archive, archive->path, archive->path_length, value.kind);
    value.name = added->name;
    *added = value;
}

/* Any value; what it contains is added under dotted names. */
static void mli_json_value(mli_json *json, int depth) {
    ml_archive *archive = json->archive;
    size_t path_length = archive->path_length, length;
    int c = mli_json_peek(json), close = c == '{' ? '}' : ']';
    int64_t i;
    if (c != '{' && c != '[') {
        mli_json_scalar(json);
        return;
    }
    if (depth == MLI_MAX_DEPTH) mli_json_fail(json, "nested too deeply");
    mli_json_take(json, c);
    if (mli_json_take(json, close)) return;
    for (i = 0; !archive->result; i++) {
        if (c == '{') {
            const char *key = mli_json_key(json, &length);
            mli_path_push(archive, key, length);
        } else {
            mli_path_push_int(archive, i);
        }
        if (!archive->result) mli_json_value(json, depth + 1);
        archive->path_length = path_length;
        if (mli_json_take(json, close)) return;
        mli_json_expect(json, ',', "a comma is missing");
    }
}

/* Adds what a JSON text contains to the archive's values, under dotted names that begin with prefix (may be "").
   The text need not outlive the call. After an error the archive is as it was. */
static ml_result mli_json_values(ml_archive *archive, const char *prefix, const void *data, size_t size,
                                 ml_error *error) {
    mli_json json = mli_json_at(archive, (const unsigned char *)data, size);
    size_t n_values = archive->n_values;
    archive->result = ML_OK;
    archive->error = error;
    archive->path_length = 0;
    mli_allow_names(archive, size);
    mli_path_push(archive, prefix, strlen(prefix));
    mli_json_value(&json, 0);
    if (mli_json_peek(&json)) mli_json_fail(&json, "more text than one value");
    archive->path_length = 0;
    if (!archive->result) mli_archive_sort(archive);
    if (archive->result) archive->n_values = n_values;
    archive->error = NULL;
    return archive->result;
}

/* ---- zip (APPNOTE 6.3), as far as torch.save uses it ---- */

#ifndef ML_NO_PT

typedef struct mli_range {
    size_t begin, size; /* of an entry's bytes in the file */
} mli_range;

typedef struct mli_zip {
    ml_archive *archive;
    mli_named *entries; /* (n_entries) sorted by name; index is the place in `ranges` */
    mli_range *ranges;  /* (n_entries) in the file's order */
    size_t n_entries;
} mli_zip;

typedef struct mli_zip_end {
    uint64_t n_entries, size, offset; /* of the central directory */
} mli_zip_end;

enum {
    MLI_ZIP_LOCAL = 0x04034b50, /* "PK", then two bytes that tell the records apart */
    MLI_ZIP_CENTRAL = 0x02014b50,
    MLI_ZIP_END = 0x06054b50,
    MLI_ZIP64_END = 0x06064b50,
    MLI_ZIP64_LOCATOR = 0x07064b50
};

/* Finds the end record, which stands last but for a comment of at most 65535 bytes, and its 64-bit brother. Returns 0
   where there is none. */
static int mli_zip_find_end(const unsigned char *data, size_t size, mli_zip_end *end) {
    size_t at, lowest = size > 65535 + 22 ? size - 65535 - 22 : 0;
    uint64_t at64;
    mli_reader in;
    if (size < 22) return 0;
    for (at = size - 22;; at--) {
        in = mli_reader_at(data, at, size);
        if (mli_read_u32(&in) == MLI_ZIP_END) {
            mli_read_bytes(&in, 6);
            end->n_entries = mli_read_uint(&in, 2);
            end->size = mli_read_u32(&in);
            end->offset = mli_read_u32(&in);
            if (mli_read_uint(&in, 2) <= mli_left(&in)) break;
        }
        if (at == lowest) return 0;
    }
    if (at < 20) return 1;
    in = mli_reader_at(data, at - 20, at);
    if (mli_read_u32(&in) != MLI_ZIP64_LOCATOR) return 1;
    mli_read_u32(&in);
    at64 = mli_read_u64(&in);
    if (at64 >= at) return 1;
    in = mli_reader_at(data, (size_t)at64, at);
    if (mli_read_u32(&in) != MLI_ZIP64_END) return 1;
    mli_read_bytes(&in, 28);
    end->n_entries = mli_read_u64(&in);
    end->size = mli_read_u64(&in);
    end->offset = mli_read_u64(&in);
    return !in.failed;
}

/* Sizes and offset that 32 bits cannot hold stand in the extra field 1, in this order, only those needed. */
static void mli_zip_extra(mli_reader extra, uint64_t *size, uint64_t *packed, uint64_t *offset) {
    while (mli_left(&extra) >= 4) {
        uint64_t id = mli_read_uint(&extra, 2), length = mli_read_uint(&extra, 2);
        const unsigned char *p = mli_read_bytes(&extra, length);
        if (id == 1 && p) {
            mli_reader in = mli_reader_at(p, 0, (size_t)length);
            if (*size == 0xffffffffu) *size = mli_read_u64(&in);
            if (*packed == 0xffffffffu) *packed = mli_read_u64(&in);
            if (*offset == 0xffffffffu) *offset = mli_read_u64(&in);
            return;
        }
    }
}

/* The name in a header whose numbers are behind us, and the end of the header: two lengths, name, extra field. */
static const char *mli_zip_local_name(mli_reader *in, size_t *length) {
    uint64_t name_length = mli_read_uint(in, 2), extra_length = mli_read_uint(in, 2);
    const char *name = (const char *)mli_read_bytes(in, name_length);
    mli_read_bytes(in, extra_length);
    *length = (size_t)name_length;
    return in->failed ? NULL : name;
}

/* The bytes of an entry begin behind its local header, whose extra field may differ from the central one. */
static void mli_zip_locate(mli_zip *zip, const mli_named *entry, const char *shown, uint64_t offset,
                           uint64_t size) {
    ml_archive *archive = zip->archive;
    mli_range *range = &zip->ranges[entry->index];
    const char *name;
    size_t length;
    mli_reader in;
    if (offset > archive->size) {
        mli_cut_short(archive, shown, offset);
        return;
    }
    in = mli_reader_at(archive->data, (size_t)offset, archive->size);
    if (mli_read_u32(&in) != MLI_ZIP_LOCAL)
        mli_stop(archive, ML_ERROR_FORMAT, "zip entry %s: no header at byte %l", shown, (int64_t)offset);
    mli_read_bytes(&in, 22);
    name = mli_zip_local_name(&in, &length);
    if (!name || mli_compare_text(name, length, entry->name, entry->length) != 0)
        mli_stop(archive, ML_ERROR_FORMAT, "zip entry %s: the header at byte %l is another's", shown,
                 (int64_t)offset);
    range->begin = (size_t)(in.p - archive->data);
    range->size = (size_t)size;
    if (size > mli_left(&in)) mli_cut_short(archive, shown, range->begin + size);
}

/* One record of the central directory. */
static void mli_zip_entry(mli_zip *zip, mli_reader *in, size_t index) {
    ml_archive *archive = zip->archive;
    mli_named *entry = &zip->entries[index];
    uint64_t packed, size, offset, flags, method, extra_length, comment_length;
    const unsigned char *extra;
    char shown[97];
    size_t shown_length = 0;
    int is_central = mli_read_u32(in) == MLI_ZIP_CENTRAL;
    mli_read_bytes(in, 4);
    flags = mli_read_uint(in, 2);
    method = mli_read_uint(in, 2);
    mli_read_bytes(in, 8);
    packed = mli_read_u32(in);
    size = mli_read_u32(in);
    entry->length = (size_t)mli_read_uint(in, 2);
    extra_length = mli_read_uint(in, 2);
    comment_length = mli_read_uint(in, 2);
    mli_read_bytes(in, 8);
    offset = mli_read_u32(in);
    entry->name = (const char *)mli_read_bytes(in, entry->length);
    entry->index = index;
    extra = mli_read_bytes(in, extra_length);
    mli_read_bytes(in, comment_length);
    if (in->failed || !is_central) {
        mli_stop(archive, ML_ERROR_FORMAT, "zip: entry %z of the directory is damaged", index);
        return;
    }
    mli_zip_extra(mli_reader_at(extra, 0, (size_t)extra_length), &size, &packed, &offset);
    mli_put(shown, sizeof shown, &shown_length, entry->name, entry->length);
    if (flags & 1) mli_stop(archive, ML_ERROR_UNSUPPORTED, "zip entry %s is encrypted", shown);
    if (method != 0 || size != packed)
        mli_stop(archive, ML_ERROR_UNSUPPORTED,
                 "zip entry %s is compressed (method %d); torch.save stores plainly", shown, (int)method);
    mli_zip_locate(zip, entry, shown, offset, size);
}

static void mli_zip_read(mli_zip *zip, const mli_zip_end *end) {
    ml_archive *archive = zip->archive;
    mli_reader in;
    size_t i;
    if (end->offset > archive->size || end->size > archive->size - end->offset) {
        mli_stop(archive, ML_ERROR_FORMAT, "zip: the directory lies outside of the file");
        return;
    }
    if (end->n_entries > end->size / 46) { /* the least that an entry takes */
        mli_stop(archive, ML_ERROR_FORMAT, "zip: %l entries do not fit the directory",
                 (int64_t)MLI_MIN(end->n_entries, (uint64_t)INT64_MAX));
        return;
    }
    zip->n_entries = (size_t)end->n_entries;
    zip->entries = (mli_named *)mli_alloc(&archive->allocator, zip->n_entries, sizeof *zip->entries);
    zip->ranges = (mli_range *)mli_alloc(&archive->allocator, zip->n_entries, sizeof *zip->ranges);
    if (!zip->entries || !zip->ranges) {
        mli_no_memory(archive);
        return;
    }
    in = mli_reader_at(archive->data, (size_t)end->offset, (size_t)(end->offset + end->size));
    for (i = 0; i < zip->n_entries && !archive->result; i++) mli_zip_entry(zip, &in, i);
    if (!archive->result) mli_sort_named(zip->entries, zip->n_entries);
}

/* ---- pickle (Python's pickletools.py describes it) ---- */

/* A pickle is a program for a stack machine. This one knows the instructions that make plain data. Those that call
   something accept the names in mli_globals alone and make a node for them: nothing is ever executed. Every node, link
   and stack slot is made by at least one byte of the pickle, so memory is linear in its size. */

typedef enum mli_node_kind {
    MLI_NODE_NOTHING = 0, /* None, and what is of no use here */
    MLI_NODE_MARK,
    MLI_NODE_INT,
    MLI_NODE_BOOL,
    MLI_NODE_FLOAT,
    MLI_NODE_STRING,
    MLI_NODE_TUPLE,
    MLI_NODE_LIST,
    MLI_NODE_DICT,   /* children: key, value, key, value, ... */
    MLI_NODE_OBJECT, /* of a plain class; children as a dict's */
    MLI_NODE_GLOBAL,
    MLI_NODE_STORAGE, /* children: "storage", type, key, device, number of elements */
    MLI_NODE_TENSOR   /* children: storage, offset, shape, stride, ... */
} mli_node_kind;

typedef struct mli_node {
    mli_node_kind kind;
    uint32_t first, last; /* links to the children; 0 is none */
    uint32_t length;      /* bytes of a string */
    union {
        int64_t i; /* int, bool; of a global its row in mli_globals; of a storage its ml_type */
        double f;
        const char *s;
    } as;
} mli_node;

typedef struct mli_link {
    uint32_t node, next;
} mli_link;

typedef struct mli_pickle {
    ml_archive *archive;
    const unsigned char *begin;
    mli_reader in;
    mli_node *nodes; /* the first, of kind nothing, stands for what could not be made */
    mli_link *links; /* the first is never used: link 0 means none */
    uint32_t *stack, *memo;
    size_t n_nodes, node_capacity, n_links, link_capacity, n_stack, stack_capacity, n_memo, n_put;
} mli_pickle;

typedef enum mli_global_kind {
    MLI_GLOBAL_DICT,    /* called without arguments: a dict */
    MLI_GLOBAL_OBJECT,  /* a class whose instances hold attributes only */
    MLI_GLOBAL_TENSOR,  /* torch._utils._rebuild_tensor_v2 */
    MLI_GLOBAL_FIRST,   /* stands for its first argument */
    MLI_GLOBAL_STORAGE, /* of numbers of `type` */
    MLI_GLOBAL_WORD,    /* stands for its own name */
    MLI_GLOBAL_NOTHING  /* read over, whatever its arguments */
} mli_global_kind;

static const struct mli_global {
    const char *module, *name;
    mli_global_kind kind;
    ml_type type;
} mli_globals[] = {
    {"collections", "OrderedDict", MLI_GLOBAL_DICT, ML_TYPE_NONE},
    {"torch._utils", "_rebuild_tensor_v2", MLI_GLOBAL_TENSOR, ML_TYPE_NONE},
    {"torch._utils", "_rebuild_parameter", MLI_GLOBAL_FIRST, ML_TYPE_NONE},
    {"torch", "FloatStorage", MLI_GLOBAL_STORAGE, ML_F32},
    {"torch", "HalfStorage", MLI_GLOBAL_STORAGE, ML_F16},
    {"torch", "BFloat16Storage", MLI_GLOBAL_STORAGE, ML_BF16},
    {"torch", "DoubleStorage", MLI_GLOBAL_STORAGE, ML_F64},
    {"torch", "LongStorage", MLI_GLOBAL_STORAGE, ML_I64},
    {"torch", "IntStorage", MLI_GLOBAL_STORAGE, ML_I32},
    {"torch", "ShortStorage", MLI_GLOBAL_STORAGE, ML_I16},
    {"torch", "CharStorage", MLI_GLOBAL_STORAGE, ML_I8},
    {"torch", "ByteStorage", MLI_GLOBAL_STORAGE, ML_U8},
    {"torch", "BoolStorage", MLI_GLOBAL_STORAGE, ML_BOOL},
    /* what training scripts save beside the weights: their options and the state of random generators */
    {"torch", "Size", MLI_GLOBAL_FIRST, ML_TYPE_NONE},
    {"torch", "device", MLI_GLOBAL_FIRST, ML_TYPE_NONE},
    {"torch", "float32", MLI_GLOBAL_WORD, ML_TYPE_NONE},
    {"torch", "float16", MLI_GLOBAL_WORD, ML_TYPE_NONE},
    {"torch", "bfloat16", MLI_GLOBAL_WORD, ML_TYPE_NONE},
    {"builtins", "set", MLI_GLOBAL_FIRST, ML_TYPE_NONE},
    {"__builtin__", "set", MLI_GLOBAL_FIRST, ML_TYPE_NONE},
    {"argparse", "Namespace", MLI_GLOBAL_OBJECT, ML_TYPE_NONE},
    {"config", "LlamaConfig", MLI_GLOBAL_OBJECT, ML_TYPE_NONE},
    {"numpy", "dtype", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy", "ndarray", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy.core.multiarray", "_reconstruct", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy._core.multiarray", "_reconstruct", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy.core.multiarray", "scalar", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy._core.multiarray", "scalar", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy.core.numeric", "_frombuffer", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"numpy._core.numeric", "_frombuffer", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
    {"_codecs", "encode", MLI_GLOBAL_NOTHING, ML_TYPE_NONE},
};

static void mli_pickle_fail(mli_pickle *pickle, const char *what) {
    if (pickle->in.failed)
        mli_stop(pickle->archive, ML_ERROR_TRUNCATED, "data.pkl is cut short");
    else
        mli_stop(pickle->archive, ML_ERROR_FORMAT, "data.pkl: %s before byte %z", what,
                 (size_t)(pickle->in.p - pickle->begin));
}

static void mli_pickle_push(mli_pickle *pickle, uint32_t node) {
    uint32_t *stack = (uint32_t *)mli_grow(pickle->archive, pickle->stack, pickle->n_stack,
                                           &pickle->stack_capacity, sizeof *stack);
    if (!stack) return;
    pickle->stack = stack;
    stack[pickle->n_stack++] = node;
}

/* Makes a node, zero but for its kind. */
static uint32_t mli_pickle_new(mli_pickle *pickle, mli_node_kind kind) {
    mli_node *nodes = (mli_node *)mli_grow(pickle->archive, pickle->nodes, pickle->n_nodes,
                                           &pickle->node_capacity, sizeof *nodes);
    if (!nodes) return 0;
    pickle->nodes = nodes;
    memset(&nodes[pickle->n_nodes], 0, sizeof *nodes);
    nodes[pickle->n_nodes].kind = kind;
    return (uint32_t)pickle->n_nodes++;
}

static void mli_pickle_push_int(mli_pickle *pickle, mli_node_kind kind, int64_t i) {
    uint32_t node = mli_pickle_new(pickle, kind);
    pickle->nodes[node].as.i = i;
    mli_pickle_push(pickle, node);
}

static void mli_pickle_push_string(mli_pickle *pickle, mli_node_kind kind, const void *s, uint64_t length) {
    uint32_t node = mli_pickle_new(pickle, kind);
    pickle->nodes[node].as.s = (const char *)s;
    pickle->nodes[node].length = s ? (uint32_t)length : 0; /* fits: the pickle is shorter than 2^31 */
    mli_pickle_push(pickle, node);
}

/* The topmost node, which must not be a mark; 0 after an error. */
static uint32_t mli_pickle_top(mli_pickle *pickle) {
    uint32_t node = pickle->n_stack ? pickle->stack[pickle->n_stack - 1] : 0;
    if (pickle->n_stack && pickle->nodes[node].kind != MLI_NODE_MARK) return node;
    mli_pickle_fail(pickle, "too little on the stack");
    return 0;
}

static uint32_t mli_pickle_pop(mli_pickle *pickle) {
    uint32_t node = mli_pickle_top(pickle);
    if (pickle->n_stack) pickle->n_stack--;
    return node;
}

static void mli_pickle_append(mli_pickle *pickle, uint32_t parent, uint32_t child) {
    mli_link *links = (mli_link *)mli_grow(pickle->archive, pickle->links, pickle->n_links,
                                           &pickle->link_capacity, sizeof *links);
    mli_node *node = &pickle->nodes[parent];
    uint32_t link = (uint32_t)pickle->n_links;
    if (!links) return;
    pickle->links = links;
    links[link].node = child;
    links[link].next = 0;
    if (node->first)
        links[node->last].next = link;
    else
        node->first = link;
    node->last = link;
    pickle->n_links++;
}

/* Where the n topmost nodes begin in the stack or, with n < 0, those above the topmost mark. */
static size_t mli_pickle_above(mli_pickle *pickle, int n) {
    size_t i;
    if (n >= 0 && (size_t)n <= pickle->n_stack) return pickle->n_stack - (size_t)n;
    for (i = n < 0 ? pickle->n_stack : 0; i > 0; i--)
        if (pickle->nodes[pickle->stack[i - 1]].kind == MLI_NODE_MARK) return i;
    mli_pickle_fail(pickle, n < 0 ? "no mark on the stack" : "too little on the stack");
    return pickle->n_stack;
}

/* Moves the stack's nodes from `begin` on into a container. */
static void mli_pickle_gather(mli_pickle *pickle, uint32_t parent, size_t begin) {
    size_t i;
    if (pickle->nodes[parent].kind == MLI_NODE_DICT && (pickle->n_stack - begin) % 2)
        mli_pickle_fail(pickle, "an odd dict");
    for (i = begin; i < pickle->n_stack; i++) {
        if (pickle->nodes[pickle->stack[i]].kind == MLI_NODE_MARK)
            mli_pickle_fail(pickle, "a mark in the way");
        mli_pickle_append(pickle, parent, pickle->stack[i]);
    }
    pickle->n_stack = begin;
}

/* A container of the n topmost nodes, or with n < 0 of all above the mark, takes their place. */
static void mli_pickle_collect(mli_pickle *pickle, mli_node_kind kind, int n) {
    size_t begin = mli_pickle_above(pickle, n);
    uint32_t parent = mli_pickle_new(pickle, kind);
    if (pickle->archive->result) return;
    mli_pickle_gather(pickle, parent, begin);
    if (n < 0) pickle->n_stack--; /* the mark */
    mli_pickle_push(pickle, parent);
}

/* Appends to the container below: the n topmost nodes, or with n < 0 all above the mark. */
static void mli_pickle_extend(mli_pickle *pickle, mli_node_kind kind, int n) {
    size_t begin = mli_pickle_above(pickle, n), above = n < 0 && begin ? begin - 1 : begin;
    if (!above || pickle->nodes[pickle->stack[above - 1]].kind != kind)
        mli_pickle_fail(pickle, "items for something that takes none");
    if (pickle->archive->result) return;
    mli_pickle_gather(pickle, pickle->stack[above - 1], begin);
    pickle->n_stack = above;
}

/* The first n children; 0 where there are fewer. */
static int mli_pickle_children(const mli_pickle *pickle, uint32_t node, uint32_t *children, int n) {
    uint32_t link = pickle->nodes[node].first;
    int i;
    for (i = 0; i < n && link; i++, link = pickle->links[link].next) children[i] = pickle->links[link].node;
    return i == n;
}

/* Pushes the global of that name, if it is one of those allowed. */
static void mli_pickle_global(mli_pickle *pickle, const char *module, size_t module_length, const char *name,
                              size_t name_length) {
    char shown_module[65], shown_name[65];
    size_t i, n = 0;
    for (i = 0; i < sizeof mli_globals / sizeof mli_globals[0]; i++) {
        const struct mli_global *global = &mli_globals[i];
        if (mli_compare_text(global->module, strlen(global->module), module, module_length) != 0) continue;
        if (mli_compare_text(global->name, strlen(global->name), name, name_length) != 0) continue;
        if (global->kind == MLI_GLOBAL_WORD)
            mli_pickle_push_string(pickle, MLI_NODE_STRING, global->name, name_length);
        else
            mli_pickle_push_int(pickle, MLI_NODE_GLOBAL, (int64_t)i);
        return;
    }
    mli_put(shown_module, sizeof shown_module, &n, module, module_length);
    n = 0;
    mli_put(shown_name, sizeof shown_name, &n, name, name_length);
    mli_stop(pickle->archive, ML_ERROR_UNSUPPORTED, "data.pkl asks for %s.%s; only plain tensors are read",
             shown_module, shown_name);
}

/* A line of text, without its newline. */
static const char *mli_pickle_line(mli_pickle *pickle, size_t *length) {
    mli_reader *in = &pickle->in;
    size_t left = mli_left(in);
    const unsigned char *begin = in->p, *end = left ? (const unsigned char *)memchr(begin, '\n', left) : NULL;
    *length = end ? (size_t)(end - begin) : 0;
    if (!end)
        in->failed = 1;
    else
        in->p = end + 1;
    return (const char *)begin;
}

/* GLOBAL has its module and name in two lines, STACK_GLOBAL finds them on the stack. */
static void mli_pickle_find_global(mli_pickle *pickle, int from_stack) {
    const char *module, *name;
    size_t module_length, name_length;
    if (from_stack) {
        uint32_t b = mli_pickle_pop(pickle), a = mli_pickle_pop(pickle);
        const mli_node *nodes = pickle->nodes;
        if (nodes[a].kind != MLI_NODE_STRING || nodes[b].kind != MLI_NODE_STRING)
            mli_pickle_fail(pickle, "a global without a name");
        else
            mli_pickle_global(pickle, nodes[a].as.s, nodes[a].length, nodes[b].as.s, nodes[b].length);
        return;
    }
    module = mli_pickle_line(pickle, &module_length);
    name = mli_pickle_line(pickle, &name_length);
    if (pickle->in.failed)
        mli_pickle_fail(pickle, "a global without a name");
    else
        mli_pickle_global(pickle, module, module_length, name, name_length);
}

/* Whether the arguments are those of torch._utils._rebuild_tensor_v2: storage, offset, shape, stride, ... */
static int mli_pickle_is_tensor(const mli_pickle *pickle, uint32_t args) {
    const mli_node *nodes = pickle->nodes;
    uint32_t arg[4];
    return mli_pickle_children(pickle, args, arg, 4) && nodes[arg[0]].kind == MLI_NODE_STORAGE &&
           nodes[arg[1]].kind == MLI_NODE_INT && nodes[arg[2]].kind == MLI_NODE_TUPLE &&
           nodes[arg[3]].kind == MLI_NODE_TUPLE;
}

/* REDUCE and NEWOBJ: what "calling" a global with a tuple of arguments stands for. */
static void mli_pickle_reduce(mli_pickle *pickle) {
    uint32_t args = mli_pickle_pop(pickle), callable = mli_pickle_pop(pickle), node = 0;
    mli_global_kind kind = MLI_GLOBAL_NOTHING;
    if (pickle->nodes[args].kind != MLI_NODE_TUPLE) mli_pickle_fail(pickle, "arguments that are no tuple");
    if (pickle->nodes[callable].kind == MLI_NODE_GLOBAL)
        kind = mli_globals[pickle->nodes[callable].as.i].kind;
    else
        mli_pickle_fail(pickle, "a call of no function");
    switch (kind) {
    case MLI_GLOBAL_DICT:
        if (pickle->nodes[args].first) mli_pickle_fail(pickle, "an OrderedDict with arguments");
        node = mli_pickle_new(pickle, MLI_NODE_DICT);
        break;
    case MLI_GLOBAL_OBJECT: node = mli_pickle_new(pickle, MLI_NODE_OBJECT); break;
    case MLI_GLOBAL_FIRST:
        if (!mli_pickle_children(pickle, args, &node, 1)) mli_pickle_fail(pickle, "no argument");
        break;
    case MLI_GLOBAL_TENSOR:
        if (!mli_pickle_is_tensor(pickle, args)) mli_pickle_fail(pickle, "a tensor with wrong arguments");
        node = mli_pickle_new(pickle, MLI_NODE_TENSOR);
        pickle->nodes[node].first = pickle->nodes[args].first;
        break;
    case MLI_GLOBAL_NOTHING: node = mli_pickle_new(pickle, MLI_NODE_NOTHING); break;
    default: mli_pickle_fail(pickle, "a call of no function"); break;
    }
    mli_pickle_push(pickle, node);
}

/* BINPERSID: the tuple ("storage", type, key, device, number of elements) stands for memory kept in the zip. */
static void mli_pickle_storage(mli_pickle *pickle) {
    uint32_t id = mli_pickle_pop(pickle), item[5], node;
    const mli_node *nodes = pickle->nodes;
    if (nodes[id].kind != MLI_NODE_TUPLE || !mli_pickle_children(pickle, id, item, 5) ||
        nodes[item[1]].kind != MLI_NODE_GLOBAL ||
        mli_globals[nodes[item[1]].as.i].kind != MLI_GLOBAL_STORAGE ||
        nodes[item[2]].kind != MLI_NODE_STRING || nodes[item[4]].kind != MLI_NODE_INT ||
        nodes[item[4]].as.i < 0) {
        mli_pickle_fail(pickle, "a storage with wrong arguments");
        return;
    }
    node = mli_pickle_new(pickle, MLI_NODE_STORAGE);
    nodes = pickle->nodes; /* may have moved */
    pickle->nodes[node].first = nodes[id].first;
    pickle->nodes[node].as.i = (int64_t)mli_globals[nodes[item[1]].as.i].type;
    mli_pickle_push(pickle, node);
}

/* BUILD: gives an object its attributes. What else has state (the version notes of an OrderedDict) does without. */
static void mli_pickle_build(mli_pickle *pickle) {
    uint32_t state = mli_pickle_pop(pickle);
    mli_node *object = &pickle->nodes[mli_pickle_top(pickle)];
    if (object->kind == MLI_NODE_OBJECT && pickle->nodes[state].kind == MLI_NODE_DICT)
        object->first = pickle->nodes[state].first;
    else if (object->kind != MLI_NODE_OBJECT && object->kind != MLI_NODE_DICT &&
             object->kind != MLI_NODE_NOTHING)
        mli_pickle_fail(pickle, "state for something that has none");
}

/* BINPUT, LONG_BINPUT and MEMOIZE remember the topmost node, BINGET and LONG_BINGET push it again. */
static void mli_pickle_put(mli_pickle *pickle, size_t index) {
    size_t limit = (size_t)(pickle->in.end - pickle->begin), capacity;
    uint32_t node = mli_pickle_top(pickle), *memo;
    if (index >= limit) mli_pickle_fail(pickle, "a put beyond all reason");
    if (pickle->archive->result) return;
    if (index >= pickle->n_memo) {
        capacity = MLI_MIN(limit, MLI_MAX(index + 1, pickle->n_memo * 2));
        memo = (uint32_t *)mli_alloc(&pickle->archive->allocator, capacity, sizeof *memo);
        if (!memo) {
            mli_no_memory(pickle->archive);
            return;
        }
        if (pickle->n_memo) memcpy(memo, pickle->memo, pickle->n_memo * sizeof *memo);
        mli_free(&pickle->archive->allocator, pickle->memo);
        pickle->memo = memo;
        pickle->n_memo = capacity;
    }
    pickle->n_put += !pickle->memo[index]; /* 0: nothing put here, which no node on the stack is */
    pickle->memo[index] = node;
}

static void mli_pickle_get(mli_pickle *pickle, size_t index) {
    if (index < pickle->n_memo && pickle->memo[index])
        mli_pickle_push(pickle, pickle->memo[index]);
    else
        mli_pickle_fail(pickle, "a get of what was not put");
}

/* LONG1 and LONG4: two's complement of any length. Beyond 64 bits (seeds of random generators) it is dropped. */
static void mli_pickle_long(mli_pickle *pickle, uint64_t length) {
    const unsigned char *p = mli_read_bytes(&pickle->in, length);
    uint64_t bits, i;
    if (!p) return;
    bits = length && p[length - 1] >= 128 ? ~(uint64_t)0 : 0;
    for (i = length; i-- > 0 && length <= 8;) bits = bits << 8 | p[i];
    mli_pickle_push_int(pickle, length <= 8 ? MLI_NODE_INT : MLI_NODE_NOTHING, (int64_t)bits);
}

static void mli_pickle_float(mli_pickle *pickle) {
    const unsigned char *p = mli_read_bytes(&pickle->in, 8);
    uint32_t node = mli_pickle_new(pickle, MLI_NODE_FLOAT);
    uint64_t bits = 0;
    int i;
    for (i = 0; p && i < 8; i++) bits = bits << 8 | p[i]; /* the one big-endian thing */
    pickle->nodes[node].as.f = mli_double_from_bits(bits);
    mli_pickle_push(pickle, node);
}

static void mli_pickle_text(mli_pickle *pickle, mli_node_kind kind, int length_bytes) {
    uint64_t length = mli_read_uint(&pickle->in, length_bytes);
    mli_pickle_push_string(pickle, kind, mli_read_bytes(&pickle->in, length), length);
}

/* Instructions that push a number, a text or a name. */
static void mli_pickle_scalar(mli_pickle *pickle, unsigned op) {
    mli_reader *in = &pickle->in;
    switch (op) {
    case 'N': mli_pickle_push_int(pickle, MLI_NODE_NOTHING, 0); break;
    case 0x88: mli_pickle_push_int(pickle, MLI_NODE_BOOL, 1); break;
    case 0x89: mli_pickle_push_int(pickle, MLI_NODE_BOOL, 0); break;
    case 'J': mli_pickle_push_int(pickle, MLI_NODE_INT, mli_read_i32(in)); break;
    case 'K': mli_pickle_push_int(pickle, MLI_NODE_INT, (int64_t)mli_read_uint(in, 1)); break;
    case 'M': mli_pickle_push_int(pickle, MLI_NODE_INT, (int64_t)mli_read_uint(in, 2)); break;
    case 0x8a: mli_pickle_long(pickle, mli_read_u8(in)); break;
    case 0x8b: mli_pickle_long(pickle, mli_read_u32(in)); break;
    case 'G': mli_pickle_float(pickle); break;
    case 'U':
    case 0x8c: mli_pickle_text(pickle, MLI_NODE_STRING, 1); break;
    case 'T':
    case 'X': mli_pickle_text(pickle, MLI_NODE_STRING, 4); break;
    case 0x8d: mli_pickle_text(pickle, MLI_NODE_STRING, 8); break;
    case 'C': mli_pickle_text(pickle, MLI_NODE_NOTHING, 1); break; /* bytes: contents of NumPy arrays */
    case 'B': mli_pickle_text(pickle, MLI_NODE_NOTHING, 4); break;
    case 0x8e:
    case 0x96: mli_pickle_text(pickle, MLI_NODE_NOTHING, 8); break;
    case 'c': mli_pickle_find_global(pickle, 0); break;
    case 0x93: mli_pickle_find_global(pickle, 1); break;
    case 'h': mli_pickle_get(pickle, mli_read_u8(in)); break;
    case 'j': mli_pickle_get(pickle, mli_read_u32(in)); break;
    default:
        mli_stop(pickle->archive, ML_ERROR_UNSUPPORTED, "data.pkl: instruction %d at byte %z is not known",
                 (int)op, (size_t)(in->p - pickle->begin) - 1);
    }
}

/* Any instruction but STOP. */
static void mli_pickle_step(mli_pickle *pickle, unsigned op) {
    mli_reader *in = &pickle->in;
    switch (op) {
    case 0x80: /* PROTO */
        if (mli_read_u8(in) > 5) mli_pickle_fail(pickle, "a protocol above 5");
        break;
    case 0x95: mli_read_u64(in); break; /* FRAME: only a hint for reading ahead */
    case '(': mli_pickle_push_int(pickle, MLI_NODE_MARK, 0); break;
    case '0': mli_pickle_pop(pickle); break;
    case '}': mli_pickle_collect(pickle, MLI_NODE_DICT, 0); break;
    case 0x8f: /* EMPTY_SET, as a list */
    case ']': mli_pickle_collect(pickle, MLI_NODE_LIST, 0); break;
    case ')': mli_pickle_collect(pickle, MLI_NODE_TUPLE, 0); break;
    case 0x85: mli_pickle_collect(pickle, MLI_NODE_TUPLE, 1); break;
    case 0x86: mli_pickle_collect(pickle, MLI_NODE_TUPLE, 2); break;
    case 0x87: mli_pickle_collect(pickle, MLI_NODE_TUPLE, 3); break;
    case 't': mli_pickle_collect(pickle, MLI_NODE_TUPLE, -1); break;
    case 'l': mli_pickle_collect(pickle, MLI_NODE_LIST, -1); break;
    case 'd': mli_pickle_collect(pickle, MLI_NODE_DICT, -1); break;
    case 'a': mli_pickle_extend(pickle, MLI_NODE_LIST, 1); break;
    case 0x90: /* ADDITEMS */
    case 'e': mli_pickle_extend(pickle, MLI_NODE_LIST, -1); break;
    case 's': mli_pickle_extend(pickle, MLI_NODE_DICT, 2); break;
    case 'u': mli_pickle_extend(pickle, MLI_NODE_DICT, -1); break;
    case 'R':
    case 0x81: mli_pickle_reduce(pickle); break;
    case 'b': mli_pickle_build(pickle); break;
    case 'Q': mli_pickle_storage(pickle); break;
    case 'q': mli_pickle_put(pickle, mli_read_u8(in)); break;
    case 'r': mli_pickle_put(pickle, mli_read_u32(in)); break;
    case 0x94: mli_pickle_put(pickle, pickle->n_put); break;
    default: mli_pickle_scalar(pickle, op); break;
    }
}

/* Runs the pickle at the beginning of the bytes to its STOP. Returns what it leaves; 0 after an error. */
static uint32_t mli_pickle_run(mli_pickle *pickle, const unsigned char *data, size_t size) {
    unsigned op;
    if (size > 0x7fffffff) mli_stop(pickle->archive, ML_ERROR_UNSUPPORTED, "data.pkl is longer than 2 GiB");
    pickle->begin = data;
    pickle->in = mli_reader_at(data, 0, size);
    pickle->n_links = 1;
    mli_pickle_new(pickle, MLI_NODE_NOTHING);
    while (!pickle->archive->result && (op = mli_read_u8(&pickle->in)) != '.') {
        if (!pickle->in.failed) mli_pickle_step(pickle, op);
        if (pickle->in.failed) mli_pickle_fail(pickle, "no end");
    }
    return pickle->archive->result ? 0 : mli_pickle_pop(pickle);
}

static void mli_pickle_free(mli_pickle *pickle) {
    const ml_allocator *allocator = &pickle->archive->allocator;
    mli_free(allocator, pickle->nodes);
    mli_free(allocator, pickle->links);
    mli_free(allocator, pickle->stack);
    mli_free(allocator, pickle->memo);
}

/* ---- PyTorch: a zip of PREFIX/data.pkl and, for each storage in it, PREFIX/data/KEY ---- */

typedef struct mli_torch {
    ml_archive *archive;
    mli_zip zip;
    mli_pickle pickle;
    const char *prefix; /* with its slash */
    size_t prefix_length;
    size_t visits; /* how many nodes may still be looked at */
} mli_torch;

/* The zip's entry PREFIX + folder + key, or NULL. */
static const mli_range *mli_torch_entry(const mli_torch *torch, const char *folder, const char *key,
                                        size_t key_length) {
    const mli_zip *zip = &torch->zip;
    const mli_named *found;
    char name[MLI_PATH_SIZE];
    size_t n = torch->prefix_length, folder_length = strlen(folder);
    if (n >= sizeof name - folder_length || key_length >= sizeof name - folder_length - n) return NULL;
    memcpy(name, torch->prefix, n);
    memcpy(name + n, folder, folder_length);
    if (key_length) memcpy(name + n + folder_length, key, key_length);
    found = mli_find_named(zip->entries, zip->n_entries, name, n + folder_length + key_length);
    return found ? &zip->ranges[found->index] : NULL;
}

/* The tuples of shape and stride. */
static void mli_torch_shape(mli_torch *torch, uint32_t shape, uint32_t stride, ml_array *array) {
    const mli_pickle *pickle = &torch->pickle;
    uint32_t a = pickle->nodes[shape].first, b = pickle->nodes[stride].first;
    int n;
    for (n = 0; a && b; n++, a = pickle->links[a].next, b = pickle->links[b].next) {
        const mli_node *size = &pickle->nodes[pickle->links[a].node],
                       *step = &pickle->nodes[pickle->links[b].node];
        if (n == ML_MAX_DIMS) {
            mli_stop(torch->archive, ML_ERROR_UNSUPPORTED, "tensor %s has more than %d dimensions",
                     array->name, ML_MAX_DIMS);
            return;
        }
        if (size->kind != MLI_NODE_INT || step->kind != MLI_NODE_INT || size->as.i < 0 || step->as.i < 0)
            break;
        array->shape[n] = size->as.i;
        array->stride[n] = step->as.i;
    }
    if (a || b)
        mli_stop(torch->archive, ML_ERROR_FORMAT, "tensor %s: its shape or stride is wrong", array->name);
    array->n_dims = n;
}

/* Whether all elements lie in a storage of n numbers when the first is number `offset`: the last is at offset +
   sum of (shape - 1) * stride. */
static int mli_torch_fits(const ml_array *array, size_t count, int64_t offset, int64_t n) {
    size_t last, span;
    int i;
    if (offset < 0 || offset > n || (uint64_t)n > SIZE_MAX) return 0;
    if (!count) return 1;
    last = (size_t)offset;
    for (i = 0; i < array->n_dims; i++)
        if ((uint64_t)array->stride[i] > SIZE_MAX ||
            !mli_mul_size((size_t)array->shape[i] - 1, (size_t)array->stride[i], &span) ||
            !mli_add_size(last, span, &last))
            return 0;
    return last < (size_t)n;
}

/* Checks the tensor's extent and sees whether its elements lie row by row without gaps. */
static void mli_torch_extent(mli_torch *torch, ml_array *array, int64_t offset, int64_t n) {
    ml_array dense = *array;
    size_t count = mli_set_contiguous(torch->archive, &dense);
    int i;
    if (!mli_torch_fits(array, count, offset, n))
        mli_stop(torch->archive, ML_ERROR_FORMAT, "tensor %s reaches outside of its storage of %l numbers",
                 array->name, n);
    array->is_contiguous = 1;
    for (i = 0; i < array->n_dims; i++) {
        if (array->shape[i] == 1 || !count) array->stride[i] = dense.stride[i]; /* of no consequence */
        if (array->stride[i] != dense.stride[i]) array->is_contiguous = 0;
    }
}

static void mli_torch_tensor(mli_torch *torch, uint32_t tensor) {
    const mli_pickle *pickle = &torch->pickle;
    ml_archive *archive = torch->archive;
    ml_array *array = mli_add_array(archive, archive->path, archive->path_length);
    uint32_t arg[4], item[5];
    const mli_range *range;
    const mli_node *key;
    size_t bytes, item_size;
    int64_t offset, n;
    if (!mli_pickle_children(pickle, tensor, arg, 4) || !mli_pickle_children(pickle, arg[0], item, 5)) return;
    key = &pickle->nodes[item[2]];
    offset = pickle->nodes[arg[1]].as.i;
    n = pickle->nodes[item[4]].as.i;
    array->type = (ml_type)pickle->nodes[arg[0]].as.i;
    item_size = ml_row_bytes(array->type, 1);
    mli_torch_shape(torch, arg[2], arg[3], array);
    mli_torch_extent(torch, array, offset, n);
    range = mli_torch_entry(torch, "data/", key->as.s, key->length);
    if (!range)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its storage is not in the file", array->name);
    else if (!mli_mul_size((size_t)n, item_size, &bytes) || bytes > range->size)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its storage of %l numbers has %z bytes", array->name,
                 n, range->size);
    else if (!archive->result)
        array->data = archive->data + range->begin + (size_t)offset * item_size;
}

static void mli_torch_scalar(mli_torch *torch, const mli_node *node) {
    static const ml_value_kind kinds[4] = {ML_VALUE_INT, ML_VALUE_BOOL, ML_VALUE_FLOAT, ML_VALUE_STRING};
    ml_archive *archive = torch->archive;
    ml_value *value =
        mli_add_value(archive, archive->path, archive->path_length, kinds[node->kind - MLI_NODE_INT]);
    switch (value->kind) {
    case ML_VALUE_STRING:
        value->s = node->as.s; /* in the file, or in mli_globals */
        value->length = node->length;
        break;
    case ML_VALUE_FLOAT: value->f = node->as.f; break;
    default:
        value->i = node->as.i;
        value->f = (double)node->as.i;
        break;
    }
}

static void mli_torch_key(mli_torch *torch, const mli_node *key) {
    ml_archive *archive = torch->archive;
    archive->path[archive->path_length] = 0;
    if (key->kind == MLI_NODE_STRING)
        mli_path_push(archive, key->as.s, key->length);
    else if (key->kind == MLI_NODE_INT || key->kind == MLI_NODE_BOOL)
        mli_path_push_int(archive, key->as.i);
    else
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "data.pkl: a key in \"%s\" is neither text nor an integer",
                 archive->path);
}

/* Adds the tensors and scalars in a node, under the names that lead to them. A container may stand in many places,
   even in itself: a limit on depth and one on the nodes looked at, as many as a pickle without sharing could
   have, end what would not end or double at every level. */
static void mli_torch_flatten(mli_torch *torch, uint32_t index, int depth) {
    const mli_pickle *pickle = &torch->pickle;
    const mli_node *node = &pickle->nodes[index];
    ml_archive *archive = torch->archive;
    size_t path_length = archive->path_length;
    int is_dict = node->kind == MLI_NODE_DICT || node->kind == MLI_NODE_OBJECT;
    uint32_t link;
    int64_t i = 0;
    if (depth > MLI_MAX_DEPTH) mli_stop(archive, ML_ERROR_UNSUPPORTED, "data.pkl is nested too deeply");
    if (torch->visits-- == 0)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "data.pkl holds the same things too many times over");
    if (archive->result) return;
    if (node->kind == MLI_NODE_TENSOR) mli_torch_tensor(torch, index);
    if (node->kind >= MLI_NODE_INT && node->kind <= MLI_NODE_STRING) mli_torch_scalar(torch, node);
    if (!is_dict && node->kind != MLI_NODE_LIST && node->kind != MLI_NODE_TUPLE) return;
    for (link = node->first; link && !archive->result; link = pickle->links[link].next) {
        if (is_dict) { /* children come in pairs */
            mli_torch_key(torch, &pickle->nodes[pickle->links[link].node]);
            link = pickle->links[link].next;
        } else {
            mli_path_push_int(archive, i++);
        }
        mli_torch_flatten(torch, pickle->links[link].node, depth + 1);
        archive->path_length = path_length;
    }
}

/* What the storages named in the pickle take, each counted once; 0 if that cannot be told. */
static size_t mli_torch_storage_bytes(mli_torch *torch) {
    const mli_pickle *pickle = &torch->pickle;
    const ml_allocator *allocator = &torch->archive->allocator;
    mli_named *keys = (mli_named *)mli_alloc(allocator, pickle->n_nodes, sizeof *keys);
    size_t i, n = 0, bytes, total = 0;
    uint32_t item[5];
    for (i = 0; keys && i < pickle->n_nodes; i++) {
        if (pickle->nodes[i].kind != MLI_NODE_STORAGE || !mli_pickle_children(pickle, (uint32_t)i, item, 5))
            continue;
        keys[n].name = pickle->nodes[item[2]].as.s;
        keys[n].length = pickle->nodes[item[2]].length;
        keys[n++].index = i;
    }
    mli_sort_named(keys, n);
    for (i = 0; i < n; i++) {
        const mli_node *storage = &pickle->nodes[keys[i].index];
        if (i && mli_compare_text(keys[i].name, keys[i].length, keys[i - 1].name, keys[i - 1].length) == 0)
            continue;
        mli_pickle_children(pickle, (uint32_t)keys[i].index, item, 5);
        if ((uint64_t)pickle->nodes[item[4]].as.i > SIZE_MAX ||
            !mli_mul_size((size_t)pickle->nodes[item[4]].as.i, ml_row_bytes((ml_type)storage->as.i, 1),
                          &bytes) ||
            !mli_add_size(total, bytes, &total)) {
            total = 0;
            break;
        }
    }
    mli_free(allocator, keys);
    return total;
}

/* Where the next local header begins, from `begin` on; the size if there is none. */
static size_t mli_zip_next_local(const ml_archive *archive, size_t begin) {
    while (begin < archive->size) {
        const unsigned char *p =
            (const unsigned char *)memchr(archive->data + begin, 'P', archive->size - begin);
        mli_reader in;
        if (!p) break;
        begin = (size_t)(p - archive->data);
        in = mli_reader_at(archive->data, begin, archive->size);
        if (mli_read_u32(&in) == MLI_ZIP_LOCAL) return begin;
        begin++;
    }
    return archive->size;
}

/* A file that begins as a zip but has no directory at its end. Its local headers tell inside of what it stops; its
   pickle, which torch.save writes first, how much is missing. */
static void mli_torch_cut(mli_torch *torch) {
    ml_archive *archive = torch->archive;
    ml_error *error = archive->error;
    size_t at = 0, needed = 0, length, shown_length;
    char shown[97] = "its first entry";
    while (at < archive->size) {
        mli_reader in = mli_reader_at(archive->data, at, archive->size);
        const char *name;
        mli_read_bytes(&in, 26);
        name = mli_zip_local_name(&in, &length);
        if (!name) break;
        shown_length = 0;
        mli_put(shown, sizeof shown, &shown_length, name, length);
        if (at == 0) {
            archive->error = NULL; /* it may well be cut short itself */
            mli_pickle_run(&torch->pickle, in.p, mli_left(&in));
            if (!archive->result) needed = mli_torch_storage_bytes(torch);
            if (needed) mli_add_size(needed, (size_t)(torch->pickle.in.p - archive->data), &needed);
            archive->error = error;
            archive->result = ML_OK;
        }
        at = mli_zip_next_local(archive, (size_t)(in.p - archive->data));
    }
    if (needed > archive->size)
        mli_stop(archive, ML_ERROR_TRUNCATED,
                 "file is cut short (an incomplete download?): it ends at byte %z inside %s and needs at "
                 "least %z bytes",
                 archive->size, shown, needed);
    else
        mli_stop(archive, ML_ERROR_TRUNCATED,
                 "file is cut short (an incomplete download?): it ends at byte %z inside %s", archive->size,
                 shown);
}

/* The zip's data.pkl; the folder that it stands in holds the rest. */
static const mli_range *mli_torch_find_pickle(mli_torch *torch) {
    static const char wanted[] = "data.pkl";
    const size_t n = sizeof wanted - 1;
    size_t i;
    for (i = 0; i < torch->zip.n_entries; i++) {
        const mli_named *entry = &torch->zip.entries[i];
        if (entry->length <= n || memcmp(entry->name + entry->length - n, wanted, n) != 0) continue;
        if (memchr(entry->name, '/', entry->length) != entry->name + entry->length - n - 1) continue;
        torch->prefix = entry->name;
        torch->prefix_length = entry->length - n;
        return &torch->zip.ranges[entry->index];
    }
    mli_stop(torch->archive, ML_ERROR_FORMAT, "a zip file, but not of torch.save: it has no data.pkl");
    return NULL;
}

static void mli_torch_read(mli_torch *torch) {
    ml_archive *archive = torch->archive;
    const mli_range *range, *order;
    mli_zip_end end;
    uint32_t root;
    if (!mli_zip_find_end(archive->data, archive->size, &end)) {
        mli_torch_cut(torch);
        return;
    }
    mli_zip_read(&torch->zip, &end);
    range = archive->result ? NULL : mli_torch_find_pickle(torch);
    if (!range) return;
    order = mli_torch_entry(torch, "byteorder", NULL, 0);
    if (order && mli_compare_text((const char *)archive->data + order->begin, order->size, "little", 6) != 0)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "its numbers are big-endian");
    root = mli_pickle_run(&torch->pickle, archive->data + range->begin, range->size);
    torch->visits = range->size;
    if (!archive->result) mli_torch_flatten(torch, root, 0);
}

static void mli_read_torch(ml_archive *archive) {
    mli_torch torch;
    memset(&torch, 0, sizeof torch);
    torch.archive = torch.zip.archive = torch.pickle.archive = archive;
    archive->format = "PyTorch";
    mli_torch_read(&torch);
    mli_pickle_free(&torch.pickle);
    mli_free(&archive->allocator, torch.zip.entries);
    mli_free(&archive->allocator, torch.zip.ranges);
}

#else

static void mli_read_torch(ml_archive *archive) {
    mli_stop(archive, ML_ERROR_UNSUPPORTED, "a zip file: PyTorch files are left out by ML_NO_PT");
}

#endif /* ML_NO_PT */

/* ---- GGUF (ggml's docs/gguf.md) ---- */

enum { MLI_GGUF_BOOL = 7, MLI_GGUF_STRING, MLI_GGUF_ARRAY, MLI_GGUF_U64, MLI_GGUF_I64, MLI_GGUF_F64 };

/* Bytes of a value by GGUF's type number; 0 for strings, arrays and unknown numbers. */
static size_t mli_gguf_size(uint32_t type) {
    static const unsigned char sizes[13] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < 13 ? sizes[type] : 0;
}

static const char *mli_gguf_string(mli_reader *in, size_t *length) {
    const unsigned char *s = mli_read_bytes(in, mli_read_u64(in));
    *length = s ? (size_t)(in->p - s) : 0;
    return (const char *)s;
}

/* A list stays where it is; its bytes are only walked over. */
static void mli_gguf_list(ml_archive *archive, mli_reader *in, ml_value *value) {
    uint32_t type = mli_read_u32(in);
    uint64_t i, n = mli_read_u64(in);
    size_t size = mli_gguf_size(type), length;
    if (!size && type != MLI_GGUF_STRING && !in->failed)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "key %s: a list of type %l is not supported", value->name,
                 (int64_t)type);
    if (n > mli_left(in) / (size ? size : 8)) in->failed = 1; /* a string takes 8 bytes at least */
    if (in->failed || archive->result) return;
    value->s = (const char *)in->p;
    if (size) mli_read_bytes(in, n * size);
    for (i = 0; i < n && !size && !in->failed; i++) mli_gguf_string(in, &length);
    value->length = (size_t)n;
    value->list_type = (int)type;
}

/* A number of GGUF's type; unsigned ones beyond int64_t are clipped to its largest. */
static void mli_gguf_number(mli_reader *in, uint32_t type, ml_value *value) {
    size_t size = mli_gguf_size(type);
    uint64_t bits = mli_read_uint(in, (int)size), sign = (uint64_t)1 << (8 * size - 1);
    switch (type) {
    case 6: value->f = (double)mli_bits_float((uint32_t)bits); return; /* F32 */
    case MLI_GGUF_F64: value->f = mli_double_from_bits(bits); return;
    case MLI_GGUF_BOOL: value->i = bits != 0; break;
    case 1: /* of 8, 16, 32 and 64 bits with a sign, which is extended */
    case 3:
    case 5:
    case MLI_GGUF_I64: value->i = (int64_t)((bits ^ sign) - sign); break;
    default: value->i = bits > (uint64_t)INT64_MAX ? INT64_MAX : (int64_t)bits; break;
    }
    value->f = type == MLI_GGUF_U64 ? (double)bits : (double)value->i;
}

static void mli_gguf_pair(ml_archive *archive, mli_reader *in) {
    size_t length;
    const char *key = mli_gguf_string(in, &length);
    uint32_t type = mli_read_u32(in);
    ml_value_kind kind = type == MLI_GGUF_STRING             ? ML_VALUE_STRING
                         : type == MLI_GGUF_ARRAY            ? ML_VALUE_LIST
                         : type == MLI_GGUF_BOOL             ? ML_VALUE_BOOL
                         : type == 6 || type == MLI_GGUF_F64 ? ML_VALUE_FLOAT
                                                             : ML_VALUE_INT;
    ml_value *value;
    if (in->failed) return;
    value = mli_add_value(archive, key, length, kind);
    if (kind == ML_VALUE_LIST)
        mli_gguf_list(archive, in, value);
    else if (kind == ML_VALUE_STRING)
        value->s = mli_gguf_string(in, &value->length);
    else if (mli_gguf_size(type))
        mli_gguf_number(in, type, value);
    else
        mli_stop(archive, ML_ERROR_FORMAT, "key %s: its type %l is unknown", value->name, (int64_t)type);
}

/* One tensor's description. Where its data lies waits in stride[0] until it is known where all data begins; a tensor
   without dimensions has no use for it. */
static void mli_gguf_tensor(ml_archive *archive, mli_reader *in) {
    size_t length;
    const char *name = mli_gguf_string(in, &length);
    uint32_t i, type, n_dims = mli_read_u32(in);
    ml_array *array;
    if (in->failed) return;
    array = mli_add_array(archive, name, length);
    if (n_dims > 4) {
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s has more than 4 dimensions", array->name);
        return;
    }
    array->n_dims = (int)n_dims;
    for (i = n_dims; i-- > 0;) { /* innermost first in the file */
        array->shape[i] = (int64_t)mli_read_u64(in);
        if (array->shape[i] < 0)
            mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its shape overflows", array->name);
    }
    type = mli_read_u32(in);
    array->stride[0] = (int64_t)mli_read_u64(in);
    array->type = mli_type_from_gguf(type);
    if (array->type == ML_TYPE_NONE && !in->failed)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "tensor %s: type %l is not supported", array->name,
                 (int64_t)type);
}

/* Finds a tensor's bytes in the data, which begins at data_begin. */
static void mli_gguf_place(ml_archive *archive, ml_array *array, size_t data_begin, uint64_t alignment) {
    uint64_t offset = (uint64_t)array->stride[0];
    size_t left = archive->size - data_begin, bytes = 0, count = mli_set_contiguous(archive, array);
    size_t cols = array->n_dims ? (size_t)array->shape[array->n_dims - 1] : 1;
    size_t row_bytes = ml_row_bytes(array->type, cols);
    if (cols && !row_bytes)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: rows of %z do not fit blocks of %s", array->name, cols,
                 ml_type_name(array->type));
    if (cols && !mli_mul_size(count / cols, row_bytes, &bytes))
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its shape overflows", array->name);
    if (offset % alignment)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: offset %l is not aligned to %l", array->name,
                 (int64_t)offset, (int64_t)alignment);
    if (offset > left || bytes > left - (size_t)offset)
        mli_cut_short(archive, array->name, offset > left ? offset : data_begin + offset + bytes);
    else
        array->data = archive->data + data_begin + (size_t)offset;
}

/* The data begins at the next multiple of general.alignment (default 32) behind the descriptions. */
static uint64_t mli_gguf_alignment(ml_archive *archive) {
    size_t i;
    for (i = 0; i < archive->n_values; i++) {
        const ml_value *value = &archive->values[i];
        if (strcmp(value->name, "general.alignment") != 0) continue;
        if (value->kind == ML_VALUE_INT && value->i > 0 && !(value->i & (value->i - 1)))
            return (uint64_t)value->i;
        mli_stop(archive, ML_ERROR_FORMAT, "general.alignment %l is no power of two", value->i);
    }
    return 32;
}

static void mli_read_gguf(ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 4, archive->size);
    uint32_t version = mli_read_u32(&in);
    uint64_t n_tensors = mli_read_u64(&in), n_pairs = mli_read_u64(&in), i, alignment, padding;
    size_t begin;
    archive->format = "GGUF";
    if (!in.failed && version > 0xffff)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "a big-endian GGUF file (version %d byte-swapped)",
                 (int)(version >> 24));
    if (!in.failed && version != 2 && version != 3)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "GGUF version %d is not supported, only 2 and 3",
                 (int)version);
    for (i = 0; i < n_pairs && !in.failed && !archive->result; i++) mli_gguf_pair(archive, &in);
    for (i = 0; i < n_tensors && !in.failed && !archive->result; i++) mli_gguf_tensor(archive, &in);
    if (in.failed)
        mli_stop(archive, ML_ERROR_TRUNCATED,
                 "file is cut short (an incomplete download?): it ends at byte %z inside the list of its "
                 "keys and tensors",
                 archive->size);
    alignment = mli_gguf_alignment(archive);
    begin = (size_t)(in.p - archive->data);
    padding = (alignment - begin % alignment) % alignment;
    if (archive->result || !archive->n_arrays) return;
    if (padding > archive->size - begin) {
        mli_cut_short(archive, "the tensors' data", begin + padding);
        return;
    }
    for (i = 0; i < archive->n_arrays && !archive->result; i++)
        mli_gguf_place(archive, &archive->arrays[i], begin + (size_t)padding, alignment);
}

/* ---- safetensors: u64 length, JSON of that length, data ---- */

/* A list of at most `most` integers that are not negative. Returns how many. */
static int mli_json_sizes(mli_json *json, int64_t *sizes, int most) {
    int n = 0;
    double f;
    mli_json_expect(json, '[', "a list is missing");
    if (mli_json_take(json, ']')) return 0;
    do {
        if (n == most) mli_json_fail(json, "a list is too long");
        if (json->archive->result) return 0;
        mli_json_peek(json);
        if (!mli_json_number(json, &sizes[n], &f) || sizes[n] < 0) mli_json_fail(json, "a size is wrong");
        n++;
    } while (mli_json_take(json, ','));
    mli_json_expect(json, ']', "the end of a list is missing");
    return n;
}

/* {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}; the data is the file from `base` on. */
static void mli_safetensors_tensor(mli_json *json, const char *name, size_t length, size_t base) {
    ml_archive *archive = json->archive;
    ml_array *array = mli_add_array(archive, name, length);
    int64_t range[2] = {0, 0};
    int n_range = 0, has_shape = 0;
    size_t count, bytes, text_length;
    mli_json_expect(json, '{', "a tensor's description is missing");
    do {
        const char *key = mli_json_key(json, &text_length);
        if (strcmp(key, "dtype") == 0) {
            const char *type = mli_json_string(json, &text_length);
            array->type = ml_type_from_name(type);
            if (array->type == ML_TYPE_NONE || ml_type_block(array->type) > 1)
                mli_stop(archive, ML_ERROR_UNSUPPORTED, "tensor %s: dtype %s is not supported", name, type);
        } else if (strcmp(key, "shape") == 0) {
            array->n_dims = mli_json_sizes(json, array->shape, ML_MAX_DIMS);
            has_shape = 1;
        } else if (strcmp(key, "data_offsets") == 0) {
            n_range = mli_json_sizes(json, range, 2);
        } else {
            mli_json_fail(json, "an unknown property of a tensor");
        }
    } while (mli_json_take(json, ','));
    mli_json_expect(json, '}', "the end of a tensor's description is missing");
    if (array->type == ML_TYPE_NONE || !has_shape || n_range != 2)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s lacks dtype, shape or data_offsets", name);
    count = mli_set_contiguous(archive, array);
    if (range[1] < range[0] || !mli_mul_size(count, ml_row_bytes(array->type, 1), &bytes) ||
        (uint64_t)(range[1] - range[0]) != bytes)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: bytes %l to %l do not fit its shape", name, range[0],
                 range[1]);
    else if ((uint64_t)range[1] > archive->size - base)
        mli_cut_short(archive, name, base + (uint64_t)range[1]);
    else
        array->data = archive->data + base + (size_t)range[0];
}

static void mli_read_safetensors(ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    uint64_t length = mli_read_u64(&in);
    const unsigned char *header = mli_read_bytes(&in, length);
    size_t name_length;
    mli_json json;
    archive->format = "safetensors";
    if (!header) {
        mli_cut_short(archive, "its header", 8 + length);
        return;
    }
    json = mli_json_at(archive, header, (size_t)length);
    mli_json_take(&json, '{');
    if (!mli_json_take(&json, '}')) {
        do {
            const char *name = mli_json_key(&json, &name_length);
            if (strcmp(name, "__metadata__") == 0) {
                mli_path_push(archive, name, name_length);
                mli_json_value(&json, 1);
                archive->path_length = 0;
            } else {
                mli_safetensors_tensor(&json, name, name_length, 8 + (size_t)length);
            }
        } while (mli_json_take(&json, ','));
        mli_json_expect(&json, '}', "the end of the header is missing");
    }
    if (mli_json_peek(&json)) mli_json_fail(&json, "more text than one value");
}

/* ---- llama2.c's .bin: its export.py writes three versions ---- */

typedef struct mli_bin {
    ml_archive *archive;
    int version;                    /* 0: legacy */
    size_t header_size, group_size; /* version 2: weights that share a scale */
    int is_shared;                  /* the output layer is the token embedding */
    size_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size,
        max_seq_len; /* the header's 7 numbers */
} mli_bin;

/* The tensors, in the order of versions 1 and 2. A dimension is a letter: D dim, H hidden_dim, K the width of keys and
   values, V vocab_size, 1 none. */
static const struct mli_bin_tensor {
    const char *name;
    char rows, cols;
    int per_layer;
} mli_bin_tensors[] = {
    {"attention_norm", '1', 'D', 1},  {"ffn_norm", '1', 'D', 1},        {"norm", '1', 'D', 0},
    {"tok_embeddings", 'V', 'D', 0},  {"attention.wq", 'D', 'D', 1},    {"attention.wk", 'K', 'D', 1},
    {"attention.wv", 'K', 'D', 1},    {"attention.wo", 'D', 'D', 1},    {"feed_forward.w1", 'H', 'D', 1},
    {"feed_forward.w2", 'D', 'H', 1}, {"feed_forward.w3", 'H', 'D', 1}, {"output", 'V', 'D', 0},
};
enum { MLI_BIN_NORMS = 3, MLI_BIN_OUTPUT = 11, MLI_BIN_TENSORS = 12, MLI_BIN_ROTARY = 12 };

/* The legacy order; MLI_BIN_ROTARY: two tables of cosines and sines, of no use here. */
static const unsigned char mli_bin_legacy_order[] = {
    3, 0, 4, 5, 6, 7, 1, 8, 9, 10, 2, MLI_BIN_ROTARY, MLI_BIN_OUTPUT};

static size_t mli_bin_dim(const mli_bin *bin, char letter) {
    switch (letter) {
    case 'D': return bin->dim;
    case 'H': return bin->hidden_dim;
    case 'K': return bin->dim / bin->n_heads * bin->n_kv_heads;
    case 'V': return bin->vocab_size;
    default: return 1;
    }
}

/* Reads and judges the seven numbers; 0 where they are no model's. The limits are far above any Llama, and low enough
   that no size below overflows 64 bits: 2^12 layers of 2^20 * 2^22 floats are 2^56 bytes. */
static int mli_bin_header(mli_bin *bin, mli_reader *in) {
    static const int32_t most[7] = {1 << 20, 1 << 22, 1 << 12, 1 << 14, 1 << 14, 1 << 24, 1 << 24};
    size_t *numbers[7];
    int i;
    numbers[0] = &bin->dim, numbers[1] = &bin->hidden_dim, numbers[2] = &bin->n_layers,
    numbers[3] = &bin->n_heads;
    numbers[4] = &bin->n_kv_heads, numbers[5] = &bin->vocab_size, numbers[6] = &bin->max_seq_len;
    for (i = 0; i < 7; i++) {
        int64_t number = mli_read_i32(in);
        if (i == 5 && bin->version == 0) { /* the legacy version's flag is the sign of vocab_size */
            bin->is_shared = number > 0;
            if (number < 0) number = -number;
        }
        if (number <= 0 || number > most[i]) return 0;
        *numbers[i] = (size_t)number;
    }
    return bin->dim % bin->n_heads == 0 && bin->n_heads % bin->n_kv_heads == 0;
}

/* count signed bytes q, then a float for each group of them: value = q * scale. */
static void mli_bin_dequantize(const mli_bin *bin, uint64_t at, size_t count, float *to) {
    const unsigned char *q = bin->archive->data + at;
    mli_reader scales = mli_reader_at(q, count, count + count / bin->group_size * sizeof(float));
    float scale = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        if (i % bin->group_size == 0) scale = mli_read_f32(&scales);
        to[i] = scale * (float)(q[i] < 128 ? q[i] : q[i] - 256);
    }
}

/* Moves *at behind a tensor. With `floats` also adds it to the archive; a quantized one takes its place in *floats. */
static void mli_bin_tensor_at(mli_bin *bin, const struct mli_bin_tensor *tensor, size_t layer, uint64_t *at,
                              float **floats) {
    size_t rows = mli_bin_dim(bin, tensor->rows), cols = mli_bin_dim(bin, tensor->cols);
    uint64_t begin = *at, n = (uint64_t)rows * cols;
    int is_quantized = bin->version == 2 && tensor >= mli_bin_tensors + MLI_BIN_NORMS;
    ml_archive *archive = bin->archive;
    ml_array *array;
    char name[64];
    if (is_quantized && n % bin->group_size)
        mli_stop(archive, ML_ERROR_FORMAT, "%s.weight does not fit groups of %z", tensor->name,
                 bin->group_size);
    *at += is_quantized ? n + n / bin->group_size * sizeof(float) : n * sizeof(float);
    if (!floats) return;
    if (tensor->per_layer)
        mli_format(name, sizeof name, "layers.%z.%s.weight", layer, tensor->name);
    else
        mli_format(name, sizeof name, "%s.weight", tensor->name);
    array = mli_add_array(archive, name, strlen(name));
    array->type = ML_F32;
    array->n_dims = tensor->rows == '1' ? 1 : 2;
    array->shape[0] = (int64_t)rows;
    array->shape[array->n_dims - 1] = (int64_t)cols;
    array->data = archive->data + begin;
    mli_set_contiguous(archive, array);
    if (!is_quantized) return;
    mli_bin_dequantize(bin, begin, (size_t)n, *floats);
    array->data = *floats;
    *floats += n;
}

/* Goes through the tensors in the file's order. Returns how large that makes the file. */
static uint64_t mli_bin_walk(mli_bin *bin, float **floats) {
    int n = bin->version ? MLI_BIN_TENSORS : MLI_BIN_TENSORS + 1, i;
    uint64_t at = bin->header_size;
    size_t layer;
    for (i = 0; i < n; i++) {
        int index = bin->version ? i : mli_bin_legacy_order[i];
        const struct mli_bin_tensor *tensor = &mli_bin_tensors[index % MLI_BIN_TENSORS];
        if (index == MLI_BIN_ROTARY) {
            at += (uint64_t)bin->max_seq_len * (bin->dim / bin->n_heads / 2) * 2 * sizeof(float);
        } else if (index != MLI_BIN_OUTPUT || !bin->is_shared) {
            for (layer = 0; layer < (tensor->per_layer ? bin->n_layers : 1); layer++)
                mli_bin_tensor_at(bin, tensor, layer, &at, floats);
        }
    }
    return at;
}

/* Adds everything, once the size is known to be right. No ml_type has blocks as version 2 has them, so its weights are
   turned to floats in memory of the archive's: the only format that is copied. */
static void mli_bin_add(mli_bin *bin) {
    static const char *const names[7] = {"dim",        "hidden_dim", "n_layers",   "n_heads",
                                         "n_kv_heads", "vocab_size", "max_seq_len"};
    ml_archive *archive = bin->archive;
    size_t numbers[7], room = archive->size; /* a byte or more for each weight */
    float *floats = NULL;
    char name[32];
    int i;
    archive->format = "llama2.c";
    if (bin->version == 2) {
        floats =
            (float *)(room > SIZE_MAX / 8 ? mli_no_memory(archive) : mli_keep(archive, room * sizeof(float)));
        if (!floats) return;
    }
    mli_bin_walk(bin, &floats);
    numbers[0] = bin->dim, numbers[1] = bin->hidden_dim, numbers[2] = bin->n_layers,
    numbers[3] = bin->n_heads;
    numbers[4] = bin->n_kv_heads, numbers[5] = bin->vocab_size, numbers[6] = bin->max_seq_len;
    for (i = 0; i < 7; i++) {
        ml_value *value;
        mli_format(name, sizeof name, "model_args.%s", names[i]);
        value = mli_add_value(archive, name, strlen(name), ML_VALUE_INT);
        value->i = (int64_t)numbers[i];
        value->f = (double)numbers[i];
    }
}

/* Versions 1 and 2: "ak42", version, seven numbers, is_shared, group_size, zeros up to byte 256. */
static void mli_read_bin(ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 4, archive->size);
    uint64_t size;
    mli_bin bin;
    memset(&bin, 0, sizeof bin);
    bin.archive = archive;
    bin.version = mli_read_i32(&in);
    bin.header_size = 256;
    bin.group_size = 1;
    if (!in.failed && bin.version != 1 && bin.version != 2)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "llama2.c file of version %d; 0, 1 and 2 are read",
                 bin.version);
    if (archive->size < 256) mli_cut_short(archive, "the header", 256);
    if (!archive->result && !mli_bin_header(&bin, &in))
        mli_stop(archive, ML_ERROR_FORMAT, "llama2.c header: its numbers are no model's");
    if (archive->result) return;
    bin.is_shared = mli_read_u8(&in) != 0;
    if (bin.version == 2) {
        int32_t group_size = mli_read_i32(&in);
        if (group_size <= 0) {
            mli_stop(archive, ML_ERROR_FORMAT, "llama2.c header: group size %d", (int)group_size);
            return;
        }
        bin.group_size = (size_t)group_size;
    }
    size = mli_bin_walk(&bin, NULL);
    if (size > archive->size) mli_cut_short(archive, "the model of its llama2.c header", size);
    if (size < archive->size)
        mli_stop(archive, ML_ERROR_FORMAT, "llama2.c file: %z bytes, but its header's model has %l",
                 archive->size, (int64_t)size);
    if (!archive->result) mli_bin_add(&bin);
}

/* The legacy version has no magic: it is known by seven plausible numbers and the size that they give. Returns 0 where
   they are not to be believed. */
static int mli_read_legacy_bin(ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    uint64_t size;
    mli_bin bin;
    memset(&bin, 0, sizeof bin);
    bin.archive = archive;
    bin.header_size = 28;
    if (archive->size < 28 || !mli_bin_header(&bin, &in) || bin.dim % 2 || bin.hidden_dim < bin.dim / 4)
        return 0;
    size = mli_bin_walk(&bin, NULL);
    if (size < archive->size) return 0;
    if (size > archive->size)
        mli_cut_short(archive, "the model of its llama2.c header", size);
    else
        mli_bin_add(&bin);
    return 1;
}

/* ---- telling formats apart ---- */

static int mli_begins(const ml_archive *archive, const char *bytes, size_t n) {
    return archive->size >= n && memcmp(archive->data, bytes, n) == 0;
}

/* llama2.c's tokenizer.bin: the longest piece's length, then score, length and bytes of each piece, the first being
   <unk>. */
static int mli_is_tokenizer_bin(const ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    const unsigned char *piece;
    mli_read_bytes(&in, 8);
    piece = mli_read_u32(&in) == 5 ? mli_read_bytes(&in, 5) : NULL;
    return piece && memcmp(piece, "<unk>", 5) == 0;
}

static int mli_is_text(const ml_archive *archive) {
    size_t i, n = MLI_MIN(archive->size, 512);
    for (i = 0; i < n; i++) {
        unsigned char c = archive->data[i];
        if (c < 32 && c != '\n' && c != '\r' && c != '\t' && c != '\f') return 0;
    }
    return 1;
}

/* What a file is that is no model, where that can be told. */
static const char *mli_describe(const ml_archive *archive) {
    static const struct {
        const char *bytes;
        unsigned char n;
        const char *what;
    } known[] = {
        {"\x80\x02\x8a\x0al\xfc\x9c", 7,
         "a PyTorch file from before version 1.6: load and save it again there"},
        {"lmgg", 4, "a ggml file from before GGUF: convert it with llama.cpp"},
        {"tjgg", 4, "a ggml file from before GGUF: convert it with llama.cpp"},
        {"fmgg", 4, "a ggml file from before GGUF: convert it with llama.cpp"},
        {"version https://git-lfs", 23,
         "a Git LFS pointer: the model itself was not downloaded (git lfs pull)"},
        {"\x0a\x0e\x0a\x05<unk>", 9, "a tokenizer (SentencePiece), not a model"},
        {"\x93NUMPY", 6, "a NumPy array, not a model"},
        {"\x89HDF", 4, "an HDF5 file"},
        {"\xff\xd8\xff", 3, "a JPEG picture"},
        {"\x89PNG", 4, "a PNG picture"},
        {"GIF8", 4, "a GIF picture"},
        {"%PDF", 4, "a PDF document"},
        {"\x1f\x8b", 2, "compressed with gzip: unpack it first"},
        {"\x28\xb5\x2f\xfd", 4, "compressed with zstd: unpack it first"},
        {"\xfd"
         "7zXZ",
         5, "compressed with xz: unpack it first"},
        {"\x7f"
         "ELF",
         4, "a program"},
    };
    size_t i;
    if (!archive->size) return "empty";
    for (i = 0; i < sizeof known / sizeof known[0]; i++)
        if (mli_begins(archive, known[i].bytes, known[i].n)) return known[i].what;
    if (mli_is_tokenizer_bin(archive)) return "a tokenizer (llama2.c's), not a model";
    if (!mli_is_text(archive)) return NULL;
    for (i = 0; i < archive->size && strchr(" \t\r\n", archive->data[i]); i++) {
    }
    if (i < archive->size && archive->data[i] == '<')
        return "a web page or XML: perhaps a download that failed";
    if (i < archive->size && archive->data[i] == '{') return "JSON text, not a model";
    return "a text file, not a model";
}

static void mli_unknown_file(ml_archive *archive) {
    static const char digits[] = "0123456789abcdef";
    const char *what = mli_describe(archive);
    char hex[8 * 3] = "";
    size_t i, n = MLI_MIN(archive->size, 8);
    for (i = 0; i < n; i++) {
        hex[3 * i] = digits[archive->data[i] >> 4];
        hex[3 * i + 1] = digits[archive->data[i] & 15];
        hex[3 * i + 2] = i + 1 < n ? ' ' : 0;
    }
    if (what)
        mli_stop(archive, ML_ERROR_FORMAT, "not a model file that is known: it is %s", what);
    else
        mli_stop(archive, ML_ERROR_FORMAT, "not a model file that is known: starts with the bytes %s", hex);
}

static void mli_read_archive(ml_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    uint64_t length = mli_read_u64(&in);
    int brace = mli_read_u8(&in) == '{';
    if (mli_begins(archive, "GGUF", 4))
        mli_read_gguf(archive);
    else if (mli_begins(archive, "PK\003\004", 4) || mli_begins(archive, "PK\005\006", 4))
        mli_read_torch(archive);
    else if (mli_begins(archive, "24ka", 4))
        mli_read_bin(archive);
    else if (brace && length >= 2 && length < 100000000) /* the limit is that of safetensors itself */
        mli_read_safetensors(archive);
    else if (mli_is_tokenizer_bin(archive) || !mli_read_legacy_bin(archive))
        mli_unknown_file(archive);
}

/* ---- archives ---- */

ML_DEF void ml_archive_close(ml_archive *archive) {
    ml_allocator allocator;
    if (!archive) return;
    allocator = archive->allocator;
    while (archive->blocks) {
        mli_block *next = archive->blocks->next;
        mli_free(&allocator, archive->blocks);
        archive->blocks = next;
    }
    mli_free(&allocator, archive->arrays);
    mli_free(&allocator, archive->values);
    mli_free(&allocator, archive->array_index);
    mli_free(&allocator, archive->value_index);
    mli_unmap_file(&allocator, &archive->file);
    mli_free(&allocator, archive);
}

/* Takes the file over, also when it fails. */
static ml_result mli_open_archive(const ml_allocator *allocator, const void *data, size_t size,
                                  mli_file *file, ml_archive **archive, ml_error *error) {
    ml_archive *opened = (ml_archive *)mli_alloc(allocator, 1, sizeof *opened);
    ml_result result;
    if (!opened) {
        if (file) mli_unmap_file(allocator, file);
        return mli_fail(error, ML_ERROR_MEMORY, "no memory for an archive");
    }
    opened->allocator = *allocator;
    if (file) opened->file = *file;
    opened->data = size ? (const unsigned char *)data : (const unsigned char *)"";
    opened->size = size;
    opened->error = error;
    opened->name_budget = 65536;
    mli_allow_names(opened, size);
    mli_read_archive(opened);
    if (!opened->result) mli_archive_sort(opened);
    opened->error = NULL;
    result = opened->result;
    if (result) {
        ml_archive_close(opened);
        return result;
    }
    *archive = opened;
    return mli_ok(error);
}

ML_DEF ml_result ml_archive_open_memory(const void *data, size_t size, const ml_allocator *allocator,
                                        ml_archive **archive, ml_error *error) {
    ml_allocator resolved;
    ml_result result;
    if (!archive || (!data && size))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_open_memory: NULL given");
    *archive = NULL;
    result = mli_resolve_allocator(allocator, &resolved, error);
    return result ? result : mli_open_archive(&resolved, data, size, NULL, archive, error);
}

ML_DEF ml_result ml_archive_open(const char *path, const ml_allocator *allocator, ml_archive **archive,
                                 ml_error *error) {
    ml_allocator resolved;
    mli_file file;
    ml_result result;
    if (!archive || !path) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_open: NULL given");
    *archive = NULL;
    result = mli_resolve_allocator(allocator, &resolved, error);
    if (!result) result = mli_map_file(path, &resolved, &file, error);
    return result ? result : mli_open_archive(&resolved, file.data, file.size, &file, archive, error);
}

ML_DEF const char *ml_archive_format(const ml_archive *archive) { return archive->format; }

ML_DEF size_t ml_archive_n_arrays(const ml_archive *archive) { return archive->n_arrays; }

ML_DEF const ml_array *ml_archive_array(const ml_archive *archive, size_t index) {
    return index < archive->n_arrays ? &archive->arrays[index] : NULL;
}

ML_DEF const ml_array *ml_archive_find(const ml_archive *archive, const char *name) {
    const mli_named *found = mli_find_named(archive->array_index, archive->n_arrays, name, strlen(name));
    return found ? &archive->arrays[found->index] : NULL;
}

ML_DEF size_t ml_archive_n_values(const ml_archive *archive) { return archive->n_values; }

ML_DEF const ml_value *ml_archive_value(const ml_archive *archive, size_t index) {
    return index < archive->n_values ? &archive->values[index] : NULL;
}

ML_DEF const ml_value *ml_archive_find_value(const ml_archive *archive, const char *name) {
    const mli_named *found = mli_find_named(archive->value_index, archive->n_values, name, strlen(name));
    return found ? &archive->values[found->index] : NULL;
}

/* ---- arrays ---- */

ML_DEF size_t ml_array_count(const ml_array *array) {
    size_t count = 1;
    int i;
    for (i = 0; i < array->n_dims; i++)
        count *= (size_t)array->shape[i]; /* the readers saw to it that it fits */
    return count;
}

/* Receives the elements in runs of n that lie one behind the other; `first` is the number of the first. */
typedef void (*mli_array_sink)(void *to, size_t first, const ml_array *array, const unsigned char *data,
                               size_t n);

/* Goes through the elements in row-major order: an odometer over all dimensions but the last. */
static void mli_array_each(const ml_array *array, mli_array_sink sink, void *to) {
    size_t count = ml_array_count(array), done = 0, run, i;
    int64_t at[ML_MAX_DIMS] = {0}, element = 0, step;
    size_t item_size = ml_row_bytes(array->type, 1);
    int d, last = array->n_dims - 1;
    if (array->is_contiguous || array->n_dims == 0) {
        if (count) sink(to, 0, array, (const unsigned char *)array->data, count);
        return;
    }
    run = (size_t)array->shape[last];
    step = array->stride[last];
    while (done < count) {
        const unsigned char *row = (const unsigned char *)array->data + (size_t)element * item_size;
        if (step == 1)
            sink(to, done, array, row, run);
        else
            for (i = 0; i < run; i++) sink(to, done + i, array, row + i * (size_t)step * item_size, 1);
        done += run;
        for (d = last - 1; d >= 0; d--) {
            element += array->stride[d];
            if (++at[d] < array->shape[d]) break;
            element -= array->shape[d] * array->stride[d];
            at[d] = 0;
        }
    }
}

/* Through an aligned buffer, since data in a file may lie anywhere. */
static void mli_sink_floats(void *to, size_t first, const ml_array *array, const unsigned char *data,
                            size_t n) {
    float *dst = (float *)to + first;
    double buffer[256];
    size_t i, part, bytes;
    for (i = 0; i < n; i += part) {
        part = MLI_MIN(n - i,
                       256); /* whole blocks: 256 is a multiple of 32, and so is n where there are blocks */
        bytes = ml_row_bytes(array->type, part);
        memcpy(buffer, data, bytes);
        ml_convert(ML_F32, dst + i, array->type, buffer, part);
        data += bytes;
    }
}

static void mli_sink_ints(void *to, size_t first, const ml_array *array, const unsigned char *data,
                          size_t n) {
    int64_t *dst = (int64_t *)to + first;
    size_t i, size = ml_row_bytes(array->type, 1);
    int is_signed = array->type != ML_U8 && array->type != ML_BOOL;
    uint64_t sign = is_signed ? (uint64_t)1 << (8 * size - 1) : 0;
    mli_reader in = mli_reader_at(data, 0, n * size);
    for (i = 0; i < n; i++) {
        uint64_t bits = mli_read_uint(&in, (int)size);
        dst[i] = array->type == ML_BOOL ? bits != 0 : (int64_t)((bits ^ sign) - sign);
    }
}

ML_DEF ml_result ml_array_read(const ml_array *array, float *dst, size_t n) {
    if (n != ml_array_count(array)) return ML_ERROR_ARGUMENT;
    mli_array_each(array, mli_sink_floats, dst);
    return ML_OK;
}

ML_DEF ml_result ml_array_read_ints(const ml_array *array, int64_t *dst, size_t n) {
    if (n != ml_array_count(array)) return ML_ERROR_ARGUMENT;
    switch (array->type) {
    case ML_I64:
    case ML_I32:
    case ML_I16:
    case ML_I8:
    case ML_U8:
    case ML_BOOL: mli_array_each(array, mli_sink_ints, dst); return ML_OK;
    default: return ML_ERROR_MISMATCH; /* floats are not silently rounded */
    }
}

/* ==== >>files, tokenizers ====
   The three files that hold a SentencePiece BPE vocabulary. */

/* ---- llama2.c's tokenizer .bin ----
   The length of the longest piece, then for each piece up to the end of the file: score (f32), length (i32),
   bytes. Spaces are plain; ids 0, 1, 2 are unknown, bos and eos, the latter two written between line feeds.
   */

typedef struct mli_bin_source {
    const unsigned char *data;
    size_t size;
    mli_reader in;
} mli_bin_source;

/* Kinds for a file that has none: by the id, and by the way bytes are written. */
static int mli_guess_kind(const unsigned char *piece, size_t length, int is_unknown, int is_control) {
    if (is_unknown) return ML_PIECE_UNKNOWN;
    if (is_control) return ML_PIECE_CONTROL;
    return mli_byte_of_piece(piece, length) >= 0 ? ML_PIECE_BYTE : ML_PIECE_NORMAL;
}

static ml_result mli_bin_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_bin_source *source = (mli_bin_source *)context;
    size_t at;
    if (id == 0) source->in = mli_reader_at(source->data, 4, source->size);
    at = (size_t)(source->in.p - source->data);
    piece->score = mli_read_f32(&source->in);
    piece->length = mli_read_u32(&source->in);
    piece->bytes = mli_read_bytes(&source->in, piece->length);
    if (source->in.failed)
        return mli_fail(error, ML_ERROR_TRUNCATED,
                        "tokenizer .bin: piece %d at byte %z goes beyond the end, %z", (int)id, at,
                        source->size);
    piece->kind = mli_guess_kind(piece->bytes, piece->length, id == 0, id == 1 || id == 2);
    if (piece->kind == ML_PIECE_CONTROL && piece->length > 2 && piece->bytes[0] == '\n' &&
        piece->bytes[piece->length - 1] == '\n') {
        piece->bytes++;
        piece->length -= 2;
    }
    return ML_OK;
}

static ml_result mli_tokenizer_from_bin(const unsigned char *data, size_t size, const ml_allocator *allocator,
                                        ml_tokenizer **tokenizer, ml_error *error) {
    mli_bin_source source;
    mli_vocabulary vocabulary;
    mli_piece piece;
    memset(&vocabulary, 0, sizeof vocabulary);
    source.data = data;
    source.size = size;
    source.in = mli_reader_at(data, 4, size);
    while (mli_left(&source.in) && vocabulary.n_pieces <= MLI_MAX_PIECES) {
        int32_t id = (int32_t)vocabulary.n_pieces;
        ml_result result = mli_bin_get(&source, id, &piece, error);
        if (result) return result;
        vocabulary.n_pieces++;
    }
    vocabulary.get = mli_bin_get;
    vocabulary.context = &source;
    vocabulary.has_plain_spaces = 1;
    vocabulary.bos = vocabulary.n_pieces > 1 ? 1 : -1;
    vocabulary.eos = vocabulary.n_pieces > 2 ? 2 : -1;
    vocabulary.padding = -1;
    vocabulary.adds_space_prefix = vocabulary.adds_bos = 1;
    return mli_tokenizer_create(&vocabulary, allocator, tokenizer, error);
}

/* ---- SentencePiece's tokenizer.model ----
   A protocol buffer (sentencepiece_model.proto): a run of fields, each a tag, number * 8 + wire type, and a
   value. A message in it is a field of bytes with the same form inside. Fields that are not known here are
   passed over. */

typedef struct mli_pb_field {
    uint64_t number; /* that the tag says, times 8, plus the wire type: one of the next */
    uint64_t value;  /* varint; length of bytes; or the bits of a fixed 32 or 64 */
    const unsigned char *bytes;
} mli_pb_field;

enum { MLI_PB_VARINT = 0, MLI_PB_64 = 1, MLI_PB_BYTES = 2, MLI_PB_32 = 5 };
#define MLI_PB(number, wire) ((number)*8 + (wire))

/* Seven bits a byte, least first; the high bit says that more follow. */
static uint64_t mli_pb_varint(mli_reader *in) {
    uint64_t value = 0;
    int shift;
    for (shift = 0; shift < 64; shift += 7) {
        unsigned byte = mli_read_u8(in);
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return value;
    }
    in->failed = 1;
    return 0;
}

/* Reads a field; 0 at the end, or, with in->failed, where it cannot be read. */
static int mli_pb_read(mli_reader *in, mli_pb_field *field) {
    if (in->failed || !mli_left(in)) return 0;
    field->number = mli_pb_varint(in);
    field->bytes = NULL;
    switch (field->number & 7) {
    case MLI_PB_VARINT: field->value = mli_pb_varint(in); break;
    case MLI_PB_64: field->value = mli_read_u64(in); break;
    case MLI_PB_BYTES:
        field->value = mli_pb_varint(in);
        field->bytes = mli_read_bytes(in, field->value);
        break;
    case MLI_PB_32: field->value = mli_read_u32(in); break;
    default: in->failed = 1;
    }
    if (field->number < 8) in->failed = 1; /* there is no field 0 */
    return !in->failed;
}

typedef struct mli_spm_source {
    const unsigned char *data;
    size_t size;
    mli_reader in; /* behind the piece read last */
    /* trainer_spec */
    int64_t model_type, unk_id, bos_id, eos_id, pad_id, suffix_space;
    /* normalizer_spec */
    int64_t add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces;
    int has_rules; /* of rewriting characters, in normalizer_spec or denormalizer_spec */
} mli_spm_source;

static ml_result mli_spm_corrupt(const mli_spm_source *source, const unsigned char *at, const char *what,
                                 ml_error *error) {
    return mli_fail(error, ML_ERROR_FORMAT, "tokenizer.model: %s at byte %z of %z is cut short or corrupt",
                    what, (size_t)(at - source->data), source->size);
}

/* Message SentencePiece: piece = 1, score = 2, type = 3. */
static ml_result mli_spm_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_spm_source *source = (mli_spm_source *)context;
    mli_reader in;
    mli_pb_field field;
    if (id == 0) source->in = mli_reader_at(source->data, 0, source->size);
    do {
        if (!mli_pb_read(&source->in, &field)) return mli_spm_corrupt(source, source->in.p, "a piece", error);
    } while (field.number != MLI_PB(1, MLI_PB_BYTES));
    in = mli_reader_at(field.bytes, 0, (size_t)field.value);
    memset(piece, 0, sizeof *piece);
    piece->kind = ML_PIECE_NORMAL;
    piece->bytes = field.bytes;
    while (mli_pb_read(&in, &field)) {
        switch (field.number) {
        case MLI_PB(1, MLI_PB_BYTES):
            piece->bytes = field.bytes;
            piece->length = (size_t)field.value;
            break;
        case MLI_PB(2, MLI_PB_32): piece->score = mli_bits_float((uint32_t)field.value); break;
        case MLI_PB(3, MLI_PB_VARINT): piece->kind = field.value > 99 ? 99 : (int)field.value; break;
        default: break;
        }
    }
    return in.failed ? mli_spm_corrupt(source, in.p, "a piece", error) : ML_OK;
}

/* Messages TrainerSpec, NormalizerSpec and, for its rules, the denormaliser's NormalizerSpec. */
static ml_result mli_spm_read_spec(mli_spm_source *source, const mli_pb_field *message, ml_error *error) {
    mli_reader in = mli_reader_at(message->bytes, 0, (size_t)message->value);
    uint64_t which = message->number >> 3;
    mli_pb_field field;
    while (mli_pb_read(&in, &field)) {
        int64_t value = (int32_t)(uint32_t)field.value; /* int32, bool and enum alike */
        if (which == 2) {
            switch (field.number) {
            case MLI_PB(3, MLI_PB_VARINT): source->model_type = value; break;
            case MLI_PB(24, MLI_PB_VARINT): source->suffix_space = value; break;
            case MLI_PB(40, MLI_PB_VARINT): source->unk_id = value; break;
            case MLI_PB(41, MLI_PB_VARINT): source->bos_id = value; break;
            case MLI_PB(42, MLI_PB_VARINT): source->eos_id = value; break;
            case MLI_PB(43, MLI_PB_VARINT): source->pad_id = value; break;
            default: break;
            }
            continue;
        }
        if (field.number == MLI_PB(2, MLI_PB_BYTES)) source->has_rules |= field.value > 0;
        if (which == 5) continue;
        switch (field.number) {
        case MLI_PB(3, MLI_PB_VARINT): source->add_dummy_prefix = value; break;
        case MLI_PB(4, MLI_PB_VARINT): source->remove_extra_whitespaces = value; break;
        case MLI_PB(5, MLI_PB_VARINT): source->escape_whitespaces = value; break;
        default: break;
        }
    }
    return in.failed ? mli_spm_corrupt(source, in.p, which == 2 ? "trainer_spec" : "normalizer_spec", error)
                     : ML_OK;
}

/* Message ModelProto: pieces = 1, trainer_spec = 2, normalizer_spec = 3, denormalizer_spec = 5. */
static ml_result mli_spm_read(mli_spm_source *source, size_t *n_pieces, ml_error *error) {
    mli_reader in = mli_reader_at(source->data, 0, source->size);
    const unsigned char *at = in.p;
    mli_pb_field field;
    source->model_type = 1; /* the defaults of the .proto file */
    source->bos_id = 1;
    source->eos_id = 2;
    source->pad_id = -1;
    source->add_dummy_prefix = source->remove_extra_whitespaces = source->escape_whitespaces = 1;
    *n_pieces = 0;
    while (mli_pb_read(&in, &field)) {
        ml_result result = ML_OK;
        *n_pieces += field.number == MLI_PB(1, MLI_PB_BYTES);
        if (field.number == MLI_PB(2, MLI_PB_BYTES) || field.number == MLI_PB(3, MLI_PB_BYTES) ||
            field.number == MLI_PB(5, MLI_PB_BYTES))
            result = mli_spm_read_spec(source, &field, error);
        if (result) return result;
        at = in.p;
    }
    return in.failed ? mli_spm_corrupt(source, at, "a field", error) : ML_OK;
}

static ml_result mli_spm_check(const mli_spm_source *source, ml_error *error) {
    if (source->model_type != 2) {
        const char *type = source->model_type == 1   ? "Unigram"
                           : source->model_type == 3 ? "Word"
                           : source->model_type == 4 ? "Char"
                                                     : "of an unknown type";
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "tokenizer.model: the model is %s; only BPE is supported", type);
    }
    if (source->has_rules)
        return mli_fail(
            error, ML_ERROR_UNSUPPORTED,
            "tokenizer.model: precompiled_charsmap has rules that rewrite characters; only the identity "
            "normalizer is supported");
    if (!source->escape_whitespaces || source->suffix_space)
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "tokenizer.model: %s is not supported",
                        source->suffix_space ? "treat_whitespace_as_suffix" : "escape_whitespaces = false");
    return ML_OK;
}

/* An id that a file gives for a special piece. Negative means that there is none; one outside is an error,
   unless it is only the default. */
static ml_result mli_special_id(int64_t value, int is_default, const char *name, size_t n_pieces, int32_t *id,
                                ml_error *error) {
    *id = -1;
    if (value < 0) return ML_OK;
    if ((uint64_t)value < n_pieces) {
        *id = (int32_t)value;
        return ML_OK;
    }
    if (is_default || !n_pieces) return ML_OK; /* that there are no pieces is told later */
    return mli_fail(error, ML_ERROR_FORMAT, "%s is %l, outside the vocabulary of %z", name, value, n_pieces);
}

static ml_result mli_tokenizer_from_spm(const unsigned char *data, size_t size, const ml_allocator *allocator,
                                        ml_tokenizer **tokenizer, ml_error *error) {
    mli_spm_source source;
    mli_vocabulary vocabulary;
    ml_result result;
    size_t n;
    memset(&source, 0, sizeof source);
    memset(&vocabulary, 0, sizeof vocabulary);
    source.data = data;
    source.size = size;
    result = mli_spm_read(&source, &n, error);
    if (!result) result = mli_spm_check(&source, error);
    if (!result)
        result = mli_special_id(source.unk_id, source.unk_id == 0, "trainer_spec.unk_id", n,
                                &vocabulary.unknown, error);
    if (!result)
        result = mli_special_id(source.bos_id, source.bos_id == 1, "trainer_spec.bos_id", n, &vocabulary.bos,
                                error);
    if (!result)
        result = mli_special_id(source.eos_id, source.eos_id == 2, "trainer_spec.eos_id", n, &vocabulary.eos,
                                error);
    if (!result)
        result = mli_special_id(source.pad_id, 0, "trainer_spec.pad_id", n, &vocabulary.padding, error);
    if (result) return result;
    vocabulary.get = mli_spm_get;
    vocabulary.context = &source;
    vocabulary.n_pieces = n;
    vocabulary.adds_space_prefix = source.add_dummy_prefix != 0;
    vocabulary.removes_extra_spaces = source.remove_extra_whitespaces != 0;
    vocabulary.adds_bos = 1;
    return mli_tokenizer_create(&vocabulary, allocator, tokenizer, error);
}

/* ---- GGUF ----
   Keys tokenizer.ggml.*; llama.cpp's defaults where one is absent. */

enum { MLI_GGUF_I32 = 5, MLI_GGUF_F32 = 6 };

typedef struct mli_gguf_source {
    const unsigned char *begin, *end;    /* the strings, and the end of the file */
    const unsigned char *scores, *kinds; /* four bytes each, or NULL */
    const mli_vocabulary *vocabulary;
    mli_reader in;
} mli_gguf_source;

static ml_result mli_gguf_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_gguf_source *source = (mli_gguf_source *)context;
    const mli_vocabulary *vocabulary = source->vocabulary;
    mli_reader in;
    if (id == 0) source->in = mli_reader_at(source->begin, 0, (size_t)(source->end - source->begin));
    piece->bytes = (const unsigned char *)mli_gguf_string(&source->in, &piece->length);
    if (source->in.failed)
        return mli_fail(error, ML_ERROR_TRUNCATED, "tokenizer.ggml.tokens: string %d is cut short", (int)id);
    piece->score = 0;
    if (source->scores) {
        in = mli_reader_at(source->scores, (size_t)id * 4, (size_t)id * 4 + 4);
        piece->score = mli_read_f32(&in);
    }
    if (source->kinds) {
        in = mli_reader_at(source->kinds, (size_t)id * 4, (size_t)id * 4 + 4);
        piece->kind = mli_read_i32(&in);
        if (piece->kind == 0) piece->kind = ML_PIECE_NORMAL; /* llama.cpp's "undefined" */
    } else {
        piece->kind = mli_guess_kind(piece->bytes, piece->length, id == vocabulary->unknown,
                                     id == vocabulary->bos || id == vocabulary->eos);
    }
    return ML_OK;
}

/* The list under a key, of that type and, unless n is 0, length; *list is NULL when there is no such key. */
static ml_result mli_gguf_find_list(const ml_archive *archive, const char *key, int type, size_t n,
                                    const ml_value **list, ml_error *error) {
    const ml_value *value = ml_archive_find_value(archive, key);
    *list = NULL;
    if (!value) return ML_OK;
    if (value->kind != ML_VALUE_LIST || (value->list_type != type && value->length))
        return mli_fail(error, ML_ERROR_FORMAT, "key %s is no list of %s", key,
                        type == MLI_GGUF_STRING ? "strings"
                        : type == MLI_GGUF_F32  ? "32-bit floats"
                                                : "32-bit integers");
    if (n && value->length != n)
        return mli_fail(error, ML_ERROR_MISMATCH, "key %s has %z elements for %z pieces", key, value->length,
                        n);
    *list = value;
    return ML_OK;
}

/* A special piece's id. All ones, as llama.cpp's own converter writes it, means that there is none. */
static ml_result mli_gguf_id(const ml_archive *archive, const char *key, int64_t fallback, size_t n_pieces,
                             int32_t *id, ml_error *error) {
    const ml_value *value = ml_archive_find_value(archive, key);
    if (value && value->kind != ML_VALUE_INT)
        return mli_fail(error, ML_ERROR_FORMAT, "key %s is no integer", key);
    if (!value) return mli_special_id(fallback, 1, key, n_pieces, id, error);
    return mli_special_id(value->i == (int64_t)UINT32_MAX ? -1 : value->i, 0, key, n_pieces, id, error);
}

static ml_result mli_gguf_flag(const ml_archive *archive, const char *key, int *flag, ml_error *error) {
    const ml_value *value = ml_archive_find_value(archive, key);
    if (value && value->kind != ML_VALUE_BOOL)
        return mli_fail(error, ML_ERROR_FORMAT, "key %s is no bool", key);
    if (value) *flag = value->i != 0;
    return ML_OK;
}

static ml_result mli_gguf_special(const ml_archive *archive, mli_vocabulary *vocabulary, ml_error *error) {
    size_t n = vocabulary->n_pieces;
    ml_result result = mli_gguf_id(archive, "tokenizer.ggml.bos_token_id", 1, n, &vocabulary->bos, error);
    if (!result) result = mli_gguf_id(archive, "tokenizer.ggml.eos_token_id", 2, n, &vocabulary->eos, error);
    if (!result)
        result = mli_gguf_id(archive, "tokenizer.ggml.unknown_token_id", 0, n, &vocabulary->unknown, error);
    if (!result)
        result = mli_gguf_id(archive, "tokenizer.ggml.padding_token_id", -1, n, &vocabulary->padding, error);
    vocabulary->adds_space_prefix = vocabulary->adds_bos = 1;
    if (!result)
        result =
            mli_gguf_flag(archive, "tokenizer.ggml.add_space_prefix", &vocabulary->adds_space_prefix, error);
    if (!result)
        result = mli_gguf_flag(archive, "tokenizer.ggml.remove_extra_whitespaces",
                               &vocabulary->removes_extra_spaces, error);
    if (!result)
        result = mli_gguf_flag(archive, "tokenizer.ggml.add_bos_token", &vocabulary->adds_bos, error);
    if (!result)
        result = mli_gguf_flag(archive, "tokenizer.ggml.add_eos_token", &vocabulary->adds_eos, error);
    return result;
}

static ml_result mli_tokenizer_from_archive(const ml_archive *archive, const ml_allocator *allocator,
                                            ml_tokenizer **tokenizer, ml_error *error) {
    const ml_value *model = ml_archive_find_value(archive, "tokenizer.ggml.model");
    const ml_value *tokens, *scores, *kinds;
    mli_gguf_source source;
    mli_vocabulary vocabulary;
    ml_result result =
        mli_gguf_find_list(archive, "tokenizer.ggml.tokens", MLI_GGUF_STRING, 0, &tokens, error);
    if (result) return result;
    if (!tokens || !model || model->kind != ML_VALUE_STRING)
        return mli_fail(error, ML_ERROR_FORMAT, "no tokenizer in this file: key %s is absent",
                        tokens ? "tokenizer.ggml.model" : "tokenizer.ggml.tokens");
    if (model->length != 5 || memcmp(model->s, "llama", 5) != 0)
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "tokenizer.ggml.model is not \"llama\" (SentencePiece BPE), the only kind supported");
    memset(&vocabulary, 0, sizeof vocabulary);
    vocabulary.n_pieces = tokens->length;
    result =
        mli_gguf_find_list(archive, "tokenizer.ggml.scores", MLI_GGUF_F32, tokens->length, &scores, error);
    if (!result)
        result = mli_gguf_find_list(archive, "tokenizer.ggml.token_type", MLI_GGUF_I32, tokens->length,
                                    &kinds, error);
    if (!result) result = mli_gguf_special(archive, &vocabulary, error);
    if (result) return result;
    source.begin = (const unsigned char *)tokens->s;
    source.end = archive->data + archive->size;
    source.scores = scores ? (const unsigned char *)scores->s : NULL;
    source.kinds = kinds ? (const unsigned char *)kinds->s : NULL;
    source.vocabulary = &vocabulary;
    vocabulary.get = mli_gguf_get;
    vocabulary.context = &source;
    return mli_tokenizer_create(&vocabulary, allocator, tokenizer, error);
}

static ml_result mli_tokenizer_from_gguf(const void *data, size_t size, const ml_allocator *allocator,
                                         ml_tokenizer **tokenizer, ml_error *error) {
    ml_archive *archive;
    ml_result result = ml_archive_open_memory(data, size, allocator, &archive, error);
    if (result) return result;
    result = mli_tokenizer_from_archive(archive, allocator, tokenizer, error);
    ml_archive_close(archive);
    return result;
}

/* ---- any of them ---- */

/* A .bin begins with the length of its longest piece, which is below 2^16; a .model with the field of its
   first piece, and then that piece's first field. */
ML_DEF ml_result ml_tokenizer_load_memory(const void *data, size_t size, const ml_allocator *given,
                                          ml_tokenizer **tokenizer, ml_error *error) {
    const unsigned char *p = (const unsigned char *)data;
    ml_allocator allocator;
    ml_result result;
    if (!tokenizer || (!data && size))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_tokenizer_load: an argument is NULL");
    *tokenizer = NULL;
    result = mli_resolve_allocator(given, &allocator, error);
    if (result) return result;
    if (size < 4) return mli_fail(error, ML_ERROR_TRUNCATED, "a tokenizer of %z bytes is cut short", size);
    if (memcmp(p, "GGUF", 4) == 0) return mli_tokenizer_from_gguf(data, size, &allocator, tokenizer, error);
    if (p[2] == 0 && p[3] == 0) return mli_tokenizer_from_bin(p, size, &allocator, tokenizer, error);
    if (p[0] == MLI_PB(1, MLI_PB_BYTES)) return mli_tokenizer_from_spm(p, size, &allocator, tokenizer, error);
    return mli_fail(
        error, ML_ERROR_FORMAT,
        "this is no tokenizer: neither SentencePiece's tokenizer.model, nor GGUF, nor llama2.c's .bin");
}

ML_DEF ml_result ml_tokenizer_load(const char *path, const ml_allocator *given, ml_tokenizer **tokenizer,
                                   ml_error *error) {
    ml_allocator allocator;
    mli_file file;
    ml_error inner;
    ml_result result;
    if (!path || !tokenizer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_tokenizer_load: an argument is NULL");
    *tokenizer = NULL;
    result = mli_resolve_allocator(given, &allocator, error);
    if (!result) result = mli_map_file(path, &allocator, &file, error);
    if (result) return result;
    result = ml_tokenizer_load_memory(file.data, file.size, &allocator, tokenizer, &inner);
    mli_unmap_file(&allocator, &file);
    return result ? mli_fail(error, result, "%s: %s", path, inner.text) : mli_ok(error);
}

/* Second part: from named arrays and values to a model. */

/* ---- the configuration ---- */

typedef enum mli_field {
    MLI_FIELD_DIM,
    MLI_FIELD_HIDDEN,
    MLI_FIELD_LAYERS,
    MLI_FIELD_HEADS,
    MLI_FIELD_KV_HEADS,
    MLI_FIELD_VOCAB,
    MLI_FIELD_SEQ_LEN,
    MLI_FIELD_TIED,
    MLI_FIELD_NORM,
    MLI_FIELD_MASK,
    MLI_FIELD_NORM_EPS,
    MLI_FIELD_ROPE_THETA,
    MLI_FIELD_ROPE_TYPE,
    MLI_FIELD_ROPE_FACTOR,
    MLI_FIELDS
} mli_field;

/* What the writers of checkpoints call each field; the first key that the archive has counts. config.json's keys
   stand behind "config.json.". */
#define MLI_FIELD_KEYS 5
static const char *const mli_field_keys[MLI_FIELDS][MLI_FIELD_KEYS] = {
    /* clang-format off */
    {"llama.embedding_length", "config.json.hidden_size", "model_args.dim", "model_config.dim", NULL},
    {"llama.feed_forward_length", "config.json.intermediate_size", "model_args.hidden_dim", "model_config.hidden_dim",
     NULL},
    {"llama.block_count", "config.json.num_hidden_layers", "model_args.n_layers", "model_config.n_layers", NULL},
    {"llama.attention.head_count", "config.json.num_attention_heads", "model_args.n_heads", "model_config.n_heads",
     NULL},
    {"llama.attention.head_count_kv", "config.json.num_key_value_heads", "model_args.n_kv_heads",
     "model_config.n_kv_heads", NULL},
    {"llama.vocab_size", "config.json.vocab_size", "model_args.vocab_size", "model_config.vocab_size", NULL},
    {"llama.context_length", "config.json.max_position_embeddings", "model_args.max_seq_len",
     "model_config.max_seq_len", NULL},
    {"config.json.tie_word_embeddings", NULL},
    {"minillama.norm", "config.json.minillama_norm", NULL},
    {"minillama.mask", "config.json.minillama_mask", NULL},
    {"llama.attention.layer_norm_rms_epsilon", "config.json.rms_norm_eps", "model_args.norm_eps",
     "model_config.layer_norm_eps", NULL},
    {"llama.rope.freq_base", "config.json.rope_theta", "config.json.rope_parameters.rope_theta",
     "model_args.rope_theta", NULL},
    {"llama.rope.scaling.type", "config.json.rope_scaling.rope_type", "config.json.rope_scaling.type",
     "config.json.rope_parameters.rope_type", NULL},
    {"llama.rope.scaling.factor", "llama.rope.scale_linear", "config.json.rope_scaling.factor",
     "config.json.rope_parameters.factor", NULL},
    /* clang-format on */
};

/* What must be so, where a file says anything about it, for the file to be a Llama that this forward pass computes.
   No text: the value must be 0 or false. */
typedef struct mli_demand {
    const char *key, *text;
} mli_demand;
static const mli_demand mli_demands[] = {
    {"general.architecture", "llama"},  {"general.type", "model"},
    {"llama.expert_count", NULL},       {"config.json.model_type", "llama"},
    {"config.json.hidden_act", "silu"}, {"config.json.attention_bias", NULL},
    {"config.json.mlp_bias", NULL},     {"model_args.use_scaled_rope", NULL},
};

#define MLI_PREFIX_SIZE 80                                  /* longest prefix of tensor names, and its zero */
#define MLI_LONG_NAME_SIZE (MLI_PREFIX_SIZE + ML_NAME_SIZE) /* prefix and name */

typedef struct mli_loader {
    const ml_load_desc *desc;
    ml_allocator allocator;
    ml_archive *archive; /* NULL once the model has taken it over, or does without */
    ml_error *error;
    ml_config config;
    mli_naming naming; /* what the tensors are called: prefix, then a name of this scheme */
    char prefix[MLI_PREFIX_SIZE];
    const ml_array **sources; /* (n_tensors) where the weights come from; NULL: not in the file */
    ml_model *model;
} mli_loader;

static const ml_value *mli_field_value(const mli_loader *loader, mli_field field) {
    const ml_value *value = NULL;
    int i;
    for (i = 0; i < MLI_FIELD_KEYS && mli_field_keys[field][i] && !value; i++)
        value = ml_archive_find_value(loader->archive, mli_field_keys[field][i]);
    return value;
}

static int mli_value_is(const ml_value *value, const char *text) {
    return value->kind == ML_VALUE_STRING && value->length == strlen(text) &&
           memcmp(value->s, text, value->length) == 0;
}

/* A string from a file, made short and zero-terminated for a sentence; what is no string gets a description. */
static const char *mli_value_text(const ml_value *value, char text[64]) {
    size_t at = 0;
    if (value->kind != ML_VALUE_STRING) return value->kind == ML_VALUE_LIST ? "a list" : "a number";
    mli_put(text, 64, &at, value->s, value->length);
    return text;
}

/* A whole number in 1..INT_MAX; *number stays where the file says nothing. */
static ml_result mli_load_int(const mli_loader *loader, mli_field field, int *number) {
    const ml_value *value = mli_field_value(loader, field);
    int64_t n;
    if (!value) return ML_OK;
    n = value->i;
    if (value->kind == ML_VALUE_FLOAT && value->f > -1e15 && value->f < 1e15 && value->f == floor(value->f))
        n = (int64_t)value->f; /* JSON's writers may spell 64 as 64.0 */
    else if (value->kind == ML_VALUE_LIST)
        return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                        "value %s is a list: layers that differ are not supported", value->name);
    else if (value->kind != ML_VALUE_INT)
        return mli_fail(loader->error, ML_ERROR_FORMAT, "value %s is not a whole number", value->name);
    if (field == MLI_FIELD_VOCAB && n == -1) return ML_OK; /* Meta's params.json: as the tokenizer has it */
    if (n < 1 || n > INT_MAX)
        return mli_fail(loader->error, ML_ERROR_FORMAT, "value %s is %l, not in 1 to %d", value->name, n,
                        INT_MAX);
    *number = (int)n;
    return ML_OK;
}

/* A finite number that is not negative. */
static ml_result mli_load_float(const mli_loader *loader, mli_field field, float *number) {
    const ml_value *value = mli_field_value(loader, field);
    if (!value) return ML_OK;
    if ((value->kind != ML_VALUE_FLOAT && value->kind != ML_VALUE_INT) || !(value->f >= 0 && value->f < 1e30))
        return mli_fail(loader->error, ML_ERROR_FORMAT, "value %s is not a number from 0 to 1e30",
                        value->name);
    *number = (float)value->f;
    return ML_OK;
}

/* One of two words: returns in *choice 1 for the first, 2 for the second, and leaves it where nothing is said. */
static ml_result mli_load_choice(const mli_loader *loader, mli_field field, const char *first,
                                 const char *second, int *choice) {
    const ml_value *value = mli_field_value(loader, field);
    char text[64];
    if (!value) return ML_OK;
    *choice = mli_value_is(value, first) ? 1 : mli_value_is(value, second) ? 2 : 0;
    if (*choice) return ML_OK;
    return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "value %s is %s; supported are %s and %s",
                    value->name, mli_value_text(value, text), first, second);
}

static ml_result mli_check_demands(const mli_loader *loader, const mli_demand *demands, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) {
        const char *wanted = demands[i].text;
        const ml_value *value = ml_archive_find_value(loader->archive, demands[i].key);
        char text[64];
        if (!value || (wanted && mli_value_is(value, wanted))) continue;
        if (wanted)
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "value %s is %s; supported is %s",
                            value->name, mli_value_text(value, text), wanted);
        if ((value->kind != ML_VALUE_INT && value->kind != ML_VALUE_BOOL) || value->i != 0)
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "value %s is set: that is not supported",
                            value->name);
    }
    return ML_OK;
}

/* Position interpolation (Chen et al. 2023) is the one way of stretching the rotary positions that is supported. */
static ml_result mli_load_rope_scale(mli_loader *loader) {
    const ml_value *type = mli_field_value(loader, MLI_FIELD_ROPE_TYPE);
    float factor = 0;
    char text[64];
    ml_result result;
    loader->config.rope_scale = 1;
    if (type && (mli_value_is(type, "none") || mli_value_is(type, "default"))) return ML_OK;
    if (type && !mli_value_is(type, "linear"))
        return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "value %s is %s; supported is linear",
                        type->name, mli_value_text(type, text));
    result = mli_load_float(loader, MLI_FIELD_ROPE_FACTOR, &factor);
    if (!result && factor > 0) loader->config.rope_scale = factor; /* GGUF: 0 is no scaling */
    return result;
}

/* Everything but what the tensors tell: hidden_dim and vocab_size may stay 0, tied_output -1. */
static ml_result mli_load_config(mli_loader *loader) {
    ml_config *config = &loader->config;
    const struct {
        mli_field field;
        int *number, is_needed;
    } ints[] = {{MLI_FIELD_DIM, &config->dim, 1},
                {MLI_FIELD_LAYERS, &config->n_layers, 1},
                {MLI_FIELD_HEADS, &config->n_heads, 1},
                {MLI_FIELD_KV_HEADS, &config->n_kv_heads, 0},
                {MLI_FIELD_HIDDEN, &config->hidden_dim, 0},
                {MLI_FIELD_VOCAB, &config->vocab_size, 0},
                {MLI_FIELD_SEQ_LEN, &config->max_seq_len, 0}};
    const ml_value *tied = mli_field_value(loader, MLI_FIELD_TIED);
    int norm = ML_NORM_RMS, mask = ML_MASK_CAUSAL;
    ml_result result = mli_check_demands(loader, mli_demands, sizeof mli_demands / sizeof *mli_demands);
    size_t i;
    config->max_seq_len = 2048; /* what the first authors of these files assume where they say nothing */
    config->rope_theta = 10000;
    config->norm_eps =
        ml_archive_find_value(loader->archive, mli_field_keys[MLI_FIELD_DIM][1]) ? 1e-6f : 1e-5f;
    for (i = 0; i < sizeof ints / sizeof *ints && !result; i++) {
        const char *const *keys = mli_field_keys[ints[i].field];
        result = mli_load_int(loader, ints[i].field, ints[i].number);
        if (!result && ints[i].is_needed && !*ints[i].number)
            result =
                mli_fail(loader->error, ML_ERROR_MISMATCH,
                         "no configuration: it has none of the values %s, %s, %s", keys[0], keys[1], keys[2]);
    }
    if (!config->n_kv_heads) config->n_kv_heads = config->n_heads;
    if (!result) result = mli_load_float(loader, MLI_FIELD_NORM_EPS, &config->norm_eps);
    if (!result) result = mli_load_float(loader, MLI_FIELD_ROPE_THETA, &config->rope_theta);
    if (!result) result = mli_load_rope_scale(loader);
    if (!result) result = mli_load_choice(loader, MLI_FIELD_NORM, "rms", "layer", &norm);
    if (!result) result = mli_load_choice(loader, MLI_FIELD_MASK, "causal", "full", &mask);
    config->norm = loader->desc->norm ? loader->desc->norm : (ml_norm)norm;
    config->mask = loader->desc->mask ? loader->desc->mask : (ml_mask)mask;
    config->tied_output = tied && tied->kind == ML_VALUE_BOOL ? tied->i != 0 : -1;
    return result;
}

/* Where a file repeats the head size, it must be the one that follows from dim and n_heads. */
static ml_result mli_check_head_size(const mli_loader *loader) {
    static const char *const keys[] = {"llama.rope.dimension_count", "llama.attention.key_length",
                                       "llama.attention.value_length", "config.json.head_dim"};
    int head_size = loader->config.dim / loader->config.n_heads;
    size_t i;
    for (i = 0; i < sizeof keys / sizeof *keys; i++) {
        const ml_value *value = ml_archive_find_value(loader->archive, keys[i]);
        if (value && (value->kind != ML_VALUE_INT || value->i != head_size))
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                            "value %s is %l; supported is dim / n_heads = %d", keys[i], value->i, head_size);
    }
    return ML_OK;
}

/* ---- names and shapes of the weights ---- */

static const ml_array *mli_find_weight(const mli_loader *loader, mli_slot slot, int layer,
                                       char name[MLI_LONG_NAME_SIZE]) {
    size_t n = strlen(loader->prefix);
    memcpy(name, loader->prefix, n);
    mli_param_name(loader->naming, slot, layer, name + n);
    return ml_archive_find(loader->archive, name);
}

/* Whether the array is called `name`, behind a prefix that ends with a dot or is empty; then the loader gets it. */
static int mli_take_prefix(mli_loader *loader, const char *array, const char *name) {
    size_t length = strlen(array), n = strlen(name), prefix = length - n;
    if (length < n || prefix >= MLI_PREFIX_SIZE || strcmp(array + prefix, name) != 0) return 0;
    if (prefix && array[prefix - 1] != '.') return 0;
    memcpy(loader->prefix, array, prefix);
    loader->prefix[prefix] = 0;
    return 1;
}

/* Finds out who named the tensors. Wrappers put prefixes in front ("module.", "_orig_mod.", the key of the dictionary),
   and two schemes share the embedding's name, so the first query projection must be there under the same prefix; if
   it is nowhere, the first embedding decides, and the tensors that are missing are told from there. */
static ml_result mli_detect_naming(mli_loader *loader) {
    char name[MLI_LONG_NAME_SIZE], first_prefix[MLI_PREFIX_SIZE];
    int naming, first_naming = -1;
    size_t i;
    for (naming = 0; naming < MLI_NAMINGS; naming++) {
        char embedding[ML_NAME_SIZE];
        loader->naming = (mli_naming)naming;
        mli_param_name(loader->naming, MLI_TOKEN_EMBEDDING, 0, embedding);
        for (i = 0; i < ml_archive_n_arrays(loader->archive); i++) {
            if (!mli_take_prefix(loader, ml_archive_array(loader->archive, i)->name, embedding)) continue;
            if (mli_find_weight(loader, MLI_WQ, 0, name)) return ML_OK;
            if (first_naming >= 0) continue;
            first_naming = naming;
            memcpy(first_prefix, loader->prefix, sizeof first_prefix);
        }
    }
    if (first_naming < 0)
        return mli_fail(loader->error, ML_ERROR_MISMATCH,
                        "no Llama: none of its %z tensors is named like a token embedding",
                        ml_archive_n_arrays(loader->archive));
    loader->naming = (mli_naming)first_naming;
    memcpy(loader->prefix, first_prefix, sizeof first_prefix);
    return ML_OK;
}

static ml_result mli_missing(const mli_loader *loader, const char *name) {
    return mli_fail(loader->error, ML_ERROR_MISMATCH, "tensor %s is missing", name);
}

/* The number of rows of a weight that must be there: what a configuration leaves out. */
static ml_result mli_load_rows(const mli_loader *loader, mli_slot slot, int *rows) {
    char name[MLI_LONG_NAME_SIZE];
    const ml_array *array = mli_find_weight(loader, slot, 0, name);
    if (!array) return mli_missing(loader, name);
    if (*rows) return ML_OK;
    if (array->n_dims != 2 || array->shape[0] < 1 || array->shape[0] > INT_MAX)
        return mli_fail(loader->error, ML_ERROR_MISMATCH, "tensor %s is not a matrix that fits", name);
    *rows = (int)array->shape[0];
    return ML_OK;
}

/* Completes the configuration by what the tensors tell. hidden_dim: where Meta's code computes it from dim and
   multiple_of, w1 shows the result. */
static ml_result mli_complete_config(mli_loader *loader) {
    ml_config *config = &loader->config;
    char name[MLI_LONG_NAME_SIZE];
    const ml_array *embedding, *output;
    ml_result result = mli_load_rows(loader, MLI_TOKEN_EMBEDDING, &config->vocab_size);
    if (!result) result = mli_load_rows(loader, MLI_W1, &config->hidden_dim);
    if (result) return result;
    output = mli_find_weight(loader, MLI_OUTPUT, 0, name);
    embedding = mli_find_weight(loader, MLI_TOKEN_EMBEDDING, 0, name);
    if (config->tied_output < 0)
        config->tied_output = !output || (output->data == embedding->data && output->type == embedding->type);
    result = mli_check_config(config, loader->error);
    if (!result) result = mli_check_head_size(loader);
    if (!result && mli_find_weight(loader, MLI_WQ, config->n_layers, name))
        result = mli_fail(loader->error, ML_ERROR_MISMATCH,
                          "tensor %s is there, but the configuration has %d layers", name, config->n_layers);
    return result;
}

/* "(512, 64)" */
static void mli_format_shape(const ml_array *array, char text[96]) {
    size_t at = 0;
    int d;
    mli_put(text, 96, &at, "(", 1);
    for (d = 0; d < array->n_dims; d++) {
        if (d) mli_put(text, 96, &at, ", ", 2);
        mli_put_int(text, 96, &at, array->shape[d]);
    }
    mli_put(text, 96, &at, ")", 1);
}

/* Whether every element has its own place: strided views may be transposed or cut out, but a tensor of a few bytes
   must not pass for gigabytes. */
static int mli_is_dense(const ml_array *array) {
    int64_t rows = array->n_dims == 2 ? array->shape[0] : 1, cols = array->shape[array->n_dims - 1];
    int64_t down = array->n_dims == 2 ? array->stride[0] : 0, right = array->stride[array->n_dims - 1];
    if (array->is_contiguous) return 1;
    if (rows == 1) return cols == 1 || right > 0;
    if (cols == 1) return down > 0;
    return right <= down ? right > 0 && down / right >= cols : down > 0 && right / down >= rows;
}

static ml_result mli_check_source(const mli_loader *loader, const ml_array *array, const ml_tensor *tensor,
                                  mli_slot slot) {
    int is_vector = mli_params[slot].rows == MLI_ONE;
    char have[96], want[96];
    ml_array wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.n_dims = is_vector ? 1 : 2;
    wanted.shape[0] = is_vector ? tensor->cols : tensor->rows;
    wanted.shape[1] = tensor->cols;
    if (array->n_dims != wanted.n_dims || array->shape[0] != wanted.shape[0] ||
        (!is_vector && array->shape[1] != wanted.shape[1])) {
        mli_format_shape(array, have);
        mli_format_shape(&wanted, want);
        return mli_fail(loader->error, ML_ERROR_MISMATCH, "tensor %s has shape %s, not %s", array->name, have,
                        want);
    }
    if (array->type < ML_F32 || array->type > ML_F64)
        return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "tensor %s is of type %s", array->name,
                        ml_type_name(array->type));
    if (!mli_is_dense(array))
        return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                        "tensor %s repeats its elements (strides %l, %l)", array->name, array->stride[0],
                        array->stride[1]);
    return ML_OK;
}

/* Linear layers of a Llama have no bias: a file that has them is of another model. */
static ml_result mli_refuse_bias(const mli_loader *loader, mli_slot slot, int layer) {
    char name[MLI_LONG_NAME_SIZE];
    size_t n;
    if (mli_params[slot].role != MLI_ROLE_MATRIX) return ML_OK;
    mli_find_weight(loader, slot, layer, name);
    n = strlen(name) - strlen(".weight");
    memcpy(name + n, ".bias", sizeof ".bias");
    if (!ml_archive_find(loader->archive, name)) return ML_OK;
    return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                    "tensor %s: biases of linear layers are not supported", name);
}

/* Finds every weight. Tensors that no weight is made of are left alone: tables of rotary frequencies, the state of an
   optimizer. */
static ml_result mli_find_sources(mli_loader *loader) {
    const ml_model *model = loader->model;
    int i, layer;
    mli_slot slot;
    if (ml_archive_find(loader->archive, "rope_freqs.weight"))
        return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                        "tensor rope_freqs.weight: scaled frequencies are not supported");
    for (i = 0; i < model->n_tensors; i++) {
        char name[MLI_LONG_NAME_SIZE];
        const ml_array *array;
        ml_result result;
        mli_slot_of(i, &slot, &layer);
        if (!mli_has_slot(&model->config, slot)) continue;
        array = loader->sources[i] = mli_find_weight(loader, slot, layer, name);
        if (!array && mli_params[slot].role == MLI_ROLE_BIAS)
            continue; /* layer norm over an rms norm's weights: zeros */
        if (!array) return mli_missing(loader, name);
        result = mli_check_source(loader, array, &model->tensors[i], slot);
        if (!result) result = mli_refuse_bias(loader, slot, layer);
        if (result) return result;
    }
    return ML_OK;
}

/* ---- the weights ---- */

/* The type that a weight gets when the matrices are to be of `type` (ML_TYPE_NONE: as they are). Norms are F32. With
   Q4_0 the layer that makes the logits stays Q8_0, where four bits would cost most; a row that no block fits is F16. */
static ml_type mli_weight_type(const ml_config *config, mli_slot slot, ml_type type, ml_type present) {
    int makes_logits = slot == MLI_OUTPUT || (slot == MLI_TOKEN_EMBEDDING && config->tied_output);
    if (mli_params[slot].role == MLI_ROLE_NORM || mli_params[slot].role == MLI_ROLE_BIAS) return ML_F32;
    if (!type) return present == ML_F64 ? ML_F32 : present;
    if (type == ML_Q4_0 && makes_logits) type = ML_Q8_0;
    return (size_t)mli_extent_of(config, mli_params[slot].cols) % ml_type_block(type) ? ML_F16 : type;
}

/* The bytes that a tensor takes in memory, a multiple of MLI_ALIGN; 0 on overflow. */
static size_t mli_tensor_room(const ml_tensor *tensor) {
    size_t bytes;
    if (!mli_mul_size((size_t)tensor->rows, ml_row_bytes(tensor->type, (size_t)tensor->cols), &bytes) ||
        !mli_add_size(bytes, MLI_ALIGN - 1, &bytes))
        return 0;
    return bytes - bytes % MLI_ALIGN;
}

/* Gives memory, in one block, to every tensor that has a type but no data. *is_needed tells whether there were any. */
static ml_result mli_allocate_weights(ml_model *model, int *is_needed, ml_error *error) {
    ml_model_private *own = model->private_part;
    size_t total = MLI_ALIGN;
    unsigned char *at;
    int i;
    *is_needed = 0;
    for (i = 0; i < model->n_tensors; i++) {
        const ml_tensor *tensor = &own->tensors[i];
        size_t room;
        if (!tensor->type || tensor->data) continue;
        *is_needed = 1;
        room = mli_tensor_room(tensor);
        if (!room || !mli_add_size(total, room, &total))
            return mli_fail(error, ML_ERROR_MEMORY, "the weights are larger than the address space");
    }
    if (!*is_needed) return ML_OK;
    own->weights = own->allocator.alloc(total, own->allocator.user); /* not zeroed: all of it is written */
    if (!own->weights)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for %z bytes of weights", total);
    at = (unsigned char *)own->weights;
    at += mli_align_up((uintptr_t)at) - (uintptr_t)at;
    for (i = 0; i < model->n_tensors; i++) {
        ml_tensor *tensor = &own->tensors[i];
        if (!tensor->type || tensor->data) continue;
        tensor->data = at;
        at += mli_tensor_room(tensor);
    }
    return ML_OK;
}

static void mli_tie_output(ml_model *model) {
    ml_tensor *tensors = model->private_part->tensors;
    if (model->config.tied_output) tensors[MLI_OUTPUT] = tensors[MLI_TOKEN_EMBEDDING];
}

/* Hugging Face's rotary embedding turns element i of a head with i + hd/2, Meta's 2i with 2i + 1; so the rows of the
   query and key matrices are in another order. Returns the row of a matrix in Hugging Face's order that is row `row`
   in Meta's. */
static int mli_row_in_hf(const ml_config *config, mli_slot slot, int row) {
    int hd = config->dim / config->n_heads, in_head = row % hd;
    if (slot != MLI_WQ && slot != MLI_WK) return row;
    return row - in_head + in_head / 2 + in_head % 2 * (hd / 2);
}

static int mli_is_permuted(const mli_loader *loader, mli_slot slot) {
    return loader->naming == MLI_NAMING_HF && (slot == MLI_WQ || slot == MLI_WK);
}

/* A weight is used where it stands unless the caller asked for a type, or it is of another type than it must be, cut
   out of something larger, permuted, or at an odd address. */
static int mli_is_in_place(const mli_loader *loader, const ml_array *array, const ml_tensor *tensor,
                           mli_slot slot) {
    uintptr_t alignment = array->type == ML_F32 ? 4 : 2;
    return !loader->desc->type && array->type == tensor->type && array->is_contiguous &&
           !mli_is_permuted(loader, slot) && (uintptr_t)array->data % alignment == 0;
}

/* Row `row` of an array of one or two dimensions, its elements brought together in `gathered` if they lie apart. */
static const unsigned char *mli_array_row(const ml_array *array, int row, int cols, unsigned char *gathered) {
    const unsigned char *data = (const unsigned char *)array->data;
    size_t item = ml_row_bytes(array->type, 1), c, right = (size_t)array->stride[array->n_dims - 1];
    if (array->is_contiguous) return data + (size_t)row * ml_row_bytes(array->type, (size_t)cols);
    if (array->n_dims == 2) data += (size_t)row * (size_t)array->stride[0] * item;
    if (right == 1) return data;
    for (c = 0; c < (size_t)cols; c++) memcpy(gathered + c * item, data + c * right * item, item);
    return gathered;
}

/* Copies, converts and permutes one weight out of the file. */
static ml_result mli_copy_weight(const mli_loader *loader, const ml_array *array, const ml_tensor *tensor,
                                 mli_slot slot) {
    size_t bytes = ml_row_bytes(tensor->type, (size_t)tensor->cols);
    unsigned char *to = (unsigned char *)tensor->data, *gathered = NULL;
    int row;
    if (!array->is_contiguous) {
        gathered = (unsigned char *)mli_alloc(&loader->allocator, (size_t)tensor->cols, sizeof(double));
        if (!gathered)
            return mli_fail(loader->error, ML_ERROR_MEMORY, "out of memory for a row of %s", array->name);
    }
    for (row = 0; row < tensor->rows; row++, to += bytes) {
        int from = mli_is_permuted(loader, slot) ? mli_row_in_hf(&loader->config, slot, row) : row;
        const unsigned char *data = mli_array_row(array, from, tensor->cols, gathered);
        ml_convert(tensor->type, to, array->type, data, (size_t)tensor->cols);
    }
    mli_free(&loader->allocator, gathered);
    return ML_OK;
}

/* Files name a tensor's place, so many tensors can name the same: copying all of them would take memory out of
   proportion to the file. (Four times its size: llama2.c's quantised weights come as floats.) */
static ml_result mli_check_sharing(const mli_loader *loader, uint64_t copied_bytes) {
    if (copied_bytes / 4 <= loader->archive->size) return ML_OK;
    return mli_fail(loader->error, ML_ERROR_FORMAT,
                    "its tensors lie over each other: %l bytes in a file of %z", (int64_t)copied_bytes,
                    loader->archive->size);
}

/* Points every tensor at its numbers, in the file or in memory of the model's own. */
static ml_result mli_load_weights(mli_loader *loader) {
    ml_model *model = loader->model;
    ml_model_private *own = model->private_part;
    uint64_t copied_bytes = 0;
    int i, layer, is_copied = 0, n_in_place = 0;
    mli_slot slot;
    ml_result result;
    for (i = 0; i < model->n_tensors; i++) {
        const ml_array *array = loader->sources[i];
        ml_tensor *tensor = &own->tensors[i];
        mli_slot_of(i, &slot, &layer);
        if (!mli_has_slot(&model->config, slot)) continue;
        tensor->type =
            mli_weight_type(&model->config, slot, loader->desc->type, array ? array->type : ML_F32);
        if (array && mli_is_in_place(loader, array, tensor, slot)) {
            tensor->data = (void *)(uintptr_t)array->data; /* the forward pass only reads it */
            n_in_place++;
        } else if (array) {
            copied_bytes += (uint64_t)tensor->rows * ml_row_bytes(array->type, (size_t)tensor->cols);
        }
    }
    result = mli_check_sharing(loader, copied_bytes);
    if (!result) result = mli_allocate_weights(model, &is_copied, loader->error);
    for (i = 0; i < model->n_tensors && is_copied && !result; i++) {
        const ml_array *array = loader->sources[i];
        const ml_tensor *tensor = &model->tensors[i];
        mli_slot_of(i, &slot, &layer);
        if (!array && tensor->type)
            memset(tensor->data, 0,
                   (size_t)tensor->cols * sizeof(float)); /* a bias that the file does not have */
        else if (array && tensor->data != array->data)
            result = mli_copy_weight(loader, array, tensor, slot);
    }
    mli_tie_output(model);
    if (!result && n_in_place) { /* else nobody needs the file any longer */
        own->archive = loader->archive;
        loader->archive = NULL;
    }
    return result;
}

/* ---- the tokenizer ---- */

/* A name beside the file at `path`: its directory with `name` in it. NULL without memory. */
static char *mli_path_beside(const ml_allocator *allocator, const char *path, const char *name) {
    size_t directory = strlen(path), n = strlen(name);
    char *beside;
#ifdef _WIN32
    while (directory && path[directory - 1] != '/' && path[directory - 1] != '\\' &&
           path[directory - 1] != ':')
        directory--;
#else
    while (directory && path[directory - 1] != '/') directory--;
#endif
    beside = (char *)mli_alloc(allocator, directory + n + 1, 1);
    if (!beside) return NULL;
    memcpy(beside, path, directory);
    memcpy(beside + directory, name, n);
    return beside;
}

/* Tries a tokenizer that lies beside the model: it counts only if it is one, and of the right size. */
static ml_result mli_try_tokenizer(const mli_loader *loader, const char *path, const char *name,
                                   ml_tokenizer **tokenizer) {
    char *beside = mli_path_beside(&loader->allocator, path, name);
    ml_result result =
        beside ? ml_tokenizer_load(beside, &loader->allocator, tokenizer, NULL) : ML_ERROR_MEMORY;
    mli_free(&loader->allocator, beside);
    if (result == ML_ERROR_MEMORY) return mli_fail(loader->error, result, "out of memory for %s", name);
    if (result) *tokenizer = NULL;
    if (*tokenizer && ml_tokenizer_size(*tokenizer) != loader->config.vocab_size) {
        ml_tokenizer_free(*tokenizer);
        *tokenizer = NULL;
    }
    return ML_OK;
}

/* The caller's tokenizer, else the file's own, else one beside the file. The first two must fit the vocabulary; a kind
   of tokenizer that is not supported leaves the model without one. */
static ml_result mli_load_tokenizer(mli_loader *loader, const char *path) {
    static const char *const beside[] = {"tokenizer.model", "tokenizer.bin"};
    const ml_load_desc *desc = loader->desc;
    ml_tokenizer *tokenizer = NULL;
    ml_result result = ML_OK;
    size_t i;
    if (desc->tokenizer) {
        result = ml_tokenizer_load(desc->tokenizer, &loader->allocator, &tokenizer, loader->error);
    } else if (desc->tokenizer_data) {
        result = ml_tokenizer_load_memory(desc->tokenizer_data, desc->tokenizer_size, &loader->allocator,
                                          &tokenizer, loader->error);
    } else if (ml_archive_find_value(loader->archive, "tokenizer.ggml.tokens")) {
        result = mli_tokenizer_from_archive(loader->archive, &loader->allocator, &tokenizer, loader->error);
        if (result == ML_ERROR_UNSUPPORTED) return ML_OK;
    } else {
        for (i = 0; path && i < sizeof beside / sizeof *beside && !tokenizer && !result; i++)
            result = mli_try_tokenizer(loader, path, beside[i], &tokenizer);
    }
    if (result) return result;
    loader->model->private_part->tokenizer = tokenizer; /* ml_free's from here on */
    loader->model->tokenizer = tokenizer;
    if (tokenizer && ml_tokenizer_size(tokenizer) != loader->config.vocab_size)
        return mli_fail(loader->error, ML_ERROR_MISMATCH,
                        "the tokenizer has %d pieces, but the model's vocab_size is %d",
                        ml_tokenizer_size(tokenizer), loader->config.vocab_size);
    return ML_OK;
}

/* ---- loading ---- */

/* Weights in files are little-endian, and are used as they stand. */
static ml_result mli_check_byte_order(ml_error *error) {
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    return first ? ML_OK
                 : mli_fail(error, ML_ERROR_UNSUPPORTED, "models are files of little-endian machines");
}

/* Hugging Face keeps the configuration beside the weights, a model's in config.json; the caller may have it in memory.
   Its values join the archive's as "config.json.hidden_size" and so on. `whose` is for the sentence that there is none. */
static ml_result mli_load_json(mli_loader *loader, const char *path, const char *name, const char *whose) {
    const ml_load_desc *desc = loader->desc;
    mli_file file;
    ml_result result;
    char *beside;
    if (desc->config_json)
        return mli_json_values(loader->archive, name, desc->config_json, desc->config_json_size,
                               loader->error);
    if (!path) return ML_OK;
    beside = mli_path_beside(&loader->allocator, path, name);
    result = beside ? mli_map_file(beside, &loader->allocator, &file, NULL) : ML_ERROR_MEMORY;
    if (result == ML_ERROR_MEMORY)
        mli_fail(loader->error, result, "out of memory for %s", name);
    else if (result)
        result = mli_fail(loader->error, ML_ERROR_FILE,
                          "the file has no configuration %s, and beside it %s cannot be read", whose, beside);
    mli_free(&loader->allocator, beside);
    if (result) return result;
    result = mli_json_values(loader->archive, name, file.data, file.size, loader->error);
    mli_unmap_file(&loader->allocator, &file);
    return result;
}

/* From the open archive to the model. What was begun when it fails is in the loader. */
static ml_result mli_load_archive(mli_loader *loader, const char *path) {
    /* of another kind of model, no configuration is looked for */
    ml_result result = mli_check_demands(loader, mli_demands, sizeof mli_demands / sizeof *mli_demands);
    if (!result && !mli_field_value(loader, MLI_FIELD_DIM))
        result = mli_load_json(loader, path, "config.json", "of a Llama");
    if (!result) result = mli_load_config(loader);
    if (!result) result = mli_detect_naming(loader);
    if (!result) result = mli_complete_config(loader);
    if (!result) result = mli_model_new(&loader->config, &loader->allocator, &loader->model, loader->error);
    if (result) return result;
    loader->sources = (const ml_array **)mli_alloc(&loader->allocator, (size_t)loader->model->n_tensors,
                                                   sizeof *loader->sources);
    if (!loader->sources)
        return mli_fail(loader->error, ML_ERROR_MEMORY, "out of memory for a list of tensors");
    result = mli_find_sources(loader);
    if (!result)
        result = mli_load_tokenizer(loader, path); /* before the weights, which may take the archive */
    if (!result) result = mli_load_weights(loader);
    return result;
}

/* ml_load and ml_load_memory: path, or else data. */
static ml_result mli_load(const char *path, const void *data, size_t size, const ml_load_desc *desc,
                          ml_model **model, ml_error *error) {
    ml_load_desc defaults;
    mli_loader loader;
    ml_result result;
    memset(&defaults, 0, sizeof defaults);
    memset(&loader, 0, sizeof loader);
    loader.desc = desc ? desc : &defaults;
    loader.error = error;
    *model = NULL;
    if (loader.desc->type && (loader.desc->type < ML_F32 || loader.desc->type > ML_Q4_0))
        return mli_fail(error, ML_ERROR_ARGUMENT, "weights cannot be held as %s",
                        ml_type_name(loader.desc->type));
    result = mli_check_byte_order(error);
    if (!result) result = mli_resolve_allocator(&loader.desc->allocator, &loader.allocator, error);
    if (!result && path) result = ml_archive_open(path, &loader.allocator, &loader.archive, error);
    if (!result && !path)
        result = ml_archive_open_memory(data, size, &loader.allocator, &loader.archive, error);
    if (result) return result;
    result = mli_load_archive(&loader, path);
    mli_free(&loader.allocator, loader.sources);
    ml_archive_close(loader.archive);
    if (result) {
        ml_free(loader.model);
        return result;
    }
    *model = loader.model;
    return mli_ok(error);
}

ML_DEF ml_result ml_load(const char *path, const ml_load_desc *desc, ml_model **model, ml_error *error) {
    if (!path || !model) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_load: path or model is NULL");
    return mli_load(path, NULL, 0, desc, model, error);
}

ML_DEF ml_result ml_load_memory(const void *data, size_t size, const ml_load_desc *desc, ml_model **model,
                                ml_error *error) {
    if (!data || !model) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_load_memory: data or model is NULL");
    return mli_load(NULL, data, size, desc, model, error);
}

/* ---- adapters ---- */

#define MLI_PEFT_JSON "adapter_config.json"

/* Of what PEFT's configuration may say, all that changes how a pair is used. */
static const mli_demand mli_lora_demands[] = {
    {"general.architecture", "llama"},
    {"general.type", "adapter"},
    {"adapter.type", "lora"},
    {MLI_PEFT_JSON ".peft_type", "LORA"},
    {MLI_PEFT_JSON ".bias", "none"},
    {MLI_PEFT_JSON ".use_dora", NULL},
    {MLI_PEFT_JSON ".use_rslora", NULL},
    {MLI_PEFT_JSON ".lora_bias", NULL},
    {MLI_PEFT_JSON ".use_qalora", NULL},
    {MLI_PEFT_JSON ".fan_in_fan_out", NULL},
};

/* Lists and dictionaries that must be empty or absent: a scale of its own for some matrices, layers repeated, an
   adapter for only part of the text. */
static const char *const mli_lora_refused[] = {
    "adapter.alora.", MLI_PEFT_JSON ".alpha_pattern.", MLI_PEFT_JSON ".layer_replication.",
    MLI_PEFT_JSON ".alora_invocation_tokens.", MLI_PEFT_JSON ".arrow_config."};

/* How the weights began. Some ways change the frozen matrices, too, so that the pairs mean nothing beside the model as it
   was; of these three it is known that they do not. */
static const char *const mli_lora_inits[] = {"gaussian", "eva", "orthogonal"};

/* Half `index` of an adapter's tensors belongs to slot `*slot` of layer `*layer`; odd ones are B. */
static void mli_lora_slot_of(int index, mli_slot *slot, int *layer) {
    *slot = mli_lora_slots[index / 2 % MLI_LORA_TARGETS];
    *layer = index / 2 / MLI_LORA_TARGETS;
}

/* "blk.0.attn_q.weight.lora_a"; Hugging Face's "PREFIX.model.layers.0.self_attn.q_proj.lora_A.weight" */
static void mli_lora_name(mli_naming naming, const char *prefix, int index, char name[MLI_LONG_NAME_SIZE]) {
    char weight[ML_NAME_SIZE];
    const char *half;
    mli_slot slot;
    int layer;
    mli_lora_slot_of(index, &slot, &layer);
    mli_param_name(naming, slot, layer, weight);
    if (naming == MLI_NAMING_HF) weight[strlen(weight) - strlen(".weight")] = 0;
    if (naming == MLI_NAMING_HF)
        half = index % 2 ? "B.weight" : "A.weight";
    else
        half = index % 2 ? "b" : "a";
    mli_format(name, MLI_LONG_NAME_SIZE, "%s%s.lora_%s", prefix, weight, half);
}

/* B's rows are those of the matrix, in whatever order a file has them; A's are of no matrix. */
static mli_slot mli_lora_rows(int index) {
    return index % 2 ? mli_lora_slots[index / 2 % MLI_LORA_TARGETS] : MLI_SLOTS;
}

/* What PEFT puts in front of the model's names, which begin with "model."; what it puts there when the model lacks the
   layer that makes logits; nothing. */
static const char *const mli_peft_prefixes[3] = {"base_model.model.", "base_model.", ""};

/* Finds the halves that are there. */
static ml_result mli_find_pairs(mli_loader *loader) {
    int is_gguf = strcmp(ml_archive_format(loader->archive), "GGUF") == 0, n = 0;
    size_t p, i, n_sources = (size_t)loader->config.n_layers * MLI_LORA_TARGETS * 2;
    loader->naming = is_gguf ? MLI_NAMING_GGUF : MLI_NAMING_HF;
    loader->sources = (const ml_array **)mli_alloc(&loader->allocator, n_sources, sizeof *loader->sources);
    if (!loader->sources)
        return mli_fail(loader->error, ML_ERROR_MEMORY, "out of memory for a list of tensors");
    for (p = is_gguf ? 2 : 0; p < 3 && !n; p++) {
        mli_format(loader->prefix, MLI_PREFIX_SIZE, "%s", mli_peft_prefixes[p]);
        for (i = 0; i < n_sources; i++) {
            char name[MLI_LONG_NAME_SIZE];
            mli_lora_name(loader->naming, loader->prefix, (int)i, name);
            loader->sources[i] = ml_archive_find(loader->archive, name);
            n += loader->sources[i] != NULL;
        }
    }
    if (n) return ML_OK;
    return mli_fail(loader->error, ML_ERROR_MISMATCH,
                    "no adapter for this model: none of its %z tensors is named like half of a pair",
                    ml_archive_n_arrays(loader->archive));
}

/* A tensor that is left over would have changed something. */
static ml_result mli_check_all_used(const mli_loader *loader) {
    int n = loader->config.n_layers * MLI_LORA_TARGETS * 2, i;
    size_t k, n_used = 0;
    for (i = 0; i < n; i++) n_used += loader->sources[i] != NULL;
    if (n_used == ml_archive_n_arrays(loader->archive)) return ML_OK;
    for (k = 0; k < ml_archive_n_arrays(loader->archive); k++) {
        const ml_array *array = ml_archive_array(loader->archive, k);
        for (i = 0; i < n && loader->sources[i] != array; i++) {
        }
        if (i == n)
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                            "tensor %s is not part of an adapter that can be used: those are pairs beside "
                            "the matrices of the model's %d layers",
                            array->name, loader->config.n_layers);
    }
    return ML_OK;
}

/* Both halves of every pair are there, fit the model's matrix, and have the rank of all others. */
static ml_result mli_check_pairs(mli_loader *loader, int *rank) {
    const ml_config *c = &loader->config;
    const ml_array *first = NULL;
    int i, layer, n = c->n_layers * MLI_LORA_TARGETS * 2;
    mli_slot slot;
    for (i = 0; i < n; i += 2) {
        const ml_array *a = loader->sources[i], *b = loader->sources[i + 1];
        char other[MLI_LONG_NAME_SIZE];
        ml_tensor half;
        ml_result result;
        if (!a && !b) continue;
        mli_lora_name(loader->naming, loader->prefix, a ? i + 1 : i, other);
        if (!a || !b)
            return mli_fail(loader->error, ML_ERROR_MISMATCH,
                            "tensor %s is there, but not its other half, %s", a ? a->name : b->name, other);
        if (!first) first = a;
        if (a->n_dims != 2 || a->shape[0] < 1 || a->shape[0] > MLI_MAX_RANK)
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                            "tensor %s is no matrix of a rank from 1 to %d", a->name, MLI_MAX_RANK);
        if (a->shape[0] != first->shape[0])
            return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                            "tensor %s has rank %l, but %s has %l: one rank for all is supported", a->name,
                            a->shape[0], first->name, first->shape[0]);
        *rank = (int)a->shape[0];
        mli_lora_slot_of(i, &slot, &layer);
        half = mli_tensor_at(NULL, *rank, mli_extent_of(c, mli_params[slot].cols));
        result = mli_check_source(loader, a, &half, slot);
        half = mli_tensor_at(NULL, mli_extent_of(c, mli_params[slot].rows), *rank);
        if (!result) result = mli_check_source(loader, b, &half, slot);
        if (result) return result;
    }
    return mli_check_all_used(loader);
}

/* What the configuration of the adapter may not say. */
static ml_result mli_check_adapter(const mli_loader *loader) {
    const ml_value *init = ml_archive_find_value(loader->archive, MLI_PEFT_JSON ".init_lora_weights");
    char text[64];
    size_t i, k;
    ml_result result =
        mli_check_demands(loader, mli_lora_demands, sizeof mli_lora_demands / sizeof *mli_lora_demands);
    if (result) return result;
    for (k = 0; k < ml_archive_n_values(loader->archive); k++) {
        const char *name = ml_archive_value(loader->archive, k)->name;
        for (i = 0; i < sizeof mli_lora_refused / sizeof *mli_lora_refused; i++)
            if (strncmp(name, mli_lora_refused[i], strlen(mli_lora_refused[i])) == 0)
                return mli_fail(loader->error, ML_ERROR_UNSUPPORTED, "value %s is set: that is not supported",
                                name);
    }
    if (!init || init->kind == ML_VALUE_BOOL) return ML_OK;
    for (i = 0; i < sizeof mli_lora_inits / sizeof *mli_lora_inits; i++)
        if (mli_value_is(init, mli_lora_inits[i])) return ML_OK;
    return mli_fail(loader->error, ML_ERROR_UNSUPPORTED,
                    "value %s is %s: such an adapter may be for a changed model", init->name,
                    mli_value_text(init, text));
}

/* alpha; and the rank that the configuration names must be that of the tensors. */
static ml_result mli_load_alpha(const mli_loader *loader, int rank, float *alpha) {
    int is_gguf = loader->naming == MLI_NAMING_GGUF;
    const char *key = is_gguf ? "adapter.lora.alpha" : MLI_PEFT_JSON ".lora_alpha";
    const ml_value *value = ml_archive_find_value(loader->archive, key);
    const ml_value *r = ml_archive_find_value(loader->archive, MLI_PEFT_JSON ".r");
    if (r && (r->kind != ML_VALUE_INT || r->i != rank))
        return mli_fail(loader->error, ML_ERROR_MISMATCH, "value %s is not %d, the rank of the tensors",
                        r->name, rank);
    *alpha = (float)rank; /* llama.cpp: 0 is a scale of 1 */
    if (is_gguf && (!value || (value->kind == ML_VALUE_FLOAT && value->f == 0))) return ML_OK;
    if (!value)
        return mli_fail(loader->error, ML_ERROR_MISMATCH, "no configuration: value %s is missing", key);
    *alpha = value->f > 0 && value->f < 1e6 ? (float)value->f : 0;
    if ((value->kind != ML_VALUE_FLOAT && value->kind != ML_VALUE_INT) || !(*alpha > 0 && *alpha < 1e6f))
        return mli_fail(loader->error, ML_ERROR_FORMAT, "value %s is not a number between 0 and 1e6", key);
    return ML_OK;
}

/* From the open archive to the adapter, which is in *lora also when it fails, if it was begun. */
static ml_result mli_load_adapter(mli_loader *loader, const char *path, ml_lora **lora) {
    const ml_array *array;
    float alpha = 0;
    int i, rank = 0;
    uint64_t bytes = 0;
    ml_result result = mli_find_pairs(loader);
    if (!result && loader->naming == MLI_NAMING_HF)
        result = mli_load_json(loader, path, MLI_PEFT_JSON, "of an adapter");
    if (!result) result = mli_check_adapter(loader);
    if (!result) result = mli_check_pairs(loader, &rank);
    if (!result) result = mli_load_alpha(loader, rank, &alpha);
    for (i = 0; i < loader->config.n_layers * MLI_LORA_TARGETS * 2 && !result; i++)
        if ((array = loader->sources[i]) != NULL) bytes += ml_row_bytes(array->type, ml_array_count(array));
    if (!result) result = mli_check_sharing(loader, bytes);
    if (!result)
        result = mli_lora_new(&loader->config, rank, alpha, ML_LORA_ALL, loader->sources, &loader->allocator,
                              lora, loader->error);
    for (i = 0; !result && i < (*lora)->n_tensors; i++)
        if (loader->sources[i])
            result = mli_copy_weight(loader, loader->sources[i], &(*lora)->tensors[i], mli_lora_rows(i));
    return result;
}

/* ml_lora_load and ml_lora_load_memory: path, or else data; what else the caller gave stands in desc. */
static ml_result mli_lora_load(const char *path, const void *data, size_t size, const ml_load_desc *desc,
                               const ml_model *model, ml_lora **lora, ml_error *error) {
    mli_loader loader;
    ml_lora *loaded = NULL;
    ml_result result;
    memset(&loader, 0, sizeof loader);
    loader.desc = desc;
    loader.error = error;
    loader.config = model->config;
    *lora = NULL;
    result = mli_check_byte_order(error);
    if (!result) result = mli_resolve_allocator(&desc->allocator, &loader.allocator, error);
    if (!result && path) result = ml_archive_open(path, &loader.allocator, &loader.archive, error);
    if (!result && !path)
        result = ml_archive_open_memory(data, size, &loader.allocator, &loader.archive, error);
    if (result) return result;
    result = mli_load_adapter(&loader, path, &loaded);
    mli_free(&loader.allocator, loader.sources);
    ml_archive_close(loader.archive);
    if (result) {
        ml_lora_free(loaded);
        return result;
    }
    *lora = loaded;
    return mli_ok(error);
}

ML_DEF ml_result ml_lora_load(const char *path, const ml_model *model, const ml_allocator *allocator,
                              ml_lora **lora, ml_error *error) {
    ml_load_desc desc;
    if (!path || !model || !lora)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_load: path, model or lora is NULL");
    memset(&desc, 0, sizeof desc);
    if (allocator) desc.allocator = *allocator;
    return mli_lora_load(path, NULL, 0, &desc, model, lora, error);
}

ML_DEF ml_result ml_lora_load_memory(const void *data, size_t size, const void *config_json,
                                     size_t config_json_size, const ml_model *model,
                                     const ml_allocator *allocator, ml_lora **lora, ml_error *error) {
    ml_load_desc desc;
    if (!data || !model || !lora)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_load_memory: data, model or lora is NULL");
    memset(&desc, 0, sizeof desc);
    if (allocator) desc.allocator = *allocator;
    desc.config_json = config_json;
    desc.config_json_size = config_json_size;
    return mli_lora_load(NULL, data, size, &desc, model, lora, error);
}

/* ---- making ---- */

/* What 0 stands for in a configuration that a caller wrote. */
static void mli_config_defaults(ml_config *config) {
    if (!config->n_kv_heads) config->n_kv_heads = config->n_heads;
    if (!config->norm) config->norm = ML_NORM_RMS;
    if (!config->mask) config->mask = ML_MASK_CAUSAL;
    if (config->norm_eps == 0) config->norm_eps = 1e-5f;
    if (config->rope_theta == 0) config->rope_theta = 10000;
    if (config->rope_scale == 0) config->rope_scale = 1;
}

/* Normal numbers of standard deviation 0.02 for matrices, ones for norms, zeros for biases. row (cols) is scratch. */
static void mli_fill_weight(ml_tensor *tensor, mli_role role, ml_random *random, float *row) {
    size_t cols = (size_t)tensor->cols, bytes = ml_row_bytes(tensor->type, cols), c;
    unsigned char *to = (unsigned char *)tensor->data;
    int r;
    for (r = 0; r < tensor->rows; r++, to += bytes) {
        for (c = 0; c < cols; c++)
            row[c] = role == MLI_ROLE_NORM ? 1 : role == MLI_ROLE_BIAS ? 0 : 0.02f * ml_random_normal(random);
        ml_convert(tensor->type, to, ML_F32, row, cols);
    }
}

static ml_result mli_create_weights(ml_model *model, ml_type type, ml_random *random, ml_error *error) {
    ml_model_private *own = model->private_part;
    size_t longest = (size_t)MLI_MAX(model->config.dim, model->config.hidden_dim);
    int i, layer, is_needed;
    mli_slot slot;
    ml_result result;
    float *row = (float *)mli_alloc(&own->allocator, longest, sizeof *row);
    if (!row) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a row of %z numbers", longest);
    for (i = 0; i < model->n_tensors; i++) {
        mli_slot_of(i, &slot, &layer);
        if (mli_has_slot(&model->config, slot))
            own->tensors[i].type = mli_weight_type(&model->config, slot, type, type);
    }
    result = mli_allocate_weights(model, &is_needed, error);
    for (i = 0; i < model->n_tensors && !result; i++) {
        mli_slot_of(i, &slot, &layer);
        if (own->tensors[i].type) mli_fill_weight(&own->tensors[i], mli_params[slot].role, random, row);
    }
    mli_tie_output(model);
    mli_free(&own->allocator, row);
    return result;
}

ML_DEF ml_result ml_create(const ml_config *config, ml_type type, ml_random *random,
                           const ml_allocator *allocator, ml_model **model, ml_error *error) {
    ml_allocator resolved;
    ml_config complete;
    ml_model *created = NULL;
    ml_result result;
    if (!config || !random || !model)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_create: config, random or model is NULL");
    *model = NULL;
    if (!type) type = ML_F32;
    if (type < ML_F32 || type > ML_Q4_0)
        return mli_fail(error, ML_ERROR_ARGUMENT, "weights cannot be held as %s", ml_type_name(type));
    complete = *config;
    complete.tied_output = config->tied_output != 0;
    mli_config_defaults(&complete);
    result = mli_check_config(&complete, error);
    if (!result) result = mli_resolve_allocator(allocator, &resolved, error);
    if (!result) result = mli_model_new(&complete, &resolved, &created, error);
    if (result) return result;
    result = mli_create_weights(created, type, random, error);
    if (result) {
        ml_free(created);
        return result;
    }
    *model = created;
    return mli_ok(error);
}

ML_DEF ml_result ml_set_tokenizer(ml_model *model, ml_tokenizer *tokenizer, ml_error *error) {
    if (!model || !tokenizer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_set_tokenizer: model or tokenizer is NULL");
    if (ml_tokenizer_size(tokenizer) != model->config.vocab_size)
        return mli_fail(error, ML_ERROR_MISMATCH, "a tokenizer of %d pieces for a model with vocab_size %d",
                        ml_tokenizer_size(tokenizer), model->config.vocab_size);
    if (model->private_part->tokenizer != tokenizer) ml_tokenizer_free(model->private_part->tokenizer);
    model->tokenizer = model->private_part->tokenizer = tokenizer;
    return mli_ok(error);
}

/* Third part: from a model to a file. */

#ifndef MLI_SAVING
ML_DEF ml_result ml_save(const ml_model *model, const char *path, const ml_save_desc *desc, ml_error *error) {
    (void)model, (void)path, (void)desc;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "ml_save: built with ML_NO_SAVE or ML_NO_STDIO");
}

ML_DEF ml_result ml_lora_save(const ml_model *model, const ml_lora *lora, const char *path,
                              const ml_save_desc *desc, ml_error *error) {
    (void)model, (void)lora, (void)path, (void)desc;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "ml_lora_save: built with ML_NO_SAVE or ML_NO_STDIO");
}
#else

#if defined(__unix__) || defined(__APPLE__)
#define MLI_FSYNC
#include <fcntl.h>
#include <unistd.h>
#endif

/* ---- bytes to a file ---- */

/* Counts what it writes; without a file it only counts, so that the same code tells how long a header will be. */
typedef struct mli_writer {
    FILE *file;
    uint64_t at;   /* bytes written */
    size_t n_keys; /* GGUF values written */
    int why;       /* errno of the first failure; from then on nothing is written */
} mli_writer;

static void mli_append(mli_writer *writer, const void *data, size_t n) {
    writer->at += n;
    if (!writer->file || writer->why || !n) return;
    errno = 0;
    if (fwrite(data, 1, n, writer->file) != n) writer->why = errno ? errno : EIO;
}

static void mli_append_uint(mli_writer *writer, uint64_t value, int n_bytes) {
    unsigned char bytes[8];
    int i;
    for (i = 0; i < n_bytes; i++) bytes[i] = (unsigned char)(value >> (8 * i) & 255);
    mli_append(writer, bytes, (size_t)n_bytes);
}

static void mli_append_text(mli_writer *writer, const char *text) { mli_append(writer, text, strlen(text)); }

static void mli_append_decimal(mli_writer *writer, int64_t value) {
    char digits[24];
    size_t n = 0;
    mli_put_int(digits, sizeof digits, &n, value);
    mli_append(writer, digits, n);
}

static void mli_append_padding(mli_writer *writer, unsigned alignment, char c) {
    while (writer->at % alignment) mli_append(writer, &c, 1);
}

/* n numbers, converted piece by piece through a small buffer. */
static void mli_append_numbers(mli_writer *writer, ml_type to, ml_type from, const void *data, size_t n) {
    float buffer[1024]; /* the widest type of weights has four bytes */
    const unsigned char *p = (const unsigned char *)data;
    size_t part;
    if (from == to) {
        mli_append(writer, data, ml_row_bytes(to, n));
        return;
    }
    for (; n && !writer->why; n -= part) {
        part = MLI_MIN(n, sizeof buffer / sizeof *buffer);
        ml_convert(to, buffer, from, p, part);
        mli_append(writer, buffer, ml_row_bytes(to, part));
        p += ml_row_bytes(from, part);
    }
}

/* ---- a file that appears whole or not at all ---- */

typedef struct mli_target {
    const ml_allocator *allocator;
    const char *path;
    char *temporary; /* path + ".tmp" */
    mli_writer writer;
} mli_target;

static ml_result mli_target_failed(const mli_target *target, int why, ml_error *error) {
    return mli_fail(error, ML_ERROR_FILE, "%s cannot be written: %s", target->path,
                    strerror(why ? why : EIO));
}

static ml_result mli_target_open(mli_target *target, const ml_allocator *allocator, const char *path,
                                 ml_error *error) {
    size_t n = strlen(path);
    memset(target, 0, sizeof *target);
    target->allocator = allocator;
    target->path = path;
    target->temporary = (char *)mli_alloc(allocator, n + sizeof ".tmp", 1);
    if (!target->temporary) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a file's name");
    memcpy(target->temporary, path, n);
    memcpy(target->temporary + n, ".tmp", sizeof ".tmp");
    errno = 0;
    target->writer.file = fopen(target->temporary, "wb");
    if (target->writer.file) return ML_OK;
    mli_free(allocator, target->temporary); /* whatever has that name is not ours to remove */
    target->temporary = NULL;
    return mli_target_failed(target, errno, error);
}

/* Has the bytes carried from the system's memory to the disk, so that the rename cannot reach it before them. */
static int mli_sync(const char *path) {
#ifdef MLI_FSYNC
    int fd = open(path, O_WRONLY), why = 0;
    if (fd < 0) return errno;
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOSYS) why = errno; /* some file systems cannot */
    close(fd);
    return why;
#else
    (void)path;
    return 0;
#endif
}

/* Everything is on the disk, under the temporary name; the full disk shows here at the latest. */
static ml_result mli_target_complete(mli_target *target, ml_error *error) {
    mli_writer *writer = &target->writer;
    int why;
    errno = 0;
    why = fclose(writer->file) == 0 ? 0 : errno ? errno : EIO;
    writer->file = NULL;
    if (!writer->why) writer->why = why;
    if (!writer->why) writer->why = mli_sync(target->temporary);
    return writer->why ? mli_target_failed(target, writer->why, error) : ML_OK;
}

static ml_result mli_target_publish(mli_target *target, ml_error *error) {
    errno = 0;
#ifdef _WIN32
    remove(target->path); /* there, rename does not replace */
#endif
    if (rename(target->temporary, target->path) != 0) return mli_target_failed(target, errno, error);
    mli_free(target->allocator, target->temporary);
    target->temporary = NULL;
    return ML_OK;
}

/* Removes what has not been published. */
static void mli_target_close(mli_target *target) {
    if (target->writer.file) fclose(target->writer.file);
    if (target->temporary) remove(target->temporary);
    mli_free(target->allocator, target->temporary);
}

/* ---- GGUF (version 3) ---- */

#define MLI_GGUF_ALIGNMENT 32

enum { MLI_GGUF_U32 = 4 }; /* the others stand beside the readers */

typedef struct mli_saver {
    const ml_model *model;
    const ml_lora *lora; /* what is saved; NULL: the model itself */
    const ml_save_desc *desc;
    const unsigned char *is_repeated; /* (V) of the tokenizer's pieces, see mli_find_repeated */
    const ml_trainer *trainer;        /* a checkpoint: what is trained, and the training's state; or NULL */
} mli_saver;

/* One tensor of a file. */
typedef struct mli_saved {
    char name[MLI_LONG_NAME_SIZE];
    ml_tensor tensor;
    ml_type type;  /* in the file */
    mli_slot rows; /* whose rows they are, see mli_row_in_meta; MLI_SLOTS: of no matrix */
    int is_matrix;
} mli_saved;

static void mli_append_string(mli_writer *writer, const char *s, size_t length) {
    mli_append_uint(writer, length, 8);
    mli_append(writer, s, length);
}

static void mli_append_key(mli_writer *writer, const char *key, int type) {
    mli_append_string(writer, key, strlen(key));
    mli_append_uint(writer, (uint64_t)type, 4);
    writer->n_keys++;
}

static void mli_append_key_u32(mli_writer *writer, const char *key, int value) {
    mli_append_key(writer, key, MLI_GGUF_U32);
    mli_append_uint(writer, (uint32_t)value, 4);
}

static void mli_append_key_f32(mli_writer *writer, const char *key, float value) {
    mli_append_key(writer, key, MLI_GGUF_F32);
    mli_append_uint(writer, mli_float_bits(value), 4);
}

static void mli_append_key_bool(mli_writer *writer, const char *key, int value) {
    mli_append_key(writer, key, MLI_GGUF_BOOL);
    mli_append_uint(writer, value != 0, 1);
}

static void mli_append_key_string(mli_writer *writer, const char *key, const char *value) {
    mli_append_key(writer, key, MLI_GGUF_STRING);
    mli_append_string(writer, value, strlen(value));
}

static void mli_append_key_list(mli_writer *writer, const char *key, int type, int n) {
    mli_append_key(writer, key, MLI_GGUF_ARRAY);
    mli_append_uint(writer, (uint64_t)type, 4);
    mli_append_uint(writer, (uint64_t)n, 8);
}

/* The type that tensor `index` has in the file. */
static ml_type mli_saved_type(const mli_saver *saver, int index) {
    const ml_tensor *tensor = &saver->model->tensors[index];
    ml_type wanted = saver->desc->type;
    mli_slot slot;
    int layer;
    mli_slot_of(index, &slot, &layer);
    if (saver->desc->format == ML_SAFETENSORS && !wanted &&
        (tensor->type == ML_Q8_0 || tensor->type == ML_Q4_0))
        wanted = ML_F16;
    return mli_weight_type(&saver->model->config, slot, wanted, tensor->type);
}

static int mli_is_saved(const mli_saver *saver, int index) {
    mli_slot slot;
    int layer;
    if (saver->trainer && !saver->trainer->model[index].grad)
        return 0; /* a frozen tensor is not in a checkpoint */
    mli_slot_of(index, &slot, &layer);
    return mli_has_slot(&saver->model->config, slot);
}

static uint64_t mli_saved_bytes(const mli_saved *saved) {
    return (uint64_t)saved->tensor.rows * ml_row_bytes(saved->type, (size_t)saved->tensor.cols);
}

static int mli_count_checkpointed(const ml_trainer *trainer);                           /* in >>checkpoints */
static int mli_checkpointed_at(const ml_trainer *trainer, int index, mli_saved *saved); /* as is this */

static int mli_count_saved(const mli_saver *saver) {
    if (saver->lora) return saver->lora->n_tensors;
    return saver->model->n_tensors + (saver->trainer ? mli_count_checkpointed(saver->trainer) : 0);
}

/* The same of an adapter. PEFT puts its own name in front of Hugging Face's. */
static int mli_saved_half_at(const mli_saver *saver, int index, mli_saved *saved) {
    saved->tensor = saver->lora->tensors[index];
    saved->type = saver->desc->type ? saver->desc->type : saved->tensor.type;
    saved->rows = mli_lora_rows(index);
    saved->is_matrix = 1;
    if (saver->desc->format == ML_GGUF)
        mli_lora_name(MLI_NAMING_GGUF, "", index, saved->name);
    else
        mli_lora_name(MLI_NAMING_HF, mli_peft_prefixes[0], index, saved->name);
    return saved->tensor.data != NULL;
}

/* Whether number `index` of mli_count_saved is in the file, and what it is. */
static int mli_saved_at(const mli_saver *saver, int index, mli_saved *saved) {
    mli_slot slot;
    int layer;
    if (saver->lora) return mli_saved_half_at(saver, index, saved);
    if (index >= saver->model->n_tensors)
        return mli_checkpointed_at(saver->trainer, index - saver->model->n_tensors, saved);
    if (!mli_is_saved(saver, index)) return 0;
    mli_slot_of(index, &slot, &layer);
    mli_param_name(saver->desc->format == ML_GGUF ? MLI_NAMING_GGUF : MLI_NAMING_HF, slot, layer,
                   saved->name);
    saved->tensor = saver->model->tensors[index];
    saved->type = mli_saved_type(saver, index);
    saved->rows = slot;
    saved->is_matrix = mli_params[slot].rows != MLI_ONE;
    return 1;
}

/* llama.cpp's number for the type that most of a file's matrices have: told by the largest tensors, those of the
   feed-forward layers. */
static int mli_gguf_file_type(ml_type type) {
    switch (type) {
    case ML_F16: return 1;
    case ML_Q4_0: return 2;
    case ML_Q8_0: return 7;
    case ML_BF16: return 32;
    default: return 0;
    }
}

static void mli_append_gguf_config(mli_writer *writer, const mli_saver *saver) {
    const ml_config *c = &saver->model->config;
    ml_type type = mli_saved_type(saver, (int)MLI_W1);
    int i, is_quantized = 0;
    for (i = 0; i < saver->model->n_tensors; i++)
        if (mli_is_saved(saver, i) && ml_type_block(mli_saved_type(saver, i)) > 1) is_quantized = 1;
    mli_append_key_string(writer, "general.architecture", "llama");
    mli_append_key_string(writer, "general.name", saver->desc->name ? saver->desc->name : "minillama");
    mli_append_key_u32(writer, "general.file_type", mli_gguf_file_type(type));
    if (is_quantized) mli_append_key_u32(writer, "general.quantization_version", 2);
    mli_append_key_u32(writer, "llama.context_length", c->max_seq_len);
    mli_append_key_u32(writer, "llama.embedding_length", c->dim);
    mli_append_key_u32(writer, "llama.block_count", c->n_layers);
    mli_append_key_u32(writer, "llama.feed_forward_length", c->hidden_dim);
    mli_append_key_u32(writer, "llama.attention.head_count", c->n_heads);
    mli_append_key_u32(writer, "llama.attention.head_count_kv", c->n_kv_heads);
    mli_append_key_f32(writer, "llama.attention.layer_norm_rms_epsilon", c->norm_eps);
    mli_append_key_u32(writer, "llama.rope.dimension_count", c->dim / c->n_heads);
    mli_append_key_f32(writer, "llama.rope.freq_base", c->rope_theta);
    if (c->rope_scale != 1) {
        mli_append_key_string(writer, "llama.rope.scaling.type", "linear");
        mli_append_key_f32(writer, "llama.rope.scaling.factor", c->rope_scale);
    }
    mli_append_key_u32(writer, "llama.vocab_size", c->vocab_size);
    if (c->norm == ML_NORM_LAYER) mli_append_key_string(writer, "minillama.norm", "layer");
    if (c->mask == ML_MASK_FULL) mli_append_key_string(writer, "minillama.mask", "full");
}

/* llama.cpp ends the program over a vocabulary with two equal pieces or an empty one. Such a piece is written as
   "[PAD17]", unused, which is how llama.cpp's own converters write pieces that mean nothing. */
static void mli_append_piece(mli_writer *writer, const mli_saver *saver, int32_t id) {
    size_t length;
    const char *piece = ml_tokenizer_piece(saver->model->tokenizer, id, &length, NULL, NULL);
    char pad[32];
    if (saver->is_repeated[id]) {
        mli_format(pad, sizeof pad, "[PAD%d]", (int)id);
        piece = pad;
        length = strlen(pad);
    }
    mli_append_string(writer, piece, length);
}

static void mli_append_gguf_tokenizer(mli_writer *writer, const mli_saver *saver) {
    const ml_tokenizer *tokenizer = saver->model->tokenizer;
    int32_t id, n = ml_tokenizer_size(tokenizer);
    ml_piece_kind kind = ML_PIECE_NORMAL;
    float score = 0;
    mli_append_key_string(writer, "tokenizer.ggml.model", "llama");
    mli_append_key_list(writer, "tokenizer.ggml.tokens", MLI_GGUF_STRING, n);
    for (id = 0; id < n; id++) mli_append_piece(writer, saver, id);
    mli_append_key_list(writer, "tokenizer.ggml.scores", MLI_GGUF_F32, n);
    for (id = 0; id < n; id++) {
        ml_tokenizer_piece(tokenizer, id, NULL, &score, NULL);
        mli_append_uint(writer, mli_float_bits(score), 4);
    }
    mli_append_key_list(writer, "tokenizer.ggml.token_type", MLI_GGUF_I32, n);
    for (id = 0; id < n; id++) {
        ml_tokenizer_piece(tokenizer, id, NULL, NULL, &kind);
        mli_append_uint(writer, (uint64_t)(saver->is_repeated[id] ? ML_PIECE_UNUSED : kind), 4);
    }
    mli_append_key_u32(writer, "tokenizer.ggml.bos_token_id", (int)ml_tokenizer_bos(tokenizer));
    mli_append_key_u32(writer, "tokenizer.ggml.eos_token_id", (int)ml_tokenizer_eos(tokenizer));
    mli_append_key_u32(writer, "tokenizer.ggml.unknown_token_id", (int)ml_tokenizer_unknown(tokenizer));
    if (tokenizer->padding >= 0)
        mli_append_key_u32(writer, "tokenizer.ggml.padding_token_id", (int)tokenizer->padding);
    mli_append_key_bool(writer, "tokenizer.ggml.add_bos_token", mli_tokenizer_adds_bos(tokenizer));
    mli_append_key_bool(writer, "tokenizer.ggml.add_eos_token", mli_tokenizer_adds_eos(tokenizer));
    mli_append_key_bool(writer, "tokenizer.ggml.add_space_prefix",
                        mli_tokenizer_adds_space_prefix(tokenizer));
    if (mli_tokenizer_removes_extra_spaces(tokenizer))
        mli_append_key_bool(writer, "tokenizer.ggml.remove_extra_whitespaces", 1);
}

static void mli_append_gguf_training(mli_writer *writer, const ml_trainer *trainer); /* in >>checkpoints */

/* What llama.cpp asks of an adapter. */
static void mli_append_gguf_adapter(mli_writer *writer, const mli_saver *saver) {
    mli_append_key_string(writer, "general.architecture", "llama");
    mli_append_key_string(writer, "general.type", "adapter");
    mli_append_key_string(writer, "general.name", saver->desc->name ? saver->desc->name : "minillama");
    mli_append_key_string(writer, "adapter.type", "lora");
    mli_append_key_f32(writer, "adapter.lora.alpha", saver->lora->alpha);
}

static void mli_append_gguf_values(mli_writer *writer, const mli_saver *saver) {
    if (saver->lora) {
        mli_append_gguf_adapter(writer, saver);
        return;
    }
    mli_append_gguf_config(writer, saver);
    if (saver->model->tokenizer) mli_append_gguf_tokenizer(writer, saver);
    if (saver->trainer) mli_append_gguf_training(writer, saver->trainer);
}

/* Name, extents (innermost first), type and offset of every tensor. Returns their number. */
static int mli_append_gguf_tensors(mli_writer *writer, const mli_saver *saver) {
    uint64_t offset = 0;
    int i, n = 0;
    for (i = 0; i < mli_count_saved(saver); i++) {
        mli_saved saved;
        if (!mli_saved_at(saver, i, &saved)) continue;
        mli_append_string(writer, saved.name, strlen(saved.name));
        mli_append_uint(writer, saved.is_matrix ? 2 : 1, 4);
        mli_append_uint(writer, (uint64_t)saved.tensor.cols, 8);
        if (saved.is_matrix) mli_append_uint(writer, (uint64_t)saved.tensor.rows, 8);
        mli_append_uint(writer, mli_type(saved.type)->gguf, 4);
        mli_append_uint(writer, offset, 8);
        offset += mli_saved_bytes(&saved);
        offset += (MLI_GGUF_ALIGNMENT - offset % MLI_GGUF_ALIGNMENT) % MLI_GGUF_ALIGNMENT;
        n++;
    }
    return n;
}

static void mli_append_gguf(mli_writer *writer, const mli_saver *saver) {
    mli_writer counter;
    int i, n_tensors;
    memset(&counter, 0, sizeof counter);
    mli_append_gguf_values(&counter, saver);
    n_tensors = mli_append_gguf_tensors(&counter, saver);
    mli_append_text(writer, "GGUF");
    mli_append_uint(writer, 3, 4);
    mli_append_uint(writer, (uint64_t)n_tensors, 8);
    mli_append_uint(writer, counter.n_keys, 8);
    mli_append_gguf_values(writer, saver);
    mli_append_gguf_tensors(writer, saver);
    for (i = 0; i < mli_count_saved(saver); i++) {
        mli_saved saved;
        if (!mli_saved_at(saver, i, &saved)) continue;
        mli_append_padding(writer, MLI_GGUF_ALIGNMENT, 0);
        mli_append_numbers(writer, saved.type, saved.tensor.type, saved.tensor.data,
                           (size_t)saved.tensor.rows * (size_t)saved.tensor.cols);
    }
    mli_append_padding(writer, MLI_GGUF_ALIGNMENT, 0);
}

/* Marks the pieces of the tokenizer that are empty or equal to an earlier one: is_repeated (V). */
static ml_result mli_find_repeated(const ml_tokenizer *tokenizer, const ml_allocator *allocator,
                                   unsigned char *is_repeated, ml_error *error) {
    size_t i, n = (size_t)ml_tokenizer_size(tokenizer);
    mli_named *pieces = (mli_named *)mli_alloc(allocator, n, sizeof *pieces);
    if (!pieces) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a list of %z pieces", n);
    for (i = 0; i < n; i++) {
        pieces[i].name = ml_tokenizer_piece(tokenizer, (int32_t)i, &pieces[i].length, NULL, NULL);
        pieces[i].index = i;
        is_repeated[i] = !pieces[i].length;
    }
    mli_sort_named(pieces, n); /* equal ones in the order of their ids */
    for (i = 1; i < n; i++)
        if (mli_compare_text(pieces[i].name, pieces[i].length, pieces[i - 1].name, pieces[i - 1].length) == 0)
            is_repeated[pieces[i].index] = 1;
    mli_free(allocator, pieces);
    return ML_OK;
}

static ml_result mli_save_gguf(mli_saver *saver, const ml_allocator *allocator, const char *path,
                               ml_error *error) {
    const ml_tokenizer *tokenizer = saver->lora ? NULL : saver->model->tokenizer;
    unsigned char *is_repeated = NULL;
    mli_target target;
    ml_result result = ML_OK;
    if (tokenizer) {
        is_repeated = (unsigned char *)mli_alloc(allocator, (size_t)ml_tokenizer_size(tokenizer), 1);
        if (!is_repeated) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a tokenizer's marks");
        result = mli_find_repeated(tokenizer, allocator, is_repeated, error);
        saver->is_repeated = is_repeated;
    }
    if (!result) {
        result = mli_target_open(&target, allocator, path, error);
        if (!result) mli_append_gguf(&target.writer, saver);
        if (!result) result = mli_target_complete(&target, error);
        if (!result) result = mli_target_publish(&target, error);
        mli_target_close(&target);
    }
    mli_free(allocator, is_repeated);
    return result;
}

/* ---- safetensors, in Hugging Face's layout ---- */

/* The inverse of mli_row_in_hf: where row `row` of Hugging Face's order stands in Meta's. */
static int mli_row_in_meta(const ml_config *config, mli_slot slot, int row) {
    int hd = config->dim / config->n_heads, in_head = row % hd;
    if (slot != MLI_WQ && slot != MLI_WK) return row;
    return row - in_head + in_head % (hd / 2) * 2 + in_head / (hd / 2);
}

static void mli_append_safetensors_header(mli_writer *writer, const mli_saver *saver) {
    uint64_t offset = 0;
    int i;
    mli_append_text(writer, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (i = 0; i < mli_count_saved(saver); i++) {
        mli_saved saved;
        if (!mli_saved_at(saver, i, &saved)) continue;
        mli_append_text(writer, ",\"");
        mli_append_text(writer, saved.name);
        mli_append_text(writer, "\":{\"dtype\":\"");
        mli_append_text(writer, ml_type_name(saved.type));
        mli_append_text(writer, "\",\"shape\":[");
        if (saved.is_matrix) {
            mli_append_decimal(writer, saved.tensor.rows);
            mli_append_text(writer, ",");
        }
        mli_append_decimal(writer, saved.tensor.cols);
        mli_append_text(writer, "],\"data_offsets\":[");
        mli_append_decimal(writer, (int64_t)offset);
        mli_append_text(writer, ",");
        offset += mli_saved_bytes(&saved);
        mli_append_decimal(writer, (int64_t)offset);
        mli_append_text(writer, "]}");
    }
    mli_append_text(writer, "}");
    mli_append_padding(writer, 8, ' ');
}

static void mli_append_safetensors(mli_writer *writer, const mli_saver *saver) {
    mli_writer counter;
    int i, row;
    memset(&counter, 0, sizeof counter);
    mli_append_safetensors_header(&counter, saver);
    mli_append_uint(writer, counter.at, 8); /* eight bytes, so the padding comes out alike */
    mli_append_safetensors_header(writer, saver);
    for (i = 0; i < mli_count_saved(saver); i++) {
        mli_saved saved;
        if (!mli_saved_at(saver, i, &saved)) continue;
        for (row = 0; row < saved.tensor.rows; row++) {
            size_t cols = (size_t)saved.tensor.cols;
            size_t from = (size_t)mli_row_in_meta(&saver->model->config, saved.rows, row);
            mli_append_numbers(writer, saved.type, saved.tensor.type,
                               (const unsigned char *)saved.tensor.data +
                                   from * ml_row_bytes(saved.tensor.type, cols),
                               cols);
        }
    }
}

/* The shortest decimal number that is read as this float: m * 10^e with the fewest digits in m. */
static void mli_append_json_float(mli_writer *writer, float value) {
    int exponent = value > 0 ? (int)floor(log10((double)value)) : 0, digits;
    int64_t mantissa;
    for (digits = 0;; digits++, exponent--) { /* behind the first */
        mantissa = (int64_t)floor((double)value * pow(10, -exponent) + 0.5);
        if (digits == 8 || (float)mli_scale_decimal((uint64_t)mantissa, exponent) == value) break;
    }
    for (; mantissa && mantissa % 10 == 0; exponent++) mantissa /= 10;
    mli_append_decimal(writer, mantissa);
    if (exponent >= 0 && exponent < 16) {
        while (exponent-- > 0) mli_append_text(writer, "0");
        mli_append_text(writer, ".0");
    } else {
        mli_append_text(writer, "e");
        mli_append_decimal(writer, exponent);
    }
}

static void mli_append_json_key(mli_writer *writer, const char *key) {
    mli_append_text(writer, ",\n  \"");
    mli_append_text(writer, key);
    mli_append_text(writer, "\": ");
}

static void mli_append_json_int(mli_writer *writer, const char *key, int value) {
    mli_append_json_key(writer, key);
    mli_append_decimal(writer, value);
}

static void mli_append_json_word(mli_writer *writer, const char *key, const char *word) {
    mli_append_json_key(writer, key);
    mli_append_text(writer, word);
}

static void mli_append_config_json(mli_writer *writer, const mli_saver *saver) {
    const ml_config *c = &saver->model->config;
    const ml_tokenizer *tokenizer = saver->model->tokenizer;
    ml_type type = mli_saved_type(saver, (int)MLI_W1);
    mli_append_text(writer, "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\"");
    mli_append_json_int(writer, "hidden_size", c->dim);
    mli_append_json_int(writer, "intermediate_size", c->hidden_dim);
    mli_append_json_int(writer, "num_hidden_layers", c->n_layers);
    mli_append_json_int(writer, "num_attention_heads", c->n_heads);
    mli_append_json_int(writer, "num_key_value_heads", c->n_kv_heads);
    mli_append_json_int(writer, "vocab_size", c->vocab_size);
    mli_append_json_int(writer, "max_position_embeddings", c->max_seq_len);
    mli_append_json_key(writer, "rms_norm_eps");
    mli_append_json_float(writer, c->norm_eps);
    mli_append_json_key(writer, "rope_theta");
    mli_append_json_float(writer, c->rope_theta);
    if (c->rope_scale == 1) {
        mli_append_json_word(writer, "rope_scaling", "null");
    } else {
        mli_append_json_word(writer, "rope_scaling",
                             "{\"type\": \"linear\", \"rope_type\": \"linear\", \"factor\": ");
        mli_append_json_float(writer, c->rope_scale);
        mli_append_text(writer, "}");
    }
    mli_append_json_word(writer, "tie_word_embeddings", c->tied_output ? "true" : "false");
    mli_append_json_word(writer, "hidden_act", "\"silu\"");
    mli_append_json_word(writer, "attention_bias", "false");
    mli_append_json_word(writer, "mlp_bias", "false");
    mli_append_json_word(writer, "torch_dtype",
                         type == ML_F32 ? "\"float32\""
                         : type == ML_F16 ? "\"float16\""
                                          : "\"bfloat16\"");
    if (tokenizer && tokenizer->bos >= 0) mli_append_json_int(writer, "bos_token_id", (int)tokenizer->bos);
    if (tokenizer && tokenizer->eos >= 0) mli_append_json_int(writer, "eos_token_id", (int)tokenizer->eos);
    if (c->norm == ML_NORM_LAYER) mli_append_json_word(writer, "minillama_norm", "\"layer\"");
    if (c->mask == ML_MASK_FULL) mli_append_json_word(writer, "minillama_mask", "\"full\"");
    mli_append_text(writer, "\n}\n");
}

/* The name of a matrix inside its layer, as PEFT lists what it adapts: "q_proj" of
   "model.layers.#.self_attn.q_proj.weight". */
static void mli_append_module(mli_writer *writer, mli_slot slot) {
    const char *name = mli_params[slot].name[MLI_NAMING_HF], *end = strrchr(name, '.'), *begin = end;
    while (begin > name && begin[-1] != '.') begin--;
    mli_append_text(writer, "\"");
    mli_append(writer, begin, (size_t)(end - begin));
    mli_append_text(writer, "\"");
}

/* PEFT's LoraConfig, in its order; alpha is written as its own files have it where it is a whole number. */
static void mli_append_adapter_json(mli_writer *writer, const mli_saver *saver) {
    const ml_lora *lora = saver->lora;
    int target, i, n = 0;
    mli_append_text(writer, "{\n  \"alpha_pattern\": {}");
    mli_append_json_word(writer, "auto_mapping", "null");
    mli_append_json_word(writer, "base_model_name_or_path", "null");
    mli_append_json_word(writer, "bias", "\"none\"");
    mli_append_json_word(writer, "fan_in_fan_out", "false");
    mli_append_json_word(writer, "inference_mode", "true");
    mli_append_json_word(writer, "init_lora_weights", "true");
    mli_append_json_word(writer, "layers_pattern", "null");
    mli_append_json_word(writer, "layers_to_transform", "null");
    mli_append_json_key(writer, "lora_alpha");
    if (lora->alpha == floorf(lora->alpha))
        mli_append_decimal(writer, (int64_t)lora->alpha);
    else
        mli_append_json_float(writer, lora->alpha);
    mli_append_json_word(writer, "lora_dropout", "0.0");
    mli_append_json_word(writer, "modules_to_save", "null");
    mli_append_json_word(writer, "peft_type", "\"LORA\"");
    mli_append_json_int(writer, "r", lora->rank);
    mli_append_json_word(writer, "rank_pattern", "{}");
    mli_append_json_word(writer, "target_modules", "[");
    for (target = 0; target < MLI_LORA_TARGETS; target++) {
        for (i = target * 2; i < lora->n_tensors && !lora->tensors[i].data; i += MLI_LORA_TARGETS * 2) {
        }
        if (i >= lora->n_tensors) continue;
        if (n++) mli_append_text(writer, ", ");
        mli_append_module(writer, mli_lora_slots[target]);
    }
    mli_append_text(writer, "]");
    mli_append_json_word(writer, "task_type", "\"CAUSAL_LM\"");
    mli_append_json_word(writer, "use_dora", "false");
    mli_append_json_word(writer, "use_rslora", "false");
    mli_append_text(writer, "\n}\n");
}

/* Two files: both are complete on the disk before the first takes its place. */
static ml_result mli_save_safetensors(mli_saver *saver, const ml_allocator *allocator, const char *path,
                                      ml_error *error) {
    char *json_path = mli_path_beside(allocator, path, saver->lora ? MLI_PEFT_JSON : "config.json");
    mli_target weights, json;
    ml_result result;
    if (!json_path) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a file's name");
    memset(&json, 0, sizeof json);
    json.allocator = allocator;
    if (strcmp(json_path, path) == 0) {
        mli_free(allocator, json_path);
        return mli_fail(error, ML_ERROR_ARGUMENT, "%s is what the weights' configuration will be called",
                        path);
    }
    result = mli_target_open(&weights, allocator, path, error);
    if (!result) result = mli_target_open(&json, allocator, json_path, error);
    if (!result) {
        mli_append_safetensors(&weights.writer, saver);
        if (saver->lora)
            mli_append_adapter_json(&json.writer, saver);
        else
            mli_append_config_json(&json.writer, saver);
        result = mli_target_complete(&weights, error);
    }
    if (!result) result = mli_target_complete(&json, error);
    if (!result) result = mli_target_publish(&weights, error);
    if (!result) result = mli_target_publish(&json, error);
    mli_target_close(&weights);
    mli_target_close(&json);
    mli_free(allocator, json_path);
    return result;
}

/* ml_save and ml_lora_save: lora is NULL for the model itself. */
static ml_result mli_save(const ml_model *model, const ml_lora *lora, const char *path,
                          const ml_save_desc *desc, ml_error *error) {
    ml_save_desc defaults;
    mli_saver saver;
    ml_result result;
    memset(&defaults, 0, sizeof defaults);
    memset(&saver, 0, sizeof saver);
    saver.model = model;
    saver.lora = lora;
    saver.desc = desc ? desc : &defaults;
    if (saver.desc->format != ML_GGUF && saver.desc->format != ML_SAFETENSORS)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_save: format is not one of its names");
    if (saver.desc->type && (saver.desc->type < ML_F32 || saver.desc->type > (lora ? ML_BF16 : ML_Q4_0)))
        return mli_fail(error, ML_ERROR_ARGUMENT, "%s cannot be saved as %s", lora ? "adapters" : "weights",
                        ml_type_name(saver.desc->type));
    if (saver.desc->format == ML_SAFETENSORS && saver.desc->type > ML_BF16)
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "safetensors has no type %s",
                        ml_type_name(saver.desc->type));
    result = mli_check_byte_order(error);
    if (result) return result;
    if (saver.desc->format == ML_GGUF)
        result = mli_save_gguf(&saver, &model->private_part->allocator, path, error);
    else
        result = mli_save_safetensors(&saver, &model->private_part->allocator, path, error);
    return result ? result : mli_ok(error);
}

ML_DEF ml_result ml_save(const ml_model *model, const char *path, const ml_save_desc *desc, ml_error *error) {
    if (!model || !path) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_save: model or path is NULL");
    return mli_save(model, NULL, path, desc, error);
}

ML_DEF ml_result ml_lora_save(const ml_model *model, const ml_lora *lora, const char *path,
                              const ml_save_desc *desc, ml_error *error) {
    ml_result result;
    if (!model || !lora || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_save: model, lora or path is NULL");
    result = mli_lora_check(model, lora, error);
    return result ? result : mli_save(model, lora, path, desc, error);
}
#endif /* MLI_SAVING */

/* ==== >>checkpoints ====
   A checkpoint is a GGUF file with all that is trained, AdamW's moments of it, and where the training stands. Where the
   model itself is trained it is also a model like any other. */

#ifndef ML_NO_TRAINING

/* What the trained tensors other than the model's are called, and the moments of all of them. */
static void mli_trained_name(const ml_trainer_private *t, const mli_trained *trained, const char *prefix,
                             char name[ML_NAME_SIZE]) {
    char own[MLI_LONG_NAME_SIZE];
    if (trained->is_head) {
        mli_format(own, sizeof own, "cls.%s", trained->decays_by_role ? "weight" : "bias");
    } else if (t->desc.lora) {
        mli_lora_name(MLI_NAMING_GGUF, "", (int)(trained->t - t->lora_tensors), own);
    } else {
        ml_tensor_name(t->model, (int)(trained->t - t->tensors), own);
    }
    mli_format(name, ML_NAME_SIZE, "%s%s", prefix, own);
}

#ifdef MLI_SAVING

/* Each trained tensor stands for three: its value, unless it is among the model's own, and its two moments. */
static int mli_count_checkpointed(const ml_trainer *trainer) { return 3 * trainer->private_part->n_trained; }

static int mli_checkpointed_at(const ml_trainer *trainer, int index, mli_saved *saved) {
    static const char *const prefixes[3] = {"", "adamw.m.", "adamw.v."};
    const ml_trainer_private *t = trainer->private_part;
    const mli_trained *trained = &t->trained[index / 3];
    int part = index % 3;
    if (part == 0 && !trained->is_head && !t->desc.lora) return 0;
    mli_trained_name(t, trained, prefixes[part], saved->name);
    saved->tensor = *trained->t;
    if (part) saved->tensor.data = part == 1 ? trained->m : trained->v;
    saved->type = ML_F32;
    saved->is_matrix = 1;
    return 1;
}

static void mli_append_key_i64(mli_writer *writer, const char *key, int64_t value) {
    mli_append_key(writer, key, MLI_GGUF_I64);
    mli_append_uint(writer, (uint64_t)value, 8);
}

static void mli_append_gguf_training(mli_writer *writer, const ml_trainer *trainer) {
    int i;
    mli_append_key_i64(writer, "minillama.train.step", trainer->step);
    mli_append_key_i64(writer, "minillama.train.passes", (int64_t)trainer->private_part->passes);
    for (i = 0; i < 8; i++) {
        char key[ML_NAME_SIZE];
        mli_format(key, sizeof key, "minillama.train.progress.%d", i);
        mli_append_key_i64(writer, key, (int64_t)trainer->progress[i]);
    }
}

ML_DEF ml_result ml_trainer_save(const ml_trainer *trainer, const char *path, ml_error *error) {
    ml_save_desc desc;
    mli_saver saver;
    ml_result result;
    if (!trainer || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_save: trainer or path is NULL");
    memset(&desc, 0, sizeof desc);
    memset(&saver, 0, sizeof saver);
    saver.model = trainer->private_part->model;
    saver.desc = &desc;
    saver.trainer = trainer;
    result = mli_check_byte_order(error);
    if (!result) result = mli_save_gguf(&saver, &saver.model->private_part->allocator, path, error);
    return result ? result : mli_ok(error);
}

#else
ML_DEF ml_result ml_trainer_save(const ml_trainer *trainer, const char *path, ml_error *error) {
    (void)trainer, (void)path;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "built without writing (ML_NO_SAVE or ML_NO_STDIO)");
}
#endif

/* One part of a trained tensor out of a checkpoint; with to NULL it is only looked for. */
static ml_result mli_restore(const ml_archive *archive, const char *name, float *to, size_t n,
                             ml_error *error) {
    const ml_array *array = ml_archive_find(archive, name);
    if (!array) return mli_fail(error, ML_ERROR_MISMATCH, "the checkpoint has no tensor %s", name);
    if (ml_array_count(array) != n)
        return mli_fail(error, ML_ERROR_MISMATCH, "the checkpoint's %s has %z numbers, not %z", name,
                        ml_array_count(array), n);
    return to ? ml_array_read(array, to, n) : ML_OK;
}

/* All parts of all trained tensors. */
static ml_result mli_restore_trained(ml_trainer_private *t, const ml_archive *archive, int write,
                                     ml_error *error) {
    int i;
    for (i = 0; i < t->n_trained; i++) {
        const mli_trained *trained = &t->trained[i];
        size_t n = mli_numbers(trained->t);
        char name[ML_NAME_SIZE];
        ml_result result;
        mli_trained_name(t, trained, "", name);
        result = mli_restore(archive, name, write ? (float *)trained->t->data : NULL, n, error);
        mli_trained_name(t, trained, "adamw.m.", name);
        if (!result) result = mli_restore(archive, name, write ? trained->m : NULL, n, error);
        mli_trained_name(t, trained, "adamw.v.", name);
        if (!result) result = mli_restore(archive, name, write ? trained->v : NULL, n, error);
        if (result) return result;
    }
    return ML_OK;
}

static ml_result mli_restore_number(const ml_archive *archive, const char *key, int64_t *to,
                                    ml_error *error) {
    const ml_value *value = ml_archive_find_value(archive, key);
    if (!value || value->kind != ML_VALUE_INT)
        return mli_fail(error, ML_ERROR_MISMATCH, "not a checkpoint: there is no %s", key);
    *to = value->i;
    return ML_OK;
}

ML_DEF ml_result ml_trainer_load(ml_trainer *trainer, const char *path, ml_error *error) {
    ml_trainer_private *t;
    ml_archive *archive;
    int64_t step = 0, passes = 0, progress[8];
    ml_result result;
    int i;
    if (!trainer || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_load: trainer or path is NULL");
    t = trainer->private_part;
    result = ml_archive_open(path, &t->model->private_part->allocator, &archive, error);
    if (result) return result;
    result = mli_restore_number(archive, "minillama.train.step", &step, error);
    if (!result) result = mli_restore_number(archive, "minillama.train.passes", &passes, error);
    for (i = 0; i < 8 && !result; i++) {
        char key[ML_NAME_SIZE];
        mli_format(key, sizeof key, "minillama.train.progress.%d", i);
        result = mli_restore_number(archive, key, &progress[i], error);
    }
    if (!result && step < 0) result = mli_fail(error, ML_ERROR_FORMAT, "the checkpoint's step is negative");
    if (!result) result = mli_restore_trained(t, archive, 0, error); /* first look, then change anything */
    if (!result) result = mli_restore_trained(t, archive, 1, error);
    ml_archive_close(archive);
    if (result) return result;
    trainer->step = step;
    t->passes = (uint64_t)passes;
    for (i = 0; i < 8; i++) trainer->progress[i] = (uint64_t)progress[i];
    t->graph.newest = NULL;
    ml_zero_gradients(trainer);
    return mli_ok(error);
}

#elif defined(MLI_SAVING) /* without training there is nothing more to save */

static int mli_count_checkpointed(const ml_trainer *trainer) { return (void)trainer, 0; }

static int mli_checkpointed_at(const ml_trainer *trainer, int index, mli_saved *saved) {
    (void)trainer, (void)index, (void)saved;
    return 0;
}

static void mli_append_gguf_training(mli_writer *writer, const ml_trainer *trainer) {
    (void)writer, (void)trainer;
}

#endif /* ML_NO_TRAINING */

/* ==== >>names ==== */

ML_DEF const char *ml_result_string(ml_result result) {
    switch (result) {
#define ML_RESULT_CASE(name, value, text)                                                                    \
    case name: return text;
        ML_RESULTS(ML_RESULT_CASE)
#undef ML_RESULT_CASE
    default: return "unknown result";
    }
}

#endif /* MINILLAMA_IMPLEMENTATION */

/* LICENCE: choose whichever you prefer.

   A - MIT No Attribution. Copyright (c) 2026 minillama.h contributors. Permission is hereby granted, free of charge, to
   any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the
   Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
   distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished
   to do so.

   B - Public domain (www.unlicense.org). This is free and unencumbered software released into the public domain. Anyone is
   free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code form or as a
   compiled binary, for any purpose, commercial or non-commercial, and by any means.

   In either case THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
   LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
   THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
   CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN
   THE SOFTWARE. */
