/* Adapters in files: they come back bit by bit; the files are those of llama.cpp and of PEFT; what could not be used
   as intended is refused. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include <signal.h>
#ifndef _WIN32
#include <sys/resource.h>
#endif
#include "build_files.h"
#include "folder.h"
#include "models.h"
#include "shared.h"

/* ---- helpers ---- */

enum { DIM = 8, HIDDEN = 12, LAYERS = 2, HEADS = 2, KV_DIM = 4, VOCAB = 11, HD = 4 };

static const char *const gguf_names[] = {"attn_q",   "attn_k",   "attn_v", "attn_output",
                                         "ffn_gate", "ffn_down", "ffn_up"};
static const char *const peft_names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                         "self_attn.o_proj", "mlp.gate_proj",    "mlp.down_proj",
                                         "mlp.up_proj"};
static const int ins[] = {DIM, DIM, DIM, DIM, DIM, HIDDEN, DIM};
static const int outs[] = {DIM, KV_DIM, KV_DIM, DIM, HIDDEN, DIM, HIDDEN};

static ml_config some_config(void) {
    ml_config c;
    memset(&c, 0, sizeof c);
    c.dim = DIM;
    c.hidden_dim = HIDDEN;
    c.n_layers = LAYERS;
    c.n_heads = HEADS;
    c.n_kv_heads = 1;
    c.vocab_size = VOCAB;
    c.max_seq_len = 16;
    return c;
}

static ml_model *some_model(void) {
    ml_config c = some_config();
    ml_random random;
    ml_model *model = NULL;
    ml_error error;
    ml_random_seed(&random, 5);
    if (create_model(&c, ML_F32, &random, NULL, &model, &error)) printf("%s\n", error.text);
    return model;
}

/* An adapter whose halves are both random, so that it changes something. */
static ml_lora *some_lora(const ml_model *model, int rank, float alpha, unsigned targets) {
    ml_lora_create_desc desc;
    ml_random random;
    ml_lora *lora = NULL;
    ml_error error;
    int i;
    size_t k;
    memset(&desc, 0, sizeof desc);
    desc.rank = rank;
    desc.alpha = alpha;
    desc.targets = targets;
    desc.init_sd = 0.5f;
    desc.random = &random;
    ml_random_seed(&random, 7);
    if (ml_lora_create(model, &desc, &lora, &error)) printf("%s\n", error.text);
    for (i = 1; lora && i < lora->n_tensors; i += 2)
        for (k = 0; lora->tensors[i].data && k < (size_t)lora->tensors[i].rows * (size_t)rank; k++)
            ((float *)lora->tensors[i].data)[k] = 0.5f * ml_random_normal(&random);
    return lora;
}

static ml_load_desc load_desc(const void *json, size_t size) {
    ml_load_desc desc;
    memset(&desc, 0, sizeof desc);
    desc.config_json = json;
    desc.config_json_size = size;
    return desc;
}

/* Whether `loaded` is `lora` after its numbers have been rounded to `type`, bit by bit. */
static int same_lora(const ml_lora *lora, const ml_lora *loaded, ml_type type) {
    int i, same = lora->rank == loaded->rank && lora->alpha == loaded->alpha &&
                  lora->n_tensors == loaded->n_tensors && lora->n_parameters == loaded->n_parameters;
    for (i = 0; i < lora->n_tensors && same; i++) {
        const ml_tensor *a = &lora->tensors[i], *b = &loaded->tensors[i];
        size_t n = (size_t)a->rows * (size_t)a->cols;
        void *narrow;
        float *wide;
        if (!a->data || !b->data) {
            same = !a->data && !b->data;
            continue;
        }
        if (a->rows != b->rows || a->cols != b->cols || b->type != ML_F32) return 0;
        narrow = malloc(n * 4);
        wide = (float *)malloc(n * 4);
        CHECK(ml_type_convert(type, narrow, ML_F32, a->data, n) == ML_OK);
        CHECK(ml_type_convert(ML_F32, wide, type, narrow, n) == ML_OK);
        same = memcmp(wide, b->data, n * 4) == 0;
        free(narrow);
        free(wide);
    }
    return same;
}

/* The logits of the last of some tokens, with an adapter or none. */
static void logits_of(const ml_model *model, const ml_lora *lora, float logits[VOCAB]) {
    static const int32_t tokens[] = {1, 4, 9, 2, 7, 3};
    ml_session_desc desc;
    ml_session *session;
    const float *out = NULL;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.lora = lora;
    memset(logits, 0, VOCAB * sizeof *logits);
    if (ml_session_new(model, &desc, &session, &error)) printf("%s\n", error.text);
    REQUIRE(error.code == ML_OK);
    CHECK(ml_session_eval(session, tokens, 6, &out, &error) == ML_OK && out);
    if (out) memcpy(logits, out, VOCAB * sizeof *logits);
    ml_session_free(session);
}

/* ---- round trips ---- */

static void round_trip(const ml_model *model, const ml_lora *lora, ml_format format, ml_type type) {
    char path[600], again[600], json[600];
    ml_save_desc desc = save_as(format, type);
    ml_lora *loaded = NULL;
    ml_error error;
    bytes first, second;
    snprintf(path, sizeof path, "%s", in_folder(format == ML_GGUF ? "a.gguf" : "adapter_model.safetensors"));
    snprintf(again, sizeof again, "%s", in_folder("again"));
    snprintf(json, sizeof json, "%s", in_folder("adapter_config.json"));
    remove(json);
    CHECK(ml_lora_save(lora, model, path, &desc, &error) == ML_OK && error.code == ML_OK);
    CHECK(exists(json) == (format == ML_SAFETENSORS));
    if (ml_lora_load(path, model, NULL, &loaded, &error)) printf("%s\n", error.text);
    REQUIRE(loaded);
    CHECK(same_lora(lora, loaded, type ? type : ML_F32));
    CHECK(ml_lora_save(loaded, model, again, &desc, &error) == ML_OK); /* and the same file again */
    first = read_file(path);
    second = read_file(again);
    CHECK(first.size > 100 && first.size == second.size && memcmp(first.data, second.data, first.size) == 0);
    if (format == ML_SAFETENSORS) CHECK(first.data[0] % 8 == 0); /* which keeps the data aligned */
    free_bytes(&first);
    free_bytes(&second);
    ml_lora_free(loaded);
}

TEST(round_trips) {
    static const unsigned targets[] = {ML_LORA_ALL, ML_LORA_ATTENTION, ML_LORA_Q,  ML_LORA_K, ML_LORA_V,
                                       ML_LORA_O,   ML_LORA_W1,        ML_LORA_W2, ML_LORA_W3};
    static const float alphas[] = {1, 16, 0.3333333f, 3.1415926e-7f, 999999.4f, 1e-30f, 7.5f, 2, 100000};
    ml_model *model = some_model();
    size_t i;
    int rank, format, type;
    REQUIRE(model);
    for (i = 0; i < sizeof targets / sizeof *targets; i++)
        for (rank = 1; rank <= 5; rank += 4)
            for (format = ML_GGUF; format <= ML_SAFETENSORS; format++)
                for (type = ML_TYPE_NONE; type <= ML_BF16; type++) {
                    ml_lora *lora = some_lora(model, rank, alphas[i], targets[i]);
                    REQUIRE(lora);
                    round_trip(model, lora, (ml_format)format, (ml_type)type);
                    if (test_current_failed)
                        printf("targets %u, rank %d, format %d, type %d\n", targets[i], rank, format, type);
                    ml_lora_free(lora);
                }
    ml_model_free(model);
}

/* An adapter says how the model computed that it was trained over; another model is refused. */
TEST(norm_and_mask) {
    ml_model *model = some_model(), *reference = NULL, *adopting = NULL;
    ml_lora *lora = some_lora(model, 3, 6, ML_LORA_ALL), *loaded = NULL;
    ml_model_load_desc desc;
    ml_error error;
    int format;
    REQUIRE(lora);
    memset(&desc, 0, sizeof desc);
    desc.norm = ML_NORM_LAYER, desc.mask = ML_MASK_FULL;
    REQUIRE(ml_model_save(model, in_folder("whole.gguf"), NULL, NULL) == ML_OK);
    REQUIRE(ml_model_load(in_folder("whole.gguf"), &desc, &reference, NULL) == ML_OK);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        ml_save_desc how = save_as((ml_format)format, ML_F32);
        REQUIRE(ml_lora_save(lora, reference, in_folder("l"), &how, NULL) == ML_OK);
        CHECK(ml_lora_load(in_folder("l"), model, NULL, &loaded, &error) == ML_ERROR_MISMATCH && !loaded);
        CHECK(strstr(error.text, "not for a norm rms and mask causal: load the model with") != NULL);
        memset(&desc, 0, sizeof desc);
        desc.adapter = in_folder("l");
        REQUIRE(ml_model_load(in_folder("whole.gguf"), &desc, &adopting, NULL) == ML_OK);
        CHECK(adopting->config.norm == ML_NORM_LAYER && adopting->config.mask == ML_MASK_FULL);
        CHECK(ml_lora_load(in_folder("l"), adopting, NULL, &loaded, NULL) == ML_OK && loaded);
        ml_lora_free(loaded), ml_model_free(adopting);
        desc.mask = ML_MASK_CAUSAL; /* what the caller says counts more */
        REQUIRE(ml_model_load(in_folder("whole.gguf"), &desc, &adopting, NULL) == ML_OK);
        CHECK(adopting->config.norm == ML_NORM_LAYER && adopting->config.mask == ML_MASK_CAUSAL);
        CHECK(ml_lora_load(in_folder("l"), adopting, NULL, &loaded, &error) == ML_ERROR_MISMATCH);
        CHECK(strstr(error.text, "not for a norm layer and mask causal") != NULL);
        ml_model_free(adopting);
        REQUIRE(ml_lora_save(lora, model, in_folder("l"), &how, NULL) == ML_OK);
        CHECK(ml_lora_load(in_folder("l"), reference, NULL, &loaded, &error) == ML_ERROR_MISMATCH);
    }
    desc.adapter = in_folder("none");
    CHECK(ml_model_load(in_folder("whole.gguf"), &desc, &adopting, &error) == ML_ERROR_FILE && !adopting);
    CHECK(strstr(error.text, "none cannot be opened") != NULL);
    ml_lora_free(lora);
    ml_model_free(reference), ml_model_free(model);
}

