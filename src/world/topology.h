/* topology.h: what this rank runs on, and how cores are shared among the ranks of a host (hwloc).
 * Layer 1 (world). */
#ifndef MOESIM_WORLD_TOPOLOGY_H
#define MOESIM_WORLD_TOPOLOGY_H

#include <stdbool.h>
#include <stdint.h>

#include "world/comm.h"

typedef struct moe_topology { /* about one rank; POD, so that it can be gathered */
    char host[64];
    char processor[96];      /* CPU model name, "" when unknown */
    int package, numa, core; /* where this rank is bound (logical indices); -1 unknown or several */
    int host_cores, host_pus; /* usable by us on this host: the allowed cpuset and the cgroup's
                                 quota, not the launcher's binding */
    int bound_cores;          /* cores in this rank's binding, after widening */
    int threads;              /* OpenMP threads this rank will use */
    int64_t l2_bytes, l3_bytes, memory_bytes; /* caches of that core; memory of the host (cgroup
                                                 limit included) */
    bool oversubscribed;                      /* ranks x threads on this host > cores */
    bool synthetic; /* HWLOC_SYNTHETIC / HWLOC_XMLFILE: nothing is bound */
} moe_topology;

/* Local, pure. Threads for one of local_size ranks on `cores` cores; asked > 0 wins, else max(1,
 * cores / local_size), the first cores % local_size ranks get one more. */
int moe_topology_share(int cores, int local_rank, int local_size, int asked);

/* Collective. Looks at the machine, decides the number of threads, widens the binding to this
 * rank's fair share of the cores if the launcher bound it to fewer cores than threads, calls
 * omp_set_num_threads. */
void moe_topology_init(const moe_comm *comm, int threads_asked, moe_topology *out);

/* host_limits.c */
/* Local. Memory in bytes that a process on this host may still take (MemAvailable and cgroup
 * limit); -1 when unknown. */
int64_t moe_memory_available(void);
/* Local. Memory of this host in bytes, or the cgroup's limit where that is less; -1 when unknown.
 */
int64_t moe_memory_limit(void);
/* Local. Cores' worth of time that the cgroup's quota allows, rounded up; 0 = no quota. */
int moe_core_quota(void);

#endif
