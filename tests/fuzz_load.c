/* Fuzzing: whatever the bytes, loading them as a model must end soon and within bounds, in a model or an error. An
   input that begins with '{' is the config.json of a small safetensors file that is made here.
     make fuzz                       under libFuzzer, with sanitizers (clang)
     build/test_fuzz_load FILE...    replays files; without any, a fixed set of mutated seeds */
#include "fuzz.h"

/* Memory may be 64 times what the file has, and a quarter of a megabyte: tables of names take more than the file. */
typedef struct limited {
    size_t left, n_live;
} limited;

static void *limited_alloc(size_t size, void *user) {
    limited *l = (limited *)user;
    if (size > l->left) abort(); /* a small file must not need much */
    void *memory = malloc(size);
    if (!memory) return NULL;
    l->left -= size; /* freed memory is not counted back: growing lists stay within the limit too */
    l->n_live++;
    return memory;
}

static void limited_free(void *memory, void *user) {
    ((limited *)user)->n_live--;
    free(memory);
}

/* dim 8, 2 heads, 1 key/value head, hidden 12, vocabulary 5, one layer; all weights 0. */
static unsigned char safetensors[8192];

static size_t make_safetensors(void) {
    static const struct {
        const char *name;
        int rows, cols;
    } parts[] = {{"embed_tokens", 5, 8},
                 {"norm", 0, 8},
                 {"layers.0.input_layernorm", 0, 8},
                 {"layers.0.self_attn.q_proj", 8, 8},
                 {"layers.0.self_attn.k_proj", 4, 8},
                 {"layers.0.self_attn.v_proj", 4, 8},
                 {"layers.0.self_attn.o_proj", 8, 8},
                 {"layers.0.post_attention_layernorm", 0, 8},
                 {"layers.0.mlp.gate_proj", 12, 8},
                 {"layers.0.mlp.down_proj", 8, 12},
                 {"layers.0.mlp.up_proj", 12, 8}};
    char *header = (char *)safetensors + 8;
    size_t n = 0, offset = 0, size;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char shape[32];
        size = (size_t)(parts[i].rows ? parts[i].rows : 1) * (size_t)parts[i].cols * 4;
        if (parts[i].rows)
            snprintf(shape, sizeof shape, "%d,%d", parts[i].rows, parts[i].cols);
        else
            snprintf(shape, sizeof shape, "%d", parts[i].cols);
        n += (size_t)snprintf(
            header + n, 4096 - n,
            "%c\"model.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%d,%d]}",
            i ? ',' : '{', parts[i].name, shape, (int)offset, (int)(offset + size));
        offset += size;
    }
    header[n++] = '}';
    for (size_t i = 0; i < 8; i++) safetensors[i] = (unsigned char)((uint64_t)n >> (8 * i) & 255);
    memset(header + n, 0, offset);
    return 8 + n + offset;
}

/* Reads every number of a model. */
static double sum_of(const ml_model *model) {
    float row[256];
    double sum = 0;
    for (int i = 0; i < model->n_tensors; i++) {
        const ml_tensor *tensor = &model->tensors[i];
        size_t n = tensor->rows * tensor->cols, at, part;
        const unsigned char *p = (const unsigned char *)tensor->data;
        for (at = 0; p && at < n; at += part) {
            part = n - at < 256 ? n - at : 256;
            ml_type_convert(ML_F32, row, tensor->type, p + ml_type_row_bytes(tensor->type, at), part);
            sum += (double)row[0] + (double)row[part - 1];
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ml_type types[4] = {ML_TYPE_NONE, ML_F32, ML_TYPE_NONE, ML_Q4_0};
    static volatile double sink;
    ml_model_load_desc desc;
    ml_model *model = NULL;
    ml_error error;
    ml_result result;
    limited memory;
    int is_json = size > 0 && data[0] == '{';
    memory.left = 64 * size + 262144;
    memory.n_live = 0;
    memset(&desc, 0, sizeof desc);
    desc.allocator.alloc = limited_alloc;
    desc.allocator.free = limited_free;
    desc.allocator.user = &memory;
    desc.type = types[size % 4];
    if (size % 8 > 4) desc.norm = ML_NORM_LAYER;
    if (is_json) {
        size_t n = make_safetensors();
        desc.config_json = data;
        desc.config_json_size = size;
        result = ml_model_load_memory(safetensors, n, &desc, &model, &error);
    } else {
        result = size ? ml_model_load_memory(data, size, &desc, &model, &error)
                      : ml_model_load_memory("", 0, &desc, &model, &error);
    }
    if (result != error.code || (!result) != (model != NULL) || (!result) != !error.text[0]) abort();
    if (model) fuzz_accepted = 1;
    if (model) sink = sink + sum_of(model);
    ml_model_free(model);
    if (memory.n_live) abort();
    return 0;
}

/* A model as this library saves it; of type Q4_K to Q6_K some of its matrices have rows of one block of 256. */
static bytes saved_model(ml_type type) {
    ml_model_create_desc desc;
    const char *root = getenv("TMPDIR");
    char path[512];
    ml_random random;
    ml_model *model;
    bytes b = {NULL, 0, 0};
    unsigned char part[4096];
    ml_random_seed(&random, 1);
    memset(&desc, 0, sizeof desc);
    ml_config *c = &desc.config;
    c->dim = 8, c->hidden_dim = 12, c->n_layers = 1, c->n_heads = 2, c->n_kv_heads = 1;
    c->vocab_size = 5, c->max_seq_len = 16, c->tied_output = 1;
    c->head_dim = 6, c->window = 3, c->attention_bias = 1; /* all that a file may say of attention */
    c->rope_kind = ML_ROPE_LLAMA3, c->rope_scale = 2, c->rope_original = 8;
    if (type) c->dim = 256;
    desc.random = &random;
    snprintf(path, sizeof path, "%s/minillama-fuzz-%ld.gguf", root ? root : "/tmp", (long)getpid());
    if (ml_model_create(&desc, &model, NULL)) exit(2);
    ml_save_desc as = {ML_GGUF, type, NULL, NULL};
    FILE *file = ml_model_save(model, path, &as, NULL) ? NULL : fopen(path, "rb");
    for (size_t n = 1; file && n > 0; put(&b, part, n)) n = fread(part, 1, sizeof part, file);
    if (file) fclose(file);
    remove(path);
    ml_model_free(model);
    return b;
}

static bytes fuzz_seed(int index) {
    bytes b = {NULL, 0, 0};
#ifdef ML_NO_K_QUANTS
    const ml_type types[] = {ML_TYPE_NONE, ML_Q8_0, ML_Q4_0};
#else
    const ml_type types[] = {ML_TYPE_NONE, ML_Q4_K, ML_Q6_K};
#endif
    if (index == 0) return saved_model(types[0]);
    if (index == 1)
        put_text(&b, "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,"
                     "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
                     "\"vocab_size\":5,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-05,"
                     "\"rope_theta\":10000.0,\"tie_word_embeddings\":true,\"hidden_act\":\"silu\"}");
    if (index == 5 || index == 6) return saved_model(types[index - 4]);
    return index < 2 || index > 4 ? b : small_bin(index - 2, 1);
}
