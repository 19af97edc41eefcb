/* train.h: training: forward through the stack, backward through the stack, one update.
 *
 * Training is expert parallel and data parallel at once: the gradients of experts stay on their
 * device, the gradients of everything else are added up over the devices. One step consists of
 * train.accumulate micro-batches, each with its own balance losses (in scope global with
 * balance.global_batch = step those of the step), and of one update from the mean gradient of
 *
 *   total = task loss
 *         + sum over layers of (alpha_1 L_expert + alpha_2 L_device + alpha_3 L_comm + z_loss L_z)
 *         + the loss over the tokens of all layers, once (balance.aux_layers = all). */
#ifndef MOESIM_TRAIN_TRAIN_H
#define MOESIM_TRAIN_TRAIN_H

#include <stdint.h>

#include "measure/metrics.h"
#include "model/parameters.h"
#include "model/replicas.h"
#include "model/stack.h"
#include "train/optimizer.h"
#include "train/payload_error.h"
#include "train/task.h"

typedef struct moe_training {
    moe_stack *stack;          /* not owned */
    moe_batch *batch;          /* of the stack's context; the task fills in its bytes; not owned */
    moe_parameters parameters; /* of the layers and the task */
    moe_replicas *replicas;    /* [layers] how their gradients are summed */
    moe_task task;
    real *gradient;         /* [T,H] of the stack's output, then of its input */
    moe_step_metrics micro; /* of one micro-batch, where a step has several */
    int64_t *sums;          /* words that are added up over ranks: norm and losses of a step */
    bool bad_here;          /* a loss of this rank was not finite */
    int bad_rank;           /* lowest rank whose last loss was not finite, where one was */
    const moe_observer *observer; /* sees every layer of every micro-batch; NULL = nobody */
    moe_payload_error *fp32;      /* where the step is to be run with fp32 too; NULL = not */
    double alpha[MOE_NUM_LOSSES]; /* configured coefficients; those of the context are these times
                                     the schedule of balance.begin_step and ramp_steps */
    double alpha_all_layers;
    moe_stats whole; /* [layers] of all micro-batches of a step (balance.global_batch = step) */
} moe_training;

/* Local. Registers the parameters of the stack and of the task, and allocates what training needs.
 * The context keeps what backward reads, unless train.recompute. */
void moe_training_init(moe_training *t, moe_stack *stack, moe_batch *batch);
/* Local. To be called when placements with replicas have changed. */
void moe_training_replan(moe_training *t);
void moe_training_free(moe_training *t);

/* Collective. One step. metrics gets the losses and the traffic of all micro-batches
 * (moe_step_metrics_join), task_loss, gradient_norm and learning_rate. Fails with MOE_RUN_FAILED,
 * agreed by all ranks, when a loss or a gradient is not finite, and with the observer's failure;
 * nothing is updated then, nor when a self-check of the step did not pass. */
int moe_training_step(moe_training *t, int64_t step, moe_step_metrics *metrics, moe_status *st);

/* Collective. The mean task loss over `batches` fixed held-out batches. Nothing is updated. */
double moe_training_validate(moe_training *t, int64_t batches);

/* Collective. The same with `run` in place of moe_layer_forward (moe_stack_evaluate). */
double moe_training_evaluate(moe_training *t,
                             int64_t batches,
                             moe_stack_run_layer *run,
                             void *self);

#endif
