/* activation.h: the nonlinearities of the FFN experts. Layer 0 (base). method.md section 5.
 *   silu(a) = a / (1 + e^-a)     gelu(a) = a/2 (1 + erf(a / sqrt 2))     relu(a) = max(a, 0)
 * silu uses its own exponential in float builds (2 ulp), written so that it vectorises; double
 * builds use libm. */
#ifndef MOESIM_EXPERTS_ACTIVATION_H
#define MOESIM_EXPERTS_ACTIVATION_H

#include <stdint.h>

#include "base/alloc.h"

/* Local. h[i] = silu(h1[i]) * h3[i]; h may be h1. */
void moe_swiglu(const real *h1, const real *h3, real *h, int64_t n);
void moe_silu(const real *h1, real *h, int64_t n);
void moe_gelu(const real *h1, real *h, int64_t n);
void moe_relu(const real *h1, real *h, int64_t n);

/* Local. Derivatives at the pre-activations: dh1[i] = dh[i] * act'(h1[i]) (and dh3[i] = dh[i] *
 * silu(h1[i]), dh1 *= h3 for swiglu). Outputs may be the inputs' arrays of the same name without
 * the d. */
void moe_swiglu_backward(
    const real *h1, const real *h3, const real *dh, real *dh1, real *dh3, int64_t n);
void moe_silu_backward(const real *h1, const real *dh, real *dh1, int64_t n);
void moe_gelu_backward(const real *h1, const real *dh, real *dh1, int64_t n);
void moe_relu_backward(const real *h1, const real *dh, real *dh1, int64_t n);

#endif
