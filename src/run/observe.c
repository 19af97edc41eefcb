/* observe.c: what a run does with a layer that has just run: it is counted, explained, checked and,
 * in the last step, written to files. Nothing here changes what the layers compute. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "output/terminal.h"
#include "run/internal.h"
#include "tally/tally.h"

/* --- result files of a layer --- */

/* "y", or with several layers "y_layer0". */
typedef struct tensor_name {
    char s[32];
} tensor_name;

static tensor_name tensor_of_layer(const moe_run_state *r, const char *base, int32_t l) {
    tensor_name name;
    if (moe_config_moe_layers(r->config) == 1) {
        snprintf(name.s, sizeof name.s, "%s", base);
    } else {
        snprintf(name.s, sizeof name.s, "%s_layer%d", base, l);
    }
    return name;
}

static int write_output_and_logits(moe_run_state *r, int32_t l, moe_status *st) {
    const moe_config *c = r->config;
    const moe_activations *a = moe_stack_activations(&r->stack, l);
    if (moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "y", l).s, &r->batch,
                           r->stack.y, c->model.hidden_size, sizeof(real), st)) {
        return st->code;
    }
    /* Whether there are logits is decided by the configuration, never by pointers: a rank without
     * tokens has no logits and takes part all the same. */
    if (moe_config_recorded(c)) {
        return MOE_OK;
    }
    const void *logits = a->logits.f32 ? (const void *)a->logits.f32 : a->logits.f64;
    size_t size =
        c->data.source == MOE_SOURCE_LOGITS ? moe_dtype_size(r->input.logits_dtype) : sizeof(real);
    return moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "logits", l).s, &r->batch,
                              logits, c->model.num_experts, size, st);
}

static int write_dlogits(moe_run_state *r, int32_t l, moe_status *st) {
    int64_t n = r->config->model.num_experts;
    if (moe_config_recorded(r->config)) {
        return MOE_OK;
    }
    double *dlogits = moe_alloc(r->batch.num_tokens * n, sizeof *dlogits, "dlogits");
    moe_layer_dlogits(&r->stack.layer[l], &r->context, moe_stack_activations(&r->stack, l), dlogits,
                      NULL);
    moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "dlogits", l).s, &r->batch, dlogits,
                       n, sizeof *dlogits, st);
    moe_free(dlogits);
    return st->code;
}

/* The gradient of the logits may need the last layer's forward pass (the loss over all layers), so
 * it is written for all layers whose activations are still there: either for each layer by itself,
 * or for all of them when the last layer is done. */
static int write_tensors(moe_run_state *r, int32_t l, moe_status *st) {
    int32_t kept = r->stack.num_activations;
    if (write_output_and_logits(r, l, st) || (l + 1) % kept != 0) {
        return st->code;
    }
    for (int32_t k = l + 1 - kept; k <= l; k++) {
        if (write_dlogits(r, k, st)) {
            return st->code;
        }
    }
    return MOE_OK;
}

static void keep_routing(moe_routing *to, const moe_activations *a, int32_t k) {
    const moe_routing *from = &a->routing;
    moe_routing_reserve(to, from->num_tokens, k);
    to->num_selections = from->num_selections;
    memcpy(to->row_offset, from->row_offset,
           (size_t)(from->num_tokens + 1) * sizeof *to->row_offset);
    if (from->num_selections == 0) {
        return;
    }
    memcpy(to->expert, from->expert, (size_t)from->num_selections * sizeof *to->expert);
    memcpy(to->weight, from->weight, (size_t)from->num_selections * sizeof *to->weight);
    if (!a->drop.on) {
        return;
    }
    moe_reserve(&to->server, &to->server_capacity, from->num_selections, sizeof *to->server,
                "routing");
    memcpy(to->server, a->drop.server, (size_t)from->num_selections * sizeof *to->server);
}

