/* bench_drop.c: dropping at a capacity (moe_drop_decide: who stays, and the routing that is sent)
 * against routing the same tokens (moe_router_route), which it follows; its collectives and the
 * bytes that a rank gives to them per selection; and whether its time grows with the rows, not
 * faster. The ratio is routing / dropping.
 *
 * bench: np=1,2 */
#include "bench.h"
#include "capacity/drop.h"
#include "collectives.h"

typedef struct drop_bench {
    bench_layer base;
    moe_drop drop;
    moe_drop_job job;
} drop_bench;

static void run_drop(void *argument) {
    drop_bench *b = argument;
    moe_drop_decide(&b->drop, &b->job);
}

static void run_route(void *argument) {
    drop_bench *b = argument;
    moe_activations *a = &b->base.activations;
    moe_stats_reserve(&a->segments, b->base.config.model.num_experts, b->base.batch.devices,
                      b->base.batch.num_segments);
    moe_draw draw = moe_layer_draw(&b->base.layer, &b->base.context);
    moe_router_route(&b->base.layer.router, &draw, &b->base.batch, &b->base.context.placements[0],
                     a->logits, NULL, &a->routing, &a->segments, &a->first_bad_token);
}

static void prepare(drop_bench *b, const moe_comm *comm, int64_t tokens, const char *settings) {
    char all[512];
    snprintf(all, sizeof all,
             "cluster.devices=8 data.tokens_per_device=%lld data.sequence_length=128 "
             "model.num_experts=64 router.top_k=6 model.hidden_size=32 "
             "model.moe_intermediate_size=8 capacity.capacity_factor=1 %s",
             (long long)tokens, settings);
    bench_layer_init(&b->base, comm, all);
    moe_capacity_init(&b->base.context.capacity, &b->base.config);
    bench_layer_forward(&b->base);
    b->job = (moe_drop_job){.comm = comm,
                            .capacity = &b->base.context.capacity,
                            .batch = &b->base.batch,
                            .placement = &b->base.context.placements[0],
                            .router = &b->base.layer.router,
                            .logits = b->base.activations.logits,
                            .routing = &b->base.activations.routing};
}

static void clean_up(drop_bench *b) {
    moe_drop_free(&b->drop);
    bench_layer_free(&b->base);
}

typedef struct two_sizes {
    drop_bench small, large;
} two_sizes;

static void run_large(void *argument) {
    run_drop(&((two_sizes *)argument)->large);
}
static void run_small_four_times(void *argument) {
    for (int i = 0; i < 4; i++) {
        run_drop(&((two_sizes *)argument)->small);
    }
}

static void print_collectives(const moe_comm *comm, const char *name, drop_bench *b) {
    collectives before = collectives_made;
    run_drop(b);
    collectives_row(comm, name, before);
    double bytes =
        (double)b->drop.collective_bytes / (double)b->base.activations.routing.num_selections;
    moe_comm_max_f64(comm, &bytes, 1);
    if (comm->rank == 0) {
        printf("%s: bytes given to them per selection\t%.2f\t-\tbytes\t-\t-\t16\n", name, bytes);
    }
}

static void bench(const moe_comm *comm, const char *name, const char *settings) {
    two_sizes b = {0};
    char what[160];
    prepare(&b.small, comm, 1024, settings);
    prepare(&b.large, comm, 4096, settings);
    snprintf(what, sizeof what, "%s, T 1024 per device, bare: routing", name);
    bench_row(comm, what, bench_pair(comm, run_drop, run_route, &b.small), "-");
    snprintf(what, sizeof what, "%s, T 4096 per device, bare: routing", name);
    bench_row(comm, what, bench_pair(comm, run_drop, run_route, &b.large), "-");
    snprintf(what, sizeof what, "%s, T 4096, bare: four times T 1024", name);
    bench_row(comm, what, bench_pair(comm, run_large, run_small_four_times, &b), "1");
    if (comm->size > 1) {
        print_collectives(comm, name, &b.large);
    }
    clean_up(&b.small);
    clean_up(&b.large);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    bench(&comm, "by device, scores", "capacity.policy=device");
    bench(&comm, "by expert, weights", "capacity.policy=expert");
    bench(&comm, "by expert, position",
          "capacity.policy=expert capacity.drop=position capacity.first_choices=yes");
    bench(&comm, "by expert, batch priority",
          "capacity.policy=expert capacity.drop=batch_priority");
    moe_comm_finalize(&comm);
    return 0;
}
