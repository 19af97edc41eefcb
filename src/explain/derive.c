/* derive.c: the figures of a step in the order in which they are shown. */
#include "explain/derive.h"

#include "explain/derive_internal.h"
#include "measure/figures.h"

void moe_derive_step(moe_derivation *d, const moe_config *c, const moe_step_metrics *m) {
    moe_figures f = moe_figures_of(m);
    moe_derive_losses_over_layers(d, c, m, &f);
    moe_derive_volume(d, c, m, &f);
    moe_derive_balance(d, m);
}
