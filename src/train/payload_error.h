/* payload_error.h: what payloads narrower than fp32 do to a step: the same step is also run with
 * fp32, and the two are compared. docs/method.md section 4.
 *
 * The fp32 step starts from the same parameters and draws the same random numbers. In a model of
 * several layers the routers of later layers see other vectors, and may choose other experts: that
 * is part of the error. */
#ifndef MOESIM_TRAIN_PAYLOAD_ERROR_H
#define MOESIM_TRAIN_PAYLOAD_ERROR_H

#include "measure/metrics.h"
#include "model/parameters.h"
#include "model/stack.h"

typedef struct moe_payload_error { /* the fp32 step; zeroed before the first one */
    real *y;                       /* [T,H] output of the last layer, of the last micro-batch */
    real *gradient;                /* of all parameters of this rank, one behind the other */
    double loss;                   /* of the task */
    double seconds;                /* that the fp32 step took */
} moe_payload_error;

void moe_payload_error_free(moe_payload_error *r);

/* Local. True when a payload of the configuration rounds. */
bool moe_payload_error_happens(const moe_config *c);

/* Local. Makes the exchanges of the context send fp32, or what the configuration says again. */
void moe_payload_error_suspend(moe_context *context, bool suspended);

/* Local. An observer of the fp32 step, which keeps y. */
moe_observer moe_payload_error_observer(moe_payload_error *r);

/* Collective. The forward pass with fp32 from moe_stack_input. It may change that input: the caller
 * fills it anew. */
int moe_payload_error_forward(moe_payload_error *r, moe_stack *s, moe_status *st);

/* Local. Keeps the gradients, complete as moe_parameters_reduce leaves them. */
void moe_payload_error_keep_gradient(moe_payload_error *r, const moe_parameters *all);

/* Collective. The root mean square over tokens of |y - y of fp32| / |y of fp32|; tokens whose y is
 * 0 in fp32 are left out. */
double moe_payload_error_of_y(const moe_payload_error *r,
                              const moe_context *context,
                              const real *y);

/* Collective. |g - g of fp32| / |g of fp32|, Euclidean over all parameters. */
double moe_payload_error_of_gradient(const moe_payload_error *r,
                                     moe_parameters *all,
                                     const moe_comm *comm);

#endif
