/* native.c: balancers that leave every expert at home and move parts of its load to copies on other
 * devices, anew for each batch. A copy is fetched for the batch, so there are as many slots as the
 * device with the most copies needs; slots beyond those have replicas that serve nothing. */
#include <math.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- answers --- */

static int32_t most_foreign(const moe_balancer_problem *p, const moe_spill *spill, int32_t n) {
    int32_t *foreign = moe_alloc_zero(p->devices, sizeof *foreign, "placement"), most = 0;
    for (int32_t i = 0; i < n; i++) {
        foreign[spill[i].device]++;
    }
    for (int32_t d = 0; d < p->devices; d++) {
        most = foreign[d] > most ? foreign[d] : most;
    }
    moe_free(foreign);
    return most;
}

static int32_t home_slot(const moe_balancer_problem *p,
                         const moe_balancer_answer *a,
                         int32_t expert) {
    return moe_native_home(p, expert) * a->slots_per_device + expert % moe_native_slots(p);
}

/* The first empty slot of the device. */
static int32_t empty_slot(const moe_balancer_answer *a, int32_t device) {
    int32_t slot = device * a->slots_per_device;
    while (a->expert[slot] >= 0) {
        slot++;
    }
    return slot;
}

void moe_answer_from_spills(const moe_balancer_problem *p,
                            const moe_spill *spill,
                            int32_t num_spills,
                            moe_balancer_answer *a) {
    const int32_t needed = moe_native_slots(p) + most_foreign(p, spill, num_spills);
    moe_answer_reserve(p, a, needed > p->slots_per_device ? needed : p->slots_per_device);
    for (int32_t e = 0; e < p->num_experts; e++) {
        a->expert[home_slot(p, a, e)] = e;
        a->served[home_slot(p, a, e)] = p->load[e];
    }
    for (int32_t i = 0; i < num_spills; i++) {
        const int32_t slot = empty_slot(a, spill[i].device);
        a->expert[slot] = spill[i].expert;
        a->served[slot] = spill[i].tokens;
        a->served[home_slot(p, a, spill[i].expert)] -= spill[i].tokens;
    }
    moe_answer_count(p, a);
    moe_answer_fill(p, a);
}

/* Slots that a device has for copies. */
static int32_t room_for_copies(const moe_balancer_problem *p) {
    return p->within_slots ? p->slots_per_device - moe_native_slots(p) : INT32_MAX;
}

/* --- least-loaded expert parallelism --- */

typedef struct llep {
    const moe_balancer_problem *p;
    double cap, least_batch;
    double *load;     /* [D] what the device serves, its native experts yet to come included */
    int32_t *room;    /* [D] slots that are left for copies */
    moe_spill *spill; /* [num_spills] */
    int32_t num_spills;
} llep;

/* The least loaded device but `home` that has a slot left; -1: there is none. */
static int32_t least_loaded(const llep *l, int32_t home) {
    int32_t best = -1;
    for (int32_t d = 0; d < l->p->devices; d++) {
        if (d != home && l->room[d] > 0 && (best < 0 || l->load[d] < l->load[best])) {
            best = d;
        }
    }
    return best;
}

/* Moves what its home has no room for to the least loaded devices, up to their caps. What is left
 * when a piece is not worth moving stays at home. */
static void spill_expert(llep *l, int32_t expert) {
    const int32_t home = moe_native_home(l->p, expert);
    double excess = fmin(l->load[home] - l->cap, l->p->load[expert]);
    while (excess > 0 && excess >= l->least_batch) {
        const int32_t to = least_loaded(l, home);
        const double room = to < 0 ? 0 : l->cap - l->load[to], piece = fmin(excess, room);
        if (piece <= 0 || piece < l->least_batch) {
            break;
        }
        l->spill[l->num_spills++] = (moe_spill){expert, to, piece};
        l->room[to]--;
        l->load[to] += piece;
        l->load[home] -= piece;
        excess -= piece;
    }
}

