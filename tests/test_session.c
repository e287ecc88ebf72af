/* Sessions: prefixes, encoding, embeddings, likelihood, saving, and generation that continues what a session
   holds. */
#include "preamble.h"
#include "models.h"
#include <limits.h>
#include "shared.h"

#define N_LETTERS 26
#define V                                                                                                    \
    (3 + 256 + 2 * N_LETTERS) /* <unk>, bos, eos, the bytes, the letters, and each letter after a space */

static ml_error failure;

/* ---- models and tokenizers made here ---- */

static ml_config small_config(ml_mask mask) {
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = 32;
    c.hidden_dim = 48;
    c.n_layers = 2;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    c.vocab_size = V;
    c.max_seq_len = 40;
    c.mask = mask;
    return c;
}

static ml_model *random_model(const ml_config *config, uint64_t seed) {
    ml_random random;
    ml_model_create_desc desc;
    ml_model *model = NULL;
    memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, seed);
    desc.config = *config;
    desc.random = &random;
    if (ml_model_create(&desc, &model, &failure)) {
        printf("%s\n", failure.text);
        exit(2);
    }
    for (int i = 0; i < model->n_tensors;
         i++) { /* weights of 0.02 would make all tokens nearly equally likely */
        float *x = (float *)model->tensors[i].data;
        if (!x || model->tensors[i].rows == 1) continue;
        for (size_t j = 0; j < model->tensors[i].rows * model->tensors[i].cols; j++) x[j] *= 12;
    }
    return model;
}

static size_t put(unsigned char *to, size_t at, const void *data, size_t n) {
    memcpy(to + at, data, n);
    return at + n;
}

/* The four bytes of a number of a file. */
static size_t put_u32(unsigned char *to, size_t at, uint32_t value) {
    for (int i = 0; i < 4; i++) to[at++] = (unsigned char)(value >> 8 * i);
    return at;
}

static size_t put_f32(unsigned char *to, size_t at, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put_u32(to, at, bits);
}

static size_t put_piece(unsigned char *to, size_t at, const char *text, float score) {
    uint32_t n = (uint32_t)strlen(text);
    at = put_f32(to, at, score);
    at = put_u32(to, at, n);
    return put(to, at, text, n);
}

/* A vocabulary in llama2.c's format. A letter and the space before it merge. */
static ml_tokenizer *letters(void) {
    static unsigned char file[V * 32];
    size_t at = put_u32(file, 0, 16); /* the longest */
    char text[16];
    at = put_piece(file, at, "<unk>", 0);
    at = put_piece(file, at, "\n<s>\n", 0);
    at = put_piece(file, at, "\n</s>\n", 0);
    for (unsigned i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", i);
        at = put_piece(file, at, text, 0);
    }
    for (int i = 0; i < 2 * N_LETTERS; i++) {
        snprintf(text, sizeof text, "%s%c", i < N_LETTERS ? "" : " ", 'a' + i % N_LETTERS);
        at = put_piece(file, at, text, (float)-i);
    }
    ml_tokenizer *tokenizer = NULL;
    if (ml_tokenizer_load_memory(file, at, NULL, &tokenizer, &failure) || tokenizer->n_pieces != V) exit(2);
    return tokenizer;
}

/* A letter's id inside a word, and the id of a space with the letter. */
static int32_t letter(char c) { return 3 + 256 + c - 'a'; }
static int32_t spaced(char c) { return letter(c) + N_LETTERS; }

static ml_model *letter_model(ml_mask mask, uint64_t seed) {
    ml_config c = small_config(mask);
    ml_model *model = random_model(&c, seed);
    if (ml_model_set_tokenizer(model, letters(), &failure)) exit(2);
    return model;
}

static ml_session *new_session(const ml_model *model, int max_seq_len, int max_batch) {
    ml_session_desc desc;
    ml_session *session = NULL;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = max_seq_len;
    desc.max_batch = max_batch;
    if (ml_session_new(model, &desc, &session, &failure)) {
        printf("%s\n", failure.text);
        exit(2);
    }
    return session;
}

static void random_ids(ml_random *random, int32_t *ids, int n) {
    for (int i = 0; i < n; i++) ids[i] = (int32_t)(ml_random_u64(random) % V);
    ids[0] = 1;
}

static int holds(const ml_session *session, const int32_t *ids, int n) {
    return session->length == n && (n == 0 || memcmp(session->tokens, ids, (size_t)n * sizeof *ids) == 0);
}

/* ---- prefixes ---- */

