/* bench_transport.c: dispatch + combine with exchange.transport = shared against the same by
 * MPI_Alltoallv: every mode and payload, at a step of usual size (S1) and at a tiny one.
 *
 * bench: np=2,4 */
#include "bare.h"

typedef struct transport_bench {
    bench_layer layer[2]; /* alltoallv, shared: each keeps the memory that it works in */
    real *results;        /* [rows of the inbox, H] */
    const moe_comm *comm;
} transport_bench;

static void run(transport_bench *b, bench_layer *l) {
    moe_activations *a = &l->activations;
    const moe_config *c = &l->config;
    moe_exchange_dispatch(&a->exchange, b->comm, &a->plan, &l->context.placements[0], l->x,
                          c->model.hidden_size, l->batch.num_tokens_global * c->router.top_k);
    moe_exchange_combine(&a->exchange, &a->plan, b->results, c->cluster.devices_per_node, l->y);
}

static void run_shared(void *argument) {
    transport_bench *b = argument;
    run(b, &b->layer[1]);
}

static void run_alltoallv(void *argument) {
    transport_bench *b = argument;
    run(b, &b->layer[0]);
}

static void bench(const moe_comm *comm, const char *name, const char *settings, const char *aim) {
    transport_bench b = {.comm = comm};
    for (int shared = 0; shared < 2; shared++) {
        char text[512];
        snprintf(text, sizeof text, "%s exchange.transport=%s", settings,
                 shared ? "shared" : "alltoallv");
        bench_layer_init(&b.layer[shared], comm, text);
        bench_layer_forward(&b.layer[shared]);
    }
    int64_t rows = b.layer[0].activations.exchange.inbox.num_rows;
    b.results = moe_alloc_zero(rows * b.layer[0].config.model.hidden_size, sizeof(real), "bench");
    bench_row(comm, name, bench_pair(comm, run_shared, run_alltoallv, &b), aim);
    moe_free(b.results);
    bench_layer_free(&b.layer[0]);
    bench_layer_free(&b.layer[1]);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name, *settings, *aim;
    } steps[] = {{"S1",
                  "model.hidden_size=512 model.num_experts=64 router.top_k=6 "
                  "model.moe_intermediate_size=16 data.tokens_per_device=1024 cluster.devices=",
                  "2"},
                 {"tiny",
                  "model.hidden_size=64 model.num_experts=16 router.top_k=2 "
                  "model.moe_intermediate_size=16 data.tokens_per_device=64 cluster.devices=",
                  "3"}};
    static const char *const modes[] = {"token", "selection", "two_level"};
    static const struct {
        const char *name, *settings;
    } payloads[] = {{"fp32", ""},
                    {"bf16", "exchange.payload=bf16 exchange.combine_payload=bf16"},
                    {"fp8/bf16", "exchange.payload=fp8 exchange.combine_payload=bf16"}};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (int s = 0; s < 2; s++) {
        for (int m = 0; m < 3; m++) {
            for (int p = 0; p < 3; p++) {
                char name[64], settings[512];
                snprintf(settings, sizeof settings,
                         "%s%d cluster.devices_per_node=%d exchange.mode=%s %s", steps[s].settings,
                         comm.size, comm.size / 2, modes[m], payloads[p].settings);
                snprintf(name, sizeof name, "%s, D %d, %s %s, bare: alltoallv", steps[s].name,
                         comm.size, modes[m], payloads[p].name);
                bench(&comm, name, settings, comm.size == 2 ? steps[s].aim : "-");
            }
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
