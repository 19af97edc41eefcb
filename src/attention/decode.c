/* decode.c: one new token of every sequence. The matrices are read once for all sequences of the
 * rank, row by row, since reading them is what takes the time. */
#include "attention/decode.h"

#include <string.h>

#include "attention/internal.h"
#include "base/norm.h"
#include "base/sums.h"
#include "base/vector.h"

/* --- memory --- */

static void reserve(const moe_attention_shape *s,
                    const moe_attention_cache *cache,
                    moe_attention_decode_work *w) {
    const int64_t n = cache->sequences, latent = s->latent ? n : 0;
    moe_block_array table[] = {
        MOE_ARRAY(w->u, s->normed ? n * s->hidden : 0),
        MOE_ARRAY(w->q_down, n * s->q_rank),
        MOE_ARRAY(w->q_in, n * s->q_rank),
        MOE_ARRAY(w->q, n * s->heads * s->key),
        MOE_ARRAY(w->absorbed, latent * s->heads * cache->width),
        MOE_ARRAY(w->kv_down, latent * s->kv_rank),
        MOE_ARRAY(w->score, n * s->heads * cache->places),
        MOE_ARRAY(w->mean, latent * s->heads * s->kv_rank),
        MOE_ARRAY(w->o, n * s->heads * s->value),
    };
    moe_block_reserve(&w->block, table, MOE_ARRAYS(table), "decoding");
}

void moe_attention_decode_work_free(moe_attention_decode_work *w) {
    moe_block_free(&w->block);
    *w = (moe_attention_decode_work){.u = NULL};
}

/* --- products --- */

/* y [n,out] = x [n,in] w^T for few rows: row n of y begins at n * step. */
static void few_rows(int64_t n,
                     int64_t out,
                     int64_t in,
                     const real *x,
                     const real *w,
                     int64_t step,
                     real *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < out; i++) {
        for (int64_t t = 0; t < n; t++) {
            y[t * step + i] = (real)moe_sum_of_products(w + i * in, x + t * in, in);
        }
    }
}

/* y += factor x */
MOE_CLONES static void add_scaled(real *restrict y,
                                  const real *restrict x,
                                  real factor,
                                  int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        y[i] += factor * x[i];
    }
}

/* --- queries, and the new row of the cache --- */

static real *row_of(const moe_attention_cache *cache, int32_t l, int64_t q, int64_t place) {
    return cache->rows[l] + (q * cache->places + place) * cache->width;
}

static void queries(const moe_attention_shape *s,
                    const moe_attention_weights *a,
                    const moe_rotary *rotary,
                    const moe_attention_cache *cache,
                    const real *u,
                    moe_attention_decode_work *w) {
    const int64_t n = cache->sequences, width = s->heads * s->key;
    const real *in = u;
    if (s->q_rank > 0) {
        few_rows(n, s->q_rank, s->hidden, u, a->w[MOE_ATTENTION_DQ], s->q_rank, w->q_down);
        moe_rmsnorm(w->q_down, a->w[MOE_ATTENTION_Q_NORM], n, s->q_rank, w->q_in, NULL);
        in = w->q_in;
    }
    few_rows(n, width, s->q_rank > 0 ? s->q_rank : s->hidden, in, a->w[MOE_ATTENTION_Q], width,
             w->q);
    for (int64_t q = 0; q < n; q++) {
        for (int64_t h = 0; h < s->heads; h++) {
            moe_rotary_turn(rotary, cache->place[q], false,
                            w->q + (q * s->heads + h) * s->key + moe_attention_rope_begin(s));
        }
    }
}

static void remember_latent(const moe_attention_shape *s,
                            const moe_attention_weights *a,
                            const moe_rotary *rotary,
                            const moe_attention_cache *cache,
                            int32_t l,
                            const real *u,
                            moe_attention_decode_work *w) {
    few_rows(cache->sequences, s->kv_rank, s->hidden, u, a->w[MOE_ATTENTION_DKV], s->kv_rank,
             w->kv_down);
    for (int64_t q = 0; q < cache->sequences; q++) {
        real *row = row_of(cache, l, q, cache->place[q]);
        moe_rmsnorm(w->kv_down + q * s->kv_rank, a->w[MOE_ATTENTION_KV_NORM], 1, s->kv_rank, row,
                    NULL);
        if (s->rope > 0) {
            few_rows(1, s->rope, s->hidden, u + q * s->hidden, a->w[MOE_ATTENTION_KR], s->rope,
                     row + s->kv_rank);
            moe_rotary_turn(rotary, cache->place[q], false, row + s->kv_rank);
        }
    }
}

static void remember_heads(const moe_attention_shape *s,
                           const moe_attention_weights *a,
                           const moe_rotary *rotary,
                           const moe_attention_cache *cache,
                           int32_t l,
                           const real *u) {
    const int64_t keys = s->kv_heads * s->key;
    for (int64_t q = 0; q < cache->sequences; q++) {
        real *row = row_of(cache, l, q, cache->place[q]);
        few_rows(1, keys, s->hidden, u + q * s->hidden, a->w[MOE_ATTENTION_K], keys, row);
        few_rows(1, s->kv_heads * s->value, s->hidden, u + q * s->hidden, a->w[MOE_ATTENTION_V], 0,
                 row + keys);
        for (int64_t h = 0; h < s->kv_heads; h++) {
            moe_rotary_turn(rotary, cache->place[q], false,
                            row + h * s->key + moe_attention_rope_begin(s));
        }
    }
}

