/* unit_capacity.c: who is dropped, against sorting and cutting; and what must hold for every rule:
 * budgets and order are respected, exempt pairs stay, next_choice is never worse than drop,
 * deciding twice changes nothing.
 *
 * ctest: f64 timeout=120 */
#include "base/status.h"
#include "capacity/radix.h"
#include "capacity_cases.h"
#include "check.h"
#include "router/groups.h"
#include "router/scores.h"

static const moe_comm alone = {.size = 1};
static int64_t next_choices; /* cases in which they were compared */

/* --- sort and cut, written from docs/method.md alone --- */

typedef struct candidate {
    int64_t pool, target, class, token, choice, pair;
    double value;
    bool exempt;
} candidate;

static int compare(const void *x, const void *y) {
    const candidate *a = x, *b = y;
    if (a->pool != b->pool) {
        return a->pool < b->pool ? -1 : 1;
    }
    if (a->target != b->target) {
        return a->target < b->target ? -1 : 1;
    }
    if (a->exempt != b->exempt) {
        return a->exempt ? -1 : 1;
    }
    if (!a->exempt && a->class != b->class) {
        return a->class < b->class ? -1 : 1;
    }
    if (!a->exempt && a->value != b->value) {
        return a->value > b->value ? -1 : 1;
    }
    if (a->token != b->token) {
        return a->token < b->token ? -1 : 1;
    }
    return a->choice < b->choice ? -1 : 1;
}

static int64_t device_of(const capacity_case *c, int64_t t) {
    int32_t d = 0;
    while (c->batch.device_offset[d + 1] <= t) {
        d++;
    }
    return d;
}

static int64_t sequence_of(const capacity_case *c, int64_t t) {
    int64_t q = 0;
    if (!c->boundary) {
        return t / c->batch.sequence_length;
    }
    while (c->boundary[q + 1] <= t) {
        q++;
    }
    return q;
}

static int64_t pool_of(const capacity_case *c, int64_t t) {
    if (c->rule.policy == MOE_CAPACITY_SEQUENCE) {
        return sequence_of(c, t);
    }
    return c->rule.scope == MOE_CAPACITY_PER_DEVICE ? device_of(c, t) : 0;
}

static bool has_routed(const capacity_case *c, int64_t q) {
    for (int64_t t = 0; t < c->batch.num_tokens_global; t++) {
        if (sequence_of(c, t) == q && (!c->counted || c->counted[t])) {
            return true;
        }
    }
    return false;
}

/* The floor(share B + 0.5) sequences with the smallest hash, of those with a routed token: q is one
 * when fewer than that many come before it. */
static bool is_exempt(const capacity_case *c, int64_t q) {
    moe_rng key = {c->rule.seed, MOE_RNG_EXEMPT};
    int64_t before = 0, some = 0;
    int64_t sequences = c->batch.num_sequences;
    uint64_t own = moe_rng_bits(key, (uint64_t)c->step, (uint64_t)q, 0);
    for (int64_t i = 0; i < sequences; i++) {
        if (!has_routed(c, i)) {
            continue;
        }
        uint64_t other = moe_rng_bits(key, (uint64_t)c->step, (uint64_t)i, 0);
        some++;
        before += other < own || (other == own && i < q);
    }
    return before < (int64_t)(c->rule.exempt_sequences * (double)some + 0.5);
}

static double value_of(const capacity_case *c, int64_t i, int64_t first) {
    if (c->rule.policy == MOE_CAPACITY_SEQUENCE || c->rule.drop == MOE_DROP_POSITION) {
        return 0;
    }
    if (c->rule.drop == MOE_DROP_BATCH_PRIORITY) {
        return c->routing.score[first];
    }
    return c->rule.policy == MOE_CAPACITY_DEVICE || c->rule.drop == MOE_DROP_SCORES
               ? c->routing.score[i]
               : (double)c->routing.weight[i];
}

static candidate *list_candidates(const capacity_case *c) {
    const moe_routing *r = &c->routing;
    candidate *list = calloc((size_t)r->num_selections + 1, sizeof *list);
    for (int64_t t = 0; t < r->num_tokens; t++) {
        for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
            candidate *a = &list[i];
            *a = (candidate){.token = t,
                             .choice = i - r->row_offset[t],
                             .pair = i,
                             .value = value_of(c, i, r->row_offset[t])};
            a->pool = pool_of(c, t);
            a->target = c->rule.policy == MOE_CAPACITY_DEVICE ? c->placement.device[r->expert[i]]
                                                              : r->expert[i];
            a->class = c->rule.first_choices ? a->choice : 0;
            a->exempt = is_exempt(c, sequence_of(c, t));
        }
    }
    qsort(list, (size_t)r->num_selections, sizeof *list, compare);
    return list;
}

