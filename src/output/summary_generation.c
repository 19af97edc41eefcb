/* summary_generation.c: prefill and decode as JSON. */
#include "output/summary.h"
#include "output/summary_internal.h"
#include "predict/generation.h"

static json_t *exchange_object(const moe_config *c, const moe_pass_figures *f) {
    const moe_pass_exchange x = moe_pass_exchange_of(c, f);
    json_t *o = json_object();
    moe_json_put(o, "latency_us", moe_json_number(1e6 * x.latency_seconds));
    moe_json_put(o, "transfer_us", moe_json_number(1e6 * x.transfer_seconds));
    return o;
}

/* Means over the steps of a pass. */
static json_t *pass_object(const moe_config *c, const moe_pass_traffic *t) {
    const moe_pass_figures f = moe_pass_figures_of(t, moe_config_moe_layers(c), c->cluster.devices);
    json_t *o = json_object(), *levels = json_object();
    moe_json_put(o, "tokens", moe_json_number(f.tokens));
    moe_json_put(o, "tokens_per_device", moe_json_number(f.tokens_per_device));
    moe_json_put(o, "active_experts", moe_json_number(f.active_experts));
    moe_json_put(o, "rows_per_expert", moe_json_number(f.rows_per_expert));
    moe_json_put(o, "rows_per_token", moe_json_number(f.rows_per_token));
    moe_json_put(o, "bytes", moe_json_number(f.bytes));
    for (int i = 0; i < MOE_NUM_LEVELS; i++) {
        moe_json_put(levels, moe_level_names[i], moe_json_number(f.bytes_by_level[i]));
    }
    moe_json_put(o, "bytes_by_level", levels);
    moe_json_put(o, "message_bytes", moe_json_number(f.message_bytes));
    moe_json_put(o, "exchange", exchange_object(c, &f));
    return o;
}

void moe_summary_put_generation(json_t *summary,
                                const moe_config *c,
                                const moe_generation_metrics *g) {
    json_t *o = json_object(), *times = json_object();
    moe_json_put(o, "sequences", json_integer(g->sequences));
    moe_json_put(o, "prompt_bytes", json_integer(g->prompt_bytes));
    moe_json_put(o, "new_bytes", json_integer(g->new_bytes));
    moe_json_put(o, "cache_places", json_integer(g->places));
    for (int i = 0; i < MOE_NUM_PASSES; i++) {
        const moe_pass_traffic *t = &g->pass[i];
        json_t *pass = pass_object(c, t);
        moe_json_put(pass, "steps", json_integer(t->steps));
        moe_json_put(o, moe_pass_names[i], pass);
        moe_json_put(times, moe_pass_names[i], moe_json_number(t->seconds / (double)t->steps));
    }
    moe_json_put(summary, "generate", o);
    moe_json_put(json_object_get(summary, "time"), "generate", times);
}

json_t *moe_summary_pass(const moe_config *c, const moe_step_metrics *step) {
    const moe_pass_traffic t = moe_pass_traffic_of(step);
    json_t *o = pass_object(c, &t);
    moe_json_put(o, "pass", moe_json_text(moe_pass_names[moe_pass_of(step->step)]));
    return o;
}
