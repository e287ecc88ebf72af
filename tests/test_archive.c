/* Reading archives: small files built here, and, where they are, the real ones in ../shared. */
#define MINILLAMA_IMPLEMENTATION
#include "preamble.h"
#include "build_files.h"

#if !defined(ML_NO_STDIO) && !defined(ML_NO_MMAP) && (defined(__unix__) || defined(__APPLE__))
#define FILES_ARE_MAPPED
#endif

/* ---- helpers ---- */

static ml_error failure;

static ml_archive *open_bytes(const bytes *b) {
    ml_archive *archive = NULL;
    if (ml_archive_load_memory(b->data, b->size, NULL, &archive, &failure)) printf("%s\n", failure.text);
    return archive;
}

/* All elements as floats in new memory; NULL if there is no such array. */
static float *floats_of(const ml_archive *archive, const char *name, size_t *n) {
    const ml_array *array = ml_archive_find_array(archive, name);
    float *values;
    *n = array ? ml_array_count(array) : 0;
    if (!array) printf("no tensor %s\n", name);
    values = (float *)malloc((*n + 1) * sizeof *values);
    if (!array || !values || ml_array_read_floats(array, values, *n)) {
        free(values);
        return NULL;
    }
    return values;
}

static int has_floats(const ml_archive *archive, const char *name, const float *expected, size_t n) {
    size_t count, i;
    float *values = floats_of(archive, name, &count);
    int same = values && count == n;
    for (i = 0; same && i < n; i++)
        if (values[i] != expected[i]) same = 0;
    free(values);
    return same;
}

static int has_shape(const ml_archive *archive, const char *name, ml_type type, int n_dims, int64_t rows,
                     int64_t cols) {
    const ml_array *a = ml_archive_find_array(archive, name);
    return a && a->type == type && a->n_dims == n_dims && (n_dims < 1 || a->shape[0] == rows) &&
           (n_dims < 2 || a->shape[1] == cols);
}

static int64_t int_of(const ml_archive *archive, const char *name) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && (v->kind == ML_VALUE_INT || v->kind == ML_VALUE_BOOL) ? v->i : -12345;
}

static int has_text(const ml_archive *archive, const char *name, const char *text) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && v->kind == ML_VALUE_STRING && v->length == strlen(text) && memcmp(v->s, text, v->length) == 0;
}

/* Opens the bytes, which must fail with the code and words given. */
static int refused(const void *data, size_t size, ml_result code, const char *words) {
    ml_archive *archive = (ml_archive *)&failure;
    ml_result result = ml_archive_load_memory(data, size, NULL, &archive, &failure);
    if (result == code && failure.code == code && !archive && strstr(failure.text, words)) return 1;
    printf("%d \"%s\", expected %d \"%s\"\n", (int)result, result ? failure.text : "", (int)code, words);
    if (!result) ml_archive_free(archive);
    return 0;
}

/* ---- small files ---- */

static const float counting_floats[] = {0, 1, 2, 3, 4, 5};

static void check_small_pt(const bytes *file) {
    static const float transposed[] = {0, 3, 1, 4, 2, 5}, last[] = {5};
    ml_archive *a = open_bytes(file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "PyTorch") == 0);
    REQUIRE(a->n_arrays == 4);
    CHECK(strcmp(a->arrays[0].name, "model.w") == 0);
    CHECK(strcmp(a->arrays[2].name, "model.last") == 0); /* the file's order */
    CHECK(has_shape(a, "model.w", ML_F32, 2, 2, 3) && has_shape(a, "model.t", ML_F32, 2, 3, 2));
    CHECK(ml_archive_find_array(a, "model.w")->is_contiguous &&
          !ml_archive_find_array(a, "model.t")->is_contiguous);
    CHECK(ml_archive_find_array(a, "model.t")->stride[0] == 1 &&
          ml_archive_find_array(a, "model.t")->stride[1] == 3);
    CHECK(has_floats(a, "model.w", counting_floats, 6));
    CHECK(has_floats(a, "model.t", transposed, 6));
    CHECK(has_floats(a, "model.last", last, 1));
    CHECK(ml_archive_find_array(a, "model.again")->data == ml_archive_find_array(a, "model.w")->data);
    CHECK(a->n_values == 6);
    CHECK(int_of(a, "args.dim") == 3 && int_of(a, "args.ok") == 1 && int_of(a, "args.list.0") == 7);
    CHECK(int_of(a, "args.list.2") == -1 && !ml_archive_find_value(a, "args.list.1"));
    CHECK(ml_archive_find_value(a, "args.dim")->f == 3 && ml_archive_find_value(a, "args.lr")->f == 0.5);
    CHECK(ml_archive_find_value(a, "args.lr")->kind == ML_VALUE_FLOAT);
    CHECK(ml_archive_find_value(a, "args.ok")->kind == ML_VALUE_BOOL);
    CHECK(has_text(a, "args.name", "tiny"));
    CHECK(!ml_archive_find_array(a, "model") && !ml_archive_find_array(a, "model.x") &&
          !ml_archive_find_value(a, "args.di"));
    CHECK(a->n_arrays == 4 && a->n_values == 6); /* and none beyond */
    ml_archive_free(a);
}

TEST(pytorch) {
    bytes file = small_pt();
    check_small_pt(&file);
    free_bytes(&file);
}

/* The same content with every 64-bit field that zip has, and a comment at the end. */
TEST(pytorch_zip64) {
    bytes pickle, floats, file;
    zip_twist twist;
    zip z;
    memset(&pickle, 0, sizeof pickle);
    memset(&floats, 0, sizeof floats);
    memset(&z, 0, sizeof z);
    memset(&twist, 0, sizeof twist);
    twist.use_zip64 = 1;
    twist.flags = 0x808; /* as torch.save sets them */
    pk_small(&pickle);
    put_floats(&floats, 0, 6);
    zip_add_twisted(&z, "deep name/data.pkl", pickle.data, pickle.size, twist);
    zip_add_twisted(&z, "deep name/data/0", floats.data, floats.size, twist);
    file = zip_end(&z, 1, "a comment with PK\5\6, which is no end record since more than its length follows");
    check_small_pt(&file);
    free_bytes(&file);
    free_bytes(&pickle);
    free_bytes(&floats);
}

/* What a pickle may hold besides tensors, in the instructions of protocols 2, 4 and 5. */
TEST(pickle_kinds) {
    bytes p, file;
    ml_archive *a;
    memset(&p, 0, sizeof p);
    put_literal(&p, "\x80\x04\x95\0\0\0\0\0\0\0\0");
    put_literal(&p, "}\x94(");
    put_literal(&p, "\x8c\1a\x94\x8a\3\0\0\xff");                       /* LONG1 -65536; "a" is memo 1 */
    put_literal(&p, "\x8c\1b\x8b\1\0\0\0\x7f");                         /* LONG4 */
    put_literal(&p, "\x8c\1c\x8d\2\0\0\0\0\0\0\0hi");                   /* BINUNICODE8 */
    put_literal(&p, "\x8c\1d](K\1K\2e");                                /* APPENDS */
    put_literal(&p, "\x8c\1eK\1M\2\1\x86");                             /* TUPLE2 (1, 258) */
    put_literal(&p, "\x8c\1fh\1");                                      /* BINGET: "a" */
    put_literal(&p, "\x8c\1gN0K\5");                                    /* POP */
    put_literal(&p, "\x8c\1h\x8c\5torch\x8c\4Size\x93K\2K\3\x86\x85R"); /* STACK_GLOBAL torch.Size((2, 3)) */
    put_literal(&p, "\x8c\1i\x8a\x0a\1\1\1\1\1\1\1\1\1\1");             /* an integer of 80 bits */
    put_literal(&p, "\x8c\1j\x8c\x08"
                    "argparse\x8c\x09Namespace\x93)\x81}\x8c\1xK\7sb");
    put_literal(&p, "\x8c\1kC\3\0\1\2"); /* bytes */
    put_literal(&p, "K\7K\x08");         /* a key that is a number */
    put_literal(&p, "u.");
    file = pt_file(&p, 1);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(int_of(a, "a") == -65536 && int_of(a, "b") == 127 && has_text(a, "c", "hi"));
    CHECK(int_of(a, "d.0") == 1 && int_of(a, "d.1") == 2 && int_of(a, "e.0") == 1 && int_of(a, "e.1") == 258);
    CHECK(has_text(a, "f", "a") && int_of(a, "g") == 5 && int_of(a, "h.0") == 2 && int_of(a, "h.1") == 3);
    CHECK(ml_archive_find_value(a, "i")->kind == ML_VALUE_OPAQUE && int_of(a, "j.x") == 7);
    CHECK(ml_archive_find_value(a, "k")->kind == ML_VALUE_OPAQUE);
    CHECK(int_of(a, "7") == 8 && a->n_values == 16 && a->n_arrays == 0);
    ml_archive_free(a);
    free_bytes(&file);
    free_bytes(&p);
}

/* ---- objects of classes that are not known ---- */

/* pickle.dumps, through pickletools.optimize, of Python 3.11 and NumPy 1.24 of one dictionary (its items are checked
   in check_objects), in protocols 0, 2 and 4. */
static const char objects_0[] =
    "(dVns\nctypes\nSimpleNamespace\np0\n(tR(dVdim\np1\nI3\nsVinner\ng0\n(tR(dVz\nI2\nsbsbsVdc\nccopy_"
    "reg\n_reconstructor\np2\n(cm\nArgs\nc__builtin__\nobject\np3\nNtR(dg1\nI64\nsVlr\nF0.5\nsbsVpath\n"
    "cpathlib\nPosixPath\n(Va\np4\nVb\np5\ntRsVcounter\nccollections\nCounter\n((dVa\nI2\nsVb\np6\nI1\n"
    "stRsVdd\nccollections\ndefaultdict\n(c__builtin__\nlong\ntRVx\nI1\nssVod\nccollections\nOrderedDi"
    "ct\n(tRVo\nI5\nssVslots\ng2\n(cm\nSlots\ng3\nNtR((dVc\np7\nI3\ns(dg4\nI1\nsg5\nVtwo\nstbsVnamed\n"
    "g2\n(cm\nNamed\ng3\nNtRsVitems\ng2\n(cm\nItems\nc__builtin__\nlist\n(lI7\naI8\natR(dVextra\nVe\np"
    "8\nsbsVs\nc__builtin__\nset\n((lI6\natRsVfs\nc__builtin__\nfrozenset\n((lI5\natRsg5\nc_codecs\nen"
    "code\np9\n(V\x5cu0000\xff\nVlatin1\np10\ntRsVbig\nL-1180591620717411303424L\nsg7\nc__builtin__\nc"
    "omplex\n(F1.0\nF2.0\ntRsg8\nc__builtin__\ngetattr\n(cm\nColor\nVRED\ntRsVf\nF-0.0025\nsVn\nNsVt\n"
    "I01\nsVneg\nI-7\nsVu\nV\xe4\nsVloop\n(lp11\nI4\nag11\nasVi\ncnumpy.core.multiarray\nscalar\np12\n"
    "(cnumpy\ndtype\np13\n(Vi8\nI00\nI01\ntRp14\n(I3\nV<\np15\nNNNI-1\nI-1\nI0\ntbg9\n(V\xfb\xff\xff\xff"
    "\xff\xff\xff\xff\ng10\ntRtRsVd64\ng12\n(g13\n(Vf8\nI00\nI01\ntR(I3\ng15\nNNNI-1\nI-1\nI0\ntbg9\n("
    "V\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x5cu0000\xf4\x3f\ng10\ntRtRsVf32\ng12\n(g13\n(Vf4\n"
    "I00\nI01\ntR(I3\ng15\nNNNI-1\nI-1\nI0\ntbg9\n(V\x5cu0000\x5cu0000\x5cu0000\x3f\ng10\ntRtRsVf16\ng"
    "12\n(g13\n(Vf2\nI00\nI01\ntR(I3\ng15\nNNNI-1\nI-1\nI0\ntbg9\n(V\x5cu0000@\ng10\ntRtRsVu8\ng12\n(g"
    "13\n(Vu1\nI00\nI01\ntR(I3\nV|\np16\nNNNI-1\nI-1\nI0\ntbg9\n(V\xc8\ng10\ntRtRsVnb\ng12\n(g13\n(Vb1"
    "\nI00\nI01\ntR(I3\ng16\nNNNI-1\nI-1\nI0\ntbg9\n(V\x01\ng10\ntRtRsVar\ncnumpy.core.multiarray\n_re"
    "construct\n(cnumpy\nndarray\n(I0\ntg9\n(g6\ng10\ntRtR(I1\n(I2\ntg14\nI00\ng9\n(V\x5cu0000\x5cu000"
    "0\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x01\x5cu0000\x5cu0000\x5cu0000\x5cu0000\x5c"
    "u0000\x5cu0000\x5cu0000\ng10\ntRtbs.";
