/* comm_file.c: files that all ranks write together, each its own pieces.
 *
 * Every rank opens the file by itself (MPI_COMM_SELF), and all agree on whether that worked before
 * anyone writes: where one rank alone cannot open it, nobody waits for it. Pieces are disjoint and
 * written without a collective call, so that nothing is lost by that. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "world/comm.h"

/* --- the calls of MPI-IO --- */

#ifndef SMPI_H
typedef MPI_File shared_file;

static const shared_file no_file = MPI_FILE_NULL;

static void file_failed(const char *path, int error, moe_status *st) {
    char text[MPI_MAX_ERROR_STRING];
    int length;
    MPI_Error_string(error, text, &length);
    moe_fail(st, MOE_ERROR, "%s cannot be written: %s", path, text);
}

static int open_file(const char *path, shared_file *file) {
    return MPI_File_open(MPI_COMM_SELF, path, MPI_MODE_WRONLY, MPI_INFO_NULL, file);
}

static int write_at(shared_file file, int64_t offset, const void *bytes, int n, int *written) {
    MPI_Status status;
    const int error = MPI_File_write_at(file, offset, bytes, n, MPI_BYTE, &status);
    if (error == MPI_SUCCESS) {
        MPI_Get_count(&status, MPI_BYTE, written);
    }
    return error;
}

static int sync_file(shared_file file) {
    return MPI_File_sync(file);
}

static int close_file(shared_file file) {
    return MPI_File_close(&file);
}
#else
/* The files of SimGrid's SMPI are simulated and hold nothing. Its ranks are one process and write
 * without MPI; an error is that of errno. */
typedef int shared_file;

static const shared_file no_file = -1;

static void file_failed(const char *path, int error, moe_status *st) {
    moe_fail(st, MOE_ERROR, "%s cannot be written: %s", path, strerror(error));
}

static int open_file(const char *path, shared_file *file) {
    *file = open(path, O_WRONLY | O_CLOEXEC);
    return *file < 0 ? errno : MPI_SUCCESS;
}

static int write_at(shared_file file, int64_t offset, const void *bytes, int n, int *written) {
    const ssize_t done = pwrite(file, bytes, (size_t)n, offset);
    *written = (int)done;
    return done < 0 ? errno : MPI_SUCCESS;
}

static int sync_file(shared_file file) {
    return fsync(file) != 0 ? errno : MPI_SUCCESS;
}

static int close_file(shared_file file) {
    return close(file) != 0 ? errno : MPI_SUCCESS;
}
#endif

/* --- files of all ranks --- */

/* Makes an empty file whose bytes are reserved, where the file system can do that, so that a full
 * disk is found here and not inside MPI-IO. Called on rank 0. */
static void reserve_file(const char *path, int64_t bytes, moe_status *st) {
    int file = moe_file_create(path);
    if (file < 0) {
        moe_fail(st, MOE_ERROR, "%s cannot be written: %m", path);
        return;
    }
    if (bytes > 0 && fallocate(file, 0, 0, bytes) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) {
        moe_fail(st, MOE_ERROR, "%s cannot be written: %m", path);
    }
    if (close(file) != 0) {
        moe_fail(st, MOE_ERROR, "%s cannot be written: %m", path);
    }
}

/* Collective. Makes the file and opens it on every rank; on failure it is open on none. */
static int open_everywhere(const moe_comm *comm,
                           const char *path,
                           int64_t bytes,
                           shared_file *file,
                           moe_status *st) {
    *file = no_file;
    if (comm->rank == 0) {
        reserve_file(path, bytes, st);
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return st->code;
    }
    int error = open_file(path, file);
    if (error != MPI_SUCCESS) {
        *file = no_file;
        file_failed(path, error, st);
    }
    if (moe_comm_agree(comm, st) != MOE_OK && *file != no_file) {
        close_file(*file);
    }
    return st->code;
}

/* Writes count bytes at an offset in calls of at most 1 GiB; stops at the first failure. */
static void write_bytes(shared_file file,
                        const char *path,
                        int64_t offset,
                        const void *bytes,
                        int64_t count,
                        moe_status *st) {
    for (int64_t done = 0; done < count && st->code == MOE_OK;) {
        int n = (int)(count - done < (1 << 30) ? count - done : (1 << 30)), written = 0;
        int error = write_at(file, offset + done, (const char *)bytes + done, n, &written);
        if (error != MPI_SUCCESS) {
            file_failed(path, error, st);
        } else if (written != n) {
            moe_fail(st, MOE_ERROR,
                     "%s cannot be written: only %d of %d bytes went to disk (disk full?)", path,
                     written, n);
        }
        done += n;
    }
}

/* Collective. */
static int close_everywhere(const moe_comm *comm,
                            const char *path,
                            shared_file file,
                            moe_status *st) {
    int error = close_file(file);
    if (error != MPI_SUCCESS) {
        file_failed(path, error, st);
    }
    return moe_comm_agree(comm, st);
}

int moe_comm_write_npy(const moe_comm *comm,
                       const char *path,
                       enum moe_dtype dtype,
                       int num_dims,
                       const int64_t *shape,
                       const moe_npy_piece *pieces,
                       int64_t num_pieces,
                       moe_status *st) {
    char header[1024];
    int64_t size = (int64_t)moe_dtype_size(dtype);
    int64_t start = (int64_t)moe_npy_format(dtype, num_dims, shape, header, sizeof header);
    int64_t total = 1;
    shared_file file;
    for (int i = 0; i < num_dims; i++) {
        total *= shape[i];
    }
    if (open_everywhere(comm, path, start + total * size, &file, st) != MOE_OK) {
        return st->code;
    }
    if (comm->rank == 0) {
        write_bytes(file, path, 0, header, start, st);
    }
    for (int64_t i = 0; i < num_pieces; i++) {
        write_bytes(file, path, start + pieces[i].offset * size, pieces[i].data,
                    pieces[i].count * size, st);
    }
    return close_everywhere(comm, path, file, st);
}

int moe_comm_write_blocks(const moe_comm *comm,
                          const char *path,
                          int64_t bytes,
                          const moe_file_piece *pieces,
                          int64_t num_pieces,
                          moe_status *st) {
    shared_file file;
    if (open_everywhere(comm, path, bytes, &file, st) != MOE_OK) {
        return st->code;
    }
    for (int64_t i = 0; i < num_pieces; i++) {
        write_bytes(file, path, pieces[i].offset, pieces[i].data, pieces[i].bytes, st);
    }
    int error = sync_file(file);
    if (error != MPI_SUCCESS) {
        file_failed(path, error, st);
    }
    return close_everywhere(comm, path, file, st);
}
