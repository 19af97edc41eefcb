/* rotary.h: rotary position embedding (Su et al. 2021, arXiv 2104.09864): pairs of numbers of a key
 * or query are turned by an angle that grows with the token's place p in its sequence, so that a
 * product of query and key depends on the distance of the two tokens only.
 *
 *     (a, b) -> (a cos - b sin, a sin + b cos),   angle of pair i: p theta^(-2i / d_R)
 *
 * Which numbers make pair i is model.rope_order: `interleaved` takes 2i and 2i + 1 (DeepSeek's
 * code), `half` takes i and i + d_R / 2 (GPT-NeoX, Llama in Hugging Face's code). */
#ifndef MOESIM_ATTENTION_ROTARY_H
#define MOESIM_ATTENTION_ROTARY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"

typedef struct moe_rotary {
    int64_t places, width; /* width = d_R, even; 0: nothing is turned */
    bool half;
    real *cosine, *sine; /* [places, width / 2]; owned */
} moe_rotary;

/* Local. The table for places 0 .. places - 1. Owner: the caller, moe_rotary_free. */
void moe_rotary_init(moe_rotary *r, int64_t places, int64_t width, double theta, bool half);
void moe_rotary_free(moe_rotary *r);

/* Local. Turns the `width` numbers of `row` as at place p; backwards: the other way, which is also
 * the transpose. */
void moe_rotary_turn(const moe_rotary *r, int64_t p, bool backwards, real *row);

#endif
