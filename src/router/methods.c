/* methods.c: the table of methods. To add one: an enumerator in config/enums.h, its name in
 * config/keys.def, a row here, and its twin in tests/support/reference.c (docs/extending.md). */
#include "router/methods.h"

#include "router/groups.h"
#include "router/keyed.h"

/* --- by score --- */

void moe_method_rank(moe_chooser *w,
                     const moe_router *r,
                     const double *z,
                     const double *s,
                     int may_be_disabled) {
    /* z + log of the expert's factor orders experts like exp(z) times the factor does */
    moe_tournament_fill(&w->tournament, w->factor ? z : s, w->factor ? w->factor : r->bias,
                        may_be_disabled ? z : NULL);
    moe_groups_admit(&w->tournament, r);
}

/* The K best of the admitted groups; with a quota K / M of each. */
static int32_t choose_best(moe_chooser *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert) {
    moe_tournament *b = &w->tournament;
    moe_method_rank(w, r, z, s, may_be_disabled);
    int32_t blocks = moe_tournament_gather(b), count = 0;
    if (!moe_groups_limit(r)->quota) {
        return blocks == 0 ? 0 : moe_tournament_best(b, 0, blocks, r->top_k, expert);
    }
    for (int32_t k = 0; k < b->num_kept; k++) {
        count += moe_tournament_best(b, k * b->group_blocks, (k + 1) * b->group_blocks,
                                     r->top_k / r->topk_group, expert + count);
    }
    return count;
}

/* MixLoRA's dynamic router: falling scores, up to and including the first at which their sum
 * exceeds top_p; at most top_k. */
static int32_t choose_top_p(moe_chooser *w,
                            const moe_router *r,
                            const double *z,
                            const double *s,
                            int may_be_disabled,
                            int32_t *expert) {
    double sum = 0, divisor = moe_router_probability_divisor(r);
    int32_t count = 0;
    if (moe_groups_limit(r)->quota) {
        return choose_best(w, r, z, s, may_be_disabled, expert);
    }
    moe_method_rank(w, r, z, s, may_be_disabled);
    int32_t blocks = moe_tournament_gather(&w->tournament);
    while (blocks > 0 && count < r->top_k && sum <= r->top_p) {
        if (moe_tournament_take(&w->tournament, 0, blocks, 1, expert + count) == 0) {
            break;
        }
        sum += s[expert[count++]] / divisor;
    }
    return count;
}

/* An expert drawn among those other than `first` with probability s_i / sum of their s, which is
 * what DeepSpeed's Gumbel noise on the logits amounts to; -1 = there is no other. */
static int32_t draw_second(const moe_chooser *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int32_t first) {
    int32_t last = -1;
    double total = 0, sum = 0;
    for (int32_t i = 0; i < r->num_experts; i++) {
        total += i == first ? 0 : s[i];
    }
    double until = moe_keyed_second(w->draw, w->token) * total;
    for (int32_t i = 0; i < r->num_experts && sum <= until; i++) {
        if (i == first || z[i] == -INFINITY) {
            continue;
        }
        sum += s[i];
        last = i;
    }
    return last;
}

/* The best, and a second one: the next best, or drawn. Whether a random second stays is decided
 * after the weights are made (select.c). */
static int32_t choose_two(moe_chooser *w,
                          const moe_router *r,
                          const double *z,
                          const double *s,
                          int may_be_disabled,
                          int32_t *expert) {
    if (r->second_choice != MOE_SECOND_SAMPLED || r->top_k < 2 || moe_groups_limit(r)->quota) {
        return choose_best(w, r, z, s, may_be_disabled, expert);
    }
    moe_method_rank(w, r, z, s, may_be_disabled);
    int32_t blocks = moe_tournament_gather(&w->tournament);
    if (blocks == 0 || moe_tournament_take(&w->tournament, 0, blocks, 1, expert) == 0) {
        return 0;
    }
    expert[1] = draw_second(w, r, z, s, expert[0]);
    return expert[1] < 0 ? 1 : 2;
}

/* --- by key --- */

/* The j-th expert in an order. */
typedef int32_t order_of_experts(const moe_router *r, int32_t j);

static int32_t ascending(const moe_router *r, int32_t j) {
    (void)r;
    return j;
}

/* One expert of each device in turn, so that over any run of tokens the counts of any two devices
 * differ by at most 1, and so do those of any two experts; these in any case, where the devices do
 * not have as many experts each. */
