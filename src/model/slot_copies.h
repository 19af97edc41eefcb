/* slot_copies.h: blocks of numbers on their way from slots to slots: gradients of replicas to the
 * one that adds them up and back, weights to where their expert moves.
 *
 * Every rank hosts the same number of slots, in the order of all slots, and knows the whole list of
 * copies. Those between ranks go through one MPI_Alltoallv. What a rank receives stands in the
 * order of the list, whose entries come in ascending order of `from`: a sum in that order is the
 * same on any number of ranks. */
#ifndef MOESIM_MODEL_SLOT_COPIES_H
#define MOESIM_MODEL_SLOT_COPIES_H

#include <stdint.h>

#include "base/alloc.h"
#include "base/block.h"
#include "world/comm.h"

typedef struct moe_slot_copy {
    int32_t from, to; /* slots of all devices */
} moe_slot_copy;

typedef struct moe_slot_copies {
    moe_slot_copy *list; /* [num] ascending `from`, then `to` */
    int32_t num;
    int64_t list_room;
    int64_t *send_count, *send_offset, *recv_count, *recv_offset; /* [ranks] */
    int32_t *sent, *received; /* local slots: where the rows of this rank come from and go to */
    int64_t num_sent, num_received;
    moe_block block; /* memory of these six */
    real *outgoing, *arrived;
    int64_t outgoing_room, arrived_room;
} moe_slot_copies;

/* Local. Begins a new list, with room for `most` copies, which moe_slot_copies_add fills. */
void moe_slot_copies_begin(moe_slot_copies *c, int32_t most);
void moe_slot_copies_add(moe_slot_copies *c, int32_t from, int32_t to);

/* Local. Sorts the list and finds what this rank sends and receives. The same list on all ranks. */
void moe_slot_copies_end(moe_slot_copies *c, const moe_comm *comm, int32_t slots_per_rank);

/* Collective. Row i of c->arrived [num_received,size] becomes the block that goes to local slot
 * c->received[i]; values has the blocks of `size` numbers of this rank's slots. */
void moe_slot_copies_run(moe_slot_copies *c,
                         const moe_comm *comm,
                         const real *values,
                         int64_t size);
void moe_slot_copies_free(moe_slot_copies *c);

#endif
