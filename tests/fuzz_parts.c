/* Fuzzing: whatever is written in a file that leads to others, loading it must end soon, in a model, an adapter or an
   error. The first byte of an input says what the rest is: 'i' an index of shards, 'g' the second part of a split
   GGUF, 'p' Meta's params.json, 'm' the second of Meta's pieces, 'a' an adapter_config.json, and 't' a
   tokenizer_config.json. The files that belong to it are in a folder.
     make fuzz                        under libFuzzer, with sanitizers (clang)
     build/test_fuzz_parts FILE...    replays files; without any, a fixed set of mutated seeds */
#include "fuzz.h"
#include "folder.h"

static ml_model *whole;
static char index_of_all[4096]; /* what an index of the two shards says */

static void check(int condition) {
    if (!condition) abort();
}

static ml_config small_config(void) {
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = 8, c.hidden_dim = 12, c.n_layers = 1, c.n_heads = 2, c.n_kv_heads = 2;
    c.vocab_size = 6, c.max_seq_len = 16;
    return c;
}

/* The arrays first, first + step, ... of an archive as a file of their own. */
static void save_arrays(const ml_archive *archive, size_t first, size_t step, ml_format format, int part,
                        const char *path) {
    static ml_named_tensor list[64];
    static float numbers[64][128];
    ml_archive_save_desc desc;
    ml_value values[2];
    memset(&desc, 0, sizeof desc), memset(values, 0, sizeof values);
    for (size_t i = first; i < archive->n_arrays; i += step) {
        const ml_array *a = &archive->arrays[i];
        size_t n = ml_array_count(a), cols = (size_t)a->shape[a->n_dims - 1], at = (size_t)desc.n_tensors++;
        check(at < 64 && n <= 128 && !ml_array_read_floats(a, numbers[at], n));
        ml_named_tensor named = {a->name, {ML_F32, n / cols, cols, numbers[at], NULL}, a->n_dims == 1};
        list[at] = named;
    }
    values[0].name = "split.no", values[1].name = "split.count";
    values[0].kind = values[1].kind = ML_VALUE_INT;
    values[0].i = part, values[1].i = 2;
    desc.format = format, desc.tensors = list;
    desc.values = values, desc.n_values = format == ML_GGUF && part >= 0 ? 2 : 0;
    check(!ml_archive_save(in_folder(path), &desc, NULL));
}

