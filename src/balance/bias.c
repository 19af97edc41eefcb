/* bias.c: one step of the balancing bias. */
#include "balance/bias.h"

/* N (mean(c) - c_i) = sum(c) - N c_i, an integer. */
static int64_t scaled_gap(int32_t num_experts, int64_t sum, int64_t count) {
    return sum - num_experts * count;
}

static double change_of(const moe_router_config *c, int32_t num_experts, int64_t gap) {
    if (c->bias_update == MOE_BIAS_SIGN) {
        return c->bias_update_rate * (double)((gap > 0) - (gap < 0));
    }
    return c->bias_update_rate * ((double)gap / num_experts);
}

void moe_bias_update(const moe_router_config *c,
                     int32_t num_experts,
                     const int64_t *counts,
                     double *bias) {
    int64_t sum = 0;
    double mean_change = 0;
    for (int32_t e = 0; e < num_experts; e++) {
        sum += counts[e];
    }
    for (int32_t e = 0; c->bias_centered && e < num_experts; e++) {
        int64_t gap = scaled_gap(num_experts, sum, counts[e]);
        mean_change += change_of(c, num_experts, gap) / num_experts;
    }
    for (int32_t e = 0; e < num_experts; e++) {
        int64_t gap = scaled_gap(num_experts, sum, counts[e]);
        bias[e] += change_of(c, num_experts, gap) - mean_change;
    }
}
