/* transpose.c: in tiles that fit the L1 cache, so that each line is read and written once. */
#include "base/transpose.h"

#include "base/vector.h"

enum { TILE = 16 }; /* numbers: a cache line of floats */

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

MOE_CLONES void moe_transpose(const real *restrict from,
                              int64_t rows,
                              int64_t columns,
                              real *restrict to) {
    for (int64_t row = 0; row < rows; row += TILE) {
        const int64_t row_end = least(row + TILE, rows);
        for (int64_t column = 0; column < columns; column += TILE) {
            const int64_t column_end = least(column + TILE, columns);
            for (int64_t j = column; j < column_end; j++) {
                for (int64_t i = row; i < row_end; i++) {
                    to[j * rows + i] = from[i * columns + j];
                }
            }
        }
    }
}
