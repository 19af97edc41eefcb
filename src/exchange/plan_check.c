/* plan_check.c: a plan against the routing that it was built from. It shares no code with what
 * built it. */
#include "base/status.h"
#include "exchange/plan.h"

/* Whether an expert of a row that stops at `stop` can be served from there: on that device, or in
 * the first of two hops on any device of its node. */
static bool can_serve(const moe_plan *plan,
                      const moe_placement *placement,
                      int32_t expert,
                      int32_t stop) {
    int32_t count = plan->format->several_devices ? plan->devices_per_node : 1,
            first = stop - stop % count;
    bool found = false;
    for (int32_t d = first; d < first + count; d++) {
        found = found || moe_placement_slot_on(placement, expert, d) >= 0;
    }
    return found;
}

/* The parts of row r: ascending devices of its node, of which each has one of its experts. */
static const char *check_parts(const moe_plan *plan, const moe_placement *placement, int64_t r) {
    if (!plan->format->several_devices) {
        return NULL;
    }
    int64_t begin = plan->row_part[r], end = plan->row_part[r + 1];
    if (end <= begin || end - begin > plan->row_pair[r + 1] - plan->row_pair[r]) {
        return "a row has too few or too many devices";
    }
    for (int64_t part = begin; part < end; part++) {
        int32_t d = plan->part_device[part];
        bool serves = false;
        if (d / plan->devices_per_node != plan->row_device[r] / plan->devices_per_node ||
            (part > begin && d <= plan->part_device[part - 1])) {
            return "the devices of a row are not ascending devices of its node";
        }
        for (int64_t p = plan->row_pair[r]; p < plan->row_pair[r + 1]; p++) {
            serves = serves || moe_placement_slot_on(placement, plan->pair_expert[p], d) >= 0;
        }
        if (!serves) {
            return "a row goes on to a device that has none of its experts";
        }
    }
    return NULL;
}

static const char *check_row(const moe_plan *plan,
                             const moe_placement *placement,
                             const moe_routing *routing,
                             int64_t r,
                             uint8_t *seen) {
    int64_t begin = plan->row_pair[r], end = plan->row_pair[r + 1];
    int32_t t = plan->row_token[r];
    if (end <= begin) {
        return "a row has no expert";
    }
    if (!plan->format->several_pairs && end != begin + 1) {
        return "a row of mode selection has several experts";
    }
    if (t < 0 || t >= plan->num_tokens) {
        return "a row names a token that does not exist";
    }
    for (int64_t p = begin; p < end; p++) {
        int64_t s = plan->pair_selection[p];
        if (s < routing->row_offset[t] || s >= routing->row_offset[t + 1]) {
            return "a pair belongs to another token";
        }
        if (seen[s]++) {
            return "a selection is sent twice";
        }
        if (routing->expert[s] != plan->pair_expert[p]) {
            return "a pair names another expert than the routing";
        }
        if (!can_serve(plan, placement, plan->pair_expert[p], plan->row_device[r])) {
            return "a pair goes to a device without its expert";
        }
        if (p > begin && !plan->format->several_devices &&
            plan->pair_expert[p] <= plan->pair_expert[p - 1]) {
            return "experts of a row are not ascending";
        }
    }
    return check_parts(plan, placement, r);
}

static const char *check_token_rows(const moe_plan *plan, int64_t t) {
    for (int64_t i = plan->token_row_offset[t]; i < plan->token_row_offset[t + 1]; i++) {
        int64_t r = plan->token_row[i],
                before = i > plan->token_row_offset[t] ? plan->token_row[i - 1] : -1;
        if (plan->row_token[r] != t) {
            return "a token lists another token's row";
        }
        if (before < 0) {
            continue;
        }
        int32_t d = plan->row_device[r], last = plan->row_device[before];
        bool repeats = !plan->format->several_pairs && d == last;
        if (d < last || (d == last && !repeats)) {
            return "a token's rows are not in ascending order of devices";
        }
        if (repeats &&
            plan->pair_expert[plan->row_pair[r]] <= plan->pair_expert[plan->row_pair[before]]) {
            return "a token's rows are not in ascending order of experts";
        }
    }
    return NULL;
}

const char *moe_plan_check(const moe_plan *plan,
                           const moe_placement *placement,
                           const moe_routing *routing) {
    if (plan->num_pairs != routing->num_selections) {
        return "not every selection is planned exactly once";
    }
    if (plan->token_row_offset[plan->num_tokens] != plan->num_rows) {
        return "not every row belongs to a token";
    }
    uint8_t *seen = moe_alloc_zero(routing->num_selections + 1, 1, "plan check");
    const char *wrong = NULL;
    for (int64_t r = 0; r < plan->num_rows && !wrong; r++) {
        wrong = check_row(plan, placement, routing, r, seen);
    }
    for (int64_t t = 0; t < plan->num_tokens && !wrong; t++) {
        wrong = check_token_rows(plan, t);
    }
    for (int32_t q = 0; q < plan->ranks && !wrong; q++) {
        for (int64_t r = plan->rank_row[q]; r < plan->rank_row[q + 1] && !wrong; r++) {
            if (plan->row_device[r] / plan->num_local != q) {
                wrong = "a row stands in another rank's block";
            }
        }
    }
    moe_free(seen);
    return wrong;
}
