/* unit_attention.c: attention beside a naive one in double that writes every pair of tokens down:
 * the output, and by central differences of the naive one the gradient of every parameter and of
 * the input; one token at a time against a cache, beside the same naive one; what must hold of
 * rotary positions and of latent attention of full rank; that bits do not depend on ranks and
 * threads; and that no matrix of all pairs of tokens is kept.
 *
 * ctest: f64 gemm timeout=120 */
#include <complex.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "attention/attention.h"
#include "attention/decode.h"
#include "attention/flash.h"
#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "settings.h"

static const double TIGHT = sizeof(real) == sizeof(float) ? 2e-5 : 1e-12;
static const double GRADIENT = sizeof(real) == sizeof(float) ? 1e-3 : 1e-6;

/* --- an attention layer, whole or one rank's part --- */

typedef struct made {
    moe_config c;
    moe_attention_shape s;
    moe_batch b;
    moe_attention_weights a;
    moe_attention_activations p;
    moe_attention_work w;
    real *x, *y, *dy, *dx; /* [T,H] */
    real *partial[MOE_ATTENTION_TENSORS];
} made;

static int64_t size_of(const moe_attention_shape *s, int tensor) {
    const moe_attention_tensor_shape t =
        moe_attention_tensor_of(s, (enum moe_attention_tensor)tensor);
    return t.rows * t.columns;
}

/* Numbers of a token are keyed by its place in the global batch. */
static real *keyed_vectors(const moe_batch *b, int64_t h, uint64_t key) {
    real *x = moe_alloc(b->num_tokens * h, sizeof *x, "test");
    for (int64_t t = 0; t < b->num_tokens; t++) {
        moe_rng_normal((moe_rng){11, MOE_RNG_TEST}, (uint64_t)(b->first_token + t), key, 1,
                       x + t * h, h);
    }
    return x;
}

static void make(made *m, const char *settings, int rank, int ranks) {
    *m = (made){.x = NULL};
    settings_resolve(&m->c, "cluster.devices=2 model.num_experts=8 router.top_k=2", settings, 1);
    m->s = moe_attention_shape_of(&m->c);
    moe_batch_layout(&m->b, 2 * m->c.data.tokens_per_device, m->c.data.sequence_length, 2, rank,
                     ranks);
    moe_attention_init(&m->a, &m->s, 5, 3);
    moe_attention_work_init(&m->w, &m->s, m->b.sequence_length);
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const int64_t size = size_of(&m->s, i);
        m->partial[i] = moe_alloc_zero(m->b.num_local_devices * size, sizeof(real), "test");
        for (int64_t k = 0; k < size; k++) { /* norms of their own show more than 1 */
            m->a.w[i][k] *= (real)(1 + 0.3 * cos((double)(k + i)));
        }
    }
    m->x = keyed_vectors(&m->b, m->s.hidden, 1);
    m->dy = keyed_vectors(&m->b, m->s.hidden, 2);
    m->y = moe_alloc(m->b.num_tokens * m->s.hidden, sizeof(real), "test");
    m->dx = moe_alloc_zero(m->b.num_tokens * m->s.hidden, sizeof(real), "test");
}

static void pass(made *m) {
    moe_attention_forward(&m->s, &m->a, &m->b, m->x, &m->p, &m->w, m->y);
    moe_attention_backward(&m->s, &m->a, &m->b, m->x, &m->p, &m->w, m->dy, m->partial, m->dx);
}

static void unmake(made *m) {
    moe_attention_free(&m->a);
    moe_attention_activations_free(&m->p);
    moe_attention_work_free(&m->w);
    moe_batch_free(&m->b);
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        moe_free(m->partial[i]);
    }
    moe_free(m->x);
    moe_free(m->y);
    moe_free(m->dy);
    moe_free(m->dx);
}

/* --- the naive one --- */

typedef struct naive { /* everything in double */
    const made *m;
    double *w[MOE_ATTENTION_TENSORS];
    double *x, *y;
} naive;

static double *widened(const real *x, int64_t n) {
    double *wide = moe_alloc(n + 1, sizeof *wide, "test");
    for (int64_t i = 0; i < n; i++) {
        wide[i] = (double)x[i];
    }
    return wide;
}

