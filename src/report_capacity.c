/* report_capacity.c: what the capacity dropped, and what that saved or wasted. */
#include "moesim/config_table.h"
#include "moesim/tensor.h"
#include "moesim/textgraph.h"
#include "report_parts.h"

/* Sums over layers; capacity is the last layer's. */
typedef struct sums {
    moe_capacity_record c;
    int64_t dropped, selections;
} sums;

static sums sum_layers(const moe_step_record *r) {
    sums a = {.dropped = 0};
    for (int32_t l = 0; l < r->num_layers; l++) {
        const moe_capacity_record *c = &r->layer[l].capacity;
        a.dropped += r->layer[l].dropped;
        a.selections += r->layer[l].selections;
        a.c.capacity = c->capacity;
        a.c.reassigned += c->reassigned;
        a.c.dropped_tokens += c->dropped_tokens;
        a.c.fully_dropped_tokens += c->fully_dropped_tokens;
        a.c.exempt_overflow += c->exempt_overflow;
        a.c.rows_saved += c->rows_saved;
        a.c.bytes_saved += c->bytes_saved;
        a.c.padding_rows += c->padding_rows;
        a.c.padding_bytes += c->padding_bytes;
    }
    return a;
}

static void print_dropped(const moe_screen *s, const moe_config *c, const moe_step_record *r, const sums *a) {
    char capacity[112];
    if (a->c.capacity == INT64_MAX)
        snprintf(capacity, sizeof capacity, "as much as is needed");
    else
        snprintf(capacity, sizeof capacity, "%s pairs per %s%s", moe_text_glued(moe_text_count(a->c.capacity)).s,
                 c->capacity.policy == MOE_CAPACITY_DEVICE     ? "device"
                 : c->capacity.policy == MOE_CAPACITY_SEQUENCE ? "expert and sequence"
                                                               : "expert",
                 c->run.mode == MOE_MODE_TRAIN && c->train.accumulate > 1 ? " and micro-batch" : "");
    moe_screen_wrapped(s, 2, "", "%s: dropped %s of %s pairs (%s %%); %s tokens lost a pair, %s of %s all of them", capacity,
                       moe_text_glued(moe_text_count(a->dropped)).s, moe_text_glued(moe_text_count(a->selections)).s,
                       moe_text_number(a->selections ? 100.0 * (double)a->dropped / (double)a->selections : 0, 2).s,
                       moe_text_glued(moe_text_count(a->c.dropped_tokens)).s, moe_text_glued(moe_text_count(a->c.fully_dropped_tokens)).s,
                       moe_text_glued(moe_text_count(r->num_tokens * r->num_layers)).s);
}

static void print_rest(const moe_screen *s, const moe_config *c, const sums *a) {
    moe_screen_wrapped(s, 2, "", "saved %s rows, %s of dispatch and combine", moe_text_glued(moe_text_count(a->c.rows_saved)).s,
                       moe_text_glued(moe_text_bytes(a->c.bytes_saved)).s);
    if (c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE)
        moe_screen_wrapped(s, 2, "", "%s pairs went to another expert", moe_text_glued(moe_text_count(a->c.reassigned)).s);
    if (c->capacity.exempt_sequences > 0)
        moe_screen_wrapped(s, 2, "", "%s pairs of exempt sequences are kept beyond a budget",
                           moe_text_glued(moe_text_count(a->c.exempt_overflow)).s);
    if (c->capacity.pad_to_capacity)
        moe_screen_wrapped(s, 2, "", "padding to the capacity wastes %s rows, %s of dispatch and combine",
                           moe_text_glued(moe_text_count(a->c.padding_rows)).s, moe_text_glued(moe_text_bytes(a->c.padding_bytes)).s);
}

void moe_report_capacity(const moe_screen *s, const moe_config *c, const moe_step_record *r) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) return;
    sums a = sum_layers(r);
    moe_screen_heading(s, "Capacity (policy %s)%s", moe_key_enum_name(moe_key_find("capacity", "policy"), c->capacity.policy),
                       moe_report_layers(r, "sum").s);
    print_dropped(s, c, r, &a);
    print_rest(s, c, &a);
}
