/* explanation.h: the way of one token through the layers of a step, as numbers: what --explain
 * shows. It is the same on every rank and for any number of ranks, except for `rank`, where a
 * device happens to be hosted. What is not defined is NaN. */
#ifndef MOESIM_EXPLAIN_EXPLANATION_H
#define MOESIM_EXPLAIN_EXPLANATION_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "base/block.h"
#include "measure/metrics.h"

typedef struct moe_explained_choice { /* one of the token's selections, in the router's order */
    int32_t expert, device;
    double score, selection; /* unbiased; what it was ranked by */
    double weight;           /* g, before dropping */
    int32_t server;      /* the expert that serves it: its own, or another one's (next_choice); -1 =
                            dropped */
    int32_t served_on;   /* device of the server, -1 = none */
    double sent_weight;  /* g that the row carries */
    double output_norm;  /* |FFN(u)| of the server */
    double contribution; /* |g FFN(u)| */
    double share;        /* <g FFN(u), y> / <y, y>: what it makes up of the layer's output */
    double weight_gradient; /* d task / d g; training only */
    /* With a capacity: the budget of its target, how many pairs wanted a place there, and its own
     * place in their order, from 1 on. */
    int64_t budget, wanted, place;
} moe_explained_choice;

typedef struct moe_explained_row { /* of the dispatch; combine brings a row of the same payload back
                                    */
    int32_t device, rank, pairs;
    int32_t expert; /* of its first pair; in mode selection the only one */
    enum moe_level level;
    int64_t bytes, metadata_bytes;
} moe_explained_row;

typedef struct moe_explained_loss {
    double batch;   /* raw, in the scope that trains; mixed to alpha x batch in the total */
    double share;   /* the token's: the shares of all counted tokens add up to batch. NaN: not a sum
                       over tokens */
    double alpha;   /* of this step */
    int32_t layers; /* whose tokens the shares of add up to batch: 1, or all for the loss over all
                       layers */
} moe_explained_loss;

typedef struct moe_explained_layer {
    int32_t num_experts, num_choices, num_rows;
    int32_t num_groups; /* 0 = no group limit */
    bool has_scores, has_logits;
    bool bad;     /* logits with NaN or Inf: nobody is chosen */
    bool counted; /* false: padding */
    bool exempt;  /* its sequence is exempt from dropping */
    bool has_task;
    double lse;
    double score_sum; /* of all experts: s' = s / score_sum where scores are normalised for the
                         losses */
    double weight_divisor, weight_factor; /* g = s / divisor x factor */
    double divisor;                       /* tokens of the cell of the losses x cells */
    int64_t counted_tokens;               /* of the global batch */
    double x_norm, u_norm; /* of the layer's input, and of it after the norm (what gate and experts
                              read) */
    double shared_norm, shared_share; /* of the shared experts' output; NaN = none */
    double y_norm, residual_norm;     /* of the layer's output; of y + x, NaN without residual */
    double gap;                       /* largest |element| of y - (contributions + shared) */
    moe_explained_loss loss[MOE_NUM_LOSSES];
    double gradient_norm; /* |d total / d y| of the layer's output; training only */

    moe_block block;              /* holds the arrays below */
    moe_explained_choice *choice; /* [num_choices] */
    moe_explained_row *row;       /* [num_rows] */
    double *numbers;              /* what the following point into */
    double *logit, *score;        /* [N] */
    double *normalized;           /* [N] s' */
    double *added;                /* [N] bias, or the logarithm of sinkhorn's factor; 0 = none */
    double *selection;            /* [N] what experts are ranked by; -inf = disabled */
    double *group_score;          /* [num_groups] */
    double *admitted;             /* [num_groups] 1 = the token may go there */
    double *coefficient; /* [MOE_NUM_LOSSES][N] f of the losses that are sum f s' over the experts:
                            share = sum coefficient s' / divisor */
    double *gradient;    /* [MOE_NUM_LOSSES][N] d (alpha loss) / d logit */
    double *balance_gradient; /* [N] all of these together, as the program adds them */
    double *task_gradient;    /* [N] training only */
    double *total_gradient;   /* [N] what the gate gets; training only */
} moe_explained_layer;

enum { MOE_EXPLAINED_BYTES = 24 }; /* of a text before and after the token */

typedef struct moe_explanation {
    int64_t token; /* global id */
    int64_t step, num_tokens, sequence, position /* in its sequence */;
    int32_t device, rank; /* home */
    int32_t num_layers, num_experts, num_devices;
    int64_t micro_batches; /* training: of a step; what is shown is of the last */
    bool has_text;
    int64_t byte[2 * MOE_EXPLAINED_BYTES + 1]; /* -1 = outside the sequence; the token's own in the
                                                  middle */
    moe_explained_layer *layer;                /* [num_layers] */
    int32_t seen;                              /* layers that went by */
} moe_explanation;

/* Local. An explanation of num_layers layers. Owner: the caller, moe_explanation_free. */
void moe_explanation_init(moe_explanation *e, int64_t token, int32_t num_layers);
void moe_explanation_free(moe_explanation *e);

/* Local. Makes the arrays of a layer fit num_experts, num_groups, num_choices and num_rows, as they
 * stand in it. All numbers become NaN. */
void moe_explained_reserve(moe_explained_layer *l);
/* Local. How many doubles there are in l->numbers. */
int64_t moe_explained_words(const moe_explained_layer *l);

/* Local. A byte as text: itself, \n, \t, \r, \\, or \xNN, so that nothing controls a terminal.
 * Returns the length. */
int moe_explanation_byte(int64_t byte, char text[5]);

#endif
