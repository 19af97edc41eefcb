/* unit_training_history.c: the history of a training run against a plain list of its steps; cut at
 * any step and restored from its bytes it goes on with the same bits; losses that rise, stay or are
 * no numbers are told from those that fall. */
#include <string.h>

#include "check.h"
#include "made_record.h"
#include "measure/imbalance.h"
#include "output/training_history.h"

enum { LAYERS = 2, EXPERTS = 24, DEVICES = 4, STEPS = 57 };

static void configure(moe_config *c) {
    made_config(c, LAYERS, EXPERTS, DEVICES, 2);
    c->run.mode = MOE_MODE_TRAIN;
    c->run.steps = STEPS;
}

/* --- figures --- */

static void check_figures(const moe_step_metrics *r) {
    double figure[MOE_NUM_FIGURES];
    double expert = 0;
    double device = 0;
    double received = 0;
    double sent = 0;
    moe_training_history_figures(r, figure);
    for (int l = 0; l < LAYERS; l++) {
        expert += moe_imbalance_of(r->layer[l].counts_per_expert, EXPERTS).maxvio / LAYERS;
        device += moe_imbalance_of(r->layer[l].counts_per_device, DEVICES).maxvio / LAYERS;
        received += moe_imbalance_of(r->layer[l].received_rows, DEVICES).maxvio / LAYERS;
        for (int d = 0; d < MOE_NUM_DIRECTIONS; d++) {
            sent += (double)r->layer[l].volume[d].remote_bytes;
        }
    }
    CHECK_NEAR(figure[MOE_FIGURE_EXPERT_MAXVIO], expert, 1e-14);
    CHECK_NEAR(figure[MOE_FIGURE_DEVICE_MAXVIO], device, 1e-14);
    CHECK_NEAR(figure[MOE_FIGURE_RECEIVED_MAXVIO], received, 1e-14);
    CHECK(figure[MOE_FIGURE_SENT_BYTES] == sent &&
          figure[MOE_FIGURE_DISPATCH_BYTES] == sent / MOE_NUM_DIRECTIONS);
    CHECK_EQ(figure[MOE_FIGURE_RAW + MOE_LOSS_COMM],
             (r->layer[0].loss_raw[MOE_LOSS_COMM] / LAYERS +
              r->layer[1].loss_raw[MOE_LOSS_COMM] / LAYERS));
    CHECK(figure[MOE_FIGURE_TASK_LOSS] == r->task_loss &&
          figure[MOE_FIGURE_GRADIENT_NORM] == r->gradient_norm);
}

static void check_means(const moe_training_history *h, double list[][MOE_NUM_FIGURES], int steps) {
    int window = steps < MOE_HISTORY_WINDOW ? steps : MOE_HISTORY_WINDOW;
    CHECK_EQ(moe_training_history_window(h), window);
    for (int f = 0; f < MOE_NUM_FIGURES; f++) {
        double sum = 0;
        for (int i = steps - window; i < steps; i++) {
            sum += list[i][f];
        }
        CHECK(moe_training_history_mean(h, f) == sum / window &&
              moe_training_history_first(h, f) == list[0][f] &&
              moe_training_history_last(h, f) == list[steps - 1][f]);
    }
}

static void check_course(void) {
    static double list[STEPS][MOE_NUM_FIGURES];
    moe_config c;
    moe_step_metrics r;
    moe_training_history h = {.steps = 0}, cut = {.steps = 0};
    moe_training_facts facts = {.unigram_entropy = 3.2};
    configure(&c);
    moe_step_metrics_init(&r, LAYERS, EXPERTS, DEVICES);
    CHECK(isnan(moe_training_history_mean(&h, 0)) && isnan(moe_training_history_first(&h, 0)) &&
          isnan(moe_training_history_last(&h, 0)) && !moe_training_history_diverged(&h, &facts));
    for (int step = 0; step < STEPS; step++) {
        char bytes[sizeof cut];
        made_record(&r, &c, step, 200);
        check_figures(&r);
        moe_training_history_figures(&r, list[step]);
        moe_training_history_add(&h, &r);
        /* a checkpoint after every step */
        memcpy(bytes, &cut, (size_t)moe_training_history_bytes());
        memcpy(&cut, bytes, (size_t)moe_training_history_bytes());
        moe_training_history_add(&cut, &r);
        check_means(&h, list, step + 1);
        CHECK(memcmp(&h, &cut, sizeof h) == 0);
    }
    CHECK(h.validation.count == STEPS / 5 && h.validation.first_step == 4 &&
          h.validation.last_step == 54 && h.validation.best_step == 54);
    CHECK(h.validation.best == h.validation.last && h.validation.first > h.validation.last);
    CHECK(!moe_training_history_rose(&h) && !moe_training_history_above_unigram(&h, &facts) &&
          !moe_training_history_diverged(&h, &facts));
    moe_step_metrics_free(&r);
}

