/* unit_block.c: a block's arrays are aligned, apart from each other, and grow together. */
#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "base/block.h"
#include "check.h"

typedef struct arrays {
    moe_block block;
    char *letters;
    double *numbers;
    int32_t *empty;
    int64_t *counts;
} arrays;

static void reserve(arrays *a, int64_t n, bool varying) {
    moe_block_array table[] = {
        MOE_ARRAY(a->letters, n + 1),
        MOE_ARRAY(a->numbers, n),
        MOE_ARRAY(a->empty, 0),
        MOE_ARRAY(a->counts, 2 * n),
    };
    (varying ? moe_block_reserve_varying : moe_block_reserve)(&a->block, table, MOE_ARRAYS(table),
                                                              "a test");
}

static void test_arrays(void) {
    arrays a = {0};
    for (int64_t n = 1; n < 200; n += 7) {
        reserve(&a, n, false);
        CHECK_EQ((uintptr_t)a.letters % 64, 0);
        CHECK_EQ((uintptr_t)a.numbers % 64, 0);
        CHECK_EQ((uintptr_t)a.counts % 64, 0);
        CHECK(a.empty == NULL);
        memset(a.letters, 1, (size_t)n + 1);
        memset(a.numbers, 2, (size_t)n * sizeof *a.numbers);
        memset(a.counts, 3, 2 * (size_t)n * sizeof *a.counts);
        for (int64_t i = 0; i <= n; i++) {
            CHECK_EQ(a.letters[i], 1);
        }
        for (size_t i = 0; i < (size_t)n * sizeof *a.numbers; i++) {
            CHECK_EQ(((char *)a.numbers)[i], 2);
        }
    }
    moe_block_free(&a.block);
}

static void test_growth(void) {
    arrays a = {0};
    reserve(&a, 1000, true);
    const char *first = a.letters;
    int64_t before = moe_alloc_count();
    reserve(&a, 1200, true); /* within the quarter more */
    reserve(&a, 10, true);
    CHECK_EQ(moe_alloc_count(), before);
    CHECK(a.letters == first);
    reserve(&a, 2000, true);
    CHECK_EQ(moe_alloc_count(), before + 1);
    moe_block_free(&a.block);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    CHECK_EQ(a.block.capacity, 0);
}

static void test_nothing(void) {
    arrays a = {0};
    int64_t before = moe_alloc_count();
    reserve(&a, 0, false);
    CHECK(a.numbers == NULL && a.counts == NULL && a.letters != NULL);
    CHECK_EQ(moe_alloc_count(), before + 1);
    moe_block_free(&a.block);
    moe_block_free(&a.block);
}

int main(void) {
    RUN(test_arrays);
    RUN(test_growth);
    RUN(test_nothing);
    return check_verdict();
}
