/* topology.h: what this rank runs on, and how the cores of a host are shared among its ranks
 * (hwloc). */
#ifndef MOESIM_WORLD_TOPOLOGY_H
#define MOESIM_WORLD_TOPOLOGY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/gemm.h"
#include "world/comm.h"

/* About one rank. It holds no pointers, so that ranks can send it to each other as bytes. */
typedef struct moe_topology {
    char host[64];
    char processor[96];      /* CPU model name, "" when unknown */
    int package, numa, core; /* where this rank is bound, as logical indices; -1: unknown or several
                              */
    int host_cores, host_pus;   /* what the job was given of this host: what its ranks may run on
                                   together (taskset, cpuset, Slurm; where Open MPI bound them by
                                   itself, what its daemon may run on), and the cgroup's quota */
    int bound_cores;            /* cores in this rank's binding, after widening */
    int threads;                /* OpenMP threads this rank will use */
    int64_t l2_bytes, l3_bytes; /* caches of that core */
    int64_t memory_bytes;       /* of the host, or the cgroup's limit where that is less */
    bool oversubscribed;        /* this host has more ranks x threads than cores */
    moe_gemm_kernels gemm[2];   /* what computes matrix products, the large ones first */
    int num_gemm;
    bool synthetic; /* the machine is described by HWLOC_SYNTHETIC or HWLOC_XMLFILE; nothing is
                       bound */
} moe_topology;

/* Local, pure. The threads of one of local_size ranks on `cores` cores: `asked` where it is > 0,
 * else max(1, cores / local_size), and one more on the first cores % local_size ranks. */
int moe_topology_share(int cores, int local_rank, int local_size, int asked);

/* Between which ranks rows travel. */
typedef struct moe_reach {
    bool inside, between; /* there are ranks of one host; of several hosts */
} moe_reach;
/* Local. From the topologies of all ranks. */
moe_reach moe_topology_reach(const moe_topology *t, int ranks);

/* Collective. Looks at the machine and decides the number of threads (omp_set_num_threads). Where
 * this rank is bound to fewer cores than it has threads, the binding is widened to its fair share
 * of the cores that the job was given, never beyond them. */
void moe_topology_init(const moe_comm *comm, int threads_asked, moe_topology *out);

/* Local. The cores that this process may run on, of a described machine all: at least 1. */
int moe_topology_cores(void);

/* The following are in host_limits.c. */

/* Local. The bytes that a process on this host may still take, of its memory and of the cgroup's
 * limit; -1 when unknown. */
int64_t moe_memory_available(void);
/* Local. The bytes of this host's memory, or of the cgroup's limit where that is less; -1 when
 * unknown. */
int64_t moe_memory_limit(void);
/* Local. Before MPI is started by Open MPI's mpirun: fails with MOE_ERROR where a limit of this
 * process (ulimit -v, ulimit -f) is below what the start takes, because MPI would then end without
 * a word. */
int moe_limits_check_start(moe_status *st);
/* Local. How many cores the cgroup's quota of time amounts to, rounded up; 0 = no quota. */
int moe_core_quota(void);

#endif
