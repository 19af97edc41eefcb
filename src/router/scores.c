/* scores.c: from the logits of one token to its scores: the kernels, then the table.
 *
 * Every loop is over experts, elementwise or in 8 fixed lanes, so that the compiler may use any
 * vector width and the bits stay the same (the whole project is compiled with -ffp-contract=off,
 * without fused multiply-add). Against libm's exp this is 4 to 8 times faster, and gives the same
 * result on every machine. */
#include "router/scores.h"

#include <math.h>
#include <string.h>

#include "base/exact.h"
#include "base/vector.h"

enum { LANES = 8, CHUNK = 64 };

typedef double vec
    __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));

/* --- exp --- */

/* exp(x) = 2^k exp(r), k = round(x / ln 2), r = x - k ln 2 in two pieces (Cody and Waite), |r| <=
 * 0.347; *k_bits: k in two's complement. */
static inline double exp_rest(double x, uint64_t *k_bits) {
    const double log2e = 0x1.71547652b82fep0;
    const double ln2_hi = 0x1.62e42fefa3800p-1;
    const double ln2_lo = 0x1.ef35793c76730p-45;
    const double magic = 0x1.8p52; /* adding it rounds to an integer, which then stands in the low
                                      bits */
    double t = x * log2e + magic, k = t - magic;
    memcpy(k_bits, &t, sizeof t);
    *k_bits -= 0x4338000000000000; /* the bits of magic */
    return (x - k * ln2_hi) - k * ln2_lo;
}

/* exp(r) = 1 + (r + r^2 q(r)), q of degree 9 through (exp(r) - 1 - r)/r^2 at the Chebyshev nodes:
 * relative error 2e-17 before rounding. */
static inline double exp_of_rest(double r) {
    double r2 = r * r, r4 = r2 * r2;
    double q0 =
        (0.5 + r * 0x1.5555555555556p-3) + r2 * (0x1.5555555553d68p-5 + r * 0x1.11111111109b5p-7);
    double q1 = (0x1.6c16c17889f40p-10 + r * 0x1.a01a01a7c2f2ep-13) +
                r2 * (0x1.a019b9148739fp-16 + r * 0x1.71de0db2eafc6p-19);
    double q2 = 0x1.28917ca046b86p-22 + r * 0x1.af389eeb9e5e9p-26;
    return 1.0 + (r + r2 * (q0 + r4 * (q1 + r4 * q2)));
}

static inline double exp_reduced(double x, uint64_t *k_bits) {
    return exp_of_rest(exp_rest(x, k_bits));
}

/* p 2^k, while that is normal. */
static inline double times_power(double p, uint64_t k) {
    uint64_t bits;
    memcpy(&bits, &p, sizeof p);
    bits += k << 52;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* p 2^k for -512 <= k < 512; *seen collects k + 512, so that *seen < 1024 afterwards says that this
 * held for all. */
static inline double exp_near(double x, uint64_t *seen) {
    uint64_t k;
    double p = exp_reduced(x, &k);
    *seen |= k + 512;
    return times_power(p, k);
}

/* exp(-x), and *other = exp(x) from the same reduction; |k| < 511 where *seen < 1024. */
static inline double exp_pair(double x, double *other, uint64_t *seen) {
    uint64_t k;
    double r = exp_rest(-x, &k);
    *seen |= (k + 511) | (511 - k);
    *other = times_power(exp_of_rest(-r), -k);
    return times_power(exp_of_rest(r), k);
}

/* Any x: 2^k is applied as 2^a 2^b, so that overflow gives inf and underflow is gradual. The same
 * bits where both are defined. */
static inline double exp_any(double x) {
    double a, b, p;
    uint64_t k, a_bits, b_bits;
    x = x < -746.0 ? -746.0 : x;
    x = x > 710.0 ? 710.0 : x;
    p = exp_reduced(x, &k);
    a_bits = ((k + 2048) >> 1) - 1024; /* k/2 rounded down */
    b_bits = k - a_bits;
    a_bits = (a_bits + 1023) << 52;
    b_bits = (b_bits + 1023) << 52;
    memcpy(&a, &a_bits, sizeof a);
    memcpy(&b, &b_bits, sizeof b);
    return (p * a) * b;
}

enum { NEAR = 1024 };

MOE_CLONES void moe_scores_exp(const double *restrict x,
                               double shift,
                               double *restrict y,
                               int32_t n) {
    uint64_t seen = 0;
    for (int32_t i = 0; i < n; i++) {
        y[i] = exp_near(x[i] - shift, &seen);
    }
    for (int32_t i = 0; i < n && seen >= NEAR; i++) {
        y[i] = exp_any(x[i] - shift);
    }
}

/* --- sums --- */

static double lanes_total(const double *l) {
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

/* lane[l] += x[8 j + l] */
static inline void add_lanes(double *lane, const double *x, int32_t n) {
    vec sum;
    int32_t i = 0;
    memcpy(&sum, lane, sizeof sum);
    for (; i + LANES <= n; i += LANES) {
        sum += *(const vec *)(x + i);
    }
    memcpy(lane, &sum, sizeof sum);
    for (int32_t l = 0; i < n; i++, l++) {
        lane[l] += x[i];
    }
}

MOE_CLONES double moe_scores_sum(const double *x, int32_t n) {
    double lane[LANES] = {0};
    add_lanes(lane, x, n);
    return lanes_total(lane);
}

MOE_CLONES double moe_scores_dot(const double *a, const double *b, int32_t n) {
    double lane[LANES] = {0}, product[CHUNK];
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            product[i] = a[begin + i] * b[begin + i];
        }
        add_lanes(lane, product, count);
    }
    return lanes_total(lane);
}

