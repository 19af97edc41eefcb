/* flash.c: causal softmax attention in tiles. Read moe_flash_forward and moe_flash_backward first.
 */
#include "attention/flash.h"

#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/sums.h"
#include "base/vector.h"

enum { TILE = MOE_FLASH_TILE, LANES = 8, VECTOR = 16 };

/* --- rows of a tile --- */

#ifdef MOE_REAL_DOUBLE
static inline real exp_real(real x) {
    return exp(x);
}
#else
/* exp x for x <= about 0, within 2 ulp: x = n log 2 + r, and the polynomial of Moshier's Cephes
 * library for |r| <= log(2) / 2. Below the smallest normal number it is 0. Adding `magic` rounds to
 * a whole number, whose bits are then the lowest ones of the sum. */
static inline real exp_real(real x) {
    const float magic = 0x1.8p23f;
    float shifted = x * 0x1.715476p0f + magic, n = shifted - magic, power;
    float r = (x - n * 0x1.63p-1f) + n * 2.12194440e-4f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    memcpy(&power, &bits, sizeof power);
    float p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r +
                4.1665795894e-2f) *
                   r +
               1.6666665459e-1f) *
                  r +
              5.0000001201e-1f;
    float result = (p * (r * r) + r + 1.0f) * power;
    return x < -87.0f ? 0.0f : result;
}
#endif

/* The largest of s [n] and `most`. */
MOE_CLONES static real largest(const real *s, int64_t n, real most) {
    real lane[LANES];
    int64_t whole = n - n % LANES;
    for (int l = 0; l < LANES; l++) {
        lane[l] = most;
    }
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            lane[l] = s[i + l] > lane[l] ? s[i + l] : lane[l];
        }
    }
    for (int l = 0; l < LANES; l++) {
        most = lane[l] > most ? lane[l] : most;
    }
    for (int64_t i = whole; i < n; i++) {
        most = s[i] > most ? s[i] : most;
    }
    return most;
}

/* s_i = exp(scale s_i - shift) for the first `seen` of s [n], 0 for the others. It goes on to the
 * end of a vector: the few numbers that are made for nothing cost less than a loop over the rest.
 */
MOE_CLONES static void exp_row(real *restrict s, int64_t seen, int64_t n, real scale, real shift) {
    const int64_t end = (seen + VECTOR - 1) / VECTOR * VECTOR, last = end < n ? end : n;
    for (int64_t i = 0; i < last; i++) {
        s[i] = exp_real(s[i] * scale - shift);
    }
    for (int64_t i = seen; i < n; i++) {
        s[i] = 0;
    }
}

MOE_CLONES static double sum_row(const real *s, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t whole = n - n % LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            lane[l] += (double)s[i + l];
        }
    }
    for (int l = 0; l < LANES; l++) {
        sum += lane[l];
    }
    for (int64_t i = whole; i < n; i++) {
        sum += (double)s[i];
    }
    return sum;
}

