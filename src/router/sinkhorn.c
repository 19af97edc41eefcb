/* sinkhorn.c: factors that balance the experts over a device's tokens, as in Megatron-Core's
 * sinkhorn router (moe_utils.py), in double.
 *
 *   C_ti = exp(z_ti - max_i z_ti)      d1_i = 1;  then again and again
 *   d0_t = 1 / (T (sum_i d1_i C_ti + eps))      d1_i = 1 / (N (sum_t d0_t C_ti + eps))
 *
 * until the mean of |change of d1| is within the tolerance. Token t then takes its top K of
 * d0_t C_ti d1_i, which is the order of z_ti + log d1_i. Taking the maximum off a row changes d0
 * only (but for eps), and keeps exp finite. Sums over tokens run in blocks of 128 in a fixed order,
 * whatever the number of threads. */
#include <math.h>
#include <string.h>

#include "base/scratch.h"
#include "router/devices.h"
#include "router/scores.h"

enum { BLOCK = 128 };
static const double epsilon = 1e-8;

typedef struct sinkhorn {
    int64_t tokens, blocks;
    int64_t routed; /* T of the equation */
    int32_t n;
    double *cost;    /* [tokens,N] C; 0 where disabled, bad or not routed */
    double *partial; /* [blocks,N] */
    double *d1;      /* [N] */
    moe_scratch *scratch;
} sinkhorn;

static void fill_cost(const sinkhorn *k, moe_logits logits, const uint8_t *routed, int64_t begin) {
#pragma omp parallel
    {
        double *z = moe_scratch_take(k->scratch, k->n, sizeof *z, "sinkhorn");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < k->tokens; t++) {
            double most = -INFINITY, *row = k->cost + t * k->n;
            if (routed && !routed[begin + t]) {
                memset(row, 0, (size_t)k->n * sizeof *row);
                continue;
            }
            int flags = moe_scores_read_logits(logits, begin + t, k->n, z);
            for (int32_t i = 0; i < k->n; i++) {
                most = z[i] > most ? z[i] : most;
            }
            if (flags & MOE_ROW_BAD || most == -INFINITY) {
                memset(row, 0, (size_t)k->n * sizeof *row);
            } else {
                moe_scores_exp(z, most, row, k->n);
            }
        }
        moe_scratch_give(k->scratch, z);
    }
}

/* partial = sum over the block's tokens of d0_t C_t. */
static void add_block(const sinkhorn *k, int64_t block) {
    double *sum = k->partial + block * k->n;
    int64_t end = (block + 1) * BLOCK < k->tokens ? (block + 1) * BLOCK : k->tokens;
    memset(sum, 0, (size_t)k->n * sizeof *sum);
    for (int64_t t = block * BLOCK; t < end; t++) {
        const double *row = k->cost + t * k->n;
        double d0 = 1 / ((double)k->routed * (moe_scores_dot(k->d1, row, k->n) + epsilon));
        for (int32_t i = 0; i < k->n; i++) {
            sum[i] += d0 * row[i];
        }
    }
}

/* One iteration; returns the mean change of d1. */
static double iterate(const sinkhorn *k) {
    double change = 0;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < k->blocks; b++) {
        add_block(k, b);
    }
    for (int32_t i = 0; i < k->n; i++) {
        double sum = 0;
        for (int64_t b = 0; b < k->blocks; b++) {
            sum += k->partial[b * k->n + i];
        }
        double next = 1 / (k->n * (sum + epsilon));
        change += fabs(next - k->d1[i]) / k->n;
        k->d1[i] = next;
    }
    return change;
}

bool moe_sinkhorn_factors(const moe_router *r,
                          moe_logits logits,
                          const uint8_t *routed,
                          int64_t begin,
                          int64_t end,
                          double *factor) {
    sinkhorn k = {.tokens = end - begin,
                  .routed = moe_device_routed(routed, begin, end),
                  .blocks = (end - begin + BLOCK - 1) / BLOCK,
                  .n = r->num_experts,
                  .d1 = factor,
                  .scratch = r->scratch};
    double change = INFINITY;
    k.cost = moe_scratch_take(r->scratch, k.tokens * k.n, sizeof *k.cost, "sinkhorn");
    k.partial = moe_scratch_take(r->scratch, k.blocks * k.n, sizeof *k.partial, "sinkhorn");
    for (int32_t i = 0; i < k.n; i++) {
        k.d1[i] = 1;
    }
    fill_cost(&k, logits, routed, begin);
    for (int32_t i = 0; i < r->sinkhorn_iterations && change > r->sinkhorn_tolerance; i++) {
        change = k.routed > 0 ? iterate(&k) : 0;
    }
    for (int32_t i = 0; i < k.n; i++) {
        factor[i] = log(k.d1[i]);
    }
    moe_scratch_give(r->scratch, k.cost);
    moe_scratch_give(r->scratch, k.partial);
    return change <= r->sinkhorn_tolerance;
}
