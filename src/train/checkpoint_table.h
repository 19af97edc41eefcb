/* checkpoint_table.h: what a checkpoint holds and where: a table of sections, as text and back. The
 * format is described in docs/checkpoints.md. */
#ifndef MOESIM_TRAIN_CHECKPOINT_TABLE_H
#define MOESIM_TRAIN_CHECKPOINT_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "config/config.h"
#include "model/parameters.h"
#include "train/checkpoint_blob.h"

enum moe_part { MOE_PART_VALUE, MOE_PART_M, MOE_PART_V, MOE_PART_BLOB, MOE_NUM_PARTS };
enum { MOE_CHECKPOINT_PREAMBLE = 40 };

typedef struct moe_section {
    char name[64];
    enum moe_part part;
    bool expert;
    int64_t count, size; /* experts x elements of each; 1 x elements; 1 x bytes of a blob */
    int64_t columns;     /* of the matrix that the elements are; 0: they are a vector */

    /* these follow from the above */
    int64_t bytes, block_bytes, num_blocks; /* the last block may be shorter */
    int64_t offset;                         /* of the first byte, from the start of the data */
    int64_t first; /* index of the first block among all blocks of the file */

    /* what this rank holds of it; nothing in a table that was read */
    char *data;
    const int32_t *id; /* expert: [held] the expert of each block in data */
    int64_t held;
} moe_section;

typedef struct moe_checkpoint_table {
    moe_section *section; /* [num] */
    int num;
    int64_t num_blocks, bytes; /* of all sections */
    int64_t step;
    int32_t real_bytes;
    uint64_t *checksum; /* [num_blocks] */

    /* of a table that was read */
    int64_t data;                   /* where the data begin in the file */
    const char *name, *config_text; /* in the header's bytes */
    char *header;                   /* these bytes, where the table owns them; else NULL */
} moe_checkpoint_table;

/* Local. The table of this run: the layout, and pointers to what this rank holds. Checksums are 0.
 * The caller owns *t: moe_checkpoint_table_free. */
void moe_checkpoint_table_make(moe_checkpoint_table *t,
                               const moe_parameters *all,
                               const moe_blob *blobs,
                               int num_blobs);
void moe_checkpoint_table_free(moe_checkpoint_table *t);

/* Local. The header of a file with this table: preamble and texts. The caller frees it with free.
 */
char *moe_checkpoint_table_print(const moe_checkpoint_table *t,
                                 const moe_config *c,
                                 int64_t *length);

/* Local, pure. How long the header is of a file that has file_bytes bytes and begins like this.
 * Refuses (MOE_USER, without a path) what is no checkpoint of this version, or has another length
 * than it says. */
int moe_checkpoint_table_preamble(const char preamble[MOE_CHECKPOINT_PREAMBLE],
                                  int64_t file_bytes,
                                  int64_t *header_bytes,
                                  moe_status *why);

/* Local, pure (fuzzed). The table in the header [length] of a file of file_bytes bytes. Whatever
 * the bytes are, and though their checksum is right, every length, count and offset is checked: all
 * blocks of an accepted table lie in the file, and each has its checksum. Refuses (MOE_USER,
 * without a path) anything else. The header must live as long as *t, which the caller owns also on
 * failure: moe_checkpoint_table_free. */
int moe_checkpoint_table_parse(moe_checkpoint_table *t,
                               const char *header,
                               int64_t length,
                               int64_t file_bytes,
                               moe_status *why);

/* Local. MOE_USER and the first difference when the file's table is not the one expected here. With
 * whole = false only the values of the parameters have to be the same ones: the file may hold
 * further state, the optimiser's for example. */
int moe_checkpoint_table_compare(const moe_checkpoint_table *here,
                                 const moe_checkpoint_table *file,
                                 bool whole,
                                 const char *path,
                                 moe_status *st);

/* Local. The section of t with the same name and part; NULL when there is none. */
const moe_section *moe_checkpoint_table_section(const moe_checkpoint_table *t,
                                                const moe_section *like);

/* Local. Where a section's block begins, from the start of the data; *bytes receives its length. */
int64_t moe_checkpoint_table_block(const moe_section *s, int64_t block, int64_t *bytes);

#endif
