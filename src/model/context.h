/* context.h: what the layers of a rank share. The pointers and the settings stay the same during a
 * run; step, draw, trains and keep say what is being done at the moment. */
#ifndef MOESIM_MODEL_CONTEXT_H
#define MOESIM_MODEL_CONTEXT_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/scopes.h"
#include "capacity/capacity.h"
#include "config/config.h"
#include "data/batch.h"
#include "data/input.h"
#include "exchange/payload.h"
#include "measure/timeline.h"
#include "placement/placement.h"
#include "router/router.h"
#include "world/comm.h"

typedef struct moe_context {
    const moe_comm *comm;
    const moe_config *config;
    const moe_batch *batch;
    const moe_input *input;
    moe_placement *placements; /* [num_layers] where the experts of each layer live */
    moe_router router;
    moe_balance balance;
    moe_capacity capacity;
    struct moe_serving *serving; /* what decides in every batch who serves whom (serving.h); NULL:
                                    the placements alone do */
    moe_scopes *all_layers; /* the tokens of all layers put together (moe_balance_has_all_layers),
                               finished by the forward pass of the last layer; or NULL */
    const moe_stats *whole_step; /* [num_layers] cells: the tokens of all micro-batches of the step,
                                    which the global scope is made of; NULL: of the micro-batch's */
    moe_timeline *timeline;      /* of the step; NULL: not recorded */

    int64_t step; /* keys what is drawn anew in every step */
    int64_t draw; /* of a training step's micro-batch: keys noise and expert dropout */
    bool bf16;    /* experts compute in bf16 */
    moe_payload_format dispatched; /* of x on its way to the experts */
    moe_payload_format combined;   /* of results, dy and dx */
    struct moe_host *host;         /* ranks that rows reach through shared memory, or NULL */
    struct moe_host *board;        /* ranks that sums reach by a board, or NULL */
    bool trains;                   /* a gradient will be taken: noise and expert dropout act */
    bool keep;        /* the layers keep what backward needs (pre-activations of the experts) */
    bool by_device;   /* forward only: logits and cells are forgotten device by device
                         (by_device.h) */
    bool counts_only; /* only rows and pairs are asked for: one number stands for a vector that
                         travels, and a layer gives back what it got */
} moe_context;

/* Collective, since ranks that share memory open a board (board.h); the same holds for
 * moe_context_free. Placements, router with the input's bias, losses and capacity, from a resolved
 * configuration and the files that were read for it. What places experts by their load begins with
 * blocks (moe_placement_init). The caller sets the rest, and calls moe_context_free; whatever is
 * pointed to stays the caller's. scratch: working memory of router and
 * batch, or NULL. */
void moe_context_init(moe_context *context,
                      const moe_comm *comm,
                      const moe_config *c,
                      moe_batch *batch,
                      const moe_input *input,
                      moe_scratch *scratch);

void moe_context_free(moe_context *context);

/* Local. NULL when the rows given to MPI_Alltoallv are the distinct tokens that f'' counts
 * (docs/method.md section 2), else a sentence that says why they are not. */
const char *moe_context_rows_not_tokens(const moe_context *context);

#endif
