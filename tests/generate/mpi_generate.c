/* mpi_generate.c: prompts continued with a model of random weights. What comes out of prefill and
 * one token after the other, logits and bytes, is what a forward pass over the whole text says; it
 * is the same bits on any number of ranks; and a decode step allocates nothing.
 *
 * ctest: f64 gemm timeout=120 */
#include <limits.h>
#include <math.h>
#include <omp.h>
#include <string.h>

#include "base/gemm.h"
#include "check.h"
#include "generate/generator.h"
#include "generate/sampler.h"
#include "settings.h"
#include "tally/tally.h"

enum { DEVICES = 24, NEW = 9, V = MOE_VOCABULARY };

static const double TIGHT = sizeof(real) == sizeof(float) ? 1e-5 : 1e-12;

#define COMMON                                                                              \
    "run.mode=generate generate.run=unused generate.prompts=unused data.source=text "       \
    "data.path=unused cluster.devices=24 cluster.devices_per_node=6 model.num_experts=24 "  \
    "model.hidden_size=16 model.moe_intermediate_size=8 model.num_layers=2 router.top_k=3 " \
    "model.norm=rmsnorm train.context=3 data.sequence_length=64 "
static const char *const settings[] = {
    COMMON "model.attention=mla model.num_heads=2",
    COMMON "model.attention=mla model.num_heads=2 model.num_layers=3 model.first_dense_layers=2",
    COMMON "model.attention=mla model.num_heads=2 model.q_lora_rank=8 generate.temperature=0 "
           "generate.sequences_per_device=2 model.num_shared_experts=1",
    COMMON "model.attention=mha model.num_heads=4 model.num_kv_heads=2 train.context=1 "
           "exchange.mode=two_level generate.temperature=0.5",
    COMMON "model.attention=none train.context=8 router.group_limit=max router.num_groups=12 "
           "router.topk_group=4",
    COMMON "model.attention=mha model.num_heads=2 router.method=sinkhorn exchange.mode=selection",
};

/* --- a model and what it generates --- */

typedef struct made {
    moe_config c;
    moe_comm comm;
    moe_input input;
    moe_batch batch;
    moe_scratch scratch;
    moe_context context;
    moe_stack stack;
    moe_generator g;
    moe_step_metrics metrics;
} made;

static void make(made *m, const moe_comm *comm, const char *words, const moe_prompts *prompts) {
    *m = (made){.comm = *comm};
    settings_resolve(&m->c, "", words, comm->size);
    const moe_config *c = &m->c;
    const int64_t sequences = (int64_t)DEVICES * c->generate.sequences_per_device;
    moe_batch_layout(&m->batch, sequences * prompts->longest, prompts->longest, DEVICES, comm->rank,
                     comm->size);
    moe_context_init(&m->context, &m->comm, c, &m->batch, &m->input, &m->scratch);
    moe_stack_init(&m->stack, &m->context, 1, false);
    moe_step_metrics_init(&m->metrics, moe_config_moe_layers(c), c->model.num_experts, DEVICES);
    moe_generator_init(&m->g, &m->stack, &m->batch, prompts, NEW);
}

static void unmake(made *m) {
    moe_generator_free(&m->g);
    moe_stack_free(&m->stack);
    moe_step_metrics_free(&m->metrics);
    moe_context_free(&m->context);
    moe_batch_free(&m->batch);
    moe_scratch_free(&m->scratch);
}

/* logits [NEW, sequences, V] of this rank; returns how often the last steps allocated. */
static int64_t generate(made *m, real *logits) {
    const moe_observer tally = {.after_layer = moe_tally_after_layer};
    moe_status st = {0};
    int64_t late = 0;
    for (int64_t step = 0; step < NEW; step++) {
        const int64_t before = moe_alloc_count();
        moe_step_metrics_clear(&m->metrics);
        m->metrics.step = m->context.step = step;
        m->metrics.num_tokens = step == 0 ? m->batch.num_routed : m->g.tokens.num_routed;
        CHECK(moe_generator_step(&m->g, step, &tally, &m->metrics, &st) == MOE_OK);
        CHECK(moe_step_metrics_all_passed(&m->metrics));
        memcpy(logits + step * m->g.sequences * V, m->g.logits,
               (size_t)(m->g.sequences * V) * sizeof *logits);
        late += step >= 3 ? moe_alloc_count() - before : 0;
    }
    return late;
}

static real *room_for_logits(const made *m) {
    return moe_alloc(NEW * m->g.sequences * V, sizeof(real), "test");
}

/* --- beside a pass over the whole text --- */

/* Every sequence of `m`, which has all of them, goes forward at once, from its first byte to the
 * last but one. */
