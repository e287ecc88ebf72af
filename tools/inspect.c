/* inspect: what is in a file: configuration, tensors, tokenizer.
   cc -O2 -DMINILLAMA_IMPLEMENTATION -I.. inspect.c -o inspect -lm */
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "inspect_folder.h"

static const char usage[] =
    "usage: inspect FILE|FOLDER [options]\n"
    "  FILE         a model (PyTorch .pt, GGUF, safetensors, llama2.c's .bin), any "
    "archive of tensors of these formats,\n"
    "               or a tokenizer (tokenizer.model, tokenizer.json, llama2.c's .bin)\n"
    "  FOLDER       with such files: first, which of them are used and what is missing\n";

/* Bytes as a quoted string; control characters are escaped, UTF-8 is left as it is. */
static void print_quoted(const char *s, size_t n) {
    putchar('"');
    for (size_t i = 0; i < n; i++) {
        int control = control_at(s + i, n - i);
        if (s[i] == '"' || s[i] == '\\')
            printf("\\%c", s[i]);
        else if (s[i] == '\n')
            printf("\\n");
        else if (control >= 0)
            printf("\\x%02x", (unsigned)control);
        else
            putchar(s[i]);
        i += control > 127;
    }
    putchar('"');
}

/* At most 100 bytes of a text, whole characters. */
static void print_text(const char *text, size_t length) {
    size_t n = length < 100 ? length : 100;
    while (n < length && n && ((unsigned char)text[n] & 0xC0) == 0x80) n--;
    print_quoted(text, n);
    printf("%s\n", n < length ? " ..." : "");
}

static void print_value(const ml_value *value) {
    printf("  ");
    print_name(value->name, 0);
    printf(" = ");
    switch (value->kind) {
    case ML_VALUE_INT: printf("%lld\n", (long long)value->i); break;
    case ML_VALUE_FLOAT: printf("%.9g\n", value->f); break;
    case ML_VALUE_BOOL: printf("%s\n", value->i ? "true" : "false"); break;
    case ML_VALUE_LIST: printf("list of %zu\n", value->length); break;
    case ML_VALUE_OPAQUE:
        printf("<");
        print_plain(value->s, value->length);
        printf(">\n");
        break;
    case ML_VALUE_STRING: print_text(value->s, value->length); break;
    }
}

enum { SHOWN = 8 }; /* items of a list of plain values */

/* The last part of a name, if it is a number of a list's item; else -1. *length: of what is in front of it. */
static long item_of(const char *name, size_t *length) {
    const char *dot = strrchr(name, '.');
    char *end;
    if (!dot || dot[1] < '0' || dot[1] > '9') return -1;
    *length = (size_t)(dot - name) + 1;
    long item = strtol(dot + 1, &end, 10);
    return *end ? -1 : item;
}

/* How many values from i on are items of the same list, from SHOWN on: the states of random generators are long. */
static size_t count_hidden(const ml_archive *archive, size_t i) {
    size_t n = 0, length = 0, first_length = 0;
    long first = item_of(archive->values[i].name, &first_length);
    if (first < SHOWN) return 0;
    for (; i + n < archive->n_values; n++) {
        const char *name = archive->values[i + n].name;
        if (item_of(name, &length) != first + (long)n || length != first_length ||
            strncmp(name, archive->values[i].name, length) != 0)
            break;
    }
    return n;
}

static void print_values(const ml_archive *archive) {
    for (size_t i = 0, n; i < archive->n_values; i += n ? n : 1) {
        n = count_hidden(archive, i);
        if (n < 2) print_value(&archive->values[i]);
        if (n < 2) continue;
        printf("  ");
        print_name(archive->values[i].name, 0);
        printf(" ... and %zu more\n", n - 1);
    }
}

/* 0 for a type that is not read: then only the file knows. */
static size_t array_bytes(const ml_array *array) {
    return ml_type_row_bytes(array->type, ml_array_count(array));
}

static void print_array(const ml_array *array, int width) {
    char shape[ML_MAX_DIMS * 24];
    int n = 0;
    shape[0] = 0;
    for (int d = 0; d < array->n_dims; d++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%lld", d ? ", " : "",
                      (long long)array->shape[d]);
    printf("  ");
    print_name(array->name, width);
    printf(" ");
    print_name(array->type_name, 5);
    printf(" (%s)", shape);
    if (array->type != ML_TYPE_NONE) printf(" %zu bytes", array_bytes(array));
    printf("%s%s\n", array->is_contiguous ? "" : ", strided",
           array->type == ML_TYPE_NONE ? ", a type that is not read" : "");
}

