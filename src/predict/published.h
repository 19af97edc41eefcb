/* published.h: published measurements of real clusters beside what the formulas of cost.h say, with
 * the constants of configs/clusters. No figure is ever "passed": two columns and the error.
 *
 * The measured exchanges are of uniform random routing, so that rows are their expectation:
 *
 *   low latency   8 selections of T tokens, one row each, of which (n-1)/n leave the node and
 *                 7/(8n) go to another device of it
 *   normal        T E[nodes] rows go to nodes, of which (n-1)/n leave theirs, and T E[devices] are
 *                 forwarded inside, 7/8 of them to another device; two hops
 *   experts       8 T / N selections an expert, or the busiest device of a power law: each expert's
 *                 popularity is drawn with density x^-alpha between 1 and 0.8 T, all are scaled to
 *                 8 T selections, at most T each, and the median of 15 draws counts; all T tokens
 *                 arrive
 *
 * The formulas have four constants that were fitted to these figures: link_efficiency and
 * inter_latency_us for both machines together, exchange_us for each, memory_efficiency for H200.
 * The rest are data sheets, sizes of tiles, and floors that were read off. */
#ifndef MOESIM_PREDICT_PUBLISHED_H
#define MOESIM_PREDICT_PUBLISHED_H

#include <stdbool.h>
#include <stdint.h>

enum moe_published_table {
    MOE_PUBLISHED_H800_LOW_LATENCY, /* DeepEP's README: us */
    MOE_PUBLISHED_H800_NORMAL,      /* DeepEP's README: GB/s of rows, those that stay included */
    MOE_PUBLISHED_LOW_LATENCY,      /* H200: us */
    MOE_PUBLISHED_NORMAL,           /* H200: us */
    MOE_PUBLISHED_EXPERTS,          /* H200: ms, uniform loads */
    MOE_PUBLISHED_IMBALANCE,        /* H200: time of a power law over that of uniform loads */
    MOE_NUM_PUBLISHED
};

typedef struct moe_published_cell {
    enum moe_published_table table;
    int32_t devices;
    int64_t tokens; /* of a device; for experts of the group */
    char what[24];  /* "dispatch", "combine", "uniform", "power law 1.2" */
    double measured, predicted;
    double other;        /* predicted with the constants of the other machine; NaN: not done */
    const char *outside; /* why no formula is claimed to hold here; NULL: it is */
} moe_published_cell;

/* Local. Title, unit and the largest error that counts as explained of each table. */
typedef struct moe_published_head {
    const char *title, *unit;
    double limit;
} moe_published_head;
extern const moe_published_head moe_published_heads[MOE_NUM_PUBLISHED];

/* Local. All cells, table after table. Returns their number; the caller frees *cells with moe_free.
 */
int32_t moe_published_compare(moe_published_cell **cells);

/* Local. predicted / measured - 1. */
double moe_published_error(double measured, double predicted);

#endif
