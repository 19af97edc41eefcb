/* router.h: from logits to chosen experts and combine weights. Layer 2 (decide): pure, per rank, no
 * MPI. method.md section 1.
 *
 * Per token: z [N] -> scores s = score_func(z) -> selection score s + b -> group limit -> top K ->
 * weights g from s. Scores, selection scores, group scores and sums are double in every build;
 * ties: higher first, then lower index, for groups and experts; a logit of -inf disables an expert
 * for that token (score 0, never selected); fewer than K available: what there is, is taken.
 * Results are the same bits at any vector width (no fused multiply-add, fixed lanes of sums) and
 * any number of threads. */
#ifndef MOESIM_ROUTER_ROUTER_H
#define MOESIM_ROUTER_ROUTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/scratch.h"
#include "config/config.h"
#include "data/batch.h"
#include "placement/placement.h"
#include "router/routing.h"
#include "router/stats.h"

/* The logits of this rank's tokens before noise, and what the learned scale of the noise is made
 * of: for the smooth load (noisy.h). */
typedef struct moe_noisy {
    const real *clean, *v; /* [T,N]; v NULL unless noise_form = softplus */
} moe_noisy;

typedef struct moe_router {
    int32_t num_experts, top_k, num_groups, topk_group;
    enum moe_router_method method;
    int32_t devices;           /* D: round_robin deals to devices in turn; 0 counts as 1 */
    double top_p, temperature; /* top_p; a temperature of 0 counts as 1 */
    enum moe_temperature_on temperature_on;
    enum moe_second_choice second_choice;
    double sinkhorn_tolerance;
    int32_t sinkhorn_iterations;
    double noise, jitter, expert_dropout;
    enum moe_noise_form noise_form;
    enum moe_load_form load_form;
    uint64_t seed; /* seed, step, layer: keys of random choices; step, layer and training are set by
                      moe_router_set_step */
    int64_t step;
    int32_t layer;
    bool training;   /* noise and expert dropout act */
    bool evaluating; /* validation: sinkhorn chooses by plain top-k, as Megatron-Core does outside
                        training */
    enum moe_score_func score_func;
    enum moe_group_limit group_limit;
    bool norm_topk_prob, norm_single, scale_normalized;
    double routed_scaling_factor;
    const double *bias;                   /* [N] or NULL; not owned */
    enum moe_aux_selection aux_selection; /* which selection the stats count */
    double alpha_z; /* coefficient of the z-loss in moe_router_loss_gradient (balance.z_loss) */
    const moe_noisy *noisy; /* load_form = shazeer, in training: set by the layer; else NULL; not
                               owned */
    bool comm_count_local;  /* whether a token that stays on its home device counts in device_tokens
                             */
    moe_scratch *scratch;   /* working memory, or NULL: every call allocates its own; not owned */
} moe_router;

enum { MOE_ROUTER_MAX_LOGIT = 1 << 20 };

/* Local. The most experts that one token may have: top_k, or all when experts choose tokens. */
static inline int32_t moe_router_most(const moe_router *r) {
    return r->method == MOE_METHOD_EXPERT_CHOICE ? r->num_experts : r->top_k;
}

/* Local. What a temperature divides logits by (the usual sense), and what probabilities by
 * (MixLoRA's public code): 1 = nothing. */
static inline double moe_router_logit_divisor(const moe_router *r) {
    return r->method == MOE_METHOD_TOP_P && r->temperature_on == MOE_TEMPERATURE_LOGITS &&
                   r->temperature > 0
               ? r->temperature
               : 1;
}
static inline double moe_router_probability_divisor(const moe_router *r) {
    return r->method == MOE_METHOD_TOP_P && r->temperature_on == MOE_TEMPERATURE_PROBABILITIES &&
                   r->temperature > 0
               ? r->temperature
               : 1;
}

/* Local. What a step and a layer change: keys of random choices, and whether noise acts. */
static inline void moe_router_set_step(moe_router *r, int64_t step, int32_t layer, bool training) {
    r->step = step;
    r->layer = layer;
    r->training = training;
}

/* Local. In training only: adds Gaussian noise of standard deviation router.noise to logits [T,N],
 * keyed by (seed, step, layer, token, expert), and sets the experts that this step and layer drop
 * to -inf. In place, so that everything after it sees the same logits; the gradient with respect to
 * the logits before is the gradient with respect to those after (0 where disabled). Shazeer et al.
 * 2017 (1701.06538) Eq. 4, with a fixed scale. OpenMP over tokens. */
