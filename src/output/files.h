/* files.h: the files that may stand in the folder of a run, except for the checkpoints. */
#ifndef MOESIM_OUTPUT_FILES_H
#define MOESIM_OUTPUT_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "measure/matrix_size.h"

enum moe_result { /* MOE_RESULT_SUMMARY and so on: see files.def */
#define RESULT_TEXT(id, name, when) MOE_RESULT_##id,
#define RESULT_ARRAY(id, name, when) MOE_RESULT_##id,
#include "output/files.def"
                  MOE_NUM_RESULTS
};

typedef struct moe_result_file {
    const char *name; /* "summary.json", "comm_matrix.npy" */
    bool is_array;    /* may also be written by layer, as "y_layer0.npy" and so on */
    bool always;      /* every finished run has it */
} moe_result_file;
extern const moe_result_file moe_result_files[MOE_NUM_RESULTS];

/* Local. The file that holds the matrix of so many devices: comm_matrix.npy or
 * comm_matrix_sparse.npz. */
static inline enum moe_result moe_result_matrix(int32_t devices) {
    return devices <= MOE_MATRIX_DEVICES ? MOE_RESULT_COMM_MATRIX : MOE_RESULT_COMM_MATRIX_SPARSE;
}

/* Local. Whether a file of this name is one of them, of one layer or half written (".tmp"). */
bool moe_result_file_is_known(const char *name);

#endif