static int32_t device_by_device(const moe_router *r, int32_t j) {
    int32_t devices = r->devices > 0 && r->num_experts % r->devices == 0 ? r->devices : 1;
    return j % devices * (r->num_experts / devices) + j / devices;
}

static int32_t list_enabled(const moe_router *r,
                            const double *z,
                            order_of_experts *order,
                            int32_t *enabled) {
    int32_t count = 0;
    for (int32_t j = 0; j < r->num_experts; j++) {
        enabled[count] = order(r, j);
        count += z[enabled[count]] != -INFINITY;
    }
    return count;
}

static int32_t choose_places(moe_chooser *w,
                             const moe_router *r,
                             const double *z,
                             int may_be_disabled,
                             moe_keyed_places *places,
                             order_of_experts *order,
                             int32_t *expert) {
    int32_t n = may_be_disabled ? list_enabled(r, z, order, w->enabled) : r->num_experts;
    int32_t k = r->top_k < n ? r->top_k : n;
    if (n == 0) {
        return 0;
    }
    places(r, w->draw, w->token, n, k, expert);
    for (int32_t i = 0; i < k; i++) {
        expert[i] = may_be_disabled ? w->enabled[expert[i]] : order(r, expert[i]);
    }
    return k;
}

static int32_t choose_hash(moe_chooser *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert) {
    (void)s;
    return choose_places(w, r, z, may_be_disabled, moe_keyed_hash, ascending, expert);
}

static int32_t choose_random(moe_chooser *w,
                             const moe_router *r,
                             const double *z,
                             const double *s,
                             int may_be_disabled,
                             int32_t *expert) {
    (void)s;
    return choose_places(w, r, z, may_be_disabled, moe_keyed_random, ascending, expert);
}

static int32_t choose_in_turn(moe_chooser *w,
                              const moe_router *r,
                              const double *z,
                              const double *s,
                              int may_be_disabled,
                              int32_t *expert) {
    (void)s;
    return choose_places(w, r, z, may_be_disabled, moe_keyed_round_robin, device_by_device, expert);
}

/* --- the table --- */

const moe_method moe_methods[MOE_NUM_METHODS] = {
    [MOE_METHOD_TOPK] = {.name = "topk",
                         .rule = "the top_k best",
                         .choose = choose_best,
                         .needs = MOE_NEEDS_SCORES,
                         .chooses_best = true},
    [MOE_METHOD_TOP_P] = {.name = "top_p",
                          .rule = "the best, until their scores add up to more than router.top_p",
                          .choose = choose_top_p,
                          .needs = MOE_NEEDS_SCORES,
                          .fewer = true},
    [MOE_METHOD_SWITCH] = {.name = "switch",
                           .rule = "the best",
                           .choose = choose_best,
                           .needs = MOE_NEEDS_SCORES,
                           .chooses_best = true},
    [MOE_METHOD_GSHARD] = {.name = "gshard",
                           .rule = "the best and a second (router.second_choice)",
                           .choose = choose_two,
                           .needs = MOE_NEEDS_SCORES,
                           .has_second = true},
    [MOE_METHOD_SINKHORN] = {.name = "sinkhorn",
                             .rule = "the top_k best after sinkhorn's balancing factors",
                             .choose = choose_best,
                             .needs = MOE_NEEDS_DEVICE,
                             .factors = moe_sinkhorn_factors},
    [MOE_METHOD_HASH] = {.name = "hash",
                         .rule = "a hash of the token decides, not the scores",
                         .choose = choose_hash,
                         .needs = MOE_NEEDS_KEYS,
                         .by_byte = true},
    [MOE_METHOD_RANDOM] = {.name = "random",
                           .rule = "chance decides, not the scores",
                           .choose = choose_random,
                           .needs = MOE_NEEDS_KEYS},
    [MOE_METHOD_ROUND_ROBIN] = {.name = "round_robin",
                                .rule = "experts are dealt in turn, whatever the scores",
                                .choose = choose_in_turn,
                                .needs = MOE_NEEDS_KEYS},
    [MOE_METHOD_EXPERT_CHOICE] =
        {.name = "expert_choice",
         .rule = "experts choose: these took the token among the T K / N best of its device",
         .choose = choose_best,
         .needs = MOE_NEEDS_DEVICE,
         .any_number = true,
         .takes = moe_expert_choice_takes},
};
