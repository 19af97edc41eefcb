/* bare.h: the same work without moesim, as one would write it in an afternoon: plain loops,
 * MPI_Alltoallv, cblas. Indices are given in advance; losses, counts, metadata and checks are left
 * out. */
#ifndef MOESIM_BENCH_BARE_H
#define MOESIM_BENCH_BARE_H

#include <cblas.h>
#include <math.h>

#include "bench.h"

#ifdef MOE_REAL_DOUBLE
#define BARE_GEMM cblas_dgemm
#define BARE_REAL MPI_DOUBLE
#else
#define BARE_GEMM cblas_sgemm
#define BARE_REAL MPI_FLOAT
#endif

static inline void bare_nt(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    BARE_GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)n, (int)k, 1, a, (int)k, b,
              (int)k, 0, c, (int)n);
}
static inline void bare_nn(int64_t m,
                           int64_t n,
                           int64_t k,
                           const real *a,
                           const real *b,
                           real beta,
                           real *c) {
    BARE_GEMM(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1, a, (int)k, b,
              (int)n, beta, c, (int)n);
}
static inline void bare_tn(int64_t m, int64_t n, int64_t k, const real *a, const real *b, real *c) {
    BARE_GEMM(CblasRowMajor, CblasTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1, a, (int)m, b,
              (int)n, 1, c, (int)n);
}

/* --- gate and router --- */

/* logits [T,N] = x gate^T, the tokens dealt evenly to the threads. */
static inline void bare_gate(const bench_layer *b, real *logits) {
    int64_t h = b->config.model.hidden_size;
    int64_t n = b->config.model.num_experts;
    int64_t threads = omp_get_max_threads();
#pragma omp parallel for
    for (int64_t i = 0; i < threads; i++) {
        int64_t begin = b->batch.num_tokens * i / threads,
                end = b->batch.num_tokens * (i + 1) / threads;
        if (end > begin) {
            bare_nt(end - begin, n, h, b->x + begin * h, b->layer.gate, logits + begin * n);
        }
    }
}

/* Softmax in double, K passes for the top K, weights as they are. s [N] is scratch. */
static inline void bare_token(const real *logits,
                              int64_t n,
                              int32_t k,
                              double *s,
                              int32_t *expert,
                              double *weight) {
    double max = (double)logits[0], sum = 0;
    for (int64_t i = 1; i < n; i++) {
        if ((double)logits[i] > max) {
            max = (double)logits[i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        sum += s[i] = exp((double)logits[i] - max);
    }
    for (int64_t i = 0; i < n; i++) {
        s[i] /= sum;
    }
    for (int32_t j = 0; j < k; j++) {
        int64_t best = 0;
        for (int64_t i = 1; i < n; i++) {
            if (s[i] > s[best]) {
                best = i;
            }
        }
        expert[j] = (int32_t)best;
        weight[j] = s[best];
        s[best] = -1;
    }
}

static inline void bare_router(const bench_layer *b,
                               const real *logits,
                               int32_t *expert,
                               double *weight) {
    int64_t n = b->config.model.num_experts, k = b->config.router.top_k;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->batch.num_tokens; t++) {
        double s[1024];
        bare_token(logits + t * n, n, (int32_t)k, s, expert + t * k, weight + t * k);
    }
}

/* --- exchange --- */

/* Every row in one packed buffer, the own rank's too; or those of the other ranks only (`remote`),
 * which reads own rows where they are. */
typedef struct bare_exchange {
    const moe_plan *plan;
    int64_t hidden;
    bool remote;
    int rank, *send_count, *send_offset, *recv_count, *recv_offset; /* in reals */
    real *out, *in; /* [rows sent, H], [rows received, H] */
    int64_t rows_out, rows_in;
} bare_exchange;

static inline void bare_exchange_init(bare_exchange *e,
                                      const moe_comm *comm,
                                      const moe_plan *plan,
                                      int64_t hidden,
                                      bool remote) {
    int n = comm->size;
    int *ints = moe_alloc(4 * n, sizeof *ints, "bench");
    int out = 0;
    int in = 0;
    *e = (bare_exchange){plan,         hidden,       remote, comm->rank, ints, ints + n,
                         ints + 2 * n, ints + 3 * n, NULL,   NULL,       0,    0};
    for (int q = 0; q < n; q++) {
        e->send_count[q] = remote && q == comm->rank
                               ? 0
                               : (int)((plan->rank_row[q + 1] - plan->rank_row[q]) * hidden);
    }
    MPI_Alltoall(e->send_count, 1, MPI_INT, e->recv_count, 1, MPI_INT, comm->comm);
    for (int q = 0; q < n; q++) {
        e->send_offset[q] = out;
        e->recv_offset[q] = in;
        out += e->send_count[q];
        in += e->recv_count[q];
    }
    e->rows_out = out / hidden;
    e->rows_in = in / hidden;
    e->out = moe_alloc_zero(out, sizeof(real), "bench");
    e->in = moe_alloc_zero(in, sizeof(real), "bench");
}

static inline void bare_exchange_free(bare_exchange *e) {
    moe_free(e->send_count);
    moe_free(e->out);
    moe_free(e->in);
}

static inline void bare_dispatch(const bare_exchange *e, const moe_comm *comm, const real *x) {
    const moe_plan *p = e->plan;
    int64_t own = p->rank_row[e->rank];
    int64_t skip = e->remote ? p->rank_row[e->rank + 1] - own : 0;
    int64_t h = e->hidden;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < e->rows_out; r++) {
        memcpy(e->out + r * h, x + p->row_token[r < own ? r : r + skip] * h,
               (size_t)h * sizeof(real));
    }
    MPI_Alltoallv(e->out, e->send_count, e->send_offset, BARE_REAL, e->in, e->recv_count,
                  e->recv_offset, BARE_REAL, comm->comm);
}

