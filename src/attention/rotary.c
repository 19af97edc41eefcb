/* rotary.c: rotary position embedding. */
#include "attention/rotary.h"

#include <math.h>

#include "base/status.h"

void moe_rotary_init(moe_rotary *r, int64_t places, int64_t width, double theta, bool half) {
    const int64_t pairs = width / 2;
    MOE_ASSERT(width % 2 == 0);
    *r = (moe_rotary){.places = places, .width = width, .half = half};
    r->cosine = moe_alloc(places * pairs, sizeof(real), "rotary angles");
    r->sine = moe_alloc(places * pairs, sizeof(real), "rotary angles");
    for (int64_t p = 0; p < places; p++) {
        for (int64_t i = 0; i < pairs; i++) {
            const double angle = (double)p * pow(theta, -2.0 * (double)i / (double)width);
            r->cosine[p * pairs + i] = (real)cos(angle);
            r->sine[p * pairs + i] = (real)sin(angle);
        }
    }
}

void moe_rotary_free(moe_rotary *r) {
    moe_free(r->cosine);
    moe_free(r->sine);
    *r = (moe_rotary){0};
}

void moe_rotary_turn(const moe_rotary *r, int64_t p, bool backwards, real *row) {
    const int64_t pairs = r->width / 2;
    const real *cosine = r->cosine + p * pairs, *sine = r->sine + p * pairs;
    const int64_t step = r->half ? 1 : 2, second = r->half ? pairs : 1;
    for (int64_t i = 0; i < pairs; i++) {
        real *a = row + i * step;
        const real x = a[0], y = a[second], s = backwards ? -sine[i] : sine[i];
        a[0] = x * cosine[i] - y * s;
        a[second] = x * s + y * cosine[i];
    }
}
