/* shared.c: pools that span ranks. */
#include <string.h>

#include "capacity/internal.h"

/* A sequence is shared where a boundary of ranks falls inside it. */
int moe_shared_pools(const moe_drop_job *job, int q, int64_t id[2]) {
    const moe_capacity *c = job->capacity;
    const moe_batch *b = job->batch;
    int64_t begin, end;
    if (job->comm->size == 1 ||
        (c->policy != MOE_CAPACITY_SEQUENCE && c->scope == MOE_CAPACITY_PER_DEVICE)) {
        return 0;
    }
    id[0] = 0;
    if (c->policy != MOE_CAPACITY_SEQUENCE) {
        return 1;
    }
    begin = moe_batch_token_begin(b->num_tokens_global, b->devices, q * b->num_local_devices);
    end = moe_batch_token_begin(b->num_tokens_global, b->devices, (q + 1) * b->num_local_devices);
    int count = 0;
    if (begin == end) {
        return 0;
    }
    if (!moe_batch_begins_sequence(b, begin)) {
        id[count++] = moe_batch_sequence_of(b, begin);
    }
    int64_t last = moe_batch_sequence_of(b, end - 1);
    if (!moe_batch_begins_sequence(b, end) && (count == 0 || id[0] != last)) {
        id[count++] = last;
    }
    return count;
}

moe_shared moe_shared_gather(moe_dropping *w, int64_t words, const int64_t *const *vector) {
    const moe_drop_job *job = w->job;
    int ranks = job->comm->size;
    int64_t *bytes = moe_scratch_take(w->scratch, ranks, sizeof *bytes, "capacity"), count = 0;
    moe_shared s = {.words = words,
                    .scratch = w->scratch,
                    .first = moe_scratch_take(w->scratch, ranks + 1, sizeof *s.first, "capacity"),
                    .id =
                        moe_scratch_take(w->scratch, 2 * (int64_t)ranks, sizeof *s.id, "capacity")};
    for (int q = 0; q < ranks; q++) {
        int vectors = moe_shared_pools(job, q, s.id + count);
        s.first[q] = count;
        bytes[q] = vectors * words * (int64_t)sizeof(int64_t);
        count += vectors;
    }
    s.first[ranks] = count;
    s.value = moe_scratch_take(w->scratch, count * words, sizeof *s.value, "capacity");
    int64_t *send = moe_scratch_take(w->scratch, 2 * words, sizeof *send, "capacity");
    for (int i = 0; i < w->num_shared; i++) {
        for (int64_t p = 0; p < w->num_pools; p++) {
            if (w->pool[p].id == w->shared_id[i]) {
                memcpy(send + i * words, vector[p], (size_t)words * sizeof *send);
            }
        }
    }
    if (count > 0) {
        moe_comm_allgatherv(job->comm, send, s.value, bytes);
        w->drop->collectives++;
        w->drop->collective_bytes += bytes[job->comm->rank];
    }
    moe_scratch_give(w->scratch, send);
    moe_scratch_give(w->scratch, bytes);
    return s;
}

void moe_shared_free(moe_shared *s) {
    moe_scratch_give(s->scratch, s->first);
    moe_scratch_give(s->scratch, s->id);
    moe_scratch_give(s->scratch, s->value);
}

int moe_shared_parts(const moe_dropping *w,
                     const moe_shared *s,
                     int64_t id,
                     const int64_t **part,
                     int *self) {
    int count = 0;
    for (int q = 0; q < w->job->comm->size; q++) {
        for (int64_t i = s->first[q]; i < s->first[q + 1]; i++) {
            if (s->id[i] != id) {
                continue;
            }
            if (q == w->job->comm->rank) {
                *self = count;
            }
            part[count++] = s->value + i * s->words;
        }
    }
    return count;
}
