/* terminal_internal.h: the parts that the table by step and the ending of a run consist of, and
 * what they have in common. All functions are local and write on rank 0 only. */
#ifndef MOESIM_OUTPUT_TERMINAL_INTERNAL_H
#define MOESIM_OUTPUT_TERMINAL_INTERNAL_H

#include "config/config.h"
#include "measure/figures.h"
#include "measure/metrics.h"
#include "output/format.h"
#include "output/screen.h"

/* --- the table by step, in training: terminal_training_steps.c --- */

void moe_terminal_training_heads(const moe_screen *s, const moe_config *c);
void moe_terminal_training_row(moe_screen *s, const moe_config *c, const moe_step_metrics *m);

/* --- the ending, in its order --- */

/* --- terminal_headline.c: the busiest device, and what one row per token and device saves --- */
void moe_terminal_headline(const moe_screen *s,
                           const moe_config *c,
                           const moe_step_metrics *m,
                           const moe_figures *f);
/* --- terminal_losses.c: the balance losses --- */
void moe_terminal_losses(const moe_screen *s,
                         const moe_config *c,
                         const moe_step_metrics *m,
                         const moe_figures *f);
/* --- terminal_volume.c: devices per token, and what was sent --- */
void moe_terminal_volume(const moe_screen *s,
                         const moe_config *c,
                         const moe_step_metrics *m,
                         const moe_figures *f);
/* --- terminal_capacity.c: what the capacity dropped; nothing without a capacity --- */
void moe_terminal_capacity(const moe_screen *s,
                           const moe_config *c,
                           const moe_step_metrics *m,
                           const moe_figures *f);
/* --- terminal_load.c: metrics of balance, bars, and the device matrix --- */
void moe_terminal_load(const moe_screen *s, const moe_config *c, const moe_step_metrics *m);

/* --- terminal_predicted.c: how long the last step would take on the cluster of [cluster] --- */
void moe_terminal_predicted(const moe_screen *s, const moe_config *c, const moe_step_metrics *m);

/* --- terminal_end.c: the self-checks, counted or all of them --- */
void moe_terminal_checks(const moe_screen *s, const moe_config *c, const moe_step_metrics *m);

/* --- terminal_shared.c --- */

/* Whether the task is to predict a text. */
bool moe_terminal_is_text(const moe_config *c);
/* On a terminal, erases the line of the progress. */
void moe_terminal_erase_line(const moe_screen *s);
/* One warning of the header. */
void moe_terminal_warn(const moe_screen *s, const char *text);
/* How figures of several layers were put together: ", mean of 4 layers", or "" for one layer. */
moe_formatted moe_terminal_layers(const moe_step_metrics *m, const char *how);
/* Whether the balance losses are defined: a recorded routing without scores has none. */
bool moe_terminal_has_losses(const moe_step_metrics *m);

#endif
