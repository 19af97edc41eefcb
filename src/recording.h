/* recording.h: arrays of a file that are dealt out to the ranks like tokens. Layer 3 (act). Private to input.c. */
#ifndef MOESIM_RECORDING_H
#define MOESIM_RECORDING_H

#include "moesim/comm.h"
#include "moesim/npy.h"
#include "moesim/status.h"

enum moe_kind { MOE_KIND_FLOAT, MOE_KIND_INTEGER }; /* of numbers: float32 and float64, or every integer type and bool */

typedef struct moe_recording {
    const char *key, *path; /* what the configuration calls it, and where it is: both stand in messages */
    enum moe_kind kind;
    bool flat;            /* one number per token, in any shape of two dimensions at most; else rows of `columns`, per layer */
    int64_t columns;      /* demanded; 0 = any, and set */
    int64_t most_columns; /* allowed when any */
    int32_t layers;
    int64_t tokens; /* global; demanded; 0 = any, and set */

    moe_npy_header header;
    FILE *file;           /* rank 0 */
    int64_t first, count; /* this rank's tokens */
    void *data;           /* [layers][count][columns] of this rank in the file's dtype; moe_free */
} moe_recording;

/* Collective. Opens the file, checks its kind and shape, and deals its rows to the ranks as moe_token_begin deals tokens to their devices.
 */
int moe_recording_read(const moe_comm *comm, int32_t devices, moe_recording *r, moe_status *st);

/* Local. Fails with "key = path: " in front of the message. */
int moe_recording_fail(const moe_recording *r, moe_status *st, const char *format, ...) MOE_PRINTF(3, 4);

#endif
