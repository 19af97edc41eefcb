/* eplb.c: DeepSeek's expert parallelism load balancer, written anew from its public description.
 *
 * Groups of experts are packed onto nodes, the experts of a node get its redundant slots one by one
 * where the load per replica is largest, and the replicas of a node are packed onto its devices.
 * The global form does the last two steps over all devices at once. It is used where the groups do
 * not divide among the nodes.
 *
 * The reference computes in float, and so does this file: what is a tie there is one here. Among
 * equal weights the lower index comes first; among equally light packs, the first. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- packing n items into packs of n/m items --- */

static int heavier_first(const void *a, const void *b, void *weights) {
    const float *weight = weights;
    const int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (weight[i] != weight[j]) {
        return weight[i] > weight[j] ? -1 : 1;
    }
    return (i > j) - (i < j);
}

/* The lightest of the packs that are not full. */
static int32_t lightest_pack(const float *total, const int32_t *items, int32_t m, int32_t most) {
    int32_t best = -1;
    for (int32_t i = 0; i < m; i++) {
        if (items[i] < most && (best < 0 || total[i] < total[best])) {
            best = i;
        }
    }
    return best;
}

/* place[i] becomes pack * (n/m) + rank of item i in its pack. */
static void pack(const float *weight, int32_t n, int32_t m, int32_t *place) {
    const int32_t size = n / m;
    int32_t *order = moe_alloc(n, sizeof *order, "eplb");
    int32_t *items = moe_alloc_zero(m, sizeof *items, "eplb");
    float *total = moe_alloc_zero(m, sizeof *total, "eplb");
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    if (size > 1) { /* with one item in each pack, item i is pack i */
        qsort_r(order, (size_t)n, sizeof *order, heavier_first, (void *)(uintptr_t)weight);
    }
    for (int32_t i = 0; i < n; i++) {
        const int32_t to = size > 1 ? lightest_pack(total, items, m, size) : i;
        place[order[i]] = to * size + items[to]++;
        total[to] += weight[order[i]];
    }
    moe_free(order);
    moe_free(items);
    moe_free(total);
}

/* --- the steps --- */

/* sorted[k]: the expert at place k when the groups stand in the order of their nodes. */
static void sort_by_node(const float *weight,
                         int32_t n,
                         int32_t groups,
                         int32_t nodes,
                         int32_t *sorted) {
    const int32_t size = n / groups;
    float *total = moe_alloc_zero(groups, sizeof *total, "eplb");
    int32_t *place = moe_alloc(groups, sizeof *place, "eplb");
    for (int32_t e = 0; e < n; e++) {
        total[e / size] += weight[e];
    }
    pack(total, groups, nodes, place);
    for (int32_t e = 0; e < n; e++) {
        sorted[place[e / size] * size + e % size] = e;
    }
    moe_free(total);
    moe_free(place);
}

/* of_slot[s]: the expert whose replica s is. The first n are the experts themselves. */
static void replicate(const float *weight,
                      int32_t n,
                      int32_t slots,
                      int32_t *of_slot,
                      int32_t *count) {
    for (int32_t s = 0; s < slots; s++) {
        int32_t most = s;
        if (s >= n) {
            most = 0;
            for (int32_t e = 1; e < n; e++) {
                if (weight[e] / (float)count[e] > weight[most] / (float)count[most]) {
                    most = e;
                }
            }
        }
        of_slot[s] = most;
        count[most] = s < n ? 1 : count[most] + 1;
    }
}

/* Fills the slots of one node, which has the n experts of `member`. */
static void fill_node(const float *weight,
                      const int32_t *member,
                      int32_t n,
                      int32_t slots,
                      int32_t devices,
                      int32_t *out) {
    float *mine = moe_alloc(n, sizeof *mine, "eplb"),
          *each = moe_alloc(slots, sizeof *each, "eplb");
    int32_t *of_slot = moe_alloc(slots, sizeof *of_slot, "eplb");
    int32_t *count = moe_alloc(n, sizeof *count, "eplb");
    int32_t *place = moe_alloc(slots, sizeof *place, "eplb");
    for (int32_t i = 0; i < n; i++) {
        mine[i] = weight[member[i]];
    }
    replicate(mine, n, slots, of_slot, count);
    for (int32_t s = 0; s < slots; s++) {
        each[s] = mine[of_slot[s]] / (float)count[of_slot[s]];
    }
    pack(each, slots, devices, place);
    for (int32_t s = 0; s < slots; s++) {
        out[place[s]] = member[of_slot[s]];
    }
    moe_free(mine);
    moe_free(each);
    moe_free(of_slot);
    moe_free(count);
    moe_free(place);
}

static void place(const moe_balancer_problem *p,
                  int32_t groups,
                  int32_t nodes,
                  moe_balancer_answer *a) {
    const int32_t n = p->num_experts;
    float *weight = moe_alloc(n, sizeof *weight, "eplb");
    int32_t *sorted = moe_alloc(n, sizeof *sorted, "eplb");
    for (int32_t e = 0; e < n; e++) {
        weight[e] = (float)p->load[e];
    }
    moe_answer_reserve(p, a, p->slots_per_device);
    sort_by_node(weight, n, groups, nodes, sorted);
    for (int32_t v = 0; v < nodes; v++) {
        fill_node(weight, sorted + v * (n / nodes), n / nodes, a->slots / nodes, p->devices / nodes,
                  a->expert + v * (a->slots / nodes));
    }
    moe_answer_share_evenly(p, a);
    moe_free(weight);
    moe_free(sorted);
}

void moe_place_eplb(const moe_balancer_problem *p, moe_balancer_answer *a) {
    if (p->groups % p->nodes == 0) {
        place(p, p->groups, p->nodes, a);
    } else {
        place(p, 1, 1, a);
    }
}

void moe_place_eplb_global(const moe_balancer_problem *p, moe_balancer_answer *a) {
    place(p, 1, 1, a);
}
