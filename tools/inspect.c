/* inspect: what is in a file: configuration, tensors, tokenizer.
   cc -O2 -std=c99 -I.. inspect.c -o inspect -lm */
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

static const char usage[] =
    "usage: inspect FILE [--tokenizer FILE]\n"
    "  FILE         a model (PyTorch .pt, GGUF, safetensors, llama2.c's .bin), any archive of tensors of "
    "these\n"
    "               formats, or a tokenizer (tokenizer.model, llama2.c's .bin)\n"
    "  --tokenizer  the model's tokenizer, where it is not in the file or beside it\n";

/* Bytes as a quoted string; what does not print is escaped, UTF-8 is left alone. */
static void print_quoted(const char *s, size_t n) {
    size_t i;
    putchar('"');
    for (i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c == '\n')
            printf("\\n");
        else if (c < 32 || c == 127)
            printf("\\x%02x", c);
        else
            putchar(c);
    }
    putchar('"');
}

/* A name from a file, without what a terminal would take for a command; filled up to `width`. */
static void print_name(const char *name, int width) {
    int n;
    for (n = 0; name[n]; n++) putchar((unsigned char)name[n] < 32 || name[n] == 127 ? '?' : name[n]);
    while (n++ < width) putchar(' ');
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
    case ML_VALUE_STRING:
        print_quoted(value->s, value->length < 100 ? value->length : 100);
        printf("%s\n", value->length < 100 ? "" : " ...");
        break;
    }
}

static size_t array_bytes(const ml_array *array) { return ml_row_bytes(array->type, ml_array_count(array)); }

static void print_array(const ml_array *array, int width) {
    char shape[ML_MAX_DIMS * 24];
    int d, n = 0;
    shape[0] = 0;
    for (d = 0; d < array->n_dims; d++)
        n += snprintf(shape + n, sizeof shape - (size_t)n, "%s%lld", d ? ", " : "",
                      (long long)array->shape[d]);
    printf("  ");
    print_name(array->name, width);
    printf(" %-5s (%s) %zu bytes%s\n", ml_type_name(array->type), shape, array_bytes(array),
           array->is_contiguous ? "" : ", strided");
}

static void print_archive(const ml_archive *archive) {
    size_t i, n = ml_archive_n_arrays(archive), n_values = ml_archive_n_values(archive), bytes = 0;
    int width = 0;
    printf("format: %s\n", ml_archive_format(archive));
    if (n_values) printf("values (%zu):\n", n_values);
    for (i = 0; i < n_values; i++) print_value(ml_archive_value(archive, i));
    for (i = 0; i < n; i++) {
        const ml_array *array = ml_archive_array(archive, i);
        int length = (int)strlen(array->name);
        bytes += array_bytes(array);
        width = width > length ? width : length > 60 ? 60 : length;
    }
    printf("tensors (%zu, %zu bytes):\n", n, bytes);
    for (i = 0; i < n; i++) print_array(ml_archive_array(archive, i), width);
}

static void print_tokenizer(const ml_tokenizer *tokenizer) {
    static const char *const kinds[] = {"?",      "normal", "unknown", "control", "user-defined",
                                        "unused", "byte"};
    int32_t id, n = ml_tokenizer_size(tokenizer);
    int counts[7] = {0, 0, 0, 0, 0, 0, 0}, k;
    size_t length;
    float score;
    ml_piece_kind kind;
    for (id = 0; id < n; id++) {
        ml_tokenizer_piece(tokenizer, id, NULL, NULL, &kind);
        counts[kind]++;
    }
    printf("tokenizer: %d pieces", (int)n);
    for (k = 1; k < 7; k++)
        if (counts[k]) printf(", %d %s", counts[k], kinds[k]);
    printf("\n  bos %d, eos %d, unknown %d, padding %d\n", (int)ml_tokenizer_bos(tokenizer),
           (int)ml_tokenizer_eos(tokenizer), (int)ml_tokenizer_unknown(tokenizer),
           (int)ml_tokenizer_padding(tokenizer));
    for (id = 0; id < n; id++) { /* the first few, and the first few after the bytes */
        const char *piece = ml_tokenizer_piece(tokenizer, id, &length, &score, &kind);
        if (id >= 4 && (id < 258 || id >= 268)) continue;
        printf("  %6d ", (int)id);
        print_quoted(piece, length);
        printf(" score %g, %s\n", (double)score, kinds[kind]);
    }
}

static void print_model(const ml_model *model) {
    const ml_config *c = &model->config;
    int i, counts[ML_TYPE_COUNT] = {0};
    printf("model: %lld parameters\n", (long long)model->n_parameters);
    printf("  dim %d, hidden_dim %d, n_layers %d, n_heads %d, n_kv_heads %d, vocab_size %d, max_seq_len %d\n",
           c->dim, c->hidden_dim, c->n_layers, c->n_heads, c->n_kv_heads, c->vocab_size, c->max_seq_len);
    printf("  norm %s, eps %g; mask %s; rope theta %g, scale %g; output %s\n",
           c->norm == ML_NORM_RMS ? "rms" : "layer", (double)c->norm_eps,
           c->mask == ML_MASK_CAUSAL ? "causal" : "full", (double)c->rope_theta, (double)c->rope_scale,
           c->tied_output ? "tied to the embedding" : "of its own");
    for (i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].data) counts[model->tensors[i].type]++;
    printf("  weights");
    for (i = 1; i < ML_TYPE_COUNT; i++)
        if (counts[i]) printf(", %d %s", counts[i], ml_type_name((ml_type)i));
    printf("\n");
    if (model->tokenizer)
        print_tokenizer(model->tokenizer);
    else
        printf("tokenizer: none\n");
}

/* A file that is no archive may be a tokenizer. */
static int inspect_tokenizer(const char *path, const ml_error *why) {
    ml_tokenizer *tokenizer;
    if (ml_tokenizer_load(path, NULL, &tokenizer, NULL)) {
        int is_named = strstr(why->text, path) != NULL; /* the sentence names the file already */
        fprintf(stderr, "inspect: %s%s%s\n", is_named ? "" : path, is_named ? "" : ": ", why->text);
        return 1;
    }
    print_tokenizer(tokenizer);
    ml_tokenizer_free(tokenizer);
    return 0;
}

static int inspect(const char *path, const char *tokenizer) {
    ml_archive *archive;
    ml_load_desc desc;
    ml_model *model;
    ml_error error;
    ml_result result;
    if (ml_archive_open(path, NULL, &archive, &error)) return inspect_tokenizer(path, &error);
    print_archive(archive);
    ml_archive_close(archive);
    memset(&desc, 0, sizeof desc);
    desc.tokenizer = tokenizer;
    result = ml_load(path, &desc, &model, &error);
    if (result) {
        printf("no model that can be run: %s\n", error.text);
        return tokenizer ? 1
                         : 0; /* an archive of tensors need not be a model, unless it was given a tokenizer */
    }
    print_model(model);
    ml_free(model);
    return 0;
}

int main(int argc, char **argv) {
    const char *path = NULL, *tokenizer = NULL;
    int i;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return fputs(usage, stdout), 0;
        if (strcmp(argv[i], "--tokenizer") == 0 && i + 1 < argc)
            tokenizer = argv[++i];
        else if (argv[i][0] == '-' || path)
            return fprintf(stderr, "inspect: %s is not expected\n%s", argv[i], usage), 2;
        else
            path = argv[i];
    }
    if (!path) return fprintf(stderr, "inspect: FILE is needed\n%s", usage), 2;
    return inspect(path, tokenizer);
}
