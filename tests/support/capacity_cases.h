/* capacity_cases.h: keyed random capacity rules on keyed random routers, for unit_capacity.c
 * and mpi_drop.c. */
#ifndef CAPACITY_CASES_H
#define CAPACITY_CASES_H

#include "capacity/drop.h"
#include "random_router.h"

typedef struct capacity_case {
    random_router r;
    moe_capacity rule;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
    moe_drop drop;
    int64_t step;
    int64_t *boundary; /* of the sequences, or NULL */
    uint8_t *counted;  /* [tokens] of the whole batch; padding is dropped. Or NULL */
} capacity_case;

/* Every policy, scope, order and option comes up; budgets are tight more often than not. */
static inline moe_capacity random_rule(uint64_t seed, const random_router *r) {
    moe_capacity c = {.policy = (enum moe_capacity_policy)random_int(seed, 40, 1, 3),
                      .scope = (enum moe_capacity_scope)random_int(seed, 41, 0, 1),
                      .drop = (enum moe_drop_order)random_int(seed, 42, 0, 3),
                      .overflow = (enum moe_overflow)random_int(seed, 43, 0, 1),
                      .rounding = (enum moe_rounding)random_int(seed, 44, 0, 4),
                      .factor = random_int(seed, 45, 1, 8) / 4.0,
                      .exempt_sequences = random_int(seed, 46, 0, 2) * 0.2,
                      .expert_capacity = random_int(seed, 47, 0, 3),
                      .min_capacity = random_int(seed, 48, 0, 2),
                      .first_choices = random_int(seed, 49, 0, 2) == 0,
                      .num_experts = r->router.num_experts,
                      .devices = r->devices,
                      .top_k = r->router.top_k,
                      .most_choices = r->router.top_k,
                      .seed = seed};
    if (c.policy == MOE_CAPACITY_SEQUENCE) {
        c.scope = MOE_CAPACITY_GLOBAL;
        c.exempt_sequences = 0;
    }
    if (c.policy == MOE_CAPACITY_DEVICE) {
        c.expert_capacity = 0;
    }
    return c;
}

/* Some cases have sequences of different lengths, and some have padding, which is dropped. */
static inline void capacity_case_layout(capacity_case *c,
                                        uint64_t seed,
                                        int64_t tokens,
                                        const moe_comm *comm) {
    if (random_int(seed, 52, 0, 2) == 0) {
        int64_t sequences = 0;
        c->boundary = moe_alloc(tokens + 1, sizeof *c->boundary, "test");
        for (int64_t t = 0; t < tokens; t++) {
            if (t == 0 || random_unit(seed, 53, (uint64_t)t) < 0.15) {
                c->boundary[sequences++] = t;
            }
        }
        c->boundary[sequences] = tokens;
        moe_batch_layout_boundaries(&c->batch, tokens, c->boundary, sequences, c->r.devices,
                                    comm->rank, comm->size);
    } else {
        moe_batch_layout(&c->batch, tokens, random_int(seed, 51, 0, (int32_t)tokens), c->r.devices,
                         comm->rank, comm->size);
    }
    if (random_int(seed, 54, 0, 2) == 0) {
        c->counted = moe_alloc(tokens, 1, "test");
        for (int64_t t = 0; t < tokens; t++) { /* single tokens, and whole stretches */
            c->counted[t] = random_unit(seed, 55, (uint64_t)t) < 0.8 && t / 7 % 4 != 1;
        }
        c->batch.counted = c->counted + c->batch.first_token;
        moe_batch_drop_padding(&c->batch, comm);
    }
}

/* A rank's share of a case: the decision for its tokens. devices: of the batch, a multiple of the
 * ranks; 0: the router's own divisor. */
static inline capacity_case capacity_case_make(uint64_t seed,
                                               int64_t tokens,
                                               int32_t devices,
                                               const moe_comm *comm) {
    capacity_case c = {.step = random_int(seed, 50, 0, 5)};
    int64_t bad;
    c.r = random_router_make(seed, tokens);
    if (devices) {
        c.r.devices = devices;
    }
    c.rule = random_rule(seed, &c.r);
    capacity_case_layout(&c, seed, tokens, comm);
    int32_t n = c.r.router.num_experts;
    c.placement = (moe_placement){
        .num_experts = n, .devices = c.r.devices, .device = moe_alloc(n, sizeof(int32_t), "test")};
    for (int32_t e = 0; e < n; e++) {
        c.placement.device[e] = (int32_t)((int64_t)e * c.r.devices / n); /* the devices need not
                                                                            divide the experts */
    }
    moe_stats_reserve(&c.stats, n, c.r.devices, c.batch.num_segments);
    moe_router_route(&c.r.router, &(moe_draw){0}, &c.batch, &c.placement,
                     (moe_logits){.f32 = c.r.z + c.batch.first_token * n}, NULL, &c.routing,
                     &c.stats, &bad);
    return c;
}

static inline void capacity_case_decide(capacity_case *c, const moe_comm *comm) {
    moe_logits logits = {.f32 = c->r.z + c->batch.first_token * c->r.router.num_experts};
    moe_drop_decide(&c->drop, &(moe_drop_job){.comm = comm,
                                              .capacity = &c->rule,
                                              .batch = &c->batch,
                                              .placement = &c->placement,
                                              .router = &c->r.router,
                                              .logits = logits,
                                              .routing = &c->routing,
                                              .step = c->step});
}

static inline void capacity_case_free(capacity_case *c) {
    random_router_free(&c->r);
    moe_batch_free(&c->batch);
    moe_free(c->boundary);
    moe_free(c->counted);
    moe_placement_free(&c->placement);
    moe_routing_free(&c->routing);
    moe_stats_free(&c->stats);
    moe_drop_free(&c->drop);
}

#endif
