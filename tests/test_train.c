/* Training as a whole: against PyTorch's losses, gradients and weights, and that it repeats exactly. The backward
   passes of single operations are tested in test_gradients.c. */
#include "preamble.h"
#include "models.h"
#include "shared.h"

/* Whatever the library takes from malloc is counted. */
static int n_mallocs;
static void *counting_malloc(size_t size) {
    n_mallocs++;
    return malloc(size);
}
#define malloc counting_malloc
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"
#undef malloc

static ml_model *new_model(const ml_config *config, ml_type type, ml_random *random) {
    ml_model_create_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.config = *config;
    desc.type = type;
    desc.random = random;
    CHECK(ml_model_create(&desc, &model, &error) == ML_OK);
    return model;
}

static ml_head *new_head(const ml_model *model, int n_classes, int no_bias, ml_random *random) {
    ml_head_create_desc desc;
    ml_head *head = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.n_classes = n_classes;
    desc.no_bias = no_bias;
    desc.random = random;
    CHECK(ml_head_create(model, &desc, &head, &error) == ML_OK);
    return head;
}

/* stories260K with weights that may be written to, as ../shared has it; NULL when it is not there. */
static ml_model *stories(ml_norm norm, ml_mask mask) {
    const char *path = shared_path("models/stories260K.pt");
    ml_model_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.type = ML_F32;
    desc.norm = norm;
    desc.mask = mask;
    if (path) CHECK(ml_model_load(path, &desc, &model, &error) == ML_OK);
    return model;
}

/* The naming of the course's files: the one in which the matrix of the queries has this name. */
static mli_naming course_naming(const ml_model *model) {
    const mli_param *query =
        &mli_params[mli_slot_at(&model->config, tensor_index(model, "blk.0.attn_q.weight"))];
    int n = (int)(sizeof query->name / sizeof *query->name);
    for (int i = 0; i < n; i++)
        if (strcmp(query->name[i], "layers.#.attention.compute_query.weight") == 0) return (mli_naming)i;
    printf("the course's names are missing\n");
    exit(2);
}

/* Compares the model's tensors, or their gradients, with those of an archive under prefix + the course's names. */
static void check_tensors(const ml_archive *archive, const char *prefix, const ml_model *model,
                          const ml_tensor *tensors, int gradients, double tolerance) {
    int i, compared = 0;
    for (i = 0; i < model->n_tensors; i++) {
        mli_slot slot = mli_slot_at(&model->config, i);
        size_t n;
        char name[ML_NAME_SIZE], key[2 * ML_NAME_SIZE];
        const float *ours = gradients ? tensors[i].grad : (const float *)tensors[i].data;
        float *theirs;
        double d;
        if (!mli_has_slot(&model->config, slot)) continue;
        mli_param_name(course_naming(model), slot, mli_layer_at(&model->config, i), name);
        snprintf(key, sizeof key, "%s%s", prefix, name);
        theirs = shared_floats(archive, key, &n);
        if (!theirs) continue;
        CHECK(n == mli_numbers(&tensors[i]) && ours != NULL);
        d = max_difference(ours, theirs, n);
        if (!(d <= tolerance)) printf("%s differs by %g\n", key, d);
        CHECK(d <= tolerance);
        compared++;
        free(theirs);
    }
    CHECK(compared == 5 * 9 + 2);
}

typedef struct lm_case {
    int32_t tokens[128], targets[128], starts[5];
    ml_batch batch;
} lm_case;

static void lm_case_read(const ml_archive *archive, lm_case *c) {
    size_t n, i;
    int32_t *tokens = shared_tokens(archive, "tokens", &n), *targets = shared_tokens(archive, "targets", &n);
    CHECK(n == 128);
    memset(c, 0, sizeof *c);
    for (i = 0; i < 128; i++) c->tokens[i] = tokens[i], c->targets[i] = targets[i];
    for (i = 0; i < 5; i++) c->starts[i] = (int32_t)(32 * i);
    c->batch.tokens = c->tokens;
    c->batch.n_tokens = 128;
    c->batch.row_start = c->starts;
    c->batch.n_rows = 4;
    c->batch.targets = c->targets;
    free(tokens);
    free(targets);
}

