/* expected.h: how many experts, devices and places the tokens of a run will have, before it has
 * looked at one of them. Choices are taken as if they were drawn at random. */
#ifndef MOESIM_PREDICT_EXPECTED_H
#define MOESIM_PREDICT_EXPECTED_H

#include "config/config.h"

/* Local. The mean number of experts of a token: where experts choose, that is their number of
 * tokens (router/expert_choice.c) among the device_tokens of a device; elsewhere top_k, which top_p
 * and a recording may stay below. */
double moe_expected_choices(const moe_config *c, int64_t device_tokens);

/* Local. The same from recorded logits [rows,N] where the number of a token's experts depends on
 * them; elsewhere 0. */
double moe_expected_recorded_choices(const moe_config *c,
                                     const void *logits,
                                     bool is_double,
                                     int64_t rows);

/* Local. The mean number of distinct devices of a token with k experts; no more than it may reach.
 */
double moe_expected_reach(const moe_config *c, double k);
/* Local. The same without the token's own device. */
double moe_expected_away(const moe_config *c, double k);
/* Local. The same of distinct nodes. */
double moe_expected_nodes(const moe_config *c, double k);

/* The sequences of the global batch: equal ones, or those between given boundaries. */
typedef struct moe_sequences {
    int64_t num, length;     /* length: of equal ones, at most the tokens of the batch */
    const int64_t *boundary; /* [num + 1] first tokens, then their number; NULL: equal ones */
} moe_sequences;

/* Local. The share of the selections that a capacity keeps, of `tokens` tokens of the global batch
 * with k experts each; 1 without a capacity. */
double moe_expected_kept(const moe_config *c,
                         const moe_sequences *sequences,
                         int64_t tokens,
                         double k);

#endif
