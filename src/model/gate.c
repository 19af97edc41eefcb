/* gate.c: see gate.h. */
#include "model/gate.h"

#include "base/gemm.h"

enum { GATE_ROWS = 256 }; /* of one gate GEMM */

void moe_gate_logits(const real *gate,
                     const moe_batch *batch,
                     const real *u,
                     int64_t h,
                     int64_t n,
                     real *logits) {
    for (int32_t j = 0; j < batch->num_local_devices; j++) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t begin = batch->device_offset[j]; begin < batch->device_offset[j + 1];
             begin += GATE_ROWS) {
            int64_t left = batch->device_offset[j + 1] - begin,
                    rows = left < GATE_ROWS ? left : GATE_ROWS;
            moe_gemm_nt(rows, n, h, u + begin * h, gate, logits + begin * n);
        }
    }
}

moe_logits moe_gate_computed_logits(const real *logits) {
#ifdef MOE_REAL_DOUBLE
    return (moe_logits){.f64 = logits};
#else
    return (moe_logits){.f32 = logits};
#endif
}

/* The first local token of the layer in this step, in arrays [steps][layers][T,..]. */
static int64_t recorded_tokens(const moe_layer *layer, const moe_context *context) {
    const int64_t layers = moe_config_moe_layers(context->config);
    return (context->input->step * layers + layer->index) * context->batch->num_tokens;
}

moe_logits moe_gate_recorded_logits(const moe_layer *layer,
                                    const moe_context *context,
                                    int64_t first) {
    const moe_input *in = context->input;
    const int64_t token = recorded_tokens(layer, context) + first;
    const int64_t offset = token * context->router.num_experts;
    if (in->logits_dtype == MOE_F64) {
        return (moe_logits){.f64 = (const double *)in->logits + offset};
    }
    return (moe_logits){.f32 = (const float *)in->logits + offset};
}

void moe_gate_route_recorded(const moe_layer *layer,
                             const moe_router *router,
                             const moe_context *context,
                             const moe_batch *batch,
                             int64_t first,
                             moe_routing *routing,
                             moe_stats *stats) {
    const moe_input *in = context->input;
    const int64_t token = recorded_tokens(layer, context) + first;
    const int32_t *experts = in->routing ? in->routing + token * in->routing_k : NULL;
    const real *weights = in->weights ? in->weights + token * in->routing_k : NULL;
    const double *scores = in->scores ? in->scores + token * context->router.num_experts : NULL;
    moe_router_route_recorded(router, batch, layer->placement, experts, in->routing_k, weights,
                              scores, routing, stats);
}
