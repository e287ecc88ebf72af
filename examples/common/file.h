/* Whole files: read at once, tried before the work that makes them, and written so that they appear whole or not at
   all. */
#ifndef FILE_H
#define FILE_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "memory.h"
#include "report.h"
#include "system.h"

/* All bytes of a file or pipe in new memory, followed by a zero byte; *n (may be NULL) is how many. NULL after saying
   why it cannot be read. */
static inline char *file_read(const char *path, size_t *n) {
    FILE *file = system_open(path, "rb");
    char *data = NULL, *room = NULL;
    size_t size = 0, capacity = 0, got = 1;
    while (file && got && (room = (char *)grow(data, size + 65537, &capacity, 1)) != NULL) {
        data = room;
        errno = 0;
        got = fread(data + size, 1, capacity - size - 1, file);
        size += got;
    }
    int is_read = file && room && !ferror(file), why = file && !room ? ENOMEM : errno;
    if (file) fclose(file);
    if (!is_read) {
        free(data);
        complain("%s: %s", path, strerror(why));
        return NULL;
    }
    data[size] = 0;
    if (n) *n = size;
    return data;
}

/* FNV-1a (Fowler, Noll and Vo 1991), to tell whether something is as it was: the hash so far, starting from HASH_START,
   with one more byte, or number. */
#define HASH_START 0xcbf29ce484222325u
static inline uint64_t hash_next(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3u; }

/* Of a file's bytes; HASH_START for one that cannot be read. */
static inline uint64_t file_hash(const char *path) {
    unsigned char block[16384];
    FILE *file = system_open(path, "rb");
    uint64_t hash = HASH_START;
    for (size_t got; file && (got = fread(block, 1, sizeof block, file)) > 0;)
        for (size_t i = 0; i < got; i++) hash = hash_next(hash, block[i]);
    if (file) fclose(file);
    return hash;
}

/* What a file is that is no text, by its first bytes or its zeros; NULL: it may be one. */
static inline const char *kind_of_no_text(const char *data, size_t size) {
    static const struct {
        const char *begin, *kind;
    } kinds[] = {{"\xff\xfe", "the text is UTF-16: save it as UTF-8"},
                 {"\xfe\xff", "the text is UTF-16: save it as UTF-8"},
                 {"PAR1", "no text, but a Parquet table"},
                 {"\x1f\x8b", "no text: it is compressed with gzip"},
                 {"\x28\xb5\x2f\xfd", "no text: it is compressed with zstd"},
                 {"PK\3\4", "no text, but a zip archive"},
                 {"\x93NUMPY", "no text, but a NumPy array"}};
    size_t n_zeros = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (size >= strlen(kinds[i].begin) && memcmp(data, kinds[i].begin, strlen(kinds[i].begin)) == 0)
            return kinds[i].kind;
    for (size_t i = 0; i < size; i++) n_zeros += !data[i];
    return n_zeros > 20 + size / 100 ? "no text: more than one byte in a hundred is zero" : NULL;
}

/* The same for a text: without the byte order mark that Windows puts in front, and each CR LF or CR is one LF, as in
   Python's universal newlines. What is no text in UTF-8 is refused. */
static inline char *text_file_read(const char *path, size_t *n) {
    size_t size, from = 0, to = 0;
    char *text = file_read(path, &size);
    if (!text) return NULL;
    const char *kind = kind_of_no_text(text, size);
    if (kind) {
        free(text);
        complain("%s: %s", path, kind);
        return NULL;
    }
    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) from = 3;
    while (from < size) {
        char c = text[from++];
        if (c == '\r' && text[from] == '\n') from++;
        text[to++] = c == '\r' ? '\n' : c;
    }
    text[to] = 0;
    if (n) *n = to;
    return text;
}

/* The files that are renamed to PATH when they are complete: PATH.tmp or, where that is there already, PATH.1.tmp and
   so on, since another program may be writing it. ml_model_save has the same names. */
enum { N_TEMPORARIES = 100, TEMPORARY_SIZE = 4096 + sizeof ".99.tmp" };

static inline int temporary_name(const char *path, int i, char name[TEMPORARY_SIZE]) {
    int n = i ? snprintf(name, TEMPORARY_SIZE, "%s.%d.tmp", path, i)
              : snprintf(name, TEMPORARY_SIZE, "%s.tmp", path);
    if (n < TEMPORARY_SIZE) return 1;
    errno = ENAMETOOLONG;
    return 0;
}

