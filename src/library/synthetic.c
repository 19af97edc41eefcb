/* synthetic.c: the logits that a run begins with where its tokens are synthetic. */
#include "data/synthetic.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "library/internal.h"

/* gate [H,N], transposed: what init_gate of model/layer.c draws for layer 0. */
static void make_gate(const moe_config *c, real *gate) {
    const int64_t n = c->model.num_experts, h = c->model.hidden_size;
    const double scale = c->router.gate_scale / sqrt((double)h);
    real *row = moe_alloc(h, sizeof *row, "gate weights");
    for (int64_t i = 0; i < n; i++) {
        moe_rng_normal((moe_rng){(uint64_t)c->run.seed, MOE_RNG_GATE}, 0, (uint64_t)i, scale, row,
                       h);
        for (int64_t l = 0; l < h; l++) {
            gate[l * n + i] = row[l];
        }
    }
    moe_free(row);
}

/* One token's logits, summed in double in the order of the vector: the bits of run.gemm =
 * reference. */
static void multiply(const real *x, const real *gate, int64_t h, int64_t n, double *sum, real *z) {
    memset(sum, 0, (size_t)n * sizeof *sum);
    for (int64_t l = 0; l < h; l++) {
        const double value = (double)x[l];
        for (int64_t i = 0; i < n; i++) {
            sum[i] += value * (double)gate[l * n + i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        z[i] = (real)sum[i];
    }
}

void moe_layer_synthetic(const moe_config *c, const moe_batch *b, real *logits) {
    const int64_t n = c->model.num_experts, h = c->model.hidden_size;
    real *x = moe_alloc(b->num_tokens * h, sizeof *x, "vectors"),
         *gate = moe_alloc(h * n, sizeof *gate, "gate weights");
    moe_synthetic_vectors(&c->data, c->run.seed, h, b, 0, x, NULL);
    make_gate(c, gate);
#pragma omp parallel
    {
        double *sum = moe_alloc(n, sizeof *sum, "logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < b->num_tokens; t++) {
            multiply(x + t * h, gate, h, n, sum, logits + t * n);
        }
        moe_free(sum);
    }
    moe_free(x);
    moe_free(gate);
}
