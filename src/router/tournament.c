/* tournament.c: filling in the scores of a token, and taking the largest out of them. */
#include "router/tournament.h"

#include <stdbool.h>
#include <string.h>

#include "base/status.h"
#include "base/vector.h"

void moe_tournament_reserve(moe_tournament *b,
                            int32_t num_experts,
                            int32_t groups,
                            moe_scratch *scratch) {
    const char *what = "router's working memory";
    MOE_ASSERT(groups > 0 && num_experts % groups == 0);
    *b = (moe_tournament){.groups = groups, .group_size = num_experts / groups, .scratch = scratch};
    b->group_blocks = (b->group_size + MOE_TOURNAMENT_BLOCK - 1) / MOE_TOURNAMENT_BLOCK;
    const int64_t blocks = (int64_t)groups * b->group_blocks;
    const int64_t more = MOE_TOURNAMENT_LANES; /* vectors may end behind an array */
    b->own = moe_scratch_take(scratch, blocks * (MOE_TOURNAMENT_BLOCK + 2) + groups + 3 * more,
                              sizeof(double), what);
    b->score = b->own;
    b->maximum = b->own + blocks * MOE_TOURNAMENT_BLOCK;
    b->kept_max = b->maximum + blocks + more;
    b->group_score = b->kept_max + blocks + more;
    b->kept_block = moe_scratch_take(scratch, 2 * blocks + more + groups, sizeof(int32_t), what);
    b->base = b->kept_block + blocks + more;
    b->kept = b->base + blocks;
    for (int64_t i = 0; i < blocks * MOE_TOURNAMENT_BLOCK; i++) {
        b->own[i] = -INFINITY;
    }
    for (int32_t i = 0; i < blocks; i++) {
        b->base[i] =
            i / b->group_blocks * b->group_size + i % b->group_blocks * MOE_TOURNAMENT_BLOCK;
    }
}

void moe_tournament_free(moe_tournament *b) {
    moe_scratch_give(b->scratch, b->own);
    moe_scratch_give(b->scratch, b->kept_block);
    *b = (moe_tournament){0};
}

static double block_maximum(const double *x) {
    double a = moe_tournament_larger(x[0], x[4]);
    double b = moe_tournament_larger(x[1], x[5]);
    double c = moe_tournament_larger(x[2], x[6]);
    double d = moe_tournament_larger(x[3], x[7]);
    return moe_tournament_larger(moe_tournament_larger(a, c), moe_tournament_larger(b, d));
}

/* The same, where none of the numbers was stored just before: a vector cannot be loaded while one
 * of its elements is on its way to memory. */
static inline double block_maximum_settled(const double *x) {
    moe_double4 m = *(const moe_double4 *)x;
    moe_double4_larger(&m, x + 4);
    return moe_tournament_larger(moe_tournament_larger(m[0], m[2]),
                                 moe_tournament_larger(m[1], m[3]));
}

/* to = a + b */
MOE_CLONES static void sum_of(double *restrict to,
                              const double *restrict a,
                              const double *restrict b,
                              int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        to[i] = a[i] + b[i];
    }
}

/* The maximum of each of so many blocks. */
MOE_PART void find_maxima(const double *x, int32_t blocks, double *maximum) {
    for (int32_t i = 0; i < blocks; i++) {
        maximum[i] = block_maximum_settled(x + i * MOE_TOURNAMENT_BLOCK);
    }
}

MOE_CLONES void moe_tournament_fill(moe_tournament *b,
                                    const double *from,
                                    const double *add,
                                    const double *disabled) {
    int32_t n = b->group_size, stride = b->group_blocks * MOE_TOURNAMENT_BLOCK;
    if (n == stride && !add && !disabled) {
        b->score = from;
        find_maxima(from, b->groups * b->group_blocks, b->maximum);
        return;
    }
    b->score = b->own;
    for (int32_t g = 0; g < b->groups; g++) {
        double *to = b->own + g * stride;
        if (add) {
            sum_of(to, from + g * n, add + g * n, n);
        } else {
            memcpy(to, from + g * n, (size_t)n * sizeof *to);
        }
        if (disabled) {
            for (int32_t i = 0; i < n; i++) {
                to[i] = disabled[g * n + i] == -INFINITY ? -INFINITY : to[i];
            }
        }
    }
    find_maxima(b->own, b->groups * b->group_blocks, b->maximum);
}

int32_t moe_tournament_gather(moe_tournament *b) {
    typedef int32_t numbers __attribute__((vector_size(16), aligned(sizeof(int32_t)), may_alias));
    const numbers behind = {0, 1, 2, 3};
    const int32_t size = b->group_blocks;
    int32_t blocks = 0;
    for (int32_t k = 0; k < b->num_kept; k++, blocks += size) {
        const int32_t first = b->kept[k] * size;
        for (int32_t i = 0; i < size; i += MOE_TOURNAMENT_LANES) {
            *(moe_double4 *)(b->kept_max + blocks + i) =
                *(const moe_double4 *)(b->maximum + first + i);
            *(numbers *)(b->kept_block + blocks + i) = behind + (first + i);
        }
    }
    return blocks;
}

/* What is taken is written over, in memory that is the tournament's. */
static void own_scores(moe_tournament *b) {
    if (b->score != b->own) {
        const int64_t n = (int64_t)b->groups * b->group_blocks * MOE_TOURNAMENT_BLOCK;
        memcpy(b->own, b->score, (size_t)n * sizeof *b->own);
        b->score = b->own;
    }
}

