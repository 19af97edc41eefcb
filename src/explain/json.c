/* json.c: the numbers of an explanation under the names that the screen gives them. */
#include "explain/json.h"

#include <stdio.h>

#include "output/json.h"

/* --- the token --- */

static json_t *choice_object(const moe_config *c,
                             const moe_explained_layer *l,
                             const moe_explained_choice *k) {
    json_t *o = json_object();
    moe_json_put(o, "expert", json_integer(k->expert));
    moe_json_put(o, "device", json_integer(k->device));
    moe_json_put(o, "score", l->has_scores ? moe_json_number(k->score) : json_null());
    moe_json_put(o, "selection", l->has_logits ? moe_json_number(k->selection) : json_null());
    moe_json_put(o, "weight", moe_json_number(k->weight));
    moe_json_put(o, "served_by", k->server < 0 ? json_null() : json_integer(k->server));
    moe_json_put(o, "sent_weight", moe_json_number(k->sent_weight));
    moe_json_put(o, "output_norm", moe_json_number(k->output_norm));
    moe_json_put(o, "contribution_norm", moe_json_number(k->contribution));
    moe_json_put(o, "part_of_y", moe_json_number(k->share));
    if (l->has_task) {
        moe_json_put(o, "weight_gradient", moe_json_number(k->weight_gradient));
    }
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return o;
    }
    moe_json_put(o, "room", k->budget == INT64_MAX ? json_null() : json_integer(k->budget));
    moe_json_put(o, "wanted", json_integer(k->wanted));
    moe_json_put(o, "place", json_integer(k->place));
    return o;
}

static json_t *row_object(const moe_explained_row *r) {
    json_t *o = json_object();
    moe_json_put(o, "device", json_integer(r->device));
    moe_json_put(o, "rank", json_integer(r->rank));
    moe_json_put(o, "level", moe_json_text(moe_level_names[r->level]));
    moe_json_put(o, "pairs", json_integer(r->pairs));
    moe_json_put(o, "first_expert", json_integer(r->expert));
    moe_json_put(o, "bytes", json_integer(r->bytes));
    moe_json_put(o, "metadata_bytes", json_integer(r->metadata_bytes));
    return o;
}

static json_t *losses_object(const moe_explained_layer *l) {
    json_t *all = json_object();
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        json_t *o = json_object();
        moe_json_put(o, "batch", moe_json_number(l->loss[i].batch));
        moe_json_put(o, "share", moe_json_number(l->loss[i].share));
        moe_json_put(o, "alpha", moe_json_number(l->loss[i].alpha));
        moe_json_put(all, moe_loss_names[i], o);
    }
    return all;
}

static json_t *gradient_object(const moe_explained_layer *l) {
    json_t *o = json_object();
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        if (l->loss[i].alpha != 0) {
            moe_json_put(
                o, moe_loss_names[i],
                moe_json_numbers(l->gradient + (int64_t)i * l->num_experts, l->num_experts));
        }
    }
    moe_json_put(o, "balance", moe_json_numbers(l->balance_gradient, l->num_experts));
    if (!l->has_task) {
        return o;
    }
    moe_json_put(o, "task", moe_json_numbers(l->task_gradient, l->num_experts));
    moe_json_put(o, "total", moe_json_numbers(l->total_gradient, l->num_experts));
    moe_json_put(o, "output_norm", moe_json_number(l->gradient_norm));
    return o;
}

static json_t *output_object(const moe_explained_layer *l) {
    json_t *o = json_object();
    moe_json_put(o, "x_norm", moe_json_number(l->x_norm));
    moe_json_put(o, "u_norm", moe_json_number(l->u_norm));
    moe_json_put(o, "shared_norm", moe_json_number(l->shared_norm));
    moe_json_put(o, "shared_part_of_y", moe_json_number(l->shared_share));
    moe_json_put(o, "y_norm", moe_json_number(l->y_norm));
    moe_json_put(o, "residual_norm", moe_json_number(l->residual_norm));
    moe_json_put(o, "largest_gap", moe_json_number(l->gap));
    return o;
}

static json_t *groups_object(const moe_config *c, const moe_explained_layer *l) {
    json_t *o = json_object(), *admitted = json_array();
    if (l->num_groups == 0) {
        json_decref(o);
        json_decref(admitted);
        return json_null();
    }
    for (int32_t g = 0; g < l->num_groups; g++) {
        if (l->admitted[g] == 1) {
            json_array_append_new(admitted, json_integer(g));
        }
    }
    moe_json_put(
        o, "rule",
        moe_json_text(moe_config_enum_name(MOE_KEY(router, group_limit), c->router.group_limit)));
    moe_json_put(o, "are_devices", json_boolean(moe_config_groups_are_devices(c)));
    moe_json_put(o, "limit", json_integer(c->router.topk_group));
    moe_json_put(o, "score", moe_json_numbers(l->group_score, l->num_groups));
    moe_json_put(o, "admitted", admitted);
    return o;
}