/* --- attention --- */

/* s [n] becomes the softmax of scale times s. */
static void softmax(double scale, real *s, int64_t n) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, scale * (double)s[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        sum += exp(scale * (double)s[i] - most);
    }
    for (int64_t i = 0; i < n; i++) {
        s[i] = (real)(exp(scale * (double)s[i] - most) / sum);
    }
}

/* out [columns] = the mean of n values, a row of the cache apart, with the softmax of the products
 * of `query` with as many keys as weights. */
static void attend(const moe_attention_cache *cache,
                   double scale,
                   int64_t n,
                   const real *query,
                   const real *key,
                   int64_t key_width,
                   const real *value,
                   int64_t columns,
                   real *score,
                   real *out) {
    for (int64_t j = 0; j < n; j++) {
        score[j] = (real)moe_sum_of_products(query, key + j * cache->width, key_width);
    }
    softmax(scale, score, n);
    memset(out, 0, (size_t)columns * sizeof *out);
    for (int64_t j = 0; j < n; j++) {
        add_scaled(out, value + j * cache->width, score[j], columns);
    }
}

/* The query of one head as it meets the rows of the cache: (W_UK^T q_C, q_R). */
static void absorb(const moe_attention_shape *s, const real *w_uk, const real *q, real *absorbed) {
    const int64_t own = s->key - s->rope;
    memset(absorbed, 0, (size_t)s->kv_rank * sizeof *absorbed);
    for (int64_t i = 0; i < own; i++) {
        add_scaled(absorbed, w_uk + i * s->kv_rank, q[i], s->kv_rank);
    }
    memcpy(absorbed + s->kv_rank, q + own, (size_t)s->rope * sizeof *absorbed);
}

static void latent_head(const moe_attention_shape *s,
                        const moe_attention_weights *a,
                        const moe_attention_cache *cache,
                        int32_t l,
                        int64_t h,
                        moe_attention_decode_work *w) {
    const int64_t own = s->key - s->rope;
    const real *w_uv = a->w[MOE_ATTENTION_V] + h * s->value * s->kv_rank;
    for (int64_t q = 0; q < cache->sequences; q++) {
        const int64_t head = q * s->heads + h;
        real *absorbed = w->absorbed + head * cache->width, *mean = w->mean + head * s->kv_rank;
        const real *rows = row_of(cache, l, q, 0);
        absorb(s, a->w[MOE_ATTENTION_K] + h * own * s->kv_rank, w->q + head * s->key, absorbed);
        attend(cache, 1 / sqrt((double)s->key), cache->place[q] + 1, absorbed, rows, cache->width,
               rows, s->kv_rank, w->score + head * cache->places, mean);
        for (int64_t i = 0; i < s->value; i++) {
            w->o[head * s->value + i] =
                (real)moe_sum_of_products(w_uv + i * s->kv_rank, mean, s->kv_rank);
        }
    }
}

static void plain_head(const moe_attention_shape *s,
                       const moe_attention_cache *cache,
                       int32_t l,
                       int64_t h,
                       moe_attention_decode_work *w) {
    const int64_t kv_head = h / (s->heads / s->kv_heads);
    for (int64_t q = 0; q < cache->sequences; q++) {
        const int64_t head = q * s->heads + h;
        const real *rows = row_of(cache, l, q, 0);
        attend(cache, 1 / sqrt((double)s->key), cache->place[q] + 1, w->q + head * s->key,
               rows + kv_head * s->key, s->key, rows + s->kv_heads * s->key + kv_head * s->value,
               s->value, w->score + head * cache->places, w->o + head * s->value);
    }
}

void moe_attention_decode(const moe_attention_shape *s,
                          const moe_attention_weights *a,
                          const moe_rotary *rotary,
                          moe_attention_cache *cache,
                          int32_t l,
                          const real *x,
                          moe_attention_decode_work *w,
                          real *y) {
    const real *u = x;
    reserve(s, cache, w);
    if (s->normed) {
        moe_rmsnorm(x, a->w[MOE_ATTENTION_NORM], cache->sequences, s->hidden, w->u, NULL);
        u = w->u;
    }
    queries(s, a, rotary, cache, u, w);
    if (s->latent) {
        remember_latent(s, a, rotary, cache, l, u, w);
    } else {
        remember_heads(s, a, rotary, cache, l, u);
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t h = 0; h < s->heads; h++) {
        if (s->latent) {
            latent_head(s, a, cache, l, h, w);
        } else {
            plain_head(s, cache, l, h, w);
        }
    }
    few_rows(cache->sequences, s->hidden, s->heads * s->value, w->o, a->w[MOE_ATTENTION_O],
             s->hidden, y);
}