static ml_trainer *lm_trainer(ml_model *model, int threads, int checkpointing) {
    ml_trainer_desc desc;
    ml_trainer *trainer = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = 128;
    desc.max_rows = 4;
    desc.max_row = 32;
    desc.checkpointing = checkpointing;
    desc.threads.count = threads;
    desc.adamw.lr = 1e-3f;
    desc.adamw.weight_decay = 0.01f;
    desc.adamw.decay_all = 1;
    desc.adamw.clip = 1.0f;
    CHECK(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    return trainer;
}

/* Ten steps on one batch as PyTorch takes them. Losses: 1e-4 absolute. Gradients: 2e-5, where the largest are near 1
   and float sums of 128 tokens differ in order. Weights after ten steps: a gradient whose sign depends on its last
   bits may move a weight by lr the other way in AdamW's first steps, so 1e-3 is what one such step is worth. */
TEST(language_model_as_pytorch) {
    const char *path = shared_path("reference/lm_train.pt");
    ml_model *model = stories(ML_NORM_RMS, ML_MASK_CAUSAL);
    ml_archive *archive;
    ml_trainer *trainer;
    ml_error error;
    lm_case c;
    size_t n;
    float *losses, loss;
    int step;
    if (!path || !model) SKIP("../shared is absent");
    CHECK(ml_archive_load(path, NULL, &archive, &error) == ML_OK);
    losses = shared_floats(archive, "losses", &n);
    lm_case_read(archive, &c);
    trainer = lm_trainer(model, 2, 0);
    for (step = 0; step < 10; step++) {
        CHECK(ml_trainer_backward(trainer, &c.batch, NULL, &loss, &error) == ML_OK);
        if (!(fabsf(loss - losses[step]) <= 1e-4f))
            printf("step %d: loss %g, not %g\n", step, (double)loss, (double)losses[step]);
        CHECK(fabsf(loss - losses[step]) <= 1e-4f);
        if (step == 0) check_tensors(archive, "grad.", model, trainer->model, 1, 2e-5);
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    }
    check_tensors(archive, "after10.", model, model->tensors, 0, 1e-3);
    free(losses);
    ml_trainer_free(trainer);
    ml_archive_free(archive);
    ml_model_free(model);
}

/* ---- a classifier, as PyTorch trains it ---- */

enum { TARGETS = 7 }; /* matrices that an adapter may have a pair for, in each layer */
enum { CLASSES = 5, BATCH = 8, STEPS = 8, MOST_TOKENS = 8 * 400 };

typedef struct padded_batch {
    int32_t tokens[MOST_TOKENS], starts[BATCH + 1], labels[BATCH];
    ml_batch batch;
} padded_batch;

/* The next lines `label ||| sentence` with bos, each as long as the longest by padding at its end. */
static void read_batch(FILE *file, const ml_tokenizer *tokenizer, padded_batch *b) {
    static int32_t rows[BATCH][400];
    static int32_t work[1 << 16];
    int lengths[BATCH], longest = 0, r, i;
    memset(b, 0, sizeof *b);
    for (r = 0; r < BATCH; r++) {
        char line[4096], *text;
        ml_tokens ids;
        ml_encode_desc encode;
        REQUIRE(fgets(line, sizeof line, file) != NULL && (text = strstr(line, " ||| ")) != NULL);
        b->labels[r] = (int32_t)atoi(line);
        text += 5;
        text[strcspn(text, "\r\n")] = 0;
        memset(&encode, 0, sizeof encode);
        encode.text = text;
        encode.n_bytes = strlen(text);
        encode.flags = ML_ADD_BOS;
        encode.work = work;
        encode.work_size = sizeof work;
        REQUIRE(ml_tokenizer_encode(tokenizer, &encode, &ids, NULL) == ML_OK);
        REQUIRE(ids.n <= 400);
        memcpy(rows[r], ids.ids, (size_t)ids.n * sizeof *ids.ids);
        lengths[r] = ids.n;
        if (lengths[r] > longest) longest = lengths[r];
    }
    for (r = 0; r < BATCH; r++)
        for (i = 0; i < longest; i++)
            b->tokens[r * longest + i] = i < lengths[r] ? rows[r][i] : tokenizer->padding;
    for (r = 0; r <= BATCH; r++) b->starts[r] = (int32_t)(r * longest);
    b->batch.tokens = b->tokens;
    b->batch.n_tokens = BATCH * longest;
    b->batch.row_start = b->starts;
    b->batch.n_rows = BATCH;
    b->batch.labels = b->labels;
}

static void read_into(const ml_archive *archive, const char *name, const ml_tensor *t) {
    size_t n;
    float *x = shared_floats(archive, name, &n);
    CHECK(x && n == mli_numbers(t));
    if (x && n == mli_numbers(t)) memcpy(t->data, x, n * sizeof *x);
    free(x);
}

static void check_array(const ml_archive *archive, const char *name, const float *ours, size_t count,
                        double tolerance) {
    size_t n;
    float *x = shared_floats(archive, name, &n);
    double d;
    CHECK(x && n == count);
    d = x && n == count ? max_difference(ours, x, n) : 0;
    if (!(d <= tolerance)) printf("%s differs by %g\n", name, d);
    CHECK(d <= tolerance);
    free(x);
}

static void lora_name(char *name, const char *prefix, int layer, int target, char which) {
    static const char *const names[4] = {"query", "key", "value", "output"};
    snprintf(name, 128, "%slayers.%d.attention.compute_%s.lora_%c", prefix, layer, names[target], which);
}

static void check_lora(const ml_archive *archive, const ml_lora *lora, double tolerance) {
    int layer, target;
    for (layer = 0; layer < 5; layer++)
        for (target = 0; target < 4; target++) {
            const ml_tensor *pair = lora->tensors + (layer * TARGETS + target) * 2;
            char name[128];
            lora_name(name, "after.", layer, target, 'A');
            check_array(archive, name, (const float *)pair[0].data, mli_numbers(&pair[0]), tolerance);
            lora_name(name, "after.", layer, target, 'B');
            check_array(archive, name, (const float *)pair[1].data, mli_numbers(&pair[1]), tolerance);
        }
}

/* Eight steps of eight lines. Log-probabilities of the first batch: 1e-4, where logits of 64 products near 4 are left
   with float's 1e-6 after five layers of sums in another order. Losses: 2e-4, for the weights have by then moved
   apart. What is trained: 1e-3, one step of lr the other way, as above. */
static void check_classifier(ml_norm norm, ml_mask mask, const char *name, int with_lora) {
    const char *path = shared_path(name), *text = shared_path("data/sst-train.txt"),
               *tokenizer_path = shared_path("models/tok512.bin");
    ml_model *model = stories(norm, mask);
    ml_tokenizer *tokenizer;
    ml_archive *archive;
    ml_trainer *trainer = NULL;
    ml_trainer_desc desc;
    ml_head *head;
    ml_lora *lora = NULL;
    ml_random random;
    ml_error error;
    FILE *file;
    float *losses, *before, loss, log_probs[BATCH * CLASSES];
    int32_t *tokens;
    size_t n, n_embedding;
    int step, layer, target;
    static padded_batch b;
    if (!path || !model || !text || !tokenizer_path) SKIP("../shared is absent");
    REQUIRE(ml_archive_load(path, NULL, &archive, &error) == ML_OK);
    REQUIRE(ml_tokenizer_load(tokenizer_path, NULL, &tokenizer, &error) == ML_OK);
    file = fopen(text, "rb");
    REQUIRE(file != NULL);
    ml_random_seed(&random, 1);
    REQUIRE((head = new_head(model, CLASSES, 0, &random)) != NULL);
    read_into(archive, "head_weight", &head->weight);
    read_into(archive, "head_bias", &head->bias);
    memset(&desc, 0, sizeof desc);
    if (with_lora) {
        ml_lora_create_desc adapter;
        memset(&adapter, 0, sizeof adapter);
        adapter.random = &random;
        adapter.rank = 4;
        adapter.alpha = 1;
        REQUIRE(ml_lora_create(model, &adapter, &lora, &error) == ML_OK);
        for (layer = 0; layer < 5; layer++)
            for (target = 0; target < 4; target++) {
                char key[128];
                lora_name(key, "init.", layer, target, 'A');
                read_into(archive, key, lora->tensors + (layer * TARGETS + target) * 2);
            }
    }
    desc.max_tokens = MOST_TOKENS;
    desc.max_rows = BATCH;
    desc.max_row = 400;
    desc.head = head;
    desc.lora = lora;
    desc.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    n_embedding = mli_numbers(&model->tensors[0]);
    before = (float *)malloc(n_embedding * sizeof *before);
    memcpy(before, model->tensors[0].data, n_embedding * sizeof *before);
    losses = shared_floats(archive, "losses", &n);
    REQUIRE(n == STEPS);
    for (step = 0; step < STEPS; step++) {
        read_batch(file, tokenizer, &b);
        CHECK(ml_trainer_backward(trainer, &b.batch, log_probs, &loss, &error) == ML_OK);
        if (step == 0) {
            tokens = shared_tokens(archive, "first_batch_tokens", &n);
            CHECK(n == (size_t)b.batch.n_tokens);
            CHECK(memcmp(tokens, b.tokens, n * sizeof *tokens) == 0);
            free(tokens);
            check_array(archive, "first_batch_log_probs", log_probs, BATCH * CLASSES, 1e-4);
        }
        if (!(fabsf(loss - losses[step]) <= 2e-4f))
            printf("step %d: loss %g, not %g\n", step, (double)loss, (double)losses[step]);
        CHECK(fabsf(loss - losses[step]) <= 2e-4f);
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    }
    check_array(archive, "head_weight_after", (const float *)head->weight.data, mli_numbers(&head->weight),
                1e-3);
    check_array(archive, "head_bias_after", (const float *)head->bias.data, CLASSES, 1e-3);
    if (with_lora) check_lora(archive, lora, 1e-3);
    CHECK((memcmp(before, model->tensors[0].data, n_embedding * sizeof *before) == 0) == with_lora);
    free(before);
    free(losses);
    fclose(file);
    ml_trainer_free(trainer);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_tokenizer_free(tokenizer);
    ml_archive_free(archive);
    ml_model_free(model);
}

/* Rows of one length; the head reads the last position, be it padding, and padding is attended to. */
TEST(classifier_as_pytorch) {
    check_classifier(ML_NORM_LAYER, ML_MASK_FULL, "reference/classify_finetune_layer_full.pt", 0);
    check_classifier(ML_NORM_RMS, ML_MASK_CAUSAL, "reference/classify_finetune_rms_causal.pt", 0);
}

TEST(classifier_with_adapter_as_pytorch) {
    check_classifier(ML_NORM_LAYER, ML_MASK_FULL, "reference/classify_lora_layer_full.pt", 1);
    check_classifier(ML_NORM_RMS, ML_MASK_CAUSAL, "reference/classify_lora_rms_causal.pt", 1);
}

/* ---- memory ---- */

static int between(ml_random *random, int least, int most) {
    return least + (int)(ml_random_u64(random) % (uint64_t)(most - least + 1));
}

static ml_model *random_model(ml_random *random) {
    ml_config c;
    ml_model *model = NULL;
    memset(&c, 0, sizeof c);
    c.n_kv_heads = between(random, 1, 3);
    c.n_heads = c.n_kv_heads * between(random, 1, 3);
    c.dim = 2 * between(random, 1, 6) * c.n_heads;
    c.hidden_dim = between(random, 1, 120);
    c.n_layers = between(random, 1, 3);
    c.vocab_size = between(random, 3, 300);
    c.max_seq_len = 64;
    c.tied_output = between(random, 0, 1);
    c.norm = between(random, 0, 1) ? ML_NORM_RMS : ML_NORM_LAYER;
    c.mask = between(random, 0, 1) ? ML_MASK_CAUSAL : ML_MASK_FULL;
    c.norm_eps = 1e-5f;
    c.rope_theta = 10000;
    c.rope_scale = 1;
    CHECK((model = new_model(&c, ML_F32, random)) != NULL);
    return model;
}

enum { MOST = 600 };

/* A batch of at most `tokens` tokens in rows as long as they may be, of one token, or of any length. */
static void train_any_batch(ml_trainer *trainer, const ml_trainer_desc *desc, int tokens, int shape,
                            ml_random *random) {
    static int32_t ids[MOST], starts[MOST + 1], targets[MOST];
    const ml_config *c = &trainer->private_part->model->config;
    ml_batch batch;
    ml_error error;
    float loss;
    int rows = 0, total = 0, i;
    while (rows < desc->max_rows && total < tokens) {
        int length = shape == 0 ? desc->max_row : shape == 1 ? 1 : between(random, 1, desc->max_row);
        total += length < tokens - total ? length : tokens - total;
        starts[++rows] = (int32_t)total;
    }
    for (i = 0; i < total; i++) {
        ids[i] = (int32_t)between(random, 0, c->vocab_size - 1);
        targets[i] = (int32_t)between(random, -1, (desc->head ? desc->head->n_classes : c->vocab_size) - 1);
    }
    memset(&batch, 0, sizeof batch);
    batch.tokens = ids;
    batch.n_tokens = total;
    batch.row_start = starts;
    batch.n_rows = rows;
    batch.targets = batch.labels = targets;
    CHECK(ml_trainer_eval(trainer, &batch, NULL, &loss, &error) == ML_OK);
    CHECK(ml_trainer_backward(trainer, &batch, NULL, &loss, &error) == ML_OK);
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
}

static int all_are(const unsigned char *bytes, size_t n, unsigned char value) {
    while (n && bytes[n - 1] == value) n--;
    return n == 0;
}

enum { ALIGN = 64 }; /* of what a trainer places in its memory */

/* Trainers of every kind need exactly the memory that they report, for any batches: the library's own assertions
   check what they take of it, and canaries surround it. Two bytes less are refused in a buffer with the worst
   alignment, 63 bytes before a multiple of the 64 that are reserved for that. */
TEST(memory_is_exact) {
    ml_random random;
    int turn, i;
    ml_random_seed(&random, 5);
    for (turn = 0; turn < 60; turn++) {
        ml_model *model = random_model(&random);
        ml_head *head = NULL;
        ml_lora *lora = NULL;
        ml_lora_create_desc adapter;
        ml_trainer_desc desc;
        ml_trainer *trainer;
        ml_error error;
        unsigned char *block, *memory;
        size_t size;
        REQUIRE(model);
        memset(&desc, 0, sizeof desc);
        memset(&adapter, 0, sizeof adapter);
        adapter.random = &random;
        adapter.rank = between(&random, 1, 40);
        adapter.targets = (unsigned)between(&random, 1, ML_LORA_ALL);
        if (turn % 2) { /* also more classes than anything else is wide */
            int n_classes = between(&random, 2, turn % 4 == 1 ? 10 : 400);
            CHECK((head = new_head(model, n_classes, turn % 8 == 5, &random)) != NULL);
            if (turn % 4 == 3) head->pooling = ML_POOL_MEAN;
        }
        if (turn % 3 == 0) CHECK(ml_lora_create(model, &adapter, &lora, &error) == ML_OK);
        desc.max_tokens = between(&random, 1, turn % 5 ? 200 : MOST);
        desc.max_rows = turn % 7 ? between(&random, 1, desc.max_tokens) : desc.max_tokens;
        desc.max_row = turn % 6 ? between(&random, 1, 1 + desc.max_tokens / 6) : desc.max_tokens;
        desc.head = head;
        desc.lora = lora;
        desc.frozen = head && turn % 5 == 3;
        desc.dropout = turn % 4 == 1 ? 0.3f : 0;
        desc.checkpointing = between(&random, 0, 1);
        desc.threads.count = between(&random, 1, 3);
        desc.adamw.lr = 1e-3f;
        REQUIRE(ml_trainer_size(model, &desc, &size, &error) == ML_OK);
        block = (unsigned char *)malloc(size + 4 * ALIGN);
        REQUIRE(block);
        memset(block, 0xab, size + 4 * ALIGN);
        memory = (unsigned char *)mli_align_up((uintptr_t)block) + 1;
        CHECK(ml_trainer_init(model, &desc, memory, size - 2, &trainer, &error) == ML_ERROR_MEMORY);
        memory += turn % ALIGN;
        REQUIRE(ml_trainer_init(model, &desc, memory, size, &trainer, &error) == ML_OK);
        CHECK(trainer->private_part->graph_memory + trainer->private_part->graph_size <= memory + size);
        for (i = 0; i < 5; i++)
            train_any_batch(trainer, &desc, i < 3 ? desc.max_tokens : between(&random, 1, desc.max_tokens), i,
                            &random);
        CHECK(all_are(block, (size_t)(memory - block), 0xab));
        CHECK(all_are(memory + size, (size_t)(block + 4 * ALIGN - memory), 0xab));
        free(block);
        ml_lora_free(lora);
        ml_head_free(head);
        ml_model_free(model);
    }
}

/* One allocation, at the beginning. */
TEST(nothing_is_allocated_while_training) {
    ml_random random;
    ml_model *model;
    ml_trainer_desc desc;
    ml_trainer *trainer;
    ml_error error;
    int i;
    ml_random_seed(&random, 6);
    model = random_model(&random);
    REQUIRE(model);
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = desc.max_rows = desc.max_row = 50;
    desc.adamw.lr = 1e-3f;
    n_mallocs = 0;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    CHECK(n_mallocs == 1);
    for (i = 0; i < 3; i++) train_any_batch(trainer, &desc, 50, i, &random);
    CHECK(n_mallocs == 1);
    ml_trainer_free(trainer);
    ml_model_free(model);
}

/* ---- the same bits, however it is computed ---- */

enum { MADE_TOKENS = 300, MADE_ROWS = 4, MADE_VOCAB = 1100, MADE_STEPS = 3 };

/* Random numbers, large enough that two or three threads each get a task of every operation. */
static ml_model *made_model(uint64_t seed, ml_type type, ml_norm norm, ml_mask mask, int tied) {
    ml_config c;
    ml_model *model = NULL;
    ml_random random;
    memset(&c, 0, sizeof c);
    c.dim = 64;
    c.hidden_dim = 192;
    c.n_layers = 3;
    c.n_heads = 8;
    c.n_kv_heads = 4;
    c.vocab_size = MADE_VOCAB;
    c.max_seq_len = MADE_TOKENS;
    c.tied_output = tied;
    c.norm = norm;
    c.mask = mask;
    ml_random_seed(&random, seed);
    CHECK((model = new_model(&c, type, &random)) != NULL);
    return model;
}

static ml_head *made_head(const ml_model *model, uint64_t seed) {
    ml_head *head = NULL;
    ml_random random;
    ml_random_seed(&random, seed);
    CHECK((head = new_head(model, CLASSES, 0, &random)) != NULL);
    return head;
}

/* An adapter of every matrix; with `used` its B's are no longer 0, and it moves the logits by more than their
   size. */
static ml_lora *made_lora(const ml_model *model, uint64_t seed, int used) {
    ml_lora *lora = NULL;
    ml_lora_create_desc desc;
    ml_random random;
    ml_error error;
    int i;
    size_t j;
    memset(&desc, 0, sizeof desc);
    desc.rank = 16;
    desc.alpha = 8;
    desc.targets = ML_LORA_ALL;
    desc.init_sd = 0.1f;
    desc.random = &random;
    ml_random_seed(&random, seed);
    CHECK(ml_lora_create(model, &desc, &lora, &error) == ML_OK);
    for (i = 1; lora && used && i < lora->n_tensors; i += 2)
        for (j = 0; j < mli_numbers(&lora->tensors[i]); j++)
            ((float *)lora->tensors[i].data)[j] = 0.1f * ml_random_normal(&random);
    return lora;
}

typedef struct made_batch {
    int32_t tokens[MADE_TOKENS], targets[MADE_TOKENS], starts[MADE_ROWS + 1], labels[MADE_ROWS];
    ml_batch batch;
} made_batch;

/* Four rows of unlike lengths; about every eighth token is not counted, nor is the third label. */
static void make_batch(made_batch *b, uint64_t seed) {
    static const int32_t starts[MADE_ROWS + 1] = {0, 90, 91, 170, MADE_TOKENS};
    ml_random random;
    int i;
    memset(b, 0, sizeof *b);
    ml_random_seed(&random, seed);
    for (i = 0; i < MADE_TOKENS; i++) {
        b->tokens[i] = (int32_t)between(&random, 0, MADE_VOCAB - 1);
        b->targets[i] = between(&random, 0, 7) ? (int32_t)between(&random, 0, MADE_VOCAB - 1) : -1;
    }
    for (i = 0; i < MADE_ROWS; i++) b->labels[i] = i == 2 ? -1 : (int32_t)between(&random, 0, CLASSES - 1);
    memcpy(b->starts, starts, sizeof starts);
    b->batch.tokens = b->tokens;
    b->batch.n_tokens = MADE_TOKENS;
    b->batch.row_start = b->starts;
    b->batch.n_rows = MADE_ROWS;
    b->batch.targets = b->targets;
    b->batch.labels = b->labels;
}

static ml_trainer_desc made_desc(void) {
    ml_trainer_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = MADE_TOKENS;
    desc.max_rows = MADE_ROWS;
    desc.adamw.lr = 1e-2f;
    desc.adamw.weight_decay = 0.1f;
    desc.adamw.clip = 0.5f;
    return desc;
}

enum { LANGUAGE_MODEL, CLASSIFIER, ADAPTER, KINDS };

typedef struct numbers {
    float *x;
    size_t n;
} numbers;

static void put(numbers *to, const float *x, size_t n) {
    memcpy(to->x + to->n, x, n * sizeof *x);
    to->n += n;
}

/* Every loss, gradient and norm of three steps, and the weights and moments after them. The last batch is two tokens,
   which take other kernels. */
static numbers train_made(int kind, ml_threads threads, int checkpointing) {
    ml_model *model = kind == CLASSIFIER
                          ? made_model(1, ML_F32, ML_NORM_LAYER, ML_MASK_FULL, 0)
                          : made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, kind == LANGUAGE_MODEL);
    ml_head *head = kind == LANGUAGE_MODEL ? NULL : made_head(model, 2);
    ml_lora *lora = kind == ADAPTER ? made_lora(model, 3, 1) : NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer = NULL;
    ml_error error;
    made_batch b;
    numbers out;
    const mli_trained *t;
    int step, i;
    desc.head = head;
    desc.lora = lora;
    desc.dropout = head ? 0.3f : 0;
    if (kind == ADAPTER) head->pooling = ML_POOL_MEAN;
    desc.checkpointing = checkpointing;
    desc.threads = threads;
    out.n = 0;
    CHECK(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    out.x = (float *)malloc(((size_t)trainer->n_parameters + 1) * 2 * MADE_STEPS * sizeof *out.x);
    for (step = 0; step < MADE_STEPS; step++) {
        float loss;
        make_batch(&b, 10 + (uint64_t)step);
        if (step == 2) b.batch.n_tokens = 2, b.batch.row_start = NULL, b.batch.n_rows = 1;
        CHECK(ml_trainer_backward(trainer, &b.batch, NULL, &loss, &error) == ML_OK);
        put(&out, &loss, 1);
        for (i = 0; i < trainer->private_part->optimizer.n_trained; i++) {
            t = &trainer->private_part->optimizer.trained[i];
            put(&out, t->t->grad, mli_numbers(t->t));
        }
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
        put(&out, &trainer->gradient_norm, 1);
    }
    for (i = 0; i < trainer->private_part->optimizer.n_trained; i++) {
        t = &trainer->private_part->optimizer.trained[i];
        put(&out, (const float *)t->t->data, mli_numbers(t->t));
        put(&out, t->m, mli_numbers(t->t));
        put(&out, t->v, mli_numbers(t->t));
    }
    CHECK(out.n == ((size_t)trainer->n_parameters + 1) * 2 * MADE_STEPS);
    ml_trainer_free(trainer);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(model);
    return out;
}

/* Bit for bit; a's memory is given back. */
static int same_bits(numbers a, const numbers *b) {
    int same = a.n == b->n && memcmp(a.x, b->x, a.n * sizeof *a.x) == 0;
    if (!same)
        printf("of %lu numbers some differ, by up to %g\n", (unsigned long)a.n,
               max_difference(a.x, b->x, a.n));
    free(a.x);
    return same;
}

static ml_threads threads_of(int count) {
    ml_threads threads;
    memset(&threads, 0, sizeof threads);
    threads.count = count;
    return threads;
}

TEST(checkpointing_changes_no_bit) {
    int kind;
    for (kind = 0; kind < KINDS; kind++) {
        numbers kept = train_made(kind, threads_of(1), 0);
        CHECK(same_bits(train_made(kind, threads_of(1), 1), &kept));
        CHECK(same_bits(train_made(kind, threads_of(2), 1), &kept));
        free(kept.x);
    }
}

typedef void (*any_function)(void);

typedef struct cut_tasks {
    any_function task[64];
    int most[64], n; /* into how many tasks it was cut at most */
} cut_tasks;

static void note_cut(cut_tasks *cut, any_function task, int n_tasks) {
    int i = 0;
    while (i < cut->n && cut->task[i] != task) i++;
    if (i == 64) return;
    if (i == cut->n) cut->task[cut->n++] = task, cut->most[i] = 0;
    cut->most[i] = cut->most[i] > n_tasks ? cut->most[i] : n_tasks;
}

/* Runs the last task first, and notes which were really cut; of work in rows also what computes the rows. */
static void run_backwards(void *user, int n_tasks, ml_task task, void *arg) {
    cut_tasks *cut = (cut_tasks *)user;
    note_cut(cut, (any_function)task, n_tasks);
    if (task == mli_rows_task) note_cut(cut, (any_function)((const mli_rows_job *)arg)->f, n_tasks);
    while (n_tasks-- > 0) task(arg, n_tasks);
}

static int cut_into(const cut_tasks *cut, any_function task) {
    int i = 0;
    while (i < cut->n && cut->task[i] != task) i++;
    return i < cut->n ? cut->most[i] : 0;
}

#define CUT_INTO(task) cut_into(&cut, (any_function)(task))

TEST(threads_change_no_bit) {
    int kind, count;
    for (kind = 0; kind < KINDS; kind++) {
        numbers one = train_made(kind, threads_of(1), 0);
        for (count = 2; count <= 3; count++) {
            ml_threads threads = threads_of(count);
            cut_tasks cut;
            CHECK(same_bits(train_made(kind, threads, 0), &one)); /* OpenMP, where there is one */
            memset(&cut, 0, sizeof cut);
            threads.parallel_for = run_backwards;
            threads.user = &cut;
            CHECK(same_bits(train_made(kind, threads, 0), &one));
            CHECK(CUT_INTO(mli_rows_task) == count);
            CHECK(CUT_INTO(mli_gemm_cols_task) == count || CUT_INTO(mli_gemm_rows_task) == count);
            CHECK(CUT_INTO(mli_attention_task) == count);
            CHECK(CUT_INTO(mli_attention_backward_task) == count);
            CHECK(CUT_INTO(mli_square_sums) == count);
            CHECK(CUT_INTO(mli_adamw_updates) == count);
            if (kind != LANGUAGE_MODEL) continue; /* the head's few numbers are not worth a second thread */
            CHECK(CUT_INTO(mli_few_rows_task) > 1);
            CHECK(CUT_INTO(mli_loss_rows) == count);
        }
        free(one.x);
    }
}

/* Two halves of a batch, each divided by what counts in the whole, add up to its gradient; the sums are the same
   numbers in another order, so each tensor's difference is at most 1e-6 of its length. */
static void check_halves(int with_head) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_head *head = with_head ? made_head(model, 2) : NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *whole, *halves;
    ml_error error;
    made_batch b;
    ml_batch half;
    int32_t second[3];
    float loss, first_loss, second_loss;
    int i;
    size_t j, counted = 0;
    desc.head = head;
    make_batch(&b, 4);
    for (i = 0; i < MADE_TOKENS; i++) counted += b.targets[i] >= 0;
    if (with_head) counted = 3;
    REQUIRE(ml_trainer_new(model, &desc, &whole, &error) == ML_OK);
    REQUIRE(ml_trainer_new(model, &desc, &halves, &error) == ML_OK);
    CHECK(ml_trainer_backward(whole, &b.batch, NULL, &loss, &error) == ML_OK);
    half = b.batch;
    half.divisor = (float)counted;
    half.n_rows = 2;
    half.n_tokens = b.starts[2];
    CHECK(ml_trainer_backward(halves, &half, NULL, &first_loss, &error) == ML_OK);
    for (i = 0; i < 3; i++) second[i] = b.starts[2 + i] - b.starts[2];
    half.tokens = b.tokens + b.starts[2];
    half.targets = b.targets + b.starts[2];
    half.labels = b.labels + 2;
    half.row_start = second;
    half.n_tokens = second[2];
    CHECK(ml_trainer_backward(halves, &half, NULL, &second_loss, &error) == ML_OK);
    CHECK_NEAR(first_loss + second_loss, loss, 0, 1e-6);
    for (i = 0; i < whole->private_part->optimizer.n_trained; i++) {
        const ml_tensor *a = halves->private_part->optimizer.trained[i].t,
                        *t = whole->private_part->optimizer.trained[i].t;
        double difference = 0, length = 0;
        for (j = 0; j < mli_numbers(t); j++) {
            double d = (double)a->grad[j] - (double)t->grad[j];
            difference += d * d;
            length += (double)t->grad[j] * (double)t->grad[j];
        }
        CHECK(length > 0);
        CHECK_NEAR(sqrt(difference / length), 0, 1e-6, 0);
    }
    ml_trainer_free(whole);
    ml_trainer_free(halves);
    ml_head_free(head);
    ml_model_free(model);
}

