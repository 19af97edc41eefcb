/* token_array.h: an array of a .npy file whose rows are dealt out to the ranks as tokens are. */
#ifndef MOESIM_DATA_TOKEN_ARRAY_H
#define MOESIM_DATA_TOKEN_ARRAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/npy.h"
#include "base/status.h"
#include "world/comm.h"

/* Which numbers are allowed: float16 (which becomes float32), float32 and float64, or every integer
 * type and bool. */
enum moe_kind { MOE_KIND_FLOAT, MOE_KIND_INTEGER };

typedef struct moe_token_array {
    /* what the caller demands */
    const char *key, *path; /* the configuration's key and its value; both stand in messages */
    enum moe_kind kind;
    bool flat;            /* one number per token, in one or two dimensions; else rows of `columns`
                             numbers, for every layer and step */
    int64_t columns;      /* 0 = any number, and the file's is set */
    int64_t most_columns; /* allowed where any number is */
    int32_t layers;
    int64_t tokens;     /* of all ranks; 0 = any number, and the file's is set */
    int64_t file_steps; /* that the file has to have; 0 = any number, and the file's is set. A flat
                           array may have one instead, which is that of all steps */
    int64_t steps;      /* how many of them are read, the first ones: at most this; 0 = all. What
                           was read is set */

    /* what was read */
    moe_npy_header header;
    FILE *file;           /* open on rank 0 while it is read */
    int64_t first, count; /* this rank's tokens */
    void *data;           /* [steps][layers][count][columns] of this rank, in header.dtype. The
                             caller frees it with moe_free */
} moe_token_array;

/* Local. Layers of all steps, which is how many times each token stands in data. */
static inline int64_t moe_token_array_planes(const moe_token_array *a) {
    return a->steps * a->layers;
}

/* Collective. Opens the file, checks its kind and shape, and deals its rows to the ranks as
 * moe_batch_token_begin deals tokens to their devices. A failure is agreed by all ranks. */
int moe_token_array_read(const moe_comm *comm, int32_t devices, moe_token_array *a, moe_status *st);

/* Local. Fails with "key = path: " in front of the message. */
int moe_token_array_fail(const moe_token_array *a, moe_status *st, const char *format, ...)
    MOE_PRINTF(3, 4);

#endif
