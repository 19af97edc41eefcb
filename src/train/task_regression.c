/* task_regression.c: targets that depend on a token's topic (task.h). */
#include "base/exact.h"
#include "base/rng.h"
#include "base/vector.h"
#include "data/synthetic.h"
#include "train/task_internal.h"

/* s and b of every topic, standard normal. */
static void init(moe_task *task, moe_parameters *all) {
    moe_rng rng = {(uint64_t)task->config->run.seed, MOE_RNG_TEACHER};
    int64_t h = task->hidden, rows = 2 * (int64_t)task->config->data.num_topics;
    moe_block_array table[] = {
        MOE_ARRAY(task->domain, task->num_tokens),
        MOE_ARRAY(task->target, task->num_tokens * h),
        MOE_ARRAY(task->teacher, rows * h),
    };
    (void)all;
    moe_block_reserve(&task->block, table, MOE_ARRAYS(table), "targets");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        moe_rng_normal(rng, (uint64_t)(i / 2), (uint64_t)(i % 2), 1, task->teacher + i * h, h);
    }
}

static const int64_t VALIDATION_DRAW = INT64_C(1) << 39; /* no training draw comes so far */

static void input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0) {
    int64_t h = task->hidden;
    const moe_config *c = task->config;
    moe_data_config data = c->data;
    data.drift = split == MOE_SPLIT_VALIDATION ? 0 : data.drift / c->train.accumulate;
    moe_synthetic_vectors(&data, c->run.seed, h, b,
                          split == MOE_SPLIT_VALIDATION ? VALIDATION_DRAW + draw : draw, x0,
                          task->domain);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        const real *s = task->teacher + 2 * task->domain[t] * h;
        const real *shift = s + h;
        const real *x = x0 + t * h;
        for (int64_t i = 0; i < h; i++) {
            task->target[t * h + i] = x[i] * s[i] + shift[i];
        }
    }
}

enum { LANES = 8 };

/* Sum of (h - target)^2 of one token, in eight partial sums as in base/sums.h; gradient = 2 scale
 * (h
 * - target); none where it is NULL. */
MOE_CLONES static double squared_error(const real *restrict h,
                                       const real *restrict target,
                                       int64_t width,
                                       double scale,
                                       real *restrict gradient) {
    double lane[LANES] = {0}, sum = 0;
    int64_t whole = width - width % LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            double e = (double)h[i + k] - (double)target[i + k];
            lane[k] += e * e;
        }
    }
    for (int k = 0; k < LANES; k++) {
        sum += lane[k];
    }
    for (int64_t i = whole; i < width; i++) {
        double e = (double)h[i] - (double)target[i];
        sum += e * e;
    }
    for (int64_t i = 0; gradient && i < width; i++) {
        gradient[i] = (real)(2 * scale * ((double)h[i] - (double)target[i]));
    }
    return sum;
}

static int64_t loss(moe_task *task,
                    const moe_batch *b,
                    const real *h,
                    int64_t tokens_global,
                    moe_parameters *all,
                    int64_t *sum,
                    real *dh) {
    (void)all;
    int64_t width = task->hidden;
    int64_t none = b->num_tokens;
    int64_t bad = none;
    int64_t words[MOE_EXACT_WORDS] = {0};
    double scale = tokens_global > 0 ? 1 / ((double)tokens_global * (double)width) : 0,
           most = moe_task_most(tokens_global);
#pragma omp parallel for schedule(static) reduction(+ : words) reduction(min : bad)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        bool counted = !b->counted || b->counted[t];
        double error = squared_error(h + t * width, task->target + t * width, width,
                                     counted ? scale : 0, dh ? dh + t * width : NULL);
        if (!counted) {
            continue;
        }
        if (error / (double)width <= most) {
            moe_exact_add(words, error / (double)width);
        } else {
            bad = t < bad ? t : bad;
        }
    }
    moe_task_add_words(sum, words);
    return bad < none ? bad : -1;
}

const moe_task_kind moe_task_regression = {"regression", init, input, loss, NULL};
