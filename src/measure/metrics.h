/* metrics.h: what one step computed and sent, as global figures: the same on every rank and for any
 * number of ranks, except for times. The model and the tally fill the metrics in, and everything
 * that is shown or written afterwards is made from them. */
#ifndef MOESIM_MEASURE_METRICS_H
#define MOESIM_MEASURE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "base/block.h"
#include "base/sparse.h"
#include "base/status.h"
#include "config/config.h"
#include "exchange/chunks.h"
#include "exchange/row_format.h"

/* --- names: see names.def --- */

enum moe_level { /* how far a row travels: MOE_LEVEL_DEVICE, MOE_LEVEL_NODE, MOE_LEVEL_CLUSTER */
#define LEVEL(id, key, title) MOE_LEVEL_##id,
#include "measure/names.def"
                 MOE_NUM_LEVELS
};
enum moe_direction { /* MOE_DISPATCH, MOE_COMBINE, MOE_DISPATCH_BACKWARD, MOE_COMBINE_BACKWARD */
#define DIRECTION(id, key, title) MOE_##id,
#include "measure/names.def"
                     MOE_NUM_DIRECTIONS
};
enum moe_phase { /* MOE_PHASE_GATE, MOE_PHASE_ROUTE, ... */
#define PHASE(id, key) MOE_PHASE_##id,
#include "measure/names.def"
                 MOE_NUM_PHASES
};
extern const char *const moe_level_names[MOE_NUM_LEVELS];          /* keys in JSON */
extern const char *const moe_level_titles[MOE_NUM_LEVELS];         /* on the screen */
extern const char *const moe_direction_names[MOE_NUM_DIRECTIONS];  /* keys in JSON */
extern const char *const moe_direction_titles[MOE_NUM_DIRECTIONS]; /* on the screen */
extern const char *const moe_phase_names[MOE_NUM_PHASES];

/* Local. The level of a row between two devices. */
static inline enum moe_level moe_level_of(int64_t source,
                                          int64_t destination,
                                          int64_t devices_per_node) {
    if (source == destination) {
        return MOE_LEVEL_DEVICE;
    }
    return source / devices_per_node == destination / devices_per_node ? MOE_LEVEL_NODE
                                                                       : MOE_LEVEL_CLUSTER;
}

/* --- the metrics of a layer --- */

typedef struct moe_traffic { /* of one direction on one level */
    int64_t rows, bytes, metadata_bytes;
} moe_traffic;

typedef struct moe_volume { /* of one direction in one layer, or summed over layers */
    int64_t rows;
    int64_t logical_bytes;   /* payload, including rows that stay on their device */
    int64_t remote_bytes;    /* payload without those rows */
    int64_t selection_bytes; /* logical payload that mode `selection` would have sent */
    int64_t selection_remote_bytes;
    int64_t metadata_bytes;
    moe_traffic by_level[MOE_NUM_LEVELS];              /* sums over the hops */
    moe_traffic by_hop[MOE_MOST_HOPS][MOE_NUM_LEVELS]; /* from the tokens' devices to the experts'
                                                        */
    moe_traffic selection[MOE_NUM_LEVELS]; /* what modes `selection` and `token` would have sent, */
    moe_traffic token[MOE_NUM_LEVELS];     /* rows and payload; the second with two hops only */
} moe_volume;

enum { MOE_MAX_LISTED_SEQUENCES = 4096 };
typedef struct moe_capacity_metrics { /* what a capacity did to a layer */
    bool on;
    int64_t capacity;             /* pairs per target; INT64_MAX: as much as is needed */
    int64_t reassigned;           /* pairs that another expert serves (next_choice) */
    int64_t dropped_tokens;       /* tokens that lost at least one pair */
    int64_t fully_dropped_tokens; /* tokens that lost all of their pairs */
    int64_t exempt_overflow;      /* pairs of exempt sequences that are kept beyond a capacity */
    int64_t rows_saved;           /* dispatch rows that are not sent because of dropping */
    int64_t bytes_saved;          /* their payload, in dispatch and combine */
    int64_t padding_rows;         /* dispatch rows that pad_to_capacity wastes */
    int64_t padding_bytes;        /* their payload, in dispatch and combine */
    int64_t dropped_sequences;    /* sequences that lost at least one pair */
    int64_t num_sequences; /* listed below; 0 when there are more than MOE_MAX_LISTED_SEQUENCES */
    int64_t *dropped_per_sequence; /* [num_sequences] pairs, in the block */
    moe_block block;
} moe_capacity_metrics;

typedef struct moe_all_layers_metrics { /* a loss over the tokens of all layers together */
    bool on;                            /* moe_balance_has_all_layers */
    enum moe_loss form;                 /* which loss */
    double raw, ideal;                  /* with alpha = 1, in the scope that trains; at balance */
    double by_scope[MOE_NUM_SCOPES];    /* raw */
    double loss; /* times alpha; 0 where each layer's own loss trains instead */
} moe_all_layers_metrics;

