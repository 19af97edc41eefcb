/* joint.c: moesim's own balancer. It knows which experts are chosen together, and minimises
 *
 *     J = 4 busiest device / mean + 1 busiest receiver / mean + 1 mean square of (device / mean)
 *       + 2 (rows to devices of other nodes + rows to other nodes) / selections
 *
 * by exchanging the experts of two slots. Rows are distinct tokens: those of exchange.mode = token
 * where they go to devices, those of two_level where they go to nodes. The model of a placement
 * follows the rule by which a token chooses among replicas (its own device, then its node, then
 * evenly), for tokens that are spread evenly over the devices. With n replicas of an expert on a
 * node, r altogether, on R of V nodes:
 *
 *     a replica on that node serves   1/(V n) + (V - R)/(V r)   of the expert's load,
 *     and of that,                    (V - R)/(V r)             comes from other nodes.
 *
 * Rows are estimated from loads and pairs: where a set of experts is chosen S1 times, and S2 times
 * two of them by the same token, at least S1^2/(S1 + 2 S2) tokens chose one (Chung and Erdos), with
 * equality where every such token chose the same number.
 *
 * The search begins with EPLB's hierarchical and its global placement, and with EPIC's, which is
 * near to blocks and so keeps together what a router's group limit keeps together. The best end is
 * kept. A search goes through all pairs of slots in order, takes every exchange that lowers J, and
 * ends after a round without one or with its budget. An exchange never puts two replicas on one
 * device. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "placement/internal.h"

#define WEIGHT_DEVICE 4.0
#define WEIGHT_RECEIVER 1.0
#define WEIGHT_CROSS 2.0
#define WEIGHT_SPREAD 1.0

/* Of one search: exchanges that are judged, times parts. All searches of a layer take 50 to 100 ms.
 */
#define BUDGET 1500000

/* A set of experts, each with the share of its load that counts. There are three kinds: what a
 * device serves; what comes into a node from other nodes; what comes to a device from there. */
typedef struct part {
    double once;  /* S1 = sum of share_e L_e */
    double twice; /* S2 = factor * sum over pairs of share_e share_f C_ef */
    double *with; /* [N] sum over f of share_f C_ef */
} part;

typedef struct joint {
    const moe_balancer_problem *p;
    moe_balancer_answer *a;
    int32_t num_parts;   /* D + V + D: the three kinds, one after the other */
    part *part;          /* [num_parts] */
    double *with;        /* [num_parts][N] */
    int32_t *on_node;    /* [N][V] replicas on a node */
    int32_t *slot_of;    /* [D*S] the slots, sorted by expert */
    int32_t *first;      /* [N+1] those of expert e: slot_of[first[e]] .. */
    double *change[2];   /* [num_parts] share that each expert of an exchange gains in a part */
    double *trial_once;  /* [num_parts] S1 and S2 after the exchange that is judged */
    double *trial_twice; /* [num_parts] */
    double mean, selections, value;
    int64_t budget;
} joint;

/* --- the model --- */

static double pair(const joint *j, int32_t e, int32_t f) {
    return j->p->pairs[(int64_t)e * j->p->num_experts + f];
}

static double rows_of(double once, double twice) {
    return once > 0 ? once * once / (once + 2 * twice) : 0;
}

/* A pair crosses together; with single replicas both have the share (V-1)/V of their loads. */
static double pair_factor(const joint *j, int32_t at) {
    const double v = j->p->nodes;
    return at < j->p->devices || v == 1 ? 1 : v / (v - 1);
}

static double objective(const joint *j, const double *once, const double *twice) {
    const int32_t devices = j->p->devices;
    double load = 0, rows = 0, sum_rows = 0, squares = 0, crossing = 0;
    for (int32_t d = 0; d < devices; d++) {
        const double mine = rows_of(once[d], twice[d]);
        load = fmax(load, once[d]);
        rows = fmax(rows, mine);
        sum_rows += mine;
        squares += once[d] * once[d];
    }
    for (int32_t i = devices; i < j->num_parts; i++) {
        crossing += rows_of(once[i], twice[i]);
    }
    return WEIGHT_DEVICE * load / j->mean + WEIGHT_RECEIVER * rows * devices / sum_rows +
           WEIGHT_CROSS * crossing / j->selections +
           WEIGHT_SPREAD * squares / (devices * j->mean * j->mean);
}

static int32_t device_of(const joint *j, int32_t slot) {
    return slot / j->a->slots_per_device;
}
static int32_t node_of(const joint *j, int32_t slot) {
    return device_of(j, slot) / (j->p->devices / j->p->nodes);
}

