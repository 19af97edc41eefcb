/* capacity.c: how large a budget is, who shares it, and in which order pairs take their places. */
#include "capacity/capacity.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "capacity/radix.h"

void moe_capacity_init(moe_capacity *c, const moe_config *config) {
    const moe_capacity_config *rules = &config->capacity;
    *c = (moe_capacity){.policy = rules->policy,
                        .scope = rules->capacity_scope,
                        .drop = rules->drop,
                        .overflow = rules->overflow,
                        .rounding = rules->rounding,
                        .factor = rules->capacity_factor,
                        .exempt_sequences = rules->exempt_sequences,
                        .expert_capacity = rules->expert_capacity,
                        .min_capacity = rules->min_capacity,
                        .first_choices = rules->first_choices,
                        .renormalize = rules->renormalize,
                        .pad = rules->pad_to_capacity,
                        .num_experts = config->model.num_experts,
                        .devices = config->cluster.devices,
                        .top_k = config->router.top_k,
                        .most_choices = moe_config_most_experts(config),
                        .seed = (uint64_t)config->run.seed};
}

int32_t moe_capacity_targets(const moe_capacity *c) {
    switch (c->policy) { /* without a default, so that the compiler asks for each */
    case MOE_CAPACITY_DEVICE:
        return c->devices;
    case MOE_CAPACITY_NONE:
    case MOE_CAPACITY_EXPERT:
    case MOE_CAPACITY_SEQUENCE:
        return c->num_experts;
    }
    MOE_ASSERT(false);
    return 0;
}

/* --- how large --- */

static double ceil_near(double x) {
    double whole = nearbyint(x);
    return fabs(x - whole) <= 1e-12 * fabs(x) ? whole : ceil(x);
}

static double pairs_ceil(const moe_capacity *c, double tokens, double selections, double n) {
    (void)tokens;
    return ceil_near(c->factor * selections / n);
}

static double pairs_megatron(const moe_capacity *c, double tokens, double selections, double n) {
    (void)tokens;
    return ceil(selections / n * c->factor);
}

static double pairs_deepspeed(const moe_capacity *c, double tokens, double selections, double n) {
    double k = c->top_k;
    (void)selections;
    return ceil(tokens / n * (c->factor * k));
}

static double pairs_fastmoe(const moe_capacity *c, double tokens, double selections, double n) {
    double k = c->top_k;
    (void)selections;
    return floor(ceil(c->factor * tokens) * k / n);
}

static double pairs_tutel(const moe_capacity *c, double tokens, double selections, double n) {
    double k = c->top_k;
    (void)selections;
    return k * floor(c->factor * ceil(tokens / n));
}

const moe_rounding_row moe_roundings[MOE_NUM_ROUNDINGS] = {
    [MOE_ROUNDING_CEIL] = {"ceil", pairs_ceil},
    [MOE_ROUNDING_MEGATRON] = {"megatron", pairs_megatron},
    [MOE_ROUNDING_DEEPSPEED] = {"deepspeed", pairs_deepspeed},
    [MOE_ROUNDING_FASTMOE] = {"fastmoe", pairs_fastmoe},
    [MOE_ROUNDING_TUTEL] = {"tutel", pairs_tutel},
};

int64_t moe_capacity_pairs(const moe_capacity *c, int64_t tokens, int64_t selections) {
    if (c->expert_capacity > 0) {
        return c->expert_capacity > c->min_capacity ? c->expert_capacity : c->min_capacity;
    }
    if (c->factor == 0) {
        return INT64_MAX;
    }
    MOE_ASSERT((unsigned)c->rounding < MOE_NUM_ROUNDINGS);
    double pairs = moe_roundings[c->rounding].pairs(c, (double)tokens, (double)selections,
                                                    moe_capacity_targets(c));
    if (pairs >= 0x1p62) {
        return INT64_MAX;
    }
    return pairs > c->min_capacity ? (int64_t)pairs : c->min_capacity;
}

