/* C alone, without POSIX, where rename replaces no file, as on the FAT of a memory card: what is saved twice is there,
   and a file that cannot be replaced is not lost. */
#undef __unix__
#undef __linux__
#undef __APPLE__
#include <errno.h>
#include <stdio.h>

static int exists(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

static int n_refused; /* renames that fail, whatever is there */
static int strict_rename(const char *from, const char *to) {
    if (n_refused-- > 0 || exists(to)) return errno = EEXIST, -1;
    return rename(from, to);
}
#define rename strict_rename
#define ML_STATIC
#define MINILLAMA_IMPLEMENTATION
#include "minillama.h"

static float numbers[2];

static int save(const char *path, float number) {
    ml_named_tensor tensor;
    ml_archive_save_desc desc;
    memset(&tensor, 0, sizeof tensor), memset(&desc, 0, sizeof desc);
    tensor.name = "w", tensor.is_vector = 1;
    tensor.tensor.type = ML_F32, tensor.tensor.rows = 1, tensor.tensor.cols = 2, tensor.tensor.data = numbers;
    desc.tensors = &tensor, desc.n_tensors = 1;
    numbers[0] = numbers[1] = number;
    return ml_archive_save(path, &desc, NULL);
}

static float saved(const char *path) {
    ml_archive *archive;
    float back[2] = {0, 0};
    if (ml_archive_load(path, NULL, &archive, NULL)) return -1;
    if (archive->n_arrays == 1) ml_array_read_floats(&archive->arrays[0], back, 2);
    ml_archive_free(archive);
    return back[0];
}

int main(int argc, char **argv) {
    char path[400], temporary[420];
    int is_right;
    if (argc < 1) return 1;
    snprintf(path, sizeof path, "%s.gguf", argv[0]);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    remove(path), remove(temporary);
    is_right = !save(path, 1) && saved(path) == 1 && !exists(temporary);
    is_right = is_right && !save(path, 2) && saved(path) == 2 && !exists(temporary);
    n_refused = 2; /* the old file is removed, and the new one cannot get its name */
    is_right = is_right && save(path, 3) == ML_ERROR_FILE && !exists(path) && saved(temporary) == 3;
    remove(path), remove(temporary);
    return !is_right;
}