MOE_CLONES static double maximum(const double *z, int32_t n) {
    moe_double4 a = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, b = a, c = a, d = a;
    double most = -INFINITY;
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) { /* four chains: a comparison waits for the one before it */
        moe_double4_larger(&a, z + i);
        moe_double4_larger(&b, z + i + 4);
        moe_double4_larger(&c, z + i + 8);
        moe_double4_larger(&d, z + i + 12);
    }
    for (; i < n; i++) {
        most = z[i] > most ? z[i] : most;
    }
    moe_double4_larger(&a, (const double *)&b);
    moe_double4_larger(&c, (const double *)&d);
    moe_double4_larger(&a, (const double *)&c);
    for (int l = 0; l < 4; l++) {
        most = a[l] > most ? a[l] : most;
    }
    return most;
}

MOE_CLONES static void scale(double *x, double factor, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

/* --- logits --- */

static int flags_of(bool disabled, bool bad) {
    return (disabled ? MOE_ROW_DISABLED : 0) | (bad ? MOE_ROW_BAD : 0);
}

MOE_CLONES static int read_doubles(const double *restrict from, double *restrict to, int32_t n) {
    int64_t disabled = 0, bad = 0;
    for (int32_t i = 0; i < n; i++) {
        to[i] = from[i];
        disabled |= from[i] == -INFINITY;
        bad |= !(from[i] < INFINITY);
    }
    return flags_of(disabled, bad);
}

typedef float floats __attribute__((vector_size(32), aligned(sizeof(float)), may_alias));

/* kept = the larger of kept and x [8], lane by lane, as moe_double4_larger. */
MOE_PART void larger_floats(floats *kept, const float *x) {
    typedef int32_t mask __attribute__((vector_size(32)));
    const floats other = *(const floats *)x;
    const mask is_larger = other > *kept;
    *kept = (floats)(((mask)other & is_larger) | ((mask)*kept & ~is_larger));
}

/* The same as maximum, of half as many vectors. */
MOE_CLONES static double maximum_of_floats(const float *x, int32_t n) {
    enum { WIDTH = 8, CHAINS = 4 };
    floats a = {-INFINITY, -INFINITY, -INFINITY, -INFINITY,
                -INFINITY, -INFINITY, -INFINITY, -INFINITY};
    floats b = a, c = a, d = a;
    float most = -INFINITY;
    int32_t i = 0;
    for (; i + CHAINS * WIDTH <= n; i += CHAINS * WIDTH) {
        larger_floats(&a, x + i);
        larger_floats(&b, x + i + WIDTH);
        larger_floats(&c, x + i + 2 * WIDTH);
        larger_floats(&d, x + i + 3 * WIDTH);
    }
    for (; i < n; i++) {
        most = x[i] > most ? x[i] : most;
    }
    larger_floats(&a, (const float *)&b);
    larger_floats(&c, (const float *)&d);
    larger_floats(&a, (const float *)&c);
    for (int l = 0; l < WIDTH; l++) {
        most = a[l] > most ? a[l] : most;
    }
    return (double)most;
}

MOE_CLONES static int read_floats(const float *restrict from, double *restrict to, int32_t n) {
    int32_t disabled = 0, bad = 0;
    for (int32_t i = 0; i < n; i++) {
        to[i] = from[i];
        disabled |= from[i] == -INFINITY;
        bad |= !(from[i] < INFINITY);
    }
    return flags_of(disabled, bad);
}

void moe_scores_prefetch_logits(moe_logits logits, int64_t t, int32_t n) {
    enum { LINE = 64 };
    const size_t bytes = (size_t)n * (logits.f32 ? sizeof *logits.f32 : sizeof *logits.f64);
    const char *row =
        (logits.f32 ? (const char *)logits.f32 : (const char *)logits.f64) + (size_t)t * bytes;
    for (size_t i = 0; i < bytes; i += LINE) {
        __builtin_prefetch(row + i);
    }
}

int moe_scores_read_logits(moe_logits logits, int64_t t, int32_t n, double *z) {
    return logits.f32 ? read_floats(logits.f32 + t * n, z, n)
                      : read_doubles(logits.f64 + t * n, z, n);
}

double moe_scores_largest_logit(moe_logits logits, int64_t t, int32_t n) {
    return logits.f32 ? maximum_of_floats(logits.f32 + t * n, n) : maximum(logits.f64 + t * n, n);
}

/* --- softmax and entropy --- */

MOE_CLONES double moe_scores_lse(const double *z, int32_t n) {
    double m = maximum(z, n), lane[LANES] = {0}, e[CHUNK];
    if (m == -INFINITY) {
        return m;
    }
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        moe_scores_exp(z + begin, m, e, count);
        add_lanes(lane, e, count);
    }
    return m + log(lanes_total(lane));
}

