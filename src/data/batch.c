/* batch.c: the layout of tokens over devices and sequences. */
#include "data/batch.h"

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

/* Cuts the tokens of each local device where sequences end. Returns the number of pieces; with
 * segment = NULL they are only counted. */
static int64_t cut(const moe_batch *b, moe_segment *segment) {
    int64_t count = 0;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t end = b->device_offset[d + 1];
        for (int64_t begin = b->device_offset[d]; begin < end; count++) {
            int64_t sequence = (b->first_token + begin) / b->sequence_length;
            int64_t sequence_end = (sequence + 1) * b->sequence_length - b->first_token;
            int64_t stop = end < sequence_end ? end : sequence_end;
            if (segment) {
                segment[count] = (moe_segment){begin, stop, sequence, b->first_device + d};
            }
            begin = stop;
        }
    }
    return count;
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
}

void moe_batch_free(moe_batch *b) {
    moe_free(b->device_offset);
    moe_free(b->segment);
    moe_free(b->byte);
    *b = (moe_batch){0};
}
