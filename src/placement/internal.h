/* internal.h: what the balancers of this folder share. */
#ifndef MOESIM_PLACEMENT_INTERNAL_H
#define MOESIM_PLACEMENT_INTERNAL_H

#include "placement/balancer.h"

/* --- answers --- */

/* Local. Gives the answer slots_per_device slots on each device, all empty (-1) and serving
 * nothing. */
void moe_answer_reserve(const moe_balancer_problem *p,
                        moe_balancer_answer *a,
                        int32_t slots_per_device);

/* Local. From the expert in every slot: counts replicas and lets those of an expert serve equal
 * parts of its load. */
void moe_answer_share_evenly(const moe_balancer_problem *p, moe_balancer_answer *a);

/* Local. Counts the replicas. */
void moe_answer_count(const moe_balancer_problem *p, moe_balancer_answer *a);

/* Local. Whether device d has the expert in one of its slots. */
bool moe_answer_has(const moe_balancer_answer *a, int32_t device, int32_t expert);

/* Local. Puts replicas into all empty slots, which serve nothing: device by device the expert of
 * the largest load per replica that the device does not have yet. Needs the replicas counted. */
void moe_answer_fill(const moe_balancer_problem *p, moe_balancer_answer *a);

/* Local. Whether D divides N, so that every device has as many native experts: expert e is at home
 * on device e / (N/D), in the slot e % (N/D). */
static inline int32_t moe_native_slots(const moe_balancer_problem *p) {
    return p->num_experts / p->devices;
}
static inline int32_t moe_native_home(const moe_balancer_problem *p, int32_t expert) {
    return expert / moe_native_slots(p);
}

/* Local. The mean load of a device. */
double moe_problem_mean(const moe_balancer_problem *p);

/* Tokens of an expert that another device than its home serves. */
typedef struct moe_spill {
    int32_t expert, device;
    double tokens;
} moe_spill;

/* Local. Fills an answer in which every expert is at home and, for each spill, also on another
 * device: no two spills agree in expert and device. Has as many slots on each device as the
 * problem, or as the device with the most experts needs. */
void moe_answer_from_spills(const moe_balancer_problem *p,
                            const moe_spill *spill,
                            int32_t num_spills,
                            moe_balancer_answer *a);

/* --- choices --- */

/* Local. order [n]: the indices by falling value, equal values by rising index. */
void moe_order_falling(const double *value, int32_t n, int32_t *order);

/* Local. Gives every expert one replica and each further one of num_slots to the expert with the
 * largest load per replica. */
void moe_allot_greedily(const double *load, int32_t n, int32_t num_slots, int32_t *replicas);

/* Local. Puts the allotted replicas into an empty answer: the largest load per replica first, each
 * on the lightest device that has a free slot and not yet this expert; if all that have a free slot
 * have it, on the lightest of them. Returns the load of the busiest device. */
double moe_pack_replicas(const moe_balancer_problem *p,
                         const int32_t *replicas,
                         moe_balancer_answer *a);

/* Local. Exchanges slots of the busiest device with slots of others as long as that lowers the
 * larger load of the two. Replicas share evenly. Returns the load of the busiest device. */
double moe_improve_by_swaps(const moe_balancer_problem *p, moe_balancer_answer *a);

/* Local. The device with the largest (sign 1) or smallest (sign -1) value; the first of equals. */
int32_t moe_extreme_device(const double *value, int32_t devices, double sign);

/* --- the algorithms --- */

void moe_place_block(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_round_robin(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_eplb(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_eplb_global(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_flashlb(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_lplb(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_split_lplb(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_llep(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_moonep(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_epic(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_joint(const moe_balancer_problem *p, moe_balancer_answer *a);
void moe_place_optimal(const moe_balancer_problem *p, moe_balancer_answer *a);

/* Local. Whether LPLB's links fit the number of devices, and whether the exhaustive search would
 * end within about a second. */
bool moe_links_fit(const moe_balancer_problem *p);
bool moe_optimal_fits(const moe_balancer_problem *p);

#endif
