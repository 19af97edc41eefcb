/* flashlb.c: replicas and places decided together, in the manner of FlashLB.
 *
 * EPLB first allots replicas and then packs them; an allotment that is best by itself may be bad to
 * pack. Here a tabu search goes through allotments: a step takes a replica from one expert and
 * gives it to another, and is judged by the sum of squared device loads after packing, which says
 * more than the busiest device alone. It takes the best step even when that is worse than before,
 * and does not undo a step at once. The answer with the least busy device of all, EPLB's included,
 * is kept.
 *
 * The candidates of a step: givers are the experts whose replicas carry least after the loss;
 * receivers are the experts of the busiest device and those whose replicas carry most. Equal steps:
 * the first in that order. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "placement/internal.h"

enum {
    CANDIDATES = 12,     /* givers and receivers of one step, besides the busiest device */
    MOST_PACKINGS = 600, /* of one layer */
    PATIENCE = 12,       /* steps without anything better */
    TABU = 2,            /* steps for which a giver gets nothing and a receiver gives nothing */
    ALWAYS_IMPROVE_UP_TO = 64 /* slots, for which packings are improved by swaps every time */
};

typedef struct search {
    const moe_balancer_problem *p;
    int32_t *replicas;         /* [N] of the current allotment */
    int32_t *gave, *got;       /* [N] the step at which it may receive or give again */
    double *key;               /* [N] */
    double *load;              /* [D] */
    int32_t *giver, *receiver; /* [N] */
    int32_t num_givers, num_receivers;
    int32_t packings, step;
    moe_balancer_answer current, trial;
} search;

/* --- judging --- */

/* Packs the current allotment; returns the sum of squares of the devices' loads. */
static double judge(search *s, moe_balancer_answer *a) {
    double sum = 0;
    s->packings++;
    moe_answer_reserve(s->p, a, s->p->slots_per_device);
    moe_pack_replicas(s->p, s->replicas, a);
    if (a->slots <= ALWAYS_IMPROVE_UP_TO) {
        moe_improve_by_swaps(s->p, a);
    }
    moe_balancer_device_load(a, s->p->devices, s->load);
    for (int32_t d = 0; d < s->p->devices; d++) {
        sum += s->load[d] * s->load[d];
    }
    return sum;
}

static void keep_if_better(search *s,
                           moe_balancer_answer *a,
                           double *best,
                           moe_balancer_answer *best_answer) {
    const double most = moe_improve_by_swaps(s->p, a);
    if (most < *best) {
        *best = most;
        memcpy(best_answer->expert, a->expert, (size_t)a->slots * sizeof *a->expert);
    }
}

/* --- candidates --- */

static void find_givers(search *s) {
    const int32_t n = s->p->num_experts;
    s->num_givers = 0;
    for (int32_t e = 0; e < n; e++) {
        const bool may = s->replicas[e] > 1 && s->got[e] <= s->step;
        s->key[e] = may ? -s->p->load[e] / (s->replicas[e] - 1) : -INFINITY;
    }
    moe_order_falling(s->key, n, s->giver);
    while (s->num_givers < n && s->num_givers < CANDIDATES &&
           isfinite(s->key[s->giver[s->num_givers]])) {
        s->num_givers++;
    }
}

/* Experts of the busiest device come first, since only less load there helps at once. */
static void find_receivers(search *s) {
    const int32_t n = s->p->num_experts, size = s->current.slots_per_device;
    double most = 0;
    moe_balancer_device_load(&s->current, s->p->devices, s->load);
    const int32_t busiest = moe_extreme_device(s->load, s->p->devices, 1);
    for (int32_t e = 0; e < n; e++) {
        const bool may = s->replicas[e] < s->p->devices && s->gave[e] <= s->step;
        s->key[e] = may ? s->p->load[e] / s->replicas[e] : -INFINITY;
        most = fmax(most, s->key[e]);
    }
    for (int32_t i = busiest * size; i < (busiest + 1) * size; i++) {
        s->key[s->current.expert[i]] += most + 1;
    }
    moe_order_falling(s->key, n, s->receiver);
    s->num_receivers = 0;
    while (s->num_receivers < n && s->num_receivers < CANDIDATES &&
           isfinite(s->key[s->receiver[s->num_receivers]])) {
        s->num_receivers++;
    }
}

/* --- steps --- */

/* Takes the best step, if there is one. */
static void step(search *s) {
    double best = INFINITY;
    int32_t from = -1, to = -1;
    find_givers(s);
    find_receivers(s);
    for (int32_t i = 0; i < s->num_givers; i++) {
        for (int32_t j = 0; j < s->num_receivers; j++) {
            const int32_t a = s->giver[i], b = s->receiver[j];
            if (a == b) {
                continue;
            }
            s->replicas[a]--;
            s->replicas[b]++;
            const double sum = judge(s, &s->trial);
            s->replicas[a]++;
            s->replicas[b]--;
            if (sum < best) {
                best = sum;
                from = a;
                to = b;
            }
        }
    }
    if (from >= 0) {
        s->replicas[from]--;
        s->replicas[to]++;
        s->gave[from] = s->got[to] = s->step + TABU;
        judge(s, &s->current);
    }
}

static void run(search *s, moe_balancer_answer *a) {
    double best = INFINITY;
    moe_place_eplb_global(s->p, a);
    memcpy(s->replicas, a->replicas, (size_t)s->p->num_experts * sizeof *s->replicas);
    best = moe_improve_by_swaps(s->p, a);
    judge(s, &s->current);
    keep_if_better(s, &s->current, &best, a);
    const double enough = 1.0001 * moe_problem_mean(s->p);
    for (int32_t idle = 0; idle < PATIENCE && s->packings < MOST_PACKINGS && best > enough;
         idle++) {
        const double before = best;
        s->step++;
        step(s);
        keep_if_better(s, &s->current, &best, a);
        idle = best < before ? -1 : idle;
    }
    moe_answer_share_evenly(s->p, a);
}

void moe_place_flashlb(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const int32_t n = p->num_experts;
    search s = {.p = p};
    s.replicas = moe_alloc(n, sizeof *s.replicas, "flashlb");
    s.gave = moe_alloc_zero(n, sizeof *s.gave, "flashlb");
    s.got = moe_alloc_zero(n, sizeof *s.got, "flashlb");
    s.key = moe_alloc(n, sizeof *s.key, "flashlb");
    s.load = moe_alloc(p->devices, sizeof *s.load, "flashlb");
    s.giver = moe_alloc(n, sizeof *s.giver, "flashlb");
    s.receiver = moe_alloc(n, sizeof *s.receiver, "flashlb");
    run(&s, a);
    moe_free(s.replicas);
    moe_free(s.gave);
    moe_free(s.got);
    moe_free(s.key);
    moe_free(s.load);
    moe_free(s.giver);
    moe_free(s.receiver);
    moe_balancer_answer_free(&s.current);
    moe_balancer_answer_free(&s.trial);
}
