/* run.c: prolog (files, memory, folder, weights), loop over steps, epilog (summary, arrays,
 * ending). */
#include "run/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/gemm.h"
#include "explain/derive_show.h"
#include "explain/explain.h"
#include "explain/json.h"
#include "explain/show.h"
#include "model/layer.h"
#include "output/results.h"
#include "output/specialization.h"
#include "output/terminal.h"
#include "output/timeline.h"
#include "predict/memory.h"
#include "run/model_files.h"
#include "run/restart.h"
#include "tally/tally.h"
#include "train/train.h"
#include "world/topology.h"

typedef struct run {
    const moe_comm *comm;
    moe_config *c;
    const moe_run_options *options;
    moe_topology topology, *topologies; /* of this rank; of all ranks */
    moe_memory memory;
    moe_input input;
    moe_model_files loaded; /* model.load */
    moe_batch batch;
    moe_scratch scratch; /* of the steps */
    moe_context context;
    moe_layer *layers;
    moe_activations *activations; /* [num_activations] forward only */
    int32_t num_activations;
    moe_scopes all_layers;
    moe_routing *routing;  /* [layers] of the last step, with output.routing */
    real *x, *y;           /* [T,H] forward only */
    moe_training training; /* mode train only */
    moe_explainer explainer;
    moe_step_metrics metrics;
    moe_timeline timeline;
    moe_results results;
    moe_screen screen;
    double start;
} run;

/* --- prolog --- */

static void gather_topologies(run *r) {
    int64_t *bytes = moe_alloc(r->comm->size, sizeof *bytes, "topologies");
    for (int q = 0; q < r->comm->size; q++) {
        bytes[q] = sizeof(moe_topology);
    }
    r->topologies = moe_alloc(r->comm->size, sizeof(moe_topology), "topologies");
    moe_comm_allgatherv(r->comm, &r->topology, r->topologies, bytes);
    moe_free(bytes);
}

static double gib(int64_t bytes) {
    return (double)bytes / (1 << 30);
}

static int64_t num_tokens(const run *r) {
    if (r->loaded.num_tokens) {
        return r->loaded.num_tokens;
    }
    if (r->input.num_tokens_global) {
        return r->input.num_tokens_global;
    }
    return (int64_t)r->c->cluster.devices * r->c->data.tokens_per_device;
}

static bool trains(const run *r) {
    return r->c->run.mode == MOE_MODE_TRAIN;
}

/* Refuses what cannot fit, before it is allocated. Each rank looks at its own host. */
static int check_memory(run *r, moe_status *st) {
    int64_t available = moe_memory_available(), needed;
    r->memory = moe_memory_estimate(r->c, num_tokens(r));
    if (__builtin_mul_overflow(r->memory.total, (int64_t)r->comm->local_size, &needed)) {
        needed = INT64_MAX;
    }
    if (available >= 0 && needed > available) {
        moe_fail(st, MOE_USER,
                 "this run needs about %.3g GiB on this host (%d ranks x %.3g GiB: weights %.3g, "
                 "gradients and optimiser %.3g, activations "
                 "%.3g, "
                 "exchange %.3g), and %.3g GiB are available: lower model.num_experts, "
                 "model.hidden_size, model.moe_intermediate_size or "
                 "data.tokens_per_device",
                 gib(needed), r->comm->local_size, gib(r->memory.total), gib(r->memory.weights),
                 gib(r->memory.gradients + r->memory.optimizer), gib(r->memory.activations),
                 gib(r->memory.exchange), gib(available));
    }
    return moe_comm_agree(r->comm, st);
}

