/* unit_wrong_readings.c: three readings that circulate in public code, and the difference that each
 * makes.
 *
 *   mean P'        P' of a device as the mean of its experts' P: both losses of devices are |E_d|
 * times too small, and so are their gradients selections     f'' of selections instead of distinct
 * tokens: the third loss is (K/M) times the second, whatever the routing masks of 0     instead of
 * -inf: experts outside the kept groups win as soon as s + b of a kept one is below 0
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "balance/balance.h"
#include "base/alloc.h"
#include "check.h"
#include "random_router.h"
#include "reference.h"
#include "router/groups.h"
#include "router/loss_gradient.h"
#include "router/router.h"
#include "router/scores.h"
#include "router/select.h"

/* --- f'' and P' --- */

/* Three devices of two experts, top 2. A third of the tokens sends both selections to device 0, the
 * others one each to devices 1 and 2, twice as many: selections are even, what is sent is not. */
enum { N = 6, D = 3, TOKENS = 300, M = 2 };

typedef struct split {
    moe_router router;
    moe_batch batch;
    moe_placement placement;
    moe_routing routing;
    moe_stats stats;
    double z[TOKENS * N];
} split;

static void make_split(split *f) {
    int64_t bad;
    memset(f, 0, sizeof *f);
    f->router = (moe_router){.num_experts = N,
                             .top_k = 2,
                             .num_groups = 1,
                             .topk_group = 1,
                             .devices = D,
                             .routed_scaling_factor = 1,
                             .comm_count_local = true};
    for (int64_t t = 0; t < TOKENS; t++) {
        int32_t first = t % 3 == 0 ? 0 : 2 + t % 2, second = t % 3 == 0 ? 1 : 4 + t / 2 % 2;
        f->z[t * N + first] = 2;
        f->z[t * N + second] = 1.5;
    }
    moe_batch_layout(&f->batch, TOKENS, 0, 1, 0, 1);
    moe_placement_block(&f->placement, N, D);
    moe_stats_reserve(&f->stats, N, D, 1);
    moe_router_route(&f->router, &(moe_draw){0}, &f->batch, &f->placement,
                     (moe_logits){.f64 = f->z}, NULL, &f->routing, &f->stats, &bad);
}

static void free_split(split *f) {
    moe_batch_free(&f->batch);
    moe_placement_free(&f->placement);
    moe_routing_free(&f->routing);
    moe_stats_free(&f->stats);
}

static double loss_of(const split *f, const moe_balance *b, enum moe_loss which) {
    double loss[MOE_NUM_LOSSES];
    moe_balance_losses(b, &f->placement, &f->stats, f->stats.cell, loss);
    return loss[which];
}

/* Gradient of one loss with respect to the logits of token t. */
static void gradient_of(const split *f,
                        moe_balance b,
                        enum moe_loss which,
                        int64_t t,
                        double dz[N]) {
    static double dlogits[TOKENS * N];
    double a[MOE_COEFFICIENTS * N];
    memset(dlogits, 0, sizeof dlogits);
    memset(b.alpha, 0, sizeof b.alpha);
    b.alpha[which] = 1;
    moe_balance_coefficients(&b, &f->placement, &f->stats, f->stats.cell, a);
    moe_loss_coefficients all = {.a = a, .inverse_tokens = 1.0 / TOKENS};
    moe_loss_gradient(&f->router, &f->batch, (moe_logits){.f64 = f->z}, NULL, &f->routing, 0,
                      TOKENS, &all, dlogits);
    memcpy(dz, dlogits + t * N, N * sizeof *dz);
}

static double largest(const double dz[N]) {
    double most = 0;
    for (int i = 0; i < N; i++) {
        most = fmax(most, fabs(dz[i]));
    }
    return most;
}

static void test_f_and_p(void) {
    static split f;
    make_split(&f);
    moe_balance right = {.comm_limit = M, .has_scores = true, .has_logits = true};
    moe_balance mean = right;
    moe_balance selections = right;
    mean.device_p = MOE_DEVICE_P_MEAN;
    selections.comm_count = MOE_COUNT_SELECTIONS;
    double dz[N], wrong[N];
    for (int l = MOE_LOSS_DEVICE; l <= MOE_LOSS_COMM; l++) {
        CHECK_NEAR(loss_of(&f, &mean, (enum moe_loss)l), loss_of(&f, &right, (enum moe_loss)l) / 2,
                   1e-15);
        gradient_of(&f, right, (enum moe_loss)l, 1, dz);
        gradient_of(&f, mean, (enum moe_loss)l, 1, wrong);
        for (int i = 0; i < N; i++) {
            CHECK(fabs(wrong[i] - dz[i] / 2) <= 1e-17);
        }
    }
    /* selections are even: the device loss is 1 and pulls nowhere; counting selections, so does the
     * third */
    CHECK_NEAR(loss_of(&f, &right, MOE_LOSS_DEVICE), 1, 1e-12);
    gradient_of(&f, right, MOE_LOSS_DEVICE, 1, dz);
    CHECK(largest(dz) < 1e-17);
    CHECK_NEAR(loss_of(&f, &selections, MOE_LOSS_COMM), 2.0 / M, 1e-12);
    gradient_of(&f, selections, MOE_LOSS_COMM, 1, dz);
    CHECK(largest(dz) < 1e-17);
    /* what is sent is not: devices 1 and 2 receive twice what device 0 does, and the third loss
     * pulls tokens to it */
    const int64_t *sent = moe_stats_device_tokens(&f.stats, f.stats.cell);
    CHECK(sent[0] == TOKENS / 3 && sent[1] == 2 * sent[0] && sent[2] == 2 * sent[0]);
    gradient_of(&f, right, MOE_LOSS_COMM, 1, dz);
    CHECK(dz[0] < 0 && dz[1] < 0 && dz[2] > 0 && dz[4] > 0 && largest(dz) > 1e-5);
    free_split(&f);
}

