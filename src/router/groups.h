/* groups.h: group limits: a token may only go to the M groups of experts with the best scores.
 * Groups are contiguous blocks of N / G experts. docs/method.md section 1.4. */
#ifndef MOESIM_ROUTER_GROUPS_H
#define MOESIM_ROUTER_GROUPS_H

#include <stdbool.h>
#include <stdint.h>

#include "router/settings.h"
#include "router/tournament.h"

/* Scores of all groups, score [groups], from the selection scores; -inf for a group
 * whose experts are all disabled. */
typedef void moe_group_scores(const moe_tournament *b, const moe_router *r, double *score);

typedef struct moe_group_limit_row { /* a row of the table */
    const char *name;                /* as the configuration writes it */
    moe_group_scores *scores;        /* NULL: there is no limit, all experts are one group */
    const char *rule;                /* the same in words, for the reader of --explain */
    bool quota; /* exactly K / M experts in each admitted group, in place of the K best of all */
} moe_group_limit_row;

enum { MOE_NUM_GROUP_LIMITS = MOE_GROUP_QUOTA + 1 };
extern const moe_group_limit_row moe_group_limits[MOE_NUM_GROUP_LIMITS]; /* by moe_group_limit */

/* Local. The row of a router's limit. */
const moe_group_limit_row *moe_groups_limit(const moe_router *r);

/* Local. How many groups the experts are ranked in: G, or 1 without a limit. */
int32_t moe_groups_number(const moe_router *r);

/* Local. Admits the M groups with the best scores: b->kept and b->num_kept. Among equals the lower
 * index comes first; a group whose experts are all disabled is not admitted. Without a limit, or
 * where M >= G, all are. */
void moe_groups_admit(moe_tournament *b, const moe_router *r);

/* Local. Number of distinct groups among `count` experts. */
int32_t moe_groups_distinct(const moe_router *r, const int32_t *expert, int32_t count);

#endif
