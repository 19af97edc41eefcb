/* capacity.c: the rules: how large a budget is, who shares it, and in which order pairs take their
 * places. */
#include "capacity/capacity.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"

void moe_capacity_init(moe_capacity *c, const moe_config *config) {
    *c = (moe_capacity){.policy = config->capacity.policy,
                        .scope = config->capacity.capacity_scope,
                        .drop = config->capacity.drop,
                        .overflow = config->capacity.overflow,
                        .rounding = config->capacity.rounding,
                        .factor = config->capacity.capacity_factor,
                        .exempt_sequences = config->capacity.exempt_sequences,
                        .expert_capacity = config->capacity.expert_capacity,
                        .min_capacity = config->capacity.min_capacity,
                        .first_choices = config->capacity.first_choices,
                        .renormalize = config->capacity.renormalize,
                        .pad = config->capacity.pad_to_capacity,
                        .num_experts = config->model.num_experts,
                        .devices = config->cluster.devices,
                        .top_k = config->router.top_k,
                        .seed = (uint64_t)config->run.seed};
}

int32_t moe_capacity_targets(const moe_capacity *c) {
    return c->policy == MOE_CAPACITY_DEVICE ? c->devices : c->num_experts;
}

/* --- how large --- */

static double ceil_near(double x) {
    double whole = nearbyint(x);
    return fabs(x - whole) <= 1e-12 * fabs(x) ? whole : ceil(x);
}

static double unlimited_pairs(const moe_capacity *c, double tokens, double selections) {
    double n = moe_capacity_targets(c), k = c->top_k;
    switch (c->rounding) {
    case MOE_ROUNDING_MEGATRON:
        return ceil(selections / n * c->factor);
    case MOE_ROUNDING_DEEPSPEED:
        return ceil(tokens / n * (c->factor * k));
    case MOE_ROUNDING_FASTMOE:
        return floor(ceil(c->factor * tokens) * k / n);
    case MOE_ROUNDING_TUTEL:
        return k * floor(c->factor * ceil(tokens / n));
    default:
        return ceil_near(c->factor * selections / n);
    }
}

int64_t moe_capacity_pairs(const moe_capacity *c, int64_t tokens, int64_t selections) {
    if (c->expert_capacity > 0) {
        return c->expert_capacity > c->min_capacity ? c->expert_capacity : c->min_capacity;
    }
    if (c->factor == 0) {
        return INT64_MAX;
    }
    double pairs = unlimited_pairs(c, (double)tokens, (double)selections);
    if (pairs >= 0x1p62) {
        return INT64_MAX;
    }
    return pairs > c->min_capacity ? (int64_t)pairs : c->min_capacity;
}

int moe_capacity_check(const moe_config *c, int64_t tokens, moe_status *st) {
    moe_capacity k;
    int64_t pool = tokens, length = c->data.sequence_length;
    moe_capacity_init(&k, c);
    if (k.policy == MOE_CAPACITY_NONE) {
        return MOE_OK;
    }
    if (k.policy == MOE_CAPACITY_SEQUENCE && length > 0 && length < tokens) {
        pool = length;
    }
    if (k.policy != MOE_CAPACITY_SEQUENCE && k.scope == MOE_CAPACITY_PER_DEVICE) {
        pool = (tokens + k.devices - 1) / k.devices;
    }
    if (moe_capacity_pairs(&k, pool, pool * k.top_k) > 0) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "capacity.capacity_factor = %g: it does not go with capacity.rounding = %s: "
                    "%lld tokens leave room for 0 pairs in each of %d "
                    "%s, and everything would be dropped: a larger factor, capacity.min_capacity "
                    "of at least 1, or rounding = ceil",
                    k.factor,
                    moe_config_enum_name(MOE_KEY(capacity, rounding), c->capacity.rounding),
                    (long long)pool, moe_capacity_targets(&k),
                    k.policy == MOE_CAPACITY_DEVICE ? "devices" : "experts");
}

/* --- who is exempt --- */