/* How much of the file is only named above. */
static void print_passed_over(const ml_archive *archive) {
    size_t n_objects = 0, n_arrays = 0;
    for (size_t i = 0; i < archive->n_values; i++) n_objects += archive->values[i].kind == ML_VALUE_OPAQUE;
    for (size_t i = 0; i < archive->n_arrays; i++) n_arrays += archive->arrays[i].type == ML_TYPE_NONE;
    if (n_objects) printf("passed over: objects of unknown classes (%zu, <in brackets> above)\n", n_objects);
    if (n_arrays) printf("passed over: tensors of types that are not read (%zu)\n", n_arrays);
}

static void print_archive(const ml_archive *archive) {
    size_t bytes = 0;
    int width = 0;
    printf("format: %s\n", archive->format);
    if (archive->n_values) printf("values (%zu):\n", archive->n_values);
    print_values(archive);
    for (size_t i = 0; i < archive->n_arrays; i++) {
        int length = (int)strlen(archive->arrays[i].name);
        bytes += array_bytes(&archive->arrays[i]);
        width = width > length ? width : length > 60 ? 60 : length;
    }
    printf("tensors (%zu, %zu bytes):\n", archive->n_arrays, bytes);
    for (size_t i = 0; i < archive->n_arrays; i++) print_array(&archive->arrays[i], width);
    print_passed_over(archive);
}

static void print_tokenizer(const ml_tokenizer *tokenizer) {
    static const char *const kinds[] = {"?",      "normal", "unknown", "control", "user-defined",
                                        "unused", "byte"};
    int counts[7] = {0};
    ml_piece_kind kind;
    for (int32_t id = 0; id < tokenizer->n_pieces; id++) {
        ml_tokenizer_piece(tokenizer, id, NULL, NULL, &kind);
        counts[kind]++;
    }
    printf("tokenizer: %d pieces", tokenizer->n_pieces);
    for (int k = 1; k < 7; k++)
        if (counts[k]) printf(", %d %s", counts[k], kinds[k]);
    printf("\n  bos %d, eos %d, unknown %d, padding %d\n", (int)tokenizer->bos, (int)tokenizer->eos,
           (int)tokenizer->unknown, (int)tokenizer->padding);
    printf("  a text begins %s bos and ends %s eos; ids that end one:",
           tokenizer->adds_bos ? "with" : "without", tokenizer->adds_eos ? "with" : "without");
    for (int i = 0; i < tokenizer->n_ends; i++) printf("%s %d", i ? "," : "", (int)tokenizer->ends[i]);
    printf("%s\n", tokenizer->n_ends ? "" : " none");
    for (int32_t id = 0; id < tokenizer->n_pieces;
         id++) { /* the first few, and the first few after the bytes */
        if (id >= 4 && (id < 258 || id >= 268)) continue;
        size_t length;
        float score;
        const char *piece = ml_tokenizer_piece(tokenizer, id, &length, &score, &kind);
        printf("  %6d ", (int)id);
        print_quoted(piece, length);
        printf(" score %g, %s\n", (double)score, kinds[kind]);
    }
}

/* What not every Llama has. */
static void print_attention(const ml_model *model) {
    static const char *const kinds[ML_ROPE_KINDS] = {"linear", "ntk", "yarn", "llama3", "dynamic"};
    const ml_config *c = &model->config;
    if (c->head_dim * c->n_heads != c->dim) printf("  heads of size %d\n", c->head_dim);
    if (c->window) printf("  a window of %d tokens\n", c->window);
    if (c->attention_bias) printf("  biases of attention\n");
    if (c->rope_kind != ML_ROPE_PLAIN)
        printf("  rope %s: original %d, low %g, high %g, attention %g\n", kinds[c->rope_kind],
               c->rope_original, (double)c->rope_low, (double)c->rope_high, (double)c->rope_attention);
    if (model->rope_factors) printf("  rope factors of its own\n");
}

