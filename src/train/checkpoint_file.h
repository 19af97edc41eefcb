/* checkpoint_file.h: reading the file of a checkpoint: its table, and one block at a time. */
#ifndef MOESIM_TRAIN_CHECKPOINT_FILE_H
#define MOESIM_TRAIN_CHECKPOINT_FILE_H

#include "train/checkpoint_table.h"
#include "world/comm.h"

/* Collective. Reads the table of a file on rank 0 and shares it with all ranks. MOE_USER and a
 * sentence with the path, on all ranks, when it is missing or damaged. The caller owns *t also on
 * failure: moe_checkpoint_table_free. */
int moe_checkpoint_file_load(const moe_comm *comm,
                             const char *path,
                             moe_checkpoint_table *t,
                             moe_status *st);

/* Local. Opens a file for moe_checkpoint_file_read; the caller closes it with close. Returns -1 and
 * a sentence with the path on failure. */
int moe_checkpoint_file_open(const char *path, moe_status *st);

/* Local. Reads one block of a section into data and verifies its checksum. */
int moe_checkpoint_file_read(int file,
                             const char *path,
                             const moe_checkpoint_table *t,
                             const moe_section *s,
                             int64_t block,
                             char *data,
                             moe_status *st);

#endif
