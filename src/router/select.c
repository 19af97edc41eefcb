/* select.c: group limit, top-k and combine weights of one token. method.md sections 1.3 to 1.6.
 *
 * Idea: a two-level tournament. Blocks of 8 selection scores and their maxima; the largest of all
 * is the first block with the largest maximum, then the first place in it that equals it, so the
 * lowest index wins among equals; then one block maximum is computed anew. K experts cost K (blocks
 * + 16) steps without a hard-to-predict branch. Advantage over K passes: 5 times fewer steps at N =
 * 256. Disadvantage: groups of fewer than 8 experts waste the rest of a block. */
#include "router/select.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/scratch.h"
#include "base/status.h"
#include "base/vector.h"
#include "router/keyed.h"

enum { BLOCK = 8 };

static double larger(double a, double b) {
    return a > b ? a : b;
}
static double smaller(double a, double b) {
    return a < b ? a : b;
}

void moe_select_reserve(moe_select *w, const moe_router *r) {
    int64_t most = moe_router_most(r);
    w->scratch = r->scratch;
    w->groups = r->group_limit == MOE_GROUP_NONE ? 1 : r->num_groups;
    MOE_ASSERT(w->groups > 0 && r->num_experts % w->groups == 0 && r->top_k > 0);
    w->group_size = r->num_experts / w->groups;
    w->group_blocks = (w->group_size + BLOCK - 1) / BLOCK;
    int64_t blocks = (int64_t)w->groups * w->group_blocks,
            doubles = blocks * (BLOCK + 2) + w->groups + 2 * most;
    double *d = w->memory =
        moe_scratch_take(r->scratch, doubles + 2 * blocks + w->groups + most + r->num_experts,
                         sizeof(double), "router's working memory");
    w->score = d;
    w->block_max = w->score + blocks * BLOCK;
    w->kept_max = w->block_max + blocks;
    w->group_score = w->kept_max + blocks;
    w->s = w->group_score + w->groups;
    w->order_s = w->s + most;
    w->kept_block = (int32_t *)(w->order_s + most);
    w->block_base = w->kept_block + blocks;
    w->kept = w->block_base + blocks;
    w->expert = w->kept + w->groups;
    w->enabled = w->expert + most;
    for (int64_t i = 0; i < blocks * BLOCK; i++) {
        w->score[i] = -INFINITY;
    }
    for (int32_t b = 0; b < blocks; b++) {
        w->block_base[b] = b / w->group_blocks * w->group_size + b % w->group_blocks * BLOCK;
    }
}

void moe_select_free(moe_select *w) {
    moe_scratch_give(w->scratch, w->memory);
    *w = (moe_select){0};
}

static double block_maximum(const double *x) {
    double a = larger(x[0], x[4]);
    double b = larger(x[1], x[5]);
    double c = larger(x[2], x[6]);
    double d = larger(x[3], x[7]);
    return larger(larger(a, c), larger(b, d));
}

/* to = a + b */
MOE_CLONES static void sum_of(double *restrict to,
                              const double *restrict a,
                              const double *restrict b,
                              int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        to[i] = a[i] + b[i];
    }
}

/* Selection score s + b, -inf where the logit is; sinkhorn: z + log of the expert's factor, which
 * orders like exp(z) times the factor. */
static void fill_scores(
    moe_select *w, const moe_router *r, const double *z, const double *s, int may_be_disabled) {
    const double *from = w->factor ? z : s, *add = w->factor ? w->factor : r->bias;
    int32_t n = w->group_size, stride = w->group_blocks * BLOCK;
    for (int32_t g = 0; g < w->groups; g++) {
        double *to = w->score + g * stride;
        if (add) {
            sum_of(to, from + g * n, add + g * n, n);
        } else {
            memcpy(to, from + g * n, (size_t)n * sizeof *to);
        }
        if (may_be_disabled) {
            for (int32_t i = 0; i < n; i++) {
                to[i] = z[g * n + i] == -INFINITY ? -INFINITY : to[i];
            }
        }
    }
    for (int32_t b = 0; b < w->groups * w->group_blocks; b++) {
        w->block_max[b] = block_maximum(w->score + b * BLOCK);
    }
}

static double largest(const double *x, int32_t n) {
    double a = x[0];
    double b = x[0];
    double c = x[0];
    double d = x[0]; /* four chains: each comparison waits for the one
                                                      before it */
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a = larger(x[i], a);
        b = larger(x[i + 1], b);
        c = larger(x[i + 2], c);
        d = larger(x[i + 3], d);
    }
    for (; i < n; i++) {
        a = larger(x[i], a);
    }
    return larger(larger(a, b), larger(c, d));
}

