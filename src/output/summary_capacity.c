/* summary_capacity.c: the object `capacity` of a layer in summary.json: the rule as words, and what
 * it dropped, saved and wasted. */
#include "config/table.h"
#include "output/summary_internal.h"

static void put_name(json_t *o, const char *name, enum moe_key_id key, int value) {
    moe_json_put(o, name, json_string(moe_config_enum_name(key, value)));
}

static void put_rule(json_t *o, const moe_config *c) {
    put_name(o, "policy", MOE_KEY(capacity, policy), c->capacity.policy);
    put_name(o, "scope", MOE_KEY(capacity, capacity_scope), c->capacity.capacity_scope);
    put_name(o, "drop", MOE_KEY(capacity, drop),
             c->capacity.policy == MOE_CAPACITY_SEQUENCE ? MOE_DROP_POSITION : c->capacity.drop);
    put_name(o, "overflow", MOE_KEY(capacity, overflow), c->capacity.overflow);
    put_name(o, "rounding", MOE_KEY(capacity, rounding), c->capacity.rounding);
}

json_t *moe_summary_capacity(const moe_config *c,
                             const moe_step_metrics *m,
                             const moe_layer_metrics *l) {
    const moe_capacity_metrics *k = &l->capacity;
    json_t *o = json_object();
    put_rule(o, c);
    moe_json_put(o, "capacity", k->capacity == INT64_MAX ? json_null() : json_integer(k->capacity));
    moe_json_put(o, "dropped", json_integer(l->dropped));
    moe_json_put(o, "dropped_tokens", json_integer(k->dropped_tokens));
    moe_json_put(o, "fully_dropped_tokens", json_integer(k->fully_dropped_tokens));
    moe_json_put(o, "dropped_per_expert", moe_json_integers(l->dropped_per_expert, m->num_experts));
    moe_json_put(o, "dropped_per_device", moe_json_integers(l->dropped_per_device, m->devices));
    moe_json_put(o, "dropped_sequences", json_integer(k->dropped_sequences));
    moe_json_put(o, "dropped_per_sequence",
                 k->num_sequences > 0 ? moe_json_integers(k->dropped_per_sequence, k->num_sequences)
                                      : json_null());
    moe_json_put(o, "reassigned", json_integer(k->reassigned));
    moe_json_put(o, "exempt_overflow", json_integer(k->exempt_overflow));
    moe_json_put(o, "rows_saved", json_integer(k->rows_saved));
    moe_json_put(o, "bytes_saved", json_integer(k->bytes_saved));
    moe_json_put(o, "padding_rows", json_integer(k->padding_rows));
    moe_json_put(o, "padding_bytes", json_integer(k->padding_bytes));
    return o;
}
