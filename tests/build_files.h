/* Small model files of every format, built in memory: what test_archive.c reads and test_hostile.c damages. */
#ifndef BUILD_FILES_H
#define BUILD_FILES_H

#include "preamble.h"

/* ---- bytes that grow ---- */

typedef struct bytes {
    unsigned char *data;
    size_t size, capacity;
} bytes;

static void put(bytes *b, const void *data, size_t n) {
    if (n > b->capacity - b->size) {
        b->capacity = (b->size + n) * 2 + 64;
        b->data = (unsigned char *)realloc(b->data, b->capacity);
        if (!b->data) exit(2);
    }
    if (n) memcpy(b->data + b->size, data, n);
    b->size += n;
}

/* Text with zeros in it; without the one at its end. */
#define put_literal(b, literal) put(b, literal, sizeof(literal) - 1)

static void put_text(bytes *b, const char *text) { put(b, text, strlen(text)); }

static void put_uint(bytes *b, uint64_t value, int n_bytes) {
    unsigned char raw[8];
    for (int i = 0; i < n_bytes; i++) raw[i] = (unsigned char)(value >> (8 * i));
    put(b, raw, (size_t)n_bytes);
}

static void put_u8(bytes *b, unsigned value) { put_uint(b, value, 1); }
static void put_u16(bytes *b, unsigned value) { put_uint(b, value, 2); }
static void put_u32(bytes *b, uint64_t value) { put_uint(b, value, 4); }
static void put_u64(bytes *b, uint64_t value) { put_uint(b, value, 8); }

static void put_f32(bytes *b, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_u32(b, bits);
}

static void set_f32(unsigned char *to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    for (int i = 0; i < 4; i++) to[i] = (unsigned char)(bits >> 8 * i);
}

