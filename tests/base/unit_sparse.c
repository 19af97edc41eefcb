/* unit_sparse.c: sparse matrices against plain arrays, over random ones of every density. */
#include <stdint.h>
#include <string.h>

#include "base/sparse.h"
#include "check.h"

enum { ROWS = 7, COLUMNS = 11, CELLS = ROWS * COLUMNS };

static uint64_t state;
static uint64_t next(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* About `percent` of the cells are not 0. */
static void draw(int64_t *array, uint64_t percent) {
    for (int i = 0; i < CELLS; i++) {
        array[i] = next() % 100 < percent ? 1 + (int64_t)(next() % 1000) : 0;
    }
}

static void compare_with(const moe_sparse *m, const int64_t *array) {
    int64_t back[CELLS], cells = 0;
    moe_sparse_to_array(m, back, ROWS, COLUMNS);
    CHECK(memcmp(back, array, sizeof back) == 0);
    for (int i = 0; i < CELLS; i++) {
        CHECK_EQ(moe_sparse_at(m, i / COLUMNS, i % COLUMNS), array[i]);
        cells += array[i] != 0;
    }
    CHECK_EQ(m->num_cells, cells);
    for (int64_t i = 1; i < m->num_cells; i++) {
        const moe_sparse_cell *a = &m->cell[i - 1], *b = &m->cell[i];
        CHECK(a->row < b->row || (a->row == b->row && a->column < b->column));
    }
}

static void test_density(int percent, int other) {
    int64_t a[CELLS], b[CELLS];
    moe_sparse x = {0}, y = {0};
    for (int round = 0; round < 20; round++) {
        draw(a, (uint64_t)percent);
        draw(b, (uint64_t)other);
        moe_sparse_from_array(&x, a, ROWS, COLUMNS);
        moe_sparse_from_array(&y, b, ROWS, COLUMNS);
        compare_with(&x, a);
        compare_with(&y, b);
        for (int i = 0; i < CELLS; i++) {
            a[i] += b[i];
        }
        moe_sparse_add(&x, &y);
        compare_with(&x, a);
        compare_with(&y, b);
    }
    moe_sparse_free(&x);
    moe_sparse_free(&y);
}

/* n pairs, of which some rows and columns have none. */
static void test_counting(int n) {
    int32_t row[500], column[500];
    moe_sparse m = {0};
    for (int round = 0; round < 20; round++) {
        int64_t array[CELLS] = {0};
        const uint64_t rows = 1 + next() % ROWS, columns = 1 + next() % COLUMNS;
        for (int i = 0; i < n; i++) {
            row[i] = (int32_t)(next() % rows);
            column[i] = (int32_t)(next() % columns);
            array[row[i] * COLUMNS + column[i]]++;
        }
        moe_sparse_count(&m, row, column, n, ROWS, COLUMNS);
        compare_with(&m, array);
    }
    moe_sparse_free(&m);
}

static void test_empty(void) {
    moe_sparse x = {0}, y = {0};
    int64_t zeros[CELLS] = {0};
    moe_sparse_add(&x, &y);
    compare_with(&x, zeros);
    moe_sparse_reserve(&y, 1);
    moe_sparse_append(&y, 3, 4, 0);
    CHECK_EQ(y.num_cells, 0);
    moe_sparse_append(&y, 3, 4, 5);
    moe_sparse_add(&x, &y);
    zeros[3 * COLUMNS + 4] = 5;
    compare_with(&x, zeros);
    moe_sparse_free(&x);
    moe_sparse_free(&y);
    CHECK(!x.cell && x.capacity == 0);
}

int main(void) {
    static const int percent[] = {0, 5, 50, 100};
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            RUN(test_density, percent[i], percent[j]);
        }
    }
    RUN(test_counting, 0);
    RUN(test_counting, 1);
    RUN(test_counting, 40);
    RUN(test_counting, 500);
    RUN(test_empty);
    return check_verdict();
}