static inline void bare_add(real *restrict to, const real *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        to[i] += from[i];
    }
}

/* The way back: y [T,H] = sum of the rows that return. own: results of the own rank's rows, where
 * they are not sent. */
static inline void bare_combine(const bare_exchange *e,
                                const moe_comm *comm,
                                const real *own,
                                real *y) {
    const moe_plan *p = e->plan;
    int64_t begin = p->rank_row[e->rank];
    int64_t end = e->remote ? p->rank_row[e->rank + 1] : begin;
    int64_t h = e->hidden;
    MPI_Alltoallv(e->in, e->recv_count, e->recv_offset, BARE_REAL, e->out, e->send_count,
                  e->send_offset, BARE_REAL, comm->comm);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < p->num_tokens; t++) {
        memset(y + t * h, 0, (size_t)h * sizeof(real));
        for (int64_t i = p->token_row_offset[t]; i < p->token_row_offset[t + 1]; i++) {
            int64_t r = p->token_row[i];
            const real *from = r < begin ? e->out + r * h
                               : r < end ? own + (r - begin) * h
                                         : e->out + (r - (end - begin)) * h;
            bare_add(y + t * h, from, h);
        }
    }
}

/* --- experts --- */

typedef struct bare_experts { /* nothing but GEMMs, over rows that are already grouped by expert */
    const moe_ffn *ffn;
    const int64_t *offset; /* [count + 1] rows of each expert */
    real *x, *h1, *h3, *out, *dy, *dx;
    moe_ffn_gradient gradient; /* owned here, for backward only */
} bare_experts;

static inline void bare_experts_init(bare_experts *e,
                                     const moe_ffn *ffn,
                                     const int64_t *offset,
                                     bool backward) {
    int64_t rows = offset[ffn->count];
    int64_t vectors = rows * ffn->hidden;
    int64_t inner = rows * ffn->width;
    int64_t size = ffn->count * ffn->hidden * ffn->width;
    *e = (bare_experts){.ffn = ffn, .offset = offset};
    e->x = moe_alloc(vectors, sizeof(real), "bench");
    e->out = moe_alloc_zero(vectors, sizeof(real), "bench");
    e->h1 = moe_alloc_zero(inner, sizeof(real), "bench");
    e->h3 = moe_alloc_zero(inner, sizeof(real), "bench");
    for (int64_t i = 0; i < vectors; i++) {
        e->x[i] = (real)((i * 7919 % 2048) / 1024.0 - 1);
    }
    if (!backward) {
        return;
    }
    e->dy = moe_alloc(vectors, sizeof(real), "bench");
    e->dx = moe_alloc_zero(vectors, sizeof(real), "bench");
    memcpy(e->dy, e->x, (size_t)vectors * sizeof(real));
    e->gradient =
        (moe_ffn_gradient){.w1 = moe_alloc_zero(size, sizeof(real), "bench"),
                           .w3 = ffn->w3 ? moe_alloc_zero(size, sizeof(real), "bench") : NULL,
                           .w2 = moe_alloc_zero(size, sizeof(real), "bench")};
}

static inline void bare_experts_free(bare_experts *e) {
    void *arrays[] = {e->x,  e->h1,          e->h3,          e->out,        e->dy,
                      e->dx, e->gradient.w1, e->gradient.w3, e->gradient.w2};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        moe_free(arrays[i]);
    }
}

static inline void bare_expert_forward(const bare_experts *e, int64_t i) {
    int64_t h = e->ffn->hidden;
    int64_t f = e->ffn->width;
    int64_t begin = e->offset[i];
    int64_t rows = e->offset[i + 1] - begin;
    int64_t w = i * h * f;
    if (rows == 0) {
        return;
    }
    bare_nt(rows, f, h, e->x + begin * h, e->ffn->w1 + w, e->h1 + begin * f);
    if (e->ffn->w3) {
        bare_nt(rows, f, h, e->x + begin * h, e->ffn->w3 + w, e->h3 + begin * f);
    }
    bare_nt(rows, h, f, e->h1 + begin * f, e->ffn->w2 + w, e->out + begin * h);
}

static inline void bare_expert_backward(const bare_experts *e, int64_t i) {
    int64_t h = e->ffn->hidden;
    int64_t f = e->ffn->width;
    int64_t begin = e->offset[i];
    int64_t rows = e->offset[i + 1] - begin;
    int64_t w = i * h * f;
    const real *x = e->x + begin * h, *dy = e->dy + begin * h;
    real *h1 = e->h1 + begin * f;
    real *h3 = e->h3 + begin * f;
    real *dx = e->dx + begin * h;
    if (rows == 0) {
        return;
    }
    bare_tn(h, f, rows, dy, h1, e->gradient.w2 + w);
    bare_nn(rows, f, h, dy, e->ffn->w2 + w, 0, h3);
    bare_tn(f, h, rows, h3, x, e->gradient.w1 + w);
    bare_nn(rows, h, f, h3, e->ffn->w1 + w, 0, dx);
    if (!e->ffn->w3) {
        return;
    }
    bare_tn(f, h, rows, h3, x, e->gradient.w3 + w);
    bare_nn(rows, h, f, h3, e->ffn->w3 + w, 1, dx);
}

static inline void bare_experts_run(const bare_experts *e, bool backward) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < e->ffn->count; i++) {
        bare_expert_forward(e, i);
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < (backward ? e->ffn->count : 0); i++) {
        bare_expert_backward(e, i);
    }
}

#endif
