/* Sampling and generation. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "build_files.h"
#include "shared.h"

/* ---- random numbers ---- */

/* What Blackman and Vigna's xoshiro256** and splitmix64 give: their known first numbers, from the states 1, 2, 3, 4 and
   1234567. A seed means the same numbers in every version and on every machine. */
TEST(random_numbers_are_the_published_ones) {
    static const uint64_t first[10] = {11520u,
                                       0,
                                       1509978240u,
                                       1215971899390074240u,
                                       1216172134540287360u,
                                       607988272756665600u,
                                       16172922978634559625u,
                                       8476171486693032832u,
                                       10595114339597558777u,
                                       2904607092377533576u};
    static const uint64_t seeded[4] = {6457827717110365317u, 3203168211198807973u, 9817491932198370423u,
                                       4593380528125082431u};
    ml_random random = {{1, 2, 3, 4}};
    for (int i = 0; i < 10; i++) CHECK(ml_random_u64(&random) == first[i]);
    ml_random_seed(&random, 1234567);
    for (int i = 0; i < 4; i++) CHECK(random.state[i] == seeded[i]);
    /* of which the next four are 3187617, 1654879, 1137642 and 15407050 in their upper 24 bits */
    CHECK(ml_random_uniform(&random) == 3187617 / 16777216.0f);
    CHECK(ml_random_uniform(&random) == 1654879 / 16777216.0f);
    ml_random_seed(&random, 1234567);
    CHECK_NEAR(ml_random_normal(&random), 0.5284423364, 1e-6, 0); /* sqrt(-2 ln(1 - u)) cos(2 pi v) */
    CHECK_NEAR(ml_random_normal(&random), 0.3264820432, 1e-6, 0);
}

/* ---- the sampler, on distributions that are easy to compute by hand ---- */

#define N_DRAWS 20000

/* Draws many times from the given probabilities; share[i] is how often token i came. */
static void draw_many(const ml_sampler *sampler, const float *p, int n, double *share) {
    ml_random random;
    ml_sampler seeded = *sampler;
    float logits[64];
    ml_candidate work[64];
    int i, j;
    ml_random_seed(&random, 42);
    seeded.random = &random;
    for (i = 0; i < n; i++) share[i] = 0;
    for (j = 0; j < N_DRAWS; j++) {
        for (i = 0; i < n; i++) logits[i] = logf(p[i]) + 3; /* softmax undoes any shift */
        share[ml_sampler_sample(&seeded, logits, n, NULL, work)] += 1.0 / N_DRAWS;
    }
}

/* Checks each share; 5 standard deviations of a share of 20000 draws are below 0.018. */
static void check_shares(const ml_sampler *sampler, const double *expected) {
    static const float p[6] = {0.05f, 0.4f, 0.02f, 0.3f, 0.2f, 0.03f};
    double share[6];
    int i;
    draw_many(sampler, p, 6, share);
    for (i = 0; i < 6; i++) {
        if (expected[i] == 0)
            CHECK(share[i] == 0);
        else
            CHECK_NEAR(share[i], expected[i], 0.018, 0);
    }
}

TEST(greedy_takes_the_most_likely) {
    ml_sampler sampler;
    ml_random unseeded;
    float logits[5] = {0.5f, 2, -1, 2, 1};
    ml_candidate work[5];
    memset(&sampler, 0, sizeof sampler);
    CHECK(ml_sampler_sample(&sampler, logits, 5, NULL, work) == 1);
    sampler.temperature = 1; /* as it is without a random, and with one that was never seeded */
    CHECK(ml_sampler_sample(&sampler, logits, 5, NULL, work) == 1);
    memset(&unseeded, 0, sizeof unseeded);
    sampler.random = &unseeded;
    CHECK(ml_sampler_sample(&sampler, logits, 5, NULL, work) == 1);
}

TEST(temperature_sharpens_and_flattens) {
    ml_sampler sampler;
    double plain[6] = {0.05, 0.4, 0.02, 0.3, 0.2, 0.03};
    double squared[6], sum = 0;
    int i;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1;
    check_shares(&sampler, plain);
    sampler.temperature = 0.5f; /* p^(1/T), renormalized */
    for (i = 0; i < 6; i++) sum += plain[i] * plain[i];
    for (i = 0; i < 6; i++) squared[i] = plain[i] * plain[i] / sum;
    check_shares(&sampler, squared);
}

/* Token 0 is drawn as any other, also where it is the most likely, and then the others are drawn, too. */
TEST(the_first_token_is_no_exception) {
    static const float p[3] = {0.6f, 0.3f, 0.1f};
    double share[3];
    ml_sampler sampler;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1;
    draw_many(&sampler, p, 3, share);
    for (int i = 0; i < 3; i++) CHECK_NEAR(share[i], p[i], 0.018, 0);
}