/* --explain, --explain-step */
static int prepare_explainer(run *r, moe_status *st) {
    int64_t token = r->options->explain_token, tokens = num_tokens(r);
    if (r->options->explains_token && token >= tokens) {
        return moe_fail(st, MOE_USER,
                        "--explain %lld: there is no such token, a step has %lld (0 to %lld)",
                        (long long)token, (long long)tokens, (long long)tokens - 1);
    }
    r->explainer.token = r->options->explains_token;
    r->explainer.step = r->options->explains_step;
    if (r->explainer.token) {
        moe_explanation_init(&r->explainer.explanation, token, r->c->model.num_layers);
    }
    return MOE_OK;
}

static void make_context(run *r) {
    const moe_config *c = r->c;
    int64_t tokens = num_tokens(r);
    moe_batch_layout(&r->batch, tokens, c->data.sequence_length, c->cluster.devices, r->comm->rank,
                     r->comm->size);
    r->batch.counted = r->input.mask;
    moe_context_init(&r->context, r->comm, c, &r->batch, &r->input, &r->scratch);
    r->context.timeline = c->output.timeline ? &r->timeline : NULL;
    if (moe_balance_has_all_layers(c)) {
        r->context.all_layers = &r->all_layers;
    }
}

static int make_layers(run *r, moe_status *st) {
    int64_t elements = r->batch.num_tokens * r->c->model.hidden_size;
    r->layers = moe_alloc_zero(r->c->model.num_layers, sizeof *r->layers, "layers");
    r->routing = moe_alloc_zero(r->c->model.num_layers, sizeof *r->routing, "layers");
    moe_step_metrics_init(&r->metrics, r->c->model.num_layers, r->c->model.num_experts,
                          r->c->cluster.devices);
    for (int32_t l = 0; l < r->c->model.num_layers; l++) {
        moe_layer_init(&r->layers[l], &r->context, l);
    }
    if (r->loaded.x && moe_model_files_weights(&r->context, &r->layers[0], st)) {
        return st->code;
    }
    if (trains(r)) {
        moe_training_init(&r->training, &r->context, &r->batch, r->layers);
        return MOE_OK;
    }
    r->num_activations = moe_memory_kept_layers(r->c);
    r->activations = moe_alloc_zero(r->num_activations, sizeof *r->activations, "activations");
    r->x = moe_alloc(elements, sizeof(real), "x");
    r->y = moe_alloc(elements, sizeof(real), "y");
    r->context.keep = r->loaded.dy != NULL;
    return MOE_OK;
}

/* --- one step --- */

static void make_x(run *r, int64_t step) {
    int64_t h = r->c->model.hidden_size;
    if (r->loaded.x) {
        memcpy(r->x, r->loaded.x + r->batch.first_token * h,
               (size_t)(r->batch.num_tokens * h) * sizeof(real));
        return;
    }
    switch (r->c->data.source) {
    case MOE_SOURCE_SYNTHETIC:
        moe_data_synthetic(r->c, &r->batch, step, r->x, NULL);
        break;
    case MOE_SOURCE_TEXT:
        moe_data_text(r->c, r->input.text, r->input.text_length, step, &r->batch, r->x);
        break;
    default:
        moe_data_keyed(r->c, &r->batch, r->x);
        break;
    }
}

/* The layer's output goes into the next layer's input. */
static void pass_on(run *r) {
    int64_t n = r->batch.num_tokens * r->c->model.hidden_size;
    if (!r->c->model.residual) {
        memcpy(r->x, r->y, (size_t)n * sizeof(real));
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        r->x[i] = r->y[i] + r->x[i]; /* the residual comes last (method.md section 4) */
    }
}

/* Slowest rank's times. */
static void agree_times(run *r, double seconds) {
    int32_t layers = r->metrics.num_layers;
    double *t = moe_scratch_take(r->batch.scratch, layers * MOE_NUM_PHASES + 1, sizeof *t, "times");
    for (int32_t l = 0; l < layers; l++) {
        memcpy(t + l * MOE_NUM_PHASES, r->metrics.layer[l].phase_seconds,
               sizeof r->metrics.layer[l].phase_seconds);
    }
    t[layers * MOE_NUM_PHASES] = seconds;
    moe_comm_max_f64(r->comm, t, layers * MOE_NUM_PHASES + 1);
    for (int32_t l = 0; l < layers; l++) {
        memcpy(r->metrics.layer[l].phase_seconds, t + l * MOE_NUM_PHASES,
               sizeof r->metrics.layer[l].phase_seconds);
    }
    r->metrics.seconds = t[layers * MOE_NUM_PHASES];
    moe_scratch_give(r->batch.scratch, t);
}

