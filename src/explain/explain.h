/* explain.h: follows one token through a step and writes down what happens to it. Layer 5
 * (simulate). Looks at what the layers computed and changes none of it: a run with an explanation
 * has the bits of one without. All figures are taken from the arrays that the run used (outputs of
 * experts where they were computed), or from the function that is the one home of the formula. */
#ifndef MOESIM_EXPLAIN_EXPLAIN_H
#define MOESIM_EXPLAIN_EXPLAIN_H

#include "explain/derivation.h"
#include "explain/explanation.h"
#include "model/layer.h"
#include "model/layer_backward.h"

typedef struct moe_explainer { /* what is asked for, and what is known so far */
    bool token, step;
    int32_t micro_batch; /* the one that runs, set by who runs it; the token is one of the step's
                            last */
    moe_explanation explanation; /* token: its way */
    moe_derivation derivation;   /* step: where its figures come from */
} moe_explainer;

/* Collective. Right after a layer's moe_layer_forward and moe_tally_layer: y [T,H] is its output.
 * Fills explanation.layer[layer->index] on every rank and adds the layer's losses to the
 * derivation. */
void moe_explain_forward(moe_explainer *x,
                         const moe_layer *layer,
                         const moe_context *context,
                         const moe_activations *a,
                         const real *y,
                         const moe_layer_metrics *metrics);

/* Local. Before the layer's moe_layer_backward: dy [T,H] = d total / d y of the layer. */
void moe_explain_upstream(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const real *dy);

/* Collective. Right after the layer's moe_layer_backward, before another layer's: adds the
 * gradients of the token. */
void moe_explain_backward(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          const moe_backward *b);

/* Collective, at the end: derives what a step's record is enough for. MOE_RUN_FAILED where a figure
 * does not agree. */
int moe_explain_finish(moe_explainer *x,
                       const moe_context *context,
                       const moe_step_metrics *metrics,
                       moe_status *st);

void moe_explainer_free(moe_explainer *x);

#endif
