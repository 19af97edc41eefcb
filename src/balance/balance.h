/* balance.h: f, P and the balance losses of a cell of stats, and their gradient's coefficients.
 * Layer 2 (decide): pure. method.md section 2. */
#ifndef MOESIM_BALANCE_BALANCE_H
#define MOESIM_BALANCE_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "placement/placement.h"
#include "router/stats.h"

/* MOE_LOSS_EXPERT, MOE_LOSS_DEVICE, ...: losses.def says what each one is. */
enum moe_loss {
#define LOSS(id, key, title) MOE_LOSS_##id,
#include "balance/losses.def"
    MOE_NUM_LOSSES
};
extern const char *const moe_loss_names[MOE_NUM_LOSSES];  /* keys in JSON: "expert", "comm", ... */
extern const char *const moe_loss_titles[MOE_NUM_LOSSES]; /* "expert", "communication", ... */

typedef struct moe_balance {
    double alpha[MOE_NUM_LOSSES];
    double alpha_all_layers; /* of Mixtral's loss over the tokens of all layers put together */
    int32_t comm_limit;      /* M of f'' */
    enum moe_comm_count comm_count;
    enum moe_device_p device_p;
    enum moe_importance_of importance_of;
    enum moe_load_form load_form;
    bool has_scores; /* false: P unknown (recorded routing without scores): losses are NaN and
                        reported as null */
    bool has_logits; /* false: recorded routing: the z-loss is NaN */
} moe_balance;

/* Local. From a resolved configuration. */
void moe_balance_init(moe_balance *b, const moe_config *c);

/* Local. alpha [MOE_NUM_LOSSES] of a resolved configuration: what each loss is multiplied by;
 * alpha_expert goes to the loss that aux_form names. */
void moe_balance_alphas(const moe_config *c, double alpha[MOE_NUM_LOSSES]);

/* Local. Whether Mixtral's loss is reported over all layers too (aux_form = mixtral); what it is
 * multiplied by where it trains in place of each layer's (aux_layers = all and more than one layer:
 * with one both are the same), else 0. */
bool moe_balance_has_all_layers(const moe_config *c);
double moe_balance_alpha_all_layers(const moe_config *c);

/* Local. Whether a loss is defined here: without scores only those of counts and weights are. */
bool moe_balance_defined(const moe_balance *b, enum moe_loss loss);

/* Local. loss [MOE_NUM_LOSSES] raw (alpha = 1) of one cell, NaN where not defined. A cell without
 * tokens gives 0. */
void moe_balance_losses(const moe_balance *b,
                        const moe_placement *p,
                        const moe_stats *s,
                        int64_t *cell,
                        double loss[MOE_NUM_LOSSES]);

/* Local. P_i = (1/T) sum_t s'_{i,t} of a cell with tokens. */
double moe_balance_mean_score(const moe_stats *s, int64_t *cell, int32_t i);

/* Local. Mean and sample variance over the experts of what importance, load or usage_variance
 * (selections) look at. */
void moe_balance_variation(const moe_balance *b,
                           const moe_stats *s,
                           int64_t *cell,
                           enum moe_loss loss,
                           double *mean,
                           double *variance);

enum { MOE_COEFFICIENTS = 3 }; /* doubles per expert */

/* Local. a [3N], for moe_router_loss_gradient, which divides all of it by the cell's tokens (and
 * the number of scopes): a[i]       of P_i: alpha1 f_i + alpha2 f'_d(i) + alpha3 f''_d(i) + those
 * of the other forms (device_p = mean divides the 2nd and 3rd by |E_d|) a[N + i]   of the weights
 * of expert i: T alpha dL/dI_i of the importance loss a[2N + i]  of its smooth load: T alpha
 * dL/dLoad_i of the load loss */
void moe_balance_coefficients(
    const moe_balance *b, const moe_placement *p, const moe_stats *s, int64_t *cell, double *a);

/* Local. a [N] += what the loss over the tokens of all layers adds to the coefficients of P_i:
 * alpha_all_layers N c_i / T of `cell`, which holds the counts of all layers, times `share` =
 * divisor of the layer's own cell / divisor of this one. */
void moe_balance_add_all_layers(
    const moe_balance *b, const moe_stats *s, int64_t *cell, double share, double *a);

/* Local. What each loss would be at perfect balance with the traffic of this cell: 1, 1, mean(X)/M
 * (K-bar/M when selections are counted), NaN for z, 1 and 1 for switch and gshard, K-bar for
 * mixtral, 0 for importance, load and usage_variance, log N for entropy, -(log N)/N for entropy_z;
 * device_p = mean divides the second and third by N/D. */
void moe_balance_ideal(const moe_balance *b,
                       const moe_stats *s,
                       int64_t *cell,
                       double ideal[MOE_NUM_LOSSES]);

#endif
