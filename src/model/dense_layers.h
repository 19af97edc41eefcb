/* dense_layers.h: the first layers of a stack, whose FFN is dense (model.first_dense_layers).
 *
 *     forward    y = FFN(RMSNorm(x))      one FFN of width model.intermediate_size for every token
 *     backward   dy -> dx, and the gradients of the FFN and of the norm
 *
 * As in DeepSeek-V2 and V3, whose first layers have no experts. Nothing is routed and nothing is
 * sent: each device computes its own tokens, and the gradients are summed over the devices as those
 * of everything replicated (parameters.h). Attention in front and the residual behind are those of
 * the stack. With first_dense_layers = 0 there are no layers here. */
#ifndef MOESIM_MODEL_DENSE_LAYERS_H
#define MOESIM_MODEL_DENSE_LAYERS_H

#include "experts/experts.h"
#include "model/context.h"
#include "model/parameters.h"

typedef struct moe_dense_layer {
    real *norm;           /* [H] weights of the RMSNorm, or NULL */
    moe_ffn ffn;          /* one FFN */
    int norm_index, w[3]; /* in the table of parameters, W1, W2 and W3; -1: none */
} moe_dense_layer;

/* What a forward pass of one layer leaves behind. */
typedef struct moe_dense_activations {
    moe_block block;
    const real *x;       /* [T,H] the layer's input, before the norm; the caller's */
    real *u;             /* [T,H] normed x; NULL without norm */
    double *inverse_rms; /* [T] of the norm */
    real *h1, *h3;       /* [T, width] pre-activations, where backward is to read them */
} moe_dense_activations;

typedef struct moe_dense_layers {
    const moe_context *context; /* not owned */
    int32_t num_layers;         /* 0: there are none */
    moe_dense_layer *layer;     /* [num_layers] */
    moe_expert_buffers buffers; /* working memory of the products, which the layers share */
    int32_t num_activations;
    moe_dense_activations *activations; /* [num_activations] one, or one of each layer */
    moe_parameters *parameters;         /* where gradients are added; not owned */
} moe_dense_layers;

/* Local. Makes the layers with their keyed random parameters. keep_inputs: backward follows, and
 * every layer keeps what it reads. */
void moe_dense_layers_init(moe_dense_layers *d, const moe_context *context, bool keep_inputs);
void moe_dense_layers_free(moe_dense_layers *d);

/* Local. Adds layer l's parameters to the table as "layer<l>.norm" and "layer<l>.dense.w1", ... */
void moe_dense_layers_register(moe_dense_layers *d, int32_t l, moe_parameters *parameters);

/* Local. y [T,H] from x [T,H], without the residual. x has to stay unchanged until the backward
 * pass of the layer. */
void moe_dense_layers_forward(moe_dense_layers *d, int32_t l, const real *x, real *y);

/* Local. From dy [T,H] writes dx [T,H], without the residual, and adds the gradients of the
 * parameters to the table. dx is another array than dy. */
void moe_dense_layers_backward(moe_dense_layers *d, int32_t l, const real *dy, real *dx);

#endif
