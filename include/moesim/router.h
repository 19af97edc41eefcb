/* router.h: from logits to chosen experts and combine weights. Layer 2 (decide): pure, per rank, no MPI. method.md section 1.
 *
 * Per token: z [N] -> scores s = score_func(z) -> selection score s + b -> group limit -> top K -> weights g from s.
 * Scores, selection scores, group scores and sums are double in every build; ties: higher first, then lower index, for groups and experts;
 * a logit of -inf disables an expert for that token (score 0, never selected); fewer than K available: what there is, is taken.
 * Results are the same bits at any vector width (no fused multiply-add, fixed lanes of sums) and any number of threads. */
#ifndef MOESIM_ROUTER_H
#define MOESIM_ROUTER_H

#include "moesim/config.h"
#include "moesim/data.h"
#include "moesim/placement.h"
#include "moesim/routing.h"
#include "moesim/stats.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct moe_router {
    int32_t num_experts, top_k, num_groups, topk_group;
    enum moe_score_func score_func;
    enum moe_group_limit group_limit;
    bool norm_topk_prob, norm_single, scale_normalized;
    double routed_scaling_factor;
    const double *bias;                   /* [N] or NULL; not owned */
    enum moe_aux_selection aux_selection; /* which selection the stats count */
    double alpha_z;                       /* coefficient of the z-loss in moe_router_dlogits (balance.z_loss) */
    bool comm_count_local;                /* whether a token that stays on its home device counts in device_tokens */
} moe_router;

enum { MOE_ROUTER_MAX_LOGIT = 1 << 20 };

/* Local. Fills in a router from a resolved configuration; bias [N] may be NULL. */
void moe_router_init(moe_router *r, const moe_config *c, const double *bias);

/* Local. s [N] = scores of one token with logits z [N] (method.md 1.2); softmax subtracts the maximum. *lse = log sum_i exp(z_i), unless
 * lse is NULL. A token whose experts are all disabled has scores 0 and lse = -inf. */
void moe_router_scores(const moe_router *r, const double *z, double *s, double *lse);

/* Local. s' [N] = s / sum(s) for sigmoid and sqrtsoftplus, s itself otherwise (what P and f''s losses use). May be in place. */
void moe_router_normalized(const moe_router *r, const double *s, double *normalized);

/* Local. Chooses up to top_k experts of one token from its scores s [N] (z [N] tells which experts are disabled); expert [top_k] in falling
 * order of s, then index; returns how many. weight [top_k] in double, before rounding. The fast version of tests/reference.c's.
 * For a few tokens: takes working memory anew for each call; moe_route does not. */
int32_t moe_router_select(const moe_router *r, const double *z, const double *s, int32_t *expert, double *weight);

/* Local. All tokens of a rank: fills routing (reserved by the callee) and adds every counted token to the cell of its segment
 * (stats has batch->num_segments cells, cleared). OpenMP over tokens. first_bad_token: smallest local token with NaN or +inf logits, or with
 * |logsumexp| >= MOE_ROUTER_MAX_LOGIT (its square could not be summed exactly); or -1. A bad token selects nobody and is not counted. */
void moe_route(const moe_router *r, const moe_batch *batch, const moe_placement *placement, moe_logits logits, moe_routing *routing,
               moe_stats *stats, int64_t *first_bad_token);

/* Local. The same bookkeeping for a routing that was recorded, not computed: expert ids idx [T,k] (-1 = none), weights [T,k] or NULL
 * (then g = score, or 1/k' without scores), scores [T,N] or NULL (then the score sums stay 0). Re-orders each token's experts to the order of routing.h. */
void moe_route_recorded(const moe_router *r, const moe_batch *batch, const moe_placement *placement, const int32_t *idx, int32_t k,
                        const real *weights, const double *scores, moe_routing *routing, moe_stats *stats);

/* Local. Number of distinct groups among `count` experts. */
int32_t moe_router_distinct_groups(const moe_router *r, const int32_t *expert, int32_t count);

/* Local. Theorem of method.md section 1 (rule max): over this rank's tokens, how many were eligible (no ties of selection scores, no disabled
 * expert) and how many of those violate distinct groups = min(M, distinct groups of the greedy choice). Looks at every stride-th token. */
void moe_router_check_groups(const moe_router *r, moe_logits logits, const moe_routing *routing, int64_t stride, int64_t *eligible,
                             int64_t *violations);

/* Local. dlogits [T,N] (double) += d(sum of balance losses + z-loss)/dz for tokens [begin,end), given the coefficient a [N] of their scope
 * (balance.h; it holds the alphas) and inverse_tokens = 1/(counted tokens of the scope x scopes): method.md section 2. The z-loss adds
 * alpha_z (of the router) 2 lse softmax_i inverse_tokens. Padding and bad tokens are skipped. OpenMP over tokens. */
void moe_router_dlogits(const moe_router *r, const moe_batch *batch, moe_logits logits, int64_t begin, int64_t end, const double *a,
                        double inverse_tokens, double *dlogits);

#endif
