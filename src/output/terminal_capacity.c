/* terminal_capacity.c: what the capacity dropped, and what that saved or wasted. */
#include <stddef.h>

#include "base/alloc.h"
#include "config/config.h"
#include "config/table.h"
#include "output/chart.h"
#include "output/terminal_internal.h"

static void print_dropped(const moe_screen *s,
                          const moe_config *c,
                          const moe_step_metrics *m,
                          const moe_figures *f) {
    char capacity[112];
    if (f->capacity.capacity == INT64_MAX) {
        snprintf(capacity, sizeof capacity, "as much as is needed");
    } else {
        snprintf(capacity, sizeof capacity, "%s pairs per %s%s",
                 moe_format_glued(moe_format_count(f->capacity.capacity)).s,
                 c->capacity.policy == MOE_CAPACITY_DEVICE     ? "device"
                 : c->capacity.policy == MOE_CAPACITY_SEQUENCE ? "expert and sequence"
                                                               : "expert",
                 c->run.mode == MOE_MODE_TRAIN && c->train.accumulate > 1 ? " and micro-batch"
                                                                          : "");
    }
    moe_screen_wrapped(
        s, 2, "", "%s: dropped %s of %s pairs (%s %%); %s tokens lost a pair, %s of %s all of them",
        capacity, moe_format_glued(moe_format_count(f->dropped)).s,
        moe_format_glued(moe_format_count(f->selections)).s,
        moe_format_number(f->selections ? 100.0 * (double)f->dropped / (double)f->selections : 0, 2)
            .s,
        moe_format_glued(moe_format_count(f->capacity.dropped_tokens)).s,
        moe_format_glued(moe_format_count(f->capacity.fully_dropped_tokens)).s,
        moe_format_glued(moe_format_count(m->num_tokens * m->num_layers)).s);
}

/* --- by expert, device and sequence --- */

enum { MOST_LISTED = 8 };

/* Writes the largest of x [n] as "6 (45), 12 (21) and 3 more"; "" when all are 0. */
static void list_largest(const int64_t *x, int64_t n, char *text, size_t size) {
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
    for (int64_t i = 0; i < count && used < size; i++) {
        used += (size_t)snprintf(text + used, size - used, "%s%lld (%s)", i ? ", " : "",
                                 (long long)listed[i],
                                 moe_format_glued(moe_format_count(x[listed[i]])).s);
    }
    if (positive > count && used < size) {
        snprintf(text + used, size - used, " and %lld more", (long long)(positive - count));
    }
}

/* One of the layers' arrays of n counts of dropped pairs, summed over the layers. */
static void print_largest(const moe_screen *s,
                          const moe_step_metrics *m,
                          const char *what,
                          size_t member,
                          int64_t n) {
    char text[512];
    int64_t *sum = moe_alloc(n, sizeof *sum, "a sum over layers");
    moe_figures_sum_layers(m, member, n, sum);
    list_largest(sum, n, text, sizeof text);
    if (text[0]) {
        moe_screen_wrapped(s, 2, "", "dropped pairs by %s, most first: %s", what, text);
    }
    moe_free(sum);
}

static void print_where(const moe_screen *s, const moe_step_metrics *m) {
    int64_t sequences = m->layer[0].capacity.num_sequences; /* 0 where they are not listed */
    print_largest(s, m, "expert", offsetof(moe_layer_metrics, dropped_per_expert), m->num_experts);
    print_largest(s, m, "device", offsetof(moe_layer_metrics, dropped_per_device), m->devices);
    if (sequences > 0) {
        print_largest(s, m, "sequence", offsetof(moe_layer_metrics, capacity.dropped_per_sequence),
                      sequences);
    }
}

static void print_rest(const moe_screen *s, const moe_config *c, const moe_figures *f) {
    moe_screen_wrapped(s, 2, "", "saved %s rows, %s of dispatch and combine",
                       moe_format_glued(moe_format_count(f->capacity.rows_saved)).s,
                       moe_format_glued(moe_format_bytes(f->capacity.bytes_saved)).s);
    if (c->capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE) {
        moe_screen_wrapped(s, 2, "", "%s pairs went to another expert",
                           moe_format_glued(moe_format_count(f->capacity.reassigned)).s);
    }
    if (c->capacity.exempt_sequences > 0) {
        moe_screen_wrapped(s, 2, "", "%s pairs of exempt sequences are kept beyond a budget",
                           moe_format_glued(moe_format_count(f->capacity.exempt_overflow)).s);
    }
    if (c->capacity.pad_to_capacity) {
        moe_screen_wrapped(s, 2, "",
                           "padding to the capacity wastes %s rows, %s of dispatch and combine",
                           moe_format_glued(moe_format_count(f->capacity.padding_rows)).s,
                           moe_format_glued(moe_format_bytes(f->capacity.padding_bytes)).s);
    }
}

void moe_terminal_capacity(const moe_screen *s,
                           const moe_config *c,
                           const moe_step_metrics *m,
                           const moe_figures *f) {
    if (c->capacity.policy == MOE_CAPACITY_NONE) {
        return;
    }
    moe_screen_heading(s, "Capacity (policy %s)%s",
                       moe_config_enum_name(MOE_KEY(capacity, policy), c->capacity.policy),
                       moe_terminal_layers(m, "sum").s);
    print_dropped(s, c, m, f);
    print_where(s, m);
    print_rest(s, c, f);
}