TEST(filters_keep_what_they_should) {
    ml_sampler sampler;
    double two[6] = {0, 0.4 / 0.7, 0, 0.3 / 0.7, 0, 0};
    double three[6] = {0, 0.4 / 0.9, 0, 0.3 / 0.9, 0.2 / 0.9, 0};
    double four[6] = {0.05 / 0.95, 0.4 / 0.95, 0, 0.3 / 0.95, 0.2 / 0.95, 0};
    double one[6] = {0, 1, 0, 0, 0, 0};
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1;
    sampler.top_k = 2;
    check_shares(&sampler, two);
    sampler.top_k = 0;
    sampler.top_p = 0.8f; /* 0.4 + 0.3 is less, with 0.2 it is reached */
    check_shares(&sampler, three);
    sampler.top_p = 0;
    sampler.min_p = 0.6f; /* of 0.4: drops below 0.24 */
    check_shares(&sampler, two);
    sampler.min_p = 0;
    sampler.epsilon = 0.04f;
    check_shares(&sampler, four);
    sampler.epsilon = 0.9f; /* none reaches it: the most likely stays */
    check_shares(&sampler, one);
    sampler.epsilon = 0.04f;
    sampler.top_k = 3; /* together: the stricter wins */
    check_shares(&sampler, three);
    sampler.top_p = 0.01f;
    check_shares(&sampler, one);
}

/* Rounding may leave the last candidate to be drawn, so none may be there that has no probability. */
TEST(what_is_ruled_out_is_no_candidate) {
    ml_sampler sampler;
    ml_random random;
    memset(&sampler, 0, sizeof sampler);
    ml_random_seed(&random, 1);
    sampler.temperature = 1;
    sampler.random = &random;
    for (int i = 0; i < 20; i++) {
        float logits[4] = {-INFINITY, 1, 2, -INFINITY};
        ml_candidate work[4] = {{0, -7}, {0, -7}, {0, -7}, {0, -7}};
        int32_t id = ml_sampler_sample(&sampler, logits, 4, NULL, work);
        CHECK((id == 1 || id == 2) && work[0].id == 1 && work[1].id == 2 && work[2].id == -7);
    }
}

TEST(repetition_penalty_weakens_what_was_seen) {
    ml_sampler sampler;
    float logits[4];
    static const int32_t seen[5] = {2, 1, 1, 1, 0};
    const ml_tokens history = {seen, 5};
    ml_candidate work[4];
    memset(&sampler, 0, sizeof sampler);
    sampler.repetition_penalty = 2;
    logits[0] = -1, logits[1] = 3, logits[2] = 2, logits[3] = 0.5f;
    CHECK(ml_sampler_sample(&sampler, logits, 4, &history, work) == 1); /* 3 / 2, still the largest */
    CHECK_NEAR(logits[0], -2, 1e-6, 0);                                 /* negative logits are multiplied */
    CHECK_NEAR(logits[1], 1.5, 1e-6, 0);                                /* once, though seen three times */
    CHECK_NEAR(logits[2], 1, 1e-6, 0);
    CHECK_NEAR(logits[3], 0.5, 0, 0);
    sampler.repetition_window = 4; /* token 2 has left the window */
    logits[0] = -1, logits[1] = 3, logits[2] = 2, logits[3] = 0.5f;
    CHECK(ml_sampler_sample(&sampler, logits, 4, &history, work) == 2);
    sampler.repetition_window = INT32_MIN; /* no token is in it */
    logits[0] = -1, logits[1] = 3, logits[2] = 2, logits[3] = 0.5f;
    CHECK(ml_sampler_sample(&sampler, logits, 4, &history, work) == 1 && logits[1] == 3 && logits[0] == -1);
}

/* A long, random distribution: the sets kept by top-k and top-p are those of a plain sort. */
static int by_probability(const void *a, const void *b) {
    float x = ((const ml_candidate *)a)->p, y = ((const ml_candidate *)b)->p;
    return x > y ? -1 : x < y;
}

TEST(top_sets_equal_a_sort) {
    ml_candidate heap[501], sorted[501];
    ml_random random;
    int n, i, round;
    ml_random_seed(&random, 9);
    for (round = 0; round < 200; round++) {
        int k = 1 + (int)(ml_random_u64(&random) % 40), taken;
        float p = ml_random_uniform(&random), sum = 0;
        n = 1 + (int)(ml_random_u64(&random) % 500);
        for (i = 0; i < n; i++)
            heap[i].p = ml_random_uniform(&random) / (float)n, heap[i].id = i, sorted[i] = heap[i];
        qsort(sorted, (size_t)n, sizeof *sorted, by_probability);
        taken = mli_take_top(heap, n, k, round & 1 ? p : 0);
        for (i = 0; i < taken; i++) {
            CHECK(heap[n - 1 - i].id == sorted[i].id);
            CHECK(i == 0 || !(round & 1) || sum < p);
            sum += sorted[i].p;
        }
        CHECK(taken == k || taken == n || ((round & 1) && sum >= p));
    }
}

