/* The decoding methods of examples/advanced: each formula against a plain computation in doubles, each search against
   one that looks at everything, and speculative decoding against the target model alone. */
#include "preamble.h"
#include "models.h"
#include "temporary.h"
#include "../examples/advanced/measures.h"
#include "../examples/advanced/speculation.h"
#define main decode_main
#include "../examples/advanced/decode.c"
#undef main

enum { N = 12 };

static ml_error failure;

static void random_logits(ml_random *random, float *logits, int n) {
    for (int i = 0; i < n; i++) logits[i] = 2 * ml_random_normal(random);
}

/* softmax in doubles, and the entropy */
static double plain_softmax(const float *logits, int n, double temperature, double *p) {
    double sum = 0, entropy = 0;
    for (int i = 0; i < n; i++) sum += p[i] = exp((double)logits[i] / temperature);
    for (int i = 0; i < n; i++) p[i] /= sum;
    for (int i = 0; i < n; i++) entropy -= p[i] * log(p[i]);
    return entropy;
}

static int is_kept(float logit) { return logit > -HUGE_VALF; }

/* ---- filters ---- */

/* A token belongs to the typical set if those that are nearer to the entropy do not yet have its mass. */
TEST(typical_set) {
    ml_random random;
    float logits[N], masked[N];
    double p[N], work[N];
    ranked order[N];
    ml_random_seed(&random, 1);
    for (int round = 0; round < 200; round++) {
        double temperature = 0.5 + (double)ml_random_uniform(&random),
               mass = (double)ml_random_uniform(&random);
        random_logits(&random, logits, N);
        memcpy(masked, logits, sizeof logits);
        double entropy = plain_softmax(logits, N, temperature, p);
        keep_typical(masked, N, temperature, mass, work, order);
        for (int i = 0; i < N; i++) {
            double nearer = 0;
            for (int j = 0; j < N; j++)
                if (fabs(-log(p[j]) - entropy) < fabs(-log(p[i]) - entropy)) nearer += p[j];
            CHECK(is_kept(masked[i]) == (nearer < mass));
            if (is_kept(masked[i])) CHECK(masked[i] == logits[i]);
        }
    }
}

TEST(eta_bound) {
    ml_random random;
    float logits[N], masked[N];
    double p[N], work[N];
    int n_dropped = 0;
    ml_random_seed(&random, 2);
    for (int round = 0; round < 200; round++) {
        double epsilon = 0.1 * (double)ml_random_uniform(&random);
        random_logits(&random, logits, N);
        memcpy(masked, logits, sizeof logits);
        double entropy = plain_softmax(logits, N, 1.5, p), eta = sqrt(epsilon) * exp(-entropy);
        keep_eta(masked, N, 1.5, epsilon, work);
        for (int i = 0; i < N; i++) {
            CHECK(is_kept(masked[i]) == !(p[i] < epsilon && p[i] < eta));
            n_dropped += !is_kept(masked[i]);
        }
    }
    CHECK(n_dropped > 100);
    float flat[2] = {0, 0.1f}; /* the most likely stays, whatever the bound */
    keep_likely(flat, 2, (const double[]){0.475, 0.525}, 0.9);
    CHECK(!is_kept(flat[0]) && is_kept(flat[1]));
}

TEST(mirostat_controls_surprise) {
    ml_random random;
    float logits[N], masked[N];
    double p[N], work[N], sum = 0, kept;
    decoding_work state = {work, NULL, NULL, NULL, 0};
    ml_candidate candidates[N];
    decoding how = {.sampler = {.temperature = 1, .random = &random}, .surprise = 1.5f, .rate = 0.1f};
    ml_tokens none = {NULL, 0};
    ml_random_seed(&random, 3);
    state.candidates = candidates;
    state.most = 3;
    for (int round = 0; round < 4000; round++) {
        random_logits(&random, logits, N);
        memcpy(masked, logits, sizeof logits);
        plain_softmax(logits, N, 1, p);
        double most = state.most, likeliest = 0;
        int32_t id = draw_next(&how, masked, N, &none, &state);
        REQUIRE(id >= 0);
        kept = 0;
        for (int i = 0; i < N; i++) likeliest = fmax(likeliest, p[i]);
        for (int i = 0; i < N; i++)
            if (-log2(p[i]) <= most || p[i] == likeliest) kept += p[i];
        CHECK(-log2(p[id]) <= most || p[id] == likeliest);
        double surprise = -log2(p[id] / kept);
        CHECK_NEAR(state.most, most - (double)how.rate * (surprise - (double)how.surprise), 1e-9, 0);
        sum += surprise;
    }
    /* it tells how far `most` can have moved: |most| stays below 10, so the mean is within 10 / (rate * rounds) */
    CHECK_NEAR(sum / 4000, 1.5, 10 / (0.1 * 4000), 0);
}