static const char objects_2[] =
    "\x80\x02}(X\x02\x00\x00\x00nsctypes\nSimpleNamespace\nq\x00)R}(X\x03\x00\x00\x00"
    "dimq\x01K\x03X\x05"
    "\x00\x00\x00innerh\x00)R}X\x01\x00\x00\x00zK\x02sbubX\x02\x00\x00\x00"
    "dccm\nArgs\n)\x81}(h\x01K@"
    "X\x02\x00\x00\x00lrG\x3f\xe0\x00\x00\x00\x00\x00\x00ubX\x04\x00\x00\x00pathcpathlib\nPosixPath\nX"
    "\x01\x00\x00\x00"
    "aq\x02X\x01\x00\x00\x00"
    "bq\x03\x86RX\x07\x00\x00\x00"
    "counterccollections\nCou"
    "nter\n}(X\x01\x00\x00\x00"
    "aK\x02X\x01\x00\x00\x00"
    "bq\x04K\x01u\x85RX\x02\x00\x00\x00"
    "ddccollec"
    "tions\ndefaultdict\nc__builtin__\nlong\n\x85RX\x01\x00\x00\x00xK\x01sX\x02\x00\x00\x00odccollecti"
    "ons\nOrderedDict\n)RX\x01\x00\x00\x00oK\x05sX\x05\x00\x00\x00slotscm\nSlots\n)\x81}X\x01\x00\x00\x00"
    "cq\x05K\x03s}(h\x02K\x01h\x03X\x03\x00\x00\x00twou\x86"
    "bX\x05\x00\x00\x00namedcfunctools\npartia"
    "l\nc__builtin__\ngetattr\nq\x06"
    "cm\nNamed\nq\x07X\x07\x00\x00\x00__new__\x86Rq\x08\x85R(h\x08h\x07"
    "\x85}X\x01\x00\x00\x00kK\x09sNtb)RX\x05\x00\x00\x00itemscm\nItems\n)\x81(K\x07K\x08"
    "e}X\x05\x00\x00"
    "\x00"
    "extraX\x01\x00\x00\x00"
    "eq\x09sbX\x01\x00\x00\x00sc__builtin__\nset\n]K\x06"
    "a\x85RX\x02\x00"
    "\x00\x00"
    "fsc__builtin__\nfrozenset\n]K\x05"
    "a\x85Rh\x03"
    "c_codecs\nencode\nq\nX\x03\x00\x00\x00\x00"
    "\xc3\xbfX\x06\x00\x00\x00latin1q\x0b\x86RX\x03\x00\x00\x00"
    "big\x8a\x09\x00\x00\x00\x00\x00\x00\x00"
    "\x00\xc0h\x05"
    "c__builtin__\ncomplex\nG\x3f\xf0\x00\x00\x00\x00\x00\x00G@\x00\x00\x00\x00\x00\x00"
    "\x00\x86Rh\x09h\x06"
    "cm\nColor\nX\x03\x00\x00\x00RED\x86RX\x01\x00\x00\x00"
    "fG\xbf"
    "dz\xe1G\xae\x14"
    "{X\x01\x00\x00\x00nNX\x01\x00\x00\x00t\x88X\x03\x00\x00\x00negJ\xf9\xff\xff\xffX\x01\x00\x00\x00u"
    "X\x02\x00\x00\x00\xc3\xa4X\x04\x00\x00\x00loop]q\x0c(K\x04h\x0c"
    "eX\x01\x00\x00\x00icnumpy.core.m"
    "ultiarray\nscalar\nq\x0d"
    "cnumpy\ndtype\nq\x0eX\x02\x00\x00\x00i8\x89\x88\x87Rq\x0f(K\x03X\x01\x00"
    "\x00\x00<q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\nX\x10\x00\x00\x00\xc3\xbb\xc3\xbf\xc3"
    "\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbf\xc3\xbfh\x0b\x86R\x86RX\x03\x00\x00\x00"
    "d64h\x0dh\x0eX\x02\x00"
    "\x00\x00"
    "f8\x89\x88\x87R(K\x03h\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\nX\x09\x00\x00\x00"
    "\x00\x00\x00\x00\x00\x00\xc3\xb4\x3fh\x0b\x86R\x86RX\x03\x00\x00\x00"
    "f32h\x0dh\x0eX\x02\x00\x00\x00"
    "f4\x89\x88\x87R(K\x03h\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\nX\x04\x00\x00\x00\x00\x00"
    "\x00\x3fh\x0b\x86R\x86RX\x03\x00\x00\x00"
    "f16h\x0dh\x0eX\x02\x00\x00\x00"
    "f2\x89\x88\x87R(K\x03h\x10"
    "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\nX\x02\x00\x00\x00\x00@h\x0b\x86R\x86RX\x02\x00\x00"
    "\x00u8h\x0dh\x0eX\x02\x00\x00\x00u1\x89\x88\x87R(K\x03X\x01\x00\x00\x00|q\x11NNNJ\xff\xff\xff\xff"
    "J\xff\xff\xff\xffK\x00tbh\nX\x02\x00\x00\x00\xc3\x88h\x0b\x86R\x86RX\x02\x00\x00\x00nbh\x0dh\x0eX"
    "\x02\x00\x00\x00"
    "b1\x89\x88\x87R(K\x03h\x11NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbh\nX\x01\x00"
    "\x00\x00\x01h\x0b\x86R\x86RX\x02\x00\x00\x00"
    "arcnumpy.core.multiarray\n_reconstruct\ncnumpy\nnda"
    "rray\nK\x00\x85h\nh\x04h\x0b\x86R\x87R(K\x01K\x02\x85h\x0f\x89h\nX\x10\x00\x00\x00\x00\x00\x00\x00"
    "\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00h\x0b\x86Rtbu.";
static const char objects_4[] =
    "\x80\x04\x95\xa5\x03\x00\x00\x00\x00\x00\x00}(\x8c\x02ns\x8c\x05types\x8c\x0fSimpleNamespace\x93\x94"
    ")R}(\x8c\x03"
    "dim\x94K\x03\x8c\x05innerh\x00)R}\x8c\x01zK\x02sbub\x8c\x02"
    "dc\x8c\x01m\x94\x8c\x04"
    "Args\x93)\x81}(h\x01K@\x8c\x02lrG\x3f\xe0\x00\x00\x00\x00\x00\x00ub\x8c\x04path\x8c\x07pathlib\x8c"
    "\x09PosixPath\x93\x8c\x01"
    "a\x94\x8c\x01"
    "b\x94\x86R\x8c\x07"
    "counter\x8c\x0b"
    "collections\x94\x8c"
    "\x07"
    "Counter\x93}(\x8c\x01"
    "aK\x02\x8c\x01"
    "bK\x01u\x85R\x8c\x02"
    "ddh\x05\x8c\x0b"
    "defaultdict\x93"
    "\x8c\x08"
    "builtins\x94\x8c\x03int\x93\x85R\x8c\x01xK\x01s\x8c\x02odh\x05\x8c\x0bOrderedDict\x93)R"
    "\x8c\x01oK\x05s\x8c\x05slotsh\x02\x8c\x05Slots\x93)\x81}\x8c\x01"
    "c\x94K\x03s}(h\x03K\x01h\x04\x8c"
    "\x03twou\x86"
    "b\x8c\x05namedh\x02\x8c\x05Named\x93)}\x8c\x01kK\x09s\x92\x8c\x05itemsh\x02\x8c\x05"
    "Items\x93)\x81(K\x07K\x08"
    "e}\x8c\x05"
    "extra\x8c\x01"
    "e\x94sb\x8c\x01s\x8f(K\x06\x90\x8c\x02"
    "fs("
    "K\x05\x91h\x04"
    "C\x02\x00\xff\x8c\x03"
    "big\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\xc0h\x07h\x06\x8c"
    "\x07"
    "complex\x93G\x3f\xf0\x00\x00\x00\x00\x00\x00G@\x00\x00\x00\x00\x00\x00\x00\x86Rh\x08\x8c\x08"
    "builtins\x8c\x07getattr\x93h\x02\x8c\x05"
    "Color\x93\x8c\x03RED\x86R\x8c\x01"
    "fG\xbf"
    "dz\xe1G\xae\x14"
    "{\x8c\x01nN\x8c\x01t\x88\x8c\x03negJ\xf9\xff\xff\xff\x8c\x01u\x8c\x02\xc3\xa4\x8c\x04loop]\x94(K\x04"
    "h\x09"
    "e\x8c\x01i\x8c\x15numpy.core.multiarray\x94\x8c\x06scalar\x93\x94\x8c\x05numpy\x94\x8c\x05"
    "dtype\x93\x94\x8c\x02i8\x89\x88\x87R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
    "\x00tbC\x08\xfb\xff\xff\xff\xff\xff\xff\xff\x86R\x8c\x03"
    "d64h\x0bh\x0d\x8c\x02"
    "f8\x89\x88\x87R("
    "K\x03h\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC\x08\x00\x00\x00\x00\x00\x00\xf4\x3f\x86R\x8c"
    "\x03"
    "f32h\x0bh\x0d\x8c\x02"
    "f4\x89\x88\x87R(K\x03h\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
    "tbC\x04\x00\x00\x00\x3f\x86R\x8c\x03"
    "f16h\x0bh\x0d\x8c\x02"
    "f2\x89\x88\x87R(K\x03h\x0fNNNJ\xff\xff"
    "\xff\xffJ\xff\xff\xff\xffK\x00tbC\x02\x00@\x86R\x8c\x02u8h\x0bh\x0d\x8c\x02u1\x89\x88\x87R(K\x03\x8c"
    "\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC\x01\xc8\x86R\x8c\x02nbh\x0bh\x0d\x8c\x02"
    "b"
    "1\x89\x88\x87R(K\x03h\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC\x01\x01\x86R\x8c\x02"
    "arh\n"
    "\x8c\x0c_reconstruct\x93h\x0c\x8c\x07ndarray\x93K\x00\x85"
    "C\x01"
    "b\x87R(K\x01K\x02\x85h\x0e\x89"
    "C"
    "\x10\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00tbu.";

static int is_opaque(const ml_archive *archive, const char *name, const char *of_class) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && v->kind == ML_VALUE_OPAQUE && v->length == strlen(of_class) &&
           memcmp(v->s, of_class, v->length) == 0;
}

static double float_of(const ml_archive *archive, const char *name) {
    const ml_value *v = ml_archive_find_value(archive, name);
    return v && v->kind == ML_VALUE_FLOAT ? v->f : -12345;
}