/* One token has .997, the others of a large vocabulary share the rest: none of them may get what rounding loses. 3000
   draws take one of the last 100 with a probability of .007. */
TEST(small_probabilities_are_not_lost) {
    enum { MANY = 128256, DRAWS = 3000 };
    float *logits = (float *)malloc(MANY * sizeof *logits);
    ml_candidate *work = (ml_candidate *)malloc(MANY * sizeof *work);
    ml_sampler sampler;
    ml_random random;
    int last = 0, others = 0;
    REQUIRE(logits && work);
    ml_random_seed(&random, 1);
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1, sampler.random = &random;
    for (int i = 0; i < DRAWS; i++) {
        for (int j = 0; j < MANY; j++) logits[j] = j == 1000 ? 17.568f : 0; /* log(.997 / .003 * MANY) */
        int32_t id = ml_sampler_sample(&sampler, logits, MANY, NULL, work);
        last += id >= MANY - 100, others += id != 1000;
    }
    CHECK(last == 0 && others > 0 && others < 25); /* 9, with a deviation of 3 */
    free(logits), free(work);
}

/* NaN and infinity say that something is broken: no token is drawn. -infinity says that a token must not come. */
TEST(logits_that_are_not_finite) {
    static const struct {
        float most, one; /* seven logits, and the last */
        int drawn;       /* -1, the token; 8: any of the first seven */
    } rows[] = {{0, NAN, -1},         {0, -NAN, -1},         {0, INFINITY, -1},  {-INFINITY, -INFINITY, -1},
                {-INFINITY, NAN, -1}, {-INFINITY, 1e38f, 7}, {-INFINITY, -3, 7}, {1e38f, -INFINITY, 8},
                {3e38f, -3e38f, 8},   {-3e38f, 3e38f, 7}};
    static const int32_t seen[] = {7};
    const ml_tokens history = {seen, 1};
    ml_sampler sampler;
    ml_random random;
    float logits[8];
    ml_candidate work[8];
    size_t row;
    int i, kind;
    ml_random_seed(&random, 1);
    memset(&sampler, 0, sizeof sampler);
    for (kind = 0; kind < 8;
         kind++) { /* greedy or drawn, with filters or without, with a penalty or without */
        sampler.temperature = kind & 1 ? 1.0f : 0.0f;
        sampler.top_p = kind & 2 ? 0.9f : 0.0f;
        sampler.repetition_penalty = kind & 4 ? 1.1f : 0.0f;
        sampler.random = &random;
        for (row = 0; row < sizeof rows / sizeof *rows; row++) {
            int32_t id;
            for (i = 0; i < 8; i++) logits[i] = i < 7 ? rows[row].most : rows[row].one;
            if (kind & 4 && rows[row].one > 3e37f) continue; /* a penalty may overflow the largest */
            id = ml_sampler_sample(&sampler, logits, 8, &history, work);
            CHECK(rows[row].drawn == 8 ? id >= 0 && id < 7 : id == rows[row].drawn);
        }
    }
}

/* However low the temperature, down to the smallest float, the most likely is drawn; however high, one that may. */
TEST(temperatures_at_the_ends) {
    static const float low[] = {1e-3f, 1e-10f, 1e-30f, 1e-37f, 1.1754944e-38f, 1e-40f, 1.4012985e-45f};
    static const float scales[] = {1e-30f, 1, 1e4f, 1e37f};
    ml_sampler sampler;
    ml_random random;
    float logits[9];
    ml_candidate work[9];
    size_t t, k;
    int i, round;
    ml_random_seed(&random, 3);
    memset(&sampler, 0, sizeof sampler);
    sampler.random = &random;
    for (k = 0; k < 4; k++)
        for (round = 0; round < 20; round++)
            for (t = 0; t <= 7; t++) {
                int32_t best = (int32_t)(ml_random_u64(&random) % 8), id;
                for (i = 0; i < 8; i++) logits[i] = scales[k] * (i == best ? 3 : ml_random_uniform(&random));
                logits[8] = -INFINITY;
                sampler.temperature = t < 7 ? low[t] : INFINITY;
                id = ml_sampler_sample(&sampler, logits, 9, NULL, work);
                if (t == 7)
                    CHECK(id >= 0 && id < 8);
                else if ((double)sampler.temperature < 1e-2 * (double)scales[k]) /* e^-100 for the others */
                    CHECK(id == best);
            }
}

/* ---- whole texts ---- */

typedef struct collected {
    char text[8192];
    size_t length;
    int32_t ids[1024];
    int n, stop_after;
} collected;

static int collect(void *user, int32_t id, const char *text, size_t n) {
    collected *c = (collected *)user;
    if (c->length + n < sizeof c->text) memcpy(c->text + c->length, text, n), c->length += n;
    c->text[c->length] = 0;
    c->ids[c->n++] = id;
    return c->n != c->stop_after;
}

