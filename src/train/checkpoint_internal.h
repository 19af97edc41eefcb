/* checkpoint_parts.h: the table of what a checkpoint holds, between checkpoint.c (writing and
 * reading), checkpoint_table.c (the table and its text) and checkpoint_find.c (which file is
 * whole). The format is described in checkpoint.h. */
#ifndef MOESIM_TRAIN_CHECKPOINT_INTERNAL_H
#define MOESIM_TRAIN_CHECKPOINT_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "train/checkpoint.h"

enum moe_part { MOE_PART_VALUE, MOE_PART_M, MOE_PART_V, MOE_PART_BLOB, MOE_NUM_PARTS };
enum { MOE_CHECKPOINT_PREAMBLE = 40 };

typedef struct moe_section {
    char name[64];
    enum moe_part part;
    bool expert;
    int64_t count, size; /* experts x elements, 1 x elements, 1 x bytes of a blob */

    /* these follow from the above */
    int64_t bytes, block_bytes, num_blocks; /* the last block may be shorter */
    int64_t offset;                         /* of the first byte, from the start of the data */
    int64_t first; /* index of the first block among all blocks of the file */

    /* what this rank holds of it; nothing in a table that was read */
    char *data;
    const int32_t *id; /* expert: [held] expert of each block in data */
    int64_t held;
} moe_section;

typedef struct moe_checkpoint_table {
    moe_section *section;
    int num;
    int64_t num_blocks, bytes; /* of all sections */
    int64_t data;              /* offset of the data in the file, of a table that was read */
    int64_t step;
    int32_t real_bytes;
    uint64_t *checksum; /* [num_blocks] */
    char *header;       /* of a table that was read: the bytes in front of the data. Owned */
    const char *name, *config_text; /* in header */
} moe_checkpoint_table;

/* Local. The table of this run: layout, and pointers to what this rank holds. Checksums are
 * cleared. */
void moe_checkpoint_table_make(moe_checkpoint_table *t,
                               const moe_parameters *all,
                               const moe_blob *blobs,
                               int num_blobs);
void moe_checkpoint_table_free(moe_checkpoint_table *t);
/* Local. Preamble and texts of a file with this table. Owner: the caller, free(). */
char *moe_checkpoint_table_print(const moe_checkpoint_table *t,
                                 const moe_config *c,
                                 int64_t *length);
/* Local, pure. What the preamble says; refuses what is no checkpoint of this version, or a file of
 * another length. `why` gets no path. */
int moe_checkpoint_preamble(const char preamble[MOE_CHECKPOINT_PREAMBLE],
                            int64_t file_bytes,
                            int64_t *header_bytes,
                            moe_status *why);
/* Local, pure. The table in header [length], of which *t becomes the owner, also on failure. */
int moe_checkpoint_table_parse(
    moe_checkpoint_table *t, char *header, int64_t length, int64_t file_bytes, moe_status *why);
/* Local. MOE_USER and the first difference when the file's table is not the one expected here. */
int moe_checkpoint_table_compare(const moe_checkpoint_table *here,
                                 const moe_checkpoint_table *file,
                                 const char *path,
                                 moe_status *st);

/* Local. Offset (from the start of the data) and bytes of a section's block. */
int64_t moe_section_block(const moe_section *s, int64_t block, int64_t *bytes);

/* Local. The section of t with the same name and part; NULL when there is none. */
const moe_section *moe_section_like(const moe_checkpoint_table *t, const moe_section *like);

/* Collective. Reads the table of a file; a sentence with its path when it is missing or damaged. */
int moe_checkpoint_load(const moe_comm *comm,
                        const char *path,
                        moe_checkpoint_table *t,
                        moe_status *st);
/* Local. Reads one block of an open file into data and verifies its checksum. */
int moe_checkpoint_read_block(int file,
                              const char *path,
                              const moe_checkpoint_table *t,
                              const moe_section *s,
                              int64_t number,
                              char *data,
                              moe_status *st);

/* Local. Steps of the checkpoints in folder, newest first; NULL and *num = 0 when there are none.
 * Owner: the caller, moe_free. */
int64_t *moe_checkpoint_list(const char *folder, int *num);
/* Local. folder/checkpoints/step-NNNNNNNN.moe */
void moe_checkpoint_path(const char *folder, int64_t step, char path[MOE_CHECKPOINT_PATH_MAX]);

#endif
