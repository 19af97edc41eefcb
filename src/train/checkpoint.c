/* checkpoint.c: writing a checkpoint at once or not at all, and reading it back under any number of
 * ranks.
 *
 * Who writes what: every block is claimed by the ranks that hold it, and one of them, chosen by the
 * block's number, computes its checksum and writes it. So experts go from their own rank, and what
 * all ranks have is spread over all of them. Reading needs no agreement about blocks: each rank
 * opens the file and takes what it holds.
 *
 * Why nothing is lost: the data are on disk before the name is, the folder is on disk before an
 * older checkpoint goes, and a name that does not end in .moe is never looked at. Space is reserved
 * first, so that a full disk is found before the work is done. */
#include "train/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "train/checkpoint_file.h"
#include "train/checkpoint_table.h"

enum { KEPT = 2 };

/* --- blocks of this rank --- */

typedef struct block {
    const moe_section *section;
    int64_t number; /* in its section */
    char *data;
} block;

/* Lists the blocks of a section that this rank holds in `out`, or, where that is NULL, counts them
 * only. */
static int64_t held_of_section(const moe_section *s, block *out) {
    if (!s->data) {
        return 0;
    }
    int64_t num = s->expert ? s->held : s->num_blocks;
    for (int64_t i = 0; i < num && out; i++) {
        out[i] = (block){s, s->expert ? s->id[i] : i, s->data + i * s->block_bytes};
        MOE_ASSERT(out[i].number >= 0 && out[i].number < s->num_blocks);
    }
    return num;
}

static block *held_blocks(const moe_checkpoint_table *t, int64_t *num) {
    int64_t total = 0;
    for (int i = 0; i < t->num; i++) {
        total += held_of_section(&t->section[i], NULL);
    }
    block *blocks = moe_alloc(total, sizeof *blocks, "blocks of a checkpoint");
    *num = 0;
    for (int i = 0; i < t->num; i++) {
        *num += held_of_section(&t->section[i], blocks + *num);
    }
    return blocks;
}

static int64_t index_of(const block *b) {
    return b->section->first + b->number;
}

/* Leaves of this rank's blocks those that it is to write. The ranks that hold a block take turns by
 * its index. */
static void keep_own(const moe_comm *comm, int64_t num_blocks, block *blocks, int64_t *num) {
    int64_t *claim = moe_alloc_zero(num_blocks, sizeof *claim, "owners of a checkpoint's blocks");
    int64_t kept = 0;
    for (int64_t i = 0; i < *num; i++) {
        claim[index_of(&blocks[i])] = 1 + (comm->rank + index_of(&blocks[i])) % comm->size;
    }
    moe_comm_max_i64(comm, claim, num_blocks);
    for (int64_t i = 0; i < num_blocks; i++) {
        MOE_ASSERT(claim[i] > 0);
    }
    for (int64_t i = 0; i < *num; i++) {
        if (claim[index_of(&blocks[i])] == 1 + (comm->rank + index_of(&blocks[i])) % comm->size) {
            claim[index_of(&blocks[i])] = 0; /* a rank may hold an expert several times */
            blocks[kept++] = blocks[i];
        }
    }
    *num = kept;
    moe_free(claim);
}

/* Collective. Puts every block's checksum into the table of every rank. */
static void sum_blocks(const moe_comm *comm,
                       moe_checkpoint_table *t,
                       const block *own,
                       int64_t num) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < num; i++) {
        int64_t bytes;
        moe_checkpoint_table_block(own[i].section, own[i].number, &bytes);
        t->checksum[index_of(&own[i])] = moe_checksum(own[i].data, bytes);
    }
    /* one rank has the checksum of a block, all others have 0 */
    moe_comm_sum_i64(comm, (int64_t *)t->checksum, t->num_blocks);
}

/* --- writing --- */

static int cannot_write(const char *path, moe_status *st) {
    return moe_fail(st, MOE_ERROR, "the checkpoint '%s' cannot be written: %s", path,
                    strerror(errno));
}