/* y [n] = exp(x [n] - shift), and their sum in the order of moe_scores_sum: while one chunk is
 * added, the next one's exponentials can begin. */
MOE_CLONES static double exp_and_sum(const double *restrict x,
                                     double shift,
                                     double *restrict y,
                                     int32_t n) {
    uint64_t seen = 0;
    double lane[LANES] = {0};
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            y[begin + i] = exp_near(x[begin + i] - shift, &seen);
        }
        add_lanes(lane, y + begin, count);
    }
    if (seen < NEAR) {
        return lanes_total(lane);
    }
    for (int32_t i = 0; i < n; i++) {
        y[i] = exp_any(x[i] - shift);
    }
    return moe_scores_sum(y, n);
}

/* s_i = exp(z_i - max) / sum_j exp(z_j - max). The largest term is 1, so sum >= 1 and s <= 1. */
moe_softmax_sums moe_scores_softmax(const double *z, double most, double *s, int32_t n) {
    moe_softmax_sums found = {most, 1};
    if (found.most == -INFINITY) {
        memset(s, 0, (size_t)n * sizeof *s);
        return found;
    }
    found.sum = exp_and_sum(z, found.most, s, n);
    scale(s, 1.0 / found.sum, n);
    return found;
}

/* s = softmax(z / divisor): a temperature. */
static void softmax_tempered(const double *z, double divisor, double *s, int32_t n) {
    double most = maximum(z, n) / divisor, scaled[CHUNK];
    if (most == -INFINITY) {
        memset(s, 0, (size_t)n * sizeof *s);
        return;
    }
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            scaled[i] = z[begin + i] / divisor;
        }
        moe_scores_exp(scaled, most, s + begin, count);
    }
    scale(s, 1.0 / moe_scores_sum(s, n), n);
}

/* log x for normal x > 0: x = 2^k m, m in [sqrt(1/2), sqrt 2), f = m - 1, q = f / (2 + f); log m =
 * f - (f^2/2 - q (f^2/2 + R(q^2))), the polynomial of Sun's fdlibm (e_log.c): below 1 ulp. */
