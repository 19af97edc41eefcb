/* sampler.h: from the logits of the next byte to the byte. */
#ifndef MOESIM_GENERATE_SAMPLER_H
#define MOESIM_GENERATE_SAMPLER_H

#include <stdint.h>

#include "base/alloc.h"

/* Local, pure. The byte behind `place` bytes of a sequence, z [256] being its logits. temperature
 * 0: the largest logit, the first of several. Else byte i is drawn with probability exp(z_i /
 * temperature) / sum_k exp(z_k / temperature), from a number that is keyed by seed, sequence
 * (global id) and place. */
uint8_t moe_sampler_next(const real *z,
                         double temperature,
                         int64_t seed,
                         int64_t sequence,
                         int64_t place);

#endif
