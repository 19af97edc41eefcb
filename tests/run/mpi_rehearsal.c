/* mpi_rehearsal.c: what a rehearsal says of a load, beside what a run's first step does with the
 * whole batch, and beside closed forms: a router that sends everything to the first experts, and
 * one that is even.
 *
 * ctest: f64 np=1,2,4 */
#include <omp.h>

#include "base/gemm.h"
#include "check.h"
#include "model_fixture.h"
#include "run/rehearsal.h"

#define COMMON                                                            \
    "run.threads=1 cluster.devices=4 model.num_experts=8 router.top_k=2 " \
    "model.hidden_size=24 model.moe_intermediate_size=8 data.sequence_length=16 run.steps=1 "

static const int64_t ROOM = (int64_t)1 << 30;

static bool rehearse(const moe_comm *comm,
                     const moe_config *c,
                     moe_input *in,
                     moe_memory_load *load) {
    const moe_model_files none = {0};
    const int64_t before = moe_alloc_live_bytes();
    const bool done = moe_rehearse(comm, c, in, &none,
                                   c->cluster.devices * c->data.tokens_per_device, ROOM, load);
    CHECK_EQ(moe_alloc_live_bytes(), before);
    return done;
}

/* A batch that is small enough is looked at as it is. */
static void check_first_step(const moe_comm *comm, const char *words) {
    model_fixture f;
    moe_memory_load load[8] = {{0}};
    moe_status st = {0};
    model_fixture_init(&f, comm, COMMON "data.tokens_per_device=256 ", words, 0);
    CHECK(rehearse(comm, &f.c, &f.input, load));
    moe_input_vectors(&f.input, &f.c, 0, &f.batch, moe_stack_input(&f.stack));
    CHECK(moe_stack_forward(&f.stack, &f.tally, &f.metrics, &st) == MOE_OK);
    const moe_activations *a = moe_stack_activations(&f.stack, 0);
    const moe_inbox *in = &a->exchange.inbox;
    const double t = (double)f.batch.num_tokens;
    const moe_memory_load own = load[comm->rank];
    CHECK_NEAR(own.selections * t, (double)a->routing.num_selections, 1e-6);
    CHECK_NEAR(own.sent * t, (double)a->plan.num_pairs, 1e-6);
    CHECK_NEAR(own.in_pairs * t, (double)in->num_pairs, 1e-6);
    CHECK_NEAR(own.in_rows * t, (double)in->num_rows, 1e-6);
    CHECK_NEAR(own.in_remote * t, (double)(in->num_rows - (in->own_end - in->own_begin)), 1e-6);
    model_fixture_free(&f);
}

/* The most pairs that arrive in each layer in any step. */
enum { LAYERS = 2, STEPS = 3 };
static double most_pairs[LAYERS];

static int see_pairs(void *self,
                     const moe_stack *stack,
                     int32_t l,
                     moe_step_metrics *metrics,
                     moe_status *st) {
    const double pairs = (double)moe_stack_activations(stack, l)->exchange.inbox.num_pairs;
    (void)self;
    most_pairs[l] = pairs > most_pairs[l] ? pairs : most_pairs[l];
    return moe_tally_after_layer(NULL, stack, l, metrics, st);
}

/* A model that is quickly run: choices of its second layer follow what the experts of the first
 * did, and those of a later step what was learned. Layers keep their buffers in training, and share
 * them in a forward run. */
static void check_whole_run(const moe_comm *comm, const char *words) {
    const moe_observer observer = {.after_layer = see_pairs};
    model_fixture f;
    moe_memory_load load[8] = {{0}};
    moe_status st = {0};
    model_fixture_init(&f, comm,
                       COMMON "data.tokens_per_device=4096 data.num_topics=5 model.num_layers=2 "
                              "run.steps=3 train.learning_rate=0.05 router.gate_scale=2 ",
                       words, 0);
    CHECK(rehearse(comm, &f.c, &f.input, load));
    most_pairs[0] = most_pairs[1] = 0;
    f.training.observer = &observer;
    for (int64_t step = 0; step < STEPS; step++) {
        if (model_fixture_trains(&f)) {
            CHECK(model_fixture_train(&f, step, &st) == MOE_OK);
            continue;
        }
        moe_step_metrics_clear(&f.metrics);
        moe_input_vectors(&f.input, &f.c, step, &f.batch, moe_stack_input(&f.stack));
        CHECK(moe_stack_forward(&f.stack, &observer, &f.metrics, &st) == MOE_OK);
    }
    const double larger = most_pairs[0] > most_pairs[1] ? most_pairs[0] : most_pairs[1];
    CHECK_NEAR(load[comm->rank].in_pairs * (double)f.batch.num_tokens,
               model_fixture_trains(&f) ? (most_pairs[0] + most_pairs[1]) / LAYERS : larger, 1e-6);
    model_fixture_free(&f);
}

