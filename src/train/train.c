/* train.c: one training step in the order in which it happens. */
#include "train/train.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "tally/tally.h"

/* --- setting up --- */

void moe_training_init(moe_training *t, moe_context *context, moe_batch *batch, moe_layer *layers) {
    const moe_config *c = context->config;
    int64_t n = batch->num_tokens * c->model.hidden_size;
    *t = (moe_training){
        .context = context, .batch = batch, .num_layers = c->model.num_layers, .layers = layers};
    context->keep = !c->train.recompute;
    memcpy(t->alpha, context->balance.alpha, sizeof t->alpha);
    t->alpha_all_layers = context->balance.alpha_all_layers;
    moe_parameters_init(&t->parameters, batch->devices, batch->num_local_devices);
    t->slots = moe_alloc(t->num_layers, sizeof *t->slots, "training");
    t->activations = moe_alloc_zero(t->num_layers, sizeof *t->activations, "training");
    t->x = moe_alloc(t->num_layers + 1, sizeof *t->x, "training");
    if (c->train.accumulate > 1) {
        moe_step_metrics_init(&t->micro, t->num_layers, c->model.num_experts, batch->devices);
    }
    t->y = moe_alloc(n, sizeof(real), "activations");
    t->dh = moe_alloc(n, sizeof(real), "activations");
    for (int32_t l = 0; l <= t->num_layers; l++) {
        t->x[l] = moe_alloc(n, sizeof(real), "activations");
    }
    for (int32_t l = 0; l < t->num_layers; l++) {
        t->slots[l] = moe_layer_register(&layers[l], context, &t->parameters);
    }
    moe_task_init(&t->task, c, context->input, batch, &t->parameters);
    moe_optimizer_init(&t->parameters, c);
}

void moe_training_free(moe_training *t) {
    for (int32_t l = 0; l < t->num_layers; l++) {
        moe_activations_free(&t->activations[l]);
    }
    for (int32_t l = 0; l <= t->num_layers && t->x; l++) {
        moe_free(t->x[l]);
    }
    moe_free(t->slots);
    moe_free(t->activations);
    moe_free(t->x);
    moe_free(t->y);
    moe_free(t->dh);
    moe_step_metrics_free(&t->micro);
    moe_task_free(&t->task);
    moe_parameters_free(&t->parameters);
    moe_backward_free(&t->backward);
    *t = (moe_training){0};
}

/* --- forward and backward through the stack --- */

/* out = y + residual x (the residual comes last, method.md section 4). */
static void leave_layer(const moe_training *t, const real *y, const real *x, real *out) {
    int64_t n = t->batch->num_tokens * t->context->config->model.hidden_size;
    bool residual = t->context->config->model.residual;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        out[i] = residual ? y[i] + x[i] : y[i];
    }
}

static void forward(moe_training *t, moe_step_metrics *metrics) {
    moe_timeline *line = t->context->timeline;
    for (int32_t l = 0; l < t->num_layers; l++) {
        int64_t whole = moe_timeline_begin(line, MOE_SPAN_LAYER, l, moe_comm_time());
        moe_layer_forward(&t->layers[l], t->context, t->x[l], t->y, &t->activations[l],
                          &metrics->layer[l]);
        double start = moe_comm_time();
        moe_tally_layer(&t->layers[l], t->context, &t->activations[l], t->y, metrics);
        moe_timeline_add(line, MOE_SPAN_TALLY, l, start, moe_comm_time(), NULL);
        if (t->explainer) {
            moe_explain_forward(t->explainer, &t->layers[l], t->context, &t->activations[l], t->y,
                                &metrics->layer[l]);
        }
        leave_layer(t, t->y, t->x[l], t->x[l + 1]);
        moe_timeline_end(line, whole, moe_comm_time());
    }
}