TEST(gradients_accumulate) {
    check_halves(0);
    check_halves(1);
}

/* ---- AdamW ---- */

/* A bias-free linear layer (2, 3) learns y = (x0 + x1, -x2) in 1000 steps of one x each. The tolerances are those of
   the course's own test. */
TEST(adamw_as_in_the_course) {
    const char *path = shared_path("reference/adamw_course.pt"),
               *npy = shared_path("reference/course-optimizer_test.npy");
    ml_archive *archive;
    ml_error error;
    ml_optimizer *optimizer;
    ml_optimizer_desc desc;
    ml_parameter parameter;
    ml_tensor t;
    FILE *file;
    float *w, *x, *after, course[6];
    size_t n, n_x;
    int step, i;
    if (!path || !npy) SKIP("../shared is absent");
    REQUIRE(ml_archive_load(path, NULL, &archive, &error) == ML_OK);
    w = shared_floats(archive, "weight0", &n);
    x = shared_floats(archive, "x", &n_x);
    after = shared_floats(archive, "weight_after", &n);
    REQUIRE(n == 6 && n_x == 3000);
    file = fopen(npy, "rb"); /* 128 bytes of header, then the floats */
    REQUIRE(file && fseek(file, 128, SEEK_SET) == 0 && fread(course, sizeof course, 1, file) == 1);
    fclose(file);
    CHECK(memcmp(course, after, sizeof course) == 0);
    memset(&desc, 0, sizeof desc);
    t = mli_tensor_at(w, 2, 3);
    parameter.tensor = &t;
    parameter.group = 0;
    desc.parameters = &parameter;
    desc.n_parameters = 1;
    desc.adamw.lr = 1e-3f;
    desc.adamw.weight_decay = 1e-4f;
    desc.adamw.clip = 0.9f;
    REQUIRE(ml_optimizer_new(&desc, &optimizer, &error) == ML_OK);
    for (step = 0; step < 1000; step++) {
        const float *xs = x + 3 * step;
        float d[2];
        d[0] = w[0] * xs[0] + w[1] * xs[1] + w[2] * xs[2] - (xs[0] + xs[1]);
        d[1] = w[3] * xs[0] + w[4] * xs[1] + w[5] * xs[2] + xs[2];
        for (i = 0; i < 6; i++) t.grad[i] = 2 * d[i / 3] * xs[i % 3];
        CHECK(ml_optimizer_step(optimizer, &error) == ML_OK);
        for (i = 0; i < 6; i++) CHECK(t.grad[i] == 0);
    }
    CHECK(optimizer->step == 1000);
    for (i = 0; i < 6; i++) CHECK_NEAR(w[i], course[i], 1e-5, 1e-3);
    ml_optimizer_free(optimizer);
    free(w);
    free(x);
    free(after);
    ml_archive_free(archive);
}

