/* look: what happens inside a model while it reads a text, as one HTML page: the attention of each layer and head,
   what each layer would say next, and the norms of the residual stream. Also as CSV.

   build/look examples/models/stories.gguf "Once upon a time there was a dragon." --out look.html */
#include "../examples/common/file.h"
#include "../examples/common/options.h"
#include "../examples/common/threads.h"
#include "look_page.h"

static const char usage[] =
    "usage: look MODEL TEXT [options]\n"
    "  MODEL        PyTorch .pt, GGUF, safetensors, llama2.c's .bin, or a folder of Hugging Face's\n"
    "  TEXT         what it reads\n";

enum { MAX_TOP = 20 };

typedef struct settings {
    const char *words[2], *out, *csv, *tokenizer, *lora;
    int top, max_tokens, threads, help;
} settings;

typedef struct guess {
    int32_t id;
    float p;
} guess;

/* What one pass over n tokens shows. */
typedef struct inside {
    const ml_model *model;
    ml_session *session;
    const int32_t *ids; /* (n) */
    int n, top;
    float *weights; /* (L, A, n, n) */
    float *norms;   /* (1 + 2 L, n): after the embedding, and after both halves of each layer */
    guess *guesses; /* (L + 1, n, top): what the embedding and each layer would say next, most likely first */
    float *logits;  /* (V) */
    ml_error error; /* of the lens */
} inside;

/* ---- looking ---- */

static void norms_of(float *norms, const ml_tensor *stream) {
    for (size_t i = 0; i < stream->rows; i++) {
        const float *x = (const float *)stream->data + i * stream->cols;
        double square = 0;
        for (size_t j = 0; j < stream->cols; j++) square += (double)x[j] * (double)x[j];
        norms[i] = (float)sqrt(square);
    }
}

/* The `top` most likely of logits (n), which become probabilities. */
static void most_likely(guess *best, int top, float *logits, int n) {
    float most = logits[0];
    double sum = 0;
    int held = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > most) most = logits[i];
    for (int i = 0; i < n; i++) sum += exp((double)(logits[i] - most));
    for (int i = 0; i < n; i++) {
        guess g = {i, (float)(exp((double)(logits[i] - most)) / sum)};
        int at = held < top ? held++ : top - 1;
        if (at == top - 1 && held == top && best[at].p >= g.p && i >= top) continue;
        for (; at > 0 && best[at - 1].p < g.p; at--) best[at] = best[at - 1];
        best[at] = g;
    }
}

static void on_layer(void *user, const ml_seen *seen) {
    inside *in = (inside *)user;
    size_t n = (size_t)in->n, layer = (size_t)(seen->layer + 1), heads = (size_t)in->model->config.n_heads;
    if (seen->layer < 0) {
        norms_of(in->norms, &seen->stream);
    } else {
        memcpy(in->weights + (layer - 1) * heads * n * n, seen->weights.data,
               heads * n * n * sizeof *in->weights);
        norms_of(in->norms + (2 * layer - 1) * n, &seen->middle);
        norms_of(in->norms + 2 * layer * n, &seen->stream);
    }
    for (size_t i = 0; i < n && !in->error.code; i++) { /* a row at a time: a vocabulary is large */
        const float *row = (const float *)seen->stream.data + i * seen->stream.cols;
        if (ml_session_lens(in->session, row, 1, in->logits, &in->error)) return;
        most_likely(in->guesses + (layer * n + i) * (size_t)in->top, in->top, in->logits,
                    in->model->config.vocab_size);
    }
}

/* Runs the text through the model. in->weights and the rest are to be freed in any case. */
static int look(inside *in, const settings *s, const ml_lora *lora) {
    const ml_config *c = &in->model->config;
    size_t n = (size_t)in->n, layers = (size_t)c->n_layers;
    ml_session_desc desc = {0};
    ml_error error;
    in->weights = (float *)calloc(layers * (size_t)c->n_heads, n * n * sizeof *in->weights);
    in->norms = (float *)calloc(2 * layers + 1, n * sizeof *in->norms);
    in->guesses = (guess *)calloc((layers + 1) * n, (size_t)in->top * sizeof *in->guesses);
    in->logits = (float *)calloc((size_t)c->vocab_size, sizeof *in->logits);
    if (!in->weights || !in->norms || !in->guesses || !in->logits) return no_memory("what is to be shown");
    desc.max_seq_len = desc.max_batch = in->n; /* one pass */
    desc.threads.count = s->threads, desc.lora = lora;
    desc.look.on_layer = on_layer, desc.look.user = in;
    if (!succeeded(ml_session_new(in->model, &desc, &in->session, &error), &error)) return 0;
    int ok = succeeded(ml_session_eval(in->session, in->ids, in->n, NULL, &error), &error) &&
             succeeded(in->error.code, &in->error);
    ml_session_free(in->session);
    return ok;
}