TEST(dry_penalties) {
    const int32_t ids[] = {1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3}; /* 4 followed 1 2 3; 5 followed 2 3 */
    ml_tokens text = {ids, 11};
    decoding how = {.dry = 0.8f, .dry_base = 1.75f, .dry_length = 2};
    unsigned char breaks[N] = {0};
    float logits[N] = {0};
    double cost[N];
    penalize_repetition(logits, N, &text, &how, NULL, cost);
    for (int i = 0; i < N; i++) CHECK_NEAR(logits[i], i == 4 ? -0.8 * 1.75 : i == 5 ? -0.8 : 0, 1e-6, 0);
    memset(logits, 0, sizeof logits);
    breaks[1] = 1; /* 1 2 3 does not reach back to 1 */
    penalize_repetition(logits, N, &text, &how, breaks, cost);
    for (int i = 0; i < N; i++) CHECK_NEAR(logits[i], i == 4 || i == 5 ? -0.8 : 0, 1e-6, 0);
    memset(logits, 0, sizeof logits);
    breaks[1] = 0, breaks[3] = 1; /* the text ends with a break: nothing is repeated */
    penalize_repetition(logits, N, &text, &how, breaks, cost);
    for (int i = 0; i < N; i++) CHECK(logits[i] == 0);
    breaks[3] = 0, breaks[5] = 1; /* a break itself may follow */
    penalize_repetition(logits, N, &text, &how, breaks, cost);
    CHECK(logits[5] == 0 && logits[4] < -1);
    const int32_t longer_first[] = {1, 2, 3, 4, 9, 2, 3, 4, 5, 1, 2, 3}; /* 4 followed 1 2 3, and later 2 3 */
    ml_tokens twice = {longer_first, 12};
    memset(logits, 0, sizeof logits);
    penalize_repetition(logits, N, &twice, &how, NULL, cost);
    CHECK_NEAR(logits[4], -0.8 * 1.75, 1e-6, 0);
    const int32_t same[] = {7, 7, 7, 7,
                            7}; /* the longest repetition of 7 counts, once: 7 7 7 7 before the last */
    ml_tokens run = {same, 5};
    memset(logits, 0, sizeof logits);
    penalize_repetition(logits, N, &run, &how, NULL, cost);
    CHECK_NEAR(logits[7], -0.8 * 1.75 * 1.75, 1e-6, 0);
}

TEST(no_ngram_twice) {
    const int32_t ids[] = {1, 2, 3, 1, 2};
    ml_tokens text = {ids, 5}, nothing = {ids, 0};
    float logits[N] = {0};
    ban_repeated(logits, N, &text, 3);
    for (int i = 0; i < N; i++) CHECK(is_kept(logits[i]) == (i != 3));
    memset(logits, 0, sizeof logits);
    ban_repeated(logits, N, &text, 4);
    ban_repeated(logits, N, &text, 9);
    ban_repeated(logits, N, &nothing, 1);
    for (int i = 0; i < N; i++) CHECK(is_kept(logits[i]));
    ban_repeated(logits, N, &text, 1);
    for (int i = 0; i < N; i++) CHECK(is_kept(logits[i]) == (i < 1 || i > 3));
}

/* ---- small models ---- */

enum { V = 5, LONGEST = 48 };

static ml_model *tiny_model(int vocab, uint64_t seed) {
    ml_config c;
    ml_random random;
    ml_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.dim = 16, c.hidden_dim = 24, c.n_layers = 2, c.n_heads = 2, c.vocab_size = vocab,
    c.max_seq_len = LONGEST;
    ml_random_seed(&random, seed);
    if (create_model(&c, ML_F32, &random, NULL, &model, &failure)) return printf("%s\n", failure.text), NULL;
    for (int i = 0; i < model->n_tensors;
         i++) { /* weights of 0.02 would make all tokens nearly equally likely */
        float *x = (float *)model->tensors[i].data;
        for (size_t j = 0;
             x && model->tensors[i].rows > 1 && j < model->tensors[i].rows * model->tensors[i].cols; j++)
            x[j] *= 15;
    }
    return model;
}

/* log p (V) of what follows a text, and the hidden state of its last token, by a batch: no cache is used. */
static void plain_log_p(ml_session *s, const int32_t *ids, int n, double *log_p, float *hidden) {
    static float logits[64], states[LONGEST * 16];
    int32_t last = n - 1;
    int vocab = s->model->config.vocab_size;
    ml_batch batch = {ids, n, NULL, 0, NULL, NULL, 0};
    ml_outputs out = {&last, 1, states, logits};
    double sum = 0;
    CHECK(ml_session_eval_batch(s, &batch, &out, &failure) == ML_OK);
    for (int i = 0; i < vocab; i++) sum += exp((double)logits[i]);
    for (int i = 0; i < vocab; i++) log_p[i] = (double)logits[i] - log(sum);
    if (hidden) memcpy(hidden, states + (n - 1) * 16, 16 * sizeof *hidden);
}

