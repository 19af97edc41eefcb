/* unit_split.c: who serves whom in a batch that is split. Runs of tokens say the same as the naive
 * rule of serve.c, which goes through the tokens three times: every choice goes to the same device,
 * over seeds, placements with replicas, nodes and quotas. And what no token of a device chose is
 * still served by somebody who has it.
 *
 * ctest: serial */
#include <string.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "placement/balancer.h"
#include "placement/serve.h"
#include "placement/split.h"

enum { MOST_TOKENS = 97, K = 3, SEEDS = 60 };

typedef struct made {
    int32_t n, devices, nodes, each, tokens;
    int32_t *expert_at;
    int32_t chosen[MOST_TOKENS * K], home[MOST_TOKENS], slot[MOST_TOKENS * K];
    double *load;
} made;

static uint64_t seed_of_test;
static uint32_t drawn;

static int32_t below(int32_t limit) {
    const double u = moe_rng_uniform((moe_rng){seed_of_test, MOE_RNG_TEST}, drawn++, 0, 0);
    return (int32_t)(u * limit);
}

static void make(made *m, uint64_t seed) {
    seed_of_test = seed;
    drawn = 0;
    m->nodes = 1 + below(3);
    m->devices = m->nodes * (1 + below(4));
    m->each = 1 + below(5);
    const int32_t slots = m->devices * m->each;
    m->n = K > slots ? slots : K + below(slots - K + 1);
    m->tokens = m->devices + below(MOST_TOKENS - m->devices);
    m->expert_at = moe_alloc(slots, sizeof *m->expert_at, "test");
    m->load = moe_alloc_zero(m->n, sizeof *m->load, "test");
    for (int32_t s = 0; s < slots; s++) {
        m->expert_at[s] = s < m->n ? s : below(m->n);
    }
    for (int32_t s = slots - 1; s > 0; s--) { /* shuffled */
        const int32_t other = below(s + 1), e = m->expert_at[s];
        m->expert_at[s] = m->expert_at[other];
        m->expert_at[other] = e;
    }
    for (int32_t t = 0; t < m->tokens; t++) {
        m->home[t] = (int32_t)((int64_t)t * m->devices / m->tokens);
        for (int32_t k = 0; k < K; k++) {
            int32_t e = k < m->n && below(5) ? below(1 + below(m->n)) : -1;
            for (int32_t i = 0; i < k; i++) {
                e = m->chosen[t * K + i] == e ? -1 : e;
            }
            m->chosen[t * K + k] = e;
            if (e >= 0) {
                m->load[e]++;
            }
        }
    }
}

/* Quotas that are no whole numbers, some of them 0. Of several replicas on a device the first has
 * all: the rule of a run, where serve.c would count both. */
static void draw_quotas(const made *m, const moe_placement *p, double *served) {
    for (int32_t e = 0; e < m->n; e++) {
        double weight[64] = {0}, sum = 0;
        for (int32_t i = p->first[e]; i < p->first[e + 1]; i++) {
            const int32_t slot = p->slot_of[i];
            const bool first = moe_placement_find(p, e, slot / m->each) == slot;
            weight[i - p->first[e]] = first ? below(4) + (i == p->first[e]) : 0;
            sum += weight[i - p->first[e]];
        }
        for (int32_t i = p->first[e]; i < p->first[e + 1]; i++) {
            served[p->slot_of[i]] = m->load[e] * weight[i - p->first[e]] / sum;
        }
    }
}

static void check_seed(uint64_t seed) {
    made m;
    moe_placement p;
    moe_balancer_answer a = {0};
    make(&m, seed);
    const int32_t slots = m.devices * m.each;
    const moe_balancer_problem problem = {.num_experts = m.n,
                                          .devices = m.devices,
                                          .nodes = m.nodes,
                                          .slots_per_device = m.each,
                                          .load = m.load};
    moe_placement_init(&p, m.n, m.devices, m.each, m.devices / m.nodes);
    moe_placement_fill(&p, m.expert_at);
    p.replicated = true;
    moe_split_init(&p);
    moe_balancer_answer_of(&problem, m.expert_at, &a);
    draw_quotas(&m, &p, a.served);
    const moe_choices choices = {m.tokens, K, m.chosen, m.home};
    moe_serve_choices(&problem, &a, true, &choices, m.slot);

    int64_t *count = moe_alloc_zero(m.devices * m.n, sizeof *count, "test");
    int64_t *share = moe_alloc(m.devices * slots, sizeof *share, "test");
    moe_split_walk w = {moe_alloc(m.n, sizeof *w.place, "test"),
                        moe_alloc(m.n, sizeof *w.left, "test")};
    for (int32_t i = 0; i < m.tokens * K; i++) {
        if (m.chosen[i] >= 0) {
            count[m.home[i / K] * m.n + m.chosen[i]]++;
        }
    }
    moe_split_share(&p, count, a.served, share);
    for (int32_t d = 0; d < m.devices; d++) {
        moe_split_begin(&p, d, share + d * slots, &w);
        for (int32_t i = 0; i < m.tokens * K; i++) {
            if (m.home[i / K] == d && m.chosen[i] >= 0) {
                moe_split_choice(&p, d, share + d * slots, &w, m.chosen[i], i / K);
            }
        }
        moe_split_end(&p, d, &w);
    }
    for (int32_t i = 0; i < m.tokens * K; i++) {
        if (m.chosen[i] >= 0) {
            const int32_t device = moe_placement_device(&p, m.chosen[i], i / K, m.home[i / K]);
            CHECK_MSG(
                device == m.slot[i] / m.each,
                "seed %llu: choice %d of expert %d goes to device %d, and to %d token by token",
                (unsigned long long)seed, i, m.chosen[i], device, m.slot[i] / m.each);
        }
    }
    for (int32_t e = 0; e < m.n; e++) {
        for (int32_t d = 0; d < m.devices; d++) {
            const int32_t device = moe_placement_device(&p, e, m.tokens + 5, d);
            CHECK(moe_placement_find(&p, e, device) >= 0);
        }
    }
    moe_free(count);
    moe_free(share);
    moe_free(w.place);
    moe_free(w.left);
    moe_free(m.expert_at);
    moe_free(m.load);
    moe_balancer_answer_free(&a);
    moe_placement_free(&p);
}

static void test_seeds(void) {
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        check_seed(seed);
    }
}

int main(void) {
    RUN(test_seeds);
    return check_verdict();
}
