/* calibrate.c: the constants of this host for the formulas of predict/cost.h.
 *
 * What is measured is what a step does, with all ranks at work at the same time: they share caches,
 * memory and, where there are more ranks than cores, cores.
 *
 *   products   experts of 512 x 512 in fp32, cold weights, by rows m; t = a + b m from 32 rows on
 *              gives the rate (b) and gemm_half_rows = a / b; one row gives the reading of weights
 *   memory     copying 16 MiB
 *   exchange   sizes, metadata and payload of every pair: three calls; the smallest by ranks gives
 *              exchange_us and intra_latency_us, the largest the bandwidth. A row is also packed,
 *              unpacked and added: two and three passes through memory
 *   router     a step whose vectors are short, less what the above explains of it
 *
 * All are medians of several repetitions of the slowest rank. */
#include "run/calibrate.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/gemm.h"
#include "config/value.h"
#include "data/synthetic.h"
#include "experts/ffn.h"
#include "model/stack.h"
#include "output/screen.h"
#include "predict/prediction.h"
#include "tally/tally.h"
#include "world/topology.h"

enum { REPEATS = 11, STEPS = 20, WIDTH = 512, EXPERTS = 16, COPY_BYTES = 16 << 20 };

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

typedef void (*work)(void *);

/* Collective. The median over `repeats` of the slowest rank, after one that is not counted. */
static double median_seconds(const moe_comm *comm, int repeats, work f, void *argument) {
    double seconds[STEPS + 1] = {0};
    for (int i = 0; i <= repeats; i++) {
        moe_comm_barrier(comm);
        const double begin = moe_comm_time();
        f(argument);
        seconds[i] = moe_comm_time() - begin;
        moe_comm_max_f64(comm, &seconds[i], 1);
    }
    qsort(seconds + 1, (size_t)repeats, sizeof *seconds, ascending);
    return seconds[1 + repeats / 2];
}

/* --- products --- */

typedef struct products {
    moe_ffn ffn;
    int64_t rows;
    real *x, *scratch, *y; /* [threads] of rows x WIDTH each; scratch of two hidden vectors */
} products;

static void multiply(void *argument) {
    products *p = argument;
    const int64_t block = p->rows * WIDTH;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < EXPERTS; i++) {
        const int64_t mine = omp_get_thread_num() * block;
        real *h1 = p->scratch + 2 * mine;
        moe_ffn_forward(&p->ffn, i, p->rows, p->x + mine, NULL, h1, h1 + block, h1, p->y + mine);
    }
}

enum { NUM_ROWS = 5 };
static const int64_t row_counts[NUM_ROWS] = {1, 8, 32, 128, 512};

/* seconds [NUM_ROWS] of one expert */
static void measure_products(const moe_comm *comm, double seconds[NUM_ROWS]) {
    int32_t id[EXPERTS];
    const int64_t threads = omp_get_max_threads(), most = row_counts[NUM_ROWS - 1] * WIDTH;
    products p = {.x = moe_alloc_zero(threads * most, sizeof(real), "calibration"),
                  .scratch = moe_alloc_zero(threads * 2 * most, sizeof(real), "calibration"),
                  .y = moe_alloc_zero(threads * most, sizeof(real), "calibration")};
    for (int32_t i = 0; i < EXPERTS; i++) {
        id[i] = i;
    }
    const moe_ffn_shape shape = {.type = MOE_EXPERT_SWIGLU,
                                 .count = EXPERTS,
                                 .hidden = WIDTH,
                                 .width = WIDTH,
                                 .seed = 1,
                                 .id = id};
    moe_ffn_init(&p.ffn, &shape);
    for (int i = 0; i < NUM_ROWS; i++) {
        p.rows = row_counts[i];
        seconds[i] = median_seconds(comm, REPEATS, multiply, &p) / EXPERTS;
    }
    moe_ffn_free(&p.ffn);
    moe_free(p.x);
    moe_free(p.scratch);
    moe_free(p.y);
}

/* --- memory --- */

typedef struct copying {
    char *from, *to;
} copying;

static void copy(void *argument) {
    copying *c = argument;
    const int64_t part = COPY_BYTES / 64;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < 64; i++) {
        memcpy(c->to + i * part, c->from + i * part, (size_t)part);
    }
}