/* Only some layers are adapted: nothing is written for the others, and nothing appears there. */
TEST(some_layers) {
    ml_model *model = some_model();
    ml_lora *lora = some_lora(model, 3, 6, ML_LORA_Q | ML_LORA_W2);
    ml_tensor *tensors;
    ml_archive *archive = NULL;
    REQUIRE(lora);
    tensors = (ml_tensor *)(uintptr_t)lora->tensors;
    memset(tensors + 0, 0, 2 * sizeof *tensors);           /* q of layer 0 */
    memset(tensors + (7 + 5) * 2, 0, 2 * sizeof *tensors); /* w2 of layer 1 */
    lora->n_parameters = 3 * (ins[0] + outs[0]) + 3 * (ins[5] + outs[5]);
    round_trip(model, lora, ML_GGUF, ML_F32);
    round_trip(model, lora, ML_SAFETENSORS, ML_F32);
    REQUIRE(ml_archive_load(in_folder("a.gguf"), NULL, &archive, NULL) == ML_OK);
    CHECK(archive->n_arrays == 4);
    CHECK(ml_archive_find_array(archive, "blk.0.attn_q.weight.lora_a") == NULL);
    CHECK(ml_archive_find_array(archive, "blk.1.attn_q.weight.lora_a") != NULL);
    CHECK(ml_archive_find_array(archive, "blk.0.ffn_down.weight.lora_b") != NULL);
    ml_archive_free(archive);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* A loaded adapter does what the saved one did, to the last bit; and it does something. */
TEST(same_logits) {
    float before[VOCAB], saved[VOCAB], loaded[VOCAB];
    ml_model *model = some_model();
    ml_lora *lora = some_lora(model, 4, 8, ML_LORA_ALL);
    int format;
    REQUIRE(lora);
    logits_of(model, NULL, before);
    logits_of(model, lora, saved);
    CHECK(max_difference(before, saved, VOCAB) > 1e-3);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        ml_save_desc desc = save_as((ml_format)format, ML_F32);
        ml_lora *other = NULL;
        CHECK(ml_lora_save(lora, model, in_folder("l"), &desc, NULL) == ML_OK);
        REQUIRE(ml_lora_load(in_folder("l"), model, NULL, &other, NULL) == ML_OK);
        logits_of(model, other, loaded);
        CHECK(memcmp(saved, loaded, sizeof saved) == 0);
        ml_lora_free(other);
    }
    ml_lora_free(lora);
    ml_model_free(model);
}

/* ---- the bytes of a file ---- */

/* llama.cpp's adapter, byte for byte: two pairs in each of two layers. */
TEST(gguf_layout) {
    enum { R = 3 };
    static const int adapted[] = {1, 5}; /* k and w2 */
    ml_model *model = some_model();
    ml_lora *lora = some_lora(model, R, 1.5f, ML_LORA_K | ML_LORA_W2);
    ml_save_desc desc = save_as(ML_GGUF, ML_F16);
    bytes expected, file;
    uint64_t offset = 0;
    int layer, t, half;
    char name[64];
    REQUIRE(lora);
    desc.name = "a name";
    memset(&expected, 0, sizeof expected);
    gguf_begin(&expected, 3, 8, 7);
    gguf_key(&expected, "general.architecture", 8), gguf_text(&expected, "llama");
    gguf_key(&expected, "general.type", 8), gguf_text(&expected, "adapter");
    gguf_key(&expected, "general.name", 8), gguf_text(&expected, "a name");
    gguf_key(&expected, "adapter.type", 8), gguf_text(&expected, "lora");
    gguf_key(&expected, "adapter.lora.alpha", 6), put_f32(&expected, 1.5f);
    gguf_key(&expected, "minillama.norm", 8), gguf_text(&expected, "rms");
    gguf_key(&expected, "minillama.mask", 8), gguf_text(&expected, "causal");
    for (layer = 0; layer < LAYERS; layer++)
        for (t = 0; t < 2; t++)
            for (half = 0; half < 2; half++) {
                int rows = half ? outs[adapted[t]] : R, cols = half ? R : ins[adapted[t]];
                snprintf(name, sizeof name, "blk.%d.%s.weight.lora_%c", layer, gguf_names[adapted[t]],
                         "ab"[half]);
                gguf_tensor(&expected, name, 2, (uint64_t)rows, (uint64_t)cols, 1, offset);
                offset += ((uint64_t)rows * (uint64_t)cols * 2 + 31) / 32 * 32;
            }
    gguf_pad(&expected, 32);
    for (layer = 0; layer < LAYERS; layer++)
        for (t = 0; t < 2; t++)
            for (half = 0; half < 2; half++) {
                const ml_tensor *x = &lora->tensors[(layer * 7 + adapted[t]) * 2 + half];
                uint16_t f16[R * HIDDEN];
                CHECK(ml_type_convert(ML_F16, f16, ML_F32, x->data, (size_t)x->rows * (size_t)x->cols) ==
                      ML_OK);
                put_numbers(&expected, f16, (size_t)x->rows * (size_t)x->cols, 2);
                gguf_pad(&expected, 32);
            }
    CHECK(ml_lora_save(lora, model, in_folder("layout.gguf"), &desc, NULL) == ML_OK);
    file = read_file(in_folder("layout.gguf"));
    CHECK(file.size == expected.size && memcmp(file.data, expected.data, file.size) == 0);
    free_bytes(&file);
    free_bytes(&expected);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* PEFT's adapter_model.safetensors, byte for byte, with all pairs. Row half * hd/2 + k of a head is in Hugging Face's
   B of q and k what is row 2 k + half in ours. */
TEST(safetensors_layout) {
    enum { R = 2 };
    ml_model *model = some_model();
    ml_lora *lora = some_lora(model, R, 16, ML_LORA_ALL);
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_TYPE_NONE);
    bytes header, data, expected, file;
    int layer, t, half, row, k;
    char text[200];
    REQUIRE(lora);
    memset(&header, 0, sizeof header);
    memset(&data, 0, sizeof data);
    put_text(
        &header,
        "{\"__metadata__\":{\"format\":\"pt\",\"minillama_norm\":\"rms\",\"minillama_mask\":\"causal\"}");
    for (layer = 0; layer < LAYERS; layer++)
        for (t = 0; t < 7; t++)
            for (half = 0; half < 2; half++) {
                const float *x = (const float *)lora->tensors[(layer * 7 + t) * 2 + half].data;
                int rows = half ? outs[t] : R, cols = half ? R : ins[t];
                snprintf(text, sizeof text,
                         ",\"base_model.model.model.layers.%d.%s.lora_%c.weight\":{\"dtype\":\"F32\","
                         "\"shape\":[%d,%d],\"data_offsets\":[%d,%d]}",
                         layer, peft_names[t], "AB"[half], rows, cols, (int)data.size,
                         (int)data.size + rows * cols * 4);
                put_text(&header, text);
                for (row = 0; row < rows; row++) {
                    int head = row / HD, in_half = row % HD / (HD / 2), at = row % (HD / 2);
                    int from = half && t < 2 ? head * HD + 2 * at + in_half : row;
                    for (k = 0; k < cols; k++) put_f32(&data, x[from * cols + k]);
                }
            }
    put_text(&header, "}");
    while (header.size % 8) put_text(&header, " ");
    put_u8(&header, 0);
    expected = safetensors_file((const char *)header.data, data.data, data.size);
    CHECK(ml_lora_save(lora, model, in_folder("layout.safetensors"), &desc, NULL) == ML_OK);
    file = read_file(in_folder("layout.safetensors"));
    CHECK(file.size == expected.size && memcmp(file.data, expected.data, file.size) == 0);
    free_bytes(&file);
    free_bytes(&expected);
    free_bytes(&header);
    free_bytes(&data);
    ml_lora_free(lora);
    ml_model_free(model);
}

TEST(adapter_config) {
    static const char expected[] = "{\n"
                                   "  \"alpha_pattern\": {},\n"
                                   "  \"auto_mapping\": null,\n"
                                   "  \"base_model_name_or_path\": null,\n"
                                   "  \"bias\": \"none\",\n"
                                   "  \"fan_in_fan_out\": false,\n"
                                   "  \"inference_mode\": true,\n"
                                   "  \"init_lora_weights\": true,\n"
                                   "  \"layers_pattern\": null,\n"
                                   "  \"layers_to_transform\": null,\n"
                                   "  \"lora_alpha\": 16,\n"
                                   "  \"lora_dropout\": 0.0,\n"
                                   "  \"modules_to_save\": null,\n"
                                   "  \"peft_type\": \"LORA\",\n"
                                   "  \"r\": 2,\n"
                                   "  \"rank_pattern\": {},\n"
                                   "  \"target_modules\": [%s],\n"
                                   "  \"task_type\": \"CAUSAL_LM\",\n"
                                   "  \"use_dora\": false,\n"
                                   "  \"use_rslora\": false\n"
                                   "}\n";
    static const char *const modules[] = {"q_proj",    "k_proj",    "v_proj", "o_proj",
                                          "gate_proj", "down_proj", "up_proj"};
    ml_model *model = some_model();
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    unsigned targets;
    for (targets = 1; targets <= ML_LORA_ALL; targets += targets < 64 ? 9 : 63) {
        ml_lora *lora = some_lora(model, 2, 16, targets);
        char list[200] = "", text[1000];
        bytes json;
        int t;
        REQUIRE(lora);
        for (t = 0; t < 7; t++)
            if (targets >> t & 1) {
                size_t n = strlen(list);
                snprintf(list + n, sizeof list - n, "%s\"%s\"", n ? ", " : "", modules[t]);
            }
        snprintf(text, sizeof text, expected, list);
        CHECK(ml_lora_save(lora, model, in_folder("adapter_model.safetensors"), &desc, NULL) == ML_OK);
        json = read_file(in_folder("adapter_config.json"));
        CHECK(json.size == strlen(text) && memcmp(json.data, text, json.size) == 0);
        free_bytes(&json);
        ml_lora_free(lora);
    }
    ml_model_free(model);
}

static float float_in(const ml_array *array, int i) {
    return get_f32((const unsigned char *)array->data + 4 * i);
}

/* PEFT's own arithmetic in Hugging Face's layout, W + alpha / r * B A on the bytes of both files, gives a model whose
   logits are those of the adapter over the model: up to the order of sums, 1e-5 of logits of about 1. */