/* The smallest model that can be, for an adapter of one matrix and a head of two classes. */
static ml_model *tiny_model(void) {
    ml_config c;
    ml_model *model = NULL;
    ml_random random;
    memset(&c, 0, sizeof c);
    c.dim = 4;
    c.hidden_dim = c.n_heads = c.n_kv_heads = c.n_layers = 1;
    c.vocab_size = 3;
    c.max_seq_len = 8;
    ml_random_seed(&random, 1);
    CHECK((model = new_model(&c, ML_F32, &random)) != NULL);
    return model;
}

static void fill(float *x, size_t n, int seed, float scale) {
    size_t i;
    for (i = 0; i < n; i++) x[i] = (float)((int)(i * 37 + (size_t)seed * 29) % 101 - 50) / 64 * scale;
}

/* PyTorch's own AdamW and clip_grad_norm_ on four tensors in groups, six steps, of which every other is clipped:

   import torch
   def values(n, seed): return torch.tensor([((i * 37 + seed * 29) % 101 - 50) / 64 for i in range(n)])
   sizes, seeds = [4, 4, 8, 2], [1, 2, 3, 4]
   p = [torch.nn.Parameter(values(n, s)) for n, s in zip(sizes, seeds)]
   o = torch.optim.AdamW([dict(params=p[:2], lr=0.01, weight_decay=0.1),
                          dict(params=p[2:3], lr=0.03, weight_decay=0.1),
                          dict(params=p[3:], lr=0.03, weight_decay=0)], betas=(0.9, 0.99), eps=1e-5)
   for t in range(6):
       for i in range(4): p[i].grad = values(sizes[i], 5 + 4 * t + i) * [1, 0.125][t % 2]
       print(float(torch.nn.utils.clip_grad_norm_(p, 1.0)))
       o.step()
   print(torch.cat([x.detach() for x in p]).tolist())

   Norms: 1e-6 of their size, the rounding of one sum. Weights: 3e-7, a few roundings of numbers below 1. */
TEST(adamw_as_pytorch) {
    static const float norms[6] = {1.776789903640747f,  0.24088454246520996f, 2.0132617950439453f,
                                   0.2554340958595276f, 2.0018301010131836f,  0.2338046431541443f};
    static const float expected[18] = {-0.3187203109264374f,  0.2337135374546051f,  -0.718051552772522f,
                                       -0.20730717480182648f, 0.11717267334461212f, 0.7334738969802856f,
                                       -0.2921789288520813f,  0.26271504163742065f, 0.6853429079055786f,
                                       -0.41532719135284424f, 0.12723223865032196f, 0.819589376449585f,
                                       -0.2710266709327698f,  0.25067269802093506f, -0.606843113899231f,
                                       -0.20070374011993408f, -0.5069502592086792f, -0.08142714947462082f};
    ml_model *model = tiny_model();
    ml_head *head;
    ml_lora *lora;
    ml_lora_create_desc adapter;
    ml_trainer_desc desc;
    ml_trainer *trainer;
    ml_random random;
    ml_error error;
    mli_trained *trained;
    const float *next = expected;
    int step, i;
    ml_random_seed(&random, 1);
    memset(&desc, 0, sizeof desc);
    memset(&adapter, 0, sizeof adapter);
    adapter.random = &random;
    adapter.rank = 1;
    adapter.targets = ML_LORA_Q;
    REQUIRE(ml_lora_create(model, &adapter, &lora, &error) == ML_OK);
    REQUIRE((head = new_head(model, 2, 0, &random)) != NULL);
    desc.lora = lora;
    desc.head = head;
    desc.adamw.lr = 0.01f;
    desc.adamw.head_lr = 0.03f;
    desc.adamw.beta2 = 0.99f;
    desc.adamw.eps = 1e-5f;
    desc.adamw.weight_decay = 0.1f;
    desc.adamw.clip = 1;
    desc.adamw.form = ML_ADAMW_PYTORCH;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    REQUIRE(trainer->private_part->optimizer.n_trained == 4 && trainer->n_parameters == 18);
    trained = trainer->private_part->optimizer.trained;
    for (i = 0; i < 4; i++) fill((float *)trained[i].t->data, mli_numbers(trained[i].t), 1 + i, 1);
    for (step = 0; step < 6; step++) {
        for (i = 0; i < 4; i++)
            fill(trained[i].t->grad, mli_numbers(trained[i].t), 5 + 4 * step + i, step % 2 ? 0.125f : 1);
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
        CHECK_NEAR(trainer->gradient_norm, norms[step], 0, 1e-6);
    }
    for (i = 0; i < 4; next += mli_numbers(trained[i++].t))
        CHECK_NEAR(max_difference((const float *)trained[i].t->data, next, mli_numbers(trained[i].t)), 0,
                   3e-7, 0);
    ml_trainer_free(trainer);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(model);
}

