/* task_text.c: the embedding of a byte and the bytes before it; RMSNorm, head and cross-entropy.
 *
 *   forward    x0_t = 1/sqrt(C) sum_{j < C, j <= place of t in its sequence} table[j][byte_{t-j}]
 *              n_t = rmsnorm(h_t),  z_t = head n_t,  loss_t = log sum_i exp z_ti - z_{t,next}
 *   backward   dz_t = (softmax(z_t) - onehot(next)) / tokens,  dn_t = head^T dz_t
 *              dhead = sum_t dz_t n_t^T
 *              dtable[j][v] = 1/sqrt(C) sum_{t: byte_{t-j} = v} dx0_t
 *
 * with C the context and V = 256. The softmax is in double. Whatever is summed over tokens is
 * summed for each device, in the order of its tokens, so that ranks and threads change no bit: a
 * GEMM takes rows of one device, and a thread takes a context position of a device or whole
 * columns. */
#include <math.h>

#include "base/exact.h"
#include "base/gemm.h"
#include "base/norm.h"
#include "base/rng.h"
#include "base/sums.h"
#include "router/scores.h"
#include "train/task_internal.h"

enum { V = MOE_VOCABULARY, ROWS = 256 /* of one GEMM; no call crosses a device */ };

static void reserve(moe_task *task, int64_t rows) {
    int64_t h = task->hidden, n = task->num_tokens;
    moe_block_array table[] = {
        MOE_ARRAY(task->domain, n),     MOE_ARRAY(task->next, n),
        MOE_ARRAY(task->position, n),   MOE_ARRAY(task->table, rows * h),
        MOE_ARRAY(task->head_norm, h),  MOE_ARRAY(task->head, V * h),
        MOE_ARRAY(task->normed, n * h), MOE_ARRAY(task->inverse_rms, n),
        MOE_ARRAY(task->logits, n * V),
    };
    moe_block_reserve(&task->block, table, MOE_ARRAYS(table), "the language model's ends");
}

/* Rows of unit variance like forward-only vectors; the head as PyTorch's Linear: variance 1 / (3
 * H). */
static void init(moe_task *task, moe_parameters *all) {
    uint64_t seed = (uint64_t)task->config->run.seed;
    int64_t h = task->hidden;
    int64_t rows = (int64_t)task->context * V;
    MOE_ASSERT(task->context > 0);
    reserve(task, rows);
    for (int64_t i = 0; i < rows; i++) {
        moe_rng_normal((moe_rng){seed, MOE_RNG_EMBEDDING}, (uint64_t)(i / V), (uint64_t)(i % V), 1,
                       task->table + i * h, h);
    }
    for (int64_t i = 0; i < h; i++) {
        task->head_norm[i] = 1;
    }
    for (int64_t i = 0; i < V; i++) {
        moe_rng_normal((moe_rng){seed, MOE_RNG_HEAD}, 0, (uint64_t)i, 1 / sqrt(3 * (double)h),
                       task->head + i * h, h);
    }
    task->table_index = moe_parameters_add(all, "embedding", true, rows * h, task->table);
    all->p[task->table_index].columns = h;
    task->head_norm_index = moe_parameters_add(all, "head_norm", false, h, task->head_norm);
    task->head_index = moe_parameters_add(all, "head", true, V * h, task->head);
    all->p[task->head_index].columns = h;
}

/* --- embedding --- */

/* Bytes that a local token sees: its own and those before it in its sequence, at most `context`. */
static int32_t bytes_seen(const moe_task *task, const moe_batch *b, int64_t t) {
    int64_t place = (b->first_token + t) % b->sequence_length;
    return place + 1 < task->context ? (int32_t)place + 1 : task->context;
}

/* Row of the table for the byte j places before the byte *last. */
static int64_t table_row(const uint8_t *last, int32_t j) {
    return (int64_t)j * V + last[-j];
}

/* The byte of local token t in the text. */
static const uint8_t *byte_of(const moe_task *task, int64_t t) {
    return task->corpus.bytes + task->position[t];
}

static void embed(const moe_task *task, const uint8_t *last, int32_t seen, real *x) {
    int64_t h = task->hidden;
    real scale = (real)(1 / sqrt(task->context));
    for (int64_t i = 0; i < h; i++) {
        x[i] = 0;
    }
    for (int32_t j = 0; j < seen; j++) {
        const real *row = task->table + table_row(last, j) * h;
        for (int64_t i = 0; i < h; i++) {
            x[i] += row[i] * scale;
        }
    }
}

void moe_task_embed(const moe_task *task, const uint8_t *last, int64_t place, real *x) {
    embed(task, last, place + 1 < task->context ? (int32_t)place + 1 : task->context, x);
}

static void input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0) {
    MOE_ASSERT(task->corpus.length > b->sequence_length);
    moe_window_draw(&task->corpus, task->config->run.seed, draw, split, b, task->position,
                    task->next, task->domain);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < b->num_tokens; t++) {
        embed(task, byte_of(task, t), bytes_seen(task, b, t), x0 + t * task->hidden);
    }
}

/* The rows (j, .) of one device's partial. */
static void table_gradient(const moe_task *task,
                           const moe_batch *b,
                           int32_t device,
                           int32_t j,
                           const real *dx0,
                           real *partial) {
    int64_t h = task->hidden;
    real scale = (real)(1 / sqrt(task->context));
    for (int64_t t = b->device_offset[device]; t < b->device_offset[device + 1]; t++) {
        if (j >= bytes_seen(task, b, t)) {
            continue;
        }
        real *row = partial + table_row(byte_of(task, t), j) * h;
        for (int64_t i = 0; i < h; i++) {
            row[i] += dx0[t * h + i] * scale;
        }
    }
}

