/* npy.h: NumPy's .npy files (formats 1.0 to 3.0) in C order and little endian: headers as bytes,
 * and reading a file. All ranks write one together with moe_comm_write_npy (world/comm.h). */
#ifndef MOESIM_BASE_NPY_H
#define MOESIM_BASE_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum moe_dtype {
    MOE_F16, /* read only */
    MOE_F32,
    MOE_F64,
    MOE_I8,
    MOE_U8,
    MOE_I16,
    MOE_U16,
    MOE_I32,
    MOE_U32,
    MOE_I64,
    MOE_U64,
    MOE_BOOL
};
enum { MOE_NPY_MAX_DIMS = 4 };

typedef struct moe_npy_header {
    enum moe_dtype dtype;
    int num_dims; /* 0 .. MOE_NPY_MAX_DIMS */
    int64_t shape[MOE_NPY_MAX_DIMS];
    int64_t count;       /* product of the shape, checked for overflow */
    int64_t data_offset; /* bytes from the start of the file to the first element */
} moe_npy_header;

/* Local. The bytes of one element, and the name, such as "float32". */
size_t moe_dtype_size(enum moe_dtype dtype);
const char *moe_dtype_name(enum moe_dtype dtype);
bool moe_dtype_is_float(enum moe_dtype dtype);

/* Local, pure (fuzzed). Parses the header at the front of a file of file_size bytes, of which the
 * first `length` are in memory. Refuses (MOE_USER) other files, unknown versions, headers of more
 * than 64 KiB, Fortran order, big endian, objects and unknown dtypes, negative or overflowing
 * shapes, more than 4 dimensions, and a file that is shorter or longer than header and data.
 * Messages name no file: the caller does. */
int moe_npy_parse(const unsigned char *bytes,
                  size_t length,
                  int64_t file_size,
                  moe_npy_header *out,
                  moe_status *st);

/* Local. Writes a header of version 1.0, padded to a multiple of 64 bytes, into out [capacity];
 * returns its length in bytes. */
size_t moe_npy_format(enum moe_dtype dtype,
                      int num_dims,
                      const int64_t *shape,
                      char *out,
                      size_t capacity);

/* Local. Opens a file, checks its header, and leaves it at the first element. The caller closes it
 * with fclose. Returns NULL, and one sentence with the path in *st, on failure. */
FILE *moe_npy_open(const char *path, moe_npy_header *header, moe_status *st);

/* Local. Reads a whole file: its header, and *data, which the caller frees with moe_free. One
 * sentence with the path on failure. */
int moe_npy_read(const char *path, moe_npy_header *header, void **data, moe_status *st);

/* Local. Element i as a double, and, of integer types and bool (asserted), as an int64; a uint64 of
 * 2^63 and more becomes INT64_MAX. */
double moe_npy_f64(const moe_npy_header *h, const void *data, int64_t i);
int64_t moe_npy_i64(const moe_npy_header *h, const void *data, int64_t i);

#endif