static moe_activations *activations_of(const run *r, int32_t l) {
    return &r->activations[l % r->num_activations];
}

/* "y", with several layers "y_layer0". */
typedef struct tensor_name {
    char s[32];
} tensor_name;

static tensor_name tensor_of_layer(const run *r, const char *base, int32_t l) {
    tensor_name name;
    if (r->c->model.num_layers == 1) {
        snprintf(name.s, sizeof name.s, "%s", base);
    } else {
        snprintf(name.s, sizeof name.s, "%s_layer%d", base, l);
    }
    return name;
}

static int write_layer_tensors(run *r, int32_t l, moe_status *st) {
    const moe_activations *a = activations_of(r, l);
    int64_t n = r->c->model.num_experts, h = r->c->model.hidden_size;
    if (moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "y", l).s, &r->batch, r->y, h,
                           sizeof(real), st)) {
        return st->code;
    }
    const void *logits = a->logits.f32 ? (const void *)a->logits.f32 : a->logits.f64;
    /* decided by the configuration, never by pointers: a rank without tokens has none and takes
     * part all the same */
    if (r->c->data.source == MOE_SOURCE_ROUTING) {
        return MOE_OK;
    }
    size_t size = r->c->data.source == MOE_SOURCE_LOGITS ? moe_dtype_size(r->input.logits_dtype)
                                                         : sizeof(real);
    return moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "logits", l).s, &r->batch,
                              logits, n, size, st);
}

