/* prepare.c: everything before the first step: files are read and checked, memory is estimated
 * before it is taken, the model is made, the folder of results is opened. And its end: what was
 * made is freed. */
#include <stdio.h>

#include "base/alloc.h"
#include "base/gemm.h"
#include "config/check.h"
#include "output/format.h"
#include "predict/expected.h"
#include "run/internal.h"
#include "run/rehearsal.h"
#include "run/restart.h"
#include "world/window.h"

enum { MANY_CELLS = 1 << 20 }; /* devices of a rank x experts, 72 bytes for each */

/* --- the machine --- */

static void gather_topologies(moe_run_state *r) {
    int64_t *bytes = moe_alloc(r->comm->size, sizeof *bytes, "topologies");
    for (int q = 0; q < r->comm->size; q++) {
        bytes[q] = sizeof(moe_topology);
    }
    r->topologies = moe_alloc(r->comm->size, sizeof(moe_topology), "topologies");
    moe_comm_allgatherv(r->comm, &r->topology, r->topologies, bytes);
    moe_free(bytes);
}

/* --- what fits --- */

static int64_t num_tokens(const moe_run_state *r) {
    if (r->model_files.num_tokens) {
        return r->model_files.num_tokens;
    }
    if (moe_config_generates(r->config)) {
        return moe_run_prompt_tokens(r);
    }
    if (r->input.num_tokens_global) {
        return r->input.num_tokens_global;
    }
    return (int64_t)r->config->cluster.devices * r->config->data.tokens_per_device;
}

/* Whether logits and cells are forgotten device by device (model/by_device.h): there are many, and
 * nobody looks at them once the losses of a layer are known. */
static bool goes_by_device(const moe_run_state *r) {
    const moe_config *c = r->config;
    const int64_t devices = c->cluster.devices / r->comm->size;
    const bool many = devices >= 64 && devices * c->model.num_experts >= MANY_CELLS;
    const bool looked_at = c->run.mode != MOE_MODE_FORWARD || c->output.tensors ||
                           c->model.load[0] || r->options->explains_token ||
                           r->options->explains_step || moe_balance_has_all_layers(&c->balance) ||
                           moe_config_splits_batches(c) ||
                           c->router.method == MOE_METHOD_EXPERT_CHOICE ||
                           (c->capacity.policy != MOE_CAPACITY_NONE &&
                            c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE);
    return many && !looked_at;
}

/* The mean number of experts of a token that is routed, in the recording of this rank. Padding that
 * is dropped has none in a routing. */
static double recorded_choices(const moe_run_state *r, const moe_memory_given *g) {
    const moe_input *in = &r->input;
    if (in->logits) {
        const size_t size = in->logits_dtype == MOE_F64 ? sizeof(double) : sizeof(float);
        return moe_expected_recorded_choices(r->config, in->logits, in->logits_dtype == MOE_F64,
                                             moe_alloc_bytes(in->logits) / (int64_t)size /
                                                 r->config->model.num_experts);
    }
    if (!in->routing) {
        return 0;
    }
    int64_t tokens = moe_alloc_bytes(in->routing) / in->routing_k / (int64_t)sizeof *in->routing;
    int64_t chosen = 0;
    for (int64_t i = 0; i < tokens * in->routing_k; i++) {
        chosen += in->routing[i] >= 0;
    }
    return (double)chosen / (double)tokens * (double)g->num_tokens / (double)g->num_counted;
}

static moe_memory_given given(const moe_run_state *r) {
    moe_memory_given g = {.num_tokens = num_tokens(r),
                          .backward = r->model_files.dy != NULL,
                          .by_device = goes_by_device(r)};
    if (moe_config_generates(r->config)) {
        g.places = r->prompts.longest + r->config->generate.max_new_tokens - 1;
    }
    g.num_sequences = r->input.num_sequences;
    g.boundary = r->input.boundary;
    g.num_counted = moe_input_routed(&r->input, r->config, g.num_tokens);
    g.choices = recorded_choices(r, &g);
    return g;
}

