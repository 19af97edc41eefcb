/* bench_exchange.c: dispatch + combine against a bare pack + MPI_Alltoallv + unpack-and-add of the
 * same rows. moesim's side includes what the bare one is spared: sizes, metadata
 * (experts and weights of each row), grouping by expert. Two bare versions: `all rows` sends
 * everything through MPI_Alltoallv, the rows that stay on their rank too; `other ranks` leaves
 * those where they are, as moesim does. The bare versions always send fp32: with a narrow payload
 * the ratio says what the smaller rows gain, or the conversions cost.
 *
 * bench: np=2,4 */
#include "bare.h"

typedef struct exchange_bench {
    bench_layer layer;
    const moe_comm *comm;
    bare_exchange bare;
    real *results; /* [rows of the inbox, H] */
} exchange_bench;

static void run_moesim(void *argument) {
    exchange_bench *b = argument;
    moe_activations *a = &b->layer.activations;
    const moe_config *c = &b->layer.config;
    moe_exchange_dispatch(&a->exchange, b->comm, &a->plan, &b->layer.context.placements[0],
                          b->layer.x, c->model.hidden_size,
                          b->layer.batch.num_tokens_global * c->router.top_k);
    moe_exchange_combine(&a->exchange, &a->plan, b->results, c->cluster.devices_per_node,
                         b->layer.y);
}

static void run_bare(void *argument) {
    exchange_bench *b = argument;
    bare_dispatch(&b->bare, b->comm, b->layer.x);
    bare_combine(&b->bare, b->comm, b->results, b->layer.y);
}

static void bench(const moe_comm *comm, const char *name, const char *settings) {
    exchange_bench b = {.comm = comm};
    char what[128];
    bench_layer_init(&b.layer, comm, settings);
    bench_layer_forward(&b.layer);
    int64_t h = b.layer.config.model.hidden_size,
            rows = b.layer.activations.exchange.inbox.num_rows;
    b.results = moe_alloc_zero(rows * h, sizeof(real), "bench");
    for (int remote = 0; remote < 2; remote++) {
        bare_exchange_init(&b.bare, comm, &b.layer.activations.plan, h, remote == 1);
        snprintf(what, sizeof what, "%s, bare: %s", name, remote ? "other ranks" : "all rows");
        bench_row(comm, what, bench_pair(comm, run_moesim, run_bare, &b), remote ? "-" : "0.9");
        bare_exchange_free(&b.bare);
    }
    moe_free(b.results);
    bench_layer_free(&b.layer);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    const char *shape = "model.hidden_size=512 model.num_experts=64 router.top_k=6 "
                        "model.moe_intermediate_size=16 data.tokens_per_device=";
    char settings[512];
    const char *const modes[] = {"token", "selection",
                                 "token exchange.payload=bf16 exchange.combine_payload=bf16",
                                 "token exchange.payload=fp8 exchange.combine_payload=bf16"};
    const char *const names[] = {"token", "selection", "token bf16", "token fp8/bf16"};
    for (int tokens = 256; tokens <= 4096; tokens *= 4) {
        for (int m = 0; m < 4; m++) {
            char name[64];
            snprintf(settings, sizeof settings, "%s%d exchange.mode=%s", shape, tokens, modes[m]);
            snprintf(name, sizeof name, "T %d, H 512, %s", tokens, names[m]);
            bench(&comm, name, settings);
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