typedef struct moe_fetch_metrics { /* what was decided and copied for one batch */
    bool on;
    int64_t copies;           /* experts that were copied to another device */
    int64_t bytes;            /* payload between devices: their weights, and in training their
                                 gradients on the way home */
    int64_t cross_node_bytes; /* of that between nodes */
    double decide_seconds;    /* on rank 0, which decides: asking, */
    double fetch_seconds;     /* and copying */
} moe_fetch_metrics;

typedef struct moe_layer_metrics {
    double loss_raw[MOE_NUM_LOSSES]; /* alpha = 1, scope that trains; NaN: not defined in this run
                                      */
    double loss[MOE_NUM_LOSSES];     /* times alpha */
    double total;                    /* sum of the losses with a coefficient */
    double loss_by_scope[MOE_NUM_SCOPES][MOE_NUM_LOSSES]; /* raw; z is the same in every scope */
    double ideal[MOE_NUM_LOSSES]; /* value at perfect balance with alpha = 1; NaN: there is none */

    int64_t *counts_per_expert;          /* [N] selections before dropping, padding included */
    int64_t *kept_per_expert;            /* [N] selections after dropping */
    int64_t *counts_per_device;          /* [D] selections before dropping */
    int64_t *distinct_tokens_per_device; /* [D] numerator of f'' in the global scope */
    int64_t *sent_rows;                  /* [D] dispatch rows by source device */
    int64_t *received_rows;              /* [D] dispatch rows by destination device */
    int64_t *dropped_per_expert;         /* [N] pairs that nobody serves, by their chosen expert */
    int64_t *dropped_per_device;         /* [D] the same by the device of that expert */
    moe_block block;                     /* holds the arrays above, and nothing but counts */

    moe_sparse matrix; /* [D,D] dispatch rows, source -> destination */
    moe_capacity_metrics capacity;
    moe_fetch_metrics fetch;
    int64_t selections;            /* token-expert pairs that the router chose */
    int64_t dropped;               /* those of them that nobody serves */
    int64_t tokens_by_reach[65];   /* tokens that reach 0, 1, .. 63 devices; [64]: 64 and more */
    double mean_devices;           /* mean over tokens of the devices that a token reaches */
    double mean_devices_unlimited; /* the same without the group limit; NaN: not computed */
    double mean_nodes;             /* mean over tokens of the nodes that a token reaches, */
    double mean_remote_nodes;    /* of those that are not its own: rows across nodes, if there were
                                    one per token and node, */
    double mean_nodes_unlimited; /* and of the nodes without the group limit; NaN: not computed */
    moe_volume volume[MOE_NUM_DIRECTIONS];
    int64_t pairs[MOE_MOST_HOPS][MOE_NUM_LEVELS]; /* token-expert pairs that were sent */
    int64_t allreduce_bytes;              /* payload given to MPI_Allreduce, summed over devices */
    int64_t metadata_block_bytes;         /* of the block in which sizes and metadata went to each
                                             other rank (exchange/announce.c); 0: in two calls */
    double output_rms;                    /* of y, from exact sums */
    double phase_seconds[MOE_NUM_PHASES]; /* of the slowest rank */
    moe_overlap overlap; /* of this rank, where the batch is exchanged in several chunks */
} moe_layer_metrics;

/* --- the metrics of a step --- */

/* What narrow payloads and experts that compute in bf16 changed together, against the same step
 * with fp32: in the last step of a run that has them. loss and gradient are NaN without training.
 */
typedef struct moe_payload_error_metrics {
    bool on;
    double y;        /* root mean square over tokens of |y - y of fp32| / |y of fp32|, last layer */
    double loss;     /* of the task, less that of fp32 */
    double gradient; /* |g - g of fp32| / |g of fp32| over all parameters */
} moe_payload_error_metrics;

enum { MOE_MAX_CHECKS = 32 };
typedef struct moe_check {
    char name[48];
    bool made, passed; /* made = false: not applicable here, and `detail` says why */
    char detail[160];
} moe_check;

typedef struct moe_rebalance_metrics { /* a new placement before a step, or all of a run */
    bool on, first;                    /* first: before the first step */
    int64_t decisions;                 /* how many are summed here */
    int64_t moved;            /* slots, of all layers, whose expert came from another device */
    int64_t bytes;            /* payload between devices: weights and state of the optimiser */
    int64_t cross_node_bytes; /* of that between nodes */
    int64_t wasted;           /* replicas on a device that has the expert already, of all layers */
    double device_before;     /* busiest device / mean under the load that was decided by, mean */
    double device_after;      /* over layers, of the old and of the new placement */
    double decide_seconds, move_seconds; /* of the slowest rank */
} moe_rebalance_metrics;

