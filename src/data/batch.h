/* batch.h: which tokens a rank has, and to which device and sequence each of them belongs.
 *
 * The tokens of the global batch stand in one line. Devices take neighbouring blocks of it that are
 * as equal as possible: with T tokens and D devices, the first T mod D devices take one token more.
 * Sequences are blocks of sequence_length of the same line, or run from one boundary to the next
 * where boundaries are given, wherever devices begin and end. A rank hosts D/ranks neighbouring
 * devices. A segment is a run of tokens that share one device AND one sequence, as long as
 * possible, so that sums over segments add up to the sums of devices, of sequences and of the
 * batch. */
#ifndef MOESIM_DATA_BATCH_H
#define MOESIM_DATA_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/scratch.h"
#include "world/comm.h"

typedef struct moe_segment {
    int64_t begin, end; /* local token ids of this rank */
    int64_t sequence;   /* global id */
    int32_t device;     /* global id */
} moe_segment;

/* Logits [T,N] in either precision: one of the two pointers is set, the other is NULL. */
typedef struct moe_logits {
    const float *f32;
    const double *f64;
} moe_logits;

/* A token whose logits have a logsumexp of this size or more cannot be routed: the square of the
 * logsumexp could not be added up exactly. */
enum { MOE_LOGIT_LIMIT = 1 << 20 };

typedef struct moe_batch {
    int64_t num_tokens_global, num_sequences;
    int64_t sequence_length; /* at least 1; with boundaries that of the longest sequence */
    const int64_t *boundary; /* [num_sequences + 1] first tokens of sequences, then T; NULL: all
                                have sequence_length. Not owned: of moe_input */
    int32_t devices, first_device, num_local_devices;
    int64_t first_token, num_tokens; /* this rank has the tokens first_token .. first_token +
                                        num_tokens - 1 of the line */
    int64_t *device_offset;          /* [num_local_devices + 1] local token ids */
    int64_t num_segments;
    moe_segment *segment; /* in the order of tokens */
    uint8_t *counted;     /* [T] 0 marks padding; NULL where every token counts. Not owned: the
                             caller points it to moe_input.mask */
    bool drops_padding;   /* nothing is computed for padding (moe_batch_drop_padding) */
    int64_t num_routed;   /* tokens of all devices that are routed: without dropped padding */
    int64_t most_routed_of_device, most_routed_of_sequence;
    int64_t *routed_of_sequence; /* [num_sequences] while padding is dropped, else NULL. Owned */
    uint8_t *byte;               /* [T] each token's byte where tokens are text, else NULL. Owned */
    moe_scratch *scratch; /* working memory of whoever handles the batch, or NULL. Not owned */
} moe_batch;

/* Local. The first token of device d in the line; for d = devices, the number of all tokens. */
int64_t moe_batch_token_begin(int64_t num_tokens_global, int32_t devices, int32_t d);

/* Local. The device of a token of the line: the inverse of moe_batch_token_begin. */
int32_t moe_batch_device_of(const moe_batch *b, int64_t token);

/* Local. Lays out the tokens, devices and segments of rank `rank` of `ranks`, which divides
 * devices. sequence_length 0 stands for one sequence. The caller owns *b: moe_batch_free. */
void moe_batch_layout(moe_batch *b,
                      int64_t num_tokens_global,
                      int64_t sequence_length,
                      int32_t devices,
                      int rank,
                      int ranks);
/* Local. The same with sequences from boundary[q] to boundary[q + 1] - 1: boundary [num_sequences +
 * 1] rises from 0 to num_tokens_global and stays the caller's. */
void moe_batch_layout_boundaries(moe_batch *b,
                                 int64_t num_tokens_global,
                                 const int64_t *boundary,
                                 int64_t num_sequences,
                                 int32_t devices,
                                 int rank,
                                 int ranks);
/* Collective. From now on nothing is computed for padding, which b->counted marks: it is not
 * routed. Counts who is left; called again when b->counted changes. */
void moe_batch_drop_padding(moe_batch *b, const moe_comm *comm);
void moe_batch_free(moe_batch *b);

/* One device of a rank as a batch of its own, for whoever handles tokens device by device. Zeroed
 * before the first use; its memory is used again from device to device. */
typedef struct moe_device_batch {
    moe_batch batch;      /* num_local_devices = 1; what it points to is the whole batch's */
    int64_t offset[2];    /* its device_offset */
    moe_segment *segment; /* its segments, with ids of the device's tokens; owned */
    int64_t room;
} moe_device_batch;

/* Local. Room for the segments of any local device of the batch; returns the most that one has. */
int64_t moe_device_batch_reserve(moe_device_batch *d, const moe_batch *whole);
/* Local. Makes it the tokens of local device j of the batch, for which there is room. */
void moe_device_batch_set(moe_device_batch *d, const moe_batch *whole, int32_t j);
void moe_device_batch_free(moe_device_batch *d);

/* Local. [T] 1 for the tokens that are routed; NULL: all are. */
static inline const uint8_t *moe_batch_routed(const moe_batch *b) {
    return b->drops_padding ? b->counted : NULL;
}

/* Local. The sequence of a token of the line, and the first token of a sequence; for num_sequences,
 * the number of all tokens. */
int64_t moe_batch_sequence_of(const moe_batch *b, int64_t token);
int64_t moe_batch_sequence_begin(const moe_batch *b, int64_t sequence);
/* Local. Whether a token of the line, or the end of it, is where a sequence begins. */
bool moe_batch_begins_sequence(const moe_batch *b, int64_t token);
/* Local. The routed tokens of a sequence, on all ranks together. */
int64_t moe_batch_sequence_routed(const moe_batch *b, int64_t sequence);

#endif
