/* bf16.h: numbers as the upper 16 bits of a float: sign, 8 bits of exponent, 7 of mantissa. */
#ifndef MOESIM_BASE_BF16_H
#define MOESIM_BASE_BF16_H

#include <stdint.h>
#include <string.h>

#include "base/alloc.h"

/* Local. code[i] = x[i] as a float, rounded to the nearest bf16 and in ties to the even one. NaN
 * stays NaN, and what is too large becomes Inf. */
void moe_bf16_encode(const real *restrict x, int64_t n, uint16_t *restrict code);
void moe_bf16_decode(const uint16_t *restrict code, int64_t n, real *restrict x);

/* Local. The value of one code. */
static inline float moe_bf16_value(uint16_t code) {
    const uint32_t bits = (uint32_t)code << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
