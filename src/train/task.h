/* task.h: what is learned: the two ends of the network around the MoE layers.
 *
 *   text        a language model of bytes. The input of token t is the embedding of its byte and of
 *               the bytes before it in its sequence,
 *                   x0_t = 1/sqrt(C) sum_{j < C} table[j][byte_{t-j}],   C = train.context,
 *               and after the layers come an RMSNorm and a head [256,H]; the loss is the
 *               cross-entropy of the next byte in nats, a mean over the counted tokens of the
 * global batch. Several files or folders are several domains. The last train.validation_share of
 * every device's share of every domain is held out. regression  for synthetic tokens: target_t =
 * x_t s_topic + b_topic with keyed random vectors of each topic; the loss is the mean of (h -
 * target)^2 over tokens and elements. The ideal assignment of topics to experts is known, so
 * specialisation can be scored.
 *
 * Both are rows of one table (task_internal.h). */
#ifndef MOESIM_TRAIN_TASK_H
#define MOESIM_TRAIN_TASK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/block.h"
#include "config/config.h"
#include "data/batch.h"
#include "data/input.h"
#include "data/window.h"
#include "model/parameters.h"

enum { MOE_VOCABULARY = 256 };

struct moe_task_kind;

typedef struct moe_task {
    const struct moe_task_kind *kind;
    const moe_config *config;
    moe_corpus corpus;
    int64_t hidden, num_tokens;
    int32_t context;
    moe_block block; /* all arrays below */

    int32_t *domain; /* [T] text: which file or folder; regression: the topic */

    /* text */
    uint8_t *next;                                /* [T] the byte to predict */
    int64_t *position;                            /* [T] where the token stands in the text */
    real *table;                                  /* [context,256,H] */
    real *head_norm;                              /* [H] */
    real *head;                                   /* [256,H] */
    real *normed;                                 /* [T,H] input of the head */
    double *inverse_rms;                          /* [T] */
    real *logits;                                 /* [T,256], then their gradient */
    int table_index, head_norm_index, head_index; /* in the table of parameters; -1 = none */

    /* regression */
    real *teacher; /* [num_topics][2][H] s and b of each topic */
    real *target;  /* [T,H] */
} moe_task;

/* Local. Whether the task is the language model. */
bool moe_task_is_text(const moe_task *task);

/* Local. For run.mode = train, after moe_input_read: MOE_USER with one sentence when a device's
 * share of a domain, or what is held out of it when validations are asked for, is shorter than a
 * sequence and the byte after it. The same answer on every rank. */
int moe_task_check(const moe_config *c, const moe_input *input, moe_status *st);
/* Local. Keyed initial values; adds embedding, head_norm and head to the table (text). All memory
 * is taken here. b's layout must not change. */
void moe_task_init(moe_task *task,
                   const moe_config *c,
                   const moe_input *input,
                   const moe_batch *b,
                   moe_parameters *all);
/* Local. Makes the batch of a draw (draw = step * accumulate + micro-batch; validation: the batch's
 * number) and x0 [T,H]; fills b->byte, next, domain, target. */
void moe_task_input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0);
/* Local. Adds this rank's loss to sum [MOE_EXACT_WORDS] (exact: sum over counted tokens of nats, or
 * of squared error / H) and its counted tokens to *tokens. With dh [T,H] (else NULL): gradient of
 * (sum over the global batch / tokens_global) with respect to h; head gradients are added to the
 * devices' partials. Returns the first local token whose loss is not finite (or too large to be
 * added up with the rest), which sum leaves out; -1 = none. */
int64_t moe_task_loss(moe_task *task,
                      const moe_batch *b,
                      const real *h,
                      int64_t tokens_global,
                      moe_parameters *all,
                      int64_t *sum,
                      int64_t *tokens,
                      real *dh);
/* Local. Adds the gradient of the table: dx0 [T,H]. */
void moe_task_input_backward(moe_task *task,
                             const moe_batch *b,
                             const real *dx0,
                             moe_parameters *all);
void moe_task_free(moe_task *task);

/* --- text, for generating --- */

/* Local. x [H] = the input of the byte *last, which has `place` bytes of its sequence in front of
 * it. */
void moe_task_embed(const moe_task *task, const uint8_t *last, int64_t place, real *x);
/* Local. z [rows,256] = the logits of the byte behind each of the hidden states h [rows,H]; normed
 * [rows,H] is written over. Each row is computed by itself: its bits do not depend on the others.
 * OpenMP. */
void moe_task_logits(const moe_task *task, const real *h, int64_t rows, real *normed, real *z);

#endif
