/* sparse.c: the list of the cells of a matrix that are not 0. Lists are only appended to and
 * merged, so a sorted array does; a cell is found by bisection. */
#include "base/sparse.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

void moe_sparse_reserve(moe_sparse *m, int64_t num_cells) {
    moe_sparse wider = {.num_cells = m->num_cells};
    if (num_cells <= m->capacity) {
        return;
    }
    moe_reserve_varying(&wider.cell, &wider.capacity, num_cells, sizeof *wider.cell,
                        "pairs of devices");
    if (m->num_cells > 0) {
        memcpy(wider.cell, m->cell, (size_t)m->num_cells * sizeof *m->cell);
    }
    moe_free(m->cell);
    *m = wider;
}

void moe_sparse_append(moe_sparse *m, int32_t row, int32_t column, int64_t count) {
    if (count != 0) {
        m->cell[m->num_cells++] = (moe_sparse_cell){row, column, count};
    }
}

/* < 0, 0 or > 0: a stands before b, at the same place, or behind it. */
static int compare(const moe_sparse_cell *a, const moe_sparse_cell *b) {
    return a->row != b->row ? (a->row > b->row) - (a->row < b->row)
                            : (a->column > b->column) - (a->column < b->column);
}

int64_t moe_sparse_at(const moe_sparse *m, int32_t row, int32_t column) {
    const moe_sparse_cell wanted = {.row = row, .column = column};
    int64_t begin = 0, end = m->num_cells;
    while (begin < end) {
        int64_t middle = begin + (end - begin) / 2;
        int order = compare(&m->cell[middle], &wanted);
        if (order == 0) {
            return m->cell[middle].count;
        }
        *(order < 0 ? &begin : &end) = order < 0 ? middle + 1 : middle;
    }
    return 0;
}

/* The merge runs from the last cells to the first, into the room behind the sum's own cells, so
 * that none is overwritten before it was read. */
void moe_sparse_add(moe_sparse *sum, const moe_sparse *more) {
    int64_t a = sum->num_cells, b = more->num_cells, total = a + b, to = total;
    if (b == 0) {
        return;
    }
    moe_sparse_reserve(sum, total);
    while (b > 0) {
        int order = a > 0 ? compare(&sum->cell[a - 1], &more->cell[b - 1]) : -1;
        moe_sparse_cell cell = order > 0 ? sum->cell[a - 1] : more->cell[b - 1];
        if (order == 0) {
            cell.count += sum->cell[a - 1].count;
        }
        a -= order >= 0;
        b -= order <= 0;
        sum->cell[--to] = cell;
    }
    memmove(sum->cell + a, sum->cell + to, (size_t)(total - to) * sizeof *sum->cell);
    sum->num_cells = a + total - to;
}

static int ascending(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Columns of one row, any number of times each; `count` [columns] is 0 before and after. They are
 * overwritten by those that occur. */
static void count_row(moe_sparse *m, int32_t row, int32_t *column, int64_t n, int64_t *count) {
    int64_t different = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t c = column[i];
        if (count[c]++ == 0) {
            column[different++] = c;
        }
    }
    qsort(column, (size_t)different, sizeof *column, ascending);
    moe_sparse_reserve(m, m->num_cells + different);
    for (int64_t i = 0; i < different; i++) {
        moe_sparse_append(m, row, column[i], count[column[i]]);
        count[column[i]] = 0;
    }
}

/* A counting sort by rows. */
void moe_sparse_count(moe_sparse *m,
                      const int32_t *row,
                      const int32_t *column,
                      int64_t n,
                      int32_t rows,
                      int32_t columns) {
    int64_t *begin = moe_alloc_zero(rows + 1, sizeof *begin, "pairs of devices"),
            *count = moe_alloc_zero(columns, sizeof *count, "pairs of devices");
    int32_t *sorted = moe_alloc(n, sizeof *sorted, "pairs of devices");
    for (int64_t i = 0; i < n; i++) {
        begin[row[i] + 1]++;
    }
    for (int32_t r = 0; r < rows; r++) {
        begin[r + 1] += begin[r];
    }
    for (int64_t i = n; i > 0; i--) { /* the ends go down to the begins */
        sorted[--begin[row[i - 1] + 1]] = column[i - 1];
    }
    m->num_cells = 0;
    for (int32_t r = 0; r < rows; r++) {
        const int64_t end = r + 1 < rows ? begin[r + 2] : n;
        if (end > begin[r + 1]) {
            count_row(m, r, sorted + begin[r + 1], end - begin[r + 1], count);
        }
    }
    moe_free(sorted);
    moe_free(count);
    moe_free(begin);
}

void moe_sparse_from_array(moe_sparse *m, const int64_t *array, int32_t rows, int32_t columns) {
    int64_t cells = 0, all = (int64_t)rows * columns;
    for (int64_t i = 0; i < all; i++) {
        cells += array[i] != 0;
    }
    m->num_cells = 0;
    moe_sparse_reserve(m, cells);
    for (int64_t i = 0; i < all; i++) {
        moe_sparse_append(m, (int32_t)(i / columns), (int32_t)(i % columns), array[i]);
    }
}

void moe_sparse_to_array(const moe_sparse *m, int64_t *array, int32_t rows, int32_t columns) {
    memset(array, 0, (size_t)rows * (size_t)columns * sizeof *array);
    for (int64_t i = 0; i < m->num_cells; i++) {
        array[(int64_t)m->cell[i].row * columns + m->cell[i].column] = m->cell[i].count;
    }
}

void moe_sparse_free(moe_sparse *m) {
    moe_free(m->cell);
    *m = (moe_sparse){0};
}