/* --- verdicts --- */

typedef struct verdict {
    bool rose, above, diverged;
} verdict;

/* `steps` steps whose loss goes in a line from `first` to `turn` in the middle, then to `last`. */
static verdict judge(int steps, double first, double turn, double last, double entropy) {
    moe_step_metrics r;
    moe_training_history h = {.steps = 0};
    moe_training_facts facts = {.unigram_entropy = entropy};
    moe_step_metrics_init(&r, 1, 4, 2);
    moe_step_metrics_clear(&r);
    r.learning_rate = 1;
    for (int i = 0; i < steps; i++) {
        double at = steps > 1 ? 2.0 * i / (steps - 1) : 0;
        r.task_loss = at < 1 ? first + at * (turn - first) : turn + (at - 1) * (last - turn);
        moe_training_history_add(&h, &r);
    }
    moe_step_metrics_free(&r);
    return (verdict){moe_training_history_rose(&h), moe_training_history_above_unigram(&h, &facts),
                     moe_training_history_diverged(&h, &facts)};
}

static void check_verdict_of(verdict v, bool rose, bool above, bool diverged, int line) {
    CHECK_MSG(v.rose == rose && v.above == above && v.diverged == diverged,
              "line %d: rose %d, above %d, diverged %d", line, v.rose, v.above, v.diverged);
}

static void check_verdicts(void) {
    check_verdict_of(judge(100, 5.5, 2, 1.6, 3.2), false, false, false, __LINE__);
    check_verdict_of(judge(100, 5.5, 2, 1.6, 0), false, false, false, __LINE__);
    check_verdict_of(judge(100, 5.5, 2, 9, 3.2), true, true, true, __LINE__);
    check_verdict_of(judge(100, 5.5, 2, 9, 0), true, false, true, __LINE__);
    /* it fell, then rose above the entropy */
    check_verdict_of(judge(100, 5.5, 2, 4.5, 3.2), false, true, true, __LINE__);
    /* it is still falling */
    check_verdict_of(judge(100, 5.5, 5, 4, 3.2), false, true, false, __LINE__);
    check_verdict_of(judge(12, 5.5, 5, 4, 3.2), false, true, false, __LINE__);
    check_verdict_of(judge(1, 5.5, 5.5, 5.5, 3.2), false, true, false, __LINE__);
    /* the mean of equal numbers is that number, and no rise */
    check_verdict_of(judge(37, 0.1, 0.1, 0.1, 0), false, false, false, __LINE__);
    check_verdict_of(judge(5, 1, 2, 3, 0), true, false, true, __LINE__);
    check_verdict_of(judge(30, 5.5, 2, INFINITY, 3.2), true, true, true, __LINE__);
    check_verdict_of(judge(30, 5.5, 2, NAN, 3.2), true, true, true, __LINE__);
}

/* A step in which nothing was trained does not count; a loss that is no number does. */
static void check_failures_count(void) {
    moe_step_metrics r;
    moe_training_history h = {.steps = 0};
    moe_step_metrics_init(&r, 1, 4, 2);
    moe_step_metrics_clear(&r);
    moe_training_history_add(&h, &r);
    CHECK_EQ(h.steps, 0);
    r.learning_rate = 0.1;
    r.task_loss = NAN;
    moe_training_history_add(&h, &r);
    CHECK(h.steps == 1 && isnan(moe_training_history_mean(&h, MOE_FIGURE_TASK_LOSS)) &&
          moe_training_history_rose(&h));
    CHECK_EQ(h.validation.count, 0);
    moe_step_metrics_free(&r);
}

static void check_facts(void) {
    moe_config c;
    configure(&c);
    moe_training_facts text = moe_training_facts_of(&c, (const uint8_t *)"aabc", 4, 2),
                       none = moe_training_facts_of(&c, NULL, 0, 0);
    CHECK_NEAR(text.unigram_entropy, 1.5 * log(2), 1e-15);
    CHECK(text.text_bytes == 4 && text.domains == 2 && none.unigram_entropy == 0 &&
          none.text_bytes == 0);
    CHECK(none.expert_parameters ==
          (int64_t)LAYERS * EXPERTS * 3 * c.model.hidden_size * c.model.moe_intermediate_size);
    CHECK(moe_training_facts_of(&c, (const uint8_t *)"aaaa", 4, 1).unigram_entropy == 0);
}

int main(void) {
    RUN(check_facts);
    RUN(check_course);
    RUN(check_verdicts);
    RUN(check_failures_count);
    return check_verdict();
}
