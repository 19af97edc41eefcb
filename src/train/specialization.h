/* specialize.h: how specialised the routed experts have become, measured after training on the
 * held-out batches. Layer 5 (simulate).
 *
 * As DeepSeekMoE does (2401.06066, section 4.5), in every layer at once:
 *   disabled    each token's n experts of highest score are taken away from it and the next ones
 * chosen; the more the loss rises, the less experts can stand in for each other. A disabled expert
 * has logit -inf, so scores and weights are those of the experts left: softmax runs over them
 * alone. shared      the shared experts are left out and each is replaced by one more routed expert
 * (top_k + num_shared_experts chosen): what they know that routed experts do not. Weights that are
 * normalised stay so. By domain: how often each expert was chosen for the tokens of a domain (a
 * file or folder of a text; the topic of a synthetic token). score       with p(d,e) the share of
 * all selections that are of domain d and expert e, I = sum_{d,e} p(d,e) log( p(d,e) / (p(d) p(e))
 * )    mutual information, nats score = I / min( H(domain), log(N / K) ),           H(domain) =
 * -sum_d p(d) log p(d) 0: the choice says nothing about the domain. 1: the ideal assignment, a
 * fixed set of K experts for every domain and all of the N experts in even use as far as there are
 * domains enough: I = H(expert) - H(expert | domain), where H(expert) <= log N, and a token's K
 * experts differ, so that H(expert | domain) >= log K. chance      what the score of experts chosen
 * without regard to the domain comes to, because n selections are few: (domains seen - 1)(experts
 * seen - 1) / (2 n), divided by the same. A score near it means no specialisation. */
#ifndef MOESIM_TRAIN_SPECIALIZATION_H
#define MOESIM_TRAIN_SPECIALIZATION_H

#include <stdint.h>

#include "train/train.h"

enum { MOE_MAX_DISABLED = 24 }; /* 0, 1, 2, 4 .. of at most 2^20 experts */

typedef struct moe_specialization {
    int32_t num_layers, num_domains, num_experts, num_shared;
    int32_t top_k; /* K: the fewest experts that a token chooses, 1 for router.method = top_p */
    int64_t batches;
    int32_t num_disabled, disabled[MOE_MAX_DISABLED]; /* n = 0, 1, 2, 4 .. <= N - K; 0 alone where
                                                         experts are not chosen by score */
    double loss[MOE_MAX_DISABLED]; /* mean task loss; [0] is that of the network as it is */
    double loss_without_shared; /* NaN: no shared experts, or not enough routed ones in reach of a
                                   token */
    int64_t *domain_load;       /* [layers][domains][N] selections of counted tokens, n = 0 */
} moe_specialization;

/* Collective. Measures on `batches` held-out batches; nothing is updated. Owner of the result: the
 * caller, moe_specialization_free. */
moe_specialization moe_specialization_measure(moe_training *t, int64_t batches);
void moe_specialization_free(moe_specialization *s);

/* Local. Mutual information, score and chance of one layer's load [domains][experts] as defined
 * above; top_k = K. All 0 when nothing was chosen; score and chance NaN when there is one domain
 * only, or no choice (N = K). */
typedef struct moe_domain_score {
    double information, score, chance;
} moe_domain_score;
moe_domain_score moe_domain_score_of(const int64_t *load,
                                     int32_t domains,
                                     int32_t experts,
                                     int32_t top_k);

#endif
