/* show.h: an explanation on the screen. */
#ifndef MOESIM_EXPLAIN_SHOW_H
#define MOESIM_EXPLAIN_SHOW_H

#include "config/config.h"
#include "explain/explanation.h"
#include "output/screen.h"

/* Local, rank 0. Prints the way of one token, layer by layer: scores, groups, experts and weights,
 * rows, outputs, shares of the losses, gradients. */
void moe_explain_show(const moe_screen *s, const moe_config *c, const moe_explanation *e);

#endif
