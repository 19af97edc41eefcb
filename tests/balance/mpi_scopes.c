/* mpi_scopes.c: the balance losses of random batches in all three scopes: against the naive
 * reference over the whole global batch, and bit for bit against one rank that hosts all the
 * devices. Sequences that span devices and ranks, padding, fewer tokens than devices.
 *
 * ctest: f64 */
#include <limits.h>
#include <string.h>

#include "balance/scopes.h"
#include "check.h"
#include "exchange/plan.h"
#include "random_router.h"
#include "reference.h"
#include "world/comm.h"

typedef struct problem {
    uint64_t seed;
    int32_t devices;
    int64_t tokens, sequence_length;
    moe_router router;
    moe_balance balance;
    moe_placement placement;
    float *z;          /* [T_global, N] */
    double *bias;      /* [N] */
    int64_t *boundary; /* [num_sequences + 1], or NULL: sequence_length */
    int64_t num_sequences;
    uint8_t *counted; /* [T_global] or NULL */
} problem;

/* A router whose experts can be dealt to this many devices. */
static void make_router(problem *p) {
    uint64_t s = p->seed;
    int32_t n = p->devices * random_int(s, 40, 1, 4), groups = random_divisor(s, 41, n);
    p->router = (moe_router){
        .num_experts = n,
        .top_k = random_int(s, 42, 1, n < 8 ? n : 8),
        .num_groups = groups,
        .topk_group = random_int(s, 43, 1, groups),
        .score_func = (enum moe_score_func)random_int(s, 44, 0, MOE_NUM_SCORE_FUNCTIONS - 1),
        .group_limit = (enum moe_group_limit)random_int(s, 45, 0, 3),
        .norm_topk_prob = random_int(s, 46, 0, 1),
        .norm_single = true,
        .scale_normalized = true,
        .routed_scaling_factor = 1,
        .aux_selection = (enum moe_aux_selection)random_int(s, 47, 0, 1),
        .comm_count_local = random_int(s, 48, 0, 1)};
    p->bias = moe_alloc(n, sizeof *p->bias, "test");
    for (int32_t i = 0; i < n; i++) {
        p->bias[i] = random_unit(s, 49, (uint64_t)i) - 0.5;
    }
    if (random_int(s, 50, 0, 1)) {
        p->router.bias = p->bias;
    }
}

static problem make_problem(uint64_t seed, int32_t devices) {
    problem p = {.seed = seed, .devices = devices};
    static const int64_t tokens[] = {97, 1, 5, 64, 33, 150}, lengths[] = {0, 1, 7, 40, 13, 1000};
    p.tokens = tokens[seed % 6];
    p.sequence_length = lengths[random_int(seed, 60, 0, 5)];
    make_router(&p);
    int32_t n = p.router.num_experts;
    moe_placement_block(&p.placement, n, devices);
    p.balance = (moe_balance){.comm_limit = random_int(seed, 61, 1, devices),
                              .comm_count = (enum moe_comm_count)random_int(seed, 62, 0, 1),
                              .device_p = (enum moe_device_p)random_int(seed, 63, 0, 1),
                              .has_scores = true,
                              .has_logits = true};
    p.z = moe_alloc(p.tokens * n, sizeof *p.z, "test");
    for (int64_t i = 0; i < p.tokens * n; i++) {
        p.z[i] = random_logit(seed, (int)(seed % 5), (uint64_t)(i / n), (uint64_t)(i % n));
    }
    if (seed % 3 == 0) {
        p.counted = moe_alloc(p.tokens, 1, "test");
        for (int64_t t = 0; t < p.tokens; t++) {
            p.counted[t] = random_unit(seed, 64, (uint64_t)t) < 0.7 && t / 11 % 3 != 1; /* single
                                                                                           tokens,
                                                                                           and whole
                                                                                           stretches
                                                                                         */
        }
    }
    if (seed % 4 == 1) { /* sequences of different lengths, some of one token */
        p.boundary = moe_alloc(p.tokens + 1, sizeof *p.boundary, "test");
        for (int64_t t = 0; t < p.tokens; t++) {
            if (t == 0 || random_unit(seed, 65, (uint64_t)t) < 0.2) {
                p.boundary[p.num_sequences++] = t;
            }
        }
        p.boundary[p.num_sequences] = p.tokens;
    }
    return p;
}

