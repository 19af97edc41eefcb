/* unit_published.c: the published tables are explained to the errors that docs/prediction.md
 * states, and the figures are those that were published. */
#include <math.h>
#include <string.h>

#include "base/alloc.h"
#include "check.h"
#include "predict/published.h"

typedef struct errors {
    int cells, within; /* within `limit` */
    double mean, other;
} errors;

static moe_published_cell *cell;
static int32_t count;

/* Over the cells that a formula is claimed for, of a group of `devices` (0: all), whose name begins
 * with `what`. */
static errors errors_of(enum moe_published_table table,
                        int32_t devices,
                        const char *what,
                        double limit) {
    errors e = {0};
    for (int32_t i = 0; i < count; i++) {
        const moe_published_cell *c = &cell[i];
        if (c->table == table && !c->outside && (devices == 0 || c->devices == devices) &&
            strncmp(c->what, what, strlen(what)) == 0) {
            const double error = fabs(c->predicted / c->measured - 1);
            e.cells++;
            e.within += error <= limit;
            e.mean += error;
            e.other += fabs(c->other / c->measured - 1);
        }
    }
    e.mean /= e.cells;
    e.other /= e.cells;
    return e;
}

/* In sample at most 6 % but for two cells: combine takes longer on 128 GPUs than on 256, and in
 * normal mode it has a fixed cost of its own. */
static void test_h800(void) {
    const errors low = errors_of(MOE_PUBLISHED_H800_LOW_LATENCY, 0, "", 0.06),
                 normal = errors_of(MOE_PUBLISHED_H800_NORMAL, 0, "", 0.06);
    CHECK_MSG(low.cells == 10 && low.within >= 9 && low.mean <= 0.06, "%d of %d, mean %g",
              low.within, low.cells, low.mean);
    CHECK_MSG(normal.cells == 4 && normal.within >= 3 && normal.mean <= 0.06, "%d of %d, mean %g",
              normal.within, normal.cells, normal.mean);
    CHECK_MSG(low.other <= 0.15, "with the constants of H200: %g", low.other);
}

/* At most 4 % on average in each direction, and 15 % with the constants of H800. */
static void test_low_latency(void) {
    const errors out = errors_of(MOE_PUBLISHED_LOW_LATENCY, 0, "dispatch", 0.1),
                 back = errors_of(MOE_PUBLISHED_LOW_LATENCY, 0, "combine", 0.1);
    CHECK_MSG(out.cells == 36 && out.mean <= 0.04, "dispatch: %d cells, %g", out.cells, out.mean);
    CHECK_MSG(back.cells == 36 && back.mean <= 0.04, "combine: %d cells, %g", back.cells,
              back.mean);
    CHECK_MSG((out.other + back.other) / 2 <= 0.15, "with those of H800: %g, %g", out.other,
              back.other);
}

/* Four nodes; what is said of two and eight is that no formula is claimed to hold there. */
static void test_normal(void) {
    const errors e = errors_of(MOE_PUBLISHED_NORMAL, 32, "", 0.15);
    CHECK_MSG(e.cells == 18 && e.within == e.cells && e.mean <= 0.06, "%d of %d, mean %g", e.within,
              e.cells, e.mean);
    CHECK_EQ(errors_of(MOE_PUBLISHED_NORMAL, 64, "", 1).cells, 0);
}

static void test_experts(void) {
    const errors all = errors_of(MOE_PUBLISHED_EXPERTS, 0, "", 0.1),
                 ep32 = errors_of(MOE_PUBLISHED_EXPERTS, 32, "", 0.1);
    CHECK_MSG(ep32.cells == 11 && ep32.within == 11, "EP 32: %d of %d", ep32.within, ep32.cells);
    CHECK_MSG(all.cells == 25 && all.mean <= 0.1, "%d cells, %g", all.cells, all.mean);
}

/* The time of a power law over that of uniform loads: 80 % of the cells within 15 %. */
static void test_imbalance(void) {
    const errors e = errors_of(MOE_PUBLISHED_IMBALANCE, 32, "power law", 0.15);
    CHECK_MSG(e.cells == 55 && e.within >= 44, "%d of %d", e.within, e.cells);
}

/* A cell of each table, from the source. */
static void test_figures(void) {
    static const struct {
        enum moe_published_table table;
        int32_t devices;
        int64_t tokens;
        const char *what;
        double measured;
    } known[] = {
        {MOE_PUBLISHED_H800_LOW_LATENCY, 64, 128, "combine", 314},
        {MOE_PUBLISHED_H800_NORMAL, 32, 4096, "dispatch", 58},
        {MOE_PUBLISHED_LOW_LATENCY, 64, 160, "dispatch, N 288", 200.4},
        {MOE_PUBLISHED_NORMAL, 32, 4096, "combine", 3522},
        {MOE_PUBLISHED_EXPERTS, 32, 131072, "uniform", 3.24699},
        {MOE_PUBLISHED_IMBALANCE, 32, 131072, "power law 1.2", 14.5627 / 3.24699},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        int found = 0;
        for (int32_t j = 0; j < count; j++) {
            const moe_published_cell *c = &cell[j];
            found += c->table == known[i].table && c->devices == known[i].devices &&
                     c->tokens == known[i].tokens && strcmp(c->what, known[i].what) == 0 &&
                     fabs(c->measured / known[i].measured - 1) < 1e-12;
        }
        CHECK_MSG(found == 1, "figure %zu was found %d times", i, found);
    }
}

int main(void) {
    count = moe_published_compare(&cell);
    RUN(test_h800, );
    RUN(test_low_latency, );
    RUN(test_normal, );
    RUN(test_experts, );
    RUN(test_imbalance, );
    RUN(test_figures, );
    moe_free(cell);
    return check_verdict();
}
