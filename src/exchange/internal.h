/* internal.h: what dispatch and combine share: the counts and offsets of one Alltoallv. */
#ifndef MOESIM_EXCHANGE_INTERNAL_H
#define MOESIM_EXCHANGE_INTERNAL_H

#include "exchange/exchange.h"

/* In units of the Alltoallv's rows; each use is over before the next begins. */
typedef struct moe_exchange_layout {
    int64_t *send_count, *send_offset, *recv_count, *recv_offset; /* [ranks] */
} moe_exchange_layout;

/* Local. The arrays, which the exchange owns. */
moe_exchange_layout moe_exchange_layout_of(const moe_exchange *e);

/* Local. Puts blocks one behind the other. */
void moe_exchange_layout_set_offsets(const moe_exchange_layout *l, int ranks);

/* Local. Rows for and from each other rank; none for the own. Send offsets and receive offsets
 * leave out the own rank's block. */
moe_exchange_layout moe_exchange_layout_vectors(const moe_exchange *e, const moe_plan *plan);

#endif
