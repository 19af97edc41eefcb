/* imbalance.c: the loads are sorted once; then each metric is one formula of docs/method.md
 * section 6. */
#include "measure/imbalance.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

const moe_imbalance_formula moe_imbalance_formulas[] = {
#define IMBALANCE(name, formula) {#name, formula},
#include "measure/names.def"
    {NULL, NULL},
};

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The value below which the share q of the n sorted entries lies. Between two neighbours it is
 * interpolated, as numpy does by default. */
static double percentile(const int64_t *sorted, int64_t n, double q) {
    double position = q * (double)(n - 1);
    int64_t below = (int64_t)position;
    int64_t above = below + 1 < n ? below + 1 : below;
    return (double)sorted[below] +
           (double)(sorted[above] - sorted[below]) * (position - (double)below);
}

moe_imbalance moe_imbalance_of(const int64_t *load, int64_t n) {
    MOE_ASSERT(n >= 1);
    int64_t *x = moe_alloc(n, sizeof *x, "sorted loads");
    memcpy(x, load, (size_t)n * sizeof *x);
    qsort(x, (size_t)n, sizeof *x, ascending);

    int64_t total = 0;
    moe_imbalance m = {.max_over_mean = 1, .balancedness = 1};
    for (int64_t i = 0; i < n; i++) {
        total += x[i];
        m.idle += x[i] == 0;
    }
    m.p50 = percentile(x, n, 0.50);
    m.p90 = percentile(x, n, 0.90);
    m.p99 = percentile(x, n, 0.99);
    if (total > 0) {
        double sum = (double)total;
        double mean = sum / (double)n;
        double largest = (double)x[n - 1];
        double squares = 0;
        double spread = 0;
        for (int64_t i = 0; i < n; i++) {
            double value = (double)x[i], p = value / sum;
            squares += (value - mean) * (value - mean);
            spread += (double)(2 * (i + 1) - n - 1) * value;
            if (x[i] > 0) {
                m.entropy -= p * log(p);
            }
        }
        m.max_over_mean = largest / mean;
        m.maxvio = (largest - mean) / mean;
        m.balancedness = mean / largest;
        m.cv = sqrt(squares / (double)n) / mean;
        m.gini = spread / ((double)n * sum);
    }
    moe_free(x);
    return m;
}

void moe_imbalance_add(moe_imbalance *sum, const moe_imbalance *m, double share) {
#define IMBALANCE(name, formula) sum->name += m->name * share;
#include "measure/names.def"
}

double moe_imbalance_max_over_mean(const int64_t *load, int64_t n) {
    int64_t most = 0;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        most = load[i] > most ? load[i] : most;
        sum += (double)load[i];
    }
    return sum > 0 ? (double)most * (double)n / sum : 1;
}

/* p[y] is the probability that the experts drawn so far have reached y groups. The experts are
 * drawn one after the other: when the first k of them have reached y groups of n experts, the next
 * one falls into one of these groups with probability (y n - k) / (N - k). */
double moe_imbalance_expected_reach(int32_t num_experts,
                                    int32_t groups,
                                    int32_t top_k,
                                    int32_t limit) {
    int32_t per_group = num_experts / groups, most = top_k < groups ? top_k : groups;
    double *p = moe_alloc_zero(most + 2, sizeof *p, "a distribution of groups"), mean = 0;
    p[0] = 1;
    for (int32_t k = 0; k < top_k && k < num_experts; k++) {
        for (int32_t y = most; y >= 0; y--) {
            double left = num_experts - k, stay = fmax((double)y * per_group - k, 0) / left;
            double reach = y > 0 ? p[y - 1] * (double)(groups - y + 1) * per_group / left : 0;
            p[y] = p[y] * stay + reach;
        }
    }
    for (int32_t y = 1; y <= most; y++) {
        mean += p[y] * (y < limit ? y : limit);
    }
    moe_free(p);
    return mean;
}