/* Puts a file or a folder on disk. */
static int sync_path(const char *path, moe_status *st) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fsync(file) != 0) {
        cannot_write(path, st);
    }
    if (file >= 0) {
        close(file);
    }
    return st->code;
}

static int make_folder(const char *folder, moe_status *st) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    moe_checkpoint_folder_path(folder, path);
    if (!moe_checkpoint_folder_is_own(folder, st)) {
        return st->code;
    }
    if (mkdir(path, 0777) == 0) {
        return sync_path(folder, st);
    }
    return errno == EEXIST ? MOE_OK : cannot_write(path, st);
}

/* Renames the file from its temporary name to its own, for good. */
static int settle(const char *folder, const char *beside, const char *path, moe_status *st) {
    char parent[MOE_CHECKPOINT_PATH_MAX];
    if (sync_path(beside, st) != MOE_OK) {
        return st->code;
    }
    if (rename(beside, path) != 0) {
        return cannot_write(path, st);
    }
    moe_checkpoint_folder_path(folder, parent);
    return sync_path(parent, st);
}

/* Removes all checkpoints but this one and the one before it. One that cannot be removed does no
 * harm. */
static void remove_older(const char *folder, int64_t step) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int num, kept = 0;
    int64_t *steps = moe_checkpoint_folder_list(folder, &num);
    for (int i = 0; i < num; i++) {
        moe_checkpoint_folder_file(folder, steps[i], path);
        if (steps[i] > step || ++kept > KEPT) {
            unlink(path);
        }
    }
    moe_free(steps);
}

/* Collective. Writes all ranks' blocks and the header into a file that only this run knows. */
static int write_file(const moe_comm *comm,
                      const char *path,
                      const moe_checkpoint_table *t,
                      const moe_config *c,
                      const block *own,
                      int64_t num,
                      moe_status *st) {
    int64_t length = 0;
    char *header = comm->rank == 0 ? moe_checkpoint_table_print(t, c, &length) : NULL;
    moe_comm_bcast(comm, &length, sizeof length, 0);
    moe_file_piece *pieces = moe_alloc(num + 1, sizeof *pieces, "pieces of a checkpoint");
    for (int64_t i = 0; i < num; i++) {
        pieces[i].data = own[i].data;
        pieces[i].offset =
            length + moe_checkpoint_table_block(own[i].section, own[i].number, &pieces[i].bytes);
    }
    pieces[num] = (moe_file_piece){header, 0, length};
    moe_comm_write_blocks(comm, path, length + t->bytes, pieces, num + (comm->rank == 0), st);
    moe_free(pieces);
    free(header);
    return st->code;
}

int moe_checkpoint_write(const moe_comm *comm,
                         const char *folder,
                         const moe_config *c,
                         int64_t step,
                         const moe_parameters *all,
                         const moe_blob *blobs,
                         int num_blobs,
                         moe_status *st) {
    char path[MOE_CHECKPOINT_PATH_MAX], beside[MOE_CHECKPOINT_PATH_MAX + 8];
    moe_checkpoint_folder_file(folder, step, path);
    snprintf(beside, sizeof beside, "%s.tmp", path);
    moe_checkpoint_table t;
    moe_checkpoint_table_make(&t, all, blobs, num_blobs);
    t.step = step;
    int64_t num;
    block *own = held_blocks(&t, &num);
    keep_own(comm, t.num_blocks, own, &num);
    sum_blocks(comm, &t, own, num);
    if (comm->rank == 0 && make_folder(folder, st) == MOE_OK) {
        moe_checkpoint_folder_clean(folder);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        write_file(comm, beside, &t, c, own, num, st);
    }
    if (comm->rank == 0) {
        if (st->code == MOE_OK && settle(folder, beside, path, st) == MOE_OK) {
            remove_older(folder, step);
        } else {
            unlink(beside);
        }
    }
    moe_free(own);
    moe_checkpoint_table_free(&t);
    return moe_comm_agree(comm, st);
}