/* By hand. 1e-7: one rounding to float of numbers up to 1. */
TEST(schedules) {
    static const struct {
        ml_schedule schedule;
        int64_t step;
        double factor;
    } cases[] = {
        {{ML_DECAY_NONE, 0, 0, 0}, 0, 1},
        {{ML_DECAY_NONE, 0, 0, 0}, 1000000, 1},
        {{ML_DECAY_NONE, 4, 0, 0}, 0, 0.25},
        {{ML_DECAY_NONE, 4, 0, 0}, 2, 0.75},
        {{ML_DECAY_NONE, 4, 0, 0}, 3, 1},
        {{ML_DECAY_NONE, 4, 10, 0.5f}, 100, 1},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 0, 0.5},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 1, 1},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 2, 1},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 3, 0.875},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 9, 0.125},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 10, 0},
        {{ML_DECAY_LINEAR, 2, 10, 0}, 5000000000, 0},
        {{ML_DECAY_LINEAR, 2, 10, 0.2f}, 6, 0.6},
        {{ML_DECAY_LINEAR, 2, 10, 0.2f}, 11, 0.2},
        {{ML_DECAY_COSINE, 0, 8, 0}, 0, 1},
        {{ML_DECAY_COSINE, 0, 8, 0}, 2, 0.85355339059327376}, /* (1 + cos(pi / 4)) / 2 */
        {{ML_DECAY_COSINE, 0, 8, 0}, 4, 0.5},
        {{ML_DECAY_COSINE, 0, 8, 0}, 6, 0.14644660940672624},
        {{ML_DECAY_COSINE, 0, 8, 0}, 8, 0},
        {{ML_DECAY_COSINE, 0, 8, 0}, 9, 0},
        {{ML_DECAY_COSINE, 3, 11, 0.1f}, 0, 1.0 / 3},
        {{ML_DECAY_COSINE, 3, 11, 0.1f}, 7, 0.55},
        {{ML_DECAY_COSINE, 3, 11, 0.1f}, 11, 0.1},
        {{ML_DECAY_COSINE, 3, 3, 0.1f}, 2, 1},
        {{ML_DECAY_COSINE, 3, 3, 0.1f}, 3, 0.1}, /* nothing is left to decay over */
    };
    ml_model *model = tiny_model();
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    ml_error error;
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_NEAR(ml_schedule_factor(&cases[i].schedule, cases[i].step), cases[i].factor, 1e-7, 0);
    desc.max_tokens = desc.max_rows = 8;
    desc.schedule.decay = ML_DECAY_LINEAR;
    desc.schedule.warmup_steps = 2;
    desc.schedule.total_steps = 4;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    for (i = 0; i < 5; i++) {
        static const float factors[5] = {0.5f, 1, 1, 0.5f, 0};
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
        CHECK_NEAR(trainer->learning_rate, 1e-2f * factors[i], 0, 1e-7);
    }
    ml_trainer_free(trainer);
    ml_model_free(model);
}

/* What a model or an adapter holds, one tensor after the other. */
static numbers copy_of(const ml_tensor *tensors, int n) {
    numbers out;
    size_t total = 1;
    int i;
    for (i = 0; i < n; i++) total += tensors[i].data ? mli_numbers(&tensors[i]) : 0;
    out.x = (float *)malloc(total * sizeof *out.x);
    out.n = 0;
    for (i = 0; i < n; i++)
        if (tensors[i].data) put(&out, (const float *)tensors[i].data, mli_numbers(&tensors[i]));
    return out;
}

/* With no gradient but weight decay, a step only shrinks: by lr * decay, the head by head_lr * decay; norms and
   biases not at all unless decay_all. Then, with every gradient 1, the first step of PyTorch's form is lr long (1e-5
   shorter for eps), the head's head_lr. */
static void check_groups(int decay_all) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_LAYER, ML_MASK_FULL, 0);
    ml_head *head = made_head(model, 2);
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    ml_error error;
    numbers before = copy_of(model->tensors, model->n_tensors), w = copy_of(&head->weight, 2);
    const float *old = before.x;
    int i, part, norms = 0;
    size_t j;
    desc.head = head;
    desc.adamw.head_lr = 5e-2f;
    desc.adamw.weight_decay = 0.5f;
    desc.adamw.decay_all = decay_all;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    for (i = 0; i < model->n_tensors; i++) {
        const ml_tensor *t = &model->tensors[i];
        const float *now = (const float *)t->data;
        char name[ML_NAME_SIZE];
        int norm, output;
        size_t wrong = 0;
        CHECK(ml_model_tensor_name(model, i, name) == ML_OK);
        norm = strstr(name, "norm") != NULL;
        output = strcmp(name, "output.weight") == 0; /* not read by a head, so not trained */
        CHECK((trainer->model[i].grad == NULL) == output);
        for (j = 0; j < mli_numbers(t); j++)
            wrong += now[j] != old[j] * (output || (norm && !decay_all) ? 1.0f : 1.0f - 1e-2f * 0.5f);
        if (wrong) printf("%s: %lu are wrong\n", name, (unsigned long)wrong);
        CHECK(wrong == 0);
        norms += norm;
        old += mli_numbers(t);
    }
    CHECK(norms == 2 * (2 * model->config.n_layers + 1));
    for (part = 0, old = w.x; part < 2; old += mli_numbers(&trainer->head[part++]))
        for (j = 0; j < mli_numbers(&trainer->head[part]); j++)
            CHECK(((const float *)trainer->head[part].data)[j] ==
                  old[j] * (part && !decay_all ? 1.0f : 1.0f - 5e-2f * 0.5f));
    free(before.x);
    free(w.x);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

static void check_rates(void) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_head *head = made_head(model, 2);
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    ml_error error;
    int i;
    size_t j;
    desc.head = head;
    desc.adamw.head_lr = 5e-2f;
    desc.adamw.weight_decay = desc.adamw.clip = 0;
    desc.adamw.form = ML_ADAMW_PYTORCH;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    for (i = 0; i < trainer->private_part->optimizer.n_trained; i++) {
        const ml_tensor *t = trainer->private_part->optimizer.trained[i].t;
        int is_head = t->data == head->weight.data || t->data == head->bias.data;
        float *w = (float *)t->data;
        for (j = 0; j < mli_numbers(t); j++) w[j] = is_head ? 1.0f : 2.0f, t->grad[j] = 1;
    }
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    for (i = 0; i < trainer->private_part->optimizer.n_trained; i++) {
        const ml_tensor *t = trainer->private_part->optimizer.trained[i].t;
        int is_head = t->data == head->weight.data || t->data == head->bias.data;
        const float *w = (const float *)t->data;
        for (j = 0; j < mli_numbers(t); j++)
            CHECK_NEAR(w[j], is_head ? 1 - 5e-2 : 2 - 1e-2, 4e-7,
                       0); /* two roundings of 2 and 1e-5 of the step */
    }
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

TEST(parameter_groups) {
    check_groups(0);
    check_groups(1);
    check_rates();
}

/* What is frozen keeps its bits, has no gradient, and costs neither that nor moments: three floats of each number.
   The batch is small, so that a frozen trainer as a whole takes less than those would. */
TEST(frozen_costs_nothing) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 0);
    ml_head *head = made_head(model, 2);
    ml_lora *lora = made_lora(model, 3, 0);
    ml_trainer_desc desc = made_desc();
    numbers before = copy_of(model->tensors, model->n_tensors);
    size_t full, size, three = 3 * sizeof(float), n_output = MADE_VOCAB * 64;
    ml_error error;
    int turn, step, i;
    desc.max_tokens = desc.max_rows = 8;
    desc.head = head;
    REQUIRE(ml_trainer_size(model, &desc, &full, &error) == ML_OK);
    CHECK(full > three * ((size_t)model->n_parameters - n_output));
    for (turn = 0; turn < 3; turn++) { /* the head alone; adapter and head; the adapter alone */
        numbers head_before = copy_of(&head->weight, 2),
                lora_before = copy_of(lora->tensors, lora->n_tensors);
        ml_trainer *trainer;
        int64_t expected = 0;
        desc.frozen = turn == 0;
        desc.lora = turn ? lora : NULL;
        desc.head = turn < 2 ? head : NULL;
        if (turn) expected += lora->n_parameters;
        if (turn < 2) expected += CLASSES * (64 + 1);
        REQUIRE(ml_trainer_size(model, &desc, &size, &error) == ML_OK);
        CHECK(size < three * ((size_t)model->n_parameters - n_output));
        if (turn == 0) CHECK(full - size >= three * ((size_t)model->n_parameters - n_output));
        REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
        CHECK(trainer->n_parameters == expected);
        for (i = 0; i < model->n_tensors; i++) CHECK(trainer->model[i].grad == NULL);
        for (step = 0; step < 3; step++) {
            made_batch b;
            make_batch(&b, 20 + (uint64_t)step);
            b.batch.row_start = NULL, b.batch.n_rows = 1;
            b.batch.n_tokens = 8;
            CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
            CHECK(ml_trainer_step(trainer, &error) == ML_OK);
        }
        CHECK(same_bits(copy_of(model->tensors, model->n_tensors), &before));
        ml_trainer_free(trainer);
        size = head_before.n;
        CHECK((memcmp(head->weight.data, head_before.x, size * sizeof(float)) == 0) == (turn == 2));
        CHECK((memcmp(lora->tensors[1].data, lora_before.x + mli_numbers(&lora->tensors[0]),
                      mli_numbers(&lora->tensors[1]) * sizeof(float)) == 0) == (turn == 0));
        free(head_before.x);
        free(lora_before.x);
    }
    free(before.x);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(model);
}

/* ---- adapters ---- */

/* The logits of every position, (tokens, V), read as a batch, and of the last by ml_session_eval one token at a
   time. */
