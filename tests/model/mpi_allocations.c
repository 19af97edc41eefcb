/* mpi_allocations.c: after the first steps a step allocates nothing: forward only and training,
 * for every router, way of dropping and exchange. What depends on who chose whom (rows that arrive)
 * has a quarter more room than the first steps needed; the loads here stay within that.
 *
 * ctest: np=1,2,4 timeout=120 */
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "model_fixture.h"
#include "tally/tally.h"
#include "train/train.h"
#include "world/comm.h"

enum { FIRST = 3, STEPS = 7, TEXT_BYTES = 20000 };

#define COMMON                                                                         \
    "cluster.devices=4 cluster.devices_per_node=2 data.tokens_per_device=256 "         \
    "data.sequence_length=96 model.num_experts=16 "                                    \
    "model.hidden_size=16 model.moe_intermediate_size=8 router.top_k=4 data.skew=0.2 " \
    "data.topic_persistence=0 data.topic_strength=0.1 "                                \
    "balance.alpha_expert=0.01 balance.alpha_comm=0.01 "
#define TRAIN COMMON "run.mode=train train.learning_rate=0.001 model.num_layers=2 "
#define TEXT TRAIN "data.source=text data.path=unused "
#define GROUPS "router.num_groups=4 router.topk_group=2 "
static const char *const settings[] = {
    COMMON,
    COMMON
    "model.num_layers=2 exchange.mode=selection model.num_shared_experts=1 balance.z_loss=0.001",
    COMMON GROUPS "router.group_limit=max balance.aux_selection=unlimited",
    COMMON GROUPS "router.group_limit=top2_sum router.score_func=sigmoid",
    COMMON "router.method=sinkhorn router.sinkhorn_tolerance=0.01",
    COMMON "router.method=expert_choice",
    COMMON "router.method=random",
    COMMON "router.method=hash",
    COMMON "router.method=round_robin",
    COMMON "capacity.policy=device capacity.capacity_factor=1 capacity.exempt_sequences=0.2",
    COMMON "capacity.policy=device capacity.capacity_factor=1 capacity.capacity_scope=device",
    COMMON "capacity.policy=expert capacity.capacity_factor=1 capacity.drop=position "
           "capacity.first_choices=yes",
    COMMON "capacity.policy=expert capacity.capacity_factor=1 capacity.drop=probs "
           "capacity.renormalize=yes router.norm_topk_prob=yes",
    COMMON "capacity.policy=expert capacity.capacity_factor=1 capacity.drop=batch_priority",
    COMMON "capacity.policy=expert capacity.capacity_factor=1 capacity.overflow=next_choice",
    COMMON "capacity.policy=sequence capacity.capacity_factor=1",
    COMMON "placement.redundant_experts=8",
    COMMON "exchange.mode=two_level exchange.node_sum=no exchange.payload=fp8",
    COMMON "exchange.transport=shared",
    TRAIN,
    TRAIN "exchange.transport=auto exchange.mode=two_level exchange.payload=fp8",
    TRAIN "placement.redundant_experts=8 placement.policy=round_robin",
    TRAIN "exchange.mode=two_level exchange.combine_payload=bf16",
    TRAIN "exchange.mode=selection train.accumulate=2 train.optimizer=sgd model.expert_type=lora "
          "model.lora_rank=2",
    TRAIN GROUPS "router.group_limit=max model.num_shared_experts=1 balance.z_loss=0.001 "
                 "router.bias_update_rate=0.001",
    TRAIN "balance.importance_loss=0.01 balance.load_loss=0.01 balance.load_form=tutel "
          "router.noise=0.1 router.expert_dropout=0.05 "
          "train.recompute=yes",
    TRAIN
    "router.noise=0.1 router.noise_form=softplus router.jitter=0.05 router.jitter_experts=yes "
    "balance.load_loss=0.01 balance.load_form=shazeer",
    TRAIN "balance.aux_form=mixtral balance.aux_layers=all balance.scope=global",
    TRAIN
    "train.accumulate=3 balance.scope=global balance.global_batch=step balance.alpha_expert=0.01",
    TRAIN "router.method=sinkhorn router.sinkhorn_tolerance=0.01",
    TRAIN "router.method=top_p router.top_p=0.4 router.top_k=4",
    TRAIN "router.method=gshard router.top_k=2 router.second_choice=random",
    TRAIN "router.method=switch router.top_k=1 capacity.policy=expert capacity.capacity_factor=1",
    TRAIN "capacity.policy=device capacity.capacity_factor=1 capacity.exempt_sequences=0.1",
    TRAIN "capacity.policy=expert capacity.capacity_factor=1 capacity.drop=probs "
          "capacity.overflow=next_choice",
    TEXT,
    TEXT "model.attention=mla model.num_heads=2 model.q_lora_rank=8 data.sequence_length=64",
    TEXT "model.attention=mha model.num_heads=2 data.sequence_length=256 train.recompute=yes",
    TEXT "capacity.policy=device capacity.capacity_factor=1 balance.scope=sequence",
    TRAIN "model.num_layers=3 model.first_dense_layers=1",
    TRAIN "model.num_layers=3 model.first_dense_layers=2 train.recompute=yes",
};

typedef model_fixture fixture;

static void set_up(fixture *f, const moe_comm *comm, uint8_t *text, int64_t *domain_offset) {
    if (f->c.data.source == MOE_SOURCE_TEXT) {
        f->input = (moe_input){.text = text,
                               .text_length = TEXT_BYTES,
                               .num_domains = 1,
                               .domain_offset = domain_offset};
    }
    model_fixture_make(f, comm, 0);
}

static void run_step(fixture *f, int64_t step) {
    moe_status st = {0};
    if (model_fixture_trains(f)) {
        CHECK_MSG(model_fixture_train(f, step, &st) == MOE_OK, "%s", st.message);
        if (step % 2 == 0) {
            moe_training_validate(&f->training, 1);
        }
        return;
    }
    moe_step_metrics_clear(&f->metrics);
    f->metrics.step = f->context.step = step;
    moe_synthetic_vectors(&f->c.data, f->c.run.seed, f->c.model.hidden_size, &f->batch, step,
                          moe_stack_input(&f->stack), NULL);
    moe_stack_forward(&f->stack, &f->tally, &f->metrics, &st);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(2);
    uint8_t *text = moe_alloc(TEXT_BYTES, 1, "test");
    int64_t domain_offset[2] = {0, TEXT_BYTES};
    for (int64_t i = 0; i < TEXT_BYTES; i++) {
        text[i] = (uint8_t)('a' + (i * i + i / 7) % 26);
    }
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        int64_t live = moe_alloc_live_bytes(), first = 0;
        fixture f = {0};
        settings_resolve(&f.c, "", settings[i], comm.size);
        set_up(&f, &comm, text, domain_offset);
        for (int64_t step = 0; step < STEPS; step++) {
            int64_t before = moe_alloc_count();
            run_step(&f, step);
            int64_t count = moe_alloc_count() - before;
            CHECK_MSG(step < FIRST || count == 0, "%s: step %lld allocates %lld times",
                      settings[i] + (sizeof COMMON - 1), (long long)step, (long long)count);
            first += step == 0 ? count : 0;
        }
        CHECK_MSG(first > 0, "%s: the first step allocates nothing: is anything counted?",
                  settings[i]);
        model_fixture_free(&f);
        CHECK_MSG(moe_alloc_live_bytes() - live <= 4096, "%s: %lld bytes are left", settings[i],
                  (long long)(moe_alloc_live_bytes() - live));
    }
    moe_free(text);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
