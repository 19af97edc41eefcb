/* alloc.c: aligned memory that knows how much of it is in use. One cache line in front of every
 * allocation holds its size, so that moe_free can account for it. */
#include "base/alloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
/* SimGrid's SMPI makes malloc a macro, with which this header cannot be read. */
#if defined(__GLIBC__) && !defined(malloc)
#include <malloc.h>
#define CAN_TRIM
#endif

#include "base/status.h"

/* AddressSanitizer watches the blocks of the C library only, and WebAssembly has no maps. gcc says
 * by a macro that the former is on, and clang by a feature. */
#if defined(__SANITIZE_ADDRESS__) || defined(__wasm__)
#define WITHOUT_MAPS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITHOUT_MAPS
#endif
#endif

enum { /* bytes */
       LINE = 64,
       PAGE = 1 << 16, /* the largest that a processor has */
       HUGE = 1 << 21, /* a huge page */
       MAPPED = 1 << 20
};

static _Atomic int64_t live_bytes, peak_bytes, num_allocations;

void moe_alloc_note(int64_t bytes) {
    int64_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    atomic_fetch_add(&num_allocations, bytes > 0);
    int64_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {}
}

/* --- blocks that are mapped by themselves --- */

/* What the C library gets back it may keep, and a hole in its heap stays resident. A block of some
 * size is therefore mapped by itself: what is freed is the system's again at once, whatever was
 * allocated meanwhile. */
#ifdef WITHOUT_MAPS

static bool is_mapped(int64_t bytes) {
    (void)bytes;
    return false;
}

static char *map(int64_t bytes, int64_t alignment) {
    (void)bytes, (void)alignment;
    return NULL;
}

static void unmap(char *block, int64_t bytes) {
    (void)block, (void)bytes;
}

#else

static bool is_mapped(int64_t bytes) {
    return bytes >= MAPPED;
}

/* Bytes that begin at a multiple of `alignment`, a power of two of at least a page: as much more is
 * mapped, and what is too much given back. */
static char *map(int64_t bytes, int64_t alignment) {
    char *whole = mmap(NULL, (size_t)(bytes + alignment), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) {
        return NULL;
    }
    const int64_t before = -(int64_t)(intptr_t)whole & (alignment - 1);
    if (before > 0) {
        munmap(whole, (size_t)before);
    }
    munmap(whole + before + bytes, (size_t)(alignment - before));
    return whole + before;
}

static void unmap(char *block, int64_t bytes) {
    munmap(block, (size_t)bytes);
}

#endif

/* --- blocks --- */

/* Bytes of a block for so many, in whole cache lines, or pages where it is mapped; -1 where these,
 * and what is mapped beyond them, are more than an address can count. */
static int64_t block_bytes(int64_t bytes) {
    int64_t total;
    if (__builtin_add_overflow(bytes, 2 * LINE + PAGE + HUGE, &total)) {
        return -1;
    }
    return is_mapped(bytes) ? (bytes + LINE + PAGE - 1) / PAGE * PAGE
                            : (bytes + 2 * LINE - 1) / LINE * LINE;
}

/* A large block begins at a huge page and asks for such pages, which are touched 512 times less
 * often in the first step. What does not fill one keeps small pages, so that no memory is used that
 * was not asked for. A system without huge pages refuses, and nothing is lost. */
static char *allocate(int64_t bytes) {
    const bool large = bytes >= 2 * HUGE;
    const int64_t total = block_bytes(bytes);
    void *block = NULL;
    if (is_mapped(bytes)) {
        block = map(total, large ? HUGE : PAGE);
    } else if (posix_memalign(&block, large ? HUGE : LINE, (size_t)total) != 0) {
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (large && block) {
        madvise(block, (size_t)(total / HUGE * HUGE), MADV_HUGEPAGE);
    }
#endif
    return block;
}

void *moe_alloc(int64_t count, size_t size, const char *what) {
    MOE_ASSERT(count >= 0);
    int64_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || block_bytes(bytes) < 0) {
        moe_out_of_memory(what, ~0ull);
    }
    if (bytes == 0) {
        return NULL;
    }
    char *block = allocate(bytes);
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
    const int64_t bytes = moe_alloc_bytes(pointer);
    char *block = (char *)pointer - LINE;
    moe_alloc_note(-bytes);
    if (is_mapped(bytes)) {
        unmap(block, block_bytes(bytes));
    } else {
        free(block);
    }
}

void moe_alloc_trim(void) {
#ifdef CAN_TRIM
    malloc_trim(0);
#endif
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
