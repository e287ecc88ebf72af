/* What a machine with little memory asks for: a KV cache of F16 or Q8_0, rotary positions computed in each pass,
   sessions that are greedy or hold no logits, vocabularies that stay in their file, and scratch memory that is given
   back. */
#include "preamble.h"
#include "folder.h"
#include "models.h"

#define MODEL "examples/models/stories.gguf"

static ml_error failure;

static void give_up(void) {
    printf("%s\n", failure.text);
    exit(2);
}

/* The shipped model, from bytes in memory. */
static bytes file;
static ml_model *load(const ml_model_load_desc *desc) {
    ml_model *model = NULL;
    if (!file.data) file = read_file(MODEL);
    if (ml_model_load_memory(file.data, file.size, desc, &model, &failure)) give_up();
    return model;
}

static ml_session_desc session_of(int max_seq_len, int max_batch, ml_type cache_type) {
    ml_session_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.max_seq_len = max_seq_len, desc.max_batch = max_batch, desc.cache_type = cache_type;
    return desc;
}

static ml_session *open_session(const ml_model *model, ml_session_desc desc) {
    ml_session *session = NULL;
    if (ml_session_new(model, &desc, &session, &failure)) give_up();
    return session;
}

static int32_t ids[48];
enum { N = 48 };

static void fill_ids(uint64_t seed, int n_pieces) {
    ml_random random;
    ml_random_seed(&random, seed);
    for (int i = 0; i < N; i++)
        ids[i] = (int32_t)(4 + 256 + ml_random_u64(&random) % (uint64_t)(n_pieces - 260));
    ids[0] = 1;
}

/* logits (V) after all ids, read one by one or in one pass */
static void read_all(ml_session *session, int step, float *logits) {
    const float *last = NULL;
    REQUIRE(!ml_session_truncate(session, 0, &failure));
    for (int i = 0; i < N; i += step)
        REQUIRE(!ml_session_eval(session, ids + i, step, i + step < N ? NULL : &last, &failure));
    memcpy(logits, last, 2048 * sizeof *logits);
}

/* The root mean square of a - b, in parts of that of b. */
static double difference(const float *a, const float *b, int n) {
    double sum = 0, all = 0;
    for (int i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        sum += d * d, all += (double)b[i] * (double)b[i];
    }
    return sqrt(sum / all);
}

/* ---- the cache ---- */

/* With weights of Q8_0 the activations are rounded, too, and what is nearly a tie falls the other way. */
static ml_model *load_floats(void) {
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.type = ML_F32;
    return load(&desc);
}

/* Keys and values are off by up to 2^-11 of their size (F16, 11 bits) or 2^-8 of the largest in their block (Q8_0, 127
   steps), most by less, and attention averages over them: so are the logits. If a head or a token were mistaken for
   another, they would be off by about 1. */
TEST(narrow_caches_are_close) {
    static const ml_type types[2] = {ML_F16, ML_Q8_0};
    static const double most[2] = {0x1p-12, 0x1p-8}, least[2] = {0x1p-16, 0x1p-11};
    static const size_t row_bytes[2] = {64 * 2, 64 / 32 * 34};
    static float expected[2048], logits[2048], passes[2048];
    ml_model *model = load_floats();
    ml_session *wide = open_session(model, session_of(N, N, ML_F32));
    size_t size = 0, narrow_size = 0, steps[2] = {1, N};
    fill_ids(7, model->config.vocab_size);
    read_all(wide, 1, expected);
    for (int t = 0; t < 2; t++) {
        ml_session *session = open_session(model, session_of(N, N, types[t]));
        for (int k = 0; k < 2; k++) {
            read_all(session, (int)steps[k], k ? passes : logits);
            double off = difference(k ? passes : logits, expected, 2048);
            CHECK(off < most[t] && off > least[t]);
        }
        /* one by one or in a pass: the same but for the sums' order (1e-5), and where that rounds a key another way */
        CHECK(difference(passes, logits, 2048) < most[t] / 4);
        ml_session_desc a = session_of(1000, 1, ML_F32), b = session_of(1000, 1, types[t]);
        a.max_text = b.max_text = 10;
        CHECK(!ml_session_size(model, &a, &size, NULL) && !ml_session_size(model, &b, &narrow_size, NULL));
        size_t saved = 6 * 2 * 1000 * (64 * 4 - row_bytes[t]), room = 8 * 32 * 4 + 2 * 64 * 4 + 256;
        CHECK(size - narrow_size <= saved && size - narrow_size + room >= saved);
        ml_session_free(session);
    }
    ml_session_free(wide);
    ml_model_free(model);
}

