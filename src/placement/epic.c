/* epic.c: pairwise swaps in the manner of EPIC: the heaviest and the lightest device exchange one
 * expert for another as long as the heavier of the two gains more than moving two experts costs.
 *
 * It begins with every expert at home. The redundant slots get the replicas that a greedy allotment
 * gives, largest load first, each on the lightest device that has a redundant slot left. */
#include <math.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- the beginning --- */

static void add_replica(moe_balancer_answer *a,
                        double *load,
                        int32_t devices,
                        int32_t expert,
                        double each) {
    int32_t best = -1;
    for (int32_t d = 0; d < devices; d++) {
        const bool full = a->expert[(d + 1) * a->slots_per_device - 1] >= 0;
        if (!full && !moe_answer_has(a, d, expert) && (best < 0 || load[d] < load[best])) {
            best = d;
        }
    }
    if (best < 0) {
        return; /* moe_answer_fill puts something else there */
    }
    int32_t slot = best * a->slots_per_device;
    while (a->expert[slot] >= 0) {
        slot++;
    }
    a->expert[slot] = expert;
    load[best] += each;
}

static void begin(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const int32_t n = p->num_experts;
    double *each = moe_alloc(n, sizeof *each, "placement");
    double *load = moe_alloc_zero(p->devices, sizeof *load, "placement");
    int32_t *replicas = moe_alloc(n, sizeof *replicas, "placement");
    int32_t *order = moe_alloc(n, sizeof *order, "placement");
    moe_answer_reserve(p, a, p->slots_per_device);
    moe_allot_greedily(p->load, n, a->slots, replicas);
    for (int32_t e = 0; e < n; e++) {
        const int32_t home = moe_native_home(p, e);
        each[e] = p->load[e] / replicas[e];
        load[home] += each[e];
        a->expert[home * a->slots_per_device + e % moe_native_slots(p)] = e;
    }
    moe_order_falling(each, n, order);
    for (int32_t i = 0; i < n; i++) {
        for (int32_t r = 1; r < replicas[order[i]]; r++) {
            add_replica(a, load, p->devices, order[i], each[order[i]]);
        }
    }
    moe_answer_count(p, a);
    moe_answer_fill(p, a);
    moe_answer_share_evenly(p, a);
    moe_free(each);
    moe_free(load);
    moe_free(replicas);
    moe_free(order);
}

/* --- swaps --- */

/* Swaps the pair of slots of two devices that leaves the smaller larger load, if that gains more
 * than the cost. */
static bool swap_once(moe_balancer_answer *a,
                      const double *load,
                      int32_t from,
                      int32_t to,
                      double cost) {
    const int32_t s = a->slots_per_device;
    double best = load[from] - cost;
    int32_t here = -1, there = -1;
    for (int32_t i = from * s; i < (from + 1) * s; i++) {
        for (int32_t j = to * s; j < (to + 1) * s; j++) {
            const double difference = a->served[i] - a->served[j];
            const double larger = fmax(load[from] - difference, load[to] + difference);
            if (larger < best && !moe_answer_has(a, to, a->expert[i]) &&
                !moe_answer_has(a, from, a->expert[j])) {
                best = larger;
                here = i;
                there = j;
            }
        }
    }
    if (here < 0) {
        return false;
    }
    const int32_t expert = a->expert[here];
    a->expert[here] = a->expert[there];
    a->expert[there] = expert;
    return true;
}

void moe_place_epic(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const double cost = p->move_cost > 0 ? p->move_cost : 0.005 * moe_problem_mean(p);
    double *load = moe_alloc(p->devices, sizeof *load, "placement");
    begin(p, a);
    /* Every swap lowers the sum of squares, so the bound only guards against a tiny cost. */
    for (int32_t i = 0; i < 16 * p->devices; i++) {
        moe_balancer_device_load(a, p->devices, load);
        if (!swap_once(a, load, moe_extreme_device(load, p->devices, 1),
                       moe_extreme_device(load, p->devices, -1), cost)) {
            break;
        }
        moe_answer_share_evenly(p, a);
    }
    moe_free(load);
}
