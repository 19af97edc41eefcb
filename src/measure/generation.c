/* generation.c: prefill beside decode. */
#include "measure/generation.h"

const char *const moe_pass_names[MOE_NUM_PASSES] = {
    [MOE_PASS_PREFILL] = "prefill",
    [MOE_PASS_DECODE] = "decode",
};

moe_pass_traffic moe_pass_traffic_of(const moe_step_metrics *step) {
    moe_pass_traffic t = {.steps = 1, .tokens = step->num_tokens, .seconds = step->seconds};
    for (int32_t l = 0; l < step->num_layers; l++) {
        const moe_layer_metrics *m = &step->layer[l];
        const moe_volume *out = &m->volume[MOE_DISPATCH], *back = &m->volume[MOE_COMBINE];
        t.selections += m->selections;
        t.rows += out->rows;
        for (int32_t e = 0; e < step->num_experts; e++) {
            t.active += m->counts_per_expert[e] > 0;
        }
        for (int i = 0; i < MOE_NUM_LEVELS; i++) {
            t.by_level[i].rows += out->by_level[i].rows;
            t.by_level[i].bytes += out->by_level[i].bytes + back->by_level[i].bytes;
        }
    }
    return t;
}

void moe_generation_add(moe_generation_metrics *g, const moe_step_metrics *step) {
    const moe_pass_traffic one = moe_pass_traffic_of(step);
    moe_pass_traffic *t = &g->pass[moe_pass_of(step->step)];
    g->layers = step->num_layers;
    g->devices = step->devices;
    g->experts = step->num_experts;
    t->steps += one.steps;
    t->tokens += one.tokens;
    t->active += one.active;
    t->selections += one.selections;
    t->rows += one.rows;
    t->seconds += one.seconds;
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        t->by_level[i].rows += one.by_level[i].rows;
        t->by_level[i].bytes += one.by_level[i].bytes;
    }
}

moe_pass_figures moe_pass_figures_of(const moe_pass_traffic *t, int32_t layers, int32_t devices) {
    const double steps = (double)t->steps; /* 0 steps: every quotient is 0 / 0 */
    moe_pass_figures f = {
        .tokens = (double)t->tokens / steps,
        .tokens_per_device = (double)t->tokens / steps / devices,
        .active_experts = (double)t->active / steps / layers,
        .rows_per_expert = (double)t->selections / (double)t->active,
        .rows_per_token = (double)t->rows / ((double)t->tokens * layers),
        .seconds = t->seconds / steps,
    };
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        f.bytes_by_level[i] = (double)t->by_level[i].bytes / steps;
        f.bytes += f.bytes_by_level[i];
    }
    f.message_bytes = (f.bytes - f.bytes_by_level[MOE_LEVEL_DEVICE]) / (2.0 * layers * devices);
    return f;
}
