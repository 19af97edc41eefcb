/* backward.c: the backward pass of an attention layer: the steps of its forward pass, the other
 * way. The gradients of the matrices come last, all at once. */
#include <string.h>

#include "attention/internal.h"
#include "attention/linear.h"
#include "base/norm.h"

/* What the steps share. */
typedef struct pass {
    const moe_attention_shape *s;
    const moe_attention_weights *a;
    const moe_batch *b;
    const moe_attention_activations *p;
    moe_attention_work *w;
    real *const *partial;
    const real *u;
    moe_linear_job job[MOE_ATTENTION_TENSORS]; /* gradients of matrices that are still to be made */
    int num_jobs;
} pass;

static void reserve(const moe_attention_shape *s, int64_t tokens, moe_attention_work *w) {
    const int64_t o = tokens * s->heads * s->value;
    moe_block_array table[] = {
        MOE_ARRAY(w->flat_o, o),
        MOE_ARRAY(w->d_o, o),
        MOE_ARRAY(w->dq, s->heads * tokens * s->key),
        MOE_ARRAY(w->dk, s->kv_heads * tokens * s->key),
        MOE_ARRAY(w->dv, s->kv_heads * tokens * s->value),
        MOE_ARRAY(w->dc, tokens * s->kv_rank),
        MOE_ARRAY(w->dq_in, tokens * s->q_rank),
        MOE_ARRAY(w->du, tokens * s->hidden),
    };
    moe_block_reserve(&w->backward_block, table, MOE_ARRAYS(table), "gradients of attention");
}

/* --- one map --- */

/* dx [T,in] = dy W + keep dx, and remembers that dW = dy^T x is to be made. */
static void map_backward(pass *p,
                         enum moe_attention_tensor tensor,
                         const real *dy,
                         const real *x,
                         real keep,
                         real *dx) {
    const moe_attention_tensor_shape t = moe_attention_tensor_of(p->s, tensor);
    if (t.rows == 0) {
        return;
    }
    moe_linear_backward(p->b, t.rows, t.columns, dy, p->a->w[tensor], keep, dx);
    p->job[p->num_jobs++] = (moe_linear_job){t.rows, t.columns, dy, x, p->partial[tensor]};
}

/* dx from du through an RMSNorm, and the gradient of its weights; dx may be du. */
static void norm_backward(const pass *p,
                          enum moe_attention_tensor tensor,
                          const real *x,
                          const double *inverse_rms,
                          const real *du,
                          real *dx) {
    const moe_batch *b = p->b;
    const int64_t width = moe_attention_tensor_of(p->s, tensor).columns;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        const int64_t begin = b->device_offset[d], rows = b->device_offset[d + 1] - begin;
        moe_rmsnorm_weight_gradient(x + begin * width, inverse_rms + begin, du + begin * width,
                                    rows, width, p->partial[tensor] + d * width);
    }
    moe_rmsnorm_backward(x, p->a->w[tensor], inverse_rms, du, b->num_tokens, width, dx);
}

/* --- from heads to tokens --- */

/* flat [T, n * columns] from the first `columns` of each row of heads [n,T,width]. */
static void to_tokens(const real *heads,
                      int64_t tokens,
                      int64_t n,
                      int64_t columns,
                      int64_t width,
                      real *flat) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            memcpy(flat + (t * n + h) * columns, heads + (h * tokens + t) * width,
                   (size_t)columns * sizeof *flat);
        }
    }
}

static void d_o_by_head(const pass *p) {
    const int64_t tokens = p->b->num_tokens, n = p->s->heads, value = p->s->value;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            memcpy(p->w->d_o + (h * tokens + t) * value, p->w->flat_o + (t * n + h) * value,
                   (size_t)value * sizeof(real));
        }
    }
}

static void turn_back(const pass *p, int64_t n, real *heads) {
    const int64_t tokens = p->b->num_tokens, begin = moe_attention_rope_begin(p->s);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < n; h++) {
            moe_rotary_turn(&p->w->rotary, moe_attention_place(p->b, t), true,
                            heads + (h * tokens + t) * p->s->key + begin);
        }
    }
}

