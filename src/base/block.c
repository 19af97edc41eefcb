/* block.c: one allocation, cut into arrays. */
#include "base/block.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

enum { LINE = 64 };

/* Bytes of an array, rounded up to whole cache lines, so that the next one is aligned too. */
static int64_t array_bytes(const moe_block_array *array, const char *what) {
    int64_t bytes;
    MOE_ASSERT(array->count >= 0);
    if (__builtin_mul_overflow(array->count, array->size, &bytes) ||
        __builtin_add_overflow(bytes, LINE - 1, &bytes)) {
        moe_out_of_memory(what, ~0ull);
    }
    return bytes / LINE * LINE;
}

static int64_t block_bytes(const moe_block_array *array, int num_arrays, const char *what) {
    int64_t total = 0;
    for (int i = 0; i < num_arrays; i++) {
        if (__builtin_add_overflow(total, array_bytes(&array[i], what), &total)) {
            moe_out_of_memory(what, ~0ull);
        }
    }
    return total;
}

static void set_pointers(moe_block *b, const moe_block_array *array, int num_arrays) {
    int64_t offset = 0;
    for (int i = 0; i < num_arrays; i++) {
        void *pointer = array[i].count > 0 ? b->memory + offset : NULL;
        /* the caller's pointer may have any type: it is written as bytes */
        memcpy(array[i].pointer_to_pointer, &pointer, sizeof pointer);
        offset += array_bytes(&array[i], "a block");
    }
}

void moe_block_reserve(moe_block *b,
                       const moe_block_array *array,
                       int num_arrays,
                       const char *what) {
    moe_reserve(&b->memory, &b->capacity, block_bytes(array, num_arrays, what), 1, what);
    set_pointers(b, array, num_arrays);
}

void moe_block_reserve_varying(moe_block *b,
                               const moe_block_array *array,
                               int num_arrays,
                               const char *what) {
    moe_reserve_varying(&b->memory, &b->capacity, block_bytes(array, num_arrays, what), 1, what);
    set_pointers(b, array, num_arrays);
}

void moe_block_free(moe_block *b) {
    moe_free(b->memory);
    *b = (moe_block){0};
}
