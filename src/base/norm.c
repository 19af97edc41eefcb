/* norm.c: RMSNorm, one token per row. */
#include "base/norm.h"

#include <math.h>

#include "base/vector.h"

static const double EPSILON = 1e-6;

/* Tokens whose sums go on side by side. Each sum has the order of its vector, in which one addition
 * waits for the one before; the sums of several tokens do not wait for each other. */
enum { TOKENS = 8 };

/* sum [count] = the squares of the rows x [count,width], added up. */
static void sums_of_squares(const real *x, int64_t count, int64_t width, double sum[TOKENS]) {
    for (int k = 0; k < TOKENS; k++) {
        sum[k] = 0;
    }
    if (count == TOKENS) {
        for (int64_t i = 0; i < width; i++) {
            for (int k = 0; k < TOKENS; k++) {
                sum[k] += (double)x[k * width + i] * x[k * width + i];
            }
        }
        return;
    }
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < width; i++) {
            sum[k] += (double)x[k * width + i] * x[k * width + i];
        }
    }
}

/* u_i = x_i scale w_i */
MOE_CLONES static void scale_row(const real *restrict x,
                                 const real *restrict w,
                                 int64_t width,
                                 real scale,
                                 real *restrict u) {
    for (int64_t i = 0; i < width; i++) {
        u[i] = x[i] * scale * w[i];
    }
}

void moe_rmsnorm(const real *x,
                 const real *w,
                 int64_t tokens,
                 int64_t width,
                 real *u,
                 double *inverse_rms) {
#pragma omp parallel for schedule(static)
    for (int64_t begin = 0; begin < tokens; begin += TOKENS) {
        const int64_t count = tokens - begin < TOKENS ? tokens - begin : TOKENS;
        double sum[TOKENS];
        sums_of_squares(x + begin * width, count, width, sum);
        for (int64_t t = begin; t < begin + count; t++) {
            const double r = 1 / sqrt(sum[t - begin] / (double)width + EPSILON);
            if (inverse_rms) {
                inverse_rms[t] = r;
            }
            scale_row(x + t * width, w, width, (real)r, u + t * width);
        }
    }
}

/* dot [count] = sum of du_i w_i x_i of each row. */
static void dots(const real *x,
                 const real *w,
                 const real *du,
                 int64_t count,
                 int64_t width,
                 double dot[TOKENS]) {
    for (int k = 0; k < TOKENS; k++) {
        dot[k] = 0;
    }
    if (count == TOKENS) {
        for (int64_t i = 0; i < width; i++) {
            for (int k = 0; k < TOKENS; k++) {
                dot[k] += (double)du[k * width + i] * w[i] * x[k * width + i];
            }
        }
        return;
    }
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < width; i++) {
            dot[k] += (double)du[k * width + i] * w[i] * x[k * width + i];
        }
    }
}

/* dx_i = scale w_i du_i - pull x_i; dx may be du. */
MOE_CLONES static void gradient_row(const real *x,
                                    const real *w,
                                    const real *du,
                                    int64_t width,
                                    real scale,
                                    real pull,
                                    real *dx) {
    for (int64_t i = 0; i < width; i++) {
        dx[i] = scale * (w[i] * du[i]) - pull * x[i];
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
    for (int64_t begin = 0; begin < tokens; begin += TOKENS) {
        const int64_t count = tokens - begin < TOKENS ? tokens - begin : TOKENS;
        double dot[TOKENS];
        dots(x + begin * width, w, du + begin * width, count, width, dot);
        for (int64_t t = begin; t < begin + count; t++) {
            const double r = inverse_rms[t];
            gradient_row(x + t * width, w, du + t * width, width, (real)r,
                         (real)(r * r * r * dot[t - begin] / (double)width), dx + t * width);
        }
    }
}

enum { COLUMNS = 64 }; /* columns that a thread sums at a time */

/* sum [count] += du_i x_i r of one row. */
MOE_CLONES static void add_products(const real *restrict x,
                                    const real *restrict du,
                                    double r,
                                    int64_t count,
                                    double *restrict sum) {
    for (int64_t i = 0; i < count; i++) {
        sum[i] += (double)du[i] * x[i] * r;
    }
}

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
            add_products(x + t * width + begin, du + t * width + begin, inverse_rms[t], count, sum);
        }
        for (int64_t i = 0; i < count; i++) {
            dw[begin + i] += (real)sum[i];
        }
    }
}
