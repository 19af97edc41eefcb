/* internal.h: the parts of following a token, which fill in one layer of its explanation. */
#ifndef MOESIM_EXPLAIN_INTERNAL_H
#define MOESIM_EXPLAIN_INTERNAL_H

#include "explain/explanation.h"
#include "model/layer.h"

/* The token in a layer, seen from this rank. */
typedef struct moe_watched {
    const moe_layer *layer;
    const moe_context *context;
    const moe_activations *a;
    moe_explained_layer *e;
    moe_draw draw; /* the keys of the step */
    int64_t token; /* global id */
    int32_t device, rank;
    bool here;     /* whether this rank is the token's */
    int64_t local; /* its id on its rank */
} moe_watched;

/* Local. The device that serves an expert's pair of the token. */
static inline int32_t moe_explain_device(const moe_watched *w, int32_t expert) {
    return moe_placement_device(w->layer->placement, expert, w->token, w->device);
}

/* --- losses.c: all local, on the token's rank, after scores and choices --- */

/* The token's share of each loss. */
void moe_explain_losses(const moe_watched *w, const moe_layer_metrics *metrics);
/* The gradient of each loss with respect to the token's logits. */
void moe_explain_gradients(const moe_watched *w);
/* The loss over all layers, where it trains, in the place of mixtral's. It is known after the last
 * layer's forward. */
void moe_explain_all_layers(const moe_watched *w);
/* d task / d logit of the token from dg [num_selections of moe_activations_weighted]. */
void moe_explain_task_gradient(const moe_watched *w, const real *dg);

/* --- exchange.c: all collective --- */

/* With a capacity: who was dropped, and the place of each choice in the order. */
void moe_explain_capacity(const moe_watched *w);
/* What the experts computed for the token, before weights: [sent selections of the token][H] in the
 * order of the routing that is sent, on every rank. Owner: the caller, moe_free. */
real *moe_explain_outputs(const moe_watched *w);

#endif
