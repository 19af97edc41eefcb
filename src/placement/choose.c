/* choose.c: the steps that several balancers have in common: an order, an allotment of replicas, a
 * packing and its improvement by swaps. */
#include <math.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- order and allotment --- */

static int compare_falling(const void *a, const void *b, void *values) {
    const double *value = values;
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (value[i] != value[j]) {
        return value[i] > value[j] ? -1 : 1;
    }
    return (i > j) - (i < j);
}

void moe_order_falling(const double *value, int32_t n, int32_t *order) {
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    qsort_r(order, (size_t)n, sizeof *order, compare_falling, (void *)(uintptr_t)value);
}

void moe_allot_greedily(const double *load, int32_t n, int32_t num_slots, int32_t *replicas) {
    for (int32_t e = 0; e < n; e++) {
        replicas[e] = 1;
    }
    for (int32_t s = n; s < num_slots; s++) {
        int32_t most = 0;
        for (int32_t e = 1; e < n; e++) {
            if (load[e] / replicas[e] > load[most] / replicas[most]) {
                most = e;
            }
        }
        replicas[most]++;
    }
}

/* --- packing --- */

/* The lightest device with a free slot, of those without the expert where `lacks`; -1 if none. */
static int32_t lightest(const moe_balancer_problem *p,
                        const moe_balancer_answer *a,
                        const double *load,
                        const int32_t *used,
                        int32_t expert,
                        bool lacks) {
    int32_t best = -1;
    for (int32_t d = 0; d < p->devices; d++) {
        if (used[d] < a->slots_per_device && (best < 0 || load[d] < load[best]) &&
            !(lacks && moe_answer_has(a, d, expert))) {
            best = d;
        }
    }
    return best;
}

double moe_pack_replicas(const moe_balancer_problem *p,
                         const int32_t *replicas,
                         moe_balancer_answer *a) {
    const int32_t n = p->num_experts;
    double *each = moe_alloc(n, sizeof *each, "placement"), most = 0;
    double *load = moe_alloc_zero(p->devices, sizeof *load, "placement");
    int32_t *order = moe_alloc(n, sizeof *order, "placement");
    int32_t *used = moe_alloc_zero(p->devices, sizeof *used, "placement");
    for (int32_t e = 0; e < n; e++) {
        each[e] = p->load[e] / replicas[e];
        a->replicas[e] = replicas[e];
    }
    moe_order_falling(each, n, order);
    for (int32_t i = 0; i < n; i++) {
        const int32_t e = order[i];
        for (int32_t r = 0; r < replicas[e]; r++) {
            int32_t d = lightest(p, a, load, used, e, r > 0);
            d = d >= 0 ? d : lightest(p, a, load, used, e, false);
            const int32_t slot = d * a->slots_per_device + used[d]++;
            a->expert[slot] = e;
            a->served[slot] = each[e];
            load[d] += each[e];
            most = fmax(most, load[d]);
        }
    }
    moe_free(each);
    moe_free(load);
    moe_free(order);
    moe_free(used);
    return most;
}

/* --- swaps --- */

typedef struct swap {
    int32_t here, there; /* slots; here = -1: none */
    double larger;       /* the larger load of the two devices afterwards */
} swap;

static void consider(const moe_balancer_answer *a,
                     const double *load,
                     int32_t here,
                     int32_t there,
                     swap *best) {
    const int32_t s = a->slots_per_device;
    const double difference = a->served[here] - a->served[there];
    const double larger = fmax(load[here / s] - difference, load[there / s] + difference);
    if (difference > 0 && larger < best->larger && !moe_answer_has(a, there / s, a->expert[here]) &&
        !moe_answer_has(a, here / s, a->expert[there])) {
        *best = (swap){here, there, larger};
    }
}

/* The swap that leaves the least; only one that lowers the load of `device` by more than 1e-12 of
 * it counts, so that the search ends. */
static swap best_swap(const moe_balancer_answer *a, const double *load, int32_t device) {
    const int32_t s = a->slots_per_device;
    swap best = {-1, -1, load[device] * (1 - 1e-12)};
    for (int32_t here = device * s; here < (device + 1) * s; here++) {
        for (int32_t there = 0; there < a->slots; there++) {
            if (there / s != device) {
                consider(a, load, here, there, &best);
            }
        }
    }
    return best;
}

int32_t moe_extreme_device(const double *value, int32_t devices, double sign) {
    int32_t found = 0;
    for (int32_t d = 1; d < devices; d++) {
        found = sign * value[d] > sign * value[found] ? d : found;
    }
    return found;
}

double moe_improve_by_swaps(const moe_balancer_problem *p, moe_balancer_answer *a) {
    double *load = moe_alloc(p->devices, sizeof *load, "placement");
    double most = moe_balancer_device_load(a, p->devices, load);
    for (int32_t i = 0; i < 4 * p->devices; i++) {
        const swap chosen = best_swap(a, load, moe_extreme_device(load, p->devices, 1));
        if (chosen.here < 0) {
            break;
        }
        const int32_t expert = a->expert[chosen.here];
        const double served = a->served[chosen.here];
        a->expert[chosen.here] = a->expert[chosen.there];
        a->served[chosen.here] = a->served[chosen.there];
        a->expert[chosen.there] = expert;
        a->served[chosen.there] = served;
        most = moe_balancer_device_load(a, p->devices, load);
    }
    moe_free(load);
    return most;
}
