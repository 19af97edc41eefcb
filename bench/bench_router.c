/* bench_router.c: scores -> group limit -> top-k, ns per token on one core: moesim's kernels
 * against a plain double-precision loop (libm's exp, group maxima, K passes) compiled with the same
 * flags, interleaved, median of 21; beside it the whole moe_router_route, which also counts f and
 * P. */
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "random_router.h"
#include "router/scores.h"
#include "router/select.h"

enum { TOKENS = 1024, REPEATS = 21 };

typedef struct setting {
    const char *name;
    moe_router router;
} setting;

static const setting settings[] = {
    {"softmax, none",
     {.num_experts = 64,
      .top_k = 6,
      .num_groups = 1,
      .topk_group = 1,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_NONE}},
    {"softmax, max (V2)",
     {.num_experts = 160,
      .top_k = 6,
      .num_groups = 8,
      .topk_group = 3,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_MAX}},
    {"softmax, none",
     {.num_experts = 160,
      .top_k = 6,
      .num_groups = 1,
      .topk_group = 1,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_NONE}},
    {"softmax, max",
     {.num_experts = 256,
      .top_k = 8,
      .num_groups = 8,
      .topk_group = 4,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_MAX}},
    {"sigmoid, top2 (V3)",
     {.num_experts = 256,
      .top_k = 8,
      .num_groups = 8,
      .topk_group = 4,
      .score_func = MOE_SCORE_SIGMOID,
      .group_limit = MOE_GROUP_TOP2_SUM,
      .norm_topk_prob = true,
      .scale_normalized = true}},
    {"softmax, none",
     {.num_experts = 256,
      .top_k = 8,
      .num_groups = 1,
      .topk_group = 1,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_NONE}},
    {"softmax, max",
     {.num_experts = 512,
      .top_k = 8,
      .num_groups = 8,
      .topk_group = 4,
      .score_func = MOE_SCORE_SOFTMAX,
      .group_limit = MOE_GROUP_MAX}},
};
enum { NUM_SETTINGS = sizeof settings / sizeof settings[0] };

typedef struct buffers {
    float *logits; /* [T,N] */
    double *bias;  /* [N] or NULL */
    double *z, *s, *selection;
    double *weight;  /* [T,K] */
    int32_t *expert; /* [T,K] */
} buffers;

/* --- plain --- */

static void plain_scores(const moe_router *r, const float *restrict logits, double *restrict s) {
    double max = logits[0], sum = 0;
    if (r->score_func == MOE_SCORE_SIGMOID) {
        for (int32_t i = 0; i < r->num_experts; i++) {
            s[i] = 1 / (1 + exp(-(double)logits[i]));
        }
        return;
    }
    for (int32_t i = 1; i < r->num_experts; i++) {
        if (logits[i] > max) {
            max = logits[i];
        }
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        sum += s[i] = exp(logits[i] - max);
    }
    for (int32_t i = 0; i < r->num_experts; i++) {
        s[i] /= sum;
    }
}

static double plain_group_score(const moe_router *r, const double *x, int32_t size) {
    double first = -INFINITY, second = -INFINITY;
    for (int32_t i = 0; i < size; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return r->group_limit == MOE_GROUP_MAX ? first : first + second;
}

static void plain_limit(const moe_router *r, double *x) {
    int32_t size = r->num_experts / r->num_groups;
    double score[64];
    bool kept[64] = {false};
    for (int32_t g = 0; g < r->num_groups; g++) {
        score[g] = plain_group_score(r, x + g * size, size);
    }
    for (int32_t m = 0; m < r->topk_group; m++) {
        int32_t best = -1;
        for (int32_t g = 0; g < r->num_groups; g++) {
            if (!kept[g] && (best < 0 || score[g] > score[best])) {
                best = g;
            }
        }
        kept[best] = true;
    }
    for (int32_t g = 0; g < r->num_groups; g++) {
        for (int32_t i = 0; i < size && !kept[g]; i++) {
            x[g * size + i] = -INFINITY;
        }
    }
}

/* First index of the largest; the best value stays in a register. */
static int32_t plain_argmax(const double *restrict x, int32_t n) {
    double v = x[0];
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (x[i] > v) {
            v = x[i];
            best = i;
        }
    }
    return best;
}

static void plain_token(const moe_router *r,
                        const float *restrict logits,
                        double *restrict s,
                        double *restrict selection,
                        int32_t *restrict expert,
                        double *restrict weight) {
    int32_t n = r->num_experts;
    double sum = 0;
    plain_scores(r, logits, s);
    for (int32_t i = 0; i < n; i++) {
        selection[i] = r->bias ? s[i] + r->bias[i] : s[i];
    }
    if (r->group_limit != MOE_GROUP_NONE) {
        plain_limit(r, selection);
    }
    for (int32_t k = 0; k < r->top_k; k++) {
        int32_t best = plain_argmax(selection, n);
        expert[k] = best;
        weight[k] = s[best];
        selection[best] = -INFINITY;
        sum += weight[k];
    }
    for (int32_t k = 0; k < r->top_k && r->norm_topk_prob; k++) {
        weight[k] /= sum + 1e-20;
    }
}

