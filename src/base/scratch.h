/* scratch.h: memory that is needed for a moment, and again in the next step.
 *
 * A scratch keeps the blocks that were given back and hands them out again, always the smallest
 * that is large enough. Sizes are rounded up to a quarter of a power of two. After a step or two
 * nothing is allocated any more, in whatever order threads ask: where any choice of block would do,
 * the smallest that fits does. Each rank has one scratch, which belongs to whoever runs the steps.
 * Where a scratch is a parameter, NULL means that every block is allocated and freed. */
#ifndef MOESIM_BASE_SCRATCH_H
#define MOESIM_BASE_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

enum { MOE_SCRATCH_CLASSES = 4 * 64 };

typedef struct moe_scratch {
    void *first[MOE_SCRATCH_CLASSES]; /* free blocks of each size; a free block begins with the
                                         pointer to the next one */
} moe_scratch;

/* Local, from any thread. A block of count * size bytes, aligned to 64 bytes and not cleared. It is
 * the caller's until moe_scratch_give. */
void *moe_scratch_take(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local, from any thread. The same for a count that depends on who chose whom, and so changes from
 * step to step: a new block is larger by half. */
void *moe_scratch_take_varying(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local, from any thread. The same as moe_scratch_take, cleared. */
void *moe_scratch_take_zero(moe_scratch *s, int64_t count, size_t size, const char *what);
/* Local, from any thread. Gives a block back to the scratch that it was taken from; NULL is
 * ignored. */
void moe_scratch_give(moe_scratch *s, void *block);
/* Local. Frees the blocks that were given back. */
void moe_scratch_free(moe_scratch *s);

#endif
