/* checkpoint.c: writing a checkpoint at once or not at all, and reading it back under any number of
 * ranks.
 *
 * Who writes what: every block is claimed by the ranks that hold it, and one of them, chosen by the
 * block's number, computes its checksum and writes it: experts go from their own rank, what is
 * replicated is spread over all ranks. Reading needs no agreement about blocks: each rank opens the
 * file and takes what it holds.
 *
 * Why nothing is lost: the data are on disk before the name is, the folder is synced before an
 * older checkpoint goes, and a name that does not end in .moe is never looked at. Space is reserved
 * first, so that a full disk is found before the work is done. */
#include "train/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "train/checkpoint_internal.h"

enum { KEPT = 2 };

/* --- blocks of this rank --- */

typedef struct block {
    const moe_section *section;
    int64_t number; /* in its section */
    char *data;
} block;

/* The blocks of a section that this rank holds, into out (NULL: only counts them). */
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

/* Keeps of this rank's blocks those that it is to write; the ranks that hold a block take turns by
 * its index. */
static void keep_own(const moe_comm *comm, int64_t num_blocks, block *blocks, int64_t *num) {
    int64_t *claim = moe_alloc_zero(num_blocks, sizeof *claim, "owners of a checkpoint's blocks"),
            kept = 0;
    for (int64_t i = 0; i < *num; i++) {
        claim[index_of(&blocks[i])] = 1 + (comm->rank + index_of(&blocks[i])) % comm->size;
    }
    moe_comm_max_i64(comm, claim, num_blocks);
    for (int64_t i = 0; i < num_blocks; i++) {
        MOE_ASSERT(claim[i] > 0);
    }
    for (int64_t i = 0; i < *num; i++) {
        if (claim[index_of(&blocks[i])] == 1 + (comm->rank + index_of(&blocks[i])) % comm->size) {
            blocks[kept++] = blocks[i];
        }
    }
    *num = kept;
    moe_free(claim);
}

/* Collective. Every block's checksum on every rank. */
static void sum_blocks(const moe_comm *comm,
                       moe_checkpoint_table *t,
                       const block *own,
                       int64_t num) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < num; i++) {
        int64_t bytes;
        moe_section_block(own[i].section, own[i].number, &bytes);
        t->checksum[index_of(&own[i])] = moe_checksum(own[i].data, bytes);
    }
    moe_comm_sum_i64(comm, (int64_t *)t->checksum, t->num_blocks); /* one rank has a figure, the
                                                                      others 0 */
}

/* --- names --- */

static void folder_path(const char *folder, char path[MOE_CHECKPOINT_PATH_MAX]) {
    snprintf(path, MOE_CHECKPOINT_PATH_MAX, "%.*s/checkpoints", MOE_PATH_MAX - 1, folder);
}

void moe_checkpoint_path(const char *folder, int64_t step, char path[MOE_CHECKPOINT_PATH_MAX]) {
    snprintf(path, MOE_CHECKPOINT_PATH_MAX, "%.*s/checkpoints/step-%08lld.moe", MOE_PATH_MAX - 1,
             folder, (long long)step);
}

/* The step in the name of a checkpoint; -1 for any other name. */
static int64_t step_of_name(const char *name) {
    char again[64];
    long long step = -1;
    if (sscanf(name, "step-%18lld", &step) != 1 || step < 0) {
        return -1;
    }
    snprintf(again, sizeof again, "step-%08lld.moe", step);
    return strcmp(name, again) == 0 ? step : -1;
}

static bool is_leftover(const char *name) {
    size_t length = strlen(name), end = strlen(".moe.tmp");
    return length > end && strncmp(name, "step-", 5) == 0 &&
           strcmp(name + length - end, ".moe.tmp") == 0;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int64_t *moe_checkpoint_list(const char *folder, int *num) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    folder_path(folder, path);
    DIR *names = opendir(path);
    int64_t *steps = NULL;
    int room = 0;
    *num = 0;
    for (struct dirent *e; names && (e = readdir(names));) {
        room += step_of_name(e->d_name) >= 0;
    }
    if (room > 0) {
        steps = moe_alloc(room, sizeof *steps, "list of checkpoints");
        rewinddir(names);
        for (struct dirent *e; *num < room && (e = readdir(names));) {
            if (step_of_name(e->d_name) >= 0) {
                steps[(*num)++] = step_of_name(e->d_name);
            }
        }
        qsort(steps, (size_t)*num, sizeof *steps, newest_first);
    }
    if (names) {
        closedir(names);
    }
    return steps;
}

