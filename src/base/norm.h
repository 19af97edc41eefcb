/* norm.h: RMSNorm forward and backward, in front of the layers and of the head. Layer 0 (base).
 * Zhang and Sennrich 2019.
 *
 *   u_i = x_i r w_i,   r = 1 / sqrt(mean_i x_i^2 + 1e-6)     (the mean in double)
 *   dx_i = r (w_i du_i - x_i r^2 / H sum_k w_k du_k x_k)
 *   dw_i = sum_t du_ti x_ti r_t */
#ifndef MOESIM_BASE_NORM_H
#define MOESIM_BASE_NORM_H

#include "base/alloc.h"

/* Local. u [tokens,width] from x [tokens,width] and w [width]; inverse_rms [tokens] = r for the
 * backward pass, or NULL. OpenMP over tokens. */
void moe_rmsnorm(const real *x,
                 const real *w,
                 int64_t tokens,
                 int64_t width,
                 real *u,
                 double *inverse_rms);
/* Local. dx [tokens,width] from du [tokens,width]; dx may be du. OpenMP over tokens. */
void moe_rmsnorm_backward(const real *x,
                          const real *w,
                          const double *inverse_rms,
                          const real *du,
                          int64_t tokens,
                          int64_t width,
                          real *dx);
/* Local. dw [width] += the gradient of the weights. Tokens are added in their order, in double:
 * give it the tokens of one device at a time. OpenMP over columns. */
void moe_rmsnorm_weight_gradient(const real *x,
                                 const double *inverse_rms,
                                 const real *du,
                                 int64_t tokens,
                                 int64_t width,
                                 real *dw);

#endif
