/* noise.c: jitter, noise and expert dropout. */
#include "router/noise.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/scratch.h"
#include "router/keyed.h"
#include "router/scores.h"

/* --- jitter --- */

void moe_noise_jitter(const moe_router *r,
                      const moe_draw *d,
                      const moe_batch *batch,
                      int64_t h,
                      const real *in,
                      real *out) {
    moe_rng rng = {d->seed, MOE_RNG_JITTER};
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < batch->num_tokens; t++) {
        uint64_t token = (uint64_t)(batch->first_token + t);
        for (int64_t i = 0; i < h; i++) {
            double uniform = moe_rng_uniform(rng, moe_draw_step_key(d), token, (uint32_t)i);
            double factor = 1 + r->jitter * (2 * uniform - 1);
            out[t * h + i] = (real)(factor * (double)in[t * h + i]);
        }
    }
}

/* --- noise of learned scale --- */

static double softplus(double v) {
    return fmax(v, 0) + log1p(exp(-fabs(v)));
}

static double sigmoid(double v) {
    return 1 / (1 + exp(-v));
}

double moe_noise_sigma(const moe_router *r, double v) {
    return moe_noise_is_learned(r) ? softplus(v) + r->noise : r->noise;
}

/* normal [N] of a token, with standard deviation `scale`. */
static void draw_normal(const moe_router *r,
                        const moe_draw *d,
                        int64_t token,
                        double scale,
                        real *normal) {
    moe_rng_normal((moe_rng){d->seed, MOE_RNG_NOISE}, moe_draw_step_key(d), (uint64_t)token, scale,
                   normal, r->num_experts);
}

void moe_noise_add_learned(const moe_router *r,
                           const moe_draw *d,
                           const moe_batch *batch,
                           const real *v,
                           real *logits) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        real *normal = moe_scratch_take(r->scratch, n, sizeof *normal, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            draw_normal(r, d, batch->first_token + t, 1, normal);
            for (int64_t i = t * n; i < (t + 1) * n; i++) {
                logits[i] +=
                    (real)((double)normal[i - t * n] * (softplus((double)v[i]) + r->noise));
            }
        }
        moe_scratch_give(r->scratch, normal);
    }
}

void moe_noise_learned_gradient(const moe_router *r,
                                const moe_draw *d,
                                const moe_batch *batch,
                                const real *v,
                                const double *dz,
                                const double *spread,
                                real *dv) {
    int32_t n = r->num_experts;
#pragma omp parallel
    {
        real *normal = moe_scratch_take(r->scratch, n, sizeof *normal, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            draw_normal(r, d, batch->first_token + t, 1, normal);
            for (int64_t i = t * n; i < (t + 1) * n; i++) {
                double dsigma = dz[i] * (double)normal[i - t * n] + (spread ? spread[i] : 0);
                dv[i] = (real)(sigmoid((double)v[i]) * dsigma);
            }
        }
        moe_scratch_give(r->scratch, normal);
    }
}

void moe_noise_quiet_scores(const moe_router *r,
                            const real *before,
                            const double *z,
                            double *clean,
                            double *quiet) {
    for (int32_t i = 0; i < r->num_experts; i++) {
        clean[i] = z[i] == -INFINITY ? z[i] : (double)before[i];
    }
    moe_scores_fill(r, clean, quiet, NULL);
}

/* --- noise of fixed scale, and expert dropout --- */

void moe_noise_dropped_experts(const moe_router *r, const moe_draw *d, uint8_t *dropped) {
    int32_t n = r->num_experts, count = (int32_t)floor(r->expert_dropout * n + 0.5);
    int32_t *place = moe_scratch_take(r->scratch, n, sizeof *place, "expert dropout");
    count = count < n ? count : n - 1;
    memset(dropped, 0, (size_t)n);
    moe_keyed_subset((moe_rng){d->seed, MOE_RNG_EXPERT_DROPOUT}, moe_draw_step_key(d), 0, n, count,
                     place);
    for (int32_t i = 0; i < count; i++) {
        dropped[place[i]] = 1;
    }
    moe_scratch_give(r->scratch, place);
}

static bool adds_fixed_noise(const moe_router *r) {
    return r->noise_form == MOE_NOISE_GAUSSIAN && r->noise > 0;
}

/* z [N] of one token; normal [N] is working memory. */
static void perturb_token(const moe_router *r,
                          const moe_draw *d,
                          int64_t token,
                          const uint8_t *dropped,
                          real *normal,
                          real *z) {
    int32_t n = r->num_experts;
    if (adds_fixed_noise(r)) {
        draw_normal(r, d, token, r->noise, normal);
        for (int32_t i = 0; i < n; i++) {
            z[i] += normal[i];
        }
    }
    for (int32_t i = 0; i < n; i++) {
        z[i] = dropped[i] ? -(real)INFINITY : z[i];
    }
}

void moe_noise_perturb(const moe_router *r,
                       const moe_draw *d,
                       const moe_batch *batch,
                       real *logits) {
    int32_t n = r->num_experts;
    if (!d->training || (!adds_fixed_noise(r) && r->expert_dropout <= 0)) {
        return;
    }
    uint8_t *dropped = moe_scratch_take(r->scratch, n, sizeof *dropped, "expert dropout");
    moe_noise_dropped_experts(r, d, dropped);
#pragma omp parallel
    {
        real *normal = moe_scratch_take(r->scratch, n, sizeof *normal, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            perturb_token(r, d, batch->first_token + t, dropped, normal, logits + t * n);
        }
        moe_scratch_give(r->scratch, normal);
    }
    moe_scratch_give(r->scratch, dropped);
}