static int64_t pool_tokens(const capacity_case *c, int64_t pool) {
    int64_t count = 0;
    for (int64_t t = 0; t < c->batch.num_tokens_global; t++) {
        count += pool_of(c, t) == pool && (!c->counted || c->counted[t]);
    }
    return count;
}

/* kept [num_selections] by sorting; returns how many stay. */
static int64_t naive_kept(const capacity_case *c, uint8_t *kept) {
    int64_t n = c->routing.num_selections, sum = 0;
    candidate *list = list_candidates(c);
    for (int64_t i = 0, place = 0; i < n; i++) {
        int64_t selections = 0;
        for (int64_t j = 0; j < n; j++) {
            selections += list[j].pool == list[i].pool;
        }
        place = i > 0 && list[i].pool == list[i - 1].pool && list[i].target == list[i - 1].target
                    ? place + 1
                    : 0;
        kept[list[i].pair] =
            list[i].exempt ||
            place < moe_capacity_pairs(&c->rule, pool_tokens(c, list[i].pool), selections);
        sum += kept[list[i].pair];
    }
    free(list);
    return sum;
}

/* --- what must hold --- */

static void check_sent(const capacity_case *c, uint64_t seed) {
    const moe_drop *d = &c->drop;
    int64_t served = 0;
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        for (int64_t i = d->sent.row_offset[t]; i < d->sent.row_offset[t + 1]; i++) {
            int64_t own = d->selection[i];
            CHECK_MSG(own >= c->routing.row_offset[t] && own < c->routing.row_offset[t + 1],
                      "seed %llu", (unsigned long long)seed);
            CHECK_MSG(d->kept[own] && d->server[own] == d->sent.expert[i], "seed %llu",
                      (unsigned long long)seed);
            for (int64_t j = d->sent.row_offset[t]; j < i; j++) {
                CHECK_MSG(d->sent.expert[j] != d->sent.expert[i],
                          "seed %llu: a token has an expert twice", (unsigned long long)seed);
            }
        }
    }
    for (int64_t i = 0; i < c->routing.num_selections; i++) {
        served += d->kept[i];
        CHECK_MSG((d->server[i] >= 0) == (d->kept[i] == 1) &&
                      (d->slot[i] >= 0) == (d->kept[i] == 1),
                  "seed %llu", (unsigned long long)seed);
    }
    CHECK_MSG(served == d->sent.num_selections, "seed %llu", (unsigned long long)seed);
}

/* Every place of a buffer is taken once, from 0 on. */
static void check_slots(const capacity_case *c, uint64_t seed) {
    int64_t n = c->routing.num_selections;
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        for (int64_t i = c->routing.row_offset[t]; i < c->routing.row_offset[t + 1]; i++) {
            int64_t buffer = 0;
            int64_t same = 0;
            int64_t below = 0;
            if (!c->drop.kept[i]) {
                continue;
            }
            for (int64_t u = 0, j = 0; j < n; j++) {
                while (j >= c->routing.row_offset[u + 1]) {
                    u++;
                }
                if (!c->drop.kept[j]) {
                    continue;
                }
                bool pool =
                    c->rule.policy == MOE_CAPACITY_SEQUENCE ? sequence_of(c, u) == sequence_of(c, t)
                    : c->rule.scope == MOE_CAPACITY_PER_DEVICE ? device_of(c, u) == device_of(c, t)
                                                               : true;
                int32_t a = c->drop.server[i], b = c->drop.server[j];
                bool target = c->rule.policy == MOE_CAPACITY_DEVICE
                                  ? c->placement.device[a] == c->placement.device[b]
                                  : a == b;
                buffer += pool && target;
                same += pool && target && c->drop.slot[i] == c->drop.slot[j];
                below += pool && target && c->drop.slot[j] < c->drop.slot[i];
            }
            CHECK_MSG(same == 1 && below == c->drop.slot[i] && c->drop.slot[i] < buffer,
                      "seed %llu: slot %d", (unsigned long long)seed, c->drop.slot[i]);
        }
    }
}

