/* report_capacity.c: what the capacity dropped, and what that saved or wasted. */
#include "base/alloc.h"
#include "config/config.h"
#include "output/chart.h"
#include "output/terminal_internal.h"

/* Sums over layers; capacity is the last layer's. */
typedef struct sums {
    moe_capacity_metrics c;
    int64_t dropped, selections;
} sums;

static sums sum_layers(const moe_step_metrics *r) {
    sums a = {.dropped = 0};
    for (int32_t l = 0; l < r->num_layers; l++) {
        const moe_capacity_metrics *c = &r->layer[l].capacity;
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

static void print_dropped(const moe_screen *s,
                          const moe_config *c,
                          const moe_step_metrics *r,
                          const sums *a) {
    char capacity[112];
    if (a->c.capacity == INT64_MAX) {
        snprintf(capacity, sizeof capacity, "as much as is needed");
    } else {
        snprintf(capacity, sizeof capacity, "%s pairs per %s%s",
                 moe_format_glued(moe_format_count(a->c.capacity)).s,
                 c->capacity.policy == MOE_CAPACITY_DEVICE     ? "device"
                 : c->capacity.policy == MOE_CAPACITY_SEQUENCE ? "expert and sequence"
                                                               : "expert",
                 c->run.mode == MOE_MODE_TRAIN && c->train.accumulate > 1 ? " and micro-batch"
                                                                          : "");
    }
    moe_screen_wrapped(
        s, 2, "", "%s: dropped %s of %s pairs (%s %%); %s tokens lost a pair, %s of %s all of them",
        capacity, moe_format_glued(moe_format_count(a->dropped)).s,
        moe_format_glued(moe_format_count(a->selections)).s,
        moe_format_number(a->selections ? 100.0 * (double)a->dropped / (double)a->selections : 0, 2)
            .s,
        moe_format_glued(moe_format_count(a->c.dropped_tokens)).s,
        moe_format_glued(moe_format_count(a->c.fully_dropped_tokens)).s,
        moe_format_glued(moe_format_count(r->num_tokens * r->num_layers)).s);
}

/* --- by expert, device and sequence --- */

enum { MOST_LISTED = 8 };

/* The largest of x [n]: "6 (45), 12 (21) and 3 more"; "" when all are 0. */
static void list_largest(const int64_t *x, int64_t n, char *text, size_t room) {
    int64_t listed[MOST_LISTED], count = 0, positive = 0;
    size_t used = 0;
    text[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        if (x[i] == 0) {
            continue;
        }
        int64_t at = count < MOST_LISTED ? count++ : MOST_LISTED - 1;
        positive++;
        if (positive > MOST_LISTED && x[i] <= x[listed[at]]) {
            continue;
        }
        for (; at > 0 && x[listed[at - 1]] < x[i]; at--) {
            listed[at] = listed[at - 1];
        }
        listed[at] = i;
    }
    for (int64_t i = 0; i < count && used < room; i++) {
        used += (size_t)snprintf(text + used, room - used, "%s%lld (%s)", i ? ", " : "",
                                 (long long)listed[i],
                                 moe_format_glued(moe_format_count(x[listed[i]])).s);
    }
    if (positive > count && used < room) {
        snprintf(text + used, room - used, " and %lld more", (long long)(positive - count));
    }
}

static void add(int64_t *sum, const int64_t *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        sum[i] += x[i];
    }
}

static void print_largest(const moe_screen *s, const char *what, const int64_t *x, int64_t n) {
    char text[512];
    list_largest(x, n, text, sizeof text);
    if (text[0]) {
        moe_screen_wrapped(s, 2, "", "dropped pairs by %s, most first: %s", what, text);
    }
}

/* Sums over layers; sequences where they are listed. */
static void print_where(const moe_screen *s, const moe_step_metrics *r) {
    int64_t n = r->num_experts;
    int64_t d = r->devices;
    int64_t sequences = r->layer[0].capacity.num_sequences;
    int64_t *by_expert = moe_alloc_zero(n + d + sequences, sizeof *by_expert, "the report");
    int64_t *by_device = by_expert + n;
    int64_t *by_sequence = by_device + d;
    for (int32_t l = 0; l < r->num_layers; l++) {
        add(by_expert, r->layer[l].dropped_per_expert, n);
        add(by_device, r->layer[l].dropped_per_device, d);
        if (sequences > 0) {
            add(by_sequence, r->layer[l].capacity.dropped_per_sequence, sequences);
        }
    }
    print_largest(s, "expert", by_expert, n);
    print_largest(s, "device", by_device, d);
    print_largest(s, "sequence", by_sequence, sequences);
    moe_free(by_expert);
}

static void print_rest(const moe_screen *s, const moe_config *c, const sums *a) {
    moe_screen_wrapped(s, 2, "", "saved %s rows, %s of dispatch and combine",
                       moe_format_glued(moe_format_count(a->c.rows_saved)).s,
                       moe_format_glued(moe_format_bytes(a->c.bytes_saved)).s);
    if (c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE) {
        moe_screen_wrapped(s, 2, "", "%s pairs went to another expert",
                           moe_format_glued(moe_format_count(a->c.reassigned)).s);
    }
    if (c->capacity.exempt_sequences > 0) {
        moe_screen_wrapped(s, 2, "", "%s pairs of exempt sequences are kept beyond a budget",
                           moe_format_glued(moe_format_count(a->c.exempt_overflow)).s);
    }
    if (c->capacity.pad_to_capacity) {
        moe_screen_wrapped(s, 2, "",
                           "padding to the capacity wastes %s rows, %s of dispatch and combine",
                           moe_format_glued(moe_format_count(a->c.padding_rows)).s,
                           moe_format_glued(moe_format_bytes(a->c.padding_bytes)).s);
    }
}

void moe_terminal_capacity(const moe_screen *s, const moe_config *c, const moe_step_metrics *r) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return;
    }
    sums a = sum_layers(r);
    moe_screen_heading(s, "Capacity (policy %s)%s",
                       moe_config_enum_name(MOE_KEY(capacity, policy), c->capacity.policy),
                       moe_terminal_layers(r, "sum").s);
    print_dropped(s, c, r, &a);
    print_where(s, r);
    print_rest(s, c, &a);
}