/* Bytes a second that are read and written. */
static double measure_memory(const moe_comm *comm) {
    copying c = {moe_alloc_zero(COPY_BYTES, 1, "calibration"),
                 moe_alloc_zero(COPY_BYTES, 1, "calibration")};
    const double seconds = median_seconds(comm, REPEATS, copy, &c);
    moe_free(c.from);
    moe_free(c.to);
    return 2.0 * COPY_BYTES / seconds;
}

/* --- exchanges --- */

typedef struct exchanging {
    const moe_comm *comm;
    int ranks;      /* the first ones take part */
    int64_t bytes;  /* for each pair */
    int64_t *sizes; /* [4][size]: counts, offsets, and two for moe_comm_alltoall */
    char *out, *in;
} exchanging;

static void exchange(void *argument) {
    exchanging *e = argument;
    const int size = e->comm->size;
    int64_t *count = e->sizes, *offset = e->sizes + size;
    const bool mine = e->comm->rank < e->ranks;
    moe_comm_alltoall(e->comm, e->sizes + 2 * size, e->sizes + 3 * size, sizeof(int64_t));
    for (int part = 0; part < 2; part++) { /* metadata, then payload */
        const int64_t bytes = part == 0 ? 16 : e->bytes;
        for (int q = 0; q < size; q++) {
            count[q] = mine && q < e->ranks && q != e->comm->rank ? bytes : 0;
            offset[q] = q * e->bytes;
        }
        moe_comm_alltoallv(e->comm, (moe_blocks){e->out, count, offset},
                           (moe_blocks){e->in, count, offset}, 1, size * e->bytes);
    }
}

static double measure_exchange(const moe_comm *comm, int ranks, int64_t bytes) {
    exchanging e = {.comm = comm, .ranks = ranks, .bytes = bytes};
    e.sizes = moe_alloc_zero(4 * (int64_t)comm->size, sizeof *e.sizes, "calibration");
    e.out = moe_alloc_zero(comm->size * bytes, 1, "calibration");
    e.in = moe_alloc_zero(comm->size * bytes, 1, "calibration");
    const double seconds = median_seconds(comm, REPEATS, exchange, &e);
    moe_free(e.sizes);
    moe_free(e.out);
    moe_free(e.in);
    return seconds;
}

/* --- fits --- */

/* t = a + b x with the least relative squares. */
static void fit_line(const double *x, const double *t, int n, double *a, double *b) {
    double s = 0, sx = 0, sxx = 0, st = 0, sxt = 0;
    for (int i = 0; i < n; i++) {
        const double w = 1 / (t[i] * t[i]);
        s += w;
        sx += w * x[i];
        sxx += w * x[i] * x[i];
        st += w * t[i];
        sxt += w * x[i] * t[i];
    }
    const double determinant = s * sxx - sx * sx;
    *b = determinant > 0 ? (s * sxt - sx * st) / determinant : 0;
    *a = (st - *b * sx) / s;
}

static void fit_products(const double seconds[NUM_ROWS], moe_cluster_config *k) {
    const double weights = 3.0 * WIDTH * WIDTH;
    double x[NUM_ROWS], a, b;
    for (int i = 0; i < NUM_ROWS; i++) {
        x[i] = (double)row_counts[i];
    }
    fit_line(x + 2, seconds + 2, NUM_ROWS - 2, &a, &b);
    k->device_tflops = 2 * weights / b / 1e12;
    k->efficiency = 1;
    k->gemm_half_rows = fmax(0, a / b);
    k->memory_efficiency =
        fmin(1, weights * (double)sizeof(real) / seconds[0] / (k->memory_gbps * 1e9));
}

enum { LEAST_BYTES = 64, MOST_BYTES = 1 << 20, MOST_SIZES = 20 };

/* The largest block that does not take more than 64 MiB on a rank. */
static int64_t largest_block(const moe_comm *comm) {
    int64_t bytes = MOST_BYTES;
    while (bytes * comm->size > 64 << 20) {
        bytes /= 2;
    }
    return bytes;
}

