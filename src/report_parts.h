/* report_parts.h: the parts that the table by step and the ending of a run consist of, in the order in which they appear. Layer 4 (show). */
#ifndef MOESIM_REPORT_PARTS_H
#define MOESIM_REPORT_PARTS_H

#include "moesim/config.h"
#include "moesim/record.h"
#include "moesim/screen.h"

/* report_training.c: heads and a row of the table by step when run.mode = train */
void moe_report_training_heads(const moe_screen *s, const moe_config *c);
void moe_report_training_row(moe_screen *s, const moe_config *c, const moe_step_record *r);
/* report_losses.c */
void moe_report_losses(const moe_screen *s, const moe_config *c, const moe_step_record *r);
/* report_volume.c */
void moe_report_volume(const moe_screen *s, const moe_config *c, const moe_step_record *r);
/* report_capacity.c: nothing without a capacity */
void moe_report_capacity(const moe_screen *s, const moe_config *c, const moe_step_record *r);
/* report_load.c: metrics, bars, matrix */
void moe_report_load(const moe_screen *s, const moe_config *c, const moe_step_record *r);

/* A number in few columns: fewer decimals from 100 on, none from 1000 on, 1.2e+06 from a million on. */
moe_text moe_report_short(double value, int decimals);
/* " (mean of 4 layers)" or "": how figures of several layers were put together. */
moe_text moe_report_layers(const moe_step_record *r, const char *how);

#endif
