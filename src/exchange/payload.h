/* payload.h: the number formats in which vectors travel: fp32, bf16, and fp8 e4m3 with a scale for
 * each 128 values. docs/method.md section 4.
 *
 * fp8 is the recipe of DeepEP's per_token_cast_to_fp8: for each 128 values along the vector (the
 * last group may be shorter) a = max(max |x|, 1e-4), the code is e4m3(x * (448 / a)), rounded to
 * nearest even and at most 448 in size, and the scale a / 448 travels behind the codes. Written as
 * x / (a / 448) the last bit would differ. With MOE_FP8_SCALE_UE8M0 the scale is the next power of
 * two from a / 448 upwards, in one byte, and x is multiplied by its inverse.
 *
 * A group that holds NaN or Inf becomes NaN as a whole. `real` is rounded to float first, so that
 * moesim-f64 has the same codes; under the name fp32 it sends doubles. */
#ifndef MOESIM_EXCHANGE_PAYLOAD_H
#define MOESIM_EXCHANGE_PAYLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"

enum { MOE_FP8_GROUP = 128 }; /* values that share a scale */

typedef struct moe_payload_format {
    enum moe_payload type;
    enum moe_fp8_scale scale; /* of fp8 */
} moe_payload_format;

/* Local. The formats of the configuration: of x on its way to the experts; and of everything else:
 * what the experts return, dy, and dx. */
static inline moe_payload_format moe_payload_of_dispatch(const moe_config *c) {
    return (moe_payload_format){c->exchange.payload, c->exchange.fp8_scale};
}
static inline moe_payload_format moe_payload_of_combine(const moe_config *c) {
    return (moe_payload_format){c->exchange.combine_payload, c->exchange.fp8_scale};
}

/* Local. True when vectors are rounded on their way. */
static inline bool moe_payload_rounds(moe_payload_format f) {
    return f.type != MOE_PAYLOAD_FP32;
}

/* Local. Bytes of a vector of n numbers on the wire. */
int64_t moe_payload_bytes(moe_payload_format f, int64_t n);

/* Local. Writes x [n] as moe_payload_bytes bytes to `row`, and reads it back. The row needs no
 * alignment. */
void moe_payload_encode(moe_payload_format f, const real *x, int64_t n, void *row);
void moe_payload_decode(moe_payload_format f, const void *row, int64_t n, real *x);

/* Local. count vectors of n numbers each, spread over OpenMP threads. */
void moe_payload_encode_all(moe_payload_format f,
                            const real *x,
                            int64_t count,
                            int64_t n,
                            char *rows);
void moe_payload_decode_all(moe_payload_format f,
                            const char *rows,
                            int64_t count,
                            int64_t n,
                            real *x);

#endif