/* ---- beam search ---- */

typedef struct everything {
    ml_session *session;
    int32_t ids[LONGEST], best[LONGEST];
    int n_prompt, most, n_best, end;
    double penalty, score;
} everything;

/* Tries all continuations: up to `most` tokens, or the end before. */
static void try_all(everything *e, int n_new, double sum) {
    double log_p[V];
    plain_log_p(e->session, e->ids, e->n_prompt + n_new, log_p, NULL);
    for (int id = 0; id < V; id++) {
        double score = (sum + log_p[id]) / pow((5.0 + n_new + 1) / 6, e->penalty);
        e->ids[e->n_prompt + n_new] = id;
        if (id != e->end && n_new + 1 < e->most) {
            try_all(e, n_new + 1, sum + log_p[id]);
        } else if (score > e->score) {
            e->score = score;
            e->n_best = n_new + (id != e->end);
            memcpy(e->best, e->ids + e->n_prompt, sizeof e->best - (size_t)e->n_prompt * sizeof *e->best);
        }
    }
}

TEST(wide_beam_finds_the_best_text) {
    const int32_t ids[] = {1, 3};
    ml_tokens prompt = {ids, 2}, written;
    int n_worse = 0, n_ended = 0;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        ml_model *model = tiny_model(V, seed);
        decoding wide = {.beams = 200, .length_penalty = 0.25f * (float)(seed % 5)}, narrow = wide;
        decoder d;
        everything e = {.ids = {1, 3}, .n_prompt = 2, .most = 4, .end = 2, .score = -HUGE_VAL};
        REQUIRE(model && ml_session_new(model, NULL, &e.session, &failure) == ML_OK);
        e.penalty = (double)wide.length_penalty;
        try_all(&e, 0, 0);
        CHECK(decoder_open(&d, model, &wide, 1, &failure) == ML_OK);
        d.is_end[2] = 1;
        CHECK(decoder_write(&d, &wide, &prompt, 4, &written, &failure) == ML_OK);
        CHECK(written.n == e.n_best && memcmp(written.ids, e.best, (size_t)e.n_best * sizeof *ids) == 0);
        CHECK_NEAR(d.beams[d.best].score, e.score, 1e-4,
                   1e-4); /* logits of passes and batches differ by 1e-5 */
        n_ended += written.n < 4;
        decoder_close(&d);
        narrow.beams = 1;
        CHECK(decoder_open(&d, model, &narrow, 1, &failure) == ML_OK);
        d.is_end[2] = 1;
        CHECK(decoder_write(&d, &narrow, &prompt, 4, &written, &failure) == ML_OK);
        CHECK(d.beams[d.best].score <= e.score + 1e-4);
        n_worse += d.beams[d.best].score < e.score - 1e-3;
        decoder_close(&d);
        ml_session_free(e.session);
        ml_model_free(model);
    }
    CHECK(n_worse > 0 && n_ended > 0); /* otherwise the models are too simple to tell */
}

typedef struct candidate {
    int32_t ids[LONGEST];
    double sum;
} candidate;

static int likelier_first(const void *a, const void *b) {
    double x = ((const candidate *)a)->sum, y = ((const candidate *)b)->sum;
    return (x < y) - (x > y);
}

/* Narrow beams, where texts are dropped and branch, against sorting all extensions of whole texts. */
TEST(narrow_beam_is_the_plain_one) {
    enum { VOCAB = 9, WIDTH = 3, NEW = 12 };
    static candidate all[WIDTH * VOCAB];
    const decoding how = {.beams = WIDTH};
    const int32_t ids[] = {1, 4, 2};
    ml_tokens prompt = {ids, 3}, written;
    for (uint64_t seed = 90; seed < 96; seed++) {
        ml_model *model = tiny_model(VOCAB, seed);
        candidate beams[WIDTH] = {{{1, 4, 2}, 0}};
        ml_session *s;
        decoder d;
        REQUIRE(model && ml_session_new(model, NULL, &s, &failure) == ML_OK);
        for (int n = 3; n < 3 + NEW; n++) {
            int count = 0;
            for (int i = 0; i < (n == 3 ? 1 : WIDTH); i++) {
                double log_p[VOCAB];
                plain_log_p(s, beams[i].ids, n, log_p, NULL);
                for (int32_t id = 0; id < VOCAB; id++) {
                    all[count] = beams[i];
                    all[count].ids[n] = id;
                    all[count++].sum += log_p[id];
                }
            }
            qsort(all, (size_t)count, sizeof *all, likelier_first);
            memcpy(beams, all, sizeof beams);
        }
        CHECK(decoder_open(&d, model, &how, 1, &failure) == ML_OK);
        CHECK(decoder_write(&d, &how, &prompt, NEW, &written, &failure) == ML_OK && written.n == NEW);
        CHECK(memcmp(written.ids, beams[0].ids + 3, NEW * sizeof *ids) == 0);
        CHECK_NEAR(d.beams[d.best].sum, beams[0].sum, 1e-4,
                   1e-4); /* logits of passes and batches differ by 1e-5 */
        decoder_close(&d);
        ml_session_free(s);
        ml_model_free(model);
    }
}