/* A session with a narrow cache is saved, restored and copied as others are. */
TEST(narrow_caches_are_saved) {
    static float expected[2048], logits[2048];
    ml_model *model = load(NULL);
    ml_session *a = open_session(model, session_of(N + 4, 8, ML_Q8_0)),
               *b = open_session(model, session_of(N + 4, 8, ML_Q8_0)),
               *c = open_session(model, session_of(N + 4, 8, ML_F16)),
               *d = open_session(model, session_of(N + 4, 8, ML_Q8_0));
    const float *next;
    fill_ids(8, model->config.vocab_size);
    read_all(a, 8, expected);
    size_t size = ml_session_save_size(a);
    void *saved = malloc(size);
    REQUIRE(!ml_session_save(a, saved, size, &failure) && !ml_session_restore(b, saved, size, &failure));
    CHECK(ml_session_restore(c, saved, size, &failure) == ML_ERROR_MISMATCH);
    CHECK(ml_session_copy(c, a, &failure) == ML_ERROR_MISMATCH && strstr(failure.text, "Q8_0") &&
          strstr(failure.text, "F16"));
    REQUIRE(!ml_session_copy(d, a, &failure));
    REQUIRE(!ml_session_eval(a, ids, 1, &next, &failure));
    memcpy(expected, next, sizeof expected);
    REQUIRE(!ml_session_eval(b, ids, 1, &next, &failure));
    CHECK(memcmp(expected, next, sizeof logits) == 0);
    REQUIRE(!ml_session_eval(d, ids, 1, &next, &failure));
    CHECK(memcmp(expected, next, sizeof logits) == 0);
    free(saved);
    ml_session_free(a), ml_session_free(b), ml_session_free(c), ml_session_free(d);
    ml_model_free(model);
}

/* A model with a window: its cache moves, narrow or not. */
TEST(narrow_caches_with_a_window) {
    static float expected[2048], logits[2048];
    ml_model *model = load_floats();
    fill_ids(9, model->config.vocab_size);
    ((ml_model *)model)->config.window =
        5; /* the fields are for reading, but nothing else depends on this one */
    ml_session *wide = open_session(model, session_of(200, 1, ML_F32)),
               *narrow = open_session(model, session_of(200, 1, ML_F16));
    for (int turn = 0; turn < 3; turn++) {
        const float *a, *b;
        for (int i = 0; i < N; i++)
            REQUIRE(!ml_session_eval(wide, ids + i, 1, &a, &failure) &&
                    !ml_session_eval(narrow, ids + i, 1, &b, &failure));
        memcpy(expected, a, sizeof expected), memcpy(logits, b, sizeof logits);
        CHECK(difference(logits, expected, 2048) < 0x1p-11);
    }
    ml_session_free(wide), ml_session_free(narrow);
    ml_model_free(model);
}

/* A broken number of a key or a value is found in every cache: Q8_0 cannot hold it, and keeps it as its scale. */
TEST(narrow_caches_show_what_is_not_finite) {
    static const ml_type types[3] = {ML_F32, ML_F16, ML_Q8_0};
    static const char *const names[2] = {"blk.0.attn_k.weight", "blk.0.attn_v.weight"};
    static const float numbers[2] = {NAN, INFINITY};
    ml_model *model = load_floats();
    fill_ids(7, model->config.vocab_size);
    for (int i = 0; i < 12; i++) {
        ml_session *session = open_session(model, session_of(N, N, types[i % 3]));
        float *weight = (float *)tensor_named(model, names[i / 3 % 2])->data + 5 * 128 + 3, kept = *weight;
        ml_generate_desc how;
        memset(&how, 0, sizeof how);
        how.prompt = "Once", how.max_new_tokens = 2;
        *weight = numbers[i / 6];
        CHECK(ml_session_generate(session, &how, NULL, &failure) == ML_ERROR_NUMBER);
        *weight = kept;
        CHECK(ml_session_generate(session, &how, NULL, &failure) == ML_OK);
        ml_session_free(session);
    }
    ml_model_free(model);
}

static int looked;
static void on_layer(void *user, const ml_seen *seen) { (void)user, (void)seen, looked++; }

TEST(wrong_caches_are_refused) {
    ml_model *model = load(NULL), *other = NULL;
    ml_random random;
    ml_model_create_desc create;
    ml_session *session;
    ml_session_desc desc = session_of(8, 1, ML_BF16);
    CHECK(ml_session_new(model, &desc, &session, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "BF16"));
    desc.cache_type = ML_F16, desc.look.on_layer = on_layer;
    CHECK(ml_session_new(model, &desc, &session, &failure) == ML_ERROR_UNSUPPORTED &&
          strstr(failure.text, "look"));
    desc = session_of(8, 1, ML_Q8_0);
    desc.max_text = -1;
    CHECK(ml_session_new(model, &desc, &session, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "max_text"));
    memset(&create, 0, sizeof create);
    ml_random_seed(&random, 1);
    create.config = model->config;
    create.config.head_dim = 16;
    create.random = &random;
    REQUIRE(!ml_model_create(&create, &other, &failure));
    desc.max_text = 0;
    CHECK(ml_session_new(other, &desc, &session, &failure) == ML_ERROR_UNSUPPORTED &&
          strstr(failure.text, "16"));
    ml_model_free(other), ml_model_free(model);
}

