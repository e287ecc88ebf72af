/* The methods of efficient tuning by name, and which options go with which. */
#include "methods.h"
#include "peft.h"
#include "../../common/report.h"

enum {
    ATTENTION = 1u << ML_PLACE_ATTENTION,
    FFN = 1u << ML_PLACE_FFN,
    SCALED = 1u << ML_PLACE_K | 1u << ML_PLACE_V | 1u << ML_PLACE_HIDDEN
};

static int full_setup(tuning *t) { return tuning_train_model(t, 0); }
static int head_setup(tuning *t) { return (void)t, 1; }

/* The last n layers, and the norm above them. */
static int last_setup(tuning *t) {
    int n = efficient_of(t)->set.layers ? efficient_of(t)->set.layers : 2, all = t->model->config.n_layers;
    if (n > all) return complain("--layers %d: the model has %d", n, all);
    return tuning_train_model(t, all - n);
}

/* Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
   Language-models", trains biases. A Llama has them only with --norm layer: its norms are what comes nearest. */
static int bitfit_setup(tuning *t) {
    t->group = TUNING_NO_DECAY;
    for (int i = 0; i < t->model->n_tensors; i++)
        if (t->weights[i].data && t->weights[i].rows == 1 && !tuning_train_weight(t, i)) return 0;
    return 1;
}

static const efficient_kind kinds[] = {
    {"full", NULL, 0, full_setup, 0, NULL, NULL},
    {"head", NULL, 0, head_setup, 0, NULL, NULL},
    {"last", NULL, USES_LAYERS, last_setup, 0, NULL, NULL},
    {"bitfit", NULL, 0, bitfit_setup, 0, NULL, NULL},
    {"lora", "LORA", USES_RANK | USES_ALPHA | USES_TARGETS, lora_setup, 0, NULL, NULL},
    {"rslora", "LORA", USES_RANK | USES_ALPHA | USES_TARGETS, lora_setup, 0, NULL, NULL},
    {"loraplus", "LORA", USES_RANK | USES_ALPHA | USES_TARGETS | USES_RATIO, lora_setup, 0, NULL, NULL},
    {"dora", "LORA", USES_RANK | USES_ALPHA | USES_TARGETS, dora_setup, 0, dora_insert, dora_begin},
    {"adapter", NULL, USES_BOTTLENECK, adapter_setup, ATTENTION | FFN, adapter_insert, NULL},
    {"parallel", NULL, USES_BOTTLENECK | USES_SCALE, parallel_setup, FFN, parallel_insert, NULL},
    {"prefix", "PREFIX_TUNING", USES_LENGTH, prefix_setup, 0, NULL, prefix_begin},
    {"prefix_mlp", "PREFIX_TUNING", USES_LENGTH | USES_BOTTLENECK, prefix_mlp_setup, 0, NULL,
     prefix_mlp_begin},
    {"prompt", "PROMPT_TUNING", USES_LENGTH, prompt_setup, 1u << ML_PLACE_EMBEDDING, prompt_insert, NULL},
    {"ia3", "IA3", 0, ia3_setup, SCALED, ia3_insert, NULL},
};

const efficient_kind *efficient_kinds(int *n) {
    *n = (int)(sizeof kinds / sizeof *kinds);
    return kinds;
}

/* ---- options ---- */

/* An option that the method does not have is refused. */
static int check_uses(const tuning *t) {
    const efficient *e = efficient_of(t);
    const efficient_settings *s = &e->set;
    const struct {
        const char *name;
        unsigned use;
        int is_given, is_right;
    } given[] = {
        {"--rank", USES_RANK, s->rank != 0, s->rank > 0 && s->rank <= 65536},
        {"--alpha", USES_ALPHA, s->alpha != 0, s->alpha > 0},
        {"--targets", USES_TARGETS, s->targets != NULL, 1},
        {"--bottleneck", USES_BOTTLENECK, s->bottleneck != 0, s->bottleneck > 0 && s->bottleneck <= 65536},
        {"--length", USES_LENGTH, s->length != 0, s->length > 0 && s->length <= 65536},
        {"--layers", USES_LAYERS, s->layers != 0, s->layers > 0},
        {"--scale", USES_SCALE, s->scale != 0, s->scale > 0},
        {"--ratio", USES_RATIO, s->ratio != 0, s->ratio > 0}};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        if (!given[i].is_given && !tuning_given(t, given[i].name)) continue;
        if (!(e->kind->uses & given[i].use))
            return complain("%s means nothing to --method %s", given[i].name, s->method);
        if (!given[i].is_right) return complain("%s must be positive, and not huge", given[i].name);
    }
    return 1;
}