/* What all protocols have in common. */
static void check_objects(const ml_archive *a) {
    CHECK(is_opaque(a, "ns", "types.SimpleNamespace") && is_opaque(a, "ns.inner", "types.SimpleNamespace"));
    CHECK(int_of(a, "ns.dim") == 3 && int_of(a, "ns.inner.z") == 2);
    CHECK(is_opaque(a, "dc", "m.Args") && int_of(a, "dc.dim") == 64 && float_of(a, "dc.lr") == 0.5);
    CHECK(is_opaque(a, "path", "pathlib.PosixPath") && is_opaque(a, "dd", "collections.defaultdict"));
    CHECK(is_opaque(a, "counter", "collections.Counter") && int_of(a, "counter.a") == 2);
    CHECK(int_of(a, "dd.x") == 1 && int_of(a, "od.o") == 5 && !ml_archive_find_value(a, "od"));
    CHECK(is_opaque(a, "slots", "m.Slots") && int_of(a, "slots.c") == 3); /* __dict__ and slots */
    CHECK(int_of(a, "slots.a") == 1 && has_text(a, "slots.b", "two"));
    CHECK(is_opaque(a, "items", "m.Items") && has_text(a, "items.extra", "e"));
    CHECK(int_of(a, "s.0") == 6 && int_of(a, "fs.0") == 5);
    CHECK(is_opaque(a, "b", "bytes") && is_opaque(a, "big", "int") && float_of(a, "f") == -0.0025);
    CHECK(int_of(a, "t") == 1 && int_of(a, "neg") == -7 && !ml_archive_find_value(a, "n"));
    CHECK(ml_archive_find_value(a, "c")->kind == ML_VALUE_OPAQUE);
    CHECK(ml_archive_find_value(a, "e")->kind == ML_VALUE_OPAQUE);
    CHECK(int_of(a, "loop.0") == 4 && !ml_archive_find_value(a, "loop.1.0")); /* a list in itself */
}

TEST(objects) {
    static const struct {
        const char *data;
        size_t size;
    } pickles[] = {{objects_0, sizeof objects_0 - 1},
                   {objects_2, sizeof objects_2 - 1},
                   {objects_4, sizeof objects_4 - 1}};
    int i;
    for (i = 0; i < 3; i++) {
        bytes p, file;
        ml_archive *a;
        memset(&p, 0, sizeof p);
        put(&p, pickles[i].data, pickles[i].size);
        file = pt_file(&p, 1);
        a = open_bytes(&file);
        REQUIRE(a);
        check_objects(a);
        if (i > 0) {
            CHECK(int_of(a, "items.0") == 7 && int_of(a, "items.1") == 8 && has_text(a, "u", "\xc3\xa4"));
            CHECK(int_of(a, "i") == -5 && float_of(a, "d64") == 1.25 && float_of(a, "f32") == 0.5);
            CHECK(float_of(a, "f16") == 2 && int_of(a, "u8") == 200 && int_of(a, "nb") == 1);
            CHECK(is_opaque(a, "ar", "numpy.ndarray"));
        }
        if (i == 2) CHECK(is_opaque(a, "named", "m.Named") && int_of(a, "named.k") == 9);
        ml_archive_free(a);
        free_bytes(&file), free_bytes(&p);
    }
}

/* A pickle in a .pt file with 24 floats. */
static ml_archive *open_pickle(const char *literal, size_t size, bytes *file) {
    bytes p;
    memset(&p, 0, sizeof p);
    put(&p, literal, size);
    *file = pt_file(&p, 24);
    free_bytes(&p);
    return open_bytes(file);
}

/* An OrderedDict as Python 2 wrote it: a call with a list of pairs. What is no pair is passed over. */
TEST(pairs) {
    static const char dict[] = "\x80\2ccollections\nOrderedDict\n](](U\1aK\1eU\1bK\2\x86](U\1cK\3K\4e]U\1d"
                               "aK\5N]U\1e](K"
                               "\6K\7e\x86"
                               "aU\1gK\x08\x86"
                               "e\x85R.";
    bytes file;
    ml_archive *a = open_pickle(dict, sizeof dict - 1, &file);
    REQUIRE(a);
    CHECK(int_of(a, "a") == 1 && int_of(a, "b") == 2 && int_of(a, "c") == 3 && int_of(a, "g") == 8);
    CHECK(a->n_values == 4);
    ml_archive_free(a);
    free_bytes(&file);
}

