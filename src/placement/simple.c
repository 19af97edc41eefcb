/* simple.c: the layouts that look at no load. With as many slots as experts they are the usual
 * ones; further slots begin again with expert 0. */
#include "placement/internal.h"

void moe_place_block(const moe_balancer_problem *p, moe_balancer_answer *a) {
    moe_answer_reserve(p, a, p->slots_per_device);
    for (int32_t s = 0; s < a->slots; s++) {
        a->expert[s] = s % p->num_experts;
    }
    moe_answer_share_evenly(p, a);
}

void moe_place_round_robin(const moe_balancer_problem *p, moe_balancer_answer *a) {
    moe_answer_reserve(p, a, p->slots_per_device);
    for (int32_t s = 0; s < a->slots; s++) {
        const int32_t device = s / a->slots_per_device, place = s % a->slots_per_device;
        a->expert[s] = (place * p->devices + device) % p->num_experts;
    }
    moe_answer_share_evenly(p, a);
}