int64_t moe_capacity_exempt(const moe_capacity *c,
                            const moe_batch *b,
                            int64_t step,
                            uint8_t *exempt) {
    int64_t sequences = b->num_sequences,
            wanted = (int64_t)floor(c->exempt_sequences * (double)sequences + 0.5), smaller;
    memset(exempt, 0, (size_t)b->num_tokens);
    if (wanted == 0) {
        return 0;
    }
    uint64_t *hash = moe_scratch_take(b->scratch, sequences, sizeof *hash, "exempt sequences");
    for (int64_t q = 0; q < sequences; q++) {
        hash[q] = moe_rng_bits((moe_rng){c->seed, MOE_RNG_EXEMPT}, (uint64_t)step, (uint64_t)q, 0);
    }
    uint64_t last = moe_capacity_nth(hash, sequences, wanted, &smaller);
    int64_t equal = wanted - smaller;
    int64_t seen = 0;
    int64_t q = 0;
    for (int64_t i = 0; i < b->num_segments; i++) {
        const moe_segment *s = &b->segment[i];
        for (; q < s->sequence; q++) {
            seen += hash[q] == last;
        }
        if (hash[s->sequence] < last || (hash[s->sequence] == last && seen < equal)) {
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
        int64_t begin = s->sequence * b->sequence_length, left = b->num_tokens_global - begin;
        if (count > 0 && pool[count - 1].id == s->sequence) {
            pool[count - 1].end = s->end;
        } else {
            pool[count++] = (moe_pool){s->begin, s->end, s->sequence,
                                       left < b->sequence_length ? left : b->sequence_length};
        }
    }
    return count;
}

static int64_t device_pools(const moe_batch *b, moe_pool *pool) {
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        int64_t begin = b->device_offset[j], end = b->device_offset[j + 1];
        pool[j] = (moe_pool){begin, end, b->first_device + j, end - begin};
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
    (*pools)[0] = (moe_pool){0, b->num_tokens, 0, b->num_tokens_global};
    return 1;
}

/* --- in which order --- */

/* Orderable bits: of a negative number all are turned, of another the sign alone. */
uint64_t moe_capacity_key(double v) {
    uint64_t bits;
    if (isnan(v)) {
        return UINT64_MAX;
    }
    v += 0.0; /* -0 becomes 0 */
    memcpy(&bits, &v, sizeof bits);
    return bits >> 63 ? bits : ~(bits | (uint64_t)1 << 63);
}

/* What a pair is kept for: the larger, the sooner. For a device that is the affinity s, for an
 * expert the weight g (probs) or s (scores); Tutel's batch priority is the token's largest s. */
static double value_of(const moe_capacity *c, const moe_routing *r, int64_t i, int64_t first) {
    if (c->drop == MOE_DROP_BATCH_PRIORITY) {
        return r->score[first];
    }
    if (c->drop == MOE_DROP_SCORES || c->policy == MOE_CAPACITY_DEVICE) {
        return r->score[i];
    }
    return (double)r->weight[i];
}

/* Choices beyond top_k (where tokens choose different numbers) are one class with the last. */
static int32_t last_class(const moe_capacity *c, int64_t choice) {
    return choice < c->top_k ? (int32_t)choice : c->top_k - 1;
}

void moe_capacity_order(const moe_capacity *c,
                        const moe_routing *r,
                        const moe_placement *p,
                        const uint8_t *exempt,
                        int32_t classes,
                        int32_t *group,
                        uint64_t *key) {
    bool by_device = c->policy == MOE_CAPACITY_DEVICE;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t begin = r->row_offset[t], i = begin; i < r->row_offset[t + 1]; i++) {
            int32_t target = by_device ? p->device[r->expert[i]] : r->expert[i];
            int32_t class = (exempt != NULL) + (c->first_choices ? last_class(c, i - begin) : 0);
            if (exempt && exempt[t]) {
                class = 0;
            }
            group[i] = target * classes + class;
            if (key) {
                key[i] = exempt && exempt[t] ? 0 : moe_capacity_key(value_of(c, r, i, begin));
            }
        }
    }
}

/* --- what dropping does to the rows --- */

/* to[d] += by for the distinct devices of token t. */
static void add_devices(const moe_placement *p,
                        const moe_routing *r,
                        int64_t t,
                        int64_t by,
                        int64_t *stamp,
                        int64_t mark,
                        int64_t *to) {
    for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
        int32_t d = p->device[r->expert[i]];
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
                          int64_t *removed) {
    int64_t *stamp = moe_scratch_take_zero(b->scratch, b->devices, sizeof *stamp, "capacity"),
            mark = 0;
    memset(removed, 0, (size_t)b->num_local_devices * (size_t)b->devices * sizeof *removed);
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        for (int64_t t = b->device_offset[j]; t < b->device_offset[j + 1]; t++) {
            add_devices(p, full, t, 1, stamp, ++mark, removed + (int64_t)j * b->devices);
            add_devices(p, sent, t, -1, stamp, ++mark, removed + (int64_t)j * b->devices);
        }
    }
    moe_scratch_give(b->scratch, stamp);
}