/* The third loss of any routing, when selections are counted, is (K/M) times the second. */
static void test_identity(uint64_t seed) {
    random_router c = random_router_make(seed, 50);
    moe_batch batch = {0};
    moe_placement placement = {0};
    moe_routing routing = {0};
    moe_stats stats = {0};
    double loss[MOE_NUM_LOSSES];
    int64_t bad;
    moe_batch_layout(&batch, c.num_tokens, 0, 1, 0, 1);
    moe_placement_block(&placement, c.router.num_experts, c.devices);
    moe_stats_reserve(&stats, c.router.num_experts, c.devices, 1);
    moe_router_route(&c.router, &(moe_draw){0}, &batch, &placement, (moe_logits){.f32 = c.z}, NULL,
                     &routing, &stats, &bad);
    moe_balance b = {.comm_limit = 3,
                     .comm_count = MOE_COUNT_SELECTIONS,
                     .has_scores = true,
                     .has_logits = true};
    moe_balance_losses(&b, &placement, &stats, stats.cell, loss);
    double k = 0;
    for (int32_t i = 0; i < c.router.num_experts; i++) {
        k += (double)moe_stats_counts(&stats, stats.cell)[i] / (double)c.num_tokens;
    }
    CHECK_MSG(fabs(loss[MOE_LOSS_COMM] - k / 3 * loss[MOE_LOSS_DEVICE]) <=
                  1e-13 * loss[MOE_LOSS_COMM],
              "seed %d", (int)seed);
    moe_batch_free(&batch);
    moe_placement_free(&placement);
    moe_routing_free(&routing);
    moe_stats_free(&stats);
    random_router_free(&c);
}

/* --- masks --- */

/* Top-k of selection scores in which everything outside the kept groups was set to 0: what the
 * original gate of DeepSeek-V3 does. */
static int32_t outside_with_masks_of_zero(const moe_router *r,
                                          const double *s,
                                          const int32_t *kept_by_inf,
                                          int32_t count) {
    int32_t n = r->num_experts;
    int32_t size = n / r->num_groups;
    int32_t outside = 0;
    bool kept[64] = {false}, taken[64] = {false};
    double score[64];
    for (int32_t m = 0; m < r->topk_group; m++) { /* max: the group of the best expert that is left
                                                   */
        int32_t best = -1;
        for (int32_t i = 0; i < n; i++) {
            if (!kept[i / size] && (best < 0 || s[i] + r->bias[i] > s[best] + r->bias[best])) {
                best = i;
            }
        }
        kept[best / size] = true;
    }
    for (int32_t k = 0; k < count; k++) {
        CHECK(kept[kept_by_inf[k] / size]);
    }
    for (int32_t i = 0; i < n; i++) {
        score[i] = kept[i / size] ? s[i] + r->bias[i] : 0;
    }
    for (int32_t k = 0; k < count; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < n; i++) {
            if (!taken[i] && (best < 0 || score[i] > score[best])) {
                best = i;
            }
        }
        taken[best] = true;
        outside += !kept[best / size];
    }
    return outside;
}

/* Number of choices outside the kept groups that masks of 0 would make over 200 tokens, the bias
 * being `shift` and up to 0.1 more. */
static int32_t choices_outside(double shift) {
    enum { EXPERTS = 32 };
    double bias[EXPERTS], z[EXPERTS], s[EXPERTS], weight[4], lse;
    int32_t expert[4], outside = 0;
    moe_router r = {.num_experts = EXPERTS,
                    .top_k = 4,
                    .num_groups = 8,
                    .topk_group = 2,
                    .group_limit = MOE_GROUP_MAX,
                    .score_func = MOE_SCORE_SIGMOID,
                    .bias = bias,
                    .routed_scaling_factor = 1};
    for (uint64_t t = 0; t < 200; t++) {
        for (uint64_t i = 0; i < EXPERTS; i++) {
            z[i] = (double)random_logit(3, 0, t, i);
            bias[i] = shift + 0.1 * random_unit(4, 0, i);
        }
        moe_scores_fill(&r, z, s, &lse);
        int32_t count = moe_select_token(&r, &(moe_draw){0}, (int64_t)t, z, s, expert, weight);
        CHECK(count == 4 && moe_groups_distinct(&r, expert, count) <= 2);
        outside += outside_with_masks_of_zero(&r, s, expert, count);
    }
    return outside;
}

static void test_masks(void) {
    int32_t positive = choices_outside(0);
    int32_t some = choices_outside(-0.6);
    int32_t all = choices_outside(-1.2);
    printf("choices outside the kept groups with masks of 0, of 800: bias above 0: %d, about "
           "-0.55: %d, about -1.15: %d\n",
           positive, some, all);
    CHECK_EQ(positive, 0);          /* no negative selection score: both masks agree */
    CHECK(some > 20 && some < all); /* some of the kept experts lose */
    CHECK_EQ(all, 800);             /* every kept expert is below 0: only masked ones are chosen */
}

int main(void) {
    RUN(test_f_and_p);
    for (uint64_t seed = 0; seed < 40; seed++) {
        RUN(test_identity, seed);
    }
    RUN(test_masks);
    return check_verdict();
}