TEST(length_penalty) {
    CHECK_NEAR(length_normalized(-3, 1, 0.7), -3, 1e-12, 0); /* (5 + 1) / 6 = 1 */
    CHECK_NEAR(length_normalized(-3, 7, 1), -1.5, 1e-12, 0); /* (5 + 7) / 6 = 2 */
    CHECK_NEAR(length_normalized(-3, 19, 0.5), -1.5, 1e-12, 0);
    CHECK_NEAR(length_normalized(-3, 100, 0), -3, 1e-12, 0);
}

/* New tokens of a decoder with these settings, as many as fit into ids. */
static int write_tokens(const ml_model *model, const decoding *how, int most, int32_t *ids) {
    const int32_t start[] = {1, 4, 2};
    ml_tokens prompt = {start, 3}, written = {NULL, 0};
    decoder d;
    CHECK(decoder_open(&d, model, how, 1, &failure) == ML_OK);
    CHECK(decoder_write(&d, how, &prompt, most, &written, &failure) == ML_OK);
    if (written.n) memcpy(ids, written.ids, (size_t)written.n * sizeof *ids);
    decoder_close(&d);
    return written.n;
}

TEST(one_beam_is_greedy) {
    decoding greedy = {.sampler = {0}}, beam = {.beams = 1}, like_greedy = {.candidates = 3, .similarity = 0};
    int32_t a[LONGEST], b[LONGEST], c[LONGEST];
    for (uint64_t seed = 20; seed < 30; seed++) {
        ml_model *model = tiny_model(9, seed);
        REQUIRE(model != NULL);
        CHECK(write_tokens(model, &greedy, 100, a) == LONGEST - 3); /* until the context is full */
        CHECK(write_tokens(model, &beam, 100, b) == LONGEST - 3);
        CHECK(write_tokens(model, &like_greedy, 100, c) == LONGEST - 3);
        CHECK(memcmp(a, b, (LONGEST - 3) * sizeof *a) == 0 && memcmp(a, c, (LONGEST - 3) * sizeof *a) == 0);
        ml_model_free(model);
    }
}

TEST(groups_differ) {
    const int32_t start[] = {1, 4, 2};
    ml_tokens prompt = {start, 3}, written;
    decoding how = {.beams = 3, .groups = 3, .diversity = 100}, half = {.beams = 2},
             both = {.beams = 4, .groups = 2};
    int32_t a[LONGEST], b[LONGEST];
    ml_model *model = tiny_model(9, 31);
    decoder d;
    REQUIRE(model && decoder_open(&d, model, &how, 1, &failure) == ML_OK);
    CHECK(decoder_write(&d, &how, &prompt, 10, &written, &failure) == ML_OK);
    decoding greedy = {.sampler = {0}};
    CHECK(write_tokens(model, &greedy, 10, a) == 10); /* the first group does not know of the others */
    CHECK(memcmp(a, d.beams[0].session->tokens + 3, 10 * sizeof *a) == 0);
    for (int i = 3; i < 13; i++) { /* no two groups take the same token at a step */
        int32_t x = d.beams[0].session->tokens[i], y = d.beams[1].session->tokens[i];
        CHECK(x != y && x != d.beams[2].session->tokens[i] && y != d.beams[2].session->tokens[i]);
    }
    decoder_close(&d);
    CHECK(write_tokens(model, &half, 10, a) == 10 && write_tokens(model, &both, 10, b) == 10);
    CHECK(memcmp(a, b, 10 * sizeof *a) == 0); /* without a diversity both groups are the same beam search */
    ml_model_free(model);
}