/* ---- rotary positions ---- */

TEST(computed_rope_has_the_same_bits) {
    static float expected[2048], logits[2048];
    ml_model *model = load(NULL);
    for (int kind = 0; kind < ML_ROPE_KINDS; kind++) {
        ml_config *c = &((ml_model *)model)->config;
        c->rope_kind = (ml_rope_kind)kind, c->rope_scale = kind ? 2.0f : 1.0f, c->rope_original = 20;
        ml_session_desc desc = session_of(N, 8, ML_F32);
        ml_session *held = open_session(model, desc);
        desc.computed_rope = 1;
        ml_session *computed = open_session(model, desc);
        fill_ids(10, c->vocab_size);
        read_all(held, 8, expected);
        read_all(computed, 8, logits);
        CHECK(memcmp(expected, logits, sizeof logits) == 0);
        static const int32_t row_start[3] = {0, 3, 8};
        ml_batch batch;
        ml_outputs out = {NULL, 0, expected, NULL}, other = {NULL, 0, logits, NULL};
        memset(&batch, 0, sizeof batch);
        batch.tokens = ids, batch.n_tokens = 8, batch.row_start = row_start, batch.n_rows = 2;
        CHECK(!ml_session_eval_batch(held, &batch, &out, NULL) &&
              !ml_session_eval_batch(computed, &batch, &other, NULL));
        CHECK(memcmp(expected, logits, 8 * 128 * sizeof *logits) == 0);
        ml_session_free(held), ml_session_free(computed);
    }
    ml_model_free(model);
}

/* ---- greedy ---- */

TEST(greedy_sessions_do_not_draw) {
    ml_model *model = load(NULL);
    ml_session_desc desc = session_of(32, 1, ML_F32);
    ml_session *usual = open_session(model, desc);
    size_t with, without;
    CHECK(!ml_session_size(model, &desc, &with, NULL));
    desc.greedy = 1;
    CHECK(!ml_session_size(model, &desc, &without, NULL) && with - without == 8 * 2048);
    ml_session *greedy = open_session(model, desc);
    ml_generate_desc how;
    ml_random random;
    ml_random_seed(&random, 1);
    memset(&how, 0, sizeof how);
    how.prompt = "The cat";
    CHECK(!ml_session_generate(usual, &how, NULL, NULL) &&
          !ml_session_generate(greedy, &how, NULL, &failure));
    CHECK(usual->length == greedy->length && usual->length == 32);
    CHECK(memcmp(usual->tokens, greedy->tokens, 32 * sizeof(int32_t)) == 0);
    how.sampler.temperature = 1, how.sampler.random = &random;
    CHECK(ml_session_generate(greedy, &how, NULL, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "greedy"));
    ml_session_free(usual), ml_session_free(greedy);
    ml_model_free(model);
}

/* ---- no logits ---- */

/* The story of a session, and whether another one that holds no logits has the same tokens. */
static int same_story(const ml_model *model, ml_session_desc desc, const ml_generate_desc *how) {
    ml_session *usual = open_session(model, desc);
    desc.no_logits = 1;
    ml_session *without = open_session(model, desc);
    int same = !ml_session_generate(usual, how, NULL, &failure) &&
               !ml_session_generate(without, how, NULL, &failure) && usual->length == without->length &&
               memcmp(usual->tokens, without->tokens, (size_t)usual->length * sizeof *usual->tokens) == 0;
    ml_session_free(usual), ml_session_free(without);
    return same;
}

TEST(sessions_without_logits_write_the_same) {
    ml_model *model = load(NULL), *floats = load_floats();
    ml_generate_desc how;
    memset(&how, 0, sizeof how);
    how.prompt = "The cat";
    CHECK(same_story(model, session_of(48, 1, ML_F32), &how));
    CHECK(same_story(model, session_of(48, 8, ML_Q8_0), &how));
    CHECK(same_story(floats, session_of(48, 1, ML_F32), &how));
    how.overflow = ML_OVERFLOW_SLIDE, how.max_new_tokens = 60; /* several passes after each time it slides */
    CHECK(same_story(model, session_of(24, 3, ML_F32), &how));
    ml_model_free(model), ml_model_free(floats);
}

