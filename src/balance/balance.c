/* balance.c: f, P and the balance losses of one cell of counts. docs/method.md section 2;
 * DeepSeek-V2 (arXiv 2405.04434) Eqs. 23 to 31.
 *
 * With c_i selections of expert i, S = sum_i c_i of them by T tokens, and K-bar = S/T in K's place:
 *   f_i   = N/(K-bar T) c_i = N c_i / S                      P_i  = (1/T) sum_t s'_{i,t}
 *   f'_d  = mean of f over E_d = D/S sum_{i in E_d} c_i      P'_d = sum (or mean) of P over E_d
 *           with replicas D/S (selections that d serves)     and sum_i q_{i,d} P_i, where q_{i,d}
 *           is the share of expert i's selections that device d serves
 *   f''_d = D/(M T) (distinct tokens sent to d, or selections of d)
 *   L1 = sum_i f_i P_i    L2 = sum_d f'_d P'_d    L3 = sum_d f''_d P'_d    Lz = (1/T) sum_t lse_t^2
 * and, under the names of other systems,
 *   switch, gshard   N sum_i F_i P_i, F_i the share of first choices (arXiv 2101.03961 Eq. 4;
 *                    2006.16668 Algorithm 1)
 *   mixtral          N sum_i (c_i / T) P_i = K-bar L1 (Hugging Face's load_balancing_loss_func of
 *                    one layer)
 *                    Over all layers, switch and mixtral are the same of a cell that holds the
 *                    counts and scores of all layers, with T tokens of each of them
 *   importance       CV^2 of I_i = sum_t g_{t,i}, or of sum_t s'_{t,i} (1701.06538 Eq. 7)
 *   load             CV^2 of c_i, or of the smooth load (1701.06538 Eq. 11)
 *   usage_variance   variance of c_i / S
 *   entropy          -(1/T) sum_t sum_i s' log s'
 *   entropy_z        -entropy / N
 * CV^2(x) = variance / mean^2; variances over the experts are divided by N - 1. */
#include "balance/balance.h"

#include <math.h>

#include "base/exact.h"
#include "base/status.h"

enum moe_loss moe_balance_form(const moe_balance_config *c) {
    switch (c->aux_form) { /* without a default, so that the compiler asks for each */
    case MOE_AUX_DEEPSEEK:
        return MOE_LOSS_EXPERT;
    case MOE_AUX_SWITCH:
        return MOE_LOSS_SWITCH;
    case MOE_AUX_GSHARD:
        return MOE_LOSS_GSHARD;
    case MOE_AUX_MIXTRAL:
        return MOE_LOSS_MIXTRAL;
    }
    MOE_ASSERT(false);
    return MOE_NUM_LOSSES;
}

bool moe_balance_has_all_layers(const moe_balance_config *c) {
    return c->aux_form == MOE_AUX_MIXTRAL ||
           (c->aux_form == MOE_AUX_SWITCH && c->aux_layers == MOE_LAYERS_ALL);
}

/* With one layer both losses are the same, and the layer's own trains. */
static bool trains_over_all_layers(const moe_balance_config *c, int32_t num_layers) {
    return moe_balance_has_all_layers(c) && c->aux_layers == MOE_LAYERS_ALL && num_layers > 1;
}

double moe_balance_alpha_all_layers(const moe_balance_config *c, int32_t num_layers) {
    return trains_over_all_layers(c, num_layers) ? c->alpha_expert : 0;
}

void moe_balance_alphas(const moe_balance_config *c,
                        int32_t num_layers,
                        double alpha[MOE_NUM_LOSSES]) {
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        alpha[l] = 0;
    }
    if (!trains_over_all_layers(c, num_layers)) {
        alpha[moe_balance_form(c)] = c->alpha_expert;
    }
    alpha[MOE_LOSS_DEVICE] = c->alpha_device;
    alpha[MOE_LOSS_COMM] = c->alpha_comm;
    alpha[MOE_LOSS_Z] = c->z_loss;
    alpha[MOE_LOSS_IMPORTANCE] = c->importance_loss;
    alpha[MOE_LOSS_LOAD] = c->load_loss;
}

