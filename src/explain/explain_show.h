/* explain_show.h: an explanation on the screen. Layer 4 (show). Rank 0 only; text from the
 * explanation, clean when piped. */
#ifndef MOESIM_EXPLAIN_EXPLAIN_SHOW_H
#define MOESIM_EXPLAIN_EXPLAIN_SHOW_H

#include "config/config.h"
#include "explain/explanation.h"
#include "output/screen.h"

/* Local. One token's way, layer by layer: scores, groups, experts and weights, rows, outputs,
 * shares of the losses, gradients. */
void moe_explain_show(const moe_screen *s, const moe_config *c, const moe_explanation *e);

/* Local. A byte as text: itself, \n, \t, \\, or \xNN: nothing that controls a terminal. Returns its
 * length. */
int moe_explain_byte(int64_t byte, char text[5]);

#endif