/* Those that next_choice placed are in their token's groups. */
static void check_groups(const capacity_case *c, uint64_t seed) {
    const moe_router *r = &c->r.router;
    if (r->group_limit == MOE_GROUP_NONE) {
        return;
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        int64_t begin = c->drop.sent.row_offset[t];
        int32_t groups = moe_groups_distinct(r, c->drop.sent.expert + begin,
                                             (int32_t)(c->drop.sent.row_offset[t + 1] - begin));
        CHECK_MSG(groups <= r->topk_group, "seed %llu: token %lld in %d groups",
                  (unsigned long long)seed, (long long)t, groups);
    }
}

/* --- next_choice, by its definition in drop.h, for routers without groups --- */

static int32_t target_of(const capacity_case *c, int32_t e) {
    return c->rule.policy == MOE_CAPACITY_DEVICE ? c->placement.device[e] : e;
}

/* room [pools][N]: places that are free. */
static int64_t *free_places(const capacity_case *c, const uint8_t *kept) {
    int64_t n = c->r.router.num_experts, pools = c->batch.num_tokens_global + c->batch.devices;
    int64_t *room = calloc((size_t)(pools * n), sizeof *room),
            *selections = calloc((size_t)pools, sizeof *selections);
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        selections[pool_of(c, t)] += c->routing.row_offset[t + 1] - c->routing.row_offset[t];
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) { /* every pool has a token */
        for (int32_t e = 0; e < n; e++) {
            room[pool_of(c, t) * n + e] = moe_capacity_pairs(
                &c->rule, pool_tokens(c, pool_of(c, t)), selections[pool_of(c, t)]);
        }
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        for (int64_t i = c->routing.row_offset[t]; i < c->routing.row_offset[t + 1]; i++) {
            room[pool_of(c, t) * n + target_of(c, c->routing.expert[i])] -= kept[i];
        }
    }
    free(selections);
    return room;
}

static int32_t favourite(const capacity_case *c,
                         int64_t t,
                         const int32_t *server,
                         const int32_t *asked,
                         const int64_t *room) {
    const moe_router *r = &c->r.router;
    int64_t n = r->num_experts;
    int64_t begin = c->routing.row_offset[t];
    int64_t end = c->routing.row_offset[t + 1];
    double *z = calloc((size_t)n * 2, sizeof *z);
    double *s = z + n;
    double highest = -INFINITY;
    int32_t best = -1;
    for (int64_t e = 0; e < n; e++) {
        z[e] = c->r.z[t * n + e];
    }
    moe_scores_fill(r, z, s, NULL);
    for (int32_t e = 0; e < n; e++) {
        bool taken = z[e] == -INFINITY || room[pool_of(c, t) * n + target_of(c, e)] <= 0;
        for (int64_t i = begin; i < end; i++) {
            taken |= c->routing.expert[i] == e || server[i] == e || asked[i] == e;
        }
        double score = s[e] + (r->bias ? r->bias[e] : 0);
        if (taken || (best >= 0 && score <= highest)) {
            continue;
        }
        best = e;
        highest = score;
    }
    free(z);
    return best;
}

/* One round; returns how many found a place. */
static int64_t naive_round(const capacity_case *c, int32_t *server, int64_t *room) {
    int64_t n = c->routing.num_selections, found = 0;
    int32_t *asked = malloc(((size_t)n + 1) * sizeof *asked);
    for (int64_t i = 0; i < n; i++) {
        asked[i] = -1;
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        for (int64_t i = c->routing.row_offset[t]; i < c->routing.row_offset[t + 1]; i++) {
            if (server[i] < 0) {
                asked[i] = favourite(c, t, server, asked, room);
            }
        }
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        for (int64_t i = c->routing.row_offset[t]; i < c->routing.row_offset[t + 1]; i++) {
            if (asked[i] < 0 ||
                room[pool_of(c, t) * c->r.router.num_experts + target_of(c, asked[i])]-- <= 0) {
                continue;
            }
            server[i] = asked[i];
            found++;
        }
    }
    free(asked);
    return found;
}

static void check_next_choice(const capacity_case *c, const uint8_t *kept, uint64_t seed) {
    int64_t n = c->routing.num_selections, wrong = 0, *room;
    if (c->r.router.group_limit != MOE_GROUP_NONE) {
        return;
    }
    int32_t *server = malloc(((size_t)n + 1) * sizeof *server);
    for (int64_t i = 0; i < n; i++) {
        server[i] = kept[i] ? c->routing.expert[i] : -1;
    }
    room = free_places(c, kept);
    while (naive_round(c, server, room) > 0)
        ;
    for (int64_t i = 0; i < n; i++) {
        wrong += server[i] != c->drop.server[i];
    }
    CHECK_MSG(wrong == 0, "seed %llu: %lld pairs have another next choice",
              (unsigned long long)seed, (long long)wrong);
    next_choices += n > 0;
    free(server);
    free(room);
}

