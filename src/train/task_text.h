/* task_text.h: the two ends of the language model. Layer 3 (act). Private to task.c and tests. */
#ifndef MOESIM_TRAIN_TASK_TEXT_H
#define MOESIM_TRAIN_TASK_TEXT_H

#include "train/task.h"

/* Local. Values, entries in the table of parameters and buffers. */
void moe_task_text_init(moe_task *task, moe_parameters *all);
/* Local. Each as the function of task.h without "text". */
void moe_task_text_input(
    moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0);
int64_t moe_task_text_loss(moe_task *task,
                           const moe_batch *b,
                           const real *h,
                           int64_t tokens_global,
                           moe_parameters *all,
                           int64_t *sum,
                           real *dh);
void moe_task_text_input_backward(moe_task *task,
                                  const moe_batch *b,
                                  const real *dx0,
                                  moe_parameters *all);

/* Local. Largest loss of a token that sum still has room for when all tokens have it (exact.h). */
static inline double moe_task_most(int64_t tokens_global) {
    double room = 0x1p61 / (double)(tokens_global > 0 ? tokens_global : 1);
    return room < 0x1p51 ? room : 0x1p51;
}

#endif
