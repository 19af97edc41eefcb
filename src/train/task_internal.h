/* task_internal.h: the table of tasks, and what its rows share. */
#ifndef MOESIM_TRAIN_TASK_INTERNAL_H
#define MOESIM_TRAIN_TASK_INTERNAL_H

#include "base/exact.h"
#include "train/task.h"

/* One row of the table: each function does what the function of task.h with the same name says. */
typedef struct moe_task_kind {
    const char *name;
    void (*init)(moe_task *task, moe_parameters *all); /* values, table entries, buffers */
    void (*input)(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0);
    int64_t (*loss)(moe_task *task,
                    const moe_batch *b,
                    const real *h,
                    int64_t tokens_global,
                    moe_parameters *all,
                    int64_t *sum,
                    real *dh);
    void (*input_backward)(moe_task *task,
                           const moe_batch *b,
                           const real *dx0,
                           moe_parameters *all); /* NULL: the input has no parameters */
} moe_task_kind;

extern const moe_task_kind moe_task_text;       /* task_text.c */
extern const moe_task_kind moe_task_regression; /* task_regression.c */

/* Local. The largest loss of a token for which the exact sum has room when all tokens have it
 * (base/exact.h). */
static inline double moe_task_most(int64_t tokens_global) {
    double room = 0x1p61 / (double)(tokens_global > 0 ? tokens_global : 1);
    return room < 0x1p51 ? room : 0x1p51;
}

/* Local. Adds a thread's words of an exact sum to the task's. */
static inline void moe_task_add_words(int64_t *sum, const int64_t *words) {
    for (int i = 0; i < MOE_EXACT_WORDS; i++) {
        sum[i] += words[i];
    }
}

#endif