TEST(repetitions_are_kept_out_of_beams) {
    decoding how = {.beams = 3, .no_repeat = 2};
    int32_t ids[LONGEST] = {1, 4, 2};
    ml_model *model = tiny_model(9, 33);
    ngram list[LONGEST];
    REQUIRE(model != NULL);
    ml_tokens text = {ids, 3 + write_tokens(model, &how, 40, ids + 3)};
    size_t n = collect_ngrams(&text, 2, list);
    CHECK(text.n == 43 && count_different(list, n) == 42);
    how.no_repeat = 1; /* six tokens are left, and then none */
    decoder d;
    ml_tokens prompt = {ids, 3}, written;
    CHECK(decoder_open(&d, model, &how, 1, &failure) == ML_OK);
    CHECK(decoder_write(&d, &how, &prompt, 6, &written, &failure) == ML_OK && written.n == 6);
    CHECK(decoder_write(&d, &how, &prompt, 7, &written, &failure) == ML_ERROR_NUMBER);
    CHECK(strcmp(failure.text, "after 9 tokens there is none that can follow") == 0);
    decoder_close(&d);
    ml_model_free(model);
}

/* ---- contrastive search ---- */

static double cosine(const float *a, const float *b, int n) {
    double ab = 0, aa = 0, bb = 0;
    for (int i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / sqrt(aa * bb);
}

/* The best of all tokens by (1 - alpha) p - alpha max cosine, of which only the k most likely count. */
static int32_t plain_contrast(ml_session *s, int32_t *ids, int n, const decoding *how, float (*states)[16]) {
    double log_p[16], unused[16], most = -HUGE_VAL;
    int vocab = s->model->config.vocab_size;
    int32_t best = -1;
    plain_log_p(s, ids, n, log_p, NULL);
    for (int32_t id = 0; id < vocab; id++) {
        float state[16];
        double similarity = -1;
        int n_likelier = 0;
        for (int other = 0; other < vocab; other++) n_likelier += log_p[other] > log_p[id];
        if (n_likelier >= how->candidates) continue;
        ids[n] = id;
        plain_log_p(s, ids, n + 1, unused, state);
        for (int i = 0; i < n; i++) similarity = fmax(similarity, cosine(states[i], state, 16));
        double score = (1 - (double)how->similarity) * exp(log_p[id]) - (double)how->similarity * similarity;
        if (score > most) most = score, best = id;
    }
    return best;
}

TEST(contrastive_search) {
    decoding how = {.candidates = 4, .similarity = 0.6f}, greedy = {.sampler = {0}};
    int n_other = 0;
    for (uint64_t seed = 40; seed < 46; seed++) {
        ml_model *model = tiny_model(9, seed);
        int32_t ids[LONGEST + 1] = {1, 4, 2}, found[LONGEST], likeliest[LONGEST];
        float states[LONGEST][16];
        double unused[16];
        ml_session *s;
        REQUIRE(model && ml_session_new(model, NULL, &s, &failure) == ML_OK);
        CHECK(write_tokens(model, &how, 20, found) == 20 &&
              write_tokens(model, &greedy, 20, likeliest) == 20);
        for (int n = 1; n <= 3; n++) plain_log_p(s, ids, n, unused, states[n - 1]);
        for (int n = 3; n < 23; n++) {
            ids[n] = plain_contrast(s, ids, n, &how, states);
            plain_log_p(s, ids, n + 1, unused, states[n]);
        }
        CHECK(memcmp(ids + 3, found, 20 * sizeof *ids) == 0);
        n_other += memcmp(likeliest, found, 20 * sizeof *ids) != 0;
        ml_session_free(s);
        ml_model_free(model);
    }
    CHECK(n_other > 0);
    CHECK_NEAR(contrastive_score(0.5, 0.25, 0.6), 0.4 * 0.5 - 0.6 * 0.25, 1e-12, 0);
}

/* ---- speculative decoding ---- */

/* Half the sum of |a - b|. */
static double total_variation(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += fabs(a[i] - b[i]);
    return sum / 2;
}

/* Whatever the draft proposes, what is written has the target's distribution. */
TEST(rule_gives_the_targets_distribution) {
    const int n = 6, rounds = 200000;
    const double p[6] = {0.3, 0.25, 0.2, 0.15, 0.1, 0};
    const double q[3][6] = {{0.1, 0.5, 0, 0.2, 0.1, 0.1}, {0, 1, 0, 0, 0, 0}, {0.3, 0.25, 0.2, 0.15, 0.1, 0}};
    ml_random random;
    ml_random_seed(&random, 5);
    for (int k = 0; k < 3; k++) {
        double found[6] = {0};
        long n_accepted = 0;
        for (int i = 0; i < rounds; i++) {
            double left[6];
            int32_t id = draw_from(q[k], n, (double)ml_random_uniform(&random));
            int is_accepted = accepts(p, q[k], id, (double)ml_random_uniform(&random));
            memcpy(left, p, sizeof left);
            if (!is_accepted) {
                subtract(left, q[k], n);
                id = draw_from(left, n, (double)ml_random_uniform(&random));
            }
            n_accepted += is_accepted;
            found[id] += 1.0 / rounds;
        }
        /* the expected distance of 200,000 draws is about 0.002, sum of sqrt(p (1 - p) / (2 pi rounds)) */
        CHECK_NEAR(total_variation(found, p, n), 0, 0.006, 0);
        double shared =
            1 - total_variation(p, q[k], n); /* sum of min(p, q) is accepted; standard deviation 0.001 */
        CHECK_NEAR((double)n_accepted / rounds, shared, 0.006, 0);
    }
}

/* The same through models: the second and third new token, against their probabilities. (The first is drawn
   from the prompt's logits, without a draft.) */
static void check_distribution(speculation *s, ml_session *plain, int rounds) {
    int32_t ids[5] = {1, 3};
    ml_tokens prompt = {ids, 2};
    double expected[V * V] = {0}, found[V * V] = {0}, first[V], second[V], third[V];
    plain_log_p(plain, ids, 2, first, NULL);
    for (ids[2] = 0; ids[2] < V; ids[2]++) {
        plain_log_p(plain, ids, 3, second, NULL);
        for (ids[3] = 0; ids[3] < V; ids[3]++) {
            plain_log_p(plain, ids, 4, third, NULL);
            for (int i = 0; i < V; i++)
                expected[ids[3] * V + i] += exp(first[ids[2]] + second[ids[3]] + third[i]);
        }
    }
    for (int i = 0; i < rounds; i++) {
        int n_new = 1;
        CHECK(speculation_begin(s, &prompt, &failure) == ML_OK);
        while (s->n_text < 5 && n_new) CHECK(speculate(s, &n_new, &failure) == ML_OK);
        found[s->text[3] * V + s->text[4]] += 1.0 / rounds;
    }
    CHECK(s->n_accepted > rounds / 20 && s->n_accepted < s->n_proposed);
    /* as above, with 25 outcomes: at most 0.4 sqrt(25 / rounds) = 0.014 is expected of 20,000 rounds */
    CHECK_NEAR(total_variation(found, expected, V * V), 0, 0.025, 0);
}

TEST(sampled_texts_have_the_targets_distribution) {
    ml_model *target = tiny_model(V, 51), *draft = tiny_model(V, 52);
    ml_session *plain;
    ml_random random;
    speculation s;
    REQUIRE(target && draft && ml_session_new(target, NULL, &plain, &failure) == ML_OK);
    ml_random_seed(&random, 6);
    for (int k = 0; k < 2; k++) { /* with a draft model, and by lookup */
        REQUIRE(speculation_open(&s, target, k ? NULL : draft, 1, &failure) == ML_OK);
        s.n_draft = 3;
        s.n_gram = 1;
        s.temperature = 1;
        s.random = &random;
        check_distribution(&s, plain, 20000);
        speculation_close(&s);
    }
    ml_session_free(plain);
    ml_model_free(target), ml_model_free(draft);
}

/* Writes a text with drafts and alone, and compares. */
static void check_greedy(speculation *s, ml_session *plain, const ml_tokens *prompt, int most) {
    ml_generate_desc desc;
    int n_new = 1;
    memset(&desc, 0, sizeof desc);
    desc.prompt_ids = *prompt;
    desc.max_new_tokens = most;
    CHECK(ml_session_generate(plain, &desc, NULL, &failure) == ML_OK);
    CHECK(speculation_begin(s, prompt, &failure) == ML_OK);
    while (s->n_text < plain->length && n_new) CHECK(speculate(s, &n_new, &failure) == ML_OK);
    CHECK(s->n_text >= plain->length);
    CHECK(memcmp(s->text, plain->tokens, (size_t)plain->length * sizeof *s->text) == 0);
}

TEST(greedy_texts_are_the_targets) {
    ml_random random;
    ml_random_seed(&random, 7);
    for (int k = 0; k < 9; k++) { /* another draft model, the target itself, and by lookup */
        ml_model *target = tiny_model(30, 60 + (uint64_t)k / 3), *other = tiny_model(30, 70);
        ml_session *plain;
        speculation s;
        REQUIRE(target && other && ml_session_new(target, NULL, &plain, &failure) == ML_OK);
        ml_model *draft = k % 3 == 0 ? other : k % 3 == 1 ? target : NULL;
        REQUIRE(speculation_open(&s, target, draft, 1, &failure) == ML_OK);
        s.n_gram = 1;
        s.random = &random;
        for (int i = 0; i < 40; i++) {
            int32_t ids[8];
            ml_tokens prompt = {ids, 1 + (int)(ml_random_u64(&random) % 8)};
            for (int j = 0; j < prompt.n; j++) ids[j] = (int32_t)(ml_random_u64(&random) % 30);
            s.n_draft = 1 + i % 4;
            check_greedy(&s, plain, &prompt, i % 5 ? 20 : LONGEST); /* some until the context is full */
        }
        CHECK(s.n_proposed > 100);
        if (draft == target) CHECK(s.n_accepted == s.n_proposed);
        speculation_close(&s);
        ml_session_free(plain);
        ml_model_free(target), ml_model_free(other);
    }
}

/* Quantized weights round activations, where the smallest difference can be a whole step: up to 4 rows at a time give
   the bits of one. */
TEST(greedy_texts_of_a_quantized_model) {
    static const char *const prompts[] = {"Once upon a time", "The dog", "Lily and Ben", "One day, a cat",
                                          "It was"};
    ml_model *model;
    ml_session *plain, *encoder;
    ml_random random;
    speculation s;
    ml_tokens prompt;
    ml_random_seed(&random, 8);
    REQUIRE(ml_model_load("examples/models/stories.gguf", NULL, &model, &failure) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &plain, &failure) == ML_OK);
    REQUIRE(ml_session_new(model, NULL, &encoder, &failure) == ML_OK);
    REQUIRE(speculation_open(&s, model, NULL, 1, &failure) == ML_OK);
    s.n_draft = 3;
    s.n_gram = 1;
    s.random = &random;
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        CHECK(ml_session_encode(encoder, prompts[i], ML_ADD_BOS, &prompt, &failure) == ML_OK);
        check_greedy(&s, plain, &prompt, 80);
    }
    CHECK(s.n_accepted > 20);
    speculation_close(&s);
    ml_session_free(plain), ml_session_free(encoder);
    ml_model_free(model);
}