static int write_dlogits(run *r, int32_t l, moe_status *st) {
    int64_t n = r->c->model.num_experts;
    if (r->c->data.source == MOE_SOURCE_ROUTING) {
        return MOE_OK;
    }
    double *dlogits = moe_alloc(r->batch.num_tokens * n, sizeof *dlogits, "dlogits");
    moe_layer_dlogits(&r->layers[l], &r->context, activations_of(r, l), dlogits, NULL);
    moe_results_tensor(r->comm, &r->results, tensor_of_layer(r, "dlogits", l).s, &r->batch, dlogits,
                       n, sizeof *dlogits, st);
    moe_free(dlogits);
    return st->code;
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

/* router.method = sinkhorn: names the first device whose factors did not settle in layer l. */
static int check_sinkhorn(const run *r, const moe_activations *a, int32_t l, moe_status *st) {
    const moe_config *c = r->c;
    if (c->router.method != MOE_METHOD_SINKHORN || moe_config_recorded(c)) {
        return MOE_OK;
    }
    int64_t from_end =
        a->routing.unconverged_device < 0 ? 0 : c->cluster.devices - a->routing.unconverged_device;
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

/* Layers one after the other; *writing gets the seconds spent on files. */
static int forward_step(run *r, int64_t step, double *writing, moe_status *st) {
    bool last = step + 1 == r->c->run.steps, tensors = last && r->c->output.tensors;
    moe_timeline *line = r->context.timeline;
    double start = moe_comm_time();
    make_x(r, step);
    moe_timeline_add(line, MOE_SPAN_INPUT, -1, start, moe_comm_time(), NULL);
    for (int32_t l = 0; l < r->c->model.num_layers; l++) {
        moe_activations *a = activations_of(r, l);
        int64_t whole = moe_timeline_begin(line, MOE_SPAN_LAYER, l, moe_comm_time());
        moe_layer_forward(&r->layers[l], &r->context, r->x, r->y, a, &r->metrics.layer[l]);
        start = moe_comm_time();
        moe_tally_layer(&r->layers[l], &r->context, a, r->y, &r->metrics);
        moe_timeline_add(line, MOE_SPAN_TALLY, l, start, moe_comm_time(), NULL);
        if (last) {
            moe_explain_forward(&r->explainer, &r->layers[l], &r->context, a, r->y,
                                &r->metrics.layer[l]);
        }
        if (check_sinkhorn(r, a, l, st)) {
            return st->code;
        }
        double pause = moe_comm_time();
        if (last && r->c->output.routing) {
            keep_routing(&r->routing[l], a, moe_config_most_experts(r->c));
        }
        if (tensors && write_layer_tensors(r, l, st)) {
            return st->code;
        }
        /* of the layers whose activations are still there: one, or all when the last layer is done
         */
        for (int32_t k = l + 1 - r->num_activations;
             tensors && (l + 1) % r->num_activations == 0 && k <= l; k++) {
            if (write_dlogits(r, k, st)) {
                return st->code;
            }
        }
        *writing += moe_comm_time() - pause;
        if (r->loaded.dy && moe_model_files_backward(&r->context, &r->layers[l], &r->loaded, a,
                                                     &r->results, &r->metrics.layer[l], st)) {
            return st->code;
        }
        pass_on(r);
        moe_timeline_end(line, whole, moe_comm_time());
    }
    return MOE_OK;
}

static int train_step(run *r, int64_t step, moe_status *st) {
    const moe_config *c = r->c;
    bool last = step + 1 == c->run.steps;
    if (last) {
        r->training.explainer = &r->explainer;
    }
    if (moe_training_step(&r->training, step, &r->metrics, st)) {
        return st->code;
    }
    for (int32_t l = 0; l < c->model.num_layers; l++) {
        if (check_sinkhorn(r, &r->training.activations[l], l, st)) {
            return st->code;
        }
    }
    for (int32_t l = 0; last && c->output.routing && l < c->model.num_layers; l++) {
        keep_routing(&r->routing[l], &r->training.activations[l], moe_config_most_experts(c));
    }
    if (c->train.validation_every && ((step + 1) % c->train.validation_every == 0 || last) &&
        moe_step_metrics_all_passed(&r->metrics)) {
        r->metrics.validation_loss =
            moe_training_validate(&r->training, c->train.validation_batches);
    }
    return MOE_OK;
}

static int failed_check(const moe_step_metrics *metrics, moe_status *st) {
    for (int i = 0; i < metrics->num_checks; i++) {
        const moe_check *check = &metrics->check[i];
        if (check->made && !check->passed) {
            return moe_fail(st, MOE_RUN_FAILED, "step %lld failed its self-check %s: %s",
                            (long long)metrics->step, check->name, check->detail);
        }
    }
    return MOE_OK;
}

/* A step that failed is in the results like any other. */
static int run_step(run *r, int64_t step, moe_status *st) {
    double begin = moe_comm_time(), writing = 0;
    moe_status result = {0};
    moe_step_metrics_clear(&r->metrics);
    r->metrics.step = r->context.step = step;
    r->metrics.num_tokens = r->batch.num_tokens_global * (trains(r) ? r->c->train.accumulate : 1);
    moe_timeline_start(&r->timeline, r->comm->size);
    int64_t whole = moe_timeline_begin(r->context.timeline, MOE_SPAN_STEP, -1, begin);
    if (trains(r)) {
        train_step(r, step, &result);
    } else {
        forward_step(r, step, &writing, &result);
    }
    moe_timeline_end(r->context.timeline, whole, moe_comm_time());
    if (result.code && result.code != MOE_RUN_FAILED) {
        return moe_fail(st, result.code, "%s", result.message);
    }
    agree_times(r, moe_comm_time() - begin - writing);
    if (moe_results_step(r->comm, &r->results, r->c, &r->metrics, st)) {
        return st->code;
    }
    if (r->comm->rank == 0) {
        moe_terminal_step(&r->screen, r->c, &r->metrics);
        moe_terminal_progress(&r->screen, step + 1, r->c->run.steps, moe_comm_time() - r->start);
    }
    if (result.code) {
        return moe_fail(st, result.code, "%s", result.message);
    }
    return failed_check(&r->metrics, st);
}

/* --- run --- */

static moe_restart restart_of(run *r) {
    return (moe_restart){r->comm, r->c, &r->input, r->layers, &r->training.parameters, &r->results};
}

/* Opens a new folder, or goes on in the old one. */
static int open_results(run *r, moe_status *st) {
    const moe_run_options *o = r->options;
    if (!o->resume) {
        return moe_results_open(r->comm, r->c, o->out, o->force, &r->results, st);
    }
    moe_restart restart = restart_of(r);
    return moe_restart_read(&restart, o->resume, o->out, st);
}

static int prepare(run *r, moe_status *st) {
    moe_gemm_init();
    moe_topology_init(r->comm, r->c->run.threads, &r->topology);
    gather_topologies(r);
    if (moe_input_read(r->comm, r->c, &r->input, st)) {
        return st->code;
    }
    if (r->c->model.load[0] && moe_model_files_read(r->comm, r->c, &r->loaded, st)) {
        return st->code;
    }
    if (trains(r)) {
        moe_task_check(r->c, &r->input, st);
    }
    if (st->code == MOE_OK) {
        moe_capacity_check(r->c, num_tokens(r), st);
    }
    if (moe_comm_agree(r->comm, st)) {
        return st->code;
    }
    if (check_memory(r, st)) {
        return st->code;
    }
    if (r->options->check_only) {
        return MOE_OK;
    }
    if (prepare_explainer(r, st)) {
        return st->code;
    }
    make_context(r);
    if (make_layers(r, st)) {
        return st->code;
    }
    if (open_results(r, st)) {
        return st->code;
    }
    if (trains(r)) {
        r->results.facts =
            moe_training_facts_of(r->c, r->input.text, r->input.text_length, r->input.num_domains);
    }
    r->screen = moe_screen_of(stdout, r->options->quiet);
    if (r->comm->rank != 0) {
        return MOE_OK;
    }
    moe_terminal_header(&r->screen, r->c, r->topologies, r->comm->size, r->memory.total,
                        moe_memory_available());
    if (trains(r)) {
        moe_terminal_training(&r->screen, r->c, &r->results.facts, &r->memory);
    }
    if (r->options->resume && !r->options->quiet) {
        printf("\n%s%sgoing on after %lld of %lld steps, from %s\n", r->options->word,
               r->options->word[0] ? "\n" : "", (long long)r->options->resume->step,
               (long long)r->c->run.steps, r->options->resume->path);
    }
    return MOE_OK;
}

/* Measured, written and shown. */
static void specialize(run *r, moe_status *st) {
    moe_specialization s = moe_specialization_measure(&r->training, r->c->train.validation_batches);
    moe_specialization_write(r->comm, &s, r->c, r->results.folder, st);
    if (r->comm->rank == 0 && st->code == MOE_OK) {
        moe_specialization_show(&r->screen, &s, r->c);
    }
    moe_specialization_free(&s);
}

/* Collective. explain.json; a derivation that does not agree is the run's failure. */
static void explain(run *r, moe_status *writing, moe_status *st) {
    const moe_explainer *x = &r->explainer;
    if (!x->token && !x->step) {
        return;
    }
    moe_explain_finish(&r->explainer, &r->context, &r->metrics, st);
    char *text = r->comm->rank == 0 ? moe_explain_json(r->c, x->token ? &x->explanation : NULL,
                                                       x->step ? &x->derivation : NULL)
                                    : NULL;
    moe_results_write_text(r->comm, &r->results, "explain.json", text, writing);
    free(text);
}

static void show_explanations(const run *r) {
    if (r->explainer.token) {
        moe_explain_show(&r->screen, r->c, &r->explainer.explanation);
    }
    if (r->explainer.step) {
        moe_derive_show(&r->screen, &r->explainer.derivation);
    }
}

/* A failed self-check ends the loop; its step is in the results like any other. */
static int finish(run *r, moe_status *st) {
    moe_status writing = {0};
    bool passed = st->code == MOE_OK;
    double seconds = moe_comm_time() - r->start;
    moe_comm_max_f64(r->comm, &seconds, 1); /* as the steps' times: of the slowest rank */
    r->context.timeline = NULL;             /* the steps are over */
    if (r->c->output.routing && st->code == MOE_OK) {
        moe_results_routing(r->comm, &r->results, r->c, &r->batch, r->routing, &writing);
    }
    if (trains(r) && r->c->train.specialization && st->code == MOE_OK && writing.code == MOE_OK) {
        specialize(r, &writing);
    }
    if (writing.code == MOE_OK && r->c->output.timeline) {
        moe_timeline_write(r->comm, &r->timeline, r->c, r->topologies, r->metrics.step,
                           r->results.folder, &writing);
    }
    if (st->code == MOE_OK && writing.code == MOE_OK) {
        explain(r, &writing, st);
    }
    if (writing.code == MOE_OK) {
        moe_results_close(r->comm, &r->results, r->c, &r->metrics, r->topologies, seconds,
                          &writing);
    }
    if (r->comm->rank == 0 && trains(r)) {
        moe_terminal_outcome(&r->screen, r->c, &r->results.training_history, &r->results.facts);
    }
    if (r->comm->rank == 0 && passed) {
        show_explanations(r);
    }
    if (r->comm->rank == 0) {
        moe_terminal_end(&r->screen, r->c, &r->metrics, r->results.folder, seconds);
    }
    if (writing.code) {
        moe_fail(st, writing.code, "%s", writing.message);
    }
    return st->code;
}

static void free_run(run *r) {
    for (int32_t l = 0; r->layers && l < r->c->model.num_layers; l++) {
        moe_layer_free(&r->layers[l]);
        moe_routing_free(&r->routing[l]);
    }
    moe_results_free(&r->results);
    moe_explainer_free(&r->explainer);
    moe_timeline_free(&r->timeline);
    for (int32_t l = 0; l < r->num_activations; l++) {
        moe_activations_free(&r->activations[l]);
    }
    moe_free(r->activations);
    moe_scopes_free(&r->all_layers);
    moe_training_free(&r->training);
    moe_model_files_free(&r->loaded);
    moe_placement_free(&r->context.placement);
    moe_batch_free(&r->batch);
    moe_scratch_free(&r->scratch);
    moe_input_free(&r->input);
    if (r->layers) {
        moe_step_metrics_free(&r->metrics);
    }
    moe_free(r->layers);
    moe_free(r->routing);
    moe_free(r->x);
    moe_free(r->y);
    moe_free(r->topologies);
}

int moe_run(const moe_comm *comm, moe_config *c, const moe_run_options *options, moe_status *st) {
    run r = {.comm = comm, .c = c, .options = options, .start = moe_comm_time()};
    if (prepare(&r, st) == MOE_OK) {
        if (options->check_only) {
            if (comm->rank == 0) {
                moe_config_print(c, stdout);
            }
        } else {
            r.start = moe_comm_time();
            int64_t first = options->resume ? options->resume->step : 0;
            for (int64_t step = first; step < c->run.steps && st->code == MOE_OK; step++) {
                if (trains(&r)) {
                    moe_restart restart = restart_of(&r);
                    moe_restart_write(&restart, step, st);
                }
                if (st->code == MOE_OK) {
                    run_step(&r, step, st);
                }
            }
            if (st->code == MOE_OK || st->code == MOE_RUN_FAILED) {
                finish(&r, st);
            }
        }
    }
    free_run(&r);
    return st->code;
}
