/* tournament.c: filling in the scores of a token, and taking the largest out of them. */
#include "router/tournament.h"

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
    int64_t blocks = (int64_t)groups * b->group_blocks;
    b->score = moe_scratch_take(scratch, blocks * (MOE_TOURNAMENT_BLOCK + 2) + groups,
                                sizeof(double), what);
    b->maximum = b->score + blocks * MOE_TOURNAMENT_BLOCK;
    b->kept_max = b->maximum + blocks;
    b->group_score = b->kept_max + blocks;
    b->kept_block = moe_scratch_take(scratch, 2 * blocks + groups, sizeof(int32_t), what);
    b->base = b->kept_block + blocks;
    b->kept = b->base + blocks;
    for (int64_t i = 0; i < blocks * MOE_TOURNAMENT_BLOCK; i++) {
        b->score[i] = -INFINITY;
    }
    for (int32_t i = 0; i < blocks; i++) {
        b->base[i] =
            i / b->group_blocks * b->group_size + i % b->group_blocks * MOE_TOURNAMENT_BLOCK;
    }
}

void moe_tournament_free(moe_tournament *b) {
    moe_scratch_give(b->scratch, b->score);
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

MOE_CLONES void moe_tournament_fill(moe_tournament *b,
                                    const double *from,
                                    const double *add,
                                    const double *disabled) {
    int32_t n = b->group_size, stride = b->group_blocks * MOE_TOURNAMENT_BLOCK;
    for (int32_t g = 0; g < b->groups; g++) {
        double *to = b->score + g * stride;
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
    for (int32_t i = 0; i < b->groups * b->group_blocks; i++) {
        b->maximum[i] = block_maximum_settled(b->score + i * MOE_TOURNAMENT_BLOCK);
    }
}

int32_t moe_tournament_gather(moe_tournament *b) {
    int32_t blocks = 0;
    for (int32_t k = 0; k < b->num_kept; k++) {
        int32_t end = (b->kept[k] + 1) * b->group_blocks;
        for (int32_t i = end - b->group_blocks; i < end; i++, blocks++) {
            b->kept_max[blocks] = b->maximum[i];
            b->kept_block[blocks] = i;
        }
    }
    return blocks;
}

int32_t moe_tournament_take(moe_tournament *b,
                            int32_t begin,
                            int32_t end,
                            int32_t count,
                            int32_t *expert) {
    double *maximum = b->kept_max + begin;
    const int32_t *block = b->kept_block + begin;
    int32_t blocks = end - begin;
    for (int32_t k = 0; k < count; k++) {
        double best = moe_tournament_largest(maximum, blocks);
        if (!(best > -INFINITY)) {
            return k;
        }
        int32_t at = moe_tournament_first(maximum, blocks, best);
        double *x = b->score + block[at] * MOE_TOURNAMENT_BLOCK;
        int32_t inside = moe_tournament_first(x, MOE_TOURNAMENT_BLOCK, best);
        expert[k] = b->base[block[at]] + inside;
        x[inside] = -INFINITY;
        maximum[at] = block_maximum(x);
    }
    return count;
}