TEST(drafts_need_the_targets_tokenizer) {
    ml_model *a = tiny_model(9, 80), *b = tiny_model(10, 81), *stories;
    speculation s;
    REQUIRE(a && b && ml_model_load("examples/models/stories.gguf", NULL, &stories, &failure) == ML_OK);
    CHECK(speculation_open(&s, a, b, 1, &failure) == ML_ERROR_MISMATCH);
    CHECK(strstr(failure.text, "of 9 and of 10 pieces") != NULL);
    speculation_close(&s);
    CHECK(speculation_open(&s, stories, a, 1, &failure) == ML_ERROR_MISMATCH);
    speculation_close(&s);
    CHECK(speculation_open(&s, stories, stories, 1, &failure) == ML_OK);
    speculation_close(&s);
    ml_model_free(a), ml_model_free(b), ml_model_free(stories);
}

TEST(looking_up) {
    const int32_t text[] = {5, 1, 2, 7, 8, 1, 2, 9, 1, 2};
    int32_t found[8];
    CHECK(look_up(text, 10, 2, 8, found) == 3 && found[0] == 9 && found[1] == 1 &&
          found[2] == 2); /* the last one */
    CHECK(look_up(text, 10, 2, 2, found) == 2);
    CHECK(look_up(text, 7, 2, 8, found) == 4 && found[0] == 7);
    CHECK(look_up(text, 10, 3, 8, found) == 0 && look_up(text, 2, 2, 8, found) == 0);
    CHECK(look_up(text, 1, 1, 8, found) == 0 && look_up(text, 10, 10, 8, found) == 0);
}

