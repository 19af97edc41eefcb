/* cost_attention.c: the time of attention (cost.h). */
#include <math.h>

#include "predict/cost.h"

static double matrices_seconds(const moe_cluster *k, const moe_cost_attention *a) {
    double sum = 0;
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&a->shape, (enum moe_attention_tensor)i);
        const double weights = (double)t.rows * (double)t.columns * a->wider * a->wider;
        if (!t.norm && weights > 0) {
            sum += moe_cost_product(k, a->tokens, weights, a->number_bytes);
        }
    }
    return sum;
}

/* Scores and sums of one token with one other: 2 (k + v) for each head. */
static double between_tokens(const moe_cluster *k, const moe_cost_attention *a, double times) {
    const moe_attention_shape *s = &a->shape;
    const double width = (double)(s->key + s->value) * a->wider;
    const double flops = 2 * (double)s->heads * width * a->tokens * (a->length + 1) / 2;
    const double bytes = (double)(s->heads + s->kv_heads) * width * a->tokens * a->number_bytes;
    return fmax(times * flops / k->flop_rate, times * bytes / k->memory_rate);
}

static double norm_seconds(const moe_cluster *k, const moe_cost_attention *a) {
    const double width = a->shape.normed ? (double)a->shape.hidden * a->wider : 0;
    return 2 * width * a->tokens * a->number_bytes / k->memory_rate;
}

double moe_cost_attention_forward(const moe_cluster *k, const moe_cost_attention *a) {
    return matrices_seconds(k, a) + between_tokens(k, a, 1) + norm_seconds(k, a);
}

double moe_cost_attention_backward(const moe_cluster *k,
                                   const moe_cost_attention *a,
                                   bool recompute) {
    return 2 * matrices_seconds(k, a) + between_tokens(k, a, 2.5) + 2 * norm_seconds(k, a) +
           (recompute ? moe_cost_attention_forward(k, a) : 0);
}