TEST(merged_in_hugging_face_layout) {
    enum { R = 3 };
    float with_adapter[VOCAB], merged_logits[VOCAB], plain[VOCAB];
    ml_model *model = some_model(), *merged = NULL;
    ml_lora *lora = some_lora(model, R, 7, ML_LORA_ALL);
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    ml_archive *weights = NULL, *pairs = NULL;
    bytes file;
    ml_error error;
    int layer, t, row, col, k;
    REQUIRE(lora);
    CHECK(ml_model_save(model, in_folder("model.safetensors"), &desc, NULL) == ML_OK);
    CHECK(ml_lora_save(lora, model, in_folder("adapter_model.safetensors"), &desc, NULL) == ML_OK);
    file = read_file(in_folder("model.safetensors"));
    REQUIRE(ml_archive_load_memory(file.data, file.size, NULL, &weights, NULL) == ML_OK);
    REQUIRE(ml_archive_load(in_folder("adapter_model.safetensors"), NULL, &pairs, NULL) == ML_OK);
    for (layer = 0; layer < LAYERS; layer++)
        for (t = 0; t < 7; t++) {
            char name[200];
            const ml_array *w, *a, *b;
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, peft_names[t]);
            w = ml_archive_find_array(weights, name);
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_A.weight", layer,
                     peft_names[t]);
            a = ml_archive_find_array(pairs, name);
            snprintf(name, sizeof name, "base_model.model.model.layers.%d.%s.lora_B.weight", layer,
                     peft_names[t]);
            b = ml_archive_find_array(pairs, name);
            REQUIRE(w && a && b);
            for (row = 0; row < outs[t]; row++)
                for (col = 0; col < ins[t]; col++) {
                    unsigned char *to = (unsigned char *)(uintptr_t)w->data + 4 * (row * ins[t] + col);
                    double sum = 0;
                    for (k = 0; k < R; k++)
                        sum += (double)float_in(b, row * R + k) * (double)float_in(a, k * ins[t] + col);
                    set_f32(to, get_f32(to) + (float)(7.0 / (double)R * sum));
                }
        }
    ml_archive_free(weights);
    ml_archive_free(pairs);
    write_file(in_folder("model.safetensors"), file.data, file.size);
    free_bytes(&file);
    REQUIRE(ml_model_load(in_folder("model.safetensors"), NULL, &merged, &error) == ML_OK);
    logits_of(model, NULL, plain);
    logits_of(model, lora, with_adapter);
    logits_of(merged, NULL, merged_logits);
    CHECK(max_difference(plain, merged_logits, VOCAB) > 1e-3);
    CHECK(max_difference(with_adapter, merged_logits, VOCAB) < 1e-5);
    ml_model_free(merged);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* ---- files as others may write them ---- */

/* Adds a matrix of F32 to the header of a safetensors file; its numbers go to the end of the data next. */
static void put_matrix(bytes *header, const bytes *data, const char *name, int rows, int cols) {
    char text[300];
    snprintf(text, sizeof text, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d,%d],\"data_offsets\":[%d,%d]}",
             header->size ? "," : "{", name, rows, cols, (int)data->size, (int)data->size + rows * cols * 4);
    put_text(header, text);
}

/* The file of both, which are freed. */
static bytes end_matrices(bytes *header, bytes *data) {
    put_text(header, "}");
    put_u8(header, 0);
    bytes file = safetensors_file((const char *)header->data, data->data, data->size);
    free_bytes(header);
    free_bytes(data);
    return file;
}

/* A safetensors file of F32 tensors: "NAME ROWS COLS" each, up to a NULL; the numbers go on counting. */
static bytes tensors_file(const char *prefix, const char *const *tensors) {
    bytes header, data;
    char name[100], text[200];
    int rows, cols, i;
    memset(&header, 0, sizeof header);
    memset(&data, 0, sizeof data);
    for (i = 0; tensors[i]; i++) {
        if (sscanf(tensors[i], "%99s %d %d", name, &rows, &cols) != 3) exit(2);
        snprintf(text, sizeof text, "%s%s", prefix, name);
        put_matrix(&header, &data, text, rows, cols);
        put_floats(&data, (float)data.size, (size_t)rows * (size_t)cols);
    }
    return end_matrices(&header, &data);
}

static const char plain_json[] = "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4}";
static const char *const plain_pair[] = {"model.layers.1.mlp.down_proj.lora_A.weight 2 12",
                                         "model.layers.1.mlp.down_proj.lora_B.weight 8 2", NULL};

static ml_result load_text(const bytes *file, const char *json, ml_lora **lora, ml_error *error) {
    ml_model *model = some_model();
    ml_load_desc desc = load_desc(json, json ? strlen(json) : 0);
    ml_result result = ml_lora_load_memory(file->data, file->size, model, &desc, lora, error);
    CHECK((*lora != NULL) == (result == ML_OK) && error->code == result && (!result || error->text[0]));
    ml_model_free(model);
    return result;
}

/* The names that PEFT gives a model with and without its head, bare ones, and what else is wrapped around them. */
TEST(prefixes) {
    static const char *const prefixes[] = {"base_model.model.",
                                           "base_model.",
                                           "",
                                           "_orig_mod.base_model.model.",
                                           "base_model.model._orig_mod.",
                                           "module.base_model.model.",
                                           "module._orig_mod."};
    size_t i;
    for (i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        bytes file = tensors_file(prefixes[i], plain_pair);
        ml_lora *lora = NULL;
        ml_error error;
        const ml_tensor *pair;
        CHECK(load_text(&file, plain_json, &lora, &error) == ML_OK);
        REQUIRE(lora);
        pair = lora->tensors + (7 + 5) * 2;
        CHECK(lora->rank == 2 && lora->alpha == 4 && lora->n_parameters == 40 && pair[0].data &&
              pair[1].data);
        CHECK(((float *)pair[0].data)[23] == 23 && ((float *)pair[1].data)[15] == 96 + 15);
        CHECK(lora->tensors[0].data == NULL);
        ml_lora_free(lora);
        free_bytes(&file);
    }
}

/* Words inside of the names, and what would be two adapters in one file. */
TEST(words_in_names) {
    static const char *const layer = "base_model.model.layers.1._orig_mod.mlp.down_proj.";
    static const char *const halves[][4] = {
        {"lora_A.default.weight 2 12", "lora_B.default.weight 8 2", NULL, NULL},
        {"_orig_mod.lora_A.weight 2 12", "lora_B.weight 8 2", NULL, NULL},
        {"lora_A.default.weight 2 12", "lora_B.default.weight 8 2", "_orig_mod.lora_A.weight 2 12", NULL},
        {"lora_A.other.weight 2 12", "lora_B.other.weight 8 2", NULL, NULL},
        {"lora_A.v1.0.weight 2 12", "lora_B.v1.0.weight 8 2", NULL, NULL}, /* PEFT's adapter_name="v1.0" */
        {"lora_A.one.weight 2 12", "lora_B.one.weight 8 2", "lora_A.two.weight 2 12", NULL},
        {"lora_C.other.weight 2 12", "lora_D.other.weight 8 2", NULL, NULL}};
    static const char *const texts[] = {"", "", "both named", "", "", "both named", "no adapter"};
    size_t i;
    for (i = 0; i < sizeof texts / sizeof *texts; i++) {
        bytes file = tensors_file(layer, halves[i]);
        ml_lora *lora = NULL;
        ml_error error;
        CHECK(load_text(&file, plain_json, &lora, &error) == (texts[i][0] ? ML_ERROR_MISMATCH : ML_OK));
        CHECK(strstr(error.text, texts[i]) != NULL);
        if (lora) CHECK(((float *)lora->tensors[(7 + 5) * 2].data)[23] == 23);
        ml_lora_free(lora);
        free_bytes(&file);
    }
}

/* alpha / rank, or what PEFT's configuration says of this pair (rank 2, of layer 1) otherwise. */
TEST(scales) {
    static const struct {
        const char *json;
        double scale;
    } cases[] = {
        {"{\"r\":2,\"lora_alpha\":4}", 2},
        {"{\"r\":2,\"lora_alpha\":4,\"use_rslora\":true}", 2.8284271247461903}, /* 4 / sqrt(2) */
        {"{\"r\":2,\"lora_alpha\":4,\"use_rslora\":true,\"alpha_pattern\":{\"down_proj\":8}}",
         5.656854249492381},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down_proj\":0.5}}", 0.25},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"mlp.down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"layers.1.mlp.down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"model.layers.1.mlp.down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"^model.layers.1.mlp.down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"layers\\\\.1\\\\.mlp\\\\.down_proj\":8}}", 4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down.proj\":8}}", 4}, /* any character */
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"gate_proj\":1,\"down_proj\":8,\"mlp.down_proj\":16}"
         "}",
         4}, /* the first one counts */
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"layers.(0|2).*\":6,\"layers\\\\.\\\\d+\\\\.mlp.*\":"
         "8}}",
         4},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"^layers.1.mlp.down_proj\":8}}", 2},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"layers.0.mlp.down_proj\":8}}", 2},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"layers\\\\.1\\\\.mlp\\\\.down\\\\.proj\":8}}", 2},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"own_proj\":8,\"mlp\":9,\"down_pro\":10}}", 2},
    };
    bytes file = tensors_file("base_model.model.", plain_pair);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        ml_lora *lora = NULL;
        ml_error error;
        CHECK(load_text(&file, cases[i].json, &lora, &error) == ML_OK);
        if (!lora) printf("case %d: %s\n", (int)i, error.text);
        if (!lora) continue;
        CHECK_NEAR(lora->scales[7 + 5], cases[i].scale, 0, 1e-7); /* F32 */
        if (test_current_failed) printf("case %d\n", (int)i);
        CHECK(lora->alpha == 4 && lora->rank == 2 && lora->scales[0] == 0);
        ml_lora_free(lora);
    }
    free_bytes(&file);
}

/* Which patterns fit "model.layers.1.mlp.down_proj": what Python gives for re.match(r"(.*\\.)?(PATTERN)$", name), which
   PEFT calls. -1: not understood, though Python does. */
