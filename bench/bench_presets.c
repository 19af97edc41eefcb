/* bench_presets.c: the whole router (moe_router_route: scores, choice, weights, and every sum that
 * losses and reports are made of) of each preset and of each method that no preset has, against
 * that of plain top-k (softmax, no groups, no bias, weights as they are) with the same N and K. ns
 * of CPU time per token on one core, in turns, median of 41. A ratio of 0.67 is 1.5 times the time
 * of plain top-k. Aim "-": by definition more than a choice among N scores. */
#include <time.h>

#include "bench.h"
#include "config/presets.h"
#include "random_router.h"

enum { TOKENS = 1024, REPEATS = 41 };

#define WIDE "model.num_experts=256 router.top_k=8 "

/* No aim: a logarithm and a root for each score; all tokens of a device looked at before the first
 * one is routed. */
static const struct {
    const char *name, *settings, *aim;
} methods[] = {
    {"sigmoid", WIDE "router.score_func=sigmoid", "0.67"},
    {"sqrtsoftplus", WIDE "router.score_func=sqrtsoftplus", "-"},
    {"max, 4 of 8 groups", WIDE "router.group_limit=max router.num_groups=8 router.topk_group=4",
     "0.67"},
    {"topk_sum, 4 of 8 groups",
     WIDE "router.group_limit=topk_sum router.num_groups=8 router.topk_group=4", "0.67"},
    {"quota, 4 of 8 groups",
     WIDE "router.group_limit=quota router.num_groups=8 router.topk_group=4", "0.67"},
    {"gshard, second sampled",
     "model.num_experts=128 router.top_k=2 router.method=gshard router.second_choice=sampled",
     "0.67"},
    {"top_p 0.5", WIDE "router.method=top_p router.top_p=0.5", "0.67"},
    {"random", WIDE "router.method=random", "0.67"},
    {"hash", WIDE "router.method=hash", "0.67"},
    {"round_robin", WIDE "router.method=round_robin", "0.67"},
    {"sinkhorn", WIDE "router.method=sinkhorn router.sinkhorn_iterations=100", "-"},
    {"expert_choice", WIDE "router.method=expert_choice", "-"},
};
enum { NUM_METHODS = sizeof methods / sizeof methods[0] };

typedef struct side {
    moe_router router;
    moe_routing routing;
    moe_stats stats;
} side;

typedef struct routers {
    moe_batch batch;
    moe_placement placement;
    moe_scratch scratch;
    float *logits; /* [T,N] */
    double *bias;  /* [N] */
    side measured, plain;
} routers;

static double route_ns(const routers *b, side *s) {
    struct timespec begin, end; /* CPU time: on a busy machine wall-clock time would charge
                                   preemption to whichever side runs longer */
    int64_t bad;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    moe_stats_reserve(&s->stats, s->router.num_experts, b->placement.devices,
                      b->batch.num_segments);
    moe_draw draw = {.seed = 1};
    moe_router_route(&s->router, &draw, &b->batch, &b->placement, (moe_logits){.f32 = b->logits},
                     NULL, &s->routing, &s->stats, &bad);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return (1e9 * (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec)) /
           TOKENS;
}

static routers prepare(const moe_config *c) {
    routers b = {0};
    int64_t n = c->model.num_experts;
    moe_batch_layout(&b.batch, TOKENS, 0, c->cluster.devices, 0, 1);
    moe_placement_block(&b.placement, (int32_t)n, c->cluster.devices);
    b.logits = moe_alloc(TOKENS * n, sizeof *b.logits, "bench");
    b.bias = moe_alloc(n, sizeof *b.bias, "bench");
    for (int64_t i = 0; i < TOKENS * n; i++) {
        b.logits[i] = random_logit(1, 0, (uint64_t)(i / n), (uint64_t)(i % n));
    }
    for (int64_t i = 0; i < n; i++) {
        b.bias[i] = 0.1 * random_unit(1, 30, (uint64_t)i);
    }
    moe_router_init(&b.measured.router, &c->router, &c->balance, (int32_t)n, c->cluster.devices,
                    c->router.bias_update_rate > 0 ? b.bias : NULL);
    b.plain.router = (moe_router){.num_experts = (int32_t)n,
                                  .top_k = c->router.top_k,
                                  .num_groups = 1,
                                  .topk_group = 1,
                                  .score_func = MOE_SCORE_SOFTMAX,
                                  .group_limit = MOE_GROUP_NONE,
                                  .routed_scaling_factor = 1};
    return b;
}

static void clean_up(routers *b) {
    side *sides[] = {&b->measured, &b->plain};
    for (int i = 0; i < 2; i++) {
        moe_routing_free(&sides[i]->routing);
        moe_stats_free(&sides[i]->stats);
    }
    moe_batch_free(&b->batch);
    moe_placement_free(&b->placement);
    moe_scratch_free(&b->scratch);
    moe_free(b->logits);
    moe_free(b->bias);
}

static void bench(const char *what, const char *settings, const char *aim) {
    moe_config c;
    double measured[REPEATS], plain[REPEATS], ratio[REPEATS];
    settings_resolve(&c, "", settings, 1);
    routers b = prepare(&c);
    b.measured.router.scratch = b.plain.router.scratch = &b.scratch;
    route_ns(&b, &b.measured);
    route_ns(&b, &b.plain);
    for (int i = 0; i < REPEATS; i++) {
        if (i % 2) {
            plain[i] = route_ns(&b, &b.plain);
        }
        measured[i] = route_ns(&b, &b.measured);
        if (i % 2 == 0) {
            plain[i] = route_ns(&b, &b.plain);
        }
        ratio[i] = plain[i] / measured[i];
    }
    printf("%s, N %d, K %d\t%.0f\t%.0f\tns\t%.2f\t%.2f-%.2f\t%s\n", what, c.model.num_experts,
           c.router.top_k, bench_quantile(measured, REPEATS, 0.5),
           bench_quantile(plain, REPEATS, 0.5), bench_quantile(ratio, REPEATS, 0.5),
           bench_quantile(ratio, REPEATS, 0.25), bench_quantile(ratio, REPEATS, 0.75), aim);
    fflush(stdout);
    clean_up(&b);
}

int main(int argc, char **argv) {
    moe_comm comm;
    char settings[256];
    moe_comm_init(&comm, &argc, &argv);
    omp_set_num_threads(1);
    for (int i = 0; i < moe_num_presets; i++) {
        int devices = strcmp(moe_presets[i].name, "deepseek_moe_2b") == 0 ? 7 : 8; /* it has 63
                                                                                      experts */
        snprintf(settings, sizeof settings, "cluster.devices=%d router.preset=%s", devices,
                 moe_presets[i].name);
        bench(moe_presets[i].name, settings, "0.67");
    }
    for (int i = 0; i < NUM_METHODS; i++) {
        snprintf(settings, sizeof settings, "cluster.devices=8 %s", methods[i].settings);
        bench(methods[i].name, settings, methods[i].aim);
    }
    moe_comm_finalize(&comm);
    return 0;
}
