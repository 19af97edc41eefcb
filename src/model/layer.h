/* layer.h: one expert-parallel MoE layer, forward. Layer 5 (simulate). The whole method in one
 * function: read moe_layer_forward first.
 *
 *   x [T,H] -> (rmsnorm) u -> gate: logits [T,N] -> router: experts, weights, counts -> plan ->
 * dispatch -> experts
 *           -> combine (+ shared experts) -> y [T,H]
 * beside it the balance losses and the tally read the plan and never change it. */
#ifndef MOESIM_MODEL_LAYER_H
#define MOESIM_MODEL_LAYER_H

#include <stdint.h>

#include "balance/scopes.h"
#include "capacity/drop.h"
#include "config/config.h"
#include "data/batch.h"
#include "data/input.h"
#include "exchange/plan.h"
#include "experts/experts.h"
#include "measure/metrics.h"
#include "measure/timeline.h"
#include "router/router.h"
#include "world/comm.h"

/* Parameters of one layer on this rank. */
typedef struct moe_layer {
    int32_t index;
    real *gate;        /* [N,H] the same on every rank; NULL when logits or routing are recorded */
    real *gate_noise;  /* [N,H] W_noise of router.noise_form = softplus, 0 at first, or NULL */
    real *norm;        /* [H] rmsnorm's weights, or NULL */
    moe_router router; /* the context's, with this layer's bias */
    double *bias;      /* [N] balancing bias that training moves; NULL: the layer's of the input
                          (router.bias_file      or none) */
    moe_ffn experts;   /* local devices x slots */
    moe_ffn shared;    /* one FFN of width num_shared_experts * F, or count 0 */
} moe_layer;

/* What the layers of a rank share, unchanged during a step. */
typedef struct moe_context {
    const moe_comm *comm;
    const moe_config *config;
    const moe_batch *batch;
    const moe_input *input;
    moe_placement placement;
    moe_router router;
    moe_balance balance;
    moe_capacity capacity;
    moe_scopes *all_layers; /* the tokens of all layers put together (aux_form = mixtral); finished
                               by the last layer's forward; or NULL */
    int64_t step;           /* keys what is drawn anew in every step */
    int64_t draw;           /* of a training step's micro-batch: keys noise and expert dropout */
    bool trains;            /* a gradient will be taken: noise and expert dropout act */
    bool keep;              /* keep what backward needs (pre-activations of the experts) */
    moe_timeline *timeline; /* of the step; NULL: not recorded */
} moe_context;

/* What one layer computed in a step: kept for the report, the self-checks and the gradient. Reused
 * from step to step. */
typedef struct moe_activations {
    real *u;             /* [T,H] normed x; NULL without norm (then x itself is used) */
    double *inverse_rms; /* [T] of the norm, for backward */
    const real *layer_x; /* the layer's input before the norm */
    const real *x;       /* what the experts read: u or the caller's x */
    const real *gate_x;  /* what the gate reads: x, or with jitter `jittered` */
    real *jittered;      /* [T,H]; where the experts read it too, x is this */
    real *gate_logits;   /* [T,N] */
    real *clean, *v;     /* [T,N] logits before noise, for the smooth load; gate_x W_noise */
    moe_noisy noisy;     /* the two, as the router looks at them */
    moe_logits logits;   /* gate_logits, or the recorded ones; both NULL for recorded routing */
    moe_routing routing; /* before dropping */
    moe_drop drop;       /* who of it is sent, where there is a capacity */
    moe_stats segments;
    moe_scopes scopes;
    moe_plan plan;
    moe_exchange exchange;
    moe_expert_buffers buffers;
    real *shared_y;              /* [T,H] */
    real *shared_h1, *shared_h3; /* [T, num_shared * F] kept for backward */
    int64_t first_bad_token;     /* local token with NaN logits, -1 = none */
    int64_t jittered_room, clean_room, v_room;
    int64_t rms_room, u_room, logits_room, shared_room, shared_h1_room, shared_h3_room;
} moe_activations;

/* Local. What the layers share, from a resolved configuration and what was read for it: placement,
 * router with the input's bias, losses, capacity. The caller sets the rest, and frees placement;
 * everything that is pointed to stays the caller's. scratch: of router and batch, or NULL. */
void moe_context_init(moe_context *context,
                      const moe_comm *comm,
                      const moe_config *c,
                      moe_batch *batch,
                      const moe_input *input,
                      moe_scratch *scratch);

/* Local. Keyed random parameters of layer `index`. */
void moe_layer_init(moe_layer *layer, const moe_context *context, int32_t index);
void moe_layer_free(moe_layer *layer);

/* Collective. y [T,H] = sum of the shared experts + sum of g * FFN (no residual). Fills `record`
 * except what moe_tally_layer adds. x must stay unchanged as long as the activations are used. */
void moe_layer_forward(const moe_layer *layer,
                       const moe_context *context,
                       const real *x,
                       real *y,
                       moe_activations *a,
                       moe_layer_metrics *metrics);

/* Local. Rows of this rank in the plan and the exchange, for the timeline. */
moe_span_rows moe_layer_rows(const moe_activations *a);

/* Local. The routing that the plan was built from: without what was dropped. */
const moe_routing *moe_sent_routing(const moe_activations *a);

/* Local. NULL when the rows given to MPI_Alltoallv are the distinct tokens that f'' counts
 * (method.md section 2), else why they are not. */
const char *moe_rows_not_tokens(const moe_context *context);

/* Local. What the layer's random choices are keyed by in this step. In training outside a training
 * step (validation) the router evaluates. */
moe_draw moe_layer_draw(const moe_layer *layer, const moe_context *context);

/* Local. dlogits [T,N] = gradient of sum alpha * L with respect to the logits, in the scope that
 * trains. The loss over all layers, if it trains, needs the forward pass of the last layer. spread
 * [T,N] or NULL: what of it reaches the scale of the noise (noise.h), 0 but for a smooth load. */
void moe_layer_dlogits(const moe_layer *layer,
                       const moe_context *context,
                       const moe_activations *a,
                       double *dlogits,
                       double *spread);

void moe_activations_free(moe_activations *a);

#endif
