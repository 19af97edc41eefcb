/* checkpoint.h: checkpoints that are written whole or not at all, that notice every damaged byte,
 * and from which another number of ranks can go on.
 *
 * A checkpoint is one file (checkpoint_folder.h), written by all ranks together under another name,
 * put on disk and renamed. The last two are kept, so that a run killed at any moment leaves one
 * that is whole. docs/checkpoints.md describes the format. Sections of experts have a block for
 * each expert, in the order of expert ids; all others are cut into blocks of 1 MiB. Hence the data
 * do not depend on the number of ranks that wrote them. */
#ifndef MOESIM_TRAIN_CHECKPOINT_H
#define MOESIM_TRAIN_CHECKPOINT_H

#include "base/checksum.h"
#include "base/status.h"
#include "config/config.h"
#include "model/parameters.h"
#include "train/checkpoint_blob.h"
#include "train/checkpoint_find.h"
#include "train/checkpoint_folder.h"
#include "world/comm.h"

/* Collective. Writes the checkpoint after `step` steps: value, m and v of every parameter, and the
 * blobs. Removes what a killed run left in the making, all but the last two, and any of later steps
 * (which a run that went on from an older one has left behind). MOE_ERROR, agreed by all ranks,
 * when it cannot be written; the older ones stay. */
int moe_checkpoint_write(const moe_comm *comm,
                         const char *folder,
                         const moe_config *c,
                         int64_t step,
                         const moe_parameters *all,
                         const moe_blob *blobs,
                         int num_blobs,
                         moe_status *st);

/* Collective. Reads one blob alone, on every rank, where its size is the one expected: what has to
 * be known before the parameters are read. Fails as moe_checkpoint_read does. */
int moe_checkpoint_read_blob(const moe_comm *comm,
                             const char *path,
                             moe_blob *blob,
                             moe_status *st);

/* Collective. Loads value, m, v and blobs from path; every rank reads the blocks that it holds and
 * verifies them. Refuses (MOE_USER, the first difference by name) another precision, a tensor or
 * blob that only one side has or that has another shape, and the state of another optimiser. On
 * failure the contents are undefined. */
int moe_checkpoint_read(const moe_comm *comm,
                        const char *path,
                        moe_parameters *all,
                        moe_blob *blobs,
                        int num_blobs,
                        moe_status *st);

/* Collective. The same for whoever only wants the model: the values of all parameters, and the
 * blobs that are named. What else the file holds is left alone. */
int moe_checkpoint_read_model(const moe_comm *comm,
                              const char *path,
                              moe_parameters *all,
                              moe_blob *blobs,
                              int num_blobs,
                              moe_status *st);

#endif