/* A module of modules, by its attributes: its tensors have the names of a state dict. */
TEST(whole_modules) {
    bytes p, file;
    ml_archive *a;
    memset(&p, 0, sizeof p);
    put_literal(&p, "\x80\2cm\nNet\n)\x81}(U\x08trainingI01\nU\x0b_parameters}U\6weight");
    pk_matrix(&p, "0", 2, 3);
    put_literal(&p, "sU\x08_buffersccollections\nOrderedDict\n)RU\1b");
    pk_matrix(&p, "0", 3, 2);
    put_literal(&p, "sU\x08_modules}(U\5layercm\nLayer\n)\x81}(U\x0b_parameters}(U\1w");
    pk_matrix(&p, "0", 1, 6);
    put_literal(&p, "U\4biasNuU\6configcm\nArgs\n)\x81}U\3dimK\7sbubU\4noneNuub.");
    file = pt_file(&p, 6);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(a->n_arrays == 3 && has_shape(a, "weight", ML_F32, 2, 2, 3) && has_shape(a, "b", ML_F32, 2, 3, 2));
    CHECK(has_shape(a, "layer.w", ML_F32, 2, 1, 6) && int_of(a, "layer.config.dim") == 7);
    CHECK(is_opaque(a, "", "m.Net") && is_opaque(a, "layer", "m.Layer") && int_of(a, "training") == 1);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

/* A block that many layers share, as in ALBERT: each of them has its tensors. */
TEST(shared_modules) {
    bytes p, file;
    ml_archive *a;
    char name[] = "0.a";
    int i;
    memset(&p, 0, sizeof p);
    put_text(&p, "](}(");
    for (i = 0; i < 9; i++, name[2]++) pk_text(&p, name + 2), pk_matrix(&p, "0", 64, 64);
    put_literal(&p, "uq\1");
    for (i = 1; i < 300; i++) put_literal(&p, "h\1");
    put_text(&p, "e.");
    file = pt_file(&p, 4096);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(a->n_arrays == 2700);
    const ml_array *first = ml_archive_find_array(a, "0.i"), *last = ml_archive_find_array(a, "299.i");
    CHECK(first && last && first->data == last->data);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

/* Keys that make no name are numbered; the first of two equal names counts, and a tensor may be there twice. */
TEST(odd_keys) {
    static const char odd[] = "\x80\4}(K\1K\x0aU\1"
                              "1K\x0bNK\x0cK\1K\2\x86K\x0dG\x3f\xe0\0\0\0\0\0\0K\x0e"
                              "\x88K\x0f"
                              "cm\nA\nK\x10"
                              "cm\nA\n)RK\x11U\3a\0bK\x12U\0K\x13u.";
    bytes p, file;
    ml_archive *a = open_pickle(odd, sizeof odd - 1, &file);
    int i;
    REQUIRE(a);
    CHECK(int_of(a, "1") == 10 && int_of(a, "#2") == 12 && int_of(a, "#3") == 13 && int_of(a, "#4") == 14);
    CHECK(int_of(a, "m.A") == 16 && int_of(a, "#7") == 17 && int_of(a, "#8") == 18 && int_of(a, "") == 19);
    CHECK(a->n_values == 8);
    ml_archive_free(a);
    free_bytes(&file);
    memset(&p, 0, sizeof p);
    put_text(&p, "}(X"), put_u32(&p, 3000);
    for (i = 0; i < 3000; i++) put_u8(&p, 'k');
    put_text(&p, "K\1X"), put_u32(&p, 5000);
    for (i = 0; i < 5000; i++) put_u8(&p, 'k');
    put_text(&p, "K\2U\1d");
    for (i = 0; i < 1000; i++) put_text(&p, "]"); /* deeper than any recursion */
    put_text(&p, "K\3");
    for (i = 0; i < 1000; i++) put_text(&p, "a");
    put_text(&p, "U\1a"), pk_matrix(&p, "0", 2, 3);
    put_text(&p, "u.");
    file = pt_file(&p, 6);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(int_of(a, "#1") == 2 && a->n_values == 3 && strlen(a->values[0].name) == 3000);
    CHECK(strlen(a->values[2].name) == 2001 && a->values[2].i == 3); /* d.0.0.0 ... */
    CHECK(strncmp(a->values[2].name, "d.0.0.0.0.0", 11) == 0 && has_shape(a, "a", ML_F32, 2, 2, 3));
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
    /* a key of split GGUFs means nothing here */
    memset(&p, 0, sizeof p);
    put_text(&p, "}"), pk_text(&p, "split.count"), put_text(&p, "K\3s.");
    file = pt_file(&p, 1);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(int_of(a, "split.count") == 3);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

/* What the pickle has between the global and the arguments' end, before a storage of `type` of 24 numbers. */
static void put_storage(bytes *b, const char *module, const char *type, int64_t n) {
    put_text(b, "(");
    pk_text(b, "storage"), pk_global(b, module, type), pk_text(b, "0"), pk_text(b, "cpu"), pk_int(b, n);
    put_text(b, "tQ");
}

/* The functions of torch._utils and torch._tensor that make tensors, by their arguments in PyTorch 1.12 to 2.7. */
TEST(rebuild_functions) {
    static const float from_2[] = {2, 3, 4, 5, 6, 7};
    bytes p, file;
    ml_archive *a;
    memset(&p, 0, sizeof p);
    put_text(&p, "\x80\2}(");
    pk_text(&p, "v1"), pk_global(&p, "torch._utils", "_rebuild_tensor"), put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24), put_literal(&p, "K\2K\2K\3\x86K\3K\1\x86tR");
    pk_text(&p, "v3"), pk_global(&p, "torch._utils", "_rebuild_tensor_v3"), put_text(&p, "(");
    put_storage(&p, "torch.storage", "UntypedStorage", 96), put_literal(&p, "K\2K\2K\3\x86K\3K\1\x86\x89}");
    pk_global(&p, "torch", "float32"), put_text(&p, "tR");
    pk_text(&p, "u16"), pk_global(&p, "torch._utils", "_rebuild_tensor_v3"), put_text(&p, "(");
    put_storage(&p, "torch.storage", "UntypedStorage", 96), put_literal(&p, "K\2K.\x85K\1\x85\x89}");
    pk_global(&p, "torch", "uint16"), put_text(&p, "tR");
    pk_text(&p, "f4"), pk_global(&p, "torch._utils", "_rebuild_tensor_v3"), put_text(&p, "(");
    put_storage(&p, "torch.storage", "UntypedStorage", 96), put_literal(&p, "K\0K\5\x85K\1\x85\x89}");
    pk_global(&p, "torch", "float4_e2m1fn_x2"), put_text(&p, "tR");
    pk_text(&p, "param"), pk_global(&p, "torch._utils", "_rebuild_parameter_with_state"), put_text(&p, "(");
    pk_matrix(&p, "0", 2, 3), put_literal(&p, "\x88}}U\1aK\1stR");
    pk_text(&p, "type"), pk_global(&p, "torch._tensor", "_rebuild_from_type_v2"), put_text(&p, "(");
    pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), pk_global(&p, "m", "T"), put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24), put_literal(&p, "K\2K\2K\3\x86K\3K\1\x86\x89}t}tR");
    pk_text(&p, "neg"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24);
    put_literal(&p, "K\2K\2K\3\x86K\3K\1\x86\x89}}U\3neg\x88stR");
    pk_text(&p, "not neg"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24);
    put_literal(&p, "K\2K\2K\3\x86K\3K\1\x86\x89}}U\3neg\x89stR");
    pk_text(&p, "q"), pk_global(&p, "torch._utils", "_rebuild_qtensor"), put_text(&p, "(");
    put_storage(&p, "torch", "QInt8Storage", 96), put_literal(&p, "K\0K\6\x85K\1\x85N\x89}tR");
    pk_text(&p, "c"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "(");
    put_storage(&p, "torch", "ComplexFloatStorage", 12), put_literal(&p, "K\1K\3\x85K\2\x85\x89}tR");
    pk_text(&p, "new"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "(");
    put_storage(&p, "torch", "NewStorage", 12), put_literal(&p, "K\1K\3\x85K\2\x85\x89}tR");
    pk_text(&p, "past"), pk_global(&p, "torch._utils", "_rebuild_tensor_v3"), put_text(&p, "(");
    put_storage(&p, "torch", "NewStorage", 12), put_literal(&p, "K\0M\xe8\3\x85K\1\x85\x89}");
    pk_global(&p, "torch", "float32"), put_text(&p, "tR"); /* it cannot be known where that storage ends */
    pk_text(&p, "sparse"), pk_global(&p, "torch._utils", "_rebuild_sparse_tensor"),
        put_literal(&p, "N)\x86R");
    pk_text(&p, "meta"), pk_global(&p, "torch._utils", "_rebuild_meta_tensor_no_storage"), put_text(&p, ")R");
    pk_text(&p, "far"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_literal(&p, "(K\1QK\0))tR");
    pk_text(&p, "dims"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24);
    put_literal(&p, "K\0(K\1K\1K\1K\1K\1K\1K\1K\1K\1t(K\1K\1K\1K\1K\1K\1K\1K\1K\1t\x89}tR");
    pk_text(&p, "dtype"), pk_global(&p, "torch", "complex64");
    put_text(&p, "u.");
    file = pt_file(&p, 24);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(has_floats(a, "v1", from_2, 6) && has_floats(a, "v3", from_2, 6) &&
          has_floats(a, "type", from_2, 6));
    CHECK(has_floats(a, "param", counting_floats, 6) && a->n_arrays == 12);
    CHECK(has_shape(a, "past", ML_TYPE_NONE, 1, 1000, 0));
    CHECK(has_shape(a, "u16", ML_TYPE_NONE, 1, 46, 0) && has_shape(a, "q", ML_TYPE_NONE, 1, 6, 0));
    CHECK(has_shape(a, "c", ML_TYPE_NONE, 1, 3, 0) && has_shape(a, "f4", ML_TYPE_NONE, 1, 5, 0));
    CHECK(strcmp(ml_archive_find_array(a, "u16")->type_name, "uint16") == 0);
    CHECK(strcmp(ml_archive_find_array(a, "f4")->type_name, "float4_e2m1fn_x2") == 0);
    CHECK(strcmp(ml_archive_find_array(a, "c")->type_name, "ComplexFloat") == 0);
    CHECK(strcmp(ml_archive_find_array(a, "q")->type_name, "QInt8") == 0);
    CHECK(strcmp(ml_archive_find_array(a, "new")->type_name, "New") == 0);
    CHECK(strcmp(ml_archive_find_array(a, "v1")->type_name, "F32") == 0);
    CHECK(has_shape(a, "neg", ML_TYPE_NONE, 2, 2, 3) && has_floats(a, "not neg", from_2, 6));
    CHECK(is_opaque(a, "sparse", "torch._utils._rebuild_sparse_tensor"));
    CHECK(is_opaque(a, "meta", "torch._utils._rebuild_meta_tensor_no_storage"));
    CHECK(is_opaque(a, "far", "torch._utils._rebuild_tensor_v2") && has_text(a, "dtype", "complex64"));
    CHECK(is_opaque(a, "dims", "torch._utils._rebuild_tensor_v2"));
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

/* A pickle of a model: its configuration, and the beginning of the dictionary of its weights. */
static void put_model(bytes *p) {
    static const char *const keys[] = {"dim", "hidden_dim", "n_layers", "vocab_size", "max_seq_len"};
    put_literal(p, "\x80\2}(");
    pk_text(p, "model_args"), put_text(p, "}(");
    for (size_t i = 0; i < 5; i++) pk_text(p, keys[i]), put_literal(p, "K\2");
    pk_text(p, "n_heads"), put_literal(p, "K\1u");
    pk_text(p, "model"), put_text(p, "}(");
}

/* A weight that is no plain tensor is not called missing. */
TEST(weight_of_another_kind) {
    ml_model *model = NULL;
    bytes file, p;
    memset(&p, 0, sizeof p);
    put_model(&p);
    pk_text(&p, "tok_embeddings.weight"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"),
        put_text(&p, "(");
    put_storage(&p, "torch", "FloatStorage", 24), put_literal(&p, "K\0K\2K\2\x86K\2K\1\x86\x89}tR");
    pk_text(&p, "layers.0.feed_forward.w1.weight"), pk_global(&p, "torch._utils", "_rebuild_sparse_tensor");
    put_literal(&p, "N)\x86Ruu.");
    file = pt_file(&p, 24);
    CHECK(ml_model_load_memory(file.data, file.size, NULL, &model, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, "w1.weight is of a kind that is not read: torch._utils._rebuild_sparse_"));
    free_bytes(&file), free_bytes(&p);
}

/* Nor if all of them are of a class of their own, as torch.save writes a part of a distributed tensor. */
TEST(weights_of_a_class) {
    ml_model *model = NULL;
    bytes file, p;
    memset(&p, 0, sizeof p);
    put_model(&p);
    pk_text(&p, "tok_embeddings.weight"), pk_global(&p, "torch._tensor", "_rebuild_from_type_v2");
    put_text(&p, "("), pk_global(&p, "torch._utils", "_rebuild_wrapper_subclass");
    pk_global(&p, "torch.distributed.tensor", "DTensor"), put_text(&p, "(");
    pk_global(&p, "torch.distributed.tensor", "DTensor"), pk_global(&p, "torch", "float32");
    put_literal(&p, "K\2K\2\x86t}tRuu.");
    file = pt_file(&p, 24);
    CHECK(ml_model_load_memory(file.data, file.size, NULL, &model, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text,
                 "tok_embeddings.weight is of a kind that is not read: torch.distributed.tensor.DT"));
    free_bytes(&file), free_bytes(&p);
}

/* ---- the older format of torch.save ---- */

TEST(pytorch_legacy) {
    bytes file = small_legacy(), p;
    ml_archive *a;
    check_small_pt(&file);
    CHECK(refused(file.data, file.size - 1, ML_ERROR_TRUNCATED, "a storage needs bytes up to"));
    CHECK(refused(file.data, file.size - 25, ML_ERROR_TRUNCATED, "a storage needs bytes up to"));
    CHECK(refused(file.data, file.size - 33, ML_ERROR_TRUNCATED, "its pickle is cut short"));
    /* little_endian, behind a number, 1001, "}(" and three items, tells of the machine: the numbers always are */
    file.data[15 + 6 + 4 + 21 + 5 + 18] = 0x89;
    check_small_pt(&file);
    free_bytes(&file);
    /* a tensor in a view of numbers 2 to 5 of the storage; a class saved with its source */
    memset(&p, 0, sizeof p);
    put_text(&p, "}(");
    pk_text(&p, "view"), pk_global(&p, "torch._utils", "_rebuild_tensor_v2"), put_text(&p, "((");
    pk_text(&p, "storage"), pk_global(&p, "torch", "FloatStorage"), pk_text(&p, "0"), pk_text(&p, "cpu");
    pk_int(&p, 6), put_text(&p, "("), pk_text(&p, "1"), put_literal(&p, "K\2K\3ttQK\1K\2\x85K\1\x85\x89}tR");
    pk_text(&p, "m"), put_text(&p, "("), pk_text(&p, "module"), pk_global(&p, "m", "Net");
    pk_text(&p, "net.py"), pk_text(&p, "class Net"), put_literal(&p, "tQ)\x81}U\1xK\4sb");
    put_text(&p, "u.");
    file = legacy_file(&p, 6);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(has_floats(a, "view", counting_floats + 3, 2) && is_opaque(a, "m", "m.Net") &&
          int_of(a, "m.x") == 4);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

/* ---- types that no weight has ---- */

TEST(unknown_types) {
    static const char header[] =
        "{\"c\":{\"dtype\":\"C64\",\"shape\":[2],\"data_offsets\":[0,16]},"
        "\"f4\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[16,19]},"
        "\"d\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]},"
        "\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[20,24]}}";
    static const float five[] = {5};
    bytes data, file;
    ml_archive *a;
    float floats[2];
    int64_t ints[2];
    memset(&data, 0, sizeof data);
    put_floats(&data, 0, 6);
    file = safetensors_file(header, data.data, data.size);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(has_shape(a, "c", ML_TYPE_NONE, 1, 2, 0) && has_shape(a, "f4", ML_TYPE_NONE, 2, 3, 2));
    CHECK(is_opaque(a, "d", "F32") && !ml_archive_find_array(a, "d") && a->n_arrays == 3);
    CHECK(strcmp(ml_archive_find_array(a, "c")->type_name, "C64") == 0 && has_floats(a, "w", five, 1));
    CHECK(strcmp(ml_archive_find_array(a, "w")->type_name, "F32") == 0);
    CHECK(ml_array_read_floats(ml_archive_find_array(a, "c"), floats, 2) == ML_ERROR_UNSUPPORTED);
    CHECK(ml_array_read_ints(ml_archive_find_array(a, "c"), ints, 2) == ML_ERROR_UNSUPPORTED);
    CHECK(ml_array_read_floats(ml_archive_find_array(a, "c"), floats, 1) == ML_ERROR_ARGUMENT);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&data);

    memset(&file, 0, sizeof file);
    gguf_begin(&file, 3, 2, 2);
    gguf_key(&file, "lists", 9), put_u32(&file, 9), put_u64(&file, 2);
    put_u32(&file, 5), put_u64(&file, 1), put_u32(&file, 7); /* [[7], ["a", "b"]] */
    put_u32(&file, 8), put_u64(&file, 2), gguf_text(&file, "a"), gguf_text(&file, "b");
    gguf_key(&file, "after", 4), put_u32(&file, 3);
    gguf_tensor(&file, "new", 2, 3, 5, 99, 0), gguf_tensor(&file, "w", 1, 1, 1, 0, 32);
    gguf_pad(&file, 32);
    put_floats(&file, -3, 9);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(int_of(a, "after") == 3 && ml_archive_find_value(a, "lists")->length == 2);
    CHECK(ml_archive_find_value(a, "lists")->list_type == 9 && has_floats(a, "w", five, 1));
    CHECK(has_shape(a, "new", ML_TYPE_NONE, 2, 3, 5));
    CHECK(strcmp(ml_archive_find_array(a, "new")->type_name, "99") == 0);
    ml_archive_free(a);
    free_bytes(&file);
}

#if !defined(ML_NO_SAVE) && !defined(ML_NO_STDIO)
/* A model with one weight of a type that is not read: refused by its name. */
TEST(weight_of_unknown_type) {
    static const char path[] = "test_archive.tmp";
    ml_model_create_desc desc;
    ml_random random;
    ml_model *model = NULL;
    bytes file;
    FILE *f;
    int c;
    size_t i, at = 0;
    memset(&desc, 0, sizeof desc), memset(&file, 0, sizeof file);
    ml_random_seed(&random, 1);
    desc.config.dim = 8, desc.config.hidden_dim = 8, desc.config.n_layers = 1, desc.config.n_heads = 1;
    desc.config.vocab_size = 8, desc.config.max_seq_len = 8;
    desc.random = &random;
    desc.config.n_heads = 0;
    CHECK(ml_model_create(&desc, &model, &failure) == ML_ERROR_FORMAT && !model);
    desc.config.n_heads = 1;
    REQUIRE(!ml_model_create(&desc, &model, &failure));
    REQUIRE(!ml_model_save(model, path, NULL, &failure));
    ml_model_free(model);
    f = fopen(path, "rb");
    REQUIRE(f);
    while ((c = fgetc(f)) != EOF) put_u8(&file, (unsigned)c);
    fclose(f);
    remove(path);
    for (i = 0; i + 30 < file.size && !at; i++)
        if (memcmp(file.data + i, "blk.0.ffn_up.weight", 19) == 0) at = i + 19 + 4 + 16; /* its type */
    REQUIRE(at && file.data[at] == 0);
    file.data[at] = 99;
    CHECK(ml_model_load_memory(file.data, file.size, NULL, &model, &failure) == ML_ERROR_UNSUPPORTED);
    CHECK(strstr(failure.text, "blk.0.ffn_up.weight is of type 99") != NULL);
    free_bytes(&file);
}
#endif

static double integer(int64_t i) { return (double)i; }

TEST(pytorch_types_and_shapes) {
    /* every storage type over the same 8 bytes 1 0 0 0 0 0 0x80 0x3f */
    static const struct {
        const char *storage;
        ml_type type;
        int n;
        double first, last;
    } rows[] = {{"FloatStorage", ML_F32, 2, 1.40129846432e-45, 1.0},
                {"HalfStorage", ML_F16, 4, 5.9604644775390625e-08, 1.875},
                {"BFloat16Storage", ML_BF16, 4, 9.18354961579912e-41, 1.0},
                {"DoubleStorage", ML_F64, 1, 0.0078125, 0.0078125},
                {"LongStorage", ML_I64, 1, 4575657221408423937.0, 4575657221408423937.0},
                {"IntStorage", ML_I32, 2, 1, 1065353216},
                {"ShortStorage", ML_I16, 4, 1, 16256},
                {"CharStorage", ML_I8, 8, 1, 63},
                {"ByteStorage", ML_U8, 8, 1, 63},
                {"BoolStorage", ML_BOOL, 8, 1, 1}};
    static const unsigned char data[8] = {1, 0, 0, 0, 0, 0, 0x80, 0x3f};
    size_t i;
    for (i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pk_tensor_desc t;
        float values[8];
        int64_t ints[8];
        ml_archive *a;
        bytes p, file;
        zip z;
        memset(&t, 0, sizeof t), memset(&p, 0, sizeof p), memset(&z, 0, sizeof z);
        t.storage = rows[i].storage;
        t.key = "k";
        t.n_storage = t.shape[0] = rows[i].n;
        t.n_dims = 1, t.stride[0] = 1;
        pk_begin(&p), pk_tensor(&p, &t), put_u8(&p, '.');
        zip_add(&z, "x/data.pkl", p.data, p.size), zip_add(&z, "x/data/k", data, 8);
        file = zip_end(&z, 0, "");
        a = open_bytes(&file);
        REQUIRE(a);
        CHECK(has_shape(a, "", rows[i].type, 1, rows[i].n, 0)); /* a tensor alone has the empty name */
        CHECK(!ml_array_read_floats(&a->arrays[0], values, (size_t)rows[i].n));
        CHECK_NEAR(values[0], rows[i].first, 0, 1e-7); /* a float's rounding */
        CHECK_NEAR(values[rows[i].n - 1], rows[i].last, 0, 1e-7);
        if (rows[i].type >= ML_I64) {
            CHECK(!ml_array_read_ints(&a->arrays[0], ints, (size_t)rows[i].n));
            CHECK(integer(ints[0]) == rows[i].first && integer(ints[rows[i].n - 1]) == rows[i].last);
        } else {
            CHECK(ml_array_read_ints(&a->arrays[0], ints, (size_t)rows[i].n) == ML_ERROR_MISMATCH);
        }
        CHECK(ml_array_read_floats(&a->arrays[0], values, 3) == ML_ERROR_ARGUMENT);
        ml_archive_free(a);
        free_bytes(&file), free_bytes(&p);
    }
}

/* A view (2, 2, 3) into 24 numbers with strides 12, 1, 4 from 1 on, against the formula; and empty and broadcast
   ones. */
TEST(strides) {
    pk_tensor_desc t;
    float values[12];
    ml_archive *a;
    bytes p, file;
    int i, j, k;
    memset(&t, 0, sizeof t), memset(&p, 0, sizeof p);
    t.storage = "FloatStorage", t.key = "0";
    t.n_storage = 24, t.offset = 1, t.n_dims = 3;
    t.shape[0] = 2, t.shape[1] = 2, t.shape[2] = 3;
    t.stride[0] = 12, t.stride[1] = 1, t.stride[2] = 4;
    pk_begin(&p), put_u8(&p, '('), pk_tensor(&p, &t);
    t.shape[1] = 0; /* nothing in it */
    pk_tensor(&p, &t);
    t.shape[1] = 2, t.stride[0] = t.stride[1] = t.stride[2] = 0; /* the same number twelve times */
    pk_tensor(&p, &t);
    t.shape[0] = t.shape[1] = 1, t.stride[0] = INT64_MAX, t.stride[2] = 1; /* a stride that nobody takes */
    pk_tensor(&p, &t);
    put_text(&p, "t.");
    file = pt_file(&p, 24);
    a = open_bytes(&file);
    REQUIRE(a);
    CHECK(!ml_array_read_floats(ml_archive_find_array(a, "0"), values, 12));
    for (i = 0; i < 2; i++)
        for (j = 0; j < 2; j++)
            for (k = 0; k < 3; k++) CHECK(values[(i * 2 + j) * 3 + k] == (float)(1 + 12 * i + j + 4 * k));
    CHECK(ml_array_count(ml_archive_find_array(a, "1")) == 0 &&
          !ml_array_read_floats(ml_archive_find_array(a, "1"), values, 0));
    CHECK(!ml_array_read_floats(ml_archive_find_array(a, "2"), values, 12));
    for (i = 0; i < 12; i++) CHECK(values[i] == 1);
    CHECK(ml_archive_find_array(a, "3")->is_contiguous &&
          !ml_array_read_floats(ml_archive_find_array(a, "3"), values, 3));
    CHECK(values[0] == 1 && values[2] == 3);
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&p);
}

TEST(gguf) {
    static const float a_values[] = {10, 11, 12, 13, 14, 15};
    float q[32];
    int i;
    bytes file = small_gguf();
    ml_archive *a = open_bytes(&file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "GGUF") == 0 && a->n_arrays == 2 && a->n_values == 16);
    CHECK(has_shape(a, "a", ML_F32, 2, 2, 3) && has_floats(a, "a", a_values, 6));
    CHECK(has_shape(a, "q", ML_Q8_0, 2, 1, 32) &&
          !ml_array_read_floats(ml_archive_find_array(a, "q"), q, 32));
    for (i = 0; i < 32; i++) CHECK(q[i] == 0.5f * (float)(i - 16));
    CHECK(ml_archive_find_array(a, "a")->data ==
          file.data + file.size - 66); /* in place: 24 + 8 + 34 bytes from the end */
    CHECK(has_text(a, "general.architecture", "llama") && int_of(a, "general.alignment") == 16);
    CHECK(int_of(a, "u8") == 200 && int_of(a, "i8") == -56 && int_of(a, "u16") == 40000 &&
          int_of(a, "i16") == -25536);
    CHECK(int_of(a, "u32") == 4000000000 && int_of(a, "i32") == -294967296 && int_of(a, "i64") == -2);
    CHECK(int_of(a, "u64") == INT64_MAX && ml_archive_find_value(a, "u64")->f == 18446744073709551616.0);
    CHECK(int_of(a, "bool") == 1 && ml_archive_find_value(a, "f32")->f == 0.25);
    CHECK(ml_archive_find_value(a, "f64")->f == -2.5 &&
          ml_archive_find_value(a, "f64")->kind == ML_VALUE_FLOAT);
    CHECK(ml_archive_find_value(a, "ints")->kind == ML_VALUE_LIST &&
          ml_archive_find_value(a, "ints")->length == 3);
    CHECK(ml_archive_find_value(a, "ints")->list_type == 5);
    CHECK(memcmp(ml_archive_find_value(a, "ints")->s, "\7\0\0\0\x08\0\0\0\x09", 9) == 0);
    CHECK(ml_archive_find_value(a, "texts")->length == 2 &&
          ml_archive_find_value(a, "texts")->list_type == 8);
    CHECK(memcmp(ml_archive_find_value(a, "texts")->s, "\3\0\0\0\0\0\0\0one", 11) == 0);
    CHECK(ml_archive_find_value(a, "none")->length == 0);
    ml_archive_free(a);
    free_bytes(&file);
}

TEST(safetensors) {
    static const float b_values[] = {1, -2}, t_values[] = {1, 0}, s_values[] = {0.1f};
    int64_t i;
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    REQUIRE(a);
    CHECK(strcmp(a->format, "safetensors") == 0 && a->n_arrays == 5);
    CHECK(has_shape(a, "w", ML_F32, 2, 2, 3) && has_floats(a, "w", counting_floats, 6));
    CHECK(has_shape(a, "b", ML_BF16, 1, 2, 0) && has_floats(a, "b", b_values, 2));
    CHECK(has_shape(a, "i", ML_I64, 1, 1, 0) && !ml_array_read_ints(ml_archive_find_array(a, "i"), &i, 1) &&
          i == -3);
    CHECK(has_shape(a, "t", ML_BOOL, 2, 1, 2) && has_floats(a, "t", t_values, 2));
    CHECK(has_shape(a, "s", ML_F64, 0, 0, 0) && has_floats(a, "s", s_values, 1));
    CHECK(has_text(a, "__metadata__.format", "pt"));
    CHECK(has_text(a, "__metadata__.a\"b", "\xc3\xa4\xf0\x9f\x98\x80\n")); /* RFC 8259's pair, as UTF-8 */
    ml_archive_free(a);
    free_bytes(&file);
}

/* Headers that could be taken for other files: a length that begins as a gzip does, and the word of a tar. */
TEST(safetensors_like_others) {
    static const char json[] =
        "{\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"__metadata__\":{\"a\":\"%*s\"}}";
    const size_t length = 0x8b1f; /* 1f 8b */
    bytes b = {NULL, 0, 0};
    char *header = (char *)malloc(length + 1);
    REQUIRE(header);
    snprintf(header, length + 1, json, (int)(length - sizeof json + 4), "");
    CHECK(strlen(header) == length);
    memcpy(header + 257 - 8, "ustar", 5);
    put_u64(&b, length), put(&b, header, length), put_floats(&b, 0, 2);
    ml_archive *a = open_bytes(&b);
    REQUIRE(a);
    CHECK(has_floats(a, "w", counting_floats, 2));
    ml_archive_free(a);
    free(header), free_bytes(&b);
}

TEST(llama2c) {
    int version, is_shared, i;
    for (version = 0; version < 3; version++)
        for (is_shared = 0; is_shared < 2; is_shared++) {
            bytes file = small_bin(version, is_shared);
            ml_archive *a = open_bytes(&file);
            size_t n;
            float *w2, *norm;
            REQUIRE(a);
            CHECK(strcmp(a->format, "llama2.c") == 0);
            CHECK(a->n_arrays == (size_t)(2 + 9 * BIN_L + !is_shared));
            CHECK(has_shape(a, "tok_embeddings.weight", ML_F32, 2, BIN_V, BIN_D));
            CHECK(has_shape(a, "layers.1.attention.wk.weight", ML_F32, 2, BIN_KD, BIN_D));
            CHECK(has_shape(a, "layers.0.feed_forward.w3.weight", ML_F32, 2, BIN_H, BIN_D));
            CHECK(has_shape(a, "layers.1.ffn_norm.weight", ML_F32, 1, BIN_D, 0));
            CHECK((ml_archive_find_array(a, "output.weight") == NULL) == is_shared);
            w2 = floats_of(a, "layers.1.feed_forward.w2.weight", &n);
            norm = floats_of(a, "norm.weight", &n);
            REQUIRE(w2 && norm);
            CHECK(norm[0] == 200 && norm[7] == 207);
            if (version < 2) {
                CHECK(w2[0] == 1900 && w2[95] == 1995);
            } else { /* byte * scale of its group of four; 1900 is 108 modulo 256 */
                CHECK(w2[0] == 54 && w2[3] == 55.5f && w2[4] == 112);
                CHECK(w2[95] == 0.5f * 24 * (float)(((1995 & 255) ^ 128) - 128));
            }
            for (i = 0; i < 7; i++) {
                static const char *names[] = {"dim",        "hidden_dim", "n_layers",   "n_heads",
                                              "n_kv_heads", "vocab_size", "max_seq_len"};
                static const int expected[] = {BIN_D, BIN_H, BIN_L, BIN_A, BIN_KV, BIN_V, BIN_S};
                char name[64];
                snprintf(name, sizeof name, "model_args.%s", names[i]);
                CHECK(int_of(a, name) == expected[i]);
            }
            free(w2), free(norm);
            ml_archive_free(a);
            free_bytes(&file);
        }
}

/* ---- JSON ---- */

static double number_of(const char *text) {
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    double f = NAN;
    if (a && !mli_json_values(a->private_part, "x", text, strlen(text), &failure)) {
        const ml_value *v = ml_archive_find_value(a, "x");
        if (v) f = v->f;
    }
    ml_archive_free(a);
    free_bytes(&file);
    return f;
}

TEST(json_values) {
    static const char text[] =
        " { \"hidden_size\" : 64, \"eps\":1e-05, \"theta\":10000.0,\"tied\":true , \"no\":false,\n"
        "\"rope\":{\"type\":\"linear\",\"factor\":-2.5E+1},\"none\":null,\"eos\":[1,2 ,[]],\"e\":{},"
        "\"big\":9223372036854775807,\"bigger\":9223372036854775808,\"\\u004B\\/\":\"\\t\\\\\"} ";
    bytes file = small_safetensors();
    ml_archive *a = open_bytes(&file);
    size_t before;
    REQUIRE(a);
    before = a->n_values;
    REQUIRE(!mli_json_values(a->private_part, "", text, sizeof text - 1, &failure));
    CHECK(a->n_values == before + 12);
    CHECK(int_of(a, "hidden_size") == 64 && int_of(a, "tied") == 1 && int_of(a, "no") == 0);
    CHECK(ml_archive_find_value(a, "eps")->f == 1e-05 && ml_archive_find_value(a, "theta")->f == 10000.0);
    CHECK(ml_archive_find_value(a, "theta")->kind == ML_VALUE_FLOAT && has_text(a, "rope.type", "linear"));
    CHECK(ml_archive_find_value(a, "rope.factor")->f == -25 && int_of(a, "eos.1") == 2);
    CHECK(ml_archive_find_value(a, "bigger")->kind == ML_VALUE_FLOAT);
    CHECK(int_of(a, "big") == INT64_MAX && ml_archive_find_value(a, "bigger")->f == 9223372036854775808.0);
    CHECK(has_text(a, "K/", "\t\\") && !ml_archive_find_value(a, "none"));
    CHECK(has_text(a, "__metadata__.format", "pt")); /* what was there before is still there */
    ml_archive_free(a);
    free_bytes(&file);
    /* against the C library's own conversion. Exact up to 15 digits and powers of ten to 22; else within 4 units of
       the last place, each step of scaling being one rounding */
    {
        static const char *exact[] = {"0",    "-0.0",   "0.1",     "123456.789",
                                      "1e22", "5e-324", "0.00001", "3.14159265358979"};
        static const char *near[] = {"1.7976931348623157e308",
                                     "2.2250738585072014e-308",
                                     "123456789012345678901234567890",
                                     "0.3333333333333333333333333333",
                                     "6.02214076e23",
                                     "1e-200",
                                     "9.9e99"};
        size_t i;
        for (i = 0; i < sizeof exact / sizeof exact[0]; i++)
            CHECK(number_of(exact[i]) == strtod(exact[i], NULL));
        for (i = 0; i < sizeof near / sizeof near[0]; i++)
            CHECK_NEAR(number_of(near[i]), strtod(near[i], NULL), 0, 4 * 2.220446049250313e-16);
        CHECK(number_of("1e400") > 1e308 && number_of("1e-400") == 0 && number_of("0e999999999999") == 0);
    }
}

/* What Python reads without a word: words for numbers that are not finite, and of equal keys the last. A byte order
   mark is what Windows puts in front. A key that cannot be part of a name is passed over, with all that it holds. */
TEST(json_of_python) {
    bytes file = small_safetensors(), json;
    ml_archive *a = open_bytes(&file);
    const ml_value *value;
    size_t i;
    REQUIRE(a);
    memset(&json, 0, sizeof json);
    put_text(&json, "\xef\xbb\xbf {\"a\": 1, \"n\": [NaN, Infinity, -Infinity], \"\\u0000\": {\"b\": [2]}, "
                    "\"a\": 3, \"a\": 4, \"");
    for (i = 0; i < 5000; i++) put_u8(&json, 'k');
    put_text(&json, "\": {\"c\": [1, {\"d\": \"e\"}], \"f\": null}, \"g\": \"h\"}");
    REQUIRE(!mli_json_values(a->private_part, "", json.data, json.size, &failure));
    CHECK(a->n_values == 2 + 5 && has_text(a, "g", "h"));
    value = ml_archive_find_value(a, "a");
    CHECK(value && value->kind == ML_VALUE_INT && value->i == 4);
    for (i = 0; i < 3; i++) {
        const char name[4] = {'n', '.', (char)('0' + i), 0};
        value = ml_archive_find_value(a, name);
        CHECK(value && value->kind == ML_VALUE_FLOAT);
        if (value) CHECK(i == 0 ? value->f != value->f : i == 1 ? value->f > 1e308 : value->f < -1e308);
    }
    ml_archive_free(a);
    free_bytes(&file), free_bytes(&json);
}

TEST(json_errors) {
    static const char *wrong[] = {
        "",        "{",         "{\"a\"}",     "{\"a\":}",     "{\"a\":1",  "{\"a\":1,}", "[1 2]", "\"a",
        "\"\\x\"", "\"\\u12\"", "01x",         "1.",           "-",         "1e",         "tru",   "{a:1}",
        "{} {}",   "\"a\nb\"",  "{\"a\":nan}", "{\"a\":-Inf}", "\"\\u0041", "[",          "]"};
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        bytes file = small_safetensors();
        ml_archive *a = open_bytes(&file);
        ml_result result;
        REQUIRE(a);
        result = mli_json_values(a->private_part, "", wrong[i], strlen(wrong[i]), &failure);
        if (result != ML_ERROR_FORMAT || !failure.text[0]) printf("case %d: %s\n", (int)i, wrong[i]);
        CHECK(result == ML_ERROR_FORMAT && failure.text[0]);
        CHECK(a->n_values == 2 && has_text(a, "__metadata__.format", "pt")); /* as it was */
        CHECK(!ml_archive_find_value(a, "a"));
        ml_archive_free(a);
        free_bytes(&file);
    }
}