void moe_place_llep(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const double mean = moe_problem_mean(p);
    llep l = {.p = p,
              .cap = (p->alpha > 0 ? p->alpha : 1) * mean,
              .least_batch = p->least_batch > 0 ? p->least_batch : 0.01 * mean};
    int32_t *order = moe_alloc(p->num_experts, sizeof *order, "placement");
    l.load = moe_alloc_zero(p->devices, sizeof *l.load, "placement");
    l.room = moe_alloc(p->devices, sizeof *l.room, "placement");
    for (int32_t d = 0; d < p->devices; d++) {
        l.room[d] = room_for_copies(p);
    }
    /* A piece ends an expert's excess or fills a device, which can happen once for each. */
    l.spill = moe_alloc(p->num_experts + p->devices, sizeof *l.spill, "placement");
    for (int32_t e = 0; e < p->num_experts; e++) {
        l.load[moe_native_home(p, e)] += p->load[e];
    }
    moe_order_falling(p->load, p->num_experts, order);
    for (int32_t i = 0; i < p->num_experts; i++) {
        spill_expert(&l, order[i]);
    }
    moe_answer_from_spills(p, l.spill, l.num_spills, a);
    moe_free(order);
    moe_free(l.load);
    moe_free(l.room);
    moe_free(l.spill);
}

/* --- every device exactly its share --- */

typedef struct equal {
    const moe_balancer_problem *p;
    double *surplus;  /* [D] load above the mean; what is missing is negative */
    double *at_home;  /* [N] tokens that the expert's home still serves */
    int32_t *room;    /* [D] slots that are left for copies */
    moe_spill *spill; /* [num_spills] */
    int32_t num_spills;
} equal;

/* The expert of the device that serves most at home. */
static int32_t largest_at_home(const equal *q, int32_t device) {
    const int32_t size = moe_native_slots(q->p), first = device * size;
    int32_t best = first;
    for (int32_t e = first; e < first + size; e++) {
        best = q->at_home[e] > q->at_home[best] ? e : best;
    }
    return best;
}

/* The spill of that expert and device; num_spills: there is none. */
static int32_t find_spill(const equal *q, int32_t expert, int32_t device) {
    int32_t i = 0;
    while (i < q->num_spills && (q->spill[i].expert != expert || q->spill[i].device != device)) {
        i++;
    }
    return i;
}

static void add_spill(equal *q, int32_t expert, int32_t device, double tokens) {
    const int32_t i = find_spill(q, expert, device);
    if (i == q->num_spills) {
        q->spill[q->num_spills++] = (moe_spill){expert, device, 0};
        q->room[device]--;
    }
    q->spill[i].tokens += tokens;
}

/* The device that lacks most tokens, of those that have a slot for the expert; -1: there is none.
 */
static int32_t roomiest(const equal *q, int32_t expert) {
    int32_t best = -1;
    for (int32_t d = 0; d < q->p->devices; d++) {
        if ((best < 0 || q->surplus[d] < q->surplus[best]) &&
            (q->room[d] > 0 || find_spill(q, expert, d) < q->num_spills)) {
            best = d;
        }
    }
    return best;
}

/* From the most overloaded home to the roomiest device; returns whether there was something to
 * move. A move ends a surplus, a room or an expert. */
static bool move_once(equal *q) {
    const int32_t from = moe_extreme_device(q->surplus, q->p->devices, 1);
    const int32_t expert = largest_at_home(q, from);
    const int32_t to = roomiest(q, expert);
    const double most = to < 0 ? 0 : fmin(q->surplus[from], -q->surplus[to]);
    if (!(most > 0)) {
        return false;
    }
    const double tokens = fmin(most, q->at_home[expert]);
    if (!(tokens > 0)) {
        return false;
    }
    add_spill(q, expert, to, tokens);
    q->at_home[expert] -= tokens;
    q->surplus[from] -= tokens;
    q->surplus[to] += tokens;
    return true;
}

void moe_place_moonep(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const double mean = moe_problem_mean(p);
    equal q = {.p = p};
    q.surplus = moe_alloc(p->devices, sizeof *q.surplus, "placement");
    q.at_home = moe_alloc(p->num_experts, sizeof *q.at_home, "placement");
    q.room = moe_alloc(p->devices, sizeof *q.room, "placement");
    const int32_t most_moves = p->num_experts + 2 * p->devices;
    q.spill = moe_alloc(most_moves, sizeof *q.spill, "placement");
    for (int32_t d = 0; d < p->devices; d++) {
        q.surplus[d] = -mean;
        q.room[d] = room_for_copies(p);
    }
    for (int32_t e = 0; e < p->num_experts; e++) {
        q.at_home[e] = p->load[e];
        q.surplus[moe_native_home(p, e)] += p->load[e];
    }
    for (int32_t i = 0; i < most_moves && move_once(&q); i++) {}
    moe_answer_from_spills(p, q.spill, q.num_spills, a);
    moe_free(q.surplus);
    moe_free(q.at_home);
    moe_free(q.room);
    moe_free(q.spill);
}