int moe_capacity_check(const moe_config *c, int64_t tokens, int64_t sequence, moe_status *st) {
    moe_capacity k;
    int64_t pool = tokens;
    moe_capacity_init(&k, c);
    if (k.policy == MOE_CAPACITY_NONE) {
        return MOE_OK;
    }
    if (k.policy == MOE_CAPACITY_SEQUENCE && sequence < tokens) {
        pool = sequence;
    }
    if (k.policy != MOE_CAPACITY_SEQUENCE && k.scope == MOE_CAPACITY_PER_DEVICE) {
        pool = (tokens + k.devices - 1) / k.devices;
    }
    /* A factor of 1 or more asks for room for all: where a system rounds a small batch's share down
     * to nothing, it drops everything, and so does a run of its preset. */
    if (k.factor >= 1 || moe_capacity_pairs(&k, pool, pool * k.top_k) > 0) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "capacity.capacity_factor = %g: it does not go with capacity.rounding = %s: "
                    "%lld tokens leave room for 0 pairs in each of %d "
                    "%s, and everything would be dropped: a larger factor, capacity.min_capacity "
                    "of at least 1, or rounding = ceil",
                    k.factor, moe_roundings[k.rounding].name, (long long)pool,
                    moe_capacity_targets(&k),
                    k.policy == MOE_CAPACITY_DEVICE ? "devices" : "experts");
}

/* --- who is exempt --- */

int64_t moe_capacity_exempt(const moe_capacity *c,
                            const moe_batch *b,
                            int64_t step,
                            uint8_t *exempt) {
    int64_t sequences = 0, smaller;
    if (b->num_tokens > 0) {
        memset(exempt, 0, (size_t)b->num_tokens);
    }
    for (int64_t q = 0; q < b->num_sequences; q++) {
        sequences += moe_batch_sequence_routed(b, q) > 0;
    }
    int64_t wanted = (int64_t)floor(c->exempt_sequences * (double)sequences + 0.5);
    if (wanted == 0) {
        return 0;
    }
    uint64_t *hash = moe_scratch_take(b->scratch, sequences, sizeof *hash, "exempt sequences");
    for (int64_t q = 0, at = 0; q < b->num_sequences; q++) {
        if (moe_batch_sequence_routed(b, q) > 0) {
            hash[at++] =
                moe_rng_bits((moe_rng){c->seed, MOE_RNG_EXEMPT}, (uint64_t)step, (uint64_t)q, 0);
        }
    }
    uint64_t last = moe_radix_nth(hash, sequences, wanted, &smaller);
    int64_t equal = wanted - smaller;
    int64_t seen = 0, at = 0; /* at: index of the hash of the first sequence that has one, from q */
    int64_t q = 0;
    for (int64_t i = 0; i < b->num_segments; i++) {
        const moe_segment *s = &b->segment[i];
        for (; q < s->sequence; q++) {
            if (moe_batch_sequence_routed(b, q) > 0) {
                seen += hash[at++] == last;
            }
        }
        if (moe_batch_sequence_routed(b, s->sequence) == 0) {
            continue;
        }
        if (hash[at] < last || (hash[at] == last && seen < equal)) {
            memset(exempt + s->begin, 1, (size_t)(s->end - s->begin));
        }
    }
    moe_scratch_give(b->scratch, hash);
    return wanted;
}

/* --- who shares --- */

static int64_t sequence_pools(const moe_batch *b, moe_pool *pool) {
    int64_t count = 0;
    for (int64_t i = 0; i < b->num_segments; i++) {
        const moe_segment *s = &b->segment[i];
        if (count > 0 && pool[count - 1].id == s->sequence) {
            pool[count - 1].end = s->end;
        } else {
            pool[count++] = (moe_pool){s->begin, s->end, s->sequence,
                                       moe_batch_sequence_routed(b, s->sequence)};
        }
    }
    return count;
}

static int64_t device_pools(const moe_batch *b, moe_pool *pool) {
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        int64_t begin = b->device_offset[j], end = b->device_offset[j + 1];
        int64_t routed = end - begin;
        for (int64_t t = begin; t < end && b->drops_padding; t++) {
            routed -= !b->counted[t];
        }
        pool[j] = (moe_pool){begin, end, b->first_device + j, routed};
    }
    return b->num_local_devices;
}

