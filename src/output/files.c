/* files.c: the list of the files of a run, made from files.def. */
#include "output/files.h"

#include <string.h>

enum { ON_REQUEST, ALWAYS };

const moe_result_file moe_result_files[MOE_NUM_RESULTS] = {
#define RESULT_TEXT(id, name, when) {name, false, when},
#define RESULT_ARRAY(id, name, when) {name ".npy", true, when},
#include "output/files.def"
};

/* Whether `name` is "y_layer0.npy" for the array "y.npy". */
static bool is_of_layer(const char *name, const char *array) {
    static const char layer[] = "_layer";
    size_t stem = strlen(array) - strlen(".npy");
    if (strncmp(name, array, stem) != 0 || strncmp(name + stem, layer, strlen(layer)) != 0) {
        return false;
    }
    name += stem + strlen(layer);
    return !strcmp(name + strspn(name, "0123456789"), ".npy");
}

/* Whether `name` is that of a text which another file will replace when it is whole. */
static bool is_half_written(const char *name, const char *text) {
    size_t length = strlen(text);
    return !strncmp(name, text, length) && !strcmp(name + length, ".tmp");
}

bool moe_result_file_is_known(const char *name) {
    for (int i = 0; i < MOE_NUM_RESULTS; i++) {
        const moe_result_file *file = &moe_result_files[i];
        if (!strcmp(name, file->name) ||
            (file->is_array ? is_of_layer : is_half_written)(name, file->name)) {
            return true;
        }
    }
    return false;
}
