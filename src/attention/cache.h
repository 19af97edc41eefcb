/* cache.h: what a decoder remembers of the tokens that it has seen, so that a new token attends to
 * them without computing them again. Of every token each layer keeps one row:
 *
 *     mla   c_KV after its norm, r numbers, and k_R after its rotation, d_R numbers
 *     mha   the keys of all key heads after their rotation, then their values
 *
 * DeepSeek-V2, arXiv 2405.04434, section 2.1.2; config/kv_cache.h counts the same numbers. */
#ifndef MOESIM_ATTENTION_CACHE_H
#define MOESIM_ATTENTION_CACHE_H

#include "attention/attention.h"

typedef struct moe_attention_cache {
    int32_t num_layers; /* 0: nothing is remembered */
    int64_t sequences;  /* of this rank */
    int64_t places;     /* tokens that a sequence has room for */
    int64_t width;      /* numbers of a row */
    int64_t *place;     /* [sequences] tokens that are remembered, and so the place of the next */
    real **rows;        /* [num_layers] arrays [sequences, places, width] */
} moe_attention_cache;

/* Local, pure. Numbers of a row. */
int64_t moe_attention_cache_width(const moe_attention_shape *s);

/* Local. An empty cache. Owner: the caller, moe_attention_cache_free. */
void moe_attention_cache_init(moe_attention_cache *cache,
                              const moe_attention_shape *s,
                              int32_t num_layers,
                              int64_t sequences,
                              int64_t places);
void moe_attention_cache_free(moe_attention_cache *cache);

/* Local. Takes the rows of layer l from what moe_attention_forward has just left in p and w.
 * Segment i of the batch is a whole sequence, number i of the cache; whoever calls it sets `place`.
 */
void moe_attention_cache_fill(moe_attention_cache *cache,
                              const moe_attention_shape *s,
                              int32_t l,
                              const moe_batch *b,
                              const moe_attention_activations *p,
                              const moe_attention_work *w);

#endif
