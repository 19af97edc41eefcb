/* timeline.h: when each rank did what in one step, as spans that nest; written as timeline.json in
 * Chrome's trace-event format. Layer 4 (show).
 *
 * Every step is recorded over the one before, so that what is written is the last. A span of a
 * phase (record.h) is the same reading of the clock as phase_seconds: the sums of both agree. All
 * ranks record the same spans in the same order. */
#ifndef MOESIM_MEASURE_TIMELINE_H
#define MOESIM_MEASURE_TIMELINE_H

#include <stdint.h>

#include "base/status.h"
#include "config/config.h"
#include "measure/metrics.h"
#include "world/comm.h"
#include "world/topology.h"

enum moe_span_kind { /* 0 .. MOE_NUM_PHASES - 1 are the phases */
                     MOE_SPAN_STEP = MOE_NUM_PHASES,
                     MOE_SPAN_INPUT,
                     MOE_SPAN_LAYER, /* forward of one layer: its phases, tally, residual */
                     MOE_SPAN_TALLY, /* counts and self-checks */
                     MOE_SPAN_LOSS,  /* training, from here on: head, loss of the task and its
                                        gradient; then its mean over all ranks */
                     MOE_SPAN_DISPATCH_BACKWARD,
                     MOE_SPAN_EXPERT_BACKWARD,
                     MOE_SPAN_COMBINE_BACKWARD,
                     MOE_SPAN_ROUTER_BACKWARD,
                     MOE_SPAN_SHARED_BACKWARD,
                     MOE_SPAN_INPUT_BACKWARD,
                     MOE_SPAN_REDUCE,
                     MOE_SPAN_OPTIMIZER,
                     MOE_SPAN_VALIDATION,
                     MOE_NUM_SPAN_KINDS
};
extern const char *const moe_span_names[MOE_NUM_SPAN_KINDS];

typedef struct moe_span_rows { /* vectors of one rank in one layer */
    int64_t sent, received;    /* given and taken, those to and from itself included */
    int64_t own;               /* of these: from the rank to itself */
    int64_t selections;        /* token-expert pairs that the rank's experts computed */
} moe_span_rows;

typedef struct moe_span {
    double begin, end;   /* seconds of moe_comm_time */
    int32_t kind, layer; /* layer -1: of the whole step */
    moe_span_rows rows;  /* all 0: the span moves none */
} moe_span;

/* Most spans of all ranks together (5 MB of text): what comes later in a step is counted and left
 * out. */
enum { MOE_TIMELINE_SPANS = 40960 };

typedef struct moe_timeline {
    moe_span *span; /* in the order in which they began: a span stands before those inside it */
    int64_t count, room, most, left_out;
} moe_timeline;

/* Local, all of them; timeline NULL: nothing is recorded. */
void moe_timeline_start(moe_timeline *t, int ranks); /* of a new step */
/* Begins a span that others will be inside; returns its number for moe_timeline_end, -1 where there
 * is no room. */
int64_t moe_timeline_begin(moe_timeline *t, int kind, int32_t layer, double begin);
void moe_timeline_end(moe_timeline *t, int64_t span, double end);
/* Adds a span that is over. rows may be NULL. */
void moe_timeline_add(
    moe_timeline *t, int kind, int32_t layer, double begin, double end, const moe_span_rows *rows);
void moe_timeline_free(moe_timeline *t);

/* Collective. folder/timeline.json, written whole by rank 0: a process for each host, a thread for
 * each rank, a complete event ("X") for each span; ts and dur in microseconds since the first rank
 * began the step, on rank 0's clock (moe_comm_clock_offset). topologies [size] of all ranks.
 * MOE_ERROR (agreed by all) when it cannot be written. */
int moe_timeline_write(const moe_comm *comm,
                       const moe_timeline *t,
                       const moe_config *c,
                       const moe_topology *topologies,
                       int64_t step,
                       const char *folder,
                       moe_status *st);

#endif
