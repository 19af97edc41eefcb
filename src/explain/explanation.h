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

/* One of the token's selections, in the router's order. */
typedef struct moe_explained_choice {
    int32_t expert, device;
    double score;        /* without a bias */
    double selection;    /* what the expert was ranked by */
    double weight;       /* g before dropping */
    int32_t server;      /* the expert that serves it, another one with next_choice; -1: dropped */
    int32_t served_on;   /* device of the server; -1: none */
    double sent_weight;  /* g that the row carries */
    double output_norm;  /* |FFN(u)| of the server */
    double contribution; /* |g FFN(u)| */
    double share;        /* <g FFN(u), y> / <y, y>: how much of the layer's output it makes up */
    double weight_gradient; /* d task / d g; training only */
    /* With a capacity: the budget of its target, how many pairs wanted a place there, and its own
     * place in their order, from 1 on. */
    int64_t budget, wanted, place;
} moe_explained_choice;

/* A row of the dispatch. Combine brings a row of the same payload back; in mode two_level without
 * node_sum it brings one for each row of the second hop through both hops. */
typedef struct moe_explained_row {
    int32_t hop;  /* 0: from the token's device; 1: the second one of mode two_level */
    int32_t from; /* the device that sends it */
    int32_t device, rank, pairs;
    int32_t expert; /* of its first pair; in mode selection of its only one */
    enum moe_level level;
    int64_t bytes, metadata_bytes;
} moe_explained_row;

typedef struct moe_explained_loss {
    double batch;   /* raw, in the scope that trains; the total has it times alpha */
    double share;   /* what the token adds: the shares of all counted tokens add up to `batch`; NaN
                       where the loss is no sum over tokens */
    double alpha;   /* in this step */
    int32_t layers; /* the shares in how many layers add up to `batch`: 1, or all of them for the
                       loss over all layers */
} moe_explained_loss;

typedef struct moe_explained_layer {
    int32_t num_experts, num_choices, num_rows;
    int32_t num_groups; /* 0: there is no group limit */
    bool has_scores, has_logits;
    bool bad;     /* the logits hold NaN or Inf, and no expert is chosen */
    bool counted; /* false: the token is padding */
    bool exempt;  /* its sequence is exempt from dropping */
    bool has_task;
    double lse;       /* log of the sum of exp(z) */
    double score_sum; /* of all experts; scores that the losses normalise are s / score_sum */
    double weight_divisor, weight_factor; /* g = s / divisor x factor */
    double divisor;         /* tokens of the cell that the losses are made from, times the cells */
    int64_t counted_tokens; /* of the global batch */
    double x_norm;          /* of the layer's input */
    double u_norm;          /* of the input after the norm, which gate and experts read */
    double shared_norm, shared_share; /* of the shared experts' output; NaN: there are none */
    double y_norm;                    /* of the layer's output */
    double residual_norm;             /* of y + x; NaN without residual */
    double gap;                       /* largest |element| of y - (contributions + shared) */
    moe_explained_loss loss[MOE_NUM_LOSSES];
    double gradient_norm; /* |d total / d y| of the layer's output; training only */

    moe_block block;              /* holds the arrays below */
    moe_explained_choice *choice; /* [num_choices] */
    moe_explained_row *row;       /* [num_rows] */
    double *numbers;              /* all arrays that follow, one after the other */
    double *logit, *score;        /* [N] */
    double *normalized;           /* [N] s' */
    double *added;                /* [N] bias, or the logarithm of sinkhorn's factor; 0: none */
    double *selection;            /* [N] what experts are ranked by; -inf: disabled */
    double *group_score;          /* [num_groups] */
    double *admitted;             /* [num_groups] 1: the token may go there */
    double *coefficient;      /* [MOE_NUM_LOSSES][N] f of the losses that are sums of f s' over the
                                 experts; share = sum coefficient s' / divisor */
    double *gradient;         /* [MOE_NUM_LOSSES][N] d (alpha loss) / d logit */
    double *balance_gradient; /* [N] all of these together, as the program adds them */
    double *task_gradient;    /* [N] training only */
    double *total_gradient;   /* [N] what the gate gets; training only */
} moe_explained_layer;

/* How many bytes of a text are shown before the token, and after it. */
enum { MOE_EXPLAINED_BYTES = 24 };

typedef struct moe_explanation {
    int64_t token; /* global id */
    int64_t step, num_tokens, sequence;
    int64_t position;     /* in its sequence */
    int32_t device, rank; /* where the token is at home */
    int32_t num_layers, num_experts, num_devices;
    bool drops_padding;    /* data.padding = dropped */
    int64_t micro_batches; /* of a step; what is shown is of the last one */
    bool has_text;
    int64_t byte[2 * MOE_EXPLAINED_BYTES + 1]; /* the token's own in the middle; -1: outside the
                                                  sequence */
    moe_explained_layer *layer;                /* [num_layers] */
    int32_t seen;                              /* how many layers went by */
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
