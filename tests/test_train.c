/* Training as a whole: against PyTorch's losses, gradients and weights, and its exact repetition. How single operations go
   backward is tested in test_gradients.c. */
#include <stdlib.h>

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
#include "shared.h"

/* stories260K with weights that may be written to, as ../shared has it; NULL when it is not there. */
static ml_model *stories(ml_norm norm, ml_mask mask) {
    const char *path = shared_path("models/stories260K.pt");
    ml_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.type = ML_F32;
    desc.norm = norm;
    desc.mask = mask;
    if (path) CHECK(ml_load(path, &desc, &model, &error) == ML_OK);
    return model;
}

/* Compares the model's tensors, or their gradients, with those of an archive under prefix + the course's names. */
static void check_tensors(const ml_archive *archive, const char *prefix, const ml_model *model,
                          const ml_tensor *tensors, int gradients, double tolerance) {
    int i, compared = 0;
    for (i = 0; i < model->n_tensors; i++) {
        mli_slot slot;
        int layer;
        size_t n;
        char name[ML_NAME_SIZE], key[2 * ML_NAME_SIZE];
        const float *ours = gradients ? tensors[i].grad : (const float *)tensors[i].data;
        float *theirs;
        double d;
        mli_slot_of(i, &slot, &layer);
        if (!mli_has_slot(&model->config, slot)) continue;
        mli_param_name(MLI_NAMING_COURSE, slot, layer, name);
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
    ml_examples examples;
} lm_case;

static void lm_case_read(const ml_archive *archive, lm_case *c) {
    size_t n, i;
    int32_t *tokens = shared_tokens(archive, "tokens", &n), *targets = shared_tokens(archive, "targets", &n);
    CHECK(n == 128);
    memset(c, 0, sizeof *c);
    for (i = 0; i < 128; i++) c->tokens[i] = tokens[i], c->targets[i] = targets[i];
    for (i = 0; i < 5; i++) c->starts[i] = (int32_t)(32 * i);
    c->examples.tokens = c->tokens;
    c->examples.n_tokens = 128;
    c->examples.row_start = c->starts;
    c->examples.n_rows = 4;
    c->examples.targets = c->targets;
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
    CHECK(ml_trainer_new(model, &desc, NULL, &trainer, &error) == ML_OK);
    return trainer;
}

/* Ten steps on one batch as PyTorch takes them. Losses: 1e-4 absolute. Gradients: 2e-5, where the largest are near 1 and
   float sums of 128 tokens differ in order. Weights after ten steps: a gradient whose sign hangs on its last bits may move
   a weight by lr the other way in AdamW's first steps, so 1e-3 is what one such step is worth. */
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
    if (!path || !model) SKIP("../shared is not there");
    CHECK(ml_archive_open(path, NULL, &archive, &error) == ML_OK);
    losses = shared_floats(archive, "losses", &n);
    lm_case_read(archive, &c);
    trainer = lm_trainer(model, 2, 0);
    for (step = 0; step < 10; step++) {
        CHECK(ml_train(trainer, &c.examples, &loss, &error) == ML_OK);
        if (!(fabsf(loss - losses[step]) <= 1e-4f))
            printf("step %d: loss %g, not %g\n", step, (double)loss, (double)losses[step]);
        CHECK(fabsf(loss - losses[step]) <= 1e-4f);
        CHECK(ml_backward(trainer, &error) == ML_OK);
        if (step == 0) check_tensors(archive, "grad.", model, trainer->model, 1, 2e-5);
        CHECK(ml_step(trainer, &error) == ML_OK);
    }
    check_tensors(archive, "after10.", model, model->tensors, 0, 1e-3);
    free(losses);
    ml_trainer_free(trainer);
    ml_archive_close(archive);
    ml_free(model);
}

/* ---- a classifier, as PyTorch trains it ---- */

enum { CLASSES = 5, BATCH = 8, STEPS = 8, MOST_TOKENS = 8 * 400 };

typedef struct batch {
    int32_t tokens[MOST_TOKENS], starts[BATCH + 1], labels[BATCH];
    ml_examples examples;
} batch;

