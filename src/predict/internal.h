/* internal.h: what the files of the estimate of memory share: arithmetic that saturates, so that
 * absurd sizes come out as "too much" and never wrap; and the sizes that the terms are made of. */
#ifndef MOESIM_PREDICT_INTERNAL_H
#define MOESIM_PREDICT_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "config/config.h"
#include "predict/expected.h"

enum {
    BYTE_VALUES = 256,
    HUGE_PAGE = 1 << 21,
    WORD = sizeof(int64_t),
    INT = sizeof(int32_t),
    REAL = sizeof(real),
    DOUBLE = sizeof(double)
};

static inline int64_t add(int64_t a, int64_t b) {
    return a > INT64_MAX - b ? INT64_MAX : a + b;
}
static inline int64_t mul(int64_t a, int64_t b) {
    return a != 0 && b > INT64_MAX / a ? INT64_MAX : a * b;
}
static inline int64_t mul3(int64_t a, int64_t b, int64_t c) {
    return mul(mul(a, b), c);
}
static inline int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t div_up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

/* How the sequences of the batch are cut by the devices (data/batch.h). */
typedef struct moe_memory_segment_counts {
    int64_t of_rank, of_device; /* segments: the most that a rank, and that a device has */
    int64_t sequences;          /* the most of which a rank has a token */
    int64_t shared;             /* sequences that several ranks hold */
    bool whole;                 /* no sequence lies on several devices */
} moe_memory_segment_counts;

typedef struct moe_memory_sizes { /* of the fullest rank */
    bool train, text;
    bool backward;
    bool keep;      /* backward needs the pre-activations of the experts */
    bool by_device; /* a thread holds the logits and cells of one device at a time */
    int64_t ranks, local_devices, tokens;
    int64_t device_tokens; /* of the fullest device */
    moe_memory_segment_counts segments;
    int64_t most;        /* experts that one token may have, for which there is room */
    int64_t selections;  /* that are expected */
    int64_t sent;        /* of these, after dropping */
    int64_t rows;        /* of dispatch that are expected, of the last hop */
    int64_t first;       /* of the first of two hops; 0 with one */
    int64_t first_ranks; /* ranks among which the first of two hops spreads its rows */
    int64_t remote;   /* of rows, for other ranks, with two hops those of the node: 1 - 1/ranks */
    int64_t in_pairs; /* selections that the experts of this rank serve */
    int64_t in_rows, in_remote; /* rows that arrive in the last hop; of these, from other ranks */
    int64_t of_slot;            /* selections of the fullest expert */
    int64_t copies;             /* how many layers have their activations at the same time */
    int64_t threads;
    int64_t places;   /* of a sequence in the cache; 0: nothing is generated */
    int64_t matrices; /* of an expert */
    int64_t slots;    /* experts of this rank */
    int64_t hidden;   /* pre-activations of an expert for one row: F, or 2 F where there is w3 */
} moe_memory_sizes;

/* Local. The smallest whole number that is not below x, saturated. */
int64_t moe_memory_whole(double x);

/* Local. What is resident of `bytes` in a buffer whose size varies with the load, and that has a
 * quarter in reserve. One of two huge pages or more begins at such a page (base/alloc.c), and is
 * resident up to the end of the last that is used. */
int64_t moe_memory_touched(int64_t bytes);

/* Local. Whether there is a gate; where not, logits or a routing were recorded. */
bool moe_memory_has_gate(const moe_config *c);

/* Local. Whether the gate learns the scale of its noise. */
bool moe_memory_learns_noise(const moe_config *c);

/* Local. The most rows of a product of an expert, which takes its rows chunk by chunk. */
int64_t moe_memory_rows_of_call(const moe_config *c, const moe_memory_sizes *s);

/* Local. Multiplications of the largest product of attention (memory_attention.c). */
int64_t moe_memory_attention_product(const moe_config *c, const moe_memory_sizes *s);

/* Local. The parameters of this rank. */
int64_t moe_memory_local_parameters(const moe_config *c, const moe_memory_sizes *s);

/* Local. Cells of the matrix of devices [D,D] that are not 0, at most. */
int64_t moe_memory_matrix_cells(const moe_config *c, const moe_memory_sizes *s);

/* Local. Counts segments and sequences of a batch of so many tokens (memory_statistics.c). */
moe_memory_segment_counts moe_memory_segments(const moe_sequences *sequences,
                                              int64_t tokens,
                                              int32_t devices,
                                              int32_t ranks);

/* Local. Bytes of the cells of counts of all layers that are kept, and of the metrics. */
int64_t moe_memory_statistics(const moe_config *c, const moe_memory_sizes *s);

/* Local. Bytes of the activations of all layers that are kept, with the working memory beside them;
 * and of plans, inboxes and what travels. */
int64_t moe_memory_activations(const moe_config *c, const moe_memory_sizes *s);
int64_t moe_memory_exchange(const moe_config *c, const moe_memory_sizes *s);

/* Local. Whether rows travel through shared memory; the bytes of this rank's pieces of windows,
 * which are of the exchange. */
bool moe_memory_shares(const moe_config *c);
int64_t moe_memory_windows(const moe_config *c, const moe_memory_sizes *s);

/* Local. Bytes of the attention of all layers (memory_attention.c); they are of the activations. */
int64_t moe_memory_attention(const moe_config *c, const moe_memory_sizes *s);

/* Local. Bytes of the files that were read, for `tokens` tokens of this rank; and on rank 0 of what
 * is kept of all steps for the files of results. */
int64_t moe_memory_input(const moe_config *c, int64_t tokens);
int64_t moe_memory_histories(const moe_config *c);

/* Local. Bytes of what placements by load look at: the loads [N] of each layer and step of the
 * window, and where pairs decide [N,N] of each layer, which are summed over the ranks in a copy;
 * and of who serves whom where batches are split. */
int64_t moe_memory_loads(const moe_config *c);

/* Local. Bytes of the largest tensor of experts on their way, packed and arrived: of all slots of
 * this rank while a layer's experts move; in training of its replicas, to the first one and back,
 * which every layer keeps. */
int64_t moe_memory_staging(const moe_config *c, const moe_memory_sizes *s);

#endif
