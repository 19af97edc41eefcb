/* explain_json.c: the numbers of an explanation under the names that the screen gives them. */
#include "moesim/explain_json.h"

#include "moesim/explain_show.h"
#include "moesim/summary.h"
#include "summary_parts.h"

static json_t *text(const char *s) {
    json_t *value = json_string(s);
    return value ? value : json_null();
}

static json_t *numbers(const double *x, int64_t n) {
    json_t *list = json_array();
    for (int64_t i = 0; i < n; i++)
        if (json_array_append_new(list, number(x[i])) != 0) moe_out_of_memory("the explanation", 0);
    return list;
}

/* --- the token --- */

static json_t *choice_object(const moe_config *c, const moe_explained_layer *l, const moe_explained_choice *k) {
    json_t *o = json_object();
    put(o, "expert", json_integer(k->expert));
    put(o, "device", json_integer(k->device));
    put(o, "score", l->has_scores ? number(k->score) : json_null());
    put(o, "selection", l->has_logits ? number(k->selection) : json_null());
    put(o, "weight", number(k->weight));
    put(o, "served_by", k->server < 0 ? json_null() : json_integer(k->server));
    put(o, "sent_weight", number(k->sent_weight));
    put(o, "output_norm", number(k->output_norm));
    put(o, "contribution_norm", number(k->contribution));
    put(o, "part_of_y", number(k->share));
    if (l->has_task) put(o, "weight_gradient", number(k->weight_gradient));
    if (c->capacity.policy == MOE_CAPACITY_NONE) return o;
    put(o, "room", k->room == INT64_MAX ? json_null() : json_integer(k->room));
    put(o, "wanted", json_integer(k->wanted));
    put(o, "place", json_integer(k->place));
    return o;
}

static json_t *row_object(const moe_explained_row *r) {
    json_t *o = json_object();
    put(o, "device", json_integer(r->device));
    put(o, "rank", json_integer(r->rank));
    put(o, "level", text(moe_level_names[r->level]));
    put(o, "pairs", json_integer(r->pairs));
    put(o, "first_expert", json_integer(r->expert));
    put(o, "bytes", json_integer(r->bytes));
    put(o, "metadata_bytes", json_integer(r->metadata_bytes));
    return o;
}

static json_t *losses_object(const moe_explained_layer *l) {
    json_t *all = json_object();
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        json_t *o = json_object();
        put(o, "batch", number(l->loss[i].batch));
        put(o, "share", number(l->loss[i].share));
        put(o, "alpha", number(l->loss[i].alpha));
        put(all, moe_loss_names[i], o);
    }
    return all;
}

static json_t *gradient_object(const moe_explained_layer *l) {
    json_t *o = json_object();
    for (int i = 0; i < MOE_NUM_LOSSES; i++)
        if (l->loss[i].alpha != 0) put(o, moe_loss_names[i], numbers(l->gradient + (int64_t)i * l->num_experts, l->num_experts));
    put(o, "balance", numbers(l->balance_gradient, l->num_experts));
    if (!l->has_task) return o;
    put(o, "task", numbers(l->task_gradient, l->num_experts));
    put(o, "total", numbers(l->total_gradient, l->num_experts));
    put(o, "output_norm", number(l->gradient_norm));
    return o;
}

static json_t *output_object(const moe_explained_layer *l) {
    json_t *o = json_object();
    put(o, "x_norm", number(l->x_norm));
    put(o, "u_norm", number(l->u_norm));
    put(o, "shared_norm", number(l->shared_norm));
    put(o, "shared_part_of_y", number(l->shared_share));
    put(o, "y_norm", number(l->y_norm));
    put(o, "residual_norm", number(l->residual_norm));
    put(o, "largest_gap", number(l->gap));
    return o;
}

static json_t *groups_object(const moe_config *c, const moe_explained_layer *l) {
    json_t *o = json_object(), *admitted = json_array();
    if (l->num_groups == 0) {
        json_decref(o);
        json_decref(admitted);
        return json_null();
    }
    for (int32_t g = 0; g < l->num_groups; g++)
        if (l->admitted[g] == 1) json_array_append_new(admitted, json_integer(g));
    put(o, "rule", text(moe_config_enum_name("router.group_limit", c->router.group_limit)));
    put(o, "are_devices", json_boolean(l->num_groups == c->cluster.devices));
    put(o, "limit", json_integer(c->router.topk_group));
    put(o, "score", numbers(l->group_score, l->num_groups));
    put(o, "admitted", admitted);
    return o;
}

