/* Checkpoints: training that is killed at any moment, repeatedly, and continued each time from its checkpoint ends
   with the same bits as training that was never interrupted. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include <time.h>
#include "models.h"
#include "folder.h"

enum { ROWS = 3, ROW = 20, LAST_STEP = 40 };

/* What a case trains: a whole model, or an adapter and a head over a frozen one. */
typedef struct training {
    ml_model *model;
    ml_lora *lora;
    ml_head *head;
    ml_trainer *trainer;
    int classifies;
} training;

static const char *checkpoint_path(void) { return in_folder("checkpoint.gguf"); }

static void training_begin(training *t, int classifies) {
    ml_model_create_desc model;
    ml_config *c = &model.config;
    ml_trainer_desc desc;
    ml_lora_create_desc lora;
    ml_head_create_desc head;
    ml_random random;
    ml_error error;
    memset(t, 0, sizeof *t);
    memset(&model, 0, sizeof model);
    memset(&desc, 0, sizeof desc);
    memset(&lora, 0, sizeof lora);
    memset(&head, 0, sizeof head);
    c->dim = 32, c->hidden_dim = 48, c->n_layers = 2, c->n_heads = 4, c->n_kv_heads = 2, c->vocab_size = 300;
    c->max_seq_len = ROW, c->tied_output = 1;
    ml_random_seed(&random, 7);
    t->classifies = classifies;
    model.random = lora.random = head.random = &random;
    CHECK(ml_model_create(&model, &t->model, &error) == ML_OK);
    if (classifies) {
        lora.rank = 3;
        head.n_classes = 4;
        CHECK(ml_lora_create(t->model, &lora, &t->lora, &error) == ML_OK);
        CHECK(ml_head_create(t->model, &head, &t->head, &error) == ML_OK);
    }
    desc.max_tokens = ROWS * ROW;
    desc.max_rows = ROWS;
    desc.max_row = ROW;
    desc.lora = t->lora;
    desc.head = t->head;
    desc.dropout = classifies ? 0.3f : 0;
    desc.seed = 5;
    desc.adamw.lr = 1e-3f;
    desc.adamw.weight_decay = 0.1f;
    desc.adamw.clip = 1;
    desc.schedule.decay = ML_DECAY_COSINE;
    desc.schedule.warmup_steps = 5;
    desc.schedule.total_steps = LAST_STEP;
    CHECK(ml_trainer_new(t->model, &desc, &t->trainer, &error) == ML_OK);
    ml_random_seed((ml_random *)(void *)t->trainer->progress,
                   3); /* the position in the data, kept in the checkpoint */
}

static void training_end(training *t) {
    ml_trainer_free(t->trainer);
    ml_lora_free(t->lora);
    ml_head_free(t->head);
    ml_model_free(t->model);
}

/* A step on a batch that depends on the position in the data. 0 when something failed. */
static int training_step(training *t) {
    ml_random *data = (ml_random *)(void *)t->trainer->progress;
    int32_t tokens[ROWS * ROW], targets[ROWS * ROW], starts[ROWS + 1], labels[ROWS];
    ml_batch batch;
    ml_error error;
    float loss;
    int i;
    memset(&batch, 0, sizeof batch);
    for (i = 0; i < ROWS * ROW; i++) {
        tokens[i] = (int32_t)(ml_random_u64(data) % 300);
        targets[i] = (tokens[i] * 7 + 1) % 300;
    }
    for (i = 0; i <= ROWS; i++) starts[i] = i * ROW;
    for (i = 0; i < ROWS; i++) labels[i] = tokens[i * ROW] % 4;
    batch.tokens = tokens, batch.targets = targets, batch.labels = labels, batch.row_start = starts;
    batch.n_tokens = ROWS * ROW, batch.n_rows = ROWS;
    return !ml_trainer_backward(t->trainer, &batch, NULL, &loss, &error) &&
           !ml_trainer_step(t->trainer, &error);
}

/* In a child process: continues from the checkpoint, saving after each step, to the end or until it is killed. */
static void child(int classifies) {
    training t;
    ml_error error;
    FILE *file = fopen(checkpoint_path(), "rb");
    training_begin(&t, classifies);
    if (file && ml_trainer_restore(t.trainer, checkpoint_path(), &error)) {
        printf("resuming: %s\n", error.text);
        _exit(2);
    }
    while (t.trainer->step < LAST_STEP)
        if (!training_step(&t) || ml_trainer_save(t.trainer, checkpoint_path(), &error)) _exit(3);
    _exit(0);
}

