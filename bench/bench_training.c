/* bench_training.c: a training step (forward, backward, sum of gradients, AdamW) against a forward
 * step of the same network on as many tokens, in turns; the collectives of each; and what a step
 * allocates after the first ones. The ratio is forward / training: 0.30 is 3.3
 * times a forward step, whose arithmetic backward has twice.
 *
 * bench: np=1,2 */
#include "bench.h"
#include "collectives.h"
#include "data/synthetic.h"
#include "tally/tally.h"
#include "train/train.h"

typedef struct network {
    bench_layer base; /* configuration, batch, context, first layer, forward activations */
    moe_training training;
    moe_step_metrics metrics;
    int64_t step;
} network;

static void forward_step(void *argument) {
    network *n = argument;
    bench_layer *b = &n->base;
    b->context.keep = b->context.trains = false;
    moe_step_metrics_clear(&b->metrics);
    moe_synthetic_vectors(&b->config.data, b->config.run.seed, b->config.model.hidden_size,
                          &b->batch, n->step++, b->x, NULL);
    bench_layer_forward(b);
    moe_tally_layer(&b->layer, &b->context, &b->activations, b->y, &b->metrics);
}

static void training_step(void *argument) {
    network *n = argument;
    moe_status st = {0};
    n->base.context.keep = true;
    moe_step_metrics_clear(&n->metrics);
    if (moe_training_step(&n->training, n->step++, &n->metrics, &st)) {
        fprintf(stderr, "%s\n", st.message);
        moe_comm_abort(1);
    }
}

static void measure_counts(network *n, const char *name, const char *kind, bench_function step) {
    char what[160];
    int64_t allocations = moe_alloc_count();
    collectives before = collectives_made;
    step(n);
    snprintf(what, sizeof what, "%s, %s", name, kind);
    collectives_row(n->base.context.comm, what, before);
    allocations = moe_alloc_count() - allocations;
    moe_comm_max_i64(n->base.context.comm, &allocations, 1);
    if (n->base.context.comm->rank == 0) {
        printf("%s: allocations\t%lld\t0\tcalls\t-\t-\t0\n", what, (long long)allocations);
    }
}

static void bench(const moe_comm *comm, const char *name, const char *settings) {
    network n = {0};
    char what[160];
    bench_layer_init(&n.base, comm, settings);
    moe_step_metrics_init(&n.metrics, 1, n.base.config.model.num_experts,
                          n.base.config.cluster.devices);
    moe_training_init(&n.training, &n.base.context, &n.base.batch, &n.base.layer);
    snprintf(what, sizeof what, "%s: training step, bare: forward step", name);
    bench_row(comm, what, bench_pair(comm, training_step, forward_step, &n), "0.30");
    measure_counts(&n, name, "training step", training_step);
    measure_counts(&n, name, "forward step", forward_step);
    moe_training_free(&n.training);
    moe_step_metrics_free(&n.metrics);
    bench_layer_free(&n.base);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    bench(&comm, "T 1024, H 512, F 256, N 32, K 6",
          "run.mode=train data.tokens_per_device=1024 model.hidden_size=512 "
          "model.moe_intermediate_size=256 model.num_experts=32 "
          "router.top_k=6 "
          "train.learning_rate=0.0001 balance.alpha_expert=0.01");
    bench(&comm, "T 512, H 128, F 64, N 32, K 4",
          "run.mode=train data.tokens_per_device=512 model.hidden_size=128 "
          "model.moe_intermediate_size=64 model.num_experts=32 "
          "router.top_k=4 "
          "train.learning_rate=0.0001 balance.alpha_expert=0.01");
    bench(&comm, "T 64, H 64, F 32, N 16, K 2",
          "run.mode=train data.tokens_per_device=64 model.hidden_size=64 "
          "model.moe_intermediate_size=32 model.num_experts=16 router.top_k=2 "
          "train.learning_rate=0.0001 balance.alpha_expert=0.01");
    moe_comm_finalize(&comm);
    return 0;
}