/* The next lines `label ||| sentence` with bos, each as long as the longest by padding at its end. */
static void read_batch(FILE *file, const ml_tokenizer *tokenizer, batch *b) {
    static int32_t rows[BATCH][400];
    static int32_t work[1 << 16];
    int lengths[BATCH], longest = 0, r, i;
    memset(b, 0, sizeof *b);
    for (r = 0; r < BATCH; r++) {
        char line[4096], *text;
        const int32_t *ids;
        size_t n;
        REQUIRE(fgets(line, sizeof line, file) != NULL && (text = strstr(line, " ||| ")) != NULL);
        b->labels[r] = (int32_t)atoi(line);
        text += 5;
        text[strcspn(text, "\r\n")] = 0;
        REQUIRE(ml_encode(tokenizer, text, strlen(text), ML_ADD_BOS, work, sizeof work, &ids, &n, NULL) ==
                ML_OK);
        REQUIRE(n <= 400);
        memcpy(rows[r], ids, n * sizeof *ids);
        lengths[r] = (int)n;
        if (lengths[r] > longest) longest = lengths[r];
    }
    for (r = 0; r < BATCH; r++)
        for (i = 0; i < longest; i++)
            b->tokens[r * longest + i] = i < lengths[r] ? rows[r][i] : ml_tokenizer_padding(tokenizer);
    for (r = 0; r <= BATCH; r++) b->starts[r] = (int32_t)(r * longest);
    b->examples.tokens = b->tokens;
    b->examples.n_tokens = BATCH * longest;
    b->examples.row_start = b->starts;
    b->examples.n_rows = BATCH;
    b->examples.labels = b->labels;
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
            const ml_tensor *pair = lora->tensors + (layer * MLI_LORA_TARGETS + target) * 2;
            char name[128];
            lora_name(name, "after.", layer, target, 'A');
            check_array(archive, name, (const float *)pair[0].data, mli_numbers(&pair[0]), tolerance);
            lora_name(name, "after.", layer, target, 'B');
            check_array(archive, name, (const float *)pair[1].data, mli_numbers(&pair[1]), tolerance);
        }
}

/* Eight steps of eight lines. Log-probabilities of the first batch: 1e-4, where logits of 64 products near 4 are left with
   float's 1e-6 after five layers of sums in another order. Losses: 2e-4, for the weights have by then moved apart. What is
   trained: 1e-3, one step of lr the other way, as above. */
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
    static batch b;
    if (!path || !model || !text || !tokenizer_path) SKIP("../shared is not there");
    REQUIRE(ml_archive_open(path, NULL, &archive, &error) == ML_OK);
    REQUIRE(ml_tokenizer_load(tokenizer_path, NULL, &tokenizer, &error) == ML_OK);
    file = fopen(text, "rb");
    REQUIRE(file != NULL);
    ml_random_seed(&random, 1);
    REQUIRE(ml_head_create(model, CLASSES, &random, NULL, &head, &error) == ML_OK);
    read_into(archive, "head_weight", &head->weight);
    read_into(archive, "head_bias", &head->bias);
    memset(&desc, 0, sizeof desc);
    if (with_lora) {
        ml_lora_desc adapter;
        memset(&adapter, 0, sizeof adapter);
        adapter.rank = 4;
        adapter.alpha = 1;
        REQUIRE(ml_lora_create(model, &adapter, &random, NULL, &lora, &error) == ML_OK);
        for (layer = 0; layer < 5; layer++)
            for (target = 0; target < 4; target++) {
                char key[128];
                lora_name(key, "init.", layer, target, 'A');
                read_into(archive, key, lora->tensors + (layer * MLI_LORA_TARGETS + target) * 2);
            }
    }
    desc.max_tokens = MOST_TOKENS;
    desc.max_rows = BATCH;
    desc.max_row = 400;
    desc.head = head;
    desc.lora = lora;
    desc.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(model, &desc, NULL, &trainer, &error) == ML_OK);
    n_embedding = mli_numbers(&model->tensors[0]);
    before = (float *)malloc(n_embedding * sizeof *before);
    memcpy(before, model->tensors[0].data, n_embedding * sizeof *before);
    losses = shared_floats(archive, "losses", &n);
    REQUIRE(n == STEPS);
    for (step = 0; step < STEPS; step++) {
        read_batch(file, tokenizer, &b);
        b.examples.log_probs = log_probs;
        CHECK(ml_train(trainer, &b.examples, &loss, &error) == ML_OK);
        if (step == 0) {
            tokens = shared_tokens(archive, "first_batch_tokens", &n);
            CHECK(n == (size_t)b.examples.n_tokens);
            CHECK(memcmp(tokens, b.tokens, n * sizeof *tokens) == 0);
            free(tokens);
            check_array(archive, "first_batch_log_probs", log_probs, BATCH * CLASSES, 1e-4);
        }
        if (!(fabsf(loss - losses[step]) <= 2e-4f))
            printf("step %d: loss %g, not %g\n", step, (double)loss, (double)losses[step]);
        CHECK(fabsf(loss - losses[step]) <= 2e-4f);
        CHECK(ml_backward(trainer, &error) == ML_OK);
        CHECK(ml_step(trainer, &error) == ML_OK);
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
    ml_archive_close(archive);
    ml_free(model);
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
    ml_error error;
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
    CHECK(ml_create(&c, ML_F32, random, NULL, &model, &error) == ML_OK);
    return model;
}

enum { MOST = 600 };

