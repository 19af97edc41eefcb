/* noisy.h: what chance does to the gate in training, and the smooth load that it makes possible.
 * Layer 2 (decide): pure.
 *
 *   jitter   the gate reads u_j (1 + eps r_j), r uniform in [-1,1): Switch Transformers
 * (2101.03961), input jitter noise    H_i = z_i + n_i sigma_i, n standard normal: Shazeer et al.
 * 2017 (1701.06538) Eqs. 3 to 5. sigma_i = router.noise, or with noise_form = softplus  sigma_i =
 * softplus(v_i) + router.noise, v = u W_noise learned with the rest (FastMoE: router.noise = 0.01)
 *   load     Load_i = sum_t Phi((z_i - kth_i) / sigma_i), kth_i the K-th largest of H without H_i:
 * Eqs. 8 to 10
 *
 * Everything is keyed by (seed, step, layer, token, element): the same in backward as in forward.
 * Noise of a fixed scale is moe_router_perturb's. */
#ifndef MOESIM_ROUTER_NOISE_H
#define MOESIM_ROUTER_NOISE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/batch.h"
#include "router/router.h"
#include "router/routing.h"

/* Local. Whether jitter acts in this step; whether learned noise does. */
static inline bool moe_jitter_acts(const moe_router *r) {
    return r->training && r->jitter > 0;
}
static inline bool moe_noise_is_learned(const moe_router *r) {
    return r->noise_form == MOE_NOISE_SOFTPLUS;
}

/* Local. out [T,H] = in [T,H] with every element multiplied by its factor; may be in place. Its own
 * transpose: the gradient goes the same way. OpenMP over tokens. */
void moe_jitter(const moe_router *r, const moe_batch *batch, int64_t h, const real *in, real *out);

/* Local. noise_form = softplus: logits [T,N] += n sigma(v), v [T,N] = u W_noise. OpenMP over
 * tokens. */
void moe_noise_add(const moe_router *r, const moe_batch *batch, const real *v, real *logits);

/* Local. dv [T,N] = sigmoid(v) (n dz + spread): dz [T,N] = gradient with respect to the logits
 * before noise, all paths; spread [T,N] or NULL: what moe_noisy_load_gradient adds to that of
 * sigma. OpenMP over tokens. */
void moe_noise_gradient(const moe_router *r,
                        const moe_batch *batch,
                        const real *v,
                        const double *dz,
                        const double *spread,
                        real *dv);

/* Local. load [N] of token t, whose noisy logits are H [N] and whose experts are expert [count] in
 * falling order; r->noisy tells z and v. Outside training (r->noisy NULL) 1 for the chosen, as the
 * paper's code has it. */
void moe_noisy_load(const moe_router *r,
                    int64_t t,
                    const double *H,
                    const int32_t *expert,
                    int32_t count,
                    double *load);

/* Local. For the counted tokens of [begin,end): dz [T,N] += gradient of sum_i w_i Load_i x
 * inverse_tokens through z and through kth; spread [T,N] (or NULL) += what reaches sigma apart from
 * n dz, which moe_noise_gradient expects. OpenMP over tokens. */
void moe_noisy_load_gradient(const moe_router *r,
                             const moe_batch *batch,
                             moe_logits noisy,
                             const moe_routing *routing,
                             int64_t begin,
                             int64_t end,
                             const double *w,
                             double inverse_tokens,
                             double *dz,
                             double *spread);

#endif