typedef struct moe_expert_move {
    int32_t layer, expert, from, to; /* devices */
} moe_expert_move;

typedef struct moe_rebalance_detail { /* of one new placement */
    int32_t layers, devices;
    double *before, *after; /* [layers,devices] tokens under the load that was decided by, by the
                               old and the new placement, where replicas share evenly */
    moe_expert_move *move;  /* [num_moves] experts from other devices, by layer and slot */
    int64_t num_moves;
} moe_rebalance_detail;

typedef struct moe_step_metrics {
    int64_t step, num_tokens;
    int32_t num_layers, num_experts, devices;
    moe_layer_metrics *layer; /* [num_layers] */
    moe_all_layers_metrics all_layers;
    moe_rebalance_metrics rebalance;              /* before this step, */
    moe_rebalance_metrics rebalance_sum;          /* and in the run so far */
    const moe_rebalance_detail *rebalance_detail; /* of `rebalance`, on rank 0. Not owned */
    int num_checks;
    moe_check check[MOE_MAX_CHECKS];
    double seconds; /* the whole step on the slowest rank */
    /* Training only; NaN: not evaluated in this step. */
    double task_loss, validation_loss, gradient_norm, learning_rate;
    moe_payload_error_metrics payload_error;
    int64_t gradient_allreduce_bytes; /* payload of the sum of replicated gradients over devices */
    int64_t replica_gradient_bytes;   /* payload between devices that sums the gradients of the
                                         replicas of experts and gives them back */
} moe_step_metrics;

/* Local. Cleared metrics with memory for num_layers layers. Owner: the caller, who calls
 * moe_step_metrics_free. */
void moe_step_metrics_init(moe_step_metrics *m,
                           int32_t num_layers,
                           int32_t num_experts,
                           int32_t devices);
void moe_step_metrics_free(moe_step_metrics *m);

/* Local. Clears the figures and keeps the memory. Counts become 0; loss_raw, loss_by_scope, ideal
 * and the means without the group limit become NaN, so that what nobody filled in shows up as "not
 * defined" and never as a plausible zero. */
void moe_step_metrics_clear(moe_step_metrics *m);

/* Local. Makes c->dropped_per_sequence an array of num_sequences pairs. */
void moe_capacity_metrics_reserve(moe_capacity_metrics *c, int64_t num_sequences);
/* Local. Adds the figures of one volume, or of one capacity without its sequences, to a sum. The
 * capacity itself is no sum: the one added last stays. */
void moe_volume_add(moe_volume *sum, const moe_volume *v);
/* Local. Adds to what a hop sent on a level, and to the sums of which it is a part. */
void moe_volume_add_rows(moe_volume *v,
                         int hop,
                         enum moe_level level,
                         int64_t rows,
                         int64_t row_bytes,
                         int64_t metadata_bytes);
/* Local. Sets what mode `selection` and, with two hops, mode `token` would have sent on a level. */
void moe_volume_compare(moe_volume *v,
                        enum moe_level level,
                        int64_t selection_rows,
                        int64_t token_rows,
                        int64_t row_bytes);
void moe_capacity_metrics_add(moe_capacity_metrics *sum, const moe_capacity_metrics *c);

/* Local. Adds what a new placement moved; the rest becomes that of the last one. */
void moe_fetch_metrics_add(moe_fetch_metrics *sum, const moe_fetch_metrics *one);
void moe_rebalance_metrics_add(moe_rebalance_metrics *sum, const moe_rebalance_metrics *one);

/* Local. Joins micro-batch `number` (0, 1, ...) of a step of `of` micro-batches to the metrics of
 * the step. Counts, rows, bytes and times add up, and so do the matrices. Losses, their values at
 * balance and the mean numbers of devices become means, since a step trains with the mean of its
 * micro-batches' losses. The output's rms is that of all tokens. Sequences are listed one
 * micro-batch after the other. A check passed if it passed in each. Number 0 starts the step's
 * layers and checks anew. What belongs to no layer (step, losses of the task) is left alone. */
void moe_step_metrics_join(moe_step_metrics *step,
                           const moe_step_metrics *micro,
                           int32_t number,
                           int32_t of);

/* Local. Adds a self-check, whose detail is a printf format. A check of the same name is merged
 * with it: it was made if one of the two was, it passed if both did, and the detail of the first
 * failure stays. */
void moe_step_metrics_check(moe_step_metrics *m,
                            const char *name,
                            bool made,
                            bool passed,
                            const char *detail,
                            ...) MOE_PRINTF(5, 6);

/* Local. Whether every check that was made passed. */
bool moe_step_metrics_all_passed(const moe_step_metrics *m);

#endif
