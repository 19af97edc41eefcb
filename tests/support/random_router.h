/* random_router.h: keyed random routers, logits and biases for property tests; every number is a
 * function of the seed alone. */
#ifndef RANDOM_ROUTER_H
#define RANDOM_ROUTER_H

#include <math.h>
#include <stdlib.h>

#include "base/rng.h"
#include "router/groups.h"
#include "router/router.h"
#include "router/scores.h"

typedef struct random_router {
    moe_router router;
    int32_t devices; /* a divisor of N */
    int64_t num_tokens;
    double *bias; /* [N] or NULL; what router.bias points to */
    float *z;     /* [T,N] */
} random_router;

static inline double random_unit(uint64_t seed, uint64_t a, uint64_t b) {
    return moe_rng_uniform((moe_rng){seed, MOE_RNG_TEST}, a, b, 0);
}

static inline int32_t random_int(uint64_t seed, uint64_t a, int32_t low, int32_t high) {
    return low + (int32_t)(random_unit(seed, a, 1) * (high - low + 1));
}

static inline int32_t random_divisor(uint64_t seed, uint64_t a, int32_t n) {
    int32_t d = random_int(seed, a, 1, n);
    while (n % d != 0) {
        d--;
    }
    return d;
}

/* Kinds of logits by seed: spread out; quantised (many ties); all equal; with -inf; extreme. */
static inline float random_logit(uint64_t seed, int kind, uint64_t t, uint64_t i) {
    double u = random_unit(seed, 1000 + t, i), v = random_unit(seed, 1000 + t, (1u << 20) + i);
    double normal = sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);
    switch (kind) {
    case 1:
        return (float)(floor(normal * 2) / 2);
    case 2:
        return 0.25f;
    case 3:
        return v < 0.3 ? -INFINITY : (float)normal;
    case 4:
        return (float)(normal * 60);
    case 5:
        return v < 0.9 ? -INFINITY : (float)floor(normal);
    default:
        return (float)(normal * 2);
    }
}

static inline void random_bias(random_router *c, uint64_t seed) {
    int kind = random_int(seed, 20, 0, 3);
    int32_t n = c->router.num_experts;
    if (kind == 0) {
        return;
    }
    c->bias = malloc((size_t)n * sizeof *c->bias);
    for (int32_t i = 0; i < n; i++) {
        double u = random_unit(seed, 30, (uint64_t)i) - (kind == 1 ? 1.5 : 0.5); /* all negative, or
                                                                                    both signs */
        c->bias[i] = kind == 3 ? floor(u * 4) / 4 : u;
    }
    c->router.bias = c->bias;
}

static inline random_router random_router_make(uint64_t seed, int64_t num_tokens) {
    random_router c = {.num_tokens = num_tokens};
    int32_t n = random_int(seed, 0, 1, random_unit(seed, 1, 0) < 0.2 ? 200 : 64),
            groups = random_divisor(seed, 2, n);
    int kind = random_int(seed, 3, 0, 5);
    c.devices = random_divisor(seed, 4, n);
    c.router = (moe_router){
        .num_experts = n,
        .num_groups = groups,
        .topk_group = random_int(seed, 5, 1, groups),
        .score_func = (enum moe_score_func)random_int(seed, 6, 0, MOE_NUM_SCORE_FUNCTIONS - 1),
        .group_limit = (enum moe_group_limit)random_int(seed, 7, 0, MOE_NUM_GROUP_LIMITS - 1),
        .norm_topk_prob = random_int(seed, 8, 0, 1),
        .norm_single = random_int(seed, 9, 0, 1),
        .scale_normalized = random_int(seed, 10, 0, 1),
        .routed_scaling_factor = random_int(seed, 11, 0, 1) ? 2.5 : 1,
        .aux_selection = (enum moe_aux_selection)random_int(seed, 12, 0, 1),
        .comm_count_local = random_int(seed, 13, 0, 1)};
    c.router.top_k = random_int(seed, 14, 1, n < 12 ? n : 12);
    if (c.router.group_limit == MOE_GROUP_QUOTA) {
        int32_t size = n / groups, each = c.router.top_k / c.router.topk_group;
        each = each < 1 ? 1 : each > size ? size : each;
        c.router.top_k = each * c.router.topk_group;
    }
    random_bias(&c, seed);
    c.z = malloc((size_t)(num_tokens * n) * sizeof *c.z);
    for (int64_t j = 0; j < num_tokens * n; j++) {
        c.z[j] = random_logit(seed, kind, (uint64_t)(j / n), (uint64_t)(j % n));
    }
    return c;
}

static inline void random_router_free(random_router *c) {
    free(c->bias);
    free(c->z);
}

static inline double *random_router_wide(const random_router *c) { /* logits as double; caller frees
                                                                    */
    int64_t count = c->num_tokens * c->router.num_experts;
    double *z = malloc((size_t)count * sizeof *z);
    for (int64_t i = 0; i < count; i++) {
        z[i] = c->z[i];
    }
    return z;
}

#endif
