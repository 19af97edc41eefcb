/* window.h: the windows of a text that the sequences of a batch read, and, for a run without a
 * learned embedding, their vectors. */
#ifndef MOESIM_DATA_WINDOW_H
#define MOESIM_DATA_WINDOW_H

#include <stdint.h>

#include "data/batch.h"

/* A text and its domains (files or folders): domain i has the bytes domain_offset[i] ..
 * domain_offset[i+1] - 1. Nothing in it is owned. */
typedef struct moe_corpus {
    const uint8_t *bytes;
    int64_t length;
    int32_t num_domains;
    const int64_t *domain_offset; /* [num_domains + 1] */
    double validation_share;      /* of every device's part of every domain, at its end */
} moe_corpus;

/* Which bytes of its parts a device reads: those for training, those held out for validation, or
 * all of them (forward only). */
enum moe_split { MOE_SPLIT_TRAIN, MOE_SPLIT_VALIDATION, MOE_SPLIT_ALL };

/* Local. The first byte of what `device` reads of a domain in this split; *length receives the
 * number of bytes. A domain is dealt to devices as tokens are. */
int64_t moe_window_part(const moe_corpus *text,
                        int32_t devices,
                        int32_t device,
                        int32_t domain,
                        enum moe_split split,
                        int64_t *length);

/* Local. Draws a window of sequence_length bytes for every sequence, keyed by (seed, draw,
 * sequence, split). A sequence's home is the device of its first token. The window lies anywhere in
 * the parts that the home reads, so that a domain comes up in proportion to its length; the byte
 * behind the window, which is to be predicted, is in the part too (in MOE_SPLIT_ALL it need not
 * be). Where all parts are shorter than that, the window lies anywhere in the text; where the text
 * is shorter than a sequence, the window begins at its start and goes round.
 * Fills b->byte [T], position [T] (of each token in the text), next [T] (the byte behind it) and
 * domain [T]; next and domain may be NULL. */
void moe_window_draw(const moe_corpus *text,
                     int64_t seed,
                     int64_t draw,
                     enum moe_split split,
                     moe_batch *b,
                     int64_t *position,
                     uint8_t *next,
                     int32_t *domain);

/* Local. Forward only. Draws windows of a text of `length` >= 1 bytes in one domain
 * (MOE_SPLIT_ALL), fills b->byte, and x [T,H]: with table row (j, byte) keyed random and standard
 * normal,
 *     x = sum over j = 0 .. context - 1 of row(j, byte j places before the token) / sqrt(context).
 * Bytes before a sequence are those of the text. context < 1 counts as 1. */
void moe_window_vectors(const uint8_t *text,
                        int64_t length,
                        int64_t seed,
                        int32_t context,
                        int64_t hidden,
                        int64_t step,
                        moe_batch *b,
                        real *x);

#endif