static naive naive_make(const made *m) {
    naive n = {.m = m};
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        n.w[i] = widened(m->a.w[i], size_of(&m->s, i));
    }
    n.x = widened(m->x, m->b.num_tokens * m->s.hidden);
    n.y = moe_alloc(m->b.num_tokens * m->s.hidden, sizeof(double), "test");
    return n;
}

static void naive_free(naive *n) {
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        moe_free(n->w[i]);
    }
    moe_free(n->x);
    moe_free(n->y);
}

enum { WIDEST = 512 };

static void naive_norm(const double *x, const double *w, int64_t n, double *u) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    for (int64_t i = 0; i < n; i++) {
        u[i] = w[i] * x[i] / sqrt(sum / (double)n + 1e-6);
    }
}

/* y [rows] = W x */
static void naive_map(const naive *n, int tensor, const double *x, double *y) {
    const moe_attention_tensor_shape t =
        moe_attention_tensor_of(&n->m->s, (enum moe_attention_tensor)tensor);
    for (int64_t i = 0; i < t.rows; i++) {
        y[i] = 0;
        for (int64_t k = 0; k < t.columns; k++) {
            y[i] += n->w[tensor][i * t.columns + k] * x[k];
        }
    }
}

/* Pairs are complex numbers that are multiplied by exp(i angle). */
static void naive_rotate(const moe_attention_shape *s, int64_t place, double *row) {
    for (int64_t i = 0; i < s->rope / 2; i++) {
        double *a = row + (s->half ? i : 2 * i), *b = row + (s->half ? i + s->rope / 2 : 2 * i + 1);
        const double angle = (double)place / pow(s->theta, (double)(2 * i) / (double)s->rope);
        const double complex turned = (*a + I * *b) * cexp(I * angle);
        *a = creal(turned);
        *b = cimag(turned);
    }
}

typedef struct naive_token { /* queries, keys and values of one token, of all heads */
    double q[WIDEST], k[WIDEST], v[WIDEST];
} naive_token;

static void naive_project(const naive *n, int64_t t, int64_t place, naive_token *out) {
    const moe_attention_shape *s = &n->m->s;
    const double *u = n->x + t * s->hidden;
    double normed[WIDEST], low[WIDEST], in[WIDEST], own[WIDEST], shared[WIDEST];
    if (s->normed) {
        naive_norm(u, n->w[MOE_ATTENTION_NORM], s->hidden, normed);
        u = normed;
    }
    if (s->q_rank > 0) {
        naive_map(n, MOE_ATTENTION_DQ, u, low);
        naive_norm(low, n->w[MOE_ATTENTION_Q_NORM], s->q_rank, in);
    }
    naive_map(n, MOE_ATTENTION_Q, s->q_rank > 0 ? in : u, out->q);
    for (int64_t h = 0; h < s->heads; h++) {
        naive_rotate(s, place, out->q + h * s->key + s->key - s->rope);
    }
    if (!s->latent) {
        naive_map(n, MOE_ATTENTION_K, u, out->k);
        naive_map(n, MOE_ATTENTION_V, u, out->v);
        for (int64_t h = 0; h < s->kv_heads; h++) {
            naive_rotate(s, place, out->k + h * s->key + s->key - s->rope);
        }
        return;
    }
    naive_map(n, MOE_ATTENTION_DKV, u, low);
    naive_norm(low, n->w[MOE_ATTENTION_KV_NORM], s->kv_rank, in);
    naive_map(n, MOE_ATTENTION_K, in, own);
    naive_map(n, MOE_ATTENTION_V, in, out->v);
    naive_map(n, MOE_ATTENTION_KR, u, shared);
    naive_rotate(s, place, shared);
    const int64_t d = s->key - s->rope;
    for (int64_t h = 0; h < s->heads; h++) {
        for (int64_t i = 0; i < s->key; i++) {
            out->k[h * s->key + i] = i < d ? own[h * d + i] : shared[i - d];
        }
    }
}

/* The head's output of one token: the scores of all tokens up to it, then the mean of their values
 * with the weights exp(score). */
