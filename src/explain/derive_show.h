/* derive_show.h: a derivation on the screen. */
#ifndef MOESIM_EXPLAIN_DERIVE_SHOW_H
#define MOESIM_EXPLAIN_DERIVE_SHOW_H

#include "explain/derivation.h"
#include "output/screen.h"

/* Local, rank 0. Prints the first layer's figures in full, and those of other layers and
 * micro-batches where they do not agree. */
void moe_derive_show(const moe_screen *s, const moe_derivation *d);

#endif