void moe_balance_init(moe_balance *b,
                      const moe_balance_config *c,
                      int32_t num_layers,
                      int32_t comm_limit) {
    *b = (moe_balance){.comm_limit = comm_limit,
                       .comm_count = c->comm_count,
                       .device_p = c->device_p,
                       .importance_of = c->importance_of,
                       .load_form = c->load_form,
                       .has_scores = true,
                       .has_logits = true};
    moe_balance_alphas(c, num_layers, b->alpha);
    b->alpha_all_layers = moe_balance_alpha_all_layers(c, num_layers);
    b->form = moe_balance_form(c);
}

static enum moe_loss_needs needs_of(const moe_balance *b, enum moe_loss loss) {
    bool by_weights = loss == MOE_LOSS_IMPORTANCE && b->importance_of == MOE_IMPORTANCE_WEIGHTS;
    bool by_counts = loss == MOE_LOSS_LOAD && b->load_form == MOE_LOAD_SELECTIONS;
    return by_weights || by_counts ? MOE_LOSS_NEEDS_COUNTS : moe_loss_rows[loss].needs;
}

bool moe_balance_defined(const moe_balance *b, enum moe_loss loss) {
    const bool has[] = {[MOE_LOSS_NEEDS_COUNTS] = true,
                        [MOE_LOSS_NEEDS_SCORES] = b->has_scores,
                        [MOE_LOSS_NEEDS_LOGITS] = b->has_logits};
    return has[needs_of(b, loss)];
}

static double total(const int64_t *x, int32_t n) {
    int64_t sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += x[i];
    }
    return (double)sum;
}

/* --- variation over the experts --- */

static double score_sum(const moe_stats *s, int64_t *cell, int32_t i) {
    return moe_exact_value01(moe_stats_score_hi(s, cell)[i], moe_stats_score_lo(s, cell)[i]);
}

/* I_i: the sum of the weights of expert i, or of its scores without noise. */
static double importance(const moe_balance *b, const moe_stats *s, int64_t *cell, int32_t i) {
    (void)b;
    return moe_exact_value01(moe_stats_weight_hi(s, cell)[i], moe_stats_weight_lo(s, cell)[i]);
}

/* The selections of expert i, or its smooth load. */
static double load(const moe_balance *b, const moe_stats *s, int64_t *cell, int32_t i) {
    if (b->load_form == MOE_LOAD_SELECTIONS) {
        return (double)moe_stats_counts(s, cell)[i];
    }
    return moe_exact_value01(moe_stats_load_hi(s, cell)[i], moe_stats_load_lo(s, cell)[i]);
}

typedef double quantity(const moe_balance *b, const moe_stats *s, int64_t *cell, int32_t i);

typedef struct variation {
    double mean, variance; /* sample variance (N - 1); 0 for one expert */
} variation;

/* Over the experts, of the quantity x. */
static variation variation_of(quantity *x,
                              const moe_balance *b,
                              const moe_stats *s,
                              int64_t *cell) {
    int32_t n = s->num_experts;
    variation v = {0};
    for (int32_t i = 0; i < n; i++) {
        v.mean += x(b, s, cell, i);
    }
    v.mean /= n; /* exact where all counts are equal, so that the variance is 0 */
    for (int32_t i = 0; i < n && n > 1; i++) {
        double gap = x(b, s, cell, i) - v.mean;
        v.variance += gap * gap / (n - 1);
    }
    return v;
}

/* CV^2, or 0 where nothing was added up. */
static double squared_variation(variation v) {
    return v.mean != 0 ? v.variance / (v.mean * v.mean) : 0;
}

/* d CV^2 / dx_i = 2 (x_i - mean) / ((N - 1) mean^2) - 2 variance / (N mean^3) */
static double variation_slope(variation v, double x, int32_t n) {
    if (v.mean == 0 || n < 2) {
        return 0;
    }
    return 2 * (x - v.mean) / ((n - 1) * v.mean * v.mean) -
           2 * v.variance / (n * v.mean * v.mean * v.mean);
}

/* --- devices --- */

