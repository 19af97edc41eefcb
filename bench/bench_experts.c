/* bench_experts.c: the grouped experts, forward and forward + backward, against a bare loop of
 * cblas_sgemm over the same shapes. moesim's side includes what the bare loop is
 * spared: gathering rows by expert, the activation, weighting and adding up each row's experts, the
 * gradient of the weights. Rows per expert are those that the router chose; both sides use the same
 * threads, over experts.
 *
 * bench: np=1 */
#include "bare.h"
#include "model/layer.h"

extern char *openblas_get_corename(void) __attribute__((weak));

typedef struct experts_bench {
    bench_layer layer;
    bare_experts bare;
    moe_ffn_gradient gradient;
    moe_expert_buffers buffers;
    bool backward;
} experts_bench;

static void run_moesim(void *argument) {
    experts_bench *b = argument;
    const moe_inbox *in = &b->layer.activations.exchange.inbox;
    moe_experts_forward(&b->layer.layer.experts, in, 0, &b->buffers, b->backward,
                        &(moe_experts_pause){0});
    if (b->backward) {
        moe_experts_backward(&b->layer.layer.experts, &b->gradient, in, 0, &b->buffers, true,
                             &(moe_experts_pause){0});
    }
}

static void run_bare(void *argument) {
    experts_bench *b = argument;
    bare_experts_run(&b->bare, b->backward);
}

static void make_gradient(experts_bench *b) {
    const moe_ffn *f = &b->layer.layer.experts;
    int64_t size = f->count * f->hidden * f->width;
    b->gradient =
        (moe_ffn_gradient){.w1 = moe_alloc_zero(size, sizeof(real), "bench"),
                           .w3 = f->w3 ? moe_alloc_zero(size, sizeof(real), "bench") : NULL,
                           .w2 = moe_alloc_zero(size, sizeof(real), "bench")};
    moe_exchange_dispatch_gradient(&b->layer.activations.exchange, &b->layer.activations.plan,
                                   b->layer.x);
}

static void bench(const moe_comm *comm,
                  int64_t h,
                  int64_t f,
                  int64_t n,
                  int64_t rows,
                  bool backward) {
    experts_bench b = {.backward = backward};
    char settings[512], what[128];
    snprintf(settings, sizeof settings,
             "model.hidden_size=%lld model.moe_intermediate_size=%lld model.num_experts=%lld "
             "router.top_k=4 data.tokens_per_device=%lld "
             "data.skew=0 data.topic_strength=0",
             (long long)h, (long long)f, (long long)n, (long long)(rows * n / 4));
    bench_layer_init(&b.layer, comm, settings);
    bench_layer_forward(&b.layer);
    bare_experts_init(&b.bare, &b.layer.layer.experts,
                      b.layer.activations.exchange.inbox.slot_offset, backward);
    if (backward) {
        make_gradient(&b);
    }
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        if (!bench_fits(comm, threads)) {
            continue;
        }
        snprintf(what, sizeof what, "%s, H %lld, F %lld, %lld x %lld rows, %d thread%s",
                 backward ? "fwd + bwd" : "forward", (long long)h, (long long)f, (long long)n,
                 (long long)rows, threads, threads > 1 ? "s" : "");
        bench_row(comm, what, bench_pair(comm, run_moesim, run_bare, &b),
                  backward ? "0.85" : "0.9");
    }
    moe_free(b.gradient.w1);
    moe_free(b.gradient.w3);
    moe_free(b.gradient.w2);
    moe_expert_buffers_free(&b.buffers);
    bare_experts_free(&b.bare);
    bench_layer_free(&b.layer);
}

int main(int argc, char **argv) {
    static const int64_t shapes[][4] = {{512, 256, 64, 96},
                                        {1024, 512, 32, 96},
                                        {512, 256, 64, 16},
                                        {1024, 512, 16, 512},
                                        {256, 128, 32, 64}};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    if (openblas_get_corename) {
        printf("kernels of the BLAS: %s\n", openblas_get_corename());
    }
    for (int backward = 0; backward < 2; backward++) {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
            bench(&comm, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], backward == 1);
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