static inline double log_normal(double x) {
    const double ln2_hi = 0x1.62e42feep-1;
    const double ln2_lo = 0x1.a39ef35793c76p-33;
    const double magic = 0x1.8p52;
    uint64_t bits, k_bits;
    double m, k;
    memcpy(&bits, &x, sizeof x);
    uint64_t above = (bits - 0x3fe6a09e667f3bcd + ((uint64_t)1024 << 52)) >> 52; /* k + 1024 */
    bits -= (above - 1024) << 52;
    memcpy(&m, &bits, sizeof bits);
    k_bits = 0x4338000000000000 + above; /* magic + k + 1024 as a double */
    memcpy(&k, &k_bits, sizeof k);
    k = k - magic - 1024;
    double f = m - 1;
    double q = f / (2 + f);
    double z = q * q;
    double w = z * z;
    double h = 0.5 * f * f;
    double even = w * (3.999999999940941908e-01 +
                       w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    double odd = z * (6.666666666666735130e-01 +
                      w * (2.857142874366239149e-01 +
                           w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    return k * ln2_hi - ((h - (q * (h + (even + odd)) + k * ln2_lo)) - f);
}

MOE_CLONES double moe_scores_entropy(const double *p, int32_t n) {
    double lane[LANES] = {0}, term[CHUNK];
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            double x = p[begin + i] > 0x1p-1022 ? p[begin + i] : 1;
            term[i] = -x * log_normal(x);
        }
        add_lanes(lane, term, count);
    }
    return lanes_total(lane);
}

/* A lane's additions wait for each other, and those to hi and lo for memory: together they take
 * hardly longer than either alone. */
MOE_CLONES double moe_scores_softmax_entropy(const double *restrict z,
                                             const double *restrict s,
                                             int32_t n,
                                             moe_softmax_sums sums,
                                             int64_t *restrict hi,
                                             int64_t *restrict lo) {
    double lane[LANES] = {0};
    const int32_t whole = n - n % LANES;
    for (int32_t i = 0; i < whole; i += LANES) {
        for (int32_t l = 0; l < LANES; l++) {
            double product = s[i + l] * (sums.most - z[i + l]);
            lane[l] += s[i + l] > 0 ? product : 0;
            moe_exact_add01_one(hi + i + l, lo + i + l, s[i + l]);
        }
    }
    for (int32_t i = whole; i < n; i++) {
        lane[i - whole] += s[i] > 0 ? s[i] * (sums.most - z[i]) : 0;
        moe_exact_add01_one(hi + i, lo + i, s[i]);
    }
    return lanes_total(lane) - log(1.0 / sums.sum);
}

/* --- sigmoid and sqrtsoftplus --- */

/* s = 1 / (1 + exp(-z)) (DeepSeek-V3 Eq. 15); *lse = log sum exp(z) from the same reductions. */
MOE_CLONES static void sigmoid(const double *restrict z,
                               double *restrict s,
                               int32_t n,
                               double *lse) {
    uint64_t seen = 0;
    double lane[LANES] = {0}, e[CHUNK];
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            s[begin + i] = 1.0 / (1.0 + exp_pair(z[begin + i], &e[i], &seen));
        }
        add_lanes(lane, e, count);
    }
    for (int32_t i = 0; i < n && seen >= NEAR; i++) {
        s[i] = 1.0 / (1.0 + exp_any(-z[i]));
    }
    if (lse) {
        *lse = seen < NEAR ? log(lanes_total(lane)) : moe_scores_lse(z, n);
    }
}

/* log(1 + w) for 0 <= w <= 1: what rounding 1 + w lost is put back by the derivative. */
static inline double log_one_plus(double w) {
    double x = 1.0 + w;
    return log_normal(x) + (w - (x - 1.0)) / x;
}

/* s = sqrt(log(1 + exp(z))), written so that exp cannot overflow (Megatron-Core's sqrtsoftplus);
 * *lse as above. */
MOE_CLONES static void sqrtsoftplus(const double *restrict z,
                                    double *restrict s,
                                    int32_t n,
                                    double *lse) {
    uint64_t seen = 0;
    double lane[LANES] = {0}, e[CHUNK];
    for (int32_t begin = 0; begin < n; begin += CHUNK) {
        int32_t count = n - begin < CHUNK ? n - begin : CHUNK;
        for (int32_t i = 0; i < count; i++) {
            double v = z[begin + i], large, small = exp_pair(fabs(v), &large, &seen);
            e[i] = v > 0 ? large : small;
            s[begin + i] = sqrt((v > 0 ? v : 0) + log_one_plus(small));
        }
        add_lanes(lane, e, count);
    }
    for (int32_t i = 0; i < n && seen >= NEAR; i++) {
        s[i] = sqrt((z[i] > 0 ? z[i] : 0) + log_one_plus(exp_any(-fabs(z[i]))));
    }
    if (lse) {
        *lse = seen < NEAR ? log(lanes_total(lane)) : moe_scores_lse(z, n);
    }
}