/* Without `renormalize` nothing changes the weights of pairs that stay, and a pair that another
 * expert serves has that expert's score in its token's old normalisation. */
static void check_weights_stay(const capacity_case *c, uint64_t seed) {
    const moe_router *r = &c->r.router;
    const bool topk = r->score_func == MOE_SCORE_SOFTMAX_TOPK;
    const bool norm = topk || (r->norm_topk_prob && (r->top_k > 1 || r->norm_single));
    const double factor = norm && !r->scale_normalized ? 1 : r->routed_scaling_factor;
    if (c->rule.renormalize || r->method != MOE_METHOD_TOPK) {
        return;
    }
    for (int64_t t = 0; t < c->routing.num_tokens; t++) {
        double sum = topk ? 0 : 1e-20;
        for (int64_t i = c->routing.row_offset[t]; i < c->routing.row_offset[t + 1]; i++) {
            sum += c->routing.score[i];
        }
        for (int64_t i = c->drop.sent.row_offset[t]; i < c->drop.sent.row_offset[t + 1]; i++) {
            const int64_t pair = c->drop.selection[i];
            const bool own = c->drop.sent.expert[i] == c->routing.expert[pair];
            const double wanted = own ? (double)c->routing.weight[pair]
                                      : factor * c->drop.sent.score[i] / (norm ? sum : 1);
            const double found = (double)c->drop.sent.weight[i];
            CHECK_MSG(own ? found == wanted : fabs(found - wanted) <= 1e-6 * fabs(wanted) + 1e-37,
                      "seed %llu: weight %.9g, not %.9g", (unsigned long long)seed, found, wanted);
        }
    }
}

static void check_against_naive(capacity_case *c, uint64_t seed) {
    int64_t n = c->routing.num_selections, wrong = 0;
    uint8_t *kept = calloc((size_t)n + 1, 1);
    int64_t stay = naive_kept(c, kept);
    c->rule.overflow = MOE_OVERFLOW_DROP;
    capacity_case_decide(c, &alone);
    for (int64_t i = 0; i < n; i++) {
        wrong += kept[i] != c->drop.kept[i];
    }
    CHECK_MSG(wrong == 0, "seed %llu: policy %d, drop %d: %lld of %lld pairs differ from sorting",
              (unsigned long long)seed, c->rule.policy, c->rule.drop, (long long)wrong,
              (long long)n);
    check_sent(c, seed);
    check_slots(c, seed);
    c->rule.overflow = MOE_OVERFLOW_NEXT_CHOICE;
    capacity_case_decide(c, &alone);
    for (int64_t i = 0; i < n; i++) {
        CHECK_MSG(!kept[i] || c->drop.server[i] == c->routing.expert[i],
                  "seed %llu: next_choice takes a place away", (unsigned long long)seed);
    }
    CHECK_MSG(c->drop.sent.num_selections >= stay, "seed %llu: next_choice is worse than drop",
              (unsigned long long)seed);
    check_sent(c, seed);
    check_slots(c, seed);
    check_groups(c, seed);
    check_next_choice(c, kept, seed);
    check_weights_stay(c, seed);
    free(kept);
}

/* What stays, stays when asked again, with the same number of places. */
static void check_idempotent(capacity_case *c, uint64_t seed) {
    moe_drop again = {0};
    moe_capacity rule = c->rule;
    if (rule.policy == MOE_CAPACITY_DEVICE || rule.scope == MOE_CAPACITY_PER_DEVICE) {
        return; /* no number of places can be given */
    }
    rule.overflow = MOE_OVERFLOW_DROP;
    rule.expert_capacity = 2;
    c->rule = rule;
    capacity_case_decide(c, &alone);
    moe_drop_decide(&again, &(moe_drop_job){.comm = &alone,
                                            .capacity = &rule,
                                            .batch = &c->batch,
                                            .placement = &c->placement,
                                            .router = &c->r.router,
                                            .routing = &c->drop.sent,
                                            .step = c->step});
    CHECK_MSG(again.sent.num_selections == c->drop.sent.num_selections,
              "seed %llu: deciding again drops more", (unsigned long long)seed);
    moe_drop_free(&again);
}

/* --- small cases by hand --- */

