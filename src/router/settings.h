/* settings.h: what every part of the router is told: its settings, which stay the same for a whole
 * run, and what its random choices are keyed by, which changes from step to step and from layer to
 * layer. Symbols and definitions: docs/method.md section 1. */
#ifndef MOESIM_ROUTER_SETTINGS_H
#define MOESIM_ROUTER_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/scratch.h"
#include "config/config.h"

typedef struct moe_router {
    int32_t num_experts, top_k;     /* N, K */
    int32_t devices;                /* D: round_robin deals to devices in turn; 0 counts as 1 */
    enum moe_router_method method;  /* a row of moe_methods (methods.h) */
    enum moe_score_func score_func; /* a row of moe_score_functions (scores.h) */
    const double *bias;             /* [N] or NULL; not owned */

    enum moe_group_limit group_limit; /* a row of moe_group_limits (groups.h) */
    int32_t num_groups, topk_group;   /* G, M */

    bool norm_topk_prob, norm_single, scale_normalized; /* how weights are made: weights.h */
    double routed_scaling_factor;

    double top_p;       /* method = top_p: the sum of scores at which a token has enough experts */
    double temperature; /* divides logits or probabilities; 0 and 1 change nothing */
    enum moe_temperature_on temperature_on;
    enum moe_second_choice second_choice; /* of gshard */
    double sinkhorn_tolerance;
    int32_t sinkhorn_iterations;

    double noise, jitter, expert_dropout; /* what chance does in training: noise.h */
    enum moe_noise_form noise_form;

    enum moe_importance_of importance_of; /* what the statistics add up as importance */
    enum moe_load_form load_form;         /* which load of an expert the statistics add up */
    enum moe_aux_selection aux_selection; /* which selection the statistics count */
    bool comm_count_local; /* whether a token that stays on its home device counts in device_tokens
                            */
    moe_scratch *scratch;  /* working memory, or NULL: every call allocates its own; not owned */
} moe_router;

/* What the random choices of one layer in one step are keyed by. The same draw gives the same
 * choices on any number of ranks and threads, and in backward as in forward. */
typedef struct moe_draw {
    uint64_t seed;
    int64_t step;
    int32_t layer;
    bool training;   /* jitter, noise and expert dropout act */
    bool evaluating; /* validation: sinkhorn chooses by plain top-k, as Megatron-Core does outside
                        training */
} moe_draw;

/* Local. Step and layer in one number: the key of whatever is drawn anew in every step. */
static inline uint64_t moe_draw_step_key(const moe_draw *d) {
    enum { MAX_LAYERS = 4096 };
    return (uint64_t)d->step * MAX_LAYERS + (uint64_t)d->layer;
}

/* Local. What the temperature divides logits by (the usual sense of the word), and what it divides
 * probabilities by (MixLoRA's public code). 1 stands for nothing. */
static inline double moe_router_logit_divisor(const moe_router *r) {
    bool acts = r->temperature_on == MOE_TEMPERATURE_LOGITS && r->temperature > 0;
    return acts ? r->temperature : 1;
}
static inline double moe_router_probability_divisor(const moe_router *r) {
    bool acts = r->temperature_on == MOE_TEMPERATURE_PROBABILITIES && r->temperature > 0;
    return acts ? r->temperature : 1;
}

#endif