static ml_model *stories(ml_norm norm, ml_mask mask) {
    const char *path = shared_path("models/stories260K.pt");
    ml_model_load_desc load;
    ml_model *model = NULL;
    ml_error error;
    memset(&load, 0, sizeof load);
    load.norm = norm;
    load.mask = mask;
    load.tokenizer = shared_path("models/tok512.bin");
    if (path && load.tokenizer && ml_model_load(path, &load, &model, &error)) printf("%s\n", error.text);
    return model;
}

/* Reads the next field of a line, up to a tab or the end; quoted fields are JSON strings. */
static char *next_field(char **at) {
    char *field = *at, *to = field, *p = field;
    if (*p == '"') {
        for (p++; *p && *p != '"'; p++) {
            if (*p == '\\')
                *to++ = *++p == 'n' ? '\n' : *p;
            else
                *to++ = *p;
        }
        p += *p == '"';
    } else {
        while (*p && *p != '\t' && *p != '\n') *to++ = *p++;
    }
    *at = *p ? p + 1 : p;
    *to = 0;
    return field;
}

TEST(greedy_text_is_pytorchs) {
    const char *path = shared_path("reference/generate_greedy.txt");
    static char line[16384];
    FILE *file;
    int n_lines = 0;
    if (!path) SKIP("../shared is absent");
    file = fopen(path, "r");
    while (fgets(line, sizeof line, file)) {
        char *at = line, *mode = next_field(&at), *prompt = next_field(&at), *ids = next_field(&at),
             *text = next_field(&at);
        ml_model *model = stories(strncmp(mode, "layer", 5) ? ML_NORM_RMS : ML_NORM_LAYER,
                                  strstr(mode, "full") ? ML_MASK_FULL : ML_MASK_CAUSAL);
        ml_session *session;
        ml_generate_desc desc;
        ml_generated made;
        ml_error error;
        static collected c;
        int i, n_ids = 0;
        memset(&desc, 0, sizeof desc);
        memset(&c, 0, sizeof c);
        REQUIRE(model && ml_session_new(model, NULL, &session, &error) == ML_OK);
        for (i = 0; ids[i]; i++) n_ids += ids[i] == ' ';
        n_ids++;
        desc.prompt = prompt;
        desc.on_token = collect;
        desc.user = &c;
        desc.max_new_tokens = 75;
        REQUIRE(ml_session_generate(session, &desc, &made, &error) == ML_OK);
        CHECK(made.n_prompt + made.n_new == n_ids);
        for (i = 0; i < n_ids && i < made.n_prompt + c.n; i++) {
            int32_t id = (int32_t)strtol(ids, &ids, 10);
            CHECK(id == (i < made.n_prompt ? session->tokens[i] : c.ids[i - made.n_prompt]));
        }
        CHECK(strncmp(text, prompt, strlen(prompt)) == 0 && strcmp(text + strlen(prompt), c.text) == 0);
        ml_session_free(session);
        ml_model_free(model);
        n_lines++;
    }
    fclose(file);
    CHECK(n_lines == 6);
}