TEST(patterns) {
    static const struct {
        const char *pattern;
        int fits;
    } cases[] = {{"down_proj", 1},
                 {"down_proj$", 1},
                 {".*down_proj", 1},
                 {"layers\\.[0-9]+\\.mlp\\..*", 1},
                 {"layers.(0|1).mlp.down_proj", 1},
                 {"model\\.layers\\.([02468]|1)\\.mlp\\.(up|gate|down)_proj", 1},
                 {"((model|layers|[0-9])\\.)+mlp.down_proj", 1},
                 {"(?:.*\\.)?(down|up)_proj", 1},
                 {"q_proj|mlp.down_proj", 1},
                 {"model.layers.1{1,2}2?.*", 1},
                 {"[^q]own_[n-r]roj", 1},
                 {"[]x]*down_proj", 1},
                 {"x?down_proj", 1},
                 {"mlp.*?proj", 1},
                 {"(((a*)*)*)*down_proj", 1},
                 {"q{0}down_proj", 1},
                 {"(((q?){30}){30}){30}down_proj", 1}, /* does not try each of the 27000 */
                 {"[\\w]+_proj", 1},
                 {".{3,}", 1},
                 {"model$.*", 0},
                 {"^layers.1.mlp.down_proj", 0},
                 {"^model\\.layers\\.\\d{2}\\..*", 0},
                 {"layers.1", 0},
                 {"_proj", 0},
                 {"\\.down_proj", 0},
                 {"[.]*", 0},
                 {"[^n]own_proj|[e-z]own_proj", 1},
                 {"d{2,}own_proj", 0},
                 {"down_pro[^j]", 0},
                 {"down_proj\\b", -1},
                 {"(?!x)down_proj", -1},
                 {"(?P<name>d)own_proj", -1},
                 {"[down_proj", -1},
                 {"(down_proj", -1},
                 {"down_proj)", -1},
                 {"d{2,1}own_proj", -1},
                 {"*", -1}};
    bytes file = tensors_file("base_model.model.", plain_pair);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char json[256], *to = json + sprintf(json, "{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"");
        ml_lora *lora = NULL;
        ml_error error;
        for (const char *p = cases[i].pattern; *p; *to++ = *p++)
            if (*p == '\\') *to++ = '\\';
        strcpy(to, "\":8}}");
        ml_result result = load_text(&file, json, &lora, &error);
        int found = result == ML_ERROR_UNSUPPORTED ? -1 : lora && lora->scales[7 + 5] == 4;
        CHECK(found == cases[i].fits);
        if (found != cases[i].fits) printf("%s: %d, %s\n", cases[i].pattern, found, error.text);
        ml_lora_free(lora);
    }
    free_bytes(&file);
}

/* All patterns of a file together may take so many steps, and one that begins after that is not understood. */
TEST(patterns_have_a_bound) {
    const char *pattern = ".*.*.*.*.*!";
    int steps = 1000, all = 1000, n = 0;
    CHECK(mli_pattern_fits(pattern, "layers.0", &steps) == 0 && steps < all && steps > all - 100);
    for (int before = steps; steps > 0; before = steps, n++) {
        int fits = mli_pattern_fits(pattern, "layers.0", &steps);
        CHECK(steps < before && (fits == 0 || (fits == -1 && steps <= 0)));
    }
    CHECK(n > 10 && n < 1000);
    CHECK(mli_pattern_fits("layers", "layers", &steps) == -1);
}

/* ---- every pair with its own rank and scale ---- */

static int rank_of(int pair) { return 1 + pair % 3; }

/* By this configuration alpha is 3, 5 for q_proj, and 0.7 for the last matrix. */
static const char mixed_json[] =
    "{\"lora_alpha\": 3, \"alpha_pattern\": {\"q_proj\": 5, \"layers.1.mlp.up_proj\": 0.7}}";

static double alpha_of(int pair) { return pair % 7 == 0 ? 5 : pair == 13 ? 0.7 : 3; }

/* A PEFT adapter of all matrices. */
static bytes mixed_file(void) {
    bytes header, data;
    ml_random random;
    char text[200];
    int pair, half, k;
    memset(&header, 0, sizeof header);
    memset(&data, 0, sizeof data);
    ml_random_seed(&random, 11);
    for (pair = 0; pair < LAYERS * 7; pair++)
        for (half = 0; half < 2; half++) {
            int t = pair % 7, rows = half ? outs[t] : rank_of(pair), cols = half ? rank_of(pair) : ins[t];
            snprintf(text, sizeof text, "model.layers.%d.%s.lora_%c.weight", pair / 7, peft_names[t],
                     "AB"[half]);
            put_matrix(&header, &data, text, rows, cols);
            for (k = 0; k < rows * cols; k++) put_f32(&data, 0.5f * ml_random_normal(&random));
        }
    return end_matrices(&header, &data);
}

/* W + alpha / rank * B A, in double precision from the file's own numbers. Row half * hd/2 + k of a head is in the
   file what is row 2 k + half in the model. */
static void merge_by_hand(ml_model *model, const bytes *file) {
    size_t begin = 8 + file->data[0] + 256u * file->data[1], n = (file->size - begin) / 4;
    float *numbers = (float *)malloc(n * sizeof *numbers);
    const float *a = numbers;
    int pair, row, col, k;
    for (size_t i = 0; i < n; i++) numbers[i] = get_f32(file->data + begin + 4 * i);
    for (pair = 0; pair < LAYERS * 7; pair++) {
        int t = pair % 7, r = rank_of(pair);
        const float *b = a + r * ins[t];
        float *w;
        char name[32];
        snprintf(name, sizeof name, "%s.weight", gguf_names[t]);
        w = (float *)layer_tensor(model, pair / 7, name)->data;
        for (row = 0; row < outs[t]; row++)
            for (col = 0; col < ins[t]; col++) {
                int from = t < 2 ? row - row % HD + row % HD / 2 + row % 2 * (HD / 2) : row;
                double sum = 0;
                for (k = 0; k < r; k++) sum += (double)b[from * r + k] * (double)a[k * ins[t] + col];
                w[row * ins[t] + col] += (float)(alpha_of(pair) / r * sum);
            }
        a = b + outs[t] * r;
    }
    free(numbers);
}

/* W + 0.5 scale B A is halfway between W and by_hand's W + scale B A. */
static void check_half(ml_lora *lora, const ml_model *by_hand) {
    ml_model *plain = some_model(), *model = some_model();
    ml_error error;
    CHECK(ml_lora_scale(lora, 0.5f, &error) == ML_OK && lora->alpha == 1.5f);
    CHECK(ml_lora_merge(lora, model, &error) == ML_OK);
    for (int i = 0; i < plain->n_tensors; i++) {
        const float *w = (const float *)plain->tensors[i].data,
                    *found = (const float *)model->tensors[i].data;
        const float *whole = (const float *)by_hand->tensors[i].data;
        for (size_t k = 0; w && k < plain->tensors[i].rows * plain->tensors[i].cols; k++)
            CHECK_NEAR(found[k], (w[k] + whole[k]) / 2, 1e-6, 0); /* F32 sums of up to 3 products */
    }
    CHECK(ml_lora_scale(lora, 2, &error) == ML_OK && lora->alpha == 3);
    CHECK(ml_lora_scale(lora, 0, &error) == ML_ERROR_ARGUMENT && strstr(error.text, "above 0"));
    CHECK(ml_lora_scale(lora, -1, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_scale(lora, HUGE_VALF, &error) == ML_ERROR_ARGUMENT && lora->alpha == 3);
    CHECK(ml_lora_scale(NULL, 1, &error) == ML_ERROR_ARGUMENT);
    ml_model_free(plain), ml_model_free(model);
}

/* The adapter in a session, merged, and saved and loaded in both formats computes what the merged matrices do; and a
   GGUF gives each pair alpha / rank, which is what llama.cpp takes. Differences are those of rounding: 1e-5 of logits
   of about 1. */
TEST(ranks_and_scales_of_pairs) {
    bytes file = mixed_file();
    ml_model *model = some_model(), *merged = some_model(), *by_hand = some_model();
    float plain[VOCAB], expected[VOCAB], logits[VOCAB];
    ml_lora *lora = NULL;
    ml_error error;
    int format, pair;
    REQUIRE(load_text(&file, mixed_json, &lora, &error) == ML_OK);
    CHECK(lora->rank == 3 && lora->alpha == 3);
    for (pair = 0; pair < LAYERS * 7; pair++) {
        CHECK(lora->tensors[2 * pair].rows == (size_t)rank_of(pair));
        CHECK(lora->tensors[2 * pair + 1].cols == (size_t)rank_of(pair));
        CHECK_NEAR(lora->scales[pair], alpha_of(pair) / rank_of(pair), 0, 1e-7);
    }
    merge_by_hand(by_hand, &file);
    logits_of(model, NULL, plain);
    logits_of(by_hand, NULL, expected);
    CHECK(max_difference(plain, expected, VOCAB) > 0.1);
    logits_of(model, lora, logits);
    CHECK(max_difference(expected, logits, VOCAB) < 1e-5);
    CHECK(ml_lora_merge(lora, merged, &error) == ML_OK);
    logits_of(merged, NULL, logits);
    CHECK(max_difference(expected, logits, VOCAB) < 1e-5);
    CHECK(ml_lora_unmerge(lora, merged, &error) == ML_OK);
    logits_of(merged, NULL, logits);
    CHECK(max_difference(plain, logits, VOCAB) < 1e-5);
    check_half(lora, by_hand);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        ml_save_desc desc = save_as((ml_format)format, ML_F32);
        ml_lora *loaded = NULL;
        CHECK(ml_lora_save(lora, model, in_folder("mixed"), &desc, &error) == ML_OK);
        REQUIRE(ml_lora_load(in_folder("mixed"), model, NULL, &loaded, &error) == ML_OK);
        CHECK(loaded->rank == 3 && loaded->alpha == 3);
        for (pair = 0; pair < LAYERS * 7; pair++)
            if (format == ML_GGUF)
                CHECK(loaded->scales[pair] == 3 / (float)rank_of(pair));
            else
                CHECK(loaded->scales[pair] == lora->scales[pair]);
        logits_of(model, loaded, logits);
        CHECK(max_difference(expected, logits, VOCAB) < 1e-5);
        ml_lora_free(loaded);
    }
    ml_lora_free(lora);
    ml_model_free(model);
    ml_model_free(merged);
    ml_model_free(by_hand);
    free_bytes(&file);
}

