/* derive_balance.c: the metrics of balance by their definitions. Nothing is sorted, and no two of
 * them share a step of the computation. */
#include <math.h>
#include <stddef.h>
#include <stdio.h>

#include "explain/derive_internal.h"
#include "measure/imbalance.h"
#include "output/format.h"

static const struct {
    const char *name, *unit;
    size_t member;
    bool by_expert;
} loads[] = {
    {"experts, selections", "expert", offsetof(moe_layer_metrics, counts_per_expert), true},
    {"devices, selections", "device", offsetof(moe_layer_metrics, counts_per_device), false},
    {"devices, rows received", "device", offsetof(moe_layer_metrics, received_rows), false},
    {"devices, rows sent", "device", offsetof(moe_layer_metrics, sent_rows), false},
};

enum { MAX_OVER_MEAN, MAXVIO, BALANCEDNESS, CV, GINI, ENTROPY, IDLE, NUM_METRICS };

typedef struct load { /* one kind of load in one layer */
    const int64_t *x;
    int64_t n, sum, most, place, idle;
    double mean;
} load;

static load load_of(const moe_step_metrics *m, int32_t layer, size_t kind) {
    load a = {.x = *(int64_t *const *)((const char *)&m->layer[layer] + loads[kind].member),
              .n = loads[kind].by_expert ? m->num_experts : m->devices};
    for (int64_t i = 0; i < a.n; i++) {
        a.sum += a.x[i];
        a.idle += a.x[i] == 0;
        if (a.x[i] > a.x[a.place]) {
            a.place = i;
        }
    }
    a.most = a.x[a.place];
    a.mean = (double)a.sum / (double)a.n;
    return a;
}

static double deviation(const load *a) {
    double squares = 0;
    for (int64_t i = 0; i < a->n; i++) {
        squares += ((double)a->x[i] - a->mean) * ((double)a->x[i] - a->mean);
    }
    return sqrt(squares / (double)a->n);
}

/* sum_i sum_j |x_i - x_j|, which is exact. */
static double differences(const load *a) {
    int64_t sum = 0;
    for (int64_t i = 0; i < a->n; i++) {
        for (int64_t j = 0; j < a->n; j++) {
            sum += a->x[i] > a->x[j] ? a->x[i] - a->x[j] : a->x[j] - a->x[i];
        }
    }
    return (double)sum;
}

static double entropy(const load *a) {
    double sum = 0;
    for (int64_t i = 0; i < a->n; i++) {
        if (a->x[i] > 0) {
            sum -= (double)a->x[i] / (double)a->sum * log((double)a->x[i] / (double)a->sum);
        }
    }
    return sum;
}

/* Computes one metric of one layer and writes its formula with the values. */
static double metric_of(const load *a, int metric, const char *unit, moe_pieces *p) {
    double n = (double)a->n;
    double most = (double)a->most;
    double value = 0;
    if (a->sum == 0) {
        return metric == MAX_OVER_MEAN || metric == BALANCEDNESS ? 1 : metric == IDLE ? n : 0;
    }
    switch (metric) {
    case MAX_OVER_MEAN:
        moe_pieces_add(p, "%s\t(%s\t%lld) / %.6g", moe_format_count(a->most).s, unit,
                       (long long)a->place, a->mean);
        return most / a->mean;
    case MAXVIO:
        moe_pieces_add(p, "(%s - %.6g) / %.6g", moe_format_count(a->most).s, a->mean, a->mean);
        return most / a->mean - 1;
    case BALANCEDNESS:
        moe_pieces_add(p, "%.6g / %s", a->mean, moe_format_count(a->most).s);
        return a->mean / most;
    case CV:
        value = deviation(a);
        moe_pieces_add(p, "%.6g / %.6g", value, a->mean);
        return value / a->mean;
    case GINI:
        value = differences(a);
        moe_pieces_add(p, "%.6g / (2 x %.0f x %s)", value, n, moe_format_count(a->sum).s);
        return value / (2 * n * (double)a->sum);
    case ENTROPY:
        moe_pieces_add(p, "%.0f terms; log %.0f = %.6g at balance", n, n, log(n));
        return entropy(a);
    }
    MOE_ASSERT(metric == IDLE);
    moe_pieces_add(p, "%lld of %.0f", (long long)a->idle, n);
    return (double)a->idle;
}

/* The mean over layers of what this returns is reported. It is added up here in the same way as the
 * derived value. */
static double reported_of(const load *a, int metric) {
    moe_imbalance m = moe_imbalance_of(a->x, a->n);
    const double value[NUM_METRICS] = {m.max_over_mean, m.maxvio,  m.balancedness, m.cv,
                                       m.gini,          m.entropy, m.idle};
    return value[metric];
}

void moe_derive_balance(moe_derivation *d, const moe_step_metrics *m) {
    static const char *const names[NUM_METRICS] = {"max/mean", "MaxVio",  "mean/max", "CV",
                                                   "Gini",     "entropy", "idle"};
    static const char *const formulas[NUM_METRICS] = {"max / mean",
                                                      "(max - mean) / mean",
                                                      "mean / max",
                                                      "standard deviation / mean",
                                                      "sum_i sum_j |x_i - x_j| / (2 n sum x)",
                                                      "-sum p ln p, p = x / sum x",
                                                      "entries that are 0"};
    for (size_t kind = 0; kind < sizeof loads / sizeof loads[0]; kind++) {
        for (int metric = 0; metric < NUM_METRICS; metric++) {
            moe_derived_numbers sum = {0, 0};
            moe_pieces p = {.length = 0}, unused;
            char name[64];
            for (int32_t l = 0; l < m->num_layers; l++) {
                load a = load_of(m, l, kind);
                unused.length = 0;
                sum.value +=
                    metric_of(&a, metric, loads[kind].unit, l == 0 ? &p : &unused) / m->num_layers;
                sum.reported += reported_of(&a, metric) / m->num_layers;
            }
            snprintf(name, sizeof name, "%s: %s", loads[kind].name, names[metric]);
            if (m->num_layers > 1) {
                moe_pieces_add(&p, " in layer 0; mean of %d layers", m->num_layers);
            }
            moe_derivation_add(d, MOE_DERIVED_BALANCE, -1, name, sum, formulas[metric], "%s",
                               p.text);
        }
    }
}
