/* mpi_windows.c: the estimate of the windows of shared memory beside the windows that a run makes,
 * for every mode and payload, forward and in training. The estimate is of an even load, and so are
 * the loads here.
 *
 * ctest: np=2,4 timeout=120 */
#include <stdio.h>

#include "base/gemm.h"
#include "check.h"
#include "data/synthetic.h"
#include "model_fixture.h"
#include "world/window.h"

#define COMMON                                                                \
    "exchange.transport=shared cluster.devices=4 cluster.devices_per_node=2 " \
    "data.tokens_per_device=512 model.num_experts=16 model.hidden_size=64 "   \
    "model.moe_intermediate_size=8 router.top_k=4 data.topic_strength=0.1 "   \
    "model.num_layers=2 "
static const char *const modes[] = {"exchange.mode=token ", "exchange.mode=selection ",
                                    "exchange.mode=two_level ",
                                    "exchange.mode=two_level exchange.node_sum=no "};
static const char *const payloads[] = {"", "exchange.payload=bf16 exchange.combine_payload=bf16 ",
                                       "exchange.payload=fp8 ", "exchange.combine_payload=bf16 "};
static const char *const ways[] = {"", "run.mode=train "};

static void check_windows(const moe_comm *comm, const char *settings, const char *common) {
    model_fixture f = {0};
    moe_status st = {0};
    const int64_t before = moe_window_bytes();
    model_fixture_init(&f, comm, common, settings, 0);
    if (model_fixture_trains(&f)) {
        CHECK_MSG(model_fixture_train(&f, 0, &st) == MOE_OK, "%s", st.message);
    } else {
        moe_step_metrics_clear(&f.metrics);
        moe_synthetic_vectors(&f.c.data, f.c.run.seed, f.c.model.hidden_size, &f.batch, 0,
                              moe_stack_input(&f.stack), NULL);
        moe_stack_forward(&f.stack, &f.tally, &f.metrics, &st);
    }
    int64_t most = moe_window_bytes() - before;
    moe_comm_max_i64(comm, &most, 1);
    const int64_t said = moe_memory_estimate(&f.c, &(moe_memory_given){0}).windows;
    CHECK_MSG(most > 0 && (double)said > 0.9 * (double)most && (double)said < 1.2 * (double)most,
              "%s: %lld bytes said, %lld made", settings, (long long)said, (long long)most);
    model_fixture_free(&f);
    CHECK_MSG(moe_window_bytes() - before <= 64, "%s: windows are left", settings);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (size_t m = 0; m < sizeof modes / sizeof modes[0]; m++) {
        for (size_t p = 0; p < sizeof payloads / sizeof payloads[0]; p++) {
            for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++) {
                char settings[256];
                snprintf(settings, sizeof settings, "%s%s%s", modes[m], payloads[p], ways[w]);
                RUN(check_windows, &comm, settings, COMMON);
            }
        }
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