TEST(common_prefix_is_kept) {
    static const int32_t held[6] = {1, 5, 6, 7, 8, 9}, other[6] = {1, 5, 6, 20, 8, 9}, none[2] = {4, 5};
    ml_model *model = letter_model(ML_MASK_CAUSAL, 1);
    ml_session *session = new_session(model, 0, 0), *fresh = new_session(model, 0, 0);
    const struct {
        ml_tokens tokens;
        int kept;
    } cases[] = {{{other, 6}, 3}, {{other, 4}, 3}, {{other, 3}, 2}, {{held, 6}, 5}, /* one stays to be read */
                 {{held, 1}, 0},  {{none, 2}, 0},  {{held, 0}, 0},  {{NULL, 0}, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int kept = -1;
        REQUIRE(!ml_session_truncate(session, 0, NULL) && !ml_session_eval(session, held, 6, NULL, NULL));
        CHECK(ml_session_keep_prefix(session, &cases[i].tokens, &kept, &failure) == ML_OK);
        CHECK(kept == cases[i].kept && holds(session, held, kept));
    }
    /* what is kept is as good as read again */
    const ml_tokens tokens = {other, 6};
    const float *continued, *whole;
    int kept;
    REQUIRE(!ml_session_eval(session, held, 6, NULL, NULL));
    REQUIRE(!ml_session_keep_prefix(session, &tokens, &kept, NULL) && kept == 3);
    REQUIRE(!ml_session_eval(session, other + kept, 6 - kept, &continued, NULL));
    REQUIRE(!ml_session_eval(fresh, other, 6, &whole, NULL));
    CHECK(max_difference(continued, whole, V) < 1e-4);
    CHECK(ml_session_keep_prefix(NULL, &tokens, &kept, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_keep_prefix(session, NULL, &kept, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_keep_prefix(session, &tokens, NULL, NULL) == ML_OK);
    const ml_tokens wrong = {session->tokens, -1};
    CHECK(ml_session_keep_prefix(session, &wrong, NULL, &failure) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "-1 tokens"));
    ml_session_free(session);
    ml_session_free(fresh);
    ml_model_free(model);
}

/* ---- encoding into the session ---- */

TEST(encoded_ids_survive_passes) {
    const int32_t expected[5] = {1, spaced('a'), letter('b'), spaced('c'), 2};
    ml_model *model = letter_model(ML_MASK_CAUSAL, 2);
    ml_session *session = new_session(model, 16, 4);
    ml_tokens tokens, longer;
    int32_t many[16];
    float hidden[4 * 32], logits[4 * V];
    ml_random random;
    CHECK(ml_session_encode(session, "ab c", ML_ADD_BOS | ML_ADD_EOS, &tokens, &failure) == ML_OK);
    REQUIRE(tokens.n == 5 && memcmp(tokens.ids, expected, sizeof expected) == 0);
    ml_random_seed(&random, 1);
    random_ids(&random, many, 16);
    ml_batch batch;
    ml_outputs outputs = {NULL, 0, hidden, logits};
    memset(&batch, 0, sizeof batch);
    batch.tokens = many;
    batch.n_tokens = 4;
    CHECK(!ml_session_eval(session, many, 16, NULL, NULL) &&
          !ml_session_eval_batch(session, &batch, &outputs, NULL));
    ml_generate_desc generate;
    memset(&generate, 0, sizeof generate);
    generate.prompt = "xyz";
    CHECK(!ml_session_generate(session, &generate, NULL, NULL));
    CHECK(tokens.n == 5 && memcmp(tokens.ids, expected, sizeof expected) == 0);
    CHECK(!ml_session_truncate(session, 0, NULL) &&
          !ml_session_eval(session, tokens.ids, tokens.n, NULL, NULL));
    CHECK(holds(session, expected, 5));
    CHECK(ml_session_encode(session, "", 0, &longer, &failure) == ML_OK && longer.n == 0);
    CHECK(ml_session_encode(session, "a a a a a a a a a a a a a a a", ML_ADD_BOS, &longer, &failure) ==
          ML_OK);
    CHECK(longer.n == 16);
    CHECK(ml_session_encode(session, "a a a a a a a a a a a a a a a a", ML_ADD_BOS, &longer, &failure) ==
          ML_ERROR_CONTEXT);
    CHECK(longer.n == 0 && strstr(failure.text, "17 tokens"));
    char text[100000];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    CHECK(ml_session_encode(session, text, 0, &longer, &failure) == ML_ERROR_CONTEXT);
    CHECK(ml_session_encode(session, "a", 64, &longer, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_encode(session, NULL, 0, &longer, &failure) == ML_ERROR_ARGUMENT);
    ml_session_free(session);
    ml_model_free(model);
    ml_config c = small_config(ML_MASK_CAUSAL);
    model = random_model(&c, 1);
    session = new_session(model, 0, 0);
    CHECK(ml_session_encode(session, "a", 0, &longer, &failure) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "no tokenizer"));
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- embeddings ---- */

TEST(embeddings_pool_hidden_states) {
    static const int32_t row_start[4] = {0, 1, 5, 12};
    enum { D = 32, N = 12, ROWS = 3 };
    for (int full = 0; full < 2; full++) {
        ml_model *model = letter_model(full ? ML_MASK_FULL : ML_MASK_CAUSAL, 3);
        ml_session *session = new_session(model, 0, 0);
        ml_random random;
        int32_t ids[N];
        float hidden[N * D], made[ROWS * D];
        ml_batch batch;
        ml_outputs outputs = {NULL, 0, hidden, NULL};
        memset(&batch, 0, sizeof batch);
        ml_random_seed(&random, 2);
        random_ids(&random, ids, N);
        batch.tokens = ids;
        batch.n_tokens = N;
        batch.row_start = row_start;
        batch.n_rows = ROWS;
        REQUIRE(!ml_session_eval(session, ids, 3, NULL, NULL));
        REQUIRE(!ml_session_eval_batch(session, &batch, &outputs, NULL));
        for (int mode = 0; mode < 4; mode++) {
            ml_embed_desc desc = {mode & 1 ? ML_POOL_MEAN : ML_POOL_LAST, mode >> 1};
            CHECK(ml_session_embed(session, &batch, mode ? &desc : NULL, made, &failure) == ML_OK);
            for (int r = 0; r < ROWS; r++) {
                double expected[D], norm = 0;
                for (int j = 0; j < D; j++) {
                    int n = mode & 1 ? row_start[r + 1] - row_start[r] : 1;
                    expected[j] = 0;
                    for (int i = row_start[r + 1] - n; i < row_start[r + 1]; i++)
                        expected[j] += (double)hidden[i * D + j] / n;
                    norm += expected[j] * expected[j];
                }
                for (int j = 0; j < D; j++)
                    CHECK_NEAR(made[r * D + j], expected[j] / (mode >> 1 ? sqrt(norm) : 1), 1e-6, 1e-5);
            }
        }
        batch.row_start = NULL, batch.n_rows = 0; /* one row */
        CHECK(ml_session_embed(session, &batch, NULL, made, &failure) == ML_OK);
        REQUIRE(!ml_session_eval_batch(session, &batch, &outputs, NULL));
        CHECK(memcmp(made, hidden + (N - 1) * D, D * sizeof *made) == 0);
        CHECK(holds(session, ids, 3)); /* the sequence does not change */
        ml_embed_desc wrong = {(ml_pooling)7, 0};
        CHECK(ml_session_embed(session, &batch, &wrong, made, &failure) == ML_ERROR_ARGUMENT);
        CHECK(ml_session_embed(session, &batch, NULL, NULL, &failure) == ML_ERROR_ARGUMENT);
        ids[4] = V;
        CHECK(ml_session_embed(session, &batch, NULL, made, &failure) == ML_ERROR_ARGUMENT);
        ml_session_free(session);
        ml_model_free(model);
    }
}

/* ---- likelihood ---- */

/* log softmax in double precision */
static double log_p(const float *logits, int n, int32_t id) {
    double most = (double)logits[0], sum = 0;
    for (int i = 1; i < n; i++)
        if ((double)logits[i] > most) most = (double)logits[i];
    for (int i = 0; i < n; i++) sum += exp((double)logits[i] - most);
    return (double)logits[id] - most - log(sum);
}

/* From the logits of the whole sequence as a batch; with mask full from a batch of what precedes each token. */
static void expected_log_probs(const ml_model *model, const int32_t *ids, int n_context, int n,
                               double *expected) {
    int vocab = model->config.vocab_size;
    ml_session *session = new_session(model, 0, 0);
    float *logits = (float *)malloc((size_t)n * (size_t)vocab * sizeof *logits);
    ml_outputs outputs = {NULL, 0, NULL, logits};
    ml_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.tokens = ids;
    for (int i = n_context; i < n; i++) {
        batch.n_tokens = model->config.mask == ML_MASK_FULL ? i : n;
        CHECK(ml_session_eval_batch(session, &batch, &outputs, NULL) == ML_OK);
        expected[i - n_context] = log_p(logits + (size_t)(i - 1) * (size_t)vocab, vocab, ids[i]);
    }
    free(logits);
    ml_session_free(session);
}

static void check_likelihood(ml_session *session, const int32_t *ids, int n_context, int n) {
    double expected[64], sum = 0;
    float log_probs[64];
    ml_likelihood_desc desc;
    ml_likelihood got;
    memset(&desc, 0, sizeof desc);
    expected_log_probs(session->model, ids, n_context, n, expected);
    desc.context_ids.ids = ids;
    desc.context_ids.n = n_context;
    desc.continuation_ids.ids = ids + n_context;
    desc.continuation_ids.n = n - n_context;
    desc.log_probs = log_probs;
    desc.max_log_probs = n - n_context;
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK);
    CHECK(got.n_tokens == n - n_context && holds(session, ids, n));
    for (int i = 0; i < n - n_context; i++) {
        CHECK_NEAR(log_probs[i], expected[i], 2e-4, 1e-5);
        sum += expected[i];
    }
    CHECK_NEAR(got.sum, sum, 1e-3, 1e-5);
    desc.log_probs = NULL; /* again, from what the session holds */
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK);
    CHECK_NEAR(got.sum, sum, 1e-3, 1e-5);
}

/* Also where the squares of its numbers are too large or too small for F32. */
TEST(embeddings_have_length_1) {
    static const float factors[] = {1e-25f, 1, 1e22f};
    static const int32_t ids[3] = {1, 2, 3};
    ml_model *model = letter_model(ML_MASK_CAUSAL, 3);
    ml_session *session = new_session(model, 0, 0);
    const ml_embed_desc desc = {ML_POOL_MEAN, 1};
    ml_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.tokens = ids, batch.n_tokens = 3;
    float *norm = (float *)model->tensors[tensor_index(model, "output_norm.weight")].data, made[32];
    for (int i = 0; i < 3; i++) {
        double sum = 0;
        for (int j = 0; j < 32; j++) norm[j] = factors[i];
        CHECK(ml_session_embed(session, &batch, &desc, made, &failure) == ML_OK);
        for (int j = 0; j < 32; j++) sum += (double)made[j] * (double)made[j];
        CHECK_NEAR(sum, 1, 1e-6, 0); /* a few roundings of F32 */
    }
    ml_session_free(session), ml_model_free(model);
}

TEST(likelihood_is_log_softmax) {
    ml_config configs[3] = {small_config(ML_MASK_CAUSAL), small_config(ML_MASK_FULL),
                            small_config(ML_MASK_CAUSAL)};
    configs[2].vocab_size = 20000; /* one row of logits is larger than all activations of a small pass */
    for (int k = 0; k < 3; k++) {
        ml_model *model = random_model(&configs[k], 4);
        ml_random random;
        int32_t ids[40];
        ml_random_seed(&random, 5);
        for (int max_batch = 1; max_batch <= 40; max_batch += max_batch == 1 ? 4 : 35) {
            ml_session *session = new_session(model, 40, max_batch);
            for (int i = 0; i < 6; i++) {
                static const int splits[6][2] = {{1, 2}, {5, 8}, {20, 40}, {1, 40}, {40, 40}, {39, 40}};
                random_ids(&random, ids, 40);
                check_likelihood(session, ids, splits[i][0], splits[i][1]);
            }
            /* continuations of one context */
            for (int i = 0; i < 3; i++) {
                ids[10] = 100 + i;
                check_likelihood(session, ids, 10, 12);
            }
            /* the session continues from there */
            const float *logits;
            double next;
            REQUIRE(!ml_session_eval(session, ids + 12, 1, &logits, NULL));
            expected_log_probs(model, ids, 13, 14, &next);
            CHECK_NEAR(log_p(logits, model->config.vocab_size, ids[13]), next, 2e-4, 1e-5);
            ml_session_free(session);
        }
        ml_model_free(model);
    }
}

TEST(likelihood_of_text) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 6);
    ml_session *session = new_session(model, 0, 0);
    const int32_t two[5] = {1, spaced('a'), letter('b'), spaced('c'), letter('d')};
    const int32_t crossing[4] = {1, spaced('a'), letter('b'), spaced('c')};
    double expected[4];
    float log_probs[4];
    ml_likelihood_desc desc;
    ml_likelihood got;
    memset(&desc, 0, sizeof desc);
    desc.context = "ab";
    desc.continuation = " cd";
    desc.log_probs = log_probs;
    desc.max_log_probs = 4;
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK && got.n_tokens == 2);
    CHECK(holds(session, two, 5));
    expected_log_probs(model, two, 3, 5, expected);
    CHECK_NEAR(log_probs[0], expected[0], 2e-4, 1e-5);
    CHECK_NEAR(log_probs[1], expected[1], 2e-4, 1e-5);
    CHECK_NEAR(got.sum, expected[0] + expected[1], 2e-4, 1e-5);
    /* "ab " ends with the byte of a space, which " c" replaces: the context that counts is "ab" */
    desc.context = "ab ";
    desc.continuation = "c";
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK && got.n_tokens == 1);
    CHECK(holds(session, crossing, 4));
    CHECK_NEAR(got.sum, expected[0], 2e-4, 1e-5);
    desc.context = NULL; /* after bos */
    desc.continuation = "ab cd";
    expected_log_probs(model, two, 1, 5, expected);
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK && got.n_tokens == 4);
    CHECK_NEAR(got.sum, expected[0] + expected[1] + expected[2] + expected[3], 2e-4, 1e-5);
    desc.context = "ab";
    desc.continuation = "";
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_OK && got.n_tokens == 0 &&
          got.sum == 0);
    /* refusals do not change the session */
    int length = session->length;
    desc.continuation = "cdefg";
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_MEMORY);
    CHECK(strstr(failure.text, "5 tokens"));
    desc.continuation = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_CONTEXT);
    desc.context_ids.ids = two, desc.context_ids.n = 3; /* not after these ids: they would not count */
    desc.context = NULL, desc.continuation = "c";
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "both are texts, or both are ids"));
    memset(&desc, 0, sizeof desc);
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_ARGUMENT);
    desc.context_ids.ids = desc.continuation_ids.ids = two;
    desc.continuation_ids.n = 2;
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_ARGUMENT); /* no context */
    desc.context_ids.n = 39;
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_CONTEXT);
    const int32_t outside[1] = {V};
    desc.context_ids.n = 2;
    desc.continuation_ids.ids = outside;
    desc.continuation_ids.n = 1;
    CHECK(ml_session_likelihood(session, &desc, &got, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_likelihood(session, &desc, NULL, &failure) == ML_ERROR_ARGUMENT);
    CHECK(session->length == length && session->tokens[0] == 1);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- saving ---- */

/* Exactly as large as save_size says, so that sanitizers see a step beyond. */
static unsigned char *save(const ml_session *session, size_t *size) {
    *size = ml_session_save_size(session);
    unsigned char *bytes = (unsigned char *)malloc(*size);
    CHECK(bytes && ml_session_save(session, bytes, *size, &failure) == ML_OK);
    return bytes;
}

/* A copy continues as the other does, whatever it held before, and the other can go on. */
TEST(copies_continue) {
    for (int full = 0; full < 2; full++) {
        ml_model *model = letter_model(full ? ML_MASK_FULL : ML_MASK_CAUSAL, 17);
        ml_model *different = letter_model(ML_MASK_CAUSAL, 18);
        ml_session *session = new_session(model, 30, 8), *copy = new_session(model, 25, 1);
        ml_session *stranger = new_session(different, 30, 8);
        ml_random random;
        int32_t ids[40], own[12];
        const float *logits, *copied;
        ml_random_seed(&random, 19);
        random_ids(&random, ids, 40);
        random_ids(&random, own, 12);
        REQUIRE(!ml_session_eval(session, ids, 20, NULL, NULL));
        for (int shared = 0; shared <= 24;
             shared += 4) { /* what it had: another text, a part, all and more */
            int n = shared > 20 ? 20 : shared;
            REQUIRE(!ml_session_truncate(copy, 0, NULL));
            if (n) REQUIRE(!ml_session_eval(copy, ids, n, NULL, NULL));
            if (shared != 20) REQUIRE(!ml_session_eval(copy, own, shared > 20 ? 4 : 3, NULL, NULL));
            CHECK(ml_session_copy(copy, session, &failure) == ML_OK && holds(copy, ids, 20));
            REQUIRE(!ml_session_eval(session, ids + 20, 1, &logits, NULL));
            REQUIRE(!ml_session_eval(copy, ids + 20, 1, &copied, NULL));
            CHECK(max_difference(logits, copied, V) < 1e-4); /* read in passes of 8 and of 1 */
            REQUIRE(!ml_session_truncate(session, 20, NULL));
        }
        CHECK(ml_session_copy(session, session, &failure) == ML_OK && holds(session, ids, 20));
        CHECK(ml_session_copy(stranger, session, &failure) == ML_ERROR_MISMATCH && stranger->length == 0);
        REQUIRE(!ml_session_eval(session, ids + 20, 6, NULL, NULL));
        CHECK(ml_session_copy(copy, session, &failure) == ML_ERROR_CONTEXT); /* 26 into 25 */
        CHECK(ml_session_copy(NULL, session, NULL) == ML_ERROR_ARGUMENT);
        CHECK(ml_session_copy(session, NULL, NULL) == ML_ERROR_ARGUMENT);
        ml_session_free(session), ml_session_free(copy), ml_session_free(stranger);
        ml_model_free(model), ml_model_free(different);
    }
}

/* Logits and hidden states of new tokens, in passes of 4, against those of a batch of all tokens. */
TEST(outputs_of_new_tokens) {
    for (int full = 0; full < 2; full++) {
        ml_model *model = letter_model(full ? ML_MASK_FULL : ML_MASK_CAUSAL, 21);
        ml_session *session = new_session(model, 30, 4), *whole = new_session(model, 30, 30);
        ml_random random;
        const int32_t select[9] = {9, 0, 5, 5, 1, 2, 3, 4, 6}, wrong[1] = {10}; /* also neighbors */
        static float all_logits[16 * V], all_hidden[16 * 32], logits[10 * V], hidden[10 * 32], some[9 * V];
        int32_t ids[16];
        const float *last;
        ml_random_seed(&random, 22);
        random_ids(&random, ids, 16);
        ml_batch batch = {ids, 16, NULL, 0, NULL, NULL, 0};
        ml_outputs all = {NULL, 0, all_hidden, all_logits}, every = {NULL, 0, hidden, logits};
        ml_outputs selected = {select, 9, NULL, some}, outside = {wrong, 1, NULL, some},
                   nothing = {NULL, 0, NULL, NULL};
        REQUIRE(!ml_session_eval_batch(whole, &batch, &all, NULL));
        REQUIRE(!ml_session_eval(session, ids, 6, NULL, NULL));
        CHECK(ml_session_eval_outputs(session, ids + 6, 10, &outside, &failure) == ML_ERROR_ARGUMENT);
        CHECK(strcmp(failure.text, "batch: select 0 is 10, outside its 10 tokens") == 0);
        CHECK(session->length == 6);
        CHECK(ml_session_eval_outputs(session, ids + 6, 10, &every, &failure) == ML_OK &&
              holds(session, ids, 16));
        CHECK(max_difference(logits, all_logits + 6 * V, 10 * V) < 1e-4);
        CHECK(max_difference(hidden, all_hidden + 6 * 32, 10 * 32) < 1e-4);
        REQUIRE(!ml_session_truncate(session, 6, NULL));
        CHECK(ml_session_eval_outputs(session, ids + 6, 10, &selected, &failure) == ML_OK);
        for (int i = 0; i < 9; i++)
            CHECK(memcmp(some + i * V, logits + select[i] * V, V * sizeof *some) == 0);
        REQUIRE(!ml_session_truncate(session, 6, NULL));
        REQUIRE(!ml_session_eval(session, ids + 6, 10, &last, NULL));
        CHECK(memcmp(last, some, V * sizeof *last) == 0);
        REQUIRE(!ml_session_truncate(session, 6, NULL));
        CHECK(ml_session_eval_outputs(session, ids + 6, 10, &nothing, &failure) == ML_OK);
        CHECK(ml_session_eval_outputs(session, ids, 15, &every, &failure) == ML_ERROR_CONTEXT);
        CHECK(ml_session_eval_outputs(session, ids, 1, NULL, &failure) == ML_ERROR_ARGUMENT);
        ml_session_free(session), ml_session_free(whole);
        ml_model_free(model);
    }
}

/* The lens of a session that has computed nothing, and holds no logits, as that of another. */
TEST(a_lens_may_come_first) {
    const ml_config config = {.dim = 48,
                              .hidden_dim = 128,
                              .n_layers = 2,
                              .n_heads = 8,
                              .n_kv_heads = 4,
                              .vocab_size = 512,
                              .max_seq_len = 32,
                              .tied_output = 1};
    ml_model *model = random_model(&config, 23);
    ml_session *usual = new_session(model, 16, 1), *without = NULL;
    float stream[48], logits[512], expected[512];
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.no_logits = 1, desc.max_batch = 1, desc.max_seq_len = 16;
    REQUIRE(ml_session_new(model, &desc, &without, &failure) == ML_OK);
    for (int i = 0; i < 48; i++) stream[i] = (float)(i % 7) - 3;
    CHECK(ml_session_lens(without, stream, 1, logits, &failure) == ML_OK);
    REQUIRE(ml_session_eval(usual, (const int32_t[]){1, 2}, 2, NULL, NULL) == ML_OK);
    CHECK(ml_session_lens(usual, stream, 1, expected, &failure) == ML_OK);
    CHECK(memcmp(logits, expected, sizeof logits) == 0);
    ml_session_free(usual), ml_session_free(without);
    ml_model_free(model);
}

/* A batch of rows says where they begin. */
TEST(rows_without_row_start_are_refused) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 24);
    ml_session *session = new_session(model, 30, 30);
    int32_t ids[4] = {1, 2, 3, 4};
    float hidden[4 * 32];
    ml_batch batch = {ids, 4, NULL, 2, NULL, NULL, 0};
    ml_outputs out = {NULL, 0, hidden, NULL};
    CHECK(ml_session_eval_batch(session, &batch, &out, &failure) == ML_ERROR_ARGUMENT);
    CHECK(strcmp(failure.text, "batch: row_start is NULL") == 0);
    batch.n_rows = 1;
    CHECK(ml_session_eval_batch(session, &batch, &out, &failure) == ML_OK);
    ml_session_free(session);
    ml_model_free(model);
}