/* Starts children and kills them after a while that is different each time, until one comes to the end. Returns how
   many were killed, or -1 when one failed. */
static int kill_until_done(int classifies) {
    ml_random random;
    int kills = 0, status;
    ml_random_seed(&random, 11);
    for (;;) {
        /* at first shorter than a step takes, in the end long enough for all of them */
        long pause = (long)(ml_random_uniform(&random) * 2e6f * (float)(kills + 1));
        struct timespec wait_for;
        pid_t pid;
        wait_for.tv_sec = pause / 1000000000;
        wait_for.tv_nsec = pause % 1000000000;
        fflush(stdout);
        pid = fork();
        if (pid == 0) child(classifies);
        if (pid < 0) return -1;
        nanosleep(&wait_for, NULL);
        kill(pid, SIGKILL);
        if (waitpid(pid, &status, 0) != pid) return -1;
        if (WIFEXITED(status)) return WEXITSTATUS(status) == 0 ? kills : -1;
        kills++;
    }
}

static void killed_and_resumed(int classifies) {
    training undisturbed, resumed;
    ml_error error;
    int i, kills;
    remove(checkpoint_path());
    kills = kill_until_done(classifies);
    CHECK(kills > 3); /* or the test tests nothing */
    training_begin(&undisturbed, classifies);
    while (undisturbed.trainer->step < LAST_STEP) REQUIRE(training_step(&undisturbed));
    training_begin(&resumed, classifies);
    CHECK(ml_trainer_restore(resumed.trainer, checkpoint_path(), &error) == ML_OK);
    CHECK(resumed.trainer->step == LAST_STEP);
    CHECK(memcmp(resumed.trainer->progress, undisturbed.trainer->progress,
                 sizeof resumed.trainer->progress) == 0);
    /* one more step needs the moments, too */
    CHECK(training_step(&undisturbed) && training_step(&resumed));
    for (i = 0; i < undisturbed.trainer->private_part->optimizer.n_trained; i++) {
        const mli_trained *a = &undisturbed.trainer->private_part->optimizer.trained[i],
                          *b = &resumed.trainer->private_part->optimizer.trained[i];
        CHECK(memcmp(a->t->data, b->t->data, mli_numbers(a->t) * sizeof(float)) == 0);
    }
    remove(checkpoint_path());
    training_end(&undisturbed);
    training_end(&resumed);
}

TEST(model_killed_and_resumed) { killed_and_resumed(0); }
TEST(adapter_and_head_killed_and_resumed) { killed_and_resumed(1); }

/* A checkpoint that does not fit is refused, and the trainer stays as it was. */
TEST(wrong_checkpoints) {
    training whole, adapter;
    ml_archive *archive;
    ml_error error;
    float before;
    training_begin(&whole, 0);
    training_begin(&adapter, 1);
    REQUIRE(training_step(&whole) && training_step(&adapter));
    REQUIRE(ml_trainer_save(adapter.trainer, checkpoint_path(), &error) == ML_OK);
    REQUIRE(ml_archive_load(checkpoint_path(), NULL, &archive, &error) == ML_OK);
    CHECK(ml_archive_find_array(archive, "cls.output.weight") != NULL);
    CHECK(ml_archive_find_array(archive, "adamw.v.cls.output.bias") != NULL);
    ml_archive_free(archive);
    before = ((const float *)whole.model->tensors[0].data)[5];
    CHECK(ml_trainer_restore(whole.trainer, checkpoint_path(), &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "token_embd.weight") != NULL);
    CHECK(((const float *)whole.model->tensors[0].data)[5] == before && whole.trainer->step == 1);
    whole.trainer->step = INT64_MAX; /* the next step could not be counted */
    REQUIRE(ml_trainer_save(whole.trainer, checkpoint_path(), &error) == ML_OK);
    whole.trainer->step = 1;
    CHECK(ml_trainer_restore(whole.trainer, checkpoint_path(), &error) == ML_ERROR_FORMAT);
    CHECK(strstr(error.text, "step") != NULL && whole.trainer->step == 1);
    REQUIRE(ml_model_save(whole.model, checkpoint_path(), NULL, &error) == ML_OK);
    CHECK(ml_trainer_restore(whole.trainer, checkpoint_path(), &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "minillama.train.step") != NULL);
    remove(checkpoint_path());
    CHECK(ml_trainer_restore(whole.trainer, checkpoint_path(), &error) == ML_ERROR_FILE);
    CHECK(ml_trainer_save(whole.trainer, "/nowhere/at/all", &error) == ML_ERROR_FILE);
    training_end(&whole);
    training_end(&adapter);
}

