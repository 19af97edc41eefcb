/* checkpoint_blob.h: state beside the parameters that a checkpoint carries as bytes. */
#ifndef MOESIM_TRAIN_CHECKPOINT_BLOB_H
#define MOESIM_TRAIN_CHECKPOINT_BLOB_H

#include <stdint.h>

/* For example the balancing biases, the history of the run, or the checksum of its text. `bytes` is
 * the same on all ranks, and so are the contents on all ranks that have them; on some of them data
 * may be NULL: then nothing is written from there nor read there. */
typedef struct moe_blob {
    const char *name; /* ASCII, at most 63 characters, and no other blob has it. Not owned */
    void *data;       /* not owned */
    int64_t bytes;
    int64_t columns; /* above 0: a matrix of `real` with so many columns, such as a weight that is
                        not trained; 0: bytes */
} moe_blob;

static inline moe_blob moe_blob_of(const char *name, void *data, int64_t bytes) {
    return (moe_blob){.name = name, .data = data, .bytes = bytes};
}

#endif
