/* timeline.h: when this rank did what in one step, as spans that nest.
 *
 * Every step is recorded over the one before, so that the last one remains at the end. A span of a
 * phase and phase_seconds are made from the same readings of the clock, so their sums agree. All
 * ranks record the same spans in the same order. */
#ifndef MOESIM_MEASURE_TIMELINE_H
#define MOESIM_MEASURE_TIMELINE_H

#include <stdint.h>

#include "measure/metrics.h"

/* What a span shows: one of the phases 0 .. MOE_NUM_PHASES - 1, or one of these. MOE_SPAN_LAYER is
 * the forward pass of a layer with its phases, tally and residual; MOE_SPAN_TALLY is counting and
 * self-checks. A flight is a chunk of the exchange on its way, while the rank did other things.
 * From MOE_SPAN_LOSS on, spans exist in training only; MOE_SPAN_LOSS itself is the
 * head, the loss of the task and its gradient. */
enum moe_span_kind {
    MOE_SPAN_LAST_PHASE = MOE_NUM_PHASES - 1,
#define SPAN(id, name) MOE_SPAN_##id,
#include "measure/names.def"
    MOE_NUM_SPAN_KINDS
};
extern const char *const moe_span_names[MOE_NUM_SPAN_KINDS];

/* Local. Whether spans of the kind lie beside the rank's own; 1: on the way there, 2: back. */
static inline int moe_span_flight(int kind) {
    return kind == MOE_SPAN_FLIGHT_DISPATCH || kind == MOE_SPAN_FLIGHT_DISPATCH_BACKWARD ? 1
           : kind == MOE_SPAN_FLIGHT_COMBINE || kind == MOE_SPAN_FLIGHT_COMBINE_BACKWARD ? 2
                                                                                         : 0;
}

typedef struct moe_span_rows { /* the vectors that one rank moved in one layer */
    int64_t sent, received;    /* those to and from itself included */
    int64_t own;               /* those from the rank to itself */
    int64_t selections;        /* token-expert pairs that the rank's experts computed */
    int32_t chunk;             /* of a flight: the chunk that travelled; sent and received are
                                  without the rank's own rows */
} moe_span_rows;

typedef struct moe_span {
    double begin, end;   /* seconds of moe_comm_time */
    int32_t kind, layer; /* layer -1: the span belongs to the whole step */
    moe_span_rows rows;  /* all 0: the span moves none */
} moe_span;

/* The largest number of spans of all ranks together, which make about 5 MB of text. What comes
 * later in a step is counted and left out. */
enum { MOE_TIMELINE_SPANS = 40960 };

typedef struct moe_timeline {
    moe_span *span; /* [count] in the order in which they began: a span stands before those in it */
    int64_t count, capacity;
    int64_t most;     /* this rank's share of MOE_TIMELINE_SPANS */
    int64_t left_out; /* spans that came after that */
} moe_timeline;

/* All functions are local. Those that record do nothing when t is NULL. */

/* Starts a new step on a run of `ranks` ranks. The first span allocates the memory for all. */
void moe_timeline_start(moe_timeline *t, int ranks);

/* Begins a span that others will be inside. Returns its number, for moe_timeline_end; -1 where the
 * timeline is full. */
int64_t moe_timeline_begin(moe_timeline *t, int kind, int32_t layer, double begin);
void moe_timeline_end(moe_timeline *t, int64_t span, double end);

/* Adds a span that is over. rows may be NULL. */
void moe_timeline_add(moe_timeline *t,
                      int kind,
                      int32_t layer,
                      double begin,
                      double end,
                      const moe_span_rows *rows);

void moe_timeline_free(moe_timeline *t);

#endif