static void naive_head(const moe_attention_shape *s,
                       const naive_token *all,
                       int64_t t,
                       int64_t head,
                       double *o) {
    const int64_t kv = head / (s->heads / s->kv_heads);
    double sum = 0, most = -INFINITY, score[WIDEST];
    memset(o, 0, (size_t)s->value * sizeof *o);
    for (int64_t j = 0; j <= t; j++) {
        score[j] = 0;
        for (int64_t i = 0; i < s->key; i++) {
            score[j] += all[t].q[head * s->key + i] * all[j].k[kv * s->key + i];
        }
        score[j] /= sqrt((double)s->key);
        most = fmax(most, score[j]);
    }
    for (int64_t j = 0; j <= t; j++) {
        const double e = exp(score[j] - most);
        sum += e;
        for (int64_t i = 0; i < s->value; i++) {
            o[i] += e * all[j].v[kv * s->value + i];
        }
    }
    for (int64_t i = 0; i < s->value; i++) {
        o[i] /= sum;
    }
}

static void naive_forward(naive *n) {
    const moe_attention_shape *s = &n->m->s;
    const moe_batch *b = &n->m->b;
    naive_token *all = moe_alloc(b->sequence_length, sizeof *all, "test");
    for (int64_t begin = 0, length; begin < b->num_tokens; begin += length) {
        length = b->num_tokens - begin;
        length = length < b->sequence_length ? length : b->sequence_length;
        for (int64_t t = 0; t < length; t++) {
            naive_project(n, begin + t, t, &all[t]);
        }
        for (int64_t t = 0; t < length; t++) {
            double o[WIDEST];
            for (int64_t h = 0; h < s->heads; h++) {
                naive_head(s, all, t, h, o + h * s->value);
            }
            naive_map(n, MOE_ATTENTION_O, o, n->y + (begin + t) * s->hidden);
        }
    }
    moe_free(all);
}

/* sum of y dy */
static double naive_objective(naive *n) {
    double sum = 0;
    naive_forward(n);
    for (int64_t i = 0; i < n->m->b.num_tokens * n->m->s.hidden; i++) {
        sum += n->y[i] * (double)n->m->dy[i];
    }
    return sum;
}

static double naive_difference(naive *n, double *value) {
    const double before = *value, step = 1e-4;
    *value = before + step;
    const double up = naive_objective(n);
    *value = before - step;
    const double down = naive_objective(n);
    *value = before;
    return (up - down) / (2 * step);
}

/* --- beside the naive one --- */

static double rms(const real *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)x[i] * (double)x[i];
    }
    return sqrt(sum / (double)n);
}

static void check_elements(naive *n,
                           const char *settings,
                           const char *name,
                           double *value,
                           const real *gradient,
                           int64_t size) {
    const double scale = rms(gradient, size);
    for (uint64_t i = 0; i < 3; i++) {
        const int64_t at =
            (int64_t)(moe_rng_bits((moe_rng){7, MOE_RNG_TEST}, (uint64_t)size, i, 0) %
                      (uint64_t)size);
        const double wanted = naive_difference(n, value + at);
        CHECK_MSG(fabs((double)gradient[at] - wanted) <= GRADIENT * (fabs(wanted) + scale),
                  "%s: %s[%lld]: %.12g, by differences %.12g", settings, name, (long long)at,
                  (double)gradient[at], wanted);
    }
}

static void check_naive(const char *settings) {
    made m;
    make(&m, settings, 0, 1);
    pass(&m);
    naive n = naive_make(&m);
    naive_forward(&n);
    const double scale = rms(m.y, m.b.num_tokens * m.s.hidden);
    double off = 0;
    for (int64_t i = 0; i < m.b.num_tokens * m.s.hidden; i++) {
        off = fmax(off, fabs((double)m.y[i] - n.y[i]));
    }
    CHECK_MSG(off <= TIGHT * scale, "%s: off by %g of %g", settings, off, scale);
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const int64_t size = size_of(&m.s, i);
        for (int64_t k = 0; k < size; k++) { /* of both devices */
            m.partial[i][k] += m.partial[i][size + k];
        }
        if (size > 0) {
            check_elements(&n, settings,
                           moe_attention_tensor_of(&m.s, (enum moe_attention_tensor)i).name, n.w[i],
                           m.partial[i], size);
        }
    }
    check_elements(&n, settings, "x", n.x, m.dx, m.b.num_tokens * m.s.hidden);
    naive_free(&n);
    unmake(&m);
}

/* --- one token at a time --- */

