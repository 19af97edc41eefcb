/* unit_tournament.c: the experts that a tournament gives are those of a plain search, whether they
 * are taken one by one or all at once, where scores are equal, disabled or nearly all the same. */
#include <math.h>

#include "check.h"
#include "random_router.h"
#include "router/tournament.h"

enum { MOST = 1024 };

typedef enum scores { DISTINCT, FEW_LEVELS, SOME_DISABLED, MOST_DISABLED, EQUAL, BLOCKS } scores;

static void draw_scores(scores kind, uint64_t seed, int32_t n, double *x) {
    for (int32_t i = 0; i < n; i++) {
        const double u = random_unit(seed, 0, (uint64_t)i);
        x[i] = kind == FEW_LEVELS ? floor(u * 4) : kind == EQUAL ? 1 : u;
        if (kind == BLOCKS) { /* whole blocks of large scores: many are candidates */
            x[i] += random_unit(seed, 1, (uint64_t)i / MOE_TOURNAMENT_BLOCK) > 0.5 ? 2 : 0;
        }
        if ((kind == SOME_DISABLED && u < 0.2) || (kind == MOST_DISABLED && u < 0.97)) {
            x[i] = -INFINITY;
        }
    }
}

/* The place of the largest of x [n] in groups that are kept; of equal ones the first; or -1. */
static int32_t search(const double *x, int32_t n, int32_t size, const bool *kept) {
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++) {
        if (kept[i / size] && x[i] > (best < 0 ? -INFINITY : x[best])) {
            best = i;
        }
    }
    return best;
}

static void test_best(scores kind, int32_t n, int32_t groups, int32_t count, uint64_t seed) {
    double x[MOST], left[MOST];
    bool kept[MOST];
    int32_t at_once[MOST], in_turn[MOST];
    moe_tournament b;
    moe_tournament_reserve(&b, n, groups, NULL);
    draw_scores(kind, seed, n, x);
    for (int32_t g = 0; g < groups; g++) {
        kept[g] = groups == 1 || random_unit(seed, 2, (uint64_t)g) < 0.6;
        b.kept[b.num_kept] = g;
        b.num_kept += kept[g];
    }
    moe_tournament_fill(&b, x, NULL, NULL);
    int32_t blocks = moe_tournament_gather(&b), found = 0, taken = 0;
    if (blocks > 0) {
        found = moe_tournament_best(&b, 0, blocks, count, at_once);
        moe_tournament_fill(&b, x, NULL, NULL);
        moe_tournament_gather(&b);
        taken = moe_tournament_take(&b, 0, blocks, count, in_turn);
    }
    CHECK_MSG(found == taken, "%d at once, %d in turn", found, taken);
    memcpy(left, x, (size_t)n * sizeof *x);
    for (int32_t k = 0; k < count; k++) {
        int32_t next = search(left, n, n / groups, kept);
        CHECK_MSG(k < found ? at_once[k] == next && in_turn[k] == next : next < 0 || found == count,
                  "scores %d, N %d, %d groups, place %d: %d, not %d", (int)kind, n, groups, k,
                  k < found ? at_once[k] : -1, next);
        if (next >= 0) {
            left[next] = -INFINITY;
        }
    }
    moe_tournament_free(&b);
}

/* A count is what two loops say, and the sum tells whether two are equal. */
static void test_count(scores kind, int32_t n) {
    double x[MOST + MOE_TOURNAMENT_LANES] = {0};
    int64_t count[MOST + MOE_TOURNAMENT_LANES];
    bool equal = false;
    draw_scores(kind, 5, n, x);
    int64_t total = moe_tournament_count(x, n, count);
    for (int32_t i = 0; i < n; i++) {
        int64_t not_less = 0;
        for (int32_t j = 0; j < n; j++) {
            not_less += x[j] >= x[i];
            equal |= j != i && x[j] == x[i];
        }
        CHECK_MSG(count[i] == not_less, "%ld are not less, not %ld", (long)count[i],
                  (long)not_less);
    }
    CHECK((total != n * (n + 1) / 2) == equal);
}

int main(void) {
    static const int32_t shape[][3] = {/* N, groups, K */
                                       {256, 8, 8}, {256, 1, 8},  {160, 8, 6}, {64, 1, 8},
                                       {60, 1, 4},  {24, 3, 2},   {16, 1, 2},  {7, 1, 3},
                                       {512, 1, 2}, {1024, 1, 8}, {256, 4, 32}};
    for (scores kind = DISTINCT; kind <= BLOCKS; kind++) {
        for (size_t i = 0; i < sizeof shape / sizeof shape[0]; i++) {
            for (uint64_t seed = 0; seed < 40; seed++) {
                RUN(test_best, kind, shape[i][0], shape[i][1], shape[i][2], seed);
            }
        }
        RUN(test_count, kind, 1);
        RUN(test_count, kind, 29);
        RUN(test_count, kind, 64);
    }
    return check_verdict();
}