int64_t moe_capacity_pools(const moe_capacity *c, const moe_batch *b, moe_pool **pools) {
    int64_t most = b->num_segments > b->num_local_devices ? b->num_segments : b->num_local_devices;
    *pools = moe_scratch_take(b->scratch, most + 1, sizeof **pools, "capacity");
    if (c->policy == MOE_CAPACITY_SEQUENCE) {
        return sequence_pools(b, *pools);
    }
    if (c->scope == MOE_CAPACITY_PER_DEVICE) {
        return device_pools(b, *pools);
    }
    (*pools)[0] = (moe_pool){0, b->num_tokens, 0, b->num_routed};
    return 1;
}

/* --- in which order --- */

/* DeepSeek-V2 drops by affinity, so for a device that is the score; else it is the combine weight.
 */
static double value_probs(const moe_capacity *c, const moe_routing *r, int64_t i, int64_t first) {
    (void)first;
    return c->policy == MOE_CAPACITY_DEVICE ? r->score[i] : (double)r->weight[i];
}

static double value_scores(const moe_capacity *c, const moe_routing *r, int64_t i, int64_t first) {
    (void)c;
    (void)first;
    return r->score[i];
}

/* Tutel's batch priority: the token's largest score. */
static double value_largest(const moe_capacity *c, const moe_routing *r, int64_t i, int64_t first) {
    (void)c;
    (void)i;
    return r->score[first];
}

const moe_drop_order_row moe_drop_orders[MOE_NUM_DROP_ORDERS] = {
    [MOE_DROP_PROBS] = {.name = "probs", .value = value_probs},
    [MOE_DROP_POSITION] = {.name = "position"},
    [MOE_DROP_SCORES] = {.name = "scores", .value = value_scores},
    [MOE_DROP_BATCH_PRIORITY] = {.name = "batch_priority",
                                 .value = value_largest,
                                 .fills_by_key = true},
};

void moe_capacity_order(const moe_capacity *c,
                        const moe_batch *b,
                        const moe_routing *r,
                        const moe_placement *p,
                        const uint8_t *exempt,
                        int32_t classes,
                        int32_t *group,
                        uint64_t *key) {
    bool by_device = c->policy == MOE_CAPACITY_DEVICE;
    const moe_drop_order_row *order = &moe_drop_orders[c->drop];
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < r->num_tokens; t++) {
        const int32_t home = by_device ? moe_batch_device_of(b, b->first_token + t) : 0;
        for (int64_t begin = r->row_offset[t], i = begin; i < r->row_offset[t + 1]; i++) {
            int32_t target = by_device
                                 ? moe_placement_device(p, r->expert[i], b->first_token + t, home)
                                 : r->expert[i];
            int32_t class = (exempt != NULL) + (c->first_choices ? (int32_t)(i - begin) : 0);
            if (exempt && exempt[t]) {
                class = 0;
            }
            group[i] = target * classes + class;
            if (key) {
                bool is_exempt = exempt && exempt[t];
                key[i] = is_exempt ? 0 : moe_radix_key(order->value(c, r, i, begin));
            }
        }
    }
}

/* --- what dropping does to the rows --- */

/* to[d] += by for the distinct devices of token t of device `home`. */
static void add_devices(const moe_placement *p,
                        const moe_batch *b,
                        const moe_routing *r,
                        int64_t t,
                        int32_t home,
                        int64_t by,
                        int64_t *stamp,
                        int64_t mark,
                        int64_t *to) {
    for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
        int32_t d = moe_placement_device(p, r->expert[i], b->first_token + t, home);
        if (stamp[d] != mark) {
            to[d] += by;
        }
        stamp[d] = mark;
    }
}

void moe_capacity_removed(const moe_batch *b,
                          const moe_placement *p,
                          const moe_routing *full,
                          const moe_routing *sent,
                          int32_t j,
                          int64_t *removed) {
    int64_t *stamp = moe_scratch_take_zero(b->scratch, b->devices, sizeof *stamp, "capacity"),
            mark = 0;
    const int32_t home = b->first_device + j;
    for (int64_t t = b->device_offset[j]; t < b->device_offset[j + 1]; t++) {
        add_devices(p, b, full, t, home, 1, stamp, ++mark, removed);
        add_devices(p, b, sent, t, home, -1, stamp, ++mark, removed);
    }
    moe_scratch_give(b->scratch, stamp);
}
