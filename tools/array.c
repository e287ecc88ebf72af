/* Writes a file as a C array, for programs without a file system or an assembler that has .incbin:

   build/array FILE NAME ARRAY.c

   The program declares it: extern const unsigned char NAME[]; extern const unsigned long NAME_size; */
#include "../examples/common/file.h"

static int is_name(const char *name) {
    static const char all[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    size_t n = strspn(name, all);
    return n > 0 && !name[n] && (*name < '0' || *name > '9');
}

/* Aligned as model_file of examples/microcontroller/model.S, so that weights can be used where they are. */
static int write_array(const char *path, const char *name, const unsigned char *data, size_t n) {
    whole_file file;
    if (!whole_file_begin(&file, path)) return 0;
    fprintf(file.to,
            "/* %zu bytes, made by build/array. */\n"
            "#ifdef __cplusplus\nextern \"C\" {\n#endif\n"
            "extern const unsigned char %s[];\nextern const unsigned long %s_size;\n"
            "#ifdef __cplusplus\n}\n#endif\n\n"
            "const unsigned long %s_size = %zu;\n"
            "#if defined(_MSC_VER)\n__declspec(align(64))\n#else\n__attribute__((aligned(64)))\n#endif\n"
            "const unsigned char %s[] = {",
            n, name, name, name, n, name);
    for (size_t i = 0; i < n; i++) fprintf(file.to, "%s%d,", i % 24 ? "" : "\n", data[i]);
    fprintf(file.to, "\n};\n");
    return whole_file_end(&file);
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: array FILE NAME ARRAY.c\n"), 2;
    argv = system_arguments(argc, argv);
    const used_file in = {"FILE", argv[1]}, out = {"ARRAY.c", argv[3]};
    const char *name = argv[2];
    size_t n = 0;
    if (!is_name(name))
        return complain("\"%s\" is not a name in C: letters, _ and digits, no digit first", name), 2;
    if (!outputs_ready(&out, 1, &in, 1)) return 1;
    char *data = file_read(in.path, &n);
    int ok = data && (n || complain("%s is empty", in.path)) &&
             write_array(out.path, name, (const unsigned char *)data, n);
    free(data);
    return !ok;
}
