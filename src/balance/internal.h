/* internal.h: what scopes.c and scopes_parts.c share: the vector of the sum over the ranks, and the
 * sums of the losses in it. */
#ifndef MOESIM_BALANCE_INTERNAL_H
#define MOESIM_BALANCE_INTERNAL_H

#include "balance/scopes.h"

/* Local. The sequence that the first token of device d cuts in two, or -1 where that token begins a
 * sequence. */
int64_t moe_scopes_cut_sequence(const moe_batch *b, int32_t d);

/* Local. Room for the vector, cleared, and the list of the sequences that several ranks hold. The
 * global cell has been reserved. */
void moe_scopes_reserve_vector(moe_scopes *s, const moe_batch *b);

/* Local. The vector is [global cell | shared sequences | sums of losses]; the last part begins
 * here: [2][MOE_SCOPES_MEAN_WORDS], of sequences and of devices. */
int64_t *moe_scopes_loss_sums(const moe_scopes *s);

/* Local. Adds the losses of a cell to sum [MOE_SCOPES_MEAN_WORDS], unless it has no tokens. */
void moe_scopes_add_losses(const moe_balance *balance,
                           const moe_placement *placement,
                           const moe_stats *stats,
                           int64_t *cell,
                           int64_t *sum);

#endif
