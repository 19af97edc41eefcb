/* show_exchange.c: the chosen experts and their weights, what was dropped, the rows, and
 * what came back. */
#include <math.h>
#include <stdio.h>

#include "base/status.h"
#include "explain/show_internal.h"
#include "router/methods.h"

/* --- choices and weights --- */

static void print_choice_rule(const moe_screen *s,
                              const moe_config *c,
                              const moe_explained_layer *l) {
    const char *of = l->num_groups ? " of the admitted" : "";
    const moe_method *method = &moe_methods[c->router.method];
    if (moe_config_recorded(c)) {
        moe_screen_wrapped(s, 2, "", "chosen: as recorded");
    } else if (c->router.method == MOE_METHOD_TOP_P) {
        moe_screen_wrapped(s, 2, "",
                           "chosen: the best, until their scores add up to more than router.top_p "
                           "= %g; at most %d",
                           c->router.top_p, c->router.top_k);
    } else if (method->chooses_best) {
        moe_screen_wrapped(s, 2, "", "chosen: the top_k = %d best%s", c->router.top_k, of);
    } else {
        moe_screen_wrapped(s, 2, "", "chosen: %s", method->rule);
    }
}

static void print_weight_formula(const moe_screen *s, const moe_explained_layer *l) {
    char factor[48] = "";
    if (!l->has_logits || l->num_choices == 0) {
        return;
    }
    if (l->weight_factor != 1) {
        snprintf(factor, sizeof factor, " x %g", l->weight_factor);
    }
    if (l->weight_divisor == 1) {
        moe_screen_wrapped(s, 2, "", "weights: g = s%s, not normalised over the chosen", factor);
    } else {
        moe_screen_wrapped(s, 2, "", "weights: g = s / sum of the chosen s%s, the sum being %.6f",
                           factor, l->weight_divisor);
    }
}

static const moe_table choice_table = {78, {{25, 10}, {8, 7}}}, output_table = {66, {{20, 11}}};

static bool is_moved(const moe_explained_choice *k) {
    return k->server >= 0 && k->server != k->expert;
}

static void print_choice(const moe_screen *s,
                         const moe_explained_layer *l,
                         const moe_explained_choice *k) {
    char end[64] = "";
    if (k->server < 0) {
        snprintf(end, sizeof end, "  dropped");
    } else if (is_moved(k)) {
        snprintf(end, sizeof end, "  -> expert %d (dev %d)", k->server, k->served_on);
    }
    moe_screen_row(s, &choice_table, "  %6d %6d %9s %9s %9.6f %9s%s\n", k->expert, k->device,
                   l->has_scores ? moe_format_number(k->score, 6).s : "-",
                   l->has_logits ? moe_format_number(k->selection, 6).s : "-", k->weight,
                   k->server < 0 ? "-" : moe_format_number(k->sent_weight, 6).s, end);
}

static const char *order_rule(const moe_config *c) {
    if (c->capacity.policy == MOE_CAPACITY_SEQUENCE || c->capacity.drop == MOE_DROP_POSITION) {
        return "earlier tokens first";
    }
    if (c->capacity.drop == MOE_DROP_BATCH_PRIORITY) {
        return "tokens with the higher best score first";
    }
    if (c->capacity.drop == MOE_DROP_SCORES || c->capacity.policy == MOE_CAPACITY_DEVICE) {
        return "higher scores first";
    }
    return "higher weights first";
}

static void print_places(const moe_screen *s, const moe_config *c, const moe_explained_layer *l) {
    bool device = c->capacity.policy == MOE_CAPACITY_DEVICE;
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return;
    }
    moe_screen_wrapped(s, 2, "", "capacity: %s%s%s",
                       c->capacity.first_choices ? "first choices first, among them " : "",
                       order_rule(c),
                       l->exempt ? "; the token's sequence is exempt and loses nothing" : "");
    for (int32_t i = 0; i < l->num_choices; i++) {
        const moe_explained_choice *k = &l->choice[i];
        char then[96] = "";
        if (is_moved(k)) {
            snprintf(then, sizeof then,
                     "no room; expert %d, the token's next best with room, takes it", k->server);
        } else {
            snprintf(then, sizeof then, "%s", k->server < 0 ? "dropped" : "kept");
        }
        moe_screen_wrapped(s, 4, "", "%s %d: no. %s of %s pair%s, room for %s: %s",
                           device ? "device" : "expert", device ? k->device : k->expert,
                           moe_format_count(k->place).s, moe_format_count(k->wanted).s,
                           k->wanted == 1 ? "" : "s",
                           k->budget == INT64_MAX ? "all" : moe_format_count(k->budget).s, then);
    }
}