/* ---- what is no model, and files that cannot be opened ---- */

/* Their zip file's end is then not where it is looked for. */
TEST(bytes_after_a_pt) {
    bytes file = small_pt();
    for (int i = 0; i < 70000; i++) put_u8(&file, 0);
    CHECK(refused(file.data, file.size, ML_ERROR_TRUNCATED, "or has more bytes: it ends at byte 70945"));
    free_bytes(&file);
}

TEST(not_a_model) {
    char tar[512];
    ml_archive *none = NULL;
    CHECK(refused("", 0, ML_ERROR_FORMAT, "empty"));
    CHECK(refused(NULL, 0, ML_ERROR_FORMAT, "empty"));
    CHECK(refused("\xff\xd8\xff\xe0 JFIF", 9, ML_ERROR_FORMAT, "JPEG"));
    CHECK(refused("<!DOCTYPE html><html>Not found</html>", 37, ML_ERROR_FORMAT, "web page"));
    CHECK(refused("  {\"hidden_size\": 64}", 21, ML_ERROR_FORMAT, "JSON"));
    CHECK(refused("Once upon a time there was a file.", 34, ML_ERROR_FORMAT, "text"));
    CHECK(refused("version https://git-lfs.github.com/spec/v1\noid", 46, ML_ERROR_FORMAT, "git lfs pull"));
    CHECK(refused("\7\0\0\0\0\0\0\0\5\0\0\0<unk>\0\0\0\0", 21, ML_ERROR_FORMAT, "tokenizer"));
    CHECK(refused("\x0a\x0e\x0a\5<unk>\x15\0\0\0\0\x18\2", 16, ML_ERROR_FORMAT, "tokenizer"));
    CHECK(refused("fmgg\1\0\0\0", 8, ML_ERROR_FORMAT, "a ggml file from before GGUF"));
    CHECK(refused("\xfd"
                  "7zXZ\0\0\4",
                  8, ML_ERROR_FORMAT, "compressed with xz"));
    CHECK(refused("\x80\x02\x8a\x0al\xfc\x9c"
                  "F\xf9 j\xa8P\x19.",
                  15, ML_ERROR_TRUNCATED, "its pickle is cut short"));
    memset(tar, 'x', sizeof tar), memcpy(tar + 257, "ustar", 5);
    CHECK(refused(tar, sizeof tar, ML_ERROR_FORMAT, "a tar archive"));
    CHECK(refused("\x1f\x8b\x08\0\0\0\0\0\0\3", 10, ML_ERROR_FORMAT, "compressed with gzip"));
    CHECK(refused("\x01\x02\x03\x04\x05\x06\x07\x08\x09", 9, ML_ERROR_FORMAT,
                  "starts with the bytes 01 02 03 04 05 06 07 08"));
    CHECK(refused("\x01", 1, ML_ERROR_FORMAT, "bytes 01"));
    CHECK(refused("GGUF\0\0\0\3\0\0\0\0\0\0\0\1", 16, ML_ERROR_TRUNCATED, "cut short"));
    CHECK(refused("GGUF\0\0\0\3\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0", 24, ML_ERROR_UNSUPPORTED, "big-endian"));
    CHECK(refused("GGUF\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, ML_ERROR_UNSUPPORTED, "version 1"));
    CHECK(ml_archive_load_memory("GGUF", 4, NULL, NULL, &failure) == ML_ERROR_ARGUMENT);
    CHECK(ml_archive_load_memory(NULL, 4, NULL, &none, NULL) == ML_ERROR_ARGUMENT);
    ml_archive_free(NULL);
}

static void write_file(const char *path, const bytes *b) {
    FILE *f = fopen(path, "wb");
    if (!f || (b->size && fwrite(b->data, 1, b->size, f) != b->size)) printf("cannot write %s\n", path);
    if (f) fclose(f);
}

TEST(files_on_disk) {
    static const char path[] = "test_archive.tmp";
    bytes file = small_pt(), empty;
    ml_archive *a = NULL;
    mli_file mapped;
    ml_allocator allocator;
    memset(&empty, 0, sizeof empty);
    REQUIRE(!mli_resolve_allocator(NULL, &allocator, NULL));
    remove(path);
    write_file(path, &file);
    REQUIRE(!ml_archive_load(path, NULL, &a, &failure));
    CHECK(has_floats(a, "model.w", counting_floats, 6) && failure.code == ML_OK && !failure.text[0]);
    remove(path); /* a mapping outlives its name */
    CHECK(has_floats(a, "model.w", counting_floats, 6));
    ml_archive_free(a);
    CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FILE && !a);
    CHECK(strstr(failure.text, path) && strstr(failure.text, "cannot be opened") &&
          strstr(failure.text, strerror(ENOENT)));
    CHECK(ml_archive_load(".", NULL, &a, &failure) == ML_ERROR_FILE);
    CHECK(ml_archive_load(NULL, NULL, &a, &failure) == ML_ERROR_ARGUMENT);
    write_file(path, &empty);
    CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FORMAT && strstr(failure.text, "empty"));
    REQUIRE(!mli_map_file(path, &allocator, &mapped, &failure));
    CHECK(mapped.size == 0);
    mli_unmap_file(&allocator, &mapped);
    remove(path);
#ifdef FILES_ARE_MAPPED
    if (mkfifo(path, 0600) == 0) { /* it has no writer: opening must not wait */
        CHECK(ml_archive_load(path, NULL, &a, &failure) == ML_ERROR_FILE &&
              strstr(failure.text, "not a regular file"));
        remove(path);
    }
#endif
    const char *shorter =
        "/sys/devices/system/cpu/online"; /* a page by its size, a few bytes when it is read */
    if (access(shorter, R_OK) == 0)
        CHECK(ml_archive_load(shorter, NULL, &a, &failure) == ML_ERROR_FILE && !a);
    free_bytes(&file);
}

