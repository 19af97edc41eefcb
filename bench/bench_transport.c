/* bench_transport.c: dispatch + combine with exchange.transport = shared against the same by
 * MPI_Alltoallv: every mode and payload, at a step of usual size (S1) and at a tiny one. And whole
 * forward steps, as work that the exchange hands on must not be slower there.
 *
 * x and results are written anew before each call, as a gate and experts would write them: no cache
 * of another core holds them.
 *
 * bench: np=2,4 */
#include "bare.h"

typedef struct transport_bench {
    bench_layer layer[2]; /* alltoallv, shared: each keeps the memory that it works in */
    const moe_comm *comm;
} transport_bench;

static void run(const transport_bench *b, bench_layer *l) {
    moe_activations *a = &l->activations;
    const moe_config *c = &l->config;
    moe_exchange_dispatch(&a->exchange, b->comm, &a->plan, &l->context.placements[0], l->x,
                          c->model.hidden_size, l->batch.num_tokens_global * c->router.top_k);
    moe_exchange_combine(&a->exchange, &a->plan, a->buffers.results, c->cluster.devices_per_node,
                         l->y);
}

static void write_anew(real *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = -x[i];
    }
}

static void prepare(void *argument) {
    transport_bench *b = argument;
    for (int shared = 0; shared < 2; shared++) {
        bench_layer *l = &b->layer[shared];
        const int64_t h = l->config.model.hidden_size;
        write_anew(l->x, l->batch.num_tokens * h);
        write_anew(l->activations.buffers.results, l->activations.exchange.inbox.num_rows * h);
    }
}

static void step_shared(void *argument) {
    bench_layer_forward(&((transport_bench *)argument)->layer[1]);
}

static void step_alltoallv(void *argument) {
    bench_layer_forward(&((transport_bench *)argument)->layer[0]);
}

static void run_shared(void *argument) {
    transport_bench *b = argument;
    run(b, &b->layer[1]);
}

static void run_alltoallv(void *argument) {
    transport_bench *b = argument;
    run(b, &b->layer[0]);
}

static void bench(const moe_comm *comm,
                  const char *name,
                  const char *settings,
                  bool steps,
                  const char *aim) {
    transport_bench b = {.comm = comm};
    for (int shared = 0; shared < 2; shared++) {
        char text[512];
        snprintf(text, sizeof text, "%s exchange.transport=%s", settings,
                 shared ? "shared" : "alltoallv");
        bench_layer_init(&b.layer[shared], comm, text);
        bench_layer_forward(&b.layer[shared]);
    }
    bench_prepare = steps ? NULL : prepare;
    bench_row(comm, name,
              steps ? bench_pair(comm, step_shared, step_alltoallv, &b)
                    : bench_pair(comm, run_shared, run_alltoallv, &b),
              aim);
    bench_layer_free(&b.layer[0]);
    bench_layer_free(&b.layer[1]);
}

static const struct {
    const char *name, *settings, *aim;
} steps[] = {{"S1",
              "model.hidden_size=512 model.num_experts=64 router.top_k=6 "
              "data.tokens_per_device=1024",
              "2"},
             {"tiny",
              "model.hidden_size=64 model.num_experts=16 router.top_k=2 "
              "data.tokens_per_device=64",
              "3"}};
static const char *const modes[] = {"token", "selection", "two_level"};
static const struct {
    const char *name, *settings;
} payloads[] = {{"fp32", ""},
                {"bf16", "exchange.payload=bf16 exchange.combine_payload=bf16"},
                {"fp8/bf16", "exchange.payload=fp8 exchange.combine_payload=bf16"}};

/* width: of the experts, which take no part in dispatch and combine. */
static void bench_one(const moe_comm *comm, int s, int m, int p, int width, bool whole) {
    char name[80], settings[512];
    snprintf(settings, sizeof settings,
             "%s model.moe_intermediate_size=%d cluster.devices=%d cluster.devices_per_node=%d "
             "exchange.mode=%s %s",
             steps[s].settings, width, comm->size, comm->size / 2, modes[m], payloads[p].settings);
    snprintf(name, sizeof name, "%s, D %d, %s %s%s, bare: alltoallv", steps[s].name, comm->size,
             modes[m], payloads[p].name, whole ? ", forward step" : "");
    bench(comm, name, settings, whole, whole ? "-" : steps[s].aim);
}

int main(int argc, char **argv) {
    static const int widths[] = {256, 32};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (int s = 0; s < 2; s++) {
        for (int m = 0; m < 3; m++) {
            for (int p = 0; p < 3; p++) {
                bench_one(&comm, s, m, p, 16, false);
            }
        }
        bench_one(&comm, s, 0, 0, widths[s], true);
    }
    moe_comm_finalize(&comm);
    return 0;
}
