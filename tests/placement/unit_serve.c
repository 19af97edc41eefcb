/* unit_serve.c: which replica serves which token, and the rows: a small case by hand, and over
 * seeds that every choice is served by its expert, quotas are kept, and joint sends fewer rows
 * across nodes than EPLB does where experts of a topic are chosen together. */
#include <math.h>

#include "base/alloc.h"
#include "base/rng.h"
#include "check.h"
#include "placement/balancer.h"
#include "placement/serve.h"

enum { N = 32, D = 8, V = 4, K = 4 };

static double draw(uint64_t seed, uint64_t t, uint32_t i) {
    return moe_rng_uniform((moe_rng){seed, MOE_RNG_TEST}, t, i, 0);
}

/* Two devices on each of two nodes. Expert 0 lives on the devices 0 and 2, 1 on 1 and 3, 2 on 0 and
 * 1, 3 on 2, 4 on 3. */
static void test_by_hand(void) {
    int32_t expert[] = {0, 2, 1, 2, 0, 3, 1, 4}, replicas[] = {2, 2, 2, 1, 1}, slot[10];
    double served[8] = {0}, load[5], pairs[25] = {0};
    const moe_balancer_problem p = {.num_experts = 5, .devices = 4, .nodes = 2};
    const moe_balancer_answer a = {2, 8, expert, replicas, served};
    /* a device's own replica; one of the node; number t mod 2 of both; nothing */
    const int32_t chosen[] = {0, 3, 1, -1, 2, 0, 2, 0, 4, 1}, home[] = {0, 0, 3, 3, 1};
    const moe_choices c = {5, 2, chosen, home};
    moe_choices_count(&c, 5, load, pairs);
    CHECK(load[0] == 3 && load[1] == 2 && load[2] == 2 && load[3] == 1 && load[4] == 1);
    CHECK(pairs[0 * 5 + 3] == 1 && pairs[3 * 5 + 0] == 1 && pairs[2 * 5 + 0] == 2 &&
          pairs[1 * 5 + 4] == 1 && pairs[0] == 0 && pairs[1 * 5 + 2] == 0);
    moe_serve_choices(&p, &a, false, &c, slot);
    const int32_t expected[] = {0, 5, 2, -1, 1, 4, 3, 4, 7, 2};
    for (int i = 0; i < 10; i++) {
        CHECK_MSG(slot[i] == expected[i], "choice %d: slot %d, expected %d", i, slot[i],
                  expected[i]);
    }
    const moe_serve_figures f = moe_serve_measure(&p, &a, &c, slot);
    CHECK_EQ(f.selections, 9);
    CHECK_EQ(f.rows, 9);
    CHECK_EQ(f.cross_device_rows, 7);
    CHECK_EQ(f.cross_node_rows, 4);
    CHECK_EQ(f.cross_node_tokens, 4);
    CHECK_NEAR(f.device_max_over_mean, 4.0 * 3 / 9, 1e-15);
}

/* Tokens choose K experts, mostly of their own topic, which is e mod 8. */
typedef struct routing {
    int64_t tokens;
    int32_t *expert, *home;
    double load[N], pairs[N * N];
} routing;

static moe_choices make(routing *r, int64_t tokens, uint64_t seed) {
    r->tokens = tokens;
    r->expert = moe_alloc(tokens * K, sizeof *r->expert, "test");
    r->home = moe_alloc(tokens, sizeof *r->home, "test");
    for (int64_t t = 0; t < tokens; t++) {
        const int32_t topic =
            (int32_t)(draw(seed, (uint64_t)t, 0) * draw(seed, (uint64_t)t, 1) * 8);
        r->home[t] = (int32_t)(t * D / tokens);
        for (int32_t i = 0; i < K; i++) {
            int32_t *e = &r->expert[t * K + i];
            bool again = true;
            for (uint32_t attempt = 0; again; attempt++) {
                const uint32_t key = 10 + 100 * attempt + (uint32_t)i;
                *e = draw(seed, (uint64_t)t, key) < 0.8
                         ? topic + 8 * (int32_t)(4 * draw(seed, (uint64_t)t, key + 50))
                         : (int32_t)(N * draw(seed, (uint64_t)t, key + 50));
                again = false;
                for (int32_t j = 0; j < i; j++) {
                    again = again || r->expert[t * K + j] == *e;
                }
            }
        }
    }
    memset(r->pairs, 0, sizeof r->pairs);
    const moe_choices c = {tokens, K, r->expert, r->home};
    moe_choices_count(&c, N, r->load, r->pairs);
    return c;
}

