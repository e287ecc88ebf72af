/* The model that is trained: its tokenizer, its weights, its trainer. */
#include "pretrain.h"

/* A tokenizer learned from the texts. */
static ml_tokenizer *learn_tokenizer(run *r) {
    bpe_desc desc = {0};
    ml_tokenizer *tokenizer = NULL;
    char why[256];
    size_t n = 0;
    ml_error error;
    desc.vocab_size = r->set.vocab_size;
    bpe_vocabulary *v = bpe_train(&desc, r->texts, (size_t)r->n_texts, why, sizeof why);
    unsigned char *file = v ? bpe_write(v, &n, why, sizeof why) : NULL;
    if (!file)
        complain("tokenizer: %s", why);
    else if (!succeeded(ml_tokenizer_load_memory(file, n, NULL, &tokenizer, &error), &error))
        tokenizer = NULL;
    free(file);
    bpe_free(v);
    return tokenizer;
}

static ml_tokenizer *make_tokenizer(run *r) {
    ml_tokenizer *tokenizer = NULL;
    ml_error error;
    const char *path = r->set.tokenizer;
    if (!path) return learn_tokenizer(r);
    return loaded(path, ml_tokenizer_load(path, NULL, &tokenizer, &error), &error) ? tokenizer : NULL;
}

/* A model of the given shape with random weights. */
static int create_model(run *r) {
    const settings *set = &r->set;
    ml_model_create_desc desc = {0};
    ml_random random;
    ml_error error;
    ml_tokenizer *tokenizer = make_tokenizer(r);
    if (!tokenizer) return 0;
    ml_random_seed(&random, (uint64_t)set->seed);
    desc.random = &random;
    desc.config.dim = set->dim;
    desc.config.hidden_dim = set->hidden_dim ? set->hidden_dim : (set->dim * 8 / 3 + 31) / 32 * 32;
    desc.config.n_layers = set->n_layers;
    desc.config.n_heads = set->n_heads;
    desc.config.n_kv_heads = set->n_kv_heads;
    desc.config.vocab_size = tokenizer->n_pieces;
    desc.config.max_seq_len = set->context;
    desc.config.tied_output = 1;
    if (!succeeded(ml_model_create(&desc, &r->model, &error), &error)) return ml_tokenizer_free(tokenizer), 0;
    return succeeded(ml_model_set_tokenizer(r->model, tokenizer, &error), &error);
}

static int load_model(run *r, const char *path) {
    ml_model_load_desc desc = {0};
    ml_error error;
    desc.type = ML_F32;
    desc.tokenizer = r->set.resume ? NULL : r->set.tokenizer;
    return loaded(path, ml_model_load(path, &desc, &r->model, &error), &error) &&
           tokenizer_ready(r->model, path, "--tokenizer");
}

int make_model(run *r) {
    const char *from = r->set.resume ? r->checkpoint : r->set.model;
    if (!(from ? load_model(r, from) : create_model(r))) return 0;
    const ml_config *c = &r->model->config;
    if (r->set.context > c->max_seq_len) {
        r->set.context = c->max_seq_len;
        printf("rows of %d tokens: the model has no more positions\n", c->max_seq_len);
    }
    printf("%lld parameters, dim %d, %d layers, %d pieces\n", (long long)r->model->n_parameters, c->dim,
           c->n_layers, c->vocab_size);
    return 1;
}

static ml_trainer_desc describe_trainer(const settings *set) {
    ml_trainer_desc desc = {0};
    desc.max_row = set->context;
    desc.max_rows = set->rows;
    desc.max_tokens = set->rows * set->context;
    desc.checkpointing = set->checkpointing;
    desc.adamw.lr = set->lr;
    desc.adamw.beta2 = 0.99f;
    desc.adamw.eps = 1e-8f;
    desc.adamw.weight_decay = set->weight_decay;
    desc.adamw.clip = set->clip;
    desc.adamw.form = ML_ADAMW_PYTORCH;
    desc.schedule.decay = set->steps ? ML_DECAY_COSINE : ML_DECAY_NONE;
    desc.schedule.warmup_steps = set->warmup;
    desc.schedule.total_steps = set->steps;
    desc.schedule.final = set->final_lr / set->lr;
    desc.threads.count = set->threads;
    return desc;
}

int64_t read_checkpoint(const char *path, uint64_t *random) {
    ml_archive *archive = NULL;
    if (ml_archive_load(path, NULL, &archive, NULL)) return -1;
    const ml_value *step = ml_archive_find_value(archive, "minillama.train.step");
    const ml_value *state = ml_archive_find_value(archive, "minillama.train.progress.0");
    int64_t at = step && state ? step->i : -1;
    *random = state ? (uint64_t)state->i : 0;
    ml_archive_free(archive);
    return at;
}

int make_trainer(run *r) {
    ml_trainer_desc desc = describe_trainer(&r->set);
    ml_error error;
    size_t size;
    if (!succeeded(ml_trainer_size(r->model, &desc, &size, &error), &error)) return 0;
    printf("training takes %.0f MB\n", (double)size * 1e-6);
    if (!succeeded(ml_trainer_new(r->model, &desc, &r->trainer, &error), &error)) return 0;
    r->saved_at = -1;
    ml_random_seed((ml_random *)(void *)r->trainer->progress, (uint64_t)r->set.seed + 1);
    if (!r->set.resume) return 1;
    if (!loaded(r->checkpoint, ml_trainer_restore(r->trainer, r->checkpoint, &error), &error)) return 0;
    r->saved_at = r->trainer->step;
    r->saved_random = r->trainer->progress[0];
    return 1;
}
