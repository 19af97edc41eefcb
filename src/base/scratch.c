/* scratch.c: a list of free blocks for each class of sizes; class 4 p + q holds blocks of (4 + q)
 * 2^(p-2) bytes. */
#include "base/scratch.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

enum { LEAST = 6 /* blocks of 64 bytes, a cache line */ };

static int64_t bytes_of(int class) {
    return (int64_t)(4 + class % 4) << (class / 4 - 2);
}

/* The smallest class whose blocks have at least `bytes` bytes. */
static int class_of(int64_t bytes) {
    if (bytes <= (int64_t)1 << LEAST) {
        return 4 * LEAST;
    }
    int power = 63 - __builtin_clzll((unsigned long long)bytes),
        class = 4 * power + (int)((bytes >> (power - 2)) & 3);
    return class + (bytes_of(class) < bytes);
}

/* Takes the first free block of the class, or of a larger one. */
static void *unlink_block(moe_scratch *s, int class) {
    void *block = NULL;
#pragma omp critical(moe_scratch)
    for (; class < MOE_SCRATCH_CLASSES && !block; class ++) {
        if ((block = s->first[class])) {
            memcpy(&s->first[class], block, sizeof(void *));
        }
    }
    return block;
}

/* Takes a block of the list, or makes a new one that is larger by 1/part. */
static void *take(moe_scratch *s, int64_t count, size_t size, int64_t part, const char *what) {
    int64_t bytes;
    if (!s || count == 0 || __builtin_mul_overflow(count, size, &bytes) ||
        bytes > (int64_t)1 << 60) {
        return moe_alloc(count, size, what);
    }
    void *block = unlink_block(s, class_of(bytes));
    return block ? block : moe_alloc(bytes_of(class_of(bytes + bytes / part)), 1, what);
}

void *moe_scratch_take(moe_scratch *s, int64_t count, size_t size, const char *what) {
    return take(s, count, size, INT64_MAX, what);
}

void *moe_scratch_take_varying(moe_scratch *s, int64_t count, size_t size, const char *what) {
    return take(s, count, size, 2, what);
}

void *moe_scratch_take_zero(moe_scratch *s, int64_t count, size_t size, const char *what) {
    void *block = moe_scratch_take(s, count, size, what);
    if (block) {
        memset(block, 0, (size_t)count * size);
    }
    return block;
}

void moe_scratch_give(moe_scratch *s, void *block) {
    if (!s || !block) {
        moe_free(block);
        return;
    }
    int class = class_of(moe_alloc_bytes(block));
    MOE_ASSERT(bytes_of(class) == moe_alloc_bytes(block));
#pragma omp critical(moe_scratch)
    {
        memcpy(block, &s->first[class], sizeof(void *));
        s->first[class] = block;
    }
}

void moe_scratch_free(moe_scratch *s) {
    for (int class = 0; class < MOE_SCRATCH_CLASSES; class ++) {
        while (s->first[class]) {
            void *block = s->first[class];
            memcpy(&s->first[class], block, sizeof(void *));
            moe_free(block);
        }
    }
}
