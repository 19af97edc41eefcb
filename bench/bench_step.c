/* bench_step.c: a whole layer, forward, against the sum of the bare parts: gate GEMM, plain router,
 * pack + MPI_Alltoallv + unpack, loop of GEMMs. Beside it: does a step allocate after
 * the first one? (moesim's own calls are counted; MPI and BLAS have theirs.) And its collectives;
 * bare has 2.
 *
 * bench: np=2,4 */
#include "bare.h"
#include "collectives.h"

typedef struct step_bench {
    bench_layer layer;
    const moe_comm *comm;
    bare_exchange exchange;
    bare_experts experts;
    real *logits, *y;
    int32_t *expert;
    double *weight;
} step_bench;

static void run_moesim(void *argument) {
    step_bench *b = argument;
    bench_layer_forward(&b->layer);
}

static void run_gate(void *argument) {
    step_bench *b = argument;
    bare_gate(&b->layer, b->logits);
}
static void run_router(void *argument) {
    step_bench *b = argument;
    bare_router(&b->layer, b->logits, b->expert, b->weight);
}
static void run_dispatch(void *argument) {
    step_bench *b = argument;
    bare_dispatch(&b->exchange, b->comm, b->layer.x);
}
static void run_experts(void *argument) {
    step_bench *b = argument;
    bare_experts_run(&b->experts, false);
}
static void run_combine(void *argument) {
    step_bench *b = argument;
    bare_combine(&b->exchange, b->comm, NULL, b->y);
}

static const bench_function parts[] = {run_gate, run_router, run_dispatch, run_experts,
                                       run_combine};
static const char *const part_names[] = {"gate", "router", "dispatch", "experts", "combine"};
enum { NUM_PARTS = sizeof parts / sizeof parts[0] };

static void run_bare(void *argument) {
    for (int i = 0; i < NUM_PARTS; i++) {
        parts[i](argument);
    }
}

static void prepare(step_bench *b, const moe_comm *comm, const char *settings) {
    bench_layer_init(&b->layer, comm, settings);
    bench_layer_forward(&b->layer);
    const moe_config *c = &b->layer.config;
    int64_t tokens = b->layer.batch.num_tokens, selections = tokens * c->router.top_k;
    b->comm = comm;
    b->logits = moe_alloc(tokens * c->model.num_experts, sizeof(real), "bench");
    b->y = moe_alloc(tokens * c->model.hidden_size, sizeof(real), "bench");
    b->expert = moe_alloc(selections, sizeof(int32_t), "bench");
    b->weight = moe_alloc(selections, sizeof(double), "bench");
    bare_exchange_init(&b->exchange, comm, &b->layer.activations.plan, c->model.hidden_size, false);
    bare_experts_init(&b->experts, &b->layer.layer.experts,
                      b->layer.activations.exchange.inbox.slot_offset, false);
}

static void clean_up(step_bench *b) {
    bare_exchange_free(&b->exchange);
    bare_experts_free(&b->experts);
    moe_free(b->logits);
    moe_free(b->y);
    moe_free(b->expert);
    moe_free(b->weight);
    bench_layer_free(&b->layer);
}

/* Milliseconds of each phase beside those of each bare part, medians: where a step's time goes. */
static void print_phases(step_bench *b) {
    double t[MOE_NUM_PHASES][BENCH_LEAST_REPEATS];
    char line[512];
    int length = 0;
    for (int i = 0; i < BENCH_LEAST_REPEATS; i++) {
        bench_once(b->comm, run_moesim, b);
        for (int p = 0; p < MOE_PHASE_BACKWARD; p++) {
            t[p][i] = b->layer.metrics.layer[0].phase_seconds[p];
        }
    }
    for (int p = 0; p < MOE_PHASE_BACKWARD; p++) {
        length +=
            snprintf(line + length, sizeof line - (size_t)length, " %s %.3f", moe_phase_names[p],
                     1e3 * bench_quantile(t[p], BENCH_LEAST_REPEATS, 0.5));
    }
    length += snprintf(line + length, sizeof line - (size_t)length, "; bare");
    for (int p = 0; p < NUM_PARTS; p++) {
        for (int i = 0; i < BENCH_LEAST_REPEATS; i++) {
            t[0][i] = bench_once(b->comm, parts[p], b);
        }
        length += snprintf(line + length, sizeof line - (size_t)length, " %s %.3f", part_names[p],
                           1e3 * bench_quantile(t[0], BENCH_LEAST_REPEATS, 0.5));
    }
    if (b->comm->rank == 0) {
        printf("  ms:%s\n", line);
    }
}

static void print_allocations(step_bench *b, const char *name) {
    enum { STEPS = 10 };
    int64_t before = moe_alloc_count(), live = moe_alloc_live_bytes();
    for (int i = 0; i < STEPS; i++) {
        bench_layer_forward(&b->layer);
    }
    int64_t counted[2] = {moe_alloc_count() - before, moe_alloc_live_bytes() - live};
    moe_comm_max_i64(b->comm, counted, 2);
    if (b->comm->rank != 0) {
        return;
    }
    printf("%s: allocations in a step after the first\t%.1f\t0\tcalls\t-\t-\t0\n", name,
           (double)counted[0] / STEPS);
    if (counted[1]) {
        printf("%s: memory grew by %lld bytes in %d steps\n", name, (long long)counted[1], STEPS);
    }
}

static void print_collectives(step_bench *b, const char *name) {
    collectives before = collectives_made;
    bench_layer_forward(&b->layer);
    collectives_row(b->comm, name, before);
}

static void bench(const moe_comm *comm, const char *name, const char *settings) {
    step_bench b = {0};
    char what[128];
    prepare(&b, comm, settings);
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        if (!bench_fits(comm, threads)) {
            continue;
        }
        snprintf(what, sizeof what, "%s, %d thread%s", name, threads, threads > 1 ? "s" : "");
        bench_row(comm, what, bench_pair(comm, run_moesim, run_bare, &b), "0.8");
    }
    omp_set_num_threads(1);
    print_phases(&b);
    print_allocations(&b, name);
    print_collectives(&b, name);
    clean_up(&b);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    bench(&comm, "T 1024, H 512, F 256, N 64, K 6",
          "data.tokens_per_device=1024 model.hidden_size=512 model.moe_intermediate_size=256 "
          "model.num_experts=64 router.top_k=6");
    bench(&comm, "T 64, H 64, F 32, N 16, K 2",
          "data.tokens_per_device=64 model.hidden_size=64 model.moe_intermediate_size=32 "
          "model.num_experts=16 router.top_k=2");
    moe_comm_finalize(&comm);
    return 0;
}
