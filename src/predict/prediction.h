/* prediction.h: how long a step would take on the cluster of [cluster]: the counts of the step put
 * into the formulas of cost.h.
 *
 * The devices go through attention, gate, dispatch, experts and combine of each layer. No device
 * can combine before the slowest expert has finished, so that a layer takes
 *
 *     attention + gate + max over devices (dispatch + experts) + max over devices (combine)
 *
 * Each phase is reported of the device that is its slowest, so that the phases may add up to more
 * than the step. With exchange.chunks = n the three overlap like a pipeline of n pieces:
 *
 *     (dispatch + experts + combine) / n + (n-1)/n max(dispatch, experts, combine)
 *
 * The two hops of exchange.mode = two_level overlap too, as rows go on while others arrive: their
 * rows load the links together. What combine brings back across nodes without node_sum is taken in
 * proportion to what each device received.
 *
 * The backward pass sends the rows of the combine and of the dispatch the other way, in the format
 * of the way back, and has twice the products. Attention, shared experts and the gate work on a
 * device's own tokens, and so do the model.first_dense_layers, which take attention and the
 * products of their FFN. With cluster.model_hidden_size all widths of attention grow as the hidden
 * size does; more heads or wider ones come to the same. */
#ifndef MOESIM_PREDICT_PREDICTION_H
#define MOESIM_PREDICT_PREDICTION_H

#include "base/sparse.h"
#include "config/config.h"
#include "measure/metrics.h"

/* The phases that a time is predicted of, with their keys in JSON. */
enum moe_predicted_phase {
    MOE_PREDICTED_ATTENTION, /* 0 without model.attention; of the dense layers too */
    MOE_PREDICTED_DENSE,     /* the FFN of the first_dense_layers */
    MOE_PREDICTED_GATE,
    MOE_PREDICTED_DISPATCH,
    MOE_PREDICTED_EXPERT,
    MOE_PREDICTED_COMBINE,
    MOE_PREDICTED_ALLREDUCE,
    MOE_PREDICTED_BACKWARD,
    MOE_PREDICTED_STEP,
    MOE_NUM_PREDICTED
};
extern const char *const moe_predicted_names[MOE_NUM_PREDICTED];

typedef struct moe_prediction {
    double seconds[MOE_NUM_PREDICTED];  /* sums over layers, also the dense ones */
    double balanced[MOE_NUM_PREDICTED]; /* the same rows and selections spread evenly over the
                                           devices and over as many experts: never above seconds */
    double bytes;                       /* payload that leaves its device in the dispatches and
                                           combines of the forward pass, of all devices */
    double out_bytes, in_bytes;         /* of a row to the experts and back */
    double exchange_seconds;            /* of an exchange that no byte costs */
    double price_per_token;             /* NaN: cluster.price_per_hour is not known */
    char bottleneck[240];               /* a sentence without a full stop */
} moe_prediction;

/* What a layer did: the counts that a prediction needs. */
typedef struct moe_layer_counts {
    const moe_sparse *matrix; /* [D,D] dispatch rows from device to device */
    int32_t slots;            /* a multiple of D; device d has the slots d S/D .. (d+1) S/D - 1 */
    const int64_t *served;    /* [slots] selections that the expert in each slot serves */
    int64_t allreduce_bytes;  /* summed over devices */
    /* With two hops, which the matrix holds together; 0 stands for 1. */
    double arriving;    /* share of its rows that arrive at experts and do not go on */
    double across_back; /* rows that combine brings back across nodes for each that dispatch sent */
} moe_layer_counts;

/* Local. The time of a step with these MoE layers, for the widths and layers of
 * cluster.model_hidden_size and its neighbours; cluster.model_layers counts the dense ones too.
 * gradient_bytes: payload of the sum of replicated gradients, summed over devices. It looks at each
 * entry of the matrices once. */
moe_prediction moe_prediction_of_counts(const moe_config *c,
                                        const moe_layer_counts *layer,
                                        int32_t num_layers,
                                        int64_t num_tokens,
                                        int64_t gradient_bytes);

/* Local. The same from the metrics of a step. Where experts do not stand in blocks, the selections
 * of a device count as spread evenly over its slots. */
moe_prediction moe_prediction_of(const moe_config *c, const moe_step_metrics *m);

#endif
