/* scores.c: from the logits of one token to its scores. method.md section 1.2.
 *
 * Idea: every loop is over experts, elementwise or in 8 fixed lanes, so that the compiler may use any vector width and the bits stay the
 * same (no fused multiply-add: the whole project is compiled with -ffp-contract=off). Advantage over libm's exp: 4 to 8 times faster, and
 * the same result on every machine. Where gcc can, each kernel exists for AVX-512, AVX2 and plain x86-64, chosen when the program starts. */
#include "scores.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MOE_CLONES
#endif

enum { LANES = 8, CHUNK = 64 };

typedef double vec __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));

/* exp(x) = 2^k exp(r), k = round(x / ln 2), r = x - k ln 2 in two pieces (Cody and Waite), |r| <= 0.35;
 * exp(r) = 1 + (r + r^2 q(r)), q the Taylor polynomial to r^13/13! (the next term is below 1e-17).
 * 2^k is applied as 2^a 2^b, a = round(k/2 of x), so that overflow gives inf and underflow is gradual. */
static inline double exp_one(double x) {
    const double log2e = 0x1.71547652b82fep0, ln2_hi = 0x1.62e42fefa3800p-1, ln2_lo = 0x1.ef35793c76730p-45;
    const double magic = 0x1.8p52; /* adding it rounds to an integer, which then stands in the low bits */
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    double whole = x * log2e + magic, half = x * (0.5 * log2e) + magic, k = whole - magic;
    double r = (x - k * ln2_hi) - k * ln2_lo, r2 = r * r, r4 = r2 * r2;
    double q0 = (1.0 / 2 + r * (1.0 / 6)) + r2 * (1.0 / 24 + r * (1.0 / 120));
    double q1 = (1.0 / 720 + r * (1.0 / 5040)) + r2 * (1.0 / 40320 + r * (1.0 / 362880));
    double q2 = (1.0 / 3628800 + r * (1.0 / 39916800)) + r2 * (1.0 / 479001600 + r * (1.0 / 6227020800.0));
    double p = 1.0 + (r + r2 * (q0 + r4 * (q1 + r4 * q2)));
    uint64_t whole_bits, half_bits, a_bits, b_bits;
    memcpy(&whole_bits, &whole, sizeof whole);
    memcpy(&half_bits, &half, sizeof half);
    a_bits = (half_bits + 1023) << 52;
    b_bits = (whole_bits - half_bits + 1023) << 52;
    double a, b;
    memcpy(&a, &a_bits, sizeof a);
    memcpy(&b, &b_bits, sizeof b);
    return (p * a) * b;
}

MOE_CLONES void moe_scores_exp(const double *x, double shift, double *y, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        y[i] = exp_one(x[i] - shift);
}

static double lanes_total(const double *l) { return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])); }

MOE_CLONES double moe_scores_sum(const double *x, int32_t n) {
    vec sum = {0};
    double lane[LANES];
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum += *(const vec *)(x + i);
    memcpy(lane, &sum, sizeof lane);
    for (; i < n; i++)
        lane[i % LANES] += x[i];
    return lanes_total(lane);
}

MOE_CLONES double moe_scores_dot(const double *a, const double *b, int32_t n) {
    vec sum = {0};
    double lane[LANES];
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum += *(const vec *)(a + i) * *(const vec *)(b + i);
    memcpy(lane, &sum, sizeof lane);
    for (; i < n; i++)
        lane[i % LANES] += a[i] * b[i];
    return lanes_total(lane);
}

MOE_CLONES static double maximum(const double *z, int32_t n) {
    double lane[LANES];
    int32_t i = 0;
    for (int32_t l = 0; l < LANES; l++)
        lane[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int32_t l = 0; l < LANES; l++)
            lane[l] = z[i + l] > lane[l] ? z[i + l] : lane[l];
    for (; i < n; i++)
        lane[0] = z[i] > lane[0] ? z[i] : lane[0];
    for (int32_t l = 1; l < LANES; l++)
        lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
    return lane[0];
}

MOE_CLONES static void scale(double *x, double factor, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        x[i] *= factor;
}

MOE_CLONES static int row_flags(const double *z, int32_t n) {
    int64_t disabled = 0, bad = 0;
    for (int32_t i = 0; i < n; i++) {
        disabled |= z[i] == -INFINITY;
        bad |= !(z[i] < INFINITY);
    }
    return (disabled ? MOE_ROW_DISABLED : 0) | (bad ? MOE_ROW_BAD : 0);
}

MOE_CLONES static void widen(const float *from, double *to, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        to[i] = from[i];
}

int moe_scores_load(moe_logits logits, int64_t t, int32_t n, double *z) {
    if (logits.f32) widen(logits.f32 + t * n, z, n);
    else memcpy(z, logits.f64 + t * n, (size_t)n * sizeof *z);
    return row_flags(z, n);
}

double moe_scores_lse(const double *z, int32_t n) {
    double m = maximum(z, n), lane[LANES] = {0}, e[CHUNK];
    if (m == -INFINITY) return m;
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        moe_scores_exp(z + begin, m, e, count);
        for (int32_t i = 0; i < count; i++)
            lane[i % LANES] += e[i];
    }
    return m + log(lanes_total(lane));
}

/* s_i = exp(z_i - max) / sum_j exp(z_j - max). The largest term is 1, so sum >= 1 and s <= 1. */
static void softmax(const double *z, double *s, int32_t n, double *lse) {
    double m = maximum(z, n);
    if (m == -INFINITY) {
        memset(s, 0, (size_t)n * sizeof *s);
        if (lse) *lse = m;
        return;
    }
    moe_scores_exp(z, m, s, n);
    double sum = moe_scores_sum(s, n);
    scale(s, 1.0 / sum, n);
    if (lse) *lse = m + log(sum);
}

/* s = 1 / (1 + exp(-z)) (DeepSeek-V3 Eq. 15) */
MOE_CLONES static void sigmoid(const double *z, double *s, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        s[i] = 1.0 / (1.0 + exp_one(-z[i]));
}

/* s = sqrt(log(1 + exp(z))), written so that exp cannot overflow (Megatron-Core's sqrtsoftplus) */
static void sqrtsoftplus(const double *z, double *s, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        s[i] = sqrt((z[i] > 0 ? z[i] : 0) + log1p(exp(-fabs(z[i]))));
}

void moe_router_scores(const moe_router *r, const double *z, double *s, double *lse) {
    if (moe_scores_sum_to_one(r)) {
        softmax(z, s, r->num_experts, lse);
        return;
    }
    if (lse) *lse = moe_scores_lse(z, r->num_experts);
    if (r->score_func == MOE_SCORE_SIGMOID) sigmoid(z, s, r->num_experts);
    else sqrtsoftplus(z, s, r->num_experts);
}

void moe_router_normalized(const moe_router *r, const double *s, double *normalized) {
    int32_t n = r->num_experts;
    if (normalized != s) memcpy(normalized, s, (size_t)n * sizeof *s);
    if (moe_scores_sum_to_one(r)) return;
    double sum = moe_scores_sum(s, n);
    if (sum <= 0) return; /* all disabled: all scores are 0 */
    for (int32_t i = 0; i < n; i++)
        normalized[i] = s[i] / sum;
}