/* Sums over the experts of one device. */
typedef struct device_sums {
    int64_t experts, selections;
    double score; /* of the experts' scores; an integer's value where there are no replicas */
} device_sums;

/* q_{i,d} of the replica of expert i in a slot: the part of the expert's selections that it serves,
 * 1 / replicas where there are none. */
static double share_of_slot(const moe_placement *p,
                            const moe_stats *s,
                            int64_t *cell,
                            int32_t slot) {
    int32_t i = p->expert_at[slot];
    int64_t count = moe_stats_counts(s, cell)[i];
    if (!p->replicated) {
        return 1;
    }
    return count > 0 ? (double)moe_stats_served(s, cell)[slot] / (double)count
                     : 1.0 / (p->first[i + 1] - p->first[i]);
}

static device_sums sums_of_replicas(const moe_placement *p,
                                    const moe_stats *s,
                                    int64_t *cell,
                                    int32_t d) {
    device_sums sum = {.experts = p->slots_per_device};
    for (int32_t slot = d * p->slots_per_device; slot < (d + 1) * p->slots_per_device; slot++) {
        sum.selections += moe_stats_served(s, cell)[slot];
        sum.score += share_of_slot(p, s, cell, slot) * score_sum(s, cell, p->expert_at[slot]);
    }
    return sum;
}

static device_sums sums_of_device(const moe_placement *p,
                                  const moe_stats *s,
                                  int64_t *cell,
                                  int32_t d) {
    device_sums sum = {0};
    int64_t hi = 0, lo = 0;
    if (p->replicated) {
        return sums_of_replicas(p, s, cell, d);
    }
    for (int32_t slot = 0; slot < p->slots_per_device; slot++) {
        int32_t i = p->expert_at[(int64_t)d * p->slots_per_device + slot];
        sum.experts++;
        sum.selections += moe_stats_counts(s, cell)[i];
        hi += moe_stats_score_hi(s, cell)[i];
        lo += moe_stats_score_lo(s, cell)[i];
    }
    sum.score = moe_exact_value01(hi, lo);
    return sum;
}

/* f'_d = D/S sum_{i in E_d} c_i */
static double device_f(const moe_stats *s, moe_loss_totals t, device_sums sum) {
    return t.selections > 0 ? s->devices * (double)sum.selections / t.selections : 0;
}

/* f''_d = D/(M T) (tokens or selections of d) */
static double comm_f(const moe_balance *b,
                     const moe_stats *s,
                     int64_t *cell,
                     moe_loss_totals t,
                     device_sums sum,
                     int32_t d) {
    double count =
        (double)(b->comm_count == MOE_COUNT_SELECTIONS ? sum.selections
                                                       : moe_stats_device_tokens(s, cell)[d]);
    return s->devices * count / (b->comm_limit * t.tokens);
}

/* What P summed over a device is divided by. */
static double device_share(const moe_balance *b, device_sums sum) {
    return b->device_p == MOE_DEVICE_P_MEAN ? (double)sum.experts : 1.0;
}

/* The losses that are sums over experts. An expert that nobody chose adds 0 to each, and there are
 * many such where a cell has fewer selections than experts. */
static void expert_losses(const moe_stats *s,
                          int64_t *cell,
                          moe_loss_totals t,
                          double loss[MOE_NUM_LOSSES]) {
    const int64_t *counts = moe_stats_counts(s, cell), *first = moe_stats_first(s, cell);
    for (int32_t i = 0; i < s->num_experts; i++) {
        if (counts[i] == 0 && first[i] == 0) {
            continue;
        }
        double mean = score_sum(s, cell, i) / t.tokens;
        for (int l = 0; l < MOE_NUM_LOSSES; l++) {
            if (moe_loss_rows[l].kind == MOE_LOSS_OVER_EXPERTS) {
                loss[l] += moe_loss_rows[l].factor(s, cell, &t, i) * mean;
            }
        }
    }
    loss[MOE_LOSS_ENTROPY] = moe_exact_value(cell + MOE_STAT_ENTROPY) / t.tokens;
    loss[MOE_LOSS_ENTROPY_Z] = -loss[MOE_LOSS_ENTROPY] / s->num_experts;
}

