/* synthetic.c: topics first, then the centres of those that came up, then the vectors. */
#include "data/synthetic.h"

#include <math.h>

#include "base/rng.h"
#include "base/status.h"
#include "data/keyed.h"

/* Sums of the topics' weights in a step up to and with each topic. Topic i stands at place i +
 * drift step, going round; between two places it has its part of both weights. */
static double *cumulative_weights(moe_scratch *scratch, const moe_data_config *data, int64_t step) {
    const int32_t n = data->num_topics;
    double *cumulative = moe_scratch_take(scratch, n, sizeof *cumulative, "topics"), sum = 0;
    const double moved = fmod(data->drift * (double)step, n), whole = floor(moved);
    const double part = moved - whole;
    for (int32_t i = 0; i < n; i++) {
        const int32_t place = (int32_t)((i + (int64_t)whole) % n), next = (place + 1) % n;
        const double weight = pow(place + 1, -data->skew);
        cumulative[i] = sum +=
            part > 0 ? (1 - part) * weight + part * pow(next + 1, -data->skew) : weight;
    }
    return cumulative;
}

/* The first topic whose cumulative weight is above u times the sum of all weights. */
static int32_t draw_topic(const double *cumulative, int32_t num_topics, double u) {
    double target = u * cumulative[num_topics - 1];
    int32_t low = 0, high = num_topics - 1;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (cumulative[middle] > target) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static void draw_topics(const moe_data_config *data,
                        int64_t seed,
                        const moe_batch *b,
                        int64_t step,
                        int32_t *topic) {
    moe_rng of_sequence = {(uint64_t)seed, MOE_RNG_TOPIC_OF_SEQUENCE},
            of_token = {(uint64_t)seed, MOE_RNG_TOPIC_OF_TOKEN};
    int32_t n = data->num_topics;
    double *cumulative = cumulative_weights(b->scratch, data, step);
    for (int64_t s = 0; s < b->num_segments; s++) {
        const moe_segment *segment = &b->segment[s];
        double u = moe_rng_uniform(of_sequence, (uint64_t)step, (uint64_t)segment->sequence, 0);
        int32_t shared = draw_topic(cumulative, n, u);
        for (int64_t t = segment->begin; t < segment->end; t++) {
            uint64_t token = (uint64_t)(b->first_token + t);
            topic[t] = shared;
            if (moe_rng_uniform(of_token, (uint64_t)step, token, 0) >= data->topic_persistence) {
                u = moe_rng_uniform(of_token, (uint64_t)step, token, 1);
                topic[t] = draw_topic(cumulative, n, u);
            }
        }
    }
    moe_scratch_give(b->scratch, cumulative);
}

static moe_keyed_table make_centers(const moe_data_config *data,
                                    int64_t seed,
                                    int64_t hidden,
                                    const moe_batch *b,
                                    const int32_t *topic) {
    moe_keyed_table centers =
        moe_keyed_table_begin(b->scratch, data->num_topics, b->num_tokens, hidden);
    for (int64_t t = 0; t < b->num_tokens; t++) {
        moe_keyed_table_need(&centers, topic[t]);
    }
    moe_keyed_table_fill(&centers, (moe_rng){(uint64_t)seed, MOE_RNG_TOPIC_CENTER}, 1,
                         sqrt(data->topic_strength));
    return centers;
}

void moe_synthetic_vectors(const moe_data_config *data,
                           int64_t seed,
                           int64_t hidden,
                           const moe_batch *b,
                           int64_t step,
                           real *x,
                           int32_t *topic) {
    MOE_ASSERT(data->num_topics > 0);
    int32_t *topics =
        topic ? topic : moe_scratch_take(b->scratch, b->num_tokens, sizeof *topics, "topics");
    draw_topics(data, seed, b, step, topics);
    moe_keyed_table centers = make_centers(data, seed, hidden, b, topics);
    moe_rng noise = {(uint64_t)seed, MOE_RNG_TOKEN_NOISE};
    double noise_scale = sqrt(1 - data->topic_strength);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        const real *center = moe_keyed_table_row(&centers, topics[t]);
        moe_rng_normal(noise, (uint64_t)step, (uint64_t)(b->first_token + t), noise_scale,
                       x + t * hidden, hidden);
        for (int64_t h = 0; h < hidden; h++) {
            x[t * hidden + h] += center[h];
        }
    }
    moe_keyed_table_end(&centers);
    if (!topic) {
        moe_scratch_give(b->scratch, topics);
    }
}
