/* drift.c: distances between the loads of two steps. */
#include "measure/drift.h"

#include <math.h>

static double sum_of(const double *load, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += load[i];
    }
    return sum;
}

double moe_drift(const double *a, const double *b, int32_t layers, int64_t num_experts) {
    double total = 0;
    int32_t counted = 0;
    for (int64_t l = 0; l < layers; l++) {
        const double *x = a + l * num_experts, *y = b + l * num_experts;
        const double of_a = sum_of(x, num_experts), of_b = sum_of(y, num_experts);
        double distance = 0;
        for (int64_t e = 0; e < num_experts && of_a > 0 && of_b > 0; e++) {
            distance += fabs(x[e] / of_a - y[e] / of_b) / 2;
        }
        total += distance;
        counted += of_a > 0 && of_b > 0;
    }
    return counted > 0 ? total / counted : NAN;
}
