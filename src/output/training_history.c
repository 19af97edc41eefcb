/* history.c: a ring of the last steps' figures beside those of the first. Means are taken from the
 * oldest to the newest step, so that a run that was resumed gives the bits of one that was not. */
#include "output/training_history.h"

#include <math.h>
#include <string.h>

#include "predict/memory.h"

/* --- facts
 * ----------------------------------------------------------------------------------------------------------------------------------
 */

/* -sum p ln p over byte values. */
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

/* --- one step
 * ------------------------------------------------------------------------------------------------------------------------------
 */

/* max / mean - 1; 0 when there is no load. */
static double maxvio(const int64_t *load, int64_t n) {
    int64_t most = 0;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        most = load[i] > most ? load[i] : most;
        sum += (double)load[i];
    }
    return sum > 0 ? (double)most * (double)n / sum - 1 : 0;
}

static void add_loads(const moe_step_metrics *step, double *figure) {
    for (int32_t l = 0; l < step->num_layers; l++) {
        const moe_layer_metrics *layer = &step->layer[l];
        figure[MOE_FIGURE_EXPERT_MAXVIO] +=
            maxvio(layer->counts_per_expert, step->num_experts) / step->num_layers;
        figure[MOE_FIGURE_DEVICE_MAXVIO] +=
            maxvio(layer->counts_per_device, step->devices) / step->num_layers;
        figure[MOE_FIGURE_RECEIVED_MAXVIO] +=
            maxvio(layer->received_rows, step->devices) / step->num_layers;
    }
}

static void add_volume(const moe_step_metrics *step, double *figure) {
    for (int direction = 0; direction < MOE_NUM_DIRECTIONS; direction++) {
        moe_volume sum;
        moe_step_metrics_volume(step, (enum moe_direction)direction, &sum);
        if (direction == MOE_DISPATCH) {
            figure[MOE_FIGURE_DISPATCH_BYTES] = (double)sum.remote_bytes;
        }
        figure[MOE_FIGURE_SENT_BYTES] += (double)sum.remote_bytes;
    }
}

void moe_training_history_figures(const moe_step_metrics *step, double figure[MOE_NUM_FIGURES]) {
    double loss[MOE_NUM_LOSSES];
    memset(figure, 0, MOE_NUM_FIGURES * sizeof *figure);
    moe_step_metrics_mean_losses(step, loss, figure + MOE_FIGURE_RAW,
                                 &figure[MOE_FIGURE_BALANCE_LOSS]);
    add_loads(step, figure);
    add_volume(step, figure);
    figure[MOE_FIGURE_TASK_LOSS] = step->task_loss;
    figure[MOE_FIGURE_GRADIENT_NORM] = step->gradient_norm;
    figure[MOE_FIGURE_LEARNING_RATE] = step->learning_rate;
}

/* --- all steps
 * -----------------------------------------------------------------------------------------------------------------------------
 */

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

/* --- what it says
 * --------------------------------------------------------------------------------------------------------------------------
 */

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

/* A mean of equal numbers may differ from them in the last digit: that is no rise. */
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