/* --- derivatives, with the sum over the experts held fixed --- */

/* Of exp(z_i) / sum, that is s_i itself. */
static void softmax_derivative(const double *z, const double *s, double *d, int32_t n) {
    (void)z;
    memcpy(d, s, (size_t)n * sizeof *d);
}

static void sigmoid_derivative(const double *z, const double *s, double *d, int32_t n) {
    (void)z;
    for (int32_t i = 0; i < n; i++) {
        d[i] = s[i] * (1 - s[i]);
    }
}

/* sigmoid(z) / (2 s) */
static void sqrtsoftplus_derivative(const double *z, const double *s, double *d, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        d[i] = s[i] > 0 ? 1 / (1 + exp(-z[i])) / (2 * s[i]) : 0;
    }
}

/* --- the table --- */

/* A temperature on the logits: lse stays that of the logits themselves. */
static void fill_softmax(const double *z, double divisor, double *s, int32_t n, double *lse) {
    if (divisor == 1) {
        const moe_softmax_sums sums = moe_scores_softmax(z, maximum(z, n), s, n);
        if (lse) {
            *lse = sums.most + log(sums.sum);
        }
        return;
    }
    if (lse) {
        *lse = moe_scores_lse(z, n);
    }
    softmax_tempered(z, divisor, s, n);
}

static void fill_sigmoid(const double *z, double divisor, double *s, int32_t n, double *lse) {
    (void)divisor; /* a temperature goes with method = top_p, and that with a sum of 1 */
    sigmoid(z, s, n, lse);
}

static void fill_sqrtsoftplus(const double *z, double divisor, double *s, int32_t n, double *lse) {
    (void)divisor; /* likewise */
    sqrtsoftplus(z, s, n, lse);
}

const moe_score_function moe_score_functions[MOE_NUM_SCORE_FUNCTIONS] = {
    [MOE_SCORE_SOFTMAX] = {.name = "softmax",
                           .formula = "s = exp(z) / sum of exp(z)",
                           .fill = fill_softmax,
                           .derivative = softmax_derivative,
                           .bound = 1,
                           .sums_to_one = true},
    [MOE_SCORE_SIGMOID] = {.name = "sigmoid",
                           .formula = "s = 1 / (1 + exp(-z))",
                           .fill = fill_sigmoid,
                           .derivative = sigmoid_derivative,
                           .bound = 1},
    [MOE_SCORE_SQRTSOFTPLUS] = {.name = "sqrtsoftplus",
                                .formula = "s = sqrt(log(1 + exp(z)))",
                                .fill = fill_sqrtsoftplus,
                                .derivative = sqrtsoftplus_derivative,
                                .bound = INFINITY},
    [MOE_SCORE_SOFTMAX_TOPK] = {.name = "softmax_topk",
                                .formula = "s = exp(z) / sum of exp(z), over the chosen for the "
                                           "weights",
                                .fill = fill_softmax,
                                .derivative = softmax_derivative,
                                .bound = 1,
                                .sums_to_one = true,
                                .over_chosen = true},
};

void moe_scores_fill(const moe_router *r, const double *z, double *s, double *lse) {
    moe_score_function_of(r)->fill(z, moe_router_logit_divisor(r), s, r->num_experts, lse);
}

void moe_scores_normalize(const moe_router *r, const double *s, double *normalized) {
    int32_t n = r->num_experts;
    if (normalized != s) {
        memcpy(normalized, s, (size_t)n * sizeof *s);
    }
    if (moe_score_function_of(r)->sums_to_one) {
        return;
    }
    double sum = moe_scores_sum(s, n);
    if (sum <= 0) {
        return; /* all experts are disabled, and all scores are 0 */
    }
    scale(normalized, 1.0 / sum, n);
}
