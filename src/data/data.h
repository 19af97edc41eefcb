/* data.h: a batch of tokens, and where it comes from. Layer 2 (decide): pure; files are read by
 * input.h.
 *
 * The global batch is T_global tokens in one line; devices take contiguous blocks as equal as
 * possible (the first T_global mod D devices one more), sequences are blocks of sequence_length of
 * that line, whatever the device boundaries. A rank hosts D/size neighbouring devices. A segment is
 * a maximal run of tokens of one device AND one sequence: sums over segments add up to device,
 * sequence and global sums. */
#ifndef MOESIM_DATA_DATA_H
#define MOESIM_DATA_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/scratch.h"
#include "config/config.h"

typedef struct moe_segment {
    int64_t begin, end; /* local token ids of this rank */
    int64_t sequence;   /* global id */
    int32_t device;     /* global id */
} moe_segment;

typedef struct moe_logits {
    const float *f32;
    const double *f64;
} moe_logits; /* [T,N], one of the two is set */

typedef struct moe_batch {
    int64_t num_tokens_global, sequence_length, num_sequences; /* sequence_length >= 1 */
    int32_t devices, first_device, num_local_devices;
    int64_t first_token, num_tokens; /* this rank's tokens are first_token .. first_token +
                                        num_tokens - 1 */
    int64_t *device_offset;          /* [num_local_devices + 1] local token ids */
    int64_t num_segments;
    moe_segment *segment; /* in token order */
    uint8_t *counted;     /* [T] 0 = padding; NULL = all count; not owned: the caller points it to
                             moe_input.mask */
    uint8_t *byte;        /* [T] text: the token's byte; NULL otherwise; owned */
    moe_scratch *scratch; /* working memory of whoever handles the batch, or NULL; not owned */
} moe_batch;

/* Local. First global token of device d (d = devices: the total). */
int64_t moe_batch_token_begin(int64_t num_tokens_global, int32_t devices, int32_t d);

/* Local. Lays out tokens, devices and segments of rank `rank` of `ranks`. sequence_length 0 = one
 * sequence. Owner: caller, moe_batch_free. */
void moe_batch_layout(moe_batch *b,
                      int64_t num_tokens_global,
                      int64_t sequence_length,
                      int32_t devices,
                      int rank,
                      int ranks);
void moe_batch_free(moe_batch *b);

/* Local. x [T,H] of a step from keyed random topics (moe_config data.*): token t of sequence q has
 * its sequence's topic with probability topic_persistence, else a topic of its own; topics are
 * drawn with Zipf(skew) popularity; x = sqrt(strength)*center + sqrt(1-strength)*noise, unit
 * variance. A function of global ids only. `topic` [T] may be NULL. */
void moe_data_synthetic(
    const moe_config *c, const moe_batch *b, int64_t step, real *x, int32_t *topic);

/* A text and its domains (files or folders): domain i has the bytes domain_offset[i] ..
 * domain_offset[i+1] - 1. */
typedef struct moe_corpus {
    const uint8_t *bytes;
    int64_t length;
    int32_t num_domains;
    const int64_t *domain_offset; /* [num_domains + 1] */
} moe_corpus;

/* Which bytes of its share a device reads: all (forward only), or all but the last
 * train.validation_share of every domain, or just those. */
enum moe_split { MOE_SPLIT_TRAIN, MOE_SPLIT_VALIDATION, MOE_SPLIT_ALL };

/* Local. First byte, and length, of what device d reads of a domain (a domain is dealt to devices
 * like tokens). */
int64_t moe_data_text_part(const moe_config *c,
                           const moe_corpus *text,
                           int32_t devices,
                           int32_t device,
                           int32_t domain,
                           enum moe_split split,
                           int64_t *length);

/* Local. Draws for every sequence a stretch of the text, keyed by (seed, draw, sequence, split): a
 * start anywhere in the parts that its home reads, so that a domain comes up in proportion to its
 * length. A sequence's home is the device of its first token. The byte after the stretch, to be
 * predicted, is in the part too (not asked for in MOE_SPLIT_ALL). Parts shorter than that: anywhere
 * in the text; a text shorter than a sequence: its start, and the stretch goes round. Fills
 * b->byte, position [T] (of each token in the text), next [T] (the byte after it) and domain [T];
 * next and domain may be NULL. */
void moe_data_text_sample(const moe_config *c,
                          const moe_corpus *text,
                          int64_t draw,
                          enum moe_split split,
                          moe_batch *b,
                          int64_t *position,
                          uint8_t *next,
                          int32_t *domain);

/* Local. Forward only: samples stretches of the text (length >= 1, one domain, MOE_SPLIT_ALL),
 * fills b->byte, and x [T,H] = sum over the last `context` bytes of the text (j = 0 is the token
 * itself; bytes before a sequence are the text's own) of a keyed random table row (j, byte), /
 * sqrt(context). */
void moe_data_text(
    const moe_config *c, const uint8_t *text, int64_t length, int64_t step, moe_batch *b, real *x);

/* Local. x [T,H] standard normal keyed by global token id (recorded logits and routing carry no
 * hidden states). */
void moe_data_keyed(const moe_config *c, const moe_batch *b, real *x);

#endif