/* Adds sign times the shares that expert e has in every part. */
static void add_shares(const joint *j, int32_t e, double sign, double *share) {
    const int32_t *on = j->on_node + (int64_t)e * j->p->nodes;
    const double v = j->p->nodes, r = j->first[e + 1] - j->first[e];
    double reached = 0;
    for (int32_t node = 0; node < j->p->nodes; node++) {
        reached += on[node] > 0;
    }
    const double away = (v - reached) / (v * r);
    for (int32_t i = j->first[e]; i < j->first[e + 1]; i++) {
        const int32_t slot = j->slot_of[i], node = node_of(j, slot);
        share[device_of(j, slot)] += sign * (1 / (v * on[node]) + away);
        share[j->p->devices + node] += sign * away;
        share[j->p->devices + j->p->nodes + device_of(j, slot)] += sign * away;
    }
}

/* --- the state --- */

/* Adds an expert's gain of share to a part. */
static void add_to_part(joint *j, int32_t at, int32_t e, double share) {
    part *to = &j->part[at];
    to->once += share * j->p->load[e];
    to->twice += pair_factor(j, at) * share * to->with[e];
    for (int32_t f = 0; f < j->p->num_experts; f++) {
        to->with[f] += share * pair(j, e, f);
    }
}

static void sort_slots(joint *j) {
    int32_t *next = moe_alloc(j->p->num_experts, sizeof *next, "joint");
    j->first[0] = 0;
    for (int32_t e = 0; e < j->p->num_experts; e++) {
        next[e] = j->first[e];
        j->first[e + 1] = j->first[e] + j->a->replicas[e];
    }
    for (int32_t s = 0; s < j->a->slots; s++) {
        const int32_t e = j->a->expert[s];
        j->slot_of[next[e]++] = s;
        j->on_node[(int64_t)e * j->p->nodes + node_of(j, s)]++;
    }
    moe_free(next);
}

/* Makes the parts of the answer from nothing. */
static void begin(joint *j) {
    const int32_t n = j->p->num_experts;
    memset(j->with, 0, (size_t)j->num_parts * (size_t)n * sizeof *j->with);
    memset(j->on_node, 0, (size_t)n * (size_t)j->p->nodes * sizeof *j->on_node);
    for (int32_t i = 0; i < j->num_parts; i++) {
        j->part[i] = (part){.with = j->with + (int64_t)i * n};
    }
    sort_slots(j);
    for (int32_t e = 0; e < n; e++) {
        memset(j->change[0], 0, (size_t)j->num_parts * sizeof *j->change[0]);
        add_shares(j, e, 1, j->change[0]);
        for (int32_t i = 0; i < j->num_parts; i++) {
            if (j->change[0][i] != 0) {
                add_to_part(j, i, e, j->change[0][i]);
            }
        }
    }
    for (int32_t i = 0; i < j->num_parts; i++) {
        j->trial_once[i] = j->part[i].once;
        j->trial_twice[i] = j->part[i].twice;
    }
    j->value = objective(j, j->trial_once, j->trial_twice);
}

/* --- one exchange --- */

/* Puts expert e from one slot into another: into the list of its slots and the counts by node. */
static void move_expert(joint *j, int32_t e, int32_t from, int32_t to) {
    int32_t i = j->first[e];
    while (j->slot_of[i] != from) {
        i++;
    }
    j->slot_of[i] = to;
    j->on_node[(int64_t)e * j->p->nodes + node_of(j, from)]--;
    j->on_node[(int64_t)e * j->p->nodes + node_of(j, to)]++;
}

/* Exchanges the experts of two slots and leaves in `change` what each gains in every part. */
static void exchange(joint *j, int32_t s, int32_t t) {
    const int32_t e = j->a->expert[s], f = j->a->expert[t];
    for (int i = 0; i < 2; i++) {
        memset(j->change[i], 0, (size_t)j->num_parts * sizeof *j->change[i]);
    }
    add_shares(j, e, -1, j->change[0]);
    add_shares(j, f, -1, j->change[1]);
    move_expert(j, e, s, t);
    move_expert(j, f, t, s);
    add_shares(j, e, 1, j->change[0]);
    add_shares(j, f, 1, j->change[1]);
    j->a->expert[s] = f;
    j->a->expert[t] = e;
}

/* J after the exchange that is in `change`. */
static double judge(joint *j, int32_t e, int32_t f) {
    for (int32_t i = 0; i < j->num_parts; i++) {
        const double more = j->change[0][i], other = j->change[1][i];
        const part *now = &j->part[i];
        j->trial_once[i] = now->once + more * j->p->load[e] + other * j->p->load[f];
        j->trial_twice[i] =
            now->twice + pair_factor(j, i) * (more * now->with[e] + other * now->with[f] +
                                              more * other * pair(j, e, f));
    }
    return objective(j, j->trial_once, j->trial_twice);
}

static void accept(joint *j, int32_t e, int32_t f, double value) {
    for (int32_t i = 0; i < j->num_parts; i++) {
        if (j->change[0][i] != 0) {
            add_to_part(j, i, e, j->change[0][i]);
        }
        if (j->change[1][i] != 0) {
            add_to_part(j, i, f, j->change[1][i]);
        }
    }
    j->value = value;
}