static void measure_links(const moe_comm *comm, moe_cluster_config *k) {
    double doublings[MOST_SIZES], seconds[MOST_SIZES], latency = 0, fixed = 0;
    int n = 0;
    if (comm->size == 1) { /* nothing leaves the device */
        k->exchange_us = k->intra_latency_us = k->inter_latency_us = 0;
        k->intra_gbps = k->inter_gbps = k->memory_gbps;
        return;
    }
    for (int ranks = 2; ranks <= comm->size && n < MOST_SIZES; ranks *= 2) {
        doublings[n] = log2(ranks);
        seconds[n++] = measure_exchange(comm, ranks, LEAST_BYTES);
    }
    fit_line(doublings, seconds, n, &fixed, &latency);
    if (n == 1 || latency < 0 || fixed < 0) { /* one size, or noise: all of it is fixed */
        latency = 0;
        fixed = seconds[n - 1];
    }
    const int64_t bytes = largest_block(comm);
    const double large = measure_exchange(comm, comm->size, bytes) - seconds[n - 1],
                 sent = (double)bytes * (comm->size - 1);
    const double a_byte = fmax(large, 1e-9) / sent + 5 / (k->memory_gbps * 1e9);
    k->exchange_us = 1e6 * fixed;
    k->intra_latency_us = k->inter_latency_us = 1e6 * latency;
    k->intra_gbps = k->inter_gbps = 1 / a_byte / 1e9;
}

/* --- steps --- */

typedef struct model {
    moe_config c;
    moe_input input;
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_stack stack;
    moe_observer tally;
    moe_step_metrics metrics;
    moe_status status;
    real *x; /* [T,H]: a step leaves its output where its input was */
} model;

static void make_model(model *m, const moe_comm *comm, const moe_setting *settings) {
    *m = (model){0};
    moe_config_defaults(&m->c);
    moe_value_override_all(&m->c, settings, &m->status);
    moe_config_resolve(&m->c, comm->size, &m->status);
    MOE_ASSERT(m->status.code == MOE_OK);
    const moe_config *c = &m->c;
    moe_batch_layout(&m->batch, c->data.tokens_per_device * comm->size, c->data.sequence_length,
                     comm->size, comm->rank, comm->size);
    moe_context_init(&m->context, comm, c, &m->batch, &m->input, &m->scratch);
    moe_stack_init(&m->stack, &m->context, 1, false);
    moe_stack_turn_weights(&m->stack);
    moe_step_metrics_init(&m->metrics, moe_config_moe_layers(c), c->model.num_experts, comm->size);
    m->tally = (moe_observer){.after_layer = moe_tally_after_layer};
}

static void make_step(void *argument) {
    model *m = argument;
    memcpy(moe_stack_input(&m->stack), m->x,
           (size_t)(m->batch.num_tokens * m->c.model.hidden_size) * sizeof(real));
    moe_step_metrics_clear(&m->metrics);
    m->metrics.num_tokens = m->batch.num_tokens_global;
    moe_stack_forward(&m->stack, &m->tally, &m->metrics, &m->status);
}

static void free_model(model *m) {
    moe_free(m->x);
    moe_stack_free(&m->stack);
    moe_step_metrics_free(&m->metrics);
    moe_context_free(&m->context);
    moe_batch_free(&m->batch);
    moe_scratch_free(&m->scratch);
}

/* What the constants of k predict for the last step. */
static double predicted_seconds(const model *m, const moe_cluster_config *k) {
    moe_config c = m->c;
    const moe_cluster_config own = c.cluster;
    c.cluster = *k;
    c.cluster.devices = own.devices;
    c.cluster.devices_per_node = own.devices_per_node;
    return moe_prediction_of(&c, &m->metrics).seconds[MOE_PREDICTED_STEP];
}

typedef struct comparison {
    const char *name;
    const moe_setting *settings;
    double measured, predicted;
} comparison;

#define SIZES(tokens, hidden, width, experts, k)                                                \
    MOE_SETTINGS(MOE_SET(data, tokens_per_device, tokens), MOE_SET(model, hidden_size, hidden), \
                 MOE_SET(model, moe_intermediate_size, width),                                  \
                 MOE_SET(model, num_experts, experts), MOE_SET(router, top_k, k))

