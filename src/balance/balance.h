/* balance.h: f, P and the balance losses of a cell of statistics, and the coefficients of their
 * gradient. docs/method.md section 2. */
#ifndef MOESIM_BALANCE_BALANCE_H
#define MOESIM_BALANCE_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/losses.h"
#include "config/config.h"
#include "placement/placement.h"
#include "router/stats.h"

typedef struct moe_balance {
    double alpha[MOE_NUM_LOSSES];
    double alpha_all_layers; /* of the loss over the tokens of all layers put together */
    enum moe_loss form;      /* the loss that alpha_expert trains, of each layer or of all */
    int32_t comm_limit;      /* M of f'' */
    enum moe_comm_count comm_count;
    enum moe_device_p device_p;
    enum moe_importance_of importance_of;
    enum moe_load_form load_form;
    bool has_scores; /* false: P unknown (recorded routing without scores): losses are NaN and
                        reported as null */
    bool has_logits; /* false: recorded routing: the z-loss is NaN */
} moe_balance;

/* Local. From a section of a resolved configuration, for a routing that is computed here; whoever
 * reads a recorded one sets has_scores and has_logits. comm_limit: M of f''. */
void moe_balance_init(moe_balance *b,
                      const moe_balance_config *c,
                      int32_t num_layers,
                      int32_t comm_limit);

/* Local. alpha [MOE_NUM_LOSSES]: what each loss is multiplied by; alpha_expert goes to the loss
 * that aux_form names. */
void moe_balance_alphas(const moe_balance_config *c,
                        int32_t num_layers,
                        double alpha[MOE_NUM_LOSSES]);

/* Local. The loss that alpha_expert trains. */
enum moe_loss moe_balance_form(const moe_balance_config *c);

/* Local. Whether that loss is reported over the tokens of all layers too: Mixtral's always,
 * Switch's with aux_layers = all. */
bool moe_balance_has_all_layers(const moe_balance_config *c);

/* Local. What the loss over all layers is multiplied by where it trains in place of each layer's
 * own (aux_layers = all, and more than one layer), else 0. */
double moe_balance_alpha_all_layers(const moe_balance_config *c, int32_t num_layers);

/* Local. Whether a loss is defined: without scores only those of counts and weights are. */
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

/* What a device adds to the device loss and to the communication loss: f'_d P'_d and f''_d P'_d. */
typedef struct moe_device_term {
    int64_t selections; /* served by the device, the numerator of f' */
    double device_f;    /* f'_d, divided by |E_d| with device_p = mean */
    double comm_f;      /* f''_d likewise */
    double score;       /* P'_d as a sum */
} moe_device_term;

/* Local. The term of device d, of a cell with tokens and scores. */
moe_device_term moe_balance_device_term(const moe_balance *b,
                                        const moe_placement *p,
                                        const moe_stats *s,
                                        int64_t *cell,
                                        int32_t d);

enum { MOE_COEFFICIENTS = 3 }; /* doubles per expert */

/* Local. a [3N], for moe_loss_gradient, which divides all of it by the cell's tokens and by the
 * number of scopes:
 *   a[i]       of P_i: alpha1 f_i + alpha2 f'_d(i) + alpha3 f''_d(i) + those of the other forms
 *              (device_p = mean divides the second and third by |E_d|; of an expert with replicas
 *              they are the means over its devices, each weighted with q_{i,d})
 *   a[N + i]   of the weights of expert i: T alpha dL/dI_i of the importance loss
 *   a[2N + i]  of its smooth load: T alpha dL/dLoad_i of the load loss */
void moe_balance_coefficients(const moe_balance *b,
                              const moe_placement *p,
                              const moe_stats *s,
                              int64_t *cell,
                              double *a);

/* Local. a [N] += what the loss over the tokens of all layers adds to the coefficients of P_i:
 * alpha_all_layers N c_i / T (switch: N F_i) of `cell`, which holds the counts of all layers, times
 * `share`, the divisor of the layer's own cell over the divisor of this one. */
void moe_balance_add_all_layers(const moe_balance *b,
                                const moe_stats *s,
                                int64_t *cell,
                                double share,
                                double *a);

/* Local. ideal [MOE_NUM_LOSSES]: what each loss would be at perfect balance with the traffic of
 * this cell: 1 for expert and device, mean(X)/M for comm (K-bar/M where selections are counted),
 * NaN for z, 1 for switch and gshard, K-bar for mixtral, 0 for importance, load and usage_variance,
 * log N for entropy, -(log N)/N for entropy_z. device_p = mean divides those of device and comm by
 * the slots of a device. */
void moe_balance_ideal(const moe_balance *b,
                       const moe_stats *s,
                       int64_t *cell,
                       double ideal[MOE_NUM_LOSSES]);

/* Local, pure. The factor of all loss coefficients in training step `step`, which counts from 0: it
 * is 0 before balance.begin_step, then rises linearly over balance.ramp_steps up to 1. */
double moe_balance_alpha_factor(const moe_balance_config *c, int64_t step);

#endif