TEST(sessions_without_logits_refuse_what_needs_them) {
    static float expected[2048], logits[2048];
    ml_model *model = load(NULL);
    ml_session_desc desc = session_of(32, 1, ML_F32);
    size_t greedy, without;
    desc.greedy = 1;
    CHECK(!ml_session_size(model, &desc, &greedy, NULL));
    desc.greedy = 0, desc.no_logits = 1;
    CHECK(!ml_session_size(model, &desc, &without, NULL) && greedy - without == 4 * 2048);
    ml_session *session = open_session(model, desc), *usual = open_session(model, session_of(32, 1, ML_F32));
    ml_random random;
    ml_random_seed(&random, 1);
    ml_generate_desc how;
    memset(&how, 0, sizeof how);
    how.prompt = "The cat", how.sampler.temperature = 1, how.sampler.random = &random;
    CHECK(ml_session_generate(session, &how, NULL, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "no_logits"));
    how.sampler.temperature = 0, how.sampler.repetition_penalty = 1e-39f;
    CHECK(ml_session_generate(session, &how, NULL, &failure) == ML_ERROR_ARGUMENT);
    CHECK(strstr(failure.text, "between 0.001 and 1000") != NULL);
    how.sampler.repetition_penalty = 1.5f;
    CHECK(ml_session_generate(session, &how, NULL, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "penalty") && strstr(failure.text, "no_logits"));
    const float *last = expected;
    fill_ids(12, model->config.vocab_size);
    CHECK(ml_session_eval(session, ids, 2, &last, &failure) == ML_ERROR_UNSUPPORTED && !last &&
          strstr(failure.text, "no_logits") && session->length == 0);
    ml_likelihood_desc text;
    ml_likelihood found;
    memset(&text, 0, sizeof text);
    text.context = "The", text.continuation = " cat";
    CHECK(ml_session_likelihood(session, &text, &found, &failure) == ML_ERROR_UNSUPPORTED &&
          strstr(failure.text, "no_logits"));
    /* into memory of the caller's */
    const int32_t at = 1;
    ml_outputs out = {&at, 1, NULL, logits};
    CHECK(!ml_session_eval(session, ids, 1, NULL, &failure) &&
          !ml_session_eval_outputs(session, ids + 1, 2, &out, &failure));
    out.logits = expected;
    CHECK(!ml_session_eval(usual, ids, 1, NULL, &failure) &&
          !ml_session_eval_outputs(usual, ids + 1, 2, &out, &failure));
    CHECK(memcmp(expected, logits, sizeof logits) == 0);
    ml_session_free(session), ml_session_free(usual);
    ml_model_free(model);
}

/* Writes a row of the output matrix (V, D) whose logit after this state (D) is `logit`, which is infinite in F32 from
   1e60 on. */
static void set_logit(const ml_model *model, const float *state, int32_t id, double logit) {
    const ml_tensor *output = tensor_named(model, "output.weight");
    float *row = (float *)output->data + (size_t)id * output->cols;
    for (size_t j = 0; j < output->cols; j++) {
        double share = logit / (double)output->cols / (double)state[j];
        row[j] = (float)(share > 3e38 ? 3e38 : share < -3e38 ? -3e38 : share);
    }
}

/* The token that the session draws after token 1; -1: none, because logits are not finite. */
static int32_t drawn(ml_session *session) {
    static const int32_t first = 1;
    ml_generate_desc how;
    memset(&how, 0, sizeof how);
    how.prompt_ids.ids = &first, how.prompt_ids.n = 1, how.max_new_tokens = 1;
    ml_result result = ml_session_generate(session, &how, NULL, &failure);
    return result == ML_ERROR_NUMBER ? -1 : result ? -2 : session->tokens[1];
}

/* 600 tokens, in parts of 256, 256 and 88. The largest may be in any; the first of equals is drawn; -infinity is not
   drawn, whatever part it fills; NaN and +infinity anywhere end it. */
TEST(parts_of_logits) {
    static const struct {
        int32_t id[2];
        double logit[2];
        int n_gone; /* tokens from 0 on whose logit is -infinity */
        int32_t expected;
    } cases[] = {{{0, 599}, {9, 8}, 0, 0},         {{0, 599}, {8, 9}, 0, 599},
                 {{255, 256}, {9, 9}, 0, 255},     {{256, 255}, {9, 8}, 0, 256},
                 {{300, 590}, {9, 9}, 0, 300},     {{511, 512}, {8, 9}, 0, 512},
                 {{300, 590}, {-9, -8}, 600, 590}, {{300, 20}, {-9, -8}, 600, 20},
                 {{3, 4}, {9, 8}, 600, 3},         {{512, 513}, {1, 1}, 512, 512},
                 {{5, 599}, {9, 1e60}, 0, -1},     {{5, 400}, {9, 1e60}, 0, -1},
                 {{5, 0}, {9, 1e60}, 300, -1},     {{5, 300}, {9, (double)NAN}, 0, -1},
                 {{5, 6}, {-1e60, -1e60}, 600, -1}};
    ml_config config;
    ml_model *model = NULL;
    ml_random random;
    float state[32];
    memset(&config, 0, sizeof config), ml_random_seed(&random, 7);
    config.vocab_size = 600, config.dim = 32, config.hidden_dim = 64, config.n_layers = 1;
    config.n_heads = config.n_kv_heads = 2, config.max_seq_len = 4;
    REQUIRE(!create_model(&config, ML_F32, &random, NULL, &model, &failure));
    ml_session_desc desc = session_of(4, 1, ML_F32);
    ml_session *usual = open_session(model, desc);
    desc.no_logits = 1;
    ml_session *without = open_session(model, desc);
    const int32_t first = 1;
    ml_outputs out = {NULL, 0, state, NULL};
    REQUIRE(!ml_session_eval_outputs(usual, &first, 1, &out, &failure));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int32_t id = 0; id < 600; id++) set_logit(model, state, id, id < cases[i].n_gone ? -1e60 : -20);
        for (int k = 0; k < 2; k++) set_logit(model, state, cases[i].id[k], cases[i].logit[k]);
        CHECK(drawn(without) == cases[i].expected);
        CHECK(drawn(usual) == cases[i].expected);
    }
    ml_session_free(usual), ml_session_free(without);
    ml_model_free(model);
}

