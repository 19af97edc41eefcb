/* memory.h: how much memory a run will need, estimated before anything is allocated. */
#ifndef MOESIM_PREDICT_MEMORY_H
#define MOESIM_PREDICT_MEMORY_H

#include "config/config.h"

/* Bytes of one rank, saturated at INT64_MAX. */
typedef struct moe_memory {
    int64_t weights;
    int64_t gradients; /* training: also the partial gradients of each local device */
    int64_t optimizer; /* training: the state of the optimizer */
    int64_t activations, exchange, statistics, input;
    int64_t windows;   /* of the exchange: in the host's folder for shared memory */
    int64_t program;   /* pages of MPI, other libraries and the program itself */
    int64_t total;     /* of these */
    int64_t mean;      /* of the totals of all ranks; the estimate says the total itself */
    int64_t histories; /* on rank 0 beside the total: the loads and matrices of all steps */
} moe_memory;

/* A part of the total. */
typedef struct moe_memory_part {
    const char *name;
    int64_t bytes;
} moe_memory_part;

enum { MOE_MEMORY_PARTS = 8 };

/* The bytes of `program` that are resident as soon as MPI has started: a bare MPI program on a
 * single host under Open MPI 4.1 has 13.4 to 13.6 MiB, on any number of ranks. */
enum { MOE_MEMORY_STARTED = 13 << 20 };

/* Local. The parts of the total by name, in the order in which they are shown. */
void moe_memory_parts(const moe_memory *m, moe_memory_part part[MOE_MEMORY_PARTS]);

/* The parameters of the whole model, each counted once, saturated at INT64_MAX. */
typedef struct moe_parameter_counts {
    int64_t expert;     /* of the routed experts, each of which is on one device */
    int64_t replicated; /* gates, norms and shared experts; in training also embedding and head */
} moe_parameter_counts;

/* Local. Counts the parameters of a resolved configuration. */
moe_parameter_counts moe_memory_parameters(const moe_config *c);

/* What a rank sends and receives in a layer, for each of its tokens. */
typedef struct moe_memory_load {
    double selections;         /* that its router made */
    double sent;               /* of these, after dropping */
    double rows, remote;       /* rows that it sends in the last hop; of these, to other ranks */
    double first;              /* of two hops: rows that arrived in the first */
    double in_pairs;           /* selections that its experts serve */
    double in_rows, in_remote; /* rows that arrive in the last hop; of these, from other ranks */
    double of_slot;            /* selections of its fullest expert */
} moe_memory_load;

enum { MOE_MEMORY_FIGURES = sizeof(moe_memory_load) / sizeof(double) };

/* What the files of a run tell; 0 = unknown. */
typedef struct moe_memory_given {
    const moe_memory_load *load; /* of the rank whose memory is estimated; NULL: an even one */
    int64_t num_tokens;          /* of all devices; unknown: devices x tokens_per_device */
    int64_t num_counted;         /* of these, tokens that are routed; unknown: all */
    double choices; /* mean number of experts of a token that is routed, in a recording */
    bool backward;  /* a layer from model.load runs backward too */
    bool by_device; /* logits and cells are forgotten device by device (model/by_device.h) */
    int64_t places; /* run.mode = generate: tokens of a sequence in the cache */
    int64_t num_sequences;
    const int64_t *boundary; /* [num_sequences + 1] of data.boundaries; NULL: equal sequences */
} moe_memory_given;

/* Local. The estimate of resident memory for a rank with the given load, of the fullest rank where
 * it is even. Training keeps in every layer what backward needs; in a forward run the layers share
 * their memory. What a buffer has in reserve is never touched and so not counted. */
moe_memory moe_memory_estimate(const moe_config *c, const moe_memory_given *given);

/* Local. What this many ranks need together on average, rank 0 among them; saturated at INT64_MAX.
 */
int64_t moe_memory_of_ranks(const moe_memory *m, int ranks);

/* Local. How many layers have their activations at the same time: all of them in training and where
 * the gradient of the loss over all layers is written, otherwise one. */
int32_t moe_memory_kept_layers(const moe_config *c);

#endif