/* Collective. What of a layer goes into files; the time it takes is not the step's. */
static int write_layer(moe_run_state *r, int32_t l, moe_status *st) {
    double start = moe_comm_time();
    const moe_config *c = r->config;
    if (c->output.routing) {
        keep_routing(&r->routing[l], moe_stack_activations(&r->stack, l),
                     moe_config_most_experts(c));
    }
    if (c->output.tensors && !moe_run_trains(r)) {
        write_tensors(r, l, st);
    }
    r->writing_seconds += moe_comm_time() - start;
    return st->code;
}

/* --- checks --- */

/* Collective. router.method = sinkhorn: names the first device whose factors did not settle. */
static int check_sinkhorn(const moe_run_state *r, int32_t l, moe_status *st) {
    const moe_config *c = r->config;
    int32_t device = moe_stack_activations(&r->stack, l)->routing.unconverged_device;
    if (c->router.method != MOE_METHOD_SINKHORN || moe_config_recorded(c)) {
        return MOE_OK;
    }
    int64_t from_end = device < 0 ? 0 : c->cluster.devices - device;
    moe_comm_max_i64(r->comm, &from_end, 1);
    if (from_end == 0) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "router.method = sinkhorn does not converge to router.sinkhorn_tolerance = %g "
                    "within router.sinkhorn_iterations = %d (layer %d, "
                    "device %d): raise either, or lower the spread of the logits%s",
                    c->router.sinkhorn_tolerance, c->router.sinkhorn_iterations, l,
                    (int)(c->cluster.devices - from_end),
                    c->data.source == MOE_SOURCE_LOGITS ? " that are recorded"
                                                        : " (router.gate_scale)");
}

/* Collective. What narrow payloads did to the output of the last layer, in the last step. */
static void measure_rounding(moe_run_state *r, int32_t l, const real *y) {
    if (r->last_step && l + 1 == r->stack.num_layers && moe_payload_error_happens(r->config)) {
        r->metrics.payload_error.on = true;
        r->metrics.payload_error.y = moe_payload_error_of_y(&r->fp32, &r->context, y);
    }
}

/* --- the hooks --- */

/* The micro-batch that runs: of the training step, counted from 0. */
static int32_t micro_batch(const moe_run_state *r) {
    if (!moe_run_trains(r)) {
        return 0;
    }
    return (int32_t)(r->context.draw - r->context.step * r->config->train.accumulate);
}

static void show_progress(moe_run_state *r, int32_t l, bool backward) {
    if (r->comm->rank == 0) {
        moe_terminal_layer(&r->screen, r->config, r->context.step, l, backward, moe_comm_time());
    }
}

static int after_layer(void *self,
                       const moe_stack *s,
                       int32_t l,
                       moe_step_metrics *metrics,
                       moe_status *st) {
    moe_run_state *r = self;
    moe_activations *a = moe_stack_activations(s, l);
    show_progress(r, l, false);
    moe_tally_after_layer(NULL, s, l, metrics, st);
    moe_rebalance_see(&r->rebalance, r->context.step, l, &a->routing);
    measure_rounding(r, l, s->y);
    if (r->last_step) {
        r->explainer.micro_batch = micro_batch(r);
        moe_explain_forward(&r->explainer, &s->layer[l], s->context, a, s->y, &metrics->layer[l]);
    }
    if (check_sinkhorn(r, l, st) || (r->last_step && write_layer(r, l, st))) {
        return st->code;
    }
    if (r->model_files.dy) {
        moe_model_files_backward(s->context, &s->layer[l], &r->model_files, a, &r->results,
                                 &metrics->layer[l], st);
    }
    return st->code;
}

static void before_backward(void *self, const moe_stack *s, int32_t l, const real *dy) {
    moe_run_state *r = self;
    if (r->last_step) {
        moe_explain_upstream(&r->explainer, &s->layer[l], s->context, dy);
    }
}

static void after_backward(void *self, const moe_stack *s, int32_t l) {
    moe_run_state *r = self;
    show_progress(r, l, true);
    if (r->last_step) {
        moe_explain_backward(&r->explainer, &s->layer[l], s->context, moe_stack_activations(s, l),
                             &s->backward);
    }
}

moe_observer moe_run_observer(moe_run_state *r) {
    return (moe_observer){r, after_layer, before_backward, after_backward};
}
