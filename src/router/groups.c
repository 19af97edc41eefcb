/* groups.c: the table of group limits, and the groups that a token may go to. */
#include "router/groups.h"

#include "base/status.h"

static double smaller(double a, double b) {
    return a < b ? a : b;
}

/* --- the score of one group --- */

static double best(const moe_tournament *b, int32_t g) {
    return moe_tournament_largest(b->maximum + g * b->group_blocks, b->group_blocks);
}

/* The second largest of 8 numbers: of each pair the larger and the smaller go on. */
static double second_of_block(const double *x) {
    double a = moe_tournament_larger(x[0], x[4]);
    double b = moe_tournament_larger(x[1], x[5]);
    double c = moe_tournament_larger(x[2], x[6]);
    double d = moe_tournament_larger(x[3], x[7]);
    double a2 = smaller(x[0], x[4]);
    double b2 = smaller(x[1], x[5]);
    double c2 = smaller(x[2], x[6]);
    double d2 = smaller(x[3], x[7]);
    double ac = moe_tournament_larger(a, c);
    double bd = moe_tournament_larger(b, d);
    double ac2 = moe_tournament_larger(smaller(a, c), moe_tournament_larger(a2, c2));
    double bd2 = moe_tournament_larger(smaller(b, d), moe_tournament_larger(b2, d2));
    return moe_tournament_larger(smaller(ac, bd), moe_tournament_larger(ac2, bd2));
}

/* Sum of the two largest of the group, or the largest where there is only one. The second largest
 * is the largest of the other blocks' maxima and of the second largest of the first block. */
static double two_best(const moe_tournament *b, int32_t g) {
    const double *m = b->maximum + g * b->group_blocks;
    double first = moe_tournament_largest(m, b->group_blocks), second = -INFINITY;
    int32_t at = moe_tournament_first(m, b->group_blocks, first);
    for (int32_t i = 0; i < b->group_blocks; i++) {
        second = moe_tournament_larger(second, i == at ? -INFINITY : m[i]);
    }
    const double *x = b->score + (g * b->group_blocks + at) * MOE_TOURNAMENT_BLOCK;
    second = moe_tournament_larger(second, second_of_block(x));
    return second == -INFINITY ? first : first + second;
}

/* Sum of the `count` largest of the group, largest first: goes from each value to the next smaller
 * one. */
static double several_best(const moe_tournament *b, int32_t g, int32_t count) {
    const double *x = b->score + g * b->group_blocks * MOE_TOURNAMENT_BLOCK;
    double sum = 0, last = INFINITY;
    int32_t taken = 0;
    while (taken < count) {
        double v = -INFINITY;
        int32_t equal = 0;
        for (int32_t i = 0; i < b->group_size; i++) {
            v = x[i] < last ? moe_tournament_larger(v, x[i]) : v;
        }
        if (v == -INFINITY) {
            break;
        }
        for (int32_t i = 0; i < b->group_size; i++) {
            equal += x[i] == v;
        }
        for (; equal > 0 && taken < count; equal--, taken++) {
            sum += v;
        }
        last = v;
    }
    return taken == 0 ? -INFINITY : sum;
}

/* --- the table --- */

/* DeepSeek-V2, which calls it device-limited. */
static void scores_max(const moe_tournament *b, const moe_router *r, double *score) {
    (void)r;
    for (int32_t g = 0; g < b->groups; g++) {
        score[g] = best(b, g);
    }
}

/* DeepSeek-V3, which calls it node-limited. */
static void scores_top2_sum(const moe_tournament *b, const moe_router *r, double *score) {
    (void)r;
    for (int32_t g = 0; g < b->groups; g++) {
        score[g] = two_best(b, g);
    }
}

/* Megatron-Core: the sum of the K div M best, of at least one. */
static void scores_topk_sum(const moe_tournament *b, const moe_router *r, double *score) {
    int32_t count = r->top_k / r->topk_group;
    for (int32_t g = 0; g < b->groups; g++) {
        score[g] = count < 2 ? best(b, g) : count == 2 ? two_best(b, g) : several_best(b, g, count);
    }
}

