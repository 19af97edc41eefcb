/* over_steps.c: sums and extremes over the steps of a run. */
#include "output/over_steps.h"

#include <math.h>

#include "base/alloc.h"
#include "measure/drift.h"
#include "measure/imbalance.h"
#include "output/format.h"
#include "output/json.h"

/* --- peaks --- */

static void add(moe_peak *peak, double ratio, int64_t step, int32_t layer) {
    if (peak->count == 0 || ratio > peak->worst) {
        peak->worst = ratio;
        peak->worst_step = step;
        peak->worst_layer = layer;
    }
    peak->sum += ratio;
    peak->count++;
}

void moe_peak_add_devices(moe_peak *peak, const moe_step_metrics *step) {
    for (int32_t l = 0; l < step->num_layers; l++) {
        add(peak, moe_imbalance_max_over_mean(step->layer[l].counts_per_device, step->devices),
            step->step, l);
    }
}

/* --- together --- */

static void add_drift(moe_over_steps *o, double drift, int64_t step) {
    if (step == 1 || drift > o->drift_worst) {
        o->drift_worst = drift;
        o->drift_worst_step = step;
    }
    o->drift_mean = step == 1 ? drift : o->drift_mean + drift;
}

moe_over_steps moe_over_steps_of(const int64_t *load,
                                 int64_t steps,
                                 int32_t layers,
                                 int64_t num_experts,
                                 const moe_peak *device) {
    moe_over_steps o = {.steps = steps,
                        .device = *device,
                        .drift_mean = NAN,
                        .drift_worst = NAN,
                        .first_to_last = NAN};
    const int64_t size = layers * num_experts;
    double *first = moe_alloc_zero(3 * size, sizeof *first, "loads"), *before = first + size,
           *now = before + size;
    for (int64_t s = 0; s < steps; s++) {
        for (int64_t i = 0; i < size; i++) {
            before[i] = now[i];
            now[i] = (double)load[s * size + i];
            first[i] = s == 0 ? now[i] : first[i];
        }
        for (int32_t l = 0; l < layers; l++) {
            add(&o.expert,
                moe_imbalance_max_over_mean(load + s * size + l * num_experts, num_experts), s, l);
        }
        if (s > 0) {
            add_drift(&o, moe_drift(before, now, layers, num_experts), s);
        }
    }
    if (steps > 1) {
        o.drift_mean /= (double)(steps - 1);
        o.first_to_last = moe_drift(first, now, layers, num_experts);
    }
    moe_free(first);
    return o;
}

/* --- written and shown --- */

static json_t *peak_json(const moe_peak *peak, int64_t expected) {
    if (peak->count != expected) {
        return json_null();
    }
    json_t *object = json_object();
    moe_json_put(object, "mean", moe_json_number(peak->sum / (double)peak->count));
    moe_json_put(object, "worst", moe_json_number(peak->worst));
    moe_json_put(object, "worst_step", json_integer(peak->worst_step));
    moe_json_put(object, "worst_layer", json_integer(peak->worst_layer));
    return object;
}

json_t *moe_over_steps_json(const moe_over_steps *o, int32_t layers) {
    if (o->steps < 2) {
        return json_null();
    }
    json_t *object = json_object(), *drift = json_object();
    moe_json_put(drift, "step_mean", moe_json_number(o->drift_mean));
    moe_json_put(drift, "step_worst", moe_json_number(o->drift_worst));
    moe_json_put(drift, "worst_step", json_integer(o->drift_worst_step));
    moe_json_put(drift, "first_to_last", moe_json_number(o->first_to_last));
    moe_json_put(object, "expert_max_over_mean", peak_json(&o->expert, o->steps * layers));
    moe_json_put(object, "device_max_over_mean", peak_json(&o->device, o->steps * layers));
    moe_json_put(object, "drift", drift);
    return object;
}

static void show_peak(const moe_screen *s, const char *name, const moe_peak *peak, int32_t layers) {
    char layer[32] = "";
    if (layers > 1) {
        snprintf(layer, sizeof layer, ", layer %d", peak->worst_layer);
    }
    moe_screen_wrapped(s, 2, "",
                       "busiest %s over the mean: %s on average, %s at worst (step "
                       "%lld%s)\n",
                       name, moe_format_number(peak->sum / (double)peak->count, 3).s,
                       moe_format_number(peak->worst, 3).s, (long long)peak->worst_step, layer);
}

void moe_over_steps_show(const moe_screen *s, const moe_over_steps *o, int32_t layers) {
    if (s->quiet || o->steps < 2) {
        return;
    }
    moe_screen_heading(s, "Over all %lld steps", (long long)o->steps);
    if (o->device.count == o->steps * layers) {
        show_peak(s, "device", &o->device, layers);
    }
    show_peak(s, "expert", &o->expert, layers);
    moe_screen_wrapped(s, 2, "",
                       "the share of selections that other experts get than before: %s from one "
                       "step to the next (%s at most, into step %lld), %s from the first to the "
                       "last\n",
                       moe_format_number(o->drift_mean, 3).s,
                       moe_format_number(o->drift_worst, 3).s, (long long)o->drift_worst_step,
                       moe_format_number(o->first_to_last, 3).s);
}
