/* checkpoint_find.h: which checkpoint a run goes on from, and whether it may. */
#ifndef MOESIM_TRAIN_CHECKPOINT_FIND_H
#define MOESIM_TRAIN_CHECKPOINT_FIND_H

#include <stdint.h>

#include "base/status.h"
#include "config/config.h"
#include "train/checkpoint_folder.h"
#include "world/comm.h"

typedef struct moe_checkpoint {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int64_t step;            /* steps that were done */
    int64_t bytes;           /* of the data in the file */
    char name[MOE_NAME_MAX]; /* the configuration's name */
    char *config_text;       /* the resolved configuration as moe_config_print wrote it. Owned */
} moe_checkpoint;

/* Collective. Finds the newest checkpoint of a folder that is whole: every checksum is verified,
 * the blocks spread over ranks. A damaged one is named in `word`, a sentence for the user ("" when
 * there is none), and the one before it is used. MOE_USER, agreed by all ranks, when no checkpoint
 * is whole. The caller owns *found: moe_checkpoint_free. */
int moe_checkpoint_find(const moe_comm *comm,
                        const char *folder,
                        moe_checkpoint *found,
                        char word[512],
                        moe_status *st);
void moe_checkpoint_free(moe_checkpoint *found);

/* Local. The configuration of a checkpoint, ready for moe_config_set and moe_config_resolve, for
 * any number of ranks that divides its devices. */
int moe_checkpoint_config(const moe_checkpoint *found, moe_config *c, moe_status *st);

/* Local. May a run with the resolved configuration `now` go on from a checkpoint with this
 * configuration? Refuses (MOE_USER, the first difference with both values) whatever changes
 * results. run.steps may rise, but not under the cosine schedule, which ends at run.steps.
 * run.threads, output.*, checkpoint_every, save_final, validation_every, specialization, the way
 * rows travel and the figures of the cluster's links are free; for a run that generates, whatever
 * the model's function does not depend on. */
int moe_checkpoint_same_run(const moe_config *now, const char *config_text, moe_status *st);

#endif
