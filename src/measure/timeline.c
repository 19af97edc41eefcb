/* timeline.c: the spans of this rank, in the order in which they begin. */
#include "measure/timeline.h"

#include "base/alloc.h"

const char *const moe_span_names[MOE_NUM_SPAN_KINDS] = {
#define PHASE(id, key) key,
#define SPAN(id, name) name,
#include "measure/names.def"
};

void moe_timeline_start(moe_timeline *t, int ranks) {
    t->count = t->left_out = 0;
    t->most = MOE_TIMELINE_SPANS / ranks > 1 ? MOE_TIMELINE_SPANS / ranks : 1;
}

/* The number of the next span, which is cleared; -1 where the timeline is full. */
static int64_t next_span(moe_timeline *t, int kind, int32_t layer) {
    if (!t) {
        return -1;
    }
    if (t->count == t->most) {
        t->left_out++;
        return -1;
    }
    moe_reserve(&t->span, &t->capacity, t->most, sizeof *t->span, "timeline");
    t->span[t->count] = (moe_span){.kind = kind, .layer = layer};
    return t->count++;
}

int64_t moe_timeline_begin(moe_timeline *t, int kind, int32_t layer, double begin) {
    int64_t i = next_span(t, kind, layer);
    if (i >= 0) {
        t->span[i].begin = t->span[i].end = begin;
    }
    return i;
}

void moe_timeline_end(moe_timeline *t, int64_t span, double end) {
    if (span >= 0) {
        t->span[span].end = end;
    }
}

void moe_timeline_add(moe_timeline *t,
                      int kind,
                      int32_t layer,
                      double begin,
                      double end,
                      const moe_span_rows *rows) {
    int64_t i = moe_timeline_begin(t, kind, layer, begin);
    moe_timeline_end(t, i, end);
    if (i >= 0 && rows) {
        t->span[i].rows = *rows;
    }
}

void moe_timeline_free(moe_timeline *t) {
    moe_free(t->span);
    *t = (moe_timeline){0};
}
