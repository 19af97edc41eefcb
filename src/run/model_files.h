/* loaded.h: model.load: one layer whose weights, input and upstream gradient come from .npy files,
 * for comparing with PyTorch. Layer 5 (simulate).
 *
 * Files in the folder: wgate [N,H], w1 and w3 [N,F,H], w2 [N,H,F] (w3 for swiglu only), sw1, sw3
 * [N_s F,H], sw2 [H,N_s F] with shared experts, x [T,H], and, if given, dy [T,H] = d total / d y:
 * then backward runs too, and the gradients dx, dwgate, dw1 ... are written with output.tensors. */
#ifndef MOESIM_RUN_LOADED_H
#define MOESIM_RUN_LOADED_H

#include "model/layer.h"
#include "model/layer_backward.h"
#include "output/results.h"

typedef struct moe_model_files {
    int64_t num_tokens; /* T of x.npy */
    real *x, *dy;       /* [T,H] whole, on every rank; dy may be NULL */
} moe_model_files;

/* Collective. Reads x and dy. MOE_USER with one sentence naming the file. */
int moe_model_files_read(const moe_comm *comm,
                         const moe_config *c,
                         moe_model_files *in,
                         moe_status *st);
void moe_model_files_free(moe_model_files *in);

/* Collective. Replaces the keyed random weights of a layer by those of the files. */
int moe_model_files_weights(const moe_context *context, moe_layer *layer, moe_status *st);

/* Collective. Backward of the layer from dy and the gradients' files. a is forward's (context->keep
 * was set). */
int moe_model_files_backward(const moe_context *context,
                             const moe_layer *layer,
                             const moe_model_files *in,
                             moe_activations *a,
                             const moe_results *results,
                             moe_layer_metrics *metrics,
                             moe_status *st);

#endif