/* The story that llama2.c publishes for this model: 200 greedy tokens from nothing, 464 bytes. */
TEST(greedy_story_is_llama2cs) {
    ml_model *model = stories(ML_NORM_RMS, ML_MASK_CAUSAL);
    ml_session *session;
    ml_generate_desc desc;
    static collected c;
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    size_t i;
    if (!model) SKIP("../shared is absent");
    memset(&desc, 0, sizeof desc);
    desc.prompt = "";
    desc.max_new_tokens = 200;
    desc.on_token = collect;
    desc.user = &c;
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    CHECK(ml_session_generate(session, &desc, NULL, NULL) == ML_OK);
    for (i = 0; i < c.length; i++) hash = (hash ^ (unsigned char)c.text[i]) * 0x100000001b3u;
    CHECK(c.length == 464);
    CHECK(hash == 0x7b55aec7519f96abu);
    CHECK(strncmp(c.text, "Once upon a time, there was a little girl named Lily.", 53) == 0);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- stops, limits and sliding: a random model without tokenizer is enough ---- */

static ml_model *random_model(void) {
    ml_model_create_desc desc;
    ml_config *c = &desc.config;
    ml_random random;
    ml_model *model = NULL;
    memset(&desc, 0, sizeof desc);
    c->dim = 32;
    c->hidden_dim = 64;
    c->n_layers = 2;
    c->n_heads = c->n_kv_heads = 4;
    c->vocab_size = 50;
    c->max_seq_len = 24;
    c->norm = ML_NORM_RMS;
    c->mask = ML_MASK_CAUSAL;
    c->norm_eps = 1e-5f;
    c->rope_theta = 10000;
    c->rope_scale = 1;
    ml_random_seed(&random, 4);
    desc.random = &random;
    ml_model_create(&desc, &model, NULL);
    return model;
}

TEST(stops_where_it_should) {
    ml_model *model = random_model();
    int32_t prompt[24] = {1, 7, 9};
    ml_session *session;
    ml_generate_desc desc;
    ml_generated made;
    ml_random random;
    ml_error error;
    collected c;
    REQUIRE(model && ml_session_new(model, NULL, &session, NULL) == ML_OK);
    memset(&desc, 0, sizeof desc);
    memset(&c, 0, sizeof c);
    desc.prompt_ids.ids = prompt;
    desc.prompt_ids.n = 3;
    desc.on_token = collect;
    desc.user = &c;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK); /* until the context is full */
    CHECK(made.n_prompt == 3 && made.n_new == 21 && made.stop == ML_STOP_CONTEXT && c.n == 21);
    c.n = 0;
    c.stop_after = 5;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
    CHECK(made.n_new == 5 && made.stop == ML_STOP_CALLER);
    c.stop_after = 0;
    desc.start = (ml_start)7;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT && made.n_new == 0);
    desc.start = ML_START_OVER, desc.overflow = (ml_overflow)2;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT && made.n_new == 0);
    desc.overflow = ML_OVERFLOW_ERROR;
    desc.max_new_tokens = 1;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
    CHECK(made.n_new == 1 && made.stop == ML_STOP_LENGTH && session->length == 4);
    desc.max_new_tokens = 21; /* as many as fit */
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
    CHECK(made.n_new == 21 && made.stop == ML_STOP_LENGTH);
    desc.max_new_tokens = 22; /* one more */
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
    CHECK(made.n_new == 21 && made.stop == ML_STOP_CONTEXT && session->length == 24);
    desc.max_new_tokens = INT32_MAX;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
    CHECK(made.n_new == 21 && made.stop == ML_STOP_CONTEXT);
    desc.prompt_ids.n = 24;
    desc.max_new_tokens = 0;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK && made.n_new == 0);
    CHECK(made.stop == ML_STOP_CONTEXT);
    desc.prompt_ids.n = 0;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT);
    desc.prompt_ids.n = 3;
    desc.sampler.temperature = 1;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT); /* no ml_random */
    desc.sampler.temperature = 0;
    desc.prompt = "text", desc.prompt_ids.n = 0;
    CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT); /* no tokenizer */
    CHECK(strstr(error.text, "tokenizer") != NULL);
    /* the same seed gives the same text */
    desc.prompt = NULL, desc.prompt_ids.n = 3;
    desc.sampler.temperature = 1;
    desc.sampler.random = &random;
    c.stop_after = 0;
    {
        collected again;
        memset(&c, 0, sizeof c);
        memset(&again, 0, sizeof again);
        ml_random_seed(&random, 5);
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
        desc.user = &again;
        ml_random_seed(&random, 5);
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
        CHECK(c.n == 21 && memcmp(c.ids, again.ids, sizeof c.ids) == 0);
    }
    ml_session_free(session);
    ml_model_free(model);
}

/* Sliding: what is written after the context is full equals a fresh session that is given bos and the kept half. */
TEST(slides_when_told_to) {
    ml_model *model = random_model();
    int32_t prompt[3] = {1, 7, 9}, all[200], kept[24];
    ml_session *session, *fresh;
    ml_generate_desc desc;
    ml_generated made;
    const float *logits;
    collected c;
    int i, n_kept;
    REQUIRE(model && ml_session_new(model, NULL, &session, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &fresh, NULL) == ML_OK);
    memset(&desc, 0, sizeof desc);
    memset(&c, 0, sizeof c);
    desc.prompt_ids.ids = prompt;
    desc.prompt_ids.n = 3;
    desc.max_new_tokens = 100;
    desc.on_token = collect;
    desc.user = &c;
    desc.overflow = ML_OVERFLOW_SLIDE;
    REQUIRE(ml_session_generate(session, &desc, &made, NULL) == ML_OK);
    CHECK(made.n_new == 100 && c.n == 100);
    memcpy(all, prompt, sizeof prompt);
    memcpy(all + 3, c.ids, 100 * sizeof *all);
    /* the first slide happens when token 24 is to be appended: bos and the last 11 of the 23 others stay */
    n_kept = (24 - 1) / 2;
    kept[0] = 1;
    memcpy(kept + 1, all + 24 - n_kept, (size_t)n_kept * sizeof *kept);
    kept[n_kept + 1] = all[24];
    REQUIRE(ml_session_eval(fresh, kept, n_kept + 2, &logits, NULL) == ML_OK);
    for (i = 25; i < 25 + 24 - (n_kept + 2); i++) {
        CHECK(mli_argmax(logits, 50) == all[i]);
        REQUIRE(ml_session_eval(fresh, all + i, 1, &logits, NULL) == ML_OK);
    }
    ml_session_free(session);
    ml_session_free(fresh);
    ml_model_free(model);
}

