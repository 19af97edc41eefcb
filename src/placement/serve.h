/* serve.h: which replica serves which token, and the rows that follow from it. This is how a
 * placement is judged on a routing: by what the devices really get, not by what its balancer had in
 * mind.
 *
 * Where replicas share evenly, a token takes the replica of its own device; if there is none, one
 * of its node; if there is none, any. Among several the token's number decides: token t takes
 * number t mod r of the r replicas, in the order of their slots. Where the balancer decides how
 * much a replica serves (moe_balancer_answer.served), these are quotas, rounded to whole tokens:
 * they go first to the tokens of the replica's own device, then to those of its node, then to all
 * others, each time in the order of tokens. */
#ifndef MOESIM_PLACEMENT_SERVE_H
#define MOESIM_PLACEMENT_SERVE_H

#include <stdbool.h>
#include <stdint.h>

#include "placement/balancer.h"

/* The choices of one layer in one step. */
typedef struct moe_choices {
    int64_t num_tokens;    /* T */
    int32_t k;             /* most choices of a token */
    const int32_t *expert; /* [T,k] -1 = none */
    const int32_t *home;   /* [T] the device on which the token is */
} moe_choices;

/* Rows are those of exchange.mode = token: one for each token and device that serves it. */
typedef struct moe_serve_figures {
    int64_t selections, rows;
    int64_t cross_device_rows;   /* to another device than the token's own */
    int64_t cross_node_rows;     /* to a device of another node */
    int64_t cross_node_tokens;   /* distinct tokens and other nodes: rows of a two-level exchange */
    double device_max_over_mean; /* selections that a device serves */
    double receiver_max_over_mean; /* rows that a device gets, its own included */
} moe_serve_figures;

/* Local. load [N] becomes the number of choices of each expert, and pairs [N,N], unless it is NULL,
 * grows by the number of tokens that chose both. */
void moe_choices_count(const moe_choices *choices,
                       int32_t num_experts,
                       double *load,
                       double *pairs);

/* Local. slot [T,k] becomes the slot that serves each choice, -1 where there is none. quotas: by
 * answer->served, which has to be for the loads of these choices (moe_balancer_split). */
void moe_serve_choices(const moe_balancer_problem *problem,
                       const moe_balancer_answer *answer,
                       bool quotas,
                       const moe_choices *choices,
                       int32_t *slot);

/* Local. The figures of what moe_serve_choices decided. */
moe_serve_figures moe_serve_measure(const moe_balancer_problem *problem,
                                    const moe_balancer_answer *answer,
                                    const moe_choices *choices,
                                    const int32_t *slot);

#endif