/* ---- vocabularies in place ---- */

static int same_encoding(const ml_tokenizer *a, const ml_tokenizer *b, const char *text, size_t n,
                         int flags) {
    static int32_t work[2][4096];
    ml_tokens x, y;
    ml_encode_desc one = {text, n, flags, work[0], sizeof work[0]},
                   two = {text, n, flags, work[1], sizeof work[1]};
    if (ml_tokenizer_encode(a, &one, &x, &failure) || ml_tokenizer_encode(b, &two, &y, &failure)) return 0;
    return x.n == y.n && memcmp(x.ids, y.ids, (size_t)x.n * sizeof *x.ids) == 0;
}

TEST(compact_vocabularies_are_the_same) {
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    ml_model *usual = load(NULL);
    desc.compact = 1;
    ml_model *compact = load(&desc);
    const ml_tokenizer *a = usual->tokenizer, *b = compact->tokenizer;
    REQUIRE(a && b && a->n_pieces == b->n_pieces);
    CHECK(a->bos == b->bos && a->eos == b->eos && a->unknown == b->unknown && a->padding == b->padding);
    for (int32_t id = 0; id < a->n_pieces; id++) {
        size_t n, m;
        float x, y;
        ml_piece_kind k, l;
        const char *p = ml_tokenizer_piece(a, id, &n, &x, &k), *q = ml_tokenizer_piece(b, id, &m, &y, &l);
        CHECK(n == m && x == y && k == l && memcmp(p, q, n) == 0);
        for (int begun = 0; begun < 2; begun++) {
            int has_begun = begun, other = begun;
            p = ml_tokenizer_decode_token(a, &has_begun, id, &n),
            q = ml_tokenizer_decode_token(b, &other, id, &m);
            CHECK(n == m && has_begun == other && memcmp(p, q, n) == 0);
        }
    }
    CHECK(!ml_tokenizer_piece(b, -1, NULL, NULL, NULL) &&
          !ml_tokenizer_piece(b, a->n_pieces, NULL, NULL, NULL));
    ml_model_free(usual), ml_model_free(compact);
}

/* Texts of words, of anything, and of special pieces. */
TEST(compact_vocabularies_encode_the_same) {
    static const char *const parts[] = {
        "Once",     " upon", " a time", " ",      "  ", "\n",  "<s>",      "</s>", "<unk>",  "\xE2\x96\x81",
        "\xC3\xA9", "\xFF",  "the",     " quick", "ly", "ing", "\xE2\x96", "x",    "<0x41>", "."};
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    ml_model *usual = load(NULL);
    desc.compact = 1;
    ml_model *compact = load(&desc);
    ml_random random;
    ml_random_seed(&random, 3);
    for (int i = 0; i < 500; i++) {
        char text[128];
        size_t n = 0;
        for (int k = 0; k < 12; k++) {
            const char *part = parts[ml_random_u64(&random) % (sizeof parts / sizeof *parts)];
            memcpy(text + n, part, strlen(part));
            n += strlen(part);
        }
        CHECK(same_encoding(usual->tokenizer, compact->tokenizer, text, n,
                            i % 2 ? ML_PARSE_SPECIAL : ML_ADD_BOS));
    }
    ml_model_free(usual), ml_model_free(compact);
}

/* A chat asks what kind of piece an id is. */
TEST(compact_vocabularies_chat) {
    ml_model_load_desc desc;
    ml_chat_desc how = {ML_CHAT_LLAMA2, "Be brief."};
    int32_t turns[2][64];
    int n[2] = {0, 0};
    memset(&desc, 0, sizeof desc);
    for (int i = 0; i < 2; i++) {
        desc.compact = i;
        ml_model *model = load(&desc);
        ml_session *session = open_session(model, session_of(64, 0, ML_F32));
        ml_chat chat;
        ml_tokens turn = {NULL, 0};
        CHECK(!ml_chat_begin(session, &how, &chat, &failure));
        CHECK(!ml_chat_encode(&chat, "Once upon </s> a time", &turn, &failure) && turn.n > 2);
        memcpy(turns[i], turn.ids, (size_t)turn.n * sizeof *turn.ids);
        n[i] = turn.n;
        ml_session_free(session);
        ml_model_free(model);
    }
    CHECK(n[0] == n[1] && memcmp(turns[0], turns[1], (size_t)n[0] * sizeof **turns) == 0);
}

