/* explain_parts.h: what the files of explain share. Layer 5 (simulate). Private to explain*.c. */
#ifndef MOESIM_EXPLAIN_INTERNAL_H
#define MOESIM_EXPLAIN_INTERNAL_H

#include "explain/explain.h"

/* A token in a layer, seen from this rank. */
typedef struct moe_watched {
    const moe_layer *layer;
    const moe_context *context;
    const moe_activations *a;
    moe_explained_layer *e;
    moe_draw draw; /* the keys of the step */
    int64_t token; /* global id */
    int32_t device, rank;
    bool here;     /* this rank is the token's */
    int64_t local; /* its id on its rank */
} moe_watched;

/* Local. */
moe_watched moe_watch(moe_explanation *e,
                      const moe_layer *layer,
                      const moe_context *context,
                      const moe_activations *a);

/* Local. sqrt(sum x^2), added up in one order. */
double moe_explain_norm(const real *x, int64_t n);

/* explain_losses.c: on the token's rank, after scores and choices. Local. */
void moe_explain_losses(const moe_watched *w, const moe_layer_metrics *metrics);
void moe_explain_gradients(const moe_watched *w);
/* Local. After the last layer's forward: the loss over all layers, where it trains, stands in
 * mixtral's place. */
void moe_explain_all_layers(const moe_watched *w);
/* Local. d task / d logit of the token from dg [num_selections of moe_weights_routing]. */
void moe_explain_task_gradient(const moe_watched *w, const real *dg);

/* explain_exchange.c: collective. */
/* With a capacity: who was dropped, and each choice's place in the order. */
void moe_explain_capacity(const moe_watched *w);
/* output [sent selections of the token][H], in the order of the routing that is sent, on every
 * rank: what the experts computed for the token before weights. Owner: the caller, moe_free. */
real *moe_explain_outputs(const moe_watched *w);

#endif
