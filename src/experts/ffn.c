/* ffn.c: one feed-forward network as three linear maps and an activation. */
#include "experts/ffn.h"

#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "base/status.h"
#include "base/transpose.h"

/* --- types --- */

static const moe_ffn_type types[] = {
    [MOE_EXPERT_SWIGLU] = {"swiglu", 3, false, moe_activation_swiglu,
                           moe_activation_swiglu_backward},
    [MOE_EXPERT_SILU] = {"silu", 2, false, moe_activation_silu, moe_activation_silu_backward},
    [MOE_EXPERT_GELU] = {"gelu", 2, false, moe_activation_gelu, moe_activation_gelu_backward},
    [MOE_EXPERT_RELU] = {"relu", 2, false, moe_activation_relu, moe_activation_relu_backward},
    [MOE_EXPERT_LORA] = {"lora", 3, true, moe_activation_swiglu, moe_activation_swiglu_backward},
    [MOE_EXPERT_IDENTITY] = {"identity", 0, false, NULL, NULL},
};

const moe_ffn_type *moe_ffn_type_of(enum moe_expert_type type) {
    MOE_ASSERT((size_t)type < sizeof types / sizeof types[0]);
    return &types[type];
}

/* --- weights --- */

/* Of W1, W2 and W3. */
static const uint32_t streams[][3] = {
    [MOE_FFN_ROUTED] = {MOE_RNG_EXPERT_W1, MOE_RNG_EXPERT_W2, MOE_RNG_EXPERT_W3},
    [MOE_FFN_SHARED] = {MOE_RNG_SHARED_W1, MOE_RNG_SHARED_W2, MOE_RNG_SHARED_W3},
    [MOE_FFN_DENSE] = {MOE_RNG_DENSE_W1, MOE_RNG_DENSE_W2, MOE_RNG_DENSE_W3},
};

/* `count` matrices [rows, columns], each normal with variance 1 / columns and keyed by (layer, id),
 * or all zero. */
static real *keyed_matrices(const moe_ffn_shape *s,
                            int64_t count,
                            int64_t rows,
                            int64_t columns,
                            uint32_t stream,
                            bool zero) {
    int64_t size = rows * columns;
    real *w = zero ? moe_alloc_zero(count * size, sizeof(real), "expert weights")
                   : moe_alloc(count * size, sizeof(real), "expert weights");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < (zero ? 0 : count); i++) {
        moe_rng_normal((moe_rng){(uint64_t)s->seed, stream}, (uint64_t)s->layer,
                       s->id ? (uint64_t)s->id[i] : 0, 1 / sqrt((double)columns), w + i * size,
                       size);
    }
    return w;
}

/* The base is one FFN for all experts, keyed by the layer alone. */
static void init_lora(moe_ffn *f, const moe_ffn_shape *s) {
    int64_t h = s->hidden;
    int64_t w = s->width;
    int64_t r = s->rank;
    moe_ffn_shape base = *s;
    base.id = NULL;
    f->rank = r;
    f->lora_scale = (real)(s->lora_alpha / (double)r);
    f->w1 = keyed_matrices(&base, 1, w, h, MOE_RNG_BASE_W1, false);
    f->w3 = keyed_matrices(&base, 1, w, h, MOE_RNG_BASE_W3, false);
    f->w2 = keyed_matrices(&base, 1, h, w, MOE_RNG_BASE_W2, false);
    f->a1 = keyed_matrices(s, s->count, r, h, MOE_RNG_LORA_A, false);
    f->a3 = keyed_matrices(s, s->count, r, h, MOE_RNG_LORA_A3, false);
    f->a2 = keyed_matrices(s, s->count, r, w, MOE_RNG_LORA_A2, false);
    f->b1 = keyed_matrices(s, s->count, w, r, MOE_RNG_LORA_B, s->zero_b);
    f->b3 = keyed_matrices(s, s->count, w, r, MOE_RNG_LORA_B3, s->zero_b);
    f->b2 = keyed_matrices(s, s->count, h, r, MOE_RNG_LORA_B2, s->zero_b);
}

void moe_ffn_init(moe_ffn *f, const moe_ffn_shape *s) {
    *f = (moe_ffn){.type = s->type, .count = s->count, .hidden = s->hidden, .width = s->width};
    const moe_ffn_type *type = moe_ffn_type_of(s->type);
    if (type->matrices == 0 || s->count == 0) {
        return;
    }
    if (type->adapters) {
        init_lora(f, s);
        return;
    }
    const uint32_t *stream = streams[s->kind];
    f->w1 = keyed_matrices(s, s->count, s->width, s->hidden, stream[0], false);
    f->w2 = keyed_matrices(s, s->count, s->hidden, s->width, stream[1], false);
    if (type->matrices == 3) {
        f->w3 = keyed_matrices(s, s->count, s->width, s->hidden, stream[2], false);
    }
}

