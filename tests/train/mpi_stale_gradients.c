/* mpi_stale_gradients.c: nothing of the gradients before a step gets into it. Gradients of experts
 * are not cleared but written over: a step that begins with NaN in all of them must give the bits
 * of one that begins with 0, for experts with and without rows, with one micro-batch and with two,
 * in one chunk and in several.
 *
 * ctest: f64 np=1,2,4 */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "model_fixture.h"

#define COMMON                                                                        \
    "run.mode=train train.learning_rate=0.01 cluster.devices=4 model.num_experts=32 " \
    "data.tokens_per_device=6 router.top_k=1 model.hidden_size=16 "                   \
    "model.moe_intermediate_size=8 data.topic_persistence=0 "

static void fill(moe_parameters *all, real value) {
    for (int i = 0; i < all->num; i++) {
        for (int64_t j = 0; all->p[i].expert && j < all->p[i].count * all->p[i].size; j++) {
            all->p[i].gradient[j] = value;
        }
    }
}

/* The gradients of the experts after one step that began with `value` in them. */
static double step_after(const moe_comm *comm, const char *words, real value, real *out) {
    model_fixture f;
    moe_status st = {0};
    model_fixture_init(&f, comm, COMMON, words, 0);
    moe_parameters *all = &f.training.parameters;
    fill(all, value);
    CHECK_MSG(model_fixture_train(&f, 0, &st) == MOE_OK, "%s", st.message);
    double norm = f.metrics.gradient_norm;
    for (int i = 0; i < all->num; i++) {
        const moe_parameter *p = &all->p[i];
        if (p->expert) {
            memcpy(out, p->gradient, (size_t)(p->count * p->size) * sizeof *out);
            out += p->count * p->size;
        }
    }
    model_fixture_free(&f);
    return norm;
}

static void test(const moe_comm *comm, const char *words) {
    enum { MOST = 32 * 3 * 16 * 8 };
    static real clean[MOST], stale[MOST];
    memset(clean, 0, sizeof clean);
    memset(stale, 0, sizeof stale);
    double norm = step_after(comm, words, 0, clean);
    CHECK(norm > 0);
    CHECK(step_after(comm, words, (real)NAN, stale) == norm);
    CHECK(memcmp(clean, stale, sizeof clean) == 0);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(2);
    RUN(test, &comm, "train.accumulate=1");
    RUN(test, &comm, "train.accumulate=2");
    RUN(test, &comm, "model.expert_type=lora model.lora_rank=2");
    RUN(test, &comm, "model.expert_type=gelu train.recompute=yes");
    RUN(test, &comm, "exchange.chunks=3"); /* an expert's first rows may be in any chunk */
    RUN(test, &comm, "exchange.chunks=2 train.accumulate=2");
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