static void free_problem(problem *p) {
    moe_placement_free(&p->placement);
    moe_free(p->z);
    moe_free(p->bias);
    moe_free(p->counted);
    moe_free(p->boundary);
}

static void rows_of_plan(const void *self, int32_t j, int64_t *tokens) {
    const moe_plan *plan = self;
    for (int32_t d = 0; d < plan->devices; d++) {
        tokens[d] = 0;
    }
    for (int64_t r = 0; r < plan->num_rows; r++) {
        for (int64_t c = plan->device_cell[j]; c < plan->device_cell[j + 1]; c++) {
            tokens[plan->cell[c].to] +=
                r >= plan->cell[c].first_row && r < plan->cell[c].first_row + plan->cell[c].rows;
        }
    }
}

/* What the program does on a rank of this communicator. */
static void reduce(const problem *p, const moe_comm *comm, moe_scopes *scopes) {
    moe_batch batch;
    moe_stats segments = {0};
    moe_routing routing = {0};
    moe_plan plan = {0};
    int64_t bad;
    if (p->boundary) {
        moe_batch_layout_boundaries(&batch, p->tokens, p->boundary, p->num_sequences, p->devices,
                                    comm->rank, comm->size);
    } else {
        moe_batch_layout(&batch, p->tokens, p->sequence_length, p->devices, comm->rank, comm->size);
    }
    batch.counted = p->counted ? p->counted + batch.first_token : NULL;
    moe_stats_reserve(&segments, p->router.num_experts, p->devices, batch.num_segments);
    moe_logits logits = {.f32 = p->z + batch.first_token * p->router.num_experts};
    moe_router_route(&p->router, &(moe_draw){0}, &batch, &p->placement, logits, NULL, &routing,
                     &segments, &bad);
    CHECK_EQ(bad, -1);
    moe_plan_build(&plan, MOE_EXCHANGE_TOKEN, &batch, &p->placement, comm->size, &routing);
    bool rows_are_tokens =
        !p->counted && p->router.comm_count_local && p->router.aux_selection == MOE_AUX_ACTUAL;
    const moe_sent_rows sent = {rows_of_plan, &plan};
    moe_scopes_reduce(scopes, comm, &p->balance, &p->placement, &batch, &segments,
                      rows_are_tokens ? &sent : NULL);
    moe_plan_free(&plan);
    moe_routing_free(&routing);
    moe_stats_free(&segments);
    moe_batch_free(&batch);
}

/* --- the naive reference --- */

static int32_t device_of(const problem *p, int64_t t) {
    int32_t d = 0;
    while (moe_batch_token_begin(p->tokens, p->devices, d + 1) <= t) {
        d++;
    }
    return d;
}

static int32_t sequence_of(const problem *p, int64_t t) {
    int32_t q = 0;
    if (!p->boundary) {
        return (int32_t)(t / (p->sequence_length ? p->sequence_length : p->tokens));
    }
    while (p->boundary[q + 1] <= t) {
        q++;
    }
    return q;
}

