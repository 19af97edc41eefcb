/* rng.h: random numbers keyed by what they are for (Philox4x32-10 of the library Random123).
 *
 * A number is a pure function of (seed, stream, a, b, c), never of the rank, of the thread or of
 * how many numbers were drawn before. `stream` says the purpose, one enumerator for each place that
 * draws; a, b and c are global ids: of a token, an expert, a layer, a step, an element. */
#ifndef MOESIM_BASE_RNG_H
#define MOESIM_BASE_RNG_H

#include <stdint.h>

#include "base/alloc.h"

/* What a number is for. Never renumber these: results are keyed by them. */
enum moe_rng_stream {
    MOE_RNG_GATE = 1,
    MOE_RNG_EXPERT_W1,
    MOE_RNG_EXPERT_W2,
    MOE_RNG_EXPERT_W3,
    MOE_RNG_SHARED_W1,
    MOE_RNG_SHARED_W2,
    MOE_RNG_SHARED_W3,
    MOE_RNG_TOPIC_CENTER,
    MOE_RNG_TOPIC_OF_SEQUENCE,
    MOE_RNG_TOPIC_OF_TOKEN,
    MOE_RNG_TOKEN_NOISE,
    MOE_RNG_TEXT_START,
    MOE_RNG_EMBEDDING,
    MOE_RNG_TOKEN_VECTOR,
    MOE_RNG_HEAD,
    MOE_RNG_TEACHER,
    MOE_RNG_JITTER,
    MOE_RNG_NOISE,
    MOE_RNG_EXPERT_DROPOUT,
    MOE_RNG_EXEMPT,
    MOE_RNG_RANDOM_ROUTER,
    MOE_RNG_SECOND_CHOICE,
    MOE_RNG_LORA_A,
    MOE_RNG_LORA_B,
    MOE_RNG_BASE_W1,
    MOE_RNG_BASE_W2,
    MOE_RNG_BASE_W3,
    MOE_RNG_NORM,
    MOE_RNG_LORA_A2,
    MOE_RNG_LORA_A3,
    MOE_RNG_LORA_B2,
    MOE_RNG_LORA_B3,
    MOE_RNG_HASH_ROUTER,
    MOE_RNG_DENSE_W1,
    MOE_RNG_DENSE_W2,
    MOE_RNG_DENSE_W3,
    MOE_RNG_NEXT_BYTE,
    MOE_RNG_ATTENTION = 64, /* and one for each of its tensors: attention/shape.h */
    MOE_RNG_TEST = 1000
};

typedef struct moe_rng {
    uint64_t seed;
    uint32_t stream;
} moe_rng;

/* Local. 64 random bits for (a, b, c). */
uint64_t moe_rng_bits(moe_rng r, uint64_t a, uint64_t b, uint32_t c);
/* Local. A number uniform in [0,1), of 53 bits. */
double moe_rng_uniform(moe_rng r, uint64_t a, uint64_t b, uint32_t c);
/* Local. out[i] becomes scale times a standard normal number, for the n elements of the vector
 * (a, b). Box and Muller's method in double; the result is rounded last. */
void moe_rng_normal(moe_rng r, uint64_t a, uint64_t b, double scale, real *out, int64_t n);

#endif
