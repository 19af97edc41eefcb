/* balance.h: f, P and the balance losses of a cell of stats, and their gradient's coefficients. Layer 2 (decide): pure. method.md section 2. */
#ifndef MOESIM_BALANCE_H
#define MOESIM_BALANCE_H

#include "moesim/config.h"
#include "moesim/placement.h"
#include "moesim/stats.h"
#include <stdbool.h>
#include <stdint.h>

enum moe_loss { MOE_LOSS_EXPERT, MOE_LOSS_DEVICE, MOE_LOSS_COMM, MOE_LOSS_Z, MOE_NUM_LOSSES };
extern const char *const moe_loss_names[MOE_NUM_LOSSES]; /* "expert", "device", "comm", "z" */

typedef struct moe_balance {
    double alpha[MOE_NUM_LOSSES];
    int32_t comm_limit; /* M of f'' */
    enum moe_comm_count comm_count;
    enum moe_device_p device_p;
    bool has_scores; /* false: P unknown (recorded routing without scores): losses are NaN and reported as null */
    bool has_logits; /* false: recorded routing: the z-loss is NaN */
} moe_balance;

/* Local. From a resolved configuration. */
void moe_balance_init(moe_balance *b, const moe_config *c);

/* Local. loss [MOE_NUM_LOSSES] raw (alpha = 1) of one cell. A cell without tokens gives 0. */
void moe_balance_losses(const moe_balance *b, const moe_placement *p, const moe_stats *s, int64_t *cell, double loss[MOE_NUM_LOSSES]);

/* Local. a [N]: a_i = alpha1 f_i + alpha2 f'_d(i) + alpha3 f''_d(i) (device_p = mean divides the last two by |E_d|). */
void moe_balance_coefficients(const moe_balance *b, const moe_placement *p, const moe_stats *s, int64_t *cell, double *a);

/* Local. What each loss would be at perfect balance with the traffic of this cell: 1, 1, mean(X)/M (K-bar/M when selections are counted),
 * and NaN for z; device_p = mean divides the second and third by N/D. */
void moe_balance_ideal(const moe_balance *b, const moe_stats *s, int64_t *cell, double ideal[MOE_NUM_LOSSES]);

#endif
