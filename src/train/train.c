/* train.c: one training step in the order in which it happens. */
#include "train/train.h"

#include <math.h>
#include <string.h>

#include "balance/bias.h"
#include "base/exact.h"

/* --- sums of losses --- */

/* The loss of one micro-batch or of several held-out batches, as integers that are added up over
 * ranks: the exact sum, the number of tokens, how often a loss was not finite. */
enum { LOSS_TOKENS = MOE_EXACT_WORDS, LOSS_BAD, LOSS_WORDS };

/* The sums of the losses of a step's micro-batches. Those of the norm stand in front of them, so
 * that one message adds up both. */
static int64_t *step_losses(const moe_training *t) {
    return t->sums + MOE_NORM_WORDS;
}

static int64_t num_loss_words(const moe_training *t) {
    return (int64_t)t->stack->context->config->train.accumulate * LOSS_WORDS;
}

/* --- setting up --- */

void moe_training_init(moe_training *t, moe_stack *stack, moe_batch *batch) {
    moe_context *context = stack->context;
    const moe_config *c = context->config;
    *t = (moe_training){.stack = stack, .batch = batch};
    context->keep = !c->train.recompute;
    memcpy(t->alpha, context->balance.alpha, sizeof t->alpha);
    t->alpha_all_layers = context->balance.alpha_all_layers;
    moe_parameters_init(&t->parameters, batch->devices, batch->num_local_devices);
    moe_stack_register(stack, &t->parameters);
    t->replicas = moe_alloc_zero(stack->num_layers, sizeof *t->replicas, "replicas");
    moe_training_replan(t);
    moe_task_init(&t->task, c, context->input, batch, &t->parameters);
    moe_optimizer_init(&t->parameters, c);
    if (c->train.accumulate > 1) {
        moe_step_metrics_init(&t->micro, stack->num_layers, c->model.num_experts, batch->devices);
    }
    t->sums = moe_alloc(MOE_NORM_WORDS + num_loss_words(t), sizeof *t->sums, "sums of losses");
    t->gradient =
        moe_alloc(batch->num_tokens * c->model.hidden_size, sizeof(real), "gradient of the output");
}

void moe_training_replan(moe_training *t) {
    for (int32_t l = 0; l < t->stack->num_layers; l++) {
        if (t->stack->layer[l].placement->replicated &&
            !moe_config_copies_for_batches(t->stack->context->config)) {
            moe_replicas_plan(&t->replicas[l], t->stack->context, &t->stack->layer[l]);
        }
    }
}

void moe_training_free(moe_training *t) {
    for (int32_t l = 0; t->replicas && l < t->stack->num_layers; l++) {
        moe_replicas_free(&t->replicas[l]);
    }
    moe_free(t->replicas);
    moe_free(t->gradient);
    moe_stats_free(&t->whole);
    moe_free(t->sums);
    moe_step_metrics_free(&t->micro);
    moe_task_free(&t->task);
    moe_parameters_free(&t->parameters);
    *t = (moe_training){0};
}

/* --- one micro-batch --- */

/* dh NULL: no gradient. */
static void add_loss(moe_training *t, int64_t sum[LOSS_WORDS], real *dh) {
    int64_t bad =
        moe_task_loss(&t->task, t->batch, moe_stack_output(t->stack), t->batch->num_tokens_global,
                      &t->parameters, sum, &sum[LOSS_TOKENS], dh);
    sum[LOSS_BAD] += bad >= 0;
    t->bad_here |= bad >= 0;
}

/* Collective. The mean over `count` sums of their global means, from the sums over ranks; NaN when
 * a token's loss is not finite: then bad_rank is the lowest rank with such a token. */
static double mean_loss(moe_training *t, const int64_t *sum, int32_t count) {
    double mean = 0;
    bool bad = false;
    for (int32_t i = 0; i < count; i++, sum += LOSS_WORDS) {
        bad |= sum[LOSS_BAD] > 0;
        mean += (sum[LOSS_TOKENS] ? moe_exact_value(sum) / (double)sum[LOSS_TOKENS] : 0) / count;
    }
    if (bad) {
        t->bad_rank = moe_comm_lowest_rank(t->stack->context->comm, t->bad_here);
        return NAN;
    }
    return mean;
}

/* Collective. Forward and backward of one micro-batch; its loss goes to `sum`. `draw` keys its
 * tokens and its noise. */