static void input_backward(moe_task *task,
                           const moe_batch *b,
                           const real *dx0,
                           moe_parameters *all) {
    const moe_parameter *p = &all->p[task->table_index];
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        for (int32_t j = 0; j < task->context; j++) {
            table_gradient(task, b, d, j, dx0, p->partial + d * p->size);
        }
    }
}

/* --- head --- */

void moe_task_logits(const moe_task *task, const real *h, int64_t rows, real *normed, real *z) {
    int64_t width = task->hidden;
    moe_rmsnorm(h, task->head_norm, rows, width, normed, NULL);
#pragma omp parallel for schedule(static)
    for (int64_t v = 0; v < V; v++) {
        for (int64_t t = 0; t < rows; t++) {
            z[t * V + v] =
                (real)moe_sum_of_products(task->head + v * width, normed + t * width, width);
        }
    }
}

/* Nats of one token; z [V] becomes its gradient times `scale`. */
static double cross_entropy(real *z, uint8_t next, double scale) {
    double logit[V], e[V], most = (double)z[0];
    for (int i = 0; i < V; i++) {
        logit[i] = (double)z[i];
        most = logit[i] > most ? logit[i] : most;
    }
    moe_scores_exp(logit, most, e, V);
    double sum = moe_scores_sum(e, V), share = scale / sum;
    for (int i = 0; i < V; i++) {
        z[i] = (real)(e[i] * share);
    }
    z[next] = (real)((e[next] / sum - 1) * scale);
    return most + log(sum) - logit[next];
}

/* Tokens begin .. end - 1 of one device: logits, their losses and gradients; returns the first bad
 * token, or `none`. */
static int64_t head_rows(moe_task *task,
                         const moe_batch *b,
                         int64_t begin,
                         int64_t end,
                         int64_t tokens_global,
                         int64_t *sum,
                         int64_t none) {
    int64_t h = task->hidden, bad = none;
    double most = moe_task_most(tokens_global),
           scale = tokens_global > 0 ? 1 / (double)tokens_global : 0;
    moe_gemm_nt(end - begin, V, h, task->normed + begin * h, task->head, task->logits + begin * V);
    for (int64_t t = begin; t < end; t++) {
        bool counted = !b->counted || b->counted[t];
        double nats = cross_entropy(task->logits + t * V, task->next[t], counted ? scale : 0);
        if (!counted) {
            continue;
        }
        if (fabs(nats) <= most) {
            moe_exact_add(sum, nats);
        } else if (bad == none) {
            bad = t;
        }
    }
    return bad;
}

static void head_backward(const moe_task *task,
                          const moe_batch *b,
                          const real *h,
                          moe_parameters *all,
                          real *dh) {
    const moe_parameter *norm = &all->p[task->head_norm_index], *head = &all->p[task->head_index];
    int64_t width = task->hidden;
#pragma omp parallel for schedule(dynamic)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t begin = b->device_offset[d], rows = b->device_offset[d + 1] - begin;
        if (rows) {
            moe_gemm_tn(V, width, rows, task->logits + begin * V, task->normed + begin * width, 1,
                        head->partial + d * head->size);
        }
    }
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t begin = b->device_offset[d], rows = b->device_offset[d + 1] - begin;
        moe_rmsnorm_weight_gradient(h + begin * width, task->inverse_rms + begin,
                                    dh + begin * width, rows, width,
                                    norm->partial + d * norm->size);
    }
    moe_rmsnorm_backward(h, task->head_norm, task->inverse_rms, dh, b->num_tokens, width, dh);
}

static int64_t loss(moe_task *task,
                    const moe_batch *b,
                    const real *h,
                    int64_t tokens_global,
                    moe_parameters *all,
                    int64_t *sum,
                    real *dh) {
    int64_t width = task->hidden;
    int64_t none = b->num_tokens;
    int64_t bad = none;
    int64_t longest = 0;
    int64_t words[MOE_EXACT_WORDS] = {0};
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        int64_t tokens = b->device_offset[d + 1] - b->device_offset[d];
        longest = tokens > longest ? tokens : longest;
    }
    moe_rmsnorm(h, task->head_norm, b->num_tokens, width, task->normed, task->inverse_rms);
#pragma omp parallel for collapse(2) schedule(dynamic) reduction(+ : words) reduction(min : bad)
    for (int32_t d = 0; d < b->num_local_devices; d++) {
        for (int64_t place = 0; place < longest; place += ROWS) {
            int64_t begin = b->device_offset[d] + place;
            int64_t stop = b->device_offset[d + 1];
            int64_t end = begin + ROWS < stop ? begin + ROWS : stop;
            if (begin >= end) {
                continue;
            }
            int64_t first = head_rows(task, b, begin, end, tokens_global, words, none);
            bad = first < bad ? first : bad;
            if (dh) {
                moe_gemm_nn(end - begin, width, V, task->logits + begin * V, task->head, 0,
                            dh + begin * width);
            }
        }
    }
    moe_task_add_words(sum, words);
    if (dh) {
        head_backward(task, b, h, all, dh);
    }
    return bad < none ? bad : -1;
}

const moe_task_kind moe_task_text = {"text", init, input, loss, input_backward};