/* dh: gradient of the last layer's output on entry, of the first layer's input on return. */
static void backward(moe_training *t, moe_step_metrics *metrics) {
    for (int32_t l = t->num_layers - 1; l >= 0; l--) {
        if (t->explainer) {
            moe_explain_upstream(t->explainer, &t->layers[l], t->context, t->dh);
        }
        moe_layer_backward(&t->layers[l], &t->slots[l], t->context, &t->activations[l],
                           &t->parameters, t->dh, &t->backward, t->y, &metrics->layer[l]);
        if (t->explainer) {
            moe_explain_backward(t->explainer, &t->layers[l], t->context, &t->activations[l],
                                 &t->backward);
        }
        leave_layer(t, t->y, t->dh, t->dh);
    }
}

typedef struct loss_sum { /* of this rank; added up over ranks as integers */
    int64_t words[MOE_EXACT_WORDS], tokens, bad;
} loss_sum;

/* dh NULL: no gradient. */
static void add_loss(moe_training *t, loss_sum *sum, real *dh) {
    int64_t bad =
        moe_task_loss(&t->task, t->batch, t->x[t->num_layers], t->batch->num_tokens_global,
                      &t->parameters, sum->words, &sum->tokens, dh);
    sum->bad += bad >= 0;
}

/* Collective. Global mean; NaN when a token's loss is not finite: then bad_rank is the lowest rank
 * with such a token. */
static double mean_loss(moe_training *t, loss_sum sum) {
    const moe_comm *comm = t->context->comm;
    int64_t from_end = sum.bad ? comm->size - comm->rank : 0;
    moe_comm_sum_i64(comm, sum.words, sizeof sum / sizeof(int64_t));
    if (sum.bad) {
        moe_comm_max_i64(comm, &from_end, 1);
        t->bad_rank = (int)(comm->size - from_end);
        return NAN;
    }
    return sum.tokens ? moe_exact_value(sum.words) / (double)sum.tokens : 0;
}

static double micro_batch(moe_training *t, int64_t draw, moe_step_metrics *metrics) {
    moe_timeline *line = t->context->timeline;
    loss_sum sum = {.tokens = 0};
    double start = moe_comm_time();
    metrics->num_checks = 0;
    t->context->draw = draw;
    t->context->trains = true;
    moe_task_input(&t->task, t->batch, draw, MOE_SPLIT_TRAIN, t->x[0]);
    moe_timeline_add(line, MOE_SPAN_INPUT, -1, start, moe_comm_time(), NULL);
    forward(t, metrics);
    start = moe_comm_time();
    add_loss(t, &sum, t->dh);
    moe_timeline_add(line, MOE_SPAN_LOSS, -1, start, moe_comm_time(), NULL);
    backward(t, metrics);
    start = moe_comm_time();
    moe_task_input_backward(&t->task, t->batch, t->dh, &t->parameters);
    moe_timeline_add(line, MOE_SPAN_INPUT_BACKWARD, -1, start, moe_comm_time(), NULL);
    t->context->trains = false;
    start = moe_comm_time();
    double loss = mean_loss(t, sum);
    moe_timeline_add(line, MOE_SPAN_LOSS, -1, start, moe_comm_time(), NULL);
    return loss;
}

/* --- between the steps --- */

/* Auxiliary-loss-free balancing (2408.15664), method.md section 2: sign: b += gamma sign(mean(c) -
 * c); proportional: b += gamma (mean(c) - c); centred: minus the mean change. Counts are of the
 * global batch. */
static void update_bias(const moe_config *c, const int64_t *counts, double *bias) {
    int32_t n = c->model.num_experts;
    double mean = 0, mean_change = 0;
    for (int32_t e = 0; e < n; e++) {
        mean += (double)counts[e] / n;
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t e = 0; e < n; e++) {
            double gap = mean - (double)counts[e], sign = (gap > 0) - (gap < 0);
            double change =
                c->router.bias_update_rate * (c->router.bias_update == MOE_BIAS_SIGN ? sign : gap);
            if (pass == 0) {
                mean_change += c->router.bias_centered ? change / n : 0;
            } else {
                bias[e] += change - mean_change;
            }
        }
    }
}

static void set_alpha(moe_training *t, int64_t step) {
    double factor = moe_alpha_factor(t->context->config, step);
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        t->context->balance.alpha[i] = factor * t->alpha[i];
    }
    t->context->balance.alpha_all_layers = factor * t->alpha_all_layers;
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

