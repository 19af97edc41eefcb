/* stack.h: the layers of a model, one after the other.
 *
 *   forward    x_0 -> layer 0 -> x_1 -> ... -> x_L      x_{l+1} = y_l + a_l,  a_l = x_l or, with
 *                                                       model.attention, x_l + attention(x_l)
 *   backward   dx_L -> layer L-1 -> ... -> dx_0         dx_l = J_l^T dx_{l+1} + dx_{l+1}
 *
 * where y_l is the output of layer l (norm, gate, dispatch, experts, combine, shared experts), and
 * the second term is the residual, left out with model.residual = no (docs/method.md section 5).
 * The first layers may be dense ones (dense_layers.h): norm and FFN. Everything else here that is
 * called a layer, and whatever an observer sees, is an MoE layer; l counts these alone.
 * Forward runs and training go through one loop forward and one backward; evaluation has a forward
 * loop of its own, which measures nothing. Whoever wants to see what a layer did (tally,
 * explanation, result files) is an observer; an observer changes nothing. */
#ifndef MOESIM_MODEL_STACK_H
#define MOESIM_MODEL_STACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "measure/metrics.h"
#include "model/attention_layers.h"
#include "model/dense_layers.h"
#include "model/layer.h"
#include "model/parameters.h"

typedef struct moe_stack {
    moe_context *context;           /* what the layers share; not owned */
    moe_dense_layers dense;         /* the first layers of the model */
    int32_t num_layers;             /* MoE layers, which follow */
    moe_layer *layer;               /* [num_layers] */
    moe_attention_layers attention; /* in front of each of both, if the model has attention */

    /* of the last forward pass */
    int32_t num_activations;
    moe_activations *activations; /* [num_activations]; see moe_stack_activations */
    real **x; /* [depth + 1] arrays [T,H]: the input of each layer of either kind, then the last
                 output; one and the same array where inputs are not kept */
    real *y;  /* [T,H] output of the last layer that ran; in backward the gradient of its input */

    /* for backward */
    moe_parameters *parameters; /* where gradients are added; not owned; NULL: forward only */
    moe_layer_indices *indices; /* [num_layers] where the layers' parameters stand in it */
    moe_backward backward;      /* working memory of all layers */
} moe_stack;

/* What looks on. A hook that is NULL is not called. */
typedef struct moe_observer {
    void *self; /* first argument of the hooks */
    /* Collective. Right after the forward pass of layer l, before its residual: s->y is its output.
     * A failure that all ranks agree on ends the pass. */
    int (*after_layer)(void *self,
                       const moe_stack *s,
                       int32_t l,
                       moe_step_metrics *metrics,
                       moe_status *st);
    /* Collective. Before the backward pass of layer l: dy [T,H] is the gradient of its output. */
    void (*before_backward)(void *self, const moe_stack *s, int32_t l, const real *dy);
    /* Collective. Right after it: s->backward still holds the gradients of the layer's logits. */
    void (*after_backward)(void *self, const moe_stack *s, int32_t l);
} moe_observer;

/* Local. Makes the layers with their keyed random parameters, and room for the activations of
 * `num_activations` layers (at most all): later layers use the memory of earlier ones again.
 * keep_inputs: every layer's input stays as it was until the next pass, as backward needs it. */
void moe_stack_init(moe_stack *s, moe_context *context, int32_t num_activations, bool keep_inputs);
void moe_stack_free(moe_stack *s);

/* Local. Stores the weights of all FFNs for forward passes alone (moe_ffn_turn), where they stay as
 * they are. */
void moe_stack_turn_weights(moe_stack *s);

/* Local. Adds the parameters of all layers to the table, and makes moe_stack_backward possible. */
void moe_stack_register(moe_stack *s, moe_parameters *parameters);

/* Local. What layer l computed in the last pass, as long as no later layer took its memory. */
static inline moe_activations *moe_stack_activations(const moe_stack *s, int32_t l) {
    return &s->activations[l % s->num_activations];
}

/* Local. Layers of both kinds. */
static inline int32_t moe_stack_depth(const moe_stack *s) {
    return s->dense.num_layers + s->num_layers;
}

/* Local. Input and output [T,H] of the whole stack: x_0, which the caller fills, and x_L. */
static inline real *moe_stack_input(const moe_stack *s) {
    return s->x[0];
}
static inline real *moe_stack_output(const moe_stack *s) {
    return s->x[moe_stack_depth(s)];
}

/* Collective. The forward pass from moe_stack_input to moe_stack_output; fills metrics->layer but
 * for what the observer adds. observer may be NULL. Returns the observer's failure, if any. */
int moe_stack_forward(moe_stack *s,
                      const moe_observer *observer,
                      moe_step_metrics *metrics,
                      moe_status *st);

/* Collective. The backward pass. gradient [T,H]: of the output on entry, of the input on return. */
void moe_stack_backward(moe_stack *s,
                        const moe_observer *observer,
                        real *gradient,
                        moe_step_metrics *metrics);

/* Stands in for moe_layer_forward of layer l in moe_stack_evaluate. */
typedef void moe_stack_run_layer(void *self,
                                 int32_t l,
                                 const real *x,
                                 real *y,
                                 moe_activations *a,
                                 moe_layer_metrics *metrics);

/* Collective. The forward pass with nothing measured and nothing kept for backward. run = NULL:
 * moe_layer_forward. */
void moe_stack_evaluate(moe_stack *s, moe_stack_run_layer *run, void *self);

#endif
