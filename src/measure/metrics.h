/* record.h: the record of one step: what was computed and what was sent, side by side. Layer 2
 * (decide): pure data. Global figures: the same on every rank, and independent of the number of
 * ranks (time aside). */
#ifndef MOESIM_MEASURE_METRICS_H
#define MOESIM_MEASURE_METRICS_H

#include <stdbool.h>
#include <stdint.h>

#include "balance/balance.h"
#include "base/status.h"
#include "config/config.h"

enum moe_level {
    MOE_LEVEL_DEVICE,
    MOE_LEVEL_NODE,
    MOE_LEVEL_CLUSTER,
    MOE_NUM_LEVELS
}; /* same device, same node, across nodes */
enum moe_direction {
    MOE_DISPATCH,
    MOE_COMBINE,
    MOE_DISPATCH_BACKWARD /* dy */,
    MOE_COMBINE_BACKWARD /* dx, dg */,
    MOE_NUM_DIRECTIONS
};
enum moe_phase {
    MOE_PHASE_GATE,
    MOE_PHASE_ROUTE,
    MOE_PHASE_PLAN,
    MOE_PHASE_DISPATCH,
    MOE_PHASE_EXPERT,
    MOE_PHASE_COMBINE,
    MOE_PHASE_SHARED,
    MOE_PHASE_BALANCE,
    MOE_PHASE_BACKWARD,
    MOE_NUM_PHASES
};
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

extern const char *const moe_level_names[MOE_NUM_LEVELS]; /* "same_device", "same_node",
                                                             "across_nodes" */
extern const char *const moe_direction_names[MOE_NUM_DIRECTIONS];
extern const char *const moe_phase_names[MOE_NUM_PHASES]; /* "gate", "route", ... */

typedef struct moe_traffic { /* one direction, one level */
    int64_t rows, bytes, metadata_bytes;
} moe_traffic;

typedef struct moe_volume {  /* one direction of one layer, or the sum over layers */
    int64_t rows;            /* all levels and hops */
    int64_t logical_bytes;   /* payload, rows that stay on their device included */
    int64_t remote_bytes;    /* payload without them */
    int64_t selection_bytes; /* payload that mode `selection` would have sent (logical) */
    int64_t selection_remote_bytes;
    int64_t metadata_bytes;
    moe_traffic by_level[MOE_NUM_LEVELS];
} moe_volume;

enum { MOE_MAX_LISTED_SEQUENCES = 4096 };
typedef struct moe_capacity_metrics { /* what a capacity did to a layer */
    bool on;
    int64_t capacity;                /* pairs per target; INT64_MAX: as much as is needed */
    int64_t reassigned;              /* pairs that another expert serves (next_choice) */
    int64_t dropped_tokens;          /* tokens that lost one pair or more */
    int64_t fully_dropped_tokens;    /* tokens that lost all */
    int64_t exempt_overflow;         /* pairs of exempt sequences that are kept beyond a capacity */
    int64_t rows_saved, bytes_saved; /* not sent: dispatch rows; payload of dispatch and combine */
    int64_t padding_rows, padding_bytes; /* wasted by pad_to_capacity: rows; payload of dispatch and
                                            combine */
    int64_t dropped_sequences;           /* sequences that lost a pair */
    int64_t num_sequences;         /* listed; 0 when there are more than MOE_MAX_LISTED_SEQUENCES */
    int64_t *dropped_per_sequence; /* [num_sequences] pairs */
    int64_t sequence_room;
} moe_capacity_metrics;

typedef struct moe_all_layers_metrics { /* Mixtral's loss over the tokens of all layers put
                                          together; on with balance.aux_form = mixtral */
    bool on;
    double raw, ideal;               /* alpha = 1, training scope; at perfect balance */
    double by_scope[MOE_NUM_SCOPES]; /* raw */
    double loss;                     /* times alpha; 0 where each layer's trains instead */
} moe_all_layers_metrics;

