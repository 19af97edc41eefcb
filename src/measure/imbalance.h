/* metrics.h: balance metrics of a vector of loads, each with its formula. Layer 4 (show): pure.
 * method.md section 6. */
#ifndef MOESIM_MEASURE_IMBALANCE_H
#define MOESIM_MEASURE_IMBALANCE_H

#include <stdint.h>

typedef struct moe_imbalance {
    double max_over_mean; /* max / mean */
    double maxvio;       /* max / mean - 1; TensorRT-LLM's (max - mean) / mean is the same number */
    double balancedness; /* mean / max (SGLang, vLLM) */
    double cv;           /* population standard deviation / mean */
    double gini;         /* sum_i (2 i - n - 1) x_(i) / (n sum x), i = 1..n ascending */
    double entropy;      /* -sum p ln p, p = x / sum x, nats; ln n at balance */
    int64_t idle;        /* entries that are 0 */
    double p50, p90, p99; /* percentiles, linear interpolation (numpy's default) */
} moe_imbalance;

/* Local. Metrics of n >= 1 loads; all zero loads give max_over_mean = 1, maxvio = 0, balancedness =
 * 1, cv = gini = entropy = 0. */
moe_imbalance moe_imbalance_of(const int64_t *load, int64_t n);

/* Local. Table of (name, formula) for reports; ends with a NULL name. */
typedef struct moe_imbalance_formula {
    const char *name, *formula;
} moe_imbalance_formula;
extern const moe_imbalance_formula moe_imbalance_formulas[];

/* Local. E[min(limit, X)], X = number of distinct groups (of num_experts / groups experts each)
 * among top_k experts drawn uniformly without replacement. limit >= groups gives E[X] = D (1 -
 * C(N-n,K) / C(N,K)): what routing without preference would reach (method.md, 1). */
double moe_imbalance_expected_reach(int32_t num_experts,
                                    int32_t groups,
                                    int32_t top_k,
                                    int32_t limit);

#endif
