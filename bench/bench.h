/* bench.h: what the programs of bench share: two versions of the same work timed in turns, and one
 * line of the table for each.
 *
 * A and B alternate (A B, B A, ...) with a barrier before each; the slowest rank counts. The ratio
 * is the median over repetitions of bare / moesim, so noise that lasts longer than a repetition
 * falls out; quartiles say what is left of it. */
#ifndef MOESIM_BENCH_H
#define MOESIM_BENCH_H

#include <mpi.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/gemm.h"
#include "data/synthetic.h"
#include "model/layer.h"
#include "predict/memory.h"
#include "settings.h"
#include "world/comm.h"

enum { BENCH_MOST_REPEATS = 201, BENCH_LEAST_REPEATS = 11 };
#define BENCH_SECONDS 3.0 /* for one line of the table */

typedef void (*bench_function)(void *);

typedef struct bench_times { /* seconds, medians; ratio = bare / measured with its quartiles */
    double measured, bare, ratio, low, high;
    int repeats;
} bench_times;

static inline int bench_ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* x [n] comes back sorted. share 0.5: the median. */
static inline double bench_quantile(double *x, int n, double share) {
    qsort(x, (size_t)n, sizeof *x, bench_ascending);
    return x[(int)(share * (n - 1) + 0.5)];
}

/* One rank with one thread: its CPU time, which others on a busy machine do not lengthen; else
 * wall-clock time. */
static inline double bench_clock(const moe_comm *comm) {
    struct timespec t;
    if (comm->size > 1 || omp_get_max_threads() > 1) {
        return MPI_Wtime();
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Called before every measured call, outside its time, if it is set. */
static bench_function bench_prepare;

/* Collective. Seconds of one call on the slowest rank. */
static inline double bench_once(const moe_comm *comm, bench_function f, void *argument) {
    if (bench_prepare) {
        bench_prepare(argument);
    }
    MPI_Barrier(comm->comm);
    double seconds = bench_clock(comm);
    f(argument);
    seconds = bench_clock(comm) - seconds;
    moe_comm_max_f64(comm, &seconds, 1);
    return seconds;
}

/* Collective. Repetitions that take about BENCH_SECONDS, from one that took `seconds` (the same
 * number on all ranks). */
static inline int bench_repeats(double seconds) {
    double n = BENCH_SECONDS / seconds;
    return n < BENCH_LEAST_REPEATS  ? BENCH_LEAST_REPEATS
           : n > BENCH_MOST_REPEATS ? BENCH_MOST_REPEATS
                                    : (int)n;
}

/* Collective. */
static inline bench_times bench_pair(const moe_comm *comm,
                                     bench_function measured,
                                     bench_function bare,
                                     void *argument) {
    double a[BENCH_MOST_REPEATS], b[BENCH_MOST_REPEATS], ratio[BENCH_MOST_REPEATS], warm = 0;
    for (int i = 0; i < 3; i++) {
        warm = bench_once(comm, measured, argument) + bench_once(comm, bare, argument);
    }
    int n = bench_repeats(warm);
    for (int i = 0; i < n; i++) {
        if (i % 2) {
            b[i] = bench_once(comm, bare, argument);
        }
        a[i] = bench_once(comm, measured, argument);
        if (i % 2 == 0) {
            b[i] = bench_once(comm, bare, argument);
        }
        ratio[i] = b[i] / a[i];
    }
    return (bench_times){.measured = bench_quantile(a, n, 0.5),
                         .bare = bench_quantile(b, n, 0.5),
                         .ratio = bench_quantile(ratio, n, 0.5),
                         .low = bench_quantile(ratio, n, 0.25),
                         .high = bench_quantile(ratio, n, 0.75),
                         .repeats = n};
}

/* Rank 0 prints a line of the table: what, measured, bare, unit, ratio, quartiles, aim. */
static inline void bench_row(const moe_comm *comm,
                             const char *what,
                             bench_times t,
                             const char *aim) {
    if (comm->rank != 0) {
        return;
    }
    printf("%s\t%.3f\t%.3f\tms\t%.2f\t%.2f-%.2f\t%s\n", what, 1e3 * t.measured, 1e3 * t.bare,
           t.ratio, t.low, t.high, aim);
    fflush(stdout);
}

/* True where `threads` per rank do not ask for more than there is; one thread is always tried. */
static inline bool bench_fits(const moe_comm *comm, int threads) {
    return threads == 1 || (long)threads * comm->size <= sysconf(_SC_NPROCESSORS_ONLN);
}

/* --- a layer as the program would make it --- */

typedef struct bench_layer {
    moe_config config;
    moe_batch batch;
    moe_input input;
    moe_scratch scratch;
    moe_context context;
    moe_layer layer;
    moe_activations activations;
    moe_step_metrics metrics;
    real *x, *y; /* [T,H] */
} bench_layer;

static inline void bench_layer_init(bench_layer *b, const moe_comm *comm, const char *settings) {
    *b = (bench_layer){0};
    settings_resolve(&b->config, "", settings, comm->size);
    const moe_config *c = &b->config;
    moe_batch_layout(&b->batch, c->data.tokens_per_device * c->cluster.devices,
                     c->data.sequence_length, c->cluster.devices, comm->rank, comm->size);
    moe_context_init(&b->context, comm, c, &b->batch, &b->input, &b->scratch);
    moe_layer_init(&b->layer, &b->context, 0);
    moe_step_metrics_init(&b->metrics, 1, c->model.num_experts, c->cluster.devices);
    b->x = moe_alloc(b->batch.num_tokens * c->model.hidden_size, sizeof(real), "bench");
    b->y = moe_alloc(b->batch.num_tokens * c->model.hidden_size, sizeof(real), "bench");
    moe_synthetic_vectors(&c->data, c->run.seed, c->model.hidden_size, &b->batch, 0, b->x, NULL);
}

static inline void bench_layer_forward(bench_layer *b) {
    moe_layer_forward(&b->layer, &b->context, b->x, b->y, &b->activations, &b->metrics.layer[0]);
    moe_layer_losses(&b->layer, &b->context, &b->activations, &b->metrics.layer[0]);
}

static inline void bench_layer_free(bench_layer *b) {
    moe_layer_free(&b->layer);
    moe_activations_free(&b->activations);
    moe_step_metrics_free(&b->metrics);
    moe_context_free(&b->context);
    moe_batch_free(&b->batch);
    moe_scratch_free(&b->scratch);
    moe_free(b->x);
    moe_free(b->y);
}

#endif
