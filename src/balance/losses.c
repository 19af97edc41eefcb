/* losses.c: the table of balance losses. With c_i selections of expert i, S = sum_i c_i of them by
 * T tokens, K-bar = S / T, and F_i the share of expert i in the first choices. To add one:
 * docs/extending.md. */
#include "balance/losses.h"

#include <stddef.h>

const char *const moe_loss_names[MOE_NUM_LOSSES] = {
#define LOSS(id, key, title) key,
#include "balance/losses.def"
};
const char *const moe_loss_titles[MOE_NUM_LOSSES] = {
#define LOSS(id, key, title) title,
#include "balance/losses.def"
};

static double total(const int64_t *x, int32_t n) {
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += x[i];
    }
    return (double)sum;
}

moe_loss_totals moe_loss_totals_of(const moe_stats *s, int64_t *cell) {
    int32_t n = s->num_experts;
    return (moe_loss_totals){(double)cell[MOE_STAT_TOKENS], total(moe_stats_counts(s, cell), n),
                             total(moe_stats_first(s, cell), n)};
}

/* --- factors --- */

/* N c_i / S */
static double by_selections(const moe_stats *s,
                            int64_t *cell,
                            const moe_loss_totals *t,
                            int32_t i) {
    return t->selections > 0 ? s->num_experts * (double)moe_stats_counts(s, cell)[i] / t->selections
                             : 0;
}

/* N F_i */
static double by_first_choices(const moe_stats *s,
                               int64_t *cell,
                               const moe_loss_totals *t,
                               int32_t i) {
    return t->firsts > 0 ? s->num_experts * (double)moe_stats_first(s, cell)[i] / t->firsts : 0;
}

/* N c_i / T */
static double by_tokens(const moe_stats *s, int64_t *cell, const moe_loss_totals *t, int32_t i) {
    return s->num_experts * (double)moe_stats_counts(s, cell)[i] / t->tokens;
}

/* --- values at balance, where the P_i sum to 1 --- */

static double one(const moe_loss_totals *t) {
    (void)t;
    return 1;
}

static double choices_of_a_token(const moe_loss_totals *t) {
    return t->tokens > 0 ? t->selections / t->tokens : 0;
}

/* --- the table --- */

const moe_loss_row moe_loss_rows[MOE_NUM_LOSSES] = {
    [MOE_LOSS_EXPERT] = {.name = "expert loss",
                         .formula = "sum_i f_i P_i, f_i = N c_i / S, P_i = sum_t s'_i,t / T",
                         .kind = MOE_LOSS_OVER_EXPERTS,
                         .needs = MOE_LOSS_NEEDS_SCORES,
                         .factor = by_selections,
                         .at_balance = one},
    [MOE_LOSS_DEVICE] = {.name = "device loss",
                         .formula = "sum_d f'_d P'_d, f'_d = D / S x sum of c_i on d, P'_d = sum "
                                    "of P_i on d",
                         .kind = MOE_LOSS_OVER_DEVICES,
                         .needs = MOE_LOSS_NEEDS_SCORES},
    [MOE_LOSS_COMM] = {.name = "communication loss",
                       .formula = "sum_d f''_d P'_d, f''_d = D / (M T) x what is sent to d",
                       .kind = MOE_LOSS_OVER_DEVICES,
                       .needs = MOE_LOSS_NEEDS_SCORES},
    [MOE_LOSS_Z] = {.name = "z loss",
                    .formula = "sum_t lse_t^2 / T",
                    .kind = MOE_LOSS_MEAN_OVER_TOKENS,
                    .needs = MOE_LOSS_NEEDS_LOGITS},
    [MOE_LOSS_SWITCH] = {.name = "switch loss",
                         .formula = "N sum_i F_i P_i, F_i = share of first choices",
                         .kind = MOE_LOSS_OVER_EXPERTS,
                         .needs = MOE_LOSS_NEEDS_SCORES,
                         .factor = by_first_choices,
                         .at_balance = one},
    [MOE_LOSS_GSHARD] = {.name = "gshard loss",
                         .formula = "N sum_i F_i P_i, F_i = share of first choices",
                         .kind = MOE_LOSS_OVER_EXPERTS,
                         .needs = MOE_LOSS_NEEDS_SCORES,
                         .factor = by_first_choices,
                         .at_balance = one},
    [MOE_LOSS_MIXTRAL] = {.name = "mixtral loss",
                          .formula = "N sum_i (c_i / T) P_i",
                          .kind = MOE_LOSS_OVER_EXPERTS,
                          .needs = MOE_LOSS_NEEDS_SCORES,
                          .factor = by_tokens,
                          .at_balance = choices_of_a_token},
    [MOE_LOSS_IMPORTANCE] = {.name = "importance loss",
                             .formula = "variance over experts / mean^2 of the summed weights",
                             .kind = MOE_LOSS_VARIATION,
                             .needs = MOE_LOSS_NEEDS_SCORES},
    [MOE_LOSS_LOAD] = {.name = "load loss",
                       .formula = "variance over experts / mean^2 of the load",
                       .kind = MOE_LOSS_VARIATION,
                       .needs = MOE_LOSS_NEEDS_LOGITS},
    [MOE_LOSS_USAGE_VARIANCE] = {.name = "usage variance",
                                 .formula = "variance over experts of c_i / S",
                                 .kind = MOE_LOSS_VARIATION,
                                 .needs = MOE_LOSS_NEEDS_COUNTS},
    [MOE_LOSS_ENTROPY] = {.name = "entropy",
                          .formula = "-sum_t sum_i s' log s' / T",
                          .kind = MOE_LOSS_MEAN_OVER_TOKENS,
                          .needs = MOE_LOSS_NEEDS_SCORES},
    [MOE_LOSS_ENTROPY_Z] = {.name = "entropy z",
                            .formula = "-entropy / N",
                            .kind = MOE_LOSS_MEAN_OVER_TOKENS,
                            .needs = MOE_LOSS_NEEDS_SCORES},
};