TEST(restored_sessions_continue) {
    for (int full = 0; full < 2; full++) {
        ml_model *model = letter_model(full ? ML_MASK_FULL : ML_MASK_CAUSAL, 7);
        ml_session *session = new_session(model, 30, 8), *other = new_session(model, 40, 3);
        ml_random random;
        int32_t ids[40];
        size_t size, empty_size = ml_session_save_size(session);
        const float *logits, *restored;
        ml_random_seed(&random, 8);
        random_ids(&random, ids, 40);
        REQUIRE(!ml_session_eval(session, ids, 20, NULL, NULL));
        unsigned char *bytes = save(session, &size);
        CHECK(empty_size == 8 + 4 * (3 + 21 + 3)); /* also where enumerations have one byte */
        /* keys and values of 2 layers with 2 heads of 8, and the ids */
        CHECK(size - empty_size == 20 * (4 + (full ? 0 : 2 * 2 * 2 * 8 * 4)));
        for (int i = 0; i < 20; i++) { /* little-endian everywhere */
            unsigned char id[4];
            put_u32(id, 0, (uint32_t)ids[i]);
            CHECK(memcmp(bytes + empty_size + 4 * i, id, 4) == 0);
        }
        unsigned char *unaligned = (unsigned char *)malloc(size + 1);
        memcpy(unaligned + 1, bytes, size);
        REQUIRE(!ml_session_eval(other, ids + 5, 7, NULL, NULL));
        CHECK(ml_session_restore(other, unaligned + 1, size, &failure) == ML_OK);
        CHECK(holds(other, ids, 20));
        for (int i = 20; i < 28; i++) {
            REQUIRE(!ml_session_eval(session, ids + i, 1, &logits, NULL));
            REQUIRE(!ml_session_eval(other, ids + i, 1, &restored, NULL));
            CHECK(memcmp(logits, restored, V * sizeof *logits) == 0);
        }
        CHECK(ml_session_restore(session, bytes, size, &failure) == ML_OK && holds(session, ids, 20));
        CHECK(ml_session_save(session, bytes, size - 1, &failure) == ML_ERROR_MEMORY);
        ml_session_truncate(session, 0, NULL); /* nothing held is a state, too */
        unsigned char *empty = save(session, &empty_size);
        CHECK(ml_session_restore(other, empty, empty_size, &failure) == ML_OK && other->length == 0);
        free(empty);
        free(unaligned);
        free(bytes);
        ml_session_free(session);
        ml_session_free(other);
        ml_model_free(model);
    }
}