int moe_training_step(moe_training *t, int64_t step, moe_step_metrics *metrics, moe_status *st) {
    const moe_config *c = t->context->config;
    const char *worst = NULL;
    double loss = 0;
    set_alpha(t, step);
    moe_parameters_clear_gradients(&t->parameters);
    for (int32_t i = 0; i < c->train.accumulate; i++) {
        bool several = c->train.accumulate > 1;
        if (t->explainer) {
            t->explainer->micro_batch = i;
        }
        loss += micro_batch(t, step * c->train.accumulate + i, several ? &t->micro : metrics) /
                c->train.accumulate;
        if (several) {
            moe_step_metrics_join(metrics, &t->micro, i, c->train.accumulate);
        }
        if (!moe_step_metrics_all_passed(metrics)) {
            return MOE_OK; /* the self-check says where; nothing is updated */
        }
    }
    metrics->task_loss = loss;
    metrics->learning_rate = moe_learning_rate(c, step);
    if (!isfinite(loss)) {
        return moe_fail(st, MOE_RUN_FAILED,
                        "step %lld: the loss of the task (after the last layer) is NaN or Inf, "
                        "first on rank %d",
                        (long long)step, t->bad_rank);
    }
    metrics->gradient_allreduce_bytes = 0;
    double start = moe_comm_time(), reduced;
    moe_parameters_reduce(&t->parameters, t->context->comm, 1.0 / c->train.accumulate,
                          &metrics->gradient_allreduce_bytes);
    moe_timeline_add(t->context->timeline, MOE_SPAN_REDUCE, -1, start, reduced = moe_comm_time(),
                     NULL);
    metrics->gradient_norm = moe_parameters_gradient_norm(&t->parameters, t->context->comm, &worst);
    if (!isfinite(metrics->gradient_norm)) {
        return gradient_failed(t, step, worst, st);
    }
    moe_optimizer_step(&t->parameters, c, step, metrics->learning_rate, metrics->gradient_norm);
    for (int32_t l = 0; l < t->num_layers; l++) {
        if (t->layers[l].bias) {
            update_bias(c, metrics->layer[l].counts_per_expert, t->layers[l].bias);
        }
    }
    moe_timeline_add(t->context->timeline, MOE_SPAN_OPTIMIZER, -1, reduced, moe_comm_time(), NULL);
    return MOE_OK;
}

/* --- validation: nothing is tallied, nothing is kept for a gradient --- */

static void run_layer(
    void *user, int32_t l, const real *x, real *y, moe_activations *a, moe_layer_metrics *metrics) {
    const moe_training *t = user;
    moe_layer_forward(&t->layers[l], t->context, x, y, a, metrics);
}

double moe_training_evaluate(moe_training *t, int64_t batches, moe_run_layer *run, void *user) {
    loss_sum sum = {.tokens = 0};
    bool keep = t->context->keep;
    moe_timeline *line = t->context->timeline;
    double start = moe_comm_time();
    moe_layer_metrics unused = {
        .distinct_tokens_per_device =
            moe_scratch_take(t->batch->scratch, t->batch->devices, sizeof(int64_t), "validation")};
    t->context->keep = false;
    t->context->timeline = NULL; /* one span for all of it */
    for (int64_t i = 0; i < batches; i++) {
        moe_task_input(&t->task, t->batch, i, MOE_SPLIT_VALIDATION, t->x[0]);
        for (int32_t l = 0; l < t->num_layers; l++) {
            run(user, l, t->x[l], t->y, &t->activations[l], &unused);
            leave_layer(t, t->y, t->x[l], t->x[l + 1]);
        }
        add_loss(t, &sum, NULL);
    }
    t->context->keep = keep;
    t->context->timeline = line;
    moe_timeline_add(line, MOE_SPAN_VALIDATION, -1, start, moe_comm_time(), NULL);
    moe_scratch_give(t->batch->scratch, unused.distinct_tokens_per_device);
    return mean_loss(t, sum);
}

double moe_training_validate(moe_training *t, int64_t batches) {
    return moe_training_evaluate(t, batches, run_layer, t);
}
