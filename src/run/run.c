/* run.c: a run from its configuration to its folder: prepare, step after step, finish. */
#include "run/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
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
#include "run/internal.h"
#include "run/model_files.h"
#include "run/restart.h"
#include "tally/tally.h"

/* --- one step --- */

/* The tokens of a step: x_0 of the stack. */
static void make_input(moe_run_state *r, int64_t step) {
    const moe_config *c = r->config;
    real *x = moe_stack_input(&r->stack);
    if (r->model_files.x) {
        moe_model_files_input(&r->model_files, &r->batch, c->model.hidden_size, x);
    } else {
        moe_input_vectors(&r->input, c, step, &r->batch, x);
    }
}

static int forward_step(moe_run_state *r, int64_t step, moe_status *st) {
    if (r->last_step && moe_payload_error_happens(r->config)) {
        make_input(r, step);
        if (moe_payload_error_forward(&r->fp32, &r->stack, st)) {
            return st->code;
        }
    }
    double start = moe_comm_time();
    make_input(r, step);
    moe_timeline_add(r->context.timeline, MOE_SPAN_INPUT, -1, start, moe_comm_time(), NULL);
    return moe_stack_forward(&r->stack, &r->observer, &r->metrics, st);
}

/* One layer of the pass that only finds loads. */
static int look_ahead_layer(void *self,
                            const moe_stack *s,
                            int32_t l,
                            moe_step_metrics *metrics,
                            moe_status *st) {
    moe_run_state *r = self;
    moe_rebalance_see(&r->rebalance, -1, l, &moe_stack_activations(s, l)->routing);
    return moe_tally_after_layer(NULL, s, l, metrics, st);
}

/* Collective. A new placement before step `step`, where one is due: before the first, by the load
 * of its own tokens, which go forward once without being measured. */
static int rebalance(moe_run_state *r, int64_t step, moe_status *st) {
    const moe_observer looks = {.self = r, .after_layer = look_ahead_layer};
    if (!r->rebalance.balancer) {
        return MOE_OK;
    }
    if (step > 0) {
        if (moe_rebalance_due(&r->rebalance, step)) {
            moe_rebalance_now(&r->rebalance, step);
        }
        return MOE_OK;
    }
    moe_timeline *timeline = r->context.timeline;
    r->context.timeline = NULL;
    moe_step_metrics_clear(&r->metrics);
    r->context.step = 0;
    moe_input_begin_step(&r->input, r->comm, 0, &r->batch);
    if (moe_run_trains(r)) {
        moe_task_input(&r->training.task, &r->batch, 0, MOE_SPLIT_TRAIN,
                       moe_stack_input(&r->stack));
    } else {
        make_input(r, 0);
    }
    if (moe_stack_forward(&r->stack, &looks, &r->metrics, st) == MOE_OK) {
        moe_rebalance_take(&r->rebalance, 0, &r->metrics);
        moe_rebalance_now(&r->rebalance, 1);
    }
    r->context.timeline = timeline;
    return st->code;
}

static int train_step(moe_run_state *r, int64_t step, moe_status *st) {
    const moe_train_config *train = &r->config->train;
    r->training.fp32 = r->last_step && moe_payload_error_happens(r->config) ? &r->fp32 : NULL;
    if (moe_training_step(&r->training, step, &r->metrics, st)) {
        return st->code;
    }
    bool validates =
        train->validation_every && ((step + 1) % train->validation_every == 0 || r->last_step);
    if (validates && moe_step_metrics_all_passed(&r->metrics)) {
        r->metrics.validation_loss = moe_training_validate(&r->training, train->validation_batches);
    }
    return MOE_OK;
}

typedef int make_step(moe_run_state *r, int64_t step, moe_status *st);

static make_step *step_of(const moe_run_state *r) {
    return moe_run_trains(r)                 ? train_step
           : moe_config_generates(r->config) ? moe_run_generate_step
                                             : forward_step;
}