/* A window that is longer than any text is none. */
TEST(window_without_end) {
    size_t sizes[2];
    for (int i = 0; i < 2; i++) {
        ml_config c = small_config(ML_MASK_CAUSAL);
        c.window = i ? INT_MAX : 1 << 24;
        ml_model *model = random_model(&c, 11);
        ml_session *session = new_session(model, 72, 0);
        int32_t ids[3] = {1, 2, 3};
        CHECK(ml_session_eval(session, ids, 3, NULL, &failure) == ML_OK);
        sizes[i] = ml_session_save_size(session);
        ml_session_free(session);
        ml_model_free(model);
    }
    CHECK(sizes[0] == sizes[1]);
}

/* With a window a session keeps more rows than a smaller one has room for, and saves no more than that. */
TEST(sessions_with_windows_fit_smaller_ones) {
    ml_config c = small_config(ML_MASK_CAUSAL);
    c.window = 8, c.max_seq_len = 256;
    ml_model *model = random_model(&c, 11);
    ml_session *session = new_session(model, 72, 0), *other = new_session(model, 200, 4);
    const float *logits, *restored;
    int32_t ids[64];
    size_t size;
    ml_random random;
    ml_random_seed(&random, 12);
    random_ids(&random, ids, 64);
    REQUIRE(!ml_session_eval(session, ids, 60, NULL, NULL));
    unsigned char *bytes = save(session, &size);
    CHECK(ml_session_restore(other, bytes, size, &failure) == ML_OK && holds(other, ids, 60));
    for (int i = 60; i < 64; i++) {
        REQUIRE(!ml_session_eval(session, ids + i, 1, &logits, NULL));
        REQUIRE(!ml_session_eval(other, ids + i, 1, &restored, NULL));
        CHECK(memcmp(logits, restored, V * sizeof *logits) == 0);
    }
    free(bytes);
    ml_session_free(session), ml_session_free(other);
    ml_model_free(model);
}

