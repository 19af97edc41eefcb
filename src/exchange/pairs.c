/* pairs.c: one number of each pair goes back from where its expert is to where its token is: the
 * gradients of the weights. */
#include <string.h>

#include "exchange/internal.h"
#include "exchange/row_format.h"

/* Numbers for the ranks of the host are read where they stand. */
static void bring_near_pairs(moe_exchange *e,
                             const moe_plan *plan,
                             const real *values,
                             real *returned) {
    const int64_t bytes = sizeof(real);
    moe_host *h = e->host;
    char *own = moe_near_results(e, MOE_UNIT_PAIR, bytes, &e->pairs);
    moe_shown_write(&e->pairs, h, (const char *)values, e->inbox.num_pairs, bytes, own);
    moe_shown_end(&e->pairs, h);
    for (int p = 0; p < h->size; p++) {
        const int q = h->id[p];
        const int64_t begin = plan->rank_pair[q], count = plan->rank_pair[q + 1] - begin;
        if (count > 0) {
            memcpy(returned + begin, moe_near_returned(e, MOE_UNIT_PAIR, bytes, &e->pairs, q),
                   (size_t)(count * bytes));
        }
    }
}

void moe_exchange_bring_pairs(moe_exchange *e,
                              const moe_plan *plan,
                              const real *values,
                              real *returned) {
    const moe_inbox *in = &e->inbox;
    const int rank = e->comm->rank;
    int64_t *begin = e->word_begin; /* the metadata have arrived */
    for (int q = 0; q <= plan->ranks; q++) {
        begin[q] = in->row_pair[in->rank_row[q]];
    }
    if (e->host) {
        bring_near_pairs(e, plan, values, returned);
    } else if (begin[rank + 1] > begin[rank]) {
        memcpy(returned + plan->rank_pair[rank], values + begin[rank],
               (size_t)(begin[rank + 1] - begin[rank]) * sizeof(real));
    }
    moe_exchange_carry(e,
                       &(moe_cargo){.begin = begin,
                                    .arriving = plan->rank_pair,
                                    .from = (const char *)values,
                                    .bytes = sizeof(real),
                                    .most = e->most_rows,
                                    .into = (char *)returned,
                                    .what = "numbers of pairs"},
                       NULL);
}

void moe_exchange_return_pairs(moe_exchange *e,
                               const moe_plan *plan,
                               const real *values,
                               real *returned) {
    if (moe_row_format_hops(plan->mode) > 1) {
        moe_relay_bring_pairs(e, plan, values, returned);
    } else {
        moe_exchange_bring_pairs(e, plan, values, returned);
    }
}
