/* internal.h: what forward and backward of attention share. */
#ifndef MOESIM_ATTENTION_INTERNAL_H
#define MOESIM_ATTENTION_INTERNAL_H

#include <math.h>

#include "attention/attention.h"
#include "attention/flash.h"

/* Columns of a matrix that is there (rows 0: it is not). */
static inline int64_t moe_attention_rows(const moe_attention_shape *s,
                                         enum moe_attention_tensor tensor) {
    return moe_attention_tensor_of(s, tensor).rows;
}

static inline moe_flash moe_attention_flash(const moe_attention_shape *s,
                                            const moe_attention_activations *p) {
    return (moe_flash){s->heads, s->kv_heads, s->key, s->value, 1 / sqrt((double)s->key),
                       p->q,     p->k,        p->v,   p->o,     p->lse};
}

/* The place of a local token in its sequence. */
static inline int64_t moe_attention_place(const moe_batch *b, int64_t t) {
    return (b->first_token + t) % b->sequence_length;
}

/* The first rotated number of a key or query. */
static inline int64_t moe_attention_rope_begin(const moe_attention_shape *s) {
    return s->key - s->rope;
}

#endif
