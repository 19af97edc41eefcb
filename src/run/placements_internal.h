/* placements_internal.h: the parts of --placements: where steps come from (placements_source.c),
 * the comparison itself (placements.c), and what is printed and written (placements_show.c). */
#ifndef MOESIM_RUN_PLACEMENTS_INTERNAL_H
#define MOESIM_RUN_PLACEMENTS_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"
#include "data/input.h"
#include "model/stack.h"
#include "placement/serve.h"
#include "world/comm.h"

/* --- placements_source.c --- */

/* Steps of loads, with or without the tokens behind them. What a step has is on rank 0. */
typedef struct moe_step_source {
    const moe_comm *comm;
    moe_config *config;
    int32_t layers;
    int64_t steps;
    bool has_tokens;
    bool halves; /* one batch stands for two steps: each device's first and second half of tokens */

    /* of the last step that was made */
    double *load;         /* [layers,N] */
    moe_choices *choices; /* [layers] where there are tokens */

    double *file_load; /* [steps,layers,N] of placement.load, on rank 0 */
    moe_input input;
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_stack stack;
    moe_step_metrics metrics;
    int32_t *all;    /* [layers][T,K] choices of all ranks; on ranks but 0 there is room for one
                        layer */
    int32_t *expert; /* [layers][T,K] those of the step */
    int32_t *home;   /* [T] */
    int64_t *bytes;  /* [ranks] of `all` that each rank fills in a layer */
    int64_t half;    /* which half is looked at */
} moe_step_source;

/* Collective. Reads and checks what the configuration names, and makes the model. The caller frees
 * *s with moe_step_source_free, also on failure. */
int moe_step_source_open(moe_step_source *s, const moe_comm *comm, moe_config *c, moe_status *st);
/* Collective. Makes step `step`. */
int moe_step_source_make(moe_step_source *s, int64_t step, moe_status *st);
void moe_step_source_free(moe_step_source *s);

/* --- placements.c --- */

/* What a forward step on the cluster of [cluster] would cost whose layers were all like one. */
typedef struct moe_placed_cost {
    double seconds, balanced; /* as placed, and with the same rows and selections spread evenly */
    double bytes;             /* payload that leaves its device, there and back */
} moe_placed_cost;

/* One balancer and what became of it. Sums are over the steps of the score window, and over layers
 * where a layer is not named. */
typedef struct moe_candidate {
    const moe_balancer *balancer;
    char reason[1024];           /* why it is left out; "" where it is not */
    moe_balancer_answer *answer; /* [layers] decided on the fit window */
    double decide_seconds;       /* for all layers, on the fit window */
    double step_seconds;         /* what is decided anew in every step */
    double *layer_max;           /* [layers] sum of a layer's busiest device / mean */
    double *step_max;            /* [score] sum of a step's */
    double worst;                /* the largest of all */
    int64_t worst_step;          /* where: the step */
    int32_t worst_layer;         /* and the layer */
    double receiver_max, receiver_worst;
    moe_placed_cost cost;   /* sums over steps and layers */
    double *step_predicted; /* [score] sum over layers of the seconds of a step */
    moe_serve_figures rows; /* the counts; its ratios are not used */
    int64_t wasted;         /* replicas on a device that has the expert already */
    int64_t moved; /* experts that a device serves and that blocks would not put there; where
                      weights are fetched for every step, the sum over steps */
} moe_candidate;

typedef struct moe_comparison {
    const moe_config *config;
    moe_step_source source;
    int64_t fit, score;   /* steps of the two windows: the first ones and the last ones */
    double *load, *pairs; /* [layers,N] and [layers,N,N] of the fit window; on rank 0 */
    double *drift;        /* [score] of each step's loads from those of the fit window */
    moe_candidate *candidate;
    int num_candidates;
    moe_balancer_answer blocks, plan;
    int32_t *slot; /* [T,K] working memory */
} moe_comparison;

/* Local. Whether a balancer has seen steps on which it is judged. */
static inline bool moe_comparison_own_window(const moe_comparison *x) {
    return x->fit + x->score > x->source.steps;
}

/* --- placements_time.c --- */

/* Local. The cost of a step whose layers are all like this one: slot [T,k] is what serves each
 * choice. Rows are those of exchange.mode. */
moe_placed_cost moe_comparison_cost(const moe_comparison *x,
                                    const moe_balancer_answer *a,
                                    const moe_choices *choices,
                                    const int32_t *slot);

/* --- placements_show.c; local, on rank 0 --- */

void moe_comparison_print(const moe_comparison *x, const char *folder);
int moe_comparison_write(const moe_comparison *x, const char *folder, moe_status *st);

#endif
