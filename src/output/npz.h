/* npz.h: NumPy's .npz files: a zip archive of .npy files, stored and not compressed. */
#ifndef MOESIM_OUTPUT_NPZ_H
#define MOESIM_OUTPUT_NPZ_H

#include <stdint.h>

#include "base/sparse.h"
#include "base/status.h"

/* Local. Writes matrices [rows, columns], one below the other, as scipy.sparse.save_npz writes a
 * csr_matrix [num * rows, columns]: data and indices int64 [cells], indptr int64 [num * rows + 1],
 * shape int64 [2] and format b"csr". What stood under `path` before is removed. MOE_ERROR with one
 * sentence where the file cannot be written. */
int moe_npz_write_sparse(const char *path,
                         const moe_sparse *const *matrix,
                         int32_t num,
                         int32_t rows,
                         int32_t columns,
                         moe_status *st);

#endif