static int run_micro_batch(moe_training *t,
                           int64_t draw,
                           moe_step_metrics *metrics,
                           int64_t sum[LOSS_WORDS],
                           moe_status *st) {
    moe_context *context = t->stack->context;
    moe_timeline *line = context->timeline;
    double start = moe_comm_time();
    metrics->num_checks = 0;
    context->draw = draw;
    context->trains = true;
    moe_task_input(&t->task, t->batch, draw, MOE_SPLIT_TRAIN, moe_stack_input(t->stack));
    moe_timeline_add(line, MOE_SPAN_INPUT, -1, start, moe_comm_time(), NULL);
    if (moe_stack_forward(t->stack, t->observer, metrics, st) == MOE_OK) {
        start = moe_comm_time();
        add_loss(t, sum, t->gradient);
        moe_timeline_add(line, MOE_SPAN_LOSS, -1, start, moe_comm_time(), NULL);
        moe_stack_backward(t->stack, t->observer, t->gradient, metrics);
        start = moe_comm_time();
        moe_task_input_backward(&t->task, t->batch, t->gradient, &t->parameters);
        moe_timeline_add(line, MOE_SPAN_INPUT_BACKWARD, -1, start, moe_comm_time(), NULL);
    }
    context->trains = false;
    return st->code;
}

/* --- what the micro-batches of a step count together --- */

static void add_to_whole(void *self,
                         int32_t l,
                         const real *x,
                         real *y,
                         moe_activations *a,
                         moe_layer_metrics *metrics) {
    moe_training *t = self;
    const moe_stack *s = t->stack;
    moe_layer_forward(&s->layer[l], s->context, x, y, a, metrics);
    if (l == 0 && t->whole.num_cells == 0) {
        moe_stats_reserve_slots(&t->whole, a->segments.num_experts, a->segments.devices,
                                a->segments.slots, s->num_layers);
    }
    moe_scopes_add_global(&a->scopes, s->context->comm, moe_stats_cell(&t->whole, l));
    a->losses_counted = false;
}

/* Collective. A forward pass of every micro-batch, with the random numbers of the training itself:
 * the parameters stay the same during a step, so that its routing is known before the first
 * gradient is taken. */
static void count_whole_step(moe_training *t, int64_t step) {
    moe_context *context = t->stack->context;
    const moe_config *c = context->config;
    double start = moe_comm_time();
    t->whole.num_cells = 0;
    context->trains = true;
    for (int32_t i = 0; i < c->train.accumulate; i++) {
        context->draw = step * c->train.accumulate + i;
        moe_task_input(&t->task, t->batch, context->draw, MOE_SPLIT_TRAIN,
                       moe_stack_input(t->stack));
        moe_stack_evaluate(t->stack, add_to_whole, t);
    }
    context->trains = false;
    context->whole_step = &t->whole;
    moe_timeline_add(context->timeline, MOE_SPAN_STATISTICS, -1, start, moe_comm_time(), NULL);
}

static bool counts_whole_step(const moe_config *c) {
    return c->balance.scope == MOE_SCOPE_GLOBAL && c->balance.global_batch == MOE_GLOBAL_STEP &&
           c->train.accumulate > 1;
}

/* --- between the steps --- */

static void set_alpha(moe_training *t, int64_t step) {
    double factor = moe_balance_alpha_factor(&t->stack->context->config->balance, step);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        t->stack->context->balance.alpha[i] = factor * t->alpha[i];
    }
    t->stack->context->balance.alpha_all_layers = factor * t->alpha_all_layers;
}

static int gradient_failed(const moe_training *t, int64_t step, const char *worst, moe_status *st) {
    if (!worst) {
        return moe_fail(st, MOE_RUN_FAILED, "step %lld: the norm of the gradient overflows",
                        (long long)step);
    }
    return moe_fail(st, MOE_RUN_FAILED,
                    "step %lld: the gradient of %s is NaN or Inf, first on rank %d",
                    (long long)step, worst, t->parameters.worst_rank);
}

/* Collective. The micro-batches of a step; their losses are not added up over ranks yet. Ends early
 * when a self-check did not pass: the check says where, and nothing is updated. */
static int run_micro_batches(moe_training *t,
                             int64_t step,
                             moe_step_metrics *metrics,
                             moe_status *st) {
    int32_t count = t->stack->context->config->train.accumulate;
    if (counts_whole_step(t->stack->context->config)) {
        count_whole_step(t, step);
    }
    t->bad_here = false;
    memset(step_losses(t), 0, (size_t)num_loss_words(t) * sizeof(int64_t));
    for (int32_t i = 0; i < count && moe_step_metrics_all_passed(metrics); i++) {
        moe_step_metrics *micro = count > 1 ? &t->micro : metrics;
        if (run_micro_batch(t, step * count + i, micro, step_losses(t) + i * LOSS_WORDS, st)) {
            return st->code;
        }
        if (count > 1) {
            moe_step_metrics_join(metrics, micro, i, count);
        }
    }
    return MOE_OK;
}

