/* attention.c: the parameters of an attention layer, its memory, and its forward pass. */
#include "attention/attention.h"

#include <string.h>

#include "attention/internal.h"
#include "attention/linear.h"
#include "base/norm.h"
#include "base/rng.h"

/* --- parameters --- */

static void init_matrix(const moe_attention_tensor_shape *t,
                        int64_t seed,
                        int tensor,
                        int32_t index,
                        real *w) {
    const moe_rng rng = {(uint64_t)seed, (uint32_t)(MOE_RNG_ATTENTION + tensor)};
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < t->rows; i++) {
        moe_rng_normal(rng, (uint64_t)index, (uint64_t)i, 1 / sqrt((double)t->columns),
                       w + i * t->columns, t->columns);
    }
}

void moe_attention_init(moe_attention_weights *a,
                        const moe_attention_shape *s,
                        int64_t seed,
                        int32_t index) {
    *a = (moe_attention_weights){{NULL}};
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(s, (enum moe_attention_tensor)i);
        a->w[i] = moe_alloc(t.rows * t.columns, sizeof(real), "attention weights");
        if (!t.norm) {
            init_matrix(&t, seed, i, index, a->w[i]);
            continue;
        }
        for (int64_t k = 0; k < t.rows * t.columns; k++) {
            a->w[i][k] = 1;
        }
    }
}

void moe_attention_free(moe_attention_weights *a) {
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        moe_free(a->w[i]);
    }
    *a = (moe_attention_weights){{NULL}};
}

/* --- memory --- */

static void reserve_activations(const moe_attention_shape *s,
                                int64_t tokens,
                                moe_attention_activations *p) {
    const int64_t low = s->latent ? tokens : 0;
    moe_block_array table[] = {
        MOE_ARRAY(p->u, s->normed ? tokens * s->hidden : 0),
        MOE_ARRAY(p->inverse_rms, s->normed ? tokens : 0),
        MOE_ARRAY(p->q_down, tokens * s->q_rank),
        MOE_ARRAY(p->q_in, tokens * s->q_rank),
        MOE_ARRAY(p->q_rms, s->q_rank > 0 ? tokens : 0),
        MOE_ARRAY(p->kv_down, low * s->kv_rank),
        MOE_ARRAY(p->c, low * s->kv_rank),
        MOE_ARRAY(p->kv_rms, low),
        MOE_ARRAY(p->q, s->heads * tokens * s->key),
        MOE_ARRAY(p->k, s->kv_heads * tokens * s->key),
        MOE_ARRAY(p->v, s->kv_heads * tokens * s->value),
        MOE_ARRAY(p->o, tokens * s->heads * s->value),
        MOE_ARRAY(p->lse, s->heads * tokens),
    };
    moe_block_reserve(&p->block, table, MOE_ARRAYS(table), "activations of attention");
}

void moe_attention_activations_free(moe_attention_activations *p) {
    moe_block_free(&p->block);
    *p = (moe_attention_activations){0};
}

static void reserve_work(const moe_attention_shape *s, int64_t tokens, moe_attention_work *w) {
    moe_block_array table[] = {
        MOE_ARRAY(w->flat_q, tokens * moe_attention_rows(s, MOE_ATTENTION_Q)),
        MOE_ARRAY(w->flat_k, tokens * moe_attention_rows(s, MOE_ATTENTION_K)),
        MOE_ARRAY(w->flat_v, tokens * moe_attention_rows(s, MOE_ATTENTION_V)),
        MOE_ARRAY(w->key_rope, tokens * moe_attention_rows(s, MOE_ATTENTION_KR)),
    };
    moe_block_reserve(&w->block, table, MOE_ARRAYS(table), "attention");
}

void moe_attention_work_init(moe_attention_work *w, const moe_attention_shape *s, int64_t longest) {
    *w = (moe_attention_work){.rotary = {0}};
    moe_rotary_init(&w->rotary, longest, s->rope, s->theta, s->half);
}

void moe_attention_work_free(moe_attention_work *w) {
    moe_rotary_free(&w->rotary);
    moe_block_free(&w->block);
    moe_block_free(&w->backward_block);
    *w = (moe_attention_work){.rotary = {0}};
}

/* --- from tokens to heads --- */

/* heads [n,T,width], its first `columns` of each row, from flat [T, n * columns]. */
static void to_heads(const real *flat,
                     int64_t tokens,
                     int64_t n,
                     int64_t columns,
                     int64_t width,
                     real *heads) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            memcpy(heads + (h * tokens + t) * width, flat + (t * n + h) * columns,
                   (size_t)columns * sizeof *heads);
        }
    }
}

