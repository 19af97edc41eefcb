/* bench_scaling.c: how the cost of a layer grows as tokens, experts and ranks double. Column `bare`
 * is what linear growth from the line before would cost, `ratio` that over what was measured: 1 =
 * linear, above 1 = cheaper. With more ranks the work stays the same (8 devices, folded), and so do
 * the cores: only the exchange grows. Lines of one number of ranks are measured in one run, those
 * of different numbers in runs one after the other.
 *
 * bench: np=1,2,4,8 */
#include "bench.h"

static void run(void *argument) {
    bench_layer_forward(argument);
}

enum { POINTS = 4, ROUNDS = 15 };

typedef struct point {
    int64_t tokens;
    int32_t experts;
    bench_layer layer;
    double ms[ROUNDS];
} point;

static void prepare(point *p, const moe_comm *comm) {
    char settings[512];
    snprintf(settings, sizeof settings,
             "cluster.devices=8 model.hidden_size=256 model.moe_intermediate_size=128 "
             "router.top_k=6 model.num_experts=%d "
             "data.tokens_per_device=%lld",
             p->experts, (long long)(p->tokens / 8));
    bench_layer_init(&p->layer, comm, settings);
    bench_once(comm, run, &p->layer);
}

/* before: the point of half the size, NULL for the first. growth: what linear cost would multiply
 * it by. */
static void print_row(const point *p, const point *before, double growth) {
    double ms[ROUNDS], linear[ROUNDS], ratio[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        ms[i] = p->ms[i];
        linear[i] = before ? before->ms[i] * growth : 0;
        ratio[i] = linear[i] / ms[i];
    }
    printf("%lld tokens, %d experts\t%.3f\t", (long long)p->tokens, p->experts,
           bench_quantile(ms, ROUNDS, 0.5));
    if (before) {
        printf("%.3f\tms\t%.2f\t%.2f-%.2f\t1\n", bench_quantile(linear, ROUNDS, 0.5),
               bench_quantile(ratio, ROUNDS, 0.5), bench_quantile(ratio, ROUNDS, 0.25),
               bench_quantile(ratio, ROUNDS, 0.75));
    } else {
        printf("-\tms\t-\t-\t-\n");
    }
    fflush(stdout);
}

/* All points in turns, so that each round compares times of the same moment. */
static void sweep(const moe_comm *comm,
                  int64_t tokens,
                  int32_t experts,
                  int64_t token_step,
                  int32_t expert_step) {
    static point p[POINTS];
    for (int i = 0; i < POINTS; i++, tokens *= token_step, experts *= expert_step) {
        p[i].tokens = tokens;
        p[i].experts = experts;
        prepare(&p[i], comm);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < POINTS; i++) {
            p[i].ms[round] = 1e3 * bench_once(comm, run, &p[i].layer);
        }
    }
    for (int i = 0; i < POINTS; i++) {
        if (comm->rank == 0) {
            print_row(&p[i], i ? &p[i - 1] : NULL, (double)token_step);
        }
        bench_layer_free(&p[i].layer);
    }
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    sweep(&comm, 512, 64, 2, 1);
    sweep(&comm, 2048, 32, 1, 2); /* the same rows over more experts: the same arithmetic, more
                                     weights and scores, smaller GEMMs */
    moe_comm_finalize(&comm);
    return 0;
}
