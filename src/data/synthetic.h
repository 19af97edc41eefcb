/* synthetic.h: tokens with random topics, as a corpus has them: some topics are popular, neighbours
 * often share one, and vectors of one topic are alike. */
#ifndef MOESIM_DATA_SYNTHETIC_H
#define MOESIM_DATA_SYNTHETIC_H

#include <stdint.h>

#include "config/config.h"
#include "data/batch.h"

/* Local. x [T,H] of a step. Topics are drawn with Zipf's popularity, topic i in proportion to
 * (i+1)^-skew; with data.drift the places i move on by as much in every step, so that popular
 * topics go out of fashion and others come up. A token has its sequence's topic with probability
 * topic_persistence, else one of its own. With c the centre of its topic and e noise of its own,
 * both standard normal, x = sqrt(topic_strength) c + sqrt(1 - topic_strength) e, which has unit
 * variance. Everything is keyed by seed, step and global ids. topic [T] receives each token's
 * topic, unless it is NULL. */
void moe_synthetic_vectors(const moe_data_config *data,
                           int64_t seed,
                           int64_t hidden,
                           const moe_batch *b,
                           int64_t step,
                           real *x,
                           int32_t *topic);

#endif
