/* norm.c: RMSNorm, one token per row. */
#include "base/norm.h"

#include <math.h>

static const double EPSILON = 1e-6;

void moe_rmsnorm(const real *x,
                 const real *w,
                 int64_t tokens,
                 int64_t width,
                 real *u,
                 double *inverse_rms) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const real *row = x + t * width;
        double sum = 0;
        for (int64_t i = 0; i < width; i++) {
            sum += (double)row[i] * row[i];
        }
        double r = 1 / sqrt(sum / (double)width + EPSILON);
        real scale = (real)r;
        if (inverse_rms) {
            inverse_rms[t] = r;
        }
        for (int64_t i = 0; i < width; i++) {
            u[t * width + i] = row[i] * scale * w[i];
        }
    }
}

void moe_rmsnorm_backward(const real *x,
                          const real *w,
                          const double *inverse_rms,
                          const real *du,
                          int64_t tokens,
                          int64_t width,
                          real *dx) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++) {
        const real *row = x + t * width, *given = du + t * width;
        double r = inverse_rms[t], dot = 0;
        for (int64_t i = 0; i < width; i++) {
            dot += (double)given[i] * w[i] * row[i];
        }
        real scale = (real)r, pull = (real)(r * r * r * dot / (double)width);
        for (int64_t i = 0; i < width; i++) {
            dx[t * width + i] = scale * (w[i] * given[i]) - pull * row[i];
        }
    }
}

enum { COLUMNS = 64 }; /* columns that a thread sums at a time */

void moe_rmsnorm_weight_gradient(const real *x,
                                 const double *inverse_rms,
                                 const real *du,
                                 int64_t tokens,
                                 int64_t width,
                                 real *dw) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < width; begin += COLUMNS) {
        int64_t count = width - begin < COLUMNS ? width - begin : COLUMNS;
        double sum[COLUMNS] = {0};
        for (int64_t t = 0; t < tokens; t++) {
            const real *row = x + t * width + begin, *given = du + t * width + begin;
            for (int64_t i = 0; i < count; i++) {
                sum[i] += (double)given[i] * row[i] * inverse_rms[t];
            }
        }
        for (int64_t i = 0; i < count; i++) {
            dw[begin + i] += (real)sum[i];
        }
    }
}