/* ---- memory ---- */

/* Opens with the n-th allocation failing, for each n until none fails: the code must say so, and nothing be lost. */
static void sweep(const bytes *file) {
    size_t n;
    for (n = 1; n < 10000; n++) {
        counting c;
        ml_load_desc desc;
        ml_archive *a = NULL;
        ml_result result;
        memset(&c, 0, sizeof c), memset(&desc, 0, sizeof desc);
        c.fail_at = n;
        desc.allocator.alloc = counting_alloc;
        desc.allocator.free = counting_free;
        desc.allocator.user = &c;
        result = ml_archive_load_memory(file->data, file->size, &desc, &a, &failure);
        if (!result) {
            CHECK(c.n_calls < n && n > 3); /* the last round: nothing failed */
            ml_archive_free(a);
            CHECK(c.n_live == 0);
            return;
        }
        CHECK(result == ML_ERROR_MEMORY && failure.code == ML_ERROR_MEMORY && failure.text[0]);
        CHECK(c.n_live == 0 && !a);
        CHECK(ml_archive_load_memory(file->data, file->size, &desc, &a, NULL) ==
              ML_OK); /* only the n-th fails */
        ml_archive_free(a);
    }
    CHECK(n < 10000); /* the sweep ends */
}

TEST(every_allocation_fails_once) {
    int i;
    for (i = 0; i < 6; i++) {
        bytes file = i == 0   ? small_pt()
                     : i == 5 ? small_legacy()
                     : i == 1 ? small_gguf()
                     : i == 2 ? small_safetensors()
                              : small_bin(i - 2, 0);
        sweep(&file);
        free_bytes(&file);
    }
}

