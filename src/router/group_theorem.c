/* group_theorem.c: the check, with a plain insertion and nothing of what the router itself uses to
 * choose. */
#include "router/group_theorem.h"

#include <math.h>
#include <omp.h>

#include "base/scratch.h"
#include "base/vector.h"
#include "router/groups.h"
#include "router/methods.h"
#include "router/scores.h"

/* z [n] as double. False where an expert is disabled or a logit is not a number: its product with 0
 * is none either. */
MOE_CLONES static bool read_logits(moe_logits logits, int64_t t, int32_t n, double *restrict z) {
    double none = 0;
    if (logits.f32) {
        const float *from = logits.f32 + t * n;
#pragma omp simd reduction(+ : none)
        for (int32_t i = 0; i < n; i++) {
            z[i] = (double)from[i];
            none += z[i] * 0;
        }
    } else {
        const double *from = logits.f64 + t * n;
#pragma omp simd reduction(+ : none)
        for (int32_t i = 0; i < n; i++) {
            z[i] = from[i];
            none += z[i] * 0;
        }
    }
    return none == 0;
}

/* What a thread works with. */
typedef struct workspace {
    double *z, *s;      /* [N] logits and selection scores */
    double *best;       /* [K + 1] the largest selection scores, falling */
    int32_t *greedy;    /* [K + 1] whose they are */
    int32_t *candidate; /* [N] */
} workspace;

/* Puts an expert at its place among the `count` best so far, of which at most `most` are kept.
 * Returns their new number. */
static int32_t insert(workspace *w, int32_t count, int32_t most, double score, int32_t expert) {
    int32_t at = count < most ? count : most - 1;
    for (; at > 0 && w->best[at - 1] < score; at--) {
        w->best[at] = w->best[at - 1];
        w->greedy[at] = w->greedy[at - 1];
    }
    w->best[at] = score;
    w->greedy[at] = expert;
    return count < most ? count + 1 : most;
}

/* The experts whose scores are `bound` or more, in ascending order; returns how many. */
static int32_t list_candidates(workspace *w, int32_t n, double bound) {
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        w->candidate[count] = i;
        count += w->s[i] >= bound;
    }
    return count;
}

/* Finds the K + 1 experts (or all, where there are no more) with the largest selection scores.
 * Where K of them or more reach the smallest score that was chosen, however that was done, the K
 * best and all that equal the last of them are among these, and the others need no look.
 * False where two of those scores are equal: the order of the K best is then not the only one. Ties
 * behind them change nothing, because M groups or all groups of the K best come first. */
static bool find_best(const moe_router *r, const int32_t *chosen, int32_t num, workspace *w) {
    int32_t most = r->top_k < r->num_experts ? r->top_k + 1 : r->num_experts, count = 0;
    double bound = INFINITY;
    for (int32_t i = 0; i < num; i++) {
        bound = fmin(bound, w->s[chosen[i]]);
    }
    int32_t candidates = list_candidates(w, r->num_experts, bound);
    if (candidates < r->top_k) {
        candidates = list_candidates(w, r->num_experts, -INFINITY);
    }
    for (int32_t i = 0; i < candidates; i++) {
        const double score = w->s[w->candidate[i]];
        if (count < most || score > w->best[most - 1]) {
            count = insert(w, count, most, score, w->candidate[i]);
        }
    }
    bool distinct = true;
    for (int32_t i = 1; i < count; i++) {
        distinct = distinct && w->best[i] < w->best[i - 1];
    }
    return distinct;
}

/* Of token t: 0 where it does not meet the conditions, 1 where it does, and 2 more where it then
 * violates the theorem. */
enum { ELIGIBLE = 1, VIOLATION = 2 };
static int check_token(const moe_router *r,
                       moe_logits logits,
                       const moe_routing *routing,
                       int64_t t,
                       workspace *w) {
    if (!read_logits(logits, t, r->num_experts, w->z)) {
        return 0;
    }
    moe_scores_fill(r, w->z, w->s, NULL);
    for (int32_t i = 0; r->bias && i < r->num_experts; i++) {
        w->s[i] += r->bias[i];
    }
    const int32_t *chosen = routing->expert + routing->row_offset[t];
    const int32_t count = (int32_t)(routing->row_offset[t + 1] - routing->row_offset[t]);
    if (!find_best(r, chosen, count, w)) {
        return 0;
    }
    int32_t unlimited = moe_groups_distinct(r, w->greedy, r->top_k),
            expected = unlimited < r->topk_group ? unlimited : r->topk_group;
    bool holds = moe_groups_distinct(r, chosen, count) == expected;
    return ELIGIBLE + (holds ? 0 : VIOLATION);
}

void moe_group_theorem_check(const moe_router *r,
                             moe_logits logits,
                             const moe_routing *routing,
                             const uint8_t *routed,
                             int64_t stride,
                             int64_t *eligible,
                             int64_t *violations) {
    int64_t n = r->num_experts, kept = r->top_k + 1, threads = omp_get_max_threads();
    int64_t looked_at = 0, differ = 0;
    *eligible = *violations = 0;
    if (!moe_method_of(r)->chooses_best || r->group_limit != MOE_GROUP_MAX ||
        r->topk_group * (n / r->num_groups) < r->top_k) {
        return;
    }
    double *numbers =
        moe_scratch_take(r->scratch, threads * (2 * n + kept), sizeof *numbers, "check of groups");
    int32_t *indices =
        moe_scratch_take(r->scratch, threads * (kept + n), sizeof *indices, "check of groups");
#pragma omp parallel reduction(+ : looked_at, differ)
    {
        double *z = numbers + omp_get_thread_num() * (2 * n + kept);
        int32_t *greedy = indices + omp_get_thread_num() * (kept + n);
        workspace w = {z, z + n, z + 2 * n, greedy, greedy + kept};
#pragma omp for schedule(static)
        for (int64_t t = 0; t < routing->num_tokens; t += stride) {
            int found = routed && !routed[t] ? 0 : check_token(r, logits, routing, t, &w);
            looked_at += (found & ELIGIBLE) != 0;
            differ += (found & VIOLATION) != 0;
        }
    }
    *eligible = looked_at;
    *violations = differ;
    moe_scratch_give(r->scratch, numbers);
    moe_scratch_give(r->scratch, indices);
}
