/* split.c: see split.h. */
#include "placement/split.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

void moe_split_init(moe_placement *p) {
    const int64_t cells = (int64_t)p->devices * moe_placement_slots(p);
    p->until = moe_alloc(cells, sizeof *p->until, "placement");
    moe_split_forget(p);
}

void moe_split_forget(moe_placement *p) {
    const int64_t cells = (int64_t)p->devices * moe_placement_slots(p);
    for (int64_t i = 0; i < cells; i++) {
        p->until[i] = INT64_MAX;
    }
}

/* --- quotas --- */

static int node_of(const moe_placement *p, int32_t device) {
    return device / p->devices_per_node;
}

/* Rounds the running sums of an expert's parts, so that the quotas sum to its load, and gives the
 * quota of a second replica on a device to the first one there. */
static void round_quotas(const moe_placement *p,
                         int32_t expert,
                         const double *served,
                         int64_t *quota) {
    double sum = 0;
    int64_t given = 0;
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        quota[p->slot_of[i]] = 0;
    }
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        const int32_t slot = p->slot_of[i];
        sum += served[slot];
        const int64_t rounded = (int64_t)floor(sum + 0.5);
        quota[moe_placement_find(p, expert, slot / p->slots_per_device)] += rounded - given;
        given = rounded;
    }
}

/* Gives tokens of `device` to the slots of the expert that have a quota left and are so near: 0 on
 * the device, 1 in its node, 2 anywhere. Returns how many tokens are left. */
static int64_t give(const moe_placement *p,
                    int32_t expert,
                    int32_t device,
                    int near,
                    int64_t tokens,
                    int64_t *quota,
                    int64_t *share) {
    for (int32_t i = p->first[expert]; i < p->first[expert + 1]; i++) {
        const int32_t slot = p->slot_of[i], to = slot / p->slots_per_device;
        if (near == 2 || (near == 1 && node_of(p, to) == node_of(p, device)) || to == device) {
            const int64_t most = quota[slot] < tokens ? quota[slot] : tokens;
            quota[slot] -= most;
            share[slot] += most;
            tokens -= most;
        }
    }
    return tokens;
}

void moe_split_share(const moe_placement *p,
                     const int64_t *count,
                     const double *served,
                     int64_t *share) {
    const int32_t n = p->num_experts, slots = moe_placement_slots(p);
    int64_t *quota = moe_alloc(slots, sizeof *quota, "placement");
    int64_t *left = moe_alloc(p->devices, sizeof *left, "placement");
    memset(share, 0, (size_t)p->devices * (size_t)slots * sizeof *share);
    for (int32_t e = 0; e < n; e++) {
        round_quotas(p, e, served, quota);
        for (int32_t d = 0; d < p->devices; d++) {
            left[d] = count[(int64_t)d * n + e];
        }
        for (int near = 0; near < 3; near++) {
            for (int32_t d = 0; d < p->devices; d++) {
                left[d] = give(p, e, d, near, left[d], quota, share + (int64_t)d * slots);
            }
        }
        for (int32_t d = 0; d < p->devices; d++) {
            MOE_ASSERT(left[d] == 0);
        }
    }
    moe_free(quota);
    moe_free(left);
}

/* --- runs --- */

/* The slot at `place` of the order of an expert's replicas for tokens of `device`: place r * near +
 * i is replica i of r, if that is how near it is; -1 where it is not. */
static int32_t slot_at(const moe_placement *p, int32_t device, int32_t expert, int32_t place) {
    const int32_t r = p->first[expert + 1] - p->first[expert];
    const int32_t slot = p->slot_of[p->first[expert] + place % r];
    const int32_t to = slot / p->slots_per_device;
    const int near = to == device ? 0 : node_of(p, to) == node_of(p, device) ? 1 : 2;
    return near == place / r ? slot : -1;
}

static int32_t places(const moe_placement *p, int32_t expert) {
    return 3 * (p->first[expert + 1] - p->first[expert]);
}

/* Goes on to the next place, from `place` on, whose slot serves some of the device's tokens. */
static void go_on(const moe_placement *p,
                  int32_t device,
                  const int64_t *share,
                  const moe_split_walk *w,
                  int32_t expert,
                  int32_t place) {
    for (; place < places(p, expert); place++) {
        const int32_t slot = slot_at(p, device, expert, place);
        if (slot >= 0 && share[slot] > 0) {
            w->place[expert] = place;
            w->left[expert] = share[slot];
            return;
        }
    }
    w->left[expert] = 0;
}

void moe_split_begin(moe_placement *p,
                     int32_t device,
                     const int64_t *share,
                     const moe_split_walk *w) {
    const int32_t slots = moe_placement_slots(p);
    for (int32_t s = 0; s < slots; s++) {
        p->until[(int64_t)device * slots + s] = 0; /* no token */
    }
    for (int32_t e = 0; e < p->num_experts; e++) {
        w->place[e] = -1;
        go_on(p, device, share, w, e, 0);
    }
}

void moe_split_choice(moe_placement *p,
                      int32_t device,
                      const int64_t *share,
                      const moe_split_walk *w,
                      int32_t expert,
                      int64_t token) {
    if (w->left[expert] == 0) {
        const int32_t slot = slot_at(p, device, expert, w->place[expert]);
        p->until[(int64_t)device * moe_placement_slots(p) + slot] = token;
        go_on(p, device, share, w, expert, w->place[expert] + 1);
        MOE_ASSERT(w->left[expert] > 0);
    }
    w->left[expert]--;
}

/* An expert that none of the tokens chose goes to the nearest replica, should it be asked for. */
void moe_split_end(moe_placement *p, int32_t device, const moe_split_walk *w) {
    for (int32_t e = 0; e < p->num_experts; e++) {
        int32_t place = w->place[e] < 0 ? 0 : w->place[e];
        while (slot_at(p, device, e, place) < 0) {
            place++;
        }
        const int32_t slot = slot_at(p, device, e, place);
        p->until[(int64_t)device * moe_placement_slots(p) + slot] = INT64_MAX;
    }
}