TEST(arena) {
    static uint64_t memory[4096];
    bytes file = small_gguf();
    ml_arena arena;
    ml_load_desc desc;
    ml_archive *a = NULL;
    memset(&arena, 0, sizeof arena), memset(&desc, 0, sizeof desc);
    arena.memory = (unsigned char *)memory;
    arena.size = sizeof memory;
    desc.allocator = ml_arena_allocator(&arena);
    REQUIRE(!ml_archive_load_memory(file.data, file.size, &desc, &a, &failure));
    CHECK(has_shape(a, "a", ML_F32, 2, 2, 3) && int_of(a, "u8") == 200);
    ml_archive_free(a);
    arena.size = arena.used - 1;
    arena.used = 0;
    CHECK(ml_archive_load_memory(file.data, file.size, &desc, &a, &failure) == ML_ERROR_MEMORY);
    desc.allocator.free = NULL;
    CHECK(ml_archive_load_memory(file.data, file.size, &desc, &a, &failure) == ML_ERROR_ARGUMENT);
    free_bytes(&file);
}

/* ---- names in order ---- */

TEST(sorting_names) {
    static char text[2000][8];
    static mli_named names[2000];
    size_t i;
    uint32_t x = 1;
    for (i = 0; i < 2000; i++) {
        x = x * 1664525u + 1013904223u;
        names[i].length =
            (size_t)snprintf(text[i], sizeof text[i], "%u", (unsigned)(x >> 22)); /* with repeats */
        names[i].name = text[i];
        names[i].index = i;
    }
    mli_sort_named(names, 2000);
    for (i = 1; i < 2000; i++) {
        size_t n = names[i].length < names[i - 1].length ? names[i].length : names[i - 1].length;
        int order = strncmp(names[i - 1].name, names[i].name, n);
        CHECK(order < 0 || (order == 0 && names[i - 1].length <= names[i].length));
    }
    for (i = 0; i < 2000; i++) {
        const mli_named *found = mli_find_named(names, 2000, text[i], strlen(text[i]));
        CHECK(found && found->index <= i && strcmp(text[found->index], text[i]) == 0);
    }
    CHECK(!mli_find_named(names, 2000, "x", 1) && !mli_find_named(names, 2000, "", 0) &&
          !mli_find_named(names, 0, "1", 1));
}

/* ---- the real files ---- */

static const char *shared_path(const char *name) {
    static char path[1024];
    const char *root = getenv("MINILLAMA_SHARED");
    snprintf(path, sizeof path, "%s/%s", root ? root : "../shared", name);
    return path;
}

static int has_shared(void) {
    FILE *f = fopen(shared_path("models/stories260K.pt"), "rb");
    if (f) fclose(f);
    return f != NULL;
}

static ml_archive *open_shared(const char *name) {
    ml_archive *archive = NULL;
    if (ml_archive_load(shared_path(name), NULL, &archive, &failure)) printf("%s: %s\n", name, failure.text);
    return archive;
}

/* Tensors, numbers in them, their sum and that of their magnitudes in double, the last tensor's name and its last
   number: printed by PyTorch 1.13 (torch.load, .double().sum()); for GGUF, by its own few lines of numpy. */
static const struct {
    const char *name;
    size_t n_arrays, n;
    double sum, magnitude;
    const char *last_name;
    double last;
} totals[] = {
    {"models/stories260K-bf16.pt", 49, 292801, -765.261319442, 38984.362373, "best_val_loss", 1.25},
    {"models/stories260K-f16.pt", 49, 292801, -765.790161133, 38986.174803, "best_val_loss", 1.25},
    {"models/stories260K-meta-names.pt", 49, 292801, -765.809187606, 38985.9586253, "best_val_loss", 1.25},
    {"models/stories260K.pt", 49, 292801, -765.809187606, 38985.9586253, "best_val_loss", 1.25},
    {"reference/adamw_course.pt", 3, 3012, 1493.00673034, 1497.35778472, "weight_after", -0.374059141},
    {"reference/classify_finetune_layer_full.pt", 7, 1930, 264656.827609, 264892.857801, "head_bias_after",
     0.00071170344},
    {"reference/classify_finetune_rms_causal.pt", 7, 1930, 264655.336318, 264894.534929, "head_bias_after",
     0.000342579966},
    {"reference/classify_lora_layer_full.pt", 67, 16010, 264661.447205, 265075.881965,
     "after.layers.4.attention.compute_output.lora_B", 0.00352384849},
    {"reference/classify_lora_rms_causal.pt", 67, 16010, 264660.953616, 265078.872789,
     "after.layers.4.attention.compute_output.lora_B", 0.00263982359},
    {"reference/course-rotary_embedding.data", 2, 32, 70.8050467968, 76.8284189701, "1", 3.02984953},
    {"reference/course-sanity_check.data", 2, 72192, 10166.882538, 79266.1359094, "hidden_states",
     1.40859616},
    {"reference/forward.pt", 9, 36880, -172204.449136, 281039.791366, "layer_causal_hidden", 1.20849395},
    {"reference/llamacpp_tiny.pt", 21, 108810, 3438.4774519, 31148.415331, "Q4_0.blk.2.ffn_down.weight",
     0.0754394531},
    {"reference/lm_train.pt", 97, 520330, 87182.5710578, 119726.368479, "losses", 0.0271881148},
    {"reference/zeroshot_sst_dev40.pt", 3, 600, -16301.2988081, 16301.2988081, "rms_causal_scores",
     -36.9807205},
    {"models/llamacpp/stories260K-F32.gguf", 48, 292800, -767.059187606, 38984.7086253,
     "blk.4.ffn_norm.weight", 1.23426116},
    {"models/llamacpp/tiny-BF16.gguf", 30, 213440, 483.333541288, 20838.6453793, "blk.2.ffn_up.weight",
     -0.121582031},
    {"models/llamacpp/tiny-F16.gguf", 30, 213440, 483.589273751, 20838.563117, "blk.2.ffn_up.weight",
     -0.121582031},
    {"models/llamacpp/tiny-F32.gguf", 30, 213440, 483.594043278, 20838.5664496, "blk.2.ffn_norm.weight",
     0.993555069},
    {"models/llamacpp/tiny-Q4_0.gguf", 30, 213440, 488.169011056, 20751.6138486, "blk.2.ffn_up.weight",
     -0.118835449},
    {"models/llamacpp/tiny-Q8_0.gguf", 30, 213440, 484.116070688, 20837.8951711, "blk.2.ffn_up.weight",
     -0.122245789},
};

TEST(shared_totals) {
    size_t f, i, k, n;
    if (!has_shared()) SKIP("../shared is absent");
    for (f = 0; f < sizeof totals / sizeof totals[0]; f++) {
        ml_archive *a = open_shared(totals[f].name);
        double sum = 0, magnitude = 0, last = 0;
        size_t count = 0;
        CHECK(a);
        if (!a) continue;
        for (i = 0; i < a->n_arrays; i++) {
            float *values = floats_of(a, a->arrays[i].name, &n);
            for (k = 0; values && k < n; k++) {
                last = (double)values[k];
                sum += last;
                magnitude += fabs(last);
            }
            count += n;
            free(values);
        }
        CHECK(a->n_arrays == totals[f].n_arrays && count == totals[f].n);
        CHECK(strcmp(a->arrays[a->n_arrays - 1].name, totals[f].last_name) == 0);
        /* the sums are printed with 12 digits and taken in another order */
        CHECK_NEAR(sum, totals[f].sum, 1e-11 * totals[f].magnitude, 0);
        CHECK_NEAR(magnitude, totals[f].magnitude, 0, 1e-11);
        CHECK_NEAR(last, totals[f].last, 0, 1e-8);
        ml_archive_free(a);
    }
}

TEST(shared_values) {
    ml_archive *a;
    const ml_array *w;
    int64_t ids[16];
    float *values;
    size_t n;
    if (!has_shared()) SKIP("../shared is absent");
    a = open_shared("models/stories260K.pt");
    REQUIRE(a);
    CHECK(int_of(a, "model_args.dim") == 64 && int_of(a, "model_args.n_layers") == 5);
    CHECK(int_of(a, "model_args.n_heads") == 8 && int_of(a, "model_args.n_kv_heads") == 4);
    CHECK(int_of(a, "model_args.vocab_size") == 512 && int_of(a, "model_args.multiple_of") == 4);
    CHECK(int_of(a, "iter_num") == 164000 && has_text(a, "config.dtype", "float32") &&
          int_of(a, "config.decay_lr") == 1);
    CHECK(ml_archive_find_value(a, "config.learning_rate")->f == 0.0005);
    CHECK(has_shape(a, "model.tok_embeddings.weight", ML_F32, 2, 512, 64));
    CHECK(has_shape(a, "model.layers.4.attention.compute_key.weight", ML_F32, 2, 32, 64));
    CHECK(has_shape(a, "best_val_loss", ML_F32, 0, 0, 0));
    w = ml_archive_find_array(a, "model.output.weight");
    CHECK(w && w->data == ml_archive_find_array(a, "model.tok_embeddings.weight")->data); /* shared storage */
    values = floats_of(a, "model.layers.4.attention.compute_key.weight", &n);
    CHECK(values && values[0] == -0.0258608498f && values[n - 1] == -0.265130162f);
    free(values);
    ml_archive_free(a);
    a = open_shared("reference/forward.pt");
    REQUIRE(a);
    CHECK(has_shape(a, "tokens", ML_I64, 2, 2, 8) &&
          ml_archive_find_array(a, "rms_full_logits")->n_dims == 3);
    CHECK(!ml_array_read_ints(ml_archive_find_array(a, "tokens"), ids, 16) && ids[0] == 1);
    ml_archive_free(a);
}

