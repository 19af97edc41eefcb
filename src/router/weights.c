/* weights.c: combine weights. */
#include "router/weights.h"

#include "router/methods.h"
#include "router/scores.h"

bool moe_weights_normalized(const moe_router *r) {
    return moe_score_function_of(r)->over_chosen ||
           (r->norm_topk_prob && (r->top_k > 1 || r->norm_single));
}

double moe_weights_factor(const moe_router *r) {
    bool normalized = moe_weights_normalized(r);
    double factor = !normalized || r->scale_normalized ? r->routed_scaling_factor : 1.0;
    return normalized ? factor : factor / moe_router_probability_divisor(r);
}

/* The 1e-20 is DeepSeek's: their code adds it to every sum. */
double moe_weights_divisor(const moe_router *r, double sum) {
    if (!moe_weights_normalized(r)) {
        return 1.0;
    }
    if (moe_score_function_of(r)->over_chosen) {
        return sum > 0 ? sum : 1.0;
    }
    return sum + 1e-20;
}

void moe_weights_fill(const moe_router *r, const double *s, int32_t count, double *weight) {
    double sum = 0, factor = moe_weights_factor(r);
    for (int32_t k = 0; k < count; k++) {
        sum += s[k];
    }
    double divisor = moe_weights_divisor(r, sum);
    for (int32_t k = 0; k < count; k++) {
        weight[k] = s[k] / divisor * factor;
    }
}
