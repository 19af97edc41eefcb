/* restart.h: what a training run must carry over a restart, and how it goes on: parameters and the
 * state of the optimizer, the results so far, the router biases, and a fingerprint of the text.
 * Nothing else lives from step to step. */
#ifndef MOESIM_RUN_RESTART_H
#define MOESIM_RUN_RESTART_H

#include "data/input.h"
#include "model/layer.h"
#include "output/results.h"
#include "run/rebalance.h"
#include "train/checkpoint.h"

/* What the layers have beside their trained parameters: balancing biases, and the matrices of LoRA
 * that are frozen. */
typedef struct moe_layer_state {
    moe_blob *blob; /* [num] "layer0.bias", "layer0.experts.base.w1", ... */
    char (*name)[64];
    int num;
} moe_layer_state;

/* Local. Points into the layers. The caller frees it with moe_layer_state_free. */
moe_layer_state moe_layer_state_of(const moe_layer *layers, int32_t num, const moe_config *c);
void moe_layer_state_free(moe_layer_state *s);

typedef struct moe_restart {
    const moe_comm *comm;
    const moe_config *config;
    const moe_input *input;
    const moe_layer *layers;
    moe_parameters *parameters;
    moe_results *results;
    moe_rebalance *rebalance;
} moe_restart;

/* Collective. Before step `step`: writes a checkpoint when train.checkpoint_every asks for one,
 * which includes step 0 and excludes the end. */
int moe_restart_write(const moe_restart *r, int64_t step, moe_status *st);

/* Collective. Writes the checkpoint after the last step, whose results are written
 * (train.save_final). */
int moe_restart_write_final(const moe_restart *r, moe_status *st);

/* Collective. Loads the checkpoint and reopens its folder; r->results is {0} on entry. Fails with
 * MOE_USER when the checkpoint belongs to another model, optimizer or text. */
int moe_restart_read(const moe_restart *r,
                     const moe_checkpoint *from,
                     const char *folder,
                     moe_status *st);

/* Collective. Only the model of the checkpoint: where its experts are, the parameters, and what the
 * layers have beside them. Results and input are not looked at. Fails with MOE_USER when it is
 * another model. */
int moe_restart_read_model(const moe_restart *r, const moe_checkpoint *from, moe_status *st);

#endif