static void run_plain(const moe_router *r, buffers *b) {
    for (int64_t t = 0; t < TOKENS; t++) {
        plain_token(r, b->logits + t * r->num_experts, b->s, b->selection, b->expert + t * r->top_k,
                    b->weight + t * r->top_k);
    }
}

/* --- moesim --- */

static void run_moesim(const moe_router *r, buffers *b, moe_select *w) {
    for (int64_t t = 0; t < TOKENS; t++) {
        int flags = moe_scores_read_logits((moe_logits){.f32 = b->logits}, t, r->num_experts, b->z);
        moe_scores_fill(r, b->z, b->s, NULL);
        moe_select_experts(w, r, b->z, b->s, flags, b->expert + t * r->top_k,
                           b->weight + t * r->top_k);
    }
}

typedef struct whole {
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
} whole;

static void run_whole(const moe_router *r, buffers *b, whole *w) {
    int64_t bad;
    moe_stats_reserve(&w->stats, r->num_experts, w->placement.devices, w->batch.num_segments);
    moe_draw draw = {0};
    moe_router_route(r, &draw, &w->batch, &w->placement, (moe_logits){.f32 = b->logits}, NULL,
                     &w->routing, &w->stats, &bad);
}

/* --- timing --- */

/* CPU time of this thread: on a busy machine wall-clock time would charge preemption to whichever
 * side runs longer. */
static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x) {
    qsort(x, REPEATS, sizeof *x, compare);
    return x[REPEATS / 2];
}

/* Of who was chosen, in whatever order: with a bias moesim orders by the unbiased score. */
static int64_t checksum(const moe_router *r, const buffers *b) {
    int64_t sum = 0;
    for (int64_t i = 0; i < (int64_t)TOKENS * r->top_k; i++) {
        sum += (int64_t)b->expert[i] * b->expert[i] * (i / r->top_k + 1);
    }
    return sum;
}

static buffers make_buffers(moe_router *r) {
    int64_t n = r->num_experts;
    buffers b = {.logits = moe_alloc(TOKENS * n, sizeof(float), "bench"),
                 .z = moe_alloc(n, sizeof(double), "bench"),
                 .s = moe_alloc(n, sizeof(double), "bench"),
                 .selection = moe_alloc(n, sizeof(double), "bench"),
                 .bias = moe_alloc(n, sizeof(double), "bench"),
                 .weight = moe_alloc((int64_t)TOKENS * r->top_k, sizeof(double), "bench"),
                 .expert = moe_alloc((int64_t)TOKENS * r->top_k, sizeof(int32_t), "bench")};
    for (int64_t j = 0; j < TOKENS * n; j++) {
        b.logits[j] = random_logit(1, 0, (uint64_t)(j / n), (uint64_t)(j % n));
    }
    for (int64_t i = 0; i < n; i++) {
        b.bias[i] = 0.1 * random_unit(1, 30, (uint64_t)i);
    }
    r->routed_scaling_factor = 1;
    r->bias = r->score_func == MOE_SCORE_SIGMOID ? b.bias : NULL;
    return b;
}

static int bench(const setting *c) {
    moe_router r = c->router;
    buffers b = make_buffers(&r);
    moe_select w;
    whole all = {0};
    double plain[REPEATS], fast[REPEATS], route[REPEATS], ratio[REPEATS];
    int64_t sums[2] = {0};
    moe_select_reserve(&w, &r, NULL);
    moe_batch_layout(&all.batch, TOKENS, 0, 1, 0, 1);
    moe_placement_block(&all.placement, r.num_experts, 1);
    for (int i = 0; i < REPEATS; i++) {
        double start = now_ns();
        run_plain(&r, &b);
        plain[i] = (now_ns() - start) / TOKENS;
        sums[0] = checksum(&r, &b);
        start = now_ns();
        run_moesim(&r, &b, &w);
        fast[i] = (now_ns() - start) / TOKENS;
        sums[1] = checksum(&r, &b);
        start = now_ns();
        run_whole(&r, &b, &all);
        route[i] = (now_ns() - start) / TOKENS;
    }
    for (int i = 0; i < REPEATS; i++) {
        ratio[i] = plain[i] / fast[i];
    }
    double p = median(plain);
    double f = median(fast);
    double all_ns = median(route);
    double middle = median(ratio); /* sorts ratio */
    char what[128];
    snprintf(what, sizeof what, "%s, N %d, K %d, %d of %d groups", c->name, r.num_experts, r.top_k,
             r.topk_group, r.num_groups);
    printf("%s\t%.0f\t%.0f\tns\t%.2f\t%.2f-%.2f\t%s\n", what, f, p, middle, ratio[REPEATS / 4],
           ratio[3 * REPEATS / 4], r.num_experts == 160 || r.num_experts == 256 ? "2.5" : "-");
    printf("%s\t%.0f\t%.0f\tns\t%.2f\t-\t-\n", "  the same with counts and P (moe_router_route)",
           all_ns, p, p / all_ns);
    if (sums[0] != sums[1]) {
        printf("DIFFERENT choice of experts\n");
    }
    return sums[0] != sums[1];
}

int main(void) {
    int different = 0;
    omp_set_num_threads(1);
    for (int i = 0; i < NUM_SETTINGS; i++) {
        different |= bench(&settings[i]);
    }
    return different;
}