/* ---- the page ---- */

/* How many bytes the UTF-8 character at s has; 0 if it is none. */
static size_t character(const unsigned char *s, size_t n) {
    size_t length = s[0] < 0x80   ? 1
                    : s[0] < 0xc2 ? 0
                    : s[0] < 0xe0 ? 2
                    : s[0] < 0xf0 ? 3
                    : s[0] < 0xf5 ? 4
                                  : 0;
    if (length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    return length;
}

/* A text in quotes for a <script>. Bytes that are no character are shown as <0xE2>. */
static void put_text(FILE *to, const char *text, size_t n) {
    const unsigned char *s = (const unsigned char *)text;
    fputc('"', to);
    for (size_t length; n; s += length, n -= length) {
        length = character(s, n);
        if (!length)
            fprintf(to, "\\u003c0x%02X>", *s), length = 1;
        else if (*s < 32 || *s == '"' || *s == '\\' || *s == '<' || *s == 127)
            fprintf(to, "\\u%04x", *s);
        else
            fwrite(s, 1, length, to);
    }
    fputc('"', to);
}

/* A token as a part of a text, or where it has no text there, as a control piece or a byte, the name of its piece;
   NULL: it has none. */
static const char *shown_piece(const ml_model *model, int32_t id, size_t *n) {
    int has_begun = 1;
    ml_piece_kind kind;
    const char *name = ml_tokenizer_piece(model->tokenizer, id, n, NULL, &kind);
    if (!name || (kind != ML_PIECE_NORMAL && kind != ML_PIECE_USER_DEFINED)) return name;
    return ml_tokenizer_decode_token(model->tokenizer, &has_begun, id, n);
}

static void put_piece(FILE *to, const ml_model *model, int32_t id) {
    size_t n = 0;
    const char *piece = shown_piece(model, id, &n);
    put_text(to, piece ? piece : "(no piece)", piece ? n : strlen("(no piece)"));
}

/* Each head's weights as two hexadecimal digits: what a token sees, token by token. */
static void put_weights(FILE *to, const inside *in) {
    size_t n = (size_t)in->n, heads = (size_t)(in->model->config.n_layers * in->model->config.n_heads);
    int full = in->model->config.mask == ML_MASK_FULL;
    fputs("weights=[", to);
    for (size_t h = 0; h < heads; h++) {
        fputc('"', to);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < (full ? n : i + 1); j++)
                fprintf(to, "%02x", (unsigned)(in->weights[(h * n + i) * n + j] * 255.0f + 0.5f));
        fputs("\",\n", to);
    }
    fputs("],", to);
}

static void put_lens(FILE *to, const inside *in) {
    const guess *g = in->guesses;
    fputs("lens=[", to);
    for (int layer = 0; layer <= in->model->config.n_layers; layer++, fputs("],\n", to)) {
        fputc('[', to);
        for (int i = 0; i < in->n; i++, fputs("],", to)) {
            fputc('[', to);
            for (int k = 0; k < in->top; k++, g++) {
                fputc('[', to);
                put_piece(to, in->model, g->id);
                fprintf(to, ",%.4g],", (double)g->p);
            }
        }
    }
    fputs("],", to);
}

static void put_norms(FILE *to, const inside *in) {
    const float *norm = in->norms;
    fputs("norms=[", to);
    for (int k = 0; k <= 2 * in->model->config.n_layers; k++, fputs("],\n", to)) {
        fputc('[', to);
        for (int i = 0; i < in->n; i++) fprintf(to, "%.5g,", (double)*norm++);
    }
    fputs("]", to);
}

static int write_page(const char *path, const inside *in, const char *model) {
    const ml_config *c = &in->model->config;
    whole_file file;
    if (!whole_file_begin(&file, path)) return 0;
    for (size_t i = 0; i < sizeof look_head / sizeof *look_head; i++) fprintf(file.to, "%s\n", look_head[i]);
    fputs("<script>const model=", file.to);
    put_text(file.to, file_name(model), strlen(file_name(model)));
    fprintf(file.to, ",nLayers=%d,nHeads=%d,full=%d,pieces=[", c->n_layers, c->n_heads,
            c->mask == ML_MASK_FULL);
    for (int i = 0; i < in->n; i++, fputc(',', file.to)) put_piece(file.to, in->model, in->ids[i]);
    fputs("],\n", file.to);
    put_weights(file.to, in);
    put_lens(file.to, in);
    put_norms(file.to, in);
    fputs(";</script>\n", file.to);
    for (size_t i = 0; i < sizeof look_body / sizeof *look_body; i++) fprintf(file.to, "%s\n", look_body[i]);
    return whole_file_end(&file);
}