typedef struct moe_layer_metrics {
    double loss_raw[MOE_NUM_LOSSES]; /* alpha = 1, training scope; NaN = not defined for this run */
    double loss[MOE_NUM_LOSSES];     /* times alpha */
    double total;                    /* sum of the losses with a coefficient */
    double loss_by_scope[MOE_NUM_SCOPES][MOE_NUM_LOSSES]; /* raw; z is the same in every scope */
    double ideal[MOE_NUM_LOSSES];        /* value at perfect balance (alpha = 1), NaN = none */
    int64_t *counts_per_expert;          /* [N] selections, before dropping, padding included */
    int64_t *kept_per_expert;            /* [N] after dropping */
    int64_t *counts_per_device;          /* [D] selections */
    int64_t *distinct_tokens_per_device; /* [D] numerator of f'' (global) */
    int64_t *sent_rows;                  /* [D] dispatch rows by source device */
    int64_t *received_rows;              /* [D] dispatch rows by destination device */
    int64_t *dropped_per_expert; /* [N] pairs that nobody serves, by the expert that was chosen */
    int64_t *dropped_per_device; /* [D] the same by its device */
    moe_capacity_metrics capacity;
    int64_t *matrix;             /* [D*D] dispatch rows source -> destination */
    int64_t dropped;             /* token-expert pairs */
    int64_t selections;          /* token-expert pairs chosen */
    int64_t tokens_by_reach[65]; /* tokens that reach x distinct devices, x = 0 .. 63; [64] = 64 and
                                    more */
    double mean_devices;         /* mean of X_t */
    double mean_devices_unlimited; /* mean of X_t if there were no group limit; NaN = not computed
                                    */
    moe_volume volume[MOE_NUM_DIRECTIONS];
    int64_t pairs_by_level[MOE_NUM_LEVELS]; /* token-expert pairs that were sent */
    int64_t allreduce_bytes; /* payload that the devices give to MPI_Allreduce, summed over devices
                              */
    double output_rms;       /* of y, from exact sums */
    double phase_seconds[MOE_NUM_PHASES]; /* slowest rank */
} moe_layer_metrics;

enum { MOE_MAX_CHECKS = 32 };
typedef struct moe_check {
    char name[48];
    bool made, passed; /* made = false: not applicable here, `detail` says why */
    char detail[160];
} moe_check;

typedef struct moe_step_metrics {
    int64_t step, num_tokens;
    int32_t num_layers, num_experts, devices;
    moe_layer_metrics *layer; /* [num_layers] */
    moe_all_layers_metrics all_layers;
    int num_checks;
    moe_check check[MOE_MAX_CHECKS];
    double seconds; /* whole step, slowest rank */
    /* training only; NaN = not evaluated in this step */
    double task_loss, validation_loss, gradient_norm, learning_rate;
    int64_t gradient_allreduce_bytes; /* payload of the sum of replicated gradients, summed over
                                         devices */
} moe_step_metrics;

/* Local. Cleared record with room for num_layers layers. */
void moe_step_metrics_init(moe_step_metrics *r,
                           int32_t num_layers,
                           int32_t num_experts,
                           int32_t devices);
void moe_step_metrics_free(moe_step_metrics *r);
/* Local. Clears figures, keeps room: counts become 0, loss_raw, loss_by_scope, ideal and
 * mean_devices_unlimited NaN. */
void moe_step_metrics_clear(moe_step_metrics *r);
/* Local. Joins micro-batch `number` (0, 1, ...) of a step of `of` micro-batches to the record of
 * the step: counts, rows, bytes and times add up, and so do their matrices; losses, their values at
 * balance and the mean number of devices are means (a step trains with the mean of its
 * micro-batches' losses); the output's rms is that of all tokens; sequences are listed one
 * micro-batch after the other; a check passed if it passed in each. `number` 0 starts the step's
 * layers and checks anew; what is not of a layer (step, losses of the task) is left alone. */
void moe_step_metrics_join(moe_step_metrics *step,
                           const moe_step_metrics *micro,
                           int32_t number,
                           int32_t of);
/* Local. Adds (or merges, if the name exists: made |=, passed &=, first failing detail stays) a
 * check. `detail` is a printf format. */
void moe_step_metrics_check(
    moe_step_metrics *r, const char *name, bool made, bool passed, const char *detail, ...)
    MOE_PRINTF(5, 6);
/* Local. True when every check that was made passed. */
bool moe_step_metrics_all_passed(const moe_step_metrics *r);
/* Local. Sum over layers of the volume of one direction. */
void moe_step_metrics_volume(const moe_step_metrics *r,
                             enum moe_direction direction,
                             moe_volume *sum);
/* Local. Mean over layers of loss (times alpha) and loss_raw; *total: of the layers' totals, and
 * the loss over all layers once. */
void moe_step_metrics_mean_losses(const moe_step_metrics *r,
                                  double loss[MOE_NUM_LOSSES],
                                  double raw[MOE_NUM_LOSSES],
                                  double *total);
/* Local. What training adds to the loss of the task: the layers' totals, added up, and the loss
 * over all layers once. */
double moe_step_metrics_objective(const moe_step_metrics *r);

#endif