/* What does not fit, even so: a prompt that is longer than the context, or as long after something. */
TEST(prompts_that_cannot_slide) {
    ml_model *model = random_model();
    int32_t ids[25] = {1};
    ml_session_desc one;
    ml_session *session, *single;
    ml_generate_desc desc;
    collected c;
    ml_error error;
    memset(&one, 0, sizeof one);
    memset(&desc, 0, sizeof desc);
    memset(&c, 0, sizeof c);
    one.max_seq_len = 1;
    REQUIRE(model && ml_session_new(model, NULL, &session, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, &one, &single, NULL) == ML_OK);
    desc.overflow = ML_OVERFLOW_SLIDE, desc.max_new_tokens = 1, desc.on_token = collect, desc.user = &c;
    desc.prompt_ids.ids = ids, desc.prompt_ids.n = 25;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_CONTEXT);
    REQUIRE(ml_session_eval(session, ids, 3, NULL, NULL) == ML_OK);
    desc.start = ML_START_APPEND, desc.prompt_ids.n = 24;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_CONTEXT && session->length == 3);
    desc.prompt_ids.n = 23;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_OK && c.n == 1);
    desc.prompt_ids.n = 1;
    CHECK(ml_session_generate(single, &desc, NULL, &error) == ML_ERROR_CONTEXT && c.n == 1);
    ml_session_free(session), ml_session_free(single);
    ml_model_free(model);
}

/* ---- settings ---- */

TEST(wrong_settings_are_refused) {
    static const size_t floats[] = {offsetof(ml_sampler, temperature), offsetof(ml_sampler, top_p),
                                    offsetof(ml_sampler, min_p), offsetof(ml_sampler, epsilon),
                                    offsetof(ml_sampler, repetition_penalty)};
    ml_model *model = random_model();
    int32_t prompt[2] = {1, 7};
    ml_session *session = NULL;
    ml_generate_desc desc, usual;
    ml_random random, zeros;
    ml_error error;
    REQUIRE(model && ml_session_new(model, NULL, &session, NULL) == ML_OK);
    memset(&usual, 0, sizeof usual);
    memset(&zeros, 0, sizeof zeros);
    ml_random_seed(&random, 1);
    usual.prompt_ids.ids = prompt, usual.prompt_ids.n = 2, usual.max_new_tokens = 3;
    usual.sampler.random = &random, usual.sampler.temperature = 1;
    for (int i = 0; i < 15; i++) {
        static const float values[3] = {-1, NAN, 90}; /* no percents */
        int is_p = floats[i / 3] != offsetof(ml_sampler, temperature) &&
                   floats[i / 3] != offsetof(ml_sampler, repetition_penalty);
        desc = usual;
        memcpy((char *)&desc.sampler + floats[i / 3], &values[i % 3], sizeof *values);
        if (i % 3 == 2 && !is_p) continue;
        CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_ARGUMENT);
        CHECK(strstr(error.text, "negative, NaN, or a p above 1"));
    }
    desc = usual, desc.sampler.top_k = -1;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_ARGUMENT);
    desc = usual, desc.sampler.repetition_window = -1;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_ARGUMENT);
    desc = usual, desc.max_new_tokens = -1;
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "max_new_tokens is -1"));
    desc = usual, desc.sampler.random = &zeros; /* would give zeros forever */
    CHECK(ml_session_generate(session, &desc, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "seeded") && session->length == 0);
    CHECK(ml_session_generate(session, &usual, NULL, &error) == ML_OK);
    ml_session_free(session);
    ml_model_free(model);
}

/* A penalty of 1 is none, also for a session that has no logits to change. */
TEST(a_penalty_of_1_is_none) {
    ml_model *model = random_model();
    int32_t prompt[2] = {1, 7};
    ml_session_desc how;
    ml_session *session = NULL;
    ml_generate_desc desc;
    static collected c[2];
    memset(&how, 0, sizeof how);
    memset(&desc, 0, sizeof desc);
    how.no_logits = 1;
    REQUIRE(model && ml_session_new(model, &how, &session, NULL) == ML_OK);
    desc.prompt_ids.ids = prompt, desc.prompt_ids.n = 2, desc.max_new_tokens = 9, desc.on_token = collect;
    for (int i = 0; i < 2; i++) {
        desc.sampler.repetition_penalty = (float)i, desc.user = &c[i];
        CHECK(ml_session_generate(session, &desc, NULL, NULL) == ML_OK);
    }
    CHECK(c[0].n == 9 && memcmp(c[0].ids, c[1].ids, sizeof c[0].ids) == 0);
    desc.sampler.repetition_penalty = 1.5f;
    CHECK(ml_session_generate(session, &desc, NULL, NULL) == ML_ERROR_ARGUMENT);
    ml_session_free(session);
    ml_model_free(model);
}

/* ---- with a tokenizer: what begins and what ends a text ---- */