/* A quick look at what cannot help: an exchange that would make one of the two devices busier than
 * the busiest is by a twentieth. */
static bool may_help(const joint *j, int32_t s, int32_t t, double most) {
    const int32_t e = j->a->expert[s], f = j->a->expert[t];
    const int32_t from = device_of(j, s), to = device_of(j, t);
    if (e == f || from == to || moe_answer_has(j->a, to, e) || moe_answer_has(j->a, from, f)) {
        return false;
    }
    const double difference = j->p->load[e] / j->a->replicas[e] - j->p->load[f] / j->a->replicas[f];
    return j->part[from].once - difference <= 1.05 * most &&
           j->part[to].once + difference <= 1.05 * most;
}

/* Exchanges the experts of two slots if J becomes smaller. */
static bool try_exchange(joint *j, int32_t s, int32_t t) {
    const int32_t e = j->a->expert[s], f = j->a->expert[t];
    j->budget -= j->num_parts;
    exchange(j, s, t);
    const double value = judge(j, e, f);
    if (value < j->value - 1e-9) {
        accept(j, e, f, value);
        return true;
    }
    move_expert(j, e, t, s);
    move_expert(j, f, s, t);
    j->a->expert[s] = e;
    j->a->expert[t] = f;
    return false;
}

/* --- the search --- */

static double busiest(const joint *j) {
    double most = 0;
    for (int32_t d = 0; d < j->p->devices; d++) {
        most = fmax(most, j->part[d].once);
    }
    return most;
}

static void search(joint *j) {
    bool better = true;
    j->budget = BUDGET;
    begin(j);
    while (better && j->budget > 0) {
        better = false;
        for (int32_t s = 0; s < j->a->slots && j->budget > 0; s++) {
            double most = busiest(j);
            for (int32_t t = s + 1; t < j->a->slots && j->budget > 0; t++) {
                if (may_help(j, s, t, most) && try_exchange(j, s, t)) {
                    better = true;
                    most = busiest(j);
                }
            }
        }
    }
}

static void open_search(joint *j, const moe_balancer_problem *p) {
    const int64_t slots = (int64_t)p->devices * p->slots_per_device, n = p->num_experts;
    const int64_t parts = 2 * p->devices + p->nodes;
    *j = (joint){.p = p, .num_parts = (int32_t)parts, .mean = moe_problem_mean(p)};
    j->selections = j->mean * p->devices;
    j->part = moe_alloc(parts, sizeof *j->part, "joint");
    j->with = moe_alloc(parts * n, sizeof *j->with, "joint");
    j->on_node = moe_alloc(n * p->nodes, sizeof *j->on_node, "joint");
    j->slot_of = moe_alloc(slots, sizeof *j->slot_of, "joint");
    j->first = moe_alloc(n + 1, sizeof *j->first, "joint");
    j->change[0] = moe_alloc(parts, sizeof *j->change[0], "joint");
    j->change[1] = moe_alloc(parts, sizeof *j->change[1], "joint");
    j->trial_once = moe_alloc(parts, sizeof *j->trial_once, "joint");
    j->trial_twice = moe_alloc(parts, sizeof *j->trial_twice, "joint");
}

static void close_search(joint *j) {
    moe_free(j->part);
    moe_free(j->with);
    moe_free(j->on_node);
    moe_free(j->slot_of);
    moe_free(j->first);
    moe_free(j->change[0]);
    moe_free(j->change[1]);
    moe_free(j->trial_once);
    moe_free(j->trial_twice);
}

/* Searches from one more placement and keeps the end of it if it is better than the best so far. */
static void search_from(joint *j,
                        void (*place)(const moe_balancer_problem *, moe_balancer_answer *),
                        double *best,
                        moe_balancer_answer *a) {
    place(j->p, j->a);
    search(j);
    if (j->value < *best) {
        *best = j->value;
        memcpy(a->expert, j->a->expert, (size_t)a->slots * sizeof *a->expert);
    }
}

void moe_place_joint(const moe_balancer_problem *p, moe_balancer_answer *a) {
    joint j;
    moe_balancer_answer trial = {0};
    double best = INFINITY;
    moe_place_eplb(p, a);
    if (moe_problem_mean(p) == 0) {
        return; /* nothing was chosen, so that every placement is as good */
    }
    open_search(&j, p);
    j.a = &trial;
    search_from(&j, moe_place_eplb, &best, a);
    search_from(&j, moe_place_eplb_global, &best, a);
    if (p->num_experts % p->devices == 0) {
        search_from(&j, moe_place_epic, &best, a);
    }
    moe_answer_share_evenly(p, a);
    close_search(&j);
    moe_balancer_answer_free(&trial);
}
