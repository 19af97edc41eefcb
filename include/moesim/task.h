/* task.h: what is learned: the ends of the network around the MoE layers. Layer 3 (act).
 *
 *   text: next-byte language model. x0[t] = sum_{j < context} table[j][byte[t-j]] / sqrt(context) (bytes before the sequence's start are left out);
 *     after the layers: rmsnorm, head [256,H], cross-entropy in nats, mean over the counted tokens of the global batch.
 *     Several files or folders are several domains. The last validation_share of every device's share of every domain is held out.
 *   synthetic: regression on topic-dependent targets: target[t] = x[t] * s_topic + b_topic (keyed random vectors), loss = mean over tokens and
 *     elements of (h - target)^2; the ideal assignment (topic -> experts) is known, so specialisation can be scored. */
#ifndef MOESIM_TASK_H
#define MOESIM_TASK_H

#include <stdbool.h>
#include <stdint.h>
#include "moesim/config.h"
#include "moesim/data.h"
#include "moesim/input.h"
#include "moesim/parameters.h"

enum moe_split { MOE_SPLIT_TRAIN, MOE_SPLIT_VALIDATION };

typedef struct moe_task {
    const moe_config *config;
    const moe_input *input;
    bool text;
    int64_t hidden;
    int32_t context;
    real *table;              /* [context,256,H] */
    real *head_norm;          /* [H] */
    real *head;               /* [256,H] */
    real *target;             /* [T,H] synthetic */
    uint8_t *next;            /* [T] text: the byte to predict */
    int32_t *domain;          /* [T] text: which file or folder; synthetic: the topic */
    real *scratch;
    int64_t scratch_room, token_room, target_room;
    int table_index, head_norm_index, head_index;   /* into the table of parameters */
} moe_task;

/* Local. Keyed initial values; adds embedding, head_norm and head to the table (text). */
void moe_task_init(moe_task *task, const moe_config *c, const moe_input *input, const moe_batch *b, moe_parameters *all);
/* Local. Makes the batch of a draw (draw = step * accumulate + micro-batch; validation: the batch's number) and x0 [T,H]; fills b->byte, next, domain, target. */
void moe_task_input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0);
/* Local. Adds this rank's loss to sum [MOE_EXACT_WORDS] (exact: sum over counted tokens of nats, or of squared error / H) and its tokens to *tokens.
 * With dh [T,H]: gradient of (sum over the global batch / tokens_global) with respect to h; head gradients are added to the devices' partials. */
void moe_task_loss(moe_task *task, const moe_batch *b, const real *h, int64_t tokens_global, moe_parameters *all, int64_t *sum, int64_t *tokens, real *dh);
/* Local. Adds the gradient of the table: dx0 [T,H]. */
void moe_task_input_backward(moe_task *task, const moe_batch *b, const real *dx0, moe_parameters *all);
void moe_task_free(moe_task *task);

#endif