/* First place of v, the largest of x [n]; from the back, so that nothing has to be predicted (and
 * >= needs one flag where == needs two). */
static inline int32_t first_place(const double *x, int32_t n, double v) {
    int32_t at = 0;
    for (int32_t i = n - 1; i >= 0; i--) {
        at = x[i] >= v ? i : at;
    }
    return at;
}

/* DeepSeek-V2: max over the group. */
static double group_max(const moe_select *w, int32_t g) {
    return largest(w->block_max + g * w->group_blocks, w->group_blocks);
}

/* DeepSeek-V3: sum of the two largest of the group; of one, when there is only one. The second
 * largest is the largest of the other blocks' maxima and of the second largest of the first block.
 */
static double group_top2_sum(const moe_select *w, int32_t g) {
    const double *m = w->block_max + g * w->group_blocks, *x;
    double first = largest(m, w->group_blocks), second = -INFINITY;
    int32_t at = first_place(m, w->group_blocks, first);
    x = w->score + (g * w->group_blocks + at) * BLOCK;
    for (int32_t b = 0; b < w->group_blocks; b++) {
        second = larger(second, b == at ? -INFINITY : m[b]);
    }
    double a = larger(x[0], x[4]);
    double b = larger(x[1], x[5]);
    double c = larger(x[2], x[6]);
    double d = larger(x[3], x[7]);
    double a2 = smaller(x[0], x[4]);
    double b2 = smaller(x[1], x[5]);
    double c2 = smaller(x[2], x[6]);
    double d2 = smaller(x[3], x[7]);
    double ac = larger(a, c);
    double bd = larger(b, d);
    double ac2 = larger(smaller(a, c), larger(a2, c2));
    double bd2 = larger(smaller(b, d), larger(b2, d2));
    second = larger(second, larger(smaller(ac, bd), larger(ac2, bd2)));
    return second == -INFINITY ? first : first + second;
}

/* Megatron-Core: sum of the `count` (at least 1) largest of the group, largest first. Goes from
 * each value to the next smaller one. */
static double group_top_sum(const moe_select *w, int32_t g, int32_t count) {
    const double *x = w->score + g * w->group_blocks * BLOCK;
    double sum = 0, last = INFINITY;
    int32_t taken = 0;
    if (count <= 2) {
        return count < 2 ? group_max(w, g) : group_top2_sum(w, g);
    }
    while (taken < count) {
        double v = -INFINITY;
        int32_t equal = 0;
        for (int32_t i = 0; i < w->group_size; i++) {
            v = x[i] < last ? larger(v, x[i]) : v;
        }
        if (v == -INFINITY) {
            break;
        }
        for (int32_t i = 0; i < w->group_size; i++) {
            equal += x[i] == v;
        }
        for (; equal > 0 && taken < count; equal--, taken++) {
            sum += v;
        }
        last = v;
    }
    return taken == 0 ? -INFINITY : sum;
}

static double group_score(const moe_select *w, const moe_router *r, int32_t g) {
    switch (r->group_limit) {
    case MOE_GROUP_TOP2_SUM:
        return group_top2_sum(w, g);
    case MOE_GROUP_TOPK_SUM:
        return group_top_sum(w, g, r->top_k / r->topk_group);
    default:
        return group_max(w, g); /* max, quota */
    }
}

/* The M best groups in ascending order, in kept; returns how many. A group whose experts are all
 * disabled is not kept. */
static int32_t choose_groups(moe_select *w, const moe_router *r) {
    int32_t count = 0;
    if (r->group_limit == MOE_GROUP_NONE || r->topk_group >= w->groups) {
        for (int32_t g = 0; g < w->groups; g++) {
            w->kept[g] = g;
        }
        return w->groups;
    }
    for (int32_t g = 0; g < w->groups; g++) {
        w->group_score[g] = group_score(w, r, g);
        w->kept[g] = 0;
    }
    for (int32_t m = 0; m < r->topk_group; m++) {
        double best = largest(w->group_score, w->groups);
        if (!(best > -INFINITY)) {
            break;
        }
        int32_t g = first_place(w->group_score, w->groups, best);
        w->group_score[g] = -INFINITY;
        w->kept[g] = 1;
    }
    for (int32_t g = 0; g < w->groups; g++) { /* from flags to a list, in place: count <= g */
        int32_t is_kept = w->kept[g];
        w->kept[count] = g;
        count += is_kept;
    }
    return count;
}

