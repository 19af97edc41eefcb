/* mpi_by_device.c: a pass that goes device by device (model/by_device.h) gives what one that holds
 * all logits and cells gives, bit for bit, with 1 and 3 threads: outputs, routing, losses in every
 * scope, counts and self-checks; and it holds less.
 *
 * ctest: timeout=120 */
#include <omp.h>
#include <string.h>

#include "base/alloc.h"
#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "model_fixture.h"
#include "world/comm.h"

static const char *const common =
    "model.num_experts=48 model.hidden_size=12 model.moe_intermediate_size=8 router.top_k=4 "
    "data.tokens_per_device=5 data.topic_strength=0.7 router.gate_scale=1.5 cluster.devices=24 "
    "model.num_layers=2";

static const char *const cases[] = {
    "data.sequence_length=5 balance.scope=sequence",      /* a sequence is a device's tokens */
    "data.sequence_length=2 balance.alpha_comm=1",        /* several of a device, some cut */
    "data.sequence_length=10 model.num_shared_experts=1", /* one of two devices */
    "data.sequence_length=33 router.group_limit=max router.topk_group=2",
    "data.sequence_length=0 router.group_limit=top2_sum router.num_groups=12 router.topk_group=3 "
    "cluster.devices_per_node=4 exchange.mode=two_level",
    "router.method=sinkhorn data.sequence_length=7 balance.device_p=mean",
    "router.score_func=sigmoid router.norm_topk_prob=yes exchange.mode=selection "
    "balance.aux_selection=unlimited router.group_limit=quota router.topk_group=2 "
    "router.scale_normalized=no",
    "capacity.policy=expert capacity.capacity_factor=0.8 data.sequence_length=15",
    "capacity.policy=device capacity.capacity_factor=0.7 balance.comm_count_local=no",
    "balance.comm_count=selections balance.importance_of=scores placement.policy=round_robin",
};
enum { NUM_CASES = sizeof cases / sizeof cases[0] };

static void set_up(model_fixture *m, const moe_comm *comm, const char *words, int64_t tokens) {
    model_fixture_init(m, comm, common, words, tokens);
    moe_synthetic_vectors(&m->c.data, m->c.run.seed, m->c.model.hidden_size, &m->batch, 0,
                          moe_stack_input(&m->stack), NULL);
}

/* What the input was is overwritten by the layers. */
static void forward(model_fixture *m, int threads, bool by_device, const char *words) {
    moe_status st = {0};
    omp_set_num_threads(threads);
    m->context.by_device = by_device;
    moe_synthetic_vectors(&m->c.data, m->c.run.seed, m->c.model.hidden_size, &m->batch, 0,
                          moe_stack_input(&m->stack), NULL);
    moe_step_metrics_clear(&m->metrics);
    moe_stack_forward(&m->stack, &m->tally, &m->metrics, &st);
    CHECK_MSG(st.code == MOE_OK, "%s", st.message);
    CHECK_MSG(moe_step_metrics_all_passed(&m->metrics), "a self-check failed: %s", words);
}