/* Collective. The measured time of steps; the model is left for a prediction. */
static double measure_steps(model *m, const moe_comm *comm, const moe_setting *settings) {
    make_model(m, comm, settings);
    m->x = moe_alloc(m->batch.num_tokens * m->c.model.hidden_size, sizeof(real), "calibration");
    moe_synthetic_vectors(&m->c.data, m->c.run.seed, m->c.model.hidden_size, &m->batch, 0, m->x,
                          NULL);
    return median_seconds(comm, STEPS, make_step, m);
}

/* Short vectors: most of the step is choosing, planning and counting. The number of experts has to
 * be a multiple of the ranks. */
static void measure_router(const moe_comm *comm, moe_cluster_config *k) {
    model m;
    const double seconds = measure_steps(
        &m, comm, comm->size <= 64 ? SIZES(1024, 32, 16, 64, 4) : SIZES(64, 32, 16, 4096, 4));
    const double left = seconds - predicted_seconds(&m, k);
    const double scores = (double)m.c.data.tokens_per_device * m.c.model.num_experts;
    k->router_ns = 1e9 * fmax(0, left) / scores;
    free_model(&m);
}

/* --- what is shown and written --- */

static void print_products(const moe_comm *comm, const double seconds[NUM_ROWS]) {
    printf("Experts of %d x %d in %s, %d thread%s on each of %d rank%s\n  %6s %12s %10s\n", WIDTH,
           WIDTH, sizeof(real) == 4 ? "fp32" : "fp64", omp_get_max_threads(),
           omp_get_max_threads() == 1 ? "" : "s", comm->size, comm->size == 1 ? "" : "s", "rows",
           "us", "GFLOP/s");
    for (int i = 0; i < NUM_ROWS; i++) {
        printf("  %6lld %12.2f %10.1f\n", (long long)row_counts[i], 1e6 * seconds[i],
               6.0 * WIDTH * WIDTH * (double)row_counts[i] / seconds[i] / 1e9);
    }
}

/* Every rank measures, rank 0 prints: bytes of a pair by numbers of ranks. */
static void show_exchanges(const moe_comm *comm) {
    for (int ranks = 2; ranks <= comm->size; ranks *= 2) {
        if (comm->rank == 0) {
            printf("%s", ranks == 2 ? "Exchanges, us by bytes for each pair\n" : "");
            printf("  %d ranks:", ranks);
        }
        for (int64_t bytes = 1024; bytes <= largest_block(comm); bytes *= 16) {
            const double seconds = measure_exchange(comm, ranks, bytes);
            if (comm->rank == 0) {
                printf(" %lld: %.1f", (long long)bytes, 1e6 * seconds);
            }
        }
        if (comm->rank == 0) {
            printf("\n");
        }
    }
}

static void write_file(const moe_comm *comm,
                       const moe_cluster_config *k,
                       const char *path,
                       moe_status *st) {
    char text[2048];
    const char *links = comm->size == 1       ? "one rank: nothing leaves the device"
                        : comm->num_hosts > 1 ? "measured over several hosts at once"
                                              : "packing, MPI_Alltoallv and unpacking";
    snprintf(text, sizeof text,
             "; Measured by moesim %s --calibrate with %d ranks of %d threads on %d host%s.\n\n"
             "[cluster]\n"
             "devices_per_node = %d\n"
             "intra_gbps = %.6g ; %s\n"
             "inter_gbps = %.6g ; %s\n"
             "link_efficiency = 1\n"
             "intra_latency_us = %.6g\n"
             "inter_latency_us = %.6g\n"
             "exchange_us = %.6g ; sizes, metadata and payload: three calls\n"
             "device_tflops = %.6g ; of many rows\n"
             "efficiency = %.6g\n"
             "gemm_half_rows = %.6g\n"
             "memory_gbps = %.6g ; copying, read and written\n"
             "memory_efficiency = %.6g ; reading the weights of an expert for one row\n"
             "launch_us = 0\n"
             "router_ns = %.6g ; choosing, planning and counting\n",
             MOESIM_VERSION, comm->size, omp_get_max_threads(), comm->num_hosts,
             comm->num_hosts == 1 ? "" : "s", comm->num_hosts == 1 ? 0 : comm->local_size,
             k->intra_gbps, links, k->inter_gbps,
             comm->num_hosts == 1 ? "as intra_gbps: there is one host" : links, k->intra_latency_us,
             k->inter_latency_us, k->exchange_us, k->device_tflops, k->efficiency,
             k->gemm_half_rows, k->memory_gbps, k->memory_efficiency, k->router_ns);
    moe_file_write(path, text, st);
}