/* Copies the block maxima of the kept groups together; returns how many blocks. */
static int32_t gather_blocks(moe_select *w, int32_t kept) {
    int32_t blocks = 0;
    for (int32_t k = 0; k < kept; k++) {
        for (int32_t b = w->kept[k] * w->group_blocks, end = b + w->group_blocks; b < end;
             b++, blocks++) {
            w->kept_max[blocks] = w->block_max[b];
            w->kept_block[blocks] = b;
        }
    }
    return blocks;
}

/* Takes the `count` largest out of kept blocks [begin, end) into w->expert and w->s from place
 * `chosen` on; returns the new number chosen. */
static int32_t take_largest(
    moe_select *w, const double *s, int32_t begin, int32_t end, int32_t count, int32_t chosen) {
    for (int32_t k = 0; k < count; k++) {
        double best = largest(w->kept_max + begin, end - begin);
        if (!(best > -INFINITY)) {
            break;
        }
        int32_t at = begin + first_place(w->kept_max + begin, end - begin, best),
                block = w->kept_block[at];
        double *x = w->score + block * BLOCK;
        int32_t inside = first_place(x, BLOCK, best), expert = w->block_base[block] + inside;
        x[inside] = -INFINITY;
        w->kept_max[at] = block_maximum(x);
        w->expert[chosen] = expert;
        w->s[chosen++] = s[expert];
    }
    return chosen;
}

/* Falling unbiased score, then index; without a bias they were taken in that order. The place of
 * each is the number of those before it. */
static void order_chosen(
    const moe_select *w, bool in_order, int32_t count, int32_t *expert, double *ordered) {
    if (in_order) {
        memcpy(expert, w->expert, (size_t)count * sizeof *expert);
        memcpy(ordered, w->s, (size_t)count * sizeof *ordered);
        return;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t place = 0;
        for (int32_t j = 0; j < count; j++) {
            place += (w->s[j] > w->s[i]) | ((w->s[j] == w->s[i]) & (w->expert[j] < w->expert[i]));
        }
        expert[place] = w->expert[i];
        ordered[place] = w->s[i];
    }
}

/* top_p (MixLoRA dynamic): falling s, up to and including the first at which the sum exceeds p; at
 * most top_k. */
static int32_t take_top_p(moe_select *w, const moe_router *r, const double *s, int32_t blocks) {
    double sum = 0, divisor = moe_router_probability_divisor(r);
    int32_t count = 0;
    while (count < r->top_k && sum <= r->top_p) {
        if (take_largest(w, s, 0, blocks, 1, count) == count) {
            break;
        }
        sum += w->s[count++] / divisor;
    }
    return count;
}

/* A second expert drawn among the others with probability s_i / sum of their s: what DeepSpeed's
 * Gumbel noise on the logits amounts to. */
static int32_t take_sampled(moe_select *w, const moe_router *r, const double *s, const double *z) {
    int32_t first = w->expert[0], last = -1;
    double total = 0, sum = 0;
    for (int32_t i = 0; i < r->num_experts; i++) {
        total += i == first ? 0 : s[i];
    }
    double until = moe_keyed_second(r, w->token) * total;
    for (int32_t i = 0; i < r->num_experts && sum <= until; i++) {
        if (i == first || z[i] == -INFINITY) {
            continue;
        }
        sum += s[i];
        last = i;
    }
    if (last < 0) {
        return 1;
    }
    w->expert[1] = last;
    w->s[1] = s[last];
    return 2;
}

/* GShard's random second choice: kept with probability min(1, 2 g2), g2 = s2 / (s1 + s2)
 * (2006.16668, Algorithm 1). */
static bool second_is_left_out(const moe_select *w, const moe_router *r, int32_t count) {
    if (r->method != MOE_METHOD_GSHARD || r->second_choice != MOE_SECOND_RANDOM || count < 2) {
        return false;
    }
    return !(moe_keyed_second(r, w->token) * (w->order_s[0] + w->order_s[1]) < 2 * w->order_s[1]);
}

/* g = s of the chosen; norm_topk_prob: / (sum + 1e-20) as DeepSeek's code does; softmax_topk: /
 * sum, always; then x the factor. */
