/* balancer.c: the table of balancers, what they refuse, and the figures of an answer. */
#include "placement/balancer.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- the table --- */

const moe_balancer moe_balancers[] = {
    {"block", "vLLM's initial layout: slot p has expert p mod N", 0, MOE_BALANCER_FIXED,
     moe_place_block, moe_answer_share_evenly},
    {"round_robin", "experts dealt out to the devices in turn", 0, MOE_BALANCER_FIXED,
     moe_place_round_robin, moe_answer_share_evenly},
    {"eplb", "EPLB, hierarchical (deepseek-ai/EPLB)",
     MOE_NEEDS_LOADS | MOE_NEEDS_NODES | MOE_NEEDS_GROUPS, MOE_BALANCER_FIXED, moe_place_eplb,
     moe_answer_share_evenly},
    {"eplb_global", "EPLB, global (deepseek-ai/EPLB)", MOE_NEEDS_LOADS, MOE_BALANCER_FIXED,
     moe_place_eplb_global, moe_answer_share_evenly},
    {"flashlb", "in the manner of FlashLB (vllm-ascend)", MOE_NEEDS_LOADS, MOE_BALANCER_FIXED,
     moe_place_flashlb, moe_answer_share_evenly},
    {"lplb", "LPLB (deepseek-ai/LPLB)", MOE_NEEDS_LOADS | MOE_NEEDS_NODES, MOE_BALANCER_SPLITS,
     moe_place_lplb, moe_split_lplb},
    {"llep", "least-loaded expert parallelism", MOE_NEEDS_LOADS, MOE_BALANCER_PLANS, moe_place_llep,
     moe_place_llep},
    {"moonep", "in the manner of MoonEP (MoonshotAI/MoonEP)", MOE_NEEDS_LOADS, MOE_BALANCER_PLANS,
     moe_place_moonep, moe_place_moonep},
    {"epic", "EPIC's pairwise swaps", MOE_NEEDS_LOADS, MOE_BALANCER_FIXED, moe_place_epic,
     moe_answer_share_evenly},
    {"joint", "moesim's own: load, receivers and cross-node rows together",
     MOE_NEEDS_LOADS | MOE_NEEDS_PAIRS | MOE_NEEDS_NODES, MOE_BALANCER_FIXED, moe_place_joint,
     moe_answer_share_evenly},
    {"optimal", "exhaustive search, for small problems", MOE_NEEDS_LOADS, MOE_BALANCER_FIXED,
     moe_place_optimal, moe_answer_share_evenly},
};
const int moe_num_balancers = sizeof moe_balancers / sizeof moe_balancers[0];

const moe_balancer *moe_balancer_find(const char *name) {
    for (int i = 0; i < moe_num_balancers; i++) {
        if (strcmp(moe_balancers[i].name, name) == 0) {
            return &moe_balancers[i];
        }
    }
    return NULL;
}

/* --- what is refused --- */

static int check_shape(const char *name, const moe_balancer_problem *p, moe_status *st) {
    const int64_t slots = (int64_t)p->devices * p->slots_per_device;
    if (slots < p->num_experts) {
        return moe_fail(st, MOE_USER, "%s: %d experts do not fit into %lld slots", name,
                        p->num_experts, (long long)slots);
    }
    if (p->devices % p->nodes != 0) {
        return moe_fail(st, MOE_USER, "%s: %d devices on %d nodes make nodes of unequal size", name,
                        p->devices, p->nodes);
    }
    return MOE_OK;
}

static int check_loads(const char *name, const moe_balancer_problem *p, moe_status *st) {
    for (int32_t e = 0; e < p->num_experts; e++) {
        if (!(p->load[e] >= 0 && isfinite(p->load[e]))) {
            return moe_fail(st, MOE_USER,
                            "%s: the load of expert %d is %g, and a load is a number of tokens",
                            name, e, p->load[e]);
        }
    }
    return MOE_OK;
}

/* What begins with native experts needs as many of them on every device. */
static bool begins_native(const moe_balancer *b) {
    return b->place == moe_place_llep || b->place == moe_place_moonep ||
           b->place == moe_place_epic || b->place == moe_place_lplb;
}

/* What a single algorithm cannot do. */
static int check_special(const moe_balancer *b, const moe_balancer_problem *p, moe_status *st) {
    const bool by_groups = (b->needs & MOE_NEEDS_GROUPS) && p->groups % p->nodes == 0;
    if (by_groups && p->num_experts % p->groups != 0) {
        return moe_fail(st, MOE_USER, "%s: %d experts in %d groups make groups of unequal size",
                        b->name, p->num_experts, p->groups);
    }
    if (begins_native(b) && p->num_experts % p->devices != 0) {
        return moe_fail(st, MOE_USER, "%s: %d devices do not divide %d experts", b->name,
                        p->devices, p->num_experts);
    }
    if ((b->needs & MOE_NEEDS_PAIRS) && !p->pairs) {
        return moe_fail(st, MOE_USER,
                        "%s: loads alone do not say which experts are chosen together", b->name);
    }
    if (b->place == moe_place_lplb && !moe_links_fit(p)) {
        return moe_fail(st, MOE_USER, "%s: %d devices do not make %s", b->name, p->devices,
                        p->links == MOE_LINKS_CUBE ? "cubes of 8" : "a hypercube");
    }
    if (b->place == moe_place_optimal && !moe_optimal_fits(p)) {
        return moe_fail(st, MOE_USER, "%s: %d experts in %d slots are too many for a search of all",
                        b->name, p->num_experts, p->devices * p->slots_per_device);
    }
    return MOE_OK;
}

