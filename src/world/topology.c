/* topology.c: what this rank runs on, and its fair share of the host's cores.
 *
 * The ranks of a host deal out among themselves, in order, the cores that the job was given there,
 * each moe_topology_share of them. Given are the cores that the ranks of the host may run on
 * together: what taskset, a cpuset, Slurm or mpirun's caller left them. Open MPI binds ranks by
 * itself and says so in their environment, often to one core even when a rank has threads for four;
 * then given is what its daemon may run on, and such a rank is widened to its slice. A binding that
 * is wide enough is kept, and cores with more threads than there are of them are left to the
 * scheduler (a rank bound to fewer of them gets all that were given). A described machine
 * (HWLOC_SYNTHETIC, HWLOC_XMLFILE) gives the same answers anywhere; nothing is bound on it. */
#include "world/topology.h"

#include <hwloc.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int moe_topology_share(int cores, int local_rank, int local_size, int asked) {
    if (asked > 0) {
        return asked;
    }
    if (cores < local_size) {
        return 1;
    }
    return cores / local_size + (local_rank < cores % local_size);
}

/* What counts as a core: hardware threads on machines that do not tell their cores. */
static hwloc_obj_type_t core_type(hwloc_topology_t machine) {
    return hwloc_get_nbobjs_by_type(machine, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
}

/* Counts the objects of a type that the set touches. *only becomes the index of the object if there
 * is exactly one, else -1. */
static int count_objects(hwloc_topology_t machine,
                         hwloc_obj_type_t type,
                         hwloc_const_bitmap_t set,
                         int *only) {
    int count = 0;
    *only = -1;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(machine, type, o));) {
        if (!hwloc_bitmap_intersects(o->cpuset, set)) {
            continue;
        }
        *only = count == 0 ? (int)o->logical_index : -1;
        count++;
    }
    return count;
}

/* --- what was given --- */

/* Open MPI sets OMPI_MCA_orte_bound_at_launch=1 for ranks that it has bound. */
static bool launcher_has_bound(void) {
    const char *bound = getenv("OMPI_MCA_orte_bound_at_launch");
    return bound && strcmp(bound, "1") == 0;
}