/* As many tensors, and an adapter with the same scales, are part of a checkpoint's shape; its numbers are finite. */
TEST(checkpoints_of_more_than_is_trained) {
    training first, second;
    ml_error error;
    training_begin(&first, 1), training_begin(&second, 1);
    REQUIRE(training_step(&first) && training_step(&second) && training_step(&second));
    REQUIRE(ml_trainer_save(second.trainer, checkpoint_path(), &error) == ML_OK);
    ml_trainer_desc desc;
    ml_trainer *head_only = NULL;
    memset(&desc, 0, sizeof desc);
    desc.max_tokens = ROW, desc.head = first.head, desc.frozen = 1, desc.adamw.lr = 1e-3f;
    REQUIRE(ml_trainer_new(first.model, &desc, &head_only, &error) == ML_OK);
    float before = ((const float *)first.head->weight.data)[3];
    CHECK(ml_trainer_restore(head_only, checkpoint_path(), &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "tensors are trained, not 2") != NULL);
    REQUIRE(!ml_lora_scale(first.lora, 4, NULL));
    CHECK(ml_trainer_restore(first.trainer, checkpoint_path(), &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "other scales") != NULL);
    CHECK(((const float *)first.head->weight.data)[3] == before && first.trainer->step == 1);
    REQUIRE(!ml_lora_scale(first.lora, 0.25f, NULL));
    ((float *)second.head->weight.data)[3] = NAN;
    CHECK(ml_trainer_save(second.trainer, checkpoint_path(), &error) == ML_ERROR_NUMBER);
    CHECK(ml_trainer_restore(first.trainer, checkpoint_path(), &error) == ML_OK && first.trainer->step == 2);
    remove(checkpoint_path());
    ml_trainer_free(head_only);
    training_end(&first);
    training_end(&second);
}

/* A trainer of a head alone, over any model. */
static ml_trainer *head_trainer(ml_model *model, ml_pooling pooling, const char *const *labels,
                                ml_head **head) {
    ml_random random;
    ml_head_create_desc create;
    ml_trainer_desc desc;
    ml_trainer *trainer = NULL;
    memset(&create, 0, sizeof create), memset(&desc, 0, sizeof desc);
    ml_random_seed(&random, labels ? 2 : 3);
    create.n_classes = 3, create.random = &random, create.pooling = pooling, create.labels = labels;
    CHECK(ml_head_create(model, &create, head, NULL) == ML_OK);
    desc.max_tokens = ROW, desc.head = *head, desc.frozen = 1, desc.adamw.lr = 1e-3f;
    CHECK(ml_trainer_new(model, &desc, &trainer, NULL) == ML_OK);
    return trainer;
}

/* A head is restored as it was trained: with the same pooling, and, where both have labels, the same. */
TEST(checkpoints_of_another_head) {
    static const char *const good[] = {"bad", "good", "\xc3\xbc"}, *const other[] = {"bad", "goo", "x"},
                             *const broken[] = {"bad", "\xff", "x"};
    static const struct {
        ml_pooling pooling;
        const char *const *labels;
        const char *text; /* NULL: is restored */
    } cases[] = {{ML_POOL_MEAN, good, NULL},
                 {ML_POOL_MEAN, NULL, NULL},
                 {ML_POOL_LAST, good, "the checkpoint's head pools otherwise"},
                 {ML_POOL_MAX, good, "the checkpoint's head pools otherwise"},
                 {ML_POOL_MEAN, other, "label 1 of the head is \"goo\", the checkpoint's is another"}};
    training t;
    ml_head *heads[2];
    ml_error error;
    training_begin(&t, 0);
    for (int without = 0; without < 2; without++) {
        ml_trainer *saved = head_trainer(t.model, ML_POOL_MEAN, without ? NULL : good, &heads[0]);
        saved->step = 4;
        REQUIRE(saved && ml_trainer_save(saved, checkpoint_path(), &error) == ML_OK);
        for (int i = 0; i < 5; i++) {
            ml_trainer *to = head_trainer(t.model, cases[i].pooling, cases[i].labels, &heads[1]);
            float *weight = (float *)heads[1]->weight.data, expected;
            int fits = !cases[i].text || (without && cases[i].pooling == ML_POOL_MEAN);
            weight[5] = 7;
            expected = fits ? ((const float *)heads[0]->weight.data)[5] : 7;
            CHECK(ml_trainer_restore(to, checkpoint_path(), &error) == (fits ? ML_OK : ML_ERROR_MISMATCH));
            CHECK(fits || strstr(error.text, cases[i].text));
            CHECK(weight[5] == expected && to->step == (fits ? 4 : 0));
            ml_trainer_free(to), ml_head_free(heads[1]);
        }
        ml_trainer_free(saved), ml_head_free(heads[0]);
    }
    remove(checkpoint_path());
    ml_trainer *saved = head_trainer(t.model, ML_POOL_MAX, broken, &heads[0]);
    CHECK(ml_trainer_save(saved, checkpoint_path(), &error) == ML_ERROR_ARGUMENT);
    CHECK(strstr(error.text, "label 1 of the head is not UTF-8") != NULL);
    ml_trainer_free(saved), ml_head_free(heads[0]);
    saved = head_trainer(t.model, ML_POOL_MAX, good, &heads[0]); /* for which only other files have no name */
    CHECK(ml_trainer_save(saved, checkpoint_path(), &error) == ML_OK);
    CHECK(ml_trainer_restore(saved, checkpoint_path(), &error) == ML_OK);
    ml_trainer_free(saved), ml_head_free(heads[0]);
    remove(checkpoint_path());
    training_end(&t);
}