static json_t *layer_object(const moe_config *c, const moe_explained_layer *l) {
    json_t *o = json_object();
    json_t *choices = json_array();
    json_t *rows = json_array();
    for (int32_t i = 0; i < l->num_choices; i++) {
        json_array_append_new(choices, choice_object(c, l, &l->choice[i]));
    }
    for (int32_t i = 0; i < l->num_rows; i++) {
        json_array_append_new(rows, row_object(&l->row[i]));
    }
    moe_json_put(o, "counted", json_boolean(l->counted));
    moe_json_put(o, "counted_tokens", json_integer(l->counted_tokens));
    moe_json_put(o, "logit",
                 l->has_logits ? moe_json_numbers(l->logit, l->num_experts) : json_null());
    moe_json_put(o, "score",
                 l->has_scores ? moe_json_numbers(l->score, l->num_experts) : json_null());
    moe_json_put(o, "selection",
                 l->has_logits ? moe_json_numbers(l->selection, l->num_experts) : json_null());
    moe_json_put(o, "logsumexp", moe_json_number(l->lse));
    moe_json_put(o, "groups", groups_object(c, l));
    moe_json_put(o, "weight_divisor", moe_json_number(l->weight_divisor));
    moe_json_put(o, "weight_factor", moe_json_number(l->weight_factor));
    moe_json_put(o, "choices", choices);
    moe_json_put(o, "rows", rows);
    moe_json_put(o, "output", output_object(l));
    moe_json_put(o, "loss", l->has_scores ? losses_object(l) : json_null());
    moe_json_put(o, "gradient", l->has_logits ? gradient_object(l) : json_null());
    return o;
}

/* The bytes before the token, its own, and those after it, as the screen shows them. */
static json_t *text_object(const moe_explanation *e) {
    json_t *o = json_object();
    static const char *const names[3] = {"before", "token", "after"};
    const int begin[4] = {0, MOE_EXPLAINED_BYTES, MOE_EXPLAINED_BYTES + 1,
                          2 * MOE_EXPLAINED_BYTES + 1};
    for (int i = 0; i < 3; i++) {
        char shown[(MOE_EXPLAINED_BYTES + 1) * 4 + 1] = "";
        int length = 0;
        for (int at = begin[i]; at < begin[i + 1]; at++) {
            if (e->byte[at] >= 0) {
                length += moe_explanation_byte(e->byte[at], shown + length);
            }
        }
        moe_json_put(o, names[i], moe_json_text(shown));
    }
    return o;
}

static json_t *token_object(const moe_config *c, const moe_explanation *e) {
    json_t *o = json_object(), *layers = json_array();
    for (int32_t l = 0; l < e->num_layers; l++) {
        json_array_append_new(layers, layer_object(c, &e->layer[l]));
    }
    moe_json_put(o, "token", json_integer(e->token));
    moe_json_put(o, "step", json_integer(e->step));
    moe_json_put(o, "num_tokens", json_integer(e->num_tokens));
    moe_json_put(o, "sequence", json_integer(e->sequence));
    moe_json_put(o, "position", json_integer(e->position));
    moe_json_put(o, "device", json_integer(e->device));
    moe_json_put(o, "rank", json_integer(e->rank));
    moe_json_put(o, "num_devices", json_integer(e->num_devices));
    moe_json_put(o, "micro_batches", json_integer(e->micro_batches));
    moe_json_put(o, "text", e->has_text ? text_object(e) : json_null());
    moe_json_put(o, "layers", layers);
    return o;
}

/* --- the step --- */

static json_t *derived_list(const moe_derivation *d) {
    json_t *list = json_array();
    for (int32_t i = 0; i < d->count; i++) {
        const moe_derived *item = &d->item[i];
        json_t *o = json_object();
        moe_json_put(o, "part", moe_json_text(moe_derived_sections[item->section]));
        moe_json_put(o, "layer", item->layer < 0 ? json_null() : json_integer(item->layer));
        moe_json_put(o, "micro_batch",
                     item->micro_batch < 0 ? json_null() : json_integer(item->micro_batch));
        moe_json_put(o, "name", moe_json_text(item->name));
        moe_json_put(o, "formula", moe_json_text(item->formula));
        char filled[sizeof item->filled];
        snprintf(filled, sizeof filled, "%s", item->filled);
        for (char *tab = filled; *tab; tab++) {
            if (*tab == '\t') {
                *tab = ' ';
            }
        }
        moe_json_put(o, "filled", moe_json_text(filled));
        moe_json_put(o, "value", moe_json_number(item->value));
        moe_json_put(o, "reported", moe_json_number(item->reported));
        moe_json_put(o, "agrees", json_boolean(item->agrees));
        json_array_append_new(list, o);
    }
    return list;
}

char *moe_explain_json(const moe_config *c, const moe_explanation *e, const moe_derivation *d) {
    json_t *o = json_object();
    moe_json_put(o, "version", moe_json_text(MOESIM_VERSION));
    moe_json_put(o, "token", e && e->seen == e->num_layers ? token_object(c, e) : json_null());
    moe_json_put(o, "step", d ? derived_list(d) : json_null());
    char *all = moe_json_indented(o);
    json_decref(o);
    return all;
}
