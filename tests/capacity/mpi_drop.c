/* mpi_drop.c: dropping decided by all ranks together is what one rank decides about the whole
 * batch, pair by pair, however the devices are dealt to ranks; at most two collectives and 16 bytes
 * a selection for the decision; room is used again from step to step.
 *
 * ctest: f64 timeout=120 */
#include <limits.h>

#include "capacity_cases.h"
#include "check.h"
#include "world/comm.h"

/* This rank's part of what one rank decided. */
static void check_part(const capacity_case *c, const capacity_case *whole, uint64_t seed) {
    int64_t first = whole->routing.row_offset[c->batch.first_token];
    int64_t wrong = 0;
    int64_t slots = 0;
    int64_t weights = 0;
    const moe_routing *sent = &c->drop.sent, *all = &whole->drop.sent;
    for (int64_t i = 0; i < c->routing.num_selections; i++) {
        wrong += c->drop.kept[i] != whole->drop.kept[first + i] ||
                 c->drop.server[i] != whole->drop.server[first + i];
        slots += c->drop.slot[i] != whole->drop.slot[first + i];
    }
    CHECK_MSG(wrong == 0, "seed %llu: policy %d, drop %d: %lld pairs differ",
              (unsigned long long)seed, c->rule.policy, c->rule.drop, (long long)wrong);
    CHECK_MSG(slots == 0, "seed %llu: policy %d, drop %d: %lld slots differ",
              (unsigned long long)seed, c->rule.policy, c->rule.drop, (long long)slots);
    int64_t begin = all->row_offset[c->batch.first_token],
            end = all->row_offset[c->batch.first_token + c->batch.num_tokens];
    CHECK_MSG(end - begin == sent->num_selections, "seed %llu: %lld pairs sent",
              (unsigned long long)seed, (long long)sent->num_selections);
    for (int64_t i = 0; i < sent->num_selections && i < end - begin; i++) {
        weights +=
            sent->expert[i] != all->expert[begin + i] || sent->weight[i] != all->weight[begin + i];
    }
    CHECK_MSG(weights == 0, "seed %llu: experts or weights differ", (unsigned long long)seed);
}

/* Figures that are sums over ranks, and the cost. */
static void check_sums(const capacity_case *c,
                       const capacity_case *whole,
                       const moe_comm *comm,
                       uint64_t seed) {
    int64_t sums[2] = {c->drop.exempt_overflow, c->drop.padding_rows};
    moe_comm_sum_i64(comm, sums, 2);
    CHECK_MSG(sums[0] == whole->drop.exempt_overflow && sums[1] == whole->drop.padding_rows,
              "seed %llu", (unsigned long long)seed);
    CHECK_MSG(c->drop.capacity == whole->drop.capacity, "seed %llu: capacity %lld",
              (unsigned long long)seed, (long long)c->drop.capacity);
    CHECK_EQ(whole->drop.collectives, 0);
    if (c->rule.overflow == MOE_OVERFLOW_DROP) {
        CHECK_MSG(c->drop.collectives <= 2, "seed %llu", (unsigned long long)seed);
    }
}

static void check_seed(const moe_comm *comm, uint64_t seed, moe_drop *reused) {
    moe_comm self = {
        .comm = MPI_COMM_SELF, .size = 1, .local_size = 1, .num_hosts = 1, .max_count = INT_MAX};
    int64_t tokens = random_int(seed, 60, 1, 120);
    int32_t devices = comm->size * (int32_t)(1 + seed % 3);
    capacity_case c = capacity_case_make(seed, tokens, devices, comm),
                  whole = capacity_case_make(seed, tokens, devices, &self);
    c.rule.pad = whole.rule.pad = c.rule.policy == MOE_CAPACITY_EXPERT;
    c.drop = *reused;
    capacity_case_decide(&c, comm);
    capacity_case_decide(&whole, &self);
    check_part(&c, &whole, seed);
    check_sums(&c, &whole, comm, seed);
    *reused = c.drop;
    c.drop = (moe_drop){0};
    capacity_case_free(&c);
    capacity_case_free(&whole);
}

/* The bound on bytes, where a batch is large enough for it to mean something: also when all
 * affinities are equal. */
static void check_bytes(const moe_comm *comm, uint64_t seed, bool equal) {
    capacity_case c = capacity_case_make(seed, 4096, comm->size, comm);
    c.rule = (moe_capacity){.policy = MOE_CAPACITY_DEVICE,
                            .factor = 0.5,
                            .num_experts = c.r.router.num_experts,
                            .devices = comm->size,
                            .top_k = c.r.router.top_k,
                            .most_choices = c.r.router.top_k};
    for (int64_t i = 0; i < c.routing.num_selections && equal; i++) {
        c.routing.score[i] = 0.5;
    }
    capacity_case_decide(&c, comm);
    int64_t sums[3] = {c.drop.collective_bytes, c.routing.num_selections,
                       c.drop.sent.num_selections};
    moe_comm_sum_i64(comm, sums, 3);
    CHECK_MSG(sums[0] <= 16 * sums[1], "seed %llu: %lld bytes for %lld selections",
              (unsigned long long)seed, (long long)sums[0], (long long)sums[1]);
    CHECK_MSG(c.drop.collectives <= 2, "%lld collectives", (long long)c.drop.collectives);
    CHECK_MSG(sums[2] <= c.drop.capacity * comm->size, "%lld pairs sent", (long long)sums[2]);
    capacity_case_free(&c);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_drop reused = {0};
    for (uint64_t seed = 1; seed <= 250; seed++) {
        RUN(check_seed, &comm, seed, &reused);
    }
    moe_drop_free(&reused);
    RUN(check_bytes, &comm, 1, false);
    RUN(check_bytes, &comm, 2, true);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
