/* activation.h: the nonlinearities of the experts. docs/method.md section 5.
 *   silu(a) = a / (1 + e^-a)     gelu(a) = a/2 (1 + erf(a / sqrt 2))     relu(a) = max(a, 0)
 * silu uses an exponential of our own in float builds, accurate to 2 units in the last place and
 * written so that it vectorises; double builds use the C library's. */
#ifndef MOESIM_EXPERTS_ACTIVATION_H
#define MOESIM_EXPERTS_ACTIVATION_H

#include <stdint.h>

#include "base/alloc.h"

/* Local. h[i] from the pre-activations h1[i] and, for swiglu, h3[i]; h may be h1's array.
 *   swiglu: silu(h1) * h3     silu, gelu, relu: of h1 alone, and h3 is not read */
typedef void moe_activation_forward(const real *h1, const real *h3, real *h, int64_t n);

/* Local. The derivatives at the pre-activations: dh1[i] = dh[i] * dh/dh1, and for swiglu dh3[i] =
 * dh[i] * silu(h1[i]); the others do not write dh3. dh1 may be dh's array. */
typedef void moe_activation_backward(const real *h1,
                                     const real *h3,
                                     const real *dh,
                                     real *dh1,
                                     real *dh3,
                                     int64_t n);

moe_activation_forward moe_activation_swiglu, moe_activation_silu, moe_activation_gelu,
    moe_activation_relu;
moe_activation_backward moe_activation_swiglu_backward, moe_activation_silu_backward,
    moe_activation_gelu_backward, moe_activation_relu_backward;

#endif