/* A step of so many micro-batches takes too long to be run as it is, and a sample is looked at. */
static void check_micro_batches(const moe_comm *comm) {
    moe_config c;
    moe_input in = {0};
    moe_memory_load load[8] = {{0}};
    settings_resolve(&c, COMMON,
                     "data.tokens_per_device=4096 model.num_layers=2 run.mode=train run.steps=3 "
                     "train.accumulate=16",
                     comm->size);
    CHECK(rehearse(comm, &c, &in, load));
    for (int q = 0; q < comm->size; q++) {
        CHECK_NEAR(load[q].selections, 2, 1e-9);
        CHECK(load[q].in_pairs > 0);
    }
}

/* All tokens choose experts 0 and 1, which the first device has. */
static void check_biased(const moe_comm *comm) {
    moe_config c;
    double bias[8] = {1e6, 1e6};
    moe_input in = {.bias = bias};
    moe_memory_load load[8] = {{0}};
    settings_resolve(&c, COMMON, "data.tokens_per_device=100000", comm->size);
    CHECK(rehearse(comm, &c, &in, load));
    for (int q = 0; q < comm->size; q++) {
        CHECK_NEAR(load[q].in_pairs, q == 0 ? 2 * comm->size : 0, 1e-9);
        CHECK_NEAR(load[q].in_rows, q == 0 ? comm->size : 0, 1e-9);
        CHECK_NEAR(load[q].remote, q == 0 ? 0 : 1, 1e-9);
        CHECK_NEAR(load[q].of_slot, q == 0 ? comm->size : 0, 1e-9);
        CHECK_NEAR(load[q].rows, 1, 1e-9);
    }
}

/* Tokens in turn, K each. A device has two neighbours among the experts: a token has one row. */
static void check_even(const moe_comm *comm) {
    moe_config c;
    moe_input in = {0};
    moe_memory_load load[8] = {{0}};
    settings_resolve(&c, COMMON, "data.tokens_per_device=100000 router.method=round_robin",
                     comm->size);
    CHECK(rehearse(comm, &c, &in, load));
    for (int q = 0; q < comm->size; q++) {
        CHECK_NEAR(load[q].in_pairs, 2, 0.01);
        CHECK_NEAR(load[q].of_slot, comm->size / 4.0, 0.01);
        CHECK_NEAR(load[q].remote, load[q].rows * (1 - 1.0 / comm->size), 0.01);
    }
}

/* A gate of 2^26 weights takes too long for a quick look. */
static void check_too_large(const moe_comm *comm) {
    moe_config c;
    moe_input in = {0};
    moe_memory_load load[8] = {{.sent = 7}};
    settings_resolve(&c, COMMON, "model.num_experts=64 model.hidden_size=1048576", comm->size);
    CHECK(!rehearse(comm, &c, &in, load) && load[0].sent == 7);
    settings_resolve(&c, COMMON, "", comm->size);
    CHECK(!moe_rehearse(comm, &c, &in, &(moe_model_files){0}, 4, 0, load));
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    RUN(check_first_step, &comm, "");
    RUN(check_first_step, &comm, "capacity.policy=expert data.skew=2");
    RUN(check_first_step, &comm, "exchange.mode=two_level cluster.devices_per_node=2");
    RUN(check_first_step, &comm, "placement.redundant_experts=4");
    RUN(check_whole_run, &comm, "");
    RUN(check_whole_run, &comm, "run.mode=train");
    RUN(check_micro_batches, &comm);
    RUN(check_biased, &comm);
    RUN(check_even, &comm);
    RUN(check_too_large, &comm);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
