/* router_keyed.c: routers that look at no score (for comparison), noise and expert dropout:
 * everything that a key decides.
 *
 *   random       K distinct experts, every set of K as likely as any other, new in every step
 *   hash         the same, but a function of the token (its byte in text, else its id) and the
 * layer alone (Roller et al. 2021, 2106.04426) round_robin  selection q = token K + k goes to
 * device q mod D, and there to expert (q / D) mod (N / D): over any run of tokens the devices'
 *                counts differ by at most 1, and so do the experts' */
#include "router/keyed.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "base/scratch.h"
#include "base/status.h"

enum { MAX_LAYERS = 4096 };

uint64_t moe_router_step_key(const moe_router *r) {
    return (uint64_t)r->step * MAX_LAYERS + (uint64_t)r->layer;
}

/* Uniform in 0 .. n-1: the high half of bits x n. */
static int32_t below(uint64_t bits, int32_t n) {
    return (int32_t)(((unsigned __int128)bits * (uint64_t)n) >> 64);
}

/* Floyd's method: K draws give every set of K out of n with the same probability. */
static int32_t draw_distinct(
    moe_rng rng, uint64_t a, uint64_t b, int32_t n, int32_t k, int32_t *place) {
    int32_t count = 0;
    for (int32_t j = n - k; j < n; j++) {
        int32_t drawn = below(moe_rng_bits(rng, a, b, (uint32_t)j), j + 1), taken = 0;
        for (int32_t i = 0; i < count; i++) {
            taken |= place[i] == drawn;
        }
        place[count++] = taken ? j : drawn;
    }
    return count;
}

static int32_t deal(const moe_router *r, int64_t token, int32_t n, int32_t k, int32_t *place) {
    for (int32_t i = 0; i < k; i++) {
        place[i] = (int32_t)(((token % n) * (r->top_k % n) + i) % n);
    }
    return k;
}

/* The j-th expert in dealing order: devices in turn. */
static int32_t dealt_expert(const moe_router *r, int32_t j) {
    int32_t devices = r->devices > 0 ? r->devices : 1;
    return j % devices * (r->num_experts / devices) + j / devices;
}

static int32_t expert_in_order(const moe_router *r, int32_t j) {
    return r->method == MOE_METHOD_ROUND_ROBIN ? dealt_expert(r, j) : j;
}

static int32_t list_enabled(const moe_router *r, const double *z, int32_t *enabled) {
    int32_t count = 0;
    for (int32_t j = 0; j < r->num_experts; j++) {
        enabled[count] = expert_in_order(r, j);
        count += z[enabled[count]] != -INFINITY;
    }
    return count;
}

int32_t moe_keyed_choice(const moe_router *r,
                         int64_t token,
                         const double *z,
                         int may_be_disabled,
                         int32_t *enabled,
                         int32_t *expert) {
    int32_t n = may_be_disabled ? list_enabled(r, z, enabled) : r->num_experts,
            k = r->top_k < n ? r->top_k : n;
    if (n == 0) {
        return 0;
    }
    if (r->method == MOE_METHOD_ROUND_ROBIN) {
        deal(r, token, n, k, expert);
    } else if (r->method == MOE_METHOD_HASH) {
        draw_distinct((moe_rng){r->seed, MOE_RNG_HASH_ROUTER}, (uint64_t)r->layer, (uint64_t)token,
                      n, k, expert);
    } else {
        draw_distinct((moe_rng){r->seed, MOE_RNG_RANDOM_ROUTER}, moe_router_step_key(r),
                      (uint64_t)token, n, k, expert);
    }
    for (int32_t i = 0; i < k; i++) {
        expert[i] = may_be_disabled ? enabled[expert[i]] : expert_in_order(r, expert[i]);
    }
    return k;
}

double moe_keyed_second(const moe_router *r, int64_t token) {
    return moe_rng_uniform((moe_rng){r->seed, MOE_RNG_SECOND_CHOICE}, moe_router_step_key(r),
                           (uint64_t)token, 0);
}

/* The experts with the smallest keyed numbers; the lower index first among equals. */
void moe_router_dropped_experts(const moe_router *r, uint8_t *dropped) {
    int32_t n = r->num_experts, count = (int32_t)floor(r->expert_dropout * n + 0.5);
    moe_rng rng = {r->seed, MOE_RNG_EXPERT_DROPOUT};
    int32_t *place = moe_scratch_take(r->scratch, n, sizeof *place, "expert dropout");
    count = count < n ? count : n - 1;
    memset(dropped, 0, (size_t)n);
    draw_distinct(rng, moe_router_step_key(r), 0, n, count, place);
    for (int32_t i = 0; i < count; i++) {
        dropped[place[i]] = 1;
    }
    moe_scratch_give(r->scratch, place);
}

static bool adds_fixed_noise(const moe_router *r) {
    return r->noise_form == MOE_NOISE_GAUSSIAN && r->noise > 0;
}

/* z += noise, then -inf where dropped; noise [N] is working memory. */
static void perturb_token(
    const moe_router *r, int64_t token, const uint8_t *dropped, real *noise, real *z) {
    int32_t n = r->num_experts;
    if (adds_fixed_noise(r)) {
        moe_rng_normal((moe_rng){r->seed, MOE_RNG_NOISE}, moe_router_step_key(r), (uint64_t)token,
                       r->noise, noise, n);
        for (int32_t i = 0; i < n; i++) {
            z[i] += noise[i];
        }
    }
    for (int32_t i = 0; i < n; i++) {
        z[i] = dropped[i] ? -(real)INFINITY : z[i];
    }
}

void moe_router_perturb(const moe_router *r, const moe_batch *batch, real *logits) {
    int32_t n = r->num_experts;
    if (!r->training || (!adds_fixed_noise(r) && r->expert_dropout <= 0)) {
        return;
    }
    uint8_t *dropped = moe_scratch_take(r->scratch, n, sizeof *dropped, "expert dropout");
    moe_router_dropped_experts(r, dropped);
#pragma omp parallel
    {
        real *noise = moe_scratch_take(r->scratch, n, sizeof *noise, "noise on the logits");
#pragma omp for schedule(static)
        for (int64_t t = 0; t < batch->num_tokens; t++) {
            perturb_token(r, batch->first_token + t, dropped, noise, logits + t * n);
        }
        moe_scratch_give(r->scratch, noise);
    }
    moe_scratch_give(r->scratch, dropped);
}