/* The same weights under another name in another format: equal to the bit, or for 16 bits within half a unit. */
static int same_weights(const ml_archive *a, const char *a_name, const ml_archive *b, const char *b_name,
                        double relative) {
    size_t n, m, i;
    float *x = floats_of(a, a_name, &n), *y = floats_of(b, b_name, &m);
    int same = x && y && n == m;
    for (i = 0; same && i < n; i++)
        if (!(fabs((double)x[i] - (double)y[i]) <= relative * fabs((double)x[i]) + (relative > 0 ? 6e-8 : 0)))
            same = 0;
    free(x), free(y);
    if (!same) printf("%s and %s differ\n", a_name, b_name);
    return same;
}

typedef struct renamed {
    const char *course, *meta, *hf, *gguf;
} renamed;
static const renamed renamings[] = {
    {"attention.compute_query", "attention.wq", "", "attn_q"},
    {"attention.compute_key", "attention.wk", "", "attn_k"},
    {"attention.compute_value", "attention.wv", "self_attn.v_proj", "attn_v"},
    {"attention.compute_output", "attention.wo", "self_attn.o_proj", "attn_output"},
    {"feed_forward.w1", "feed_forward.w1", "mlp.gate_proj", "ffn_gate"},
    {"feed_forward.w2", "feed_forward.w2", "mlp.down_proj", "ffn_down"},
    {"feed_forward.w3", "feed_forward.w3", "mlp.up_proj", "ffn_up"},
    {"attention_norm", "attention_norm", "input_layernorm", "attn_norm"},
    {"ffn_norm", "ffn_norm", "post_attention_layernorm", "ffn_norm"},
};

TEST(shared_formats_agree) {
    ml_archive *pt, *meta, *f16, *bf16, *bin, *gguf, *hf;
    char a[128], b[128];
    size_t i;
    int layer;
    if (!has_shared()) SKIP("../shared is absent");
    pt = open_shared("models/stories260K.pt"), meta = open_shared("models/stories260K-meta-names.pt");
    f16 = open_shared("models/stories260K-f16.pt"), bf16 = open_shared("models/stories260K-bf16.pt");
    bin = open_shared("models/stories260K.bin"), gguf = open_shared("models/llamacpp/stories260K-F32.gguf");
    hf = open_shared("models/stories260K-hf/model.safetensors");
    REQUIRE(pt && meta && f16 && bf16 && bin && gguf && hf);
    CHECK(same_weights(pt, "model.norm.weight", bin, "norm.weight", 0));
    CHECK(same_weights(pt, "model.norm.weight", gguf, "output_norm.weight", 0));
    CHECK(same_weights(pt, "model.norm.weight", hf, "model.norm.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", bin, "tok_embeddings.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", gguf, "token_embd.weight", 0));
    CHECK(same_weights(pt, "model.tok_embeddings.weight", hf, "model.embed_tokens.weight", 0));
    for (layer = 0; layer < 5; layer++) {
        for (i = 0; i < sizeof renamings / sizeof renamings[0]; i++) {
            const renamed *r = &renamings[i];
            snprintf(a, sizeof a, "model.layers.%d.%s.weight", layer, r->course);
            CHECK(same_weights(pt, a, f16, a, 4.8828125e-4)); /* 2^-11, or 2^-24 below the normal range */
            snprintf(b, sizeof b, "model._orig_mod.layers.%d.%s.weight", layer, r->meta);
            CHECK(same_weights(pt, a, meta, b, 0));
            CHECK(same_weights(pt, a, bf16, a, 3.90625e-3)); /* 2^-8 */
            snprintf(b, sizeof b, "layers.%d.%s.weight", layer, r->meta);
            CHECK(same_weights(pt, a, bin, b, 0));
            snprintf(b, sizeof b, "blk.%d.%s.weight", layer, r->gguf);
            CHECK(same_weights(pt, a, gguf, b, 0));
            snprintf(b, sizeof b, "model.layers.%d.%s.weight", layer, r->hf);
            if (r->hf[0]) CHECK(same_weights(pt, a, hf, b, 0));
        }
        /* Hugging Face permutes the rows of q and k: its row h*8 + j*4 + i of a head of 8 is ours h*8 + 2*i + j */
        for (i = 0; i < 2; i++) {
            size_t n, m, row, col, ours;
            float *x, *y;
            snprintf(a, sizeof a, "model.layers.%d.attention.compute_%s.weight", layer, i ? "key" : "query");
            snprintf(b, sizeof b, "model.layers.%d.self_attn.%c_proj.weight", layer, i ? 'k' : 'q');
            x = floats_of(pt, a, &n), y = floats_of(hf, b, &m);
            CHECK(x && y && n == m);
            for (row = 0; x && y && row < n / 64; row++) {
                ours = row / 8 * 8 + row % 4 * 2 + row % 8 / 4;
                for (col = 0; col < 64; col++) CHECK(y[row * 64 + col] == x[ours * 64 + col]);
            }
            free(x), free(y);
        }
    }
    ml_archive_free(pt), ml_archive_free(meta), ml_archive_free(f16), ml_archive_free(bf16);
    ml_archive_free(bin), ml_archive_free(gguf), ml_archive_free(hf);
}

/* llama2.c's Q8 in groups of 4: the rounding is at most half a step, and a step is the group's largest / 127. */
TEST(shared_quantized_bin) {
    ml_archive *exact, *quantized;
    size_t i, k, n, m;
    if (!has_shared()) SKIP("../shared is absent");
    exact = open_shared("models/stories260K.bin"), quantized = open_shared("models/stories260K_v2_q80.bin");
    REQUIRE(exact && quantized && exact->n_arrays == quantized->n_arrays);
    for (i = 0; i < exact->n_arrays; i++) {
        const char *name = exact->arrays[i].name;
        float *x = floats_of(exact, name, &n), *y = floats_of(quantized, name, &m);
        CHECK(x && y && n == m);
        for (k = 0; x && y && k < n; k += 4) {
            double largest = 0;
            size_t j;
            for (j = 0; j < 4; j++) largest = fmax(largest, fabs((double)x[k + j]));
            for (j = 0; j < 4; j++)
                CHECK(fabs((double)x[k + j] - (double)y[k + j]) <= largest / 127 * 0.50001);
        }
        free(x), free(y);
    }
    ml_archive_free(exact), ml_archive_free(quantized);
}

/* Tensors of llama.cpp's own files, against their values in PyTorch. */
TEST(shared_gguf_types) {
    static const char *types[] = {"F32", "F16", "BF16", "Q8_0", "Q4_0"};
    static const char *names[] = {"blk.0.attn_q.weight", "blk.2.ffn_down.weight"};
    ml_archive *reference;
    char path[64], name[64];
    size_t t, i, k, n, m;
    if (!has_shared()) SKIP("../shared is absent");
    reference = open_shared("reference/llamacpp_tiny.pt");
    REQUIRE(reference);
    for (t = 0; t < 5; t++) {
        ml_archive *a;
        snprintf(path, sizeof path, "models/llamacpp/tiny-%s.gguf", types[t]);
        a = open_shared(path);
        REQUIRE(a);
        CHECK(int_of(a, "llama.embedding_length") == 64 && int_of(a, "llama.attention.head_count_kv") == 2);
        CHECK(has_text(a, "general.architecture", "llama"));
        CHECK(ml_archive_find_value(a, "tokenizer.ggml.tokens")->length == 512);
        CHECK_NEAR(ml_archive_find_value(a, "llama.attention.layer_norm_rms_epsilon")->f, 1e-5, 0,
                   6e-8); /* a float */
        for (i = 0; i < 2; i++) {
            snprintf(name, sizeof name, "%s.%s", types[t], names[i]);
            CHECK(same_weights(reference, name, a, names[i], 0));
            CHECK(strcmp(ml_type_name(ml_archive_find_array(a, names[i])->type), types[t]) == 0);
        }
        snprintf(name, sizeof name, "%s.token_embd.weight[:4]", types[t]);
        {
            float *x = floats_of(reference, name, &n), *y = floats_of(a, "token_embd.weight", &m);
            CHECK(x && y && n == 256 && m == 512 * 64);
            for (k = 0; x && y && k < n; k++) CHECK(x[k] == y[k]);
            free(x), free(y);
        }
        ml_archive_free(a);
    }
    ml_archive_free(reference);
}

TEST(shared_files_that_fail) {
    ml_archive *a = NULL;
    ml_result result;
    if (!has_shared()) SKIP("../shared is absent");
    result = ml_archive_load(shared_path("models/stories42M.truncated.pt"), NULL, &a, &failure);
    CHECK(result == ML_ERROR_TRUNCATED && strstr(failure.text, "incomplete download"));
    CHECK(strstr(failure.text, "byte 237568 inside stories42M/data/0"));
    /* its header of 64 bytes, the pickle's 15,334 and, by Python's own unpickler, storages of 58,073,601 floats */
    CHECK(strstr(failure.text, "at least 232309802 bytes"));
    CHECK(ml_archive_load(shared_path("models/tok512.bin"), NULL, &a, &failure) == ML_ERROR_FORMAT);
    CHECK(strstr(failure.text, "tokenizer"));
    CHECK(ml_archive_load(shared_path("data/tokenizer.model"), NULL, &a, &failure) == ML_ERROR_FORMAT);
    CHECK(strstr(failure.text, "tokenizer"));
    CHECK(ml_archive_load(shared_path("models"), NULL, &a, &failure) == ML_ERROR_FILE);
    CHECK(ml_archive_load(shared_path("models/stories260K-hf/config.json"), NULL, &a, &failure) ==
          ML_ERROR_FORMAT);
}

TEST(shared_config_json) {
    ml_archive *a;
    mli_file file;
    ml_allocator allocator;
    if (!has_shared()) SKIP("../shared is absent");
    a = open_shared("models/stories260K-hf/model.safetensors");
    REQUIRE(a && !mli_resolve_allocator(NULL, &allocator, NULL));
    REQUIRE(!mli_map_file(shared_path("models/stories260K-hf/config.json"), &allocator, &file, &failure));
    CHECK(!mli_json_values(a->private_part, "config", file.data, file.size, &failure));
    mli_unmap_file(&allocator, &file);
    CHECK(int_of(a, "config.hidden_size") == 64 && int_of(a, "config.num_key_value_heads") == 4);
    CHECK(ml_archive_find_value(a, "config.rms_norm_eps")->f == 1e-5 &&
          int_of(a, "config.tie_word_embeddings") == 1);
    CHECK(has_text(a, "config.architectures.0", "LlamaForCausalLM"));
    ml_archive_free(a);
}

int main(void) {
    RUN(pytorch);
    RUN(pytorch_zip64);
    RUN(pickle_kinds);
    RUN(objects);
    RUN(pairs);
    RUN(whole_modules);
    RUN(shared_modules);
    RUN(odd_keys);
    RUN(rebuild_functions);
    RUN(weight_of_another_kind);
    RUN(weights_of_a_class);
    RUN(pytorch_legacy);
    RUN(unknown_types);
#if !defined(ML_NO_SAVE) && !defined(ML_NO_STDIO)
    RUN(weight_of_unknown_type);
#endif
    RUN(pytorch_types_and_shapes);
    RUN(strides);
    RUN(gguf);
    RUN(safetensors);
    RUN(safetensors_like_others);
    RUN(llama2c);
    RUN(json_values);
    RUN(json_of_python);
    RUN(json_errors);
    RUN(bytes_after_a_pt);
    RUN(not_a_model);
    RUN(files_on_disk);
    RUN(every_allocation_fails_once);
    RUN(arena);
    RUN(sorting_names);
    RUN(shared_totals);
    RUN(shared_values);
    RUN(shared_formats_agree);
    RUN(shared_quantized_bin);
    RUN(shared_gguf_types);
    RUN(shared_files_that_fail);
    RUN(shared_config_json);
    return test_report("test_archive");
}