TEST(wrong_saved_bytes_are_refused) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 9), *same_shape = letter_model(ML_MASK_CAUSAL, 10);
    ml_model *full = letter_model(ML_MASK_FULL, 9);
    ml_session *session = new_session(model, 12, 4), *target = new_session(model, 8, 4);
    ml_random random;
    int32_t ids[12];
    size_t size, large_size;
    ml_random_seed(&random, 11);
    random_ids(&random, ids, 12);
    REQUIRE(!ml_session_eval(session, ids, 9, NULL, NULL) &&
            !ml_session_eval(target, ids + 3, 2, NULL, NULL));
    unsigned char *large = save(session, &large_size);
    CHECK(ml_session_restore(target, large, large_size, &failure) == ML_ERROR_CONTEXT);
    CHECK(strstr(failure.text, "9 tokens"));
    ml_session_truncate(session, 5, NULL);
    unsigned char *bytes = save(session, &size);
    for (size_t n = 0; n < size; n++) { /* every prefix, in memory of its size */
        unsigned char *cut = (unsigned char *)malloc(n + !n);
        memcpy(cut, bytes, n);
        ml_result result = ml_session_restore(target, cut, n, &failure);
        CHECK(result == ML_ERROR_FORMAT || result == ML_ERROR_TRUNCATED);
        free(cut);
    }
    CHECK(ml_session_restore(target, large, size, &failure) == ML_ERROR_CONTEXT);
    bytes[8] ^= 1; /* the version of the layout */
    CHECK(ml_session_restore(target, bytes, size, &failure) == ML_ERROR_MISMATCH);
    CHECK(strstr(failure.text, "another version of minillama.h"));
    bytes[8] ^= 1;
    CHECK(holds(target, ids + 3, 2));
    ml_session *sessions[2] = {new_session(same_shape, 0, 0), new_session(full, 0, 0)};
    ml_lora_create_desc lora_desc;
    ml_lora *lora = NULL;
    memset(&lora_desc, 0, sizeof lora_desc);
    lora_desc.random = &random;
    REQUIRE(!ml_lora_create(model, &lora_desc, &lora, &failure));
    ml_session_desc adapted;
    memset(&adapted, 0, sizeof adapted);
    adapted.lora = lora;
    ml_session *with_lora = NULL;
    REQUIRE(!ml_session_new(model, &adapted, &with_lora, &failure));
    CHECK(ml_session_restore(with_lora, bytes, size, &failure) == ML_ERROR_MISMATCH);
    CHECK(ml_session_restore(sessions[0], bytes, size, &failure) == ML_ERROR_MISMATCH);
    CHECK(strstr(failure.text, "another model"));
    CHECK(ml_session_restore(sessions[1], bytes, size, &failure) == ML_ERROR_MISMATCH);
    CHECK(ml_session_restore(target, NULL, size, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_restore(NULL, bytes, size, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_session_save_size(NULL) == 0 && ml_session_save(NULL, bytes, size, NULL) == ML_ERROR_ARGUMENT);
    /* any bytes: refused with nothing changed, or restored and usable */
    int n_refused = 0;
    for (int round = 0; round < 4000; round++) {
        size_t header = size - 5 * (4 + 2 * 2 * 2 * 8 * 4), most = round % 2 ? header + 20 : size;
        size_t at = (size_t)(ml_random_u64(&random) % most);
        unsigned char was = bytes[at];
        bytes[at] = (unsigned char)(was ^ (1 + ml_random_u64(&random) % 255));
        if (ml_session_restore(target, bytes, size, &failure))
            n_refused++;
        else
            CHECK(target->length == 5 && !ml_session_eval(target, ids, 1, NULL, NULL));
        for (int i = 0; i < target->length; i++) CHECK(target->tokens[i] >= 0 && target->tokens[i] < V);
        bytes[at] = was;
    }
    CHECK(n_refused > 1500 && n_refused < 2500);
    ml_session_free(with_lora);
    ml_lora_free(lora);
    for (int i = 0; i < 2; i++) ml_session_free(sessions[i]);
    free(bytes);
    free(large);
    ml_session_free(session);
    ml_session_free(target);
    ml_model_free(model);
    ml_model_free(same_shape);
    ml_model_free(full);
}

/* Keys and values depend on these numbers of the configuration, too: a model of the same weights in which one of them
   differs does not take them. */
TEST(saved_for_one_configuration) {
    enum { PLAIN, EPS, THETA, SCALE, WINDOW, ATTENTION, YARN, YARN_LOW, YARN_HIGH, CASES };
    unsigned char *bytes = NULL;
    size_t size = 0;
    for (int which = 0; which < CASES; which++) {
        ml_config c = small_config(ML_MASK_CAUSAL);
        int32_t ids[3] = {1, 5, 9};
        if (which == EPS) c.norm_eps = 1e-3f;
        if (which == THETA) c.rope_theta = 20000;
        if (which == SCALE) c.rope_scale = 2;
        if (which == WINDOW) c.window = 8;
        if (which == ATTENTION) c.rope_attention = 1.5f;
        if (which >= YARN) c.rope_kind = ML_ROPE_YARN, c.rope_scale = 2, c.rope_original = 20;
        if (which == YARN_LOW) c.rope_low = 2;
        if (which == YARN_HIGH) c.rope_high = 16;
        ml_model *model = random_model(&c, 31);
        ml_session *session = new_session(model, 0, 0);
        REQUIRE(!ml_session_eval(session, ids, 3, NULL, NULL));
        if (which == PLAIN || which == YARN) { /* the one that the next ones differ from */
            free(bytes);
            bytes = save(session, &size);
            CHECK(ml_session_restore(session, bytes, size, &failure) == ML_OK);
        } else {
            CHECK(ml_session_restore(session, bytes, size, &failure) == ML_ERROR_MISMATCH);
            CHECK(strstr(failure.text, "another model") && holds(session, ids, 3));
        }
        ml_session_free(session);
        ml_model_free(model);
    }
    free(bytes);
}

/* ---- generation that continues ---- */

typedef struct collected {
    char text[2048];
    size_t length;
    int32_t ids[256];
    int n, stop_after;
} collected;

static int collect(void *user, int32_t id, const char *text, size_t n) {
    collected *c = (collected *)user;
    if (n && c->length + n < sizeof c->text) memcpy(c->text + c->length, text, n), c->length += n;
    c->ids[c->n++] = id;
    return c->n != c->stop_after;
}

static ml_generate_desc describe(const char *prompt, ml_start start, int max_new_tokens, collected *c) {
    ml_generate_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.prompt = prompt;
    desc.start = start;
    desc.max_new_tokens = max_new_tokens;
    desc.on_token = collect;
    desc.user = c;
    return desc;
}

static void generate(ml_session *session, const char *prompt, ml_start start, int max_new_tokens,
                     collected *c, ml_generated *made) {
    ml_generate_desc desc = describe(prompt, start, max_new_tokens, c);
    memset(c, 0, sizeof *c);
    CHECK(ml_session_generate(session, &desc, made, &failure) == ML_OK);
    CHECK(made->n_new == c->n);
}

/* A fresh session that is given the whole sequence predicts the same: everything that is held has been read. */
static void check_state(ml_session *session) {
    int32_t next = letter('q');
    const float *logits, *expected;
    int n = session->length;
    if (n == session->max_seq_len) ml_session_truncate(session, --n, NULL);
    ml_session *fresh = new_session(session->model, session->max_seq_len, 0);
    REQUIRE(!ml_session_eval(fresh, session->tokens, n, NULL, NULL) &&
            !ml_session_eval(fresh, &next, 1, &expected, NULL));
    REQUIRE(!ml_session_eval(session, &next, 1, &logits, &failure));
    CHECK(max_difference(logits, expected, V) < 1e-4);
    ml_session_truncate(session, n, NULL);
    ml_session_free(fresh);
}

/* Two turns of a conversation, and then more without a prompt. */
static void converse(ml_mask mask) {
    ml_model *model = letter_model(mask, 12);
    ml_session *session = new_session(model, 0, 0), *whole = new_session(model, 0, 0);
    ml_generated first, second, third, made;
    collected one, two, three, again;
    int32_t ids[40];
    int n;
    generate(session, "ab c", ML_START_APPEND, 6, &one, &first); /* empty: bos in front */
    CHECK(first.n_prompt == 4 && first.n_new == 6 && first.stop == ML_STOP_LENGTH);
    CHECK(session->length == 10 && session->tokens[0] == 1 && session->tokens[3] == spaced('c'));
    CHECK(memcmp(session->tokens + 4, one.ids, 6 * sizeof *ids) == 0); /* also the last one */
    check_state(session);
    generate(session, "d e", ML_START_APPEND, 7, &two, &second);
    CHECK(second.n_prompt == 2 && second.n_new == 7 && session->length == 19);
    CHECK(session->tokens[10] == spaced('d') && session->tokens[11] == spaced('e')); /* no bos */
    CHECK(memcmp(session->tokens + 12, two.ids, 7 * sizeof *ids) == 0);
    check_state(session);
    generate(session, "", ML_START_APPEND, 5, &three, &third); /* continues */
    CHECK(third.n_prompt == 0 && third.n_new == 5 && session->length == 24);
    check_state(session);
    /* the whole from scratch gives the same tokens, and has more of them to read */
    n = session->length;
    memcpy(ids, session->tokens, (size_t)n * sizeof *ids);
    ml_generate_desc desc = describe(NULL, ML_START_OVER, 12, &again);
    memset(&again, 0, sizeof again);
    desc.prompt_ids.ids = ids;
    desc.prompt_ids.n = 12;
    CHECK(ml_session_generate(whole, &desc, &made, &failure) == ML_OK && made.n_prompt == 12);
    CHECK(again.n == 12 && memcmp(again.ids, two.ids, 7 * sizeof *ids) == 0 &&
          memcmp(again.ids + 7, three.ids, 5 * sizeof *ids) == 0);
    CHECK(second.n_prompt + second.n_new < made.n_prompt + 7);
    CHECK(again.length == two.length + three.length && memcmp(again.text, two.text, two.length) == 0 &&
          memcmp(again.text + two.length, three.text, three.length) == 0);
    /* ids without a text continue, too */
    desc.start = ML_START_APPEND;
    desc.prompt_ids.n = 0;
    desc.max_new_tokens = 2;
    CHECK(ml_session_generate(whole, &desc, &made, &failure) == ML_OK && made.n_prompt == 0 &&
          whole->length == 26);
    ml_session_truncate(whole, 0, NULL);
    CHECK(ml_session_generate(whole, &desc, &made, &failure) == ML_ERROR_ARGUMENT); /* of nothing */
    ml_session_free(session);
    ml_session_free(whole);
    ml_model_free(model);
}

TEST(conversations_continue) {
    converse(ML_MASK_CAUSAL);
    converse(ML_MASK_FULL);
}

/* Changes the value of the first token in layer 0, by way of the saved bytes: what is computed afterwards shows
   whether the cache was used. */
static void change_cache(ml_session *session) {
    size_t size;
    unsigned char *bytes = save(session, &size);
    size_t half = (size_t)session->length * 2 * 8 * sizeof(float);
    unsigned char *values = bytes + size - 3 * half; /* of layers 0 and 1: keys, values, keys, values */
    for (int i = 0; i < 16; i++) {
        float x = 40.0f * (float)(i % 3 - 1);
        put_f32(values, (size_t)i * 4, x);
    }
    CHECK(ml_session_restore(session, bytes, size, &failure) == ML_OK);
    free(bytes);
}

TEST(prefixes_are_not_read_again) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 13);
    ml_session *session = new_session(model, 0, 0), *over = new_session(model, 0, 0);
    static const ml_start starts[3] = {ML_START_OVER, ML_START_PREFIX, ML_START_APPEND};
    ml_generated made, expected;
    collected got, want;
    int32_t held[40];
    generate(over, "abc def ghi", ML_START_OVER, 10, &want, &expected);
    for (int k = 0; k < 2; k++) {
        generate(session, "abc dex", ML_START_PREFIX, 4, &got,
                 &made); /* nothing in common but what k = 0 left */
        CHECK(made.n_prompt == 7 && session->length == 11);
        generate(session, "abc def ghi", ML_START_PREFIX, 10, &got, &made);
        CHECK(made.n_prompt == expected.n_prompt && made.n_new == 10 && made.stop == expected.stop);
        CHECK(got.length == want.length && memcmp(got.text, want.text, got.length) == 0);
        CHECK(memcmp(got.ids, want.ids, 10 * sizeof *got.ids) == 0);
        CHECK(holds(session, over->tokens, over->length));
        check_state(session);
    }
    generate(session, "abc def ghi", ML_START_PREFIX, 10, &got, &made); /* all of it in common */
    CHECK(memcmp(got.ids, want.ids, 10 * sizeof *got.ids) == 0 && made.n_prompt == 10);
    memcpy(held, over->tokens, (size_t)over->length * sizeof *held);
    for (int k = 0; k < 3; k++) { /* with a changed cache only starting over gives the same */
        ml_generate_desc desc = describe(NULL, starts[k], 10, &got);
        desc.prompt_ids.ids = k < 2 ? held : held + 5;
        desc.prompt_ids.n = k < 2 ? 10 : 5;
        memset(&got, 0, sizeof got);
        ml_session_truncate(session, 0, NULL);
        REQUIRE(!ml_session_eval(session, held, 5, NULL, NULL));
        change_cache(session);
        CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_OK);
        CHECK((memcmp(got.ids, want.ids, 10 * sizeof *got.ids) == 0) == (starts[k] == ML_START_OVER));
    }
    ml_session_free(session);
    ml_session_free(over);
    ml_model_free(model);
}