void moe_ffn_free(moe_ffn *f) {
    real *arrays[] = {f->w1, f->w2, f->w3, f->a1, f->a2, f->a3, f->b1, f->b2, f->b3};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        moe_free(arrays[i]);
    }
    *f = (moe_ffn){0};
}

/* --- turning --- */

/* `count` matrices [rows, columns] become [columns, rows]. */
static void turn(real *matrices, int64_t count, int64_t rows, int64_t columns) {
    const int64_t size = rows * columns;
    if (!matrices || count == 0 || size == 0) {
        return;
    }
#pragma omp parallel
    {
        real *copy = moe_alloc(size, sizeof *copy, "a matrix to be turned");
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++) {
            memcpy(copy, matrices + i * size, (size_t)size * sizeof *copy);
            moe_transpose(copy, rows, columns, matrices + i * size);
        }
        moe_free(copy);
    }
}

void moe_ffn_turn(moe_ffn *f) {
    const int64_t h = f->hidden, w = f->width, r = f->rank, matrices = r ? 1 : f->count;
    MOE_ASSERT(!f->turned);
    turn(f->w1, matrices, w, h);
    turn(f->w3, matrices, w, h);
    turn(f->w2, matrices, h, w);
    turn(f->a1, f->count, r, h);
    turn(f->a3, f->count, r, h);
    turn(f->a2, f->count, r, w);
    turn(f->b1, f->count, w, r);
    turn(f->b3, f->count, w, r);
    turn(f->b2, f->count, h, r);
    f->turned = true;
}

/* --- one linear map --- */

/* y = W x (+ s B A x), and where the gradients go: NULL where a matrix is frozen or absent. */
typedef struct linear {
    int64_t in, out, rank;
    real scale;
    bool turned;
    const real *w, *a, *b;
    real *dw, *da, *db;
    real keep;       /* 1: gradients are added to what is there; 0: they replace it */
    uint16_t *codes; /* scratch of products in bf16; NULL: they are in real */
} linear;

static real *block(real *matrices, int64_t i, int64_t size) {
    return matrices ? matrices + i * size : NULL;
}

/* The map of W1, W2 or W3 (which) of FFN i; g may be NULL. */
static linear linear_of(const moe_ffn *f, const moe_ffn_gradient *g, int which, int64_t i) {
    real *const w[3] = {f->w1, f->w2, f->w3};
    real *const a[3] = {f->a1, f->a2, f->a3};
    real *const b[3] = {f->b1, f->b2, f->b3};
    int m = which - 1;
    linear l = {.in = which == 2 ? f->width : f->hidden,
                .out = which == 2 ? f->hidden : f->width,
                .rank = f->rank,
                .scale = f->lora_scale,
                .turned = f->turned,
                .codes = f->codes};
    l.w = block(w[m], f->rank ? 0 : i, l.in * l.out);
    l.a = block(a[m], i, l.rank * l.in);
    l.b = block(b[m], i, l.rank * l.out);
    if (!g) {
        return l;
    }
    real *const dw[3] = {g->w1, g->w2, g->w3};
    real *const da[3] = {g->a1, g->a2, g->a3};
    real *const db[3] = {g->b1, g->b2, g->b3};
    l.keep = g->replace ? 0 : 1;
    l.dw = block(dw[m], i, l.in * l.out);
    l.da = block(da[m], i, l.rank * l.in);
    l.db = block(db[m], i, l.rank * l.out);
    return l;
}

static void clear(real *x, int64_t n) {
    if (x && n > 0) {
        memset(x, 0, (size_t)n * sizeof *x);
    }
}

void moe_ffn_clear_gradient(const moe_ffn *f, const moe_ffn_gradient *g, int64_t i) {
    for (int which = 1; which <= 3; which++) {
        const linear l = linear_of(f, g, which, i);
        clear(l.dw, l.in * l.out);
        clear(l.da, l.rank * l.in);
        clear(l.db, l.rank * l.out);
    }
}

static void scale(real *x, real by, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] *= by;
    }
}

/* c = op(a) op(b) + beta c, in the precision of the map. */
static void multiply(const linear *l,
                     enum moe_gemm_form form,
                     int64_t m,
                     int64_t n,
                     int64_t k,
                     const real *a,
                     const real *b,
                     real beta,
                     real *c) {
    if (l->codes) {
        moe_gemm_bf16(form, m, n, k, a, b, beta, c, l->codes);
    } else if (form == MOE_GEMM_TN) {
        moe_gemm_tn(m, n, k, a, b, beta, c);
    } else if (form == MOE_GEMM_NN) {
        moe_gemm_nn(m, n, k, a, b, beta, c);
    } else {
        (beta == 0 ? moe_gemm_nt : moe_gemm_nt_add)(m, n, k, a, b, c);
    }
}

/* y [rows,out] = x [rows,in] W^T + beta y, of a matrix that stands as the map's do. */
static void apply(const linear *l,
                  int64_t rows,
                  int64_t out,
                  int64_t in,
                  const real *x,
                  const real *w,
                  real beta,
                  real *y) {
    multiply(l, l->turned ? MOE_GEMM_NN : MOE_GEMM_NT, rows, out, in, x, w, beta, y);
}

