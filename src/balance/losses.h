/* losses.h: the table of balance losses: of what kind each is, what it needs, its formula as it is
 * shown, and the factors f_i of those that are L = sum_i f_i P_i. docs/method.md section 2. */
#ifndef MOESIM_BALANCE_LOSSES_H
#define MOESIM_BALANCE_LOSSES_H

#include <stdint.h>

#include "router/stats.h"

/* losses.def has one row for each loss and says what each one is. */
enum moe_loss {
#define LOSS(id, key, title) MOE_LOSS_##id,
#include "balance/losses.def"
    MOE_NUM_LOSSES
};
extern const char *const moe_loss_names[MOE_NUM_LOSSES];  /* keys in JSON: "expert", "comm", ... */
extern const char *const moe_loss_titles[MOE_NUM_LOSSES]; /* "expert", "communication", ... */

/* What a loss is made of. Its gradient follows from that: the counts are held fixed, so that a
 * factor f_i is at once what P_i is multiplied by and the derivative by P_i. */
enum moe_loss_kind {
    MOE_LOSS_OVER_EXPERTS,    /* sum over experts of f_i P_i */
    MOE_LOSS_OVER_DEVICES,    /* sum over devices of f_d P'_d (balance.h) */
    MOE_LOSS_VARIATION,       /* a variance over experts */
    MOE_LOSS_MEAN_OVER_TOKENS /* one value, whatever the scope */
};

/* What has to be known: where the routing was recorded, scores or logits may be missing. */
enum moe_loss_needs { MOE_LOSS_NEEDS_COUNTS, MOE_LOSS_NEEDS_SCORES, MOE_LOSS_NEEDS_LOGITS };

/* Sums over a whole cell: its tokens T, their selections S, and those of them that were first
 * choices. */
typedef struct moe_loss_totals {
    double tokens, selections, firsts;
} moe_loss_totals;

/* f_i of expert i, from the counts of a cell with tokens. */
typedef double moe_loss_factor(const moe_stats *s,
                               int64_t *cell,
                               const moe_loss_totals *t,
                               int32_t i);

typedef struct moe_loss_row {
    const char *name;    /* in a derivation: "expert loss" */
    const char *formula; /* likewise */
    enum moe_loss_kind kind;
    enum moe_loss_needs needs;
    moe_loss_factor *factor;                             /* of the losses over experts, else NULL */
    double (*at_balance)(const moe_loss_totals *totals); /* likewise: the loss where all experts
                                                            have as many selections */
} moe_loss_row;

extern const moe_loss_row moe_loss_rows[MOE_NUM_LOSSES]; /* by moe_loss */

/* Local. The sums over a cell. */
moe_loss_totals moe_loss_totals_of(const moe_stats *s, int64_t *cell);

#endif