TEST(the_end_of_the_text_is_not_held) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 14);
    ml_session *session = new_session(model, 0, 0);
    ml_generated made;
    collected c;
    ml_generate_desc desc = describe("ab", ML_START_OVER, 8, &c);
    memset(&c, 0, sizeof c);
    c.stop_after = 3;
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_OK);
    CHECK(made.stop == ML_STOP_CALLER && made.n_new == 3 &&
          session->length == 6); /* the caller has seen all three */
    CHECK(memcmp(session->tokens + 3, c.ids, 3 * sizeof *c.ids) == 0);
    check_state(session);
    /* the output row of eos becomes the hidden state after the second new token: eos is the third */
    float hidden[5 * 32], *output = (float *)model->tensors[3].data;
    ml_outputs outputs = {NULL, 0, hidden, NULL};
    ml_batch batch;
    int32_t ids[5];
    memset(&batch, 0, sizeof batch);
    memcpy(ids, session->tokens, sizeof ids);
    batch.tokens = ids;
    batch.n_tokens = 5;
    REQUIRE(!ml_session_eval_batch(session, &batch, &outputs, NULL));
    char name[ML_NAME_SIZE];
    REQUIRE(!ml_model_tensor_name(model, 3, name) && strcmp(name, "output.weight") == 0);
    for (int j = 0; j < 32; j++) output[2 * 32 + j] = 3 * hidden[4 * 32 + j];
    ml_generated ended;
    collected short_one;
    generate(session, "ab", ML_START_OVER, 8, &short_one, &ended);
    CHECK(ended.stop == ML_STOP_END && ended.n_new <= 2 && ended.n_prompt == 3);
    CHECK(session->length == 3 + ended.n_new && session->tokens[session->length - 1] != 2);
    check_state(session);
    int length = session->length;
    generate(session, "", ML_START_APPEND, 8, &short_one, &ended); /* still the end */
    CHECK(ended.stop == ML_STOP_END && ended.n_new == 0 && session->length == length);
    ml_session_free(session);
    ml_model_free(model);
}

