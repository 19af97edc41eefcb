/* train.h: training: forward through all layers, backward through all layers, one update. Layer 5
 * (simulate).
 *
 * Expert parallel and data parallel at once: expert gradients stay on their device, gradients of
 * everything else are added up over the devices. One step = `accumulate` micro-batches, each with
 * its own balance losses, then one update from the mean gradient of total = task loss + sum over
 * layers of (alpha1 L_expert + alpha2 L_device + alpha3 L_comm + z_loss L_z) + the loss over all
 * layers, once. */
#ifndef MOESIM_TRAIN_TRAIN_H
#define MOESIM_TRAIN_TRAIN_H

#include <stdint.h>

#include "explain/explain.h"
#include "measure/metrics.h"
#include "model/layer.h"
#include "model/layer_backward.h"
#include "model/parameters.h"
#include "train/optimizer.h"
#include "train/task.h"

typedef struct moe_training {
    moe_context *context;
    moe_batch *batch;
    int32_t num_layers;
    moe_layer *layers;            /* not owned */
    moe_layer_slots *slots;       /* [layers] */
    moe_activations *activations; /* [layers] */
    real **x;     /* [layers + 1][T,H] input of each layer, then the output of the last */
    real *y, *dh; /* [T,H] */
    moe_parameters parameters;
    moe_task task;
    moe_backward backward;
    moe_step_metrics micro;       /* of one micro-batch, where a step has several */
    int bad_rank;                 /* lowest rank whose last loss was not finite, where it was not */
    moe_explainer *explainer;     /* watches the next step; NULL = nobody does; not owned */
    double alpha[MOE_NUM_LOSSES]; /* configured coefficients; the context's are these times the
                                     schedule */
    double alpha_all_layers;
} moe_training;

/* Local. Registers the parameters of the layers and the task, makes room for activations.
 * context->keep is set (unless train.recompute). */
void moe_training_init(moe_training *t, moe_context *context, moe_batch *batch, moe_layer *layers);
void moe_training_free(moe_training *t);

/* Collective. One step: record gets losses and traffic of all micro-batches
 * (moe_step_metrics_join), task_loss, gradient_norm, learning_rate. MOE_RUN_FAILED (agreed by all)
 * names step, layer and rank when a loss or gradient is not finite; then nothing is updated. */
int moe_training_step(moe_training *t, int64_t step, moe_step_metrics *metrics, moe_status *st);

/* Collective. Mean task loss over `batches` fixed held-out batches; nothing is updated. */
double moe_training_validate(moe_training *t, int64_t batches);

/* Collective. The same with `run` in place of moe_layer_forward for layer l (specialize.h). */
typedef void moe_run_layer(
    void *user, int32_t l, const real *x, real *y, moe_activations *a, moe_layer_metrics *metrics);
double moe_training_evaluate(moe_training *t, int64_t batches, moe_run_layer *run, void *user);

#endif