static void free_routing(routing *r) {
    moe_free(r->expert);
    moe_free(r->home);
}

static void check_served(const char *name,
                         const moe_balancer_problem *p,
                         const moe_balancer_answer *a,
                         bool quotas,
                         const moe_choices *c,
                         const int32_t *slot) {
    int64_t count[1024] = {0};
    for (int64_t i = 0; i < c->num_tokens * c->k; i++) {
        CHECK_MSG(slot[i] >= 0 && a->expert[slot[i]] == c->expert[i], "%s choice %lld", name,
                  (long long)i);
        count[slot[i]]++;
    }
    for (int32_t s = 0; s < a->slots && quotas; s++) {
        CHECK_MSG(fabs((double)count[s] - a->served[s]) <= 1, "%s slot %d: %lld of %g", name, s,
                  (long long)count[s], a->served[s]);
    }
    CHECK_EQ(p->num_experts, N);
}

static moe_serve_figures serve(const char *name,
                               const moe_balancer_problem *p,
                               const moe_choices *c) {
    const moe_balancer *b = moe_balancer_find(name);
    const bool quotas = b->timing != MOE_BALANCER_FIXED;
    moe_balancer_answer a = {0};
    int32_t *slot = moe_alloc(c->num_tokens * c->k, sizeof *slot, "test");
    moe_balancer_place(b, p, &a);
    moe_serve_choices(p, &a, quotas, c, slot);
    check_served(name, p, &a, quotas, c, slot);
    const moe_serve_figures f = moe_serve_measure(p, &a, c, slot);
    CHECK(f.selections == c->num_tokens * K && f.rows <= f.selections &&
          f.cross_node_tokens <= f.cross_node_rows && f.cross_node_rows <= f.cross_device_rows &&
          f.cross_device_rows <= f.rows);
    moe_free(slot);
    moe_balancer_answer_free(&a);
    return f;
}

/* Sums over seeds of what joint and EPLB send across nodes, and of their busiest devices. */
static void test_routings(void) {
    double joint_rows = 0, eplb_rows = 0, joint_most = 0, eplb_most = 0;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        routing r;
        const moe_choices c = make(&r, 2000, seed);
        const moe_balancer_problem p = {N, D, V, 8, 5, r.load, r.pairs, .alpha = 0};
        for (int i = 0; i < moe_num_balancers; i++) {
            moe_status st = {0};
            if (moe_balancer_check(&moe_balancers[i], &p, &st) == MOE_OK) {
                serve(moe_balancers[i].name, &p, &c);
            }
        }
        const moe_serve_figures joint = serve("joint", &p, &c), eplb = serve("eplb", &p, &c);
        joint_rows += (double)joint.cross_node_rows;
        eplb_rows += (double)eplb.cross_node_rows;
        joint_most += joint.device_max_over_mean / 5;
        eplb_most += eplb.device_max_over_mean / 5;
        CHECK_NEAR(serve("moonep", &p, &c).device_max_over_mean, 1, 0.01);
        free_routing(&r);
    }
    printf("rows across nodes: joint %.0f, eplb %.0f; busiest device / mean: %.3f, %.3f\n",
           joint_rows, eplb_rows, joint_most, eplb_most);
    CHECK(joint_rows < 0.9 * eplb_rows);
    CHECK(joint_most < eplb_most + 0.02);
}

int main(void) {
    RUN(test_by_hand);
    RUN(test_routings);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