static bool is_launcher(const char *name) {
    static const char *const names[] = {"mpirun", "mpiexec", "orterun",
                                        "orted",  "prterun", "prted"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strncmp(name, names[i], strlen(names[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* The process that started this rank, which a script may stand in front of; the parent where none
 * of the ancestors is known as a launcher. */
static pid_t launcher(void) {
    pid_t at = getppid();
    for (int up = 0; up < 8 && at > 1; up++) {
        char path[64], name[32] = "";
        int above = 0;
        snprintf(path, sizeof path, "/proc/%d/stat", (int)at);
        FILE *file = fopen(path, "r");
        int found = file ? fscanf(file, "%*d (%31[^)]) %*c %d", name, &above) : 0;
        if (file) {
            fclose(file);
        }
        if (found == 2 && is_launcher(name)) {
            return at;
        }
        at = found == 2 ? above : 0;
    }
    return getppid();
}

/* Collective. The union of a set over the ranks of this host. */
static void unite(const moe_comm *comm, hwloc_bitmap_t set) {
    enum { WORDS = 64 }; /* 4096 hardware threads */
    unsigned long word[WORDS];
    MPI_Comm host;
    for (unsigned i = 0; i < WORDS; i++) {
        word[i] = hwloc_bitmap_to_ith_ulong(set, i);
    }
    MPI_Comm_split_type(comm->comm, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &host);
    MPI_Allreduce(MPI_IN_PLACE, word, WORDS, MPI_UNSIGNED_LONG, MPI_BOR, host);
    MPI_Comm_free(&host);
    for (unsigned i = 0; i < WORDS; i++) {
        hwloc_bitmap_set_ith_ulong(set, i, word[i]);
    }
}

/* Collective. `set` becomes the hardware threads that the job was given on this host, as far as
 * this rank's control group allows them. */
static void given_to_host(hwloc_topology_t machine,
                          const moe_comm *comm,
                          bool synthetic,
                          hwloc_bitmap_t set) {
    hwloc_const_bitmap_t allowed = hwloc_topology_get_allowed_cpuset(machine);
    bool known = false;
    if (!synthetic) {
        known = launcher_has_bound() ? hwloc_get_proc_cpubind(machine, launcher(), set, 0) == 0
                                     : hwloc_get_cpubind(machine, set, HWLOC_CPUBIND_THREAD) == 0;
    }
    if (!known) {
        hwloc_bitmap_copy(set, allowed);
    }
    unite(comm, set);
    hwloc_bitmap_and(set, set, allowed);
    if (hwloc_bitmap_iszero(set)) {
        hwloc_bitmap_copy(set, allowed);
    }
}

/* --- this rank's part of it --- */

/* This rank's slice: as many cores as it has threads, behind those of the lower ranks of the host;
 * or all that were given, where the slice would pass the last one. */
static void slice_of(hwloc_topology_t machine,
                     const moe_comm *comm,
                     int cores,
                     int asked,
                     hwloc_const_bitmap_t given,
                     hwloc_bitmap_t slice) {
    int first = 0, count = moe_topology_share(cores, comm->local_rank, comm->local_size, asked);
    for (int r = 0; r < comm->local_rank; r++) {
        first += moe_topology_share(cores, r, comm->local_size, asked);
    }
    hwloc_bitmap_zero(slice);
    if (first + count > cores) {
        hwloc_bitmap_copy(slice, given);
        return;
    }
    int i = 0;
    for (hwloc_obj_t o = NULL;
         (o = hwloc_get_next_obj_by_type(machine, core_type(machine), o)) && i < first + count;) {
        if (!hwloc_bitmap_intersects(o->cpuset, given)) {
            continue;
        }
        if (i >= first) {
            hwloc_bitmap_or(slice, slice, o->cpuset);
        }
        i++;
    }
    hwloc_bitmap_and(slice, slice, given);
}

static bool oversubscribed(const moe_comm *comm, int cores, int asked) {
    int64_t threads = 0;
    for (int r = 0; r < comm->local_size; r++) {
        threads += moe_topology_share(cores, r, comm->local_size, asked);
    }
    return threads > cores;
}

/* `set` becomes the cores that this rank ends up on: the launcher's binding, or the slice that it
 * is widened to, or on a described machine the slice. A binding to what was not given (mpirun
 * --bind-to core looks at the host, not at its own binding) is moved. It is the calling thread's
 * binding that OpenMP threads inherit. */
static void settle(hwloc_topology_t machine,
                   const moe_comm *comm,
                   int asked,
                   hwloc_const_bitmap_t given,
                   const moe_topology *t,
                   hwloc_bitmap_t set) {
    int only, all = count_objects(machine, core_type(machine), given, &only);
    hwloc_bitmap_t slice = hwloc_bitmap_alloc();
    slice_of(machine, comm, all < t->host_cores ? all : t->host_cores, asked, given, slice);
    if (t->oversubscribed) {
        hwloc_bitmap_copy(slice, given);
    }

    bool known = !t->synthetic && hwloc_get_cpubind(machine, set, HWLOC_CPUBIND_THREAD) == 0 &&
                 !hwloc_bitmap_iszero(set);
    if (!known) {
        hwloc_bitmap_copy(set, t->synthetic ? slice : given);
    }
    int bound = count_objects(machine, core_type(machine), set, &only);
    int wanted = t->threads < all ? t->threads : all;
    bool moves = bound < wanted || !hwloc_bitmap_isincluded(set, given);
    if (known && moves && hwloc_set_cpubind(machine, slice, HWLOC_CPUBIND_PROCESS) == 0) {
        hwloc_bitmap_copy(set, slice);
    }
    hwloc_bitmap_free(slice);
}

/* Ranks of a host need not stand side by side. */
moe_reach moe_topology_reach(const moe_topology *t, int ranks) {
    moe_reach reach = {false, false};
    for (int q = 1; q < ranks; q++) {
        reach.between = reach.between || strcmp(t[0].host, t[q].host) != 0;
        for (int p = 0; p < q && !reach.inside; p++) {
            reach.inside = strcmp(t[p].host, t[q].host) == 0;
        }
    }
    return reach;
}

/* --- what it is like --- */

static int64_t cache_bytes(hwloc_topology_t machine,
                           hwloc_const_bitmap_t set,
                           hwloc_obj_type_t type) {
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(machine, type, o));) {
        if (hwloc_bitmap_intersects(o->cpuset, set)) {
            return (int64_t)o->attr->cache.size;
        }
    }
    return 0;
}

/* The kernel's total, or the cgroup's limit. The sum over NUMA nodes can leave out memory that was
 * added while the machine ran. */
static int64_t memory_of(hwloc_topology_t machine, bool synthetic) {
    int64_t limit = synthetic ? -1 : moe_memory_limit();
    return limit >= 0 ? limit : (int64_t)hwloc_get_root_obj(machine)->total_memory;
}

static void describe(hwloc_topology_t machine, hwloc_const_bitmap_t set, moe_topology *t) {
    t->bound_cores = count_objects(machine, core_type(machine), set, &t->core);
    count_objects(machine, HWLOC_OBJ_PACKAGE, set, &t->package);
    count_objects(machine, HWLOC_OBJ_NUMANODE, set, &t->numa);
    t->l2_bytes = cache_bytes(machine, set, HWLOC_OBJ_L2CACHE);
    t->l3_bytes = cache_bytes(machine, set, HWLOC_OBJ_L3CACHE);
    t->memory_bytes = memory_of(machine, t->synthetic);
    hwloc_obj_t package = hwloc_get_obj_by_type(machine, HWLOC_OBJ_PACKAGE, 0);
    const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
    snprintf(t->processor, sizeof t->processor, "%s", model ? model : "");
}

/* Where hwloc could not look at the machine: fills in the number of processors that this rank may
 * run on, and nothing else. */
static void describe_blind(const moe_comm *comm, int asked, moe_topology *t) {
    cpu_set_t own;
    bool known = sched_getaffinity(0, sizeof own, &own) == 0;
    long online = known ? CPU_COUNT(&own) : sysconf(_SC_NPROCESSORS_ONLN);
    t->package = t->numa = t->core = -1;
    t->host_cores = t->host_pus = online > 0 ? (int)online : 1;
    t->threads = moe_topology_share(t->host_cores, comm->local_rank, comm->local_size, asked);
    t->oversubscribed = oversubscribed(comm, t->host_cores, asked);
    t->memory_bytes = moe_memory_limit();
}

static void look(hwloc_topology_t machine, const moe_comm *comm, int asked, moe_topology *t) {
    hwloc_bitmap_t given = hwloc_bitmap_alloc(), set = hwloc_bitmap_alloc();
    int only;
    t->synthetic = !hwloc_topology_is_thissystem(machine);
    given_to_host(machine, comm, t->synthetic, given);
    t->host_cores = count_objects(machine, core_type(machine), given, &only);
    t->host_pus = count_objects(machine, HWLOC_OBJ_PU, given, &only);
    int quota = t->synthetic ? 0 : moe_core_quota();
    if (quota > 0 && quota < t->host_cores) {
        t->host_cores = quota;
    }
    t->threads = moe_topology_share(t->host_cores, comm->local_rank, comm->local_size, asked);
    t->oversubscribed = oversubscribed(comm, t->host_cores, asked);

    settle(machine, comm, asked, given, t, set);
    describe(machine, set, t);
    hwloc_bitmap_free(set);
    hwloc_bitmap_free(given);
}

void moe_topology_init(const moe_comm *comm, int threads_asked, moe_topology *out) {
    hwloc_topology_t machine;
    memset(out, 0, sizeof *out);
    out->num_gemm = moe_gemm_kernels_of(out->gemm);
    if (gethostname(out->host, sizeof out->host - 1) != 0) {
        snprintf(out->host, sizeof out->host, "unknown");
    }
    bool made = hwloc_topology_init(&machine) == 0;
    if (made && hwloc_topology_load(machine) == 0) {
        look(machine, comm, threads_asked, out);
    } else {
        describe_blind(comm, threads_asked, out);
    }
    if (made) {
        hwloc_topology_destroy(machine);
    }
    omp_set_num_threads(out->threads);
}

int moe_topology_cores(void) {
    hwloc_topology_t machine;
    int cores = 0, only, quota = 0;
    bool made = hwloc_topology_init(&machine) == 0;
    if (made && hwloc_topology_load(machine) == 0) {
        hwloc_bitmap_t set = hwloc_bitmap_alloc();
        bool own = hwloc_topology_is_thissystem(machine);
        bool known = own && hwloc_get_cpubind(machine, set, HWLOC_CPUBIND_PROCESS) == 0;
        cores = count_objects(machine, core_type(machine),
                              known ? set : hwloc_topology_get_allowed_cpuset(machine), &only);
        quota = own ? moe_core_quota() : 0;
        hwloc_bitmap_free(set);
    }
    if (made) {
        hwloc_topology_destroy(machine);
    }
    cores = quota > 0 && quota < cores ? quota : cores;
    return cores > 0 ? cores : 1;
}