/* Whether the windows of the ranks of this host, `times` as large as they are expected, fail to fit
 * into the folder in which they stand, which may be small (in containers). */
static bool lacks_room(const moe_run_state *r, int times, bool known) {
    const int64_t room = moe_window_room(), ranks = r->comm->local_size;
    return ranks > 1 && (room < 0 ? !known : r->memory.windows > room / ranks / times);
}

static void check_windows(const moe_run_state *r, moe_status *st) {
    if (lacks_room(r, 1, true)) {
        moe_fail(st, MOE_USER,
                 "exchange.transport = %s needs about %s of shared memory on each of %d ranks of "
                 "this host, and %s has %s left: enlarge it (docker run --shm-size), or set "
                 "exchange.transport = alltoallv",
                 moe_config_enum_name(MOE_KEY(exchange, transport), r->config->exchange.transport),
                 moe_format_bytes(r->memory.windows).s, r->comm->local_size, moe_window_folder(),
                 moe_format_bytes(moe_window_room()).s);
    }
}

/* The fullest rank, and the mean over ranks, of what a rehearsal saw. */
static moe_memory of_loads(const moe_run_state *r,
                           const moe_memory_given *known,
                           const moe_memory_load *load) {
    moe_memory_given given = *known;
    moe_memory fullest = {.total = -1};
    double sum = 0;
    for (int q = 0; q < r->comm->size; q++) {
        given.load = &load[q];
        const moe_memory m = moe_memory_estimate(r->config, &given);
        sum += (double)m.total / r->comm->size;
        fullest = m.total > fullest.total ? m : fullest;
    }
    fullest.mean = sum < 0x1p62 ? (int64_t)sum : INT64_MAX;
    return fullest;
}

/* What the run needs, under the load that a rehearsal saw, or under an even one where load is NULL.
 */
static moe_memory estimate(const moe_run_state *r, const moe_memory_load *load) {
    const moe_memory_given known = given(r);
    return load ? of_loads(r, &known, load) : moe_memory_estimate(r->config, &known);
}

/* Collective. `auto` shares memory only where every host has room for twice the windows of the
 * load that is expected: nobody asked for what may fail. */
static void decide_transport(moe_run_state *r, const moe_memory_load *load) {
    moe_config *c = r->config;
    if (c->exchange.transport != MOE_TRANSPORT_AUTO) {
        return;
    }
    c->no_room_to_share = moe_comm_lowest_rank(r->comm, lacks_room(r, 2, false)) >= 0;
    if (c->no_room_to_share) {
        r->memory = estimate(r, load);
    }
}

/* Collective. The rehearsal needs no windows, and is the same for every transport. */
static void estimate_memory(moe_run_state *r, int64_t available) {
    const int64_t room = available < 0 ? INT64_MAX : available / r->comm->local_size / 2;
    moe_memory_load *load = moe_alloc(r->comm->size, sizeof *load, "loads of the ranks");
    const bool seen =
        moe_rehearse(r->comm, r->config, &r->input, &r->model_files, num_tokens(r), room, load);
    moe_alloc_trim();
    r->memory = estimate(r, seen ? load : NULL);
    decide_transport(r, seen ? load : NULL);
    moe_free(load);
}

/* The files that were read are there already: no estimate. */
static void count_files(moe_memory *m, int64_t read) {
    if (m->total < INT64_MAX) {
        m->total += read - m->input;
        m->mean += read - m->input;
    }
    m->input = read;
}