/* Slowest rank's times. */
static void agree_times(moe_run_state *r, double seconds) {
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

/* Collective. A step whose result is not finite or that failed a self-check is written and shown
 * like any other before its failure ends the run. */
static int run_step(moe_run_state *r, int64_t step, moe_status *st) {
    double begin = moe_comm_time();
    moe_status result = {0};
    moe_step_metrics_clear(&r->metrics);
    r->last_step = step + 1 == r->config->run.steps;
    r->writing_seconds = 0;
    r->metrics.step = r->context.step = step;
    r->metrics.rebalance = r->rebalance.last;
    r->metrics.rebalance_sum = r->rebalance.total;
    r->metrics.rebalance_detail = r->comm->rank == 0 ? &r->rebalance.detail : NULL;
    r->rebalance.last.on = false;
    moe_input_begin_step(&r->input, r->comm, step, &r->batch);
    r->metrics.num_tokens = r->batch.num_routed;
    if (moe_run_trains(r)) {
        r->metrics.num_tokens *= r->config->train.accumulate;
    }
    moe_timeline_start(&r->timeline, r->comm->size);
    int64_t whole = moe_timeline_begin(r->context.timeline, MOE_SPAN_STEP, -1, begin);
    step_of(r)(r, step, &result);
    moe_timeline_end(r->context.timeline, whole, moe_comm_time());
    if (result.code && result.code != MOE_RUN_FAILED) {
        return moe_fail(st, result.code, "%s", result.message);
    }
    agree_times(r, moe_comm_time() - begin - r->writing_seconds - r->fp32.seconds);
    moe_rebalance_take(&r->rebalance, step, &r->metrics);
    if (moe_results_step(r->comm, &r->results, r->config, &r->metrics, st)) {
        return st->code;
    }
    if (r->comm->rank == 0 && moe_config_generates(r->config)) {
        const moe_generator *g = &r->generator;
        moe_terminal_generated(&r->screen, g->text, g->length[0], step == 0 ? 0 : g->length[0] - 1);
    } else if (r->comm->rank == 0) {
        moe_terminal_step(&r->screen, r->config, &r->metrics);
        moe_terminal_progress(&r->screen, step + 1, r->config->run.steps,
                              moe_comm_time() - r->start);
    }
    if (result.code) {
        return moe_fail(st, result.code, "%s", result.message);
    }
    return failed_check(&r->metrics, st);
}

/* --- after the last step --- */

/* Measured, written and shown. */
static void specialize(moe_run_state *r, moe_status *st) {
    moe_specialization s =
        moe_specialization_measure(&r->training, r->config->train.validation_batches);
    moe_specialization_write(r->comm, &s, r->config, r->results.folder, st);
    if (r->comm->rank == 0 && st->code == MOE_OK) {
        moe_specialization_show(&r->screen, &s, r->config);
    }
    moe_specialization_free(&s);
}

/* Collective. explain.json; a derivation that does not agree is the run's failure. */
static void explain(moe_run_state *r, moe_status *writing, moe_status *st) {
    const moe_explainer *x = &r->explainer;
    if (!x->token && !x->step) {
        return;
    }
    moe_explain_finish(&r->explainer, &r->context, &r->metrics, st);
    char *text = r->comm->rank == 0 ? moe_explain_json(r->config, x->token ? &x->explanation : NULL,
                                                       x->step ? &x->derivation : NULL)
                                    : NULL;
    moe_results_write_text(r->comm, &r->results, "explain.json", text, writing);
    free(text);
}

static void show_explanations(const moe_run_state *r) {
    if (r->explainer.token) {
        moe_explain_show(&r->screen, r->config, &r->explainer.explanation);
    }
    if (r->explainer.step) {
        moe_derive_show(&r->screen, &r->explainer.derivation);
    }
}

/* Collective. Closes the folder of results; the state after the last step is the last that is
 * written, when the run can be told as finished. */
static void close_results(moe_run_state *r, double seconds, bool passed, moe_status *writing) {
    const bool saves = moe_run_trains(r) && r->config->train.save_final && passed;
    const moe_restart restart = moe_run_restart(r);
    if (saves) {
        moe_results_sync(r->comm, &r->results, writing);
    }
    if (writing->code == MOE_OK) {
        moe_results_close(r->comm, &r->results, r->config, &r->metrics, r->topologies, seconds,
                          writing);
    }
    if (saves && writing->code == MOE_OK) {
        moe_restart_write_final(&restart, writing);
    }
}

/* Collective. Everything that is written after the last step. */
static void write_end(moe_run_state *r, double seconds, moe_status *writing, moe_status *st) {
    if (r->config->output.routing && st->code == MOE_OK) {
        moe_results_routing(r->comm, &r->results, r->config, r->context.batch, r->routing, writing);
    }
    if (moe_run_trains(r) && r->config->train.specialization && st->code == MOE_OK &&
        writing->code == MOE_OK) {
        specialize(r, writing);
    }
    if (writing->code == MOE_OK && r->config->output.timeline) {
        moe_timeline_write(r->comm, &r->timeline, r->config, r->topologies, r->metrics.step,
                           r->results.folder, writing);
    }
    if (st->code == MOE_OK && writing->code == MOE_OK) {
        explain(r, writing, st);
    }
    if (writing->code == MOE_OK) {
        close_results(r, seconds, st->code == MOE_OK, writing);
    }
}

/* A failed self-check ends the loop; its step is in the results like any other. */
static int finish(moe_run_state *r, moe_status *st) {
    moe_status writing = {0};
    bool passed = st->code == MOE_OK;
    double seconds = moe_comm_time() - r->start;
    moe_comm_max_f64(r->comm, &seconds, 1); /* as the steps' times: of the slowest rank */
    r->context.timeline = NULL;             /* the steps are over */
    write_end(r, seconds, &writing, st);
    if (moe_config_generates(r->config)) {
        moe_run_generated(r, seconds, &writing);
        return writing.code ? moe_fail(st, writing.code, "%s", writing.message) : st->code;
    }
    if (r->comm->rank == 0 && !moe_run_trains(r) && writing.code == MOE_OK) {
        moe_over_steps_show(&r->screen, &r->results.over_steps, moe_config_moe_layers(r->config));
    }
    if (r->comm->rank == 0 && moe_run_trains(r)) {
        moe_terminal_outcome(&r->screen, r->config, &r->results.training_history,
                             &r->results.facts);
    }
    if (r->comm->rank == 0 && passed) {
        show_explanations(r);
    }
    if (r->comm->rank == 0 && r->results.overlaps) {
        moe_overlap_show(&r->screen, r->config, r->results.overlaps, r->comm->size);
    }
    if (r->comm->rank == 0) {
        moe_terminal_end(&r->screen, r->config, &r->metrics, r->results.folder, seconds);
    }
    if (writing.code) {
        moe_fail(st, writing.code, "%s", writing.message);
    }
    return st->code;
}

/* --- the run --- */

static void run_steps(moe_run_state *r, moe_status *st) {
    const moe_checkpoint *resume = r->options->resume;
    r->start = moe_comm_time();
    for (int64_t step = resume ? resume->step : 0;
         step < r->config->run.steps && st->code == MOE_OK; step++) {
        if (moe_run_trains(r)) {
            moe_restart restart = moe_run_restart(r);
            moe_restart_write(&restart, step, st);
        }
        if (st->code == MOE_OK && !moe_config_generates(r->config)) {
            rebalance(r, step, st);
        }
        if (st->code == MOE_OK) {
            run_step(r, step, st);
        }
    }
    if (st->code == MOE_OK || st->code == MOE_RUN_FAILED) {
        finish(r, st);
    }
}

/* --check: what a run needs, as comments below the configuration, so that it can still be run. */
static void print_needs(const moe_run_state *r) {
    enum { IN_LINE = 4 };
    const moe_memory *m = &r->memory;
    moe_memory_part part[MOE_MEMORY_PARTS];
    moe_memory_parts(m, part);
    printf("\n; memory needed, in bytes (estimated)\n;   on the fullest rank: %lld\n",
           (long long)m->total);
    for (int i = 0; i < MOE_MEMORY_PARTS; i++) {
        printf("%s%s %lld%s", i % IN_LINE ? " " : ";     ", part[i].name, (long long)part[i].bytes,
               i + 1 == MOE_MEMORY_PARTS ? "\n"
               : (i + 1) % IN_LINE == 0  ? ",\n"
                                         : ",");
    }
    if (m->windows > 0) {
        printf(";     (of these, shared memory %lld)\n", (long long)m->windows);
    }
    printf(
        ";   besides on rank 0, loads and matrices of all steps: %lld\n;   on all %d ranks: %lld\n",
        (long long)m->histories, r->comm->size, (long long)moe_memory_of_ranks(m, r->comm->size));
}

int moe_run(const moe_comm *comm, moe_config *c, const moe_run_options *options, moe_status *st) {
    moe_run_state r = {.comm = comm, .config = c, .options = options, .start = moe_comm_time()};
    if (moe_run_prepare(&r, st) == MOE_OK) {
        if (!options->check_only) {
            run_steps(&r, st);
        } else if (comm->rank == 0) {
            moe_config_print(c, stdout);
            print_needs(&r);
        }
    }
    moe_run_free(&r);
    return st->code;
}