MOE_CLONES static void multiply_row(real *x, int64_t n, real factor) {
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

MOE_CLONES static void scale_to(const real *restrict x, int64_t n, real factor, real *restrict y) {
    for (int64_t i = 0; i < n; i++) {
        y[i] = x[i] * factor;
    }
}

/* dp_i = scale p_i (dp_i - delta) */
MOE_CLONES static void score_gradient(const real *restrict p,
                                      int64_t n,
                                      real scale,
                                      real delta,
                                      real *restrict dp) {
    for (int64_t i = 0; i < n; i++) {
        dp[i] = scale * (p[i] * (dp[i] - delta));
    }
}

/* --- tiles --- */

/* A tile of S: the queries begin .. begin + rows - 1 and as many keys as `columns`, local tokens.
 */
typedef struct tile {
    int64_t head, kv_head, tokens; /* tokens = T */
    int64_t query, rows, key, columns;
} tile;

static int64_t tile_rows(int64_t begin, int64_t end) {
    return end - begin < TILE ? end - begin : TILE;
}

/* Keys of the tile that row i sees: all but those after it. */
static int64_t keys_seen(const tile *t, int64_t i) {
    const int64_t before = t->query + i - t->key + 1;
    return before < t->columns ? before : t->columns;
}

static const real *row_of(const real *heads, int64_t head, int64_t tokens, int64_t t, int64_t w) {
    return heads + (head * tokens + t) * w;
}

/* s [rows, columns] = q k^T, without the scale. */
static void scores(const moe_flash *f, const tile *t, real *s) {
    moe_gemm_nt(t->rows, t->columns, f->key, row_of(f->q, t->head, t->tokens, t->query, f->key),
                row_of(f->k, t->kv_head, t->tokens, t->key, f->key), s);
}

/* --- forward --- */

typedef struct running { /* of the rows of one tile of queries */
    real most[TILE];     /* the largest score so far, scaled */
    double sum[TILE];    /* of exp(score - most) */
} running;

/* One tile of scores becomes P but for its denominator; what was added up before is multiplied to
 * the new maximum. */
static void softmax_tile(const moe_flash *f, const tile *t, real *s, running *r, real *sum_of_v) {
    const real scale = (real)f->scale;
    for (int64_t i = 0; i < t->rows; i++) {
        real *row = s + i * t->columns;
        const int64_t seen = keys_seen(t, i);
        const real most = scale * largest(row, seen, -INFINITY),
                   now = most > r->most[i] ? most : r->most[i];
        const bool moved = now > r->most[i] && r->sum[i] > 0;
        const real fade = moved ? exp_real(r->most[i] - now) : 1;
        exp_row(row, seen, t->columns, scale, now);
        r->sum[i] = r->sum[i] * (double)fade + sum_row(row, seen);
        r->most[i] = now;
        if (moved) {
            multiply_row(sum_of_v + i * f->value, f->value, fade);
        }
    }
}

static void write_rows(const moe_flash *f, const tile *t, const running *r, const real *sum_of_v) {
    for (int64_t i = 0; i < t->rows; i++) {
        real *o = f->o + (t->query + i) * f->heads * f->value + t->head * f->value;
        const real share = (real)(1 / r->sum[i]);
        scale_to(sum_of_v + i * f->value, f->value, share, o);
        f->lse[t->head * t->tokens + t->query + i] = (real)((double)r->most[i] + log(r->sum[i]));
    }
}

/* The queries from `query` on, of a sequence begin .. end - 1, beside all keys that they see. */
static void forward_rows(const moe_flash *f,
                         const moe_segment *sequence,
                         int64_t tokens,
                         int64_t head,
                         int64_t query,
                         real *memory) {
    real *s = memory, *sum_of_v = memory + TILE * TILE;
    running r;
    tile t = {.head = head,
              .kv_head = head / (f->heads / f->kv_heads),
              .tokens = tokens,
              .query = query,
              .rows = tile_rows(query, sequence->end)};
    for (int64_t i = 0; i < t.rows; i++) {
        r.most[i] = -INFINITY;
        r.sum[i] = 0;
    }
    for (t.key = sequence->begin; t.key <= query; t.key += TILE) {
        t.columns = tile_rows(t.key, sequence->end);
        scores(f, &t, s);
        softmax_tile(f, &t, s, &r, sum_of_v);
        moe_gemm_nn(t.rows, f->value, t.columns, s,
                    row_of(f->v, t.kv_head, tokens, t.key, f->value),
                    t.key == sequence->begin ? 0 : 1, sum_of_v);
    }
    write_rows(f, &t, &r, sum_of_v);
}

static int64_t most_tiles(const moe_batch *b) {
    int64_t most = 0;
    for (int64_t q = 0; q < b->num_segments; q++) {
        const int64_t tiles = (b->segment[q].end - b->segment[q].begin + TILE - 1) / TILE;
        most = tiles > most ? tiles : most;
    }
    return most;
}

void moe_flash_forward(const moe_flash *f, const moe_batch *b) {
    const int64_t tiles = most_tiles(b);
#pragma omp parallel
    {
        real *memory = moe_scratch_take(b->scratch, TILE * TILE + TILE * f->value, sizeof *memory,
                                        "a tile of attention");
#pragma omp for collapse(3) schedule(dynamic)
        for (int64_t q = 0; q < b->num_segments; q++) {
            for (int64_t head = 0; head < f->heads; head++) {
                for (int64_t i = 0; i < tiles; i++) {
                    const int64_t query = b->segment[q].begin + i * TILE;
                    if (query < b->segment[q].end) {
                        forward_rows(f, &b->segment[q], b->num_tokens, head, query, memory);
                    }
                }
            }
        }
        moe_scratch_give(b->scratch, memory);
    }
}

/* --- backward --- */

typedef struct gradients {
    const real *d_o;
    real *dq, *dk, *dv;
    real *p, *ds; /* two tiles */
} gradients;

/* P again, from the scores and lse; then dS, which already has the scale. */
static void softmax_again(const moe_flash *f, const tile *t, real *p) {
    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t seen = keys_seen(t, i);
        real *row = p + i * t->columns;
        exp_row(row, seen, t->columns, (real)f->scale, f->lse[t->head * t->tokens + t->query + i]);
    }
}