int moe_balancer_check(const moe_balancer *b, const moe_balancer_problem *p, moe_status *st) {
    if (check_shape(b->name, p, st) == MOE_OK && check_loads(b->name, p, st) == MOE_OK) {
        check_special(b, p, st);
    }
    return st->code;
}

void moe_balancer_place(const moe_balancer *b,
                        const moe_balancer_problem *p,
                        moe_balancer_answer *a) {
    moe_status st = {0};
    MOE_ASSERT(moe_balancer_check(b, p, &st) == MOE_OK);
    b->place(p, a);
}

void moe_balancer_split(const moe_balancer *b,
                        const moe_balancer_problem *p,
                        moe_balancer_answer *a) {
    b->split(p, a);
}

/* --- answers --- */

void moe_answer_reserve(const moe_balancer_problem *p,
                        moe_balancer_answer *a,
                        int32_t slots_per_device) {
    const int32_t slots = p->devices * slots_per_device;
    const int64_t bytes = p->num_experts * (int64_t)sizeof *a->replicas;
    if (a->slots != slots || moe_alloc_bytes(a->replicas) != bytes) {
        moe_balancer_answer_free(a);
        a->expert = moe_alloc(slots, sizeof *a->expert, "placement");
        a->served = moe_alloc(slots, sizeof *a->served, "placement");
        a->replicas = moe_alloc(p->num_experts, sizeof *a->replicas, "placement");
    }
    a->slots = slots;
    a->slots_per_device = slots_per_device;
    for (int32_t s = 0; s < slots; s++) {
        a->expert[s] = -1;
        a->served[s] = 0;
    }
}

void moe_balancer_answer_free(moe_balancer_answer *a) {
    moe_free(a->expert);
    moe_free(a->served);
    moe_free(a->replicas);
    *a = (moe_balancer_answer){0};
}

void moe_balancer_answer_of(const moe_balancer_problem *p,
                            const int32_t *expert_at,
                            moe_balancer_answer *a) {
    moe_answer_reserve(p, a, p->slots_per_device);
    memcpy(a->expert, expert_at, (size_t)a->slots * sizeof *a->expert);
    moe_answer_share_evenly(p, a);
}

void moe_answer_count(const moe_balancer_problem *p, moe_balancer_answer *a) {
    memset(a->replicas, 0, (size_t)p->num_experts * sizeof *a->replicas);
    for (int32_t s = 0; s < a->slots; s++) {
        if (a->expert[s] >= 0) {
            a->replicas[a->expert[s]]++;
        }
    }
}

void moe_answer_share_evenly(const moe_balancer_problem *p, moe_balancer_answer *a) {
    moe_answer_count(p, a);
    for (int32_t s = 0; s < a->slots; s++) {
        a->served[s] = p->load[a->expert[s]] / a->replicas[a->expert[s]];
    }
}

bool moe_answer_has(const moe_balancer_answer *a, int32_t device, int32_t expert) {
    const int32_t *slot = a->expert + device * a->slots_per_device;
    for (int32_t i = 0; i < a->slots_per_device; i++) {
        if (slot[i] == expert) {
            return true;
        }
    }
    return false;
}

/* The expert of the largest load per replica that the device lacks, or expert 0 where it has all.
 */
static int32_t most_wanted(const moe_balancer_problem *p,
                           const moe_balancer_answer *a,
                           int32_t device) {
    int32_t best = 0;
    double most = -1;
    for (int32_t e = 0; e < p->num_experts; e++) {
        const double each = p->load[e] / a->replicas[e];
        if (each > most && !moe_answer_has(a, device, e)) {
            most = each;
            best = e;
        }
    }
    return best;
}

void moe_answer_fill(const moe_balancer_problem *p, moe_balancer_answer *a) {
    for (int32_t s = 0; s < a->slots; s++) {
        if (a->expert[s] < 0) {
            a->expert[s] = most_wanted(p, a, s / a->slots_per_device);
            a->replicas[a->expert[s]]++;
        }
    }
}

double moe_problem_mean(const moe_balancer_problem *p) {
    double sum = 0;
    for (int32_t e = 0; e < p->num_experts; e++) {
        sum += p->load[e];
    }
    return sum / p->devices;
}

/* --- figures --- */

double moe_balancer_device_load(const moe_balancer_answer *a, int32_t devices, double *load) {
    double most = 0;
    for (int32_t d = 0; d < devices; d++) {
        load[d] = 0;
        for (int32_t i = 0; i < a->slots_per_device; i++) {
            load[d] += a->served[d * a->slots_per_device + i];
        }
        most = fmax(most, load[d]);
    }
    return most;
}

int32_t moe_balancer_wasted(const moe_balancer_answer *a, int32_t devices) {
    int32_t wasted = 0;
    for (int32_t d = 0; d < devices; d++) {
        const int32_t *slot = a->expert + d * a->slots_per_device;
        for (int32_t i = 1; i < a->slots_per_device; i++) {
            bool again = false;
            for (int32_t j = 0; j < i; j++) {
                again = again || slot[j] == slot[i];
            }
            wasted += again;
        }
    }
    return wasted;
}