static json_t *layer_object(const moe_config *c, const moe_explained_layer *l) {
    json_t *o = json_object(), *choices = json_array(), *rows = json_array();
    for (int32_t i = 0; i < l->num_choices; i++)
        json_array_append_new(choices, choice_object(c, l, &l->choice[i]));
    for (int32_t i = 0; i < l->num_rows; i++)
        json_array_append_new(rows, row_object(&l->row[i]));
    put(o, "counted", json_boolean(l->counted));
    put(o, "counted_tokens", json_integer(l->counted_tokens));
    put(o, "logit", l->has_logits ? numbers(l->logit, l->num_experts) : json_null());
    put(o, "score", l->has_scores ? numbers(l->score, l->num_experts) : json_null());
    put(o, "selection", l->has_logits ? numbers(l->selection, l->num_experts) : json_null());
    put(o, "logsumexp", number(l->lse));
    put(o, "groups", groups_object(c, l));
    put(o, "weight_divisor", number(l->weight_divisor));
    put(o, "weight_factor", number(l->weight_factor));
    put(o, "choices", choices);
    put(o, "rows", rows);
    put(o, "output", output_object(l));
    put(o, "loss", l->has_scores ? losses_object(l) : json_null());
    put(o, "gradient", l->has_logits ? gradient_object(l) : json_null());
    return o;
}

/* The bytes before, of, and after the token, as the screen shows them. */
static json_t *text_object(const moe_explanation *e) {
    json_t *o = json_object();
    static const char *const names[3] = {"before", "token", "after"};
    const int begin[4] = {0, MOE_EXPLAINED_BYTES, MOE_EXPLAINED_BYTES + 1, 2 * MOE_EXPLAINED_BYTES + 1};
    for (int part = 0; part < 3; part++) {
        char shown[(MOE_EXPLAINED_BYTES + 1) * 4 + 1] = "";
        int length = 0;
        for (int i = begin[part]; i < begin[part + 1]; i++)
            if (e->byte[i] >= 0) length += moe_explain_byte(e->byte[i], shown + length);
        put(o, names[part], text(shown));
    }
    return o;
}

static json_t *token_object(const moe_config *c, const moe_explanation *e) {
    json_t *o = json_object(), *layers = json_array();
    for (int32_t l = 0; l < e->num_layers; l++)
        json_array_append_new(layers, layer_object(c, &e->layer[l]));
    put(o, "token", json_integer(e->token));
    put(o, "step", json_integer(e->step));
    put(o, "num_tokens", json_integer(e->num_tokens));
    put(o, "sequence", json_integer(e->sequence));
    put(o, "position", json_integer(e->position));
    put(o, "device", json_integer(e->device));
    put(o, "rank", json_integer(e->rank));
    put(o, "num_devices", json_integer(e->num_devices));
    put(o, "micro_batches", json_integer(e->micro_batches));
    put(o, "text", e->has_text ? text_object(e) : json_null());
    put(o, "layers", layers);
    return o;
}

/* --- the step --- */

static json_t *derived_list(const moe_derivation *d) {
    json_t *list = json_array();
    for (int32_t i = 0; i < d->count; i++) {
        const moe_derived *item = &d->item[i];
        json_t *o = json_object();
        put(o, "part", text(moe_derived_parts[item->part]));
        put(o, "layer", item->layer < 0 ? json_null() : json_integer(item->layer));
        put(o, "micro_batch", item->micro_batch < 0 ? json_null() : json_integer(item->micro_batch));
        put(o, "name", text(item->name));
        put(o, "formula", text(item->formula));
        char filled[sizeof item->filled];
        snprintf(filled, sizeof filled, "%s", item->filled);
        for (char *tab = filled; *tab; tab++)
            if (*tab == '\t') *tab = ' ';
        put(o, "filled", text(filled));
        put(o, "value", number(item->value));
        put(o, "reported", number(item->reported));
        put(o, "agrees", json_boolean(item->agrees));
        json_array_append_new(list, o);
    }
    return list;
}

char *moe_explain_json(const moe_config *c, const moe_explanation *e, const moe_derivation *d) {
    json_t *o = json_object();
    put(o, "version", text(MOESIM_VERSION));
    put(o, "token", e && e->seen == e->num_layers ? token_object(c, e) : json_null());
    put(o, "step", d ? derived_list(d) : json_null());
    char *all = moe_summary_indented(o);
    json_decref(o);
    return all;
}