/* PEFT's file names the pairs that differ, and only those. An alpha that is the same for all is the file's. */
TEST(patterns_written) {
    static const char *const jsons[] = {"{\"lora_alpha\": 4, \"alpha_pattern\": {\"up_proj\": 7}}",
                                        "{\"lora_alpha\": 4, \"use_rslora\": true}"};
    static const char *const wanted[][3] = {
        {"\"alpha_pattern\": {\"layers.0.mlp.up_proj\": 7},", "\"lora_alpha\": 4,",
         "\"r\": 3,\n  \"rank_pattern\": {\"layers.0.self_attn.k_proj\": 2},"},
        {"\"alpha_pattern\": {\"layers.0.self_attn.k_proj\": 5656854e-6,",
         "\"layers.0.mlp.up_proj\": 6928203e-6}", "\"use_rslora\": false"}};
    static const char *const pairs[] = {"model.layers.0.self_attn.k_proj.lora_A.weight 2 8",
                                        "model.layers.0.self_attn.k_proj.lora_B.weight 4 2",
                                        "model.layers.0.mlp.up_proj.lora_A.weight 3 8",
                                        "model.layers.0.mlp.up_proj.lora_B.weight 12 3", NULL};
    ml_model *model = some_model();
    ml_save_desc desc = save_as(ML_SAFETENSORS, ML_F32);
    bytes file = tensors_file("", pairs), json, one;
    ml_lora *lora = NULL;
    ml_error error;
    int i, k;
    for (i = 0; i < 2; i++) {
        CHECK(load_text(&file, jsons[i], &lora, &error) == ML_OK);
        REQUIRE(lora && ml_lora_save(lora, model, in_folder("p"), &desc, &error) == ML_OK);
        json = read_file(in_folder("adapter_config.json"));
        put_u8(&json, 0);
        for (k = 0; k < 3; k++) CHECK(strstr((char *)json.data, wanted[i][k]) != NULL);
        if (test_current_failed) printf("%s\n", (char *)json.data);
        free_bytes(&json);
        ml_lora_free(lora);
    }
    one = tensors_file("", plain_pair); /* rank 2: alpha / sqrt(2) is 4 / 2 of another alpha */
    CHECK(load_text(&one, "{\"lora_alpha\": 2, \"use_rslora\": true}", &lora, &error) == ML_OK);
    REQUIRE(lora && ml_lora_save(lora, model, in_folder("p"), &desc, &error) == ML_OK);
    json = read_file(in_folder("adapter_config.json"));
    put_u8(&json, 0);
    CHECK(strstr((char *)json.data, "\"alpha_pattern\": {},") &&
          strstr((char *)json.data, "\"lora_alpha\": 2828427e-6,"));
    free_bytes(&json);
    ml_lora_free(lora);
    free_bytes(&one);
    free_bytes(&file);
    ml_model_free(model);
}

static float loss_of(ml_trainer *trainer, const ml_batch *batch) {
    float loss = 0;
    CHECK(ml_trainer_eval(trainer, batch, NULL, &loss, NULL) == ML_OK);
    return loss;
}

/* Gradients of pairs with their own ranks and scales, against differences of the loss. With steps of 0.003 those are
   right to about 1e-4: rounding gives 1e-7 / 0.006, and the third derivative the rest. */
TEST(training_pairs) {
    static const int32_t tokens[] = {1, 4, 9, 2, 7, 3}, targets[] = {4, 9, 2, 7, 3, 5};
    const float h = 0.003f;
    bytes file = mixed_file();
    ml_model *model = some_model();
    ml_lora *lora = NULL;
    ml_trainer_desc desc;
    ml_trainer *trainer = NULL;
    ml_batch batch;
    ml_error error;
    float before, after;
    int i;
    REQUIRE(load_text(&file, mixed_json, &lora, &error) == ML_OK);
    memset(&desc, 0, sizeof desc);
    memset(&batch, 0, sizeof batch);
    desc.lora = lora;
    desc.max_tokens = 6;
    desc.adamw.lr = 0.01f;
    batch.tokens = tokens;
    batch.n_tokens = 6;
    batch.targets = targets;
    REQUIRE(ml_trainer_new(model, &desc, &trainer, &error) == ML_OK);
    CHECK(ml_trainer_backward(trainer, &batch, NULL, &before, &error) == ML_OK);
    for (i = 0; i < lora->n_tensors; i++) {
        float *x = (float *)lora->tensors[i].data + lora->tensors[i].cols - 1, value = *x, up, down;
        *x = value + h;
        up = loss_of(trainer, &batch);
        *x = value - h;
        down = loss_of(trainer, &batch);
        *x = value;
        CHECK_NEAR(trainer->lora[i].grad[lora->tensors[i].cols - 1], (up - down) / (2 * h), 2e-4, 2e-3);
    }
    CHECK(ml_trainer_step(trainer, &error) == ML_OK);
    CHECK(ml_trainer_save(trainer, in_folder("state.gguf"), &error) == ML_OK);
    after = loss_of(trainer, &batch);
    CHECK(after < before);
    memset(lora->tensors[1].data, 0, 4);
    CHECK(ml_trainer_restore(trainer, in_folder("state.gguf"), &error) == ML_OK);
    CHECK(loss_of(trainer, &batch) == after);
    ml_trainer_free(trainer);
    ml_lora_free(lora);
    ml_model_free(model);
    free_bytes(&file);
}