/* Removes what an interrupted program left: after a day, since a table may get its next line only after hours. */
static inline int temporary_remove_left(const char *path) {
    system_file about;
    return system_look(path, &about) && about.is_regular && about.idle > 24 * 3600 &&
           system_remove(path) == 0;
}

/* Creates the first of them that is not there. */
static inline FILE *temporary_create(const char *path, char name[TEMPORARY_SIZE]) {
    char next[TEMPORARY_SIZE];
    FILE *file = NULL;
    int i = 0;
    errno = EEXIST;
    for (; i < N_TEMPORARIES && !file && errno == EEXIST; i++) {
        if (!temporary_name(path, i, name)) break;
        temporary_remove_left(name);
        file = system_create(name, path);
    }
    while (file && i < N_TEMPORARIES && temporary_name(path, i, next) && temporary_remove_left(next)) i++;
    return file;
}

/* A file being written: under a temporary name, and renamed at the end, so that a full disk leaves the old file
   unchanged. What is not a regular file (a pipe, /dev/stdout) is written to directly. */
typedef struct whole_file {
    FILE *to;
    const char *path;
    char replaced[4096];            /* the path, or the file that it leads to as a link */
    char temporary[TEMPORARY_SIZE]; /* empty: written to directly */
} whole_file;

static inline int whole_file_failed(const char *path) {
    return complain("%s cannot be written: %s", path, strerror(errno));
}

/* Has everything that was printed been written? */
static inline int output_written(void) {
    int is_flushed = fflush(stdout) == 0;
    if (is_flushed && !ferror(stdout)) return 1;
    if (is_flushed) errno = EIO; /* an earlier write failed, and other calls have set errno since */
    return whole_file_failed("standard output");
}

static inline int whole_file_begin(whole_file *file, const char *path) {
    system_file about;
    int is_direct = system_look(path, &about) && !about.is_regular && !about.is_folder;
    file->path = path;
    file->temporary[0] = 0;
    file->to = NULL;
    if (is_direct)
        file->to = system_open(path, "wb");
    else if (system_follow(path, file->replaced))
        file->to = temporary_create(file->replaced, file->temporary);
    return file->to || whole_file_failed(path);
}

static inline int whole_file_end(whole_file *file) {
    int why = 0;
    if (ferror(file->to) || fflush(file->to) != 0) why = errno ? errno : EIO;
    /* some file systems cannot sync */
    if (!why && *file->temporary && system_sync(file->to) != 0 && errno != EINVAL && errno != ENOSYS)
        why = errno;
    if (fclose(file->to) != 0 && !why) why = errno;
    if (!why && *file->temporary && system_rename(file->temporary, file->replaced) != 0) why = errno;
    if (!why) return 1;
    if (*file->temporary) system_remove(file->temporary);
    errno = why;
    return whole_file_failed(file->path);
}

/* Leaves the old file. */
static inline void whole_file_drop(whole_file *file) {
    fclose(file->to);
    if (*file->temporary) system_remove(file->temporary);
}

/* Why a line of the file that is called `name` was not read; 0. */
static inline int line_failed(const char *name, const char *why, ml_error *error) {
    snprintf(error->text, sizeof error->text, "%s cannot be read: %s", name, why);
    error->code = ML_ERROR_FILE;
    return 0;
}

/* The next line without its end, which is LF, CR LF or CR. Into a buffer that is still empty a file's first line is read,
   and so without the byte order mark that Windows puts in front. 0 at the end of the file, and with an error if that is
   not why. */
static inline int line_read(FILE *file, const char *name, buffer *line, ml_error *error) {
    static const char mark[] = "\xef\xbb\xbf";
    int c, is_first = !line->bytes;
    line->length = 0;
    while ((c = getc(file)) != EOF && c != '\n' && c != '\r') {
        char byte = (char)c;
        if (!c) return line_failed(name, "a zero byte: this is no text, or UTF-16", error);
        if (!buffer_append(line, &byte, 1)) return line_failed(name, strerror(ENOMEM), error);
    }
    if (c == EOF && ferror(file)) return line_failed(name, strerror(errno), error);
    if (c == EOF && !line->length) return 0;
    if (c == '\r' && (c = getc(file)) != '\n' && c != EOF) ungetc(c, file);
    if (!buffer_append(line, "", 0)) return line_failed(name, strerror(ENOMEM), error);
    if (is_first && strncmp(line->bytes, mark, 3) == 0)
        memmove(line->bytes, line->bytes + 3, (line->length -= 3) + 1);
    return 1;
}

