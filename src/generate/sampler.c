/* sampler.c: the choice of the next byte. */
#include "generate/sampler.h"

#include <math.h>

#include "base/rng.h"

enum { V = 256 };

static int largest(const real *z) {
    int best = 0;
    for (int i = 1; i < V; i++) {
        best = z[i] > z[best] ? i : best;
    }
    return best;
}

uint8_t moe_sampler_next(const real *z,
                         double temperature,
                         int64_t seed,
                         int64_t sequence,
                         int64_t place) {
    const int best = largest(z);
    const moe_rng rng = {(uint64_t)seed, MOE_RNG_NEXT_BYTE};
    double share[V], sum = 0;
    if (temperature == 0) {
        return (uint8_t)best;
    }
    for (int i = 0; i < V; i++) {
        share[i] = exp(((double)z[i] - (double)z[best]) / temperature);
        sum += share[i];
    }
    double left = moe_rng_uniform(rng, (uint64_t)sequence, (uint64_t)place, 0) * sum;
    for (int i = 0; i < V; i++) {
        left -= share[i];
        if (left < 0) {
            return (uint8_t)i;
        }
    }
    return (uint8_t)best; /* rounding has left a crumb */
}