/* ---- scratch ---- */

TEST(scratch_is_given_back) {
    static unsigned char kept[24576], lent[65536]; /* on a big-endian machine it keeps 7 KB of norms, too */
    static float expected[2048], logits[2048];
    ml_arena arena = {kept, sizeof kept, 0}, meanwhile = {lent, sizeof lent, 0};
    ml_model_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.allocator = ml_arena_allocator(&arena), desc.scratch = ml_arena_allocator(&meanwhile),
    desc.compact = 1;
    ml_model *model = load(&desc), *usual = load(NULL);
    CHECK(meanwhile.used > 10000);
    memset(lent, 0x5a, sizeof lent);
    ml_session *a = open_session(model, session_of(N, N, ML_F32)),
               *b = open_session(usual, session_of(N, N, ML_F32));
    fill_ids(11, model->config.vocab_size);
    read_all(a, N, logits), read_all(b, N, expected);
    CHECK(memcmp(expected, logits, sizeof logits) == 0);
    /* it is in place, in memory that is not the model's to write */
    ml_trainer_desc train;
    ml_trainer *trainer;
    memset(&train, 0, sizeof train);
    train.adamw.lr = 0.1f;
    CHECK(ml_trainer_new(model, &train, &trainer, &failure) == ML_ERROR_ARGUMENT);
    ml_session_free(a), ml_session_free(b);
    ml_model_free(model), ml_model_free(usual);
}

/* A file as an array of bytes may begin anywhere. Little memory is then not enough, and the sentence says why; at a
   multiple of 4 it is, and the sentence about too little memory is another one. */
TEST(unaligned_files_are_named) {
    static unsigned char kept[65536], lent[65536];
    ml_model_load_desc desc;
    if (!file.data) file = read_file(MODEL);
    unsigned char *moved = (unsigned char *)malloc(file.size + 64);
    for (size_t shift = 0; shift < 5; shift++) {
        ml_arena arena = {kept, sizeof kept, 0}, meanwhile = {lent, sizeof lent, 0};
        ml_model *model = NULL;
        memset(&desc, 0, sizeof desc);
        desc.allocator = ml_arena_allocator(&arena), desc.scratch = ml_arena_allocator(&meanwhile);
        desc.compact = 1;
        memcpy(moved + shift, file.data, file.size);
        ml_result result = ml_model_load_memory(moved + shift, file.size, &desc, &model, &failure);
        if (shift % 2 == 0) {
            CHECK(result == ML_OK); /* 2: only the norms, of F32, are copied */
            arena.used = arena.size - 1024, meanwhile.used = 0;
            result = ml_model_load_memory(moved + shift, file.size, &desc, &model, &failure);
            CHECK(result == ML_ERROR_MEMORY && !model && !strstr(failure.text, "aligned"));
        } else {
            CHECK(result == ML_ERROR_MEMORY && failure.code == result && !model);
            CHECK(strstr(failure.text, "not aligned") != NULL);
        }
    }
    free(moved);
}

/* ---- saving without files ---- */

static int take(void *user, const void *data, size_t n) {
    put((bytes *)user, data, n);
    return 1;
}

static int take_little(void *user, const void *data, size_t n) {
    bytes *b = (bytes *)user;
    if (b->size + n > 1000) return 0;
    return take(user, data, n);
}

/* Whether what was written is what is in the file. */
static int is_in_file(const bytes *b, const char *path) {
    bytes in_file = read_file(path);
    int same = b->size == in_file.size && memcmp(b->data, in_file.data, b->size) == 0;
    free_bytes(&in_file);
    return same;
}

