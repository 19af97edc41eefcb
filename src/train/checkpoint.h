/* checkpoint.h: atomic, checksummed checkpoints that another number of ranks can resume. Layer 3
 * (act).
 *
 * One file per checkpoint, folder/checkpoints/step-NNNNNNNN.moe, written by all ranks together.
 * Written aside, synced, renamed; the last two are kept, so that a kill at any moment leaves at
 * least one that is whole. All numbers are little-endian:
 *
 *   0  "MOESIMCK"                       40  three texts, each with a NUL behind it: JSON (below),
 * the configuration's name, the configuration as 8  u64 checksum of bytes 16 .. moe_config_print
 * wrote it to the end of the texts          40 + text_bytes  data: the sections of the JSON one
 * behind the other, without gaps 16 u64 version of this format 24 u64 file_bytes Every byte of the
 * file is known by heart or covered by exactly one checksum, which is XXH64 (seed 0), 16 32 u64
 * text_bytes                   hexadecimal digits in the JSON.
 *
 *   JSON: {"program", "step", "real": 4 or 8, "sections": [{"name", "part": "value" | "m" | "v" |
 * "blob", "expert", "count", "size", "offset", "checksums": [one a block]}]} A section has count *
 * size elements of `real` bytes (a blob: bytes) at data + offset. Expert sections have a block per
 * expert, in the order of expert ids; all others are cut into blocks of 1 MiB. Hence the data do
 * not depend on the number of ranks that wrote them. */
#ifndef MOESIM_TRAIN_CHECKPOINT_H
#define MOESIM_TRAIN_CHECKPOINT_H

#include "base/checksum.h"
#include "base/status.h"
#include "config/config.h"
#include "model/parameters.h"
#include "world/comm.h"

/* Extra state: router biases, history, hash of the text. Equal on all ranks that have it; data may
 * be NULL on some of them (then it is neither written nor read there), bytes are the same on all.
 * The name is unique among blobs and ASCII, at most 63 characters. */
typedef struct moe_blob {
    const char *name;
    void *data;
    int64_t bytes;
} moe_blob;

enum { MOE_CHECKPOINT_PATH_MAX = MOE_PATH_MAX + 64 };
typedef struct moe_checkpoint {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int64_t step;            /* steps that were done */
    char name[MOE_NAME_MAX]; /* the configuration's name */
    char *config_text;       /* the resolved configuration as moe_config_print wrote it. Owned */
} moe_checkpoint;

/* Collective. Writes folder/checkpoints/step-NNNNNNNN.moe after `step` steps are done: values, m, v
 * of every parameter and the blobs. Removes what a killed write left behind, all but the last two,
 * and any of later steps (a run that went on from an older one has left them behind). MOE_ERROR
 * agreed by all when it cannot be written; the older ones stay. */
int moe_checkpoint_write(const moe_comm *comm,
                         const char *folder,
                         const moe_config *c,
                         int64_t step,
                         const moe_parameters *all,
                         const moe_blob *blobs,
                         int num_blobs,
                         moe_status *st);

/* Collective. Finds the newest checkpoint in folder that is whole: every checksum is verified,
 * blocks spread over ranks. A damaged one is named in word, a sentence for the user ("" = none),
 * and the one before it is used. MOE_USER when there is none. */
int moe_checkpoint_find(const moe_comm *comm,
                        const char *folder,
                        moe_checkpoint *found,
                        char word[512],
                        moe_status *st);
void moe_checkpoint_free(moe_checkpoint *found);

/* Local. The configuration of a checkpoint, ready for moe_config_set and moe_config_resolve (for
 * any number of ranks that divides its devices). */
int moe_checkpoint_config(const moe_checkpoint *found, moe_config *c, moe_status *st);

/* Local. May a run with configuration `now` (resolved) go on from a checkpoint with this
 * configuration? Refuses (MOE_USER, the first difference with both values) whatever changes
 * results; run.steps may rise (not under the cosine schedule, which ends at run.steps);
 * run.threads, output.*, checkpoint_every, validation_every, specialization, the way rows travel
 * and the figures of the cluster's links are free. */
int moe_checkpoint_same_run(const moe_config *now, const char *config_text, moe_status *st);

/* Collective. Loads values, m, v and blobs from path; every rank reads the blocks that it holds and
 * verifies them. Refuses (MOE_USER, the first difference by name) another precision, a tensor or
 * blob that is missing on either side or has another shape, and other optimiser state. On failure
 * the contents are undefined. */
int moe_checkpoint_read(const moe_comm *comm,
                        const char *path,
                        moe_parameters *all,
                        moe_blob *blobs,
                        int num_blobs,
                        moe_status *st);

/* Local. Removes all checkpoints of a folder, and their own folder when nothing else is in it. */
int moe_checkpoint_remove(const char *folder, moe_status *st);

#endif