static void remove_leftovers(const char *folder) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    folder_path(folder, path);
    DIR *names = opendir(path);
    for (struct dirent *e; names && (e = readdir(names));) {
        if (is_leftover(e->d_name)) {
            unlinkat(dirfd(names), e->d_name, 0);
        }
    }
    if (names) {
        closedir(names);
    }
}

int moe_checkpoint_remove(const char *folder, moe_status *st) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int num;
    int64_t *steps = moe_checkpoint_list(folder, &num);
    remove_leftovers(folder);
    for (int i = 0; i < num; i++) {
        moe_checkpoint_path(folder, steps[i], path);
        if (unlink(path) != 0 && errno != ENOENT) {
            moe_fail(st, MOE_USER, "cannot remove '%s': %s", path, strerror(errno));
        }
    }
    folder_path(folder, path);
    rmdir(path);
    moe_free(steps);
    return st->code;
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
    folder_path(folder, path);
    if (mkdir(path, 0777) == 0) {
        return sync_path(folder, st);
    }
    return errno == EEXIST ? MOE_OK : cannot_write(path, st);
}

/* An empty file whose bytes are reserved, where the file system can do that. */
static int reserve_file(const char *path, int64_t bytes, moe_status *st) {
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (file < 0) {
        return cannot_write(path, st);
    }
    if (fallocate(file, 0, 0, bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        cannot_write(path, st);
    }
    if (close(file) != 0) {
        cannot_write(path, st);
    }
    return st->code;
}

/* From the temporary name to the real one, for good. */
static int settle(const char *folder, const char *beside, const char *path, moe_status *st) {
    char parent[MOE_CHECKPOINT_PATH_MAX];
    if (sync_path(beside, st) != MOE_OK) {
        return st->code;
    }
    if (rename(beside, path) != 0) {
        return cannot_write(path, st);
    }
    folder_path(folder, parent);
    return sync_path(parent, st);
}

/* Leaves this checkpoint and the one before it. One that cannot be removed does no harm. */
static void remove_older(const char *folder, int64_t step) {
    char path[MOE_CHECKPOINT_PATH_MAX];
    int num, kept = 0;
    int64_t *steps = moe_checkpoint_list(folder, &num);
    for (int i = 0; i < num; i++) {
        moe_checkpoint_path(folder, steps[i], path);
        if (steps[i] > step || ++kept > KEPT) {
            unlink(path);
        }
    }
    moe_free(steps);
}

/* Collective. All ranks' blocks and the header, into a file that only this run knows. */
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
            length + moe_section_block(own[i].section, own[i].number, &pieces[i].bytes);
    }
    pieces[num] = (moe_file_piece){header, 0, length};
    if (comm->rank == 0) {
        reserve_file(path, length + t->bytes, st);
    }
    if (moe_comm_agree(comm, st) == MOE_OK) {
        moe_comm_write_blocks(comm, path, length + t->bytes, pieces, num + (comm->rank == 0), st);
    }
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
    moe_checkpoint_path(folder, step, path);
    snprintf(beside, sizeof beside, "%s.tmp", path);
    moe_checkpoint_table t;
    moe_checkpoint_table_make(&t, all, blobs, num_blobs);
    t.step = step;
    int64_t num;
    block *own = held_blocks(&t, &num);
    keep_own(comm, t.num_blocks, own, &num);
    sum_blocks(comm, &t, own, num);
    if (comm->rank == 0 && make_folder(folder, st) == MOE_OK) {
        remove_leftovers(folder);
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

/* False with errno when it cannot be read, errno = 0 when the file ends too early. */
static bool read_at(int file, void *data, int64_t bytes, int64_t offset) {
    while (bytes > 0) {
        errno = 0;
        ssize_t n = pread(file, data, (size_t)(bytes < 1 << 30 ? bytes : 1 << 30), (off_t)offset);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        data = (char *)data + n;
        offset += n;
        bytes -= n;
    }
    return true;
}

static int cannot_read(const char *path, moe_status *st) {
    return moe_fail(st, MOE_USER, "the checkpoint '%s' cannot be read: %s", path,
                    errno ? strerror(errno) : "it ends too early");
}

static int damaged(const char *path, const moe_status *why, moe_status *st) {
    return moe_fail(st, MOE_USER, "the checkpoint '%s' is damaged: %s", path, why->message);
}

int moe_checkpoint_read_block(int file,
                              const char *path,
                              const moe_checkpoint_table *t,
                              const moe_section *s,
                              int64_t number,
                              char *data,
                              moe_status *st) {
    int64_t bytes, offset = moe_section_block(s, number, &bytes);
    MOE_ASSERT(t->checksum != NULL && number < s->num_blocks);
    if (!read_at(file, data, bytes, t->data + offset)) {
        return cannot_read(path, st);
    }
    if (moe_checksum(data, bytes) == t->checksum[s->first + number]) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "the checkpoint '%s' is damaged: the checksum of block %lld of %s differs",
                    path, (long long)number, s->name);
}

