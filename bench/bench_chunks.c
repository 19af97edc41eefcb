/* bench_chunks.c: a layer forward with exchange.chunks = 2, 4 and 8 against the same with one
 * chunk, in both modes of one hop; and how much of the exchange was hidden behind the experts.
 *
 * bench: np=2,4 */
#include "bare.h"

typedef struct chunks_bench {
    bench_layer layer[2]; /* one chunk, several */
    moe_overlap overlap;  /* of this rank */
} chunks_bench;

static void run_whole(void *argument) {
    chunks_bench *b = argument;
    bench_layer_forward(&b->layer[0]);
}

static void run_chunks(void *argument) {
    chunks_bench *b = argument;
    bench_layer_forward(&b->layer[1]);
    const moe_overlap *seconds = &b->layer[1].activations.exchange.air.seconds;
    b->overlap.in_flight += seconds->in_flight;
    b->overlap.waited += seconds->waited;
}

static void bench(const moe_comm *comm, const char *mode, int chunks) {
    chunks_bench b = {0};
    char name[96];
    for (int i = 0; i < 2; i++) {
        char text[512];
        snprintf(text, sizeof text,
                 "model.hidden_size=512 model.num_experts=64 router.top_k=6 "
                 "model.moe_intermediate_size=256 data.tokens_per_device=1024 cluster.devices=%d "
                 "exchange.mode=%s exchange.chunks=%d",
                 comm->size, mode, i == 0 ? 1 : chunks);
        bench_layer_init(&b.layer[i], comm, text);
    }
    const bench_times times = bench_pair(comm, run_chunks, run_whole, &b);
    snprintf(name, sizeof name, "S1, D %d, %s, %d chunks, %.0f %% hidden, bare: 1 chunk",
             comm->size, mode, chunks, 100 * (1 - b.overlap.waited / b.overlap.in_flight));
    bench_row(comm, name, times, "-");
    bench_layer_free(&b.layer[0]);
    bench_layer_free(&b.layer[1]);
}

int main(int argc, char **argv) {
    static const char *const modes[] = {"token", "selection"};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (int m = 0; m < 2; m++) {
        for (int chunks = 2; chunks <= 8; chunks *= 2) {
            bench(&comm, modes[m], chunks);
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