TEST(outputs_get_the_bytes_of_files) {
    ml_model *model = load(NULL);
    ml_lora *lora = NULL;
    ml_random random;
    ml_lora_create_desc create;
    bytes got = {NULL, 0, 0}, little = {NULL, 0, 0};
    ml_output output = {take, &got}, fails = {take_little, &little};
    ml_save_desc desc;
    memset(&create, 0, sizeof create), memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, 5);
    create.random = &random;
    CHECK(!ml_model_save(model, in_folder("m.gguf"), NULL, NULL) &&
          !ml_model_save_to(model, &output, NULL, &failure));
    CHECK(is_in_file(&got, in_folder("m.gguf")) && got.size > 1400000);
    got.size = 0;
    REQUIRE(!ml_lora_create(model, &create, &lora, NULL));
    CHECK(!ml_lora_save(lora, model, in_folder("l.gguf"), NULL, NULL) &&
          !ml_lora_save_to(lora, model, &output, NULL, NULL));
    CHECK(is_in_file(&got, in_folder("l.gguf")));
    got.size = 0;
    ml_named_tensor named = {"w", model->tensors[1], 1};
    ml_archive_save_desc archive;
    memset(&archive, 0, sizeof archive);
    archive.tensors = &named, archive.n_tensors = 1;
    CHECK(!ml_archive_save(in_folder("a.gguf"), &archive, NULL) &&
          !ml_archive_save_to(&output, &archive, NULL));
    CHECK(is_in_file(&got, in_folder("a.gguf")));
    char words[64];
    CHECK(ml_model_save_to(model, &fails, NULL, &failure) == ML_ERROR_FILE && little.size <= 1000);
    snprintf(words, sizeof words, "the output took no more after %d bytes", (int)little.size);
    CHECK(little.size > 100 && strstr(failure.text, words));
    desc.format = ML_SAFETENSORS;
    CHECK(ml_model_save_to(model, &output, &desc, &failure) == ML_ERROR_UNSUPPORTED &&
          strstr(failure.text, "GGUF"));
    archive.text_name = "a.json", archive.text = "{}";
    CHECK(ml_archive_save_to(&output, &archive, &failure) == ML_ERROR_ARGUMENT &&
          strstr(failure.text, "no place for the file a.json"));
    output.write = NULL;
    CHECK(ml_model_save_to(model, &output, NULL, NULL) == ML_ERROR_ARGUMENT &&
          ml_model_save_to(model, NULL, NULL, NULL));
    free_bytes(&got), free_bytes(&little);
    ml_lora_free(lora), ml_model_free(model);
}

static ml_trainer *new_trainer(ml_model *model, ml_lora *lora) {
    ml_trainer_desc desc;
    ml_trainer *trainer = NULL;
    memset(&desc, 0, sizeof desc);
    desc.lora = lora, desc.max_tokens = 16, desc.adamw.lr = 0.01f;
    if (ml_trainer_new(model, &desc, &trainer, &failure)) give_up();
    return trainer;
}

static float step(ml_trainer *trainer) {
    ml_batch batch;
    float loss = 0;
    memset(&batch, 0, sizeof batch);
    batch.tokens = ids, batch.targets = ids + 1, batch.n_tokens = 16;
    if (ml_trainer_backward(trainer, &batch, NULL, &loss, &failure) || ml_trainer_step(trainer, &failure))
        give_up();
    return loss;
}

/* What learned continues from bytes as if it had not stopped. */
TEST(trainers_continue_from_memory) {
    ml_model *model = load(NULL);
    ml_lora *lora[2] = {NULL, NULL};
    ml_random random;
    ml_lora_create_desc create;
    bytes got = {NULL, 0, 0};
    ml_output output = {take, &got};
    memset(&create, 0, sizeof create);
    ml_random_seed(&random, 6);
    create.random = &random;
    fill_ids(12, model->config.vocab_size);
    REQUIRE(!ml_lora_create(model, &create, &lora[0], NULL) &&
            !ml_lora_create(model, &create, &lora[1], NULL));
    ml_trainer *first = new_trainer(model, lora[0]), *second = new_trainer(model, lora[1]);
    step(first), step(first);
    CHECK(!ml_trainer_save_to(first, &output, &failure) &&
          !ml_trainer_save(first, in_folder("t.gguf"), NULL));
    CHECK(is_in_file(&got, in_folder("t.gguf")));
    CHECK(ml_trainer_restore_memory(second, got.data, got.size / 2, &failure) == ML_ERROR_TRUNCATED &&
          second->step == 0);
    REQUIRE(!ml_trainer_restore_memory(second, got.data, got.size, &failure) && second->step == 2);
    for (int i = 0; i < 2; i++) CHECK(step(first) == step(second));
    CHECK(ml_trainer_restore_memory(second, NULL, 0, NULL) == ML_ERROR_ARGUMENT);
    ml_trainer_zero_gradients(NULL); /* like ml_trainer_free */
    ml_trainer_free(first), ml_trainer_free(second);
    ml_lora_free(lora[0]), ml_lora_free(lora[1]);
    ml_model_free(model);
    free_bytes(&got);
}

static ml_optimizer *new_optimizer(ml_tensor *tensor) {
    ml_parameter parameter = {tensor, 0};
    ml_optimizer_desc desc;
    ml_optimizer *optimizer = NULL;
    memset(&desc, 0, sizeof desc);
    desc.parameters = &parameter, desc.n_parameters = 1, desc.adamw.lr = 0.1f;
    if (ml_optimizer_new(&desc, &optimizer, &failure)) give_up();
    return optimizer;
}