/* Turns the last `rope` numbers of every row of heads [n,T,key] by the place of its token. */
static void rotate_heads(const moe_attention_shape *s,
                         const moe_rotary *rotary,
                         const moe_batch *b,
                         int64_t n,
                         real *heads) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            moe_rotary_turn(rotary, moe_attention_place(b, t), false,
                            heads + (h * b->num_tokens + t) * s->key + moe_attention_rope_begin(s));
        }
    }
}

/* The key of every head ends with k_R, rotated once. */
static void share_key_rope(const moe_attention_shape *s,
                           const moe_batch *b,
                           moe_attention_work *w,
                           real *k) {
    if (s->rope == 0) {
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        real *row = w->key_rope + t * s->rope;
        moe_rotary_turn(&w->rotary, moe_attention_place(b, t), false, row);
        for (int64_t h = 0; h < s->heads; h++) {
            memcpy(k + (h * b->num_tokens + t) * s->key + moe_attention_rope_begin(s), row,
                   (size_t)s->rope * sizeof *k);
        }
    }
}

/* --- forward --- */

static void queries(const moe_attention_shape *s,
                    const moe_attention_weights *a,
                    const moe_batch *b,
                    const real *u,
                    moe_attention_activations *p,
                    moe_attention_work *w) {
    const real *in = u;
    if (s->q_rank > 0) {
        moe_linear_forward(b, s->q_rank, s->hidden, u, a->w[MOE_ATTENTION_DQ], p->q_down);
        moe_rmsnorm(p->q_down, a->w[MOE_ATTENTION_Q_NORM], b->num_tokens, s->q_rank, p->q_in,
                    p->q_rms);
        in = p->q_in;
    }
    moe_linear_forward(b, s->heads * s->key, s->q_rank > 0 ? s->q_rank : s->hidden, in,
                       a->w[MOE_ATTENTION_Q], w->flat_q);
    to_heads(w->flat_q, b->num_tokens, s->heads, s->key, s->key, p->q);
    rotate_heads(s, &w->rotary, b, s->heads, p->q);
}

/* c_KV, and k_R, which the cache of a decoder holds; then what is made of them. */
static void keys_and_values(const moe_attention_shape *s,
                            const moe_attention_weights *a,
                            const moe_batch *b,
                            const real *u,
                            moe_attention_activations *p,
                            moe_attention_work *w) {
    const real *in = u;
    const int64_t from = s->latent ? s->kv_rank : s->hidden;
    const int64_t own = s->latent ? s->key - s->rope : s->key;
    if (s->latent) {
        moe_linear_forward(b, s->kv_rank, s->hidden, u, a->w[MOE_ATTENTION_DKV], p->kv_down);
        moe_rmsnorm(p->kv_down, a->w[MOE_ATTENTION_KV_NORM], b->num_tokens, s->kv_rank, p->c,
                    p->kv_rms);
        moe_linear_forward(b, s->rope, s->hidden, u, a->w[MOE_ATTENTION_KR], w->key_rope);
        in = p->c;
    }
    moe_linear_forward(b, s->kv_heads * own, from, in, a->w[MOE_ATTENTION_K], w->flat_k);
    moe_linear_forward(b, s->kv_heads * s->value, from, in, a->w[MOE_ATTENTION_V], w->flat_v);
    to_heads(w->flat_k, b->num_tokens, s->kv_heads, own, s->key, p->k);
    to_heads(w->flat_v, b->num_tokens, s->kv_heads, s->value, s->value, p->v);
    if (s->latent) {
        share_key_rope(s, b, w, p->k);
    } else {
        rotate_heads(s, &w->rotary, b, s->kv_heads, p->k);
    }
}

void moe_attention_forward(const moe_attention_shape *s,
                           const moe_attention_weights *a,
                           const moe_batch *b,
                           const real *x,
                           moe_attention_activations *p,
                           moe_attention_work *w,
                           real *y) {
    const real *u = x;
    reserve_activations(s, b->num_tokens, p);
    reserve_work(s, b->num_tokens, w);
    if (s->normed) {
        moe_rmsnorm(x, a->w[MOE_ATTENTION_NORM], b->num_tokens, s->hidden, p->u, p->inverse_rms);
        u = p->u;
    }
    queries(s, a, b, u, p, w);
    keys_and_values(s, a, b, u, p, w);
    const moe_flash flash = moe_attention_flash(s, p);
    moe_flash_forward(&flash, b);
    if (y) {
        moe_linear_forward(b, s->hidden, s->heads * s->value, p->o, a->w[MOE_ATTENTION_O], y);
    }
}
