/* imbalance.h: how unevenly a load is spread over experts, devices or nodes.
 *
 * Every metric is a function of one vector of loads x_1 .. x_n; its formula stands in names.def.
 * docs/method.md section 6. */
#ifndef MOESIM_MEASURE_IMBALANCE_H
#define MOESIM_MEASURE_IMBALANCE_H

#include <stdint.h>

/* One number for each IMBALANCE row of names.def: max_over_mean, maxvio, balancedness, cv, gini,
 * entropy (nats, ln n at balance), idle (how many loads are 0), p50, p90, p99. They are doubles so
 * that a mean over layers has the same type. */
typedef struct moe_imbalance {
#define IMBALANCE(name, formula) double name;
#include "measure/names.def"
} moe_imbalance;

/* The names and formulas in the order of the members; the last row has a NULL name. */
typedef struct moe_imbalance_formula {
    const char *name, *formula;
} moe_imbalance_formula;
extern const moe_imbalance_formula moe_imbalance_formulas[];

/* Local. The metrics of n >= 1 loads. Loads that are all zero count as balanced: max_over_mean and
 * balancedness are 1, everything else but idle is 0. */
moe_imbalance moe_imbalance_of(const int64_t *load, int64_t n);

/* Local. Adds share x every metric to *sum, for means over layers. */
void moe_imbalance_add(moe_imbalance *sum, const moe_imbalance *m, double share);

/* Local. max / mean alone, without sorting and without memory: cheap enough for every rank after
 * every step. 1 where all loads are zero. */
double moe_imbalance_max_over_mean(const int64_t *load, int64_t n);

/* Local. The expected value of min(limit, X), where X is the number of distinct groups (of
 * num_experts / groups experts each) among top_k experts that are drawn uniformly without
 * replacement. With limit >= groups this is E[X] = D (1 - C(N-n,K) / C(N,K)), which routing
 * without any preference would reach. docs/method.md section 1.9. */
double moe_imbalance_expected_reach(int32_t num_experts,
                                    int32_t groups,
                                    int32_t top_k,
                                    int32_t limit);

#endif