TEST(conversations_in_a_full_context) {
    ml_model *model = letter_model(ML_MASK_CAUSAL, 15);
    ml_session *session = new_session(model, 20, 0);
    ml_generated made;
    collected c;
    int32_t before[20];
    generate(session, "ab", ML_START_OVER, 8, &c, &made);
    CHECK(session->length == 11);
    memcpy(before, session->tokens, sizeof before);
    ml_generate_desc desc = describe("c d f", ML_START_APPEND, 7, &c);
    memset(&c, 0, sizeof c);
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_OK); /* 11 + 3 + 7: one too many */
    CHECK(made.n_new == 6 && session->length == 20 && made.stop == ML_STOP_CONTEXT);
    CHECK(!ml_session_truncate(session, 11, NULL) && holds(session, before, 11));
    desc.prompt = "c d e f g h i j k l";
    desc.max_new_tokens = 0;
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_ERROR_CONTEXT); /* 11 + 10 */
    CHECK(strstr(failure.text, "11 tokens") && holds(session, before, 11));
    /* sliding makes room for a whole prompt: bos, the last 5 of 10, the 10 new ones */
    desc.overflow = ML_OVERFLOW_SLIDE;
    desc.max_new_tokens = 2;
    memset(&c, 0, sizeof c);
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_OK && made.n_prompt == 10 &&
          made.n_new == 2);
    CHECK(session->length == 18 && session->tokens[0] == 1);
    CHECK(memcmp(session->tokens + 1, before + 6, 5 * sizeof *before) == 0);
    CHECK(session->tokens[6] == spaced('c') && session->tokens[15] == spaced('l'));
    CHECK(memcmp(session->tokens + 16, c.ids, 2 * sizeof *before) == 0);
    check_state(session);
    desc.prompt = "c d e f g h i j k l m n o p q r"; /* 16: of 17 others 2 stay */
    desc.max_new_tokens = 1;
    memcpy(before, session->tokens, sizeof before);
    memset(&c, 0, sizeof c);
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_OK && made.n_prompt == 16);
    CHECK(session->length == 20 && session->tokens[19] == c.ids[0]);
    CHECK(memcmp(session->tokens + 1, before + 16, 2 * sizeof *before) == 0);
    check_state(session);
    desc.prompt = "c d e f g h i j k l m n o p q r s t u v"; /* 20, and bos is held */
    memcpy(before, session->tokens, sizeof before);
    CHECK(ml_session_generate(session, &desc, &made, &failure) == ML_ERROR_CONTEXT);
    CHECK(memcmp(session->tokens, before, sizeof before) == 0);
    /* until the context is full */
    ml_session_truncate(session, 5, NULL);
    generate(session, "a b", ML_START_APPEND, 0, &c, &made);
    CHECK(made.n_new == 13 && session->length == 20 && made.stop == ML_STOP_CONTEXT);
    generate(session, "", ML_START_APPEND, 0, &c, &made);
    CHECK(made.n_new == 0 && session->length == 20 && made.stop == ML_STOP_CONTEXT);
    ml_session_free(session);
    ml_model_free(model);
}

