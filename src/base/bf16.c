/* bf16.c: loops without branches, which the compiler turns into vector code. */
#include "base/bf16.h"

#include "base/vector.h"

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

MOE_CLONES void moe_bf16_encode(const real *restrict x, int64_t n, uint16_t *restrict code) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of((float)x[i]);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        uint32_t quiet = (bits >> 16) | 0x40u;
        code[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
    }
}

MOE_CLONES void moe_bf16_decode(const uint16_t *restrict code, int64_t n, real *restrict x) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = (real)moe_bf16_value(code[i]);
    }
}
