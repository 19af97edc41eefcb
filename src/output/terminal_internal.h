/* report_parts.h: the parts that the table by step and the ending of a run consist of, in the order
 * in which they appear. Layer 4 (show). */
#ifndef MOESIM_OUTPUT_TERMINAL_INTERNAL_H
#define MOESIM_OUTPUT_TERMINAL_INTERNAL_H

#include "config/config.h"
#include "measure/metrics.h"
#include "output/screen.h"

/* report_training.c: heads and a row of the table by step when run.mode = train */
void moe_terminal_training_heads(const moe_screen *s, const moe_config *c);
void moe_terminal_training_row(moe_screen *s, const moe_config *c, const moe_step_metrics *r);
/* report_losses.c */
void moe_terminal_losses(const moe_screen *s, const moe_config *c, const moe_step_metrics *r);
/* report_volume.c */
void moe_terminal_volume(const moe_screen *s, const moe_config *c, const moe_step_metrics *r);
/* report_capacity.c: nothing without a capacity */
void moe_terminal_capacity(const moe_screen *s, const moe_config *c, const moe_step_metrics *r);
/* report_load.c: metrics, bars, matrix */
void moe_terminal_load(const moe_screen *s, const moe_config *c, const moe_step_metrics *r);

/* A number in few columns: fewer decimals from 100 on, none from 1000 on, 1.2e+06 from a million
 * on. */
moe_formatted moe_terminal_short(double value, int decimals);
/* " (mean of 4 layers)" or "": how figures of several layers were put together. */
moe_formatted moe_terminal_layers(const moe_step_metrics *r, const char *how);

#endif