/* "q,v", "attention", "all"; names of Hugging Face's, too. */
static int read_targets(efficient *e) {
    static const char *const names[9][2] = {{"q", "q_proj"},   {"k", "k_proj"},     {"v", "v_proj"},
                                            {"o", "o_proj"},   {"w1", "gate_proj"}, {"w2", "down_proj"},
                                            {"w3", "up_proj"}, {"attention", ""},   {"all", "all-linear"}};
    const char *from = e->set.targets ? e->set.targets : "all";
    for (e->targets = 0; *from; from += *from == ',') {
        size_t n = strcspn(from, ",");
        int i = 0;
        while (i < 9 && !((strlen(names[i][0]) == n && strncmp(names[i][0], from, n) == 0) ||
                          (n && strlen(names[i][1]) == n && strncmp(names[i][1], from, n) == 0)))
            i++;
        if (i == 9)
            return complain(
                "--targets: there is no matrix \"%.*s\"; there are q, k, v, o, w1, w2 and w3, or attention, "
                "or all",
                (int)n, from);
        e->targets |= i == 8 ? ML_LORA_ALL : i == 7 ? ML_LORA_ATTENTION : 1u << i;
        from += n;
    }
    return e->targets || complain("--targets is empty");
}

static int find_kind(efficient *e) {
    int n;
    const efficient_kind *kind = efficient_kinds(&n);
    if (!e->set.method) e->set.method = "lora";
    for (int i = 0; i < n; i++)
        if (strcmp(kind[i].name, e->set.method) == 0) e->kind = &kind[i];
    if (e->kind) return 1;
    fprintf(stderr, "error: --method is");
    for (int i = 0; i < n; i++) fprintf(stderr, "%s %s", i ? i + 1 == n ? " or" : "," : "", kind[i].name);
    fprintf(stderr, ", not %s\n", e->set.method);
    return 0;
}

static int check_save(const tuning *t) {
    const efficient *e = efficient_of(t);
    const char *path = t->set.save;
    if (!path || !e->kind->peft) return 1;
    size_t n = strlen(path), m = strlen(".safetensors");
    if (n < m || strcmp(path + n - m, ".safetensors") != 0)
        return complain("--save: PEFT's format is a .safetensors (adapter_model.safetensors), not %s", path);
    if (strcmp(t->set.pooling, "last") != 0)
        return complain("--save: PEFT's classifier reads the last token, not --pooling %s", t->set.pooling);
    return 1;
}

int efficient_check(tuning *t) {
    efficient *e = efficient_of(t);
    if (!find_kind(e) || !check_uses(t) || !read_targets(e) || !check_save(t)) return 0;
    t->method.name = e->kind->name;
    if (!e->kind->peft) t->method.save = NULL; /* the model's own file, if it has room */
    t->method.insert = e->kind->insert;
    t->method.begin = e->kind->begin;
    t->method.places = e->kind->places;
    for (int i = 0; i < 7 && e->kind->insert == dora_insert; i++)
        if (e->targets >> i & 1) t->method.places |= 1u << efficient_place(i);
    if (strcmp(e->kind->name, "prompt") == 0) t->front = efficient_length(e);
    if (!e->set.load) return 1;
    if (e->kind->setup == lora_setup && (e->set.rank || e->set.alpha != 0 || e->set.targets))
        return complain("--load: the adapter's file says its --rank, --alpha and --targets");
    if (e->kind->setup == lora_setup)
        t->adapter = e->set.load;
    else if (e->kind->peft && strcmp(t->set.pooling, "last") != 0)
        return complain("--load: PEFT's classifier reads the last token, not --pooling %s", t->set.pooling);
    t->method.ready = efficient_load;
    tuning_path(t, e->set.load, "--load");
    if (e->kind->setup == prefix_mlp_setup)
        return complain(
            "--load: what prefix_mlp saves is the prefix, without its network: use --method prefix");
    return e->kind->peft ||
           complain("--load is for what PEFT has a format for, not for --method %s", e->kind->name);
}

/* peft_turn_keys knows plain positions. */
static int check_positions(const tuning *t) {
    const efficient *e = efficient_of(t);
    int is_plain = t->model->config.rope_kind == ML_ROPE_PLAIN && !t->model->rope_factors;
    if (is_plain || !e->kind->peft || !peft_is_prefix(e) || (!t->set.save && !e->set.load)) return 1;
    return complain("%s: stretches its rotary positions, and then a prefix has no file of PEFT's",
                    t->set.model);
}

/* PEFT's files are for Hugging Face's Llama, which knows one mask and one kind of norm. */
static int check_model(const tuning *t) {
    const ml_config *c = &t->model->config;
    if (!t->set.save || !efficient_of(t)->kind->peft) return 1;
    if (c->mask == ML_MASK_FULL)
        return complain("--save: with a full mask there is no file of PEFT's: Hugging Face's Llama is causal "
                        "(--mask causal)");
    if (c->norm == ML_NORM_LAYER)
        return complain(
            "--save: with LayerNorm there is no file of PEFT's: Hugging Face's Llama has RMS norms "
            "(--norm rms)");
    return 1;
}

int efficient_setup(tuning *t) {
    efficient *e = efficient_of(t);
    if (!check_model(t) || !check_positions(t)) return 0;
    e->at =
        (ml_tensor **)calloc((size_t)t->model->config.n_layers * ML_PLACES * EFFICIENT_PARTS, sizeof *e->at);
    return (e->at || no_memory("parameters")) && e->kind->setup(t);
}

void efficient_free(efficient *e) {
    for (size_t i = 0; e->norms && i < (size_t)e->n_norms; i++) free(e->norms[i].data);
    ml_lora_free(e->lora);
    free(e->lora_weights), free(e->norms), free(e->at), free(e->keys), free(e->values);
    free(e->rows), free(e->turn), free(e->text);
}
