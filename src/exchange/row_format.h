/* row_format.h: what a row of the exchange is. A mode of the exchange is one row of the table in
 * row_format.c: it says how the pairs of a token are cut into rows, and which metadata travel with
 * a row. Plan, exchange and the figures on the volume read it from there. docs/method.md section 4.
 *
 * Metadata are int32 words. In front of a row stands its head: the token's id and, where a row may
 * have several pairs, their number. Each pair follows with its expert's id and its weight. */
#ifndef MOESIM_EXCHANGE_ROW_FORMAT_H
#define MOESIM_EXCHANGE_ROW_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"

typedef struct moe_row_format {
    const char *name; /* the value of exchange.mode */
    /* Does a pair for `device` begin a row, where the pair before it, of the same token, is for
     * `previous`? A token's pairs come in ascending order of (device, expert), and its first pair
     * always begins a row. */
    bool (*begins_row)(int32_t device, int32_t previous);
    bool several_pairs; /* a row may have several pairs, and its head says how many */
    int32_t head_words;
} moe_row_format;

enum { MOE_PAIR_WORDS = 1 + (int)(sizeof(real) / sizeof(int32_t)) };

/* Local. The format of a mode that exists; asserts that it does. */
const moe_row_format *moe_row_format_of(enum moe_exchange_mode mode);

/* Local. Words of metadata of some rows and their pairs. */
static inline int64_t moe_row_format_words(const moe_row_format *f, int64_t rows, int64_t pairs) {
    return rows * f->head_words + pairs * MOE_PAIR_WORDS;
}

#endif