/* Rank 0. The header of a file and the file's size; NULL on failure. */
static char *read_header(const char *path, int64_t *length, int64_t *file_bytes, moe_status *st) {
    char preamble[MOE_CHECKPOINT_PREAMBLE], *header = NULL;
    struct stat about;
    moe_status why = {0};
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &about) != 0) {
        cannot_read(path, st);
    } else if (!read_at(file, preamble, sizeof preamble, 0)) {
        cannot_read(path, st);
    } else if (moe_checkpoint_preamble(preamble, about.st_size, length, &why) != MOE_OK) {
        damaged(path, &why, st);
    } else {
        *file_bytes = about.st_size;
        header = moe_alloc(*length, 1, "the header of a checkpoint");
        if (!read_at(file, header, *length, 0)) {
            cannot_read(path, st);
        }
    }
    if (file >= 0) {
        close(file);
    }
    return header;
}

int moe_checkpoint_load(const moe_comm *comm,
                        const char *path,
                        moe_checkpoint_table *t,
                        moe_status *st) {
    int64_t size[2] = {0}; /* of the header, of the file */
    moe_status why = {0};
    memset(t, 0, sizeof *t);
    if (comm->rank == 0) {
        t->header = read_header(path, &size[0], &size[1], st);
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return st->code;
    }
    moe_comm_bcast(comm, size, sizeof size, 0);
    char *header =
        comm->rank == 0 ? t->header : moe_alloc(size[0], 1, "the header of a checkpoint");
    moe_comm_bcast(comm, header, size[0], 0);
    if (moe_checkpoint_table_parse(t, header, size[0], size[1], &why) != MOE_OK) {
        damaged(path, &why, st);
    }
    return st->code;
}

/* Every block that this rank holds, from where the file has it. */
static void read_held(const char *path,
                      const moe_checkpoint_table *here,
                      const moe_checkpoint_table *file,
                      moe_status *st) {
    int64_t num;
    block *blocks = held_blocks(here, &num);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        cannot_read(path, st);
    }
    for (int64_t i = 0; i < num && st->code == MOE_OK; i++) {
        moe_checkpoint_read_block(descriptor, path, file, moe_section_like(file, blocks[i].section),
                                  blocks[i].number, blocks[i].data, st);
    }
    if (descriptor >= 0) {
        close(descriptor);
    }
    moe_free(blocks);
}

int moe_checkpoint_read(const moe_comm *comm,
                        const char *path,
                        moe_parameters *all,
                        moe_blob *blobs,
                        int num_blobs,
                        moe_status *st) {
    moe_checkpoint_table here, file;
    moe_checkpoint_table_make(&here, all, blobs, num_blobs);
    if (moe_checkpoint_load(comm, path, &file, st) == MOE_OK &&
        moe_checkpoint_table_compare(&here, &file, path, st) == MOE_OK) {
        read_held(path, &here, &file, st);
    }
    moe_checkpoint_table_free(&here);
    moe_checkpoint_table_free(&file);
    return moe_comm_agree(comm, st);
}
