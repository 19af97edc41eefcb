/* training_history.h: what a training run remembers of its past: the figures of the first step and
 * of the last twenty, and the validations.
 *
 * A moe_training_history consists of doubles only. It is the same on every rank and for any number
 * of ranks, so it holds no times. An empty one is all zero. A checkpoint carries it as it is, as a
 * blob of moe_training_history_bytes. */
#ifndef MOESIM_OUTPUT_TRAINING_HISTORY_H
#define MOESIM_OUTPUT_TRAINING_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "measure/metrics.h"

enum { MOE_HISTORY_WINDOW = 20 }; /* how many steps "the last" ones are */

/* The figures of one step that are remembered: means over layers, or sums over layers where bytes
 * are counted. MOE_FIGURE_RAW + enum moe_loss is a raw loss. */
enum moe_figure {
    MOE_FIGURE_TASK_LOSS,
    MOE_FIGURE_BALANCE_LOSS, /* sum of alpha x loss */
    MOE_FIGURE_RAW,
    MOE_FIGURE_EXPERT_MAXVIO = MOE_FIGURE_RAW + MOE_NUM_LOSSES, /* of selections by expert */
    MOE_FIGURE_DEVICE_MAXVIO,                                   /* of selections by device */
    MOE_FIGURE_RECEIVED_MAXVIO,                                 /* of rows received by device */
    MOE_FIGURE_DISPATCH_BYTES, /* payload that dispatch sends to other devices */
    MOE_FIGURE_SENT_BYTES,     /* the same in all directions */
    MOE_FIGURE_GRADIENT_NORM,
    MOE_FIGURE_LEARNING_RATE,
    MOE_NUM_FIGURES
};

typedef struct moe_validations {
    double count, first, first_step, last, last_step, best, best_step;
} moe_validations;

typedef struct moe_training_history {
    double steps;                                       /* how many were added */
    double first[MOE_NUM_FIGURES];                      /* of the first step */
    double recent[MOE_HISTORY_WINDOW][MOE_NUM_FIGURES]; /* step i stands at i modulo the window */
    double lowest; /* lowest mean of the task's loss over a full window, once there was one */
    moe_validations validation;
} moe_training_history;

/* What stays the same during training, for the header on the screen and for the summary. The
 * figures of a text are 0 for other tasks. */
typedef struct moe_training_facts {
    int64_t text_bytes;
    int32_t domains;
    double unigram_entropy;                           /* of the text's bytes, nats; 0: unknown */
    int64_t expert_parameters, replicated_parameters; /* of the whole model, each counted once */
} moe_training_facts;

/* Local. Bytes of a history, for a checkpoint. */
static inline int64_t moe_training_history_bytes(void) {
    return (int64_t)sizeof(moe_training_history);
}

/* Local. Whether a history that was read can be that of a run after `steps` steps: every number
 * that stands for a step or a count is one, and in range. */
bool moe_training_history_is_sound(const moe_training_history *h, int64_t steps);

/* Local. The facts of a resolved configuration and of the text that was read (NULL for other
 * tasks). */
moe_training_facts moe_training_facts_of(const moe_config *c,
                                         const uint8_t *text,
                                         int64_t text_bytes,
                                         int32_t domains);

/* Local. The figures of one step; NaN: not defined. */
void moe_training_history_figures(const moe_step_metrics *step, double figure[MOE_NUM_FIGURES]);
/* Local. Adds a step. A step in which nothing was trained is left out: it has no learning rate,
 * because a self-check had failed before. */
void moe_training_history_add(moe_training_history *h, const moe_step_metrics *step);

/* Local. How many steps are in the mean of the last ones: at most MOE_HISTORY_WINDOW. */
int64_t moe_training_history_window(const moe_training_history *h);
/* Local. A figure of the first step, of the last step, and its mean over the last
 * moe_training_history_window steps. NaN without steps. */
double moe_training_history_first(const moe_training_history *h, int figure);
double moe_training_history_last(const moe_training_history *h, int figure);
double moe_training_history_mean(const moe_training_history *h, int figure);

/* Local. Whether the task's loss, as mean over the last steps, is above that of the first step, or
 * no number. */
bool moe_training_history_rose(const moe_training_history *h);
/* Local. Whether this mean is above the unigram entropy of the text, where that is known. Then a
 * table of byte frequencies does as well as whatever was learned. */
bool moe_training_history_above_unigram(const moe_training_history *h, const moe_training_facts *f);
/* Local. Whether the loss diverged: it rose, or it is above the unigram entropy although it was
 * lower before. A loss that is still falling has not diverged. */
bool moe_training_history_diverged(const moe_training_history *h, const moe_training_facts *f);

#endif