/* ---- CSV ---- */

/* A piece in quotes, with a quote in it doubled; in place of a line's end a space. Bytes that are no character are
   shown as <0xE2>. */
static void put_cell(FILE *to, const ml_model *model, int32_t id) {
    size_t n = 0;
    const char *piece = shown_piece(model, id, &n);
    fputc('"', to);
    for (size_t i = 0, length; piece && i < n; i += length ? length : 1) {
        length = character((const unsigned char *)piece + i, n - i);
        if (piece[i] == '"') fputc('"', to);
        if (!length)
            fprintf(to, "<0x%02X>", (unsigned char)piece[i]);
        else if (piece[i] == '\n' || piece[i] == '\r')
            fputc(' ', to);
        else
            fwrite(piece + i, 1, length, to);
    }
    fputc('"', to);
}

static void put_attention_rows(FILE *to, const inside *in) {
    const ml_config *c = &in->model->config;
    const float *p = in->weights;
    fputs("layer,head,token,reads,weight\n", to);
    for (int layer = 0; layer < c->n_layers; layer++)
        for (int head = 0; head < c->n_heads; head++)
            for (int i = 0; i < in->n; i++)
                for (int j = 0; j < in->n; j++, p++)
                    if (c->mask == ML_MASK_FULL || j <= i)
                        fprintf(to, "%d,%d,%d,%d,%.6g\n", layer + 1, head + 1, i, j, (double)*p);
}

static void put_lens_rows(FILE *to, const inside *in) {
    const guess *g = in->guesses;
    fputs("layer,token,piece,rank,id,says,probability\n", to);
    for (int layer = 0; layer <= in->model->config.n_layers; layer++)
        for (int i = 0; i < in->n; i++)
            for (int k = 0; k < in->top; k++, g++) {
                fprintf(to, "%d,%d,", layer, i);
                put_cell(to, in->model, in->ids[i]);
                fprintf(to, ",%d,%d,", k + 1, (int)g->id);
                put_cell(to, in->model, g->id);
                fprintf(to, ",%.6g\n", (double)g->p);
            }
}

static void put_norm_rows(FILE *to, const inside *in) {
    const float *norm = in->norms;
    fputs("layer,after,token,norm\n", to);
    for (int k = 0; k <= 2 * in->model->config.n_layers; k++)
        for (int i = 0; i < in->n; i++)
            fprintf(to, "%d,%s,%d,%.6g\n", (k + 1) / 2,
                    !k      ? "embedding"
                    : k % 2 ? "attention"
                            : "ffn",
                    i, (double)*norm++);
}

/* The three tables, as PREFIX-attention.csv and so on. */
static const struct {
    const char *end;
    void (*put)(FILE *to, const inside *in);
} tables[3] = {
    {"-attention.csv", put_attention_rows}, {"-lens.csv", put_lens_rows}, {"-norms.csv", put_norm_rows}};

static int write_tables(char (*paths)[4096], const inside *in) {
    for (int i = 0; i < 3; i++) {
        whole_file file;
        if (!whole_file_begin(&file, paths[i])) return 0;
        tables[i].put(file.to, in);
        if (!whole_file_end(&file)) return 0;
    }
    return 1;
}

/* ---- the program ---- */

static ml_model *open_model(const settings *s) {
    ml_model_load_desc load = {0};
    ml_model *model = NULL;
    ml_error error;
    load.adapter = s->lora;
    load.tokenizer = s->tokenizer;
    if (!loaded(s->words[0], ml_model_load(s->words[0], &load, &model, &error), &error)) return NULL;
    if (tokenizer_ready(model, s->words[0], "--tokenizer")) return model;
    ml_model_free(model);
    return NULL;
}