/* The rows that a cache takes from a forward pass are those that decoding leaves in it. */
static void check_cache(made *m, const char *settings, const moe_attention_cache *decoded) {
    moe_attention_cache filled;
    double off = 0;
    moe_attention_cache_init(&filled, &m->s, 1, decoded->sequences, decoded->places);
    moe_attention_cache_fill(&filled, &m->s, 0, &m->b, &m->p, &m->w);
    const int64_t n = decoded->sequences * decoded->places * decoded->width;
    for (int64_t i = 0; i < n; i++) {
        off = fmax(off, fabs((double)filled.rows[0][i] - (double)decoded->rows[0][i]));
    }
    CHECK_MSG(off <= TIGHT * rms(filled.rows[0], n), "%s: the cache is off by %g", settings, off);
    moe_attention_cache_free(&filled);
}

/* Every token decoded after those before it, with absorbed projections, beside the naive attention
 * that makes all keys and values. */
static void check_decode(const char *settings) {
    made m;
    make(&m, settings, 0, 1);
    moe_attention_forward(&m.s, &m.a, &m.b, m.x, &m.p, &m.w, m.y);
    naive n = naive_make(&m);
    naive_forward(&n);
    const int64_t h = m.s.hidden, length = m.b.sequence_length, sequences = m.b.num_segments;
    const double scale = rms(m.y, m.b.num_tokens * h);
    double off = 0;
    moe_attention_cache cache;
    moe_attention_decode_work work = {.u = NULL};
    moe_attention_cache_init(&cache, &m.s, 1, sequences, length);
    real *x = moe_alloc(sequences * h, sizeof *x, "test");
    real *y = moe_alloc(sequences * h, sizeof *y, "test");
    for (int64_t place = 0; place < length; place++) {
        const int64_t before = moe_alloc_count();
        for (int64_t q = 0; q < sequences; q++) {
            memcpy(x + q * h, m.x + (q * length + place) * h, (size_t)h * sizeof *x);
            cache.place[q] = place;
        }
        moe_attention_decode(&m.s, &m.a, &m.w.rotary, &cache, 0, x, &work, y);
        for (int64_t i = 0; i < sequences * h; i++) {
            off = fmax(off, fabs((double)y[i] - n.y[(i / h * length + place) * h + i % h]));
        }
        CHECK(place == 0 || moe_alloc_count() == before);
    }
    CHECK_MSG(off <= TIGHT * scale, "%s: decoding is off by %g of %g", settings, off, scale);
    check_cache(&m, settings, &cache);
    moe_attention_cache_free(&cache);
    moe_attention_decode_work_free(&work);
    moe_free(x);
    moe_free(y);
    naive_free(&n);
    unmake(&m);
}

/* --- what must hold --- */

static double largest_gap(const real *a, const real *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - (double)b[i]));
    }
    return most;
}

/* The product of a turned query and a turned key depends on how far apart they are. */
static void check_distance(bool half) {
    enum { WIDTH = 12, PLACES = 300 };
    moe_rotary r;
    moe_rotary_init(&r, PLACES, WIDTH, 10000, half);
    for (int64_t apart = 0; apart < 200; apart += 17) {
        double first = 0;
        for (int64_t place = apart; place < PLACES; place += 31) {
            real q[WIDTH], k[WIDTH], back[WIDTH];
            double product = 0;
            moe_rng_normal((moe_rng){4, MOE_RNG_TEST}, 0, 0, 1, q, WIDTH);
            moe_rng_normal((moe_rng){4, MOE_RNG_TEST}, 1, 0, 1, k, WIDTH);
            memcpy(back, q, sizeof q);
            moe_rotary_turn(&r, place, false, q);
            moe_rotary_turn(&r, place - apart, false, k);
            for (int i = 0; i < WIDTH; i++) {
                product += (double)q[i] * (double)k[i];
            }
            first = place == apart ? product : first;
            CHECK_MSG(fabs(product - first) <= 40 * TIGHT, "%lld apart: %.9g and %.9g",
                      (long long)apart, product, first);
            moe_rotary_turn(&r, place, true, q);
            CHECK(largest_gap(q, back, WIDTH) <= TIGHT * 4);
        }
    }
    moe_rotary_free(&r);
}

/* Moves the rows of a matrix [groups * width, columns], of which the last `rope` of each group are
 * rotated, from interleaved pairs to halves. */
