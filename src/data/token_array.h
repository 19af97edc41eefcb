/* recording.h: arrays of a file that are dealt out to the ranks like tokens. Layer 3 (act). Private
 * to input.c. */
#ifndef MOESIM_DATA_TOKEN_ARRAY_H
#define MOESIM_DATA_TOKEN_ARRAY_H

#include "base/npy.h"
#include "base/status.h"
#include "world/comm.h"

enum moe_kind {
    MOE_KIND_FLOAT,
    MOE_KIND_INTEGER
}; /* of numbers: float32 and float64, or every integer type and bool */

typedef struct moe_token_array {
    const char *key, *path; /* what the configuration calls it, and where it is: both stand in
                               messages */
    enum moe_kind kind;
    bool flat;       /* one number per token, in any shape of two dimensions at most; else rows of
                        `columns`, per layer */
    int64_t columns; /* demanded; 0 = any, and set */
    int64_t most_columns; /* allowed when any */
    int32_t layers;
    int64_t tokens; /* global; demanded; 0 = any, and set */

    moe_npy_header header;
    FILE *file;           /* rank 0 */
    int64_t first, count; /* this rank's tokens */
    void *data;           /* [layers][count][columns] of this rank in the file's dtype; moe_free */
} moe_token_array;

/* Collective. Opens the file, checks its kind and shape, and deals its rows to the ranks as
 * moe_batch_token_begin deals tokens to their devices.
 */
int moe_token_array_read(const moe_comm *comm, int32_t devices, moe_token_array *r, moe_status *st);

/* Local. Fails with "key = path: " in front of the message. */
int moe_token_array_fail(const moe_token_array *r, moe_status *st, const char *format, ...)
    MOE_PRINTF(3, 4);

#endif