static void write_index(const ml_archive *archive) {
    size_t n = (size_t)sprintf(index_of_all, "i{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    for (size_t i = 0; i < archive->n_arrays; i++)
        n += (size_t)sprintf(index_of_all + n, "%s\"%s\": \"%s\"", i ? ", " : "", archive->arrays[i].name,
                             i % 2 ? "b.safetensors" : "a.safetensors");
    strcpy(index_of_all + n, "}}");
}

/* A part of the keys and tensors of a GGUF: llama.cpp's first part has all keys, so the whole file's are copied. */
static void write_first_part(const ml_archive *archive) {
    bytes b = {NULL, 0, 0};
    uint64_t at = 0;
    gguf_begin(&b, 3, (archive->n_arrays + 1) / 2, 10);
    static const struct {
        const char *key;
        unsigned value;
    } keys[] = {{"llama.embedding_length", 8},
                {"llama.block_count", 1},
                {"llama.attention.head_count", 2},
                {"llama.context_length", 16},
                {"llama.feed_forward_length", 12},
                {"llama.vocab_size", 6},
                {"split.no", 0},
                {"split.count", 2}};
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    gguf_key(&b, "llama.attention.layer_norm_rms_epsilon", 6), put_f32(&b, 1e-5f);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        gguf_key(&b, keys[i].key, 4), put_u32(&b, keys[i].value);
    for (size_t i = 0; i < archive->n_arrays; i += 2) {
        const ml_array *a = &archive->arrays[i];
        uint64_t rows = a->n_dims == 2 ? (uint64_t)a->shape[0] : 1, cols = (uint64_t)a->shape[a->n_dims - 1];
        gguf_tensor(&b, a->name, a->n_dims, rows, cols, 0, at);
        at += (rows * cols * 4 + 31) / 32 * 32;
    }
    gguf_pad(&b, 32);
    for (size_t i = 0; i < archive->n_arrays; i += 2) {
        put(&b, archive->arrays[i].data, 4 * ml_array_count(&archive->arrays[i]));
        gguf_pad(&b, 32);
    }
    write_file(in_folder("x-00001-of-00002.gguf"), b.data, b.size);
    free_bytes(&b);
}

/* One of n pieces of a Llama in Meta's names; the numbers are 0. */
static void save_piece(int n, const char *path) {
    static const struct {
        const char *name;
        size_t rows, cols;
        int is_cut; /* 1: into rows, 2: into columns */
    } all[] = {{"tok_embeddings.weight", 6, 8, 2},
               {"norm.weight", 1, 8, 0},
               {"output.weight", 6, 8, 1},
               {"layers.0.attention_norm.weight", 1, 8, 0},
               {"layers.0.ffn_norm.weight", 1, 8, 0},
               {"layers.0.attention.wq.weight", 8, 8, 1},
               {"layers.0.attention.wk.weight", 8, 8, 1},
               {"layers.0.attention.wv.weight", 8, 8, 1},
               {"layers.0.attention.wo.weight", 8, 8, 2},
               {"layers.0.feed_forward.w1.weight", 12, 8, 1},
               {"layers.0.feed_forward.w2.weight", 8, 12, 2},
               {"layers.0.feed_forward.w3.weight", 12, 8, 1}};
    enum { N = sizeof all / sizeof *all };
    static float zeros[128];
    ml_named_tensor list[N];
    ml_archive_save_desc desc;
    memset(&desc, 0, sizeof desc);
    for (int k = 0; k < N; k++) {
        size_t rows = all[k].rows / (all[k].is_cut == 1 ? (size_t)n : 1);
        size_t cols = all[k].cols / (all[k].is_cut == 2 ? (size_t)n : 1);
        ml_named_tensor named = {all[k].name, {ML_F32, rows, cols, zeros, NULL}, all[k].is_cut == 0};
        list[k] = named;
    }
    desc.format = ML_SAFETENSORS, desc.tensors = list, desc.n_tensors = N;
    check(!ml_archive_save(in_folder(path), &desc, NULL));
}

#define PARAMS                                                                                               \
    "{\"dim\": 8, \"n_layers\": 1, \"n_heads\": 2, \"n_kv_heads\": 2, \"vocab_size\": -1, \"norm_eps\": "    \
    "1e-5, "                                                                                                 \
    "\"multiple_of\": 4}"

/* All files but the one that an input is. */
static void begin(void) {
    ml_model_create_desc desc;
    ml_lora_create_desc thin;
    ml_save_desc as = {ML_SAFETENSORS, ML_TYPE_NONE, NULL, NULL};
    ml_lora *lora = NULL;
    ml_random random;
    ml_archive *hf, *gguf;
    check(folder_begin("fuzz-parts") && make_folder(in_folder("meta")) && make_folder(in_folder("peft")));
    check(make_folder(in_folder("params")));
    memset(&desc, 0, sizeof desc), memset(&thin, 0, sizeof thin);
    ml_random_seed(&random, 1);
    desc.config = small_config(), desc.random = thin.random = &random, thin.rank = 2;
    check(!ml_model_create(&desc, &whole, NULL) && !ml_lora_create(whole, &thin, &lora, NULL));
    check(!ml_model_save(whole, in_folder("whole.safetensors"), &as, NULL));
    check(!ml_model_save(whole, in_folder("whole.gguf"), NULL, NULL));
    check(!ml_lora_save(lora, whole, in_folder("peft/adapter_model.safetensors"), &as, NULL));
    ml_lora_free(lora);
    check(!ml_archive_load(in_folder("whole.safetensors"), NULL, &hf, NULL));
    check(!ml_archive_load(in_folder("whole.gguf"), NULL, &gguf, NULL));
    for (size_t i = 0; i < 2; i++)
        save_arrays(hf, i, 2, ML_SAFETENSORS, -1, i ? "b.safetensors" : "a.safetensors");
    save_arrays(gguf, 1, 2, ML_GGUF, 1, "seed.gguf");
    write_first_part(gguf);
    write_index(hf);
    save_piece(1, "params/consolidated.00.pth");
    save_piece(2, "meta/consolidated.00.pth");
    save_piece(2, "seed.pth");
    write_file(in_folder("meta/params.json"), PARAMS, strlen(PARAMS));
    ml_archive_free(hf), ml_archive_free(gguf);
}

/* What an input is, where it is written to, and what is loaded then. */
static const struct {
    char kind;
    const char *file, *path;
} kinds[] = {
    {'i', "x.index.json", "x.index.json"},     {'g', "x-00002-of-00002.gguf", "x-00001-of-00002.gguf"},
    {'p', "params/params.json", "params"},     {'m', "meta/consolidated.01.pth", "meta"},
    {'a', "peft/adapter_config.json", "peft"}, {'t', "tokenizer_config.json", "whole.safetensors"}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t kind = 0, n = sizeof kinds / sizeof *kinds;
    ml_model *model = NULL;
    ml_lora *lora = NULL;
    ml_archive *archive = NULL;
    ml_error error;
    if (!whole) begin();
    while (kind < n && size && kinds[kind].kind != (char)data[0]) kind++;
    if (kind == n || !size) return 0;
    write_file(in_folder(kinds[kind].file), data + 1, size - 1);
    const char *path = in_folder(kinds[kind].path);
    ml_result result = kinds[kind].kind == 'a' ? ml_lora_load(path, whole, NULL, &lora, &error)
                                               : ml_model_load(path, NULL, &model, &error);
    check(result == error.code && (!result) == (model || lora) && (!result) == !error.text[0]);
    fuzz_accepted |= !result;
    if (kinds[kind].kind != 'a') ml_archive_load(path, NULL, &archive, &error);
    ml_archive_free(archive), ml_lora_free(lora), ml_model_free(model);
    return 0;
}

static bytes fuzz_seed(int index) {
    static const char *const texts[] = {
        "p" PARAMS,
        "a{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"use_rslora\": true, \"rank_pattern\": "
        "{\"layers\\\\.[0-9]+.*(q|k)_proj\": 2}, \"alpha_pattern\": {\"^model.*o_proj\": 3, \"[^a-z]{1,2}\": "
        "5}}",
        "t{\"add_bos_token\": false, \"chat_template\": [{\"name\": \"default\", \"template\": \"{{x}}\"}]}"};
    bytes b = {NULL, 0, 0};
    if (!whole) begin();
    if (index == 0) put_text(&b, index_of_all);
    if (index == 1 || index == 2) {
        bytes part = read_file(in_folder(index == 1 ? "seed.gguf" : "seed.pth"));
        put_u8(&b, index == 1 ? 'g' : 'm'), put(&b, part.data, part.size);
        free_bytes(&part);
    }
    if (index >= 3 && index < 6) put_text(&b, texts[index - 3]);
    return b;
}