static void pairs_to_halves(real *w, int64_t groups, int64_t width, int64_t rope, int64_t columns) {
    real *copy = moe_alloc(rope * columns, sizeof *copy, "test");
    for (int64_t g = 0; g < groups; g++) {
        real *rows = w + (g * width + width - rope) * columns;
        memcpy(copy, rows, (size_t)(rope * columns) * sizeof *copy);
        for (int64_t i = 0; i < rope; i++) {
            memcpy(rows + (i % 2 * rope / 2 + i / 2) * columns, copy + i * columns,
                   (size_t)columns * sizeof *copy);
        }
    }
    moe_free(copy);
}

/* The order of pairs is a matter of how the rows of the weights are ordered. */
static void check_orders(const char *settings) {
    made pairs, halves;
    char words[512];
    snprintf(words, sizeof words, "%s model.rope_order=half", settings);
    make(&pairs, settings, 0, 1);
    make(&halves, words, 0, 1);
    const moe_attention_shape *s = &pairs.s;
    const int64_t from = s->q_rank > 0 ? s->q_rank : s->hidden;
    pairs_to_halves(halves.a.w[MOE_ATTENTION_Q], s->heads, s->key, s->rope, from);
    if (s->latent) {
        pairs_to_halves(halves.a.w[MOE_ATTENTION_KR], 1, s->rope, s->rope, s->hidden);
    } else {
        pairs_to_halves(halves.a.w[MOE_ATTENTION_K], s->kv_heads, s->key, s->rope, s->hidden);
    }
    pass(&pairs);
    pass(&halves);
    const int64_t n = pairs.b.num_tokens * s->hidden;
    CHECK_MSG(largest_gap(pairs.y, halves.y, n) <= TIGHT * 10, "%s: y", settings);
    CHECK_MSG(largest_gap(pairs.dx, halves.dx, n) <= TIGHT * 100, "%s: dx", settings);
    unmake(&pairs);
    unmake(&halves);
}

/* With W_DKV = 1 and no rotary part, c_KV is the normed input normed once more, which changes it by
 * the epsilon of the norm alone: latent attention is multi-head attention with the same W_Q, W_K,
 * W_V and W_O. */
static void check_full_rank(void) {
    made mha, mla;
    const char common[] = "model.hidden_size=24 model.num_heads=3 model.rope_dim=0 "
                          "model.norm=rmsnorm data.tokens_per_device=150 data.sequence_length=150";
    char words[512];
    snprintf(words, sizeof words, "%s model.attention=mha", common);
    make(&mha, words, 0, 1);
    snprintf(words, sizeof words, "%s model.attention=mla model.kv_lora_rank=24", common);
    make(&mla, words, 0, 1);
    const int64_t h = mha.s.hidden;
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        if (i == MOE_ATTENTION_NORM || i == MOE_ATTENTION_KV_NORM) {
            for (int64_t k = 0; k < size_of(&mla.s, i); k++) {
                mla.a.w[i][k] = 1;
            }
        }
        if (size_of(&mha.s, i) > 0) {
            memcpy(mha.a.w[i], mla.a.w[i], (size_t)size_of(&mha.s, i) * sizeof(real));
        }
    }
    for (int64_t i = 0; i < h * h; i++) {
        mla.a.w[MOE_ATTENTION_DKV][i] = i % (h + 1) == 0;
    }
    pass(&mha);
    pass(&mla);
    const double gap = largest_gap(mha.y, mla.y, mha.b.num_tokens * h);
    CHECK_MSG(gap <= 2e-5 && rms(mha.y, mha.b.num_tokens * h) > 0.1, "off by %g", gap);
    const double of_w = largest_gap(mha.partial[MOE_ATTENTION_K], mla.partial[MOE_ATTENTION_K],
                                    size_of(&mha.s, MOE_ATTENTION_K));
    CHECK_MSG(of_w <= 1e-4 * rms(mha.partial[MOE_ATTENTION_K], h * h) * 10, "dW_K off by %g", of_w);
    unmake(&mha);
    unmake(&mla);
}

