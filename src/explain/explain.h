/* explain.h: follows one token through a step and writes down what happens to it.
 *
 * It looks at what the layers computed and changes none of it, so a run with an explanation has the
 * same bits as one without. All figures are taken from the arrays that the run used (outputs of
 * experts where they were computed), or from the function that is the one home of a formula. */
#ifndef MOESIM_EXPLAIN_EXPLAIN_H
#define MOESIM_EXPLAIN_EXPLAIN_H

#include "explain/derivation.h"
#include "explain/explanation.h"
#include "model/layer.h"

typedef struct moe_explainer {
    bool token, step;    /* what is asked for: the way of a token, the derivation of the step */
    int32_t micro_batch; /* the one that runs, set by who runs it; the token is one of the last */
    moe_explanation explanation; /* of the token */
    moe_derivation derivation;   /* of the step's figures */
} moe_explainer;

/* Collective. Is called right after moe_layer_forward and moe_tally_layer of a layer. y [T,H] is
 * its output. Fills in explanation.layer[layer->index] on every rank and adds the layer's losses to
 * the derivation. */
void moe_explain_forward(moe_explainer *x,
                         const moe_layer *layer,
                         const moe_context *context,
                         const moe_activations *a,
                         const real *y,
                         const moe_layer_metrics *metrics);

/* Local. Is called before moe_layer_backward of a layer. dy [T,H] = d total / d y of the layer. */
void moe_explain_upstream(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const real *dy);

/* Collective. Is called right after moe_layer_backward of a layer, before that of another one. Adds
 * the gradients of the token. */
void moe_explain_backward(moe_explainer *x,
                          const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          const moe_backward *b);

/* Collective. Is called at the end. Derives what the metrics of a step are enough for.
 * MOE_RUN_FAILED where a figure does not agree. */
int moe_explain_finish(moe_explainer *x,
                       const moe_context *context,
                       const moe_step_metrics *metrics,
                       moe_status *st);

/* Local. */
void moe_explainer_free(moe_explainer *x);

#endif
