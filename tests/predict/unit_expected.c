/* unit_expected.c: means over choices that are drawn at random, where they have a closed form. */
#include <math.h>
#include <stdio.h>

#include "check.h"
#include "predict/expected.h"
#include "settings.h"

static moe_config resolved(const char *words) {
    moe_config c;
    settings_resolve(&c, "", words, 1);
    return c;
}

/* A step drops round(0.25 x 8) = 2 of 8 experts: a token has no more than are left, and an expert
 * that is dropped chooses nobody. */
static void test_dropped_experts(void) {
    const char *train = "run.mode=train model.num_experts=8 router.expert_dropout=0.25 ";
    char words[256];
    snprintf(words, sizeof words, "%srouter.top_k=7", train);
    moe_config c = resolved(words);
    CHECK_NEAR(moe_expected_choices(&c, 40), 6, 0);
    snprintf(words, sizeof words, "%srouter.top_k=2 router.method=expert_choice", train);
    c = resolved(words);
    CHECK_NEAR(moe_expected_choices(&c, 40), 10 * 6 / 40.0, 1e-15);
}

/* Experts of equal probability 1/8 are taken until their sum exceeds 0.5: five. Where one expert
 * has nearly all of it, one is. */
static void test_recorded_logits(void) {
    moe_config c = resolved("model.num_experts=8 router.method=top_p router.top_k=8 "
                            "router.top_p=0.5");
    const double rows[2 * 8] = {[8 + 3] = 40};
    const float single[8] = {[6] = 40};
    CHECK_NEAR(moe_expected_recorded_choices(&c, rows, true, 1), 5, 0);
    CHECK_NEAR(moe_expected_recorded_choices(&c, rows, true, 2), 3, 0);
    CHECK_NEAR(moe_expected_recorded_choices(&c, single, false, 1), 1, 0);
    c = resolved("model.num_experts=8 router.top_k=3");
    CHECK_NEAR(moe_expected_recorded_choices(&c, rows, true, 2), 0, 0); /* they say nothing new */
}

/* Two experts, each with room for 100 tokens of a sequence of 1000 and of one of 3000: 400 of
 * 4000. Of a batch: 200. */
static void test_sequences(void) {
    const int64_t boundary[] = {0, 1000, 4000};
    const moe_sequences given = {.num = 2, .boundary = boundary};
    const moe_sequences one = {.num = 1, .length = 4000};
    moe_config c = resolved("model.num_experts=2 router.top_k=1 capacity.policy=sequence "
                            "capacity.expert_capacity=100");
    CHECK_NEAR(moe_expected_kept(&c, &given, 4000, 1), 0.1, 1e-12);
    CHECK_NEAR(moe_expected_kept(&c, &one, 4000, 1), 0.05, 1e-12);
    c = resolved("model.num_experts=2 router.top_k=1 capacity.policy=expert "
                 "capacity.expert_capacity=100 capacity.capacity_scope=global "
                 "capacity.exempt_sequences=0.5");
    const double kept = moe_expected_kept(&c, &given, 4000, 1);
    const double shorter = 0.25 + 0.75 * 0.05, longer = 0.75 + 0.25 * 0.05;
    CHECK(fabs(kept - shorter) < 1e-12 || fabs(kept - longer) < 1e-12);
}

/* Where every device has all experts, a token stays at home; without replicas it goes out. */
static void test_replicas(void) {
    moe_config c = resolved("cluster.devices=4 model.num_experts=8 router.top_k=2 "
                            "placement.redundant_experts=24 placement.policy=eplb");
    CHECK_NEAR(moe_expected_reach(&c, 2), 1, 0);
    CHECK_NEAR(moe_expected_away(&c, 2), 0, 0);
    c = resolved("cluster.devices=4 model.num_experts=8 router.top_k=2");
    CHECK_NEAR(moe_expected_reach(&c, 2), 4 * (1 - 30 / 56.0), 1e-12);
}

int main(void) {
    RUN(test_dropped_experts);
    RUN(test_recorded_logits);
    RUN(test_sequences);
    RUN(test_replicas);
    return check_verdict();
}