static void device_losses(const moe_balance *b,
                          const moe_placement *p,
                          const moe_stats *s,
                          int64_t *cell,
                          moe_loss_totals t,
                          double loss[MOE_NUM_LOSSES]) {
    for (int32_t d = 0; d < s->devices; d++) {
        device_sums sum = sums_of_device(p, s, cell, d);
        double mean = sum.score / t.tokens / device_share(b, sum);
        loss[MOE_LOSS_DEVICE] += device_f(s, t, sum) * mean;
        loss[MOE_LOSS_COMM] += comm_f(b, s, cell, t, sum, d) * mean;
    }
}

moe_device_term moe_balance_device_term(const moe_balance *b,
                                        const moe_placement *p,
                                        const moe_stats *s,
                                        int64_t *cell,
                                        int32_t d) {
    moe_loss_totals t = moe_loss_totals_of(s, cell);
    device_sums sum = sums_of_device(p, s, cell, d);
    return (moe_device_term){.selections = sum.selections,
                             .device_f = device_f(s, t, sum) / device_share(b, sum),
                             .comm_f = comm_f(b, s, cell, t, sum, d) / device_share(b, sum),
                             .score = sum.score / t.tokens};
}

/* The losses that need no score. */
static void count_losses(const moe_balance *b,
                         const moe_stats *s,
                         int64_t *cell,
                         moe_loss_totals t,
                         double loss[MOE_NUM_LOSSES]) {
    moe_balance counts = {.load_form = MOE_LOAD_SELECTIONS};
    double selections = t.selections > 0 ? t.selections : 1;
    const variation of_counts = variation_of(load, &counts, s, cell);
    loss[MOE_LOSS_USAGE_VARIANCE] = of_counts.variance / (selections * selections);
    if (moe_balance_defined(b, MOE_LOSS_IMPORTANCE)) {
        loss[MOE_LOSS_IMPORTANCE] = squared_variation(variation_of(importance, b, s, cell));
    }
    if (moe_balance_defined(b, MOE_LOSS_LOAD)) {
        bool same = b->load_form == MOE_LOAD_SELECTIONS;
        loss[MOE_LOSS_LOAD] = squared_variation(same ? of_counts : variation_of(load, b, s, cell));
    }
}

double moe_balance_mean_score(const moe_stats *s, int64_t *cell, int32_t i) {
    return score_sum(s, cell, i) / (double)cell[MOE_STAT_TOKENS];
}

void moe_balance_variation(const moe_balance *b,
                           const moe_stats *s,
                           int64_t *cell,
                           enum moe_loss loss,
                           double *mean,
                           double *variance) {
    moe_balance counts = {.load_form = MOE_LOAD_SELECTIONS};
    variation v = loss == MOE_LOSS_IMPORTANCE
                      ? variation_of(importance, b, s, cell)
                      : variation_of(load, loss == MOE_LOSS_LOAD ? b : &counts, s, cell);
    *mean = v.mean;
    *variance = v.variance;
}

void moe_balance_losses(const moe_balance *b,
                        const moe_placement *p,
                        const moe_stats *s,
                        int64_t *cell,
                        double loss[MOE_NUM_LOSSES]) {
    moe_loss_totals t = moe_loss_totals_of(s, cell);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        loss[l] = moe_balance_defined(b, (enum moe_loss)l) ? 0 : NAN;
    }
    if (t.tokens == 0) {
        return;
    }
    count_losses(b, s, cell, t, loss);
    if (!b->has_scores) {
        return;
    }
    expert_losses(s, cell, t, loss);
    device_losses(b, p, s, cell, t, loss);
    if (b->has_logits) {
        loss[MOE_LOSS_Z] = moe_exact_value(cell + MOE_STAT_Z) / t.tokens;
    }
}

/* a[i] += what the losses over experts multiply P_i by. */
static void add_expert_coefficients(const moe_balance *b,
                                    const moe_stats *s,
                                    int64_t *cell,
                                    moe_loss_totals t,
                                    double *a) {
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        const moe_loss_row *row = &moe_loss_rows[l];
        for (int32_t i = 0; i < s->num_experts && row->factor && b->alpha[l] != 0; i++) {
            a[i] += b->alpha[l] * row->factor(s, cell, &t, i);
        }
    }
}