void moe_explain_show_choices(const moe_screen *s,
                              const moe_config *c,
                              const moe_explained_layer *l) {
    fputc('\n', s->out);
    if (l->num_choices == 0) {
        moe_screen_wrapped(s, 2, "", "no expert is chosen: nothing is sent");
        return;
    }
    print_choice_rule(s, c, l);
    print_weight_formula(s, l);
    moe_screen_row(s, &choice_table, "  %6s %6s %9s %9s %9s %9s\n", "expert", "device", "score s",
                   "ranked by", "weight g", "sent with");
    for (int32_t k = 0; k < l->num_choices; k++) {
        print_choice(s, l, &l->choice[k]);
    }
    print_places(s, c, l);
}

/* --- rows --- */

/* The experts of devices first .. first + count - 1. */
static void list_pairs(const moe_explained_layer *l,
                       int32_t first,
                       int32_t count,
                       char *text,
                       size_t size) {
    size_t length = 0;
    text[0] = 0;
    for (int32_t k = 0; k < l->num_choices && length + 16 < size; k++) {
        if (l->choice[k].served_on >= first && l->choice[k].served_on < first + count) {
            length += (size_t)snprintf(text + length, size - length, "%s%d", length ? ", " : "",
                                       l->choice[k].server);
        }
    }
}

/* The experts of a row. */
static void list_experts(const moe_config *c,
                         const moe_explained_layer *l,
                         const moe_explained_row *r,
                         char *text,
                         size_t size) {
    const int32_t per_node = c->cluster.devices_per_node;
    if (c->exchange.mode == MOE_EXCHANGE_SELECTION) {
        snprintf(text, size, "%d", r->expert);
    } else if (c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL && r->hop == 0) {
        list_pairs(l, r->device - r->device % per_node, per_node, text, size);
    } else {
        list_pairs(l, r->device, 1, text, size);
    }
}

static const char *way_of_rows(const moe_config *c) {
    static const char *const ways[] = {[MOE_EXCHANGE_SELECTION] = "one to each expert",
                                       [MOE_EXCHANGE_TOKEN] = "one to each device",
                                       [MOE_EXCHANGE_TWO_LEVEL] =
                                           "one to each node, then one to each device there"};
    return ways[c->exchange.mode];
}

/* How many rows come back, and what is said of them. */
static const char *way_back(const moe_config *c,
                            const moe_explained_layer *l,
                            char *text,
                            size_t size) {
    int32_t last = 0;
    for (int32_t i = 0; i < l->num_rows; i++) {
        last += l->row[i].hop;
    }
    if (c->exchange.mode != MOE_EXCHANGE_TWO_LEVEL || c->exchange.node_sum) {
        return "the same payload comes back";
    }
    snprintf(text, size, "%d rows come back, one of each device through both hops", 2 * last);
    return text;
}

