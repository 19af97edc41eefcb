/* noise.h: what chance does to the gate in training: jitter of its input, noise on its logits, and
 * experts that are dropped for a step. docs/method.md section 1.1.
 *
 *   jitter   the gate reads u_j (1 + eps r_j), r uniform in [-1,1): the input jitter of Switch
 *            Transformers (arXiv 2101.03961)
 *   noise    H_i = z_i + n_i sigma_i, n standard normal: Shazeer et al. 2017 (arXiv 1701.06538)
 *            Eqs. 3 to 5. noise_form = gaussian: sigma_i = router.noise. noise_form = softplus:
 *            sigma_i = softplus(v_i) + router.noise, v = u W_noise, learned with the rest (as in
 *            FastMoE, where router.noise is 0.01)
 *   dropout  a share of the experts, drawn anew in every step and layer, is disabled
 *
 * Everything is keyed by (seed, step, layer, token, element) and so is the same in backward as in
 * forward. */
#ifndef MOESIM_ROUTER_NOISE_H
#define MOESIM_ROUTER_NOISE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/batch.h"
#include "router/settings.h"

/* Local. Whether jitter acts in this step. */
static inline bool moe_noise_jitters(const moe_router *r, const moe_draw *d) {
    return d->training && r->jitter > 0;
}

/* Local. out [T,H] = in [T,H] with every element multiplied by its factor; may be in place. It is
 * its own transpose: the gradient goes the same way. OpenMP over tokens. */
void moe_noise_jitter(const moe_router *r,
                      const moe_draw *d,
                      const moe_batch *batch,
                      int64_t h,
                      const real *in,
                      real *out);

/* Local. Whether the scale of the noise is learned. */
static inline bool moe_noise_is_learned(const moe_router *r) {
    return r->noise_form == MOE_NOISE_SOFTPLUS;
}

/* Local. sigma of one logit, given its v where the scale is learned. */
double moe_noise_sigma(const moe_router *r, double v);

/* Local. Whether importance or load are of the scores without noise: Tutel's losses are
 * (tutel/impls/moe_layer.py calls both with the softmax of the logits before noise). */
static inline bool moe_noise_has_quiet(const moe_router *r) {
    const bool noisy = r->noise > 0 || moe_noise_is_learned(r);
    return noisy && (r->load_form == MOE_LOAD_TUTEL || r->importance_of == MOE_IMPORTANCE_SCORES);
}

/* Local. Whether training keeps the logits before noise. */
static inline bool moe_noise_keeps_clean(const moe_router *r) {
    return r->load_form == MOE_LOAD_SHAZEER || moe_noise_has_quiet(r);
}

/* Local. Of one token: clean [N] = its logits before noise, but -inf for the experts that are
 * disabled in z [N]; quiet [N] = the scores of these. */
void moe_noise_quiet_scores(const moe_router *r,
                            const real *before,
                            const double *z,
                            double *clean,
                            double *quiet);

/* Local. Noise of learned scale: logits [T,N] += n sigma(v), v [T,N] = u W_noise. OpenMP over
 * tokens. */
void moe_noise_add_learned(const moe_router *r,
                           const moe_draw *d,
                           const moe_batch *batch,
                           const real *v,
                           real *logits);

/* Local. Its gradient: dv [T,N] = sigmoid(v) (n dz + spread). dz [T,N] is the gradient with respect
 * to the logits before noise, over all paths; spread [T,N] or NULL is what reaches sigma beside n
 * dz (moe_smooth_load_gradient). OpenMP over tokens. */
void moe_noise_learned_gradient(const moe_router *r,
                                const moe_draw *d,
                                const moe_batch *batch,
                                const real *v,
                                const double *dz,
                                const double *spread,
                                real *dv);

/* Local. In training only: adds noise of a fixed scale to logits [T,N], then sets the experts that
 * this step and layer drop to -inf. In place, so that everything after it sees the same logits; the
 * gradient with respect to the logits before is the gradient with respect to those after, and 0
 * where disabled. OpenMP over tokens. */
void moe_noise_perturb(const moe_router *r,
                       const moe_draw *d,
                       const moe_batch *batch,
                       real *logits);

/* Local. dropped [N] = 1 for the experts that this step and layer drop: floor(share N + 0.5) of
 * them, but never all. */
void moe_noise_dropped_experts(const moe_router *r, const moe_draw *d, uint8_t *dropped);

#endif