/* n pieces: <unk>, <s>, </s>, the space, then "a", "b" and so on; llama2.c's file. */
static ml_tokenizer *letters(int n) {
    static const char *const texts[4] = {"<unk>", "\n<s>\n", "\n</s>\n", " "};
    bytes b = {NULL, 0, 0};
    ml_tokenizer *t = NULL;
    put_u32(&b, 6);
    for (int i = 0; i < n; i++) {
        char letter[2] = {(char)('a' + i - 4), 0};
        const char *text = i < 4 ? texts[i] : letter;
        put_f32(&b, 0);
        put_u32(&b, strlen(text));
        put_text(&b, text);
    }
    CHECK(ml_tokenizer_load_memory(b.data, b.size, NULL, &t, NULL) == ML_OK);
    free_bytes(&b);
    return t;
}

/* What the file says about bos is obeyed, and a tokenizer without bos works as well. */
TEST(bos_is_added_only_where_it_is_wanted) {
    ml_model *model = random_model();
    ml_tokenizer *t = letters(50);
    ml_session *session;
    ml_generate_desc desc;
    ml_generated made;
    ml_likelihood_desc score;
    ml_likelihood got;
    ml_error error;
    REQUIRE(model && t && ml_model_set_tokenizer(model, t, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    memset(&desc, 0, sizeof desc);
    memset(&score, 0, sizeof score);
    desc.max_new_tokens = 1;
    for (int how = 0; how < 4; how++) { /* as usual; bos not wanted; none; eos wanted, but not in a prompt */
        int adds = how == 0 || how == 3;
        t->bos = how == 2 ? -1 : 1;
        t->adds_bos = adds;
        t->adds_eos = how == 3;
        desc.prompt = "ab";
        desc.start = ML_START_OVER;
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK);
        CHECK(made.n_prompt == 3 + adds && session->tokens[0] == (adds ? 1 : 3));
        CHECK(session->tokens[made.n_prompt - 1] == 5); /* b */
        desc.prompt_ids.ids = session->tokens, desc.prompt_ids.n = 1;
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_ERROR_ARGUMENT);
        CHECK(strstr(error.text, "no prompt, or both text and ids"));
        desc.prompt_ids.n = 0;
        desc.prompt = "";
        CHECK(ml_session_generate(session, &desc, &made, &error) == (adds ? ML_OK : ML_ERROR_ARGUMENT));
        if (!adds) CHECK(strstr(error.text, "an empty prompt needs a bos"));
        desc.start = ML_START_APPEND; /* there is something to continue */
        CHECK(session->length > 0 && ml_session_generate(session, &desc, &made, &error) == ML_OK);
        ml_session_truncate(session, 0, NULL);
        desc.prompt = "ab";
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK && made.n_prompt == 3 + adds);
        CHECK(ml_session_generate(session, &desc, &made, &error) == ML_OK && made.n_prompt == 3);
        score.context = "a";
        score.continuation = "bc";
        CHECK(ml_session_likelihood(session, &score, &got, &error) == ML_OK && got.n_tokens == 2);
        CHECK(session->length == 4 + adds && session->tokens[0] == (adds ? 1 : 3));
        score.context = "";
        CHECK(ml_session_likelihood(session, &score, &got, &error) == (adds ? ML_OK : ML_ERROR_ARGUMENT));
        if (!adds) CHECK(strstr(error.text, "nothing to predict from"));
    }
    ml_session_free(session);
    ml_model_free(model);
}

/* Any of the tokenizer's ends stops a text, and so does its bos, unless that is a letter; the text before them is the
   same. */
