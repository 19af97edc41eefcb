/* overlap.c: see overlap.h. */
#include "output/overlap.h"

#include <math.h>

#include "base/alloc.h"
#include "output/format.h"
#include "output/json.h"

static void add(moe_overlap *sum, const moe_overlap *o) {
    sum->in_flight += o->in_flight;
    sum->waited += o->waited;
}

void moe_overlap_add(moe_overlap *sum, const moe_step_metrics *step) {
    for (int32_t l = 0; l < step->num_layers; l++) {
        add(sum, &step->layer[l].overlap);
    }
}

moe_overlap *moe_overlap_gather(const moe_comm *comm, const moe_overlap *mine) {
    int64_t *bytes = moe_alloc(comm->size, sizeof *bytes, "overlap");
    moe_overlap *all = moe_alloc(comm->size, sizeof *all, "overlap");
    for (int q = 0; q < comm->size; q++) {
        bytes[q] = sizeof *mine;
    }
    moe_comm_allgatherv(comm, mine, all, bytes);
    moe_free(bytes);
    return all;
}

/* The sums of both are rounded: what is waited for can seem longer than the way by the last bit. */
static double hidden_seconds(const moe_overlap *o) {
    return fmax(o->in_flight - o->waited, 0);
}

double moe_overlap_share(const moe_overlap *o) {
    return o->in_flight > 0 ? hidden_seconds(o) / o->in_flight : NAN;
}

moe_overlap moe_overlap_total(const moe_overlap *of_ranks, int ranks) {
    moe_overlap total = {0};
    for (int q = 0; q < ranks; q++) {
        add(&total, &of_ranks[q]);
    }
    return total;
}

static json_t *seconds_object(const moe_overlap *o) {
    json_t *object = json_object();
    moe_json_put(object, "in_flight", moe_json_number(o->in_flight));
    moe_json_put(object, "waited", moe_json_number(o->waited));
    moe_json_put(object, "hidden", moe_json_number(hidden_seconds(o)));
    moe_json_put(object, "hidden_share", moe_json_number(moe_overlap_share(o)));
    return object;
}

json_t *moe_overlap_json(const moe_config *c, const moe_overlap *of_ranks, int ranks) {
    if (c->exchange.chunks == 1) {
        return NULL;
    }
    const moe_overlap total = moe_overlap_total(of_ranks, ranks);
    json_t *o = seconds_object(&total), *list = json_array();
    for (int q = 0; q < ranks; q++) {
        json_array_append_new(list, seconds_object(&of_ranks[q]));
    }
    moe_json_put(o, "ranks", list);
    return o;
}

void moe_overlap_show(const moe_screen *s,
                      const moe_config *c,
                      const moe_overlap *of_ranks,
                      int ranks) {
    double least = 1, most = 0;
    if (s->quiet || c->exchange.chunks == 1) {
        return;
    }
    const moe_overlap total = moe_overlap_total(of_ranks, ranks);
    moe_screen_heading(s, "Overlap");
    if (!(total.in_flight > 0)) {
        moe_screen_wrapped(s, 2, "", "%d\tchunks, and nothing to hide: no vector leaves its rank",
                           c->exchange.chunks);
        return;
    }
    for (int q = 0; q < ranks; q++) {
        least = fmin(least, moe_overlap_share(&of_ranks[q]));
        most = fmax(most, moe_overlap_share(&of_ranks[q]));
    }
    moe_screen_wrapped(
        s, 2, "",
        "%d\tchunks: vectors were on their way for %s of a rank's time, and %s of these went into "
        "sending and waiting; %.1f\t%% were hidden behind experts (%.1f\t%% to %.1f\t%% by rank)",
        c->exchange.chunks, moe_format_glued(moe_format_seconds(total.in_flight / ranks)).s,
        moe_format_glued(moe_format_seconds(total.waited / ranks)).s,
        100 * moe_overlap_share(&total), 100 * least, 100 * most);
}