/* ---- measures ---- */

TEST(counts_of_ngrams) {
    const int32_t ids[] = {1, 2, 1, 2, 1, 3};
    ml_tokens text = {ids, 6}, empty = {ids, 0};
    ngram list[6];
    CHECK(collect_ngrams(&text, 1, list) == 6 && count_different(list, 6) == 3);
    CHECK(collect_ngrams(&text, 2, list) == 5 && count_different(list, 5) == 3); /* 12 21 12 21 13 */
    CHECK(collect_ngrams(&text, 4, list) == 3 && count_different(list, 3) == 3);
    CHECK(collect_ngrams(&text, 3, list) == 4 && count_different(list, 4) == 3); /* 121 212 121 213 */
    CHECK(collect_ngrams(&empty, 1, list) == 0 && count_different(list, 0) == 0);
}

/* Two continuations whose likelihoods are known: the columns by hand. */
TEST(columns_of_the_table) {
    const int32_t ids[] = {1, 1, 1, 1, 1};
    ml_tokens text = {ids, 5};
    scores s;
    table_row r;
    memset(&r, 0, sizeof r);
    REQUIRE(scores_new(&s, 2, 5));
    for (int i = 0; i < 3; i++) s.n_ngrams[i] += collect_ngrams(&text, i + 1, s.ngrams[i]);
    s.of[0] = (text_score){-4, 2, 8, 0.5};
    s.of[1] = (text_score){-8, 2, 4, 0.1};
    s.n = 2;
    summarize(&s, &r);
    CHECK_NEAR(r.ppl, exp(3.0), 0, 1e-12);
    CHECK_NEAR(r.bits, 1 / log(2.0), 0, 1e-12);
    CHECK_NEAR(r.rep, 0.3, 1e-12, 0);
    CHECK_NEAR(r.rep_error, 0.2, 1e-12, 0);           /* deviation .2 sqrt 2, of a mean of two */
    CHECK_NEAR(r.log_error, sqrt(8.0) / 4, 1e-12, 0); /* -4 + 3 * 2 = 2, -8 + 3 * 2 = -2 */
    CHECK_NEAR(r.distinct[0], 0.2, 1e-12, 0);
    CHECK_NEAR(r.distinct[2], 1.0 / 3, 1e-12, 0);
    scores_free(&s);
}