/* A batch of at most `tokens` tokens in rows as long as they may be, of one token, or of any length. */
static void train_any_batch(ml_trainer *trainer, const ml_trainer_desc *desc, int tokens, int shape,
                            ml_random *random) {
    static int32_t ids[MOST], starts[MOST + 1], targets[MOST];
    const ml_config *c = &trainer->private_part->model->config;
    ml_examples examples;
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
    memset(&examples, 0, sizeof examples);
    examples.tokens = ids;
    examples.n_tokens = total;
    examples.row_start = starts;
    examples.n_rows = rows;
    examples.targets = examples.labels = targets;
    CHECK(ml_evaluate(trainer, &examples, &loss, &error) == ML_OK);
    CHECK(ml_train(trainer, &examples, &loss, &error) == ML_OK);
    CHECK(ml_backward(trainer, &error) == ML_OK);
    CHECK(ml_step(trainer, &error) == ML_OK);
}

static int all_are(const unsigned char *bytes, size_t n, unsigned char value) {
    while (n && bytes[n - 1] == value) n--;
    return n == 0;
}

/* Trainers of every make live in exactly the memory that they ask for, whatever batches come: the library's own assertions
   watch over what they take of it, canaries stand around it. Two bytes less are refused in a
   buffer that stands as badly as one can, 63 bytes before a border, of the 64 that are counted for that. */
TEST(memory_is_exact) {
    ml_random random;
    int turn, i;
    ml_random_seed(&random, 5);
    for (turn = 0; turn < 60; turn++) {
        ml_model *model = random_model(&random);
        ml_head *head = NULL;
        ml_lora *lora = NULL;
        ml_lora_desc adapter;
        ml_trainer_desc desc;
        ml_trainer *trainer;
        ml_error error;
        unsigned char *block, *memory;
        size_t size;
        REQUIRE(model);
        memset(&desc, 0, sizeof desc);
        memset(&adapter, 0, sizeof adapter);
        adapter.rank = between(&random, 1, 40);
        adapter.targets = (unsigned)between(&random, 1, ML_LORA_ALL);
        if (turn % 2) /* also more classes than anything else is wide */
            CHECK(ml_head_create(model, between(&random, 2, turn % 4 == 1 ? 10 : 400), &random, NULL, &head,
                                 &error) == ML_OK);
        if (turn % 3 == 0) CHECK(ml_lora_create(model, &adapter, &random, NULL, &lora, &error) == ML_OK);
        desc.max_tokens = between(&random, 1, turn % 5 ? 200 : MOST);
        desc.max_rows = turn % 7 ? between(&random, 1, desc.max_tokens) : desc.max_tokens;
        desc.max_row = turn % 6 ? between(&random, 1, 1 + desc.max_tokens / 6) : desc.max_tokens;
        desc.head = head;
        desc.lora = lora;
        desc.frozen = head && turn % 5 == 3;
        desc.pooling = turn % 4 == 3 ? ML_POOL_MEAN : ML_POOL_LAST;
        desc.dropout = turn % 4 == 1 ? 0.3f : 0;
        desc.checkpointing = between(&random, 0, 1);
        desc.threads.count = between(&random, 1, 3);
        desc.adamw.lr = 1e-3f;
        REQUIRE(ml_trainer_size(model, &desc, &size, &error) == ML_OK);
        block = (unsigned char *)malloc(size + 4 * MLI_ALIGN);
        REQUIRE(block);
        memset(block, 0xab, size + 4 * MLI_ALIGN);
        memory = (unsigned char *)mli_align_up((uintptr_t)block) + 1;
        CHECK(ml_trainer_init(model, &desc, memory, size - 2, &trainer, &error) == ML_ERROR_MEMORY);
        memory += turn % MLI_ALIGN;
        REQUIRE(ml_trainer_init(model, &desc, memory, size, &trainer, &error) == ML_OK);
        CHECK((unsigned char *)trainer->private_part->graph.work + trainer->private_part->graph.work_size <=
              memory + size);
        for (i = 0; i < 5; i++)
            train_any_batch(trainer, &desc, i < 3 ? desc.max_tokens : between(&random, 1, desc.max_tokens), i,
                            &random);
        CHECK(all_are(block, (size_t)(memory - block), 0xab));
        CHECK(all_are(memory + size, (size_t)(block + 4 * MLI_ALIGN - memory), 0xab));
        free(block);
        ml_lora_free(lora);
        ml_head_free(head);
        ml_free(model);
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
    REQUIRE(ml_trainer_new(model, &desc, NULL, &trainer, &error) == ML_OK);
    CHECK(n_mallocs == 1);
    for (i = 0; i < 3; i++) train_any_batch(trainer, &desc, 50, i, &random);
    CHECK(n_mallocs == 1);
    ml_trainer_free(trainer);
    ml_free(model);
}

int main(void) {
    RUN(language_model_as_pytorch);
    RUN(classifier_as_pytorch);
    RUN(classifier_with_adapter_as_pytorch);
    RUN(memory_is_exact);
    RUN(nothing_is_allocated_while_training);
    return test_report("test_train");
}
