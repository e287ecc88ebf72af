/* minillama.h - v0.6.0 - a whole small Llama in one C header: load, generate, classify, train, save - no dependencies
   Public domain or MIT-0, whichever you prefer; see the end of this file.

   DO THIS
      #define MINILLAMA_IMPLEMENTATION
   in one C or C++ file before including this header; include it anywhere else without. Link with -lm. Compile with
   -O3 and -march=native (or whatever your target has): the instruction set is chosen at compile time.

   SHAPES  Matrices are row-major, outermost dimension first, and every operand in this file has its shape beside it:
      n  tokens in a pass     D  dim, the width      A   heads, of size hd = D / A      V  vocab_size
      L  layers               H  hidden_dim          kv_dim = n_kv_heads * hd           C  classes of a head

   GENERATE
      #include <stdio.h>
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
          if (ml_model_load("model.gguf", NULL, &model, &error) || ml_session_new(model, NULL, &session, &error) ||
              ml_session_generate(session, &desc, NULL, &error)) return fprintf(stderr, "%s\n", error.text), 1;
          ml_session_free(session);
          ml_model_free(model);
          return 0;
      }
   The path may be a GGUF, safetensors, .pt or llama2.c's .bin, or a folder of Hugging Face's. desc.sampler takes a
   temperature, top-k and so on; desc.start = ML_START_APPEND continues a conversation.

   CLASSIFY with a head that was trained and saved before, packed rows of tokens in, log-probabilities out:
      ml_head *head;  float log_probs[2 * 5];  // 2 rows, 5 classes
      int32_t tokens[] = {1, 15, 300, 1, 77}, row_start[] = {0, 3, 5};
      ml_batch batch = {tokens, 5, row_start, 2, NULL, NULL, 0};
      ml_head_load("adapter.gguf", model, NULL, &head, &error);
      ml_head_eval(head, session, &batch, log_probs, &error);  // head->labels[i] names class i

   TRAIN WITH LoRA, save adapter and head in one file, load the adapter into a session (a model of any type will do):
      ml_random random;  ml_lora *lora;  ml_trainer *trainer;  float loss;
      ml_lora_create_desc thin = {0};  ml_head_create_desc top = {0};  ml_trainer_desc how = {0};
      ml_save_desc with = {0};  ml_session_desc use = {0};
      ml_random_seed(&random, 1);
      thin.rank = 8;  thin.random = &random;
      top.n_classes = 5;  top.random = &random;
      ml_lora_create(model, &thin, &lora, &error);
      ml_head_create(model, &top, &head, &error);
      how.lora = lora;  how.head = head;  how.max_tokens = 2048;  how.adamw.lr = 1e-3f;
      ml_trainer_new(model, &how, &trainer, &error);
      while (next_batch(&batch)) {  // yours: tokens, row_start, labels
          ml_trainer_backward(trainer, &batch, NULL, &loss, &error);
          ml_trainer_step(trainer, &error);
      }
      with.head = head;
      ml_lora_save(lora, model, "adapter.gguf", &with, &error);  // with.format: PEFT's, or for the course's code
      use.lora = lora;  // or one from ml_lora_load("adapter.gguf", model, NULL, &lora, &error)
      ml_session_new(model, &use, &session, &error);

   TRAIN FROM SCRATCH on what follows each token (or fine-tune a model loaded with ml_model_load_desc.type = ML_F32):
      ml_model_create_desc fresh = {{128, 352, 6, 8, 8, 2048, 256, 1}, ML_F32, &random};  // D, H, L, A, ...
      ml_model_create(&fresh, &model, &error);
      how.lora = NULL;  how.head = NULL;  // then as above, with batch.targets in place of labels
      ml_model_save(model, "trained.gguf", NULL, &error);

   COMPUTE ANYTHING with autograd: operations on a graph (>>operations has them all, the whole Llama among them; see
   examples/xor.c, characters.c and own_head.c), and AdamW over any list of tensors:
      static float x[4][2] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}}, y[4] = {0, 1, 1, 0};
      static float w1[8][2], w2[8];  // random numbers
      static ml_tensor X = {ML_F32, 4, 2, x, NULL}, Y = {ML_F32, 4, 1, y, NULL};
      static ml_tensor W1 = {ML_F32, 8, 2, w1, NULL}, W2 = {ML_F32, 1, 8, w2, NULL};
      static ml_tensor loss_of(ml_graph *g, void *user) {
          ml_tensor h = ml_tanh(g, ml_linear(g, X, W1, ml_none()));  // (4, 8)
          return (void)user, ml_squared_error(g, ml_linear(g, h, W2, ml_none()), Y, 0);
      }
      static int learn(ml_error *error) {
          ml_graph *graph;  ml_optimizer *optimizer;
          ml_parameter all[] = {{&W1, 0}, {&W2, 0}};
          ml_optimizer_desc with = {0};
          with.parameters = all;  with.n_parameters = 2;  with.adamw.lr = 0.05f;
          if (ml_optimizer_new(&with, &optimizer, error)) return 0;  // gives W1 and W2 their gradients
          if (ml_graph_new(NULL, loss_of, NULL, &graph, error)) return 0;  // as large as loss_of needs
          while (optimizer->step < 300) {
              ml_graph_begin(graph, 1);
              if (ml_graph_backward(graph, loss_of(graph, NULL), error)) return 0;
              if (ml_optimizer_step(optimizer, error)) return 0;
          }
          return ml_graph_free(graph), ml_optimizer_free(optimizer), 1;
      }

   WITHOUT MALLOC, the model in flash or ROM and used in place, the session in a static buffer:
      static unsigned char objects[1 << 18], buffer[1 << 20];  // arena.used and ml_session_size say what is needed
      ml_arena arena = {objects, sizeof objects, 0};
      ml_model_load_desc where = {0};  ml_session_desc small = {0};
      where.allocator = ml_arena_allocator(&arena);  // where.unchecked = 1 would save a pass over all weights
      small.max_seq_len = 64;
      ml_model_load_memory(gguf, gguf_size, &where, &model, &error);
      ml_session_init(model, &small, buffer, sizeof buffer, &session, &error);

   THREADS are used when asked for: session_desc.threads.count = 4 (trainers have the same field), through OpenMP
   where the compiler enables it (-fopenmp) or a parallel_for of yours. A model is immutable and may be shared, unless
   a trainer changes it; a session, a trainer, a graph, an optimizer, a random state and an arena belong to one thread
   at a time. There are no globals.

   NAMES  ml_OBJECT_VERB. _load makes an object from a file, _load_memory from bytes, _create from nothing; _size
   and _init place one into a buffer of yours, _new does both with an allocator; _save writes a file that _load
   reads, or a state that _restore puts back; _eval computes, _free frees. Operations on a graph are named by what
   they compute (ml_linear, ml_add). Constructors take their inputs, a description (a field that is 0 means the
   default in its comment; NULL means all defaults, if no field is required), the address of the result, set to NULL
   on failure, and an ml_error.

   CONTENTS (search for the words after >>; the implementation follows the same order, with a few internal sections)
      >>results      ml_result, ml_error             >>operations   ml_graph: autograd, ml_llama, losses
      >>threads      ml_threads                      >>training     ml_optimizer, ml_trainer, ml_schedule
      >>memory       ml_allocator, ml_arena          >>adapters     ml_lora
      >>random       ml_random                       >>tokenizer    ml_tokenizer: text to token ids and back
      >>types        ml_type: F32 ... Q4_0, Q6_K     >>generation   ml_sampler, ml_session_generate
      >>tensors      ml_tensor                       >>archives     ml_archive: named tensors of any file
      >>model        ml_config, ml_model             >>files        loading and saving
      >>session      ml_session, ml_batch, ml_look   Internal: >>platform, >>kernels, >>graph, >>layers, >>network,
      >>heads        ml_head                         a section per file format, and the machinery:
                                                     >>vectors, >>rows, >>products, >>numbers, >>integers, >>linear
   In the implementation, models are in >>network and >>create, number types in >>numbers, pre-tokenizers in >>words,
   and loading and saving in >>bytes, >>writing, >>loading, >>saving and >>checkpoints.
   To learn how a Llama computes and learns, walk through examples/lessons, or read the implementation from >>kernels
   to >>generation in order: every operation of the network has its backward pass directly below it. To watch it,
   see ml_look.

   SWITCHES (define them wherever you include the header, the implementation included). The functions of a part that
   is left out are not declared, so a call to one does not compile; a file of a format that is left out is
   ML_ERROR_UNSUPPORTED, with a sentence that names the switch.
      ML_STATIC        everything static, for use inside one file
      ML_DEF           replaces extern or static before each public function
      ML_ASSERT(x)     replaces assert: internal invariants only; wrong arguments and files give error codes
      ML_NO_STDIO      no files: only the ..._memory functions
      ML_NO_MALLOC     no malloc: every constructor needs an allocator (see ml_arena)
      ML_NO_MMAP       read files into memory instead of mapping them
      ML_NO_SIMD, ML_NO_AVX512, ML_NO_AVX2, ML_NO_NEON   step down to simpler instruction sets
      ML_NO_TRAINING   no trainer, no graph, no optimizer: no gradients
      ML_NO_SAVE       no writing of files
      ML_NO_PT         no PyTorch files
      ML_NO_K_QUANTS   none of the types that are only read, Q4_1 to IQ4_XS
      ML_NO_BPE        no byte-level BPE (and its 6 KB table of Unicode) and no tokenizer.json: SentencePiece only
      ML_ALLOW_FAST_MATH   compile in spite of -ffast-math (see NUMERICS)

   MEMORY  Nothing is allocated except by constructors, which take an allocator (default malloc); after construction
   nothing allocates. A mapped model takes no memory for its weights beyond the file's pages; a session's KV cache
   takes 8 * L * max_seq_len * kv_dim bytes. A trainer is one buffer: 12 bytes for each number that it trains, and the
   activations of its largest batch. An optimizer and a graph are one buffer each: the same 12 bytes a number, and the
   activations of the pass that was measured.

   ERRORS  Functions return an ml_result and fill in an ml_error with one sentence. Nothing prints, exits or aborts.
   Files may be hostile: every size and offset in them is checked.

   NUMERICS  F32 arithmetic with fused multiply-add where the instruction set has it; eps is inside the square root of
   both norms. What is promised: the same build on the same machine gives the same bits for the same calls, for any
   number of threads, in training, too. What keeps it: -O0 to -O3, -ffp-contract in any setting, OpenMP or not. What
   breaks it: x87 arithmetic; -ffast-math and -Ofast, which reorder sums and assume that there are no infinities,
   which masks need. The implementation refuses to compile with them, unless ML_ALLOW_FAST_MATH is defined: use -O3.
   What it does not cover: another instruction set or compiler sums in another order or rounds differently (about 1e-6
   of a logit's size), and so does reading the same tokens one by one, in passes or in a batch (about 1e-5). With Q8_0
   and Q4_0 weights the activations are rounded to 8 bits in blocks of 32, as in llama.cpp: logits move by about 1 %.
   A number that is not finite is ML_ERROR_NUMBER wherever it shows: in weights (when they are loaded or saved, or do
   not fit the type that they are converted to), in a loss or a gradient, in logits from which a token is drawn, in a
   likelihood, an embedding or a head's result. The test is one of bits, which no compiler option can remove.

   LIMITS  Little-endian machines. Models are Llamas (a graph computes others, without files and sessions): RMSNorm or
   LayerNorm, rotary positions on adjacent pairs with theta and linear scaling, grouped-query attention, SwiGLU, no
   biases in the matrices. Only F32 is trained. Tokenizers are BPE, not Unigram or WordPiece. No GPU. */
#ifndef ML_MINILLAMA_H
#define ML_MINILLAMA_H

#include <stddef.h>
#include <stdint.h>

#define ML_VERSION 600 /* 10000 * major + 100 * minor + patch */
#define ML_VERSION_STRING "0.6.0"

#ifndef ML_DEF
#if defined(ML_STATIC) && defined(__GNUC__)
#define ML_DEF static __attribute__((unused))
#elif defined(ML_STATIC)
#define ML_DEF static
#else
#define ML_DEF extern
#endif
#endif

/* A file with ML_STATIC and without the implementation has static functions that have no body: only a call of one is
   a mistake, and is still reported. gcc decides about that warning at the end of a C file, so there it stays off. */
#if defined(ML_STATIC) && defined(__GNUC__) && !defined(MINILLAMA_IMPLEMENTATION)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#define ML_UNUSED_FUNCTIONS_
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ==== >>results ====
   Every function that can fail returns an ml_result; 0 is success. Where an ml_error is accepted (NULL is fine), it
   receives the same code and one sentence that names the file (of a long path the end), tensor, key or offset. */

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

ML_DEF const char *ml_result_string(ml_result result); /* the text beside its name above */

/* ==== >>threads ====
   One thread unless asked for more. The work of an operation is split into at most `count` tasks, each of which owns
   its outputs, so results are the same bits for every thread count. */

typedef void (*ml_task)(void *arg, int index);

typedef struct ml_threads {
    int count; /* default 1 */
    /* Calls task(arg, i) once for each i in 0..n_tasks-1, in any order or concurrently, and returns when all are
       done. Default: OpenMP where the compiler enables it (-fopenmp), else a plain loop. */
    void (*parallel_for)(void *user, int n_tasks, ml_task task, void *arg);
    void *user;
} ml_threads;

/* ==== >>memory ==== */

typedef struct ml_allocator {
    void *(*alloc)(size_t size, void *user); /* aligned for any type; NULL when there is no more */
    void (*free)(void *memory, void *user);
    void *user;
} ml_allocator; /* give both functions or neither; default malloc and free (none with ML_NO_MALLOC) */

/* An allocator over a buffer of yours, for targets without malloc: takes from the front and gives nothing back. Set
   memory and size, the rest 0; `used` says how much was needed. */
typedef struct ml_arena {
    unsigned char *memory;
    size_t size, used;
} ml_arena;
ML_DEF ml_allocator ml_arena_allocator(ml_arena *arena);

/* ==== >>random ====
   xoshiro256** (Blackman & Vigna 2018, "Scrambled Linear Pseudorandom Number Generators"), seeded through splitmix64.
   The same seed gives the same run. */

typedef struct ml_random {
    uint64_t state[4];
} ml_random;
ML_DEF void ml_random_seed(ml_random *random, uint64_t seed);
ML_DEF uint64_t ml_random_u64(ml_random *random);
ML_DEF float ml_random_uniform(ml_random *random); /* in [0, 1) */
ML_DEF float ml_random_normal(ml_random *random);  /* mean 0, standard deviation 1 */

/* ==== >>types ====
   Number formats of tensors. The forward pass uses weights of the first five as they are stored. Those from Q4_1 on
   are only read (GGUF's other quantized formats, whose blocks >>numbers draws): a model's become F32 when it is
   loaded. */

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
    ML_Q4_1, /* blocks of 32, as are the next two and IQ4_NL */
    ML_Q5_0,
    ML_Q5_1,
    ML_Q2_K, /* blocks of 256, as are the others */
    ML_Q3_K,
    ML_Q4_K,
    ML_Q5_K,
    ML_Q6_K,
    ML_IQ4_NL,
    ML_IQ4_XS,
    ML_TYPE_COUNT
} ml_type;

ML_DEF const char *ml_type_name(ml_type type);      /* "F32", "Q8_0", ...; "?" for a wrong one */
ML_DEF ml_type ml_type_from_name(const char *name); /* ignores case; ML_TYPE_NONE if unknown */
ML_DEF size_t ml_type_block(ml_type type); /* numbers per block: 32, 256, or 1 where there are none */
/* Bytes of a row of `cols` numbers; 0 if cols is not a multiple of the block. */
ML_DEF size_t ml_type_row_bytes(ml_type type, size_t cols);

/* Converts n numbers; `to` must be one of the first five types. Exact where the target can hold the value, otherwise
   rounded to nearest even; what is too large becomes infinite (in Q8_0 and Q4_0 the largest that fits). Fails when n
   is not a multiple of a block, and with ML_ERROR_UNSUPPORTED for a type that ML_NO_K_QUANTS left out. */
ML_DEF ml_result ml_type_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n);

/* ==== >>tensors ==== */

/* A matrix: row-major (rows, cols); a vector is one row. Weights keep PyTorch's (out, in). data NULL: the model has
   no such tensor (the biases of RMS norms). */
typedef struct ml_tensor {
    ml_type type;
    size_t rows, cols;
    void *data;
    float *grad; /* in training: (rows, cols), the gradient of the loss; NULL: none is wanted */
} ml_tensor;

/* ==== >>model ====
   Every object of this library (model, session, adapter, head, trainer, tokenizer, archive) is a struct whose fields
   may be read directly, without getters; everything else is in private_part. Do not write to a field unless its
   comment says so. */

typedef struct ml_tokenizer ml_tokenizer;
typedef struct ml_archive ml_archive;
typedef struct ml_lora ml_lora;
typedef struct ml_head ml_head;

typedef enum ml_norm {
    ML_NORM_DEFAULT = 0, /* what the file says, else RMS */
    ML_NORM_RMS,         /* x / rms(x) * weight: Llama (Zhang & Sennrich 2019) */
    ML_NORM_LAYER        /* (x - mean) / sd * weight + bias (Ba et al. 2016) */
} ml_norm;

typedef enum ml_mask {
    ML_MASK_DEFAULT = 0, /* what the file says, else causal */
    ML_MASK_CAUSAL,      /* a token sees itself and the tokens before it */
    ML_MASK_FULL         /* a token sees its whole row */
} ml_mask;

typedef struct ml_config {
    int dim;         /* D, width of the residual stream */
    int hidden_dim;  /* H, width of the feed-forward layer */
    int n_layers;    /* L */
    int n_heads;     /* A, query heads; head size hd = D / A */
    int n_kv_heads;  /* key and value heads; divides n_heads; kv_dim = n_kv_heads * hd */
    int vocab_size;  /* V, at least the tokenizer's n_pieces */
    int max_seq_len; /* positions the model was trained for */
    int tied_output; /* the output layer is the token embedding */
    ml_norm norm;
    ml_mask mask;
    float norm_eps;
    float rope_theta; /* base of the rotary frequencies */
    float rope_scale; /* position interpolation: positions are divided by this; 1 is none */
} ml_config;

/* A model. It does not change (unless a trainer changes it), and any number of sessions may share it. Loaded by
   ml_model_load (see >>files) or made by ml_model_create. */
typedef struct ml_model {
    ml_config config;
    const ml_tokenizer *tokenizer; /* NULL when none was found */
    int n_tensors;
    /* in the order of the parameter table; names by ml_model_tensor_name. A tied output shows the embedding's data.
       A model without output layer (a file of Hugging Face's LlamaModel or LlamaForSequenceClassification) has no
       data there: it computes hidden states, and a head works; calls that need logits are ML_ERROR_UNSUPPORTED */
    const ml_tensor *tensors;
    int64_t n_parameters; /* numbers in all tensors, a tied output counted once */
    struct ml_model_private *private_part;
} ml_model;

typedef struct ml_model_create_desc {
    ml_config config;  /* 0 in n_kv_heads, norm, mask, norm_eps, rope_theta or rope_scale: the usual value */
    ml_type type;      /* of the matrices; default F32 */
    ml_random *random; /* required */
    ml_allocator allocator;
} ml_model_create_desc;

/* Makes a model with random weights, normal with standard deviation 0.02 (for training and measuring). */
ML_DEF ml_result ml_model_create(const ml_model_create_desc *desc, ml_model **model, ml_error *error);
ML_DEF void ml_model_free(ml_model *model);

/* Gives a created model the tokenizer to save with it. The model owns it from then on, and frees the one it had. */
ML_DEF ml_result ml_model_set_tokenizer(ml_model *model, ml_tokenizer *tokenizer, ml_error *error);

#define ML_NAME_SIZE 64
ML_DEF ml_result ml_model_tensor_name(const ml_model *model, int index,
                                      char name[ML_NAME_SIZE]); /* GGUF's name */

/* ==== >>session ====
   KV cache and scratch of one sequence in progress, in one buffer. One thread at a time. */

/* What a layer of a pass computed, to be looked at: row i of each tensor belongs to token i of the n in the pass. Of
   a sequence, `past` tokens came before; of a batch, the rows follow each other. Valid during the call. */
typedef struct ml_seen {
    int layer; /* 0 .. L-1; before them -1: `stream` is the token embedding, the rest is missing (data NULL) */
    int past;
    /* (A * n, S), head after head: how much of each key's value a token gets. Column j is the j-th key of the token's
       row, S the keys of the longest row; a row's sum is 1 */
    ml_tensor weights;
    ml_tensor middle; /* (n, D): the residual stream after the attention half */
    ml_tensor stream; /* (n, D): ... after the layer. What is written into it is what the next layer reads */
} ml_seen;

/* A function of yours that is called before the first layer and after each layer of every pass of a session: L + 1
   times. Attention weights are then computed once more, in memory that the session has for it: 4 * A * max_batch *
   max_seq_len bytes. Without a function nothing is computed and no memory is taken. */
typedef struct ml_look {
    void (*on_layer)(void *user, const ml_seen *seen);
    void *user;
} ml_look;

typedef struct ml_session_desc {
    int max_seq_len;     /* positions in the KV cache; default the model's */
    int max_batch;       /* most tokens in one pass; default the smaller of max_seq_len and 256 */
    const ml_lora *lora; /* an adapter over the model, which must outlive the session; default none */
    ml_threads threads;
    ml_allocator allocator; /* of ml_session_new */
    ml_look look;           /* default: nobody looks */
} ml_session_desc;

typedef struct ml_session {
    const ml_model *model;
    int max_seq_len, max_batch;
    int length;            /* tokens held */
    const int32_t *tokens; /* (length) */
    struct ml_session_private *private_part;
} ml_session;

/* _size and _init place a session into a buffer of yours; _new does both with an allocator. desc NULL: defaults. */
ML_DEF ml_result ml_session_size(const ml_model *model, const ml_session_desc *desc, size_t *size,
                                 ml_error *error);
ML_DEF ml_result ml_session_init(const ml_model *model, const ml_session_desc *desc, void *memory,
                                 size_t size, ml_session **session, ml_error *error);
ML_DEF ml_result ml_session_new(const ml_model *model, const ml_session_desc *desc, ml_session **session,
                                ml_error *error);
ML_DEF void ml_session_free(ml_session *session); /* NULL is fine; nothing to do after ml_session_init */

/* Token ids, owned by whoever made them. */
typedef struct ml_tokens {
    const int32_t *ids;
    int n;
} ml_tokens;

/* Appends n tokens to the session and computes the logits (V) that follow the last one; they stay valid until the
   session's next call. logits NULL: not wanted. Many tokens are read in passes of max_batch. With mask full the whole
   sequence is computed again. ML_ERROR_CONTEXT, and nothing done, when they do not fit. */
ML_DEF ml_result ml_session_eval(ml_session *session, const int32_t *tokens, int n, const float **logits,
                                 ml_error *error);

/* Keeps the first `length` tokens; 0 starts over. */
ML_DEF ml_result ml_session_truncate(ml_session *session, int length, ml_error *error);
/* Makes the session hold what another one over the same model and adapter holds, as one hypothesis of a beam search
   branches off another: keeps what they have in common, and copies the tokens, keys and values that follow.
   ML_ERROR_CONTEXT if they do not fit. */
ML_DEF ml_result ml_session_copy(ml_session *session, const ml_session *from, ml_error *error);
/* Keeps the longest common prefix of the session and these tokens (all but the last of them at most, so that there is
   something left to compute logits from). *kept, which may be NULL, is its length. */
ML_DEF ml_result ml_session_keep_prefix(ml_session *session, const ml_tokens *tokens, int *kept,
                                        ml_error *error);

/* Encodes text by the model's tokenizer (flags: see ml_tokenizer_encode) into memory of the session, where the ids
   stay until its next ml_session_encode. ML_ERROR_CONTEXT, and tokens->n 0, when they do not fit. */
ML_DEF ml_result ml_session_encode(ml_session *session, const char *text, int flags, ml_tokens *tokens,
                                   ml_error *error);

/* Tokens, keys and values held, as bytes: restored into a session over the same model, it continues as if it had read
   the tokens itself. The bytes are for the machine and the build that wrote them. */
ML_DEF size_t ml_session_save_size(const ml_session *session);
ML_DEF ml_result ml_session_save(const ml_session *session, void *memory, size_t size, ml_error *error);
ML_DEF ml_result ml_session_restore(ml_session *session, const void *memory, size_t size, ml_error *error);

/* A packed batch of rows of any lengths: row r is tokens[row_start[r]] .. tokens[row_start[r+1] - 1]. Rows never see
   each other. The same struct serves computing and training; targets, labels and divisor are for a trainer. */
typedef struct ml_batch {
    const int32_t *tokens; /* (n_tokens) */
    int n_tokens;
    const int32_t *row_start; /* (n_rows + 1), from 0 to n_tokens; NULL: one row */
    int n_rows;
    const int32_t *targets; /* (n_tokens): the token that follows each; -1: not counted */
    const int32_t *labels;  /* (n_rows): 0 .. C-1; -1: not counted */
    /* the loss is the sum of -log p over all that count, divided by this; default their number */
    float divisor;
} ml_batch;

/* What is wanted of a batch. */
typedef struct ml_outputs {
    const int32_t *select; /* (n_select) indices into tokens: where logits are wanted; NULL: everywhere */
    int n_select;
    float *hidden; /* out (n_tokens, D): after the last norm; NULL: not wanted */
    float *logits; /* out (n_select or n_tokens, V); NULL: not wanted */
} ml_outputs;

/* Computes a batch without touching the session's sequence. */
ML_DEF ml_result ml_session_eval_batch(ml_session *session, const ml_batch *batch, const ml_outputs *outputs,
                                       ml_error *error);
/* As ml_session_eval, with hidden states and logits of any of the n new tokens, which outputs->select counts from 0:
   checks a draft in one pass, or finds the most similar state. */
ML_DEF ml_result ml_session_eval_outputs(ml_session *session, const int32_t *tokens, int n,
                                         const ml_outputs *outputs, ml_error *error);

/* logits (n, V) = the last norm and the output matrix over rows of a residual stream (n, D): what the model would say
   next if it ended there ("logit lens", nostalgebraist 2020). Over the last layer's stream these are the session's
   own logits. n is at most max_batch. May be called while looking (see ml_look). */
ML_DEF ml_result ml_session_lens(ml_session *session, const float *stream, int n, float *logits,
                                 ml_error *error);

typedef enum ml_pooling {
    ML_POOL_LAST = 0, /* the hidden state of a row's last token */
    ML_POOL_MEAN,     /* the mean over its tokens */
    ML_POOL_MAX       /* the largest of each number over its tokens */
} ml_pooling;

typedef struct ml_embed_desc {
    ml_pooling pooling;
    int normalize; /* to length 1, so that a dot product of two embeddings is their cosine */
} ml_embed_desc;

/* embeddings (n_rows, D) = one vector for each row of the batch. desc NULL: the last token's, not normalized.
   ML_ERROR_NUMBER if one is not finite. */
ML_DEF ml_result ml_session_embed(ml_session *session, const ml_batch *batch, const ml_embed_desc *desc,
                                  float *embeddings, ml_error *error);

/* log p(continuation | context). Give texts (bos is put in front if tokenizer->adds_bos says so), or ids with bos in
   front of the context. Without bos, an empty context is ML_ERROR_ARGUMENT: there is nothing to predict from. */
typedef struct ml_likelihood_desc {
    /* Encoded together, and scored from where the ids of both first differ from those of the context alone. */
    const char *context, *continuation;
    ml_tokens context_ids, continuation_ids; /* or these, where continuation is NULL */
    float *log_probs;  /* out: log p of each token of the continuation; NULL: not wanted */
    int max_log_probs; /* room for so many */
} ml_likelihood_desc;

typedef struct ml_likelihood {
    double sum;   /* natural logarithm of the continuation's probability */
    int n_tokens; /* of the continuation */
} ml_likelihood;

/* The session then holds context and continuation, and nothing else. ML_ERROR_NUMBER if the sum is not finite. */
ML_DEF ml_result ml_session_likelihood(ml_session *session, const ml_likelihood_desc *desc,
                                       ml_likelihood *likelihood, ml_error *error);

/* ==== >>heads ====
   A classifier on top of a model: logits (C) = W h + b of one pooled hidden state h (D) of each row. Trained by a
   trainer, saved and loaded together with its model or adapter (see >>files). */

struct ml_head {
    int n_classes;             /* C */
    const char *const *labels; /* (C) names of the classes; NULL: none were given */
    ml_pooling pooling;
    ml_tensor weight, bias; /* (C, D), (1, C); bias.data NULL: there is none */
    struct ml_head_private *private_part;
};

typedef struct ml_head_create_desc {
    int n_classes;             /* 2 or more */
    const char *const *labels; /* (n_classes), copied; default none */
    ml_pooling pooling;
    int no_bias;       /* like the classification head of Hugging Face's Llama */
    ml_random *random; /* required: uniform in +-1 / sqrt(D), as PyTorch initializes nn.Linear */
    ml_allocator allocator;
} ml_head_create_desc;

ML_DEF ml_result ml_head_create(const ml_model *model, const ml_head_create_desc *desc, ml_head **head,
                                ml_error *error);
ML_DEF void ml_head_free(ml_head *head);

/* log_probs (n_rows, C) = log-softmax of the head's logits for each row of the batch. ML_ERROR_NUMBER if one is not
   finite. */
ML_DEF ml_result ml_head_eval(const ml_head *head, ml_session *session, const ml_batch *batch,
                              float *log_probs, ml_error *error);

#ifndef ML_NO_TRAINING

/* ==== >>operations ====
   Autograd: compute anything from the operations below, and ml_graph_backward gives the gradient of the result with
   respect to every parameter and input (reverse-mode differentiation, Linnainmaa 1976).

   A graph holds one pass: its activations and, if it tapes, a record of each operation. An operation takes matrices
   and returns a new one, so that a computation reads like its formula:

      ml_tensor h = ml_relu(g, ml_linear(g, x, w1, b1));
      ml_tensor loss = ml_cross_entropy(g, ml_linear(g, h, w2, b2), &targets);

   A parameter is an ml_tensor of yours: `data` is its numbers, `grad` memory of the same shape that gradients are
   added to (ml_optimizer_new sees to it); with grad NULL it is a constant. Results of operations live until the next
   ml_graph_begin; their `data` may be read at once, their `grad` (NULL where nothing below learns) is valid after
   ml_graph_backward. A value may be read by any number of operations: it gets the sum of their gradients. Arrays
   that a description points to (rows, indices, targets) must live as long.

   How large is a pass? ml_graph_size calls your function with a graph that has no memory: operations then check
   shapes and add up sizes, and compute nothing (`data` must not be read while graph->measuring is set). Parameters
   must have their gradients by then, so make the optimizer first. Afterwards nothing allocates. A pass that turns out
   larger than the graph is ML_ERROR_MEMORY; from where it outgrew its memory on, `measuring` is set.

   What goes wrong is kept: from the first operation that fails (shapes that do not fit, an index out of range, a
   custom operation's error) to the next ml_graph_begin all operations do nothing and return ml_none(), and
   ml_graph_backward or ml_graph_end returns the error with its sentence. So there is one check a pass. With the graph
   NULL, all operations do nothing, too. An operand that is NULL, empty or of an unsuitable type is
   ML_ERROR_ARGUMENT, shapes that do not fit are ML_ERROR_MISMATCH. Results are the same bits for any number of
   threads. */

typedef struct ml_graph {
    int taping;       /* this pass can be run backward, and was not yet */
    int measuring;    /* there is no memory, or no longer: only shapes and sizes */
    size_t size;      /* bytes that the largest pass so far took */
    ml_result result; /* of this pass so far */
    struct ml_graph_private *private_part;
} ml_graph;

typedef struct ml_graph_desc {
    /* Values and gradients that could share memory do not: more memory, the same results. For tests. */
    int separate;
    ml_threads threads;
    ml_allocator allocator; /* of ml_graph_new */
} ml_graph_desc;

/* Yours: computes a pass on the graph and returns its result, usually the loss (1, 1). Called with the largest sizes
   that will occur to find the size of the graph, and again for each pass if you like. */
typedef ml_tensor (*ml_build)(ml_graph *graph, void *user);

/* desc NULL: all defaults. _size and _new call build(graph, user) once, taping; its error is theirs. _init takes any
   size that has room for the graph itself, and the pass may then be too large. */
ML_DEF ml_result ml_graph_size(const ml_graph_desc *desc, ml_build build, void *user, size_t *size,
                               ml_error *error);
ML_DEF ml_result ml_graph_init(const ml_graph_desc *desc, void *memory, size_t size, ml_graph **graph,
                               ml_error *error);
ML_DEF ml_result ml_graph_new(const ml_graph_desc *desc, ml_build build, void *user, ml_graph **graph,
                              ml_error *error);
ML_DEF void ml_graph_free(ml_graph *graph); /* NULL is fine; nothing to do after ml_graph_init */

/* Starts a pass: what the last one left is gone, and must not be read or used as an operand (which is found, and is
   ML_ERROR_ARGUMENT, only where this pass has not come to its memory yet). Without taping it only computes. */
ML_DEF void ml_graph_begin(ml_graph *graph, int taping);
/* Adds the gradients of loss (1, 1) to parameters and inputs. The records are used up, so that a second call is
   ML_ERROR_ARGUMENT; values and gradients can be read until the next begin. ML_ERROR_NUMBER, and no gradient is
   computed, when the loss is not finite. After an error the parameters' gradients are undefined: set them to 0.
   Several losses: add them, or scale and add them. */
ML_DEF ml_result ml_graph_backward(ml_graph *graph, ml_tensor loss, ml_error *error);
/* Ends a pass that is not run backward: whether it went well. */
ML_DEF ml_result ml_graph_end(ml_graph *graph, ml_error *error);

/* ---- inputs ---- */

ML_DEF ml_tensor ml_none(void); /* an operand that is left out, such as a bias */
/* x (rows, cols) = a copy of values; NULL: zeros. It has a gradient, too. (For a constant, use an ml_tensor of your
   own with grad NULL.) */
ML_DEF ml_tensor ml_input(ml_graph *g, const float *values, size_t rows, size_t cols);
ML_DEF ml_tensor ml_stop_gradient(ml_graph *g, ml_tensor x); /* x, as a constant */
/* y_i (n, cols) = row index_i of table (rows, cols), which may have any type of weights if it has no gradient. With a
   token embedding as table: the embedding of tokens. No operation reads indices or targets while the graph
   measures. */
ML_DEF ml_tensor ml_gather(ml_graph *g, ml_tensor table, const int32_t *index, size_t n);
/* y = x (n, cols), with row index_i replaced by row i of rows (m, cols), m <= n; no index may occur twice */
ML_DEF ml_tensor ml_replace_rows(ml_graph *g, ml_tensor x, const int32_t *index, ml_tensor rows);

/* ---- arithmetic ----
   In a op b, b (n, c), (1, c), (n, 1) or (1, 1) is repeated over the rows or columns of a (n, c). */

/* x (n, in) w (out, in)^T + b (1, out); b may be ml_none(). w may be an activation: this is also the product of two
   matrices. Weights of any type if they have no gradient. */
ML_DEF ml_tensor ml_linear(ml_graph *g, ml_tensor x, ml_tensor w, ml_tensor b);
ML_DEF ml_tensor ml_add(ml_graph *g, ml_tensor a, ml_tensor b);
ML_DEF ml_tensor ml_sub(ml_graph *g, ml_tensor a, ml_tensor b);
ML_DEF ml_tensor ml_mul(ml_graph *g, ml_tensor a, ml_tensor b); /* element by element */
ML_DEF ml_tensor ml_scale(ml_graph *g, ml_tensor x, float factor);
ML_DEF ml_tensor ml_shift(ml_graph *g, ml_tensor x, float number); /* x + number */
ML_DEF ml_tensor ml_sum(ml_graph *g, ml_tensor x);                 /* (1, 1) */
ML_DEF ml_tensor ml_mean(ml_graph *g, ml_tensor x);                /* (1, 1) */
ML_DEF ml_tensor ml_sum_rows(ml_graph *g, ml_tensor x);            /* (n, c) -> (n, 1), the sum of each row */

/* ---- functions of single numbers ---- */

ML_DEF ml_tensor ml_relu(ml_graph *g, ml_tensor x);
ML_DEF ml_tensor ml_gelu(ml_graph *g, ml_tensor x); /* x Phi(x), exact (Hendrycks & Gimpel 2016) */
ML_DEF ml_tensor ml_silu(ml_graph *g, ml_tensor x); /* x / (1 + e^-x) */
ML_DEF ml_tensor ml_tanh(ml_graph *g, ml_tensor x);
ML_DEF ml_tensor ml_sigmoid(ml_graph *g, ml_tensor x);
ML_DEF ml_tensor ml_exp(ml_graph *g, ml_tensor x);
ML_DEF ml_tensor ml_log(ml_graph *g, ml_tensor x);
ML_DEF ml_tensor ml_swiglu(ml_graph *g, ml_tensor gate, ml_tensor up); /* silu(gate) * up */
/* Each number is 0 with probability p, otherwise divided by 1 - p; which, depends on seed and position alone. Without
   taping: x. */
ML_DEF ml_tensor ml_dropout(ml_graph *g, ml_tensor x, float p, uint64_t seed);

/* ---- functions of rows ---- */

ML_DEF ml_tensor ml_softmax(ml_graph *g, ml_tensor x);     /* of each row */
ML_DEF ml_tensor ml_log_softmax(ml_graph *g, ml_tensor x); /* of each row */
/* x / sqrt(mean(x^2) + eps) * w (1, c); (x - mean) / sqrt(variance + eps) * w + b. w and b may be ml_none(). */
ML_DEF ml_tensor ml_rms_norm(ml_graph *g, ml_tensor x, ml_tensor w, float eps);
ML_DEF ml_tensor ml_layer_norm(ml_graph *g, ml_tensor x, ml_tensor w, ml_tensor b, float eps);

/* ---- shapes ---- */

/* (n, c) -> (rows, cols): the same numbers in order, in the same memory */
ML_DEF ml_tensor ml_reshape(ml_graph *g, ml_tensor x, size_t rows, size_t cols);
ML_DEF ml_tensor ml_transpose(ml_graph *g, ml_tensor x); /* (n, c) -> (c, n) */
typedef enum ml_axis { ML_ROWS = 0, ML_COLS } ml_axis;
/* The parts one below the other (ML_ROWS: all have the same cols) or side by side (ML_COLS: the same rows). */
ML_DEF ml_tensor ml_concat(ml_graph *g, const ml_tensor *parts, int n_parts, ml_axis axis);
/* Rows or columns [begin, end), at least one; rows are the same memory. */
ML_DEF ml_tensor ml_slice(ml_graph *g, ml_tensor x, ml_axis axis, size_t begin, size_t end);

/* ---- sequences: a matrix holds the tokens of several rows of text, packed one after another as in ml_batch ---- */

typedef struct ml_rows {
    const int32_t *start; /* (n_rows + 1), from 0 to n; NULL: all is one row */
    int n_rows;
} ml_rows;
typedef struct ml_span {
    int32_t begin, end; /* tokens [begin, end), at least one */
} ml_span;

/* x (n, D) -> (n_spans, D): the pooled tokens of each span; spans may overlap. The gradient of a maximum goes to the
   first of equal numbers. */
ML_DEF ml_tensor ml_pool_spans(ml_graph *g, ml_tensor x, const ml_span *spans, int n_spans,
                               ml_pooling pooling);
ML_DEF ml_tensor ml_pool_rows(ml_graph *g, ml_tensor x, ml_rows rows, ml_pooling pooling); /* (n_rows, D) */
/* attention pooling (Lin et al. 2017, "A Structured Self-attentive Sentence Embedding"): the mean of a row's tokens,
   weighted by softmax over the row of scores (n, 1) */
ML_DEF ml_tensor ml_pool_weighted(ml_graph *g, ml_tensor x, ml_tensor scores, ml_rows rows);

/* cosine and sine of every pair's angle at positions 0 .. n_positions - 1: table (n_positions, hd) */
typedef enum ml_rope_kind {
    ML_ROPE_PLAIN = 0, /* position / (scale theta^(2j / hd)): scale > 1 is position interpolation */
    ML_ROPE_NTK,       /* theta scale^(hd / (hd - 2)) in place of theta */
    /* Peng et al. 2023, "YaRN": a pair that turns more than 32 times in the original context keeps its angles, one
       that turns less than once has its positions divided by scale, those between are mixed as Hugging Face's library
       and llama.cpp do it; and the table is multiplied by 0.1 ln(scale) + 1, which makes attention sharper */
    ML_ROPE_YARN
} ml_rope_kind;
typedef struct ml_rope_desc {
    ml_rope_kind kind;
    size_t hd;    /* required: size of a head */
    float theta;  /* default 10000 */
    float scale;  /* default 1: how many times longer than trained */
    int original; /* positions that the model was trained for: ML_ROPE_YARN needs it */
} ml_rope_desc;
/* ML_ERROR_ARGUMENT when a field is out of range, or hd odd. */
ML_DEF ml_result ml_rope_table(const ml_rope_desc *desc, float *table, int n_positions);
/* rotary positions (Su et al. 2021): each head of x (n, heads * hd) rotated by each token's position in its row;
   table (positions, hd) as ml_rope_table makes it, at least as long as the longest row */
ML_DEF ml_tensor ml_rotate(ml_graph *g, ml_tensor x, ml_tensor table, ml_rows rows);

/* softmax(q k^T scale + bias) v in each head (Vaswani et al. 2017; grouped heads: Ainslie et al. 2023). A query from
   which everything is hidden gets 0. */
typedef struct ml_attention_desc {
    ml_tensor q;      /* (n, n_heads * hd) */
    ml_tensor k, v;   /* (m, n_kv_heads * hd), (m, n_kv_heads * hv); hv may be another size than hd */
    int n_heads;      /* required */
    int n_kv_heads;   /* default n_heads; divides it */
    ml_rows rows;     /* of q */
    ml_rows key_rows; /* of k and v; default rows. Of more keys than queries, the queries are at the last */
    ml_mask mask;     /* default causal */
    int window;  /* a query sees at most so many keys back, itself included (and ahead, if full); 0: all */
    int sinks;   /* with a window: ... and always its row's first so many (Xiao et al. 2023) */
    float scale; /* default 1 / sqrt(hd) */
    /* (n, S) for all heads or (n_heads * n, S), head after head: column j is the j-th key of the query's row, S at
       least the keys of the longest row; -INFINITY hides a key; default none */
    ml_tensor bias;
    float dropout; /* of the weights; default 0; as ml_dropout, none where the graph does not tape */
    uint64_t seed; /* of dropout */
} ml_attention_desc;
ML_DEF ml_tensor ml_attention(ml_graph *g, const ml_attention_desc *desc); /* (n, n_heads * hv) */
/* bias (n_heads * n, S) of ALiBi (Press et al. 2022, "Train Short, Test Long: Attention with Linear Biases Enables
   Input Length Extrapolation"): -2^(-8 h / n_heads) |i - j|, heads h from 1; S the longest row */
ML_DEF ml_tensor ml_alibi(ml_graph *g, int n_heads, ml_rows rows, size_t n);

/* ---- losses: (1, 1) ---- */

typedef struct ml_loss_desc {
    /* (n): 0 .. C-1; negative: not counted; NULL: none is, only log_probs are wanted */
    const int32_t *targets;
    float divisor; /* of the sum over the rows; default the number of those that count, or 1 */
    /* Label smoothing (Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision"): this share
       of a target, 0 to 1, is spread evenly over all classes, as in PyTorch. */
    float smoothing;
    float *log_probs; /* out (n, C): log-softmax; NULL: not wanted */
    /* This is all of the loss, and goes to ml_graph_backward as it is: gradients are computed with it, which for a
       large vocabulary saves computing the logits twice. No operation may read it. */
    int whole;
} ml_loss_desc;
/* sum of -log softmax(logits)[target] / divisor */
ML_DEF ml_tensor ml_cross_entropy(ml_graph *g, ml_tensor logits, const ml_loss_desc *desc);
/* the same with logits x (n, D) w (C, D)^T + b, of which only a few hundred rows exist at a time */
ML_DEF ml_tensor ml_linear_cross_entropy(ml_graph *g, ml_tensor x, ml_tensor w, ml_tensor b,
                                         const ml_loss_desc *desc);
/* sum of (y - target)^2 / divisor; divisor 0: their number, the mean */
ML_DEF ml_tensor ml_squared_error(ml_graph *g, ml_tensor y, ml_tensor target, float divisor);
/* sum over the rows of KL(p || q) / divisor, p = softmax(x), q = softmax(y), with gradients for both; divisor 0: the
   number of rows. The other direction: exchange x and y. */
ML_DEF ml_tensor ml_kl_divergence(ml_graph *g, ml_tensor x, ml_tensor y, float divisor);

/* ---- an operation of yours ---- */

#define ML_MAX_INPUTS 8
typedef struct ml_custom {
    const char *name; /* for errors */
    int n_inputs;
    ml_tensor inputs[ML_MAX_INPUTS]; /* F32 */
    ml_tensor output;                /* (rows, cols) */
    void *kept;                      /* `keep` bytes from the forward to the backward pass */
    void *user;
} ml_custom;
/* Forward: fills output.data. Backward: adds to inputs[i].grad, where it is not NULL, from output.grad. Both return
   ML_OK; anything else ends the pass with that error. */
typedef ml_result (*ml_custom_function)(const ml_custom *op);
typedef struct ml_custom_desc {
    const char *name;
    ml_custom_function forward, backward; /* backward NULL: the result is a constant */
    const ml_tensor *inputs;
    int n_inputs; /* 1 to ML_MAX_INPUTS */
    size_t rows, cols;
    size_t keep;
    void *user;
} ml_custom_desc;
ML_DEF ml_tensor ml_custom_op(ml_graph *g, const ml_custom_desc *desc);

/* ---- the whole Llama as one operation, with places to insert things ---- */

typedef enum ml_place {
    ML_PLACE_EMBEDDING, /* y: the token embeddings; x the same */
    ML_PLACE_Q, /* y (n, D), before rotation; x (n, D): the normalized stream that it is computed from */
    ML_PLACE_K, /* y (n, kv_dim), before rotation */
    ML_PLACE_V, /* y (n, kv_dim) */
    ML_PLACE_O, /* y (n, D): what attention adds to the stream; x: what the heads gave */
    ML_PLACE_ATTENTION, /* y (n, D): the same, but x is the normalized stream that the half layer began with */
    ML_PLACE_W1,        /* y (n, H): before silu; x (n, D): the normalized stream */
    ML_PLACE_W3,        /* y (n, H) */
    ML_PLACE_HIDDEN,    /* y (n, H): silu(W1 x) * W3 x, before W2; x the same */
    ML_PLACE_W2,        /* y (n, D): what the feed-forward half adds to the stream; x (n, H) */
    ML_PLACE_FFN,   /* y (n, D): the same, but x is the normalized stream that the half layer began with */
    ML_PLACE_BLOCK, /* y (n, D): the stream after the layer; x the same */
    ML_PLACES
} ml_place;
typedef struct ml_insertion {
    ml_place place;
    int layer; /* 0 for ML_PLACE_EMBEDDING */
    ml_tensor x, y;
} ml_insertion;
/* Returns what is to be used in place of y, of the same shape (or y). With checkpointing, what is inserted inside of
   a layer is computed again in the backward pass: the function must do the same again, and x, y and what it computed
   are gone when the layer is done. What it returns counts as learning in every layer, at ML_PLACE_EMBEDDING and
   ML_PLACE_BLOCK only where it has a gradient. */
typedef ml_tensor (*ml_insert)(ml_graph *g, const ml_insertion *at, void *user);

typedef struct ml_llama_desc {
    const ml_model *model; /* required */
    /* (model->n_tensors), with gradients where they learn, F32 or of the model's types; default the
       model's, frozen */
    const ml_tensor *weights;
    const ml_lora *lora;           /* an adapter over the model; default none */
    const ml_tensor *lora_weights; /* (lora->n_tensors), with gradients; default the adapter's, frozen */
    const ml_batch *batch;         /* required: tokens, and rows if there are several */
    unsigned places;  /* a sum of 1u << ML_PLACE_...: where `insert` is called; default nowhere */
    ml_insert insert; /* required with places */
    void *user;       /* of insert */
    /* (n_layers) of (P, kv_dim): keys and values, not rotated, that every token of the layer sees in addition (Li &
       Liang 2021, "Prefix-Tuning"); default none */
    const ml_tensor *prefix_keys;
    const ml_tensor *prefix_values;
    ml_tensor rope; /* (positions, hd): see ml_rope_table; default by the model's configuration */
    int no_rope;    /* no rotation at all */
    ml_tensor bias; /* as those of ml_attention_desc, in all layers */
    int window, sinks;
    float dropout;     /* of the attention weights, as in ml_attention_desc; default 0 */
    uint64_t seed;     /* of dropout; each layer drops others */
    int checkpointing; /* as that of ml_trainer_desc */
    ml_tensor
        *states; /* out (n_layers + 1): the stream before the first and after each layer; NULL: not wanted */
} ml_llama_desc;
/* The hidden states (n, D) after the last norm. What is below the first part that learns anything is computed without
   records and has no gradient: if nothing learns, nor has the result. (The states alone do not make it learn.) */
ML_DEF ml_tensor ml_llama(ml_graph *g, const ml_llama_desc *desc);

/* ---- checking a gradient ---- */

typedef struct ml_check_desc {
    ml_build build; /* computes a loss (1, 1); must give the same one when called again (fixed seeds) */
    void *user;
    const ml_tensor *const *tensors; /* (n_tensors) parameters, F32, with grad */
    int n_tensors;
    /* of a difference; default 0.01 of the root mean square of the tensor's numbers, or 0.01 if all are 0 */
    double step;
    int n_directions;  /* for each tensor, 1 to 64; default 8 */
    ml_random *random; /* required */
} ml_check_desc;
/* Compares the derivative of the loss along random directions d, of numbers 1 and -1, as backward gives it, with the
   fourth-order central difference (8 (L(w + h d) - L(w - h d)) - (L(w + 2 h d) - L(w - 2 h d))) / 12 h, taken in
   double from losses that are F32. *worst is the largest difference, relative to the length of the tensor's gradient
   (of 2e-5 L / h if that is more: less cannot be told from rounding): below 0.01 for a right gradient, above 0.1 for
   a wrong one. The corners of ml_relu make about 0.1 of a right one: check with a smooth function in its place, or
   with a smaller step. ml_dropout drops in all passes. The tensors' numbers are as before afterwards (they wait in
   the memory of the gradients), and the gradients those of one pass. */
ML_DEF ml_result ml_check_gradient(ml_graph *g, const ml_check_desc *desc, double *worst, ml_error *error);

/* ==== >>training ====
   ml_trainer_backward computes a batch's loss and adds its gradient; ml_trainer_step updates the weights (AdamW). */

/* AdamW (Kingma & Ba 2015, "Adam"; Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"): with g the
   gradient, m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, c1 = 1 - b1^t, c2 = 1 - b2^t at step t. */
typedef enum ml_adamw_form {
    ML_ADAMW_FOLDED = 0, /* w -= lr sqrt(c2) / c1 * m / (sqrt(v) + eps); then w -= lr decay w */
    ML_ADAMW_PYTORCH     /* w -= lr decay w; then w -= lr / c1 * m / (sqrt(v / c2) + eps) */
} ml_adamw_form;

typedef struct ml_adamw {
    float lr;           /* required; the schedule multiplies it */
    float head_lr;      /* of the head; default lr */
    float beta1, beta2; /* default 0.9, 0.999 */
    float eps;          /* default 1e-6 */
    float weight_decay; /* default 0 */
    int decay_all;      /* norms and biases decay, too */
    float clip;         /* the gradient is scaled down to this global norm if it is larger; default: never */
    ml_adamw_form form;
} ml_adamw;

/* The factor of lr (1 for NULL): rises linearly from 0 over warmup_steps, then stays at 1 or decays to `final` at
   total_steps. */
typedef enum ml_decay { ML_DECAY_NONE = 0, ML_DECAY_LINEAR, ML_DECAY_COSINE } ml_decay;
typedef struct ml_schedule {
    ml_decay decay;
    int warmup_steps, total_steps;
    float final; /* default 0 */
} ml_schedule;
ML_DEF float ml_schedule_factor(const ml_schedule *schedule,
                                int64_t step); /* for the next step, after `step` steps */

/* ---- AdamW over any list of tensors ---- */

/* Tensors with the same learning rate and decay. */
typedef struct ml_group {
    float lr;           /* default that of ml_adamw */
    float weight_decay; /* as it stands: 0 is none */
    int frozen;         /* gets no gradient and no moments */
} ml_group;
typedef struct ml_parameter {
    ml_tensor *tensor; /* F32 (any type if frozen); must outlive the optimizer, which sets its `grad` */
    int group;
} ml_parameter;

typedef struct ml_optimizer_desc {
    const ml_parameter *parameters; /* (n_parameters), not needed after _init; no two may share memory */
    int n_parameters;
    const ml_group *groups; /* (n_groups); default one group with adamw's lr and weight_decay */
    int n_groups;
    ml_adamw adamw; /* without head_lr and decay_all; lr may be left out if every group has its own */
    ml_schedule schedule;
    ml_threads threads;
    ml_allocator allocator; /* of ml_optimizer_new */
} ml_optimizer_desc;

typedef struct ml_optimizer {
    int64_t step;         /* steps done */
    float learning_rate;  /* of the last step, without groups */
    float gradient_norm;  /* global, of the last step, before clipping */
    int64_t n_parameters; /* numbers that are trained */
    ml_group *groups;     /* yours to change between steps, except for `frozen`; a rate of 0 then is 0 */
    struct ml_optimizer_private *private_part;
} ml_optimizer;

/* Gradients and moments, 12 bytes for each number that is trained, are in the optimizer's one buffer. */
ML_DEF ml_result ml_optimizer_size(const ml_optimizer_desc *desc, size_t *size, ml_error *error);
ML_DEF ml_result ml_optimizer_init(const ml_optimizer_desc *desc, void *memory, size_t size,
                                   ml_optimizer **optimizer, ml_error *error);
ML_DEF ml_result ml_optimizer_new(const ml_optimizer_desc *desc, ml_optimizer **optimizer, ml_error *error);
/* NULL is fine; nothing to do after ml_optimizer_init. The tensors' grads point to memory that is gone. */
ML_DEF void ml_optimizer_free(ml_optimizer *optimizer);
/* One step with the accumulated gradients, which are 0 afterwards. ML_ERROR_NUMBER, and nothing done, when they are
   not finite; ML_ERROR_ARGUMENT, and nothing done, when the rate of a group is not 0 to 1e6. */
ML_DEF ml_result ml_optimizer_step(ml_optimizer *optimizer, ml_error *error);
ML_DEF void ml_optimizer_zero_gradients(ml_optimizer *optimizer);

/* ---- a trainer: model, head, loss and optimizer in one ---- */

typedef struct ml_trainer_desc {
    int max_tokens; /* of a batch; default the model's max_seq_len */
    int max_rows;   /* of a batch; default max_tokens */
    int max_row; /* tokens of the longest row; default the smaller of max_tokens and the model's max_seq_len */
    ml_lora *lora; /* is trained, and the model is frozen; default: the model is trained */
    ml_head *head; /* is trained on labels; default: the model learns to predict the targets */
    int frozen;    /* the model is frozen without an adapter: only the head is trained */
    float dropout; /* of the head's input (Srivastava et al. 2014); default 0 */
    uint64_t seed; /* of dropout */
    int checkpointing; /* keep only each layer's input and compute the rest again in the backward pass (Chen et al.
                          2016): a third more time for much less memory, and the same gradients */
    ml_adamw adamw;
    ml_schedule schedule;
    ml_threads threads;
    ml_allocator allocator; /* of ml_trainer_new */
} ml_trainer_desc;

/* A training run over a model, whose weights it changes: they must be the model's own and F32 (see
   ml_model_load_desc.type) unless they are frozen. Nothing else may use the model in the meantime. */
typedef struct ml_trainer {
    int64_t step;           /* steps done */
    float learning_rate;    /* of the last step */
    float gradient_norm;    /* global, of the last step, before clipping */
    int64_t n_parameters;   /* that are trained */
    uint64_t progress[8];   /* yours to write (a position in the data, ...): kept in checkpoints */
    const ml_tensor *model; /* as model->tensors, with gradients where they are trained */
    const ml_tensor *lora;  /* as lora->tensors, with gradients; or NULL */
    ml_tensor head[2];      /* weight and bias with their gradients */
    struct ml_trainer_private *private_part;
} ml_trainer;

/* The size is exact: gradients, moments and activations, all that training needs, are in that one buffer. */
ML_DEF ml_result ml_trainer_size(const ml_model *model, const ml_trainer_desc *desc, size_t *size,
                                 ml_error *error);
ML_DEF ml_result ml_trainer_init(ml_model *model, const ml_trainer_desc *desc, void *memory, size_t size,
                                 ml_trainer **trainer, ml_error *error);
ML_DEF ml_result ml_trainer_new(ml_model *model, const ml_trainer_desc *desc, ml_trainer **trainer,
                                ml_error *error);
ML_DEF void ml_trainer_free(ml_trainer *trainer); /* NULL is fine; nothing to do after ml_trainer_init */

/* Computes the loss of a batch (`targets` without a head, `labels` with one) and adds its gradient to what has been
   accumulated since the last ml_trainer_step or ml_trainer_zero_gradients. log_probs (n_rows, C), with a head, and
   loss may be NULL. ML_ERROR_NUMBER when one of them is not finite; all gradients are 0 then. */
ML_DEF ml_result ml_trainer_backward(ml_trainer *trainer, const ml_batch *batch, float *log_probs,
                                     float *loss, ml_error *error);
/* The same without dropout and without gradients; with a head and no labels only log_probs. */
ML_DEF ml_result ml_trainer_eval(ml_trainer *trainer, const ml_batch *batch, float *log_probs, float *loss,
                                 ml_error *error);
/* One step of AdamW with the accumulated gradients, which are 0 afterwards. ML_ERROR_NUMBER, and nothing done, when
   they are not finite. */
ML_DEF ml_result ml_trainer_step(ml_trainer *trainer, ml_error *error);
ML_DEF void ml_trainer_zero_gradients(ml_trainer *trainer);
#endif /* ML_NO_TRAINING */

/* ==== >>adapters ====
   LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"): beside a frozen matrix W (out, in) two
   thin ones are trained, A (rank, in) and B (out, rank), and W + alpha / rank * B A is used in its place. A starts
   random and B at 0, so that nothing changes at first. An adapter that is loaded may have another rank and scale for
   each matrix. */

enum { /* which matrices are adapted: a sum of these */
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

/* An adapter, for any number of models of one shape. Only a trainer and the functions below change it. */
struct ml_lora {
    int rank;    /* of the largest pair; each pair's own is the rows of its A */
    float alpha; /* as ml_lora_create or the file gave it: what counts is `scales` */
    int n_tensors;
    /* [(layer * 7 + target) * 2] is A, followed by B; no data where nothing is adapted */
    const ml_tensor *tensors;
    const float *scales; /* (n_tensors / 2): W + scale * B A; alpha / rank unless a file says otherwise */
    int64_t n_parameters;
    struct ml_lora_private *private_part;
};

typedef struct ml_lora_create_desc {
    int rank;          /* default 4 */
    float alpha;       /* default rank */
    unsigned targets;  /* default ML_LORA_ATTENTION */
    float init_sd;     /* standard deviation of A; default 0.02 */
    ml_random *random; /* required */
    ml_allocator allocator;
} ml_lora_create_desc;

ML_DEF ml_result ml_lora_create(const ml_model *model, const ml_lora_create_desc *desc, ml_lora **lora,
                                ml_error *error);
ML_DEF void ml_lora_free(ml_lora *lora);
/* W += scale * B A, and back (up to rounding). The model's weights must be its own and F32: see
   ml_model_load_desc.type. */
ML_DEF ml_result ml_lora_merge(const ml_lora *lora, ml_model *model, ml_error *error);
ML_DEF ml_result ml_lora_unmerge(const ml_lora *lora, ml_model *model, ml_error *error);

/* ==== >>tokenizer ====
   Byte pair encoding (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"), of two
   kinds. SentencePiece's (Kudo & Richardson 2018, "SentencePiece"), of Llama 1 and 2: start from single characters
   and merge the neighbors whose joint piece has the highest score (leftmost on a tie) until none is left; characters
   without a piece become bytes. Byte-level (Radford et al. 2019, "Language Models are Unsupervised Multitask
   Learners"), of Llama 3, SmolLM, Qwen2 and GPT-2: cut the text into words, each into its bytes, and merge the
   neighbors that come first in a list of merges. */

/* Flags of encoding: bos in front, eos at the end (ML_ERROR_ARGUMENT where the tokenizer has none); or whichever of
   them the tokenizer's file asks for, which is what a model has seen in training. With ML_PARSE_SPECIAL, a control
   piece that is written in the text ("<|eot_id|>") is read as that piece: for texts that you put together, and not
   for those of strangers. (User-defined pieces always are.) */
enum { ML_ADD_BOS = 1, ML_ADD_EOS = 2, ML_ADD_SPECIAL = 4, ML_PARSE_SPECIAL = 8 };

typedef enum ml_piece_kind { /* numbered as in GGUF */
                             ML_PIECE_NORMAL = 1,
                             ML_PIECE_UNKNOWN,
                             ML_PIECE_CONTROL,
                             ML_PIECE_USER_DEFINED,
                             ML_PIECE_UNUSED,
                             ML_PIECE_BYTE
} ml_piece_kind;

#define ML_MAX_ENDS 8
struct ml_tokenizer {
    int n_pieces;              /* V, or fewer where the model's vocabulary is padded */
    int32_t bos, eos, unknown; /* -1: there is none */
    int32_t padding;           /* the id of byte 0 where the file gives none */
    int adds_bos, adds_eos;    /* whether a text is to begin with bos, to end with eos: see ML_ADD_SPECIAL */
    int n_ends;
    int32_t ends[ML_MAX_ENDS]; /* (n_ends) ids that end a text: eos, end of turn, whatever the file names */
    struct ml_tokenizer_private *private_part;
};

/* A piece as stored (spaces as U+2581, or, byte-level, every byte as a character of GPT-2's alphabet: a space as
   U+0120), not zero-terminated; NULL if there is no such id. The outputs may be NULL. */
ML_DEF const char *ml_tokenizer_piece(const ml_tokenizer *tokenizer, int32_t id, size_t *length, float *score,
                                      ml_piece_kind *kind);
ML_DEF void ml_tokenizer_free(ml_tokenizer *tokenizer);

typedef struct ml_encode_desc {
    const char *text; /* (n_bytes) UTF-8, but ml_tokenizer_decode restores any bytes */
    size_t n_bytes;
    int flags;        /* a sum of ML_ADD_BOS, ML_ADD_EOS, ML_ADD_SPECIAL, ML_PARSE_SPECIAL */
    void *work;       /* aligned for int32_t; the ids are in it afterwards */
    size_t work_size; /* at least ml_tokenizer_encode_size(n_bytes) */
} ml_encode_desc;
ML_DEF size_t ml_tokenizer_encode_size(size_t n_bytes);
ML_DEF ml_result ml_tokenizer_encode(const ml_tokenizer *tokenizer, const ml_encode_desc *desc,
                                     ml_tokens *tokens, ml_error *error);

/* Decodes ids into text (zero-terminated if there is room), as SentencePiece does: control pieces give nothing, and
   the space that encoding puts in front is removed. (Byte-level, nothing is put in front.) *n_bytes is what the whole
   text needs; ML_ERROR_MEMORY if that is more than size. text may be NULL with size 0, to ask. ML_ERROR_ARGUMENT if
   an id is not in 0 .. n_pieces-1. */
ML_DEF ml_result ml_tokenizer_decode(const ml_tokenizer *tokenizer, const ml_tokens *tokens, char *text,
                                     size_t size, size_t *n_bytes, ml_error *error);

/* The bytes that the next token adds: for streaming. *has_begun is 0 before the first token, and belongs to this
   function: it becomes 1 where the text begins, after which no space is removed. Points into the tokenizer;
   concatenated over a sequence it equals ml_tokenizer_decode. NULL, and *n_bytes 0, if there is no such id. */
ML_DEF const char *ml_tokenizer_decode_token(const ml_tokenizer *tokenizer, int *has_begun, int32_t id,
                                             size_t *n_bytes);

/* ==== >>generation ==== */

/* How the next token is chosen. The steps are applied in this order, each unless left at 0: repetition penalty on the
   logits; temperature; softmax; top-k; top-p; min-p; epsilon; then the rest is renormalized and one is drawn. The
   most likely token always stays. */
typedef struct ml_sampler {
    float temperature; /* 0: always the most likely (greedy) */
    int top_k;         /* keep the k most likely (Fan et al. 2018) */
    float top_p;       /* keep the smallest set with probability >= p (Holtzman et al. 2020) */
    float min_p;       /* drop what is below min_p times the most likely (Nguyen et al. 2024) */
    float epsilon;     /* drop probabilities below epsilon (Hewitt et al. 2022) */
    /* divide positive, multiply negative logits of tokens seen (Keskar et al. 2019) */
    float repetition_penalty;
    int repetition_window; /* how many of the last tokens count as seen; default 64 */
    ml_random *random;     /* required unless greedy */
} ml_sampler;

typedef struct ml_candidate {
    float p;
    int32_t id;
} ml_candidate;

/* Draws a token from logits (n), which are overwritten. `history`: the tokens so far, for the repetition penalty;
   NULL: none. `work`: room for n ml_candidate. A logit of -infinity is never drawn. Returns -1, and draws nothing,
   when the logits hold NaN or +infinity, or no finite number at all. */
ML_DEF int32_t ml_sampler_sample(const ml_sampler *sampler, float *logits, int n, const ml_tokens *history,
                                 ml_candidate *work);

typedef enum ml_start {
    ML_START_OVER = 0, /* forget what the session holds, and read the whole prompt */
    ML_START_APPEND, /* a conversation: the prompt is appended (bos only if the session is empty); may be empty */
    ML_START_PREFIX /* keep what the session and the prompt have in common (see ml_session_keep_prefix) */
} ml_start;

typedef enum ml_overflow {
    ML_OVERFLOW_ERROR = 0, /* ML_ERROR_CONTEXT if the prompt does not fit; new tokens end with the context */
    ML_OVERFLOW_SLIDE /* drop the oldest half of what follows bos, and go on (reads the kept half again) */
} ml_overflow;

typedef enum ml_stop {
    ML_STOP_LENGTH = 1, /* max_new_tokens reached */
    ML_STOP_END,        /* the model ended its text: one of tokenizer->ends, or the bos of a next one */
    ML_STOP_CALLER,     /* on_token said so */
    ML_STOP_CONTEXT     /* the context is full */
} ml_stop;

typedef struct ml_generate_desc {
    /* Text, zero-terminated. Needs the model's tokenizer, which puts bos in front if tokenizer->adds_bos says so. */
    const char *prompt;
    ml_tokens prompt_ids; /* or token ids (bos included) */
    ml_start start;
    int max_new_tokens; /* default: until the context is full; never more than fit, unless it slides */
    ml_sampler sampler; /* default greedy */
    ml_overflow overflow;
    /* Called for each new token with the bytes it adds; not zero-terminated. Return 0 to stop. */
    int (*on_token)(void *user, int32_t id, const char *text, size_t n_bytes);
    void *user;
} ml_generate_desc;

typedef struct ml_generated {
    int n_prompt, n_new; /* tokens of the prompt, and new tokens, without the one that ended the text */
    ml_stop stop;
} ml_generated;

/* Reads the prompt and continues it. The session then holds the prompt and all new tokens. *generated may be NULL. An
   empty prompt needs a bos to predict from, or tokens that the session holds: otherwise ML_ERROR_ARGUMENT. An id for
   which the tokenizer has no piece (of a padded vocabulary) is never drawn. ML_ERROR_NUMBER when no token can be
   drawn from the logits (see ml_sampler_sample). */
ML_DEF ml_result ml_session_generate(ml_session *session, const ml_generate_desc *desc,
                                     ml_generated *generated, ml_error *error);

/* ==== >>archives ====
   Named tensors and named values, whatever the file: PyTorch .pt (dictionaries, lists and tuples give names joined by
   dots: "model.layers.0.attention.wq.weight"; a tuple at the top "0", "1"), GGUF, safetensors, llama2.c's .bin (under
   the names of its own PyTorch code). Nothing in a file is executed: an object in a .pt is a value that names its
   class, with its attributes under dotted names ("args.lr"; a module's tensors as in its state dict). A key that
   makes no name (a float, a tuple, a very long text) becomes "#" and its position. What cannot be read is an error
   only if it is needed. */

#define ML_MAX_DIMS 8
typedef struct ml_array {
    const char *name;      /* zero-terminated */
    ml_type type;          /* ML_TYPE_NONE: a kind of number that no weight is made of; it cannot be read */
    const char *type_name; /* ml_type_name(type); for ML_TYPE_NONE the file's name: "C64", "ComplexFloat" */
    int n_dims;
    int64_t shape[ML_MAX_DIMS];  /* outermost first */
    int64_t stride[ML_MAX_DIMS]; /* in elements; arrays of quantized types are always contiguous */
    const void *data;            /* first element, inside the archive's bytes; no alignment promised */
    int is_contiguous;
} ml_array;

typedef enum ml_value_kind {
    ML_VALUE_INT = 1,
    ML_VALUE_FLOAT,
    ML_VALUE_BOOL,
    ML_VALUE_STRING,
    ML_VALUE_LIST,
    ML_VALUE_OPAQUE /* an object of a class that is not known; its attributes, if any, are values, too */
} ml_value_kind;
typedef struct ml_value {
    const char *name; /* "model_args.dim", "llama.block_count", ... */
    ml_value_kind kind;
    int64_t i;     /* int, bool (0 or 1) */
    double f;      /* float; also set for int */
    const char *s; /* string: bytes, not zero-terminated; opaque: the class, "pathlib.PosixPath" */
    size_t length; /* bytes of s, elements of a list (GGUF arrays; their bytes begin at s) */
    int list_type; /* GGUF's number for the elements' type; 9: they are lists */
} ml_value;

struct ml_archive {
    const char *format; /* "PyTorch", "GGUF", "safetensors", "llama2.c" */
    size_t n_arrays, n_values;
    const ml_array *arrays; /* (n_arrays), in the file's order */
    const ml_value *values; /* (n_values) */
    struct ml_archive_private *private_part;
};

typedef struct ml_load_desc {
    const void *config_json; /* the config.json or adapter_config.json that belongs to bytes in memory */
    size_t config_json_size;
    ml_allocator allocator;
} ml_load_desc;

/* `path` is a file, or leads to several that are opened as one archive: an index (model.safetensors.index.json or
   pytorch_model.bin.index.json), the first part of a split GGUF (NAME-00001-of-00003.gguf), or a folder, which means
   the first of these in it: model.safetensors, model.safetensors.index.json, pytorch_model.bin,
   pytorch_model.bin.index.json, consolidated.00.pth, adapter_model.safetensors, adapter_model.bin, or (with POSIX)
   its only .gguf. The values are those of the first file. ML_ERROR_MISMATCH where the files do not fit together.
   Models, adapters and heads are loaded from such paths, too; bytes in memory are always one file. */
#ifndef ML_NO_STDIO
ML_DEF ml_result ml_archive_load(const char *path, const ml_load_desc *desc, ml_archive **archive,
                                 ml_error *error);
#endif
ML_DEF ml_result ml_archive_load_memory(const void *data, size_t size, const ml_load_desc *desc,
                                        ml_archive **archive, ml_error *error); /* data must outlive it */
ML_DEF void ml_archive_free(ml_archive *archive);
ML_DEF const ml_array *ml_archive_find_array(const ml_archive *archive,
                                             const char *name); /* NULL if there is none */
ML_DEF const ml_value *ml_archive_find_value(const ml_archive *archive, const char *name);

/* Elements of an array, row-major, converted to float or int64; n must be its number of elements.
   ML_ERROR_UNSUPPORTED for ML_TYPE_NONE, and for a type that ML_NO_K_QUANTS left out. Floats as ints:
   ML_ERROR_MISMATCH. */
ML_DEF size_t ml_array_count(const ml_array *array);
ML_DEF ml_result ml_array_read_floats(const ml_array *array, float *dst, size_t n);
ML_DEF ml_result ml_array_read_ints(const ml_array *array, int64_t *dst, size_t n);

/* ==== >>files ====
   Loading tells formats apart by content. The ..._memory functions are for bytes in flash or from a network. */

/* A tokenizer: SentencePiece BPE in a tokenizer.model, GGUF, or llama2.c's .bin; byte-level BPE in a GGUF (of the
   pre-tokenizers gpt-2, llama-bpe, smollm, qwen2 and those that are equal to one of them) or in the tokenizer.model
   of Meta's Llama 3 (lines of base64 and rank; its 256 special pieces follow, named as in Llama 3.1); either kind in
   Hugging Face's tokenizer.json. Any other model, pre-tokenizer, normalizer or decoder is ML_ERROR_UNSUPPORTED, with
   a sentence that names it; so is everything but SentencePiece with ML_NO_BPE. A normalizer "NFC" is accepted and
   left out, as in llama.cpp: texts are taken as they are. A tokenizer.json names no bos and eos: they are those of
   its template, or spelled as in Llama 2 and 3 or GPT-2; beside a model, those of config.json. The bytes need not
   outlive the call. */
#ifndef ML_NO_STDIO
ML_DEF ml_result ml_tokenizer_load(const char *path, const ml_load_desc *desc, ml_tokenizer **tokenizer,
                                   ml_error *error);
#endif
ML_DEF ml_result ml_tokenizer_load_memory(const void *data, size_t size, const ml_load_desc *desc,
                                          ml_tokenizer **tokenizer, ml_error *error);

typedef struct ml_model_load_desc {
    /* The type of the matrices, F32 to Q4_0: all weights are converted into the model's own memory, which may be
       written to (F32: for training), and the file is closed. Default: as in the file, used in place where possible,
       and read-only; what has a type that is only read (F64, Q6_K, ...) becomes F32. */
    ml_type type;
    ml_norm norm; /* override what the file says */
    ml_mask mask;
    /* Skips the pass over all weights that looks for numbers that are not finite (or too large for `type`):
       ML_ERROR_NUMBER. It reads every page of a mapped file. */
    int unchecked;
    /* Path of a tokenizer of at most vocab_size pieces: the vocabulary may have rows that no piece belongs to.
       Default: the file's own; else tokenizer.model, tokenizer.json or tokenizer.bin in the same folder, ignored if
       it has more pieces, or over 1024 fewer. */
    const char *tokenizer;
    const void *tokenizer_data; /* or its bytes */
    size_t tokenizer_size;
    const void *config_json; /* for ml_model_load_memory: the config.json (or params.json) of its bytes */
    size_t config_json_size;
    ml_allocator allocator;
} ml_model_load_desc;

/* A model: any of the archive formats, or a path to several files (see ml_archive_load), with the configuration in
   the file or in config.json or params.json in the same folder. Prefixes and words of wrappers in the tensors' names
   ("module.", "_orig_mod.", ...) do not matter. A GGUF, safetensors or .pt file is mapped and its weights used in
   place; ml_model_load_memory uses them in `data`, which must outlive the model. A classifier that the course's code
   saved (its adapters merged or not) has no configuration: that is taken from the pretrained model it names, or from
   a config.json, in the same folder; without them its shapes must be those of stories42M. */
#ifndef ML_NO_STDIO
ML_DEF ml_result ml_model_load(const char *path, const ml_model_load_desc *desc, ml_model **model,
                               ml_error *error);
#endif
ML_DEF ml_result ml_model_load_memory(const void *data, size_t size, const ml_model_load_desc *desc,
                                      ml_model **model, ml_error *error);

/* An adapter for this model: llama.cpp's GGUF or PEFT's safetensors (or .bin), with its adapter_config.json in the
   same folder or in desc. Its numbers become F32 in the adapter's own memory. Every pair has its own rank, and its
   scale by PEFT's alpha_pattern (ends of names, not regular expressions) and use_rslora. What else would change the
   model's results (DoRA, PiSSA, an adapted embedding, ...) is refused: ML_ERROR_UNSUPPORTED. */
#ifndef ML_NO_STDIO
ML_DEF ml_result ml_lora_load(const char *path, const ml_model *model, const ml_load_desc *desc,
                              ml_lora **lora, ml_error *error);
#endif
ML_DEF ml_result ml_lora_load_memory(const void *data, size_t size, const ml_model *model,
                                     const ml_load_desc *desc, ml_lora **lora, ml_error *error);

/* The classifier that was saved with a model or an adapter: cls.output.weight and .bias of a GGUF, score.weight (and
   .bias) of Hugging Face's and PEFT's files, classifier_head.weight and .bias of the course's; labels from their keys
   or config, where they have any. ML_ERROR_MISMATCH if there is none. */
#ifndef ML_NO_STDIO
ML_DEF ml_result ml_head_load(const char *path, const ml_model *model, const ml_load_desc *desc,
                              ml_head **head, ml_error *error);
#endif
ML_DEF ml_result ml_head_load_memory(const void *data, size_t size, const ml_model *model,
                                     const ml_load_desc *desc, ml_head **head, ml_error *error);

#if !defined(ML_NO_STDIO) && !defined(ML_NO_SAVE)
typedef enum ml_format { ML_GGUF = 0, ML_SAFETENSORS, ML_PYTORCH } ml_format;
typedef struct ml_save_desc {
    ml_format format;
    /* The type of the matrices; default: the one they have (Q8_0 and Q4_0 become F16 unless it is a GGUF). Norms are
       F32; a matrix whose rows are not a multiple of the block becomes F16; with Q4_0 the layer that makes the logits
       (or the tied embedding) is Q8_0. Adapters: see ml_lora_save. ML_ERROR_NUMBER, before anything is written, if a
       number is not finite or too large for its new type (F16: above 65504). */
    ml_type type;
    const char *name;    /* general.name; default: that of the model's GGUF, else "minillama" */
    const ml_head *head; /* saved in the same file; default none. llama.cpp refuses such a file */
} ml_save_desc;

/* Writes PATH.tmp, syncs, then renames: an existing file is replaced whole or not at all. A model from a GGUF, saved
   as GGUF, keeps the keys of its file that mean nothing here (author, license, chat template, ...). A tokenizer of
   bytes keeps its pre-tokenizer and merges; one of characters that came from a tokenizer.json gets the ranks of its
   merges as scores, since GGUF has no merges there: ids are then the same if any two of its pieces that make a third
   are among the merges, as in the files of Llama 2. Safetensors is
   Hugging Face's layout; it also replaces config.json in the same folder, and holds no tokenizer. PyTorch is what
   torch.load reads, for the code of the course (see examples/run_llama), without a tokenizer, too: {"model": the
   weights under its names, "model_args": the configuration}, as its load_pretrained reads it; with a head what its
   save_model leaves, whose "model" fits its classifier around a model of the same shape, and a "model_config" that
   names stories42M.pt as that. What this code does not compute is ML_ERROR_UNSUPPORTED: an output that is not tied,
   another rope_theta than 10000, rope_scale, a head of means or without a bias. */
ML_DEF ml_result ml_model_save(const ml_model *model, const char *path, const ml_save_desc *desc,
                               ml_error *error);

/* Writes an adapter in the same way: a GGUF that llama.cpp reads (without a head; a scale that is not the file's
   alpha / rank becomes part of B), or, as safetensors, Hugging Face PEFT's adapter_model.safetensors; that also
   replaces adapter_config.json in the same folder. PyTorch, where the course's code has merged an adapter when it
   saves: the model with the adapter merged into it, as ml_model_save writes it. Types F32 (the default) to BF16. */
ML_DEF ml_result ml_lora_save(const ml_lora *lora, const ml_model *model, const char *path,
                              const ml_save_desc *desc, ml_error *error);

/* Tensors of yours under names of yours, in a file that appears whole or not at all, for ml_archive_load and
   ml_array_read_floats, and for other programs. */
typedef struct ml_named_tensor {
    /* 1 to 143 bytes of UTF-8, none of them a control character, a quote or a backslash; no two equal */
    const char *name;
    ml_tensor tensor; /* of the first five types; safetensors: of the first three */
    int is_vector;    /* its one row is written as one dimension, as other programs have biases */
} ml_named_tensor;
typedef struct ml_archive_save_desc {
    ml_format format;               /* GGUF or safetensors */
    const ml_named_tensor *tensors; /* (n_tensors) */
    int n_tensors;
    /* (n_values) named ints, floats, bools and strings (`length` bytes of UTF-8). Safetensors has texts
       only: there they are read back as such, and under "__metadata__." and their name */
    const ml_value *values;
    int n_values;
    ml_type type; /* F32, F16 or BF16: of all tensors; default: the one they have */
    /* A second file in the same folder, replaced together with the first: "adapter_config.json" and its text, as PEFT
       wants it beside an adapter_model.safetensors. Default none. */
    const char *text_name, *text;
    ml_allocator allocator; /* of what is needed in the meantime */
} ml_archive_save_desc;
/* ML_ERROR_NUMBER, before anything is written, if a number is not finite or too large for `type`. */
ML_DEF ml_result ml_archive_save(const char *path, const ml_archive_save_desc *desc, ml_error *error);

#ifndef ML_NO_TRAINING
/* The tensors that an optimizer trains, its moments and its step, in one GGUF file that appears whole or not at all.
   ml_optimizer_restore restores an optimizer over tensors of the same shapes in the same order, and it continues bit
   for bit; a file of other shapes changes nothing. */
ML_DEF ml_result ml_optimizer_save(const ml_optimizer *optimizer, const char *path, ml_error *error);
ML_DEF ml_result ml_optimizer_restore(ml_optimizer *optimizer, const char *path, ml_error *error);

/* A checkpoint: all that is trained, AdamW's moments, step, progress and the dropout counter, in one GGUF file that
   appears whole or not at all. ml_trainer_restore restores a trainer of the same description, and it continues bit
   for bit; a checkpoint of another shape changes nothing. A checkpoint of a whole model is a model file, too. */
ML_DEF ml_result ml_trainer_save(const ml_trainer *trainer, const char *path, ml_error *error);
ML_DEF ml_result ml_trainer_restore(ml_trainer *trainer, const char *path, ml_error *error);
#endif
#endif

#ifdef __cplusplus
}
#endif

#if defined(ML_UNUSED_FUNCTIONS_) && (defined(__cplusplus) || defined(__clang__))
#pragma GCC diagnostic pop
#undef ML_UNUSED_FUNCTIONS_
#endif
#endif /* ML_MINILLAMA_H */

/* ######## implementation ######## */

#if defined(MINILLAMA_IMPLEMENTATION) && !defined(ML_MINILLAMA_IMPLEMENTED)
#define ML_MINILLAMA_IMPLEMENTED

#ifdef ML_UNUSED_FUNCTIONS_ /* now they get their bodies */
#pragma GCC diagnostic pop
#undef ML_UNUSED_FUNCTIONS_
#endif

/* This is C, which has one kind of cast: C++ compilers may not ask for another kind, nor for fewer. */
#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wold-style-cast"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuseless-cast"
#endif
#endif

/* ==== >>platform ====
   What compiler and switches offer: headers, instruction sets, and keywords that compilers spell differently. */

/* Also MSVC's /fp:fast. */
#if !defined(ML_ALLOW_FAST_MATH) &&                                                                          \
    (defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) ||                    \
     defined(_M_FP_FAST))
#error                                                                                                       \
    "minillama.h counts on infinities and NaN, and promises the same bits in each run; -ffast-math and -Ofast break\
 both, for little speed. Compile with -O3, or define ML_ALLOW_FAST_MATH."
#endif

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

/* The instruction set: the best that the compiler was told it may use (-march=...), lowered by ML_NO_... */
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

/* MLI_OPTIONAL: a function that is unused in some builds, for example those of training with ML_NO_TRAINING. */
#if defined(__GNUC__)
#define MLI_RESTRICT __restrict__
#define MLI_INLINE static inline __attribute__((always_inline))
#define MLI_OPTIONAL static __attribute__((unused))
#elif defined(_MSC_VER)
#define MLI_RESTRICT __restrict
#define MLI_INLINE static __forceinline
#define MLI_OPTIONAL static
#else
#define MLI_RESTRICT
#define MLI_INLINE static
#define MLI_OPTIONAL static
#endif

/* The + turns an enum constant into an int; g++ warns otherwise. */
#define MLI_MIN(a, b) ((a) < (b) ? +(a) : +(b))
#define MLI_MAX(a, b) ((a) > (b) ? +(a) : +(b))
#define MLI_COUNT(array) (sizeof(array) / sizeof *(array))

/* By the bits, which hold even where the compiler assumes that there are no others (-ffast-math). */
MLI_OPTIONAL int mli_is_finite(double x) {
    const uint64_t exponent = (uint64_t)0x7ff << 52;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (bits & exponent) != exponent;
}

/* ==== >>results ====
   An error is a code and one sentence, built piece by piece in a fixed buffer without stdio: it cannot overflow. */

static void mli_put(char *text, size_t size, size_t *at, const char *s, size_t n) {
    for (size_t i = 0; i < n && *at + 1 < size; i++) {
        unsigned char c = (unsigned char)s[i];
        text[(*at)++] = c < 32 || c == 127 ? '?' : (char)c; /* names from files may contain anything */
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
    const char *s;
    text[0] = 0;
    for (const char *p = format; *p; p++) {
        switch (*p == '%' ? *++p : 0) {
        case 's':
            s = va_arg(args, const char *);
            mli_put(text, size, &at, s, MLI_MIN(strlen(s), 96));
            break;
        case 'd': mli_put_int(text, size, &at, va_arg(args, int)); break;
        case 'z': {
            uint64_t z = va_arg(args, size_t);
            if (z > INT64_MAX) mli_put_int(text, size, &at, (int64_t)(z / 10)), z %= 10;
            mli_put_int(text, size, &at, (int64_t)z);
            break;
        }
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

static ml_result mli_null(ml_error *error, const char *function) {
    return mli_fail(error, ML_ERROR_ARGUMENT, "%s: an argument is NULL", function);
}

static ml_result mli_ok(ml_error *error) { return mli_fail(error, ML_OK, "%s", ""); }

/* Whether a sentence begins with the path, or with the end of one that was too long. */
static int mli_names_file(const char *text, const char *path) {
    size_t n = strlen(path);
    return strncmp(text, "...", 3) == 0 || (n && strncmp(text, path, n) == 0 && strchr(": /.", text[n]));
}

/* Puts the file's name in front of an error's sentence that does not have it; a long path loses its beginning. */
static ml_result mli_name_file(ml_error *error, ml_result result, const char *path) {
    const size_t least = 48; /* bytes of the path, even where the end of the sentence does not fit */
    char text[sizeof error->text];
    size_t at = 0;
    if (!result || !error || !path || mli_names_file(error->text, path)) return result;
    size_t n = strlen(path), length = strlen(error->text), room = sizeof text - sizeof ": ";
    size_t most = room > length ? room - length : 0;
    if (most < least) most = least;
    if (n > most) {
        path += n - (most - 3);
        while (((unsigned char)*path & 0xc0) == 0x80) path++; /* not within a character */
        mli_put(text, sizeof text, &at, "...", 3);
    }
    mli_put(text, sizeof text, &at, path, strlen(path));
    mli_put(text, sizeof text, &at, ": ", 2);
    mli_put(text, sizeof text, &at, error->text, length);
    memcpy(error->text, text, at + 1);
    return result;
}

ML_DEF const char *ml_result_string(ml_result result) {
#define ML_RESULT_TEXT(name, value, text) text,
    static const char *const texts[] = {ML_RESULTS(ML_RESULT_TEXT)}; /* for 0, -1, -2 ... */
#undef ML_RESULT_TEXT
    return result <= 0 && result > -(int)MLI_COUNT(texts) ? texts[-result] : "unknown result";
}

/* ==== >>threads ====
   An operation is split over its outputs into tasks, never over a sum: results do not depend on their number. */

/* How many tasks to split `work` units into so that none is too small to be worth waking a thread for. */
static int mli_task_count(const ml_threads *threads, size_t work, size_t work_per_task) {
    size_t n = work / work_per_task;
    size_t count = threads && threads->count > 1 ? (size_t)threads->count : 1;
    return n < 2 ? 1 : (int)MLI_MIN(n, count);
}

static void mli_parallel(const ml_threads *threads, int n_tasks, ml_task task, void *arg) {
    if (n_tasks == 1) { /* OpenMP would form a team of one, which costs more than a small model's layer */
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
    for (int i = 0; i < n_tasks; i++) task(arg, i);
}

/* Task `index` of `n_tasks` owns units [*begin, *end), in multiples of `grain`. */
static void mli_share(size_t n, size_t grain, int n_tasks, int index, size_t *begin, size_t *end) {
    size_t grains = (n + grain - 1) / grain;
    *begin = MLI_MIN(n, grains * (size_t)index / (size_t)n_tasks * grain);
    *end = MLI_MIN(n, grains * ((size_t)index + 1) / (size_t)n_tasks * grain);
}

static ml_result mli_check_threads(const ml_threads *threads, const char *of, ml_error *error) {
    if (threads->count >= 0 && threads->count <= 1024) return ML_OK;
    return mli_fail(error, ML_ERROR_ARGUMENT, "%s: threads.count is %d, not 0 to 1024", of, threads->count);
}

/* ==== >>memory ====
   Sizes come from files and callers: every product and sum of them is checked. An object is laid out by carving its
   parts from one buffer; the same code run without a buffer tells how large the buffer must be. */

#define MLI_ALIGN 64 /* a cache line, and the widest vector */

/* Both return 0 on overflow. */
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

static uintptr_t mli_align_up(uintptr_t n) { return (n + MLI_ALIGN - 1) & ~(uintptr_t)(MLI_ALIGN - 1); }

/* Takes n things of `size` bytes from a buffer, or with memory NULL only counts; *used is SIZE_MAX on overflow. */
static void *mli_carve(unsigned char *memory, size_t *used, size_t n, size_t size) {
    size_t bytes, begin = *used;
    int fits = mli_mul_size(n, size, &bytes) && mli_add_size(bytes, MLI_ALIGN - 1, &bytes) &&
               mli_add_size(begin, bytes & ~(size_t)(MLI_ALIGN - 1), used);
    if (!fits) *used = SIZE_MAX;
    return memory && fits ? memory + begin : NULL;
}

/* Where an object that takes `need` bytes, with room to align it, is placed in a caller's buffer; NULL if that is too
   small. `hint` names the function that tells the size. */
static unsigned char *mli_place(void *memory, size_t size, size_t need, const char *hint, ml_error *error) {
    size_t skipped = (size_t)(mli_align_up((uintptr_t)memory) - (uintptr_t)memory);
    if (skipped <= size && need - MLI_ALIGN <= size - skipped) return (unsigned char *)memory + skipped;
    mli_fail(error, ML_ERROR_MEMORY, "the buffer has %z bytes; it takes %z (%s)", size, need, hint);
    return NULL;
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
static void *mli_malloc(size_t size, void *user) {
    void *memory = malloc(size);
    (void)user;
#if defined(__linux__)
    const uintptr_t page = (uintptr_t)1 << 21, inside = ~(page - 1), begin = (uintptr_t)memory;
    uintptr_t from = (begin + page - 1) & inside, to = (begin + size) & inside;
    if (memory && from < to) (void)madvise((void *)from, (size_t)(to - from), 14 /* MADV_HUGEPAGE */);
#endif
    return memory;
}

static void mli_free_malloced(void *memory, void *user) { (void)user, free(memory); }
#endif

/* The caller's allocator or the default one; fails when only half of one is given, or there is none. */
static ml_result mli_resolve_allocator(const ml_allocator *given, ml_allocator *allocator, ml_error *error) {
    ml_allocator usual = {NULL, NULL, NULL};
#ifndef ML_NO_MALLOC
    usual.alloc = mli_malloc;
    usual.free = mli_free_malloced;
#endif
    *allocator = given && (given->alloc || given->free) ? *given : usual;
    if (allocator->alloc && allocator->free) return ML_OK;
    if (allocator->alloc || allocator->free)
        return mli_fail(error, ML_ERROR_ARGUMENT, "an allocator needs both alloc and free, or neither");
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "there is no default allocator (ML_NO_MALLOC): give one");
}

/* Zeroed memory for n things of `size` bytes, or NULL (also on overflow, when nothing is requested). */
static void *mli_alloc(const ml_allocator *allocator, size_t n, size_t size) {
    size_t bytes;
    if (!mli_mul_size(n, size, &bytes)) return NULL;
    void *memory = allocator->alloc(bytes ? bytes : 1, allocator->user);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static void mli_free(const ml_allocator *allocator, void *memory) {
    if (memory) allocator->free(memory, allocator->user);
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
    ml_allocator allocator = {mli_arena_alloc, mli_arena_free, arena};
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
    for (int i = 0; i < 4; i++) random->state[i] = mli_splitmix64(&seed);
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

/* The upper 24 bits, as many as an F32 has, as a fraction in [0, 1). */
static float mli_uniform_of(uint64_t bits) { return (float)(bits >> 40) * (1.0f / 16777216.0f); }

ML_DEF float ml_random_uniform(ml_random *random) { return mli_uniform_of(ml_random_u64(random)); }

ML_DEF float ml_random_normal(ml_random *random) {
    /* Box & Muller 1958, "A Note on the Generation of Random Normal Deviates"; the logarithm of 1 - u is finite */
    float radius = sqrtf(-2.0f * logf(1.0f - ml_random_uniform(random)));
    return radius * cosf(6.28318530718f * ml_random_uniform(random));
}

/* ==== >>kernels ====
   The interface of the kernels: what each computes, as a formula with shapes, and its prototype. How they are made
   fast is the subject of the last sections (>>vectors, >>rows, >>products, >>numbers, >>integers). Numbers are F32
   unless a type is given. Sizes, rows and columns are size_t; token ids, positions and numbers of tokens are int or
   int32_t. In brackets: the plain loop that the tests compare a kernel with. */

/* ---- number formats (>>numbers) ---- */

struct mli_integer_job; /* in >>integers */

/* A number format. `dequantize` is NULL unless weights may have it in a file, `quantize` unless they may have it in a
   model, `few` unless they are then multiplied in integers. */
typedef struct mli_type_info {
    const char *name;
    uint32_t gguf;       /* its number in a GGUF file */
    size_t block, bytes; /* numbers per block, bytes per block */
    uint32_t limit;      /* bits of the smallest float that it cannot hold; 0 without `quantize` */
    void (*quantize)(const float *src, void *row, size_t n);
    void (*dequantize)(const void *row, float *dst, size_t n);
    void (*few)(const struct mli_integer_job *job, size_t row, size_t n_rows, size_t col, size_t n_cols);
} mli_type_info;

MLI_OPTIONAL const mli_type_info *mli_type(ml_type type); /* ML_TYPE_NONE's for a number that is no type */
MLI_OPTIONAL ml_type mli_type_from_gguf(uint32_t number); /* ML_TYPE_NONE if there is none */
MLI_OPTIONAL int mli_is_quantized(ml_type type);          /* Q8_0 or Q4_0 */
MLI_OPTIONAL uint32_t mli_float_bits(float value);        /* the bits of an F32, and back */
MLI_OPTIONAL float mli_bits_float(uint32_t bits);
MLI_OPTIONAL int mli_is_readable(ml_type type); /* not if ML_NO_K_QUANTS left it out */
/* dst (n) = the numbers of a row of weights; n is a multiple of the block */
MLI_OPTIONAL void mli_dequantize_row(ml_type type, const void *row, float *dst, size_t n);

/* The index of the first of x (n) whose magnitude, as bits, is `limit` or more; n if there is none. With limit
   MLI_INFINITY_BITS: the first that is not finite. */
#define MLI_INFINITY_BITS 0x7f800000u
MLI_OPTIONAL size_t mli_find_beyond(const float *x, size_t n, uint32_t limit);
/* The index of the first number of a row of weights that is not finite (of a block, its first); n without one. */
MLI_OPTIONAL size_t mli_find_not_finite(ml_type type, const void *row, size_t n);
/* As ml_type_convert with types and n that fit. Returns the index of the first number that is not finite or does not
   fit `to`, n if all do, and its value in *value. */
MLI_OPTIONAL size_t mli_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n, float *value);

/* ---- vectors and rows (>>rows) ---- */

/* a . b [mli_ref_dot_f32]; y (n) += a x (n) [mli_ref_axpy]; y (n) += x (n); x (n) *= a; the largest of x (n), n > 0
   [mli_ref_max] */
MLI_OPTIONAL float mli_dot(const float *a, const float *b, size_t n);
MLI_OPTIONAL void mli_axpy(float *y, float a, const float *x, size_t n);
MLI_OPTIONAL void mli_add(float *y, const float *x, size_t n);
MLI_OPTIONAL void mli_scale(float *x, float a, size_t n);
MLI_OPTIONAL void mli_add_products(float *y, const float *a, const float *b, size_t n); /* y_i += a_i b_i */
MLI_OPTIONAL float mli_max(const float *x, size_t n);

/* x_i <- e^(x_i - max) / sum, n > 0; returns log(sum of e^(x_i)): log p_i = x_i - that [mli_ref_softmax] */
MLI_OPTIONAL float mli_softmax(float *x, size_t n);
MLI_OPTIONAL void mli_log_softmax(float *x, size_t n); /* x_i <- log softmax(x)_i */
/* the gradient of x for p = softmax(s x): dp <- s p (dp - sum(p dp)) */
MLI_OPTIONAL void mli_softmax_gradient(float *dp, const float *p, float s, size_t n);

/* y (n) = silu(gate (n)) * up (n), silu(z) = z / (1 + e^-z); y may be gate or up [mli_ref_swiglu] */
MLI_OPTIONAL void mli_swiglu(float *y, const float *gate, const float *up, size_t n);
/* dup = dy silu(gate); dgate = dy up s (1 + gate (1 - s)), s = 1 / (1 + e^-gate); may be written over gate and up */
MLI_OPTIONAL void mli_swiglu_gradient(float *d_gate, float *d_up, const float *dy, const float *gate,
                                      const float *up, size_t n);

/* A norm is y = (x - mean) scale w + b. LayerNorm: the row's mean, scale = 1 / sqrt(variance + eps). RMSNorm: mean 0,
   scale = 1 / sqrt(mean(x^2) + eps), and b NULL. */
typedef struct mli_moments {
    float mean, scale;
} mli_moments;
MLI_OPTIONAL mli_moments mli_norm_moments(const float *x, size_t n, float eps, int is_layer_norm);
MLI_OPTIONAL void mli_norm_row(float *y, const float *x, const float *w, const float *b, size_t n,
                               mli_moments of);
/* with z = (x - mean) scale and u = dy w: dx (n) += scale (u - mean(u) - z mean(u z)); RMSNorm has no mean(u) */
MLI_OPTIONAL void mli_norm_row_gradient(float *dx, const float *dy, const float *x, const float *w, size_t n,
                                        mli_moments of, int is_layer_norm);
/* dw (n) += dy z */
MLI_OPTIONAL void mli_norm_weight_gradient(float *dw, const float *dy, const float *x, size_t n,
                                           mli_moments of);

/* rotates each pair (x[2j], x[2j+1]) of each head of x (width) by the angles whose cosines and sines alternate in
   cos_sin (hd); direction -1 rotates back */
MLI_OPTIONAL void mli_rope_row(float *x, const float *cos_sin, size_t width, size_t hd, float direction);
/* out (hd) = p (n) . rows (n, hd), one row every `stride` numbers */
MLI_OPTIONAL void mli_weighted_sum(float *out, const float *p, const float *rows, size_t stride, size_t n,
                                   size_t hd);

/* one step of AdamW (see ml_adamw) for n numbers: g is first multiplied by `clip`, and 0 afterwards */
typedef struct mli_adamw_step {
    float clip, beta1, beta2, eps;
    float rate, root, keep; /* w <- w keep and w <- w - rate m / (root sqrt(v) + eps), ... */
    int decay_first;        /* ... in this order if set, otherwise in the reverse order */
} mli_adamw_step;
MLI_OPTIONAL void mli_adamw(const mli_adamw_step *step, float *w, float *m, float *v, float *g, size_t n);

/* ---- products (>>products, >>integers) ---- */

/* A matrix that is multiplied: strides in numbers, one of them 1; in quantized types the other is a multiple of the
   block. */
typedef struct mli_operand {
    ml_type type;
    const void *data;
    size_t row_stride, col_stride;
} mli_operand;

static mli_operand mli_matrix(const float *data, size_t row_stride, size_t col_stride) {
    mli_operand operand = {ML_F32, data, row_stride, col_stride};
    return operand;
}

/* C (m, n) = A (m, k) . B (k, n), or C += ... if accumulate is set; otherwise C need not be initialized. A is F32,
   F16 or BF16, B any type of weights. work: mli_gemm_work bytes for matrices up to these sizes. The result is the
   same bits for every number of threads, and an element's does not depend on its position in C [mli_ref_gemm]. */
MLI_OPTIONAL void mli_gemm(const ml_threads *threads, size_t m, size_t n, size_t k, mli_operand a,
                           mli_operand b, float *c, size_t c_row_stride, int accumulate, void *work);
MLI_OPTIONAL size_t mli_gemm_work(const ml_threads *threads, size_t m, size_t n, size_t k);

/* y (n) = rows (n, k) . x (k) [mli_ref_dot_f32 for each] */
MLI_OPTIONAL void mli_dots(float *y, const float *x, const float *rows, size_t row_stride, size_t n,
                           size_t k);

/* y_j (n, out_j) = x (n, in) . w_j (out_j, in)^T for weights of any type that share their input [mli_ref_gemm; for
   quantized weights plain_rows in the tests]. Quantized weights are multiplied in integers, for which x is rounded to
   8 bits. work: mli_linear_work bytes, for up to n rows of x and weights up to (max_out, max_in). */
typedef struct mli_linear_job {
    const ml_tensor *w; /* (out, in) */
    float *y;           /* (n, out), contiguous rows */
} mli_linear_job;
MLI_OPTIONAL void mli_linear(const ml_threads *threads, const float *x, size_t n, size_t in,
                             const mli_linear_job *jobs, int n_jobs, void *work);
MLI_OPTIONAL size_t mli_linear_work(const ml_threads *threads, size_t n, size_t max_in, size_t max_out);

/* ==== >>graph ====
   Tensors and autograd. An activation is an F32 matrix with one row per token of the pass. An operation is a function
   such as h = mli_norm(g, x, weight, bias, eps): it takes memory for its output from the graph, computes it, and
   returns it. If the graph is taping, the operation also records what its backward pass needs. A graph without memory
   only measures: the same network code then tells how much memory a pass takes.

   Shapes: n tokens in this pass, D dim, H hidden_dim, A n_heads, hd = D / A head size, kv_dim = n_kv_heads hd, V
   vocab_size, S keys that a query may see, r rank of an adapter. */

typedef struct ml_graph_private {
    const ml_threads *threads;
    unsigned char *memory; /* activations and records, as a stack; NULL: measure only */
    size_t size, used, peak;
    void *work; /* scratch inside one operation, aligned to MLI_ALIGN */
    size_t work_size;
    size_t recompute;  /* measured: what the backward pass takes on top of `used` after the forward pass */
    int taping;        /* operations record themselves for mli_run_backward */
    int checkpointing; /* layers keep only their input and are computed again in the backward pass */
    int separate;      /* no value shares memory with its gradient */
    struct mli_taped *newest;    /* record on the tape */
    struct mli_open_graph *open; /* what a graph of the caller's has in addition (>>operations), or NULL */
} mli_graph;

static int mli_measuring(const mli_graph *g) { return !g->memory; }

/* More is needed than was measured. The library's own passes are never larger; one of the caller's may be. */
#ifdef ML_NO_TRAINING
static void mli_overflow(mli_graph *g) {
    ML_ASSERT(g->open);
    g->memory = NULL;
}
#else
static void mli_overflow(mli_graph *g); /* in >>operations */
#endif

static void *mli_graph_alloc(mli_graph *g, size_t n, size_t size) {
    void *memory = mli_carve(g->memory, &g->used, n, size);
    g->peak = MLI_MAX(g->peak, g->used);
    if (mli_measuring(g) || g->used <= g->size) return memory;
    mli_overflow(g);
    return NULL;
}

/* Frees everything allocated since g->used was `mark`. */
static void mli_release(mli_graph *g, size_t mark) { g->used = mark; }

/* Each operation says how much scratch it needs; measured is the largest need. In a caller's graph scratch grows from
   the end of the memory towards the activations, so that what an earlier operation used stays inside it. */
static void mli_need_work(mli_graph *g, size_t bytes) {
    if (bytes <= g->work_size) return;
    if (!mli_measuring(g)) {
        size_t room = g->size + g->work_size;
        bytes = (size_t)mli_align_up(bytes);
        if (bytes <= room && g->used <= room - bytes) {
            g->size = room - bytes;
            g->work = g->memory + g->size;
        } else {
            mli_overflow(g);
        }
    }
    g->work_size = bytes;
}

static ml_tensor mli_tensor_at(float *data, size_t rows, size_t cols) {
    ml_tensor t = {ML_F32, rows, cols, data, NULL};
    return t;
}
MLI_OPTIONAL size_t mli_numbers(const ml_tensor *t) { return t->rows * t->cols; }
static float *mli_row(ml_tensor t, size_t row) { return (float *)t.data + row * t.cols; }
static float *mli_grad_row(ml_tensor t, size_t row) { return t.grad + row * t.cols; }

/* ---- the tape: reverse-mode differentiation ----
   (Linnainmaa 1976, "Taylor Expansion of the Accumulated Rounding Error".) While g->taping is set, each operation
   puts a record on the tape: its backward function and a copy of its struct. mli_run_backward calls them, newest
   first. A backward function turns the gradient of the output into the gradients of the inputs: it writes those of
   activations, and adds to those of weights and of the residual stream.

   Value and gradient of an activation share memory. This is safe because only one operation reads the value: its
   backward function uses the value for the last time, and then overwrites it with the gradient. The residual stream
   is the exception. Many operations read it, and its values differ from layer to layer; but the gradient of x is that
   of x + f(x) plus what the backward pass of f adds, so that one separate buffer serves all layers. One layer:

     memory             forward: value, computed downwards      backward: gradient, computed upwards
     dx        (n, D)   -                                       of x, y and z, once for all layers
     x         (n, D)   the layer's input                       -
     h         (n, D)   norm(x)                                 dh = dq Wq + dk Wk + dv Wv; norm adds to dx
     q k v              h Wq^T, h Wk^T, h Wv^T; q, k rotated    dq, dk, dv of attention; dq, dk rotated back
     a         (n, D)   attention(q, k, v)                      da = dx Wo
     y         (n, D)   x + a Wo^T                              -
     h         (n, D)   norm(y)                                 dh = dgate W1 + dup W3; norm adds to dx
     gate, up  (n, H)   h W1^T, h W3^T                          dgate, dup of SwiGLU
     s         (n, H)   silu(gate) * up                         ds = dx W2
     z         (n, D)   y + s W2^T, the next layer's input      -                                              */

typedef void (*mli_backward)(mli_graph *g, const void *op);

typedef struct mli_taped {
    struct mli_taped *previous;
    mli_backward backward;
} mli_taped; /* the operation's struct follows */

#ifdef ML_NO_TRAINING /* nothing is ever recorded, and the compiler drops the backward functions */
static int mli_taping(const mli_graph *g) { return (void)g, 0; }
#else
static int mli_taping(const mli_graph *g) { return g->taping; }
#endif

/* Puts a copy of the operation's struct on the tape. */
static void mli_record(mli_graph *g, mli_backward backward, const void *op, size_t size) {
    if (!mli_taping(g)) return;
    mli_taped *entry = (mli_taped *)mli_graph_alloc(g, 1, sizeof *entry + size);
    if (mli_measuring(g)) return;
    entry->previous = g->newest;
    entry->backward = backward;
    memcpy(entry + 1, op, size);
    g->newest = entry;
}

/* Runs everything recorded after `until`. */
MLI_OPTIONAL void mli_run_backward(mli_graph *g, mli_taped *until) {
    while (g->newest != until) {
        mli_taped *entry = g->newest;
        g->newest = entry->previous;
        entry->backward(g, entry + 1);
    }
}

/* An address that nobody reads, of a value (0), a gradient (1) or the whole loss of a caller's graph (2): with it,
   tensors of a graph that measures can be told from those that are left out, and those that share memory from
   others. */
static float *mli_unreal(int where) {
    static const float unreal[3] = {0, 0, 0};
    return (float *)(uintptr_t)&unreal[where];
}

/* Memory for the numbers of an activation; while measuring, mli_unreal(where). */
static float *mli_new_numbers(mli_graph *g, size_t rows, size_t cols, int where) {
    float *numbers = (float *)mli_graph_alloc(g, rows * sizeof(float), cols);
    return mli_measuring(g) ? mli_unreal(where) : numbers;
}

/* A new activation (rows, cols) on the graph's stack, whose gradient is in memory of its own, and 0: its readers add
   to it. The residual stream is one, and so is all that a caller may hold and read as often as he likes. */
static ml_tensor mli_new_apart(mli_graph *g, size_t rows, size_t cols) {
    float *grad = mli_taping(g) ? mli_new_numbers(g, rows, cols, 1) : NULL;
    ml_tensor t = mli_tensor_at(mli_new_numbers(g, rows, cols, 0), rows, cols);
    t.grad = grad;
    if (grad && !mli_measuring(g)) memset(grad, 0, mli_numbers(&t) * sizeof *grad);
    return t;
}

/* A new activation that is read once, by an operation that can write the gradient over the value. */
static ml_tensor mli_new(mli_graph *g, size_t rows, size_t cols) {
    if (g->separate) return mli_new_apart(g, rows, cols);
    ml_tensor t = mli_tensor_at(mli_new_numbers(g, rows, cols, 0), rows, cols);
    if (mli_taping(g)) t.grad = (float *)t.data;
    return t;
}

/* Whether the gradient is to be written over the value, and not added to what is there. */
static int mli_is_shared(ml_tensor t) { return t.grad == (const float *)t.data; }

/* ---- rows ---- */

/* The rows of a batch: row r is tokens start[r] .. start[r+1]-1, at positions past, past + 1, ... If past > 0 there
   is one row, and its earlier keys and values are directly before the first row of k and v, in the KV cache. */
typedef struct mli_rows {
    const int32_t *start; /* (n_rows + 1) */
    int n_rows, past;
    int32_t single[2]; /* what start points to when mli_one_row made it */
} mli_rows;

static size_t mli_row_start(const mli_rows *rows, int r) { return (size_t)rows->start[r]; }
static size_t mli_longest_row(const mli_rows *rows) {
    size_t longest = 0;
    for (int r = 0; r < rows->n_rows; r++)
        longest = MLI_MAX(longest, mli_row_start(rows, r + 1) - mli_row_start(rows, r));
    return longest;
}
static void mli_one_row(mli_rows *rows, int n_tokens, int past) {
    mli_rows one = {rows->single, 1, past, {0, n_tokens}};
    *rows = one;
}

/* Work that splits into independent rows: f computes rows [begin, end) of what `op` describes. */
typedef void (*mli_rows_function)(const void *op, size_t begin, size_t end);

typedef struct mli_rows_job {
    mli_rows_function f;
    const void *op;
    size_t n;
    int n_tasks;
} mli_rows_job;

static void mli_rows_task(void *arg, int index) {
    const mli_rows_job *job = (const mli_rows_job *)arg;
    size_t begin, end;
    mli_share(job->n, 1, job->n_tasks, index, &begin, &end);
    job->f(job->op, begin, end);
}

/* Computes n rows, `numbers` numbers in total, split over the threads. */
static void mli_split_rows(const ml_threads *threads, mli_rows_function f, const void *op, size_t n,
                           size_t numbers) {
    mli_rows_job job = {f, op, n, mli_task_count(threads, numbers, 1 << 14)};
    mli_parallel(threads, job.n_tasks, mli_rows_task, &job);
}

/* The same for n rows of `cost` numbers each. */
static void mli_for_rows(mli_graph *g, mli_rows_function f, const void *op, size_t n, size_t cost) {
    if (!mli_measuring(g)) mli_split_rows(g->threads, f, op, n, n * cost);
}

/* ==== >>layers ====
   The operations of the network. Each has its formula, a struct that is both its plan and its record on the tape, the
   work on a share of the rows, its backward function, and last the operation itself. In brackets its plain form, in
   scalar loops, in examples/lessons/plain_llama.h, with its backward there; tests/test_plain.c compares the two. */

/* ---- embedding (Bengio et al. 2003, "A Neural Probabilistic Language Model"): y_i = table[index_i] ----
   [plain_embed] */

typedef struct mli_embed_op {
    ml_tensor table;      /* (rows, D), of any weight type */
    const int32_t *index; /* (n) */
    ml_tensor y;          /* (n, D) */
} mli_embed_op;

static void mli_embed_rows(const void *record, size_t begin, size_t end) {
    const mli_embed_op *op = (const mli_embed_op *)record;
    const char *table = (const char *)op->table.data;
    size_t cols = op->table.cols, row_bytes = ml_type_row_bytes(op->table.type, cols);
    for (size_t i = begin; i < end; i++)
        mli_dequantize_row(op->table.type, table + (size_t)op->index[i] * row_bytes, mli_row(op->y, i), cols);
}

/* dtable[index_i] += dy_i: columns [begin, end) of all rows, because an index may occur twice */
static void mli_embed_gradient_columns(const void *record, size_t begin, size_t end) {
    const mli_embed_op *op = (const mli_embed_op *)record;
    for (size_t i = 0; i < op->y.rows; i++)
        mli_add(mli_grad_row(op->table, (size_t)op->index[i]) + begin, mli_grad_row(op->y, i) + begin,
                end - begin);
}

static void mli_embed_backward(mli_graph *g, const void *record) {
    const mli_embed_op *op = (const mli_embed_op *)record;
    if (op->table.grad) mli_for_rows(g, mli_embed_gradient_columns, op, op->y.cols, op->y.rows);
}

/* y (n, D), made by the caller = rows `index` (n) of table (rows, D) */
static ml_tensor mli_embed(mli_graph *g, ml_tensor table, const int32_t *index, ml_tensor y) {
    mli_embed_op op = {table, index, y};
    mli_for_rows(g, mli_embed_rows, &op, y.rows, y.cols);
    mli_record(g, mli_embed_backward, &op, sizeof op);
    return y;
}

/* ---- norms: y = (x - mean) scale w + b ----
   RMSNorm (Zhang & Sennrich 2019, "Root Mean Square Layer Normalization") and LayerNorm (Ba, Kiros & Hinton 2016,
   "Layer Normalization"); mean and scale of each are in >>kernels (mli_moments). [plain_rms_norm] */

typedef struct mli_norm_op {
    ml_tensor x, w, b, y; /* (n, D), (1, D), (1, D) or for RMSNorm no data, (n, D) */
    float eps;
} mli_norm_op;

static mli_moments mli_norm_moments_of(const mli_norm_op *op, size_t row) {
    return mli_norm_moments(mli_row(op->x, row), op->x.cols, op->eps, op->b.data != NULL);
}

static void mli_norm_rows(const void *record, size_t begin, size_t end) {
    const mli_norm_op *op = (const mli_norm_op *)record;
    const float *w = (const float *)op->w.data, *b = (const float *)op->b.data;
    for (size_t i = begin; i < end; i++)
        mli_norm_row(mli_row(op->y, i), mli_row(op->x, i), w, b, op->x.cols, mli_norm_moments_of(op, i));
}

/* dx += the gradient of each row: see mli_norm_row_gradient */
static void mli_norm_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_norm_op *op = (const mli_norm_op *)record;
    const float *w = (const float *)op->w.data, *b = (const float *)op->b.data;
    for (size_t i = begin; i < end; i++)
        mli_norm_row_gradient(mli_grad_row(op->x, i), mli_grad_row(op->y, i), mli_row(op->x, i), w,
                              op->x.cols, mli_norm_moments_of(op, i), b != NULL);
}

/* dw += dy z, db += dy: columns [begin, end) of all rows */
static void mli_norm_gradient_columns(const void *record, size_t begin, size_t end) {
    const mli_norm_op *op = (const mli_norm_op *)record;
    for (size_t i = 0; i < op->x.rows; i++) {
        const float *x = mli_row(op->x, i) + begin, *dy = mli_grad_row(op->y, i) + begin;
        if (op->w.grad)
            mli_norm_weight_gradient(op->w.grad + begin, dy, x, end - begin, mli_norm_moments_of(op, i));
        if (op->b.grad) mli_add(op->b.grad + begin, dy, end - begin);
    }
}

static void mli_norm_backward(mli_graph *g, const void *record) {
    const mli_norm_op *op = (const mli_norm_op *)record;
    if (op->w.grad || op->b.grad) mli_for_rows(g, mli_norm_gradient_columns, op, op->x.cols, op->x.rows);
    if (op->x.grad) mli_for_rows(g, mli_norm_gradient_rows, op, op->x.rows, op->x.cols);
}

/* x (n, D), weight (1, D), bias (1, D) or for RMSNorm without data -> (n, D). Adds to the gradient of x. */
static ml_tensor mli_norm(mli_graph *g, ml_tensor x, ml_tensor weight, ml_tensor bias, float eps) {
    mli_norm_op op = {x, weight, bias, mli_new(g, x.rows, x.cols), eps};
    mli_for_rows(g, mli_norm_rows, &op, x.rows, x.cols);
    mli_record(g, mli_norm_backward, &op, sizeof op);
    return op.y;
}

/* ---- linear: y_j = x W_j^T for weights that share their input ----
   A weight may have an adapter (LoRA, Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"):
   y_j += s (x A_j^T) B_j^T. [plain_linear] */

#define MLI_MAX_JOBS 3 /* query, key and value */

/* A matrix as a layer uses it. */
typedef struct mli_matrix_use {
    ml_tensor w;    /* (out, in) */
    ml_tensor a, b; /* (r, in), (out, r); without data: there is no adapter */
    float scale;    /* s */
    ml_tensor y;    /* (n, out), made by the caller */
    ml_tensor low;  /* (n, r): s x A^T */
} mli_matrix_use;

typedef struct mli_linears_op {
    ml_tensor x; /* (n, in) */
    mli_matrix_use use[MLI_MAX_JOBS];
    int n_weights;
} mli_linears_op;

static void mli_need_gemm(mli_graph *g, size_t m, size_t n, size_t k) {
    if (m && n && k) mli_need_work(g, mli_gemm_work(g->threads, m, n, k));
}

/* The scratch of all products of x (n, in) with a weight (out, in) and an adapter of rank r (0: none). */
static void mli_need_linear(mli_graph *g, size_t n, size_t in, size_t out, size_t r) {
    mli_need_work(g, mli_linear_work(g->threads, n, in, out)); /* y = x W^T */
    mli_need_gemm(g, n, r, in);                                /* u = x A^T */
    mli_need_gemm(g, n, out, r);                               /* y += u B^T */
    if (!mli_taping(g)) return;
    mli_need_gemm(g, out, in, n); /* dW += dy^T x */
    mli_need_gemm(g, n, in, out); /* dx = dy W */
    mli_need_gemm(g, out, r, n);  /* dB += dy^T u */
    mli_need_gemm(g, n, r, out);  /* du = dy B */
    mli_need_gemm(g, r, in, n);   /* dA += du^T x */
    mli_need_gemm(g, n, in, r);   /* dx += du A */
}

/* low = s x A^T;  y += low B^T */
static void mli_adapt(mli_graph *g, ml_tensor x, const mli_matrix_use *use) {
    size_t n = x.rows, in = x.cols, out = use->y.cols, r = use->low.cols;
    float *u = (float *)use->low.data, *y = (float *)use->y.data;
    mli_operand a = mli_matrix((const float *)use->a.data, 1, in);
    mli_operand b = mli_matrix((const float *)use->b.data, 1, r);
    mli_gemm(g->threads, n, r, in, mli_matrix(mli_row(x, 0), in, 1), a, u, r, 0, g->work);
    mli_scale(u, use->scale, n * r);
    mli_gemm(g->threads, n, out, r, mli_matrix(u, r, 1), b, y, out, 1, g->work);
}

/* dW (out, in) += dy (n, out)^T x (n, in) */
MLI_OPTIONAL void mli_weight_gradient(mli_graph *g, float *dw, const float *dy, const float *x, size_t n,
                                      size_t out, size_t in) {
    mli_gemm(g->threads, out, in, n, mli_matrix(dy, 1, out), mli_matrix(x, in, 1), dw, in, 1, g->work);
}

/* dx (n, in) = dy (n, out) W (out, in), or += if accumulate is set */
MLI_OPTIONAL void mli_input_gradient(mli_graph *g, float *dx, const float *dy, ml_tensor w, size_t n,
                                     int accumulate) {
    mli_operand weight = {w.type, w.data, w.cols, 1};
    mli_gemm(g->threads, n, w.cols, w.rows, mli_matrix(dy, w.rows, 1), weight, dx, w.cols, accumulate,
             g->work);
}

/* with u = s x A^T in low:  dB += dy^T u;  du = s dy B, written over u;  dA += du^T x */
static void mli_adapter_backward(mli_graph *g, ml_tensor x, const mli_matrix_use *use) {
    size_t n = x.rows, out = use->b.rows, r = use->low.cols;
    float *u = (float *)use->low.data, *dy = use->y.grad;
    if (use->b.grad) mli_weight_gradient(g, use->b.grad, dy, u, n, out, r);
    mli_input_gradient(g, u, dy, use->b, n, 0);
    mli_scale(u, use->scale, n * r);
    if (use->a.grad) mli_weight_gradient(g, use->a.grad, u, mli_row(x, 0), n, r, x.cols);
}

/* dW_j += dy_j^T x while x is still there; then dx = sum of dy_j W_j + du_j A_j, written over x */
static void mli_linears_backward(mli_graph *g, const void *record) {
    const mli_linears_op *op = (const mli_linears_op *)record;
    ml_tensor x = op->x;
    for (int j = 0; j < op->n_weights; j++) {
        const mli_matrix_use *use = &op->use[j];
        float *dw = use->w.grad;
        if (dw) mli_weight_gradient(g, dw, use->y.grad, mli_row(x, 0), x.rows, use->w.rows, x.cols);
        if (use->a.data) mli_adapter_backward(g, x, use);
    }
    for (int j = 0; j < op->n_weights && x.grad; j++) {
        const mli_matrix_use *use = &op->use[j];
        mli_input_gradient(g, x.grad, use->y.grad, use->w, x.rows, j > 0 || !mli_is_shared(x));
        if (use->a.data) mli_input_gradient(g, x.grad, mli_row(use->low, 0), use->a, x.rows, 1);
    }
}

/* x (n, in), w_j (out_j, in) -> y_j (n, out_j) */
static void mli_linears(mli_graph *g, ml_tensor x, const mli_matrix_use *uses, int n_weights) {
    mli_linears_op op;
    mli_linear_job jobs[MLI_MAX_JOBS] = {{NULL, NULL}};
    size_t mark = g->used;
    memset(&op, 0, sizeof op);
    op.x = x;
    op.n_weights = n_weights;
    for (int j = 0; j < n_weights; j++) {
        mli_matrix_use *use = &op.use[j];
        *use = uses[j];
        if (use->a.data) use->low = mli_new(g, x.rows, use->a.rows);
        mli_need_linear(g, x.rows, x.cols, use->w.rows, use->low.cols);
        mli_linear_job job = {&use->w, (float *)use->y.data};
        jobs[j] = job;
    }
    if (!mli_measuring(g)) {
        mli_linear(g->threads, mli_row(x, 0), x.rows, x.cols, jobs, n_weights, g->work);
        for (int j = 0; j < n_weights; j++)
            if (op.use[j].a.data) mli_adapt(g, x, &op.use[j]);
    }
    if (!mli_taping(g)) mli_release(g, mark);
    mli_record(g, mli_linears_backward, &op, sizeof op);
}

/* ---- the residual connection (He et al. 2016, "Deep Residual Learning for Image Recognition"): x + h W^T ----
   [plain_linear, plain_add] */

typedef struct mli_sum {
    ml_tensor y, x; /* (n, D): y += x */
} mli_sum;

static void mli_sum_rows(const void *job, size_t begin, size_t end) {
    const mli_sum *sum = (const mli_sum *)job;
    mli_add(mli_row(sum->y, begin), mli_row(sum->x, begin), (end - begin) * sum->y.cols);
}

/* x (n, D), h (n, in) -> x + h W^T (n, D), what half a layer adds to the residual stream. Both terms have the
   gradient of the sum, and share it, so that the addition needs no record. */
static ml_tensor mli_add_linear(mli_graph *g, ml_tensor x, ml_tensor h, mli_matrix_use use) {
    size_t mark = g->used;
    use.y = mli_new(g, x.rows, use.w.rows);
    use.y.grad = x.grad;
    mli_linears(g, h, &use, 1);
    mli_sum sum = {x, use.y};                    /* x += y, ... */
    if (mli_taping(g)) sum.y = use.y, sum.x = x; /* ... or y += x, because the layer's norm needs x again */
    mli_for_rows(g, mli_sum_rows, &sum, x.rows, x.cols);
    if (!mli_taping(g)) mli_release(g, mark);
    return sum.y;
}

/* the gradient of y += x and of y = x: dx += dy */
MLI_OPTIONAL void mli_sum_backward(mli_graph *g, const void *record) {
    mli_sum sum = *(const mli_sum *)record;
    sum.x.data = sum.y.grad, sum.y.data = sum.x.grad;
    mli_for_rows(g, mli_sum_rows, &sum, sum.y.rows, sum.y.cols);
}

/* y (n, D), made by the caller = x, whose gradient is apart */
static ml_tensor mli_copy(mli_graph *g, ml_tensor x, ml_tensor y) {
    mli_sum sum = {y, x};
    if (!mli_measuring(g)) memcpy(y.data, x.data, mli_numbers(&x) * sizeof(float));
    if (x.grad) mli_record(g, mli_sum_backward, &sum, sizeof sum);
    return y;
}

/* stream (n, D), y (n, D) -> stream + y, as mli_add_linear does it, for a y that has a gradient of its own */
static ml_tensor mli_add_to_stream(mli_graph *g, ml_tensor stream, ml_tensor y) {
    ml_tensor z = stream;
    if (mli_taping(g)) z.data = mli_new_numbers(g, y.rows, y.cols, 0);
    if (mli_taping(g) && !mli_measuring(g)) memcpy(z.data, stream.data, mli_numbers(&y) * sizeof(float));
    mli_sum sum = {z, y};
    mli_for_rows(g, mli_sum_rows, &sum, y.rows, y.cols);
    if (y.grad) mli_record(g, mli_sum_backward, &sum, sizeof sum);
    return z;
}

/* ---- SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): y = silu(gate) * up; silu: see >>kernels ----
   [plain_swiglu] */

typedef struct mli_gated_op {
    ml_tensor gate, up, y; /* (n, H) */
} mli_gated_op;

static void mli_gated_rows(const void *record, size_t begin, size_t end) {
    const mli_gated_op *op = (const mli_gated_op *)record;
    mli_swiglu(mli_row(op->y, begin), mli_row(op->gate, begin), mli_row(op->up, begin),
               (end - begin) * op->y.cols);
}

/* dx = d (n), or dx += d if its gradient is apart, from number `at` on */
static void mli_give(ml_tensor x, size_t at, const float *d, size_t n) {
    if (mli_is_shared(x))
        memcpy(x.grad + at, d, n * sizeof *d);
    else
        mli_add(x.grad + at, d, n);
}

/* with s = 1 / (1 + e^-gate):  dup = dy silu(gate);  dgate = dy up s (1 + gate (1 - s)) */
static void mli_gated_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_gated_op *op = (const mli_gated_op *)record;
    size_t at = begin * op->y.cols, n = end * op->y.cols - at, part;
    const float *dy = op->y.grad + at, *gate = mli_row(op->gate, begin), *up = mli_row(op->up, begin);
    float d_gate[256], d_up[256];
    if (mli_is_shared(op->gate) && mli_is_shared(op->up)) {
        mli_swiglu_gradient(op->gate.grad + at, op->up.grad + at, dy, gate, up, n);
        return;
    }
    for (; n; at += part, dy += part, gate += part, up += part, n -= part) {
        part = MLI_MIN(n, MLI_COUNT(d_gate));
        mli_swiglu_gradient(d_gate, d_up, dy, gate, up, part);
        if (op->gate.grad) mli_give(op->gate, at, d_gate, part);
        if (op->up.grad) mli_give(op->up, at, d_up, part);
    }
}

static void mli_gated_backward(mli_graph *g, const void *record) {
    const mli_gated_op *op = (const mli_gated_op *)record;
    mli_for_rows(g, mli_gated_gradient_rows, op, op->y.rows, op->y.cols);
}

/* gate (n, H), up (n, H) -> (n, H), written over gate unless that is needed again */
static ml_tensor mli_gated(mli_graph *g, ml_tensor gate, ml_tensor up) {
    int is_needed = mli_taping(g) || g->separate;
    mli_gated_op op = {gate, up, is_needed ? mli_new(g, gate.rows, gate.cols) : gate};
    mli_for_rows(g, mli_gated_rows, &op, gate.rows, gate.cols);
    mli_record(g, mli_gated_backward, &op, sizeof op);
    return op.y;
}

/* ---- rotary positions (Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding") ----
   Each pair of numbers (x[2j], x[2j+1]) of a head is rotated by the angle position / theta^(2j / hd). The position
   may be divided by rope_scale (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
   Interpolation"). [plain_rotate] */

/* 1 / theta^(2j / hd): the angle between neighbors of pair j */
static float mli_rope_frequency(float theta, int j, int hd) {
    return 1.0f / powf(theta, (float)(2 * j) / (float)hd);
}

/* Columns 2j and 2j + 1 of the table: cosine and sine of position / scale * frequency. */
static void mli_rope_pair(float *table, int n_positions, int hd, int j, float scale, float frequency) {
    float *pair = table + 2 * j;
    for (int p = 0; p < n_positions; p++, pair += hd) {
        float angle = (float)p / scale * frequency;
        pair[0] = cosf(angle);
        pair[1] = sinf(angle);
    }
}

/* table (n_positions, hd): cosine and sine of each pair's angle, alternating */
static void mli_rope_table(float *table, int n_positions, const ml_config *c) {
    int hd = c->dim / c->n_heads;
    for (int j = 0; j < hd / 2; j++)
        mli_rope_pair(table, n_positions, hd, j, c->rope_scale, mli_rope_frequency(c->rope_theta, j, hd));
}

typedef struct mli_rope_op {
    ml_tensor x;        /* (n, heads * hd), rotated in place */
    const float *table; /* (positions, hd) */
    size_t hd;
    const mli_rows *rows;
    float direction; /* 1, or -1 to rotate back */
} mli_rope_op;

static void mli_rope_rows(const void *record, size_t begin, size_t end) {
    const mli_rope_op *op = (const mli_rope_op *)record;
    int r = 0;
    for (size_t i = begin; i < end; i++) {
        while (mli_row_start(op->rows, r + 1) <= i) r++;
        size_t position = i - mli_row_start(op->rows, r) + (size_t)op->rows->past;
        mli_rope_row(mli_row(op->x, i), op->table + position * op->hd, op->x.cols, op->hd, op->direction);
    }
}

/* dx is dy rotated back, because the transpose of a rotation is its inverse */
static void mli_rope_backward(mli_graph *g, const void *record) {
    mli_rope_op op = *(const mli_rope_op *)record;
    op.x.data = op.x.grad;
    op.direction = -1.0f;
    mli_for_rows(g, mli_rope_rows, &op, op.x.rows, op.x.cols);
}

/* x (n, heads * hd), rotated in place by each token's position in its row */
static void mli_rope(mli_graph *g, ml_tensor x, const float *table, size_t hd, const mli_rows *rows) {
    mli_rope_op op = {x, table, hd, rows, 1.0f};
    mli_for_rows(g, mli_rope_rows, &op, x.rows, x.cols);
    mli_record(g, mli_rope_backward, &op, sizeof op);
}

/* ---- attention: out = softmax(q k^T / sqrt(hd)) v in each head ----
   (Vaswani et al. 2017, "Attention Is All You Need".) Heads are grouped: `group` query heads read one key and value
   head (Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints").
   The work is cut into tiles: up to MLI_QUERY_BLOCK queries of one row in one head, against all keys that they see.
   [plain_attention] */

#define MLI_QUERY_BLOCK 64 /* enough to repay packing the keys; little of a tile is above a causal diagonal */
#define MLI_FEW_QUERIES 5  /* up to here packing the keys saves nothing; the same bits as one by one */

/* The plan, made once for forward and backward. */
typedef struct mli_attention_op {
    ml_tensor q, k, v,
        out; /* (n, A hd), (m, n_kv_heads hd), (m, n_kv_heads hv), (n, A hv); hv = hd in a Llama */
    const mli_rows *rows; /* of q; m = past + n, ... */
    size_t prefix;        /* ... or each row of k and v has so many more in front, ... */
    const int32_t
        *key_start; /* ... or (n_rows + 1): where its keys begin. The last are those of its queries */
    int causal, n_heads, n_kv_heads, group; /* group = n_heads / n_kv_heads */
    size_t hd, hv;
    float scale; /* 1 / sqrt(hd) */

    /* what an ordinary Llama has not: see mli_is_special */
    ml_tensor bias;       /* (n, S) or (A n, S), added to the scores; no data: none */
    size_t window, sinks; /* 0: all */
    float dropout;        /* of the weights */
    uint64_t seed;

    int n_tasks;
    size_t longest, most_queries; /* S of the longest row, and most queries in a tile */
    unsigned char *work;          /* scratch of each task: see mli_attention_scratch_at */
    size_t forward_work, backward_work;
} mli_attention_op;

#ifdef ML_NO_TRAINING /* then there are only ordinary ones, and the compiler drops what the others need */
static int mli_is_special(const mli_attention_op *op) { return (void)op, 0; }
#else
static int mli_is_special(const mli_attention_op *op) {
    return op->bias.data || op->window || op->dropout > 0;
}
#endif

/* The keys of a row: where they begin in k and v, and how many there are. */
static size_t mli_key_begin(const mli_attention_op *op, int row) {
    if (op->key_start) return (size_t)op->key_start[row];
    return mli_row_start(op->rows, row) + (size_t)row * op->prefix;
}
static size_t mli_key_count(const mli_attention_op *op, int row) {
    if (op->key_start) return (size_t)(op->key_start[row + 1] - op->key_start[row]);
    return mli_row_start(op->rows, row + 1) - mli_row_start(op->rows, row) + (size_t)op->rows->past +
           op->prefix;
}

/* Keys first .. first + n - 1 of the row, whose scores begin at a column. */
typedef struct mli_key_part {
    size_t column, first, n;
} mli_key_part;

/* One head's columns in the rows of the tile. */
typedef struct mli_tile {
    const float *q, *k,
        *v;     /* (n_queries, hd), (keys of the row, hd), (keys of the row, hv), as part of q, k and v */
    float *out; /* (n_queries, hv) */
    size_t n_queries, n_keys;
    size_t position; /* of the first query among the row's keys */
    mli_key_part parts[2];
    int n_parts; /* the keys that some query sees: one part, or two where a window leaves out what is between */
    int head;
    size_t first; /* query, in all of q */
} mli_tile;

/* Leaves out the keys that no query of the tile sees: those before the first one's window, except for the sinks, and
   without a causal mask those after the last one's. */
static void mli_tile_window(const mli_attention_op *op, mli_tile *t, size_t n_row_keys) {
    size_t first = t->position - MLI_MIN(t->position, op->window - 1), end = t->n_keys;
    size_t sinks = MLI_MIN(op->sinks, n_row_keys);
    if (!op->causal) end = MLI_MAX(sinks, MLI_MIN(end, t->position + t->n_queries - 1 + op->window));
    mli_key_part before = {0, 0, MLI_MIN(sinks, first)}, after = {before.n, first, end - first};
    t->n_parts = 0;
    if (before.n) t->parts[t->n_parts++] = before;
    t->parts[t->n_parts++] = after;
    t->n_keys = before.n + after.n;
}

/* The tile that begins with query `first`, which is in this row. */
static mli_tile mli_tile_at(const mli_attention_op *op, int row, size_t first, int head) {
    size_t end = mli_row_start(op->rows, row + 1), key = mli_key_begin(op, row),
           n_row_keys = mli_key_count(op, row);
    size_t kv_head = (size_t)(head / op->group), n_queries = MLI_MIN(end - first, MLI_QUERY_BLOCK);
    size_t position = n_row_keys - (end - first);
    size_t n_keys = op->causal ? position + n_queries : n_row_keys;
    mli_tile tile = {mli_row(op->q, first) + (size_t)head * op->hd,
                     mli_row(op->k, key) + kv_head * op->hd,
                     mli_row(op->v, key) + kv_head * op->hv,
                     mli_row(op->out, first) + (size_t)head * op->hv,
                     n_queries,
                     n_keys,
                     position,
                     {{0, 0, n_keys}, {0, 0, 0}},
                     1,
                     head,
                     first};
    if (mli_is_special(op) && op->window) mli_tile_window(op, &tile, n_row_keys);
    return tile;
}

/* How many keys query i of the tile sees: in a causal row the last query sees all, the one before it one fewer. */
static size_t mli_visible(const mli_attention_op *op, const mli_tile *tile, size_t i) {
    return op->causal ? tile->n_keys - (tile->n_queries - 1 - i) : tile->n_keys;
}

/* Scratch of one task. */
typedef struct mli_attention_scratch {
    float *p;       /* (n_queries, n_keys): softmax(q k^T / sqrt(hd)) */
    float *dp;      /* (n_queries, n_keys): backward only, as the rest */
    float *dk, *dv; /* (S, hd), (S, hv): sums over the queries and the heads that share a key head */
    void *gemm;
} mli_attention_scratch;

/* Places a task's scratch in memory; with NULL only counts. Returns the bytes. */
static size_t mli_attention_scratch_at(const mli_attention_op *op, int backward, unsigned char *memory,
                                       mli_attention_scratch *s) {
    size_t used = 0, queries = op->most_queries, keys = op->longest, hd = MLI_MAX(op->hd, op->hv), gemm = 0;
    memset(s, 0, sizeof *s);
    if (backward || queries > MLI_FEW_QUERIES || mli_is_special(op))
        gemm = MLI_MAX(mli_gemm_work(NULL, queries, keys, hd), mli_gemm_work(NULL, queries, hd, keys));
    s->p = (float *)mli_carve(memory, &used, queries * keys, sizeof(float));
    if (backward) {
        gemm = MLI_MAX(gemm, mli_gemm_work(NULL, keys, hd, queries));
        s->dp = (float *)mli_carve(memory, &used, queries * keys, sizeof(float));
        s->dk = (float *)mli_carve(memory, &used, keys * op->hd, sizeof(float));
        s->dv = (float *)mli_carve(memory, &used, keys * op->hv, sizeof(float));
    }
    s->gemm = mli_carve(memory, &used, gemm, 1);
    return used;
}

/* The bias is for all keys of the row, the scores for those in the parts. */
static void mli_add_bias(const mli_tile *t, float *scores, const float *bias) {
    for (int i = 0; i < t->n_parts; i++)
        mli_add(scores + t->parts[i].column, bias + t->parts[i].first, t->parts[i].n);
}
static void mli_add_bias_gradient(const mli_tile *t, float *dbias, const float *dscores) {
    for (int i = 0; i < t->n_parts; i++)
        mli_add(dbias + t->parts[i].first, dscores + t->parts[i].column, t->parts[i].n);
}

/* Where the bias of query i of the tile is, in its tensor and in the gradient. */
static size_t mli_bias_at(const mli_attention_op *op, const mli_tile *t, size_t i) {
    size_t heads_before = op->bias.rows > op->q.rows ? (size_t)t->head : 0;
    return (heads_before * op->q.rows + t->first + i) * op->bias.cols;
}

/* Hides from query i of the tile the keys [begin, end) of the row. */
static void mli_hide(const mli_tile *t, float *scores, size_t begin, size_t end) {
    const mli_key_part *last = &t->parts[t->n_parts - 1]; /* the sinks before it are always seen */
    begin = MLI_MAX(begin, last->first);
    end = MLI_MIN(end, last->first + last->n);
    for (; begin < end; begin++) scores[last->column + begin - last->first] = -INFINITY;
}

/* Scores of query i of the tile become weights, with bias and window. If it sees no key, all of them are 0. */
static void mli_special_softmax(const mli_attention_op *op, const mli_tile *t, size_t i, float *p) {
    size_t position = t->position + i, n = t->n_keys, end = op->causal ? position + 1 : SIZE_MAX;
    mli_scale(p, op->scale, n);
    if (op->bias.data) mli_add_bias(t, p, (const float *)op->bias.data + mli_bias_at(op, t, i));
    if (op->window) {
        mli_hide(t, p, op->sinks, position - MLI_MIN(position, op->window - 1));
        if (!op->causal) end = MLI_MAX(op->sinks, position + op->window);
    }
    mli_hide(t, p, end, SIZE_MAX);
    if (mli_max(p, n) == -INFINITY)
        memset(p, 0, n * sizeof *p);
    else
        mli_softmax(p, n);
}

/* p (n_queries, n_keys) = softmax(q k^T / sqrt(hd)), 0 where a query does not see a key */
static void mli_attention_weights(const mli_attention_op *op, const mli_tile *t,
                                  const mli_attention_scratch *s) {
    size_t n = t->n_queries, n_keys = t->n_keys, dim = op->k.cols;
    mli_operand q = mli_matrix(t->q, op->q.cols, 1);
    for (int i = 0; i < t->n_parts; i++) {
        const mli_key_part *part = &t->parts[i];
        mli_operand k_transposed = mli_matrix(t->k + part->first * dim, 1, dim);
        mli_gemm(NULL, n, part->n, op->hd, q, k_transposed, s->p + part->column, n_keys, 0, s->gemm);
    }
    for (size_t i = 0; i < n; i++) {
        float *p = s->p + i * n_keys;
        if (mli_is_special(op)) {
            mli_special_softmax(op, t, i, p);
            continue;
        }
        size_t visible = mli_visible(op, t, i);
        mli_scale(p, op->scale, visible);
        mli_softmax(p, visible);
        memset(p + visible, 0, (n_keys - visible) * sizeof *p);
    }
}

static void mli_drop(float *x, size_t n, float p, uint64_t seed); /* in >>heads */

/* Drops weights of the tile, or the gradients of the dropped weights: which, depends on head, query and key. */
static void mli_drop_weights(const mli_attention_op *op, const mli_tile *t, float *p) {
    for (size_t i = 0; i < t->n_queries; i++, p += t->n_keys) {
        uint64_t row = (uint64_t)t->head * op->q.rows + t->first + i;
        for (int k = 0; k < t->n_parts; k++) {
            const mli_key_part *part = &t->parts[k];
            uint64_t at = row * op->longest + part->first;
            mli_drop(p + part->column, part->n, op->dropout, op->seed + at * 0x9e3779b97f4a7c15u);
        }
    }
}

/* out = p v of a tile: as two matrix products or, with few queries, query by query */
static void mli_attend(const mli_attention_op *op, const mli_tile *t, const mli_attention_scratch *s) {
    if (t->n_queries > MLI_FEW_QUERIES || mli_is_special(op)) {
        mli_attention_weights(op, t, s);
        if (mli_is_special(op) && op->dropout > 0) mli_drop_weights(op, t, s->p);
        for (int i = 0; i < t->n_parts; i++) {
            const mli_key_part *part = &t->parts[i];
            mli_operand p = mli_matrix(s->p + part->column, t->n_keys, 1);
            mli_operand v = mli_matrix(t->v + part->first * op->v.cols, op->v.cols, 1);
            mli_gemm(NULL, t->n_queries, op->hv, part->n, p, v, t->out, op->out.cols, i > 0, s->gemm);
        }
        return;
    }
    for (size_t i = 0; i < t->n_queries; i++) {
        size_t n = mli_visible(op, t, i);
        mli_dots(s->p, t->q + i * op->q.cols, t->k, op->k.cols, n, op->hd);
        mli_scale(s->p, op->scale, n);
        mli_softmax(s->p, n);
        mli_weighted_sum(t->out + i * op->out.cols, s->p, t->v, op->v.cols, n, op->hv);
    }
}

/* Tiles are assigned round-robin, heads innermost: the later tiles of a causal row cost more, and so each task gets
   its share of them. */
static void mli_attention_task(void *arg, int index) {
    const mli_attention_op *op = (const mli_attention_op *)arg;
    mli_attention_scratch scratch;
    int turn = 0;
    mli_attention_scratch_at(op, 0, op->work + (size_t)index * op->forward_work, &scratch);
    for (int row = 0; row < op->rows->n_rows; row++) {
        size_t end = mli_row_start(op->rows, row + 1);
        for (size_t i = mli_row_start(op->rows, row); i < end; i += MLI_QUERY_BLOCK)
            for (int head = 0; head < op->n_heads; head++) {
                if (turn++ % op->n_tasks != index) continue;
                mli_tile tile = mli_tile_at(op, row, i, head);
                mli_attend(op, &tile, &scratch);
            }
    }
}

/* The backward pass computes P, the softmax, again instead of keeping it (Dao et al. 2022, "FlashAttention: Fast and
   Memory-Efficient Exact Attention with IO-Awareness").  dV += P^T dout;  dP = dout V^T;
   dS = P (dP - sum(P dP)) / sqrt(hd);  dK += dS^T Q;  dQ = dS K, in a Llama written over Q, which is not needed
   again. P, dP and dS are (n_queries, n_keys), Q and dout (n_queries, hd), K and V (n_keys, hd). Dropout multiplies
   P, for dV, and dP by the same factors, each 0 or 1 / (1 - p). */

/* s->p = P, s->dp = dS; dV += P^T dout on the way */
static void mli_score_gradient(const mli_attention_op *op, const mli_tile *t,
                               const mli_attention_scratch *s) {
    size_t n = t->n_queries, n_keys = t->n_keys;
    int drops = mli_is_special(op) && op->dropout > 0, has_bias = mli_is_special(op) && op->bias.grad;
    float *p = s->p;
    mli_operand dout = mli_matrix(op->out.grad + (t->out - (float *)op->out.data), op->out.cols, 1);
    mli_attention_weights(op, t, s);
    if (drops) {
        p = (float *)memcpy(s->dp, s->p, n * n_keys * sizeof *p);
        mli_drop_weights(op, t, p);
    }
    for (int i = 0; i < t->n_parts && op->v.grad; i++) {
        mli_key_part part = t->parts[i];
        mli_operand p_transposed = mli_matrix(p + part.column, 1, n_keys);
        mli_gemm(NULL, part.n, op->hv, n, p_transposed, dout, s->dv + part.first * op->hv, op->hv, 1,
                 s->gemm);
    }
    for (int i = 0; i < t->n_parts; i++) {
        mli_key_part part = t->parts[i];
        mli_operand v_transposed = mli_matrix(t->v + part.first * op->v.cols, 1, op->v.cols);
        mli_gemm(NULL, n, part.n, op->hv, dout, v_transposed, s->dp + part.column, n_keys, 0, s->gemm);
    }
    if (drops) mli_drop_weights(op, t, s->dp);
    for (size_t i = 0; i < n; i++) {
        float *ds = s->dp + i * n_keys;
        mli_softmax_gradient(ds, s->p + i * n_keys, has_bias ? 1.0f : op->scale, n_keys);
        if (!has_bias) continue;
        mli_add_bias_gradient(t, op->bias.grad + mli_bias_at(op, t, i), ds);
        mli_scale(ds, op->scale, n_keys);
    }
}

static void mli_attend_backward(const mli_attention_op *op, const mli_tile *t,
                                const mli_attention_scratch *s) {
    size_t n = t->n_queries, n_keys = t->n_keys, hd = op->hd, dim = op->q.cols, kv_dim = op->k.cols;
    mli_score_gradient(op, t, s);
    for (int i = 0; i < t->n_parts && op->k.grad; i++) {
        mli_key_part part = t->parts[i];
        mli_operand ds_transposed = mli_matrix(s->dp + part.column, 1, n_keys), q = mli_matrix(t->q, dim, 1);
        mli_gemm(NULL, part.n, hd, n, ds_transposed, q, s->dk + part.first * hd, hd, 1, s->gemm);
    }
    for (int i = 0; i < t->n_parts && op->q.grad; i++) {
        mli_key_part part = t->parts[i];
        mli_operand ds = mli_matrix(s->dp + part.column, n_keys, 1);
        mli_operand k = mli_matrix(t->k + part.first * kv_dim, kv_dim, 1);
        float *dq = op->q.grad + (t->q - (const float *)op->q.data);
        mli_gemm(NULL, n, hd, part.n, ds, k, dq, dim, i > 0 || !mli_is_shared(op->q), s->gemm);
    }
}

/* Columns col .. col + cols - 1 of rows [begin, begin + n) of x have the gradient dx (n, cols). */
static void mli_give_gradient(ml_tensor x, size_t begin, size_t n, size_t col, const float *dx, size_t cols) {
    for (size_t end = begin + n; begin < end && x.grad; begin++, dx += cols)
        if (mli_is_shared(x))
            memcpy(mli_grad_row(x, begin) + col, dx, cols * sizeof *dx);
        else
            mli_add(mli_grad_row(x, begin) + col, dx, cols);
}

/* All queries that see the keys of one row and one key head, which have their gradients then. */
static void mli_attend_backward_keys(const mli_attention_op *op, int row, int kv_head,
                                     const mli_attention_scratch *s) {
    size_t end = mli_row_start(op->rows, row + 1), n_keys = mli_key_count(op, row);
    memset(s->dk, 0, n_keys * op->hd * sizeof *s->dk);
    memset(s->dv, 0, n_keys * op->hv * sizeof *s->dv);
    for (size_t i = mli_row_start(op->rows, row); i < end; i += MLI_QUERY_BLOCK)
        for (int head = kv_head * op->group; head < (kv_head + 1) * op->group; head++) {
            mli_tile tile = mli_tile_at(op, row, i, head);
            mli_attend_backward(op, &tile, s);
        }
    size_t key = mli_key_begin(op, row);
    mli_give_gradient(op->k, key, n_keys, (size_t)kv_head * op->hd, s->dk, op->hd);
    mli_give_gradient(op->v, key, n_keys, (size_t)kv_head * op->hv, s->dv, op->hv);
}

/* A task takes a key head of a row, or the whole row if its heads add to one bias. */
static void mli_attention_backward_task(void *arg, int index) {
    const mli_attention_op *op = (const mli_attention_op *)arg;
    mli_attention_scratch scratch;
    int turn = 0, one_bias = op->bias.grad && op->bias.rows == op->q.rows;
    mli_attention_scratch_at(op, 1, op->work + (size_t)index * op->backward_work, &scratch);
    for (int row = 0; row < op->rows->n_rows; row++)
        for (int kv_head = 0; kv_head < op->n_kv_heads; kv_head++) {
            int owner = one_bias ? row : turn++;
            if (owner % op->n_tasks == index) mli_attend_backward_keys(op, row, kv_head, &scratch);
        }
}

static void mli_attention_backward(mli_graph *g, const void *record) {
    const mli_attention_op *op = (const mli_attention_op *)record;
    mli_parallel(g->threads, op->n_tasks, mli_attention_backward_task, (void *)(uintptr_t)record);
}

/* Cuts the work into tasks, and sizes their scratch. */
static void mli_attention_plan(mli_graph *g, mli_attention_op *op) {
    const mli_rows *rows = op->rows;
    mli_attention_scratch scratch;
    size_t work = 0, max_tasks = (size_t)MLI_MAX(1, g->threads->count);
    for (int r = 0; r < rows->n_rows; r++) {
        size_t queries = mli_row_start(rows, r + 1) - mli_row_start(rows, r), keys = mli_key_count(op, r);
        op->longest = MLI_MAX(op->longest, keys);
        op->most_queries = MLI_MAX(op->most_queries, MLI_MIN(queries, MLI_QUERY_BLOCK));
        work += queries * keys * op->q.cols;
    }
    op->n_tasks = mli_task_count(g->threads, work, 1 << 15);
    op->forward_work = mli_attention_scratch_at(op, 0, NULL, &scratch);
    if (mli_taping(g)) op->backward_work = mli_attention_scratch_at(op, 1, NULL, &scratch);
    mli_need_work(g, max_tasks * MLI_MAX(op->forward_work, op->backward_work));
    op->work = (unsigned char *)g->work;
}

/* q (n, D), k (m, kv_dim), v (m, kv_dim) of rows, with a model's heads and mask; the rest may be changed. */
static mli_attention_op mli_plain_attention(ml_tensor q, ml_tensor k, ml_tensor v, const ml_config *config,
                                            const mli_rows *rows) {
    mli_attention_op op;
    memset(&op, 0, sizeof op);
    op.q = q, op.k = k, op.v = v, op.rows = rows;
    op.causal = config->mask != ML_MASK_FULL;
    op.n_heads = config->n_heads, op.n_kv_heads = config->n_kv_heads, op.group = op.n_heads / op.n_kv_heads;
    op.hd = q.cols / (size_t)op.n_heads, op.hv = v.cols / (size_t)op.n_kv_heads;
    op.scale = 1.0f / sqrtf((float)op.hd);
    return op;
}

/* out (n, A hv), made by the caller */
static ml_tensor mli_run_attention(mli_graph *g, mli_attention_op *op, ml_tensor out) {
    size_t past = (size_t)op->rows->past;
    op->out = out;
    op->sinks += op->prefix; /* no window hides what was put in front of the row */
    mli_attention_plan(g, op);
    if (!mli_measuring(g)) {
        op->k.data = mli_row(op->k, 0) - past * op->k.cols; /* from the first key of the cache */
        op->v.data = mli_row(op->v, 0) - past * op->v.cols;
        mli_parallel(g->threads, op->n_tasks, mli_attention_task, op);
    }
    mli_record(g, mli_attention_backward, op, sizeof *op);
    return out;
}

MLI_OPTIONAL ml_tensor mli_attention(mli_graph *g, ml_tensor q, ml_tensor k, ml_tensor v,
                                     const ml_config *config, const mli_rows *rows) {
    mli_attention_op op = mli_plain_attention(q, k, v, config, rows);
    return mli_run_attention(g, &op, mli_new(g, q.rows, q.cols));
}

/* ---- looking at the weights: see ml_look ---- */

typedef struct mli_look_op {
    const mli_attention_op *attention; /* after it ran */
    ml_tensor weights;                 /* (A n, S) */
} mli_look_op;

/* Rows of the weights: query i of head h is row h n + i. */
static void mli_look_rows(const void *record, size_t begin, size_t end) {
    const mli_look_op *look = (const mli_look_op *)record;
    const mli_attention_op *op = look->attention;
    for (size_t at = begin; at < end; at++) {
        size_t i = at % op->q.rows;
        float *p = mli_row(look->weights, at);
        int row = 0;
        while (mli_row_start(op->rows, row + 1) <= i) row++;
        mli_tile tile = mli_tile_at(op, row, i, (int)(at / op->q.rows));
        size_t n = mli_visible(op, &tile, 0);
        mli_dots(p, tile.q, tile.k, op->k.cols, n, op->hd);
        mli_scale(p, op->scale, n);
        mli_softmax(p, n);
        memset(p + n, 0, (look->weights.cols - n) * sizeof *p);
    }
}

/* weights (A n, S) = softmax(q k^T / sqrt(hd)), as mli_attend has them for a moment */
static void mli_look_at_attention(mli_graph *g, const mli_attention_op *attention, ml_tensor weights) {
    mli_look_op look = {attention, weights};
    mli_for_rows(g, mli_look_rows, &look, weights.rows, weights.cols * attention->hd);
}

/* ---- keys in front of each row (Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation") */

typedef struct mli_prepend_op {
    ml_tensor prefix, x, y; /* (P, c), (n, c), (n + n_rows P, c) */
    const mli_rows *rows;   /* of x */
} mli_prepend_op;

static void mli_prepend_rows(const mli_prepend_op *op) {
    size_t n_prefix = op->prefix.rows, row_bytes = op->x.cols * sizeof(float);
    for (int r = 0; r < op->rows->n_rows; r++) {
        size_t begin = mli_row_start(op->rows, r), n = mli_row_start(op->rows, r + 1) - begin;
        float *to = mli_row(op->y, begin + (size_t)r * n_prefix);
        memcpy(to, op->prefix.data, n_prefix * row_bytes);
        memcpy(to + mli_numbers(&op->prefix), mli_row(op->x, begin), n * row_bytes);
    }
}

static void mli_prepend_backward(mli_graph *g, const void *record) {
    const mli_prepend_op *op = (const mli_prepend_op *)record;
    (void)g;
    for (int r = 0; r < op->rows->n_rows; r++) {
        size_t begin = mli_row_start(op->rows, r), n = mli_row_start(op->rows, r + 1) - begin;
        const float *from = mli_grad_row(op->y, begin + (size_t)r * op->prefix.rows);
        if (op->prefix.grad) mli_add(op->prefix.grad, from, mli_numbers(&op->prefix));
        mli_give_gradient(op->x, begin, n, 0, from + mli_numbers(&op->prefix), op->x.cols);
    }
}

/* prefix (P, c), x (n, c) -> (n + n_rows P, c): the prefix before each row of x; for mli_attention_op.prefix = P */
MLI_OPTIONAL ml_tensor mli_prepend(mli_graph *g, ml_tensor prefix, ml_tensor x, const mli_rows *rows) {
    mli_prepend_op op = {prefix, x, mli_new(g, x.rows + (size_t)rows->n_rows * prefix.rows, x.cols), rows};
    if (!mli_measuring(g)) mli_prepend_rows(&op);
    mli_record(g, mli_prepend_backward, &op, sizeof op);
    return op.y;
}

/* ==== >>network ====
   Llama (Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"), written once: for tokens one
   by one with a KV cache, for batches, and, with a tape, for training. First the table of its parameters, then the
   model, then the forward pass. */

/* ---- the parameter table ----
   The one place that knows every weight of the network, its shape, its role, and its name in the four naming schemes.
   Loader, saver, trainer, adapters and tests use it. */

/* clang-format off */
typedef enum mli_slot {
    MLI_TOKEN_EMBEDDING, MLI_OUTPUT_NORM, MLI_OUTPUT_NORM_BIAS, MLI_OUTPUT, /* once in a model */
    MLI_GLOBAL_SLOTS,
    MLI_ATTN_NORM = MLI_GLOBAL_SLOTS, MLI_ATTN_NORM_BIAS, MLI_WQ, MLI_WK, MLI_WV, MLI_WO, /* once in a layer */
    MLI_FFN_NORM, MLI_FFN_NORM_BIAS, MLI_W1, MLI_W2, MLI_W3,
    MLI_SLOTS,
    MLI_LAYER_SLOTS = MLI_SLOTS - MLI_GLOBAL_SLOTS
} mli_slot;

typedef enum mli_naming {
    MLI_NAMING_GGUF, MLI_NAMING_META, MLI_NAMING_COURSE, MLI_NAMING_HF,
    MLI_NAMINGS
} mli_naming;
/* clang-format on */

typedef enum mli_role { MLI_ROLE_EMBEDDING, MLI_ROLE_MATRIX, MLI_ROLE_NORM, MLI_ROLE_BIAS } mli_role;
typedef enum mli_extent { MLI_ONE, MLI_DIM, MLI_KV_DIM, MLI_HIDDEN, MLI_VOCAB } mli_extent;

typedef struct mli_param {
    mli_role role;
    mli_extent rows, cols;
    const char *name[MLI_NAMINGS]; /* '#' is the layer's number */
} mli_param;

/* Role, shape, and the names in GGUF, Meta's, the course's and Hugging Face's files, in the order of mli_slot. (The
   course's are those of the PyTorch assignment that examples/run_llama follows.) */
/* clang-format off */
#define MLI_ONCE(role, rows, cols, gguf, meta, course, hf) \
    {MLI_ROLE_##role, MLI_##rows, MLI_##cols, {gguf, meta, course, hf}}
#define MLI_EACH(role, rows, cols, gguf, meta, course, hf, kind) \
    {MLI_ROLE_##role, MLI_##rows, MLI_##cols, {"blk.#." gguf "." #kind, "layers.#." meta "." #kind, \
                                               "layers.#." course "." #kind, "model.layers.#." hf "." #kind}}
static const mli_param mli_params[MLI_SLOTS] = {
    MLI_ONCE(EMBEDDING, VOCAB, DIM,
             "token_embd.weight", "tok_embeddings.weight", "tok_embeddings.weight", "model.embed_tokens.weight"),
    MLI_ONCE(NORM, ONE, DIM, "output_norm.weight", "norm.weight", "norm.weight", "model.norm.weight"),
    MLI_ONCE(BIAS, ONE, DIM, "output_norm.bias", "norm.bias", "norm.bias", "model.norm.bias"),
    MLI_ONCE(MATRIX, VOCAB, DIM, "output.weight", "output.weight", "output.weight", "lm_head.weight"),
    MLI_EACH(NORM, ONE, DIM, "attn_norm", "attention_norm", "attention_norm", "input_layernorm", weight),
    MLI_EACH(BIAS, ONE, DIM, "attn_norm", "attention_norm", "attention_norm", "input_layernorm", bias),
    MLI_EACH(MATRIX, DIM, DIM, "attn_q", "attention.wq", "attention.compute_query", "self_attn.q_proj", weight),
    MLI_EACH(MATRIX, KV_DIM, DIM, "attn_k", "attention.wk", "attention.compute_key", "self_attn.k_proj", weight),
    MLI_EACH(MATRIX, KV_DIM, DIM, "attn_v", "attention.wv", "attention.compute_value", "self_attn.v_proj", weight),
    MLI_EACH(MATRIX, DIM, DIM, "attn_output", "attention.wo", "attention.compute_output", "self_attn.o_proj", weight),
    MLI_EACH(NORM, ONE, DIM, "ffn_norm", "ffn_norm", "ffn_norm", "post_attention_layernorm", weight),
    MLI_EACH(BIAS, ONE, DIM, "ffn_norm", "ffn_norm", "ffn_norm", "post_attention_layernorm", bias),
    MLI_EACH(MATRIX, HIDDEN, DIM, "ffn_gate", "feed_forward.w1", "feed_forward.w1", "mlp.gate_proj", weight),
    MLI_EACH(MATRIX, DIM, HIDDEN, "ffn_down", "feed_forward.w2", "feed_forward.w2", "mlp.down_proj", weight),
    MLI_EACH(MATRIX, HIDDEN, DIM, "ffn_up", "feed_forward.w3", "feed_forward.w3", "mlp.up_proj", weight),
};
/* clang-format on */

/* What an adapter may adapt, in the order of the bits ML_LORA_Q ... */
#define MLI_LORA_TARGETS 7
static const mli_slot mli_lora_slots[MLI_LORA_TARGETS] = {MLI_WQ, MLI_WK, MLI_WV, MLI_WO,
                                                          MLI_W1, MLI_W2, MLI_W3};

static int mli_extent_of(const ml_config *c, mli_extent extent) {
    const int extents[] = {1, c->dim, c->dim / c->n_heads * c->n_kv_heads, c->hidden_dim, c->vocab_size};
    return extents[extent];
}

/* The slot and the layer (0 for those outside the layers) of tensor `index` of a model. */
static mli_slot mli_slot_at(int index) {
    int in_layers = index - MLI_GLOBAL_SLOTS;
    return (mli_slot)(in_layers < 0 ? index : MLI_GLOBAL_SLOTS + in_layers % MLI_LAYER_SLOTS);
}
static int mli_layer_at(int index) { return MLI_MAX(0, index - MLI_GLOBAL_SLOTS) / MLI_LAYER_SLOTS; }

static const ml_tensor *mli_weight(const ml_model *model, mli_slot slot, int layer) {
    return &model->tensors[(int)slot + (slot < MLI_GLOBAL_SLOTS ? 0 : layer * MLI_LAYER_SLOTS)];
}

static int mli_is_norm(mli_slot slot) { return mli_params[slot].rows == MLI_ONE; } /* or its bias */

/* Whether a model of this configuration has the tensor, and not only an empty entry for it. */
static int mli_has_slot(const ml_config *c, mli_slot slot) {
    if (slot == MLI_OUTPUT) return !c->tied_output;
    return mli_params[slot].role != MLI_ROLE_BIAS || c->norm == ML_NORM_LAYER;
}

static void mli_param_name(mli_naming naming, mli_slot slot, int layer, char name[ML_NAME_SIZE]) {
    const char *pattern = mli_params[slot].name[naming], *number = strchr(pattern, '#');
    mli_format(name, ML_NAME_SIZE, "%s", pattern);
    if (number)
        mli_format(name + (number - pattern), ML_NAME_SIZE - (size_t)(number - pattern), "%d%s", layer,
                   number + 1);
}

ML_DEF ml_result ml_model_tensor_name(const ml_model *model, int index, char name[ML_NAME_SIZE]) {
    if (!model || !name || index < 0 || index >= model->n_tensors) return ML_ERROR_ARGUMENT;
    mli_param_name(MLI_NAMING_GGUF, mli_slot_at(index), mli_layer_at(index), name);
    return ML_OK;
}

/* Refuses a configuration that the forward pass could not run; the limits keep every index inside an int. */
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
    for (size_t i = 0; i < MLI_COUNT(fields); i++)
        if (fields[i].value < 1 || fields[i].value > fields[i].most)
            return mli_fail(error, ML_ERROR_FORMAT, "configuration: %s is %d, not in 1 to %d", fields[i].name,
                            fields[i].value, fields[i].most);
    if (c->dim % c->n_heads || (c->dim / c->n_heads) % 2)
        return mli_fail(error, ML_ERROR_FORMAT,
                        "configuration: dim %d cannot be cut into %d heads of even size", c->dim, c->n_heads);
    if (c->n_heads % c->n_kv_heads)
        return mli_fail(error, ML_ERROR_FORMAT, "configuration: n_kv_heads %d does not divide n_heads %d",
                        c->n_kv_heads, c->n_heads);
    if (!(c->norm_eps >= 0 && c->norm_eps < 1) || !(c->rope_theta > 0 && c->rope_theta < 1e12f) ||
        !(c->rope_scale > 0 && c->rope_scale < 1e6f))
        return mli_fail(error, ML_ERROR_FORMAT,
                        "configuration: norm_eps, rope_theta or rope_scale is out of range");
    if ((c->norm != ML_NORM_RMS && c->norm != ML_NORM_LAYER) ||
        (c->mask != ML_MASK_CAUSAL && c->mask != ML_MASK_FULL))
        return mli_fail(error, ML_ERROR_ARGUMENT, "configuration: norm or mask is not one of its names");
    return ML_OK;
}

/* ---- the model ---- */

struct ml_model_private {
    ml_model shown;
    ml_allocator allocator;
    ml_archive *archive; /* owns the weights that are used in place; NULL: none are */
    void *weights;       /* one block with all weights that the model owns */
    ml_tensor *tensors;  /* shown.tensors, to write to: they follow this struct */
    ml_tokenizer *tokenizer;
    int has_other_tokenizer;   /* than its file */
    const unsigned char *keys; /* (keys_size) of its GGUF, as they are there: see mli_keep_keys; NULL: none */
    size_t keys_size;
    void *own_keys; /* their memory, unless they are in the file */
};

/* A model without weights: every tensor has its shape, and no data. */
static ml_result mli_model_new(const ml_config *config, const ml_allocator *allocator, ml_model **out,
                               ml_error *error) {
    int n_tensors = MLI_GLOBAL_SLOTS + config->n_layers * MLI_LAYER_SLOTS;
    struct ml_model_private *own = NULL;
    size_t bytes = sizeof *own + (size_t)n_tensors * sizeof *own->tensors;
    own = (struct ml_model_private *)mli_alloc(allocator, 1, bytes);
    if (!own) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a table of %d tensors", n_tensors);
    ml_tensor *tensors = own->tensors = (ml_tensor *)(own + 1);
    ml_model model = {*config, NULL, n_tensors, tensors, 0, own};
    for (int i = 0; i < n_tensors; i++) {
        const mli_param *param = &mli_params[mli_slot_at(i)];
        tensors[i].rows = (size_t)mli_extent_of(config, param->rows);
        tensors[i].cols = (size_t)mli_extent_of(config, param->cols);
        if (mli_has_slot(config, mli_slot_at(i))) model.n_parameters += (int64_t)mli_numbers(&tensors[i]);
    }
    own->shown = model;
    own->allocator = *allocator;
    *out = &own->shown;
    return ML_OK;
}

ML_DEF void ml_model_free(ml_model *model) {
    if (!model) return;
    struct ml_model_private *own = model->private_part;
    ml_tokenizer_free(own->tokenizer);
    mli_free(&own->allocator, own->own_keys);
    ml_archive_free(own->archive);
    mli_free(&own->allocator, own->weights);
    mli_free(&own->allocator, own);
}

/* Weights can be changed if the model owns them and all are F32. */
static ml_result mli_check_writable(const ml_model *model, ml_error *error) {
    int writable = model->private_part->weights && !model->private_part->archive;
    for (int i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].data && model->tensors[i].type != ML_F32) writable = 0;
    if (writable) return ML_OK;
    return mli_fail(error, ML_ERROR_ARGUMENT,
                    "the weights are read-only or not F32: load with ml_model_load_desc.type = ML_F32");
}

static int mli_has_output(const ml_model *model) { return model->tensors[MLI_OUTPUT].data != NULL; }

static ml_result mli_check_output(const ml_model *model, ml_error *error) {
    if (mli_has_output(model)) return ML_OK;
    return mli_fail(error, ML_ERROR_UNSUPPORTED,
                    "the model has no output layer: it computes hidden states, but no logits");
}

/* ---- the forward pass ----
   The walk of one token through the functions, in their order:

     ml_session_eval              appends the token's id to the session
       mli_network                  turns the id into a hidden state:
         mli_embed                    x = row `id` of the embedding
         mli_layer                    n_layers times:
           mli_attention_block          x += Wo attention(norm(x)):
             mli_norm                     h = norm(x)
             mli_linears                  q = Wq h; k = Wk h and v = Wv h, both directly into the KV cache
             mli_rope                     q and k, rotated by the token's position
             mli_attention                a = the v of all tokens so far, weighted by softmax(q . k / sqrt(hd))
             mli_add_linear               x += Wo a
           mli_ffn_block                x += W2 (silu(W1 h) * W3 h):
             mli_norm, mli_linears        h = norm(x), gate = W1 h, up = W3 h
             mli_gated, mli_add_linear    s = silu(gate) * up, x += W2 s
         mli_norm                     hidden = norm(x)
       mli_output                   logits = output matrix . hidden, for the last token
     ml_sampler_sample            draws the next id from the logits */

/* Where the layers write their keys and values (n, kv_dim), in a session's cache. */
typedef struct mli_kv {
    float *first; /* the keys of layer 0 */
    size_t half;  /* numbers from a layer's keys to its values, and from these to the next layer's keys */
} mli_kv;

/* What a session hands to a caller who looks. */
typedef struct mli_looking {
    ml_look look;
    ml_seen seen;
} mli_looking;

/* One pass through the network, and what all its layers share. */
typedef struct mli_pass {
    const ml_model *model;
    const ml_lora *lora;   /* the adapter over the matrices, or NULL */
    const int32_t *tokens; /* (n_tokens) */
    int n_tokens;
    const mli_rows *rows;
    const float *rope; /* see mli_rope_table; NULL: nothing is rotated */
    const mli_kv *kv;  /* NULL: keys and values are activations like others */
    int n_frozen;      /* so many parts from below learn nothing: the embedding, the layers, the last norm */
    unsigned places;   /* that are wanted: see mli_wants */
    const struct mli_llama *llama; /* what a pass of ml_llama has in addition (>>operations), or NULL */
    mli_looking *looking;          /* NULL: nobody looks */
} mli_pass;

static mli_pass mli_pass_over(const ml_model *model, const ml_lora *lora, const mli_rows *rows) {
    mli_pass pass;
    memset(&pass, 0, sizeof pass);
    pass.model = model, pass.lora = lora, pass.rows = rows;
    return pass;
}

/* The matrix of a slot, with the adapter that the pass has for it. */
static mli_matrix_use mli_use(const mli_pass *pass, mli_slot slot, int layer) {
    mli_matrix_use use;
    memset(&use, 0, sizeof use);
    use.w = *mli_weight(pass->model, slot, layer);
    for (int target = 0; pass->lora && target < MLI_LORA_TARGETS; target++) {
        if (mli_lora_slots[target] != slot) continue;
        const ml_tensor *pair = pass->lora->tensors + (layer * MLI_LORA_TARGETS + target) * 2;
        use.a = pair[0], use.b = pair[1];
        use.scale = pass->lora->scales[layer * MLI_LORA_TARGETS + target];
    }
    return use;
}

/* ---- places: where ml_llama (>>operations) hands a value to its caller, and goes on with what he returns ----
   What is handed out may be read by any number of his operations. So it is not changed in place, and its gradient is
   apart. Where no place is wanted, and without training, all of this does nothing. */

#ifdef ML_NO_TRAINING
#define MLI_AT(place) 0u
static int mli_wants(const mli_pass *pass, unsigned at) { return (void)pass, (void)at, 0; }
static ml_tensor mli_insert(mli_graph *g, const mli_pass *pass, unsigned at, int layer, ml_tensor x,
                            ml_tensor y) {
    return (void)g, (void)pass, (void)at, (void)layer, (void)x, y;
}
static ml_tensor mli_stream_at(mli_graph *g, const mli_pass *pass, unsigned at, int part, ml_tensor x) {
    return (void)g, (void)pass, (void)at, (void)part, x;
}
static void mli_extend_attention(mli_graph *g, const mli_pass *pass, int layer, mli_attention_op *op) {
    (void)g, (void)pass, (void)layer, (void)op;
}
#else
#define MLI_AT(place) (1u << ML_PLACE_##place)
static int mli_wants(const mli_pass *pass, unsigned at) { return (pass->places & at) != 0; }
/* In >>operations: what is used in place of y, which was computed from x; and the same for the stream. */
static ml_tensor mli_insert(mli_graph *g, const mli_pass *pass, unsigned at, int layer, ml_tensor x,
                            ml_tensor y);
static ml_tensor mli_stream_at(mli_graph *g, const mli_pass *pass, unsigned at, int part, ml_tensor x);
/* Also there: prefixes, bias, window, sinks and dropout. */
static void mli_extend_attention(mli_graph *g, const mli_pass *pass, int layer, mli_attention_op *op);
#endif
#define MLI_AT_END (1u << 31) /* not a place of the caller's: the result, which he may read like any value */

/* As mli_new, for a value that one of these places hands out. */
static ml_tensor mli_new_at(mli_graph *g, const mli_pass *pass, unsigned at, size_t rows, size_t cols) {
    return mli_wants(pass, at) ? mli_new_apart(g, rows, cols) : mli_new(g, rows, cols);
}

/* From here on operations make such values. Returns g->separate as it was, and is to be again. */
static int mli_separate_at(mli_graph *g, const mli_pass *pass, unsigned at) {
    int separate = g->separate;
    if (mli_wants(pass, at)) g->separate = 1;
    return separate;
}

/* ---- looking: what a session's pass hands out. Its memory is from here to the end of the pass ---- */

static void mli_look_begin(mli_graph *g, const mli_pass *pass, ml_tensor x) {
    size_t n_heads = (size_t)pass->model->config.n_heads;
    size_t n_keys = mli_longest_row(pass->rows) + (size_t)pass->rows->past;
    ml_seen *seen = &pass->looking->seen, first;
    seen->weights = mli_new(g, n_heads * x.rows, n_keys);
    seen->middle = mli_new(g, x.rows, x.cols);
    seen->stream = x;
    seen->past = pass->rows->past;
    memset(&first, 0, sizeof first);
    first.layer = -1, first.past = seen->past, first.stream = x;
    if (!mli_measuring(g)) pass->looking->look.on_layer(pass->looking->look.user, &first);
}

/* The second half of a layer changes the stream in place. */
static void mli_look_between(mli_graph *g, const mli_pass *pass, ml_tensor x) {
    if (!mli_measuring(g)) memcpy(pass->looking->seen.middle.data, x.data, mli_numbers(&x) * sizeof(float));
}

static void mli_look_end(mli_graph *g, const mli_pass *pass, int layer) {
    pass->looking->seen.layer = layer;
    if (!mli_measuring(g)) pass->looking->look.on_layer(pass->looking->look.user, &pass->looking->seen);
}

/* ---- a layer ---- */

static ml_tensor mli_norm_of(mli_graph *g, const mli_pass *pass, mli_slot slot, int layer, ml_tensor x) {
    const ml_tensor *weight = mli_weight(pass->model, slot, layer); /* its bias follows in the table */
    unsigned at = slot == MLI_ATTN_NORM  ? MLI_AT(Q) | MLI_AT(K) | MLI_AT(V) | MLI_AT(ATTENTION)
                  : slot == MLI_FFN_NORM ? MLI_AT(W1) | MLI_AT(W3) | MLI_AT(FFN)
                                         : MLI_AT_END;
    int separate = mli_separate_at(g, pass, at);
    ml_tensor y = mli_norm(g, x, weight[0], weight[1], pass->model->config.norm_eps);
    g->separate = separate;
    return y;
}

/* x (n, heads * hd) rotated in place, or a copy of it if the place handed it out */
static ml_tensor mli_rope_at(mli_graph *g, const mli_pass *pass, unsigned at, ml_tensor x) {
    const ml_config *c = &pass->model->config;
    if (!pass->rope) return x;
    if (mli_wants(pass, at)) x = mli_copy(g, x, mli_new(g, x.rows, x.cols));
    mli_rope(g, x, pass->rope, (size_t)(c->dim / c->n_heads), pass->rows);
    return x;
}

/* How half a layer ends: x + W a. There is a place behind W, and one for the half, which began with h. */
typedef struct mli_half {
    mli_slot slot;
    int layer;
    ml_tensor a, h; /* (n, in), (n, D) */
    unsigned at_matrix, at_half;
} mli_half;

static ml_tensor mli_end_half(mli_graph *g, const mli_pass *pass, const mli_half *half, ml_tensor x) {
    mli_matrix_use use = mli_use(pass, half->slot, half->layer);
    if (!mli_wants(pass, half->at_matrix | half->at_half)) return mli_add_linear(g, x, half->a, use);
    use.y = mli_new_apart(g, x.rows, x.cols);
    mli_linears(g, half->a, &use, 1);
    ml_tensor y = mli_insert(g, pass, half->at_matrix, half->layer, half->a, use.y);
    y = mli_insert(g, pass, half->at_half, half->layer, half->h, y);
    return mli_add_to_stream(g, x, y);
}

/* x (n, D) -> x + Wo attention(norm(x)), the first half of a layer */
static ml_tensor mli_attention_block(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    const ml_config *c = &pass->model->config;
    size_t kv_dim = (size_t)mli_extent_of(c, MLI_KV_DIM);
    ml_tensor h = mli_norm_of(g, pass, MLI_ATTN_NORM, layer, x), k, v;
    ml_tensor q = mli_new_at(g, pass, MLI_AT(Q), x.rows, x.cols);
    if (pass->kv) {
        k = mli_tensor_at(pass->kv->first + 2 * (size_t)layer * pass->kv->half, x.rows, kv_dim);
        v = mli_tensor_at((float *)k.data + pass->kv->half, x.rows, kv_dim);
    } else {
        k = mli_new_at(g, pass, MLI_AT(K), x.rows, kv_dim);
        v = mli_new_at(g, pass, MLI_AT(V), x.rows, kv_dim);
    }
    mli_matrix_use use[3] = {mli_use(pass, MLI_WQ, layer), mli_use(pass, MLI_WK, layer),
                             mli_use(pass, MLI_WV, layer)};
    use[0].y = q, use[1].y = k, use[2].y = v;
    mli_linears(g, h, use, 3);
    q = mli_insert(g, pass, MLI_AT(Q), layer, h, q);
    k = mli_insert(g, pass, MLI_AT(K), layer, h, k);
    v = mli_insert(g, pass, MLI_AT(V), layer, h, v);
    q = mli_rope_at(g, pass, MLI_AT(Q), q);
    k = mli_rope_at(g, pass, MLI_AT(K), k);
    mli_attention_op attention = mli_plain_attention(q, k, v, c, pass->rows);
    mli_extend_attention(g, pass, layer, &attention);
    ml_tensor a = mli_run_attention(g, &attention, mli_new_at(g, pass, MLI_AT(O), x.rows, x.cols));
    if (pass->looking) mli_look_at_attention(g, &attention, pass->looking->seen.weights);
    mli_half half = {MLI_WO, layer, a, h, MLI_AT(O), MLI_AT(ATTENTION)};
    return mli_end_half(g, pass, &half, x);
}

/* x (n, D) -> x + W2 (silu(W1 norm(x)) * W3 norm(x)), the second half */
static ml_tensor mli_ffn_block(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    size_t hidden = (size_t)pass->model->config.hidden_dim;
    ml_tensor h = mli_norm_of(g, pass, MLI_FFN_NORM, layer, x);
    ml_tensor gate = mli_new_at(g, pass, MLI_AT(W1), x.rows, hidden),
              up = mli_new_at(g, pass, MLI_AT(W3), x.rows, hidden);
    mli_matrix_use use[2] = {mli_use(pass, MLI_W1, layer), mli_use(pass, MLI_W3, layer)};
    use[0].y = gate, use[1].y = up;
    mli_linears(g, h, use, 2);
    gate = mli_insert(g, pass, MLI_AT(W1), layer, h, gate);
    up = mli_insert(g, pass, MLI_AT(W3), layer, h, up);
    int separate = mli_separate_at(g, pass, MLI_AT(W1) | MLI_AT(HIDDEN) | MLI_AT(W2));
    ml_tensor s = mli_gated(g, gate, up);
    g->separate = separate;
    s = mli_insert(g, pass, MLI_AT(HIDDEN), layer, s, s);
    mli_half half = {MLI_W2, layer, s, h, MLI_AT(W2), MLI_AT(FFN)};
    return mli_end_half(g, pass, &half, x);
}

/* Without a tape each half frees all that it allocated, and x is changed in place. What places inside of layers
   handed out lives on, unless the layer is computed again. [plain_layer_forward] */
static ml_tensor mli_layer(mli_graph *g, const mli_pass *pass, int layer, ml_tensor x) {
    size_t mark = g->used;
    unsigned at_stream = MLI_AT(EMBEDDING) | MLI_AT(BLOCK) | MLI_AT_END;
    int frees = !mli_taping(g) && (g->checkpointing || !mli_wants(pass, ~at_stream));
    x = mli_attention_block(g, pass, layer, x);
    if (frees) mli_release(g, mark);
    if (pass->looking) mli_look_between(g, pass, x);
    x = mli_ffn_block(g, pass, layer, x);
    if (frees) mli_release(g, mark);
    if (pass->looking) mli_look_end(g, pass, layer);
    return x;
}

/* ---- gradient checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost") ----
   Only a layer's input is kept. The layer is computed without a tape, and again with one in the backward pass. */

typedef struct mli_layer_op {
    mli_pass pass;
    int layer;
    ml_tensor x; /* (n, D) */
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
    mli_layer_op op = {*pass, layer, x};
    ml_tensor y = mli_new(g, x.rows, x.cols);
    size_t mark = g->used, peak = g->peak;
    y.grad = x.grad;
    if (mli_measuring(g)) { /* what mli_layer_backward takes: not now, but after the forward pass */
        size_t recompute = g->recompute;
        g->recompute = 0;
        mli_layer(g, pass, layer, x);
        g->recompute = MLI_MAX(recompute, g->recompute + (g->used - mark));
        g->peak = peak;
        mli_release(g, mark);
    } else {
        memcpy(y.data, x.data, mli_numbers(&x) * sizeof(float));
    }
    g->taping = 0;
    mli_layer(g, pass, layer, y);
    g->taping = 1;
    mli_record(g, mli_layer_backward, &op, sizeof op);
    return y;
}

/* Below the first part that learns nothing has a gradient. There `taping`, what the graph began with, is switched
   off; from that part on the stream has its gradient. */
static void mli_tape_from(mli_graph *g, int taping, int learns, ml_tensor *stream) {
    if (!taping) return;
    g->taping = learns || stream->grad;
    if (!g->taping || stream->grad) return;
    stream->grad = mli_new_numbers(g, stream->rows, stream->cols, 1);
    if (!mli_measuring(g)) memset(stream->grad, 0, mli_numbers(stream) * sizeof *stream->grad);
}

/* tokens (n) -> hidden states after the last norm (n, D) [plain_forward] */
static ml_tensor mli_network(mli_graph *g, const mli_pass *pass) {
    ml_tensor embedding = *mli_weight(pass->model, MLI_TOKEN_EMBEDDING, 0);
    size_t n = (size_t)pass->n_tokens;
    int part = 0, taping = mli_taping(g); /* part 0 is the embedding, 1 the first layer, ... */
    ml_tensor x = mli_tensor_at(mli_new_numbers(g, n, embedding.cols, 0), n, embedding.cols);
    mli_tape_from(g, taping, part >= pass->n_frozen, &x);
    mli_embed(g, embedding, pass->tokens, x);
    x = mli_stream_at(g, pass, MLI_AT(EMBEDDING), part, x);
    if (pass->looking) mli_look_begin(g, pass, x);
    for (int layer = 0; layer < pass->model->config.n_layers; layer++) {
        mli_tape_from(g, taping, ++part >= pass->n_frozen, &x);
        x = mli_taping(g) && g->checkpointing ? mli_layer_checkpointed(g, pass, layer, x)
                                              : mli_layer(g, pass, layer, x);
        x = mli_stream_at(g, pass, MLI_AT(BLOCK), part, x);
    }
    mli_tape_from(g, taping, ++part >= pass->n_frozen, &x);
    return mli_norm_of(g, pass, MLI_OUTPUT_NORM, 0, x);
}

/* hidden (n, D) -> logits (n_select, V) of the selected tokens, or (n, V) of all without a selection */
static void mli_output(mli_graph *g, const ml_model *model, ml_tensor hidden, const int32_t *select,
                       int n_select, float *logits) {
    mli_pass pass = mli_pass_over(model, NULL, NULL); /* adapters leave this matrix alone */
    mli_matrix_use use = mli_use(&pass, MLI_OUTPUT, 0);
    if (select) /* an embedding gathers rows */
        hidden = mli_embed(g, hidden, select, mli_new(g, (size_t)n_select, hidden.cols));
    use.y = mli_tensor_at(logits, hidden.rows, use.w.rows);
    mli_linears(g, hidden, &use, 1);
}

/* ==== >>create ====
   The memory of a model's weights, and models created from scratch: for training and for measuring. */

/* The type that a weight gets when the matrices are to be of `type` (ML_TYPE_NONE: as they are). Norms are F32. With
   Q4_0 the layer that makes the logits is Q8_0, because four bits would lose most accuracy there. A matrix whose rows
   are not a multiple of the block is F16. */
static ml_type mli_weight_type(const ml_config *config, mli_slot slot, ml_type type, ml_type present) {
    const mli_param *param = &mli_params[slot];
    int makes_logits = slot == MLI_OUTPUT || (slot == MLI_TOKEN_EMBEDDING && config->tied_output);
    if (mli_is_norm(slot)) return ML_F32;
    if (!type) return mli_type(present)->quantize ? present : ML_F32; /* what is only read: F64, Q6_K, ... */
    if (type == ML_Q4_0 && makes_logits) type = ML_Q8_0;
    return (size_t)mli_extent_of(config, param->cols) % ml_type_block(type) ? ML_F16 : type;
}

/* Places the data of every tensor that has a type but no data; with memory NULL only counts the bytes. */
static size_t mli_layout_weights(ml_tensor *tensors, int n_tensors, unsigned char *memory) {
    size_t used = 0;
    for (ml_tensor *t = tensors; t < tensors + n_tensors; t++) {
        if (!t->type || t->data) continue;
        t->data = mli_carve(memory, &used, t->rows, ml_type_row_bytes(t->type, t->cols));
    }
    return used;
}

/* Allocates them in one block. */
static ml_result mli_allocate_weights(ml_model *model, ml_error *error) {
    struct ml_model_private *own = model->private_part;
    size_t bytes = mli_layout_weights(own->tensors, model->n_tensors, NULL), total;
    if (!bytes) return ML_OK;
    if (!mli_add_size(bytes, MLI_ALIGN, &total)) /* room to align the first */
        return mli_fail(error, ML_ERROR_MEMORY, "the weights are larger than the address space");
    own->weights = own->allocator.alloc(total, own->allocator.user); /* not zeroed: all of it is written */
    if (!own->weights)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for %z bytes of weights", total);
    mli_layout_weights(own->tensors, model->n_tensors,
                       (unsigned char *)mli_align_up((uintptr_t)own->weights));
    return ML_OK;
}

static void mli_tie_output(ml_model *model) {
    ml_tensor *tensors = model->private_part->tensors;
    if (model->config.tied_output) tensors[MLI_OUTPUT] = tensors[MLI_TOKEN_EMBEDDING];
}

/* What 0 means in a configuration that a caller wrote. */
static void mli_config_defaults(ml_config *config) {
    if (!config->n_kv_heads) config->n_kv_heads = config->n_heads;
    if (!config->norm) config->norm = ML_NORM_RMS;
    if (!config->mask) config->mask = ML_MASK_CAUSAL;
    if (config->norm_eps == 0) config->norm_eps = 1e-5f;
    if (config->rope_theta == 0) config->rope_theta = 10000;
    if (config->rope_scale == 0) config->rope_scale = 1;
    config->tied_output = config->tied_output != 0;
}

/* Normal numbers of standard deviation 0.02 for matrices, ones for norms, zeros for biases. row (cols) is scratch. */
static void mli_fill_weight(const ml_tensor *tensor, mli_role role, ml_random *random, float *row) {
    size_t bytes = ml_type_row_bytes(tensor->type, tensor->cols);
    for (size_t r = 0; r < tensor->rows; r++) {
        for (size_t c = 0; c < tensor->cols; c++)
            row[c] = role == MLI_ROLE_NORM ? 1 : role == MLI_ROLE_BIAS ? 0 : 0.02f * ml_random_normal(random);
        ml_type_convert(tensor->type, (unsigned char *)tensor->data + r * bytes, ML_F32, row, tensor->cols);
    }
}

static ml_result mli_create_weights(ml_model *model, ml_type type, ml_random *random, ml_error *error) {
    struct ml_model_private *own = model->private_part;
    for (int i = 0; i < model->n_tensors; i++)
        if (mli_has_slot(&model->config, mli_slot_at(i)))
            own->tensors[i].type = mli_weight_type(&model->config, mli_slot_at(i), type, type);
    ml_result result = mli_allocate_weights(model, error);
    if (result) return result;
    size_t longest = (size_t)MLI_MAX(model->config.dim, model->config.hidden_dim);
    float *row = (float *)mli_alloc(&own->allocator, longest, sizeof *row);
    if (!row) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a row of %z numbers", longest);
    for (int i = 0; i < model->n_tensors; i++)
        if (own->tensors[i].type)
            mli_fill_weight(&own->tensors[i], mli_params[mli_slot_at(i)].role, random, row);
    mli_tie_output(model);
    mli_free(&own->allocator, row);
    return ML_OK;
}

ML_DEF ml_result ml_model_create(const ml_model_create_desc *desc, ml_model **model, ml_error *error) {
    if (model) *model = NULL;
    if (!desc || !desc->random || !model)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_model_create: desc, desc.random or model is NULL");
    ml_type type = desc->type ? desc->type : ML_F32;
    if (type < ML_F32 || type > ML_Q4_0)
        return mli_fail(error, ML_ERROR_ARGUMENT, "weights cannot be held as %s", ml_type_name(type));
    ml_config config = desc->config;
    mli_config_defaults(&config);
    ml_allocator allocator;
    ml_result result = mli_check_config(&config, error);
    if (!result) result = mli_resolve_allocator(&desc->allocator, &allocator, error);
    if (!result) result = mli_model_new(&config, &allocator, model, error);
    if (!result) result = mli_create_weights(*model, type, desc->random, error);
    if (!result) return mli_ok(error);
    ml_model_free(*model);
    *model = NULL;
    return result;
}

ML_DEF ml_result ml_model_set_tokenizer(ml_model *model, ml_tokenizer *tokenizer, ml_error *error) {
    if (!model || !tokenizer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_model_set_tokenizer: model or tokenizer is NULL");
    if (tokenizer->n_pieces > model->config.vocab_size)
        return mli_fail(error, ML_ERROR_MISMATCH, "a tokenizer of %d pieces for a model with vocab_size %d",
                        tokenizer->n_pieces, model->config.vocab_size);
    struct ml_model_private *own = model->private_part;
    if (own->tokenizer != tokenizer) ml_tokenizer_free(own->tokenizer);
    model->tokenizer = own->tokenizer = tokenizer;
    own->has_other_tokenizer = 1;
    return mli_ok(error);
}

/* ==== >>session ====
   A session holds a sequence of tokens and everything that computing its next token needs, in one buffer.

   With the causal mask a token's keys and values do not depend on later tokens, so they are computed once and stored
   (Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"). A new token then costs one row through
   the network, which attends to the stored rows. The KV cache is (L, 2, max_seq_len, kv_dim):

   position          0    1    2        length-1            max_seq_len-1
      layer 0  keys   [ k0 | k1 | k2 | ... | k      | not used yet ...     ]
               values [ v0 | v1 | v2 | ... | v      | not used yet ...     ]
      layer 1  keys   [ k0 | k1 | ...                                      ]
      ...

   A pass over n tokens writes rows length .. length + n - 1 of every layer; forgetting the last tokens only makes
   length smaller. With the full mask every key depends on all tokens: there is no cache, and each pass computes the
   whole sequence. */

typedef struct ml_session_private {
    ml_session shown;
    const ml_lora *lora;
    ml_threads threads;
    int is_full;              /* mask full */
    size_t half;              /* numbers of a layer's keys, or values, in the cache */
    int32_t *tokens;          /* (max_seq_len): the first `length` are held */
    int32_t *encoded;         /* (max_seq_len): the ids of the last ml_session_encode */
    float *rope;              /* (max_seq_len, hd): see mli_rope_table */
    float *cache;             /* (L, 2, max_seq_len, kv_dim); none with mask full */
    float *logits;            /* (V) */
    ml_candidate *candidates; /* (V), for the sampler */
    mli_graph graph;
    mli_looking looking;
    ml_allocator allocator; /* of ml_session_new ... */
    void *block;            /* ... and what it returned; NULL after ml_session_init */
} mli_session;

static size_t mli_kv_dim(const mli_session *s) {
    return (size_t)mli_extent_of(&s->shown.model->config, MLI_KV_DIM);
}

/* ---- the plan of a session: defaults, scratch, layout ---- */

static ml_result mli_lora_check(const ml_model *model, const ml_lora *lora,
                                ml_error *error); /* in >>adapters */

#define MLI_MAX_TOKENS (1 << 24) /* in a context or a pass */

/* Fills in the defaults of a description and checks the result. */
static ml_result mli_session_defaults(const ml_model *model, const ml_session_desc *desc, mli_session *s,
                                      ml_error *error) {
    const ml_config *c = &model->config;
    size_t widest = (size_t)MLI_MAX(c->dim, MLI_MAX(c->hidden_dim, c->vocab_size));
    int seq = desc->max_seq_len ? desc->max_seq_len : c->max_seq_len;
    int batch = desc->max_batch ? desc->max_batch : MLI_MIN(seq, 256), is_full = c->mask == ML_MASK_FULL;
    if (is_full && batch > 0) batch = MLI_MAX(batch, seq); /* one pass for all */
    if (seq < 1 || seq > MLI_MAX_TOKENS)
        return mli_fail(error, ML_ERROR_ARGUMENT, "session: max_seq_len is %d, not in 1 to %d", seq,
                        MLI_MAX_TOKENS);
    if (batch < 1 || batch > MLI_MAX_TOKENS || (size_t)batch > SIZE_MAX / 64 / widest)
        return mli_fail(error, ML_ERROR_ARGUMENT, "session: max_batch is %d", batch);
    memset(s, 0, sizeof *s);
    s->shown.model = model;
    s->shown.max_seq_len = seq;
    s->shown.max_batch = batch;
    s->is_full = is_full;
    s->threads = desc->threads;
    s->lora = desc->lora;
    s->looking.look = desc->look;
    ml_result result = mli_check_threads(&s->threads, "session", error);
    return s->lora && !result ? mli_lora_check(model, s->lora, error) : result;
}

/* A pass over rows of the session's. */
static mli_pass mli_session_pass_over(mli_session *s, const mli_rows *rows) {
    mli_pass pass = mli_pass_over(s->shown.model, s->lora, rows);
    pass.rope = s->rope;
    pass.looking = s->looking.look.on_layer ? &s->looking : NULL;
    return pass;
}

/* Runs the network without memory, to learn how much scratch the largest pass takes: the longest row, after the
   longest past. A sequence's token ids, and the encoding of 4 bytes of text for each, must fit the same scratch. */
static void mli_session_measure(mli_session *s) {
    const ml_session *shown = &s->shown;
    int longest = MLI_MIN(shown->max_batch, shown->max_seq_len);
    size_t length = (size_t)shown->max_seq_len, ids = length * sizeof *s->tokens;
    mli_rows rows;
    mli_one_row(&rows, longest, s->is_full ? 0 : shown->max_seq_len - longest);
    mli_pass pass = mli_session_pass_over(s, &rows);
    pass.n_tokens = shown->max_batch;
    s->graph.threads = &s->threads;
    ml_tensor hidden = mli_network(&s->graph, &pass);
    if (mli_has_output(shown->model))
        mli_output(&s->graph, shown->model, hidden, rows.start, shown->max_batch, NULL);
    size_t text = shown->model->tokenizer ? ml_tokenizer_encode_size(length * 4) : 0;
    if (!mli_add_size(ids, text, &ids)) ids = SIZE_MAX;
    s->graph.size = MLI_MAX(s->graph.peak, ids);
}

/* Places the session's arrays after it in `memory`, or with NULL only counts; the bytes, SIZE_MAX on overflow. */
static size_t mli_session_layout(mli_session *s, unsigned char *memory) {
    const ml_config *c = &s->shown.model->config;
    size_t used = 0, length = (size_t)s->shown.max_seq_len, vocab = (size_t)c->vocab_size;
    size_t n_halves = s->is_full ? 0 : 2 * (size_t)c->n_layers, hd = (size_t)(c->dim / c->n_heads);
    size_t kv_dim = mli_kv_dim(s);
    s->half = length * kv_dim; /* if it overflowed, so would the cache below */
    mli_carve(memory, &used, 1, sizeof *s);
    s->tokens = (int32_t *)mli_carve(memory, &used, length, sizeof *s->tokens);
    s->encoded = (int32_t *)mli_carve(memory, &used, length, sizeof *s->encoded);
    s->rope = (float *)mli_carve(memory, &used, length, hd * sizeof *s->rope);
    s->logits = (float *)mli_carve(memory, &used, vocab, sizeof *s->logits);
    s->candidates = (ml_candidate *)mli_carve(memory, &used, vocab, sizeof *s->candidates);
    s->graph.memory = (unsigned char *)mli_carve(memory, &used, s->graph.size, 1);
    s->graph.work = mli_carve(memory, &used, s->graph.work_size, 1);
    s->cache = (float *)mli_carve(memory, &used, length, kv_dim * n_halves * sizeof *s->cache);
    return used;
}

/* All that is known of a session before it has memory, and the bytes that it needs in a buffer of any alignment. */
static ml_result mli_session_plan(const ml_model *model, const ml_session_desc *desc, mli_session *s,
                                  size_t *size, ml_error *error) {
    static const ml_session_desc defaults = {0, 0, NULL, {0, NULL, NULL}, {NULL, NULL, NULL}, {NULL, NULL}};
    if (!model || !size) return mli_null(error, "session");
    ml_result result = mli_session_defaults(model, desc ? desc : &defaults, s, error);
    if (result) return result;
    mli_session_measure(s);
    if (mli_add_size(mli_session_layout(s, NULL), MLI_ALIGN, size)) return mli_ok(error);
    return mli_fail(error, ML_ERROR_MEMORY, "this session takes more memory than can be addressed");
}

ML_DEF ml_result ml_session_size(const ml_model *model, const ml_session_desc *desc, size_t *size,
                                 ml_error *error) {
    mli_session plan;
    if (size) *size = 0;
    return mli_session_plan(model, desc, &plan, size, error);
}

ML_DEF ml_result ml_session_init(const ml_model *model, const ml_session_desc *desc, void *memory,
                                 size_t size, ml_session **session, ml_error *error) {
    mli_session plan;
    size_t need = 0;
    if (session) *session = NULL;
    if (!memory || !session) return mli_null(error, "ml_session_init");
    ml_result result = mli_session_plan(model, desc, &plan, &need, error);
    if (result) return result;
    unsigned char *base = mli_place(memory, size, need, "ml_session_size", error);
    if (!base) return ML_ERROR_MEMORY;
    mli_session *s = (mli_session *)(void *)base;
    *s = plan;
    s->graph.threads = &s->threads;
    mli_session_layout(s, base);
    mli_rope_table(s->rope, s->shown.max_seq_len, &model->config);
    s->shown.tokens = s->tokens;
    s->shown.private_part = s;
    *session = &s->shown;
    return ML_OK;
}

ML_DEF ml_result ml_session_new(const ml_model *model, const ml_session_desc *desc, ml_session **session,
                                ml_error *error) {
    if (!session) return mli_null(error, "ml_session_new");
    *session = NULL;
    ml_allocator allocator;
    size_t size;
    ml_result result = mli_resolve_allocator(desc ? &desc->allocator : NULL, &allocator, error);
    if (!result) result = ml_session_size(model, desc, &size, error);
    if (result) return result;
    void *memory = allocator.alloc(size, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a session of %z bytes", size);
    result = ml_session_init(model, desc, memory, size, session, error);
    ML_ASSERT(!result); /* the plan succeeded, and the buffer has its size */
    (*session)->private_part->allocator = allocator;
    (*session)->private_part->block = memory;
    return result;
}

ML_DEF void ml_session_free(ml_session *session) {
    if (!session || !session->private_part->block) return;
    ml_allocator allocator = session->private_part->allocator;
    mli_free(&allocator, session->private_part->block);
}

/* ---- reading tokens ---- */

static ml_result mli_check_tokens(const ml_model *model, const int32_t *tokens, int n, ml_error *error) {
    for (int i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= model->config.vocab_size)
            return mli_fail(error, ML_ERROR_ARGUMENT, "token %d is %d, outside the vocabulary of %d", i,
                            (int)tokens[i], model->config.vocab_size);
    return ML_OK;
}

/* Whether n more tokens fit when `used` are held. */
static ml_result mli_check_fit(const mli_session *s, int used, int n, ml_error *error) {
    int most = s->shown.max_seq_len;
    if (used <= most && n <= most - used) return ML_OK;
    return mli_fail(error, ML_ERROR_CONTEXT, "%d tokens do not fit a context of %d, of which %d are used", n,
                    most, used);
}

/* Runs tokens begin .. end - 1 of the session through the network -> (end - begin, D). What precedes them is in the
   cache; with mask full begin is 0. */
static ml_tensor mli_session_pass(mli_session *s, int begin, int end) {
    mli_kv kv = {s->cache + (size_t)begin * mli_kv_dim(s), s->half};
    mli_rows rows;
    mli_one_row(&rows, end - begin, begin);
    mli_pass pass = mli_session_pass_over(s, &rows);
    pass.tokens = s->tokens + begin, pass.n_tokens = end - begin;
    pass.kv = s->is_full ? NULL : &kv;
    mli_release(&s->graph, 0);
    return mli_network(&s->graph, &pass);
}

/* logits (n, V) of rows begin .. begin + n - 1 of the hidden states */
static void mli_session_logits(mli_session *s, ml_tensor hidden, size_t begin, size_t n, float *logits) {
    hidden.data = mli_row(hidden, begin);
    hidden.rows = n;
    mli_output(&s->graph, s->shown.model, hidden, NULL, 0, logits);
}

static ml_result mli_check_select(const ml_outputs *out, int n_tokens, int most, ml_error *error) {
    int n = out->select ? out->n_select : 1;
    if (n < 1 || n > most)
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: n_select is %d, not in 1 to %d", n, most);
    for (int i = 0; out->select && i < n; i++)
        if (out->select[i] < 0 || out->select[i] >= n_tokens)
            return mli_fail(error, ML_ERROR_ARGUMENT, "batch: select %d is %d, outside its %d tokens", i,
                            (int)out->select[i], n_tokens);
    return ML_OK;
}

/* What is wanted of a pass: its rows from `first` on are the new tokens number `done`, done + 1, ... */
static void mli_pass_outputs(mli_session *s, ml_tensor hidden, int first, int done, const ml_outputs *out) {
    size_t vocab = (size_t)s->shown.model->config.vocab_size, begin = (size_t)first, n = hidden.rows - begin;
    float *states = out->hidden ? out->hidden + (size_t)done * hidden.cols : NULL;
    if (states) memcpy(states, mli_row(hidden, begin), n * hidden.cols * sizeof *states);
    if (out->logits && !out->select)
        mli_session_logits(s, hidden, begin, n, out->logits + (size_t)done * vocab);
    for (int i = 0; out->logits && out->select && i < out->n_select; i++) {
        int at = (int)out->select[i] - done;
        if (at >= 0 && (size_t)at < n)
            mli_session_logits(s, hidden, begin + (size_t)at, 1, out->logits + (size_t)i * vocab);
    }
}

ML_DEF ml_result ml_session_eval_outputs(ml_session *session, const int32_t *tokens, int n,
                                         const ml_outputs *out, ml_error *error) {
    if (!session || !tokens || n < 1 || !out)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_eval: nothing to evaluate");
    mli_session *s = session->private_part;
    ml_result result = mli_check_tokens(session->model, tokens, n, error);
    if (!result && out->logits) result = mli_check_output(session->model, error);
    if (!result) result = mli_check_fit(s, session->length, n, error);
    if (!result) result = mli_check_select(out, n, session->max_seq_len, error);
    if (result) return result;
    int held = session->length, total = held + n;
    memmove(s->tokens + held, tokens, (size_t)n * sizeof *tokens);
    for (int end, begin = s->is_full ? 0 : held; begin < total; begin = end) {
        end = MLI_MIN(total, begin + session->max_batch);
        ml_tensor hidden = mli_session_pass(s, begin, end);
        int first = MLI_MAX(begin, held);
        mli_pass_outputs(s, hidden, first - begin, first - held, out);
    }
    session->length = total;
    return mli_ok(error);
}

ML_DEF ml_result ml_session_eval(ml_session *session, const int32_t *tokens, int n, const float **logits,
                                 ml_error *error) {
    const int32_t last = n - 1;
    ml_outputs out = {&last, 1, NULL, logits && session ? session->private_part->logits : NULL};
    if (logits) *logits = NULL;
    ml_result result = ml_session_eval_outputs(session, tokens, n, &out, error);
    if (logits && !result) *logits = out.logits;
    return result;
}

ML_DEF ml_result ml_session_lens(ml_session *session, const float *stream, int n, float *logits,
                                 ml_error *error) {
    if (!session || !stream || !logits) return mli_null(error, "ml_session_lens");
    mli_session *s = session->private_part;
    if (n < 1 || n > session->max_batch)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_lens: n is %d, not in 1 to %d", n,
                        session->max_batch);
    ml_result result = mli_check_output(session->model, error);
    if (result) return result;
    mli_pass pass = mli_session_pass_over(s, NULL);
    size_t mark = s->graph.used; /* someone may be looking at what is below */
    ml_tensor x = mli_tensor_at((float *)(uintptr_t)stream, (size_t)n, (size_t)session->model->config.dim);
    mli_output(&s->graph, session->model, mli_norm_of(&s->graph, &pass, MLI_OUTPUT_NORM, 0, x), NULL, 0,
               logits);
    mli_release(&s->graph, mark);
    return mli_ok(error);
}

ML_DEF ml_result ml_session_truncate(ml_session *session, int length, ml_error *error) {
    if (!session || length < 0 || length > session->length)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_truncate: cannot keep %d of %d tokens", length,
                        session ? session->length : 0);
    session->length = length;
    return mli_ok(error);
}

/* How many tokens at the beginning are the same, at most `most`. */
static int mli_common_prefix(const int32_t *a, const int32_t *b, int most) {
    int n = 0;
    while (n < most && a[n] == b[n]) n++;
    return n;
}

ML_DEF ml_result ml_session_keep_prefix(ml_session *session, const ml_tokens *tokens, int *kept,
                                        ml_error *error) {
    if (kept) *kept = 0;
    if (!session || !tokens || tokens->n < 0 || (!tokens->ids && tokens->n))
        return mli_null(error, "ml_session_keep_prefix");
    int most = MLI_MIN(session->length, tokens->n - 1);
    session->length = mli_common_prefix(session->tokens, tokens->ids, most);
    if (kept) *kept = session->length;
    return mli_ok(error);
}

ML_DEF ml_result ml_session_copy(ml_session *session, const ml_session *from, ml_error *error) {
    if (!session || !from) return mli_null(error, "ml_session_copy");
    mli_session *s = session->private_part, *f = from->private_part;
    if (session->model != from->model || s->lora != f->lora)
        return mli_fail(error, ML_ERROR_MISMATCH, "ml_session_copy: the sessions differ in model or adapter");
    ml_result result = mli_check_fit(s, 0, from->length, error);
    if (result) return result;
    int n_halves = s->is_full ? 0 : 2 * session->model->config.n_layers;
    int kept = mli_common_prefix(s->tokens, f->tokens, MLI_MIN(session->length, from->length));
    size_t begin = (size_t)kept, n = (size_t)from->length - begin, kv_dim = mli_kv_dim(s);
    if (n) memcpy(s->tokens + begin, f->tokens + begin, n * sizeof *s->tokens);
    for (int i = 0; n && i < n_halves; i++) {
        const float *rows = f->cache + (size_t)i * f->half + begin * kv_dim;
        memcpy(s->cache + (size_t)i * s->half + begin * kv_dim, rows, n * kv_dim * sizeof *rows);
    }
    session->length = from->length;
    return mli_ok(error);
}

/* ---- a batch, which does not change the sequence ---- */

/* What a session or a trainer takes at once; the names are for messages. */
typedef struct mli_batch_limits {
    const char *whose, *row_name;
    int tokens, rows, row;
} mli_batch_limits;

/* Checks a batch, and describes its rows. */
static ml_result mli_check_batch(const ml_model *model, const ml_batch *b, const mli_batch_limits *most,
                                 mli_rows *rows, ml_error *error) {
    mli_one_row(rows, b->n_tokens, 0);
    if (b->row_start) {
        rows->start = b->row_start;
        rows->n_rows = b->n_rows;
    }
    int n_rows = rows->n_rows;
    if (!b->tokens) return mli_fail(error, ML_ERROR_ARGUMENT, "batch: tokens is NULL");
    if (b->n_tokens < 1 || b->n_tokens > most->tokens || n_rows < 1 || n_rows > most->rows)
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: %d tokens in %d rows; the %s is for up to %d in %d",
                        b->n_tokens, n_rows, most->whose, most->tokens, most->rows);
    if (rows->start[0] != 0 || rows->start[n_rows] != b->n_tokens)
        return mli_fail(error, ML_ERROR_ARGUMENT, "batch: row_start does not run from 0 to n_tokens");
    for (int r = 0; r < n_rows; r++) {
        int begin = (int)rows->start[r], end = (int)rows->start[r + 1];
        if (begin < 0 || end <= begin || end > b->n_tokens)
            return mli_fail(error, ML_ERROR_ARGUMENT, "batch: row %d is empty or runs backwards", r);
        if (end - begin > most->row)
            return mli_fail(error, ML_ERROR_CONTEXT, "batch: row %d has %d tokens; the %s's %s is %d", r,
                            end - begin, most->whose, most->row_name, most->row);
    }
    return mli_check_tokens(model, b->tokens, b->n_tokens, error);
}

/* Checks a batch and computes its final hidden states (n_tokens, D), which stay on the session's graph until the next
   pass. */
static ml_result mli_session_hidden(mli_session *s, const ml_batch *batch, ml_tensor *hidden, mli_rows *rows,
                                    ml_error *error) {
    int most = s->shown.max_batch;
    mli_batch_limits limits = {"session", "max_seq_len", most, most, s->shown.max_seq_len};
    ml_result result = mli_check_batch(s->shown.model, batch, &limits, rows, error);
    if (result) return result;
    mli_release(&s->graph, 0);
    mli_pass pass = mli_session_pass_over(s, rows);
    pass.tokens = batch->tokens, pass.n_tokens = batch->n_tokens;
    *hidden = mli_network(&s->graph, &pass);
    return ML_OK;
}

ML_DEF ml_result ml_session_eval_batch(ml_session *session, const ml_batch *batch, const ml_outputs *out,
                                       ml_error *error) {
    if (!session || !batch || !batch->tokens || !out) return mli_null(error, "ml_session_eval_batch");
    mli_session *s = session->private_part;
    ml_tensor hidden;
    mli_rows rows;
    ml_result result = mli_check_select(out, batch->n_tokens, session->max_batch, error);
    if (!result && out->logits) result = mli_check_output(session->model, error);
    if (!result) result = mli_session_hidden(s, batch, &hidden, &rows, error);
    if (result) return result;
    if (out->hidden) memcpy(out->hidden, hidden.data, mli_numbers(&hidden) * sizeof *out->hidden);
    if (out->logits) mli_output(&s->graph, session->model, hidden, out->select, out->n_select, out->logits);
    return mli_ok(error);
}

static int mli_is_pooling(ml_pooling pooling) {
    return pooling == ML_POOL_LAST || pooling == ML_POOL_MEAN || pooling == ML_POOL_MAX;
}

/* out (D) = the last of rows begin .. end - 1 of x (n, D), their mean, or the largest number of each column */
static void mli_pool_row(float *out, ml_tensor x, size_t begin, size_t end, ml_pooling pooling) {
    if (pooling == ML_POOL_LAST) begin = end - 1;
    memcpy(out, mli_row(x, begin), x.cols * sizeof *out);
    if (pooling == ML_POOL_MAX) {
        for (size_t i = begin + 1; i < end; i++)
            for (size_t j = 0; j < x.cols; j++) out[j] = MLI_MAX(out[j], mli_row(x, i)[j]);
        return;
    }
    for (size_t i = begin + 1; i < end; i++) mli_add(out, mli_row(x, i), x.cols);
    mli_scale(out, 1.0f / (float)(end - begin), x.cols);
}

ML_DEF ml_result ml_session_embed(ml_session *session, const ml_batch *batch, const ml_embed_desc *desc,
                                  float *embeddings, ml_error *error) {
    ml_embed_desc how = {ML_POOL_LAST, 0};
    if (desc) how = *desc;
    if (!session || !batch || !batch->tokens || !embeddings) return mli_null(error, "ml_session_embed");
    if (!mli_is_pooling(how.pooling))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_embed: pooling is not one of its names");
    ml_tensor x;
    mli_rows rows;
    ml_result result = mli_session_hidden(session->private_part, batch, &x, &rows, error);
    for (int r = 0; !result && r < rows.n_rows; r++) {
        float *row = embeddings + (size_t)r * x.cols;
        mli_pool_row(row, x, mli_row_start(&rows, r), mli_row_start(&rows, r + 1), how.pooling);
        float length = sqrtf(mli_dot(row, row, x.cols));
        if (how.normalize && length > 0) mli_scale(row, 1.0f / length, x.cols);
        if (mli_find_beyond(row, x.cols, MLI_INFINITY_BITS) < x.cols)
            result = mli_fail(error, ML_ERROR_NUMBER, "ml_session_embed: row %d is not finite", r);
    }
    return result ? result : mli_ok(error);
}

/* ---- text ---- */

/* Encodes the concatenation of `text` and `more` into the session's scratch, from byte `at` on. */
static ml_result mli_session_ids(mli_session *s, size_t at, const char *text, const char *more, int flags,
                                 ml_tokens *tokens, ml_error *error) {
    const ml_tokenizer *tokenizer = s->shown.model->tokenizer;
    size_t n = strlen(text), n_bytes = n + strlen(more), size = ml_tokenizer_encode_size(n_bytes);
    if (!tokenizer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "the model has no tokenizer: load one, or give ids");
    if (size > s->graph.size - at)
        return mli_fail(error, ML_ERROR_CONTEXT, "a text of %z bytes is too long for a context of %d tokens",
                        n_bytes, s->shown.max_seq_len);
    char *work = (char *)s->graph.memory + at,
         *joined = work + size - n_bytes; /* the encoder normalizes it in place */
    memcpy(joined, text, n);
    memcpy(joined + n, more, n_bytes - n);
    ml_encode_desc how = {joined, n_bytes, flags, work, size};
    ml_result result = ml_tokenizer_encode(tokenizer, &how, tokens, error);
    return result ? result : mli_check_fit(s, 0, tokens->n, error);
}

ML_DEF ml_result ml_session_encode(ml_session *session, const char *text, int flags, ml_tokens *tokens,
                                   ml_error *error) {
    const ml_tokens none = {NULL, 0};
    if (tokens) *tokens = none;
    if (!session || !text || !tokens) return mli_null(error, "ml_session_encode");
    mli_session *s = session->private_part;
    ml_result result = mli_session_ids(s, 0, text, "", flags, tokens, error);
    if (result) tokens->n = 0;
    memcpy(s->encoded, s->graph.memory, (size_t)tokens->n * sizeof *s->encoded);
    tokens->ids = s->encoded;
    return result;
}

/* ---- likelihood: log p(continuation | context) = sum of log softmax(logits before token t)[token t] ---- */

/* What is put around a text that is to be continued: the tokenizer's bos, but never its eos, which would end it. */
static int mli_prompt_flags(const mli_session *s) {
    const ml_tokenizer *tokenizer = s->shown.model->tokenizer;
    return tokenizer && tokenizer->adds_bos ? ML_ADD_BOS : 0;
}

/* Puts the ids of context and continuation into the scratch. A text's continuation begins where the ids first differ
   from those of the context alone: if a piece crosses the boundary, it is scored, too. */
static ml_result mli_likelihood_ids(mli_session *s, const ml_likelihood_desc *desc, ml_tokens *all,
                                    int *n_context, ml_error *error) {
    const ml_tokens *a = &desc->context_ids, *b = &desc->continuation_ids;
    if (desc->continuation) {
        const char *context = desc->context ? desc->context : "";
        int flags = mli_prompt_flags(s);
        ml_tokens before = {NULL, 0};
        ml_result result = mli_session_ids(s, 0, context, desc->continuation, flags, all, error);
        size_t end = (size_t)all->n * sizeof *all->ids;
        if (!result) result = mli_session_ids(s, end, context, "", flags, &before, error);
        if (!result) *n_context = mli_common_prefix(all->ids, before.ids, MLI_MIN(all->n, before.n));
        if (result || *n_context) return result;
        return mli_fail(error, ML_ERROR_ARGUMENT, "nothing to predict from: %s, and no bos is put in front",
                        before.n ? "the continuation changes the context's first token" : "an empty context");
    }
    if (!a->ids || a->n < 1 || (!b->ids && b->n) || b->n < 0)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "ml_session_likelihood: no continuation, or no context of at least one id (bos)");
    ml_result result = mli_check_fit(s, 0, a->n, error);
    if (!result) result = mli_check_fit(s, a->n, b->n, error);
    if (result) return result;
    int32_t *ids = (int32_t *)(void *)s->graph.memory;
    memcpy(ids, a->ids, (size_t)a->n * sizeof *ids);
    if (b->n) memcpy(ids + a->n, b->ids, (size_t)b->n * sizeof *ids);
    all->ids = ids;
    all->n = a->n + b->n;
    *n_context = a->n;
    return mli_check_tokens(s->shown.model, ids, all->n, error);
}

/* log_probs (n), unless NULL, = log softmax(logits)[target] of rows begin .. begin + n - 1 of the hidden states;
   returns their sum. Computes as many rows of logits at a time as the scratch still has room for. */
static double mli_score_rows(mli_session *s, ml_tensor hidden, size_t begin, size_t n, const int32_t *targets,
                             float *log_probs) {
    size_t vocab = (size_t)s->shown.model->config.vocab_size, mark = s->graph.used;
    size_t room = s->graph.size - mark, most = MLI_MAX(room, MLI_ALIGN) - MLI_ALIGN;
    float *logits = s->logits;
    double sum = 0;
    most = MLI_MIN(most / (vocab * sizeof *logits), n);
    if (most) logits = (float *)mli_graph_alloc(&s->graph, most * vocab, sizeof *logits);
    for (size_t step, i = 0; i < n; i += step) {
        step = MLI_MIN(MLI_MAX(most, 1), n - i);
        mli_session_logits(s, hidden, begin + i, step, logits);
        for (size_t j = 0; j < step; j++) {
            float *row = logits + j * vocab;
            float log_p = row[targets[i + j]];
            log_p -= mli_softmax(row, vocab);
            if (log_probs) log_probs[i + j] = log_p;
            sum += (double)log_p;
        }
    }
    mli_release(&s->graph, mark);
    return sum;
}

/* Reads tokens kept .. total - 1 of the session and scores those from n_context on. With mask full a token is scored
   as ml_session_eval would predict it: by a pass over what precedes it, and nothing that follows. */
static double mli_score(mli_session *s, int kept, int n_context, int total, float *log_probs) {
    int full = s->is_full, end = full ? n_context - 1 : kept;
    double sum = 0;
    while (end < total - full) {
        int begin = full ? 0 : end, first = full ? end : MLI_MAX(begin, n_context - 1);
        end = full ? end + 1 : MLI_MIN(total, end + s->shown.max_batch);
        ml_tensor hidden = mli_session_pass(s, begin, end);
        int n = MLI_MIN(end, total - 1) - first; /* row `first` predicts token first + 1 */
        if (n > 0)
            sum += mli_score_rows(s, hidden, (size_t)(first - begin), (size_t)n, s->tokens + first + 1,
                                  log_probs ? log_probs + (first + 1 - n_context) : NULL);
    }
    return sum;
}

ML_DEF ml_result ml_session_likelihood(ml_session *session, const ml_likelihood_desc *desc,
                                       ml_likelihood *likelihood, ml_error *error) {
    const ml_likelihood nothing = {0, 0};
    if (likelihood) *likelihood = nothing;
    if (!session || !desc || !likelihood) return mli_null(error, "ml_session_likelihood");
    mli_session *s = session->private_part;
    ml_tokens all = {NULL, 0};
    int n_context = 0;
    ml_result result = mli_check_output(session->model, error);
    if (!result) result = mli_likelihood_ids(s, desc, &all, &n_context, error);
    if (result) return result;
    int n_scored = all.n - n_context;
    if (desc->log_probs && n_scored > desc->max_log_probs)
        return mli_fail(error, ML_ERROR_MEMORY, "%d tokens to score, and room for %d log_probs", n_scored,
                        desc->max_log_probs);
    /* what the session holds of it need not be read again, as in scoring several continuations of one context */
    int kept = mli_common_prefix(s->tokens, all.ids, MLI_MIN(session->length, n_context - 1));
    memcpy(s->tokens, all.ids, (size_t)all.n * sizeof *s->tokens);
    session->length = all.n;
    likelihood->sum = mli_score(s, kept, n_context, all.n, desc->log_probs);
    likelihood->n_tokens = n_scored;
    if (mli_is_finite(likelihood->sum)) return mli_ok(error);
    return mli_fail(error, ML_ERROR_NUMBER, "ml_session_likelihood: the result is not finite");
}

/* ---- saving ---- */

/* What the saving and the restoring session must have in common (compared as bytes), and the length. */
typedef struct mli_saved_header {
    char magic[8];
    uint32_t version, cache_type, weights; /* of this layout; ml_type; see mli_hash_weights */
    ml_config config;
    int32_t length;
} mli_saved_header;

static uint32_t mli_hash(const unsigned char *bytes, size_t n); /* in >>tokenizer */

/* A hash of a part of each tensor, enough to tell models of one shape apart. */
static uint32_t mli_hash_weights(uint32_t hash, const ml_tensor *tensors, int n) {
    for (int i = 0; i < n; i++) {
        size_t row_bytes = ml_type_row_bytes(tensors[i].type, tensors[i].cols);
        const unsigned char *rows = (const unsigned char *)tensors[i].data;
        if (rows) hash = hash * 31 + mli_hash(rows + tensors[i].rows / 2 * row_bytes, MLI_MIN(row_bytes, 64));
    }
    return hash;
}

static mli_saved_header mli_header_of(const mli_session *s) {
    const ml_model *model = s->shown.model;
    uint32_t weights = mli_hash_weights(0, model->tensors, model->n_tensors);
    if (s->lora) {
        size_t bytes = (size_t)s->lora->n_tensors / 2 * sizeof *s->lora->scales;
        weights = mli_hash_weights(weights, s->lora->tensors, s->lora->n_tensors);
        weights = weights * 31 + mli_hash((const unsigned char *)s->lora->scales, bytes);
    }
    mli_saved_header header = {"mlsessn", 1, ML_F32, weights, model->config, s->shown.length};
    return header;
}

/* After the header follow the tokens, then the first `length` keys and values of each layer. Copies them into or from
   a saved session where that is not NULL; returns how many bytes it has, with its header. */
static size_t mli_copy_saved(const mli_session *s, int length, unsigned char *into,
                             const unsigned char *from) {
    int n_halves = s->is_full ? 0 : 2 * s->shown.model->config.n_layers;
    size_t n = (size_t)length * sizeof *s->tokens, at = sizeof(mli_saved_header);
    for (int i = -1; i < n_halves; i++) {
        void *held = i < 0 ? (void *)s->tokens : (void *)(s->cache + (size_t)i * s->half);
        if (into) memcpy(into + at, held, n);
        if (from) memcpy(held, from + at, n);
        at += n;
        n = (size_t)length * mli_kv_dim(s) * sizeof *s->cache;
    }
    return at;
}

ML_DEF size_t ml_session_save_size(const ml_session *session) {
    return session ? mli_copy_saved(session->private_part, session->length, NULL, NULL) : 0;
}

ML_DEF ml_result ml_session_save(const ml_session *session, void *memory, size_t size, ml_error *error) {
    size_t need = ml_session_save_size(session);
    if (!session || !memory) return mli_null(error, "ml_session_save");
    if (size < need)
        return mli_fail(error, ML_ERROR_MEMORY, "%z bytes are fewer than the %z of ml_session_save_size",
                        size, need);
    mli_saved_header header = mli_header_of(session->private_part);
    memcpy(memory, &header, sizeof header);
    mli_copy_saved(session->private_part, session->length, (unsigned char *)memory, NULL);
    return mli_ok(error);
}

/* Checks everything before the session is changed; the bytes may be anything. */
static ml_result mli_check_saved(const mli_session *s, const unsigned char *bytes, size_t size, int *length,
                                 ml_error *error) {
    mli_saved_header saved, here = mli_header_of(s);
    if (size < sizeof saved || memcmp(bytes, here.magic, sizeof here.magic) != 0)
        return mli_fail(error, ML_ERROR_FORMAT, "these %z bytes are not a saved session", size);
    memcpy(&saved, bytes, sizeof saved);
    here.length = saved.length;
    if (memcmp(&saved, &here, sizeof saved) != 0)
        return mli_fail(error, ML_ERROR_MISMATCH, "the session was saved over another model or adapter");
    *length = (int)saved.length;
    if (*length < 0 || *length > s->shown.max_seq_len)
        return mli_fail(error, ML_ERROR_CONTEXT, "the saved session has %d tokens; the context holds %d",
                        *length, s->shown.max_seq_len);
    size_t expected = mli_copy_saved(s, *length, NULL, NULL);
    if (size != expected)
        return mli_fail(error, ML_ERROR_TRUNCATED, "a saved session of %d tokens has %z bytes, not %z",
                        *length, expected, size);
    int32_t *ids = (int32_t *)(void *)s->graph.memory; /* the bytes are not aligned */
    memcpy(ids, bytes + sizeof saved, (size_t)*length * sizeof *ids);
    if (!mli_check_tokens(s->shown.model, ids, *length, error)) return ML_OK;
    if (error) error->code = ML_ERROR_FORMAT;
    return ML_ERROR_FORMAT;
}

ML_DEF ml_result ml_session_restore(ml_session *session, const void *memory, size_t size, ml_error *error) {
    if (!session || !memory) return mli_null(error, "ml_session_restore");
    mli_session *s = session->private_part;
    const unsigned char *bytes = (const unsigned char *)memory;
    int length = 0;
    ml_result result = mli_check_saved(s, bytes, size, &length, error);
    if (result) return result;
    mli_copy_saved(s, length, NULL, bytes);
    session->length = length;
    return mli_ok(error);
}

/* ==== >>heads ====
   What is above the network: a head, which is one more linear layer, logits (C) = W h + b, and the loss, which
   compares softmax(logits) with the right answer. A language model reads the hidden state h (D) of every token, and
   its head is the output matrix, C = V. A classifier reads one state of each row of the batch: the last token's,
   which has seen the whole row, or the mean. In between, training may apply dropout. n: tokens or rows. */

/* ---- pooling: one hidden state for each row of the batch, or for each span of tokens ---- */

typedef struct mli_pool_op {
    ml_tensor x, out; /* (n, D), (n_rows or n_spans, D) */
    /* out_r is of rows begin[stride r] .. end[stride r] - 1 of x. These may overlap if x is apart from its gradient;
       otherwise each row of x is in one of them. */
    const int32_t *begin, *end;
    size_t stride;
    ml_pooling pooling;
} mli_pool_op;

static void mli_pool_rows(const void *record, size_t first, size_t last) {
    const mli_pool_op *op = (const mli_pool_op *)record;
    for (size_t r = first; r < last; r++) {
        size_t begin = (size_t)op->begin[op->stride * r], end = (size_t)op->end[op->stride * r];
        mli_pool_row(mli_row(op->out, r), op->x, begin, end, op->pooling);
    }
}

/* dx = dy for the first of the largest of rows [begin, end) in a column, and 0 for the others */
static void mli_pool_max_gradient(ml_tensor x, size_t begin, size_t end, size_t col, float dy) {
    size_t largest = begin;
    for (size_t i = begin; i < end; i++)
        if (mli_row(x, i)[col] > mli_row(x, largest)[col]) largest = i;
    for (size_t i = begin; i < end && mli_is_shared(x); i++) mli_grad_row(x, i)[col] = 0;
    mli_grad_row(x, largest)[col] += dy;
}

/* dx = dy for the last of rows [begin, end) and 0 for the others, or dy / length for each of them; in columns of x */
static void mli_pool_gradient(const mli_pool_op *op, size_t r, size_t col, size_t n_cols) {
    size_t begin = (size_t)op->begin[op->stride * r], end = (size_t)op->end[op->stride * r];
    const float *dy = mli_grad_row(op->out, r) + col;
    if (op->pooling == ML_POOL_MAX) {
        for (size_t j = 0; j < n_cols; j++) mli_pool_max_gradient(op->x, begin, end, col + j, dy[j]);
        return;
    }
    for (size_t i = begin; i < end; i++) {
        float *dx = mli_grad_row(op->x, i) + col, share = i + 1 == end ? 1.0f : 0.0f;
        if (op->pooling == ML_POOL_MEAN) share = 1.0f / (float)(end - begin);
        if (mli_is_shared(op->x)) memset(dx, 0, n_cols * sizeof *dx);
        if (share > 0) mli_axpy(dx, share, dy, n_cols);
    }
}

/* Columns [begin, end) of all, because the rows of x that they are of may overlap. */
static void mli_pool_gradient_columns(const void *record, size_t begin, size_t end) {
    const mli_pool_op *op = (const mli_pool_op *)record;
    for (size_t r = 0; r < op->out.rows; r++) mli_pool_gradient(op, r, begin, end - begin);
}

static void mli_pool_backward(mli_graph *g, const void *record) {
    const mli_pool_op *op = (const mli_pool_op *)record;
    mli_for_rows(g, mli_pool_gradient_columns, op, op->x.cols, op->x.rows);
}

/* x (n, D) -> (n_rows, D) */
static ml_tensor mli_pool(mli_graph *g, ml_tensor x, const mli_rows *rows, ml_pooling pooling) {
    mli_pool_op op = {x, mli_new(g, (size_t)rows->n_rows, x.cols), rows->start, rows->start + 1, 1, pooling};
    mli_for_rows(g, mli_pool_rows, &op, op.out.rows, x.cols);
    mli_record(g, mli_pool_backward, &op, sizeof op);
    return op.out;
}

/* ---- dropout (Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting"): in
   training each number is set to 0 with probability p and otherwise divided by 1 - p, which keeps its mean. Whether
   it is set to 0 depends only on the seed and its position, so the backward pass need not be told: it does the same
   to the gradient. ---- */

typedef struct mli_dropout_op {
    ml_tensor x; /* in place */
    float p;
    uint64_t seed;
} mli_dropout_op;

/* Whether number i is set to 0. */
MLI_INLINE int mli_is_dropped(size_t i, float p, uint64_t seed) {
    uint64_t state = seed + i * 0x9e3779b97f4a7c15u;
    return mli_uniform_of(mli_splitmix64(&state)) < p;
}

static void mli_drop(float *x, size_t n, float p, uint64_t seed) {
    for (size_t i = 0; i < n; i++) x[i] = mli_is_dropped(i, p, seed) ? 0.0f : x[i] / (1.0f - p);
}

static void mli_dropout_backward(mli_graph *g, const void *record) {
    const mli_dropout_op *op = (const mli_dropout_op *)record;
    (void)g;
    mli_drop(op->x.grad, mli_numbers(&op->x), op->p, op->seed);
}

/* x, in place; with p 0 nothing is done */
MLI_OPTIONAL void mli_dropout(mli_graph *g, ml_tensor x, float p, uint64_t seed) {
    mli_dropout_op op = {x, p, seed};
    if (!(p > 0)) return;
    if (!mli_measuring(g)) mli_drop((float *)x.data, mli_numbers(&x), p, seed);
    mli_record(g, mli_dropout_backward, &op, sizeof op);
}

/* ---- cross-entropy, with or without the last linear layer ----

   logits (n, C) = h (n, D) W^T + b
   p = softmax(logits) (Bridle 1990, "Probabilistic Interpretation of Feedforward Classification Network Outputs")
   [plain_softmax, plain_cross_entropy]
   t = (1 - s) one-hot(target) + s / C, s: label smoothing (Szegedy et al. 2016, "Rethinking the Inception
       Architecture for Computer Vision")
   loss = sum of -t . log p / divisor, over the rows that have a target
   dlogits = (p - t) / divisor, and 0 in the other rows
   dW += dlogits^T h      db += sum of the rows of dlogits      dh = dlogits W, over h

   A language model's logits (n, V) would be larger than all its other activations together. So the layer and its loss
   are one operation, which holds the logits of MLI_LOSS_ROWS rows at a time; its backward pass computes them again. A
   trainer calls the backward pass alone, which reports the loss as well. Gradients have been added when the loss is
   known: if it is not finite, the caller sets all of them to 0. Without a layer, h is the logits. */

#define MLI_LOSS_ROWS 256 /* enough that reading W takes little of the time */

typedef struct mli_cross_entropy_op {
    ml_tensor h;            /* (n, D), or without a layer (n, C) */
    ml_tensor w, b;         /* (C, D), (1, C); w of no rows: no layer; b without data: there is none */
    const int32_t *targets; /* (n): 0 .. C-1, negative: not counted; NULL: none is */
    float divisor;
    float *log_probs; /* out (n, C): log p; NULL: not wanted */
    double *loss;     /* out; NULL: not wanted */
    float smoothing;
    const float *gradient; /* of the loss, a factor of all others; NULL: 1 */
} mli_cross_entropy_op;

/* The rows of h that are being computed. */
typedef struct mli_loss_chunk {
    const mli_cross_entropy_op *op;
    size_t first;     /* row of h */
    ml_tensor logits; /* (rows, C) */
    float *losses;    /* (rows): -t . log p */
    float unit;       /* the gradient of each of them */
    int backward;
} mli_loss_chunk;

/* t . logits */
static float mli_target_logit(const mli_cross_entropy_op *op, const float *logits, size_t n, int32_t target) {
    double sum = 0, smoothing = (double)op->smoothing;
    if (!(smoothing > 0)) return logits[target];
    for (size_t j = 0; j < n; j++) sum += (double)logits[j];
    return (float)((1 - smoothing) * (double)logits[target] + smoothing / (double)n * sum);
}

/* Row i of the chunk: its logits become p or, in the backward pass, dlogits. */
static void mli_loss_row(const mli_loss_chunk *chunk, size_t i) {
    const mli_cross_entropy_op *op = chunk->op;
    size_t n = chunk->logits.cols, row = chunk->first + i;
    float *logits = mli_row(chunk->logits, i), *log_probs = op->log_probs ? op->log_probs + row * n : NULL;
    int32_t target = op->targets ? op->targets[row] : -1;
    if (op->b.data) mli_add(logits, (const float *)op->b.data, n);
    float at = target >= 0 ? mli_target_logit(op, logits, n, target) : 0, log_sum = 0;
    if (log_probs) memcpy(log_probs, logits, n * sizeof *logits);
    if (target >= 0 || log_probs) log_sum = mli_softmax(logits, n); /* log p_j = logits_j - log_sum */
    for (size_t j = 0; log_probs && j < n; j++) log_probs[j] -= log_sum;
    chunk->losses[i] = target >= 0 ? log_sum - at : 0;
    if (!chunk->backward) return;
    if (target < 0) {
        memset(logits, 0, n * sizeof *logits);
        return;
    }
    mli_scale(logits, chunk->unit, n);
    logits[target] -= chunk->unit * (1.0f - op->smoothing);
    float share = chunk->unit * op->smoothing / (float)n;
    for (size_t j = 0; share != 0 && j < n; j++) logits[j] -= share;
}
static void mli_loss_rows(const void *job, size_t begin, size_t end) {
    for (; begin < end; begin++) mli_loss_row((const mli_loss_chunk *)job, begin);
}

/* dW and db while h is still there, then dh over it */
static void mli_loss_gradients(mli_graph *g, const mli_loss_chunk *chunk) {
    const mli_cross_entropy_op *op = chunk->op;
    size_t n = chunk->logits.rows, n_classes = chunk->logits.cols;
    const float *h = mli_row(op->h, chunk->first), *dlogits = (const float *)chunk->logits.data;
    if (op->w.grad) mli_weight_gradient(g, op->w.grad, dlogits, h, n, n_classes, op->h.cols);
    for (size_t i = 0; op->b.grad && i < n; i++) mli_add(op->b.grad, dlogits + i * n_classes, n_classes);
    if (!op->h.grad) return;
    float *dh = mli_grad_row(op->h, chunk->first);
    if (op->w.rows) {
        mli_input_gradient(g, dh, dlogits, op->w, n, !mli_is_shared(op->h));
    } else {
        if (mli_is_shared(op->h)) memset(dh, 0, n * n_classes * sizeof *dh);
        mli_add(dh, dlogits, n * n_classes);
    }
}

static void mli_loss_logits(mli_graph *g, const mli_loss_chunk *chunk) {
    const mli_cross_entropy_op *op = chunk->op;
    ml_tensor logits = chunk->logits;
    const float *h = mli_row(op->h, chunk->first);
    mli_linear_job job = {&op->w, (float *)logits.data};
    if (op->w.rows)
        mli_linear(g->threads, h, logits.rows, op->h.cols, &job, 1, g->work);
    else
        memcpy(logits.data, h, mli_numbers(&logits) * sizeof *h);
}

static void mli_run_cross_entropy(mli_graph *g, const mli_cross_entropy_op *op, int backward) {
    size_t mark = g->used, n = op->h.rows, most = MLI_MIN(n, MLI_LOSS_ROWS);
    size_t n_classes = op->w.rows ? op->w.rows : op->h.cols;
    float unit = (op->gradient ? *op->gradient : 1.0f) / op->divisor;
    mli_loss_chunk chunk = {op, 0, mli_new(g, most, n_classes), NULL, unit, backward};
    double sum = 0;
    chunk.losses = (float *)mli_graph_alloc(g, most, sizeof *chunk.losses);
    if (op->w.rows) mli_need_linear(g, most, op->h.cols, n_classes, 0);
    for (; chunk.first < n && !mli_measuring(g); chunk.first += most) {
        size_t rows = chunk.logits.rows = MLI_MIN(most, n - chunk.first);
        double chunk_sum = 0;
        mli_loss_logits(g, &chunk);
        mli_for_rows(g, mli_loss_rows, &chunk, rows, n_classes);
        for (size_t i = 0; i < rows; i++) chunk_sum += (double)chunk.losses[i];
        sum += chunk_sum;
        if (backward) mli_loss_gradients(g, &chunk);
    }
    if (op->loss) *op->loss = sum / (double)op->divisor;
    if (!backward && mli_taping(g)) g->recompute = MLI_MAX(g->recompute, g->used - mark); /* it is recorded */
    mli_release(g, mark);
}

/* Computes the loss, too: see above. */
MLI_OPTIONAL void mli_cross_entropy_backward(mli_graph *g, const void *record) {
    mli_run_cross_entropy(g, (const mli_cross_entropy_op *)record, 1);
}

MLI_OPTIONAL void mli_cross_entropy(mli_graph *g, const mli_cross_entropy_op *op) {
    mli_record(g, mli_cross_entropy_backward, op, sizeof *op);
    mli_run_cross_entropy(g, op, 0);
}

/* ---- heads ---- */

struct ml_head_private {
    ml_head shown;
    ml_allocator allocator;
};

/* What a head is made from, by ml_head_create and by a file. */
typedef struct mli_head_shape {
    size_t dim;                /* D */
    int n_classes, has_bias;   /* C */
    const char *const *labels; /* (C), copied; NULL: none */
    ml_pooling pooling;
} mli_head_shape;

/* Places a head, its numbers and its labels in one block; with memory NULL only counts its bytes. */
static size_t mli_head_layout(const mli_head_shape *shape, unsigned char *memory) {
    size_t used = 0, n = (size_t)shape->n_classes, n_labels = shape->labels ? n : 0, text_size = 0;
    for (size_t i = 0; i < n_labels; i++) text_size += strlen(shape->labels[i]) + 1;
    struct ml_head_private *own = (struct ml_head_private *)mli_carve(memory, &used, 1, sizeof *own);
    float *weight = (float *)mli_carve(memory, &used, n, shape->dim * sizeof *weight);
    float *bias = (float *)mli_carve(memory, &used, shape->has_bias ? n : 0, sizeof *bias);
    const char **labels = (const char **)mli_carve(memory, &used, n_labels, sizeof *labels);
    char *text = (char *)mli_carve(memory, &used, text_size, 1);
    if (!memory) return used;
    for (size_t i = 0; i < n_labels; text += strlen(text) + 1, i++)
        labels[i] = (const char *)memcpy(text, shape->labels[i], strlen(shape->labels[i]) + 1);
    ml_tensor w = mli_tensor_at(weight, n, shape->dim),
              b = mli_tensor_at(shape->has_bias ? bias : NULL, 1, n);
    ml_head head = {shape->n_classes, n_labels ? labels : NULL, shape->pooling, w, b, own};
    own->shown = head;
    return used;
}

/* A head of zeros. */
static ml_result mli_head_new(const mli_head_shape *shape, const ml_allocator *given, ml_head **head,
                              ml_error *error) {
    if (shape->n_classes < 2 || shape->n_classes > 1 << 16)
        return mli_fail(error, ML_ERROR_ARGUMENT, "head: %d classes, not 2 to %d", shape->n_classes, 1 << 16);
    if (!mli_is_pooling(shape->pooling))
        return mli_fail(error, ML_ERROR_ARGUMENT, "head: pooling is not one of its names");
    for (int i = 0; shape->labels && i < shape->n_classes; i++)
        if (!shape->labels[i]) return mli_fail(error, ML_ERROR_ARGUMENT, "head: label %d is NULL", i);
    ml_allocator allocator;
    ml_result result = mli_resolve_allocator(given, &allocator, error);
    if (result) return result;
    unsigned char *memory = (unsigned char *)mli_alloc(&allocator, 1, mli_head_layout(shape, NULL));
    if (!memory)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a head of %d classes", shape->n_classes);
    mli_head_layout(shape, memory);
    *head = (ml_head *)(void *)memory;
    (*head)->private_part->allocator = allocator;
    return ML_OK;
}

ML_DEF ml_result ml_head_create(const ml_model *model, const ml_head_create_desc *desc, ml_head **head,
                                ml_error *error) {
    if (head) *head = NULL;
    if (!model || !desc || !desc->random || !head)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_head_create: model, desc, desc.random or head is NULL");
    mli_head_shape shape = {(size_t)model->config.dim, desc->n_classes, !desc->no_bias, desc->labels,
                            desc->pooling};
    ml_result result = mli_head_new(&shape, &desc->allocator, head, error);
    if (result) return result;
    float reach = sqrtf((float)model->config.dim);
    float *weight = (float *)(*head)->weight.data, *bias = (float *)(*head)->bias.data;
    for (size_t i = 0; i < mli_numbers(&(*head)->weight); i++)
        weight[i] = (2 * ml_random_uniform(desc->random) - 1) / reach;
    for (int i = 0; bias && i < desc->n_classes; i++)
        bias[i] = (2 * ml_random_uniform(desc->random) - 1) / reach;
    return mli_ok(error);
}

ML_DEF void ml_head_free(ml_head *head) {
    if (head) mli_free(&head->private_part->allocator, head);
}

static ml_result mli_head_check(const ml_head *head, const ml_model *model, ml_error *error) {
    if (head->weight.cols == (size_t)model->config.dim) return ML_OK;
    return mli_fail(error, ML_ERROR_MISMATCH, "the head reads %z numbers, the model's dim is %d",
                    head->weight.cols, model->config.dim);
}

ML_DEF ml_result ml_head_eval(const ml_head *head, ml_session *session, const ml_batch *batch,
                              float *log_probs, ml_error *error) {
    if (!head || !session || !batch || !batch->tokens || !log_probs)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "ml_head_eval: head, session, batch, tokens or log_probs is NULL");
    mli_session *s = session->private_part;
    size_t dim = head->weight.cols, n_classes = head->weight.rows;
    ml_tensor hidden;
    mli_rows rows;
    ml_result result = mli_head_check(head, session->model, error);
    if (!result) result = mli_session_hidden(s, batch, &hidden, &rows, error);
    if (result) return result;
    /* The pooled states fit where the network had its queries, which were as many numbers as `hidden` has. */
    ml_tensor pooled = mli_pool(&s->graph, hidden, &rows, head->pooling);
    for (size_t r = 0; r < pooled.rows; r++, log_probs += n_classes) {
        mli_dots(log_probs, mli_row(pooled, r), (const float *)head->weight.data, dim, n_classes, dim);
        if (head->bias.data) mli_add(log_probs, (const float *)head->bias.data, n_classes);
        mli_log_softmax(log_probs, n_classes);
        if (mli_find_beyond(log_probs, n_classes, MLI_INFINITY_BITS) < n_classes)
            return mli_fail(error, ML_ERROR_NUMBER, "ml_head_eval: row %z has a result that is not finite",
                            r);
    }
    return mli_ok(error);
}

/* ==== >>operations ====
   The operations of the network, open to the caller, and more of them. All results have a gradient in memory of their
   own, so that any number of operations may read a value: each adds its part. The operations of the network that
   write a gradient over a value tell the two kinds apart by the addresses (mli_is_shared).

   A function here checks its operands (mli_accepts), makes the result (mli_result), computes it unless the graph only
   measures, and records itself if the result has a gradient, which it has if an operand has one. */

#ifndef ML_NO_TRAINING

/* A caller's graph. */
typedef struct mli_open_graph {
    ml_graph shown;
    mli_graph graph;
    unsigned char *block; /* graph.memory, which is NULL after an overflow */
    size_t room;          /* bytes of block: graph.size + graph.work_size */
    ml_error error;       /* of this pass */
    int dropping;         /* dropout drops: the pass tapes, or a gradient is being checked */
    const void *whole;    /* data of the loss whose gradient is already computed; NULL: there is none */
    ml_threads threads;
    ml_allocator allocator; /* of ml_graph_new ... */
    void *owned;            /* ... and what it returned */
} mli_open_graph;

/* What is left of the pass is only measured, and the pass ends with an error. */
static void mli_overflow(mli_graph *g) {
    g->memory = NULL;
    g->open->shown.measuring = 1;
}

/* All operations accept that there is no graph, and do nothing: ml_graph_new may have failed. */
static mli_graph *mli_graph_of(ml_graph *graph) { return graph ? graph->private_part : NULL; }
static int mli_failed(const ml_graph *graph) { return !graph || graph->result; }

ML_DEF ml_tensor ml_none(void) { return mli_tensor_at(NULL, 0, 0); }

/* Ends the pass with an error, unless it has one already. Returns what a failed operation returns. */
static ml_tensor mli_cannot(ml_graph *shown, ml_result result, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!mli_failed(shown)) {
        mli_open_graph *open = shown->private_part->open;
        shown->result = open->error.code = result;
        mli_format_v(open->error.text, sizeof open->error.text, format, args);
    }
    va_end(args);
    return ml_none();
}
static ml_tensor mli_cannot_fit(ml_graph *shown, const char *name, ml_tensor a, ml_tensor b) {
    return mli_cannot(shown, ML_ERROR_MISMATCH, "%s: shapes (%z, %z) and (%z, %z) do not fit", name, a.rows,
                      a.cols, b.rows, b.cols);
}

/* Whether a matrix can have this shape: it is not empty, and its size in bytes can be computed with. */
static int mli_is_shape(size_t rows, size_t cols) {
    size_t n = 0;
    return rows && cols && mli_mul_size(rows, cols, &n) && n <= SIZE_MAX / 2 / sizeof(float);
}

/* Whether x can be seen to be the result of a pass that is over: it is where this pass has not come to yet, or was
   only measured. */
static int mli_is_gone(const mli_open_graph *open, ml_tensor x) {
    uintptr_t at = (uintptr_t)x.data, begin = (uintptr_t)open->block;
    if (mli_measuring(&open->graph)) return 0;
    return (at >= begin + open->graph.used && at < begin + open->room) ||
           (at >= (uintptr_t)mli_unreal(0) && at <= (uintptr_t)mli_unreal(2));
}

/* Whether an operation may read x: an F32 activation or parameter, while nothing has failed. */
static int mli_accepts(ml_graph *shown, const char *name, ml_tensor x) {
    if (mli_failed(shown)) return 0;
    const mli_open_graph *open = shown->private_part->open;
    if (!x.data)
        mli_cannot(shown, ML_ERROR_ARGUMENT, "%s: an operand is left out", name);
    else if (!mli_is_shape(x.rows, x.cols))
        mli_cannot(shown, ML_ERROR_ARGUMENT, "%s: an operand has the shape (%z, %z)", name, x.rows, x.cols);
    else if (mli_is_gone(open, x))
        mli_cannot(shown, ML_ERROR_ARGUMENT, "%s: an operand is the result of an earlier pass", name);
    else if (x.type != ML_F32)
        mli_cannot(shown, ML_ERROR_ARGUMENT, "%s: an operand is %s, not F32", name, ml_type_name(x.type));
    else if (x.data == open->whole)
        mli_cannot(shown, ML_ERROR_ARGUMENT, "%s: an operand is the loss that was said to be the whole",
                   name);
    return !shown->result;
}

/* The same for a matrix that is only read when it has no gradient: then it may have any type of weights. */
static int mli_accepts_weight(ml_graph *graph, const char *name, ml_tensor w) {
    int is_weight = mli_type(w.type)->quantize && ml_type_row_bytes(w.type, w.cols);
    if (w.data && !w.grad && is_weight) w.type = ML_F32;
    return mli_accepts(graph, name, w);
}

/* Whether each index is that of one of `rows` rows. Indices are not read while a graph measures. */
static int mli_accepts_index(ml_graph *graph, const char *name, const int32_t *index, size_t n, size_t rows) {
    if (!n) mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: there are no indices", name);
    if (!index && !graph->measuring) mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: index is NULL", name);
    for (size_t i = 0; i < n && !graph->result && !graph->measuring; i++)
        if (index[i] < 0 || (size_t)index[i] >= rows)
            mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: index %z is %d, and there are %z rows", name, i,
                       (int)index[i], rows);
    return !graph->result;
}

/* The result of an operation; it has a gradient if `learns`: if an operand has one. */
static ml_tensor mli_result(mli_graph *g, size_t rows, size_t cols, int learns) {
    if (rows > SIZE_MAX / sizeof(float)) rows = SIZE_MAX / sizeof(float); /* more than there is in any case */
    if (learns && mli_taping(g)) return mli_new_apart(g, rows, cols);
    return mli_tensor_at(mli_new_numbers(g, rows, cols, 0), rows, cols);
}

/* Records an operation whose result is y. */
static void mli_record_of(mli_graph *g, ml_tensor y, mli_backward backward, const void *op, size_t size) {
    if (y.grad) mli_record(g, backward, op, size);
}

/* ---- graphs ---- */

/* Activations, records and scratch that the pass took, and what its backward pass takes on top of them. */
static void mli_note_size(mli_open_graph *open) {
    const mli_graph *g = &open->graph;
    size_t size = MLI_MAX(g->peak, g->used);
    if (size < SIZE_MAX && !mli_add_size(g->used, g->recompute, &size)) size = SIZE_MAX;
    size = MLI_MAX(size, g->peak);
    if (!mli_add_size(size, g->work_size + sizeof *open + 3 * MLI_ALIGN, &size)) size = SIZE_MAX;
    open->shown.size = MLI_MAX(open->shown.size, size);
}

ML_DEF void ml_graph_begin(ml_graph *graph, int taping) {
    if (!graph) return;
    mli_open_graph *open = graph->private_part->open;
    mli_graph *g = &open->graph;
    mli_note_size(open);
    graph->result = ML_OK;
    graph->measuring = !open->block;
    graph->taping = g->taping = open->dropping = taping;
    if (!g->memory) g->size = open->room, g->work_size = 0; /* as after an overflow */
    g->memory = open->block;
    g->used = g->peak = g->recompute = 0;
    g->newest = NULL;
    open->whole = NULL;
}

/* A graph without memory. */
static void mli_open_plan(mli_open_graph *open, const ml_graph_desc *desc) {
    memset(open, 0, sizeof *open);
    if (desc) open->threads = desc->threads;
    if (!open->threads.count) open->threads.count = 1;
    open->graph.threads = &open->threads;
    open->graph.separate = desc ? desc->separate : 0;
    open->graph.open = open;
    open->shown.measuring = 1;
    open->shown.private_part = &open->graph;
}

/* The sizes of a pass that `build` computes. */
static ml_result mli_open_measure(mli_open_graph *open, const ml_graph_desc *desc, ml_build build, void *user,
                                  ml_error *error) {
    mli_open_plan(open, desc);
    ml_result result = mli_check_threads(&open->threads, "graph", error);
    if (result) return result;
    ml_graph_begin(&open->shown, 1);
    build(&open->shown, user);
    return ml_graph_end(&open->shown, error);
}

ML_DEF ml_result ml_graph_size(const ml_graph_desc *desc, ml_build build, void *user, size_t *size,
                               ml_error *error) {
    mli_open_graph plan;
    if (!build || !size) return mli_null(error, "ml_graph_size");
    *size = 0;
    ml_result result = mli_open_measure(&plan, desc, build, user, error);
    if (!result) *size = plan.shown.size;
    return result;
}

ML_DEF ml_result ml_graph_init(const ml_graph_desc *desc, void *memory, size_t size, ml_graph **graph,
                               ml_error *error) {
    mli_open_graph plan;
    if (!memory || !graph) return mli_null(error, "ml_graph_init");
    *graph = NULL;
    mli_open_plan(&plan, desc);
    ml_result result = mli_check_threads(&plan.threads, "graph", error);
    if (result) return result;
    mli_open_graph *open = (mli_open_graph *)(void *)mli_place(memory, size, sizeof plan + 2 * MLI_ALIGN,
                                                               "ml_graph_size", error);
    if (!open) return ML_ERROR_MEMORY;
    *open = plan;
    open->block = (unsigned char *)mli_align_up((uintptr_t)(open + 1));
    open->room = ((size_t)((unsigned char *)memory + size - open->block)) & ~(size_t)(MLI_ALIGN - 1);
    open->graph.threads = &open->threads;
    open->graph.open = open;
    open->graph.size = open->room;
    open->shown.measuring = 0;
    open->shown.private_part = &open->graph;
    *graph = &open->shown;
    ml_graph_begin(*graph, 0);
    return mli_ok(error);
}

ML_DEF ml_result ml_graph_new(const ml_graph_desc *desc, ml_build build, void *user, ml_graph **graph,
                              ml_error *error) {
    ml_allocator allocator;
    size_t size;
    if (!graph) return mli_null(error, "ml_graph_new");
    *graph = NULL;
    ml_result result = mli_resolve_allocator(desc ? &desc->allocator : NULL, &allocator, error);
    if (!result) result = ml_graph_size(desc, build, user, &size, error);
    if (result) return result;
    void *memory = allocator.alloc(size, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a graph of %z bytes", size);
    result = ml_graph_init(desc, memory, size, graph, error);
    ML_ASSERT(!result);
    (*graph)->private_part->open->allocator = allocator;
    (*graph)->private_part->open->owned = memory;
    return result;
}

ML_DEF void ml_graph_free(ml_graph *graph) {
    if (graph) mli_free(&graph->private_part->open->allocator, graph->private_part->open->owned);
}

ML_DEF ml_result ml_graph_end(ml_graph *graph, ml_error *error) {
    if (!graph) return mli_null(error, "ml_graph_end");
    mli_open_graph *open = graph->private_part->open;
    mli_note_size(open);
    if (graph->measuring && graph->size > SIZE_MAX / 2)
        mli_cannot(graph, ML_ERROR_MEMORY, "a pass of this size takes more memory than can be addressed");
    if (open->block && mli_measuring(&open->graph))
        mli_cannot(graph, ML_ERROR_MEMORY, "the pass takes %z bytes, the graph has less (ml_graph_size)",
                   graph->size);
    if (!graph->result) return mli_ok(error);
    if (error) *error = open->error;
    return graph->result;
}

ML_DEF ml_result ml_graph_backward(ml_graph *graph, ml_tensor loss, ml_error *error) {
    if (!graph) return mli_null(error, "ml_graph_backward");
    mli_open_graph *open = graph->private_part->open;
    int is_whole = loss.data && loss.data == open->whole;
    if (!graph->taping)
        mli_cannot(graph, ML_ERROR_ARGUMENT,
                   "ml_graph_backward: the pass does not tape, or was run backward before");
    if (open->whole && !is_whole)
        mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_graph_backward: another loss was said to be the whole");
    if (!is_whole && mli_accepts(graph, "ml_graph_backward", loss) && (loss.rows != 1 || loss.cols != 1))
        mli_cannot(graph, ML_ERROR_MISMATCH, "ml_graph_backward: the loss is (%z, %z), not (1, 1)", loss.rows,
                   loss.cols);
    ml_result result = ml_graph_end(graph, error);
    if (result || mli_measuring(&open->graph)) return result;
    if (!mli_is_finite((double)mli_row(loss, 0)[0])) {
        mli_cannot(graph, ML_ERROR_NUMBER,
                   "the loss is not finite (learning rate too high, or broken model?)");
        return ml_graph_end(graph, error);
    }
    if (loss.grad) loss.grad[0] += 1;
    mli_run_backward(&open->graph, NULL);
    graph->taping = open->graph.taping = 0;
    return ml_graph_end(graph, error);
}

/* ---- inputs ---- */

ML_DEF ml_tensor ml_input(ml_graph *graph, const float *values, size_t rows, size_t cols) {
    mli_graph *g = mli_graph_of(graph);
    if (mli_failed(graph)) return ml_none();
    if (!mli_is_shape(rows, cols))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_input: the shape is (%z, %z)", rows, cols);
    ml_tensor x = mli_result(g, rows, cols, 1);
    if (mli_measuring(g)) return x;
    if (values)
        memcpy(x.data, values, mli_numbers(&x) * sizeof *values);
    else
        memset(x.data, 0, mli_numbers(&x) * sizeof *values);
    return x;
}

ML_DEF ml_tensor ml_stop_gradient(ml_graph *graph, ml_tensor x) {
    if (!mli_accepts(graph, "ml_stop_gradient", x)) return ml_none();
    x.grad = NULL;
    return x;
}

ML_DEF ml_tensor ml_gather(ml_graph *graph, ml_tensor table, const int32_t *index, size_t n) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts_weight(graph, "ml_gather", table)) return ml_none();
    if (!mli_accepts_index(graph, "ml_gather", index, n, table.rows)) return ml_none();
    mli_embed_op op = {table, index, mli_result(g, n, table.cols, table.grad != NULL)};
    mli_for_rows(g, mli_embed_rows, &op, n, table.cols);
    mli_record_of(g, op.y, mli_embed_backward, &op, sizeof op);
    return op.y;
}

typedef struct mli_replace_op {
    ml_tensor x, rows, y; /* (n, c), (m, c), (n, c) */
    int32_t *source;      /* (n): which row of `rows`, or -1: that of x */
    int is_rows;          /* the gradient of `rows` is computed, not that of x: the two may overlap */
} mli_replace_op;

static void mli_replace_rows(const void *record, size_t begin, size_t end) {
    const mli_replace_op *op = (const mli_replace_op *)record;
    for (; begin < end; begin++) {
        int32_t i = op->source[begin];
        memcpy(mli_row(op->y, begin), i < 0 ? mli_row(op->x, begin) : mli_row(op->rows, (size_t)i),
               op->y.cols * sizeof(float));
    }
}

static void mli_replace_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_replace_op *op = (const mli_replace_op *)record;
    for (; begin < end; begin++) {
        int32_t i = op->source[begin];
        if ((i >= 0) != op->is_rows) continue;
        float *d = op->is_rows ? mli_grad_row(op->rows, (size_t)i) : mli_grad_row(op->x, begin);
        mli_add(d, mli_grad_row(op->y, begin), op->y.cols);
    }
}

static void mli_replace_backward(mli_graph *g, const void *record) {
    mli_replace_op op = *(const mli_replace_op *)record;
    if (op.x.grad) mli_for_rows(g, mli_replace_gradient_rows, &op, op.y.rows, op.y.cols);
    op.is_rows = 1;
    if (op.rows.grad) mli_for_rows(g, mli_replace_gradient_rows, &op, op.y.rows, op.y.cols);
}

ML_DEF ml_tensor ml_replace_rows(ml_graph *graph, ml_tensor x, const int32_t *index, ml_tensor rows) {
    const char *name = "ml_replace_rows";
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, name, x) || !mli_accepts(graph, name, rows)) return ml_none();
    if (x.cols != rows.cols || rows.rows > x.rows) return mli_cannot_fit(graph, name, x, rows);
    if (!mli_accepts_index(graph, name, index, rows.rows, x.rows)) return ml_none();
    mli_replace_op op = {x, rows, mli_result(g, x.rows, x.cols, x.grad || rows.grad), NULL, 0};
    op.source = (int32_t *)mli_graph_alloc(g, x.rows, sizeof *op.source);
    for (size_t i = 0; i < x.rows && !mli_measuring(g); i++) op.source[i] = -1;
    for (size_t i = 0; i < rows.rows && !mli_measuring(g); i++) {
        int32_t *source = &op.source[index[i]];
        if (*source >= 0)
            return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: indices %d and %z are both %d", name,
                              (int)*source, i, (int)index[i]);
        *source = (int32_t)i;
    }
    mli_for_rows(g, mli_replace_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_replace_backward, &op, sizeof op);
    return op.y;
}

/* ---- arithmetic ---- */

/* Whether w (out, in) and b (1, out) or none fit x (n, in): for all operations with a linear layer. */
static int mli_accepts_linear(ml_graph *graph, const char *name, const ml_tensor *x, const ml_tensor *w,
                              const ml_tensor *b) {
    if (!mli_accepts(graph, name, *x) || !mli_accepts_weight(graph, name, *w)) return 0;
    if (x->cols != w->cols) return mli_cannot_fit(graph, name, *x, *w), 0;
    if (!b->data) return 1;
    if (!mli_accepts(graph, name, *b)) return 0;
    if (b->cols != w->rows || b->rows != 1) return mli_cannot_fit(graph, name, *w, *b), 0;
    return 1;
}

typedef struct mli_bias_op {
    ml_tensor y, b; /* (n, c), (1, c) */
} mli_bias_op;

static void mli_bias_rows(const void *record, size_t begin, size_t end) {
    const mli_bias_op *op = (const mli_bias_op *)record;
    for (; begin < end; begin++) mli_add(mli_row(op->y, begin), (const float *)op->b.data, op->y.cols);
}

/* db += sum of the rows of dy: columns [begin, end) of all rows */
static void mli_bias_gradient_columns(const void *record, size_t begin, size_t end) {
    const mli_bias_op *op = (const mli_bias_op *)record;
    for (size_t i = 0; i < op->y.rows; i++)
        mli_add(op->b.grad + begin, mli_grad_row(op->y, i) + begin, end - begin);
}

static void mli_bias_backward(mli_graph *g, const void *record) {
    const mli_bias_op *op = (const mli_bias_op *)record;
    if (op->b.grad) mli_for_rows(g, mli_bias_gradient_columns, op, op->y.cols, op->y.rows);
}

ML_DEF ml_tensor ml_linear(ml_graph *graph, ml_tensor x, ml_tensor w, ml_tensor b) {
    mli_graph *g = mli_graph_of(graph);
    mli_matrix_use use;
    if (!mli_accepts_linear(graph, "ml_linear", &x, &w, &b)) return ml_none();
    int learns = x.grad || w.grad || b.grad, taping = g->taping;
    memset(&use, 0, sizeof use);
    use.w = w;
    use.y = mli_result(g, x.rows, w.rows, learns);
    g->taping = taping && learns;
    mli_linears(g, x, &use, 1);
    g->taping = taping;
    mli_bias_op op = {use.y, b};
    if (b.data) mli_for_rows(g, mli_bias_rows, &op, x.rows, w.rows);
    if (b.data) mli_record_of(g, use.y, mli_bias_backward, &op, sizeof op);
    return use.y;
}

/* y = a op b, with b repeated over the rows or columns of a. */
typedef enum mli_sign { MLI_PLUS = 0, MLI_MINUS, MLI_TIMES } mli_sign;

typedef struct mli_pair_op {
    ml_tensor a, b, y; /* (n, c); (n, c), (1, c), (n, 1) or (1, 1); (n, c) */
    mli_sign sign;
} mli_pair_op;

/* The row of b, or its one number, that belongs to row i of a. */
static const float *mli_pair_row(const mli_pair_op *op, size_t i) {
    return mli_row(op->b, op->b.rows > 1 ? i : 0);
}

static void mli_pair_rows(const void *record, size_t begin, size_t end) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    size_t c = op->a.cols;
    int repeated = op->b.cols < c;
    float sign = op->sign == MLI_MINUS ? -1.0f : 1.0f;
    for (; begin < end; begin++) {
        const float *a = mli_row(op->a, begin), *b = mli_pair_row(op, begin);
        float *y = mli_row(op->y, begin);
        if (op->sign == MLI_TIMES)
            for (size_t j = 0; j < c; j++) y[j] = a[j] * b[repeated ? 0 : j];
        else
            for (size_t j = 0; j < c; j++) y[j] = a[j] + sign * b[repeated ? 0 : j];
    }
}

/* da += dy, or dy b */
static void mli_pair_left_gradient(const void *record, size_t begin, size_t end) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    size_t c = op->a.cols;
    for (; begin < end; begin++) {
        float *da = mli_grad_row(op->a, begin);
        const float *dy = mli_grad_row(op->y, begin), *b = mli_pair_row(op, begin);
        if (op->sign != MLI_TIMES)
            mli_add(da, dy, c);
        else if (op->b.cols < c)
            mli_axpy(da, b[0], dy, c);
        else
            mli_add_products(da, dy, b, c);
    }
}

/* db += dy, -dy or dy a: numbers [begin, end) of row i */
static void mli_pair_add_right(const mli_pair_op *op, float *db, size_t i, size_t begin, size_t end) {
    const float *dy = mli_grad_row(op->y, i) + begin, *a = mli_row(op->a, i) + begin;
    if (op->sign == MLI_TIMES)
        mli_add_products(db + begin, dy, a, end - begin);
    else
        mli_axpy(db + begin, op->sign == MLI_MINUS ? -1.0f : 1.0f, dy, end - begin);
}

/* b (n, c): its rows */
static void mli_pair_right_rows(const void *record, size_t begin, size_t end) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    for (; begin < end; begin++) mli_pair_add_right(op, mli_grad_row(op->b, begin), begin, 0, op->a.cols);
}

/* b (1, c): columns [begin, end) of all rows */
static void mli_pair_right_columns(const void *record, size_t begin, size_t end) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    for (size_t i = 0; i < op->a.rows; i++) mli_pair_add_right(op, op->b.grad, i, begin, end);
}

/* b (n, 1) or (1, 1): the sums of the numbers that each row of b belongs to */
static void mli_pair_right_sums(const void *record, size_t begin, size_t end) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    size_t n = mli_numbers(&op->a) / op->b.rows;
    for (; begin < end; begin++) {
        const float *dy = op->y.grad + begin * n, *a = (const float *)op->a.data + begin * n;
        double sum = 0, sign = op->sign == MLI_MINUS ? -1 : 1;
        for (size_t j = 0; j < n; j++) sum += (double)dy[j] * (op->sign == MLI_TIMES ? (double)a[j] : sign);
        op->b.grad[begin] += (float)sum;
    }
}

static void mli_pair_backward(mli_graph *g, const void *record) {
    const mli_pair_op *op = (const mli_pair_op *)record;
    size_t n = op->a.rows, c = op->a.cols;
    if (op->a.grad) mli_for_rows(g, mli_pair_left_gradient, op, n, c);
    if (!op->b.grad) return;
    if (op->b.cols < c)
        mli_for_rows(g, mli_pair_right_sums, op, op->b.rows, n * c / op->b.rows);
    else if (op->b.rows < n)
        mli_for_rows(g, mli_pair_right_columns, op, c, n);
    else
        mli_for_rows(g, mli_pair_right_rows, op, n, c);
}

static ml_tensor mli_pair(ml_graph *graph, const char *name, ml_tensor a, ml_tensor b, mli_sign sign) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, name, a) || !mli_accepts(graph, name, b)) return ml_none();
    if ((b.rows != a.rows && b.rows != 1) || (b.cols != a.cols && b.cols != 1))
        return mli_cannot_fit(graph, name, a, b);
    mli_pair_op op = {a, b, mli_result(g, a.rows, a.cols, a.grad || b.grad), sign};
    mli_for_rows(g, mli_pair_rows, &op, a.rows, a.cols);
    mli_record_of(g, op.y, mli_pair_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_add(ml_graph *graph, ml_tensor a, ml_tensor b) {
    return mli_pair(graph, "ml_add", a, b, MLI_PLUS);
}
ML_DEF ml_tensor ml_sub(ml_graph *graph, ml_tensor a, ml_tensor b) {
    return mli_pair(graph, "ml_sub", a, b, MLI_MINUS);
}
ML_DEF ml_tensor ml_mul(ml_graph *graph, ml_tensor a, ml_tensor b) {
    return mli_pair(graph, "ml_mul", a, b, MLI_TIMES);
}

typedef struct mli_affine_op {
    ml_tensor x, y; /* (n, c): y = factor x + number */
    float factor, number;
} mli_affine_op;

static void mli_affine_rows(const void *record, size_t begin, size_t end) {
    const mli_affine_op *op = (const mli_affine_op *)record;
    size_t n = (end - begin) * op->x.cols;
    const float *x = mli_row(op->x, begin);
    float *y = mli_row(op->y, begin), factor = op->factor, number = op->number;
    if (factor == 1)
        for (size_t j = 0; j < n; j++) y[j] = x[j] + number;
    else
        for (size_t j = 0; j < n; j++) y[j] = x[j] * factor;
}

static void mli_affine_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_affine_op *op = (const mli_affine_op *)record;
    mli_axpy(mli_grad_row(op->x, begin), op->factor, mli_grad_row(op->y, begin), (end - begin) * op->x.cols);
}

static void mli_affine_backward(mli_graph *g, const void *record) {
    const mli_affine_op *op = (const mli_affine_op *)record;
    mli_for_rows(g, mli_affine_gradient_rows, op, op->x.rows, op->x.cols);
}

/* factor x, or with factor 1 x + number */
static ml_tensor mli_affine(ml_graph *graph, const char *name, ml_tensor x, float factor, float number) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, name, x)) return ml_none();
    mli_affine_op op = {x, mli_result(g, x.rows, x.cols, x.grad != NULL), factor, number};
    mli_for_rows(g, mli_affine_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_affine_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_scale(ml_graph *graph, ml_tensor x, float factor) {
    return mli_affine(graph, "ml_scale", x, factor, 0);
}
ML_DEF ml_tensor ml_shift(ml_graph *graph, ml_tensor x, float number) {
    return mli_affine(graph, "ml_shift", x, 1, number);
}

/* y_i = factor * the sum of part i of x, whose numbers are divided into as many parts as y has rows: its rows, or
   all. Sums are taken in double. */
typedef struct mli_total_op {
    ml_tensor x, y; /* (n, c); (n, 1) or (1, 1) */
    float factor;
} mli_total_op;

static void mli_total_rows(const void *record, size_t begin, size_t end) {
    const mli_total_op *op = (const mli_total_op *)record;
    size_t n = mli_numbers(&op->x) / op->y.rows;
    for (; begin < end; begin++) {
        const float *x = (const float *)op->x.data + begin * n;
        double sum = 0;
        for (size_t j = 0; j < n; j++) sum += (double)x[j];
        mli_row(op->y, begin)[0] = (float)(sum * (double)op->factor);
    }
}

/* dx += factor dy: rows [begin, end) of x */
static void mli_total_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_total_op *op = (const mli_total_op *)record;
    for (; begin < end; begin++) {
        float *dx = mli_grad_row(op->x, begin), d = op->factor * op->y.grad[op->y.rows > 1 ? begin : 0];
        for (size_t j = 0; j < op->x.cols; j++) dx[j] += d;
    }
}

static void mli_total_backward(mli_graph *g, const void *record) {
    const mli_total_op *op = (const mli_total_op *)record;
    mli_for_rows(g, mli_total_gradient_rows, op, op->x.rows, op->x.cols);
}

static ml_tensor mli_total(ml_graph *graph, const char *name, ml_tensor x, size_t rows, float factor) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, name, x)) return ml_none();
    mli_total_op op = {x, mli_result(g, rows, 1, x.grad != NULL), factor};
    mli_for_rows(g, mli_total_rows, &op, rows, mli_numbers(&x) / rows);
    mli_record_of(g, op.y, mli_total_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_sum(ml_graph *graph, ml_tensor x) { return mli_total(graph, "ml_sum", x, 1, 1); }
ML_DEF ml_tensor ml_mean(ml_graph *graph, ml_tensor x) {
    return mli_total(graph, "ml_mean", x, 1, 1.0f / (float)mli_numbers(&x));
}
ML_DEF ml_tensor ml_sum_rows(ml_graph *graph, ml_tensor x) {
    return mli_total(graph, "ml_sum_rows", x, x.rows, 1);
}

/* ---- functions of single numbers ----
   y = f(x), dx += f'(x) dy, where f' may be computed from x and y. libm's F32 functions, so within a few units in the
   last place. NaN stays NaN, so that it shows in the loss. */

static float mli_relu_of(float x) { return x < 0 ? 0 : x; }
static float mli_relu_slope(float x, float y) { return (void)y, x > 0 ? 1.0f : 0.0f; }
/* Phi(x) = erfc(-x / sqrt(2)) / 2, which is accurate for x far below 0, too */
static float mli_gelu_of(float x) { return 0.5f * x * erfcf(-0.70710678f * x); }
static float mli_gelu_slope(float x, float y) {
    return (void)y, 0.5f * erfcf(-0.70710678f * x) + x * 0.39894228f * expf(-0.5f * x * x);
}
static float mli_sigmoid_of(float x) { return 1 / (1 + expf(-x)); }
static float mli_sigmoid_slope(float x, float y) { return (void)x, y * (1 - y); }
static float mli_silu_of(float x) { return x / (1 + expf(-x)); }
static float mli_silu_slope(float x, float y) {
    float s = mli_sigmoid_of(x);
    return (void)y, s * (1 + x * (1 - s));
}
static float mli_tanh_of(float x) { return tanhf(x); }
static float mli_tanh_slope(float x, float y) { return (void)x, (1 - y) * (1 + y); }
static float mli_exp_of(float x) { return expf(x); }
static float mli_exp_slope(float x, float y) { return (void)x, y; }
static float mli_log_of(float x) { return logf(x); }
static float mli_log_slope(float x, float y) { return (void)y, 1 / x; }

typedef struct mli_function {
    const char *name;
    float (*value)(float x);
    float (*slope)(float x, float y);
} mli_function;

static const mli_function *mli_function_at(int which) {
    static const mli_function functions[] = {{"ml_relu", mli_relu_of, mli_relu_slope},
                                             {"ml_gelu", mli_gelu_of, mli_gelu_slope},
                                             {"ml_silu", mli_silu_of, mli_silu_slope},
                                             {"ml_tanh", mli_tanh_of, mli_tanh_slope},
                                             {"ml_sigmoid", mli_sigmoid_of, mli_sigmoid_slope},
                                             {"ml_exp", mli_exp_of, mli_exp_slope},
                                             {"ml_log", mli_log_of, mli_log_slope}};
    return &functions[which];
}

typedef struct mli_function_op {
    const mli_function *f;
    ml_tensor x, y; /* (n, c) */
} mli_function_op;

static void mli_function_rows(const void *record, size_t begin, size_t end) {
    const mli_function_op *op = (const mli_function_op *)record;
    const float *x = mli_row(op->x, begin);
    float *y = mli_row(op->y, begin);
    for (size_t j = 0, n = (end - begin) * op->x.cols; j < n; j++) y[j] = op->f->value(x[j]);
}

static void mli_function_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_function_op *op = (const mli_function_op *)record;
    const float *x = mli_row(op->x, begin), *y = mli_row(op->y, begin), *dy = mli_grad_row(op->y, begin);
    float *dx = mli_grad_row(op->x, begin);
    for (size_t j = 0, n = (end - begin) * op->x.cols; j < n; j++) dx[j] += dy[j] * op->f->slope(x[j], y[j]);
}

static void mli_function_backward(mli_graph *g, const void *record) {
    const mli_function_op *op = (const mli_function_op *)record;
    mli_for_rows(g, mli_function_gradient_rows, op, op->x.rows, 4 * op->x.cols);
}

static ml_tensor mli_apply(ml_graph *graph, const mli_function *f, ml_tensor x) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, f->name, x)) return ml_none();
    mli_function_op op = {f, x, mli_result(g, x.rows, x.cols, x.grad != NULL)};
    mli_for_rows(g, mli_function_rows, &op, x.rows, 4 * x.cols);
    mli_record_of(g, op.y, mli_function_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_relu(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(0), x); }
ML_DEF ml_tensor ml_gelu(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(1), x); }
ML_DEF ml_tensor ml_silu(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(2), x); }
ML_DEF ml_tensor ml_tanh(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(3), x); }
ML_DEF ml_tensor ml_sigmoid(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(4), x); }
ML_DEF ml_tensor ml_exp(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(5), x); }
ML_DEF ml_tensor ml_log(ml_graph *graph, ml_tensor x) { return mli_apply(graph, mli_function_at(6), x); }

typedef struct mli_swiglu_op {
    ml_tensor gate, up, y; /* (n, c) */
    int is_up;             /* the gradient of up is computed, not that of gate: the two may overlap */
} mli_swiglu_op;

static void mli_swiglu_rows(const void *record, size_t begin, size_t end) {
    const mli_swiglu_op *op = (const mli_swiglu_op *)record;
    mli_swiglu(mli_row(op->y, begin), mli_row(op->gate, begin), mli_row(op->up, begin),
               (end - begin) * op->y.cols);
}

static void mli_swiglu_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_swiglu_op *op = (const mli_swiglu_op *)record;
    const float *gate = (const float *)op->gate.data, *up = (const float *)op->up.data;
    float *d = op->is_up ? op->up.grad : op->gate.grad, part[2][128];
    for (size_t i = begin * op->y.cols, n, last = end * op->y.cols; i < last; i += n) {
        n = MLI_MIN(last - i, MLI_COUNT(part[0]));
        mli_swiglu_gradient(part[0], part[1], op->y.grad + i, gate + i, up + i, n);
        mli_add(d + i, part[op->is_up], n);
    }
}

static void mli_swiglu_backward(mli_graph *g, const void *record) {
    mli_swiglu_op op = *(const mli_swiglu_op *)record;
    if (op.gate.grad) mli_for_rows(g, mli_swiglu_gradient_rows, &op, op.y.rows, op.y.cols);
    op.is_up = 1;
    if (op.up.grad) mli_for_rows(g, mli_swiglu_gradient_rows, &op, op.y.rows, op.y.cols);
}

ML_DEF ml_tensor ml_swiglu(ml_graph *graph, ml_tensor gate, ml_tensor up) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_swiglu", gate) || !mli_accepts(graph, "ml_swiglu", up)) return ml_none();
    if (gate.rows != up.rows || gate.cols != up.cols) return mli_cannot_fit(graph, "ml_swiglu", gate, up);
    mli_swiglu_op op = {gate, up, mli_result(g, up.rows, up.cols, gate.grad || up.grad), 0};
    mli_for_rows(g, mli_swiglu_rows, &op, up.rows, up.cols);
    mli_record_of(g, op.y, mli_swiglu_backward, &op, sizeof op);
    return op.y;
}

typedef struct mli_dropped_op {
    ml_tensor x, y; /* (n, c) */
    float p;
    uint64_t seed;
} mli_dropped_op;

static void mli_dropped_rows(const void *record, size_t begin, size_t end) {
    const mli_dropped_op *op = (const mli_dropped_op *)record;
    const float *x = (const float *)op->x.data;
    float *y = (float *)op->y.data, p = op->p;
    for (size_t i = begin * op->x.cols; i < end * op->x.cols; i++)
        y[i] = mli_is_dropped(i, p, op->seed) ? 0 : x[i] / (1 - p);
}

static void mli_dropped_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_dropped_op *op = (const mli_dropped_op *)record;
    float p = op->p;
    for (size_t i = begin * op->x.cols; i < end * op->x.cols; i++)
        if (!mli_is_dropped(i, p, op->seed)) op->x.grad[i] += op->y.grad[i] / (1 - p);
}

static void mli_dropped_backward(mli_graph *g, const void *record) {
    const mli_dropped_op *op = (const mli_dropped_op *)record;
    mli_for_rows(g, mli_dropped_gradient_rows, op, op->x.rows, op->x.cols);
}

ML_DEF ml_tensor ml_dropout(ml_graph *graph, ml_tensor x, float p, uint64_t seed) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_dropout", x)) return ml_none();
    if (!(p >= 0 && p < 1))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_dropout: the probability is not in 0 to 1");
    if (!g->open->dropping || !(p > 0)) return x;
    mli_dropped_op op = {x, mli_result(g, x.rows, x.cols, x.grad != NULL), p, seed};
    mli_for_rows(g, mli_dropped_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_dropped_backward, &op, sizeof op);
    return op.y;
}

/* ---- functions of rows ---- */

typedef struct mli_row_op {
    ml_tensor x, y; /* (n, c) */
    mli_rows_function gradient;
} mli_row_op;

static void mli_softmax_rows(const void *record, size_t begin, size_t end) {
    const mli_row_op *op = (const mli_row_op *)record;
    for (; begin < end; begin++) {
        memcpy(mli_row(op->y, begin), mli_row(op->x, begin), op->x.cols * sizeof(float));
        mli_softmax(mli_row(op->y, begin), op->x.cols);
    }
}

/* dx += y (dy - y . dy) */
static void mli_softmax_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_row_op *op = (const mli_row_op *)record;
    for (; begin < end; begin++) {
        const float *y = mli_row(op->y, begin), *dy = mli_grad_row(op->y, begin);
        float *dx = mli_grad_row(op->x, begin), mean = mli_dot(y, dy, op->x.cols);
        for (size_t j = 0; j < op->x.cols; j++) dx[j] += y[j] * (dy[j] - mean);
    }
}

static void mli_log_softmax_rows(const void *record, size_t begin, size_t end) {
    const mli_row_op *op = (const mli_row_op *)record;
    for (; begin < end; begin++) {
        memcpy(mli_row(op->y, begin), mli_row(op->x, begin), op->x.cols * sizeof(float));
        mli_log_softmax(mli_row(op->y, begin), op->x.cols);
    }
}

/* dx += dy - e^y sum(dy) */
static void mli_log_softmax_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_row_op *op = (const mli_row_op *)record;
    for (; begin < end; begin++) {
        const float *y = mli_row(op->y, begin), *dy = mli_grad_row(op->y, begin);
        float *dx = mli_grad_row(op->x, begin);
        double sum = 0;
        for (size_t j = 0; j < op->x.cols; j++) sum += (double)dy[j];
        for (size_t j = 0; j < op->x.cols; j++) dx[j] += dy[j] - expf(y[j]) * (float)sum;
    }
}

static void mli_row_backward(mli_graph *g, const void *record) {
    const mli_row_op *op = (const mli_row_op *)record;
    mli_for_rows(g, op->gradient, op, op->x.rows, 4 * op->x.cols);
}

static ml_tensor mli_apply_to_rows(ml_graph *graph, const char *name, ml_tensor x, mli_rows_function value,
                                   mli_rows_function gradient) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, name, x)) return ml_none();
    mli_row_op op = {x, mli_result(g, x.rows, x.cols, x.grad != NULL), gradient};
    mli_for_rows(g, value, &op, x.rows, 4 * x.cols);
    mli_record_of(g, op.y, mli_row_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_softmax(ml_graph *graph, ml_tensor x) {
    return mli_apply_to_rows(graph, "ml_softmax", x, mli_softmax_rows, mli_softmax_gradient_rows);
}
ML_DEF ml_tensor ml_log_softmax(ml_graph *graph, ml_tensor x) {
    return mli_apply_to_rows(graph, "ml_log_softmax", x, mli_log_softmax_rows, mli_log_softmax_gradient_rows);
}

/* w (1, c), or if it is left out as many times `number`; its shape must fit x. */
static ml_tensor mli_norm_operand(ml_graph *graph, const char *name, ml_tensor x, ml_tensor w, float number) {
    mli_graph *g = mli_graph_of(graph);
    if (w.data && !mli_accepts(graph, name, w)) return w;
    if (w.data && (w.rows != 1 || w.cols != x.cols)) return mli_cannot_fit(graph, name, x, w);
    if (w.data || graph->result) return w;
    w = mli_result(g, 1, x.cols, 0);
    for (size_t j = 0; j < x.cols && !mli_measuring(g); j++) mli_row(w, 0)[j] = number;
    return w;
}

ML_DEF ml_tensor ml_rms_norm(ml_graph *graph, ml_tensor x, ml_tensor w, float eps) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_rms_norm", x)) return ml_none();
    w = mli_norm_operand(graph, "ml_rms_norm", x, w, 1);
    if (graph->result) return ml_none();
    mli_norm_op op = {x, w, ml_none(), mli_result(g, x.rows, x.cols, x.grad || w.grad), eps};
    mli_for_rows(g, mli_norm_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_norm_backward, &op, sizeof op);
    return op.y;
}

ML_DEF ml_tensor ml_layer_norm(ml_graph *graph, ml_tensor x, ml_tensor w, ml_tensor b, float eps) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_layer_norm", x)) return ml_none();
    w = mli_norm_operand(graph, "ml_layer_norm", x, w, 1);
    b = mli_norm_operand(graph, "ml_layer_norm", x, b, 0);
    if (graph->result) return ml_none();
    mli_norm_op op = {x, w, b, mli_result(g, x.rows, x.cols, x.grad || w.grad || b.grad), eps};
    mli_for_rows(g, mli_norm_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_norm_backward, &op, sizeof op);
    return op.y;
}

/* ---- shapes ----
   Other rows and columns of the same numbers in order are the same memory: whoever reads them adds to the gradient of
   x itself. */

ML_DEF ml_tensor ml_reshape(ml_graph *graph, ml_tensor x, size_t rows, size_t cols) {
    size_t n;
    if (!mli_accepts(graph, "ml_reshape", x)) return ml_none();
    ml_tensor y = x;
    y.rows = rows;
    y.cols = cols;
    if (!mli_mul_size(rows, cols, &n) || n != mli_numbers(&x))
        return mli_cannot_fit(graph, "ml_reshape", x, y);
    return y;
}

typedef struct mli_transpose_op {
    ml_tensor x, y; /* (n, c), (c, n) */
} mli_transpose_op;

static void mli_transpose_rows(const void *record, size_t begin, size_t end) {
    const mli_transpose_op *op = (const mli_transpose_op *)record;
    for (; begin < end; begin++)
        for (size_t j = 0; j < op->x.rows; j++) mli_row(op->y, begin)[j] = mli_row(op->x, j)[begin];
}

static void mli_transpose_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_transpose_op *op = (const mli_transpose_op *)record;
    for (; begin < end; begin++)
        for (size_t j = 0; j < op->x.cols; j++)
            mli_grad_row(op->x, begin)[j] += mli_grad_row(op->y, j)[begin];
}

static void mli_transpose_backward(mli_graph *g, const void *record) {
    const mli_transpose_op *op = (const mli_transpose_op *)record;
    mli_for_rows(g, mli_transpose_gradient_rows, op, op->x.rows, op->x.cols);
}

ML_DEF ml_tensor ml_transpose(ml_graph *graph, ml_tensor x) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_transpose", x)) return ml_none();
    mli_transpose_op op = {x, mli_result(g, x.cols, x.rows, x.grad != NULL)};
    mli_for_rows(g, mli_transpose_rows, &op, x.cols, x.rows);
    mli_record_of(g, op.y, mli_transpose_backward, &op, sizeof op);
    return op.y;
}

/* A block (rows, cols) of x, which is copied to one of y: from number x_begin to number y_begin. */
typedef struct mli_block_op {
    ml_tensor x, y;
    size_t x_begin, y_begin, rows, cols;
} mli_block_op;

static void mli_block_rows(const void *record, size_t begin, size_t end) {
    const mli_block_op *op = (const mli_block_op *)record;
    for (; begin < end; begin++)
        memcpy(mli_row(op->y, begin) + op->y_begin, mli_row(op->x, begin) + op->x_begin,
               op->cols * sizeof(float));
}

static void mli_block_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_block_op *op = (const mli_block_op *)record;
    for (; begin < end; begin++)
        mli_add(mli_grad_row(op->x, begin) + op->x_begin, mli_grad_row(op->y, begin) + op->y_begin, op->cols);
}

static void mli_block_backward(mli_graph *g, const void *record) {
    const mli_block_op *op = (const mli_block_op *)record;
    mli_for_rows(g, mli_block_gradient_rows, op, op->rows, op->cols);
}

static void mli_copy_block(mli_graph *g, const mli_block_op *op) {
    mli_for_rows(g, mli_block_rows, op, op->rows, op->cols);
    if (op->x.grad) mli_record_of(g, op->y, mli_block_backward, op, sizeof *op);
}

ML_DEF ml_tensor ml_concat(ml_graph *graph, const ml_tensor *parts, int n_parts, ml_axis axis) {
    mli_graph *g = mli_graph_of(graph);
    size_t rows = 0, cols = 0, at = 0;
    int learns = 0;
    if (mli_failed(graph)) return ml_none();
    if (!parts || n_parts < 1 || (axis != ML_ROWS && axis != ML_COLS))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_concat: no parts, or no such axis");
    for (int i = 0; i < n_parts; i++) {
        ml_tensor part = parts[i];
        if (!mli_accepts(graph, "ml_concat", part)) return ml_none();
        if (axis == ML_ROWS ? part.cols != parts[0].cols : part.rows != parts[0].rows)
            return mli_cannot_fit(graph, "ml_concat", parts[0], part);
        rows = axis == ML_ROWS ? rows + part.rows : part.rows;
        cols = axis == ML_COLS ? cols + part.cols : part.cols;
        learns |= part.grad != NULL;
    }
    ml_tensor y = mli_result(g, rows, cols, learns);
    for (int i = 0; i < n_parts; i++) {
        mli_block_op op = {parts[i], y, 0, at, parts[i].rows, parts[i].cols};
        mli_copy_block(g, &op);
        at += axis == ML_ROWS ? mli_numbers(&parts[i]) : parts[i].cols;
    }
    return y;
}

ML_DEF ml_tensor ml_slice(ml_graph *graph, ml_tensor x, ml_axis axis, size_t begin, size_t end) {
    mli_graph *g = mli_graph_of(graph);
    if (!mli_accepts(graph, "ml_slice", x)) return ml_none();
    if ((axis != ML_ROWS && axis != ML_COLS) || begin >= end || end > (axis == ML_ROWS ? x.rows : x.cols))
        return mli_cannot(graph, ML_ERROR_ARGUMENT,
                          "ml_slice: there is no [%z, %z) along axis %d of (%z, %z)", begin, end, (int)axis,
                          x.rows, x.cols);
    if (axis == ML_COLS) {
        mli_block_op op = {x,          mli_result(g, x.rows, end - begin, x.grad != NULL), begin, 0, x.rows,
                           end - begin};
        mli_copy_block(g, &op);
        return op.y;
    }
    x.rows = end - begin;
    if (mli_measuring(g)) return x; /* whose memory does not exist */
    x.data = mli_row(x, begin);
    if (x.grad) x.grad = mli_grad_row(x, begin);
    return x;
}

/* ---- sequences ---- */

/* Describes the rows of x; 0 after ending the pass if they are not rows of its n tokens. */
static int mli_read_rows(ml_graph *graph, const char *name, ml_rows given, size_t n, mli_rows *rows) {
    if (n > INT32_MAX / 2) mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: %z tokens are too many", name, n);
    if (graph->result) return 0;
    mli_one_row(rows, (int)n, 0);
    if (!given.start) return 1;
    rows->start = given.start;
    rows->n_rows = given.n_rows;
    if (given.n_rows < 1 || (size_t)given.n_rows > n || given.start[0] != 0 ||
        (size_t)given.start[given.n_rows] != n)
        mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: the %d rows do not run from 0 to the %z tokens", name,
                   given.n_rows, n);
    for (int r = 0; !graph->result && r < given.n_rows; r++)
        if (given.start[r + 1] <= given.start[r])
            mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: row %d is empty or runs backwards", name, r);
    return !graph->result;
}

/* A copy of the rows that lives as long as the pass. */
static const mli_rows *mli_keep_rows(mli_graph *g, const mli_rows *rows) {
    mli_rows *kept = (mli_rows *)mli_graph_alloc(g, 1, sizeof *kept);
    if (mli_measuring(g)) return rows;
    *kept = *rows;
    if (rows->start == rows->single) kept->start = kept->single;
    return kept;
}

static ml_tensor mli_run_pool(ml_graph *graph, mli_pool_op *op, size_t n) {
    mli_graph *g = mli_graph_of(graph);
    op->out = mli_result(g, n, op->x.cols, op->x.grad != NULL);
    mli_for_rows(g, mli_pool_rows, op, n, op->x.cols);
    mli_record_of(g, op->out, mli_pool_backward, op, sizeof *op);
    return op->out;
}

ML_DEF ml_tensor ml_pool_spans(ml_graph *graph, ml_tensor x, const ml_span *spans, int n_spans,
                               ml_pooling pooling) {
    if (!mli_accepts(graph, "ml_pool_spans", x)) return ml_none();
    if (!spans || n_spans < 1)
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_pool_spans: there are no spans");
    if (!mli_is_pooling(pooling))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_pool_spans: pooling is not one of its names");
    for (int i = 0; i < n_spans; i++)
        if (spans[i].begin < 0 || spans[i].end <= spans[i].begin || (size_t)spans[i].end > x.rows)
            return mli_cannot(graph, ML_ERROR_ARGUMENT,
                              "ml_pool_spans: span %d, [%d, %d), is empty or outside the %z tokens", i,
                              (int)spans[i].begin, (int)spans[i].end, x.rows);
    mli_pool_op op = {x, ml_none(), &spans->begin, &spans->end, 2, pooling};
    return mli_run_pool(graph, &op, (size_t)n_spans);
}

ML_DEF ml_tensor ml_pool_rows(ml_graph *graph, ml_tensor x, ml_rows given, ml_pooling pooling) {
    mli_rows read;
    if (!mli_accepts(graph, "ml_pool_rows", x) || !mli_read_rows(graph, "ml_pool_rows", given, x.rows, &read))
        return ml_none();
    if (!mli_is_pooling(pooling))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_pool_rows: pooling is not one of its names");
    const mli_rows *rows = mli_keep_rows(graph->private_part, &read);
    mli_pool_op op = {x, ml_none(), rows->start, rows->start + 1, 1, pooling};
    return mli_run_pool(graph, &op, (size_t)rows->n_rows);
}

typedef struct mli_weighted_op {
    ml_tensor x, scores, y; /* (n, D), (n, 1), (n_rows, D) */
    float *p;               /* (n): softmax of the scores of each row */
    const mli_rows *rows;
} mli_weighted_op;

static void mli_weighted_rows(const void *record, size_t first, size_t last) {
    const mli_weighted_op *op = (const mli_weighted_op *)record;
    for (size_t r = first; r < last; r++) {
        size_t begin = mli_row_start(op->rows, (int)r), n = mli_row_start(op->rows, (int)r + 1) - begin;
        memcpy(op->p + begin, mli_row(op->scores, begin), n * sizeof *op->p);
        mli_softmax(op->p + begin, n);
        mli_weighted_sum(mli_row(op->y, r), op->p + begin, mli_row(op->x, begin), op->x.cols, n, op->x.cols);
    }
}

/* dx_i += p_i dy;  dscore_i += p_i (x_i - y) . dy */
static void mli_weighted_gradient_rows(const void *record, size_t first, size_t last) {
    const mli_weighted_op *op = (const mli_weighted_op *)record;
    size_t dim = op->x.cols;
    for (size_t r = first; r < last; r++) {
        const float *dy = mli_grad_row(op->y, r);
        size_t i = mli_row_start(op->rows, (int)r), end = mli_row_start(op->rows, (int)r + 1);
        float mean = mli_dot(mli_row(op->y, r), dy, dim);
        for (; i < end; i++) {
            if (op->scores.grad)
                op->scores.grad[i] += op->p[i] * (mli_dot(mli_row(op->x, i), dy, dim) - mean);
            if (op->x.grad) mli_axpy(mli_grad_row(op->x, i), op->p[i], dy, dim);
        }
    }
}

static void mli_weighted_backward(mli_graph *g, const void *record) {
    const mli_weighted_op *op = (const mli_weighted_op *)record;
    mli_for_rows(g, mli_weighted_gradient_rows, op, op->y.rows, op->x.cols * op->x.rows / op->y.rows);
}

ML_DEF ml_tensor ml_pool_weighted(ml_graph *graph, ml_tensor x, ml_tensor scores, ml_rows given) {
    mli_graph *g = mli_graph_of(graph);
    mli_rows read;
    if (!mli_accepts(graph, "ml_pool_weighted", x) || !mli_accepts(graph, "ml_pool_weighted", scores) ||
        !mli_read_rows(graph, "ml_pool_weighted", given, x.rows, &read))
        return ml_none();
    if (scores.rows != x.rows || scores.cols != 1)
        return mli_cannot_fit(graph, "ml_pool_weighted", x, scores);
    mli_weighted_op op = {x, scores, ml_none(), NULL, mli_keep_rows(g, &read)};
    op.y = mli_result(g, (size_t)read.n_rows, x.cols, x.grad || scores.grad);
    op.p = mli_new_numbers(g, x.rows, 1, 0);
    mli_for_rows(g, mli_weighted_rows, &op, op.y.rows, x.cols * x.rows / op.y.rows);
    mli_record_of(g, op.y, mli_weighted_backward, &op, sizeof op);
    return op.y;
}

/* ---- positions: see >>layers ---- */

/* YaRN (Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models"): a pair that turns
   more than 32 times in the original context keeps its frequency, one that turns less than once is interpolated, and
   those between are mixed, by their numbers. Returns how much of pair j is interpolated. */
static double mli_yarn_share(const ml_rope_desc *desc, int j) {
    const double turns[2] = {32, 1}, two_pi = 6.28318530717958647692;
    double hd = (double)desc->hd, bound[2];
    /* the pair that turns so many times: original / theta^(2j / hd) = 2 pi turns */
    for (int i = 0; i < 2; i++)
        bound[i] = hd * log((double)desc->original / (two_pi * turns[i])) / (2 * log((double)desc->theta));
    double low = MLI_MAX(0.0, floor(bound[0])), high = MLI_MIN(hd - 1, ceil(bound[1]));
    double share = ((double)j - low) / MLI_MAX(0.001, high - low);
    return MLI_MAX(0.0, MLI_MIN(1.0, share));
}

ML_DEF ml_result ml_rope_table(const ml_rope_desc *given, float *table, int n_positions) {
    if (!given || !table || given->hd < 2 || given->hd % 2 || given->hd > 1 << 16) return ML_ERROR_ARGUMENT;
    ml_rope_desc desc = *given;
    if (desc.theta == 0) desc.theta = 10000;
    if (desc.scale == 0) desc.scale = 1;
    int hd = (int)desc.hd, is_yarn = desc.kind == ML_ROPE_YARN;
    if (!(desc.theta > 1) || !(desc.scale > 0) || (is_yarn && desc.original < 1) || n_positions < 1 ||
        (desc.kind != ML_ROPE_PLAIN && desc.kind != ML_ROPE_NTK && !is_yarn))
        return ML_ERROR_ARGUMENT;
    float theta = desc.theta, scale = desc.kind == ML_ROPE_PLAIN ? desc.scale : 1.0f;
    if (desc.kind == ML_ROPE_NTK && hd > 2) theta *= powf(desc.scale, (float)hd / (float)(hd - 2));
    for (int j = 0; j < hd / 2; j++) {
        float frequency = mli_rope_frequency(theta, j, hd);
        double share = is_yarn ? mli_yarn_share(&desc, j) : 0;
        if (is_yarn) frequency = (float)((double)frequency * (share / (double)desc.scale + 1 - share));
        mli_rope_pair(table, n_positions, hd, j, scale, frequency);
    }
    /* Queries and keys both are longer by this, which scales attention by its square. */
    float length = is_yarn && desc.scale > 1 ? 0.1f * logf(desc.scale) + 1.0f : 1.0f;
    if (is_yarn) mli_scale(table, length, (size_t)n_positions * desc.hd);
    return ML_OK;
}

typedef struct mli_rotate_op {
    ml_tensor x, y, table; /* (n, heads * hd), the same, (positions, hd) */
    const mli_rows *rows;
} mli_rotate_op;

static void mli_rotate_rows(const void *record, size_t begin, size_t end) {
    const mli_rotate_op *op = (const mli_rotate_op *)record;
    mli_rope_op in_place = {op->y, (const float *)op->table.data, op->table.cols, op->rows, 1.0f};
    memcpy(mli_row(op->y, begin), mli_row(op->x, begin), (end - begin) * op->x.cols * sizeof(float));
    mli_rope_rows(&in_place, begin, end);
}

/* dx += dy rotated back */
static void mli_rotate_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_rotate_op *op = (const mli_rotate_op *)record;
    size_t hd = op->table.cols;
    int r = 0;
    for (size_t i = begin; i < end; i++) {
        while (mli_row_start(op->rows, r + 1) <= i) r++;
        const float *dy = mli_grad_row(op->y, i), *turn = mli_row(op->table, i - mli_row_start(op->rows, r));
        float *dx = mli_grad_row(op->x, i);
        for (size_t head = 0; head < op->x.cols; head += hd)
            for (size_t j = 0; j < hd; j += 2) {
                float c = turn[j], s = turn[j + 1], a = dy[head + j], b = dy[head + j + 1];
                dx[head + j] += a * c + b * s;
                dx[head + j + 1] += b * c - a * s;
            }
    }
}

static void mli_rotate_backward(mli_graph *g, const void *record) {
    const mli_rotate_op *op = (const mli_rotate_op *)record;
    mli_for_rows(g, mli_rotate_gradient_rows, op, op->x.rows, op->x.cols);
}

ML_DEF ml_tensor ml_rotate(ml_graph *graph, ml_tensor x, ml_tensor table, ml_rows given) {
    mli_graph *g = mli_graph_of(graph);
    mli_rows read;
    if (!mli_accepts(graph, "ml_rotate", x) || !mli_accepts(graph, "ml_rotate", table) ||
        !mli_read_rows(graph, "ml_rotate", given, x.rows, &read))
        return ml_none();
    if (table.cols % 2 || x.cols % table.cols) return mli_cannot_fit(graph, "ml_rotate", x, table);
    if (mli_longest_row(&read) > table.rows)
        return mli_cannot(graph, ML_ERROR_CONTEXT, "ml_rotate: a row has %z tokens, the table %z positions",
                          mli_longest_row(&read), table.rows);
    mli_rotate_op op = {x, mli_result(g, x.rows, x.cols, x.grad != NULL), table, mli_keep_rows(g, &read)};
    mli_for_rows(g, mli_rotate_rows, &op, x.rows, x.cols);
    mli_record_of(g, op.y, mli_rotate_backward, &op, sizeof op);
    return op.y;
}

/* ---- attention: see >>layers ---- */

/* Whether the operands have the shapes that the heads ask for. */
static int mli_accepts_heads(ml_graph *graph, const ml_attention_desc *d, int n_kv_heads) {
    const char *name = "ml_attention";
    if (!mli_accepts(graph, name, d->q) || !mli_accepts(graph, name, d->k) || !mli_accepts(graph, name, d->v))
        return 0;
    if (d->n_heads < 1 || n_kv_heads < 1 || d->n_heads % n_kv_heads)
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: n_kv_heads %d does not divide n_heads %d", name,
                          n_kv_heads, d->n_heads),
               0;
    size_t heads = (size_t)d->n_heads, kv_heads = (size_t)n_kv_heads;
    if (d->q.cols % heads || d->v.cols % kv_heads)
        return mli_cannot(graph, ML_ERROR_MISMATCH,
                          "%s: q (%z, %z) or v (%z, %z) cannot be cut into %d and %d heads", name, d->q.rows,
                          d->q.cols, d->v.rows, d->v.cols, d->n_heads, n_kv_heads),
               0;
    if (d->k.cols != d->q.cols / heads * kv_heads) return mli_cannot_fit(graph, name, d->q, d->k), 0;
    if (d->k.rows != d->v.rows) return mli_cannot_fit(graph, name, d->k, d->v), 0;
    if (d->window < 0 || d->sinks < 0 || !(d->dropout >= 0 && d->dropout < 1) || !(d->scale >= 0) ||
        (d->mask != ML_MASK_DEFAULT && d->mask != ML_MASK_CAUSAL && d->mask != ML_MASK_FULL))
        return mli_cannot(graph, ML_ERROR_ARGUMENT,
                          "%s: mask, window, sinks, scale or dropout is out of range", name),
               0;
    return 1;
}

/* Whether each query has a key, and a bias for all keys that it may see. */
static int mli_accepts_keys(ml_graph *graph, const ml_attention_desc *d, const mli_rows *rows,
                            const mli_rows *keys) {
    const char *name = "ml_attention";
    if (rows->n_rows != keys->n_rows)
        mli_cannot(graph, ML_ERROR_MISMATCH, "%s: %d rows of queries, %d of keys", name, rows->n_rows,
                   keys->n_rows);
    for (int r = 0; !graph->result && r < rows->n_rows; r++) {
        size_t n = mli_row_start(rows, r + 1) - mli_row_start(rows, r);
        size_t n_keys = mli_row_start(keys, r + 1) - mli_row_start(keys, r);
        if (n_keys < n)
            mli_cannot(graph, ML_ERROR_MISMATCH, "%s: row %d has %z queries and only %z keys", name, r, n,
                       n_keys);
    }
    if (graph->result || !d->bias.data) return !graph->result;
    if (!mli_accepts(graph, name, d->bias)) return 0;
    size_t n = d->q.rows, longest = mli_longest_row(keys);
    if ((d->bias.rows != n && d->bias.rows != n * (size_t)d->n_heads) || d->bias.cols < longest)
        mli_cannot(graph, ML_ERROR_MISMATCH,
                   "%s: the bias is (%z, %z), not (%z, %z) or (%z, %z): queries or heads * queries, keys",
                   name, d->bias.rows, d->bias.cols, n, longest, n * (size_t)d->n_heads, longest);
    return !graph->result;
}

ML_DEF ml_tensor ml_attention(ml_graph *graph, const ml_attention_desc *d) {
    mli_graph *g = mli_graph_of(graph);
    mli_rows read, read_keys;
    if (!graph || !d) return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_attention: desc is NULL");
    int n_kv_heads = d->n_kv_heads ? d->n_kv_heads : d->n_heads, taping = g->taping;
    if (!mli_accepts_heads(graph, d, n_kv_heads) ||
        !mli_read_rows(graph, "ml_attention", d->rows, d->q.rows, &read) ||
        !mli_read_rows(graph, "ml_attention (keys)", d->key_rows.start ? d->key_rows : d->rows, d->k.rows,
                       &read_keys) ||
        !mli_accepts_keys(graph, d, &read, &read_keys))
        return ml_none();
    ml_config config;
    memset(&config, 0, sizeof config);
    config.mask = d->mask, config.n_heads = d->n_heads, config.n_kv_heads = n_kv_heads;
    mli_attention_op op = mli_plain_attention(d->q, d->k, d->v, &config, mli_keep_rows(g, &read));
    op.key_start = mli_keep_rows(g, &read_keys)->start;
    op.bias = d->bias;
    op.window = (size_t)d->window, op.sinks = (size_t)d->sinks;
    if (g->open->dropping) op.dropout = d->dropout, op.seed = d->seed;
    if (d->scale > 0) op.scale = d->scale;
    int learns = d->q.grad || d->k.grad || d->v.grad || d->bias.grad;
    ml_tensor out = mli_result(g, d->q.rows, op.hv * (size_t)d->n_heads, learns);
    g->taping = taping && learns;
    mli_run_attention(g, &op, out);
    g->taping = taping;
    return out;
}

ML_DEF ml_tensor ml_alibi(ml_graph *graph, int n_heads, ml_rows given, size_t n) {
    mli_graph *g = mli_graph_of(graph);
    mli_rows rows;
    if (n_heads < 1 || n < 1) mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_alibi: there are no heads or tokens");
    if (mli_failed(graph) || !mli_read_rows(graph, "ml_alibi", given, n, &rows)) return ml_none();
    ml_tensor bias = mli_result(g, (size_t)n_heads * n, mli_longest_row(&rows), 0);
    for (int h = 0, r = 0; h < n_heads && !mli_measuring(g); h++, r = 0) {
        float slope = powf(2.0f, -8.0f * (float)(h + 1) / (float)n_heads);
        for (size_t i = 0; i < n; i++) {
            while (mli_row_start(&rows, r + 1) <= i) r++;
            float *row = mli_row(bias, (size_t)h * n + i), position = (float)(i - mli_row_start(&rows, r));
            for (size_t j = 0; j < bias.cols; j++) row[j] = -slope * fabsf(position - (float)j);
        }
    }
    return bias;
}

/* ---- losses ---- */

/* The number of targets that count; -1 after ending the pass if one is out of range. */
static int mli_count_classes(ml_graph *graph, const char *name, const int32_t *targets, size_t n,
                             size_t n_classes) {
    int counted = 0;
    for (size_t i = 0; i < n; i++) {
        if (targets[i] >= 0 && (size_t)targets[i] >= n_classes)
            return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: target %z is %d, not below %z", name, i,
                              (int)targets[i], n_classes),
                   -1;
        counted += targets[i] >= 0;
    }
    return counted;
}

/* Adds the description to an operation that has its operands; 0 after ending the pass. What targets say is not read
   while a graph measures. */
static int mli_describe_loss(ml_graph *graph, const char *name, const ml_loss_desc *desc,
                             mli_cross_entropy_op *op) {
    int counted = 0;
    if (!desc || (!desc->targets && !desc->log_probs && !graph->measuring))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: there are no targets", name), 0;
    if (!(desc->divisor >= 0) || !(desc->smoothing >= 0 && desc->smoothing <= 1))
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: divisor or smoothing is out of range", name), 0;
    if (desc->whole && graph->private_part->open->whole)
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: another loss was said to be the whole", name), 0;
    if (desc->targets && !graph->measuring)
        counted =
            mli_count_classes(graph, name, desc->targets, op->h.rows, op->w.rows ? op->w.rows : op->h.cols);
    op->targets = desc->targets;
    op->divisor = desc->divisor > 0 ? desc->divisor : (float)MLI_MAX(counted, 1);
    op->smoothing = desc->smoothing;
    return !graph->result;
}

/* The operation whose operands are checked. A whole loss has no gradient and no record: that of its operands is
   computed here, as a trainer does. */
static ml_tensor mli_loss(ml_graph *graph, const char *name, mli_cross_entropy_op op,
                          const ml_loss_desc *desc) {
    mli_graph *g = mli_graph_of(graph);
    double loss = 0;
    if (!mli_describe_loss(graph, name, desc, &op)) return ml_none();
    int taping = g->taping, learns = op.h.grad || op.w.grad || op.b.grad, whole = desc->whole && taping;
    ml_tensor y = whole ? mli_tensor_at(mli_new_numbers(g, 1, 1, 2), 1, 1) : mli_result(g, 1, 1, learns);
    op.gradient = y.grad;
    mli_record_of(g, y, mli_cross_entropy_backward, &op, sizeof op);
    op.log_probs = desc->log_probs;
    op.loss = &loss;
    g->taping = taping && learns;
    mli_run_cross_entropy(g, &op, whole && learns);
    g->taping = taping;
    if (!mli_measuring(g)) mli_row(y, 0)[0] = (float)loss;
    if (whole) g->open->whole = y.data;
    return y;
}

ML_DEF ml_tensor ml_cross_entropy(ml_graph *graph, ml_tensor logits, const ml_loss_desc *desc) {
    mli_cross_entropy_op op;
    if (!mli_accepts(graph, "ml_cross_entropy", logits)) return ml_none();
    memset(&op, 0, sizeof op);
    op.h = logits;
    return mli_loss(graph, "ml_cross_entropy", op, desc);
}

ML_DEF ml_tensor ml_linear_cross_entropy(ml_graph *graph, ml_tensor x, ml_tensor w, ml_tensor b,
                                         const ml_loss_desc *desc) {
    mli_cross_entropy_op op;
    if (!mli_accepts_linear(graph, "ml_linear_cross_entropy", &x, &w, &b)) return ml_none();
    memset(&op, 0, sizeof op);
    op.h = x;
    op.w = w;
    op.b = b;
    return mli_loss(graph, "ml_linear_cross_entropy", op, desc);
}

typedef struct mli_squared_op {
    ml_tensor y, target, loss; /* (n, c), (n, c), (1, 1) */
    float divisor;
    int is_target; /* its gradient is computed, not that of y */
} mli_squared_op;

/* dy += 2 dloss (y - target) / divisor, and dtarget minus that */
static void mli_squared_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_squared_op *op = (const mli_squared_op *)record;
    size_t n = op->y.cols;
    float *d = op->is_target ? op->target.grad : op->y.grad;
    float factor = (op->is_target ? -2 : 2) * op->loss.grad[0] / op->divisor;
    mli_axpy(d + begin * n, factor, mli_row(op->y, begin), (end - begin) * n);
    mli_axpy(d + begin * n, -factor, mli_row(op->target, begin), (end - begin) * n);
}

static void mli_squared_backward(mli_graph *g, const void *record) {
    mli_squared_op op = *(const mli_squared_op *)record;
    if (op.y.grad) mli_for_rows(g, mli_squared_gradient_rows, &op, op.y.rows, op.y.cols);
    op.is_target = 1;
    if (op.target.grad) mli_for_rows(g, mli_squared_gradient_rows, &op, op.y.rows, op.y.cols);
}

/* Whether the operands of a loss between two matrices fit. */
static int mli_accepts_both(ml_graph *graph, const char *name, ml_tensor x, ml_tensor y, float divisor) {
    if (!mli_accepts(graph, name, x) || !mli_accepts(graph, name, y)) return 0;
    if (x.rows != y.rows || x.cols != y.cols) mli_cannot_fit(graph, name, x, y);
    if (!(divisor >= 0)) mli_cannot(graph, ML_ERROR_ARGUMENT, "%s: the divisor is negative", name);
    return !graph->result;
}

ML_DEF ml_tensor ml_squared_error(ml_graph *graph, ml_tensor y, ml_tensor target, float divisor) {
    mli_graph *g = mli_graph_of(graph);
    double sum = 0;
    if (!mli_accepts_both(graph, "ml_squared_error", y, target, divisor)) return ml_none();
    mli_squared_op op = {y, target, mli_result(g, 1, 1, y.grad || target.grad), divisor, 0};
    if (!(divisor > 0)) op.divisor = (float)mli_numbers(&y);
    for (size_t i = 0; i < mli_numbers(&y) && !mli_measuring(g); i++) {
        double d = (double)mli_row(y, 0)[i] - (double)mli_row(target, 0)[i];
        sum += d * d;
    }
    if (!mli_measuring(g)) mli_row(op.loss, 0)[0] = (float)(sum / (double)op.divisor);
    mli_record_of(g, op.loss, mli_squared_backward, &op, sizeof op);
    return op.loss;
}

/* ---- the Kullback-Leibler divergence (Kullback & Leibler 1951, "On Information and Sufficiency") ----

   KL(p || q) = sum of p (log p - log q), p = softmax(x), q = softmax(y), in double
   dx = p (log p - log q - KL) dloss / divisor      dy = (q - p) dloss / divisor */

typedef struct mli_kl_row {
    double x_log_sum, y_log_sum; /* log p = x - x_log_sum */
    double divergence;
} mli_kl_row;

typedef struct mli_kl_op {
    ml_tensor x, y, loss; /* (n, c), (n, c), (1, 1) */
    mli_kl_row *of;       /* (n) */
    float divisor;
    int is_y; /* its gradient is computed, not that of x */
} mli_kl_op;

static double mli_log_sum(const float *x, size_t n) {
    double max = (double)mli_max(x, n), sum = 0;
    for (size_t j = 0; j < n; j++) sum += exp((double)x[j] - max);
    return max + log(sum);
}

static void mli_kl_rows(const void *record, size_t begin, size_t end) {
    const mli_kl_op *op = (const mli_kl_op *)record;
    for (; begin < end; begin++) {
        const float *x = mli_row(op->x, begin), *y = mli_row(op->y, begin);
        mli_kl_row row = {mli_log_sum(x, op->x.cols), mli_log_sum(y, op->x.cols), 0};
        for (size_t j = 0; j < op->x.cols; j++) {
            double log_p = (double)x[j] - row.x_log_sum, p = exp(log_p);
            if (p != 0) row.divergence += p * (log_p - ((double)y[j] - row.y_log_sum));
        }
        op->of[begin] = row;
    }
}

static void mli_kl_gradient_rows(const void *record, size_t begin, size_t end) {
    const mli_kl_op *op = (const mli_kl_op *)record;
    double unit = (double)op->loss.grad[0] / (double)op->divisor;
    for (; begin < end; begin++) {
        const float *x = mli_row(op->x, begin), *y = mli_row(op->y, begin);
        float *d = op->is_y ? mli_grad_row(op->y, begin) : mli_grad_row(op->x, begin);
        mli_kl_row row = op->of[begin];
        for (size_t j = 0; j < op->x.cols; j++) {
            double log_p = (double)x[j] - row.x_log_sum, log_q = (double)y[j] - row.y_log_sum, p = exp(log_p);
            if (op->is_y)
                d[j] += (float)(unit * (exp(log_q) - p));
            else if (p != 0)
                d[j] += (float)(unit * p * (log_p - log_q - row.divergence));
        }
    }
}

static void mli_kl_backward(mli_graph *g, const void *record) {
    mli_kl_op op = *(const mli_kl_op *)record;
    if (op.x.grad) mli_for_rows(g, mli_kl_gradient_rows, &op, op.x.rows, 16 * op.x.cols);
    op.is_y = 1;
    if (op.y.grad) mli_for_rows(g, mli_kl_gradient_rows, &op, op.x.rows, 16 * op.x.cols);
}

ML_DEF ml_tensor ml_kl_divergence(ml_graph *graph, ml_tensor x, ml_tensor y, float divisor) {
    mli_graph *g = mli_graph_of(graph);
    double sum = 0;
    if (!mli_accepts_both(graph, "ml_kl_divergence", x, y, divisor)) return ml_none();
    mli_kl_op op = {x, y, mli_result(g, 1, 1, x.grad || y.grad), NULL, divisor, 0};
    if (!(divisor > 0)) op.divisor = (float)x.rows;
    op.of = (mli_kl_row *)mli_graph_alloc(g, x.rows, sizeof *op.of);
    mli_for_rows(g, mli_kl_rows, &op, x.rows, 16 * x.cols);
    for (size_t i = 0; i < x.rows && !mli_measuring(g); i++) sum += op.of[i].divergence;
    if (!mli_measuring(g)) mli_row(op.loss, 0)[0] = (float)(sum / (double)op.divisor);
    mli_record_of(g, op.loss, mli_kl_backward, &op, sizeof op);
    return op.loss;
}

/* ---- an operation of the caller's ---- */

typedef struct mli_custom_record {
    ml_custom op;
    ml_custom_function backward;
} mli_custom_record;

static void mli_call_custom(ml_graph *graph, ml_custom_function function, const ml_custom *op, int backward) {
    ml_result result = graph->result ? ML_OK : function(op);
    if (result)
        mli_cannot(graph, result, "%s: its %s function returned %d (%s)", op->name,
                   backward ? "backward" : "forward", (int)result, ml_result_string(result));
}

static void mli_custom_backward(mli_graph *g, const void *record) {
    const mli_custom_record *custom = (const mli_custom_record *)record;
    mli_call_custom(&g->open->shown, custom->backward, &custom->op, 1);
}

ML_DEF ml_tensor ml_custom_op(ml_graph *graph, const ml_custom_desc *desc) {
    mli_graph *g = mli_graph_of(graph);
    mli_custom_record custom;
    ml_custom *op = &custom.op;
    int learns = 0;
    if (mli_failed(graph)) return ml_none();
    if (!desc || !desc->forward || !desc->inputs || desc->n_inputs < 1 || desc->n_inputs > ML_MAX_INPUTS ||
        !mli_is_shape(desc->rows, desc->cols))
        return mli_cannot(graph, ML_ERROR_ARGUMENT,
                          "ml_custom_op: forward, inputs, rows or cols is missing, or n_inputs not 1 to %d",
                          ML_MAX_INPUTS);
    memset(&custom, 0, sizeof custom);
    op->name = desc->name ? desc->name : "ml_custom_op";
    op->n_inputs = desc->n_inputs;
    op->user = desc->user;
    custom.backward = desc->backward;
    for (int i = 0; i < desc->n_inputs; i++) {
        if (!mli_accepts(graph, op->name, desc->inputs[i])) return ml_none();
        op->inputs[i] = desc->inputs[i];
        learns |= desc->backward && desc->inputs[i].grad;
    }
    op->output = mli_result(g, desc->rows, desc->cols, learns);
    if (desc->keep) op->kept = mli_graph_alloc(g, desc->keep, 1);
    if (!mli_measuring(g)) mli_call_custom(graph, desc->forward, op, 0);
    mli_record_of(g, op->output, mli_custom_backward, &custom, sizeof custom);
    return graph->result ? ml_none() : op->output;
}

/* ---- the whole Llama as one operation ---- */

/* A pass of ml_llama. It is on the graph, because records point to it. */
typedef struct mli_llama {
    ml_llama_desc desc;
    ml_model model; /* over desc.weights */
    ml_lora lora;   /* over desc.lora_weights */
    mli_rows rows;
    mli_pass pass;
} mli_llama;

/* Places inside a layer. */
#define MLI_INNER_PLACES (((1u << ML_PLACES) - 1) & ~(1u << ML_PLACE_EMBEDDING) & ~(1u << ML_PLACE_BLOCK))

static const char *mli_place_name(ml_place place) {
    static const char *const names[ML_PLACES] = {"EMBEDDING", "Q",  "K",      "V",  "O",   "ATTENTION",
                                                 "W1",        "W3", "HIDDEN", "W2", "FFN", "BLOCK"};
    return names[place];
}

/* z, of y's shape, is what the caller uses in place of y; y if no place is wanted there. */
static ml_tensor mli_insert(mli_graph *g, const mli_pass *pass, unsigned at, int layer, ml_tensor x,
                            ml_tensor y) {
    if (!mli_wants(pass, at)) return y;
    const ml_llama_desc *desc = &pass->llama->desc;
    ml_graph *shown = &g->open->shown;
    ml_insertion insertion = {ML_PLACE_EMBEDDING, layer, x, y};
    while (!(at >> insertion.place & 1)) insertion.place = (ml_place)(insertion.place + 1);
    if (shown->result) return y;
    ml_tensor z = desc->insert(shown, &insertion, desc->user);
    if (shown->result) return y;
    if (z.rows != y.rows || z.cols != y.cols)
        mli_cannot(shown, ML_ERROR_MISMATCH,
                   "ml_llama: the insertion at ML_PLACE_%s of layer %d is (%z, %z), not (%z, %z)",
                   mli_place_name(insertion.place), layer, z.rows, z.cols, y.rows, y.cols);
    return mli_accepts(shown, "ml_llama", z) ? z : y;
}

/* A copy of x with a gradient of its own, which is added to that of x. */
static ml_tensor mli_tap(mli_graph *g, ml_tensor x) {
    return mli_copy(g, x, mli_result(g, x.rows, x.cols, x.grad != NULL));
}

/* The stream x (n, D) before layer 0 (part 0) or after layer part - 1: what a place and the caller's `states` have of
   it. Layers change the stream in place or share its gradient, so he gets copies, and so does the stream from him. */
static ml_tensor mli_stream_at(mli_graph *g, const mli_pass *pass, unsigned at, int part, ml_tensor x) {
    if (!pass->llama) return x;
    ml_tensor *states = pass->llama->desc.states;
    g->taping = g->open->shown.taping;
    if (mli_wants(pass, at)) {
        ml_tensor y = mli_tap(g, x);
        x = mli_tap(g, mli_insert(g, pass, at, MLI_MAX(0, part - 1), y, y));
    }
    if (states) states[part] = mli_tap(g, x);
    return x;
}

static void mli_extend_attention(mli_graph *g, const mli_pass *pass, int layer, mli_attention_op *op) {
    if (!pass->llama) return;
    const ml_llama_desc *desc = &pass->llama->desc;
    if (desc->prefix_keys) {
        op->k = mli_prepend(g, desc->prefix_keys[layer], op->k, pass->rows);
        op->v = mli_prepend(g, desc->prefix_values[layer], op->v, pass->rows);
        op->prefix = desc->prefix_keys[layer].rows;
    }
    op->bias = desc->bias;
    op->window = (size_t)desc->window, op->sinks = (size_t)desc->sinks;
    if (!g->open->dropping) return;
    uint64_t state = desc->seed;
    state = mli_splitmix64(&state) + (uint64_t)layer; /* not that of another layer with the next seed */
    op->dropout = desc->dropout, op->seed = mli_splitmix64(&state);
}

/* Whether something inside of a layer learns. What is inserted does. */
static int mli_layer_learns(const mli_llama *own, int layer) {
    const ml_llama_desc *desc = &own->desc;
    const ml_tensor *weights = own->model.tensors + MLI_GLOBAL_SLOTS + layer * MLI_LAYER_SLOTS;
    int learns = desc->bias.grad || (desc->places & MLI_INNER_PLACES);
    for (int i = 0; i < MLI_LAYER_SLOTS; i++) learns |= weights[i].grad != NULL;
    for (int i = 0; own->pass.lora && i < 2 * MLI_LORA_TARGETS; i++)
        learns |= own->pass.lora->tensors[layer * 2 * MLI_LORA_TARGETS + i].grad != NULL;
    if (desc->prefix_keys)
        learns |= desc->prefix_keys[layer].grad != NULL || desc->prefix_values[layer].grad != NULL;
    return learns;
}

/* How many parts from below learn nothing: of the embedding, the layers and the last norm. */
static int mli_count_frozen(const mli_llama *own) {
    const ml_tensor *weights = own->model.tensors;
    int part = 0, n_layers = own->model.config.n_layers;
    if (weights[MLI_TOKEN_EMBEDDING].grad) return part;
    for (part = 1; part <= n_layers; part++)
        if (mli_layer_learns(own, part - 1)) return part;
    return part + !(weights[MLI_OUTPUT_NORM].grad || weights[MLI_OUTPUT_NORM_BIAS].grad);
}

/* Computes a pass whose description is checked. n_frozen: see mli_count_frozen; -1: to be counted. */
static ml_tensor mli_llama_pass(ml_graph *graph, const ml_llama_desc *desc, const mli_rows *rows,
                                int n_frozen) {
    mli_graph *g = mli_graph_of(graph);
    mli_llama plan, *own = (mli_llama *)mli_graph_alloc(g, 1, sizeof *own);
    if (mli_measuring(g)) own = &plan; /* nothing is recorded */
    memset(own, 0, sizeof *own);
    own->desc = *desc;
    own->model = *desc->model;
    if (desc->weights) own->model.tensors = desc->weights;
    if (desc->lora) own->lora = *desc->lora;
    if (desc->lora_weights) own->lora.tensors = desc->lora_weights;
    own->rows = *rows;
    if (rows->start == rows->single) own->rows.start = own->rows.single;
    own->pass = mli_pass_over(&own->model, desc->lora ? &own->lora : NULL, &own->rows);
    own->pass.tokens = desc->batch->tokens, own->pass.n_tokens = desc->batch->n_tokens;
    own->pass.rope = desc->no_rope ? NULL : (const float *)desc->rope.data;
    own->pass.places = desc->places | MLI_AT_END;
    own->pass.llama = own;
    own->pass.n_frozen = n_frozen < 0 ? mli_count_frozen(own) : n_frozen;
    g->checkpointing = desc->checkpointing;
    ml_tensor hidden = mli_network(g, &own->pass);
    g->taping = graph->taping;
    g->checkpointing = 0;
    return hidden;
}

/* Whether `weights`, the caller's, have the shapes of `own`, those of the model or the adapter. */
static int mli_accepts_weights(ml_graph *graph, const char *name, const ml_tensor *weights,
                               const ml_tensor *own, int n) {
    for (int i = 0; weights && i < n && !graph->result; i++) {
        const ml_tensor *a = &weights[i], *b = &own[i];
        if (!a->data != !b->data)
            mli_cannot(graph, ML_ERROR_MISMATCH, "ml_llama: %s[%d] has %s data", name, i,
                       a->data ? "unexpected" : "no");
        else if (a->data && (a->rows != b->rows || a->cols != b->cols))
            mli_cannot(graph, ML_ERROR_MISMATCH, "ml_llama: %s[%d] is (%z, %z), not (%z, %z)", name, i,
                       a->rows, a->cols, b->rows, b->cols);
        else if (a->data && a->grad && a->type != ML_F32)
            mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: %s[%d] has a gradient and is %s, not F32", name,
                       i, ml_type_name(a->type));
        else if (a->data && a->type != ML_F32 && a->type != b->type)
            mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: %s[%d] is %s; it may be F32 or stay %s", name, i,
                       ml_type_name(a->type), ml_type_name(b->type));
        else if (a->data && mli_is_gone(graph->private_part->open, *a))
            mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: %s[%d] is the result of an earlier pass", name,
                       i);
    }
    return !graph->result;
}

/* Whether the parts of a description are there and fit together. */
static int mli_accepts_llama(ml_graph *graph, const ml_llama_desc *desc) {
    ml_error error;
    if (!desc || !desc->model || !desc->batch)
        return mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: desc, desc.model or desc.batch is NULL"), 0;
    const ml_model *model = desc->model;
    if (desc->places >> ML_PLACES || (desc->places && !desc->insert))
        mli_cannot(graph, ML_ERROR_ARGUMENT,
                   "ml_llama: places is not a sum of 1u << ML_PLACE_..., or insert is NULL");
    else if (desc->lora_weights && !desc->lora)
        mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: lora_weights without lora");
    else if (!desc->prefix_keys != !desc->prefix_values)
        mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: prefix_keys and prefix_values go together");
    else if (desc->lora && mli_lora_check(model, desc->lora, &error))
        mli_cannot(graph, error.code, "%s", error.text);
    return mli_accepts_weights(graph, "weights", desc->weights, model->tensors, model->n_tensors) &&
           (!desc->lora || mli_accepts_weights(graph, "lora_weights", desc->lora_weights, desc->lora->tensors,
                                               desc->lora->n_tensors));
}

/* Whether prefixes and bias have the shapes of the layers' keys and values, and of the batch. */
static int mli_accepts_keys_of(ml_graph *graph, const ml_llama_desc *desc, const mli_rows *rows) {
    const ml_config *c = &desc->model->config;
    size_t kv_dim = (size_t)mli_extent_of(c, MLI_KV_DIM), longest = 0, n = (size_t)desc->batch->n_tokens;
    for (int layer = 0; desc->prefix_keys && layer < c->n_layers; layer++) {
        ml_tensor k = desc->prefix_keys[layer], v = desc->prefix_values[layer];
        if (!mli_accepts(graph, "ml_llama: prefix", k) || !mli_accepts(graph, "ml_llama: prefix", v))
            return 0;
        if (k.cols != kv_dim || v.cols != kv_dim || k.rows != v.rows)
            return mli_cannot(graph, ML_ERROR_MISMATCH,
                              "ml_llama: the prefix of layer %d is (%z, %z) and (%z, %z), not (P, %z) both",
                              layer, k.rows, k.cols, v.rows, v.cols, kv_dim),
                   0;
        longest = MLI_MAX(longest, k.rows);
    }
    longest += mli_longest_row(rows);
    if (desc->window < 0 || desc->sinks < 0 || !(desc->dropout >= 0 && desc->dropout < 1))
        mli_cannot(graph, ML_ERROR_ARGUMENT, "ml_llama: window, sinks or dropout is out of range");
    if (graph->result || !desc->bias.data) return !graph->result;
    ml_tensor bias = desc->bias;
    if (!mli_accepts(graph, "ml_llama: bias", bias)) return 0;
    if ((bias.rows != n && bias.rows != n * (size_t)c->n_heads) || bias.cols < longest)
        mli_cannot(graph, ML_ERROR_MISMATCH,
                   "ml_llama: the bias is (%z, %z), not (%z, %z) or (%z, %z): tokens or heads * tokens, keys",
                   bias.rows, bias.cols, n, longest, n * (size_t)c->n_heads, longest);
    return !graph->result;
}

/* The table of rotations by the model's configuration, for rows of up to n_positions tokens. */
static ml_tensor mli_make_rope(mli_graph *g, const ml_config *c, size_t n_positions) {
    size_t hd = (size_t)(c->dim / c->n_heads);
    ml_tensor table = mli_result(g, n_positions, hd, 0);
    if (!mli_measuring(g)) mli_rope_table((float *)table.data, (int)n_positions, c);
    return table;
}

ML_DEF ml_tensor ml_llama(ml_graph *graph, const ml_llama_desc *given) {
    mli_graph *g = mli_graph_of(graph);
    ml_error error;
    mli_rows rows;
    if (mli_failed(graph) || !mli_accepts_llama(graph, given)) return ml_none();
    ml_llama_desc desc = *given;
    const ml_config *c = &desc.model->config;
    size_t hd = (size_t)(c->dim / c->n_heads);
    int has_table = desc.rope.data && !desc.no_rope;
    mli_batch_limits most = {"graph", "table of rotations", MLI_MAX_TOKENS, MLI_MAX_TOKENS, MLI_MAX_TOKENS};
    if (has_table && (!mli_accepts(graph, "ml_llama: rope", desc.rope) || desc.rope.cols != hd))
        return mli_cannot(graph, ML_ERROR_MISMATCH, "ml_llama: rope is (%z, %z), not (positions, %z)",
                          desc.rope.rows, desc.rope.cols, hd);
    if (has_table) most.row = (int)MLI_MIN(desc.rope.rows, MLI_MAX_TOKENS);
    if (mli_check_batch(desc.model, desc.batch, &most, &rows, &error))
        return mli_cannot(graph, error.code, "%s", error.text);
    if (!mli_accepts_keys_of(graph, &desc, &rows)) return ml_none();
    if (!has_table && !desc.no_rope) desc.rope = mli_make_rope(g, c, mli_longest_row(&rows));
    ml_tensor hidden = mli_llama_pass(graph, &desc, &rows, -1);
    return graph->result ? ml_none() : hidden;
}

/* ---- checking a gradient ---- */

/* One pass; with taping, the tensors' gradients are those of its loss afterwards. */
static ml_result mli_check_pass(ml_graph *g, const ml_check_desc *desc, int taping, double *loss,
                                ml_error *error) {
    for (int i = 0; taping && i < desc->n_tensors; i++)
        memset(desc->tensors[i]->grad, 0, mli_numbers(desc->tensors[i]) * sizeof(float));
    ml_graph_begin(g, taping);
    g->private_part->open->dropping = 1;
    ml_tensor y = desc->build(g, desc->user);
    if (!g->result && (!y.data || y.rows != 1 || y.cols != 1))
        mli_cannot(g, ML_ERROR_MISMATCH, "ml_check_gradient: the loss is (%z, %z), not (1, 1)", y.rows,
                   y.cols);
    ml_result result = taping ? ml_graph_backward(g, y, error) : ml_graph_end(g, error);
    if (!result) *loss = (double)mli_row(y, 0)[0];
    if (result || mli_is_finite(*loss)) return result;
    return mli_fail(error, ML_ERROR_NUMBER, "ml_check_gradient: the loss is not finite");
}

/* A direction: a number of 1 or -1 for each of the tensor's. */
static double mli_random_sign(uint64_t *state) { return mli_splitmix64(state) >> 63 ? -1.0 : 1.0; }

/* The derivative along a direction, by the gradient. */
static double mli_slope(const ml_tensor *t, uint64_t direction) {
    double slope = 0;
    for (size_t i = 0; i < mli_numbers(t); i++) slope += (double)t->grad[i] * mli_random_sign(&direction);
    return slope;
}

/* The same by the losses at four places. The tensor's numbers are kept in the memory of its gradient. */
static ml_result mli_difference(ml_graph *g, const ml_check_desc *desc, const ml_tensor *t,
                                uint64_t direction, double *slope, ml_error *error) {
    static const int steps[4] = {1, -1, 2, -2}, factors[4] = {8, -8, -1, 1};
    double h = desc->step;
    ml_result result = ML_OK;
    *slope = 0;
    for (int k = 0; k < 4 && !result; k++) {
        uint64_t state = direction;
        double loss = 0;
        for (size_t i = 0; i < mli_numbers(t); i++)
            ((float *)t->data)[i] = (float)((double)t->grad[i] + steps[k] * h * mli_random_sign(&state));
        result = mli_check_pass(g, desc, 0, &loss, error);
        *slope += factors[k] * loss / (12 * h);
    }
    memcpy(t->data, t->grad, mli_numbers(t) * sizeof(float));
    return result;
}

static double mli_length(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

#define MLI_MAX_DIRECTIONS 64

/* Checks one tensor, whose gradient is there, and leaves something else in its place. */
static ml_result mli_check_tensor(ml_graph *g, const ml_check_desc *given, const ml_tensor *t, double loss,
                                  double *worst, ml_error *error) {
    uint64_t directions[MLI_MAX_DIRECTIONS];
    double slopes[MLI_MAX_DIRECTIONS], size = mli_length((float *)t->data, mli_numbers(t));
    ml_check_desc desc = *given;
    if (desc.step == 0) desc.step = size > 0 ? 0.01 * size / sqrt((double)mli_numbers(t)) : 0.01;
    for (int i = 0; i < desc.n_directions; i++) {
        directions[i] = ml_random_u64(desc.random);
        slopes[i] = mli_slope(t, directions[i]);
        if (!mli_is_finite(slopes[i]))
            return mli_fail(error, ML_ERROR_NUMBER, "ml_check_gradient: a gradient is not finite");
    }
    double length = MLI_MAX(mli_length(t->grad, mli_numbers(t)), 2e-5 * fabs(loss) / desc.step);
    memcpy(t->grad, t->data, mli_numbers(t) * sizeof(float));
    for (int i = 0; i < desc.n_directions; i++) {
        double slope;
        ml_result result = mli_difference(g, &desc, t, directions[i], &slope, error);
        if (result) return result;
        double apart = fabs(slope - slopes[i]);
        if (apart > *worst * length) *worst = apart / length;
    }
    return ML_OK;
}

static ml_result mli_check_check(const ml_check_desc *desc, ml_error *error) {
    if (!desc->build || !desc->tensors || desc->n_tensors < 1 || !desc->random)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_check_gradient needs build, tensors and random");
    if (desc->n_directions < 0 || desc->n_directions > MLI_MAX_DIRECTIONS)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_check_gradient: n_directions is %d, not 0 to %d",
                        desc->n_directions, MLI_MAX_DIRECTIONS);
    if (!(desc->step >= 0 && desc->step <= 1e6))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_check_gradient: the step is out of range");
    for (int i = 0; i < desc->n_tensors; i++) {
        const ml_tensor *t = desc->tensors[i];
        if (!t || !t->data || !t->grad || t->type != ML_F32 || !mli_numbers(t))
            return mli_fail(error, ML_ERROR_ARGUMENT,
                            "ml_check_gradient: tensor %d is not F32 with data and a gradient", i);
    }
    return ML_OK;
}

ML_DEF ml_result ml_check_gradient(ml_graph *graph, const ml_check_desc *given, double *worst,
                                   ml_error *error) {
    double loss, again;
    if (!graph || !given || !worst) return mli_null(error, "ml_check_gradient");
    ml_check_desc desc = *given;
    *worst = 0;
    ml_result result = mli_check_check(&desc, error);
    if (!desc.n_directions) desc.n_directions = 8;
    if (!result) result = mli_check_pass(graph, &desc, 1, &loss, error);
    for (int i = 0; !result && i < desc.n_tensors; i++)
        result = mli_check_tensor(graph, &desc, desc.tensors[i], loss, worst, error);
    if (!result) result = mli_check_pass(graph, &desc, 1, &again, error); /* the gradients again */
    if (!result && loss != again)
        result = mli_fail(error, ML_ERROR_ARGUMENT, "ml_check_gradient: build gave two different losses");
    return result;
}
#endif /* ML_NO_TRAINING */

/* ==== >>training ====
   One step of training: the network and its loss are computed for a batch (forward), the gradient of the loss with
   respect to every trained number is accumulated (backward), and AdamW moves each number against its gradient. Here
   are the schedule of the learning rate, AdamW over any list of tensors, and the trainer, which joins both with a
   model. */

#ifndef ML_NO_TRAINING

/* ---- schedule; cosine: Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts" ---- */

ML_DEF float ml_schedule_factor(const ml_schedule *schedule, int64_t step) {
    if (!schedule) return 1.0f;
    double warmup = (double)schedule->warmup_steps, span = (double)schedule->total_steps - warmup;
    if (step < schedule->warmup_steps) return (float)((double)(step + 1) / warmup);
    if (schedule->decay == ML_DECAY_NONE) return 1.0f;
    double done = span > 0 ? MLI_MIN(1.0, ((double)step - warmup) / span) : 1.0, rest = 1.0 - done;
    if (schedule->decay == ML_DECAY_COSINE) rest = 0.5 * (1.0 + cos(3.14159265358979323846 * done));
    return (float)((double)schedule->final + (1.0 - (double)schedule->final) * rest);
}

/* ---- AdamW ----

   m and v are running means of the gradient g and of g^2. They start at 0, so that after t steps they hold only the
   share c1 = 1 - b1^t and c2 = 1 - b2^t of a mean: m / c1 and v / c2 are unbiased, and the step is
       w -= lr (m / c1) / (sqrt(v / c2) + eps)                  about lr for every number, however large its gradient
          = lr / c1 * m / (sqrt(v) / sqrt(c2) + eps)            ML_ADAMW_PYTORCH, with root = 1 / sqrt(c2)
          = lr sqrt(c2) / c1 * m / (sqrt(v) + eps sqrt(c2))     ML_ADAMW_FOLDED, which writes eps for eps sqrt(c2)
   Weight decay is not part of g: it multiplies w by 1 - lr decay, before the step or after it. */

typedef struct mli_trained {
    ml_tensor *t; /* with its gradient */
    float *m, *v; /* its moments, of the same shape */
    int group;
} mli_trained;

/* A piece of a trained tensor, at most MLI_UPDATE_NUMBERS long: what a task takes at a time. The pieces, and so the
   sums over them, are the same for every number of threads. */
#define MLI_UPDATE_NUMBERS (1 << 15)
typedef struct mli_update {
    float *w, *m, *v, *grad; /* (n) */
    size_t n;
    int group;
    double square_sum; /* of grad */
} mli_update;

typedef struct ml_optimizer_private {
    ml_optimizer shown; /* with the groups, their defaults filled in */
    ml_adamw adamw;
    ml_schedule schedule;
    ml_threads threads;
    mli_adamw_step *steps; /* (n_groups): of the step that is being made */
    mli_trained *trained;  /* (n_trained) */
    mli_update *updates;   /* (n_updates) */
    int n_groups, n_trained, n_updates;
    size_t n_numbers;           /* in all trained tensors */
    float *gradients, *moments; /* (n_numbers), (2 n_numbers): m and v of each tensor */
    ml_allocator allocator;     /* of ml_optimizer_new ... */
    void *block;                /* ... and what it returned; NULL after ml_optimizer_init */
} mli_optimizer;

/* Appends a tensor and gives it its gradient and moments. An optimizer without memory only counts. */
static void mli_optimizer_add(mli_optimizer *o, ml_tensor *t, int group) {
    size_t n = mli_numbers(t);
    if (o->trained) {
        float *w = (float *)t->data, *m = o->moments + 2 * o->n_numbers, *v = m + n;
        mli_trained trained = {t, m, v, group};
        o->trained[o->n_trained] = trained;
        t->grad = o->gradients + o->n_numbers;
        for (size_t i = 0, k = (size_t)o->n_updates; i < n; i += MLI_UPDATE_NUMBERS, k++) {
            size_t part = MLI_MIN(MLI_UPDATE_NUMBERS, n - i);
            mli_update update = {w + i, m + i, v + i, t->grad + i, part, group, 0};
            o->updates[k] = update;
        }
    }
    o->n_trained++;
    o->n_updates += (int)((n + MLI_UPDATE_NUMBERS - 1) / MLI_UPDATE_NUMBERS);
    o->n_numbers += n;
    o->shown.n_parameters = (int64_t)o->n_numbers;
}

static void mli_optimizer_clear(mli_optimizer *o) {
    o->n_trained = o->n_updates = 0;
    o->n_numbers = 0;
}

/* The optimizer's part of a buffer, after all tensors have been counted. */
static void mli_optimizer_layout(mli_optimizer *o, unsigned char *memory, size_t *used) {
    size_t n_groups = (size_t)o->n_groups;
    o->shown.groups = (ml_group *)mli_carve(memory, used, n_groups, sizeof *o->shown.groups);
    o->steps = (mli_adamw_step *)mli_carve(memory, used, n_groups, sizeof *o->steps);
    o->trained = (mli_trained *)mli_carve(memory, used, (size_t)o->n_trained, sizeof *o->trained);
    o->updates = (mli_update *)mli_carve(memory, used, (size_t)o->n_updates, sizeof *o->updates);
    /* for each trained number: 4 bytes of gradient, 8 bytes of moments */
    o->gradients = (float *)mli_carve(memory, used, o->n_numbers, sizeof *o->gradients);
    o->moments = (float *)mli_carve(memory, used, o->n_numbers, 2 * sizeof *o->moments);
}

static void mli_square_sums(const void *optimizer, size_t begin, size_t end) {
    for (mli_update *u = ((const mli_optimizer *)optimizer)->updates + begin; begin < end; begin++, u++) {
        u->square_sum = 0;
        for (size_t i = 0; i < u->n; i += 1024)
            u->square_sum += (double)mli_dot(u->grad + i, u->grad + i, MLI_MIN(1024, u->n - i));
    }
}

/* The length of all gradients as one vector. */
static double mli_gradient_norm(const mli_optimizer *o) {
    double square_sum = 0;
    mli_split_rows(&o->threads, mli_square_sums, o, (size_t)o->n_updates, o->n_numbers);
    for (int i = 0; i < o->n_updates; i++) square_sum += o->updates[i].square_sum;
    return sqrt(square_sum);
}

static void mli_adamw_updates(const void *optimizer, size_t begin, size_t end) {
    const mli_optimizer *o = (const mli_optimizer *)optimizer;
    for (const mli_update *u = o->updates + begin; begin < end; begin++, u++)
        mli_adamw(&o->steps[u->group], u->w, u->m, u->v, u->grad, u->n);
}

/* Whether a group's rate and decay can be computed with; NaN cannot. */
static int mli_is_in_range(float lr, float weight_decay) {
    return lr >= 0 && lr <= 1e6f && weight_decay >= 0 && weight_decay <= 1e6f;
}

static int mli_adamw_in_range(const ml_adamw *a) {
    return mli_is_in_range(a->lr, a->weight_decay) && a->beta1 > 0 && a->beta1 < 1 && a->beta2 > 0 &&
           a->beta2 < 1 && a->eps > 0 && a->clip >= 0;
}

static void mli_adamw_defaults(ml_adamw *a) {
    if (a->beta1 == 0) a->beta1 = 0.9f;
    if (a->beta2 == 0) a->beta2 = 0.999f;
    if (a->eps == 0) a->eps = 1e-6f;
}

/* Fills in o->steps from the groups, for gradients that together are `norm` long. */
static ml_result mli_plan_steps(mli_optimizer *o, double norm, ml_error *error) {
    const ml_adamw *a = &o->adamw;
    double number = (double)o->shown.step + 1;
    double c1 = 1.0 - pow((double)a->beta1, number), c2 = 1.0 - pow((double)a->beta2, number);
    int pytorch = a->form == ML_ADAMW_PYTORCH;
    float clip = a->clip > 0 ? (float)MLI_MIN(1.0, (double)a->clip / (norm + 1e-6)) : 1.0f;
    float root = pytorch ? (float)(1.0 / sqrt(c2)) : 1.0f;
    float factor = ml_schedule_factor(&o->schedule, o->shown.step);
    for (int i = 0; i < o->n_groups; i++) {
        float lr = o->shown.groups[i].lr * factor, decay = o->shown.groups[i].weight_decay;
        if (!o->shown.groups[i].frozen && !mli_is_in_range(lr, decay))
            return mli_fail(error, ML_ERROR_ARGUMENT,
                            "group %d: the learning rate or weight decay is out of range", i);
        float rate = (float)((double)lr * (pytorch ? 1.0 : sqrt(c2)) / c1);
        mli_adamw_step step = {clip, a->beta1, a->beta2, a->eps, rate, root, 1.0f - lr * decay, pytorch};
        o->steps[i] = step;
    }
    o->shown.learning_rate = a->lr * factor;
    return ML_OK;
}

ML_DEF ml_result ml_optimizer_step(ml_optimizer *optimizer, ml_error *error) {
    if (!optimizer) return mli_null(error, "ml_optimizer_step");
    mli_optimizer *o = optimizer->private_part;
    double norm = mli_gradient_norm(o);
    if (!mli_is_finite(norm))
        return mli_fail(error, ML_ERROR_NUMBER, "the gradient of step %l is not finite", optimizer->step + 1);
    ml_result result = mli_plan_steps(o, norm, error);
    if (result) return result;
    mli_split_rows(&o->threads, mli_adamw_updates, o, (size_t)o->n_updates, o->n_numbers);
    optimizer->step++;
    optimizer->gradient_norm = (float)norm;
    return mli_ok(error);
}

ML_DEF void ml_optimizer_zero_gradients(ml_optimizer *optimizer) {
    if (!optimizer) return;
    const mli_optimizer *o = optimizer->private_part;
    memset(o->gradients, 0, o->n_numbers * sizeof *o->gradients);
}

/* ---- an optimizer: ml_optimizer_size plans one on the stack to learn its size; ml_optimizer_init places it ---- */

/* Group `index` of a description, with its defaults. */
static ml_group mli_group_of(const ml_optimizer_desc *desc, int index) {
    ml_group group = {desc->adamw.lr, desc->adamw.weight_decay, 0};
    if (!desc->n_groups) return group;
    group = desc->groups[index];
    if (group.lr == 0) group.lr = desc->adamw.lr;
    return group;
}

static ml_result mli_check_groups(const ml_optimizer_desc *desc, ml_error *error) {
    if (desc->n_groups < 0 || (desc->n_groups && !desc->groups))
        return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: n_groups is %d, without groups",
                        desc->n_groups);
    for (int i = 0; i < desc->n_groups || i < 1; i++) {
        ml_group group = mli_group_of(desc, i);
        if (group.frozen || (group.lr > 0 && mli_is_in_range(group.lr, group.weight_decay))) continue;
        return mli_fail(
            error, ML_ERROR_ARGUMENT,
            "optimizer: group %d: the learning rate or weight decay is out of range (lr must be given)", i);
    }
    return ML_OK;
}

/* Whether parameter `index` can be trained, or at least stay as it is in a frozen group. */
static ml_result mli_check_parameter(const ml_optimizer_desc *desc, int index, ml_error *error) {
    const ml_parameter *p = &desc->parameters[index];
    const ml_tensor *t = p->tensor;
    size_t n;
    if (!t || !t->data)
        return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: parameter %d has no data", index);
    if (p->group < 0 || p->group >= MLI_MAX(desc->n_groups, 1))
        return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: parameter %d is of group %d, of %d", index,
                        p->group, MLI_MAX(desc->n_groups, 1));
    if (mli_group_of(desc, p->group).frozen) return ML_OK;
    if (t->type != ML_F32)
        return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: parameter %d is %s, not F32", index,
                        ml_type_name(t->type));
    if (!t->rows || !t->cols || !mli_mul_size(t->rows, t->cols, &n) || !mli_mul_size(n, sizeof(float), &n))
        return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: parameter %d has the shape (%z, %z)", index,
                        t->rows, t->cols);
    return ML_OK;
}

/* Numbers that two parameters share would be updated twice. */
static ml_result mli_check_apart(const ml_optimizer_desc *desc, int index, ml_error *error) {
    const ml_tensor *t = desc->parameters[index].tensor;
    uintptr_t begin = (uintptr_t)t->data, end = begin + t->rows * ml_type_row_bytes(t->type, t->cols);
    for (int i = 0; i < index; i++) {
        const ml_tensor *other = desc->parameters[i].tensor;
        uintptr_t from = (uintptr_t)other->data;
        uintptr_t to = from + other->rows * ml_type_row_bytes(other->type, other->cols);
        if (t == other || (begin < to && from < end))
            return mli_fail(error, ML_ERROR_ARGUMENT,
                            "optimizer: parameters %d and %d share memory (the same tensor twice?)", i,
                            index);
    }
    return ML_OK;
}

/* Lists the parameters that are trained, or in an optimizer without memory counts them. */
static void mli_list_parameters(mli_optimizer *o, const ml_optimizer_desc *desc) {
    mli_optimizer_clear(o);
    for (int i = 0; i < desc->n_parameters; i++) {
        const ml_parameter *p = &desc->parameters[i];
        if (!mli_group_of(desc, p->group).frozen)
            mli_optimizer_add(o, p->tensor, p->group);
        else if (o->trained)
            p->tensor->grad = NULL;
    }
}

/* An optimizer that is complete except for its memory, whose size it learns: for _size, _init and _new. */
static ml_result mli_optimizer_plan(const ml_optimizer_desc *given, mli_optimizer *o, size_t *size,
                                    ml_error *error) {
    if (!given || !given->parameters || given->n_parameters < 1)
        return mli_fail(error, ML_ERROR_ARGUMENT, "an optimizer needs a description with parameters");
    ml_optimizer_desc desc = *given;
    memset(o, 0, sizeof *o);
    mli_adamw_defaults(&desc.adamw);
    if (!desc.threads.count) desc.threads.count = 1;
    ml_result result = mli_check_threads(&desc.threads, "optimizer", error);
    if (!result && !mli_adamw_in_range(&desc.adamw))
        result = mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: a number of AdamW is out of range");
    if (!result) result = mli_check_groups(&desc, error);
    for (int i = 0; !result && i < desc.n_parameters; i++) {
        result = mli_check_parameter(&desc, i, error);
        if (!result) result = mli_check_apart(&desc, i, error);
    }
    if (result) return result;
    o->adamw = desc.adamw;
    o->schedule = desc.schedule;
    o->threads = desc.threads;
    o->allocator = desc.allocator; /* for files */
    o->n_groups = MLI_MAX(desc.n_groups, 1);
    mli_list_parameters(o, &desc);
    if (!o->n_trained) return mli_fail(error, ML_ERROR_ARGUMENT, "optimizer: all parameters are frozen");
    *size = 0;
    mli_carve(NULL, size, 1, sizeof *o);
    mli_optimizer_layout(o, NULL, size);
    if (mli_add_size(*size, MLI_ALIGN, size)) return ML_OK; /* room to align any buffer */
    return mli_fail(error, ML_ERROR_MEMORY, "an optimizer of this size takes more than can be addressed");
}

ML_DEF ml_result ml_optimizer_size(const ml_optimizer_desc *desc, size_t *size, ml_error *error) {
    mli_optimizer plan;
    if (!size) return mli_null(error, "ml_optimizer_size");
    *size = 0;
    ml_result result = mli_optimizer_plan(desc, &plan, size, error);
    if (result) *size = 0;
    return result ? result : mli_ok(error);
}

ML_DEF ml_result ml_optimizer_init(const ml_optimizer_desc *desc, void *memory, size_t size,
                                   ml_optimizer **optimizer, ml_error *error) {
    mli_optimizer plan;
    size_t need, used = 0;
    if (optimizer) *optimizer = NULL;
    if (!memory || !optimizer) return mli_null(error, "ml_optimizer_init");
    ml_result result = mli_optimizer_plan(desc, &plan, &need, error);
    if (result) return result;
    unsigned char *place = mli_place(memory, size, need, "ml_optimizer_size", error);
    if (!place) return ML_ERROR_MEMORY;
    mli_optimizer *o = (mli_optimizer *)mli_carve(place, &used, 1, sizeof *o);
    *o = plan;
    mli_optimizer_layout(o, place, &used);
    mli_list_parameters(o, desc);
    for (int i = 0; i < o->n_groups; i++) o->shown.groups[i] = mli_group_of(desc, i);
    memset(o->moments, 0, o->n_numbers * 2 * sizeof *o->moments);
    o->shown.private_part = o;
    *optimizer = &o->shown;
    ml_optimizer_zero_gradients(*optimizer);
    return mli_ok(error);
}

ML_DEF ml_result ml_optimizer_new(const ml_optimizer_desc *desc, ml_optimizer **optimizer, ml_error *error) {
    if (!optimizer) return mli_null(error, "ml_optimizer_new");
    *optimizer = NULL;
    ml_allocator allocator;
    size_t size;
    ml_result result = mli_resolve_allocator(desc ? &desc->allocator : NULL, &allocator, error);
    if (!result) result = ml_optimizer_size(desc, &size, error);
    if (result) return result;
    void *memory = allocator.alloc(size, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for an optimizer of %z bytes", size);
    result = ml_optimizer_init(desc, memory, size, optimizer, error);
    ML_ASSERT(!result); /* the plan succeeded, and the buffer has its size */
    (*optimizer)->private_part->allocator = allocator;
    (*optimizer)->private_part->block = memory;
    return result;
}

ML_DEF void ml_optimizer_free(ml_optimizer *optimizer) {
    if (optimizer) mli_free(&optimizer->private_part->allocator, optimizer->private_part->block);
}

/* ---- a trainer: ml_trainer_size plans one on the stack to learn its size; ml_trainer_init also places it ---- */

/* What is trained at a rate of its own, and whether it decays. */
enum { MLI_GROUP_WEIGHTS, MLI_GROUP_NORMS, MLI_GROUP_HEAD, MLI_GROUP_HEAD_BIAS, MLI_GROUPS };

typedef struct ml_trainer_private {
    ml_trainer shown;
    ml_trainer_desc desc; /* with the defaults filled in */
    ml_model *model;
    ml_tensor *tensors, *lora_tensors; /* those of model and adapter, with gradients where they are trained */
    mli_optimizer optimizer;
    float *rope;       /* (max_row, hd): see mli_rope_table */
    uint64_t passes;   /* the dropout counter: each pass drops different numbers */
    ml_graph *graph;   /* of the passes, in graph_memory */
    size_t graph_size; /* bytes */
    unsigned char *graph_memory;
    ml_allocator allocator; /* of ml_trainer_new ... */
    void *block;            /* ... and what it returned; NULL after ml_trainer_init */
} mli_trainer;

static void mli_trainer_defaults(const ml_model *model, ml_trainer_desc *desc) {
    ml_adamw *a = &desc->adamw;
    if (!desc->max_tokens) desc->max_tokens = model->config.max_seq_len;
    if (!desc->max_rows) desc->max_rows = desc->max_tokens;
    if (!desc->max_row) desc->max_row = MLI_MIN(desc->max_tokens, model->config.max_seq_len);
    if (a->head_lr == 0) a->head_lr = a->lr;
    mli_adamw_defaults(a);
    if (!desc->threads.count) desc->threads.count = 1;
}

static ml_result mli_check_trainer(const ml_model *model, const ml_trainer_desc *desc, ml_error *error) {
    const ml_adamw *a = &desc->adamw;
    int most = desc->max_tokens;
    if (most < 1 || most > 1 << 22 || desc->max_rows < 1 || desc->max_rows > most || desc->max_row < 1 ||
        desc->max_row > most)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: max_tokens %d, max_rows %d, max_row %d do not go together", most,
                        desc->max_rows, desc->max_row);
    if (!mli_adamw_in_range(a) || !(a->lr > 0) || !(a->head_lr > 0 && a->head_lr <= 1e6f))
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: a number of AdamW is out of range (lr must be given)");
    if (!(desc->dropout >= 0 && desc->dropout < 1))
        return mli_fail(error, ML_ERROR_ARGUMENT, "trainer: dropout is not in 0 to 1");
    if (desc->frozen && !desc->head && !desc->lora)
        return mli_fail(error, ML_ERROR_ARGUMENT,
                        "trainer: frozen, without adapter or head, it learns nothing");
    ml_result result = mli_check_threads(&desc->threads, "trainer", error);
    if (!result && !desc->head) result = mli_check_output(model, error);
    if (!result && desc->head) result = mli_head_check(desc->head, model, error);
    if (!result && desc->lora) result = mli_lora_check(model, desc->lora, error);
    if (!result && !desc->lora && !desc->frozen) result = mli_check_writable(model, error);
    return result;
}

/* Lists all that is trained, or with an optimizer without memory counts it. */
static void mli_list_trained(mli_trainer *t) {
    mli_optimizer *o = &t->optimizer;
    mli_optimizer_clear(o);
    for (int i = 0; i < t->model->n_tensors && !t->desc.lora && !t->desc.frozen; i++) {
        mli_slot slot = mli_slot_at(i);
        if (!mli_has_slot(&t->model->config, slot)) continue;
        if (slot == MLI_OUTPUT && t->desc.head) continue; /* the head is used instead */
        mli_optimizer_add(o, &t->tensors[i], mli_is_norm(slot) ? MLI_GROUP_NORMS : MLI_GROUP_WEIGHTS);
    }
    for (int i = 0; t->desc.lora && i < t->desc.lora->n_tensors; i++)
        if (t->lora_tensors[i].data) mli_optimizer_add(o, &t->lora_tensors[i], MLI_GROUP_WEIGHTS);
    if (t->desc.head) mli_optimizer_add(o, &t->shown.head[0], MLI_GROUP_HEAD);
    if (t->shown.head[1].data) mli_optimizer_add(o, &t->shown.head[1], MLI_GROUP_HEAD_BIAS);
    t->shown.n_parameters = (int64_t)o->n_numbers;
}

/* How many parts of the network learn nothing: see mli_count_frozen, which cannot tell before there are gradients. */
static int mli_trainer_frozen(const mli_trainer *t) {
    int n_layers = t->model->config.n_layers, part = 0;
    if (!t->desc.lora) return t->desc.frozen ? n_layers + 2 : 0;
    while (part < n_layers * 2 * MLI_LORA_TARGETS && !t->lora_tensors[part].data) part++;
    return 1 + part / (2 * MLI_LORA_TARGETS); /* the layer of the first pair */
}

/* A batch whose parts are checked. */
typedef struct mli_trainer_job {
    mli_trainer *t;
    const ml_batch *batch;
    mli_rows rows;
    float *log_probs;
} mli_trainer_job;

/* The states that the head reads: pooled and, in training, with some numbers dropped. */
static ml_tensor mli_trainer_pooled(ml_graph *graph, const mli_trainer_job *job, ml_tensor hidden) {
    mli_trainer *t = job->t;
    const mli_rows *rows = &job->rows;
    int n_rows = graph->measuring ? t->desc.max_rows : rows->n_rows; /* the most that can be pooled */
    mli_pool_op op = {hidden, ml_none(), rows->start, rows->start + 1, 1, t->desc.head->pooling};
    ml_tensor pooled = mli_run_pool(graph, &op, (size_t)n_rows);
    uint64_t seed = t->desc.seed * 0x9e3779b97f4a7c15u + (t->passes + 1) * 0x94d049bb133111ebu;
    if (!graph->taping) return pooled;
    t->passes++;
    return ml_dropout(graph, pooled, t->desc.dropout, seed);
}

/* The pass of a batch: the network, with a head what it reads, and the loss. */
static ml_tensor mli_trainer_pass(ml_graph *graph, void *user) {
    const mli_trainer_job *job = (const mli_trainer_job *)user;
    mli_trainer *t = job->t;
    const ml_head *head = t->desc.head;
    ml_tensor w = head ? t->shown.head[0] : t->tensors[MLI_OUTPUT], b = t->shown.head[1];
    ml_llama_desc llama;
    ml_loss_desc loss;
    memset(&llama, 0, sizeof llama);
    llama.model = t->model, llama.batch = job->batch, llama.weights = t->tensors;
    llama.lora = t->desc.lora, llama.lora_weights = t->lora_tensors;
    llama.rope = mli_tensor_at(t->rope, (size_t)t->desc.max_row, 0);
    llama.checkpointing = t->desc.checkpointing;
    if (graph->measuring) { /* there are no table and no gradients yet: something else that is not NULL */
        llama.rope.data = t;
        if (head || !t->desc.lora) w.grad = (float *)t;
    }
    ml_tensor h = mli_llama_pass(graph, &llama, &job->rows, mli_trainer_frozen(t));
    if (head) h = mli_trainer_pooled(graph, job, h);
    memset(&loss, 0, sizeof loss);
    loss.targets = head ? job->batch->labels : job->batch->targets;
    loss.divisor = job->batch->divisor;
    loss.log_probs = head ? job->log_probs : NULL;
    loss.whole = 1;
    return ml_linear_cross_entropy(graph, h, w, b, &loss);
}

static ml_graph_desc mli_trainer_graph(const mli_trainer *t) {
    ml_graph_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.threads = t->desc.threads;
    return desc;
}

/* Runs the largest batch without memory, to learn what it needs: for attention, the longest row. */
static void mli_trainer_measure(mli_trainer *t) {
    ml_batch batch = {NULL, t->desc.max_tokens, NULL, 0, NULL, NULL, 1};
    mli_trainer_job job;
    ml_graph_desc desc = mli_trainer_graph(t);
    memset(&job, 0, sizeof job);
    job.t = t;
    job.batch = &batch;
    mli_one_row(&job.rows, t->desc.max_row, 0);
    if (ml_graph_size(&desc, mli_trainer_pass, &job, &t->graph_size, NULL)) t->graph_size = SIZE_MAX;
}

/* All memory of a trainer: 12 bytes for each trained number, and the activations of the largest batch. With memory
   NULL it is only counted. Returns the bytes, SIZE_MAX on overflow. */
static size_t mli_trainer_layout(mli_trainer *t, unsigned char *memory) {
    const ml_config *c = &t->model->config;
    size_t used = 0, hd = (size_t)(c->dim / c->n_heads);
    size_t n_lora = t->desc.lora ? (size_t)t->desc.lora->n_tensors : 0;
    mli_carve(memory, &used, 1, sizeof *t); /* the trainer itself */
    /* tables: the tensors of model and adapter, and their optimizer's */
    t->tensors = (ml_tensor *)mli_carve(memory, &used, (size_t)t->model->n_tensors, sizeof *t->tensors);
    t->lora_tensors = (ml_tensor *)mli_carve(memory, &used, n_lora, sizeof *t->lora_tensors);
    t->rope = (float *)mli_carve(memory, &used, (size_t)t->desc.max_row, hd * sizeof *t->rope);
    mli_optimizer_layout(&t->optimizer, memory, &used);
    /* activations, records of the tape and logits, and the scratch of single operations */
    t->graph_memory = (unsigned char *)mli_carve(memory, &used, t->graph_size, 1);
    return used;
}

static void mli_trainer_groups(const ml_adamw *a, ml_group *groups) {
    float lr = a->lr, head_lr = a->head_lr, decay = a->weight_decay, norm_decay = a->decay_all ? decay : 0;
    ml_group all[MLI_GROUPS] = {
        {lr, decay, 0}, {lr, norm_decay, 0}, {head_lr, decay, 0}, {head_lr, norm_decay, 0}};
    memcpy(groups, all, sizeof all);
}

/* A trainer that is complete except for its memory, whose size it learns: for _size, _init and _new. */
static ml_result mli_trainer_plan(const ml_model *model, const ml_trainer_desc *desc, mli_trainer *t,
                                  size_t *size, ml_error *error) {
    if (!model || !desc)
        return mli_fail(error, ML_ERROR_ARGUMENT, "a trainer needs a model and a description");
    memset(t, 0, sizeof *t);
    t->desc = *desc;
    mli_trainer_defaults(model, &t->desc);
    ml_result result = mli_check_trainer(model, &t->desc, error);
    if (result) return result;
    t->optimizer.adamw = t->desc.adamw;
    t->optimizer.schedule = t->desc.schedule;
    t->optimizer.threads = t->desc.threads;
    t->optimizer.n_groups = MLI_GROUPS;
    t->model = (ml_model *)(uintptr_t)model; /* a plan only reads it, and what it lists */
    t->tensors = (ml_tensor *)(uintptr_t)model->tensors;
    if (t->desc.lora) t->lora_tensors = (ml_tensor *)(uintptr_t)t->desc.lora->tensors;
    if (t->desc.head) {
        t->shown.head[0] = t->desc.head->weight;
        t->shown.head[1] = t->desc.head->bias;
    }
    mli_list_trained(t);
    mli_trainer_measure(t);
    *size = mli_trainer_layout(t, NULL);
    if (mli_add_size(*size, MLI_ALIGN, size)) return ML_OK; /* room to align any buffer */
    return mli_fail(error, ML_ERROR_MEMORY, "training at this size takes more memory than can be addressed");
}

ML_DEF ml_result ml_trainer_size(const ml_model *model, const ml_trainer_desc *desc, size_t *size,
                                 ml_error *error) {
    mli_trainer plan;
    if (!size) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_size: size is NULL");
    *size = 0;
    ml_result result = mli_trainer_plan(model, desc, &plan, size, error);
    return result ? result : mli_ok(error);
}

ML_DEF ml_result ml_trainer_init(ml_model *model, const ml_trainer_desc *desc, void *memory, size_t size,
                                 ml_trainer **trainer, ml_error *error) {
    mli_trainer plan;
    size_t need;
    if (trainer) *trainer = NULL;
    if (!memory || !trainer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_init: memory or trainer is NULL");
    ml_result result = mli_trainer_plan(model, desc, &plan, &need, error);
    if (result) return result;
    mli_trainer *t = (mli_trainer *)(void *)mli_place(memory, size, need, "ml_trainer_size", error);
    if (!t) return ML_ERROR_MEMORY;
    *t = plan;
    mli_trainer_layout(t, (unsigned char *)t);
    mli_optimizer *o = &t->optimizer;
    ml_graph_desc graph_desc = mli_trainer_graph(t);
    result = ml_graph_init(&graph_desc, t->graph_memory, t->graph_size, &t->graph, error);
    if (result) return result;
    mli_trainer_groups(&t->desc.adamw, o->shown.groups);
    o->shown.private_part = o;
    memcpy(t->tensors, model->tensors, (size_t)model->n_tensors * sizeof *t->tensors);
    t->shown.model = t->tensors;
    if (desc->lora) {
        memcpy(t->lora_tensors, desc->lora->tensors, (size_t)desc->lora->n_tensors * sizeof *t->lora_tensors);
        t->shown.lora = t->lora_tensors;
    }
    mli_list_trained(t);
    if (model->config.tied_output) t->tensors[MLI_OUTPUT].grad = t->tensors[MLI_TOKEN_EMBEDDING].grad;
    memset(o->moments, 0, o->n_numbers * 2 * sizeof *o->moments);
    mli_rope_table(t->rope, t->desc.max_row, &model->config);
    t->shown.private_part = t;
    *trainer = &t->shown;
    ml_trainer_zero_gradients(*trainer);
    return mli_ok(error);
}

ML_DEF ml_result ml_trainer_new(ml_model *model, const ml_trainer_desc *desc, ml_trainer **trainer,
                                ml_error *error) {
    if (!trainer) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_new: trainer is NULL");
    *trainer = NULL;
    ml_allocator allocator;
    size_t size;
    ml_result result = mli_resolve_allocator(desc ? &desc->allocator : NULL, &allocator, error);
    if (!result) result = ml_trainer_size(model, desc, &size, error);
    if (result) return result;
    void *memory = allocator.alloc(size, allocator.user);
    if (!memory) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a trainer of %z bytes", size);
    result = ml_trainer_init(model, desc, memory, size, trainer, error);
    ML_ASSERT(!result); /* the plan succeeded, and the buffer has its size */
    (*trainer)->private_part->allocator = allocator;
    (*trainer)->private_part->block = memory;
    return result;
}

ML_DEF void ml_trainer_free(ml_trainer *trainer) {
    if (trainer) mli_free(&trainer->private_part->allocator, trainer->private_part->block);
}

ML_DEF void ml_trainer_zero_gradients(ml_trainer *trainer) {
    ml_optimizer_zero_gradients(&trainer->private_part->optimizer.shown);
}

/* ---- a trainer: batches and steps ---- */

/* Checks targets, or with a head labels, and counts those that are not negative. */
static ml_result mli_count_targets(const mli_trainer *t, const ml_batch *b, int n_rows, int *counted,
                                   ml_error *error) {
    const ml_head *head = t->desc.head;
    const int32_t *targets = head ? b->labels : b->targets;
    int n = head ? n_rows : b->n_tokens, n_classes = head ? head->n_classes : t->model->config.vocab_size;
    *counted = 0;
    for (int i = 0; targets && i < n; i++) {
        if (targets[i] >= n_classes)
            return mli_fail(error, ML_ERROR_ARGUMENT, "batch: %s %d is %d, not below %d",
                            head ? "label" : "target", i, (int)targets[i], n_classes);
        *counted += targets[i] >= 0;
    }
    if (targets || (head && !t->graph->taping)) return ML_OK;
    return mli_fail(error, ML_ERROR_ARGUMENT, "batch: there are no %s", head ? "labels" : "targets");
}

/* Fills in the job of a batch that is checked, and its divisor. */
static ml_result mli_trainer_check(mli_trainer_job *job, ml_batch *batch, ml_error *error) {
    mli_trainer *t = job->t;
    mli_batch_limits most = {"trainer", "max_row", t->desc.max_tokens, t->desc.max_rows, t->desc.max_row};
    int counted;
    ml_result result = mli_check_batch(t->model, batch, &most, &job->rows, error);
    if (!result) result = mli_count_targets(t, batch, job->rows.n_rows, &counted, error);
    if (!result && !(batch->divisor > 0)) batch->divisor = (float)MLI_MAX(counted, 1);
    job->batch = batch;
    return result;
}

/* Runs a batch forward and, if `backward` is set, also backward. */
static ml_result mli_trainer_run(ml_trainer *trainer, const ml_batch *given, int backward, float *log_probs,
                                 float *loss, ml_error *error) {
    if (!trainer || !given) return mli_fail(error, ML_ERROR_ARGUMENT, "trainer or batch is NULL");
    mli_trainer *t = trainer->private_part;
    const ml_head *head = t->desc.head;
    mli_trainer_job job = {t, given, {NULL, 0, 0, {0, 0}}, log_probs};
    ml_batch batch = *given;
    ml_graph_begin(t->graph, backward);
    ml_result result = mli_trainer_check(&job, &batch, error);
    if (result) return result;
    if (loss) *loss = 0;
    if (head && !batch.labels && !log_probs) return mli_ok(error); /* nothing is wanted */
    ml_tensor sum = mli_trainer_pass(t->graph, &job);
    result = ml_graph_end(t->graph, error);
    if (result) return result;
    int is_loss = !mli_is_finite((double)mli_row(sum, 0)[0]);
    size_t n = log_probs && head ? (size_t)job.rows.n_rows * head->weight.rows : 0;
    if (loss) *loss = mli_row(sum, 0)[0];
    if (!is_loss && mli_find_beyond(log_probs, n, MLI_INFINITY_BITS) == n)
        return backward ? ml_graph_backward(t->graph, sum, error) : ML_OK;
    ml_graph_begin(t->graph, 0); /* nothing is left on the tape */
    if (backward) ml_trainer_zero_gradients(trainer);
    return mli_fail(error, ML_ERROR_NUMBER, "the %s is not finite (learning rate too high, or broken model?)",
                    is_loss ? "loss" : "probability of a class");
}

ML_DEF ml_result ml_trainer_backward(ml_trainer *trainer, const ml_batch *batch, float *log_probs,
                                     float *loss, ml_error *error) {
    return mli_trainer_run(trainer, batch, 1, log_probs, loss, error);
}

ML_DEF ml_result ml_trainer_eval(ml_trainer *trainer, const ml_batch *batch, float *log_probs, float *loss,
                                 ml_error *error) {
    return mli_trainer_run(trainer, batch, 0, log_probs, loss, error);
}

ML_DEF ml_result ml_trainer_step(ml_trainer *trainer, ml_error *error) {
    if (!trainer) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_step: trainer is NULL");
    ml_optimizer *o = &trainer->private_part->optimizer.shown;
    o->step = trainer->step;
    ml_result result = ml_optimizer_step(o, error);
    if (result) return result;
    trainer->step = o->step;
    trainer->learning_rate = o->learning_rate;
    trainer->gradient_norm = o->gradient_norm;
    return ML_OK;
}

#endif /* ML_NO_TRAINING */

/* ==== >>adapters ====
   LoRA: a matrix W keeps its numbers, and what training would add to it is written as a product of two thin matrices,
   B A, of rank r. All pairs of an adapter are trained, saved and loaded without the model.

          y (n, out) = x W^T + s (x A^T) B^T               one pair has r (in + out) numbers, W in * out:
            |              |                               4096 and 262144 for 512 x 512 and r = 4
     W (out, in)      B (out, r)   begins at 0
     frozen                |
            |         A (r, in)    begins at random
            |              |
          x (n, in) -------+

   s is alpha / r. A file may give each pair its own r and alpha, or scale by alpha / sqrt(r) (Kalajdzievski 2023, "A
   Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"), so every pair has its own r and s.

   The operation is in >>layers (mli_adapt). Here are the tensors, and W + s B A as one matrix. */

#define MLI_MAX_RANK (1 << 12)

struct ml_lora_private {
    ml_lora shown;
    float *scales;
    ml_allocator allocator;
};

/* What an adapter is made from, by ml_lora_create and by a file. */
typedef struct mli_lora_shape {
    const ml_config *config;
    int rank; /* of all pairs, or of the largest in `source` */
    float alpha;
    unsigned targets; /* a sum of ML_LORA_Q ... */
    /* (n_tensors) what the pairs are read from; those that are NULL are not made. NULL: all targets are */
    const ml_array *const *source;
} mli_lora_shape;

/* The matrix that a pair of an adapter belongs to. */
static const ml_tensor *mli_lora_matrix(const ml_model *model, int pair) {
    return mli_weight(model, mli_lora_slots[pair % MLI_LORA_TARGETS], pair / MLI_LORA_TARGETS);
}

/* Lays out A and B of each layer and target in `data`; returns how many numbers they have, SIZE_MAX on overflow.
   NULL: only counts. */
static size_t mli_lora_pairs(const mli_lora_shape *s, ml_tensor *tensors, float *data) {
    size_t used = 0;
    for (int pair = 0; pair < s->config->n_layers * MLI_LORA_TARGETS; pair++) {
        int target = pair % MLI_LORA_TARGETS;
        const mli_param *w = &mli_params[mli_lora_slots[target]];
        size_t out = (size_t)mli_extent_of(s->config, w->rows),
               in = (size_t)mli_extent_of(s->config, w->cols);
        if (!(s->targets >> target & 1) || (s->source && !s->source[2 * pair])) continue;
        size_t rank = s->source ? (size_t)s->source[2 * pair]->shape[0] : (size_t)s->rank;
        if (data) {
            tensors[2 * pair] = mli_tensor_at(data + used, rank, in);
            tensors[2 * pair + 1] = mli_tensor_at(data + used + rank * in, out, rank);
        }
        size_t numbers = rank * (in + out); /* fits: a rank is small */
        if (!mli_add_size(used, numbers, &used)) return SIZE_MAX;
    }
    return used;
}

/* Places an adapter, its table and its numbers in memory; with NULL only counts the bytes, SIZE_MAX on overflow. */
static size_t mli_lora_layout(const mli_lora_shape *s, unsigned char *memory) {
    size_t used = 0, n_tensors = (size_t)s->config->n_layers * MLI_LORA_TARGETS * 2;
    size_t numbers = mli_lora_pairs(s, NULL, NULL);
    struct ml_lora_private *own = (struct ml_lora_private *)mli_carve(memory, &used, 1, sizeof *own);
    ml_tensor *tensors = (ml_tensor *)mli_carve(memory, &used, n_tensors, sizeof *tensors);
    float *scales = (float *)mli_carve(memory, &used, n_tensors / 2, sizeof *scales);
    float *data = (float *)mli_carve(memory, &used, numbers, sizeof *data);
    if (!memory) return used;
    mli_lora_pairs(s, tensors, data);
    for (size_t i = 0; i < n_tensors / 2; i++)
        scales[i] = tensors[2 * i].data ? s->alpha / (float)tensors[2 * i].rows : 0;
    ml_lora lora = {s->rank, s->alpha, (int)n_tensors, tensors, scales, (int64_t)numbers, own};
    own->shown = lora;
    own->scales = scales;
    return used;
}

/* An adapter of zeros. */
static ml_result mli_lora_new(const mli_lora_shape *shape, const ml_allocator *given, ml_lora **lora,
                              ml_error *error) {
    if (shape->rank < 1 || shape->rank > MLI_MAX_RANK)
        return mli_fail(error, ML_ERROR_ARGUMENT, "adapter: rank is %d, not in 1 to %d", shape->rank,
                        MLI_MAX_RANK);
    if (!shape->targets || shape->targets > ML_LORA_ALL)
        return mli_fail(error, ML_ERROR_ARGUMENT, "adapter: targets is %d, not a sum of ML_LORA_Q ... W3",
                        (int)shape->targets);
    if (!(shape->alpha > 0 && shape->alpha < 1e6f))
        return mli_fail(error, ML_ERROR_ARGUMENT, "adapter: alpha is out of range");
    ml_allocator allocator;
    ml_result result = mli_resolve_allocator(given, &allocator, error);
    if (result) return result;
    unsigned char *memory = (unsigned char *)mli_alloc(&allocator, 1, mli_lora_layout(shape, NULL));
    if (!memory)
        return mli_fail(error, ML_ERROR_MEMORY, "out of memory for an adapter of rank %d", shape->rank);
    mli_lora_layout(shape, memory);
    *lora = (ml_lora *)(void *)memory;
    (*lora)->private_part->allocator = allocator;
    return ML_OK;
}

ML_DEF ml_result ml_lora_create(const ml_model *model, const ml_lora_create_desc *desc, ml_lora **lora,
                                ml_error *error) {
    if (lora) *lora = NULL;
    if (!model || !desc || !desc->random || !lora)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_create: model, desc, desc.random or lora is NULL");
    float sd = desc->init_sd == 0 ? 0.02f : desc->init_sd;
    mli_lora_shape shape = {&model->config, desc->rank ? desc->rank : 4, desc->alpha,
                            desc->targets ? desc->targets : (unsigned)ML_LORA_ATTENTION, NULL};
    if (shape.alpha == 0) shape.alpha = (float)shape.rank;
    ml_result result = mli_lora_new(&shape, &desc->allocator, lora, error);
    if (result) return result;
    for (int i = 0; i < (*lora)->n_tensors; i += 2) {
        const ml_tensor *a = &(*lora)->tensors[i];
        for (size_t j = 0; a->data && j < mli_numbers(a); j++)
            ((float *)a->data)[j] = sd * ml_random_normal(desc->random);
    }
    return mli_ok(error);
}

ML_DEF void ml_lora_free(ml_lora *lora) {
    if (lora) mli_free(&lora->private_part->allocator, lora);
}

/* Whether every pair of the adapter has the shape of its matrix in this model. */
static ml_result mli_lora_check(const ml_model *model, const ml_lora *lora, ml_error *error) {
    int n_layers = lora->n_tensors / (MLI_LORA_TARGETS * 2);
    if (n_layers != model->config.n_layers)
        return mli_fail(error, ML_ERROR_MISMATCH, "the adapter is for %d layers, the model has %d", n_layers,
                        model->config.n_layers);
    for (int pair = 0; pair < lora->n_tensors / 2; pair++) {
        const ml_tensor *a = &lora->tensors[2 * pair], *b = a + 1, *w = mli_lora_matrix(model, pair);
        char name[ML_NAME_SIZE];
        if (!a->data || (a->cols == w->cols && b->rows == w->rows)) continue;
        ml_model_tensor_name(model, (int)(w - model->tensors), name);
        return mli_fail(error, ML_ERROR_MISMATCH, "the adapter of %s is for (%z, %z), the model has (%z, %z)",
                        name, b->rows, a->cols, w->rows, w->cols);
    }
    return ML_OK;
}

/* W += scale B A */
static void mli_lora_add(const ml_tensor *w, const ml_tensor *b, const ml_tensor *a, float scale) {
    for (size_t row = 0; row < w->rows; row++)
        for (size_t k = 0; k < a->rows; k++) {
            float s = scale * mli_row(*b, row)[k];
            float *to = mli_row(*w, row), *from = mli_row(*a, k);
            for (size_t col = 0; col < w->cols; col++) to[col] += s * from[col];
        }
}

static ml_result mli_lora_apply(const ml_lora *lora, ml_model *model, float sign, ml_error *error) {
    if (!model || !lora)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_merge or ml_lora_unmerge: lora or model is NULL");
    ml_result result = mli_check_writable(model, error);
    if (!result) result = mli_lora_check(model, lora, error);
    if (result) return result;
    for (int pair = 0; pair < lora->n_tensors / 2; pair++) {
        const ml_tensor *a = &lora->tensors[2 * pair];
        if (a->data) mli_lora_add(mli_lora_matrix(model, pair), a + 1, a, sign * lora->scales[pair]);
    }
    return mli_ok(error);
}

ML_DEF ml_result ml_lora_merge(const ml_lora *lora, ml_model *model, ml_error *error) {
    return mli_lora_apply(lora, model, 1.0f, error);
}

ML_DEF ml_result ml_lora_unmerge(const ml_lora *lora, ml_model *model, ml_error *error) {
    return mli_lora_apply(lora, model, -1.0f, error);
}

/* ==== >>words ====
   What byte-level BPE (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") does before it
   merges. Its pieces are bytes, written in an alphabet of 256 visible characters, so that lists of pieces are texts.
   And a text is first cut into words, which no piece crosses. Where, each family of models says by a regular
   expression over Unicode's letters, numbers and white space; here these are two short scanners and a table. */

#ifndef ML_NO_BPE

/* ---- the alphabet: bytes that are visible in Latin-1 stand for themselves, the others for U+0100 and on ---- */

static uint32_t mli_spell_byte(unsigned byte) {
    if (byte <= 32) return 0x100 + byte; /* a space is U+0120 */
    if (byte >= 127 && byte <= 160) return 0x121 + (byte - 127);
    return byte == 173 ? 0x143 : byte;
}

static int mli_unspell_byte(uint32_t c) {
    if (c >= 0x100 && c <= 0x120) return (int)(c - 0x100);
    if (c >= 0x121 && c <= 0x142) return (int)(c - 0x121 + 127);
    if (c == 0x143) return 173;
    return c < 0x100 && mli_spell_byte(c) == c ? (int)c : -1;
}

/* The bytes that a piece of the alphabet stands for; `to` may be NULL, to count. SIZE_MAX: it has other characters.
   */
static size_t mli_unspell(const unsigned char *p, size_t n, char *to) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++, m++) {
        uint32_t c = p[i];
        if (c >= 0x80) {
            if (c < 0xc2 || c > 0xc5 || i + 1 == n || (p[i + 1] & 0xc0) != 0x80) return SIZE_MAX;
            c = (c & 31) << 6 | (p[++i] & 63u);
        }
        int byte = mli_unspell_byte(c);
        if (byte < 0) return SIZE_MAX;
        if (to) to[m] = (char)byte;
    }
    return m;
}

/* ---- classes of characters ---- */

enum { MLI_OTHER = 0, MLI_LETTER, MLI_NUMBER, MLI_SPACE };

/* From which code point on characters are of another class: 4 * code point + class, printed by
   tools/unicode_classes.py. Of letters and numbers beyond ASCII. Unicode 14.0.0; 1509 entries, 6036 bytes. */
/* clang-format off */
static const uint32_t mli_unicode_starts[] = {
    0x2a9, 0x2ac, 0x2ca, 0x2d0, 0x2d5, 0x2d8, 0x2e6, 0x2e9, 0x2ec, 0x2f2, 0x2fc, 0x301, 0x35c, 0x361, 0x3dc,
    0x3e1, 0xb08, 0xb19, 0xb48, 0xb81, 0xb94, 0xbb1, 0xbb4, 0xbb9, 0xbbc, 0xdc1, 0xdd4, 0xdd9, 0xde0, 0xde9,
    0xdf8, 0xdfd, 0xe00, 0xe19, 0xe1c, 0xe21, 0xe2c, 0xe31, 0xe34, 0xe39, 0xe88, 0xe8d, 0xfd8, 0xfdd, 0x1208,
    0x1229, 0x14c0, 0x14c5, 0x155c, 0x1565, 0x1568, 0x1581, 0x1624, 0x1741, 0x17ac, 0x17bd, 0x17cc, 0x1881,
    0x192c, 0x1982, 0x19a8, 0x19b9, 0x19c0, 0x19c5, 0x1b50, 0x1b55, 0x1b58, 0x1b95, 0x1b9c, 0x1bb9, 0x1bc2,
    0x1be9, 0x1bf4, 0x1bfd, 0x1c00, 0x1c41, 0x1c44, 0x1c49, 0x1cc0, 0x1d35, 0x1e98, 0x1ec5, 0x1ec8, 0x1f02,
    0x1f29, 0x1fac, 0x1fd1, 0x1fd8, 0x1fe9, 0x1fec, 0x2001, 0x2058, 0x2069, 0x206c, 0x2091, 0x2094, 0x20a1,
    0x20a4, 0x2101, 0x2164, 0x2181, 0x21ac, 0x21c1, 0x2220, 0x2225, 0x223c, 0x2281, 0x2328, 0x2411, 0x24e8,
    0x24f5, 0x24f8, 0x2541, 0x2544, 0x2561, 0x2588, 0x259a, 0x25c0, 0x25c5, 0x2604, 0x2615, 0x2634, 0x263d,
    0x2644, 0x264d, 0x26a4, 0x26a9, 0x26c4, 0x26c9, 0x26cc, 0x26d9, 0x26e8, 0x26f5, 0x26f8, 0x2739, 0x273c,
    0x2771, 0x2778, 0x277d, 0x2788, 0x279a, 0x27c1, 0x27c8, 0x27d2, 0x27e8, 0x27f1, 0x27f4, 0x2815, 0x282c,
    0x283d, 0x2844, 0x284d, 0x28a4, 0x28a9, 0x28c4, 0x28c9, 0x28d0, 0x28d5, 0x28dc, 0x28e1, 0x28e8, 0x2965,
    0x2974, 0x2979, 0x297c, 0x299a, 0x29c0, 0x29c9, 0x29d4, 0x2a15, 0x2a38, 0x2a3d, 0x2a48, 0x2a4d, 0x2aa4,
    0x2aa9, 0x2ac4, 0x2ac9, 0x2ad0, 0x2ad5, 0x2ae8, 0x2af5, 0x2af8, 0x2b41, 0x2b44, 0x2b81, 0x2b88, 0x2b9a,
    0x2bc0, 0x2be5, 0x2be8, 0x2c15, 0x2c34, 0x2c3d, 0x2c44, 0x2c4d, 0x2ca4, 0x2ca9, 0x2cc4, 0x2cc9, 0x2cd0,
    0x2cd5, 0x2ce8, 0x2cf5, 0x2cf8, 0x2d71, 0x2d78, 0x2d7d, 0x2d88, 0x2d9a, 0x2dc0, 0x2dc5, 0x2dca, 0x2de0,
    0x2e0d, 0x2e10, 0x2e15, 0x2e2c, 0x2e39, 0x2e44, 0x2e49, 0x2e58, 0x2e65, 0x2e6c, 0x2e71, 0x2e74, 0x2e79,
    0x2e80, 0x2e8d, 0x2e94, 0x2ea1, 0x2eac, 0x2eb9, 0x2ee8, 0x2f41, 0x2f44, 0x2f9a, 0x2fcc, 0x3015, 0x3034,
    0x3039, 0x3044, 0x3049, 0x30a4, 0x30a9, 0x30e8, 0x30f5, 0x30f8, 0x3161, 0x316c, 0x3175, 0x3178, 0x3181,
    0x3188, 0x319a, 0x31c0, 0x31e2, 0x31fc, 0x3201, 0x3204, 0x3215, 0x3234, 0x3239, 0x3244, 0x3249, 0x32a4,
    0x32a9, 0x32d0, 0x32d5, 0x32e8, 0x32f5, 0x32f8, 0x3375, 0x337c, 0x3381, 0x3388, 0x339a, 0x33c0, 0x33c5,
    0x33cc, 0x3411, 0x3434, 0x3439, 0x3444, 0x3449, 0x34ec, 0x34f5, 0x34f8, 0x3539, 0x353c, 0x3551, 0x355c,
    0x3562, 0x357d, 0x3588, 0x359a, 0x35e4, 0x35e9, 0x3600, 0x3615, 0x365c, 0x3669, 0x36c8, 0x36cd, 0x36f0,
    0x36f5, 0x36f8, 0x3701, 0x371c, 0x379a, 0x37c0, 0x3805, 0x38c4, 0x38c9, 0x38d0, 0x3901, 0x391c, 0x3942,
    0x3968, 0x3a05, 0x3a0c, 0x3a11, 0x3a14, 0x3a19, 0x3a2c, 0x3a31, 0x3a90, 0x3a95, 0x3a98, 0x3a9d, 0x3ac4,
    0x3ac9, 0x3ad0, 0x3af5, 0x3af8, 0x3b01, 0x3b14, 0x3b19, 0x3b1c, 0x3b42, 0x3b68, 0x3b71, 0x3b80, 0x3c01,
    0x3c04, 0x3c82, 0x3cd0, 0x3d01, 0x3d20, 0x3d25, 0x3db4, 0x3e21, 0x3e34, 0x4001, 0x40ac, 0x40fd, 0x4102,
    0x4128, 0x4141, 0x4158, 0x4169, 0x4178, 0x4185, 0x4188, 0x4195, 0x419c, 0x41b9, 0x41c4, 0x41d5, 0x4208,
    0x4239, 0x423c, 0x4242, 0x4268, 0x4281, 0x4318, 0x431d, 0x4320, 0x4335, 0x4338, 0x4341, 0x43ec, 0x43f1,
    0x4924, 0x4929, 0x4938, 0x4941, 0x495c, 0x4961, 0x4964, 0x4969, 0x4978, 0x4981, 0x4a24, 0x4a29, 0x4a38,
    0x4a41, 0x4ac4, 0x4ac9, 0x4ad8, 0x4ae1, 0x4afc, 0x4b01, 0x4b04, 0x4b09, 0x4b18, 0x4b21, 0x4b5c, 0x4b61,
    0x4c44, 0x4c49, 0x4c58, 0x4c61, 0x4d6c, 0x4da6, 0x4df4, 0x4e01, 0x4e40, 0x4e81, 0x4fd8, 0x4fe1, 0x4ff8,
    0x5005, 0x59b4, 0x59bd, 0x5a00, 0x5a05, 0x5a6c, 0x5a81, 0x5bac, 0x5bba, 0x5bc5, 0x5be4, 0x5c01, 0x5c48,
    0x5c7d, 0x5cc8, 0x5d01, 0x5d48, 0x5d81, 0x5db4, 0x5db9, 0x5dc4, 0x5e01, 0x5ed0, 0x5f5d, 0x5f60, 0x5f71,
    0x5f74, 0x5f82, 0x5fa8, 0x5fc2, 0x5fe8, 0x6042, 0x6068, 0x6081, 0x61e4, 0x6201, 0x6214, 0x621d, 0x62a4,
    0x62a9, 0x62ac, 0x62c1, 0x63d8, 0x6401, 0x647c, 0x651a, 0x6541, 0x65b8, 0x65c1, 0x65d4, 0x6601, 0x66b0,
    0x66c1, 0x6728, 0x6742, 0x676c, 0x6801, 0x685c, 0x6881, 0x6954, 0x6a02, 0x6a28, 0x6a42, 0x6a68, 0x6a9d,
    0x6aa0, 0x6c15, 0x6cd0, 0x6d15, 0x6d34, 0x6d42, 0x6d68, 0x6e0d, 0x6e84, 0x6eb9, 0x6ec2, 0x6ee9, 0x6f98,
    0x7001, 0x7090, 0x7102, 0x7128, 0x7135, 0x7142, 0x7169, 0x71f8, 0x7201, 0x7224, 0x7241, 0x72ec, 0x72f5,
    0x7300, 0x73a5, 0x73b4, 0x73b9, 0x73d0, 0x73d5, 0x73dc, 0x73e9, 0x73ec, 0x7401, 0x7700, 0x7801, 0x7c58,
    0x7c61, 0x7c78, 0x7c81, 0x7d18, 0x7d21, 0x7d38, 0x7d41, 0x7d60, 0x7d65, 0x7d68, 0x7d6d, 0x7d70, 0x7d75,
    0x7d78, 0x7d7d, 0x7df8, 0x7e01, 0x7ed4, 0x7ed9, 0x7ef4, 0x7ef9, 0x7efc, 0x7f09, 0x7f14, 0x7f19, 0x7f34,
    0x7f41, 0x7f50, 0x7f59, 0x7f70, 0x7f81, 0x7fb4, 0x7fc9, 0x7fd4, 0x7fd9, 0x7ff4, 0x81c2, 0x81c5, 0x81c8,
    0x81d2, 0x81e8, 0x81fd, 0x8202, 0x8228, 0x8241, 0x8274, 0x8409, 0x840c, 0x841d, 0x8420, 0x8429, 0x8450,
    0x8455, 0x8458, 0x8465, 0x8478, 0x8491, 0x8494, 0x8499, 0x849c, 0x84a1, 0x84a4, 0x84a9, 0x84b8, 0x84bd,
    0x84e8, 0x84f1, 0x8500, 0x8515, 0x8528, 0x8539, 0x853c, 0x8542, 0x860d, 0x8616, 0x8628, 0x9182, 0x9270,
    0x93aa, 0x9400, 0x9dda, 0x9e50, 0xb001, 0xb394, 0xb3ad, 0xb3bc, 0xb3c9, 0xb3d0, 0xb3f6, 0xb3f8, 0xb401,
    0xb498, 0xb49d, 0xb4a0, 0xb4b5, 0xb4b8, 0xb4c1, 0xb5a0, 0xb5bd, 0xb5c0, 0xb601, 0xb65c, 0xb681, 0xb69c,
    0xb6a1, 0xb6bc, 0xb6c1, 0xb6dc, 0xb6e1, 0xb6fc, 0xb701, 0xb71c, 0xb721, 0xb73c, 0xb741, 0xb75c, 0xb761,
    0xb77c, 0xb8bd, 0xb8c0, 0xc015, 0xc01e, 0xc020, 0xc086, 0xc0a8, 0xc0c5, 0xc0d8, 0xc0e2, 0xc0ed, 0xc0f4,
    0xc105, 0xc25c, 0xc275, 0xc280, 0xc285, 0xc3ec, 0xc3f1, 0xc400, 0xc415, 0xc4c0, 0xc4c5, 0xc63c, 0xc64a,
    0xc658, 0xc681, 0xc700, 0xc7c1, 0xc800, 0xc882, 0xc8a8, 0xc922, 0xc940, 0xc946, 0xc980, 0xca02, 0xca28,
    0xcac6, 0xcb00, 0xd001, 0x13700, 0x13801, 0x29234, 0x29341, 0x293f8, 0x29401, 0x29834, 0x29841, 0x29882,
    0x298a9, 0x298b0, 0x29901, 0x299bc, 0x299fd, 0x29a78, 0x29a81, 0x29b9a, 0x29bc0, 0x29c5d, 0x29c80,
    0x29c89, 0x29e24, 0x29e2d, 0x29f2c, 0x29f41, 0x29f48, 0x29f4d, 0x29f50, 0x29f55, 0x29f68, 0x29fc9,
    0x2a008, 0x2a00d, 0x2a018, 0x2a01d, 0x2a02c, 0x2a031, 0x2a08c, 0x2a0c2, 0x2a0d8, 0x2a101, 0x2a1d0,
    0x2a209, 0x2a2d0, 0x2a342, 0x2a368, 0x2a3c9, 0x2a3e0, 0x2a3ed, 0x2a3f0, 0x2a3f5, 0x2a3fc, 0x2a402,
    0x2a429, 0x2a498, 0x2a4c1, 0x2a51c, 0x2a581, 0x2a5f4, 0x2a611, 0x2a6cc, 0x2a73d, 0x2a742, 0x2a768,
    0x2a781, 0x2a794, 0x2a799, 0x2a7c2, 0x2a7e9, 0x2a7fc, 0x2a801, 0x2a8a4, 0x2a901, 0x2a90c, 0x2a911,
    0x2a930, 0x2a942, 0x2a968, 0x2a981, 0x2a9dc, 0x2a9e9, 0x2a9ec, 0x2a9f9, 0x2aac0, 0x2aac5, 0x2aac8,
    0x2aad5, 0x2aadc, 0x2aae5, 0x2aaf8, 0x2ab01, 0x2ab04, 0x2ab09, 0x2ab0c, 0x2ab6d, 0x2ab78, 0x2ab81,
    0x2abac, 0x2abc9, 0x2abd4, 0x2ac05, 0x2ac1c, 0x2ac25, 0x2ac3c, 0x2ac45, 0x2ac5c, 0x2ac81, 0x2ac9c,
    0x2aca1, 0x2acbc, 0x2acc1, 0x2ad6c, 0x2ad71, 0x2ada8, 0x2adc1, 0x2af8c, 0x2afc2, 0x2afe8, 0x2b001,
    0x35e90, 0x35ec1, 0x35f1c, 0x35f2d, 0x35ff0, 0x3e401, 0x3e9b8, 0x3e9c1, 0x3eb68, 0x3ec01, 0x3ec1c,
    0x3ec4d, 0x3ec60, 0x3ec75, 0x3ec78, 0x3ec7d, 0x3eca4, 0x3eca9, 0x3ecdc, 0x3ece1, 0x3ecf4, 0x3ecf9,
    0x3ecfc, 0x3ed01, 0x3ed08, 0x3ed0d, 0x3ed14, 0x3ed19, 0x3eec8, 0x3ef4d, 0x3f4f8, 0x3f541, 0x3f640,
    0x3f649, 0x3f720, 0x3f7c1, 0x3f7f0, 0x3f9c1, 0x3f9d4, 0x3f9d9, 0x3fbf4, 0x3fc42, 0x3fc68, 0x3fc85,
    0x3fcec, 0x3fd05, 0x3fd6c, 0x3fd99, 0x3fefc, 0x3ff09, 0x3ff20, 0x3ff29, 0x3ff40, 0x3ff49, 0x3ff60,
    0x3ff69, 0x3ff74, 0x40001, 0x40030, 0x40035, 0x4009c, 0x400a1, 0x400ec, 0x400f1, 0x400f8, 0x400fd,
    0x40138, 0x40141, 0x40178, 0x40201, 0x403ec, 0x4041e, 0x404d0, 0x40502, 0x405e4, 0x4062a, 0x40630,
    0x40a01, 0x40a74, 0x40a81, 0x40b44, 0x40b86, 0x40bf0, 0x40c01, 0x40c82, 0x40c90, 0x40cb5, 0x40d06,
    0x40d09, 0x40d2a, 0x40d2c, 0x40d41, 0x40dd8, 0x40e01, 0x40e78, 0x40e81, 0x40f10, 0x40f21, 0x40f40,
    0x40f46, 0x40f58, 0x41001, 0x41278, 0x41282, 0x412a8, 0x412c1, 0x41350, 0x41361, 0x413f0, 0x41401,
    0x414a0, 0x414c1, 0x41590, 0x415c1, 0x415ec, 0x415f1, 0x4162c, 0x41631, 0x4164c, 0x41651, 0x41658,
    0x4165d, 0x41688, 0x4168d, 0x416c8, 0x416cd, 0x416e8, 0x416ed, 0x416f4, 0x41801, 0x41cdc, 0x41d01,
    0x41d58, 0x41d81, 0x41da0, 0x41e01, 0x41e18, 0x41e1d, 0x41ec4, 0x41ec9, 0x41eec, 0x42001, 0x42018,
    0x42021, 0x42024, 0x42029, 0x420d8, 0x420dd, 0x420e4, 0x420f1, 0x420f4, 0x420fd, 0x42158, 0x42162,
    0x42181, 0x421dc, 0x421e6, 0x42201, 0x4227c, 0x4229e, 0x422c0, 0x42381, 0x423cc, 0x423d1, 0x423d8,
    0x423ee, 0x42401, 0x4245a, 0x42470, 0x42481, 0x424e8, 0x42601, 0x426e0, 0x426f2, 0x426f9, 0x42702,
    0x42740, 0x4274a, 0x42801, 0x42804, 0x42841, 0x42850, 0x42855, 0x42860, 0x42865, 0x428d8, 0x42902,
    0x42924, 0x42981, 0x429f6, 0x429fc, 0x42a01, 0x42a76, 0x42a80, 0x42b01, 0x42b20, 0x42b25, 0x42b94,
    0x42bae, 0x42bc0, 0x42c01, 0x42cd8, 0x42d01, 0x42d58, 0x42d62, 0x42d81, 0x42dcc, 0x42de2, 0x42e01,
    0x42e48, 0x42ea6, 0x42ec0, 0x43001, 0x43124, 0x43201, 0x432cc, 0x43301, 0x433cc, 0x433ea, 0x43401,
    0x43490, 0x434c2, 0x434e8, 0x43982, 0x439fc, 0x43a01, 0x43aa8, 0x43ac1, 0x43ac8, 0x43c01, 0x43c76,
    0x43c9d, 0x43ca0, 0x43cc1, 0x43d18, 0x43d46, 0x43d54, 0x43dc1, 0x43e08, 0x43ec1, 0x43f16, 0x43f30,
    0x43f81, 0x43fdc, 0x4400d, 0x440e0, 0x4414a, 0x441c0, 0x441c5, 0x441cc, 0x441d5, 0x441d8, 0x4420d,
    0x442c0, 0x44341, 0x443a4, 0x443c2, 0x443e8, 0x4440d, 0x4449c, 0x444da, 0x44500, 0x44511, 0x44514,
    0x4451d, 0x44520, 0x44541, 0x445cc, 0x445d9, 0x445dc, 0x4460d, 0x446cc, 0x44705, 0x44714, 0x44742,
    0x44769, 0x4476c, 0x44771, 0x44774, 0x44786, 0x447d4, 0x44801, 0x44848, 0x4484d, 0x448b0, 0x44a01,
    0x44a1c, 0x44a21, 0x44a24, 0x44a29, 0x44a38, 0x44a3d, 0x44a78, 0x44a7d, 0x44aa4, 0x44ac1, 0x44b7c,
    0x44bc2, 0x44be8, 0x44c15, 0x44c34, 0x44c3d, 0x44c44, 0x44c4d, 0x44ca4, 0x44ca9, 0x44cc4, 0x44cc9,
    0x44cd0, 0x44cd5, 0x44ce8, 0x44cf5, 0x44cf8, 0x44d41, 0x44d44, 0x44d75, 0x44d88, 0x45001, 0x450d4,
    0x4511d, 0x4512c, 0x45142, 0x45168, 0x4517d, 0x45188, 0x45201, 0x452c0, 0x45311, 0x45318, 0x4531d,
    0x45320, 0x45342, 0x45368, 0x45601, 0x456bc, 0x45761, 0x45770, 0x45801, 0x458c0, 0x45911, 0x45914,
    0x45942, 0x45968, 0x45a01, 0x45aac, 0x45ae1, 0x45ae4, 0x45b02, 0x45b28, 0x45c01, 0x45c6c, 0x45cc2,
    0x45cf0, 0x45d01, 0x45d1c, 0x46001, 0x460b0, 0x46281, 0x46382, 0x463cc, 0x463fd, 0x4641c, 0x46425,
    0x46428, 0x46431, 0x46450, 0x46455, 0x4645c, 0x46461, 0x464c0, 0x464fd, 0x46500, 0x46505, 0x46508,
    0x46542, 0x46568, 0x46681, 0x466a0, 0x466a9, 0x46744, 0x46785, 0x46788, 0x4678d, 0x46790, 0x46801,
    0x46804, 0x4682d, 0x468cc, 0x468e9, 0x468ec, 0x46941, 0x46944, 0x46971, 0x46a28, 0x46a75, 0x46a78,
    0x46ac1, 0x46be4, 0x47001, 0x47024, 0x47029, 0x470bc, 0x47101, 0x47104, 0x47142, 0x471b4, 0x471c9,
    0x47240, 0x47401, 0x4741c, 0x47421, 0x47428, 0x4742d, 0x474c4, 0x47519, 0x4751c, 0x47542, 0x47568,
    0x47581, 0x47598, 0x4759d, 0x475a4, 0x475a9, 0x47628, 0x47661, 0x47664, 0x47682, 0x476a8, 0x47b81,
    0x47bcc, 0x47ec1, 0x47ec4, 0x47f02, 0x47f54, 0x48001, 0x48e68, 0x49002, 0x491bc, 0x49201, 0x49510,
    0x4be41, 0x4bfc4, 0x4c001, 0x4d0bc, 0x51001, 0x5191c, 0x5a001, 0x5a8e4, 0x5a901, 0x5a97c, 0x5a982,
    0x5a9a8, 0x5a9c1, 0x5aafc, 0x5ab02, 0x5ab28, 0x5ab41, 0x5abb8, 0x5ac01, 0x5acc0, 0x5ad01, 0x5ad10,
    0x5ad42, 0x5ad68, 0x5ad6e, 0x5ad88, 0x5ad8d, 0x5ade0, 0x5adf5, 0x5ae40, 0x5b901, 0x5ba02, 0x5ba5c,
    0x5bc01, 0x5bd2c, 0x5bd41, 0x5bd44, 0x5be4d, 0x5be80, 0x5bf81, 0x5bf88, 0x5bf8d, 0x5bf90, 0x5c001,
    0x61fe0, 0x62001, 0x63358, 0x63401, 0x63424, 0x6bfc1, 0x6bfd0, 0x6bfd5, 0x6bff0, 0x6bff5, 0x6bffc,
    0x6c001, 0x6c48c, 0x6c541, 0x6c54c, 0x6c591, 0x6c5a0, 0x6c5c1, 0x6cbf0, 0x6f001, 0x6f1ac, 0x6f1c1,
    0x6f1f4, 0x6f201, 0x6f224, 0x6f241, 0x6f268, 0x74b82, 0x74bd0, 0x74d82, 0x74de4, 0x75001, 0x75154,
    0x75159, 0x75274, 0x75279, 0x75280, 0x75289, 0x7528c, 0x75295, 0x7529c, 0x752a5, 0x752b4, 0x752b9,
    0x752e8, 0x752ed, 0x752f0, 0x752f5, 0x75310, 0x75315, 0x75418, 0x7541d, 0x7542c, 0x75435, 0x75454,
    0x75459, 0x75474, 0x75479, 0x754e8, 0x754ed, 0x754fc, 0x75501, 0x75514, 0x75519, 0x7551c, 0x75529,
    0x75544, 0x75549, 0x75a98, 0x75aa1, 0x75b04, 0x75b09, 0x75b6c, 0x75b71, 0x75bec, 0x75bf1, 0x75c54,
    0x75c59, 0x75cd4, 0x75cd9, 0x75d3c, 0x75d41, 0x75dbc, 0x75dc1, 0x75e24, 0x75e29, 0x75ea4, 0x75ea9,
    0x75f0c, 0x75f11, 0x75f30, 0x75f3a, 0x76000, 0x77c01, 0x77c7c, 0x78401, 0x784b4, 0x784dd, 0x784f8,
    0x78502, 0x78528, 0x78539, 0x7853c, 0x78a41, 0x78ab8, 0x78b01, 0x78bb0, 0x78bc2, 0x78be8, 0x79f81,
    0x79f9c, 0x79fa1, 0x79fb0, 0x79fb5, 0x79fbc, 0x79fc1, 0x79ffc, 0x7a001, 0x7a314, 0x7a31e, 0x7a340,
    0x7a401, 0x7a510, 0x7a52d, 0x7a530, 0x7a542, 0x7a568, 0x7b1c6, 0x7b2b0, 0x7b2b6, 0x7b2c0, 0x7b2c6,
    0x7b2d4, 0x7b406, 0x7b4b8, 0x7b4be, 0x7b4f8, 0x7b801, 0x7b810, 0x7b815, 0x7b880, 0x7b885, 0x7b88c,
    0x7b891, 0x7b894, 0x7b89d, 0x7b8a0, 0x7b8a5, 0x7b8cc, 0x7b8d1, 0x7b8e0, 0x7b8e5, 0x7b8e8, 0x7b8ed,
    0x7b8f0, 0x7b909, 0x7b90c, 0x7b91d, 0x7b920, 0x7b925, 0x7b928, 0x7b92d, 0x7b930, 0x7b935, 0x7b940,
    0x7b945, 0x7b94c, 0x7b951, 0x7b954, 0x7b95d, 0x7b960, 0x7b965, 0x7b968, 0x7b96d, 0x7b970, 0x7b975,
    0x7b978, 0x7b97d, 0x7b980, 0x7b985, 0x7b98c, 0x7b991, 0x7b994, 0x7b99d, 0x7b9ac, 0x7b9b1, 0x7b9cc,
    0x7b9d1, 0x7b9e0, 0x7b9e5, 0x7b9f4, 0x7b9f9, 0x7b9fc, 0x7ba01, 0x7ba28, 0x7ba2d, 0x7ba70, 0x7ba85,
    0x7ba90, 0x7ba95, 0x7baa8, 0x7baad, 0x7baf0, 0x7c402, 0x7c434, 0x7efc2, 0x7efe8, 0x80001, 0xa9b80,
    0xa9c01, 0xadce4, 0xadd01, 0xae078, 0xae081, 0xb3a88, 0xb3ac1, 0xbaf84, 0xbe001, 0xbe878, 0xc0001,
    0xc4d2c};
/* clang-format on */

static int mli_class_of(uint32_t c) {
    if (c < 0x80) {
        uint32_t letter = (c | 32) - 'a';
        return letter < 26             ? MLI_LETTER
               : c - '0' < 10          ? MLI_NUMBER
               : c == ' ' || c - 9 < 5 ? MLI_SPACE
                                       : MLI_OTHER;
    }
    if (c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
        c == 0x202f || c == 0x205f || c == 0x3000)
        return MLI_SPACE; /* Unicode's White_Space */
    size_t low = 0, high = MLI_COUNT(mli_unicode_starts);
    while (low < high) { /* the number of entries that begin at c or below */
        size_t middle = (low + high) / 2;
        if (mli_unicode_starts[middle] >> 2 <= c)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? (int)(mli_unicode_starts[low - 1] & 3) : MLI_OTHER;
}

/* The class of the character at p, of n > 0 bytes that are left, and its size. A byte that is not UTF-8 is a
   character by itself. */
static int mli_read_class(const unsigned char *p, size_t n, size_t *size) {
    uint32_t c = p[0];
    size_t more = c < 0xc2 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 0;
    *size = 1;
    if (c < 0x80) return mli_class_of(c);
    if (!more || more >= n) return MLI_OTHER;
    c &= 0x3fu >> more;
    for (size_t i = 1; i <= more; i++) {
        if ((p[i] & 0xc0) != 0x80) return MLI_OTHER;
        c = c << 6 | (p[i] & 63u);
    }
    if ((more == 2 && c < 0x800) || (more == 3 && c < 0x10000)) return MLI_OTHER;
    *size = more + 1;
    return mli_class_of(c);
}

/* ---- pre-tokenizers ---- */

/* GPT-2's expression is 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+; with `digits` 1,
   each number is first cut off by itself. Llama 3's is
   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
   with another count than 3 for others. */
typedef struct mli_word_rule {
    const char *name; /* in GGUF */
    int is_gpt2;
    size_t digits;         /* of a number in one word; 0: any */
    int takes_whole_words; /* a word that is a piece becomes it, whatever its merges: so says the name in GGUF; */
    int adds_bos;          /* and this, unless a key does */
} mli_word_rule;

static const mli_word_rule mli_word_rules[] = {
    {"gpt-2", 1, 0, 0, 0},     {"llama-bpe", 0, 3, 1, 1},       {"smollm", 1, 1, 0, 0},
    {"qwen2", 0, 1, 0, 0},     {"phi-2", 1, 0, 0, 0},           {"llama3", 0, 3, 1, 1},
    {"llama-v3", 0, 3, 1, 1},  {"starcoder", 1, 1, 0, 0},       {"refact", 1, 1, 0, 0},
    {"command-r", 1, 1, 0, 0}, {"deepseek-r1-qwen", 0, 1, 0, 0}};

static const mli_word_rule *mli_find_word_rule(const char *name, size_t n) {
    for (size_t i = 0; i < MLI_COUNT(mli_word_rules); i++)
        if (strlen(mli_word_rules[i].name) == n && memcmp(mli_word_rules[i].name, name, n) == 0)
            return &mli_word_rules[i];
    return NULL;
}

/* Where a run of characters of one class ends that begins at `at`: at most `most` of them, if that is not 0. */
static size_t mli_class_run(const unsigned char *p, size_t at, size_t n, int wanted, size_t most) {
    size_t size, count = 0;
    while (at < n && (!most || count++ < most) && mli_read_class(p + at, n - at, &size) == wanted) at += size;
    return at;
}

/* The size of 's, 't, 're, 've, 'm, 'll or 'd at p; 0: there is none. */
static size_t mli_contraction(const unsigned char *p, size_t n, int any_case) {
    const int fold = any_case ? 32 : 0;
    if (n < 2 || p[0] != '\'') return 0;
    int a = p[1] | fold, b = n > 2 ? p[2] | fold : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space at p: all of it at the end of the text, else all but the last character, which belongs to what
   follows. Llama 3's ends behind the last line feed that is in it. */
static size_t mli_space_run(const mli_word_rule *rule, const unsigned char *p, size_t n) {
    size_t at = 0, last = 0, line = 0, size;
    int next = MLI_SPACE;
    while (at < n && (next = mli_read_class(p + at, n - at, &size)) == MLI_SPACE) {
        last = at;
        at += size;
        if (p[at - 1] == '\n' || p[at - 1] == '\r') line = at;
    }
    if (!rule->is_gpt2 && line) return line;
    int is_cut = rule->is_gpt2 && rule->digits && next == MLI_NUMBER; /* the text ends before a number */
    return at == n || last == 0 || is_cut ? at : last;
}

/* The size of the word that a text of n > 0 bytes begins with. */
static size_t mli_word_size(const mli_word_rule *rule, const unsigned char *p, size_t n) {
    size_t size, ignored, at = mli_contraction(p, n, !rule->is_gpt2);
    if (at) return at;
    int first = mli_read_class(p, n, &size),
        second = size < n ? mli_read_class(p + size, n - size, &ignored) : -1;
    size_t space = p[0] == ' ' && second >= 0; /* the space before a word */
    int wanted = space ? second : first;
    if (first == MLI_NUMBER && rule->digits) return mli_class_run(p, 0, n, first, rule->digits);
    if (rule->is_gpt2) {
        if (wanted == MLI_SPACE || (wanted == MLI_NUMBER && rule->digits)) return mli_space_run(rule, p, n);
        return mli_class_run(p, space, n, wanted, 0);
    }
    if (first == MLI_LETTER) return mli_class_run(p, 0, n, first, 0);
    if (second == MLI_LETTER && p[0] != '\r' && p[0] != '\n') return mli_class_run(p, size, n, second, 0);
    if (wanted != MLI_OTHER) return mli_space_run(rule, p, n);
    at = mli_class_run(p, space, n, MLI_OTHER, 0);
    while (at < n && (p[at] == '\r' || p[at] == '\n')) at++;
    return at;
}
#else
typedef struct mli_word_rule {
    const char *name;
} mli_word_rule;
#endif /* ML_NO_BPE */

/* ==== >>tokenizer ====
   A vocabulary numbers its pieces 0 .. V-1. Encoding cuts text into characters and then merges neighbors, always the
   two whose joint piece has the highest score, the leftmost two on a tie, until no two neighbors make a piece.
   Whatever is still not a piece is encoded as byte pieces. This is SentencePiece's BPE, id for id, with one
   difference that makes it lossless: bytes that are not valid UTF-8 become byte pieces, one each, where SentencePiece
   puts U+FFFD. Only U+2581 in the text is not restored: as in SentencePiece, it is read as a space.

   Merging takes O(n log n), with a priority queue of the pairs that can be merged next. Two things keep the queue
   small and in the cache. No merge ever crosses the boundary between two bytes that are adjacent in no piece; in
   English that is nearly every start of a word, and text is cut there into segments. And each segment is finished
   before the next.

   Byte-level BPE differs in three places: its segments end where its words do (>>words), its characters are bytes,
   and which pair comes first is in a list of merges. Two neighbors that are not in the list are not merged, even if
   there is a piece for both. A tokenizer.json has such a list for SentencePiece's vocabularies, too. */

#define MLI_MAX_PIECES 1048576 /* of a vocabulary */
#define MLI_MAX_MERGES 8388608 /* as ranks, exact in a float */
#define MLI_MAX_PIECE 1024     /* bytes of one piece: bounds the time that a lookup takes */
#define MLI_MAX_PROBES 256     /* slots that a lookup visits; common vocabularies need fewer than 100 */

/* SentencePiece writes the space as U+2581, which makes it visible in lists of pieces. Here each piece is stored
   twice: as written, and as its text, in which the mark is a plain space again, a byte piece its byte, and a piece of
   GPT-2's alphabet its bytes. Decoding is then copying, and encoding compares with the caller's text directly. */
#define MLI_MARK "\xE2\x96\x81"
#define MLI_MARK_SIZE 3
#define MLI_UNKNOWN_TEXT " \xE2\x81\x87 " /* U+2047, as SentencePiece shows an unknown piece by default */
#define MLI_UNKNOWN_TEXT_SIZE 5

typedef struct mli_piece_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
} mli_piece_slot;

typedef struct mli_piece_table {
    mli_piece_slot *slots; /* (mask + 1) hash table from text to id */
    uint32_t mask;
} mli_piece_table;

/* Pieces `left` and `right`, as neighbors, become piece `id`. */
typedef struct mli_ranked {
    int32_t left, right, id;
} mli_ranked;

/* What a text is like before it is cut, and after that. Both kinds of tokenizers have all of it. */
typedef struct mli_text_rules {
    int adds_space_prefix;    /* a space is put before the text when it is encoded */
    int removes_extra_spaces; /* before that, spaces at both ends are dropped, and runs of them become one */
    int spares_spaces;        /* no space is put before a text that begins with one, */
    int only_first;           /* or before what follows a special piece */
    int cuts_at_spaces;       /* no piece has a space but at its beginning */
    const mli_word_rule *words; /* byte-level: how a text is cut into words; NULL: SentencePiece's */
    int takes_whole_words;      /* a word that is a piece becomes it, whatever its merges */
    int is_ranked;              /* by the list of merges, not by the scores of pieces */
} mli_text_rules;

typedef struct ml_tokenizer_private {
    ml_tokenizer shown;
    ml_allocator allocator;
    mli_text_rules rules;
    int has_padding;                 /* the file names a padding piece */
    int has_bytes;                   /* all 256 byte pieces exist */
    int32_t space;                   /* the piece of a single space, or -1 */
    size_t longest, longest_special; /* bytes in the longest text of a piece, of a special one, */
    size_t longest_user;             /* and of a user-defined one */
    uint32_t *piece_at, *text_at;    /* (V + 1) where each begins in: */
    char *pieces, *texts;
    float *scores;                   /* (V) */
    unsigned char *kinds;            /* (V) ml_piece_kind */
    mli_piece_table table, specials; /* of what characters merge into; of control and user-defined pieces */
    size_t n_merges;
    mli_ranked *merges;    /* (n_merges) by rank, with is_ranked */
    uint32_t *merge_slots; /* (merge_mask + 1) hash table from a pair to its rank; UINT32_MAX: empty */
    uint32_t merge_mask;
    unsigned char *adjacent; /* bit (a, b): in some piece, byte b follows byte a */
    int32_t byte_ids[256];
    unsigned char special_starts[256 / 8]; /* bit a: some special piece begins with byte a */
} mli_tokenizer;

/* ---- creating a tokenizer ---- */

typedef struct mli_piece {
    const unsigned char *bytes;
    size_t length;
    float score;
    int kind;
} mli_piece;

/* What the reader of a file format provides. `get` is called for ids 0, 1, 2 ... V-1 in this order, twice. */
typedef struct mli_vocabulary {
    ml_result (*get)(void *context, int32_t id, mli_piece *piece, ml_error *error);
    void *context;
    size_t n_pieces;
    int has_plain_spaces; /* pieces are written with ' ' where SentencePiece has U+2581 */
    int32_t bos, eos, unknown, padding;
    int adds_bos, adds_eos;
    mli_text_rules rules;
    /* Of rules.is_ranked: both halves of a merge as pieces are written. Called in the order of ranks, once. */
    ml_result (*get_merge)(void *context, size_t rank, mli_piece halves[2], ml_error *error);
    size_t n_merges;
    const unsigned char *unknown_text; /* (unknown_size) what an unknown piece is decoded to */
    size_t unknown_size;
    int n_ends; /* besides eos */
    int32_t ends[ML_MAX_ENDS];
} mli_vocabulary;

static mli_vocabulary mli_no_vocabulary(void) {
    mli_vocabulary v;
    memset(&v, 0, sizeof v);
    v.bos = v.eos = v.unknown = v.padding = -1;
    v.unknown_text = (const unsigned char *)MLI_UNKNOWN_TEXT;
    v.unknown_size = MLI_UNKNOWN_TEXT_SIZE;
    return v;
}

/* Adds an id to a list of those that end a text, once. A ninth is dropped: no model has as many. */
static void mli_add_end(int32_t ends[ML_MAX_ENDS], int *n_ends, int32_t id) {
    for (int i = 0; i < *n_ends; i++)
        if (ends[i] == id) return;
    if (id >= 0 && *n_ends < ML_MAX_ENDS) ends[(*n_ends)++] = id;
}

static int mli_bit(const unsigned char *bits, unsigned index) { return bits[index >> 3] >> (index & 7) & 1; }

static void mli_set_bit(unsigned char *bits, unsigned index) {
    bits[index >> 3] = (unsigned char)(bits[index >> 3] | 1u << (index & 7));
}

static int mli_hex_digit(unsigned char c) {
    int letter = (c | 32) - 'a'; /* | 32: lower case */
    return c >= '0' && c <= '9' ? c - '0' : letter >= 0 && letter < 6 ? letter + 10 : -1;
}

/* The value of a byte piece, written <0x00> to <0xFF>; -1 for anything else. */
static int mli_byte_of_piece(const unsigned char *piece, size_t length) {
    if (length != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    int high = mli_hex_digit(piece[3]), low = mli_hex_digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Whether encoding can make this piece out of characters. */
static int mli_is_text_kind(int kind) {
    return kind == ML_PIECE_NORMAL || kind == ML_PIECE_USER_DEFINED || kind == ML_PIECE_UNUSED;
}

/* Whether it is looked for in a text before that is cut. */
static int mli_is_special_kind(int kind) { return kind == ML_PIECE_CONTROL || kind == ML_PIECE_USER_DEFINED; }

/* Whether the next n bytes begin with U+2581. */
static int mli_is_mark(const unsigned char *p, size_t n) {
    return n >= MLI_MARK_SIZE && memcmp(p, MLI_MARK, MLI_MARK_SIZE) == 0;
}

/* Both return a length, and with `to` NULL only count. This one copies a piece as SentencePiece writes it, ... */
static size_t mli_write_piece(const mli_vocabulary *vocabulary, const mli_piece *piece, char *to) {
    size_t n = 0;
    for (size_t i = 0; i < piece->length; i++) {
        int is_space = vocabulary->has_plain_spaces && piece->bytes[i] == ' ';
        if (to && is_space) memcpy(to + n, MLI_MARK, MLI_MARK_SIZE);
        if (to && !is_space) to[n] = (char)piece->bytes[i];
        n += is_space ? MLI_MARK_SIZE : 1;
    }
    return n;
}

/* Whether a byte-level piece stands for bytes by the alphabet; special ones, and strange ones, are texts as they
   are. */
static int mli_is_spelled(const mli_piece *piece) {
#ifndef ML_NO_BPE
    return mli_is_text_kind(piece->kind) && piece->kind != ML_PIECE_USER_DEFINED &&
           mli_unspell(piece->bytes, piece->length, NULL) != SIZE_MAX;
#else
    return (void)piece, 0;
#endif
}

static size_t mli_write_bytes(const mli_piece *piece, char *to) {
#ifndef ML_NO_BPE
    if (mli_is_spelled(piece)) return mli_unspell(piece->bytes, piece->length, to);
#endif
    if (to && piece->length) memcpy(to, piece->bytes, piece->length);
    return piece->length;
}

/* ... and this one the text of a piece. */
static size_t mli_write_text(const mli_vocabulary *vocabulary, const mli_piece *piece, char *to) {
    size_t n = 0;
    if (piece->kind == ML_PIECE_UNKNOWN) {
        if (to && vocabulary->unknown_size) memcpy(to, vocabulary->unknown_text, vocabulary->unknown_size);
        return vocabulary->unknown_size;
    }
    if (piece->kind == ML_PIECE_BYTE) {
        if (to) to[0] = (char)mli_byte_of_piece(piece->bytes, piece->length);
        return 1;
    }
    if (vocabulary->rules.words) return mli_write_bytes(piece, to);
    for (size_t i = 0; i < piece->length; n++) {
        int is_mark = mli_is_mark(piece->bytes + i, piece->length - i);
        if (to) to[n] = is_mark ? ' ' : (char)piece->bytes[i];
        i += is_mark ? MLI_MARK_SIZE : 1;
    }
    return n;
}

static ml_result mli_check_piece(const mli_piece *piece, int32_t id, size_t length, ml_error *error) {
    if (piece->kind < ML_PIECE_NORMAL || piece->kind > ML_PIECE_BYTE)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer piece %d is of kind %d, which does not exist",
                        (int)id, piece->kind);
    if ((mli_float_bits(piece->score) & 0x7fffffffu) > MLI_INFINITY_BITS)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer piece %d has NaN for a score", (int)id);
    if (piece->kind == ML_PIECE_BYTE && mli_byte_of_piece(piece->bytes, piece->length) < 0)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer piece %d is a byte, but not <0x00> to <0xFF>",
                        (int)id);
    if (length <= MLI_MAX_PIECE) return ML_OK;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "tokenizer piece %d has %z bytes; at most %d are supported",
                    (int)id, length, MLI_MAX_PIECE);
}

typedef struct mli_piece_sizes {
    size_t pieces, texts; /* bytes */
    size_t n_special, n_merges;
} mli_piece_sizes;

/* The first pass over the pieces: checks them, and counts the bytes of pieces and texts. */
static ml_result mli_measure_pieces(const mli_vocabulary *vocabulary, mli_piece_sizes *sizes,
                                    ml_error *error) {
    size_t n_pieces = vocabulary->n_pieces;
    memset(sizes, 0, sizeof *sizes);
    sizes->n_merges = vocabulary->rules.is_ranked ? vocabulary->n_merges : 0;
    if (n_pieces == 0) return mli_fail(error, ML_ERROR_FORMAT, "the tokenizer has no pieces");
    if (n_pieces > MLI_MAX_PIECES)
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "the tokenizer has %z pieces; at most %d are supported",
                        n_pieces, MLI_MAX_PIECES);
    for (int32_t id = 0; id < (int32_t)n_pieces; id++) {
        mli_piece piece;
        ml_result result = vocabulary->get(vocabulary->context, id, &piece, error);
        if (result) return result;
        size_t length = piece.length; /* unless that is too long already: the length as it will be written */
        if (length <= MLI_MAX_PIECE) length = mli_write_piece(vocabulary, &piece, NULL);
        result = mli_check_piece(&piece, id, length, error);
        if (result) return result;
        sizes->pieces += length; /* at most 2^20 * 2^10: no overflow */
        sizes->texts += mli_write_text(vocabulary, &piece, NULL);
        sizes->n_special += mli_is_special_kind(piece.kind) ? 1 : 0;
    }
    if (sizes->n_merges < MLI_MAX_MERGES) return ML_OK;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "the tokenizer has %z merges; fewer than %d are supported",
                    sizes->n_merges, MLI_MAX_MERGES);
}

/* FNV-1a (Fowler, Noll & Vo 1991) takes a byte at a time: a longer text continues from the hash of a shorter one. */
#define MLI_HASH_SEED 2166136261u
static uint32_t mli_hash_byte(uint32_t hash, unsigned char c) { return (hash ^ c) * 16777619u; }

static uint32_t mli_hash(const unsigned char *bytes, size_t n) {
    uint32_t hash = MLI_HASH_SEED;
    for (size_t i = 0; i < n; i++) hash = mli_hash_byte(hash, bytes[i]);
    return hash;
}

/* The slot of this text, or the empty one where it would be put: the first from where its hash points. NULL when
   MLI_MAX_PROBES slots in a row hold other pieces, so that a file with pieces chosen to collide cannot make lookups
   slow. */
static mli_piece_slot *mli_find_slot(const mli_tokenizer *t, const mli_piece_table *table,
                                     const unsigned char *text, size_t n, uint32_t hash) {
    uint32_t begin = hash ^ hash >> 15;
    for (uint32_t i = 0; i < MLI_MAX_PROBES; i++) {
        mli_piece_slot *slot = &table->slots[(begin + i) & table->mask];
        if (slot->id < 0) return slot;
        if (slot->hash != hash) continue;
        uint32_t at = t->text_at[slot->id];
        if (t->text_at[slot->id + 1] - at == n && memcmp(t->texts + at, text, n) == 0) return slot;
    }
    return NULL;
}

/* The id of the piece with this text, or -1. */
static int32_t mli_find_hashed(const mli_tokenizer *t, const mli_piece_table *table,
                               const unsigned char *text, size_t n, uint32_t hash) {
    const mli_piece_slot *slot = mli_find_slot(t, table, text, n, hash);
    return slot ? slot->id : -1;
}

static int32_t mli_find_piece(const mli_tokenizer *t, const unsigned char *text, size_t n) {
    return n > t->longest ? -1 : mli_find_hashed(t, &t->table, text, n, mli_hash(text, n));
}

/* Enters a piece into a hash table. Of equal pieces the first one counts; ranked merges would not say which is meant.
   */
static ml_result mli_enter_piece(mli_tokenizer *t, mli_piece_table *table, int32_t id, ml_error *error) {
    const unsigned char *text = (const unsigned char *)t->texts + t->text_at[id];
    size_t n = t->text_at[id + 1] - t->text_at[id];
    uint32_t hash = mli_hash(text, n);
    mli_piece_slot *slot = mli_find_slot(t, table, text, n, hash);
    if (!slot)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer pieces are chosen to collide (piece %d)", (int)id);
    if (slot->id >= 0 && (t->rules.words || t->rules.is_ranked))
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer pieces %d and %d are the same", (int)slot->id,
                        (int)id);
    if (slot->id >= 0) return ML_OK;
    slot->hash = hash;
    slot->id = id;
    return ML_OK;
}

/* Enters a piece where it is looked up, and into the bit sets. */
static ml_result mli_index_piece(mli_tokenizer *t, int32_t id, int merges, ml_error *error) {
    const unsigned char *text = (const unsigned char *)t->texts + t->text_at[id];
    size_t n = t->text_at[id + 1] - t->text_at[id];
    if (merges) {
        ml_result result = mli_enter_piece(t, &t->table, id, error);
        if (result) return result;
        t->longest = MLI_MAX(t->longest, n);
        for (size_t i = 0; i + 1 < n; i++) mli_set_bit(t->adjacent, text[i] * 256u + text[i + 1]);
    }
    if (!mli_is_special_kind(t->kinds[id])) return ML_OK;
    mli_set_bit(t->special_starts, text[0]);
    t->longest_special = MLI_MAX(t->longest_special, n);
    if (t->kinds[id] == ML_PIECE_USER_DEFINED) t->longest_user = MLI_MAX(t->longest_user, n);
    return mli_enter_piece(t, &t->specials, id, error);
}

/* The second pass: copies the pieces, and indexes those that text can become. */
static ml_result mli_fill_pieces(mli_tokenizer *t, const mli_vocabulary *vocabulary, ml_error *error) {
    for (int32_t id = 0; id < t->shown.n_pieces; id++) {
        mli_piece piece;
        ml_result result = vocabulary->get(vocabulary->context, id, &piece, error);
        if (result) return result;
        char *written = t->pieces + t->piece_at[id];
        piece.length = mli_write_piece(vocabulary, &piece, written);
        piece.bytes = (const unsigned char *)written;
        size_t text_size = mli_write_text(vocabulary, &piece, t->texts + t->text_at[id]);
        t->piece_at[id + 1] = t->piece_at[id] + (uint32_t)piece.length;
        t->text_at[id + 1] = t->text_at[id] + (uint32_t)text_size;
        t->scores[id] = piece.score;
        t->kinds[id] = (unsigned char)piece.kind;
        int merges = vocabulary->rules.words ? mli_is_spelled(&piece) : mli_is_text_kind(piece.kind);
        int b = vocabulary->rules.words && merges && text_size == 1 ? (unsigned char)t->texts[t->text_at[id]]
                : piece.kind == ML_PIECE_BYTE ? mli_byte_of_piece(piece.bytes, piece.length)
                                              : -1;
        if (b >= 0 && t->byte_ids[b] < 0) t->byte_ids[b] = id;
        if ((!merges && !mli_is_special_kind(piece.kind)) || !piece.length) continue;
        /* a piece written with a plain space never matches: SentencePiece's text has marks instead */
        if (!vocabulary->rules.words && memchr(written, ' ', piece.length)) continue;
        result = mli_index_piece(t, id, merges, error);
        if (result) return result;
    }
    return ML_OK;
}

/* Of a hash table for n things: a power of two, at most half full. */
static size_t mli_count_slots(size_t n) {
    size_t n_slots = 4;
    while (n_slots < 2 * n) n_slots *= 2;
    return n_slots;
}

static void mli_carve_table(mli_piece_table *table, unsigned char *memory, size_t *used, size_t n) {
    size_t n_slots = mli_count_slots(n);
    table->mask = (uint32_t)(n_slots - 1);
    table->slots = (mli_piece_slot *)mli_carve(memory, used, n_slots, sizeof *table->slots);
    if (table->slots) memset(table->slots, 0xff, n_slots * sizeof *table->slots); /* ids -1: empty */
}

/* Places the arrays after the struct in `memory`, or with NULL only counts; the bytes, SIZE_MAX on overflow. */
static size_t mli_tokenizer_layout(mli_tokenizer *t, const mli_piece_sizes *sizes, unsigned char *memory) {
    size_t used = 0, v = (size_t)t->shown.n_pieces, n_slots = mli_count_slots(sizes->n_merges);
    mli_carve(memory, &used, 1, sizeof *t);
    mli_carve_table(&t->table, memory, &used, v);
    mli_carve_table(&t->specials, memory, &used, sizes->n_special);
    t->piece_at = (uint32_t *)mli_carve(memory, &used, v + 1, sizeof *t->piece_at);
    t->text_at = (uint32_t *)mli_carve(memory, &used, v + 1, sizeof *t->text_at);
    t->scores = (float *)mli_carve(memory, &used, v, sizeof *t->scores);
    t->kinds = (unsigned char *)mli_carve(memory, &used, v, 1);
    t->adjacent = (unsigned char *)mli_carve(memory, &used, 256 * 256 / 8, 1);
    t->pieces = (char *)mli_carve(memory, &used, sizes->pieces, 1);
    t->texts = (char *)mli_carve(memory, &used, sizes->texts, 1);
    if (!t->rules.is_ranked) return used;
    t->merge_mask = (uint32_t)(n_slots - 1);
    t->merges = (mli_ranked *)mli_carve(memory, &used, sizes->n_merges, sizeof *t->merges);
    t->merge_slots = (uint32_t *)mli_carve(memory, &used, n_slots, sizeof *t->merge_slots);
    if (t->merge_slots) memset(t->merge_slots, 0xff, n_slots * sizeof *t->merge_slots);
    return used;
}

/* All but the pieces. */
static mli_tokenizer mli_plan_tokenizer(const mli_vocabulary *v, const ml_allocator *allocator) {
    mli_tokenizer plan;
    ml_tokenizer *shown = &plan.shown;
    memset(&plan, 0, sizeof plan);
    memset(plan.byte_ids, 0xff, sizeof plan.byte_ids); /* -1 */
    plan.allocator = *allocator;
    plan.rules = v->rules;
    plan.has_padding = v->padding >= 0;
    shown->n_pieces = (int)v->n_pieces;
    shown->bos = v->bos;
    shown->eos = v->eos;
    shown->unknown = v->unknown;
    shown->padding = v->padding;
    shown->adds_bos = v->adds_bos && v->bos >= 0;
    shown->adds_eos = v->adds_eos && v->eos >= 0;
    mli_add_end(shown->ends, &shown->n_ends, v->eos);
    for (int i = 0; i < v->n_ends; i++) mli_add_end(shown->ends, &shown->n_ends, v->ends[i]);
    return plan;
}

/* ---- ranked merges ---- */

/* The slot of the merge of two pieces, or the empty one where it would be put; NULL as in mli_find_slot. */
static uint32_t *mli_find_merge_slot(const mli_tokenizer *t, int32_t left, int32_t right) {
    uint64_t state = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint32_t begin = (uint32_t)mli_splitmix64(&state);
    for (uint32_t i = 0; i < MLI_MAX_PROBES; i++) {
        uint32_t *slot = &t->merge_slots[(begin + i) & t->merge_mask];
        if (*slot == UINT32_MAX) return slot;
        if (t->merges[*slot].left == left && t->merges[*slot].right == right) return slot;
    }
    return NULL;
}

/* The rank of the merge of two pieces (-1: none, or what has no piece); or -1. */
static int32_t mli_find_merge(const mli_tokenizer *t, int32_t left, int32_t right) {
    const uint32_t *slot = left < 0 || right < 0 ? NULL : mli_find_merge_slot(t, left, right);
    return slot && *slot != UINT32_MAX ? (int32_t)*slot : -1;
}

/* The id of a piece as it is written, or -1. */
static int32_t mli_find_written(const mli_tokenizer *t, const mli_vocabulary *v, const mli_piece *piece) {
    char text[MLI_MAX_PIECE];
    mli_piece plain = *piece;
    if (!piece->length || piece->length > sizeof text) return -1;
    plain.kind = ML_PIECE_NORMAL;
    size_t n = mli_write_text(v, &plain, text);
    const unsigned char *p = (const unsigned char *)text;
    int32_t id = mli_find_piece(t, p, n);
    return id >= 0 ? id
                   : mli_find_hashed(t, &t->specials, piece->bytes, piece->length,
                                     mli_hash(piece->bytes, piece->length));
}

static ml_result mli_refuse_merge(size_t rank, const mli_piece halves[2], ml_error *error) {
    char texts[2][64];
    for (int i = 0; i < 2; i++) {
        size_t at = 0;
        texts[i][0] = 0;
        mli_put(texts[i], sizeof texts[i], &at, (const char *)halves[i].bytes, halves[i].length);
    }
    return mli_fail(error, ML_ERROR_FORMAT,
                    "tokenizer merge %z makes no piece of the vocabulary (of \"%s\" and \"%s\")", rank,
                    texts[0], texts[1]);
}

/* Looks up the pieces that a merge names, and the one that it makes. There must be the latter; then a merge of what
   is no piece, as vocabularies that were cut have them, never happens: nothing makes its halves. */
static ml_result mli_read_merge(const mli_tokenizer *t, const mli_vocabulary *v, size_t rank,
                                mli_ranked *pair, ml_error *error) {
    unsigned char joint[MLI_MAX_PIECE];
    mli_piece halves[2], whole = {joint, 0, 0, ML_PIECE_NORMAL};
    ml_result result = v->get_merge(v->context, rank, halves, error);
    if (result) return result;
    for (int i = 0; i < 2; i++) {
        if (!halves[i].length || halves[i].length > sizeof joint - whole.length)
            return mli_refuse_merge(rank, halves, error);
        memcpy(joint + whole.length, halves[i].bytes, halves[i].length);
        whole.length += halves[i].length;
    }
    pair->left = mli_find_written(t, v, &halves[0]);
    pair->right = mli_find_written(t, v, &halves[1]);
    pair->id = mli_find_written(t, v, &whole);
    return pair->id < 0 ? mli_refuse_merge(rank, halves, error) : ML_OK;
}

/* Reads the list of merges. Of equal ones the first counts. A piece's score becomes the rank that it is made with,
   for programs that go by scores. */
static ml_result mli_fill_merges(mli_tokenizer *t, const mli_vocabulary *v, ml_error *error) {
    int makes_scores = !t->rules.words;
    for (int32_t id = 0; id < t->shown.n_pieces && makes_scores; id++) t->scores[id] = -(float)v->n_merges;
    for (size_t rank = 0; rank < v->n_merges; rank++) {
        mli_ranked *pair = &t->merges[t->n_merges];
        ml_result result = mli_read_merge(t, v, rank, pair, error);
        if (result) return result;
        if (pair->left < 0 || pair->right < 0) continue;
        uint32_t *slot = mli_find_merge_slot(t, pair->left, pair->right);
        if (!slot)
            return mli_fail(error, ML_ERROR_FORMAT, "tokenizer merges are chosen to collide (merge %z)",
                            rank);
        if (*slot != UINT32_MAX) continue;
        if (makes_scores) t->scores[pair->id] = MLI_MAX(t->scores[pair->id], -(float)t->n_merges);
        *slot = (uint32_t)t->n_merges++;
    }
    return ML_OK;
}

/* ---- from a vocabulary to a tokenizer ---- */

static ml_result mli_tokenizer_create(const mli_vocabulary *v, const ml_allocator *allocator,
                                      ml_tokenizer **out, ml_error *error) {
    mli_piece_sizes sizes;
    ml_result result = mli_measure_pieces(v, &sizes, error);
    if (result) return result;
    mli_tokenizer plan = mli_plan_tokenizer(v, allocator);
    size_t size = mli_tokenizer_layout(&plan, &sizes, NULL);
    mli_tokenizer *t = size == SIZE_MAX ? NULL : (mli_tokenizer *)mli_alloc(allocator, size, 1);
    if (!t) return mli_fail(error, ML_ERROR_MEMORY, "out of memory for a tokenizer of %z bytes", size);
    mli_tokenizer_layout(&plan, &sizes, (unsigned char *)t);
    *t = plan;
    t->shown.private_part = t;
    result = mli_fill_pieces(t, v, error);
    if (!result && v->rules.is_ranked) result = mli_fill_merges(t, v, error);
    if (result) {
        ml_tokenizer_free(&t->shown);
        return result;
    }
    t->has_bytes = 1;
    for (int i = 0; i < 256; i++) t->has_bytes &= t->byte_ids[i] >= 0;
    if (t->shown.padding < 0) t->shown.padding = t->byte_ids[0];
    t->space = mli_find_piece(t, (const unsigned char *)" ", 1);
    *out = &t->shown;
    return mli_ok(error);
}

ML_DEF void ml_tokenizer_free(ml_tokenizer *tokenizer) {
    if (!tokenizer) return;
    ml_allocator allocator = tokenizer->private_part->allocator;
    mli_free(&allocator, tokenizer->private_part);
}

ML_DEF const char *ml_tokenizer_piece(const ml_tokenizer *tokenizer, int32_t id, size_t *length, float *score,
                                      ml_piece_kind *kind) {
    const mli_tokenizer *t = tokenizer->private_part;
    int exists = id >= 0 && id < tokenizer->n_pieces;
    if (length) *length = exists ? t->piece_at[id + 1] - t->piece_at[id] : 0;
    if (score) *score = exists ? t->scores[id] : 0;
    if (kind) *kind = exists ? (ml_piece_kind)t->kinds[id] : ML_PIECE_UNUSED;
    return exists ? t->pieces + t->piece_at[id] : NULL;
}

/* ---- merging ---- */

/* A symbol is a part of the segment that has been merged so far. It is identified by its offset, and ends at the
   next one. */
typedef struct mli_symbol {
    int32_t next, prev; /* neighbors; the end of the segment, or -1: none */
    int32_t pair;  /* the piece that this symbol and the next would make, or, ranked, the rank; -1: none */
    int32_t id;    /* this symbol's piece; -1: not looked up yet */
    int32_t split; /* where the right half of its last merge began; -1: it is a character */
} mli_symbol;

/* In the queue: `left` and its next symbol can be merged at this cost. Out of date, and skipped, if the symbol's pair
   has changed since. */
typedef struct mli_merge {
    uint32_t left, cost;
} mli_merge;

typedef struct mli_encoder {
    const mli_tokenizer *t;
    unsigned char *text; /* (n) normalized: with plain spaces, including the one put before it */
    size_t n, end;       /* end: where the next special piece begins, or n */
    int flags, has_prefix;
    int32_t *ids; /* (n_ids), followed by the segment's scratch */
    size_t n_ids;
    const unsigned char *segment; /* (length) a part of the text that is encoded by itself */
    int32_t length;
    mli_symbol *symbols; /* (length) used where symbols begin */
    mli_merge *queue;    /* (2 * length) */
    size_t n_queue;      /* fits: each of fewer than `length` merges takes one entry out and puts two in */
    int was_unknown;     /* the last id is the unknown piece, which replaces a whole run of characters */
    int missing;         /* 1 + the first byte of a character without any piece; 0: there was none */
} mli_encoder;

/* Maps scores to integers so that the highest score has the lowest cost. Floats order like sign and magnitude; -0
   counts as 0. */
static uint32_t mli_piece_cost(const mli_tokenizer *t, int32_t id) {
    uint32_t bits = mli_float_bits(t->scores[id]);
    if (bits == 0x80000000u) bits = 0;
    return bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}

/* Of a symbol's pair. */
static uint32_t mli_pair_cost(const mli_tokenizer *t, int32_t pair) {
    return t->rules.is_ranked ? (uint32_t)pair : mli_piece_cost(t, pair);
}

static uint64_t mli_merge_key(const mli_merge *merge) { return (uint64_t)merge->cost << 32 | merge->left; }

/* The queue is a heap with four children per node (Johnson 1975, "Priority Queues with Update and Finding Minimum
   Spanning Trees"), which share a cache line. */
static void mli_queue_push(mli_encoder *e, mli_merge merge) {
    mli_merge *queue = e->queue;
    size_t i = e->n_queue++;
    ML_ASSERT(i < 2 * (size_t)e->length);
    for (; i > 0 && mli_merge_key(&merge) < mli_merge_key(&queue[(i - 1) / 4]); i = (i - 1) / 4)
        queue[i] = queue[(i - 1) / 4];
    queue[i] = merge;
}

static mli_merge mli_queue_pop(mli_encoder *e) {
    mli_merge *queue = e->queue, top = queue[0], last = queue[--e->n_queue];
    size_t i = 0, n = e->n_queue;
    while (4 * i + 1 < n) {
        size_t least = 4 * i + 1, end = MLI_MIN(least + 4, n);
        for (size_t child = least + 1; child < end; child++)
            if (mli_merge_key(&queue[child]) < mli_merge_key(&queue[least])) least = child;
        if (mli_merge_key(&last) <= mli_merge_key(&queue[least])) break;
        queue[i] = queue[least];
        i = least;
    }
    queue[i] = last;
    return top;
}

/* Looks up the piece that symbol `left` and the next one would make, and queues the merge. */
static void mli_queue_pair(mli_encoder *e, int32_t left) {
    mli_symbol *symbol = &e->symbols[left];
    symbol->pair = -1;
    if (symbol->next == e->length) return;
    const mli_symbol *next = &e->symbols[symbol->next];
    symbol->pair = e->t->rules.is_ranked
                       ? mli_find_merge(e->t, symbol->id, next->id)
                       : mli_find_piece(e->t, e->segment + left, (size_t)(next->next - left));
    if (symbol->pair < 0) return;
    mli_merge merge = {(uint32_t)left, mli_pair_cost(e->t, symbol->pair)};
    mli_queue_push(e, merge);
}

static void mli_link_symbols(mli_encoder *e, int32_t left, int32_t right) {
    e->symbols[left].next = right;
    if (right < e->length) e->symbols[right].prev = left;
}

/* Merges until nothing is left to merge. The right half's entry is then free, and stores how the left half was made,
   so that a merge can be undone. */
static void mli_merge_symbols(mli_encoder *e) {
    mli_symbol *symbols = e->symbols;
    while (e->n_queue) {
        mli_merge best = mli_queue_pop(e);
        int32_t left = (int32_t)best.left, pair = symbols[left].pair, right = symbols[left].next;
        if (pair < 0 || mli_pair_cost(e->t, pair) != best.cost) continue;
        mli_link_symbols(e, left, symbols[right].next);
        symbols[right].prev = symbols[left].split;
        symbols[right].pair = -1;
        symbols[left].split = right;
        symbols[left].id = e->t->rules.is_ranked ? e->t->merges[pair].id : pair;
        if (symbols[left].prev >= 0) mli_queue_pair(e, symbols[left].prev);
        mli_queue_pair(e, left);
    }
}

static void mli_undo_merge(mli_encoder *e, int32_t left) {
    mli_symbol *symbols = e->symbols;
    int32_t right = symbols[left].split;
    symbols[left].split = symbols[right].prev;
    symbols[left].id = -1;
    mli_link_symbols(e, right, symbols[left].next);
    mli_link_symbols(e, left, right);
}

/* ---- encoding ----
   Nothing is allocated. In the caller's memory the ids grow from the front, the normalized text is at the very end,
   and between them is the scratch of one segment: for each byte the 5 numbers of a symbol, and 2 queue entries of 2
   numbers. These 9 words for each byte of the text are enough: when a segment begins, the ids before it take at most
   one word for each byte encoded so far; and when its own ids are written, they replace symbols that are finished,
   since a symbol of k bytes has 5 k words and becomes at most k ids. */

ML_DEF size_t ml_tokenizer_encode_size(size_t n_bytes) {
    const size_t each = 9 * 4 + 1, flags = 2 * 4; /* with the byte of normalized text; bos and eos */
    size_t most = MLI_MIN(INT32_MAX - 2, (SIZE_MAX - flags) / each - 1);
    return n_bytes > most ? SIZE_MAX : (n_bytes + 1) * each + flags;
}

/* Bytes of the UTF-8 character at p, of n > 0 that are left. A first byte without the bytes that must follow is a
   character by itself. Overlong forms and surrogates need no check: they are in no piece, and so are encoded as bytes
   anyway. */
static int32_t mli_character_size(const unsigned char *p, size_t n) {
    int32_t size = p[0] < 0xc0 ? 1 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if ((size_t)size > n) return 1;
    for (int32_t i = 1; i < size; i++)
        if ((p[i] & 0xc0) != 0x80) return 1;
    return size;
}

/* Whether a space is put before this text. */
static int mli_puts_space(const mli_tokenizer *t, const unsigned char *text, size_t n) {
    int spares = t->rules.spares_spaces && n && (text[0] == ' ' || mli_is_mark(text, n));
    return n && t->rules.adds_space_prefix && !spares;
}

/* Writes the text as pieces see it, at most n + 1 bytes, and returns how many; `to` may be text - 1 (in place). Where
   extra spaces are removed, a mark in the text does not make the next space an extra one, but is removed at the end
   like a space, as SentencePiece does. */
static size_t mli_normalize(const mli_tokenizer *t, const unsigned char *text, size_t n, unsigned char *to) {
    int removes = t->rules.removes_extra_spaces, is_extra = removes;
    size_t m = 0;
    if (t->rules.words) { /* every byte counts */
        if (n) memmove(to, text, n);
        return n;
    }
    if (mli_puts_space(t, text, n)) to[m++] = ' ';
    size_t begin = m;
    for (size_t i = 0; i < n; i++) {
        int is_mark = mli_is_mark(text + i, n - i);
        if (is_mark) i += MLI_MARK_SIZE - 1;
        if (!is_extra || is_mark || text[i] != ' ') to[m++] = is_mark ? ' ' : text[i];
        is_extra = removes && text[i] == ' ';
    }
    while (removes && m > 0 && to[m - 1] == ' ') m--;
    return m > begin ? m : 0;
}

/* The length of the longest special piece that the text at `at` begins with, and its id; 0 if there is none. */
static size_t mli_match_special(const mli_encoder *e, size_t at, int32_t *id) {
    const mli_tokenizer *t = e->t;
    const unsigned char *text = e->text + at;
    uint32_t hash = MLI_HASH_SEED;
    size_t length = 0, longest = e->flags & ML_PARSE_SPECIAL ? t->longest_special : t->longest_user;
    size_t n = MLI_MIN(e->n - at, longest);
    if (!n || !mli_bit(t->special_starts, text[0])) return 0;
    for (size_t i = 0; i < n; i++) {
        hash = mli_hash_byte(hash, text[i]);
        int32_t found = mli_find_hashed(t, &t->specials, text, i + 1, hash);
        if (found < 0 || (t->kinds[found] == ML_PIECE_CONTROL && !(e->flags & ML_PARSE_SPECIAL))) continue;
        length = i + 1;
        *id = found;
    }
    return length;
}

/* Appends a piece's id; for text that is not a piece (id -1) its bytes, or the unknown id once for a run of it. */
static void mli_emit(mli_encoder *e, const unsigned char *text, size_t n, int32_t id) {
    const mli_tokenizer *t = e->t;
    if (id < 0) id = mli_find_piece(t, text, n);
    int is_unknown = id < 0 && !t->has_bytes;
    if (is_unknown && t->shown.unknown < 0 && !e->missing) e->missing = 1 + text[0];
    if (id >= 0) e->ids[e->n_ids++] = id;
    if (is_unknown && !e->was_unknown) e->ids[e->n_ids++] = t->shown.unknown;
    for (size_t i = 0; i < n && id < 0 && t->has_bytes; i++) e->ids[e->n_ids++] = t->byte_ids[text[i]];
    e->was_unknown = is_unknown;
}

/* The piece that a character is when merging begins; -1: none. Only ranked merges ask. */
static int32_t mli_first_id(const mli_tokenizer *t, const unsigned char *text, int32_t size) {
    if (!t->rules.is_ranked) return -1;
    return t->rules.words ? t->byte_ids[text[0]] : mli_find_piece(t, text, (size_t)size);
}

/* Begins a segment: cuts the text from `begin` on into characters, up to a boundary that no piece crosses, or `end`.
   */
static void mli_cut_segment(mli_encoder *e, size_t begin, size_t end) {
    const unsigned char *text = e->text + begin;
    size_t n = end - begin;
    int32_t at = 0, previous = -1;
    e->symbols = (mli_symbol *)(void *)(e->ids + e->n_ids);
    do {
        mli_symbol *symbol = &e->symbols[at];
        int32_t size = e->t->rules.words ? 1 : mli_character_size(text + at, n - (size_t)at);
        symbol->prev = previous;
        symbol->id = mli_first_id(e->t, text + at, size);
        symbol->split = -1;
        previous = at;
        at += size;
        symbol->next = at;
    } while ((size_t)at < n && mli_bit(e->t->adjacent, text[at - 1] * 256u + text[at]));
    e->segment = text;
    e->length = at;
    e->queue = (mli_merge *)(void *)(e->symbols + at);
    e->n_queue = 0;
    ML_ASSERT((unsigned char *)(e->queue + 2 * (size_t)at) <= e->text);
}

/* Encodes one segment. A piece that is marked unused is split again into what it was merged from. */
static void mli_encode_segment(mli_encoder *e) {
    mli_symbol *symbols = e->symbols;
    for (int32_t at = 0; at < e->length; at = symbols[at].next) mli_queue_pair(e, at);
    mli_merge_symbols(e);
    for (int32_t next, at = 0; at < e->length; at = next) {
        int32_t id = symbols[at].id;
        while (id >= 0 && symbols[at].split >= 0 && e->t->kinds[id] == ML_PIECE_UNUSED &&
               !e->t->rules.is_ranked) {
            mli_undo_merge(e, at);
            id = mli_find_piece(e->t, e->segment + at, (size_t)(symbols[at].next - at));
        }
        next = symbols[at].next; /* before ids replace the symbol */
        mli_emit(e, e->segment + at, (size_t)(next - at), id);
    }
}

/* Where what is cut and merged by itself ends that begins at `at`: a word, or all that is left. */
static size_t mli_part_end(const mli_encoder *e, size_t at) {
#ifndef ML_NO_BPE
    if (e->t->rules.words) return at + mli_word_size(e->t->rules.words, e->text + at, e->end - at);
#endif
    if (!e->t->rules.cuts_at_spaces) return e->end;
    const void *space = memchr(e->text + at + 1, ' ', e->end - at - 1);
    return space ? (size_t)((const unsigned char *)space - e->text) : e->end;
}

/* Encodes the text from `at` on up to the next special piece. */
static void mli_encode_plain(mli_encoder *e, size_t at) {
    for (size_t end; at < e->end; at = end) {
        end = mli_part_end(e, at);
        int takes_whole = e->t->rules.takes_whole_words;
        int32_t id = takes_whole ? mli_find_piece(e->t, e->text + at, end - at) : -1;
        if (id >= 0) mli_emit(e, e->text + at, end - at, id);
        for (size_t begin = at; id < 0 && begin < end; begin += (size_t)e->length) {
            mli_cut_segment(e, begin, end);
            mli_encode_segment(e);
        }
    }
}

/* Where to go on after a control piece, or, with `special` 0, where to begin. As in llama.cpp and in Hugging Face's
   tokenizers, each text between control pieces gets the space that is put before a text, and they themselves none. It
   takes the place of the last of the `special` bytes of the piece that is done. */
static size_t mli_begin_part(mli_encoder *e, size_t at, size_t special) {
    const mli_text_rules *rules = &e->t->rules;
    int32_t id;
    if (!special)
        return e->has_prefix && 1 < e->n && mli_match_special(e, 1, &id) &&
               e->t->kinds[id] == ML_PIECE_CONTROL;
    if (special < 2 || !rules->adds_space_prefix || rules->only_first || at == e->n) return at;
    if ((rules->spares_spaces && e->text[at] == ' ') || mli_match_special(e, at, &id)) return at;
    e->text[at - 1] = ' ';
    return at - 1;
}

static ml_result mli_encode_text(mli_encoder *e, ml_error *error) {
    int32_t id;
    for (size_t length, at = mli_begin_part(e, 0, 0); at < e->n; at = e->end) {
        length = mli_match_special(e, at, &id);
        if (length) {
            mli_emit(e, e->text + at, length, id);
            int begins = e->t->kinds[id] == ML_PIECE_CONTROL;
            e->end = begins ? mli_begin_part(e, at + length, length) : at + length;
            continue;
        }
        e->end = at;
        do {
            e->end += (size_t)mli_character_size(e->text + e->end, e->n - e->end);
        } while (e->end < e->n && !mli_match_special(e, e->end, &id));
        mli_encode_plain(e, at);
    }
    if (!e->missing) return mli_ok(error);
    return mli_fail(error, ML_ERROR_UNSUPPORTED,
                    "no piece for a character (first byte %d), no byte pieces, and no unknown piece",
                    e->missing - 1);
}

static ml_result mli_check_encode(const ml_tokenizer *tokenizer, const ml_encode_desc *desc,
                                  ml_error *error) {
    size_t needed = ml_tokenizer_encode_size(desc->n_bytes);
    const int known = ML_ADD_BOS | ML_ADD_EOS | ML_ADD_SPECIAL | ML_PARSE_SPECIAL;
    int no_bos = (desc->flags & ML_ADD_BOS) && tokenizer->bos < 0;
    int no_eos = (desc->flags & ML_ADD_EOS) && tokenizer->eos < 0;
    if ((!desc->text && desc->n_bytes) || !desc->work || (desc->flags & ~known))
        return mli_fail(error, ML_ERROR_ARGUMENT, "encoding: text or work is NULL, or a flag is unknown");
    if ((uintptr_t)desc->work % sizeof(int32_t))
        return mli_fail(error, ML_ERROR_ARGUMENT, "work is not aligned for int32_t");
    if (needed == SIZE_MAX)
        return mli_fail(error, ML_ERROR_ARGUMENT, "encoding: %z bytes are too long a text", desc->n_bytes);
    if (desc->work_size < needed)
        return mli_fail(error, ML_ERROR_MEMORY, "work has %z bytes, ml_tokenizer_encode_size says %z",
                        desc->work_size, needed);
    if (!no_bos && !no_eos) return ML_OK;
    return mli_fail(error, ML_ERROR_ARGUMENT, "the tokenizer has no %s to add", no_bos ? "bos" : "eos");
}

/* ML_ADD_SPECIAL as the flags that it means for this tokenizer. */
static int mli_special_flags(const ml_tokenizer *tokenizer, int flags) {
    return flags | (tokenizer->adds_bos ? ML_ADD_BOS : 0) | (tokenizer->adds_eos ? ML_ADD_EOS : 0);
}

ML_DEF ml_result ml_tokenizer_encode(const ml_tokenizer *tokenizer, const ml_encode_desc *desc,
                                     ml_tokens *tokens, ml_error *error) {
    const ml_tokens none = {NULL, 0};
    if (!tokenizer || !desc || !tokens) return mli_null(error, "ml_tokenizer_encode");
    *tokens = none;
    ml_result result = mli_check_encode(tokenizer, desc, error);
    if (result) return result;
    const mli_tokenizer *t = tokenizer->private_part;
    int flags = desc->flags & ML_ADD_SPECIAL ? mli_special_flags(tokenizer, desc->flags) : desc->flags;
    unsigned char *end = (unsigned char *)desc->work + ml_tokenizer_encode_size(desc->n_bytes);
    unsigned char *normal = end - (desc->n_bytes + 1);
    int has_prefix = mli_puts_space(t, (const unsigned char *)desc->text, desc->n_bytes);
    size_t n = mli_normalize(t, (const unsigned char *)desc->text, desc->n_bytes, normal);
    mli_encoder e = {t, normal, n,    n, flags, has_prefix, (int32_t *)desc->work, 0, NULL,
                     0, NULL,   NULL, 0, 0,     0};
    if (flags & ML_ADD_BOS) e.ids[e.n_ids++] = tokenizer->bos;
    result = mli_encode_text(&e, error);
    if (result) return result;
    if (flags & ML_ADD_EOS) e.ids[e.n_ids++] = tokenizer->eos;
    tokens->ids = e.ids;
    tokens->n = (int)e.n_ids;
    return result;
}

/* ---- decoding ---- */

/* Before a text begins, SentencePiece drops the space that a piece starts with, and only one: that is the space that
   encoding put there. Dropping it begins the text, even where nothing else is in the piece; but where extra spaces
   are removed, the text begins with the first byte that is shown. Control pieces begin nothing. A space may also be
   byte 32, where it has no piece. */
ML_DEF const char *ml_tokenizer_decode_token(const ml_tokenizer *tokenizer, int *has_begun, int32_t id,
                                             size_t *n_bytes) {
    const mli_tokenizer *t = tokenizer->private_part;
    *n_bytes = 0;
    if (id < 0 || id >= tokenizer->n_pieces) return NULL;
    const char *text = t->texts + t->text_at[id];
    size_t n = t->kinds[id] == ML_PIECE_CONTROL ? 0 : t->text_at[id + 1] - t->text_at[id];
    int kind = t->kinds[id], drops_spaces = t->rules.adds_space_prefix || t->rules.removes_extra_spaces;
    int may_be_prefix = mli_is_text_kind(kind) || (kind == ML_PIECE_BYTE && t->space < 0);
    size_t dropped = !*has_begun && drops_spaces && may_be_prefix && n && text[0] == ' ';
    *n_bytes = n - dropped;
    if (*n_bytes || (dropped && !t->rules.removes_extra_spaces)) *has_begun = 1;
    return text + dropped;
}

ML_DEF ml_result ml_tokenizer_decode(const ml_tokenizer *tokenizer, const ml_tokens *tokens, char *text,
                                     size_t size, size_t *n_bytes, ml_error *error) {
    if (!tokenizer || !tokens || (!tokens->ids && tokens->n) || tokens->n < 0 || (!text && size) || !n_bytes)
        return mli_null(error, "ml_tokenizer_decode");
    for (int writes = 0; writes < 2; writes++) { /* counts first: on failure nothing is written */
        int has_begun = 0;
        *n_bytes = 0;
        for (int i = 0; i < tokens->n; i++) {
            size_t n;
            int32_t id = tokens->ids[i];
            const char *piece = ml_tokenizer_decode_token(tokenizer, &has_begun, id, &n);
            if (!piece)
                return mli_fail(error, ML_ERROR_ARGUMENT, "id %d at index %d is outside the vocabulary of %d",
                                (int)id, i, tokenizer->n_pieces);
            if (writes && n) memcpy(text + *n_bytes, piece, n);
            if (!mli_add_size(*n_bytes, n, n_bytes))
                return mli_fail(error, ML_ERROR_MEMORY, "ml_tokenizer_decode: the text is too long");
        }
        if (*n_bytes > size)
            return mli_fail(error, ML_ERROR_MEMORY, "the text has %z bytes, the buffer %z", *n_bytes, size);
    }
    if (*n_bytes < size) text[*n_bytes] = 0;
    return mli_ok(error);
}

/* ==== >>generation ====
   The sampler draws a token from the logits, the session reads it and computes the next logits, and so on. A penalty
   and a temperature change the logits, softmax makes them probabilities, and filters drop the unlikely ones: drawing
   from all of them gives too many unlikely words, and always taking the most likely one soon repeats itself (Holtzman
   et al. 2020, "The Curious Case of Neural Text Degeneration"). */

/* ---- sampling ---- */

/* Whether there is neither NaN nor +infinity, and at least one number that is not -infinity, either. */
static int mli_can_draw(const float *logits, int n) {
    uint32_t finite = 0;
    for (int i = 0; i < n; i++) {
        uint32_t bits = mli_float_bits(logits[i]);
        if (bits == 0xff800000u) continue; /* -infinity */
        if ((bits & MLI_INFINITY_BITS) == MLI_INFINITY_BITS) return 0;
        finite = 1;
    }
    return (int)finite;
}

/* The index of the first of the largest. */
static int32_t mli_argmax(const float *x, int n) {
    float most = mli_max(x, (size_t)n);
    for (int i = 0; i < n; i++)
        if (x[i] == most) return i;
    return 0;
}

/* Makes the tokens of the window less likely, each once however often it occurs (Keskar et al. 2019, "CTRL: A
   Conditional Transformer Language Model for Controllable Generation"). */
static void mli_penalize(const ml_sampler *sampler, float *logits, int n, const ml_tokens *history) {
    int window = sampler->repetition_window ? MLI_MAX(sampler->repetition_window, 0) : 64;
    float penalty = sampler->repetition_penalty;
    for (int first = MLI_MAX(0, history->n - window), i = first; i < history->n; i++) {
        int32_t id = history->ids[i];
        int seen = first;
        while (history->ids[seen] != id) seen++;
        if (id < 0 || id >= n || seen < i) continue;
        logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }
}

/* On a tie the lower id counts as more likely. */
static int mli_is_likelier(const ml_candidate *a, const ml_candidate *b) {
    return a->p > b->p || (a->p == b->p && a->id < b->id);
}

/* Restores the heap order below `at`: no child is likelier than its parent. */
static void mli_sink_candidate(ml_candidate *heap, int n, int at) {
    ml_candidate moving = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && mli_is_likelier(&heap[child + 1], &heap[child])) child++;
        if (!mli_is_likelier(&heap[child], &moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Moves the k most likely candidates, or as few as reach top_p together, to the end, the most likely last, and
   returns how many were moved. A heap costs O(n + k log n), and k is usually far below n. */
static int mli_take_top(ml_candidate *candidates, int n, int top_k, float top_p) {
    int taken = 0, most = top_k > 0 ? MLI_MIN(top_k, n) : n;
    float sum = 0;
    for (int i = n / 2 - 1; i >= 0; i--) mli_sink_candidate(candidates, n, i);
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
    float sum = 0;
    for (int i = 0; i < n; i++) sum += candidates[i].p;
    float target = ml_random_uniform(random) * sum;
    for (int i = 0; i + 1 < n; i++) {
        target -= candidates[i].p;
        if (target < 0) return candidates[i].id;
    }
    return candidates[n - 1].id;
}

ML_DEF int32_t ml_sampler_sample(const ml_sampler *sampler, float *logits, int n, const ml_tokens *history,
                                 ml_candidate *work) {
    if (sampler->repetition_penalty > 0 && history) mli_penalize(sampler, logits, n, history);
    if (!mli_can_draw(logits, n)) return -1;
    int32_t best = mli_argmax(logits, n);
    /* below the second, 1 / temperature would be infinite, and the most likely is all that is left long before */
    if (!(sampler->temperature > 0) || sampler->temperature < 1e-37f || !sampler->random) return best;
    float most = logits[best], inverse = 1.0f / MLI_MIN(sampler->temperature, 1e30f);
    for (int i = 0; i < n; i++) logits[i] = (logits[i] - most) * inverse; /* at most 0: none can overflow */
    mli_softmax(logits, (size_t)n);
    float least = MLI_MIN(MLI_MAX(sampler->min_p * logits[best], sampler->epsilon), logits[best]);
    int kept = 0;
    for (int32_t i = 0; i < n; i++) {
        ml_candidate candidate = {logits[i], i};
        if (candidate.p >= least) work[kept++] = candidate;
    }
    if (sampler->top_k > 0 || (sampler->top_p > 0 && sampler->top_p < 1)) {
        int taken = mli_take_top(work, kept, sampler->top_k, sampler->top_p);
        work += kept - taken;
        kept = taken;
    }
    return mli_draw(sampler->random, work, kept);
}

/* ---- generation ---- */

/* The prompt's ids, in the session's scratch, where the tokens that it holds do not overlap them. */
static ml_result mli_prompt_ids(mli_session *s, const ml_generate_desc *desc, int held, ml_tokens *ids,
                                ml_error *error) {
    if (desc->prompt) {
        ml_result result =
            mli_session_ids(s, 0, desc->prompt, "", held ? 0 : mli_prompt_flags(s), ids, error);
        if (result || ids->n || held) return result;
        return mli_fail(error, ML_ERROR_ARGUMENT, "an empty prompt needs a bos to begin with, and %s",
                        s->shown.model->tokenizer->bos < 0 ? "the tokenizer has none"
                                                           : "the tokenizer's file says not to add it");
    }
    *ids = desc->prompt_ids;
    if (ids->n < 0 || (!ids->ids && ids->n) || (!ids->n && !held))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_session_generate: no prompt");
    ml_result result = mli_check_fit(s, 0, ids->n, error);
    if (result) return result;
    if (ids->n) memcpy(s->graph.memory, ids->ids, (size_t)ids->n * sizeof *ids->ids);
    ids->ids = (const int32_t *)(void *)s->graph.memory;
    return mli_check_tokens(s->shown.model, ids->ids, ids->n, error);
}

/* Appends tokens and computes the logits that follow. Sliding drops the oldest half of what follows the first token
   (bos), more than once if necessary, and reads the rest again: its positions, and so all its keys, have changed. */
static ml_result mli_session_append(mli_session *s, ml_overflow overflow, ml_tokens more,
                                    const float **logits, ml_error *error) {
    int most = s->shown.max_seq_len, kept = s->shown.length - 1;
    if (overflow != ML_OVERFLOW_SLIDE || s->shown.length + more.n <= most || more.n >= most)
        return ml_session_eval(&s->shown, more.ids, more.n, logits, error);
    while (1 + kept + more.n > most) kept /= 2;
    memmove(s->tokens + 1, s->tokens + s->shown.length - kept, (size_t)kept * sizeof *s->tokens);
    memcpy(s->tokens + 1 + kept, more.ids, (size_t)more.n * sizeof *s->tokens);
    s->shown.length = 0;
    return ml_session_eval(&s->shown, s->tokens, 1 + kept + more.n, logits, error);
}

/* Reads the prompt, so that s->logits predict the first new token. */
static ml_result mli_read_prompt(mli_session *s, const ml_generate_desc *desc, ml_tokens ids,
                                 ml_error *error) {
    const float *logits;
    int kept = 0;
    if (desc->start == ML_START_OVER) s->shown.length = 0;
    if (desc->start == ML_START_APPEND && !ids.n) { /* only the logits after the last token are missing */
        s->shown.length--;
        ids.ids = s->tokens + s->shown.length;
        ids.n = 1;
    } else if (desc->start != ML_START_APPEND) {
        ml_session_keep_prefix(&s->shown, &ids, &kept, NULL);
        ids.ids += kept;
        ids.n -= kept;
    }
    return mli_session_append(s, desc->overflow, ids, &logits, error);
}

/* bos ends a text, too: for models trained on concatenated texts it marks the beginning of the next one. */
static int mli_is_end(const ml_tokenizer *t, int32_t id) {
    int is_end = id == t->bos;
    for (int i = 0; i < t->n_ends; i++) is_end |= id == t->ends[i];
    return is_end && id >= 0;
}

/* Whether the text of these tokens has begun (see ml_tokenizer_decode_token). */
static int mli_has_begun(const ml_tokenizer *t, const int32_t *ids, int n) {
    int has_begun = 0;
    size_t n_bytes;
    for (int i = 0; i < n && !has_begun; i++) ml_tokenizer_decode_token(t, &has_begun, ids[i], &n_bytes);
    return has_begun;
}

/* Draws up to `limit` tokens. Each is read by the session, also the last one, whose logits are not needed. */
static ml_result mli_generate_tokens(mli_session *s, const ml_generate_desc *desc, int limit,
                                     ml_generated *out, ml_error *error) {
    const ml_tokenizer *t = s->shown.model->tokenizer;
    int n_ids = s->shown.model->config.vocab_size, has_begun = 0;
    ml_result result = ML_OK;
    if (t) n_ids = MLI_MIN(n_ids, t->n_pieces); /* the rest of a padded vocabulary means nothing */
    if (t) has_begun = mli_has_begun(t, s->tokens, s->shown.length);
    while (!result && out->n_new < limit && out->stop == ML_STOP_LENGTH) {
        ml_tokens history = {s->tokens, s->shown.length};
        int32_t id = ml_sampler_sample(&desc->sampler, s->logits, n_ids, &history, s->candidates);
        if (id < 0)
            return mli_fail(error, ML_ERROR_NUMBER,
                            "the logits after %d tokens are not finite (a broken model or adapter?)",
                            history.n);
        if (t && mli_is_end(t, id)) {
            out->stop = ML_STOP_END;
            break;
        }
        const char *text = "";
        size_t n_bytes = 0;
        if (t) text = ml_tokenizer_decode_token(t, &has_begun, id, &n_bytes);
        if (desc->on_token && !desc->on_token(desc->user, id, text, n_bytes)) out->stop = ML_STOP_CALLER;
        out->n_new++;
        const float *logits;
        ml_tokens one = {&id, 1};
        int goes_on = out->n_new < limit && out->stop == ML_STOP_LENGTH;
        result = mli_session_append(s, desc->overflow, one, goes_on ? &logits : NULL, error);
    }
    return result;
}

ML_DEF ml_result ml_session_generate(ml_session *session, const ml_generate_desc *desc,
                                     ml_generated *generated, ml_error *error) {
    const ml_generated nothing = {0, 0, ML_STOP_LENGTH};
    if (generated) *generated = nothing;
    if (!session || !desc) return mli_null(error, "ml_session_generate");
    if (desc->sampler.temperature > 0 && !desc->sampler.random)
        return mli_fail(error, ML_ERROR_ARGUMENT, "a temperature above 0 needs a seeded sampler.random");
    mli_session *s = session->private_part;
    int held = desc->start == ML_START_APPEND ? session->length : 0, limit = desc->max_new_tokens;
    ml_tokens ids = {NULL, 0};
    ml_result result = mli_check_output(session->model, error);
    if (!result) result = mli_prompt_ids(s, desc, held, &ids, error);
    if (result) return result;
    if (desc->overflow == ML_OVERFLOW_ERROR && ids.n > session->max_seq_len - held)
        return mli_fail(error, ML_ERROR_CONTEXT, "%d tokens and a prompt of %d: the context holds %d", held,
                        ids.n, session->max_seq_len);
    ml_generated out = {ids.n, 0, ML_STOP_LENGTH};
    result = mli_read_prompt(s, desc, ids, error);
    int room = session->max_seq_len - session->length;
    int is_bounded = limit <= 0 || (limit > room && desc->overflow == ML_OVERFLOW_ERROR); /* by the room */
    if (!result) result = mli_generate_tokens(s, desc, is_bounded ? room : limit, &out, error);
    if (!result && is_bounded && out.stop == ML_STOP_LENGTH) out.stop = ML_STOP_CONTEXT;
    if (generated) *generated = out;
    return result;
}

/* ==== >>bytes ====
   From a file to its bytes, and from bytes to numbers. This section and those up to >>loading read files that may be
   hostile. Every number in them is checked before it is used; nothing is allocated by a count that the bytes present
   could not fill; time and memory are linear in the size of the file; recursion is limited in depth. Comparisons
   cannot overflow: they compare what is needed with what is left, never position + size with the end. */

#ifndef ML_NO_STDIO
#include <errno.h>
#if defined(__unix__) || defined(__APPLE__)
#define MLI_POSIX
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#elif defined(_WIN32)
#define MLI_WINDOWS
#include <io.h>
#include <wchar.h>
#endif
#endif
#if defined(MLI_POSIX) && !defined(ML_NO_MMAP)
#define MLI_MMAP
#include <sys/mman.h>
#endif

/* ---- paths ---- */

/* The first n bytes of `path`, then `name`. NULL without memory. */
static char *mli_join_path(const ml_allocator *allocator, const char *path, size_t n, const char *name) {
    size_t length = strlen(name);
    char *joined = (char *)mli_alloc(allocator, n + length + 1, 1);
    if (!joined) return NULL;
    memcpy(joined, path, n);
    memcpy(joined + n, name, length);
    return joined;
}

/* How much of a path is its folder, with the last slash. */
static size_t mli_folder_length(const char *path) {
    size_t n = strlen(path);
#ifdef _WIN32
    while (n && !strchr("/\\:", path[n - 1])) n--;
#else
    while (n && path[n - 1] != '/') n--;
#endif
    return n;
}

/* The folder of `path` with `name` in it. NULL without memory. */
static char *mli_path_beside(const ml_allocator *allocator, const char *path, const char *name) {
    return mli_join_path(allocator, path, mli_folder_length(path), name);
}

/* ---- the system's files ----
   A path is UTF-8 everywhere. Windows' C library expects the machine's code page, so its wide-character functions are
   called in place of fopen, remove and rename, the last of which does not replace files there. */

#ifdef MLI_WINDOWS
/* Declared here, since windows.h would bring thousands of names into the caller's file. */
#ifdef __cplusplus
extern "C" {
#endif
__declspec(dllimport) int __stdcall MultiByteToWideChar(unsigned, unsigned long, const char *, int, wchar_t *,
                                                        int);
__declspec(dllimport) int __stdcall MoveFileExW(const wchar_t *, const wchar_t *, unsigned long);
__declspec(dllimport) unsigned long __stdcall GetFileAttributesW(const wchar_t *);
__declspec(dllimport) unsigned long __stdcall GetLastError(void);
#ifdef __cplusplus
}
#endif

enum { MLI_WIDE = 1024, MLI_WINDOWS_UTF8 = 65001, MLI_WINDOWS_CODE_PAGE = 0, MLI_WINDOWS_STRICT = 8 };

/* A path that is not UTF-8 is taken as the machine's code page, in which main receives its arguments. Returns 0 if it
   is too long. */
static int mli_wide(const char *path, wchar_t wide[MLI_WIDE]) {
    if (MultiByteToWideChar(MLI_WINDOWS_UTF8, MLI_WINDOWS_STRICT, path, -1, wide, MLI_WIDE) ||
        MultiByteToWideChar(MLI_WINDOWS_CODE_PAGE, 0, path, -1, wide, MLI_WIDE))
        return 1;
    errno = ENAMETOOLONG;
    return 0;
}

static FILE *mli_fopen(const char *path, const char *mode) {
    wchar_t wide[MLI_WIDE], wide_mode[MLI_WIDE];
    return mli_wide(path, wide) && mli_wide(mode, wide_mode) ? _wfopen(wide, wide_mode) : NULL;
}

static int mli_is_folder(const char *path) {
    wchar_t wide[MLI_WIDE];
    unsigned long attributes = mli_wide(path, wide) ? GetFileAttributesW(wide) : 0;
    return attributes != 0xffffffff && (attributes & 16);
}
#elif !defined(ML_NO_STDIO)
static FILE *mli_fopen(const char *path, const char *mode) { return fopen(path, mode); }

static int mli_is_folder(const char *path) {
#ifdef MLI_POSIX
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
#else
    return (void)path, 0; /* C alone cannot tell */
#endif
}
#endif

/* ---- a file as bytes ---- */

typedef struct mli_file {
    const unsigned char *data; /* mapped or from the allocator; NULL if the file is empty */
    size_t size;
    int is_borrowed; /* the caller's bytes: they stay */
} mli_file;

#ifdef MLI_MMAP
/* Maps the file read-only: pages are read when they are touched, and the system can share and drop them. The price:
   if another program shortens the file meanwhile, reading raises SIGBUS. */
static ml_result mli_map_file(const char *path, const ml_allocator *allocator, mli_file *file,
                              ml_error *error) {
    struct stat status;
    void *memory = NULL;
    const char *why = NULL;
    int fd = open(path, O_RDONLY | O_NONBLOCK); /* opening a FIFO must not wait for a writer */
    (void)allocator;
    if (fd < 0 || fstat(fd, &status) != 0)
        why = strerror(errno);
    else if (!S_ISREG(status.st_mode))
        why = S_ISDIR(status.st_mode) ? "it is a directory" : "it is not a regular file";
    else if ((uintmax_t)status.st_size > SIZE_MAX)
        why = strerror(ENOMEM);
    else if (status.st_size > 0)
        memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (memory == MAP_FAILED) why = strerror(errno);
    if (fd >= 0) close(fd); /* the mapping remains */
    if (why) return mli_fail(error, ML_ERROR_FILE, "%s cannot be opened: %s", path, why);
    file->data = (const unsigned char *)memory;
    file->size = (size_t)status.st_size;
    file->is_borrowed = 0;
    return ML_OK;
}
#elif !defined(ML_NO_STDIO)
static int64_t mli_stream_size(FILE *stream) {
#ifdef MLI_WINDOWS
    return _fseeki64(stream, 0, SEEK_END) == 0 ? _ftelli64(stream) : -1; /* its long has 32 bits */
#else
    return fseek(stream, 0, SEEK_END) == 0 ? ftell(stream) : -1;
#endif
}

/* Reads the whole file. */
static ml_result mli_map_file(const char *path, const ml_allocator *allocator, mli_file *file,
                              ml_error *error) {
    errno = 0;
    FILE *stream = mli_fopen(path, "rb");
    int64_t size = stream ? mli_stream_size(stream) : -1;
    int is_file =
        size >= 0 && size != LONG_MAX && (uint64_t)size <= SIZE_MAX; /* LONG_MAX: so says a directory */
    unsigned char *data = is_file ? (unsigned char *)mli_alloc(allocator, (size_t)size, 1) : NULL;
    ml_result result = ML_OK;
    if (!is_file)
        result = mli_fail(error, ML_ERROR_FILE, "%s cannot be opened: %s", path,
                          errno ? strerror(errno) : "it is not a regular file");
    else if (!data)
        result = mli_fail(error, ML_ERROR_MEMORY, "out of memory for %l bytes of %s", size, path);
    else if (rewind(stream), fread(data, 1, (size_t)size, stream) != (size_t)size)
        result = mli_fail(error, ML_ERROR_FILE, "%s cannot be read: %s", path,
                          errno ? strerror(errno) : "it is shorter than its size says");
    if (stream) fclose(stream);
    if (result) {
        mli_free(allocator, data);
        return result;
    }
    file->data = data;
    file->size = (size_t)size;
    file->is_borrowed = 0;
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

static void mli_unmap_file(const ml_allocator *allocator, const mli_file *file) {
    if (file->is_borrowed) return;
#ifdef MLI_MMAP
    (void)allocator;
    if (file->data) munmap((void *)(uintptr_t)file->data, file->size);
#else
    mli_free(allocator, (void *)(uintptr_t)file->data);
#endif
}

/* ---- little-endian numbers ---- */

/* A cursor with a sticky error: a read past the end returns 0 and sets `failed`, which stays set. A parser can read a
   whole record and check once. */
typedef struct mli_reader {
    const unsigned char *p, *end;
    int failed;
} mli_reader;

static mli_reader mli_reader_at(const unsigned char *data, size_t begin, size_t end) {
    mli_reader reader = {data + begin, data + end, 0};
    return reader;
}

static size_t mli_left(const mli_reader *reader) { return (size_t)(reader->end - reader->p); }

/* The next n bytes; NULL if fewer are left. */
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

/* The lower n_bytes of a number in two's complement. */
static int64_t mli_signed(uint64_t bits, int n_bytes) {
    uint64_t sign = (uint64_t)1 << (8 * n_bytes - 1);
    return (int64_t)((bits ^ sign) - sign);
}

static double mli_double_from_bits(uint64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- sorted names ---- */

/* Names are sorted, so that looking one up and finding duplicates stay fast in a file with a million of them. */
typedef struct mli_named {
    const char *name; /* not zero-terminated */
    size_t length;
    size_t index; /* what the name refers to */
} mli_named;

static int mli_compare_text(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t n = MLI_MIN(a_length, b_length);
    int order = n ? memcmp(a, b, n) : 0;
    return order ? order : (a_length > b_length) - (a_length < b_length);
}

/* Whether the n bytes at s are this text, end with it, or a name begins with it. */
static int mli_is_text(const char *s, size_t n, const char *text) {
    return mli_compare_text(s, n, text, strlen(text)) == 0;
}
static int mli_ends_with(const char *s, size_t n, const char *text) {
    size_t length = strlen(text);
    return n >= length && memcmp(s + n - length, text, length) == 0;
}
static int mli_begins_with(const char *name, const char *text) {
    return strncmp(name, text, strlen(text)) == 0;
}

static int mli_compare_named(const mli_named *a, const mli_named *b) {
    int order = mli_compare_text(a->name, a->length, b->name, b->length);
    return order ? order : (a->index > b->index) - (a->index < b->index);
}

/* Puts an item into a heap without a root, or into the place of one of its nodes: children move up past it. */
static void mli_sift_down(mli_named *items, mli_named item, size_t place, size_t n) {
    for (size_t child; (child = 2 * place + 1) < n; place = child) {
        if (child + 1 < n && mli_compare_named(&items[child], &items[child + 1]) < 0) child++;
        if (mli_compare_named(&item, &items[child]) >= 0) break;
        items[place] = items[child];
    }
    items[place] = item;
}

/* Heapsort (Williams 1964, "Algorithm 232: Heapsort"): no worst case, no memory. */
static void mli_sort_named(mli_named *items, size_t n) {
    for (size_t i = n / 2; i-- > 0;) mli_sift_down(items, items[i], i, n);
    while (n-- > 1) {
        mli_named last = items[n];
        items[n] = items[0];
        mli_sift_down(items, last, 0, n);
    }
}

/* The first of the sorted items with that name, or NULL. */
static const mli_named *mli_find_named(const mli_named *items, size_t n, const char *name, size_t length) {
    const mli_named wanted = {name, length, 0}, *end = items + n;
    while (n > 0) { /* it is among the n from items on, or *items is the first that is not below it */
        size_t half = n / 2;
        int is_below = mli_compare_named(&items[half], &wanted) < 0;
        items += is_below ? half + 1 : 0;
        n = is_below ? n - half - 1 : half;
    }
    return items < end && mli_compare_text(items->name, items->length, name, length) == 0 ? items : NULL;
}

/* ==== >>writing ====
   A file appears whole or not at all: its bytes go to a temporary name and are synced to the disk, then renamed.
   The format writers (>>gguf, >>safetensors) know nothing of models: parts of what is saved list tensors and keys. */

/* The names of tensors in files: a prefix, then a name of the parameter table. */
#define MLI_PREFIX_SIZE 80 /* with its zero */
#define MLI_LONG_NAME_SIZE (MLI_PREFIX_SIZE + ML_NAME_SIZE)

#ifdef MLI_SAVING
/* Counts what it writes; without a file it only counts, so that the same code tells how long a header will be. */
typedef struct mli_writer {
    FILE *file;
    uint64_t at;   /* bytes written */
    size_t n_keys; /* GGUF keys written */
    int why;       /* errno of the first failure; from then on nothing is written */
    uint32_t *crc; /* mli_crc of the bytes, where it is wanted */
} mli_writer;

/* The checksum of zip files, continued over n bytes, four bits at a time: the remainder of a polynomial over GF(2)
   with its bits in reverse order (Peterson & Brown 1961, "Cyclic Codes for Error Detection"). Starts from ~0; the
   bits of the last result are inverted. */
static uint32_t mli_crc(uint32_t crc, const unsigned char *bytes, size_t n) {
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4,
                                       0x4db26158, 0x5005713c, 0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
                                       0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    for (size_t i = 0; i < n; i++) {
        crc ^= bytes[i];
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return crc;
}

static void mli_append(mli_writer *writer, const void *data, size_t n) {
    writer->at += n;
    if (writer->crc) *writer->crc = mli_crc(*writer->crc, (const unsigned char *)data, n);
    if (!writer->file || writer->why || !n) return;
    errno = 0;
    if (fwrite(data, 1, n, writer->file) != n) writer->why = errno ? errno : EIO;
}

static void mli_append_uint(mli_writer *writer, uint64_t value, int n_bytes) {
    unsigned char bytes[8];
    for (int i = 0; i < n_bytes; i++) bytes[i] = (unsigned char)(value >> (8 * i) & 255);
    mli_append(writer, bytes, (size_t)n_bytes);
}
static void mli_append_text(mli_writer *writer, const char *text) { mli_append(writer, text, strlen(text)); }
static void mli_append_decimal(mli_writer *writer, int64_t value) {
    char digits[24];
    size_t n = 0;
    mli_put_int(digits, sizeof digits, &n, value);
    mli_append(writer, digits, n);
}

/* %s a string, %d an int, %l an int64_t. Unlike mli_format it neither clips nor replaces anything. */
static void mli_append_format(mli_writer *writer, const char *format, ...) {
    va_list args;
    va_start(args, format);
    for (const char *p = format; *p; p++) {
        if (*p != '%')
            mli_append(writer, p, 1);
        else if (*++p == 's')
            mli_append_text(writer, va_arg(args, const char *));
        else
            mli_append_decimal(writer, *p == 'l' ? va_arg(args, int64_t) : va_arg(args, int));
    }
    va_end(args);
}

static void mli_append_padding(mli_writer *writer, unsigned alignment, char c) {
    while (writer->at % alignment) mli_append(writer, &c, 1);
}

/* n numbers, converted piece by piece through a small buffer. */
static void mli_append_numbers(mli_writer *writer, ml_type to, ml_type from, const void *data, size_t n) {
    float buffer[1024]; /* the widest type of weights has four bytes */
    const unsigned char *p = (const unsigned char *)data;
    size_t part = from == to ? n : sizeof buffer / sizeof *buffer;
    for (; n && !writer->why; n -= part, p += ml_type_row_bytes(from, part)) {
        part = MLI_MIN(n, part);
        if (from != to) ml_type_convert(to, buffer, from, p, part);
        mli_append(writer, from == to ? (const void *)p : buffer, ml_type_row_bytes(to, part));
    }
}

/* ---- what is saved ---- */

typedef struct mli_saved {
    char name[MLI_LONG_NAME_SIZE];
    ml_tensor tensor;
    ml_type type;     /* in the file */
    int is_matrix;    /* of two dimensions, even with a single row */
    size_t head_size; /* the rows are those of heads of this size: see mli_row_in_meta; 0: of anything else */
    float factor; /* not 0: the numbers are multiplied by it, or with `lora` factor B A is added to them */
    const ml_tensor *lora; /* A, followed by B */
    int repeats_first; /* PyTorch: its numbers are those of the file's first tensor, and not written again */
} mli_saved;

struct mli_saver;

/* What a file is made of: a model, an adapter, a head, the state of a training. Called twice, first to measure. */
typedef struct mli_part {
    const void *object;
    int n_tensors;
    /* Tensor `index` (0 .. n_tensors - 1) into *saved, which is zero; returns 0 when it is left out. */
    int (*tensor_at)(const struct mli_saver *saver, const void *object, int index, mli_saved *saved);
    void (*append_keys)(mli_writer *writer, const struct mli_saver *saver, const void *object); /* GGUF's */
} mli_part;

typedef struct mli_saver {
    const ml_model *model;
    const ml_lora *lora; /* what is saved; NULL: the model */
    ml_save_desc desc;
    int is_hf;    /* safetensors in Hugging Face's layout, not GGUF */
    int is_torch; /* PyTorch under the course's names, not GGUF */
    const ml_allocator *allocator;
    mli_part parts[3];
    int n_parts;
    const ml_archive_save_desc *archive; /* the caller's tensors; NULL: the library's own */
    const ml_tensor *trained; /* a checkpoint: tensors without a gradient here are left out; NULL: none is */
    unsigned char *is_repeated; /* which of the tokenizer's pieces or of the labels, see mli_find_repeated */
    int is_named;               /* the caller gave desc.name */
    ml_error *error;
    ml_result result; /* of the first step that failed; those after it do nothing */
} mli_saver;

static mli_saver mli_saver_of(const ml_model *model, const ml_save_desc *desc, ml_error *error) {
    mli_saver saver;
    memset(&saver, 0, sizeof saver);
    saver.model = model;
    if (desc) saver.desc = *desc;
    saver.is_named = saver.desc.name != NULL;
    if (!saver.desc.name) saver.desc.name = "minillama";
    saver.is_hf = saver.desc.format == ML_SAFETENSORS;
    saver.is_torch = saver.desc.format == ML_PYTORCH;
    saver.allocator = &model->private_part->allocator;
    saver.error = error;
    return saver;
}

static void mli_add_part(mli_saver *saver, mli_part part) { saver->parts[saver->n_parts++] = part; }

/* The next tensor of the file; 0 after the last. *at begins with 0. */
static int mli_next_saved(const mli_saver *saver, int *at, mli_saved *saved) {
    for (;;) {
        const mli_part *part = saver->parts, *end = part + saver->n_parts;
        int index = (*at)++;
        for (; part < end && index >= part->n_tensors; part++) index -= part->n_tensors;
        if (part == end) return 0;
        memset(saved, 0, sizeof *saved);
        if (part->tensor_at(saver, part->object, index, saved)) return 1;
    }
}

static uint64_t mli_saved_bytes(const mli_saved *saved) {
    return (uint64_t)saved->tensor.rows * ml_type_row_bytes(saved->type, saved->tensor.cols);
}

/* The inverse of mli_row_in_hf: which of Meta's rows is row `row` in Hugging Face's order. */
static size_t mli_row_in_meta(size_t head_size, size_t row) {
    if (!head_size) return row;
    size_t in_head = row % head_size;
    return row - in_head + in_head % (head_size / 2) * 2 + in_head / (head_size / 2);
}

enum { MLI_PIECE = 1024 /* numbers of a row that are computed at a time: a multiple of any block */ };

/* The data of a row, which is in the file's order of rows. */
static const unsigned char *mli_saved_row(const mli_saved *saved, size_t row) {
    const ml_tensor *t = &saved->tensor;
    size_t from = mli_row_in_meta(saved->head_size, row) * ml_type_row_bytes(t->type, t->cols);
    return (const unsigned char *)t->data + from;
}

/* Up to MLI_PIECE numbers of a row that is computed, from `col` on: factor w, or w + factor B A. Returns how many. */
static size_t mli_compute_saved(const mli_saved *saved, size_t row, size_t col, float *piece) {
    const ml_tensor *t = &saved->tensor, *a = saved->lora;
    size_t n = MLI_MIN(t->cols - col, MLI_PIECE);
    ml_type_convert(ML_F32, piece, t->type, mli_saved_row(saved, row) + ml_type_row_bytes(t->type, col), n);
    if (!a) mli_scale(piece, saved->factor, n);
    for (size_t k = 0; a && k < a->rows; k++)
        mli_axpy(piece, saved->factor * mli_row(a[1], row)[k], mli_row(*a, k) + col, n);
    return n;
}

static void mli_append_tensor(mli_writer *writer, const mli_saved *saved) {
    const ml_tensor *t = &saved->tensor;
    float piece[MLI_PIECE];
    for (size_t row = 0; row < t->rows; row++) {
        if (saved->factor == 0)
            mli_append_numbers(writer, saved->type, t->type, mli_saved_row(saved, row), t->cols);
        for (size_t n, col = 0; saved->factor != 0 && col < t->cols; col += n) {
            n = mli_compute_saved(saved, row, col, piece);
            mli_append_numbers(writer, saved->type, ML_F32, piece, n);
        }
    }
}

/* The data of all tensors, each at a multiple of the alignment. */
static void mli_append_tensors(mli_writer *writer, const mli_saver *saver, unsigned alignment) {
    mli_saved saved;
    for (int at = 0; mli_next_saved(saver, &at, &saved);) {
        mli_append_padding(writer, alignment, 0);
        mli_append_tensor(writer, &saved);
    }
    mli_append_padding(writer, alignment, 0);
}

/* ---- a file that appears whole or not at all ---- */

/* All three return 0 or what errno names. */
#ifdef MLI_WINDOWS
static int mli_remove(const char *path) {
    wchar_t wide[MLI_WIDE];
    return mli_wide(path, wide) && _wremove(wide) == 0 ? 0 : errno;
}

/* Replaces what is there, at once. */
static int mli_rename(const char *from, const char *to) {
    wchar_t wide_from[MLI_WIDE], wide_to[MLI_WIDE];
    if (!mli_wide(from, wide_from) || !mli_wide(to, wide_to)) return errno;
    if (MoveFileExW(wide_from, wide_to, 1 | 8)) return 0; /* replace existing, write through */
    switch (GetLastError()) {
    case 2:                 /* no such file */
    case 3: return ENOENT;  /* no such folder */
    case 5:                 /* denied */
    case 32: return EACCES; /* in use */
    default: return EIO;
    }
}

static int mli_sync(const char *path) {
    FILE *file = mli_fopen(path, "r+b");
    if (!file) return errno;
    int why = _commit(_fileno(file)) == 0 ? 0 : errno;
    fclose(file);
    return why;
}
#else
static int mli_remove(const char *path) { return remove(path) == 0 ? 0 : errno; }

/* Replaces what is there, at once, where POSIX says so. */
static int mli_rename(const char *from, const char *to) {
    return rename(from, to) == 0 ? 0 : errno ? errno : EIO;
}

/* Makes sure that the bytes are on the disk, so that the rename cannot get there before them. */
static int mli_sync(const char *path) {
    int why = 0;
#ifdef MLI_POSIX
    int fd = open(path, O_WRONLY);
    if (fd < 0) return errno;
    if (fsync(fd) != 0 && errno != EINVAL && errno != ENOSYS) why = errno; /* some file systems cannot */
    close(fd);
#else
    (void)path;
#endif
    return why;
}
#endif

typedef struct mli_target {
    const char *path;
    char *temporary; /* path + ".tmp"; NULL: nothing to remove */
    mli_writer writer;
} mli_target;

static void mli_target_failed(mli_saver *saver, const mli_target *target, int why) {
    saver->result = mli_fail(saver->error, ML_ERROR_FILE, "%s cannot be written: %s", target->path,
                             strerror(why ? why : EIO));
}

/* Why a file cannot take the place of what has this name; 0 if it can, or if nothing has it. A rename alone would
   also replace a device, or a file that may not be written. */
static int mli_cannot_replace(const char *path) {
    if (mli_is_folder(path)) return EISDIR;
#ifdef MLI_POSIX
    struct stat status;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) return EEXIST;
#endif
    errno = 0;
    FILE *file = mli_fopen(path, "r+b");
    if (file) fclose(file);
    return file || errno == ENOENT ? 0 : errno;
}

/* What an earlier run left under the temporary name may be what a model is mapped from: it is not written into. */
static void mli_remove_old(const char *path) {
#ifdef MLI_POSIX
    struct stat status;
    if (stat(path, &status) == 0 && S_ISREG(status.st_mode)) mli_remove(path);
#else
    (void)path;
#endif
}

/* target is zero. */
static void mli_target_open(mli_saver *saver, mli_target *target, const char *path) {
    int why = mli_cannot_replace(path);
    target->path = path;
    if (why) {
        mli_target_failed(saver, target, why);
        return;
    }
    char *temporary = mli_join_path(saver->allocator, path, strlen(path), ".tmp");
    if (!temporary) {
        saver->result = mli_fail(saver->error, ML_ERROR_MEMORY, "out of memory for a file's name");
        return;
    }
    mli_remove_old(temporary);
    errno = 0;
    target->writer.file = mli_fopen(temporary, "wb");
    if (target->writer.file) {
        target->temporary = temporary;
        return;
    }
    mli_target_failed(saver, target, errno);
    mli_free(saver->allocator, temporary); /* what has that name was there before, and stays */
}

/* Everything is on the disk, under the temporary name; a full disk shows here at the latest. */
static void mli_target_complete(mli_saver *saver, mli_target *target) {
    mli_writer *writer = &target->writer;
    errno = 0;
    int why = fclose(writer->file) == 0 ? 0 : errno ? errno : EIO;
    writer->file = NULL;
    if (!writer->why) writer->why = why ? why : mli_sync(target->temporary);
    if (writer->why) mli_target_failed(saver, target, writer->why);
}

static void mli_target_publish(mli_saver *saver, mli_target *target) {
    errno = 0;
    int why = mli_rename(target->temporary, target->path);
    if (why) {
        mli_target_failed(saver, target, why);
        return;
    }
    mli_free(saver->allocator, target->temporary);
    target->temporary = NULL;
}

/* Removes what has not been published. */
static void mli_target_close(mli_saver *saver, mli_target *target) {
    if (target->writer.file) fclose(target->writer.file);
    if (target->temporary) mli_remove(target->temporary);
    mli_free(saver->allocator, target->temporary);
}
#endif /* MLI_SAVING */

/* ==== >>archives ====
   An archive shows any file as named tensors (arrays) and named values, which point into the file's bytes. Opening
   one tells the formats apart by their first bytes; a reader of the format then adds what it finds; at the end the
   names are sorted. The readers are in the next sections: >>json, >>pytorch, >>gguf, >>safetensors, >>llama2c.

   A large model may be cut into several files, its shards. They are read one after the other into the same archive,
   and the readers need not know: they read archive->data, and what they add begins at first_array and first_value.

   There is one way to fail: mli_stop notes the first error in the archive, and the readers go on with zeros and empty
   things. They look at `result` in their loops only, which keeps them free of a check after every call. */

#define MLI_PATH_SIZE 4096 /* bytes of the longest dotted name, with its terminating zero */
#define MLI_MAX_DEPTH 64   /* of JSON's containers in containers */

/* Small things that live as long as the archive are cut from blocks, which are freed together. */
typedef struct mli_block {
    struct mli_block *next;
    size_t size, used, padding; /* of the bytes that follow; four words keep these aligned to 16 */
} mli_block;

typedef struct mli_list {
    void *items;
    size_t n, capacity;
    mli_named *index; /* of arrays and values, which begin with their names: these, sorted */
} mli_list;

/* One of the files that an archive is read from. Nearly always there is only one. */
typedef struct mli_shard {
    const char *name; /* without the folder; empty: bytes in memory */
    mli_file file;    /* mapped, or the caller's bytes */
} mli_shard;

typedef struct ml_archive_private {
    ml_archive shown; /* what the caller sees; must be first */
    ml_allocator allocator;
    const char *file_path; /* of the first shard or the index, never a folder; NULL: bytes in memory */
    mli_list arrays, values, shards; /* of ml_array, ml_value and mli_shard */
    mli_block *blocks;
    const unsigned char *data; /* (size) the shard being read; afterwards the first, which has the values */
    size_t size, total_size;   /* of all shards */
    /* while something is read: */
    ml_result result; /* the first error */
    ml_error *error;
    const char *reading;             /* begins its sentence: the shard, if the caller did not name it */
    size_t first_array, first_value; /* of the shard being read */
    size_t name_budget;              /* bytes that names may still take */
    char path[MLI_PATH_SIZE];        /* the dotted name of what is being read */
    size_t path_length;
    int may_repeat; /* two things may have the same name: 1, the first one counts; 2, the last one */
    ml_array spare; /* what mli_list_add returns without memory; no list has larger items */
} mli_archive;

/* ---- errors and memory ---- */

/* Notes an error, unless there was one before. */
static ml_result mli_stop(mli_archive *archive, ml_result code, const char *format, ...) {
    if (archive->result) return archive->result;
    archive->result = code;
    if (archive->error) {
        char *text = archive->error->text;
        size_t size = sizeof archive->error->text, n;
        mli_format(text, size, "%s%s", archive->reading ? archive->reading : "",
                   archive->reading ? ": " : "");
        n = strlen(text);
        va_list args;
        va_start(args, format);
        mli_format_v(text + n, size - n, format, args);
        va_end(args);
        archive->error->code = code;
    }
    return code;
}

/* Returns NULL: the memory that could not be had. */
static void *mli_no_memory(mli_archive *archive) {
    mli_stop(archive, ML_ERROR_MEMORY, "out of memory for the contents of the file");
    return NULL;
}

static void mli_cut_short(mli_archive *archive, const char *name, uint64_t needed) {
    mli_stop(archive, ML_ERROR_TRUNCATED,
             "file is cut short (an incomplete download?): %s needs bytes up to %l, it has %z", name,
             (int64_t)MLI_MIN(needed, (uint64_t)INT64_MAX), archive->size);
}

/* Memory that ml_archive_free frees; NULL if there is none. */
static void *mli_keep(mli_archive *archive, size_t size) {
    mli_block *block = archive->blocks;
    if (size > SIZE_MAX / 2) return mli_no_memory(archive);
    size = (size + 15) & ~(size_t)15;
    if (!block || size > block->size - block->used) {
        size_t capacity = block ? MLI_MIN(block->size * 2, (size_t)1 << 20) : 1024;
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

/* Appends a zero item to a list and returns it; without memory, one that is not in the list. Doubling keeps copying
   within a constant per item. */
static void *mli_list_add(mli_archive *archive, mli_list *list, size_t item_size) {
    if (list->n == list->capacity) {
        size_t capacity = list->n ? list->n * 2 : 16; /* cannot overflow: an item has more than a byte */
        void *moved = mli_alloc(&archive->allocator, capacity, item_size);
        if (!moved) {
            mli_no_memory(archive);
            return memset(&archive->spare, 0, item_size);
        }
        if (list->n) memcpy(moved, list->items, list->n * item_size);
        mli_free(&archive->allocator, list->items);
        list->items = moved;
        list->capacity = capacity;
    }
    return memset((char *)list->items + list->n++ * item_size, 0, item_size);
}

/* An archive without contents; NULL without memory. */
static mli_archive *mli_archive_new(const ml_allocator *allocator, ml_error *error) {
    mli_archive *archive = (mli_archive *)mli_alloc(allocator, 1, sizeof *archive);
    if (!archive) {
        mli_fail(error, ML_ERROR_MEMORY, "out of memory for an archive");
        return NULL;
    }
    archive->shown.private_part = archive;
    archive->allocator = *allocator;
    archive->error = error;
    archive->name_budget = 65536;
    return archive;
}

/* ---- adding arrays and values ---- */

/* All names together may be longer than the file, since a name repeats those of the containers around it; a budget of
   16 times the file's size limits that. */
static void mli_allow_names(mli_archive *archive, size_t file_size) {
    archive->name_budget += MLI_MIN(file_size, (SIZE_MAX - archive->name_budget) / 16) * 16;
}

/* A zero-terminated copy. */
static const char *mli_keep_name(mli_archive *archive, const char *name, size_t length) {
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

/* A new array or value, zero except for its name (and kind). */
static ml_array *mli_add_array(mli_archive *archive, const char *name, size_t length) {
    ml_array *array = (ml_array *)mli_list_add(archive, &archive->arrays, sizeof *array);
    array->name = mli_keep_name(archive, name, length);
    return array;
}

static void mli_set_type(ml_array *array, ml_type type, const char *otherwise) {
    array->type = type;
    array->type_name = type == ML_TYPE_NONE ? otherwise : ml_type_name(type);
}

static ml_value *mli_add_value(mli_archive *archive, const char *name, size_t length, ml_value_kind kind) {
    ml_value *value = (ml_value *)mli_list_add(archive, &archive->values, sizeof *value);
    value->name = mli_keep_name(archive, name, length);
    value->kind = kind;
    return value;
}

static void mli_set_int(ml_value *value, int64_t i) {
    value->i = i;
    value->f = (double)i;
}

/* A value of the shard being read, before the names are sorted; NULL if there is none. */
static const ml_value *mli_shard_value(const mli_archive *archive, const char *name) {
    const ml_value *values = (const ml_value *)archive->values.items;
    for (size_t i = archive->first_value; i < archive->values.n; i++)
        if (strcmp(values[i].name, name) == 0) return &values[i];
    return NULL;
}

/* The name of the shard that has the array's data; NULL: there is only one, or the array has no data in a file. */
static const char *mli_shard_of(const mli_archive *archive, const ml_array *array) {
    const mli_shard *shards = (const mli_shard *)archive->shards.items;
    for (size_t i = 0; archive->shards.n > 1 && i < archive->shards.n; i++)
        if ((uintptr_t)array->data - (uintptr_t)shards[i].file.data < shards[i].file.size)
            return shards[i].name;
    return NULL;
}

/* Items i and k of the arrays or values have one name. */
static void mli_refuse_duplicate(mli_archive *archive, const mli_list *list, const char *what,
                                 const char *name, size_t i, size_t k) {
    const ml_array *arrays = list == &archive->arrays ? (const ml_array *)list->items : NULL;
    const char *first = arrays ? mli_shard_of(archive, &arrays[i]) : NULL;
    const char *second = arrays ? mli_shard_of(archive, &arrays[k]) : NULL;
    if (first && second && first != second)
        mli_stop(archive, ML_ERROR_MISMATCH, "tensor %s is in two shards, %s and %s", name, first, second);
    mli_stop(archive, ML_ERROR_FORMAT, "two %s are named %s", what, name);
}

/* Appends ".name" to the path; the caller restores path_length. */
static void mli_path_push(mli_archive *archive, const char *name, size_t length) {
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

static void mli_path_push_int(mli_archive *archive, int64_t i) {
    char digits[24];
    size_t n = 0;
    mli_put_int(digits, sizeof digits, &n, i);
    mli_path_push(archive, digits, n);
}

/* Sets row-major strides. Returns the number of bytes; 0 for an unknown type; 0, and an error, if it overflows. */
static size_t mli_set_contiguous(mli_archive *archive, ml_array *array) {
    size_t count = 1, bytes = 0, cols = array->n_dims ? (size_t)array->shape[array->n_dims - 1] : 1;
    int fits = 1;
    for (int i = array->n_dims; i-- > 0;) {
        array->stride[i] = (int64_t)count;
        fits = fits && (uint64_t)array->shape[i] <= SIZE_MAX &&
               mli_mul_size(count, (size_t)array->shape[i], &count) && count <= SIZE_MAX / 2;
    }
    array->is_contiguous = 1;
    size_t row_bytes = ml_type_row_bytes(array->type, cols);
    if (fits && array->type == ML_TYPE_NONE) return 0;
    if (fits && count && !row_bytes)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: rows of %z do not fit blocks of %s", array->name, cols,
                 ml_type_name(array->type));
    else if (!fits || (count && !mli_mul_size(count / cols, row_bytes, &bytes)))
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its shape overflows", array->name);
    return bytes;
}

/* The array's bytes are at base + offset in the file, if they are in it. */
static void mli_set_data(mli_archive *archive, ml_array *array, size_t base, uint64_t offset,
                         uint64_t bytes) {
    size_t left = archive->size - base;
    if (offset > left || bytes > left - offset)
        mli_cut_short(archive, array->name, offset > left ? offset : base + offset + bytes);
    else
        array->data = archive->data + base + (size_t)offset;
}

/* Whether only one of two items of the same name needs to stay. Which of two tensors is meant must not be guessed:
   they must be the same. */
static int mli_is_repeat(const mli_archive *archive, const mli_list *list, size_t i, size_t k) {
    if (!archive->may_repeat) return 0;
    if (list != &archive->arrays) return 1;
    const ml_array *a = (const ml_array *)list->items + i, *b = (const ml_array *)list->items + k;
    size_t bytes = (size_t)a->n_dims * sizeof a->shape[0];
    return a->type == b->type && a->data == b->data && a->n_dims == b->n_dims &&
           memcmp(a->shape, b->shape, bytes) == 0 && memcmp(a->stride, b->stride, bytes) == 0;
}

/* Removes the items whose names repeat the one in front of them (or, of two, that one). Returns how many. */
static size_t mli_drop_repeats(const mli_archive *archive, mli_list *list, size_t item_size,
                               const mli_named *index) {
    char *items = (char *)list->items;
    const char *none = NULL;
    size_t kept = 0, n = list->n, first = 0;
    for (size_t i = 1; i < n; i++) {
        if (strcmp(index[i].name, index[first].name) != 0)
            first = i;
        else if (mli_is_repeat(archive, list, index[first].index, index[i].index))
            memcpy(items + index[archive->may_repeat == 2 ? i - 1 : i].index * item_size, &none, sizeof none);
    }
    for (size_t i = 0; i < n; i++) {
        const char *name;
        memcpy(&name, items + i * item_size, sizeof name);
        if (name && kept != i) memcpy(items + kept * item_size, items + i * item_size, item_size);
        kept += name != NULL;
    }
    list->n = kept;
    return n - kept;
}

/* Sorts the names of a list's items and refuses duplicates. After an error the old index remains. */
static void mli_index_names(mli_archive *archive, mli_list *list, size_t item_size, const char *what) {
    mli_named *index = (mli_named *)mli_alloc(&archive->allocator, list->n, sizeof *index);
    if (!index) mli_no_memory(archive);
    for (size_t i = 0; index && i < list->n; i++) {
        memcpy(&index[i].name, (const char *)list->items + i * item_size, sizeof index[i].name);
        index[i].length = strlen(index[i].name);
        index[i].index = i;
    }
    if (index) mli_sort_named(index, list->n);
    if (index && !archive->result && mli_drop_repeats(archive, list, item_size, index)) {
        mli_free(&archive->allocator, index);
        mli_index_names(archive, list, item_size, what);
        return;
    }
    for (size_t i = 1; index && i < list->n; i++)
        if (strcmp(index[i].name, index[i - 1].name) == 0)
            mli_refuse_duplicate(archive, list, what, index[i].name, index[i - 1].index, index[i].index);
    mli_free(&archive->allocator, archive->result ? index : list->index);
    if (!archive->result) list->index = index;
}

/* Shows the caller what was added. */
static void mli_publish(mli_archive *archive) {
    mli_index_names(archive, &archive->arrays, sizeof(ml_array), "tensors");
    mli_index_names(archive, &archive->values, sizeof(ml_value), "values");
    archive->shown.arrays = (const ml_array *)archive->arrays.items;
    archive->shown.n_arrays = archive->arrays.n;
    archive->shown.values = (const ml_value *)archive->values.items;
    archive->shown.n_values = archive->values.n;
}

/* ---- telling formats apart ---- */

static void mli_read_torch(mli_archive *archive);
static void mli_read_gguf(mli_archive *archive);
static void mli_read_safetensors(mli_archive *archive);
static void mli_read_bin(mli_archive *archive);
static int mli_read_legacy_bin(mli_archive *archive); /* 0: it is none */
static ml_result mli_json_values(mli_archive *archive, const char *prefix, const void *data, size_t size,
                                 ml_error *error); /* in >>json */

/* Where a text begins, after a byte order mark and white space. */
static size_t mli_text_begin(const unsigned char *data, size_t size) {
    size_t at = size >= 3 && memcmp(data, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    while (at < size && (data[at] == ' ' || (data[at] >= '\t' && data[at] <= '\r'))) at++;
    return at;
}

/* Whether it is Hugging Face's index of a sharded model: a JSON object with a weight_map. */
static int mli_is_index(const unsigned char *data, size_t size) {
    static const char key[] = "\"weight_map\"";
    size_t n = sizeof key - 1, at = mli_text_begin(data, size);
    if (at == size || data[at] != '{') return 0;
    for (; size - at >= n; at++)
        if (data[at] == '"' && memcmp(data + at, key, n) == 0) return 1;
    return 0;
}

/* What an unrecognized file seems to be, for the message. */
static const char *mli_describe(const mli_archive *archive) {
    size_t begin = mli_text_begin(archive->data, archive->size);
    int first = begin < archive->size ? archive->data[begin] : 0;
    for (size_t i = 0; i < archive->size && i < 512; i++) {
        int c = archive->data[i];
        if (c < 32 && (c < '\t' || c > '\r')) return NULL;
    }
    return !archive->size                               ? "empty"
           : first == '<'                               ? "a web page or XML: perhaps a download that failed"
           : mli_is_index(archive->data, archive->size) ? "an index of shards: load it by its path"
           : first == '{'                               ? "JSON text, not a model"
                                                        : "a text file, not a model";
}

static void mli_unknown_file(mli_archive *archive) {
    static const char digits[] = "0123456789abcdef";
    const char *what = mli_describe(archive);
    char hex[8 * 3 + 1] = "";
    for (size_t i = 0; i < archive->size && i < 8; i++) {
        hex[3 * i] = ' ';
        hex[3 * i + 1] = digits[archive->data[i] >> 4];
        hex[3 * i + 2] = digits[archive->data[i] & 15];
    }
    if (what) mli_stop(archive, ML_ERROR_FORMAT, "not a known model file: it is %s", what);
    mli_stop(archive, ML_ERROR_FORMAT, "not a known model file: starts with the bytes%s", hex);
}

/* The bytes at the beginning of a file that is read, or of one that cannot be. */
static const struct mli_magic {
    size_t at, n;
    const char *bytes;
    void (*read)(mli_archive *archive);
    const char *what;
} mli_magics[] = {
    /* clang-format off */
    {0, 4, "GGUF", mli_read_gguf, NULL}, {0, 4, "24ka", mli_read_bin, NULL}, /* the number "ak42" */
    {0, 4, "PK\003\004", mli_read_torch, NULL}, {0, 4, "PK\005\006", mli_read_torch, NULL}, /* a zip; an empty one */
    /* torch.save's older format: a pickled number of protocol 2 or 3; 4 or 5, with a frame around it; 0 or 1 */
    {2, 13, "\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.", mli_read_torch, NULL},
    {11, 13, "\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.", mli_read_torch, NULL},
    {0, 27, "L119547037146038801333356L\n", mli_read_torch, NULL},
    {257, 5, "ustar", NULL, "a tar archive: unpack it; if PyTorch 0.1 wrote it, load and save it with a newer one"},
    {0, 4, "lmgg", NULL, "a ggml file from before GGUF: convert it with llama.cpp"},
    {0, 4, "tjgg", NULL, "a ggml file from before GGUF: convert it with llama.cpp"},
    {0, 4, "algg", NULL, "an adapter in llama.cpp's format from before GGUF (ggla): convert its PEFT original again"},
    {0, 23, "version https://git-lfs", NULL, "a Git LFS pointer: the model itself was not downloaded (git lfs pull)"},
    {0, 9, "\x0a\x0e\x0a\x05<unk>", NULL, "a tokenizer (SentencePiece), not a model"},
    {8, 9, "\x05\0\0\0<unk>", NULL, "a tokenizer (llama2.c), not a model"},
    {0, 3, "\xff\xd8\xff", NULL, "a JPEG picture"}, {0, 4, "\x89PNG", NULL, "a PNG picture"},
    {0, 4, "%PDF", NULL, "a PDF document"}, {0, 6, "\x93NUMPY", NULL, "a NumPy array, not a model"},
    {0, 4, "\x89HDF", NULL, "an HDF5 file"}, {0, 2, "\x1f\x8b", NULL, "compressed with gzip: unpack it first"},
    {0, 4, "\x28\xb5\x2f\xfd", NULL, "compressed with zstd: unpack it first"},
    /* clang-format on */
};

static void mli_read_archive(mli_archive *archive) {
    for (const struct mli_magic *magic = mli_magics; magic < mli_magics + MLI_COUNT(mli_magics); magic++) {
        if (archive->size < magic->at + magic->n) continue;
        if (memcmp(archive->data + magic->at, magic->bytes, magic->n) != 0) continue;
        if (magic->read)
            magic->read(archive);
        else
            mli_stop(archive, ML_ERROR_FORMAT, "not a known model file: it is %s", magic->what);
        return;
    }
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    uint64_t length = mli_read_u64(&in);
    if (mli_read_u8(&in) == '{' && length >= 2 && length < 100000000) /* safetensors' own limit */
        mli_read_safetensors(archive);
    else if (!mli_read_legacy_bin(archive))
        mli_unknown_file(archive);
}

/* ---- shards ---- */

/* "-00001-of-00002" before the ending of a file's name, where it begins; NULL if there is none. */
static const char *mli_shard_number(const char *path, int *number, int *count) {
    static const char pattern[] = "-ddddd-of-ddddd";
    const char *dot = strrchr(path + mli_folder_length(path), '.');
    size_t n = sizeof pattern - 1, at = 0;
    int numbers[2] = {0, 0};
    if (!dot || (size_t)(dot - path) < n) return NULL;
    for (const char *p = dot - n; at < n; at++) {
        int is_digit = p[at] >= '0' && p[at] <= '9';
        if (pattern[at] == 'd' ? !is_digit : p[at] != pattern[at]) return NULL;
        if (is_digit) numbers[at > 6] = numbers[at > 6] * 10 + p[at] - '0';
    }
    *number = numbers[0];
    *count = numbers[1];
    return dot - n;
}

/* Adds a shard, which owns the file from then on, and reads it. name NULL: the one that the caller named. */
static void mli_add_shard(mli_archive *archive, const char *name, const mli_file *file) {
    mli_shard *shard =
        archive->result ? NULL : (mli_shard *)mli_list_add(archive, &archive->shards, sizeof *shard);
    if (archive->result) {
        mli_unmap_file(&archive->allocator, file);
        return;
    }
    const char *path = archive->file_path ? archive->file_path : "";
    shard->name = name ? name : path + mli_folder_length(path);
    archive->reading = name;
    shard->file = *file;
    archive->first_array = archive->arrays.n;
    archive->first_value = archive->values.n;
    archive->data = file->size ? file->data : (const unsigned char *)"";
    archive->size = file->size;
    archive->total_size += MLI_MIN(file->size, SIZE_MAX - archive->total_size);
    mli_allow_names(archive, file->size);
    mli_read_archive(archive);
    archive->reading = NULL;
}

/* Maps and reads a shard in the folder of the first one. */
static void mli_open_shard(mli_archive *archive, const char *name, size_t length) {
    mli_file file = {NULL, 0, 0};
    if (archive->result) return;
    name = mli_keep_name(archive, name, length);
    char *path = mli_path_beside(&archive->allocator, archive->file_path, name);
    if (path && !archive->result)
        archive->result = mli_map_file(path, &archive->allocator, &file, archive->error);
    else
        mli_no_memory(archive);
    mli_free(&archive->allocator, path);
    mli_add_shard(archive, name, &file);
}

/* Back to the bytes of the first shard, which has the values. */
static void mli_end_shards(mli_archive *archive) {
    if (archive->result) return;
    const mli_shard *first = (const mli_shard *)archive->shards.items;
    archive->data = first->file.data;
    archive->size = first->file.size;
}

/* A file that is named inside of another one may not lead out of its folder. */
static int mli_is_plain_name(const char *name, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (!name[i] || strchr("/\\:", name[i])) return 0;
    return length > 0 && length < 256 && name[0] != '.';
}

/* ---- shards of an index ----
   Hugging Face's model.safetensors.index.json, for example: {"weight_map": {"TENSOR": "FILE", ...}}. */

#ifndef ML_NO_STDIO
#define MLI_WEIGHT_MAP "weight_map."

/* Opens the shards in the order of their names, each once. files (n): the values of the weight_map, sorted. */
static void mli_open_indexed(mli_archive *archive, const mli_named *files, size_t n) {
    for (size_t i = 0; i < n && !archive->result; i++) {
        size_t n_values = archive->values.n;
        if (i &&
            mli_compare_text(files[i].name, files[i].length, files[i - 1].name, files[i - 1].length) == 0)
            continue;
        if (!mli_is_plain_name(files[i].name, files[i].length))
            mli_stop(archive, ML_ERROR_FORMAT,
                     "the index's weight_map: \"%s\" is no name of a file beside it", files[i].name);
        mli_open_shard(archive, files[i].name, files[i].length);
        if (i) archive->values.n = n_values;
    }
    mli_end_shards(archive);
}

/* No tensor of the weight_map is in another shard. One that is in none (a buffer that is no longer saved) is missing
   only if a weight is made of it. */
static void mli_check_index(mli_archive *archive, const ml_archive *index) {
    for (size_t i = 0; i < index->n_values && !archive->result; i++) {
        const ml_value *value = &index->values[i];
        if (!mli_begins_with(value->name, MLI_WEIGHT_MAP)) continue;
        const char *name = value->name + sizeof MLI_WEIGHT_MAP - 1;
        const ml_array *array = ml_archive_find_array(&archive->shown, name);
        const char *in = array ? mli_shard_of(archive, array) : NULL;
        if (in && strcmp(in, value->s) != 0)
            mli_stop(archive, ML_ERROR_MISMATCH, "tensor %s is not in %s, as the index says", name, value->s);
    }
}

/* files (n) = the entries of the weight_map, sorted by their shards. Returns n. */
static size_t mli_list_indexed(mli_archive *archive, const ml_archive *index, mli_named *files) {
    size_t n = 0;
    for (size_t i = 0; i < index->n_values; i++) {
        const ml_value *value = &index->values[i];
        if (!mli_begins_with(value->name, MLI_WEIGHT_MAP)) continue;
        if (value->kind != ML_VALUE_STRING)
            mli_stop(archive, ML_ERROR_FORMAT, "the index's %s is not the name of a file", value->name);
        mli_named file = {value->s, value->length, i};
        files[n++] = file;
    }
    if (!n) mli_stop(archive, ML_ERROR_FORMAT, "the index's weight_map is empty");
    if (!archive->result) mli_sort_named(files, n);
    return n;
}

static void mli_read_index(mli_archive *archive, const mli_file *file) {
    mli_archive *index = mli_archive_new(&archive->allocator, archive->error);
    mli_named *files = NULL;
    if (!index)
        mli_no_memory(archive);
    else
        archive->result = mli_json_values(index, "", file->data, file->size, archive->error);
    if (!archive->result) {
        files = (mli_named *)mli_alloc(&archive->allocator, index->values.n, sizeof *files);
        if (!files) mli_no_memory(archive);
    }
    if (files) mli_open_indexed(archive, files, mli_list_indexed(archive, &index->shown, files));
    mli_publish(archive);
    if (files) mli_check_index(archive, &index->shown);
    mli_free(&archive->allocator, files);
    if (index) ml_archive_free(&index->shown);
}
#endif

/* ---- shards of a split GGUF ----
   As llama.cpp's gguf-split names and marks them: NAME-00001-of-00003.gguf, with the keys below. */

#define MLI_KEY_SPLIT_NO "split.no" /* from 0 */
#define MLI_KEY_SPLIT_COUNT "split.count"
#define MLI_KEY_SPLIT_TENSORS "split.tensors.count" /* of all parts */

/* A whole number of the shard that was read last; `otherwise` where it has none. */
static int64_t mli_shard_int(const mli_archive *archive, const char *key, int64_t otherwise) {
    const ml_value *value = mli_shard_value(archive, key);
    return value && value->kind == ML_VALUE_INT ? value->i : otherwise;
}

/* Opens shards 2 to `count`; name (length): that of the first, whose digits are at `number`. */
static void mli_open_numbered(mli_archive *archive, int count, char *name, size_t length, char *number) {
    size_t n_values = archive->values.n;
    for (int i = 1; i < count && !archive->result; i++) {
        for (int digit = 5, rest = i + 1; digit-- > 0; rest /= 10) number[digit] = (char)('0' + rest % 10);
        mli_open_shard(archive, name, length);
        int64_t no = mli_shard_int(archive, MLI_KEY_SPLIT_NO, -1);
        int64_t of = mli_shard_int(archive, MLI_KEY_SPLIT_COUNT, -1);
        if (no != i || of != count)
            mli_stop(archive, ML_ERROR_MISMATCH,
                     "%s is of another split: " MLI_KEY_SPLIT_NO " %l, " MLI_KEY_SPLIT_COUNT
                     " %l, not %d, %d",
                     name, no, of, i, count);
        archive->values.n = n_values;
    }
    mli_end_shards(archive);
}

/* Reads the others of `count` shards, if the one that was read is the first. */
static void mli_read_split(mli_archive *archive, int64_t count) {
    int64_t no = mli_shard_int(archive, MLI_KEY_SPLIT_NO, 0), n_tensors;
    int number = 0, named = 0;
    n_tensors = mli_shard_int(archive, MLI_KEY_SPLIT_TENSORS, -1);
    if (no || !archive->file_path) {
        mli_stop(archive, ML_ERROR_UNSUPPORTED,
                 "this is part %l of %l of a split GGUF: load part 1 by its path", no + 1, count);
        return;
    }
    const char *file = archive->file_path + mli_folder_length(archive->file_path);
    const char *at = mli_shard_number(file, &number, &named);
    if (!at || number != 1 || named != count) {
        mli_stop(archive, ML_ERROR_MISMATCH,
                 "this is part 1 of %l of a split GGUF, but its name does not say so (-00001-of-...)", count);
        return;
    }
    size_t length = strlen(file);
    char *name = mli_join_path(&archive->allocator, file, length, "");
    if (name) mli_open_numbered(archive, named, name, length, name + (at - file) + 1);
    if (!name) mli_no_memory(archive);
    mli_free(&archive->allocator, name);
    if (n_tensors >= 0 && (uint64_t)n_tensors != archive->arrays.n)
        mli_stop(archive, ML_ERROR_MISMATCH, MLI_KEY_SPLIT_TENSORS " is %l, but the %l parts have %z tensors",
                 n_tensors, count, archive->arrays.n);
}

/* ---- folders ---- */

#define MLI_ONE_OF_PIECES "1 of %d pieces of every matrix: joining them is not supported"

#ifndef ML_NO_STDIO
/* In a folder, the first of these files that is there is opened, else its only .gguf. */
static const char *const mli_folder_files[] = {"/model.safetensors",   "/model.safetensors.index.json",
                                               "/pytorch_model.bin",   "/pytorch_model.bin.index.json",
                                               "/consolidated.00.pth", "/adapter_model.safetensors",
                                               "/adapter_model.bin"};

/* Meta's consolidated.00.pth, consolidated.01.pth, ... hold a part of the rows or columns of every matrix. How many
   there are, if `path` is one of them; else 1. */
static int mli_count_pieces(const ml_allocator *allocator, const char *path) {
    char name[] = "consolidated.00.pth";
    int n = 0, is_there = 1;
    if (strncmp(path + mli_folder_length(path), name, sizeof "consolidated") != 0) return 1;
    for (; is_there && n < 100; n += is_there) {
        name[13] = (char)('0' + n / 10);
        name[14] = (char)('0' + n % 10);
        char *piece = mli_path_beside(allocator, path, name);
        FILE *file = piece ? mli_fopen(piece, "rb") : NULL;
        mli_free(allocator, piece);
        is_there = file != NULL;
        if (file) fclose(file);
    }
    return MLI_MAX(n, 1);
}

/* "/NAME.gguf" for the folder's only file of that kind; later parts of a split one do not count. NULL: there is none,
   or more than one, or no POSIX to list a folder. */
static const char *mli_only_gguf(mli_archive *archive, const char *folder) {
    const char *only = NULL;
#ifdef MLI_POSIX
    DIR *listing = opendir(folder);
    int n = 0, number = 1, count;
    for (struct dirent *entry; listing && (entry = readdir(listing)) != NULL;) {
        const char *name = entry->d_name, *dot = strrchr(name, '.');
        if (!dot || strcmp(dot, ".gguf") != 0 || (mli_shard_number(name, &number, &count) && number > 1))
            continue;
        if (n++) continue;
        char *path = mli_join_path(&archive->allocator, "/", 1, name);
        if (path) only = mli_keep_name(archive, path, strlen(path));
        if (!path) mli_no_memory(archive);
        mli_free(&archive->allocator, path);
    }
    if (listing) closedir(listing);
    if (n != 1) only = NULL;
#else
    (void)archive, (void)folder;
#endif
    return only;
}

/* Maps that file of the folder at archive->file_path, which becomes its path. */
static void mli_map_in_folder(mli_archive *archive, mli_file *file) {
    const ml_allocator *allocator = &archive->allocator;
    const char *folder = archive->file_path, *only = mli_only_gguf(archive, folder);
    ml_result result = ML_ERROR_FILE;
    size_t n_names = MLI_COUNT(mli_folder_files) + (only != NULL);
    if (archive->result) return;
    for (size_t i = 0; i < n_names && result == ML_ERROR_FILE; i++) {
        const char *name = i < MLI_COUNT(mli_folder_files) ? mli_folder_files[i] : only;
        char *path = mli_join_path(allocator, folder, strlen(folder), name);
        result = path ? mli_map_file(path, allocator, file, NULL) : ML_ERROR_MEMORY;
        if (!result) archive->file_path = mli_keep_name(archive, path, strlen(path));
        mli_free(allocator, path);
    }
    if (result == ML_ERROR_MEMORY) mli_no_memory(archive);
    if (result)
        mli_stop(archive, result,
                 "%s is a folder without model.safetensors, pytorch_model.bin, the .index.json of either, "
                 "consolidated.00.pth, adapter_model.safetensors or a single .gguf",
                 folder);
    int n_pieces = result ? 1 : mli_count_pieces(allocator, archive->file_path);
    if (n_pieces > 1)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "%s is " MLI_ONE_OF_PIECES, archive->file_path, n_pieces);
}

/* Maps what the path leads to, and reads it or the shards that it names. */
static void mli_read_path(mli_archive *archive, const char *path) {
    mli_file file = {NULL, 0, 0};
    archive->file_path = mli_keep_name(archive, path, strlen(path));
    if (archive->result) return;
    if (mli_is_folder(path))
        mli_map_in_folder(archive, &file);
    else
        archive->result = mli_map_file(path, &archive->allocator, &file, archive->error);
    if (archive->result || !mli_is_index(file.data, file.size)) {
        mli_add_shard(archive, NULL, &file);
    } else {
        mli_read_index(archive, &file);
        mli_unmap_file(&archive->allocator, &file);
    }
}
#else
static int mli_count_pieces(const ml_allocator *allocator, const char *path) {
    return (void)allocator, (void)path, 1;
}

static void mli_read_path(mli_archive *archive, const char *path) {
    mli_stop(archive, ML_ERROR_UNSUPPORTED, "%s cannot be opened: built with ML_NO_STDIO", path);
}
#endif

/* ---- opening and looking up ---- */

ML_DEF void ml_archive_free(ml_archive *shown) {
    if (!shown) return;
    mli_archive *archive = shown->private_part;
    const mli_shard *shards = (const mli_shard *)archive->shards.items;
    ml_allocator allocator = archive->allocator;
    for (size_t i = 0; i < archive->shards.n; i++) mli_unmap_file(&allocator, &shards[i].file);
    for (mli_block *next; archive->blocks; archive->blocks = next) {
        next = archive->blocks->next;
        mli_free(&allocator, archive->blocks);
    }
    mli_list *const lists[3] = {&archive->arrays, &archive->values, &archive->shards};
    for (int i = 0; i < 3; i++) {
        mli_free(&allocator, lists[i]->items);
        mli_free(&allocator, lists[i]->index);
    }
    mli_free(&allocator, archive);
}

static void mli_read_memory(mli_archive *archive, const void *data, size_t size) {
    const mli_file file = {(const unsigned char *)data, size, 1};
    mli_add_shard(archive, NULL, &file);
}

/* Shows what was read, or frees it after an error. */
static ml_result mli_archive_end(mli_archive *archive, ml_archive **shown, ml_error *error) {
    mli_publish(archive);
    archive->error = NULL; /* which belongs to this call */
    ml_result result = archive->result;
    if (result) {
        ml_archive_free(&archive->shown);
        return result;
    }
    *shown = &archive->shown;
    return mli_ok(error);
}

/* From a file, a folder or, where path is NULL, from bytes; with all shards. */
static ml_result mli_open(const char *path, const void *data, size_t size, const ml_allocator *allocator,
                          ml_archive **shown, ml_error *error) {
    mli_archive *archive = mli_archive_new(allocator, error);
    if (!archive) return ML_ERROR_MEMORY;
    if (path)
        mli_read_path(archive, path);
    else
        mli_read_memory(archive, data, size);
    int is_gguf = !archive->result && strcmp(archive->shown.format, "GGUF") == 0;
    int64_t n_parts = is_gguf ? mli_shard_int(archive, MLI_KEY_SPLIT_COUNT, 1) : 1;
    if (n_parts > 1) mli_read_split(archive, n_parts);
    return mli_archive_end(archive, shown, error);
}

/* From these bytes alone, even if they are one of several shards. */
static ml_result mli_open_alone(const void *data, size_t size, const ml_allocator *allocator,
                                ml_archive **shown, ml_error *error) {
    mli_archive *archive = mli_archive_new(allocator, error);
    if (!archive) return ML_ERROR_MEMORY;
    mli_read_memory(archive, data, size);
    return mli_archive_end(archive, shown, error);
}

static ml_result mli_load_allocator(const ml_load_desc *desc, ml_allocator *allocator, ml_error *error) {
    return mli_resolve_allocator(desc ? &desc->allocator : NULL, allocator, error);
}

static ml_result mli_load_archive(const char *path, const void *data, size_t size, const ml_load_desc *desc,
                                  ml_archive **archive, ml_error *error) {
    ml_allocator allocator;
    if (archive) *archive = NULL;
    if (!archive || (!path && !data && size))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_load: path, data or archive is NULL");
    ml_result result = mli_load_allocator(desc, &allocator, error);
    return result ? result : mli_open(path, data, size, &allocator, archive, error);
}

ML_DEF ml_result ml_archive_load_memory(const void *data, size_t size, const ml_load_desc *desc,
                                        ml_archive **archive, ml_error *error) {
    return mli_load_archive(NULL, data, size, desc, archive, error);
}

#ifndef ML_NO_STDIO
ML_DEF ml_result ml_archive_load(const char *path, const ml_load_desc *desc, ml_archive **archive,
                                 ml_error *error) {
    /* the size is not used: a path must be given */
    return mli_name_file(error, mli_load_archive(path, NULL, 1, desc, archive, error), path);
}
#endif

/* The item of that name, or NULL. */
static const void *mli_find_item(const mli_list *list, size_t item_size, const char *name) {
    const mli_named *found = mli_find_named(list->index, list->n, name, strlen(name));
    return found ? (const char *)list->items + found->index * item_size : NULL;
}

ML_DEF const ml_array *ml_archive_find_array(const ml_archive *archive, const char *name) {
    return (const ml_array *)mli_find_item(&archive->private_part->arrays, sizeof(ml_array), name);
}

ML_DEF const ml_value *ml_archive_find_value(const ml_archive *archive, const char *name) {
    return (const ml_value *)mli_find_item(&archive->private_part->values, sizeof(ml_value), name);
}

/* ---- the elements of an array ---- */

ML_DEF size_t ml_array_count(const ml_array *array) {
    size_t count = 1; /* the product fits: see mli_set_contiguous */
    for (int i = 0; i < array->n_dims; i++) count *= (size_t)array->shape[i];
    return count;
}

/* Where the next elements go, as one type or the other. */
typedef struct mli_elements {
    float *floats; /* or NULL */
    int64_t *ints;
} mli_elements;

/* Converts n elements that are contiguous in the file. */
static void mli_take_elements(mli_elements *to, ml_type type, const unsigned char *data, size_t n) {
    double buffer[256]; /* aligned, which data need not be; whole blocks, since 256 is a multiple of each */
    for (size_t part; to->floats && n; n -= part, to->floats += part) {
        part = MLI_MIN(n, 256);
        size_t bytes = ml_type_row_bytes(type, part);
        memcpy(buffer, data, bytes);
        ml_type_convert(ML_F32, to->floats, type, buffer, part);
        data += bytes;
    }
    int size = (int)ml_type_row_bytes(type, 1);
    mli_reader in = mli_reader_at(data, 0, n * (size_t)size);
    for (; n; n--) {
        uint64_t bits = mli_read_uint(&in, size);
        *to->ints++ = type == ML_BOOL ? bits != 0 : type == ML_U8 ? (int64_t)bits : mli_signed(bits, size);
    }
}

/* Takes the elements from dimension `dim` on, the first being at data, in row-major order. */
static void mli_array_walk(const ml_array *array, int dim, const unsigned char *data, mli_elements *to) {
    size_t item = ml_type_row_bytes(array->type, 1);
    if (array->is_contiguous)
        mli_take_elements(to, array->type, data, ml_array_count(array));
    else if (dim == array->n_dims)
        mli_take_elements(to, array->type, data, 1);
    else if (dim == array->n_dims - 1 && array->stride[dim] == 1)
        mli_take_elements(to, array->type, data, (size_t)array->shape[dim]);
    else
        for (size_t i = 0; i < (size_t)array->shape[dim]; i++)
            mli_array_walk(array, dim + 1, data + i * (size_t)array->stride[dim] * item, to);
}

ML_DEF ml_result ml_array_read_floats(const ml_array *array, float *dst, size_t n) {
    mli_elements to = {dst, NULL};
    if (n != ml_array_count(array)) return ML_ERROR_ARGUMENT;
    if (!mli_is_readable(array->type)) return ML_ERROR_UNSUPPORTED;
    if (n) mli_array_walk(array, 0, (const unsigned char *)array->data, &to);
    return ML_OK;
}

ML_DEF ml_result ml_array_read_ints(const ml_array *array, int64_t *dst, size_t n) {
    mli_elements to = {NULL, dst};
    if (n != ml_array_count(array)) return ML_ERROR_ARGUMENT;
    if (array->type == ML_TYPE_NONE) return ML_ERROR_UNSUPPORTED;
    if (array->type < ML_I64 || array->type > ML_BOOL) return ML_ERROR_MISMATCH; /* floats are not rounded */
    if (n) mli_array_walk(array, 0, (const unsigned char *)array->data, &to);
    return ML_OK;
}

/* ==== >>json ====
   JSON (RFC 8259) into an archive's values: {"rope": {"factor": 2}, "eos": [1, 2]} gives "rope.factor", "eos.0" and
   "eos.1". It is the header of safetensors, and the configuration beside Hugging Face's models and adapters. */

typedef struct mli_json {
    mli_reader in;
    const unsigned char *begin;
    mli_archive *archive;
} mli_json;

/* Notes the error and moves to the end, where nothing more is found. Returns "", the string that was not read. */
static const char *mli_json_fail(mli_json *json, const char *what) {
    mli_stop(json->archive, ML_ERROR_FORMAT, "JSON: %s at byte %z", what, (size_t)(json->in.p - json->begin));
    json->in.p = json->in.end;
    return "";
}

/* ---- tokens ---- */

/* The next character that is not white space, without reading it; 0 at the end. */
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

static int mli_json_word(mli_json *json, const char *word) {
    size_t n = strlen(word);
    if (mli_left(&json->in) < n || memcmp(json->in.p, word, n) != 0) return 0;
    json->in.p += n;
    return 1;
}

/* Whether item i of a container follows: after the opening bracket, or after a comma. */
static int mli_json_more(mli_json *json, int close, int64_t i) {
    if (mli_json_take(json, close)) return 0;
    if (i) mli_json_expect(json, ',', "a comma is missing");
    return !json->archive->result;
}

/* The four hexadecimal digits of \uXXXX; -1 if this is something else. */
static int32_t mli_json_hex(const unsigned char *p, const unsigned char *end) {
    int32_t value = 0;
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    for (int i = 2; i < 6 && value >= 0; i++) {
        int digit = mli_hex_digit(p[i]);
        value = digit < 0 ? -1 : value * 16 + digit;
    }
    return value;
}

/* Writes a code point as UTF-8: at most 4 bytes, and never more than its escape has. Returns how many. */
static size_t mli_put_utf8(char *to, uint32_t c) {
    static const unsigned char lead[4] = {0, 0xc0, 0xe0, 0xf0};
    int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    for (int i = more; i > 0; i--, c >>= 6) to[i] = (char)(0x80 | (c & 63));
    to[0] = (char)(lead[more] | c);
    return (size_t)more + 1;
}

/* Decodes the character or escape at *p and moves *p past it. Returns the bytes written; 0: it is wrong. */
static size_t mli_json_character(const unsigned char **p, const unsigned char *end, char *to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    int32_t c = mli_json_hex(*p, end), low = c >= 0xd800 && c < 0xdc00 ? mli_json_hex(*p + 6, end) : -1;
    if (c >= 0) {
        int is_pair = low >= 0xdc00 && low < 0xe000; /* of surrogates: one code point */
        *p += is_pair ? 12 : 6;
        return mli_put_utf8(to, (uint32_t)(is_pair ? 0x10000 + (c - 0xd800) * 1024 + (low - 0xdc00) : c));
    }
    *to = (char)*(*p)++;
    if (*to != '\\') return 1;
    const char *found = *p < end ? (const char *)memchr(from, *(*p)++, sizeof from - 1) : NULL;
    if (found) *to = into[found - from];
    return found != NULL;
}

/* A decoded string, kept in the archive and zero-terminated; "" after an error. */
static const char *mli_json_string(mli_json *json, size_t *length) {
    *length = 0;
    mli_json_expect(json, '"', "a string is missing");
    const unsigned char *p = json->in.p, *end = p;
    for (; end < json->in.end && *end != '"' && *end >= 32; end++)
        if (*end == '\\' && end + 1 < json->in.end) end++;
    if (end == json->in.end || *end != '"') return mli_json_fail(json, "no end of the string");
    char *to = (char *)mli_keep(json->archive, (size_t)(end - p) + 1);
    size_t n = 0;
    for (size_t written; to && p < end; n += written) {
        written = mli_json_character(&p, end, to + n);
        if (!written) return mli_json_fail(json, "a wrong escape in the string");
    }
    if (!to) return "";
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

/* digits * 10^exponent. Correctly rounded if both fit a double exactly (Clinger 1990, "How to Read Floating Point
   Numbers Accurately"), otherwise within a few units in the last place: more than a float needs. Not strtod, which
   depends on the locale. */
static double mli_scale_decimal(uint64_t digits, int exponent) {
    double value = (double)digits;
    int left = exponent < 0 ? -exponent : exponent;
    while (left > 0 && value > 0 && value <= 1e308) {
        double power = 1; /* up to 10^22, which is exact */
        for (int i = 0; i < 22 && left > 0; i++, left--) power *= 10;
        value = exponent < 0 ? value / power : value * power;
    }
    return value;
}

/* Appends decimal digits to *digits as long as they fit. Returns the power of ten that makes up for the decimal
   point's position: the number of integer digits left out, or minus the number of fraction digits taken. */
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
    uint64_t digits = 0, written = 0;
    int is_negative = mli_json_take(json, '-');
    int exponent = mli_json_digits(json, &digits, 0), is_int = !exponent && digits <= (uint64_t)INT64_MAX;
    if (mli_json_word(json, ".")) {
        is_int = 0;
        exponent += mli_json_digits(json, &digits, 1);
    }
    if (mli_json_word(json, "e") || mli_json_word(json, "E")) {
        int sign = mli_json_word(json, "-") ? -1 : 1;
        if (sign > 0) mli_json_word(json, "+");
        is_int = 0;
        mli_json_digits(json, &written, 0);
        exponent += sign * (int)MLI_MIN(written, 100000u);
    }
    *f = mli_scale_decimal(digits, exponent) * (is_negative ? -1 : 1);
    *i = !is_int ? 0 : is_negative ? -(int64_t)digits : (int64_t)digits;
    return is_int;
}

/* ---- values ---- */

/* Appends a key, or the place in a list, to the path. A key that cannot be a part of a name, because it is too long
   or contains a zero byte, makes the path as long as its buffer: what is there is passed over. */
static void mli_json_push(mli_archive *archive, const char *key, size_t length, int64_t i) {
    if (archive->path_length == MLI_PATH_SIZE) return;
    if (!key)
        mli_path_push_int(archive, i);
    else if (length + 1 >= MLI_PATH_SIZE - archive->path_length || memchr(key, 0, length))
        archive->path_length = MLI_PATH_SIZE;
    else
        mli_path_push(archive, key, length);
}

/* Reads one of the three words that Python writes for numbers that are not finite. 0: it is something else. */
static int mli_json_not_finite(mli_json *json, double *f) {
    uint32_t bits = mli_json_word(json, "NaN")         ? 0x7fc00000
                    : mli_json_word(json, "Infinity")  ? 0x7f800000
                    : mli_json_word(json, "-Infinity") ? 0xff800000
                                                       : 0;
    *f = (double)mli_bits_float(bits);
    return bits != 0;
}

/* A value that is not a container, named by the path; null adds nothing. */
static void mli_json_scalar(mli_json *json) {
    mli_archive *archive = json->archive;
    ml_value passed_over, *value = &passed_over;
    int c = mli_json_peek(json);
    if (mli_json_word(json, "null")) return;
    memset(&passed_over, 0, sizeof passed_over);
    if (archive->path_length < MLI_PATH_SIZE)
        value = mli_add_value(archive, archive->path, archive->path_length, ML_VALUE_BOOL);
    if (mli_json_not_finite(json, &value->f)) {
        value->kind = ML_VALUE_FLOAT;
    } else if (c == '"') {
        value->kind = ML_VALUE_STRING;
        value->s = mli_json_string(json, &value->length);
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        value->kind = mli_json_number(json, &value->i, &value->f) ? ML_VALUE_INT : ML_VALUE_FLOAT;
    } else {
        mli_set_int(value, mli_json_word(json, "true"));
        if (!value->i && !mli_json_word(json, "false")) mli_json_fail(json, "no value");
    }
}

/* Any value; what a container holds is added under dotted names. */
static void mli_json_value(mli_json *json, int depth) {
    mli_archive *archive = json->archive;
    size_t path_length = archive->path_length, length;
    int is_object = mli_json_take(json, '{'), close = is_object ? '}' : ']';
    if (!is_object && !mli_json_take(json, '[')) {
        mli_json_scalar(json);
        return;
    }
    if (depth == MLI_MAX_DEPTH) mli_json_fail(json, "nested too deeply");
    for (int64_t i = 0; mli_json_more(json, close, i); i++) {
        const char *key = is_object ? mli_json_key(json, &length) : NULL;
        mli_json_push(archive, key, key ? length : 0, i);
        if (!archive->result) mli_json_value(json, depth + 1);
        archive->path_length = path_length;
    }
}

/* Adds what a JSON text contains to the archive's values, under dotted names that begin with prefix (which may be
   ""). The text need not outlive the call. After an error the archive is as it was. */
static ml_result mli_json_values(mli_archive *archive, const char *prefix, const void *data, size_t size,
                                 ml_error *error) {
    const unsigned char *begin = (const unsigned char *)data;
    mli_json json = {mli_reader_at(begin, 0, size), begin, archive};
    size_t n_values = archive->values.n;
    archive->result = ML_OK;
    archive->error = error;
    archive->path_length = 0;
    mli_allow_names(archive, size);
    mli_path_push(archive, prefix, strlen(prefix));
    mli_json_word(&json, "\xef\xbb\xbf"); /* a byte order mark */
    mli_json_value(&json, 0);
    if (mli_json_peek(&json)) mli_json_fail(&json, "more text than one value");
    archive->path_length = 0;
    archive->may_repeat = 2; /* as in Python */
    mli_publish(archive);
    if (archive->result) archive->shown.n_values = archive->values.n = n_values;
    archive->error = NULL;
    return archive->result;
}

/* ---- writing JSON ---- */
#ifdef MLI_SAVING

/* The shortest decimal number that is read as this float: m * 10^e with the fewest digits in m. */
static void mli_append_json_float(mli_writer *writer, float value) {
    int exponent = value > 0 ? (int)floor(log10((double)value)) : 0;
    int64_t mantissa;
    for (int digits = 0;; digits++, exponent--) { /* after the first */
        mantissa = (int64_t)floor((double)value * pow(10, -exponent) + 0.5);
        if (digits == 8 || (float)mli_scale_decimal((uint64_t)mantissa, exponent) == value) break;
    }
    for (; mantissa && mantissa % 10 == 0; exponent++) mantissa /= 10;
    mli_append_decimal(writer, mantissa);
    if (exponent < 0 || exponent >= 16) {
        mli_append_format(writer, "e%d", exponent);
        return;
    }
    while (exponent-- > 0) mli_append_text(writer, "0");
    mli_append_text(writer, ".0");
}

static void mli_append_json_bytes(mli_writer *writer, const char *text, size_t n) {
    static const char hex[] = "0123456789abcdef";
    mli_append_text(writer, "\"");
    for (const char *end = text + n; text < end; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 32) {
            const char escape[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            mli_append(writer, escape, sizeof escape);
            continue;
        }
        if (c == '"' || c == '\\') mli_append_text(writer, "\\");
        mli_append(writer, text, 1);
    }
    mli_append_text(writer, "\"");
}
static void mli_append_json_string(mli_writer *writer, const char *text) {
    mli_append_json_bytes(writer, text, strlen(text));
}
#endif /* MLI_SAVING */

/* ==== >>pytorch ====
   torch.save writes a zip file with entries that are not compressed. One is a pickle: a program for a stack machine,
   which builds dictionaries, lists, numbers and tensors. The others are storages: plain numbers, into which tensors
   are views.

      stories.pt, a zip
         stories/data.pkl    {"model": {"wq": T}, "lr": 0.1}
                             with T = storage "0", offset 0, shape (2, 3), stride (3, 1)     | a b c |
                                              |                                          T = | d e f |
         stories/data/0      a b c d e f  <---+

   Reading takes three steps: find the zip's entries; run the pickle, which makes a tree of nodes; walk the tree and
   add its tensors and scalars under the names that lead to them ("model.wq", "lr"). Python's own machine calls any
   function that a pickle names. This one never executes anything: it knows the names in mli_globals, and what calling
   each would make. The result of any other call is an opaque node, of which only the class and the attributes are
   known. */

#ifndef ML_NO_PT

typedef struct mli_range {
    size_t begin, size; /* of an entry's bytes in the file */
    int method, flags;  /* of a zip's entry: not 0, not stored as it is; bit 0, encrypted */
} mli_range;

/* All that reading one file needs. */
typedef struct mli_torch {
    mli_archive *archive;
    mli_named *entries; /* (n_entries) of the zip, sorted by name; index is the position in `ranges` */
    mli_range *ranges;  /* (n_entries) in the file's order */
    size_t n_entries;
    const char *prefix; /* the folder in the zip, with its slash */
    size_t prefix_length;
    const char *folder;         /* of the storages, in that folder: "data/" */
    const char *pickle;         /* its name, for sentences */
    const unsigned char *begin; /* of the pickle */
    mli_reader in;
    const struct mli_opcode *op; /* the instruction that runs */
    mli_list nodes;              /* of mli_node; the first one, of kind nothing, is what an error gives */
    mli_list stack, memo;        /* of uint32_t, nodes; in the memo 0 is none */
    size_t n_put;                /* nodes in the memo */
    mli_list frames;             /* of mli_frame: the containers that the walk is in */
    size_t visits;               /* nodes that the walk may still visit again */
} mli_torch;

/* ---- zip (APPNOTE 6.3) ---- */

typedef struct mli_zip_end {
    uint64_t n_entries, size, offset; /* of the central directory */
} mli_zip_end;

/* What is known of an entry, from the central directory or from the header in front of its bytes. */
typedef struct mli_zip_header {
    uint64_t flags, method, packed, size, offset; /* of the local header */
    const char *name;
    size_t length;
} mli_zip_header;

enum {
    MLI_ZIP_LOCAL = 0x04034b50, /* "PK", then two bytes that tell the records apart */
    MLI_ZIP_CENTRAL = 0x02014b50,
    MLI_ZIP_END = 0x06054b50,
    MLI_ZIP64_END = 0x06064b50,
    MLI_ZIP64_LOCATOR = 0x07064b50
};

/* A zero-terminated copy of a name for a sentence, in archive->path, which is free until the tree is walked. */
static const char *mli_show(mli_archive *archive, const char *name, size_t length) {
    size_t n = 0;
    mli_put(archive->path, sizeof archive->path, &n, name, length);
    return archive->path;
}

/* The ZIP64 counterpart of the end record at `at`, if a locator in front of it points to one. 0 if it is damaged. */
static int mli_zip64_end(const unsigned char *data, size_t at, mli_zip_end *end) {
    mli_reader in = mli_reader_at(data, at < 20 ? at : at - 20, at);
    if (mli_read_u32(&in) != MLI_ZIP64_LOCATOR) return 1;
    mli_read_u32(&in);
    uint64_t at64 = mli_read_u64(&in);
    in = mli_reader_at(data, (size_t)MLI_MIN(at64, at), at);
    if (mli_read_u32(&in) != MLI_ZIP64_END) return 1;
    mli_read_bytes(&in, 28);
    end->n_entries = mli_read_u64(&in);
    end->size = mli_read_u64(&in);
    end->offset = mli_read_u64(&in);
    return !in.failed;
}

/* The end record is the last thing in the file except for a comment of at most 65535 bytes. 0 if there is none. */
static int mli_zip_find_end(const unsigned char *data, size_t size, mli_zip_end *end) {
    for (size_t from_end = 22; from_end <= size && from_end <= 22 + 65535; from_end++) {
        mli_reader in = mli_reader_at(data, size - from_end, size);
        if (mli_read_u32(&in) != MLI_ZIP_END) continue;
        mli_read_bytes(&in, 6);
        end->n_entries = mli_read_uint(&in, 2);
        end->size = mli_read_u32(&in);
        end->offset = mli_read_u32(&in);
        uint64_t comment_length = mli_read_uint(&in, 2);
        if (comment_length <= mli_left(&in)) return mli_zip64_end(data, size - from_end, end);
    }
    return 0;
}

/* Numbers too large for 32 bits are in the extra field 1, in this order, and only those. */
static void mli_zip_extra(mli_reader extra, mli_zip_header *header) {
    uint64_t *const numbers[3] = {&header->size, &header->packed, &header->offset};
    while (mli_left(&extra) >= 4) {
        uint64_t id = mli_read_uint(&extra, 2), length = mli_read_uint(&extra, 2);
        const unsigned char *p = mli_read_bytes(&extra, length);
        if (id != 1 || !p) continue;
        mli_reader in = mli_reader_at(p, 0, (size_t)length);
        for (int i = 0; i < 3; i++)
            if (*numbers[i] == 0xffffffffu) *numbers[i] = mli_read_u64(&in);
        return;
    }
}

/* Reads a record of the central directory or a local header; 0 if it is something else or cut short. */
static int mli_zip_header_at(mli_reader *in, uint32_t magic, mli_zip_header *header) {
    int is_central = magic == MLI_ZIP_CENTRAL;
    if (mli_read_u32(in) != magic) return 0;
    mli_read_bytes(in, is_central ? 4 : 2);
    header->flags = mli_read_uint(in, 2);
    header->method = mli_read_uint(in, 2);
    mli_read_bytes(in, 8);
    header->packed = mli_read_u32(in);
    header->size = mli_read_u32(in);
    header->length = (size_t)mli_read_uint(in, 2);
    uint64_t extra_length = mli_read_uint(in, 2), comment_length = is_central ? mli_read_uint(in, 2) : 0;
    mli_read_bytes(in, is_central ? 8 : 0);
    header->offset = is_central ? mli_read_u32(in) : 0;
    header->name = (const char *)mli_read_bytes(in, header->length);
    const unsigned char *extra = mli_read_bytes(in, extra_length);
    mli_read_bytes(in, comment_length);
    if (extra) mli_zip_extra(mli_reader_at(extra, 0, (size_t)extra_length), header);
    return !in->failed;
}

/* An entry: its record in the central directory, and its bytes, which follow its local header. */
static void mli_zip_entry(mli_torch *torch, mli_reader *directory, size_t index) {
    mli_archive *archive = torch->archive;
    mli_zip_header entry, local;
    if (!mli_zip_header_at(directory, MLI_ZIP_CENTRAL, &entry)) {
        mli_stop(archive, ML_ERROR_FORMAT, "zip: entry %z of the directory is damaged", index);
        return;
    }
    const char *name = mli_show(archive, entry.name, entry.length);
    if (entry.method == 0 && entry.size != entry.packed)
        mli_stop(archive, ML_ERROR_FORMAT, "zip entry %s: it is stored, but its sizes differ", name);
    if (entry.offset > archive->size) mli_cut_short(archive, name, entry.offset);
    if (archive->result) return;
    mli_reader in = mli_reader_at(archive->data, (size_t)entry.offset, archive->size);
    if (!mli_zip_header_at(&in, MLI_ZIP_LOCAL, &local) ||
        mli_compare_text(local.name, local.length, entry.name, entry.length) != 0)
        mli_stop(archive, ML_ERROR_FORMAT, "zip entry %s: no header at byte %l, or of another name", name,
                 (int64_t)entry.offset);
    mli_named named = {entry.name, entry.length, index};
    mli_range range = {(size_t)(in.p - archive->data), (size_t)entry.packed, (int)entry.method,
                       (int)entry.flags};
    if (entry.packed > mli_left(&in)) mli_cut_short(archive, name, range.begin + entry.packed);
    torch->entries[index] = named;
    torch->ranges[index] = range;
}

static void mli_zip_read(mli_torch *torch, const mli_zip_end *end) {
    mli_archive *archive = torch->archive;
    if (end->offset > archive->size || end->size > archive->size - end->offset)
        mli_stop(archive, ML_ERROR_FORMAT, "zip: the directory is outside of the file");
    if (end->n_entries > end->size / 46) /* the size of the smallest record */
        mli_stop(archive, ML_ERROR_FORMAT, "zip: %l entries do not fit the directory",
                 (int64_t)MLI_MIN(end->n_entries, (uint64_t)INT64_MAX));
    if (archive->result) return;
    torch->n_entries = (size_t)end->n_entries;
    torch->entries = (mli_named *)mli_alloc(&archive->allocator, torch->n_entries, sizeof *torch->entries);
    torch->ranges = (mli_range *)mli_alloc(&archive->allocator, torch->n_entries, sizeof *torch->ranges);
    if (!torch->entries || !torch->ranges) mli_no_memory(archive);
    mli_reader in = mli_reader_at(archive->data, (size_t)end->offset, (size_t)(end->offset + end->size));
    for (size_t i = 0; i < torch->n_entries && !archive->result; i++) mli_zip_entry(torch, &in, i);
    if (!archive->result) mli_sort_named(torch->entries, torch->n_entries);
}

/* ---- the pickle's tree (its instructions are described in Python's pickletools.py) ---- */

typedef enum mli_node_kind {
    MLI_NODE_NOTHING = 0, /* None */
    MLI_NODE_MARK,        /* on the stack: where the items of a container begin */
    MLI_NODE_INT,
    MLI_NODE_BOOL,
    MLI_NODE_FLOAT,
    MLI_NODE_STRING,
    MLI_NODE_TUPLE,
    MLI_NODE_LIST,
    MLI_NODE_DICT,   /* children: key, value, key, value, ... */
    MLI_NODE_OPAQUE, /* of a class as.s; children: a tuple of arguments, lists and dicts of items, its state */
    MLI_NODE_GLOBAL,    /* a class or function as.s */
    MLI_NODE_STORAGE,   /* children: "storage", type, key, device, number of elements, view */
    MLI_NODE_TENSOR,    /* children: storage, offset, shape, stride, ... */
    MLI_NODE_REFERENCE, /* to another node, which is the child of something else */
    MLI_NODE_BYTES,     /* as.s */
    MLI_NODE_PAIRS,     /* a dict; children: lists of a key and a value */
    /* what calls of some globals make: */
    MLI_NODE_NUMBER,   /* int, bool or float, from NumPy's bytes */
    MLI_NODE_OF_CLASS, /* an opaque node of the class that is the first argument */
    MLI_NODE_OF_CALL   /* what a call of the first argument with the third makes */
} mli_node_kind;

/* Each byte of a pickle makes at most one node, so memory is linear in its size. */
typedef struct mli_node {
    unsigned char kind;  /* mli_node_kind */
    unsigned char row;   /* a global's or tensor's in mli_globals, a storage's in mli_dtypes */
    unsigned char is_in; /* the walk is inside of it */
    unsigned char was_in;
    uint32_t first, last; /* children; 0: none */
    uint32_t next;        /* the next child of the same parent */
    size_t length;        /* bytes of as.s */
    union {
        int64_t i; /* int, bool; index of the node referred to */
        double f;
        const char *s;
    } as;
} mli_node;

/* An instruction. */
typedef struct mli_opcode {
    unsigned char code;
    unsigned char kind; /* mli_node_kind that it makes, or adds to */
    short n; /* bytes of its operand, -1: a line; or items taken from the stack, -1: those above the mark */
    void (*run)(mli_torch *torch);
} mli_opcode;

static void mli_pickle_fail(mli_torch *torch, const char *what) {
    if (torch->in.failed)
        mli_stop(torch->archive, ML_ERROR_TRUNCATED, "%s is cut short", torch->pickle);
    else
        mli_stop(torch->archive, ML_ERROR_FORMAT, "%s: %s before byte %z", torch->pickle, what,
                 (size_t)(torch->in.p - torch->begin));
}

/* The node with that index, or the one that it refers to. The pointer is valid until the next push. */
static mli_node *mli_node_at(const mli_torch *torch, uint32_t index) {
    mli_node *nodes = (mli_node *)torch->nodes.items;
    return nodes[index].kind == MLI_NODE_REFERENCE ? &nodes[nodes[index].as.i] : &nodes[index];
}

static uint32_t mli_node_index(const mli_torch *torch, const mli_node *node) {
    return (uint32_t)(node - (mli_node *)torch->nodes.items);
}

static uint32_t mli_next_child(const mli_torch *torch, uint32_t child) {
    return ((mli_node *)torch->nodes.items)[child].next; /* of the reference itself, if it is one */
}

/* The first n children; returns how many there are, at most n. */
static int mli_children(const mli_torch *torch, const mli_node *parent, const mli_node **children, int n) {
    int i = 0;
    for (uint32_t child = parent->first; child && i < n; child = mli_next_child(torch, child))
        children[i++] = mli_node_at(torch, child);
    return i;
}

/* Makes a node from the stack, which is no other's child, the last child. */
static void mli_node_adopt(const mli_torch *torch, mli_node *parent, uint32_t child) {
    mli_node *nodes = (mli_node *)torch->nodes.items;
    *(parent->first ? &nodes[parent->last].next : &parent->first) = child;
    parent->last = child;
}

static int mli_text_is(const mli_node *node, const char *text) {
    return mli_is_text(node->as.s, node->length, text);
}

/* An opaque node of that class, without children. */
static mli_node mli_opaque(const char *name, size_t length) {
    mli_node made;
    memset(&made, 0, sizeof made);
    made.kind = MLI_NODE_OPAQUE;
    made.as.s = name;
    made.length = length;
    return made;
}

/* Pushes a new node, zero except for its kind. */
static mli_node *mli_pickle_push(mli_torch *torch, mli_node_kind kind) {
    uint32_t index = (uint32_t)torch->nodes.n; /* fits: a pickle is shorter than 2^31 */
    mli_node *node = (mli_node *)mli_list_add(torch->archive, &torch->nodes, sizeof *node);
    *(uint32_t *)mli_list_add(torch->archive, &torch->stack, sizeof index) = index;
    node->kind = (unsigned char)kind;
    return node;
}

static void mli_pickle_push_node(mli_torch *torch, mli_node node) {
    *mli_pickle_push(torch, MLI_NODE_NOTHING) = node;
}

/* The topmost node, which must not be a mark; the first one after an error. */
static mli_node *mli_pickle_top(mli_torch *torch) {
    size_t n = torch->stack.n;
    mli_node *node = mli_node_at(torch, n ? ((uint32_t *)torch->stack.items)[n - 1] : 0);
    if (n && node->kind != MLI_NODE_MARK) return node;
    mli_pickle_fail(torch, "too little on the stack");
    return mli_node_at(torch, 0);
}

static mli_node *mli_pickle_pop(mli_torch *torch) {
    mli_node *node = mli_pickle_top(torch);
    if (torch->stack.n) torch->stack.n--;
    return node;
}

/* Pops a node that another one may adopt: a reference as such. */
static uint32_t mli_pickle_take(mli_torch *torch) {
    mli_pickle_pop(torch);
    return torch->archive->result ? 0 : ((uint32_t *)torch->stack.items)[torch->stack.n];
}

/* ---- what calling a global would make ---- */

/* Kinds of numbers: in the name of a storage's class ("torch.HalfStorage"), as a dtype ("torch.float16"). */
static const struct mli_dtype {
    const char *storage, *name;
    ml_type type;
    unsigned size; /* bytes; 0: not known */
} mli_dtypes[] = {
    /* clang-format off */
    {"", "", ML_TYPE_NONE, 0}, /* any other */
    {"Float", "float32", ML_F32, 4}, {"Half", "float16", ML_F16, 2}, {"BFloat16", "bfloat16", ML_BF16, 2},
    {"Double", "float64", ML_F64, 8}, {"Long", "int64", ML_I64, 8}, {"Int", "int32", ML_I32, 4},
    {"Short", "int16", ML_I16, 2}, {"Char", "int8", ML_I8, 1}, {"Byte", "uint8", ML_U8, 1},
    {"Bool", "bool", ML_BOOL, 1}, {"Untyped", "", ML_U8, 1}, {"_Untyped", "", ML_U8, 1},
    {"ComplexHalf", "complex32", ML_TYPE_NONE, 4}, {"ComplexFloat", "complex64", ML_TYPE_NONE, 8},
    {"ComplexDouble", "complex128", ML_TYPE_NONE, 16}, {"QInt8", "qint8", ML_TYPE_NONE, 1},
    {"QUInt8", "quint8", ML_TYPE_NONE, 1}, {"QInt32", "qint32", ML_TYPE_NONE, 4},
    {"QUInt4x2", "quint4x2", ML_TYPE_NONE, 1}, {"QUInt2x4", "quint2x4", ML_TYPE_NONE, 1},
    {"", "uint16", ML_TYPE_NONE, 2}, {"", "uint32", ML_TYPE_NONE, 4}, {"", "uint64", ML_TYPE_NONE, 8},
    {"", "float8_e4m3fn", ML_TYPE_NONE, 1}, {"", "float8_e5m2", ML_TYPE_NONE, 1},
    {"", "float8_e4m3fnuz", ML_TYPE_NONE, 1}, {"", "float8_e5m2fnuz", ML_TYPE_NONE, 1},
    {"", "float8_e8m0fnu", ML_TYPE_NONE, 1},
    /* clang-format on */
};

/* What a call makes. Any other global makes an opaque node, and so do these if the arguments are other ones. */
static const struct mli_global {
    const char *name;
    mli_node_kind makes;
    int dtype; /* position of a tensor's dtype among the arguments; 0: its storage has one */
} mli_globals[] = {
    /* clang-format off */
    {"", MLI_NODE_OPAQUE, 0},
    {"collections.OrderedDict", MLI_NODE_DICT, 0},
    {"torch._utils._rebuild_tensor", MLI_NODE_TENSOR, 0}, {"torch._utils._rebuild_tensor_v2", MLI_NODE_TENSOR, 0},
    {"torch._utils._rebuild_tensor_v3", MLI_NODE_TENSOR, 6}, {"torch._utils._rebuild_qtensor", MLI_NODE_TENSOR, 0},
    {"torch._utils._rebuild_parameter", MLI_NODE_REFERENCE, 0},
    {"torch._utils._rebuild_parameter_with_state", MLI_NODE_REFERENCE, 0},
    {"torch._tensor._rebuild_from_type", MLI_NODE_OF_CALL, 0},
    {"torch._tensor._rebuild_from_type_v2", MLI_NODE_OF_CALL, 0},
    {"torch.tensor._rebuild_from_type", MLI_NODE_OF_CALL, 0},
    {"torch.Size", MLI_NODE_REFERENCE, 0}, {"torch.device", MLI_NODE_REFERENCE, 0},
    {"builtins.set", MLI_NODE_REFERENCE, 0}, {"__builtin__.set", MLI_NODE_REFERENCE, 0},
    {"builtins.frozenset", MLI_NODE_REFERENCE, 0}, {"__builtin__.frozenset", MLI_NODE_REFERENCE, 0},
    {"_codecs.encode", MLI_NODE_BYTES, 0},
    {"numpy.core.multiarray.scalar", MLI_NODE_NUMBER, 0}, {"numpy._core.multiarray.scalar", MLI_NODE_NUMBER, 0},
    {"numpy.core.multiarray._reconstruct", MLI_NODE_OF_CLASS, 0},
    {"numpy._core.multiarray._reconstruct", MLI_NODE_OF_CLASS, 0},
    {"copyreg._reconstructor", MLI_NODE_OF_CLASS, 0}, {"copy_reg._reconstructor", MLI_NODE_OF_CLASS, 0},
    {"copyreg.__newobj__", MLI_NODE_OF_CLASS, 0}, {"copy_reg.__newobj__", MLI_NODE_OF_CLASS, 0},
    /* clang-format on */
};

/* A global by the strings of its module and name. A dtype ("torch.float16") is the string "float16". */
static mli_node mli_find_global(mli_torch *torch, const mli_node *module, const mli_node *name) {
    char text[256]; /* as much of it as is shown; what is known is shorter */
    size_t n = 0, row = MLI_COUNT(mli_globals), dtype = MLI_COUNT(mli_dtypes);
    mli_put(text, 160, &n, module->as.s, module->length);
    mli_put(text, 161, &n, ".", 1);
    mli_put(text, sizeof text, &n, name->as.s, name->length);
    while (--row > 0 && strcmp(mli_globals[row].name, text) != 0) continue;
    while (--dtype > 0 && (strncmp(text, "torch.", 6) != 0 || strcmp(mli_dtypes[dtype].name, text + 6) != 0))
        continue;
    mli_node made = mli_opaque(mli_keep_name(torch->archive, text, n), n);
    made.kind = dtype ? MLI_NODE_STRING : MLI_NODE_GLOBAL;
    made.row = (unsigned char)row;
    if (dtype) made.as.s = mli_dtypes[dtype].name;
    if (dtype) made.length = n - 6;
    return made;
}

/* Checks a tensor's arguments: storage, offset, shape, stride, ... Over an opaque node in place of a storage it is
   opaque, too. */
static int mli_makes_tensor(mli_torch *torch, const mli_node *const *arg, int n) {
    int is_storage = n >= 4 && arg[0]->kind == MLI_NODE_STORAGE;
    if (n >= 4 && arg[0]->kind == MLI_NODE_OPAQUE) return 0;
    if (!is_storage || arg[1]->kind != MLI_NODE_INT || arg[2]->kind != MLI_NODE_TUPLE ||
        arg[3]->kind != MLI_NODE_TUPLE)
        mli_pickle_fail(torch, "a tensor with wrong arguments");
    return 1;
}

/* The first n arguments of what an opaque node was made of; returns how many there are, at most n. */
static int mli_opaque_arguments(const mli_torch *torch, const mli_node *node, const mli_node **arg, int n) {
    const mli_node *args;
    if (node->kind != MLI_NODE_OPAQUE || !mli_children(torch, node, &args, 1)) return 0;
    return args->kind == MLI_NODE_TUPLE ? mli_children(torch, args, arg, n) : 0;
}

/* n bytes as a little-endian number; before protocol 3 they are the code points of a text in UTF-8. 0: there are not
   exactly n. */
static int mli_bytes_uint(const mli_torch *torch, const mli_node *node, size_t n, uint64_t *bits) {
    const mli_node *text = node, *arg[1];
    int is_text = mli_opaque_arguments(torch, node, arg, 1) && arg[0]->kind == MLI_NODE_STRING;
    if (is_text) text = arg[0];
    if (!is_text && node->kind != MLI_NODE_BYTES) return 0;
    const unsigned char *p = (const unsigned char *)text->as.s, *end = p + text->length;
    size_t i = 0;
    for (*bits = 0; p < end && i < n; i++) {
        uint64_t c = *p++;
        if (is_text && c >= 0x80) c = p < end ? ((c & 3) << 6 | (*p++ & 0x3f)) : 0;
        *bits |= c << 8 * i;
    }
    return p == end && i == n;
}

/* A scalar of NumPy, made of a dtype ("i8": its kind and its size) and its bytes. If it is not a number, *made stays
   opaque. */
static void mli_numpy_number(const mli_torch *torch, const mli_node *const *arg, int n, mli_node *made) {
    const mli_node *code[1], *part[2], *state[2];
    uint64_t bits;
    if (n < 2 || !mli_opaque_arguments(torch, arg[0], code, 1)) return;
    if (mli_children(torch, arg[0], part, 2) == 2 && mli_children(torch, part[1], state, 2) == 2 &&
        state[1]->kind == MLI_NODE_STRING && mli_text_is(state[1], ">"))
        return; /* big-endian */
    if (code[0]->kind != MLI_NODE_STRING || code[0]->length != 2) return;
    int kind = code[0]->as.s[0], size = code[0]->as.s[1] - '0';
    if ((size != 1 && size != 2 && size != 4 && size != 8) ||
        !mli_bytes_uint(torch, arg[1], (size_t)size, &bits))
        return;
    if (kind != 'i' && kind != 'u' && kind != 'b' && (kind != 'f' || size == 1)) return;
    *made = mli_opaque(NULL, 0);
    made->kind = kind == 'f' ? MLI_NODE_FLOAT : kind == 'b' ? MLI_NODE_BOOL : MLI_NODE_INT;
    uint16_t half = (uint16_t)bits;
    float number = mli_bits_float((uint32_t)bits);
    if (size == 2) mli_dequantize_row(ML_F16, &half, &number, 1);
    if (kind == 'f')
        made->as.f = size == 8 ? mli_double_from_bits(bits) : (double)number;
    else
        made->as.i = kind == 'i' ? mli_signed(bits, size) : (int64_t)MLI_MIN(bits, (uint64_t)INT64_MAX);
}

/* What calling a function (or making an object of a class) with a tuple of arguments makes. */
static mli_node mli_pickle_call(mli_torch *torch, const mli_node *function, const mli_node *args) {
    const mli_node *arg[4];
    int n = mli_children(torch, args, arg, 4);
    mli_node_kind makes = MLI_NODE_OPAQUE;
    mli_node made = mli_opaque(function->as.s, function->length);
    if (args->kind != MLI_NODE_TUPLE) mli_pickle_fail(torch, "arguments that are not a tuple");
    if (function->kind == MLI_NODE_GLOBAL)
        makes = mli_globals[function->row].makes;
    else if (function->kind != MLI_NODE_OPAQUE)
        mli_pickle_fail(torch, "a call of something that is not a function");
    if (torch->archive->result) return mli_opaque("", 0);
    if (makes == MLI_NODE_OF_CALL && n > 2 && arg[0]->kind == MLI_NODE_GLOBAL &&
        mli_globals[arg[0]->row].makes != MLI_NODE_OF_CALL) /* which might never end */
        return mli_pickle_call(torch, arg[0], arg[2]);
    if (makes == MLI_NODE_OF_CLASS && n && arg[0]->kind == MLI_NODE_GLOBAL)
        return mli_opaque(arg[0]->as.s, arg[0]->length);
    if (makes == MLI_NODE_BYTES) return mli_opaque("bytes", 5);
    if (makes == MLI_NODE_NUMBER) mli_numpy_number(torch, arg, n, &made);
    if (makes == MLI_NODE_DICT && (!n || arg[0]->kind == MLI_NODE_LIST)) {
        made.kind = n ? MLI_NODE_PAIRS : MLI_NODE_DICT; /* PAIRS: as Python 2 wrote it */
        made.first = n ? arg[0]->first : 0;
    }
    if (makes == MLI_NODE_REFERENCE && n) {
        made.kind = MLI_NODE_REFERENCE;
        made.as.i = mli_node_index(torch, arg[0]);
    }
    if (makes == MLI_NODE_TENSOR && mli_makes_tensor(torch, arg, n)) {
        made.kind = MLI_NODE_TENSOR;
        made.row = function->row;
        made.first = args->first;
    }
    return made;
}

/* REDUCE and NEWOBJ; NEWOBJ_EX, where a dict of named arguments follows the tuple. */
static void mli_pickle_reduce(mli_torch *torch) {
    uint32_t named = torch->op->n > 2 ? mli_pickle_take(torch) : 0, args = mli_pickle_take(torch);
    const mli_node *function = mli_pickle_pop(torch);
    if (torch->archive->result) return;
    mli_node made = mli_pickle_call(torch, function, mli_node_at(torch, args));
    if (made.kind == MLI_NODE_OPAQUE) mli_node_adopt(torch, &made, args);
    if (made.kind == MLI_NODE_OPAQUE && named) mli_node_adopt(torch, &made, named);
    mli_pickle_push_node(torch, made);
}

/* The row of mli_dtypes of a storage's class, and the length of "Half" in "torch.HalfStorage"; *name becomes its
   beginning, NULL if it is no storage's class. */
static size_t mli_storage_row(const mli_node *type, const char **name, size_t *length) {
    static const char end[] = "Storage";
    size_t row = MLI_COUNT(mli_dtypes), begin = type->length, n = sizeof end - 1;
    *name = NULL;
    *length = 0;
    if (type->kind != MLI_NODE_GLOBAL || !mli_ends_with(type->as.s, type->length, end)) return 0;
    while (begin > 0 && type->as.s[begin - 1] != '.') begin--;
    *name = type->as.s + begin;
    *length = type->length - begin > n ? type->length - begin - n : 0;
    while (--row > 0 && (!*length || !mli_is_text(*name, *length, mli_dtypes[row].storage))) continue;
    return row;
}

/* A persistent id: the description of a storage; in the older format of torch.save a module's class with its source,
   too, ("module", class, file, source). */
static void mli_pickle_storage(mli_torch *torch) {
    const mli_node *id = mli_pickle_pop(torch), *item[5];
    int n = mli_children(torch, id, item, 5), is_tuple = id->kind == MLI_NODE_TUPLE && n > 1;
    mli_node made = mli_opaque("persistent id", 13);
    const char *name = NULL;
    size_t length, row = is_tuple ? mli_storage_row(item[1], &name, &length) : 0;
    if (name) {
        if (n < 5 || item[2]->kind != MLI_NODE_STRING || item[4]->kind != MLI_NODE_INT || item[4]->as.i < 0) {
            mli_pickle_fail(torch, "a storage with wrong arguments");
            return;
        }
        made = mli_opaque(item[1]->as.s, item[1]->length);
        made.kind = MLI_NODE_STORAGE;
        made.row = (unsigned char)row;
        made.first = id->first;
    } else if (is_tuple && item[0]->kind == MLI_NODE_STRING && mli_text_is(item[0], "module")) {
        made.kind = MLI_NODE_REFERENCE;
        made.as.i = mli_node_index(torch, item[1]);
    }
    mli_pickle_push_node(torch, made);
}

/* Gives an object its state. What has no attributes here (the versions noted in an OrderedDict) loses it. */
static void mli_pickle_build(mli_torch *torch) {
    uint32_t state = mli_pickle_take(torch);
    mli_node *object = mli_pickle_top(torch);
    if (!torch->archive->result && object->kind == MLI_NODE_OPAQUE) mli_node_adopt(torch, object, state);
}

/* ---- the other instructions ---- */

static void mli_pickle_unknown(mli_torch *torch) {
    size_t at = (size_t)(torch->in.p - torch->begin) - 1;
    mli_stop(torch->archive, ML_ERROR_UNSUPPORTED, "%s: instruction %d at byte %z is not known",
             torch->pickle, (int)torch->begin[at], at);
}

static uint64_t mli_pickle_operand(mli_torch *torch) { return mli_read_uint(&torch->in, torch->op->n); }
static void mli_pickle_skip(mli_torch *torch) { mli_pickle_operand(torch); }
static void mli_pickle_discard(mli_torch *torch) { mli_pickle_pop(torch); }

static void mli_pickle_protocol(mli_torch *torch) {
    if (mli_pickle_operand(torch) > 5) mli_pickle_fail(torch, "a protocol above 5");
}

static void mli_pickle_constant(mli_torch *torch) {
    mli_pickle_push(torch, (mli_node_kind)torch->op->kind)->as.i = torch->op->n;
}

static void mli_pickle_int(mli_torch *torch) {
    uint64_t bits = mli_pickle_operand(torch);
    mli_pickle_push(torch, MLI_NODE_INT)->as.i = torch->op->n < 4 ? (int64_t)bits : mli_signed(bits, 4);
}

/* Two's complement of any length. Beyond 64 bits (seeds of random generators) it is opaque. */
static void mli_pickle_long(mli_torch *torch) {
    uint64_t length = mli_pickle_operand(torch);
    int is_short = length <= 8, n = is_short ? (int)length : 0;
    uint64_t bits = mli_read_uint(&torch->in, n);
    mli_read_bytes(&torch->in, length - (uint64_t)n);
    if (is_short)
        mli_pickle_push(torch, MLI_NODE_INT)->as.i = n ? mli_signed(bits, n) : 0;
    else
        mli_pickle_push_node(torch, mli_opaque("int", 3));
}

static void mli_pickle_float(mli_torch *torch) {
    const unsigned char *p = mli_read_bytes(&torch->in, 8);
    uint64_t bits = 0;
    for (int i = 0; p && i < 8; i++) bits = bits << 8 | p[i]; /* the only big-endian number */
    mli_pickle_push(torch, MLI_NODE_FLOAT)->as.f = mli_double_from_bits(bits);
}

/* A string, or bytes: the contents of NumPy's arrays. */
static void mli_pickle_text(mli_torch *torch) {
    uint64_t length = mli_pickle_operand(torch);
    const char *s = (const char *)mli_read_bytes(&torch->in, length);
    mli_node made = mli_opaque(s, s ? (size_t)length : 0);
    made.kind = torch->op->kind;
    mli_pickle_push_node(torch, made);
}

/* An object of a class that is registered under a number (copyreg.add_extension). */
static void mli_pickle_extension(mli_torch *torch) {
    mli_pickle_operand(torch);
    mli_pickle_push_node(torch, mli_opaque("extension", 9));
}

/* Where the instruction's items begin in the stack. */
static size_t mli_pickle_items(mli_torch *torch) {
    int n = torch->op->n;
    if (n >= 0 && (size_t)n <= torch->stack.n) return torch->stack.n - (size_t)n;
    for (size_t i = n < 0 ? torch->stack.n : 0; i > 0; i--)
        if (mli_node_at(torch, ((uint32_t *)torch->stack.items)[i - 1])->kind == MLI_NODE_MARK) return i;
    mli_pickle_fail(torch, n < 0 ? "no mark on the stack" : "too little on the stack");
    return torch->stack.n;
}

/* Moves the items, and removes the mark. */
static void mli_pickle_gather(mli_torch *torch, mli_node *parent, size_t begin) {
    const uint32_t *stack = (const uint32_t *)torch->stack.items;
    mli_node *nodes = (mli_node *)torch->nodes.items;
    if (parent->kind == MLI_NODE_DICT && (torch->stack.n - begin) % 2) mli_pickle_fail(torch, "an odd dict");
    for (size_t i = begin; i < torch->stack.n; i++) {
        if (nodes[stack[i]].kind == MLI_NODE_MARK) mli_pickle_fail(torch, "a mark among the items");
        mli_node_adopt(torch, parent, stack[i]);
    }
    torch->stack.n = begin - (torch->op->n < 0);
}

/* A container of the items takes their place. */
static void mli_pickle_collect(mli_torch *torch) {
    size_t begin = mli_pickle_items(torch);
    mli_node made = mli_opaque(NULL, 0);
    made.kind = torch->op->kind;
    if (torch->archive->result) return;
    mli_pickle_gather(torch, &made, begin);
    mli_pickle_push_node(torch, made);
}

/* Appends the items to the container below them. What is opaque keeps them in containers among its children. */
static void mli_pickle_extend(mli_torch *torch) {
    size_t begin = mli_pickle_items(torch), below = (size_t)(torch->op->n < 0) + 1;
    uint32_t index = begin >= below ? ((uint32_t *)torch->stack.items)[begin - below] : 0;
    mli_node *parent = mli_node_at(torch, index);
    if (torch->archive->result) return;
    if (parent->kind == MLI_NODE_OPAQUE) {
        mli_node *last =
            &((mli_node *)torch->nodes.items)[parent->last]; /* no reference's: those are others' */
        if (parent->last && last->kind == torch->op->kind) {
            parent = last;
        } else {
            mli_pickle_collect(torch);
            if (torch->archive->result) return;
            mli_node_adopt(torch, mli_node_at(torch, index), mli_pickle_take(torch));
            return;
        }
    }
    if (parent->kind != torch->op->kind)
        mli_pickle_fail(torch, "items for something that takes none");
    else
        mli_pickle_gather(torch, parent, begin);
}

/* Objects of the classes of Python 2: made of what is above the mark, (class, arguments); or of a global. */
static void mli_pickle_object(mli_torch *torch) {
    size_t begin = mli_pickle_items(torch);
    if (torch->archive->result) return;
    const uint32_t *stack = (const uint32_t *)torch->stack.items;
    mli_node made = mli_opaque("object", 6);
    if (begin < torch->stack.n && mli_node_at(torch, stack[begin])->kind == MLI_NODE_GLOBAL)
        made = mli_opaque(mli_node_at(torch, stack[begin])->as.s, mli_node_at(torch, stack[begin])->length);
    torch->stack.n = begin - 1;
    if (torch->op->kind != MLI_NODE_NOTHING) mli_pickle_push_node(torch, made); /* POP_MARK only discards */
}

/* The topmost node once more. */
static void mli_pickle_duplicate(mli_torch *torch) {
    uint32_t index = mli_node_index(torch, mli_pickle_top(torch));
    mli_pickle_push(torch, MLI_NODE_REFERENCE)->as.i = index;
}

/* ---- instructions with lines of text (protocols 0 and 1) ---- */

/* A line of text, without its newline. */
static mli_node mli_pickle_line(mli_torch *torch) {
    mli_reader *in = &torch->in;
    mli_node line = mli_opaque((const char *)in->p, 0);
    line.kind = MLI_NODE_STRING;
    const char *end = mli_left(in) ? (const char *)memchr(line.as.s, '\n', mli_left(in)) : NULL;
    if (end) line.length = (size_t)(end - line.as.s);
    mli_read_bytes(in, end ? line.length + 1 : UINT64_MAX);
    return line;
}

/* A line's decimal number, if it is one that fits. */
static int mli_line_int(const mli_node *line, int64_t *number) {
    const char *p = line->as.s, *end = p + line->length;
    uint64_t value = 0;
    int is_negative = p < end && *p == '-';
    if (p < end && end[-1] == 'L') end--;
    p += is_negative;
    if (p == end) return 0;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9' || value > ((uint64_t)INT64_MAX - 9) / 10) return 0;
        value = value * 10 + (uint64_t)(*p - '0');
    }
    *number = is_negative ? -(int64_t)value : (int64_t)value;
    return 1;
}

/* INT, where 00 and 01 are false and true; LONG. */
static void mli_pickle_int_line(mli_torch *torch) {
    mli_node line = mli_pickle_line(torch), made = mli_opaque("int", 3);
    int64_t number;
    if (torch->in.failed) return;
    if (mli_line_int(&line, &number)) {
        int is_bool = line.length == 2 && line.as.s[0] == '0';
        made.kind = is_bool ? MLI_NODE_BOOL : MLI_NODE_INT;
        made.as.i = is_bool ? number != 0 : number;
    }
    mli_pickle_push_node(torch, made);
}

/* FLOAT, as Python prints it. */
static void mli_pickle_float_line(mli_torch *torch) {
    mli_node line = mli_pickle_line(torch);
    if (torch->in.failed) return;
    const unsigned char *begin = (const unsigned char *)line.as.s;
    mli_json json = {mli_reader_at(begin, 0, line.length), begin, torch->archive};
    int64_t i;
    double f = 0;
    if (mli_text_is(&line, "nan"))
        f = mli_double_from_bits(0x7ff8000000000000u);
    else if (mli_text_is(&line, "inf") || mli_text_is(&line, "-inf"))
        f = mli_double_from_bits(*line.as.s == '-' ? 0xfff0000000000000u : 0x7ff0000000000000u);
    else
        mli_json_number(&json, &i, &f);
    mli_pickle_push(torch, MLI_NODE_FLOAT)->as.f = f;
}

/* STRING, in quotes; UNICODE. Escapes stay as they are. */
static void mli_pickle_text_line(mli_torch *torch) {
    mli_node line = mli_pickle_line(torch);
    if (torch->in.failed) return;
    if (torch->op->kind == MLI_NODE_NOTHING) line = mli_opaque("persistent id", 13); /* PERSID */
    if (torch->op->n > 0 && line.length >= 2) {
        line.as.s++;
        line.length -= 2;
    }
    mli_pickle_push_node(torch, line);
}

/* ---- the memo, and globals ---- */

/* The number under which the memo keeps a node: the operand or, without one, how many there were before. */
static uint64_t mli_pickle_memo_index(mli_torch *torch) {
    int64_t number = -1; /* if the line is not a number */
    if (torch->op->n > 0) return mli_pickle_operand(torch);
    if (torch->op->n == 0) return torch->n_put;
    mli_node line = mli_pickle_line(torch);
    if (!torch->in.failed) mli_line_int(&line, &number);
    return (uint64_t)number;
}

/* Remembers the topmost node. */
static void mli_pickle_put(mli_torch *torch) {
    uint64_t index = mli_pickle_memo_index(torch);
    const mli_node *node = mli_pickle_top(torch);
    if (index >= (uint64_t)(torch->in.end - torch->begin)) mli_pickle_fail(torch, "memo index out of range");
    while (torch->memo.n <= index && !torch->archive->result)
        mli_list_add(torch->archive, &torch->memo, sizeof(uint32_t));
    if (torch->archive->result) return;
    uint32_t *slot = (uint32_t *)torch->memo.items + index;
    torch->n_put += !*slot;
    *slot = mli_node_index(torch, node);
}

static void mli_pickle_get(mli_torch *torch) {
    uint64_t index = mli_pickle_memo_index(torch);
    uint32_t node = index < torch->memo.n ? ((uint32_t *)torch->memo.items)[index] : 0;
    if (!node) mli_pickle_fail(torch, "a get of what was not put");
    mli_pickle_push(torch, MLI_NODE_REFERENCE)->as.i = node;
}

/* A global's module and name are two lines of the pickle, ... */
static void mli_pickle_global(mli_torch *torch) {
    mli_node module = mli_pickle_line(torch), name = mli_pickle_line(torch);
    if (torch->in.failed) return;
    mli_node global = mli_find_global(torch, &module, &name);
    if (torch->op->n < 0) { /* INST: an object of it, with the arguments above the mark */
        size_t begin = mli_pickle_items(torch);
        if (torch->archive->result) return;
        torch->stack.n = begin - 1;
        global = mli_opaque(global.as.s, global.length);
    }
    mli_pickle_push_node(torch, global);
}

/* ... or two strings on the stack. */
static void mli_pickle_stack_global(mli_torch *torch) {
    const mli_node *name = mli_pickle_pop(torch), *module = mli_pickle_pop(torch);
    if (module->kind != MLI_NODE_STRING || name->kind != MLI_NODE_STRING)
        mli_pickle_fail(torch, "a global without a name");
    else
        mli_pickle_push_node(torch, mli_find_global(torch, module, name));
}

/* All instructions except STOP, '.', and NEXT_BUFFER, whose bytes are not in the pickle. */
static const mli_opcode mli_opcodes[] = {
    /* clang-format off */
    {0, MLI_NODE_NOTHING, 0, mli_pickle_unknown}, /* any other */
    {0x80, MLI_NODE_NOTHING, 1, mli_pickle_protocol}, {0x95, MLI_NODE_NOTHING, 8, mli_pickle_skip}, /* PROTO, FRAME */
    {0x98, MLI_NODE_NOTHING, 0, mli_pickle_skip}, /* READONLY_BUFFER */
    {'(', MLI_NODE_MARK, 0, mli_pickle_constant}, {'N', MLI_NODE_NOTHING, 0, mli_pickle_constant}, /* MARK, NONE */
    {0x88, MLI_NODE_BOOL, 1, mli_pickle_constant}, {0x89, MLI_NODE_BOOL, 0, mli_pickle_constant}, /* NEWTRUE, ... */
    /* BININT1, BININT2, BININT, LONG1, LONG4, BINFLOAT; INT, LONG, FLOAT */
    {'K', MLI_NODE_INT, 1, mli_pickle_int}, {'M', MLI_NODE_INT, 2, mli_pickle_int},
    {'J', MLI_NODE_INT, 4, mli_pickle_int}, {0x8a, MLI_NODE_INT, 1, mli_pickle_long},
    {0x8b, MLI_NODE_INT, 4, mli_pickle_long}, {'G', MLI_NODE_FLOAT, 8, mli_pickle_float},
    {'I', MLI_NODE_INT, -1, mli_pickle_int_line}, {'L', MLI_NODE_INT, -1, mli_pickle_int_line},
    {'F', MLI_NODE_FLOAT, -1, mli_pickle_float_line},
    /* SHORT_BINSTRING, BINSTRING, BINUNICODE, SHORT_BINUNICODE, BINUNICODE8; STRING, UNICODE */
    {'U', MLI_NODE_STRING, 1, mli_pickle_text}, {'T', MLI_NODE_STRING, 4, mli_pickle_text},
    {'X', MLI_NODE_STRING, 4, mli_pickle_text}, {0x8c, MLI_NODE_STRING, 1, mli_pickle_text},
    {0x8d, MLI_NODE_STRING, 8, mli_pickle_text}, {'S', MLI_NODE_STRING, 1, mli_pickle_text_line},
    {'V', MLI_NODE_STRING, -1, mli_pickle_text_line},
    /* SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8; EXT1, EXT2, EXT4 */
    {'C', MLI_NODE_BYTES, 1, mli_pickle_text}, {'B', MLI_NODE_BYTES, 4, mli_pickle_text},
    {0x8e, MLI_NODE_BYTES, 8, mli_pickle_text}, {0x96, MLI_NODE_BYTES, 8, mli_pickle_text},
    {0x82, MLI_NODE_OPAQUE, 1, mli_pickle_extension}, {0x83, MLI_NODE_OPAQUE, 2, mli_pickle_extension},
    {0x84, MLI_NODE_OPAQUE, 4, mli_pickle_extension},
    /* EMPTY_DICT, EMPTY_LIST, EMPTY_SET, EMPTY_TUPLE; TUPLE1, TUPLE2, TUPLE3; TUPLE, LIST, FROZENSET, DICT */
    {'}', MLI_NODE_DICT, 0, mli_pickle_collect}, {']', MLI_NODE_LIST, 0, mli_pickle_collect},
    {0x8f, MLI_NODE_LIST, 0, mli_pickle_collect}, {')', MLI_NODE_TUPLE, 0, mli_pickle_collect},
    {0x85, MLI_NODE_TUPLE, 1, mli_pickle_collect}, {0x86, MLI_NODE_TUPLE, 2, mli_pickle_collect},
    {0x87, MLI_NODE_TUPLE, 3, mli_pickle_collect}, {'t', MLI_NODE_TUPLE, -1, mli_pickle_collect},
    {'l', MLI_NODE_LIST, -1, mli_pickle_collect}, {0x91, MLI_NODE_LIST, -1, mli_pickle_collect},
    {'d', MLI_NODE_DICT, -1, mli_pickle_collect},
    /* APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS */
    {'a', MLI_NODE_LIST, 1, mli_pickle_extend}, {'e', MLI_NODE_LIST, -1, mli_pickle_extend},
    {0x90, MLI_NODE_LIST, -1, mli_pickle_extend}, {'s', MLI_NODE_DICT, 2, mli_pickle_extend},
    {'u', MLI_NODE_DICT, -1, mli_pickle_extend},
    /* POP, POP_MARK, DUP; BINPUT, LONG_BINPUT, MEMOIZE, PUT; BINGET, LONG_BINGET, GET */
    {'0', MLI_NODE_NOTHING, 1, mli_pickle_discard}, {'1', MLI_NODE_NOTHING, -1, mli_pickle_object},
    {'2', MLI_NODE_REFERENCE, 0, mli_pickle_duplicate}, {'q', MLI_NODE_NOTHING, 1, mli_pickle_put},
    {'r', MLI_NODE_NOTHING, 4, mli_pickle_put}, {0x94, MLI_NODE_NOTHING, 0, mli_pickle_put},
    {'p', MLI_NODE_NOTHING, -1, mli_pickle_put}, {'h', MLI_NODE_REFERENCE, 1, mli_pickle_get},
    {'j', MLI_NODE_REFERENCE, 4, mli_pickle_get}, {'g', MLI_NODE_REFERENCE, -1, mli_pickle_get},
    /* GLOBAL, STACK_GLOBAL; REDUCE, NEWOBJ, NEWOBJ_EX, INST, OBJ; BUILD; BINPERSID, PERSID */
    {'c', MLI_NODE_GLOBAL, 0, mli_pickle_global}, {0x93, MLI_NODE_GLOBAL, 2, mli_pickle_stack_global},
    {'R', MLI_NODE_OPAQUE, 2, mli_pickle_reduce}, {0x81, MLI_NODE_OPAQUE, 2, mli_pickle_reduce},
    {0x92, MLI_NODE_OPAQUE, 3, mli_pickle_reduce}, {'i', MLI_NODE_OPAQUE, -1, mli_pickle_global},
    {'o', MLI_NODE_OPAQUE, -1, mli_pickle_object}, {'b', MLI_NODE_OPAQUE, 1, mli_pickle_build},
    {'Q', MLI_NODE_STORAGE, 1, mli_pickle_storage}, {'P', MLI_NODE_NOTHING, -1, mli_pickle_text_line},
    /* clang-format on */
};

/* Runs the pickle at the beginning of the bytes to its STOP. Returns the index of what it leaves; 0: an error. */
static uint32_t mli_pickle_run(mli_torch *torch, const unsigned char *data, size_t size) {
    unsigned char row[256] = {0}; /* of each code in the table */
    for (size_t i = 1; i < MLI_COUNT(mli_opcodes); i++) row[mli_opcodes[i].code] = (unsigned char)i;
    if (size > 0x7fffffff)
        mli_stop(torch->archive, ML_ERROR_UNSUPPORTED, "%s is longer than 2 GiB", torch->pickle);
    torch->begin = data;
    torch->in = mli_reader_at(data, 0, size);
    torch->stack.n = torch->memo.n = torch->n_put = 0;
    if (!torch->nodes.n) mli_list_add(torch->archive, &torch->nodes, sizeof(mli_node));
    for (unsigned code; !torch->archive->result && (code = mli_read_u8(&torch->in)) != '.';) {
        torch->op = &mli_opcodes[row[code]];
        if (!torch->in.failed) torch->op->run(torch);
        if (torch->in.failed) mli_pickle_fail(torch, "no end");
    }
    const mli_node *root = torch->archive->result ? NULL : mli_pickle_pop(torch);
    return torch->archive->result ? 0 : mli_node_index(torch, root);
}

/* ---- tensors ---- */

/* The entry PREFIX + folder + key, or NULL. */
static const mli_range *mli_torch_entry(const mli_torch *torch, const char *folder, const char *key,
                                        size_t key_length) {
    char name[512];
    size_t n = torch->prefix_length, folder_length = strlen(folder);
    if (n >= sizeof name - folder_length || key_length >= sizeof name - folder_length - n) return NULL;
    if (n) memcpy(name, torch->prefix, n);
    memcpy(name + n, folder, folder_length);
    if (key_length) memcpy(name + n + folder_length, key, key_length);
    n += folder_length + key_length;
    const mli_named *found = mli_find_named(torch->entries, torch->n_entries, name, n);
    return found ? &torch->ranges[found->index] : NULL;
}

/* Refuses an entry whose bytes are not the data itself. */
static void mli_torch_need(mli_torch *torch, const mli_range *range, const char *what) {
    if (range->flags & 1)
        mli_stop(torch->archive, ML_ERROR_UNSUPPORTED, "the zip entry of %s is encrypted", what);
    if (range->method)
        mli_stop(torch->archive, ML_ERROR_UNSUPPORTED,
                 "the zip entry of %s is compressed (method %d), as torch.save never does", what,
                 range->method);
}

/* The tuples of shape and stride. */
static void mli_torch_shape(mli_torch *torch, const mli_node *shape, const mli_node *stride,
                            ml_array *array) {
    const mli_node *size[ML_MAX_DIMS], *step[ML_MAX_DIMS];
    int n = mli_children(torch, shape, size, ML_MAX_DIMS);
    int is_right = n == mli_children(torch, stride, step, ML_MAX_DIMS);
    for (int i = 0; i < n && is_right; i++) {
        array->shape[i] = size[i]->as.i;
        array->stride[i] = step[i]->as.i;
        is_right = size[i]->kind == MLI_NODE_INT && step[i]->kind == MLI_NODE_INT && array->shape[i] >= 0 &&
                   array->stride[i] >= 0;
    }
    if (!is_right)
        mli_stop(torch->archive, ML_ERROR_FORMAT, "tensor %s: its shape or stride is wrong", array->name);
    array->n_dims = torch->archive->result ? 0 : n;
}

/* Checks that the elements are inside a storage of n numbers, the last one being at offset + the sum of (shape - 1) *
   stride, and whether they are in row-major order without gaps. */
static void mli_torch_extent(mli_torch *torch, ml_array *array, int64_t offset, int64_t n) {
    ml_array dense = *array;
    mli_set_contiguous(torch->archive, &dense);
    int has_numbers = 1;
    for (int i = 0; i < array->n_dims; i++) has_numbers = has_numbers && array->shape[i] > 0;
    int64_t left = n - has_numbers; /* numbers that may follow the first element */
    int fits = offset >= 0 && offset <= left;
    left -= fits ? offset : left;
    array->is_contiguous = 1;
    for (int i = 0; i < array->n_dims; i++) {
        int64_t steps = has_numbers ? array->shape[i] - 1 : 0;
        if (!steps) array->stride[i] = dense.stride[i]; /* it is never used */
        if (steps && array->stride[i] > left / steps)
            fits = 0;
        else
            left -= steps * array->stride[i];
        if (array->stride[i] != dense.stride[i]) array->is_contiguous = 0;
    }
    if (!fits)
        mli_stop(torch->archive, ML_ERROR_FORMAT, "tensor %s reaches outside of its storage of %l numbers",
                 array->name, n);
}

/* Sets the array's type, that of the storage or of a dtype among the arguments. Returns its row in mli_dtypes. */
static size_t mli_torch_type(mli_torch *torch, const mli_node *tensor, const mli_node *const *arg, int n,
                             ml_array *array) {
    const mli_node *dtype = NULL, *item[2];
    int at = mli_globals[tensor->row].dtype;
    size_t row = arg[0]->row, length;
    const char *name;
    if (at && n > at && (arg[at]->kind == MLI_NODE_STRING || arg[at]->kind == MLI_NODE_GLOBAL))
        dtype = arg[at];
    if (dtype) {
        size_t skip = dtype->length > 6 && mli_is_text(dtype->as.s, 6, "torch.") ? 6 : 0;
        name = dtype->as.s + skip;
        length = dtype->length - skip;
        for (row = MLI_COUNT(mli_dtypes) - 1; row > 0 && !mli_is_text(name, length, mli_dtypes[row].name);)
            row--;
    } else {
        mli_children(torch, arg[0], item, 2);
        mli_storage_row(item[1], &name, &length);
    }
    ml_type type = mli_dtypes[row].type;
    mli_set_type(array, type, type ? NULL : mli_keep_name(torch->archive, name, length));
    return row;
}

/* Whether a tensor's numbers are other ones than those in its storage: conjugates or negatives. That is among its few
   properties, if it has any. */
static int mli_torch_is_changed(const mli_torch *torch, const mli_node *const *arg, int n) {
    const mli_node *items[16];
    int n_items = n > 6 && arg[6]->kind == MLI_NODE_DICT ? mli_children(torch, arg[6], items, 16) : 0;
    for (int i = 0; i < n_items; i += 2)
        if (items[i]->kind == MLI_NODE_STRING &&
            (mli_text_is(items[i], "neg") || mli_text_is(items[i], "conj")))
            return 1;
    return 0;
}

/* The older format's view of a storage, (key, offset, size): moves *begin, and sets its number of elements. */
static void mli_torch_view(mli_torch *torch, const mli_node *view, const char *name, size_t item_size,
                           const unsigned char **begin, int64_t *n) {
    const mli_node *item[3];
    int is_right = mli_children(torch, view, item, 3) == 3 && item[1]->kind == MLI_NODE_INT &&
                   item[2]->kind == MLI_NODE_INT;
    int64_t offset = is_right ? item[1]->as.i : -1, size = is_right ? item[2]->as.i : -1;
    if (offset < 0 || size < 0 || offset > *n || size > *n - offset) {
        mli_stop(torch->archive, ML_ERROR_FORMAT, "tensor %s: the view that is its storage is wrong", name);
        return;
    }
    *begin += (size_t)offset * item_size;
    *n = size;
}

/* The bytes of the storage of a tensor of that name, and its number of elements *n. */
static const unsigned char *mli_torch_storage(mli_torch *torch, const mli_node *storage, const char *name,
                                              int64_t *n) {
    mli_archive *archive = torch->archive;
    const mli_node *item[6];
    int n_items = mli_children(torch, storage, item, 6);
    size_t item_size = mli_dtypes[storage->row].size;
    const mli_range *range = mli_torch_entry(torch, torch->folder, item[2]->as.s, item[2]->length);
    if (!range) {
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its storage is not in the file", name);
        return archive->data;
    }
    const unsigned char *begin = archive->data + range->begin;
    mli_torch_need(torch, range, name);
    if (item_size && (uint64_t)*n > range->size / item_size)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its storage of %l numbers has %z bytes", name, *n,
                 range->size);
    else if (n_items == 6 && item[5]->kind == MLI_NODE_TUPLE)
        mli_torch_view(torch, item[5], name, item_size, &begin, n);
    return begin;
}

static void mli_torch_opaque(mli_torch *torch, const mli_node *node);

static void mli_torch_tensor(mli_torch *torch, const mli_node *tensor) {
    mli_archive *archive = torch->archive;
    const mli_node *arg[7], *item[5], *last[ML_MAX_DIMS + 1];
    int n_args = mli_children(torch, tensor, arg, 7); /* see mli_makes_tensor and mli_pickle_storage */
    mli_children(torch, arg[0], item, 5);
    if (mli_children(torch, arg[2], last, ML_MAX_DIMS + 1) > ML_MAX_DIMS) {
        mli_torch_opaque(torch, tensor);
        return;
    }
    int64_t n = item[4]->as.i, offset = arg[1]->as.i;
    size_t item_size = mli_dtypes[arg[0]->row].size;
    ml_array *array = mli_add_array(archive, archive->path, archive->path_length);
    size_t size = mli_dtypes[mli_torch_type(torch, tensor, arg, n_args, array)].size;
    const unsigned char *begin = mli_torch_storage(torch, arg[0], array->name, &n);
    mli_torch_shape(torch, arg[2], arg[3], array);
    if (archive->result) return;
    if (size && !item_size) /* a dtype was given, but where such a storage ends is not known */
        mli_set_type(array, ML_TYPE_NONE, "of an unknown storage");
    if (size && item_size) { /* which differ where a dtype was given */
        mli_torch_extent(torch, array, offset, n * (int64_t)item_size / (int64_t)size);
        begin += (size_t)(archive->result ? 0 : offset) * size;
    } else {
        mli_set_contiguous(archive, array);
    }
    array->data = begin;
    if (mli_torch_is_changed(torch, arg, n_args)) mli_set_type(array, ML_TYPE_NONE, "negative or conjugate");
}

/* ---- walking the tree ---- */

/* A container that the walk is in. */
typedef struct mli_frame {
    uint32_t node, child; /* the next one; 0: none is left */
    size_t path_length;   /* of the names of its children, without their own */
    int64_t i;            /* children so far */
    int is_object;        /* its children are attributes of something opaque, or its arguments */
    int is_again;         /* it was walked before */
} mli_frame;

/* Something that is only named. */
static void mli_torch_opaque(mli_torch *torch, const mli_node *node) {
    mli_archive *archive = torch->archive;
    ml_value *value = mli_add_value(archive, archive->path, archive->path_length, ML_VALUE_OPAQUE);
    value->s = node->kind == MLI_NODE_BYTES ? "bytes" : node->as.s;
    value->length = node->kind == MLI_NODE_BYTES ? 5 : node->length;
}

static void mli_torch_scalar(mli_torch *torch, const mli_node *node) {
    static const ml_value_kind kinds[4] = {ML_VALUE_INT, ML_VALUE_BOOL, ML_VALUE_FLOAT, ML_VALUE_STRING};
    mli_archive *archive = torch->archive;
    ml_value *value =
        mli_add_value(archive, archive->path, archive->path_length, kinds[node->kind - MLI_NODE_INT]);
    value->length = node->length;
    if (value->kind == ML_VALUE_STRING)
        value->s = node->as.s; /* in the file, or in mli_dtypes */
    else if (value->kind == ML_VALUE_FLOAT)
        value->f = node->as.f;
    else
        mli_set_int(value, node->as.i);
}

/* Enters a container, unless it is in itself. One that occurs in many places is walked again, but all of these walks
   together no longer than the first ones: otherwise a small pickle could double at every level. */
static void mli_torch_enter(mli_torch *torch, mli_node *node, int is_object) {
    if (node->is_in || !node->first || (node->was_in && !torch->visits)) return;
    mli_frame frame = {
        mli_node_index(torch, node), node->first, torch->archive->path_length, 0, is_object, node->was_in};
    *(mli_frame *)mli_list_add(torch->archive, &torch->frames, sizeof frame) = frame;
    node->is_in = node->was_in = 1;
}

static void mli_torch_visit(mli_torch *torch, mli_node *node) {
    switch (node->kind) {
    case MLI_NODE_NOTHING: break;
    case MLI_NODE_TENSOR: mli_torch_tensor(torch, node); break;
    case MLI_NODE_DICT:
    case MLI_NODE_PAIRS:
    case MLI_NODE_LIST:
    case MLI_NODE_TUPLE: mli_torch_enter(torch, node, 0); break;
    case MLI_NODE_INT:
    case MLI_NODE_BOOL:
    case MLI_NODE_FLOAT:
    case MLI_NODE_STRING: mli_torch_scalar(torch, node); break;
    default:
        mli_torch_opaque(torch, node);
        if (node->kind == MLI_NODE_OPAQUE) mli_torch_enter(torch, node, 0);
        break;
    }
}

/* Appends a name to the path, or "#" and a number where that cannot be. Returns 0 if there is no room. */
static int mli_torch_push(mli_torch *torch, const char *name, size_t length, int64_t i) {
    mli_archive *archive = torch->archive;
    char number[24];
    size_t room = MLI_PATH_SIZE - 1 - archive->path_length;
    if (!name || length + 1 > room || memchr(name, 0, length)) {
        mli_format(number, sizeof number, "#%l", i);
        name = number;
        length = strlen(number);
    }
    if (length + 1 > room) return 0;
    mli_path_push(archive, name, length);
    return 1;
}

static int mli_torch_push_int(mli_torch *torch, int64_t number, int64_t i) {
    char text[24];
    mli_format(text, sizeof text, "%l", number);
    return mli_torch_push(torch, text, strlen(text), i);
}

static int mli_torch_push_key(mli_torch *torch, const mli_node *key, int64_t i) {
    int is_text = key->kind == MLI_NODE_STRING || key->kind == MLI_NODE_GLOBAL;
    if (key->kind == MLI_NODE_INT || key->kind == MLI_NODE_BOOL)
        return mli_torch_push_int(torch, key->as.i, i);
    return mli_torch_push(torch, is_text ? key->as.s : NULL, key->length, i);
}

/* Whether a module keeps its parameters, buffers or modules under that key: a state dict names them without it. */
static int mli_is_module_part(const mli_node *key, const mli_node *value) {
    int is_dict =
        value->kind == MLI_NODE_DICT || value->kind == MLI_NODE_PAIRS || value->kind == MLI_NODE_OPAQUE;
    return is_dict && key->kind == MLI_NODE_STRING &&
           (mli_text_is(key, "_parameters") || mli_text_is(key, "_buffers") || mli_text_is(key, "_modules"));
}

/* The next child of the container that the walk is in. What an opaque node holds are containers, whose items are its
   own: they add nothing to the path. Of its arguments these are the dicts. */
static void mli_torch_step(mli_torch *torch, mli_frame *frame) {
    uint32_t key = frame->child, child = key;
    int64_t i = frame->i++;
    int is_object = frame->is_object, kind = mli_node_at(torch, frame->node)->kind;
    if (kind == MLI_NODE_DICT) child = mli_next_child(torch, key); /* children come in pairs */
    frame->child = mli_next_child(torch, child);
    torch->visits -= (size_t)frame->is_again;
    mli_node *node = mli_node_at(torch, child); /* no frame is used below: there may be a new one */
    switch (kind) {
    case MLI_NODE_OPAQUE:
        if (node->kind == MLI_NODE_DICT || node->kind == MLI_NODE_OPAQUE || node->kind == MLI_NODE_TUPLE ||
            node->kind == MLI_NODE_LIST)
            mli_torch_enter(torch, node, node->kind != MLI_NODE_LIST);
        break;
    case MLI_NODE_DICT:
        if (is_object && mli_is_module_part(mli_node_at(torch, key), node))
            mli_torch_enter(torch, node, 0);
        else if (mli_torch_push_key(torch, mli_node_at(torch, key), i))
            mli_torch_visit(torch, node);
        break;
    case MLI_NODE_PAIRS:
        if ((node->kind == MLI_NODE_LIST || node->kind == MLI_NODE_TUPLE) && node->first != node->last &&
            mli_torch_push_key(torch, mli_node_at(torch, node->first), i))
            mli_torch_visit(torch, mli_node_at(torch, mli_next_child(torch, node->first)));
        break;
    default:
        if (is_object && node->kind == MLI_NODE_DICT)
            mli_torch_enter(torch, node, 1);
        else if (!is_object && mli_torch_push_int(torch, i, i))
            mli_torch_visit(torch, node);
    }
}

/* Adds the tensors and scalars in a node. A pickle may be nested deeper than the C stack. */
static void mli_torch_walk(mli_torch *torch, uint32_t root) {
    mli_archive *archive = torch->archive;
    archive->path_length = 0;
    mli_torch_visit(torch, mli_node_at(torch, root));
    while (torch->frames.n && !archive->result) {
        mli_frame *frame = (mli_frame *)torch->frames.items + torch->frames.n - 1;
        archive->path_length = frame->path_length;
        if (frame->child && (!frame->is_again || torch->visits)) {
            mli_torch_step(torch, frame);
        } else {
            mli_node_at(torch, frame->node)->is_in = 0;
            torch->frames.n--;
        }
    }
    archive->path_length = 0;
}

/* ---- what is missing from a file that is cut short ---- */

/* Bytes of the storages in the pickle. torch.save numbers them as it meets them: one met again is recognized. */
static uint64_t mli_torch_storage_bytes(const mli_torch *torch) {
    const mli_node *node = (const mli_node *)torch->nodes.items, *item[5];
    uint64_t total = 0;
    int64_t n = 0;
    for (const mli_node *end = node + torch->nodes.n; node < end; node++) {
        char key[24]; /* of the next one */
        size_t length = 0;
        mli_put_int(key, sizeof key, &length, n);
        if (node->kind != MLI_NODE_STORAGE) continue;
        mli_children(torch, node, item, 5);
        if (mli_compare_text(item[2]->as.s, item[2]->length, key, length) != 0) continue;
        if (item[4]->as.i > INT64_MAX / 16 || total > INT64_MAX / 2) return 0;
        total += (uint64_t)item[4]->as.i * mli_dtypes[node->row].size;
        n++;
    }
    return total;
}

/* A zip file without a directory at its end. Its local headers tell in which entry it stops; and the pickle, which is
   its first entry, a lower bound of the whole file's size, unless it is cut short itself. */
static void mli_torch_cut(mli_torch *torch) {
    mli_archive *archive = torch->archive;
    ml_error *error = archive->error;
    mli_zip_header header = {0, 0, 0, 0, 0, "its first entry", 15};
    uint64_t bytes = 0;
    char needs[64] = "";
    for (size_t at = 0; archive->size - at >= 30; at++) { /* the size of a header */
        mli_reader in = mli_reader_at(archive->data, at, archive->size);
        mli_zip_header found;
        if (memcmp(in.p, "PK", 2) != 0 || !mli_zip_header_at(&in, MLI_ZIP_LOCAL, &found)) continue;
        header = found;
        size_t next = (size_t)(in.p - archive->data); /* after names and extra fields: none is read twice */
        archive->error = NULL;                        /* what is wrong with the pickle does not matter */
        if (at == 0 && mli_pickle_run(torch, in.p, mli_left(&in))) bytes = mli_torch_storage_bytes(torch);
        at = next - 1;
    }
    archive->error = error;
    archive->result = ML_OK;
    if (bytes) bytes += (uint64_t)(torch->in.p - archive->data);
    if (bytes > archive->size)
        mli_format(needs, sizeof needs, " and needs at least %l bytes", (int64_t)bytes);
    mli_stop(archive, ML_ERROR_TRUNCATED,
             "file is cut short (an incomplete download?): it ends at byte %z inside %s%s", archive->size,
             mli_show(archive, header.name, header.length), needs);
}

/* ---- reading ---- */

/* The zip's entry data.pkl; the others are in the same folder. */
static const mli_range *mli_torch_find_pickle(mli_torch *torch) {
    static const char wanted[] = "/data.pkl";
    for (size_t i = 0; i < torch->n_entries; i++) {
        const mli_named *entry = &torch->entries[i];
        if (!mli_ends_with(entry->name, entry->length, wanted)) continue;
        size_t slash = entry->length - (sizeof wanted - 1);
        if (memchr(entry->name, '/', slash)) continue;
        torch->prefix = entry->name;
        torch->prefix_length = slash + 1;
        return &torch->ranges[entry->index];
    }
    mli_stop(torch->archive, ML_ERROR_FORMAT, "a zip file, but not from torch.save: it has no data.pkl");
    return NULL;
}

static void mli_torch_read(mli_torch *torch) {
    mli_archive *archive = torch->archive;
    mli_zip_end end;
    if (!mli_zip_find_end(archive->data, archive->size, &end)) {
        mli_torch_cut(torch);
        return;
    }
    mli_zip_read(torch, &end);
    const mli_range *range = archive->result ? NULL : mli_torch_find_pickle(torch);
    if (!range) return;
    mli_torch_need(torch, range, torch->pickle);
    const mli_range *order = mli_torch_entry(torch, "byteorder", NULL, 0);
    if (order && !order->method &&
        !mli_is_text((const char *)archive->data + order->begin, order->size, "little"))
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "its numbers are big-endian");
    uint32_t root = archive->result ? 0 : mli_pickle_run(torch, archive->data + range->begin, range->size);
    torch->visits = range->size;
    if (root) mli_torch_walk(torch, root);
}

/* ---- the format of torch.save before version 1.6, and with _use_new_zipfile_serialization=False ----
   Five pickles, one after another: a number, a version, facts about the machine, the object, and a list of the
   storages' keys. Then, in this order, each storage: its number of elements (8 bytes), and the elements. */

enum { MLI_KEY_SIZE = 64 }; /* bytes of the longest key of a storage */

/* Runs the pickle at *at and moves past it. */
static uint32_t mli_legacy_pickle(mli_torch *torch, size_t *at) {
    mli_archive *archive = torch->archive;
    if (archive->result) return 0;
    size_t size = MLI_MIN(archive->size - *at, 0x7fffffff);
    uint32_t root = mli_pickle_run(torch, archive->data + *at, size);
    *at = (size_t)(torch->in.p - archive->data);
    return root;
}

static int mli_is_big_endian(const mli_torch *torch, const mli_node *info) {
    for (uint32_t child = info->kind == MLI_NODE_DICT ? info->first : 0; child;) {
        const mli_node *key = mli_node_at(torch, child);
        child = mli_next_child(torch, child);
        const mli_node *value = mli_node_at(torch, child);
        if (key->kind == MLI_NODE_STRING && mli_text_is(key, "little_endian") && value->kind == MLI_NODE_BOOL)
            return !value->as.i;
        child = mli_next_child(torch, child);
    }
    return 0;
}

/* The storages of the tree by their keys, sorted; without keys that are longer than any number, which would only take
   time. Returns how many; *storages is from the allocator. */
static size_t mli_legacy_storages(mli_torch *torch, mli_named **storages) {
    const mli_node *nodes = (const mli_node *)torch->nodes.items, *item[3];
    size_t n = 0;
    for (size_t i = 0; i < torch->nodes.n; i++) n += nodes[i].kind == MLI_NODE_STORAGE;
    *storages = (mli_named *)mli_alloc(&torch->archive->allocator, n, sizeof **storages);
    if (!*storages) return mli_no_memory(torch->archive), (size_t)0;
    n = 0;
    for (size_t i = 0; i < torch->nodes.n; i++) {
        if (nodes[i].kind != MLI_NODE_STORAGE) continue;
        mli_children(torch, &nodes[i], item, 3);
        mli_named named = {item[2]->as.s, item[2]->length, i};
        if (named.length <= MLI_KEY_SIZE) (*storages)[n++] = named;
    }
    mli_sort_named(*storages, n);
    return n;
}

/* The place of the storage `key`, which begins at *at; moves past it. */
static void mli_legacy_place(mli_torch *torch, const mli_node *key, const mli_named *storages, size_t n,
                             size_t *at) {
    mli_archive *archive = torch->archive;
    int is_key = key->kind == MLI_NODE_STRING && key->length <= MLI_KEY_SIZE;
    const mli_named *found = is_key ? mli_find_named(storages, n, key->as.s, key->length) : NULL;
    mli_reader in = mli_reader_at(archive->data, *at, archive->size);
    uint64_t count = mli_read_u64(&in), left = mli_left(&in);
    uint64_t size = found ? mli_dtypes[mli_node_at(torch, (uint32_t)found->index)->row].size : 0;
    *at = archive->size - (size_t)left;
    if (!found)
        mli_stop(archive, ML_ERROR_FORMAT, "%s lists a storage that no tensor has", torch->pickle);
    else if (in.failed)
        mli_cut_short(archive, "a storage", (uint64_t)archive->size + 1);
    else if (!size)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "storage %s is of a type of unknown size",
                 mli_show(archive, key->as.s, key->length));
    else if (count > INT64_MAX / 16)
        mli_stop(archive, ML_ERROR_FORMAT, "storage %s: its size is wrong",
                 mli_show(archive, key->as.s, key->length));
    else if (count * size > left)
        mli_cut_short(archive, "a storage", *at + count * size);
    if (archive->result) return;
    mli_named named = {key->as.s, key->length, torch->n_entries};
    mli_range range = {*at, (size_t)(count * size), 0, 0};
    torch->entries[torch->n_entries] = named;
    torch->ranges[torch->n_entries++] = range;
    *at += range.size;
}

static void mli_legacy_read(mli_torch *torch) {
    mli_archive *archive = torch->archive;
    size_t at = 0, begin, n_keys = 0;
    mli_named *storages = NULL;
    mli_legacy_pickle(torch, &at); /* the number; */
    mli_legacy_pickle(torch, &at); /* the version, always 1001 */
    uint32_t info = mli_legacy_pickle(torch, &at);
    if (info && mli_is_big_endian(torch, mli_node_at(torch, info)))
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "its numbers are big-endian");
    begin = at;
    uint32_t root = mli_legacy_pickle(torch, &at);
    torch->visits = at - begin;
    size_t n = archive->result ? 0 : mli_legacy_storages(torch, &storages);
    uint32_t keys = mli_legacy_pickle(torch, &at);
    uint32_t first = archive->result ? 0 : mli_node_at(torch, keys)->first;
    for (uint32_t key = first; key; key = mli_next_child(torch, key)) n_keys++;
    torch->entries = (mli_named *)mli_alloc(&archive->allocator, n_keys, sizeof *torch->entries);
    torch->ranges = (mli_range *)mli_alloc(&archive->allocator, n_keys, sizeof *torch->ranges);
    if (!torch->entries || !torch->ranges) mli_no_memory(archive);
    for (uint32_t key = first; key && !archive->result; key = mli_next_child(torch, key))
        mli_legacy_place(torch, mli_node_at(torch, key), storages, n, &at);
    mli_free(&archive->allocator, storages);
    if (archive->result) return;
    mli_sort_named(torch->entries, torch->n_entries);
    mli_torch_walk(torch, root);
}

static void mli_read_torch(mli_archive *archive) {
    int is_zip = archive->data[0] == 'P';
    mli_torch torch;
    memset(&torch, 0, sizeof torch);
    torch.archive = archive;
    torch.pickle = is_zip ? "data.pkl" : "its pickle";
    torch.folder = is_zip ? "data/" : "";
    archive->shown.format = "PyTorch";
    archive->may_repeat = 1;
    (is_zip ? mli_torch_read : mli_legacy_read)(&torch);
    void *const blocks[] = {torch.entries,     torch.ranges,     torch.nodes.items,
                            torch.stack.items, torch.memo.items, torch.frames.items};
    for (size_t i = 0; i < MLI_COUNT(blocks); i++) mli_free(&archive->allocator, blocks[i]);
}

#else

static void mli_read_torch(mli_archive *archive) {
    mli_stop(archive, ML_ERROR_UNSUPPORTED, "a PyTorch file, which this build cannot read: ML_NO_PT");
}

#endif /* ML_NO_PT */

/* ---- writing PyTorch files (protocol 2, which all versions of torch.load read) ---- */
#ifdef MLI_SAVING
#ifdef ML_NO_PT

static void mli_append_torch(mli_writer *writer, mli_saver *saver) {
    (void)writer;
    saver->result =
        mli_fail(saver->error, ML_ERROR_UNSUPPORTED, "PyTorch files are not written by this build: ML_NO_PT");
}

#else

static void mli_append_torch_values(mli_writer *writer, const mli_saver *saver); /* in >>saving */

/* ---- the pickle ---- */

static void mli_append_pickle_text(mli_writer *writer, const char *text) {
    size_t n = strlen(text);
    mli_append_text(writer, "X"); /* BINUNICODE */
    mli_append_uint(writer, n, 4);
    mli_append(writer, text, n);
}

static void mli_append_pickle_int(mli_writer *writer, int64_t value) {
    int is_short = value >= INT32_MIN && value <= INT32_MAX;
    mli_append_text(writer, is_short ? "J" : "\x8a\x08"); /* BININT, or LONG1 of 8 bytes */
    mli_append_uint(writer, (uint64_t)value, is_short ? 4 : 8);
}

static void mli_append_pickle_float(mli_writer *writer, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    mli_append_text(writer, "G"); /* BINFLOAT */
    for (int i = 7; i >= 0; i--) mli_append_uint(writer, bits >> (8 * i) & 255, 1);
}

/* A tuple of the tensor's extents, or of its strides. */
static void mli_append_pickle_shape(mli_writer *writer, const mli_saved *saved, int is_stride) {
    int64_t rows = (int64_t)saved->tensor.rows, cols = (int64_t)saved->tensor.cols;
    mli_append_text(writer, "(");
    if (saved->is_matrix) mli_append_pickle_int(writer, is_stride ? cols : rows);
    mli_append_pickle_int(writer, is_stride ? 1 : cols);
    mli_append_text(writer, "t");
}

/* torch._utils._rebuild_tensor_v2(the storage with that number, offset, shape, stride, requires_grad, hooks) */
static void mli_append_pickle_tensor(mli_writer *writer, const mli_saved *saved, int number) {
    char key[24];
    mli_format(key, sizeof key, "%d", number);
    mli_append_text(writer, "ctorch._utils\n_rebuild_tensor_v2\n((");
    mli_append_pickle_text(writer, "storage");
    mli_append_format(writer, "ctorch\n%sStorage\n",
                      saved->type == ML_F32   ? "Float"
                      : saved->type == ML_F16 ? "Half"
                                              : "BFloat16");
    mli_append_pickle_text(writer, key);
    mli_append_pickle_text(writer, "cpu");
    mli_append_pickle_int(writer, (int64_t)(saved->tensor.rows * saved->tensor.cols));
    mli_append_text(writer, "tQ"); /* a persistent id: what torch.load calls a storage */
    mli_append_pickle_int(writer, 0);
    mli_append_pickle_shape(writer, saved, 0);
    mli_append_pickle_shape(writer, saved, 1);
    mli_append_text(writer, "\x89"
                            "ccollections\nOrderedDict\n)RtR");
}

/* {"model": OrderedDict(name=tensor, ...), and the values} */
static void mli_append_pickle(mli_writer *writer, const mli_saver *saver, const void *unused) {
    mli_saved saved;
    int number = 0;
    (void)unused;
    mli_append_text(writer, "\x80\x02}(");
    mli_append_pickle_text(writer, "model");
    mli_append_text(writer, "ccollections\nOrderedDict\n)R(");
    for (int at = 0; mli_next_saved(saver, &at, &saved);) {
        mli_append_pickle_text(writer, saved.name);
        mli_append_pickle_tensor(writer, &saved, saved.repeats_first ? 0 : number);
        number += !saved.repeats_first;
    }
    mli_append_text(writer, "u");
    mli_append_torch_values(writer, saver);
    mli_append_text(writer, "u.");
}

/* ---- the zip ---- */

typedef struct mli_zip_record {
    uint64_t offset, size;
    uint32_t crc;
} mli_zip_record;

typedef struct mli_zip {
    mli_writer *writer;
    const mli_saver *saver;
    mli_zip_record *records;
    int n; /* entries written */
} mli_zip;

/* Writes what an entry holds. */
typedef void (*mli_zip_contents)(mli_writer *writer, const mli_saver *saver, const void *what);

enum { MLI_ZIP_ALIGNMENT = 64, MLI_ZIP_VERSION = 45 /* 4.5: has ZIP64 */ };

/* A header, local or in the directory. All sizes and offsets are in a ZIP64 field, whatever they are: large files are
   then nothing special. A field called "FB" aligns what follows a local header, as in torch.save's files. */
static void mli_append_zip_header(mli_writer *writer, const mli_zip_record *record, int index,
                                  int is_central) {
    static const char *const first[3] = {"data.pkl", "byteorder", "version"};
    char name[48];
    if (index < 3)
        mli_format(name, sizeof name, "archive/%s", first[index]);
    else
        mli_format(name, sizeof name, "archive/data/%d", index - 3);
    size_t length = strlen(name), begin = (size_t)(record->offset % MLI_ZIP_ALIGNMENT) + 30 + length + 24;
    size_t padding = MLI_ZIP_ALIGNMENT - begin % MLI_ZIP_ALIGNMENT;
    mli_append_uint(writer, is_central ? MLI_ZIP_CENTRAL : MLI_ZIP_LOCAL, 4);
    if (is_central) mli_append_uint(writer, MLI_ZIP_VERSION, 2);
    mli_append_uint(writer, MLI_ZIP_VERSION, 8); /* flags, method: none, stored; no time */
    mli_append_uint(writer, 0, 2);               /* nor date */
    mli_append_uint(writer, record->crc, 4);
    mli_append_uint(writer, UINT64_MAX, 8); /* both sizes: see below */
    mli_append_uint(writer, length, 2);
    mli_append_uint(writer, is_central ? 28 : 24 + padding, 2);
    if (is_central) mli_append_uint(writer, 0, 8); /* no comment, the first disk, no attributes */
    if (is_central) mli_append_uint(writer, 0, 2);
    if (is_central) mli_append_uint(writer, 0xffffffffu, 4);
    mli_append(writer, name, length);
    mli_append_uint(writer, 1, 2);
    mli_append_uint(writer, is_central ? 24 : 16, 2);
    mli_append_uint(writer, record->size, 8);
    mli_append_uint(writer, record->size, 8);
    if (is_central)
        mli_append_uint(writer, record->offset, 8);
    else
        mli_append_uint(writer, (uint64_t)'F' | (uint64_t)'B' << 8 | (uint64_t)padding << 16, 4);
    for (size_t i = 0; !is_central && i < padding; i++) mli_append_text(writer, "Z");
}

/* Its size and checksum are in front of an entry: the contents are made twice, first without being written. */
static void mli_zip_add(mli_zip *zip, mli_zip_contents contents, const void *what) {
    mli_zip_record *record = &zip->records[zip->n];
    uint32_t crc = 0xffffffffu;
    mli_writer counter = {NULL, 0, 0, 0, &crc};
    contents(&counter, zip->saver, what);
    record->offset = zip->writer->at;
    record->size = counter.at;
    record->crc = ~crc;
    mli_append_zip_header(zip->writer, record, zip->n++, 0);
    contents(zip->writer, zip->saver, what);
}

/* The directory, its ZIP64 end, where that is, and the old end, which only refers to it. */
static void mli_append_zip_end(const mli_zip *zip) {
    mli_writer *writer = zip->writer;
    uint64_t begin = writer->at, n = (uint64_t)zip->n;
    for (int i = 0; i < zip->n; i++) mli_append_zip_header(writer, &zip->records[i], i, 1);
    const uint64_t end = writer->at, words[5] = {n, n, end - begin, begin, end};
    mli_append_uint(writer, MLI_ZIP64_END, 4);
    mli_append_uint(writer, 44, 8); /* bytes that follow */
    mli_append_uint(writer, MLI_ZIP_VERSION | MLI_ZIP_VERSION << 16, 4);
    mli_append_uint(writer, 0, 8); /* disks */
    for (int i = 0; i < 4; i++) mli_append_uint(writer, words[i], 8);
    mli_append_uint(writer, MLI_ZIP64_LOCATOR, 4);
    mli_append_uint(writer, 0, 4);
    mli_append_uint(writer, end, 8);
    mli_append_uint(writer, 1, 4); /* disk */
    mli_append_uint(writer, MLI_ZIP_END, 4);
    mli_append_uint(writer, 0, 4);
    mli_append_uint(writer, UINT64_MAX, 8);
    mli_append_uint(writer, 0xffffffffu, 4);
    mli_append_uint(writer, 0, 2); /* no comment */
}

static void mli_append_zip_text(mli_writer *writer, const mli_saver *saver, const void *text) {
    (void)saver;
    mli_append_text(writer, (const char *)text);
}

static void mli_append_storage(mli_writer *writer, const mli_saver *saver, const void *saved) {
    (void)saver;
    mli_append_tensor(writer, (const mli_saved *)saved);
}

static void mli_append_torch(mli_writer *writer, mli_saver *saver) {
    mli_zip zip = {writer, saver, NULL, 0};
    mli_saved saved;
    size_t n = 3;
    for (int at = 0; mli_next_saved(saver, &at, &saved);) n += !saved.repeats_first;
    zip.records = (mli_zip_record *)mli_alloc(saver->allocator, n, sizeof *zip.records);
    if (!zip.records) {
        saver->result = mli_fail(saver->error, ML_ERROR_MEMORY, "out of memory for a list of %z tensors", n);
        return;
    }
    mli_zip_add(&zip, mli_append_pickle, NULL);
    mli_zip_add(&zip, mli_append_zip_text, "little");
    mli_zip_add(&zip, mli_append_zip_text, "3\n"); /* of torch.save's format */
    for (int at = 0; mli_next_saved(saver, &at, &saved);)
        if (!saved.repeats_first) mli_zip_add(&zip, mli_append_storage, &saved);
    mli_append_zip_end(&zip);
    mli_free(saver->allocator, zip.records);
}
#endif
#endif /* MLI_SAVING */

/* ==== >>gguf ====
   GGUF (ggml's docs/gguf.md): magic, version, the numbers of tensors and of keys, then the keys with their values,
   then a description of each tensor, and, from the next multiple of the alignment on, the tensors' data. */

#define MLI_GGUF_ALIGNMENT_KEY "general.alignment"
enum {
    MLI_GGUF_VERSION = 3,   /* written; 2 is read, too */
    MLI_GGUF_ALIGNMENT = 32 /* of each tensor's data, unless MLI_GGUF_ALIGNMENT_KEY says otherwise */
};

/* Types of values. */
/* clang-format off */
enum {
    MLI_GGUF_U8, MLI_GGUF_I8, MLI_GGUF_U16, MLI_GGUF_I16, MLI_GGUF_U32, MLI_GGUF_I32, MLI_GGUF_F32, MLI_GGUF_BOOL,
    MLI_GGUF_STRING, MLI_GGUF_ARRAY, MLI_GGUF_U64, MLI_GGUF_I64, MLI_GGUF_F64, MLI_GGUF_TYPES
};

static const struct mli_gguf_type {
    unsigned char size, is_signed; /* bytes; 0: it varies */
    ml_value_kind kind;
} mli_gguf_types[MLI_GGUF_TYPES] = {
    {1, 0, ML_VALUE_INT}, {1, 1, ML_VALUE_INT}, {2, 0, ML_VALUE_INT}, {2, 1, ML_VALUE_INT}, {4, 0, ML_VALUE_INT},
    {4, 1, ML_VALUE_INT}, {4, 1, ML_VALUE_FLOAT}, {1, 0, ML_VALUE_BOOL}, {0, 0, ML_VALUE_STRING},
    {0, 0, ML_VALUE_LIST}, {8, 0, ML_VALUE_INT}, {8, 1, ML_VALUE_INT}, {8, 1, ML_VALUE_FLOAT},
};
/* clang-format on */

static const char *mli_gguf_string(mli_reader *in, size_t *length) {
    const unsigned char *s = mli_read_bytes(in, mli_read_u64(in));
    *length = s ? (size_t)(in->p - s) : 0;
    return (const char *)s;
}

/* Skips n values of that type, lists of lists up to a depth. Returns the type that cannot be skipped, else -1. */
static int64_t mli_gguf_skip(mli_reader *in, uint32_t type, uint64_t n, int depth) {
    size_t size = type < MLI_GGUF_TYPES ? mli_gguf_types[type].size : 0, length;
    int64_t unknown = -1;
    if (!size && type != MLI_GGUF_STRING && (type != MLI_GGUF_ARRAY || depth == MLI_MAX_DEPTH)) return type;
    if (size) mli_read_bytes(in, n > mli_left(in) ? UINT64_MAX : n * size);
    for (uint64_t i = 0; i < n && !size && unknown < 0 && !in->failed; i++) {
        if (type == MLI_GGUF_STRING) {
            mli_gguf_string(in, &length);
        } else {
            uint32_t inner = mli_read_u32(in);
            unknown = mli_gguf_skip(in, inner, mli_read_u64(in), depth + 1);
        }
    }
    return unknown;
}

/* A list stays where it is. */
static void mli_gguf_list(mli_archive *archive, mli_reader *in, ml_value *value) {
    uint32_t type = mli_read_u32(in);
    uint64_t n = mli_read_u64(in);
    const char *begin = (const char *)in->p;
    int64_t unknown = in->failed ? -1 : mli_gguf_skip(in, type, n, 0);
    if (unknown >= 0)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "key %s: a list of type %l is not supported", value->name,
                 unknown);
    if (in->failed || archive->result) return;
    value->s = begin;
    value->length = (size_t)n;
    value->list_type = (int)type;
}

/* A value of a type in the table. Unsigned numbers beyond int64_t become its largest. */
static void mli_gguf_value(mli_archive *archive, mli_reader *in, uint32_t type, ml_value *value) {
    int size = mli_gguf_types[type].size;
    uint64_t bits = mli_read_uint(in, size);
    if (type == MLI_GGUF_ARRAY)
        mli_gguf_list(archive, in, value);
    else if (type == MLI_GGUF_STRING)
        value->s = mli_gguf_string(in, &value->length);
    else if (type == MLI_GGUF_F32)
        value->f = (double)mli_bits_float((uint32_t)bits);
    else if (type == MLI_GGUF_F64)
        value->f = mli_double_from_bits(bits);
    else if (type == MLI_GGUF_BOOL)
        mli_set_int(value, bits != 0);
    else if (mli_gguf_types[type].is_signed)
        mli_set_int(value, mli_signed(bits, size));
    else
        mli_set_int(value, (int64_t)MLI_MIN(bits, (uint64_t)INT64_MAX));
    if (type == MLI_GGUF_U64) value->f = (double)bits;
}

static void mli_gguf_pair(mli_archive *archive, mli_reader *in) {
    size_t length;
    const char *key = mli_gguf_string(in, &length);
    uint32_t type = mli_read_u32(in);
    if (in->failed) return;
    int is_known = type < MLI_GGUF_TYPES;
    ml_value *value =
        mli_add_value(archive, key, length, is_known ? mli_gguf_types[type].kind : ML_VALUE_INT);
    if (is_known)
        mli_gguf_value(archive, in, type, value);
    else
        mli_stop(archive, ML_ERROR_FORMAT, "key %s: its type %l is unknown", value->name, (int64_t)type);
}

/* ggml's names of tensor types, for those that ml_type does not have. */
static const char *mli_gguf_type_name(mli_archive *archive, uint32_t number) {
    static const char *const names[] = {
        "F32",      "F16",      "Q4_0",    "Q4_1",  "Q4_2",       "Q4_3",       "Q5_0",       "Q5_1",
        "Q8_0",     "Q8_1",     "Q2_K",    "Q3_K",  "Q4_K",       "Q5_K",       "Q6_K",       "Q8_K",
        "IQ2_XXS",  "IQ2_XS",   "IQ3_XXS", "IQ1_S", "IQ4_NL",     "IQ3_S",      "IQ2_S",      "IQ4_XS",
        "I8",       "I16",      "I32",     "I64",   "F64",        "IQ1_M",      "BF16",       "Q4_0_4_4",
        "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"};
    char text[24];
    if (number < MLI_COUNT(names)) return names[number];
    mli_format(text, sizeof text, "%l", (int64_t)number);
    return mli_keep_name(archive, text, strlen(text));
}

/* One tensor's description. The offset of its data waits in stride[0], which is free until its data is found. */
static void mli_gguf_tensor(mli_archive *archive, mli_reader *in) {
    size_t length;
    const char *name = mli_gguf_string(in, &length);
    uint32_t n_dims = mli_read_u32(in);
    if (in->failed) return;
    ml_array *array = mli_add_array(archive, name, length);
    if (n_dims > 4) {
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s has more than 4 dimensions", array->name);
        return;
    }
    array->n_dims = (int)n_dims;
    for (uint32_t i = n_dims; i-- > 0;) { /* innermost first in the file */
        array->shape[i] = (int64_t)mli_read_u64(in);
        if (array->shape[i] < 0)
            mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: its shape overflows", array->name);
    }
    uint32_t type = mli_read_u32(in);
    ml_type known = mli_type_from_gguf(type);
    mli_set_type(array, known, known ? NULL : mli_gguf_type_name(archive, type));
    array->stride[0] = (int64_t)mli_read_u64(in);
}

static uint64_t mli_gguf_alignment(mli_archive *archive) {
    const ml_value *value = mli_shard_value(archive, MLI_GGUF_ALIGNMENT_KEY);
    if (!value) return MLI_GGUF_ALIGNMENT;
    if (value->kind == ML_VALUE_INT && value->i > 0 && !(value->i & (value->i - 1)))
        return (uint64_t)value->i;
    mli_stop(archive, ML_ERROR_FORMAT, "%s %l is not a power of two", value->name, value->i);
    return 1;
}

/* Finds the tensors' data, which follows the position `at`. The size of an unknown type is not known: it counts as 0
   bytes. */
static void mli_gguf_place(mli_archive *archive, size_t at) {
    uint64_t alignment = mli_gguf_alignment(archive), padding = (alignment - at % alignment) % alignment;
    size_t n = archive->arrays.n;
    if (n && padding > archive->size - at) mli_cut_short(archive, "the tensors' data", at + padding);
    for (size_t i = archive->first_array; i < n && !archive->result; i++) {
        ml_array *array = (ml_array *)archive->arrays.items + i;
        uint64_t offset = (uint64_t)array->stride[0];
        if (offset % alignment)
            mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: offset %l is not aligned to %l", array->name,
                     (int64_t)offset, (int64_t)alignment);
        mli_set_data(archive, array, at + (size_t)padding, offset, mli_set_contiguous(archive, array));
    }
}

static void mli_read_gguf(mli_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 4, archive->size);
    uint32_t version = mli_read_u32(&in);
    uint64_t n_tensors = mli_read_u64(&in), n_pairs = mli_read_u64(&in);
    archive->shown.format = "GGUF";
    if (!in.failed && version > 0xffff)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "a big-endian GGUF file (version %d byte-swapped)",
                 (int)(version >> 24));
    if (!in.failed && version != 2 && version != MLI_GGUF_VERSION)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "GGUF version %d is not supported, only 2 and 3",
                 (int)version);
    for (uint64_t i = 0; i < n_pairs && !in.failed && !archive->result; i++) mli_gguf_pair(archive, &in);
    for (uint64_t i = 0; i < n_tensors && !in.failed && !archive->result; i++) mli_gguf_tensor(archive, &in);
    if (in.failed) mli_cut_short(archive, "the list of its keys and tensors", (uint64_t)archive->size + 1);
    if (!archive->result) mli_gguf_place(archive, (size_t)(in.p - archive->data));
}

/* ---- keys as they are in the file ---- */

enum { MLI_GGUF_PAIRS = 24 }; /* where they begin */

/* The next key of *in, which moves past its value; NULL at the end. */
static const char *mli_gguf_next(mli_reader *in, size_t *length) {
    if (!mli_left(in)) return NULL;
    const char *key = mli_gguf_string(in, length);
    uint32_t type = mli_read_u32(in);
    if (mli_gguf_skip(in, type, 1, -1) >= 0) in->failed = 1;
    return in->failed ? NULL : key;
}

/* ---- writing GGUF (version 3) ---- */
#ifdef MLI_SAVING

static void mli_append_string(mli_writer *writer, const char *s, size_t length) {
    mli_append_uint(writer, length, 8);
    mli_append(writer, s, length);
}

/* A key with the bits of its value; strings and lists, which have no fixed size, follow. */
static void mli_append_key(mli_writer *writer, const char *key, int type, uint64_t bits) {
    mli_append_string(writer, key, strlen(key));
    mli_append_uint(writer, (uint64_t)type, 4);
    mli_append_uint(writer, bits, mli_gguf_types[type].size);
    writer->n_keys++;
}
static void mli_append_key_u32(mli_writer *writer, const char *key, int value) {
    mli_append_key(writer, key, MLI_GGUF_U32, (uint32_t)value);
}
MLI_OPTIONAL void mli_append_key_i64(mli_writer *writer, const char *key, int64_t value) {
    mli_append_key(writer, key, MLI_GGUF_I64, (uint64_t)value);
}
static void mli_append_key_f32(mli_writer *writer, const char *key, float value) {
    mli_append_key(writer, key, MLI_GGUF_F32, mli_float_bits(value));
}
static void mli_append_key_string(mli_writer *writer, const char *key, const char *value) {
    mli_append_key(writer, key, MLI_GGUF_STRING, 0);
    mli_append_string(writer, value, strlen(value));
}
static void mli_append_key_list(mli_writer *writer, const char *key, int type, int n) {
    mli_append_key(writer, key, MLI_GGUF_ARRAY, 0);
    mli_append_uint(writer, (uint64_t)type, 4);
    mli_append_uint(writer, (uint64_t)n, 8);
}

/* Keys, then name, extents (innermost first), type and offset of every tensor. Returns the number of tensors. */
static int mli_append_gguf_header(mli_writer *writer, const mli_saver *saver) {
    uint64_t offset = 0;
    mli_saved saved;
    int n = 0;
    for (int i = 0; i < saver->n_parts; i++)
        saver->parts[i].append_keys(writer, saver, saver->parts[i].object);
    for (int at = 0; mli_next_saved(saver, &at, &saved); n++) {
        mli_append_string(writer, saved.name, strlen(saved.name));
        mli_append_uint(writer, saved.is_matrix ? 2 : 1, 4);
        mli_append_uint(writer, saved.tensor.cols, 8);
        if (saved.is_matrix) mli_append_uint(writer, saved.tensor.rows, 8);
        mli_append_uint(writer, mli_type(saved.type)->gguf, 4);
        mli_append_uint(writer, offset, 8);
        offset += mli_saved_bytes(&saved);
        offset += (MLI_GGUF_ALIGNMENT - offset % MLI_GGUF_ALIGNMENT) % MLI_GGUF_ALIGNMENT;
    }
    return n;
}

static void mli_append_gguf(mli_writer *writer, const mli_saver *saver) {
    mli_writer counter = {NULL, 0, 0, 0, NULL};
    int n_tensors = mli_append_gguf_header(&counter, saver);
    mli_append_text(writer, "GGUF");
    mli_append_uint(writer, MLI_GGUF_VERSION, 4);
    mli_append_uint(writer, (uint64_t)n_tensors, 8);
    mli_append_uint(writer, counter.n_keys, 8);
    mli_append_gguf_header(writer, saver);
    mli_append_tensors(writer, saver, MLI_GGUF_ALIGNMENT);
}
#endif /* MLI_SAVING */

/* ==== >>safetensors ====
   Hugging Face's safetensors: the length of a header (8 bytes), the header, data. The header is one JSON object,
   {"__metadata__": {"key": "text"}, "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}. */

/* A list of integers that are not negative, of which the first `most` are kept. Returns how many it has; 0 after an
   error. */
static int mli_json_sizes(mli_json *json, int64_t *sizes, int most) {
    int n = 0;
    mli_json_expect(json, '[', "a list is missing");
    int64_t size;
    for (double f; mli_json_more(json, ']', n); n++) {
        if (mli_json_peek(json), !mli_json_number(json, &size, &f) || size < 0 || n == INT_MAX)
            mli_json_fail(json, "a size is wrong");
        else if (n < most)
            sizes[n] = size;
    }
    return json->archive->result ? 0 : n;
}

/* What the header says about a tensor. */
static void mli_safetensors_describe(mli_json *json, ml_array *array, int64_t range[2]) {
    mli_archive *archive = json->archive;
    int n_range = 0, has_shape = 0;
    size_t length;
    mli_json_expect(json, '{', "a tensor's description is missing");
    do {
        const char *key = mli_json_key(json, &length);
        if (strcmp(key, "dtype") == 0) {
            const char *type = mli_json_string(json, &length);
            ml_type known = ml_type_from_name(type);
            mli_set_type(array, ml_type_block(known) > 1 ? ML_TYPE_NONE : known, type);
        } else if (strcmp(key, "shape") == 0) {
            array->n_dims = mli_json_sizes(json, array->shape, ML_MAX_DIMS);
            has_shape = 1;
        } else if (strcmp(key, "data_offsets") == 0) {
            n_range = mli_json_sizes(json, range, 2);
        } else {
            mli_json_fail(json, "an unknown property of a tensor");
        }
    } while (mli_json_more(json, '}', 1));
    if (!array->type_name || !has_shape || n_range != 2)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s lacks dtype, shape or data_offsets", array->name);
}

/* A tensor; the data is the file from `base` on. One of more than ML_MAX_DIMS dimensions is only named. */
static void mli_safetensors_tensor(mli_json *json, const char *name, size_t length, size_t base) {
    mli_archive *archive = json->archive;
    ml_array *array = mli_add_array(archive, name, length);
    int64_t range[2] = {0, 0};
    mli_safetensors_describe(json, array, range);
    if (archive->result) return;
    if (array->n_dims > ML_MAX_DIMS) {
        ml_value *value = mli_add_value(archive, name, length, ML_VALUE_OPAQUE);
        value->s = array->type_name;
        value->length = strlen(value->s);
        archive->arrays.n--;
        return;
    }
    uint64_t bytes = mli_set_contiguous(archive, array), written = (uint64_t)range[1] - (uint64_t)range[0];
    if (array->type == ML_TYPE_NONE) bytes = written;
    if (range[1] < range[0] || written != bytes)
        mli_stop(archive, ML_ERROR_FORMAT, "tensor %s: bytes %l to %l do not fit its shape", name, range[0],
                 range[1]);
    mli_set_data(archive, array, base, (uint64_t)range[0], bytes);
}

static void mli_read_safetensors(mli_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    uint64_t header_size = mli_read_u64(&in);
    const unsigned char *header = mli_read_bytes(&in, header_size);
    archive->shown.format = "safetensors";
    if (!header) {
        mli_cut_short(archive, "its header", 8 + header_size);
        return;
    }
    mli_json json = {mli_reader_at(header, 0, (size_t)header_size), header, archive};
    mli_json_expect(&json, '{', "an object is missing");
    for (int64_t i = 0; mli_json_more(&json, '}', i); i++) {
        size_t length;
        const char *name = mli_json_key(&json, &length);
        if (strcmp(name, "__metadata__") == 0) {
            mli_path_push(archive, name, length);
            mli_json_value(&json, 1);
            archive->path_length = 0;
        } else {
            mli_safetensors_tensor(&json, name, length, 8 + (size_t)header_size);
        }
    }
    if (mli_json_peek(&json)) mli_json_fail(&json, "more text than one value");
}
/* ---- writing safetensors ---- */
#ifdef MLI_SAVING

/* A value of the caller's, as a text. */
static void mli_append_metadata(mli_writer *writer, const ml_value *value) {
    mli_append_text(writer, ",");
    mli_append_json_string(writer, value->name);
    mli_append_text(writer, ":");
    if (value->kind == ML_VALUE_STRING) {
        mli_append_json_bytes(writer, value->s, value->length);
        return;
    }
    mli_append_text(writer, "\"");
    if (value->kind == ML_VALUE_BOOL)
        mli_append_text(writer, value->i ? "true" : "false");
    else if (value->kind == ML_VALUE_INT)
        mli_append_decimal(writer, value->i);
    else {
        if (value->f < 0) mli_append_text(writer, "-");
        mli_append_json_float(writer, (float)fabs(value->f));
    }
    mli_append_text(writer, "\"");
}

static void mli_append_safetensors_header(mli_writer *writer, const mli_saver *saver) {
    int64_t offset = 0;
    mli_saved saved;
    mli_append_text(writer, "{\"__metadata__\":{\"format\":\"pt\"");
    for (int i = 0; saver->archive && i < saver->archive->n_values; i++)
        mli_append_metadata(writer, &saver->archive->values[i]);
    mli_append_text(writer, "}");
    for (int at = 0; mli_next_saved(saver, &at, &saved);) {
        int64_t end = offset + (int64_t)mli_saved_bytes(&saved);
        mli_append_format(writer, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", saved.name,
                          ml_type_name(saved.type));
        if (saved.is_matrix) mli_append_format(writer, "%l,", (int64_t)saved.tensor.rows);
        mli_append_format(writer, "%l],\"data_offsets\":[%l,%l]}", (int64_t)saved.tensor.cols, offset, end);
        offset = end;
    }
    mli_append_text(writer, "}");
    mli_append_padding(writer, 8, ' ');
}

static void mli_append_safetensors(mli_writer *writer, const mli_saver *saver) {
    mli_writer counter = {NULL, 0, 0, 0, NULL};
    mli_append_safetensors_header(&counter, saver);
    mli_append_uint(writer, counter.at, 8); /* eight bytes, so that the padding comes out the same */
    mli_append_safetensors_header(writer, saver);
    mli_append_tensors(writer, saver, 1);
}
#endif /* MLI_SAVING */

/* ==== >>llama2c ====
   llama2.c's model .bin, as its export.py writes it: seven numbers, then the weights without names or shapes, which
   follow from those numbers. Version 0 (legacy) has no magic number; version 1 has; in version 2 the matrices are
   signed bytes, with one float scale for each group of them. */

/* The seven numbers. The limits are far above any Llama, and low enough that no size below overflows 64 bits: 2^12
   layers of 2^20 * 2^22 floats are 2^56 bytes. */
static const struct mli_bin_field {
    const char *name;
    int32_t most;
} mli_bin_fields[7] = {{"model_args.dim", 1 << 20},        {"model_args.hidden_dim", 1 << 22},
                       {"model_args.n_layers", 1 << 12},   {"model_args.n_heads", 1 << 14},
                       {"model_args.n_kv_heads", 1 << 14}, {"model_args.vocab_size", 1 << 24},
                       {"model_args.max_seq_len", 1 << 24}};

typedef struct mli_bin {
    mli_archive *archive;
    int version;
    size_t header_size, group_size; /* weights that share a scale, in version 2 */
    ml_config config;               /* the seven numbers, which give the tensors' shapes */
} mli_bin;

/* Reads, checks and adds the seven numbers; 0 if they cannot be those of a model. */
static int mli_bin_header(mli_bin *bin, mli_reader *in) {
    ml_config *c = &bin->config;
    int *const fields[7] = {&c->dim,        &c->hidden_dim, &c->n_layers,   &c->n_heads,
                            &c->n_kv_heads, &c->vocab_size, &c->max_seq_len};
    for (int i = 0; i < 7; i++) {
        const struct mli_bin_field *field = &mli_bin_fields[i];
        int64_t number = mli_read_i32(in);
        if (i == 5 && bin->version == 0) { /* the legacy version's flag is the sign of vocab_size */
            c->tied_output = number > 0;
            if (number < 0) number = -number;
        }
        if (number <= 0 || number > field->most) return 0;
        *fields[i] = (int)number;
        mli_set_int(mli_add_value(bin->archive, field->name, strlen(field->name), ML_VALUE_INT), number);
    }
    return c->dim % c->n_heads == 0 && c->n_heads % c->n_kv_heads == 0;
}

/* n signed bytes q, then a float scale for each group of them: value = q * scale. */
static void mli_bin_dequantize(const mli_bin *bin, size_t at, size_t n, float *to) {
    const unsigned char *q = bin->archive->data + at;
    mli_reader scales = mli_reader_at(q, n, n + n / bin->group_size * sizeof(float));
    float scale = 0;
    for (size_t i = 0; i < n; i++) {
        if (i % bin->group_size == 0) scale = mli_read_f32(&scales);
        to[i] = scale * (float)(q[i] < 128 ? q[i] : q[i] - 256);
    }
}

/* Moves *at past a tensor. With `floats` it also adds it to the archive; a quantized one is converted to *floats. */
static void mli_bin_tensor(mli_bin *bin, mli_slot slot, int layer, uint64_t *at, float **floats) {
    const mli_param *param = &mli_params[slot];
    uint64_t rows = (uint64_t)mli_extent_of(&bin->config, param->rows);
    uint64_t cols = (uint64_t)mli_extent_of(&bin->config, param->cols), n = rows * cols, begin = *at;
    int is_quantized = bin->version == 2 && param->role != MLI_ROLE_NORM;
    mli_archive *archive = bin->archive;
    char name[ML_NAME_SIZE];
    mli_param_name(MLI_NAMING_META, slot, layer, name);
    if (is_quantized && n % bin->group_size)
        mli_stop(archive, ML_ERROR_FORMAT, "%s does not fit groups of %z", name, bin->group_size);
    *at += is_quantized ? n + n / bin->group_size * sizeof(float) : n * sizeof(float);
    if (!floats) return;
    ml_array *array = mli_add_array(archive, name, strlen(name));
    mli_set_type(array, ML_F32, NULL);
    array->n_dims = param->rows == MLI_ONE ? 1 : 2;
    array->shape[0] = (int64_t)rows;
    array->shape[array->n_dims - 1] = (int64_t)cols;
    array->data = archive->data + begin;
    mli_set_contiguous(archive, array);
    if (!is_quantized) return;
    mli_bin_dequantize(bin, (size_t)begin, (size_t)n, *floats);
    array->data = *floats;
    *floats += n;
}

/* Goes through the tensors in the file's order. Returns the size of the file that they make. */
static uint64_t mli_bin_walk(mli_bin *bin, float **floats) {
    enum { ROTARY = MLI_SLOTS, END }; /* two tables of cosines and sines, of no use here */
    static const unsigned char order[2][14] = {
        {MLI_TOKEN_EMBEDDING, MLI_ATTN_NORM, MLI_WQ, MLI_WK, MLI_WV, MLI_WO, MLI_FFN_NORM, MLI_W1, MLI_W2,
         MLI_W3, MLI_OUTPUT_NORM, ROTARY, MLI_OUTPUT, END},
        {MLI_ATTN_NORM, MLI_FFN_NORM, MLI_OUTPUT_NORM, MLI_TOKEN_EMBEDDING, MLI_WQ, MLI_WK, MLI_WV, MLI_WO,
         MLI_W1, MLI_W2, MLI_W3, MLI_OUTPUT, END}};
    const ml_config *c = &bin->config;
    uint64_t at = bin->header_size;
    for (const unsigned char *p = order[bin->version > 0]; *p != END; p++) {
        int n = *p < MLI_GLOBAL_SLOTS ? 1 : c->n_layers;
        if (*p == ROTARY) {
            at += (uint64_t)c->max_seq_len * (uint64_t)(c->dim / c->n_heads / 2) * 2 * sizeof(float);
        } else if (*p != MLI_OUTPUT || !c->tied_output) {
            for (int layer = 0; layer < n; layer++) mli_bin_tensor(bin, (mli_slot)*p, layer, &at, floats);
        }
    }
    return at;
}

/* Adds the tensors, if the file has their size. No ml_type has version 2's blocks, so its weights become floats in
   memory of the archive: it is the only format that is copied. */
static void mli_bin_add(mli_bin *bin) {
    mli_archive *archive = bin->archive;
    uint64_t size = mli_bin_walk(bin, NULL);
    float *floats = NULL;
    size_t bytes; /* each weight has a byte in the file, or more */
    archive->shown.format = "llama2.c";
    if (size > archive->size) mli_cut_short(archive, "the model of its llama2.c header", size);
    if (size < archive->size)
        mli_stop(archive, ML_ERROR_FORMAT, "llama2.c file: %z bytes, but its header's model has %l",
                 archive->size, (int64_t)size);
    if (bin->version == 2 && !archive->result) {
        if (!mli_mul_size(archive->size, sizeof(float), &bytes)) bytes = SIZE_MAX; /* which there is not */
        floats = (float *)mli_keep(archive, bytes);
    }
    if (!archive->result) mli_bin_walk(bin, &floats);
}

/* Versions 1 and 2: "ak42", version, seven numbers, tied_output (1 byte), group size, zeros up to byte 256. */
static void mli_read_bin(mli_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 4, archive->size);
    mli_bin bin;
    memset(&bin, 0, sizeof bin);
    bin.archive = archive;
    bin.version = mli_read_i32(&in);
    bin.header_size = 256;
    if (!in.failed && bin.version != 1 && bin.version != 2)
        mli_stop(archive, ML_ERROR_UNSUPPORTED, "llama2.c file of version %d; 0, 1 and 2 are read",
                 bin.version);
    if (archive->size < 256) mli_cut_short(archive, "the header", 256);
    if (!archive->result && !mli_bin_header(&bin, &in))
        mli_stop(archive, ML_ERROR_FORMAT, "llama2.c header: its numbers are not a model's");
    bin.config.tied_output = mli_read_u8(&in) != 0;
    int32_t group_size = bin.version == 2 ? mli_read_i32(&in) : 1;
    if (group_size <= 0)
        mli_stop(archive, ML_ERROR_FORMAT, "llama2.c header: group size %d", (int)group_size);
    bin.group_size = (size_t)group_size;
    if (!archive->result) mli_bin_add(&bin);
}

/* The legacy version is recognized by seven plausible numbers and a size that fits them. Returns 0 if it is none. */
static int mli_read_legacy_bin(mli_archive *archive) {
    mli_reader in = mli_reader_at(archive->data, 0, archive->size);
    mli_bin bin;
    memset(&bin, 0, sizeof bin);
    bin.archive = archive;
    bin.header_size = 28;
    const ml_config *c = &bin.config;
    if (archive->size < 28 || !mli_bin_header(&bin, &in) || c->dim % 2 || c->hidden_dim < c->dim / 4 ||
        mli_bin_walk(&bin, NULL) < archive->size)
        return 0;
    mli_bin_add(&bin);
    return 1;
}

/* ==== >>vocabularies ====
   The files that hold a vocabulary: of SentencePiece BPE llama2.c's .bin and tokenizer.model, of byte-level BPE
   Meta's tokenizer.model of Llama 3, and of either GGUF and tokenizer.json. Each reader hands its pieces, one after
   the other, to mli_tokenizer_create. */

/* Kinds for a file that has none: by the id, and by the way bytes are written. */
static int mli_guess_kind(const mli_piece *piece, int is_unknown, int is_control) {
    if (is_unknown) return ML_PIECE_UNKNOWN;
    if (is_control) return ML_PIECE_CONTROL;
    return mli_byte_of_piece(piece->bytes, piece->length) >= 0 ? ML_PIECE_BYTE : ML_PIECE_NORMAL;
}

/* The id that a file gives for a special piece. Negative: there is none. One outside is an error, unless it is only
   the default, or there are no pieces, which is an error later. */
static ml_result mli_special_id(int64_t value, int is_default, const char *name, size_t n_pieces, int32_t *id,
                                ml_error *error) {
    int is_inside = value >= 0 && (uint64_t)value < n_pieces;
    *id = is_inside ? (int32_t)value : -1;
    if (is_inside || value < 0 || is_default || !n_pieces) return ML_OK;
    return mli_fail(error, ML_ERROR_FORMAT, "%s is %l, outside the vocabulary of %z", name, value, n_pieces);
}

/* Where the readers' `get` is in the file, or in the list of pieces. */
typedef struct mli_piece_source {
    const unsigned char *data; /* (size) */
    size_t size;
    mli_reader in;                  /* after the piece read last */
    const ml_value *scores, *kinds; /* of a GGUF: lists of numbers, or NULL */
    mli_reader merges;              /* of a GGUF: after the merge read last */
    const mli_vocabulary *vocabulary;
    unsigned char piece[2 * MLI_MAX_PIECE + 2]; /* of Meta's file: the piece read last, in the alphabet */
} mli_piece_source;

/* Default ids of bos, eos and unknown count only where there is such a piece: spelled as usual, or otherwise special
   and not spelled as one of the others. (Without this, a vocabulary made with --bos_id=-1 would get its eos, or some
   word, as bos.) Ids that the file gives are not touched. */
static ml_result mli_check_default_ids(mli_vocabulary *v, const int is_default[3], ml_error *error) {
    static const char *const spelled[3] = {"<s>", "</s>", "<unk>"};
    int32_t *const ids[3] = {&v->bos, &v->eos, &v->unknown}, wanted[3] = {v->bos, v->eos, v->unknown},
                   last = -1;
    for (int i = 0; i < 3; i++) {
        if (!is_default[i]) continue;
        last = MLI_MAX(last, wanted[i]);
        *ids[i] = -1; /* until it is found: no reader may take a piece for special because of its id */
    }
    for (int32_t id = 0; id <= last; id++) {
        mli_piece piece;
        int named = -1;
        ml_result result = v->get(v->context, id, &piece, error);
        if (result) return result;
        for (int i = 0; i < 3; i++)
            if (mli_is_text((const char *)piece.bytes, piece.length, spelled[i])) named = i;
        for (int i = 0; i < 3; i++) {
            int is_special = piece.kind == (i < 2 ? ML_PIECE_CONTROL : ML_PIECE_UNKNOWN);
            if (is_default[i] && wanted[i] == id && (named == i || (is_special && named < 0))) *ids[i] = id;
        }
    }
    return ML_OK;
}

/* ---- llama2.c's tokenizer .bin ----
   The length of the longest piece, then for each piece up to the end of the file: score (f32), length (i32), bytes.
   Spaces are plain; ids 0, 1, 2 are unknown, bos and eos, the latter two written between line feeds. */

static ml_result mli_bin_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_piece_source *source = (mli_piece_source *)context;
    if (id == 0) source->in = mli_reader_at(source->data, 4, source->size);
    size_t at = (size_t)(source->in.p - source->data);
    piece->score = mli_read_f32(&source->in);
    piece->length = mli_read_u32(&source->in);
    piece->bytes = mli_read_bytes(&source->in, piece->length);
    if (source->in.failed)
        return mli_fail(error, ML_ERROR_TRUNCATED, "tokenizer .bin: piece %d at byte %z of %z is cut short",
                        (int)id, at, source->size);
    piece->kind = mli_guess_kind(piece, id == 0, id == 1 || id == 2);
    if (piece->kind == ML_PIECE_CONTROL && piece->length > 2 && piece->bytes[0] == '\n' &&
        piece->bytes[piece->length - 1] == '\n') {
        piece->bytes++;
        piece->length -= 2;
    }
    return ML_OK;
}

static ml_result mli_bin_open(mli_piece_source *source, mli_vocabulary *v, ml_error *error) {
    mli_piece piece;
    source->in = mli_reader_at(source->data, 4, source->size);
    for (; mli_left(&source->in) && v->n_pieces <= MLI_MAX_PIECES; v->n_pieces++) {
        ml_result result = mli_bin_get(source, (int32_t)v->n_pieces, &piece, error);
        if (result) return result;
    }
    v->get = mli_bin_get;
    v->has_plain_spaces = v->rules.adds_space_prefix = v->adds_bos = 1;
    v->unknown = 0;
    v->bos = v->n_pieces > 1 ? 1 : -1;
    v->eos = v->n_pieces > 2 ? 2 : -1;
    return ML_OK;
}

/* ---- SentencePiece's tokenizer.model ----
   A protocol buffer (sentencepiece_model.proto): a sequence of fields, each a tag, number * 8 + wire type, and a
   value. A message in it is a field of bytes with the same form inside. Unknown fields are skipped. The message
   ModelProto has: pieces = 1, trainer_spec = 2, normalizer_spec = 3, denormalizer_spec = 5. */

enum { MLI_PB_VARINT = 0, MLI_PB_64 = 1, MLI_PB_BYTES = 2, MLI_PB_32 = 5 }; /* wire types */
#define MLI_PB(number, wire) ((number)*8 + (wire))

typedef struct mli_pb_field {
    uint64_t tag;
    uint64_t value; /* varint; length of bytes; or the bits of a fixed 32 or 64 */
    const unsigned char *bytes;
} mli_pb_field;

/* Seven bits a byte, least first; the high bit says that more follow. */
static uint64_t mli_pb_varint(mli_reader *in) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        unsigned b = mli_read_u8(in);
        value |= (uint64_t)(b & 127) << shift;
        if (b < 128) return value;
    }
    in->failed = 1;
    return 0;
}

/* Reads a field; 0 at the end, or, with in->failed, where it cannot be read. */
static int mli_pb_read(mli_reader *in, mli_pb_field *field) {
    if (in->failed || !mli_left(in)) return 0;
    field->tag = mli_pb_varint(in);
    field->bytes = NULL;
    switch (field->tag & 7) {
    case MLI_PB_VARINT: field->value = mli_pb_varint(in); break;
    case MLI_PB_64: field->value = mli_read_u64(in); break;
    case MLI_PB_BYTES:
        field->value = mli_pb_varint(in);
        field->bytes = mli_read_bytes(in, field->value);
        break;
    case MLI_PB_32: field->value = mli_read_u32(in); break;
    default: in->failed = 1;
    }
    if (field->tag < 8) in->failed = 1; /* there is no field 0 */
    return !in->failed;
}

#define MLI_SPM_UNK_SURFACE 44 /* of TrainerSpec, a string: how an unknown piece is shown */

/* The settings that matter, by message and number, with the defaults of the .proto file. These are varints. */
/* clang-format off */
enum { /* of TrainerSpec, but the last three, which are NormalizerSpec's */
    MLI_SPM_UNK, MLI_SPM_BOS, MLI_SPM_EOS, MLI_SPM_PAD, MLI_SPM_MODEL_TYPE, MLI_SPM_SUFFIX,
    MLI_SPM_PREFIX, MLI_SPM_EXTRA, MLI_SPM_ESCAPE, MLI_SPM_SETTINGS
};
static const struct mli_spm_setting {
    signed char message, number, fallback;
    const char *name;
} mli_spm_settings[MLI_SPM_SETTINGS] = {
    {2, 40, 0, "trainer_spec.unk_id"}, {2, 41, 1, "trainer_spec.bos_id"}, {2, 42, 2, "trainer_spec.eos_id"},
    {2, 43, -1, "trainer_spec.pad_id"}, {2, 3, 1, "model_type"}, {2, 24, 0, "treat_whitespace_as_suffix"},
    {3, 3, 1, "add_dummy_prefix"}, {3, 4, 1, "remove_extra_whitespaces"}, {3, 5, 1, "escape_whitespaces"}};
/* clang-format on */

static ml_result mli_spm_corrupt(const mli_piece_source *source, const unsigned char *at, const char *what,
                                 ml_error *error) {
    return mli_fail(error, ML_ERROR_FORMAT, "tokenizer.model: %s at byte %z of %z is cut short or corrupt",
                    what, (size_t)(at - source->data), source->size);
}

/* Message SentencePiece: piece = 1, score = 2, type = 3. */
static ml_result mli_spm_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_piece_source *source = (mli_piece_source *)context;
    mli_pb_field field;
    if (id == 0) source->in = mli_reader_at(source->data, 0, source->size);
    do {
        if (!mli_pb_read(&source->in, &field)) return mli_spm_corrupt(source, source->in.p, "a piece", error);
    } while (field.tag != MLI_PB(1, MLI_PB_BYTES));
    mli_reader in = mli_reader_at(field.bytes, 0, (size_t)field.value);
    memset(piece, 0, sizeof *piece);
    piece->kind = ML_PIECE_NORMAL;
    piece->bytes = field.bytes;
    while (mli_pb_read(&in, &field)) {
        if (field.tag == MLI_PB(1, MLI_PB_BYTES)) {
            piece->bytes = field.bytes;
            piece->length = (size_t)field.value;
        }
        if (field.tag == MLI_PB(2, MLI_PB_32)) piece->score = mli_bits_float((uint32_t)field.value);
        if (field.tag == MLI_PB(3, MLI_PB_VARINT)) piece->kind = (int)MLI_MIN(field.value, 99);
    }
    return in.failed ? mli_spm_corrupt(source, in.p, "a piece", error) : ML_OK;
}

/* The settings of TrainerSpec and NormalizerSpec; whether a normalizer or denormalizer has rules. */
static ml_result mli_spm_read_spec(const mli_piece_source *source, mli_vocabulary *v,
                                   const mli_pb_field *message, int32_t settings[MLI_SPM_SETTINGS],
                                   int *has_rules, ml_error *error) {
    mli_reader in = mli_reader_at(message->bytes, 0, (size_t)message->value);
    uint64_t which = message->tag >> 3;
    mli_pb_field field;
    while (mli_pb_read(&in, &field)) {
        *has_rules |= which != 2 && field.tag == MLI_PB(2, MLI_PB_BYTES) && field.value > 0;
        if (which == 2 && field.tag == MLI_PB(MLI_SPM_UNK_SURFACE, MLI_PB_BYTES)) {
            v->unknown_text = field.bytes;
            v->unknown_size = (size_t)field.value;
        }
        for (int i = 0; i < MLI_SPM_SETTINGS; i++) {
            const struct mli_spm_setting *known = &mli_spm_settings[i];
            if (which == (uint64_t)known->message &&
                field.tag == MLI_PB((uint64_t)known->number, MLI_PB_VARINT))
                settings[i] = (int32_t)(uint32_t)field.value; /* int32, bool and enum alike */
        }
    }
    if (in.failed)
        return mli_spm_corrupt(source, in.p, which == 2 ? "trainer_spec" : "normalizer_spec", error);
    return ML_OK;
}

static ml_result mli_spm_check(const int32_t settings[MLI_SPM_SETTINGS], int has_rules, ml_error *error) {
    static const char *const types[] = {"of an unknown type", "Unigram", "BPE", "Word", "Char"};
    int type = settings[MLI_SPM_MODEL_TYPE], has_suffix = settings[MLI_SPM_SUFFIX];
    if (type != 2)
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "tokenizer.model: the model is %s; only BPE is supported",
                        types[type >= 1 && type <= 4 ? type : 0]);
    if (has_rules)
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "tokenizer.model: precompiled_charsmap rewrites characters; that is not supported");
    if (has_suffix || !settings[MLI_SPM_ESCAPE])
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "tokenizer.model: %s is not supported",
                        has_suffix ? "treat_whitespace_as_suffix" : "escape_whitespaces = false");
    return ML_OK;
}

static ml_result mli_spm_open(mli_piece_source *source, mli_vocabulary *v, ml_error *error) {
    int32_t settings[MLI_SPM_SETTINGS], *const ids[] = {&v->unknown, &v->bos, &v->eos, &v->padding};
    mli_reader in = mli_reader_at(source->data, 0, source->size);
    const unsigned char *at = in.p;
    mli_pb_field field;
    int has_rules = 0;
    ml_result result = ML_OK;
    for (int i = 0; i < MLI_SPM_SETTINGS; i++) settings[i] = mli_spm_settings[i].fallback;
    for (; !result && mli_pb_read(&in, &field); at = in.p) {
        uint64_t number = field.tag >> 3;
        if (field.tag % 8 != MLI_PB_BYTES) continue;
        v->n_pieces += number == 1;
        if (number == 2 || number == 3 || number == 5)
            result = mli_spm_read_spec(source, v, &field, settings, &has_rules, error);
    }
    if (!result && in.failed) result = mli_spm_corrupt(source, at, "a field", error);
    if (!result) result = mli_spm_check(settings, has_rules, error);
    for (int i = MLI_SPM_UNK; i <= MLI_SPM_PAD && !result; i++)
        result = mli_special_id(settings[i], settings[i] == mli_spm_settings[i].fallback,
                                mli_spm_settings[i].name, v->n_pieces, ids[i], error);
    if (!result && v->unknown_size > MLI_MAX_PIECE)
        result = mli_fail(error, ML_ERROR_UNSUPPORTED,
                          "trainer_spec.unk_surface has %z bytes; at most %d are supported", v->unknown_size,
                          MLI_MAX_PIECE);
    v->get = mli_spm_get;
    v->rules.adds_space_prefix = settings[MLI_SPM_PREFIX] != 0;
    v->rules.removes_extra_spaces = settings[MLI_SPM_EXTRA] != 0;
    v->adds_bos = 1;
    const int is_default[3] = {v->bos == 1, v->eos == 2, v->unknown == 0};
    return result ? result : mli_check_default_ids(v, is_default, error);
}

/* ---- GGUF ----
   The keys of the loader and of the saver; llama.cpp's defaults where one is absent. */

#define MLI_KEY_TOKENIZER "tokenizer.ggml.model"
#define MLI_KEY_TOKENS "tokenizer.ggml.tokens"
#define MLI_KEY_WORDS "tokenizer.ggml.pre"
#define MLI_KEY_MERGES "tokenizer.ggml.merges"
#define MLI_KEY_SCORES "tokenizer.ggml.scores"
#define MLI_KEY_KINDS "tokenizer.ggml.token_type"
#define MLI_KEY_PIECES "minillama.pieces" /* how many of the tokens are pieces, if the others only fill up */
#define MLI_TOKENIZER_IDS 6               /* bos, eos, unknown, padding, end of turn, end of message */
#define MLI_TOKENIZER_FLAGS 4             /* adds_bos, adds_eos, adds_space_prefix, removes_extra_spaces */
static const char *const mli_id_keys[MLI_TOKENIZER_IDS] = {
    "tokenizer.ggml.bos_token_id",     "tokenizer.ggml.eos_token_id", "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.padding_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
#define MLI_KEY_ENDS "tokenizer.ggml.eos_token_ids" /* a list; eos may be one as well */
static const char *const mli_flag_keys[MLI_TOKENIZER_FLAGS] = {
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix",
    "tokenizer.ggml.remove_extra_whitespaces"};

/* Element i of a list of integers or floats, of whatever size. */
static double mli_gguf_number(const ml_value *list, size_t i) {
    int type = list->list_type, size = mli_gguf_types[type].size;
    mli_reader in = mli_reader_at((const unsigned char *)list->s, i * (size_t)size, (i + 1) * (size_t)size);
    uint64_t bits = mli_read_uint(&in, size);
    if (type == MLI_GGUF_F32) return (double)mli_bits_float((uint32_t)bits);
    if (type == MLI_GGUF_F64) return mli_double_from_bits(bits);
    return mli_gguf_types[type].is_signed ? (double)mli_signed(bits, size) : (double)bits;
}

/* The nearest float, where C leaves it undefined, too: of a number beyond the largest float. */
static float mli_to_float(double x) {
    const double most = 3.4028234663852886e38;
    return (float)(x > most ? most : x < -most ? -most : x);
}

static ml_result mli_gguf_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_piece_source *source = (mli_piece_source *)context;
    const mli_vocabulary *v = source->vocabulary;
    if (id == 0) source->in = mli_reader_at(source->data, 0, source->size);
    piece->bytes = (const unsigned char *)mli_gguf_string(&source->in, &piece->length);
    if (source->in.failed)
        return mli_fail(error, ML_ERROR_TRUNCATED, MLI_KEY_TOKENS ": string %d is cut short", (int)id);
    piece->score = source->scores ? mli_to_float(mli_gguf_number(source->scores, (size_t)id)) : 0;
    if (source->kinds) {
        double kind = mli_gguf_number(source->kinds, (size_t)id);
        piece->kind = (int)MLI_MIN(MLI_MAX(kind, -1), 99);
        if (piece->kind == 0) piece->kind = ML_PIECE_NORMAL; /* llama.cpp's "undefined" */
    } else {
        piece->kind = mli_guess_kind(piece, id == v->unknown, id == v->bos || id == v->eos);
        if (v->rules.words && piece->kind == ML_PIECE_BYTE) piece->kind = ML_PIECE_NORMAL;
    }
    return ML_OK;
}

/* Both halves of a merge that is written with a space between them. */
static int mli_split_merge(const char *s, size_t n, mli_piece halves[2]) {
    const char *space = n > 1 ? (const char *)memchr(s + 1, ' ', n - 1) : NULL;
    if (!space) return 0;
    memset(halves, 0, 2 * sizeof *halves);
    halves[0].bytes = (const unsigned char *)s;
    halves[0].length = (size_t)(space - s);
    halves[1].bytes = (const unsigned char *)space + 1;
    halves[1].length = n - halves[0].length - 1;
    return 1;
}

MLI_OPTIONAL ml_result mli_gguf_get_merge(void *context, size_t rank, mli_piece halves[2], ml_error *error) {
    mli_piece_source *source = (mli_piece_source *)context;
    size_t length;
    const char *s = mli_gguf_string(&source->merges, &length);
    if (source->merges.failed)
        return mli_fail(error, ML_ERROR_TRUNCATED, MLI_KEY_MERGES ": string %z is cut short", rank);
    if (mli_split_merge(s, length, halves)) return ML_OK;
    return mli_fail(error, ML_ERROR_FORMAT, MLI_KEY_MERGES ": string %z is not two pieces", rank);
}

/* The list under a key, of that type and, unless n is 0, length; *list is NULL when there is no such key. For F32 any
   numbers will do, for I32 integers of any size. */
static ml_result mli_gguf_find_list(const ml_archive *archive, const char *key, int type, size_t n,
                                    const ml_value **list, ml_error *error) {
    const ml_value *value = *list = ml_archive_find_value(archive, key);
    if (!value) return ML_OK;
    ml_value_kind found = mli_gguf_types[value->list_type].kind, wanted = mli_gguf_types[type].kind;
    int fits = found == wanted || (found == ML_VALUE_INT && wanted == ML_VALUE_FLOAT);
    if (value->kind != ML_VALUE_LIST || (!fits && value->length))
        return mli_fail(error, ML_ERROR_FORMAT, "key %s is no list of %s", key,
                        type == MLI_GGUF_STRING ? "strings"
                        : type == MLI_GGUF_F32  ? "numbers"
                                                : "integers");
    if (n && value->length != n)
        return mli_fail(error, ML_ERROR_MISMATCH, "key %s has %z elements, not %z", key, value->length, n);
    return ML_OK;
}

/* The special ids. All ones, as llama.cpp's converter writes it, means that there is none. */
static ml_result mli_gguf_special(const ml_archive *archive, mli_vocabulary *v, ml_error *error) {
    static const int64_t usual[MLI_TOKENIZER_IDS] = {1, 2, 0, -1, -1, -1};
    int32_t end_of_turn, end_of_message;
    int32_t *const ids[MLI_TOKENIZER_IDS] = {&v->bos,     &v->eos,      &v->unknown,
                                             &v->padding, &end_of_turn, &end_of_message};
    int is_default[MLI_TOKENIZER_IDS];
    for (int i = 0; i < MLI_TOKENIZER_IDS; i++) {
        const ml_value *value = ml_archive_find_value(archive, mli_id_keys[i]);
        int is_list = i == 1 && value && value->kind == ML_VALUE_LIST; /* of eos: see mli_gguf_ends */
        int64_t id = value ? value->i : v->rules.words ? -1 : usual[i];
        if (is_list || id == (int64_t)UINT32_MAX || id == INT64_MAX) id = -1; /* 32 or 64 bits of ones */
        if (value && value->kind != ML_VALUE_INT && !is_list)
            return mli_fail(error, ML_ERROR_FORMAT, "key %s is no integer", mli_id_keys[i]);
        is_default[i] = !value; /* an end that has no piece is never drawn: no error */
        ml_result result = mli_special_id(id, !value || i > 3, mli_id_keys[i], v->n_pieces, ids[i], error);
        if (result) return result;
    }
    mli_add_end(v->ends, &v->n_ends, end_of_turn);
    mli_add_end(v->ends, &v->n_ends, end_of_message);
    return mli_check_default_ids(v, is_default, error);
}

/* The lists of ids that end a text; the first of them is eos if no other is. Those without a piece are never drawn,
   and so passed over. */
static ml_result mli_gguf_ends(const ml_archive *archive, mli_vocabulary *v, ml_error *error) {
    const char *const keys[2] = {mli_id_keys[1], MLI_KEY_ENDS};
    for (int k = 0; k < 2; k++) {
        const ml_value *list = ml_archive_find_value(archive, keys[k]);
        if (!list || (k == 0 && list->kind == ML_VALUE_INT)) continue;
        ml_result result = mli_gguf_find_list(archive, keys[k], MLI_GGUF_I32, 0, &list, error);
        if (result) return result;
        for (size_t i = 0; i < list->length && i < 64; i++) {
            double id = mli_gguf_number(list, i);
            if (!(id >= 0 && id < (double)v->n_pieces)) continue;
            mli_add_end(v->ends, &v->n_ends, (int32_t)id);
            if (v->eos < 0) v->eos = (int32_t)id;
        }
    }
    return ML_OK;
}

/* A file that says not to add bos, and does not give its id, has none: that is how a vocabulary without bos is
   written. */
static ml_result mli_gguf_flags(const ml_archive *archive, mli_vocabulary *v, ml_error *error) {
    int *const flags[MLI_TOKENIZER_FLAGS] = {&v->adds_bos, &v->adds_eos, &v->rules.adds_space_prefix,
                                             &v->rules.removes_extra_spaces};
    v->rules.adds_space_prefix = v->adds_bos = !v->rules.words;
#ifndef ML_NO_BPE
    if (v->rules.words) v->adds_bos = v->rules.words->adds_bos;
#endif
    for (int i = 0; i < MLI_TOKENIZER_FLAGS; i++) {
        const ml_value *value = ml_archive_find_value(archive, mli_flag_keys[i]);
        if (value && value->kind != ML_VALUE_BOOL && value->kind != ML_VALUE_INT)
            return mli_fail(error, ML_ERROR_FORMAT, "key %s is no bool", mli_flag_keys[i]);
        if (value) *flags[i] = value->i != 0;
    }
    if (!v->adds_bos && !ml_archive_find_value(archive, mli_id_keys[0])) v->bos = -1;
    return ML_OK;
}

/* What llama.cpp calls the kinds of tokenizers, and what they are. */
static ml_result mli_refuse_tokenizer_kind(const ml_value *model, ml_error *error) {
    static const char *const kinds[][2] = {{"gpt2", "byte-level BPE, left out by ML_NO_BPE"},
                                           {"bert", "WordPiece"},
                                           {"t5", "Unigram"},
                                           {"rwkv", "RWKV"},
                                           {"none", "no tokenizer"},
                                           {"no_vocab", "no tokenizer"}};
    char name[32];
    const char *what = "unknown";
    size_t at = 0;
    mli_put(name, sizeof name, &at, model->s, model->length);
    for (size_t i = 0; i < MLI_COUNT(kinds); i++)
        if (strcmp(name, kinds[i][0]) == 0) what = kinds[i][1];
    return mli_fail(error, ML_ERROR_UNSUPPORTED,
                    MLI_KEY_TOKENIZER
                    " is \"%s\" (%s); \"llama\" (SentencePiece BPE) and \"gpt2\" (byte-level "
                    "BPE) are supported",
                    name, what);
}

#ifndef ML_NO_BPE
/* Control pieces that end a text, whether the file says so or not, as in llama.cpp; and, where it does not say which
   are bos and eos (finds_bos), those that are spelled like one. */
static ml_result mli_find_usual_special(mli_vocabulary *v, int finds_bos, ml_error *error) {
    static const char *const bos[] = {"<s>", "<|begin_of_text|>", "<|endoftext|>"};
    static const char *const ends[] = {"</s>",       "<|end_of_text|>", "<|endoftext|>",
                                       "<|eot_id|>", "<|eom_id|>",      "<|im_end|>"};
    for (int32_t id = 0; id < (int32_t)v->n_pieces; id++) {
        mli_piece piece;
        ml_result result = v->get(v->context, id, &piece, error);
        if (result) return result;
        if (piece.kind != ML_PIECE_CONTROL) continue;
        for (size_t i = 0; i < MLI_COUNT(bos) && finds_bos && v->bos < 0; i++)
            if (mli_is_text((const char *)piece.bytes, piece.length, bos[i])) v->bos = id;
        for (size_t i = 0; i < MLI_COUNT(ends); i++) {
            if (!mli_is_text((const char *)piece.bytes, piece.length, ends[i])) continue;
            if (finds_bos && v->eos < 0 && i < 3) v->eos = id;
            mli_add_end(v->ends, &v->n_ends, id);
        }
    }
    return ML_OK;
}

/* Of byte-level BPE: the pre-tokenizer and the merges. */
static ml_result mli_gguf_words(const ml_archive *archive, mli_piece_source *source, mli_vocabulary *v,
                                ml_error *error) {
    const ml_value *name = ml_archive_find_value(archive, MLI_KEY_WORDS), *merges;
    char text[64];
    size_t at = 0;
    if (!name || name->kind != ML_VALUE_STRING)
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "key " MLI_KEY_TOKENIZER " is \"gpt2\", but there is no key " MLI_KEY_WORDS
                        ", which names its pre-tokenizer");
    v->rules.words = mli_find_word_rule(name->s, name->length);
    mli_put(text, sizeof text, &at, name->s, name->length);
    if (!v->rules.words)
        return mli_fail(error, ML_ERROR_UNSUPPORTED,
                        "key " MLI_KEY_WORDS
                        ": pre-tokenizer \"%s\" is not supported; gpt-2, llama-bpe, smollm and "
                        "qwen2 are",
                        text);
    v->rules.takes_whole_words = v->rules.words->takes_whole_words;
    ml_result result = mli_gguf_find_list(archive, MLI_KEY_MERGES, MLI_GGUF_STRING, 0, &merges, error);
    if (!result && !merges)
        result = mli_fail(error, ML_ERROR_FORMAT, "byte-level BPE without key " MLI_KEY_MERGES);
    if (result) return result;
    v->rules.is_ranked = 1;
    v->n_merges = merges->length;
    v->get_merge = mli_gguf_get_merge;
    const unsigned char *data = (const unsigned char *)merges->s;
    source->merges = mli_reader_at(data, 0, v->n_merges ? (size_t)(source->data + source->size - data) : 0);
    return ML_OK;
}
#endif

/* Whether the tokenizer's model is one that is read. */
static ml_result mli_gguf_kind(const ml_archive *archive, mli_piece_source *source, mli_vocabulary *v,
                               ml_error *error) {
    const ml_value *model = ml_archive_find_value(archive, MLI_KEY_TOKENIZER);
    (void)source, (void)v;
    if (mli_is_text(model->s, model->length, "llama")) return ML_OK;
#ifndef ML_NO_BPE
    if (mli_is_text(model->s, model->length, "gpt2")) return mli_gguf_words(archive, source, v, error);
#endif
    return mli_refuse_tokenizer_kind(model, error);
}

static ml_result mli_tokenizer_from_archive(const ml_archive *archive, const ml_allocator *allocator,
                                            ml_tokenizer **tokenizer, ml_error *error) {
    const ml_value *model = ml_archive_find_value(archive, MLI_KEY_TOKENIZER), *tokens;
    mli_piece_source source;
    mli_vocabulary v = mli_no_vocabulary();
    memset(&source, 0, sizeof source);
    ml_result result = mli_gguf_find_list(archive, MLI_KEY_TOKENS, MLI_GGUF_STRING, 0, &tokens, error);
    if (result) return result;
    if (!tokens || !model || model->kind != ML_VALUE_STRING)
        return mli_fail(error, ML_ERROR_FORMAT, "no tokenizer in this file: key %s is absent",
                        tokens ? MLI_KEY_TOKENIZER : MLI_KEY_TOKENS);
    v.n_pieces = tokens->length;
    v.get = mli_gguf_get;
    v.context = &source;
    source.data = (const unsigned char *)tokens->s;
    source.size =
        v.n_pieces ? (size_t)(archive->private_part->data + archive->private_part->size - source.data) : 0;
    source.vocabulary = &v;
    result = mli_gguf_kind(archive, &source, &v, error);
    if (result) return result;
    result = mli_gguf_find_list(archive, MLI_KEY_SCORES, MLI_GGUF_F32, v.n_pieces, &source.scores, error);
    if (!result)
        result = mli_gguf_find_list(archive, MLI_KEY_KINDS, MLI_GGUF_I32, v.n_pieces, &source.kinds, error);
    const ml_value *pieces = ml_archive_find_value(archive, MLI_KEY_PIECES);
    if (pieces && pieces->kind == ML_VALUE_INT && pieces->i > 0)
        v.n_pieces = (size_t)MLI_MIN((uint64_t)pieces->i, (uint64_t)v.n_pieces);
    if (!result && v.n_pieces) result = mli_gguf_special(archive, &v, error);
    if (!result && v.n_pieces) result = mli_gguf_ends(archive, &v, error);
    if (!result) result = mli_gguf_flags(archive, &v, error);
#ifndef ML_NO_BPE
    if (!result && v.rules.words && v.n_pieces) result = mli_find_usual_special(&v, 0, error);
#endif
    return result ? result : mli_tokenizer_create(&v, allocator, tokenizer, error);
}

#ifndef ML_NO_BPE
/* ---- Meta's tokenizer.model of Llama 3 ----
   As OpenAI's tiktoken writes it: a line for each piece, its bytes in base64 and its rank, which is its id. Neighbors
   whose joint piece has the lowest rank are merged first. The special pieces that follow are only in Meta's code. */

enum { MLI_META_SPECIAL = 256, MLI_META_RESERVED = 11 };

static void mli_meta_special(int i, mli_piece_source *source, mli_piece *piece) {
    static const char *const names[MLI_META_RESERVED] = {"begin_of_text",
                                                         "end_of_text",
                                                         "reserved_special_token_0",
                                                         "reserved_special_token_1",
                                                         "finetune_right_pad_id",
                                                         "reserved_special_token_2",
                                                         "start_header_id",
                                                         "end_header_id",
                                                         "eom_id",
                                                         "eot_id",
                                                         "python_tag"};
    char *text = (char *)source->piece;
    if (i < MLI_META_RESERVED)
        mli_format(text, sizeof source->piece, "<|%s|>", names[i]);
    else
        mli_format(text, sizeof source->piece, "<|reserved_special_token_%d|>", i - MLI_META_RESERVED + 3);
    piece->length = strlen(text);
    piece->kind = ML_PIECE_CONTROL;
}

/* The six bits of a character of base64; -1: it is none. */
static int mli_base64(unsigned char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Reads base64 up to the space after it, as pieces are written. Returns the piece's length; 0: it cannot be read. */
static size_t mli_read_base64(mli_reader *in, unsigned char *piece) {
    uint32_t bits = 0;
    size_t length = 0, n_bytes = 0;
    int n_bits = 0;
    for (; in->p < in->end && *in->p != ' '; in->p++) {
        int digit = mli_base64(*in->p);
        if (*in->p == '=') continue;
        if (digit < 0 || n_bytes == MLI_MAX_PIECE) return 0;
        bits = bits << 6 | (uint32_t)digit;
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        n_bytes++;
        length += mli_put_utf8((char *)piece + length, mli_spell_byte(bits >> n_bits & 255));
    }
    return length;
}

static ml_result mli_tiktoken_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    mli_piece_source *source = (mli_piece_source *)context;
    mli_reader *in = &source->in;
    uint64_t rank = 0;
    size_t n_base = source->vocabulary->n_pieces - MLI_META_SPECIAL;
    if (id == 0) *in = mli_reader_at(source->data, mli_text_begin(source->data, source->size), source->size);
    memset(piece, 0, sizeof *piece);
    piece->bytes = source->piece;
    if ((size_t)id >= n_base) {
        mli_meta_special(id - (int32_t)n_base, source, piece);
        return ML_OK;
    }
    piece->kind = ML_PIECE_NORMAL;
    piece->score = -(float)id;
    piece->length = mli_read_base64(in, source->piece);
    const unsigned char *digits = in->p + 1;
    for (in->p += in->p < in->end; in->p < in->end && *in->p >= '0' && *in->p <= '9' && rank < 1u << 30;
         in->p++)
        rank = rank * 10 + (uint64_t)(*in->p - '0');
    int is_number = in->p > digits && (in->p == in->end || *in->p == '\n' || *in->p == '\r');
    while (in->p < in->end && (*in->p == '\n' || *in->p == '\r')) in->p++;
    if (!piece->length || !is_number)
        return mli_fail(error, ML_ERROR_FORMAT, "tokenizer.model: line %d is not base64 and a rank",
                        (int)id + 1);
    if (rank == (uint64_t)id) return ML_OK;
    return mli_fail(error, ML_ERROR_FORMAT, "tokenizer.model: line %d has rank %l, not %d", (int)id + 1,
                    (int64_t)rank, (int)id);
}

static ml_result mli_tiktoken_open(mli_piece_source *source, mli_vocabulary *v, ml_error *error) {
    size_t n_base = 0;
    for (size_t i = mli_text_begin(source->data, source->size); i < source->size; i++) {
        int is_end = source->data[i] == '\n' || source->data[i] == '\r';
        int is_last = i + 1 == source->size || source->data[i + 1] == '\n' || source->data[i + 1] == '\r';
        n_base += !is_end && is_last ? 1 : 0;
    }
    (void)error;
    source->vocabulary = v;
    v->get = mli_tiktoken_get;
    v->n_pieces = n_base + MLI_META_SPECIAL;
    v->rules.words = mli_find_word_rule("llama-bpe", 9);
    v->rules.takes_whole_words = v->adds_bos = 1;
    if (n_base > MLI_MAX_PIECES) return ML_OK; /* an error later */
    v->bos = (int32_t)n_base;
    v->eos = v->bos + 1;
    mli_add_end(v->ends, &v->n_ends, v->bos + 9); /* of a turn, */
    mli_add_end(v->ends, &v->n_ends, v->bos + 8); /* of a message */
    return ML_OK;
}

/* ---- Hugging Face's tokenizer.json ----
   One JSON object: a model ("type" BPE, a "vocab" of pieces and ids, "merges" in the order of their ranks), the
   "added_tokens", and what is done around it: "normalizer", "pre_tokenizer", "post_processor", "decoder", each null,
   a step, or a Sequence of steps. The lists are read into lists, all else into the values of an archive. Every step
   must be one that is known to do what the tokenizers here do. */

typedef struct mli_hf_merge {
    const char *text[2]; /* (length) */
    size_t length[2];
} mli_hf_merge;

typedef struct mli_hf_entry {
    const char *text; /* (length) */
    size_t length;
    int32_t id;
} mli_hf_entry;

typedef struct mli_hf {
    mli_archive *archive;   /* has the strings and values */
    mli_list vocab, merges; /* of mli_hf_entry, of mli_hf_merge */
    mli_piece *pieces;      /* (vocabulary.n_pieces) by id */
    mli_vocabulary vocabulary;
    int is_byte_level, has_digits, replaces; /* steps: ByteLevel, Digits, Replace " " by U+2581 */
} mli_hf;

/* Appends to a sentence what a file wrote. */
static ml_result mli_hf_refuse(mli_hf *hf, const char *what, const ml_value *value) {
    char text[96];
    size_t at = 0;
    text[0] = 0;
    if (value && value->kind == ML_VALUE_STRING)
        mli_put(text, sizeof text, &at, value->s, value->length);
    else
        mli_put(text, sizeof text, &at, "of no name", 10);
    return mli_stop(hf->archive, ML_ERROR_UNSUPPORTED, "%s %s is not supported", what, text);
}

/* "PREFIX.KEY", or NULL. */
static const ml_value *mli_hf_value(const mli_hf *hf, const char *prefix, const char *key) {
    char name[2 * ML_NAME_SIZE];
    mli_format(name, sizeof name, "%s.%s", prefix, key);
    return ml_archive_find_value(&hf->archive->shown, name);
}

static int mli_hf_has_text(const mli_hf *hf, const char *prefix, const char *key, const char *text) {
    const ml_value *value = mli_hf_value(hf, prefix, key);
    return value && value->kind == ML_VALUE_STRING && mli_is_text(value->s, value->length, text);
}

static int mli_hf_flag(const mli_hf *hf, const char *prefix, const char *key, int otherwise) {
    const ml_value *value = mli_hf_value(hf, prefix, key);
    return value && value->kind == ML_VALUE_BOOL ? value->i != 0 : otherwise;
}

/* Step i of a component: where its values are, and its type; 0: there is no such step. */
static int mli_hf_step(const mli_hf *hf, const char *component, const char *list, int i,
                       char prefix[ML_NAME_SIZE], const ml_value **type) {
    int is_sequence = mli_hf_has_text(hf, component, "type", "Sequence");
    if (!is_sequence && i) return 0;
    mli_format(prefix, ML_NAME_SIZE, is_sequence ? "%s.%s.%d" : "%s", component, list, i);
    *type = mli_hf_value(hf, prefix, "type");
    return *type != NULL;
}

/* ---- its lists ---- */

static void mli_hf_read_vocab(mli_hf *hf, mli_json *json) {
    const int64_t most = MLI_MAX_PIECES;
    if (!mli_json_take(json, '{')) {
        mli_stop(hf->archive, ML_ERROR_UNSUPPORTED,
                 "the vocab is no object (in Unigram models it is a list); only BPE is supported");
        return;
    }
    for (int64_t i = 0, id; mli_json_more(json, '}', i); i++) {
        mli_hf_entry *entry = (mli_hf_entry *)mli_list_add(hf->archive, &hf->vocab, sizeof *entry);
        double ignored;
        entry->text = mli_json_key(json, &entry->length);
        mli_json_peek(json);
        if (!mli_json_number(json, &id, &ignored) || id < 0 || id >= most)
            mli_stop(hf->archive, ML_ERROR_FORMAT, "vocab: the id of \"%s\" is not an integer below %l",
                     entry->text, most);
        else
            entry->id = (int32_t)id;
    }
}

/* ["a b", ...], or, in newer files, [["a", "b"], ...]. */
static void mli_hf_read_merges(mli_hf *hf, mli_json *json) {
    mli_json_expect(json, '[', "a list is missing");
    for (int64_t i = 0; mli_json_more(json, ']', i); i++) {
        mli_hf_merge *merge = (mli_hf_merge *)mli_list_add(hf->archive, &hf->merges, sizeof *merge);
        mli_piece halves[2];
        size_t length;
        if (mli_json_take(json, '[')) {
            merge->text[0] = mli_json_string(json, &merge->length[0]);
            mli_json_expect(json, ',', "a comma is missing");
            merge->text[1] = mli_json_string(json, &merge->length[1]);
            mli_json_expect(json, ']', "the end of a pair is missing");
            continue;
        }
        const char *text = mli_json_string(json, &length);
        int is_pair = mli_split_merge(text, length, halves);
        if (!is_pair) mli_stop(hf->archive, ML_ERROR_FORMAT, "merges: \"%s\" is not two pieces", text);
        for (int k = 0; k < 2 && is_pair; k++) {
            merge->text[k] = (const char *)halves[k].bytes;
            merge->length[k] = halves[k].length;
        }
    }
}

/* A member that is no list of the above becomes values. */
static void mli_hf_read_other(mli_hf *hf, mli_json *json, const char *key, size_t length, int depth) {
    size_t path_length = hf->archive->path_length;
    mli_json_push(hf->archive, key, length, 0);
    if (!hf->archive->result) mli_json_value(json, depth);
    hf->archive->path_length = path_length;
}

static ml_result mli_hf_refuse_model(mli_hf *hf, const ml_value *type) {
    if (type && type->kind == ML_VALUE_STRING)
        return mli_hf_refuse(hf, "only BPE is supported: the model", type);
    return mli_stop(hf->archive, ML_ERROR_UNSUPPORTED,
                    "there is no model of type BPE, with vocab and merges");
}

/* Of the model, whose type is the value read last. */
static void mli_hf_check_type(mli_hf *hf) {
    size_t n = hf->archive->values.n;
    const ml_value *type = n ? (const ml_value *)hf->archive->values.items + n - 1 : NULL;
    if (type && strcmp(type->name, "model.type") == 0 && !mli_is_text(type->s, type->length, "BPE"))
        mli_hf_refuse_model(hf, type);
}

static void mli_hf_read_model(mli_hf *hf, mli_json *json) {
    size_t length;
    mli_path_push(hf->archive, "model", 5);
    mli_json_expect(json, '{', "an object is missing");
    for (int64_t i = 0; mli_json_more(json, '}', i); i++) {
        const char *key = mli_json_key(json, &length);
        if (mli_is_text(key, length, "vocab"))
            mli_hf_read_vocab(hf, json);
        else if (mli_is_text(key, length, "merges"))
            mli_hf_read_merges(hf, json);
        else
            mli_hf_read_other(hf, json, key, length, 2);
        if (mli_is_text(key, length, "type")) mli_hf_check_type(hf); /* before a list is read in vain */
    }
    hf->archive->path_length = 0;
}

static void mli_hf_read(mli_hf *hf, const void *data, size_t size) {
    const unsigned char *begin = (const unsigned char *)data;
    mli_json json = {mli_reader_at(begin, 0, size), begin, hf->archive};
    size_t length;
    mli_allow_names(hf->archive, size);
    mli_json_word(&json, "\xef\xbb\xbf"); /* a byte order mark */
    mli_json_expect(&json, '{', "an object is missing");
    for (int64_t i = 0; mli_json_more(&json, '}', i); i++) {
        const char *key = mli_json_key(&json, &length);
        if (mli_is_text(key, length, "model"))
            mli_hf_read_model(hf, &json);
        else
            mli_hf_read_other(hf, &json, key, length, 1);
    }
    if (!hf->archive->result && mli_json_peek(&json)) mli_json_fail(&json, "more text than one value");
    hf->archive->may_repeat = 2; /* as in Python */
    mli_publish(hf->archive);
}

/* ---- its pieces ---- */

/* Enters a piece under its id. Added tokens are in the vocab again, or follow it. */
static void mli_hf_set_piece(mli_hf *hf, int32_t id, const char *text, size_t length, int kind) {
    mli_piece *piece = &hf->pieces[id];
    int is_added = kind != ML_PIECE_NORMAL;
    int is_same =
        piece->kind && mli_compare_text((const char *)piece->bytes, piece->length, text, length) == 0;
    if (piece->kind && !(is_added && is_same)) {
        mli_stop(hf->archive, ML_ERROR_FORMAT, "two pieces have the id %d: \"%s\" and \"%s\"", (int)id,
                 (const char *)piece->bytes, text);
        return;
    }
    piece->bytes = (const unsigned char *)text;
    piece->length = length;
    piece->kind = kind;
    if (!is_added && !hf->is_byte_level && mli_byte_of_piece(piece->bytes, length) >= 0)
        piece->kind = ML_PIECE_BYTE;
}

/* Added token i; 0: there is none. With pieces, enters it. */
static int mli_hf_added(mli_hf *hf, int i, int64_t *id) {
    char prefix[ML_NAME_SIZE];
    mli_format(prefix, sizeof prefix, "added_tokens.%d", i);
    const ml_value *number = mli_hf_value(hf, prefix, "id"), *content = mli_hf_value(hf, prefix, "content");
    if (hf->archive->result || (!number && !content)) return 0;
    if (!number || number->kind != ML_VALUE_INT || number->i < 0 || number->i >= MLI_MAX_PIECES || !content ||
        content->kind != ML_VALUE_STRING) {
        mli_stop(hf->archive, ML_ERROR_FORMAT, "added_tokens: number %d has no content, or no id below %d", i,
                 MLI_MAX_PIECES);
        return 0;
    }
    *id = number->i;
    if (!hf->pieces) return 1;
    int is_special = mli_hf_flag(hf, prefix, "special", 0);
    int strips = mli_hf_flag(hf, prefix, "lstrip", 0) || mli_hf_flag(hf, prefix, "rstrip", 0) ||
                 mli_hf_flag(hf, prefix, "single_word", 0);
    if (strips && !is_special) mli_hf_refuse(hf, "lstrip, rstrip or single_word of added token", content);
    mli_hf_set_piece(hf, (int32_t)*id, content->s, content->length,
                     is_special ? ML_PIECE_CONTROL : ML_PIECE_USER_DEFINED);
    return !hf->archive->result;
}

static ml_result mli_hf_get(void *context, int32_t id, mli_piece *piece, ml_error *error) {
    const mli_hf *hf = (const mli_hf *)context;
    (void)error;
    *piece = hf->pieces[id];
    if (piece->kind == 0) piece->kind = ML_PIECE_UNUSED; /* an id that the file leaves out: an empty piece */
    return ML_OK;
}

static ml_result mli_hf_get_merge(void *context, size_t rank, mli_piece halves[2], ml_error *error) {
    const mli_hf_merge *merge = (const mli_hf_merge *)((const mli_hf *)context)->merges.items + rank;
    (void)error;
    memset(halves, 0, 2 * sizeof *halves);
    for (int i = 0; i < 2; i++) {
        halves[i].bytes = (const unsigned char *)merge->text[i];
        halves[i].length = merge->length[i];
    }
    return ML_OK;
}

/* The pieces by their ids. A file's few lines must not ask for a table of a million. */
static void mli_hf_fill(mli_hf *hf) {
    const mli_hf_entry *vocab = (const mli_hf_entry *)hf->vocab.items;
    int64_t last = -1, id;
    int n_added = 0;
    for (size_t i = 0; i < hf->vocab.n; i++) last = MLI_MAX(last, vocab[i].id);
    for (; mli_hf_added(hf, n_added, &id); n_added++) last = MLI_MAX(last, id);
    size_t most = 2 * (hf->vocab.n + (size_t)n_added) + 1024;
    if (last >= (int64_t)most)
        mli_stop(hf->archive, ML_ERROR_FORMAT, "there is an id %l, but there are only %z pieces", last,
                 hf->vocab.n + (size_t)n_added);
    if (hf->archive->result) return;
    hf->vocabulary.n_pieces = (size_t)(last + 1);
    hf->pieces = (mli_piece *)mli_alloc(&hf->archive->allocator, (size_t)(last + 1), sizeof *hf->pieces);
    if (!hf->pieces) mli_no_memory(hf->archive);
    for (size_t i = 0; i < hf->vocab.n && !hf->archive->result; i++)
        mli_hf_set_piece(hf, vocab[i].id, vocab[i].text, vocab[i].length, ML_PIECE_NORMAL);
    for (int i = 0; mli_hf_added(hf, i, &id); i++) continue;
}

/* The id of the piece that a value names; -1: there is none. */
static int32_t mli_hf_id(const mli_hf *hf, const ml_value *text) {
    if (!text || text->kind != ML_VALUE_STRING) return -1;
    for (int32_t id = 0; id < (int32_t)hf->vocabulary.n_pieces; id++) {
        const mli_piece *piece = &hf->pieces[id];
        if (piece->kind &&
            !mli_compare_text((const char *)piece->bytes, piece->length, text->s, text->length))
            return id;
    }
    return -1;
}

/* ---- its steps ---- */

static void mli_hf_normalizer(mli_hf *hf) {
    char at[ML_NAME_SIZE];
    const ml_value *type;
    for (int i = 0; mli_hf_step(hf, "normalizer", "normalizers", i, at, &type); i++) {
        int replaces = mli_hf_has_text(hf, at, "type", "Replace") &&
                       mli_hf_has_text(hf, at, "pattern.String", " ") &&
                       mli_hf_has_text(hf, at, "content", MLI_MARK);
        if (replaces)
            hf->replaces = 1;
        else if (mli_hf_has_text(hf, at, "type", "Prepend") && mli_hf_has_text(hf, at, "prepend", MLI_MARK))
            hf->vocabulary.rules.adds_space_prefix = 1;
        else if (!mli_hf_has_text(hf, at, "type", "NFC")) /* see ml_tokenizer_load */
            mli_hf_refuse(hf, "normalizer", type);
    }
}

/* The expressions that Hugging Face's files have, and whose they are. */
static const mli_word_rule *mli_hf_pattern(const ml_value *pattern) {
    static const char contractions[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}";
    static const char spaces[] = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    static const char gpt2[] =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    static const char *const counts[][2] = {{"{1,3}", "llama-bpe"}, {"", "qwen2"}};
    char text[256];
    if (!pattern || pattern->kind != ML_VALUE_STRING) return NULL;
    if (mli_is_text(pattern->s, pattern->length, gpt2)) return mli_find_word_rule("gpt-2", 5);
    for (size_t i = 0; i < MLI_COUNT(counts); i++) {
        mli_format(text, sizeof text, "%s%s%s", contractions, counts[i][0], spaces);
        if (mli_is_text(pattern->s, pattern->length, text))
            return mli_find_word_rule(counts[i][1], strlen(counts[i][1]));
    }
    return NULL;
}

static void mli_hf_split(mli_hf *hf, const char *at) {
    mli_text_rules *rules = &hf->vocabulary.rules;
    const ml_value *pattern = mli_hf_value(hf, at, "pattern.Regex");
    int inverted = mli_hf_flag(hf, at, "invert", 0);
    int keeps_all = mli_hf_has_text(hf, at, "behavior", inverted ? "Removed" : "Isolated");
    if (hf->replaces && mli_hf_has_text(hf, at, "pattern.String", " ")) return; /* there is none left */
    const mli_word_rule *found = keeps_all && !rules->words ? mli_hf_pattern(pattern) : NULL;
    if (found)
        rules->words = found;
    else
        mli_hf_refuse(hf, "pre_tokenizer Split by",
                      pattern ? pattern : mli_hf_value(hf, at, "pattern.String"));
}

/* Hugging Face's counterpart of SentencePiece's marks. */
static void mli_hf_metaspace(mli_hf *hf, const char *at) {
    mli_text_rules *rules = &hf->vocabulary.rules;
    const ml_value *scheme = mli_hf_value(hf, at, "prepend_scheme");
    if (!mli_hf_has_text(hf, at, "replacement", MLI_MARK))
        mli_hf_refuse(hf, "Metaspace with replacement", mli_hf_value(hf, at, "replacement"));
    hf->replaces = 1;
    rules->cuts_at_spaces = mli_hf_flag(hf, at, "split", 1);
    rules->spares_spaces = !rules->adds_space_prefix;
    rules->only_first = mli_hf_has_text(hf, at, "prepend_scheme", "first");
    rules->adds_space_prefix |= scheme ? !mli_hf_has_text(hf, at, "prepend_scheme", "never")
                                       : mli_hf_flag(hf, at, "add_prefix_space", 1);
}

static void mli_hf_pre_tokenizer(mli_hf *hf) {
    mli_text_rules *rules = &hf->vocabulary.rules;
    char at[ML_NAME_SIZE];
    const ml_value *type;
    for (int i = 0; mli_hf_step(hf, "pre_tokenizer", "pretokenizers", i, at, &type); i++) {
        if (mli_hf_has_text(hf, at, "type", "ByteLevel")) {
            hf->is_byte_level = 1;
            if (mli_hf_flag(hf, at, "add_prefix_space", 1))
                mli_hf_refuse(hf, "add_prefix_space of pre_tokenizer", type);
            int splits = mli_hf_flag(hf, at, "use_regex", 1);
            if (splits == (rules->words != NULL))
                mli_hf_refuse(hf,
                              splits ? "use_regex after Split of pre_tokenizer"
                                     : "use_regex = false without Split of pre_tokenizer",
                              type);
            const char *name = hf->has_digits ? "smollm" : "gpt-2";
            if (splits) rules->words = mli_find_word_rule(name, strlen(name));
        } else if (mli_hf_has_text(hf, at, "type", "Digits") && mli_hf_flag(hf, at, "individual_digits", 0) &&
                   !rules->words) {
            hf->has_digits = 1;
        } else if (mli_hf_has_text(hf, at, "type", "Split") && !hf->has_digits) {
            mli_hf_split(hf, at);
        } else if (mli_hf_has_text(hf, at, "type", "Metaspace")) {
            mli_hf_metaspace(hf, at);
        } else {
            mli_hf_refuse(hf, "pre_tokenizer", type);
        }
    }
}

/* Whether a step of a decoder does what decoding does here anyway. */
static int mli_hf_knows_decoder(const mli_hf *hf, const char *at) {
    if (mli_hf_has_text(hf, at, "type", "ByteLevel")) return hf->is_byte_level;
    if (hf->is_byte_level) return 0;
    if (mli_hf_has_text(hf, at, "type", "Replace"))
        return mli_hf_has_text(hf, at, "pattern.String", MLI_MARK) && mli_hf_has_text(hf, at, "content", " ");
    if (mli_hf_has_text(hf, at, "type", "Strip")) return mli_hf_has_text(hf, at, "content", " ");
    return mli_hf_has_text(hf, at, "type", "ByteFallback") || mli_hf_has_text(hf, at, "type", "Fuse") ||
           mli_hf_has_text(hf, at, "type", "Metaspace");
}

/* Of a template only that a text begins with bos and ends with eos can be done. */
static void mli_hf_template(mli_hf *hf, const char *at) {
    mli_vocabulary *v = &hf->vocabulary;
    char key[48];
    int is_after = 0;
    for (int i = 0; !hf->archive->result; i++) {
        mli_format(key, sizeof key, "single.%d.Sequence.id", i);
        int is_text = mli_hf_value(hf, at, key) != NULL;
        mli_format(key, sizeof key, "single.%d.SpecialToken.id", i);
        const ml_value *token = mli_hf_value(hf, at, key);
        if (!token && !is_text) break;
        is_after |= is_text;
        if (is_text) continue;
        int32_t *id = is_after ? &v->eos : &v->bos;
        if (*(is_after ? &v->adds_eos : &v->adds_bos))
            mli_hf_refuse(hf, "TemplateProcessing with another", token);
        *id = mli_hf_id(hf, token);
        *(is_after ? &v->adds_eos : &v->adds_bos) = 1;
        if (*id < 0) mli_stop(hf->archive, ML_ERROR_FORMAT, "post_processor: no piece for its special token");
    }
}

static void mli_hf_around(mli_hf *hf) {
    char at[ML_NAME_SIZE];
    const ml_value *type;
    for (int i = 0; mli_hf_step(hf, "decoder", "decoders", i, at, &type); i++)
        if (!mli_hf_knows_decoder(hf, at)) mli_hf_refuse(hf, "decoder", type);
    for (int i = 0; mli_hf_step(hf, "post_processor", "processors", i, at, &type); i++) {
        if (mli_hf_has_text(hf, at, "type", "TemplateProcessing"))
            mli_hf_template(hf, at);
        else if (!mli_hf_has_text(hf, at, "type", "ByteLevel"))
            mli_hf_refuse(hf, "post_processor", type);
    }
}

/* What the model itself says. A file that names no type is older: BPE if it has merges. */
static void mli_hf_model(mli_hf *hf) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const ml_value *type = mli_hf_value(hf, "model", "type"), *dropout = mli_hf_value(hf, "model", "dropout");
    if (type ? !mli_hf_has_text(hf, "model", "type", "BPE") : !hf->merges.n || !hf->vocab.n)
        mli_hf_refuse_model(hf, type);
    for (size_t i = 0; i < MLI_COUNT(affixes); i++) {
        const ml_value *affix = mli_hf_value(hf, "model", affixes[i]);
        if (affix && affix->kind == ML_VALUE_STRING && affix->length) mli_hf_refuse(hf, affixes[i], affix);
    }
    if (dropout && dropout->f > 0) mli_hf_refuse(hf, "a model with dropout", NULL);
    if (!hf->is_byte_level && !mli_hf_flag(hf, "model", "byte_fallback", 0))
        mli_stop(hf->archive, ML_ERROR_UNSUPPORTED,
                 "BPE of characters without byte_fallback, and not ByteLevel, is not supported");
    if (!hf->is_byte_level && !hf->replaces)
        mli_stop(hf->archive, ML_ERROR_UNSUPPORTED,
                 "BPE of characters that leaves spaces as they are is not supported");
    if (hf->is_byte_level && (hf->replaces || hf->vocabulary.rules.adds_space_prefix))
        mli_stop(hf->archive, ML_ERROR_UNSUPPORTED,
                 "a normalizer that replaces spaces before ByteLevel is not supported");
    hf->vocabulary.rules.takes_whole_words =
        hf->is_byte_level && mli_hf_flag(hf, "model", "ignore_merges", 0);
}

static void mli_hf_unknown(mli_hf *hf) {
    mli_vocabulary *v = &hf->vocabulary;
    v->unknown = mli_hf_id(hf, mli_hf_value(hf, "model", "unk_token"));
    if (v->unknown >= 0 && !hf->is_byte_level) hf->pieces[v->unknown].kind = ML_PIECE_UNKNOWN;
}

static ml_result mli_hf_create(mli_hf *hf, ml_tokenizer **tokenizer, ml_error *error) {
    mli_vocabulary *v = &hf->vocabulary;
    void (*const steps[])(mli_hf *) = {mli_hf_normalizer, mli_hf_pre_tokenizer, mli_hf_model,
                                       mli_hf_fill,       mli_hf_unknown,       mli_hf_around};
    for (size_t i = 0; i < MLI_COUNT(steps) && !hf->archive->result; i++) steps[i](hf);
    if (hf->archive->result) return hf->archive->result;
    v->context = hf;
    v->get = mli_hf_get;
    v->get_merge = mli_hf_get_merge;
    v->n_merges = hf->merges.n;
    v->rules.is_ranked = 1;
    ml_result result = mli_find_usual_special(v, 1, error);
    return result ? result : mli_tokenizer_create(v, &hf->archive->allocator, tokenizer, error);
}

static ml_result mli_tokenizer_from_json(const void *data, size_t size, const ml_allocator *allocator,
                                         ml_tokenizer **tokenizer, ml_error *error) {
    mli_hf hf;
    memset(&hf, 0, sizeof hf);
    hf.vocabulary = mli_no_vocabulary();
    hf.archive = mli_archive_new(allocator, error);
    if (!hf.archive) return ML_ERROR_MEMORY;
    hf.archive->reading = "tokenizer.json";
    mli_hf_read(&hf, data, size);
    ml_result result = hf.archive->result;
    if (!result) result = mli_hf_create(&hf, tokenizer, error);
    mli_free(allocator, hf.vocab.items);
    mli_free(allocator, hf.merges.items);
    mli_free(allocator, hf.pieces);
    ml_archive_free(&hf.archive->shown);
    return result;
}
#endif /* ML_NO_BPE */

/* ---- any of them ---- */

/* Whether a file is JSON, or has lines of base64 and a rank. */
static int mli_is_json(const unsigned char *p, size_t size) {
    size_t begin = mli_text_begin(p, size);
    return begin < size && p[begin] == '{';
}
static int mli_is_tiktoken(const unsigned char *p, size_t size) {
    static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=";
    size_t begin = mli_text_begin(p, size), i = begin;
    for (; i < size && memchr(base64, p[i], sizeof base64 - 1); i++) continue;
    return i > begin && i - begin <= 4096 && i + 1 < size && p[i] == ' ' && p[i + 1] >= '0' &&
           p[i + 1] <= '9';
}

/* A .bin begins with the length of its longest piece, below 2^16; a .model with the tag of its first piece. */
static ml_result mli_tokenizer_from_data(const void *data, size_t size, const ml_allocator *allocator,
                                         ml_tokenizer **tokenizer, ml_error *error) {
    const unsigned char *p = (const unsigned char *)data;
    if (size < 4) return mli_fail(error, ML_ERROR_TRUNCATED, "a tokenizer of %z bytes is cut short", size);
    ml_result result;
    if (memcmp(p, "GGUF", 4) == 0) {
        ml_archive *archive;
        result = mli_open_alone(data, size, allocator, &archive, error);
        if (result) return result;
        result = mli_tokenizer_from_archive(archive, allocator, tokenizer, error);
        ml_archive_free(archive);
        return result;
    }
    mli_piece_source source;
    mli_vocabulary v = mli_no_vocabulary();
    memset(&source, 0, sizeof source);
    source.data = p;
    source.size = size;
    v.context = &source;
    if (p[2] == 0 && p[3] == 0)
        result = mli_bin_open(&source, &v, error);
    else if (p[0] == MLI_PB(1, MLI_PB_BYTES) && !mli_is_json(p, size))
        result = mli_spm_open(&source, &v, error);
#ifndef ML_NO_BPE
    else if (mli_is_json(p, size))
        return mli_tokenizer_from_json(data, size, allocator, tokenizer, error);
    else if (mli_is_tiktoken(p, size))
        result = mli_tiktoken_open(&source, &v, error);
#else
    else if (mli_is_json(p, size) || mli_is_tiktoken(p, size))
        result = mli_fail(error, ML_ERROR_UNSUPPORTED,
                          "a tokenizer.json, or the tokenizer.model of Llama 3: left out by ML_NO_BPE");
#endif
    else
        result = mli_fail(error, ML_ERROR_FORMAT,
                          "this is no tokenizer: neither tokenizer.model, nor tokenizer.json, nor GGUF, nor "
                          "llama2.c's .bin");
    return result ? result : mli_tokenizer_create(&v, allocator, tokenizer, error);
}

/* From a file or, where path is NULL, from bytes. Without stdio mli_map_file refuses. */
static ml_result mli_tokenizer_from(const char *path, const void *data, size_t size,
                                    const ml_allocator *given, ml_tokenizer **tokenizer, ml_error *error) {
    ml_allocator allocator;
    mli_file file;
    ml_result result = mli_resolve_allocator(given, &allocator, error);
    if (!result && !path) return mli_tokenizer_from_data(data, size, &allocator, tokenizer, error);
    if (!result) result = mli_map_file(path, &allocator, &file, error);
    if (result) return result;
    result = mli_tokenizer_from_data(file.data, file.size, &allocator, tokenizer, error);
    mli_unmap_file(&allocator, &file);
    return mli_name_file(error, result, path);
}

ML_DEF ml_result ml_tokenizer_load_memory(const void *data, size_t size, const ml_load_desc *desc,
                                          ml_tokenizer **tokenizer, ml_error *error) {
    if (tokenizer) *tokenizer = NULL;
    if (!tokenizer || (!data && size))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_tokenizer_load_memory: data or tokenizer is NULL");
    return mli_tokenizer_from(NULL, data, size, desc ? &desc->allocator : NULL, tokenizer, error);
}

#ifndef ML_NO_STDIO
ML_DEF ml_result ml_tokenizer_load(const char *path, const ml_load_desc *desc, ml_tokenizer **tokenizer,
                                   ml_error *error) {
    if (tokenizer) *tokenizer = NULL;
    if (!path || !tokenizer)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_tokenizer_load: path or tokenizer is NULL");
    return mli_tokenizer_from(path, NULL, 0, desc ? &desc->allocator : NULL, tokenizer, error);
}
#endif

/* ==== >>loading ====
   From an archive's named tensors and values to a model, an adapter or a head. The loader finds the configuration
   under the names that various programs give it, detects whose names the tensors have, checks every shape against the
   parameter table, and uses each weight in place or converts it. */

/* ---- keys ---- */

/* clang-format off */
typedef enum mli_field {
    MLI_FIELD_DIM, MLI_FIELD_LAYERS, MLI_FIELD_HEADS, /* needed */
    MLI_FIELD_KV_HEADS, MLI_FIELD_HIDDEN, MLI_FIELD_VOCAB, MLI_FIELD_SEQ_LEN, /* the last whole number */
    MLI_FIELD_TIED, MLI_FIELD_NORM, MLI_FIELD_MASK, MLI_FIELD_NORM_EPS,
    MLI_FIELD_ROPE_THETA, MLI_FIELD_ROPE_TYPE, MLI_FIELD_ROPE_FACTOR,
    MLI_FIELDS
} mli_field;
/* clang-format on */

/* What programs call each field: GGUF, Hugging Face's config.json, then others and older names (".dim": see
   mli_find_key), and Meta's params.json. A loader takes the first that the archive has; a saver writes the
   first two. */
#define MLI_CONFIG_JSON "config.json"
#define MLI_PARAMS_JSON "params.json"
#define MLI_FIELD_KEYS 5
static const char *const mli_field_keys[MLI_FIELDS][MLI_FIELD_KEYS] = {
    /* clang-format off */
    {"llama.embedding_length", MLI_CONFIG_JSON ".hidden_size", ".dim", "model_config.dim",
     MLI_PARAMS_JSON ".dim"},
    {"llama.block_count", MLI_CONFIG_JSON ".num_hidden_layers", ".n_layers", "model_config.n_layers",
     MLI_PARAMS_JSON ".n_layers"},
    {"llama.attention.head_count", MLI_CONFIG_JSON ".num_attention_heads", ".n_heads",
     "model_config.n_heads", MLI_PARAMS_JSON ".n_heads"},
    {"llama.attention.head_count_kv", MLI_CONFIG_JSON ".num_key_value_heads", ".n_kv_heads",
     "model_config.n_kv_heads", MLI_PARAMS_JSON ".n_kv_heads"},
    {"llama.feed_forward_length", MLI_CONFIG_JSON ".intermediate_size", ".hidden_dim",
     "model_config.hidden_dim"},
    {"llama.vocab_size", MLI_CONFIG_JSON ".vocab_size", ".vocab_size", "model_config.vocab_size",
     MLI_PARAMS_JSON ".vocab_size"},
    {"llama.context_length", MLI_CONFIG_JSON ".max_position_embeddings", ".max_seq_len",
     "model_config.max_seq_len", MLI_PARAMS_JSON ".max_seq_len"},
    {"minillama.tied_output", MLI_CONFIG_JSON ".tie_word_embeddings"},
    {"minillama.norm", MLI_CONFIG_JSON ".minillama_norm"},
    {"minillama.mask", MLI_CONFIG_JSON ".minillama_mask"},
    {"llama.attention.layer_norm_rms_epsilon", MLI_CONFIG_JSON ".rms_norm_eps", ".norm_eps",
     "model_config.layer_norm_eps", MLI_PARAMS_JSON ".norm_eps"},
    {"llama.rope.freq_base", MLI_CONFIG_JSON ".rope_theta", MLI_CONFIG_JSON ".rope_parameters.rope_theta",
     ".rope_theta", MLI_PARAMS_JSON ".rope_theta"},
    {"llama.rope.scaling.type", MLI_CONFIG_JSON ".rope_scaling.rope_type", MLI_CONFIG_JSON ".rope_scaling.type",
     MLI_CONFIG_JSON ".rope_parameters.rope_type"},
    {"llama.rope.scaling.factor", MLI_CONFIG_JSON ".rope_scaling.factor",
     MLI_CONFIG_JSON ".rope_parameters.factor", "llama.rope.scale_linear"},
    /* clang-format on */
};

/* What a value must be, if the file has it, for the forward pass to compute the file's model. No text: 0 or false. A
   key that ends with a dot: a list or dictionary that must be empty; the text says what it is otherwise. */
typedef struct mli_demand {
    const char *key, *text;
} mli_demand;
#define MLI_PACKED "weights quantized by other programs, except in GGUF, are"
static const mli_demand mli_demands[] = {{"general.architecture", "llama"},
                                         {"general.type", "model"},
                                         {"llama.expert_count", NULL},
                                         {MLI_CONFIG_JSON ".model_type", "llama"},
                                         {MLI_CONFIG_JSON ".hidden_act", "silu"},
                                         {MLI_CONFIG_JSON ".attention_bias", NULL},
                                         {MLI_CONFIG_JSON ".mlp_bias", NULL},
                                         {".use_scaled_rope", NULL},
                                         {MLI_PARAMS_JSON ".use_scaled_rope", NULL},
                                         {MLI_CONFIG_JSON ".partial_rotary_factor", "1"},
                                         {MLI_CONFIG_JSON ".rope_parameters.partial_rotary_factor", "1"},
                                         {MLI_CONFIG_JSON ".quantization_config.", MLI_PACKED},
                                         {MLI_CONFIG_JSON ".compression_config.", MLI_PACKED}};

/* Values that say in other words which mask there is, and whether `true` means that it is full. */
static const struct mli_mask_key {
    const char *key;
    int is_full;
} mli_mask_keys[] = {{"llama.attention.causal", 0},
                     {MLI_CONFIG_JSON ".is_causal", 0},
                     {MLI_CONFIG_JSON ".use_bidirectional_attention", 1}};

/* The fields that are whole numbers: MLI_FIELD_DIM to MLI_FIELD_SEQ_LEN. */
static int *mli_field_int(ml_config *c, mli_field field) {
    int *const ints[] = {&c->dim,        &c->n_layers,   &c->n_heads,    &c->n_kv_heads,
                         &c->hidden_dim, &c->vocab_size, &c->max_seq_len};
    return ints[field];
}

#define MLI_KEY_LABELS "llama.classifier.output_labels" /* of a head */
#define MLI_KEY_POOLING "llama.pooling_type"

/* ---- the loader ---- */

typedef struct mli_loader {
    const char *path; /* of the file; NULL: */
    const void *data; /* (size) its bytes */
    size_t size;
    ml_model_load_desc desc;
    ml_allocator allocator;
    ml_archive *archive; /* NULL once the model owns it or does not need it */
    ml_config config;
    mli_naming naming; /* what the tensors are called: prefix, then a name of this scheme */
    char prefix[MLI_PREFIX_SIZE];
    const ml_array **sources; /* where each weight comes from; NULL: not in the file */
    struct mli_named *plain;  /* (n_plain) sorted: see mli_index_plain_names */
    size_t n_plain;
    ml_model *model;
    ml_error *error;
    ml_result result; /* of the first step that failed; those after it do nothing */
} mli_loader;

/* Notes an error; the first one stays. Returns the loader's result. */
static ml_result mli_refuse(mli_loader *loader, ml_result code, const char *format, ...) {
    if (loader->result) return loader->result;
    if (loader->error) {
        va_list args;
        va_start(args, format);
        mli_format_v(loader->error->text, sizeof loader->error->text, format, args);
        va_end(args);
        loader->error->code = code;
    }
    return loader->result = code;
}

static mli_loader mli_loader_of(const char *path, const void *data, size_t size, ml_error *error) {
    mli_loader loader;
    memset(&loader, 0, sizeof loader);
    loader.path = path;
    loader.data = data;
    loader.size = size;
    loader.error = error;
    return loader;
}

/* Weights in files are little-endian, and are used as they are. */
static ml_result mli_check_byte_order(ml_error *error) {
    const uint16_t one = 1;
    unsigned char first;
    memcpy(&first, &one, 1);
    if (first) return ML_OK;
    return mli_fail(error, ML_ERROR_UNSUPPORTED, "models are files of little-endian machines");
}

/* Where something is missing, the file may be one of several: then that is the reason. */
static void mli_explain_shard(mli_loader *loader) {
    int number = 0, count = 0;
    if ((loader->result != ML_ERROR_MISMATCH && loader->result != ML_ERROR_FILE) || !loader->path) return;
    if (!loader->archive || loader->archive->private_part->shards.n > 1) return;
    int n_pieces = mli_count_pieces(&loader->allocator, loader->path);
    if (mli_shard_number(loader->path, &number, &count) && count > 1)
        mli_fail(loader->error, loader->result,
                 "this is %d of %d shards: load the folder, or the file beside it that ends in .index.json",
                 number, count);
    else if (n_pieces > 1)
        mli_fail(loader->error, loader->result, "this is " MLI_ONE_OF_PIECES, n_pieces);
}

static ml_result mli_loader_open(mli_loader *loader) {
    ml_error *error = loader->error;
    ml_result result = mli_check_byte_order(error);
    if (!result) result = mli_resolve_allocator(&loader->desc.allocator, &loader->allocator, error);
    if (!result)
        result =
            mli_open(loader->path, loader->data, loader->size, &loader->allocator, &loader->archive, error);
    if (!result && loader->path) loader->path = loader->archive->private_part->file_path; /* not a folder */
    return loader->result = result;
}

static ml_result mli_loader_close(mli_loader *loader) {
    mli_free(&loader->allocator, loader->plain);
    mli_free(&loader->allocator, loader->sources);
    ml_archive_free(loader->archive);
    return loader->result ? loader->result : mli_ok(loader->error);
}

/* ---- files beside the file ---- */

/* Maps the file of that name in the same folder. Returns 0 if it cannot be read, which only without memory is an
   error. */
static int mli_map_beside(mli_loader *loader, const char *name, mli_file *file) {
    if (loader->result || !loader->path) return 0;
    char *beside = mli_path_beside(&loader->allocator, loader->path, name);
    ml_result result = beside ? mli_map_file(beside, &loader->allocator, file, NULL) : ML_ERROR_MEMORY;
    mli_free(&loader->allocator, beside);
    if (result == ML_ERROR_MEMORY) mli_refuse(loader, result, "out of memory for %s", name);
    return !result;
}

/* Hugging Face keeps the configuration beside the weights, a model's in config.json; the caller may have it in
   memory. Its values join the archive's as "config.json.hidden_size" and so on. `whose` is for the sentence that
   there is none; NULL: there need not be one. */
static void mli_load_json(mli_loader *loader, const char *name, const char *whose) {
    mli_file file = {(const unsigned char *)loader->desc.config_json, loader->desc.config_json_size, 1};
    if (loader->result) return;
    if (file.data || mli_map_beside(loader, name, &file)) {
        loader->result =
            mli_json_values(loader->archive->private_part, name, file.data, file.size, loader->error);
        mli_name_file(loader->error, loader->result, name);
        mli_unmap_file(&loader->allocator, &file);
    } else if (loader->path && whose) {
        mli_refuse(loader, ML_ERROR_FILE, "no configuration %s: %s beside it cannot be read", whose, name);
    }
}

/* ---- values ---- */

/* A key of the table. ".dim" is what llama2.c calls "model_args.dim", and other programs keep under other names. */
static const ml_value *mli_find_key(const mli_loader *loader, const char *key) {
    static const char *const names[] = {"model_args", "params",  "model.params",    "args",
                                        "config",     "hparams", "hyper_parameters"};
    const ml_value *value = *key == '.' ? NULL : ml_archive_find_value(loader->archive, key);
    for (size_t i = 0; i < MLI_COUNT(names) && *key == '.' && !value; i++) {
        char name[64];
        size_t at = 0;
        mli_put(name, sizeof name, &at, names[i], strlen(names[i]));
        mli_put(name, sizeof name, &at, key, strlen(key));
        value = ml_archive_find_value(loader->archive, name);
    }
    return value;
}

static const ml_value *mli_field_value(const mli_loader *loader, mli_field field) {
    const ml_value *value = NULL;
    for (int i = 0; i < MLI_FIELD_KEYS && !value; i++)
        if (mli_field_keys[field][i]) value = mli_find_key(loader, mli_field_keys[field][i]);
    return value;
}

/* Whether the value is this text, or, for "1", the number. */
static int mli_value_is(const ml_value *value, const char *text) {
    if (value->kind == ML_VALUE_INT || value->kind == ML_VALUE_FLOAT)
        return value->f == 1 && strcmp(text, "1") == 0;
    return value->kind == ML_VALUE_STRING && mli_is_text(value->s, value->length, text);
}

/* Refuses a value that is neither of the words; the second one may be NULL. */
static void mli_check_word(mli_loader *loader, const ml_value *value, const char *first, const char *second) {
    char text[64];
    size_t at = 0;
    if (mli_value_is(value, first) || (second && mli_value_is(value, second))) return;
    mli_put(text, sizeof text, &at, value->s, value->kind == ML_VALUE_STRING ? value->length : 0);
    mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is %s; supported: %s%s%s", value->name,
               value->kind == ML_VALUE_STRING ? text
               : value->kind == ML_VALUE_LIST ? "a list"
               : *first == '1'                ? "another number"
                                              : "a number",
               first, second ? ", " : "", second ? second : "");
}

/* Sets *n to a value that is a whole number (which writers of JSON may spell 64.0), or a list of equal ones. Returns
   0 if it is neither. */
static int mli_value_int(const ml_value *value, int64_t *n) {
    int is_list = value->kind == ML_VALUE_LIST && value->s && value->length &&
                  (unsigned)value->list_type < MLI_GGUF_TYPES &&
                  mli_gguf_types[value->list_type].kind == ML_VALUE_INT;
    double number = is_list ? mli_gguf_number(value, 0) : value->f;
    for (size_t i = 1; is_list && i < value->length; i++) is_list = mli_gguf_number(value, i) == number;
    *n = value->i;
    if (value->kind == ML_VALUE_INT) return 1;
    if ((!is_list && value->kind != ML_VALUE_FLOAT) || !(fabs(number) < 1e15) || number != floor(number))
        return 0;
    *n = (int64_t)number;
    return 1;
}

/* Whether a value is true, which may be absent. */
static int mli_value_bool(mli_loader *loader, const ml_value *value) {
    if (value && value->kind != ML_VALUE_BOOL)
        mli_refuse(loader, ML_ERROR_FORMAT, "value %s is neither true nor false", value->name);
    return value && value->i != 0;
}

/* A whole number in 1..INT_MAX; *number stays where the file says nothing. */
static void mli_load_int(mli_loader *loader, mli_field field, int *number) {
    const ml_value *value = mli_field_value(loader, field);
    int64_t n;
    if (!value) return;
    int is_int = mli_value_int(value, &n);
    if (field == MLI_FIELD_VOCAB && is_int && n == -1) return; /* Meta's params.json: the tokenizer's */
    if (!is_int && value->kind == ML_VALUE_LIST)
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is a list: layers that differ are not supported",
                   value->name);
    else if (!is_int)
        mli_refuse(loader, ML_ERROR_FORMAT, "value %s is not a whole number", value->name);
    else if (n < 1 || n > INT_MAX)
        mli_refuse(loader, ML_ERROR_FORMAT, "value %s is %l, not in 1 to %d", value->name, n, INT_MAX);
    else
        *number = (int)n;
}

/* The value as a number from 0 to 1e30, or as an alpha. Returns 0 after an error. */
static float mli_value_float(mli_loader *loader, const ml_value *value, int is_alpha) {
    int is_number = (value->kind == ML_VALUE_FLOAT || value->kind == ML_VALUE_INT) && mli_is_finite(value->f);
    if (is_number && value->f >= (is_alpha ? 1e-30 : 0) && value->f < (is_alpha ? 1e6 : 1e30))
        return (float)value->f;
    mli_refuse(loader, ML_ERROR_FORMAT, "value %s is not a number %s", value->name,
               is_alpha ? "between 0 and 1e6" : "from 0 to 1e30");
    return 0;
}

static void mli_load_float(mli_loader *loader, mli_field field, float *number) {
    const ml_value *value = mli_field_value(loader, field);
    if (value) *number = mli_value_float(loader, value, 0);
}

/* Whether the value is the second of two words; where nothing is said, it is the first. */
static int mli_load_choice(mli_loader *loader, const ml_value *value, const char *first, const char *second) {
    if (value) mli_check_word(loader, value, first, second);
    return value && mli_value_is(value, second);
}

static void mli_check_demands(mli_loader *loader, const mli_demand *demands, size_t n) {
    const ml_archive *archive = loader->archive;
    for (size_t i = 0; i < n; i++) {
        const char *key = demands[i].key, *text = demands[i].text;
        const ml_value *value = mli_find_key(loader, key);
        for (size_t k = 0; mli_ends_with(key, strlen(key), ".") && k < archive->n_values; k++)
            if (mli_begins_with(archive->values[k].name, key))
                mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is set: %s not supported",
                           archive->values[k].name, text ? text : "that is");
        if (value && text)
            mli_check_word(loader, value, text, NULL);
        else if (value && ((value->kind != ML_VALUE_INT && value->kind != ML_VALUE_BOOL) || value->i != 0))
            mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is set: that is not supported", value->name);
    }
}

/* ---- the configuration ---- */

/* Position interpolation (Chen et al. 2023, "Extending Context Window of Large Language Models via Positional
   Interpolation") is the one way of stretching the rotary positions that is supported. */
static void mli_load_rope_scale(mli_loader *loader) {
    const ml_value *type = mli_field_value(loader, MLI_FIELD_ROPE_TYPE);
    float factor = 0;
    loader->config.rope_scale = 1;
    if (type && (mli_value_is(type, "none") || mli_value_is(type, "default"))) return;
    if (type) mli_check_word(loader, type, "linear", NULL);
    mli_load_float(loader, MLI_FIELD_ROPE_FACTOR, &factor);
    if (factor > 0) loader->config.rope_scale = factor; /* GGUF: 0 is no scaling */
}

/* Whether the file says in any of several ways that a token sees its whole row. */
static ml_mask mli_load_mask(mli_loader *loader) {
    const ml_value *word = mli_field_value(loader, MLI_FIELD_MASK);
    int is_full = mli_load_choice(loader, word, "causal", "full");
    for (size_t i = 0; i < MLI_COUNT(mli_mask_keys); i++) {
        const ml_value *value = ml_archive_find_value(loader->archive, mli_mask_keys[i].key);
        if (value) is_full |= mli_value_bool(loader, value) == mli_mask_keys[i].is_full;
    }
    return is_full ? ML_MASK_FULL : ML_MASK_CAUSAL;
}

/* Everything except what the tensors' shapes tell: hidden_dim and vocab_size may stay 0, tied_output -1. */
static void mli_load_config(mli_loader *loader) {
    if (loader->result) return;
    ml_config *config = &loader->config;
    int is_hugging_face = ml_archive_find_value(loader->archive, mli_field_keys[MLI_FIELD_DIM][1]) != NULL;
    config->max_seq_len = 2048; /* the defaults of the programs that introduced these files */
    config->rope_theta = 10000;
    config->norm_eps = is_hugging_face ? 1e-6f : 1e-5f;
    for (int field = MLI_FIELD_DIM; field <= MLI_FIELD_SEQ_LEN; field++) {
        const char *const *keys = mli_field_keys[field];
        int *number = mli_field_int(config, (mli_field)field);
        mli_load_int(loader, (mli_field)field, number);
        if (field <= MLI_FIELD_HEADS && !*number)
            mli_refuse(loader, ML_ERROR_MISMATCH, "no configuration: it has none of the values %s, %s, %s",
                       keys[0], keys[1], keys[2]);
    }
    if (!config->n_kv_heads) config->n_kv_heads = config->n_heads;
    mli_load_float(loader, MLI_FIELD_NORM_EPS, &config->norm_eps);
    mli_load_float(loader, MLI_FIELD_ROPE_THETA, &config->rope_theta);
    mli_load_rope_scale(loader);
    const ml_value *tied = mli_field_value(loader, MLI_FIELD_TIED),
                   *norm = mli_field_value(loader, MLI_FIELD_NORM);
    config->norm = mli_load_choice(loader, norm, "rms", "layer") ? ML_NORM_LAYER : ML_NORM_RMS;
    config->mask = mli_load_mask(loader);
    if (loader->desc.norm) config->norm = loader->desc.norm;
    if (loader->desc.mask) config->mask = loader->desc.mask;
    /* what Hugging Face's LlamaConfig means without the key; other files show it by their tensors */
    config->tied_output = tied && tied->kind == ML_VALUE_BOOL ? tied->i != 0 : is_hugging_face ? 0 : -1;
}

/* Where a file repeats the head size, it must be the one that follows from dim and n_heads. */
static void mli_check_head_size(mli_loader *loader) {
    static const char *const keys[] = {"llama.rope.dimension_count", "llama.attention.key_length",
                                       "llama.attention.value_length", MLI_CONFIG_JSON ".head_dim"};
    if (loader->result) return;
    int head_size = loader->config.dim / loader->config.n_heads;
    for (size_t i = 0; i < MLI_COUNT(keys); i++) {
        const ml_value *value = ml_archive_find_value(loader->archive, keys[i]);
        int64_t n = 0;
        if (value && (!mli_value_int(value, &n) || n != head_size))
            mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is %l; supported is dim / n_heads = %d",
                       keys[i], n, head_size);
    }
}

/* ---- names without the words of wrappers ----
   Programs wrap a whole model or single modules of it, and each wrapper puts a word into the names:
   "layers.3._orig_mod.attention.wq.weight". Those words are dropped wherever they are; what else precedes a name is
   its prefix. */

/* clang-format off */
static const char *const mli_wrapper_words[] = {
    "module", "_orig_mod", "_forward_module", /* PyTorch's DataParallel and compile, Lightning's Fabric */
    "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_checkpoint_module",
    "base_layer", "original_module", "modules_to_save", "default", /* PEFT, whose adapter is named "default" */
    "original_layer"}; /* the course: see mli_merge_weight */
/* clang-format on */

static int mli_is_wrapper_word(const char *word, size_t length) {
    for (size_t i = 0; i < MLI_COUNT(mli_wrapper_words); i++)
        if (mli_is_text(word, length, mli_wrapper_words[i])) return 1;
    return 0;
}

/* The name without those words, except for its last word, which is the tensor's own. 0: it is too long. In a state
   dict of PEFT a half's name goes on with that of its adapter, "lora_A.my-adapter.weight": dropped, too. */
static int mli_plain_name(const char *name, char plain[MLI_LONG_NAME_SIZE]) {
    size_t n = 0;
    int is_half = 0;
    while (*name) {
        size_t length = strcspn(name, "."), step = length + (name[length] == '.');
        if (step == length || (!is_half && !mli_is_wrapper_word(name, length))) {
            if (step >= MLI_LONG_NAME_SIZE - n) return 0;
            memcpy(plain + n, name, step);
            n += step;
        }
        is_half |= strncmp(name, "lora_A.", 7) == 0 || strncmp(name, "lora_B.", 7) == 0;
        name += step;
    }
    plain[n] = 0;
    return 1;
}

/* Lists the arrays with such words by their plain names, which the archive keeps. */
static void mli_index_plain_names(mli_loader *loader) {
    const ml_archive *archive = loader->archive;
    char plain[MLI_LONG_NAME_SIZE];
    if (loader->plain || loader->result) return;
    loader->plain = (mli_named *)mli_alloc(&loader->allocator, archive->n_arrays, sizeof *loader->plain);
    for (size_t i = 0; loader->plain && i < archive->n_arrays; i++) {
        if (!mli_plain_name(archive->arrays[i].name, plain) || strcmp(archive->arrays[i].name, plain) == 0)
            continue;
        mli_named item = {NULL, strlen(plain), i};
        char *text = (char *)mli_keep(archive->private_part, item.length + 1);
        if (!text) break;
        item.name = (const char *)memcpy(text, plain, item.length + 1);
        loader->plain[loader->n_plain++] = item;
    }
    if (!loader->plain || archive->private_part->result)
        mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for a list of names");
    else if (loader->n_plain)
        mli_sort_named(loader->plain, loader->n_plain);
}

/* The array of this name, or else the one whose plain name is that of this name; NULL if there is none. Two are an
   error, unless they are the same numbers. */
static const ml_array *mli_find_plain(mli_loader *loader, const char *name) {
    char plain[MLI_LONG_NAME_SIZE];
    const ml_array *array = ml_archive_find_array(loader->archive, name), *other;
    if (array || !mli_plain_name(name, plain)) return array;
    mli_index_plain_names(loader);
    array = ml_archive_find_array(loader->archive, plain);
    const mli_named *found = mli_find_named(loader->plain, loader->n_plain, plain, strlen(plain)), *end;
    if (array || !found) return array;
    array = &loader->archive->arrays[found->index];
    for (end = loader->plain + loader->n_plain; ++found < end && strcmp(found->name, plain) == 0;) {
        other = &loader->archive->arrays[found->index];
        if (other->data != array->data || other->type != array->type)
            mli_refuse(loader, ML_ERROR_MISMATCH, "tensors %s and %s are both named like %s", array->name,
                       other->name, plain);
    }
    return array;
}

/* ---- names and shapes of the weights ---- */

/* The name of a weight is searched after the loader's prefix. Hugging Face's base models have no "model." in front,
   so that is part of the prefix. The output matrix may be outside of what is named by the prefix ("lm_head.weight"
   beside "model.embed_tokens.weight"): it is searched there, too. */
static const ml_array *mli_find_weight(mli_loader *loader, mli_slot slot, int layer,
                                       char name[MLI_LONG_NAME_SIZE]) {
    char own[ML_NAME_SIZE];
    size_t n = strlen(loader->prefix);
    mli_param_name(loader->naming, slot, layer, own);
    int has_model = loader->naming == MLI_NAMING_HF && mli_begins_with(own, "model.");
    size_t skip = has_model ? strlen("model.") : 0;
    for (;;) {
        memcpy(name, loader->prefix, n);
        memcpy(name + n, own + skip, ML_NAME_SIZE - skip);
        const ml_array *array = mli_find_plain(loader, name);
        if (array || slot != MLI_OUTPUT || !n) return array;
        while (--n && loader->prefix[n - 1] != '.') continue;
    }
}

/* Whether the array is called `name`, after a prefix that ends with a dot or is empty; then the loader gets it. */
static int mli_take_prefix(mli_loader *loader, const char *array, const char *name) {
    size_t length = strlen(array), n = strlen(name), prefix = length - n;
    if (length < n || prefix >= MLI_PREFIX_SIZE || strcmp(array + prefix, name) != 0) return 0;
    if (prefix && array[prefix - 1] != '.') return 0;
    memcpy(loader->prefix, array, prefix);
    loader->prefix[prefix] = 0;
    return 1;
}

/* Detects whose names the tensors have. Whatever is in front of the embedding's name is the prefix ("module.", a
   dictionary's key), and two schemes share that name, so the first query projection must have the same prefix. Names
   as they are in the file come first, then those without the words of wrappers. If the projection is nowhere, the
   first embedding decides, and the error names what is missing from there. */
static void mli_detect_naming(mli_loader *loader) {
    char name[MLI_LONG_NAME_SIZE], embedding[ML_NAME_SIZE], first_prefix[MLI_PREFIX_SIZE];
    int first_naming = -1;
    mli_index_plain_names(loader);
    for (int i = 0; i < 2 * MLI_NAMINGS && !loader->result; i++) {
        int is_plain = i >= MLI_NAMINGS;
        size_t n = is_plain ? loader->n_plain : loader->archive->n_arrays;
        loader->naming = (mli_naming)(i % MLI_NAMINGS);
        mli_param_name(loader->naming, MLI_TOKEN_EMBEDDING, 0, embedding);
        const char *last = loader->naming == MLI_NAMING_HF ? strchr(embedding, '.') + 1 : embedding;
        for (size_t k = 0; k < n && !loader->result; k++) {
            const char *array = is_plain ? loader->plain[k].name : loader->archive->arrays[k].name;
            if (!mli_take_prefix(loader, array, last)) continue;
            if (mli_find_weight(loader, MLI_WQ, 0, name)) return;
            if (first_naming >= 0) continue;
            first_naming = i % MLI_NAMINGS;
            memcpy(first_prefix, loader->prefix, sizeof first_prefix);
        }
    }
    if (first_naming < 0) {
        mli_refuse(loader, ML_ERROR_MISMATCH, "no Llama: none of %z tensors is named like a token embedding",
                   loader->archive->n_arrays);
        return;
    }
    loader->naming = (mli_naming)first_naming;
    memcpy(loader->prefix, first_prefix, sizeof first_prefix);
}

/* The first tensor of weights that another program has packed, or NULL. */
static const ml_array *mli_find_packed(const ml_archive *archive) {
    static const char *const ends[] = {".qweight", ".weight_packed", ".weight_scale", ".SCB", ".absmax"};
    for (size_t k = 0; k < archive->n_arrays; k++)
        for (size_t i = 0; i < MLI_COUNT(ends); i++)
            if (mli_ends_with(archive->arrays[k].name, strlen(archive->arrays[k].name), ends[i]))
                return &archive->arrays[k];
    return NULL;
}

static void mli_refuse_missing(mli_loader *loader, const char *name) {
    const ml_array *packed = mli_find_packed(loader->archive);
    const ml_value *object = ml_archive_find_value(loader->archive, name);
    if (packed)
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s is missing; %s: packed weights are not supported",
                   name, packed->name);
    if (object && object->kind == ML_VALUE_OPAQUE) { /* a sparse tensor, one without numbers */
        char text[2 * ML_NAME_SIZE];
        size_t at = 0;
        mli_put(text, sizeof text, &at, object->s, object->length);
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s is of a kind that is not read: %s", name, text);
    }
    mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s is missing", name);
}

/* Sets *rows, unless it is known already, to the number of rows of a required weight. */
static void mli_load_rows(mli_loader *loader, mli_slot slot, int *rows) {
    if (loader->result) return;
    char name[MLI_LONG_NAME_SIZE];
    const ml_array *array = mli_find_weight(loader, slot, 0, name);
    if (!array)
        mli_refuse_missing(loader, name);
    else if (!*rows && (array->n_dims != 2 || array->shape[0] < 1 || array->shape[0] > INT_MAX))
        mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s is not a matrix that fits", name);
    else if (!*rows)
        *rows = (int)array->shape[0];
}

/* Completes the configuration from the tensors' shapes. vocab_size: embedding and output may have more rows than the
   file says, for tokens that were added or to make their number round; all rows that both have count. hidden_dim:
   where Meta's code computes it from dim and multiple_of, w1 shows the result. */
static void mli_complete_config(mli_loader *loader) {
    ml_config *config = &loader->config;
    char name[MLI_LONG_NAME_SIZE];
    int rows = 0;
    mli_load_rows(loader, MLI_TOKEN_EMBEDDING, &rows);
    mli_load_rows(loader, MLI_W1, &config->hidden_dim);
    if (loader->result) return;
    if (!loader->desc.norm && !mli_field_value(loader, MLI_FIELD_NORM) &&
        mli_find_weight(loader, MLI_OUTPUT_NORM_BIAS, 0, name))
        config->norm = ML_NORM_LAYER; /* an rms norm has no bias */
    const ml_array *output = mli_find_weight(loader, MLI_OUTPUT, 0, name);
    const ml_array *embedding = mli_find_weight(loader, MLI_TOKEN_EMBEDDING, 0, name);
    if (config->tied_output < 0)
        config->tied_output = !output || (output->data == embedding->data && output->type == embedding->type);
    if (output && !config->tied_output && output->n_dims == 2 && output->shape[0] < rows)
        rows = (int)output->shape[0];
    config->vocab_size = MLI_MAX(config->vocab_size, rows);
    loader->result = mli_check_config(config, loader->error);
    mli_check_head_size(loader);
    if (mli_find_weight(loader, MLI_WQ, config->n_layers, name))
        mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s is there, but the configuration has %d layers", name,
                   config->n_layers);
}

/* The course's save_model leaves no shapes, only the path of the model that was trained, beside which it runs. The
   configuration is that model's, if it is in the same folder. Else the shapes tell all but the number of heads, which
   is 8 where they are those of stories42M, the default of the course's code. */
#define MLI_KEY_PRETRAINED "model_config.pretrained_model_path"

static int mli_is_from_course(const mli_loader *loader) {
    const ml_value *path = loader->result ? NULL : ml_archive_find_value(loader->archive, MLI_KEY_PRETRAINED);
    return path && path->kind == ML_VALUE_STRING && !mli_field_value(loader, MLI_FIELD_DIM);
}

/* The configuration of the model with that path's name in the file's folder; 0 if there is none. */
static int mli_load_config_of(mli_loader *loader, const ml_value *path) {
    char name[MLI_PATH_SIZE];
    size_t n = 0;
    for (size_t i = 0; i < path->length; i++) {
        n = path->s[i] == '/' || path->s[i] == '\\' ? 0 : n + 1;
        if (n >= sizeof name) return 0;
        if (n) name[n - 1] = path->s[i];
    }
    name[n] = 0;
    int is_file = loader->path && mli_is_plain_name(name, n);
    char *beside = is_file ? mli_path_beside(&loader->allocator, loader->path, name) : NULL;
    mli_loader other = mli_loader_of(beside, NULL, 0, NULL);
    other.desc = loader->desc;
    other.desc.allocator = loader->allocator;
    if (beside && !mli_loader_open(&other)) {
        mli_load_config(&other);
        if (!other.result) loader->config = other.config;
    }
    int is_loaded = beside && !other.result;
    if ((is_file && !beside) || other.result == ML_ERROR_MEMORY)
        mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for the configuration of %s", name);
    if (beside) mli_loader_close(&other);
    mli_free(&loader->allocator, beside);
    return is_loaded;
}

/* The configuration that the shapes tell. */
static void mli_load_config_of_shapes(mli_loader *loader, const ml_value *path) {
    ml_config c = {0, 0, 0, 0, 0, 0, 1024, -1, ML_NORM_RMS, ML_MASK_CAUSAL, 1e-5f, 10000, 1};
    char name[MLI_LONG_NAME_SIZE], file[64];
    size_t n = 0;
    mli_put(file, sizeof file, &n, path->s, path->length);
    mli_detect_naming(loader);
    if (loader->result) return;
    const ml_array *embedding = mli_find_weight(loader, MLI_TOKEN_EMBEDDING, 0, name);
    const ml_array *key = mli_find_weight(loader, MLI_WK, 0, name);
    while (c.n_layers < (1 << 12) && mli_find_weight(loader, MLI_WQ, c.n_layers, name)) c.n_layers++;
    if (embedding && embedding->n_dims == 2 && embedding->shape[1] <= 1 << 16)
        c.dim = (int)embedding->shape[1];
    if (c.dim == 512 && c.n_layers == 8 && embedding->shape[0] == 32000) c.n_heads = 8;
    mli_load_int(loader, MLI_FIELD_HEADS, &c.n_heads);
    if (c.n_heads && key && key->n_dims == 2 && c.dim / c.n_heads && key->shape[0] <= c.dim)
        c.n_kv_heads = (int)key->shape[0] / (c.dim / c.n_heads);
    if (!c.n_kv_heads)
        mli_refuse(
            loader, ML_ERROR_MISMATCH,
            "no configuration: the number of heads is in %s, of which this model was made; put that, or a "
            "config.json, beside it",
            file);
    if (loader->desc.norm) c.norm = loader->desc.norm;
    if (loader->desc.mask) c.mask = loader->desc.mask;
    loader->config = c;
}

static void mli_load_course_config(mli_loader *loader) {
    const ml_value *path = ml_archive_find_value(loader->archive, MLI_KEY_PRETRAINED);
    if (!mli_load_config_of(loader, path)) mli_load_config_of_shapes(loader, path);
}

/* Number `index` of the tensor is not finite, or its value too large for the type. */
static ml_result mli_refuse_number(ml_error *error, const char *name, size_t index, size_t cols, float value,
                                   ml_type type) {
    if (mli_is_finite((double)value))
        return mli_fail(error, ML_ERROR_NUMBER, "tensor %s: number (%z, %z) is too large for %s; try %s",
                        name, index / cols, index % cols, ml_type_name(type),
                        type == ML_BF16 ? "F32" : "BF16");
    return mli_fail(error, ML_ERROR_NUMBER, "tensor %s: number (%z, %z) is not finite", name, index / cols,
                    index % cols);
}

/* "(512, 64)" */
static void mli_format_shape(int n_dims, const int64_t *shape, char text[96]) {
    size_t at = 0;
    mli_put(text, 96, &at, "(", 1);
    for (int d = 0; d < n_dims; d++) {
        if (d) mli_put(text, 96, &at, ", ", 2);
        mli_put_int(text, 96, &at, shape[d]);
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

/* Extents of 1 in front of a matrix's say nothing. */
static void mli_drop_ones(mli_loader *loader) {
    ml_array *array = (ml_array *)loader->archive->private_part->arrays.items;
    for (size_t i = 0; i < loader->archive->n_arrays; i++, array++)
        while (array->n_dims > 2 && array->shape[0] == 1) {
            array->n_dims--;
            memmove(array->shape, array->shape + 1, (size_t)array->n_dims * sizeof *array->shape);
            memmove(array->stride, array->stride + 1, (size_t)array->n_dims * sizeof *array->stride);
        }
}

/* An array must be a matrix (rows, cols), or with is_vector a vector (cols) or (1, cols), of a type that can be
   converted. */
static void mli_check_source(mli_loader *loader, const ml_array *array, size_t rows, size_t cols,
                             int is_vector) {
    const int64_t shape[2] = {(int64_t)rows, (int64_t)cols}, *wanted = shape + is_vector;
    if (is_vector && array->n_dims == 2 && array->shape[0] == 1) is_vector = 0, wanted = shape;
    int n_dims = 2 - is_vector;
    if (array->n_dims != n_dims || memcmp(array->shape, wanted, (size_t)n_dims * sizeof *wanted) != 0) {
        char have[96], want[96];
        mli_format_shape(array->n_dims, array->shape, have);
        mli_format_shape(n_dims, wanted, want);
        mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s has shape %s, not %s", array->name, have, want);
    } else if (!mli_type(array->type)->dequantize && array->type != ML_F64) {
        const char *why = ml_type_block(array->type) > 1 ? ", which ML_NO_K_QUANTS left out" : "";
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s is of type %s%s", array->name, array->type_name,
                   why);
    } else if (!mli_is_dense(array)) {
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s repeats elements (strides %l, %l)", array->name,
                   array->stride[0], array->stride[1]);
    }
}

/* A pair of an adapter for a matrix (out, in): A (rank, in), B (out, rank). Returns the rank; 0 after an error. */
static size_t mli_check_pair(mli_loader *loader, const ml_array *a, const ml_array *b, size_t out,
                             size_t in) {
    if (a->n_dims != 2 || a->shape[0] < 1 || a->shape[0] > MLI_MAX_RANK) {
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s is no matrix of a rank from 1 to %d", a->name,
                   MLI_MAX_RANK);
        return 0;
    }
    size_t rank = (size_t)a->shape[0];
    mli_check_source(loader, a, rank, in, 0);
    mli_check_source(loader, b, out, rank, 0);
    return loader->result ? 0 : rank;
}

/* A Llama has no biases: a file that has them is of another model. */
static void mli_refuse_bias(mli_loader *loader, mli_slot slot, const char *weight) {
    char name[MLI_LONG_NAME_SIZE];
    size_t n = strlen(weight) - strlen(".weight");
    if (mli_params[slot].role != MLI_ROLE_MATRIX) return;
    memcpy(name, weight, n);
    memcpy(name + n, ".bias", sizeof ".bias");
    const ml_array *bias = mli_find_plain(loader, name);
    if (bias) mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s: biases are not supported", bias->name);
}

/* PEFT keeps the frozen matrix under "base_layer" and the adapter beside it. Without that the model would be another
   one. */
static void mli_refuse_unmerged(mli_loader *loader) {
    int n = loader->result ? 0 : loader->model->n_tensors, i = 0;
    while (i < n && !(loader->sources[i] && strstr(loader->sources[i]->name, "base_layer."))) i++;
    for (size_t k = 0; i < n && k < loader->archive->n_arrays && !loader->result; k++)
        if (strstr(loader->archive->arrays[k].name, ".lora_"))
            mli_refuse(loader, ML_ERROR_UNSUPPORTED,
                       "tensor %s is of an adapter that is not merged into the weights: merge it first",
                       loader->archive->arrays[k].name);
}

static void mli_new_sources(mli_loader *loader, int n) {
    if (loader->result) return;
    loader->sources = (const ml_array **)mli_alloc(&loader->allocator, (size_t)n, sizeof *loader->sources);
    if (!loader->sources) mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for a list of tensors");
}

/* ---- adapters of the course, beside the matrices that they are for ----
   Its LoRALayer is saved as X.original_layer.weight, X.lora_A (r, in) and X.lora_B (out, r), unless it is merged
   before. Here it is merged, by W + alpha / r B A. */

#define MLI_UNMERGED "original_layer.weight"
#define MLI_KEY_COURSE_ALPHA "args.lora_alpha"

static int mli_is_unmerged(const ml_array *array) {
    return mli_ends_with(array->name, strlen(array->name), MLI_UNMERGED);
}

/* Finds A and B of a matrix that is not merged. Returns their rank; 0 after an error. */
static size_t mli_find_course_pair(mli_loader *loader, const ml_array *array, const ml_array *pair[2]) {
    for (int i = 0; i < 2 && !loader->result; i++) {
        char name[MLI_LONG_NAME_SIZE] = "";
        size_t n = strlen(array->name) - (sizeof MLI_UNMERGED - 1);
        if (n < sizeof name - sizeof "lora_A") {
            memcpy(name, array->name, n);
            memcpy(name + n, i ? "lora_B" : "lora_A", sizeof "lora_A");
        }
        pair[i] = ml_archive_find_array(loader->archive, name);
        if (!pair[i])
            mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s is there, but not %s", array->name, name);
    }
    if (loader->result) return 0;
    return mli_check_pair(loader, pair[0], pair[1], (size_t)array->shape[0], (size_t)array->shape[1]);
}

/* alpha / rank; 0 where the file does not give alpha, which does not matter as long as B is 0. */
static float mli_load_course_scale(mli_loader *loader, float rank) {
    const ml_value *alpha = ml_archive_find_value(loader->archive, MLI_KEY_COURSE_ALPHA);
    return alpha ? mli_value_float(loader, alpha, 0) / rank : 0;
}

/* tensor (out, in) = W + alpha / r B A */
static void mli_merge_weight(mli_loader *loader, const ml_array *array, const ml_tensor *tensor) {
    const ml_array *pair[2];
    size_t out = tensor->rows, in = tensor->cols, n = out * in;
    mli_check_source(loader, array, out, in, 0); /* an embedding may have more rows, which would have no B */
    size_t rank = loader->result ? 0 : mli_find_course_pair(loader, array, pair);
    if (!rank) return;
    size_t bytes = ml_type_row_bytes(tensor->type, in);
    float scale = mli_load_course_scale(loader, (float)rank);
    size_t n_pair = rank * (in + out); /* fits: a rank is small */
    float *w =
        mli_add_size(n, n_pair, &n_pair) ? (float *)mli_alloc(&loader->allocator, n_pair, sizeof *w) : NULL;
    if (!w) {
        mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for merging %s", array->name);
        return;
    }
    float *a = w + n, *b = a + rank * in, value = 0;
    unsigned char *to = (unsigned char *)tensor->data;
    ml_array_read_floats(array, w, n);
    ml_array_read_floats(pair[0], a, rank * in);
    ml_array_read_floats(pair[1], b, out * rank);
    for (size_t row = 0; row < out && !loader->result; row++, to += bytes) {
        for (size_t k = 0; k < rank; k++) {
            float s = b[row * rank + k];
            if (scale == 0 && s != 0 && !ml_archive_find_value(loader->archive, MLI_KEY_COURSE_ALPHA))
                mli_refuse(loader, ML_ERROR_MISMATCH,
                           "tensor %s: its scale is not known, there is no value %s", pair[1]->name,
                           MLI_KEY_COURSE_ALPHA);
            mli_axpy(w + row * in, scale * s, a + k * in, in);
        }
        size_t beyond = mli_convert(tensor->type, to, ML_F32, w + row * in, in, &value);
        if (beyond < in && !loader->desc.unchecked && !loader->result)
            loader->result =
                mli_refuse_number(loader->error, array->name, row * in + beyond, in, value, tensor->type);
    }
    mli_free(&loader->allocator, w);
}

/* A model may have no output layer (see ml_model.tensors): its entry in the table remains empty. */
static void mli_leave_out_output(mli_loader *loader) {
    ml_model *model = loader->model;
    model->n_parameters -= (int64_t)mli_numbers(&model->tensors[MLI_OUTPUT]);
}

/* Finds every weight. Tensors that no weight is made of are left alone: tables of rotary frequencies, a head, the
   state of an optimizer. */
static void mli_find_sources(mli_loader *loader) {
    if (loader->result) return;
    const ml_model *model = loader->model;
    if (ml_archive_find_array(loader->archive, "rope_freqs.weight"))
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor rope_freqs.weight: scaling is not supported");
    for (int i = 0; i < model->n_tensors && !loader->result; i++) {
        const ml_tensor *tensor = &model->tensors[i];
        char name[MLI_LONG_NAME_SIZE];
        mli_slot slot = mli_slot_at(i);
        int layer = mli_layer_at(i);
        if (!mli_has_slot(&model->config, slot)) continue;
        const ml_array *array = loader->sources[i] = mli_find_weight(loader, slot, layer, name);
        size_t rows = tensor->rows;
        if (array && mli_params[slot].rows == MLI_VOCAB && array->n_dims == 2)
            rows = (size_t)MLI_MAX((int64_t)rows, array->shape[0]); /* the first ones are used */
        if (array) {
            mli_check_source(loader, array, rows, tensor->cols, mli_params[slot].rows == MLI_ONE);
            mli_refuse_bias(loader, slot, name);
        } else if (slot == MLI_OUTPUT) {
            mli_leave_out_output(loader);
        } else if (mli_params[slot].role != MLI_ROLE_BIAS) { /* which a LayerNorm may lack: zeros */
            mli_refuse_missing(loader, name);
        }
    }
}

/* ---- the weights ---- */

/* Hugging Face's rotary embedding turns element i of a head with i + hd/2, Meta's 2i with 2i + 1; so the rows of the
   query and key matrices have another order. The size of the heads where that applies; 0: nowhere. */
static size_t mli_rotary_head(const ml_config *config, mli_slot slot, int is_hf) {
    return is_hf && (slot == MLI_WQ || slot == MLI_WK) ? (size_t)(config->dim / config->n_heads) : 0;
}

/* Which row of a matrix in Hugging Face's order is row `row` in Meta's. */
static size_t mli_row_in_hf(size_t head_size, size_t row) {
    if (!head_size) return row;
    size_t in_head = row % head_size;
    return row - in_head + in_head / 2 + in_head % 2 * (head_size / 2);
}

/* A weight is used where it is unless the caller asked for a type or it is of a wrong type, cut out of something
   larger, permuted, or at an odd address. */
static int mli_is_in_place(const mli_loader *loader, const ml_array *array, const ml_tensor *tensor,
                           mli_slot slot) {
    uintptr_t alignment = array->type == ML_F32 ? 4 : 2;
    return !loader->desc.type && array->type == tensor->type && array->is_contiguous &&
           !mli_is_unmerged(array) &&
           !mli_rotary_head(&loader->config, slot, loader->naming == MLI_NAMING_HF) &&
           (uintptr_t)array->data % alignment == 0;
}

/* Row `row` of an array of one or two dimensions, its elements copied together into `gathered` if they are not
   contiguous. */
static const unsigned char *mli_array_row(const ml_array *array, size_t row, size_t cols,
                                          unsigned char *gathered) {
    const unsigned char *data = (const unsigned char *)array->data;
    size_t item = ml_type_row_bytes(array->type, 1), right = (size_t)array->stride[array->n_dims - 1];
    if (array->is_contiguous) return data + row * ml_type_row_bytes(array->type, cols);
    if (array->n_dims == 2) data += row * (size_t)array->stride[0] * item;
    if (right == 1) return data;
    for (size_t c = 0; c < cols; c++) memcpy(gathered + c * item, data + c * right * item, item);
    return gathered;
}

static void mli_copy_weight(mli_loader *loader, const ml_array *array, const ml_tensor *tensor,
                            size_t head_size) {
    if (loader->result) return;
    size_t bytes = ml_type_row_bytes(tensor->type, tensor->cols);
    unsigned char *to = (unsigned char *)tensor->data, *gathered = NULL;
    if (!array->is_contiguous) {
        gathered = (unsigned char *)mli_alloc(&loader->allocator, tensor->cols, sizeof(double));
        if (!gathered) {
            mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for a row of %s", array->name);
            return;
        }
    }
    for (size_t row = 0, cols = tensor->cols; row < tensor->rows && !loader->result; row++) {
        size_t in_file = mli_row_in_hf(head_size, row);
        const unsigned char *from = mli_array_row(array, in_file, cols, gathered);
        float value = 0;
        size_t beyond = mli_convert(tensor->type, to + row * bytes, array->type, from, cols, &value);
        if (beyond < cols && !loader->desc.unchecked)
            loader->result = mli_refuse_number(loader->error, array->name, in_file * cols + beyond, cols,
                                               value, tensor->type);
    }
    mli_free(&loader->allocator, gathered);
}

/* A weight that is used where it is: all that has to be read is read once, as fast as memory delivers. */
static void mli_check_weight(mli_loader *loader, const ml_array *array, const ml_tensor *tensor) {
    size_t n = tensor->rows * tensor->cols;
    if (loader->desc.unchecked || loader->result) return;
    size_t index = mli_find_not_finite(tensor->type, tensor->data, n);
    if (index < n)
        loader->result = mli_refuse_number(loader->error, array->name, index, tensor->cols,
                                           mli_bits_float(MLI_INFINITY_BITS), tensor->type);
}

/* Many tensors of a file can name the same place: copying all would take memory out of proportion to the file. (Four
   times its size: llama2.c's quantized weights come as floats.) */
static ml_result mli_check_sharing(mli_loader *loader, uint64_t copied) {
    size_t size = loader->archive->private_part->total_size;
    if (copied / 4 <= size) return loader->result;
    return mli_refuse(loader, ML_ERROR_FORMAT, "its tensors overlap: %l bytes in a file of %z",
                      (int64_t)copied, size);
}

/* Gives every weight its type, and points at those that can be used in place. Returns how many those are. */
static int mli_place_weights(mli_loader *loader) {
    const ml_config *config = &loader->config;
    uint64_t copied_bytes = 0;
    int n_in_place = 0;
    for (int i = 0; i < loader->model->n_tensors; i++) {
        const ml_array *array = loader->sources[i];
        ml_tensor *tensor = &loader->model->private_part->tensors[i];
        mli_slot slot = mli_slot_at(i);
        if (!mli_has_slot(config, slot) || (slot == MLI_OUTPUT && !array)) continue;
        tensor->type = mli_weight_type(config, slot, loader->desc.type, array ? array->type : ML_F32);
        if (array && mli_is_in_place(loader, array, tensor, slot)) {
            tensor->data = (void *)(uintptr_t)array->data; /* the forward pass only reads it */
            n_in_place++;
        } else if (array) {
            copied_bytes += (uint64_t)tensor->rows * ml_type_row_bytes(array->type, tensor->cols);
        }
    }
    mli_check_sharing(loader, copied_bytes);
    return n_in_place;
}

static void mli_load_weights(mli_loader *loader) {
    if (loader->result) return;
    ml_model *model = loader->model;
    int n_in_place = mli_place_weights(loader), is_hf = loader->naming == MLI_NAMING_HF;
    if (!loader->result) loader->result = mli_allocate_weights(model, loader->error);
    for (int i = 0; i < model->n_tensors && !loader->result; i++) {
        const ml_array *array = loader->sources[i];
        const ml_tensor *tensor = &model->tensors[i];
        mli_slot slot = mli_slot_at(i);
        if (!array && tensor->type) /* a bias that the file does not have */
            memset(tensor->data, 0, tensor->cols * sizeof(float));
        else if (array && mli_is_unmerged(array))
            mli_merge_weight(loader, array, tensor);
        else if (array && tensor->data != array->data)
            mli_copy_weight(loader, array, tensor, mli_rotary_head(&loader->config, slot, is_hf));
        else if (array)
            mli_check_weight(loader, array, tensor);
    }
    mli_tie_output(model);
    if (!loader->result && n_in_place) { /* otherwise the file is no longer needed */
        model->private_part->archive = loader->archive;
        loader->archive = NULL;
    }
}

/* ---- keys that are only kept ----
   A GGUF has keys that mean nothing here: its author, its license, how a chat is written. Saved as GGUF again, the
   model still has them, byte by byte. They stay in the file while it is mapped, and are copied otherwise. */

/* Whether a saved model has this key anyway, from its configuration, tokenizer or head, or must not have it. */
static int mli_is_own_key(const ml_model *model, const char *key, size_t n) {
    static const char *const own[] = {
        "general.architecture",    "general.file_type",      "general.quantization_version",
        MLI_GGUF_ALIGNMENT_KEY,    "llama.attention.causal", "llama.rope.dimension_count",
        "llama.rope.scale_linear", MLI_KEY_LABELS,           MLI_KEY_POOLING};
    static const char *const tokenizer[] = {MLI_KEY_TOKENIZER, MLI_KEY_TOKENS, MLI_KEY_SCORES,
                                            MLI_KEY_KINDS,     MLI_KEY_WORDS,  MLI_KEY_MERGES};
    static const char *const prefixes[] = {"split.", "minillama.", "tokenizer.ggml."};
    int is_own = 0;
    for (size_t i = 0; i < MLI_COUNT(own); i++) is_own |= mli_is_text(key, n, own[i]);
    for (int i = 0; i < MLI_FIELDS; i++)
        if (mli_field_keys[i][0]) is_own |= mli_is_text(key, n, mli_field_keys[i][0]);
    for (size_t i = 0; i < (model->private_part->has_other_tokenizer ? 3 : 2); i++)
        is_own |= n >= strlen(prefixes[i]) && memcmp(key, prefixes[i], strlen(prefixes[i])) == 0;
    if (!model->tokenizer) return is_own;
    size_t n_tokenizer = MLI_COUNT(tokenizer) - (model->tokenizer->private_part->rules.words ? 0 : 2);
    for (size_t i = 0; i < n_tokenizer; i++) is_own |= mli_is_text(key, n, tokenizer[i]);
    for (int i = 0; i < MLI_TOKENIZER_IDS; i++) is_own |= mli_is_text(key, n, mli_id_keys[i]);
    for (int i = 0; i < MLI_TOKENIZER_FLAGS; i++) is_own |= mli_is_text(key, n, mli_flag_keys[i]);
    return is_own;
}

/* Copies the keys of *in that are kept to `to`, or with NULL only counts. Returns their bytes. */
static size_t mli_copy_keys(const ml_model *model, mli_reader in, unsigned char *to) {
    size_t length, bytes = 0;
    const char *key;
    for (const unsigned char *begin = in.p; (key = mli_gguf_next(&in, &length)) != NULL; begin = in.p) {
        if (mli_is_own_key(model, key, length)) continue;
        if (to) memcpy(to + bytes, begin, (size_t)(in.p - begin));
        bytes += (size_t)(in.p - begin);
    }
    return bytes;
}

MLI_OPTIONAL void mli_keep_keys(mli_loader *loader) {
    if (loader->result) return;
    struct ml_model_private *own = loader->model->private_part;
    const mli_archive *archive = (own->archive ? own->archive : loader->archive)->private_part;
    own->has_other_tokenizer = loader->desc.tokenizer || loader->desc.tokenizer_data;
    /* the format is that of the last shard, the keys are the first one's */
    if (archive->size < MLI_GGUF_PAIRS || memcmp(archive->data, "GGUF", 4) != 0) return;
    mli_reader in = mli_reader_at(archive->data, MLI_GGUF_PAIRS - 8, archive->size);
    size_t length;
    for (uint64_t n = mli_read_u64(&in); n && !in.failed; n--) mli_gguf_next(&in, &length);
    if (in.failed) return;
    in = mli_reader_at(archive->data, MLI_GGUF_PAIRS, (size_t)(in.p - archive->data));
    own->keys = in.p;
    own->keys_size = mli_left(&in);
    if (own->archive) return;
    own->keys_size = mli_copy_keys(loader->model, in, NULL);
    own->own_keys = mli_alloc(&own->allocator, own->keys_size, 1);
    own->keys = (const unsigned char *)own->own_keys;
    if (own->own_keys)
        mli_copy_keys(loader->model, in, (unsigned char *)own->own_keys);
    else
        mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for %z bytes of keys", own->keys_size);
}

/* ---- the tokenizer ---- */

#define MLI_GENERATION_JSON "generation_config.json"
#define MLI_TOKENIZER_JSON "tokenizer_config.json"

/* Most rows that a vocabulary has beyond the pieces of a tokenizer that is only found beside it. */
#define MLI_MAX_EXTRA_ROWS 1024

/* Tries a tokenizer beside the model: it counts only if it is one, and of the right size. */
static ml_tokenizer *mli_try_tokenizer(mli_loader *loader, const char *name) {
    const ml_allocator *allocator = &loader->allocator;
    ml_tokenizer *tokenizer = NULL;
    mli_file file;
    if (!mli_map_beside(loader, name, &file)) return NULL;
    ml_result result = mli_tokenizer_from_data(file.data, file.size, allocator, &tokenizer, NULL);
    mli_unmap_file(allocator, &file);
    if (result == ML_ERROR_MEMORY) mli_refuse(loader, result, "out of memory for %s", name);
    if (result) return NULL;
    int n_extra = loader->config.vocab_size - tokenizer->n_pieces;
    if (n_extra >= 0 && n_extra <= MLI_MAX_EXTRA_ROWS) return tokenizer;
    ml_tokenizer_free(tokenizer);
    return NULL;
}

/* Adds a JSON file beside the model to the archive's values, if there is one that can be read: what it says is of
   use, but not needed. */
static void mli_try_json(mli_loader *loader, const char *name) {
    mli_archive *archive = loader->archive->private_part;
    mli_file file;
    if (!mli_map_beside(loader, name, &file)) return;
    ml_result result = mli_json_values(archive, name, file.data, file.size, NULL);
    mli_unmap_file(&loader->allocator, &file);
    archive->result = ML_OK; /* it is as it was */
    if (result == ML_ERROR_MEMORY) mli_refuse(loader, result, "out of memory for %s", name);
}

/* A tokenizer.json does not say which of its pieces are bos and eos. */
static void mli_load_bos_eos(mli_loader *loader, ml_tokenizer *t) {
    static const char *const keys[] = {MLI_CONFIG_JSON ".bos_token_id", MLI_CONFIG_JSON ".eos_token_id",
                                       MLI_CONFIG_JSON ".eos_token_id.0"};
    for (size_t i = 0; i < MLI_COUNT(keys); i++) {
        const ml_value *id = ml_archive_find_value(loader->archive, keys[i]);
        if (id && id->kind == ML_VALUE_INT && id->i >= 0 && id->i < t->n_pieces)
            *(i ? &t->eos : &t->bos) = (int32_t)id->i;
    }
}

/* Hugging Face says in three files what tokenizer.model does not: eos_token_id, a number or a list, and whether a
   text begins with bos and ends with eos. */
static void mli_load_special(mli_loader *loader, ml_tokenizer *t) {
    static const char *const ends[] = {MLI_CONFIG_JSON, MLI_GENERATION_JSON};
    static const char *const flags[] = {MLI_TOKENIZER_JSON ".add_bos_token",
                                        MLI_TOKENIZER_JSON ".add_eos_token"};
    char name[ML_NAME_SIZE];
    if (!ml_archive_find_value(loader->archive, mli_field_keys[MLI_FIELD_DIM][1])) return;
    mli_try_json(loader, MLI_GENERATION_JSON);
    mli_try_json(loader, MLI_TOKENIZER_JSON);
    if (t->private_part->rules.is_ranked) mli_load_bos_eos(loader, t);
    for (size_t file = 0; file < MLI_COUNT(ends); file++)
        for (int i = -1; i < ML_MAX_ENDS; i++) {
            if (i < 0) mli_format(name, sizeof name, "%s.eos_token_id", ends[file]);
            if (i >= 0) mli_format(name, sizeof name, "%s.eos_token_id.%d", ends[file], i);
            const ml_value *id = ml_archive_find_value(loader->archive, name);
            if (id && id->kind == ML_VALUE_INT && id->i >= 0 && id->i < t->n_pieces)
                mli_add_end(t->ends, &t->n_ends, (int32_t)id->i);
        }
    for (size_t i = 0; i < MLI_COUNT(flags); i++) {
        const ml_value *flag = ml_archive_find_value(loader->archive, flags[i]);
        int is_there = i ? t->eos >= 0 : t->bos >= 0;
        if (flag && flag->kind == ML_VALUE_BOOL) *(i ? &t->adds_eos : &t->adds_bos) = flag->i && is_there;
    }
}

/* The caller's tokenizer, else the file's own, else one beside the file. The first two must fit the vocabulary; a
   kind of tokenizer that is not supported leaves the model without one. */
static void mli_load_tokenizer(mli_loader *loader) {
    if (loader->result) return;
    const ml_model_load_desc *d = &loader->desc;
    const ml_allocator *allocator = &loader->allocator;
    ml_error *error = loader->error;
    ml_tokenizer *tokenizer = NULL;
    if (d->tokenizer || d->tokenizer_data) {
        loader->result = mli_tokenizer_from(d->tokenizer, d->tokenizer_data, d->tokenizer_size, allocator,
                                            &tokenizer, error);
    } else if (ml_archive_find_value(loader->archive, MLI_KEY_TOKENS)) {
        ml_result result = mli_tokenizer_from_archive(loader->archive, allocator, &tokenizer, error);
        if (result != ML_ERROR_UNSUPPORTED) loader->result = result;
    } else if (loader->path) {
        static const char *const names[] = {"tokenizer.model", "tokenizer.json", "tokenizer.bin"};
        for (size_t i = 0; i < MLI_COUNT(names) && !tokenizer && !loader->result; i++)
            tokenizer = mli_try_tokenizer(loader, names[i]);
    }
    if (tokenizer) mli_load_special(loader, tokenizer);
    loader->model->private_part->tokenizer = tokenizer; /* ml_model_free frees it from here on */
    loader->model->tokenizer = tokenizer;
    if (tokenizer && tokenizer->n_pieces > loader->config.vocab_size)
        mli_refuse(loader, ML_ERROR_MISMATCH, "the tokenizer has %d pieces, but the model's vocab_size is %d",
                   tokenizer->n_pieces, loader->config.vocab_size);
}

/* ---- models ---- */

/* A configuration that is not in the file is in the JSON beside it: Hugging Face's or Meta's. The demands are checked
   before it is read: a model of another kind need not have it. */
static void mli_find_config(mli_loader *loader) {
    static const char *const files[] = {MLI_CONFIG_JSON, MLI_PARAMS_JSON};
    const mli_archive *archive = loader->archive->private_part;
    size_t n_values = archive->values.n;
    for (size_t i = 0; i <= MLI_COUNT(files); i++) {
        mli_check_demands(loader, mli_demands, MLI_COUNT(mli_demands));
        if (loader->result || mli_field_value(loader, MLI_FIELD_DIM)) break;
        if (i < MLI_COUNT(files)) mli_load_json(loader, files[i], NULL);
    }
    if (archive->values.n == n_values && loader->path && !mli_field_value(loader, MLI_FIELD_DIM) &&
        !mli_is_from_course(loader))
        mli_refuse(loader, ML_ERROR_FILE,
                   "no configuration of a Llama, and neither %s nor %s can be read beside it", files[0],
                   files[1]);
}

static ml_result mli_load(mli_loader *loader, const ml_model_load_desc *desc, ml_model **model) {
    if (model) *model = NULL;
    if ((!loader->path && !loader->data) || !model)
        return mli_fail(loader->error, ML_ERROR_ARGUMENT, "loading a model: path, data or model is NULL");
    if (desc) loader->desc = *desc;
    if (loader->desc.type && (loader->desc.type < ML_F32 || loader->desc.type > ML_Q4_0))
        return mli_fail(loader->error, ML_ERROR_ARGUMENT, "weights cannot be held as %s",
                        ml_type_name(loader->desc.type));
    if (mli_loader_open(loader)) return loader->result;
    mli_find_config(loader);
    if (mli_is_from_course(loader))
        mli_load_course_config(loader);
    else
        mli_load_config(loader);
    mli_drop_ones(loader);
    mli_detect_naming(loader);
    mli_complete_config(loader);
    if (!loader->result)
        loader->result = mli_model_new(&loader->config, &loader->allocator, &loader->model, loader->error);
    if (!loader->result) mli_new_sources(loader, loader->model->n_tensors);
    mli_find_sources(loader);
    mli_refuse_unmerged(loader);
    mli_load_tokenizer(loader); /* before the weights, which may take the archive */
    mli_load_weights(loader);
#ifdef MLI_SAVING
    mli_keep_keys(loader);
#endif
    mli_explain_shard(loader);
    if (loader->result)
        ml_model_free(loader->model);
    else
        *model = loader->model;
    return mli_loader_close(loader);
}

#ifndef ML_NO_STDIO
ML_DEF ml_result ml_model_load(const char *path, const ml_model_load_desc *desc, ml_model **model,
                               ml_error *error) {
    mli_loader loader = mli_loader_of(path, NULL, 0, error);
    return mli_name_file(error, mli_load(&loader, desc, model), path);
}
#endif

ML_DEF ml_result ml_model_load_memory(const void *data, size_t size, const ml_model_load_desc *desc,
                                      ml_model **model, ml_error *error) {
    mli_loader loader = mli_loader_of(NULL, data, size, error);
    return mli_load(&loader, desc, model);
}

/* ---- adapters ---- */

#define MLI_PEFT_JSON "adapter_config.json"

/* Of what PEFT's configuration may say, all that changes how a pair is used. */
static const mli_demand mli_lora_demands[] = {{"general.architecture", "llama"},
                                              {"general.type", "adapter"},
                                              {"adapter.type", "lora"},
                                              {MLI_PEFT_JSON ".peft_type", "LORA"},
                                              {MLI_PEFT_JSON ".bias", "none"},
                                              {MLI_PEFT_JSON ".use_dora", NULL},
                                              {MLI_PEFT_JSON ".lora_bias", NULL},
                                              {MLI_PEFT_JSON ".use_qalora", NULL},
                                              {MLI_PEFT_JSON ".fan_in_fan_out", NULL},
                                              {MLI_PEFT_JSON ".layer_replication.", "repeated layers are"},
                                              /* adapters for a part of the text */
                                              {"adapter.alora.", NULL},
                                              {MLI_PEFT_JSON ".alora_invocation_tokens.", NULL},
                                              {MLI_PEFT_JSON ".arrow_config.", NULL}};

#define MLI_KEY_ALPHA "adapter.lora.alpha"

/* What PEFT puts in front of the model's names. */
#define MLI_PEFT_PREFIX "base_model.model."

/* The tensors of a head: weight, bias. The names of llama.cpp, of Hugging Face, and of the course. */
enum { MLI_HEAD_GGUF, MLI_HEAD_HF, MLI_HEAD_COURSE, MLI_HEAD_NAMINGS };
static const char *const mli_head_names[MLI_HEAD_NAMINGS][2] = {
    {"cls.output.weight", "cls.output.bias"},
    {"score.weight", "score.bias"},
    {"classifier_head.weight", "classifier_head.bias"}};

static int mli_count_halves(const ml_config *config) { return config->n_layers * MLI_LORA_TARGETS * 2; }

/* Half `index` of an adapter's tensors belongs to slot `*slot` of layer `*layer`; odd ones are B. */
static void mli_lora_slot_of(int index, mli_slot *slot, int *layer) {
    *slot = mli_lora_slots[index / 2 % MLI_LORA_TARGETS];
    *layer = index / 2 / MLI_LORA_TARGETS;
}

/* "blk.0.attn_q.weight.lora_a"; Hugging Face's "PREFIX.model.layers.0.self_attn.q_proj.lora_A.weight" */
static void mli_lora_name(mli_naming naming, const char *prefix, int index, char name[MLI_LONG_NAME_SIZE]) {
    static const char *const halves[2][2] = {{"a", "b"}, {"A.weight", "B.weight"}};
    int is_hf = naming == MLI_NAMING_HF, layer;
    char weight[ML_NAME_SIZE];
    mli_slot slot;
    mli_lora_slot_of(index, &slot, &layer);
    mli_param_name(naming, slot, layer, weight);
    if (is_hf) weight[strlen(weight) - strlen(".weight")] = 0;
    mli_format(name, MLI_LONG_NAME_SIZE, "%s%s.lora_%s", prefix, weight, halves[is_hf][index % 2]);
}

/* B's rows are in the file's order of the matrix's rows (see mli_rotary_head); A's rows belong to no matrix. */
static size_t mli_lora_head(const ml_config *config, int index, int is_hf) {
    mli_slot slot;
    int layer;
    mli_lora_slot_of(index, &slot, &layer);
    return mli_rotary_head(config, slot, is_hf && index % 2);
}

/* Sets the prefix: what is in front of "layers." in the first name that has that word. PEFT's own words are two, or
   one for a model without the layer that makes logits; others wrap the whole. */
static void mli_detect_lora_prefix(mli_loader *loader) {
    char plain[MLI_LONG_NAME_SIZE];
    for (size_t i = 0; i < loader->archive->n_arrays; i++) {
        const char *name = loader->archive->arrays[i].name, *layers = plain;
        if (!mli_plain_name(name, plain)) continue;
        while (layers && !mli_begins_with(layers, "layers."))
            layers = strchr(layers, '.') ? strchr(layers, '.') + 1 : NULL;
        if (!layers || (size_t)(layers - plain) >= MLI_PREFIX_SIZE) continue;
        memcpy(loader->prefix, plain, (size_t)(layers - plain));
        return;
    }
}

/* What half `index` is called in this file, apart from the words of wrappers; after the halves come a head's weight
   and bias, which are outside of the model that the layers are in. */
static void mli_lora_name_in(const mli_loader *loader, int index, char name[MLI_LONG_NAME_SIZE]) {
    int is_hf = loader->naming == MLI_NAMING_HF, n = mli_count_halves(&loader->config);
    char own[MLI_LONG_NAME_SIZE];
    size_t length = strlen(loader->prefix), outside = length - MLI_MIN(length, sizeof "model." - 1);
    int is_inside = strcmp(loader->prefix + outside, "model.") == 0;
    if (index < n)
        mli_lora_name(loader->naming, "", index, own);
    else
        mli_format(own, sizeof own, "%s", mli_head_names[is_hf ? MLI_HEAD_HF : MLI_HEAD_GGUF][index - n]);
    mli_format(name, MLI_LONG_NAME_SIZE, "%s%s", loader->prefix,
               own + (is_hf && index < n ? strlen("model.") : 0));
    if (index >= n && is_inside) mli_format(name + outside, MLI_LONG_NAME_SIZE - outside, "%s", own);
}

/* Finds the halves that the file has, and a head's tensors. */
static void mli_find_pairs(mli_loader *loader) {
    int is_gguf = strcmp(loader->archive->format, "GGUF") == 0, n = mli_count_halves(&loader->config);
    int n_found = 0;
    loader->naming = is_gguf ? MLI_NAMING_GGUF : MLI_NAMING_HF;
    mli_new_sources(loader, n + 2);
    if (!is_gguf) mli_detect_lora_prefix(loader);
    for (int i = 0; i < n + 2 && !loader->result; i++) {
        char name[MLI_LONG_NAME_SIZE];
        mli_lora_name_in(loader, i, name);
        loader->sources[i] = mli_find_plain(loader, name);
        n_found += i < n && loader->sources[i];
    }
    if (!n_found)
        mli_refuse(loader, ML_ERROR_MISMATCH,
                   "no adapter for this model: none of %z tensors is half of a pair",
                   loader->archive->n_arrays);
}

/* A tensor that is left over would change the results. */
static void mli_check_all_used(mli_loader *loader) {
    int n = mli_count_halves(&loader->config) + 2;
    size_t n_used = 0;
    if (loader->result) return;
    for (int i = 0; i < n; i++) n_used += loader->sources[i] != NULL;
    if (n_used == loader->archive->n_arrays) return;
    for (size_t k = 0; k < loader->archive->n_arrays && !loader->result; k++) {
        const ml_array *array = &loader->archive->arrays[k];
        int i = 0;
        while (i < n && loader->sources[i] != array) i++;
        if (i == n)
            mli_refuse(
                loader, ML_ERROR_UNSUPPORTED,
                "tensor %s is not part of an adapter that can be used: pairs for matrices of %d layers",
                array->name, loader->config.n_layers);
    }
}

/* Both halves of every pair are there, fit the model's matrix and each other. Returns the largest rank. */
static int mli_check_pairs(mli_loader *loader) {
    const ml_config *c = &loader->config;
    int most = 0;
    for (int i = 0; i < mli_count_halves(c) && !loader->result; i += 2) {
        const ml_array *a = loader->sources[i], *b = loader->sources[i + 1];
        char other[MLI_LONG_NAME_SIZE];
        mli_slot slot;
        int layer;
        if (!a && !b) continue;
        mli_lora_slot_of(i, &slot, &layer);
        mli_lora_name_in(loader, a ? i + 1 : i, other);
        if (!a || !b) {
            const char *half = a ? a->name : b->name;
            mli_refuse(loader, ML_ERROR_MISMATCH, "tensor %s is there, but not %s", half, other);
        } else {
            size_t rank = mli_check_pair(loader, a, b, (size_t)mli_extent_of(c, mli_params[slot].rows),
                                         (size_t)mli_extent_of(c, mli_params[slot].cols));
            most = MLI_MAX(most, (int)rank);
        }
    }
    return most;
}

/* What an adapter's configuration may not say. Some ways to initialize the pairs change the frozen matrices: then
   the pairs do not fit the model as it was. True, false and three words are known not to. */
static void mli_check_adapter(mli_loader *loader) {
    if (loader->result) return;
    const ml_value *init = ml_archive_find_value(loader->archive, MLI_PEFT_JSON ".init_lora_weights");
    mli_check_demands(loader, mli_lora_demands, MLI_COUNT(mli_lora_demands));
    if (init && init->kind != ML_VALUE_BOOL && !mli_value_is(init, "orthogonal"))
        mli_check_word(loader, init, "gaussian", "eva");
}

/* ---- rank and alpha: for all pairs, or in PEFT's patterns for some ---- */

/* A pattern is a regular expression for the end of a module's name: "q_proj", "layers.1.self_attn.q_proj". Of what it
   may hold, these are understood: '.' for any character, "\." for a dot, '^' for the name's beginning. */
static int mli_is_plain_pattern(const char *pattern) {
    for (const char *p = pattern + (*pattern == '^'); *p; p++) {
        if (*p == '\\' && p[1] == '.') p++;
        if (strchr("\\^$*+?{}[]()|", *p)) return 0;
    }
    return 1;
}

static int mli_pattern_fits(const char *pattern, const char *module) {
    int is_whole = *pattern == '^';
    size_t n = 0, length = strlen(module);
    for (const char *p = pattern += is_whole; *p; p++) n += *p != '\\';
    if (!n || n > length || (is_whole && n != length)) return 0;
    module += length - n;
    if (n < length && module[-1] != '.') return 0;
    for (; *pattern; pattern++, module++)
        if (*pattern == '\\' ? *++pattern != *module : *pattern != '.' && *pattern != *module) return 0;
    return 1;
}

/* What PEFT's configuration says of a module: the value of the first key in `patterns` that fits its name, else that
   of `key`; NULL: nothing. */
static const ml_value *mli_peft_value(mli_loader *loader, const char *patterns, const char *key,
                                      const char *module) {
    size_t n = strlen(patterns);
    for (size_t i = 0; i < loader->archive->n_values; i++) {
        const ml_value *value = &loader->archive->values[i];
        if (strncmp(value->name, patterns, n) != 0) continue;
        if (!mli_is_plain_pattern(value->name + n))
            mli_refuse(loader, ML_ERROR_UNSUPPORTED,
                       "value %s is for names by a regular expression: not supported", value->name);
        else if (mli_pattern_fits(value->name + n, module))
            return value;
    }
    return ml_archive_find_value(loader->archive, key);
}

/* alpha of all pairs; 0 where a GGUF has none. */
static float mli_load_lora_alpha(mli_loader *loader) {
    if (loader->result) return 0;
    int is_gguf = loader->naming == MLI_NAMING_GGUF;
    const char *key = is_gguf ? MLI_KEY_ALPHA : MLI_PEFT_JSON ".lora_alpha";
    const ml_value *value = ml_archive_find_value(loader->archive, key);
    if (is_gguf && (!value || (value->kind == ML_VALUE_FLOAT && value->f == 0)))
        return 0; /* llama.cpp: a scale of 1 */
    if (!value) mli_refuse(loader, ML_ERROR_MISMATCH, "no configuration: value %s is missing", key);
    return value ? mli_value_float(loader, value, 1) : 0;
}

/* Returns the scale of a pair, for which PEFT's configuration may have another alpha or another divisor; and the rank
   that it names must be that of the tensors. */
static float mli_load_pair_scale(mli_loader *loader, int pair, float alpha) {
    const ml_array *a = loader->sources[2 * pair];
    float rank = (float)a->shape[0];
    char module[ML_NAME_SIZE];
    if (loader->naming == MLI_NAMING_GGUF) return alpha > 0 ? alpha / rank : 1;
    mli_param_name(MLI_NAMING_HF, mli_lora_slots[pair % MLI_LORA_TARGETS], pair / MLI_LORA_TARGETS, module);
    module[strlen(module) - strlen(".weight")] = 0;
    const ml_value *r = mli_peft_value(loader, MLI_PEFT_JSON ".rank_pattern.", MLI_PEFT_JSON ".r", module),
                   *own = mli_peft_value(loader, MLI_PEFT_JSON ".alpha_pattern.", MLI_PEFT_JSON ".lora_alpha",
                                         module),
                   *rslora = ml_archive_find_value(loader->archive, MLI_PEFT_JSON ".use_rslora");
    if (r && (r->kind != ML_VALUE_INT || r->i != a->shape[0]))
        mli_refuse(loader, ML_ERROR_MISMATCH, "value %s is not %l, the rank of tensor %s", r->name,
                   a->shape[0], a->name);
    if (own) alpha = mli_value_float(loader, own, 1);
    return alpha / (mli_value_bool(loader, rslora) ? sqrtf(rank) : rank);
}

/* Begins to load what belongs to a model, an adapter or a head, with the fields of the description that they use. */
static ml_result mli_loader_begin(mli_loader *loader, const ml_model *model, const ml_load_desc *desc,
                                  int has_output) {
    if ((!loader->path && !loader->data) || !model || !has_output)
        return mli_refuse(loader, ML_ERROR_ARGUMENT, "loading: path, data, model or the result is NULL");
    loader->config = model->config;
    if (desc) {
        loader->desc.config_json = desc->config_json;
        loader->desc.config_json_size = desc->config_json_size;
        loader->desc.allocator = desc->allocator;
    }
    return mli_loader_open(loader);
}

/* An adapter of the pairs found: its numbers and scales. */
static ml_lora *mli_make_adapter(mli_loader *loader, const mli_lora_shape *shape, float alpha) {
    ml_lora *lora = NULL;
    if (!loader->result) loader->result = mli_lora_new(shape, &loader->allocator, &lora, loader->error);
    for (int i = 0; lora && i < lora->n_tensors; i++) {
        size_t head_size = mli_lora_head(&loader->config, i, loader->naming == MLI_NAMING_HF);
        if (!loader->sources[i]) continue;
        mli_copy_weight(loader, loader->sources[i], &lora->tensors[i], head_size);
        if (i % 2 == 0) lora->private_part->scales[i / 2] = mli_load_pair_scale(loader, i / 2, alpha);
    }
    return lora;
}

static ml_result mli_load_adapter(mli_loader *loader, const ml_model *model, const ml_load_desc *desc,
                                  ml_lora **lora) {
    if (lora) *lora = NULL;
    if (mli_loader_begin(loader, model, desc, lora != NULL)) return loader->result;
    mli_find_pairs(loader);
    if (loader->naming == MLI_NAMING_HF) mli_load_json(loader, MLI_PEFT_JSON, "of an adapter");
    mli_check_adapter(loader);
    int rank = mli_check_pairs(loader);
    mli_check_all_used(loader);
    float alpha = mli_load_lora_alpha(loader);
    uint64_t bytes = 0;
    for (int i = 0; i < mli_count_halves(&loader->config) && !loader->result; i++) {
        const ml_array *array = loader->sources[i];
        if (array) bytes += ml_type_row_bytes(array->type, ml_array_count(array));
    }
    if (!loader->result) mli_check_sharing(loader, bytes);
    const mli_lora_shape shape = {&loader->config, rank, alpha > 0 ? alpha : (float)rank, ML_LORA_ALL,
                                  loader->sources};
    ml_lora *loaded = mli_make_adapter(loader, &shape, alpha);
    if (loader->result)
        ml_lora_free(loaded);
    else
        *lora = loaded;
    return mli_loader_close(loader);
}

#ifndef ML_NO_STDIO
ML_DEF ml_result ml_lora_load(const char *path, const ml_model *model, const ml_load_desc *desc,
                              ml_lora **lora, ml_error *error) {
    mli_loader loader = mli_loader_of(path, NULL, 0, error);
    return mli_name_file(error, mli_load_adapter(&loader, model, desc, lora), path);
}
#endif

ML_DEF ml_result ml_lora_load_memory(const void *data, size_t size, const ml_model *model,
                                     const ml_load_desc *desc, ml_lora **lora, ml_error *error) {
    mli_loader loader = mli_loader_of(NULL, data, size, error);
    return mli_load_adapter(&loader, model, desc, lora);
}

/* ---- heads ----
   A GGUF keeps a head under llama.cpp's names; a PEFT adapter (modules_to_save) and Hugging Face's
   LlamaForSequenceClassification as "score", with the labels in the JSON beside it. */

enum { MLI_POOLING_MEAN = 1, MLI_POOLING_LAST = 3 }; /* llama.cpp's numbers */
#define MLI_JSON_POOLING "minillama_pooling"
#define MLI_JSON_LABELS "id2label"              /* of config.json */
#define MLI_PEFT_JSON_LABELS "minillama_labels" /* of adapter_config.json, which has no place for them */
#define MLI_MAX_CLASSES (1 << 16)

/* Finds weight and bias, under any prefix; the shortest name counts, since others have more in front (the moments of
   a checkpoint). Returns who named them: a row of mli_head_names. */
static int mli_find_head(mli_loader *loader) {
    char bias[MLI_LONG_NAME_SIZE], dense[MLI_LONG_NAME_SIZE], plain[MLI_LONG_NAME_SIZE];
    int naming = 0;
    mli_new_sources(loader, 2);
    for (int n = 0; n < MLI_HEAD_NAMINGS && !loader->result; n++)
        for (size_t i = 0; i < loader->archive->n_arrays; i++) {
            const ml_array *array = &loader->archive->arrays[i], *shortest = loader->sources[0];
            if (!mli_plain_name(array->name, plain)) continue;
            if (!mli_take_prefix(loader, plain, mli_head_names[n][0])) continue;
            if (strstr(array->name, "original_module.")) continue; /* PEFT's copy of what was before */
            if (shortest && strlen(array->name) >= strlen(shortest->name)) continue;
            loader->sources[0] = array;
            naming = n;
            mli_format(bias, sizeof bias, "%s%s", loader->prefix, mli_head_names[n][1]);
            mli_format(dense, sizeof dense, "%scls.weight", loader->prefix);
        }
    if (loader->result) return 0;
    if (!loader->sources[0]) {
        mli_refuse(loader, ML_ERROR_MISMATCH, "no head: none of its %z tensors is named like a classifier",
                   loader->archive->n_arrays);
        return 0;
    }
    loader->sources[1] = mli_find_plain(loader, bias);
    if (naming == MLI_HEAD_GGUF && ml_archive_find_array(loader->archive, dense))
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s: a head of two layers is not supported", dense);
    return naming;
}

/* Completes the head's shape from the tensors. */
static void mli_check_head(mli_loader *loader, mli_head_shape *shape) {
    if (loader->result) return;
    const ml_array *weight = loader->sources[0], *bias = loader->sources[1];
    int64_t n_classes = weight->shape[0];
    mli_check_source(loader, weight, (size_t)n_classes, shape->dim, 0);
    if (n_classes < 2 || n_classes > MLI_MAX_CLASSES)
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "tensor %s: %l classes, not 2 to %d", weight->name,
                   n_classes, MLI_MAX_CLASSES);
    if (bias) mli_check_source(loader, bias, 1, (size_t)n_classes, 1);
    if (!loader->result) mli_check_sharing(loader, ml_type_row_bytes(weight->type, ml_array_count(weight)));
    shape->n_classes = (int)n_classes;
    shape->has_bias = bias != NULL;
}

/* A zero-terminated copy, in memory of the archive. */
static void mli_take_label(mli_loader *loader, const char **label, const char *s, size_t length) {
    mli_archive *archive = loader->archive->private_part;
    archive->error = loader->error;
    *label = mli_keep_name(archive, s, length);
    archive->error = NULL;
    if (!loader->result) loader->result = archive->result;
}

/* labels (n) = the strings of a GGUF's list; nothing where there is none. */
static void mli_load_gguf_labels(mli_loader *loader, int n, const char **labels) {
    const mli_archive *archive = loader->archive->private_part;
    const ml_value *list;
    if (loader->result) return;
    loader->result =
        mli_gguf_find_list(loader->archive, MLI_KEY_LABELS, MLI_GGUF_STRING, (size_t)n, &list, loader->error);
    if (loader->result || !list) return;
    const unsigned char *begin = (const unsigned char *)list->s;
    mli_reader in = mli_reader_at(begin, 0, (size_t)(archive->data + archive->size - begin));
    for (int i = 0; i < n && !loader->result; i++) {
        size_t length;
        const char *s = mli_gguf_string(&in, &length);
        mli_take_label(loader, &labels[i], s, length);
    }
}

/* labels (n) = the values FILE.KEY.0, FILE.KEY.1, ...; nothing where there are none. */
static void mli_load_json_labels(mli_loader *loader, const char *file, const char *key, int n,
                                 const char **labels) {
    for (int i = 0; i <= n && !loader->result; i++) {
        char name[MLI_LONG_NAME_SIZE];
        mli_format(name, sizeof name, "%s.%s.%d", file, key, i);
        const ml_value *value = ml_archive_find_value(loader->archive, name);
        if (i == 0 && !value) return;
        if ((i < n) != (value != NULL))
            mli_refuse(loader, ML_ERROR_MISMATCH, "value %s is %s, but the head has %d classes", name,
                       value ? "there" : "missing", n);
        else if (value && value->kind != ML_VALUE_STRING)
            mli_refuse(loader, ML_ERROR_FORMAT, "value %s is no text", name);
        else if (value)
            mli_take_label(loader, &labels[i], value->s, value->length);
    }
}

static ml_pooling mli_load_pooling(mli_loader *loader, const char *key, int is_gguf) {
    const ml_value *value = loader->result ? NULL : ml_archive_find_value(loader->archive, key);
    if (!value) return ML_POOL_LAST; /* Hugging Face's */
    if (!is_gguf) return mli_load_choice(loader, value, "last", "mean") ? ML_POOL_MEAN : ML_POOL_LAST;
    if (value->kind != ML_VALUE_INT || (value->i != MLI_POOLING_MEAN && value->i != MLI_POOLING_LAST))
        mli_refuse(loader, ML_ERROR_UNSUPPORTED, "value %s is not %d (mean) or %d (last)", key,
                   MLI_POOLING_MEAN, MLI_POOLING_LAST);
    return value->i == MLI_POOLING_MEAN ? ML_POOL_MEAN : ML_POOL_LAST;
}

/* Labels and pooling: from the keys of a GGUF, or from the JSON that belongs to tensors of Hugging Face's names. */
static void mli_load_head_values(mli_loader *loader, int naming, mli_head_shape *shape, const char **labels) {
    if (loader->result) return;
    const char *weight = loader->sources[0]->name, *format = loader->archive->format;
    int is_gguf = strcmp(format, "GGUF") == 0, is_peft = strstr(weight, "base_model.") != NULL;
    const char *json = is_peft ? MLI_PEFT_JSON : MLI_CONFIG_JSON;
    if (is_gguf) {
        shape->pooling = mli_load_pooling(loader, MLI_KEY_POOLING, 1);
        mli_load_gguf_labels(loader, shape->n_classes, labels);
    } else if (naming == MLI_HEAD_COURSE) {
        mli_load_json_labels(loader, "minillama", "labels", shape->n_classes, labels);
    } else if (naming == MLI_HEAD_HF) {
        char key[ML_NAME_SIZE];
        int is_needed = is_peft || strcmp(format, "safetensors") == 0;
        mli_load_json(loader, json, is_needed ? "of a head" : NULL);
        mli_format(key, sizeof key, "%s." MLI_JSON_POOLING, json);
        shape->pooling = mli_load_pooling(loader, key, 0);
        mli_load_json_labels(loader, json, is_peft ? MLI_PEFT_JSON_LABELS : MLI_JSON_LABELS, shape->n_classes,
                             labels);
    }
    if (labels[0]) shape->labels = labels;
}

static ml_result mli_load_head(mli_loader *loader, const ml_model *model, const ml_load_desc *desc,
                               ml_head **head) {
    mli_head_shape shape;
    const char **labels = NULL;
    ml_head *loaded = NULL;
    if (head) *head = NULL;
    if (mli_loader_begin(loader, model, desc, head != NULL)) return loader->result;
    memset(&shape, 0, sizeof shape);
    shape.dim = (size_t)model->config.dim;
    mli_check_demands(loader, mli_demands, 1); /* the architecture */
    int naming = mli_find_head(loader);
    mli_check_head(loader, &shape);
    if (!loader->result)
        labels = (const char **)mli_alloc(&loader->allocator, (size_t)shape.n_classes, sizeof *labels);
    if (!labels)
        mli_refuse(loader, ML_ERROR_MEMORY, "out of memory for the labels of %d classes", shape.n_classes);
    mli_load_head_values(loader, naming, &shape, labels);
    if (!loader->result) loader->result = mli_head_new(&shape, &loader->allocator, &loaded, loader->error);
    if (loaded) mli_copy_weight(loader, loader->sources[0], &loaded->weight, 0);
    if (loaded && loader->sources[1]) mli_copy_weight(loader, loader->sources[1], &loaded->bias, 0);
    mli_free(&loader->allocator, labels);
    if (loader->result)
        ml_head_free(loaded);
    else
        *head = loaded;
    return mli_loader_close(loader);
}

#ifndef ML_NO_STDIO
ML_DEF ml_result ml_head_load(const char *path, const ml_model *model, const ml_load_desc *desc,
                              ml_head **head, ml_error *error) {
    mli_loader loader = mli_loader_of(path, NULL, 0, error);
    return mli_name_file(error, mli_load_head(&loader, model, desc, head), path);
}
#endif

ML_DEF ml_result ml_head_load_memory(const void *data, size_t size, const ml_model *model,
                                     const ml_load_desc *desc, ml_head **head, ml_error *error) {
    mli_loader loader = mli_loader_of(NULL, data, size, error);
    return mli_load_head(&loader, model, desc, head);
}

/* ==== >>saving ====
   From a model, an adapter or a head to a file: which tensors go into it under which names and types, and the keys or
   the JSON that describe them. The keys are those of the loader's tables. */

#ifdef MLI_SAVING

/* ---- models ---- */

/* The type that tensor `index` of the model has in the file. */
static ml_type mli_saved_type(const mli_saver *saver, int index) {
    ml_type wanted = saver->desc.type, present = saver->model->tensors[index].type;
    mli_slot slot = mli_slot_at(index);
    if (saver->desc.format != ML_GGUF && !wanted && ml_type_block(present) > 1) wanted = ML_F16;
    return mli_weight_type(&saver->model->config, slot, wanted, present);
}

/* The course's model is one that its classifier has as "llama"; its output is the embedding; an adapter is merged. */
static void mli_save_for_course(const mli_saver *saver, mli_slot slot, int layer, mli_saved *saved) {
    char name[ML_NAME_SIZE];
    mli_param_name(MLI_NAMING_COURSE, slot, layer, name);
    mli_format(saved->name, sizeof saved->name, "%s%s", saver->desc.head ? "llama." : "", name);
    saved->repeats_first = slot == MLI_OUTPUT;
    for (int target = 0; saver->lora && target < MLI_LORA_TARGETS; target++) {
        int pair = layer * MLI_LORA_TARGETS + target;
        const ml_tensor *a = &saver->lora->tensors[2 * pair];
        if (mli_lora_slots[target] != slot || !a->data) continue;
        saved->lora = a;
        saved->factor = saver->lora->scales[pair];
        if (!saver->desc.type) saved->type = ML_F32;
    }
}

static int mli_saved_weight(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    const ml_model *model = (const ml_model *)object;
    mli_slot slot = mli_slot_at(index);
    int layer = mli_layer_at(index);
    if (!mli_has_slot(&model->config, slot) && !(saver->is_torch && slot == MLI_OUTPUT)) return 0;
    if (!model->tensors[index].data) return 0;                   /* a model may have no output layer */
    if (saver->trained && !saver->trained[index].grad) return 0; /* a frozen tensor is not in a checkpoint */
    mli_param_name(saver->is_hf ? MLI_NAMING_HF : MLI_NAMING_GGUF, slot, layer, saved->name);
    saved->tensor = model->tensors[index];
    saved->type = mli_saved_type(saver, index);
    saved->is_matrix = mli_params[slot].rows != MLI_ONE;
    saved->head_size = mli_rotary_head(&model->config, slot, saver->is_hf);
    if (saver->is_torch) mli_save_for_course(saver, slot, layer, saved);
    return 1;
}

#define MLI_KEY_NAME "general.name"

/* The keys of the model's file that it does not have anyway, in their order: all but general.name, or only that.
   Returns how many. */
static size_t mli_append_kept_keys(mli_writer *writer, const ml_model *model, int only_name) {
    const struct ml_model_private *own = model->private_part;
    mli_reader in = mli_reader_at(own->keys ? own->keys : (const unsigned char *)"", 0, own->keys_size);
    size_t length, n = 0;
    const char *key;
    for (const unsigned char *begin = in.p; (key = mli_gguf_next(&in, &length)) != NULL; begin = in.p) {
        if (mli_is_own_key(model, key, length) || mli_is_text(key, length, MLI_KEY_NAME) != only_name)
            continue;
        mli_append(writer, begin, (size_t)(in.p - begin));
        n++;
    }
    writer->n_keys += n;
    return n;
}

static void mli_append_gguf_config(mli_writer *writer, const mli_saver *saver) {
    static const mli_field order[] = {MLI_FIELD_SEQ_LEN, MLI_FIELD_DIM,   MLI_FIELD_LAYERS,
                                      MLI_FIELD_HIDDEN,  MLI_FIELD_HEADS, MLI_FIELD_KV_HEADS};
    ml_config c = saver->model->config;
    const char *const(*keys)[MLI_FIELD_KEYS] = mli_field_keys;
    ml_type type = mli_saved_type(saver, (int)MLI_W1); /* the largest tensors tell what most matrices are */
    mli_saved saved;
    int is_quantized = 0;
    for (int i = 0; i < saver->model->n_tensors; i++)
        if (mli_saved_weight(saver, saver->model, i, &saved)) is_quantized |= ml_type_block(saved.type) > 1;
    mli_append_key_string(writer, "general.architecture", "llama");
    if (saver->is_named || !mli_append_kept_keys(writer, saver->model, 1))
        mli_append_key_string(writer, MLI_KEY_NAME, saver->desc.name);
    mli_append_key_u32(writer, "general.file_type", /* llama.cpp's numbers, most of which are those of ggml */
                       type == ML_Q8_0   ? 7
                       : type == ML_BF16 ? 32
                                         : (int)mli_type(type)->gguf);
    if (is_quantized) mli_append_key_u32(writer, "general.quantization_version", 2);
    for (size_t i = 0; i < MLI_COUNT(order); i++)
        mli_append_key_u32(writer, keys[order[i]][0], *mli_field_int(&c, order[i]));
    mli_append_key_f32(writer, keys[MLI_FIELD_NORM_EPS][0], c.norm_eps);
    mli_append_key_u32(writer, "llama.rope.dimension_count", c.dim / c.n_heads);
    mli_append_key_f32(writer, keys[MLI_FIELD_ROPE_THETA][0], c.rope_theta);
    if (c.rope_scale != 1) {
        mli_append_key_string(writer, keys[MLI_FIELD_ROPE_TYPE][0], "linear");
        mli_append_key_f32(writer, keys[MLI_FIELD_ROPE_FACTOR][0], c.rope_scale);
    }
    mli_append_key_u32(writer, keys[MLI_FIELD_VOCAB][0], c.vocab_size);
    if (c.norm == ML_NORM_LAYER) mli_append_key_string(writer, keys[MLI_FIELD_NORM][0], "layer");
    if (c.mask == ML_MASK_FULL) mli_append_key_string(writer, keys[MLI_FIELD_MASK][0], "full");
    if (c.mask == ML_MASK_FULL) mli_append_key(writer, mli_mask_keys[0].key, MLI_GGUF_BOOL, 0);
    if (!c.tied_output && !mli_saved_weight(saver, saver->model, (int)MLI_OUTPUT, &saved))
        mli_append_key(writer, keys[MLI_FIELD_TIED][0], MLI_GGUF_BOOL, 0); /* there is no output layer */
}

/* llama.cpp aborts on a vocabulary with two equal pieces or an empty one, and wants one for each row of the
   embedding. A piece that is not there is written as "[PAD17]", unused, which is how llama.cpp's own converters do
   it. */
static int mli_is_padding(const mli_saver *saver, int32_t id) {
    return id >= saver->model->tokenizer->n_pieces || saver->is_repeated[id];
}

static void mli_append_piece(mli_writer *writer, const mli_saver *saver, int32_t id) {
    size_t length;
    const char *piece = ml_tokenizer_piece(saver->model->tokenizer, id, &length, NULL, NULL);
    char pad[32];
    mli_format(pad, sizeof pad, "[PAD%d]", (int)id);
    if (mli_is_padding(saver, id))
        mli_append_string(writer, pad, strlen(pad));
    else
        mli_append_string(writer, piece, length);
}

/* Byte-level: the merges. Where they are not ranked (in Meta's tokenizer.model), any two pieces that make a third are
   one, in the order of the thirds. Returns how many; without a writer it only counts. */
#ifndef ML_NO_BPE
static void mli_append_pair(mli_writer *writer, const ml_tokenizer *t, int32_t left, int32_t right) {
    size_t n[2];
    const char *a = ml_tokenizer_piece(t, left, &n[0], NULL, NULL);
    const char *b = ml_tokenizer_piece(t, right, &n[1], NULL, NULL);
    mli_append_uint(writer, n[0] + 1 + n[1], 8);
    mli_append(writer, a, n[0]);
    mli_append(writer, " ", 1);
    mli_append(writer, b, n[1]);
}

static size_t mli_append_merges(mli_writer *writer, const ml_tokenizer *t) {
    const mli_tokenizer *own = t->private_part;
    size_t count = 0;
    for (; count < own->n_merges && writer; count++)
        mli_append_pair(writer, t, own->merges[count].left, own->merges[count].right);
    for (int32_t id = 0; id < t->n_pieces && !own->rules.is_ranked; id++) {
        const unsigned char *text = (const unsigned char *)own->texts + own->text_at[id];
        size_t n = own->text_at[id + 1] - own->text_at[id];
        for (size_t i = 1; i < n && own->kinds[id] == ML_PIECE_NORMAL; i++) {
            int32_t left = mli_find_piece(own, text, i), right = mli_find_piece(own, text + i, n - i);
            if (left < 0 || right < 0) continue;
            if (writer) mli_append_pair(writer, t, left, right);
            count++;
        }
    }
    return own->rules.is_ranked ? own->n_merges : count;
}
#endif

static void mli_append_words(mli_writer *writer, const ml_tokenizer *t) {
#ifndef ML_NO_BPE
    mli_append_key_string(writer, MLI_KEY_WORDS, t->private_part->rules.words->name);
    mli_append_key_list(writer, MLI_KEY_MERGES, MLI_GGUF_STRING, (int)mli_append_merges(NULL, t));
    mli_append_merges(writer, t);
#else
    (void)writer, (void)t;
#endif
}

static void mli_append_scores(mli_writer *writer, const ml_tokenizer *t, int n) {
    mli_append_key_list(writer, MLI_KEY_SCORES, MLI_GGUF_F32, n);
    for (int32_t id = 0; id < n; id++) {
        float score = 0;
        ml_tokenizer_piece(t, id, NULL, &score, NULL);
        mli_append_uint(writer, mli_float_bits(score), 4);
    }
}

static void mli_append_gguf_tokenizer(mli_writer *writer, const mli_saver *saver) {
    const ml_tokenizer *t = saver->model->tokenizer;
    const struct ml_tokenizer_private *own = t->private_part;
    int32_t ends[2] = {-1, -1}; /* the first two besides eos; no program reads more */
    for (int i = 0, n = 0; i < t->n_ends && n < 2; i++)
        if (t->ends[i] != t->eos) ends[n++] = t->ends[i];
    const int32_t ids[MLI_TOKENIZER_IDS] = {t->bos,  t->eos, t->unknown, own->has_padding ? t->padding : -1,
                                            ends[0], ends[1]};
    const int flags[MLI_TOKENIZER_FLAGS] = {t->adds_bos, t->adds_eos, own->rules.adds_space_prefix,
                                            own->rules.removes_extra_spaces};
    ml_piece_kind kind = ML_PIECE_NORMAL;
    int n = saver->model->config.vocab_size;
    mli_append_key_string(writer, MLI_KEY_TOKENIZER, own->rules.words ? "gpt2" : "llama");
    mli_append_key_list(writer, MLI_KEY_TOKENS, MLI_GGUF_STRING, n);
    for (int32_t id = 0; id < n; id++) mli_append_piece(writer, saver, id);
    if (own->rules.words)
        mli_append_words(writer, t);
    else
        mli_append_scores(writer, t, n);
    mli_append_key_list(writer, MLI_KEY_KINDS, MLI_GGUF_I32, n);
    for (int32_t id = 0; id < n; id++) {
        ml_tokenizer_piece(t, id, NULL, NULL, &kind);
        mli_append_uint(writer, (uint64_t)(mli_is_padding(saver, id) ? ML_PIECE_UNUSED : kind), 4);
    }
    if (n > t->n_pieces) mli_append_key_u32(writer, MLI_KEY_PIECES, t->n_pieces);
    for (int i = 0; i < MLI_TOKENIZER_IDS; i++) /* one that is not there has no key */
        if (ids[i] >= 0) mli_append_key_u32(writer, mli_id_keys[i], (int)ids[i]);
    for (int i = 0; i < MLI_TOKENIZER_FLAGS; i++) /* the last of the flags may be left out, too */
        if (i < MLI_TOKENIZER_FLAGS - 1 || flags[i])
            mli_append_key(writer, mli_flag_keys[i], MLI_GGUF_BOOL, flags[i] != 0);
}

static void mli_append_model_keys(mli_writer *writer, const mli_saver *saver, const void *object) {
    (void)object;
    mli_append_gguf_config(writer, saver);
    if (saver->model->tokenizer) mli_append_gguf_tokenizer(writer, saver);
    mli_append_kept_keys(writer, saver->model, 0);
}

static mli_part mli_model_part(const ml_model *model) {
    mli_part part = {model, model->n_tensors, mli_saved_weight, mli_append_model_keys};
    return part;
}

/* ---- adapters ---- */

/* Whether the pair's scale is alpha / rank. */
static int mli_is_alpha_of(const ml_lora *lora, int pair, float alpha) {
    return lora->scales[pair] == alpha / (float)lora->tensors[2 * pair].rows;
}

/* The alpha that gives a pair its scale: of the product and its neighbors in F32 one may give it exactly. */
static float mli_pair_alpha(const ml_lora *lora, int pair) {
    uint32_t bits = mli_float_bits(lora->scales[pair] * (float)lora->tensors[2 * pair].rows);
    for (int i = 0; i < 3; i++) {
        float alpha = mli_bits_float(i < 2 ? bits + (uint32_t)i : bits - 1);
        if (mli_is_alpha_of(lora, pair, alpha)) return alpha;
    }
    return mli_bits_float(bits);
}

/* The alpha of the file: one that fits all pairs if there is one, else the adapter's own. */
static float mli_saved_alpha(const ml_lora *lora) {
    float first = 0;
    int n_pairs = 0, n_own = 0, n_first = 0;
    for (int pair = 0; pair < lora->n_tensors / 2; pair++) {
        if (!lora->tensors[2 * pair].data) continue;
        if (!n_pairs++) first = mli_pair_alpha(lora, pair);
        n_own += mli_is_alpha_of(lora, pair, lora->alpha);
        n_first += mli_is_alpha_of(lora, pair, first);
    }
    return n_own < n_pairs && n_first == n_pairs ? first : lora->alpha;
}

/* A GGUF has one alpha, which llama.cpp divides by each pair's rank: what else belongs to the scale goes into B. */
static int mli_saved_half(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    const ml_lora *lora = (const ml_lora *)object;
    int is_hf = saver->is_hf, pair = index / 2;
    float alpha = mli_saved_alpha(lora);
    saved->tensor = lora->tensors[index];
    if (!saved->tensor.data) return 0;
    if (!is_hf && index % 2 && !mli_is_alpha_of(lora, pair, alpha))
        saved->factor = lora->scales[pair] / (alpha / (float)lora->tensors[2 * pair].rows);
    saved->type = saver->desc.type ? saver->desc.type : saved->tensor.type;
    saved->is_matrix = 1;
    saved->head_size = mli_lora_head(&saver->model->config, index, is_hf);
    mli_lora_name(is_hf ? MLI_NAMING_HF : MLI_NAMING_GGUF, is_hf ? MLI_PEFT_PREFIX : "", index, saved->name);
    return 1;
}

/* What llama.cpp wants to find in an adapter. */
static void mli_append_lora_keys(mli_writer *writer, const mli_saver *saver, const void *object) {
    mli_append_key_string(writer, "general.architecture", "llama");
    mli_append_key_string(writer, "general.type", "adapter");
    mli_append_key_string(writer, MLI_KEY_NAME, saver->desc.name);
    mli_append_key_string(writer, "adapter.type", "lora");
    mli_append_key_f32(writer, MLI_KEY_ALPHA, mli_saved_alpha((const ml_lora *)object));
}

static mli_part mli_lora_part(const ml_lora *lora) {
    mli_part part = {lora, lora->n_tensors, mli_saved_half, mli_append_lora_keys};
    return part;
}

/* ---- heads ---- */

static int mli_saved_head(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    const ml_head *head = (const ml_head *)object;
    saved->tensor = index ? head->bias : head->weight;
    saved->type = ML_F32;
    saved->is_matrix = index == 0;
    mli_format(saved->name, sizeof saved->name, "%s%s", saver->is_hf && saver->lora ? MLI_PEFT_PREFIX : "",
               mli_head_names[saver->is_torch ? MLI_HEAD_COURSE
                              : saver->is_hf  ? MLI_HEAD_HF
                                              : MLI_HEAD_GGUF][index]);
    return saved->tensor.data != NULL;
}

static void mli_append_head_keys(mli_writer *writer, const mli_saver *saver, const void *object) {
    const ml_head *head = (const ml_head *)object;
    (void)saver;
    mli_append_key_u32(writer, MLI_KEY_POOLING,
                       head->pooling == ML_POOL_MEAN ? MLI_POOLING_MEAN : MLI_POOLING_LAST);
    if (!head->labels) return;
    mli_append_key_list(writer, MLI_KEY_LABELS, MLI_GGUF_STRING, head->n_classes);
    for (int i = 0; i < head->n_classes; i++)
        mli_append_string(writer, head->labels[i], strlen(head->labels[i]));
}

static mli_part mli_head_part(const ml_head *head) {
    mli_part part = {head, 2, mli_saved_head, mli_append_head_keys};
    return part;
}

/* Marks which of the tokenizer's pieces (in a GGUF) or of the head's labels (in JSON) are empty or equal to an
   earlier one: saver->is_repeated. */
static void mli_find_repeated(mli_saver *saver) {
    const ml_model *model = saver->model; /* NULL with tensors of the caller's */
    const ml_tokenizer *tokenizer = model && saver->desc.format == ML_GGUF ? model->tokenizer : NULL;
    const ml_head *head = saver->is_hf ? saver->desc.head : NULL;
    size_t n = tokenizer ? (size_t)tokenizer->n_pieces : head && head->labels ? (size_t)head->n_classes : 0;
    if (saver->result || saver->lora || !n) return;
    mli_named *texts = (mli_named *)mli_alloc(saver->allocator, n, sizeof *texts);
    saver->is_repeated = (unsigned char *)mli_alloc(saver->allocator, n, 1);
    if (!texts || !saver->is_repeated) {
        saver->result = mli_fail(saver->error, ML_ERROR_MEMORY, "out of memory for a list of %z texts", n);
        n = 0;
    }
    for (size_t i = 0; i < n; i++) {
        mli_named *t = &texts[i];
        t->index = i;
        t->name = head ? head->labels[i] : ml_tokenizer_piece(tokenizer, (int32_t)i, &t->length, NULL, NULL);
        if (head) t->length = strlen(t->name);
    }
    if (n) mli_sort_named(texts, n); /* equal ones in the order of their indices */
    for (size_t i = 0; i < n; i++) {
        const mli_named *t = &texts[i], *before = i ? t - 1 : t;
        int is_equal = i && mli_compare_text(t->name, t->length, before->name, before->length) == 0;
        saver->is_repeated[t->index] = is_equal || !t->length;
    }
    mli_free(saver->allocator, texts);
}

/* ---- the JSON beside a safetensors, in Hugging Face's layout ---- */

/* The head in config.json, or in adapter_config.json under keys of this library, since PEFT has none. label2id is a
   dictionary: only the first of equal labels can be in it, and no long one. */
static void mli_append_json_head(mli_writer *writer, const mli_saver *saver, const ml_head *head) {
    int is_peft = saver->lora != NULL;
    if (head->pooling == ML_POOL_MEAN) mli_append_text(writer, ",\n  \"" MLI_JSON_POOLING "\": \"mean\"");
    if (!is_peft) mli_append_format(writer, ",\n  \"num_labels\": %d", head->n_classes);
    if (!head->labels) return;
    mli_append_format(writer, ",\n  \"%s\": %s", is_peft ? MLI_PEFT_JSON_LABELS : MLI_JSON_LABELS,
                      is_peft ? "[" : "{");
    for (int i = 0; i < head->n_classes; i++) {
        mli_append_text(writer, i ? ", " : "");
        if (!is_peft) mli_append_format(writer, "\"%d\": ", i);
        mli_append_json_string(writer, head->labels[i]);
    }
    mli_append_text(writer, is_peft ? "]" : "},\n  \"label2id\": {");
    if (is_peft) return;
    for (int i = 0, n = 0; i < head->n_classes; i++) {
        if (saver->is_repeated[i] || strlen(head->labels[i]) > MLI_PATH_SIZE / 2) continue;
        mli_append_text(writer, n++ ? ", " : "");
        mli_append_json_string(writer, head->labels[i]);
        mli_append_format(writer, ": %d", i);
    }
    mli_append_text(writer, "}");
}

/* A field of the configuration, and its value or the beginning of it. */
static void mli_append_json_field(mli_writer *writer, mli_field field, const char *value) {
    mli_append_format(writer, ",\n  \"%s\": %s", mli_field_keys[field][1] + sizeof MLI_CONFIG_JSON, value);
}

/* eos, or, where other ids end a text, too, the list of them. */
static void mli_append_json_ends(mli_writer *writer, const ml_tokenizer *tokenizer) {
    int n = tokenizer ? tokenizer->n_ends : 0;
    if (n)
        mli_append_format(writer, ",\n  \"eos_token_id\": %s%d", n > 1 ? "[" : "", (int)tokenizer->ends[0]);
    for (int i = 1; i < n; i++) mli_append_format(writer, ", %d", (int)tokenizer->ends[i]);
    if (n > 1) mli_append_text(writer, "]");
}

static void mli_append_json_numbers(mli_writer *writer, ml_config c) {
    static const mli_field order[] = {MLI_FIELD_DIM,      MLI_FIELD_HIDDEN, MLI_FIELD_LAYERS, MLI_FIELD_HEADS,
                                      MLI_FIELD_KV_HEADS, MLI_FIELD_VOCAB,  MLI_FIELD_SEQ_LEN};
    for (size_t i = 0; i < MLI_COUNT(order); i++) {
        mli_append_json_field(writer, order[i], "");
        mli_append_decimal(writer, *mli_field_int(&c, order[i]));
    }
    mli_append_json_field(writer, MLI_FIELD_NORM_EPS, "");
    mli_append_json_float(writer, c.norm_eps);
    mli_append_json_field(writer, MLI_FIELD_ROPE_THETA, "");
    mli_append_json_float(writer, c.rope_theta);
    mli_append_text(writer, ",\n  \"rope_scaling\": ");
    if (c.rope_scale != 1) {
        mli_append_text(writer, "{\"type\": \"linear\", \"rope_type\": \"linear\", \"factor\": ");
        mli_append_json_float(writer, c.rope_scale);
    }
    mli_append_text(writer, c.rope_scale != 1 ? "}" : "null");
}

static void mli_append_config_json(mli_writer *writer, const mli_saver *saver) {
    const ml_config c = saver->model->config;
    const ml_tokenizer *tokenizer = saver->model->tokenizer;
    const ml_head *head = saver->desc.head;
    ml_type type = mli_saved_type(saver, (int)MLI_W1);
    mli_append_format(writer, "{\n  \"architectures\": [\"Llama%s\"],\n  \"model_type\": \"llama\"",
                      head                           ? "ForSequenceClassification"
                      : mli_has_output(saver->model) ? "ForCausalLM"
                                                     : "Model");
    mli_append_json_numbers(writer, c);
    mli_append_json_field(writer, MLI_FIELD_TIED, c.tied_output ? "true" : "false");
    mli_append_format(writer,
                      ",\n  \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n  \"mlp_bias\": false"
                      ",\n  \"torch_dtype\": \"%s\"",
                      type == ML_F32   ? "float32"
                      : type == ML_F16 ? "float16"
                                       : "bfloat16");
    if (tokenizer && tokenizer->bos >= 0)
        mli_append_format(writer, ",\n  \"bos_token_id\": %d", (int)tokenizer->bos);
    mli_append_json_ends(writer, tokenizer);
    if (c.norm == ML_NORM_LAYER) mli_append_json_field(writer, MLI_FIELD_NORM, "\"layer\"");
    if (c.mask == ML_MASK_FULL) {
        mli_append_json_field(writer, MLI_FIELD_MASK, "\"full\"");
        mli_append_text(writer, ",\n  \"is_causal\": false");
    }
    if (head) mli_append_json_head(writer, saver, head);
    mli_append_text(writer, "\n}\n");
}

/* The names of the matrices that are adapted, without their place in the layer, as PEFT lists them: "q_proj" of
   "model.layers.#.self_attn.q_proj.weight". */
static void mli_append_modules(mli_writer *writer, const ml_lora *lora) {
    int n = 0;
    for (int target = 0; target < MLI_LORA_TARGETS; target++) {
        int i = target * 2;
        while (i < lora->n_tensors && !lora->tensors[i].data) i += MLI_LORA_TARGETS * 2;
        if (i >= lora->n_tensors) continue;
        const char *name = mli_params[mli_lora_slots[target]].name[MLI_NAMING_HF];
        const char *end = strrchr(name, '.'), *begin = end;
        while (begin > name && begin[-1] != '.') begin--;
        mli_append_text(writer, n++ ? ", \"" : "\"");
        mli_append(writer, begin, (size_t)(end - begin));
        mli_append_text(writer, "\"");
    }
}

/* As PEFT's own files have it where it is a whole number. */
static void mli_append_alpha(mli_writer *writer, float alpha) {
    if (alpha == floorf(alpha))
        mli_append_decimal(writer, (int64_t)alpha);
    else
        mli_append_json_float(writer, alpha);
}

/* The pairs whose alpha, or whose rank, is not that of all: {"layers.0.self_attn.q_proj": 16, ...}. PEFT takes the
   keys as ends of names; its older versions want something in front of them. */
static void mli_append_pattern(mli_writer *writer, const ml_lora *lora, int is_alpha) {
    float alpha = mli_saved_alpha(lora);
    int n = 0;
    for (int pair = 0; pair < lora->n_tensors / 2; pair++) {
        const ml_tensor *a = &lora->tensors[2 * pair];
        char name[MLI_LONG_NAME_SIZE];
        if (!a->data || (is_alpha ? mli_is_alpha_of(lora, pair, alpha) : a->rows == (size_t)lora->rank))
            continue;
        mli_lora_name(MLI_NAMING_HF, "", 2 * pair, name);
        name[strlen(name) - strlen(".lora_A.weight")] = 0;
        mli_append_format(writer, "%s\"%s\": ", n++ ? ", " : "", name + strlen("model."));
        if (is_alpha)
            mli_append_alpha(writer, mli_pair_alpha(lora, pair));
        else
            mli_append_decimal(writer, (int64_t)a->rows);
    }
}

/* PEFT's LoraConfig, in its order. */
static void mli_append_adapter_json(mli_writer *writer, const mli_saver *saver) {
    const ml_lora *lora = saver->lora;
    const ml_head *head = saver->desc.head;
    mli_append_text(writer, "{\n  \"alpha_pattern\": {");
    mli_append_pattern(writer, lora, 1);
    mli_append_text(writer,
                    "},\n  \"auto_mapping\": null,\n  \"base_model_name_or_path\": null,\n"
                    "  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
                    "  \"init_lora_weights\": true,\n  \"layers_pattern\": null,\n"
                    "  \"layers_to_transform\": null,\n  \"lora_alpha\": ");
    mli_append_alpha(writer, mli_saved_alpha(lora));
    mli_append_format(writer,
                      ",\n  \"lora_dropout\": 0.0,\n  \"modules_to_save\": %s,\n  \"peft_type\": \"LORA\",\n"
                      "  \"r\": %d,\n  \"rank_pattern\": {",
                      head ? "[\"score\"]" : "null", lora->rank);
    mli_append_pattern(writer, lora, 0);
    mli_append_text(writer, "},\n  \"target_modules\": [");
    mli_append_modules(writer, lora);
    mli_append_format(writer, "],\n  \"task_type\": \"%s\",\n  \"use_dora\": false,\n  \"use_rslora\": false",
                      head ? "SEQ_CLS" : "CAUSAL_LM");
    if (head) mli_append_json_head(writer, saver, head);
    mli_append_text(writer, "\n}\n");
}

/* ---- the values beside the weights in a PyTorch file ---- */

#ifndef ML_NO_PT

/* "KEY": value, or with NULL only the key */
static void mli_append_pickle_key(mli_writer *writer, const char *key, const char *text) {
    mli_append_pickle_text(writer, key);
    if (text) mli_append_pickle_text(writer, text);
}

static void mli_append_pickle_number(mli_writer *writer, const char *key, int64_t value) {
    mli_append_pickle_text(writer, key);
    mli_append_pickle_int(writer, value);
}

static void mli_append_pickle_real(mli_writer *writer, const char *key, double value) {
    mli_append_pickle_text(writer, key);
    mli_append_pickle_float(writer, value);
}

/* The arguments of the course's and of llama2.c's configuration. Both compute hidden_dim from multiple_of where it is
   not given; the two have different names for norm_eps. */
static void mli_append_model_args(mli_writer *writer, const ml_config *c) {
    enum { MULTIPLE = 32 };
    int64_t hidden = (2 * (4 * (int64_t)c->dim) / 3 + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    mli_append_pickle_key(writer, "model_args", NULL);
    mli_append_text(writer, "}(");
    mli_append_pickle_number(writer, "dim", c->dim);
    mli_append_pickle_number(writer, "n_layers", c->n_layers);
    mli_append_pickle_number(writer, "n_heads", c->n_heads);
    mli_append_pickle_number(writer, "n_kv_heads", c->n_kv_heads);
    mli_append_pickle_number(writer, "vocab_size", c->vocab_size);
    mli_append_pickle_number(writer, "multiple_of", MULTIPLE);
    if (hidden != c->hidden_dim) mli_append_pickle_number(writer, "hidden_dim", c->hidden_dim);
    mli_append_pickle_number(writer, "max_seq_len", c->max_seq_len);
    mli_append_pickle_real(writer, "dropout", 0);
    if (c->norm_eps != 1e-5f) {
        mli_append_pickle_real(writer, "norm_eps", c->norm_eps);
        mli_append_pickle_real(writer, "layer_norm_eps", c->norm_eps);
    }
    mli_append_text(writer, "u");
}

/* What the course's classifier is made from: its own options and defaults. */
static void mli_append_model_config(mli_writer *writer, const ml_head *head) {
    mli_append_pickle_key(writer, "model_config", NULL);
    mli_append_text(writer, "ctypes\nSimpleNamespace\n)R}(");
    mli_append_pickle_real(writer, "hidden_dropout_prob", 0.3);
    mli_append_pickle_key(writer, "pretrained_model_path", "stories42M.pt");
    mli_append_pickle_number(writer, "num_labels", head->n_classes);
    mli_append_pickle_key(writer, "data_dir", ".");
    mli_append_pickle_key(writer, "option", "finetune");
    mli_append_text(writer, "ub");
}

/* What the course has no place for: {"minillama": {"mask": "full", "labels": [...]}}. */
static void mli_append_own_values(mli_writer *writer, const mli_saver *saver) {
    const ml_head *head = saver->desc.head;
    int has_labels = head && head->labels, is_full = saver->model->config.mask == ML_MASK_FULL;
    if (!has_labels && !is_full) return;
    mli_append_pickle_key(writer, "minillama", NULL);
    mli_append_text(writer, "}(");
    if (is_full) mli_append_pickle_key(writer, "mask", "full");
    if (has_labels) {
        mli_append_pickle_key(writer, "labels", NULL);
        mli_append_text(writer, "](");
        for (int i = 0; i < head->n_classes; i++) mli_append_pickle_text(writer, head->labels[i]);
        mli_append_text(writer, "e");
    }
    mli_append_text(writer, "u");
}

static void mli_append_torch_values(mli_writer *writer, const mli_saver *saver) {
    mli_append_model_args(writer, &saver->model->config);
    if (saver->desc.head) mli_append_model_config(writer, saver->desc.head);
    mli_append_own_values(writer, saver);
}
#endif /* ML_NO_PT */

/* ---- files ---- */

/* The name of the second file, beside the first; NULL: there is none. */
static const char *mli_second_name(const mli_saver *saver) {
    if (saver->archive) return saver->archive->text_name;
    if (!saver->is_hf) return NULL;
    return saver->lora ? MLI_PEFT_JSON : MLI_CONFIG_JSON;
}

static void mli_append_second(mli_writer *writer, const mli_saver *saver) {
    if (saver->archive)
        mli_append_text(writer, saver->archive->text);
    else
        (saver->lora ? mli_append_adapter_json : mli_append_config_json)(writer, saver);
}

/* A GGUF is one file, a safetensors two: all are complete on the disk before the first takes its place. */
static ml_result mli_save_files(mli_saver *saver, const char *path) {
    const char *second = mli_second_name(saver);
    char *second_path = second ? mli_path_beside(saver->allocator, path, second) : NULL;
    const char *const paths[2] = {path, second_path};
    int n = second ? 2 : 1;
    mli_target targets[2];
    memset(targets, 0, sizeof targets);
    if (second && !second_path)
        saver->result = mli_fail(saver->error, ML_ERROR_MEMORY, "out of memory for a file's name");
    else if (second && strcmp(second_path, path) == 0)
        saver->result =
            mli_fail(saver->error, ML_ERROR_ARGUMENT, "%s is the name of the configuration", path);
    mli_find_repeated(saver);
    for (int i = 0; i < n && !saver->result; i++) mli_target_open(saver, &targets[i], paths[i]);
    if (!saver->result && saver->desc.format == ML_GGUF) mli_append_gguf(&targets[0].writer, saver);
    if (!saver->result && saver->is_torch) mli_append_torch(&targets[0].writer, saver);
    if (!saver->result && saver->is_hf) mli_append_safetensors(&targets[0].writer, saver);
    if (!saver->result && second) mli_append_second(&targets[1].writer, saver);
    for (int i = 0; i < n && !saver->result; i++) mli_target_complete(saver, &targets[i]);
    for (int i = 0; i < n && !saver->result; i++) mli_target_publish(saver, &targets[i]);
    for (int i = 0; i < n; i++) mli_target_close(saver, &targets[i]);
    mli_free(saver->allocator, saver->is_repeated);
    mli_free(saver->allocator, second_path);
    return saver->result ? saver->result : mli_ok(saver->error);
}

/* What the course's code would compute otherwise. */
static ml_result mli_check_course(const mli_saver *saver) {
    const ml_config *c = &saver->model->config;
    const ml_head *head = saver->desc.head;
    const char *what = !c->tied_output                         ? "an output that is not tied to the embedding"
                       : c->rope_theta != 10000                ? "a rope_theta that is not 10000"
                       : c->rope_scale != 1                    ? "a rope_scale"
                       : head && head->pooling != ML_POOL_LAST ? "a head of means"
                       : head && !head->bias.data              ? "a head without a bias"
                                                               : NULL;
    if (!saver->is_torch || !what) return ML_OK;
    return mli_fail(saver->error, ML_ERROR_UNSUPPORTED,
                    "a PyTorch file is for the course's code, which does not know %s", what);
}

static ml_result mli_check_saving(const mli_saver *saver) {
    const ml_save_desc *desc = &saver->desc;
    const char *type = ml_type_name(desc->type);
    if (desc->format != ML_GGUF && !saver->is_hf && !saver->is_torch)
        return mli_fail(saver->error, ML_ERROR_ARGUMENT, "ml_model_save: format is not one of its names");
    if (desc->type && (desc->type < ML_F32 || desc->type > (saver->lora ? ML_BF16 : ML_Q4_0)))
        return mli_fail(saver->error, ML_ERROR_ARGUMENT, "%s cannot be saved as %s%s",
                        saver->lora ? "adapters" : "weights", type,
                        mli_type(desc->type)->block > 1 && !mli_is_quantized(desc->type)
                            ? ": that type is only read"
                            : "");
    if (desc->format != ML_GGUF && desc->type > ML_BF16)
        return mli_fail(saver->error, ML_ERROR_UNSUPPORTED, "%s no type %s",
                        saver->is_hf ? "safetensors has" : "PyTorch files have", type);
    if (desc->head && desc->head->pooling == ML_POOL_MAX)
        return mli_fail(saver->error, ML_ERROR_UNSUPPORTED,
                        "a head that pools by ML_POOL_MAX cannot be saved: no format has a name for it");
    if (desc->head && desc->head->weight.cols != (size_t)saver->model->config.dim)
        return mli_fail(saver->error, ML_ERROR_MISMATCH, "the head is for a dim of %z, the model's is %d",
                        desc->head->weight.cols, saver->model->config.dim);
    ml_result result = mli_check_course(saver);
    return result ? result : mli_check_byte_order(saver->error);
}

/* The same as mli_check_numbers, of a tensor that is computed. */
static ml_result mli_check_computed(const mli_saver *saver, const mli_saved *saved) {
    const ml_tensor *t = &saved->tensor;
    float piece[MLI_PIECE];
    for (size_t row = 0; row < t->rows; row++)
        for (size_t n, col = 0; col < t->cols; col += n) {
            n = mli_compute_saved(saved, row, col, piece);
            size_t index = mli_find_beyond(piece, n, mli_type(saved->type)->limit);
            if (index < n)
                return mli_refuse_number(saver->error, saved->name, row * t->cols + col + index, t->cols,
                                         piece[index], saved->type);
        }
    return ML_OK;
}

/* Every number must be finite and fit the type that it gets. */
static ml_result mli_check_numbers(const mli_saver *saver) {
    float buffer[256]; /* whole blocks */
    mli_saved saved;
    for (int at = 0; mli_next_saved(saver, &at, &saved);) {
        const ml_tensor *t = &saved.tensor;
        size_t n = t->rows * t->cols, index = mli_find_not_finite(t->type, t->data, n);
        uint32_t limit = mli_type(saved.type)->limit;
        const uint8_t *data = (const uint8_t *)t->data;
        if (index < n)
            return mli_refuse_number(saver->error, saved.name, index, t->cols,
                                     mli_bits_float(MLI_INFINITY_BITS), saved.type);
        if (saved.factor != 0) {
            ml_result result = mli_check_computed(saver, &saved);
            if (result) return result;
            continue;
        }
        if (saved.type == t->type || saved.type == ML_F32) continue;
        for (size_t part, done = 0; done < n; done += part) {
            part = MLI_MIN(n - done, MLI_COUNT(buffer));
            mli_dequantize_row(t->type, data + ml_type_row_bytes(t->type, done), buffer, part);
            index = mli_find_beyond(buffer, part, limit);
            if (index < part)
                return mli_refuse_number(saver->error, saved.name, done + index, t->cols, buffer[index],
                                         saved.type);
        }
    }
    return ML_OK;
}

/* lora is NULL for the model itself. */
static ml_result mli_save(const ml_model *model, const ml_lora *lora, const char *path,
                          const ml_save_desc *desc, ml_error *error) {
    mli_saver saver = mli_saver_of(model, desc, error);
    saver.lora = lora;
    mli_add_part(&saver, lora && !saver.is_torch ? mli_lora_part(lora) : mli_model_part(model));
    if (saver.desc.head) mli_add_part(&saver, mli_head_part(saver.desc.head));
    ml_result result = mli_check_saving(&saver);
    if (!result) result = mli_check_numbers(&saver);
    return result ? result : mli_save_files(&saver, path);
}

ML_DEF ml_result ml_model_save(const ml_model *model, const char *path, const ml_save_desc *desc,
                               ml_error *error) {
    if (!model || !path) return mli_fail(error, ML_ERROR_ARGUMENT, "ml_model_save: model or path is NULL");
    return mli_save(model, NULL, path, desc, error);
}

ML_DEF ml_result ml_lora_save(const ml_lora *lora, const ml_model *model, const char *path,
                              const ml_save_desc *desc, ml_error *error) {
    if (!model || !lora || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_lora_save: model, lora or path is NULL");
    ml_result result = mli_lora_check(model, lora, error);
    return result ? result : mli_save(model, lora, path, desc, error);
}

/* ---- tensors of the caller's ---- */

static int mli_saved_named(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    const ml_named_tensor *named = &((const ml_archive_save_desc *)object)->tensors[index];
    memcpy(saved->name, named->name, strlen(named->name)); /* its zero is there */
    saved->tensor = named->tensor;
    saved->type = saver->desc.type ? saver->desc.type : named->tensor.type;
    saved->is_matrix = !named->is_vector;
    return 1;
}

static void mli_append_values(mli_writer *writer, const mli_saver *saver, const void *object) {
    const ml_archive_save_desc *desc = (const ml_archive_save_desc *)object;
    (void)saver;
    for (int i = 0; i < desc->n_values; i++) {
        const ml_value *value = &desc->values[i];
        uint64_t bits;
        memcpy(&bits, &value->f, sizeof bits);
        switch (value->kind) {
        case ML_VALUE_INT: mli_append_key_i64(writer, value->name, value->i); break;
        case ML_VALUE_BOOL: mli_append_key(writer, value->name, MLI_GGUF_BOOL, value->i != 0); break;
        case ML_VALUE_FLOAT: mli_append_key(writer, value->name, MLI_GGUF_F64, bits); break;
        default:
            mli_append_key(writer, value->name, MLI_GGUF_STRING, 0);
            mli_append_string(writer, value->s, value->length);
        }
    }
}

/* Whether n bytes are UTF-8, as JSON and GGUF want it: no overlong form, no surrogate, nothing above 10FFFF. */
static int mli_is_utf8(const char *text, size_t n) {
    const unsigned char *p = (const unsigned char *)text, *end = p + n;
    for (int32_t size; p < end; p += size) {
        char again[4];
        uint32_t c = p[0];
        size = mli_character_size(p, (size_t)(end - p));
        if (c < 0x80) continue;
        if (size == 1 || c > 0xf4) return 0;
        c &= 0x7fu >> size;
        for (int32_t i = 1; i < size; i++) c = c << 6 | (p[i] & 63);
        if ((c >= 0xd800 && c < 0xe000) || c > 0x10ffff || mli_put_utf8(again, c) != (size_t)size) return 0;
    }
    return 1;
}

/* Whether text can be a name in any format, without escapes. */
static ml_result mli_check_name(const char *what, int index, const char *name, ml_error *error) {
    size_t n = name ? strlen(name) : 0;
    int is_plain = n > 0 && n < MLI_LONG_NAME_SIZE && strcmp(name, "__metadata__") != 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 32 || name[i] == 127 || name[i] == '"' || name[i] == '\\') is_plain = 0;
    if (n && !mli_is_utf8(name, n))
        return mli_fail(error, ML_ERROR_ARGUMENT, "%s %d: its name is not UTF-8", what, index);
    return is_plain ? ML_OK
                    : mli_fail(error, ML_ERROR_ARGUMENT, "%s %d: \"%s\" cannot be a name in a file", what,
                               index, name ? name : "");
}

static ml_result mli_check_named(const ml_archive_save_desc *desc, int index, ml_error *error) {
    const ml_named_tensor *named = &desc->tensors[index];
    const ml_tensor *t = &named->tensor;
    size_t bytes = ml_type_row_bytes(t->type, t->cols);
    ml_result result = mli_check_name("tensor", index, named->name, error);
    if (result) return result;
    for (int i = 0; i < index; i++)
        if (strcmp(desc->tensors[i].name, named->name) == 0)
            return mli_fail(error, ML_ERROR_ARGUMENT, "tensors %d and %d are both named %s", i, index,
                            named->name);
    if (!t->data || !t->rows || !bytes || !mli_mul_size(t->rows, bytes, &bytes) ||
        (named->is_vector && t->rows > 1))
        return mli_fail(error, ML_ERROR_ARGUMENT, "tensor %s has no data, or its shape (%z, %z) is wrong",
                        named->name, t->rows, t->cols);
    if (t->type < ML_F32 || t->type > (desc->format == ML_GGUF ? ML_Q4_0 : ML_BF16))
        return mli_fail(error, ML_ERROR_UNSUPPORTED, "tensor %s: %s is not a type of %s", named->name,
                        ml_type_name(t->type), desc->format == ML_GGUF ? "weights" : "safetensors");
    return ML_OK;
}

static ml_result mli_check_values(const ml_archive_save_desc *desc, ml_error *error) {
    for (int i = 0; i < desc->n_values; i++) {
        const ml_value *value = &desc->values[i];
        ml_result result = mli_check_name("value", i, value->name, error);
        if (result) return result;
        for (int k = 0; k < i; k++)
            if (strcmp(desc->values[k].name, value->name) == 0)
                return mli_fail(error, ML_ERROR_ARGUMENT, "values %d and %d are both named %s", k, i,
                                value->name);
        if (desc->format == ML_SAFETENSORS && strcmp(value->name, "format") == 0)
            return mli_fail(error, ML_ERROR_ARGUMENT, "value %d: safetensors has its own \"format\"", i);
        if (value->kind < ML_VALUE_INT || value->kind > ML_VALUE_STRING)
            return mli_fail(error, ML_ERROR_ARGUMENT, "value %s is not an int, float, bool or string",
                            value->name);
        if (value->kind == ML_VALUE_STRING && !value->s && value->length)
            return mli_fail(error, ML_ERROR_ARGUMENT, "value %s has no text", value->name);
        if (value->kind == ML_VALUE_STRING && !mli_is_utf8(value->s, value->length))
            return mli_fail(error, ML_ERROR_ARGUMENT, "value %s: its text is not UTF-8", value->name);
        if (value->kind == ML_VALUE_FLOAT && !mli_is_finite(value->f))
            return mli_fail(error, ML_ERROR_NUMBER, "value %s is not finite", value->name);
    }
    return ML_OK;
}

static ml_result mli_check_archive(const ml_archive_save_desc *desc, ml_error *error) {
    if (desc->format != ML_GGUF && desc->format != ML_SAFETENSORS)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_save: the format is not GGUF or safetensors");
    if (desc->type && (desc->type < ML_F32 || desc->type > ML_BF16))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_save: type %s is not F32, F16 or BF16",
                        ml_type_name(desc->type));
    if (desc->n_tensors < 0 || desc->n_values < 0 || (desc->n_tensors && !desc->tensors) ||
        (desc->n_values && !desc->values))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_save: n_tensors %d, n_values %d without a list",
                        desc->n_tensors, desc->n_values);
    if (!desc->text_name != !desc->text || (desc->text_name && !*desc->text_name))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_save: text_name and text go together");
    if (desc->text_name && (strchr(desc->text_name, '/') || strchr(desc->text_name, '\\')))
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_archive_save: text_name %s is not a name in a folder",
                        desc->text_name);
    for (int i = 0; i < desc->n_tensors; i++) {
        ml_result result = mli_check_named(desc, i, error);
        if (result) return result;
    }
    return mli_check_values(desc, error);
}

ML_DEF ml_result ml_archive_save(const char *path, const ml_archive_save_desc *desc, ml_error *error) {
    mli_saver saver;
    ml_allocator allocator;
    if (!path || !desc) return mli_null(error, "ml_archive_save");
    ml_result result = mli_resolve_allocator(&desc->allocator, &allocator, error);
    if (!result) result = mli_check_byte_order(error);
    if (!result) result = mli_check_archive(desc, error);
    if (result) return result;
    memset(&saver, 0, sizeof saver);
    saver.desc.format = desc->format;
    saver.desc.type = desc->type;
    saver.is_hf = desc->format == ML_SAFETENSORS;
    saver.allocator = &allocator;
    saver.archive = desc;
    saver.error = error;
    mli_part part = {desc, desc->n_tensors, mli_saved_named, mli_append_values};
    mli_add_part(&saver, part);
    result = mli_check_numbers(&saver);
    return result ? result : mli_save_files(&saver, path);
}

#endif /* MLI_SAVING */

/* ==== >>checkpoints ====
   A checkpoint is a GGUF file with every trained tensor, AdamW's moments of it ("adamw.m." and "adamw.v." before its
   name), and the state of the training: the step, the dropout counter and the caller's progress. If the model itself
   is trained, the file is also a model like any other; a trained head can be loaded from it, too. */

#if defined(MLI_SAVING) && !defined(ML_NO_TRAINING)

/* Each trained tensor has three parts: its numbers and the two moments. Part `index` of all, under its name. */
enum { MLI_TRAINED_PARTS = 3 };
static const char *const mli_trained_prefixes[MLI_TRAINED_PARTS] = {"", "adamw.m.", "adamw.v."};

static ml_tensor mli_trained_part(const mli_trainer *t, int index, char name[ML_NAME_SIZE]) {
    const mli_trained *trained = &t->optimizer.trained[index / MLI_TRAINED_PARTS];
    int part = index % MLI_TRAINED_PARTS;
    char own[MLI_LONG_NAME_SIZE];
    ml_tensor tensor = *trained->t;
    if (part) tensor.data = part == 1 ? trained->m : trained->v;
    if (trained->group >= MLI_GROUP_HEAD)
        mli_format(own, sizeof own, "cls.output.%s", trained->group == MLI_GROUP_HEAD ? "weight" : "bias");
    else if (t->desc.lora)
        mli_lora_name(MLI_NAMING_GGUF, "", (int)(trained->t - t->lora_tensors), own);
    else
        ml_model_tensor_name(t->model, (int)(trained->t - t->tensors), own);
    mli_format(name, ML_NAME_SIZE, "%s%s", mli_trained_prefixes[part], own);
    return tensor;
}

/* Tensor `index` of a trainer's part of the file: model and head are separate parts and list their own numbers. */
static int mli_checkpointed_at(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    const mli_trainer *t = (const mli_trainer *)object;
    int group = t->optimizer.trained[index / MLI_TRAINED_PARTS].group;
    (void)saver;
    if (index % MLI_TRAINED_PARTS == 0 && (group >= MLI_GROUP_HEAD || !t->desc.lora)) return 0;
    saved->tensor = mli_trained_part(t, index, saved->name);
    saved->type = ML_F32;
    saved->is_matrix = 1;
    return 1;
}

/* The state as integers: steps, passes (the dropout counter), the caller's progress. */
enum { MLI_TRAINING_STATE = 2 + 8 };

static void mli_training_key(int index, char key[ML_NAME_SIZE]) {
    mli_format(key, ML_NAME_SIZE, "minillama.train.%s", index ? "passes" : "step");
    if (index > 1) mli_format(key, ML_NAME_SIZE, "minillama.train.progress.%d", index - 2);
}

static void mli_append_training_keys(mli_writer *writer, const mli_saver *saver, const void *object) {
    const mli_trainer *t = (const mli_trainer *)object;
    (void)saver;
    int64_t state[MLI_TRAINING_STATE] = {t->shown.step, (int64_t)t->passes};
    memcpy(state + 2, t->shown.progress, sizeof t->shown.progress);
    for (int i = 0; i < MLI_TRAINING_STATE; i++) {
        char key[ML_NAME_SIZE];
        mli_training_key(i, key);
        mli_append_key_i64(writer, key, state[i]);
    }
}

ML_DEF ml_result ml_trainer_save(const ml_trainer *trainer, const char *path, ml_error *error) {
    if (!trainer || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_save: trainer or path is NULL");
    const mli_trainer *t = trainer->private_part;
    int n_parts = MLI_TRAINED_PARTS * t->optimizer.n_trained;
    mli_part training = {t, n_parts, mli_checkpointed_at, mli_append_training_keys};
    ml_save_desc desc;
    memset(&desc, 0, sizeof desc);
    mli_saver saver = mli_saver_of(t->model, &desc, error);
    saver.trained = trainer->model;
    mli_add_part(&saver, mli_model_part(t->model));
    if (t->desc.head) mli_add_part(&saver, mli_head_part(t->desc.head));
    mli_add_part(&saver, training);
    ml_result result = mli_check_byte_order(error);
    return result ? result : mli_save_files(&saver, path);
}

/* Reads a tensor's numbers. Without `write` it is only checked that they are there. */
static ml_result mli_restore_tensor(const ml_archive *archive, const char *name, const ml_tensor *tensor,
                                    int write, ml_error *error) {
    size_t n = mli_numbers(tensor);
    const ml_array *array = ml_archive_find_array(archive, name);
    if (!array) return mli_fail(error, ML_ERROR_MISMATCH, "the checkpoint has no tensor %s", name);
    if (ml_array_count(array) != n)
        return mli_fail(error, ML_ERROR_MISMATCH, "the checkpoint's %s has %z numbers, not %z", name,
                        ml_array_count(array), n);
    ml_result result = write ? ml_array_read_floats(array, (float *)tensor->data, n) : ML_OK;
    return result ? mli_fail(error, result, "the checkpoint's %s cannot be read", name) : ML_OK;
}

/* Reads all parts of all trained tensors. Without `write` it is only checked that they are there. */
static ml_result mli_restore_trained(const mli_trainer *t, const ml_archive *archive, int write,
                                     ml_error *error) {
    for (int i = 0; i < MLI_TRAINED_PARTS * t->optimizer.n_trained; i++) {
        char name[ML_NAME_SIZE];
        ml_tensor tensor = mli_trained_part(t, i, name);
        ml_result result = mli_restore_tensor(archive, name, &tensor, write, error);
        if (result) return result;
    }
    return ML_OK;
}

static ml_result mli_read_training_state(const ml_archive *archive, int64_t state[MLI_TRAINING_STATE],
                                         ml_error *error) {
    for (int i = 0; i < MLI_TRAINING_STATE; i++) {
        char key[ML_NAME_SIZE];
        mli_training_key(i, key);
        const ml_value *value = ml_archive_find_value(archive, key);
        if (!value || value->kind != ML_VALUE_INT)
            return mli_fail(error, ML_ERROR_MISMATCH, "not a checkpoint: there is no %s", key);
        state[i] = value->i;
    }
    if (state[0] >= 0 && state[0] <= INT64_MAX / 2) return ML_OK; /* from where counting cannot overflow */
    return mli_fail(error, ML_ERROR_FORMAT, "the checkpoint's step %l is out of range", state[0]);
}

ML_DEF ml_result ml_trainer_restore(ml_trainer *trainer, const char *path, ml_error *error) {
    if (!trainer || !path)
        return mli_fail(error, ML_ERROR_ARGUMENT, "ml_trainer_restore: trainer or path is NULL");
    mli_trainer *t = trainer->private_part;
    ml_archive *archive;
    int64_t state[MLI_TRAINING_STATE];
    ml_result result = mli_open(path, NULL, 0, &t->model->private_part->allocator, &archive, error);
    if (result) return mli_name_file(error, result, path);
    result = mli_read_training_state(archive, state, error);
    if (!result) result = mli_restore_trained(t, archive, 0, error); /* before anything is changed */
    if (!result) result = mli_restore_trained(t, archive, 1, error);
    ml_archive_free(archive);
    if (result) return mli_name_file(error, result, path);
    trainer->step = state[0];
    t->passes = (uint64_t)state[1];
    memcpy(trainer->progress, state + 2, sizeof trainer->progress);
    ml_trainer_zero_gradients(trainer);
    return mli_ok(error);
}

/* ---- an optimizer's state: its tensors are named by their position among those that are trained ---- */

static ml_tensor mli_optimizer_part(const mli_optimizer *o, int index, char name[ML_NAME_SIZE]) {
    const mli_trained *trained = &o->trained[index / MLI_TRAINED_PARTS];
    int part = index % MLI_TRAINED_PARTS;
    ml_tensor tensor = *trained->t;
    if (part) tensor.data = part == 1 ? trained->m : trained->v;
    mli_format(name, ML_NAME_SIZE, "%sparameter.%d", mli_trained_prefixes[part], index / MLI_TRAINED_PARTS);
    return tensor;
}

static int mli_saved_optimized(const mli_saver *saver, const void *object, int index, mli_saved *saved) {
    (void)saver;
    saved->tensor = mli_optimizer_part((const mli_optimizer *)object, index, saved->name);
    saved->type = ML_F32;
    saved->is_matrix = 1;
    return 1;
}

static void mli_append_optimizer_keys(mli_writer *writer, const mli_saver *saver, const void *object) {
    char key[ML_NAME_SIZE];
    (void)saver;
    mli_training_key(0, key);
    mli_append_key_i64(writer, key, ((const mli_optimizer *)object)->shown.step);
}

ML_DEF ml_result ml_optimizer_save(const ml_optimizer *optimizer, const char *path, ml_error *error) {
    mli_saver saver;
    ml_allocator allocator;
    if (!optimizer || !path) return mli_null(error, "ml_optimizer_save");
    const mli_optimizer *o = optimizer->private_part;
    ml_result result = mli_resolve_allocator(&o->allocator, &allocator, error);
    if (!result) result = mli_check_byte_order(error);
    if (result) return result;
    memset(&saver, 0, sizeof saver);
    saver.allocator = &allocator;
    saver.error = error;
    mli_part part = {o, MLI_TRAINED_PARTS * o->n_trained, mli_saved_optimized, mli_append_optimizer_keys};
    mli_add_part(&saver, part);
    return mli_save_files(&saver, path);
}

/* Reads or checks the numbers of all parts; *step is that of the file. */
static ml_result mli_restore_optimizer(const mli_optimizer *o, const ml_archive *archive, int write,
                                       int64_t *step, ml_error *error) {
    char name[ML_NAME_SIZE];
    mli_training_key(0, name);
    const ml_value *value = ml_archive_find_value(archive, name);
    ml_result result = ML_OK;
    if (!value || value->kind != ML_VALUE_INT)
        return mli_fail(error, ML_ERROR_MISMATCH, "not a checkpoint: there is no %s", name);
    *step = value->i;
    if (*step < 0 || *step > INT64_MAX / 2)
        return mli_fail(error, ML_ERROR_FORMAT, "the checkpoint's step %l is out of range", *step);
    for (int i = 0; i < MLI_TRAINED_PARTS * o->n_trained && !result; i++) {
        ml_tensor tensor = mli_optimizer_part(o, i, name);
        result = mli_restore_tensor(archive, name, &tensor, write, error);
    }
    return result;
}

ML_DEF ml_result ml_optimizer_restore(ml_optimizer *optimizer, const char *path, ml_error *error) {
    ml_allocator allocator;
    ml_archive *archive;
    int64_t step;
    if (!optimizer || !path) return mli_null(error, "ml_optimizer_restore");
    const mli_optimizer *o = optimizer->private_part;
    ml_result result = mli_resolve_allocator(&o->allocator, &allocator, error);
    if (!result) result = mli_open(path, NULL, 0, &allocator, &archive, error);
    if (result) return mli_name_file(error, result, path);
    size_t n_arrays = (size_t)MLI_TRAINED_PARTS * (size_t)o->n_trained;
    if (archive->n_arrays != n_arrays)
        result = mli_fail(error, ML_ERROR_MISMATCH, "the checkpoint has %z tensors, not %z",
                          archive->n_arrays, n_arrays);
    if (!result) result = mli_restore_optimizer(o, archive, 0, &step, error); /* before anything is changed */
    if (!result) result = mli_restore_optimizer(o, archive, 1, &step, error);
    ml_archive_free(archive);
    if (result) return mli_name_file(error, result, path);
    optimizer->step = step;
    ml_optimizer_zero_gradients(optimizer);
    return mli_ok(error);
}

#endif

/* ==== >>vectors ====
   SIMD (single instruction, multiple data): a register holds several floats, its lanes, and one instruction does the
   same to all of them at once. mli_v is such a register, MLI_LANES the number of its floats: 16 with AVX-512, 8 with
   AVX2, 4 with NEON and in plain C. Every F32 kernel is written once, in terms of the operations below, which each
   instruction set defines in this order. i is any lane:

       mli_v_zero()  mli_v_set(s)         0; s
       mli_v_load(p)  mli_v_store(p, a)   lane i is p[i]; p needs no alignment
       mli_v_load_n(p, n)                 p[i] for i < n, else 0; n may exceed MLI_LANES; nothing beyond is read
       mli_v_store_n(p, a, n)             lanes i < n only; nothing beyond is written
       mli_v_load_f16  mli_v_load_bf16    p[i], widened from 16 bits
       mli_v_add  sub  mul  div  sqrt     a + b ...
       mli_v_max  mli_v_min               the larger, the smaller of a and b; b where either is NaN (NEON: NaN)
       mli_v_fma(a, b, c)                 a * b + c, rounded once (in plain C twice)
       mli_v_shift_left_23                the bits of a float, shifted: its lowest 9 become sign and exponent
       mli_v_zip_low  mli_v_zip_high      of each group of four lanes: a0 b0 a1 b1; a2 b2 a3 b3
       mli_v_join_low  mli_v_join_high    a0 a1 b0 b1; a2 a3 b2 b3
       mli_v_transpose_groups             see mli_v_transpose
       mli_v_fold                         see mli_v_sum (where there is more than one group)

   One loop serves a row of any length n, its last, partial vector included:

       for (size_t i = 0; i < n; i += MLI_LANES)
           mli_v_store_n(y + i, mli_v_mul(a, mli_v_load_n(x + i, n - i)), n - i); */

/* Before a loop whose length is a constant: unrolls it, so that an array of vectors in it becomes registers. */
#if defined(__clang__)
#define MLI_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__) && __GNUC__ >= 8
#define MLI_UNROLL _Pragma("GCC unroll 32")
#else
#define MLI_UNROLL
#endif

#if defined(MLI_AVX512)

typedef __m512 mli_v;
enum { MLI_LANES = 16 };

/* Some operations are written in their maskz form with a full mask. It is the same instruction, but the headers of
   gcc 12 warn about the short form. */
MLI_INLINE __mmask16 mli_v_first(size_t n) { return (__mmask16)((1u << n) - 1u); } /* first n < 16 lanes */
MLI_INLINE mli_v mli_v_zero(void) { return _mm512_setzero_ps(); }
MLI_INLINE mli_v mli_v_set(float s) { return _mm512_set1_ps(s); }
MLI_INLINE mli_v mli_v_load(const float *p) { return _mm512_loadu_ps(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { _mm512_storeu_ps(p, a); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) {
    return n >= MLI_LANES ? mli_v_load(p) : _mm512_maskz_loadu_ps(mli_v_first(n), p);
}
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) {
    if (n >= MLI_LANES)
        mli_v_store(p, a);
    else
        _mm512_mask_storeu_ps(p, mli_v_first(n), a);
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) {
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)(const void *)p));
}
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)p);
    return _mm512_castsi512_ps(
        _mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, half), 16));
}
MLI_INLINE mli_v mli_v_add(mli_v a, mli_v b) { return _mm512_add_ps(a, b); }
MLI_INLINE mli_v mli_v_sub(mli_v a, mli_v b) { return _mm512_sub_ps(a, b); }
MLI_INLINE mli_v mli_v_mul(mli_v a, mli_v b) { return _mm512_mul_ps(a, b); }
MLI_INLINE mli_v mli_v_div(mli_v a, mli_v b) { return _mm512_div_ps(a, b); }
MLI_INLINE mli_v mli_v_sqrt(mli_v a) { return _mm512_maskz_sqrt_ps(0xffff, a); }
MLI_INLINE mli_v mli_v_max(mli_v a, mli_v b) { return _mm512_maskz_max_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_min(mli_v a, mli_v b) { return _mm512_maskz_min_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_fma(mli_v a, mli_v b, mli_v c) { return _mm512_fmadd_ps(a, b, c); }
MLI_INLINE mli_v mli_v_shift_left_23(mli_v a) {
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(a), 23));
}
MLI_INLINE mli_v mli_v_zip_low(mli_v a, mli_v b) { return _mm512_maskz_unpacklo_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_zip_high(mli_v a, mli_v b) { return _mm512_maskz_unpackhi_ps(0xffff, a, b); }
MLI_INLINE mli_v mli_v_join_low(mli_v a, mli_v b) { return _mm512_maskz_shuffle_ps(0xffff, a, b, 0x44); }
MLI_INLINE mli_v mli_v_join_high(mli_v a, mli_v b) { return _mm512_maskz_shuffle_ps(0xffff, a, b, 0xee); }
MLI_INLINE mli_v mli_v_even_groups(mli_v a, mli_v b) { /* groups 0 and 2 of a, then of b */
    return _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0x88);
}
MLI_INLINE mli_v mli_v_odd_groups(mli_v a, mli_v b) { return _mm512_maskz_shuffle_f32x4(0xffff, a, b, 0xdd); }
MLI_INLINE void mli_v_transpose_groups(mli_v row[MLI_LANES]) {
    MLI_UNROLL
    for (int j = 0; j < 4; j++) { /* rows j, j + 4, j + 8, j + 12 are a 4 x 4 matrix of groups */
        mli_v a = mli_v_even_groups(row[j], row[j + 4]), b = mli_v_even_groups(row[j + 8], row[j + 12]);
        mli_v c = mli_v_odd_groups(row[j], row[j + 4]), d = mli_v_odd_groups(row[j + 8], row[j + 12]);
        row[j] = mli_v_even_groups(a, b);
        row[j + 4] = mli_v_even_groups(c, d);
        row[j + 8] = mli_v_odd_groups(a, b);
        row[j + 12] = mli_v_odd_groups(c, d);
    }
}
MLI_INLINE __m128 mli_v_fold(mli_v a) { /* halves are added until one group is left */
    __m256 b =
        _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a, 0), _mm512_maskz_extractf32x8_ps(0xff, a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

#elif defined(MLI_AVX2)

typedef __m256 mli_v;
enum { MLI_LANES = 8 };

MLI_INLINE __m256i mli_v_first(size_t n) { /* all bits set in the first n lanes */
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
MLI_INLINE mli_v mli_v_zero(void) { return _mm256_setzero_ps(); }
MLI_INLINE mli_v mli_v_set(float s) { return _mm256_set1_ps(s); }
MLI_INLINE mli_v mli_v_load(const float *p) { return _mm256_loadu_ps(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { _mm256_storeu_ps(p, a); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) {
    return n >= MLI_LANES ? mli_v_load(p) : _mm256_maskload_ps(p, mli_v_first(n));
}
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) {
    if (n >= MLI_LANES)
        mli_v_store(p, a);
    else
        _mm256_maskstore_ps(p, mli_v_first(n), a);
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    __m128i half = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
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
MLI_INLINE mli_v mli_v_zip_low(mli_v a, mli_v b) { return _mm256_unpacklo_ps(a, b); }
MLI_INLINE mli_v mli_v_zip_high(mli_v a, mli_v b) { return _mm256_unpackhi_ps(a, b); }
MLI_INLINE mli_v mli_v_join_low(mli_v a, mli_v b) { return _mm256_shuffle_ps(a, b, 0x44); }
MLI_INLINE mli_v mli_v_join_high(mli_v a, mli_v b) { return _mm256_shuffle_ps(a, b, 0xee); }
MLI_INLINE void mli_v_transpose_groups(mli_v row[MLI_LANES]) {
    MLI_UNROLL
    for (int j = 0; j < 4; j++) {
        mli_v a = row[j], b = row[j + 4];
        row[j] = _mm256_permute2f128_ps(a, b, 0x20);
        row[j + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
}
MLI_INLINE __m128 mli_v_fold(mli_v a) { /* the two halves added */
    return _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
}

#elif defined(MLI_NEON)

typedef float32x4_t mli_v;
enum { MLI_LANES = 4 };

MLI_INLINE mli_v mli_v_zero(void) { return vdupq_n_f32(0.0f); }
MLI_INLINE mli_v mli_v_set(float s) { return vdupq_n_f32(s); }
MLI_INLINE mli_v mli_v_load(const float *p) { return vld1q_f32(p); }
MLI_INLINE void mli_v_store(float *p, mli_v a) { vst1q_f32(p, a); }
MLI_INLINE mli_v mli_v_load_n(const float *p, size_t n) {
    float lane[4] = {0};
    if (n >= MLI_LANES) return mli_v_load(p);
    memcpy(lane, p, n * sizeof *p);
    return mli_v_load(lane);
}
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) {
    float lane[4];
    if (n >= MLI_LANES) {
        mli_v_store(p, a);
    } else {
        mli_v_store(lane, a);
        memcpy(p, lane, n * sizeof *p);
    }
}
MLI_INLINE mli_v mli_v_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
MLI_INLINE mli_v mli_v_load_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
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
MLI_INLINE mli_v mli_v_zip_low(mli_v a, mli_v b) { return vzip1q_f32(a, b); }
MLI_INLINE mli_v mli_v_zip_high(mli_v a, mli_v b) { return vzip2q_f32(a, b); }
MLI_INLINE mli_v mli_v_join_low(mli_v a, mli_v b) { return vcombine_f32(vget_low_f32(a), vget_low_f32(b)); }
MLI_INLINE mli_v mli_v_join_high(mli_v a, mli_v b) {
    return vcombine_f32(vget_high_f32(a), vget_high_f32(b));
}
MLI_INLINE void mli_v_transpose_groups(mli_v row[MLI_LANES]) { (void)row; } /* there is one group */

#else

/* Plain C: loops over four floats, which compilers turn into whatever vector instructions there are. */
typedef struct mli_v {
    float lane[4];
} mli_v;
enum { MLI_LANES = 4 };

static float mli_f16_to_f32(uint16_t half); /* in >>numbers, as is the next */
static float mli_bf16_to_f32(uint16_t half);

#define MLI_EACH_LANE(name, parameters, expression)                                                          \
    MLI_INLINE mli_v name parameters {                                                                       \
        mli_v r;                                                                                             \
        for (unsigned i = 0; i < MLI_LANES; i++) r.lane[i] = expression;                                     \
        return r;                                                                                            \
    }
MLI_EACH_LANE(mli_v_set, (float s), s)
MLI_INLINE mli_v mli_v_zero(void) { return mli_v_set(0.0f); }
MLI_EACH_LANE(mli_v_load, (const float *p), p[i])
MLI_INLINE void mli_v_store(float *p, mli_v a) { memcpy(p, a.lane, sizeof a); }
MLI_EACH_LANE(mli_v_load_n, (const float *p, size_t n), i < n ? p[i] : 0.0f)
MLI_INLINE void mli_v_store_n(float *p, mli_v a, size_t n) { memcpy(p, a.lane, MLI_MIN(n, 4) * sizeof *p); }
MLI_EACH_LANE(mli_v_load_f16, (const uint16_t *p), mli_f16_to_f32(p[i]))
MLI_EACH_LANE(mli_v_load_bf16, (const uint16_t *p), mli_bf16_to_f32(p[i]))
MLI_EACH_LANE(mli_v_add, (mli_v a, mli_v b), a.lane[i] + b.lane[i])
MLI_EACH_LANE(mli_v_sub, (mli_v a, mli_v b), a.lane[i] - b.lane[i])
MLI_EACH_LANE(mli_v_mul, (mli_v a, mli_v b), a.lane[i] * b.lane[i])
MLI_EACH_LANE(mli_v_div, (mli_v a, mli_v b), a.lane[i] / b.lane[i])
MLI_EACH_LANE(mli_v_sqrt, (mli_v a), sqrtf(a.lane[i]))
MLI_EACH_LANE(mli_v_max, (mli_v a, mli_v b), a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i])
MLI_EACH_LANE(mli_v_min, (mli_v a, mli_v b), a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i])
MLI_EACH_LANE(mli_v_fma, (mli_v a, mli_v b, mli_v c), a.lane[i] * b.lane[i] + c.lane[i])
MLI_EACH_LANE(mli_v_shift_left_23, (mli_v a), mli_bits_float(mli_float_bits(a.lane[i]) << 23))
MLI_EACH_LANE(mli_v_zip_low, (mli_v a, mli_v b), (i & 1 ? b : a).lane[i / 2])
MLI_EACH_LANE(mli_v_zip_high, (mli_v a, mli_v b), (i & 1 ? b : a).lane[2 + i / 2])
MLI_EACH_LANE(mli_v_join_low, (mli_v a, mli_v b), (i & 2 ? b : a).lane[i & 1])
MLI_EACH_LANE(mli_v_join_high, (mli_v a, mli_v b), (i & 2 ? b : a).lane[2 + (i & 1)])
#undef MLI_EACH_LANE
MLI_INLINE void mli_v_transpose_groups(mli_v row[MLI_LANES]) { (void)row; } /* there is one group */

#endif

/* ---- what follows from these ---- */

/* The first n lanes of a, the others 0. */
MLI_INLINE mli_v mli_v_keep_n(mli_v a, size_t n) {
    float lane[MLI_LANES];
    if (n >= MLI_LANES) return a;
    mli_v_store(lane, a);
    return mli_v_load_n(lane, n);
}

/* a[0] + a[1] + a[2] + a[3] */
MLI_INLINE mli_v mli_v_add_4(const mli_v a[4]) {
    return mli_v_add(mli_v_add(a[0], a[1]), mli_v_add(a[2], a[3]));
}

/* Transposes a square of MLI_LANES rows in place: within groups of four rows and columns, then the groups. */
MLI_INLINE void mli_v_transpose_4(mli_v row[4]) {
    /* 00 10 01 11, 20 30 21 31; 02 12 03 13, 22 32 23 33 */
    mli_v a = mli_v_zip_low(row[0], row[1]), b = mli_v_zip_low(row[2], row[3]);
    mli_v c = mli_v_zip_high(row[0], row[1]), d = mli_v_zip_high(row[2], row[3]);
    row[0] = mli_v_join_low(a, b);
    row[1] = mli_v_join_high(a, b);
    row[2] = mli_v_join_low(c, d);
    row[3] = mli_v_join_high(c, d);
}

MLI_INLINE void mli_v_transpose(mli_v row[MLI_LANES]) {
    MLI_UNROLL
    for (int i = 0; i < MLI_LANES; i += 4) mli_v_transpose_4(row + i);
    mli_v_transpose_groups(row);
}

/* The sum of all lanes, always as the same tree: halves are added until one number is left. mli_v_sum_4 gives the
   sums of four vectors in out (4), the same bits for less work. */
#if defined(MLI_AVX512) || defined(MLI_AVX2)
MLI_INLINE float mli_v_sum(mli_v a) {
    __m128 b = mli_v_fold(a);
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

MLI_INLINE void mli_v_sum_4(const mli_v a[4], float *out) {
    __m128 row[4] = {mli_v_fold(a[0]), mli_v_fold(a[1]), mli_v_fold(a[2]), mli_v_fold(a[3])};
    _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(row[0], row[2]), _mm_add_ps(row[1], row[3])));
}
#else
MLI_INLINE float mli_v_sum(mli_v a) {
    float lane[4];
    mli_v_store(lane, a);
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

MLI_INLINE void mli_v_sum_4(const mli_v a[4], float *out) {
    for (int i = 0; i < 4; i++) out[i] = mli_v_sum(a[i]);
}
#endif

MLI_INLINE float mli_v_largest(mli_v a) {
    float lane[MLI_LANES];
    mli_v_store(lane, a);
    for (int i = 1; i < MLI_LANES; i++) lane[0] = MLI_MAX(lane[i], lane[0]);
    return lane[0];
}

/* To the nearest integer, |a| < 2^22: a float near 1.5 * 2^23 has no bits for a fraction. */
MLI_INLINE mli_v mli_v_round(mli_v a) {
    return mli_v_sub(mli_v_add(a, mli_v_set(12582912.0f)), mli_v_set(12582912.0f));
}

/* 2^n for an integer n, -126 <= n <= 127. Adding 1.5 * 2^23 leaves n + 127 in the lowest bits of the sum's mantissa;
   shifted, they are the exponent of the result. */
MLI_INLINE mli_v mli_v_power_of_2(mli_v n) {
    return mli_v_shift_left_23(mli_v_add(n, mli_v_set(12582912.0f + 127.0f)));
}

/* e^x = 2^n e^r with n = round(x / ln 2) and |r| <= ln(2) / 2, as in Cody and Waite 1980, "Software Manual for the
   Elementary Functions": n ln 2 is subtracted in two parts, the first of which is short enough for its product with
   n to be exact. e^r = 1 + r + r^2 q(r), where q is the polynomial with the smallest maximal relative error (3e-9,
   so that rounding dominates: about 1 ulp). 2^n is applied in two factors, since 2^128 and 2^-150 are not floats:
   too large an x gives infinity, too small a one 0. As the second operand of max and min a NaN survives. */
MLI_INLINE mli_v mli_v_exp(mli_v x) {
    x = mli_v_min(mli_v_set(89.0f), mli_v_max(mli_v_set(-104.0f), x));
    mli_v n = mli_v_round(mli_v_mul(x, mli_v_set(1.44269504f)));
    mli_v r = mli_v_fma(n, mli_v_set(-0.693359375f), x);
    r = mli_v_fma(n, mli_v_set(2.12194440e-4f), r);
    mli_v q = mli_v_fma(mli_v_set(0.00138141739f), r, mli_v_set(0.00836892147f));
    q = mli_v_fma(q, r, mli_v_set(0.0416684076f));
    q = mli_v_fma(q, r, mli_v_set(0.166665196f));
    q = mli_v_fma(q, r, mli_v_set(0.49999994f));
    q = mli_v_add(mli_v_fma(q, mli_v_mul(r, r), r), mli_v_set(1.0f));
    mli_v half = mli_v_round(mli_v_mul(n, mli_v_set(0.5f)));
    return mli_v_mul(mli_v_mul(q, mli_v_power_of_2(half)), mli_v_power_of_2(mli_v_sub(n, half)));
}

/* ==== >>rows ====
   The kernels on rows of numbers: sums, softmax, SwiGLU, norms, rotary positions, AdamW; >>kernels says what each
   computes. All have the loop that >>vectors shows. What takes time is memory or, where there is an e^x, its
   polynomial. A sum is kept in as many parts as there are lanes; the lanes are added at the end. */

#if defined(ML_REFERENCE_KERNELS) /* the kernels written plainly, in doubles: tests compare with these */

static inline float mli_ref_dot_f32(const float *a, const float *b, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static inline void mli_ref_axpy(float *y, float a, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += a * x[i];
}

static inline float mli_ref_max(const float *x, size_t n) {
    float max = x[0];
    for (size_t i = 1; i < n; i++) max = MLI_MAX(x[i], max);
    return max;
}

static inline void mli_ref_softmax(float *x, size_t n) {
    double max = (double)mli_ref_max(x, n), sum = 0.0;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - max);
    for (size_t i = 0; i < n; i++) x[i] = (float)(exp((double)x[i] - max) / sum);
}

static inline void mli_ref_swiglu(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++)
        y[i] = (float)((double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i]);
}

#endif

/* ---- sums ---- */

/* A multiply-add takes about four cycles, but two can begin in each: four interleaved sums keep the unit busy. */
static float mli_dot(const float *a, const float *b, size_t n) {
    mli_v sum[4] = {mli_v_zero(), mli_v_zero(), mli_v_zero(), mli_v_zero()};
    size_t i = 0;
    for (; i + 4 * MLI_LANES <= n; i += 4 * MLI_LANES) {
        MLI_UNROLL
        for (size_t j = 0; j < 4; j++) {
            size_t at = i + j * MLI_LANES;
            sum[j] = mli_v_fma(mli_v_load(a + at), mli_v_load(b + at), sum[j]);
        }
    }
    for (; i + MLI_LANES <= n; i += MLI_LANES)
        sum[0] = mli_v_fma(mli_v_load(a + i), mli_v_load(b + i), sum[0]);
    if (i < n) sum[1] = mli_v_fma(mli_v_load_n(a + i, n - i), mli_v_load_n(b + i, n - i), sum[1]);
    return mli_v_sum(mli_v_add_4(sum));
}

static void mli_axpy(float *y, float a, const float *x, size_t n) {
    mli_v factor = mli_v_set(a);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v sum = mli_v_fma(factor, mli_v_load_n(x + i, n - i), mli_v_load_n(y + i, n - i));
        mli_v_store_n(y + i, sum, n - i);
    }
}

static void mli_add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += MLI_LANES)
        mli_v_store_n(y + i, mli_v_add(mli_v_load_n(y + i, n - i), mli_v_load_n(x + i, n - i)), n - i);
}

static void mli_scale(float *x, float a, size_t n) {
    mli_v factor = mli_v_set(a);
    for (size_t i = 0; i < n; i += MLI_LANES)
        mli_v_store_n(x + i, mli_v_mul(factor, mli_v_load_n(x + i, n - i)), n - i);
}

static void mli_add_products(float *y, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v sum =
            mli_v_fma(mli_v_load_n(a + i, n - i), mli_v_load_n(b + i, n - i), mli_v_load_n(y + i, n - i));
        mli_v_store_n(y + i, sum, n - i);
    }
}

/* The weighted sum of attention with few queries: a vector of the head at a time, in four interleaved sums. */
static void mli_weighted_sum(float *out, const float *p, const float *rows, size_t stride, size_t n,
                             size_t hd) {
    for (size_t i = 0; i < hd; i += MLI_LANES) {
        mli_v sum[4] = {mli_v_zero(), mli_v_zero(), mli_v_zero(), mli_v_zero()};
        size_t r = 0;
        for (; r + 4 <= n; r += 4) {
            MLI_UNROLL
            for (size_t j = 0; j < 4; j++) {
                mli_v row = mli_v_load_n(rows + (r + j) * stride + i, hd - i);
                sum[j] = mli_v_fma(mli_v_set(p[r + j]), row, sum[j]);
            }
        }
        for (; r < n; r++)
            sum[0] = mli_v_fma(mli_v_set(p[r]), mli_v_load_n(rows + r * stride + i, hd - i), sum[0]);
        mli_v_store_n(out + i, mli_v_add_4(sum), hd - i);
    }
}

/* ---- softmax ---- */

/* The last vector ends with the last number and may overlap the one before. */
static float mli_max(const float *x, size_t n) {
    float max = x[0];
    if (n >= MLI_LANES) {
        mli_v v = mli_v_load(x + n - MLI_LANES);
        for (size_t i = 0; i + MLI_LANES < n; i += MLI_LANES) v = mli_v_max(v, mli_v_load(x + i));
        return mli_v_largest(v);
    }
    for (size_t i = 1; i < n; i++) max = MLI_MAX(x[i], max);
    return max;
}

/* The sum of e^(x_i - max), which are stored in y (n) unless it is NULL; y may be x. */
static float mli_sum_exp(float *y, const float *x, float max, size_t n) {
    mli_v shift = mli_v_set(max), sum = mli_v_zero();
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v e = mli_v_exp(mli_v_sub(mli_v_load_n(x + i, n - i), shift));
        sum = mli_v_add(sum, mli_v_keep_n(e, n - i));
        if (y) mli_v_store_n(y + i, e, n - i);
    }
    return mli_v_sum(sum);
}

/* Subtracting the maximum cancels out and keeps e^x from overflowing. */
static float mli_softmax(float *x, size_t n) {
    float max = mli_max(x, n), sum = mli_sum_exp(x, x, max, n);
    mli_scale(x, 1.0f / sum, n);
    return max + logf(sum);
}

static void mli_log_softmax(float *x, size_t n) {
    float max = mli_max(x, n), log_sum = max + logf(mli_sum_exp(NULL, x, max, n));
    for (size_t i = 0; i < n; i++) x[i] -= log_sum;
}

static void mli_softmax_gradient(float *dp, const float *p, float s, size_t n) {
    mli_v mean = mli_v_set(mli_dot(p, dp, n)), scale = mli_v_set(s);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v d = mli_v_mul(mli_v_load_n(p + i, n - i), mli_v_sub(mli_v_load_n(dp + i, n - i), mean));
        mli_v_store_n(dp + i, mli_v_mul(scale, d), n - i);
    }
}

/* ---- SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer") ---- */

static void mli_swiglu(float *y, const float *gate, const float *up, size_t n) {
    const mli_v one = mli_v_set(1.0f);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v g = mli_v_load_n(gate + i, n - i);
        mli_v silu = mli_v_div(g, mli_v_add(mli_v_exp(mli_v_sub(mli_v_zero(), g)), one));
        mli_v_store_n(y + i, mli_v_mul(silu, mli_v_load_n(up + i, n - i)), n - i);
    }
}

static void mli_swiglu_gradient(float *d_gate, float *d_up, const float *dy, const float *gate,
                                const float *up, size_t n) {
    const mli_v one = mli_v_set(1.0f);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v g = mli_v_load_n(gate + i, n - i), u = mli_v_load_n(up + i, n - i);
        mli_v d = mli_v_load_n(dy + i, n - i);
        mli_v s = mli_v_div(one, mli_v_add(one, mli_v_exp(mli_v_sub(mli_v_zero(), g))));
        mli_v_store_n(d_up + i, mli_v_mul(d, mli_v_mul(g, s)), n - i);
        d = mli_v_mul(mli_v_mul(d, u), s);
        mli_v_store_n(d_gate + i, mli_v_mul(d, mli_v_fma(g, mli_v_sub(one, s), one)), n - i);
    }
}

/* ---- norms: LayerNorm (Ba, Kiros and Hinton 2016, "Layer Normalization") and RMSNorm (Zhang and Sennrich 2019,
   "Root Mean Square Layer Normalization") ---- */

static mli_moments mli_norm_moments(const float *x, size_t n, float eps, int is_layer_norm) {
    mli_moments of = {0.0f, 0.0f};
    if (!is_layer_norm) {
        of.scale = 1.0f / sqrtf(mli_dot(x, x, n) / (float)n + eps);
        return of;
    }
    mli_v sum = mli_v_zero(), squares = mli_v_zero();
    for (size_t i = 0; i < n; i += MLI_LANES) sum = mli_v_add(sum, mli_v_load_n(x + i, n - i));
    of.mean = mli_v_sum(sum) / (float)n;
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v d = mli_v_keep_n(mli_v_sub(mli_v_load_n(x + i, n - i), mli_v_set(of.mean)), n - i);
        squares = mli_v_fma(d, d, squares);
    }
    of.scale = 1.0f / sqrtf(mli_v_sum(squares) / (float)n + eps);
    return of;
}

/* z = (x - mean) scale, for up to n numbers */
MLI_INLINE mli_v mli_norm_z(const float *x, size_t n, mli_moments of) {
    return mli_v_mul(mli_v_sub(mli_v_load_n(x, n), mli_v_set(of.mean)), mli_v_set(of.scale));
}

static void mli_norm_row(float *y, const float *x, const float *w, const float *b, size_t n, mli_moments of) {
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v v = mli_v_mul(mli_norm_z(x + i, n - i, of), mli_v_load_n(w + i, n - i));
        mli_v_store_n(y + i, b ? mli_v_add(v, mli_v_load_n(b + i, n - i)) : v, n - i);
    }
}

static void mli_norm_row_gradient(float *dx, const float *dy, const float *x, const float *w, size_t n,
                                  mli_moments of, int is_layer_norm) {
    mli_v sum_u = mli_v_zero(), sum_uz = mli_v_zero();
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v u = mli_v_mul(mli_v_load_n(dy + i, n - i), mli_v_load_n(w + i, n - i));
        sum_u = mli_v_add(sum_u, u);
        sum_uz = mli_v_fma(u, mli_norm_z(x + i, n - i, of), sum_uz);
    }
    mli_v mean_u = mli_v_set(is_layer_norm ? mli_v_sum(sum_u) / (float)n : 0.0f);
    mli_v mean_uz = mli_v_set(mli_v_sum(sum_uz) / (float)n), scale = mli_v_set(of.scale);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v u = mli_v_mul(mli_v_load_n(dy + i, n - i), mli_v_load_n(w + i, n - i));
        u = mli_v_sub(mli_v_sub(u, mean_u), mli_v_mul(mli_norm_z(x + i, n - i, of), mean_uz));
        mli_v_store_n(dx + i, mli_v_fma(scale, u, mli_v_load_n(dx + i, n - i)), n - i);
    }
}

static void mli_norm_weight_gradient(float *dw, const float *dy, const float *x, size_t n, mli_moments of) {
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v z = mli_norm_z(x + i, n - i, of), d = mli_v_load_n(dy + i, n - i);
        mli_v_store_n(dw + i, mli_v_fma(d, z, mli_v_load_n(dw + i, n - i)), n - i);
    }
}

/* ---- rotary positions (Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding") ---- */

/* Compilers vectorize this: the row and the angles do not overlap. */
static void mli_rope_row(float *MLI_RESTRICT x, const float *MLI_RESTRICT cos_sin, size_t width, size_t hd,
                         float direction) {
    for (; width > 0; width -= hd, x += hd)
        for (size_t i = 0; i < hd; i += 2) {
            float a = x[i], b = x[i + 1], c = cos_sin[i], s = cos_sin[i + 1] * direction;
            x[i] = a * c - b * s;
            x[i + 1] = a * s + b * c;
        }
}

/* ---- AdamW (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization") ---- */

/* w, m, v and g are read and written once, which takes most of the time. */
static void mli_adamw(const mli_adamw_step *s, float *w, float *m, float *v, float *g, size_t n) {
    mli_v clip = mli_v_set(s->clip), eps = mli_v_set(s->eps), root = mli_v_set(s->root);
    mli_v b1 = mli_v_set(s->beta1), b1_rest = mli_v_set(1.0f - s->beta1);
    mli_v b2 = mli_v_set(s->beta2), b2_rest = mli_v_set(1.0f - s->beta2);
    mli_v rate = mli_v_set(-s->rate), keep = mli_v_set(s->keep);
    for (size_t i = 0; i < n; i += MLI_LANES) {
        mli_v gi = mli_v_mul(mli_v_load_n(g + i, n - i), clip);
        mli_v mi = mli_v_fma(b1, mli_v_load_n(m + i, n - i), mli_v_mul(b1_rest, gi));
        mli_v vi = mli_v_fma(b2, mli_v_load_n(v + i, n - i), mli_v_mul(b2_rest, mli_v_mul(gi, gi)));
        mli_v step = mli_v_div(mi, mli_v_fma(mli_v_sqrt(vi), root, eps)), wi = mli_v_load_n(w + i, n - i);
        if (s->decay_first) wi = mli_v_mul(wi, keep);
        wi = mli_v_fma(rate, step, wi);
        if (!s->decay_first) wi = mli_v_mul(wi, keep);
        mli_v_store_n(w + i, wi, n - i);
        mli_v_store_n(m + i, mi, n - i);
        mli_v_store_n(v + i, vi, n - i);
        mli_v_store_n(g + i, mli_v_zero(), n - i);
    }
}

/* ==== >>products ====
   y (n, out) = x (n, in) . W (out, in)^T takes nearly all of a network's time. What limits it depends on n, because a
   core multiplies faster than memory delivers: some 20 multiply-adds in the time in which one F32 arrives.

   Few rows (decoding: n = 1): every number of W is used only n times, so reading W is what takes the time. The
   product is as fast as memory if W is read once, from start to end, in the type in which it is stored: 16-bit
   weights are twice as fast as F32, 8-bit weights (>>integers) nearly four times.

   Many rows (reading a prompt, training): multiplying is what takes the time, provided that both operands come from
   registers and caches. So they are cut into blocks and repacked: matrix multiply.

   mli_linear (>>linear) chooses between them. Two calls lead from there to a loop over numbers:

       few rows     mli_few_rows_task: a thread's share of W    mli_matvec, in which its loops are inlined
       many rows    mli_gemm_cols_task: a share of y            mli_gemm_any_tile, likewise */

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

/* ---- few rows: matrix times vector ---- */

#if defined(MLI_AVX512) || defined(MLI_NEON)
enum { MLI_X_ROWS = 4 }; /* rows of x that meet a row of W at once: their 4 x 4 sums fit 32 registers */
#else
enum { MLI_X_ROWS = 2 }; /* or 16 registers */
#endif

/* y (n_x, n_w) = x (n_x, k) . w (n_w, k)^T, w of F32, F16 or BF16; rows are stride numbers (w's: bytes) apart. It is
   passed by value to what is inlined, where it becomes registers. */
typedef struct mli_matvec_job {
    float *y;
    const float *x;
    const char *w;
    size_t n_x, n_w, k, y_stride, x_stride, w_stride;
} mli_matvec_job;

/* Numbers i .. i + n - 1 of a row of F32, F16 or BF16, or as many as fit. */
MLI_INLINE mli_v mli_v_load_as(ml_type type, const char *row, size_t i, size_t n) {
    const uint16_t *half = (const uint16_t *)(const void *)row + i;
    uint16_t last[MLI_LANES] = {0};
    if (type == ML_F32) return mli_v_load_n((const float *)(const void *)row + i, n);
    if (n < MLI_LANES) {
        memcpy(last, half, n * sizeof *half);
        half = last;
    }
    return type == ML_F16 ? mli_v_load_f16(half) : mli_v_load_bf16(half);
}

/* sum[a][j] += w * x_a, lane by lane, from number i on, n > 0 of which are left. type and n_x are constants where
   this is inlined. */
MLI_INLINE void mli_matvec_step(ml_type type, int n_x, mli_matvec_job job, size_t i, size_t n, mli_v sum[][4],
                                int j) {
    mli_v w = mli_v_load_as(type, job.w, i, n);
    MLI_UNROLL
    for (int a = 0; a < n_x; a++) {
        mli_v x = mli_v_load_n(job.x + (size_t)a * job.x_stride + i, n);
        sum[a][j] = mli_v_fma(w, x, sum[a][j]);
    }
}

/* total[a] = x_a * w, lane by lane, for the first row w (k) of W and n_x <= MLI_X_ROWS rows of x, in four
   interleaved sums as in mli_dot. */
MLI_INLINE void mli_matvec_row(ml_type type, int n_x, mli_matvec_job job, mli_v *total) {
    mli_v sum[MLI_X_ROWS][4];
    const size_t k = job.k;
    size_t i = 0;
    MLI_UNROLL
    for (int a = 0; a < n_x; a++) sum[a][0] = sum[a][1] = sum[a][2] = sum[a][3] = mli_v_zero();
    if (k <= MLI_LANES) { /* a small head: the other sums stay 0 */
        mli_matvec_step(type, n_x, job, 0, k, sum, 0);
        MLI_UNROLL
        for (int a = 0; a < n_x; a++) total[a] = sum[a][0];
        return;
    }
    for (; i + 4 * MLI_LANES <= k; i += 4 * MLI_LANES) {
        MLI_UNROLL
        for (int j = 0; j < 4; j++)
            mli_matvec_step(type, n_x, job, i + (size_t)j * MLI_LANES, MLI_LANES, sum, j);
    }
    for (; i + MLI_LANES <= k; i += MLI_LANES) mli_matvec_step(type, n_x, job, i, MLI_LANES, sum, 0);
    if (i < k) mli_matvec_step(type, n_x, job, i, k - i, sum, 1);
    MLI_UNROLL
    for (int a = 0; a < n_x; a++) total[a] = mli_v_add_4(sum[a]);
}

/* The first four rows of W, or as many as there are, times the first n_x rows of x. W's rows are read one after the
   other, since memory is fastest as one stream. */
MLI_INLINE void mli_matvec_tile(ml_type type, int n_x, mli_matvec_job job) {
    mli_v total[MLI_X_ROWS][4], of_row[MLI_X_ROWS];
    const char *w = job.w;
    MLI_UNROLL
    for (size_t r = 0; r < 4; r++) {
        job.w = w + r * job.w_stride;
        if (r < job.n_w) mli_matvec_row(type, n_x, job, of_row);
        MLI_UNROLL
        for (int a = 0; a < n_x; a++) total[a][r] = r < job.n_w ? of_row[a] : mli_v_zero();
    }
    MLI_UNROLL
    for (int a = 0; a < n_x; a++) {
        float *y = job.y + (size_t)a * job.y_stride, last[4];
        mli_v_sum_4(total[a], job.n_w >= 4 ? y : last);
        if (job.n_w < 4) memcpy(y, last, job.n_w * sizeof *y);
    }
}

/* The job from rows x and w on. */
MLI_INLINE mli_matvec_job mli_matvec_from(mli_matvec_job job, size_t x, size_t w) {
    job.y += x * job.y_stride + w;
    job.x += x * job.x_stride;
    job.w += w * job.w_stride;
    job.n_x -= x;
    job.n_w -= w;
    return job;
}

/* Four rows of W, which stay in the first-level cache, meet all rows of x before the next four are read. The order
   in which a dot product is summed depends on k alone. */
MLI_INLINE void mli_matvec_of(ml_type type, mli_matvec_job job) {
    for (size_t w = 0; w < job.n_w; w += 4) {
        size_t x = 0;
        for (; x + MLI_X_ROWS <= job.n_x; x += MLI_X_ROWS)
            mli_matvec_tile(type, MLI_X_ROWS, mli_matvec_from(job, x, w));
        if (MLI_X_ROWS > 2 && x + 2 <= job.n_x) {
            mli_matvec_tile(type, 2, mli_matvec_from(job, x, w));
            x += 2;
        }
        if (x < job.n_x) mli_matvec_tile(type, 1, mli_matvec_from(job, x, w));
    }
}

static void mli_matvec(ml_type type, const mli_matvec_job *job) {
    switch (type) {
    case ML_F16: mli_matvec_of(ML_F16, *job); break;
    case ML_BF16: mli_matvec_of(ML_BF16, *job); break;
    default: mli_matvec_of(ML_F32, *job); break;
    }
}

static void mli_dots(float *y, const float *x, const float *rows, size_t row_stride, size_t n, size_t k) {
    mli_matvec_job job = {y, x, (const char *)rows, 1, n, k, 0, 0, row_stride * sizeof *rows};
    for (size_t row = 0; row < n; row += 4) mli_matvec_tile(ML_F32, 1, mli_matvec_from(job, 0, row));
}

/* ---- many rows: matrix multiply ----

   C (m, n) (+)= A (m, k) . B (k, n), after Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
   Multiplication"; the loops are numbered as in Van Zee and van de Geijn 2015, "BLIS: A Framework for Rapidly
   Instantiating BLAS Functionality":

       5  for each slab of columns of B and C              SLAB_COLS
       4    for each block of k: pack the slab of B        BLOCK_K      packed B is read from the last-level cache
       3      for each block of rows of A: pack it         BLOCK_ROWS   packed A from the second-level cache
       2        for each panel of the slab                 TILE_COLS    the panel of B from the first-level cache
       1          for each panel of the block              TILE_ROWS
                    for each number along k                             the tile of C stays in registers

             block of A                   slab of B                              C

               BLOCK_K                    SLAB_COLS
             +---------+           +-----+-----+-----+-----+           +-----+-----+-----+-----+
             |         |           |     |  p  |     |     |           |     |     |     |     |
             +---------+           |     |  a  |     |     |           +-----+-----+-----+-----+
   TILE_ROWS |  panel  |     .     |     |  n  |     |     | BLOCK_K   |     |tile |     |     | TILE_ROWS
             +---------+           |     |  e  |     |     |           +-----+-----+-----+-----+
             |         |           |     |  l  |     |     |           |     |     |     |     |
             +---------+           +-----+-----+-----+-----+           +-----+-----+-----+-----+
              BLOCK_ROWS            TILE_COLS                           TILE_COLS

   A tile of r x c sums does r c multiply-adds for r + c numbers read. Packing copies a block in the order in which
   the innermost loop reads it, however the operand is stored: afterwards transposes cost nothing, other types are
   F32, and rows that are a power of two apart do not compete for the same cache lines. */

#if defined(ML_REFERENCE_KERNELS)

static inline void mli_ref_gemm(size_t m, size_t n, size_t k, mli_operand a, mli_operand b, float *c,
                                size_t c_row_stride, int accumulate) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            const float *ai = (const float *)a.data + i * a.row_stride;
            const float *bj = (const float *)b.data + j * b.col_stride;
            double sum = accumulate ? (double)c[i * c_row_stride + j] : 0.0;
            for (size_t p = 0; p < k; p++) sum += (double)ai[p * a.col_stride] * (double)bj[p * b.row_stride];
            c[i * c_row_stride + j] = (float)sum;
        }
}

#endif

/* The constants, and the sizes that follow from them, next to the caches that they are made for:

                  sums in registers   panels of B, A    block of A        slab of B
       AVX-512      14 x 2 of 32       64 KB, 32 KB     256 KB of 1 MB    4 MB of 16 MB (panels: from 2nd level)
       AVX2          6 x 2 of 16       16 KB,  8 KB     192 KB of 256 KB  2 MB of 4 MB
       NEON          8 x 3 of 32       12 KB,  8 KB     128 KB of 256 KB  960 KB of 1 MB
       plain C       4 x 2 of 16        8 KB,  4 KB      64 KB of 128 KB  96 KB of 128 KB

   The first-level cache has 32 KB; the registers that are left hold a row of the panel of B and a number of A. */
#if defined(MLI_AVX512)
enum { MLI_TILE_ROWS = 14, MLI_TILE_VECTORS = 2 };
enum { MLI_BLOCK_K = 512, MLI_BLOCK_PANELS = 8, MLI_SLAB_COLS = 2048 };
#elif defined(MLI_AVX2)
enum { MLI_TILE_ROWS = 6, MLI_TILE_VECTORS = 2 };
enum { MLI_BLOCK_K = 256, MLI_BLOCK_PANELS = 24, MLI_SLAB_COLS = 2048 };
#elif defined(MLI_NEON)
enum { MLI_TILE_ROWS = 8, MLI_TILE_VECTORS = 3 };
enum { MLI_BLOCK_K = 256, MLI_BLOCK_PANELS = 16, MLI_SLAB_COLS = 960 };
#else
enum { MLI_TILE_ROWS = 4, MLI_TILE_VECTORS = 2 };
enum { MLI_BLOCK_K = 256, MLI_BLOCK_PANELS = 16, MLI_SLAB_COLS = 96 };
#endif
enum {
    MLI_TILE_COLS = +MLI_TILE_VECTORS * +MLI_LANES,
    MLI_TILE_WIDTH =
        (+MLI_TILE_ROWS + +MLI_LANES - 1) / +MLI_LANES * +MLI_LANES, /* TILE_ROWS in whole vectors */
    MLI_BLOCK_ROWS = +MLI_BLOCK_PANELS * +MLI_TILE_ROWS,
    MLI_COL_GRAIN = MLI_TILE_COLS % 3 ? 32 : 96, /* whole tiles and whole blocks of quantized numbers */
    MLI_BUFFER =
        +MLI_LANES * +MLI_BLOCK_K, /* numbers being converted: MLI_LANES rows along k, or one across */
    MLI_TASK_WORK = 1 << 17        /* multiplications worth waking a thread for */
};

/* C (+)= a . b for one tile: a is a packed panel (k, MLI_TILE_WIDTH), b one (k, MLI_TILE_COLS). */
typedef struct mli_c_tile {
    size_t k;
    const float *a, *b;
    float *c;
    size_t c_stride, rows, cols; /* rows and columns that are left; the tile may be smaller */
    int add;                     /* to what c holds */
} mli_c_tile;

/* A tile of height x (vectors * MLI_LANES), which are constants where this is inlined. */
MLI_INLINE void mli_gemm_tile(size_t height, size_t vectors, mli_c_tile t) {
    mli_v sum[MLI_TILE_ROWS][MLI_TILE_VECTORS], bv[MLI_TILE_VECTORS];
    MLI_UNROLL
    for (size_t i = 0; i < height; i++) {
        MLI_UNROLL
        for (size_t v = 0; v < vectors; v++) sum[i][v] = mli_v_zero();
    }
    for (size_t i = 0; i < MLI_MIN(height, t.rows); i++) { /* a row's ends: nearly all of its cache lines */
        MLI_PREFETCH_WRITE(t.c + i * t.c_stride);
        MLI_PREFETCH_WRITE(t.c + i * t.c_stride + MLI_MIN(vectors * MLI_LANES, t.cols) - 1);
    }
    for (size_t p = 0; p < t.k; p++, t.a += MLI_TILE_WIDTH, t.b += MLI_TILE_COLS) {
        MLI_UNROLL
        for (size_t v = 0; v < vectors; v++) bv[v] = mli_v_load(t.b + v * MLI_LANES);
        MLI_UNROLL
        for (size_t i = 0; i < height; i++) {
            mli_v ai = mli_v_set(t.a[i]);
            MLI_UNROLL
            for (size_t v = 0; v < vectors; v++) sum[i][v] = mli_v_fma(ai, bv[v], sum[i][v]);
        }
    }
    MLI_UNROLL
    for (size_t i = 0; i < height; i++, t.c += t.c_stride) {
        if (i >= t.rows) continue;
        MLI_UNROLL
        for (size_t v = 0; v < vectors; v++) {
            size_t at = v * MLI_LANES, n = t.cols > at ? t.cols - at : 0;
            if (t.add) sum[i][v] = mli_v_add(mli_v_load_n(t.c + at, n), sum[i][v]);
            mli_v_store_n(t.c + at, sum[i][v], n);
        }
    }
}

/* Takes the smallest tile that holds what is left of C. */
static void mli_gemm_any_tile(const mli_c_tile *t) {
    enum { HALF = MLI_TILE_ROWS / 2 };
    if (t->cols <= MLI_LANES && t->rows <= HALF)
        mli_gemm_tile(HALF, 1, *t);
    else if (t->cols <= MLI_LANES)
        mli_gemm_tile(MLI_TILE_ROWS, 1, *t);
    else if (t->rows <= 2)
        mli_gemm_tile(2, MLI_TILE_VECTORS, *t);
    else if (t->rows <= HALF)
        mli_gemm_tile(HALF, MLI_TILE_VECTORS, *t);
    else
        mli_gemm_tile(MLI_TILE_ROWS, MLI_TILE_VECTORS, *t);
}

/* ---- packing ---- */

static size_t mli_round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* B as rows along k, as A is: both operands are packed by the same functions. */
static mli_operand mli_transposed(mli_operand x) {
    mli_operand t = {x.type, x.data, x.col_stride, x.row_stride};
    return t;
}

/* Rows [first, first + count) and columns [k0, k0 + k) of an operand (rows, k) become panels of `lines` rows each.
   In a panel, packed[p * width + i] = row i, column k0 + p, where width is `lines` in whole vectors. The padding
   takes part in the computation, but its results are not stored. */
typedef struct mli_pack_job {
    mli_operand of;
    size_t first, count, k0, k, lines;
    float *buffer; /* MLI_BUFFER numbers */
} mli_pack_job;

/* dst (n) = numbers of any other type as F32 */
static void mli_widen(ml_type type, const char *from, float *dst, size_t n) {
    if (mli_is_quantized(type))
        mli_dequantize_row(type, from, dst, n);
    else
        for (size_t i = 0; i < n; i += MLI_LANES)
            mli_v_store_n(dst + i, mli_v_load_as(type, from, i, n - i), n - i);
}

/* Numbers [at, at + n) of the data: in place where they are F32, else in buffer (n). */
static const float *mli_as_f32(const mli_operand *of, size_t at, size_t n, float *buffer) {
    if (of->type == ML_F32) return (const float *)of->data + at;
    mli_widen(of->type, (const char *)of->data + ml_type_row_bytes(of->type, at), buffer, n);
    return buffer;
}

/* One panel of `count` <= lines rows, from row `first` on, that are contiguous: squares of MLI_LANES rows are
   transposed. The last row is repeated to fill up the squares. */
static void mli_pack_contiguous(const mli_pack_job *job, size_t first, size_t count, float *packed) {
    const size_t width = mli_round_up(job->lines, MLI_LANES);
    const float *row[MLI_LANES];
    mli_v square[MLI_LANES];
    for (size_t g = 0; g < width; g += MLI_LANES) {
        for (size_t i = 0; i < MLI_LANES; i++) {
            size_t at = (first + MLI_MIN(g + i, count - 1)) * job->of.row_stride + job->k0;
            row[i] = mli_as_f32(&job->of, at, job->k, job->buffer + i * job->k);
        }
        for (size_t p = 0; p < job->k; p += MLI_LANES) {
            float *to = packed + p * width + g;
            MLI_UNROLL
            for (int i = 0; i < MLI_LANES; i++) square[i] = mli_v_load_n(row[i] + p, job->k - p);
            mli_v_transpose(square);
            MLI_UNROLL
            for (size_t i = 0; i < MLI_LANES; i++)
                if (p + i < job->k) mli_v_store(to + i * width, square[i]);
        }
    }
}

/* All panels of an operand whose columns are contiguous: `count` numbers of each column are cut up among the panels.
   Eight columns at a time, so that what is written to one panel before the next is long enough for the hardware
   prefetcher to follow. */
static void mli_pack_strided(const mli_pack_job *job, float *packed) {
    const size_t step = job->of.type == ML_F32 ? 8 : 1; /* one that is converted: there is one buffer */
    const size_t stride = job->of.col_stride, width = mli_round_up(job->lines, MLI_LANES);
    for (size_t p0 = 0; p0 < job->k; p0 += step) {
        const size_t at = (job->k0 + p0) * stride + job->first;
        const float *col = mli_as_f32(&job->of, at, job->count, job->buffer);
        float *panel = packed;
        for (size_t q = 0; q < job->count; q += job->lines, panel += width * job->k) {
            const size_t left = job->count - q, end = MLI_MIN(p0 + step, job->k);
            for (size_t p = p0; p < end; p++) {
                const float *from = col + (p - p0) * stride + q;
                float *to = panel + p * width;
                if (p + 16 < job->k) MLI_PREFETCH(from + 16 * stride);
                if (left >= width)
                    for (size_t i = 0; i < width; i += MLI_LANES) mli_v_store(to + i, mli_v_load(from + i));
                else
                    for (size_t i = 0; i < width; i += MLI_LANES)
                        mli_v_store(to + i, mli_v_load_n(from + i, i < left ? left - i : 0));
            }
        }
    }
}

static void mli_pack(const mli_pack_job *job, float *packed) {
    if (job->of.col_stride != 1)
        mli_pack_strided(job, packed);
    else
        for (size_t q = 0; q < job->count; q += job->lines) {
            mli_pack_contiguous(job, job->first + q, MLI_MIN(job->lines, job->count - q), packed);
            packed += mli_round_up(job->lines, MLI_LANES) * job->k;
        }
}

/* ---- the loops ---- */

/* The part of B that is packed at a time: columns [col, col + cols), numbers [k0, k0 + k) of each. */
typedef struct mli_slab {
    size_t col, cols, k0, k;
} mli_slab;

typedef struct mli_gemm_job {
    size_t m, n, k;
    mli_operand a, b; /* b transposed: (n, k) */
    float *c;         /* (m, n) */
    size_t c_stride;
    int accumulate, n_tasks;
    int by_rows; /* tasks share a packed slab and own rows of C, else each packs its own slabs and owns columns */
    size_t slab_cols, slab_k, packed_a_size; /* the last in numbers, for each task */
    mli_slab slab;                           /* the shared one */
    float *packed_b, *packed_a, *buffer;     /* the last two, and without by_rows all three, for each task */
} mli_gemm_job;

/* The slab at column `col` and k0, cut off at col_end and the end of k. */
static mli_slab mli_gemm_slab(const mli_gemm_job *job, size_t col, size_t col_end, size_t k0) {
    mli_slab slab = {col, MLI_MIN(job->slab_cols, col_end - col), k0, MLI_MIN(job->slab_k, job->k - k0)};
    return slab;
}

/* Packs columns [from, to) of a slab. */
static void mli_gemm_pack_b(const mli_gemm_job *job, int task, const mli_slab *s, size_t from, size_t to,
                            float *packed) {
    float *buffer = job->buffer + (size_t)task * MLI_BUFFER;
    mli_pack_job pack = {job->b, s->col + from, to - from, s->k0, s->k, MLI_TILE_COLS, buffer};
    mli_pack(&pack, packed + from * s->k);
}

/* Loops 3 to 1: C (+)= A . B for rows [row, row_end) and the slab, packed in b. */
static void mli_gemm_multiply(const mli_gemm_job *job, int task, const mli_slab *s, size_t row,
                              size_t row_end, const float *b) {
    float *packed = job->packed_a + (size_t)task * job->packed_a_size;
    float *buffer = job->buffer + (size_t)task * MLI_BUFFER;
    const int add = job->accumulate || s->k0 > 0;
    for (; row < row_end; row += MLI_BLOCK_ROWS) {
        const size_t m = MLI_MIN(MLI_BLOCK_ROWS, row_end - row);
        mli_pack_job pack = {job->a, row, m, s->k0, s->k, MLI_TILE_ROWS, buffer};
        mli_pack(&pack, packed);
        for (size_t j = 0; j < s->cols; j += MLI_TILE_COLS)
            for (size_t i = 0; i < m; i += MLI_TILE_ROWS) {
                const float *a = packed + i / MLI_TILE_ROWS * MLI_TILE_WIDTH * s->k;
                float *c = job->c + (row + i) * job->c_stride + s->col + j;
                mli_c_tile tile = {s->k, a, b + j * s->k, c, job->c_stride, m - i, s->cols - j, add};
                mli_gemm_any_tile(&tile);
            }
    }
}

static void mli_gemm_pack_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    size_t from, to;
    mli_share(job->slab.cols, MLI_COL_GRAIN, job->n_tasks, index, &from, &to);
    if (from < to) mli_gemm_pack_b(job, index, &job->slab, from, to, job->packed_b);
}

static void mli_gemm_rows_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    size_t from, to;
    mli_share(job->m, MLI_TILE_ROWS, job->n_tasks, index, &from, &to);
    mli_gemm_multiply(job, index, &job->slab, from, to, job->packed_b);
}

static void mli_gemm_cols_task(void *arg, int index) {
    const mli_gemm_job *job = (const mli_gemm_job *)arg;
    float *packed_b = job->packed_b + (size_t)index * job->slab_cols * job->slab_k;
    size_t from, to;
    mli_share(job->n, MLI_COL_GRAIN, job->n_tasks, index, &from, &to);
    for (size_t col = from; col < to; col += job->slab_cols)
        for (size_t k0 = 0; k0 < job->k; k0 += job->slab_k) {
            mli_slab slab = mli_gemm_slab(job, col, to, k0);
            mli_gemm_pack_b(job, index, &slab, 0, slab.cols, packed_b);
            mli_gemm_multiply(job, index, &slab, 0, job->m, packed_b);
        }
}

/* Decides how the work is cut. The blocks of k, which determine the order of summation, depend on k alone. */
static void mli_gemm_plan(mli_gemm_job *job, const ml_threads *threads) {
    size_t k_blocks = (job->k + MLI_BLOCK_K - 1) / MLI_BLOCK_K;
    job->n_tasks = mli_task_count(threads, job->m * job->n, 1 + MLI_TASK_WORK / job->k);
    job->by_rows = job->n_tasks > 1 && job->m / MLI_TILE_ROWS >= 8 * (size_t)job->n_tasks;
    size_t col_shares = job->by_rows ? 1 : (size_t)job->n_tasks;
    size_t share = mli_round_up(job->n, MLI_COL_GRAIN * col_shares) / col_shares;
    job->slab_cols = MLI_MIN(MLI_SLAB_COLS, share);
    job->slab_k = mli_round_up((job->k + k_blocks - 1) / k_blocks, 32); /* whole quantized blocks */
    size_t panels = MLI_MIN((job->m + MLI_TILE_ROWS - 1) / MLI_TILE_ROWS, MLI_BLOCK_PANELS);
    job->packed_a_size = panels * MLI_TILE_WIDTH * job->slab_k;
}

static size_t mli_gemm_work(const ml_threads *threads, size_t m, size_t n, size_t k) {
    size_t tasks = threads && threads->count > 1 ? (size_t)threads->count : 1;
    size_t cols = MLI_MIN(mli_round_up(n, MLI_COL_GRAIN), MLI_SLAB_COLS * tasks) + tasks * MLI_COL_GRAIN;
    size_t panels = MLI_MIN((m + MLI_TILE_ROWS - 1) / MLI_TILE_ROWS, MLI_BLOCK_PANELS);
    size_t slab_k = MLI_MIN(mli_round_up(k, 32), MLI_BLOCK_K);
    size_t numbers = (cols + tasks * panels * MLI_TILE_WIDTH) * slab_k + tasks * MLI_BUFFER;
    return numbers * sizeof(float) + MLI_ALIGN;
}

static void mli_gemm(const ml_threads *threads, size_t m, size_t n, size_t k, mli_operand a, mli_operand b,
                     float *c, size_t c_row_stride, int accumulate, void *work) {
    if (k == 0 && !accumulate)
        for (size_t i = 0; i < m; i++) memset(c + i * c_row_stride, 0, n * sizeof *c);
    if (m == 0 || n == 0 || k == 0) return;
    mli_gemm_job job;
    memset(&job, 0, sizeof job);
    job.m = m, job.n = n, job.k = k;
    job.a = a, job.b = mli_transposed(b);
    job.c = c, job.c_stride = c_row_stride, job.accumulate = accumulate;
    mli_gemm_plan(&job, threads);
    job.packed_b = (float *)mli_align_up((uintptr_t)work);
    job.packed_a = job.packed_b + job.slab_cols * job.slab_k * (job.by_rows ? 1 : (size_t)job.n_tasks);
    job.buffer = job.packed_a + job.packed_a_size * (size_t)job.n_tasks;
    if (!job.by_rows) {
        mli_parallel(threads, job.n_tasks, mli_gemm_cols_task, &job);
        return;
    }
    for (size_t col = 0; col < n; col += job.slab_cols)
        for (size_t k0 = 0; k0 < k; k0 += job.slab_k) {
            job.slab = mli_gemm_slab(&job, col, n, k0);
            mli_parallel(threads, job.n_tasks, mli_gemm_pack_task, &job);
            mli_parallel(threads, job.n_tasks, mli_gemm_rows_task, &job);
        }
}

/* ==== >>numbers ====
   Number formats: what the bytes of a weight mean, and conversion between formats.

       F32     IEEE 754 single: 1 sign bit, 8 bits of exponent, 23 of mantissa
       F16     IEEE 754 half: 1, 5, 10
       BF16    the upper half of an F32: 1, 8, 7

   The quantized formats are those of ggml. 32 numbers of a row form a block with one scale d, an F16 (little-endian);
   each number is d q, where q is a small integer:

       Q8_0    byte  0 1   2    3        33
                    | d | q0 | q1 | ... | q31 |                       34 bytes; q is -128..127

       Q4_0    byte  0 1   2         3                17
                    | d | q16 q0 | q17 q1 | ... | q31 q15 |           18 bytes; a byte is two q, the high 4 bits
                                                                      first, each stored as q + 8, 0..15

   ggml's other formats are only read; they are drawn beside their functions below. A model never has them: its
   weights become F32.

   The table mli_types describes every format. To add a quantized one that is only read: give it a row there, and a
   function that dequantizes it. If it is computed with as it stands, also one that quantizes it, and in >>integers a
   case in mli_bytes_of and an MLI_INTEGER_FORMAT.

   F32, F16, BF16 and integers in memory have the byte order of the machine. */

enum {
    MLI_BLOCK = 32, /* numbers in a block of Q8_0 or Q4_0 */
    MLI_Q8_0_BYTES = 34,
    MLI_Q4_0_BYTES = 18,
    MLI_CHECKED = 4096 /* bytes that are tested together */
};

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

/* Exact: every F16 is an F32. A signaling NaN becomes quiet, as with the processors' own instructions. */
static float mli_f16_to_f32(uint16_t half) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#elif defined(MLI_NEON)
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
#else
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude > 0x7c00u) return mli_bits_float(sign | 0x7fc00000u | magnitude << 13); /* NaN */
    if (magnitude == 0x7c00u) return mli_bits_float(sign | 0x7f800000u);                  /* infinity */
    if (magnitude >= 0x0400u) return mli_bits_float(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
    return mli_bits_float(sign | mli_float_bits((float)magnitude * (1.0f / 16777216.0f))); /* k * 2^-24 */
#endif
}

/* To the nearest, ties to even; 65520 and above become infinity. */
static uint16_t mli_f32_to_f16(float value) {
#if defined(MLI_AVX512) || defined(MLI_AVX2)
    return (uint16_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT));
#elif defined(MLI_NEON)
    return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(value))), 0);
#else
    uint32_t bits = mli_float_bits(value), sign = bits >> 16 & 0x8000u, x = bits & 0x7fffffffu;
    if (x > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (x >> 13 & 0x3ffu)); /* NaN, made quiet */
    if (x >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (x >= 0x38800000u) { /* 2^-14 and above: normal. A carry out of the mantissa raises the exponent */
        x -= (127u - 15u) << 23;
        return (uint16_t)(sign | (x + 0xfffu + (x >> 13 & 1)) >> 13);
    }
    if (x <= 0x33000000u) return (uint16_t)sign;     /* up to half of the smallest, 2^-24 */
    uint32_t mantissa = (x & 0x7fffffu) | 0x800000u; /* value = mantissa * 2^(exponent - 150) = r * 2^-24 */
    uint32_t shift = 126u - (x >> 23);
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

/* The functions on rows that the table below lists. */
static void mli_dequantize_f32(const void *row, float *dst, size_t n) { memcpy(dst, row, n * sizeof *dst); }

static void mli_quantize_f32(const float *src, void *row, size_t n) { memcpy(row, src, n * sizeof *src); }

static void mli_dequantize_f16(const void *row, float *dst, size_t n) {
    const uint16_t *half = (const uint16_t *)row;
    size_t i = 0;
    for (; i + MLI_LANES <= n; i += MLI_LANES) mli_v_store(dst + i, mli_v_load_f16(half + i));
    for (; i < n; i++) dst[i] = mli_f16_to_f32(half[i]);
}

static void mli_quantize_f16(const float *src, void *row, size_t n) {
    for (size_t i = 0; i < n; i++) ((uint16_t *)row)[i] = mli_f32_to_f16(src[i]);
}

static void mli_dequantize_bf16(const void *row, float *dst, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = mli_bf16_to_f32(((const uint16_t *)row)[i]);
}

static void mli_quantize_bf16(const float *src, void *row, size_t n) {
    for (size_t i = 0; i < n; i++) ((uint16_t *)row)[i] = mli_f32_to_bf16(src[i]);
}

/* ---- blocks ---- */

static float mli_load_scale(const uint8_t *block) {
    return mli_f16_to_f32((uint16_t)(block[0] | block[1] << 8));
}

/* Stores d as an F16, clipped to the largest one. */
static void mli_store_scale(uint8_t *block, float d) {
    uint16_t half = mli_f32_to_f16(MLI_MAX(-65504.0f, MLI_MIN(d, 65504.0f)));
    block[0] = (uint8_t)(half & 0xff);
    block[1] = (uint8_t)(half >> 8);
}

static void mli_dequantize_q8_0(const void *row, float *dst, size_t n) {
    const uint8_t *block = (const uint8_t *)row;
    for (const float *end = dst + n; dst < end; dst += MLI_BLOCK, block += MLI_Q8_0_BYTES) {
        float d = mli_load_scale(block);
        const int8_t *q = (const int8_t *)(block + 2);
        for (int i = 0; i < MLI_BLOCK; i++) dst[i] = d * (float)q[i];
    }
}

static void mli_dequantize_q4_0(const void *row, float *dst, size_t n) {
    const uint8_t *block = (const uint8_t *)row;
    for (const float *end = dst + n; dst < end; dst += MLI_BLOCK, block += MLI_Q4_0_BYTES) {
        float d = mli_load_scale(block);
        for (int i = 0; i < MLI_BLOCK / 2; i++) {
            dst[i] = d * (float)((block[2 + i] & 15) - 8);
            dst[i + MLI_BLOCK / 2] = d * (float)((block[2 + i] >> 4) - 8);
        }
    }
}

/* Of 32 numbers, the one with the largest magnitude, the first of equals. NaN is ignored. */
static float mli_largest(const float *x) {
    float largest = 0;
    for (int i = 0; i < MLI_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
    return largest;
}

/* x to the nearest integer of -127..127, halves away from zero; NaN gives 0. */
static int mli_round_q8(float x) {
    if (!(x > -127.0f)) return x <= -127.0f ? -127 : 0;
    if (x >= 127.0f) return 127;
    int whole = (int)x;
    float rest = x - (float)whole; /* exact */
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

/* Q8_0: d = max |x| / 127, q = x / d rounded. Numbers beyond 127 * 65504 are clipped, NaN becomes 0. */
static void mli_quantize_q8_0(const float *src, void *row, size_t n) {
    uint8_t *block = (uint8_t *)row;
    for (const float *end = src + n; src < end; src += MLI_BLOCK, block += MLI_Q8_0_BYTES) {
        float d = MLI_MIN(fabsf(mli_largest(src)) / 127.0f, 65504.0f), inverse = d > 0 ? 1.0f / d : 0;
        mli_store_scale(block, d);
        for (int i = 0; i < MLI_BLOCK; i++) block[2 + i] = (uint8_t)mli_round_q8(src[i] * inverse);
    }
}

/* q + 8 of Q4_0 for x / d: 0..15; 8, which means 0, for NaN. */
static unsigned mli_round_q4(float x) {
    x += 8.5f;
    return x >= 15.0f ? 15u : x >= 1.0f ? (unsigned)x : x < 1.0f ? 0u : 8u;
}

/* Q4_0: d = (the number of largest magnitude, with its sign) / -8, so that it becomes -8 exactly and the whole range
   -8..7 is used. Clips and treats NaN as Q8_0 does. */
static void mli_quantize_q4_0(const float *src, void *row, size_t n) {
    uint8_t *block = (uint8_t *)row;
    for (const float *end = src + n; src < end; src += MLI_BLOCK, block += MLI_Q4_0_BYTES) {
        float d = MLI_MAX(-65504.0f, MLI_MIN(mli_largest(src) / -8.0f, 65504.0f));
        float inverse = d != 0 ? 1.0f / d : 0;
        mli_store_scale(block, d);
        for (int i = 0; i < MLI_BLOCK / 2; i++) {
            unsigned low = mli_round_q4(src[i] * inverse);
            unsigned high = mli_round_q4(src[i + MLI_BLOCK / 2] * inverse);
            block[2 + i] = (uint8_t)(low | high << 4);
        }
    }
}

#ifndef ML_NO_K_QUANTS

/* ---- blocks that are only read ----
   The formats of llama.cpp's mixed files (Q4_K_M and so on). d, m and dmin are F16, the scale and the offset; s_j are
   small integers that scale a part of the block. Numbers in quotes are bits. All names are those of ggml. */

/* Defines the function on rows for the one on a block: mli_unpack_NAME(block, dst). */
#define MLI_DEQUANTIZE(name, numbers, bytes)                                                                 \
    static void mli_dequantize_##name(const void *row, float *dst, size_t n) {                               \
        const uint8_t *block = (const uint8_t *)row;                                                         \
        for (size_t i = 0; i < n; i += (numbers), block += (bytes)) mli_unpack_##name(block, dst + i);       \
    }

/* Q4_1: d 2 bytes, m 2, q 16 as in Q4_0; value d q + m */
static void mli_unpack_q4_1(const uint8_t *block, float *dst) {
    float d = mli_load_scale(block), m = mli_load_scale(block + 2);
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)(block[4 + i] & 15) + m;
        dst[i + 16] = d * (float)(block[4 + i] >> 4) + m;
    }
}
MLI_DEQUANTIZE(q4_1, MLI_BLOCK, 20)

/* The 32 numbers of 5 bits in Q5_0 and Q5_1: bit i of the first four bytes is the highest of number i; the other
   four are in 16 bytes as in Q4_0. dst = d (q - zero) + m. */
static void mli_unpack_5_bits(const uint8_t *bytes, float d, int zero, float m, float *dst) {
    uint32_t high = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    for (int i = 0; i < 16; i++) {
        int low = (bytes[4 + i] & 15) | (int)(high >> i & 1) << 4;
        int upper = bytes[4 + i] >> 4 | (int)(high >> (i + 16) & 1) << 4;
        dst[i] = d * (float)(low - zero) + m;
        dst[i + 16] = d * (float)(upper - zero) + m;
    }
}

/* Q5_0: d 2 bytes, high bits 4, low bits 16; value d (q - 16). Q5_1: d 2, m 2, then the same; value d q + m. */
static void mli_unpack_q5_0(const uint8_t *block, float *dst) {
    mli_unpack_5_bits(block + 2, mli_load_scale(block), 16, 0, dst);
}
static void mli_unpack_q5_1(const uint8_t *block, float *dst) {
    mli_unpack_5_bits(block + 4, mli_load_scale(block), 0, mli_load_scale(block + 2), dst);
}
MLI_DEQUANTIZE(q5_0, MLI_BLOCK, 22)
MLI_DEQUANTIZE(q5_1, MLI_BLOCK, 24)

/* All that follow but IQ4_NL have blocks of 256 numbers in parts of 16 or 32 with a scale each.

   Q2_K: per part of 16 a byte "offset 4, scale 4", 16 in all; q 64; d 2; dmin 2. value d scale q - dmin offset.
   Each half of 128 numbers has 32 bytes of q; their lowest two bits are the first 32 numbers, and so on. */
static void mli_unpack_q2_k(const uint8_t *block, float *dst) {
    float d = mli_load_scale(block + 80), dmin = mli_load_scale(block + 82);
    for (int part = 0; part < 16; part++) {
        const uint8_t *q = block + 16 + part / 8 * 32 + part % 2 * 16;
        int shift = part % 8 / 2 * 2;
        float scale = d * (float)(block[part] & 15), offset = dmin * (float)(block[part] >> 4);
        for (int i = 0; i < 16; i++) *dst++ = scale * (float)(q[i] >> shift & 3) - offset;
    }
}
MLI_DEQUANTIZE(q2_k, 256, 84)

/* Q3_K: high bits 32 bytes, low bits 64 as Q2_K's q, scales 12, d 2. value d (s - 32) (q - 4), q of 3 bits. Of the
   high bits of numbers i, i + 32, i + 64, ... byte i has one each. The scales, 6 bits each, are 16: the low 4 bits of
   s_0 .. s_7 and s_8 .. s_15 are the halves of 8 bytes; byte 8 + j % 4 has the others of s_j, from bit 2 (j / 4). */
static void mli_unpack_q3_k(const uint8_t *block, float *dst) {
    const uint8_t *scales = block + 96;
    float d = mli_load_scale(block + 108);
    for (int part = 0; part < 16; part++) {
        const uint8_t *high = block + part % 2 * 16, *q = block + 32 + part / 8 * 32 + part % 2 * 16;
        int shift = part % 8 / 2 * 2, bit = part / 2;
        int s = (scales[part % 8] >> part / 8 * 4 & 15) | (scales[8 + part % 4] >> part / 4 * 2 & 3) << 4;
        float scale = d * (float)(s - 32);
        for (int i = 0; i < 16; i++)
            *dst++ = scale * (float)((q[i] >> shift & 3) + (high[i] >> bit & 1) * 4 - 4);
    }
}
MLI_DEQUANTIZE(q3_k, 256, 110)

/* The scale and the offset of part 0 .. 7 of a Q4_K or Q5_K, 6 bits each in 12 bytes: those of parts 0 .. 3 are the
   low bits of bytes 0 .. 3 and 4 .. 7; of parts 4 .. 7, bytes 8 .. 11 have 4 bits each, and the highest 2 are above
   the low bits of the former. */
static void mli_unpack_scales(const uint8_t *bytes, int part, int *scale, int *offset) {
    int j = part % 4;
    if (part < 4) {
        *scale = bytes[j] & 63;
        *offset = bytes[4 + j] & 63;
    } else {
        *scale = (bytes[8 + j] & 15) | bytes[j] >> 6 << 4;
        *offset = bytes[8 + j] >> 4 | bytes[4 + j] >> 6 << 4;
    }
}

/* Q4_K: d 2 bytes, dmin 2, scales 12, q 128: 32 bytes for each 64 numbers, the low 4 bits first. Parts of 32.
   Q5_K: before q another 32 bytes, in which bit `part` of byte i is the highest of number i of the part.
   value d scale q - dmin offset. high NULL: there are none. */
static void mli_unpack_4_or_5_bits(const uint8_t *block, const uint8_t *high, const uint8_t *q, float *dst) {
    float d = mli_load_scale(block), dmin = mli_load_scale(block + 2);
    for (int part = 0; part < 8; part++) {
        int shift = part % 2 * 4, scale, offset;
        mli_unpack_scales(block + 4, part, &scale, &offset);
        float by = d * (float)scale, less = dmin * (float)offset;
        for (int i = 0; i < 32; i++) {
            int number = (q[part / 2 * 32 + i] >> shift & 15) | (high ? (high[i] >> part & 1) << 4 : 0);
            *dst++ = by * (float)number - less;
        }
    }
}
static void mli_unpack_q4_k(const uint8_t *block, float *dst) {
    mli_unpack_4_or_5_bits(block, NULL, block + 16, dst);
}
static void mli_unpack_q5_k(const uint8_t *block, float *dst) {
    mli_unpack_4_or_5_bits(block, block + 16, block + 48, dst);
}
MLI_DEQUANTIZE(q4_k, 256, 144)
MLI_DEQUANTIZE(q5_k, 256, 176)

/* Q6_K: low 4 bits 128 bytes, high 2 bits 64, scales 16 (signed bytes, for 16 numbers each), d 2. value d scale
   (q - 32). Each half of 128 numbers has 64 bytes of low and 32 of high bits: numbers 0 .. 63 are the low halves of
   the former, 64 .. 127 the high ones; and of the latter each 32 numbers take two bits, the lowest first. */
static void mli_unpack_q6_k(const uint8_t *block, float *dst) {
    float d = mli_load_scale(block + 208);
    for (int part = 0; part < 16; part++) {
        int in_half = part % 8, s = block[192 + part];
        const uint8_t *low = block + part / 8 * 64 + in_half % 4 * 16;
        const uint8_t *high = block + 128 + part / 8 * 32 + in_half % 2 * 16;
        int shift = in_half / 4 * 4, high_shift = in_half / 2 * 2;
        float scale = d * (float)(s < 128 ? s : s - 256);
        for (int i = 0; i < 16; i++)
            *dst++ = scale * (float)(((low[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
    }
}
MLI_DEQUANTIZE(q6_k, 256, 210)

/* IQ4: 4 bits choose one of 16 numbers, closer together around 0, in place of q. */
static const int8_t mli_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

static void mli_unpack_iq4(const uint8_t *q, float d, float *dst) {
    for (int i = 0; i < 16; i++) {
        dst[i] = d * (float)mli_iq4_values[q[i] & 15];
        dst[i + 16] = d * (float)mli_iq4_values[q[i] >> 4];
    }
}

/* IQ4_NL: as Q4_0. IQ4_XS: d 2 bytes, the highest two bits of 8 scales 2, the lower four 4, q 128. value
   d (scale - 32) q, a scale for each 32. */
static void mli_unpack_iq4_nl(const uint8_t *block, float *dst) {
    mli_unpack_iq4(block + 2, mli_load_scale(block), dst);
}
static void mli_unpack_iq4_xs(const uint8_t *block, float *dst) {
    float d = mli_load_scale(block);
    int high = block[2] | block[3] << 8;
    for (int part = 0; part < 8; part++) {
        int scale = (block[4 + part / 2] >> part % 2 * 4 & 15) | (high >> part * 2 & 3) << 4;
        mli_unpack_iq4(block + 8 + part * 16, d * (float)(scale - 32), dst + part * 32);
    }
}
MLI_DEQUANTIZE(iq4_nl, MLI_BLOCK, 18)
MLI_DEQUANTIZE(iq4_xs, 256, 136)

#define MLI_ONLY_READ(name) NULL, mli_dequantize_##name, NULL
#else
#define MLI_ONLY_READ(name) NULL, NULL, NULL
#endif

/* ---- the table of formats ---- */

#define MLI_NO_GGUF UINT32_MAX /* GGUF has no such type */

/* In >>integers. */
static void mli_few_q8_0(const struct mli_integer_job *job, size_t row, size_t n_rows, size_t col,
                         size_t n_cols);
static void mli_few_q4_0(const struct mli_integer_job *job, size_t row, size_t n_rows, size_t col,
                         size_t n_cols);

static const mli_type_info mli_types[ML_TYPE_COUNT] = {
    /* in the order of ml_type */
    {"?", MLI_NO_GGUF, 1, 0, 0, NULL, NULL, NULL},
    {"F32", 0, 1, 4, MLI_INFINITY_BITS, mli_quantize_f32, mli_dequantize_f32, NULL},
    {"F16", 1, 1, 2, 0x477ff000u /* 65520 */, mli_quantize_f16, mli_dequantize_f16, NULL},
    {"BF16", 30, 1, 2, 0x7f7f8000u, mli_quantize_bf16, mli_dequantize_bf16, NULL},
    {"Q8_0", 8, MLI_BLOCK, MLI_Q8_0_BYTES, 0x4afdf020u /* 127 * 65520 */, mli_quantize_q8_0,
     mli_dequantize_q8_0, mli_few_q8_0},
    {"Q4_0", 2, MLI_BLOCK, MLI_Q4_0_BYTES, 0x48fff000u /* 8 * 65520 */, mli_quantize_q4_0,
     mli_dequantize_q4_0, mli_few_q4_0},
    {"F64", 28, 1, 8, 0, NULL, NULL, NULL},
    {"I64", 27, 1, 8, 0, NULL, NULL, NULL},
    {"I32", 26, 1, 4, 0, NULL, NULL, NULL},
    {"I16", 25, 1, 2, 0, NULL, NULL, NULL},
    {"I8", 24, 1, 1, 0, NULL, NULL, NULL},
    {"U8", MLI_NO_GGUF, 1, 1, 0, NULL, NULL, NULL},
    {"BOOL", MLI_NO_GGUF, 1, 1, 0, NULL, NULL, NULL},
    {"Q4_1", 3, MLI_BLOCK, 20, 0, MLI_ONLY_READ(q4_1)},
    {"Q5_0", 6, MLI_BLOCK, 22, 0, MLI_ONLY_READ(q5_0)},
    {"Q5_1", 7, MLI_BLOCK, 24, 0, MLI_ONLY_READ(q5_1)},
    {"Q2_K", 10, 256, 84, 0, MLI_ONLY_READ(q2_k)},
    {"Q3_K", 11, 256, 110, 0, MLI_ONLY_READ(q3_k)},
    {"Q4_K", 12, 256, 144, 0, MLI_ONLY_READ(q4_k)},
    {"Q5_K", 13, 256, 176, 0, MLI_ONLY_READ(q5_k)},
    {"Q6_K", 14, 256, 210, 0, MLI_ONLY_READ(q6_k)},
    {"IQ4_NL", 20, MLI_BLOCK, 18, 0, MLI_ONLY_READ(iq4_nl)},
    {"IQ4_XS", 23, 256, 136, 0, MLI_ONLY_READ(iq4_xs)},
};

static const mli_type_info *mli_type(ml_type type) {
    return &mli_types[(unsigned)type < ML_TYPE_COUNT ? (unsigned)type : 0];
}

static int mli_is_quantized(ml_type type) { return mli_type(type)->few != NULL; }

static int mli_is_readable(ml_type type) {
    const mli_type_info *info = mli_type(type);
    return info->bytes && (info->block == 1 || info->dequantize);
}

static ml_type mli_type_from_gguf(uint32_t number) {
    for (int i = 1; i < ML_TYPE_COUNT; i++)
        if (mli_types[i].gguf == number && number != MLI_NO_GGUF) return (ml_type)i;
    return ML_TYPE_NONE;
}

ML_DEF const char *ml_type_name(ml_type type) { return mli_type(type)->name; }

/* Upper case of an ASCII letter, in any locale. */
static char mli_upper(char c) { return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c; }

ML_DEF ml_type ml_type_from_name(const char *name) {
    for (int i = 1; name && i < ML_TYPE_COUNT; i++) {
        const char *a = mli_types[i].name, *b = name;
        while (*a && *a == mli_upper(*b)) a++, b++;
        if (!*a && !*b) return (ml_type)i;
    }
    return ML_TYPE_NONE;
}

ML_DEF size_t ml_type_block(ml_type type) { return mli_type(type)->block; }

ML_DEF size_t ml_type_row_bytes(ml_type type, size_t cols) {
    const mli_type_info *info = mli_type(type);
    size_t bytes;
    return cols % info->block == 0 && mli_mul_size(cols / info->block, info->bytes, &bytes) ? bytes : 0;
}

/* ---- conversion ---- */

static void mli_dequantize_row(ml_type type, const void *row, float *dst, size_t n) {
    mli_type(type)->dequantize(row, dst, n);
}

/* row = src (n) in a format of weights; n is a multiple of the block. */
static void mli_quantize_row(ml_type type, const float *src, void *row, size_t n) {
    mli_type(type)->quantize(src, row, n);
}

/* A double as a float that can be rounded again to fewer bits as if from the double itself: truncated, with the last
   bit set if anything was lost ("round to odd": Boldo and Melquiond 2008, "Emulation of a FMA and Correctly Rounded
   Sums: Proved Algorithms Using Rounding to Odd"). */
static float mli_round_to_odd(double value) {
    float nearest = (float)value;
    uint32_t bits = mli_float_bits(nearest);
    if (!mli_is_finite(value) || (double)nearest == value) return nearest;
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

/* dst (n) = n numbers of any type as floats: exact where possible, else rounded to odd if another rounding follows,
   else to nearest. */
static void mli_get_floats(ml_type type, const void *src, float *dst, size_t n, int to_odd) {
    if (mli_type(type)->dequantize) {
        mli_dequantize_row(type, src, dst, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double value = mli_get_number(type, src, i);
        dst[i] = to_odd ? mli_round_to_odd(value) : (float)value;
    }
}

/* The first of n numbers of `size` bytes, 2 or 4, in which all bits of `exponent` are set; n if there is none. Eight
   bytes at a time: one added to an exponent carries into the place of the sign exactly then. Only a piece in which
   that happened is looked at number by number. */
static size_t mli_find_exponent(const unsigned char *numbers, size_t n, size_t size, uint32_t exponent) {
    const uint64_t ones = size == 2 ? 0x0001000100010001u : 0x0000000100000001u;
    const uint64_t mask = ones * exponent, step = ones * (exponent & (0u - exponent)),
                   top = (mask + step) & ~mask;
    const size_t bytes = n * size;
    for (size_t begin = 0, end; begin < bytes; begin = end) {
        uint64_t carried = 0, word;
        size_t at = begin;
        end = MLI_MIN(bytes, begin + MLI_CHECKED);
        for (; at + sizeof word <= end; at += sizeof word) {
            memcpy(&word, numbers + at, sizeof word);
            carried |= (word & mask) + step;
        }
        word = 0;
        memcpy(&word, numbers + at, end - at);
        carried |= (word & mask) + step;
        for (at = begin; (carried & top) && at < end; at += size) {
            word = 0;
            memcpy(&word, numbers + at, size);
            if (((word & mask) + step) & top) return at / size;
        }
    }
    return n;
}

/* The loop over a piece only collects what it finds, so that compilers make vectors of it. */
static size_t mli_find_beyond(const float *x, size_t n, uint32_t limit) {
    const int32_t least = (int32_t)limit; /* signed comparisons are what SSE2 has */
    for (size_t begin = 0, end; begin < n; begin = end) {
        int32_t found = 0;
        end = MLI_MIN(n, begin + MLI_CHECKED / sizeof *x);
        for (size_t i = begin; i < end; i++) found |= (int32_t)(mli_float_bits(x[i]) & 0x7fffffffu) >= least;
        for (size_t i = begin; found && i < end; i++)
            if ((mli_float_bits(x[i]) & 0x7fffffffu) >= limit) return i;
    }
    return n;
}

/* Blocks have a finite number of values times their scale, so the scale tells. */
static size_t mli_find_not_finite(ml_type type, const void *row, size_t n) {
    const mli_type_info *info = mli_type(type);
    const unsigned char *block = (const unsigned char *)row;
    if (type == ML_F32) return mli_find_exponent(block, n, 4, MLI_INFINITY_BITS);
    if (type == ML_F16) return mli_find_exponent(block, n, 2, 0x7c00);
    if (type == ML_BF16) return mli_find_exponent(block, n, 2, 0x7f80);
    for (size_t i = 0; i < n; i += info->block, block += info->bytes) /* Q8_0 and Q4_0 */
        if ((block[1] & 0x7c) == 0x7c) return i;
    return n;
}

static size_t mli_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n, float *value) {
    const mli_type_info *in = mli_type(from), *out = mli_type(to);
    float part[8 * MLI_BLOCK];
    uint16_t raw[2 * sizeof part / sizeof(uint16_t)]; /* src and dst may have odd addresses */
    size_t first = n;
    for (size_t count, done = 0; done < n; done += count) {
        count = MLI_MIN(n - done, sizeof part / sizeof *part);
        memcpy(raw, (const uint8_t *)src + done / in->block * in->bytes, count / in->block * in->bytes);
        mli_get_floats(from, raw, part, count, to == ML_F16 || to == ML_BF16);
        size_t beyond = first < n ? count : mli_find_beyond(part, count, out->limit);
        if (beyond < count) {
            first = done + beyond;
            *value = part[beyond];
        }
        mli_quantize_row(to, part, raw, count);
        memcpy((uint8_t *)dst + done / out->block * out->bytes, raw, count / out->block * out->bytes);
    }
    return first;
}

ML_DEF ml_result ml_type_convert(ml_type to, void *dst, ml_type from, const void *src, size_t n) {
    const mli_type_info *in = mli_type(from), *out = mli_type(to);
    float value;
    if (!in->bytes || !out->quantize || n % in->block || n % out->block) return ML_ERROR_ARGUMENT;
    if (!mli_is_readable(from)) return ML_ERROR_UNSUPPORTED;
    if (!n) return ML_OK;
    if (!dst || !src) return ML_ERROR_ARGUMENT;
    if (from == to)
        memmove(dst, src, n / in->block * in->bytes);
    else
        mli_convert(to, dst, from, src, n, &value);
    return ML_OK;
}

/* ==== >>integers ====
   Products with quantized weights, in integers. The activations x are quantized first: blocks of 32 signed bytes
   with one scale each, as weights of type Q8_0 have them. A row of weights w and a row of activations x then give

       y = sum over blocks of  d_w d_x  sum over the block of q_w q_x

   The inner sum is exact: at most 32 * 128 * 127, below 2^24, which even a float holds. So rounding errors come only
   from quantizing x and from adding up the blocks, and the order of those additions does not depend on where a
   row is computed or on the number of threads.

   What processors offer for the inner sum are instructions that multiply bytes and add neighboring products:

       ARM sdot (DOTPROD)          lane (int32) += the sum of four products, signed x signed
       x86 vpdpbusd (VNNI)         lane (int32) += the sum of four products, unsigned x signed
       x86 vpmaddubsw (AVX2)       lane (int16)  = the sum of two products, unsigned x signed; saturates at 32767

   Weights are signed, so x86 needs one of two tricks:
   - Move the sign: |q_w| is unsigned, and q_x sign(q_w) is signed. Two products are at most 2 * 128 * 127 = 32512, so
     vpmaddubsw never saturates.
   - Add an offset: q_w + 128 is unsigned, and sum (q_w + 128) q_x = sum q_w q_x + 128 sum q_x. The sum of q_x is
     known in advance, so the integer sum starts at -128 sum q_x. This takes fewer instructions, but vpmaddubsw would
     saturate (2 * 255 * 127), so it is used with VNNI only.

   There are two ways through the weights. With few rows of x, the time goes into reading weights, so each row is used
   as it is read (mli_integer_few). With many rows, it goes into arithmetic, so weights are packed into panels, and
   each vector of weights that is loaded serves several rows of x (mli_integer_many). Both use the same blocks of x.

   The vector operations come first, once per instruction set, those of mli_integer_few before those of the panels:

       mli_bytes     a block of weights as bytes: signed, or with VNNI unsigned, after adding 128
       mli_scales    the scales of four blocks
       mli_sums      floats that add up to y
       mli_ints      with panels: a lane for each row of weights */

#if defined(MLI_AVX512) && defined(__AVX512VNNI__)
#define MLI_VNNI
#endif

#if defined(MLI_AVX512) || defined(MLI_AVX2) || defined(MLI_NEON)
#define MLI_PANELS
typedef int8_t mli_q;
#else
typedef int16_t mli_q; /* compilers find instructions for sums of products of these */
#endif

/* A block of activations. */
typedef struct mli_block_x {
    mli_q q[MLI_BLOCK];
#ifdef MLI_VNNI
    int32_t start[MLI_BLOCK / 4]; /* -128 times the sum of each four q */
#endif
} mli_block_x;

#if defined(MLI_AVX512) || defined(MLI_AVX2)

typedef __m256i mli_bytes;
typedef __m256 mli_scales, mli_sums; /* scales: the four in either half */

MLI_INLINE mli_bytes mli_bytes_load(const void *q) { return _mm256_loadu_si256((const __m256i *)q); }
/* The low four bits of 16 bytes, then the high ones, each at the top of a byte. */
MLI_INLINE mli_bytes mli_bytes_load_nibbles(const void *q) {
    __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)q));
#if defined(MLI_VNNI) && defined(__GFNI__) /* in one instruction: each byte times a matrix of 8 x 8 bits */
    const int64_t low = 0x01020408, high = 0x10204080; /* each byte a row, the one of the highest bit first */
    return _mm256_gf2p8affine_epi64_epi8(twice, _mm256_setr_epi64x(low, low, high, high), 0);
#else
    __m256i shifted = _mm256_sllv_epi32(twice, _mm256_setr_epi32(4, 4, 4, 4, 0, 0, 0, 0));
    return _mm256_and_si256(shifted, _mm256_set1_epi8(-16));
#endif
}
MLI_INLINE mli_bytes mli_bytes_flip(mli_bytes a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-128)); }
MLI_INLINE void mli_bytes_store(void *q, mli_bytes a) { _mm256_storeu_si256((__m256i *)q, a); }
MLI_INLINE mli_scales mli_scales_set(float a) { return _mm256_set1_ps(a); }
MLI_INLINE mli_scales mli_scales_multiply(uint64_t f16, const float *x) { /* four F16 numbers times x (4) */
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi64x((int64_t)f16)),
                         _mm256_broadcast_ps((const __m128 *)(const void *)x));
}
#ifndef MLI_VNNI
MLI_INLINE __m256i mli_dot_bytes(__m256i sum, __m256i w, __m256i x) { /* sum + four products in each lane */
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
MLI_INLINE mli_sums mli_sums_zero(void) { return _mm256_setzero_ps(); }
/* sum + (w . x) * scale j */
MLI_INLINE mli_sums mli_sums_add(mli_sums sum, mli_bytes w, const mli_block_x *x, mli_scales scales, int j) {
#ifdef MLI_VNNI
    __m256i products = _mm256_dpbusd_epi32(mli_bytes_load(x->start), w, mli_bytes_load(x->q));
#else
    __m256i products = mli_dot_bytes(_mm256_setzero_si256(), w, mli_bytes_load(x->q));
#endif
    __m256 scale = _mm256_permutevar_ps(scales, _mm256_set1_epi32(j));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sum);
}
MLI_INLINE float mli_sums_total(mli_sums sum) {
    sum = _mm256_add_ps(sum, _mm256_movehdup_ps(sum));
    sum = _mm256_add_ps(sum, _mm256_permute_ps(sum, 2));
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1)));
}

#if defined(MLI_AVX512)
typedef __m512i mli_ints;
enum { MLI_PANEL_ROWS = 6 };
MLI_INLINE mli_ints mli_ints_set(int32_t a) { return _mm512_set1_epi32(a); }
MLI_INLINE mli_ints mli_ints_dot(mli_ints sum, const uint32_t *w, mli_ints x) {
#ifdef MLI_VNNI
    return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(w), x);
#else
    __m512i q = _mm512_loadu_si512(w);
    __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(q), _mm512_setzero_si512(), x);
    __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(q), signed_x);
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}
MLI_INLINE mli_v mli_ints_to_v(mli_ints a) { return _mm512_maskz_cvtepi32_ps(0xffff, a); }
#else
typedef __m256i mli_ints;
enum { MLI_PANEL_ROWS = 4 };
MLI_INLINE mli_ints mli_ints_set(int32_t a) { return _mm256_set1_epi32(a); }
MLI_INLINE mli_ints mli_ints_dot(mli_ints sum, const uint32_t *w, mli_ints x) {
    return mli_dot_bytes(sum, mli_bytes_load(w), x);
}
MLI_INLINE mli_v mli_ints_to_v(mli_ints a) { return _mm256_cvtepi32_ps(a); }
#endif

#elif defined(MLI_NEON)

typedef uint8x16x2_t mli_bytes;
typedef float32x4_t mli_sums;
typedef struct mli_scales {
    float of[4];
} mli_scales;

MLI_INLINE mli_bytes mli_bytes_load(const uint8_t *q) {
    mli_bytes a = {{vld1q_u8(q), vld1q_u8(q + 16)}};
    return a;
}
MLI_INLINE mli_bytes mli_bytes_load_nibbles(const uint8_t *q) {
    mli_bytes a = {{vshlq_n_u8(vld1q_u8(q), 4), vandq_u8(vld1q_u8(q), vdupq_n_u8(0xf0))}};
    return a;
}
MLI_INLINE mli_bytes mli_bytes_flip(mli_bytes a) {
    mli_bytes b = {{veorq_u8(a.val[0], vdupq_n_u8(128)), veorq_u8(a.val[1], vdupq_n_u8(128))}};
    return b;
}
MLI_INLINE void mli_bytes_store(uint8_t *q, mli_bytes a) {
    vst1q_u8(q, a.val[0]);
    vst1q_u8(q + 16, a.val[1]);
}
MLI_INLINE mli_scales mli_scales_set(float a) {
    mli_scales scales = {{a, a, a, a}};
    return scales;
}
MLI_INLINE mli_scales mli_scales_multiply(uint64_t f16, const float *x) {
    mli_scales scales;
    vst1q_f32(scales.of, vmulq_f32(vcvt_f32_f16(vcreate_f16(f16)), vld1q_f32(x)));
    return scales;
}
MLI_INLINE int32x4_t mli_dot_bytes(int32x4_t sum, uint8x16_t w, int8x16_t x) {
    int8x16_t q = vreinterpretq_s8_u8(w);
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum, q, x);
#else /* two products, each at most 128 * 127, fit in 16 bits */
    return vpadalq_s16(sum, vpaddq_s16(vmull_s8(vget_low_s8(q), vget_low_s8(x)), vmull_high_s8(q, x)));
#endif
}
MLI_INLINE mli_sums mli_sums_zero(void) { return vdupq_n_f32(0); }
MLI_INLINE mli_sums mli_sums_add(mli_sums sum, mli_bytes w, const mli_block_x *x, mli_scales scales, int j) {
    int32x4_t products = mli_dot_bytes(vdupq_n_s32(0), w.val[0], vld1q_s8(x->q));
    products = mli_dot_bytes(products, w.val[1], vld1q_s8(x->q + 16));
    return vfmaq_n_f32(sum, vcvtq_f32_s32(products), scales.of[j]);
}
MLI_INLINE float mli_sums_total(mli_sums sum) { return vaddvq_f32(sum); }

typedef int32x4_t mli_ints;
enum { MLI_PANEL_ROWS = 4 };
MLI_INLINE mli_ints mli_ints_set(int32_t a) { return vdupq_n_s32(a); }
MLI_INLINE mli_ints mli_ints_dot(mli_ints sum, const uint32_t *w, mli_ints x) {
    return mli_dot_bytes(sum, vreinterpretq_u8_u32(vld1q_u32(w)), vreinterpretq_s8_s32(x));
}
MLI_INLINE mli_v mli_ints_to_v(mli_ints a) { return vcvtq_f32_s32(a); }

#else

typedef struct mli_bytes {
    mli_q q[MLI_BLOCK];
} mli_bytes;
typedef struct mli_scales {
    float of[4];
} mli_scales;
typedef float mli_sums;

MLI_INLINE mli_bytes mli_bytes_load(const uint8_t *q) {
    mli_bytes a;
    for (int i = 0; i < MLI_BLOCK; i++) a.q[i] = (int8_t)q[i];
    return a;
}
MLI_INLINE mli_bytes mli_bytes_load_nibbles(const uint8_t *q) {
    mli_bytes a;
    for (int i = 0; i < MLI_BLOCK / 2; i++) {
        a.q[i] = (int8_t)(q[i] << 4);
        a.q[i + MLI_BLOCK / 2] = (int8_t)(q[i] & 0xf0);
    }
    return a;
}
MLI_INLINE mli_bytes mli_bytes_flip(mli_bytes a) {
    for (int i = 0; i < MLI_BLOCK; i++) a.q[i] = (mli_q)(a.q[i] ^ -128);
    return a;
}
MLI_INLINE mli_scales mli_scales_set(float a) {
    mli_scales scales = {{a, a, a, a}};
    return scales;
}
MLI_INLINE mli_scales mli_scales_multiply(uint64_t f16, const float *x) {
    mli_scales scales;
    for (int i = 0; i < 4; i++) scales.of[i] = mli_f16_to_f32((uint16_t)(f16 >> 16 * i & 0xffff)) * x[i];
    return scales;
}
MLI_INLINE mli_sums mli_sums_zero(void) { return 0; }
MLI_INLINE mli_sums mli_sums_add(mli_sums sum, mli_bytes w, const mli_block_x *x, mli_scales scales, int j) {
    int32_t products = 0;
    for (int i = 0; i < MLI_BLOCK; i++) products += w.q[i] * x->q[i];
    return sum + (float)products * scales.of[j];
}
MLI_INLINE float mli_sums_total(mli_sums sum) { return sum; }

#endif

/* The numbers of a block of weights, from its bytes after the scale. Those of Q4_0 stay at the top of a byte: they
   are 16 times too large, and sums of them are multiplied by mli_bytes_unit in the end. Q8_0 is stored signed; Q4_0
   with an offset of 8, which times 16 is 128. Flipping the highest bit of a byte adds 128 or takes it away. */
MLI_INLINE mli_bytes mli_bytes_of(ml_type type, const uint8_t *q) {
    mli_bytes bytes = type == ML_Q4_0 ? mli_bytes_load_nibbles(q) : mli_bytes_load(q);
#ifdef MLI_VNNI
    return type == ML_Q4_0 ? bytes : mli_bytes_flip(bytes);
#else
    return type == ML_Q4_0 ? mli_bytes_flip(bytes) : bytes;
#endif
}

MLI_INLINE float mli_bytes_unit(ml_type type) { return type == ML_Q4_0 ? 1.0f / 16 : 1.0f; }

/* ---- quantizing the activations ---- */

/* Rows of x (rows, 32 * blocks) as blocks. */
typedef struct mli_activations {
    size_t rows, blocks;
    mli_block_x *q; /* (rows, blocks) */
    float *scale;   /* (rows, blocks) */
    int32_t *start; /* (rows, blocks): -128 times the sum of q */
} mli_activations;

typedef struct mli_quantize_job {
    const float *x;
    mli_activations to;
    int n_tasks;
} mli_quantize_job;

/* q (32) and *scale: x (32) = q * scale, |q| <= 127, rounded to nearest even. A block that holds an infinity or a NaN
   gets the scale NaN, so that y is NaN as it would be in floats. */
static void mli_quantize_block(const float *x, mli_q *q, float *scale) {
    uint32_t bits = 0; /* of the largest |x|: without sign, floats are ordered like their bits, NaN last */
    for (int i = 0; i < MLI_BLOCK; i++) bits = MLI_MAX(bits, mli_float_bits(x[i]) & 0x7fffffffu);
    float factor = 127.0f / mli_bits_float(bits);
    *scale = mli_bits_float(bits) / 127.0f;
    if (bits >= 0x7f800000u || bits < 0x0d800000u) { /* not finite, or below 2^-100, which counts as 0 */
        *scale = bits >= 0x7f800000u ? mli_bits_float(0x7fc00000u) : 0;
        memset(q, 0, MLI_BLOCK * sizeof *q);
        return;
    }
    for (int i = 0; i < MLI_BLOCK; i++) {
        float shifted = x[i] * factor;
        shifted += 12582912.0f; /* 1.5 * 2^23, where floats are integers: the addition rounds */
        q[i] = (int8_t)(mli_float_bits(shifted) & 0xff);
    }
}

/* Fills in what follows from q; returns -128 times its sum. */
static int32_t mli_finish_block(mli_block_x *x) {
#ifdef MLI_VNNI
    __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(-128), mli_bytes_load(x->q));
    fours = _mm256_sub_epi32(_mm256_setzero_si256(), fours);
    mli_bytes_store(x->start, fours);
    int32_t sum = 0;
    for (int i = 0; i < 8; i++) sum += x->start[i];
    return sum;
#else
    (void)x;
    return 0;
#endif
}

static void mli_quantize_task(void *arg, int index) {
    const mli_quantize_job *job = (const mli_quantize_job *)arg;
    size_t begin, end;
    mli_share(job->to.rows * job->to.blocks, 1, job->n_tasks, index, &begin, &end);
    for (size_t b = begin; b < end; b++) {
        mli_quantize_block(job->x + b * MLI_BLOCK, job->to.q[b].q, job->to.scale + b);
        job->to.start[b] = mli_finish_block(&job->to.q[b]);
    }
}

/* Bytes of memory for n rows of activations; cols is a multiple of 32. */
static size_t mli_integer_bytes(size_t n, size_t cols) {
    const size_t block = sizeof(mli_block_x) + sizeof(int32_t) + sizeof(float);
    size_t bytes;
    if (!mli_mul_size(cols / MLI_BLOCK, block, &bytes) || !mli_mul_size(n, bytes, &bytes)) return SIZE_MAX;
    return bytes;
}

/* The activations that memory holds, aligned for a float at least, best at 64. */
static mli_activations mli_activations_in(void *memory, size_t n, size_t cols) {
    mli_activations x = {n, cols / MLI_BLOCK, (mli_block_x *)memory, NULL, NULL};
    x.scale = (float *)(void *)(x.q + n * x.blocks);
    x.start = (int32_t *)(void *)(x.scale + n * x.blocks);
    return x;
}

/* x (n, cols) quantized into memory. */
static mli_activations mli_integer_quantize(const ml_threads *threads, const float *x, size_t n, size_t cols,
                                            void *memory) {
    mli_quantize_job job = {x, mli_activations_in(memory, n, cols),
                            mli_task_count(threads, n * cols, 1 << 15)};
    mli_parallel(threads, job.n_tasks, mli_quantize_task, &job);
    return job.to;
}

/* y (x.rows, w.rows; a row every y_stride) = x . w^T */
typedef struct mli_integer_job {
    const ml_tensor *w; /* quantized, (n, 32 * x.blocks) */
    mli_activations x;
    float *y;
    size_t y_stride;
} mli_integer_job;

/* ---- few rows of activations ---- */

#ifdef MLI_PANELS
enum { MLI_FEW = 2 }; /* rows of x that a row of weights meets at once */
#else
enum { MLI_FEW = 8 };
#endif

/* A position in a row of weights and in the row of x. */
typedef struct mli_position {
    const uint8_t *w;
    const mli_block_x *x;
    const float *x_scale;
    size_t x_stride; /* to the next row of x, in blocks */
} mli_position;

/* The scales of four blocks side by side, assembled in integer registers, which are idle here. */
MLI_INLINE uint64_t mli_four_scales(const uint8_t *w, size_t bytes) {
    uint16_t half[4];
    for (int i = 0; i < 4; i++) memcpy(half + i, w + (size_t)i * bytes, sizeof *half);
    return (half[0] | (uint32_t)half[1] << 16) | (uint64_t)(half[2] | (uint32_t)half[3] << 16) << 32;
}

/* sum (n_x) += w . x (n_x) for the next `count` blocks, 4 or 1. Returns the position after them. */
MLI_INLINE mli_position mli_integer_blocks(ml_type type, int n_x, int count, mli_sums *sum, mli_position at) {
    const size_t bytes = mli_types[type].bytes;
    mli_scales scales[MLI_FEW];
    MLI_UNROLL
    for (int i = 0; i < n_x; i++) {
        const float *x_scale = at.x_scale + (size_t)i * at.x_stride;
        scales[i] = count == 4 ? mli_scales_multiply(mli_four_scales(at.w, bytes), x_scale)
                               : mli_scales_set(mli_load_scale(at.w) * *x_scale);
    }
    at.x_scale += count;
    MLI_UNROLL
    for (int j = 0; j < count; j++, at.w += bytes, at.x++) {
        mli_bytes w = mli_bytes_of(type, at.w + 2);
        MLI_UNROLL
        for (int i = 0; i < n_x; i++)
            sum[i] = mli_sums_add(sum[i], w, at.x + (size_t)i * at.x_stride, scales[i], j);
    }
    return at;
}

/* Columns col .. col + n_cols - 1 of n_x rows of y, from `row` on. type and n_x are constants where it is inlined. */
MLI_INLINE void mli_integer_rows(ml_type type, int n_x, const mli_integer_job *job, size_t row, size_t col,
                                 size_t n_cols) {
    const mli_activations *x = &job->x;
    mli_position at = {(const uint8_t *)job->w->data + col * x->blocks * mli_types[type].bytes, NULL, NULL,
                       x->blocks};
    float *y = job->y + row * job->y_stride + col;
    for (; n_cols; n_cols--, y++) {
        mli_sums sum[MLI_FEW];
        size_t left = x->blocks;
        at.x = x->q + row * x->blocks;
        at.x_scale = x->scale + row * x->blocks;
        MLI_UNROLL
        for (int i = 0; i < n_x; i++) sum[i] = mli_sums_zero();
        for (; left >= 4; left -= 4) at = mli_integer_blocks(type, n_x, 4, sum, at);
        for (; left; left--) at = mli_integer_blocks(type, n_x, 1, sum, at);
        MLI_UNROLL
        for (int i = 0; i < n_x; i++)
            y[(size_t)i * job->y_stride] = mli_sums_total(sum[i]) * mli_bytes_unit(type);
    }
}

#define MLI_INTEGER_FORMAT(name, type)                                                                       \
    static void name(const mli_integer_job *job, size_t row, size_t n_rows, size_t col, size_t n_cols) {     \
        if (n_rows == 1)                                                                                     \
            mli_integer_rows(type, 1, job, row, col, n_cols);                                                \
        else                                                                                                 \
            mli_integer_rows(type, MLI_FEW, job, row, col, n_cols);                                          \
    }
MLI_INTEGER_FORMAT(mli_few_q8_0, ML_Q8_0)
MLI_INTEGER_FORMAT(mli_few_q4_0, ML_Q4_0)
#undef MLI_INTEGER_FORMAT

/* Columns col .. col + n - 1 of y. Rows of w are read one after another: the processor then sees a single stream and
   fetches it ahead, which made decoding 2.5 times faster than reading four rows side by side. */
static void mli_integer_few(const mli_integer_job *job, size_t col, size_t n) {
    const size_t rows = job->x.rows;
    for (size_t count, end = col + n; col < end; col += count) {
        count = MLI_MIN(end - col, 8); /* rows of w that the cache keeps for the next rows of x */
        for (size_t row = 0, n_rows; row < rows; row += n_rows) {
            n_rows = rows - row < MLI_FEW ? 1 : MLI_FEW;
            mli_type(job->w->type)->few(job, row, n_rows, col, count);
        }
    }
}

/* ---- many rows of activations ---- */

typedef struct mli_integer_tasks {
    const mli_integer_job *job;
    void *panels; /* (n_tasks, x.blocks) */
    int n_tasks;
} mli_integer_tasks;

#ifdef MLI_PANELS
enum { MLI_PANEL_VECTORS = 2, MLI_PANEL_COLS = MLI_PANEL_VECTORS * MLI_LANES };

/* One block each of MLI_PANEL_COLS rows of w. A word is four bytes of one row, so that a vector has the same four
   positions of MLI_LANES rows. Rows beyond the last have the scale 0. */
typedef struct mli_panel {
    uint32_t q[MLI_BLOCK / 4][MLI_PANEL_COLS];
    float scale[MLI_PANEL_COLS];
} mli_panel;

#define MLI_EACH_SUM                                                                                         \
    MLI_UNROLL                                                                                               \
    for (int r = 0; r < MLI_PANEL_ROWS; r++) MLI_UNROLL                                                      \
    for (int v = 0; v < MLI_PANEL_VECTORS; v++)

/* y (MLI_PANEL_ROWS, MLI_PANEL_COLS; a row every y_stride) = x from `row` on . w (x.blocks)^T. Rows beyond the last
   of x repeat it. */
static void mli_integer_tile(const mli_activations *x, size_t row, const mli_panel *w, float *y,
                             size_t y_stride) {
    mli_v sum[MLI_PANEL_ROWS][MLI_PANEL_VECTORS];
    mli_ints ints[MLI_PANEL_ROWS][MLI_PANEL_VECTORS];
    size_t at[MLI_PANEL_ROWS]; /* blocks of x */
    MLI_UNROLL
    for (int r = 0; r < MLI_PANEL_ROWS; r++) at[r] = MLI_MIN(row + (size_t)r, x->rows - 1) * x->blocks;
    MLI_EACH_SUM sum[r][v] = mli_v_zero();
    for (size_t b = 0; b < x->blocks; b++, w++) {
        MLI_EACH_SUM ints[r][v] = mli_ints_set(x->start[at[r] + b]);
        MLI_UNROLL
        for (int j = 0; j < MLI_BLOCK / 4; j++) {
            MLI_EACH_SUM {
                int32_t four;
                memcpy(&four, x->q[at[r] + b].q + 4 * j, sizeof four);
                ints[r][v] = mli_ints_dot(ints[r][v], w->q[j] + v * MLI_LANES, mli_ints_set(four));
            }
        }
        MLI_EACH_SUM {
            mli_v product = mli_v_mul(mli_ints_to_v(ints[r][v]), mli_v_load(w->scale + v * MLI_LANES));
            sum[r][v] = mli_v_fma(product, mli_v_set(x->scale[at[r] + b]), sum[r][v]);
        }
    }
    MLI_EACH_SUM mli_v_store(y + (size_t)r * y_stride + v * MLI_LANES, sum[r][v]);
}
#undef MLI_EACH_SUM

/* panel (blocks) = rows first .. first + MLI_PANEL_COLS - 1 of w */
static void mli_integer_pack(const ml_tensor *w, size_t first, mli_panel *panel) {
    const mli_type_info *type = mli_type(w->type);
    size_t blocks = w->cols / MLI_BLOCK, n = MLI_MIN(w->rows - first, (size_t)MLI_PANEL_COLS);
    const uint8_t *block = (const uint8_t *)w->data + first * blocks * type->bytes;
    if (n < MLI_PANEL_COLS) memset(panel, 0, blocks * sizeof *panel);
    for (size_t c = 0; c < n; c++)
        for (size_t b = 0; b < blocks; b++, block += type->bytes) {
            uint8_t q[MLI_BLOCK];
            mli_bytes_store(q, mli_bytes_of(w->type, block + 2));
            for (int j = 0; j < MLI_BLOCK / 4; j++) memcpy(&panel[b].q[j][c], q + 4 * j, sizeof(uint32_t));
            panel[b].scale[c] = mli_load_scale(block) * mli_bytes_unit(w->type);
        }
}

/* This task's columns of y, a panel at a time. Tiles that reach beyond y are computed elsewhere and copied. */
static void mli_integer_many_task(void *arg, int index) {
    const mli_integer_tasks *tasks = (const mli_integer_tasks *)arg;
    const mli_integer_job *job = tasks->job;
    const mli_activations *x = &job->x;
    mli_panel *panel = (mli_panel *)tasks->panels + (size_t)index * x->blocks;
    float edge[+MLI_PANEL_ROWS * +MLI_PANEL_COLS];
    size_t begin, end;
    mli_share(job->w->rows, MLI_PANEL_COLS, tasks->n_tasks, index, &begin, &end);
    for (size_t col = begin; col < end; col += MLI_PANEL_COLS) {
        mli_integer_pack(job->w, col, panel);
        for (size_t row = 0; row < x->rows; row += MLI_PANEL_ROWS) {
            size_t n_rows = MLI_MIN(MLI_PANEL_ROWS, x->rows - row),
                   n_cols = MLI_MIN(MLI_PANEL_COLS, end - col);
            float *y = job->y + row * job->y_stride + col;
            if (n_rows == MLI_PANEL_ROWS && n_cols == MLI_PANEL_COLS) {
                mli_integer_tile(x, row, panel, y, job->y_stride);
                continue;
            }
            mli_integer_tile(x, row, panel, edge, MLI_PANEL_COLS);
            for (size_t r = 0; r < n_rows; r++)
                memcpy(y + r * job->y_stride, edge + r * MLI_PANEL_COLS, n_cols * sizeof *y);
        }
    }
}

#else

/* Without vectors, panels gain nothing. */
enum { MLI_PANEL_COLS = 8 };
typedef char mli_panel;

static void mli_integer_many_task(void *arg, int index) {
    const mli_integer_tasks *tasks = (const mli_integer_tasks *)arg;
    size_t begin, end;
    mli_share(tasks->job->w->rows, MLI_PANEL_COLS, tasks->n_tasks, index, &begin, &end);
    mli_integer_few(tasks->job, begin, end - begin);
}

#endif

/* How many tasks are worth starting for y (m, n): each gets at least one panel. */
static int mli_integer_task_count(const ml_threads *threads, size_t m, size_t n) {
    size_t panels = MLI_MAX((n + MLI_PANEL_COLS - 1) / MLI_PANEL_COLS, 1);
    size_t tasks = (size_t)mli_task_count(threads, m * n, 4096);
    return (int)MLI_MIN(tasks, panels);
}

/* Bytes of work for mli_integer_many with m rows of x and w (n, k); SIZE_MAX if they cannot be counted. */
static size_t mli_integer_work(const ml_threads *threads, size_t m, size_t n, size_t k) {
    size_t bytes, tasks = (size_t)mli_integer_task_count(threads, m, n);
    if (!mli_mul_size(k / MLI_BLOCK, sizeof(mli_panel), &bytes) || !mli_mul_size(tasks, bytes, &bytes))
        return SIZE_MAX;
    return mli_add_size(bytes, MLI_ALIGN, &bytes) ? bytes : SIZE_MAX;
}

/* All of y. */
static void mli_integer_many(const ml_threads *threads, const mli_integer_job *job, void *work) {
    mli_integer_tasks tasks;
    tasks.job = job;
    tasks.panels = (void *)mli_align_up((uintptr_t)work);
    tasks.n_tasks = mli_integer_task_count(threads, job->x.rows, job->w->rows);
    mli_parallel(threads, tasks.n_tasks, mli_integer_many_task, &tasks);
}

/* ==== >>linear ====
   y = x . W^T for any type of W and any number of rows of x: with few rows mli_matvec (>>products) or, for
   quantized weights, its counterpart in >>integers; with many rows matrix multiply. */

/* For up to this many rows of x each weight is read and used at once. For more, packing W pays, which costs about as
   much as multiplying it by ten rows. */
enum { MLI_FEW_ROWS = 12, MLI_FEW_ROWS_QUANTIZED = 4 };

static int mli_is_few(ml_type type, size_t n) {
    return n <= (size_t)(mli_is_quantized(type) ? MLI_FEW_ROWS_QUANTIZED : MLI_FEW_ROWS);
}

typedef struct mli_few_rows {
    const float *x;    /* (n, in) */
    mli_activations q; /* the same, for quantized weights */
    size_t n, in;
    const mli_linear_job *jobs;
    int n_jobs, n_tasks;
} mli_few_rows;

/* This task's share of the rows of each weight. */
static void mli_few_rows_task(void *arg, int index) {
    const mli_few_rows *few = (const mli_few_rows *)arg;
    for (int j = 0; j < few->n_jobs; j++) {
        const ml_tensor *w = few->jobs[j].w;
        float *y = few->jobs[j].y;
        size_t row_bytes = ml_type_row_bytes(w->type, few->in), begin, end;
        mli_share(w->rows, 8, few->n_tasks, index, &begin, &end);
        if (begin == end || !mli_is_few(w->type, few->n)) continue;
        if (mli_is_quantized(w->type)) {
            mli_integer_job job = {w, few->q, y, w->rows};
            mli_integer_few(&job, begin, end - begin);
        } else {
            const char *rows = (const char *)w->data + begin * row_bytes;
            mli_matvec_job job = {y + begin, few->x,  rows,    few->n,   end - begin,
                                  few->in,   w->rows, few->in, row_bytes};
            mli_matvec(w->type, &job);
        }
    }
}

static size_t mli_linear_work(const ml_threads *threads, size_t n, size_t max_in, size_t max_out) {
    size_t floats = n > MLI_FEW_ROWS ? mli_gemm_work(threads, n, max_out, max_in) : 0;
    size_t panels = n > MLI_FEW_ROWS_QUANTIZED ? mli_integer_work(threads, n, max_out, max_in) : 0, integers;
    if (!mli_add_size(mli_integer_bytes(n, max_in), panels, &integers)) return SIZE_MAX;
    return mli_add_size(MLI_MAX(floats, integers), MLI_ALIGN, &integers) ? integers : SIZE_MAX;
}

/* The products in floats come first, because the quantized activations then reuse their scratch. With few rows the
   threads are woken once for all weights. */
static void mli_linear(const ml_threads *threads, const float *x, size_t n, size_t in,
                       const mli_linear_job *jobs, int n_jobs, void *work) {
    mli_few_rows few = {x, {0, 0, NULL, NULL, NULL}, n, in, jobs, n_jobs, 1};
    char *memory = (char *)mli_align_up((uintptr_t)work);
    size_t few_bytes = 0;
    int quantized = 0;
    for (int j = 0; j < n_jobs; j++) {
        const ml_tensor *w = jobs[j].w;
        quantized |= mli_is_quantized(w->type);
        if (mli_is_few(w->type, n)) {
            few_bytes += w->rows * ml_type_row_bytes(w->type, in);
        } else if (!mli_is_quantized(w->type)) {
            mli_operand transposed = {w->type, w->data, 1, in};
            mli_gemm(threads, n, w->rows, in, mli_matrix(x, in, 1), transposed, jobs[j].y, w->rows, 0, work);
        }
    }
    if (quantized) few.q = mli_integer_quantize(threads, x, n, in, memory);
    for (int j = 0; j < n_jobs; j++) {
        mli_integer_job job = {jobs[j].w, few.q, jobs[j].y, jobs[j].w->rows};
        if (mli_is_quantized(job.w->type) && !mli_is_few(job.w->type, n))
            mli_integer_many(threads, &job, memory + mli_integer_bytes(n, in));
    }
    if (!few_bytes) return;
    few.n_tasks = mli_task_count(threads, few_bytes, 1 << 17); /* reading them is what takes the time */
    mli_parallel(threads, few.n_tasks, mli_few_rows_task, &few);
}
/* SOURCES, by the section that uses them first.
   >>random      Blackman & Vigna 2018, "Scrambled Linear Pseudorandom Number Generators". Box & Muller 1958, "A Note
                 on the Generation of Random Normal Deviates".
   >>graph       Linnainmaa 1976, "Taylor Expansion of the Accumulated Rounding Error" (reverse mode).
   >>layers      Bengio et al. 2003, "A Neural Probabilistic Language Model" (embedding). Zhang & Sennrich 2019, "Root
                 Mean Square Layer Normalization". Ba, Kiros & Hinton 2016, "Layer Normalization". He et al. 2016,
                 "Deep Residual Learning for Image Recognition". Shazeer 2020, "GLU Variants Improve Transformer". Su
                 et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding". Chen et al. 2023,
                 "Extending Context Window of Large Language Models via Positional Interpolation". Vaswani et al.
                 2017, "Attention Is All You Need". Ainslie et al. 2023, "GQA: Training Generalized Multi-Query
                 Transformer Models from Multi-Head Checkpoints". Dao et al. 2022, "FlashAttention: Fast and
                 Memory-Efficient Exact Attention with IO-Awareness".
   >>network     Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models". Chen et al. 2016,
                 "Training Deep Nets with Sublinear Memory Cost" (checkpointing). Press & Wolf 2017, "Using the Output
                 Embedding to Improve Language Models" (tied output).
   >>session     Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need" (KV cache). nostalgebraist
                 2020, "interpreting GPT: the logit lens".
   >>heads       Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting". Bridle
                 1990, "Probabilistic Interpretation of Feedforward Classification Network Outputs" (softmax). Szegedy
                 et al. 2016, "Rethinking the Inception Architecture for Computer Vision" (label smoothing).
   >>operations  Hendrycks & Gimpel 2016, "Gaussian Error Linear Units (GELUs)". Kullback & Leibler 1951, "On
                 Information and Sufficiency".
   >>training    Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization". Loshchilov & Hutter 2019, "Decoupled
                 Weight Decay Regularization"; 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts" (cosine).
   >>adapters    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Kalajdzievski 2023, "A Rank
                 Stabilization Scaling Factor for Fine-Tuning with LoRA".
   >>tokenizer   Sennrich, Haddow & Birch 2016, "Neural Machine Translation of Rare Words with Subword Units". Kudo &
                 Richardson 2018, "SentencePiece: A Simple and Language Independent Subword Tokenizer". Johnson 1975,
                 "Priority Queues with Update and Finding Minimum Spanning Trees" (the heap with four children).
   >>generation  Fan, Lewis & Dauphin 2018, "Hierarchical Neural Story Generation" (top-k). Holtzman et al. 2020, "The
                 Curious Case of Neural Text Degeneration" (top-p). Nguyen et al. 2024, "Turning Up the Heat: Min-p
                 Sampling". Hewitt, Manning & Liang 2022, "Truncation Sampling as Language Model Desmoothing"
                 (epsilon). Keskar et al. 2019, "CTRL: A Conditional Transformer Language Model for Controllable
                 Generation" (repetition penalty).
   >>bytes       Williams 1964, "Algorithm 232: Heapsort".
   >>writing     Peterson & Brown 1961, "Cyclic Codes for Error Detection".
   >>json        Clinger 1990, "How to Read Floating Point Numbers Accurately".
   formats       ggml's docs/gguf.md; safetensors' README; Python's pickletools.py; PKWARE's APPNOTE 6.3; RFC 8259
                 (JSON); llama2.c's export.py; sentencepiece_model.proto; PEFT's documentation.
   >>vectors     Cody & Waite 1980, "Software Manual for the Elementary Functions" (e^x).
   >>products    Goto & van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication". Van Zee & van de Geijn
                 2015, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality".
   >>numbers     IEEE 754-2019. Boldo & Melquiond 2008, "Emulation of a FMA and Correctly Rounded Sums: Proved
                 Algorithms Using Rounding to Odd". ggml's ggml-common.h and ggml-quants.c (layouts of blocks). */

#if defined(__cplusplus) && defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#endif /* MINILLAMA_IMPLEMENTATION */

/* LICENSE: choose whichever you prefer.

   A - MIT No Attribution. Copyright (c) 2026 minillama.h contributors. Permission is hereby granted, free of charge,
   to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the
   Software without restriction, including without limitation the rights to use, copy, modify, merge, publish,
   distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished
   to do so.

   B - Public domain (www.unlicense.org). This is free and unencumbered software released into the public domain.
   Anyone is free to copy, modify, publish, use, compile, sell, or distribute this software, either in source code
   form or as a compiled binary, for any purpose, commercial or non-commercial, and by any means.

   In either case THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
   NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT
   SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
   CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
   IN THE SOFTWARE. */