/* --- reading --- */

/* No run goes on with numbers that are not finite, so that none can have written them. */
static int check_numbers(const char *path, const moe_section *s, const block *b, moe_status *st) {
    static const char *const tail[MOE_NUM_PARTS] = {"", ".m", ".v", ""};
    int64_t bytes;
    const real *value = (const real *)b->data;
    moe_checkpoint_table_block(s, b->number, &bytes);
    for (int64_t i = 0; i < bytes / (int64_t)sizeof *value && s->part != MOE_PART_BLOB; i++) {
        if (!isfinite(value[i]) || (s->part == MOE_PART_V && value[i] < 0)) {
            return moe_fail(st, MOE_USER,
                            "the checkpoint '%s' holds %g in %s%s, with which no run can go on",
                            path, (double)value[i], s->name, tail[s->part]);
        }
    }
    return MOE_OK;
}

/* Reads every block that this rank holds from where the file has it. */
static void read_held(const char *path,
                      const moe_checkpoint_table *here,
                      const moe_checkpoint_table *file,
                      moe_status *st) {
    int64_t num;
    block *blocks = held_blocks(here, &num);
    int descriptor = moe_checkpoint_file_open(path, st);
    for (int64_t i = 0; i < num && st->code == MOE_OK; i++) {
        const moe_section *s = moe_checkpoint_table_section(file, blocks[i].section);
        if (moe_checkpoint_file_read(descriptor, path, file, s, blocks[i].number, blocks[i].data,
                                     st) == MOE_OK) {
            check_numbers(path, s, &blocks[i], st);
        }
    }
    if (descriptor >= 0) {
        close(descriptor);
    }
    moe_free(blocks);
}

static int read_sections(const moe_comm *comm,
                         const char *path,
                         bool whole,
                         moe_parameters *all,
                         moe_blob *blobs,
                         int num_blobs,
                         moe_status *st) {
    moe_checkpoint_table here, file;
    moe_checkpoint_table_make(&here, all, blobs, num_blobs);
    if (moe_checkpoint_file_load(comm, path, &file, st) == MOE_OK &&
        moe_checkpoint_table_compare(&here, &file, whole, path, st) == MOE_OK) {
        read_held(path, &here, &file, st);
    }
    moe_checkpoint_table_free(&here);
    moe_checkpoint_table_free(&file);
    return moe_comm_agree(comm, st);
}

int moe_checkpoint_read(const moe_comm *comm,
                        const char *path,
                        moe_parameters *all,
                        moe_blob *blobs,
                        int num_blobs,
                        moe_status *st) {
    return read_sections(comm, path, true, all, blobs, num_blobs, st);
}

int moe_checkpoint_read_model(const moe_comm *comm,
                              const char *path,
                              moe_parameters *all,
                              moe_blob *blobs,
                              int num_blobs,
                              moe_status *st) {
    return read_sections(comm, path, false, all, blobs, num_blobs, st);
}

int moe_checkpoint_read_blob(const moe_comm *comm,
                             const char *path,
                             moe_blob *blob,
                             moe_status *st) {
    const moe_parameters none = {0};
    moe_checkpoint_table here, file;
    moe_checkpoint_table_make(&here, &none, blob, 1);
    if (moe_checkpoint_file_load(comm, path, &file, st) == MOE_OK) {
        const moe_section *s = moe_checkpoint_table_section(&file, &here.section[0]);
        if (!s || s->size != blob->bytes) {
            moe_fail(st, MOE_USER, "the checkpoint '%s' has no '%s' of %lld bytes", path,
                     blob->name, (long long)blob->bytes);
        } else {
            read_held(path, &here, &file, st);
        }
    }
    moe_checkpoint_table_free(&here);
    moe_checkpoint_table_free(&file);
    return moe_comm_agree(comm, st);
}