static float get_f32(const unsigned char *from) {
    uint32_t bits = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Whether these n floats are there, in a file. */
static int are_floats(const void *in_file, const float *x, size_t n) {
    size_t i = 0;
    while (i < n && get_f32((const unsigned char *)in_file + 4 * i) == x[i]) i++;
    return i == n;
}

/* Whether floats in memory are as in files, and so are used in place. */
static int is_little_endian(void) {
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 1;
}

/* n numbers of `size` bytes from memory. */
static void put_numbers(bytes *b, const void *numbers, size_t n, size_t size) {
    const unsigned char *p = (const unsigned char *)numbers;
    for (size_t i = 0; i < n * size; i++)
        put_u8(b, p[is_little_endian() ? i : i / size * size + size - 1 - i % size]);
}

/* n floats: first, first + 1, ... */
static void put_floats(bytes *b, float first, size_t n) {
    for (size_t i = 0; i < n; i++) put_f32(b, first + (float)i);
}

static void free_bytes(bytes *b) {
    free(b->data);
    memset(b, 0, sizeof *b);
}

/* ---- zip, stored ---- */

typedef struct zip {
    bytes file, directory;
    size_t n;
} zip;

/* What may be wrong with an entry; all 0 for a good one. */
typedef struct zip_twist {
    unsigned method, flags;
    int64_t add_size, add_offset; /* to what the directory says */
    int use_zip64;                /* the sizes are in the extra field */
} zip_twist;

static void zip_add_twisted(zip *z, const char *name, const void *data, size_t n, zip_twist twist) {
    size_t offset = z->file.size, length = strlen(name);
    uint64_t size = n + (uint64_t)twist.add_size, at = offset + (uint64_t)twist.add_offset;
    put_u32(&z->file, 0x04034b50);
    put_u16(&z->file, 45);
    put_u16(&z->file, twist.flags);
    put_u16(&z->file, twist.method);
    put_u32(&z->file, 0); /* time */
    put_u32(&z->file, 0); /* checksum: not looked at */
    put_u32(&z->file, n);
    put_u32(&z->file, n);
    put_u16(&z->file, (unsigned)length);
    put_u16(&z->file, 5); /* an extra field that the directory does not repeat */
    put_text(&z->file, name);
    put(&z->file, "FB\1\0Z", 5);
    put(&z->file, data, n);

    put_u32(&z->directory, 0x02014b50);
    put_u32(&z->directory, 45 | 45u << 16);
    put_u16(&z->directory, twist.flags);
    put_u16(&z->directory, twist.method);
    put_u64(&z->directory, 0); /* time, checksum */
    put_u32(&z->directory, twist.use_zip64 ? 0xffffffffu : size);
    put_u32(&z->directory, twist.use_zip64 ? 0xffffffffu : size);
    put_u16(&z->directory, (unsigned)length);
    put_u16(&z->directory, twist.use_zip64 ? 4 + 5 + 28 : 0);
    put_u16(&z->directory, 0);
    put_u64(&z->directory, 0); /* disk, attributes */
    put_u32(&z->directory, twist.use_zip64 ? 0xffffffffu : at);
    put_text(&z->directory, name);
    if (twist.use_zip64) {
        put(&z->directory, "\x99\x99\5\0other", 9); /* first a field of another program */
        put_u32(&z->directory, 1 | 24u << 16);
        put_u64(&z->directory, size);
        put_u64(&z->directory, size);
        put_u64(&z->directory, at);
    }
    z->n++;
}

static void zip_add(zip *z, const char *name, const void *data, size_t n) {
    zip_twist none;
    memset(&none, 0, sizeof none);
    zip_add_twisted(z, name, data, n, none);
}

/* Directory and end record; with use_zip64 the record of 64 bits too, and the old one only refers to it. */
static bytes zip_end(zip *z, int use_zip64, const char *comment) {
    size_t begin = z->file.size;
    put(&z->file, z->directory.data, z->directory.size);
    size_t end64 = z->file.size;
    if (use_zip64) {
        put_u32(&z->file, 0x06064b50);
        put_u64(&z->file, 44);
        put_u32(&z->file, 45 | 45u << 16);
        put_u64(&z->file, 0); /* disks */
        put_u64(&z->file, z->n);
        put_u64(&z->file, z->n);
        put_u64(&z->file, z->directory.size);
        put_u64(&z->file, begin);
        put_u32(&z->file, 0x07064b50);
        put_u32(&z->file, 0);
        put_u64(&z->file, end64);
        put_u32(&z->file, 1);
    }
    put_u32(&z->file, 0x06054b50);
    put_u32(&z->file, 0);
    put_u16(&z->file, use_zip64 ? 0xffff : (unsigned)z->n);
    put_u16(&z->file, use_zip64 ? 0xffff : (unsigned)z->n);
    put_u32(&z->file, use_zip64 ? 0xffffffffu : z->directory.size);
    put_u32(&z->file, use_zip64 ? 0xffffffffu : begin);
    put_u16(&z->file, (unsigned)strlen(comment));
    put_text(&z->file, comment);
    free_bytes(&z->directory);
    return z->file;
}

/* ---- pickle ---- */

static void pk_begin(bytes *b) { put(b, "\x80\x02", 2); }

static void pk_text(bytes *b, const char *text) {
    put_u8(b, 'X');
    put_u32(b, strlen(text));
    put_text(b, text);
}

static void pk_int(bytes *b, int64_t value) {
    if (value >= 0 && value < 256) {
        put_u8(b, 'K');
        put_uint(b, (uint64_t)value, 1);
    } else if (value >= -0x7fffffff && value <= 0x7fffffff) {
        put_u8(b, 'J');
        put_u32(b, (uint64_t)value & 0xffffffffu);
    } else {
        put(b, "\x8a\x08", 2);
        put_u64(b, (uint64_t)value);
    }
}

static void pk_ints(bytes *b, const int64_t *values, int n) {
    put_u8(b, '(');
    for (int i = 0; i < n; i++) pk_int(b, values[i]);
    put_u8(b, 't');
}

static void pk_global(bytes *b, const char *module, const char *name) {
    put_u8(b, 'c');
    put_text(b, module);
    put_u8(b, '\n');
    put_text(b, name);
    put_u8(b, '\n');
}

typedef struct pk_tensor_desc {
    const char *storage, *key; /* "FloatStorage", "0" */
    int64_t n_storage, offset;
    int n_dims;
    int64_t shape[10], stride[10];
} pk_tensor_desc;

/* torch._utils._rebuild_tensor_v2(persistent ("storage", ...), offset, shape, stride, False, OrderedDict()) */
static void pk_tensor(bytes *b, const pk_tensor_desc *t) {
    pk_global(b, "torch._utils", "_rebuild_tensor_v2");
    put_text(b, "((");
    pk_text(b, "storage");
    pk_global(b, "torch", t->storage);
    pk_text(b, t->key);
    pk_text(b, "cpu");
    pk_int(b, t->n_storage);
    put_text(b, "tQ");
    pk_int(b, t->offset);
    pk_ints(b, t->shape, t->n_dims);
    pk_ints(b, t->stride, t->n_dims);
    put_u8(b, 0x89);
    pk_global(b, "collections", "OrderedDict");
    put_text(b, ")RtR");
}

/* A matrix of floats of storage `key`, row by row. */
static void pk_matrix(bytes *b, const char *key, int64_t rows, int64_t cols) {
    pk_tensor_desc t;
    memset(&t, 0, sizeof t);
    t.storage = "FloatStorage";
    t.key = key;
    t.n_storage = rows * cols;
    t.n_dims = 2;
    t.shape[0] = rows;
    t.shape[1] = t.stride[0] = cols;
    t.stride[1] = 1;
    pk_tensor(b, &t);
}

/* The .pt file of a pickle and a storage "0" of n floats 0, 1, 2, ... */
static bytes pt_file(const bytes *pickle, size_t n) {
    zip z;
    bytes floats;
    memset(&z, 0, sizeof z);
    memset(&floats, 0, sizeof floats);
    put_floats(&floats, 0, n);
    zip_add(&z, "small/data.pkl", pickle->data, pickle->size);
    zip_add(&z, "small/byteorder", "little", 6);
    zip_add(&z, "small/data/0", floats.data, floats.size);
    free_bytes(&floats);
    bytes file = zip_end(&z, 0, "");
    return file;
}

/* "model": OrderedDict(), whose items follow up to a "u". */
static void pk_model_begin(bytes *b) {
    pk_text(b, "model");
    pk_global(b, "collections", "OrderedDict");
    put_text(b, ")R(");
}

/* {"model": OrderedDict(w=(2, 3) floats 0..5, t=its transpose, last=[5.]), "args": {"dim": 3, "lr": 0.5, "ok": True,
   "name": "tiny", "list": [7, None, -1]}} */
static void pk_small(bytes *b) {
    pk_tensor_desc t;
    memset(&t, 0, sizeof t);
    pk_begin(b);
    put_text(b, "}q");
    put_u8(b, 0);
    put_u8(b, '(');
    pk_model_begin(b);
    pk_text(b, "w");
    pk_matrix(b, "0", 2, 3);
    put(b, "q\1", 2);
    pk_text(b, "t");
    t.storage = "FloatStorage";
    t.key = "0";
    t.n_storage = 6;
    t.n_dims = 2;
    t.shape[0] = 3, t.shape[1] = 2;
    t.stride[0] = 1, t.stride[1] = 3;
    pk_tensor(b, &t);
    pk_text(b, "last");
    t.offset = 5;
    t.n_dims = 1;
    t.shape[0] = 1;
    pk_tensor(b, &t);
    pk_text(b, "again");
    put(b, "h\1", 2);
    put_text(b, "u}");
    pk_text(b, "_metadata");
    pk_int(b, 1);
    put_text(b, "sb");
    pk_text(b, "args");
    put_text(b, "}(");
    pk_text(b, "dim");
    pk_int(b, 3);
    pk_text(b, "lr");
    put(b, "G\x3f\xe0\0\0\0\0\0\0", 9);
    pk_text(b, "ok");
    put_u8(b, 0x88);
    pk_text(b, "name");
    pk_text(b, "tiny");
    pk_text(b, "list");
    put_text(b, "](");
    pk_int(b, 7);
    put_u8(b, 'N');
    pk_int(b, -1);
    put_text(b, "eu");
    put_text(b, "u.");
}

static bytes small_pt(void) {
    bytes pickle;
    memset(&pickle, 0, sizeof pickle);
    pk_small(&pickle);
    bytes file = pt_file(&pickle, 6);
    free_bytes(&pickle);
    return file;
}

/* The older format of torch.save: the pickle, and a storage "0" of n floats 0, 1, 2, ... */
static bytes legacy_file(const bytes *pickle, size_t n) {
    bytes b;
    memset(&b, 0, sizeof b);
    put_literal(&b, "\x80\2\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19."); /* 0x1950a86a20f9469cfc6c */
    put_literal(&b, "\x80\2M\xe9\3.");                              /* 1001 */
    put_literal(&b, "\x80\2}(");
    pk_text(&b, "protocol_version"), pk_int(&b, 1001);
    pk_text(&b, "little_endian"), put_u8(&b, 0x88);
    put_literal(&b, "u.");
    put(&b, pickle->data, pickle->size);
    put_literal(&b, "\x80\2]");
    pk_text(&b, "0");
    put_literal(&b, "a.");
    put_u64(&b, n);
    put_floats(&b, 0, n);
    return b;
}

static bytes small_legacy(void) {
    bytes pickle;
    memset(&pickle, 0, sizeof pickle);
    pk_small(&pickle);
    bytes file = legacy_file(&pickle, 6);
    free_bytes(&pickle);
    return file;
}

/* ---- GGUF ---- */

static void gguf_begin(bytes *b, unsigned version, uint64_t n_tensors, uint64_t n_pairs) {
    put_text(b, "GGUF");
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_pairs);
}