void moe_select_weights(const moe_router *r, const double *s, int32_t count, double *weight) {
    double sum = 0, factor = moe_weights_factor(r);
    for (int32_t k = 0; k < count; k++) {
        sum += s[k];
    }
    double divisor = !moe_weights_normalized(r)                ? 1.0
                     : r->score_func == MOE_SCORE_SOFTMAX_TOPK ? (sum > 0 ? sum : 1.0)
                                                               : sum + 1e-20;
    for (int32_t k = 0; k < count; k++) {
        weight[k] = s[k] / divisor * factor;
    }
}

/* By score: the best of the kept groups, into w->expert and w->s. */
static int32_t choose_ranked(
    moe_select *w, const moe_router *r, const double *z, const double *s, int may_be_disabled) {
    int32_t count = 0, kept;
    fill_scores(w, r, z, s, may_be_disabled);
    kept = w->num_kept = choose_groups(w, r);
    int32_t blocks = gather_blocks(w, kept);
    if (r->group_limit == MOE_GROUP_QUOTA) {
        for (int32_t k = 0; k < kept; k++) {
            count = take_largest(w, s, k * w->group_blocks, (k + 1) * w->group_blocks,
                                 r->top_k / r->topk_group, count);
        }
        return count;
    }
    if (blocks == 0) {
        return 0;
    }
    if (r->method == MOE_METHOD_TOP_P) {
        return take_top_p(w, r, s, blocks);
    }
    bool sampled =
        r->method == MOE_METHOD_GSHARD && r->second_choice == MOE_SECOND_SAMPLED && r->top_k > 1;
    count = take_largest(w, s, 0, blocks, sampled ? 1 : r->top_k, 0);
    return sampled && count == 1 ? take_sampled(w, r, s, z) : count;
}

static int32_t choose_keyed(
    moe_select *w, const moe_router *r, const double *z, const double *s, int may_be_disabled) {
    int32_t count = moe_keyed_choice(r, w->token, z, may_be_disabled, w->enabled, w->expert);
    for (int32_t k = 0; k < count; k++) {
        w->s[k] = s[w->expert[k]];
    }
    return count;
}

int32_t moe_select_experts(moe_select *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert,
                           double *weight) {
    bool keyed = moe_method_is_keyed(r->method);
    int32_t count = keyed ? choose_keyed(w, r, z, s, may_be_disabled)
                          : choose_ranked(w, r, z, s, may_be_disabled);
    order_chosen(w, !keyed && !r->bias && !w->factor && r->group_limit != MOE_GROUP_QUOTA, count,
                 expert, w->order_s);
    if (weight) {
        moe_select_weights(r, w->order_s, count, weight);
    }
    return second_is_left_out(w, r, count) ? 1 : count;
}

int32_t moe_select_given(moe_select *w,
                         const moe_router *r,
                         const double *s,
                         const uint8_t *chosen,
                         int32_t *expert,
                         double *weight) {
    int32_t count = 0;
    for (int32_t i = 0; i < r->num_experts; i++) { /* count <= i */
        w->expert[count] = i;
        w->s[count] = s[i];
        count += chosen[i];
    }
    order_chosen(w, false, count, expert, w->order_s);
    moe_select_weights(r, w->order_s, count, weight);
    return count;
}

void moe_select_reasons(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *factor,
                        double *selection,
                        double *of_group,
                        double *admitted) {
    moe_select w = {.factor = factor};
    moe_select_reserve(&w, r);
    fill_scores(&w, r, z, s, 1);
    for (int32_t i = 0; i < r->num_experts; i++) {
        selection[i] = w.score[i / w.group_size * w.group_blocks * BLOCK + i % w.group_size];
    }
    if (r->group_limit != MOE_GROUP_NONE) {
        for (int32_t g = 0; g < w.groups; g++) {
            of_group[g] = group_score(&w, r, g);
            admitted[g] = 0;
        }
        for (int32_t k = 0, count = choose_groups(&w, r); k < count; k++) {
            admitted[w.kept[k]] = 1;
        }
    }
    moe_select_free(&w);
}

int32_t moe_router_select(const moe_router *r,
                          int64_t token,
                          const double *z,
                          const double *s,
                          int32_t *expert,
                          double *weight) {
    moe_select w = {.token = token};
    moe_select_reserve(&w, r);
    int32_t count = moe_select_experts(&w, r, z, s, 1, expert, weight);
    moe_select_free(&w);
    return count;
}

int32_t moe_router_distinct_groups(const moe_router *r, const int32_t *expert, int32_t count) {
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