/* Collective. Steps of other sizes than those that were fitted. */
static void compare_steps(const moe_comm *comm, const moe_cluster_config *k) {
    const comparison sizes[] = {
        {"T 512, H 512, F 256, N 64, K 6", SIZES(512, 512, 256, 64, 6), 0, 0},
        {"T 1024, H 256, F 512, N 32, K 4", SIZES(1024, 256, 512, 32, 4), 0, 0},
        {"T 2048, H 384, F 192, N 128, K 8", SIZES(2048, 384, 192, 128, 8), 0, 0},
    };
    if (comm->rank == 0) {
        printf("Steps, median of %d\n  %-34s %10s %10s %8s\n", STEPS, "", "measured", "predicted",
               "error");
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        model m;
        if (sizes[i].settings[3].key != MOE_KEY(model, num_experts) || 32 % comm->size != 0) {
            continue; /* experts do not divide among the ranks */
        }
        const double measured = measure_steps(&m, comm, sizes[i].settings),
                     predicted = predicted_seconds(&m, k);
        if (comm->rank == 0) {
            printf("  %-34s %7.2f ms %7.2f ms %+6.1f %%%s\n", sizes[i].name, 1e3 * measured,
                   1e3 * predicted, 100 * (predicted / measured - 1),
                   fabs(predicted / measured - 1) > 0.2 ? "  more than 20 %" : "");
        }
        free_model(&m);
    }
}

/* Whether the host computes as fast as when it was measured, said by rank 0 where it does not: then
 * errors are those of the host's other work. */
static void check_drift(const moe_comm *comm, const double before[NUM_ROWS]) {
    double after[NUM_ROWS], drift = 0;
    measure_products(comm, after);
    for (int i = 0; i < NUM_ROWS; i++) {
        drift += (after[i] / before[i] - 1) / NUM_ROWS;
    }
    if (comm->rank == 0 && fabs(drift) > 0.1) {
        printf(
            "Products took %.0f %% %s at the end than at the beginning: the host has other work, "
            "measure again.\n",
            100 * fabs(drift), drift > 0 ? "longer" : "less");
    }
}

/* --- together --- */

/* Rank 0 tries whether the file can be written, before anything is measured. */
static int check_path(const moe_comm *comm, const char *path, bool force, moe_status *st) {
    if (comm->rank == 0) {
        char folder[1024];
        const char *slash = strrchr(path, '/');
        snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) + 1 : 1,
                 slash ? path : ".");
        if (!force && access(path, F_OK) == 0) {
            moe_fail(st, MOE_USER, "--calibrate %s: the file exists, --force replaces it", path);
        } else if (path[0] == '\0' || (slash && slash[1] == '\0') || access(folder, W_OK) != 0) {
            moe_fail(st, MOE_USER, "--calibrate %s: no file can be written there", path);
        }
    }
    return moe_comm_agree(comm, st);
}

int moe_calibrate(const moe_comm *comm, const char *path, bool force, moe_status *st) {
    moe_topology topology;
    moe_cluster_config k = {.link_efficiency = 1};
    double seconds[NUM_ROWS];
    if (check_path(comm, path, force, st) != MOE_OK) {
        return st->code;
    }
    moe_gemm_init();
    moe_topology_init(comm, 0, &topology);
    k.memory_gbps = measure_memory(comm) / 1e9;
    measure_products(comm, seconds);
    fit_products(seconds, &k);
    measure_links(comm, &k);
    measure_router(comm, &k);
    if (comm->rank == 0) {
        print_products(comm, seconds);
        printf("Memory: %.1f GB/s of each rank, read and written\n", k.memory_gbps);
        write_file(comm, &k, path, st);
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return st->code;
    }
    show_exchanges(comm);
    compare_steps(comm, &k);
    check_drift(comm, seconds);
    if (comm->rank == 0) {
        if (topology.oversubscribed) {
            printf("More ranks than cores: they wait for each other, and times vary.\n");
        }
        printf("%s\n", path);
    }
    return MOE_OK;
}
