/* keyed.c: choices by key. */
#include "router/keyed.h"

/* Uniform in 0 .. n-1: the high half of bits times n. */
static int32_t below(uint64_t bits, int32_t n) {
    return (int32_t)(((unsigned __int128)bits * (uint64_t)n) >> 64);
}

/* Floyd's method: k draws, whatever n is. */
void moe_keyed_subset(moe_rng rng, uint64_t a, uint64_t b, int32_t n, int32_t k, int32_t *place) {
    int32_t count = 0;
    for (int32_t j = n - k; j < n; j++) {
        int32_t drawn = below(moe_rng_bits(rng, a, b, (uint32_t)j), j + 1), taken = 0;
        for (int32_t i = 0; i < count; i++) {
            taken |= place[i] == drawn;
        }
        place[count++] = taken ? j : drawn;
    }
}

void moe_keyed_random(const moe_router *r,
                      const moe_draw *d,
                      int64_t token,
                      int32_t n,
                      int32_t k,
                      int32_t *place) {
    (void)r;
    moe_keyed_subset((moe_rng){d->seed, MOE_RNG_RANDOM_ROUTER}, moe_draw_step_key(d),
                     (uint64_t)token, n, k, place);
}

void moe_keyed_hash(const moe_router *r,
                    const moe_draw *d,
                    int64_t token,
                    int32_t n,
                    int32_t k,
                    int32_t *place) {
    (void)r;
    moe_keyed_subset((moe_rng){d->seed, MOE_RNG_HASH_ROUTER}, (uint64_t)d->layer, (uint64_t)token,
                     n, k, place);
}

void moe_keyed_round_robin(const moe_router *r,
                           const moe_draw *d,
                           int64_t token,
                           int32_t n,
                           int32_t k,
                           int32_t *place) {
    (void)d;
    for (int32_t i = 0; i < k; i++) {
        place[i] = (int32_t)(((token % n) * (r->top_k % n) + i) % n);
    }
}

double moe_keyed_second(const moe_draw *d, int64_t token) {
    return moe_rng_uniform((moe_rng){d->seed, MOE_RNG_SECOND_CHOICE}, moe_draw_step_key(d),
                           (uint64_t)token, 0);
}
