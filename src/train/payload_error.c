/* payload_error.c: the fp32 step beside a step with narrow payloads. */
#include "train/payload_error.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/exact.h"

void moe_payload_error_free(moe_payload_error *r) {
    moe_free(r->y);
    moe_free(r->gradient);
    *r = (moe_payload_error){0};
}

bool moe_payload_error_happens(const moe_config *c) {
    return !moe_config_generates(c) && (c->model.compute != MOE_COMPUTE_FP32 ||
                                        moe_payload_rounds(moe_payload_of_dispatch(c)) ||
                                        moe_payload_rounds(moe_payload_of_combine(c)));
}

void moe_payload_error_suspend(moe_context *context, bool suspended) {
    const moe_payload_format whole = {.type = MOE_PAYLOAD_FP32};
    context->bf16 = !suspended && context->config->model.compute == MOE_COMPUTE_BF16;
    context->dispatched = suspended ? whole : moe_payload_of_dispatch(context->config);
    context->combined = suspended ? whole : moe_payload_of_combine(context->config);
}

/* --- the fp32 step --- */

static int keep_y(void *self,
                  const moe_stack *s,
                  int32_t l,
                  moe_step_metrics *metrics,
                  moe_status *st) {
    moe_payload_error *r = self;
    int64_t n = s->context->batch->num_tokens * s->context->config->model.hidden_size;
    (void)metrics, (void)st;
    if (l + 1 < s->num_layers || n == 0) {
        return MOE_OK;
    }
    if (!r->y) {
        r->y = moe_alloc(n, sizeof(real), "output in fp32");
    }
    memcpy(r->y, s->y, (size_t)n * sizeof(real));
    return MOE_OK;
}

moe_observer moe_payload_error_observer(moe_payload_error *r) {
    return (moe_observer){.self = r, .after_layer = keep_y};
}

int moe_payload_error_forward(moe_payload_error *r, moe_stack *s, moe_status *st) {
    moe_context *context = s->context;
    moe_timeline *timeline = context->timeline;
    const moe_observer observer = moe_payload_error_observer(r);
    moe_step_metrics metrics;
    double start = moe_comm_time();
    moe_step_metrics_init(&metrics, s->num_layers, context->config->model.num_experts,
                          context->batch->devices);
    context->timeline = NULL;
    moe_payload_error_suspend(context, true);
    moe_stack_forward(s, &observer, &metrics, st);
    moe_payload_error_suspend(context, false);
    context->timeline = timeline;
    moe_step_metrics_free(&metrics);
    r->seconds = moe_comm_time() - start;
    return st->code;
}

static int64_t size_of(const moe_parameter *p) {
    return p->count * p->size;
}

void moe_payload_error_keep_gradient(moe_payload_error *r, const moe_parameters *all) {
    int64_t total = 0;
    for (int i = 0; i < all->num; i++) {
        total += size_of(&all->p[i]);
    }
    if (!r->gradient) {
        r->gradient = moe_alloc(total, sizeof(real), "gradients in fp32");
    }
    real *to = r->gradient;
    for (int i = 0; i < all->num; i++) {
        if (size_of(&all->p[i]) > 0) {
            memcpy(to, all->p[i].gradient, (size_t)size_of(&all->p[i]) * sizeof(real));
        }
        to += size_of(&all->p[i]);
    }
}

/* --- the comparison --- */

/* Ratios are scaled so that small ones keep their digits in an exact sum. */
#define RATIO_SCALE 0x1p20

double moe_payload_error_of_y(const moe_payload_error *r,
                              const moe_context *context,
                              const real *y) {
    int64_t h = context->config->model.hidden_size;
    int64_t words[MOE_EXACT_WORDS + 1] = {0};
    for (int64_t t = 0; t < context->batch->num_tokens; t++) {
        double difference = 0, whole = 0;
        for (int64_t i = t * h; i < (t + 1) * h; i++) {
            double d = (double)y[i] - (double)r->y[i];
            difference += d * d;
            whole += (double)r->y[i] * (double)r->y[i];
        }
        if (whole > 0 && isfinite(difference / whole)) {
            moe_exact_add(words, fmin(difference / whole * RATIO_SCALE, 0x1p40));
            words[MOE_EXACT_WORDS]++;
        }
    }
    moe_comm_sum_i64(context->comm, words, MOE_EXACT_WORDS + 1);
    int64_t tokens = words[MOE_EXACT_WORDS];
    return tokens ? sqrt(moe_exact_value(words) / RATIO_SCALE / (double)tokens) : 0;
}

/* Lets every parameter have the kept gradient in place of its own, or its own again. */
static void swap_gradients(const moe_payload_error *r, moe_parameters *all, real **own, bool back) {
    real *at = r->gradient;
    for (int i = 0; i < all->num; i++) {
        if (!back) {
            own[i] = all->p[i].gradient;
        }
        all->p[i].gradient = back ? own[i] : at;
        at += size_of(&all->p[i]);
    }
}

double moe_payload_error_of_gradient(const moe_payload_error *r,
                                     moe_parameters *all,
                                     const moe_comm *comm) {
    const char *worst;
    real **own = moe_alloc(all->num, sizeof *own, "gradients in fp32");
    swap_gradients(r, all, own, false);
    double whole = moe_parameters_gradient_norm(all, comm, &worst);
    for (int i = 0; i < all->num; i++) {
        for (int64_t j = 0; j < size_of(&all->p[i]); j++) {
            all->p[i].gradient[j] = own[i][j] - all->p[i].gradient[j];
        }
    }
    double difference = moe_parameters_gradient_norm(all, comm, &worst);
    swap_gradients(r, all, own, true);
    moe_free(own);
    return whole > 0 ? difference / whole : 0;
}
