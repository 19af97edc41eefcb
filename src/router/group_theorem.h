/* group_theorem.h: a theorem that every run of moesim checks on its own tokens. docs/method.md
 * section 1.
 *
 * With group_limit = max, no ties among the K + 1 best experts, no disabled expert and M N/G >= K,
 * a token reaches exactly min(M, number of groups of its greedy top-K) groups: the M groups with
 * the largest maxima hold the first experts of M different groups in greedy order. */
#ifndef MOESIM_ROUTER_GROUP_THEOREM_H
#define MOESIM_ROUTER_GROUP_THEOREM_H

#include <stdint.h>

#include "data/batch.h"
#include "router/routing.h"
#include "router/settings.h"

/* Local. Over this rank's tokens: how many meet the conditions, and how many of those violate the
 * theorem. Looks at every stride-th token that is routed (moe_batch_routed), and costs about as
 * much as scoring them. The tokens are shared among the threads. */
void moe_group_theorem_check(const moe_router *r,
                             moe_logits logits,
                             const moe_routing *routing,
                             const uint8_t *routed,
                             int64_t stride,
                             int64_t *eligible,
                             int64_t *violations);

#endif
