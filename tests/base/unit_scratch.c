/* unit_scratch.c: blocks come back; the smallest that fits is taken, whatever was given back
 * before; without a scratch every block is its own. */
#include <string.h>

#include "base/alloc.h"
#include "base/scratch.h"
#include "check.h"

static void check_reuse(void) {
    moe_scratch s = {0};
    int64_t before = moe_alloc_count(), live = moe_alloc_live_bytes();
    char *small = moe_scratch_take(&s, 100, 1, "test"),
         *large = moe_scratch_take(&s, 1000, 8, "test");
    CHECK_EQ(moe_alloc_count() - before, 2);
    CHECK(((uintptr_t)small | (uintptr_t)large) % 64 == 0);
    memset(small, 1, 100);
    memset(large, 1, 8000);
    moe_scratch_give(&s, large);
    moe_scratch_give(&s, small);
    CHECK(moe_scratch_take(&s, 90, 1, "test") == small);
    CHECK(moe_scratch_take(&s, 90, 1, "test") == large); /* the next larger one */
    CHECK_EQ(moe_alloc_count() - before, 2);
    char *third = moe_scratch_take_zero(&s, 90, 1, "test");
    CHECK_EQ(moe_alloc_count() - before, 3);
    for (int i = 0; i < 90; i++) {
        CHECK_EQ(third[i], 0);
    }
    moe_scratch_give(&s, small);
    moe_scratch_give(&s, large);
    moe_scratch_give(&s, third);
    CHECK(moe_scratch_take(&s, 0, 8, "test") == NULL);
    moe_scratch_give(&s, NULL);
    moe_scratch_free(&s);
    CHECK_EQ(moe_alloc_live_bytes(), live);
}

/* Every size fits into what was taken for it, and at most a quarter more is taken; where the count
 * varies, half as much again fits too. */
static void check_sizes(void) {
    for (int64_t bytes = 1; bytes < 100000; bytes += 1 + bytes / 37) {
        moe_scratch s = {0};
        void *block = moe_scratch_take(&s, bytes, 1, "test"),
             *load = moe_scratch_take_varying(&s, bytes, 1, "test");
        int64_t taken = moe_alloc_bytes(block);
        CHECK_MSG(taken >= bytes && (taken <= 64 || 4 * taken <= 5 * bytes + 4),
                  "%lld bytes take %lld", (long long)bytes, (long long)taken);
        CHECK(2 * moe_alloc_bytes(load) >= 3 * bytes - 1);
        moe_scratch_give(&s, block);
        moe_scratch_give(&s, load);
        moe_scratch_free(&s);
    }
}

/* Threads that ask for the same at the same time: the second round finds everything. */
static void check_threads(void) {
    moe_scratch s = {0};
    int64_t before = 0;
    for (int round = 0; round < 20; round++) {
        if (round == 2) {
            before = moe_alloc_count();
        }
        void *outside = moe_scratch_take(&s, 700, 1, "test");
#pragma omp parallel num_threads(4)
        {
            void *a = moe_scratch_take(&s, 300, 1, "test"),
                 *b = moe_scratch_take(&s, 900, 1, "test");
#pragma omp barrier
            moe_scratch_give(&s, a);
            moe_scratch_give(&s, b);
        }
        moe_scratch_give(&s, outside);
    }
    CHECK_EQ(moe_alloc_count() - before, 0);
    moe_scratch_free(&s);
}

static void check_none(void) {
    int64_t live = moe_alloc_live_bytes();
    void *block = moe_scratch_take(NULL, 10, 8, "test");
    CHECK_EQ(moe_alloc_bytes(block), 80);
    moe_scratch_give(NULL, block);
    CHECK_EQ(moe_alloc_live_bytes(), live);
}

int main(void) {
    RUN(check_reuse);
    RUN(check_sizes);
    RUN(check_threads);
    RUN(check_none);
    return check_verdict();
}