/* The text's tokens, in new memory; at most as many as asked for and as the model was trained for. */
static void *read_text(const settings *s, inside *in) {
    size_t n = strlen(s->words[1]);
    int most = in->model->config.max_seq_len < s->max_tokens ? in->model->config.max_seq_len : s->max_tokens;
    void *work = malloc(ml_tokenizer_encode_size(n));
    ml_encode_desc desc = {s->words[1], n, ML_ADD_SPECIAL, work, ml_tokenizer_encode_size(n)};
    ml_tokens tokens = {NULL, 0};
    ml_error error;
    if (!work) return no_memory("the text"), NULL;
    if (!succeeded(ml_tokenizer_encode(in->model->tokenizer, &desc, &tokens, &error), &error) ||
        (!tokens.n && !complain("the text is empty"))) {
        free(work);
        return NULL;
    }
    in->ids = tokens.ids, in->n = tokens.n < most ? tokens.n : most;
    if (in->n < tokens.n)
        fprintf(stderr, "the first %d of %d tokens are shown (--max_tokens; the model's context is %d)\n",
                in->n, tokens.n, in->model->config.max_seq_len);
    return work;
}

static int show(const settings *s, char (*paths)[4096]) {
    inside in = {0};
    ml_lora *lora = NULL;
    ml_error error;
    ml_model *model = open_model(s);
    in.model = model;
    in.top = model && model->config.vocab_size < s->top ? model->config.vocab_size : s->top;
    int ok =
        model && (!s->lora || loaded(s->lora, ml_lora_load(s->lora, model, NULL, &lora, &error), &error));
    void *text = ok ? read_text(s, &in) : NULL;
    ok = text && look(&in, s, lora);
    ok = ok && (!s->out || write_page(s->out, &in, s->words[0])) && (!s->csv || write_tables(paths, &in));
    if (ok && s->out)
        printf("%d tokens, %d layers, %d heads: open %s in a browser\n", in.n, model->config.n_layers,
               model->config.n_heads, s->out);
    free(in.weights), free(in.norms), free(in.guesses), free(in.logits), free(text);
    ml_lora_free(lora);
    ml_model_free(model);
    return ok;
}

static int check_settings(const settings *s) {
    if (s->top < 1 || s->top > MAX_TOP || s->max_tokens < 1 || s->threads < 1)
        return complain("--top must be 1 to %d, --max_tokens and --threads 1 or more", (int)MAX_TOP);
    if (!*s->words[1]) return complain("the text is empty");
    return *s->out || complain("--out: the file's name is empty");
}

/* Whether all files can be written, and none is one that is read. */
static int files_ready(const settings *s, char (*paths)[4096]) {
    const used_file inputs[] = {{"MODEL", s->words[0]}, {"--tokenizer", s->tokenizer}, {"--lora", s->lora}};
    used_file outputs[4] = {{"--out", s->out}, {"--csv", NULL}, {"--csv", NULL}, {"--csv", NULL}};
    for (int i = 0; i < 3 && s->csv; i++) {
        if ((size_t)snprintf(paths[i], 4096, "%s%s", s->csv, tables[i].end) >= 4096)
            return complain("--csv: the path is too long");
        outputs[i + 1].path = paths[i];
    }
    return outputs_ready(outputs, 4, inputs, 3) && models_spared(outputs, 4, inputs, 1);
}

int main(int argc, char **argv) {
    static char paths[3][4096];
    settings s = {{NULL, NULL}, "look.html", NULL, NULL, NULL, 5, 128, 1, 0};
    s.threads = default_threads();
    const option options[] = {
        {"--out", OPTION_TEXT, &s.out, "the page (default look.html)"},
        {"--csv", OPTION_TEXT, &s.csv, "also PREFIX-attention.csv, PREFIX-lens.csv and PREFIX-norms.csv"},
        {"--top", OPTION_INT, &s.top, "how many guesses of the logit lens (default 5)"},
        {"--max_tokens", OPTION_INT, &s.max_tokens, "of the text (default 128)"},
        {"--lora", OPTION_TEXT, &s.lora, "an adapter over the model"},
        {"--tokenizer", OPTION_TEXT, &s.tokenizer, "its file (default: in the model, or next to it)"},
        {"--threads", OPTION_INT, &s.threads, "default: all processors"},
        {"--help", OPTION_FLAG, &s.help, "this list"}};
    int n_options = (int)(sizeof options / sizeof *options);
    if (!options_read(argc, argv, options, n_options, s.words, 2)) return 2;
    if (s.help || !s.words[1]) {
        fputs(usage, s.help ? stdout : stderr);
        options_print(s.help ? stdout : stderr, options, n_options);
        return s.help ? 0 : 2;
    }
    if (!check_settings(&s)) return 2;
    return !(files_ready(&s, paths) && show(&s, paths) && output_written());
}
