/* mpi_memory_peak.c: what a run takes beside what memory.h said it would: within 0.7 and 1.3 of
 * it, forward only and in training, for shapes in which one term or another is the largest. The
 * first shape is the largest, so that the peak of the process is its own; the others are judged by
 * what is held after the last step.
 *
 * ctest: f64 np=1,2,4 timeout=120 */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "model_fixture.h"
#include "predict/memory.h"
#include "tally/tally.h"
#include "train/train.h"
#include "world/comm.h"

enum { STEPS = 3, TEXT_BYTES = 40000 };

#define COMMON                                                                           \
    "run.threads=1 cluster.devices=4 data.sequence_length=64 balance.alpha_expert=0.01 " \
    "router.top_k=2 "
#define TRAIN COMMON "run.mode=train "
static const char *const settings[] = {
    TRAIN "data.source=text data.path=unused model.num_layers=3 model.num_experts=16 "
          "model.hidden_size=128 model.moe_intermediate_size=96 "
          "data.tokens_per_device=512 model.num_shared_experts=1",
    TRAIN "model.num_layers=2 model.num_experts=32 model.hidden_size=128 "
          "model.moe_intermediate_size=128 data.tokens_per_device=32",
    TRAIN "model.num_layers=2 model.num_experts=16 model.hidden_size=64 "
          "model.moe_intermediate_size=128 data.tokens_per_device=256 "
          "train.recompute=yes train.optimizer=sgd",
    TRAIN "model.num_experts=8 model.hidden_size=64 model.moe_intermediate_size=32 "
          "data.tokens_per_device=512 exchange.mode=selection",
    TRAIN "data.source=text data.path=unused model.num_experts=8 model.hidden_size=96 "
          "model.moe_intermediate_size=16 data.tokens_per_device=64 "
          "train.context=16 model.expert_type=relu",
    TRAIN "model.num_layers=2 model.num_experts=64 model.hidden_size=48 "
          "model.moe_intermediate_size=8 data.tokens_per_device=256 "
          "router.noise_form=softplus router.jitter=0.1 balance.load_form=shazeer",
    TRAIN "data.source=text data.path=unused model.num_layers=2 model.num_experts=8 "
          "model.hidden_size=64 model.moe_intermediate_size=16 data.tokens_per_device=256 "
          "model.attention=mha model.num_heads=4",
    TRAIN "model.num_layers=3 model.num_experts=8 model.hidden_size=64 "
          "model.moe_intermediate_size=16 data.tokens_per_device=256 model.attention=mla "
          "model.num_heads=8 model.q_lora_rank=48 train.recompute=yes",
    COMMON "model.num_layers=2 model.num_experts=8 model.hidden_size=64 "
           "model.moe_intermediate_size=16 data.tokens_per_device=512 model.attention=mla "
           "model.num_heads=8",
    TRAIN "model.num_layers=4 model.first_dense_layers=3 model.intermediate_size=384 "
          "model.num_experts=8 model.hidden_size=64 model.moe_intermediate_size=16 "
          "data.tokens_per_device=256",
    COMMON "model.num_layers=4 model.first_dense_layers=3 model.intermediate_size=384 "
           "model.num_experts=8 model.hidden_size=64 model.moe_intermediate_size=16 "
           "data.tokens_per_device=512",
    COMMON "model.num_layers=4 model.num_experts=16 model.hidden_size=128 "
           "model.moe_intermediate_size=64 data.tokens_per_device=256",
    COMMON "model.num_experts=64 model.hidden_size=128 model.moe_intermediate_size=128 "
           "data.tokens_per_device=32 model.num_shared_experts=1",
    COMMON "model.num_layers=2 model.num_experts=16 model.hidden_size=128 "
           "model.moe_intermediate_size=32 data.tokens_per_device=256 exchange.payload=fp8 "
           "exchange.combine_payload=bf16",
    TRAIN "model.num_layers=2 model.num_experts=16 model.hidden_size=128 "
          "model.moe_intermediate_size=16 data.tokens_per_device=256 router.top_k=4 "
          "exchange.mode=two_level cluster.devices_per_node=2",
    COMMON "model.num_layers=2 model.num_experts=16 model.hidden_size=128 "
           "model.moe_intermediate_size=16 data.tokens_per_device=256 router.top_k=4 "
           "exchange.mode=two_level exchange.node_sum=no cluster.devices_per_node=2 "
           "exchange.payload=fp8 exchange.combine_payload=bf16",
    TRAIN "model.num_layers=2 model.num_experts=16 model.hidden_size=128 "
          "model.moe_intermediate_size=32 data.tokens_per_device=256 router.top_k=4 "
          "exchange.chunks=4",
    COMMON "model.num_layers=2 model.num_experts=16 model.hidden_size=128 "
           "model.moe_intermediate_size=16 data.tokens_per_device=256 router.top_k=4 "
           "exchange.chunks=3 exchange.payload=fp8 exchange.combine_payload=bf16",
};
enum { SHAPES = sizeof settings / sizeof settings[0] };