static numbers logits_of(ml_session *session, const made_batch *b) {
    enum { N = 40 };
    const ml_config *c = &session->model->config;
    size_t all = (size_t)N * (size_t)c->vocab_size;
    ml_batch reading;
    ml_outputs wanted;
    ml_error error;
    numbers out;
    const float *last = NULL;
    int i;
    out.x = (float *)malloc((all + (size_t)c->vocab_size) * sizeof *out.x);
    out.n = all;
    memset(&reading, 0, sizeof reading);
    memset(&wanted, 0, sizeof wanted);
    reading.tokens = b->tokens;
    reading.n_tokens = N;
    wanted.logits = out.x;
    CHECK(ml_session_eval_batch(session, &reading, &wanted, &error) == ML_OK);
    CHECK(ml_session_truncate(session, 0, &error) == ML_OK);
    for (i = 0; i < N; i++) CHECK(ml_session_eval(session, b->tokens + i, 1, &last, &error) == ML_OK);
    if (last) put(&out, last, (size_t)c->vocab_size);
    return out;
}

static ml_session *session_with(const ml_model *model, const ml_lora *lora) {
    ml_session_desc desc;
    ml_session *session = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.lora = lora;
    desc.max_seq_len = 64;
    CHECK(ml_session_new(model, &desc, &session, &error) == ML_OK);
    return session;
}

/* A and B next to the weights, or merged into them. Logits: 1e-5, for they reach 1, and their products are summed in
   another order through three layers. Weights, taken apart again: 1e-6, two roundings of numbers below 1 for each of
   16 ranks. */
TEST(adapter_beside_as_merged) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 0);
    ml_lora *fresh = made_lora(model, 2, 0), *lora[2];
    ml_session *plain = session_with(model, NULL), *with_fresh = session_with(model, fresh), *with[2];
    numbers weights = copy_of(model->tensors, model->n_tensors), logits, beside[2];
    made_batch b;
    ml_error error;
    int i;
    make_batch(&b, 5);
    logits = logits_of(plain, &b);
    CHECK(same_bits(logits_of(with_fresh, &b), &logits));
    for (i = 0; i < 2; i++) {
        lora[i] = made_lora(model, 3 + (uint64_t)i, 1);
        with[i] = session_with(model, lora[i]);
    }
    for (i = 0; i < 2; i++) beside[i] = logits_of(with[i], &b);
    CHECK(same_bits(logits_of(with[0], &b), &beside[0])); /* after the other one has run */
    CHECK(same_bits(logits_of(plain, &b), &logits));
    CHECK(max_difference(beside[0].x, beside[1].x, logits.n) > 0.1);
    for (i = 0; i < 2; i++) {
        numbers merged, back;
        CHECK(max_difference(beside[i].x, logits.x, logits.n) > 0.1);
        CHECK(ml_lora_merge(lora[i], model, &error) == ML_OK);
        merged = logits_of(plain, &b);
        CHECK_NEAR(max_difference(beside[i].x, merged.x, logits.n), 0, 1e-5, 0);
        CHECK(ml_lora_unmerge(lora[i], model, &error) == ML_OK);
        back = copy_of(model->tensors, model->n_tensors);
        CHECK_NEAR(max_difference(back.x, weights.x, weights.n), 0, 1e-6, 0);
        free(merged.x);
        free(back.x);
        free(beside[i].x);
        ml_session_free(with[i]);
        ml_lora_free(lora[i]);
    }
    free(logits.x);
    free(weights.x);
    ml_session_free(plain);
    ml_session_free(with_fresh);
    ml_lora_free(fresh);
    ml_model_free(model);
}

/* ---- heads ---- */

TEST(head_as_described) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    char names[3][8] = {"bad", "", "good"};
    const char *labels[3];
    ml_head_create_desc desc;
    ml_head *head, *without;
    ml_random random;
    ml_error error;
    size_t i;
    for (i = 0; i < 3; i++) labels[i] = names[i];
    memset(&desc, 0, sizeof desc);
    desc.n_classes = 3;
    desc.labels = labels;
    desc.pooling = ML_POOL_MEAN;
    desc.random = &random;
    ml_random_seed(&random, 1);
    REQUIRE(ml_head_create(model, &desc, &head, &error) == ML_OK && error.code == ML_OK);
    memset(names, 'x', sizeof names); /* the head has copies */
    CHECK(strcmp(head->labels[0], "bad") == 0 && strcmp(head->labels[1], "") == 0);
    CHECK(strcmp(head->labels[2], "good") == 0);
    CHECK(head->n_classes == 3 && head->pooling == ML_POOL_MEAN);
    CHECK(head->weight.rows == 3 && head->weight.cols == 64 && head->bias.rows == 1 && head->bias.cols == 3);
    for (i = 0; i < 3 * 64; i++) CHECK(fabsf(((const float *)head->weight.data)[i]) <= 0.125f);
    for (i = 0; i < 3; i++) CHECK(fabsf(((const float *)head->bias.data)[i]) <= 0.125f);
    CHECK(((const float *)head->weight.data)[0] != ((const float *)head->weight.data)[1]);
    desc.no_bias = 1;
    desc.labels = NULL;
    ml_random_seed(&random, 1);
    REQUIRE(ml_head_create(model, &desc, &without, &error) == ML_OK);
    CHECK(without->bias.data == NULL && without->labels == NULL);
    CHECK(memcmp(without->weight.data, head->weight.data, 3 * 64 * sizeof(float)) == 0);
    ml_head_free(without);
    ml_head_free(head);
    ml_model_free(model);
}

static void pooled_batch(made_batch *b, int single) {
    make_batch(b, 7);
    b->batch.labels = NULL; /* a session needs none */
    if (single) b->batch.row_start = NULL, b->batch.n_rows = 1;
}

/* A head over a session and over a trainer. Log-probabilities: 1e-6, for they are below 4, and the logits' sums of 64
   products below 1 may be in another order. The session has room for exactly this batch. */
TEST(head_in_a_session_as_in_a_trainer) {
    int turn, r, c;
    for (turn = 0; turn < 32; turn++) {
        ml_model *model = turn & 4 ? made_model(1, ML_F32, ML_NORM_LAYER, ML_MASK_FULL, 0)
                                   : made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
        ml_lora *lora = turn & 8 ? made_lora(model, 3, 1) : NULL;
        ml_trainer_desc desc = made_desc();
        ml_session_desc session_desc;
        ml_trainer *trainer;
        ml_session *session;
        ml_head *head;
        ml_random random;
        ml_error error;
        made_batch b;
        float ours[MADE_ROWS * CLASSES] = {0}, theirs[MADE_ROWS * CLASSES] = {0};
        int n_rows = turn & 16 ? 1 : MADE_ROWS;
        ml_random_seed(&random, 2);
        head = new_head(model, CLASSES, turn & 1, &random);
        REQUIRE(head);
        if (turn & 2) head->pooling = ML_POOL_MEAN;
        desc.head = head;
        desc.lora = lora;
        memset(&session_desc, 0, sizeof session_desc);
        session_desc.lora = lora;
        session_desc.max_batch = MADE_TOKENS;
        session_desc.threads.count = 1 + (turn & 1);
        REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
        REQUIRE(ml_session_new(model, &session_desc, &session, &error) == ML_OK);
        pooled_batch(&b, turn & 16);
        CHECK(ml_trainer_eval(trainer, &b.batch, theirs, NULL, &error) == ML_OK);
        CHECK(ml_head_eval(head, session, &b.batch, ours, &error) == ML_OK && error.code == ML_OK);
        CHECK_NEAR(max_difference(ours, theirs, (size_t)(n_rows * CLASSES)), 0, 1e-6, 0);
        for (r = 0; r < n_rows; r++) {
            double sum = 0;
            for (c = 0; c < CLASSES; c++) sum += exp((double)ours[r * CLASSES + c]);
            CHECK_NEAR(sum, 1, 1e-6, 0);
        }
        CHECK(n_rows == MADE_ROWS || ours[CLASSES] == 0); /* nothing after the last row */
        CHECK(session->length == 0);
        ml_session_free(session);
        ml_trainer_free(trainer);
        ml_head_free(head);
        ml_lora_free(lora);
        ml_model_free(model);
    }
}

/* The masks of other seeds and of other passes have nothing in common, nor have they when one is shifted: of 2000
   numbers half are equal by chance, with a deviation of 22. */
TEST(seeds_and_passes_drop_others) {
    enum { N = 2000 };
    for (uint64_t other = 1; other < 5; other++) {
        uint64_t a = mli_pass_seed(1, 1), b = mli_pass_seed(1 + other / 2, 1 + other % 2);
        for (size_t shift = 0; shift < 3; shift++) {
            int equal = 0;
            for (size_t i = 0; i < N; i++)
                equal += mli_is_dropped(i + shift, .5f, a) == mli_is_dropped(i, .5f, b);
            CHECK(equal > N / 2 - 130 && equal < N / 2 + 130);
        }
    }
}

TEST(head_without_bias_learns) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    ml_head *head;
    ml_random random;
    ml_error error;
    made_batch b;
    float first, loss = 0;
    int step;
    ml_random_seed(&random, 2);
    head = new_head(model, CLASSES, 1, &random);
    REQUIRE(head);
    make_batch(&b, 3);
    desc.head = head;
    desc.frozen = 1;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    CHECK(trainer->n_parameters == CLASSES * 64);
    CHECK(trainer->head[0].grad != NULL);
    CHECK(trainer->head[1].data == NULL && trainer->head[1].grad == NULL);
    CHECK(ml_trainer_eval(trainer, &b.batch, NULL, &first, &error) == ML_OK);
    for (step = 0; step < 20; step++) {
        CHECK(ml_trainer_backward(trainer, &b.batch, NULL, &loss, &error) == ML_OK);
        CHECK(step > 0 || loss == first); /* both passes compute the same loss */
        CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    }
    CHECK(loss < 0.5f * first);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

/* ---- what is refused ---- */

/* The call must give this code and a sentence with these words. */
#define REFUSED(call, result, words)                                                                         \
    do {                                                                                                     \
        memset(&error, 0, sizeof error);                                                                     \
        CHECK((call) == (result));                                                                           \
        CHECK(error.code == (result));                                                                       \
        CHECK(strstr(error.text, words) != NULL);                                                            \
        if (!strstr(error.text, words)) printf("not \"%s\": %s\n", words, error.text);                       \
    } while (0)

