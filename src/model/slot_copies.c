/* slot_copies.c: see slot_copies.h. */
#include "model/slot_copies.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

void moe_slot_copies_begin(moe_slot_copies *c, int32_t most) {
    moe_reserve(&c->list, &c->list_room, most + 1, sizeof *c->list, "copies of experts");
    c->num = 0;
}

void moe_slot_copies_add(moe_slot_copies *c, int32_t from, int32_t to) {
    MOE_ASSERT(c->num < c->list_room);
    c->list[c->num++] = (moe_slot_copy){from, to};
}

static int by_from(const void *a, const void *b) {
    const moe_slot_copy *x = a, *y = b;
    return x->from != y->from ? (x->from > y->from) - (x->from < y->from)
                              : (x->to > y->to) - (x->to < y->to);
}

/* Lists the local slots of the copies between this rank and each other one, rank after rank and in
 * the order of the list. Returns how many there are. */
static int64_t list_side(const moe_slot_copies *c,
                         const moe_comm *comm,
                         int32_t per_rank,
                         bool sends,
                         int64_t *count,
                         int64_t *offset,
                         int32_t *slot) {
    int64_t n = 0;
    for (int q = 0; q < comm->size; q++) {
        offset[q] = n;
        for (int32_t i = 0; i < c->num; i++) {
            const int32_t mine = sends ? c->list[i].from : c->list[i].to;
            const int32_t other = sends ? c->list[i].to : c->list[i].from;
            if (mine / per_rank == comm->rank && other / per_rank == q) {
                slot[n++] = mine % per_rank;
            }
        }
        count[q] = n - offset[q];
    }
    return n;
}

void moe_slot_copies_end(moe_slot_copies *c, const moe_comm *comm, int32_t slots_per_rank) {
    const moe_block_array table[] = {
        MOE_ARRAY(c->send_count, comm->size), MOE_ARRAY(c->send_offset, comm->size),
        MOE_ARRAY(c->recv_count, comm->size), MOE_ARRAY(c->recv_offset, comm->size),
        MOE_ARRAY(c->sent, c->num + 1),       MOE_ARRAY(c->received, c->num + 1),
    };
    moe_block_reserve(&c->block, table, MOE_ARRAYS(table), "copies of experts");
    qsort(c->list, (size_t)c->num, sizeof *c->list, by_from);
    c->num_sent = list_side(c, comm, slots_per_rank, true, c->send_count, c->send_offset, c->sent);
    c->num_received =
        list_side(c, comm, slots_per_rank, false, c->recv_count, c->recv_offset, c->received);
}

void moe_slot_copies_run(moe_slot_copies *c,
                         const moe_comm *comm,
                         const real *values,
                         int64_t size) {
    moe_reserve(&c->outgoing, &c->outgoing_room, c->num_sent * size, sizeof *c->outgoing,
                "copies of experts");
    moe_reserve(&c->arrived, &c->arrived_room, c->num_received * size, sizeof *c->arrived,
                "copies of experts");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < c->num_sent; i++) {
        memcpy(c->outgoing + i * size, values + c->sent[i] * size, (size_t)size * sizeof *values);
    }
    moe_comm_alltoallv(comm, (moe_blocks){c->outgoing, c->send_count, c->send_offset},
                       (moe_blocks){c->arrived, c->recv_count, c->recv_offset},
                       size * (int64_t)sizeof(real), c->num);
}

void moe_slot_copies_free(moe_slot_copies *c) {
    moe_free(c->list);
    moe_free(c->outgoing);
    moe_free(c->arrived);
    moe_block_free(&c->block);
    *c = (moe_slot_copies){0};
}