const moe_group_limit_row moe_group_limits[MOE_NUM_GROUP_LIMITS] = {
    [MOE_GROUP_NONE] = {.name = "none"},
    [MOE_GROUP_MAX] = {.name = "max", .scores = scores_max, .rule = "a group's score is its best"},
    [MOE_GROUP_TOP2_SUM] = {.name = "top2_sum",
                            .scores = scores_top2_sum,
                            .rule = "a group's score is the sum of its two best"},
    [MOE_GROUP_TOPK_SUM] = {.name = "topk_sum",
                            .scores = scores_topk_sum,
                            .rule = "a group's score is the sum of its top_k / topk_group best"},
    [MOE_GROUP_QUOTA] = {.name = "quota",
                         .scores = scores_max,
                         .rule = "a group's score is its best; each admitted group gives "
                                 "top_k / topk_group experts",
                         .quota = true},
};

const moe_group_limit_row *moe_groups_limit(const moe_router *r) {
    MOE_ASSERT((unsigned)r->group_limit < MOE_NUM_GROUP_LIMITS);
    return &moe_group_limits[r->group_limit];
}

int32_t moe_groups_number(const moe_router *r) {
    return moe_groups_limit(r)->scores ? r->num_groups : 1;
}

/* --- which groups --- */

enum { RANKED = 32 }; /* so many groups at most are compared each with each */

/* kept [groups] = whether a group is among the topk_group best. Says no where two have the same
 * score, such as -inf. */
static bool mark_by_place(moe_tournament *b, int32_t topk_group) {
    int64_t place[RANKED + MOE_TOURNAMENT_LANES];
    int32_t n = b->groups;
    if (n > RANKED || moe_tournament_count(b->group_score, n, place) != n * (n + 1) / 2) {
        return false;
    }
    for (int32_t g = 0; g < n; g++) {
        b->kept[g] = (place[g] <= topk_group) & (b->group_score[g] > -INFINITY);
    }
    return true;
}

static void mark_in_turn(moe_tournament *b, int32_t topk_group) {
    for (int32_t g = 0; g < b->groups; g++) {
        b->kept[g] = 0;
    }
    for (int32_t m = 0; m < topk_group; m++) {
        double highest = moe_tournament_largest(b->group_score, b->groups);
        if (!(highest > -INFINITY)) {
            break;
        }
        int32_t g = moe_tournament_first(b->group_score, b->groups, highest);
        b->group_score[g] = -INFINITY;
        b->kept[g] = 1;
    }
}

void moe_groups_admit(moe_tournament *b, const moe_router *r) {
    moe_group_scores *scores = moe_groups_limit(r)->scores;
    b->num_kept = 0;
    if (!scores || r->topk_group >= b->groups) {
        for (int32_t g = 0; g < b->groups; g++) {
            b->kept[g] = g;
        }
        b->num_kept = b->groups;
        return;
    }
    scores(b, r, b->group_score);
    if (!mark_by_place(b, r->topk_group)) {
        mark_in_turn(b, r->topk_group);
    }
    for (int32_t g = 0; g < b->groups; g++) { /* from flags to a list, in place: num_kept <= g */
        int32_t is_kept = b->kept[g];
        b->kept[b->num_kept] = g;
        b->num_kept += is_kept;
    }
}

int32_t moe_groups_distinct(const moe_router *r, const int32_t *expert, int32_t count) {
    int32_t size = r->num_experts / r->num_groups, distinct = 0;
    for (int32_t k = 0; k < count; k++) {
        int32_t seen = 0;
        for (int32_t j = 0; j < k; j++) {
            seen |= expert[j] / size == expert[k] / size;
        }
        distinct += !seen;
    }
    return distinct;
}
