/* layer.h: one expert-parallel MoE layer.
 *
 *   forward    x [T,H] -> norm: u -> gate: logits [T,N] -> router: experts, weights, counts
 *                -> drop -> plan -> dispatch -> experts -> combine (+ shared experts) -> y [T,H]
 *   backward   dy [T,H] -> combine -> experts: dW, dg -> dispatch -> router: dlogits -> gate
 *                (+ shared experts) -> norm -> dx [T,H]
 *
 * Backward walks the forward's plan the other way: one row of dy for each row of the dispatch. The
 * balance losses and the tally read routing and plan and never change them. Gradients of experts
 * stay on their device; gradients of replicated parameters go into the partial of the device that
 * made them (parameters.h). docs/method.md sections 1 to 5.
 *
 * layer.c holds the parameters, activations.c what a pass leaves behind, layer_forward.c,
 * layer_losses.c and layer_backward.c the method. */
#ifndef MOESIM_MODEL_LAYER_H
#define MOESIM_MODEL_LAYER_H

#include <stdint.h>

#include "base/block.h"
#include "capacity/drop.h"
#include "exchange/plan.h"
#include "experts/experts.h"
#include "measure/metrics.h"
#include "model/by_device.h"
#include "model/context.h"
#include "model/parameters.h"

/* The parameters of one layer on this rank. */
typedef struct moe_layer {
    int32_t index;    /* among the MoE layers */
    int32_t depth;    /* among all layers of the model, of which the first may be dense */
    real *gate;       /* [N,H] the same on every rank; NULL when logits or routing are recorded */
    real *gate_noise; /* [N,H] W_noise of router.noise_form = softplus, 0 at first, or NULL */
    real *norm;       /* [H] weights of the RMSNorm, or NULL */
    const moe_placement *placement; /* that of this layer in the context. Not owned */
    moe_router router;              /* that of the context, with this layer's bias */
    double *bias;                   /* [N] balancing bias that training moves, or NULL */
    moe_ffn experts;                /* local devices x slots */
    moe_ffn shared;                 /* one FFN of width num_shared_experts * F, or count 0 */
    int32_t shared_copies;          /* how often its result counts: without matrices, each expert */
} moe_layer;

/* Where the parameters of a layer stand in the table of parameters; -1 = the layer has none. */
typedef struct moe_layer_indices {
    int gate, gate_noise, norm;
    int w1, w2, w3;             /* of the experts */
    int a1, a2, a3, b1, b2, b3; /* adapters; then w1, w2, w3 are frozen and not in the table */
    int shared_w1, shared_w2, shared_w3;
} moe_layer_indices;

enum { MOE_EXPERT_TENSORS = 9 };

/* What a forward pass of one layer leaves behind for the tally, the explanation and the gradient.
 * The memory is used again from step to step. */
typedef struct moe_activations {
    moe_block block;     /* memory of u, inverse_rms, jittered, gate_logits, clean, v, shared_* */
    real *u;             /* [T,H] normed x; NULL without norm */
    double *inverse_rms; /* [T] of the norm */
    const real *layer_x; /* the layer's input, before the norm; the caller's */
    const real *x;       /* what the experts read: u, the layer's input, or `jittered` */
    const real *gate_x;  /* what the gate reads: x, or `jittered` */
    real *jittered;      /* [T,H]; NULL without jitter */

    real *gate_logits; /* [T,N] */
    real *clean;       /* [T,N] logits before noise, for a smooth load or the importance */
    real *v;           /* [T,N] gate_x W_noise, which makes the scale of the noise */
    moe_noisy noisy;   /* clean and v, as the router takes them */
    moe_logits logits; /* gate_logits, or the recorded ones; both NULL for recorded routing */

    real *shared_y;              /* [T,H] output of the shared experts */
    real *shared_h1, *shared_h3; /* [T, num_shared * F] pre-activations, kept for backward */

    moe_routing routing; /* before dropping */
    moe_drop drop;       /* who of it is sent, where there is a capacity */
    moe_stats segments;
    moe_scopes scopes;
    moe_by_device by_device; /* where it is on, there are no logits and no cells of segments */
    bool losses_counted;     /* in scopes, and not yet summed over the ranks */
    moe_plan plan;
    moe_exchange exchange;
    moe_expert_buffers buffers;
    int64_t first_bad_token; /* local token with NaN logits, -1 = none */
} moe_activations;

/* Working memory of backward, which all layers share. */
typedef struct moe_backward {
    moe_block block; /* of the arrays by token */
    double *dlogits; /* [T,N] of the last layer that went through */
    real *dz;        /* [T,N] the same, rounded */
    double *spread;  /* [T,N] what of the losses reaches the scale of the noise (noise.h) */
    real *dv;        /* [T,N] gradient of gate_x W_noise */
    real *gate_dx;   /* [T,H] gradient of what the gate reads, where jitter keeps it apart */
    real *du;        /* [T,H] gradient of what the experts read */
    real *shared_dx; /* [T,H] */

    moe_block pair_block; /* of the arrays by pair, whose number depends on the routing */
    real *dg;             /* [num_selections] gradient of the combine weights */
    real *dg_by_pair;     /* [plan pairs] the same gradients in the order of the plan */
} moe_backward;

/* --- layer.c: parameters --- */

