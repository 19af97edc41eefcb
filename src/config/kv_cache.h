/* kv_cache.h: what a decoder with the model's attention would have to remember of every token,
 * beside the other ways to attend (DeepSeek-V2, arXiv 2405.04434, table 1).
 *
 * Elements of a token in L layers, with n heads of width d:
 *
 *     mha   2 n d L                  keys and values of all heads
 *     gqa   2 g d L                  g heads of keys and values, shared by n / g heads each
 *     mqa   2 d L
 *     mla   (r + d_R) L              the normed c_KV of r numbers and the rotated key of d_R */
#ifndef MOESIM_CONFIG_KV_CACHE_H
#define MOESIM_CONFIG_KV_CACHE_H

#include <stddef.h>

#include "config/config.h"

enum moe_kv_cache_kind {
    MOE_KV_CACHE_MHA,
    MOE_KV_CACHE_GQA,
    MOE_KV_CACHE_MQA,
    MOE_KV_CACHE_MLA,
    MOE_NUM_KV_CACHES
};

enum { MOE_KV_CACHE_BF16 = 2 /* bytes of an element as the published figures count them */ };

typedef struct moe_kv_cache {
    enum moe_kv_cache_kind own; /* what the model has */
    int32_t groups;     /* g: num_kv_heads where that is GQA, else 8, or half of the heads */
    int32_t rank, rope; /* r and d_R: those of mla, else 4 d and d / 2 */
    int64_t elements[MOE_NUM_KV_CACHES]; /* of a token, all layers together */
} moe_kv_cache;

extern const char *const moe_kv_cache_names[MOE_NUM_KV_CACHES];

/* Local, pure. Of a resolved configuration whose attention is not none. */
moe_kv_cache moe_kv_cache_of(const moe_config *c);

/* Local. One sentence about it, without a full stop. */
void moe_kv_cache_sentence(const moe_config *c, char *text, size_t size);

#endif
