/* train.c: one training step in the order in which it happens. */
#include "train/train.h"

#include <math.h>
#include <string.h>

#include "balance/bias.h"
#include "base/exact.h"

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
    moe_step_metrics_free(&t->micro);
    moe_task_free(&t->task);
    moe_parameters_free(&t->parameters);
    *t = (moe_training){0};
}

/* --- one micro-batch --- */

typedef struct loss_sum { /* of this rank; added up over ranks as integers */
    int64_t words[MOE_EXACT_WORDS], tokens, bad;
} loss_sum;

/* dh NULL: no gradient. */
static void add_loss(moe_training *t, loss_sum *sum, real *dh) {
    int64_t bad =
        moe_task_loss(&t->task, t->batch, moe_stack_output(t->stack), t->batch->num_tokens_global,
                      &t->parameters, sum->words, &sum->tokens, dh);
    sum->bad += bad >= 0;
}

/* Collective. Global mean; NaN when a token's loss is not finite: then bad_rank is the lowest rank
 * with such a token. */
static double mean_loss(moe_training *t, loss_sum sum) {
    const moe_comm *comm = t->stack->context->comm;
    bool bad_here = sum.bad > 0;
    moe_comm_sum_i64(comm, sum.words, sizeof sum / sizeof(int64_t));
    if (sum.bad) {
        t->bad_rank = moe_comm_lowest_rank(comm, bad_here);
        return NAN;
    }
    return sum.tokens ? moe_exact_value(sum.words) / (double)sum.tokens : 0;
}

/* Collective. Forward and backward of one micro-batch; *loss gets its global mean loss. `draw` keys
 * its tokens and its noise. */
static int run_micro_batch(moe_training *t,
                           int64_t draw,
                           moe_step_metrics *metrics,
                           double *loss,
                           moe_status *st) {
    moe_context *context = t->stack->context;
    moe_timeline *line = context->timeline;
    loss_sum sum = {.tokens = 0};
    double start = moe_comm_time();
    metrics->num_checks = 0;
    context->draw = draw;
    context->trains = true;
    moe_task_input(&t->task, t->batch, draw, MOE_SPLIT_TRAIN, moe_stack_input(t->stack));
    moe_timeline_add(line, MOE_SPAN_INPUT, -1, start, moe_comm_time(), NULL);
    if (moe_stack_forward(t->stack, t->observer, metrics, st) == MOE_OK) {
        start = moe_comm_time();
        add_loss(t, &sum, t->gradient);
        moe_timeline_add(line, MOE_SPAN_LOSS, -1, start, moe_comm_time(), NULL);
        moe_stack_backward(t->stack, t->observer, t->gradient, metrics);
        start = moe_comm_time();
        moe_task_input_backward(&t->task, t->batch, t->gradient, &t->parameters);
        moe_timeline_add(line, MOE_SPAN_INPUT_BACKWARD, -1, start, moe_comm_time(), NULL);
        start = moe_comm_time();
        *loss = mean_loss(t, sum);
        moe_timeline_add(line, MOE_SPAN_LOSS, -1, start, moe_comm_time(), NULL);
    }
    context->trains = false;
    return st->code;
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

/* Collective. The micro-batches of a step: *loss gets the mean of their losses. Ends early when a
 * self-check did not pass: the check says where, and nothing is updated. */
static int run_micro_batches(moe_training *t,
                             int64_t step,
                             moe_step_metrics *metrics,
                             double *loss,
                             moe_status *st) {
    int32_t count = t->stack->context->config->train.accumulate;
    *loss = 0;
    for (int32_t i = 0; i < count && moe_step_metrics_all_passed(metrics); i++) {
        double micro_loss = NAN;
        moe_step_metrics *micro = count > 1 ? &t->micro : metrics;
        if (run_micro_batch(t, step * count + i, micro, &micro_loss, st)) {
            return st->code;
        }
        *loss += micro_loss / count;
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
    if (run_micro_batches(t, step, &metrics, &t->fp32->loss, st) == MOE_OK) {
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

/* Collective. The mean gradient of the step, summed over devices, then the optimizer and the
 * routers' biases. */
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
    metrics->gradient_norm = moe_parameters_gradient_norm(&t->parameters, s->context->comm, &worst);
    if (!isfinite(metrics->gradient_norm)) {
        return gradient_failed(t, step, worst, st);
    }
    if (t->fp32) {
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
    double loss;
    set_alpha(t, step);
    if (t->fp32 && run_with_fp32(t, step, st)) {
        return st->code;
    }
    moe_parameters_clear_gradients(&t->parameters);
    if (run_micro_batches(t, step, metrics, &loss, st) || !moe_step_metrics_all_passed(metrics)) {
        return st->code;
    }
    metrics->task_loss = loss;
    if (t->fp32) {
        metrics->payload_error.loss = loss - t->fp32->loss;
    }
    metrics->learning_rate = moe_optimizer_learning_rate(t->stack->context->config, step);
    if (!isfinite(loss)) {
        return moe_fail(st, MOE_RUN_FAILED,
                        "step %lld: the loss of the task (after the last layer) is NaN or Inf, "
                        "first on rank %d",
                        (long long)step, t->bad_rank);
    }
    return update(t, step, metrics, st);
}

/* --- evaluation: nothing is tallied, nothing is kept for a gradient --- */

double moe_training_evaluate(moe_training *t,
                             int64_t batches,
                             moe_stack_run_layer *run,
                             void *self) {
    moe_timeline *line = t->stack->context->timeline;
    loss_sum sum = {.tokens = 0};
    double start = moe_comm_time();
    for (int64_t i = 0; i < batches; i++) {
        moe_task_input(&t->task, t->batch, i, MOE_SPLIT_VALIDATION, moe_stack_input(t->stack));
        moe_stack_evaluate(t->stack, run, self);
        add_loss(t, &sum, NULL);
    }
    moe_timeline_add(line, MOE_SPAN_VALIDATION, -1, start, moe_comm_time(), NULL);
    return mean_loss(t, sum);
}

double moe_training_validate(moe_training *t, int64_t batches) {
    return moe_training_evaluate(t, batches, NULL, NULL);
}