/* Errors of .03 and .04 make one of .05 of the difference, .05 and .12 one of .13: a star needs more than twice that
   of both, against greedy in repetition and against plain sampling in likelihood, the first two methods. */
TEST(stars_of_the_table) {
    static const struct {
        double rep, log_ppl;
        int is_better;
    } cases[] = {{.39, 2.73, 1}, {.41, 2.73, 0}, {.39, 2.75, 0}, {.61, 2.73, 0}, {.39, 3.27, 0}, {.2, 1, 1}};
    table_row greedy = {.rep = .5, .rep_error = .03, .ppl = 1.5, .log_error = 9};
    table_row sample = {.rep = .1, .rep_error = 9, .ppl = exp(3.), .log_error = .05};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        table_row r = {.rep = cases[i].rep, .rep_error = .04, .ppl = exp(cases[i].log_ppl), .log_error = .12};
        CHECK(is_better_than_both(&r, &greedy, &sample) == cases[i].is_better);
    }
    CHECK(strcmp(methods[0].name, "greedy") == 0 && strcmp(methods[1].name, "sample") == 0);
}

/* ---- the program ---- */

/* Flags that make no sense, or would change nothing. */
TEST(wrong_flags_are_refused) {
    static const char *const wrong[][2] = {
        {"beam --top_k 5", "--method beam: draws nothing"},
        {"contrastive --top_p .9", "--method contrastive: draws nothing"},
        {"dry --top_k 5", "--temperature: is 0"},
        {"sample --top_p 90", "--top_p: is 90, not in 0 to 1"},
        {"sample --top_k -1", "--top_k: is -1"},
        {"sample --min_p 2", "--min_p: is 2"},
        {"sample --epsilon -1", "--epsilon: is -1"},
        {"beam --beams 0", "--method beam: needs --beams of 1 or more"},
        {"diverse --groups 0", "--method diverse: needs --groups of 1 or more"},
        {"contrastive --candidates 0", "--method contrastive: needs --candidates of 1 or more"},
        {"beam --diversity 1", "--diversity: changes nothing without --groups 2 or more"},
        {"sample --length_penalty 1", "--length_penalty: changes nothing without --beams"},
        {"beam --alpha .5", "--alpha: changes nothing without --candidates"},
        {"sample --rate .5", "--rate: changes nothing without --surprise"},
        {"beam --dry_base 2", "--dry_base: changes nothing without --dry"},
        {"beam --dry_length 2", "--dry_length: changes nothing without --dry"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char line[256], *argv[16];
        int argc = 0;
        snprintf(line, sizeof line, "decode absent.gguf --method %s", wrong[i][0]);
        for (char *word = strtok(line, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
        capture_begin();
        int status = decode_main(argc, argv);
        const char *printed = capture_end();
        CHECK(status == 1 && strstr(printed, wrong[i][1]));
        if (!strstr(printed, wrong[i][1])) printf("%s: %s", wrong[i][0], printed);
    }
}

int main(void) {
    RUN(typical_set);
    RUN(eta_bound);
    RUN(mirostat_controls_surprise);
    RUN(dry_penalties);
    RUN(no_ngram_twice);
    RUN(wide_beam_finds_the_best_text);
    RUN(narrow_beam_is_the_plain_one);
    RUN(length_penalty);
    RUN(one_beam_is_greedy);
    RUN(groups_differ);
    RUN(repetitions_are_kept_out_of_beams);
    RUN(contrastive_search);
    RUN(rule_gives_the_targets_distribution);
    RUN(sampled_texts_have_the_targets_distribution);
    RUN(greedy_texts_are_the_targets);
    RUN(greedy_texts_of_a_quantized_model);
    RUN(drafts_need_the_targets_tokenizer);
    RUN(looking_up);
    RUN(counts_of_ngrams);
    RUN(columns_of_the_table);
    RUN(stars_of_the_table);
    RUN(wrong_flags_are_refused);
    return test_report("test_decoding");
}
