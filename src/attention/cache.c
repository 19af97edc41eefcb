/* cache.c: the memory of a decoder, and how a forward pass over whole prompts fills it. */
#include "attention/cache.h"

#include <string.h>

#include "attention/internal.h"

int64_t moe_attention_cache_width(const moe_attention_shape *s) {
    return s->latent ? s->kv_rank + s->rope : s->kv_heads * (s->key + s->value);
}

void moe_attention_cache_init(moe_attention_cache *cache,
                              const moe_attention_shape *s,
                              int32_t num_layers,
                              int64_t sequences,
                              int64_t places) {
    *cache = (moe_attention_cache){.num_layers = num_layers,
                                   .sequences = sequences,
                                   .places = places,
                                   .width = moe_attention_cache_width(s)};
    cache->place = moe_alloc_zero(sequences, sizeof *cache->place, "KV cache");
    cache->rows = moe_alloc(num_layers, sizeof *cache->rows, "KV cache");
    for (int32_t l = 0; l < num_layers; l++) {
        cache->rows[l] = moe_alloc(sequences * places * cache->width, sizeof(real), "KV cache");
    }
}

void moe_attention_cache_free(moe_attention_cache *cache) {
    for (int32_t l = 0; l < cache->num_layers; l++) {
        moe_free(cache->rows[l]);
    }
    moe_free(cache->rows);
    moe_free(cache->place);
    *cache = (moe_attention_cache){0};
}

/* --- filling --- */

static void copy(real *to, const real *from, int64_t n) {
    if (n > 0) {
        memcpy(to, from, (size_t)n * sizeof *to);
    }
}

/* The row of local token t. */
static void take_token(const moe_attention_shape *s,
                       int64_t tokens,
                       int64_t t,
                       const moe_attention_activations *p,
                       const moe_attention_work *w,
                       real *row) {
    if (s->latent) {
        copy(row, p->c + t * s->kv_rank, s->kv_rank);
        if (s->rope > 0) {
            copy(row + s->kv_rank, w->key_rope + t * s->rope, s->rope);
        }
        return;
    }
    for (int64_t h = 0; h < s->kv_heads; h++) {
        copy(row + h * s->key, p->k + (h * tokens + t) * s->key, s->key);
        copy(row + s->kv_heads * s->key + h * s->value, p->v + (h * tokens + t) * s->value,
             s->value);
    }
}

void moe_attention_cache_fill(moe_attention_cache *cache,
                              const moe_attention_shape *s,
                              int32_t l,
                              const moe_batch *b,
                              const moe_attention_activations *p,
                              const moe_attention_work *w) {
    MOE_ASSERT(b->num_segments == cache->sequences && b->sequence_length <= cache->places);
#pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < b->num_segments; q++) {
        real *rows = cache->rows[l] + q * cache->places * cache->width;
        for (int64_t t = b->segment[q].begin; t < b->segment[q].end; t++) {
            take_token(s, b->num_tokens, t, p, w, rows + (t - b->segment[q].begin) * cache->width);
        }
    }
}