TEST(optimizers_continue_from_memory) {
    float numbers[2][4] = {{1, 2, 3, 4}, {0, 0, 0, 0}};
    bytes got = {NULL, 0, 0};
    ml_output output = {take, &got};
    ml_optimizer *optimizers[2];
    ml_tensor tensors[2] = {{ML_F32, 1, 4, numbers[0], NULL}, {ML_F32, 1, 4, numbers[1], NULL}};
    for (int i = 0; i < 2; i++) optimizers[i] = new_optimizer(&tensors[i]);
    tensors[0].grad[1] = 3;
    CHECK(!ml_optimizer_step(optimizers[0], NULL) && !ml_optimizer_save_to(optimizers[0], &output, &failure));
    CHECK(!ml_optimizer_restore_memory(optimizers[1], got.data, got.size, &failure) &&
          optimizers[1]->step == 1);
    tensors[0].grad[2] = tensors[1].grad[2] = 1;
    CHECK(!ml_optimizer_step(optimizers[0], NULL) && !ml_optimizer_step(optimizers[1], NULL));
    CHECK(memcmp(numbers[0], numbers[1], sizeof numbers[0]) == 0);
    ml_optimizer_free(optimizers[0]), ml_optimizer_free(optimizers[1]);
    free_bytes(&got);
}

/* A file in which one tensor cannot be read changes none of them. */
TEST(optimizers_are_restored_whole) {
    static const char last[] = "adamw.v.parameter.0";
    float numbers[4] = {1, 2, 3, 4};
    bytes got = {NULL, 0, 0};
    ml_output output = {take, &got};
    ml_tensor tensor = {ML_F32, 1, 4, numbers, NULL};
    ml_optimizer *optimizer = new_optimizer(&tensor);
    CHECK(!ml_optimizer_save_to(optimizer, &output, &failure));
    size_t at = 0, length = sizeof last - 1;
    while (at + length < got.size && memcmp(got.data + at, last, length) != 0) at++;
    REQUIRE(at + length + 21 < got.size);
    at += length + 4 + 2 * 8; /* after the number of dimensions and two of them: the type */
    REQUIRE(got.data[at] == 0);
    got.data[at] = 16; /* GGUF's IQ2_XXS, which is not read */
    numbers[0] = 77;
    CHECK(ml_optimizer_restore_memory(optimizer, got.data, got.size, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, last) != NULL && numbers[0] == 77);
    ml_optimizer_free(optimizer);
    free_bytes(&got);
}

/* Numbers that are not finite neither replace a good checkpoint nor come from a bad one. */
TEST(optimizers_keep_finite_numbers) {
    float numbers[4] = {1, 2, 3, 4};
    bytes got = {NULL, 0, 0};
    ml_output output = {take, &got};
    ml_tensor tensor = {ML_F32, 1, 4, numbers, NULL};
    ml_optimizer *optimizer = new_optimizer(&tensor);
    CHECK(!ml_optimizer_save_to(optimizer, &output, &failure));
    size_t good = got.size;
    numbers[1] = NAN;
    CHECK(ml_optimizer_save_to(optimizer, &output, &failure) == ML_ERROR_NUMBER && got.size == good);
    numbers[1] = 2.5f;
    size_t at = good - 3 * 32; /* the numbers and the moments, each aligned to 32 bytes */
    while (at < good && memcmp(got.data + at, "\0\0\200?\0\0\0@", 8) != 0) at++;
    REQUIRE(at < good);
    got.data[at + 3] = 0x7f, got.data[at + 2] = 0xc0; /* NaN in place of 1 */
    CHECK(ml_optimizer_restore_memory(optimizer, got.data, good, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "parameter.0 has a number that is not finite") && numbers[1] == 2.5f);
    got.data[at + 3] = 0x3f, got.data[at + 2] = 0x80;
    got.data[at + 64 + 3] = 0xbf, got.data[at + 64 + 2] = 0x80; /* -1 as a mean of squares */
    CHECK(ml_optimizer_restore_memory(optimizer, got.data, good, &failure) == ML_ERROR_NUMBER);
    CHECK(strstr(failure.text, "adamw.v.parameter.0 has a number that is not finite, or below 0"));
    got.data[at + 64 + 3] = 0x3f;
    CHECK(ml_optimizer_restore_memory(optimizer, got.data, good, &failure) == ML_OK && numbers[1] == 2);
    ml_optimizer_free(optimizer);
    free_bytes(&got);
}

int main(void) {
    RUN(narrow_caches_are_close);
    RUN(narrow_caches_are_saved);
    RUN(narrow_caches_with_a_window);
    RUN(narrow_caches_show_what_is_not_finite);
    RUN(wrong_caches_are_refused);
    RUN(computed_rope_has_the_same_bits);
    RUN(greedy_sessions_do_not_draw);
    RUN(sessions_without_logits_write_the_same);
    RUN(sessions_without_logits_refuse_what_needs_them);
    RUN(parts_of_logits);
    RUN(compact_vocabularies_are_the_same);
    RUN(compact_vocabularies_encode_the_same);
    RUN(compact_vocabularies_chat);
    RUN(scratch_is_given_back);
    RUN(unaligned_files_are_named);
    RUN(outputs_get_the_bytes_of_files);
    RUN(trainers_continue_from_memory);
    RUN(optimizers_continue_from_memory);
    RUN(optimizers_are_restored_whole);
    RUN(optimizers_keep_finite_numbers);
    free_bytes(&file);
    return test_report("test_small");
}
