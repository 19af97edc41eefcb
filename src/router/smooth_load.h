/* smooth_load.h: the load of an expert as a probability, so that it has a gradient. docs/method.md
 * section 2, loss `load`.
 *
 *   shazeer  Load_i = sum_t Phi((z_i - kth_i) / sigma_i), kth_i the K-th largest of the noisy
 * logits H without H_i: the probability that expert i is chosen when its noise is drawn anew
 *            (Shazeer et al. 2017, arXiv 1701.06538, Eqs. 8 to 10)
 *   tutel    Load_i = sum_t Phi((s_i - z_(K)) / sigma), z_(K) the logit of the last choice: Tutel
 *            compares a score with a logit (tutel/impls/losses.py, load_loss; its gate_noise is
 *            sigma N) */
#ifndef MOESIM_ROUTER_SMOOTH_LOAD_H
#define MOESIM_ROUTER_SMOOTH_LOAD_H

#include <stdint.h>

#include "data/batch.h"
#include "router/routing.h"
#include "router/settings.h"

/* The logits of this rank's tokens before noise, and what the learned scale of the noise is made
 * of. */
typedef struct moe_noisy {
    const real *clean, *v; /* [T,N]; v is NULL unless noise_form = softplus */
} moe_noisy;

/* Local. load [N] of local token t, whose noisy logits are H [N] and whose experts are expert
 * [count] in falling order. Outside training (noisy NULL) it is 1 for the chosen, as in the paper's
 * code. */
void moe_smooth_load_token(const moe_router *r,
                           const moe_noisy *noisy,
                           int64_t t,
                           const double *H,
                           const int32_t *expert,
                           int32_t count,
                           double *load);

/* Local. For the counted tokens of [begin,end): dz [T,N] += gradient of sum_i w_i Load_i times
 * inverse_tokens, through z and through kth; spread [T,N] (or NULL) += what reaches sigma beside n
 * dz, which moe_noise_learned_gradient expects. Nothing where noisy is NULL. OpenMP over tokens. */
void moe_smooth_load_gradient(const moe_router *r,
                              const moe_noisy *noisy,
                              const moe_batch *batch,
                              moe_logits logits,
                              const moe_routing *routing,
                              int64_t begin,
                              int64_t end,
                              const double *w,
                              double inverse_tokens,
                              double *dz,
                              double *spread);

/* Local. Tutel's form: load [N] of a token with logits z [N] and scores s [N]. */
void moe_smooth_load_tutel(const moe_router *r,
                           const double *z,
                           const double *s,
                           int32_t last_choice,
                           double *load);

/* Local. Its gradient: dz [N] += of sum_i w_i Load_i times inverse_tokens, through the scores,
 * which must sum to 1, and through the logit of the last choice. ds [N] is working memory. */
void moe_smooth_load_tutel_gradient(const moe_router *r,
                                    const double *z,
                                    const double *s,
                                    const double *w,
                                    double inverse_tokens,
                                    int32_t last_choice,
                                    double *ds,
                                    double *dz);

#endif
