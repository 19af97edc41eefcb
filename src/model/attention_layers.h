/* attention_layers.h: the attention in front of every layer of a stack (model.attention).
 *
 *     forward    x_l -> x_l + attention(RMSNorm(x_l)) = the input of layer l
 *     backward   the gradient of that -> the gradient of x_l
 *
 * src/attention computes it, device by device; here are its parameters in the table, its memory
 * over the layers and its times. With model.attention = none there are no layers here, and the
 * input of a layer is x_l. A layer is an MoE layer here, or one of the first, dense ones.
 *
 * A decoder remembers its tokens: after moe_attention_layers_remember, forward also fills the
 * cache, and with `decodes` it takes one token of each sequence and attends to the cache. */
#ifndef MOESIM_MODEL_ATTENTION_LAYERS_H
#define MOESIM_MODEL_ATTENTION_LAYERS_H

#include "attention/attention.h"
#include "attention/decode.h"
#include "model/context.h"
#include "model/parameters.h"

typedef struct moe_attention_layers {
    const moe_context *context; /* not owned */
    moe_attention_shape shape;
    int32_t num_layers;           /* 0: no attention */
    moe_attention_weights *layer; /* [num_layers] */
    moe_attention_work work;

    /* of the last forward pass */
    int32_t num_activations;
    moe_attention_activations *activations; /* [num_activations] one, or one of each layer */
    real **sum; /* [num_layers] arrays [T,H]: input of the layer; one and the same array where
                   inputs are not kept */

    /* for generating */
    moe_attention_cache cache; /* of the sequences that are continued */
    moe_attention_decode_work decode_work;
    bool decodes; /* the batch is one new token of each of them */

    /* for backward */
    moe_parameters *parameters;          /* not owned */
    int (*index)[MOE_ATTENTION_TENSORS]; /* [num_layers] in the table; -1: none */
} moe_attention_layers;

/* Local. Makes the layers with their keyed random parameters. keep_inputs: backward follows. Then
 * what it reads is kept in each layer, or with train.recompute computed again. */
void moe_attention_layers_init(moe_attention_layers *a,
                               const moe_context *context,
                               bool keep_inputs);
void moe_attention_layers_free(moe_attention_layers *a);

/* Local. From now on forward keeps what it computes of the batch's sequences, up to `places` tokens
 * of each. Without attention there is nothing to keep. */
void moe_attention_layers_remember(moe_attention_layers *a, int64_t places);

/* Local. Adds layer l's parameters to the table as "layer<l>.attention.<tensor>". */
void moe_attention_layers_register(moe_attention_layers *a, int32_t l, moe_parameters *parameters);

/* Local. The input [T,H] of layer l from x [T,H]: x itself without attention. It stays until
 * the next pass where inputs are kept. */
const real *moe_attention_layers_forward(moe_attention_layers *a, int32_t l, const real *x);

/* Local. gradient [T,H]: of the input of layer l on entry, of x on return. Adds the gradients
 * of the parameters to the table. */
void moe_attention_layers_backward(moe_attention_layers *a,
                                   int32_t l,
                                   const real *x,
                                   real *gradient);

#endif