typedef model_fixture fixture;

static void set_up(fixture *f,
                   const moe_comm *comm,
                   const char *words,
                   uint8_t *text,
                   int64_t *domain_offset) {
    *f = (fixture){0};
    settings_resolve(&f->c, "", words, comm->size);
    if (f->c.data.source == MOE_SOURCE_TEXT) {
        f->input = (moe_input){.text = text,
                               .text_length = TEXT_BYTES,
                               .num_domains = 1,
                               .domain_offset = domain_offset};
    }
    model_fixture_make(f, comm, 0);
}

static void train(fixture *f) {
    moe_status st = {0};
    for (int64_t step = 0; step < STEPS; step++) {
        CHECK_MSG(model_fixture_train(f, step, &st) == MOE_OK, "%s", st.message);
    }
}

/* The last step is run with fp32 too where a payload is narrow, as in a run. */
static void forward(fixture *f, moe_payload_error *fp32) {
    moe_status st = {0};
    for (int64_t step = 0; step < STEPS; step++) {
        moe_step_metrics_clear(&f->metrics);
        moe_synthetic_vectors(&f->c.data, f->c.run.seed, f->c.model.hidden_size, &f->batch, step,
                              moe_stack_input(&f->stack), NULL);
        if (step + 1 == STEPS && moe_payload_error_happens(&f->c)) {
            moe_payload_error_forward(fp32, &f->stack, &st);
        }
        moe_stack_forward(&f->stack, &f->tally, &f->metrics, &st);
    }
}

/* The table of parameters holds as many as were counted from the configuration. */
static void check_parameters(const fixture *f) {
    moe_parameter_counts count = moe_memory_parameters(&f->c);
    int64_t expert = 0, replicated = 0;
    for (int i = 0; i < f->training.parameters.num; i++) {
        const moe_parameter *p = &f->training.parameters.p[i];
        *(p->expert ? &expert : &replicated) += p->count_global * p->size;
    }
    CHECK_EQ(count.expert, expert);
    CHECK_EQ(count.replicated, replicated);
}

static void check_shape(const moe_comm *comm, int shape, uint8_t *text, int64_t *domain_offset) {
    fixture f;
    moe_payload_error fp32 = {0};
    int64_t before = moe_alloc_live_bytes();
    set_up(&f, comm, settings[shape], text, domain_offset);
    if (f.c.run.mode == MOE_MODE_TRAIN) {
        train(&f);
    } else {
        forward(&f, &fp32);
    }
    double most = (double)((shape == 0 ? moe_alloc_peak_bytes() : moe_alloc_live_bytes()) - before);
    moe_comm_max_f64(comm, &most, 1);
    moe_memory m = moe_memory_estimate(&f.c, &(moe_memory_given){.num_tokens = 0});
    /* buffers of a layer are allocated with a quarter in reserve, which is not resident */
    const int64_t said = m.total - m.program + (m.activations + m.exchange) / 4;
    double ratio = (double)said / most;
    CHECK_MSG(ratio >= 0.7 && ratio <= 1.3,
              "shape %d: %lld said, %.0f taken: ratio %.2f (weights %lld, gradients %lld, "
              "optimiser %lld, activations %lld, exchange %lld, "
              "statistics "
              "%lld)",
              shape, (long long)said, most, ratio, (long long)m.weights, (long long)m.gradients,
              (long long)m.optimizer, (long long)m.activations, (long long)m.exchange,
              (long long)m.statistics);
    if (comm->rank == 0) {
        printf("shape %d: estimate / taken = %.3f of %.0f KiB\n", shape, ratio, most / 1024);
    }
    if (f.c.run.mode == MOE_MODE_TRAIN) {
        check_parameters(&f);
    }
    moe_payload_error_free(&fp32);
    model_fixture_free(&f);
    CHECK_EQ(moe_alloc_live_bytes(), before);
}

int main(int argc, char **argv) {
    static uint8_t text[TEXT_BYTES];
    int64_t domain_offset[2] = {0, TEXT_BYTES};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(1);
    for (int i = 0; i < TEXT_BYTES; i++) {
        text[i] = (uint8_t)(97 + i * i % 23);
    }
    for (int shape = 0; shape < SHAPES; shape++) {
        RUN(check_shape, &comm, shape, text, domain_offset);
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