int32_t moe_tournament_take(moe_tournament *b,
                            int32_t begin,
                            int32_t end,
                            int32_t count,
                            int32_t *expert) {
    double *maximum = b->kept_max + begin;
    const int32_t *block = b->kept_block + begin;
    int32_t blocks = end - begin;
    own_scores(b);
    for (int32_t k = 0; k < count; k++) {
        double best = moe_tournament_largest(maximum, blocks);
        if (!(best > -INFINITY)) {
            return k;
        }
        int32_t at = moe_tournament_first(maximum, blocks, best);
        double *x = b->own + block[at] * MOE_TOURNAMENT_BLOCK;
        int32_t inside = moe_tournament_first(x, MOE_TOURNAMENT_BLOCK, best);
        expert[k] = b->base[block[at]] + inside;
        x[inside] = -INFINITY;
        maximum[at] = block_maximum(x);
    }
    return count;
}

/* --- all at once --- */

enum {
    FEW = 4,    /* of fewer blocks they are taken one by one */
    RANKED = 64 /* so many numbers at most are compared each with each */
};

/* What moe_tournament_count does. */
MOE_PART int64_t count_not_less(const double *x, int32_t n, int64_t *count) {
    typedef double vec
        __attribute__((vector_size(MOE_TOURNAMENT_LANES * sizeof(double)), aligned(8), may_alias));
    typedef int64_t lanes
        __attribute__((vector_size(MOE_TOURNAMENT_LANES * sizeof(double)), aligned(8), may_alias));
    int64_t total = 0;
    for (int32_t i = 0; i < n; i += MOE_TOURNAMENT_LANES) {
        const vec own = *(const vec *)(x + i);
        lanes sum = {0};
        for (int32_t j = 0; j < n; j++) {
            sum -= (lanes)(own <= x[j]);
        }
        *(lanes *)(count + i) = sum;
    }
    for (int32_t i = 0; i < n; i++) {
        total += count[i];
    }
    return total;
}

MOE_CLONES int64_t moe_tournament_count(const double *x, int32_t n, int64_t *count) {
    return count_not_less(x, n, count);
}

/* A bound that at least `count` of x [n] reach: the count-th largest of x, or of the larger ones of
 * pairs, pairs of pairs and so on, as long as there are twice as many as wanted. It is the largest
 * of those that at least `count` are not less than. */
MOE_CLONES static double bound_of_largest(const double *x, int32_t n, int32_t count) {
    double top[RANKED + MOE_TOURNAMENT_LANES];
    int64_t not_less[RANKED + MOE_TOURNAMENT_LANES];
    top[0] = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        top[i] = x[i];
    }
    for (int32_t half = (n + 1) / 2; half >= 2 * count; half = (n + 1) / 2) {
        for (int32_t i = half; i < n; i++) {
            top[i - half] = moe_tournament_larger(top[i], top[i - half]);
        }
        n = half;
    }
    count_not_less(top, n, not_less);
    for (int32_t i = 0; i < n; i++) {
        top[i] = not_less[i] >= count ? top[i] : -INFINITY;
    }
    return moe_tournament_largest(top, n);
}

/* The places in score of those of at least `least` in the gathered blocks: place [RANKED + 4].
 * Returns their number, or -1 where there are too many. */
static int32_t list_candidates(const moe_tournament *b,
                               int32_t begin,
                               int32_t end,
                               double least,
                               uint32_t *place) {
    int32_t block[RANKED], blocks = 0, found = 0;
    for (int32_t i = begin; i < end; i++) {
        block[blocks] = b->kept_block[i];
        blocks += b->kept_max[i] >= least;
    }
    for (int32_t i = 0; i < blocks; i++) {
        const int32_t first = block[i] * MOE_TOURNAMENT_BLOCK;
        const double *x = b->score + first;
        if (found > RANKED - MOE_TOURNAMENT_BLOCK) {
            return -1;
        }
        for (int32_t l = 0; l < MOE_TOURNAMENT_BLOCK; l++) {
            place[found] = (uint32_t)(first + l);
            found += x[l] >= least;
        }
    }
    return found;
}

/* At least K scores reach the bound, so the K best are among those that do. They are few, and the
 * place of each is the number of those that are not less. */
static bool take_by_place(const moe_tournament *b,
                          int32_t begin,
                          int32_t end,
                          int32_t count,
                          int32_t *expert) {
    double value[RANKED + MOE_TOURNAMENT_LANES];
    uint32_t at[RANKED + MOE_TOURNAMENT_LANES], in_order[RANKED + 1];
    int64_t not_less[RANKED + MOE_TOURNAMENT_LANES];
    if (count < 2 || end - begin < count || end - begin < FEW || end - begin > RANKED) {
        return false;
    }
    double least = bound_of_largest(b->kept_max + begin, end - begin, count);
    int32_t found = least > -INFINITY ? list_candidates(b, begin, end, least, at) : -1;
    for (int32_t i = 0; i < found; i++) {
        value[i] = b->score[at[i]];
    }
    for (int32_t l = 0; found >= 0 && l < MOE_TOURNAMENT_LANES; l++) {
        value[found + l] = 0; /* compared with the others, and not counted */
    }
    if (found < 0 || moe_tournament_count(value, found, not_less) != found * (found + 1) / 2) {
        return false;
    }
    for (int32_t i = 0; i < found; i++) {
        in_order[not_less[i]] = at[i];
    }
    for (int32_t k = 0; k < count; k++) {
        const uint32_t i = in_order[k + 1];
        expert[k] = b->base[i / MOE_TOURNAMENT_BLOCK] + (int32_t)(i % MOE_TOURNAMENT_BLOCK);
    }
    return true;
}

int32_t moe_tournament_best(moe_tournament *b,
                            int32_t begin,
                            int32_t end,
                            int32_t count,
                            int32_t *expert) {
    return take_by_place(b, begin, end, count, expert)
               ? count
               : moe_tournament_take(b, begin, end, count, expert);
}