static void print_model(const char *path, const ml_model *model) {
    const ml_config *c = &model->config;
    int counts[ML_TYPE_COUNT] = {0};
    ml_error error;
    printf("model: %lld parameters\n", (long long)model->n_parameters);
    printf("  dim %d, hidden_dim %d, n_layers %d, n_heads %d, n_kv_heads %d, vocab_size %d, max_seq_len %d\n",
           c->dim, c->hidden_dim, c->n_layers, c->n_heads, c->n_kv_heads, c->vocab_size, c->max_seq_len);
    printf("  norm %s, eps %g; mask %s; rope theta %g, scale %g; output %s\n",
           c->norm == ML_NORM_RMS ? "rms" : "layer", (double)c->norm_eps,
           c->mask == ML_MASK_CAUSAL ? "causal" : "full", (double)c->rope_theta, (double)c->rope_scale,
           c->tied_output           ? "tied to the embedding"
           : model->tensors[3].data ? "separate"
                                    : "none");
    print_attention(model);
    for (int i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].data) counts[model->tensors[i].type]++;
    printf("  weights");
    for (int i = 1; i < ML_TYPE_COUNT; i++)
        if (counts[i]) printf(", %d %s", counts[i], ml_type_name((ml_type)i));
    printf("\n");
    if (model->chat_template)
        printf("chat template: %zu bytes, %s\n", strlen(model->chat_template),
               ml_chat_format_name(ml_chat_format_of_template(model->chat_template)));
    if (model->tokenizer)
        print_tokenizer(model->tokenizer);
    else if (has_other_tokenizer(path, &error))
        printf("tokenizer: none; %s\n", error.text);
    else
        printf("tokenizer: none\n");
}

/* A file that is not an archive may be a tokenizer; one that is called so is, and one of a kind that is not read. */
static int inspect_tokenizer(const char *path, const ml_error *why) {
    ml_tokenizer *tokenizer;
    ml_error error;
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    int is_called_so = strncmp(name, "tokenizer.", 10) == 0;
    if (ml_tokenizer_load(path, NULL, &tokenizer, &error)) {
        if (is_called_so || error.code == ML_ERROR_UNSUPPORTED || strstr(why->text, "a tokenizer"))
            why = &error;
        return loaded(path, why->code, why);
    }
    print_tokenizer(tokenizer);
    ml_tokenizer_free(tokenizer);
    return 1;
}

static int inspect(const char *path, const char *tokenizer) {
    ml_archive *archive;
    ml_model_load_desc desc = {0};
    ml_model *model;
    ml_error error;
    system_file about;
    int is_folder = system_look(path, &about) && about.is_folder;
    desc.tokenizer = tokenizer;
    ml_archive_load(path, NULL, &archive, &error);
    if (is_folder) print_folder(path, archive);
    if (archive) {
        print_archive(archive);
        ml_archive_free(archive);
    } else if (!ml_model_load(path, &desc, &model, is_folder ? &error : NULL)) { /* Meta's files in pieces */
        printf("format: pieces of one model, consolidated.00.pth and those after it\n");
        ml_model_free(model);
    } else {
        return inspect_tokenizer(path, &error);
    }
    if (ml_model_load(path, &desc, &model, &error)) {
        ml_tokenizer *alone = NULL;
        printf("not a model that can be run: %s\n", error.text);
        if (!ml_tokenizer_load(path, NULL, &alone, NULL)) print_tokenizer(alone);
        ml_tokenizer_free(alone);
        /* an archive of tensors need not be a model, unless a tokenizer was given for it */
        return !tokenizer || complain("%s", error.text);
    }
    print_model(path, model);
    ml_model_free(model);
    return 1;
}

int main(int argc, char **argv) {
    const char *path = NULL, *tokenizer = NULL;
    int help = 0;
    const option options[] = {
        {"--tokenizer", OPTION_TEXT, &tokenizer, "the model's tokenizer (in the file, or next to it)"},
        {"--help", OPTION_FLAG, &help, "this list"},
    };
    if (!options_read(argc, argv, options, 2, &path, 1)) return 2;
    if (help || !path) {
        fputs(usage, help ? stdout : stderr);
        options_print(help ? stdout : stderr, options, 2);
        return help ? 0 : 2;
    }
    int ok = inspect(path, tokenizer);
    return !(output_written() && ok);
}