void moe_router_perturb(const moe_router *r, const moe_batch *batch, real *logits);

/* Local. dropped [N] = 1 for the experts that this step and layer drop: floor(share N + 0.5) of
 * them, but never all. */
void moe_router_dropped_experts(const moe_router *r, uint8_t *dropped);

/* Local. Fills in a router from a resolved configuration; bias [N] may be NULL. */
void moe_router_init(moe_router *r, const moe_config *c, const double *bias);

/* Local. s [N] = scores of one token with logits z [N] (method.md 1.2); softmax subtracts the
 * maximum; a temperature on the logits divides them here. *lse = log sum_i exp(z_i) (without
 * temperature), unless lse is NULL. A token whose experts are all disabled has scores 0 and lse =
 * -inf. */
void moe_router_scores(const moe_router *r, const double *z, double *s, double *lse);

/* Local. s' [N] = s / sum(s) for sigmoid and sqrtsoftplus, s itself otherwise (what P and f''s
 * losses use). May be in place. */
void moe_router_normalized(const moe_router *r, const double *s, double *normalized);

/* Local. Chooses up to top_k experts of one token from its scores s [N] (z [N] tells which experts
 * are disabled); expert [top_k] in falling order of s, then index; returns how many. weight [top_k]
 * in double, before rounding. The fast version of tests/reference.c's. token: its global id (hash:
 * what is hashed), which hash, random, round_robin and a random second choice are keyed by. Methods
 * that look at all tokens of a device (sinkhorn, expert_choice) choose here as topk would. For a
 * few tokens: takes working memory anew for each call; moe_router_route does not. */
int32_t moe_router_select(const moe_router *r,
                          int64_t token,
                          const double *z,
                          const double *s,
                          int32_t *expert,
                          double *weight);

/* Local. All tokens of a rank: fills routing (reserved by the callee) and adds every counted token
 * to the cell of its segment (stats has batch->num_segments cells, cleared). OpenMP over tokens.
 * first_bad_token: smallest local token with NaN or +inf logits, or with |logsumexp| >=
 * MOE_ROUTER_MAX_LOGIT (its square could not be summed exactly); or -1. A bad token selects nobody
 * and is not counted. routing->unconverged_device: see routing.h. */
void moe_router_route(const moe_router *r,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      moe_logits logits,
                      moe_routing *routing,
                      moe_stats *stats,
                      int64_t *first_bad_token);

/* Local. The same bookkeeping for a routing that was recorded, not computed: expert ids idx [T,k]
 * (-1 = none), weights [T,k] or NULL (then g = score, or 1/k' without scores), scores [T,N] or NULL
 * (then the score sums stay 0). Re-orders each token's experts to the order of routing.h. */
void moe_router_route_recorded(const moe_router *r,
                               const moe_batch *batch,
                               const moe_placement *placement,
                               const int32_t *idx,
                               int32_t k,
                               const real *weights,
                               const double *scores,
                               moe_routing *routing,
                               moe_stats *stats);

/* Local. Number of distinct groups among `count` experts. */
int32_t moe_router_distinct_groups(const moe_router *r, const int32_t *expert, int32_t count);

/* Local. Theorem of method.md section 1 (rule max): over this rank's tokens, how many were eligible
 * (no ties of selection scores, no disabled expert) and how many of those violate distinct groups =
 * min(M, distinct groups of the greedy choice). Looks at every stride-th token. */
void moe_group_theorem_check(const moe_router *r,
                             moe_logits logits,
                             const moe_routing *routing,
                             int64_t stride,
                             int64_t *eligible,
                             int64_t *violations);

/* Local. dlogits [T,N] (double) += d(sum of balance losses + z-loss)/dz for tokens [begin,end),
 * given the coefficients a [3N] of their scope (moe_balance_coefficients; they hold the alphas),
 * inverse_tokens = 1/(counted tokens of the scope x scopes), and inverse_counted = 1/(counted
 * tokens of the global batch), which the z-loss, a mean over tokens, is divided by: alpha_z (of the
 * router) 2 lse softmax_i inverse_counted. Padding and bad tokens are skipped. method.md section 2.
 * OpenMP over tokens. */
void moe_router_loss_gradient(const moe_router *r,
                              const moe_batch *batch,
                              moe_logits logits,
                              const moe_routing *routing,
                              int64_t begin,
                              int64_t end,
                              const double *a,
                              double inverse_tokens,
                              double inverse_counted,
                              double *dlogits);

#endif