static void gguf_text(bytes *b, const char *text) {
    put_u64(b, strlen(text));
    put_text(b, text);
}

static void gguf_key(bytes *b, const char *key, unsigned type) {
    gguf_text(b, key);
    put_u32(b, type);
}

/* shape outermost first, as the archive shows it */
static void gguf_tensor(bytes *b, const char *name, int n_dims, uint64_t rows, uint64_t cols, unsigned type,
                        uint64_t offset) {
    gguf_text(b, name);
    put_u32(b, (unsigned)n_dims);
    if (n_dims > 0) put_u64(b, cols);
    if (n_dims > 1) put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

static void gguf_pad(bytes *b, size_t alignment) {
    while (b->size % alignment) put_u8(b, 0);
}

/* A value of every kind; tensors a (2, 3) of floats 10..15 and q (1, 32), Q8_0 with scale 0.5 and -16..15. */
static bytes small_gguf(void) {
    bytes b;
    memset(&b, 0, sizeof b);
    gguf_begin(&b, 3, 2, 16);
    gguf_key(&b, "general.architecture", 8), gguf_text(&b, "llama");
    gguf_key(&b, "general.alignment", 4), put_u32(&b, 16);
    gguf_key(&b, "u8", 0), put_u8(&b, 200);
    gguf_key(&b, "i8", 1), put_u8(&b, 200);
    gguf_key(&b, "u16", 2), put_u16(&b, 40000);
    gguf_key(&b, "i16", 3), put_u16(&b, 40000);
    gguf_key(&b, "u32", 4), put_u32(&b, 4000000000u);
    gguf_key(&b, "i32", 5), put_u32(&b, 4000000000u);
    gguf_key(&b, "f32", 6), put_f32(&b, 0.25f);
    gguf_key(&b, "bool", 7), put_u8(&b, 1);
    gguf_key(&b, "u64", 10), put_u64(&b, UINT64_MAX);
    gguf_key(&b, "i64", 11), put_u64(&b, UINT64_MAX - 1);
    gguf_key(&b, "f64", 12), put_u64(&b, 0xc004000000000000u); /* -2.5 */
    gguf_key(&b, "ints", 9), put_u32(&b, 5), put_u64(&b, 3), put_u32(&b, 7), put_u32(&b, 8), put_u32(&b, 9);
    gguf_key(&b, "texts", 9), put_u32(&b, 8), put_u64(&b, 2), gguf_text(&b, "one"), gguf_text(&b, "");
    gguf_key(&b, "none", 9), put_u32(&b, 6), put_u64(&b, 0);
    gguf_tensor(&b, "q", 2, 1, 32, 8, 32);
    gguf_tensor(&b, "a", 2, 2, 3, 0, 0);
    gguf_pad(&b, 16);
    put_floats(&b, 10, 6);
    put_u64(&b, 0); /* 24 bytes up to 32 */
    put_u16(&b, 0x3800);
    for (int i = -16; i < 16; i++) put_u8(&b, (unsigned)i & 255u);
    return b;
}

/* ---- safetensors ---- */

static bytes safetensors_file(const char *header, const void *data, size_t n) {
    bytes b;
    memset(&b, 0, sizeof b);
    put_u64(&b, strlen(header));
    put_text(&b, header);
    put(&b, data, n);
    return b;
}

/* w (2, 3) floats 0..5, b BF16 [1, -2], i I64 [-3], t BOOL [1, 0], s F64 scalar 0.1 */
static bytes small_safetensors(void) {
    bytes data;
    memset(&data, 0, sizeof data);
    put_floats(&data, 0, 6);
    put_u16(&data, 0x3f80), put_u16(&data, 0xc000);
    put_u64(&data, (uint64_t)-3);
    put_u8(&data, 1), put_u8(&data, 0);
    put_u64(&data, 0x3fb999999999999au);
    bytes file =
        safetensors_file("{\"__metadata__\":{\"format\":\"pt\",\"a\\\"b\":\"\\u00e4\\ud83d\\ude00\\n\"},"
                         "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                         "\"b\":{\"shape\":[2],\"dtype\":\"BF16\",\"data_offsets\":[24,28]},"
                         "\"i\": {\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[28,36]},"
                         "\"t\":{\"dtype\":\"BOOL\",\"shape\":[1,2],\"data_offsets\":[36,38]},"
                         "\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[38,46]}}   ",
                         data.data, data.size);
    free_bytes(&data);
    return file;
}

/* ---- llama2.c ---- */

enum {
    BIN_D = 8,
    BIN_H = 12,
    BIN_L = 2,
    BIN_A = 4,
    BIN_KV = 2,
    BIN_V = 10,
    BIN_S = 6,
    BIN_KD = 4,
    BIN_G = 4
};

/* A tensor of version 2: counting bytes from first, then scales 0.5, 1, 1.5, ... */
static void bin_quantized(bytes *b, int first, size_t n) {
    for (size_t i = 0; i < n; i++) put_u8(b, ((unsigned)first + (unsigned)i) & 255u);
    for (size_t i = 0; i < n / BIN_G; i++) put_f32(b, 0.5f * (float)(i + 1));
}

/* version 0 (legacy), 1 or 2. A tensor's numbers begin at 100 times its place in llama2.c's own list. */
static bytes small_bin(int version, int is_shared) {
    static const int legacy[] = {3, 0, 4, 5, 6, 7, 1, 8, 9, 10, 2, -1, 11},
                     newer[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    static const int sizes[12] = {BIN_D,         BIN_D,          BIN_D,          BIN_V * BIN_D,
                                  BIN_D * BIN_D, BIN_KD * BIN_D, BIN_KD * BIN_D, BIN_D * BIN_D,
                                  BIN_H * BIN_D, BIN_D * BIN_H,  BIN_H * BIN_D,  BIN_V * BIN_D};
    const int *order = version ? newer : legacy;
    int n = version ? 12 : 13;
    bytes b;
    memset(&b, 0, sizeof b);
    if (version) {
        put_u32(&b, 0x616b3432);
        put_u32(&b, (unsigned)version);
    }
    put_u32(&b, BIN_D), put_u32(&b, BIN_H), put_u32(&b, BIN_L), put_u32(&b, BIN_A), put_u32(&b, BIN_KV);
    put_u32(&b, version == 0 && !is_shared ? 0xffffffffu - (unsigned)BIN_V + 1 : (unsigned)BIN_V);
    put_u32(&b, BIN_S);
    if (version) put_u8(&b, (unsigned)is_shared);
    if (version == 2) put_u32(&b, BIN_G);
    while (version && b.size < 256) put_u8(&b, 0);
    for (int i = 0; i < n; i++) {
        int t = order[i];
        if (t < 0) put_floats(&b, 0, BIN_S * (BIN_D / BIN_A)); /* cosines and sines */
        if (t < 0 || (t == 11 && is_shared)) continue;
        for (int layer = 0; layer < (t == 2 || t == 3 || t == 11 ? 1 : BIN_L); layer++) {
            int first = 100 * t + 1000 * layer;
            if (version == 2 && t > 2)
                bin_quantized(&b, first, (size_t)sizes[t]);
            else
                put_floats(&b, (float)first, (size_t)sizes[t]);
        }
    }
    return b;
}

/* ---- an allocator that counts, and fails when told ---- */

typedef struct counting {
    size_t n_live, live, peak, n_calls, n_freed;
    size_t fail_at; /* the call that fails, counted from 1; 0: none */
} counting;

static void *counting_alloc(size_t size, void *user) {
    counting *c = (counting *)user;
    if (++c->n_calls == c->fail_at) return NULL;
    size_t *memory = (size_t *)malloc(size + 16); /* 16 keeps malloc's alignment */
    if (!memory) return NULL;
    memory[0] = size;
    c->n_live++;
    c->live += size;
    if (c->live > c->peak) c->peak = c->live;
    return memory + 16 / sizeof(size_t);
}

static void counting_free(void *memory, void *user) {
    counting *c = (counting *)user;
    size_t *begin = (size_t *)memory - 16 / sizeof(size_t);
    c->n_live--;
    c->n_freed++;
    c->live -= begin[0];
    free(begin);
}

#endif