/* to[i] += T alpha d CV^2(x) / dx_i. */
static void add_variation(const moe_balance *b,
                          const moe_stats *s,
                          int64_t *cell,
                          quantity *x,
                          double alpha,
                          double *to) {
    if (alpha == 0) {
        return;
    }
    variation v = variation_of(x, b, s, cell);
    for (int32_t i = 0; i < s->num_experts; i++) {
        to[i] += alpha * (double)cell[MOE_STAT_TOKENS] *
                 variation_slope(v, x(b, s, cell, i), s->num_experts);
    }
}

void moe_balance_coefficients(const moe_balance *b,
                              const moe_placement *p,
                              const moe_stats *s,
                              int64_t *cell,
                              double *a) {
    int32_t n = s->num_experts;
    moe_loss_totals t = moe_loss_totals_of(s, cell);
    for (int32_t i = 0; i < MOE_COEFFICIENTS * n; i++) {
        a[i] = 0;
    }
    if (t.tokens == 0) {
        return;
    }
    for (int32_t d = 0; d < s->devices; d++) {
        device_sums sum = sums_of_device(p, s, cell, d);
        double of_device = b->alpha[MOE_LOSS_DEVICE] * device_f(s, t, sum) +
                           b->alpha[MOE_LOSS_COMM] * comm_f(b, s, cell, t, sum, d);
        for (int32_t slot = d * p->slots_per_device; slot < (d + 1) * p->slots_per_device; slot++) {
            a[p->expert_at[slot]] +=
                share_of_slot(p, s, cell, slot) * (of_device / device_share(b, sum));
        }
    }
    add_expert_coefficients(b, s, cell, t, a);
    add_variation(b, s, cell, importance, b->alpha[MOE_LOSS_IMPORTANCE], a + n);
    if (b->load_form != MOE_LOAD_SELECTIONS) {
        add_variation(b, s, cell, load, b->alpha[MOE_LOSS_LOAD], a + 2 * n);
    }
}

void moe_balance_add_all_layers(const moe_balance *b,
                                const moe_stats *s,
                                int64_t *cell,
                                double share,
                                double *a) {
    moe_loss_totals t = moe_loss_totals_of(s, cell);
    if (t.tokens == 0) {
        return;
    }
    for (int32_t i = 0; i < s->num_experts; i++) {
        a[i] += share * b->alpha_all_layers * moe_loss_rows[b->form].factor(s, cell, &t, i);
    }
}

void moe_balance_ideal(const moe_balance *b,
                       const moe_stats *s,
                       int64_t *cell,
                       double ideal[MOE_NUM_LOSSES]) {
    moe_loss_totals t = moe_loss_totals_of(s, cell);
    int32_t slots = s->slots ? s->slots : s->num_experts;
    double share = b->device_p == MOE_DEVICE_P_MEAN ? (double)s->devices / slots : 1.0;
    double sent = b->comm_count == MOE_COUNT_SELECTIONS
                      ? t.selections
                      : total(moe_stats_device_tokens(s, cell), s->devices);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        ideal[l] = moe_loss_rows[l].at_balance ? moe_loss_rows[l].at_balance(&t) : 0;
    }
    ideal[MOE_LOSS_DEVICE] = share;
    ideal[MOE_LOSS_COMM] = t.tokens > 0 ? share * sent / t.tokens / b->comm_limit : 0;
    ideal[MOE_LOSS_ENTROPY] = log(s->num_experts);
    ideal[MOE_LOSS_ENTROPY_Z] = -log(s->num_experts) / s->num_experts;
    ideal[MOE_LOSS_Z] = NAN;
}

double moe_balance_alpha_factor(const moe_balance_config *c, int64_t step) {
    int64_t begin = c->begin_step, ramp = c->ramp_steps;
    if (step < begin) {
        return 0;
    }
    return step - begin + 1 < ramp ? (double)(step - begin + 1) / (double)ramp : 1;
}
