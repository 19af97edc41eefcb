/* mpi_topology.c: cores are shared fairly; a described machine (HWLOC_SYNTHETIC) gives the same
 * answers anywhere; on this machine a rank that Open MPI bound too narrowly is widened to its own
 * slice, and one that was given a single core stays on it and knows when it shares it. */
#include <omp.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "world/topology.h"

static void check_share(void) {
    for (int cores = 1; cores <= 40; cores++) {
        for (int ranks = 1; ranks <= 50; ranks++) {
            int sum = 0;
            int least = cores + 1;
            int most = 0;
            for (int q = 0; q < ranks; q++) {
                int threads = moe_topology_share(cores, q, ranks, 0);
                sum += threads;
                least = threads < least ? threads : least;
                most = threads > most ? threads : most;
                CHECK(moe_topology_share(cores, q, ranks, 3) == 3);
            }
            CHECK_MSG(least >= 1 && most - least <= 1, "%d cores, %d ranks: %d to %d", cores, ranks,
                      least, most);
            CHECK_MSG(sum == (ranks <= cores ? cores : ranks), "%d cores, %d ranks: %d threads",
                      cores, ranks, sum);
        }
    }
}

/* A machine of 2 packages with 4 cores each, with 2 hardware threads each. */
static void check_synthetic(const moe_comm *comm, int asked) {
    moe_topology t;
    cpu_set_t before, after;
    setenv("HWLOC_SYNTHETIC", "pack:2 numa:1 l3:1 core:4 l2:1 pu:2", 1);
    sched_getaffinity(0, sizeof before, &before);
    moe_topology_init(comm, asked, &t);
    sched_getaffinity(0, sizeof after, &after);
    unsetenv("HWLOC_SYNTHETIC");
    int local = comm->local_size;
    int share = moe_topology_share(8, comm->local_rank, local, asked);
    int total = 0;
    int first = 0;
    for (int q = 0; q < local; q++) {
        first += q < comm->local_rank ? moe_topology_share(8, q, local, asked) : 0;
        total += moe_topology_share(8, q, local, asked);
    }
    CHECK(CPU_EQUAL(&before, &after));
    CHECK(t.synthetic && t.host_cores == 8 && t.host_pus == 16 && t.host[0] && t.memory_bytes > 0 &&
          t.l2_bytes > 0 && t.l3_bytes > 0);
    CHECK(t.threads == share && omp_get_max_threads() == share && t.oversubscribed == (total > 8));
    if (total > 8) {
        CHECK(t.core == -1 && t.package == -1 && t.bound_cores == 8);
    } else {
        CHECK(t.bound_cores == share && t.core == (share == 1 ? first : -1));
        CHECK(t.package == (first / 4 == (first + share - 1) / 4 ? first / 4 : -1) &&
              t.numa == t.package);
    }
}

static int cores_allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

/* Looks at this machine as it is, then with every rank bound to one processor. */
static void check_real(const moe_comm *comm) {
    moe_topology t;
    moe_topology_init(comm, 0, &t);
    CHECK(!t.synthetic && t.host_cores >= 1 && t.host_pus >= t.host_cores && t.bound_cores >= 1 &&
          t.bound_cores <= t.host_pus);
    CHECK(t.threads >= 1 && omp_get_max_threads() == t.threads && t.memory_bytes > 0);
    int64_t threads = t.threads;
    moe_comm_sum_i64(comm, &threads, 1);
    if (comm->num_hosts == 1) {
        CHECK(threads == (comm->size <= t.host_cores ? t.host_cores : comm->size));
        CHECK_EQ(t.oversubscribed, (comm->size > t.host_cores));
    }

    cpu_set_t start, one;
    sched_getaffinity(0, sizeof start, &start);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++) {
        if (CPU_ISSET(i, &start)) {
            CPU_SET(i, &one);
        }
    }
    sched_setaffinity(0, sizeof one, &one);
    /* the ranks were given this one core: nothing is widened */
    for (int asked = 0; asked <= 2; asked++) {
        moe_topology_init(comm, asked, &t);
        CHECK_MSG(t.host_cores == 1 && t.host_pus == 1 && t.bound_cores == 1 &&
                      cores_allowed() == 1 && t.threads == (asked > 0 ? asked : 1),
                  "asked for %d: %d threads on %d of %d cores", asked, t.threads, t.bound_cores,
                  t.host_cores);
        CHECK_EQ(t.oversubscribed, (comm->local_size * t.threads > 1));
    }
    /* Open MPI bound them to it: its daemon may use more. Two threads for each rank: as many cores,
     * or all that there are */
    setenv("OMPI_MCA_orte_bound_at_launch", "1", 1);
    moe_topology_init(comm, 2, &t);
    CHECK_MSG(t.threads == 2 && t.bound_cores >= (t.host_cores < 2 ? t.host_cores : 2),
              "%d threads on %d of %d cores", t.threads, t.bound_cores, t.host_cores);
    CHECK(cores_allowed() >= t.bound_cores);
    sched_setaffinity(0, sizeof one, &one);
    moe_topology_init(comm, 1, &t); /* one thread: a binding to one core stays */
    CHECK(t.threads == 1 && cores_allowed() == 1 && t.bound_cores == 1);
    unsetenv("OMPI_MCA_orte_bound_at_launch");
    sched_setaffinity(0, sizeof start, &start);
}

int main(int argc, char **argv) {
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    RUN(check_share);
    RUN(check_synthetic, &comm, 0);
    RUN(check_synthetic, &comm, 1);
    RUN(check_synthetic, &comm, 3);
    RUN(check_real, &comm);
    int64_t free_bytes = moe_memory_available(), limit = moe_memory_limit();
    CHECK_MSG(free_bytes > 0 && limit > 0 && free_bytes <= limit, "%lld free of %lld",
              (long long)free_bytes, (long long)limit);
    CHECK(moe_core_quota() >= 0);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