/* The parts of the fullest rank's memory that are not nothing: "weights 1 MiB, input 2 MiB". */
static void list_parts(const moe_memory *m, char *text, size_t size) {
    moe_memory_part part[MOE_MEMORY_PARTS];
    size_t used = 0;
    moe_memory_parts(m, part);
    for (int i = 0; i < MOE_MEMORY_PARTS && used < size; i++) {
        if (part[i].bytes > 0) {
            used += (size_t)snprintf(text + used, size - used, "%s%s %s", used > 0 ? ", " : "",
                                     part[i].name, moe_format_bytes(part[i].bytes).s);
        }
    }
}

/* Refuses what cannot fit, before it is allocated. Each rank looks at its own host. */
static int check_memory(moe_run_state *r, moe_status *st) {
    const int64_t started = (int64_t)r->comm->local_size * MOE_MEMORY_STARTED;
    int64_t available = moe_memory_available(), needed;
    const int64_t read = moe_alloc_live_bytes();
    moe_memory *m = &r->memory;
    estimate_memory(r, available);
    if (r->config->data.source != MOE_SOURCE_SYNTHETIC || r->config->model.load[0]) {
        count_files(m, read);
        available = available < 0 ? available : available + read * r->comm->local_size;
    }
    /* the ranks have started already: what that took is gone from `available`, and in `needed` */
    available = available < 0 ? available : available + started;
    needed = moe_memory_of_ranks(m, r->comm->local_size);
    if (available >= 0 && needed > available) {
        char parts[512];
        list_parts(m, parts, sizeof parts);
        moe_fail(
            st, MOE_USER,
            "this run needs about %s on this host, where %s are available: %s on each of %d "
            "rank%s (on the fullest: %s), and %s for the loads of all steps on rank 0; lower %s",
            moe_format_bytes(needed).s, moe_format_bytes(available).s, moe_format_bytes(m->mean).s,
            r->comm->local_size, r->comm->local_size == 1 ? "" : "s", parts,
            moe_format_bytes(m->histories).s,
            moe_config_generates(r->config)
                ? "generate.sequences_per_device, data.sequence_length or generate.max_new_tokens"
                : "model.num_experts, model.hidden_size, model.moe_intermediate_size, "
                  "data.tokens_per_device, data.num_topics or run.steps");
    }
    check_windows(r, st);
    return moe_comm_agree(r->comm, st);
}

/* --- the model --- */

static void make_context(moe_run_state *r) {
    const moe_config *c = r->config;
    int64_t tokens = num_tokens(r);
    if (moe_config_generates(c)) {
        moe_batch_layout(&r->batch, tokens, r->prompts.longest, c->cluster.devices, r->comm->rank,
                         r->comm->size);
    } else {
        moe_input_layout(&r->input, c, r->comm, tokens, &r->batch);
    }
    moe_context_init(&r->context, r->comm, c, &r->batch, &r->input, &r->scratch);
    r->context.by_device = goes_by_device(r);
    r->context.timeline = c->output.timeline ? &r->timeline : NULL;
    if (moe_balance_has_all_layers(&c->balance)) {
        r->context.all_layers = &r->all_layers;
    }
}

/* Forward only, a layer's activations are used again by the next layer where nothing needs them
 * later; training keeps all of them, and every layer's input. */
static int make_model(moe_run_state *r, moe_status *st) {
    const int32_t layers = moe_config_moe_layers(r->config);
    moe_stack_init(&r->stack, &r->context, moe_memory_kept_layers(r->config), moe_run_trains(r));
    moe_step_metrics_init(&r->metrics, layers, r->config->model.num_experts,
                          r->config->cluster.devices);
    r->routing = moe_alloc_zero(layers, sizeof *r->routing, "routing");
    r->observer = moe_run_observer(r);
    if (r->model_files.x && moe_model_files_weights(&r->context, &r->stack.layer[0], st)) {
        return st->code;
    }
    if (moe_run_trains(r)) {
        moe_training_init(&r->training, &r->stack, &r->batch);
        r->training.observer = &r->observer;
    } else {
        r->context.keep = r->model_files.dy != NULL;
    }
    moe_rebalance_init(&r->rebalance, &r->stack, moe_run_trains(r) ? &r->training : NULL);
    if (moe_config_generates(r->config) && moe_run_load_model(r, st)) {
        return st->code;
    }
    if (!moe_run_trains(r) && !r->model_files.dy && !r->options->model_only) {
        moe_stack_turn_weights(&r->stack);
    }
    return MOE_OK;
}

