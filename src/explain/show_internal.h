/* explain_show_parts.h: the parts of a token's explanation in the order in which they appear. Layer
 * 4 (show). Private to explain_show*.c. */
#ifndef MOESIM_EXPLAIN_SHOW_INTERNAL_H
#define MOESIM_EXPLAIN_SHOW_INTERNAL_H

#include "explain/explain_show.h"

/* explain_show_exchange.c */
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

/* explain_show_losses.c */
void moe_explain_show_losses(const moe_screen *s,
                             const moe_config *c,
                             const moe_explained_layer *l);
void moe_explain_show_gradients(const moe_screen *s,
                                const moe_config *c,
                                const moe_explained_layer *l);

/* The experts to show: expert [*count], at most `most`, the chosen ones first among them, in
 * falling order of what they are ranked by, then index. */
int32_t moe_explain_top(const moe_explained_layer *l, int32_t most, int32_t *expert);
/* Local. Which choice of the token an expert is, or -1. */
int32_t moe_explain_choice_of(const moe_explained_layer *l, int32_t expert);
/* Local. A number in at most 8 columns. */
moe_formatted moe_explain_number(double v);

#endif