TEST(every_end_ends_a_text) {
    ml_model *model = random_model();
    ml_tokenizer *t = letters(50);
    ml_session *session;
    ml_generate_desc desc;
    ml_generated made;
    collected all;
    int32_t prompt[3] = {1, 7, 9};
    REQUIRE(model && t && ml_model_set_tokenizer(model, t, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    memset(&desc, 0, sizeof desc);
    memset(&all, 0, sizeof all);
    desc.prompt_ids.ids = prompt;
    desc.prompt_ids.n = 3;
    desc.on_token = collect;
    desc.user = &all;
    t->bos = t->eos = -1;
    t->n_ends = 0;
    CHECK(ml_session_generate(session, &desc, &made, NULL) == ML_OK && made.n_new == 21);
    CHECK(made.stop == ML_STOP_CONTEXT);
    for (int i = 0; i < 21; i++) {
        collected c;
        ml_piece_kind kind;
        int first = 0;
        memset(&c, 0, sizeof c);
        desc.user = &c;
        ml_tokenizer_piece(t, all.ids[i], NULL, NULL, &kind);
        while (all.ids[first] != all.ids[i]) first++;
        t->bos = i % 3 == 2 ? all.ids[i] : -1;
        t->ends[0] = -1; /* which no id is */
        t->ends[1] = i % 3 < 2 ? all.ids[i] : -1;
        t->n_ends = 2;
        CHECK(ml_session_generate(session, &desc, &made, NULL) == ML_OK);
        if (t->bos >= 0 && kind == ML_PIECE_NORMAL) {
            CHECK(made.stop == ML_STOP_CONTEXT && made.n_new == 21);
            continue;
        }
        CHECK(made.stop == ML_STOP_END && made.n_new == first && session->length == 3 + first);
        CHECK(memcmp(c.ids, all.ids, (size_t)first * sizeof *c.ids) == 0);
    }
    ml_session_free(session);
    ml_model_free(model);
}

/* The ids of a padded vocabulary that have no piece are never drawn, however likely they are. */
TEST(ids_without_a_piece_are_never_drawn) {
    ml_model *model = random_model();
    ml_tokenizer *t = letters(12), *own = letters(50);
    ml_session *session;
    ml_generate_desc desc;
    ml_generated made;
    ml_random random;
    int32_t prompt[3] = {1, 40, 49}; /* such ids may be read */
    REQUIRE(model && t && own && ml_model_set_tokenizer(model, own, NULL) == ML_OK);
    model->tokenizer = t;
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    memset(&desc, 0, sizeof desc);
    t->bos = t->eos = -1;
    t->n_ends = 0;
    desc.prompt_ids.ids = prompt;
    desc.prompt_ids.n = 3;
    ml_random_seed(&random, 6);
    desc.sampler.random = &random;
    for (int round = 0; round < 40; round++) {
        collected c;
        memset(&c, 0, sizeof c);
        desc.on_token = collect;
        desc.user = &c;
        desc.sampler.temperature = round ? 1.5f : 0;
        CHECK(ml_session_generate(session, &desc, &made, NULL) == ML_OK && c.n == 21);
        for (int i = 0; i < c.n; i++) CHECK(c.ids[i] >= 0 && c.ids[i] < 12);
    }
    model->tokenizer = own;
    ml_tokenizer_free(t);
    ml_session_free(session);
    ml_model_free(model);
}

/* What is given to on_token is what the whole text has after the prompt's text, its first space included. */
TEST(new_text_continues_the_prompts) {
    ml_model *model = random_model();
    ml_tokenizer *t = letters(50);
    ml_session *session;
    ml_random random;
    REQUIRE(model && t && ml_model_set_tokenizer(model, t, NULL) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &session, NULL) == ML_OK);
    t->bos = t->eos = -1;
    t->n_ends = 0;
    ml_random_seed(&random, 7);
    for (int round = 0; round < 200; round++) { /* most texts have a space early, some as their first token */
        static const int32_t prompts[4][2] = {{1, 2}, {1, 4}, {4, 2}, {1, 3}};
        ml_generate_desc desc;
        collected c;
        char whole[64], before[64];
        size_t n, n_before;
        memset(&desc, 0, sizeof desc);
        memset(&c, 0, sizeof c);
        desc.prompt_ids.ids = prompts[round % 4];
        desc.prompt_ids.n = 2;
        desc.max_new_tokens = 20;
        desc.sampler.temperature = 3;
        desc.sampler.random = &random;
        desc.on_token = collect;
        desc.user = &c;
        REQUIRE(ml_session_generate(session, &desc, NULL, NULL) == ML_OK);
        const ml_tokens all = {session->tokens, session->length};
        REQUIRE(!ml_tokenizer_decode(t, &all, whole, sizeof whole, &n, NULL));
        REQUIRE(!ml_tokenizer_decode(t, &desc.prompt_ids, before, sizeof before, &n_before, NULL));
        CHECK(n == n_before + c.length && memcmp(whole, before, n_before) == 0);
        CHECK(memcmp(whole + n_before, c.text, c.length) == 0);
    }
    ml_session_free(session);
    ml_model_free(model);
}

int main(void) {
    RUN(random_numbers_are_the_published_ones);
    RUN(greedy_takes_the_most_likely);
    RUN(temperature_sharpens_and_flattens);
    RUN(the_first_token_is_no_exception);
    RUN(filters_keep_what_they_should);
    RUN(what_is_ruled_out_is_no_candidate);
    RUN(repetition_penalty_weakens_what_was_seen);
    RUN(top_sets_equal_a_sort);
    RUN(small_probabilities_are_not_lost);
    RUN(logits_that_are_not_finite);
    RUN(temperatures_at_the_ends);
    RUN(greedy_text_is_pytorchs);
    RUN(greedy_story_is_llama2cs);
    RUN(stops_where_it_should);
    RUN(slides_when_told_to);
    RUN(prompts_that_cannot_slide);
    RUN(wrong_settings_are_refused);
    RUN(a_penalty_of_1_is_none);
    RUN(bos_is_added_only_where_it_is_wanted);
    RUN(every_end_ends_a_text);
    RUN(ids_without_a_piece_are_never_drawn);
    RUN(new_text_continues_the_prompts);
    return test_report("test_generate");
}
