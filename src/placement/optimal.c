/* optimal.c: the best of all placements of a small problem, as a yardstick for the others: every
 * allotment of replicas, and for each every packing that is not the same as another one with
 * devices exchanged. Replicas share evenly; two on one device are allowed. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "placement/internal.h"

enum { MOST_EXPERTS = 8, MOST_SLOTS = 16 };

bool moe_optimal_fits(const moe_balancer_problem *p) {
    return p->num_experts <= MOST_EXPERTS && p->devices * p->slots_per_device <= MOST_SLOTS;
}

typedef struct search {
    const moe_balancer_problem *p;
    int32_t slots;
    int32_t order[MOST_EXPERTS];    /* experts by falling load */
    int32_t replicas[MOST_EXPERTS]; /* of order[i] */
    int32_t item[MOST_SLOTS];       /* the experts of the replicas, by falling load per replica */
    double each[MOST_SLOTS];
    int32_t device[MOST_SLOTS]; /* of each item */
    double load[MOST_SLOTS];    /* of each device */
    int32_t used[MOST_SLOTS];
    double best;
    moe_balancer_answer *answer;
} search;

/* --- packings --- */

static void keep(search *s, double most) {
    int32_t used[MOST_SLOTS] = {0};
    s->best = most;
    for (int32_t i = 0; i < s->slots; i++) {
        const int32_t d = s->device[i];
        s->answer->expert[d * s->p->slots_per_device + used[d]++] = s->item[i];
    }
}

/* Whether an earlier device looks the same, so that device d gives nothing new. */
static bool seen_before(const search *s, int32_t d) {
    for (int32_t i = 0; i < d; i++) {
        if (s->used[i] == s->used[d] && s->load[i] == s->load[d]) {
            return true;
        }
    }
    return false;
}

static void pack_from(search *s, int32_t i, double most) {
    if (i == s->slots) {
        keep(s, most);
        return;
    }
    const bool same = i > 0 && s->item[i] == s->item[i - 1];
    for (int32_t d = same ? s->device[i - 1] : 0; d < s->p->devices; d++) {
        const double load = s->load[d] + s->each[i];
        if (s->used[d] == s->p->slots_per_device || load >= s->best * (1 - 1e-12) ||
            (!same && seen_before(s, d))) {
            continue;
        }
        const double before = s->load[d];
        s->load[d] = load;
        s->used[d]++;
        s->device[i] = d;
        pack_from(s, i + 1, fmax(most, load));
        s->load[d] = before;
        s->used[d]--;
    }
}

static void pack(search *s) {
    double each[MOST_EXPERTS];
    int32_t order[MOST_EXPERTS], num = 0;
    for (int32_t i = 0; i < s->p->num_experts; i++) {
        each[i] = s->p->load[s->order[i]] / s->replicas[i];
        if (each[i] >= s->best * (1 - 1e-12)) {
            return;
        }
    }
    moe_order_falling(each, s->p->num_experts, order);
    for (int32_t i = 0; i < s->p->num_experts; i++) {
        for (int32_t r = 0; r < s->replicas[order[i]]; r++) {
            s->item[num] = s->order[order[i]];
            s->each[num++] = each[order[i]];
        }
    }
    memset(s->load, 0, sizeof s->load);
    memset(s->used, 0, sizeof s->used);
    pack_from(s, 0, 0);
}

/* --- allotments --- */

/* Of experts with equal loads the first one gets at least as many replicas as the next. */
static void allot_from(search *s, int32_t i, int32_t left) {
    const int32_t others = s->p->num_experts - i - 1;
    if (others < 0) {
        pack(s);
        return;
    }
    int32_t most = left - others;
    if (i > 0 && s->p->load[s->order[i]] == s->p->load[s->order[i - 1]]) {
        most = most < s->replicas[i - 1] ? most : s->replicas[i - 1];
    }
    for (int32_t r = others == 0 ? left : 1; r <= most; r++) {
        s->replicas[i] = r;
        allot_from(s, i + 1, left - r);
    }
}

void moe_place_optimal(const moe_balancer_problem *p, moe_balancer_answer *a) {
    search s = {.p = p, .slots = p->devices * p->slots_per_device, .answer = a};
    double *load = moe_alloc(p->devices, sizeof *load, "placement");
    moe_place_flashlb(p, a);
    s.best = moe_balancer_device_load(a, p->devices, load);
    moe_order_falling(p->load, p->num_experts, s.order);
    allot_from(&s, 0, s.slots);
    moe_answer_share_evenly(p, a);
    moe_free(load);
}