static void check_whole(made *m, const char *words, const real *logits) {
    const int64_t length = m->g.room - 1, h = m->c.model.hidden_size, n = m->g.sequences;
    moe_batch batch;
    moe_context context;
    moe_stack stack;
    moe_batch_layout(&batch, n * length, length, DEVICES, 0, 1);
    batch.byte = moe_alloc(n * length, 1, "test");
    moe_context_init(&context, &m->comm, &m->c, &batch, &m->input, &m->scratch);
    moe_stack_init(&stack, &context, 1, false);
    for (int64_t t = 0; t < n * length; t++) {
        const uint8_t *byte = m->g.text + t / length * m->g.room + t % length;
        batch.byte[t] = *byte;
        moe_task_embed(&m->g.task, byte, t % length, moe_stack_input(&stack) + t * h);
    }
    moe_stack_evaluate(&stack, NULL, NULL);
    real *normed = moe_alloc(h, sizeof *normed, "test"), z[V];
    double off = 0, most = 0;
    for (int64_t q = 0; q < n; q++) {
        for (int64_t step = 0; step < NEW; step++) {
            const int64_t place = m->g.length[q] - NEW - 1 + step;
            const real *mine = logits + (step * n + q) * V;
            moe_task_logits(&m->g.task, moe_stack_output(&stack) + (q * length + place) * h, 1,
                            normed, z);
            for (int i = 0; i < V; i++) {
                off = fmax(off, fabs((double)z[i] - (double)mine[i]));
                most = fmax(most, fabs((double)z[i]));
            }
        }
    }
    CHECK_MSG(off <= TIGHT * most && most > 0.1, "%s: off by %g of %g", words, off, most);
    moe_free(normed);
    moe_stack_free(&stack);
    moe_context_free(&context);
    moe_batch_free(&batch);
}

/* --- on ranks, and on one --- */

static void check_ranks(const moe_comm *comm, const char *words, const moe_prompts *prompts) {
    const moe_comm self = {
        .comm = MPI_COMM_SELF, .size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT_MAX};
    made here, alone;
    make(&here, comm, words, prompts);
    make(&alone, &self, words, prompts);
    real *logits = room_for_logits(&here), *whole = room_for_logits(&alone);
    const int64_t late = generate(&here, logits);
    CHECK_MSG(late == 0, "%s: decode steps allocate %lld times", words, (long long)late);
    generate(&alone, whole);
    const int64_t n = here.g.sequences, first = here.g.first_sequence, all = alone.g.sequences;
    for (int64_t step = 0; step < NEW; step++) {
        CHECK_MSG(memcmp(logits + step * n * V, whole + (step * all + first) * V,
                         (size_t)(n * V) * sizeof *logits) == 0,
                  "%s: logits of step %lld depend on the ranks", words, (long long)step);
    }
    uint8_t *text = moe_alloc(all * here.g.room, 1, "test");
    int64_t *length = moe_alloc(all, sizeof *length, "test");
    moe_generator_gather(&here.g, text, length);
    CHECK(memcmp(text, alone.g.text, (size_t)(all * here.g.room)) == 0);
    CHECK(memcmp(length, alone.g.length, (size_t)all * sizeof *length) == 0);
    if (comm->rank == 0) {
        check_whole(&alone, words, whole);
    }
    moe_free(text);
    moe_free(length);
    moe_free(logits);
    moe_free(whole);
    unmake(&here);
    unmake(&alone);
}

/* --- the sampler --- */

/* Temperature 0 takes the first of the largest; otherwise bytes come as often as they should. */
static void check_sampler(void) {
    enum { DRAWS = 20000 };
    real z[V];
    int64_t count[3] = {0};
    for (int i = 0; i < V; i++) {
        z[i] = -100;
    }
    z[65] = z[66] = 2;
    z[67] = 1;
    CHECK_EQ(moe_sampler_next(z, 0, 1, 0, 0), 65);
    for (int64_t i = 0; i < DRAWS; i++) {
        const int byte = moe_sampler_next(z, 0.5, 1, i % 100, i / 100);
        CHECK(byte >= 65 && byte <= 67);
        count[byte - 65] += byte >= 65 && byte <= 67;
    }
    const double small = exp(-2.0), sum = 2 + small; /* (1 - 2) / 0.5 */
    const double share[3] = {1 / sum, 1 / sum, small / sum};
    for (int b = 0; b < 3; b++) { /* within five standard deviations of a binomial count */
        const double mean = DRAWS * share[b], deviation = sqrt(mean * (1 - share[b]));
        CHECK(fabs((double)count[b] - mean) < 5 * deviation);
    }
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    omp_set_num_threads(comm.size < 3 ? 2 : 1);
    enum { PROMPTS = 24, LENGTH = 9 };
    uint8_t bytes[PROMPTS * LENGTH];
    int64_t equal[PROMPTS + 1], ragged[] = {0, 5, 6, 20, 27};
    for (int i = 0; i < PROMPTS * LENGTH; i++) {
        bytes[i] = (uint8_t)(i * 37 + i / 7);
    }
    for (int i = 0; i <= PROMPTS; i++) {
        equal[i] = LENGTH * i;
    }
    const moe_prompts prompts[] = {{PROMPTS, LENGTH, equal, bytes}, {4, 14, ragged, bytes}};
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        RUN(check_ranks, &comm, settings[i], &prompts[i % 2]);
    }
    RUN(check_ranks, &comm, settings[0], &prompts[1]);
    if (comm.rank == 0) {
        check_sampler();
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
