/* alloc.c: aligned memory that knows how much of it is in use. One cache line in front of every
 * allocation holds its size, so that moe_free can account for it. */
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/status.h"

enum { LINE = 64, HUGE = 1 << 21 }; /* bytes of a huge page */

static _Atomic int64_t live_bytes, peak_bytes, num_allocations;

void moe_alloc_note(int64_t bytes) {
    int64_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    atomic_fetch_add(&num_allocations, bytes > 0);
    int64_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {}
}

/* A large block begins at a huge page and asks for such pages, which are touched 512 times less
 * often in the first step. What does not fill one keeps small pages, so that no memory is used that
 * was not asked for. A system without huge pages refuses, and nothing is lost. */
static char *allocate(int64_t bytes) {
    const bool large = bytes >= 2 * HUGE;
    void *block = NULL;
    if (posix_memalign(&block, large ? HUGE : LINE, (size_t)bytes) != 0) {
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (large) {
        madvise(block, (size_t)(bytes / HUGE * HUGE), MADV_HUGEPAGE);
    }
#endif
    return block;
}

void *moe_alloc(int64_t count, size_t size, const char *what) {
    MOE_ASSERT(count >= 0);
    int64_t bytes, total;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, 2 * LINE - 1, &total)) {
        moe_out_of_memory(what, ~0ull);
    }
    if (bytes == 0) {
        return NULL;
    }
    char *block = allocate(total / LINE * LINE);
    if (!block) {
        moe_out_of_memory(what, (unsigned long long)bytes);
    }
    memcpy(block, &bytes, sizeof bytes);
    moe_alloc_note(bytes);
    return block + LINE;
}

void *moe_alloc_zero(int64_t count, size_t size, const char *what) {
    void *pointer = moe_alloc(count, size, what);
    if (pointer) {
        memset(pointer, 0, (size_t)count * size);
    }
    return pointer;
}

/* The caller's pointer may have any type: it is read and written as bytes. */
void moe_reserve(void *pointer_to_pointer,
                 int64_t *capacity,
                 int64_t count,
                 size_t size,
                 const char *what) {
    if (count <= *capacity) {
        return;
    }
    void *pointer;
    memcpy(&pointer, pointer_to_pointer, sizeof pointer);
    moe_free(pointer);
    int64_t grown = *capacity + *capacity / 4;
    *capacity = count > grown ? count : grown;
    pointer = moe_alloc(*capacity, size, what);
    memcpy(pointer_to_pointer, &pointer, sizeof pointer);
}

void moe_reserve_varying(void *pointer_to_pointer,
                         int64_t *capacity,
                         int64_t count,
                         size_t size,
                         const char *what) {
    if (count > *capacity) {
        moe_reserve(pointer_to_pointer, capacity, count + count / 4, size, what);
    }
}

void moe_free(void *pointer) {
    if (!pointer) {
        return;
    }
    moe_alloc_note(-moe_alloc_bytes(pointer));
    free((char *)pointer - LINE);
}

int64_t moe_alloc_peak_bytes(void) {
    return atomic_load(&peak_bytes);
}
int64_t moe_alloc_live_bytes(void) {
    return atomic_load(&live_bytes);
}
int64_t moe_alloc_count(void) {
    return atomic_load(&num_allocations);
}

int64_t moe_alloc_bytes(const void *pointer) {
    int64_t bytes;
    memcpy(&bytes, (const char *)pointer - LINE, sizeof bytes);
    return bytes;
}
