/* place.c: the balancers, for plain arrays. */
#include <math.h>
#include <string.h>

#include "library/internal.h"
#include "placement/balancer.h"

/* What moe_balancer_check takes for granted. */
static int check_numbers(const moe_balancer_problem *p, moe_status *st) {
    if (p->num_experts < 1 || p->devices < 1 || p->nodes < 1 || p->groups < 1 ||
        p->slots_per_device < 1 || p->num_experts > 1 << 20 || p->devices > 1 << 20 ||
        p->slots_per_device > p->num_experts) {
        return moe_fail(st, MOE_USER,
                        "%d experts, %d devices, %d nodes, %d groups and %d slots on a device: "
                        "each is at least 1, experts and devices at most 1048576, and a device "
                        "has at most as many slots as there are experts",
                        p->num_experts, p->devices, p->nodes, p->groups, p->slots_per_device);
    }
    for (int64_t i = 0; p->pairs && i < (int64_t)p->num_experts * p->num_experts; i++) {
        if (!(p->pairs[i] >= 0 && isfinite(p->pairs[i]))) {
            return moe_fail(st, MOE_USER, "pairs [%lld,%lld] is %g, and it is a number of tokens",
                            (long long)(i / p->num_experts), (long long)(i % p->num_experts),
                            p->pairs[i]);
        }
    }
    return MOE_OK;
}

static int place(const char *policy,
                 const moe_balancer_problem *p,
                 int32_t *expert,
                 double *served,
                 moe_status *st) {
    const moe_balancer *balancer = moe_balancer_find(policy);
    moe_balancer_answer answer = {0};
    if (!balancer) {
        return moe_fail(st, MOE_USER, "there is no balancer '%.60s'", policy);
    }
    if (check_numbers(p, st) != MOE_OK || moe_balancer_check(balancer, p, st) != MOE_OK) {
        return st->code;
    }
    moe_balancer_place(balancer, p, &answer);
    if (answer.slots_per_device != p->slots_per_device) {
        moe_fail(st, MOE_USER, "%s: these loads need %d slots on a device, and there are %d",
                 policy, answer.slots_per_device, p->slots_per_device);
    } else {
        memcpy(expert, answer.expert, (size_t)answer.slots * sizeof *expert);
        if (served) {
            memcpy(served, answer.served, (size_t)answer.slots * sizeof *served);
        }
    }
    moe_balancer_answer_free(&answer);
    return st->code;
}

int moesim_place(const char *policy,
                 int32_t num_experts,
                 int32_t devices,
                 int32_t nodes,
                 int32_t groups,
                 int32_t slots_per_device,
                 const double *load,
                 const double *pairs,
                 int32_t *expert,
                 double *served,
                 char *error) {
    moe_status st = {0};
    const moe_balancer_problem problem = {.num_experts = num_experts,
                                          .devices = devices,
                                          .nodes = nodes,
                                          .groups = groups,
                                          .slots_per_device = slots_per_device,
                                          .load = load,
                                          .pairs = pairs};
    if (!policy || !load || !expert) {
        moe_fail(&st, MOE_USER, "policy, load and expert have to be given");
    } else {
        place(policy, &problem, expert, served, &st);
    }
    return moe_layer_report(&st, error);
}