static void check_scope(const problem *p,
                        enum moe_scope scope,
                        ref_batch *b,
                        int32_t *scope_of,
                        const moe_scopes *scopes) {
    int64_t used = 0;
    static const char *const names[] = {"sequence", "device", "global"};
    b->num_scopes = scope == MOE_SCOPE_SEQUENCE ? sequence_of(p, p->tokens - 1) + 1
                    : scope == MOE_SCOPE_DEVICE ? p->devices
                                                : 1;
    for (int64_t t = 0; t < p->tokens; t++) {
        scope_of[t] = scope == MOE_SCOPE_SEQUENCE ? sequence_of(p, t)
                      : scope == MOE_SCOPE_DEVICE ? b->home[t]
                                                  : 0;
    }
    double loss[MOE_NUM_LOSSES];
    ref_counts *counts = ref_count(b);
    ref_losses(b, counts, loss);
    for (int l = 0; l < MOE_NUM_LOSSES; l++) {
        CHECK_MSG(fabs(loss[l] - scopes->loss[scope][l]) <= 1e-11 * fmax(fabs(loss[l]), 1e-3),
                  "seed %llu, D %d, scope %s, loss %s: %.17g, reference %.17g",
                  (unsigned long long)p->seed, p->devices, names[scope], moe_loss_names[l],
                  scopes->loss[scope][l], loss[l]);
    }
    for (int32_t i = 0; i < b->num_scopes; i++) {
        used += counts[i].tokens > 0;
    }
    if (scope != MOE_SCOPE_GLOBAL) {
        CHECK_EQ(scopes->population[scope], used);
    }
    if (scope == MOE_SCOPE_GLOBAL) {
        int64_t *tokens = moe_stats_device_tokens(&scopes->global, scopes->global.cell);
        for (int32_t d = 0; d < p->devices; d++) {
            CHECK_EQ(tokens[d], counts[0].device[d]);
        }
    }
    ref_counts_free(counts, b->num_scopes);
}

static void check_reference(const problem *p, const moe_scopes *scopes) {
    int32_t n = p->router.num_experts;
    int32_t *home = moe_alloc(p->tokens, sizeof *home, "test");
    int32_t *scope_of = moe_alloc(p->tokens, sizeof *scope_of, "test");
    double *z = moe_alloc(p->tokens * n, sizeof *z, "test");
    for (int64_t i = 0; i < p->tokens * n; i++) {
        z[i] = p->z[i];
    }
    for (int64_t t = 0; t < p->tokens; t++) {
        home[t] = device_of(p, t);
    }
    ref_batch b = {.router = &p->router,
                   .devices = p->devices,
                   .device = p->placement.device,
                   .num_tokens = p->tokens,
                   .z = z,
                   .home = home,
                   .scope = scope_of,
                   .counted = p->counted,
                   .comm_limit = p->balance.comm_limit,
                   .comm_count = p->balance.comm_count,
                   .device_p = p->balance.device_p};
    for (int scope = 0; scope < MOE_NUM_SCOPES; scope++) {
        check_scope(p, (enum moe_scope)scope, &b, scope_of, scopes);
    }
    moe_free(home);
    moe_free(scope_of);
    moe_free(z);
}

/* The devices of all ranks give the same bits as the same devices folded onto one rank. */
static void check_folded(const problem *p, const moe_scopes *scopes) {
    moe_comm self = {
        .comm = MPI_COMM_SELF, .size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT_MAX};
    moe_scopes alone = {0};
    reduce(p, &self, &alone);
    CHECK_MSG(memcmp(alone.loss, scopes->loss, sizeof alone.loss) == 0, "seed %llu, D %d",
              (unsigned long long)p->seed, p->devices);
    CHECK_MSG(memcmp(alone.ideal, scopes->ideal, sizeof alone.ideal) == 0, "seed %llu, D %d",
              (unsigned long long)p->seed, p->devices);
    CHECK(memcmp(alone.population, scopes->population, sizeof alone.population) == 0);
    CHECK(memcmp(alone.global.cell, scopes->global.cell,
                 (size_t)alone.global.words * sizeof(int64_t)) == 0);
    CHECK_EQ(alone.allreduce_bytes, scopes->allreduce_bytes);
    moe_scopes_free(&alone);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_scopes reused = {0};
    for (uint64_t seed = 1; seed <= 60; seed++) {
        problem p = make_problem(seed, comm.size * (int32_t)(1 + seed / 6 % 3));
        moe_scopes scopes = {0};
        reduce(&p, &comm, &scopes);
        RUN(check_reference, &p, &scopes);
        RUN(check_folded, &p, &scopes);
        reduce(&p, &comm, &reused); /* memory of the problem before, as from step to step */
        CHECK(memcmp(reused.loss, scopes.loss, sizeof scopes.loss) == 0);
        moe_scopes_free(&scopes);
        free_problem(&p);
    }
    moe_scopes_free(&reused);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
