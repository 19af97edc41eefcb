/* balance.c: f, P and the balance losses of one cell of counts. method.md section 2; DeepSeek-V2 (arXiv 2405.04434) Eqs. 23 to 31.
 *
 * With c_i selections of expert i, S = sum_i c_i of them by T tokens, K-bar = S/T in K's place:
 *   f_i  = N/(K-bar T) c_i = N c_i / S                      P_i  = (1/T) sum_t s'_{i,t}
 *   f'_d = mean of f over E_d = D/S sum_{i in E_d} c_i      P'_d = sum (or mean) of P over E_d
 *   f''_d = D/(M T) (distinct tokens sent to d, or selections of d)
 *   L1 = sum_i f_i P_i    L2 = sum_d f'_d P'_d    L3 = sum_d f''_d P'_d    Lz = (1/T) sum_t lse_t^2 */
#include "moesim/balance.h"

#include <math.h>

#include "moesim/exact.h"
#include "moesim/status.h"

const char *const moe_loss_names[MOE_NUM_LOSSES] = {"expert", "device", "comm", "z"};

void moe_balance_init(moe_balance *b, const moe_config *c) {
    bool recorded = c->data.source == MOE_SOURCE_ROUTING;
    *b = (moe_balance){.alpha = {c->balance.alpha_expert, c->balance.alpha_device, c->balance.alpha_comm, c->balance.z_loss},
                       .comm_limit = c->comm_limit,
                       .comm_count = (enum moe_comm_count)c->balance.comm_count,
                       .device_p = (enum moe_device_p)c->balance.device_p,
                       .has_scores = !recorded || c->data.scores[0],
                       .has_logits = !recorded};
}

/* Numbers of the whole cell. */
typedef struct totals {
    double tokens, selections;
} totals;

static totals totals_of(const moe_stats *s, int64_t *cell) {
    const int64_t *counts = moe_stats_counts(s, cell);
    int64_t selections = 0;
    for (int32_t i = 0; i < s->num_experts; i++)
        selections += counts[i];
    return (totals){(double)cell[MOE_STAT_TOKENS], (double)selections};
}

/* f_i = N c_i / S */
static double expert_f(const moe_stats *s, int64_t *cell, totals t, int32_t i) {
    return t.selections > 0 ? s->num_experts * (double)moe_stats_counts(s, cell)[i] / t.selections : 0;
}

/* What one device adds up to: exact integer sums over its experts. */
typedef struct device_sums {
    int64_t experts, selections, score_hi, score_lo;
} device_sums;

static device_sums sums_of_device(const moe_placement *p, const moe_stats *s, int64_t *cell, int32_t d) {
    device_sums sum = {0};
    for (int32_t slot = 0; slot < p->slots_per_device; slot++) {
        int32_t i = p->expert_at[(int64_t)d * p->slots_per_device + slot];
        sum.experts++;
        sum.selections += moe_stats_counts(s, cell)[i];
        sum.score_hi += moe_stats_score_hi(s, cell)[i];
        sum.score_lo += moe_stats_score_lo(s, cell)[i];
    }
    return sum;
}

/* f'_d = D/S sum_{i in E_d} c_i */
static double device_f(const moe_stats *s, totals t, device_sums sum) {
    return t.selections > 0 ? s->devices * (double)sum.selections / t.selections : 0;
}

/* f''_d = D/(M T) (tokens or selections of d) */
static double comm_f(const moe_balance *b, const moe_stats *s, int64_t *cell, totals t, device_sums sum, int32_t d) {
    double count = (double)(b->comm_count == MOE_COUNT_SELECTIONS ? sum.selections : moe_stats_device_tokens(s, cell)[d]);
    return s->devices * count / (b->comm_limit * t.tokens);
}

/* What P summed over a device is divided by. */
static double device_share(const moe_balance *b, device_sums sum) {
    return b->device_p == MOE_DEVICE_P_MEAN ? (double)sum.experts : 1.0;
}

void moe_balance_losses(const moe_balance *b, const moe_placement *p, const moe_stats *s, int64_t *cell, double loss[MOE_NUM_LOSSES]) {
    totals t = totals_of(s, cell);
    for (int l = 0; l < MOE_NUM_LOSSES; l++)
        loss[l] = b->has_scores ? 0 : NAN;
    if (!b->has_logits) loss[MOE_LOSS_Z] = NAN;
    if (t.tokens == 0 || !b->has_scores) return;
    for (int32_t i = 0; i < s->num_experts; i++) {
        double mean = moe_exact_value01(moe_stats_score_hi(s, cell)[i], moe_stats_score_lo(s, cell)[i]) / t.tokens;
        loss[MOE_LOSS_EXPERT] += expert_f(s, cell, t, i) * mean;
    }
    for (int32_t d = 0; d < s->devices; d++) {
        device_sums sum = sums_of_device(p, s, cell, d);
        double mean = moe_exact_value01(sum.score_hi, sum.score_lo) / t.tokens / device_share(b, sum);
        loss[MOE_LOSS_DEVICE] += device_f(s, t, sum) * mean;
        loss[MOE_LOSS_COMM] += comm_f(b, s, cell, t, sum, d) * mean;
    }
    if (b->has_logits) loss[MOE_LOSS_Z] = moe_exact_value(cell + MOE_STAT_Z) / t.tokens;
}

void moe_balance_coefficients(const moe_balance *b, const moe_placement *p, const moe_stats *s, int64_t *cell, double *a) {
    totals t = totals_of(s, cell);
    for (int32_t i = 0; i < s->num_experts; i++)
        a[i] = 0;
    if (t.tokens == 0) return;
    for (int32_t d = 0; d < s->devices; d++) {
        device_sums sum = sums_of_device(p, s, cell, d);
        double of_device = b->alpha[MOE_LOSS_DEVICE] * device_f(s, t, sum) + b->alpha[MOE_LOSS_COMM] * comm_f(b, s, cell, t, sum, d);
        for (int32_t slot = 0; slot < p->slots_per_device; slot++)
            a[p->expert_at[(int64_t)d * p->slots_per_device + slot]] = of_device / device_share(b, sum);
    }
    for (int32_t i = 0; i < s->num_experts; i++)
        a[i] += b->alpha[MOE_LOSS_EXPERT] * expert_f(s, cell, t, i);
}

void moe_balance_ideal(const moe_balance *b, const moe_stats *s, int64_t *cell, double ideal[MOE_NUM_LOSSES]) {
    totals t = totals_of(s, cell);
    double share = b->device_p == MOE_DEVICE_P_MEAN ? (double)s->devices / s->num_experts : 1.0, sent = 0;
    for (int32_t d = 0; d < s->devices; d++)
        sent += (double)moe_stats_device_tokens(s, cell)[d];
    if (b->comm_count == MOE_COUNT_SELECTIONS) sent = t.selections;
    ideal[MOE_LOSS_EXPERT] = 1;
    ideal[MOE_LOSS_DEVICE] = share;
    ideal[MOE_LOSS_COMM] = t.tokens > 0 ? share * sent / t.tokens / b->comm_limit : 0;
    ideal[MOE_LOSS_Z] = NAN;
}