/* low [rows,r] = s x A^T */
static void project(const linear *l, int64_t rows, const real *x, real *low) {
    apply(l, rows, l->rank, l->in, x, l->a, 0, low);
    scale(low, l->scale, rows * l->rank);
}

static void linear_forward(const linear *l, int64_t rows, const real *x, real *low, real *y) {
    apply(l, rows, l->out, l->in, x, l->w, 0, y);
    if (!l->rank) {
        return;
    }
    project(l, rows, x, low);
    apply(l, rows, l->out, l->rank, low, l->b, 1, y);
}

/* dW += dy^T x, dx = beta dx + dy W; with adapters also dB += dy^T (s x A^T), e = s dy B, dA += e^T
 * x, dx += e A. With l->keep = 0 the gradients of the matrices are set, not added. low is scratch
 * of 2 rows r numbers. */
static void linear_backward(const linear *l,
                            int64_t rows,
                            const real *x,
                            const real *dy,
                            real *low,
                            real beta,
                            real *dx) {
    if (l->dw) {
        multiply(l, MOE_GEMM_TN, l->out, l->in, rows, dy, x, l->keep, l->dw);
    }
    multiply(l, MOE_GEMM_NN, rows, l->in, l->out, dy, l->w, beta, dx);
    if (!l->rank) {
        return;
    }
    real *e = low + rows * l->rank;
    project(l, rows, x, low);
    multiply(l, MOE_GEMM_TN, l->out, l->rank, rows, dy, low, l->keep, l->db);
    multiply(l, MOE_GEMM_NN, rows, l->rank, l->out, dy, l->b, 0, e);
    scale(e, l->scale, rows * l->rank);
    multiply(l, MOE_GEMM_TN, l->rank, l->in, rows, e, x, l->keep, l->da);
    multiply(l, MOE_GEMM_NN, rows, l->in, l->rank, e, l->a, 1, dx);
}

/* Rows meet a matrix of [in,out], [in,rank] or [rank,out], or two blocks of rows meet. */
int64_t moe_ffn_codes(const moe_ffn *f, int64_t rows) {
    return rows * (f->hidden + f->width + f->rank) + f->hidden * f->width +
           f->rank * (f->hidden + f->width);
}

/* --- one FFN --- */

void moe_ffn_pre_activations(const moe_ffn *f,
                             int64_t i,
                             int64_t rows,
                             const real *x,
                             real *low,
                             real *h1,
                             real *h3) {
    linear first = linear_of(f, NULL, 1, i), third = linear_of(f, NULL, 3, i);
    if (!f->w1) {
        return;
    }
    linear_forward(&first, rows, x, low, h1);
    if (f->w3) {
        linear_forward(&third, rows, x, low, h3);
    }
}

void moe_ffn_forward(const moe_ffn *f,
                     int64_t i,
                     int64_t rows,
                     const real *x,
                     real *low,
                     real *h1,
                     real *h3,
                     real *h,
                     real *y) {
    const moe_ffn_type *type = moe_ffn_type_of(f->type);
    if (type->matrices == 0) {
        memcpy(y, x, (size_t)(rows * f->hidden) * sizeof(real));
        return;
    }
    linear second = linear_of(f, NULL, 2, i);
    moe_ffn_pre_activations(f, i, rows, x, low, h1, h3);
    type->forward(h1, h3, h, rows * f->width);
    linear_forward(&second, rows, h, low, y);
}

/* Of y = W2 h, h = act(W1 x, W3 x):
 *     dW2 += dy^T h      dh = dy W2      (dh1, dh3) = act'(dh)
 *     dW1 += dh1^T x     dW3 += dh3^T x  dx = dh1 W1 + dh3 W3 */
void moe_ffn_backward(const moe_ffn *f,
                      const moe_ffn_gradient *g,
                      int64_t i,
                      int64_t rows,
                      const real *x,
                      const real *h1,
                      const real *h3,
                      const real *dy,
                      real *scratch,
                      real *dx) {
    int64_t n = rows * f->width;
    const moe_ffn_type *type = moe_ffn_type_of(f->type);
    MOE_ASSERT(!f->turned);
    if (type->matrices == 0) {
        memmove(dx, dy, (size_t)(rows * f->hidden) * sizeof(real));
        return;
    }
    linear first = linear_of(f, g, 1, i);
    linear second = linear_of(f, g, 2, i);
    linear third = linear_of(f, g, 3, i);
    real *h = scratch;
    real *dh = h + n;
    real *dh3 = dh + n;
    real *low = dh3 + n;
    type->forward(h1, h3, h, n);
    linear_backward(&second, rows, h, dy, low, 0, dh);
    type->backward(h1, h3, dh, dh, dh3, n);
    linear_backward(&first, rows, x, dh, low, 0, dx);
    if (f->w3) {
        linear_backward(&third, rows, x, dh3, low, 1, dx);
    }
}