/* A new adapter is A of the size asked for and B of zeros: with it the model computes what it did. */
TEST(a_new_adapter_changes_nothing) {
    ml_model *model = some_model();
    ml_lora_create_desc desc;
    ml_lora *lora = NULL;
    ml_random random;
    ml_error error;
    float plain[VOCAB], logits[VOCAB];
    double squares[2] = {0, 0}, n = 0;
    memset(&desc, 0, sizeof desc);
    desc.rank = 8, desc.targets = ML_LORA_ALL, desc.init_sd = 0.5f, desc.random = &random;
    ml_random_seed(&random, 3);
    REQUIRE(model && ml_lora_create(model, &desc, &lora, &error) == ML_OK);
    for (int i = 0; i < lora->n_tensors; i++) {
        size_t numbers = mli_numbers(&lora->tensors[i]);
        for (size_t k = 0; k < numbers; k++) {
            double x = ((const float *)lora->tensors[i].data)[k];
            squares[i % 2] += x * x;
        }
        if (i % 2 == 0) n += (double)numbers;
    }
    CHECK(n == LAYERS * 8.0 * (6 * DIM + HIDDEN) && squares[1] == 0);
    CHECK_NEAR(sqrt(squares[0] / n), 0.5, 0.06, 0); /* 960 numbers: 5 standard deviations of it */
    logits_of(model, NULL, plain);
    logits_of(model, lora, logits);
    CHECK(max_difference(plain, logits, VOCAB) == 0);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* A scale that no file could keep is refused, and so is an adapter of numbers that are none. */
TEST(scales_stay_in_range) {
    ml_model *model = some_model();
    ml_lora_create_desc desc;
    ml_lora *lora = NULL;
    ml_random random;
    ml_error error;
    memset(&desc, 0, sizeof desc);
    desc.rank = 2, desc.alpha = 4, desc.random = &random;
    ml_random_seed(&random, 3);
    REQUIRE(model && ml_lora_create(model, &desc, &lora, &error) == ML_OK);
    CHECK(ml_lora_scale(lora, 1e6f, &error) == ML_ERROR_ARGUMENT && strstr(error.text, "1e-30 and 1e6"));
    CHECK(ml_lora_scale(lora, 1e-29f, &error) == ML_OK &&
          ml_lora_scale(lora, .001f, &error) == ML_ERROR_ARGUMENT);
    CHECK_NEAR(lora->scales[0], 2e-29, 0, 1e-6);
    CHECK_NEAR(lora->alpha, 4e-29, 0, 1e-6);
    ml_lora_free(lora);
    static const float wrong[] = {NAN, INFINITY, -1};
    for (int i = 0; i < 3; i++) {
        desc.init_sd = wrong[i];
        CHECK(ml_lora_create(model, &desc, &lora, &error) == ML_ERROR_ARGUMENT && !lora);
    }
    static const float alphas[] = {1e-35f, 9.9e-31f, 1e6f, NAN, -1};
    desc.init_sd = 0;
    for (int i = 0; i < 5; i++) {
        desc.alpha = alphas[i];
        CHECK(ml_lora_create(model, &desc, &lora, &error) == ML_ERROR_ARGUMENT && !lora);
        CHECK(strstr(error.text, "alpha is not between 1e-30 and 1e6") != NULL);
    }
    ml_model_free(model);
}

/* An adapter that fits a model but for its very last pair is not computed with: nothing is read beyond its numbers. */
TEST(the_last_pair_is_checked) {
    ml_config c = some_config();
    ml_model *model = some_model(), *wider = NULL;
    ml_lora *lora = NULL;
    ml_session_desc desc;
    ml_session *session = NULL;
    ml_random random;
    ml_error error;
    c.hidden_dim += 4;
    ml_random_seed(&random, 5);
    REQUIRE(create_model(&c, ML_F32, &random, NULL, &wider, &error) == ML_OK);
    lora = some_lora(wider, 2, 4, ML_LORA_W3);
    REQUIRE(model && lora);
    ml_tensor *tensors = (ml_tensor *)(uintptr_t)lora->tensors;
    for (int pair = 0; pair + 1 < LAYERS * 7; pair++) memset(tensors + 2 * pair, 0, 2 * sizeof *tensors);
    REQUIRE(tensors[2 * (LAYERS * 7 - 1)].data);
    CHECK(ml_lora_merge(lora, wider, &error) == ML_OK);
    CHECK(ml_lora_merge(lora, model, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "the adapter of blk.1.ffn_up.weight is for (16, 8), the model has (12, 8)"));
    CHECK(ml_lora_unmerge(lora, model, &error) == ML_ERROR_MISMATCH);
    memset(&desc, 0, sizeof desc);
    desc.lora = lora;
    CHECK(ml_session_new(model, &desc, &session, &error) == ML_ERROR_MISMATCH && !session);
    CHECK(ml_lora_merge(NULL, model, &error) == ML_ERROR_ARGUMENT && strstr(error.text, "lora or model"));
    CHECK(ml_lora_merge(lora, NULL, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_unmerge(NULL, model, &error) == ML_ERROR_ARGUMENT);
    ml_lora_free(lora);
    ml_model_free(wider), ml_model_free(model);
}

/* A saved session is for an adapter of the same scales, too. */
TEST(sessions_know_scales) {
    static const int32_t tokens[] = {1, 4, 9};
    bytes file = mixed_file();
    ml_model *model = some_model();
    ml_lora *loras[2] = {NULL, NULL};
    ml_session *sessions[2] = {NULL, NULL};
    void *saved;
    size_t size;
    ml_error error;
    int i;
    REQUIRE(load_text(&file, mixed_json, &loras[0], &error) == ML_OK);
    REQUIRE(load_text(&file, "{\"lora_alpha\": 4}", &loras[1], &error) == ML_OK);
    for (i = 0; i < 2; i++) {
        ml_session_desc desc;
        memset(&desc, 0, sizeof desc);
        desc.lora = loras[i];
        REQUIRE(ml_session_new(model, &desc, &sessions[i], &error) == ML_OK);
    }
    CHECK(ml_session_eval(sessions[0], tokens, 3, NULL, &error) == ML_OK);
    size = ml_session_save_size(sessions[0]);
    saved = malloc(size);
    CHECK(ml_session_save(sessions[0], saved, size, &error) == ML_OK);
    CHECK(ml_session_restore(sessions[0], saved, size, &error) == ML_OK);
    CHECK(ml_session_restore(sessions[1], saved, size, &error) == ML_ERROR_MISMATCH);
    free(saved);
    for (i = 0; i < 2; i++) ml_session_free(sessions[i]);
    for (i = 0; i < 2; i++) ml_lora_free(loras[i]);
    ml_model_free(model);
    free_bytes(&file);
}

/* llama.cpp's format before GGUF. */
TEST(ggla) {
    static const char old[80] = "algg\1\0\0\0\4\0\0\0\10";
    ml_model *model = some_model();
    ml_lora *lora = NULL;
    ml_error error;
    CHECK(ml_lora_load_memory(old, sizeof old, model, NULL, &lora, &error) == ML_ERROR_FORMAT);
    CHECK(strstr(error.text, "ggla") != NULL);
    ml_model_free(model);
}

/* PEFT's older adapter_model.bin is a dictionary that PyTorch pickled. */
TEST(pickled) {
    static const char prefix[] = "base_model.model.";
    bytes pickle, file;
    ml_lora *lora = NULL;
    ml_error error;
    char name[100];
    memset(&pickle, 0, sizeof pickle);
    pk_begin(&pickle);
    put_text(&pickle, "}(");
    snprintf(name, sizeof name, "%s%.*s", prefix, (int)strcspn(plain_pair[0], " "), plain_pair[0]);
    pk_text(&pickle, name);
    pk_matrix(&pickle, "0", 2, 12);
    snprintf(name, sizeof name, "%s%.*s", prefix, (int)strcspn(plain_pair[1], " "), plain_pair[1]);
    pk_text(&pickle, name);
    pk_matrix(&pickle, "0", 8, 2);
    put_text(&pickle, "u.");
    file = pt_file(&pickle, 24);
    CHECK(load_text(&file, plain_json, &lora, &error) == ML_OK);
    REQUIRE(lora);
    CHECK(((float *)lora->tensors[(7 + 5) * 2].data)[23] == 23);
    ml_lora_free(lora);
    free_bytes(&file);
    free_bytes(&pickle);
}

/* Adapters of another kind, whose tensors are no halves of pairs: the sentence names the kind, if a file does. */
TEST(other_kinds) {
    static const char *const vectors[] = {"base_model.model.model.layers.1.mlp.down_proj.ia3_l 1 12", NULL};
    static const char *const json[] = {"{\"peft_type\": \"IA3\"}", plain_json, NULL};
    static const char *const texts[] = {"adapter_config.json.peft_type is IA3; supported: LORA",
                                        "none of 1 tensors is half of a pair",
                                        "none of 1 tensors is half of a pair"};
    for (size_t i = 0; i < sizeof json / sizeof *json; i++) {
        bytes file = tensors_file("", vectors);
        ml_lora *lora = NULL;
        ml_error error;
        CHECK(load_text(&file, json[i], &lora, &error) == (i ? ML_ERROR_MISMATCH : ML_ERROR_UNSUPPORTED));
        CHECK(strstr(error.text, texts[i]) != NULL);
        free_bytes(&file);
    }
}

/* What PEFT's configuration may say. */
TEST(configurations) {
    static const struct {
        const char *json;
        ml_result result;
        const char *text; /* in the sentence */
    } cases[] = {
        {"{\"r\":2,\"lora_alpha\":4}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4.0,\"use_dora\":false,\"use_rslora\":null,\"alpha_pattern\":{},"
         "\"modules_to_save\":null,\"target_modules\":[\"down_proj\"],\"init_lora_weights\":\"gaussian\"}",
         ML_OK, ""},
        {"{\"lora_alpha\":0.25}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4,\"peft_type\":\"IA3\"}", ML_ERROR_UNSUPPORTED, "peft_type is IA3"},
        {"{\"r\":2,\"lora_alpha\":4,\"use_dora\":true}", ML_ERROR_UNSUPPORTED, "use_dora"},
        {"{\"r\":2,\"lora_alpha\":4,\"use_rslora\":true}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4,\"use_rslora\":1}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4,\"use_rslora\":2}", ML_ERROR_FORMAT, "use_rslora"},
        {"{\"r\":2,\"lora_alpha\":4,\"fan_in_fan_out\":true}", ML_OK, ""}, /* PEFT: not for nn.Linear */
        {"{\"r\":2,\"lora_alpha\":4,\"lora_bias\":true}", ML_ERROR_UNSUPPORTED, "lora_bias"},
        {"{\"r\":2,\"lora_alpha\":4,\"use_qalora\":true}", ML_ERROR_UNSUPPORTED, "use_qalora"},
        {"{\"r\":2,\"lora_alpha\":4,\"bias\":\"all\"}", ML_OK, ""}, /* a Llama has none */
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down_proj\":8}}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down_proj\":0}}", ML_ERROR_FORMAT,
         "alpha_pattern.down_proj"},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"q_proj\":0}}", ML_OK, ""}, /* of no pair */
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"(?!q).*down_proj\":8}}", ML_ERROR_UNSUPPORTED,
         "alpha_pattern.(?!q).*down_proj: that regular expression is not understood"},
        {"{\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"down_proj\\\\\":8}}", ML_ERROR_UNSUPPORTED,
         "that regular expression is not understood"}, /* an escape of nothing */
        {"{\"r\":2,\"lora_alpha\":4,\"rank_pattern\":{\"layers.(0|1).mlp.down_proj\":8}}", ML_ERROR_MISMATCH,
         "rank_pattern.layers.(0|1).mlp.down_proj is not 2"},
        {"{\"r\":7,\"lora_alpha\":4,\"rank_pattern\":{\"down_proj\":2}}", ML_OK, ""},
        {"{\"r\":2,\"lora_alpha\":4,\"rank_pattern\":{\"down_proj\":3}}", ML_ERROR_MISMATCH,
         "rank_pattern.down_proj is not 2"},
        {"{\"r\":2,\"lora_alpha\":4,\"layer_replication\":[[0,1],[0,2]]}", ML_ERROR_UNSUPPORTED,
         "layer_replication"},
        {"{\"r\":2,\"lora_alpha\":4,\"alora_invocation_tokens\":[5]}", ML_ERROR_UNSUPPORTED, "alora"},
        {"{\"r\":2,\"lora_alpha\":4,\"arrow_config\":{\"top_k\":3}}", ML_ERROR_UNSUPPORTED, "arrow_config"},
        {"{\"r\":2,\"lora_alpha\":4,\"init_lora_weights\":\"pissa_niter_4\"}", ML_ERROR_UNSUPPORTED,
         "pissa_niter_4"},
        {"{\"r\":2,\"lora_alpha\":4,\"init_lora_weights\":\"mica\"}", ML_OK, ""}, /* the model is as it was */
        {"{\"r\":3,\"lora_alpha\":4}", ML_ERROR_MISMATCH, "r is not 2"},
        {"{\"r\":2}", ML_ERROR_MISMATCH, "lora_alpha"},
        {NULL, ML_ERROR_MISMATCH, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":0}", ML_ERROR_FORMAT, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":-1}", ML_ERROR_FORMAT, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":1e9}", ML_ERROR_FORMAT, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":1e-60}", ML_ERROR_FORMAT, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":\"4\"}", ML_ERROR_FORMAT, "lora_alpha"},
        {"{\"r\":2,\"lora_alpha\":4", ML_ERROR_FORMAT, "JSON"},
    };
    bytes file = tensors_file("base_model.model.", plain_pair);
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        ml_lora *lora = NULL;
        ml_error error;
        int as_expected = load_text(&file, cases[i].json, &lora, &error) == cases[i].result &&
                          strstr(error.text, cases[i].text) != NULL;
        CHECK(as_expected);
        if (!as_expected) printf("case %d: %d %s\n", (int)i, (int)error.code, error.text);
        ml_lora_free(lora);
    }
    free_bytes(&file);
}

#define LAYER0 "model.layers.0."
static const struct {
    const char *tensors[5];
    ml_result result;
    const char *text;
} tensor_cases[] = {
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2", NULL},
     ML_OK,
     ""},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", NULL},
     ML_ERROR_MISMATCH,
     LAYER0 "self_attn.k_proj.lora_B.weight"},
    {{LAYER0 "self_attn.k_proj.lora_B.weight 4 2", NULL},
     ML_ERROR_MISMATCH,
     LAYER0 "self_attn.k_proj.lora_A.weight"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 7", LAYER0 "self_attn.k_proj.lora_B.weight 4 2", NULL},
     ML_ERROR_MISMATCH,
     "(2, 7), not (2, 8)"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 5 2", NULL},
     ML_ERROR_MISMATCH,
     "(5, 2), not (4, 2)"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 3", NULL},
     ML_ERROR_MISMATCH,
     "(4, 3), not (4, 2)"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 0 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 0", NULL},
     ML_ERROR_UNSUPPORTED,
     "lora_A.weight is no matrix of a rank from 1"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 4097 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 4097", NULL},
     ML_ERROR_UNSUPPORTED,
     "to 4096"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2",
      LAYER0 "mlp.up_proj.lora_A.weight 3 8", LAYER0 "mlp.up_proj.lora_B.weight 12 3", NULL},
     ML_OK,
     ""},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2",
      LAYER0 "self_attn.k_proj.lora_magnitude_vector 4 1", NULL},
     ML_ERROR_UNSUPPORTED,
     "lora_magnitude_vector is not part of an adapter that can be used"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2",
      "model.embed_tokens.lora_embedding_A 2 11", NULL},
     ML_ERROR_UNSUPPORTED,
     "lora_embedding_A: adapters and copies of the embedding and of the output are not supported"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2",
      "lm_head.lora_A.weight 2 8", NULL},
     ML_ERROR_UNSUPPORTED,
     "lm_head.lora_A.weight: adapters and copies of the embedding and of the output"},
    {{LAYER0 "self_attn.k_proj.lora_A.weight 2 8", LAYER0 "self_attn.k_proj.lora_B.weight 4 2",
      "model.layers.2.self_attn.k_proj.lora_A.weight 2 8", NULL},
     ML_ERROR_UNSUPPORTED,
     "layers.2.self_attn.k_proj.lora_A.weight is not part"},
    {{LAYER0 "self_attn.k_proj.weight 4 8", NULL}, ML_ERROR_MISMATCH, "no adapter for this model"},
};
#undef LAYER0

