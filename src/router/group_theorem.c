/* group_theorem.c: the check, with a plain sort and nothing of what the router itself uses to
 * choose. */
#include "router/group_theorem.h"

#include <math.h>
#include <stdlib.h>

#include "base/scratch.h"
#include "router/groups.h"
#include "router/methods.h"
#include "router/scores.h"

typedef struct ranked {
    double score;
    int32_t expert;
} ranked;

static int falling(const void *a, const void *b) {
    double x = ((const ranked *)a)->score, y = ((const ranked *)b)->score;
    return (x < y) - (x > y);
}

/* z [N] as double. False where an expert is disabled or a logit is not a number. */
static bool read_logits(moe_logits logits, int64_t t, int32_t n, double *z) {
    bool finite = true;
    for (int32_t i = 0; i < n; i++) {
        z[i] = logits.f32 ? (double)logits.f32[t * n + i] : logits.f64[t * n + i];
        finite = finite && isfinite(z[i]);
    }
    return finite;
}

/* Sorts the experts by selection score. False where two of them are equal. */
static bool sort_without_ties(const moe_router *r, const double *s, ranked *order) {
    bool distinct = true;
    for (int32_t i = 0; i < r->num_experts; i++) {
        order[i] = (ranked){s[i] + (r->bias ? r->bias[i] : 0), i};
    }
    qsort(order, (size_t)r->num_experts, sizeof *order, falling);
    for (int32_t i = 1; i < r->num_experts; i++) {
        distinct = distinct && order[i].score < order[i - 1].score;
    }
    return distinct;
}

void moe_group_theorem_check(const moe_router *r,
                             moe_logits logits,
                             const moe_routing *routing,
                             const uint8_t *routed,
                             int64_t stride,
                             int64_t *eligible,
                             int64_t *violations) {
    int32_t n = r->num_experts, k = r->top_k;
    *eligible = *violations = 0;
    if (!moe_method_of(r)->chooses_best || r->group_limit != MOE_GROUP_MAX ||
        (int64_t)r->topk_group * (n / r->num_groups) < k) {
        return;
    }
    double *z = moe_scratch_take(r->scratch, 2 * (int64_t)n, sizeof *z, "check of groups"),
           *s = z + n;
    ranked *order = moe_scratch_take(r->scratch, n, sizeof *order, "check of groups");
    int32_t *greedy = moe_scratch_take(r->scratch, k, sizeof *greedy, "check of groups");
    for (int64_t t = 0; t < routing->num_tokens; t += stride) {
        if ((routed && !routed[t]) || !read_logits(logits, t, n, z)) {
            continue;
        }
        moe_scores_fill(r, z, s, NULL);
        if (!sort_without_ties(r, s, order)) {
            continue;
        }
        for (int32_t i = 0; i < k; i++) {
            greedy[i] = order[i].expert;
        }
        int32_t unlimited = moe_groups_distinct(r, greedy, k),
                expected = unlimited < r->topk_group ? unlimited : r->topk_group;
        int64_t begin = routing->row_offset[t];
        *eligible += 1;
        *violations +=
            moe_groups_distinct(r, routing->expert + begin,
                                (int32_t)(routing->row_offset[t + 1] - begin)) != expected;
    }
    moe_scratch_give(r->scratch, z);
    moe_scratch_give(r->scratch, order);
    moe_scratch_give(r->scratch, greedy);
}
