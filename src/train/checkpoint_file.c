/* checkpoint_file.c: rank 0 reads the header of a checkpoint for all; blocks are read by whoever
 * wants them. */
#include "train/checkpoint_file.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/checksum.h"
#include "base/file.h"

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

int moe_checkpoint_file_open(const char *path, moe_status *st) {
    const char *why;
    int file = moe_file_open(path, &why);
    if (file < 0) {
        moe_fail(st, MOE_USER, "the checkpoint '%s' cannot be read: %s", path, why);
    }
    return file;
}

int moe_checkpoint_file_read(int file,
                             const char *path,
                             const moe_checkpoint_table *t,
                             const moe_section *s,
                             int64_t block,
                             char *data,
                             moe_status *st) {
    int64_t bytes, offset = moe_checkpoint_table_block(s, block, &bytes);
    MOE_ASSERT(t->checksum != NULL && block >= 0 && block < s->num_blocks);
    if (!read_at(file, data, bytes, t->data + offset)) {
        return cannot_read(path, st);
    }
    if (moe_checksum(data, bytes) == t->checksum[s->first + block]) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "the checkpoint '%s' is damaged: the checksum of block %lld of %s differs",
                    path, (long long)block, s->name);
}

/* The header of a file and the sizes of both; NULL on failure. */
static char *read_header(const char *path, int64_t *length, int64_t *file_bytes, moe_status *st) {
    char preamble[MOE_CHECKPOINT_PREAMBLE], *header = NULL;
    struct stat about;
    moe_status why = {0};
    int file = moe_checkpoint_file_open(path, st);
    if (file < 0) {
        return NULL;
    }
    if (fstat(file, &about) != 0) {
        cannot_read(path, st);
    } else if (!read_at(file, preamble, sizeof preamble, 0)) {
        cannot_read(path, st);
    } else if (moe_checkpoint_table_preamble(preamble, about.st_size, length, &why) != MOE_OK) {
        damaged(path, &why, st);
    } else {
        *file_bytes = about.st_size;
        header = moe_alloc(*length, 1, "the header of a checkpoint");
        if (!read_at(file, header, *length, 0)) {
            cannot_read(path, st);
        }
    }
    close(file);
    return header;
}

int moe_checkpoint_file_load(const moe_comm *comm,
                             const char *path,
                             moe_checkpoint_table *t,
                             moe_status *st) {
    int64_t size[2] = {0}; /* of the header, of the file */
    moe_status why = {0};
    memset(t, 0, sizeof *t);
    char *header = comm->rank == 0 ? read_header(path, &size[0], &size[1], st) : NULL;
    if (moe_comm_agree(comm, st) != MOE_OK) {
        moe_free(header);
        return st->code;
    }
    moe_comm_bcast(comm, size, sizeof size, 0);
    if (comm->rank != 0) {
        header = moe_alloc(size[0], 1, "the header of a checkpoint");
    }
    moe_comm_bcast(comm, header, size[0], 0);
    if (moe_checkpoint_table_parse(t, header, size[0], size[1], &why) != MOE_OK) {
        damaged(path, &why, st);
    }
    t->header = header;
    return st->code;
}