/* Each wrong batch is refused by ml_trainer_backward and ml_trainer_eval, and leaves the trainer as it was. */
static void check_batches(int with_head) {
    static const struct {
        int with_head; /* 2: both */
        ml_result result;
        const char *words;
    } cases[] = {
        {0, ML_ERROR_ARGUMENT, "there are no targets"},
        {0, ML_ERROR_ARGUMENT, "target 7 is 1100, not below 1100"},
        {1, ML_ERROR_ARGUMENT, "label 1 is 5, not below 5"},
        {2, ML_ERROR_CONTEXT, "row 3 has 130 tokens; the trainer's max_row is 120"},
        {2, ML_ERROR_ARGUMENT, "row 1 is empty or runs backwards"},
        {2, ML_ERROR_ARGUMENT, "row 1 is empty or runs backwards"},
        {2, ML_ERROR_ARGUMENT, "row 1 is empty or runs backwards"},
        {2, ML_ERROR_ARGUMENT, "row_start does not run from 0 to n_tokens"},
        {2, ML_ERROR_ARGUMENT, "row_start does not run from 0 to n_tokens"},
        {2, ML_ERROR_ARGUMENT, "token 9 is 1100, outside the vocabulary of 1100"},
        {2, ML_ERROR_ARGUMENT, "token 9 is -1, outside the vocabulary of 1100"},
        {2, ML_ERROR_ARGUMENT, "0 tokens in 4 rows"},
        {2, ML_ERROR_ARGUMENT, "the trainer is for up to 300 in 4"},
        {2, ML_ERROR_ARGUMENT, "300 tokens in 5 rows"},
        {2, ML_ERROR_ARGUMENT, "300 tokens in 0 rows"},
        {2, ML_ERROR_ARGUMENT, "batch: its divisor is not 0 or more"},
        {2, ML_ERROR_ARGUMENT, "batch: its divisor is not 0 or more"},
        {2, ML_ERROR_ARGUMENT, "batch: tokens is NULL"},
    };
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_head *head = with_head ? made_head(model, 2) : NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    numbers before = copy_of(model->tensors, model->n_tensors);
    ml_error error;
    float loss, again, log_probs[MADE_ROWS * CLASSES];
    int i;
    size_t j;
    made_batch b;
    desc.head = head;
    desc.max_row = 120;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    make_batch(&b, 3);
    b.starts[3] = 180;
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, &loss, &error) == ML_OK && error.text[0] == 0);
    ml_trainer_zero_gradients(trainer);
    for (i = 0; i < (int)(sizeof cases / sizeof *cases); i++) {
        if (cases[i].with_head < 2 && cases[i].with_head != with_head) continue;
        make_batch(&b, 3);
        b.starts[3] = 180;
        switch (i) {
        case 0: b.batch.targets = NULL; break;
        case 1: b.targets[7] = MADE_VOCAB; break;
        case 2: b.labels[1] = CLASSES; break;
        case 3: b.starts[3] = 170; break;
        case 4: b.starts[2] = b.starts[1]; break;
        case 5: b.starts[2] = b.starts[1] - 1; break;
        case 6: b.starts[2] = INT32_MIN; break;
        case 7: b.starts[0] = 1; break;
        case 8: b.starts[4] = MADE_TOKENS - 1; break;
        case 9: b.tokens[9] = MADE_VOCAB; break;
        case 10: b.tokens[9] = -1; break;
        case 11: b.batch.n_tokens = 0; break;
        case 12: b.batch.n_tokens = MADE_TOKENS + 1; break;
        case 13: b.batch.n_rows = MADE_ROWS + 1; break;
        case 14: b.batch.n_rows = 0; break;
        case 15: b.batch.divisor = -1; break;
        case 16: b.batch.divisor = NAN; break;
        default: b.batch.tokens = NULL; break;
        }
        REFUSED(ml_trainer_backward(trainer, &b.batch, NULL, &again, &error), cases[i].result,
                cases[i].words);
        CHECK(trainer->private_part->graph->private_part->newest == NULL); /* nothing is left on the tape */
        REFUSED(ml_trainer_eval(trainer, &b.batch, NULL, &again, &error), cases[i].result, cases[i].words);
    }
    REFUSED(ml_trainer_backward(trainer, NULL, NULL, &again, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_trainer_backward(NULL, &b.batch, NULL, &again, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_trainer_eval(trainer, NULL, NULL, &again, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_trainer_eval(NULL, &b.batch, NULL, &again, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_trainer_step(NULL, &error), ML_ERROR_ARGUMENT, "NULL");
    make_batch(&b, 3);
    b.starts[3] = 180;
    b.batch.labels = NULL;
    if (with_head) { /* without labels it can be asked, not taught */
        REFUSED(ml_trainer_backward(trainer, &b.batch, NULL, &again, &error), ML_ERROR_ARGUMENT,
                "there are no labels");
        CHECK(ml_trainer_eval(trainer, &b.batch, log_probs, &again, &error) == ML_OK && again == 0);
        CHECK(log_probs[0] < 0 && log_probs[MADE_ROWS * CLASSES - 1] < 0);
    }
    CHECK(trainer->step == 0);
    CHECK(same_bits(copy_of(model->tensors, model->n_tensors), &before));
    for (j = 0; j < trainer->private_part->optimizer.n_numbers; j++)
        CHECK(trainer->private_part->optimizer.gradients[j] == 0);
    b.batch.labels = b.labels;
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, &again, &error) == ML_OK && again == loss);
    CHECK(trainer->private_part->graph->private_part->newest == NULL);
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    CHECK(trainer->private_part->graph->private_part->newest == NULL);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(ml_trainer_eval(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(trainer->private_part->graph->private_part->newest == NULL);
    free(before.x);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

TEST(wrong_heads) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1), *tiny = tiny_model();
    ml_head *head = made_head(model, 2), *thin = made_head(tiny, 2), *none;
    ml_session *session = session_with(model, NULL);
    const char *labels[2] = {"one", NULL};
    ml_head_create_desc desc;
    ml_random random;
    ml_error error;
    made_batch b;
    float log_probs[MADE_ROWS * CLASSES];
    ml_random_seed(&random, 1);
    memset(&desc, 0, sizeof desc);
    desc.n_classes = 2;
    REFUSED(ml_head_create(model, &desc, &none, &error), ML_ERROR_ARGUMENT, "not seeded");
    desc.random = &random;
    REFUSED(ml_head_create(NULL, &desc, &none, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_create(model, NULL, &none, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_create(model, &desc, NULL, &error), ML_ERROR_ARGUMENT, "NULL");
    desc.labels = labels;
    REFUSED(ml_head_create(model, &desc, &none, &error), ML_ERROR_ARGUMENT, "label 1 is NULL");
    CHECK(none == NULL);
    desc.labels = NULL;
    desc.pooling = (ml_pooling)7;
    REFUSED(ml_head_create(model, &desc, &none, &error), ML_ERROR_ARGUMENT, "pooling");
    desc.pooling = ML_POOL_LAST;
    desc.n_classes = 1 << 17;
    REFUSED(ml_head_create(model, &desc, &none, &error), ML_ERROR_ARGUMENT, "131072 classes");
    make_batch(&b, 3);
    b.batch.row_start = NULL, b.batch.n_rows = 1;
    b.batch.n_tokens = 40;
    CHECK(ml_head_eval(head, session, &b.batch, log_probs, &error) == ML_OK);
    REFUSED(ml_head_eval(NULL, session, &b.batch, log_probs, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_eval(head, NULL, &b.batch, log_probs, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_eval(head, session, NULL, log_probs, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_eval(head, session, &b.batch, NULL, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_head_eval(thin, session, &b.batch, log_probs, &error), ML_ERROR_MISMATCH,
            "the head reads 4 numbers, the model's dim is 64");
    b.batch.n_tokens = MADE_TOKENS; /* more than the session has room for */
    CHECK(ml_head_eval(head, session, &b.batch, log_probs, &error) != ML_OK);
    ml_session_free(session);
    ml_head_free(thin);
    ml_head_free(head);
    ml_model_free(tiny);
    ml_model_free(model);
}

TEST(wrong_batches) {
    check_batches(0);
    check_batches(1);
}

/* One weight or one gradient that is not finite is enough, wherever it is. */
static void check_not_finite(int with_head, float bad) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_head *head = with_head ? made_head(model, 2) : NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    mli_trainer *part;
    ml_tensor moments;
    numbers weights, old_moments;
    ml_error error;
    made_batch b;
    int i;
    desc.head = head;
    make_batch(&b, 3);
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    part = trainer->private_part;
    moments = mli_tensor_at(part->optimizer.moments, 2, part->optimizer.n_numbers);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    weights = copy_of(model->tensors, model->n_tensors);
    old_moments = copy_of(&moments, 1);
    for (i = 0; i < part->optimizer.n_trained; i++) { /* the gradient */
        ml_tensor *t = part->optimizer.trained[i].t;
        t->grad[mli_numbers(t) - 1] = bad;
        REFUSED(ml_trainer_step(trainer, &error), ML_ERROR_NUMBER, "the gradient of step 2 is not finite");
        CHECK(trainer->step == 1);
        t->grad[mli_numbers(t) - 1] = 0;
    }
    CHECK(same_bits(copy_of(model->tensors, model->n_tensors), &weights));
    CHECK(same_bits(copy_of(&moments, 1), &old_moments));
    part->optimizer.trained[0].t->grad[0] = bad;
    ml_trainer_zero_gradients(trainer);
    for (i = 0; i < part->optimizer.n_trained; i++) { /* the weight */
        ml_tensor *t = part->optimizer.trained[i].t;
        float *w = (float *)t->data, old = w[mli_numbers(t) - 1], loss = 0;
        int32_t last = MADE_VOCAB - 1;
        make_batch(&b, 3);
        b.tokens[MADE_TOKENS - 1] = last; /* so that the last row of the embedding is read */
        b.tokens[100] = last;
        w[mli_numbers(t) - 1] = bad;
        REFUSED(ml_trainer_backward(trainer, &b.batch, NULL, &loss, &error), ML_ERROR_NUMBER,
                "the loss is not finite");
        CHECK(loss - loss != 0);
        CHECK(trainer->private_part->graph->private_part->newest == NULL); /* nothing is left on the tape */
        REFUSED(ml_trainer_eval(trainer, &b.batch, NULL, NULL, &error), ML_ERROR_NUMBER,
                "the loss is not finite");
        w[mli_numbers(t) - 1] = old;
    }
    CHECK(same_bits(copy_of(model->tensors, model->n_tensors), &weights));
    ml_trainer_zero_gradients(trainer);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK); /* and it continues */
    CHECK(ml_trainer_step(trainer, &error) == ML_OK && trainer->step == 2);
    free(weights.x);
    free(old_moments.x);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

TEST(not_finite) {
    check_not_finite(0, NAN);
    check_not_finite(1, NAN);
    check_not_finite(0, INFINITY);
}

/* An evaluation adds nothing to the gradients, a pass given up with ml_trainer_zero_gradients leaves nothing, and one
   whose loss is not finite leaves zeros. */
static int all_zero(const ml_tensor *t) {
    size_t i, n = mli_numbers(t);
    for (i = 0; i < n && ((const float *)t->data)[i] == 0; i++) continue;
    return i == n;
}

static void check_given_up(int with_head) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 1);
    ml_head *head = with_head ? made_head(model, 2) : NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer;
    ml_tensor gradients;
    numbers before;
    ml_error error;
    made_batch b;
    float *w = (float *)model->tensors[0].data, old = w[0];
    desc.head = head;
    make_batch(&b, 3);
    b.tokens[0] = 0;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    gradients = mli_tensor_at(trainer->private_part->optimizer.gradients, 1,
                              trainer->private_part->optimizer.n_numbers);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    before = copy_of(&gradients, 1);
    CHECK(ml_trainer_eval(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(same_bits(copy_of(&gradients, 1), &before));
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    ml_trainer_zero_gradients(trainer);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(same_bits(copy_of(&gradients, 1), &before));
    w[0] = NAN;
    REFUSED(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error), ML_ERROR_NUMBER,
            "the loss is not finite");
    CHECK(all_zero(&gradients));
    w[0] = old;
    free(before.x);
    ml_trainer_free(trainer);
    ml_head_free(head);
    ml_model_free(model);
}

TEST(passes_given_up) {
    check_given_up(0);
    check_given_up(1);
}

static ml_result size_result(const ml_model *model, const ml_trainer_desc *desc, ml_error *error) {
    size_t size;
    return ml_trainer_size(model, desc, &size, error);
}

TEST(read_only_weights) {
    const char *path = shared_path("models/stories260K.pt");
    ml_model *model = made_model(1, ML_Q8_0, ML_NORM_RMS, ML_MASK_CAUSAL, 0), *mapped = NULL;
    ml_head *head = made_head(model, 2);
    ml_lora *lora = made_lora(model, 3, 0), *other = NULL;
    ml_trainer_desc desc = made_desc();
    ml_trainer *trainer = NULL;
    ml_error error;
    made_batch b;
    REFUSED(ml_trainer_new(model, &desc, &trainer, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
    CHECK(trainer == NULL);
    REFUSED(ml_lora_merge(lora, model, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
    REFUSED(ml_lora_unmerge(lora, model, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
    desc.head = head;
    REFUSED(size_result(model, &desc, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
    desc.frozen = 1; /* but what is trained next to it may */
    CHECK(size_result(model, &desc, &error) == ML_OK);
    desc.lora = lora;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    make_batch(&b, 3);
    CHECK(ml_trainer_backward(trainer, &b.batch, NULL, NULL, &error) == ML_OK);
    CHECK(ml_trainer_step(trainer, &error) == ML_OK && trainer->gradient_norm > 0);
    ml_trainer_free(trainer);
    if (path) {
        CHECK(ml_model_load(path, NULL, &mapped, &error) == ML_OK);
        desc = made_desc();
        REFUSED(size_result(mapped, &desc, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
        other = made_lora(mapped, 3, 1);
        REFUSED(ml_lora_merge(other, mapped, &error), ML_ERROR_ARGUMENT, "read-only or not F32");
        desc.lora = other;
        CHECK(size_result(mapped, &desc, &error) == ML_OK);
    }
    ml_lora_free(other);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(mapped);
    ml_model_free(model);
}

/* Tensors of tiny_model: dim 4 instead of 64, one layer instead of three. */
TEST(parts_that_do_not_fit) {
    ml_model *model = made_model(1, ML_F32, ML_NORM_RMS, ML_MASK_CAUSAL, 0), *tiny = tiny_model(), *thin;
    ml_config c = tiny->config;
    ml_head *head = made_head(tiny, 2);
    ml_lora *lora = made_lora(tiny, 3, 1), *thin_lora;
    ml_trainer_desc desc = made_desc();
    ml_session_desc session_desc;
    ml_session *session = NULL;
    ml_random random;
    ml_error error;
    ml_random_seed(&random, 1);
    c.n_layers = 3; /* as many layers, but thin ones */
    REQUIRE((thin = new_model(&c, ML_F32, &random)) != NULL);
    thin_lora = made_lora(thin, 3, 1);
    desc.lora = lora;
    REFUSED(size_result(model, &desc, &error), ML_ERROR_MISMATCH,
            "the adapter is for 1 layers, the model has 3");
    desc.lora = thin_lora;
    REFUSED(size_result(model, &desc, &error), ML_ERROR_MISMATCH,
            "the adapter of blk.0.attn_q.weight is for (4, 4), the model has (64, 64)");
    REFUSED(ml_lora_merge(thin_lora, model, &error), ML_ERROR_MISMATCH, "the adapter of blk.0.attn_q.weight");
    memset(&session_desc, 0, sizeof session_desc);
    session_desc.lora = thin_lora;
    REFUSED(ml_session_new(model, &session_desc, &session, &error), ML_ERROR_MISMATCH,
            "the adapter of blk.0.attn_q.weight");
    desc.lora = NULL;
    desc.head = head;
    REFUSED(size_result(model, &desc, &error), ML_ERROR_MISMATCH,
            "the head reads 4 numbers, the model's dim is 64");
    ml_lora_free(thin_lora);
    ml_lora_free(lora);
    ml_head_free(head);
    ml_model_free(thin);
    ml_model_free(tiny);
    ml_model_free(model);
}

#define WRONG(field, value, words)                                                                           \
    do {                                                                                                     \
        ml_trainer_desc desc = made_desc();                                                                  \
        desc.max_tokens = desc.max_rows = 8;                                                                 \
        CHECK(size_result(model, &desc, &error) == ML_OK);                                                   \
        desc.field = value;                                                                                  \
        REFUSED(size_result(model, &desc, &error), ML_ERROR_ARGUMENT, words);                                \
    } while (0)

TEST(wrong_descriptions) {
    ml_model *model = tiny_model();
    ml_trainer_desc good = made_desc();
    ml_trainer *trainer;
    ml_error error;
    ml_random random;
    ml_lora_create_desc adapter;
    ml_lora *lora;
    ml_head_create_desc head_desc;
    ml_head *head;
    WRONG(adamw.lr, 0, "lr must be given, and be at most 1e6");
    WRONG(adamw.lr, -1e-3f, "AdamW");
    WRONG(adamw.lr, NAN, "AdamW");
    WRONG(adamw.head_lr, -1, "AdamW");
    WRONG(adamw.beta1, 1, "AdamW");
    WRONG(adamw.beta2, 1, "AdamW");
    WRONG(adamw.eps, -1e-6f, "AdamW");
    WRONG(adamw.weight_decay, -1, "AdamW");
    WRONG(adamw.clip, NAN, "AdamW");
    WRONG(dropout, 1, "dropout");
    WRONG(dropout, 0.3f, "dropout without a head");
    WRONG(threads.count, -1, "threads.count is -1");
    WRONG(max_rows, 9, "max_tokens 8, max_rows 9");
    WRONG(max_row, 9, "do not go together");
    WRONG(max_tokens, -8, "do not go together");
    WRONG(frozen, 1, "learns nothing");
    good.max_tokens = good.max_rows = 8;
    good.adamw.head_lr = good.adamw.lr;
    good.adamw.lr = 0; /* also where only the head has one */
    REFUSED(size_result(model, &good, &error), ML_ERROR_ARGUMENT, "lr must be given, and be at most 1e6");
    good = made_desc();
    REFUSED(size_result(NULL, &good, &error), ML_ERROR_ARGUMENT, "needs a model");
    REFUSED(size_result(model, NULL, &error), ML_ERROR_ARGUMENT, "needs a model");
    REFUSED(ml_trainer_size(model, &good, NULL, &error), ML_ERROR_ARGUMENT, "size is NULL");
    REFUSED(ml_trainer_init(model, &good, NULL, 0, &trainer, &error), ML_ERROR_ARGUMENT, "NULL");
    REFUSED(ml_trainer_new(model, &good, NULL, &error), ML_ERROR_ARGUMENT, "NULL");
    ml_random_seed(&random, 1);
    memset(&adapter, 0, sizeof adapter);
    adapter.random = &random;
    adapter.rank = -1;
    REFUSED(ml_lora_create(model, &adapter, &lora, &error), ML_ERROR_ARGUMENT, "rank is -1");
    adapter.rank = 2;
    adapter.targets = ML_LORA_ALL + 1;
    REFUSED(ml_lora_create(model, &adapter, &lora, &error), ML_ERROR_ARGUMENT, "targets is 128");
    adapter.targets = 0;
    adapter.alpha = -1;
    REFUSED(ml_lora_create(model, &adapter, &lora, &error), ML_ERROR_ARGUMENT, "alpha");
    memset(&head_desc, 0, sizeof head_desc);
    head_desc.n_classes = 1;
    head_desc.random = &random;
    REFUSED(ml_head_create(model, &head_desc, &head, &error), ML_ERROR_ARGUMENT, "1 classes");
    ml_trainer_free(NULL);
    ml_lora_free(NULL);
    ml_head_free(NULL);
    ml_model_free(model);
}

int main(void) {
    RUN(language_model_as_pytorch);
    RUN(classifier_as_pytorch);
    RUN(classifier_with_adapter_as_pytorch);
    RUN(memory_is_exact);
    RUN(nothing_is_allocated_while_training);
    RUN(checkpointing_changes_no_bit);
    RUN(threads_change_no_bit);
    RUN(gradients_accumulate);
    RUN(adamw_as_in_the_course);
    RUN(adamw_as_pytorch);
    RUN(schedules);
    RUN(parameter_groups);
    RUN(frozen_costs_nothing);
    RUN(adapter_beside_as_merged);
    RUN(head_as_described);
    RUN(head_in_a_session_as_in_a_trainer);
    RUN(seeds_and_passes_drop_others);
    RUN(head_without_bias_learns);
    RUN(wrong_heads);
    RUN(wrong_batches);
    RUN(not_finite);
    RUN(passes_given_up);
    RUN(read_only_weights);
    RUN(parts_that_do_not_fit);
    RUN(wrong_descriptions);
    return test_report("test_train");
}
