/* select.c: choice, order and weights of one token's experts. */
#include "router/select.h"

#include <string.h>

#include "router/groups.h"
#include "router/keyed.h"
#include "router/weights.h"

void moe_select_reserve(moe_select *w, const moe_router *r, const moe_draw *draw) {
    int64_t n = r->num_experts;
    MOE_ASSERT(r->top_k > 0 && (draw || moe_method_of(r)->needs != MOE_NEEDS_KEYS));
    *w = (moe_select){.choice = {.draw = draw}, .scratch = r->scratch};
    moe_tournament_reserve(&w->choice.tournament, r->num_experts, moe_groups_number(r), r->scratch);
    w->s = moe_scratch_take(r->scratch, 2 * n, sizeof *w->s, "router's working memory");
    w->ordered = w->s + n;
    w->expert = moe_scratch_take(r->scratch, 2 * n, sizeof *w->expert, "router's working memory");
    w->choice.enabled = w->expert + n;
}

void moe_select_free(moe_select *w) {
    moe_tournament_free(&w->choice.tournament);
    moe_scratch_give(w->scratch, w->s);
    moe_scratch_give(w->scratch, w->expert);
    *w = (moe_select){0};
}

void moe_select_reserve_for_sum(moe_select *w, const moe_router *r) {
    *w = (moe_select){0};
    if (moe_method_may_leave_out(r)) {
        moe_select_reserve(w, r, NULL);
    }
}

/* Falling unbiased score, then index: the place of each expert is the number of those before it.
 * Experts chosen by the unbiased score itself come in that order. */
static void order_chosen(const moe_select *w, bool in_order, int32_t count, int32_t *expert) {
    if (in_order) {
        memcpy(expert, w->expert, (size_t)count * sizeof *expert);
        memcpy(w->ordered, w->s, (size_t)count * sizeof *w->s);
        return;
    }
    for (int32_t i = 0; i < count; i++) {
        int32_t place = 0;
        for (int32_t j = 0; j < count; j++) {
            place += (w->s[j] > w->s[i]) | ((w->s[j] == w->s[i]) & (w->expert[j] < w->expert[i]));
        }
        expert[place] = w->expert[i];
        w->ordered[place] = w->s[i];
    }
}

/* GShard's random second choice: kept with probability min(1, 2 g2), g2 = s2 / (s1 + s2) (arXiv
 * 2006.16668, Algorithm 1). */
static bool second_is_left_out(const moe_select *w, const moe_router *r, int32_t count) {
    if (count < 2 || !moe_method_may_leave_out(r)) {
        return false;
    }
    double drawn = moe_keyed_second(w->choice.draw, w->choice.token);
    return !(drawn * (w->ordered[0] + w->ordered[1]) < 2 * w->ordered[1]);
}

int32_t moe_select_experts(moe_select *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert,
                           double *weight) {
    const moe_method *method = moe_method_of(r);
    int32_t count = method->choose(&w->choice, r, z, s, may_be_disabled, w->expert);
    for (int32_t k = 0; k < count; k++) {
        w->s[k] = s[w->expert[k]];
    }
    bool in_order = method->needs != MOE_NEEDS_KEYS && !r->bias && !w->choice.factor &&
                    !moe_groups_limit(r)->quota;
    order_chosen(w, in_order, count, expert);
    if (weight) {
        moe_weights_fill(r, w->ordered, count, weight);
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
    order_chosen(w, false, count, expert);
    moe_weights_fill(r, w->ordered, count, weight);
    return count;
}

int32_t moe_select_token(const moe_router *r,
                         const moe_draw *draw,
                         int64_t token,
                         const double *z,
                         const double *s,
                         int32_t *expert,
                         double *weight) {
    moe_select w;
    moe_select_reserve(&w, r, draw);
    w.choice.token = token;
    int32_t count = moe_select_experts(&w, r, z, s, 1, expert, weight);
    moe_select_free(&w);
    return count;
}

int32_t moe_select_admit(moe_select *w, const moe_router *r, const double *z, const double *s) {
    if (moe_method_of(r)->needs == MOE_NEEDS_KEYS) {
        return 0;
    }
    moe_method_rank(&w->choice, r, z, s, 1);
    return w->choice.tournament.num_kept;
}

double moe_select_sum(moe_select *w,
                      const moe_router *r,
                      const double *z,
                      const double *s,
                      const int32_t *expert,
                      int64_t count,
                      int32_t *left_out) {
    double sum = 0;
    *left_out = -1;
    for (int64_t k = 0; k < count; k++) {
        sum += s[expert[k]];
    }
    if (count != 1 || !moe_method_may_leave_out(r)) {
        return sum;
    }
    int32_t chosen = moe_method_of(r)->choose(&w->choice, r, z, s, 1, w->expert);
    for (int32_t k = 0; k < chosen; k++) {
        if (w->expert[k] != expert[0]) {
            *left_out = w->expert[k];
            sum += s[*left_out];
        }
    }
    return sum;
}

void moe_select_reasons(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *factor,
                        double *selection,
                        double *of_group,
                        double *admitted) {
    moe_chooser w = {.factor = factor};
    moe_group_scores *scores = moe_groups_limit(r)->scores;
    moe_tournament_reserve(&w.tournament, r->num_experts, moe_groups_number(r), r->scratch);
    moe_method_rank(&w, r, z, s, 1);
    for (int32_t i = 0; i < r->num_experts; i++) {
        selection[i] = moe_tournament_score(&w.tournament, i);
    }
    for (int32_t g = 0; g < w.tournament.groups && scores; g++) {
        admitted[g] = 0;
    }
    for (int32_t k = 0; k < w.tournament.num_kept && scores; k++) {
        admitted[w.tournament.kept[k]] = 1;
    }
    if (scores) {
        scores(&w.tournament, r, of_group);
    }
    moe_tournament_free(&w.tournament);
}
