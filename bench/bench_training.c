/* bench_training.c: a training step (forward, backward, sum of gradients, AdamW) against a forward
 * step of the same network on as many tokens, in turns; the collectives of each; and what a step
 * allocates after the first ones. The ratio is forward / training: 0.30 says that a training step
 * takes 3.3 forward steps. Its arithmetic is that of three, since backward has twice that of
 * forward.
 *
 * bench: np=1,2 */
#include "bench.h"
#include "collectives.h"
#include "data/synthetic.h"
#include "model_fixture.h"

typedef struct network {
    model_fixture model; /* one layer */
    int64_t step;
} network;

static void forward_step(void *argument) {
    network *n = argument;
    model_fixture *m = &n->model;
    moe_layer *layer = &m->stack.layer[0];
    moe_activations *a = &m->stack.activations[0];
    real *x = moe_stack_input(&m->stack);
    m->context.keep = m->context.trains = false;
    moe_step_metrics_clear(&m->metrics);
    moe_synthetic_vectors(&m->c.data, m->c.run.seed, m->c.model.hidden_size, &m->batch, n->step++,
                          x, NULL);
    moe_layer_forward(layer, &m->context, x, m->stack.y, a, &m->metrics.layer[0]);
    moe_tally_layer(layer, &m->context, a, m->stack.y, &m->metrics);
}

static void training_step(void *argument) {
    network *n = argument;
    moe_status st = {0};
    n->model.context.keep = true;
    if (model_fixture_train(&n->model, n->step++, &st)) {
        fprintf(stderr, "%s\n", st.message);
        moe_comm_abort(1);
    }
}

static void measure_counts(network *n, const char *name, const char *kind, bench_function step) {
    const moe_comm *comm = n->model.context.comm;
    char what[160];
    int64_t allocations = moe_alloc_count();
    collectives before = collectives_made;
    step(n);
    snprintf(what, sizeof what, "%s, %s", name, kind);
    collectives_row(comm, what, before);
    allocations = moe_alloc_count() - allocations;
    moe_comm_max_i64(comm, &allocations, 1);
    if (comm->rank == 0) {
        printf("%s: allocations\t%lld\t0\tcalls\t-\t-\t0\n", what, (long long)allocations);
    }
}

static const char common[] = "run.mode=train train.learning_rate=0.0001 balance.alpha_expert=0.01 ";

static void bench(const moe_comm *comm, const char *name, const char *settings) {
    network n = {0};
    char what[160];
    model_fixture_init(&n.model, comm, common, settings, 0);
    snprintf(what, sizeof what, "%s: training step, bare: forward step", name);
    bench_row(comm, what, bench_pair(comm, training_step, forward_step, &n), "0.30");
    measure_counts(&n, name, "training step", training_step);
    measure_counts(&n, name, "forward step", forward_step);
    model_fixture_free(&n.model);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    bench(&comm, "T 1024, H 512, F 256, N 32, K 6",
          "data.tokens_per_device=1024 model.hidden_size=512 model.moe_intermediate_size=256 "
          "model.num_experts=32 router.top_k=6");
    bench(&comm, "T 512, H 128, F 64, N 32, K 4",
          "data.tokens_per_device=512 model.hidden_size=128 model.moe_intermediate_size=64 "
          "model.num_experts=32 router.top_k=4");
    bench(&comm, "T 64, H 64, F 32, N 16, K 2",
          "data.tokens_per_device=64 model.hidden_size=64 model.moe_intermediate_size=32 "
          "model.num_experts=16 router.top_k=2");
    moe_comm_finalize(&comm);
    return 0;
}
