/* show_internal.h: the parts of a token's explanation on the screen, and what they have in common.
 * All functions are local. */
#ifndef MOESIM_EXPLAIN_SHOW_INTERNAL_H
#define MOESIM_EXPLAIN_SHOW_INTERNAL_H

#include "config/config.h"
#include "explain/explanation.h"
#include "output/format.h"
#include "output/screen.h"

/* --- parts of a layer, in their order --- */

/* --- show_exchange.c: the chosen experts, the rows, and what comes back --- */
void moe_explain_show_choices(const moe_screen *s,
                              const moe_config *c,
                              const moe_explained_layer *l);
void moe_explain_show_rows(const moe_screen *s,
                           const moe_config *c,
                           const moe_explanation *e,
                           const moe_explained_layer *l);
void moe_explain_show_outputs(const moe_screen *s,
                              const moe_config *c,
                              const moe_explained_layer *l);

/* --- show_losses.c: the token's share of the losses, and the gradient that it gets --- */
void moe_explain_show_losses(const moe_screen *s,
                             const moe_config *c,
                             const moe_explained_layer *l);
void moe_explain_show_gradients(const moe_screen *s,
                                const moe_config *c,
                                const moe_explained_layer *l);

/* --- show_shared.c --- */

/* Picks the experts that get a line, at most `most` of them: the chosen ones first, then those that
 * are ranked highest. They are put into `expert` in falling order of what they are ranked by, then
 * by index. Returns how many there are. */
int32_t moe_explain_show_top(const moe_explained_layer *l, int32_t most, int32_t *expert);
/* Which choice of the token an expert is; -1 where it was not chosen. */
int32_t moe_explain_show_choice_of(const moe_explained_layer *l, int32_t expert);
/* A number in at most 8 columns. */
moe_formatted moe_explain_show_number(double v);

#endif
