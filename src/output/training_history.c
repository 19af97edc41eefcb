/* training_history.c: the figures of the last steps stand in a ring beside those of the first step.
 * Means are taken from the oldest step to the newest, so that a run that was resumed gives the same
 * bits as one that was not. */
#include "output/training_history.h"

#include <math.h>
#include <string.h>

#include "measure/figures.h"
#include "predict/memory.h"

/* --- facts --- */

/* -sum p ln p over the byte values, in nats. */
static double unigram_entropy(const uint8_t *text, int64_t n) {
    int64_t count[256] = {0};
    double entropy = 0;
    for (int64_t i = 0; i < n; i++) {
        count[text[i]]++;
    }
    for (int v = 0; v < 256; v++) {
        double p = (double)count[v] / (double)n;
        entropy -= count[v] > 0 ? p * log(p) : 0;
    }
    return entropy;
}

moe_training_facts moe_training_facts_of(const moe_config *c,
                                         const uint8_t *text,
                                         int64_t text_bytes,
                                         int32_t domains) {
    moe_parameter_counts count = moe_memory_parameters(c);
    moe_training_facts f = {.expert_parameters = count.expert,
                            .replicated_parameters = count.replicated};
    if (!text || text_bytes <= 0) {
        return f;
    }
    f.text_bytes = text_bytes;
    f.domains = domains;
    f.unigram_entropy = unigram_entropy(text, text_bytes);
    return f;
}

/* --- one step --- */

void moe_training_history_figures(const moe_step_metrics *step, double figure[MOE_NUM_FIGURES]) {
    moe_figures f = moe_figures_of(step);
    figure[MOE_FIGURE_TASK_LOSS] = step->task_loss;
    figure[MOE_FIGURE_BALANCE_LOSS] = f.total;
    memcpy(figure + MOE_FIGURE_RAW, f.raw, sizeof f.raw);
    figure[MOE_FIGURE_EXPERT_MAXVIO] = f.expert_maxvio;
    figure[MOE_FIGURE_DEVICE_MAXVIO] = f.device_maxvio;
    figure[MOE_FIGURE_RECEIVED_MAXVIO] = f.received_maxvio;
    figure[MOE_FIGURE_DISPATCH_BYTES] = (double)f.volume[MOE_DISPATCH].remote_bytes;
    figure[MOE_FIGURE_SENT_BYTES] = 0;
    for (int direction = 0; direction < MOE_NUM_DIRECTIONS; direction++) {
        figure[MOE_FIGURE_SENT_BYTES] += (double)f.volume[direction].remote_bytes;
    }
    figure[MOE_FIGURE_GRADIENT_NORM] = step->gradient_norm;
    figure[MOE_FIGURE_LEARNING_RATE] = step->learning_rate;
}

/* --- all steps --- */

static void add_validation(moe_validations *v, double loss, int64_t step) {
    if (v->count == 0) {
        v->first = loss;
        v->first_step = (double)step;
    }
    if (v->count == 0 || loss < v->best || isnan(v->best)) {
        v->best = loss;
        v->best_step = (double)step;
    }
    v->last = loss;
    v->last_step = (double)step;
    v->count++;
}

void moe_training_history_add(moe_training_history *h, const moe_step_metrics *step) {
    double figure[MOE_NUM_FIGURES];
    if (isnan(step->learning_rate)) {
        return;
    }
    moe_training_history_figures(step, figure);
    if (h->steps == 0) {
        memcpy(h->first, figure, sizeof h->first);
    }
    memcpy(h->recent[(int64_t)h->steps % MOE_HISTORY_WINDOW], figure, sizeof figure);
    h->steps++;
    if (h->steps >= MOE_HISTORY_WINDOW) {
        double mean = moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS);
        if (h->steps == MOE_HISTORY_WINDOW || mean < h->lowest) {
            h->lowest = mean;
        }
    }
    if (!isnan(step->validation_loss)) {
        add_validation(&h->validation, step->validation_loss, step->step);
    }
}

/* --- a history from a file --- */

static bool is_count(double value, int64_t most) {
    return value >= 0 && value <= (double)most && value == floor(value);
}

bool moe_training_history_is_sound(const moe_training_history *h, int64_t steps) {
    const moe_validations *v = &h->validation;
    return is_count(h->steps, steps) && is_count(v->count, steps) &&
           is_count(v->first_step, steps) && is_count(v->last_step, steps) &&
           is_count(v->best_step, steps);
}

/* --- what the history says --- */

int64_t moe_training_history_window(const moe_training_history *h) {
    return h->steps < MOE_HISTORY_WINDOW ? (int64_t)h->steps : MOE_HISTORY_WINDOW;
}

double moe_training_history_first(const moe_training_history *h, int figure) {
    return h->steps > 0 ? h->first[figure] : NAN;
}

double moe_training_history_last(const moe_training_history *h, int figure) {
    return h->steps > 0 ? h->recent[((int64_t)h->steps - 1) % MOE_HISTORY_WINDOW][figure] : NAN;
}

double moe_training_history_mean(const moe_training_history *h, int figure) {
    int64_t steps = (int64_t)h->steps, window = moe_training_history_window(h);
    double sum = 0;
    for (int64_t i = steps - window; i < steps; i++) {
        sum += h->recent[i % MOE_HISTORY_WINDOW][figure];
    }
    return window > 0 ? sum / (double)window : NAN;
}

/* A mean of equal numbers may differ from them in the last digit, which is no rise. */
bool moe_training_history_rose(const moe_training_history *h) {
    double first = moe_training_history_first(h, MOE_FIGURE_TASK_LOSS);
    return h->steps > 0 &&
           !(moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS) <= first + 1e-12 * fabs(first));
}

bool moe_training_history_above_unigram(const moe_training_history *h,
                                        const moe_training_facts *f) {
    return h->steps > 0 && f->unigram_entropy > 0 &&
           !(moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS) <= f->unigram_entropy);
}

bool moe_training_history_diverged(const moe_training_history *h, const moe_training_facts *f) {
    if (moe_training_history_rose(h)) {
        return true;
    }
    return h->steps > MOE_HISTORY_WINDOW && moe_training_history_above_unigram(h, f) &&
           moe_training_history_mean(h, MOE_FIGURE_TASK_LOSS) > h->lowest;
}
