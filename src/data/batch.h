/* batch.h: which tokens a rank has, and to which device and sequence each of them belongs.
 *
 * The tokens of the global batch stand in one line. Devices take neighbouring blocks of it that are
 * as equal as possible: with T tokens and D devices, the first T mod D devices take one token more.
 * Sequences are blocks of sequence_length of the same line, wherever devices begin and end. A rank
 * hosts D/ranks neighbouring devices. A segment is a run of tokens that share one device AND one
 * sequence, as long as possible, so that sums over segments add up to the sums of devices, of
 * sequences and of the batch. */
#ifndef MOESIM_DATA_BATCH_H
#define MOESIM_DATA_BATCH_H

#include <stdint.h>

#include "base/alloc.h"
#include "base/scratch.h"

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
    int64_t sequence_length; /* at least 1 */
    int32_t devices, first_device, num_local_devices;
    int64_t first_token, num_tokens; /* this rank has the tokens first_token .. first_token +
                                        num_tokens - 1 of the line */
    int64_t *device_offset;          /* [num_local_devices + 1] local token ids */
    int64_t num_segments;
    moe_segment *segment; /* in the order of tokens */
    uint8_t *counted;     /* [T] 0 marks padding; NULL where every token counts. Not owned: the
                             caller points it to moe_input.mask */
    uint8_t *byte;        /* [T] each token's byte where tokens are text, else NULL. Owned */
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
void moe_batch_free(moe_batch *b);

#endif