void moe_explain_show_rows(const moe_screen *s,
                           const moe_config *c,
                           const moe_explanation *e,
                           const moe_explained_layer *l) {
    static const char *const level[MOE_NUM_LEVELS] = {"stays", "same node", "other node"};
    int64_t bytes = 0;
    int64_t metadata = 0;
    int64_t remote = 0;
    char back[96];
    fputc('\n', s->out);
    if (l->num_rows == 0) {
        if (l->num_choices > 0) {
            moe_screen_wrapped(s, 2, "", "rows: none; every choice was dropped");
        }
        return;
    }
    moe_screen_wrapped(s, 2, "", "rows: %s; from device %d", way_of_rows(c), e->device);
    fprintf(s->out, "  %9s %5s %-10s %10s %10s  experts\n", "to device", "rank", "level", "payload",
            "metadata");
    for (int32_t i = 0; i < l->num_rows; i++) {
        const moe_explained_row *r = &l->row[i];
        char pairs[256];
        list_experts(c, l, r, pairs, sizeof pairs);
        char label[160], to[32];
        if (r->hop > 0) {
            snprintf(to, sizeof to, "%d > %d", r->from, r->device);
        } else {
            snprintf(to, sizeof to, "%d", r->device);
        }
        snprintf(label, sizeof label, "  %9s %5d %-10s %10s %10s ", to, r->rank, level[r->level],
                 moe_format_bytes(r->bytes).s, moe_format_bytes(r->metadata_bytes).s);
        moe_screen_wrapped(s, 52, label, "%s", pairs);
        bytes += r->bytes;
        metadata += r->metadata_bytes;
        remote += r->level == MOE_LEVEL_DEVICE ? 0 : r->bytes;
    }
    moe_screen_wrapped(
        s, 2, "", "%d row%s, %s and %s of metadata there (%s to others); %s%s", l->num_rows,
        l->num_rows == 1 ? "" : "s", moe_format_glued(moe_format_bytes(bytes)).s,
        moe_format_glued(moe_format_bytes(metadata)).s,
        moe_format_glued(moe_format_bytes(remote)).s, way_back(c, l, back, sizeof back),
        l->has_task ? ", and both again for the gradients" : "");
}

/* --- what comes back --- */

static void print_returned(const moe_screen *s,
                           const char *name,
                           double norm,
                           const char *weight,
                           double contribution,
                           double share) {
    char part[16] = "-";
    if (!isnan(share)) {
        snprintf(part, sizeof part, "%.1f %%", fabs(share) < 5e-4 ? 0 : 100 * share);
    }
    moe_screen_row(s, &output_table, "  %-18s %10s %10s %12s %10s\n", name,
                   moe_explain_show_number(norm).s, weight, moe_explain_show_number(contribution).s,
                   part);
}

void moe_explain_show_outputs(const moe_screen *s,
                              const moe_config *c,
                              const moe_explained_layer *l) {
    bool shared = !isnan(l->shared_norm);
    fputc('\n', s->out);
    if (l->num_rows == 0 && !shared) {
        moe_screen_wrapped(s, 2, "", "nothing comes back: y = 0%s",
                           isnan(l->residual_norm) ? ""
                                                   : "; the residual alone carries the token on");
        return;
    }
    moe_screen_wrapped(s, 2, "", "what comes back: y = sum of g FFN(u)%s; |x| = %s",
                       shared ? " + shared experts" : "", moe_explain_show_number(l->x_norm).s);
    if (c->model.norm != MOE_NORM_NONE) {
        moe_screen_wrapped(s, 2, "", "u = rmsnorm(x), |u| = %s",
                           moe_explain_show_number(l->u_norm).s);
    }
    moe_screen_row(s, &output_table, "  %-18s %10s %10s %12s %10s\n", "", "|FFN(u)|", "weight g",
                   "|g FFN(u)|", "part of y");
    for (int32_t i = 0; i < l->num_choices; i++) {
        const moe_explained_choice *k = &l->choice[i];
        char name[32];
        snprintf(name, sizeof name, "expert %d", k->server);
        if (k->server >= 0) {
            print_returned(s, name, k->output_norm, moe_explain_show_number(k->sent_weight).s,
                           k->contribution, k->share);
        }
    }
    if (shared) {
        print_returned(s, "shared experts", l->shared_norm, "1", l->shared_norm, l->shared_share);
    }
    moe_screen_row(s, &output_table, "  %-18s %10s %10s %12s\n", "y", "", "",
                   moe_explain_show_number(l->y_norm).s);
    if (!isnan(l->residual_norm)) {
        moe_screen_row(s, &output_table, "  %-18s %10s %10s %12s\n", "y + x (residual)", "", "",
                       moe_explain_show_number(l->residual_norm).s);
    }
    moe_screen_wrapped(
        s, 2, "", "part of y: <g FFN(u), y> / <y, y>; the sum is y to within %s in every element",
        moe_explain_show_number(l->gap).s);
}
