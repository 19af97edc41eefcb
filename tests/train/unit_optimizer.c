/* unit_optimizer.c: SGD and AdamW against a naive double implementation and hand values, clipping,
 * and the schedules.
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "balance/balance.h"
#include "base/rng.h"
#include "check.h"
#include "train/optimizer.h"

static moe_config example(int optimizer) {
    moe_config c;
    moe_config_defaults(&c);
    c.train.optimizer = optimizer;
    return c;
}

static const double TIGHT = sizeof(real) == 4 ? 2e-6 : 1e-14;

/* --- AdamW by hand --- */

/* p = 1, gradients 0.5 then -2, lr 0.1, wd 0.1: worked out by hand.
 * step 1: p *= 0.99; m = 0.05, v = 0.00025; m/(1-0.9) = 0.5, v/(1-0.999) = 0.25: p -= 0.1 * 0.5 /
 * (0.5 + 1e-8) step 2: p *= 0.99; m = 0.05 + 0.1(-2 - 0.05) = -0.155, v = 0.00025 * 0.999 + 0.004 =
 * 0.00424975; m/(1-0.81), v/(1-0.998001) */
static void check_adamw_by_hand(void) {
    moe_config c = example(MOE_OPTIMIZER_ADAMW);
    moe_parameters all;
    real value[2] = {1, 1};
    c.train.weight_decay = 0.1;
    moe_parameters_init(&all, 1, 1);
    moe_parameters_add(&all, "decays", true, 1, &value[0]);
    moe_parameters_add(&all, "does not", false, 1, &value[1]);
    moe_optimizer_init(&all, &c);
    all.p[0].gradient[0] = all.p[1].gradient[0] = (real)0.5;
    moe_optimizer_step(&all, &c, 0, 0.1, 0);
    double first = 0.99 - 0.1 * 0.5 / (0.5 + 1e-8);
    CHECK_NEAR((double)value[0], first, TIGHT);
    CHECK_NEAR((double)value[1], 1 - 0.1 * 0.5 / (0.5 + 1e-8), TIGHT);
    CHECK_NEAR((double)all.p[0].m[0], 0.05, TIGHT);
    CHECK_NEAR((double)all.p[0].v[0], 0.00025, TIGHT);
    all.p[0].gradient[0] = -2;
    moe_optimizer_step(&all, &c, 1, 0.1, 0);
    double m = -0.155 / 0.19, v = 0.00424975 / (1 - 0.999 * 0.999);
    CHECK_NEAR((double)value[0], first * 0.99 - 0.1 * m / (sqrt(v) + 1e-8), 4 * TIGHT);
    moe_parameters_free(&all);
}

/* --- naive, in double --- */

typedef struct naive {
    double p, m, v;
} naive;

static void naive_step(const moe_config *c,
                       naive *x,
                       double g,
                       bool decay,
                       int64_t step,
                       double lr,
                       double norm) {
    double wd = decay ? c->train.weight_decay : 0;
    if (c->train.clip_norm > 0 && norm > c->train.clip_norm) {
        g *= c->train.clip_norm / norm;
    }
    if (c->train.optimizer == MOE_OPTIMIZER_SGD) {
        x->p -= lr * (g + wd * x->p);
        return;
    }
    x->p *= 1 - lr * wd;
    x->m = c->train.beta1 * x->m + (1 - c->train.beta1) * g;
    x->v = c->train.beta2 * x->v + (1 - c->train.beta2) * g * g;
    double m = x->m / (1 - pow(c->train.beta1, (double)(step + 1))),
           v = x->v / (1 - pow(c->train.beta2, (double)(step + 1)));
    x->p -= lr * m / (sqrt(v) + c->train.epsilon);
}

enum { SIZE = 20011, BLOCKS = 3, SMALL = 5, STEPS = 20 };

static void check_against_naive(int optimizer, double clip, double beta1) {
    static real value[SIZE * BLOCKS], other[SMALL];
    static naive expected[SIZE * BLOCKS + SMALL];
    int32_t id[BLOCKS] = {4, 5, 6};
    moe_config c = example(optimizer);
    moe_parameters all;
    c.train.clip_norm = clip;
    c.train.weight_decay = 0.05;
    c.train.beta1 = beta1;
    moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 0, 0, 1, value, SIZE * BLOCKS);
    moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 0, 1, 1, other, SMALL);
    moe_parameters_init(&all, 4, 2);
    moe_parameters_add_experts(&all, "experts", BLOCKS, 8, SIZE, id, value);
    moe_parameters_add(&all, "norm", false, SMALL, other);
    moe_optimizer_init(&all, &c);
    for (int64_t i = 0; i < SIZE * BLOCKS + SMALL; i++) {
        expected[i] =
            (naive){.p = (double)(i < SIZE * BLOCKS ? value[i] : other[i - SIZE * BLOCKS])};
    }
    int64_t live = moe_alloc_live_bytes();
    for (int64_t step = 0; step < STEPS; step++) {
        double lr = 0.01 / (double)(step + 1), norm = step % 2 ? 3 : 1;
        moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 1, (uint64_t)step, 1, all.p[0].gradient,
                       SIZE * BLOCKS);
        moe_rng_normal((moe_rng){1, MOE_RNG_TEST}, 2, (uint64_t)step, 1, all.p[1].gradient, SMALL);
        moe_optimizer_step(&all, &c, step, lr, norm);
        for (int64_t i = 0; i < SIZE * BLOCKS + SMALL; i++) {
            bool expert = i < SIZE * BLOCKS;
            naive_step(&c, &expected[i],
                       (double)all.p[!expert].gradient[expert ? i : i - SIZE * BLOCKS], expert,
                       step, lr, norm);
        }
    }
    double worst = 0;
    for (int64_t i = 0; i < SIZE * BLOCKS + SMALL; i++) {
        double got = (double)(i < SIZE * BLOCKS ? value[i] : other[i - SIZE * BLOCKS]);
        worst = fmax(worst, fabs(got - expected[i].p) / (1 + fabs(expected[i].p)));
    }
    CHECK_MSG(worst < 10 * TIGHT, "optimizer %d, clip %g, beta1 %g: off by %g", optimizer, clip,
              beta1, worst);
    CHECK_EQ(moe_alloc_live_bytes(), live);
    CHECK((all.p[0].m != NULL) == (optimizer == MOE_OPTIMIZER_ADAMW));
    moe_parameters_free(&all);
}