/* What may be wrong with the tensors. */
TEST(wrong_tensors) {
    size_t i;
    for (i = 0; i < sizeof tensor_cases / sizeof *tensor_cases; i++) {
        bytes file = tensors_file("base_model.model.", tensor_cases[i].tensors);
        ml_lora *lora = NULL;
        ml_error error;
        int as_expected = load_text(&file, "{\"lora_alpha\":4}", &lora, &error) == tensor_cases[i].result &&
                          strstr(error.text, tensor_cases[i].text) != NULL;
        CHECK(as_expected);
        if (!as_expected) printf("case %d: %d %s\n", (int)i, (int)error.code, error.text);
        ml_lora_free(lora);
        free_bytes(&file);
    }
}

/* Types and places of the numbers: whole numbers are none, F64 is rounded, and overlapping tensors would let
   a small file ask for much memory. */
TEST(wrong_numbers) {
    static const char format[] =
        "{\"base_model.model.model.layers.0.%s.lora_A.weight\":{\"dtype\":\"%s\",\"shape\":[2,8],"
        "\"data_offsets\":[0,%d]},\"base_model.model.model.layers.0.%s.lora_B.weight\":{\"dtype\":\"%s\","
        "\"shape\":[4,2],\"data_offsets\":[0,%d]}}";
    static const char *const types[] = {"I64", "F64", "BF16", "U8"};
    static const int sizes[] = {8, 8, 2, 1};
    static const ml_result results[] = {ML_ERROR_UNSUPPORTED, ML_OK, ML_OK, ML_ERROR_UNSUPPORTED};
    double data[16];
    char header[1000];
    int i;
    for (i = 0; i < 16; i++) data[i] = i + 0.1;
    for (i = 0; i < 4; i++) {
        bytes file, numbers = {NULL, 0, 0};
        ml_lora *lora = NULL;
        ml_error error;
        snprintf(header, sizeof header, format, "self_attn.v_proj", types[i], 16 * sizes[i],
                 "self_attn.v_proj", types[i], 8 * sizes[i]);
        put_numbers(&numbers, data, 16, sizeof *data);
        file = safetensors_file(header, numbers.data, (size_t)(16 * sizes[i]));
        free_bytes(&numbers);
        CHECK(load_text(&file, "{\"lora_alpha\":4}", &lora, &error) == results[i]);
        if (results[i]) CHECK(strstr(error.text, types[i]) != NULL);
        if (lora && sizes[i] == 8) CHECK(((float *)lora->tensors[2 * 2].data)[15] == 15.1f);
        ml_lora_free(lora);
        free_bytes(&file);
    }
}

TEST(overlapping) {
    bytes header, file, zeros;
    ml_lora *lora = NULL;
    ml_error error;
    char text[300];
    int layer, t, half;
    enum { R = 512 };
    memset(&header, 0, sizeof header);
    memset(&zeros, 0, sizeof zeros);
    for (layer = 0; layer < LAYERS; layer++)
        for (t = 0; t < 7; t++)
            for (half = 0; half < 2; half++) {
                int rows = half ? outs[t] : R, cols = half ? R : ins[t];
                snprintf(text, sizeof text,
                         "%s\"model.layers.%d.%s.lora_%c.weight\":{\"dtype\":\"F32\",\"shape\":[%d,%d],"
                         "\"data_offsets\":[0,%d]}",
                         header.size ? "," : "{", layer, peft_names[t], "AB"[half], rows, cols,
                         rows * cols * 4);
                put_text(&header, text);
            }
    put_text(&header, "}");
    put_u8(&header, 0);
    put_floats(&zeros, 0, R * HIDDEN);
    file = safetensors_file((const char *)header.data, zeros.data, zeros.size);
    CHECK(load_text(&file, "{\"lora_alpha\":4}", &lora, &error) == ML_ERROR_FORMAT);
    CHECK(strstr(error.text, "overlap") != NULL);
    free_bytes(&file);
    free_bytes(&header);
    free_bytes(&zeros);
}

typedef struct gguf_twist {
    const char *architecture, *type, *adapter; /* NULL: not said */
    int alpha_type;                            /* 6: F32; 4: U32; -1: none */
    float alpha;
    const char *more; /* a key with a list */
    unsigned number;  /* of the tensors' type */
    const char *a_name;
} gguf_twist;

/* A GGUF adapter of blk.1.attn_v, rank 2; with ones everywhere. */
static bytes twisted_gguf(const gguf_twist *twist) {
    bytes b;
    int i, n_keys = (twist->architecture != NULL) + (twist->type != NULL) + (twist->adapter != NULL) +
                    (twist->alpha_type >= 0) + (twist->more != NULL);
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 2, (uint64_t)n_keys);
    if (twist->architecture) gguf_key(&b, "general.architecture", 8), gguf_text(&b, twist->architecture);
    if (twist->type) gguf_key(&b, "general.type", 8), gguf_text(&b, twist->type);
    if (twist->adapter) gguf_key(&b, "adapter.type", 8), gguf_text(&b, twist->adapter);
    if (twist->more) gguf_key(&b, twist->more, 9), put_u32(&b, 4), put_u64(&b, 1), put_u32(&b, 7);
    if (twist->alpha_type >= 0) {
        gguf_key(&b, "adapter.lora.alpha", (unsigned)twist->alpha_type);
        if (twist->alpha_type == 6) put_f32(&b, twist->alpha);
        if (twist->alpha_type == 4) put_u32(&b, (uint64_t)twist->alpha);
    }
    gguf_tensor(&b, twist->a_name ? twist->a_name : "blk.1.attn_v.weight.lora_a", 2, 2, 8, twist->number, 0);
    gguf_tensor(&b, "blk.1.attn_v.weight.lora_b", 2, 4, 2, twist->number, 64);
    gguf_pad(&b, 32);
    for (i = 0; i < 24; i++) put_f32(&b, 1);
    return b;
}

/* What a GGUF may say; alpha 0, or none, is a scale of 1 for llama.cpp. */
TEST(gguf_variants) {
    static const struct {
        gguf_twist twist;
        ml_result result;
        const char *text;
        float alpha;
    } cases[] = {
        {{"llama", "adapter", "lora", 6, 8, NULL, 0, NULL}, ML_OK, "", 8},
        {{"llama", "adapter", "lora", 4, 8, NULL, 0, NULL}, ML_OK, "", 8},
        {{"llama", "adapter", "lora", 6, 0, NULL, 0, NULL}, ML_OK, "", 2},
        {{"llama", "adapter", "lora", -1, 0, NULL, 0, NULL}, ML_OK, "", 2},
        {{"llama", "adapter", "lora", 6, 8, "tokenizer.ggml.some", 0, NULL}, ML_OK, "", 8},
        {{"llama", "adapter", "lora", 6, -8, NULL, 0, NULL}, ML_ERROR_FORMAT, "adapter.lora.alpha", 0},
        {{"llama", "adapter", "lora", 6, NAN, NULL, 0, NULL}, ML_ERROR_FORMAT, "adapter.lora.alpha", 0},
        {{"llama", "adapter", "lora", 6, 1e30f, NULL, 0, NULL}, ML_ERROR_FORMAT, "adapter.lora.alpha", 0},
        {{"gemma", "adapter", "lora", 6, 8, NULL, 0, NULL}, ML_ERROR_UNSUPPORTED, "gemma", 0},
        {{"llama", "model", "lora", 6, 8, NULL, 0, NULL}, ML_ERROR_UNSUPPORTED, "general.type is model", 0},
        {{"llama", "adapter", "mix", 6, 8, NULL, 0, NULL}, ML_ERROR_UNSUPPORTED, "adapter.type is mix", 0},
        {{"llama", "adapter", "lora", 6, 8, "adapter.alora.invocation_tokens", 0, NULL},
         ML_ERROR_UNSUPPORTED,
         "adapter.alora",
         0},
        {{"llama", "adapter", "lora", 6, 8, NULL, 0, "blk.1.attn_v.bias.lora_a"},
         ML_ERROR_MISMATCH,
         "blk.1.attn_v.weight.lora_a",
         0},
        {{"llama", "adapter", "lora", 6, 8, NULL, 26, NULL}, ML_ERROR_UNSUPPORTED, "I32", 0},
    };
    size_t i;
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes file = twisted_gguf(&cases[i].twist);
        ml_lora *lora = NULL;
        ml_error error;
        int as_expected = load_text(&file, NULL, &lora, &error) == cases[i].result &&
                          strstr(error.text, cases[i].text) != NULL;
        CHECK(as_expected);
        if (!as_expected) printf("case %d: %d %s\n", (int)i, (int)error.code, error.text);
        if (lora) CHECK(lora->alpha == cases[i].alpha && lora->rank == 2);
        ml_lora_free(lora);
        free_bytes(&file);
    }
}

/* ---- failure ---- */