static void check_nth(void) {
    for (uint64_t seed = 0; seed < 50; seed++) {
        uint64_t key[40];
        int64_t n = random_int(seed, 0, 1, 40);
        int64_t nth = random_int(seed, 1, 1, (int32_t)n);
        int64_t smaller;
        int64_t below = 0;
        int64_t equal = 0;
        for (int64_t i = 0; i < n; i++) {
            key[i] = moe_rng_bits((moe_rng){seed, MOE_RNG_TEST}, (uint64_t)i, 0, 0) >>
                     (seed % 2 ? 0 : 61);
        }
        uint64_t v = moe_radix_nth(key, n, nth, &smaller);
        for (int64_t i = 0; i < n; i++) {
            below += key[i] < v;
            equal += key[i] == v;
        }
        CHECK_MSG(below == smaller && below < nth && nth <= below + equal, "seed %llu",
                  (unsigned long long)seed);
    }
}

static void check_keys(void) {
    const double falling[] = {INFINITY, 1e300,   2,  1,         1 - 1e-16, 1e-300,
                              0,        -1e-300, -1, -INFINITY, NAN};
    for (int i = 0; i + 1 < 11; i++) {
        CHECK_MSG(moe_radix_key(falling[i]) < moe_radix_key(falling[i + 1]), "%g before %g",
                  falling[i], falling[i + 1]);
    }
    CHECK_EQ(moe_radix_key(0.0), moe_radix_key(-0.0));
}

static void check_capacities(void) {
    moe_capacity c = {
        .policy = MOE_CAPACITY_DEVICE, .factor = 1, .devices = 8, .num_experts = 160, .top_k = 6};
    CHECK_EQ(moe_capacity_pairs(&c, 100, 600), 75);
    CHECK_EQ(moe_capacity_pairs(&c, 101, 606), 76); /* 75.75 */
    c.factor = 0.07; /* 0.07 x 800 / 8 is 7.000000000000001 in double */
    CHECK_EQ(moe_capacity_pairs(&c, 800, 800), 7);
    c.min_capacity = 9;
    CHECK_EQ(moe_capacity_pairs(&c, 800, 800), 9);
    c.factor = 0;
    CHECK(moe_capacity_pairs(&c, 800, 800) == INT64_MAX);
}

/* Two devices, everyone wants device 0; all of three exempt sequences of four stay, beyond the
 * budget. */
static void check_exempt_overflow(void) {
    float z[8][2];
    moe_router r = {
        .num_experts = 2, .top_k = 1, .num_groups = 1, .topk_group = 1, .routed_scaling_factor = 1};
    capacity_case c = {
        .r = {.router = r, .devices = 2},
        .rule = {.policy = MOE_CAPACITY_DEVICE, .factor = 0.5, .exempt_sequences = 0.75}};
    int64_t bad, kept[4] = {0}, whole = 0;
    for (int t = 0; t < 8; t++) {
        z[t][0] = (float)t;
        z[t][1] = -1;
    }
    c.rule.num_experts = c.rule.devices = 2;
    c.rule.top_k = 1;
    moe_batch_layout(&c.batch, 8, 2, 2, 0, 1);
    moe_placement_block(&c.placement, 2, 2);
    moe_stats_reserve(&c.stats, 2, 2, c.batch.num_segments);
    moe_router_route(&r, &(moe_draw){0}, &c.batch, &c.placement, (moe_logits){.f32 = z[0]}, NULL,
                     &c.routing, &c.stats, &bad);
    capacity_case_decide(&c, &alone);
    CHECK_EQ(c.drop.capacity, 2);
    CHECK_EQ(c.drop.exempt_overflow, 4);
    CHECK_EQ(c.drop.sent.num_selections, 6);
    for (int t = 0; t < 8; t++) {
        kept[t / 2] += c.drop.kept[t];
    }
    for (int q = 0; q < 4; q++) {
        whole += kept[q] == 2;
    }
    CHECK_EQ(whole, 3);
    capacity_case_free(&c);
}

int main(void) {
    RUN(check_nth);
    RUN(check_keys);
    RUN(check_capacities);
    RUN(check_exempt_overflow);
    for (uint64_t seed = 1; seed <= 400; seed++) {
        capacity_case c = capacity_case_make(seed, random_int(seed, 60, 1, 40), 0, &alone);
        RUN(check_against_naive, &c, seed);
        RUN(check_idempotent, &c, seed);
        capacity_case_free(&c);
    }
    CHECK_MSG(next_choices > 40, "%lld cases of next_choice", (long long)next_choices);
    return check_verdict();
}