/* One device's part of y, dx and the partial gradients, from the run of all and from its own. */
static void check_bits(const char *settings) {
    made whole, part;
    omp_set_num_threads(2);
    make(&whole, settings, 0, 1);
    pass(&whole);
    omp_set_num_threads(1);
    for (int rank = 0; rank < 2; rank++) {
        make(&part, settings, rank, 2);
        pass(&part);
        const int64_t n = part.b.num_tokens * part.s.hidden,
                      at = part.b.first_token * part.s.hidden;
        CHECK(memcmp(part.y, whole.y + at, (size_t)n * sizeof(real)) == 0);
        CHECK(memcmp(part.dx, whole.dx + at, (size_t)n * sizeof(real)) == 0);
        for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
            const int64_t size = size_of(&part.s, i);
            CHECK_MSG(size == 0 || memcmp(part.partial[i], whole.partial[i] + rank * size,
                                          (size_t)size * sizeof(real)) == 0,
                      "%s: tensor %d", settings, i);
        }
        unmake(&part);
    }
    unmake(&whole);
    omp_set_num_threads(2);
}

/* A long sequence of narrow heads: all pairs of tokens would be the largest array by far. */
static void check_tiles(void) {
    made m;
    make(&m,
         "model.attention=mha model.hidden_size=8 model.num_heads=1 "
         "data.tokens_per_device=3000 data.sequence_length=3000",
         0, 1);
    const int64_t pairs = 3000 * 3000 * (int64_t)sizeof(real);
    pass(&m);
    CHECK_MSG(moe_alloc_peak_bytes() < pairs / 2, "%lld bytes held, all pairs are %lld",
              (long long)moe_alloc_peak_bytes(), (long long)pairs);
    CHECK(isfinite(rms(m.dx, 3000 * 8)) && rms(m.dx, 3000 * 8) > 0);
    unmake(&m);
}

/* Scores far apart: the softmax of the largest alone, without overflow. */
static void check_large_scores(void) {
    made m;
    make(&m,
         "model.attention=mha model.hidden_size=16 model.num_heads=2 "
         "data.tokens_per_device=140 data.sequence_length=140",
         0, 1);
    for (int64_t i = 0; i < size_of(&m.s, MOE_ATTENTION_Q); i++) {
        m.a.w[MOE_ATTENTION_Q][i] *= 300;
    }
    pass(&m);
    naive n = naive_make(&m);
    naive_forward(&n);
    double off = 0;
    for (int64_t i = 0; i < m.b.num_tokens * m.s.hidden; i++) {
        off = fmax(off, fabs((double)m.y[i] - n.y[i]));
    }
    CHECK_MSG(off <= 100 * TIGHT && isfinite(rms(m.dx, m.b.num_tokens * m.s.hidden)), "off by %g",
              off);
    naive_free(&n);
    unmake(&m);
}

int main(void) {
#define SIZES "model.hidden_size=20 model.norm=rmsnorm "
#define LONG "data.tokens_per_device=150 data.sequence_length=150 "
#define SHORT "data.tokens_per_device=48 data.sequence_length=16 "
    static const char *const settings[] = {
        SIZES SHORT "model.attention=mha model.num_heads=2",
        SIZES LONG "model.attention=mha model.num_heads=4 model.num_kv_heads=2 model.head_dim=6 "
                   "model.rope_dim=4",
        SIZES SHORT "model.attention=mha model.num_heads=5 model.num_kv_heads=1 model.rope_dim=0",
        SIZES SHORT "model.attention=mha model.num_heads=3 model.head_dim=8 model.rope_order=half "
                    "model.rope_theta=100",
        SIZES LONG "model.attention=mla model.num_heads=2 model.head_dim=6 model.kv_lora_rank=7",
        SIZES SHORT "model.attention=mla model.num_heads=3 model.head_dim=5 model.rope_dim=4 "
                    "model.kv_lora_rank=9 model.q_lora_rank=11",
        SIZES SHORT "model.attention=mla model.num_heads=2 model.head_dim=6 model.rope_dim=6 "
                    "model.q_lora_rank=8 model.rope_order=half",
        SIZES SHORT "model.attention=mla model.num_heads=2 model.rope_dim=0",
        "model.hidden_size=20 " SHORT "model.attention=mla model.num_heads=2 model.norm=none",
    };
    moe_gemm_init();
    omp_set_num_threads(2);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        RUN(check_naive, settings[i]);
        RUN(check_bits, settings[i]);
        RUN(check_decode, settings[i]);
    }
    RUN(check_orders, settings[1]);
    RUN(check_orders, settings[5]);
    RUN(check_distance, false);
    RUN(check_distance, true);
    RUN(check_full_rank);
    RUN(check_large_scores);
    RUN(check_tiles);
    return check_verdict();
}