/* A gradient at the limit is left alone; beyond, its norm becomes the limit. */
static void check_clip(void) {
    moe_config c = example(MOE_OPTIMIZER_SGD);
    moe_parameters all;
    real value[2] = {0, 0};
    c.train.clip_norm = 5;
    moe_parameters_init(&all, 1, 1);
    moe_parameters_add(&all, "x", true, 2, value);
    all.p[0].gradient[0] = 3, all.p[0].gradient[1] = 4;
    moe_optimizer_step(&all, &c, 0, 1, 5);
    CHECK(value[0] == -3 && value[1] == -4);
    moe_optimizer_step(&all, &c, 0, 1, 50);
    CHECK_NEAR((double)value[0], -3.3, TIGHT);
    CHECK_NEAR((double)value[1], -4.4, TIGHT);
    CHECK_EQ(all.p[0].gradient[0], 3);
    moe_parameters_free(&all);
}

/* --- schedules --- */

static void check_learning_rate(void) {
    moe_config c = example(MOE_OPTIMIZER_SGD);
    c.run.steps = 110;
    c.train.learning_rate = 2;
    CHECK(moe_optimizer_learning_rate(&c, 0) == 2 && moe_optimizer_learning_rate(&c, 109) == 2);
    c.train.warmup_steps = 10;
    CHECK_NEAR(moe_optimizer_learning_rate(&c, 0), 0.2, 1e-15);
    CHECK_NEAR(moe_optimizer_learning_rate(&c, 4), 1, 1e-15);
    CHECK(moe_optimizer_learning_rate(&c, 9) == 2 && moe_optimizer_learning_rate(&c, 10) == 2);
    c.train.schedule = MOE_SCHEDULE_COSINE;
    CHECK(moe_optimizer_learning_rate(&c, 9) == 2 && moe_optimizer_learning_rate(&c, 10) == 2);
    CHECK_NEAR(moe_optimizer_learning_rate(&c, 60), 1, 1e-14);
    CHECK_NEAR(moe_optimizer_learning_rate(&c, 35), 2 * 0.5 * (1 + sqrt(0.5)), 1e-14);
    CHECK(moe_optimizer_learning_rate(&c, 109) > 0 && moe_optimizer_learning_rate(&c, 109) < 1e-3);
    CHECK(moe_optimizer_learning_rate(&c, 110) == 0 && moe_optimizer_learning_rate(&c, 1000) == 0);
    for (int64_t t = 10; t < 109; t++) {
        CHECK(moe_optimizer_learning_rate(&c, t + 1) < moe_optimizer_learning_rate(&c, t));
    }
    c.train.warmup_steps = 200; /* longer than the run: still rising at its end */
    CHECK_NEAR(moe_optimizer_learning_rate(&c, 109), 1.1, 1e-15);
}

static void check_alpha(void) {
    moe_config c = example(MOE_OPTIMIZER_SGD);
    CHECK(moe_balance_alpha_factor(&c.balance, 0) == 1 &&
          moe_balance_alpha_factor(&c.balance, 99) == 1);
    c.balance.begin_step = 5;
    CHECK(moe_balance_alpha_factor(&c.balance, 4) == 0 &&
          moe_balance_alpha_factor(&c.balance, 5) == 1);
    c.balance.ramp_steps = 4;
    double expected[6] = {0, 0.25, 0.5, 0.75, 1, 1};
    for (int64_t t = 0; t < 6; t++) {
        CHECK(moe_balance_alpha_factor(&c.balance, 4 + t) == expected[t]);
    }
}

int main(void) {
    RUN(check_adamw_by_hand);
    RUN(check_against_naive, MOE_OPTIMIZER_SGD, 0, 0.9);
    RUN(check_against_naive, MOE_OPTIMIZER_SGD, 2, 0.9);
    RUN(check_against_naive, MOE_OPTIMIZER_ADAMW, 0, 0.9);
    RUN(check_against_naive, MOE_OPTIMIZER_ADAMW, 2, 0.9);
    RUN(check_against_naive, MOE_OPTIMIZER_ADAMW, 2, 0);
    RUN(check_clip);
    RUN(check_learning_rate);
    RUN(check_alpha);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
