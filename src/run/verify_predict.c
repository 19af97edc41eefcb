/* verify_predict.c: moesim --verify predict: published measurements beside predictions. */
#include <math.h>
#include <stdio.h>

#include "base/alloc.h"
#include "predict/published.h"
#include "run/verify.h"

/* Errors over the cells of a table that a formula is claimed for, or over the others. */
typedef struct errors {
    int cells, within;
    double sum, most, other;
} errors;

static void add_error(errors *e, const moe_published_cell *c) {
    const double error = fabs(moe_published_error(c->measured, c->predicted));
    e->cells++;
    e->within += error <= moe_published_heads[c->table].limit;
    e->sum += error;
    e->most = fmax(e->most, error);
    e->other += isfinite(c->other) ? fabs(moe_published_error(c->measured, c->other)) : NAN;
}

static errors errors_of(const moe_published_cell *cell,
                        int32_t count,
                        enum moe_published_table table,
                        bool outside) {
    errors e = {0};
    for (int32_t i = 0; i < count; i++) {
        if (cell[i].table == table && (cell[i].outside != NULL) == outside) {
            add_error(&e, &cell[i]);
        }
    }
    return e;
}

static void print_cell(const moe_published_cell *c) {
    const double error = moe_published_error(c->measured, c->predicted);
    const bool explained = fabs(error) <= moe_published_heads[c->table].limit;
    printf("  %4d %7lld  %-15s %10.4g %10.4g %+6.1f %%%s\n", c->devices, (long long)c->tokens,
           c->what, c->measured, c->predicted, 100 * error,
           explained    ? ""
           : c->outside ? "  outside"
                        : "  NOT EXPLAINED");
}

/* The reasons of a table, each once. */
static void print_reasons(const moe_published_cell *cell,
                          int32_t count,
                          enum moe_published_table table) {
    const char *last = NULL;
    for (int32_t i = 0; i < count; i++) {
        if (cell[i].table == table && cell[i].outside && cell[i].outside != last) {
            last = cell[i].outside;
            printf("  outside: EP %d, %s\n", cell[i].devices, last);
        }
    }
}

static void print_table(const moe_published_cell *cell,
                        int32_t count,
                        enum moe_published_table table) {
    const moe_published_head *head = &moe_published_heads[table];
    const errors in = errors_of(cell, count, table, false),
                 out = errors_of(cell, count, table, true);
    printf("\n%s, in %s\n", head->title, head->unit);
    printf("  %4s %7s  %-15s %10s %10s %8s\n", "EP", "tokens", "", "measured", "predicted",
           "error");
    for (int32_t i = 0; i < count; i++) {
        if (cell[i].table == table) {
            print_cell(&cell[i]);
        }
    }
    print_reasons(cell, count, table);
    printf("  %d cells: error %.1f %% on average, %.1f %% at most; %d within %.0f %%\n", in.cells,
           100 * in.sum / in.cells, 100 * in.most, in.within, 100 * head->limit);
    if (isfinite(in.other)) {
        printf("  with the constants of the other machine: %.1f %% on average\n",
               100 * in.other / in.cells);
    }
    if (out.cells > 0) {
        printf("  %d cells outside: %.1f %% on average\n", out.cells, 100 * out.sum / out.cells);
    }
}

void moe_verify_predict(void) {
    moe_published_cell *cell;
    const int32_t count = moe_published_compare(&cell);
    printf("Published times of clusters beside those predicted with configs/clusters.\n"
           "H800: README of DeepEP. H200: NVIDIA aiconfigurator, commit 095f58a.\n");
    for (int table = 0; table < MOE_NUM_PUBLISHED; table++) {
        print_table(cell, count, (enum moe_published_table)table);
    }
    moe_free(cell);
}