/* --explain, --explain-step */
static int prepare_explainer(moe_run_state *r, moe_status *st) {
    int64_t token = r->options->explain_token, tokens = num_tokens(r);
    if (moe_config_generates(r->config) &&
        (r->options->explains_token || r->options->explains_step)) {
        return moe_fail(st, MOE_USER,
                        "%s looks at a step of a forward or training run, and run.mode = generate "
                        "has none: leave it out",
                        r->options->explains_token ? "--explain" : "--explain-step");
    }
    if (r->options->explains_token && token >= tokens) {
        return moe_fail(st, MOE_USER,
                        "--explain %lld: there is no such token, a step has %lld (0 to %lld)",
                        (long long)token, (long long)tokens, (long long)tokens - 1);
    }
    r->explainer.token = r->options->explains_token;
    r->explainer.step = r->options->explains_step;
    if (r->explainer.token) {
        moe_explanation_init(&r->explainer.explanation, token, moe_config_moe_layers(r->config));
    }
    return MOE_OK;
}

/* --- the folder of results and the screen --- */

moe_restart moe_run_restart(moe_run_state *r) {
    return (moe_restart){
        r->comm,     r->config,    &r->input, r->stack.layer, &r->training.parameters,
        &r->results, &r->rebalance};
}

/* Opens a new folder, or goes on in the old one. */
static int open_results(moe_run_state *r, moe_status *st) {
    const moe_run_options *o = r->options;
    if (!o->resume) {
        return moe_results_open(r->comm, r->config, o->out, o->force, &r->results, st);
    }
    moe_restart restart = moe_run_restart(r);
    return moe_restart_read(&restart, o->resume, o->out, st);
}

static void show_header(const moe_run_state *r) {
    const moe_run_options *o = r->options;
    moe_terminal_header(&r->screen, r->config, r->topologies, r->comm->size, &r->memory,
                        moe_memory_available());
    moe_terminal_warnings(&r->screen, r->config, &r->input);
    if (moe_run_trains(r)) {
        moe_terminal_training(&r->screen, r->config, &r->results.facts, &r->memory);
    }
    if (o->model && !o->quiet) {
        printf("\n%s%sthe model of %s, after %lld steps of training\n", o->word,
               o->word[0] ? "\n" : "", o->model->path, (long long)o->model->step);
    }
    if (o->resume && !o->quiet) {
        printf("\n%s%sgoing on after %lld of %lld steps, from %s\n", o->word,
               o->word[0] ? "\n" : "", (long long)o->resume->step, (long long)r->config->run.steps,
               o->resume->path);
    }
}

/* --- together --- */

/* Collective. A layer from files beside a recording has a row of input for each recorded token, and
 * no gradient, which would go on to a gate. */
static int read_model_files(moe_run_state *r, moe_status *st) {
    const moe_config *c = r->config;
    const int64_t recorded = r->input.num_tokens_global;
    if (!c->model.load[0] || moe_model_files_read(r->comm, c, &r->model_files, st)) {
        return st->code;
    }
    if (recorded && recorded != r->model_files.num_tokens) {
        return moe_fail(
            st, MOE_USER,
            "%s/x.npy has %lld rows, and a step of %s has %lld tokens: there is one row "
            "for each token",
            c->model.load, (long long)r->model_files.num_tokens, c->data.path, (long long)recorded);
    }
    if (recorded && r->model_files.dy) {
        return moe_fail(st, MOE_USER,
                        "%s/dy.npy asks for gradients, which need the layer's own gate and not the "
                        "recording of data.source: remove the file",
                        c->model.load);
    }
    return MOE_OK;
}

