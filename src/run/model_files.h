/* model_files.h: model.load: one layer whose weights, input and upstream gradient come from .npy
 * files, for comparing with PyTorch.
 *
 * The folder holds wgate [N,H], w1 and w3 [N,F,H], w2 [N,H,F] (w3 for swiglu only); with shared
 * experts sw1 and sw3 [N_s F,H], sw2 [H,N_s F]; the input x [T,H]; and, if given, dy [T,H], the
 * gradient of the total with respect to y. With dy the layer runs backward too, and output.tensors
 * writes the gradients dx, dlogits, dwgate, dw1, ... */
#ifndef MOESIM_RUN_MODEL_FILES_H
#define MOESIM_RUN_MODEL_FILES_H

#include "model/layer.h"
#include "output/results.h"

typedef struct moe_model_files {
    int64_t num_tokens; /* T of x.npy */
    real *x, *dy;       /* [T,H] whole, on every rank; dy may be NULL */
} moe_model_files;

/* Collective. Reads x and dy on rank 0 and gives them to all ranks. Fails with MOE_USER and a
 * sentence that names the file. Owner: the caller, moe_model_files_free. */
int moe_model_files_read(const moe_comm *comm,
                         const moe_config *c,
                         moe_model_files *in,
                         moe_status *st);
void moe_model_files_free(moe_model_files *in);

/* Local. Copies the input of this rank's tokens to x [T,H]; a rank may have none. */
void moe_model_files_input(const moe_model_files *in, const moe_batch *batch, int64_t h, real *x);

/* Collective. Replaces the keyed random weights of a layer by those of the files. Fails with
 * MOE_USER, agreed by all ranks. */
int moe_model_files_weights(const moe_context *context, moe_layer *layer, moe_status *st);

/* Collective. Replaces the weights of the gate alone. Fails likewise. */
int moe_model_files_gate(const moe_context *context, moe_layer *layer, moe_status *st);

/* Collective. Runs the layer backward from dy and writes the gradients' files. `a` is what the
 * forward pass left, with context->keep set. */
int moe_model_files_backward(const moe_context *context,
                             const moe_layer *layer,
                             const moe_model_files *in,
                             moe_activations *a,
                             const moe_results *results,
                             moe_layer_metrics *metrics,
                             moe_status *st);

#endif
