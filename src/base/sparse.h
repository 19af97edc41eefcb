/* sparse.h: a matrix of counts that are mostly 0, as the list of the others. What is kept for pairs
 * of devices has this form, since a token reaches few devices however many there are. */
#ifndef MOESIM_BASE_SPARSE_H
#define MOESIM_BASE_SPARSE_H

#include <stdint.h>

typedef struct moe_sparse_cell {
    int32_t row, column;
    int64_t count;
} moe_sparse_cell;

/* Zeroed, it is a matrix of zeros. The owner of its memory frees it with moe_sparse_free. */
typedef struct moe_sparse {
    int64_t num_cells;
    moe_sparse_cell *cell; /* [num_cells] ascending by (row, column); no count is 0 */
    int64_t capacity;
} moe_sparse;

/* All functions are local. */

/* Makes room for num_cells cells; those that are there stay. Room that has to grow gets a quarter
 * more than is asked for. */
void moe_sparse_reserve(moe_sparse *m, int64_t num_cells);
/* Adds a cell behind all others, for which there is room. Nothing happens where count is 0. */
void moe_sparse_append(moe_sparse *m, int32_t row, int32_t column, int64_t count);
/* The count of a cell: 0 where it is not listed. It takes log2(num_cells) steps. */
int64_t moe_sparse_at(const moe_sparse *m, int32_t row, int32_t column);
/* sum += more. */
void moe_sparse_add(moe_sparse *sum, const moe_sparse *more);
/* Becomes the counts of n pairs (row[i], column[i]), of which each is below rows and columns. Takes
 * time and memory in proportion to pairs + rows + columns. */
void moe_sparse_count(moe_sparse *m,
                      const int32_t *row,
                      const int32_t *column,
                      int64_t n,
                      int32_t rows,
                      int32_t columns);
/* From and to a plain array [rows, columns], rows one after the other. */
void moe_sparse_from_array(moe_sparse *m, const int64_t *array, int32_t rows, int32_t columns);
void moe_sparse_to_array(const moe_sparse *m, int64_t *array, int32_t rows, int32_t columns);
void moe_sparse_free(moe_sparse *m);

#endif
