/* tournament.h: the selection scores of one token, laid out so that taking the largest again and
 * again is cheap: a tournament of two rounds.
 *
 * The scores stand in blocks of 8. Every group of experts begins a new block, and the rest of its
 * last block is -inf. The maximum of each block stands beside it. The largest score of all is then
 * the first block with the largest maximum, and inside it the first place that equals the maximum,
 * so that among equals the lowest index wins; afterwards one block maximum is computed anew. K
 * experts cost K (blocks + 16) steps without a branch that is hard to predict, which is 5 times
 * fewer than K passes over N = 256. What is given up: groups of fewer than 8 experts waste the rest
 * of a block.
 *
 * Each of these steps waits for the one before it. Where the K best are wanted at once
 * (moe_tournament_best), no step waits: a K-th largest maximum bounds them from below, the few
 * scores that reach it are compared each with each in vectors, and how many are not less than one
 * is its place. Equal scores would share a place; a token that has some is left to the steps. */
#ifndef MOESIM_ROUTER_TOURNAMENT_H
#define MOESIM_ROUTER_TOURNAMENT_H

#include <math.h>
#include <stdint.h>

#include "base/scratch.h"

enum { MOE_TOURNAMENT_BLOCK = 8, MOE_TOURNAMENT_LANES = 4 };

typedef struct moe_tournament {
    int32_t groups, group_size, group_blocks; /* without a group limit there is one group of N */
    const double *score; /* [groups * group_blocks * 8] -inf where disabled, taken or padding: the
                            caller's, as long as nothing is added or taken, or own */
    double *own;
    double *maximum;     /* [groups * group_blocks] of each block of score */
    double *kept_max;    /* [groups * group_blocks] maxima of the admitted groups, ascending */
    int32_t *kept_block; /* [groups * group_blocks] the blocks that these maxima are of */
    int32_t *base;       /* [groups * group_blocks] first expert of a block */
    double *group_score; /* [groups], and 4 that moe_tournament_count may read */
    int32_t *kept;       /* [num_kept] the admitted groups, ascending */
    int32_t num_kept;
    moe_scratch *scratch; /* where the memory comes from */
} moe_tournament;

/* Local. Memory for N experts in `groups` groups of equal size; one for each thread. Free with
 * moe_tournament_free. */
void moe_tournament_reserve(moe_tournament *b,
                            int32_t num_experts,
                            int32_t groups,
                            moe_scratch *scratch);
void moe_tournament_free(moe_tournament *b);

/* Local. score = from [N] + add [N] (add may be NULL), and -inf where disabled [N] is -inf
 * (disabled may be NULL: no expert is). Computes the block maxima. `from` has to stay as it is
 * while the scores are used: where add and disabled are NULL and groups have no padding, it is read
 * in place and not copied. */
void moe_tournament_fill(moe_tournament *b,
                         const double *from,
                         const double *add,
                         const double *disabled);

/* Local. Score of expert i. */
static inline double moe_tournament_score(const moe_tournament *b, int32_t i) {
    int32_t g = i / b->group_size;
    return b->score[g * b->group_blocks * MOE_TOURNAMENT_BLOCK + i % b->group_size];
}

/* Local. Copies the block maxima of the admitted groups together; returns how many blocks they
 * have. To be called after the groups are admitted and before anything is taken. */
int32_t moe_tournament_gather(moe_tournament *b);

/* Local. Takes the `count` largest scores out of the gathered blocks [begin, end): expert [count]
 * in falling order. Stops where nothing above -inf is left; returns how many were taken. */
int32_t moe_tournament_take(moe_tournament *b,
                            int32_t begin,
                            int32_t end,
                            int32_t count,
                            int32_t *expert);

/* Local. The same, without the promise that what was taken is gone: nothing can be taken after it
 * before the scores are filled in anew. Faster where count > 1. */
int32_t moe_tournament_best(moe_tournament *b,
                            int32_t begin,
                            int32_t end,
                            int32_t count,
                            int32_t *expert);

/* --- for hot loops --- */

/* Local. count[i] = how many of x [n] are not less than x[i], itself among them: where no two are
 * equal, its place in falling order, from 1. Both arrays have 4 more elements, whose values do not
 * matter. Returns the sum of the counts, which is n (n + 1) / 2 exactly where no two are equal. */
int64_t moe_tournament_count(const double *x, int32_t n, int64_t *count);

static inline double moe_tournament_larger(double a, double b) {
    return a > b ? a : b;
}

/* Local. The largest of x [n]. It keeps four chains, as each comparison waits for the one before
 * it. */
static inline double moe_tournament_largest(const double *x, int32_t n) {
    double a = x[0];
    double b = x[0];
    double c = x[0];
    double d = x[0];
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a = moe_tournament_larger(x[i], a);
        b = moe_tournament_larger(x[i + 1], b);
        c = moe_tournament_larger(x[i + 2], c);
        d = moe_tournament_larger(x[i + 3], d);
    }
    for (; i < n; i++) {
        a = moe_tournament_larger(x[i], a);
    }
    return moe_tournament_larger(moe_tournament_larger(a, b), moe_tournament_larger(c, d));
}

/* Local. First place of v, which is the largest of x [n]. The loop runs from the back, so that
 * nothing has to be predicted, and >= needs one processor flag where == needs two. */
static inline int32_t moe_tournament_first(const double *x, int32_t n, double v) {
    int32_t at = 0;
    for (int32_t i = n - 1; i >= 0; i--) {
        at = x[i] >= v ? i : at;
    }
    return at;
}

#endif
