/* scratch.h: memory that is needed for a moment, and again in the next step. Layer 0 (base).
 *
 * A scratch keeps the blocks that were given back and hands them out again: the smallest that is
 * large enough. Sizes are rounded up to a quarter of a power of two. After a step or two nothing is
 * allocated any more, whatever the order in which threads ask: the smallest that fits always
 * succeeds where any choice would. Owner: whoever runs the steps; one for each rank. Where a
 * scratch is a parameter, NULL means none: every block is allocated and freed. */
#ifndef MOESIM_BASE_SCRATCH_H
#define MOESIM_BASE_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

enum { MOE_SCRATCH_CLASSES = 4 * 64 };

typedef struct moe_scratch {
    void *first[MOE_SCRATCH_CLASSES]; /* free blocks of each size; a free block begins with the
                                         pointer to the next one */
} moe_scratch;

/* Local; any thread. count*size bytes, 64-byte aligned, not cleared (as moe_alloc). The caller's
 * until moe_scratch_give. */
void *moe_scratch_take(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local; any thread. The same for a count that depends on who chose whom, and so on the step: a new
 * block has room for half as much again. */
void *moe_scratch_take_varying(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local; any thread. The same, cleared. */
void *moe_scratch_take_zero(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local; any thread. Back into the scratch that it was taken from; NULL is nothing. */
void moe_scratch_give(moe_scratch *s, void *block);
/* Local. Frees the blocks that were given back. */
void moe_scratch_free(moe_scratch *s);

#endif
