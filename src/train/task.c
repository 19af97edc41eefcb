/* task.c: chooses between the two tasks; checks the text; the regression task, which is short. */
#include "train/task.h"

#include <math.h>

#include "base/exact.h"
#include "base/rng.h"
#include "data/synthetic.h"
#include "train/task_text.h"

/* --- is there enough text? --- */

static int64_t sequence_length(const moe_config *c) {
    int64_t total = c->cluster.devices * c->data.tokens_per_device,
            length = c->data.sequence_length;
    return length > 0 && length < total ? length : total;
}

static moe_corpus corpus_of(const moe_config *c, const moe_input *input) {
    return (moe_corpus){input->text, input->text_length, input->num_domains, input->domain_offset,
                        c->train.validation_share};
}

static int check_part(const moe_config *c,
                      const moe_corpus *text,
                      int32_t device,
                      int32_t domain,
                      enum moe_split split,
                      moe_status *st) {
    int64_t needed = sequence_length(c) + 1, length;
    moe_window_part(text, c->cluster.devices, device, domain, split, &length);
    if (length >= needed) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "data.path: text %d of %d has %lld bytes, of which device %d of %d has %lld "
                    "for %s (train.validation_share = %g); a sequence and "
                    "the byte after it need %lld: a longer text, fewer devices or a shorter "
                    "data.sequence_length is needed",
                    domain + 1, text->num_domains,
                    (long long)(text->domain_offset[domain + 1] - text->domain_offset[domain]),
                    device, c->cluster.devices, (long long)length,
                    split == MOE_SPLIT_TRAIN ? "training" : "validation", c->train.validation_share,
                    (long long)needed);
}

int moe_task_check(const moe_config *c, const moe_input *input, moe_status *st) {
    moe_corpus text = corpus_of(c, input);
    if (c->data.source != MOE_SOURCE_TEXT) {
        return MOE_OK;
    }
    for (int32_t domain = 0; domain < text.num_domains; domain++) {
        for (int32_t d = 0; d < c->cluster.devices; d++) {
            if (check_part(c, &text, d, domain, MOE_SPLIT_TRAIN, st)) {
                return st->code;
            }
            if ((c->train.validation_every > 0 || c->train.specialization) &&
                check_part(c, &text, d, domain, MOE_SPLIT_VALIDATION, st)) {
                return st->code;
            }
        }
    }
    return MOE_OK;
}

/* --- regression --- */

/* s and b of every topic, standard normal. */
static void synthetic_init(moe_task *task) {
    moe_rng rng = {(uint64_t)task->config->run.seed, MOE_RNG_TEACHER};
    int64_t h = task->hidden, rows = 2 * (int64_t)task->config->data.num_topics;
    task->target = moe_alloc(task->num_tokens * h, sizeof *task->target, "targets");
    task->teacher = moe_alloc(rows * h, sizeof *task->teacher, "targets");
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        moe_rng_normal(rng, (uint64_t)(i / 2), (uint64_t)(i % 2), 1, task->teacher + i * h, h);
    }
}

static const int64_t VALIDATION_DRAW = INT64_C(1) << 39; /* no training draw comes so far */

static void synthetic_input(
    moe_task *task, const moe_batch *b, int64_t draw, enum moe_split split, real *x0) {
    int64_t h = task->hidden;
    moe_synthetic_vectors(
        &task->config->data, task->config->run.seed, task->config->model.hidden_size, b,
        split == MOE_SPLIT_VALIDATION ? VALIDATION_DRAW + draw : draw, x0, task->domain);
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

/* Sum of (h - target)^2 of one token; gradient = 2 scale (h - target). */
static double squared_error(
    const real *h, const real *target, int64_t width, double scale, real *gradient) {
    double sum = 0;
    for (int64_t i = 0; i < width; i++) {
        double e = (double)h[i] - (double)target[i];
        sum += e * e;
        if (gradient) {
            gradient[i] = (real)(2 * scale * e);
        }
    }
    return sum;
}

static int64_t synthetic_loss(const moe_task *task,
                              const moe_batch *b,
                              const real *h,
                              int64_t tokens_global,
                              int64_t *sum,
                              real *dh) {
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
    for (int i = 0; i < MOE_EXACT_WORDS; i++) {
        sum[i] += words[i];
    }
    return bad < none ? bad : -1;
}

/* --- either --- */

void moe_task_init(moe_task *task,
                   const moe_config *c,
                   const moe_input *input,
                   const moe_batch *b,
                   moe_parameters *all) {
    *task = (moe_task){.config = c,
                       .corpus = corpus_of(c, input),
                       .text = c->data.source == MOE_SOURCE_TEXT,
                       .hidden = c->model.hidden_size,
                       .num_tokens = b->num_tokens,
                       .context = c->train.context,
                       .table_index = -1,
                       .head_norm_index = -1,
                       .head_index = -1};
    task->domain = moe_alloc(b->num_tokens, sizeof *task->domain, "domains");
    if (task->text) {
        moe_task_text_init(task, all);
    } else {
        synthetic_init(task);
    }
}

void moe_task_input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0) {
    MOE_ASSERT(b->num_tokens == task->num_tokens);
    if (task->text) {
        moe_task_text_input(task, b, draw, split, x0);
    } else {
        synthetic_input(task, b, draw, split, x0);
    }
}

int64_t moe_task_loss(moe_task *task,
                      const moe_batch *b,
                      const real *h,
                      int64_t tokens_global,
                      moe_parameters *all,
                      int64_t *sum,
                      int64_t *tokens,
                      real *dh) {
    for (int64_t t = 0; t < b->num_tokens; t++) {
        *tokens += !b->counted || b->counted[t];
    }
    if (task->text) {
        return moe_task_text_loss(task, b, h, tokens_global, all, sum, dh);
    }
    return synthetic_loss(task, b, h, tokens_global, sum, dh);
}

void moe_task_input_backward(moe_task *task,
                             const moe_batch *b,
                             const real *dx0,
                             moe_parameters *all) {
    if (task->text) {
        moe_task_text_input_backward(task, b, dx0, all);
    }
}

void moe_task_free(moe_task *task) {
    void *owned[] = {task->next,      task->position, task->domain, task->table,
                     task->head_norm, task->head,     task->normed, task->inverse_rms,
                     task->logits,    task->teacher,  task->target};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
        moe_free(owned[i]);
    }
    *task = (moe_task){0};
}