/* The checkpoint of a whole model is a model like any other. */
TEST(checkpoint_is_a_model) {
    training t;
    ml_model *model;
    ml_error error;
    training_begin(&t, 0);
    REQUIRE(training_step(&t));
    REQUIRE(ml_trainer_save(t.trainer, checkpoint_path(), &error) == ML_OK);
    REQUIRE(ml_model_load(checkpoint_path(), NULL, &model, &error) == ML_OK);
    const ml_tensor *saved = tensor_named(model, "token_embd.weight"),
                    *trained = tensor_named(t.model, "token_embd.weight");
    CHECK(memcmp(saved->data, trained->data, mli_numbers(saved) * sizeof(float)) == 0);
    ml_model_free(model);
    remove(checkpoint_path());
    training_end(&t);
}

/* The checkpoint of an adapter and a head is an adapter's file and a head's. */
static void check_adapter_of_checkpoint(training *t) {
    ml_lora *lora = NULL;
    ml_head *head = NULL;
    ml_error error;
    REQUIRE(training_step(t));
    REQUIRE(ml_trainer_save(t->trainer, checkpoint_path(), &error) == ML_OK);
    REQUIRE(ml_lora_load(checkpoint_path(), t->model, NULL, &lora, &error) == ML_OK);
    REQUIRE(ml_head_load(checkpoint_path(), t->model, NULL, &head, &error) == ML_OK);
    REQUIRE(lora->n_tensors == t->lora->n_tensors);
    for (int i = 0; i < lora->n_tensors; i++) {
        const ml_tensor *is = &lora->tensors[i], *was = &t->lora->tensors[i];
        float scale = lora->scales[i / 2], trained = t->lora->scales[i / 2];
        REQUIRE(mli_numbers(is) == mli_numbers(was));
        CHECK(fabsf(scale - trained) <= 2e-7f * trained); /* alpha / rank, rounded */
        CHECK(!is->data || !memcmp(is->data, was->data, mli_numbers(is) * sizeof(float)));
    }
    CHECK(!memcmp(head->weight.data, t->head->weight.data, mli_numbers(&head->weight) * sizeof(float)));
    ml_head_free(head);
    ml_lora_free(lora);
}

/* Whatever its alpha, and also of a model whose file has factors of its positions. */
TEST(checkpoint_is_an_adapter) {
    training t;
    training_begin(&t, 1);
    check_adapter_of_checkpoint(&t);
    training_end(&t);
    training_begin(&t, 1);
    for (int i = 0; i < t.lora->n_tensors / 2; i++) t.lora->private_part->scales[i] *= 4;
    t.model->config.rope_kind = ML_ROPE_LLAMA3, t.model->config.rope_scale = 8;
    t.model->config.rope_original = ROW, t.model->config.rope_low = 1, t.model->config.rope_high = 4;
    check_adapter_of_checkpoint(&t);
    CHECK(!ml_lora_scale(t.lora, 1.3f, NULL)); /* by which no alpha is the scale to the last bit */
    check_adapter_of_checkpoint(&t);
    remove(checkpoint_path());
    training_end(&t);
}