/* How many bytes of a text can be encoded in `work_size` bytes: all, or those before a character that has no room. */
static inline size_t bytes_with_room(const char *text, size_t work_size) {
    size_t n = strlen(text);
    int is_cut = 0;
    while (n && ml_tokenizer_encode_size(n) > work_size) n--, is_cut = 1;
    for (int i = 0; is_cut && i < 3 && n && ((unsigned char)text[n] & 0xc0) == 0x80; i++) n--;
    return n;
}

/* n bytes as a whole file. */
static inline int file_write(const char *path, const void *data, size_t n) {
    whole_file file;
    if (!whole_file_begin(&file, path)) return 0;
    fwrite(data, 1, n, file.to); /* a failure shows at the end */
    return whole_file_end(&file);
}

static inline int ends_with(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The format that a name's ending selects for a model or adapter: .pt, .safetensors, else GGUF. */
static inline ml_format format_of(const char *path) {
    return ends_with(path, ".pt") ? ML_PYTORCH : ends_with(path, ".safetensors") ? ML_SAFETENSORS : ML_GGUF;
}

/* ---- before the work ---- */

/* A file that a program reads or writes, and the option that names it. path NULL: none. */
typedef struct used_file {
    const char *option, *path;
} used_file;

/* The part of a path after its last slash. */
static inline const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* What is known of the folder that a path is in. */
static inline int look_at_folder(const char *path, system_file *about) {
    char parent[4096];
    size_t n = (size_t)(file_name(path) - path);
    if (n + 2 > sizeof parent) return 0;
    memcpy(parent, path, n);
    strcpy(parent + n, ".");
    return system_look(parent, about);
}

/* Do two paths lead to one regular file? Of files that do not exist yet, folders and names are compared. */
static inline int same_file(const char *a, const char *b) {
    system_file x, y;
    int a_is_there = system_look(a, &x), b_is_there = system_look(b, &y);
    if (a_is_there != b_is_there) return 0;
    if (a_is_there) return x.device == y.device && x.number == y.number && x.is_regular;
    if (strcmp(file_name(a), file_name(b)) != 0) return 0;
    if (!look_at_folder(a, &x) || !look_at_folder(b, &y)) return strcmp(a, b) == 0;
    return x.device == y.device && x.number == y.number;
}

/* The library saves by replacing files only: no device and no pipe. path NULL: nothing is saved. */
static inline int file_can_be_saved(const char *path) {
    system_file about;
    if (!path || !system_look(path, &about) || about.is_regular || about.is_folder) return 1;
    return complain("%s cannot be written: it is not a regular file", path);
}

/* Can a whole_file be written there? Leaves an existing file as it is, and no new one. */
static inline int file_can_be_written(const char *path) {
    system_file about;
    char followed[4096], temporary[TEMPORARY_SIZE];
    int is_there = system_look(path, &about);
    errno = !*path ? ENOENT : is_there && about.is_folder ? EISDIR : 0;
    if (errno || (is_there && !system_may_write(path))) return whole_file_failed(path);
    if (is_there && !about.is_regular) return 1;
    FILE *file = system_follow(path, followed) ? temporary_create(followed, temporary) : NULL;
    if (!file) return whole_file_failed(path);
    fclose(file);
    system_remove(temporary);
    return 1;
}

/* Would a whole_file at this path write to the other one? */
static inline int would_write_to(const char *path, const char *other) {
    char followed[4096], temporary[TEMPORARY_SIZE];
    const int n = ends_with(other, ".tmp") ? N_TEMPORARIES : 1; /* to the first, a link may lead */
    if (same_file(path, other)) return 1;
    if (!system_follow(path, followed)) return 0; /* it cannot be written */
    for (int i = 0; i < n; i++)
        if (temporary_name(followed, i, temporary) && same_file(temporary, other)) return 1;
    return 0;
}

/* Refuses an output that is also read, or one of whose temporary names is. */
static inline int spares_inputs(const used_file *output, const used_file *inputs, int n_inputs) {
    for (int i = 0; i < n_inputs; i++)
        if (inputs[i].path && would_write_to(output->path, inputs[i].path))
            return complain("%s: %s is also read (%s), and would be lost", output->option, output->path,
                            inputs[i].option);
    return 1;
}

/* Tries what a program will write, so that a long run does not fail at its end: no output may be an input or another
   output, and each can be written. */
static inline int outputs_ready(const used_file *outputs, int n_outputs, const used_file *inputs,
                                int n_inputs) {
    for (int i = 0; i < n_outputs; i++) {
        if (!outputs[i].path) continue;
        if (!spares_inputs(&outputs[i], inputs, n_inputs)) return 0;
        for (int j = 0; j < i; j++)
            if (outputs[j].path && (would_write_to(outputs[i].path, outputs[j].path) ||
                                    would_write_to(outputs[j].path, outputs[i].path)))
                return complain("%s and %s are the same file, %s", outputs[j].option, outputs[i].option,
                                outputs[i].path);
    }
    for (int i = 0; i < n_outputs; i++)
        if (outputs[i].path && !file_can_be_written(outputs[i].path)) return 0;
    return 1;
}

/* ---- the files of a model ---- */

/* Whether the format that a path names has room for a model and a classifier on top, which reads what `pooling` says.
   Said before the training, as the library would only after it. */
static inline int fits_format(const char *path, const ml_model *model, ml_pooling pooling, int is_adapter) {
    const ml_config *c = &model->config;
    const ml_format format = format_of(path);
    int is_plain = c->rope_kind == ML_ROPE_PLAIN && c->rope_theta == 10000 && c->rope_scale == 1 &&
                   c->rope_attention == 1 && !model->rope_factors;
    int has_json = !model->rope_factors && (c->rope_attention == 1 || c->rope_kind == ML_ROPE_YARN) &&
                   (c->rope_kind != ML_ROPE_DYNAMIC || c->rope_original == c->max_seq_len) &&
                   !(c->window && c->attention_bias);
    if (format == ML_SAFETENSORS && !has_json && !is_adapter)
        return complain("%s: a config.json has no place for such rotary positions, or a window together with "
                        "biases of attention; name a .gguf",
                        path);
    if (format != ML_PYTORCH) return 1;
    if (pooling != ML_POOL_LAST)
        return complain("%s: a PyTorch file is for the course's code, which reads the last position: name a "
                        ".gguf, or choose --pooling last",
                        path);
    if (is_plain && c->tied_output && !c->window && !c->attention_bias && c->head_dim * c->n_heads == c->dim)
        return 1;
    return complain(
        "%s: a PyTorch file is for models with a tied output, plain rotary positions, no window, and "
        "attention without biases and a head_dim of its own; name a .gguf",
        path);
}

/* The file that the library writes next to a safetensors; NULL for another format, or without a path. */
static inline const char *config_beside(const char *output, int is_adapter, char path[4096]) {
    if (!output || format_of(output) != ML_SAFETENSORS) return NULL;
    snprintf(path, 4096, "%.*s%s", (int)(file_name(output) - output), output,
             is_adapter ? "adapter_config.json" : "config.json");
    return path;
}

/* Is that file not another model's, which would then be read with this one's? It is this one's where `output` is there. */
static inline int config_spared(const used_file *output, const char *config) {
    FILE *there = config ? system_open(config, "rb") : NULL;
    FILE *own = there ? system_open(output->path, "rb") : NULL;
    int is_spared = !there || own;
    if (there) fclose(there);
    if (own) fclose(own);
    return is_spared || complain("%s: %s would be lost, which is not of %s: name a file in another folder",
                                 output->option, config, output->path);
}

/* Does a folder stand for the one .gguf in it? */
static inline int is_folder_of_gguf(const char *path) {
    ml_archive *archive = NULL;
    int is_gguf =
        ml_archive_load(path, NULL, &archive, NULL) == ML_OK && strcmp(archive->format, "GGUF") == 0;
    ml_archive_free(archive);
    return is_gguf;
}

/* Is a file of this name, in the folder of a model, read with it? A folder or an index stands for several files. */
static inline int is_read_with_model(const char *name, const char *model, int is_folder) {
    static const char *const names[] = {"tokenizer.model",
                                        "tokenizer.bin",
                                        "tokenizer.json",
                                        "params.json",
                                        "config.json",
                                        "adapter_config.json",
                                        "model.safetensors",
                                        "pytorch_model.bin",
                                        "model.safetensors.index.json",
                                        "pytorch_model.bin.index.json",
                                        "consolidated.00.pth",
                                        "adapter_model.safetensors",
                                        "adapter_model.bin"};
    int is_set = is_folder || ends_with(model, ".index.json") || strstr(file_name(model), "-of-");
    int has_config = ends_with(model, ".safetensors") || ends_with(model, ".bin");
    size_t n = is_set ? sizeof names / sizeof *names : has_config ? 6 : 4;
    for (size_t i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return 1;
    if (is_folder && ends_with(name, ".gguf")) return is_folder_of_gguf(model);
    return is_set && strstr(name, "-of-") != NULL;
}

/* The directory that a model's path is, or that it is in, with a slash at its end. Returns whether the path is it. */
static inline int model_folder(const char *model, char directory[4096]) {
    system_file about;
    int is_folder = system_look(model, &about) && about.is_folder;
    int n = (int)(is_folder ? strlen(model) : (size_t)(file_name(model) - model));
    snprintf(directory, 4096, "%.*s%s", n, model, is_folder ? "/" : n ? "" : "./");
    return is_folder;
}

/* An output beside a model's files. */
typedef struct beside_model {
    const char *output, *model;
    int is_folder; /* the model's path is one */
    char directory[4096];
} beside_model;

static inline int spares_beside(void *user, const char *name) {
    const beside_model *b = (const beside_model *)user;
    char path[4096 + 256 + 2];
    snprintf(path, sizeof path, "%s%.256s", b->directory, name);
    return !is_read_with_model(name, b->model, b->is_folder) || !would_write_to(b->output, path);
}

/* Refuses an output that is one of the files that a model's or adapter's path stands for, or that is read beside
   them: a configuration, a tokenizer. */
static inline int spares_model(const used_file *output, const used_file *model) {
    beside_model b = {output->path, model->path, 0, ""};
    if (!output->path || !model->path) return 1;
    b.is_folder = model_folder(model->path, b.directory);
    return system_list(b.directory, spares_beside, &b) ||
           complain("%s: %s is also read (next to %s), and would be lost", output->option, output->path,
                    model->option);
}

static inline int models_spared(const used_file *outputs, int n_outputs, const used_file *models,
                                int n_models) {
    for (int i = 0; i < n_outputs; i++)
        for (int k = 0; k < n_models; k++)
            if (!spares_model(&outputs[i], &models[k])) return 0;
    return 1;
}

/* Tries what a program saves at its end that writes GGUF only. The first of the inputs is its model. */
static inline int gguf_ready(const used_file *output, const used_file *inputs, int n_inputs) {
    if (format_of(output->path) != ML_GGUF)
        return complain("%s: %s will be a GGUF: call it .gguf", output->option, output->path);
    return outputs_ready(output, 1, inputs, n_inputs) && models_spared(output, 1, inputs, 1) &&
           file_can_be_saved(output->path);
}

/* Why a model came without a tokenizer, if there is a file of one: 1, and the reason is in `error`. */
static inline int has_other_tokenizer(const char *model, ml_error *error) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.model", "tokenizer.bin"};
    char directory[4096], path[4096 + 32];
    int is_folder = model_folder(model, directory);
    for (int i = is_folder ? 1 : 0; i < 4; i++) {
        ml_tokenizer *tokenizer = NULL;
        snprintf(path, sizeof path, "%s%s", i ? directory : model, i ? names[i - 1] : "");
        ml_result result = ml_tokenizer_load(path, NULL, &tokenizer, error);
        if (!result && i)
            snprintf(error->text, sizeof error->text, "%.200s: its %d pieces are not those of the model",
                     path, tokenizer->n_pieces);
        ml_tokenizer_free(tokenizer);
        if (result == ML_ERROR_UNSUPPORTED || (i && result != ML_ERROR_FILE)) return 1;
    }
    return 0;
}

/* Whether a model came with a tokenizer from `path`; if not, `error` says why: the file of one that cannot be read, or
   that there is none. */
static inline int has_tokenizer(const ml_model *model, const char *path, ml_error *error) {
    if (model->tokenizer) return 1;
    if (!has_other_tokenizer(path, error))
        snprintf(error->text, sizeof error->text, "no tokenizer in or next to %.200s", path);
    error->code = ML_ERROR_UNSUPPORTED;
    return 0;
}

/* The same in a program whose flag names a tokenizer. */
static inline int tokenizer_ready(const ml_model *model, const char *path, const char *flag) {
    ml_error error;
    return has_tokenizer(model, path, &error) || complain("%s (%s FILE)", error.text, flag);
}

#endif
