/* transpose.h: a matrix the other way round. */
#ifndef MOESIM_BASE_TRANSPOSE_H
#define MOESIM_BASE_TRANSPOSE_H

#include <stdint.h>

#include "base/alloc.h"

/* Local. to [columns,rows] = from [rows,columns]^T. The two do not overlap. */
void moe_transpose(const real *from, int64_t rows, int64_t columns, real *to);

#endif
