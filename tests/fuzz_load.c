/* Fuzzing: whatever the bytes, loading them as a model must end, soon and within bounds, in a model or an error. An
   input that begins with '{' is the config.json of a small safetensors file that is made here.
     clang -g -O1 -std=c99 -fsanitize=fuzzer,address,undefined -I. tests/fuzz_load.c -o fuzz_load -lm
     ./fuzz_load -max_len=65536 CORPUS
   Without libFuzzer it replays files:
     cc -g -std=c99 -DFUZZ_REPLAY -I. tests/fuzz_load.c -o replay -lm && ./replay FILE... */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

#ifdef __cplusplus
extern "C"
#endif
    int
    LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Memory may be 64 times what the file has, and a quarter of a megabyte: tables of names take more than the file. */
typedef struct limited {
    size_t left, n_live;
} limited;

static void *limited_alloc(size_t size, void *user) {
    limited *l = (limited *)user;
    void *memory;
    if (size > l->left) abort(); /* a small file must not ask for much */
    memory = malloc(size);
    if (!memory) return NULL;
    l->left -= size; /* what is freed is not counted back: growing lists stay within it too */
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
    size_t n = 0, offset = 0, i, size;
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
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
    for (i = 0; i < 8; i++) safetensors[i] = (unsigned char)(n >> (8 * i) & 255);
    memset(header + n, 0, offset);
    return 8 + n + offset;
}

/* Reads every number of a model. */
static double sum_of(const ml_model *model) {
    float row[256];
    double sum = 0;
    int i;
    for (i = 0; i < model->n_tensors; i++) {
        const ml_tensor *tensor = &model->tensors[i];
        size_t n = (size_t)tensor->rows * (size_t)tensor->cols, at, part;
        const unsigned char *p = (const unsigned char *)tensor->data;
        for (at = 0; p && at < n; at += part) {
            part = n - at < 256 ? n - at : 256;
            ml_convert(ML_F32, row, tensor->type, p + ml_row_bytes(tensor->type, at), part);
            sum += (double)row[0] + (double)row[part - 1];
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const ml_type types[4] = {ML_TYPE_NONE, ML_F32, ML_TYPE_NONE, ML_Q4_0};
    static volatile double sink;
    ml_load_desc desc;
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
        result = ml_load_memory(safetensors, n, &desc, &model, &error);
    } else {
        result = size ? ml_load_memory(data, size, &desc, &model, &error)
                      : ml_load_memory("", 0, &desc, &model, &error);
    }
    if (result != error.code || (!result) != (model != NULL) || (!result) != !error.text[0]) abort();
    if (model) sink = sink + sum_of(model);
    ml_free(model);
    if (memory.n_live) abort();
    return 0;
}

#ifdef FUZZ_REPLAY
int main(int argc, char **argv) {
    int i;
    for (i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        unsigned char *data = NULL;
        size_t size = 0, n;
        if (!file) {
            printf("%s cannot be opened\n", argv[i]);
            return 1;
        }
        do {
            unsigned char *more = (unsigned char *)realloc(data, size + 65536);
            if (!more) return 1;
            data = more;
            n = fread(data + size, 1, 65536, file);
            size += n;
        } while (n);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    return 0;
}
#endif