#define SAME(field, count)                                                         \
    CHECK_MSG(memcmp(a->field, b->field, (size_t)(count) * sizeof *a->field) == 0, \
              #field ", layer %d, %s", l, words)
#define SAME_VALUE(field) \
    CHECK_MSG(memcmp(&a->field, &b->field, sizeof a->field) == 0, #field ", layer %d, %s", l, words)

static void check_layer(const moe_layer_metrics *a,
                        const moe_layer_metrics *b,
                        const model_fixture *m,
                        int l,
                        const char *words) {
    SAME_VALUE(loss);
    SAME_VALUE(loss_by_scope);
    SAME_VALUE(ideal);
    SAME_VALUE(total);
    SAME(counts_per_expert, m->c.model.num_experts);
    SAME(kept_per_expert, m->c.model.num_experts);
    SAME(counts_per_device, m->batch.devices);
    SAME(distinct_tokens_per_device, m->batch.devices);
    SAME(received_rows, m->batch.devices);
    SAME(tokens_by_reach, 65);
    SAME_VALUE(selections);
    SAME_VALUE(dropped);
    SAME_VALUE(mean_devices);
    SAME_VALUE(mean_devices_unlimited);
    SAME_VALUE(mean_nodes_unlimited);
    SAME_VALUE(volume);
    SAME_VALUE(allreduce_bytes);
    SAME_VALUE(output_rms);
    CHECK_EQ(a->matrix.num_cells, b->matrix.num_cells);
    SAME(matrix.cell, a->matrix.num_cells);
}

static void check_checks(const moe_step_metrics *a, const moe_step_metrics *b, const char *words) {
    CHECK_EQ(a->num_checks, b->num_checks);
    for (int i = 0; i < a->num_checks; i++) {
        CHECK_STR(a->check[i].name, b->check[i].name);
        CHECK_STR(a->check[i].detail, b->check[i].detail);
        CHECK_MSG(a->check[i].made == b->check[i].made, "%s: %s", a->check[i].name, words);
    }
}

static void check_same(const model_fixture *whole, const model_fixture *mine, const char *words) {
    const moe_routing *a = &whole->stack.activations[0].routing,
                      *b = &mine->stack.activations[0].routing;
    const int64_t hidden = whole->c.model.hidden_size * whole->batch.num_tokens;
    const int l = 1; /* the layer that was last */
    CHECK_MSG(memcmp(whole->stack.y, mine->stack.y, (size_t)hidden * sizeof(real)) == 0, "y, %s",
              words);
    CHECK_EQ(a->num_selections, b->num_selections);
    SAME(row_offset, a->num_tokens + 1);
    SAME(expert, a->num_selections);
    SAME(weight, a->num_selections);
    SAME(score, a->num_selections);
    for (int k = 0; k < whole->stack.num_layers; k++) {
        check_layer(&whole->metrics.layer[k], &mine->metrics.layer[k], whole, k, words);
    }
    check_checks(&whole->metrics, &mine->metrics, words);
}

static void check_case(const moe_comm *comm, const char *words, int64_t tokens) {
    model_fixture whole, mine;
    set_up(&whole, comm, words, tokens);
    set_up(&mine, comm, words, tokens);
    forward(&whole, 1, false, words);
    for (int threads = 1; threads <= 3; threads += 2) {
        forward(&mine, threads, true, words);
        CHECK(mine.stack.activations[0].by_device.on);
        check_same(&whole, &mine, words);
    }
    model_fixture_free(&whole);
    model_fixture_free(&mine);
}

/* Padding that counts nowhere, on all devices and on all tokens of some. */
static void check_padding(const moe_comm *comm) {
    model_fixture m[2] = {0};
    const char *words = "data.sequence_length=10 balance.scope=device";
    uint8_t *mask = NULL;
    for (int i = 0; i < 2; i++) {
        set_up(&m[i], comm, words, 0);
        if (i == 0) {
            mask = moe_alloc(m[0].batch.num_tokens, sizeof *mask, "test");
            for (int64_t t = 0; t < m[0].batch.num_tokens; t++) {
                const int64_t number = m[0].batch.first_token + t;
                mask[t] = number % 3 != 0 && number / 5 % 4 != 1;
            }
        }
        m[i].batch.counted = mask;
        moe_batch_drop_padding(&m[i].batch, comm);
        forward(&m[i], 2, i == 1, words);
    }
    check_same(&m[0], &m[1], words);
    model_fixture_free(&m[0]);
    model_fixture_free(&m[1]);
    moe_free(mask);
}

/* A token whose logits are no numbers: the first one of the rank is found. */
static void check_bad_token(const moe_comm *comm) {
    model_fixture m;
    moe_status st = {0};
    set_up(&m, comm, "data.sequence_length=5 model.num_layers=1", 0);
    const int64_t h = m.c.model.hidden_size, bad = m.batch.num_tokens - 7;
    m.context.by_device = true;
    m.stack.x[0][bad * h] = m.stack.x[0][(bad + 6) * h] = (real)NAN;
    moe_step_metrics_clear(&m.metrics);
    moe_stack_forward(&m.stack, NULL, &m.metrics, &st);
    CHECK_EQ(m.stack.activations[0].first_bad_token, bad);
    model_fixture_free(&m);
}

/* Which thread takes which device changes from step to step, and nothing is allocated for that. */
static void check_allocations(const moe_comm *comm) {
    const char *words = "data.sequence_length=33 router.group_limit=max router.topk_group=2";
    model_fixture m;
    set_up(&m, comm, words, 115);
    for (int step = 0; step < 4; step++) {
        forward(&m, 3, true, words);
    }
    const int64_t before = moe_alloc_count();
    for (int step = 0; step < 8; step++) {
        forward(&m, 3, true, words);
    }
    CHECK_EQ(moe_alloc_count() - before, 0);
    model_fixture_free(&m);
}

/* Thousands of devices: the same figures, and memory for the cells of a few of them. */
static void check_many(const moe_comm *comm) {
    const char *words = "cluster.devices=2048 model.num_experts=2048 data.tokens_per_device=1 "
                        "data.sequence_length=1 model.num_layers=1 model.hidden_size=4 "
                        "model.moe_intermediate_size=2";
    const int64_t cells = 72 * (int64_t)2048 * 2048 / comm->size;
    model_fixture m[2];
    int64_t bytes[2];
    for (int i = 0; i < 2; i++) {
        const int64_t before = moe_alloc_live_bytes();
        set_up(&m[i], comm, words, 0);
        forward(&m[i], 2, i == 1, words);
        bytes[i] = moe_alloc_live_bytes() - before;
    }
    CHECK_MSG(bytes[0] > 2 * cells, "all cells are %lld bytes", (long long)bytes[0]);
    CHECK_MSG(bytes[1] < cells / 8 + (8 << 20), "device by device it is %lld bytes",
              (long long)bytes[1]);
    const moe_layer_metrics *a = m[0].metrics.layer, *b = m[1].metrics.layer;
    check_layer(a, b, &m[0], 0, words);
    model_fixture_free(&m[0]);
    model_fixture_free(&m[1]);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (int i = 0; i < NUM_CASES; i++) {
        RUN(check_case, &comm, cases[i], 0);
        RUN(check_case, &comm, cases[i], 17); /* some devices have no token */
    }
    RUN(check_padding, &comm);
    RUN(check_bad_token, &comm);
    RUN(check_allocations, &comm);
    if (comm.size <= 2) {
        RUN(check_many, &comm);
    }
    const int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
