/* block.h: arrays that are allocated, grown and freed together.
 *
 * A struct that owns many arrays of related sizes keeps one moe_block. It states all sizes in one
 * table, and the block sets all pointers:
 *
 *     moe_block_array table[] = {
 *         MOE_ARRAY(a->u, tokens * hidden),
 *         MOE_ARRAY(a->inverse_rms, tokens),
 *     };
 *     moe_block_reserve(&a->block, table, MOE_ARRAYS(table), "activations");
 *
 * One capacity, one allocation and one free then stand for all of them. */
#ifndef MOESIM_BASE_BLOCK_H
#define MOESIM_BASE_BLOCK_H

#include <stddef.h>
#include <stdint.h>

typedef struct moe_block {
    char *memory;     /* all arrays, one after the other, each aligned to 64 bytes; owned */
    int64_t capacity; /* bytes */
} moe_block;

typedef struct moe_block_array { /* one row of the table */
    void *pointer_to_pointer;    /* the address of the pointer that is to be set */
    int64_t count;               /* elements; 0 sets the pointer to NULL */
    size_t size;                 /* bytes of an element */
} moe_block_array;

#define MOE_ARRAY(pointer, count) \
    { &(pointer), (count), sizeof *(pointer) }
#define MOE_ARRAYS(table) ((int)(sizeof(table) / sizeof(table)[0]))

/* Local. Sets every pointer of the table to its part of the block, which is allocated anew when it
 * is too small. The contents of the arrays are undefined afterwards whenever a count has changed.
 * Ends all ranks with one sentence when memory is short, as moe_alloc does. */
void moe_block_reserve(moe_block *b,
                       const moe_block_array *array,
                       int num_arrays,
                       const char *what);

/* Local. The same for counts that depend on who chose whom, and so change from step to step: a
 * block that has to grow gets a quarter more than is asked for, so that an ordinary change of the
 * load allocates nothing. */
void moe_block_reserve_varying(moe_block *b,
                               const moe_block_array *array,
                               int num_arrays,
                               const char *what);

/* Local. Frees the block; the pointers into it are the caller's to forget. */
void moe_block_free(moe_block *b);

#endif
