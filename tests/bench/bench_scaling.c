/* bench_scaling.c: how the cost of a layer grows as tokens, experts and ranks double.   bench: np=1,2,4,8
 * Column `bare` is what linear growth from the line before would cost, `ratio` that over what was measured: 1 = linear, above 1 = cheaper. With more ranks
 * the work stays the same (8 devices, folded), and so do the cores: only the exchange grows. Lines of one number of ranks are measured in one run, those
 * of different numbers in runs one after the other. */
#include "bench.h"

static void run(void *argument) {
    bench_layer_forward(argument);
}

static double milliseconds(const moe_comm *comm, int64_t tokens, int n) {
    bench_layer b;
    char settings[512];
    snprintf(settings, sizeof settings,
             "cluster.devices=8 model.hidden_size=256 model.moe_intermediate_size=128 router.top_k=6 model.num_experts=%d "
             "data.tokens_per_device=%lld",
             n, (long long)(tokens / 8));
    bench_layer_init(&b, comm, settings);
    double seconds = bench_alone(comm, run, &b);
    bench_layer_free(&b);
    return 1e3 * seconds;
}

/* linear: factor by which the line before would grow. */
static double row(const moe_comm *comm, int64_t tokens, int n, double before, double linear) {
    double ms = milliseconds(comm, tokens, n);
    if (comm->rank != 0) return ms;
    printf("%lld tokens, %d experts\t%.3f\t", (long long)tokens, n, ms);
    if (before > 0)
        printf("%.3f\tms\t%.2f\t-\t1\n", before * linear, before * linear / ms);
    else
        printf("-\tms\t-\t-\t-\n");
    fflush(stdout);
    return ms;
}

int main(int argc, char **argv) {
    moe_comm comm;
    double before = 0;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (int64_t tokens = 512; tokens <= 4096; tokens *= 2) {
        before = row(&comm, tokens, 64, before, 2);
    }
    before = 0;
    for (int n = 32; n <= 256; n *= 2) { /* the same rows over more experts: the same arithmetic, more weights and scores */
        before = row(&comm, 2048, n, before, 1);
    }
    moe_comm_finalize(&comm);
    return 0;
}