/* Local. Keyed random parameters of MoE layer `index`. Owner: the caller, moe_layer_free. */
void moe_layer_init(moe_layer *layer, const moe_context *context, int32_t index);
void moe_layer_free(moe_layer *layer);

/* Local. Adds the layer's parameters to the table as "layer<depth>.gate", ".norm", ".experts.w1",
 * ...,
 * ".shared.w1", ... */
moe_layer_indices moe_layer_register(const moe_layer *layer,
                                     const moe_context *context,
                                     moe_parameters *all);

/* Local. index: w1, w2, w3, a1, a2, a3, b1, b2, b3 of the experts; -1 = the layer has none. */
void moe_layer_expert_indices(const moe_layer_indices *indices, int index[MOE_EXPERT_TENSORS]);

/* Local. What the layer's random choices are keyed by in this step. In training, but outside a
 * training step (validation), the router evaluates. */
moe_draw moe_layer_draw(const moe_layer *layer, const moe_context *context);

/* --- layer_forward.c --- */

/* Collective. y [T,H] = sum of the shared experts + sum of g * FFN, without the residual. Of
 * `metrics` only the times are filled in: moe_layer_losses and moe_tally_layer add the rest. x
 * [T,H] must stay unchanged as long as the activations are used. */
void moe_layer_forward(const moe_layer *layer,
                       const moe_context *context,
                       const real *x,
                       real *y,
                       moe_activations *a,
                       moe_layer_metrics *metrics);

/* --- layer_losses.c --- */

/* The balance losses of the layer in every scope, from the statistics of the router and the rows of
 * the plan. moe_layer_forward counts them on each rank and sums nothing: the sum over the ranks
 * goes with that of the tally, or, where the layer is not tallied, is one of its own. An
 * evaluation, which reads no balance loss, does without. */

/* Local. Counts the share of this rank in a->scopes, whose vector has to be summed then. */
void moe_layer_losses_count(const moe_layer *layer, const moe_context *context, moe_activations *a);
/* Collective. Makes the losses from the summed vector and fills their fields of `metrics`. The last
 * layer also finishes the loss over the tokens of all layers. */
void moe_layer_losses_complete(const moe_layer *layer,
                               const moe_context *context,
                               moe_activations *a,
                               moe_layer_metrics *metrics);
/* Collective. Sums and completes the losses, unless that has been done since they were counted. */
void moe_layer_losses(const moe_layer *layer,
                      const moe_context *context,
                      moe_activations *a,
                      moe_layer_metrics *metrics);

/* Local. dlogits [T,N] = gradient of sum alpha L with respect to the logits, in the scope that
 * trains. The loss over all layers, if it trains, needs the forward pass of the last layer. spread
 * [T,N] or NULL: what of it reaches the scale of the noise (noise.h), 0 but for a smooth load. */
void moe_layer_dlogits(const moe_layer *layer,
                       const moe_context *context,
                       const moe_activations *a,
                       double *dlogits,
                       double *spread);

/* --- layer_backward.c --- */

/* Collective. From dy [T,H] = d total / d y, where total includes sum alpha L of this layer: adds
 * the gradients of the layer's parameters to the table, and writes dx [T,H] = d total / d x through
 * the layer, without the residual. dx may be dy's array. */
void moe_layer_backward(const moe_layer *layer,
                        const moe_layer_indices *indices,
                        const moe_context *context,
                        moe_activations *a,
                        moe_parameters *all,
                        const real *dy,
                        moe_backward *b,
                        real *dx,
                        moe_layer_metrics *metrics);

void moe_backward_free(moe_backward *b);

/* --- activations.c --- */

/* Local. Room for the arrays that this pass of the layer needs: draw says whether there is noise.
 */
void moe_activations_reserve(moe_activations *a,
                             const moe_layer *layer,
                             const moe_context *context,
                             const moe_draw *draw);
void moe_activations_free(moe_activations *a);

/* Local. The routing that the plan was built from: without what was dropped. */
const moe_routing *moe_activations_sent(const moe_activations *a);

/* Local. The routing whose weights were made from the scores, and whose order dg has. It is the one
 * before dropping, where a dropped pair has dg = 0 but its score is still in the normalisation of
 * the others; or the one that is sent, where weights were made anew for those that are left. */
const moe_routing *moe_activations_weighted(const moe_activations *a);

/* Local. The experts that serve the pairs of moe_activations_weighted where these may be others
 * than were chosen; NULL elsewhere. */
const int32_t *moe_activations_servers(const moe_activations *a);

/* Local. tokens [D] = rows that local device j gave to MPI_Alltoallv for each device, and rows that
 * dropping removed: the numerator of f'' from what is really sent (docs/method.md section 2). */
void moe_activations_rows_before_dropping(const moe_layer *layer,
                                          const moe_context *context,
                                          const moe_activations *a,
                                          int32_t j,
                                          int64_t *tokens);

/* Local. Rows and pairs of a chunk, of this rank, in the plan and the exchange: for the timeline.
 */
moe_span_rows moe_activations_rows(const moe_activations *a, int32_t chunk);

/* Local. A pass of the exchange is over: adds to the layer's overlap, and in the timeline of when
 * each chunk was on its way. */
void moe_activations_flights(const moe_activations *a,
                             const moe_context *context,
                             int32_t depth,
                             bool backward,
                             moe_layer_metrics *metrics);

/* What lets the exchange work while experts compute. */
moe_experts_pause moe_activations_pause(moe_activations *a);

#endif