/* k_R stood in the key of every head: its gradient is their sum, in the order of heads. */
static void sum_key_rope(const pass *p) {
    const int64_t tokens = p->b->num_tokens, key = p->s->key, rope = p->s->rope;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        real *sum = p->w->key_rope + t * rope;
        memcpy(sum, p->w->dk + t * key + key - rope, (size_t)rope * sizeof *sum);
        for (int64_t h = 1; h < p->s->heads; h++) {
            const real *row = p->w->dk + (h * tokens + t) * key + key - rope;
            for (int64_t i = 0; i < rope; i++) {
                sum[i] += row[i];
            }
        }
        moe_rotary_turn(&p->w->rotary, moe_attention_place(p->b, t), true, sum);
    }
}

/* --- backward --- */

/* Writes du. */
static void queries_backward(pass *p) {
    const moe_attention_shape *s = p->s;
    moe_attention_work *w = p->w;
    turn_back(p, s->heads, w->dq);
    to_tokens(w->dq, p->b->num_tokens, s->heads, s->key, s->key, w->flat_q);
    if (s->q_rank == 0) {
        map_backward(p, MOE_ATTENTION_Q, w->flat_q, p->u, 0, w->du);
        return;
    }
    map_backward(p, MOE_ATTENTION_Q, w->flat_q, p->p->q_in, 0, w->dq_in);
    norm_backward(p, MOE_ATTENTION_Q_NORM, p->p->q_down, p->p->q_rms, w->dq_in, w->dq_in);
    map_backward(p, MOE_ATTENTION_DQ, w->dq_in, p->u, 0, w->du);
}

/* Adds to du. */
static void keys_and_values_backward(pass *p) {
    const moe_attention_shape *s = p->s;
    moe_attention_work *w = p->w;
    const int64_t own = s->latent ? s->key - s->rope : s->key, tokens = p->b->num_tokens;
    const real *in = s->latent ? p->p->c : p->u;
    real *d_in = s->latent ? w->dc : w->du;
    if (!s->latent) {
        turn_back(p, s->kv_heads, w->dk);
    } else if (s->rope > 0) {
        sum_key_rope(p);
    }
    to_tokens(w->dk, tokens, s->kv_heads, own, s->key, w->flat_k);
    to_tokens(w->dv, tokens, s->kv_heads, s->value, s->value, w->flat_v);
    map_backward(p, MOE_ATTENTION_K, w->flat_k, in, s->latent ? 0 : 1, d_in);
    map_backward(p, MOE_ATTENTION_V, w->flat_v, in, 1, d_in);
    if (!s->latent) {
        return;
    }
    norm_backward(p, MOE_ATTENTION_KV_NORM, p->p->kv_down, p->p->kv_rms, w->dc, w->dc);
    map_backward(p, MOE_ATTENTION_DKV, w->dc, p->u, 1, w->du);
    map_backward(p, MOE_ATTENTION_KR, w->key_rope, p->u, 1, w->du);
}

void moe_attention_backward(const moe_attention_shape *s,
                            const moe_attention_weights *a,
                            const moe_batch *b,
                            const real *x,
                            const moe_attention_activations *activations,
                            moe_attention_work *w,
                            const real *dy,
                            real *const partial[MOE_ATTENTION_TENSORS],
                            real *dx) {
    pass p = {.s = s,
              .a = a,
              .b = b,
              .p = activations,
              .w = w,
              .partial = partial,
              .u = s->normed ? activations->u : x};
    const moe_flash flash = moe_attention_flash(s, activations);
    reserve(s, b->num_tokens, w);
    map_backward(&p, MOE_ATTENTION_O, dy, activations->o, 0, w->flat_o);
    d_o_by_head(&p);
    moe_flash_backward(&flash, b, w->d_o, w->dq, w->dk, w->dv);
    queries_backward(&p);
    keys_and_values_backward(&p);
    moe_linear_weight_gradients(b, p.job, p.num_jobs);
    if (s->normed) {
        norm_backward(&p, MOE_ATTENTION_NORM, x, activations->inverse_rms, w->du, w->du);
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < b->num_tokens * s->hidden; i++) {
        dx[i] += w->du[i];
    }
}
