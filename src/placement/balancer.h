/* balancer.h: algorithms that decide which experts live where, and who gets a replica. All of them
 * are pure functions of one problem (the loads of one layer) and give one answer, so that they can
 * be compared on the same routing. docs/placement.md describes each with its source.
 *
 *     N experts    D devices    V nodes of D/V devices    S slots per device    L_e load of expert
 * e
 *
 * Everything is deterministic: where two candidates are equal, the one with the lower index wins,
 * unless the algorithm states another rule. */
#ifndef MOESIM_PLACEMENT_BALANCER_H
#define MOESIM_PLACEMENT_BALANCER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Along which links LPLB's replicas copy. MOE_LINKS_AUTO: a torus where there are several nodes,
 * else a hypercube where D is a power of two, else a torus. */
enum moe_links { MOE_LINKS_AUTO, MOE_LINKS_CUBE, MOE_LINKS_HYPERCUBE, MOE_LINKS_TORUS };

typedef struct moe_balancer_problem {
    int32_t num_experts;      /* N */
    int32_t devices;          /* D */
    int32_t nodes;            /* V divides D; node v has the devices v*D/V .. (v+1)*D/V - 1 */
    int32_t groups;           /* contiguous blocks of N/groups experts */
    int32_t slots_per_device; /* S, with D*S >= N */
    const double *load;       /* [N] tokens of each expert; not negative */
    const double *pairs;      /* [N,N] tokens that chose both experts, symmetric with a diagonal of
                                 zeros; NULL where they are not known */

    /* What single algorithms can be told; 0 is the default in brackets. */
    bool within_slots;  /* llep, moonep: copies use no more than S slots of a device, and what
                           finds no slot stays at home (as many as they need) */
    double alpha;       /* llep: the cap of a device as a multiple of the mean (1) */
    double least_batch; /* llep: the fewest tokens that are worth moving (1 % of a device's mean) */
    double move_cost;   /* epic: what a swap costs, in tokens (0.5 % of a device's mean) */
    enum moe_links links; /* lplb */
} moe_balancer_problem;

/* Who lives where, and which part of an expert's load each of its replicas serves. */
typedef struct moe_balancer_answer {
    int32_t slots_per_device; /* S; only llep and moonep may need more than the problem has */
    int32_t slots;            /* D * slots_per_device */
    int32_t *expert;          /* [slots] the expert in each slot; device d has the slots d*S ..
                                 (d+1)*S - 1. EPLB calls this phy2log */
    int32_t *replicas;        /* [N] slots of each expert, 1 or more. EPLB calls this logcnt */
    double *served;           /* [slots] tokens that the slot serves; they sum to L_e over the slots
                                 of expert e */
} moe_balancer_answer;

enum moe_balancer_needs {
    MOE_NEEDS_LOADS = 1,
    MOE_NEEDS_PAIRS = 2,
    MOE_NEEDS_NODES = 4,
    MOE_NEEDS_GROUPS = 8
};

/* What an algorithm decides anew for every batch. */
enum moe_balancer_timing {
    MOE_BALANCER_FIXED,  /* nothing: replicas share evenly until the next placement */
    MOE_BALANCER_SPLITS, /* which replica serves how much */
    MOE_BALANCER_PLANS   /* the replicas too: weights are fetched for one batch */
};

typedef struct moe_balancer {
    const char *name;   /* the value of placement.policy */
    const char *source; /* where it is described */
    unsigned needs;     /* of moe_balancer_needs */
    enum moe_balancer_timing timing;
    void (*place)(const moe_balancer_problem *, moe_balancer_answer *);
    void (*split)(const moe_balancer_problem *, moe_balancer_answer *);
} moe_balancer;

extern const moe_balancer moe_balancers[];
extern const int moe_num_balancers;

/* Local. The row of that name, or NULL. */
const moe_balancer *moe_balancer_find(const char *name);

/* Local. Whether the algorithm can work on the problem. Fails with MOE_USER and one sentence that
 * begins with its name: slots that are fewer than experts, nodes of unequal size, loads that are
 * not numbers, pairs that are missing, a problem too large for the exhaustive search. */
int moe_balancer_check(const moe_balancer *balancer,
                       const moe_balancer_problem *problem,
                       moe_status *st);

/* Local. Fills *answer, whose memory it reserves; an answer that was filled before is used again.
 * Asserts moe_balancer_check. The caller frees it with moe_balancer_answer_free. */
void moe_balancer_place(const moe_balancer *balancer,
                        const moe_balancer_problem *problem,
                        moe_balancer_answer *answer);

/* Local. Decides for the loads of another batch what the algorithm decides for every batch
 * (timing); the rest of *answer, which the algorithm has filled, stays. */
void moe_balancer_split(const moe_balancer *balancer,
                        const moe_balancer_problem *problem,
                        moe_balancer_answer *answer);

void moe_balancer_answer_free(moe_balancer_answer *answer);

/* Local. Fills *answer from the experts in the slots, as moe_balancer_place does; replicas share
 * evenly. */
void moe_balancer_answer_of(const moe_balancer_problem *problem,
                            const int32_t *expert_at,
                            moe_balancer_answer *answer);

/* Local. load [D]: the tokens that the slots of each device serve. Returns the largest. */
double moe_balancer_device_load(const moe_balancer_answer *answer, int32_t devices, double *load);

/* Local. Replicas that are on a device which has another one of the same expert. */
int32_t moe_balancer_wasted(const moe_balancer_answer *answer, int32_t devices);

#endif
