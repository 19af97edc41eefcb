/* batch.c: the layout of tokens over devices and sequences. */
#include "data/batch.h"

#include <string.h>

#include "base/status.h"

int64_t moe_batch_token_begin(int64_t num_tokens_global, int32_t devices, int32_t d) {
    int64_t more = num_tokens_global % devices;
    return num_tokens_global / devices * d + (d < more ? d : more);
}

int32_t moe_batch_device_of(const moe_batch *b, int64_t token) {
    int64_t share = b->num_tokens_global / b->devices, more = b->num_tokens_global % b->devices;
    int64_t device = token < more * (share + 1) ? token / (share + 1)
                                                : more + (token - more * (share + 1)) / share;
    return (int32_t)device;
}

/* --- sequences --- */

int64_t moe_batch_sequence_begin(const moe_batch *b, int64_t sequence) {
    if (b->boundary) {
        return b->boundary[sequence];
    }
    int64_t token = sequence * b->sequence_length;
    return token < b->num_tokens_global ? token : b->num_tokens_global;
}

int64_t moe_batch_sequence_of(const moe_batch *b, int64_t token) {
    if (!b->boundary) {
        return token / b->sequence_length;
    }
    int64_t low = 0, high = b->num_sequences - 1;
    while (low < high) {
        int64_t middle = low + (high - low + 1) / 2;
        if (b->boundary[middle] <= token) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

bool moe_batch_begins_sequence(const moe_batch *b, int64_t token) {
    return token >= b->num_tokens_global ||
           moe_batch_sequence_begin(b, moe_batch_sequence_of(b, token)) == token;
}

int64_t moe_batch_sequence_routed(const moe_batch *b, int64_t sequence) {
    return b->routed_of_sequence
               ? b->routed_of_sequence[sequence]
               : moe_batch_sequence_begin(b, sequence + 1) - moe_batch_sequence_begin(b, sequence);
}

/* --- layout --- */

/* Cuts the tokens of each local device where sequences end. Returns the number of pieces; with
 * segment = NULL they are only counted. */
static int64_t cut(const moe_batch *b, moe_segment *segment) {
    int64_t count = 0;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t end = b->device_offset[d + 1];
        for (int64_t begin = b->device_offset[d]; begin < end; count++) {
            int64_t sequence = moe_batch_sequence_of(b, b->first_token + begin);
            int64_t sequence_end = moe_batch_sequence_begin(b, sequence + 1) - b->first_token;
            int64_t stop = end < sequence_end ? end : sequence_end;
            if (segment) {
                segment[count] = (moe_segment){begin, stop, sequence, b->first_device + d};
            }
            begin = stop;
        }
    }
    return count;
}

/* Which devices, tokens and segments are this rank's, once the sequences are known. */
static void place(moe_batch *b, int rank, int ranks) {
    int64_t num_tokens_global = b->num_tokens_global;
    int32_t devices = b->devices;
    b->num_local_devices = devices / ranks;
    b->first_device = rank * b->num_local_devices;
    b->first_token = moe_batch_token_begin(num_tokens_global, devices, b->first_device);
    b->device_offset = moe_alloc(b->num_local_devices + 1, sizeof *b->device_offset, "batch");
    for (int32_t d = 0; d <= b->num_local_devices; d++) {
        b->device_offset[d] =
            moe_batch_token_begin(num_tokens_global, devices, b->first_device + d) - b->first_token;
    }
    b->num_tokens = b->device_offset[b->num_local_devices];
    b->num_segments = cut(b, NULL);
    b->segment = moe_alloc(b->num_segments, sizeof *b->segment, "batch");
    cut(b, b->segment);
    b->num_routed = num_tokens_global;
    b->most_routed_of_device = moe_batch_token_begin(num_tokens_global, devices, 1);
    b->most_routed_of_sequence =
        b->sequence_length < num_tokens_global ? b->sequence_length : num_tokens_global;
}

void moe_batch_layout(moe_batch *b,
                      int64_t num_tokens_global,
                      int64_t sequence_length,
                      int32_t devices,
                      int rank,
                      int ranks) {
    MOE_ASSERT(num_tokens_global >= 0 && sequence_length >= 0 && ranks > 0 && devices > 0 &&
               devices % ranks == 0);
    int64_t length = sequence_length > 0 && sequence_length < num_tokens_global ? sequence_length
                                                                                : num_tokens_global;
    *b = (moe_batch){.num_tokens_global = num_tokens_global,
                     .sequence_length = length > 0 ? length : 1,
                     .devices = devices};
    b->num_sequences = (num_tokens_global + b->sequence_length - 1) / b->sequence_length;
    place(b, rank, ranks);
}

void moe_batch_layout_boundaries(moe_batch *b,
                                 int64_t num_tokens_global,
                                 const int64_t *boundary,
                                 int64_t num_sequences,
                                 int32_t devices,
                                 int rank,
                                 int ranks) {
    MOE_ASSERT(num_sequences > 0 && boundary[0] == 0 &&
               boundary[num_sequences] == num_tokens_global && ranks > 0 && devices > 0 &&
               devices % ranks == 0);
    *b = (moe_batch){.num_tokens_global = num_tokens_global,
                     .num_sequences = num_sequences,
                     .boundary = boundary,
                     .devices = devices};
    for (int64_t q = 0; q < num_sequences; q++) {
        int64_t length = boundary[q + 1] - boundary[q];
        MOE_ASSERT(length > 0);
        b->sequence_length = length > b->sequence_length ? length : b->sequence_length;
    }
    place(b, rank, ranks);
}

void moe_batch_drop_padding(moe_batch *b, const moe_comm *comm) {
    MOE_ASSERT(b->counted || b->num_tokens == 0);
    b->drops_padding = true;
    if (!b->routed_of_sequence) {
        b->routed_of_sequence = moe_alloc(b->num_sequences, sizeof *b->routed_of_sequence, "batch");
    }
    memset(b->routed_of_sequence, 0, (size_t)b->num_sequences * sizeof *b->routed_of_sequence);
    b->num_routed = b->most_routed_of_device = b->most_routed_of_sequence = 0;
    int64_t device = -1, of_device = 0;
    for (int64_t i = 0; i < b->num_segments; i++) {
        const moe_segment *s = &b->segment[i];
        of_device = s->device == device ? of_device : 0;
        device = s->device;
        for (int64_t t = s->begin; t < s->end; t++) {
            b->routed_of_sequence[s->sequence] += b->counted[t];
            of_device += b->counted[t];
            b->num_routed += b->counted[t];
        }
        if (of_device > b->most_routed_of_device) {
            b->most_routed_of_device = of_device;
        }
    }
    if (comm->size > 1) {
        moe_comm_sum_i64(comm, &b->num_routed, 1);
        moe_comm_max_i64(comm, &b->most_routed_of_device, 1);
        moe_comm_sum_i64(comm, b->routed_of_sequence, b->num_sequences);
    }
    for (int64_t q = 0; q < b->num_sequences; q++) {
        if (b->routed_of_sequence[q] > b->most_routed_of_sequence) {
            b->most_routed_of_sequence = b->routed_of_sequence[q];
        }
    }
}

/* --- one device --- */

/* The first segment of a device, or of the first one after it that has any. */
static int64_t first_segment(const moe_batch *b, int32_t device) {
    int64_t low = 0, high = b->num_segments;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (b->segment[middle].device < device) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int64_t moe_device_batch_reserve(moe_device_batch *d, const moe_batch *whole) {
    int64_t most = 0, of_device = 0;
    for (int64_t i = 0; i < whole->num_segments; i++) {
        const bool same = i > 0 && whole->segment[i].device == whole->segment[i - 1].device;
        of_device = same ? of_device + 1 : 1;
        most = of_device > most ? of_device : most;
    }
    moe_reserve(&d->segment, &d->room, most, sizeof *d->segment, "batch");
    return most;
}

void moe_device_batch_set(moe_device_batch *d, const moe_batch *whole, int32_t j) {
    const int64_t begin = whole->device_offset[j];
    const int64_t first = first_segment(whole, whole->first_device + j);
    const int64_t end = first_segment(whole, whole->first_device + j + 1);
    MOE_ASSERT(end - first <= d->room);
    for (int64_t i = first; i < end; i++) {
        d->segment[i - first] = whole->segment[i];
        d->segment[i - first].begin -= begin;
        d->segment[i - first].end -= begin;
    }
    d->offset[0] = 0;
    d->offset[1] = whole->device_offset[j + 1] - begin;
    d->batch = *whole;
    d->batch.first_device += j;
    d->batch.num_local_devices = 1;
    d->batch.first_token += begin;
    d->batch.num_tokens = d->offset[1];
    d->batch.device_offset = d->offset;
    d->batch.num_segments = end - first;
    d->batch.segment = d->segment;
    d->batch.counted = whole->counted ? whole->counted + begin : NULL;
    d->batch.byte = whole->byte ? whole->byte + begin : NULL;
}

void moe_device_batch_free(moe_device_batch *d) {
    moe_free(d->segment);
    *d = (moe_device_batch){0};
}

void moe_batch_free(moe_batch *b) {
    moe_free(b->routed_of_sequence);
    moe_free(b->device_offset);
    moe_free(b->segment);
    moe_free(b->byte);
    *b = (moe_batch){0};
}
