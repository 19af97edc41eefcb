/* activation.c: the nonlinearities and their derivatives, as loops that give the same bits at any
 * vector width. */
#include "experts/activation.h"

#include <math.h>
#include <string.h>

#include "base/vector.h"

#ifdef MOE_REAL_DOUBLE
static inline double sigmoid(double a) {
    return 1 / (1 + exp(-a));
}
#else
/* e^a for |a| <= 87: with a = n ln 2 + r and |r| <= ln 2 / 2, e^r comes from its Taylor polynomial
 * of degree 7, and 2^n is made of its exponent bits. Adding 1.5 * 2^23 rounds to an integer without
 * an instruction that the oldest x86-64 processors lack. */
static inline float exp_float(float a) {
    const float magic = 12582912.0f;
    const float ln2_hi = 0.693145751953125f;
    const float ln2_lo = 1.42860677e-6f;
    a = a < -87.0f ? -87.0f : a;
    a = a > 87.0f ? 87.0f : a;
    float shifted = a * 1.44269504f + magic;
    float n = shifted - magic;
    float r = (a - n * ln2_hi) - n * ln2_lo;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits; /* without a sign, because NaN comes here too, from a run that diverges */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4B400000U + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline float sigmoid(float a) {
    return 1 / (1 + exp_float(-a));
}
#endif

MOE_CLONES void moe_activation_swiglu(const real *h1, const real *h3, real *h, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        h[i] = h1[i] * sigmoid(h1[i]) * h3[i];
    }
}

MOE_CLONES void moe_activation_silu(const real *h1, const real *h3, real *h, int64_t n) {
    (void)h3;
    for (int64_t i = 0; i < n; i++) {
        h[i] = h1[i] * sigmoid(h1[i]);
    }
}

void moe_activation_gelu(const real *h1, const real *h3, real *h, int64_t n) {
    (void)h3;
    for (int64_t i = 0; i < n; i++) {
        h[i] = (real)(0.5 * h1[i] * (1 + erf(h1[i] * M_SQRT1_2)));
    }
}

void moe_activation_relu(const real *h1, const real *h3, real *h, int64_t n) {
    (void)h3;
    for (int64_t i = 0; i < n; i++) {
        h[i] = h1[i] > 0 ? h1[i] : 0;
    }
}

/* silu'(a) = sigma(a) (1 + a (1 - sigma(a))) */
MOE_CLONES void moe_activation_swiglu_backward(const real *h1,
                                               const real *h3,
                                               const real *dh,
                                               real *dh1,
                                               real *dh3,
                                               int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        real s = sigmoid(h1[i]);
        real a = h1[i];
        real b = h3[i];
        real d = dh[i];
        dh1[i] = d * b * (s * (1 + a * (1 - s)));
        dh3[i] = d * (a * s);
    }
}

MOE_CLONES void moe_activation_silu_backward(const real *h1,
                                             const real *h3,
                                             const real *dh,
                                             real *dh1,
                                             real *dh3,
                                             int64_t n) {
    (void)h3, (void)dh3;
    for (int64_t i = 0; i < n; i++) {
        real s = sigmoid(h1[i]), a = h1[i];
        dh1[i] = dh[i] * (s * (1 + a * (1 - s)));
    }
}

/* gelu'(a) = (1 + erf(a / sqrt 2)) / 2 + a e^(-a^2/2) / sqrt(2 pi) */
void moe_activation_gelu_backward(const real *h1,
                                  const real *h3,
                                  const real *dh,
                                  real *dh1,
                                  real *dh3,
                                  int64_t n) {
    (void)h3, (void)dh3;
    for (int64_t i = 0; i < n; i++) {
        double a = h1[i];
        dh1[i] = (real)(dh[i] * (0.5 * (1 + erf(a * M_SQRT1_2)) +
                                 a * exp(-0.5 * a * a) * 0.3989422804014326779));
    }
}

void moe_activation_relu_backward(const real *h1,
                                  const real *h3,
                                  const real *dh,
                                  real *dh1,
                                  real *dh3,
                                  int64_t n) {
    (void)h3, (void)dh3;
    for (int64_t i = 0; i < n; i++) {
        dh1[i] = h1[i] > 0 ? dh[i] : 0;
    }
}