/* Whether this rank is to make a folder that the user named. */
static bool makes_folder(const moe_run_state *r) {
    const moe_run_options *o = r->options;
    return r->comm->rank == 0 && o->out && !o->resume && !o->model_only;
}

/* Collective. Reads the files, and checks what can be checked without making the model. */
static int read_and_check(moe_run_state *r, moe_status *st) {
    const moe_config *c = r->config;
    if (moe_input_read(r->comm, r->config, &r->input, st)) {
        return st->code;
    }
    if (moe_config_generates(c) && moe_run_read_prompts(r, st)) {
        return st->code;
    }
    if (read_model_files(r, st)) {
        return st->code;
    }
    if (moe_run_trains(r)) {
        moe_task_check(c, &r->input, st);
    }
    if (st->code == MOE_OK) {
        moe_check_chunk_tokens(c, num_tokens(r), st);
    }
    if (st->code == MOE_OK && moe_input_check(&r->input, c, num_tokens(r), st) == MOE_OK) {
        moe_capacity_check(c, moe_input_routed(&r->input, c, num_tokens(r)),
                           moe_input_longest_sequence(&r->input, c, num_tokens(r)), st);
    }
    if (st->code == MOE_OK && makes_folder(r)) {
        moe_results_check_folder(r->options->out, r->options->force, st);
    }
    if (moe_comm_agree(r->comm, st)) {
        return st->code;
    }
    return check_memory(r, st);
}

int moe_run_prepare(moe_run_state *r, moe_status *st) {
    const moe_config *c = r->config;
    if (moe_gemm_choose(c->run.gemm, st) == MOE_OK && c->model.compute == MOE_COMPUTE_BF16) {
        moe_gemm_require_bf16(st);
    }
    if (moe_comm_agree(r->comm, st)) {
        return st->code;
    }
    moe_topology_init(r->comm, c->run.threads, &r->topology);
    gather_topologies(r);
    if (read_and_check(r, st) || r->options->check_only || prepare_explainer(r, st)) {
        return st->code;
    }
    make_context(r);
    if (make_model(r, st) || r->options->model_only || open_results(r, st)) {
        return st->code;
    }
    if (moe_run_trains(r)) {
        r->results.facts =
            moe_training_facts_of(c, r->input.text, r->input.text_length, r->input.num_domains);
    }
    if (moe_config_generates(c)) {
        r->results.generation = (moe_generation_metrics){.sequences = r->batch.num_sequences,
                                                         .prompt_bytes = r->batch.num_routed,
                                                         .new_bytes = c->generate.max_new_tokens,
                                                         .places = r->generator.room - 1};
    }
    r->screen = moe_screen_of(stdout, r->options->quiet);
    r->screen.full = r->options->full;
    if (r->comm->rank == 0) {
        show_header(r);
    }
    return MOE_OK;
}

void moe_run_free(moe_run_state *r) {
    for (int32_t l = 0; l < r->stack.num_layers; l++) {
        moe_routing_free(&r->routing[l]);
    }
    moe_free(r->routing);
    moe_step_metrics_free(&r->metrics);
    moe_results_free(&r->results);
    moe_explainer_free(&r->explainer);
    moe_timeline_free(&r->timeline);
    moe_rebalance_free(&r->rebalance);
    moe_training_free(&r->training);
    moe_generator_free(&r->generator);
    moe_prompts_free(&r->prompts);
    moe_payload_error_free(&r->fp32);
    moe_stack_free(&r->stack);
    moe_scopes_free(&r->all_layers);
    moe_model_files_free(&r->model_files);
    moe_context_free(&r->context);
    moe_batch_free(&r->batch);
    moe_scratch_free(&r->scratch);
    moe_input_free(&r->input);
    moe_free(r->topologies);
}
