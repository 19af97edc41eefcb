/* linear.c: linear maps of all tokens of a rank. */
#include "attention/linear.h"

#include "base/gemm.h"

enum { ROWS = 256 }; /* of one GEMM; no call crosses a device */

static int64_t most_tokens(const moe_batch *b) {
    int64_t most = 0;
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        const int64_t tokens = b->device_offset[d + 1] - b->device_offset[d];
        most = tokens > most ? tokens : most;
    }
    return most;
}

/* The rows of device d from `place` on; 0 where it has fewer tokens. */
static int64_t rows_at(const moe_batch *b, int32_t d, int64_t place) {
    const int64_t left = b->device_offset[d + 1] - b->device_offset[d] - place;
    return left < 0 ? 0 : left < ROWS ? left : ROWS;
}

void moe_linear_forward(const moe_batch *b,
                        int64_t out,
                        int64_t in,
                        const real *x,
                        const real *w,
                        real *y) {
    const int64_t most = most_tokens(b);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        for (int64_t place = 0; place < most; place += ROWS) {
            const int64_t t = b->device_offset[d] + place;
            moe_gemm_nt(rows_at(b, d, place), out, in, x + t * in, w, y + t * out);
        }
    }
}

void moe_linear_backward(const moe_batch *b,
                         int64_t out,
                         int64_t in,
                         const real *dy,
                         const real *w,
                         real keep,
                         real *dx) {
    const int64_t most = most_tokens(b);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        for (int64_t place = 0; place < most; place += ROWS) {
            const int64_t t = b->device_offset[d] + place;
            moe_gemm_nn(rows_at(b, d, place), in, out, dy + t * out, w, keep, dx + t * in);
        }
    }
}

void moe_linear_weight_gradients(const moe_batch *b, const moe_linear_job *job, int num_jobs) {
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        for (int i = 0; i < num_jobs; i++) {
            const moe_linear_job *l = &job[i];
            const int64_t begin = b->device_offset[d], rows = b->device_offset[d + 1] - begin;
            moe_gemm_tn(l->out, l->in, rows, l->dy + begin * l->out, l->x + begin * l->in, 1,
                        l->partial + d * l->out * l->in);
        }
    }
}
