/* kv_cache.c: elements of a token in the cache of a decoder. */
#include "config/kv_cache.h"

#include <stdio.h>

const char *const moe_kv_cache_names[MOE_NUM_KV_CACHES] = {
    [MOE_KV_CACHE_MHA] = "mha",
    [MOE_KV_CACHE_GQA] = "gqa",
    [MOE_KV_CACHE_MQA] = "mqa",
    [MOE_KV_CACHE_MLA] = "mla",
};

static enum moe_kv_cache_kind own_kind(const moe_model_config *m) {
    if (m->attention == MOE_ATTENTION_MLA) {
        return MOE_KV_CACHE_MLA;
    }
    if (m->num_kv_heads == 0 || m->num_kv_heads == m->num_heads) {
        return MOE_KV_CACHE_MHA;
    }
    return m->num_kv_heads == 1 ? MOE_KV_CACHE_MQA : MOE_KV_CACHE_GQA;
}

static int32_t groups_of(const moe_model_config *m, enum moe_kv_cache_kind own) {
    if (own == MOE_KV_CACHE_GQA) {
        return m->num_kv_heads;
    }
    if (m->num_heads > 8 && m->num_heads % 8 == 0) {
        return 8;
    }
    return m->num_heads % 2 == 0 ? m->num_heads / 2 : 1;
}

moe_kv_cache moe_kv_cache_of(const moe_config *c) {
    const moe_model_config *m = &c->model;
    const bool latent = m->attention == MOE_ATTENTION_MLA;
    moe_kv_cache k = {.own = own_kind(m),
                      .rank = latent ? m->kv_lora_rank : 4 * m->head_dim,
                      .rope = latent ? m->rope_dim : m->head_dim / 2};
    k.groups = groups_of(m, k.own);
    const int64_t pair = 2 * (int64_t)m->head_dim * m->num_layers;
    k.elements[MOE_KV_CACHE_MHA] = pair * m->num_heads;
    k.elements[MOE_KV_CACHE_GQA] = pair * k.groups;
    k.elements[MOE_KV_CACHE_MQA] = pair;
    k.elements[MOE_KV_CACHE_MLA] = ((int64_t)k.rank + k.rope) * m->num_layers;
    return k;
}

void moe_kv_cache_sentence(const moe_config *c, char *text, size_t size) {
    const moe_kv_cache k = moe_kv_cache_of(c);
    const long long own = k.elements[k.own];
    snprintf(
        text, size,
        "KV cache of a token, %d layer%s: %s %lld elements, %lld bytes in bf16 (mha: %lld; gqa, "
        "%d heads: %lld; mqa: %lld; mla, %d + %d numbers: %lld)",
        c->model.num_layers, c->model.num_layers == 1 ? "" : "s", moe_kv_cache_names[k.own], own,
        own * MOE_KV_CACHE_BF16, (long long)k.elements[MOE_KV_CACHE_MHA], k.groups,
        (long long)k.elements[MOE_KV_CACHE_GQA], (long long)k.elements[MOE_KV_CACHE_MQA], k.rank,
        k.rope, (long long)k.elements[MOE_KV_CACHE_MLA]);
}
