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

/* Local. Bytes that a row of a protocol occupies on the wire, headers included, out to an expert or
 * back. With hidden = 7168, K = 8, fp8 out and bf16 back (the figures are published):
 *
 *                        out    back
 *   bare                 7392   14336   the payload alone
 *   deepep_low_latency   7408   14336   out: 16 bytes in front (DeepEP V1)
 *   deepep_normal        7472   14384   8 bytes, K ids and K weights of 4 bytes each out, K weights
 *                                       back, rounded up to 16 bytes (DeepEP V1)
 *   deepep_v2            7488   14368   K ids of 8 bytes and K weights of 4 out, K weights back */
int64_t moe_row_format_wire_bytes(enum moe_row_protocol protocol,
                                  enum moe_payload payload,
                                  int64_t hidden,
                                  int64_t top_k,
                                  bool back);

#endif