/* More threads need more scratch, or too much to be addressed: with 32 bits a long context times four threads is more
   than 2^32 bytes. */
TEST(sizes_do_not_wrap) {
    ml_random random;
    ml_model_create_desc create;
    ml_model *model = NULL;
    ml_random_seed(&random, 1);
    memset(&create, 0, sizeof create);
    create.config.dim = create.config.hidden_dim = 2, create.config.n_layers = create.config.n_heads = 1;
    create.config.vocab_size = 4, create.config.max_seq_len = 1 << 22, create.random = &random;
    REQUIRE(!ml_model_create(&create, &model, &failure));
    for (int shift = 18; shift <= 22; shift++) {
        size_t last = 0;
        for (int threads = 1; threads <= 4; threads++) {
            ml_session_desc desc;
            size_t size;
            memset(&desc, 0, sizeof desc);
            desc.max_seq_len = 1 << shift, desc.max_batch = 64, desc.threads.count = threads;
            if (ml_session_size(model, &desc, &size, &failure)) size = SIZE_MAX;
            CHECK(size >= last);
            last = size;
        }
    }
    ml_model_free(model);
}

int main(void) {
    RUN(common_prefix_is_kept);
    RUN(encoded_ids_survive_passes);
    RUN(embeddings_pool_hidden_states);
    RUN(embeddings_have_length_1);
    RUN(likelihood_is_log_softmax);
    RUN(likelihood_of_text);
    RUN(copies_continue);
    RUN(outputs_of_new_tokens);
    RUN(a_lens_may_come_first);
    RUN(rows_without_row_start_are_refused);
    RUN(restored_sessions_continue);
    RUN(window_without_end);
    RUN(sessions_with_windows_fit_smaller_ones);
    RUN(wrong_saved_bytes_are_refused);
    RUN(saved_for_one_configuration);
    RUN(conversations_continue);
    RUN(prefixes_are_not_read_again);
    RUN(the_end_of_the_text_is_not_held);
    RUN(conversations_in_a_full_context);
    RUN(sizes_do_not_wrap);
    return test_report("test_session");
}