static void softmax_backward(const moe_flash *f, const tile *t, const gradients *g) {
    for (int64_t i = 0; i < t->rows; i++) {
        const int64_t token = t->query + i;
        const real *o = f->o + token * f->heads * f->value + t->head * f->value;
        const double delta =
            moe_sum_of_products(row_of(g->d_o, t->head, t->tokens, token, f->value), o, f->value);
        score_gradient(g->p + i * t->columns, t->columns, (real)f->scale, (real)delta,
                       g->ds + i * t->columns);
    }
}

/* keep_q, keep_k: 0 where the tile is the first that writes dq, and dk and dv. */
static void backward_tile(const moe_flash *f,
                          const tile *t,
                          const gradients *g,
                          real keep_q,
                          real keep_k) {
    const int64_t query = t->head * t->tokens + t->query, key = t->kv_head * t->tokens + t->key;
    const real *d_o = g->d_o + query * f->value;
    scores(f, t, g->p);
    softmax_again(f, t, g->p);
    moe_gemm_tn(t->columns, f->value, t->rows, g->p, d_o, keep_k, g->dv + key * f->value);
    moe_gemm_nt(t->rows, t->columns, f->value, d_o, f->v + key * f->value, g->ds);
    softmax_backward(f, t, g);
    moe_gemm_nn(t->rows, f->key, t->columns, g->ds, f->k + key * f->key, keep_q,
                g->dq + query * f->key);
    moe_gemm_tn(t->columns, f->key, t->rows, g->ds, f->q + query * f->key, keep_k,
                g->dk + key * f->key);
}

/* All tiles of a sequence for one key head and the heads that share it, in one order. */
static void backward_head(const moe_flash *f,
                          const moe_segment *sequence,
                          int64_t tokens,
                          int64_t kv_head,
                          const gradients *g) {
    const int64_t group = f->heads / f->kv_heads;
    tile t = {.kv_head = kv_head, .tokens = tokens};
    for (int64_t i = 0; i < group; i++) {
        t.head = kv_head * group + i;
        for (t.key = sequence->begin; t.key < sequence->end; t.key += TILE) {
            t.columns = tile_rows(t.key, sequence->end);
            for (t.query = t.key; t.query < sequence->end; t.query += TILE) {
                t.rows = tile_rows(t.query, sequence->end);
                backward_tile(f, &t, g, t.key > sequence->begin, i > 0 || t.query > t.key);
            }
        }
    }
}

void moe_flash_backward(const moe_flash *f,
                        const moe_batch *b,
                        const real *d_o,
                        real *dq,
                        real *dk,
                        real *dv) {
#pragma omp parallel
    {
        real *memory =
            moe_scratch_take(b->scratch, 2 * TILE * TILE, sizeof *memory, "a tile of attention");
        const gradients g = {d_o, dq, dk, dv, memory, memory + TILE * TILE};
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t q = 0; q < b->num_segments; q++) {
            for (int64_t head = 0; head < f->kv_heads; head++) {
                backward_head(f, &b->segment[q], b->num_tokens, head, &g);
            }
        }
        moe_scratch_give(b->scratch, memory);
    }
}
