/* checkpoint_folder.h: the checkpoints of a run's folder by name: FOLDER/checkpoints holds one file
 * step-NNNNNNNN.moe for each; a name with anything behind .moe is that of a file in the making. */
#ifndef MOESIM_TRAIN_CHECKPOINT_FOLDER_H
#define MOESIM_TRAIN_CHECKPOINT_FOLDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "config/config.h"

enum { MOE_CHECKPOINT_PATH_MAX = MOE_PATH_MAX + 64 };

/* Local. FOLDER/checkpoints */
void moe_checkpoint_folder_path(const char *folder, char path[MOE_CHECKPOINT_PATH_MAX]);
/* Local. FOLDER/checkpoints/step-NNNNNNNN.moe */
void moe_checkpoint_folder_file(const char *folder,
                                int64_t step,
                                char path[MOE_CHECKPOINT_PATH_MAX]);

/* Local. False, and a sentence (MOE_USER), where FOLDER/checkpoints is a link: nothing is written
 * or removed through one. */
bool moe_checkpoint_folder_is_own(const char *folder, moe_status *st);

/* Local. The steps of the checkpoints in a folder, newest first; NULL and *num = 0 when there are
 * none. The caller frees them with moe_free. */
int64_t *moe_checkpoint_folder_list(const char *folder, int *num);

/* Local. Removes what killed runs have left in the making. */
void moe_checkpoint_folder_clean(const char *folder);

/* Local. Removes all checkpoints of a folder, and FOLDER/checkpoints when nothing else is in it. Of
 * a link to another folder, the link alone is removed. */
int moe_checkpoint_remove(const char *folder, moe_status *st);

#endif
