/* optimizer.c: the schedule of the learning rate, and the table of optimizers. All scalars are
 * computed in double and rounded once to `real`, and the loops keep PyTorch's order of operations:
 * one step gives its bits, up to the compiler's use of fused operations there. */
#include "train/optimizer.h"

#include <math.h>

#include "base/vector.h"

static const double PI = 3.14159265358979323846;

/* --- schedules --- */

double moe_optimizer_learning_rate(const moe_config *c, int64_t step) {
    int64_t warmup = c->train.warmup_steps, steps = c->run.steps;
    double most = c->train.learning_rate;
    if (step < warmup) {
        return most * (double)(step + 1) / (double)warmup;
    }
    switch (c->train.schedule) { /* without a default, so that the compiler asks for each */
    case MOE_SCHEDULE_CONSTANT:
        return most;
    case MOE_SCHEDULE_COSINE:
        return step >= steps
                   ? 0
                   : most * 0.5 *
                         (1 + cos(PI * (double)(step - warmup) / (double)(steps - warmup)));
    }
    MOE_ASSERT(false);
    return 0;
}

/* --- one step --- */

/* Scalars of one step. */
typedef struct update {
    real clip;                   /* factor of the gradient */
    real lr, decay;              /* SGD */
    real keep;                   /* AdamW: 1 - lr wd */
    real take_m, keep_v, take_v; /* 1 - b1, b2, 1 - b2 */
    real root, epsilon, step;    /* sqrt(1 - b2^t), eps, lr / (1 - b1^t) */
} update;

static update make_update(const moe_config *c, bool decay, int64_t step, double lr, double norm) {
    double wd = decay ? c->train.weight_decay : 0;
    double b1 = c->train.beta1;
    double b2 = c->train.beta2;
    double t = (double)(step + 1);
    bool clips = c->train.clip_norm > 0 && norm > c->train.clip_norm;
    return (update){.clip = clips ? (real)(c->train.clip_norm / norm) : 1,
                    .lr = (real)lr,
                    .decay = (real)wd,
                    .keep = (real)(1 - lr * wd),
                    .take_m = (real)(1 - b1),
                    .keep_v = (real)b2,
                    .take_v = (real)(1 - b2),
                    .root = (real)sqrt(1 - pow(b2, t)),
                    .epsilon = (real)c->train.epsilon,
                    .step = (real)(lr / (1 - pow(b1, t)))};
}

#ifdef MOE_REAL_DOUBLE
#define SQRT sqrt
#else
#define SQRT sqrtf
#endif

MOE_CLONES static void sgd_loop(update u, int64_t n, const real *restrict g, real *restrict p) {
    for (int64_t i = 0; i < n; i++) {
        p[i] -= u.lr * (g[i] * u.clip + u.decay * p[i]);
    }
}

MOE_CLONES static void adamw_loop(update u,
                                  int64_t n,
                                  const real *restrict g,
                                  real *restrict p,
                                  real *restrict m,
                                  real *restrict v) {
    for (int64_t i = 0; i < n; i++) {
        real gradient = g[i] * u.clip, mean = m[i] + u.take_m * (gradient - m[i]);
        real square = v[i] * u.keep_v + u.take_v * gradient * gradient;
        m[i] = mean;
        v[i] = square;
        p[i] = p[i] * u.keep - u.step * mean / (SQRT(square) / u.root + u.epsilon);
    }
}

static void sgd(const update *u, const moe_parameter *p, int64_t begin, int64_t n) {
    sgd_loop(*u, n, p->gradient + begin, p->value + begin);
}

static void adamw(const update *u, const moe_parameter *p, int64_t begin, int64_t n) {
    adamw_loop(*u, n, p->gradient + begin, p->value + begin, p->m + begin, p->v + begin);
}

/* --- the table --- */

typedef struct optimizer {
    bool has_moments; /* keeps m and v */
    void (*update)(const update *u, const moe_parameter *p, int64_t begin, int64_t n);
} optimizer;

static const optimizer optimizers[] = {
    [MOE_OPTIMIZER_SGD] = {false, sgd},
    [MOE_OPTIMIZER_ADAMW] = {true, adamw},
};

void moe_optimizer_init(moe_parameters *all, const moe_config *c) {
    for (int i = 0; optimizers[c->train.optimizer].has_moments && i < all->num; i++) {
        int64_t n = all->p[i].count * all->p[i].size;
        all->p[i].m = moe_alloc_zero(n, sizeof(real), "optimiser state");
        all->p[i].v = moe_alloc_zero(n, sizeof(real), "optimiser state");
    }
}

enum { CHUNK = 8192 }; /* elements that a thread takes at a time */

void moe_optimizer_step(moe_parameters *all,
                        const moe_config *c,
                        int64_t step,
                        double lr,
                        double gradient_norm) {
    const optimizer *o = &optimizers[c->train.optimizer];
    for (int i = 0; i < all->num; i++) {
        const moe_parameter *p = &all->p[i];
        update u = make_update(c, p->decay, step, lr, gradient_norm);
        int64_t size = p->count * p->size;
#pragma omp parallel for schedule(static)
        for (int64_t begin = 0; begin < size; begin += CHUNK) {
            o->update(&u, p, begin, size - begin < CHUNK ? size - begin : CHUNK);
        }
    }
}