TEST(refused) {
    ml_model *model = some_model(), *other = NULL;
    ml_config c = some_config();
    ml_random random;
    ml_lora *lora = some_lora(model, 2, 2, ML_LORA_ALL), *loaded = NULL;
    ml_save_desc desc = save_as(ML_GGUF, ML_Q8_0);
    ml_error error;
    REQUIRE(lora);
    CHECK(ml_lora_save(lora, NULL, "x", NULL, &error) == ML_ERROR_ARGUMENT && error.text[0]);
    CHECK(ml_lora_save(NULL, model, "x", NULL, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_save(lora, model, NULL, NULL, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_load(NULL, model, NULL, &loaded, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_load("x", NULL, NULL, &loaded, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_load("x", model, NULL, NULL, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_load_memory(NULL, 0, model, NULL, &loaded, NULL) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_save(lora, model, in_folder("x"), &desc, &error) == ML_ERROR_ARGUMENT &&
          strstr(error.text, "Q8_0"));
    desc = save_as(ML_SAFETENSORS, ML_Q4_0);
    CHECK(ml_lora_save(lora, model, in_folder("x"), &desc, &error) == ML_ERROR_ARGUMENT);
    desc = save_as(ML_SAFETENSORS, ML_F32);
    CHECK(ml_lora_save(lora, model, in_folder("adapter_config.json"), &desc, &error) == ML_ERROR_ARGUMENT);
    CHECK(ml_lora_save(lora, model, in_folder("no/folder/x"), &desc, &error) == ML_ERROR_FILE);
    CHECK(!exists(in_folder("x")) && !exists(in_folder("x.tmp")));
    CHECK(ml_lora_load(in_folder("none"), model, NULL, &loaded, &error) == ML_ERROR_FILE && !loaded);
    CHECK(make_folder(in_folder("bare"))); /* the weights without their configuration */
    CHECK(ml_lora_save(lora, model, in_folder("bare/a.safetensors"), &desc, &error) == ML_OK);
    CHECK(remove(in_folder("bare/adapter_config.json")) == 0);
    CHECK(ml_lora_load(in_folder("bare/a.safetensors"), model, NULL, &loaded, &error) == ML_ERROR_FILE &&
          strstr(error.text, "adapter_config.json beside it cannot be read"));
    c.n_layers = 3; /* an adapter for another model is not saved under this one's names */
    ml_random_seed(&random, 1);
    REQUIRE(create_model(&c, ML_F32, &random, NULL, &other, NULL) == ML_OK);
    CHECK(ml_lora_save(lora, other, in_folder("x"), NULL, &error) == ML_ERROR_MISMATCH);
    CHECK(ml_model_save(model, in_folder("whole.gguf"), NULL, NULL) == ML_OK); /* a model is no adapter */
    CHECK(ml_lora_load(in_folder("whole.gguf"), model, NULL, &loaded, &error) == ML_ERROR_MISMATCH);
    CHECK(strstr(error.text, "no adapter") != NULL);
    CHECK(ml_lora_save(lora, model, in_folder("a.gguf"), NULL, NULL) == ML_OK); /* and an adapter no model */
    {
        ml_model *none = NULL;
        CHECK(ml_model_load(in_folder("a.gguf"), NULL, &none, &error) == ML_ERROR_UNSUPPORTED);
        CHECK(strstr(error.text, "general.type is adapter") != NULL);
    }
    ml_model_free(other);
    ml_lora_free(lora);
    ml_model_free(model);
}

/* The weights cannot be written, or the configuration: the old files stay, and nothing temporary is left. */
TEST(full_disk) {
#ifdef _WIN32
    SKIP("no limit for the size of files");
#else
    static const char *const full[] = {"a.gguf", "adapter_model.safetensors", "adapter_config.json"};
    ml_model *model = some_model();
    ml_lora *lora = some_lora(model, 2, 2, ML_LORA_ALL);
    struct rlimit before, limit;
    ml_error error;
    int i, k;
    REQUIRE(lora && getrlimit(RLIMIT_FSIZE, &before) == 0);
    signal(SIGXFSZ, SIG_IGN);
    for (i = 0; i < 3; i++) {
        ml_save_desc desc = save_as(i ? ML_SAFETENSORS : ML_GGUF, ML_F32);
        char name[100];
        ml_result result;
        for (k = 0; k < 3; k++) write_file(in_folder(full[k]), "old", 3);
        limit = before;
        if (i < 2) limit.rlim_cur = 1000;
        if (i == 2) CHECK(remove(in_folder(full[2])) == 0 && make_folder(in_folder(full[2])));
        REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        result = ml_lora_save(lora, model, in_folder(full[i ? 1 : 0]), &desc, &error);
        setrlimit(RLIMIT_FSIZE, &before);
        CHECK(result == ML_ERROR_FILE && strstr(error.text, full[i]) != NULL);
        for (k = 0; k < 3; k++) {
            bytes b = read_file(in_folder(full[k]));
            CHECK((i == 2 && k == 2) || (b.size == 3 && memcmp(b.data, "old", 3) == 0));
            free_bytes(&b);
            snprintf(name, sizeof name, "%s.tmp", full[k]);
            CHECK(!exists(in_folder(name)));
        }
    }
    CHECK(rmdir(in_folder(full[2])) == 0);
    ml_lora_free(lora);
    ml_model_free(model);
#endif
}

/* ---- hostile files ---- */

/* An adapter of q and w2 in a file's bytes, and its configuration. */
static bytes small_adapter(const ml_model *model, ml_format format, bytes *json) {
    ml_lora *lora = some_lora(model, 2, 3, ML_LORA_Q | ML_LORA_W2);
    ml_save_desc desc = save_as(format, ML_F32);
    bytes file;
    CHECK(ml_lora_save(lora, model, in_folder("small"), &desc, NULL) == ML_OK);
    file = read_file(in_folder("small"));
    memset(json, 0, sizeof *json);
    if (format == ML_SAFETENSORS) *json = read_file(in_folder("adapter_config.json"));
    ml_lora_free(lora);
    return file;
}

/* Loads copies that end where malloc'd memory ends, so that a sanitizer sees each byte read beyond; all is freed
   again. */
static ml_result load_copy(const ml_model *model, const void *data, size_t size, const void *json,
                           size_t json_size, counting *memory) {
    void *copy = malloc(size), *json_copy = malloc(json_size);
    ml_load_desc desc = load_desc(json ? json_copy : NULL, json_size);
    ml_lora *lora = NULL;
    ml_error error;
    ml_result result;
    desc.allocator.alloc = counting_alloc;
    desc.allocator.free = counting_free;
    desc.allocator.user = memory;
    if (size) memcpy(copy, data, size);
    if (json_size) memcpy(json_copy, json, json_size);
    result = ml_lora_load_memory(size ? copy : "", size, model, &desc, &lora, &error);
    free(copy);
    free(json_copy);
    CHECK((lora != NULL) == !result && error.code == result && (!result || error.text[0]));
    if (lora) { /* the numbers are the adapter's own: they can be read when the file is gone */
        float logits[VOCAB];
        logits_of(model, lora, logits);
    }
    ml_lora_free(lora);
    CHECK(memory->n_live == 0);
    return result;
}

TEST(truncated) {
    ml_model *model = some_model();
    int format;
    REQUIRE(model);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        bytes json, file = small_adapter(model, (ml_format)format, &json);
        size_t n, needed = format == ML_GGUF ? file.size - 31 : file.size; /* GGUF ends with padding */
        counting memory;
        memset(&memory, 0, sizeof memory);
        CHECK(file.size > 500);
        CHECK(load_copy(model, file.data, file.size, json.data, json.size, &memory) == ML_OK);
        for (n = 0; n < file.size; n++) {
            ml_result result = load_copy(model, file.data, n, json.data, json.size, &memory);
            CHECK(result != ML_OK || n >= needed);
            CHECK(result == ML_OK || result == ML_ERROR_TRUNCATED || result == ML_ERROR_FORMAT);
        }
        for (n = 0; n + 1 < json.size; n++) /* the last byte is the end of the line */
            CHECK(load_copy(model, file.data, file.size, json.data, n, &memory) == ML_ERROR_FORMAT);
        free_bytes(&file);
        free_bytes(&json);
    }
    ml_model_free(model);
}

/* Every byte but the numbers is damaged in several ways: an error or an adapter, never more memory than the file
   could fill. */
TEST(flipped) {
    static const unsigned char flips[] = {1, 2, 4, 8, 16, 32, 64, 128, 255};
    ml_model *model = some_model();
    size_t accepted = 0, n = 0;
    int format;
    REQUIRE(model);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        bytes json, file = small_adapter(model, (ml_format)format, &json);
        size_t numbers = 4 * 2 * LAYERS * (size_t)(ins[0] + outs[0] + ins[5] + outs[5]), i, k;
        counting memory;
        memset(&memory, 0, sizeof memory);
        for (i = 0; i < file.size - numbers + json.size; i++)
            for (k = 0; k < sizeof flips; k++) {
                unsigned char *at = i < json.size ? json.data + i : file.data + i - json.size;
                *at ^= flips[k];
                accepted += load_copy(model, file.data, file.size, json.data, json.size, &memory) == ML_OK;
                n++;
                *at ^= flips[k];
            }
        CHECK(memory.peak < 64 * (file.size + json.size));
        free_bytes(&file);
        free_bytes(&json);
    }
    CHECK(accepted < n / 3); /* of descriptive text nothing depends on */
    ml_model_free(model);
}

TEST(out_of_memory) {
    ml_model *model = some_model();
    int format;
    REQUIRE(model);
    for (format = ML_GGUF; format <= ML_SAFETENSORS; format++) {
        bytes json, file = small_adapter(model, (ml_format)format, &json);
        size_t fail_at;
        for (fail_at = 1;; fail_at++) {
            counting memory;
            ml_result result;
            memset(&memory, 0, sizeof memory);
            memory.fail_at = fail_at;
            result = load_copy(model, file.data, file.size, json.data, json.size, &memory);
            if (!result) break;
            CHECK(result == ML_ERROR_MEMORY);
            REQUIRE(fail_at < 100);
        }
        CHECK(fail_at > 5);
        free_bytes(&file);
        free_bytes(&json);
    }
    ml_model_free(model);
}

int main(void) {
    if (!folder_begin("adapters")) return 1;
    RUN(round_trips);
    RUN(norm_and_mask);
    RUN(some_layers);
    RUN(same_logits);
    RUN(gguf_layout);
    RUN(safetensors_layout);
    RUN(adapter_config);
    RUN(merged_in_hugging_face_layout);
    RUN(prefixes);
    RUN(words_in_names);
    RUN(scales);
    RUN(patterns);
    RUN(patterns_have_a_bound);
    RUN(ranks_and_scales_of_pairs);
    RUN(patterns_written);
    RUN(training_pairs);
    RUN(a_new_adapter_changes_nothing);
    RUN(scales_stay_in_range);
    RUN(the_last_pair_is_checked);
    RUN(sessions_know_scales);
    RUN(ggla);
    RUN(pickled);
    RUN(other_kinds);
    RUN(configurations);
    RUN(wrong_tensors);
    RUN(wrong_numbers);
    RUN(overlapping);
    RUN(gguf_variants);
    RUN(refused);
    RUN(full_disk);
    RUN(truncated);
    RUN(flipped);
    RUN(out_of_memory);
    return !folder_end() || test_report("test_adapters");
}
