/* internal.h: a layer as the files of this folder see it. */
#ifndef MOESIM_LIBRARY_INTERNAL_H
#define MOESIM_LIBRARY_INTERNAL_H

#include "balance/scopes.h"
#include "capacity/drop.h"
#include "exchange/plan.h"
#include "library/moesim.h"
#include "router/router.h"

/* The arrays that a layer takes, in the order of the table in arrays.c. */
enum moe_layer_array {
    MOE_ARRAY_LOGITS,
    MOE_ARRAY_ROUTING,
    MOE_ARRAY_WEIGHTS,
    MOE_ARRAY_SCORES,
    MOE_ARRAY_MASK,
    MOE_ARRAY_BIAS,
    MOE_ARRAY_BOUNDARIES,
    MOE_ARRAY_EXPERT_AT,
    MOE_NUM_LAYER_ARRAYS
};

enum { MOE_MAX_RESULTS = 40 };

struct moesim_layer {
    moe_config settings;                      /* as they were given, not resolved */
    moesim_array array[MOE_NUM_LAYER_ARRAYS]; /* copies; data = NULL: not given */
    bool routed;                              /* the rest holds what moesim_layer_route made */
    moe_config config;                        /* resolved */
    moe_comm comm;                            /* one rank */
    moe_scratch scratch;
    moe_batch batch;
    moe_placement placement;
    moe_router router;
    moe_balance balance;
    moe_capacity capacity;
    moe_logits logits; /* of an array, or of synthetic; both NULL: there are none */
    real *synthetic;   /* [T,N] */
    real *weights;     /* [T,K] recorded ones in the working precision */
    double *scores;    /* [T,N] beside a recorded routing */
    moe_routing routing;
    moe_stats segments;
    moe_scopes scopes;
    moe_drop drop;
    moe_plan plan;
    moesim_array result[MOE_MAX_RESULTS]; /* that were asked for; data = NULL: not yet */
};

/* Local. The routing after dropping. */
static inline const moe_routing *moe_layer_sent(const moesim_layer *l) {
    return l->drop.on ? &l->drop.sent : &l->routing;
}

/* Local. Forgets the results that were asked for. */
void moe_layer_forget_results(moesim_layer *l);

/* --- layer.c --- */

/* Local. Copies the sentence of a failure to `error`, unless that is NULL; returns 0 or 1. */
int moe_layer_report(const moe_status *st, char *error);

/* --- arrays.c --- */

extern const char *const moe_layer_array_names[MOE_NUM_LAYER_ARRAYS + 1];

static inline bool moe_layer_has(const moesim_layer *l, enum moe_layer_array which) {
    return l->array[which].data != NULL;
}

/* Local. Bytes of an element; 0: there is no such type. */
int64_t moe_layer_type_size(int32_t type);

/* Local. Takes a copy of an array, whose type and number of dimensions are checked. */
int moe_layer_take(moesim_layer *l, const char *name, const moesim_array *array, moe_status *st);

/* Local. Says in the configuration which arrays there are, and how many experts they speak of. */
int moe_layer_describe(const moesim_layer *l, moe_config *c, moe_status *st);

/* Local. The tokens of the arrays, or of the settings. */
int64_t moe_layer_tokens(const moesim_layer *l);

/* Local. Checks the arrays against the resolved configuration: shapes first, then numbers. */
int moe_layer_check(const moesim_layer *l, moe_status *st);

/* --- synthetic.c --- */

/* Local. logits [T,N] of synthetic tokens and of the gate that a run begins with. */
void moe_layer_synthetic(const moe_config *c, const moe_batch *b, real *logits);

#endif
