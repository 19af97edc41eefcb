/* bench_drop.c: dropping at a capacity (moe_drop_decide: who stays, and the routing that is sent) against routing the same tokens (moe_route), which it
 * follows; its collectives and the bytes that a rank gives to them per selection; and whether its time grows with the rows, not faster.   bench: np=1,2
 * The ratio is routing / dropping. */
#include "bench.h"
#include "collectives.h"
#include "moesim/drop.h"

typedef struct drop_bench {
    bench_layer base;
    moe_scratch scratch;
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
    moe_stats_reserve(&a->segments, b->base.config.model.num_experts, b->base.batch.devices, b->base.batch.num_segments);
    moe_route(&b->base.layer.router, &b->base.batch, &b->base.context.placement, a->logits, &a->routing, &a->segments, &a->first_bad_token);
}

static void prepare(drop_bench *b, const moe_comm *comm, int64_t tokens, const char *settings) {
    char all[512];
    snprintf(
        all, sizeof all,
        "cluster.devices=8 data.tokens_per_device=%lld data.sequence_length=128 model.num_experts=64 router.top_k=6 model.hidden_size=32 "
        "model.moe_intermediate_size=8 capacity.capacity_factor=1 %s",
        (long long)tokens, settings);
    bench_layer_init(&b->base, comm, all);
    b->base.batch.scratch = b->base.context.router.scratch = b->base.layer.router.scratch = &b->scratch;
    moe_capacity_init(&b->base.context.capacity, &b->base.config);
    bench_layer_forward(&b->base);
    b->job = (moe_drop_job){.comm = comm,
                            .capacity = &b->base.context.capacity,
                            .batch = &b->base.batch,
                            .placement = &b->base.context.placement,
                            .router = &b->base.layer.router,
                            .logits = b->base.activations.logits,
                            .routing = &b->base.activations.routing};
}

static void clean_up(drop_bench *b) {
    moe_drop_free(&b->drop);
    bench_layer_free(&b->base);
    moe_scratch_free(&b->scratch);
}

/* Returns the median seconds of a decision. */
static double bench(const moe_comm *comm, const char *name, int64_t tokens, const char *settings, double before) {
    drop_bench b = {0};
    char what[160];
    prepare(&b, comm, tokens, settings);
    bench_times t = bench_pair(comm, run_drop, run_route, &b);
    snprintf(what, sizeof what, "%s, T %lld per device: bare: routing", name, (long long)tokens);
    bench_row(comm, what, t, "-");
    if (before > 0) {
        bench_times growth = {.measured = t.measured, .bare = 4 * before, .ratio = 4 * before / t.measured};
        snprintf(what, sizeof what, "%s, bare: 4 x a quarter of the tokens", name);
        if (comm->rank == 0) printf("%s\t%.3f\t%.3f\tms\t%.2f\t-\t1\n", what, 1e3 * growth.measured, 1e3 * growth.bare, growth.ratio);
    }
    collectives calls = collectives_made;
    run_drop(&b);
    snprintf(what, sizeof what, "%s, T %lld per device", name, (long long)tokens);
    collectives_row(comm, what, calls);
    double bytes = (double)b.drop.collective_bytes / (double)b.base.activations.routing.num_selections;
    moe_comm_max_f64(comm, &bytes, 1);
    if (comm->rank == 0) printf("%s: bytes given to them per selection, at most\t%.2f\t-\tbytes\t-\t-\t16\n", what, bytes);
    clean_up(&b);
    return t.measured;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name, *settings;
    } rules[] = {
        {"by device, scores", "capacity.policy=device"},
        {"by expert, weights", "capacity.policy=expert"},
        {"by expert, position, first choices", "capacity.policy=expert capacity.drop=position capacity.first_choices=yes"},
        {"by expert, batch priority", "capacity.policy=expert capacity.drop=batch_priority"},
        {"by expert of each device", "capacity.policy=expert capacity.capacity_scope=device"},
    };
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (size_t i = 0; i < sizeof rules / sizeof rules[0]; i++) {
        double before = 0;
        for (int64_t tokens = 256; tokens <= 4096; tokens *= 4) {
            before = bench(&comm, rules[i].name, tokens, rules[i].settings, before);
        }
    }
    moe_comm_finalize(&comm);
    return 0;
}
