/* specialization.h: how specialised the routed experts have become, measured on the held-out
 * batches after training, as DeepSeekMoE does it (arXiv 2401.06066, section 4.5), in every layer at
 * once.
 *
 * Experts taken away: the n experts of highest score are taken away from each token, and the next
 * ones are chosen. The more the loss rises, the less experts can stand in for each other. A
 * disabled expert has the logit -inf, so that scores and weights are those of the experts that are
 * left: softmax runs over them alone.
 *
 * Shared experts replaced: the shared experts are left out, and each is replaced by one more routed
 * expert (top_k + num_shared_experts are chosen). The rise of the loss is what the shared experts
 * know and routed experts do not. Weights that are normalised stay so.
 *
 * Domains: how often each expert was chosen for the tokens of each domain, which is a file or
 * folder of a text, or the topic of a synthetic token. With p(d,e) the share of all selections that
 * are of domain d and expert e,
 *
 *   I      = sum_{d,e} p(d,e) log( p(d,e) / (p(d) p(e)) )     mutual information, nats
 *   score  = I / min( H(domain), log(N / K) ),                H(domain) = -sum_d p(d) log p(d)
 *
 * A score of 0 says that the choice tells nothing about the domain; 1 is the ideal assignment, a
 * fixed set of K experts for every domain with all N experts in even use as far as there are enough
 * domains: I = H(expert) - H(expert | domain), where H(expert) <= log N, and H(expert | domain) >=
 * log K because a token's K experts differ.
 *
 *   chance = (domains seen - 1)(experts seen - 1) / (2 n) / min( H(domain), log(N / K) )
 *
 * is the score that n selections come to when experts are chosen without regard to the domain. A
 * score near it means no specialisation. */
#ifndef MOESIM_TRAIN_SPECIALIZATION_H
#define MOESIM_TRAIN_SPECIALIZATION_H

#include <stdint.h>

#include "train/train.h"

enum { MOE_MAX_DISABLED = 24 }; /* 0, 1, 2, 4 .. of at most 2^20 experts */

typedef struct moe_specialization {
    int32_t num_layers, num_domains, num_experts, num_shared;
    int32_t top_k;   /* K: the fewest experts that a token chooses, 1 for router.method = top_p */
    int64_t batches; /* that were looked at */

    /* n = 0, 1, 2, 4, ... <= N - K; 0 alone where experts are not chosen by score */
    int32_t num_disabled, disabled[MOE_MAX_DISABLED];
    double loss[MOE_MAX_DISABLED]; /* mean task loss; [0] is that of the network as it is */

    double loss_without_shared; /* NaN: there are no shared experts, or too few routed ones in reach
                                 */
    int64_t *domain_load; /* [layers][domains][N] selections of counted tokens, n = 0; owned */
} moe_specialization;

/* Collective. Measures on `batches` held-out batches; nothing is updated. Owner of the result: the
 * caller, moe_specialization_free. */
moe_specialization moe_specialization_measure(moe_training *t, int64_t batches);
void moe_specialization_free(moe_specialization *s);

typedef struct moe_domain_score {
    double information, score, chance;
} moe_domain_score;

/* Local. Mutual information, score and chance, as defined above, of the load [domains][experts] of
 * one layer. All are 0 when nothing was chosen; score and chance are NaN when there is one domain
 * only or no choice (N = K). */
moe_domain_score moe_specialization_score(const int64_t *load,
                                          int32_t domains,
                                          int32_t experts,
                                          int32_t top_k);

#endif