/* No alpha gives these pairs their scales: a trainer restores them, and loading an adapter would change them. */
TEST(checkpoint_of_other_scales) {
    training t;
    ml_lora *lora = NULL;
    ml_error error;
    training_begin(&t, 1);
    t.lora->private_part->scales[0] *= 4;
    REQUIRE(training_step(&t));
    REQUIRE(ml_trainer_save(t.trainer, checkpoint_path(), &error) == ML_OK);
    CHECK(ml_lora_load(checkpoint_path(), t.model, NULL, &lora, &error) == ML_ERROR_UNSUPPORTED && !lora);
    CHECK(strstr(error.text, "does not say the scales") != NULL);
    CHECK(ml_trainer_restore(t.trainer, checkpoint_path(), &error) == ML_OK);
    remove(checkpoint_path());
    training_end(&t);
}

/* A file that says what it is: "general.type", in place of a name. */
static void save_with_type(const ml_model *model, const char *path) {
    static const char name[] = "general.name", type[] = "general.type";
    ml_save_desc save;
    ml_error error;
    memset(&save, 0, sizeof save);
    save.name = "model";
    CHECK(ml_model_save(model, path, &save, &error) == ML_OK);
    bytes b = read_file(path);
    for (size_t i = 0; i + sizeof name < b.size; i++)
        if (memcmp(b.data + i, name, sizeof name - 1) == 0) memcpy(b.data + i, type, sizeof name - 1);
    write_file(path, b.data, b.size);
    free_bytes(&b);
}

/* What only the model's file has to say is not in an adapter's checkpoint. */
TEST(checkpoint_keeps_no_keys_of_the_model) {
    training t;
    ml_model *model = NULL;
    ml_lora *lora = NULL;
    ml_error error;
    training_begin(&t, 1);
    save_with_type(t.model, in_folder("typed.gguf"));
    REQUIRE(ml_model_load(in_folder("typed.gguf"), NULL, &model, &error) == ML_OK);
    ml_trainer_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.lora = t.lora, desc.max_tokens = ROWS * ROW;
    desc.adamw.lr = 1e-3f;
    ml_trainer_free(t.trainer);
    REQUIRE(ml_trainer_new(model, &desc, &t.trainer, &error) == ML_OK);
    REQUIRE(ml_trainer_save(t.trainer, checkpoint_path(), &error) == ML_OK);
    CHECK(ml_lora_load(checkpoint_path(), model, NULL, &lora, &error) == ML_OK);
    ml_lora_free(lora);
    remove(checkpoint_path());
    training_end(&t);
    ml_model_free(model);
}

/* The counts are under the names that earlier versions wrote, so that their checkpoints go on. */
TEST(names_of_the_counts) {
    static const char *const names[] = {"step", "passes", "progress.0", "progress.7"};
    training t;
    ml_archive *archive = NULL;
    ml_error error;
    training_begin(&t, 1); /* with dropout, whose passes are counted */
    REQUIRE(training_step(&t));
    t.trainer->step = 30;
    const int64_t counts[] = {30, (int64_t)t.trainer->private_part->passes, 11, 18};
    CHECK(counts[1] > 0 && counts[1] < 10);
    for (int i = 0; i < 8; i++) t.trainer->progress[i] = 11 + (uint64_t)i;
    REQUIRE(ml_trainer_save(t.trainer, checkpoint_path(), &error) == ML_OK);
    REQUIRE(ml_archive_load(checkpoint_path(), NULL, &archive, &error) == ML_OK);
    for (int i = 0; i < 4; i++) {
        char key[64];
        snprintf(key, sizeof key, "minillama.train.%s", names[i]);
        const ml_value *value = ml_archive_find_value(archive, key);
        CHECK(value && value->i == counts[i]);
    }
    ml_archive_free(archive);
    remove(checkpoint_path());
    training_end(&t);
}

int main(void) {
    if (!folder_begin("resume")) return 1;
    RUN(model_killed_and_resumed);
    RUN(adapter_and_head_killed_and_resumed);
    RUN(wrong_checkpoints);
    RUN(checkpoints_of_more_than_is_trained);
    RUN(checkpoints_of_another_head);
    RUN(checkpoint_is_a_model);
    RUN(checkpoint_is_an_adapter);
    RUN(checkpoint_of_other_scales);
    RUN(checkpoint_keeps_no_keys_of_the_model);
    RUN(names_of_the_counts);
    return !folder_end() || test_report("test_resume");
}