/* Collective. Runs the step with fp32 payloads, without an update, and keeps what comes out. */
static int run_with_fp32(moe_training *t, int64_t step, moe_status *st) {
    moe_context *context = t->stack->context;
    moe_timeline *line = context->timeline;
    const moe_observer *observer = t->observer, keeps = moe_payload_error_observer(t->fp32);
    moe_step_metrics metrics;
    int64_t bytes = 0;
    double start = moe_comm_time();
    moe_step_metrics_init(&metrics, t->stack->num_layers, context->config->model.num_experts,
                          t->batch->devices);
    context->timeline = NULL;
    t->observer = &keeps;
    moe_payload_error_suspend(context, true);
    moe_parameters_clear_gradients(&t->parameters);
    if (run_micro_batches(t, step, &metrics, st) == MOE_OK) {
        moe_comm_sum_i64(context->comm, step_losses(t), num_loss_words(t));
        t->fp32->loss = mean_loss(t, step_losses(t), context->config->train.accumulate);
        moe_parameters_reduce(&t->parameters, context->comm,
                              1.0 / context->config->train.accumulate, &bytes);
        moe_payload_error_keep_gradient(t->fp32, &t->parameters);
    }
    moe_payload_error_suspend(context, false);
    t->observer = observer;
    context->timeline = line;
    moe_step_metrics_free(&metrics);
    t->fp32->seconds = moe_comm_time() - start;
    return st->code;
}

static int loss_failed(const moe_training *t, int64_t step, moe_status *st) {
    return moe_fail(st, MOE_RUN_FAILED,
                    "step %lld: the loss of the task (after the last layer) is NaN or Inf, first "
                    "on rank %d",
                    (long long)step, t->bad_rank);
}

/* Collective. The mean gradient of the step, summed over devices, and the loss of the step; then
 * the optimizer and the routers' biases. */
static int update(moe_training *t, int64_t step, moe_step_metrics *metrics, moe_status *st) {
    moe_stack *s = t->stack;
    const moe_config *c = s->context->config;
    const char *worst = NULL;
    double start = moe_comm_time(), reduced;
    metrics->gradient_allreduce_bytes = metrics->replica_gradient_bytes = 0;
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_replicas_sum(&t->replicas[l], s->context, &s->layer[l], &s->indices[l], &t->parameters,
                         &metrics->replica_gradient_bytes);
    }
    moe_parameters_reduce(&t->parameters, s->context->comm, 1.0 / c->train.accumulate,
                          &metrics->gradient_allreduce_bytes);
    reduced = moe_comm_time();
    moe_timeline_add(s->context->timeline, MOE_SPAN_REDUCE, -1, start, reduced, NULL);
    metrics->gradient_norm = moe_parameters_gradient_norm_with(&t->parameters, s->context->comm,
                                                               t->sums, num_loss_words(t), &worst);
    metrics->task_loss = mean_loss(t, step_losses(t), c->train.accumulate);
    if (!isfinite(metrics->task_loss)) {
        return loss_failed(t, step, st);
    }
    if (!isfinite(metrics->gradient_norm)) {
        return gradient_failed(t, step, worst, st);
    }
    if (t->fp32) {
        metrics->payload_error.loss = metrics->task_loss - t->fp32->loss;
        metrics->payload_error.gradient =
            moe_payload_error_of_gradient(t->fp32, &t->parameters, s->context->comm);
    }
    moe_optimizer_step(&t->parameters, c, step, metrics->learning_rate, metrics->gradient_norm);
    for (int32_t l = 0; l < s->num_layers; l++) {
        if (s->layer[l].bias) {
            moe_bias_update(&c->router, c->model.num_experts, metrics->layer[l].counts_per_expert,
                            s->layer[l].bias);
        }
    }
    moe_timeline_add(s->context->timeline, MOE_SPAN_OPTIMIZER, -1, reduced, moe_comm_time(), NULL);
    return MOE_OK;
}

int moe_training_step(moe_training *t, int64_t step, moe_step_metrics *metrics, moe_status *st) {
    set_alpha(t, step);
    if (t->fp32 && run_with_fp32(t, step, st)) {
        return st->code;
    }
    moe_parameters_clear_gradients(&t->parameters);
    if (run_micro_batches(t, step, metrics, st) || !moe_step_metrics_all_passed(metrics)) {
        return st->code;
    }
    metrics->learning_rate = moe_optimizer_learning_rate(t->stack->context->config, step);
    return update(t, step, metrics, st);
}

/* --- evaluation: nothing is tallied, nothing is kept for a gradient --- */

double moe_training_evaluate(moe_training *t,
                             int64_t batches,
                             moe_stack_run_layer *run,
                             void *self) {
    moe_timeline *line = t->stack->context->timeline;
    int64_t sum[LOSS_WORDS] = {0};
    double start = moe_comm_time();
    t->bad_here = false;
    for (int64_t i = 0; i < batches; i++) {
        moe_task_input(&t->task, t->batch, i, MOE_SPLIT_VALIDATION, moe_stack_input(t->stack));
        moe_stack_evaluate(t->stack, run, self);
        add_loss(t, sum, NULL);
    }
    moe_timeline_add(line, MOE_SPAN_VALIDATION, -1, start, moe_comm_time(), NULL);
    moe_comm_sum_i64(t->stack->context->comm, sum, LOSS_WORDS);
    return mean_loss(t, sum, 1);
}

double moe_training_validate(moe_training *t, int64_t batches) {
    return moe_training_evaluate(t, batches, NULL, NULL);
}
